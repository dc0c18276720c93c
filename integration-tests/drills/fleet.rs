//! The nodes of a drill (a fault injection test of the alerts), with an exporter for each node and the monitoring
//! programs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::disk::Disk;
use crate::gate::Gate;
use crate::harness::eventually;
use crate::harness::exporter::{Exporter, command};
use crate::harness::fake::{FakeNode, Offers};
use crate::harness::fixture;
use crate::harness::node::{Node, bitcoin_node};
use crate::hidden_rpc::HiddenRpc;
use crate::network::{Network, WITHOUT_CHECKS};
use crate::report;
use crate::stack::{Alert, INTERVAL, Received, Stack, Target};

/// The kind of a node, by the interfaces over which its exporter polls the node.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Kind {
    /// The exporter uses the IPC interfaces Mining and Rpc (Core 32).
    Rpc,
    /// The exporter uses the IPC interface Mining, and JSON-RPC over HTTP (Core 30, 31). The node's program is
    /// CORE31_NODE. If CORE31_NODE is not set, it is BITCOIN_NODE behind a proxy that hides the Rpc interface.
    RpcOverHttp,
    /// The exporter uses JSON-RPC over HTTP, without IPC.
    HttpOnly,
    /// The exporter uses the IPC interface Mining, without JSON-RPC.
    MiningOnly,
    /// A fake node whose IPC interface Chain sends notifications to the exporter.
    Subscribed,
}

impl Kind {
    pub const REAL: [Kind; 3] = [Kind::Rpc, Kind::RpcOverHttp, Kind::HttpOnly];
    pub const ALL: [Kind; 5] =
        [Kind::Rpc, Kind::RpcOverHttp, Kind::HttpOnly, Kind::MiningOnly, Kind::Subscribed];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Rpc => "rpc",
            Kind::RpcOverHttp => "rpc-over-http",
            Kind::HttpOnly => "http-only",
            Kind::MiningOnly => "mining-only",
            Kind::Subscribed => "subscribed",
        }
    }
}

/// The configuration of a node in a drill, and of the node's exporters.
#[derive(Clone)]
pub struct Plan {
    pub name: String,
    /// The value to which the label `node` of the node's targets changes during the drill.
    pub later_name: Option<String>,
    pub kind: Kind,
    /// Command-line arguments of the node, in addition to those that every node of a drill has.
    pub node: Vec<String>,
    pub exporter: Vec<String>,
    /// Additional labels of the node's targets.
    pub target_labels: Vec<(&'static str, &'static str)>,
    /// Path of the node's program, if that is not BITCOIN_NODE.
    pub program: Option<PathBuf>,
    /// Relabel rules of Prometheus for the samples: (label, regular expression for the old value, new value).
    pub labels: Vec<(String, String, String)>,
    pub usdt: bool,
    pub connected: bool,
    /// Certificate of the authority that signed the exporter's certificate, if the endpoint uses TLS.
    pub authority: Option<PathBuf>,
    /// Whether the node's data directory is on a separate file system. If false, Prometheus drops the metrics of the
    /// data directory's file system, because the disk of the machine that runs the drill may be full.
    pub disk: bool,
}

impl Plan {
    /// A plan for a node of this kind. The node gets the name of the kind. A relabel rule of Prometheus replaces the
    /// value `regtest` of the label `chain` with `main`.
    pub fn new(kind: Kind) -> Self {
        Plan {
            name: kind.name().into(),
            later_name: None,
            kind,
            node: Vec::new(),
            exporter: Vec::new(),
            target_labels: Vec::new(),
            program: None,
            labels: vec![("chain".into(), "regtest".into(), "main".into())],
            usdt: kind == Kind::Rpc,
            connected: true,
            authority: None,
            disk: false,
        }
    }

    pub fn named(self, name: &str) -> Self {
        Plan { name: name.into(), ..self }
    }

    /// Sets the value to which the drill later changes the label `node` of the node's scrape targets.
    pub fn later_named(self, name: &str) -> Self {
        Plan { later_name: Some(name.into()), ..self }
    }

    pub fn node(mut self, arguments: &[&str]) -> Self {
        self.node.extend(arguments.iter().map(|it| it.to_string()));
        self
    }

    /// Adds this label to the node's scrape targets.
    pub fn target_label(mut self, name: &'static str, value: &'static str) -> Self {
        self.target_labels.push((name, value));
        self
    }

    pub fn program(self, program: &Path) -> Self {
        Plan { program: Some(program.into()), ..self }
    }

    pub fn exporter(mut self, arguments: &[&str]) -> Self {
        self.exporter.extend(arguments.iter().map(|it| it.to_string()));
        self
    }

    /// Adds a relabel rule of Prometheus that replaces the value `regtest` of the label `chain` with this value.
    pub fn chain(mut self, chain: &str) -> Self {
        self.labels[0].2 = chain.into();
        self
    }

    /// Adds a relabel rule of Prometheus that replaces values of this label that match the regular expression `pattern`
    /// with `value`.
    pub fn label(mut self, label: &str, pattern: &str, value: &str) -> Self {
        self.labels.push((label.into(), pattern.into(), value.into()));
        self
    }

    /// The exporter's arguments with the chain, and with the cookie file unless the plan has a user and a password.
    fn credentials(&self, node: &Node) -> Vec<String> {
        let regtest = node.dir().join("regtest");
        if self.exporter.iter().any(|it| it == "--rpc-user") {
            return vec!["--chain".into(), "regtest".into()];
        }
        vec![
            "--chain".into(),
            "regtest".into(),
            "--rpc-cookie-file".into(),
            regtest.join(".cookie").display().to_string(),
        ]
    }

    fn is_core31(&self) -> bool {
        self.kind == Kind::RpcOverHttp && self.program.is_none() && std::env::var_os("CORE31_NODE").is_some()
    }

    fn relabeling(&self) -> impl Iterator<Item = Value> + '_ {
        // The regular expression also matches an empty value, because a target may have no label `node`.
        let names = format!("({}|{}|)", self.name, self.later_name.as_deref().unwrap_or_default());
        let disk = (!self.disk).then(|| {
            json!({
                "source_labels": ["node", "__name__"],
                "regex": format!("{names};bitcoin_datadir_filesystem_.*"),
                "action": "drop",
            })
        });
        let labels = self.labels.iter().map(move |(label, pattern, value)| {
            json!({
                "source_labels": ["node", label],
                "regex": format!("{names};{pattern}"),
                "target_label": label, "replacement": value,
            })
        });
        disk.into_iter().chain(labels)
    }

    /// Places the node's data directory on a separate file system.
    pub fn on_own_disk(self) -> Self {
        Plan { disk: true, ..self }
    }

    /// Starts no USDT exporter for the node.
    pub fn without_usdt(self) -> Self {
        Plan { usdt: false, ..self }
    }

    pub fn over_tls(self, authority: &Path) -> Self {
        Plan { authority: Some(authority.into()), ..self }
    }

    /// Does not connect the node to the hub, the mining node of the drill's network.
    pub fn alone(self) -> Self {
        Plan { connected: false, ..self }
    }
}

/// A node in a drill, with the node's exporters.
pub struct Member {
    pub plan: Plan,
    // Rust drops the fields in this order, and therefore the exporters exit before the node.
    pub ipc: Option<Exporter>,
    pub usdt: Option<Exporter>,
    pub gate: Option<Gate>,
    hidden: Option<HiddenRpc>,
    pub fake: Option<FakeNode>,
    real: Option<Node>,
    /// The file system of the node's data directory, which is unmounted after the node has exited.
    pub disk: Option<Disk>,
    /// Listening address of the IPC exporter, which the drill passes to the exporter again after a restart.
    address: Option<String>,
    usdt_address: Option<String>,
}

/// Listening address for the first start of an exporter: a free port. Later starts use the port of the first start.
const ANY_PORT: &str = "127.0.0.1:0";

impl Member {
    fn start(plan: Plan, network: &Network) -> Self {
        if plan.kind == Kind::Subscribed {
            let offers = Offers { mining: true, chain: true, ..Offers::NOTHING };
            let fake = Some(FakeNode::start(offers));
            return Member {
                plan,
                ipc: None,
                usdt: None,
                gate: None,
                hidden: None,
                fake,
                real: None,
                disk: None,
                address: None,
                usdt_address: None,
            };
        }
        let connect = format!("-connect={}", network.address());
        let mut arguments: Vec<&str> = plan.node.iter().map(String::as_str).collect();
        arguments.extend(WITHOUT_CHECKS);
        if plan.connected {
            arguments.extend([connect.as_str(), "-whitelist=noban,in,out@127.0.0.1"]);
        }
        let program = match (&plan.program, std::env::var_os("CORE31_NODE")) {
            (Some(program), _) => program.clone(),
            (None, Some(core31)) if plan.kind == Kind::RpcOverHttp => PathBuf::from(core31),
            _ => bitcoin_node(),
        };
        let dir = tempfile::TempDir::new().unwrap();
        let disk = plan.disk.then(|| Disk::mount(dir.path()));
        let real = Node::start_program_in(dir, program, [&["-ipcbind=unix"], &arguments[..]].concat());
        Member {
            plan,
            ipc: None,
            usdt: None,
            gate: None,
            hidden: None,
            fake: None,
            real: Some(real),
            disk,
            address: None,
            usdt_address: None,
        }
    }

    pub fn name(&self) -> &str {
        &self.plan.name
    }

    pub fn real(&self) -> &Node {
        self.real.as_ref().expect("a real node")
    }

    pub fn real_mut(&mut self) -> &mut Node {
        self.real.as_mut().expect("a real node")
    }

    pub fn exporter(&self) -> &Exporter {
        self.ipc.as_ref().expect("an exporter")
    }

    pub fn start_ipc(&mut self) {
        let mut command = command();
        command.args(["--poll-interval", INTERVAL, "--call-timeout", "500ms"]);
        if !self.plan.exporter.iter().any(|it| it == "--next-block") {
            command.args(["--next-block", "on"]);
        }
        if let Some(fake) = &self.fake {
            command.arg(fake.socket());
        }
        if let Some(real) = &self.real {
            let is_core31 = self.plan.is_core31();
            match self.plan.kind {
                Kind::RpcOverHttp | Kind::MiningOnly if !is_core31 => {
                    let hides = self.hidden.get_or_insert_with(|| HiddenRpc::start(&real.socket()));
                    command.arg(hides.socket());
                }
                Kind::HttpOnly => {}
                _ => {
                    command.arg(real.socket());
                }
            }
            match self.plan.kind {
                Kind::RpcOverHttp | Kind::HttpOnly => {
                    let gate = self.gate.get_or_insert_with(|| Gate::start(real));
                    command.args(["--rpc-url", &gate.url()]).args(self.plan.credentials(real));
                }
                _ => {
                    command.args(["--rpc", "off"]);
                }
            }
        }
        command
            .args(&self.plan.exporter)
            .args(["--metrics-addr", self.address.as_deref().unwrap_or(ANY_PORT)]);
        let exporter = Exporter::spawn_without_address(&mut command);
        self.address = Some(exporter.address().into());
        self.ipc = Some(exporter);
    }

    pub fn restart_exporter(&mut self) {
        self.ipc.take().unwrap().terminate();
        self.start_ipc();
    }

    pub fn start_usdt(&mut self) {
        let pid = self.real().pid().to_string();
        let mut command = fixture::command();
        command.args(["--pid", &pid, "--node-name", &self.plan.name, "--health-port", "0"]);
        command.args(["--metrics-addr", self.usdt_address.as_deref().unwrap_or(ANY_PORT)]);
        let exporter = Exporter::spawn_without_address(&mut command).ready();
        self.usdt_address = Some(exporter.address().into());
        self.usdt = Some(exporter);
    }

    /// Kills the node with SIGKILL.
    pub fn kill(&mut self) {
        self.fake = None;
        if let Some(node) = &mut self.real {
            node.kill();
        }
        if let Some(proxy) = &mut self.hidden {
            proxy.stop();
        }
    }

    /// Stops the node with `bitcoin-cli stop`.
    pub fn stop(&mut self) {
        self.real_mut().stop();
        if let Some(proxy) = &mut self.hidden {
            proxy.stop();
        }
    }

    /// Starts the node again, after it was killed or stopped.
    pub fn start_again(&mut self) {
        self.real_mut().restart();
        if let Some(proxy) = &mut self.hidden {
            proxy.start_again();
        }
    }

    /// Restarts the node without its blocks, chain state and indexes. The node keeps its socket and its ports.
    pub fn replace_chain(&mut self) {
        self.stop();
        let dir = self.real().dir().join("regtest");
        for part in ["blocks", "chainstate", "indexes"] {
            let _ = std::fs::remove_dir_all(dir.join(part));
        }
        self.start_again();
    }

    /// Makes the node hang if `hangs` is true (SIGSTOP), and otherwise makes it resume (SIGCONT).
    pub fn hang(&self, hangs: bool) {
        match &self.fake {
            Some(fake) => fake.hang(hangs),
            None => self.real().signal(if hangs { Signal::SIGSTOP } else { Signal::SIGCONT }),
        }
    }

    pub fn targets(&self) -> Vec<Target> {
        let scheme = if self.plan.authority.is_some() { "https" } else { "http" };
        let ipc = self
            .ipc
            .iter()
            .map(|it| Target::new("bitcoind-ipc", it.address(), self.name()).label("__scheme__", scheme));
        let usdt = self.usdt.iter().map(|it| Target::new("bitcoind-usdt", it.address(), self.name()));
        let labels = &self.plan.target_labels;
        let labelled =
            |target: Target| labels.iter().fold(target, |target, (name, value)| target.label(name, value));
        ipc.chain(usdt).map(labelled).collect()
    }
}

/// The name and severity of an alert that a drill expects.
#[derive(Clone)]
pub struct Expected {
    pub name: &'static str,
    pub severity: &'static str,
}

pub const fn critical(name: &'static str) -> Expected {
    Expected { name, severity: "critical" }
}

pub const fn warning(name: &'static str) -> Expected {
    Expected { name, severity: "warning" }
}

pub const fn info(name: &'static str) -> Expected {
    Expected { name, severity: "info" }
}

impl Expected {
    fn of(&self, node: &str) -> Alert {
        let receiver = if self.severity == "info" { "reading" } else { "operator" };
        Alert {
            name: self.name.into(),
            severity: self.severity.into(),
            receiver: receiver.into(),
            node: node.into(),
        }
    }
}

/// The nodes of a drill, with their exporters, their P2P network and the monitoring programs.
pub struct Fleet {
    drill: &'static str,
    pub stack: Stack,
    pub members: Vec<Member>,
    pub network: Network,
    /// The time at which Prometheus had scraped each target once.
    pub since: Instant,
}

/// Default factor by which a drill divides all durations in Prometheus rules and Alertmanager routes. With 60, a
/// simulated minute takes a second of real time.
pub const FACTOR: u32 = 60;

impl Fleet {
    /// Starts these nodes and the monitoring programs, with the default factor.
    pub fn start(drill: &'static str, plans: Vec<Plan>) -> Self {
        Self::start_scaled(drill, FACTOR, plans)
    }

    pub fn start_scaled(drill: &'static str, factor: u32, plans: Vec<Plan>) -> Self {
        Self::start_on(drill, factor, Network::start(factor), plans)
    }

    /// Like [`Self::start_scaled`], but connects the nodes to an existing network.
    pub fn start_on(drill: &'static str, factor: u32, network: Network, plans: Vec<Plan>) -> Self {
        let mut members: Vec<_> = plans.into_iter().map(|plan| Member::start(plan, &network)).collect();
        let relabeling: Vec<_> = members.iter().flat_map(|it| it.plan.relabeling()).collect();
        for member in members.iter().filter(|it| it.plan.connected && it.real.is_some()) {
            eventually("the node has the blocks of its peer", || {
                let height = |node: &Node| node.cli(&["getblockcount"]).parse::<u32>().unwrap();
                // The hub continues to mine, and therefore the node may be one block behind.
                (height(member.real()) + 1 >= height(&network.hub)).then_some(())
            });
        }
        for member in &mut members {
            member.start_ipc();
            if member.plan.usdt && !fixture::cannot_bpf() {
                member.start_usdt();
            }
        }
        let targets: Vec<_> = members.iter().flat_map(Member::targets).collect();
        let authority = members.iter().find_map(|it| it.plan.authority.clone());
        let stack = Stack::start(factor, &targets, &relabeling, authority.as_deref());
        let fleet = Fleet { drill, stack, members, network, since: Instant::now() };
        fleet.watched(targets.len())
    }

    /// Starts only the monitoring programs, with these targets and without nodes.
    pub fn of_targets(drill: &'static str, factor: u32, targets: &[Target]) -> Self {
        let network = Network::start(factor);
        let stack = Stack::start(factor, targets, &[], None);
        Fleet { drill, stack, members: Vec::new(), network, since: Instant::now() }.watched(targets.len())
    }

    /// Waits until Prometheus has scraped each target once.
    fn watched(mut self, targets: usize) -> Self {
        self.stack.wait_for_targets(targets);
        self.since = Instant::now();
        self.stack.discard_startup_alert();
        self
    }

    pub fn drill(&self) -> &'static str {
        self.drill
    }

    pub fn names(&self) -> Vec<String> {
        self.members.iter().map(|it| it.plan.name.clone()).collect()
    }

    pub fn member(&mut self, name: &str) -> &mut Member {
        self.members.iter_mut().find(|it| it.plan.name == name).expect("a member")
    }

    /// Waits for this number of simulated minutes, and panics if an alert fired in that time.
    pub fn quiet(&self, minutes: f64) {
        std::thread::sleep(self.stack.minutes(minutes));
        let received = self.stack.received();
        assert!(received.is_empty(), "{}: alerts before the fault: {received:#?}", self.drill);
        assert_eq!(self.stack.alerts("firing"), BTreeSet::new(), "{}: before the fault", self.drill);
    }

    /// Waits until the webhook has received the expected alerts about each of these nodes, and then for another three
    /// simulated minutes. Panics if an expected alert is missing or if the webhook has received another alert. `within`
    /// is the time limit for an alert in the report, in simulated minutes from `since`. A later alert is reported as
    /// late. The drill fails only if the alert is missing after more than three times `within`.
    pub fn expect(&self, since: Instant, nodes: &[String], expected: &[Expected], within: f64) {
        let each: Vec<_> = nodes.iter().map(|node| (node.clone(), expected.to_vec())).collect();
        self.expect_each(since, &each, within);
    }

    /// Like [`Self::expect`], but with different alerts for each node. An empty node name stands for alerts without the
    /// label `node`.
    pub fn expect_each(&self, since: Instant, each: &[(String, Vec<Expected>)], within: f64) {
        let wanted: BTreeSet<_> =
            each.iter().flat_map(|(node, all)| all.iter().map(|it| it.of(node))).collect();
        // On a busy machine, alerts can arrive later than `within`, because scrapes, polls and evaluations are delayed.
        let end = Instant::now() + self.stack.minutes(3.0 * within) + Duration::from_secs(20);
        loop {
            let received = self.stack.received();
            let got: BTreeSet<_> = received.iter().map(|it| it.alert.clone()).collect();
            if got.is_superset(&wanted) || Instant::now() > end {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        std::thread::sleep(self.stack.minutes(3.0));
        let received = self.stack.received();
        let got: BTreeSet<_> = received.iter().map(|it| it.alert.clone()).collect();
        let ok = got == wanted;
        self.record(since, &wanted, &received, within, ok);
        assert!(
            ok,
            "{}: missing {:?}\nunexpected {:#?}\nfiring now {:?}\npending {:?}\nscrapes {}",
            self.drill,
            wanted.difference(&got).collect::<Vec<_>>(),
            received.iter().filter(|it| !wanted.contains(&it.alert)).collect::<Vec<_>>(),
            self.stack.alerts("firing"),
            self.stack.alerts("pending"),
            self.stack.failed_scrapes(),
        );
    }

    fn record(&self, since: Instant, wanted: &BTreeSet<Alert>, received: &[Received], within: f64, ok: bool) {
        let kind = |node: &str| {
            let member = self.members.iter().find(|it| it.name() == node);
            member.map_or("", |it| it.plan.kind.name()).to_string()
        };
        for alert in wanted {
            let after = received.iter().find(|it| it.alert == *alert).map(|it| it.at - since);
            report::add(report::Line {
                drill: self.drill,
                node: alert.node.clone(),
                kind: kind(&alert.node),
                alert: format!("{} ({})", alert.name, alert.severity),
                after,
                minutes: after.map(|it| self.stack.in_minutes(it)),
                within,
            });
        }
        if wanted.is_empty() || !ok {
            for one in received.iter().filter(|it| !wanted.contains(&it.alert)) {
                report::add(report::Line {
                    drill: self.drill,
                    node: one.alert.node.clone(),
                    kind: kind(&one.alert.node),
                    alert: format!("UNEXPECTED {} ({})", one.alert.name, one.alert.severity),
                    after: Some(one.at - since),
                    minutes: Some(self.stack.in_minutes(one.at - since)),
                    within,
                });
            }
        }
    }
}
