//! Tests of an exporter that uses JSON-RPC over HTTP in addition to IPC, with a real node and with a faulty HTTP
//! server.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bitcoind_exporter::testing::{method_names, whitelist_line};
use serde_json::json;
use tempfile::TempDir;

use crate::eventually;
use crate::exporter::{Exporter, command};
use crate::fake::{FakeNode, Offers};
use crate::harness::fake_http::{FakeHttp, Mode};
use crate::harness::without_rpc::WithoutRpc;
use crate::node::{Node, rpcauth};

const USED: &str = "bitcoin_exporter_interface{interface=\"http-rpc\"}";

/// The exporter's arguments with the URL and the cookie file of the node's JSON-RPC server.
fn over_http(node: &Node) -> [String; 4] {
    let cookie = node.dir().join("regtest/.cookie");
    ["--rpc-url".into(), node.rpc_url(), "--rpc-cookie-file".into(), cookie.display().to_string()]
}

fn borrowed(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

/// The samples about the node that the exporter prints with `--once`, by sample name.
fn polled(socket: &std::path::Path, arguments: &[String]) -> BTreeMap<String, String> {
    let output = command().arg(socket).args(arguments).arg("--once").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let of_node = text.lines().filter(|line| line.starts_with("bitcoin_"));
    // These metrics differ between the two runs: they are about the exporter, about the process that listens on the
    // socket, and about block templates.
    let others = ["bitcoin_exporter_", "bitcoin_node_process_", "bitcoin_template_"];
    let of_node = of_node.filter(|line| !others.iter().any(|prefix| line.starts_with(prefix)));
    of_node
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

#[test]
fn http_gives_what_ipc_gives() {
    let node = Node::start(&[]);
    let blocks = node.mine(103);
    node.spend_coinbase_of(&blocks[0], 10_000);
    let without = WithoutRpc::start(&node.socket());
    let mut over_ipc = polled(&node.socket(), &[]);
    let mut over_http = polled(&without.socket(), &over_http(&node));
    // These values change with time, depend on other programs, or are read from the process that listens on the socket,
    // which is this test process in the second run.
    for name in [
        "bitcoin_node_uptime_seconds",
        "bitcoin_datadir_filesystem_free_bytes",
        "bitcoin_node_start_time_seconds",
    ] {
        assert!(over_ipc.remove(name).is_some() && over_http.remove(name).is_some(), "{name}");
    }
    assert_eq!(over_http, over_ipc);
    assert!(over_http.len() > 40, "{over_http:?}");
    assert_eq!(over_http["bitcoin_mempool_size"], "1");
}

#[test]
fn blocks_are_counted_over_http_and_the_source_is_shown() {
    let node = Node::start(&[]);
    node.mine(10);
    let without = WithoutRpc::start(&node.socket());
    let exporter = Exporter::start(&without.socket(), &borrowed(&over_http(&node))).ready();
    exporter.wait_for(USED, 1.0);
    assert_eq!(exporter.value("bitcoin_exporter_interface{interface=\"rpc\"}"), None);
    exporter.wait_for("bitcoin_blocks_connected_total", 0.0);
    node.mine(30);
    exporter.wait_for("bitcoin_blocks_connected_total", 30.0);
    node.cli(&["invalidateblock", node.cli(&["getbestblockhash"]).as_str()]);
    exporter.wait_for("bitcoin_blocks_disconnected_total", 1.0);

    let check = |more: &[&str]| {
        let output = command()
            .arg(without.socket())
            .args(over_http(&node))
            .args(more)
            .arg("--check")
            .output()
            .unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (good, message, _) = check(&[]);
    assert!(good && message.contains(&format!("JSON-RPC over HTTP: {}", node.rpc_url())), "{message}");
    assert!(message.contains("  bitcoin_difficulty\n"), "{message}");
    assert!(
        !message.contains("more metrics: enable") && !message.contains("more metrics: run bitcoin-node"),
        "{message}"
    );
    assert!(
        message.contains("\nto get more metrics: run bitcoind-usdt-exporter to count each transaction"),
        "{message}"
    );
    let (good, message, _) = check(&["--rpc", "off"]);
    assert!(good && message.contains("\nto get more metrics: enable JSON-RPC over HTTP"), "{message}");
    assert!(!message.contains("  bitcoin_difficulty\n"), "{message}");
    let (good, _, error) = check(&["--rpc", "on", "--chain", "signet"]);
    assert!(!good && error.contains("its chain is \"regtest\", not \"signet\""), "{error}");
}

#[test]
fn documented_whitelist_is_sufficient_and_minimal() {
    let dir = TempDir::new().unwrap();
    let password = dir.path().join("password");
    std::fs::write(&password, "secret word\n").unwrap();
    let without_peers = method_names().filter(|method| *method != "getpeerinfo").collect::<Vec<_>>();
    let node = Node::start(&[
        &rpcauth("exporter", "secret word"),
        &rpcauth("less", "secret word"),
        &rpcauth("all", "secret word"),
        &format!("-{}", whitelist_line("exporter")),
        &format!("-rpcwhitelist=less:{}", without_peers.join(",")),
        "-rpcwhitelistdefault=0",
    ]);
    node.mine(3);
    let without = WithoutRpc::start(&node.socket());
    let as_user = |user| {
        let url = node.rpc_url();
        let password = password.to_str().unwrap();
        let arguments = ["--rpc-url", &url, "--rpc-user", user, "--rpc-password-file", password];
        let exporter =
            Exporter::start(&without.socket(), &[&arguments[..], &["--poll-interval", "200ms"]].concat())
                .ready();
        exporter.wait_for(USED, 1.0);
        exporter
    };
    let (exporter, less) = (as_user("exporter"), as_user("less"));
    node.mine(40);
    exporter.wait_for("bitcoin_blocks_connected_total", 40.0);
    node.cli(&["invalidateblock", node.cli(&["getblockhash", "30"]).as_str()]);
    exporter.wait_for("bitcoin_blocks_disconnected_total", 14.0);
    exporter.wait_for("bitcoin_last_block_transactions", 1.0);
    let metrics = exporter.metrics();
    let failures = metrics.lines().filter(|line| line.starts_with("bitcoin_exporter_poll_failures_total{"));
    assert_eq!(failures.filter(|line| !line.ends_with(" 0")).collect::<Vec<_>>(), [""; 0]);
    assert!(!exporter.log().contains("(403)"), "{}", exporter.log());

    // For an RPC user without a whitelist (`-rpcwhitelist`), the exporter logs the line that adds a whitelist to
    // bitcoin.conf.
    let all = as_user("all");
    let advice = format!("add to bitcoin.conf: {}", whitelist_line("all"));
    eventually("the advice is logged", || all.log().contains(&advice).then_some(()));
    assert!(!exporter.log().contains("bitcoin.conf") && !less.log().contains("bitcoin.conf"));

    // The node must reject a call of `stop`, which is not on the whitelist.
    let mut stream = TcpStream::connect(node.rpc_url().strip_prefix("http://").unwrap()).unwrap();
    let body = json!({"method": "stop", "params": [], "id": 1}).to_string();
    let authorization = STANDARD.encode("exporter:secret word");
    write!(
        stream,
        "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Basic {authorization}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut status = String::new();
    BufReader::new(stream).read_line(&mut status).unwrap();
    assert!(status.contains(" 403 "), "{status}");

    assert_eq!(less.value("bitcoin_peers_addr_relay"), None);
    assert_eq!(exporter.value("bitcoin_peers_addr_relay"), Some(0.0));
    assert_eq!(less.value("bitcoin_peers"), Some(0.0));
    assert_eq!(
        less.log().matches("the node rejects getpeerinfo over HTTP (403)").count(),
        1,
        "{}",
        less.log()
    );
}

#[test]
fn chain_is_known_without_getnetworkinfo() {
    let dir = TempDir::new().unwrap();
    let password = dir.path().join("password");
    std::fs::write(&password, "secret word\n").unwrap();
    let less = method_names().filter(|method| *method != "getnetworkinfo").collect::<Vec<_>>();
    let node = Node::start(&[
        &rpcauth("less", "secret word"),
        &format!("-rpcwhitelist=less:{}", less.join(",")),
        "-rpcwhitelistdefault=0",
    ]);
    let without = WithoutRpc::start(&node.socket());
    let (url, password) = (node.rpc_url(), password.to_str().unwrap());
    let arguments = ["--rpc-url", &url, "--rpc-user", "less", "--rpc-password-file", password];
    let exporter = Exporter::start(&without.socket(), &arguments).ready();
    exporter.wait_for(USED, 1.0);
    let info = "bitcoin_node_info{version=\"\",subversion=\"\",protocol_version=\"\",chain=\"regtest\"}";
    exporter.wait_for(info, 1.0);
}

#[test]
fn http_of_another_node_is_not_used() {
    let (node, other) = (Node::start(&[]), Node::start(&[]));
    node.mine(3);
    other.cli(&["generatetodescriptor", "5", "raw(52)"]);
    let without = WithoutRpc::start(&node.socket());
    let exporter = Exporter::start(&without.socket(), &borrowed(&over_http(&other))).ready();
    eventually("the exporter logs that another node responds", || {
        exporter
            .log()
            .contains("is another node than the one behind the IPC socket: its block at height 3 is")
            .then_some(())
    });
    assert_eq!((exporter.value(USED), exporter.value("bitcoin_chain_height")), (Some(0.0), Some(3.0)));
    assert_eq!(exporter.value("bitcoin_difficulty"), None);
    assert_eq!(exporter.value("bitcoin_up"), Some(1.0));
}

#[test]
fn connection_closed_between_polls_is_reopened() {
    let node = Node::start(&["-rpcservertimeout=1"]);
    node.mine(3);
    let without = WithoutRpc::start(&node.socket());
    let arguments = over_http(&node);
    let exporter =
        Exporter::start(&without.socket(), &[&borrowed(&arguments)[..], &["--poll-interval", "3s"]].concat())
            .ready();
    eventually("four polls", || {
        (exporter.value("bitcoin_exporter_poll_duration_seconds_count")? >= 4.0).then_some(())
    });
    assert_eq!(exporter.value(USED), Some(1.0));
    assert!(!exporter.log().contains("not used"), "{}", exporter.log());
    assert_eq!(exporter.value("bitcoin_exporter_poll_failures_total{call=\"getblockchaininfo\"}"), Some(0.0));
}

#[test]
fn restarted_node_has_another_cookie() {
    let mut node = Node::start(&[]);
    node.mine(3);
    let without = WithoutRpc::start(&node.socket());
    let exporter = Exporter::start(&without.socket(), &borrowed(&over_http(&node))).ready();
    exporter.wait_for(USED, 1.0);
    let cookie = std::fs::read_to_string(node.dir().join("regtest/.cookie")).unwrap();
    node.restart();
    assert_ne!(std::fs::read_to_string(node.dir().join("regtest/.cookie")).unwrap(), cookie);
    exporter.wait_for("bitcoin_exporter_connects_total", 2.0);
    exporter.wait_for(USED, 1.0);
    exporter
        .wait_for("bitcoin_difficulty", node.json(&["getblockchaininfo"])["difficulty"].as_f64().unwrap());
}

/// Checks that a fault of the HTTP server affects only the metrics that are read over HTTP, that the exporter logs the
/// fault once with `message`, and that it uses HTTP again after the fault.
fn fault(mode: Mode, message: &str) {
    let node = FakeNode::start(Offers { mining: true, ..Offers::NOTHING });
    let http = FakeHttp::start(mode);
    let exporter = http.exporter(&node, &["--call-timeout", "1s"]);
    eventually(message, || exporter.log().contains(message).then_some(()));
    eventually("the exporter retries", || (http.seen.lock().unwrap().len() > 2).then_some(()));
    assert_eq!((exporter.value(USED), exporter.value("bitcoin_difficulty")), (Some(0.0), None));
    assert_eq!(
        (exporter.value("bitcoin_up"), exporter.value("bitcoin_chain_height")),
        (Some(1.0), Some(42.0))
    );
    http.set(Mode::Works);
    exporter.wait_for(USED, 1.0);
    exporter.wait_for("bitcoin_difficulty", 7.0);
    assert_eq!(exporter.value("bitcoin_exporter_connects_total"), Some(1.0));
    assert_eq!(exporter.log().matches("JSON-RPC over HTTP is not used").count(), 1, "{}", exporter.log());
}

#[test]
fn full_work_queue_is_logged_once() {
    fault(Mode::Status("503 Service Unavailable"), "the node's work queue is full (503)");
}

#[test]
fn wrong_password_is_logged_once() {
    fault(Mode::Status("401 Unauthorized"), "the node rejects the cookie in");
}

#[test]
fn html_of_a_proxy_is_logged_once() {
    fault(Mode::Html, "the response is not JSON-RPC (200, text/html)");
}

#[test]
fn starting_node_is_logged_once() {
    fault(Mode::Starts, "the node is starting");
}

#[test]
fn redirect_is_rejected() {
    fault(Mode::Redirects, "the server sends a redirect (302), which is not followed");
}

#[test]
fn endless_body_is_abandoned() {
    fault(Mode::NeverEnds, "no response within 1s");
}

#[test]
fn oversized_body_is_rejected() {
    let node = FakeNode::start(Offers { mining: true, ..Offers::NOTHING });
    let http = FakeHttp::start(Mode::TooLarge);
    let exporter = http.exporter(&node, &[]);
    eventually("the request is rejected", || {
        exporter.log().contains("the response is larger than 64 MB").then_some(())
    });
    assert_eq!(exporter.value("bitcoin_up"), Some(1.0));
}

#[test]
fn http_that_hangs_in_use_ends_no_session() {
    let node = FakeNode::start(Offers { mining: true, ..Offers::NOTHING });
    let http = FakeHttp::start(Mode::Works);
    let exporter = http.exporter(&node, &["--call-timeout", "1s"]);
    exporter.wait_for("bitcoin_difficulty", 7.0);
    http.set(Mode::Hangs);
    eventually("the exporter stops using HTTP", || exporter.log().contains("not used").then_some(()));
    eventually("its metrics are absent", || exporter.value("bitcoin_difficulty").is_none().then_some(()));
    let polled = exporter.value("bitcoin_exporter_poll_duration_seconds_count").unwrap();
    eventually("polls continue", || {
        (exporter.value("bitcoin_exporter_poll_duration_seconds_count")? > polled + 10.0).then_some(())
    });
    assert_eq!(
        (exporter.value("bitcoin_up"), exporter.value("bitcoin_chain_height")),
        (Some(1.0), Some(42.0))
    );
    assert_eq!(exporter.value("bitcoin_exporter_connects_total"), Some(1.0));
}

#[test]
fn new_cookie_is_read_after_a_401() {
    let node = FakeNode::start(Offers { mining: true, ..Offers::NOTHING });
    let http = FakeHttp::start(Mode::Works);
    let exporter = http.exporter(&node, &[]);
    exporter.wait_for("bitcoin_difficulty", 7.0);
    http.change_cookie("__cookie__:2");
    let asked = http.seen.lock().unwrap().len();
    eventually("the exporter repeats the request", || {
        (http.seen.lock().unwrap().len() > asked + 20).then_some(())
    });
    assert_eq!(exporter.value("bitcoin_difficulty"), Some(7.0));
    assert!(!exporter.log().contains("not used"), "{}", exporter.log());
}

#[test]
fn missing_listener_and_cookie_are_logged() {
    let node = FakeNode::start(Offers { mining: true, ..Offers::NOTHING });
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port(); // no longer in use
    let cookie = node.socket().with_file_name(".cookie");
    let url = format!("http://127.0.0.1:{port}");
    let exporter = Exporter::start(&node.socket(), &["--rpc-url", &url]).ready();
    let without =
        format!("INFO JSON-RPC over HTTP is not used: {url}: there is no cookie at {}", cookie.display());
    eventually(&without, || exporter.log().contains(&without).then_some(()));
    std::fs::write(&cookie, "__cookie__:1").unwrap();
    let refused = format!("WARN JSON-RPC over HTTP is not used: {url}: connection refused");
    eventually(&refused, || exporter.log().contains(&refused).then_some(()));
    assert_eq!(exporter.value("bitcoin_up"), Some(1.0));
}

#[test]
fn password_in_an_argument_is_rejected() {
    let refused = |arguments: &[&str]| {
        let output = command().args(["/nowhere.sock", "--once"]).args(arguments).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let error = refused(&["--rpc-url", "http://user:secret@127.0.0.1:8332"]);
    assert!(error.contains("--rpc-password-file"), "{error}");
    assert!(refused(&["--rpc-user", "exporter"]).contains("set --rpc-password-file"));
    assert!(
        refused(&["--rpc-url", "http://127.0.0.1:8332", "--rpc-ca-file", "/x"])
            .contains("needs an https URL")
    );
}

/// Starts a TLS server that forwards the decrypted data to the address `target`. Returns the server's port.
fn tls_in_front_of(target: String, config: rustls::ServerConfig) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, target) = (acceptor.clone(), target.clone());
                tokio::spawn(async move {
                    let mut stream = acceptor.accept(stream).await.ok()?;
                    let mut node = tokio::net::TcpStream::connect(target).await.ok()?;
                    tokio::io::copy_bidirectional(&mut stream, &mut node).await.ok()
                });
            }
        });
    });
    port
}

#[test]
fn https_is_used_if_its_authority_is_trusted() {
    let node = Node::start(&[]);
    node.mine(3);
    let without = WithoutRpc::start(&node.socket());
    let dir = TempDir::new().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
    let [ours, another] = ["ours.pem", "another.pem"].map(|name| dir.path().join(name));
    std::fs::write(&ours, made.cert.pem()).unwrap();
    let other = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
    std::fs::write(&another, other.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.unwrap().with_no_client_auth().with_single_cert(vec![made.cert.into()], key).unwrap();
    let node_address = node.rpc_url().replace("http://", "");
    let port = tls_in_front_of(node_address, config);
    let cookie = node.dir().join("regtest/.cookie");
    let check = |url: &str, authority: &std::path::Path| {
        let output = command()
            .arg(without.socket())
            .args(["--check", "--rpc", "on", "--rpc-url", url])
            .arg("--rpc-cookie-file")
            .arg(&cookie)
            .arg("--rpc-ca-file")
            .arg(authority)
            .output()
            .unwrap();
        let message = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(message).unwrap())
    };
    let url = format!("https://localhost:{port}");
    let (good, message) = check(&url, &ours);
    assert!(good && message.contains(&format!("JSON-RPC over HTTP: {url}")), "{message}");
    assert!(message.contains("  bitcoin_difficulty\n"), "{message}");

    let (good, message) = check(&url, &another);
    assert!(!good && message.contains("TLS failed") && message.contains("--rpc-ca-file"), "{message}");
    let (good, message) = check(&format!("https://127.0.0.1:{port}"), &ours);
    assert!(!good && message.contains("TLS failed"), "the certificate is for localhost: {message}");
    let (good, message) = check(&node.rpc_url().replace("http", "https"), &ours);
    assert!(!good && message.contains("check that the server uses https"), "{message}");
    let (good, message) = check(&url, &dir.path().join("missing.pem"));
    assert!(!good && message.contains("--rpc-ca-file: cannot read"), "{message}");
}
