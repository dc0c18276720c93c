//! Inspects the machine and its running nodes, to collect all facts from which the subcommand `setup` plans its
//! changes. This module changes nothing on the machine.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::process::CommandExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::unistd::{Uid, User};
use procfs::net::UnixState;
use procfs::process::{FDTarget, Process, all_processes};

use super::block;
use super::plan::DROP_IN;
use super::settings::Settings;
use crate::bitcoin_core::{BINARIES, CHAINS, ChainParams};
use crate::files;
use crate::node_process::without_mark;

/// The only environment variables that setup passes to `bitcoind-ipc-exporter --check`: the variables by which the
/// supervisor (the parent process of the exporter) detects a container.
const CONTAINER_VARIABLES: [&str; 2] = [crate::supervisor::IN_CONTAINER, "KUBERNETES_SERVICE_HOST"];
/// The special characters that setup accepts in front of the program in `ExecStart=` of a systemd unit.
pub const PREFIXES: [char; 4] = ['-', ':', '+', '!'];

/// The facts about the machine on which the plan of the subcommand `setup` depends.
#[derive(Default)]
pub struct Machine {
    /// The root directory: `/`, or in tests a directory that replaces `/`.
    pub root: PathBuf,
    /// Version of systemd; `None` if the machine does not run systemd.
    pub systemd: Option<u32>,
    /// Name of the machine.
    pub host: String,
    /// The configuration of Prometheus; `None` if the machine has none.
    pub prometheus: Option<Prometheus>,
    /// The operator's lines in the environment file of bitcoind-usdt-exporter.
    pub usdt_environment: String,
    /// The running nodes.
    pub nodes: Vec<Node>,
}

/// The configuration of Prometheus on this machine.
#[derive(Default)]
pub struct Prometheus {
    /// The text of `prometheus.yml`.
    pub config: String,
    /// The operator's lines in the target files of bitcoind-ipc-exporter (`targets/ipc*.yml`).
    pub targets: String,
}

/// The systemd unit that runs, or will run, bitcoind-ipc-exporter for one node, and the unit's settings.
#[derive(Default)]
pub struct Exporter {
    /// Instance name of the template unit `bitcoind-ipc-exporter@.service`; `None` for `bitcoind-ipc-exporter.service`,
    /// which belongs to `bitcoind.service` and to a node without a unit.
    pub instance: Option<String>,
    /// The operator's lines in the unit's environment file.
    pub environment: String,
    /// The lines that an earlier setup added to the unit's environment file.
    pub previous: Option<String>,
    /// Whether the exporter's unit is installed.
    pub is_installed: bool,
    /// Whether the operator has configured a user or a cookie for JSON-RPC over HTTP.
    pub has_credentials: bool,
    /// Ports on which the other instances of the template unit serve metrics. Setup assigns none of these ports to this
    /// instance.
    pub ports: Vec<u16>,
}

impl Exporter {
    fn inspect(unit: Option<&Unit>, root: &Path) -> Self {
        let stem = unit.map_or("bitcoind", |unit| unit.name.trim_end_matches(".service"));
        let instance = Some(stem.trim_start_matches("bitcoind").trim_start_matches(['@', '-']))
            .filter(|it| !it.is_empty());
        let mut exporter = Exporter { instance: instance.map(String::from), ..Exporter::default() };
        (exporter.environment, exporter.previous) = read_split(&root.join(exporter.environment_file()));
        let text = if root == Path::new("/") { unit_text(&exporter.unit()) } else { Some(String::new()) };
        exporter.is_installed = text.is_some();
        let command = Unit::parse("", text.as_deref().unwrap_or_default()).command.unwrap_or_default();
        let credentials = ["--rpc-user", "--rpc-cookie-file", "RPC_USER=", "RPC_COOKIE_FILE="];
        exporter.has_credentials = credentials
            .iter()
            .any(|option| command.contains(option) || exporter.environment.contains(option));
        let own = exporter.environment_file();
        let is_other =
            |name: &str| name.starts_with("bitcoind-ipc-exporter-") && own != format!("etc/default/{name}");
        let port = |line: &str| {
            line.strip_prefix("BITCOIND_IPC_EXPORTER_METRICS_ADDR=")?.rsplit(':').next()?.parse().ok()
        };
        let others = texts(&root.join("etc/default"), is_other);
        exporter.ports = others.iter().flat_map(|text| text.lines()).filter_map(port).collect();
        exporter
    }

    /// Name of the exporter's unit.
    pub fn unit(&self) -> String {
        let instance = self.instance.as_ref().map(|name| format!("@{name}")).unwrap_or_default();
        format!("bitcoind-ipc-exporter{instance}.service")
    }

    /// Path of the unit's environment file, relative to the root directory.
    pub fn environment_file(&self) -> String {
        let instance = self.instance.as_ref().map(|name| format!("-{name}")).unwrap_or_default();
        format!("etc/default/bitcoind-ipc-exporter{instance}")
    }
}

/// A running Bitcoin Core process (`bitcoind` or `bitcoin-node`), and the facts about it that setup needs.
pub struct Node {
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
    /// Name of the user that runs the node.
    pub user: String,
    /// Path of the running binary, without symbolic links.
    pub binary: PathBuf,
    /// Path of the running binary as the operator names it in the unit or on the command line. In contrast to `binary`,
    /// this path may contain a symbolic link, and then remains valid after an upgrade.
    pub named_binary: PathBuf,
    /// Whether the operator has selected this node, or has selected no node.
    pub is_selected: bool,
    /// Whether setup has permission to inspect the node's process. Without this permission, the fields below are
    /// incomplete.
    pub is_accessible: bool,
    /// Whether the node runs in another PID namespace than setup, as in a container.
    pub is_in_container: bool,
    /// The systemd unit in which the node runs; `None` without a unit, or for a unit of a user's systemd manager.
    pub unit: Option<Unit>,
    /// The `bitcoin-node` that is installed with the program that the operator starts.
    pub node_binary: Option<NodeBinary>,
    pub chain: &'static ChainParams,
    pub datadir: PathBuf,
    /// The directory of the node's chain, in which the node writes the file `.cookie` with its JSON-RPC password.
    pub chain_dir: PathBuf,
    /// Path of the node's configuration file, which may not exist.
    pub conf: PathBuf,
    /// The node's settings, from its arguments and from its configuration file without the lines of an earlier setup.
    pub settings: Settings,
    /// The lines that an earlier setup added to the node's configuration file.
    pub previous: Option<String>,
    /// The IPC sockets on which the node listens.
    pub sockets: Vec<PathBuf>,
    /// Paths of the node's open wallets.
    pub wallets: Vec<PathBuf>,
    /// Number of tracepoints in the node's binary; `None` if the binary cannot be read, or if this program is built
    /// without the USDT exporter.
    pub tracepoints: Option<usize>,
    pub exporter: Exporter,
    /// The output of `bitcoind-ipc-exporter --check` for this node, or its error.
    pub check: Result<String, String>,
}

/// The binary `bitcoin-node` that is installed together with the program that the operator starts, usually `bitcoind`.
#[derive(Clone)]
pub struct NodeBinary {
    /// Path of `bitcoin-node`, in which as few symbolic links as possible are resolved, because a path with a link
    /// remains valid after an upgrade.
    pub path: PathBuf,
    /// The program that the operator starts, if it is a symbolic link into the directory of one version. An upgrade
    /// changes this link, but `path` would still be the `bitcoin-node` of the old version. Otherwise `None`.
    pub pinned_by: Option<PathBuf>,
    /// The reason why this `bitcoin-node` cannot replace the `bitcoind` of the node's unit: the versions are different,
    /// or one of the two programs cannot be run. `None` if it can replace `bitcoind`.
    pub difference: Option<String>,
}

/// A systemd unit of a node or of the exporter, with the properties that setup needs.
#[derive(Clone, Default)]
pub struct Unit {
    /// Name, for example `bitcoind.service`.
    pub name: String,
    /// The effective `ExecStart=`, without the drop-in of an earlier setup; `None` unless the unit has exactly one
    /// effective `ExecStart=`.
    pub command: Option<String>,
    /// Whether an earlier setup wrote a drop-in for this unit.
    pub has_drop_in: bool,
}

impl Machine {
    /// Inspects this machine. Reads systemd units only if `root` is `/`. `selected` is the PID, unit or data directory
    /// of the only node to query; if it is `None`, all nodes are queried.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn inspect(root: &Path, selected: Option<&str>) -> Result<Self> {
        let processes = all_processes().context("cannot list the processes; is /proc mounted?")?;
        let etc = root.join("etc");
        let is_target = |name: &str| name.starts_with("ipc") && name.ends_with(".yml");
        let prometheus = etc.join("prometheus").is_dir().then(|| Prometheus {
            config: files::read_text(&etc.join("prometheus/prometheus.yml")).unwrap_or_default(),
            targets: texts(&etc.join("prometheus/targets"), is_target).concat(),
        });
        Ok(Machine {
            root: root.into(),
            systemd: if root == Path::new("/") { systemd_version() } else { Some(u32::MAX) },
            host: std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_string(),
            prometheus,
            usdt_environment: read_split(&etc.join("default/bitcoind-usdt-exporter")).0,
            nodes: processes
                .flatten()
                .filter_map(|process| Node::inspect(&process, root, selected))
                .collect(),
        })
    }
}

/// The operator's lines in a file, and the lines that an earlier setup added. If the file cannot be read, or its lines
/// cannot be told apart, the result is empty. The later attempt of setup to change the file then reports the reason.
fn read_split(path: &Path) -> (String, Option<String>) {
    block::split(&files::read_text(path).unwrap_or_default()).unwrap_or_default()
}

/// The operator's lines in each file of the directory whose name `is_wanted` accepts.
fn texts(dir: &Path, is_wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let wanted = entries.filter(|entry| entry.file_name().to_str().is_some_and(&is_wanted));
    wanted.map(|entry| read_split(&entry.path()).0).collect()
}

/// The paths of the files that a process has open, and of the Unix sockets on which it listens; `None` if setup has no
/// permission to inspect the process.
fn open_files(process: &Process) -> Option<(Vec<PathBuf>, Vec<PathBuf>)> {
    let mut listening = process.unix().unwrap_or_default();
    listening.retain(|socket| socket.state == UnixState::UNCONNECTED);
    let (mut paths, mut sockets) = (Vec::new(), Vec::new());
    for descriptor in process.fd().ok()?.flatten() {
        match descriptor.target {
            FDTarget::Path(path) => paths.push(path),
            FDTarget::Socket(inode) => {
                let entries = listening.iter().filter(|socket| socket.inode == inode);
                sockets.extend(entries.filter_map(|socket| socket.path.clone()));
            }
            _ => {}
        }
    }
    sockets.retain(|path| path.is_absolute());
    sockets.sort();
    Some((paths, sockets))
}

impl Node {
    /// The node that this process runs; `None` if the process is no node or has exited.
    fn inspect(process: &Process, root: &Path, selected: Option<&str>) -> Option<Self> {
        let status = process.status().ok().filter(|status| !status.state.starts_with('Z'))?;
        let binary = process.exe().map_or_else(|_| PathBuf::from(&status.name), |path| without_mark(&path));
        if !BINARIES.iter().any(|name| binary.ends_with(name)) {
            return None;
        }
        let open = open_files(process);
        let is_accessible = open.is_some();
        let (files, sockets) = open.unwrap_or_default();
        let arguments = process.cmdline().unwrap_or_default();
        let uid = status.euid;
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        let given = Settings::new(&arguments, "", "main");
        let started_with = datadir_at_start(process, &given, user.as_ref());
        let (chain, chain_dir, datadir) = directories(&given, &files, &started_with);
        let mut wallets = files;
        wallets.retain(|path| path.ends_with("wallet.dat"));
        wallets.dedup();
        let conf = started_with.join(given.value("conf").unwrap_or("bitcoin.conf"));
        let (text, previous) = read_split(&conf);
        let unit = service(process).filter(|_| root == Path::new("/"));
        let unit = unit.and_then(|name| Some(Unit::parse(&name, &unit_text(&name)?)));
        let program = unit.as_ref().and_then(Unit::program).map(PathBuf::from);
        let program = program.or_else(|| arguments.first().map(PathBuf::from));
        let program = program.filter(|path| path.is_absolute()).unwrap_or_else(|| binary.clone());
        let node_binary = bitcoin_node(&program);
        let mut node = Node {
            pid: process.pid,
            uid,
            gid: status.egid,
            user: user.map_or_else(|| uid.to_string(), |user| user.name),
            is_selected: false,
            is_accessible,
            is_in_container: is_in_other_pid_namespace(process.pid),
            exporter: Exporter::inspect(unit.as_ref(), root),
            unit,
            named_binary: named_binary(&binary, &program, node_binary.as_ref()),
            node_binary,
            tracepoints: tracepoints(process.pid),
            settings: Settings::new(&arguments, &text, chain.name),
            sockets,
            wallets,
            check: Err("setup does not query this node".into()),
            binary,
            chain,
            datadir,
            chain_dir,
            conf,
            previous,
        };
        node.is_selected = selected.is_none_or(|selected| node.is_named(selected));
        if is_accessible && node.is_selected && !node.is_in_container {
            node.check = node.run_check();
            let difference = node.node_binary.as_ref().and_then(|binary| node.compare(&binary.path, process));
            if let Some(binary) = &mut node.node_binary {
                binary.difference = difference;
            }
        }
        Some(node)
    }

    /// Whether `name` is the node's PID, unit or data directory.
    pub fn is_named(&self, name: &str) -> bool {
        let stem = |name: &str| name.trim_end_matches(".service").to_string();
        self.pid.to_string() == name
            || self.unit.as_ref().is_some_and(|unit| stem(&unit.name) == stem(name))
            || [&self.datadir, &self.chain_dir].contains(&&PathBuf::from(name))
    }

    /// Port of the node's JSON-RPC server.
    pub fn rpc_port(&self) -> u16 {
        self.settings.value("rpcport").and_then(|port| port.parse().ok()).unwrap_or(self.chain.rpc_port)
    }

    /// URL of the node's JSON-RPC server.
    pub fn rpc_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.rpc_port())
    }

    /// The rest of the first line with this prefix in the output of `bitcoind-ipc-exporter --check` for this node.
    fn checked(&self, prefix: &str) -> Option<&str> {
        self.check.as_deref().ok()?.lines().find_map(|line| line.strip_prefix(prefix))
    }

    /// Whether the node has this interface over IPC; `None` if the node could not be queried over IPC.
    pub fn has_interface(&self, name: &str) -> Option<bool> {
        let offered = self.checked(&format!("interface {name} "))?;
        Some(offered.trim_start().starts_with("yes"))
    }

    /// The reason why `--check` could not use JSON-RPC over HTTP in addition to IPC; `None` if `--check` used HTTP or
    /// did not need it.
    pub fn http_error(&self) -> Option<&str> {
        self.checked("JSON-RPC over HTTP is not used: ")
    }

    /// The version of the node, for example `320000`; `None` if the output of `--check` does not contain it.
    pub fn version(&self) -> Option<u32> {
        let label = self.checked("node: ")?.split(',').find_map(|label| label.strip_prefix("version="))?;
        label.trim_matches('"').parse().ok()
    }

    /// A command that runs as the node's user. The command starts with an empty environment, because the node's user
    /// can read the environment of the new process, which could otherwise contain secrets of the user that runs setup.
    fn command_as_user(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear();
        if Uid::effective().is_root() && self.uid != 0 {
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// Compares the versions of the unit's `bitcoind` and of `bitcoin-node`, both with the environment of the running
    /// node. Returns the reason why `bitcoin-node` cannot replace `bitcoind`; `None` if it can replace `bitcoind`, or
    /// if the unit runs another program.
    fn compare(&self, bitcoin_node: &Path, process: &Process) -> Option<String> {
        let bitcoind = self.unit.as_ref()?.program().filter(|program| program.ends_with("/bitcoind"))?;
        let version = |program: &Path| -> Result<String, String> {
            let mut command = self.command_as_user(program);
            // Without these options, `bitcoind -version` would create a data directory in the home of the node's user,
            // and replace the file settings.json there.
            command
                .args(["-version", "-datadir=/", "-nosettings"])
                .envs(process.environ().unwrap_or_default());
            let text = output(&mut command)
                .map_err(|error| error.lines().next().unwrap_or("no output").to_string())?;
            let line = text.lines().next().ok_or("no output")?;
            // In some versions of Bitcoin Core, the line with the version ends with the name of the program.
            let name = BINARIES.iter().find_map(|name| line.strip_suffix(name));
            Ok(name.unwrap_or(line).trim().to_string())
        };
        let at = bitcoin_node.display();
        match (version(Path::new(bitcoind)), version(bitcoin_node)) {
            (Ok(old), Ok(new)) if old == new => None,
            (Ok(old), Ok(new)) => Some(format!("{at} is {new}, but {bitcoind} is {old}")),
            (_, Err(error)) => Some(format!("the node's user cannot run {at} -version: {error}")),
            (Err(error), _) => Some(format!("the node's user cannot run {bitcoind} -version: {error}")),
        }
    }

    /// Runs `--check`, which connects to the node as the exporter does, over IPC and over HTTP with the node's cookie.
    /// `--check` runs as the node's user, because that user chooses the path of the cookie: with root's rights,
    /// `--check` could read another user's file there and send it to the node.
    fn run_check(&self) -> Result<String, String> {
        let cookie = self.settings.value("rpccookiefile").unwrap_or(".cookie");
        let mut command = self.command_as_user(Path::new("/proc/self/exe"));
        command.envs(CONTAINER_VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        let cookie = self.chain_dir.join(cookie);
        command.args(self.sockets.first()).args(["--check", "--chain", self.chain.name]);
        // Without `--datadir`, if this node has no socket, `--check` would look for a socket in ~/.bitcoin, which may
        // be the data directory of another node.
        command.arg("--datadir").arg(&self.datadir);
        command.arg("--rpc-url").arg(self.rpc_url()).arg("--rpc-cookie-file").arg(cookie);
        output(&mut command).map_err(|error| error.lines().next_back().unwrap_or("no output").to_string())
    }

    /// Describes the node, one fact per line.
    pub fn describe(&self) -> String {
        let mut text =
            format!("Node: process {} of user {}, {}\n", self.pid, self.user, self.binary.display());
        let mut fact = |name: &str, value: String| {
            let _ = writeln!(text, "  {name:<14} {value}");
        };
        if !self.is_accessible {
            fact("not accessible", format!("the node belongs to user {}", self.user));
        }
        if !self.is_accessible || !self.is_selected {
            return text;
        }
        fact("version", self.checked("node: ").unwrap_or("unknown").to_string());
        fact("chain", format!("{} in {}", self.chain.name, self.chain_dir.display()));
        let is_missing = if self.conf.exists() { "" } else { " (does not exist)" };
        fact("configuration", format!("{}{is_missing}", self.conf.display()));
        let unit = self.unit.as_ref().map(|unit| unit.name.clone());
        let container = self.is_in_container.then(|| "a container".to_string());
        fact("runs in", container.or(unit).unwrap_or("no unit of systemd".into()));
        let sockets: Vec<_> = self.sockets.iter().map(|path| path.display().to_string()).collect();
        fact("IPC socket", if sockets.is_empty() { "none".into() } else { sockets.join(", ") });
        let offered = |name: &&str| self.has_interface(name) == Some(true);
        let interfaces: Vec<_> =
            ["mining", "rpc", "chain", "node", "tracing", "http-rpc"].into_iter().filter(offered).collect();
        match &self.check {
            Ok(check) => {
                let metrics = check.lines().filter(|line| line.starts_with("  bitcoin_")).count();
                fact("provides", format!("{metrics} metrics now, over {}", interfaces.join(", ")));
            }
            Err(error) => fact("provides", format!("unknown: {error}")),
        }
        fact("tracepoints", self.tracepoints.map_or("unknown".into(), |sites| sites.to_string()));
        for wallet in &self.wallets {
            fact("open wallet", wallet.display().to_string());
        }
        text
    }
}

/// The directory that contains `bitcoin.conf`: the data directory on the command line, or the default data directory.
/// The setting `datadir` in `bitcoin.conf` can select another data directory.
fn datadir_at_start(process: &Process, given: &Settings, user: Option<&User>) -> PathBuf {
    let home = || {
        let variable = process.environ().ok().and_then(|mut variables| variables.remove(OsStr::new("HOME")));
        variable.map(PathBuf::from).or_else(|| Some(user?.dir.clone())).unwrap_or("/".into())
    };
    match given.value("datadir").map(Path::new) {
        Some(path) if path.is_absolute() => path.into(),
        Some(path) => process.cwd().unwrap_or_default().join(path),
        None => home().join(".bitcoin"),
    }
}

/// The node's chain, the directory of the chain and the data directory. The result is derived from the directory in
/// which the node has the file `.lock` open, or if the node has none, from the node's arguments.
fn directories(
    given: &Settings,
    files: &[PathBuf],
    started_with: &Path,
) -> (&'static ChainParams, PathBuf, PathBuf) {
    // The second open `.lock` file, in the directory of the blocks, is ignored.
    let mut locks = files.iter().filter(|path| path.ends_with(".lock"));
    if let Some(lock) = locks.find(|path| !path.ends_with("blocks/.lock")) {
        let by_folder = ChainParams::from_path(lock);
        let dir = lock.parent().unwrap_or(Path::new("/"));
        let datadir = by_folder.and_then(|_| dir.parent()).unwrap_or(dir);
        return (by_folder.unwrap_or(&CHAINS[0]), dir.into(), datadir.into());
    }
    let flags = [("testnet", "test"), ("testnet4", "testnet4"), ("signet", "signet"), ("regtest", "regtest")];
    let by_flag = flags.iter().find(|(flag, _)| given.value(flag).is_some()).map(|(_, name)| *name);
    let chain = ChainParams::from_name(given.value("chain").or(by_flag).unwrap_or("main"));
    (chain, chain.folder(started_with), started_with.into())
}

fn is_in_other_pid_namespace(pid: i32) -> bool {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let node = namespace(&pid.to_string());
    node.is_some() && node != namespace("self")
}

/// Name of the systemd unit in which the process runs. Units of a user's systemd manager are ignored, because setup
/// writes drop-ins only to /etc/systemd/system, which does not apply to them.
fn service(process: &Process) -> Option<String> {
    let groups = process.cgroups().ok()?;
    let paths = groups.into_iter().map(|group| group.pathname).filter(|path| !path.contains("user.slice"));
    paths.filter_map(|path| path.rsplit('/').find(|part| part.ends_with(".service")).map(String::from)).next()
}

fn systemd_version() -> Option<u32> {
    let runs = Path::new("/run/systemd/system").exists();
    let text = output(Command::new("systemctl").arg("--version")).ok().filter(|_| runs)?;
    text.split(' ').nth(1)?.parse().ok()
}

/// Runs a command. Returns the output of the command. If the command fails, returns its error output, or the reason why
/// it cannot be started.
fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// The text of a unit with its drop-ins, each after a comment with its path; `None` if there is no such unit. The
/// function does not use `systemctl cat`, which fails if a drop-in was removed and systemd has not been reloaded.
fn unit_text(name: &str) -> Option<String> {
    let arguments = ["show", "--property=FragmentPath,DropInPaths", "--", name];
    let output = output(Command::new("systemctl").args(arguments)).ok()?;
    let property = |name: &str| output.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let unit = Some(property("FragmentPath=")).filter(|path| !path.is_empty())?;
    let drop_ins = property("DropInPaths=").split(' ').filter(|path| !path.is_empty());
    let texts = std::iter::once(unit).chain(drop_ins).filter_map(|path| {
        let text = files::read_text(Path::new(path)).ok()?;
        Some(format!("# {path}\n{text}\n"))
    });
    Some(texts.collect())
}

impl Unit {
    /// Path of the program in the unit's `ExecStart=`.
    pub fn program(&self) -> Option<&str> {
        self.command.as_deref()?.trim_start_matches(PREFIXES).split_whitespace().next()
    }

    /// Parses the unit's file and its drop-ins, each after a comment with its path.
    pub fn parse(name: &str, text: &str) -> Self {
        let mut unit = Unit { name: name.into(), ..Unit::default() };
        let mut commands: Vec<String> = Vec::new();
        let mut is_own = false;
        // A line that ends in a backslash continues on the next line, and systemd skips comment lines between the two
        // lines.
        let mut continued = String::new();
        for line in text.lines() {
            if line.starts_with("# /") && continued.is_empty() {
                is_own = line.ends_with(DROP_IN);
                unit.has_drop_in |= is_own;
            }
            if is_own || line.trim_start().starts_with(['#', ';']) {
                continue;
            }
            if let Some(start) = line.strip_suffix('\\') {
                continued += &format!("{} ", start.trim());
                continue;
            }
            let line = std::mem::take(&mut continued) + line.trim();
            match line.strip_prefix("ExecStart=").map(str::trim) {
                Some("") => commands.clear(),
                Some(command) => commands.push(command.to_string()),
                None => {}
            }
        }
        unit.command = commands.pop().filter(|_| commands.is_empty());
        unit
    }
}

/// The `bitcoin-node` that is installed with this program: Bitcoin Core's releases have it in `libexec`. If the program
/// is a symbolic link, follows it step by step, because `bitcoin-node` is often only beside the target.
fn bitcoin_node(program: &Path) -> Option<NodeBinary> {
    /// The kernel's limit on symbolic links in a path.
    const MAX_LINKS: usize = 40;
    let links = std::iter::successors(Some(program.to_path_buf()), |path| target(path));
    let found = links.take(MAX_LINKS).find_map(|path| {
        let bin = path.parent()?;
        let beside = [bin.join("bitcoin-node"), bin.parent()?.join("libexec/bitcoin-node")];
        let itself = path.ends_with("bitcoin-node").then(|| path.clone());
        let found = itself.into_iter().chain(beside).find(|path| path.is_file())?;
        Some((path, found))
    });
    let (link, path) = found?;
    let is_pinned = link != program && path.canonicalize().is_ok_and(|real| real == path);
    Some(NodeBinary { path, pinned_by: is_pinned.then(|| program.into()), difference: None })
}

/// The target of a symbolic link; `None` if the path is no symbolic link.
fn target(link: &Path) -> Option<PathBuf> {
    let path = link.parent()?.join(std::fs::read_link(link).ok()?);
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            part => plain.push(part),
        }
    }
    // `plain` is the path without `..`. If a directory in front of a `..` is a symbolic link, `plain` leads to another
    // file than `path`. In this case, the function returns `real`, the path without symbolic links.
    let real = path.canonicalize().ok()?;
    Some(if plain.canonicalize().is_ok_and(|plain| plain == real) { plain } else { real })
}

/// A path of the running binary: the path of the operator's program, or of the `bitcoin-node` that the wrapper
/// `bitcoin` starts, if one of them leads to the running binary; otherwise `binary`.
fn named_binary(binary: &Path, program: &Path, node_binary: Option<&NodeBinary>) -> PathBuf {
    let paths = [Some(program), node_binary.map(|node| node.path.as_path())];
    let named = paths.into_iter().flatten().find(|path| path.canonicalize().is_ok_and(|real| real == binary));
    named.unwrap_or(binary).to_path_buf()
}

#[cfg(feature = "usdt")]
fn tracepoints(pid: i32) -> Option<usize> {
    let sites = crate::usdt::probes::sites(Path::new(&format!("/proc/{pid}/exe"))).ok()?;
    Some(sites.iter().map(|site| site.probe()).collect::<std::collections::BTreeSet<_>>().len())
}

#[cfg(not(feature = "usdt"))]
fn tracepoints(_pid: i32) -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn bitcoin_node_is_named_by_a_path_that_survives_an_upgrade() {
        let dir = tempfile::TempDir::new().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let [local, opt] = ["local/bin", "opt"].map(|path| root.join(path));
        let release = opt.join("bitcoin-31.0");
        for path in [&local, &release.join("bin"), &release.join("libexec")] {
            fs::create_dir_all(path).unwrap();
        }
        let (bitcoind, node) = (release.join("bin/bitcoind"), release.join("libexec/bitcoin-node"));
        fs::write(&bitcoind, "").unwrap();
        fs::write(&node, "").unwrap();
        let found = |program: &Path| bitcoin_node(program).map(|found| (found.path, found.pinned_by));
        assert_eq!(found(&bitcoind), Some((node.clone(), None)), "the operator names the version");
        assert_eq!(found(&local.join("bitcoind")), None);

        // The directory is a symbolic link, and the program is a symbolic link into this directory.
        symlink("bitcoin-31.0", opt.join("bitcoin")).unwrap();
        symlink("../../opt/bitcoin/bin/bitcoind", local.join("bitcoind")).unwrap();
        let by_dir = opt.join("bitcoin/libexec/bitcoin-node");
        assert_eq!(found(&opt.join("bitcoin/bin/bitcoind")), Some((by_dir.clone(), None)));
        assert_eq!(found(&local.join("bitcoind")), Some((by_dir.clone(), None)));
        assert_eq!(
            named_binary(&node, &local.join("bitcoind"), bitcoin_node(&local.join("bitcoind")).as_ref()),
            by_dir
        );
        assert_eq!(named_binary(&bitcoind, &local.join("bitcoind"), None), local.join("bitcoind"));
        assert_eq!(named_binary(&bitcoind, Path::new("/usr/bin/env"), None), bitcoind);

        // Only the program is a symbolic link, which leads into the directory of a version.
        fs::remove_file(local.join("bitcoind")).unwrap();
        symlink(&bitcoind, local.join("bitcoind")).unwrap();
        assert_eq!(found(&local.join("bitcoind")), Some((node.clone(), Some(local.join("bitcoind")))));
        symlink(&node, local.join("bitcoin-node")).unwrap();
        assert_eq!(found(&local.join("bitcoind")), Some((local.join("bitcoin-node"), None)));
        symlink(local.join("loop"), local.join("loop")).unwrap();
        assert_eq!(found(&root.join("loop/x")), None);
    }
}
