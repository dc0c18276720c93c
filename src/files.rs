//! Reads and opens files whose paths the user configures: certificates, keys, configuration files, password files, log
//! files.
//!
//! Opening or reading a file can block indefinitely, for example a FIFO without a writer, or a network mount whose
//! server does not respond. Each file is therefore opened on a separate thread with a timeout, and read only if it is a
//! regular file (symbolic links are followed).

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::time::{Duration, Instant};

use nix::libc::{ENXIO, O_NONBLOCK};
use tokio::sync::oneshot;

/// Maximum size of a file that [`read`] accepts. This maximum is far above the size of all files that users configure.
/// For example, the operating system's bundle of CA certificates has 220 kB.
const MAX_BYTES: u64 = 4 << 20;
/// Timeout for opening or reading a file.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// If an unfinished attempt to open or read a path has lasted longer than this time, new attempts on the same path
/// fail at once.
const BLOCKED_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum number of unfinished attempts to open or read one path.
const MAX_ATTEMPTS: usize = 4;

/// An attempt to read or open a file: the path of the file, and the start time.
type Attempt = (PathBuf, Instant);

/// All unfinished attempts to read or open a file. The list has only weak references to the attempts. The thread that
/// reads or opens the file, which may block indefinitely, owns the attempt and drops it when the operation finishes.
static ATTEMPTS: Mutex<Vec<Weak<Attempt>>> = Mutex::new(Vec::new());

/// Reads a file of at most 4 MiB. Blocks for at most five seconds.
///
/// # Errors
/// The file cannot be read within the timeout, is not a regular file, or is too large.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    with_timeout(path, READ_TIMEOUT, |path| read_regular(path, MAX_BYTES))?
}

/// Reads a UTF-8 file like [`read`].
///
/// # Errors
/// The errors of [`read`], or the file is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?).map_err(|error| Error::new(ErrorKind::InvalidData, error))
}

/// Opens a file for appending, and creates the file if it does not exist. Blocks for at most five seconds. If the path
/// is a FIFO, it must have a reader, and a write that does not fit into the FIFO's buffer fails instead of blocking.
///
/// # Errors
/// The file cannot be opened within the timeout, or is a FIFO without a reader.
pub fn append_to(path: &Path) -> Result<File> {
    let open = |path: &Path| File::options().append(true).create(true).custom_flags(O_NONBLOCK).open(path);
    with_timeout(path, READ_TIMEOUT, open)?.map_err(|error| match error.raw_os_error() {
        Some(ENXIO) => Error::new(error.kind(), "it is a FIFO without a reader; start the reader first"),
        _ => error,
    })
}

/// Runs `read` with this path on a separate thread, and waits at most five seconds for its result.
///
/// # Errors
/// `read` returned no result within the timeout, or earlier attempts to open or read the path are still unfinished.
pub async fn on_thread<T: Send + 'static>(
    path: &Path,
    read: impl FnOnce(&Path) -> T + Send + 'static,
) -> Result<T> {
    let (send, receive) = oneshot::channel();
    start(path, read, |result| drop(send.send(result)))?;
    match tokio::time::timeout(READ_TIMEOUT, receive).await {
        Ok(Ok(result)) => Ok(result),
        _ => Err(blocked()),
    }
}

/// Like [`on_thread`], but blocks the calling thread, for at most `timeout`.
fn with_timeout<T: Send + 'static>(
    path: &Path,
    timeout: Duration,
    read: impl FnOnce(&Path) -> T + Send + 'static,
) -> Result<T> {
    let (send, receive) = mpsc::sync_channel(1);
    start(path, read, move |result| drop(send.send(result)))?;
    receive.recv_timeout(timeout).map_err(|_| blocked())
}

fn start<T: 'static>(
    path: &Path,
    read: impl FnOnce(&Path) -> T + Send + 'static,
    send: impl FnOnce(T) + Send + 'static,
) -> Result<()> {
    let attempt = begin(path)?;
    let thread = std::thread::Builder::new().name("file".into());
    thread.spawn(move || {
        let result = read(&attempt.0);
        drop(attempt);
        send(result);
    })?;
    Ok(())
}

fn begin(path: &Path) -> Result<Arc<Attempt>> {
    let mut attempts = ATTEMPTS.lock().expect("nobody panics holding it");
    attempts.retain(|attempt| attempt.strong_count() > 0);
    let earlier = attempts.iter().filter_map(Weak::upgrade).filter(|attempt| attempt.0 == path);
    let earlier: Vec<_> = earlier.collect();
    if earlier.len() >= MAX_ATTEMPTS || earlier.iter().any(|it| it.1.elapsed() > BLOCKED_TIMEOUT) {
        return Err(blocked());
    }
    let attempt = Arc::new((path.to_path_buf(), Instant::now()));
    attempts.push(Arc::downgrade(&attempt));
    Ok(attempt)
}

fn blocked() -> Error {
    Error::new(ErrorKind::TimedOut, "reading it takes too long; check its file system")
}

/// Reads a regular file. Blocks as long as the file system blocks.
///
/// # Errors
/// The file cannot be read, is not a regular file, or is larger than `max_bytes`.
pub fn read_regular(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let irregular = || Error::new(ErrorKind::InvalidInput, "it is not a regular file");
    // The type is checked before the file is opened, because opening a tape drive or a FIFO has side effects.
    if !path.metadata()?.is_file() {
        return Err(irregular());
    }
    // The file may have been replaced with a FIFO after the check. Opening a FIFO would block without O_NONBLOCK.
    let file = File::options().read(true).custom_flags(O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(irregular());
    }
    let mut bytes = Vec::new();
    file.take(max_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("it is larger than {max_bytes} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use tempfile::TempDir;

    #[test]
    fn regular_files_are_read_through_links() {
        let dir = TempDir::new().unwrap();
        let (path, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&path, "text").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(read_text(&link).unwrap(), "text");
        assert_eq!(read_regular(&path, 4).unwrap(), b"text");
        assert_eq!(read_regular(&path, 3).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(read(&dir.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn other_files_are_rejected_without_blocking() {
        let dir = TempDir::new().unwrap();
        let fifo = dir.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        for path in [fifo.as_path(), dir.path(), Path::new("/dev/zero")] {
            let error = read(path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{}: {error}", path.display());
        }
    }

    #[test]
    fn fifos_are_appended_to_without_blocking() {
        use std::io::Write;
        let dir = TempDir::new().unwrap();
        let (path, fifo) = (dir.path().join("file"), dir.path().join("fifo"));
        for line in ["one", "two"] {
            append_to(&path).unwrap().write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(read_text(&path).unwrap(), "onetwo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let error = append_to(&fifo).unwrap_err();
        assert!(error.to_string().contains("FIFO without a reader"), "{error}");
        let _reader = File::options().read(true).custom_flags(O_NONBLOCK).open(&fifo).unwrap();
        let mut writer = append_to(&fifo).unwrap();
        // 1 MiB is more than the buffer of a FIFO.
        assert_eq!(writer.write_all(&[0; 1 << 20]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn blocking_file_uses_few_threads_and_is_read_later() {
        let path = Path::new("/a mount that does not answer");
        let (unblock, blocked) = mpsc::channel::<()>();
        let blocked = std::sync::Arc::new(Mutex::new(blocked));
        for _ in 0..MAX_ATTEMPTS {
            let blocked = blocked.clone();
            let read = move |_: &Path| blocked.lock().unwrap().recv().is_ok();
            let error = with_timeout(path, Duration::ZERO, read).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut);
        }
        let no_thread = |_: &Path| -> u8 { unreachable!("there are enough threads") };
        assert_eq!(with_timeout(path, READ_TIMEOUT, no_thread).unwrap_err().kind(), ErrorKind::TimedOut);
        drop(unblock);
        let is_listed = |attempt: &Weak<Attempt>| attempt.upgrade().is_some_and(|it| it.0 == path);
        while ATTEMPTS.lock().unwrap().iter().any(is_listed) {
            std::thread::yield_now();
        }
        assert_eq!(with_timeout(path, READ_TIMEOUT, |_| 7).unwrap(), 7);
    }

    #[tokio::test]
    async fn waiting_for_a_file_blocks_no_other_task() {
        let (unblock, blocked) = mpsc::channel();
        let path = Path::new("/another such mount");
        let mut read = Box::pin(on_thread(path, move |_| blocked.recv()));
        assert!(read.as_mut().now_or_never().is_none());
        unblock.send(7).unwrap();
        assert_eq!(read.await.unwrap(), Ok(7));
    }
}
