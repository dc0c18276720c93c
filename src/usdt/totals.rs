//! Reading the counts out of the kernel.

use std::collections::BTreeSet;

use anyhow::Result;
use libbpf_rs::{MapCore, MapFlags, MapHandle};

use super::programs::{Seen, Subject};
use super::skeletons::{fibre, mempool, net, utxocache, validation};

/// A subject's counts: a C struct of nothing but u64.
///
/// # Safety
/// The type is `repr(C)`, and every field of it is a u64, or made of such.
pub(super) unsafe trait Counts: Copy + Default {}
// SAFETY: see `struct counts` in each file of programs.
unsafe impl Counts for fibre::types::counts {}
// SAFETY: likewise.
unsafe impl Counts for validation::types::counts {}
// SAFETY: likewise.
unsafe impl Counts for net::types::counts {}
// SAFETY: likewise.
unsafe impl Counts for mempool::types::counts {}
// SAFETY: likewise.
unsafe impl Counts for utxocache::types::counts {}

/// The maps of all subjects that were loaded.
#[derive(Default)]
pub(super) struct Maps {
    pub fibre: Option<MapHandle>,
    pub fibre_gauges: Option<MapHandle>,
    pub deliveries: Option<MapHandle>,
    pub validation: Option<MapHandle>,
    pub net: Option<MapHandle>,
    pub connections: Option<MapHandle>,
    pub mempool: Option<MapHandle>,
    pub rejected: Option<MapHandle>,
    pub utxocache: Option<MapHandle>,
    pub flush_gauges: Option<MapHandle>,
    pub events: Vec<(Subject, MapHandle)>,
}

impl Maps {
    pub fn try_clone(&self) -> Result<Self> {
        let clone = |map: &Option<MapHandle>| map.as_ref().map(MapHandle::try_from).transpose();
        Ok(Maps {
            fibre: clone(&self.fibre)?,
            fibre_gauges: clone(&self.fibre_gauges)?,
            deliveries: clone(&self.deliveries)?,
            validation: clone(&self.validation)?,
            net: clone(&self.net)?,
            connections: clone(&self.connections)?,
            mempool: clone(&self.mempool)?,
            rejected: clone(&self.rejected)?,
            utxocache: clone(&self.utxocache)?,
            flush_gauges: clone(&self.flush_gauges)?,
            events: Vec::new(),
        })
    }

    pub fn forget_connections(&self) {
        for direction in 0u32..2 {
            if let Some(connections) = &self.connections {
                let _ = connections.update(&direction.to_ne_bytes(), &[0; 16], MapFlags::ANY);
            }
        }
    }
}

/// All counts at one moment.
pub struct Totals {
    pub(super) fibre: fibre::types::counts,
    pub(super) validation: validation::types::counts,
    pub(super) net: net::types::counts,
    pub(super) mempool: mempool::types::counts,
    pub(super) utxocache: utxocache::types::counts,
    pub(super) last_height: Option<i64>,
    /// Mechanism, peer, deliveries.
    pub(super) deliveries: Vec<(usize, String, u64)>,
    /// Connections in and out.
    pub(super) connections: [Option<i64>; 2],
    /// Reasons and how often, largest set first come.
    pub(super) rejected: Vec<(String, u64)>,
    /// Coins and bytes of the last flush.
    pub(super) flushed: [Option<i64>; 2],
    pub(super) attached: usize,
    seen: BTreeSet<String>,
}

impl Totals {
    pub(super) fn read(maps: &Maps, seen: &Seen) -> Self {
        let mut deliveries: Vec<_> = entries(&maps.deliveries)
            .map(|(key, deliveries)| {
                let mechanism = u32::from_ne_bytes(key[..4].try_into().expect("four bytes"));
                (mechanism as usize, text(&key[4..]), deliveries)
            })
            .collect();
        let mut rejected: Vec<_> = entries(&maps.rejected).map(|(key, count)| (text(&key), count)).collect();
        deliveries.sort();
        rejected.sort();
        Totals {
            fibre: sum(&maps.fibre),
            validation: sum(&maps.validation),
            net: sum(&maps.net),
            mempool: sum(&maps.mempool),
            utxocache: sum(&maps.utxocache),
            last_height: gauge(&maps.fibre_gauges, 0),
            deliveries,
            connections: [0, 1].map(|direction| gauge(&maps.connections, direction)),
            rejected,
            flushed: [0, 1].map(|place| gauge(&maps.flush_gauges, place)),
            attached: seen.attached,
            seen: seen.tracepoints.clone(),
        }
    }

    /// Whether one of these tracepoints (`a:b, c:d`) was attached at some time.
    pub(super) fn sees(&self, tracepoints: &str) -> bool {
        tracepoints.split(", ").any(|tracepoint| self.seen.contains(tracepoint))
    }
}

/// The sum over all processors; zeros for a subject that was not loaded.
fn sum<T: Counts>(map: &Option<MapHandle>) -> T {
    let processors = map
        .as_ref()
        .and_then(|map| map.lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY).ok().flatten())
        .unwrap_or_default();
    let mut sums = vec![0u64; size_of::<T>() / 8];
    for processor in processors {
        for (sum, word) in sums.iter_mut().zip(processor.chunks_exact(8)) {
            *sum = sum.wrapping_add(u64::from_ne_bytes(word.try_into().expect("eight bytes")));
        }
    }
    // SAFETY: `sums` has the size and the alignment of `T`, which is made of u64, for which all values are valid.
    unsafe { sums.as_ptr().cast::<T>().read() }
}

/// `struct gauge`: whether it is known, and the value.
fn gauge(map: &Option<MapHandle>, place: u32) -> Option<i64> {
    let bytes = map.as_ref()?.lookup(&place.to_ne_bytes(), MapFlags::ANY).ok().flatten()?;
    let word = |at: usize| i64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    (word(0) != 0).then(|| word(8))
}

/// The keys and counts of a hash.
fn entries(map: &Option<MapHandle>) -> impl Iterator<Item = (Vec<u8>, u64)> {
    map.iter().flat_map(|map| {
        map.keys().filter_map(|key| {
            let count = map.lookup(&key, MapFlags::ANY).ok().flatten()?;
            Some((key, u64::from_ne_bytes(count.try_into().ok()?)))
        })
    })
}

/// A C string in an array.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
