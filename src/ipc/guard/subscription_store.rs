//! The store of a guard's subscriptions, in shared memory that outlives the guard. A replacement guard reads it and disconnects cleanly.
//!
//! The guard writes it. The supervisor passes it, without reading it, to the replacement of a killed guard.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::events::{GuardEvent, SubscriptionIds};

/// Size limit, far more than the two subscriptions of the exporter need.
const MAX_BYTES: usize = 4096;

/// The subscriptions of one connection, and the memory file that has a copy for a replacement guard.
pub struct SubscriptionStore {
    file: File,
    subscriptions: Vec<SubscriptionIds>,
}

impl SubscriptionStore {
    /// Creates an empty store for a new connection.
    pub fn new() -> io::Result<Self> {
        // Linux has the flag MFD_NOEXEC_SEAL since 6.3; without it the call is repeated.
        let not_executable = MFdFlags::from_bits_retain(nix::libc::MFD_NOEXEC_SEAL);
        let create = |flags| memfd_create(c"subscriptions", MFdFlags::MFD_CLOEXEC | flags);
        let fd = create(not_executable).or_else(|error| match error {
            Errno::EINVAL => create(MFdFlags::empty()),
            error => Err(error),
        })?;
        Ok(SubscriptionStore { file: fd.into(), subscriptions: Vec::new() })
    }

    /// Reads the store whose descriptor this process inherited.
    pub(super) fn inherited(fd: OwnedFd) -> Self {
        let file = File::from(fd);
        let mut bytes = [0; MAX_BYTES];
        let read = file.read_at(&mut bytes, 0).unwrap_or(0);
        let text = String::from_utf8_lossy(&bytes[..read]);
        let ids = text.lines().next().unwrap_or_default().split_whitespace();
        let subscriptions = ids.filter_map(|ids| ids.parse().ok()).collect();
        SubscriptionStore { file, subscriptions }
    }

    /// The subscriptions at present.
    pub(super) fn subscriptions(&self) -> &[SubscriptionIds] {
        &self.subscriptions
    }

    /// Updates the store for an event that starts or ends a subscription.
    pub(super) fn apply(&mut self, event: &GuardEvent) {
        match event {
            GuardEvent::Subscribed(ids) => self.subscriptions.push(*ids),
            GuardEvent::Released(callback) => self.subscriptions.retain(|ids| ids.callback != *callback),
            _ => return,
        }
        let ids: Vec<String> = self.subscriptions.iter().map(SubscriptionIds::to_string).collect();
        let mut line = ids.join(" ");
        line.truncate(MAX_BYTES - 1);
        line.push('\n');
        // If the write fails, the replacement of a killed guard would not end the subscriptions. Nothing can be done about it here.
        let _ = self.file.write_all_at(line.as_bytes(), 0);
    }
}

impl AsFd for SubscriptionStore {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
#[test]
fn replacement_reads_the_subscriptions_of_the_last_guard() {
    let mut record = SubscriptionStore::new().unwrap();
    let next = |record: &SubscriptionStore| {
        SubscriptionStore::inherited(record.as_fd().try_clone_to_owned().unwrap())
    };
    assert_eq!(next(&record).subscriptions(), []);
    let ids = |callback| SubscriptionIds { callback, handler: callback + 1, thread: 1_000_000 };
    record.apply(&GuardEvent::Subscribed(ids(1)));
    record.apply(&GuardEvent::Subscribed(ids(20)));
    let mut replacement = next(&record);
    assert_eq!(replacement.subscriptions(), [ids(1), ids(20)]);
    replacement.apply(&GuardEvent::Released(1));
    replacement.apply(&GuardEvent::NodeShutsDown);
    assert_eq!(next(&record).subscriptions(), [ids(20)]);
    replacement.apply(&GuardEvent::Released(20));
    assert_eq!(next(&record).subscriptions(), []);
}
