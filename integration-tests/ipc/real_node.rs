//! Tests with a real node that has the IPC interfaces Mining and Rpc.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::eventually;
use crate::exporter::{Exporter, command};
use crate::harness::prometheus::{Prometheus, promtool};
use crate::node::Node;

/// With `-deprecatedrpc=warnings`, the field `warnings` of the node's responses is a string instead of an array.
#[test]
fn deprecated_warnings_are_shown_by_kind() {
    let node = Node::start(&["-deprecatedrpc=warnings"]);
    assert!(node.json(&["getnetworkinfo"])["warnings"].is_string());
    let exporter = Exporter::start(&node.socket(), &[]).ready();
    assert_eq!(exporter.value("bitcoin_warnings{kind=\"pre_release\"}"), Some(1.0));
    assert_eq!(exporter.value("bitcoin_warnings{kind=\"large_work_invalid_chain\"}"), None);
    assert!(exporter.log().contains("the node reports a warning: This is a pre-release test build"));
}

#[test]
fn identity_of_tip_start_and_disk_of_a_node_are_shown() {
    let node = Node::start(&[]);
    node.mine(1);
    let exporter = Exporter::start(&node.socket(), &["--poll-interval", "100ms"]).ready();
    let hash = node.cli(&["getbestblockhash"]);
    let suffix = u64::from_str_radix(&hash.trim()[51..], 16).unwrap();
    assert_eq!(exporter.value("bitcoin_tip_hash_suffix"), Some(suffix as f64));
    let folder = nix::sys::statvfs::statvfs(node.dir()).unwrap();
    let size = (folder.blocks() * folder.fragment_size()) as f64;
    exporter.wait_for("bitcoin_datadir_filesystem_size_bytes", size);
    let free = exporter.value("bitcoin_datadir_filesystem_free_bytes");
    assert!(free > Some(0.0) && free <= Some(size), "{free:?}");
    let start = exporter.value("bitcoin_node_start_time_seconds").unwrap();
    let up = exporter.value("bitcoin_node_uptime_seconds").unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!(start + up <= now && start + up > now - 3600.0, "{start} {up} {now}");
    // Every exporter of the node exports the same start time, which it reads from the node's process.
    let other = Exporter::start(&node.socket(), &[]).ready();
    assert_eq!(other.value("bitcoin_node_start_time_seconds"), Some(start));
}

#[test]
fn gauges_agree_with_bitcoin_cli() {
    let node = Node::start(&[]);
    node.mine(103);
    let exporter = Exporter::start(&node.socket(), &[]).ready();
    let chain = node.json(&["getblockchaininfo"]);
    let mempool = node.json(&["getmempoolinfo"]);
    let network = node.json(&["getnetworkinfo"]);
    for (sample, expected) in [
        ("bitcoin_up", 1.0),
        ("bitcoin_chain_height", chain["blocks"].as_f64().unwrap()),
        ("bitcoin_header_height", chain["headers"].as_f64().unwrap()),
        ("bitcoin_ibd", 0.0),
        ("bitcoin_verification_progress", chain["verificationprogress"].as_f64().unwrap()),
        ("bitcoin_tip_timestamp_seconds", chain["time"].as_f64().unwrap()),
        ("bitcoin_difficulty", chain["difficulty"].as_f64().unwrap()),
        ("bitcoin_chain_size_bytes", chain["size_on_disk"].as_f64().unwrap()),
        ("bitcoin_pruned", 0.0),
        ("bitcoin_chain_tips{status=\"active\"}", 1.0),
        ("bitcoin_mempool_size", 0.0),
        ("bitcoin_mempool_bytes", mempool["usage"].as_f64().unwrap()),
        ("bitcoin_mempool_max_bytes", mempool["maxmempool"].as_f64().unwrap()),
        ("bitcoin_peers", network["connections"].as_f64().unwrap()),
        ("bitcoin_connections{direction=\"in\"}", 0.0),
        ("bitcoin_banned", 0.0),
        ("bitcoin_warnings{kind=\"pre_release\"}", network["warnings"].as_array().unwrap().len() as f64),
        ("bitcoin_warnings{kind=\"large_work_invalid_chain\"}", 0.0),
        ("bitcoin_last_block_transactions", 1.0),
        ("bitcoin_exporter_interface{interface=\"mining\"}", 1.0),
        ("bitcoin_exporter_interface{interface=\"rpc\"}", 1.0),
    ] {
        assert_eq!(exporter.value(sample), Some(expected), "{sample}");
    }
    assert_eq!(chain["blocks"], 103);
    let absent = [
        "bitcoin_mempool_tx_added_total",
        "bitcoin_chain_state_flushes_total",
        "bitcoin_utxo_cache_add_total",
        "bitcoin_prune_height",
        "bitcoin_fee_estimate_sat_per_vbyte",
        "bitcoin_block_height",
    ];
    let names: BTreeSet<_> =
        exporter.metrics().lines().map(|line| line.split(['{', ' ']).next().unwrap().to_string()).collect();
    for name in absent {
        assert!(!names.contains(name), "{name}, which this node cannot give, is there");
    }
}

#[test]
fn blocks_and_reorgs_are_counted_exactly() {
    let node = Node::start(&[]);
    node.mine(10);
    let exporter = Exporter::start(&node.socket(), &["--poll-interval", "1h"]).ready();
    let expect = |connected: f64, disconnected: f64, height: f64| {
        exporter.wait_for("bitcoin_blocks_disconnected_total", disconnected);
        exporter.wait_for("bitcoin_blocks_connected_total", connected);
        exporter.wait_for("bitcoin_chain_height", height);
    };
    expect(0.0, 0.0, 10.0);
    node.mine(1);
    expect(1.0, 0.0, 11.0);
    node.mine(40);
    expect(41.0, 0.0, 51.0);
    node.cli(&["invalidateblock", node.cli(&["getbestblockhash"]).as_str()]);
    expect(41.0, 1.0, 50.0);
    node.cli(&["reconsiderblock", node.cli(&["getblockhash", "50"]).as_str()]); // also reconsiders its child
    expect(42.0, 1.0, 51.0);
    node.mine(1);
    expect(43.0, 1.0, 52.0);

    // Create two branches of three blocks, between which `preciousblock` switches in one step.
    let old_tip = node.cli(&["getbestblockhash"]);
    let fork = node.cli(&["getblockhash", "50"]);
    node.cli(&["invalidateblock", &fork]);
    expect(43.0, 4.0, 49.0);
    // The coinbases of the new blocks pay to another script (52 instead of 51), because blocks with the same script
    // would be identical to the old blocks.
    node.cli(&["generatetodescriptor", "3", "raw(52)"]);
    expect(46.0, 4.0, 52.0);
    node.cli(&["reconsiderblock", &fork]);
    node.cli(&["preciousblock", &old_tip]);
    expect(49.0, 7.0, 52.0);
    exporter.wait_for("bitcoin_block_height", 52.0);
}

#[test]
fn transactions_in_the_mempool_show_with_their_fees() {
    let node = Node::start(&[]);
    let blocks = node.mine(105);
    let exporter = Exporter::start(&node.socket(), &["--poll-interval", "100ms"]).ready();
    let sent: Vec<_> = (0..4).map(|i| node.spend_coinbase_of(&blocks[i], 10_000 + 7 * i as u64)).collect();
    exporter.wait_for("bitcoin_mempool_size", 4.0);
    exporter.wait_for("bitcoin_mempool_fees_satoshis", sent.iter().map(|(fee, _)| fee).sum::<u64>() as f64);
    exporter.wait_for("bitcoin_mempool_vbytes", sent.iter().map(|(_, size)| size).sum::<u64>() as f64);
    exporter.wait_for("bitcoin_mempool_unbroadcast", 4.0);
    let info = node.json(&["getmempoolinfo"]);
    exporter.wait_for("bitcoin_mempool_bytes", info["usage"].as_f64().unwrap());
    let min = (info["mempoolminfee"].as_f64().unwrap() * 1e8).round() / 1000.0;
    exporter.wait_for("bitcoin_mempool_min_feerate_sat_per_vbyte", min);
    node.mine(1);
    exporter.wait_for("bitcoin_mempool_size", 0.0);
    exporter.wait_for("bitcoin_last_block_transactions", 5.0);
    exporter
        .wait_for("bitcoin_last_block_fees_satoshis", sent.iter().map(|(fee, _)| fee).sum::<u64>() as f64);
    exporter.wait_for("bitcoin_last_block_inputs", 4.0);
}

#[test]
fn mempool_is_exported_by_mining_feerate() {
    let node = Node::start(&[]);
    let blocks = node.mine(105);
    // Send transactions of 71 vB with fee rates of 1, 10 and 100 sat/vB.
    for (block, fee) in [(0, 72), (1, 720), (2, 7_200)] {
        node.spend_coinbase_of(&blocks[block], fee);
    }
    // Send a parent transaction with a fee rate in the band that begins at 0.1 sat/vB, and a child transaction that
    // pays for its parent (CPFP). The parent and the child together have a fee rate of about 20 sat/vB.
    let (parent, ..) = node.spend(node.coinbase_of(&blocks[3]), 10);
    node.spend(parent, 2_901);
    let exporter = Exporter::start(&node.socket(), &[]).ready();
    let info = node.json(&["getmempoolinfo"]);
    let sum = |name: &str| {
        let page = exporter.metrics();
        let samples = page.lines().filter(|line| line.starts_with(name));
        let values: Vec<f64> =
            samples.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert_eq!(values.len(), 19, "all bands are there: {page}");
        values.iter().sum::<f64>()
    };
    assert_eq!(Some(sum("bitcoin_mempool_feerate_vbytes{")), info["bytes"].as_f64());
    let fees = (info["total_fee"].as_f64().unwrap() * 1e8).round();
    assert_eq!(sum("bitcoin_mempool_feerate_fees_satoshis{"), fees);
    let in_band =
        |from: &str| exporter.value(&format!("bitcoin_mempool_feerate_fees_satoshis{{from=\"{from}\"}}"));
    for (from, fees) in [("0.1", 0.0), ("1", 72.0), ("8", 720.0), ("13", 2_911.0), ("89", 7_200.0)] {
        assert_eq!(in_band(from), Some(fees), "from {from}");
    }
    assert!(!exporter.metrics().contains("bitcoin_mempool_depth_feerate"), "it is no block deep");
}

#[test]
fn two_connected_nodes_show_peers_and_bytes_by_direction() {
    let listening = Node::start(&[]);
    let connecting = Node::start(&[&format!("-connect=127.0.0.1:{}", listening.p2p_port)]);
    let inbound = Exporter::start(&listening.socket(), &["--poll-interval", "100ms"]);
    let outbound = Exporter::start(&connecting.socket(), &["--poll-interval", "100ms"]);
    for (exporter, direction, other, kind) in
        [(&inbound, "in", "out", "inbound"), (&outbound, "out", "in", "manual")]
    {
        exporter.wait_for(&format!("bitcoin_connections{{direction=\"{direction}\"}}"), 1.0);
        exporter.wait_for(&format!("bitcoin_connections{{direction=\"{other}\"}}"), 0.0);
        exporter.wait_for("bitcoin_peers", 1.0);
        let by = format!(
            "bitcoin_peers_by{{network=\"not_publicly_routable\",connection_type=\"{kind}\",transport=\"v2\"}}"
        );
        exporter.wait_for(&by, 1.0);
    }
    // The bytes of block messages that `inbound` counts as sent must equal the bytes that `outbound` counts as
    // received.
    let sample = |exporter: &Exporter, direction: &str, kind: &str| {
        exporter
            .value(&format!("bitcoin_p2p_message_bytes_total{{direction=\"{direction}\",type=\"{kind}\"}}"))
    };
    let moved = |exporter: &Exporter, direction| {
        ["block", "cmpctblock", "headers"]
            .iter()
            .filter_map(|kind| sample(exporter, direction, kind))
            .sum::<f64>()
    };
    // Each exporter counts only the bytes since its first poll, and the test therefore compares increases.
    let before = eventually("no messages are on their way", || {
        let both = || (moved(&inbound, "out"), moved(&outbound, "in"));
        let first = both();
        inbound.wait_for_polls(3.0);
        outbound.wait_for_polls(3.0);
        (first == both()).then_some(first)
    });
    listening.mine(3);
    outbound.wait_for("bitcoin_chain_height", 3.0);
    eventually("both count the same bytes", || {
        let (sent, received) = (moved(&inbound, "out") - before.0, moved(&outbound, "in") - before.1);
        (sent > 0.0 && sent == received).then_some(())
    });
    eventually("totals are getnettotals'", || {
        let received = outbound.value("bitcoin_bytes_recv_total");
        (received == connecting.json(&["getnettotals"])["totalbytesrecv"].as_f64()).then_some(())
    });
    assert!(outbound.value("bitcoin_peer_min_ping_seconds{percentile=\"50\"}").is_some());
}

#[test]
fn peers_are_counted_by_client_service_and_best_header() {
    let node = Node::start(&[]);
    node.mine(3);
    let peer = Node::start(&["-peerbloomfilters=1", &format!("-connect=127.0.0.1:{}", node.p2p_port)]);
    let exporter = Exporter::start(&node.socket(), &["--poll-interval", "100ms"]).ready();
    let of_client = |client: &str, version: &str| {
        format!("bitcoin_peers_by_client{{client=\"{client}\",version=\"{version}\"}}")
    };
    eventually("the peer has synchronized", || (peer.cli(&["getblockcount"]) == "3").then_some(()));
    peer.mine(1);
    let peers = eventually("the node knows the peer's header", || {
        let peers = node.json(&["getpeerinfo"]);
        (peers[0]["synced_headers"] == 4).then_some(peers)
    });
    let user_agent = peers[0]["subver"].as_str().unwrap();
    let major = user_agent.strip_prefix("/Satoshi:").unwrap().split('.').next().unwrap();
    exporter.wait_for(&of_client("core", major), 1.0);
    let services: Vec<_> = peers[0]["servicesnames"].as_array().unwrap().iter().collect();
    for service in ["network", "bloom", "witness", "compact_filters", "network_limited", "p2p_v2"] {
        let offered = services.iter().any(|name| **name == service.to_uppercase());
        let sample = format!("bitcoin_peers_by_service{{service=\"{service}\"}}");
        exporter.wait_for(&sample, f64::from(u8::from(offered)));
    }
    exporter.wait_for("bitcoin_peers_by_service{service=\"bloom\"}", 1.0);
    exporter.wait_for("bitcoin_peers_ahead", 0.0);
    node.cli(&["invalidateblock", &node.cli(&["getbestblockhash"])]);
    exporter.wait_for("bitcoin_peers_ahead", 1.0);
    drop(peer);
    exporter.wait_for("bitcoin_peers_ahead", 0.0);
    assert_eq!(exporter.value(&of_client("core", major)), None);
}

#[test]
fn settings_of_the_operator_are_exported() {
    let node = Node::start(&["-maxuploadtarget=100", "-prune=550", "-blockmintxfee=0.00002"]);
    node.mine(1);
    node.cli(&["addnode", "127.0.0.1:1", "add"]);
    let exporter = Exporter::start(&node.socket(), &["--poll-interval", "100ms"]).ready();
    let [upload, chain, mining, network] =
        ["getnettotals", "getblockchaininfo", "getmininginfo", "getnetworkinfo"]
            .map(|method| node.json(&[method]));
    let upload = &upload["uploadtarget"];
    for (sample, expected) in [
        ("bitcoin_upload_target_bytes", upload["target"].as_f64()),
        ("bitcoin_upload_target_left_bytes", upload["bytes_left_in_cycle"].as_f64()),
        ("bitcoin_upload_target_reached", Some(0.0)),
        ("bitcoin_prune_target_bytes", chain["prune_target_size"].as_f64()),
        ("bitcoin_next_difficulty", mining["next"]["difficulty"].as_f64()),
        ("bitcoin_block_min_feerate_sat_per_vbyte", mining["blockmintxfee"].as_f64().map(|_| 2.0)),
        ("bitcoin_node_version", network["version"].as_f64()),
        ("bitcoin_node_protocol_version", network["protocolversion"].as_f64()),
        ("bitcoin_added_nodes{state=\"disconnected\"}", Some(1.0)),
        ("bitcoin_added_nodes{state=\"connected\"}", Some(0.0)),
    ] {
        assert_eq!(exporter.value(sample), expected, "{sample}");
    }
    assert!(upload["target"].as_f64() > Some(0.0));
    node.cli(&["addnode", "127.0.0.1:1", "remove"]);
    eventually("no node is added", || {
        exporter.value("bitcoin_added_nodes{state=\"disconnected\"}").is_none().then_some(())
    });
    // A node without ZMQ lacks the method getzmqnotifications, which the exporter must not count as a failure.
    assert_eq!(
        exporter.value("bitcoin_exporter_poll_failures_total{call=\"getzmqnotifications\"}"),
        Some(0.0)
    );
    let no_target = Node::start(&[]);
    let exporter = Exporter::start(&no_target.socket(), &[]).ready();
    let page = exporter.metrics();
    for name in ["bitcoin_upload_target", "bitcoin_prune_target", "bitcoin_added_nodes", "bitcoin_zmq"] {
        assert!(!page.contains(name), "{name}");
    }
    assert!(exporter.value("bitcoin_exporter_call_duration_seconds{call=\"getblockchaininfo\"}") > Some(0.0));
}

#[test]
fn commands_of_other_clients_are_active() {
    let node = Node::start(&[]);
    let exporter = Exporter::start(&node.socket(), &["--poll-interval", "100ms"]).ready();
    exporter.wait_for("bitcoin_rpc_active_commands", 0.0);
    assert_eq!(exporter.value("bitcoin_rpc_longest_command_seconds"), Some(0.0));
    std::thread::scope(|scope| {
        scope.spawn(|| node.cli(&["waitfornewblock", "600000"]));
        exporter.wait_for("bitcoin_rpc_active_commands", 1.0);
        eventually("it runs for a while", || {
            exporter.value("bitcoin_rpc_longest_command_seconds").filter(|seconds| *seconds > 0.5)
        });
        node.mine(1);
    });
    exporter.wait_for("bitcoin_rpc_active_commands", 0.0);
}

#[test]
fn pages_are_compressed_for_clients_that_accept_it() {
    let node = Node::start(&[]);
    let exporter = Exporter::start(&node.socket(), &["--poll-interval", "1h"]).ready();
    let get = |method: &str, path: &str, headers: &str| {
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n");
        let response = exporter.request_bytes(&request);
        let end = response.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(response[..end].to_vec()).unwrap().to_lowercase();
        (head, response[end + 4..].to_vec())
    };
    let gzip = "Accept-Encoding: gzip\r\n";
    for path in ["/metrics", "/"] {
        let (head, plain) = get("GET", path, "");
        assert!(!head.contains("content-encoding"), "{head}");
        let (head, compressed) = get("GET", path, gzip);
        assert!(
            head.contains("\r\ncontent-encoding: gzip") && head.contains("\r\nvary: accept, accept-encoding"),
            "{head}"
        );
        assert!(head.contains(&format!("\r\ncontent-length: {}", compressed.len())), "{head}");
        let mut text = String::new();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&compressed[..]), &mut text).unwrap();
        assert!(compressed.len() * 2 < plain.len() && text.len() > 1024, "{path}");
        let (head, body) = get("HEAD", path, gzip);
        assert!(body.is_empty() && head.contains("\r\ncontent-encoding: gzip"), "{head}");
    }
    let (head, body) = get("GET", "/metrics", "Accept-Encoding: gzip;q=0, *;q=0.5\r\n");
    assert!(!head.contains("content-encoding") && body.starts_with(b"# HELP"), "{head}");
    let (head, body) = get("GET", "/livez", gzip);
    assert!(!head.contains("content-encoding") && body == b"ok\n", "small bodies are not compressed: {head}");
}

#[test]
fn inherited_connection_is_used_until_the_node_exits() {
    let mut node = Node::start(&[]);
    for spelling in [["--ipc-fd"], ["-ipcfd"]] {
        let stream = UnixStream::connect(node.socket()).unwrap();
        fcntl(&stream, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let mut exporter =
            Exporter::spawn(command().args(spelling).arg(stream.as_raw_fd().to_string())).ready();
        drop(stream);
        assert_eq!(exporter.value("bitcoin_chain_height"), Some(0.0));
        assert!(exporter.terminate().success());
    }
    let stream = UnixStream::connect(node.socket()).unwrap();
    fcntl(&stream, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let mut exporter =
        Exporter::spawn(command().env("BITCOIN_IPC_FD", stream.as_raw_fd().to_string())).ready();
    drop(stream);
    assert!(node.stop().success());
    assert!(exporter.ended().success(), "the node shut down in order: {}", exporter.log());

    node.restart();
    let stream = UnixStream::connect(node.socket()).unwrap();
    fcntl(&stream, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let mut exporter = Exporter::spawn(command().args(["--ipc-fd", &stream.as_raw_fd().to_string()])).ready();
    drop(stream);
    kill(Pid::from_raw(node.pid() as i32), Signal::SIGKILL).unwrap();
    assert_eq!(exporter.ended().code(), Some(1), "the node was killed: {}", exporter.log());
}

#[test]
fn exporter_launched_by_the_node_exits_with_it() {
    let dir = TempDir::new().unwrap();
    let (socket, http, log) =
        (dir.path().join("node.sock"), dir.path().join("http.sock"), dir.path().join("log"));
    let notify = format!(
        "-startupnotify={} --exit-with-node --metrics-addr unix:{} {} 2>{}",
        env!("CARGO_BIN_EXE_bitcoind-ipc-exporter"),
        http.display(),
        socket.display(),
        log.display()
    );
    let mut node = Node::start(&[&format!("-ipcbind=unix:{}", socket.display()), &notify]);
    let metrics = || {
        use std::io::Read;
        let mut stream = UnixStream::connect(&http).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    };
    eventually("the launched exporter polled", || metrics()?.contains("\nbitcoin_up 1\n").then_some(()));
    assert!(node.stop().success());
    eventually("the exporter has exited", || (!http.exists()).then_some(()));
    assert!(std::fs::read_to_string(&log).unwrap().contains("the node shut down; exiting"));
}

#[test]
fn node_stops_promptly_while_the_exporter_is_attached() {
    let mut node = Node::start(&[]);
    let exporter = Exporter::start(&node.socket(), &["--poll-interval", "10ms"]).ready();
    assert!(node.stop().success());
    assert_eq!(node.stderr(), "");
    exporter.wait_for("bitcoin_up", 0.0);
    assert_eq!(exporter.value("bitcoin_chain_height"), None);
    exporter.wait_for("bitcoin_exporter_disconnects_total{reason=\"shutdown\"}", 1.0);
}

#[test]
fn node_restart_keeps_event_counters() {
    let mut node = Node::start(&[]);
    let mut exporter = Exporter::start(&node.socket(), &[]).ready();
    node.mine(3);
    exporter.wait_for("bitcoin_blocks_connected_total", 3.0);
    node.restart();
    exporter.wait_for("bitcoin_exporter_connects_total", 2.0);
    exporter.wait_for("bitcoin_up", 1.0);
    node.mine(2);
    exporter.wait_for("bitcoin_blocks_connected_total", 5.0);
    assert!(node.stop().success());
    exporter.wait_for("bitcoin_up", 0.0);
    node.restart();
    exporter.wait_for("bitcoin_up", 1.0);
    assert_eq!(exporter.value("bitcoin_exporter_connects_total"), Some(3.0));
    assert!(exporter.terminate().success());
}

#[test]
fn exporter_started_first_connects_to_a_later_node() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("node.sock");
    let exporter = Exporter::start(&socket, &[]);
    assert_eq!(exporter.value("bitcoin_up"), Some(0.0));
    let (status, why) = exporter.get("/readyz");
    assert!(status == 503 && why.contains("no such socket"), "{why}");
    let _node = Node::start(&[&format!("-ipcbind=unix:{}", socket.display())]);
    exporter.wait_for("bitcoin_up", 1.0);
    // Before the node started, the exporter tried to connect twice a second, but logged only one line.
    assert_eq!(exporter.log().matches("no such socket").count(), 1, "one line per change of state");
}

#[test]
fn once_and_check_print_available_metrics() {
    let node = Node::start(&[]);
    let run = |arguments: &[&str]| {
        let datadir = node.dir().display().to_string();
        let output =
            command().args(arguments).args(["--datadir", &datadir, "--chain", "regtest"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(run(&["--once"]).contains("\nbitcoin_chain_height 0\n"));
    assert!(run(&["--once"]).contains("\nbitcoin_up 1\n"));
    let check = run(&["--check"]);
    assert!(check.contains("/Satoshi:") && check.contains("interface mining   yes"), "{check}");
    assert!(check.contains("interface rpc      yes") && check.contains("interface chain    no"), "{check}");
    assert!(check.contains("  bitcoin_chain_height\n"), "{check}");
}

#[test]
fn promtool_finds_nothing_in_the_metrics() {
    let node = Node::start(&[]);
    node.mine(3);
    let exporter = Exporter::start(&node.socket(), &[]).ready();
    node.mine(1);
    exporter.wait_for("bitcoin_blocks_connected_total", 1.0);
    let promtool = promtool();
    let mut check = Command::new(&promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(exporter.metrics().as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    let message =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && message.is_empty(), "{message}");
}

/// A Prometheus server checks the exporter's OpenMetrics format, because promtool parses only the text format.
#[test]
fn prometheus_scrapes_open_metrics() {
    let node = Node::start(&[]);
    let exporter = Exporter::start(&node.socket(), &[]).ready();
    let accept = "Accept: application/openmetrics-text;version=1.0.0\r\n";
    let (status, head, body) = exporter
        .request(&format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\n{accept}Connection: close\r\n\r\n"));
    assert!(status == 200 && head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(body.ends_with("# EOF\n"));

    let config = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: node, static_configs: [{{targets: ['{}']}}]}}]\n",
        exporter.address()
    );
    let prometheus = Prometheus::start(&config);
    eventually("a series is stored", || {
        let series = prometheus.query("bitcoin_up");
        (series[0]["value"][1] == "1").then_some(())
    });
    let targets = prometheus.api("targets").unwrap();
    let target = &targets["activeTargets"][0];
    assert_eq!((target["health"].as_str(), target["lastError"].as_str()), (Some("up"), Some("")), "{target}");
    let metadata = prometheus.api("targets/metadata?metric=bitcoin_blocks_connected").unwrap();
    assert_eq!(metadata[0]["type"], "counter", "OpenMetrics was negotiated: {metadata}");
}

#[test]
fn endpoint_responds_to_each_path_and_method() {
    let node = Node::start(&[]);
    let exporter = Exporter::start(&node.socket(), &[]).ready();
    let ask = |method: &str, path: &str| {
        exporter.request(&format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
    };
    assert_eq!(ask("GET", "/livez").0, 200);
    assert_eq!(ask("GET", "/nothing").0, 404);
    let (status, head, _) = ask("POST", "/metrics");
    assert!(status == 405 && head.contains("allow: get, head"), "{head}");
    let (status, head, body) = ask("HEAD", "/metrics");
    assert!(status == 200 && body.is_empty() && head.contains("content-length: "), "{head}");
    let (status, head, page) = ask("GET", "/");
    assert!(status == 200 && page.starts_with("<!doctype html>"), "{page}");
    assert!(head.contains("content-security-policy: default-src 'none';"), "{head}");
    let (status, _, page) = ask("GET", "/status.json");
    let page: serde_json::Value = serde_json::from_str(&page).unwrap();
    assert!(status == 200 && page["state"]["ready"] == true, "{page}");
    let node = page["node"].as_str().unwrap();
    assert!(node.starts_with("/Satoshi:") && node.ends_with("mining, rpc"), "{node}");
    let long = "x".repeat(100_000);
    assert_eq!(ask("GET", &format!("/metrics?{long}")).0, 431);
}

#[test]
fn signals_end_the_exporter_cleanly() {
    let node = Node::start(&[]);
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut exporter = Exporter::start(&node.socket(), &[]).ready();
        exporter.signal(signal);
        assert!(exporter.ended().success(), "{signal}: {}", exporter.log());
    }
    node.cli(&["getblockcount"]);
}

#[test]
fn idle_exporter_uses_little_cpu() {
    let node = Node::start(&[]);
    node.mine(1);
    let exporter = Exporter::start(&node.socket(), &["--debug", "--poll-interval", "1s"]).ready();
    let cpu = || {
        let stat = procfs::process::Process::new(exporter.pid().as_raw()).unwrap().stat().unwrap();
        (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64
    };
    let polls = || exporter.log().matches("polled took=").count();
    let (cpu_before, polls_before) = (cpu(), polls());
    eventually("three seconds have passed", || (polls() >= polls_before + 3).then_some(()));
    let spent = cpu() - cpu_before;
    // An exporter that makes long polls without pauses would use more than 0.3 s of CPU time in 3 s.
    assert!(spent < 0.3, "{spent} s of CPU in 3 s");
}

#[test]
fn systemd_passes_the_connection_and_the_listening_socket() {
    let node = Node::start(&[]);
    let connection = UnixStream::connect(node.socket()).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    fcntl(&connection, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let (ipc, web) = (connection.as_raw_fd(), listener.as_raw_fd());
    let redirect = format!("20<&{ipc} 21<&{web} 3<&20 4<&21 20<&- 21<&-");
    let script = format!("LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=ipc:web exec \"$0\" {redirect}");
    let mut exporter = Command::new("bash")
        .args(["-c", &script, env!("CARGO_BIN_EXE_bitcoind-ipc-exporter")])
        .spawn()
        .unwrap();
    drop((connection, listener));
    let scraped = || {
        use std::io::Read;
        let mut stream = std::net::TcpStream::connect(address).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.contains("\nbitcoin_up 1\n").then_some(())
    };
    eventually("the exporter serves metrics of the passed connection on the passed socket", scraped);
    kill(Pid::from_raw(exporter.id() as i32), Signal::SIGTERM).unwrap();
    assert!(eventually("the process exits", || exporter.try_wait().unwrap()).success());
}

#[test]
fn silent_connections_do_not_block_scrapers() {
    let node = Node::start(&[]);
    let exporter = Exporter::start(&node.socket(), &[]).ready();
    let before = exporter.value("process_open_fds").unwrap();
    let mut silent: Vec<_> = (0..1000)
        .map(|_| {
            std::net::TcpStream::connect(exporter.address()).expect("the exporter accepts the connection")
        })
        .collect();
    for (i, stream) in silent.iter_mut().enumerate() {
        // A client sends nothing, the beginning of an HTTP request, the beginning of a TLS handshake, or a request
        // whose response it never reads.
        let message: &[u8] = [
            &b""[..],
            b"GET /met",
            b"\x16\x03\x01\x02\x00",
            b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
        ][i % 4];
        stream.write_all(message).unwrap();
    }
    assert_eq!(exporter.value("bitcoin_up"), Some(1.0));
    drop(silent);
    eventually("the descriptors are free again", || {
        (exporter.value("process_open_fds")? <= before).then_some(())
    });
}

#[test]
fn indexes_chainstates_and_soft_forks_agree_with_bitcoin_cli() {
    let node =
        Node::start(&["-txindex", "-coinstatsindex", "-blockfilterindex", "-testactivationheight=csv@2000"]);
    for _ in 0..4 {
        node.mine(500);
    }
    let exporter = Exporter::start(&node.socket(), &["--poll-interval", "200ms"]).ready();
    for index in ["txindex", "coinstatsindex", "basic block filter index"] {
        exporter.wait_for(&format!("bitcoin_index_height{{index=\"{index}\"}}"), 2000.0);
        exporter.wait_for(&format!("bitcoin_index_synced{{index=\"{index}\"}}"), 1.0);
    }
    let state = &node.json(&["getchainstates"])["chainstates"][0];
    for cache in ["db", "tip"] {
        assert_eq!(
            exporter
                .value(&format!("bitcoin_chainstate_cache_bytes{{chainstate=\"normal\",cache=\"{cache}\"}}")),
            state[format!("coins_{cache}_cache_bytes")].as_f64()
        );
    }
    exporter.wait_for("bitcoin_chainstate_height{chainstate=\"normal\"}", 2000.0);
    assert_eq!(exporter.value("bitcoin_background_validation_progress"), None);
    assert_eq!(exporter.value("bitcoin_deployment_active{deployment=\"csv\"}"), Some(1.0));
    assert_eq!(exporter.value("bitcoin_deployment_signalling_blocks{deployment=\"csv\"}"), None);

    // This node has no optional index such as txindex. At block height 200, the soft fork csv is not active yet, and
    // the soft fork testdummy is in its signalling period.
    let node = Node::start(&["-testactivationheight=csv@2000", "-vbparams=testdummy:0:999999999999"]);
    node.mine(200);
    let exporter = Exporter::start(&node.socket(), &[]).ready();
    assert_eq!(exporter.value("bitcoin_deployment_active{deployment=\"csv\"}"), Some(0.0));
    assert_eq!(exporter.value("bitcoin_deployment_active{deployment=\"testdummy\"}"), Some(0.0));
    let deployments = node.json(&["getdeploymentinfo"]);
    let signalling = deployments["deployments"]["testdummy"]["bip9"]["statistics"]["count"].as_f64().unwrap();
    assert!(signalling > 0.0, "{deployments}");
    assert_eq!(
        exporter.value("bitcoin_deployment_signalling_blocks{deployment=\"testdummy\"}"),
        Some(signalling)
    );
    assert!(!exporter.metrics().contains("bitcoin_index_height{"));
}

#[test]
fn network_and_mempool_agree_with_bitcoin_cli() {
    let node = Node::start(&[
        "-onlynet=ipv4",
        "-externalip=8.8.8.8",
        "-minrelaytxfee=0.00000250",
        "-incrementalrelayfee=0.00000125",
    ]);
    node.mine(3);
    for address in ["1.2.3.4", "1.2.4.4"] {
        node.cli(&["addpeeraddress", address, "8333", "true"]);
    }
    node.cli(&["addpeeraddress", "2a01:4f8::1", "8333"]);
    let exporter = Exporter::start(&node.socket(), &["--poll-interval", "200ms"]).ready();
    let table = |network, table| {
        exporter.value(&format!("bitcoin_addrman_addresses{{network=\"{network}\",table=\"{table}\"}}"))
    };
    let known = node.json(&["getaddrmaninfo"]);
    for (network, kind) in [("ipv4", "new"), ("ipv4", "tried"), ("ipv6", "new"), ("onion", "tried")] {
        assert_eq!(table(network, kind), known[network][kind].as_f64(), "{network} {kind}");
    }
    assert!(table("ipv4", "tried").unwrap() > 0.0, "{known}");
    for (sample, value) in [
        ("bitcoin_network_active", 1.0),
        ("bitcoin_network_reachable{network=\"ipv4\"}", 1.0),
        ("bitcoin_network_reachable{network=\"ipv6\"}", 0.0),
        ("bitcoin_local_addresses", 1.0),
        ("bitcoin_mempool_relay_min_feerate_sat_per_vbyte", 0.25),
        ("bitcoin_mempool_incremental_feerate_sat_per_vbyte", 0.125),
        ("bitcoin_mempool_loaded", 1.0),
        ("bitcoin_mempool_optimal", 1.0),
    ] {
        exporter.wait_for(sample, value);
    }
    node.cli(&["setnetworkactive", "false"]);
    exporter.wait_for("bitcoin_network_active", 0.0);
}

#[test]
fn node_process_metrics_are_exported() {
    let mut node = Node::start(&[]);
    node.mine(100);
    let process = || procfs::process::Process::new(node.pid() as i32).unwrap();
    let cpu = || {
        let stat = process().stat().unwrap();
        (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64
    };
    let before = (cpu(), process().stat().unwrap().minflt as f64);
    let exporter = Exporter::start(&node.socket(), &["--poll-interval", "200ms"]).ready();
    let shown_cpu = || {
        let metrics = exporter.metrics();
        let samples = metrics.lines().filter_map(|line| {
            let (thread, value) =
                line.strip_prefix("bitcoin_node_process_cpu_seconds_total{thread=\"")?.split_once("\"} ")?;
            Some((thread.to_string(), value.parse::<f64>().unwrap()))
        });
        samples.collect::<std::collections::BTreeMap<_, _>>()
    };
    let shown = shown_cpu();
    let faults = exporter.value("bitcoin_node_process_page_faults_total{kind=\"minor\"}").unwrap();
    let after = (cpu(), process().stat().unwrap().minflt as f64);
    let total: f64 = shown.values().sum();
    // The exported CPU time may differ by 0.02 s from the CPU time that the test reads, because the kernel reports CPU
    // times in hundredths of a second.
    assert!(before.0 - 0.02 <= total && total <= after.0 + 0.02, "{before:?} {shown:?} {after:?}");
    assert!(before.1 <= faults && faults <= after.1, "{before:?} {faults} {after:?}");
    assert!(shown["other"] > 0.0 && shown.len() == 9, "{shown:?}");
    let resident = exporter.value("bitcoin_node_process_resident_memory_bytes").unwrap();
    assert!((1e7..1e10).contains(&resident), "{resident}");
    assert!(exporter.value("bitcoin_node_process_threads").unwrap() > 5.0);
    assert!(exporter.value("bitcoin_node_process_open_fds").unwrap() > 5.0);
    let written = exporter.value("bitcoin_node_process_io_bytes_total{direction=\"write\"}").unwrap();
    assert!(written <= process().io().unwrap().write_bytes as f64);

    // Requests of `bitcoin-cli` over HTTP must increase the exported CPU time of the node's HTTP threads.
    let http = shown["http"];
    eventually("the node works for HTTP", || {
        (0..20).for_each(|_| drop(node.cli(&["getblockstats", "50"])));
        (shown_cpu()["http"] > http).then_some(())
    });
    node.stop();
    exporter.wait_for("bitcoin_up", 0.0);
    assert!(!exporter.metrics().contains("\nbitcoin_node_process_"));
}
