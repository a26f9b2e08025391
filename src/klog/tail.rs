//! The pure half of following a log file: where reading stands and whether the file is still the
//! same there, lines out of pieces, the kernel's own text out of a line of syslog, and one event
//! that is seen twice.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::time::Duration;

use super::rules::without_printk_prefix;
use crate::model::Monotonic;
use crate::sys::proc::number;

/// Longest line that is kept whole: what rsyslog keeps of one by default (`$MaxMessageSize`), and
/// several times what a record of the kernel can hold.
pub const MAX_LINE: usize = 8 * 1024;
/// How many bytes are remembered to know a file by: a few lines, with a time in each.
pub const FINGERPRINT: usize = 256;

/// A line of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// Its bytes, any of them, without the newline. NULs at its beginning are left out: they are
    /// the hole that a writer leaves which does not know that its file was truncated.
    pub bytes: &'a [u8],
    /// Whether it was longer than [`MAX_LINE`] and lost its end.
    pub cut: bool,
}

/// Makes lines out of what is read, wherever the reads end.
#[derive(Debug, Default)]
pub struct Assembler {
    /// The beginning of a line whose end was not read yet; never more than [`MAX_LINE`].
    begun: Vec<u8>,
    cut: bool,
    /// In the middle of a line whose beginning nobody read.
    skipping: bool,
}

impl Assembler {
    /// Forgets the unfinished line. With `skipping`, what comes is the rest of a line that is not
    /// wanted.
    pub fn reset(&mut self, skipping: bool) {
        self.begun.clear();
        self.cut = false;
        self.skipping = skipping;
    }

    /// Takes the next bytes and delivers every line that they end.
    pub fn push(&mut self, mut bytes: &[u8], mut deliver: impl FnMut(Line<'_>)) {
        while let Some((piece, rest)) = split_once_at(bytes, b'\n') {
            self.finish(piece, &mut deliver);
            bytes = rest;
        }
        self.keep(bytes);
    }

    fn finish(&mut self, piece: &[u8], deliver: &mut impl FnMut(Line<'_>)) {
        if self.skipping {
            self.skipping = false;
        } else if self.begun.is_empty() {
            let (bytes, cut) = shortened(without_leading_nuls(piece), MAX_LINE);
            deliver(Line { bytes, cut });
        } else {
            self.keep(piece);
            deliver(Line {
                bytes: &self.begun,
                cut: self.cut,
            });
            self.reset(false);
        }
    }

    fn keep(&mut self, piece: &[u8]) {
        if self.skipping {
            return;
        }
        let piece = match self.begun.is_empty() {
            true => without_leading_nuls(piece),
            false => piece,
        };
        let (piece, cut) = shortened(piece, MAX_LINE - self.begun.len());
        self.begun.extend_from_slice(piece);
        self.cut |= cut;
    }
}

fn split_once_at(bytes: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == separator)?;
    Some((bytes.get(..at)?, bytes.get(at + 1..)?))
}

fn without_leading_nuls(bytes: &[u8]) -> &[u8] {
    let nuls = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(nuls..).unwrap_or_default()
}

/// At most so many bytes, and whether that was less than there were.
fn shortened(bytes: &[u8], most: usize) -> (&[u8], bool) {
    match bytes.get(..most) {
        Some(kept) => (kept, bytes.len() > most),
        None => (bytes, false),
    }
}

/// Where reading stands in a file, and what the file looked like there.
///
/// Every read begins a little before that place, with bytes that were read before. If they are not
/// there any more, the file was truncated, however much was written since: its size alone would not
/// tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    offset: u64,
    /// The first bytes of the file, at most [`FINGERPRINT`].
    head: Vec<u8>,
    /// The last bytes before `offset`, likewise.
    tail: Vec<u8>,
}

impl Position {
    /// At an offset, with the first bytes of the file and the last ones before the offset.
    #[must_use]
    pub fn new(offset: u64, head: Vec<u8>, tail: Vec<u8>) -> Position {
        Position { offset, head, tail }
    }

    /// How far the file has been read.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Where the next read has to begin.
    #[must_use]
    pub fn read_from(&self) -> u64 {
        self.offset.saturating_sub(self.overlap() as u64)
    }

    /// How much of the next read was read before.
    #[must_use]
    pub fn overlap(&self) -> usize {
        self.tail.len()
    }

    /// What is new in the bytes that were read from [`read_from`](Position::read_from) on; `None`
    /// if the file is not what it was.
    #[must_use]
    pub fn news<'a>(&self, read: &'a [u8]) -> Option<&'a [u8]> {
        read.strip_prefix(self.tail.as_slice())
    }

    /// Goes on behind the news.
    pub fn advance(&mut self, news: &[u8]) {
        if self.head.len() as u64 == self.offset {
            let (missing, _) = shortened(news, FINGERPRINT.saturating_sub(self.head.len()));
            self.head.extend_from_slice(missing);
        }
        self.tail.extend_from_slice(last(news, FINGERPRINT));
        let surplus = self.tail.len().saturating_sub(FINGERPRINT);
        self.tail.drain(..surplus);
        self.offset = self.offset.saturating_add(news.len() as u64);
    }

    /// Goes on further ahead. What lies between are NULs, and so was what was read last.
    pub fn skip_nuls(&mut self, to: u64) {
        self.offset = to;
    }

    /// Whether a file that begins with these bytes has begun so before: then it was cut shorter,
    /// and what is left of it is old. A hole says nothing.
    #[must_use]
    pub fn begins_like(&self, head: &[u8]) -> bool {
        let length = head.len().min(self.head.len());
        let is_hole = head.iter().all(|byte| *byte == 0);
        length > 0 && !is_hole && head.get(..length) == self.head.get(..length)
    }
}

fn last(bytes: &[u8], most: usize) -> &[u8] {
    let from = bytes.len().saturating_sub(most);
    bytes.get(from..).unwrap_or_default()
}

/// The kernel's own text in a line of a log file, where the rules can be applied; `None` if another
/// program wrote the line, or nothing says who did.
///
/// ```text
/// Nov 20 22:58:01 host kernel: [12345.678901] XFS: a text        traditional, and journalctl
/// 2026-11-20T22:58:01.123456+00:00 host kernel: XFS: a text      rsyslog since Debian 12
/// <3>1 2026-11-20T22:58:01Z host kernel - - - XFS: a text        RFC 5424
/// … kernel: message repeated 2 times: [ XFS: a text]             $RepeatedMsgReduction
/// [12345.678901] XFS: a text                                     dmesg, and dmesg -T
/// <3>XFS: a text                                                 dmesg -r
/// ```
///
/// The program's name must stand where it belongs: what a guest writes to its console may quote any
/// of these lines, in a line of qemu's.
#[must_use]
pub fn kernel_text(line: &[u8]) -> Option<&[u8]> {
    let line = line.trim_ascii_end();
    let (marked, line) = match line.strip_prefix(b"<") {
        Some(inside) => {
            let (priority, rest) = split_once_at(inside, b'>')?;
            // Facility × 8 + level; the kernel's facility is 0.
            if number(priority)? > 7 {
                return None;
            }
            (true, rest)
        }
        None => (false, line),
    };
    if let Some(rest) = line.strip_prefix(b"1 ")
        && let Some((time, rest)) = split_once_at(rest, b' ')
        && is_iso_time(time)
    {
        return text_of_rfc5424(rest);
    }
    if let Some(rest) = after_time(line) {
        let (_host, rest) = split_once_at(rest, b' ')?;
        let text = rest.strip_prefix(b"kernel:")?;
        return Some(text_of_message(text));
    }
    let text = without_printk_prefix(line);
    if marked || text.len() < line.len() {
        return Some(text);
    }
    let (time, text) = split_once_at(line.strip_prefix(b"[")?, b']')?;
    is_calendar_time(time).then(|| text.strip_prefix(b" ").unwrap_or(text))
}

/// After `host`, `kernel` and two fields that do not matter, no structured data, the message.
fn text_of_rfc5424(rest: &[u8]) -> Option<&[u8]> {
    let mut fields = rest.splitn(6, |byte| *byte == b' ');
    let [_host, program, _process, _id, data, message] =
        std::array::from_fn(|_| fields.next().unwrap_or_default());
    (program == b"kernel" && data == b"-").then(|| text_of_message(message))
}

/// What the kernel said, out of what a syslog daemon made of it.
fn text_of_message(message: &[u8]) -> &[u8] {
    let message = message.trim_ascii_start();
    let repeated = || {
        let (count, rest) = split_once_at(message.strip_prefix(b"message repeated ")?, b' ')?;
        number(count)?;
        rest.strip_prefix(b"times: [")?.strip_suffix(b"]")
    };
    without_printk_prefix(repeated().unwrap_or(message).trim_ascii_start())
}

/// What follows the time at the beginning of a line of a syslog daemon.
fn after_time(line: &[u8]) -> Option<&[u8]> {
    // `Nov  1 22:58:01 `
    if let Some((time, rest)) = line.split_at_checked(16)
        && fits(time, b"aaa 99 99:99:99 ")
    {
        return Some(rest);
    }
    let (time, rest) = split_once_at(line, b' ')?;
    is_iso_time(time).then_some(rest)
}

/// `2026-11-20T22:58:01`, with a fraction, a zone, both or neither.
fn is_iso_time(time: &[u8]) -> bool {
    time.split_at_checked(19).is_some_and(|(time, zone)| {
        fits(time, b"9999-99-99T99:99:99")
            && zone
                .iter()
                .all(|byte| byte.is_ascii_digit() || b".,:+-Z".contains(byte))
    })
}

/// `Fri Nov 20 22:58:01 2026`
fn is_calendar_time(time: &[u8]) -> bool {
    fits(time, b"aaa aaa 99 99:99:99 9999")
}

/// Whether a text has the form: `a` is any letter, `9` a digit or the space that pads a number.
fn fits(text: &[u8], form: &[u8]) -> bool {
    text.len() == form.len()
        && text.iter().zip(form).all(|(byte, form)| match form {
            b'a' => byte.is_ascii_alphabetic(),
            b'9' => byte.is_ascii_digit() || *byte == b' ',
            form => byte == form,
        })
}

/// Where a text of the kernel was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// /dev/kmsg.
    Kmsg,
    /// A log file, by its place in the configuration.
    File(u16),
}

/// Tells the first sight of an event from the second, when several sources show it.
///
/// /dev/kmsg is always believed. A file is believed unless another source has shown the same text
/// at about that time; what one source shows twice are two events. Two sources never show an event
/// at the same moment, so that it is best to ask for a file a moment after it was read, with the
/// time at which it was.
///
/// Fixed memory: only texts that matched a rule belong in here, and if there are more of them than
/// places, the oldest is forgotten, and the worst that comes of it is to act twice.
#[derive(Debug)]
pub struct Dedup {
    window: Duration,
    hasher: RandomState,
    shown: [Option<Shown>; Dedup::PLACES],
}

#[derive(Debug, Clone, Copy)]
struct Shown {
    text: u64,
    by: Source,
    at: Monotonic,
}

impl Dedup {
    /// How many different texts are remembered.
    pub const PLACES: usize = 64;

    /// Two sights further apart than `window` are two events.
    #[must_use]
    pub fn new(window: Duration) -> Dedup {
        Dedup {
            window,
            hasher: RandomState::new(),
            shown: [None; Dedup::PLACES],
        }
    }

    /// Takes note of a text that a source showed at a time, and tells whether it is to be acted on.
    pub fn is_news(&mut self, by: Source, text: &[u8], at: Monotonic) -> bool {
        let text = self.hasher.hash_one(text.trim_ascii());
        let known = self.shown.iter().position(|shown| {
            shown.is_some_and(|shown| shown.text == text && self.is_near(shown.at, at))
        });
        if by != Source::Kmsg
            && let Some(Some(shown)) = known.and_then(|place| self.shown.get(place))
            && shown.by != by
        {
            return false;
        }
        let place = known.or_else(|| {
            // A place that was never taken counts as the oldest.
            (0..)
                .zip(&self.shown)
                .min_by_key(|(_, shown)| shown.map(|shown| shown.at))
                .map(|(place, _)| place)
        });
        if let Some(shown) = place.and_then(|place| self.shown.get_mut(place)) {
            *shown = Some(Shown { text, by, at });
        }
        true
    }

    fn is_near(&self, one: Monotonic, other: Monotonic) -> bool {
        one.since(other).max(other.since(one)) <= self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn lines_of(assembler: &mut Assembler, bytes: &[u8]) -> Vec<(Vec<u8>, bool)> {
        let mut lines = Vec::new();
        assembler.push(bytes, |line| lines.push((line.bytes.to_vec(), line.cut)));
        lines
    }

    fn text(line: &str) -> Option<&str> {
        kernel_text(line.as_bytes()).map(|text| std::str::from_utf8(text).unwrap())
    }

    #[test]
    fn lines_out_of_pieces() {
        let mut assembler = Assembler::default();
        assert_eq!(lines_of(&mut assembler, b"XFS: poss"), []);
        assert_eq!(
            lines_of(&mut assembler, b"ible\n\nnext\xff\0\nand"),
            [
                (b"XFS: possible".to_vec(), false),
                (vec![], false),
                (b"next\xff\0".to_vec(), false)
            ]
        );
        assembler.reset(true);
        assert_eq!(
            lines_of(&mut assembler, b"rest\nwhole\n"),
            [(b"whole".to_vec(), false)]
        );
    }

    #[test]
    fn a_long_line_is_cut_and_its_memory_bounded() {
        let mut assembler = Assembler::default();
        let exact = vec![b'a'; MAX_LINE];
        let mut longer = exact.clone();
        longer.extend_from_slice(b"bb\n");
        assert_eq!(lines_of(&mut assembler, &longer), [(exact.clone(), true)]);
        for _ in 0..1000 {
            assert_eq!(lines_of(&mut assembler, &exact), []);
        }
        assert!(assembler.begun.capacity() <= 2 * MAX_LINE);
        assert_eq!(
            lines_of(&mut assembler, b"end\nshort\n"),
            [(exact.clone(), true), (b"short".to_vec(), false)]
        );
        assert_eq!(lines_of(&mut assembler, &exact), []);
        assert_eq!(lines_of(&mut assembler, b"\n"), [(exact, false)]);
    }

    #[test]
    fn a_position_knows_its_file() {
        let mut position = Position::default();
        let content: Vec<u8> = (1..=u8::MAX).cycle().take(1000).collect();
        assert_eq!(position.news(b"abc"), Some(b"abc".as_slice()));
        for piece in content.chunks(7) {
            position.advance(piece);
        }
        assert_eq!((position.offset(), position.overlap()), (1000, FINGERPRINT));
        assert_eq!(position.read_from(), 744);
        let tail = &content[744..];
        assert_eq!(position.news(tail), Some(b"".as_slice()));
        assert_eq!(
            position.news(&[tail, b"new"].concat()),
            Some(b"new".as_slice())
        );
        assert_eq!(position.news(&tail[1..]), None);
        assert_eq!(position.news(&[&content[743..], b"new"].concat()), None);

        assert!(position.begins_like(&content));
        assert!(position.begins_like(&content[..1]));
        assert!(!position.begins_like(b""));
        assert!(!position.begins_like(b"other"));
        let holed = Position::new(4096, vec![0; 256], vec![0; 256]);
        assert!(!holed.begins_like(&[0; 256]));
        assert!(!Position::default().begins_like(b"other"));
    }

    #[test]
    fn the_forms_of_a_line() {
        let xfs = "XFS: CPU 0/KVM(1) possible memory allocation deadlock size 8 in kmem_alloc (mode:0x2d40)";
        for before in [
            "Nov 20 22:58:01 host kernel: ",
            "Nov  1 22:58:01 host kernel: [12345.678901] ",
            "Nov 20 22:58:01 host kernel:[    0.000000] ",
            "Nov 20 22:58:01 host kernel: [    1.000000][    T1] ",
            "2026-11-20T22:58:01.123456+00:00 host kernel: [12345.678901] ",
            "2026-11-20T22:58:01+0000 host.example.org kernel: ",
            "2026-11-20T22:58:01Z host kernel: ",
            "<3>",
            "<0>[    5.123456] ",
            "[12345.678901] ",
            "[    5.123456] [  T123] ",
            "[Fri Nov 20 22:58:01 2026] ",
            "[Sun Nov  1 22:58:01 2026] ",
            "<3>Nov 20 22:58:01 host kernel: ",
            "<3>1 2026-11-20T22:58:01.123456+00:00 host kernel - - - ",
            "1 2026-11-20T22:58:01Z host kernel - - -  [12345.678901] ",
        ] {
            for after in ["", "\r", " \n"] {
                assert_eq!(
                    text(&format!("{before}{xfs}{after}")),
                    Some(xfs),
                    "{before}"
                );
            }
        }
        assert_eq!(
            text("Nov 20 22:58:01 host kernel: message repeated 12 times: [ [1.5] XFS: [7] a]"),
            Some("XFS: [7] a")
        );
        assert_eq!(
            text("Nov 20 22:58:01 host kernel: [drm] initialised"),
            Some("[drm] initialised")
        );
        assert_eq!(text("Nov 20 22:58:01 host kernel:"), Some(""));
    }

    #[test]
    fn what_the_kernel_did_not_write() {
        let xfs = "XFS: possible memory allocation deadlock in kmem_alloc (mode:0x250)";
        for before in [
            "",
            "kernel: ",
            "host kernel: ",
            "<11>",
            "<>",
            "<3",
            "<30>[   1.5] ",
            "[drm] ",
            "[Fri Nov 20 22:58:01 20x6] ",
            "Nov 20 22:58:01 host qemu-system-x86_64[812]: ",
            "Nov 20 22:58:01 host qemu: [    1.5] ",
            "Nov 20 22:58:01 host virtlogd[9]: Nov 20 22:58:01 guest kernel: [    1.5] ",
            "Nov 20 22:58:01 host kernel[1]: ",
            "Nov 20 22:58:01 host kernel-tool: ",
            "Nov 20 22:58:01 host  kernel: ",
            "<3>Nov 20 22:58:01 host qemu: kernel: ",
            "2026-11-20T22:58:01.123456+00:00 host qemu: host kernel: [1.5] ",
            "2026-11-20T22:58:01.1x host kernel: ",
            "1 2026-11-20T22:58:01Z host qemu - - - kernel: ",
            "1 2026-11-20T22:58:01Z host kernel - - [a=\"b\"] ",
        ] {
            assert_eq!(text(&format!("{before}{xfs}")), None, "{before}");
        }
    }

    #[test]
    fn one_event_of_several_sources_is_news_once() {
        let second = |seconds: u64| Monotonic(seconds * 1_000_000_000);
        let mut dedup = Dedup::new(Duration::from_secs(10));
        let (kmsg, one, two) = (Source::Kmsg, Source::File(0), Source::File(1));

        assert!(dedup.is_news(kmsg, b"a", second(100)));
        assert!(!dedup.is_news(one, b"a", second(101)));
        assert!(!dedup.is_news(two, b" a\n", second(110)));
        assert!(dedup.is_news(one, b"b", second(101)));
        // Asked late, with the time at which it was seen.
        assert!(!dedup.is_news(one, b"a", second(99)));
        assert!(dedup.is_news(one, b"a", second(111)));

        // The kernel's own word is never doubted.
        assert!(dedup.is_news(kmsg, b"a", second(112)));
        assert!(dedup.is_news(kmsg, b"a", second(113)));
        assert!(!dedup.is_news(one, b"a", second(114)));

        // Two files without /dev/kmsg: the event after the first one is an event.
        assert!(dedup.is_news(one, b"c", second(200)));
        assert!(!dedup.is_news(two, b"c", second(201)));
        assert!(dedup.is_news(one, b"c", second(202)));
        assert!(!dedup.is_news(two, b"c", second(203)));
    }

    #[test]
    fn too_many_events_forget_the_oldest() {
        let mut dedup = Dedup::new(Duration::from_secs(1000));
        for number in 0..Dedup::PLACES as u64 + 1 {
            assert!(dedup.is_news(
                Source::Kmsg,
                number.to_string().as_bytes(),
                Monotonic(number)
            ));
        }
        let at = Monotonic(100);
        assert!(!dedup.is_news(Source::File(0), b"1", at));
        assert!(dedup.is_news(Source::File(0), b"0", at));
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_where_reads_end(
            pieces in vec(vec(prop::sample::select(b"\n\0a\xff".as_slice()), 0..9), 0..30),
        ) {
            let mut assembler = Assembler::default();
            let mut lines = Vec::new();
            for piece in &pieces {
                lines.extend(lines_of(&mut assembler, piece));
            }
            prop_assert_eq!(lines, lines_of(&mut Assembler::default(), &pieces.concat()));
        }

        #[test]
        fn a_position_does_not_depend_on_where_reads_end(
            pieces in vec(vec(any::<u8>(), 0..300), 0..12),
        ) {
            let mut position = Position::default();
            for piece in &pieces {
                position.advance(piece);
            }
            let content = pieces.concat();
            let mut at_once = Position::default();
            at_once.advance(&content);
            prop_assert_eq!(&position, &at_once);
            let known = content.len().min(FINGERPRINT);
            let offset = content.len() as u64;
            let (head, tail) = (&content[..known], &content[content.len() - known..]);
            prop_assert_eq!(position, Position::new(offset, head.to_vec(), tail.to_vec()));
        }

        #[test]
        fn no_line_makes_it_panic(
            words in vec(prop::sample::select(WORDS), 0..10),
            bytes: Vec<u8>,
        ) {
            let _ = kernel_text(&[words.concat().as_bytes(), &bytes].concat());
            let _ = kernel_text(&bytes);
        }
    }

    const WORDS: &[&str] = &[
        "<",
        "3",
        ">",
        "1 ",
        "[",
        "]",
        "[  1.5] ",
        " ",
        "Nov 20 22:58:01 ",
        "2026-11-20T22:58:01",
        "Fri Nov 20 22:58:01 2026",
        "Z ",
        "host ",
        "kernel:",
        "kernel ",
        "- ",
        "message repeated ",
        "times: [",
    ];
}
