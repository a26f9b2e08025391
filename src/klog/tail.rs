//! The pure half of following a log file: lines out of pieces, where reading stands and whether the
//! file is still the same there.

use super::record::split_once;

/// Longest line that is kept whole: what rsyslog keeps of one by default (`$MaxMessageSize`), and
/// several times what a record of the kernel can hold.
pub const MAX_LINE: usize = 8 * 1024;
/// The bytes by which a file is recognised: a few lines, with a time in each.
pub const FINGERPRINT: usize = 256;

/// A line of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// Its bytes, any of them, without the newline. NULs at its beginning are left out: they are
    /// the hole of a writer that goes on at its old place after its file was truncated.
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
    /// In the middle of a line whose beginning was not read.
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
    pub fn new(offset: u64, head: Vec<u8>, tail: Vec<u8>) -> Position {
        Position { offset, head, tail }
    }

    /// How far the file has been read.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Where the next read has to begin.
    pub fn read_from(&self) -> u64 {
        self.offset.saturating_sub(self.overlap() as u64)
    }

    /// How much of the next read was read before.
    pub fn overlap(&self) -> usize {
        self.tail.len()
    }

    /// What is new in the bytes that were read from [`read_from`](Position::read_from) on; `None`
    /// if the file is not what it was.
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

    /// Moves further ahead. What lies between is NULs, as what was read last.
    pub fn skip_nuls(&mut self, to: u64) {
        self.offset = to;
    }

    /// Whether a file that begins with these bytes has begun so before: then it was cut shorter,
    /// and what is left of it is old. A hole proves nothing.
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
