//! Cap'n Proto's stream framing: assembles complete messages from the bytes of a socket, and buffers outgoing messages.
//! Used by the guard, the process that relays messages between the node and the exporter.

use std::collections::TryReserveError;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use capnp::Word;
use nix::poll::{PollFd, PollFlags};

/// Maximum size in bytes of a message that the guard forwards from the node to the exporter. The guard truncates a
/// message above this limit. The largest expected message contains a block, which has at most 4 MB.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// Maximum size in bytes of a message that the guard truncates. The guard rejects a larger message as invalid. Cap'n
/// Proto limits a text or byte string to 512 MiB, and a message of the node has at most one large text or byte string.
/// A valid message of the node is therefore smaller than 1 GiB.
pub const MAX_SKIPPED_BYTES: usize = 1 << 30;
/// Maximum number of segments of a message, equal to the limit in Cap'n Proto's own readers.
const MAX_SEGMENTS: usize = 512;
/// Size in bytes of a receive or send buffer while it contains no message larger than this size.
pub const BUFFER_BYTES: usize = 64 << 10;

/// The outcome of one read from a socket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ReadOutcome {
    /// At least one byte was read.
    Read,
    /// The socket has no bytes to read at the moment.
    Nothing,
    /// End of file: the other side closed the connection.
    End,
}

/// Receive buffer that assembles complete Cap'n Proto messages from the bytes of a socket. The buffer truncates or
/// rejects messages that are too large.
#[derive(Default)]
pub struct FrameReader {
    /// The buffer consists of 8-byte words, because Cap'n Proto messages must be aligned to words. The length of each
    /// message is a multiple of 8 bytes.
    buffer: Vec<Word>,
    /// Byte offset in the buffer of the first byte that was read from the socket and not consumed yet.
    start: usize,
    /// Byte offset in the buffer after the last byte that was read from the socket.
    end: usize,
    /// Number of remaining bytes of a truncated message, which are read from the socket and discarded.
    skipped: usize,
    max_message_bytes: usize,
    max_skipped_bytes: usize,
}

impl FrameReader {
    /// Creates a buffer that reads messages of up to `max_message_bytes` in full, truncates larger messages of up to
    /// `max_skipped_bytes`, and returns an error for messages larger than `max_skipped_bytes`.
    pub fn new(max_message_bytes: usize, max_skipped_bytes: usize) -> Self {
        let buffer = Word::allocate_zeroed_vec(BUFFER_BYTES / 8);
        FrameReader { buffer, max_message_bytes, max_skipped_bytes, ..FrameReader::default() }
    }

    /// Reads from `from` once, into the free space of the buffer.
    ///
    /// # Errors
    /// Reading from `from` failed.
    pub fn fill(&mut self, mut from: impl Read) -> io::Result<ReadOutcome> {
        if !self.make_room() {
            self.truncate();
            return Ok(ReadOutcome::Read);
        }
        let buffer = Word::words_to_bytes_mut(&mut self.buffer);
        let skips = self.skipped > 0 && self.start == self.end;
        let room = if skips { 0..self.skipped.min(buffer.len()) } else { self.end..buffer.len() };
        match from.read(&mut buffer[room]) {
            Ok(0) => Ok(ReadOutcome::End),
            Ok(read) if skips => {
                self.skipped -= read;
                Ok(ReadOutcome::Read)
            }
            Ok(read) => {
                self.end += read;
                Ok(ReadOutcome::Read)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(ReadOutcome::Nothing)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the message that is arriving is larger than [`BUFFER_BYTES`].
    pub fn is_amid_large(&self) -> bool {
        let bytes = &Word::words_to_bytes(&self.buffer)[self.start..self.end];
        self.skipped > 0
            || matches!(length(bytes, self.max_skipped_bytes), Ok(Some(length)) if length > BUFFER_BYTES)
    }

    /// Whether the message that [`next`](Self::next) returns next is truncated.
    pub fn is_truncated(&self) -> bool {
        self.skipped > 0
    }

    /// Whether the buffer was enlarged for a large message and has not been shrunk since.
    pub fn has_grown(&self) -> bool {
        self.buffer.len() * 8 > BUFFER_BYTES
    }

    /// Shrinks an enlarged buffer to [`BUFFER_BYTES`] if the buffer contains no unread bytes.
    pub fn shrink(&mut self) {
        if self.has_grown() && self.start == self.end && self.skipped == 0 {
            *self = FrameReader::new(self.max_message_bytes, self.max_skipped_bytes);
        }
    }

    /// Returns the next complete message, including its segment table; `None` until all bytes of the message have
    /// arrived.
    ///
    /// # Errors
    /// The segment table is invalid, or the message is larger than `max_skipped_bytes`.
    pub fn next(&mut self) -> io::Result<Option<&[u8]>> {
        let bytes = &Word::words_to_bytes(&self.buffer)[self.start..self.end];
        match length(bytes, self.max_skipped_bytes)? {
            Some(length) if length <= bytes.len() => {
                let start = self.start;
                self.start += length;
                Ok(Some(&Word::words_to_bytes(&self.buffer)[start..start + length]))
            }
            _ => Ok(None),
        }
    }

    /// Makes room in the receive buffer for the message that is arriving: moves the unread bytes to the front, and
    /// grows the buffer to exactly the size of the message if the message does not fit. Returns false if the message
    /// fills the buffer and is larger than `max_message_bytes` or the available memory.
    fn make_room(&mut self) -> bool {
        let left = self.end - self.start;
        let bytes = Word::words_to_bytes_mut(&mut self.buffer);
        let needed = length(&bytes[self.start..self.end], self.max_skipped_bytes).ok().flatten();
        let needed = needed.unwrap_or(0).max(BUFFER_BYTES);
        // The fallible allocation is a test: if it fails, the later infallible allocation would abort the guard.
        let fits = || needed <= self.max_message_bytes && Vec::<u8>::new().try_reserve_exact(needed).is_ok();
        if needed > bytes.len() && left == bytes.len() && !fits() {
            return false;
        }
        if needed > bytes.len() && fits() {
            // The kernel provides zeroed pages, so this allocation does not write to the memory.
            let mut resized = Word::allocate_zeroed_vec(needed / 8);
            Word::words_to_bytes_mut(&mut resized)[..left].copy_from_slice(&bytes[self.start..self.end]);
            self.buffer = resized;
        } else if self.start + needed > bytes.len() || left == 0 {
            bytes.copy_within(self.start..self.end, 0);
        } else {
            return true;
        }
        (self.start, self.end) = (0, left);
        true
    }

    /// Truncates a message that cannot be stored completely. The buffer keeps the bytes that have already arrived,
    /// which include the question ID of the call, and skips the remaining bytes.
    fn truncate(&mut self) {
        let bytes = &mut Word::words_to_bytes_mut(&mut self.buffer)[self.start..self.end];
        let Ok(Some(whole)) = length(bytes, self.max_skipped_bytes) else { return };
        let number =
            |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        let segments = number(bytes, 0) as usize + 1;
        let header = (4 + 4 * segments).next_multiple_of(8);
        let mut room = ((bytes.len() - header) / 8) as u32;
        for at in (1..=segments).map(|segment| 4 * segment) {
            let kept = number(bytes, at).min(room);
            bytes[at..at + 4].copy_from_slice(&kept.to_le_bytes());
            room -= kept;
        }
        self.skipped = whole - bytes.len();
    }
}

/// Returns the length in bytes of the message at the start of `bytes`; `None` if `bytes` does not contain the complete
/// segment table.
fn length(bytes: &[u8], max: usize) -> io::Result<Option<usize>> {
    let number =
        |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().expect("four bytes")) as usize);
    let invalid = |reason: String| Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    let Some(segments) = number(0).map(|last| last + 1) else { return Ok(None) };
    if segments > MAX_SEGMENTS {
        return invalid(format!("a message of {segments} segments"));
    }
    let mut length = (4 + 4 * segments).next_multiple_of(8);
    for segment in 1..=segments {
        let Some(words) = number(4 * segment) else { return Ok(None) };
        length += words * 8;
    }
    if length > max {
        return invalid(format!("a message of {length} bytes"));
    }
    Ok(Some(length))
}

/// A nonblocking socket with a buffer of the outgoing bytes that the socket has not accepted yet.
pub struct BufferedSocket<S = UnixStream> {
    pub socket: S,
    bytes: Vec<u8>,
    sent: usize,
}

/// A function that reserves memory for more bytes in a send buffer, or fails if memory is short. A test passes a
/// function that always fails.
type Reserve = fn(&mut Vec<u8>, usize) -> Result<(), TryReserveError>;

impl<S: Write> BufferedSocket<S> {
    /// Creates a send buffer with [`BUFFER_BYTES`] of reserved memory, so responses can be sent even if memory runs out
    /// later.
    fn with_memory(socket: S) -> Self {
        BufferedSocket { socket, bytes: Vec::with_capacity(BUFFER_BYTES), sent: 0 }
    }

    /// Number of bytes in the send buffer that the socket has not accepted yet.
    pub fn unsent(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Sends as many bytes as the socket accepts, and buffers the remaining bytes. Sends nothing if memory is too short
    /// to buffer the bytes.
    ///
    /// # Errors
    /// Writing to the socket failed, or memory is too short to buffer the bytes.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.send_with(bytes, Vec::try_reserve)
    }

    fn send_with(&mut self, bytes: &[u8], reserve: Reserve) -> io::Result<()> {
        // The memory is reserved before any byte is sent. If only a part of a message were sent, the receiver would
        // read the next message as the missing part.
        reserve(&mut self.bytes, bytes.len()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        if self.unsent() == 0 {
            let sent = written(self.socket.write(bytes))?;
            self.bytes.extend(&bytes[sent..]);
            Ok(())
        } else {
            self.bytes.extend(bytes);
            self.flush()
        }
    }

    /// Reserves memory for this number of bytes in addition to the bytes in the buffer.
    ///
    /// # Errors
    /// The memory cannot be allocated.
    pub fn reserve(&mut self, bytes: usize) -> io::Result<()> {
        self.bytes.try_reserve(bytes).map_err(|_| io::ErrorKind::OutOfMemory.into())
    }

    /// Appends the bytes that `write` produces to the send buffer, without sending them.
    pub fn queue(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
    }

    /// Sends buffered bytes until the buffer is empty or the socket accepts no more bytes.
    ///
    /// # Errors
    /// Writing to the socket failed.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.unsent() > 0 && self.flush_some()? > 0 {}
        Ok(())
    }

    /// Makes one write with as many buffered bytes as the socket accepts. Returns the number of bytes that were sent.
    ///
    /// # Errors
    /// Writing to the socket failed.
    pub fn flush_some(&mut self) -> io::Result<usize> {
        let sent = written(self.socket.write(&self.bytes[self.sent..]))?;
        self.sent += sent;
        if self.unsent() == 0 {
            self.clear();
        } else if self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        Ok(sent)
    }

    /// Discards the bytes in the send buffer.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(BUFFER_BYTES);
        self.sent = 0;
    }
}

fn written(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
        result => result,
    }
}

impl BufferedSocket {
    /// Creates an empty send buffer for `socket`, and makes the socket nonblocking.
    ///
    /// # Errors
    /// The socket cannot be made nonblocking.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(BufferedSocket::with_memory(socket))
    }

    /// The socket and the events for which poll(2) has to wait: readable if `reads`, and writable if there are unsent
    /// bytes.
    pub fn interest(&self, reads: bool) -> PollFd<'_> {
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::POLLIN, reads);
        interest.set(PollFlags::POLLOUT, self.unsent() > 0);
        PollFd::new(self.socket.as_fd(), interest)
    }

    /// Reads and discards bytes until the other side closes the connection.
    pub fn discard_until_closed(&self) {
        let _ = self.socket.set_nonblocking(false);
        let _ = io::copy(&mut &self.socket, &mut io::sink());
    }

    /// Shuts down the socket in both directions.
    pub fn close(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
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
            let (mut frames, mut got) = (FrameReader::new(MAX_MESSAGE_BYTES, MAX_SKIPPED_BYTES), Vec::new());
            for piece in stream.chunks(cut) {
                let mut piece = piece;
                while !piece.is_empty() {
                    assert_eq!(frames.fill(&mut piece).unwrap(), ReadOutcome::Read);
                    while let Some(frame) = frames.next().unwrap() {
                        got.push(frame.to_vec());
                    }
                }
            }
            assert!(got == messages, "cut at {cut}");
            frames.shrink();
            assert!(!frames.has_grown(), "a large message leaves no memory behind");
        }
    }

    /// A writer that stores the accepted bytes. When the writer has stored the number of bytes in the second field, it
    /// returns `WouldBlock`.
    struct Narrow(Vec<u8>, usize);

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match bytes.len().min(self.1 - self.0.len()) {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                taken => {
                    self.0.extend(&bytes[..taken]);
                    Ok(taken)
                }
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn message_without_memory_for_its_rest_is_not_sent() {
        let no_memory: Reserve = |_, _| Vec::<u8>::new().try_reserve(usize::MAX);
        let mut outgoing = BufferedSocket::with_memory(Narrow(Vec::new(), 10));
        let [first, lost, last] = [message(2), message(5), message(3)];
        for begun in [0, 10] {
            let error = outgoing.send_with(&lost, no_memory).unwrap_err();
            assert_eq!((error.kind(), outgoing.socket.0.len()), (io::ErrorKind::OutOfMemory, begun));
            if begun == 0 {
                outgoing.send(&first).unwrap();
            }
        }
        outgoing.socket.1 = usize::MAX;
        outgoing.send(&last).unwrap();
        assert_eq!(outgoing.socket.0, [first, last].concat(), "whole messages");
        assert_eq!(outgoing.unsent(), 0);
    }

    #[test]
    fn answers_need_no_more_memory() {
        let mut outgoing = BufferedSocket::with_memory(Narrow(Vec::new(), 0));
        let capacity = outgoing.bytes.capacity();
        for _ in 0..BUFFER_BYTES / message(6).len() {
            outgoing.send(&message(6)).unwrap();
        }
        assert_eq!(outgoing.bytes.capacity(), capacity);
    }

    #[test]
    fn messages_above_the_limit_are_truncated_and_skipped() {
        let mut frames = FrameReader::new(1 << 20, MAX_SKIPPED_BYTES);
        let stream = [message(5), message(200_000), message(7), message((1 << 17) - 1), message(1)].concat();
        let (mut piece, mut got) = (&stream[..], Vec::new());
        while !piece.is_empty() {
            frames.fill(&mut piece).unwrap();
            let is_truncated = frames.is_truncated();
            while let Some(frame) = frames.next().unwrap() {
                got.push((frame.len(), is_truncated));
            }
        }
        let expected = [(48, false), (BUFFER_BYTES, true), (64, false), (1 << 20, false), (16, false)];
        assert_eq!(got, expected);
    }

    #[test]
    fn message_without_memory_is_truncated_and_skipped() {
        let mut frames = FrameReader::new(usize::MAX, usize::MAX);
        let mut huge = vec![0xff, 1, 0, 0];
        (0..MAX_SEGMENTS).for_each(|_| huge.extend(u32::MAX.to_le_bytes())); // a message of 17 TB
        huge.extend([7; BUFFER_BYTES]);
        let mut piece = &huge[..];
        let frame = loop {
            assert_eq!(frames.fill(&mut piece).unwrap(), ReadOutcome::Read);
            if let Some(frame) = frames.next().unwrap() {
                break frame.to_vec();
            }
        };
        assert_eq!(frame.len(), BUFFER_BYTES);
        assert_eq!(length(&frame, usize::MAX).unwrap(), Some(BUFFER_BYTES));
        assert!(frames.is_amid_large() && frames.skipped > 1 << 40);
        let next = message(3);
        frames.skipped = piece.len();
        let rest = [piece, &next].concat();
        let mut rest = &rest[..];
        while !rest.is_empty() {
            frames.fill(&mut rest).unwrap();
        }
        assert_eq!(frames.next().unwrap(), Some(&next[..]));
    }

    #[test]
    fn false_segment_table_is_rejected_before_allocation() {
        for table in [&b"\xff\xff\xff\xff\x01\x00\x00\x00"[..], b"\x00\x00\x00\x00\xff\xff\xff\xff"] {
            let mut frames = FrameReader::new(MAX_MESSAGE_BYTES, MAX_SKIPPED_BYTES);
            frames.fill(&mut &table[..]).unwrap();
            assert!(frames.next().is_err());
            assert!(frames.make_room());
            assert_eq!(frames.buffer.len() * 8, BUFFER_BYTES);
        }
    }
}
