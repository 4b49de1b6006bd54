//! The manual pages, one for each command, made from what the command line itself is made from: they cannot go stale.
//!
//! For packages (`cargo xtask package`); the pages of the agent and of settings files are written by hand.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use clap::Command;
use clap_mangen::Man;

/// Writes `trefoil.1`, `trefoil-node.1`, `trefoil-node-add.1`, … into `dir`, which is made if it is not there. `date` is
/// the release's, YYYY-MM-DD.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn write(command: Command, date: &str, dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    for (name, page) in pages(command, date)? {
        let path = dir.join(name);
        fs::write(&path, page).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// File names with their pages.
fn pages(command: Command, date: &str) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    // A page for `help` says nothing that its parent's does not. Building gives each command its whole name.
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    let mut open = vec![command];
    while let Some(command) = open.pop() {
        open.extend(command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned());
        let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
        let man = Man::new(command).manual("Trefoil").date(date).source(SOURCE);
        let mut page = Vec::new();
        man.render(&mut page)?;
        pages.push((format!("{name}.1"), page));
    }
    Ok(pages)
}

const SOURCE: &str = concat!("trefoil ", env!("CARGO_PKG_VERSION"));

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    const DATE: &str = "2026-01-02";

    fn text(pages: &[(String, Vec<u8>)], name: &str) -> String {
        let page = pages.iter().find(|(page, _)| page == name).unwrap_or_else(|| panic!("no {name}"));
        String::from_utf8(page.1.clone()).unwrap()
    }

    #[test]
    fn every_visible_command_has_a_page_and_every_hidden_one_has_none() {
        let command = crate::Arguments::command();
        let pages = pages(command.clone(), DATE).unwrap();
        let mut open = vec![("trefoil".to_owned(), command)];
        let mut count = 0;
        while let Some((name, command)) = open.pop() {
            count += 1;
            let page = text(&pages, &format!("{name}.1"));
            // roff writes some signs otherwise.
            let about = command.get_about().unwrap().to_string();
            let plain = about.split(['\'', '-']).next().unwrap();
            assert!(page.contains(plain), "{name}: {about}");
            let visible = command.get_subcommands().filter(|sub| !sub.is_hide_set());
            open.extend(visible.map(|sub| (format!("{name}-{}", sub.get_name()), sub.clone())));
        }
        assert_eq!(count, pages.len());
        assert!(count > 20 && !pages.iter().any(|(name, _)| name.contains("-man") || name.contains("-help")));
    }

    #[test]
    fn a_page_shows_flags_and_no_value_of_this_machine() {
        let pages = pages(crate::Arguments::command(), DATE).unwrap();
        let add = text(&pages, "trefoil-node-add.1");
        assert!(add.contains("\\-\\-payload") && add.contains("trefoil node add"), "{add}");
        assert!(text(&pages, "trefoil.1").contains("TREFOIL_TOKEN"));
    }

    #[test]
    fn pages_are_written_into_a_directory_that_was_not_there() {
        let dir = tempfile::tempdir().unwrap();
        write(crate::Arguments::command(), DATE, &dir.path().join("man")).unwrap();
        assert!(dir.path().join("man/trefoil-policy-learn.1").is_file());
    }
}
