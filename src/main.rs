//! The `fragwatch` program: see the library for what it is made of.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    fragwatch::main(&fragwatch::Arguments::parse())
}
