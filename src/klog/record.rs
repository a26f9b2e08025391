//! One record of /dev/kmsg, as returned by one read (Documentation/ABI/testing/dev-kmsg):
//!
//! ```text
//! 6,339,5140900,-;NET: Registered protocol family 10
//! 30,340,5690716,-;udevd[80]: starting version 181
//! 4,341,5700000,-,caller=T80;a text
//!  SUBSYSTEM=acpi
//!  DEVICE=+acpi:PNP0A03:00
//! ```
//!
//! Priority (facility × 8 + level), sequence number, microseconds since boot, flag, possibly
//! further fields; the text; then property lines, each indented by a space. Bytes other than
//! printable ASCII, and the backslash, are written as `\xNN`.

use crate::sys::proc::number;

/// Prefix of the record that a drill writes to /dev/kmsg; the name of the drill follows. No rule
/// matches it, not even an operator's rule that matches everything: a drill is no emergency.
pub const DRILL_MARKER: &[u8] = b"fragwatch drill: ";

/// Microseconds since boot by the clock that stamps kernel log records (`local_clock`). It is close
/// to `CLOCK_MONOTONIC` but a different clock: suitable for ages in seconds, not for latencies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KernelTime(pub u64);

/// Whether a record is a line or a fragment of one (kernels before 4.10 store lines in fragments).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Piece {
    /// `-`: a whole line.
    Whole,
    /// `c`: the first fragment.
    First,
    /// `+`: a further fragment, to which rules do not apply; XFS writes whole lines.
    Further,
}

/// One record, borrowed from the bytes that were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Facility: 0 for the kernel; see [`is_genuine`](Record::is_genuine).
    pub facility: u32,
    /// Sequence number: one more than that of the previous record.
    pub sequence: u64,
    /// When it was written.
    pub time: KernelTime,
    /// Line or fragment.
    pub piece: Piece,
    /// The text, without properties.
    pub text: Text<'a>,
}

impl<'a> Record<'a> {
    /// Parses one record; `None` if the bytes do not start with a record header. Everything after
    /// the first line and unknown header fields are ignored, as the kernel's documentation demands.
    pub fn parse(bytes: &'a [u8]) -> Option<Record<'a>> {
        // The header contains no newline, so a `;` in a later line does not end a header.
        let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or(bytes);
        let (header, text) = split_once(line, b';')?;
        let mut fields = header.split(|byte| *byte == b',');
        let priority = u32::try_from(number(fields.next()?)?).ok()?;
        let sequence = number(fields.next()?)?;
        let time = number(fields.next()?)?;
        // Linux 3.5 had no flag yet.
        let piece = match fields.next() {
            Some(b"c") => Piece::First,
            Some(b"+") => Piece::Further,
            _ => Piece::Whole,
        };
        Some(Record {
            facility: priority >> 3,
            sequence,
            time: KernelTime(time),
            piece,
            text: Text(text),
        })
    }

    /// Whether the kernel wrote it. A write to /dev/kmsg cannot claim facility 0 (`devkmsg_write`,
    /// kernel/printk/printk.c); a record of any other facility may be forged.
    pub fn is_genuine(&self) -> bool {
        self.facility == 0
    }
}

/// The text of a record as escaped by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Text<'a>(pub &'a [u8]);

impl<'a> Text<'a> {
    /// The text with `\xNN` decoded; invalid escapes are kept. Text without a backslash (nearly
    /// all) is returned unchanged; other text is decoded into `buffer` and truncated to its length.
    pub fn unescape<'b>(self, buffer: &'b mut [u8]) -> &'b [u8]
    where
        'a: 'b,
    {
        if !self.0.contains(&b'\\') {
            return self.0;
        }
        let mut rest = self.0;
        let mut length = 0;
        for slot in buffer.iter_mut() {
            let Some((byte, tail)) = next_byte(rest) else {
                break;
            };
            *slot = byte;
            rest = tail;
            length += 1;
        }
        buffer.get(..length).unwrap_or(&[])
    }
}

/// The first byte of an escaped text, decoded, and the remaining text.
fn next_byte(text: &[u8]) -> Option<(u8, &[u8])> {
    if let [b'\\', b'x', high, low, tail @ ..] = text
        && let (Some(high), Some(low)) = (hexadecimal(*high), hexadecimal(*low))
    {
        return Some((high << 4 | low, tail));
    }
    text.split_first().map(|(byte, tail)| (*byte, tail))
}

fn hexadecimal(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// The parts before and after the first `separator`.
pub(super) fn split_once(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| *byte == separator)?;
    Some((text.get(..at)?, text.get(at + 1..)?))
}

/// Tracks sequence numbers to detect lost and repeated records.
#[derive(Debug, Clone, Default)]
pub struct Sequence {
    next: Option<u64>,
}

/// What a sequence number indicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// A new record.
    New {
        /// Number of records overwritten before they were read.
        lost: u64,
    },
    /// Read before: the log was read again from an earlier position.
    Seen,
}

impl Sequence {
    /// Registers a sequence number. Nothing counts as lost before the first one.
    pub fn arrived(&mut self, sequence: u64) -> Arrival {
        let expected = self.next.unwrap_or(sequence);
        let Some(lost) = sequence.checked_sub(expected) else {
            return Arrival::Seen;
        };
        self.next = Some(sequence.saturating_add(1));
        Arrival::New { lost }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn unescaped(text: &[u8]) -> Vec<u8> {
        Text(text).unescape(&mut [0; 4096]).to_vec()
    }

    #[test]
    fn the_examples_of_the_kernels_documentation() {
        let record =
            Record::parse(b"7,160,424069,-;pci_root PNP0A03:00: host bridge window [io  0x0000-0x0cf7] (ignored)\n SUBSYSTEM=acpi\n DEVICE=+acpi:PNP0A03:00\n")
                .unwrap();
        assert_eq!(record.sequence, 160);
        assert_eq!(record.time, KernelTime(424_069));
        assert!(record.is_genuine());
        assert!(record.text.0.ends_with(b"0x0cf7] (ignored)"));

        let record = Record::parse(b"30,340,5690716,-;udevd[80]: starting version 181\n").unwrap();
        assert_eq!(record.facility, 3);
        assert!(!record.is_genuine());
    }

    #[test]
    fn headers_of_other_kernels() {
        let flag = |bytes| Record::parse(bytes).unwrap().piece;
        assert_eq!(flag(b"4,1,2;no flag"), Piece::Whole);
        assert_eq!(flag(b"4,1,2,c;first"), Piece::First);
        assert_eq!(flag(b"4,1,2,+;further"), Piece::Further);
        assert_eq!(flag(b"4,1,2,-,caller=T1,new=7;more"), Piece::Whole);
    }

    #[test]
    fn what_is_no_record() {
        for bytes in [
            b"".as_slice(),
            b"4,1,2,-\n a;b",
            b"-4,1,2,-;t",
            b"4294967296,1,2,-;t",
            b"4;t",
            b"4,18446744073709551616,2,-;t",
            b"4,1,;t",
        ] {
            assert_eq!(Record::parse(bytes), None);
        }
    }

    #[test]
    fn escapes() {
        assert_eq!(unescaped(b"plain"), b"plain");
        assert_eq!(
            unescaped(b"a\\x0ab\\x5cx41\\xC3\\xa4"),
            b"a\nb\\x41\xc3\xa4"
        );
        assert_eq!(unescaped(b"\\x4\\x\\\\xzz\\"), b"\\x4\\x\\\\xzz\\");
        let mut short = [0; 2];
        assert_eq!(Text(b"\\x41\\x42\\x43").unescape(&mut short), b"AB");
        assert_eq!(Text(b"\\x41").unescape(&mut []), b"");
    }

    #[test]
    fn gaps_are_counted_and_a_second_reading_is_known() {
        let mut sequence = Sequence::default();
        assert_eq!(sequence.arrived(100), Arrival::New { lost: 0 });
        assert_eq!(sequence.arrived(101), Arrival::New { lost: 0 });
        assert_eq!(sequence.arrived(105), Arrival::New { lost: 3 });
        assert_eq!(sequence.arrived(101), Arrival::Seen);
        assert_eq!(sequence.arrived(105), Arrival::Seen);
        assert_eq!(sequence.arrived(106), Arrival::New { lost: 0 });
    }

    /// As the kernel does it (`msg_add_ext_text`, kernel/printk/printk.c).
    fn escape(text: &[u8]) -> Vec<u8> {
        let mut escaped = Vec::new();
        for byte in text {
            if *byte < b' ' || *byte >= 127 || *byte == b'\\' {
                escaped.extend(format!("\\x{byte:02x}").bytes());
            } else {
                escaped.push(*byte);
            }
        }
        escaped
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, size in 0_usize..64) {
            if let Some(record) = Record::parse(&bytes) {
                record.text.unescape(&mut vec![0; size]);
            }
            unescaped(&bytes);
        }

        #[test]
        fn nearly_a_record(bytes in "[0-9]{0,3},[0-9]{0,21},[0-9]{0,21},[-c+]?(,[a-z]=[0-9])?;[ -~]{0,20}(\n [A-Z]=.{0,9})?") {
            let _ = Record::parse(bytes.as_bytes());
        }

        #[test]
        fn what_the_kernel_writes_is_read_back(
            priority in 0_u32..2048,
            sequence: u64,
            time: u64,
            flag in "[-c+]",
            more in "(,caller=[TC][0-9]{1,6})?",
            text in vec(any::<u8>(), 0..200),
            properties in vec("[A-Z]{1,8}=[ -~]{0,20}", 0..3),
        ) {
            let mut bytes = format!("{priority},{sequence},{time},{flag}{more};").into_bytes();
            bytes.extend(escape(&text));
            bytes.push(b'\n');
            for property in properties {
                bytes.extend(format!(" {property}\n").bytes());
            }
            let record = Record::parse(&bytes).unwrap();
            prop_assert_eq!(record.facility, priority / 8);
            prop_assert_eq!(record.sequence, sequence);
            prop_assert_eq!(record.time.0, time);
            prop_assert_eq!(record.piece, match flag.as_str() {
                "c" => Piece::First,
                "+" => Piece::Further,
                _ => Piece::Whole,
            });
            prop_assert_eq!(unescaped(record.text.0), text);
        }

        #[test]
        fn every_number_is_lost_seen_or_new(numbers in vec(0_u64..300, 1..100)) {
            let mut sequence = Sequence::default();
            let (mut new, mut all_lost) = (0, 0);
            for number in &numbers {
                if let Arrival::New { lost } = sequence.arrived(*number) {
                    new += 1;
                    all_lost += lost;
                }
            }
            let span = numbers.iter().max().unwrap() - numbers[0] + 1;
            prop_assert_eq!(new + all_lost, span);
        }
    }
}
