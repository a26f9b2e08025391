//! Some of these tests again, with libvirt and QEMU of Debian 13. They leave more open than older ones: a raw
//! image has no layer of its format above it.

use std::path::Path;
use std::process::Command;

use super::libvirt::OTHER_USR;
use super::support;
use super::support::skip::{Here, NotHere};

const TESTS: [&str; 2] = [
    "written::without_reflink",
    "second::a_pivot_that_libvirt_has_not_noted",
];

#[test]
fn with_newer_libvirt_and_qemu() {
    support::require!(with_newer());
}

fn with_newer() -> Here<()> {
    let usr = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools/newer/usr");
    if !usr.exists() {
        let text = "there is no newer libvirt; tests/run downloads and unpacks it";
        return Err(NotHere::because(text));
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.env(OTHER_USR, usr).arg("--exact").args(TESTS);
    let output = again.output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        printed.contains("2 passed; 0 failed"),
        "{printed}{output:?}"
    );
    Ok(())
}
