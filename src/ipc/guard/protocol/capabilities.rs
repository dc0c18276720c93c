//! Counts the exporter's references to each capability (remote object) of the node.

use std::collections::{HashMap, HashSet};

/// Table of the node's capabilities to which the exporter has references, keyed by the node's export IDs.
#[derive(Default)]
pub(super) struct NodeCapabilities {
    /// Number of references that the exporter has to each capability.
    references: HashMap<u32, u32>,
    /// Export IDs of the node's threads. Threads are the only capabilities of the node that the exporter may pass in
    /// the parameters of a call.
    threads: HashSet<u32>,
}

impl NodeCapabilities {
    pub fn has(&self, id: u32) -> bool {
        self.references.get(&id).is_some_and(|&references| references > 0)
    }

    /// Number of the exporter's references to all capabilities.
    pub fn references(&self) -> usize {
        self.references.values().map(|&references| references as usize).sum()
    }

    pub fn is_thread(&self, id: u32) -> bool {
        self.threads.contains(&id)
    }

    /// Records that the exporter got one more reference to each of these capabilities.
    pub fn add_refs(&mut self, ids: &[u32]) {
        ids.iter().for_each(|&id| *self.references.entry(id).or_default() += 1);
    }

    /// Records whether the capabilities in a response are threads. An ID that was a thread may now be another
    /// capability, because the node reuses the export IDs of released capabilities.
    pub fn set_threads(&mut self, ids: &[u32], are_threads: bool) {
        for id in ids {
            if are_threads {
                self.threads.insert(*id)
            } else {
                self.threads.remove(id)
            };
        }
    }

    /// Removes `count` of the exporter's references to the capability. Returns false, and removes no reference, if the
    /// exporter has fewer references.
    pub fn release(&mut self, id: u32, count: u32) -> bool {
        match self.references.get_mut(&id) {
            Some(references) if *references >= count => {
                *references -= count;
                true
            }
            _ => false,
        }
    }

    /// Records that the exporter no longer has any reference to the capability.
    pub fn remove(&mut self, id: u32) {
        self.references.remove(&id);
    }
}
