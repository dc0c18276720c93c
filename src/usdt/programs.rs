//! The BPF programs: loading them, and attaching them to a node's tracepoints.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Result, anyhow};
use libbpf_rs::{Link, MapHandle, Object, ObjectBuilder, OpenObject, PrintLevel};
use tracing::debug;

use super::block_log::BlockLogThread;
use super::blocks::{self, BlockTracker};
use super::group::{GroupPrograms, probe_name};
use super::maps::Maps;
use super::page::BlockPage;
use super::{TracepointGroup, exporter_metrics, privileges, validation};
use crate::metrics::{self, Family};

/// The programs of one group, loaded.
struct LoadedGroup {
    /// Before what they link, in the order in which fields are dropped: detaching uses what libbpf keeps with the programs.
    links: Vec<Link>,
    group: Arc<dyn GroupPrograms>,
    maps: Arc<Maps>,
    programs: Object,
    /// Programs that the kernel rejected, and why.
    refused: BTreeMap<String, String>,
}

/// A tracepoint and the result of attaching to it.
pub struct AttachResult {
    /// `validation:block_connected`
    pub name: String,
    /// Why not.
    pub result: Result<()>,
}

/// The attachments.
#[derive(Default)]
pub(super) struct Attachments {
    /// Tracepoints that were attached at some time.
    ever: BTreeSet<String>,
    /// How many are attached at present.
    pub now: usize,
}

/// All programs that were loaded. They and their counts live as long as this; a node comes and goes.
pub struct Programs {
    loaded: Vec<LoadedGroup>,
    attachments: Arc<Mutex<Attachments>>,
    blocks: Arc<BlockTracker>,
}

impl Programs {
    /// Loads the programs of these groups into the kernel.
    ///
    /// # Errors
    /// The kernel rejects what all programs of a group need.
    pub fn load(groups: &[TracepointGroup]) -> Result<Self> {
        capture_libbpf_messages();
        let loaded = groups.iter().map(|group| load(group.group())).collect::<Result<_>>()?;
        Ok(Programs { loaded, attachments: Arc::default(), blocks: Arc::default() })
    }

    /// Attaches to a process's tracepoints, in the order of the BPF files; `binary` is its file.
    pub fn attach(&mut self, pid: i32, binary: &Path) -> Vec<AttachResult> {
        let mut attached = Vec::new();
        for LoadedGroup { group, programs, refused, links, .. } in &mut self.loaded {
            for program in programs.progs_mut() {
                let tracepoint = program.name().to_string_lossy();
                let result = match refused.get(&*tracepoint) {
                    Some(why) => Err(anyhow!("{why}")),
                    None => program.attach_usdt(pid, binary, group.provider(), &*tracepoint).map_err(explain),
                };
                let result = result.map(|link| links.push(link));
                attached.push(AttachResult { name: probe_name(group.provider(), &tracepoint), result });
            }
        }
        let names = attached.iter().filter(|it| it.result.is_ok()).map(|it| it.name.clone());
        let mut attachments = self.attachments.lock().expect("nobody panics holding it");
        self.blocks.attached(|name| attached.iter().any(|it| it.name == name && it.result.is_ok()));
        attachments.ever.extend(names);
        attachments.now = self.loaded.iter().map(|loaded| loaded.links.len()).sum();
        attached
    }

    /// Detaches from a process that has ended. The counts stay; state of the running node does not.
    pub fn detach(&mut self) {
        // Each waits in the kernel for tens of milliseconds. One thread only touches libbpf's data of a group.
        thread::scope(|scope| {
            for LoadedGroup { links, .. } in &mut self.loaded {
                let _ = thread::Builder::new().name("detach".into()).spawn_scoped(scope, || links.clear());
            }
        });
        for LoadedGroup { links, group, maps, .. } in &mut self.loaded {
            links.clear(); // where no thread could be started
            group.node_ended(maps);
        }
        self.attachments.lock().expect("nobody panics holding it").now = 0;
        self.blocks.node_ended();
    }

    /// Reads all metrics, wherever the programs are.
    pub fn reader(&self) -> MetricsReader {
        std::sync::LazyLock::force(&metrics::process::STARTED);
        let groups = self.loaded.iter().map(|it| (it.group.clone(), it.maps.clone()));
        MetricsReader {
            groups: groups.collect(),
            attachments: self.attachments.clone(),
            blocks: self.blocks.clone(),
        }
    }

    /// The page at `/`.
    pub fn page(&self, node_name: &str) -> BlockPage {
        BlockPage::new(self.blocks.clone(), node_name.into())
    }

    /// Keeps a row for each block that is connected in this file, of the last `keep`.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn start_block_log(&self, file: &Path, keep: u32) -> Result<BlockLogThread> {
        let (block_log, queue) = BlockLogThread::start(file, keep)?;
        self.blocks.set_block_log(queue);
        Ok(block_log)
    }

    /// The groups with events, and their ring buffers. That of connected blocks is the first to be read: all that happened to these
    /// blocks before is then in the other buffers, and is read in the same turn.
    pub(super) fn events(&self) -> Result<Vec<(Arc<dyn GroupPrograms>, MapHandle)>> {
        let mut loaded: Vec<_> = self.loaded.iter().collect();
        loaded.sort_by_key(|it| it.group.provider() != validation::PROVIDER);
        let buffers =
            loaded.into_iter().filter_map(|it| Some((it.group.clone(), it.maps.find("events_map")?)));
        buffers.map(|(group, buffer)| Ok((group, MapHandle::try_from(buffer)?))).collect()
    }

    /// The blocks that are followed.
    pub(super) fn blocks(&self) -> Arc<BlockTracker> {
        self.blocks.clone()
    }
}

/// Reads all metrics.
pub struct MetricsReader {
    groups: Vec<(Arc<dyn GroupPrograms>, Arc<Maps>)>,
    attachments: Arc<Mutex<Attachments>>,
    blocks: Arc<BlockTracker>,
}

impl MetricsReader {
    /// All families with their values at this moment, in the order of METRICS.md. Those that tracepoints feed are absent until these
    /// were attached.
    pub fn families(&self) -> Vec<Family> {
        let (ever, now) = {
            let attachments = self.attachments.lock().expect("nobody panics holding it");
            (attachments.ever.clone(), attachments.now)
        };
        let counted = self.groups.iter().flat_map(|(group, maps)| group.families(maps));
        let counted = counted.chain(blocks::families(&self.blocks.counts()));
        let fed = counted.filter(|family| blocks::is_fed(&family.declaration, |name| ever.contains(name)));
        let processed = self.groups.iter().flat_map(|(group, maps)| group.events_processed(maps)).collect();
        let errors = exporter_metrics::errors(self.groups.iter().map(|(_, maps)| &**maps));
        let exporter = exporter_metrics::families(now, processed, errors);
        fed.chain(exporter).chain(metrics::process::families()).collect()
    }
}

/// The group's tracepoints, `validation:block_connected`, in the order of the BPF file. Needs no privilege.
pub(super) fn tracepoints(group: &dyn GroupPrograms) -> Result<Vec<String>> {
    let names = names(&open(group, |_| true)?);
    Ok(names.into_iter().map(|name| probe_name(group.provider(), name)).collect())
}

/// A program that the kernel rejects costs only itself.
fn load(group: Arc<dyn GroupPrograms>) -> Result<LoadedGroup> {
    let mut refused = BTreeMap::new();
    let programs = match open(&*group, |_| true)?.load() {
        Ok(programs) => programs,
        Err(error) if lacks_privilege(&error) => return Err(explain(error)),
        Err(error) => {
            // libbpf gives up at the first.
            debug!("cannot load all programs of {}: {:#}", group.provider(), explain(error));
            for name in names(&open(&*group, |_| true)?) {
                if let Err(error) = open(&*group, |it| it == name)?.load() {
                    refused.insert(name, format!("{:#}", explain(error)));
                }
            }
            open(&*group, |name| !refused.contains_key(name))?.load().map_err(explain)?
        }
    };
    let maps = Maps::from_object(&programs)?;
    group.fill_maps(&maps)?;
    Ok(LoadedGroup { links: Vec::new(), group, maps: Arc::new(maps), programs, refused })
}

/// The programs of a group with their constants, of which those that are `is_selected` will be loaded.
fn open(group: &dyn GroupPrograms, is_selected: impl Fn(&str) -> bool) -> Result<OpenObject> {
    let mut builder = ObjectBuilder::default();
    let builder = builder.name(group.provider()).map_err(explain)?;
    let mut opened = builder.open_memory(group.object()).map_err(explain)?;
    for mut map in opened.maps_mut() {
        if map.name().to_string_lossy().ends_with(".rodata")
            && let Some(rodata) = map.initial_value_mut()
        {
            group.set_constants(rodata);
        }
    }
    for mut program in opened.progs_mut() {
        let is_wanted = is_selected(&program.name().to_string_lossy());
        program.set_autoload(is_wanted);
    }
    Ok(opened)
}

fn names(opened: &OpenObject) -> Vec<String> {
    opened.progs().map(|program| program.name().to_string_lossy().into_owned()).collect()
}

/// Messages of libbpf since the last error.
static LIBBPF_MESSAGES: Mutex<LibbpfMessages> =
    Mutex::new(LibbpfMessages { warnings: Vec::new(), verifier: None });

struct LibbpfMessages {
    warnings: Vec<String>,
    verifier: Option<String>,
}

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

/// The end of a verifier's log, which has the reason.
fn last_lines(log: &str) -> String {
    const LINE_LIMIT: usize = 3;
    let lines =
        log.lines().filter(|line| !line.contains("PROG LOAD LOG --") && !line.starts_with("processed "));
    let lines: Vec<_> = lines.map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINE_LIMIT)..].join(" | ")
}

/// Whether it failed because a privilege is missing.
fn lacks_privilege(error: &libbpf_rs::Error) -> bool {
    error.kind() == libbpf_rs::ErrorKind::PermissionDenied && privileges::missing().is_some()
}

/// An error with what to do about it.
fn explain(error: libbpf_rs::Error) -> anyhow::Error {
    let mut messages = LIBBPF_MESSAGES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (warnings, verifier) = (std::mem::take(&mut messages.warnings), messages.verifier.take());
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
