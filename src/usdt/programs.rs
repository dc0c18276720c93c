//! The BPF programs: loading them, and attaching them to a node's tracepoints.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Result, anyhow};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapHandle, PrintLevel};
use prometheus_client::collector::Collector;
use tracing::debug;

use super::blocks::{self, Blocks};
use super::page::Page;
use super::record::Recorder;
use super::subject::{Opened, Traced, Tracepoints};
use super::validation::Validation;
use super::{Subject, privileges, report};
use crate::metrics::{self, Exemplar, Row};

/// What can be done with a subject whose type is not known.
pub(super) struct Functions {
    /// The provider of its tracepoints, `validation`.
    pub provider: &'static str,
    load: fn() -> Result<Loaded>,
    /// Its tracepoints, `validation:block_connected`, in the order of the BPF file. Needs no privilege.
    pub tracepoints: fn() -> Result<Vec<String>>,
    /// The metrics of this subject that a tracepoint feeds.
    pub feeds: fn(&str) -> Vec<&'static str>,
    /// Lines of `METRICS.md`.
    pub rows: fn() -> Vec<Row>,
}

impl Functions {
    pub fn of<S: Tracepoints>() -> Self {
        Functions {
            provider: S::PROVIDER,
            load: load::<S>,
            tracepoints: || {
                let names = names(&open::<S>(|_| true)?);
                Ok(names.into_iter().map(|name| probe_name(S::PROVIDER, name)).collect())
            },
            feeds: |tracepoint| {
                let fed = S::FAMILIES.iter().filter(|family| family.sources.contains(&tracepoint));
                fed.map(|family| family.name).collect()
            },
            rows: || metrics::reference(S::FAMILIES),
        }
    }
}

/// `validation:block_connected`
fn probe_name(provider: &str, tracepoint: impl std::fmt::Display) -> String {
    format!("{provider}:{tracepoint}")
}

/// [`Tracepoints`], its type not known.
trait Erased: Send + Sync {
    fn collector(self: Arc<Self>, attachments: Arc<Mutex<Attachments>>) -> Box<dyn Collector>;
    fn events_processed(&self) -> Vec<(&'static str, u64)>;
    fn node_ended(&self);
}

impl<S: Tracepoints> Erased for S {
    fn collector(self: Arc<Self>, attachments: Arc<Mutex<Attachments>>) -> Box<dyn Collector> {
        metrics::collector(S::FAMILIES, move || {
            let has_attached = attachments.lock().expect("nobody panics holding it").ever.clone();
            Traced { totals: self.read(), has_attached }
        })
    }

    fn events_processed(&self) -> Vec<(&'static str, u64)> {
        Tracepoints::events_processed(self)
    }

    fn node_ended(&self) {
        Tracepoints::node_ended(self);
    }
}

/// A ring buffer and what becomes of its events: see [`Tracepoints`].
pub(super) struct EventSource {
    pub buffer: MapHandle,
    pub log: Option<fn(&[u8])>,
    pub of_blocks: fn(&[u8], &mut Vec<blocks::Event>),
}

/// The programs of one subject, loaded.
struct Loaded {
    provider: &'static str,
    skeleton: Box<dyn Skel<'static>>,
    /// Programs that the kernel refused, and why.
    refused: BTreeMap<String, String>,
    subject: Arc<dyn Erased>,
    log: Option<fn(&[u8])>,
    of_blocks: fn(&[u8], &mut Vec<blocks::Event>),
}

impl Loaded {
    /// A map that not every subject needs to have.
    fn map(&self, name: &str) -> Result<Option<MapHandle>> {
        let map = self.skeleton.object().maps().find(|map| map.name() == name);
        Ok(map.map(|map| MapHandle::try_from(&map)).transpose()?)
    }
}

/// A tracepoint and what became of attaching to it.
pub struct Attached {
    /// `validation:block_connected`
    pub name: String,
    /// Why not.
    pub result: Result<()>,
}

/// What was attached.
#[derive(Default)]
pub(super) struct Attachments {
    /// Tracepoints that were attached at some time.
    ever: BTreeSet<String>,
    /// How many are attached at present.
    pub now: usize,
}

/// All programs that were loaded. They and their counts live as long as this; a node comes and goes.
pub struct Programs {
    /// Of each of `loaded`. Before what they link, in the order in which fields are dropped: detaching uses what libbpf keeps with the
    /// programs.
    links: Vec<Vec<Link>>,
    loaded: Vec<Loaded>,
    attachments: Arc<Mutex<Attachments>>,
    blocks: Arc<Blocks>,
}

impl Programs {
    /// Loads the programs of these subjects into the kernel.
    pub fn load(subjects: &[Subject]) -> Result<Self> {
        quiet_libbpf();
        let loaded = subjects.iter().map(|subject| (subject.functions().load)());
        let loaded: Vec<_> = loaded.collect::<Result<_>>()?;
        Ok(Programs {
            links: loaded.iter().map(|_| Vec::new()).collect(),
            loaded,
            attachments: Arc::default(),
            blocks: Arc::default(),
        })
    }

    /// Attaches to a process's tracepoints, in the order of the BPF files; `binary` is its file.
    pub fn attach(&mut self, pid: i32, binary: &Path) -> Vec<Attached> {
        let mut attached = Vec::new();
        for (Loaded { provider, skeleton, refused, .. }, links) in self.loaded.iter_mut().zip(&mut self.links)
        {
            for program in skeleton.object_mut().progs_mut() {
                let tracepoint = program.name().to_string_lossy();
                let result = match refused.get(&*tracepoint) {
                    Some(why) => Err(anyhow!("{why}")),
                    None => program.attach_usdt(pid, binary, *provider, &*tracepoint).map_err(explain),
                };
                let result = result.map(|link| links.push(link));
                attached.push(Attached { name: probe_name(provider, &tracepoint), result });
            }
        }
        let names = attached.iter().filter(|it| it.result.is_ok()).map(|it| it.name.clone());
        let mut attachments = self.attachments.lock().expect("nobody panics holding it");
        self.blocks.attached(|name| attached.iter().any(|it| it.name == name && it.result.is_ok()));
        attachments.ever.extend(names);
        attachments.now = self.links.iter().map(Vec::len).sum();
        attached
    }

    /// Detaches from a process that has ended. The counts stay; what was true of a running node only does not.
    pub fn detach(&mut self) {
        // Each waits in the kernel for tens of milliseconds. What libbpf keeps of a subject is touched by one thread only.
        thread::scope(|scope| {
            for links in &mut self.links {
                let _ = thread::Builder::new().name("detach".into()).spawn_scoped(scope, || links.clear());
            }
        });
        // Where no thread could be started.
        self.links.iter_mut().for_each(Vec::clear);
        self.attachments.lock().expect("nobody panics holding it").now = 0;
        self.loaded.iter().for_each(|loaded| loaded.subject.node_ended());
        self.blocks.node_ended();
    }

    /// Readers of all metrics.
    pub fn collectors(&self) -> Result<Vec<Box<dyn Collector>>> {
        let mut collectors: Vec<_> =
            self.loaded.iter().map(|it| it.subject.clone().collector(self.attachments.clone())).collect();
        let (blocks, attachments) = (self.blocks.clone(), self.attachments.clone());
        collectors.push(metrics::collector(blocks::families(), move || {
            let has_attached = attachments.lock().expect("nobody panics holding it").ever.clone();
            Traced { totals: blocks.totals(), has_attached }
        }));
        let errors = self.loaded.iter().filter_map(|it| it.map("errors_map").transpose());
        let errors: Vec<_> = errors.collect::<Result<_>>()?;
        let attachments = self.attachments.clone();
        let subjects: Vec<_> = self.loaded.iter().map(|it| it.subject.clone()).collect();
        collectors.push(report::collector(move || report::Totals {
            attached: attachments.lock().expect("nobody panics holding it").now,
            events_processed: subjects.iter().flat_map(|it| it.events_processed()).collect(),
            errors: report::errors(&errors),
        }));
        Ok(collectors)
    }

    /// What the page at `/` shows.
    pub fn page(&self, node_name: &str) -> Page {
        Page::of(self.blocks.clone(), node_name.into())
    }

    /// Keeps a row for each block that is connected in this file, of the last `keep`.
    pub fn record(&self, file: &Path, keep: u32) -> Result<Recorder> {
        let (recorder, queue) = Recorder::start(file, keep)?;
        self.blocks.record(queue);
        Ok(recorder)
    }

    /// Reads the exemplars of the histograms of blocks.
    pub fn exemplars(&self) -> impl Fn() -> Vec<Exemplar> + Send + Sync + 'static {
        let blocks = self.blocks.clone();
        move || blocks::exemplars(&blocks.totals())
    }

    /// The ring buffers of events. That of connected blocks is the first to be read: all that happened to these blocks
    /// before is then in the other buffers, and is read in the same turn.
    pub(super) fn events(&self) -> Result<Vec<EventSource>> {
        let mut loaded: Vec<_> = self.loaded.iter().collect();
        loaded.sort_by_key(|it| it.provider != Validation::PROVIDER);
        let source = |it: &Loaded| {
            let buffer = it.map("events_map")?;
            Ok(buffer.map(|buffer| EventSource { buffer, log: it.log, of_blocks: it.of_blocks }))
        };
        loaded.into_iter().map(source).filter_map(Result::transpose).collect()
    }

    /// The blocks whose way to the node is followed.
    pub(super) fn blocks(&self) -> Arc<Blocks> {
        self.blocks.clone()
    }
}

/// A program that the kernel refuses costs only itself.
fn load<S: Tracepoints>() -> Result<Loaded> {
    let mut refused = BTreeMap::new();
    let skeleton = match open::<S>(|_| true)?.load() {
        Ok(skeleton) => skeleton,
        Err(error) if is_forbidden(&error) => return Err(explain(error)),
        Err(error) => {
            // libbpf gives up at the first.
            debug!("not all programs of {} can be loaded: {:#}", S::PROVIDER, explain(error));
            for name in names(&open::<S>(|_| true)?) {
                if let Err(error) = open::<S>(|it| it == name)?.load() {
                    refused.insert(name, format!("{:#}", explain(error)));
                }
            }
            open::<S>(|name| !refused.contains_key(name))?.load().map_err(explain)?
        }
    };
    let subject = Arc::new(S::new(&skeleton)?);
    Ok(Loaded {
        provider: S::PROVIDER,
        skeleton: Box::new(skeleton),
        refused,
        subject,
        log: S::LOG,
        of_blocks: S::OF_BLOCKS,
    })
}

/// The programs of a subject, of which those that are `wanted` will be loaded. The memory of a skeleton's object is never
/// given back: it lives as long as the process.
fn open<S: Tracepoints>(wanted: impl Fn(&str) -> bool) -> Result<Opened<S>> {
    let mut opened =
        S::Builder::default().open(Box::leak(Box::new(MaybeUninit::uninit()))).map_err(explain)?;
    S::configure(&mut opened);
    for mut program in opened.open_object_mut().progs_mut() {
        let is_wanted = wanted(&program.name().to_string_lossy());
        program.set_autoload(is_wanted);
    }
    Ok(opened)
}

fn names<'a>(opened: &impl OpenSkel<'a>) -> Vec<String> {
    opened.open_object().progs().map(|program| program.name().to_string_lossy().into_owned()).collect()
}

/// What libbpf said since the last error.
static SAID: Mutex<Said> = Mutex::new(Said { warnings: Vec::new(), verifier: None });

struct Said {
    warnings: Vec<String>,
    verifier: Option<String>,
}

fn quiet_libbpf() {
    fn keep(level: PrintLevel, text: String) {
        debug!("{}", text.trim_end());
        if !matches!(level, PrintLevel::Warn) {
            return;
        }
        let mut said = SAID.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if text.contains("-- BEGIN PROG LOAD LOG --") {
            said.verifier = Some(last_lines(&text));
        } else if said.warnings.len() < 5 {
            said.warnings.push(text.lines().next().unwrap_or_default().to_string());
        }
    }
    libbpf_rs::set_print(Some((PrintLevel::Info, keep)));
}

/// The end of a verifier's log, where it says what it refuses.
fn last_lines(log: &str) -> String {
    const LINES: usize = 3;
    let lines =
        log.lines().filter(|line| !line.contains("PROG LOAD LOG --") && !line.starts_with("processed "));
    let lines: Vec<_> = lines.map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].join(" | ")
}

/// Whether it failed for want of a privilege.
fn is_forbidden(error: &libbpf_rs::Error) -> bool {
    error.kind() == libbpf_rs::ErrorKind::PermissionDenied && privileges::missing().is_some()
}

/// An error with what to do about it.
fn explain(error: libbpf_rs::Error) -> anyhow::Error {
    let mut said = SAID.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (warnings, verifier) = (std::mem::take(&mut said.warnings), said.verifier.take());
    if error.kind() == libbpf_rs::ErrorKind::PermissionDenied
        && let Some(missing) = privileges::missing()
    {
        return missing;
    }
    match (verifier, &warnings[..]) {
        (Some(lines), _) => anyhow!("this kernel's verifier refuses the program: {lines}"),
        (None, []) => error.into(),
        (None, warnings) => anyhow::Error::from(error).context(warnings.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn of_a_verifiers_log_the_end_is_shown() {
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
