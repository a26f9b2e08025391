//! What to write: an example of each key, from the file that is delivered.

use std::sync::LazyLock;

use toml::Value;

/// Sets each key to its default. Repeatable sections are in it as comments.
pub(super) const DELIVERED: &str = include_str!("../../config/fragwatch.toml");

pub(super) static EXAMPLES: LazyLock<Value> = LazyLock::new(|| {
    let text = [DELIVERED, &sections()].join("\n");
    Value::Table(text.parse().unwrap_or_default())
});

/// The repeatable sections of the delivered file.
pub(super) fn sections() -> String {
    let mut is_inside = false;
    let lines = DELIVERED.lines().filter_map(|line| {
        let line = line.strip_prefix("# ").unwrap_or_default();
        is_inside = line.starts_with("[[") || (is_inside && line.contains(" = "));
        is_inside.then_some(line)
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The hint for a key or section: its header, or the key with a valid value.
pub(super) fn write(path: &str) -> String {
    let example = path.split('.').try_fold(&*EXAMPLES, |value, name| {
        value.get(0).unwrap_or(value).get(name)
    });
    let (_, name) = path.rsplit_once('.').unwrap_or(("", path));
    match example {
        Some(value) if value.is_table() => format!("write: [{path}]"),
        Some(value) if value.get(0).is_some_and(Value::is_table) => format!("write: [[{path}]]"),
        Some(value) => format!("write: {name} = {}", value),
        None => "help: `fragwatch check-config --show` prints a valid file".to_owned(),
    }
}
