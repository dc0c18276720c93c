//! Tests with hostile nodes, with hostile HTTP clients, with texts of excessive length, and with a node that hangs.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::sync::Arc;
use std::time::Duration;

use bitcoind_exporter::testing::schema::proxy_capnp::thread_map;
use capnp::serialize::write_message_to_words;
use capnp::traits::HasTypeId;
use capnp_rpc::rpc_capnp::message;
use nix::sys::signal::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::eventually;
use crate::exporter::{Exporter, command};
use crate::fake::{Event, FakeNode, Offers};
use crate::harness::fake_http::{FakeHttp, Mode};
use crate::node::Node;

/// Resident memory of the exporter in MB.
fn resident(exporter: &Exporter) -> f64 {
    exporter.value("process_resident_memory_bytes").unwrap() / 1e6
}

#[test]
fn peer_that_never_reads_costs_no_memory() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("node.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let exporter = Exporter::start(&path, &["--call-timeout", "1h"]);
    let (mut peer, _) = listener.accept().unwrap();
    peer.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    // Send Cap'n Proto Bootstrap messages, each of which requests a response from the exporter.
    let mut sent = 0;
    let refused = (0u32..4_000_000).find_map(|question| {
        let mut message = capnp::message::Builder::new_default();
        message.init_root::<message::Builder>().init_bootstrap().set_question_id(question);
        let message = write_message_to_words(&message);
        match peer.write_all(&message) {
            Ok(()) => {
                sent += message.len();
                None
            }
            Err(error) => Some(error.kind()),
        }
    });
    // The exporter must either stop reading from the connection or close it.
    assert!(
        matches!(
            refused,
            Some(
                ErrorKind::WouldBlock
                    | ErrorKind::TimedOut
                    | ErrorKind::BrokenPipe
                    | ErrorKind::ConnectionReset
            )
        ),
        "{refused:?} after {sent} bytes"
    );
    assert!(resident(&exporter) < 100.0, "{} MB after {sent} bytes", resident(&exporter));
    assert_eq!(exporter.value("bitcoin_up"), Some(0.0));
}

#[test]
fn peer_with_endless_calls_costs_no_memory() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("node.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let exporter = Exporter::start(&path, &["--call-timeout", "1h"]);
    let (mut peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let guard = eventually("the exporter has a guard", || exporter.guard());
    // Request threads with long names from the exporter, and never send a Finish message, after which the exporter
    // could free the memory of a request.
    let name = "x".repeat(8000);
    let mut answers = [0; 65536];
    for question in 0u32..30_000 {
        let mut message = capnp::message::Builder::new_default();
        let mut call = message.init_root::<message::Builder>().init_call();
        call.set_question_id(question);
        call.set_interface_id(thread_map::Client::TYPE_ID);
        call.set_method_id(0);
        call.reborrow().init_target().set_imported_cap(0);
        let parameters = call.init_params().get_content();
        parameters.init_as::<thread_map::make_thread_params::Builder>().set_name(&name);
        peer.write_all(&write_message_to_words(&message)).unwrap();
        assert!(peer.read(&mut answers).unwrap() > 0, "each is answered");
    }
    let status = procfs::process::Process::new(guard.as_raw()).unwrap().status().unwrap();
    assert!(status.vmrss < Some(20_000), "{:?} kB in the guard", status.vmrss);
    assert!(resident(&exporter) < 100.0, "{} MB", resident(&exporter));
}

#[test]
fn hostile_requests_do_not_block_scrapers() {
    let exporter = Exporter::start("/nonexistent/node.sock".as_ref(), &[]);
    let before = exporter.value("process_open_fds").unwrap();
    let connect = || {
        let stream = TcpStream::connect(exporter.address()).expect("the exporter accepts the connection");
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        stream
    };
    let still_serves = |during: &str| assert_eq!(exporter.value("bitcoin_up"), Some(0.0), "during {during}");

    let mut endless = connect();
    let refused = (0..100_000).any(|i| endless.write_all(format!("X-{i}: y\r\n").as_bytes()).is_err());
    let mut answer = Vec::new();
    let _ = endless.read_to_end(&mut answer);
    assert!(refused || answer.starts_with(b"HTTP/1.1 4"), "endless headers end");
    still_serves("endless headers");

    // A client sends a thousand requests before it reads a response.
    let mut pipelined = connect();
    let request = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    pipelined.write_all(request.repeat(999).as_bytes()).unwrap();
    still_serves("pipelined requests");
    pipelined.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answers = String::new();
    pipelined.read_to_string(&mut answers).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 1000);

    // A client sends a request and closes its side while the exporter is stopped. The exporter then reads the request
    // and the end of file at the same time.
    let mut half_closed = connect();
    half_closed.write_all(request.as_bytes()).unwrap();
    half_closed.read_exact(&mut [0]).unwrap();
    exporter.signal(Signal::SIGSTOP);
    half_closed.write_all(request.as_bytes()).unwrap();
    half_closed.shutdown(Shutdown::Write).unwrap();
    exporter.signal(Signal::SIGCONT);
    let mut answers = String::new();
    half_closed.read_to_string(&mut answers).unwrap();
    assert_eq!(answers.matches("TTP/1.1 200 OK").count(), 2, "{answers}");

    let mut slow: Vec<_> = (0..50).map(|_| connect()).collect();
    for byte in request.bytes().take(10) {
        slow.iter_mut().for_each(|stream| stream.write_all(&[byte]).unwrap());
        std::thread::sleep(Duration::from_millis(20));
        still_serves("a byte at a time");
    }

    let mut tls = connect();
    tls.write_all(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = tls.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{answer:?}");

    drop((endless, pipelined, half_closed, slow, tls));
    eventually("the descriptors are free again", || {
        (exporter.value("process_open_fds")? <= before).then_some(())
    });
}

/// A fake JSON-RPC server returns texts of a megabyte in fields in which a node returns short texts.
#[test]
fn long_texts_of_a_server_leave_pages_and_log_lines_short() {
    let text = "<b>\n\u{1b}[31m".repeat(1 << 17);
    let answers = |chain: &str| {
        Mode::Answers(Arc::new(json!({
            "getblockchaininfo":
                {"chain": chain, "blocks": text, "bestblockhash": [text], "initialblockdownload": false},
            "getblockhash": text,
            "getbestblockhash": [text],
            "getblockheader": text,
            "getnetworkinfo": {"subversion": text, "version": 310000, "warnings": [text]},
            "uptime": text,
            "waitfornewblock": {"hash": [text], "height": text},
        })))
    };
    for mode in [answers(&text), answers("regtest"), Mode::Error(text.as_str().into())] {
        let http = FakeHttp::start(mode);
        let options = ["--chain", "regtest", "--poll-interval", "50ms"];
        let exporter = Exporter::spawn(command().args(http.arguments()).args(options));
        eventually("the exporter has sent requests", || (http.seen.lock().unwrap().len() > 2).then_some(()));
        let (_, ready) = exporter.get("/readyz");
        assert!(ready.len() < 2048, "{} bytes of /readyz", ready.len());
        let (_, page) = exporter.get("/");
        assert!(page.len() < 100_000 && !page.contains("[31m"), "{} bytes of /", page.len());
        let (_, status) = exporter.get("/status.json");
        assert!(status.len() < 20_000, "{} bytes of /status.json", status.len());
        let log = exporter.log();
        let longest = log.lines().map(str::len).max().unwrap();
        assert!(longest < 2048, "a line of {longest} bytes");
        assert!(!log.contains('\u{1b}'), "control characters in the log");
    }
}

#[test]
fn hanging_node_is_disconnected_and_reconnected() {
    let node = Node::start(&[]);
    let options = ["--call-timeout", "200ms", "--poll-interval", "100ms"];
    let exporter = Exporter::start(&node.socket(), &options).ready();
    node.signal(Signal::SIGSTOP);
    // On a busy machine, the exporter may have counted a connection as hung before the test stopped the node. The test
    // therefore waits for an increase of the counter.
    let hung = || exporter.value("bitcoin_exporter_disconnects_total{reason=\"hung\"}").unwrap_or(0.0);
    let before = hung();
    eventually("the exporter closes the connection as hung", || (hung() > before).then_some(()));
    exporter.wait_for("bitcoin_up", 0.0);
    let height = || exporter.value("bitcoin_chain_height");
    eventually("a stopped node's height is not known", || height().is_none().then_some(()));
    node.signal(Signal::SIGCONT);
    exporter.wait_for("bitcoin_up", 1.0);
    node.cli(&["stop"]);
}

#[test]
fn hanging_node_with_subscriptions_is_kept() {
    let node =
        FakeNode::start(Offers { mining: true, rpc: false, chain: true, node: true, ..Offers::default() });
    let options = ["--call-timeout", "100ms", "--poll-interval", "50ms"];
    let exporter = Exporter::start(&node.socket(), &options).ready();
    eventually("the exporter is subscribed", || (node.fire(vec![Event::Added]) == 1).then_some(()));
    let connects = exporter.value("bitcoin_exporter_connects_total");
    node.hang(true);
    exporter.wait_for("bitcoin_up", 0.0);
    let missed = |exporter: &Exporter| {
        let failures = exporter.metrics();
        let failures =
            failures.lines().filter(|line| line.starts_with("bitcoin_exporter_poll_failures_total"));
        failures.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
    };
    eventually("many polls fail", || (missed(&exporter) >= 6.0).then_some(()));
    node.hang(false);
    exporter.wait_for("bitcoin_up", 1.0);
    assert_eq!(exporter.value("bitcoin_exporter_connects_total"), connects);
    assert_eq!(node.fire(vec![Event::Added]), 1, "it is still subscribed");
}

#[test]
fn requests_at_exit_are_answered_without_delay() {
    let dir = TempDir::new().unwrap();
    let mut exporter = Exporter::start(&dir.path().join("node.sock"), &[]);
    let mut slow = TcpStream::connect(exporter.address()).unwrap();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n").unwrap();
    let _silent = TcpStream::connect(exporter.address()).unwrap();
    assert_eq!(exporter.get("/livez").0, 200); // The exporter accepts connections in order, and has accepted both.
    exporter.signal(Signal::SIGTERM);
    eventually("the exporter handles SIGTERM", || exporter.log().contains("SIGTERM").then_some(()));
    slow.write_all(b"\r\n").unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).expect("a response and the end of the connection");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\nbitcoin_up 0"), "{answer}");
    assert!(exporter.ended().success());
}

#[test]
fn a_service_manager_that_does_not_read_stops_nothing() {
    let (node, dir) = (Node::start(&[]), TempDir::new().unwrap());
    let socket = dir.path().join("notify");
    let _manager = UnixDatagram::bind(&socket).unwrap();
    // The exporter's messages to the service manager block, because this socket is full.
    let earlier = UnixDatagram::unbound().unwrap();
    earlier.set_nonblocking(true).unwrap();
    while earlier.send_to(b"STATUS=x", &socket).is_ok() {}
    let mut command = command();
    command.arg(node.socket()).args(["--poll-interval", "100ms"]);
    let command = command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "2000000");
    let mut exporter = Exporter::spawn(command).ready();
    exporter.wait_for_polls(20.0);
    assert!(exporter.terminate().success());
}
