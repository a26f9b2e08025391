//! Handles signals on a separate thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::mpsc;

/// Starts the thread, and returns a receiver of SIGHUP, SIGTERM and SIGINT. A second SIGTERM or
/// SIGINT ends the process at once.
pub(super) fn listen() -> io::Result<mpsc::UnboundedReceiver<i32>> {
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
                if sender.send(signal).is_err() {
                    return;
                }
            }
        })?;
    Ok(receiver)
}
