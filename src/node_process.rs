//! Identifies the node's process, reads its resource usage, and detects its exit. Some values can be read only by the
//! supervisor, the process of bitcoind-ipc-exporter that starts the exporter process and is not restricted by the
//! sandbox's file rules.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use nix::libc::ESRCH;
use nix::time::ClockId;
use procfs::process::{Process, Stat};

use crate::supervisor::{PrivateUsage, SupervisorClient};
use crate::sys;

/// A process that may be the node, identified by its PID and its start time.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeProcess {
    /// PID of the process.
    pub pid: i32,
    /// Start time in clock ticks since boot. A PID is reused, but the pair of PID and start time is not.
    pub started: u64,
    /// Path of the binary when the process was started.
    pub binary: PathBuf,
}

impl NodeProcess {
    /// The process with this PID. If `binary` is `None`, the path of the process's binary is read from `/proc`.
    ///
    /// # Errors
    /// The process does not exist, or the exporter lacks the permission to read the path of its binary.
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

    /// Whether the process still runs. The result is false if another process has the same PID now.
    pub fn is_running(&self) -> bool {
        let stat = Process::new(self.pid).and_then(|process| process.stat());
        stat.is_ok_and(|stat| stat.starttime == self.started && !matches!(stat.state, 'Z' | 'X' | 'x'))
    }

    /// The path `/proc/PID/exe`, which refers to the binary that the process runs even if the file was replaced.
    pub fn running_binary(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/exe", self.pid))
    }

    /// Opens a pidfd, a descriptor that becomes readable when the process exits; `None` if the process has already
    /// exited.
    ///
    /// # Errors
    /// The process cannot be watched, for example because it is in another PID namespace.
    pub fn end(&self) -> Result<Option<OwnedFd>> {
        match sys::pidfd_open(self.pid) {
            // Before the pidfd was opened, the kernel may have assigned the PID to another process.
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

/// The process at the other end of the exporter's IPC connection: the node, or a proxy that forwards to the node. The
/// node's process is not visible if it is in another PID namespace or behind a proxy.
pub struct SocketPeer {
    pid: Option<i32>,
    supervisor: Option<Rc<SupervisorClient>>,
    /// Whether the names of the process's threads have shown that the process is a node.
    is_node: Cell<bool>,
    /// The pidfd of the process, which becomes readable when the process exits.
    end: Option<OwnedFd>,
}

impl SocketPeer {
    /// The process with this PID. The PID is 0 for a process in another PID namespace. `supervisor` is the client with
    /// which the exporter requests the values that only the supervisor may read.
    pub fn from_pid(pid: i32, supervisor: Option<Rc<SupervisorClient>>) -> Self {
        let pid = Some(pid).filter(|&pid| pid > 0);
        SocketPeer {
            pid,
            supervisor,
            is_node: Cell::new(false),
            end: pid.and_then(|pid| sys::pidfd_open(pid).ok()),
        }
    }

    /// The node's process; `None` if the process is not visible in `/proc`, or if the names of its threads do not show
    /// that it is a node.
    fn node(&self) -> Option<Process> {
        let process = Process::new(self.pid?).ok()?;
        if !self.is_node.get() {
            let threads = process.tasks().ok()?.flatten().filter_map(|task| Some(task.stat().ok()?.comm));
            self.is_node.set(are_node_threads(threads));
        }
        self.is_node.get().then_some(process)
    }

    /// A reader of the resource usage of the node's process; `None` if the process is not visible.
    pub fn process(&self) -> Option<ProcessUsage> {
        let process = self.node()?;
        let started = process.stat().ok()?.starttime;
        Some(ProcessUsage { process, started, supervisor: self.supervisor.clone() })
    }

    /// Whether the node has a thread with this name; `None` if the node's process is not visible.
    pub fn runs_thread(&self, name: &str) -> Option<bool> {
        let tasks = self.node()?.tasks().ok()?;
        let names = tasks.flatten().filter_map(|task| Some(task.stat().ok()?.comm));
        Some(names.into_iter().any(|comm| comm == name))
    }

    /// Whether the name of the node's main thread shows that the node is shutting down; `None` if the node's process is
    /// not visible.
    pub fn is_shutting_down(&self) -> Option<bool> {
        let stat = self.node()?.stat().ok()?;
        Some(stat.comm == "b-shutoff")
    }

    /// Waits until the node's process has exited.
    ///
    /// # Errors
    /// The process is not the node or has no pidfd, or the pidfd cannot be watched.
    pub async fn ended(self) -> io::Result<()> {
        let is_proxy = self.pid.is_some_and(|pid| Process::new(pid).is_ok()) && self.node().is_none();
        if is_proxy {
            return Err(io::ErrorKind::NotFound.into());
        }
        let end = self.end.ok_or(io::ErrorKind::NotFound)?;
        sys::watched(end)?.readable().await.map(drop)
    }
}

/// Whether threads with these names belong to a node. The names of Bitcoin Core's threads, including the thread that
/// serves the IPC socket, begin with `b-`.
fn are_node_threads(mut names: impl Iterator<Item = String>) -> bool {
    names.any(|name| name.starts_with("b-"))
}

/// Reader of the resource usage of the node's process.
pub struct ProcessUsage {
    process: Process,
    /// Start time in clock ticks since boot. A PID is reused, but the pair of PID and start time is not.
    started: u64,
    supervisor: Option<Rc<SupervisorClient>>,
}

/// CPU time of one thread of the node.
pub struct ThreadTime {
    /// Thread ID.
    pub id: i32,
    /// The first fifteen bytes of the thread's name. The kernel stores only these bytes.
    pub name: String,
    /// User plus system CPU time of the thread, in seconds.
    pub seconds: f64,
}

impl ProcessUsage {
    /// A reader for the process with this PID, if the names of its threads show that the process is a node, and if its
    /// age matches this uptime of the node in seconds. These checks are necessary because the PID, which the node wrote
    /// to its PID file, can be outdated, or belong to another PID namespace.
    pub fn of_node(pid: i32, uptime: f64) -> Option<Self> {
        let process = SocketPeer::from_pid(pid, None).process()?;
        let age = sys::clock(ClockId::CLOCK_BOOTTIME).as_secs_f64()
            - process.started as f64 / procfs::ticks_per_second() as f64;
        let suspended =
            sys::clock(ClockId::CLOCK_BOOTTIME).saturating_sub(sys::clock(ClockId::CLOCK_MONOTONIC));
        is_age_of_uptime(age, suspended.as_secs_f64(), uptime).then_some(process)
    }

    /// PID and start time of the process. No other process since boot has the same pair of PID and start time.
    pub fn id(&self) -> (i32, u64) {
        (self.process.pid, self.started)
    }

    /// The contents of `/proc/PID/stat`; `None` if the process has exited.
    pub fn stat(&self) -> Option<Stat> {
        self.process.stat().ok().filter(|stat| stat.starttime == self.started)
    }

    /// CPU time of each thread of the node's process.
    pub fn threads(&self) -> Vec<ThreadTime> {
        let tasks = self.process.tasks().into_iter().flatten().flatten();
        let times = tasks.filter_map(|task| {
            let stat = task.stat().ok()?;
            // Prefer the time in nanoseconds from schedstat. The times in stat have a resolution of a hundredth of a
            // second, and the errors of a node's about fifty threads would add up.
            let precise = task.schedstat().ok().map(|it| it.sum_exec_runtime as f64 / 1e9);
            Some(ThreadTime {
                id: task.tid,
                seconds: precise.unwrap_or_else(|| cpu_seconds(&stat)),
                name: stat.comm,
            })
        });
        times.collect()
    }

    /// The part of the node's resource usage that the exporter process has no permission to read, requested from the
    /// supervisor; empty without a supervisor.
    pub async fn private(&self) -> PrivateUsage {
        match &self.supervisor {
            Some(supervisor) => supervisor.usage().await,
            None => PrivateUsage::default(),
        }
    }
}

/// Whether a process of this age can be the node that reports this uptime. Since Bitcoin Core 31 the uptime excludes
/// the time for which the machine was suspended; `suspended` is the total of this time since boot. Earlier versions
/// compute the uptime with the wall clock, so a process does not match after the clock was set. All times are in
/// seconds.
fn is_age_of_uptime(age: f64, suspended: f64, uptime: f64) -> bool {
    /// Tolerance for the rounding of the uptime to whole seconds, and for the time between the readings of uptime and
    /// age.
    const TOLERANCE: f64 = 3.0;
    (age - suspended - TOLERANCE..=age + TOLERANCE).contains(&uptime)
}

/// User plus system CPU time of a process or thread, in seconds.
pub fn cpu_seconds(stat: &Stat) -> f64 {
    (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64
}

/// The path without the suffix ` (deleted)`, which the kernel appends to the path of a process's binary in `/proc` if
/// the file was removed or replaced.
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

#[cfg(test)]
#[test]
fn uptime_of_another_process_does_not_match() {
    assert!(is_age_of_uptime(100.4, 0.0, 100.0) && is_age_of_uptime(2.9, 0.0, 0.0));
    assert!(is_age_of_uptime(5000.0, 3600.0, 1400.0), "the machine was suspended");
    assert!(!is_age_of_uptime(100.0, 0.0, 50.0) && !is_age_of_uptime(100.0, 0.0, 3700.0));
    assert!(!is_age_of_uptime(100.0, 0.0, f64::NAN));
}
