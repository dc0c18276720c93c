//! Work that goes on while a drill waits.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Ends the work, also when the drill panics.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Runs `work` again and again until `drill` has ended.
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
