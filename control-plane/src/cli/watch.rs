//! `--watch`: asks again every second; redraws on a terminal, and elsewhere tells only what changed.

use std::io::IsTerminal;
use std::time::Duration;

use super::client::Refused;
use super::output;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// One look: what it shows, and what of it counts as a change (ages, for one, do not).
pub(crate) struct Frame {
    /// Compared with the frame before.
    pub(crate) key: String,
    /// Shown.
    pub(crate) text: String,
}

/// Shows `look` once, or again and again.
pub(crate) fn show(watch: bool, mut look: impl FnMut() -> anyhow::Result<Frame>) -> anyhow::Result<()> {
    if !watch {
        return output::print(&look()?.text);
    }
    let terminal = std::io::stdout().is_terminal();
    let mut last: Option<Frame> = None;
    loop {
        match look() {
            Ok(frame) => {
                let changed = last.as_ref().is_none_or(|last| last.key != frame.key);
                if terminal && last.as_ref().is_none_or(|last| last.text != frame.text) {
                    output::print(&format!("\x1b[H\x1b[2J{}", frame.text))?;
                } else if !terminal && changed {
                    output::print(&frame.text)?;
                }
                last = Some(frame);
            }
            // What the server refuses it will refuse again; a server that is away may come back.
            Err(error) if last.is_none() || error.is::<Refused>() || super::is_broken_pipe(&error) => {
                return Err(error);
            }
            Err(error) => output::note(&format!("trefoil: {error:#}; trying again")),
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Prints what `more` gives, again and again: for what only grows.
pub(crate) fn follow(mut more: impl FnMut() -> anyhow::Result<String>) -> anyhow::Result<()> {
    let mut begun = false;
    loop {
        match more() {
            Ok(text) => {
                begun = true;
                if !text.is_empty() {
                    output::print(&text)?;
                }
            }
            Err(error) if !begun || error.is::<Refused>() => return Err(error),
            Err(error) => output::note(&format!("trefoil: {error:#}; trying again")),
        }
        std::thread::sleep(INTERVAL);
    }
}
