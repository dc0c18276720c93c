//! The parent that supervises the exporter in a container, where one process's end is the end of all others.
//!
//! The kernel ends a PID namespace with its PID 1, and a container runtime kills all processes of a container when the one
//! that it started ends, the guard included. So in a container this program starts itself again as its child, passes
//! signals on, and ends only when the exporter and its guards have ended. As PID 1 it also reaps what ends, and waits for
//! exporters that were started beside it (`docker exec`).

use std::collections::HashSet;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, getppid};
use procfs::process::{Process, all_processes};

use crate::ipc::guard;
use crate::systemd::{self, CHILD_OF_INIT};
use crate::{cli, sys};

/// The environment variable that says whether to supervise: 1 or 0. Without it, containers are detected.
pub const SUPERVISE: &str = "BITCOIND_IPC_EXPORTER_SUPERVISE";

/// How often the last processes are looked for, after the child has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Whether this process has to supervise a child. PID 1 always does.
///
/// # Errors
/// The variable has another value than 1 or 0.
pub fn is_needed() -> Result<bool> {
    if is_pid_1() {
        return Ok(true);
    }
    if std::env::var_os(CHILD_OF_INIT).is_some() {
        return Ok(false);
    }
    match std::env::var_os(SUPERVISE).as_deref().map(|value| value.as_encoded_bytes()) {
        None | Some(b"") => Ok(is_in_container()),
        Some(b"1") => Ok(true),
        Some(b"0") => Ok(false),
        Some(_) => bail!("{SUPERVISE} must be 1 or 0"),
    }
}

fn is_pid_1() -> bool {
    getpid() == Pid::from_raw(1)
}

/// Whether a container runtime started this process. A service of a systemd that runs in a container is not meant: systemd
/// does not kill the guard, and expects notifications of the process that it started.
fn is_in_container() -> bool {
    std::env::var_os("INVOCATION_ID").is_none()
        && (std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
            || ["/.dockerenv", "/run/.containerenv"].iter().any(|file| Path::new(file).exists()))
}

/// In the child: takes the signals that its parent keeps blocked, and a SIGTERM when the parent dies.
///
/// # Errors
/// The parent has ended.
pub fn start_child() -> Result<()> {
    let Some(parent) = std::env::var_os(CHILD_OF_INIT) else { return Ok(()) };
    prctl::set_pdeathsig(Signal::SIGTERM)?;
    // It may have died before it could be asked for.
    if *parent != *getppid().to_string() {
        bail!("the supervising process {} has ended", parent.display());
    }
    SigSet::all().thread_unblock()?;
    Ok(())
}

/// Runs this program as a child with the same arguments and descriptors. Returns when it, its guards, and as PID 1 all other
/// exporters of the container have ended, with the child's exit code, or 128 and the signal that ended it.
///
/// # Errors
/// The child cannot be started or waited for.
pub fn run() -> Result<ExitCode> {
    sys::reset_sigchld()?;
    // A guard whose exporter was killed becomes a child of this process.
    prctl::set_child_subreaper(true)?;
    let all = SigSet::all();
    all.thread_block()?;
    let mut child = Command::new(std::env::current_exe()?);
    // In a process group of its own it gets a terminal's Ctrl-C from us, and once.
    child.args(std::env::args_os().skip(1)).env(CHILD_OF_INIT, getpid().to_string()).process_group(0);
    let child = child.spawn().context("cannot start this program as its own child")?;
    let child = Pid::from_raw(child.id() as i32);
    // When memory runs out, rather the child than this process. Without the privilege it keeps its score, as the guard does.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    systemd::close_inherited();
    let code = wait_for(child, &SignalFd::new(&all)?)?;
    let mut signaled = HashSet::new();
    loop {
        let others = is_pid_1() && end_others(&mut signaled);
        if !has_children()? && !others {
            break;
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Passes signals on until the child has ended; returns its exit code.
fn wait_for(child: Pid, signals: &SignalFd) -> Result<i32> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::Exited(pid, code) if pid == child => return Ok(code),
            WaitStatus::Signaled(pid, signal, _) if pid == child => return Ok(128 + signal as i32),
            WaitStatus::StillAlive => {
                // Real-time signals have no name and mean nothing to the child; an interrupted read is repeated.
                if let Ok(Some(info)) = signals.read_signal()
                    && let Ok(signal) = Signal::try_from(info.ssi_signo as i32)
                    && signal != Signal::SIGCHLD
                {
                    // An error means that the child has ended already.
                    let _ = kill(child, signal);
                }
            }
            _ => {}
        }
    }
}

/// Reaps the children that have ended; returns whether others are left.
fn has_children() -> Result<bool> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return Ok(true),
            Ok(_) => {}
            Err(Errno::ECHILD) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends SIGTERM, once, to each other exporter of this PID namespace. Returns whether an exporter or a guard is left.
fn end_others(signaled: &mut HashSet<i32>) -> bool {
    let Some((own, processes)) = Process::myself().and_then(|own| own.stat()).ok().zip(all_processes().ok())
    else {
        return false; // no /proc
    };
    let is_guard = |process: &Process| {
        process.cmdline().is_ok_and(|arguments| arguments.get(1).is_some_and(|it| it == guard::ARGUMENT))
    };
    let (mut exporters, mut guards) = (Vec::new(), 0);
    for process in processes.flatten() {
        match process.stat() {
            Ok(stat) if stat.state == 'Z' || stat.pid == own.pid => {}
            Ok(_) if is_guard(&process) => guards += 1,
            Ok(stat) if stat.comm == own.comm => exporters.push(stat),
            _ => {}
        }
    }
    for exporter in &exporters {
        let supervised = exporters.iter().any(|parent| parent.pid == exporter.ppid);
        if !supervised
            && signaled.insert(exporter.pid)
            && let Err(error @ Errno::EPERM) = kill(Pid::from_raw(exporter.pid), Signal::SIGTERM)
        {
            cli::print_error(format_args!(
                "bitcoind-ipc-exporter: cannot end the exporter with process id {}: {error}; waiting for it, because its \
                 guard would be killed with this container",
                exporter.pid
            ));
        }
    }
    guards > 0 || !exporters.is_empty()
}
