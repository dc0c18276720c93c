//! The node's capabilities that the exporter has.

use std::collections::{HashMap, HashSet};

/// By the node's numbers for them.
#[derive(Default)]
pub(super) struct NodeCapabilities {
    /// The references that the exporter has to each.
    references: HashMap<u32, u32>,
    /// Those that are threads, which calls may pass to the node. No others are passed.
    threads: HashSet<u32>,
}

impl NodeCapabilities {
    pub fn has(&self, id: u32) -> bool {
        self.references.get(&id).is_some_and(|&references| references > 0)
    }

    pub fn is_thread(&self, id: u32) -> bool {
        self.threads.contains(&id)
    }

    /// The exporter has each of these once more.
    pub fn add_refs(&mut self, ids: &[u32]) {
        ids.iter().for_each(|&id| *self.references.entry(id).or_default() += 1);
    }

    /// These came with an answer; whether they are threads. The number of a released one may be used again.
    pub fn set_threads(&mut self, ids: &[u32], are_threads: bool) {
        for id in ids {
            if are_threads {
                self.threads.insert(*id)
            } else {
                self.threads.remove(id)
            };
        }
    }

    /// The exporter drops references; false if it does not have so many.
    pub fn release(&mut self, id: u32, count: u32) -> bool {
        match self.references.get_mut(&id) {
            Some(references) if *references >= count => {
                *references -= count;
                true
            }
            _ => false,
        }
    }

    /// The exporter has it no more.
    pub fn remove(&mut self, id: u32) {
        self.references.remove(&id);
    }
}
