//! Decides which changes the subcommand `setup` makes, from the facts about the machine and without I/O. A drop-in is a
//! file with which setup overrides a part of a systemd unit.

use std::path::{Path, PathBuf};

use ring::hmac;

use super::block::Block;
use super::machine::{Machine, Node, NodeBinary, PREFIXES, Unit};
use crate::json_rpc::methods::whitelist_line;

/// File name of the systemd drop-ins that setup writes. The name begins with `zz` to sort after the names of operators'
/// drop-ins: systemd reads drop-ins in the order of their names, and uses the last `ExecStart=`.
pub const DROP_IN: &str = "zz-bitcoind-ipc-exporter.conf";
/// Name of the exporter's JSON-RPC user on the node.
const RPC_USER: &str = "exporter";
/// Path of the node's IPC socket in the shipped unit `bitcoind-ipc-exporter.service`.
const DEFAULT_SOCKET: &str = "/run/bitcoind/node.sock";
/// Address on which the exporter serves its metrics, in the shipped unit `bitcoind-ipc-exporter.socket`.
const DEFAULT_ADDRESS: &str = "127.0.0.1:9332";
/// First version of systemd that supports `OpenFile=` in units.
const OPEN_FILE: u32 = 253;
/// First version of Bitcoin Core with JSON-RPC over IPC.
const RPC_OVER_IPC: u32 = 31_99_00;

/// The changes that setup proposes for one node: lines to add to files, and commands to run.
#[derive(Debug, Default)]
pub struct Plan {
    /// Reasons why setup makes none of the changes.
    pub problems: Vec<String>,
    /// Facts that the operator has to know, but that do not prevent the changes.
    pub notes: Vec<String>,
    /// The lines to add to files.
    pub blocks: Vec<Block>,
    /// The shell commands that the operator has to run after the changes.
    pub commands: Vec<String>,
}

/// The password of the exporter's JSON-RPC user, and the `rpcauth` line for `bitcoin.conf` with the password's digest.
pub struct Secret {
    password: String,
    rpcauth: String,
}

impl Secret {
    /// A random password, with a line in the format of Bitcoin Core's share/rpcauth/rpcauth.py.
    pub fn random() -> Self {
        Secret::new(hex(&rand::random::<[u8; 32]>()), hex(&rand::random::<[u8; 16]>()))
    }

    fn new(password: String, salt: String) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, salt.as_bytes());
        let digest = hex(hmac::sign(&key, password.as_bytes()).as_ref());
        Secret { password, rpcauth: format!("rpcauth={RPC_USER}:{salt}${digest}") }
    }

    /// The password of an earlier setup, if `bitcoin.conf` and the exporter's environment file still have the lines of
    /// that setup.
    fn of_earlier_setup(node: &Node) -> Option<Self> {
        let value =
            |text: &str, name: &str| text.lines().find_map(|line| Some(line.strip_prefix(name)?.to_string()));
        let password = value(node.exporter.previous.as_deref()?, "BITCOIND_IPC_EXPORTER_RPC_PASSWORD=")?;
        let line = value(node.previous.as_deref()?, "rpcauth=")?;
        let salt = line.strip_prefix(&format!("{RPC_USER}:"))?.split('$').next()?;
        Some(Secret::new(password, salt.into())).filter(|secret| secret.rpcauth == format!("rpcauth={line}"))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Plan {
    /// The plan for the selected node. `wanted` is the operator's selection of a node (`--node`), for messages.
    /// `secret` is used if no earlier setup has created a password.
    pub fn new(machine: &Machine, wanted: Option<&str>, secret: Secret) -> Self {
        let node = match select(machine, wanted) {
            Ok(node) => node,
            Err(problem) => return Plan { problems: vec![problem], ..Plan::default() },
        };
        let binary = node.named_binary.clone();
        let mut planner = Planner { machine, node, binary, needs_restart: false, plan: Plan::default() };
        planner.check_machine();
        if node.is_accessible && !node.is_in_container {
            planner.plan_all(Secret::of_earlier_setup(node).unwrap_or(secret));
        }
        planner.plan
    }
}

fn select<'a>(machine: &'a Machine, wanted: Option<&str>) -> Result<&'a Node, String> {
    let found: Vec<_> = machine.nodes.iter().filter(|node| node.is_selected).collect();
    match (found[..].as_ref(), wanted) {
        (&[node], _) => Ok(node),
        (&[], None) => Err("no node is running; start the node, and run setup again".into()),
        (&[], Some(wanted)) => Err(format!("no running node has the PID, unit or data directory {wanted}")),
        (several, _) => {
            let pids: Vec<_> = several.iter().map(|node| node.pid.to_string()).collect();
            Err(format!("several nodes are running; select one with --node PID (one of {})", pids.join(", ")))
        }
    }
}

struct Planner<'a> {
    machine: &'a Machine,
    node: &'a Node,
    /// Path of the binary that the node will run after the changes.
    binary: PathBuf,
    /// Whether the node has to be restarted, because its unit or `bitcoin.conf` changes.
    needs_restart: bool,
    plan: Plan,
}

impl Planner<'_> {
    fn problem(&mut self, text: impl Into<String>) {
        self.plan.problems.push(text.into());
    }

    fn note(&mut self, text: impl Into<String>) {
        self.plan.notes.push(text.into());
    }

    /// Plans to add `text` to the file at `path`, which is relative to the root directory.
    fn add(&mut self, path: &str, text: String) {
        let path = self.machine.root.join(path);
        let is_secret = text.contains("PASSWORD=");
        self.plan.blocks.push(Block { path, text, node: None, is_secret });
    }

    fn check_machine(&mut self) {
        let node = self.node;
        if !node.is_accessible {
            self.problem(format!(
                "the node belongs to user {0}; run setup as root, or as user {0}",
                node.user
            ));
        }
        if node.is_in_container {
            self.problem("the node runs in a container, which setup cannot change; see docs/containers.md");
        }
        if self.machine.systemd.is_none() {
            self.problem(
                "this machine does not run systemd; start the exporter in another way (docs/connection.md)",
            );
        }
        let binary = node.node_binary.as_ref().map(|binary| &binary.path);
        let named = [Some(&node.chain_dir), binary, node.sockets.first()];
        for path in named.into_iter().flatten().filter(|path| !is_plain(path)) {
            self.problem(format!(
                "{path:?} has a character that setup cannot write to a unit; write the drop-ins by hand"
            ));
        }
        if node.settings.includes_files {
            self.note(format!("{} includes other files, which setup does not read", node.conf.display()));
        }
        if !node.wallets.is_empty() {
            self.note("the node has open wallets. The exporter cannot use them. A restart locks encrypted wallets, and closes those that are not loaded at startup");
        }
    }

    fn plan_all(&mut self, secret: Secret) {
        let mut conf = Vec::new();
        let socket = self.connection(&mut conf);
        let uses_http = self.http(socket.is_some(), &secret, &mut conf);
        if !conf.is_empty() {
            self.needs_restart = true;
            let text = conf.join("\n") + "\n";
            let node = Some((self.node.uid, self.node.gid));
            self.plan.blocks.push(Block { path: self.node.conf.clone(), text, node, is_secret: false });
        }
        self.exporter(socket.as_deref(), uses_http, &secret);
        self.commands();
        self.usdt_exporter();
        self.prometheus();
    }

    /// Plans the node's changes for IPC, and adds their lines for `bitcoin.conf` to `conf`. Returns the IPC socket that
    /// the node has, or will have after the changes; `None` if the node stays without IPC.
    fn connection(&mut self, conf: &mut Vec<String>) -> Option<PathBuf> {
        let node = self.node;
        let in_conf = "ipcbind=unix";
        let was_in_conf =
            node.previous.as_ref().is_some_and(|lines| lines.lines().any(|line| line == in_conf));
        let has_drop_in = node.unit.as_ref().is_some_and(|unit| unit.has_drop_in);
        if was_in_conf {
            conf.push(in_conf.into());
        }
        if let Some(socket) = node.sockets.first().filter(|_| !has_drop_in) {
            return Some(socket.clone());
        }
        if node.settings.value("ipcbind") == Some("0") {
            self.note("the exporter will poll this node over HTTP only, because -noipcbind is set");
            return None;
        }
        if let Some(value) = node.settings.value("ipcbind").filter(|_| !has_drop_in) {
            self.problem(format!("-ipcbind={value} is set already, but {} does not listen there; run bitcoin-node, or remove the setting", node.binary.display()));
            return None;
        }
        match node.unit.as_ref().map(|unit| (unit, drop_in(unit, node.node_binary.as_ref()))) {
            Some((unit, Ok((text, socket)))) => {
                self.replace_binary(unit);
                self.needs_restart = true;
                self.add(&format!("etc/systemd/system/{}.d/{DROP_IN}", unit.name), text);
                return Some(socket);
            }
            Some((_, Err(why))) => self.note(why),
            None => {}
        }
        if node.binary.ends_with("bitcoin-node") {
            if !was_in_conf {
                conf.push(in_conf.into());
            }
            return Some(node.chain_dir.join("node.sock"));
        }
        self.note("the exporter will poll this node over HTTP only, because bitcoind has no IPC. For IPC, start bitcoin-node -ipcbind=unix (Bitcoin Core 30 or later) in its place");
        None
    }

    /// Records that the node's unit will run `bitcoin-node` in place of `bitcoind`, and the problems that prevent the
    /// replacement.
    fn replace_binary(&mut self, unit: &Unit) {
        let is_bitcoind = unit.program().is_some_and(|program| program.ends_with("/bitcoind"));
        let Some(binary) = self.node.node_binary.as_ref().filter(|_| is_bitcoind) else { return };
        let NodeBinary { path, pinned_by, difference } = binary;
        self.binary.clone_from(path);
        if let Some(difference) = difference {
            self.problem(format!(
                "{difference}; install bitcoin-node of the same release, or set noipcbind=1 in {} to keep bitcoind, which the exporter \
                 polls over HTTP",
                self.node.conf.display()
            ));
        }
        if let Some(link) = pinned_by {
            self.problem(format!(
                "{0} is a symbolic link, and bitcoin-node has no such link: after an upgrade, the unit would still run the old {1}. \
                 Run: ln -s {1} {2} (and at an upgrade, change both links); then run setup again",
                link.display(),
                path.display(),
                link.with_file_name("bitcoin-node").display()
            ));
        }
    }

    /// Whether the exporter needs JSON-RPC over HTTP. If JSON-RPC over HTTP is needed, adds the lines for the
    /// exporter's JSON-RPC user to `conf`.
    fn http(&mut self, has_ipc: bool, secret: &Secret, conf: &mut Vec<String>) -> bool {
        let node = self.node;
        let over_ipc = match (node.sockets.is_empty(), node.has_interface("rpc"), node.has_interface("node"))
        {
            (false, Some(rpc), own) => rpc || own == Some(true),
            _ => node.version().is_some_and(|version| version >= RPC_OVER_IPC),
        };
        if has_ipc && over_ipc {
            return false;
        }
        if node.exporter.has_credentials {
            self.note("the exporter's unit or environment file has credentials for JSON-RPC already; setup adds none");
            return true;
        }
        if node.settings.value("server") == Some("0") {
            let why = "the node has no JSON-RPC over HTTP, because server=0 is set; with server=1 the exporter has more metrics";
            let list = if has_ipc { &mut self.plan.notes } else { &mut self.plan.problems };
            list.push(why.into());
            return false;
        }
        for name in ["rpcauth", "rpcwhitelist"] {
            if node.settings.all(name).iter().any(|value| value.split(':').next() == Some(RPC_USER)) {
                self.problem(format!("{name}={RPC_USER}:… is set already; remove it, or configure the exporter by hand (docs/json-rpc.md)"));
            }
        }
        if let Some(error) = node.http_error() {
            self.note(format!("JSON-RPC over HTTP did not work with the node's cookie: {error}"));
        }
        conf.push(secret.rpcauth.clone());
        // Without `rpcwhitelistdefault=0`, a whitelist for one user would lock out all other users. If the operator has
        // set `rpcwhitelist` or `rpcwhitelistdefault`, setup adds no `rpcwhitelistdefault`, to keep the operator's
        // choice.
        if ["rpcwhitelist", "rpcwhitelistdefault"].iter().all(|name| node.settings.value(name).is_none()) {
            conf.push("rpcwhitelistdefault=0".into());
        }
        conf.push(whitelist_line(RPC_USER));
        true
    }

    /// Plans the environment file and the drop-in of the exporter's unit.
    fn exporter(&mut self, socket: Option<&Path>, uses_http: bool, secret: &Secret) {
        let (node, exporter) = (self.node, &self.node.exporter);
        let is_default_port = node.rpc_port() == node.chain.rpc_port;
        // If setup sets an RPC URL for an exporter that uses a socket, it also sets the socket path: with an RPC URL
        // and without a socket path, an exporter that starts before the node would use HTTP and never IPC.
        let by_path = exporter.instance.is_some()
            || self.machine.systemd.is_some_and(|version| version < OPEN_FILE)
            || (uses_http && !is_default_port);
        let needs_url = uses_http && (socket.is_none() || !is_default_port);
        let needs_user = uses_http && !exporter.has_credentials;
        let options = [
            ("CHAIN", Some(node.chain.name.to_string())),
            ("SOCKET_PATH", socket.filter(|_| by_path).map(|path| path.display().to_string())),
            ("METRICS_ADDR", exporter.instance.as_ref().map(|_| self.address())),
            ("RPC", socket.is_none().then(|| "on".into())),
            ("RPC_URL", needs_url.then(|| node.rpc_url())),
            ("RPC_USER", needs_user.then(|| RPC_USER.into())),
            ("RPC_PASSWORD", needs_user.then(|| secret.password.clone())),
        ];
        let marker = format!("# For the node with the data directory {}\n", node.datadir.display());
        let mut text = marker.clone();
        for (name, value) in options {
            let Some(value) = value else { continue };
            let name = format!("BITCOIND_IPC_EXPORTER_{name}");
            match exporter.environment.lines().find_map(|line| line.strip_prefix(&name)?.strip_prefix('=')) {
                Some(other) if other != value => self.problem(format!(
                    "{} sets {name}={other} already; setup would set {name}={value}",
                    exporter.environment_file()
                )),
                Some(_) => {}
                None => text += &format!("{name}={value}\n"),
            }
        }
        if exporter.previous.as_ref().is_some_and(|previous| !previous.starts_with(&marker)) {
            self.problem(format!("{} is set up for another node; run `setup --undo` first", exporter.unit()));
        }
        self.add(&exporter.environment_file(), text);
        let drop_in = exporter_drop_in(node, socket, by_path, uses_http);
        if !drop_in.is_empty() {
            self.add(&format!("etc/systemd/system/{}.d/{DROP_IN}", exporter.unit()), drop_in);
        }
        if !exporter.is_installed {
            self.note(format!("the unit {} is not installed; see docs/systemd.md", exporter.unit()));
        }
    }

    /// Address on which the exporter serves its metrics.
    fn address(&self) -> String {
        let exporter = &self.node.exporter;
        let port = (9333..).find(|port| !exporter.ports.contains(port)).unwrap_or(9333);
        if exporter.instance.is_some() { format!("127.0.0.1:{port}") } else { DEFAULT_ADDRESS.into() }
    }

    fn usdt_exporter(&mut self) {
        if self.node.tracepoints.unwrap_or(0) == 0 || self.node.exporter.instance.is_some() {
            return;
        }
        let name = "BITCOIND_USDT_EXPORTER_BITCOIND";
        if !self.machine.usdt_environment.contains(name) {
            self.add("etc/default/bitcoind-usdt-exporter", format!("{name}={}\n", self.binary.display()));
        }
        self.plan.commands.push(
            "systemctl enable --now bitcoind-usdt-exporter.service   # optional: the tracepoints".into(),
        );
    }

    fn prometheus(&mut self) {
        let (address, name) = (self.address(), self.node.exporter.instance.as_deref());
        let host = &self.machine.host;
        let node = name.map_or(host.clone(), |name| format!("{host}-{name}"));
        let target = format!("- targets: [\"{address}\"]\n  labels:\n    node: \"{node}\"\n");
        match &self.machine.prometheus {
            None => self.note(format!("Prometheus is not on this machine. Add this target to Prometheus, with an address that Prometheus can reach (docs/endpoint.md):\n{target}")),
            Some(prometheus) if prometheus.targets.contains(&address) => {}
            Some(prometheus) => {
                if !prometheus.config.contains("targets/ipc") {
                    self.note("add this job to /etc/prometheus/prometheus.yml:\n- job_name: bitcoind-ipc\n  file_sd_configs:\n    - files: [/etc/prometheus/targets/ipc*.yml]");
                }
                self.add(&format!("etc/prometheus/targets/ipc-{}.yml", name.unwrap_or("bitcoind")), target);
            }
        }
    }

    /// Plans the commands that activate the changes, in the order in which the operator has to run them.
    fn commands(&mut self) {
        let (exporter, address) = (&self.node.exporter, self.address());
        let commands = &mut self.plan.commands;
        commands.push("systemctl daemon-reload".into());
        match &self.node.unit {
            Some(Unit { name, .. }) if self.needs_restart => {
                commands.push(format!("systemctl restart {name}   # restarts the node: choose the time"));
            }
            None if self.needs_restart => commands.push("# restart the node when that is convenient".into()),
            _ => {}
        }
        match &exporter.instance {
            Some(_) => {
                commands.push(format!("systemctl enable {0} && systemctl restart {0}", exporter.unit()));
                if self.machine.nodes.iter().all(|node| node.exporter.instance.is_some()) {
                    let socket = "bitcoind-ipc-exporter.socket";
                    commands.push(format!(
                        "systemctl disable --now {socket}   # no node of this machine uses it"
                    ));
                }
            }
            None => {
                commands.push("systemctl enable --now bitcoind-ipc-exporter.socket".into());
                commands.push("systemctl try-restart bitcoind-ipc-exporter.service".into());
            }
        }
        commands.push(format!(
            "curl http://{address}/metrics   # the first scrape starts the exporter; if bitcoin_up is 0, repeat it"
        ));
    }
}

/// The text of the drop-in with which the node's unit runs `bitcoin-node` with IPC, and the path of the IPC socket.
fn drop_in(unit: &Unit, node_binary: Option<&NodeBinary>) -> Result<(String, PathBuf), String> {
    let Unit { name, command, .. } = unit;
    let unsupported = format!(
        "setup cannot add -ipcbind to ExecStart= of {name}, which does not run bitcoind or bitcoin-node; add it by hand"
    );
    let command = command.as_deref().ok_or(&unsupported)?;
    let (prefix, rest) = command.split_at(command.len() - command.trim_start_matches(PREFIXES).len());
    let (program, arguments) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let name_of_program = program.rsplit_once('/').filter(|_| program.starts_with('/')).map(|(_, name)| name);
    let program = match name_of_program {
        Some("bitcoin-node") => program.to_string(),
        // The program `bitcoin` of Bitcoin Core 30 and later starts the other programs. With -m, the program `bitcoin`
        // runs bitcoin-node.
        Some("bitcoin") if arguments.trim_start().starts_with("-m node ") => program.to_string(),
        Some("bitcoin") if arguments.trim_start().starts_with("node ") => format!("{program} -m"),
        Some("bitcoind") => match node_binary {
            Some(binary) => binary.path.display().to_string(),
            None => {
                return Err(format!(
                    "there is no bitcoin-node in the folder of {program} or in libexec beside it; releases of Bitcoin Core 30 and later have it"
                ));
            }
        },
        _ => return Err(unsupported),
    };
    let dir = name.trim_end_matches(".service").replace('@', "-");
    let socket = PathBuf::from(format!("/run/{dir}/node.sock"));
    let arguments = arguments.trim();
    let text = format!(
        "[Service]\nRuntimeDirectory={dir}\nExecStart=\nExecStart={prefix}{program} {arguments} -ipcbind=unix:{}\n",
        socket.display()
    );
    Ok((text, socket))
}

/// The text of the drop-in for the exporter's unit; empty if the unit needs no change.
fn exporter_drop_in(node: &Node, socket: Option<&Path>, by_path: bool, uses_http: bool) -> String {
    let mut text = String::new();
    let is_instance = node.exporter.instance.is_some();
    if let (true, Some(unit)) = (is_instance, &node.unit) {
        text += &format!("[Unit]\nAfter={}\n[Service]\n", unit.name);
        text += &match socket {
            Some(_) => format!("User={}\n", node.user),
            // Over HTTP, the exporter needs no access to the node's files, and therefore does not run as the node's
            // user. The socket path that the template unit sets is removed, because with it the exporter would wait for
            // a socket.
            None => "User=\nDynamicUser=yes\nUnsetEnvironment=BITCOIND_IPC_EXPORTER_SOCKET_PATH\n".into(),
        };
    } else {
        match socket {
            None => text += "OpenFile=\n",
            Some(_) if by_path => {
                text += &format!("OpenFile=\nDynamicUser=no\nUser={}\nPrivateUsers=no\n", node.user)
            }
            Some(socket) if socket == Path::new(DEFAULT_SOCKET) => {}
            Some(socket) => text += &format!("OpenFile=\nOpenFile={}:ipc:graceful\n", socket.display()),
        }
        if uses_http {
            text += "PrivateNetwork=no\nIPAddressAllow=localhost\nRestrictAddressFamilies=AF_INET AF_INET6\n";
        }
    }
    let is_in_home =
        socket.is_some_and(|socket| ["/home", "/root"].iter().any(|home| socket.starts_with(home)));
    if by_path && is_in_home {
        text += "ProtectHome=no\n";
    }
    if text.is_empty() || is_instance { text } else { format!("[Service]\n{text}") }
}

/// Whether the path contains only characters that need no quotes in a systemd unit, in an environment file and in
/// `OpenFile=`.
fn is_plain(path: &Path) -> bool {
    path.to_str()
        .is_some_and(|text| text.chars().all(|char| char.is_ascii_alphanumeric() || "/._-+@".contains(char)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bitcoin_core::ChainParams;
    use crate::setup::machine::{Exporter, Prometheus};
    use crate::setup::settings::Settings;

    /// The unit that Bitcoin Core ships, shortened.
    const UNIT: &str = "# /usr/lib/systemd/system/bitcoind.service\n[Service]\n# a comment\n\
        ExecStart=/usr/bin/bitcoind -pid=/run/bitcoind/bitcoind.pid \\\n    -conf=/etc/bitcoin/bitcoin.conf \\\n\
        # another comment\n    -startupnotify='systemd-notify --ready'\nExecStartPre=!/bin/chgrp bitcoin /etc/bitcoin\n";

    /// The output of `--check`, shortened.
    fn check(version: u32, interface: &str) -> Result<String, String> {
        Ok(format!(
            "connection: x\nnode: chain=\"main\",version=\"{version}\"\ninterface {interface:<9}yes x\ninterface rpc      no  x\n"
        ))
    }

    /// A bitcoind of Bitcoin Core 30, which runs in the unit that Bitcoin Core ships.
    fn node(conf: &str) -> Node {
        Node {
            pid: 7,
            uid: 100,
            gid: 101,
            user: "bitcoin".into(),
            binary: "/usr/bin/bitcoind".into(),
            named_binary: "/usr/bin/bitcoind".into(),
            is_selected: true,
            is_accessible: true,
            is_in_container: false,
            unit: Some(Unit::parse("bitcoind.service", UNIT)),
            node_binary: Some(NodeBinary {
                path: "/usr/libexec/bitcoin-node".into(),
                pinned_by: None,
                difference: None,
            }),
            chain: ChainParams::from_name("main"),
            datadir: "/var/lib/bitcoind".into(),
            chain_dir: "/var/lib/bitcoind".into(),
            conf: "/etc/bitcoin/bitcoin.conf".into(),
            settings: Settings::new(&[], conf, "main"),
            previous: None,
            sockets: Vec::new(),
            wallets: Vec::new(),
            tracepoints: Some(17),
            exporter: Exporter { is_installed: true, ..Exporter::default() },
            check: check(300_000, "http-rpc"),
        }
    }

    fn plan_for(mut nodes: Vec<Node>, wanted: Option<&str>) -> Plan {
        nodes
            .iter_mut()
            .for_each(|node| node.is_selected = wanted.is_none_or(|wanted| node.is_named(wanted)));
        let prometheus = Some(Prometheus { config: "targets/ipc*.yml".into(), targets: String::new() });
        let machine = Machine {
            root: "/".into(),
            systemd: Some(257),
            host: "box".into(),
            prometheus,
            usdt_environment: String::new(),
            nodes,
        };
        Plan::new(&machine, wanted, Secret::new("password".into(), "salt".into()))
    }

    /// Returns the plan for this node, and asserts that the plan has no problems.
    fn plan(node: Node) -> Plan {
        let plan = plan_for(vec![node], None);
        assert_eq!(plan.problems, Vec::<String>::new());
        plan
    }

    fn problem(node: Node) -> String {
        plan_for(vec![node], None).problems.join("\n")
    }

    fn text<'a>(plan: &'a Plan, path: &str) -> Option<&'a str> {
        let block = plan.blocks.iter().find(|block| block.path == Path::new(path))?;
        Some(&block.text)
    }

    const NODE_DROP_IN: &str = "/etc/systemd/system/bitcoind.service.d/zz-bitcoind-ipc-exporter.conf";
    const EXPORTER_DROP_IN: &str =
        "/etc/systemd/system/bitcoind-ipc-exporter.service.d/zz-bitcoind-ipc-exporter.conf";
    const ENVIRONMENT: &str = "/etc/default/bitcoind-ipc-exporter";
    const CONF: &str = "/etc/bitcoin/bitcoin.conf";

    #[test]
    fn core_unit_gets_ipc_and_a_user() {
        let plan = plan(node(""));
        let drop_in = "[Service]\nRuntimeDirectory=bitcoind\nExecStart=\nExecStart=/usr/libexec/bitcoin-node \
            -pid=/run/bitcoind/bitcoind.pid -conf=/etc/bitcoin/bitcoin.conf -startupnotify='systemd-notify --ready' \
            -ipcbind=unix:/run/bitcoind/node.sock\n";
        assert_eq!(text(&plan, NODE_DROP_IN), Some(drop_in));
        // The digest of share/rpcauth/rpcauth.py for this salt and password.
        let digest = "84ec44c7d6fc41917953a1dafca3c7d7856f7a9d0328b991b76f0d36be1224b9";
        let conf = format!(
            "rpcauth=exporter:salt${digest}\nrpcwhitelistdefault=0\n{}\n",
            whitelist_line("exporter")
        );
        assert_eq!(text(&plan, CONF), Some(conf.as_str()));
        let environment = text(&plan, ENVIRONMENT).unwrap();
        assert!(environment.ends_with("CHAIN=main\nBITCOIND_IPC_EXPORTER_RPC_USER=exporter\nBITCOIND_IPC_EXPORTER_RPC_PASSWORD=password\n"), "{environment}");
        assert!(text(&plan, EXPORTER_DROP_IN).unwrap().contains("IPAddressAllow=localhost"));
        assert_eq!(
            text(&plan, "/etc/default/bitcoind-usdt-exporter"),
            Some("BITCOIND_USDT_EXPORTER_BITCOIND=/usr/libexec/bitcoin-node\n")
        );
        let target = text(&plan, "/etc/prometheus/targets/ipc-bitcoind.yml").unwrap();
        assert_eq!(target, "- targets: [\"127.0.0.1:9332\"]\n  labels:\n    node: \"box\"\n");
        assert_eq!(plan.blocks.len(), 6);
        assert!(
            plan.commands.iter().any(|command| command.starts_with("systemctl restart bitcoind.service ")),
            "{plan:?}"
        );
        let secret: Vec<_> =
            plan.blocks.iter().filter(|block| block.is_secret).map(|block| &block.path).collect();
        assert_eq!(secret, [Path::new(ENVIRONMENT)]);
    }

    #[test]
    fn second_run_plans_the_same() {
        let first = plan(node("rpcport=8332"));
        let mut restarted = node("rpcport=8332");
        let own = format!("{UNIT}\n# {NODE_DROP_IN}\n{}", text(&first, NODE_DROP_IN).unwrap());
        restarted.unit = Some(Unit::parse("bitcoind.service", &own));
        restarted.binary = "/usr/libexec/bitcoin-node".into();
        restarted.settings =
            Settings::new(&["-ipcbind=unix:/run/bitcoind/node.sock".into()], "rpcport=8332", "main");
        restarted.sockets = vec![DEFAULT_SOCKET.into()];
        restarted.previous = text(&first, CONF).map(String::from);
        restarted.exporter.previous = text(&first, ENVIRONMENT).map(String::from);
        restarted.check = check(300_000, "mining");
        let second = plan_for(vec![restarted], None);
        assert_eq!((second.problems, second.blocks), (first.problems, first.blocks));
        // A second setup also keeps the line `ipcbind=unix` that an earlier setup added to `bitcoin.conf`.
        let mut by_hand = Node { unit: None, binary: "/opt/bitcoin-node".into(), ..node("") };
        by_hand.previous = Some("ipcbind=unix\n".into());
        by_hand.sockets = vec!["/var/lib/bitcoind/node.sock".into()];
        assert!(text(&plan(by_hand), CONF).unwrap().starts_with("ipcbind=unix\nrpcauth="));
    }

    #[test]
    fn node_with_json_rpc_over_ipc_needs_no_user() {
        let plan = plan(Node { check: check(319_900, "http-rpc"), ..node("") });
        assert_eq!((text(&plan, CONF), text(&plan, EXPORTER_DROP_IN)), (None, None));
        assert!(text(&plan, NODE_DROP_IN).is_some());
        assert!(!text(&plan, ENVIRONMENT).unwrap().contains("RPC"), "{plan:?}");
        let has_ipc =
            Node { sockets: vec!["/srv/n/node.sock".into()], check: check(319_900, "rpc"), ..node("") };
        let plan = self::plan(has_ipc);
        assert_eq!((text(&plan, CONF), text(&plan, NODE_DROP_IN)), (None, None));
        assert_eq!(
            text(&plan, EXPORTER_DROP_IN),
            Some("[Service]\nOpenFile=\nOpenFile=/srv/n/node.sock:ipc:graceful\n")
        );
    }

    #[test]
    fn node_without_ipc_is_polled_over_http() {
        let plan = plan(Node { node_binary: None, ..node("rpcport=9000\nrpcwhitelist=other:stop") });
        assert!(
            plan.notes
                .iter()
                .any(|note| note.starts_with("there is no bitcoin-node in the folder of /usr/bin/bitcoind")),
            "{plan:?}"
        );
        assert_eq!(text(&plan, NODE_DROP_IN), None);
        assert!(
            text(&plan, EXPORTER_DROP_IN).unwrap().starts_with("[Service]\nOpenFile=\nPrivateNetwork=no\n")
        );
        let environment = text(&plan, ENVIRONMENT).unwrap();
        assert!(
            environment.contains("_RPC=on\nBITCOIND_IPC_EXPORTER_RPC_URL=http://127.0.0.1:9000\n"),
            "{environment}"
        );
        assert!(
            !text(&plan, CONF).unwrap().contains("rpcwhitelistdefault"),
            "the operator's whitelist locks out other users"
        );
    }

    #[test]
    fn http_that_does_not_work_is_reported() {
        let mut with = node("");
        with.sockets = vec![DEFAULT_SOCKET.into()];
        with.check = check(310_000, "mining")
            .map(|text| text + "JSON-RPC over HTTP is not used: there is no cookie\n");
        let plan = plan(with);
        assert!(plan.notes.iter().any(|note| note.ends_with("cookie: there is no cookie")), "{plan:?}");
        assert!(text(&plan, CONF).is_some());
    }

    #[test]
    fn usdt_exporter_gets_the_binary_that_will_run() {
        const USDT: &str = "/etc/default/bitcoind-usdt-exporter";
        let without_ipc = plan(node("noipcbind=1"));
        assert_eq!(text(&without_ipc, USDT), Some("BITCOIND_USDT_EXPORTER_BITCOIND=/usr/bin/bitcoind\n"));
        let link = NodeBinary {
            path: "/opt/31/libexec/bitcoin-node".into(),
            pinned_by: Some("/usr/bin/bitcoind".into()),
            difference: None,
        };
        let pinned = problem(Node { node_binary: Some(link.clone()), ..node("") });
        assert!(
            pinned.contains("Run: ln -s /opt/31/libexec/bitcoin-node /usr/bin/bitcoin-node "),
            "{pinned}"
        );
        let other = NodeBinary { difference: Some("it is v30".into()), ..link.clone() };
        let other = problem(Node { node_binary: Some(other), ..node("") });
        assert!(other.contains("it is v30; install bitcoin-node of the same release"), "{other}");
        plan(Node { node_binary: Some(link), ..node("noipcbind=1") }); // bitcoind stays
    }

    #[test]
    fn old_systemd_and_other_ports_use_the_path() {
        let nodes = || vec![node("")];
        let mut machine =
            Machine { root: "/".into(), systemd: Some(252), nodes: nodes(), ..Machine::default() };
        let secret = || Secret::new("password".into(), "salt".into());
        let path = "[Service]\nOpenFile=\nDynamicUser=no\nUser=bitcoin\nPrivateUsers=no\n";
        for systemd in [252, 253] {
            machine.systemd = Some(systemd);
            let plan = Plan::new(&machine, None, secret());
            assert_eq!(text(&plan, EXPORTER_DROP_IN).unwrap().starts_with(path), systemd == 252);
            assert_eq!(
                text(&plan, ENVIRONMENT).unwrap().contains("SOCKET_PATH=/run/bitcoind/node.sock\n"),
                systemd == 252
            );
            assert!(
                plan.notes.iter().any(|note| note.starts_with("Prometheus is not on this machine")),
                "{plan:?}"
            );
        }
        let plan = plan(node("rpcport=9000"));
        assert!(text(&plan, EXPORTER_DROP_IN).unwrap().starts_with(path));
    }

    #[test]
    fn each_node_has_an_instance() {
        let mut signet = node("");
        let name = "bitcoind@signet.service";
        signet.unit = Some(Unit::parse(name, &UNIT.replace("bitcoind.service", name)));
        signet.exporter =
            Exporter { instance: Some("signet".into()), ports: vec![9333], ..Exporter::default() };
        let plan = plan_for(vec![node(""), signet], Some("bitcoind@signet"));
        assert_eq!(plan.problems, Vec::<String>::new());
        let environment = text(&plan, "/etc/default/bitcoind-ipc-exporter-signet").unwrap();
        assert!(environment.contains("SOCKET_PATH=/run/bitcoind-signet/node.sock\n"), "{environment}");
        assert!(environment.contains("METRICS_ADDR=127.0.0.1:9334\n"), "{environment}");
        let unit = "/etc/systemd/system/bitcoind-ipc-exporter@signet.service.d/zz-bitcoind-ipc-exporter.conf";
        assert_eq!(
            text(&plan, unit),
            Some("[Unit]\nAfter=bitcoind@signet.service\n[Service]\nUser=bitcoin\n")
        );
        assert!(plan.notes.iter().any(|note| note.contains("is not installed")), "{plan:?}");
        let without_ipc = Node { node_binary: None, unit: Some(Unit::parse(name, UNIT)), ..node("") };
        let exporter = Exporter { instance: Some("signet".into()), ..Exporter::default() };
        let without_ipc = self::plan(Node { exporter, ..without_ipc });
        assert!(
            text(&without_ipc, unit)
                .unwrap()
                .ends_with("UnsetEnvironment=BITCOIND_IPC_EXPORTER_SOCKET_PATH\n")
        );
        assert!(
            without_ipc
                .commands
                .iter()
                .any(|line| line.starts_with("systemctl disable --now bitcoind-ipc-exporter.socket")),
            "{without_ipc:?}"
        );
        let target = text(&plan, "/etc/prometheus/targets/ipc-signet.yml").unwrap();
        assert!(target.contains("9334") && target.contains("\"box-signet\""), "{target}");
    }

    #[test]
    fn unsuitable_nodes_are_reported() {
        let none = plan_for(Vec::new(), None);
        assert!(none.problems[0].starts_with("no node is running") && none.blocks.is_empty());
        let two = || vec![node(""), Node { pid: 8, ..node("") }];
        assert!(plan_for(two(), None).problems[0].contains("select one with --node PID (one of 7, 8)"));
        assert!(
            plan_for(two(), Some("9")).problems[0]
                .contains("no running node has the PID, unit or data directory 9")
        );
        assert_eq!(plan_for(two(), Some("8")).problems, Vec::<String>::new());
        let other = plan_for(vec![Node { is_accessible: false, ..node("") }], None);
        assert!(
            other.problems[0].contains("belongs to user bitcoin; run setup as root")
                && other.blocks.is_empty()
        );
        let container = plan_for(vec![Node { is_in_container: true, ..node("") }], None);
        assert!(container.problems[0].contains("in a container") && container.blocks.is_empty());
        let wallet = plan(Node { wallets: vec!["/w/wallet.dat".into()], ..node("") });
        assert!(
            wallet.notes.iter().any(|note| note.contains("A restart locks encrypted wallets")),
            "{wallet:?}"
        );
        assert!(problem(Node { chain_dir: "/a b".into(), ..node("") }).contains("\"/a b\" has a character"));
        let no_systemd = Machine { nodes: vec![node("")], ..Machine::default() };
        let problems = Plan::new(&no_systemd, None, Secret::random()).problems;
        assert!(problems[0].contains("does not run systemd"), "{problems:?}");
    }

    #[test]
    fn options_that_are_set_are_reported() {
        assert!(problem(node("rpcauth=exporter:a$b")).contains("rpcauth=exporter:… is set already"));
        assert!(
            problem(node("rpcwhitelist=exporter:uptime")).contains("rpcwhitelist=exporter:… is set already")
        );
        assert!(
            problem(node("ipcbind=unix"))
                .contains("-ipcbind=unix is set already, but /usr/bin/bitcoind does not listen")
        );
        assert!(problem(Node { node_binary: None, ..node("server=0") }).contains("server=0 is set"));
        let mut with = node("");
        with.exporter.environment = "BITCOIND_IPC_EXPORTER_CHAIN=signet\n".into();
        assert!(problem(with).contains("sets BITCOIND_IPC_EXPORTER_CHAIN=signet already; setup would set"));
        let mut with = node("");
        with.exporter.previous = Some("# For the node with the data directory /other\n".into());
        assert!(problem(with).contains("is set up for another node"));
        // The following two conditions add a note to the plan, but no problem that prevents the changes.
        let without_http = plan(node("server=0"));
        assert!(without_http.notes[0].contains("server=0 is set") && text(&without_http, CONF).is_none());
        let mut with = node("");
        with.exporter.has_credentials = true;
        let own_user = plan(with);
        assert!(
            own_user.notes[0].contains("has credentials for JSON-RPC already")
                && text(&own_user, CONF).is_none()
        );
        assert!(!text(&own_user, ENVIRONMENT).unwrap().contains("RPC_USER"));
    }

    #[test]
    fn other_commands_in_a_unit_are_not_changed() {
        for command in [
            "/usr/bin/env bitcoind",
            "/usr/local/bin/start-node.sh",
            "@/usr/bin/bitcoind name",
            "\"/usr/bin/bitcoind\"",
        ] {
            let mut node = node("");
            node.unit = Some(Unit { command: Some(command.into()), ..Unit::parse("bitcoind.service", "") });
            let plan = plan(node);
            assert_eq!(text(&plan, NODE_DROP_IN), None, "{command}");
            assert!(plan.notes.iter().any(|note| note.contains("add it by hand")), "{command}: {plan:?}");
        }
        let reset = format!(
            "{UNIT}\n# /etc/systemd/system/bitcoind.service.d/override.conf\n[Service]\nExecStart=\nExecStart=-/opt/bitcoin-node -a\n"
        );
        let (text, _) = drop_in(&Unit::parse("bitcoind.service", &reset), None).unwrap();
        assert!(
            text.ends_with("ExecStart=-/opt/bitcoin-node -a -ipcbind=unix:/run/bitcoind/node.sock\n"),
            "{text}"
        );
        for command in ["/usr/bin/bitcoin node -a", "/usr/bin/bitcoin -m node -a"] {
            let unit = Unit { command: Some(command.into()), ..Unit::parse("bitcoind.service", "") };
            let (text, _) = drop_in(&unit, None).unwrap();
            assert!(text.contains("ExecStart=/usr/bin/bitcoin -m node -a -ipcbind=unix:"), "{text}");
        }
        let two = Unit::parse("x.service", "ExecStart=/a\nExecStart=/b\n");
        assert_eq!(two.command, None);
    }
}
