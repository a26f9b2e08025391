//! What is seen in a browser: both colour schemes, two widths, numbers, sorting, zooming, keyboard.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::browser::Browser;
use crate::support;
use crate::world::{INCIDENT, World};

/// Where pictures are kept, if this is set.
const PICTURES: &str = "FRAGWATCH_PICTURES";

#[test]
fn a_browser_shows_all_of_it() {
    let world = support::require!(World::start());
    let mut browser = support::require!(Browser::start());
    let at = |path: &str| format!("http://{}{path}", world.address);
    let image = world.link("db-1.img");
    let incident = format!("/incident?id={}", *INCIDENT);
    let pages = [
        ("host", "/"),
        ("images", "/images"),
        ("image", &image),
        ("plan", "/plan"),
        ("runs", "/runs"),
        ("incidents", "/incidents"),
        ("incident", &incident),
    ];
    for (width, scheme) in [
        (1280, "light"),
        (1280, "dark"),
        (390, "light"),
        (390, "dark"),
    ] {
        browser.look(width, scheme);
        for (name, path) in pages {
            browser.open(&at(path));
            if name == "image" {
                browser.until("document.querySelector('.uplot canvas')");
            }
            check(
                &mut browser,
                &world,
                width,
                &format!("{name}-{width}-{scheme}"),
            );
        }
    }
    browser.look(1280, "light");
    numbers(&world, &mut browser, &at);
    sorting(&mut browser, &at);
    zooming(&mut browser, &at(&image));
    world.pause();
    for (width, scheme) in [(1280, "light"), (360, "dark")] {
        browser.look(width, scheme);
        browser.open(&at("/plan"));
        assert!(
            browser
                .eval("document.querySelector('details[open] a')")
                .is_object()
        );
        check(
            &mut browser,
            &world,
            width,
            &format!("paused-{width}-{scheme}"),
        );
    }
    let (complaints, requests) = browser.complaints_and_requests();
    assert_eq!(complaints, Vec::<String>::new());
    let own = format!("http://{}/", world.address);
    let foreign: Vec<_> = requests
        .iter()
        .filter(|url| !url.starts_with(&own) && *url != "about:blank")
        .collect();
    assert_eq!(foreign, Vec::<&String>::new());
    assert!(requests.len() > 60, "{requests:?}");
}

/// Nothing of the page that is open is too wide or hard to read. Takes a picture, if they are kept.
fn check(browser: &mut Browser, world: &World, width: u32, page: &str) {
    let wide = browser.eval("document.documentElement.scrollWidth");
    assert!(wide.as_u64().unwrap() <= u64::from(width), "{page}: {wide}");
    let unreadable = browser.eval(CONTRAST);
    assert_eq!(unreadable, json!([]), "{page}");
    if let Some(pictures) = std::env::var_os(PICTURES) {
        let directory = serde_json::to_string(&world.images).unwrap();
        browser.eval(&format!("{RENAME}({directory}, '/var/lib/libvirt/images')"));
        let file = PathBuf::from(pictures).join(format!("{page}.png"));
        browser.screenshot(&file, true);
    }
}

/// In pictures, the images lie where they usually do.
const RENAME: &str = "((from, to) => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replaceAll(from, to);
})";

/// Texts whose contrast is below 4.5 (WCAG 2.2, 1.4.3), as far as colours are opaque.
const CONTRAST: &str = r#"(() => {
  const parse = (colour) => colour.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const element of document.querySelectorAll("body *")) {
    if (element.closest("svg, .uplot, .skip")) continue;
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) bad.push(element.tagName + "." + element.className + " " + contrast.toFixed(2));
  }
  return [...new Set(bad)];
})()"#;

/// Those on the page are those of `status --json`.
fn numbers(world: &World, browser: &mut Browser, at: &dyn Fn(&str) -> String) {
    browser.open(&at("/images"));
    let status = world.status();
    let rows = browser.eval(
        "[...document.querySelectorAll('#images tbody tr')].map((row) => \
         [row.querySelector('small').textContent + row.querySelector('a').textContent, row.cells[2].textContent.trim(), row.cells[4].textContent.trim().replaceAll(',', '')])",
    );
    let row = |row: &Value| json!([row["path"], row["severity"], row["extents"].to_string()]);
    let worst: Vec<_> = status["worst"]
        .as_array()
        .unwrap()
        .iter()
        .map(row)
        .collect();
    let mut shown = rows.as_array().unwrap().clone();
    let mut worst = worst;
    let by_text = |value: &Value| value.to_string();
    shown.sort_by_key(by_text);
    worst.sort_by_key(by_text);
    assert_eq!(shown, worst);
    browser.open(&at("/"));
    let text = browser.eval("document.querySelector('.cards').innerText");
    let text = text.as_str().unwrap();
    let images = &status["images"];
    for (key, word) in [
        ("critical", "critical"),
        ("warning", "warning"),
        ("ok", "ok"),
    ] {
        let part = format!("{} {word}", images[key]);
        assert!(text.contains(&part), "no {part:?} in {text}");
    }
}

fn sorting(browser: &mut Browser, at: &dyn Fn(&str) -> String) {
    browser.open(&at("/images"));
    let extents = "[...document.querySelectorAll('#images tbody tr')].map((row) => +row.cells[4].textContent.replaceAll(',', ''))";
    for descends in [true, false] {
        // As with a keyboard: the link has the focus, and Enter follows it.
        browser.eval("[...document.querySelectorAll('#images th a')].find((it) => it.textContent === 'Extents').focus()");
        browser.key("Enter", "\r");
        browser.wait_for_load();
        let counts = browser.eval(extents);
        let counts: Vec<_> = counts
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it.as_u64().unwrap())
            .collect();
        assert_eq!(counts.len(), 6);
        assert!(
            if descends {
                counts.iter().rev().is_sorted()
            } else {
                counts.is_sorted()
            },
            "{counts:?}"
        );
    }
    // The first stop of the Tab key leads past the navigation.
    browser.open(&at("/images"));
    browser.key("Tab", "");
    assert_eq!(browser.eval("document.activeElement.className"), "skip");
    // The choice of a severity is applied at once.
    browser.eval("(() => { const it = document.querySelector('[name=severity]'); it.value = 'critical'; it.dispatchEvent(new Event('change')); })()");
    browser.wait_for_load();
    assert_eq!(
        browser.eval("document.querySelectorAll('#images tbody tr').length"),
        1
    );
}

fn zooming(browser: &mut Browser, url: &str) {
    browser.open(&format!("{url}&since=30d"));
    browser.until("document.getElementById('plot').plot");
    let span = "(() => { const { min, max } = document.getElementById('plot').plot.scales.x; return max - min; })()";
    let whole = browser.eval(span).as_f64().unwrap();
    browser.eval("document.getElementById('plot').focus()");
    browser.key("+", "+");
    let half = browser.eval(span).as_f64().unwrap();
    assert!(
        (half - whole / 2.0).abs() < whole / 100.0,
        "{half} of {whole}"
    );
    browser.key("0", "0");
    assert_eq!(browser.eval(span).as_f64(), Some(whole));
    let place = browser.eval("(() => { const it = document.querySelector('.u-over').getBoundingClientRect(); return [it.x, it.y, it.width]; })()");
    let [x, y, width] = [0, 1, 2].map(|n| place[n].as_f64().unwrap());
    browser.drag((x + width * 0.5, y + 40.0), (x + width * 0.75, y + 40.0));
    let quarter = browser.eval(span).as_f64().unwrap();
    assert!(
        (quarter - whole / 4.0).abs() < whole / 50.0,
        "{quarter} of {whole}"
    );
}
