//! Lists the processes that may be the node to trace, and collects evidence about each of them, for example file locks.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::ClockId;
use procfs::process::Process;

use super::file_locks::{self, FileId};
use crate::bitcoin_core::BINARIES;
use crate::node_process::{NodeProcess, without_mark};
use crate::sys;

/// A process that runs a node's binary, with the evidence by which the exporter decides whether it is the node to
/// trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    pub node: NodeProcess,
    /// PID of the candidate's parent process.
    pub parent: i32,
    /// Time since the process was started.
    pub age: Duration,
    /// Files that the process has locked for writing, as [`file_locks`] reads them.
    pub locks: BTreeSet<FileId>,
    /// Command line of the process: the path of the program, then its arguments.
    pub command: Vec<Vec<u8>>,
    /// Paths of the control groups of the process, for example `/system.slice/bitcoind.service`.
    pub cgroups: Vec<String>,
}

impl Candidate {
    /// The candidate for this process, with evidence that this function collects; `None` if the process has ended.
    pub fn from_process(node: &NodeProcess) -> Option<Self> {
        Self::read(node.pid, node.binary.clone(), file_locks::held().remove(&node.pid).unwrap_or_default())
    }

    fn read(pid: i32, binary: PathBuf, locks: BTreeSet<FileId>) -> Option<Self> {
        let stat =
            Process::new(pid).ok()?.stat().ok().filter(|stat| !matches!(stat.state, 'Z' | 'X' | 'x'))?;
        let started = Duration::from_secs_f64(stat.starttime as f64 / procfs::ticks_per_second() as f64);
        let booted = sys::clock(ClockId::CLOCK_BOOTTIME);
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = command.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect();
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let cgroups =
            cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).map(String::from).collect();
        Some(Candidate {
            node: NodeProcess { pid, started: stat.starttime, binary },
            parent: stat.ppid,
            age: booted.saturating_sub(started),
            locks,
            command,
            cgroups,
        })
    }

    /// A candidate that ended before the exporter collected evidence about it.
    pub fn without_evidence(node: NodeProcess) -> Self {
        let (age, locks) = (Duration::ZERO, BTreeSet::new());
        Candidate { node, parent: 0, age, locks, command: Vec::new(), cgroups: Vec::new() }
    }

    /// PID and start time, which identify the process among all processes since boot.
    pub fn id(&self) -> (i32, u64) {
        (self.node.pid, self.node.started)
    }

    /// Name of the systemd service that the process runs in: the innermost control group whose name ends in `.service`.
    pub fn service(&self) -> Option<&str> {
        let mut parts = self.cgroups.iter().flat_map(|path| path.rsplit('/'));
        parts.find(|part| part.ends_with(".service"))
    }

    /// Whether the process runs in this systemd unit. `unit` may have the suffix of the unit type (`bitcoind.service`)
    /// or omit it (`bitcoind`).
    pub fn is_in_unit(&self, unit: &str) -> bool {
        let is_unit = |part: &str| part == unit || part.strip_suffix(".service") == Some(unit);
        self.cgroups.iter().flat_map(|path| path.split('/')).any(is_unit)
    }

    /// Whether the last `-datadir` argument on the command line of the process is an absolute path of this data
    /// directory.
    pub fn names_datadir(&self, datadir: &Path) -> bool {
        let mut named = self.command.iter().filter_map(|argument| {
            let argument = argument.strip_prefix(b"-")?;
            argument.strip_prefix(b"-").unwrap_or(argument).strip_prefix(b"datadir=")
        });
        let named = named.next_back().map(|path| Path::new(OsStr::from_bytes(path)));
        let real = |path: &Path| path.canonicalize().unwrap_or(path.components().collect());
        named.is_some_and(|path| path.is_absolute() && real(path) == real(datadir))
    }
}

/// Lists the processes that run `binary`, the path that the user named. If `binary` is `None`, lists the processes that
/// run one of [`BINARIES`], and the processes that run `last`, the binary of the node that is traced or was traced
/// last.
///
/// # Errors
/// `/proc` cannot be read.
pub fn scan(binary: Option<&Path>, last: Option<&Path>) -> Result<Vec<Candidate>> {
    let pids = pids().context("cannot list processes; is /proc mounted?")?;
    let binary_of = matcher(binary, last);
    let found: Vec<_> = pids.into_iter().filter_map(|pid| Some((pid, binary_of(pid)?))).collect();
    let mut locks = if found.is_empty() { BTreeMap::new() } else { file_locks::held() };
    let read = |(pid, binary)| Candidate::read(pid, binary, locks.remove(&pid).unwrap_or_default());
    Ok(found.into_iter().filter_map(read).collect())
}

/// PIDs of all processes, in ascending order.
fn pids() -> io::Result<Vec<i32>> {
    let entries = fs::read_dir("/proc")?.flatten();
    let mut pids: Vec<i32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    Ok(pids)
}

/// A function that maps a PID to the path of the process's binary, or to `None` if the scan does not search for that
/// binary. If the exporter has no permission to read the link to the process's binary, the function compares the name
/// and the command line of the process with the searched path.
fn matcher(binary: Option<&Path>, last: Option<&Path>) -> impl Fn(i32) -> Option<PathBuf> {
    let searched = binary.or(last).map(Path::to_path_buf);
    let is_named = binary.is_some();
    let file = searched.as_ref().and_then(|path| path.metadata().ok()).map(|file| (file.dev(), file.ino()));
    let path = searched.as_ref().map(|path| path.canonicalize().unwrap_or(path.clone()));
    // The kernel keeps only the first fifteen bytes of a process name, so only these bytes are compared.
    let name = path.as_ref().and_then(|path| path.file_name()?.to_str());
    let comm = name.map(|name| name.get(..15).unwrap_or(name).to_string());
    move |pid| match fs::read_link(format!("/proc/{pid}/exe")) {
        Ok(exe) => {
            let exe = without_mark(&exe);
            // A process in another mount namespace has another path for the same file, so the device and inode of the
            // file are compared too.
            let is_same_file = || {
                let running = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
                Some(file? == (running.dev(), running.ino()))
            };
            let is_wanted = path.as_ref().is_some_and(|path| *path == exe || is_same_file() == Some(true));
            let is_node = || BINARIES.iter().any(|name| exe.file_name().is_some_and(|file| file == *name));
            (is_wanted || (!is_named && is_node())).then_some(exe)
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let running = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            let is_wanted =
                Some(running.trim_end()) == comm.as_deref() && may_have_started(pid, path.as_deref()?);
            is_wanted.then(|| path.clone())?
        }
        Err(_) => None,
    }
}

/// Whether the program path that a process's command line begins with can be a path of this binary. A relative path is
/// always accepted. An absolute path has to resolve to the binary, or has to be the end of the binary's path, because a
/// path inside a container lacks the container's root directory.
fn may_have_started(pid: i32, binary: &Path) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let program = Path::new(OsStr::from_bytes(command.split(|&byte| byte == 0).next().unwrap_or_default()));
    let Ok(inside) = program.strip_prefix("/") else { return true };
    binary.ends_with(inside) || program.canonicalize().is_ok_and(|program| program == binary)
}
