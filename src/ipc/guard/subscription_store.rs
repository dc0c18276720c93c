//! The list of a guard's active subscriptions, in a memory file that outlives the guard. A replacement guard reads the
//! list, ends the subscriptions and disconnects.
//!
//! The guard writes the file. The supervisor passes the file's descriptor to the replacement of a killed guard, and
//! does not read the file.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::events::{GuardEvent, SubscriptionIds};

/// Maximum size of the memory file in bytes. The exporter has at most two subscriptions, whose IDs need less than 100
/// bytes.
const MAX_BYTES: usize = 4096;

/// The active subscriptions of one connection, with a copy in a memory file for a replacement guard.
pub struct SubscriptionStore {
    file: File,
    subscriptions: Vec<SubscriptionIds>,
}

impl SubscriptionStore {
    /// Creates an empty store for a new connection.
    ///
    /// # Errors
    /// The kernel cannot create the memory file, because memory or file descriptors are short.
    pub fn new() -> io::Result<Self> {
        // Kernels before Linux 6.3 reject the flag MFD_NOEXEC_SEAL with EINVAL. The call is then repeated without the
        // flag.
        let not_executable = MFdFlags::from_bits_retain(nix::libc::MFD_NOEXEC_SEAL);
        let create = |flags| memfd_create(c"subscriptions", MFdFlags::MFD_CLOEXEC | flags);
        let fd = create(not_executable).or_else(|error| match error {
            Errno::EINVAL => create(MFdFlags::empty()),
            error => Err(error),
        })?;
        Ok(SubscriptionStore { file: fd.into(), subscriptions: Vec::new() })
    }

    /// Reads the subscriptions from the memory file whose descriptor this guard process inherited from the supervisor.
    pub(super) fn inherited(fd: OwnedFd) -> Self {
        let file = File::from(fd);
        let mut bytes = [0; MAX_BYTES];
        let read = file.read_at(&mut bytes, 0).unwrap_or(0);
        let text = String::from_utf8_lossy(&bytes[..read]);
        let ids = text.lines().next().unwrap_or_default().split_whitespace();
        let subscriptions = ids.filter_map(|ids| ids.parse().ok()).collect();
        SubscriptionStore { file, subscriptions }
    }

    /// The subscriptions that are active now.
    pub(super) fn subscriptions(&self) -> &[SubscriptionIds] {
        &self.subscriptions
    }

    /// Updates the list and the memory file if the event starts or ends a subscription.
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
        // A write error is ignored, because there is no remedy. After a write error, a replacement guard does not end
        // the subscriptions that are missing in the file.
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
