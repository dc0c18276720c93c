//! The tracepoints that a binary has, from its ELF notes.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use object::elf::{FileHeader64, NoteType};
use object::read::elf::{FileHeader, SectionHeader};
use object::{Endianness, ReadCache};

/// A place in a binary where a tracepoint fires. One tracepoint may have several.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// `validation`
    pub provider: String,
    /// `block_connected`
    pub name: String,
    /// Its arguments as compiled, `-8@%rbx 4@24(%rcx)`.
    pub arguments: String,
}

impl Site {
    /// `validation:block_connected`
    pub fn probe(&self) -> String {
        format!("{}:{}", self.provider, self.name)
    }
}

/// What the notes of SystemTap's `sys/sdt.h` say.
const STAPSDT: (&[u8], NoteType) = (b"stapsdt", NoteType(3));
/// Before the strings: three addresses.
const ADDRESSES: usize = 3 * 8;

/// All sites of a 64-bit binary.
pub fn sites(path: &Path) -> Result<Vec<Site>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    read(&ReadCache::new(file)).with_context(|| format!("{} is not a 64-bit ELF binary", path.display()))
}

fn read(data: &ReadCache<File>) -> object::Result<Vec<Site>> {
    let header = FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    let mut sites = Vec::new();
    for section in header.sections(endian, data)?.iter() {
        let Some(mut notes) = section.notes(endian, data)? else { continue };
        while let Some(note) = notes.next()? {
            if (note.name(), note.n_type(endian)) == STAPSDT
                && let Some(strings) = note.desc().get(ADDRESSES..)
            {
                let mut strings = strings.split(|&byte| byte == 0).map(String::from_utf8_lossy);
                let mut next = || strings.next().unwrap_or_default().into_owned();
                sites.push(Site { provider: next(), name: next(), arguments: next() });
            }
        }
    }
    Ok(sites)
}
