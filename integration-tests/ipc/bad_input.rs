//! Tests that invalid arguments and inputs make the exporter exit with an error message that names the failure and the
//! remedy.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use bitcoind_exporter::supervisor::IN_CONTAINER;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::stat::Mode as FileMode;
use nix::unistd::mkfifo;
use serde_json::json;
use tempfile::TempDir;

use crate::eventually;
use crate::exporter::{Exporter, command};
use crate::harness::fake_http::{FakeHttp, Mode};

/// Runs the exporter with these arguments, asserts that it exits with an error, and returns its error message.
fn refusal(arguments: &[&str]) -> String {
    let output = command().args(arguments).output().unwrap();
    assert!(!output.status.success(), "{arguments:?} succeeded");
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(!message.contains("panicked"), "{message}");
    message
}

#[test]
fn wrong_socket_is_explained() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    assert!(refusal(&["--once", &path("none")]).contains("start the node with -ipcbind=unix"));
    std::fs::write(path("file"), "").unwrap();
    assert!(refusal(&["--check", &path("file")]).contains("it is not a socket"));
    drop(UnixListener::bind(path("dead")).unwrap());
    assert!(refusal(&["--once", &path("dead")]).contains("connection refused"));
    assert!(
        refusal(&["--once", "--datadir", &path("data"), "--chain", "signet"])
            .contains("data/signet/node.sock")
    );
}

#[test]
fn wrong_descriptor_is_explained() {
    assert!(refusal(&["--ipc-fd", "77"]).contains("file descriptor 77 is not open"));
    assert!(refusal(&["-ipcfd", "2"]).contains("is not an inherited connection"));
    assert!(refusal(&["--ipc-fd", "many"]).contains("invalid value"));
    let file = std::fs::File::open("/dev/null").unwrap();
    fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    assert!(
        refusal(&["--ipc-fd", &file.as_raw_fd().to_string()])
            .contains("not a socket; it must be a connected stream socket")
    );
}

#[test]
fn wrong_options_are_explained() {
    assert!(refusal(&["--metrics-addr", "9332"]).contains("expected HOST:PORT or unix:/path"));
    assert!(refusal(&["--poll-interval", "0s"]).contains("must be more than zero"));
    assert!(refusal(&["--poll-interval", "15"]).contains("use a format like 15s"));
    assert!(refusal(&["--poll-interval", "300000000000y"]).contains("must be at most 100 years"));
    assert!(refusal(&["--chain", "moon"]).contains("regtest"));
    assert!(refusal(&["--utxo-trace", "maybe"]).contains("auto, on, off"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let message = refusal(&["--metrics-addr", &address, "/nonexistent/node.sock"]);
    assert!(
        message.contains(&format!("cannot listen on {address}")) && message.contains("in use"),
        "{message}"
    );
}

/// Starts a server on a Unix socket that is not a node. The server sends `greeting` on each connection, and then closes
/// the connection if `stays` is false.
fn peer(greeting: &'static [u8], stays: bool) -> (TempDir, std::path::PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("node.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming().take(20).flatten() {
            let mut stream: UnixStream = stream;
            let _ = stream.write_all(greeting);
            if stays {
                kept.push(stream);
            } else {
                let _ = stream.read(&mut [0; 4096]);
            }
        }
    });
    (dir, path)
}

#[test]
fn peer_that_is_no_node_is_rejected_and_retried() {
    for greeting in [
        &b""[..],
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x00\x00\x00\x00\x01\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x00\x00\x00\x00\x00\x00\x00\x00",
    ] {
        let (_dir, path) = peer(greeting, false);
        let message = refusal(&["--once", path.to_str().unwrap()]);
        assert!(message.contains("no Bitcoin node responds there"), "{greeting:?}: {message}");
        let exporter = Exporter::start(&path, &[]);
        eventually("the exporter retries", || {
            exporter.value("bitcoin_exporter_connects_total").filter(|&n| n >= 2.0)
        });
        assert_eq!(exporter.value("bitcoin_up"), Some(0.0));
    }
}

#[test]
fn silent_peer_is_disconnected_at_the_deadline() {
    let (_dir, path) = peer(b"", true);
    let message = refusal(&["--once", "--call-timeout", "200ms", path.to_str().unwrap()]);
    assert!(message.contains("no response within 200ms"), "{message}");
}

/// When a write to stderr fails, the exporter must exit with its normal exit code. `eprintln!` would panic.
#[test]
fn unprintable_error_ends_the_process_cleanly() {
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let failure = |arguments: &[&str]| command().args(arguments).stderr(full()).status().unwrap().code();
    assert_eq!(failure(&["--once", "/nonexistent/node.sock"]), Some(1));
    assert_eq!(failure(&["--guard"]), Some(1));
    assert_eq!(failure(&["--no-such-option"]), Some(2));
    // The exit code must be the same in a container, where the supervisor waits for its child processes before it
    // exits.
    let supervised =
        command().args(["--once", "/nonexistent/node.sock"]).env(IN_CONTAINER, "1").stderr(full()).status();
    assert_eq!(supervised.unwrap().code(), Some(1));
    let wrong = command().env(IN_CONTAINER, "2").stderr(full()).status();
    assert_eq!(wrong.unwrap().code(), Some(1));
}

#[test]
fn blocking_password_file_is_rejected() {
    let dir = TempDir::new().unwrap();
    let fifo = dir.path().join("fifo");
    mkfifo(&fifo, FileMode::S_IRWXU).unwrap();
    let fifo = fifo.to_str().unwrap();
    let url = ["--once", "--rpc-url"];
    let error = refusal(&[&url[..], &["http://127.0.0.1:1", "--rpc-cookie-file", fifo]].concat());
    assert!(error.contains("it is not a regular file"), "{error}");
    let error = refusal(&[&url[..], &["https://127.0.0.1:1", "--rpc-ca-file", fifo]].concat());
    assert!(error.contains("it is not a regular file"), "{error}");
}

#[test]
fn manual_page_and_completions_are_generated() {
    let generated = |what: &str| {
        let output = command().args(["--generate", what]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let page = generated("man");
    assert!(page.contains(".TH bitcoind-ipc-exporter 1") && page.contains("poll\\-interval"), "{page}");
    for shell in ["bash", "fish", "zsh"] {
        assert!(generated(shell).contains("bitcoind-ipc-exporter"), "{shell}");
    }
}

#[test]
fn text_of_a_node_is_bounded_in_labels_and_logs() {
    let long = "long\n".repeat(1 << 20);
    let http = FakeHttp::start(Mode::Answers(Arc::new(json!({
        "getblockchaininfo": {"chain": long, "blocks": 7, "bestblockhash": long, "initialblockdownload": false},
        "getnetworkinfo": {"version": 320000, "subversion": long, "protocolversion": 70016, "warnings": [long, 7]},
        "getmempoolfeeratediagram": long,
        "getorphantxs": {long.clone(): long},
        "getindexinfo": {long.clone(): {"synced": true}},
        "uptime": long,
    }))));
    let output = command().args(http.arguments()).arg("--once").output().unwrap();
    let (text, log) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(text.contains("\nbitcoin_chain_height 7\n"), "{text:.1000}\n{log:.1000}");
    assert!(text.contains("bitcoin_warnings{kind=\"other\"} 1\n"), "{text:.1000}");
    let longest = |text: &str| text.lines().map(str::len).max().unwrap_or(0);
    assert!(longest(&text) < 1000, "{:.3000}", text);
    assert!(longest(&log) < 2000 && log.contains("the node reports a warning: long long"), "{log:.3000}");
    let refused = command().args(http.arguments()).args(["--once", "--chain", "regtest"]).output().unwrap();
    let log = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && log.contains("its chain is"), "{log:.3000}");
    assert!(log.len() < 5000, "{}", log.len());
}

/// If a script of a systemd service starts the exporter, the exporter inherits the script's variables LISTEN_FDS and
/// LISTEN_PID, and must ignore them.
#[test]
fn descriptors_for_another_process_are_ignored() {
    let mut command = command();
    command.arg("/nonexistent/node.sock").env("LISTEN_PID", "1");
    let mut exporter = Exporter::spawn(command.env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", "ipc:http"));
    assert_eq!(exporter.get("/livez").0, 200);
    assert!(exporter.terminate().success());
}
