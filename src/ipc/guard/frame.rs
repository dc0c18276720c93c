//! Cap'n Proto's stream framing: whole messages out of bytes that arrive in pieces, and back.

use std::io::{self, Read, Write};

use capnp::Word;

/// The largest message that is taken. A block is at most 4 MB; answers to polls are smaller.
pub const LARGEST: usize = 64 << 20;
/// As many segments as Cap'n Proto's own readers take.
const MOST_SEGMENTS: usize = 512;
/// Room that is kept between messages.
pub const KEPT: usize = 64 << 10;

/// Reads whole messages.
pub struct Frames {
    /// Words, so that messages are aligned: each is a whole number of them.
    buffer: Vec<Word>,
    /// Where what was not taken yet starts and ends, in bytes.
    start: usize,
    end: usize,
}

impl Frames {
    pub fn new() -> Self {
        Frames { buffer: Word::allocate_zeroed_vec(KEPT / 8), start: 0, end: 0 }
    }

    /// Without any memory, to stand in for one that is being read.
    pub fn empty() -> Self {
        Frames { buffer: Vec::new(), start: 0, end: 0 }
    }

    /// Reads what has arrived; `false` at the end of the stream.
    pub fn fill(&mut self, mut from: impl Read) -> io::Result<bool> {
        self.make_room();
        let buffer = Word::words_to_bytes_mut(&mut self.buffer);
        match from.read(&mut buffer[self.end..]) {
            Ok(0) => Ok(false),
            Ok(read) => {
                self.end += read;
                Ok(true)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// The next whole message, with its segment table.
    pub fn next(&mut self) -> io::Result<Option<&[u8]>> {
        let bytes = &Word::words_to_bytes(&self.buffer)[self.start..self.end];
        match length(bytes)? {
            Some(length) if length <= bytes.len() => {
                let start = self.start;
                self.start += length;
                Ok(Some(&Word::words_to_bytes(&self.buffer)[start..start + length]))
            }
            _ => Ok(None),
        }
    }

    /// Moves what is left to the front, and grows to the size of the message that is arriving, never beyond; shrinks
    /// again after a large one.
    fn make_room(&mut self) {
        let left = self.end - self.start;
        let bytes = Word::words_to_bytes_mut(&mut self.buffer);
        if self.start > 0 && (left == 0 || self.end == bytes.len()) {
            bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, left);
        }
        let wanted = length(&bytes[self.start..self.end]).ok().flatten().unwrap_or(0).max(KEPT);
        if self.start + wanted > bytes.len() {
            bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, left);
            self.buffer.resize(wanted / 8, capnp::word(0, 0, 0, 0, 0, 0, 0, 0));
        } else if left == 0 && bytes.len() > KEPT {
            self.buffer = Word::allocate_zeroed_vec(KEPT / 8);
        }
    }
}

/// The length of the message that starts here, once its segment table is there.
fn length(bytes: &[u8]) -> io::Result<Option<usize>> {
    let number =
        |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().expect("four bytes")) as usize);
    let wrong = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    let Some(segments) = number(0).map(|last| last + 1) else { return Ok(None) };
    if segments > MOST_SEGMENTS {
        return wrong(format!("a message of {segments} segments"));
    }
    let mut length = (4 + 4 * segments).next_multiple_of(8);
    for segment in 1..=segments {
        let Some(words) = number(4 * segment) else { return Ok(None) };
        length += words * 8;
    }
    if length > LARGEST {
        return wrong(format!("a message of {length} bytes"));
    }
    Ok(Some(length))
}

/// Bytes on their way into a socket that takes no more at the moment.
#[derive(Default)]
pub struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Sends at once what the socket takes and keeps the rest.
    pub fn send(&mut self, mut to: impl Write, bytes: &[u8]) -> io::Result<()> {
        if self.is_empty() {
            let sent = written(to.write(bytes))?;
            self.bytes.extend(&bytes[sent..]);
            Ok(())
        } else {
            self.bytes.extend(bytes);
            self.flush(to)
        }
    }

    /// Appends with `write` and sends nothing yet.
    pub fn queue(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
    }

    /// Sends what the socket takes.
    pub fn flush(&mut self, mut to: impl Write) -> io::Result<()> {
        while !self.is_empty() {
            match written(to.write(&self.bytes[self.sent..]))? {
                0 => break,
                sent => self.sent += sent,
            }
        }
        if self.is_empty() {
            self.bytes.clear();
            self.bytes.shrink_to(KEPT);
            self.sent = 0;
        } else if self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }
}

fn written(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(words: usize) -> Vec<u8> {
        let mut bytes = vec![0, 0, 0, 0];
        bytes.extend((words as u32).to_le_bytes());
        bytes.extend((0..words * 8).map(|i| i as u8));
        bytes
    }

    #[test]
    fn messages_arrive_whole_however_the_bytes_are_cut() {
        let messages: Vec<_> = [0, 1, 3, 20_000, 2, 600_000, 1].map(message).into();
        let stream = messages.concat();
        for cut in [1usize << 20, 4096, 65_536, 7777] {
            let (mut frames, mut got) = (Frames::new(), Vec::new());
            for piece in stream.chunks(cut) {
                let mut piece = piece;
                while !piece.is_empty() {
                    assert!(frames.fill(&mut piece).unwrap());
                    while let Some(frame) = frames.next().unwrap() {
                        got.push(frame.to_vec());
                    }
                }
            }
            assert!(got == messages, "cut at {cut}");
            frames.make_room();
            assert_eq!(frames.buffer.len() * 8, KEPT, "a large message leaves no memory behind");
        }
    }

    #[test]
    fn a_segment_table_that_lies_is_refused_before_memory_is_taken() {
        for table in [&b"\xff\xff\xff\xff\x01\x00\x00\x00"[..], b"\x00\x00\x00\x00\xff\xff\xff\xff"] {
            let mut frames = Frames::new();
            frames.fill(&mut &table[..]).unwrap();
            assert!(frames.next().is_err());
            frames.make_room();
            assert_eq!(frames.buffer.len() * 8, KEPT);
        }
    }
}
