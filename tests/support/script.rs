//! Programs that a test writes.

use std::path::Path;
use std::process::Command;

/// Makes a shell script that can be run. By a process of its own: while this one has the script open
/// for writing, a child that another thread starts would inherit it, and a program that is open for
/// writing cannot be run (ETXTBSY, execve(2)).
pub fn script(path: &Path, text: &str) {
    let write = r#"printf '#!/bin/sh\n%s\n' "$1" >"$2" && chmod 755 "$2""#;
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", write, "sh", text]).arg(path);
    assert!(shell.status().unwrap().success(), "{}", path.display());
}
