//! Repeats an action on another thread while a drill (a fault injection test of the alerts) waits for alerts.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// A value that sets the stop flag of [`beside`]'s loop when it is dropped, also if the drill panics.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Runs `work` repeatedly on another thread until `drill` has returned.
pub fn beside(mut work: impl FnMut() + Send, drill: impl FnOnce()) {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Relaxed) {
                work();
            }
        });
        let _ends = Ends(&ended);
        drill();
    });
}
