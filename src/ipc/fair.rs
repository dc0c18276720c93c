//! A peer that does not read what we send is not read from either. Whatever it asks is answered into a queue without a
//! bound of its own, so that such a peer could fill our memory.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

#[derive(Default)]
struct Unread {
    /// The socket takes no more at the moment.
    full: Cell<bool>,
    reader: RefCell<Option<Waker>>,
}

pub struct Reading(OwnedReadHalf, Rc<Unread>);
pub struct Writing(OwnedWriteHalf, Rc<Unread>);

/// The two halves of a connection.
pub fn halves(stream: UnixStream) -> (Reading, Writing) {
    let (read, write) = stream.into_split();
    let unread = Rc::<Unread>::default();
    (Reading(read, unread.clone()), Writing(write, unread))
}

impl AsyncRead for Reading {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.1.full.get() {
            self.1.reader.replace(Some(context.waker().clone()));
            return Poll::Pending;
        }
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Writing {
    fn sent<T>(&self, sent: Poll<T>) -> Poll<T> {
        self.1.full.set(sent.is_pending());
        if sent.is_ready()
            && let Some(reader) = self.1.reader.take()
        {
            reader.wake();
        }
        sent
    }
}

impl AsyncWrite for Writing {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.0).poll_write(context, bytes);
        self.sent(sent)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
