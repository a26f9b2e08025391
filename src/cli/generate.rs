//! Generates completions and manual pages from the definition of the command line.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;

use super::args::Arguments;
use super::manual;
use super::output::{self, SUCCESS};

pub(super) fn completions(shell: clap_complete::Shell) -> anyhow::Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut visible(), "fragwatch", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(SUCCESS)
}

/// The command line without hidden subcommands, which completions would otherwise offer.
fn visible() -> clap::Command {
    let all = Arguments::command();
    let subcommands = all
        .get_subcommands()
        .filter(|command| !command.is_hide_set());
    clap::Command::new("fragwatch")
        .version(env!("CARGO_PKG_VERSION"))
        .args(all.get_arguments().cloned())
        .subcommands(subcommands.cloned())
}

pub(super) fn man(directory: &Path) -> anyhow::Result<u8> {
    for (name, text) in manual::pages()? {
        let page = directory.join(name);
        fs::write(&page, text).with_context(|| format!("cannot write {}", page.display()))?;
    }
    Ok(SUCCESS)
}
