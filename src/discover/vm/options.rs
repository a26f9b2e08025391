//! Takes command lines in the style of QEMU apart. Pure.

/// The comma-separated settings of a QEMU option; a doubled comma is a literal comma.
pub(super) fn settings(value: &str) -> Vec<String> {
    let mut settings = vec![String::new()];
    let mut rest = value.chars().peekable();
    while let Some(character) = rest.next() {
        if character == ',' && rest.next_if_eq(&',').is_none() {
            settings.push(String::new());
        } else if let Some(last) = settings.last_mut() {
            last.push(character);
        }
    }
    settings
}

/// The options of a command line with their values: `-key value`, `--key value`, `--key=value`.
pub(super) fn options(arguments: &[Vec<u8>]) -> impl Iterator<Item = (String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let next = arguments.iter().skip(1).map(Some).chain([None]);
    arguments.iter().zip(next).filter_map(move |(key, value)| {
        let key = text(key.strip_prefix(b"-")?);
        let long = key.strip_prefix('-').unwrap_or(&key);
        match (long.split_once('='), value) {
            (Some((long, value)), _) => Some((long.to_owned(), value.to_owned())),
            (None, Some(value)) => Some((long.to_owned(), text(value))),
            (None, None) => None,
        }
    })
}

/// The value of a setting; of several the last.
pub(super) fn option(value: &str, name: &str) -> Option<String> {
    let settings = settings(value);
    let mut values = settings
        .iter()
        .rev()
        .filter_map(|setting| setting.strip_prefix(name)?.strip_prefix('='));
    values.next().map(str::to_owned)
}
