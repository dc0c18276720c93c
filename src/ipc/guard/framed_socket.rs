//! A socket with the frames that arrive on it and the bytes that it did not take yet.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::poll::PollFlags;

use super::frame::{FrameReader, ReadOutcome, SendBuffer};

/// The node or the exporter.
pub struct FramedSocket {
    socket: UnixStream,
    /// Frames that it sent. Taken out while they are read.
    pub incoming: FrameReader,
    outgoing: SendBuffer,
}

impl FramedSocket {
    /// The limits are those of [`FrameReader::new`].
    pub fn new(socket: UnixStream, max_message_bytes: usize, max_skipped_bytes: usize) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let incoming = FrameReader::new(max_message_bytes, max_skipped_bytes);
        Ok(FramedSocket { socket, incoming, outgoing: SendBuffer::with_memory() })
    }

    /// Sends at once what the socket takes and keeps the rest.
    pub fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.outgoing.send(&self.socket, frame)
    }

    /// Takes the memory to send so many bytes.
    pub fn reserve(&mut self, bytes: usize) -> io::Result<()> {
        self.outgoing.reserve(bytes)
    }

    /// Sends what was kept.
    pub fn flush(&mut self) -> io::Result<()> {
        self.outgoing.flush(&self.socket)
    }

    /// Bytes that the socket did not take yet.
    pub fn unsent(&self) -> usize {
        self.outgoing.len()
    }

    /// Reads what has arrived into `incoming`, which was taken out of `self`.
    pub fn fill(&self, incoming: &mut FrameReader) -> io::Result<ReadOutcome> {
        incoming.fill(&self.socket)
    }

    /// The events to poll for.
    pub fn interest(&self, reads: bool) -> PollFlags {
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::POLLIN, reads);
        interest.set(PollFlags::POLLOUT, self.unsent() > 0);
        interest
    }

    /// Reads and discards until the other side has closed.
    pub fn discard_until_closed(&self) {
        let _ = self.socket.set_nonblocking(false);
        let _ = io::copy(&mut &self.socket, &mut io::sink());
    }

    /// Ends the connection for both sides.
    pub fn close(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl AsFd for FramedSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
