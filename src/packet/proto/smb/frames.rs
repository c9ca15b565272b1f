//! One side's stream, cut into messages, of each of which only the head is kept.

/// Most messages that one frame may chain; clients chain three or four.
const CHAIN_MAX: usize = 64;

/// What is wanted of a message, by what is there of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// So many bytes from its start, more than there are, must be there to say.
    More(usize),
    /// Its first `head` bytes are to be read; the next one begins behind `length` bytes.
    Head { head: usize, length: usize },
    /// Nothing: it is passed over, and what is chained to it.
    Nothing,
}

/// Who reads messages.
pub(super) trait Reader {
    /// What is wanted of a message whose start is `start`, in a frame with `left` bytes from there on.
    fn want(&mut self, start: &[u8], left: usize) -> Want;
    /// Reads a message's head. `is_first` when it is not chained to another.
    fn read(&mut self, head: &[u8], is_first: bool);
    /// Something is odd.
    fn odd(&mut self, name: &'static str);
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before a frame's four bytes.
    #[default]
    Frame,
    /// In the head of a message, `chained` of its frame being read. `left` bytes of the frame are not taken.
    Head { left: usize, chained: usize },
    /// In what is passed over of a message: `over` bytes, then `left` more of the frame.
    Body { over: usize, left: usize, chained: usize },
    /// Lost: a frame is looked for.
    Lost,
}

/// Cuts one side's stream.
#[derive(Debug, Default)]
pub(super) struct Frames {
    state: State,
    kept: Vec<u8>,
}

impl Frames {
    /// Takes the next bytes.
    pub(super) fn take(&mut self, mut rest: &[u8], reader: &mut impl Reader) {
        while !rest.is_empty() {
            self.step(&mut rest, reader);
        }
    }

    fn step(&mut self, rest: &mut &[u8], reader: &mut impl Reader) {
        match self.state {
            State::Frame => self.frame(rest, reader),
            State::Head { left, chained } => self.head(rest, left, chained, reader),
            State::Body { over, left, chained } => {
                let count = over.min(rest.len());
                *rest = &rest[count..];
                self.passed(over - count, left, chained);
            }
            State::Lost => self.search(rest, reader),
        }
    }

    /// Goes on behind a message, or the part of it that was passed over.
    fn passed(&mut self, over: usize, left: usize, chained: usize) {
        self.state = match (over, left) {
            (0, 0) => State::Frame,
            (0, _) => State::Head { left, chained: chained + 1 },
            _ => State::Body { over, left, chained },
        };
    }

    /// Takes up to `need` bytes into `kept`; true when they are there.
    fn keep(&mut self, rest: &mut &[u8], need: usize) -> bool {
        let count = need.saturating_sub(self.kept.len()).min(rest.len());
        self.kept.extend_from_slice(&rest[..count]);
        *rest = &rest[count..];
        self.kept.len() >= need
    }

    /// The header of NetBIOS sessions: type and length (RFC 1002, 4.3.1); over TCP alone the type is 0 and the length
    /// has three bytes ([MS-SMB2] 2.1).
    fn frame(&mut self, rest: &mut &[u8], reader: &mut impl Reader) {
        if !self.keep(rest, 4) {
            return;
        }
        let kind = self.kept[0];
        let length = u32::from_be_bytes([0, self.kept[1], self.kept[2], self.kept[3]]) as usize;
        self.kept.clear();
        self.state = match kind {
            _ if length == 0 && matches!(kind, 0x00 | 0x81..=0x85) => State::Frame,
            0x00 => State::Head { left: length, chained: 0 },
            // Requests for a session, and their answers.
            0x81..=0x85 => State::Body { over: length, left: 0, chained: 0 },
            _ => {
                reader.odd("smb.bad_frame");
                State::Lost
            }
        };
    }

    fn head(&mut self, rest: &mut &[u8], left: usize, chained: usize, reader: &mut impl Reader) {
        if chained >= CHAIN_MAX {
            reader.odd("smb.long_chain");
            self.state = State::Body { over: left, left: 0, chained: 0 };
            return;
        }
        // What is there in one piece is read where it stands.
        if self.kept.is_empty() {
            let there = &rest[..rest.len().min(left)];
            let want = reader.want(there, left);
            if !matches!(want, Want::More(_)) {
                let taken = if let Want::Head { head, .. } = want { head } else { 0 };
                self.decided(want, there, taken, left, chained, reader);
                *rest = &rest[taken..];
                return;
            }
        }
        loop {
            match reader.want(&self.kept, left) {
                Want::More(need) if self.keep(rest, need) => {}
                Want::More(_) => return,
                want => {
                    let mut kept = std::mem::take(&mut self.kept);
                    self.decided(want, &kept, kept.len(), left, chained, reader);
                    kept.clear();
                    self.kept = kept;
                    return;
                }
            }
        }
    }

    /// Enough of a message is there, of which `taken` bytes are taken from the stream.
    fn decided(
        &mut self,
        want: Want,
        there: &[u8],
        taken: usize,
        left: usize,
        chained: usize,
        reader: &mut impl Reader,
    ) {
        match want {
            Want::Head { head, length } => {
                let length = length.min(left);
                reader.read(&there[..head.min(there.len())], chained == 0);
                self.passed(length.saturating_sub(taken), left - length, chained);
            }
            _ => self.passed(left.saturating_sub(taken), 0, chained),
        }
    }

    /// Bytes are missing. Where they are all of what is passed over anyway nothing is lost.
    pub(super) fn skip(&mut self, missing: u64) {
        let State::Body { over, left, chained } = self.state else { return self.lose(missing) };
        match usize::try_from(missing) {
            Ok(missing) if missing <= over => self.passed(over - missing, left, chained),
            Ok(missing) => {
                self.state = State::Head { left, chained };
                self.lose((missing - over) as u64);
            }
            Err(_) => self.lose(missing),
        }
    }

    /// The head of a message, or a frame's own, is missing: the frame's rest is passed over, if it is known where it
    /// ends.
    fn lose(&mut self, missing: u64) {
        self.state = match (self.state, usize::try_from(missing)) {
            (State::Head { left, .. }, Ok(missing)) => {
                match left.checked_sub(missing.saturating_add(self.kept.len())) {
                    Some(0) => State::Frame,
                    Some(over) => State::Body { over, left: 0, chained: 0 },
                    None => State::Lost,
                }
            }
            _ => State::Lost,
        };
        self.kept.clear();
    }

    /// Looks for a frame. `kept` has the last bytes of what came before, in which it may begin.
    fn search(&mut self, rest: &mut &[u8], reader: &mut impl Reader) {
        let before = self.kept.len();
        self.kept.extend_from_slice(&rest[..rest.len().min(START - 1)]);
        if let Some(at) = start_of_frame(&self.kept).filter(|at| *at < before) {
            // Its header and up to three bytes more stood there.
            let start = self.kept[at..before].to_vec();
            self.kept.clear();
            self.state = State::Frame;
            let mut start = &start[..];
            // Too few to be lost in again: one frame's header is whole in them.
            while !start.is_empty() && self.state != State::Lost {
                self.step(&mut start, reader);
            }
        } else if let Some(at) = start_of_frame(rest) {
            self.kept.clear();
            self.state = State::Frame;
            *rest = &rest[at..];
        } else {
            if rest.len() >= START {
                self.kept.clear();
                self.kept.extend_from_slice(&rest[rest.len() - (START - 1)..]);
            }
            self.kept.drain(..self.kept.len().saturating_sub(START - 1));
            *rest = &[];
        }
    }

    /// Bytes that it keeps, about.
    pub(super) fn memory(&self) -> usize {
        self.kept.capacity()
    }
}

/// Bytes by which a frame is known: a zero, a length, the first byte of any SMB, and `SMB`.
const START: usize = 8;

/// Where a frame begins, if one does.
fn start_of_frame(bytes: &[u8]) -> Option<usize> {
    let is_start =
        |at: &usize| *at >= 5 && bytes[at - 5] == 0 && bytes[at - 1] >= 0xfc && bytes[at - 4..at - 1] != [0, 0, 0];
    memchr::memmem::find_iter(bytes, b"SMB").find(is_start).map(|at| at - 5)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A reader of messages that say in their first two bytes how long head and message are; it notes what it reads.
    #[derive(Default)]
    struct Notes(Vec<(Vec<u8>, bool)>, Vec<&'static str>);

    impl Reader for Notes {
        fn want(&mut self, start: &[u8], left: usize) -> Want {
            match start {
                _ if left < 2 => Want::Nothing,
                [] | [_] => Want::More(2),
                [head, length, ..] if head > length || usize::from(*length) > left || *head < 2 => Want::Nothing,
                [head, ..] if start.len() < usize::from(*head) => Want::More(usize::from(*head)),
                [head, length, ..] => Want::Head { head: usize::from(*head), length: usize::from(*length) },
            }
        }

        fn read(&mut self, head: &[u8], is_first: bool) {
            self.0.push((head.to_vec(), is_first));
        }

        fn odd(&mut self, name: &'static str) {
            self.1.push(name);
        }
    }

    fn read(pieces: &[&[u8]]) -> Notes {
        let (mut frames, mut notes) = (Frames::default(), Notes::default());
        pieces.iter().for_each(|piece| frames.take(piece, &mut notes));
        notes
    }

    #[test]
    fn reads_heads() {
        let stream =
            b"\x81\0\0\x02xx\0\0\0\x09\x03\x05a..\x04\x04bb\0\0\0\0\0\0\0\x03\x02\x03.\0\0\0\x01z\0\0\0\x02\x02\x02";
        let wanted = [
            (b"\x03\x05a".to_vec(), true),
            (b"\x04\x04bb".to_vec(), false),
            (b"\x02\x03".to_vec(), true),
            (b"\x02\x02".to_vec(), true),
        ];
        assert_eq!(read(&[stream]).0, wanted);
        for first in 0..stream.len() {
            for second in first..stream.len() {
                assert_eq!(read(&[&stream[..first], &stream[first..second], &stream[second..]]).0, wanted);
            }
        }
    }

    #[test]
    fn finds_its_place_again() {
        let stream = b"\x99garbage SMB \0\0\0\x22\xfeSMB";
        for cut in 1..stream.len() {
            let (mut frames, mut notes) = (Frames::default(), Notes::default());
            frames.take(&stream[..cut], &mut notes);
            frames.take(&stream[cut..], &mut notes);
            assert_eq!(notes.1, ["smb.bad_frame"], "{cut}");
            assert_eq!(
                (frames.state, &frames.kept[..]),
                (State::Body { over: 30, left: 0, chained: 0 }, &b""[..]),
                "{cut}"
            );
        }
    }

    #[test]
    fn goes_on_behind_a_gap() {
        let frame = |length: u8| [0, 0, 0, length, 3, length, b'a'];
        let last = b"\0\0\0\x02\x02\x02";
        let run = |before: &[u8], missing: u64, behind: &[u8]| {
            let (mut frames, mut notes) = (Frames::default(), Notes::default());
            frames.take(before, &mut notes);
            frames.skip(missing);
            frames.take(behind, &mut notes);
            notes.0.len()
        };
        // In what is passed over, up to its end, and on into the next frame.
        assert_eq!(run(&frame(20), 10, &[b"1234567", &last[..]].concat()), 2);
        assert_eq!(run(&frame(20), 17, last), 2);
        assert_eq!(run(&frame(20), 18, &last[1..]), 1);
        // In a head: the frame is passed over.
        assert_eq!(run(&frame(20)[..5], 3, &[&[b'x'; 16][..], last].concat()), 1);
        assert_eq!(run(&frame(20)[..4], 20, last), 1);
        // In a frame's header.
        assert_eq!(run(&frame(20)[..2], 3, last), 0);
        assert_eq!(run(b"", u64::MAX, last), 0);
        assert_eq!(run(&frame(20)[..5], u64::MAX, last), 0);
    }

    #[test]
    fn a_long_chain_is_passed_over() {
        let mut stream = vec![0, 0, 0, 200];
        stream.extend([2u8; 200]);
        stream.extend(b"\0\0\0\x02\x02\x02");
        let notes = read(&[&stream]);
        assert_eq!((notes.0.len(), &notes.1[..]), (CHAIN_MAX + 1, &["smb.long_chain"][..]));
    }

    proptest! {
        #[test]
        fn any_cut_reads_the_same(
            stream in prop::collection::vec(prop_oneof![0u8..9, any::<u8>()], 0..400),
            size in 1usize..20,
        ) {
            let whole = read(&[&stream]);
            let pieces: Vec<_> = stream.chunks(size).collect();
            let cut = read(&pieces);
            prop_assert_eq!((cut.0, cut.1), (whole.0, whole.1));
        }
    }
}
