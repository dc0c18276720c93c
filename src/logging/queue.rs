//! Queues of output lines for stdout, stderr, the journal and the log file. Each queue has its own writer thread, so a
//! thread that logs never waits for a slow target.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Maximum number of lines in the queue of one log target; further lines are dropped. The queue fills only with debug
/// logging, or if the target accepts no lines, for example a pipe that no process reads.
pub const MAX_WAITING_LINES: usize = 10_000;
/// Maximum time for which the exiting exporter waits until the queued lines of one target are written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Number of lines that were not written because a queue was full or a write failed, summed over all targets.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Number of log lines that were not written because their target accepted them too slowly or not at all.
pub fn dropped_lines() -> u64 {
    DROPPED.load(Relaxed)
}

/// The sending end of the queue of one log target (stdout, stderr, the journal or the log file). Pushing a line never
/// blocks.
#[derive(Clone)]
pub struct LineQueue<T>(SyncSender<Option<T>>);

impl<T> LineQueue<T> {
    pub fn push(&self, line: T) {
        if self.0.try_send(Some(line)).is_err() {
            DROPPED.fetch_add(1, Relaxed);
        }
    }
}

/// Each write queues its bytes as one line.
impl Write for LineQueue<Vec<u8>> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Handle of the thread that writes the queued lines to one log target. Dropping the handle waits until the queued
/// lines are written, for at most a second.
pub struct LogWriter {
    end: Box<dyn Fn() -> bool + Send>,
    ended: Receiver<()>,
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        let deadline = Instant::now() + FLUSH_TIMEOUT;
        while !(self.end)() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        // The writer thread drops its sender `alive` when it exits, which ends this wait.
        let left = deadline.saturating_duration_since(Instant::now());
        let _ = self.ended.recv_timeout(left);
    }
}

/// Starts a thread with this name that passes each queued line to `write`. Lines whose write fails are counted as
/// dropped.
///
/// # Errors
/// The thread cannot be started.
pub fn start<T: Send + 'static>(
    name: &str,
    capacity: usize,
    mut write: impl FnMut(T) -> io::Result<()> + Send + 'static,
) -> io::Result<(LineQueue<T>, LogWriter)> {
    let (sender, lines) = sync_channel::<Option<T>>(capacity);
    let (alive, ended) = sync_channel::<()>(0);
    thread::Builder::new().name(name.into()).spawn(move || {
        let _alive = alive;
        while let Ok(Some(line)) = lines.recv() {
            if write(line).is_err() {
                DROPPED.fetch_add(1, Relaxed);
            }
        }
    })?;
    let last = sender.clone();
    let end = Box::new(move || !matches!(last.try_send(None), Err(TrySendError::Full(_))));
    Ok((LineQueue(sender), LogWriter { end, ended }))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn blocked_or_failed_log_target_loses_only_lines() {
        let (go, blocked) = channel::<()>();
        let (written, lines) = channel();
        let (queue, writer) = start("test", 2, move |line: u32| {
            let _ = blocked.recv();
            if line == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let _ = written.send(line);
            Ok(())
        })
        .unwrap();
        let before = dropped_lines();
        // The thread has taken one line, and two lines are queued.
        (1..=100).for_each(|line| queue.push(line));
        assert!((97..=98).contains(&(dropped_lines() - before)));
        (0..3).for_each(|_| go.send(()).unwrap());
        assert_eq!([lines.recv(), lines.recv()], [Ok(1), Ok(2)]);
        let before = dropped_lines();
        drop(go);
        queue.push(0);
        drop(writer);
        assert_eq!(dropped_lines() - before, 1);
    }
}
