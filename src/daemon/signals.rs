//! Handles signals on a separate thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::mpsc;

/// The request that a signal stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// SIGHUP: reload the configuration.
    Reload,
    /// SIGTERM, SIGINT: end.
    End,
}

/// Starts the thread. A second SIGTERM or SIGINT ends the process at once.
pub(super) fn listen() -> io::Result<mpsc::UnboundedReceiver<Signal>> {
    let ending = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // In this order: the shutdown must see the flag of an earlier signal only.
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&ending))?;
        signal_hook::flag::register(signal, Arc::clone(&ending))?;
    }
    let mut signals = Signals::new([SIGHUP, SIGTERM, SIGINT])?;
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .stack_size(64 * 1024)
        .spawn(move || {
            for signal in signals.forever() {
                let meaning = if signal == SIGHUP {
                    Signal::Reload
                } else {
                    Signal::End
                };
                if sender.send(meaning).is_err() {
                    return;
                }
            }
        })?;
    Ok(receiver)
}
