//! The BPF programs: loading them, and attaching them to a node's tracepoints.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, anyhow};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapFlags, MapHandle, PrintLevel};
use tracing::debug;

use super::families::{self, bounds};
use super::skeletons::{fibre, mempool, net, utxocache, validation};
use super::totals::{Maps, Totals};
use crate::metrics::{MESSAGE_TYPES, REMOVAL_REASONS};

/// A group of tracepoints that is turned on and off as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Subject {
    /// FIBRE block relay.
    Fibre,
    /// Connected blocks.
    Validation,
    /// Messages and connections.
    Net,
    /// The mempool.
    Mempool,
    /// The UTXO cache.
    Utxocache,
}

impl Subject {
    /// All of them.
    pub const ALL: [Subject; 5] =
        [Subject::Fibre, Subject::Validation, Subject::Net, Subject::Mempool, Subject::Utxocache];

    /// The provider of its tracepoints.
    pub fn provider(self) -> &'static str {
        match self {
            Subject::Fibre => "udp",
            Subject::Validation => "validation",
            Subject::Net => "net",
            Subject::Mempool => "mempool",
            Subject::Utxocache => "utxocache",
        }
    }

    /// Its tracepoints.
    pub fn tracepoints(self) -> &'static [&'static str] {
        match self {
            Subject::Fibre => &[
                "block_reconstructed",
                "block_send_start",
                "block_race_winner",
                "block_race_time",
                "block_reconstruction_detail",
            ],
            Subject::Validation => &["block_connected"],
            Subject::Net => &[
                "inbound_message",
                "outbound_message",
                "inbound_connection",
                "outbound_connection",
                "closed_connection",
                "evicted_inbound_connection",
                "misbehaving_connection",
            ],
            Subject::Mempool => &["added", "removed", "replaced", "rejected"],
            Subject::Utxocache => &["add", "spent", "uncache", "flush"],
        }
    }
}

/// The programs of one subject, loaded.
struct Loaded {
    subject: Subject,
    skeleton: Box<dyn Skel<'static>>,
}

/// A tracepoint and what became of attaching to it.
pub struct Attached {
    /// `validation:block_connected`
    pub name: String,
    /// Why not.
    pub result: Result<()>,
}

/// All programs that were loaded. They and their counts live as long as this; a node comes and goes.
pub struct Programs {
    loaded: Vec<Loaded>,
    links: Vec<Link>,
    maps: Maps,
    seen: Arc<Mutex<Seen>>,
}

/// What user space knows besides the maps.
#[derive(Clone, Default)]
pub(super) struct Seen {
    /// Tracepoints that were attached at some time.
    pub tracepoints: BTreeSet<String>,
    /// How many are attached at present.
    pub attached: usize,
}

impl Programs {
    /// Loads the programs of these subjects into the kernel.
    pub fn load(subjects: &[Subject]) -> Result<Self> {
        families::started();
        quiet_libbpf();
        let mut programs =
            Programs { loaded: Vec::new(), links: Vec::new(), maps: Maps::default(), seen: Arc::default() };
        for &subject in subjects {
            programs.load_subject(subject).map_err(explain)?;
        }
        Ok(programs)
    }

    fn load_subject(&mut self, subject: Subject) -> Result<()> {
        let maps = &mut self.maps;
        macro_rules! handle {
            ($skeleton:ident.$map:ident) => {
                Some(MapHandle::try_from(&$skeleton.maps.$map)?)
            };
        }
        macro_rules! rodata {
            ($skeleton:ident, $($field:ident: $bounds:ident / $unit:literal),*) => {
                let rodata = $skeleton.maps.rodata_data.as_deref_mut().expect("the programs have constants");
                $(rodata.$field = bounds(families::$bounds, $unit);)*
            };
        }
        let skeleton: Box<dyn Skel<'static>> = match subject {
            Subject::Fibre => {
                let mut open = open(fibre::FibreSkelBuilder::default())?;
                rodata!(open, duration_us_bounds: RECONSTRUCTION / 1e6, chunk_bounds: CHUNKS / 1.0,
                    latency_ns_bounds: LATENCY / 1e9, margin_ns_bounds: MARGIN / 1e9,
                    tx_bounds: TXS / 1.0, byte_bounds: BYTES / 1.0);
                let skeleton = open.load()?;
                places(&skeleton.maps.mechanisms_map, &MECHANISMS)?;
                maps.fibre = handle!(skeleton.counts_map);
                maps.fibre_gauges = handle!(skeleton.gauges_map);
                maps.deliveries = handle!(skeleton.deliveries_map);
                maps.events.push((subject, MapHandle::try_from(&skeleton.maps.events_map)?));
                Box::new(skeleton)
            }
            Subject::Validation => {
                let mut open = open(validation::ValidationSkelBuilder::default())?;
                rodata!(open, duration_ns_bounds: CONNECTION / 1e9, tx_bounds: TXS / 1.0,
                    input_bounds: TXS / 1.0, sigop_bounds: SIGOPS / 1.0);
                let skeleton = open.load()?;
                maps.validation = handle!(skeleton.counts_map);
                maps.events.push((subject, MapHandle::try_from(&skeleton.maps.events_map)?));
                Box::new(skeleton)
            }
            Subject::Net => {
                let skeleton = open(net::NetSkelBuilder::default())?.load()?;
                places(&skeleton.maps.types_map, &MESSAGE_TYPES)?;
                maps.net = handle!(skeleton.counts_map);
                maps.connections = handle!(skeleton.gauges_map);
                Box::new(skeleton)
            }
            Subject::Mempool => {
                let skeleton = open(mempool::MempoolSkelBuilder::default())?.load()?;
                places(&skeleton.maps.reasons_map, &REMOVAL_REASONS)?;
                maps.mempool = handle!(skeleton.counts_map);
                maps.rejected = handle!(skeleton.rejected_map);
                Box::new(skeleton)
            }
            Subject::Utxocache => {
                let mut open = open(utxocache::UtxocacheSkelBuilder::default())?;
                rodata!(open, flush_us_bounds: FLUSH / 1e6);
                let skeleton = open.load()?;
                maps.utxocache = handle!(skeleton.counts_map);
                maps.flush_gauges = handle!(skeleton.gauges_map);
                maps.events.push((subject, MapHandle::try_from(&skeleton.maps.events_map)?));
                Box::new(skeleton)
            }
        };
        self.loaded.push(Loaded { subject, skeleton });
        Ok(())
    }

    /// Attaches to a process's tracepoints, in the order of [`Subject::tracepoints`]; `binary` is its file.
    pub fn attach(&mut self, pid: i32, binary: &Path) -> Vec<Attached> {
        let mut attached = Vec::new();
        for Loaded { subject, skeleton } in &mut self.loaded {
            let provider = subject.provider();
            for &tracepoint in subject.tracepoints() {
                let name = format!("{provider}:{tracepoint}");
                let mut programs = skeleton.object_mut().progs_mut();
                let program =
                    programs.find(|program| program.name() == tracepoint).expect("each has its program");
                let result = program.attach_usdt(pid, binary, provider, tracepoint);
                let result = result.map(|link| self.links.push(link)).map_err(|error| explain(error.into()));
                attached.push(Attached { name, result });
            }
        }
        let names = attached.iter().filter(|it| it.result.is_ok()).map(|it| it.name.clone());
        let mut seen = self.seen.lock().expect("nobody panics holding it");
        seen.tracepoints.extend(names);
        seen.attached = self.links.len();
        attached
    }

    /// Detaches from a process that has ended. The counts stay; what was known of its connections does not.
    pub fn detach(&mut self) {
        self.links.clear();
        self.seen.lock().expect("nobody panics holding it").attached = 0;
        self.maps.forget_connections();
    }

    /// A reader of all counts.
    pub fn totals(&self) -> Result<impl Fn() -> Totals + Send + Sync + 'static> {
        let (maps, seen) = (self.maps.try_clone()?, self.seen.clone());
        Ok(move || Totals::read(&maps, &seen.lock().expect("nobody panics holding it")))
    }

    /// The ring buffers of events.
    pub(super) fn events(&self) -> &[(Subject, MapHandle)] {
        &self.maps.events
    }
}

/// The memory of a skeleton's object is never given back: it lives as long as the process.
fn open<B: SkelBuilder<'static>>(builder: B) -> Result<B::Output> {
    Ok(builder.open(Box::leak(Box::new(MaybeUninit::uninit())))?)
}

/// Tells the kernel the place of each name.
fn places(map: &impl MapCore, names: &[&str]) -> Result<()> {
    for (place, name) in (0u32..).zip(names) {
        let mut key = vec![0; map.key_size() as usize];
        key[..name.len()].copy_from_slice(name.as_bytes());
        map.update(&key, &place.to_ne_bytes(), MapFlags::ANY)?;
    }
    Ok(())
}

/// What FIBRE calls its mechanisms, in the order of `enum mechanism` in `bpf/fibre.bpf.c`.
const MECHANISMS: [&str; 2] = ["FIBRE/UDP", "BIP152/CMPCTBLOCK"];

/// What libbpf said last, for the next error.
static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn quiet_libbpf() {
    fn keep(level: PrintLevel, text: String) {
        debug!("{}", text.trim_end());
        let text = text.lines().next().unwrap_or_default().to_string();
        if matches!(level, PrintLevel::Warn) {
            let mut said = SAID.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if said.len() < 5 {
                said.push(text);
            }
        }
    }
    libbpf_rs::set_print(Some((PrintLevel::Info, keep)));
}

/// The capabilities that BPF programs on tracepoints need.
const CAPABILITIES: [(&str, u32); 2] = [("CAP_PERFMON", 38), ("CAP_BPF", 39)];

/// An error with what to do about it.
fn explain(error: anyhow::Error) -> anyhow::Error {
    let said = std::mem::take(&mut *SAID.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    let kind = error.chain().find_map(|cause| cause.downcast_ref::<libbpf_rs::Error>()).map(|it| it.kind());
    if kind == Some(libbpf_rs::ErrorKind::PermissionDenied) {
        let status = procfs::process::Process::myself().and_then(|it| it.status());
        let have = status.map_or(0, |status| status.capeff);
        let missing = CAPABILITIES.iter().filter(|(_, bit)| have >> bit & 1 == 0).map(|(name, _)| *name);
        let missing: Vec<_> = missing.collect();
        if !missing.is_empty() {
            return anyhow!(
                "{} missing. Run as root; or with systemd set AmbientCapabilities={}; or once: setcap {}=ep on this binary",
                missing.join(" and "),
                CAPABILITIES.map(|(name, _)| name).join(" "),
                CAPABILITIES.map(|(name, _)| name.to_lowercase()).join(",")
            );
        }
    }
    match said.is_empty() {
        true => error,
        false => error.context(said.join("; ")),
    }
}

/// Whether this kernel can do what we need.
pub fn check_kernel() -> Result<()> {
    for (file, what) in [
        ("/sys/bus/event_source/devices/uprobe/type", "uprobes (CONFIG_UPROBE_EVENTS)"),
        ("/sys/kernel/btf/vmlinux", "type information (CONFIG_DEBUG_INFO_BTF)"),
    ] {
        std::fs::metadata(file).with_context(|| {
            format!("this kernel has no {what}; Linux 5.8 or later with it is needed ({file})")
        })?;
    }
    Ok(())
}
