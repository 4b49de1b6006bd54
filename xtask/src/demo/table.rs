//! The demo's table: the steps of all programs, in the order of their clocks, one line each.
//!
//! A message is seen at both ends. The control plane's line is the one shown: it is there when a message was answered,
//! with the bytes of its body. The agent's lines count bytes of TLS records, for the figures. Blocks of one payload are
//! one line.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hil_tests::spawn::Step;

/// Lines wait this long before they are shown, so that those of the other programs can overtake them.
const REORDER_MS: f64 = 80.0;

/// The control plane's steps between its roles that a person watching the protocol does not miss.
const INTERNAL: [&str; 3] = ["admit_join", "binding", "delivered"];

/// The table, filled by a thread of its own.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    shared: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Not yet shown, unordered.
    waiting: Vec<Step>,
    /// Shown, in order.
    shown: Vec<Step>,
    /// Requests for payload blocks that are being gathered into one line.
    blocks: BTreeMap<String, Blocks>,
    /// Nothing more is printed.
    quiet: bool,
    nodes: usize,
    started_ms: BTreeMap<String, f64>,
}

#[derive(Debug)]
struct Blocks {
    count: u32,
    ms: f64,
    up: f64,
    down: f64,
    first: Step,
}

impl Table {
    /// Begins to take steps; `nodes` decides whether lines name their node.
    pub(crate) fn start(steps: Receiver<Step>, nodes: usize) -> Self {
        let table = Self { shared: Arc::new(Mutex::new(State { nodes, ..State::default() })) };
        let filler = table.clone();
        thread::spawn(move || {
            loop {
                match steps.recv_timeout(Duration::from_millis(20)) {
                    Ok(step) => filler.lock().waiting.push(step),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                let now = now_ms();
                filler.lock().show_until(now - REORDER_MS);
            }
            filler.lock().show_until(f64::INFINITY);
        });
        table
    }

    /// Prints a line between the steps.
    pub(crate) fn line(&self, text: &str) {
        let state = self.lock();
        if !state.quiet {
            println!("{text}");
        }
    }

    /// Prints the columns' names.
    pub(crate) fn header(&self) {
        self.line(&format!("{:<12} {:<24} {:>9} {:>9} {:>9}", "step", "who -> whom", "ms", "B up", "B down"));
        self.line(&format!("{:<12} {:<24} {:>9} {:>9} {:>9}", "", "", "", "from node", "to node"));
    }

    /// Shows what is still waiting.
    pub(crate) fn settle(&self) {
        thread::sleep(Duration::from_millis(REORDER_MS as u64 + 60));
        self.lock().show_until(f64::INFINITY);
    }

    /// Prints nothing from now on.
    pub(crate) fn quiet(&self) {
        self.lock().quiet = true;
    }

    /// Notes when an agent is started.
    pub(crate) fn started(&self, name: &str) {
        let now = now_ms();
        self.lock().started_ms.insert(name.to_owned(), now);
    }

    /// Milliseconds from an agent's newest start to the step `name` it wrote itself after it, if it did.
    pub(crate) fn agent_step_after_start(&self, node: &str, name: &str) -> Option<f64> {
        let program = format!("agent {node}");
        let state = self.lock();
        let started = state.started_ms.get(node)?;
        let wanted = |step: &&Step| step.program == program && step.step == name && step.at_ms >= *started;
        Some(state.shown.iter().find(wanted)?.at_ms - started)
    }

    /// All steps that were shown or merged away so far.
    pub(crate) fn steps(&self) -> Vec<Step> {
        self.lock().shown.clone()
    }

    /// Where the list of steps ends now.
    pub(crate) fn mark(&self) -> usize {
        self.lock().shown.len()
    }

    /// The verifier's finished challenges since `mark`.
    pub(crate) fn attestations_since(&self, mark: usize) -> Vec<Step> {
        let state = self.lock();
        let since = state.shown.iter().skip(mark);
        since
            .filter(|step| is_finished_message(step) && step.step == "challenge" && step.text("from") == "verifier")
            .cloned()
            .collect()
    }

    /// The challenges of the verifier that this node's agent answered since `mark`, with the bytes of TLS records.
    pub(crate) fn answers_since(&self, mark: usize, node: &str) -> Vec<Step> {
        let program = format!("agent {node}");
        let state = self.lock();
        let since = state.shown.iter().skip(mark).filter(|step| step.program == program && step.text("phase") == "end");
        since.filter(|step| step.step == "challenge" && step.text("from") == "verifier").cloned().collect()
    }

    /// The last step that was seen.
    pub(crate) fn last_step(&self) -> Option<String> {
        self.settle();
        self.lock().shown.last().map(|step| step.step.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn show_until(&mut self, until_ms: f64) {
        let (mut ready, waiting): (Vec<Step>, Vec<Step>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|step| step.at_ms <= until_ms);
        self.waiting = waiting;
        ready.sort_by(|a, b| a.at_ms.total_cmp(&b.at_ms));
        for step in ready {
            self.take(&step);
            self.shown.push(step);
        }
    }

    fn take(&mut self, step: &Step) {
        if !is_finished_message(step) || INTERNAL.contains(&step.step.as_str()) {
            return;
        }
        let node = step.text("node").to_owned();
        if step.step == "payload" {
            let blocks = self.blocks.entry(node).or_insert_with(|| Blocks {
                count: 0,
                ms: 0.0,
                up: 0.0,
                down: 0.0,
                first: step.clone(),
            });
            blocks.count += 1;
            blocks.ms += step.number("ms").unwrap_or(0.0);
            blocks.up += step.number("up").unwrap_or(0.0);
            blocks.down += step.number("down").unwrap_or(0.0);
            return;
        }
        if let Some(blocks) = self.blocks.remove(&node) {
            let numbers = (Some(blocks.ms), Some(blocks.up), Some(blocks.down));
            let note = if blocks.count > 1 { format!("{} blocks", blocks.count) } else { String::new() };
            self.print(&blocks.first, numbers, &note);
        }
        // A verdict is no message: what it says is its outcome.
        let why = if step.step == "verdict" {
            format!("{}: {}", step.text("outcome").to_lowercase(), step.text("why"))
        } else {
            String::new()
        };
        self.print(step, (step.number("ms"), step.number("up"), step.number("down")), &why);
    }

    fn print(&self, step: &Step, (ms, up, down): (Option<f64>, Option<f64>, Option<f64>), note: &str) {
        if self.quiet {
            return;
        }
        let from = step.text("from");
        let who = match (from, step.text("to")) {
            ("", _) => step.program.split(' ').next().unwrap_or_default().to_owned(),
            (from, to) => format!("{from} -> {to}"),
        };
        // Between two roles of one process there is nothing to measure.
        let number = |value: Option<f64>, digits: usize| {
            value.filter(|&value| value > 0.0).map_or_else(String::new, |value| format!("{value:.digits$}"))
        };
        let mut line =
            format!("{:<12} {who:<24} {:>9} {:>9} {:>9}", step.step, number(ms, 2), number(up, 0), number(down, 0));
        if self.nodes > 1 {
            line.push_str("  ");
            line.push_str(step.text("node").get(..8).unwrap_or_default());
        }
        if !note.is_empty() {
            line.push_str("  ");
            line.push_str(note);
        }
        println!("{}", line.trim_end());
    }
}

/// A message as the control plane saw it answered (or one without a beginning and an end, between two roles).
fn is_finished_message(step: &Step) -> bool {
    !step.program.starts_with("agent") && step.text("phase") != "begin"
}

fn now_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn step(program: &str, at_ms: f64, name: &str, phase: &str) -> Step {
        let fields =
            json!({"at_ms": at_ms, "step": name, "phase": phase, "from": "verifier", "to": "agent", "node": "ab"});
        Step { program: program.into(), at_ms, step: name.into(), fields }
    }

    #[test]
    fn steps_come_out_in_the_order_of_their_clocks() {
        let mut state = State { quiet: true, ..State::default() };
        state.waiting =
            vec![step("control plane", 20.0, "share", "end"), step("agent edge-1", 10.0, "challenge", "end")];
        state.show_until(15.0);
        assert_eq!((state.shown.len(), state.waiting.len()), (1, 1));
        state.show_until(f64::INFINITY);
        assert_eq!(state.shown.iter().map(|step| step.at_ms).collect::<Vec<_>>(), [10.0, 20.0]);
    }

    #[test]
    fn blocks_of_a_payload_become_one_line() {
        let mut state = State { quiet: true, ..State::default() };
        for at in [1.0, 2.0, 3.0] {
            state.take(&step("control plane", at, "payload", "end"));
        }
        assert_eq!(state.blocks["ab"].count, 3);
        state.take(&step("control plane", 4.0, "confirm", "end"));
        assert!(state.blocks.is_empty());
    }

    #[test]
    fn only_the_control_planes_finished_messages_count() {
        assert!(is_finished_message(&step("control plane", 0.0, "challenge", "end")));
        assert!(!is_finished_message(&step("control plane", 0.0, "challenge", "begin")));
        assert!(!is_finished_message(&step("agent edge-1", 0.0, "challenge", "end")));
    }
}
