//! Tests of the metrics about connections, misbehaving peers and the sizes of announcements. The results are compared
//! with the debug.log and with the RPC results of a real node.

use std::collections::BTreeMap;

use bitcoin::Amount;
use bitcoin::consensus::encode::serialize_hex;
use bitcoin::hashes::Hash;
use bitcoin::p2p::ServiceFlags;
use bitcoin::p2p::address::{AddrV2, AddrV2Message, Address};
use bitcoin::p2p::message::{CommandString, NetworkMessage};
use bitcoin::p2p::message_blockdata::Inventory;
use serde_json::json;

use crate::core_tracepoints::sum;
use crate::harness::eventually;
use crate::harness::exporter::Exporter;
use crate::harness::node::Node;
use crate::harness::peer::{Peer, block_on, unix_time};

/// For each line in the node's debug.log that contains this text, the part of the line after the text.
fn logged(node: &Node, text: &str) -> Vec<String> {
    let log = std::fs::read(node.dir().join("regtest/debug.log")).unwrap();
    let log = String::from_utf8_lossy(&log);
    log.lines().filter_map(|line| Some(line.split_once(text)?.1.to_string())).collect()
}

/// The number with which the text begins.
fn number(text: &str) -> u64 {
    text.split(|it: char| !it.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// The text, with each number replaced with `N`.
fn without_numbers(text: &str) -> String {
    let mut result = String::new();
    for (index, part) in
        text.split(|it: char| it.is_ascii_digit()).filter(|part| !part.is_empty()).enumerate()
    {
        result += if index > 0 { "N" } else { "" };
        result += part;
    }
    result + if text.ends_with(|it: char| it.is_ascii_digit()) { "N" } else { "" }
}

pub fn reasons_of_misbehaving_peers_are_those_in_the_log() {
    let node = Node::start(&["-debug=net"]);
    node.mine(1);
    let tip = node.cli(&["getblockheader", &node.cli(&["getbestblockhash"]), "false"]);
    let tip = bitcoin::consensus::encode::deserialize_hex(&tip).unwrap();
    let exporter = crate::exporter(node.pid(), &["--tracepoints", "net"]);
    let misbehaving = |labels: &str| sum(&exporter, "bitcoin_connections_misbehaving_total", labels);
    // The exporter exports a counter of 0 for each known reason of misbehavior.
    assert!(exporter.metrics().contains("reason=\"mutated block\"} 0"), "{}", exporter.metrics());
    assert_eq!(misbehaving(""), 0.0);

    let inventory = |entries| vec![Inventory::Error; entries];
    let [first, second] = [1, 2].map(|at| block_on(&tip, 2, unix_time() + at, Amount::ZERO, &[]).header);
    let too_much = block_on(&tip, 2, unix_time(), Amount::ONE_BTC * 51, &[]);
    let mut mutated = too_much.clone();
    mutated.txdata.push(mutated.txdata[0].clone());
    let messages = [
        NetworkMessage::Inv(inventory(50_001)),
        NetworkMessage::Inv(inventory(60_002)),
        NetworkMessage::Inv(inventory(100_000)),
        NetworkMessage::GetData(inventory(50_001)),
        NetworkMessage::Headers(vec![first, second]),
        NetworkMessage::Block(mutated),
        NetworkMessage::Block(too_much), // The node logs no reason for this message.
    ];
    let count = messages.len();
    let _peers: Vec<_> = messages
        .into_iter()
        .map(|message| {
            let mut peer = Peer::connect(node.p2p_port);
            peer.send(message);
            peer
        })
        .collect();
    let lines = eventually("the node logs each", || {
        let lines = logged(&node, "Misbehaving: peer=");
        (lines.len() == count).then_some(lines)
    });
    let mut by_reason = BTreeMap::<String, f64>::new();
    for line in &lines {
        let reason = line.split_once(": ").map_or("none".into(), |(_, reason)| without_numbers(reason));
        *by_reason.entry(reason).or_default() += 1.0;
    }
    assert_eq!(by_reason.get("inv message size = N"), Some(&3.0), "{lines:?}");
    assert_eq!(by_reason.get("none"), Some(&1.0), "{lines:?}");
    assert_eq!(by_reason.len(), 5, "{lines:?}");
    eventually("all are counted", || (misbehaving("") == count as f64).then_some(()));
    for (reason, number) in by_reason {
        assert_eq!(misbehaving(&format!("reason=\"{reason}\"")), number, "{reason}");
    }
    assert_eq!(sum(&exporter, "fibre_exporter_errors_total", ""), 0.0, "{}", exporter.metrics());
}

pub fn misbehaving_reasons_are_bounded() {
    let (_dir, mut fixture, exporter) = crate::fibre(&["-DSTANDARD"]);
    let misbehaving = |labels: &str| sum(&exporter, "bitcoin_connections_misbehaving_total", labels);
    let mut misbehave = |reason: &str| fixture.fire(&format!("misbehaving {reason}"));
    // Reasons for misbehavior with numbers at the beginning, in the middle and at the end, and a reason of the maximum
    // length.
    let long = format!("{}0", "r".repeat(127));
    for reason in ["9 of 10", "1234567890", "a0/:b", "\u{e9}1\u{b0}", &long] {
        misbehave(reason);
    }
    for label in ["N of N", "N", "aN/:b", "\u{e9}N\u{b0}", &format!("{}N", "r".repeat(127))] {
        assert_eq!(misbehaving(&format!("reason=\"{label}\"")), 1.0, "{label}: {}", exporter.metrics());
    }
    let letters =
        |number: u8| format!("reason {}{}", char::from(b'a' + number / 26), char::from(b'a' + number % 26));
    (0..80).for_each(|number| misbehave(&letters(number)));
    let series = || exporter.metrics().matches("\nbitcoin_connections_misbehaving_total{").count();
    assert_eq!((misbehaving(""), misbehaving("\"other\""), series()), (85.0, 21.0, 65));
    assert_eq!((misbehaving(&letters(79)), misbehaving(&letters(15))), (1.0, 0.0));
    // The fixture fires the tracepoint with more different reasons than the map of the BPF programs can hold.
    (0..400).for_each(|number| {
        misbehave(&format!("{} {}", letters((number % 200) as u8), letters((number / 200) as u8)))
    });
    assert_eq!((misbehaving(""), series()), (485.0, 65));
}

pub fn connections_are_counted_by_type() {
    let (node, other) = (Node::start(&[]), Node::start(&[]));
    let exporter = crate::exporter(node.pid(), &["--tracepoints", "net"]);
    let of_other = crate::exporter(other.pid(), &["--tracepoints", "net"]);
    let address = format!("127.0.0.1:{}", other.p2p_port);
    let opened = |exporter, labels: &str| sum(exporter, "bitcoin_connections_opened_total", labels);
    let closed = |exporter, direction| {
        let labels = format!("direction=\"{direction}\",end=\"closed\"");
        sum(exporter, "bitcoin_connection_age_seconds_count", &labels)
    };
    let types = ["outbound-full-relay", "block-relay-only", "addr-fetch", "feeler"];
    for (before, connection_type) in types.iter().enumerate() {
        node.cli(&["addconnection", &address, connection_type, "false"]);
        let labels = format!(
            "direction=\"out\",network=\"not_publicly_routable\",connection_type=\"{connection_type}\""
        );
        eventually(connection_type, || (opened(&exporter, &labels) == 1.0).then_some(()));
        assert_eq!(opened(&exporter, ""), before as f64 + 1.0);
        if *connection_type == "feeler" {
            break; // The node closes a feeler connection.
        }
        node.cli(&["disconnectnode", &address]);
        eventually("the connection is closed", || {
            (closed(&exporter, "out") == before as f64 + 1.0).then_some(())
        });
    }
    let inbound = "direction=\"in\",network=\"not_publicly_routable\",connection_type=\"inbound\"";
    eventually("the other node has the same connections", || {
        (opened(&of_other, inbound) == 4.0).then_some(())
    });
    assert_eq!(opened(&of_other, ""), 4.0);
    eventually("all are closed", || {
        (closed(&exporter, "out") == 4.0 && closed(&of_other, "in") == 4.0).then_some(())
    });
}

/// The time at which the node established its only connection, in seconds since the Unix epoch.
fn established(node: &Node) -> f64 {
    let peers = node.json(&["getpeerinfo"]);
    let [peer] = &peers.as_array().unwrap()[..] else { panic!("{peers}") };
    peer["conntime"].as_f64().unwrap()
}

pub fn age_of_a_connection_is_counted_at_its_end() {
    let node = Node::start(&["-peertimeout=100000"]);
    let exporter = crate::exporter(node.pid(), &["--tracepoints", "net"]);
    let age = |what: &str| {
        sum(&exporter, &format!("bitcoin_connection_age_seconds_{what}"), "direction=\"in\",end=\"closed\"")
    };
    let at_most = |seconds: &str| {
        let labels = format!("le=\"{seconds}\",direction=\"in\",end=\"closed\"");
        sum(&exporter, "bitcoin_connection_age_seconds_bucket", &labels)
    };
    assert_eq!((age("count"), age("sum")), (0.0, 0.0));

    node.cli(&["setmocktime", &(unix_time() - 7200).to_string()]);
    let peer = Peer::connect(node.p2p_port);
    let since = established(&node);
    let least = f64::from(unix_time()) - since;
    drop(peer);
    eventually("the end is counted", || (age("count") == 1.0).then_some(()));
    let most = f64::from(unix_time()) - since;
    let counted = age("sum");
    assert!(least >= 7200.0 && (least..=most).contains(&counted), "{least} {counted} {most}");
    assert_eq!((at_most("3600.0"), at_most("10800.0")), (0.0, 1.0));

    // The connection's start is in the future, as after the node's clock was set back.
    node.cli(&["setmocktime", &(unix_time() + 7200).to_string()]);
    let peer = Peer::connect(node.p2p_port);
    assert!(established(&node) > f64::from(unix_time()) + 3600.0);
    drop(peer);
    eventually("the end is counted", || (age("count") == 2.0).then_some(()));
    assert_eq!((age("sum"), at_most("1.0")), (counted, 1.0));
}

pub fn evicted_connections_end_once() {
    let node = Node::start(&["-maxconnections=45", "-debug=net"]);
    let exporter = crate::exporter(node.pid(), &["--tracepoints", "net"]);
    let ages = |end: &str| sum(&exporter, "bitcoin_connection_age_seconds_count", &format!("end=\"{end}\""));
    let closed = || sum(&exporter, "bitcoin_connections_closed_total", "");
    let peers: Vec<_> = (0..40).map(|_| Peer::connect(node.p2p_port)).collect();
    let evicted = logged(&node, "connection for eviction").len() as f64;
    assert!(evicted >= 1.0);
    assert_eq!(
        (sum(&exporter, "bitcoin_connections_evicted_total", ""), ages("evicted")),
        (evicted, evicted)
    );
    eventually("the node has closed them", || (closed() == evicted).then_some(()));
    assert_eq!(ages("closed"), 0.0);
    drop(peers);
    eventually("all are closed", || (closed() == 40.0).then_some(()));
    assert_eq!((ages("closed"), ages("evicted")), (40.0 - evicted, evicted));
    assert_eq!(sum(&exporter, "fibre_exporter_errors_total", ""), 0.0, "{}", exporter.metrics());
}

/// The number of messages and the total number of their entries (for example, of inventory entries), according to the
/// exporter's histogram `metric`.
fn entries(exporter: &Exporter, metric: &str, direction: &str) -> (f64, f64) {
    let part = |what: &str| sum(exporter, &format!("{metric}_{what}"), &format!("direction=\"{direction}\""));
    (part("count"), part("sum"))
}

/// The number of messages and the total number of their entries, computed from the message sizes in bytes that follow
/// `text` in the node's debug.log. An entry has `entry` bytes.
fn logged_entries(node: &Node, text: &str, entry: u64) -> (f64, f64) {
    let sizes = logged(node, text).iter().map(|rest| number(rest)).collect::<Vec<_>>();
    (sizes.len() as f64, sizes.iter().map(|size| size / entry).sum::<u64>() as f64)
}

pub fn inv_entries_are_counted_as_the_node_logs_their_size() {
    let node = Node::start(&["-debug=net", "-whitelist=noban@127.0.0.1"]);
    let blocks = node.mine(110);
    let exporter = crate::exporter(node.pid(), &["--tracepoints", "net"]);
    let mut peer = Peer::connect_for_transactions(node.p2p_port);
    for number in [0, 1, 3, 252, 253, 5000] {
        let entry = |at: u32| Inventory::WTx(bitcoin::Wtxid::from_byte_array([(at % 251) as u8; 32]));
        peer.send(NetworkMessage::Inv((0..number).map(entry).collect()));
    }
    peer.wait_until_handled();
    let received = entries(&exporter, "bitcoin_inv_entries", "in");
    assert_eq!(received, (6.0, 5509.0));
    assert_eq!(received, logged_entries(&node, "received: inv (", 36));
    let at_most = |entries: &str| {
        sum(&exporter, "bitcoin_inv_entries_bucket", &format!("le=\"{entries}\",direction=\"in\""))
    };
    assert_eq!(
        ["1.0", "2.0", "5.0", "252.0", "500.0", "5000.0", "+Inf"].map(at_most),
        [2.0, 2.0, 3.0, 4.0, 5.0, 6.0, 6.0]
    );

    for block in &blocks[..3] {
        let transaction = node.spending_coinbase_of(block, 1000);
        node.cli(&["sendrawtransaction", &serialize_hex(&transaction), "0"]);
    }
    let mut announced = 0;
    while announced < 3 {
        announced += peer.receive("inv", |message| match message {
            NetworkMessage::Inv(entries) => Some(entries.len()),
            _ => None,
        });
    }
    let sent = entries(&exporter, "bitcoin_inv_entries", "out");
    assert_eq!(sent, logged_entries(&node, "sending inv (", 36));
    assert_eq!(sent.1, announced as f64);
}

fn addresses(number: u32) -> impl Iterator<Item = u32> {
    (0..number).map(|at| 0x0800_0000 + 0x1_0000 * at)
}

pub fn addr_entries_are_counted_as_the_nodes_log_them() {
    let node = Node::start(&["-debug=net"]);
    let exporter = crate::exporter(node.pid(), &["--tracepoints", "net"]);
    let mut peer = Peer::connect(node.p2p_port);
    let services = ServiceFlags::NETWORK | ServiceFlags::WITNESS;
    for number in [1, 252, 253, 1000] {
        let addresses = addresses(number).map(|addr| AddrV2Message {
            time: unix_time(),
            services,
            addr: AddrV2::Ipv4(addr.into()),
            port: 8333,
        });
        peer.send(NetworkMessage::AddrV2(addresses.collect()));
    }
    let old =
        |addr: u32| (unix_time(), Address::new(&(std::net::Ipv4Addr::from(addr), 8333).into(), services));
    peer.send(NetworkMessage::Addr(addresses(10).map(old).collect()));
    peer.wait_until_handled();
    let received = entries(&exporter, "bitcoin_addr_entries", "in");
    let lines = logged(&node, "Received addr: ");
    assert_eq!(received, (5.0, 1516.0));
    assert_eq!(received, (lines.len() as f64, lines.iter().map(|rest| number(rest)).sum::<u64>() as f64));
    // This message claims to have 1,000 addresses. The exporter must count only the 11 addresses that can fit into its
    // 100 bytes.
    let command = CommandString::try_from_static("addrv2").unwrap();
    let mut payload = vec![0xfd, 0xe8, 3];
    payload.resize(100, 0);
    peer.send(NetworkMessage::Unknown { command, payload });
    peer.wait_until_handled();
    assert_eq!(entries(&exporter, "bitcoin_addr_entries", "in"), (6.0, 1516.0 + 11.0));

    // The node responds to getaddr with at most a quarter of its known addresses. The test therefore adds 100
    // addresses.
    let add = |addr: u32| ("addpeeraddress", json!([std::net::Ipv4Addr::from(addr).to_string(), 8333]));
    node.batch(&addresses(100).map(add).collect::<Vec<_>>());
    // The node sends addr messages to the test's peer, which has not requested addrv2, and addrv2 messages to another
    // node.
    let next = Node::start(&["-debug=net"]);
    let of_next = crate::exporter(next.pid(), &["--tracepoints", "net"]);
    peer.send(NetworkMessage::GetAddr);
    next.cli(&["addnode", &format!("127.0.0.1:{}", node.p2p_port), "onetry"]);
    eventually("both have asked for addresses", || {
        let getaddr = sum(&exporter, "bitcoin_p2p_messages_total", "direction=\"in\",type=\"getaddr\"");
        (getaddr == 2.0).then_some(())
    });
    let mut minutes = 0;
    let to_next = eventually("both get addresses", || {
        // Move the node's clock forward, because the node sends addresses only every 30 seconds on average. The clock
        // stays at most 15 minutes ahead, because the node closes connections without messages after 20 minutes.
        minutes = (minutes + 1).min(15);
        node.cli(&["setmocktime", &(unix_time() + minutes * 60).to_string()]);
        let lines = logged(&next, "Received addr: ");
        (entries(&exporter, "bitcoin_addr_entries", "out").0 >= 2.0 && !lines.is_empty()).then_some(lines)
    });
    let to_next = to_next.iter().map(|rest| number(rest)).sum::<u64>() as f64;
    let sent = entries(&exporter, "bitcoin_addr_entries", "out");
    let (messages, to_peer) = logged_entries(&node, "sending addr (", 30);
    assert!(to_peer >= 1.0 && to_next >= 1.0, "{to_peer} {to_next}");
    assert_eq!(sent, (messages + logged(&node, "sending addrv2 (").len() as f64, to_peer + to_next));
    assert_eq!(entries(&of_next, "bitcoin_addr_entries", "in").1, to_next);
    assert_eq!(sum(&exporter, "fibre_exporter_errors_total", ""), 0.0, "{}", exporter.metrics());
}
