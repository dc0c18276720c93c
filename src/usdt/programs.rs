//! Loads the BPF programs, and attaches them to a node's tracepoints.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Result, anyhow};
use libbpf_rs::{Link, MapHandle, Object, ObjectBuilder, OpenObject, PrintLevel};
use tracing::debug;

use super::blocks::{self, ARRIVAL_SOURCES, BlockTracker, REPORT_SOURCES, REQUIRED_ARRIVAL_SOURCES};
use super::group::{Group, GroupPrograms};
use super::maps::Maps;
use super::{TracepointGroup, exporter_metrics, privileges};
use crate::block_log::ReportQueue;
use crate::metrics::{Declaration, Family};
use crate::own_process;

/// The loaded BPF programs of one group of tracepoints, with their attachments to the node.
struct LoadedGroup {
    /// Attachments of the BPF programs to the node's tracepoints. This field is declared before `programs`, and Rust
    /// therefore drops it first. It must be dropped first because detaching uses data that libbpf stores in `programs`.
    links: Vec<Link>,
    group: Group,
    programs: Object,
    /// Names of the programs that the kernel rejected, each with the reason.
    refused: BTreeMap<String, String>,
}

/// The result of attaching a BPF program to one tracepoint of the node.
pub struct AttachResult {
    /// Full name of the tracepoint, for example `validation:block_connected`.
    pub name: String,
    /// `Ok` if the tracepoint is attached, otherwise the reason why it is not attached.
    pub result: Result<()>,
}

/// Records which tracepoints have been attached, because a metric is exported once a tracepoint that feeds it has been
/// attached to any node.
#[derive(Default)]
pub(super) struct Attachments {
    /// Full names of the tracepoints that have been attached to a node at least once.
    ever: BTreeSet<String>,
    /// Number of tracepoints that are attached now.
    pub now: usize,
}

/// The loaded BPF programs of all selected groups. The programs are attached to one node after the other, and keep
/// their counts when a node exits.
pub struct Programs {
    loaded: Vec<LoadedGroup>,
    pub(super) reader: Arc<MetricsReader>,
}

impl Programs {
    /// Loads the programs of these groups into the kernel.
    ///
    /// # Errors
    /// A capability is missing, or the kernel rejects a map or another object that all programs of a group need.
    pub fn load(groups: &[TracepointGroup]) -> Result<Self> {
        capture_libbpf_messages();
        let (mut loaded, mut reader) = (Vec::new(), MetricsReader::default());
        for group in groups {
            let (programs, maps) = load(group.group())?;
            reader.groups.push((programs.group, maps));
            loaded.push(programs);
        }
        Ok(Programs { loaded, reader: Arc::new(reader) })
    }

    /// Attaches the programs to the tracepoints of a process. `binary` is the path of the binary that the process runs.
    /// The results are in the order of the programs in the BPF files.
    pub fn attach(&mut self, pid: i32, binary: &Path) -> Vec<AttachResult> {
        let mut attached = Vec::new();
        for LoadedGroup { group, programs, refused, links, .. } in &mut self.loaded {
            for program in programs.progs_mut() {
                let tracepoint = program.name().to_string_lossy();
                let result = match refused.get(&*tracepoint) {
                    Some(why) => Err(anyhow!("{why}")),
                    None => program.attach_usdt(pid, binary, group.provider, &*tracepoint).map_err(explain),
                };
                let result = result.map(|link| links.push(link));
                attached.push(AttachResult { name: format!("{}:{tracepoint}", group.provider), result });
            }
        }
        let names = attached.iter().filter(|it| it.result.is_ok()).map(|it| it.name.clone());
        let mut attachments = self.reader.attachments.lock().expect("nobody panics holding it");
        self.reader.blocks.attached(|name| attached.iter().any(|it| it.name == name && it.result.is_ok()));
        attachments.ever.extend(names);
        attachments.now = self.loaded.iter().map(|loaded| loaded.links.len()).sum();
        attached
    }

    /// Detaches the programs from the traced process. Keeps the counts, and resets the values that describe a running
    /// node, for example open connections.
    pub fn detach(&mut self) {
        // Removing a BPF program's attachment (link) waits in the kernel for tens of milliseconds. Groups are therefore
        // detached in parallel. Each group is detached by a single thread, because libbpf's data of a group is not
        // thread-safe.
        thread::scope(|scope| {
            for LoadedGroup { links, .. } in &mut self.loaded {
                let _ = thread::Builder::new().name("detach".into()).spawn_scoped(scope, || links.clear());
            }
        });
        for LoadedGroup { links, .. } in &mut self.loaded {
            links.clear(); // in case the thread could not be started
        }
        for (group, maps) in &self.reader.groups {
            group.programs.node_ended(maps);
        }
        self.reader.attachments.lock().expect("nobody panics holding it").now = 0;
        self.reader.blocks.node_ended();
    }

    /// The reader of all metrics, which the HTTP server uses for scrapes and for the HTML page.
    pub fn reader(&self) -> Arc<MetricsReader> {
        std::sync::LazyLock::force(&own_process::STARTED);
        self.reader.clone()
    }

    /// Sets the queue of the block log (the SQLite file of connected blocks), to which the report of each connected
    /// block is then added.
    pub fn set_block_log(&self, queue: ReportQueue) {
        self.reader.blocks.set_block_log(queue);
    }

    /// The ring buffers of the groups that have one, each with its group. The ring buffer of connected blocks is the
    /// first element and is therefore read first. When the event of a connected block is read from this ring buffer,
    /// the earlier events of the block are already in the other ring buffers, and are read in the same pass.
    pub(super) fn events(&self) -> Result<Vec<(&'static dyn GroupPrograms, MapHandle)>> {
        let mut groups: Vec<_> = self.reader.groups.iter().collect();
        groups.sort_by_key(|(group, _)| group.provider != "validation");
        let buffers =
            groups.into_iter().filter_map(|(group, maps)| Some((group.programs, maps.find("events_map")?)));
        buffers.map(|(group, buffer)| Ok((group, MapHandle::try_from(buffer)?))).collect()
    }
}

/// Reads the values of all metrics at a scrape: the counts in the BPF maps, the counts of the block tracker, and the
/// metrics about the exporter.
#[derive(Default)]
pub struct MetricsReader {
    /// The groups of tracepoints, each with its BPF maps.
    pub(super) groups: Vec<(Group, Maps)>,
    attachments: Mutex<Attachments>,
    /// The block tracker, which combines the events of each block and counts the connected blocks.
    pub(super) blocks: BlockTracker,
}

impl MetricsReader {
    /// All metrics with their current values, in the order of METRICS.md. A metric that is fed by tracepoints is absent
    /// until one of these tracepoints has been attached. The metrics about a block's arrival are absent until all
    /// tracepoints that they require have been attached.
    pub fn families(&self) -> Vec<Family> {
        let (ever, now) = {
            let attachments = self.attachments.lock().expect("nobody panics holding it");
            (attachments.ever.clone(), attachments.now)
        };
        let counted = self.groups.iter().flat_map(|(group, maps)| group.programs.families(maps));
        let counted = counted.chain(blocks::families(&self.blocks.counts()));
        let fed = counted.filter(|family| is_fed(&family.declaration, |name| ever.contains(name)));
        let processed =
            self.groups.iter().flat_map(|(group, maps)| group.programs.events_processed(maps)).collect();
        let errors = exporter_metrics::errors(self.groups.iter().map(|(_, maps)| maps));
        let exporter = exporter_metrics::families(now, processed, errors);
        fed.chain(exporter).chain(own_process::families()).collect()
    }
}

/// Whether a metric is exported when these tracepoints have been attached. A metric needs at least one of its
/// tracepoints. The metrics about a block's arrival need all of [`REQUIRED_ARRIVAL_SOURCES`], and the metrics about the
/// node's report of a reconstructed compact block need all of [`REPORT_SOURCES`].
fn is_fed(declaration: &Declaration, attached: impl Fn(&str) -> bool) -> bool {
    match declaration.sources {
        ARRIVAL_SOURCES => REQUIRED_ARRIVAL_SOURCES.iter().all(|tracepoint| attached(tracepoint)),
        REPORT_SOURCES => REPORT_SOURCES.iter().all(|tracepoint| attached(tracepoint)),
        sources => sources.iter().any(|tracepoint| attached(tracepoint)),
    }
}

/// Full names of the group's tracepoints, for example `validation:block_connected`, in the order of the BPF file. This
/// function needs no capability, because the programs are not loaded.
pub(super) fn tracepoints(group: Group) -> Result<Vec<String>> {
    let names = names(&open(group, |_| true)?);
    Ok(names.into_iter().map(|name| format!("{}:{name}", group.provider)).collect())
}

/// Loads the BPF programs of a group of tracepoints. If the kernel rejects some programs, the other programs are loaded
/// without them.
fn load(group: Group) -> Result<(LoadedGroup, Maps)> {
    let mut refused = BTreeMap::new();
    let programs = match open(group, |_| true)?.load() {
        Ok(programs) => programs,
        Err(error) if lacks_privilege(&error) => return Err(explain(error)),
        Err(error) => {
            // libbpf stops at the first program that the kernel rejects. To find all rejected programs, load each
            // program separately.
            debug!("cannot load all programs of {}: {:#}", group.provider, explain(error));
            for name in names(&open(group, |_| true)?) {
                if let Err(error) = open(group, |it| it == name)?.load() {
                    refused.insert(name, format!("{:#}", explain(error)));
                }
            }
            open(group, |name| !refused.contains_key(name))?.load().map_err(explain)?
        }
    };
    let maps = Maps::from_object(&programs)?;
    group.programs.fill_maps(&maps)?;
    Ok((LoadedGroup { links: Vec::new(), group, programs, refused }, maps))
}

/// Opens the programs of a group and sets their constants. Only the programs that `is_selected` accepts will be loaded.
fn open(group: Group, is_selected: impl Fn(&str) -> bool) -> Result<OpenObject> {
    let mut builder = ObjectBuilder::default();
    let builder = builder.name(group.provider).map_err(explain)?;
    let mut opened = builder.open_memory(group.object).map_err(explain)?;
    for mut map in opened.maps_mut() {
        if map.name().to_string_lossy().ends_with(".rodata")
            && let Some(rodata) = map.initial_value_mut()
        {
            group.programs.set_constants(rodata);
        }
    }
    for mut program in opened.progs_mut() {
        let is_wanted = is_selected(&program.name().to_string_lossy());
        program.set_autoload(is_wanted);
    }
    Ok(opened)
}

/// Names of the BPF programs, in the order in which the BPF file defines them.
fn names(opened: &OpenObject) -> Vec<String> {
    opened.progs().map(|program| program.name().to_string_lossy().into_owned()).collect()
}

/// Messages that libbpf has emitted since [`explain`] last added them to an error.
static LIBBPF_MESSAGES: Mutex<LibbpfMessages> =
    Mutex::new(LibbpfMessages { warnings: Vec::new(), verifier: None });

/// Messages of libbpf that explain an error: libbpf's warnings, and the end of the kernel verifier's log.
struct LibbpfMessages {
    warnings: Vec<String>,
    verifier: Option<String>,
}

/// Registers a callback that keeps libbpf's messages for [`explain`], instead of libbpf's default, which prints them to
/// stderr.
fn capture_libbpf_messages() {
    fn keep(level: PrintLevel, text: String) {
        debug!("{}", text.trim_end());
        if !matches!(level, PrintLevel::Warn) {
            return;
        }
        let mut messages = LIBBPF_MESSAGES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if text.contains("-- BEGIN PROG LOAD LOG --") {
            messages.verifier = Some(last_lines(&text));
        } else if messages.warnings.len() < 5 {
            messages.warnings.push(text.lines().next().unwrap_or_default().to_string());
        }
    }
    libbpf_rs::set_print(Some((PrintLevel::Info, keep)));
}

/// The last lines of the kernel verifier's log, which contain the reason for which the verifier rejected the BPF
/// program.
fn last_lines(log: &str) -> String {
    const LINE_LIMIT: usize = 3;
    let lines =
        log.lines().filter(|line| !line.contains("PROG LOAD LOG --") && !line.starts_with("processed "));
    let lines: Vec<_> = lines.map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINE_LIMIT)..].join(" | ")
}

/// Whether libbpf's error means that this process lacks a Linux capability.
fn lacks_privilege(error: &libbpf_rs::Error) -> bool {
    error.kind() == libbpf_rs::ErrorKind::PermissionDenied && privileges::missing().is_some()
}

/// Adds the reason from libbpf's messages and, if known, the remedy to an error of libbpf.
fn explain(error: libbpf_rs::Error) -> anyhow::Error {
    let (warnings, verifier) = {
        let mut messages = LIBBPF_MESSAGES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        (std::mem::take(&mut messages.warnings), messages.verifier.take())
    };
    if error.kind() == libbpf_rs::ErrorKind::PermissionDenied
        && let Some(missing) = privileges::missing()
    {
        return missing;
    }
    match (verifier, &warnings[..]) {
        (Some(lines), _) => anyhow!("this kernel's verifier rejects the program: {lines}"),
        (None, []) => error.into(),
        (None, warnings) => anyhow::Error::from(error).context(warnings.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn end_of_a_verifier_log_is_shown() {
        let log = "libbpf: prog 'flush': -- BEGIN PROG LOAD LOG --\n0: (bf) r6 = r1\n; event->mode = 1;\n\
                   98: (7b) *(u64 *)(r8 +0) = r1\nR8 invalid mem access 'ringbuf_mem_or_null'\n\
                   processed 98 insns (limit 1000000) max_states_per_insn 0\n-- END PROG LOAD LOG --\n";
        assert_eq!(
            super::last_lines(log),
            "; event->mode = 1; | 98: (7b) *(u64 *)(r8 +0) = r1 | R8 invalid mem access 'ringbuf_mem_or_null'"
        );
        assert_eq!(super::last_lines(""), "");
    }
}
