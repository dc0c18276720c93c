//! Container support: when one process (PID 1, or the container's main process) exits, all others are killed.

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

/// Environment variable that states whether this is a container: 1 or 0. If it is not set, containers are detected.
pub const IN_CONTAINER: &str = "BITCOIND_IPC_EXPORTER_IN_CONTAINER";

/// Whether the guards would be killed when this process exits. The exit of PID 1 kills all processes of its PID namespace.
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

/// Whether a container runtime started this process. A service of a systemd inside a container does not count, because that systemd does
/// not kill the guard.
fn is_in_container() -> bool {
    std::env::var_os("INVOCATION_ID").is_none()
        && (std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
            || ["/.dockerenv", "/run/.containerenv"].iter().any(|file| Path::new(file).exists()))
}

/// Sends SIGTERM, once, to each other exporter of this PID namespace. Returns whether an exporter or a guard is still running.
pub fn end_others(signaled: &mut HashSet<i32>) -> bool {
    let Some((own, processes)) = Process::myself().and_then(|own| own.stat()).ok().zip(all_processes().ok())
    else {
        return false; // no /proc
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
