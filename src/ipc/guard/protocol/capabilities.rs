//! The capabilities of the node to which the exporter has references.

use std::collections::{HashMap, HashSet};

/// The node's capabilities that the exporter has, by the node's export IDs.
#[derive(Default)]
pub(super) struct NodeCapabilities {
    /// Number of the exporter's references to each capability.
    references: HashMap<u32, u32>,
    /// The export IDs of threads, which calls may pass to the node. No other capabilities may be passed.
    threads: HashSet<u32>,
}

impl NodeCapabilities {
    pub fn has(&self, id: u32) -> bool {
        self.references.get(&id).is_some_and(|&references| references > 0)
    }

    pub fn is_thread(&self, id: u32) -> bool {
        self.threads.contains(&id)
    }

    /// Adds one reference of the exporter to each capability.
    pub fn add_refs(&mut self, ids: &[u32]) {
        ids.iter().for_each(|&id| *self.references.entry(id).or_default() += 1);
    }

    /// Records whether the capabilities in a response are threads. The node may reuse the export ID of a released capability.
    pub fn set_threads(&mut self, ids: &[u32], are_threads: bool) {
        for id in ids {
            if are_threads {
                self.threads.insert(*id)
            } else {
                self.threads.remove(id)
            };
        }
    }

    /// Removes references of the exporter; returns false if it has fewer.
    pub fn release(&mut self, id: u32, count: u32) -> bool {
        match self.references.get_mut(&id) {
            Some(references) if *references >= count => {
                *references -= count;
                true
            }
            _ => false,
        }
    }

    /// Records that the exporter no longer has the capability.
    pub fn remove(&mut self, id: u32) {
        self.references.remove(&id);
    }
}
