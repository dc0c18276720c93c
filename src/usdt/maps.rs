//! Reading the programs' maps, by the structs of the generated code.

use std::collections::BTreeMap;
use std::sync::Mutex;

use anyhow::Result;
use libbpf_rs::{MapCore, MapFlags, MapHandle};

/// A C struct of the generated code.
///
/// # Safety
/// It is `repr(C)` and made of integers, so that any bytes of its size are a value of it.
pub(super) unsafe trait Plain: Copy {}

/// A struct whose sum over all processors is that of its fields.
///
/// # Safety
/// It is made of u64 alone.
pub(super) unsafe trait Counts: Plain {}

// SAFETY: an array of integers.
unsafe impl<const N: usize> Plain for [u8; N] {}

/// Includes the code that was generated from a BPF file as module `bpf`, and lists its structs that are read: those that
/// are [`Counts`], then those that are [`Plain`].
macro_rules! skeleton {
    ($file:literal, counts: [$($counts:ident),*], plain: [$($plain:ident),*]) => {
        #[allow(
            missing_docs,
            clippy::all,
            clippy::pedantic,
            clippy::allow_attributes_without_reason,
            clippy::undocumented_unsafe_blocks,
            reason = "generated"
        )]
        mod bpf {
            include!(concat!(env!("OUT_DIR"), "/", $file, ".skel.rs"));
        }
        $(
            // SAFETY: see its declaration in the BPF file.
            unsafe impl crate::usdt::maps::Plain for bpf::types::$counts {}
            // SAFETY: likewise.
            unsafe impl crate::usdt::maps::Counts for bpf::types::$counts {}
        )*
        $(
            // SAFETY: likewise.
            unsafe impl crate::usdt::maps::Plain for bpf::types::$plain {}
        )*
    };
}
pub(super) use skeleton;

const FIRST: [u8; 4] = [0; 4];

/// The struct in these bytes, if they are as many as it has.
pub(super) fn decode<T: Plain>(bytes: &[u8]) -> Option<T> {
    // SAFETY: there are enough bytes, and any are valid for a `Plain` type.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// The value of a map that has a single one.
pub(super) fn single_value<T: Plain>(map: &impl MapCore) -> Option<T> {
    decode(&map.lookup(&FIRST, MapFlags::ANY).ok()??)
}

/// The sum over all processors of such a value; `None` if it cannot be read.
pub(super) fn sum<T: Counts>(map: &impl MapCore) -> Option<T> {
    let processors = map.lookup_percpu(&FIRST, MapFlags::ANY).ok()??;
    let mut sums = vec![0; size_of::<T>()];
    for processor in processors {
        for (sum, word) in sums.as_chunks_mut::<8>().0.iter_mut().zip(processor.as_chunks::<8>().0) {
            *sum = u64::from_ne_bytes(*sum).wrapping_add(u64::from_ne_bytes(*word)).to_ne_bytes();
        }
    }
    decode(&sums)
}

/// Counts by keys that peers choose, a `TALLIES_MAP`. Of more than `limit` keys, those that were counted least recently are removed;
/// their counts are kept, so that no sum decreases.
pub(super) struct Tallies<K> {
    map: MapHandle,
    limit: usize,
    /// What a key belongs to, whose counts stay together when it is removed.
    group: fn(&K) -> u32,
    removed: Mutex<BTreeMap<u32, u64>>,
}

/// The counts at one moment.
pub(super) struct Tallied<K> {
    pub present: Vec<(K, u64)>,
    /// The sum of those that were removed, by group.
    pub removed: BTreeMap<u32, u64>,
}

impl<K: Plain> Tallies<K> {
    pub fn new(map: MapHandle, limit: usize, group: fn(&K) -> u32) -> Self {
        Tallies { map, limit, group, removed: Mutex::default() }
    }

    /// Reads them, after the removal of those that are too many.
    pub fn read(&self) -> Tallied<K> {
        let mut removed = self.removed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let keys: Vec<_> = self.map.keys().collect();
        let mut present: Vec<_> = keys
            .into_iter()
            .filter_map(|key| {
                let (number, last_ns) = tally(&self.map.lookup(&key, MapFlags::ANY).ok()??)?;
                Some((last_ns, key, number))
            })
            .collect();
        present.sort();
        let too_many = present.len().saturating_sub(self.limit);
        for (_, key, number) in present.drain(..too_many) {
            // Before Linux 5.14 the count cannot be taken with the key; what is added in between is lost.
            let taken = self.map.lookup_and_delete(&key).ok().flatten().and_then(|value| tally(&value));
            let number = taken.map_or(number, |(number, _)| number);
            let is_gone = taken.is_some() || self.map.delete(&key).is_ok();
            if let Some(key) = decode::<K>(&key).filter(|_| is_gone) {
                *removed.entry((self.group)(&key)).or_default() += number;
            }
        }
        let present = present.iter().filter_map(|(_, key, number)| Some((decode(key)?, *number)));
        Tallied { present: present.collect(), removed: removed.clone() }
    }
}

/// The number and the time of a `struct tally`.
fn tally(value: &[u8]) -> Option<(u64, u64)> {
    let (number, rest) = value.split_first_chunk()?;
    Some((u64::from_ne_bytes(*number), u64::from_ne_bytes(*rest.first_chunk()?)))
}

/// Gives the names their numbers, from 0 on, in a `NAMES_MAP`.
pub(super) fn number_names<'a>(map: &impl MapCore, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
    for (number, name) in (0u32..).zip(names) {
        let mut key = vec![0; map.key_size() as usize];
        key[..name.len()].copy_from_slice(name.as_bytes());
        map.update(&key, &number.to_ne_bytes(), MapFlags::ANY)?;
    }
    Ok(())
}

/// What was counted by the numbers of names; the last count is that of all other names.
pub(super) fn by_name<'a, T>(
    names: impl IntoIterator<Item = &'a str>,
    counts: &[T],
) -> impl Iterator<Item = (&'a str, &T)> {
    names.into_iter().zip(counts).chain(counts.last().map(|other| ("other", other)))
}

/// A C string in an array.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

pub(super) use crate::bitcoin_core::hash_text as hash;
