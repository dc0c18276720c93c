//! Decides for which processes the supervisor has to wait in a container before it exits. The supervisor is the parent
//! process of the exporter and of the guards, which relay messages between the node and the exporter. When the main
//! process of a container exits, the kernel or the container runtime kills all other processes of the container,
//! including the guards.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};
use procfs::process::{Process, all_processes};

use super::EXPORTER;
use crate::cli;
use crate::ipc::guard;

/// Name of the environment variable that overrides the detection of containers: `1` in a container, `0` outside of a
/// container.
pub const IN_CONTAINER: &str = "BITCOIND_IPC_EXPORTER_IN_CONTAINER";

/// Whether the guards would be killed when this process exits, because this process is PID 1 of its PID namespace or
/// runs in a container.
///
/// # Errors
/// The environment variable [`IN_CONTAINER`] has a value other than `0`, `1` or the empty text.
pub fn ends_all() -> Result<bool> {
    if is_pid_1() {
        return Ok(true);
    }
    match std::env::var_os(IN_CONTAINER).as_deref().map(|value| value.as_encoded_bytes()) {
        None | Some(b"") => Ok(is_in_container()),
        Some(b"1") => Ok(true),
        Some(b"0") => Ok(false),
        Some(_) => bail!("{IN_CONTAINER} must be 1 or 0"),
    }
}

pub fn is_pid_1() -> bool {
    getpid() == Pid::from_raw(1)
}

/// Whether this process runs in a container and was not started by systemd. The exit of such a process can end the
/// container, which kills the guards. If the variable `INVOCATION_ID` is set, systemd started this process as a
/// service. The result is then false, because a container whose main process is systemd continues to run after the
/// service's process exits, and the guards continue to run with it.
fn is_in_container() -> bool {
    std::env::var_os("INVOCATION_ID").is_none()
        && (std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
            || ["/.dockerenv", "/run/.containerenv"].iter().any(|file| Path::new(file).exists()))
}

/// Sends SIGTERM to each other supervisor in this PID namespace, unless its PID is in `signaled`, the PIDs that have
/// already been signaled. Returns whether another supervisor, exporter or guard process is still running.
pub fn end_others(signaled: &mut HashSet<i32>) -> bool {
    let Some((own, processes)) = Process::myself().and_then(|own| own.stat()).ok().zip(all_processes().ok())
    else {
        return false; // /proc cannot be read
    };
    let is_part = |process: &Process| {
        let first = process.cmdline().ok().and_then(|arguments| arguments.into_iter().nth(1));
        first.is_some_and(|first| first == guard::ARGUMENT || first == EXPORTER)
    };
    let (mut supervisors, mut parts) = (Vec::new(), 0);
    for process in processes.flatten() {
        match process.stat() {
            Ok(stat) if stat.state == 'Z' || stat.pid == own.pid => {}
            Ok(_) if is_part(&process) => parts += 1,
            Ok(stat) if stat.comm == own.comm => supervisors.push(stat.pid),
            _ => {}
        }
    }
    for &supervisor in &supervisors {
        if signaled.insert(supervisor)
            && let Err(error @ Errno::EPERM) = kill(Pid::from_raw(supervisor), Signal::SIGTERM)
        {
            cli::print_error(format_args!(
                "bitcoind-ipc-exporter: cannot end the exporter with process id {supervisor}: {error}; waiting for it, \
                 because its guard would be killed with this container"
            ));
        }
    }
    parts > 0 || !supervisors.is_empty()
}
