//! Completions and manual pages, made from the command line's own description.

use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;

use super::args::Arguments;
use super::output::{self, SUCCESS};

pub(super) fn completions(shell: clap_complete::Shell) -> anyhow::Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut visible(), "fragwatch", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(SUCCESS)
}

/// The command line without what only the program itself starts: completions would offer that too.
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
    clap_mangen::generate_to(Arguments::command(), directory)
        .with_context(|| format!("cannot write manual pages to {}", directory.display()))?;
    Ok(SUCCESS)
}
