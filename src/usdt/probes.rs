//! Lists the tracepoints of a binary, from its ELF notes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use object::elf::{self, FileHeader64, Machine, NoteType};
use object::read::elf::{FileHeader, SectionHeader};
use object::{Endianness, ReadCache};

use super::attach_loop::readable_binary;
use super::programs::tracepoints;
use super::target::NodeSearch;
use super::{Programs, TracepointGroup, blocks};
use crate::cli;

/// An instruction of a binary at which a tracepoint fires. A tracepoint can have several sites.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// Provider of the tracepoint, for example `validation`.
    pub provider: String,
    /// Name of the tracepoint, for example `block_connected`.
    pub name: String,
    /// Arguments of the tracepoint as the compiler placed them, each with its size and its location, for example
    /// `-8@%rbx 4@24(%rcx)`.
    pub arguments: String,
    machine: Machine,
}

impl Site {
    /// Full name of the tracepoint, for example `validation:block_connected`.
    pub fn probe(&self) -> String {
        format!("{}:{}", self.provider, self.name)
    }

    /// Arguments whose location libbpf cannot parse. libbpf does not attach to a tracepoint with such an argument.
    pub fn unreadable(&self) -> Vec<&str> {
        operands(&self.arguments).into_iter().filter(|operand| !is_readable(self.machine, operand)).collect()
    }
}

/// Name and type of the ELF notes that describe tracepoints (written by SystemTap's `sys/sdt.h`).
const STAPSDT: (&[u8], NoteType) = (b"stapsdt", NoteType(3));
/// Size in bytes of the three addresses that precede the strings in the ELF note of a tracepoint.
const ADDRESSES: usize = 3 * 8;

/// All tracepoint sites of a 64-bit ELF binary.
///
/// # Errors
/// The file cannot be read, or is not a 64-bit ELF binary.
pub fn sites(path: &Path) -> Result<Vec<Site>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    read(&ReadCache::new(file)).with_context(|| format!("{} is not a 64-bit ELF binary", path.display()))
}

fn read(data: &ReadCache<File>) -> object::Result<Vec<Site>> {
    let header = FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    let machine = header.e_machine(endian);
    let mut sites = Vec::new();
    for section in header.sections(endian, data)?.iter() {
        let Some(mut notes) = section.notes(endian, data)? else { continue };
        while let Some(note) = notes.next()? {
            if (note.name(), note.n_type(endian)) == STAPSDT
                && let Some(strings) = note.desc().get(ADDRESSES..)
            {
                let mut strings = strings.split(|&byte| byte == 0).map(String::from_utf8_lossy);
                let mut next = || strings.next().unwrap_or_default().into_owned();
                sites.push(Site { provider: next(), name: next(), arguments: next(), machine });
            }
        }
    }
    Ok(sites)
}

/// Splits the arguments of a tracepoint into operands of the form `SIZE@LOCATION`. A location in brackets can contain
/// spaces.
fn operands(arguments: &str) -> Vec<&str> {
    let mut in_brackets = false;
    let operands = arguments.split(|character: char| {
        match character {
            '[' => in_brackets = true,
            ']' => in_brackets = false,
            _ => {}
        }
        character.is_whitespace() && !in_brackets
    });
    operands.filter(|operand| !operand.is_empty()).collect()
}

/// Whether libbpf can read this operand, by the rules of `parse_usdt_arg` in libbpf's usdt.c.
fn is_readable(machine: Machine, operand: &str) -> bool {
    let Some((size, place)) = operand.split_once('@') else { return false };
    let is_number = |text: &str| text.trim().parse::<i64>().is_ok();
    let is_sized = matches!(size.parse::<i8>().map(i8::unsigned_abs), Ok(1 | 2 | 4 | 8));
    is_sized
        && match machine {
            elf::EM_X86_64 => match (place.strip_prefix('$'), place.strip_suffix(')')) {
                (Some(constant), _) => is_number(constant),
                (None, None) => is_x86_register(place),
                (None, Some(address)) => {
                    let (offset, registers) = address.split_once('(').unwrap_or_default();
                    let mut registers = registers.split(',');
                    (offset.is_empty() || is_number(offset))
                        && registers.next().is_some_and(is_x86_register)
                        && registers.next().is_none_or(is_x86_register)
                        && registers.next().is_none_or(|scale| matches!(scale, "1" | "2" | "4" | "8"))
                }
            },
            elf::EM_AARCH64 => match place.strip_prefix('[').and_then(|address| address.strip_suffix(']')) {
                Some(address) => match address.split_once(',') {
                    Some((register, offset)) => is_arm_register(register) && is_number(offset),
                    None => is_arm_register(address),
                },
                None => is_number(place) || is_arm_register(place),
            },
            _ => false,
        }
}

fn is_x86_register(text: &str) -> bool {
    const NAMES: [&str; 34] = [
        "rip", "eip", "rax", "eax", "ax", "al", "rbx", "ebx", "bx", "bl", "rcx", "ecx", "cx", "cl", "rdx",
        "edx", "dx", "dl", "rsi", "esi", "si", "sil", "rdi", "edi", "di", "dil", "rbp", "ebp", "bp", "bpl",
        "rsp", "esp", "sp", "spl",
    ];
    let Some(name) = text.trim().strip_prefix('%') else { return false };
    let numbered = name.strip_suffix(['b', 'w', 'd']).unwrap_or(name).strip_prefix('r');
    NAMES.contains(&name)
        || numbered.and_then(|number| number.parse().ok()).is_some_and(|it| (8..16).contains(&it))
}

fn is_arm_register(text: &str) -> bool {
    let text = text.trim();
    text == "sp"
        || text.strip_prefix('x').and_then(|number| number.parse().ok()).is_some_and(|it: u8| it < 31)
}

/// The table that `--list-probes` prints, with a row for each tracepoint. The columns show whether the binary has the
/// tracepoint, whether the tracepoint can be attached, the arguments of the tracepoint, and the metrics that it feeds.
///
/// # Errors
/// No node is running and no binary was passed, several nodes are running, or the binary cannot be read.
pub fn table(groups: &[TracepointGroup], search: &mut NodeSearch) -> Result<String> {
    let (path, node) = match (search.find_now(), search.binary()) {
        (Ok(Some(node)), _) => (readable_binary(&node), Some(node)),
        (Ok(None), Some(path)) => (path.clone(), None),
        (Ok(None), None) => bail!("no node is running; pass its binary with --bitcoind"),
        (Err(error), _) => return Err(error),
    };
    let sites = sites(&path)?;
    let attached = match &node {
        Some(node) => Programs::load(groups).map(|mut programs| programs.attach(node.pid, &path)),
        None => Err(anyhow!("the node is not running")),
    };
    if let Err(error) = &attached {
        cli::print_error(format_args!("cannot attach: {error:#}"));
    }
    let mut table = String::new();
    writeln!(table, "{:<38} {:<10} {:<10} {:<72} METRICS", "PROBE", "IN BINARY", "ATTACHED", "ARGUMENTS")?;
    for group in groups {
        let group = group.group();
        let traced = tracepoints(group)?;
        for name in &traced {
            let sites: Vec<_> = sites.iter().filter(|site| site.probe() == *name).collect();
            let is_attached =
                attached.as_ref().is_ok_and(|all| all.iter().any(|it| it.name == *name && it.result.is_ok()));
            let yes = |is: bool| if is { "yes" } else { "no" };
            writeln!(
                table,
                "{name:<38} {:<10} {:<10} {:<72} {}",
                yes(!sites.is_empty()),
                yes(is_attached),
                sites.first().map_or("", |site| &site.arguments),
                feeds(groups, name).join(" ")
            )?;
            for site in sites.iter().skip(1) {
                writeln!(table, "{:60} {}", "", site.arguments)?;
            }
            for operand in sites.iter().flat_map(|site| site.unreadable()) {
                writeln!(table, "{:60} {operand} cannot be read", "")?;
            }
        }
        for (name, site) in unknown(&sites, group.provider, &traced) {
            writeln!(table, "{name:<38} {:<10} {:<10} {:<72} not supported", "yes", "no", site.arguments)?;
        }
    }
    Ok(table)
}

/// Names of the metrics that have this tracepoint as a source, among the metrics of these groups and the metrics about
/// blocks.
fn feeds(groups: &[TracepointGroup], tracepoint: &str) -> Vec<&'static str> {
    let declarations = groups.iter().flat_map(|group| group.declarations());
    let all = declarations.chain(super::declarations(blocks::families(&blocks::BlockCounts::default())));
    all.filter(|declaration| declaration.sources.contains(&tracepoint)).map(|it| it.name).collect()
}

/// Tracepoints of a provider in a binary for which the exporter has no BPF program, each with the first of its sites.
fn unknown<'a>(sites: &'a [Site], provider: &str, traced: &[String]) -> BTreeMap<String, &'a Site> {
    let mut unknown = BTreeMap::new();
    for site in sites.iter().filter(|site| site.provider == provider && !traced.contains(&site.probe())) {
        unknown.entry(site.probe()).or_insert(site);
    }
    unknown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreadable(machine: Machine, arguments: &str) -> Vec<String> {
        let site = Site {
            provider: "udp".into(),
            name: "block_send_start".into(),
            arguments: arguments.into(),
            machine,
        };
        site.unreadable().into_iter().map(String::from).collect()
    }

    const NONE: [&str; 0] = [];

    #[test]
    fn operands_of_x86_are_read_but_for_symbols_and_vectors() {
        let read = "8@%rax -4@%r10d 2@%r15w 1@%sil 8@%r9 -8@$-1 4@$71 8@(%rsp) 8@-96(%rbp,%rax,8) 1@(%r9,%rcx) 4@24(%rcx)";
        assert_eq!(operands(read).len(), 11);
        assert_eq!(unreadable(elf::EM_X86_64, read), NONE);
        let not_read = [
            "8@%xmm0",
            "8@$hash",
            "8@hash(%rip)",
            "1@%ah",
            "8@%r16",
            "16@%rax",
            "8@(%rax,%rbx,3)",
            "%rax",
            "8@%xr8",
        ];
        assert_eq!(unreadable(elf::EM_X86_64, &not_read.join(" ")), not_read);
        assert_eq!(unreadable(elf::EM_X86_64, "8@%rax 8@%xmm1 4@%edx"), ["8@%xmm1"]);
    }

    #[test]
    fn operands_of_aarch64_are_read_but_for_symbols_and_vectors() {
        let read = "8@x0 -4@x30 8@sp 8@[sp] -4@[sp, 96] 1@[x19,-8] 4@5 -8@-1";
        assert_eq!(operands(read).len(), 8);
        assert_eq!(unreadable(elf::EM_AARCH64, read), NONE);
        let not_read = ["-8@v0", "8@[x0, #:lo12:.LANCHOR0]", "8@x31", "4@w1", "8@[x0, x1]", "3@x0", "8@.LC0"];
        assert_eq!(unreadable(elf::EM_AARCH64, &not_read.join(" ")), not_read);
        assert_eq!(unreadable(elf::EM_AARCH64, "8@x0 -8@v0 8@[sp, 16]"), ["-8@v0"]);
    }

    #[test]
    fn operands_depend_on_the_architecture() {
        assert_eq!(unreadable(elf::EM_X86_64, "8@x0"), ["8@x0"]);
        assert_eq!(unreadable(elf::EM_AARCH64, "8@%rax"), ["8@%rax"]);
        assert_eq!(unreadable(elf::EM_RISCV, "8@a0"), ["8@a0"]);
    }
}
