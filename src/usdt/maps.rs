//! Reading the programs' maps, by the structs of the generated code.

use std::collections::BTreeMap;
use std::sync::Mutex;

use anyhow::Result;
use libbpf_rs::{MapCore, MapFlags, MapHandle, Object};

/// A C struct of the generated code.
///
/// # Safety
/// It is `repr(C)` and made of integers: any bytes of its size are a value of it.
pub(super) unsafe trait Pod: Copy {}

/// A struct whose sum over all processors is that of its fields.
///
/// # Safety
/// It is `repr(C)` and made of u64 alone.
pub(super) unsafe trait PerCpuCounts: Copy + Default {}

// SAFETY: an array of integers.
unsafe impl<const N: usize> Pod for [u8; N] {}
// SAFETY: u64 are integers.
unsafe impl<T: PerCpuCounts> Pod for T {}

/// The maps of a group's programs, by name, which ends in `_map`. Without programs there are none, and what is read of them is 0.
#[derive(Default)]
pub(super) struct Maps(BTreeMap<String, MapHandle>);

impl Maps {
    /// Those that our files declare; libbpf has some of its own.
    pub fn from_object(programs: &Object) -> Result<Self> {
        let named = programs.maps().map(|map| (map.name().to_string_lossy().into_owned(), map));
        let ours = named.filter(|(name, _)| name.ends_with("_map"));
        Ok(Maps(ours.map(|(name, map)| Ok((name, MapHandle::try_from(&map)?))).collect::<Result<_>>()?))
    }

    /// A map that every file with programs need not have.
    pub fn find(&self, name: &str) -> Option<&MapHandle> {
        self.0.get(name)
    }

    /// A map of the group's own; `None` only if nothing is loaded.
    pub fn get(&self, name: &str) -> Option<&MapHandle> {
        let map = self.find(name);
        debug_assert!(map.is_some() || self.0.is_empty(), "there is no {name}");
        map
    }

    /// The value of a map that has a single one.
    pub fn single_value<T: Pod + Default>(&self, name: &str) -> T {
        let value = self.get(name).and_then(|map| map.lookup(&FIRST_KEY, MapFlags::ANY).ok()?);
        value.and_then(|value| decode(&value)).unwrap_or_default()
    }

    /// The sum over all processors of such a value; 0 if it cannot be read.
    pub fn sum<T: PerCpuCounts>(&self, name: &str) -> T {
        let processors = self.get(name).and_then(|map| map.lookup_percpu(&FIRST_KEY, MapFlags::ANY).ok()?);
        let mut sums = vec![0; size_of::<T>()];
        for processor in processors.unwrap_or_default() {
            for (sum, word) in sums.as_chunks_mut::<8>().0.iter_mut().zip(processor.as_chunks::<8>().0) {
                *sum = u64::from_ne_bytes(*sum).wrapping_add(u64::from_ne_bytes(*word)).to_ne_bytes();
            }
        }
        decode(&sums).unwrap_or_default()
    }

    /// Sets all values of an array to 0.
    pub fn zero(&self, name: &str) {
        let Some(map) = self.get(name) else { return };
        let zero = vec![0; map.value_size() as usize];
        for place in 0..map.max_entries() {
            let _ = map.update(&place.to_ne_bytes(), &zero, MapFlags::ANY);
        }
    }

    /// Gives the names their numbers, from 0 on, in a `NAMES_MAP`.
    pub fn number_names<'a>(&self, name: &str, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let Some(map) = self.get(name) else { return Ok(()) };
        for (number, name) in (0u32..).zip(names) {
            let mut key = vec![0; map.key_size() as usize];
            key[..name.len()].copy_from_slice(name.as_bytes());
            map.update(&key, &number.to_ne_bytes(), MapFlags::ANY)?;
        }
        Ok(())
    }
}

const FIRST_KEY: [u8; 4] = [0; 4];

/// The struct in these bytes, if they are as many as it has.
pub(super) fn decode<T: Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: there are enough bytes, and any are valid for a `Pod` type.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Changes the struct in these bytes.
pub(super) fn modify<T: Pod>(bytes: &mut [u8], change: impl FnOnce(&mut T)) {
    let decoded = decode::<T>(bytes);
    debug_assert!(decoded.is_some(), "{} bytes are no {}", bytes.len(), std::any::type_name::<T>());
    if let Some(mut value) = decoded {
        change(&mut value);
        // SAFETY: `decode` has checked that the bytes are as many as the struct has.
        unsafe { bytes.as_mut_ptr().cast::<T>().write_unaligned(value) };
    }
}

/// Counts by keys that peers choose, a `TALLIES_MAP`. Of more than `limit` keys, those that were counted least recently are removed;
/// their counts are kept, and no sum decreases.
pub(super) struct TallyMap<K> {
    map: &'static str,
    limit: usize,
    /// The group of a key, whose counts stay together when it is removed.
    group: fn(&K) -> u32,
    removed: Mutex<BTreeMap<u32, u64>>,
}

/// The counts at one moment.
pub(super) struct TallySnapshot<K> {
    pub present: Vec<(K, u64)>,
    /// The sum of those that were removed, by group.
    pub removed: BTreeMap<u32, u64>,
}

impl<K: Pod> TallyMap<K> {
    pub fn new(map: &'static str, limit: usize, group: fn(&K) -> u32) -> Self {
        TallyMap { map, limit, group, removed: Mutex::default() }
    }

    /// Reads them, after the removal of those that are too many.
    pub fn read(&self, maps: &Maps) -> TallySnapshot<K> {
        let Some(map) = maps.get(self.map) else {
            return TallySnapshot { present: Vec::new(), removed: BTreeMap::new() };
        };
        let mut removed = self.removed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let keys: Vec<_> = map.keys().collect();
        let mut present: Vec<_> = keys
            .into_iter()
            .filter_map(|key| {
                let (number, last_ns) = tally(&map.lookup(&key, MapFlags::ANY).ok()??)?;
                Some((last_ns, key, number))
            })
            .collect();
        present.sort();
        let too_many = present.len().saturating_sub(self.limit);
        for (_, key, number) in present.drain(..too_many) {
            // Before Linux 5.14 the count cannot be taken with the key; what is added in between is lost.
            let taken = map.lookup_and_delete(&key).ok().flatten().and_then(|value| tally(&value));
            let number = taken.map_or(number, |(number, _)| number);
            let is_gone = taken.is_some() || map.delete(&key).is_ok();
            if let Some(key) = decode::<K>(&key).filter(|_| is_gone) {
                *removed.entry((self.group)(&key)).or_default() += number;
            }
        }
        let present = present.iter().filter_map(|(_, key, number)| Some((decode(key)?, *number)));
        TallySnapshot { present: present.collect(), removed: removed.clone() }
    }
}

/// The number and the time of a `struct tally`.
fn tally(value: &[u8]) -> Option<(u64, u64)> {
    let (number, rest) = value.split_first_chunk()?;
    Some((u64::from_ne_bytes(*number), u64::from_ne_bytes(*rest.first_chunk()?)))
}

/// Counts by the numbers of names; the last count is that of all other names.
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
