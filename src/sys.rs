//! Code that needs `unsafe` in both exporters: system calls that no crate wraps, and what this process inherited.
#![allow(unsafe_code, reason = "this is its place")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::time::{ClockId, clock_gettime};
use tokio::io::unix::AsyncFd;

/// The time of a clock; 0 if the kernel does not have it.
pub fn clock(id: ClockId) -> Duration {
    clock_gettime(id).map_or(Duration::ZERO, Duration::from)
}

/// Adds to the calling thread's nice value, which is that of its process at first, at most to 19.
pub fn add_nice(by: i32) {
    // SAFETY: takes a number only. On Linux it is the calling thread's.
    unsafe { libc::nice(by) };
}

/// How long the calling thread runs at a stretch, where it is scheduled as usual. Linux 6.12 or later.
pub fn set_slice(nanoseconds: u64) {
    const SIZE: u32 = size_of::<libc::sched_attr>() as u32;
    // SAFETY: all of its fields are numbers.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes no more than `SIZE` bytes into `attributes`.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, SIZE, 0) };
    if got == 0 && attributes.sched_policy == libc::SCHED_OTHER as u32 {
        attributes.sched_runtime = nanoseconds;
        // SAFETY: the kernel reads `attributes`, whose size it has written there.
        unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    }
}

/// A descriptor that becomes readable when the process ends.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes two numbers, and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd)?;
    // SAFETY: the system call has just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A descriptor that arrived in a message.
pub fn received(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for this process, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A descriptor whose readiness can be awaited.
pub fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd always gives the same descriptor, and keeps it open.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Gives a signal its default effect. A process that was started with SIGCHLD ignored could not wait for its children.
pub fn reset_signal(reset: Signal) -> nix::Result<()> {
    // SAFETY: the default disposition runs no code of ours.
    unsafe { signal(reset, SigHandler::SigDfl) }.map(drop)
}

/// The descriptors that were taken over.
static TAKEN: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

/// The descriptors that were taken over; none is while this is held.
pub fn taken_over() -> MutexGuard<'static, Vec<RawFd>> {
    TAKEN.lock().expect("nobody panics holding it")
}

/// Takes over a descriptor that this process inherited, and makes it close-on-exec. Each may be taken over once.
///
/// # Errors
/// It is not open, was taken over before, or is standard input, output or error.
pub fn take_over(fd: RawFd) -> Result<OwnedFd> {
    let mut taken = taken_over();
    if fd <= 2 {
        bail!(
            "file descriptor {fd} is not an inherited connection (0, 1 and 2 are standard input, output and error)"
        );
    }
    if taken.contains(&fd) {
        bail!("file descriptor {fd} is passed twice");
    }
    if std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_err() {
        bail!(
            "file descriptor {fd} is not open; the process that starts the exporter must pass it without close-on-exec"
        );
    }
    taken.push(fd);
    // SAFETY: the descriptor is open, and nothing else in this process owns it: it was inherited (we are called
    // before anything else opens descriptors), and the list above hands each number out once.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}
