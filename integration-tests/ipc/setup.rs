//! Tests of the subcommand `setup` with real nodes. The subcommand writes to a temporary directory instead of `/`.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bitcoind_exporter::supervisor::IN_CONTAINER;
use nix::sys::signal::Signal;
use nix::unistd::Uid;
use procfs::process::{Process, all_processes};
use tempfile::TempDir;

use crate::eventually;
use crate::exporter::{Exporter, command};
use crate::node::{Node, bitcoin_node, free_port};

const CONF: &str = "# of the operator\n[regtest]\nmaxmempool=50\n";
const ENVIRONMENT: &str = "etc/default/bitcoind-ipc-exporter";
const DROP_IN: &str = "etc/systemd/system/bitcoind-ipc-exporter.service.d/zz-bitcoind-ipc-exporter.conf";
const TARGET: &str = "etc/prometheus/targets/ipc-bitcoind.yml";

/// Creates the directory that `setup` uses instead of `/`. The directory has the configuration folders, and an
/// environment file that the operator has written.
fn root() -> TempDir {
    let root = TempDir::new().unwrap();
    for dir in ["etc/default", "etc/prometheus", "etc/systemd/system"] {
        fs::create_dir_all(root.path().join(dir)).unwrap();
    }
    fs::write(root.path().join(ENVIRONMENT), "BITCOIND_IPC_EXPORTER_POLL_INTERVAL=1s\n").unwrap();
    fs::set_permissions(root.path().join(ENVIRONMENT), fs::Permissions::from_mode(0o600)).unwrap();
    root
}

fn setup_command(root: &Path, arguments: &[&str]) -> Command {
    let mut command = command();
    command.arg("setup").arg("--root").arg(root).args(arguments);
    command
}

/// Runs the command. Returns whether the command succeeded, and the command's output.
fn finish(mut command: Command) -> (bool, String) {
    let output = command.output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(!text.contains("panicked"), "{text}");
    (output.status.success(), text)
}

fn setup(root: &Path, arguments: &[&str]) -> (bool, String) {
    finish(setup_command(root, arguments))
}

/// The mode and the contents of each file and directory below `dir`, by path.
fn contents(dir: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        let is_dir = path.is_dir();
        found.extend(if is_dir { contents(&path) } else { BTreeMap::new() });
        let bytes = if is_dir { Vec::new() } else { fs::read(&path).unwrap() };
        found.insert(path.clone(), (path.metadata().unwrap().mode(), bytes));
    }
    found
}

fn read(root: &Path, path: &str) -> String {
    fs::read_to_string(root.join(path)).unwrap()
}

/// The names and values of the variables in the exporter's environment file.
fn environment(root: &Path) -> Vec<(String, String)> {
    let text = read(root, ENVIRONMENT);
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split_once('=').unwrap()).map(|(name, value)| (name.into(), value.into())).collect()
}

#[test]
fn setup_without_write_changes_nothing() {
    let (node, root) = (Node::start(&[]), root());
    let before = contents(root.path());
    let (good, text) = setup(root.path(), &["--node", &node.pid().to_string()]);
    assert!(good, "{text}");
    let socket = node.socket().display().to_string();
    let version = node.json(&["getnetworkinfo"])["version"].to_string();
    for fact in [
        &socket,
        &version,
        "chain          regtest in",
        "metrics now, over mining",
        "Then run:",
        "Nothing was changed.",
    ] {
        assert!(text.contains(fact), "{fact} is missing: {text}");
    }
    assert!(text.contains(&format!("    OpenFile={socket}:ipc:graceful\n")), "{text}");
    assert!(text.contains("    - targets: [\"127.0.0.1:9332\"]\n"), "{text}");
    assert_eq!(contents(root.path()), before);
    assert!(!node.dir().join("bitcoin.conf").exists());
}

#[test]
fn written_setup_connects_over_http_and_is_undone() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("bitcoin.conf"), CONF).unwrap();
    let mut node = Node::start_program_in(dir, bitcoin_node(), vec!["-noipcbind"]);
    let (root, pid) = (root(), node.pid().to_string());
    let before = contents(root.path());
    let arguments = ["--write", "--node", &pid];
    let (good, text) = setup(root.path(), &arguments);
    assert!(good && text.contains("Setup restarts no node"), "{text}");
    assert!(!text.contains("PASSWORD"), "{text}");
    assert_eq!(root.path().join(ENVIRONMENT).metadata().unwrap().mode() & 0o777, 0o600);
    assert!(read(root.path(), DROP_IN).contains("OpenFile=\nPrivateNetwork=no\nIPAddressAllow=localhost\n"));
    assert!(read(root.path(), TARGET).contains("127.0.0.1:9332"));
    let written = contents(root.path());
    let conf = read(node.dir(), "bitcoin.conf");
    assert!(conf.ends_with(CONF) && conf.contains("rpcauth=exporter:"), "{conf}");

    let (good, text) = setup(root.path(), &arguments);
    assert!(good && text.contains("Nothing has to be changed."), "{text}");
    assert_eq!((contents(root.path()), read(node.dir(), "bitcoin.conf")), (written, conf));

    node.restart();
    let variables = environment(root.path());
    let password = &variables.iter().find(|(name, _)| name.ends_with("_RPC_PASSWORD")).unwrap().1;
    let as_exporter = ["-rpcuser=exporter", &format!("-rpcpassword={password}")];
    assert!(node.try_cli(&[&as_exporter[..], &["getblockchaininfo"]].concat()).is_ok());
    let rejected = node.try_cli(&[&as_exporter[..], &["getblockcount"]].concat());
    assert!(rejected.is_err(), "not on the whitelist: {rejected:?}");
    node.mine(3); // bitcoin-cli uses the cookie, whose user has no whitelist
    let exporter = Exporter::spawn(command().envs(variables));
    exporter.wait_for("bitcoin_chain_height", 3.0);
    assert!(
        !exporter.log().contains("rpcwhitelist"),
        "the user may call what the exporter calls: {}",
        exporter.log()
    );

    let (good, text) = setup(root.path(), &["--undo"]);
    assert!(good && text.contains("removed ") && text.contains("changed "), "{text}");
    assert_eq!(contents(root.path()), before);
    assert_eq!(read(node.dir(), "bitcoin.conf"), CONF);
    let (good, text) = setup(root.path(), &["--undo"]);
    assert!(good && text.contains("There is nothing to undo."), "{text}");
}

#[test]
fn bitcoin_node_without_ipc_gets_a_socket() {
    let mut node = Node::start_program(bitcoin_node(), vec![]);
    let (root, pid) = (root(), node.pid().to_string());
    let (good, text) = setup(root.path(), &["--write", "--node", &pid]);
    assert!(good && text.contains("IPC socket     none"), "{text}");
    assert!(read(node.dir(), "bitcoin.conf").contains("\nipcbind=unix\n"));
    node.restart();
    let socket = node.socket();
    assert!(read(root.path(), DROP_IN).contains(&format!("OpenFile={}:ipc:graceful\n", socket.display())));
    let exporter = Exporter::spawn(command().arg(&socket).envs(environment(root.path())));
    exporter.wait_for("bitcoin_up", 1.0);

    let before = (contents(root.path()), read(node.dir(), "bitcoin.conf"));
    let (good, text) = setup(root.path(), &["--write", "--node", &node.pid().to_string()]);
    assert!(good && text.contains("Nothing has to be changed."), "{text}");
    assert_eq!((contents(root.path()), read(node.dir(), "bitcoin.conf")), before);
}

#[test]
fn check_gets_no_other_environment() {
    let (node, root) = (Node::start(&[]), root());
    // `setup` runs the exporter with `--check` in a child process. While the node is stopped, the child process waits
    // for the node, which gives the test time to read the environment of the child process.
    node.signal(Signal::SIGSTOP);
    let mut command = setup_command(root.path(), &["--node", &node.pid().to_string()]);
    command.env("SECRET", "of root").stdout(Stdio::null()).stderr(Stdio::null());
    let mut setup = command.spawn().unwrap();
    let url = node.rpc_url();
    let is_check = |process: &Process| {
        let arguments = process.cmdline().unwrap_or_default();
        ["--check", &url].iter().all(|argument| arguments.iter().any(|it| it == argument))
    };
    let environment = eventually("the check runs", || {
        let check = all_processes().unwrap().flatten().find(is_check)?;
        check.environ().ok()
    });
    node.signal(Signal::SIGCONT);
    assert!(setup.wait().unwrap().success());
    assert_eq!(environment, HashMap::from([(IN_CONTAINER.into(), "0".into())]));
}

#[test]
fn configuration_file_can_name_another_data_directory() {
    let (home, root) = (TempDir::new().unwrap(), root());
    let [conf, data] = [".bitcoin/bitcoin.conf", "data"].map(|path| home.path().join(path));
    fs::create_dir(conf.parent().unwrap()).unwrap();
    fs::create_dir(&data).unwrap();
    fs::write(&conf, format!("datadir={}\n", data.display())).unwrap();
    let mut node = Command::new(bitcoin_node())
        .args(["-regtest", "-listen=0", "-connect=0", "-printtoconsole=0"])
        .arg(format!("-rpcport={}", free_port()))
        .env("HOME", home.path())
        .spawn()
        .unwrap();
    eventually("the node has started", || data.join("regtest/.cookie").exists().then_some(()));
    let (_, text) = setup(root.path(), &["--node", &node.id().to_string()]);
    node.kill().unwrap();
    node.wait().unwrap();
    assert!(text.contains(&format!("  configuration  {}\n", conf.display())), "{text}");
    assert!(text.contains(&format!("regtest in {}/regtest\n", data.display())), "{text}");
}

/// Asserts that `setup --write` fails with an error message that contains `problem`, and changes no file.
fn assert_rejected(root: &Path, node: Option<&Node>, problem: &str) {
    let before = contents(root);
    let conf = node.map(|node| fs::read(node.dir().join("bitcoin.conf")).ok());
    let pid = node.map(|node| node.pid().to_string());
    let selected = pid.iter().flat_map(|pid| ["--node", pid]);
    let (good, text) = setup(root, &["--write"].into_iter().chain(selected).collect::<Vec<_>>());
    assert!(!good && text.contains(problem), "{problem} is missing: {text}");
    assert!(text.contains("Nothing was changed. Solve the problems"), "{text}");
    assert_eq!(contents(root), before);
    assert_eq!(node.map(|node| fs::read(node.dir().join("bitcoin.conf")).ok()), conf);
}

#[test]
fn problems_are_reported_and_nothing_is_written() {
    let (node, _other) = (Node::start_program(bitcoin_node(), vec![]), Node::start(&[]));
    let with_root = |change: &dyn Fn(&Path), node, problem| {
        let root = root();
        change(root.path());
        assert_rejected(root.path(), node, problem);
    };
    with_root(&|_| {}, None, "several nodes are running; select one with --node PID");
    let (good, text) = setup(root().path(), &["--node", "/no/such/datadir"]);
    assert!(
        !good && text.contains("no running node has the PID, unit or data directory /no/such/datadir"),
        "{text}"
    );
    let no_directory = |root: &Path| fs::write(root.join(DROP_IN).parent().unwrap(), "").unwrap();
    with_root(&no_directory, Some(&node), "cannot write to");
    let other_chain = |root: &Path| {
        fs::write(root.join(ENVIRONMENT), "BITCOIND_IPC_EXPORTER_CHAIN=signet\n").unwrap();
    };
    with_root(&other_chain, Some(&node), "sets BITCOIND_IPC_EXPORTER_CHAIN=signet already");
    let conf = node.dir().join("bitcoin.conf");
    std::os::unix::fs::symlink("/dev/null", &conf).unwrap();
    with_root(&|_| {}, Some(&node), "is a symbolic link");
    fs::remove_file(&conf).unwrap();
    fs::write(&conf, "ipcbind=unix:/run/other.sock\n").unwrap();
    with_root(&|_| {}, Some(&node), "-ipcbind=unix:/run/other.sock is set already");
}

#[test]
fn credentials_that_are_set_are_reported() {
    let node = Node::start_program(bitcoin_node(), vec!["-noipcbind"]);
    fs::write(node.dir().join("bitcoin.conf"), "rpcauth=exporter:a$b\n").unwrap();
    assert_rejected(root().path(), Some(&node), "rpcauth=exporter:… is set already");
    fs::write(node.dir().join("bitcoin.conf"), "").unwrap();
    let root = root();
    fs::set_permissions(root.path().join(ENVIRONMENT), fs::Permissions::from_mode(0o644)).unwrap();
    assert_rejected(root.path(), Some(&node), "other users can read it; run: chmod 600");
}

/// This test does nothing unless it runs as root, because only root can start a process as another user.
#[test]
fn node_of_another_user_is_reported() {
    const NOBODY: u32 = 65534;
    if !Uid::effective().is_root() {
        return;
    }
    let (node, root) = (Node::start(&[]), root());
    let mut command = setup_command(root.path(), &["--node", &node.pid().to_string()]);
    command.uid(NOBODY).gid(NOBODY);
    let (good, text) = finish(command);
    assert!(
        !good && text.contains("the node belongs to user root; run setup as root, or as user root"),
        "{text}"
    );
}
