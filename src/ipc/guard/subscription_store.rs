//! The list of a connection's active subscriptions, in a memory file that outlives the guard, the process that relays
//! the connection's messages. If the guard is killed, a replacement guard reads the list, ends the subscriptions and
//! disconnects from the node.
//!
//! The guard writes the file. The supervisor, the parent process of the guards, passes the file's descriptor to the
//! replacement of a killed guard, and does not read the file.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

/// Maximum size of the memory file in bytes.
const MAX_BYTES: usize = 4096;
/// Maximum number of subscriptions in the memory file. The encoded IDs of a subscription need up to 15 bytes. The
/// exporter has at most two subscriptions.
const MAX_STORED: usize = 256;

/// The Cap'n Proto IDs that the guard needs to end a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SubscriptionIds {
    /// The exporter's export ID for the callback object.
    pub callback: u32,
    /// The node's export ID for the subscription's handler.
    pub handler: u32,
    /// The node's export ID of its thread that runs the calls of the subscription's `Handler`.
    pub thread: u32,
}

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
        let subscriptions = postcard::take_from_bytes(&bytes[..read]).map_or(Vec::new(), |(ids, _)| ids);
        SubscriptionStore { file, subscriptions }
    }

    /// The subscriptions in the memory file.
    pub(super) fn subscriptions(&self) -> &[SubscriptionIds] {
        &self.subscriptions
    }

    /// Writes the active subscriptions to the memory file if they differ from the subscriptions in the file.
    pub(super) fn update(&mut self, active: impl Iterator<Item = SubscriptionIds> + Clone) {
        let active = active.take(MAX_STORED);
        if active.clone().eq(self.subscriptions.iter().copied()) {
            return;
        }
        self.subscriptions = active.collect();
        // A write error is ignored, because there is no remedy. After a write error, a replacement guard does not end
        // the subscriptions that are missing in the file.
        if let Ok(bytes) = postcard::to_slice(&self.subscriptions, &mut [0; MAX_BYTES]) {
            let _ = self.file.write_all_at(bytes, 0);
        }
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
    record.update([ids(1), ids(20)].into_iter());
    let mut replacement = next(&record);
    assert_eq!(replacement.subscriptions(), [ids(1), ids(20)]);
    replacement.update([ids(20)].into_iter());
    assert_eq!(next(&record).subscriptions(), [ids(20)]);
    let many = (0..2 * MAX_STORED as u32).map(|number| ids(u32::MAX - 1 - number));
    replacement.update(many.clone());
    assert!(next(&record).subscriptions().iter().copied().eq(many.take(MAX_STORED)));
    replacement.update([].into_iter());
    assert_eq!(next(&record).subscriptions(), []);
}
