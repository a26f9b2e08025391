//! Where output goes: colour only to a terminal, and a closed pipe is no error.

use std::io::{self, IsTerminal as _, Write as _};

/// Whether to colour standard output: a terminal, and NO_COLOR not set (<https://no-color.org>).
pub(super) fn colours() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    io::stdout().is_terminal() && !refused && !dumb
}

/// Columns of the terminal on standard output; nothing if it is none, or does not say.
pub(super) fn width() -> Option<u16> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0).then_some(size.ws_col)
}

/// Prints everything, as one write where the pipe takes it.
///
/// # Errors
/// Those of writing; see [`is_broken_pipe`].
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes a line to standard error. Where nobody reads that, the exit status still tells.
pub(super) fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "fragwatch: {line}");
}

/// Whether a command failed because nobody reads its output any more.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io_errors = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>());
    io_errors
        .into_iter()
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
