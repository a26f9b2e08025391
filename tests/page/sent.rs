//! What is sent: headers, escaped names, sizes, order, and nothing that changes anything.

use serde_json::Value;

use crate::support::{self, http, http_with};
use crate::world::{HOSTILE, INCIDENT, World};

/// The first screen, with all that it loads, for 1,000 images and fewer.
const MOST_BYTES: usize = 150_000;
/// The plan that leaves 1,000 images alone, all but a few for one reason; half of it are links and paths.
const MOST_BYTES_OF_PLAN: usize = 250_000;

#[test]
fn every_page_is_sent_with_a_strict_policy_and_changes_nothing() {
    let world = support::require!(World::start());
    let image = world.link("db-1.img");
    let incident = format!("/incident?id={}", *INCIDENT);
    let pages = [
        "/",
        "/images",
        "/plan",
        "/runs",
        "/incidents",
        &image,
        &incident,
    ];
    for page in pages {
        let answer = world.daemon.get(page);
        assert_eq!(answer.status, 200, "{page}: {}", answer.body);
        let policy = answer.header("content-security-policy").unwrap();
        for part in [
            "default-src 'none'",
            "script-src 'self';",
            "style-src 'self';",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.contains(part), "{page}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{page}");
        }
        // Nothing inline, and no name that is markup.
        for forbidden in ["<script>", " style=", "<img", "<style", "<b>", "Not shown"] {
            assert!(
                !answer.body.contains(forbidden),
                "{page} has {forbidden:?}:\n{}",
                answer.body
            );
        }
        for method in ["POST", "PUT", "DELETE"] {
            assert_eq!(
                http(world.address, method, page).unwrap().status,
                405,
                "{method} {page}"
            );
        }
    }
    for missing in [
        "/image?fs=x&ino=1&gen=2",
        "/incident?id=../../history",
        "/incident?id=x",
        "/assets/../page.css",
    ] {
        assert_eq!(world.daemon.get(missing).status, 404, "{missing}");
    }
    let images = world.daemon.get("/images").body;
    for name in HOSTILE.map(escaped) {
        assert!(images.contains(&name), "no {name} in\n{images}");
    }
    names(&world, &pages);
    story(&world);
    order(&world);
    chart_data(&world);
    since_when(&world);
    without_history(&world);
}

fn escaped(name: &str) -> String {
    let name = name.replace('<', "&#60;").replace('>', "&#62;");
    name.replace('"', "&#34;")
}

/// A page of somebody else, whose name leads to this daemon, reads nothing.
fn names(world: &World, pages: &[&str]) {
    let status = |page: &str, headers: &str| {
        let answer = http_with(world.address, "GET", page, headers).unwrap();
        assert_eq!(answer.header("x-frame-options"), Some("DENY"), "{page}");
        (answer.status, answer.body)
    };
    let port = world.address.port();
    let node = rustix::system::uname()
        .nodename()
        .to_str()
        .unwrap()
        .to_owned();
    for page in pages {
        let (code, body) = status(page, &format!("Host: attacker.example:{port}"));
        assert_eq!(code, 403, "{page}");
        assert!(
            body.contains("IP address") && !body.contains("db-1"),
            "{body}"
        );
    }
    let browser = "Host: attacker.example\r\nAccept-Language: en";
    for host in ["localhost", "127.0.0.1", "[::1]", &node] {
        assert_eq!(
            status("/", &format!("Host: {host}:{port}")).0,
            200,
            "{host}"
        );
    }
    // Prometheus knows hosts by names of all kinds.
    for (page, of_browser) in [("/metrics", 403), ("/healthz", 200)] {
        assert_eq!(status(page, "Host: kvm.example.com").0, 200, "{page}");
        assert_eq!(status(page, browser).0, of_browser, "{page}");
    }
}

/// Since when it is so is shown also if that was before the time of the chart.
fn since_when(world: &World) {
    let image = world.link("web-1.img") + "&since=1d";
    let body = world.daemon.get(&image).body;
    assert!(body.contains("warning for 2 d"), "{body}");
}

/// What is known in memory is shown, and what is not, is said.
fn without_history(world: &World) {
    let history = world.daemon.directory().join("history.db");
    std::fs::rename(&history, history.with_extension("away")).unwrap();
    for page in ["/", "/images", &world.link("db-1.img")] {
        let answer = world.daemon.get(page);
        assert_eq!(answer.status, 200, "{page}");
        for part in ["Not shown: history", "db-1.img", "6,000"] {
            assert!(
                answer.body.contains(part),
                "{page} has no {part:?}: {}",
                answer.body
            );
        }
    }
    // What cannot be read may well be there.
    for page in ["/", "/runs", &world.link("db-1.img")] {
        let body = world.daemon.get(page).body;
        assert!(!body.contains("is recorded"), "{page}: {body}");
        assert!(!body.contains("not counted in this time"), "{page}: {body}");
    }
}

/// Which image endangers the host, since when, and what will be done.
fn story(world: &World) {
    let first = world.daemon.get("/").body;
    for part in [
        "db-1.img of VM db-1 &#60;b&#62; endangers this host with 6,000 extents, for 3 d",
        "What will happen: ",
        "Fri|Sat|Sun|Mon|Tue|Wed|Thu",
    ] {
        assert!(
            part.split('|').any(|part| first.contains(part)),
            "no {part:?} in\n{first}"
        );
    }
    let plan = world.daemon.get("/plan").body;
    assert!(
        plan.contains("db-1.img") && plan.contains("class=\"bar window\""),
        "{plan}"
    );
    let runs = world.daemon.get("/runs").body;
    let stalls = ">8,642<td class=\"number\">17.3 ms<td class=\"number\">1 min<";
    for part in ["xfs_fsr", ">4,388<", ">120<", "12 min", stalls] {
        assert!(runs.contains(part), "no {part:?} in\n{runs}");
    }
    let image = world.daemon.get(&(world.link("db-1.img") + "&since=30d"));
    let stalls = "(8,642 calls, longest stall 17.3 ms, 1 min in all)";
    assert!(image.body.contains(stalls), "{}", image.body);
    let incident = world
        .daemon
        .get(&format!("/incident?id={}", *INCIDENT))
        .body;
    for part in [
        "qemu&#60;b&#62;(77)",
        "drop_slab",
        "700 MiB",
        "CPU 0/KVM",
        "kvm-7",
        "<path class=\"line slab\" d=\"M",
        "<path class=\"line available\" d=\"M",
        "<td>before action 2<td class=\"number\">300 MiB<td class=\"number\">2.0 GiB",
    ] {
        assert!(incident.contains(part), "no {part:?} in\n{incident}");
    }
}

fn order(world: &World) {
    let names = |query: &str| -> Vec<usize> {
        let page = world.daemon.get(&format!("/images?{query}")).body;
        let body = page.split("<tbody>").nth(1).unwrap();
        let place = |name: &str| body.find(&format!(">{name}</a>"));
        ["db-1.img", "web-1.img", "mail.img", "idle.raw"]
            .map(place)
            .into_iter()
            .flatten()
            .collect()
    };
    assert!(names("sort=extents").is_sorted());
    assert_eq!(names("sort=extents").len(), 4);
    assert!(names("sort=-extents").iter().rev().is_sorted());
    assert_eq!(names("severity=critical").len(), 1);
    assert_eq!(names("q=DB-1").len(), 1);
    assert_eq!(names("fs=/nowhere").len(), 0);
}

fn chart_data(world: &World) {
    let link = world.link("db-1.img").replace("/image", "/api/history");
    let answer = world.daemon.get(&format!("{link}&since=30d"));
    let data: Value = serde_json::from_str(&answer.body).unwrap();
    let counts = data["extents"].as_array().unwrap();
    assert!(counts.len() > 100 && counts.len() == data["at"].as_array().unwrap().len());
    assert_eq!(counts.last(), Some(&Value::from(6000)));
    assert_eq!(
        (&data["warning"], &data["critical"]),
        (&Value::from(1000), &Value::from(5000))
    );
    let kinds: Vec<_> = data["marks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["kind"].as_str().unwrap())
        .collect();
    for kind in ["run", "incident", "severity", "map"] {
        assert!(kinds.contains(&kind), "no {kind}: {kinds:?}");
    }
    let day: Value =
        serde_json::from_str(&world.daemon.get(&format!("{link}&since=1d")).body).unwrap();
    assert!(day["at"].as_array().unwrap().len() < counts.len());
}

#[test]
fn a_thousand_images_fit_a_small_first_screen() {
    let world = support::require!(World::with(1000));
    let first = ["/", "/assets/page.css", "/assets/icon.svg"];
    let size = |path: &&str| world.daemon.get(path).body.len();
    let bytes: usize = first.iter().map(size).sum();
    assert!(bytes < MOST_BYTES, "{bytes}");
    let images = world.daemon.get("/images").body;
    assert_eq!(images.matches("class=\"image\"").count(), 1006);
    let gap = images.split("Not shown: ").nth(1).map(|it| &it[..80]);
    assert_eq!(gap, None);
    assert!(images.matches("class=\"spark\"").count() >= 1002);
    let some = world.daemon.get("/images?q=vm-0007&sort=extents").body;
    assert_eq!(some.matches("class=\"image\"").count(), 1);
    // What follows is measured, and not asserted: it depends on the machine.
    for path in ["/", "/images", "/plan"] {
        let begin = std::time::Instant::now();
        let bytes = size(&path);
        println!("{path}: {bytes} bytes in {:?}", begin.elapsed());
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", world.daemon.pid())).unwrap();
    let memory = status
        .lines()
        .filter(|line| line.starts_with("VmHWM") || line.starts_with("VmRSS"));
    memory.for_each(|line| println!("{line}"));
    left_alone(&world);
}

/// A plan that leaves a thousand images alone names each once.
fn left_alone(world: &World) {
    world.pause();
    // Those whose maps were read meanwhile are near their ideal.
    let plan = world.daemon.get("/plan").body;
    let gap = plan.split("Not shown: ").nth(1).map(|it| &it[..80]);
    assert_eq!(gap, None);
    let further = (0..1000).map(|n| format!("vm-{n:04}-system-disk.img"));
    let named = ["db-1.img", "web-1.img"].map(str::to_owned);
    let named = named.into_iter().chain(HOSTILE.map(escaped)).chain(further);
    for name in named {
        assert_eq!(plan.matches(&format!("/{name}</a>")).count(), 1, "{name}");
    }
    assert_eq!(plan.matches("<a href=\"/image?").count(), 1004);
    assert_eq!(plan.matches(": defragmentation paused").count(), 1);
    assert!(plan.len() < MOST_BYTES_OF_PLAN, "{}", plan.len());
}
