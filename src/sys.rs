//! The `unsafe` code that both exporters need: system calls that no crate wraps, and inherited descriptors.
#![allow(unsafe_code, reason = "this module contains the unsafe code")]

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

/// The current time of a clock; zero if the kernel does not support the clock.
pub fn clock(id: ClockId) -> Duration {
    clock_gettime(id).map_or(Duration::ZERO, Duration::from)
}

/// The kernel's estimate of the error of the wall clock (`adjtimex`), in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClockError {
    /// Whether a time service, for example NTP, keeps the clock synchronized.
    pub is_synchronized: bool,
    /// Upper bound of the wall clock's error (`maxerror`). The bound grows between two corrections of the clock.
    pub max_us: i64,
    /// Estimate of the wall clock's error (`esterror`).
    pub estimated_us: i64,
}

/// The kernel's estimate of the error of the wall clock at this moment; `None` if the kernel or a sandbox denies the
/// call.
pub fn clock_error() -> Option<ClockError> {
    // SAFETY: all fields are numbers. With `modes` 0 the call only reads.
    let mut clock: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes only into `clock`, which has the layout of the kernel's structure.
    let state = unsafe { libc::syscall(libc::SYS_adjtimex, &raw mut clock) };
    (state >= 0).then_some(ClockError {
        is_synchronized: state != i64::from(libc::TIME_ERROR) && clock.status & libc::STA_UNSYNC == 0,
        max_us: clock.maxerror,
        estimated_us: clock.esterror,
    })
}

/// Lowers the priority of the calling thread below that of the other threads of its process.
pub fn lower_priority() {
    const NICE: i32 = 10;
    // SAFETY: the call gets only a number. On Linux, the nice value belongs to the calling thread.
    unsafe { libc::nice(NICE) };
}

/// Sets the CPU scheduler's time slice of the calling thread to 0.1 ms, if the thread has the default scheduling
/// policy. With this short slice, the scheduler runs the thread soon after it wakes up, instead of at the end of
/// another thread's slice (for example 3 ms). Time slices can be set with Linux 6.12 or later.
pub fn shorten_timeslice() {
    const SLICE_NS: u64 = 100_000;
    const SIZE: u32 = size_of::<libc::sched_attr>() as u32;
    // SAFETY: all fields are numbers.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes no more than `SIZE` bytes into `attributes`.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, SIZE, 0) };
    if got == 0 && attributes.sched_policy == libc::SCHED_OTHER as u32 {
        attributes.sched_runtime = SLICE_NS;
        // SAFETY: the kernel reads `attributes`, whose field `size` the previous call has set.
        unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    }
}

/// Opens a pidfd, a descriptor that becomes readable when the process `pid` exits.
///
/// # Errors
/// The process does not exist in the PID namespace of this process, or no descriptor can be opened.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call gets two numbers and accesses no memory of this process.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd)?;
    // SAFETY: the system call has just created this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Takes ownership of a descriptor that this process received in a message on a Unix socket.
pub fn received(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just created this descriptor for this process, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Registers a descriptor with the tokio runtime, which can then await its readiness.
///
/// # Errors
/// The descriptor does not support epoll.
pub fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd always returns the same descriptor, and keeps it open.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Resets a signal to its default action. Necessary for SIGCHLD, because a process that was started with SIGCHLD
/// ignored cannot wait for its child processes.
///
/// # Errors
/// The action of the signal cannot be changed.
pub fn reset_signal(reset: Signal) -> nix::Result<()> {
    // SAFETY: the default action runs no code of this process.
    unsafe { signal(reset, SigHandler::SigDfl) }.map(drop)
}

/// Numbers of the inherited descriptors of which this process has taken ownership (see [`take_over`]).
static TAKEN: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

/// Locks and returns the list of inherited descriptors of which this process has taken ownership. While the lock is
/// held, [`take_over`] blocks.
pub fn taken_over() -> MutexGuard<'static, Vec<RawFd>> {
    TAKEN.lock().expect("nobody panics holding it")
}

/// Takes ownership of a descriptor that this process inherited, and makes it close-on-exec. The function succeeds at
/// most once for each descriptor.
///
/// # Errors
/// The descriptor is not open, was taken over before, or is standard input, output or error.
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
    // SAFETY: the descriptor is open, and no other value in this process owns it. The descriptor was inherited, because
    // this function is called before the process opens descriptors, and `TAKEN` prevents that a number is taken over
    // twice.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}
