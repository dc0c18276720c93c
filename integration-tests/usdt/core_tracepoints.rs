//! Tests of the metrics from Bitcoin Core's tracepoints, with a real node that has a second node as its peer. The
//! results are compared with RPC results and with the node's debug.log.

use std::time::Duration;

use bitcoin::consensus::encode::serialize_hex;

use crate::harness::eventually;
use crate::harness::exporter::Exporter;
use crate::harness::fixture::Fixture;
use crate::harness::node::Node;
use crate::harness::peer::Peer;

/// The sum of the values of all samples of a metric whose line contains the text `labels`.
pub fn sum(exporter: &Exporter, metric: &str, labels: &str) -> f64 {
    let text = exporter.metrics();
    let samples =
        text.lines().filter(|line| line.starts_with(&format!("{metric}{{")) && line.contains(labels));
    samples.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

pub fn counts_agree_with_a_real_node_and_its_peer() {
    let mut node = Node::start(&[]);
    let exporter = crate::exporter(node.pid(), &[]);
    assert_eq!(sum(&exporter, "fibre_exporter_probes_attached", ""), 16.0);

    let blocks = node.mine(103);
    exporter.wait_for("bitcoin_blocks_connected_total{node=\"localhost\"}", 103.0);
    assert_eq!(sum(&exporter, "bitcoin_block_tx_count_sum", ""), 103.0);
    assert_eq!(sum(&exporter, "bitcoin_block_connection_duration_seconds_count", ""), 103.0);

    let (fee, size) = node.spend_coinbase_of(&blocks[0], 1000);
    assert_eq!(sum(&exporter, "bitcoin_mempool_tx_added_total", ""), 1.0);
    assert_eq!(sum(&exporter, "bitcoin_mempool_added_fees_satoshis_total", ""), fee as f64);
    assert_eq!(sum(&exporter, "bitcoin_mempool_added_vbytes_total", ""), size as f64);
    node.spend_coinbase_of(&blocks[0], 100_000);
    assert_eq!(sum(&exporter, "bitcoin_mempool_tx_replaced_total", ""), 1.0);
    assert_eq!(sum(&exporter, "bitcoin_mempool_replaced_vbytes_total", ""), size as f64);
    assert_eq!(sum(&exporter, "bitcoin_mempool_replaced_fees_satoshis_total", ""), fee as f64);
    assert_eq!(sum(&exporter, "bitcoin_mempool_tx_removed_total", "reason=\"replaced\""), 1.0);
    node.mine(1);
    assert_eq!(sum(&exporter, "bitcoin_mempool_tx_removed_total", "reason=\"block\""), 1.0);
    assert_eq!(sum(&exporter, "bitcoin_mempool_tx_removed_total", "reason=\"other\""), 0.0);

    let peer = Node::start(&[]);
    let of_peer = crate::exporter(peer.pid(), &["--tracepoints", "net"]);
    node.cli(&["addnode", &format!("127.0.0.1:{}", peer.p2p_port), "onetry"]);
    eventually("the nodes are connected and the peer has the blocks", || {
        (peer.cli(&["getblockcount"]) == "104").then_some(())
    });
    for (exporter, node, direction) in [(&exporter, &node, "out"), (&of_peer, &peer, "in")] {
        let label = format!("direction=\"{direction}\"");
        let connections = &node.json(&["getnetworkinfo"])[format!("connections_{direction}")];
        assert_eq!(sum(exporter, "bitcoin_connections_opened_total", &label), 1.0);
        assert_eq!(Some(sum(exporter, "bitcoin_connections", &label)), connections.as_f64());
    }
    for _ in 0..5 {
        node.mine(1);
    }
    eventually("the peer follows", || (peer.cli(&["getblockcount"]) == "109").then_some(()));
    // The exporter of the peer does not trace `validation:block_connected`, and must not export the metric about block
    // announcements, which counts only announcements of connected blocks.
    assert!(exporter.metrics().contains("\nbitcoin_block_announcements_total{"));
    assert!(!of_peer.metrics().contains("\nbitcoin_block_announcements_total{"));
    // For each message type, the messages and bytes that one node sent must equal the messages and bytes that the other
    // node received.
    let of_type = |exporter: &Exporter, metric: &str, direction: &str, kind: &str| {
        sum(exporter, metric, &format!("direction=\"{direction}\",type=\"{kind}\""))
    };
    for kind in ["version", "verack", "headers", "cmpctblock", "getheaders", "sendcmpct"] {
        for metric in ["bitcoin_p2p_messages_total", "bitcoin_p2p_message_bytes_total"] {
            eventually(&format!("{metric} of {kind} agree"), || {
                let (sent, received) =
                    (of_type(&exporter, metric, "out", kind), of_type(&of_peer, metric, "in", kind));
                (sent == received && (sent > 0.0 || kind == "verack")).then_some(())
            });
        }
    }
    // The byte counts in getpeerinfo include the framing of each message: 24 bytes in version 1 of the transport
    // protocol, and at least 20 bytes in version 2.
    let peers = node.json(&["getpeerinfo"]);
    for (kind, told) in peers[0]["bytessent_per_msg"].as_object().unwrap() {
        let messages = of_type(&exporter, "bitcoin_p2p_messages_total", "out", kind);
        let bytes = of_type(&exporter, "bitcoin_p2p_message_bytes_total", "out", kind);
        let framing = told.as_f64().unwrap() - bytes;
        assert!(
            (20.0 * messages..=33.0 * messages).contains(&framing),
            "{kind}: {framing} for {messages} messages"
        );
    }

    drop(peer);
    eventually("the connection is closed", || {
        (sum(&exporter, "bitcoin_connections_closed_total", "") == 1.0).then_some(())
    });
    assert_eq!(sum(&exporter, "bitcoin_connections", "direction=\"out\""), 0.0);

    let added = sum(&exporter, "bitcoin_utxo_cache_add_total", "");
    assert!(added >= 109.0, "{added}");
    assert!(node.stop().success());
    eventually("the flush at the node's exit is counted", || {
        (sum(&exporter, "bitcoin_utxo_cache_flush_duration_seconds_count", "") >= 1.0).then_some(())
    });
    // A node flushes its UTXO cache several times during shutdown. The gauges have the values of the last flush, and
    // the exporter's log has a line for each flush.
    assert!(exporter.metrics().contains("\nbitcoin_utxo_cache_flush_bytes{"));
    let log = exporter.log();
    let flushed = log.lines().filter(|line| line.contains("UTXO cache flushed"));
    let coins =
        flushed.filter_map(|line| line.split_once("coins=")?.1.split(' ').next()?.parse::<u32>().ok());
    assert!(coins.max() >= Some(109), "{log}");
    assert!(log.contains("block connected block_height=109 block_hash="), "{log}");
    assert_eq!(sum(&exporter, "fibre_exporter_errors_total", ""), 0.0, "{}", exporter.metrics());
}

pub fn rejected_transactions_are_counted_by_reason() {
    let node = Node::start(&[]);
    let exporter = crate::exporter(node.pid(), &["--tracepoints", "mempool"]);
    assert_eq!(sum(&exporter, "fibre_exporter_probes_attached", ""), 4.0);
    let blocks = node.mine(1);
    let immature = serialize_hex(&node.spending_coinbase_of(&blocks[0], 1000));
    let refused = node.try_cli(&["sendrawtransaction", &immature, "0"]);
    assert!(refused.is_err_and(|error| error.contains("bad-txns-premature-spend-of-coinbase")));
    assert_eq!(
        sum(
            &exporter,
            "bitcoin_mempool_tx_rejected_total",
            "reason=\"bad-txns-premature-spend-of-coinbase\""
        ),
        1.0
    );
    assert!(!exporter.metrics().contains("bitcoin_blocks_connected_total"), "only what was asked for");
}

/// Fires all tracepoints of Bitcoin Core, with a transaction that is rejected for this reason.
fn reject(fixture: &mut Fixture, reason: &str) {
    fixture.fire(&format!("standard 1 2 3 4 5 inv {reason}"));
}

pub fn long_rejection_reasons_are_distinguished() {
    let (_dir, mut fixture, exporter) = crate::fibre(&["-DSTANDARD"]);
    // Two reasons of 118 characters, the length of Bitcoin Core's longest reason, which differ in the last character.
    let [first, second] = ["a", "b"].map(|last| "r".repeat(117) + last);
    reject(&mut fixture, &first);
    reject(&mut fixture, &second);
    reject(&mut fixture, &second);
    crate::assert_samples(
        &exporter,
        &format!(
            "bitcoin_mempool_tx_rejected_total{{reason=\"{first}\"}} 1\n\
             bitcoin_mempool_tx_rejected_total{{reason=\"{second}\"}} 2\n\
             fibre_exporter_errors_total{{error_type=\"unreadable\"}} 0"
        ),
    );
}

pub fn full_table_of_rejections_removes_the_least_recent() {
    let (_dir, mut fixture, exporter) = crate::fibre(&["-DSTANDARD"]);
    let total = || sum(&exporter, "bitcoin_mempool_tx_rejected_total", "");
    let of =
        |reason: &str| sum(&exporter, "bitcoin_mempool_tx_rejected_total", &format!("reason=\"{reason}\""));
    (0..80).for_each(|number| reject(&mut fixture, &format!("reason-{number}")));
    assert_eq!((total(), of("other"), of("reason-79"), of("reason-15")), (80.0, 16.0, 1.0, 0.0));
    // A rejection reason whose series the exporter has removed occurs again. A new series for this reason replaces the
    // series whose last rejection is oldest.
    reject(&mut fixture, "reason-0");
    reject(&mut fixture, "reason-0");
    assert_eq!((total(), of("other"), of("reason-0"), of("reason-16")), (82.0, 17.0, 2.0, 0.0));
    // Between two scrapes, more new rejection reasons occur than the BPF map of the reasons can hold.
    (0..400).for_each(|number| reject(&mut fixture, &format!("another-{number}")));
    assert_eq!(total(), 482.0);
    (400..500).for_each(|number| reject(&mut fixture, &format!("another-{number}")));
    assert_eq!((total(), of("another-499")), (582.0, 1.0));
    assert_eq!(exporter.metrics().matches("\nbitcoin_mempool_tx_rejected_total{").count(), 65);
}

/// Waits until the exporter's gauge of inbound connections equals `connections_in` in the node's getnetworkinfo.
fn counts_inbound_connections(exporter: &Exporter, node: &Node) {
    eventually("the exporter and the node count the same connections", || {
        let of_node = node.json(&["getnetworkinfo"])["connections_in"].as_f64().unwrap();
        (sum(exporter, "bitcoin_connections", "direction=\"in\"") == of_node).then_some(())
    });
}

pub fn peers_that_reconnect_at_once_are_counted_as_the_node_does() {
    let node = Node::start(&[]);
    let exporter = crate::exporter(node.pid(), &["--tracepoints", "net"]);
    let _other = Peer::connect(node.p2p_port);
    let mut peer = Peer::connect(node.p2p_port);
    counts_inbound_connections(&exporter, &node);
    for _ in 0..20 {
        drop(std::mem::replace(&mut peer, Peer::connect(node.p2p_port)));
        drop(peer);
        peer = Peer::connect(node.p2p_port);
        counts_inbound_connections(&exporter, &node);
    }
}

pub fn connections_from_before_the_exporter_are_counted() {
    let node = Node::start(&[]);
    let mut peers: Vec<_> = (0..3).map(|_| Peer::connect(node.p2p_port)).collect();
    let exporter = crate::exporter(node.pid(), &["--tracepoints", "net"]);
    let inbound = "bitcoin_connections{node=\"localhost\",direction=\"in\"}";
    // For two seconds after a connection was closed, the exporter does not compute the number of open connections,
    // because the node still counts the closed connection for a short time.
    drop(peers.pop());
    eventually("the end of the connection is seen", || {
        (sum(&exporter, "bitcoin_connections_closed_total", "") == 1.0).then_some(())
    });
    peers.push(Peer::connect(node.p2p_port));
    assert!([None, Some(3.0)].contains(&exporter.value(inbound)), "{}", exporter.metrics());
    std::thread::sleep(Duration::from_millis(2100));
    peers.push(Peer::connect(node.p2p_port));
    exporter.wait_for(inbound, 4.0);
    peers.drain(..2);
    exporter.wait_for(inbound, 2.0);
}

pub fn probe_table_lists_the_binarys_probes() {
    let node = Node::start(&[]);
    let output = crate::command()
        .args(["--list-probes", "--pid", &node.pid().to_string()])
        .stdout(std::process::Stdio::piped())
        .output()
        .unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let line = |probe: &str| {
        table.lines().find(|line| line.starts_with(probe)).unwrap_or_else(|| panic!("{probe} in {table}"))
    };
    let words = |line: &str| line.split_whitespace().map(str::to_string).collect::<Vec<_>>();
    assert_eq!(words(line("udp:block_race_winner"))[1..3], ["no", "no"]);
    assert_eq!(words(line("validation:block_connected"))[1..3], ["yes", "yes"]);
    assert!(line("mempool:added").ends_with(
        "bitcoin_mempool_tx_added_total bitcoin_mempool_added_fees_satoshis_total bitcoin_mempool_added_vbytes_total"
    ));
}
