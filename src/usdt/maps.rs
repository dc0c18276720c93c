//! Reads the BPF maps, in which the BPF programs count, and decodes their values to structs that `build.rs` generates.

use std::collections::BTreeMap;
use std::sync::Mutex;

use anyhow::Result;
use libbpf_rs::{MapCore, MapFlags, MapHandle, Object};

/// A type that can be decoded from the bytes of a BPF map or event, such as a struct that `build.rs` generates from a
/// BPF file.
///
/// # Safety
/// The type is `repr(C)` and consists of integers only. Any bytes of the type's size are therefore a valid value.
pub(super) unsafe trait Pod: Copy {}

// SAFETY: an array of integers.
unsafe impl<const N: usize> Pod for [u8; N] {}

/// The BPF maps of one group of tracepoints. If no programs are loaded, a `Maps` is empty and all its reads return 0.
#[derive(Default)]
pub(super) struct Maps {
    /// The maps by name. The names end in `_map`.
    handles: BTreeMap<String, MapHandle>,
    /// Sum of the counts of the keys that [`Maps::tallies`] has removed, by name of the map and by the group that the
    /// caller of [`Maps::tallies`] assigns to a key.
    removed: Mutex<BTreeMap<(&'static str, u32), u64>>,
}

impl Maps {
    /// The maps that the BPF files of this crate declare. Maps that libbpf adds are skipped.
    ///
    /// # Errors
    /// The descriptor of a map cannot be duplicated.
    pub fn from_object(programs: &Object) -> Result<Self> {
        let named = programs.maps().map(|map| (map.name().to_string_lossy().into_owned(), map));
        let ours = named.filter(|(name, _)| name.ends_with("_map"));
        let handles =
            ours.map(|(name, map)| Ok((name, MapHandle::try_from(&map)?))).collect::<Result<_>>()?;
        Ok(Maps { handles, removed: Mutex::default() })
    }

    /// A map that only some BPF files declare; `None` if this group's file does not declare the map.
    pub fn find(&self, name: &str) -> Option<&MapHandle> {
        self.handles.get(name)
    }

    /// A map that the group's BPF file declares; `None` if no programs are loaded.
    pub fn get(&self, name: &str) -> Option<&MapHandle> {
        let map = self.find(name);
        debug_assert!(map.is_some() || self.handles.is_empty(), "there is no {name}");
        map
    }

    /// The value of a map with a single value (`SINGLE_VALUE_MAP`); 0 if it cannot be read.
    pub fn single_value<T: Pod + Default>(&self, name: &str) -> T {
        let value = self.get(name).and_then(|map| map.lookup(&FIRST_KEY, MapFlags::ANY).ok()?);
        value.and_then(|value| decode(&value)).unwrap_or_default()
    }

    /// The value of a per-CPU map with a single value, summed over all CPUs; 0 if it cannot be read. The fields of the
    /// struct must be u64, because each word of 64 bits is summed separately.
    pub fn sum<T: Pod + Default>(&self, name: &str) -> T {
        let processors = self.get(name).and_then(|map| map.lookup_percpu(&FIRST_KEY, MapFlags::ANY).ok()?);
        let mut sums = vec![0; size_of::<T>()];
        for processor in processors.unwrap_or_default() {
            for (sum, word) in sums.as_chunks_mut::<8>().0.iter_mut().zip(processor.as_chunks::<8>().0) {
                *sum = u64::from_ne_bytes(*sum).wrapping_add(u64::from_ne_bytes(*word)).to_ne_bytes();
            }
        }
        decode(&sums).unwrap_or_default()
    }

    /// Sets all values of an array map to 0.
    pub fn zero(&self, name: &str) {
        let Some(map) = self.get(name) else { return };
        let zero = vec![0; map.value_size() as usize];
        for place in 0..map.max_entries() {
            let _ = map.update(&place.to_ne_bytes(), &zero, MapFlags::ANY);
        }
    }

    /// Fills a `NAMES_MAP` (a BPF map from names to indexes) with these names. Each name gets its position in `names`,
    /// counted from 0, as its index.
    ///
    /// # Errors
    /// The kernel rejects an update of the map.
    pub fn number_names<'a>(&self, name: &str, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
        self.set_by_name(
            name,
            names.into_iter().zip(0u32..).map(|(name, number)| (name, number.to_ne_bytes())),
        )
    }

    /// Sets the values of these names in a map whose keys are names, padded with NUL.
    fn set_by_name<'a, const N: usize>(
        &self,
        name: &str,
        values: impl Iterator<Item = (&'a str, [u8; N])>,
    ) -> Result<()> {
        let Some(map) = self.get(name) else { return Ok(()) };
        for (name, value) in values {
            let mut key = vec![0; map.key_size() as usize];
            key[..name.len()].copy_from_slice(name.as_bytes());
            map.update(&key, &value, MapFlags::ANY)?;
        }
        Ok(())
    }

    /// Adds names to a `TALLIES_MAP` with a count of 0, so the time series of these names are exported before the first
    /// event.
    ///
    /// # Errors
    /// The kernel rejects an update of the map.
    pub fn add_tallies<'a>(&self, name: &str, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
        self.set_by_name(name, names.into_iter().map(|name| (name, [0; size_of::<u64>() * 2])))
    }

    /// Reads a `TALLIES_MAP`, a BPF map with a count of hits for each key. Returns the keys with their counts, and the
    /// sum of the counts of all keys that were ever removed, by the group that `group` assigns to a key, for example
    /// the relay mechanism. Peers choose the keys, so if there are more than `limit` keys, the least recently counted
    /// keys are removed. The sum of all returned counts never decreases.
    pub fn tallies<K: Pod>(
        &self,
        name: &'static str,
        limit: usize,
        group: fn(&K) -> u32,
    ) -> (Vec<(K, u64)>, BTreeMap<u32, u64>) {
        let Some(map) = self.get(name) else { return Default::default() };
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
        let too_many = present.len().saturating_sub(limit);
        for (_, key, number) in present.drain(..too_many) {
            // On kernels before Linux 5.14, an entry of a BPF hash map cannot be read and deleted in one step, and hits
            // of the tracepoint between the two steps are not counted.
            let taken = map.lookup_and_delete(&key).ok().flatten().and_then(|value| tally(&value));
            let number = taken.map_or(number, |(number, _)| number);
            let is_gone = taken.is_some() || map.delete(&key).is_ok();
            if let Some(key) = decode(&key).filter(|_| is_gone) {
                *removed.entry((name, group(&key))).or_default() += number;
            }
        }
        let present = present.iter().filter_map(|(_, key, number)| Some((decode(key)?, *number)));
        let removed = removed.iter().filter(|((map, _), _)| *map == name);
        (present.collect(), removed.map(|((_, group), sum)| (*group, *sum)).collect())
    }

    /// The counts of a `TALLIES_MAP` whose keys are texts, by label value, sorted. `label` converts a text to its label
    /// value. Two counts have the label value `other`, which comes last: the counts of texts that were removed because
    /// there were more than [`MAX_TEXTS`], and `unknown`, the count of texts that did not fit into the map.
    pub fn tallies_by_label<const N: usize>(
        &self,
        name: &'static str,
        unknown: u64,
        label: fn(&[u8; N]) -> String,
    ) -> Vec<([String; 1], u64)> {
        let (present, removed) = self.tallies(name, MAX_TEXTS, |_| 0);
        let mut counts = BTreeMap::<String, u64>::new();
        for (text, count) in &present {
            *counts.entry(label(text)).or_default() += count;
        }
        let other = unknown + removed.values().sum::<u64>();
        let other = (other > 0).then(|| (["other".to_string()], other));
        counts.into_iter().map(|(label, count)| ([label], count)).chain(other).collect()
    }
}

/// Maximum number of texts, for example reasons for the rejection of a transaction, that have their own time series.
const MAX_TEXTS: usize = 64;

/// Key of the only value of a `SINGLE_VALUE_MAP`.
pub(super) const FIRST_KEY: [u8; 4] = [0; 4];

/// Decodes these bytes to a struct; `None` if the number of bytes differs from the size of the struct.
pub(super) fn decode<T: Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: the number of bytes is the size of `T`, and any bytes are a valid value of a `Pod` type.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Decodes the struct in these bytes, changes the struct with `change`, and writes it back to the bytes.
pub(super) fn modify<T: Pod>(bytes: &mut [u8], change: impl FnOnce(&mut T)) {
    let decoded = decode::<T>(bytes);
    debug_assert!(decoded.is_some(), "{} bytes are no {}", bytes.len(), std::any::type_name::<T>());
    if let Some(mut value) = decoded {
        change(&mut value);
        // SAFETY: `decode` has checked that the number of bytes is the size of `T`.
        unsafe { bytes.as_mut_ptr().cast::<T>().write_unaligned(value) };
    }
}

/// Decodes a value of a `TALLIES_MAP` to the count of a key, and the time of the last hit with this key.
fn tally(value: &[u8]) -> Option<(u64, u64)> {
    let (number, rest) = value.split_first_chunk()?;
    Some((u64::from_ne_bytes(*number), u64::from_ne_bytes(*rest.first_chunk()?)))
}

/// Pairs each name with the count at the same index. The last element of `counts` gets the name `other`.
pub(super) fn by_name<'a, T>(
    names: impl IntoIterator<Item = &'a str>,
    counts: &[T],
) -> impl Iterator<Item = (&'a str, &T)> {
    names.into_iter().zip(counts).chain(counts.last().map(|other| ("other", other)))
}

/// The NUL-terminated string in an array of bytes.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

pub(super) use crate::bitcoin_core::hash_text as hash;
