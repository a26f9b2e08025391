//! A process for which an ioctl fails, or a system call is the end: a filter of its system calls
//! (seccomp(2)), which its children have too.
#![allow(
    unsafe_code,
    reason = "there is no other way to what happens between fork and exec"
)]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Bytes of `struct seccomp_data` before the number of the call, and before its second argument:
/// the lower half of it, which is all of an ioctl's opcode.
const NUMBER: u32 = 0;
const SECOND: u32 = 16 + 8;

/// Has the ioctl `opcode` fail with `errno`.
pub fn ioctl(command: &mut Command, opcode: u32, errno: i32) {
    let fails = libc::SECCOMP_RET_ERRNO | errno.unsigned_abs();
    let filter = [
        step(LOAD, 0, 0, NUMBER),
        step(EQUAL, 0, 3, number(libc::SYS_ioctl)),
        step(LOAD, 0, 0, SECOND),
        step(EQUAL, 0, 1, opcode),
        step(END, 0, 0, fails),
        step(END, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    filtered(command, filter);
}

/// Kills it before it makes this system call.
pub fn kill_at(command: &mut Command, call: libc::c_long) {
    let filter = [
        step(LOAD, 0, 0, NUMBER),
        step(EQUAL, 0, 1, number(call)),
        step(END, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        step(END, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    filtered(command, filter);
}

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const END: u32 = libc::BPF_RET | libc::BPF_K;

fn step(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    let code = u16::try_from(code).expect("a code has 16 bits");
    libc::sock_filter { code, jt, jf, k }
}

fn number(call: libc::c_long) -> u32 {
    u32::try_from(call).expect("it is a small number")
}

fn filtered<const N: usize>(command: &mut Command, mut filter: [libc::sock_filter; N]) {
    let install = move || {
        let program = libc::sock_fprog {
            len: filter.len().try_into().map_err(io::Error::other)?,
            filter: filter.as_mut_ptr(),
        };
        // SAFETY: the call reads a `struct sock_fprog` and the instructions that it points to, which
        // both live until it returns.
        let done = unsafe {
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            )
        };
        if done == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: between fork and exec it makes one system call and allocates nothing.
    unsafe { command.pre_exec(install) };
}
