//! A nonblocking socket with Cap'n Proto framing and a send buffer.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::poll::PollFlags;

use super::frame::{FrameReader, ReadOutcome, SendBuffer};

/// The guard's socket to the node or to the exporter, with its receive and send buffers.
pub struct FramedSocket {
    socket: UnixStream,
    /// The receive buffer. The relay takes it out of the struct while it handles the received messages.
    pub incoming: FrameReader,
    outgoing: SendBuffer,
}

impl FramedSocket {
    /// Makes the socket nonblocking. The limits have the meaning of the parameters of [`FrameReader::new`].
    pub fn new(socket: UnixStream, max_message_bytes: usize, max_skipped_bytes: usize) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let incoming = FrameReader::new(max_message_bytes, max_skipped_bytes);
        Ok(FramedSocket { socket, incoming, outgoing: SendBuffer::with_memory() })
    }

    /// Sends as many bytes of the frame as the socket accepts, and buffers the remaining bytes.
    pub fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.outgoing.send(&self.socket, frame)
    }

    /// Reserves send buffer memory for this number of bytes.
    pub fn reserve(&mut self, bytes: usize) -> io::Result<()> {
        self.outgoing.reserve(bytes)
    }

    /// Sends as many buffered bytes as the socket accepts.
    pub fn flush(&mut self) -> io::Result<()> {
        self.outgoing.flush(&self.socket)
    }

    /// Number of bytes in the send buffer.
    pub fn unsent(&self) -> usize {
        self.outgoing.len()
    }

    /// Reads from the socket once, into the receive buffer `incoming`, which the caller has taken out of `self`.
    pub fn fill(&self, incoming: &mut FrameReader) -> io::Result<ReadOutcome> {
        incoming.fill(&self.socket)
    }

    /// The events for which poll(2) has to wait: readable if `reads`, and writable if there are unsent bytes.
    pub fn interest(&self, reads: bool) -> PollFlags {
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::POLLIN, reads);
        interest.set(PollFlags::POLLOUT, self.unsent() > 0);
        interest
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

impl AsFd for FramedSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
