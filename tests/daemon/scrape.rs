//! Reads what `/metrics` says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// One line: a name, labels, a value.
#[derive(Debug, Clone)]
pub struct Series {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Series {
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }
}

/// All of them at one time.
#[derive(Debug)]
pub struct Scrape {
    series: Vec<Series>,
    pub text: String,
}

impl Scrape {
    /// # Panics
    /// If a line is none, or a series is there twice: Prometheus would refuse the whole page.
    pub fn of(text: &str) -> Scrape {
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let series: Vec<_> = lines
            .map(|line| parse(line).unwrap_or_else(|| panic!("not a series: {line:?}")))
            .collect();
        let mut seen = BTreeSet::new();
        for one in &series {
            assert!(seen.insert((&one.name, &one.labels)), "twice: {one:?}");
        }
        Scrape {
            text: text.to_owned(),
            series,
        }
    }

    pub fn named(&self, name: &str) -> impl Iterator<Item = &Series> {
        self.series.iter().filter(move |one| one.name == name)
    }

    /// The value of the series that has exactly these labels.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let is = |one: &&Series| {
            one.labels.len() == labels.len()
                && labels.iter().all(|(l, value)| one.label(l) == Some(*value))
        };
        self.named(name).find(is).map(|one| one.value)
    }

    /// The value that an image has, if it is there.
    pub fn of_image(&self, name: &str, image: &Path) -> Option<f64> {
        self.value(name, &[("image", image.to_str().unwrap())])
    }

    pub fn extents(&self, image: &Path) -> Option<f64> {
        self.of_image("fragwatch_image_extents", image)
    }

    /// The value that a file system has, if it is there.
    pub fn of_filesystem(&self, name: &str, mount: &Path) -> Option<f64> {
        self.value(name, &[("filesystem", mount.to_str().unwrap())])
    }

    pub fn stalled(&self, mount: &Path) -> Option<f64> {
        self.of_filesystem("fragwatch_probe_stalled", mount)
    }

    /// Of how many probes it says that they failed.
    pub fn errors(&self) -> f64 {
        let errors = self.value("fragwatch_probe_errors_total", &[]);
        errors.expect("it is always there")
    }

    /// When the last sweep ended; nothing before the first has.
    pub fn swept(&self) -> Option<f64> {
        self.value("fragwatch_sweep_timestamp_seconds", &[])
    }

    /// Whether any series has this value for any label.
    pub fn mentions(&self, value: &Path) -> bool {
        let value = value.to_str().unwrap();
        let mut labels = self.series.iter().flat_map(|one| one.labels.values());
        labels.any(|label| label == value)
    }
}

/// `name{label="value",…} 12.5`
fn parse(line: &str) -> Option<Series> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, quoted) = rest.split_once("=\"")?;
            let (value, behind) = unquote(quoted)?;
            let before = labels.insert(label.to_owned(), value);
            assert!(before.is_none(), "label {label} twice: {line:?}");
            rest = behind.strip_prefix(',').unwrap_or(behind);
        }
        rest = &rest[1..];
    }
    Some(Series {
        name: name.to_owned(),
        labels,
        value: rest.strip_prefix(' ')?.parse().ok()?,
    })
}

/// The text up to the quote that ends it, its escapes resolved, and what follows the quote.
fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                same @ ('\\' | '"') => same,
                other => panic!("no such escape: {other:?} in {quoted:?}"),
            }),
            other => value.push(other),
        }
    }
    None
}

#[test]
fn what_is_read_is_what_was_written() {
    let scrape = Scrape::of("# HELP a b\na{x=\"\\\"\\\\n\\n\",y=\"},=\"} 1.5\nb 2\n");
    let labels = [("x", "\"\\n\n"), ("y", "},=")];
    assert_eq!(scrape.value("a", &labels), Some(1.5));
    assert_eq!(scrape.value("b", &[]), Some(2.0));
    assert_eq!(scrape.value("b", &labels), None);
}
