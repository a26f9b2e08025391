//! `fragwatch report`: one file, from the history alone, and without names if that is asked for.

use std::fs;

use crate::browser::Browser;
use crate::support::{self, tools};
use crate::world::World;

#[test]
fn a_report_is_one_file_and_can_be_without_names() {
    let world = support::require!(World::start());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("report.html");
    let report = |arguments: &[&str]| {
        let output = world
            .ask("report")
            .args(arguments)
            .arg("--html")
            .arg(&file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        fs::read_to_string(&file).unwrap()
    };
    let whole = report(&[]);
    for part in [
        "db-1.img of VM db-1 &#60;b&#62; endangers this host with 6,000 extents, for 3 d",
        "no longer counted since",
        "acme-payroll",
        "kvm-7",
        "4,388",
        "8,642",
        "drop_slab",
        "id=\"image-1\"",
        "&#60;script&#62;alert(1)",
    ] {
        assert!(whole.contains(part), "no {part:?} in\n{whole}");
    }
    // One was deleted; the file system of the other may hang, so that it is judged as it was.
    let row = |name: &str| {
        let mut rows = whole.split("<tr>").filter(|row| row.contains(name));
        rows.next()
            .unwrap_or_else(|| panic!("no {name} in\n{whole}"))
    };
    let (old, away) = (row("old.img"), row("away.img"));
    assert!(
        old.contains("no longer counted since") && !old.contains("badge"),
        "{old}"
    );
    for part in ["not counted since", "its file system", "badge warning"] {
        assert!(away.contains(part), "no {part:?} in {away}");
    }
    for foreign in ["<img", "url(", "<script", "<b>", "href=\"/", "href=\"http"] {
        assert!(!whole.contains(foreign), "{foreign:?} in\n{whole}");
    }
    let one = report(&["db-1.img", "--since", "7d"]);
    assert!(
        !one.contains("web-1.img") && !one.contains("4,388"),
        "{one}"
    );

    assert!(one.matches("<svg class=\"chart\"").count() == 1, "{one}");

    let redacted = report(&["--redact"]);
    let host = String::from_utf8(
        std::process::Command::new(tools::have("uname").unwrap())
            .arg("-n")
            .output()
            .unwrap()
            .stdout,
    )
    .unwrap();
    let mount = world.images.to_str().unwrap().to_owned();
    for name in [
        "db-1",
        "web-1",
        "mail.img",
        "acme-payroll",
        "/srv/away",
        "alert(1)",
        "kvm-7",
        &mount,
        &format!(">{}<", host.trim()),
    ] {
        assert!(!redacted.contains(name), "{name:?} in\n{redacted}");
    }
    for word in ["vm-01 endangers", "/images/image-00", "drop_slab", "4,388"] {
        assert!(redacted.contains(word), "no {word:?} in\n{redacted}");
    }

    // Without the daemon, it is the same but for the name of the VM.
    let stopped = world.without_daemon();
    let output = stopped
        .ask("report")
        .arg("--html")
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = fs::read_to_string(&file).unwrap();
    assert!(
        text.contains("db-1.img endangers this host with 6,000 extents, for 3 d"),
        "{text}"
    );
    let unknown = stopped.ask("report").arg("nobody.img").output().unwrap();
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
    let missing = stopped
        .ask("report")
        .args(["--since", "soon"])
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&missing.stderr).contains("--since"),
        "{missing:?}"
    );

    let mut browser = support::require!(Browser::start());
    for (width, scheme) in [(1280, "light"), (390, "dark")] {
        browser.look(width, scheme);
        browser.open(&format!("file://{}", file.display()));
        let wide = browser.eval("document.documentElement.scrollWidth");
        assert!(
            wide.as_u64().unwrap() <= u64::from(width),
            "{width}: {wide}"
        );
        assert!(
            browser
                .eval("document.querySelectorAll('svg.chart').length")
                .as_u64()
                .unwrap()
                >= 2
        );
    }
    let (complaints, requests) = browser.complaints_and_requests();
    assert_eq!(complaints, Vec::<String>::new());
    assert!(
        requests
            .iter()
            .all(|url| url.starts_with("file:") || url == "about:blank"),
        "{requests:?}"
    );
}
