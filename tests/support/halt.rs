//! Stops a single thread of another process, where SIGSTOP would stop all of them.
#![allow(
    unsafe_code,
    reason = "there is no other way to ptrace(2) and waitpid(2)"
)]

use std::io;
use std::marker::PhantomData;
use std::ptr::null_mut;

/// A thread that runs no further until this goes out of scope, or the thread that made it ends.
#[derive(Debug)]
pub struct Halted {
    thread: libc::pid_t,
    /// ptrace(2) listens only to the thread that began.
    _here: PhantomData<*const ()>,
}

impl Halted {
    /// Stops the thread of this number, wherever it is.
    pub fn thread(number: u32) -> io::Result<Halted> {
        let thread = libc::pid_t::try_from(number).map_err(io::Error::other)?;
        ask(libc::PTRACE_SEIZE, thread)?;
        let halted = Halted {
            thread,
            _here: PhantomData,
        };
        ask(libc::PTRACE_INTERRUPT, thread)?;
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
        if waited != thread {
            return Err(io::Error::last_os_error());
        }
        Ok(halted)
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        // It may have been killed.
        let _ = ask(libc::PTRACE_DETACH, self.thread);
    }
}

fn ask(request: libc::c_uint, thread: libc::pid_t) -> io::Result<()> {
    // SAFETY: none of the three requests reads or writes memory of ours.
    match unsafe { libc::ptrace(request, thread, null_mut::<u8>(), null_mut::<u8>()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
