//! Finding the node's process, and noticing its end.

use std::fmt;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc;
use procfs::process::{Process, all_processes};

/// Names of binaries that hold a node.
const BINARIES: [&str; 3] = ["bitcoin-node", "bitcoind", "bitcoin-qt"];

/// A process that may be the node.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its process id.
    pub pid: i32,
    /// The path of its binary when it was started.
    pub binary: PathBuf,
}

impl Node {
    /// The process of this id.
    pub fn of(pid: i32) -> Result<Self> {
        let process = Process::new(pid).with_context(|| format!("there is no process {pid}"))?;
        match process.exe() {
            Ok(binary) => Ok(Node { pid, binary: without_mark(&binary) }),
            Err(error) => bail!(
                "cannot see the binary of process {pid} ({error}): run as the node's user, or with CAP_SYS_PTRACE, or name \
                 it with --bitcoind"
            ),
        }
    }

    /// A path to the binary that stays right when the file is replaced.
    pub fn running_binary(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/exe", self.pid))
    }

    /// Becomes readable when the process ends.
    pub fn end(&self) -> Result<OwnedFd> {
        // SAFETY: takes two numbers, and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        let fd = Errno::result(fd).with_context(|| format!("cannot watch process {}", self.pid))?;
        // SAFETY: the system call has just made this descriptor, and nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.binary.display())
    }
}

/// All processes of this binary; without one, of all binaries that hold a node. Processes that we may not look into are
/// told by their name alone.
pub fn candidates(binary: Option<&Path>) -> Result<Vec<Node>> {
    let file = binary.and_then(|path| path.metadata().ok()).map(|file| (file.dev(), file.ino()));
    let path = binary.map(|path| path.canonicalize().unwrap_or(path.into()));
    let is_node = |process: &Process| match process.exe() {
        Ok(exe) => {
            let exe = without_mark(&exe);
            let same_file = || {
                let running = std::fs::metadata(format!("/proc/{}/exe", process.pid)).ok()?;
                Some(file? == (running.dev(), running.ino()))
            };
            let wanted = match &path {
                Some(path) => *path == exe || same_file() == Some(true),
                None => BINARIES.iter().any(|name| exe.file_name().is_some_and(|file| file == *name)),
            };
            wanted.then_some(exe)
        }
        Err(_) => {
            let stat = process.stat().ok().filter(|stat| stat.state != 'Z')?;
            let path = path.clone()?;
            // Of a name the kernel keeps fifteen bytes.
            let name = path.file_name()?.to_str()?;
            (stat.comm == name.get(..15).unwrap_or(name)).then_some(path)
        }
    };
    let processes = all_processes().context("cannot list processes; is /proc mounted?")?.flatten();
    Ok(processes.filter_map(|it| Some(Node { pid: it.pid, binary: is_node(&it)? })).collect())
}

/// Without what the kernel appends when the file was removed or replaced.
fn without_mark(path: &Path) -> PathBuf {
    path.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map_or(path.into(), PathBuf::from)
}
