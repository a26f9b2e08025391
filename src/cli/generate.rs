//! Completions and manual pages, made from the command line's own description.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;

use super::args::Arguments;
use super::{SUCCESS, terminal};

pub(super) fn completions(shell: clap_complete::Shell) -> anyhow::Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "fragwatch", &mut script);
    terminal::print(&String::from_utf8_lossy(&script))?;
    Ok(SUCCESS)
}

pub(super) fn man(directory: &Path) -> anyhow::Result<u8> {
    let mut command = Arguments::command();
    command.build();
    page(directory, command.clone())?;
    for subcommand in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        if subcommand.get_name() != "help" {
            let name = format!("fragwatch-{}", subcommand.get_name());
            page(directory, subcommand.clone().name(name))?;
        }
    }
    Ok(SUCCESS)
}

fn page(directory: &Path, command: clap::Command) -> anyhow::Result<()> {
    let file = directory.join(format!("{}.1", command.get_name()));
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    fs::write(&file, page).with_context(|| format!("cannot write {}", file.display()))
}
