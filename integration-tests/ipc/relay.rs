//! Tests of the metrics about orphan transactions, which a P2P peer sends to a real node, and about private broadcasts.

use bitcoin::absolute::LockTime;
use bitcoin::p2p::message::NetworkMessage;
use bitcoin::script::ScriptBuf;
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, Sequence, Transaction, TxIn, TxOut, Witness};

use crate::exporter::Exporter;
use crate::harness::peer::Peer;
use crate::node::Node;

#[test]
fn transactions_whose_parents_have_not_come_are_orphans() {
    let node = Node::start(&[]);
    let blocks = node.mine(103);
    let mut peer = Peer::connect(node.p2p_port);
    let mut bytes = 0.0;
    for block in &blocks[..2] {
        let parent = node.spending_coinbase_of(block, 1000); // never sent to the node
        let child = Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![TxIn {
                previous_output: OutPoint::new(parent.compute_txid(), 0),
                script_sig: ScriptBuf::new(),
                sequence: Sequence::MAX,
                witness: Witness::new(),
            }],
            output: vec![TxOut {
                value: Amount::from_sat(1000),
                script_pubkey: ScriptBuf::from_hex(&"51".repeat(30)).unwrap(),
            }],
        };
        bytes += child.total_size() as f64;
        peer.send(NetworkMessage::Tx(child));
    }
    peer.wait_until_handled();
    assert_eq!(node.json(&["getorphantxs"]).as_array().unwrap().len(), 2);

    let exporter = Exporter::start(&node.socket(), &[]).ready();
    exporter.wait_for("bitcoin_orphan_transactions", 2.0);
    assert_eq!(exporter.value("bitcoin_orphan_bytes"), Some(bytes));
    // The metric does not count peers on loopback, which have no address group.
    assert_eq!(exporter.value("bitcoin_peers_largest_group{by=\"netgroup\",direction=\"in\"}"), Some(0.0));
    assert_eq!(exporter.value("bitcoin_peers_largest_group{by=\"as\",direction=\"in\"}"), None);
    assert_eq!(exporter.value("bitcoin_peers_addr_rate_limited"), Some(0.0));
    let queued = node.json(&["getpeerinfo"])[0]["inv_to_send"].as_f64();
    for statistic in ["sum", "max"] {
        let shown = exporter.value(&format!("bitcoin_peers_inv_to_send{{statistic=\"{statistic}\"}}"));
        assert_eq!(shown, queued, "{statistic}");
    }
}

#[test]
fn private_broadcasts_are_pending_until_they_return() {
    // Private broadcasts stay pending, because no proxy listens at this address.
    let node = Node::start(&["-privatebroadcast", "-onion=127.0.0.1:1"]);
    let blocks = node.mine(102);
    let pending = || {
        let exporter = Exporter::start(&node.socket(), &[]).ready();
        ["bitcoin_private_broadcast_pending", "bitcoin_mempool_size"].map(|sample| exporter.value(sample))
    };
    assert_eq!(pending(), [Some(0.0), Some(0.0)]);
    node.spend_coinbase_of(&blocks[0], 1000);
    assert_eq!(pending(), [Some(1.0), Some(0.0)]);
    // For a node without -privatebroadcast, the exporter exports no metric about private broadcasts.
    let node = Node::start(&[]);
    let exporter = Exporter::start(&node.socket(), &[]).ready();
    assert_eq!(exporter.value("bitcoin_private_broadcast_pending"), None);
}
