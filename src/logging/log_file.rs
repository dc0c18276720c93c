//! A log file that is reopened when its path refers to another file, for example after logrotate.

use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::files;

/// Minimum time between two checks whether the log file's path still refers to the open file.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// An open log file. At most once a second, a write first checks whether the log file's path still refers to the open
/// file. If the path refers to another file, the write opens that file and uses it from now on.
pub struct LogFile {
    path: PathBuf,
    file: File,
    checked: Option<Instant>,
}

impl LogFile {
    /// Opens the log file at `path`, and creates the file if it does not exist.
    ///
    /// # Errors
    /// The errors of [`files::append_to`].
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(LogFile { path: path.into(), file: files::append_to(path)?, checked: None })
    }

    /// Opens the log file again if its path now refers to another file. If the other file cannot be opened, keeps the
    /// open file.
    fn reopen_if_moved(&mut self) {
        if self.checked.is_some_and(|checked| checked.elapsed() < CHECK_INTERVAL) {
            return;
        }
        self.checked = Some(Instant::now());
        let identity = |file: io::Result<Metadata>| file.map(|file| (file.dev(), file.ino())).ok();
        if identity(self.file.metadata()) != identity(self.path.metadata())
            && let Ok(file) = files::append_to(&self.path)
        {
            self.file = file;
        }
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.reopen_if_moved();
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    #[test]
    fn renamed_or_removed_file_is_opened_again() {
        let dir = TempDir::new().unwrap();
        let (path, renamed) = (dir.path().join("log"), dir.path().join("log.1"));
        let mut log = LogFile::open(&path).unwrap();
        let mut write = |line: &str| {
            log.checked = None;
            log.write_all(line.as_bytes()).unwrap();
        };
        write("one ");
        write("two ");
        std::fs::rename(&path, &renamed).unwrap();
        write("three ");
        assert_eq!(std::fs::read_to_string(&renamed).unwrap(), "one two ");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three ");
        std::fs::remove_file(&path).unwrap();
        write("four ");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "four ");
        // After this rename no file can be created at the path, so `log` continues to write to the open file.
        std::fs::rename(dir.path(), dir.path().with_extension("moved")).unwrap();
        write("five ");
        std::fs::rename(dir.path().with_extension("moved"), dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "four five ");
    }
}
