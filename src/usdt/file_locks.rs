//! Lists the files that each process has locked for writing, from `/proc/locks`.
//!
//! A node locks the file `.lock` in the directory of its network (for mainnet, the data directory) as long as it runs.
//! No child process inherits this lock, which therefore identifies the process of the node. Every user can read in
//! `/proc/locks` the PID of the process that holds the lock, and the device and inode of the file.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::stat::{major, minor};

use crate::bitcoin_core::CHAINS;

/// Identity of a file, independent of its path: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId {
    /// Major and minor number of the file system's device.
    pub device: (u64, u64),
    pub inode: u64,
}

/// Files that are locked for writing, by PID of the process that holds the lock. Empty if `/proc/locks` cannot be read.
pub fn held() -> BTreeMap<i32, BTreeSet<FileId>> {
    parse(&std::fs::read_to_string("/proc/locks").unwrap_or_default())
}

/// Parses `/proc/locks`. A line is for example `1: POSIX  ADVISORY  WRITE 1234 fe:00:464 0 EOF`. Lines with an arrow
/// before the type of the lock are skipped: they describe a process that waits for the lock.
fn parse(text: &str) -> BTreeMap<i32, BTreeSet<FileId>> {
    let mut held: BTreeMap<i32, BTreeSet<FileId>> = BTreeMap::new();
    for line in text.lines() {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, "POSIX", _, "WRITE", pid, file, ..] = fields[..] else { continue };
        let [major, minor, inode] = file.split(':').collect::<Vec<_>>()[..] else { continue };
        let hex = |text| u64::from_str_radix(text, 16).ok();
        if let (Ok(pid), Some(device), Ok(inode)) = (pid.parse(), hex(major).zip(hex(minor)), inode.parse()) {
            held.entry(pid).or_default().insert(FileId { device, inode });
        }
    }
    held
}

/// The `.lock` files of a data directory: in the directory itself, and in the directories of the networks in it.
/// `datadir` can also be the directory of a network.
///
/// # Errors
/// A directory or a `.lock` file cannot be accessed.
pub fn datadir_lock_files(datadir: &Path) -> io::Result<Vec<FileId>> {
    // The name of a custom signet's directory begins with `signet`.
    let is_network =
        |name: &str| name.starts_with("signet") || CHAINS.iter().any(|chain| chain.folder == name);
    let mut folders = vec![datadir.to_path_buf()];
    for entry in std::fs::read_dir(datadir)?.flatten() {
        if entry.file_name().to_str().is_some_and(is_network) {
            folders.push(entry.path());
        }
    }
    let mut files = Vec::new();
    for folder in folders {
        match std::fs::metadata(folder.join(".lock")) {
            Ok(file) => {
                files.push(FileId { device: (major(file.dev()), minor(file.dev())), inode: file.ino() })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_read_by_process_and_waiters_skipped() {
        let text = "1: POSIX  ADVISORY  WRITE 1234 fe:00:464 0 EOF\n\
                    1: -> POSIX  ADVISORY  WRITE 1235 fe:00:464 0 EOF\n\
                    2: FLOCK  ADVISORY  WRITE 1236 00:1f:7 0 EOF\n\
                    3: POSIX  ADVISORY  READ  1237 00:1f:7 128 128\n\
                    4: OFDLCK ADVISORY  WRITE -1 00:1f:7 0 EOF\n\
                    5: POSIX  ADVISORY  WRITE 1234 00:1f:8 0 EOF\n";
        let file = |device, inode| FileId { device, inode };
        let expected = BTreeSet::from([file((0xfe, 0), 464), file((0, 0x1f), 8)]);
        assert_eq!(parse(text), BTreeMap::from([(1234, expected)]));
        assert_eq!(parse("nonsense\n1: POSIX ADVISORY WRITE 1 fe:464 0 EOF"), BTreeMap::new());
    }

    #[test]
    fn data_directory_has_a_lock_for_each_network() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(datadir_lock_files(dir.path()).unwrap(), []);
        for folder in ["regtest", "signet_0123", "blocks"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
            std::fs::write(dir.path().join(folder).join(".lock"), "").unwrap();
        }
        assert_eq!(datadir_lock_files(dir.path()).unwrap().len(), 2);
        assert_eq!(datadir_lock_files(&dir.path().join("regtest")).unwrap().len(), 1);
        assert!(datadir_lock_files(&dir.path().join("missing")).is_err());
    }
}
