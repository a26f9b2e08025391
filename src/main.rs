//! The `fragwatch` program; its parts are described in the library.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    fragwatch::main(&fragwatch::Arguments::parse())
}
