//! Disconnects HTTP clients that do not read a complete response of the exporter within a time limit.

use std::future::Future;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// A connection to an HTTP client, with a deadline for sending each complete response. Without the deadline, a client
/// that reads very slowly would keep its response in the exporter's memory for an unlimited time.
pub struct WriteDeadline<S> {
    stream: S,
    /// Maximum time from the first to the last byte of a response.
    time: Duration,
    /// Timer of the response that is being sent; `None` between responses.
    due: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncWrite + Unpin> WriteDeadline<S> {
    /// Wraps `stream`. `time` is the maximum time from the first to the last byte of a response.
    pub fn new(stream: S, time: Duration) -> Self {
        WriteDeadline { stream, time, due: None }
    }

    /// Returns `result`, the result of a write, flush or shutdown of `stream`, or a timeout error if `result` is
    /// pending and the deadline of the response has passed. Starts the timer of the response if it is not running.
    fn in_time<T>(&mut self, cx: &mut Context<'_>, result: Poll<Result<T>>) -> Poll<Result<T>> {
        let due = self.due.get_or_insert_with(|| Box::pin(sleep(self.time)));
        if result.is_ready() {
            return result;
        }
        let late = || Err(Error::new(ErrorKind::TimedOut, "the client did not read the response in time"));
        due.as_mut().poll(cx).map(|()| late())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteDeadline<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, to)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteDeadline<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.in_time(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.in_time(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// The HTTP library hyper flushes the stream after each response, so a completed flush means that the response was
    /// sent and its timer can be removed.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_ready() {
            self.due = None;
            return flushed;
        }
        self.in_time(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let ended = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.in_time(cx, ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn slow_reader_is_disconnected() {
        let (ours, mut theirs) = duplex(64);
        let mut ours = WriteDeadline::new(ours, Duration::from_millis(200));
        let slow = tokio::spawn(async move {
            while let Ok(1) = theirs.read(&mut [0]).await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let error = ours.write_all(&[7; 100_000]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        slow.abort();
    }

    #[tokio::test]
    async fn each_answer_has_its_own_time() {
        let (ours, mut theirs) = duplex(64);
        let mut ours = WriteDeadline::new(ours, Duration::from_secs(3600));
        for _ in 0..2 {
            let answer = async {
                ours.write_all(&[7; 100]).await.unwrap();
                assert!(ours.due.is_some());
                ours.flush().await.unwrap();
                assert!(ours.due.is_none());
            };
            let (_, read) = tokio::join!(answer, async { theirs.read_exact(&mut [0; 100]).await });
            read.unwrap();
        }
    }
}
