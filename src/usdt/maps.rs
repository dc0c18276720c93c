//! Reading the programs' maps, by the structs of the generated code.

use anyhow::Result;
use libbpf_rs::{MapCore, MapFlags};

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

/// The keys and counts of a hash.
pub(super) fn entries(map: &impl MapCore) -> impl Iterator<Item = (Vec<u8>, u64)> {
    map.keys().filter_map(|key| {
        let count = map.lookup(&key, MapFlags::ANY).ok().flatten()?;
        Some((key, u64::from_ne_bytes(count.try_into().ok()?)))
    })
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

/// A hash as people write it.
pub(super) fn hash(bytes: &[u8; 32]) -> String {
    bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect()
}
