//! Scheduling: the guard, which the node waits for, before HTTP.
//!
//! Neither needs a privilege. Both are best effort: what the kernel or a filter of system calls refuses changes no answer.

use crate::sys;

/// The calling thread gives way to the others.
pub fn give_way() {
    const NICE: i32 = 10;
    sys::set_nice(NICE);
}

/// The calling thread runs in slices of 0.1 ms, so that it need not wait for the end of another's (3 ms, say) when it wakes
/// up. Linux 6.12 or later.
pub fn answer_soon() {
    const SLICE_NS: u64 = 100_000;
    sys::set_slice(SLICE_NS);
}
