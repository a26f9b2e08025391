//! The keys and sections that a file may have, with examples: a file that sets all of them.

use std::sync::LazyLock;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::settings::Settings;
use super::text::join;
use crate::model::{ExtentCount, ExtentsPerDay};

const EXAMPLES: &str = r#"
[[klog.rule]]
name = "disk_failed"
pattern = 'md/raid.*Disk failure on'
action = "observe"

[[thresholds.override]]
images = ["/srv/db-*"]
warning = { extents = 100_000, growth_per_day = 250_000, time_to_critical = "14d" }
critical = { extents = 1_000_000, growth_per_day = 500_000, time_to_critical = "1d" }

[[maintenance.window]]
days = ["Sat", "Sun"]
start = "01:00"
duration = "4h"

[[maintenance.blackout]]
from = 2026-12-20
to = 2027-01-06
"#;

/// A file that sets every key to a valid value.
pub(super) static EVERY_KEY: LazyLock<String> = LazyLock::new(|| {
    let mut settings = Settings::default();
    // Both limits may be a number or "never".
    settings.thresholds.critical.growth_per_day =
        Some(ExtentsPerDay::from_count(ExtentCount(500_000)));
    settings.to_toml() + EXAMPLES
});

/// The parsed [`EVERY_KEY`]: the keys and sections that a file may have.
pub(super) static SCHEMA: LazyLock<DeTable<'static>> =
    LazyLock::new(|| DeTable::parse_recoverable(&EVERY_KEY).0.into_inner());

/// A value and its place in the file.
pub(super) type Value<'t> = Spanned<DeValue<'t>>;

/// Whether a value is a non-empty list of sections.
pub(super) fn is_list_of_tables(value: &DeValue<'_>) -> bool {
    let items = value.as_array();
    items.is_some_and(|items| !items.is_empty() && items.iter().all(is_table))
}

/// The keys of a section, or of the first in a list of sections. `None` for any other value.
pub(super) fn section<'s, 'v>(value: &'s DeValue<'v>) -> Option<&'s DeTable<'v>> {
    value.get(0).map_or(value, Spanned::get_ref).as_table()
}

/// Whether a value is a section.
pub(super) fn is_table(value: &Value<'_>) -> bool {
    value.get_ref().is_table()
}

/// The names of the keys of a section.
pub(super) fn names<'s>(schema: &'s DeTable<'_>) -> Vec<&'s str> {
    schema.keys().map(|key| key.get_ref().as_ref()).collect()
}

/// The header of a section: `[sampling]`, `[[klog.rule]]`. `None` if there is no such section.
pub(super) fn header(path: &str) -> Option<String> {
    let mut keys: &DeTable<'_> = &SCHEMA;
    let mut is_list = false;
    for name in path.split('.') {
        let value = keys.get(name)?.get_ref();
        is_list = value.is_array();
        keys = section(value)?;
    }
    Some(if is_list {
        format!("[[{path}]]")
    } else {
        format!("[{path}]")
    })
}

/// The header of the first section that has a key of this name.
pub(super) fn home(keys: &DeTable<'_>, name: &str, path: &str) -> Option<String> {
    let is_value = |value: &Value<'_>| header(&join(path, name)).is_none() && !is_table(value);
    if keys.get(name).is_some_and(is_value) {
        return header(path);
    }
    keys.iter().find_map(|(key, value)| {
        let value = value.get_ref();
        let keys = section(value)?;
        home(keys, name, &join(path, key.get_ref()))
    })
}

/// A value of the schema as TOML.
pub(super) fn example_of(value: &Value<'_>) -> &'static str {
    EVERY_KEY.get(value.span()).unwrap_or_default()
}
