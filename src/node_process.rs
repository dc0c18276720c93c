//! The node as a process: finding it, what it runs, noticing its end.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use nix::libc::ESRCH;
use nix::sys::socket::{getsockopt, sockopt};
use procfs::process::{Process, Stat};
use tokio::net::UnixStream;

use crate::supervisor::SupervisorClient;
use crate::sys;

/// A process that may be the node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeProcess {
    /// Its process id.
    pub pid: i32,
    /// When it was started, in clock ticks since boot: a process id is used again, this pair is not.
    pub started: u64,
    /// The path of its binary when it was started.
    pub binary: PathBuf,
}

impl NodeProcess {
    /// The process of this id; its binary is `binary` if we may not see it.
    pub fn from_pid(pid: i32, binary: Option<&Path>) -> Result<Self> {
        let process = Process::new(pid).with_context(|| format!("there is no process {pid}"))?;
        let started = process.stat().with_context(|| format!("there is no process {pid}"))?.starttime;
        match (binary, process.exe()) {
            (Some(binary), _) => Ok(NodeProcess { pid, started, binary: binary.into() }),
            (None, Ok(binary)) => Ok(NodeProcess { pid, started, binary: without_mark(&binary) }),
            (None, Err(error)) => bail!(
                "cannot read the binary's path of process {pid} ({error}): run as the node's user, or with CAP_SYS_PTRACE, \
                 or pass the path with --bitcoind"
            ),
        }
    }

    /// Whether it runs, and its id was not used again.
    pub fn is_running(&self) -> bool {
        let stat = Process::new(self.pid).and_then(|process| process.stat());
        stat.is_ok_and(|stat| stat.starttime == self.started && !matches!(stat.state, 'Z' | 'X' | 'x'))
    }

    /// A path to the binary that stays right when the file is replaced.
    pub fn running_binary(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/exe", self.pid))
    }

    /// Becomes readable when the process ends; `None` if it has.
    pub fn end(&self) -> Result<Option<OwnedFd>> {
        match sys::pidfd_open(self.pid) {
            // Its id may be that of another process by now.
            Ok(end) => Ok(self.is_running().then_some(end)),
            Err(error) if error.raw_os_error() == Some(ESRCH) && self.is_running() => bail!(
                "cannot watch process {}: /proc belongs to another PID namespace; in a container, use --pid=host",
                self.pid
            ),
            Err(error) if error.raw_os_error() == Some(ESRCH) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot watch process {}", self.pid)),
        }
    }
}

impl fmt::Display for NodeProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.binary.display())
    }
}

/// The node's process at the other end of a socket. It is not visible if it is in another PID namespace, and if another program, a
/// proxy, listens in front of the node.
pub struct SocketPeer {
    pid: Option<i32>,
    supervisor: Option<Rc<SupervisorClient>>,
    /// It was seen to be a node.
    is_node: Cell<bool>,
    /// Becomes readable when the process ends.
    end: Option<OwnedFd>,
}

impl SocketPeer {
    /// The process that listens on the other end.
    pub fn from_stream(stream: &UnixStream) -> Self {
        let credentials = getsockopt(stream, sockopt::PeerCredentials).ok();
        Self::from_pid(credentials.map_or(0, |peer| peer.pid()), None)
    }

    /// The process of this id; 0 for one in another PID namespace. `supervisor` reads values that only an unconfined process may read.
    pub fn from_pid(pid: i32, supervisor: Option<Rc<SupervisorClient>>) -> Self {
        let pid = Some(pid).filter(|&pid| pid > 0);
        SocketPeer {
            pid,
            supervisor,
            is_node: Cell::new(false),
            end: pid.and_then(|pid| sys::pidfd_open(pid).ok()),
        }
    }

    /// The process, if it can be seen in `/proc` and is a node, as its threads show.
    fn node(&self) -> Option<Process> {
        let process = Process::new(self.pid?).ok()?;
        if !self.is_node.get() {
            let threads = process.tasks().ok()?.flatten().filter_map(|task| Some(task.stat().ok()?.comm));
            self.is_node.set(are_node_threads(threads));
        }
        self.is_node.get().then_some(process)
    }

    /// The node's process, to look at what it uses; `None` if it is not visible.
    pub fn process(&self) -> Option<ProcessUsage> {
        let process = self.node()?;
        let started = process.stat().ok()?.starttime;
        Some(ProcessUsage { process, started, supervisor: self.supervisor.clone() })
    }

    /// Whether a thread of this name runs in the node; `None` if its process is not visible.
    pub fn runs_thread(&self, name: &str) -> Option<bool> {
        let tasks = self.node()?.tasks().ok()?;
        let names = tasks.flatten().filter_map(|task| Some(task.stat().ok()?.comm));
        Some(names.into_iter().any(|comm| comm == name))
    }

    /// Whether the node shuts down, by the name that its main thread has from then on; `None` if its process is not
    /// visible.
    pub fn is_shutting_down(&self) -> Option<bool> {
        let stat = self.node()?.stat().ok()?;
        Some(stat.comm == "b-shutoff")
    }

    /// Resolves when it has ended; an error if the system cannot report it, or if it is not the node.
    pub async fn ended(self) -> io::Result<()> {
        let is_proxy = self.pid.is_some_and(|pid| Process::new(pid).is_ok()) && self.node().is_none();
        if is_proxy {
            return Err(io::ErrorKind::NotFound.into());
        }
        let end = self.end.ok_or(io::ErrorKind::NotFound)?;
        sys::watched(end)?.readable().await.map(drop)
    }
}

/// Whether threads of these names are a node's. Bitcoin Core's names begin with `b-`, that of the thread which serves the socket
/// included.
fn are_node_threads(mut names: impl Iterator<Item = String>) -> bool {
    names.any(|name| name.starts_with("b-"))
}

/// Resource usage of a process.
pub struct ProcessUsage {
    process: Process,
    /// When it was started, in clock ticks since boot: a process id is used again, this pair is not.
    started: u64,
    supervisor: Option<Rc<SupervisorClient>>,
}

/// Values that only a process of the same user may read, and none that Landlock confines.
#[derive(Default)]
pub struct PrivateUsage {
    /// Open descriptors.
    pub open_fds: Option<u64>,
    /// Bytes that were read from and written to disks.
    pub io: Option<(u64, u64)>,
}

/// CPU time of a thread.
pub struct ThreadTime {
    /// Its id.
    pub id: i32,
    /// Its name, of which the kernel keeps fifteen bytes.
    pub name: String,
    /// User and system time.
    pub seconds: f64,
}

impl ProcessUsage {
    /// Which process this is, of all since boot.
    pub fn id(&self) -> (i32, u64) {
        (self.process.pid, self.started)
    }

    /// `None` when it has ended.
    pub fn stat(&self) -> Option<Stat> {
        self.process.stat().ok().filter(|stat| stat.starttime == self.started)
    }

    /// Of the threads that run.
    pub fn threads(&self) -> Vec<ThreadTime> {
        let tasks = self.process.tasks().into_iter().flatten().flatten();
        let times = tasks.filter_map(|task| {
            let stat = task.stat().ok()?;
            // In nanoseconds: a node has some fifty threads, and each may have worked for less than a hundredth.
            let precise = task.schedstat().ok().map(|it| it.sum_exec_runtime as f64 / 1e9);
            Some(ThreadTime {
                id: task.tid,
                seconds: precise.unwrap_or_else(|| cpu_seconds(&stat)),
                name: stat.comm,
            })
        });
        times.collect()
    }

    /// As the supervising process sees it.
    pub async fn private(&self) -> PrivateUsage {
        let Some(supervisor) = &self.supervisor else { return PrivateUsage::default() };
        let (open_fds, io) = supervisor.usage().await;
        PrivateUsage { open_fds, io }
    }
}

/// CPU time of a process or thread, user and system.
pub fn cpu_seconds(stat: &Stat) -> f64 {
    (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64
}

/// Without the mark that the kernel appends when the file was removed or replaced.
pub(crate) fn without_mark(path: &Path) -> PathBuf {
    path.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map_or(path.into(), PathBuf::from)
}

#[cfg(test)]
#[test]
fn nodes_are_recognized_by_their_threads() {
    let is_node = |names: &[&str]| are_node_threads(names.iter().map(|name| name.to_string()));
    assert!(is_node(&["bitcoin-node", "b-capnp-loop", "b-scheduler"]));
    assert!(is_node(&["b-shutoff"]), "it shuts down");
    assert!(!is_node(&["socat"]) && !is_node(&["nginx", "nginx"]) && !is_node(&["bitcoin-node"]));
}
