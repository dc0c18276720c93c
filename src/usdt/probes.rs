//! The tracepoints that a binary has, from its ELF notes.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use object::elf::{FileHeader64, NoteType};
use object::read::elf::{FileHeader, SectionHeader};
use object::{Endianness, ReadCache};

use super::watch::Target;
use super::{Programs, Subject};
use crate::node_process::Node;

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

/// The table of `--list-probes`.
pub fn print_table(subjects: &[Subject], target: &Target, node: Option<Node>) -> Result<()> {
    let path = match (&node, &target.binary) {
        (Some(node), _) => {
            Some(node.running_binary()).filter(|path| path.metadata().is_ok()).unwrap_or(node.binary.clone())
        }
        (None, Some(path)) => path.clone(),
        (None, None) => bail!("no node runs; name the binary with --bitcoind"),
    };
    let sites = sites(&path)?;
    let attached = match &node {
        Some(node) => Programs::load(subjects).map(|mut programs| programs.attach(node.pid, &path)),
        None => Err(anyhow!("the node does not run")),
    };
    if let Err(error) = &attached {
        eprintln!("not attached: {error:#}");
    }
    println!("{:<36} {:<10} {:<10} {:<72} METRICS", "PROBE", "IN BINARY", "ATTACHED", "ARGUMENTS");
    for subject in subjects {
        let functions = subject.functions();
        for name in (functions.tracepoints)()? {
            let site = sites.iter().find(|site| site.probe() == name);
            let is_attached =
                attached.as_ref().is_ok_and(|all| all.iter().any(|it| it.name == name && it.result.is_ok()));
            let yes = |is: bool| if is { "yes" } else { "no" };
            println!(
                "{name:<36} {:<10} {:<10} {:<72} {}",
                yes(site.is_some()),
                yes(is_attached),
                site.map_or("", |site| &site.arguments),
                (functions.feeds)(&name).join(" ")
            );
        }
    }
    Ok(())
}
