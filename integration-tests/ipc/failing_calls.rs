//! Tests that a call which fails, hangs or is too slow affects only the metrics that are read with this call. The
//! exporter exports the last values of these metrics until the values expire.

use std::sync::Arc;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::eventually;
use crate::exporter::Exporter;
use crate::fake::{FakeNode, Offers};
use crate::harness::fake_http::{FakeHttp, Mode};
use crate::harness::proxy::TcpProxy;
use crate::harness::without_rpc::WithoutRpc;
use crate::node::Node;

const HTTP: &str = "bitcoin_exporter_interface{interface=\"http-rpc\"}";
const UP: &str = "bitcoin_up";
const HEIGHT: &str = "bitcoin_chain_height";
const CONNECTS: &str = "bitcoin_exporter_connects_total";
const BUSY: &str = "503 Service Unavailable";

/// The exporter's arguments for a short poll interval and a call timeout of a second. With these arguments, the values
/// of metrics expire after five seconds without a successful call.
const QUICK: [&str; 4] = ["--poll-interval", "100ms", "--call-timeout", "1s"];

fn failures(exporter: &Exporter, cause: &str) -> f64 {
    exporter.value(&format!("bitcoin_exporter_http_rpc_failures_total{{cause=\"{cause}\"}}")).unwrap()
}

fn disconnects(exporter: &Exporter, reason: &str) -> f64 {
    exporter.value(&format!("bitcoin_exporter_disconnects_total{{reason=\"{reason}\"}}")).unwrap()
}

#[test]
fn costly_call_without_answer_is_repeated_soon() {
    let http = FakeHttp::start(Mode::Works);
    http.set_method("getorphantxs", Some(Mode::Hangs));
    let exporter = http.only_exporter(&QUICK);
    eventually("the call times out again", || (failures(&exporter, "timeout") >= 3.0).then_some(()));
    exporter.wait_for(UP, 1.0);
    assert_eq!(exporter.value(CONNECTS), Some(1.0), "the other calls work");
    http.set_method("getorphantxs", None);
    // After a timeout of getorphantxs, the exporter repeats the call after a back-off of some seconds. After a success,
    // the exporter repeats the call only after a thousand times the call's duration.
    exporter.wait_for("bitcoin_orphan_transactions", 1.0);
    let asked = http.calls_of("getorphantxs");
    exporter.wait_for_polls(10.0);
    assert_eq!(http.calls_of("getorphantxs"), asked, "once a minute when it works");
}

#[test]
fn failing_call_backs_off_and_keeps_metrics_two_intervals() {
    let http = FakeHttp::start(Mode::Works);
    let exporter = http.only_exporter(&["--poll-interval", "100ms"]);
    exporter.wait_for("bitcoin_mempool_size", 5.0);
    http.set_method("getmempoolinfo", Some(Mode::Status("403 Forbidden")));
    let failed = "bitcoin_exporter_poll_failures_total{call=\"getmempoolinfo\"}";
    eventually("the call fails", || (exporter.value(failed)? >= 1.0).then_some(()));
    let asked = http.calls_of("getmempoolinfo");
    assert_eq!(exporter.value("bitcoin_mempool_size"), Some(5.0), "one failure hides nothing");
    eventually("the value expires", || exporter.value("bitcoin_mempool_size").is_none().then_some(()));
    assert_eq!((exporter.value(UP), exporter.value(HEIGHT)), (Some(1.0), Some(42.0)));
    assert!(http.calls_of("getmempoolinfo") - asked < 6, "it backs off");
    http.set_method("getmempoolinfo", None);
    exporter.wait_for("bitcoin_mempool_size", 5.0);
}

#[test]
fn last_block_of_an_earlier_tip_is_not_shown() {
    let http = FakeHttp::start(Mode::Works);
    let answers = |method: &str, answer: Value| {
        http.set_method(method, Some(Mode::Answers(Arc::new(json!({ method: answer })))));
    };
    let set_tip = |hash: &str| {
        let chain =
            json!({"chain": "regtest", "blocks": 42, "bestblockhash": hash, "initialblockdownload": false});
        answers("getblockchaininfo", chain);
        answers("getbestblockhash", json!(hash));
        let header = json!({"height": 42, "confirmations": 1, "previousblockhash": "06".repeat(32)});
        answers("getblockheader", header);
    };
    set_tip(&"07".repeat(32));
    answers("getblockstats", json!({"txs": 3, "total_size": 700}));
    // With a poll interval of 60 s, the values of metrics expire after two minutes without a successful call. A new tip
    // triggers a poll before the end of the poll interval.
    let exporter = http.only_exporter(&["--poll-interval", "60s"]);
    exporter.wait_for("bitcoin_last_block_transactions", 3.0);
    http.set_method("getblockstats", Some(Mode::Error("Block not available (pruned data)".into())));
    set_tip(&"08".repeat(32));
    let shown = || exporter.value("bitcoin_last_block_transactions");
    eventually("the values of the previous block are absent", || shown().is_none().then_some(()));
    assert_eq!((exporter.value(UP), exporter.value(HEIGHT)), (Some(1.0), Some(42.0)));
}

#[test]
fn one_busy_answer_costs_nothing() {
    let http = FakeHttp::start(Mode::Works);
    let exporter = http.only_exporter(&QUICK);
    for _ in 0..5 {
        http.set(Mode::StatusOf(1, BUSY));
        exporter.wait_for_polls(5.0);
        assert_eq!((exporter.value(UP), exporter.value(HTTP)), (Some(1.0), Some(1.0)));
    }
    assert_eq!((exporter.value(CONNECTS), failures(&exporter, "busy")), (Some(1.0), 0.0));
    assert!(!exporter.log().contains("WARN"), "{}", exporter.log());
}

#[test]
fn http_session_survives_missed_polls_until_values_are_too_old() {
    let http = FakeHttp::start(Mode::Works);
    let exporter = http.only_exporter(&QUICK);
    http.set(Mode::Status(BUSY));
    exporter.wait_for(UP, 0.0);
    assert_eq!((exporter.value(HEIGHT), exporter.value(HTTP)), (Some(42.0), Some(0.0)));
    http.set(Mode::Works);
    exporter.wait_for(UP, 1.0);
    exporter.wait_for(HTTP, 1.0);
    assert_eq!(exporter.value(CONNECTS), Some(1.0), "it is the same session");
    assert!(failures(&exporter, "busy") >= 1.0);
    http.set(Mode::Status(BUSY));
    eventually("the session ends", || (disconnects(&exporter, "lost") == 1.0).then_some(()));
    assert_eq!((exporter.value(HEIGHT), exporter.value(HTTP)), (None, Some(0.0)));
    http.set(Mode::Works);
    exporter.wait_for(UP, 1.0);
}

#[test]
fn hanging_http_node_is_disconnected_as_hung() {
    let http = FakeHttp::start(Mode::Works);
    let exporter = http.only_exporter(&QUICK);
    http.set(Mode::Hangs);
    exporter.wait_for(UP, 0.0);
    eventually("the session ends", || (disconnects(&exporter, "hung") >= 1.0).then_some(()));
    assert_eq!(disconnects(&exporter, "lost"), 0.0);
    assert!(failures(&exporter, "timeout") >= 1.0);
}

/// The fake HTTP server closes each connection after the exporter has sent a second request, and does not respond to
/// this request. A real node can also close an idle HTTP connection at the moment at which the exporter sends a
/// request.
#[test]
fn request_on_a_closing_connection_is_repeated() {
    let http = FakeHttp::start(Mode::Closes);
    let exporter = http.only_exporter(&["--poll-interval", "100ms"]);
    exporter.wait_for_polls(10.0);
    assert_eq!((exporter.value(UP), exporter.value(CONNECTS)), (Some(1.0), Some(1.0)));
    assert_eq!(failures(&exporter, "other"), 0.0);
}

#[test]
fn http_is_never_waited_on_for_blocks() {
    let http = FakeHttp::start(Mode::Works);
    let exporter = http.only_exporter(&["--poll-interval", "100ms"]);
    eventually("the exporter polls the tip", || (http.calls_of("getbestblockhash") >= 3).then_some(()));
    let seen = http.seen.lock().unwrap().clone();
    assert!(!seen.iter().any(|method| method.starts_with("wait")), "{seen:?}");
    drop(exporter);
}

#[test]
fn http_beside_ipc_that_fails_is_0_and_counted() {
    let node = FakeNode::start(Offers { mining: true, ..Offers::NOTHING });
    let http = FakeHttp::start(Mode::Works);
    let exporter = http.exporter(&node, &["--call-timeout", "1s"]);
    exporter.wait_for(HTTP, 1.0);
    exporter.wait_for("bitcoin_difficulty", 7.0);
    http.set(Mode::Hangs);
    exporter.wait_for(HTTP, 0.0);
    assert_eq!(exporter.value("bitcoin_difficulty"), Some(7.0), "one failure hides nothing");
    eventually("the value expires", || exporter.value("bitcoin_difficulty").is_none().then_some(()));
    assert_eq!((exporter.value(UP), exporter.value(HEIGHT)), (Some(1.0), Some(42.0)));
    assert!(failures(&exporter, "timeout") >= 1.0);
    http.set(Mode::Works);
    exporter.wait_for(HTTP, 1.0);
    exporter.wait_for("bitcoin_difficulty", 7.0);
}

#[test]
fn http_that_comes_and_goes_is_logged_once_a_minute() {
    let node = FakeNode::start(Offers { mining: true, ..Offers::NOTHING });
    let http = FakeHttp::start(Mode::Works);
    let exporter = http.exporter(&node, &[]);
    exporter.wait_for(HTTP, 1.0);
    let started = std::time::Instant::now();
    for _ in 0..5 {
        http.set(Mode::Html);
        exporter.wait_for(HTTP, 0.0);
        http.set(Mode::Works);
        exporter.wait_for(HTTP, 1.0);
    }
    let minutes = started.elapsed().as_secs() as usize / 60 + 1;
    let lines = |text| exporter.log().matches(text).count();
    assert!(failures(&exporter, "other") >= 5.0);
    assert!(lines("HTTP is not used") <= minutes, "{}", exporter.log());
    assert!(lines("HTTP is used") <= minutes + 1, "{}", exporter.log());
}

#[test]
fn http_only_node_that_comes_and_goes_is_logged_once_a_minute() {
    let http = FakeHttp::start(Mode::Works);
    let exporter = http.only_exporter(&["--poll-interval", "1s"]);
    let started = std::time::Instant::now();
    for _ in 0..3 {
        let before = disconnects(&exporter, "lost");
        http.set(Mode::Starts);
        eventually("the connection is lost", || (disconnects(&exporter, "lost") > before).then_some(()));
        http.set(Mode::Works);
        exporter.wait_for(UP, 1.0);
    }
    let minutes = started.elapsed().as_secs() as usize / 60 + 1;
    let lines = |text| exporter.log().matches(text).count();
    assert!(lines("the node is starting; reconnecting") <= minutes, "{}", exporter.log());
    assert!(lines("polling the node over HTTP only") <= minutes + 1, "{}", exporter.log());
}

#[test]
fn real_node_keeps_ipc_metrics_when_http_ends() {
    let node = Node::start(&[]);
    node.mine(3);
    let without = WithoutRpc::start(&node.socket());
    let cookie = node.dir().join("regtest/.cookie");
    let proxy = TcpProxy::start(node.rpc_url().strip_prefix("http://").unwrap());
    let (url, cookie) = (proxy.url(), cookie.to_str().unwrap());
    let arguments = ["--rpc-url", &url, "--rpc-cookie-file", cookie, "--poll-interval", "200ms"];
    let exporter = Exporter::start(&without.socket(), &arguments).ready();
    exporter.wait_for(HTTP, 1.0);
    exporter.wait_for("bitcoin_peers", 0.0);
    drop(proxy);
    exporter.wait_for(HTTP, 0.0);
    eventually("the value expires", || exporter.value("bitcoin_peers").is_none().then_some(()));
    assert_eq!((exporter.value(UP), exporter.value(HEIGHT)), (Some(1.0), Some(3.0)));
    let before = failures(&exporter, "refused");
    eventually("each check is counted", || (failures(&exporter, "refused") > before).then_some(()));
    assert_eq!(exporter.value(CONNECTS), Some(1.0));
}

#[test]
fn rpc_workers_are_not_held() {
    let node = Node::start_bitcoind(&["-rpcthreads=2", "-rpcworkqueue=2"]);
    node.mine(3);
    let cookie = node.dir().join("regtest/.cookie");
    let (url, cookie) = (node.rpc_url(), cookie.to_str().unwrap().to_string());
    let mut command = crate::exporter::command();
    command.args(["--datadir", node.dir().to_str().unwrap(), "--chain", "regtest"]);
    let exporter = Exporter::spawn(command.args(["--rpc-url", &url, "--rpc-cookie-file", &cookie])).ready();
    exporter.wait_for(HEIGHT, 3.0);
    for _ in 0..20 {
        let active = node.json(&["getrpcinfo"])["active_commands"].to_string();
        assert!(active.contains("getrpcinfo") && !active.contains("\"wait"), "{active}");
    }
    node.mine(2);
    exporter.wait_for(HEIGHT, 5.0);
    assert_eq!(failures(&exporter, "busy"), 0.0);
}

/// The node does not respond to the exporter's request for notifications, or to its request for the UTXO cache trace.
#[test]
fn unanswered_subscription_keeps_nothing_waiting() {
    let offers = Offers { mining: true, chain: true, node: true, tracing: true, ..Offers::default() };
    for offers in [offers, Offers { chain: false, rpc: true, ..offers }] {
        let node = FakeNode::start(offers);
        node.hang_subscriptions(true);
        let mut exporter = Exporter::start(&node.socket(), &QUICK).ready();
        eventually("the subscription hangs", || node.hangs().then_some(()));
        exporter.wait_for_polls(5.0);
        assert_eq!(exporter.value(UP), Some(1.0));
        if offers.chain {
            node.hang(true);
            exporter.wait_for(UP, 0.0);
            node.hang(false);
            exporter.wait_for(UP, 1.0);
        }
        assert!(exporter.terminate().success());
        // After the exit of the exporter, the guard waits for the node's response, ends the subscription, and then
        // disconnects.
        assert_eq!(node.connections(), 1);
        node.hang_subscriptions(false);
        eventually("the guard has disconnected", || (node.connections() == 0).then_some(()));
        assert_eq!(node.unsubscribed(), 1);
    }
}

#[test]
fn node_that_ends_before_it_answers_a_subscription_is_noticed() {
    let node = FakeNode::start(Offers { mining: true, chain: true, node: true, ..Offers::default() });
    node.hang_subscriptions(true);
    let mut exporter = Exporter::start(&node.socket(), &QUICK).ready();
    eventually("the subscription hangs", || node.hangs().then_some(()));
    node.end();
    exporter.wait_for(UP, 0.0);
    assert_eq!((exporter.value(HEIGHT), exporter.get("/readyz").0), (None, 503));
    assert!(exporter.terminate().success());
}

#[test]
fn answer_above_the_limit_costs_its_metric_only() {
    let node = FakeNode::start(Offers { mining: true, rpc: true, ..Offers::default() });
    node.oversize_response(true);
    let mut exporter = Exporter::start(&node.socket(), &["--poll-interval", "100ms"]).ready();
    let failed = "bitcoin_exporter_poll_failures_total{call=\"getpeerinfo\"}";
    exporter.wait_for(failed, 1.0);
    exporter.wait_for_polls(20.0);
    assert_eq!(node.getpeerinfo_calls(), 1, "it is not asked again at once");
    assert_eq!((exporter.value(UP), exporter.value(CONNECTS)), (Some(1.0), Some(1.0)));
    assert_eq!(exporter.value(HEIGHT), Some(42.0));
    assert!(exporter.terminate().success());
    eventually("the guard has disconnected", || (node.connections() == 0).then_some(()));
}

#[test]
fn answer_above_the_limit_over_http_costs_its_metric_only() {
    let http = FakeHttp::start(Mode::Works);
    http.set_method("getpeerinfo", Some(Mode::TooLarge));
    let exporter = http.only_exporter(&["--poll-interval", "100ms"]);
    eventually("the response is too large", || (failures(&exporter, "too_large") == 1.0).then_some(()));
    exporter.wait_for_polls(20.0);
    assert_eq!(http.calls_of("getpeerinfo"), 1, "it is not asked again at once");
    assert_eq!((exporter.value(UP), exporter.value(HTTP)), (Some(1.0), Some(1.0)));
    assert_eq!(exporter.value(CONNECTS), Some(1.0));
}

#[test]
fn node_hanging_from_the_start_counts_as_hung() {
    let node = Node::start(&[]);
    node.signal(Signal::SIGSTOP);
    let mut exporter = Exporter::start(&node.socket(), &QUICK);
    eventually("the exporter closes the connection as hung", || {
        (disconnects(&exporter, "hung") >= 1.0).then_some(())
    });
    assert_eq!(disconnects(&exporter, "refused"), 0.0);
    let log = exporter.log();
    assert!(
        log.contains("the node does not respond: no response within 1s") && !log.contains("no Bitcoin node"),
        "{log}"
    );
    assert!(exporter.terminate().success(), "SIGTERM ends it all the same");
    node.signal(Signal::SIGCONT);
    assert_eq!(node.cli(&["getblockcount"]), "0");
}

#[test]
fn node_that_misses_polls_keeps_its_values_for_two_intervals() {
    let node = FakeNode::start(Offers { mining: true, chain: true, node: true, ..Offers::default() });
    let exporter = Exporter::start(&node.socket(), &QUICK).ready();
    node.hang(true);
    exporter.wait_for(UP, 0.0);
    assert_eq!(exporter.value(HEIGHT), Some(42.0), "one missed poll hides nothing");
    assert_eq!(exporter.value("bitcoin_exporter_interface{interface=\"chain\"}"), Some(1.0));
    eventually("the value expires", || exporter.value(HEIGHT).is_none().then_some(()));
    node.hang(false);
    exporter.wait_for(UP, 1.0);
    exporter.wait_for(HEIGHT, 42.0);
}

/// Bitcoin Core 30 aborts when a client makes a second call on a thread whose first call is unfinished. The exporter
/// must not make such a call, and the guard disconnects if the exporter makes one.
#[test]
fn calls_without_answer_are_not_repeated_on_their_thread() {
    let node = Node::start(&[]);
    node.mine(1);
    let exporter =
        Exporter::start(&node.socket(), &["--poll-interval", "10s", "--call-timeout", "500ms"]).ready();
    node.signal(Signal::SIGSTOP);
    eventually("a call has no answer", || exporter.log().contains("no response within").then_some(()));
    // Wait for six times the call timeout. In this time, a faulty exporter would make another call on a thread of the
    // node whose last call is unfinished.
    std::thread::sleep(std::time::Duration::from_secs(3));
    node.signal(Signal::SIGCONT);
    node.mine(2);
    exporter.wait_for("bitcoin_blocks_connected_total", 2.0);
    assert_eq!(exporter.value(CONNECTS), Some(1.0), "{}", exporter.log());
    assert_eq!((disconnects(&exporter, "lost"), disconnects(&exporter, "hung")), (0.0, 0.0));
}
