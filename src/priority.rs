//! Who goes first where processors are short: the guard that a node waits for, before what only a scraper waits for.
//!
//! Neither needs a privilege. Both are best effort: what the kernel or a filter of system calls refuses changes no answer.

use nix::libc;

/// The calling thread gives way to the others.
pub fn give_way() {
    const NICE: libc::c_int = 10;
    // SAFETY: takes numbers only; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}

/// The calling thread runs in slices of 0.1 ms, so that it need not wait for the end of another's (3 ms, say) when it wakes
/// up. Linux 6.12 or later.
pub fn answer_soon() {
    const SLICE_NS: u64 = 100_000;
    const SIZE: u32 = size_of::<libc::sched_attr>() as u32;
    // SAFETY: all of its fields are numbers.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes no more than `SIZE` bytes into `attributes`.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, SIZE, 0) };
    if got == 0 && attributes.sched_policy == libc::SCHED_OTHER as u32 {
        attributes.sched_runtime = SLICE_NS;
        // SAFETY: the kernel reads `attributes`, whose size it has written there.
        unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    }
}
