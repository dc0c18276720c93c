//! A minimal init, for when this program is PID 1 of a container.
//!
//! The kernel ends a PID namespace with its PID 1, the guard included. So PID 1 does nothing but start the program again as
//! its child, pass signals on, reap what ends, and stay until every process that it can wait for has ended.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};

use crate::systemd::{self, CHILD_OF_INIT};

/// Whether this process is an init.
pub fn is_needed() -> bool {
    getpid() == Pid::from_raw(1)
}

/// In the child: takes the signals that PID 1 keeps blocked for itself.
pub fn start_child() -> Result<()> {
    if std::env::var_os(CHILD_OF_INIT).is_some() {
        SigSet::all().thread_unblock()?;
    }
    Ok(())
}

/// Runs this program as a child with the same arguments and descriptors. Returns when it and all others have ended, with
/// its exit code, or 128 and the signal that ended it.
pub fn run() -> Result<ExitCode> {
    let all = SigSet::all();
    all.thread_block()?;
    let mut child = Command::new(std::env::current_exe()?);
    // In a process group of its own it gets a terminal's Ctrl-C from us, and once.
    child.args(std::env::args_os().skip(1)).env(CHILD_OF_INIT, "1").process_group(0);
    let child = child.spawn().context("cannot start this program as a child of PID 1")?;
    let child = Pid::from_raw(child.id() as i32);
    systemd::close_inherited();
    let mut ended = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => match all.wait()? {
                Signal::SIGCHLD => {}
                // An error means that the child has ended already.
                signal => drop(kill(child, signal)),
            },
            Ok(WaitStatus::Exited(pid, code)) if pid == child => {
                ended = Some(ExitStatus::from_raw(code << 8))
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                ended = Some(ExitStatus::from_raw(signal as i32));
            }
            Err(Errno::ECHILD) => break,
            _ => {}
        }
    }
    let ended = ended.context("the child has ended unseen")?;
    let code = ended.code().or(ended.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}
