//! What is true of any bytes. The fuzzer calls these with what it finds out, and a test with what it
//! found before (`corpus/`), so that every run of the tests has the benefit of it.

use std::sync::LazyLock;

use fragwatch::internals::klog::Piece;
use fragwatch::internals::klog::{Assembler, Reading, read};
use fragwatch::internals::klog::{DRILL_MARKER, Match, Record, Rules, Text};
use fragwatch::internals::model::{RuleAction, RuleDefinition};

/// A record of /dev/kmsg: the parser says what another one says that is written as plainly as can be.
pub fn record(bytes: &[u8]) {
    let parsed = Record::parse(bytes);
    let plain = plain_record(bytes);
    assert_eq!(parsed.is_some(), plain.is_some());
    if let (Some(record), Some((priority, sequence, time, piece, text))) = (parsed, plain) {
        assert_eq!(record.facility, priority / 8);
        assert_eq!((record.sequence, record.time.0), (sequence, time));
        assert_eq!((record.piece, record.text.0), (piece, text));
        assert_eq!(record.is_genuine(), priority < 8);
        unescape(record.text);
    }
    unescape(Text(bytes));
}

type PlainRecord<'a> = (u32, u64, u64, Piece, &'a [u8]);

fn plain_record(bytes: &[u8]) -> Option<PlainRecord<'_>> {
    let newline = bytes.iter().position(|byte| *byte == b'\n');
    let line = &bytes[..newline.unwrap_or(bytes.len())];
    let semicolon = line.iter().position(|byte| *byte == b';')?;
    let header: Vec<&[u8]> = line[..semicolon].split(|byte| *byte == b',').collect();
    let piece = match header.get(3).copied() {
        Some(b"c") => Piece::First,
        Some(b"+") => Piece::Further,
        _ => Piece::Whole,
    };
    let number = |at: usize| plain_number(header.get(at)?);
    let priority = u32::try_from(number(0)?).ok()?;
    Some((
        priority,
        number(1)?,
        number(2)?,
        piece,
        &line[semicolon + 1..],
    ))
}

fn plain_number(digits: &[u8]) -> Option<u64> {
    // What `parse` takes besides.
    if digits.starts_with(b"+") {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn unescape(text: Text<'_>) {
    let mut room = vec![0; text.0.len()];
    let whole = text.unescape(&mut room).to_vec();
    assert_eq!(whole, plain_unescape(text.0));
    // A buffer that is too small cuts off, and nothing else; what needs no buffer needs no room.
    let mut small = vec![0; whole.len() / 2];
    let cut = text.unescape(&mut small);
    if text.0.contains(&b'\\') {
        assert_eq!(cut, &whole[..whole.len() / 2]);
    } else {
        assert_eq!(cut, text.0);
    }
}

fn plain_unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let digits = text.get(at + 2..at + 4);
        let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        match digits {
            Some(digits) if text[at..].starts_with(b"\\x") => {
                let digits = std::str::from_utf8(digits).unwrap();
                plain.push(u8::from_str_radix(digits, 16).unwrap());
                at += 4;
            }
            _ => {
                plain.push(text[at]);
                at += 1;
            }
        }
    }
    plain
}

fn operators() -> [RuleDefinition; 3] {
    let rule = |name: &str, pattern: &str, action| RuleDefinition {
        name: name.to_owned(),
        pattern: pattern.to_owned(),
        action,
    };
    [
        rule("quiet", "deadlock|XFS|oom", RuleAction::Observe),
        rule("nvme", r"(?i)nvme\d+: .*timeout", RuleAction::Rescue),
        rule("lines", r"(?s)\n.*\b[[:upper:]]{3}\b", RuleAction::Observe),
    ]
}

static BUILTIN: LazyLock<Rules> = LazyLock::new(|| Rules::compile(&[]).unwrap());
static ALL: LazyLock<Rules> = LazyLock::new(|| Rules::compile(&operators()).unwrap());

/// The text of a record: which rule it matches.
pub fn rules(text: &[u8]) {
    let (builtin, all) = (BUILTIN.find(text), ALL.find(text));
    if let Some(found) = builtin {
        sensible(&found, text);
        // No operator's rule hides anything, and none that observes hides an emergency.
        let all = all.expect("a rule more matches no less");
        if found.action == RuleAction::Rescue {
            assert_eq!(all.name, found.name);
        }
    }
    if let Some(found) = all {
        sensible(&found, text);
    }
    a_quotation_is_no_emergency(text);
}

fn sensible(found: &Match<'_>, text: &[u8]) {
    assert_eq!(ALL.name(found.rule), Some(found.name));
    assert!(!text.starts_with(DRILL_MARKER), "a drill is no emergency");
    if found.name == "xfs_deadlock" {
        let has = |word: &[u8]| text.windows(word.len()).any(|part| part == word);
        assert!(has(b"deadlock") || has(b"failure"));
        assert_eq!(found.action, RuleAction::Rescue);
    }
}

/// Somebody who says what the kernel would say is not the kernel.
fn a_quotation_is_no_emergency(text: &[u8]) {
    for quoting in ["qemu-kvm: ", "> ", "x"] {
        let quotation = [quoting.as_bytes(), text].concat();
        if let Some(found) = BUILTIN.find(&quotation) {
            // `x` and `fs: …`; and the one rule that begins with a task's name.
            let begins = quotation.starts_with(b"xfs: ");
            assert!(
                begins || found.name == "page_allocation_failure",
                "{}",
                found.name
            );
        }
    }
}

/// What the kernel says in a line.
fn kernel_text(line: &[u8]) -> Option<&[u8]> {
    match read(line) {
        Reading::Kernel { text, .. } => Some(text),
        _ => None,
    }
}

/// A log file: whatever pieces it is read in, its lines are the same; and what a line says that the
/// kernel said is a part of it.
pub fn line(bytes: &[u8]) {
    let whole = lines(bytes, bytes.len().max(1));
    for size in [1, 7] {
        assert_eq!(lines(bytes, size), whole, "read {size} at a time");
    }
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Some(text) = kernel_text(line) {
            assert!(line.ends_with(text) || line.windows(text.len()).any(|part| part == text));
            let _ = BUILTIN.find(text);
        }
    }
}

/// The heads of lines that are not the kernel's, whatever follows: by their program, its process, or
/// the facility.
const OTHERS: [&str; 20] = [
    "Feb 11 04:05:06 kvm7 qemu[9]: ",
    "Feb 11 04:05:06 kvm7 qemu: ",
    "Feb 11 04:05:06 kvm7 kernel[9]: ",
    "2027-02-11T04:05:06.123456+01:00 kvm7 qemu: ",
    "2027-02-11 04:05:06 kvm7 qemu[-] err: ",
    "1802228706.123456 kvm7 qemu[9]: ",
    "Feb 11 04:05:06 kvm7 user.notice ",
    "Feb 11 04:05:06 user.notice ",
    "Feb 11 04:05:06 kvm7 <13> ",
    "Feb 11 04:05:06 kvm7 kern.err qemu: ",
    "Thu Feb 11 04:05:06 2027 daemon.err ",
    "Thu 2027-02-11 04:05:06 CET kvm7 qemu[9]: ",
    "M\u{e4}r 11 04:05:06 qemu[9]: ",
    "Feb 11 04:05:06 [qemu] ",
    "<13>Feb 11 04:05:06 kvm7 ",
    "<13>1 2027-02-11T04:05:06Z kvm7 kernel - - - ",
    "<3>1 2027-02-11T04:05:06Z kvm7 qemu - - - ",
    "<30>[  812.000001] ",
    "user  :notice: ",
    "[  812.000001] kvm7 qemu[9]: ",
];

/// The heads of lines that are the kernel's.
const KERNELS: [&str; 8] = [
    "Feb 11 04:05:06 kvm7 kernel: ",
    "Feb 11 04:05:06 kern.err kernel: ",
    "11 ao\u{fb}t 04:05:06 kvm7 kernel: ",
    "2027-02-11 04:05:06 kvm7 kernel[-] err: ",
    "Feb 11 04:05:06 [kernel] ",
    "<3>1 2027-02-11T04:05:06Z kvm7 kernel - - [a b=\"]\"] ",
    "[Thu Feb 11 04:05:06 2027] ",
    "2027-02-11T04:05:06,123456+01:00 ",
];

/// The text of a message: it does not move the place where it is looked for.
pub fn head(text: &[u8]) {
    let is_kernels = |line: &[u8]| !matches!(read(line), Reading::Other | Reading::Unknown);
    for head in OTHERS {
        let line = [head.as_bytes(), text].concat();
        assert!(!is_kernels(&line), "{head}");
    }
    for head in KERNELS {
        let line = [head.as_bytes(), text].concat();
        let is_empty = text.trim_ascii_end().is_empty();
        assert!(is_empty || is_kernels(&line), "{head}");
        if let Some(text) = kernel_text(&line) {
            assert!(
                line.trim_ascii_end()
                    .windows(text.len().max(1))
                    .any(|part| part == text)
                    || text.is_empty()
            );
        }
    }
    // The line that a text of journalctl goes on in.
    assert_eq!(kernel_text(&[b"          ", text].concat()), None);
    let now = "2027-02-11T04:05:06+01:00[Europe/Berlin]".parse().unwrap();
    if let Reading::Kernel {
        stamp: Some(stamp), ..
    } = read(text)
    {
        let _ = stamp.is_old(&now);
    }
}

fn lines(bytes: &[u8], size: usize) -> Vec<Vec<u8>> {
    let mut assembler = Assembler::default();
    let mut lines = Vec::new();
    for piece in bytes.chunks(size) {
        assembler.push(piece, |line| lines.push(line.bytes.to_vec()));
    }
    lines
}
