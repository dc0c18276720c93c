//! Tests in which nodes and exporters start and exit, and tests of invalid arguments.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::harness::eventually;
use crate::harness::exporter::Exporter;
use crate::harness::node::free_port;
use crate::{Fixture, assert_samples, command, compile, fibre};

pub fn restarted_node_is_attached_again_and_keeps_counts() {
    let dir = TempDir::new().unwrap();
    let mut fixture = Fixture::start(&compile(dir.path(), &[]));
    let record = dir.path().join("blocks");
    let arguments = ["--node-name", "relay", "--block-log", record.to_str().unwrap()];
    let mut exporter = crate::exporter(fixture.pid(), &arguments);
    fixture.fire("send");
    drop(fixture);
    eventually("the exporter notices the exit of the node", || {
        (exporter.get("/ready").0 == 503).then_some(())
    });
    assert_samples(&exporter, "fibre_exporter_probes_attached 0\nfibre_blocks_sent_total 1");
    // Simulate an upgrade of the node, which replaces the binary at the same path.
    std::fs::remove_file(dir.path().join("fixture")).unwrap();
    let mut fixture = Fixture::start(&compile(dir.path(), &[]));
    eventually("the exporter attaches to the new node", || (exporter.get("/ready").0 == 200).then_some(()));
    fixture.fire("send");
    assert_samples(&exporter, "fibre_exporter_probes_attached 4\nfibre_blocks_sent_total 2");
    // When the exporter exits, it must not access memory that libbpf freed when it detached from the first process.
    assert!(exporter.terminate().success(), "{}", exporter.log());
}

pub fn another_node_of_the_same_binary_is_not_the_next_one() {
    let dir = TempDir::new().unwrap();
    let binary = compile(dir.path(), &[]);
    let (first, mut other) = (Fixture::start(&binary), Fixture::start(&binary));
    let exporter = crate::exporter(first.pid(), &["--node-name", "relay"]);
    // Wait until the exporter has recorded that the second process runs beside the first process. In the first seconds
    // of tracing, the exporter lists the processes every 500 ms.
    std::thread::sleep(std::time::Duration::from_secs(3));
    drop(first);
    eventually("the exporter waits for the node", || {
        exporter.log().contains("no new process of").then_some(())
    });
    other.fire("send");
    assert_samples(&exporter, "fibre_exporter_probes_attached 0\nfibre_blocks_sent_total 0");
    let mut next = Fixture::start(&binary);
    eventually("the exporter attaches to the next node", || (exporter.get("/ready").0 == 200).then_some(()));
    other.fire("send");
    next.fire("send");
    assert_samples(&exporter, "fibre_exporter_probes_attached 4\nfibre_blocks_sent_total 1");
}

pub fn exporter_started_first_waits_for_the_node() {
    let dir = TempDir::new().unwrap();
    let binary = compile(dir.path(), &[]);
    let exporter = waiting(&binary);
    assert_eq!(exporter.get("/ready").0, 503);
    assert_eq!(exporter.get("/health").0, 200);
    let mut fixture = Fixture::start(&binary);
    eventually("the exporter attaches to the node", || (exporter.get("/ready").0 == 200).then_some(()));
    fixture.fire("send");
    assert_samples(&exporter, "fibre_blocks_sent_total 1");
}

pub fn killed_exporter_leaves_the_node_untraced() {
    let (_dir, mut fixture, exporter) = fibre(&[]);
    fixture.fire("send");
    drop(exporter);
    fixture.fire("repeat 4 1000 send");
    let exporter = crate::exporter(fixture.pid(), &["--node-name", "relay"]);
    fixture.fire("send");
    assert_samples(&exporter, "fibre_blocks_sent_total 1");
}

pub fn two_exporters_on_one_node_count_each_for_itself() {
    let (_dir, mut fixture, first) = fibre(&[]);
    fixture.fire("send");
    let second = crate::exporter(fixture.pid(), &["--node-name", "relay"]);
    fixture.fire("send");
    drop(second);
    fixture.fire("send");
    assert_samples(&first, "fibre_blocks_sent_total 3");
}

pub fn old_options_protect_metrics_but_not_health() {
    let dir = TempDir::new().unwrap();
    let fixture = Fixture::start(&compile(dir.path(), &[]));
    let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
    let [certificate, key] = ["cert.pem", "key.pem"].map(|name| dir.path().join(name));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let health = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = command();
    command.args(["--pid", &fixture.pid().to_string(), "--health-port", &health.to_string()]);
    command.arg("--tls-cert").arg(&certificate).arg("--tls-key").arg(&key);
    command.args(["--metrics-auth-username", "prometheus"]).env("FIBRE_METRICS_AUTH_PASSWORD", "secret");
    let exporter = Exporter::spawn(&mut command);
    let port = exporter.address().rsplit(':').next().unwrap();
    let status = |arguments: &[&str], url: &str| {
        let output = Command::new("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "10", "--cacert"])
            .arg(&certificate)
            .args(["--resolve", &format!("localhost:{port}:127.0.0.1")])
            .args(["--resolve", &format!("localhost:{health}:127.0.0.1")])
            .args(arguments)
            .arg(url)
            .output()
            .expect("curl");
        String::from_utf8(output.stdout).unwrap()
    };
    let metrics = format!("https://localhost:{port}/metrics");
    assert_eq!(status(&["-u", "prometheus:secret"], &metrics), "200");
    assert_eq!(status(&["-u", "prometheus:guess"], &metrics), "401");
    assert_eq!(status(&[], &metrics), "401");
    let health = |page: &str| status(&[], &format!("https://localhost:{health}/{page}"));
    eventually("the health port responds", || (health("health") == "200").then_some(()));
    eventually("the exporter attaches to the node", || (health("ready") == "200").then_some(()));
    assert_eq!((health("metrics").as_str(), health("").as_str()), ("404", "404"));
}

pub fn several_nodes_are_listed_and_none_is_guessed() {
    let dir = TempDir::new().unwrap();
    let binary = compile(dir.path(), &[]);
    let (first, second) = (Fixture::start(&binary), Fixture::start(&binary));
    let text = refusal(&["--list-probes", "--bitcoind", binary.to_str().unwrap()]);
    assert!(text.contains("select one with --datadir, --unit or --pid"), "{text}");
    for fixture in [first, second] {
        assert!(text.contains(&format!("process {} ({})", fixture.pid(), binary.display())), "{text}");
    }
}

pub fn several_nodes_are_waited_for_until_one_is_left() {
    let dir = TempDir::new().unwrap();
    let binary = compile(dir.path(), &[]);
    let (first, mut second) = (Fixture::start(&binary), Fixture::start(&binary));
    let exporter = waiting(&binary);
    eventually("the exporter waits for the node", || {
        exporter.log().contains("several nodes are running").then_some(())
    });
    assert_eq!(exporter.get("/ready").0, 503);
    drop(first);
    eventually("the exporter attaches to the node", || (exporter.get("/ready").0 == 200).then_some(()));
    second.fire("send");
    assert_samples(&exporter, "fibre_blocks_sent_total 1");
}

/// Starts an exporter that waits for a process of this node binary to trace.
fn waiting(binary: &Path) -> Exporter {
    let mut command = command();
    command.arg("--bitcoind").arg(binary).args(["--node-name", "relay", "--health-port", "0"]);
    Exporter::spawn(&mut command)
}

pub fn node_is_selected_by_its_unit() {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let mounts = mounts.lines().filter_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
        [_, at, "cgroup2", ..] => Some(PathBuf::from(at)),
        [_, at, "cgroup", options, ..] if options.contains("name=systemd") => Some(PathBuf::from(at)),
        _ => None,
    });
    let unit = format!("test-{}.service", std::process::id());
    let made = mounts.map(|at| at.join(&unit)).find(|group| std::fs::create_dir(group).is_ok());
    let Some(group) = made else { return eprintln!("SKIPPED: this machine cannot create a control group") };
    let dir = TempDir::new().unwrap();
    let binary = compile(dir.path(), &[]);
    let (_other, mut node) = (Fixture::start(&binary), Fixture::start(&binary));
    std::fs::write(group.join("cgroup.procs"), node.pid().to_string()).unwrap();
    let mut command = command();
    command.arg("--bitcoind").arg(&binary).args([
        "--node-name",
        "relay",
        "--health-port",
        "0",
        "--unit",
        &unit,
    ]);
    let exporter = Exporter::spawn(&mut command).ready();
    node.fire("send");
    assert_samples(&exporter, "fibre_blocks_sent_total 1");
    drop(node);
    eventually("the exporter waits for the node", || {
        exporter.log().contains(&format!("in unit {unit}")).then_some(())
    });
    let mut next = Fixture::start(&binary);
    std::fs::write(group.join("cgroup.procs"), next.pid().to_string()).unwrap();
    eventually("the exporter attaches to the node", || (exporter.get("/ready").0 == 200).then_some(()));
    next.fire("send");
    assert_samples(&exporter, "fibre_blocks_sent_total 2");
    drop(next);
    eventually("the group is empty", || std::fs::remove_dir(&group).ok());
}

pub fn unread_journal_stops_nothing() {
    let dir = TempDir::new().unwrap();
    let mut fixture = Fixture::start(&compile(dir.path(), &["-DSTANDARD"]));
    let run = dir.path().join("run");
    std::fs::create_dir_all(run.join("systemd/journal")).unwrap();
    let socket = run.join("systemd/journal/socket");
    let _journal = UnixDatagram::bind(&socket).unwrap();
    // The exporter's messages to the journal block, because this socket is full.
    let earlier = UnixDatagram::unbound().unwrap();
    earlier.set_nonblocking(true).unwrap();
    while earlier.send_to(b"MESSAGE=x", &socket).is_ok() {}
    let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let port = free_port();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount --bind \"$1\" /run && shift && exec \"$@\"", "sh"]).arg(&run);
    command.arg(env!("CARGO_BIN_EXE_bitcoind-usdt-exporter")).args([
        "--log",
        "journal",
        "--health-port",
        "0",
    ]);
    command.args(["--node-name", "relay", "--metrics-addr", &format!("127.0.0.1:{port}")]);
    command.args(["--pid", &fixture.pid().to_string()]).stdout(Stdio::null()).env_remove("RUST_LOG");
    command.env("NOTIFY_SOCKET", dir.path().join("notify")).env("WATCHDOG_USEC", "2000000");
    let mut exporter = Exporter::spawn_at(&mut command, &format!("127.0.0.1:{port}")).ready();
    for _ in 0..30 {
        fixture.fire("repeat 1 10 named b-msghand standard 1 1 1 1 1 text text");
    }
    eventually("all events are counted", || {
        (exporter.value("bitcoin_blocks_connected_total{node=\"relay\"}")? == 300.0).then_some(())
    });
    assert_eq!((exporter.get("/health").0, exporter.get("/ready").0), (200, 200));
    let mut message = [0; 100];
    let mut beats = 0;
    while beats < 3 {
        let read = manager.recv(&mut message).expect("the watchdog's beat");
        beats += u32::from(message[..read].starts_with(b"WATCHDOG=1"));
    }
    assert!(exporter.terminate().success());
}

pub fn closed_stderr_causes_no_panic() {
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$@\" 2>&-", "sh", env!("CARGO_BIN_EXE_bitcoind-usdt-exporter")]);
    assert_eq!(command.args(["--pid", "4194303"]).status().unwrap().code(), Some(1));
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$@\" 2>/dev/full", "sh", env!("CARGO_BIN_EXE_bitcoind-usdt-exporter")]);
    assert_eq!(command.args(["--pid", "4194303"]).status().unwrap().code(), Some(1));
}

pub fn refusal(arguments: &[&str]) -> String {
    refused(command().args(arguments))
}

/// Runs the exporter, asserts that it exits with an error, and returns the exporter's error message.
pub fn refused(command: &mut Command) -> String {
    let output = command.args(["--health-port", "0", "--metrics-addr", "127.0.0.1:0"]).output().unwrap();
    assert!(!output.status.success(), "{command:?} succeeded");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!text.contains("panicked"), "{text}");
    text
}

pub fn wrong_input_is_explained() {
    assert!(refusal(&["--pid", "4194303"]).contains("there is no process 4194303"));
    assert!(refusal(&["--pid", "0"]).contains("invalid value"));
    assert!(refusal(&["--tracepoints", "fibre,wallet"]).contains("validation"));
    assert!(refusal(&["--list-probes", "--bitcoind", "/dev/null"]).contains("is not a 64-bit ELF binary"));
    assert!(refusal(&["--list-probes", "--bitcoind", "/nonexistent"]).contains("cannot read /nonexistent"));
    assert!(refusal(&["--port", "1"]).contains("cannot be used with"));
}

pub fn failed_output_does_not_end_the_exporter() {
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let reference =
        |stdout: Stdio| command().arg("--print-metrics-reference").stdout(stdout).output().unwrap();
    let output = reference(full().into());
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        (output.status.code(), text.contains("cannot write to standard output")),
        (Some(1), true),
        "{text}"
    );
    // The reading end of the exporter's stdout is closed, as by `| head`.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = reference(writer.into());
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    let dir = TempDir::new().unwrap();
    let fixture = Fixture::start(&compile(dir.path(), &[]));
    let mut running = command();
    running.args(["--pid", &fixture.pid().to_string(), "--health-port", "0"]).stdout(full());
    let mut exporter = Exporter::spawn(&mut running).ready();
    assert!(exporter.terminate().success(), "{}", exporter.log());
}

pub fn missing_privileges_are_reported() {
    let dir = TempDir::new().unwrap();
    let fixture = Fixture::start(&compile(dir.path(), &[]));
    // Run a copy of the exporter, because an unprivileged user may have no access to the folder with the exporter's
    // binary.
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let copy = dir.path().join("exporter");
    std::fs::copy(env!("CARGO_BIN_EXE_bitcoind-usdt-exporter"), &copy).unwrap();
    let mut nobody = std::process::Command::new("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]).arg(&copy);
    nobody.args(["--bitcoind", "/bin/sh", "--health-port", "0", "--metrics-addr", "127.0.0.1:0", "--pid"]);
    let output = nobody.arg(fixture.pid().to_string()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(text.contains("CAP_PERFMON and CAP_BPF") && text.contains("setcap"), "{text}");
}
