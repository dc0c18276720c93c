//! Tests that the exporter reads the settings of `fibre_exporter.py`, the program that it replaces, from the
//! configuration file and from the environment variables of that program.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::harness::eventually;
use crate::harness::exporter::Exporter;
use crate::lifecycle::refused;
use crate::{Fixture, command, compile};

fn once() -> Command {
    let mut once = command();
    once.arg("--once");
    once
}

/// Writes a configuration file of `fibre_exporter.py` with this text.
fn file(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("config.yaml");
    std::fs::write(&path, text).unwrap();
    path
}

/// Runs the exporter, and returns the line of the sample `fibre_exporter_probes_attached` from its output.
fn printed(command: &mut Command) -> String {
    let output = command.stdout(std::process::Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .find(|line| line.starts_with("fibre_exporter_probes_attached{"))
        .expect("the metric")
        .to_string()
}

pub fn each_source_of_settings_comes_before_the_next() {
    let dir = TempDir::new().unwrap();
    let binary = compile(dir.path(), &[]);
    let (first, _second) = (Fixture::start(&binary), Fixture::start(&binary));
    let text = format!(
        "bitcoind: {}\npid: {}\nnode_name: of-file\nmetrics_port: 1\nlog_level: info\nmetrics_auth_username:\n",
        binary.display(),
        first.pid(),
    );
    let path = file(dir.path(), &text);
    let attached = |node: &str| format!("fibre_exporter_probes_attached{{node=\"{node}\"}} 4");
    let mut by_file = once();
    by_file.arg("-c").arg(&path);
    assert_eq!(printed(&mut by_file), attached("of-file"));
    let mut by_variable = once();
    by_variable.env("BITCOIND_USDT_EXPORTER_CONFIG", &path).env("FIBRE_NODE_NAME", "of-variable");
    by_variable.env("FIBRE_LOG_LEVEL", "WARNING").env("FIBRE_TLS_CERT", "");
    assert_eq!(printed(&mut by_variable), attached("of-variable"));
    by_variable.env("BITCOIND_USDT_EXPORTER_NODE_NAME", "of-ours");
    assert_eq!(printed(&mut by_variable), attached("of-ours"));
    assert_eq!(printed(by_variable.args(["-n", "of-argument"])), attached("of-argument"));
    // Without a configuration file, the environment variables of `fibre_exporter.py` are used.
    let mut without = once();
    without.env("FIBRE_BITCOIND_PATH", &binary).env("FIBRE_PID", first.pid().to_string());
    assert_eq!(printed(&mut without), attached("localhost"));
}

pub fn fibre_exporter_settings_keep_its_port() {
    let dir = TempDir::new().unwrap();
    let binary = compile(dir.path(), &[]);
    let _fixture = Fixture::start(&binary);
    let path = file(dir.path(), &format!("bitcoind_path: {}\nverbose: true\n", binary.display()));
    // The exporter runs in its own network namespace, because it listens on a fixed port of all addresses.
    let alone = |arguments: &[&str]| {
        let mut unshared = Command::new("unshare");
        unshared.args(["-n", env!("CARGO_BIN_EXE_bitcoind-usdt-exporter")]).args(arguments);
        unshared.stdout(std::process::Stdio::null()).env_remove("RUST_LOG");
        unshared
    };
    let by_file = Exporter::spawn_without_address(&mut alone(&["--config", path.to_str().unwrap()]));
    assert_eq!(by_file.address(), "0.0.0.0:9435");
    eventually("the exporter logs the option without effect", || {
        by_file.log().contains("verbose has no effect").then_some(())
    });
    assert_eq!(by_file.log().matches("verbose").count(), 1, "{}", by_file.log());
    let by_variables = Exporter::spawn_without_address(
        alone(&[]).env("FIBRE_BITCOIND_PATH", &binary).env("FIBRE_METRICS_PORT", "9535"),
    );
    assert_eq!(by_variables.address(), "0.0.0.0:9535");
    let by_ours = Exporter::spawn_without_address(&mut alone(&["--bitcoind", binary.to_str().unwrap()]));
    assert_eq!(by_ours.address(), "127.0.0.1:9435");
}

pub fn log_file_is_written_at_the_log_level() {
    let dir = TempDir::new().unwrap();
    let mut fixture = Fixture::start(&compile(dir.path(), &[]));
    let log = dir.path().join("exporter.log");
    std::fs::write(&log, "from before\n").unwrap();
    let pid = fixture.pid().to_string();
    let mut command = command();
    command.args(["--pid", &pid, "--health-port", "0", "--log-file"]).arg(&log);
    let exporter = Exporter::spawn(&mut command).ready();
    fixture.fire("winner 800000 FIBRE/UDP a");
    let line = "block race won block_height=800000";
    let written = || std::fs::read_to_string(&log).unwrap();
    eventually("the line is in the file", || written().contains(line).then_some(()));
    eventually("and on stderr", || exporter.log().contains(line).then_some(()));
    assert!(written().starts_with("from before\n") && !written().contains('\u{1b}'), "{}", written());
    drop(exporter);

    let quiet = dir.path().join("quiet.log");
    let path = file(dir.path(), &format!("log_level: Error\nlog_file: {}\npid: {pid}\n", quiet.display()));
    let mut once = once();
    once.arg("--config").arg(&path);
    printed(&mut once);
    assert_eq!(std::fs::read_to_string(&quiet).unwrap(), "");
}

pub fn wrong_settings_are_explained_with_their_names() {
    let dir = TempDir::new().unwrap();
    let with_file = |text: &str| refused(command().arg("--config").arg(file(dir.path(), text)));
    assert!(
        with_file("metric_port: 1")
            .contains("config.yaml: unknown key metric_port; the keys are bitcoind_path,")
    );
    for (text, why) in [
        ("metrics_port: 70000", "config.yaml: metrics_port: invalid value '70000'"),
        ("health_port: [1]", "config.yaml: health_port: expected a string, a number, true or false"),
        ("pid: 0", "config.yaml: pid: invalid value '0'"),
        ("verbose: perhaps", "config.yaml: verbose: \"perhaps\" is neither true nor false"),
        ("log_level: LOUD", "config.yaml: log_level: invalid value 'LOUD'"),
        ("tls_cert: /nonexistent", "tls_cert is set without tls_key"),
        ("metrics_auth_password: secret", "metrics_auth_password is set without metrics_auth_username"),
        ("log_file: /nonexistent/x", "cannot log to /nonexistent/x"),
        ("a: b: c", "config.yaml: "),
    ] {
        let message = with_file(text);
        assert!(message.contains(why), "{text}: {message}");
        assert!(!message.contains("secret"), "{message}");
    }
    let both = file(dir.path(), "tls_cert: c.pem\ntls_key: k.pem");
    let message = refused(command().args(["--web.config.file", "web.yml", "--config"]).arg(both));
    let why = "'--web.config.file <PATH>' cannot be used with '--tls-cert <PATH>', '--tls-key <PATH>'";
    assert!(message.contains(why), "{message}");
    let message = refused(command().args(["-c", "/nonexistent/c.yaml"]));
    assert!(message.contains("--config /nonexistent/c.yaml: No such file"), "{message}");
    for (variable, value, why) in [
        ("FIBRE_PID", "self", "FIBRE_PID: invalid value 'self'"),
        ("FIBRE_HEALTH_PORT", "-1", "FIBRE_HEALTH_PORT: invalid value '-1'"),
        ("FIBRE_VERBOSE", "1", "FIBRE_VERBOSE: \"1\" is neither true nor false"),
        ("FIBRE_TLS_KEY", "/nonexistent", "tls_key is set without tls_cert"),
        // The exporter must reject an empty name of a systemd unit, because an empty name would match every process.
        ("BITCOIND_USDT_EXPORTER_UNIT", "", "a value is required for '--unit <NAME>'"),
    ] {
        let message = refused(command().env(variable, value));
        assert!(message.contains(why), "{variable}={value}: {message}");
    }
}
