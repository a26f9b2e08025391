//! The pure part of following a log file: lines, read position, detection of changed files.

use super::record::split_once;

/// Maximum line length: rsyslog's default (`$MaxMessageSize`), far above that of kernel records.
pub const MAX_LINE: usize = 8 * 1024;
/// Number of bytes by which a file is recognised: a few lines, each with a timestamp.
pub const FINGERPRINT: usize = 256;

/// A line of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// The bytes without the newline; they may be any. Leading NULs are removed: they are the hole
    /// left by a writer that continues at its old offset after its file was truncated.
    pub bytes: &'a [u8],
    /// Whether it was longer than [`MAX_LINE`] and was truncated.
    pub cut: bool,
}

/// Assembles lines from the data of consecutive reads.
#[derive(Debug, Default)]
pub struct Assembler {
    /// The start of an incomplete line; at most [`MAX_LINE`] bytes.
    begun: Vec<u8>,
    cut: bool,
    /// Whether the rest of the current line is to be skipped.
    skipping: bool,
}

impl Assembler {
    /// Discards the incomplete line. With `skipping`, the rest of an unwanted line follows.
    pub fn reset(&mut self, skipping: bool) {
        self.begun.clear();
        self.cut = false;
        self.skipping = skipping;
    }

    /// Takes the next bytes and delivers every line that is now complete.
    pub fn push(&mut self, mut bytes: &[u8], mut deliver: impl FnMut(Line<'_>)) {
        while let Some((piece, rest)) = split_once(bytes, b'\n') {
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

fn without_leading_nuls(bytes: &[u8]) -> &[u8] {
    let nuls = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(nuls..).unwrap_or_default()
}

/// At most the first `most` bytes, and whether bytes were cut off.
fn shortened(bytes: &[u8], most: usize) -> (&[u8], bool) {
    match bytes.get(..most) {
        Some(kept) => (kept, bytes.len() > most),
        None => (bytes, false),
    }
}

/// The read position in a file, and the content of the file there.
///
/// Every read starts a little before the position, with bytes that were read before. If they have
/// changed, the file was truncated; its size alone does not show this, as it may have grown since.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    offset: u64,
    /// The first bytes of the file, at most [`FINGERPRINT`].
    head: Vec<u8>,
    /// The last bytes before `offset`, at most [`FINGERPRINT`].
    tail: Vec<u8>,
}

impl Position {
    /// A position with the first bytes of the file and the last bytes before the offset.
    pub fn new(offset: u64, head: Vec<u8>, tail: Vec<u8>) -> Position {
        Position { offset, head, tail }
    }

    /// How far the file has been read.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Where the next read must start.
    pub fn read_from(&self) -> u64 {
        self.offset.saturating_sub(self.overlap() as u64)
    }

    /// The number of bytes of the next read that were read before.
    pub fn overlap(&self) -> usize {
        self.tail.len()
    }

    /// The new part of bytes read from `read_from()`; `None` if the file has changed.
    pub fn new_bytes<'a>(&self, read: &'a [u8]) -> Option<&'a [u8]> {
        read.strip_prefix(self.tail.as_slice())
    }

    /// Moves to the end of the new bytes.
    pub fn advance(&mut self, new: &[u8]) {
        if self.head.len() as u64 == self.offset {
            let (missing, _) = shortened(new, FINGERPRINT.saturating_sub(self.head.len()));
            self.head.extend_from_slice(missing);
        }
        self.tail.extend_from_slice(last(new, FINGERPRINT));
        let surplus = self.tail.len().saturating_sub(FINGERPRINT);
        self.tail.drain(..surplus);
        self.offset = self.offset.saturating_add(new.len() as u64);
    }

    /// Moves further ahead over NULs; the bytes read last must be NULs, too.
    pub fn skip_nuls(&mut self, to: u64) {
        self.offset = to;
    }

    /// Whether `head` equals the start of the file as it was read before: then the file was only
    /// shortened, and the rest is old. A hole proves nothing.
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
        assert_eq!(position.new_bytes(b"abc"), Some(b"abc".as_slice()));
        for piece in content.chunks(7) {
            position.advance(piece);
        }
        assert_eq!((position.offset(), position.overlap()), (1000, FINGERPRINT));
        assert_eq!(position.read_from(), 744);
        let tail = &content[744..];
        assert_eq!(position.new_bytes(tail), Some(b"".as_slice()));
        assert_eq!(
            position.new_bytes(&[tail, b"new"].concat()),
            Some(b"new".as_slice())
        );
        assert_eq!(position.new_bytes(&tail[1..]), None);
        assert_eq!(
            position.new_bytes(&[&content[743..], b"new"].concat()),
            None
        );

        assert!(position.begins_like(&content));
        assert!(position.begins_like(&content[..1]));
        assert!(!position.begins_like(b""));
        assert!(!position.begins_like(b"other"));
        let holed = Position::new(4096, vec![0; 256], vec![0; 256]);
        assert!(!holed.begins_like(&[0; 256]));
        assert!(!Position::default().begins_like(b"other"));
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

    }
}
