//! Tests of the metrics and log lines about the arrival of blocks at a real node. P2P peers of the test send the
//! blocks, and the results are compared with the node's debug.log.

use bitcoin::Amount;
use bitcoin::bip152::BlockTransactions;
use bitcoin::consensus::deserialize;
use bitcoin::consensus::encode::serialize_hex;
use bitcoin::p2p::message::NetworkMessage;
use bitcoin::p2p::message_blockdata::Inventory;
use bitcoin::p2p::message_compact_blocks::BlockTxn;
use serde_json::Value;
use tempfile::TempDir;

use crate::block_log::objects;
use crate::core_tracepoints::sum;
use crate::harness::eventually;
use crate::harness::node::Node;
use crate::harness::peer::{Peer, block_on, unix_time};
use crate::p2p_scenario::{REWARD, Scene, fetched, give, requested};

pub fn check_of_the_database_counts_no_block() {
    let dir = TempDir::new().unwrap();
    let record = dir.path().join("blocks");
    let node = Node::start(&[]);
    node.mine(10);
    let exporter = crate::exporter(node.pid(), &["--block-log", record.to_str().unwrap()]);
    let connected = |number: usize| {
        exporter.wait_for("bitcoin_blocks_connected_total{node=\"localhost\"}", number as f64);
        assert_eq!(sum(&exporter, "bitcoin_block_arrivals_total", ""), number as f64);
        assert_eq!(sum(&exporter, "bitcoin_block_tx_count_count", ""), number as f64);
        eventually("each block has a row", || (objects(&record, &[]).len() == number).then_some(()));
    };
    let fired = |number: f64| {
        let event =
            "fibre_exporter_events_processed_total{event_type=\"block_connected\",node=\"localhost\"}";
        let other =
            "fibre_exporter_events_processed_total{node=\"localhost\",event_type=\"block_connected\"}";
        eventually("all events are counted", || {
            (exporter.value(event).or(exporter.value(other)) == Some(number)).then_some(())
        });
    };
    // Mines blocks whose coinbase pays to another script, and which therefore differ from earlier blocks at the same
    // height.
    let mine_branch = |blocks: u32, script: &str| {
        let descriptor = node.json(&["getdescriptorinfo", &format!("raw({script})")])["descriptor"].clone();
        node.cli(&["generatetodescriptor", &blocks.to_string(), descriptor.as_str().unwrap()]);
    };
    node.mine(1);
    connected(1);
    // The RPC `verifychain` connects all eleven blocks of the chain again. The exporter must not count these blocks as
    // new blocks.
    node.cli(&["verifychain", "4", "0"]);
    fired(12.0);
    node.mine(2);
    connected(3);
    node.cli(&["verifychain", "4", "2"]);
    fired(16.0);

    // Replace three blocks with four blocks of another branch, run `verifychain` again, and mine the next block.
    node.cli(&["invalidateblock", &node.cli(&["getblockhash", "11"])]);
    mine_branch(4, "52");
    connected(7);
    node.cli(&["verifychain", "4", "0"]);
    fired(34.0);
    node.mine(1);
    connected(8);
    assert_eq!(sum(&exporter, "fibre_last_block_height", ""), 15.0);

    // Cause a reorg to a shorter branch, and a reorg back to the longer branch.
    let second = node.cli(&["getblockhash", "11"]);
    node.cli(&["invalidateblock", &second]);
    mine_branch(1, "53");
    connected(9);
    node.cli(&["reconsiderblock", &second]);
    connected(14);
    assert_eq!(sum(&exporter, "fibre_last_block_height", ""), 15.0);
}

pub fn check_at_startup_and_background_validation_count_no_block() {
    let (_dir, mut fixture, exporter) = crate::fibre(&["-DSTANDARD"]);
    let connected = |blocks: u32, height: u32| {
        let expected = format!("bitcoin_blocks_connected_total {blocks}\nfibre_last_block_height {height}");
        crate::assert_samples(&exporter, &expected);
    };
    // The arguments of the fixture's command `block` are the height, the byte that fills the block's hash, and the
    // duration. For blocks of the first branch, the byte is the height.
    (94..=100).for_each(|height| fixture.fire(&format!("main block {height} {height} 1000")));
    fixture.fire("named b-msghand block 101 101 1000");
    connected(1, 101);
    // Simulate a node that loads an assumeutxo snapshot, and then connects the blocks below the snapshot in the
    // background.
    fixture.fire("named b-msghand block 201 201 1000");
    connected(2, 201);
    for height in 102..=200 {
        fixture.fire(&format!("named b-msghand block {height} {height} 1000"));
        if height % 10 == 0 {
            let tip = 201 + (height - 100) / 10;
            fixture.fire(&format!("named b-msghand block {tip} {tip} 1000"));
        }
    }
    connected(12, 211);
    // Simulate a reorg of the tip's block, and another block on the new branch.
    fixture.fire("named b-msghand block 211 1 1000");
    fixture.fire("named b-msghand block 212 2 1000");
    connected(14, 212);
    // The duration of a block is negative if the node's clock was set back. The exporter must not add the negative
    // duration to its histogram.
    fixture.fire("named b-msghand block 213 3 -1000");
    connected(15, 213);
    crate::assert_samples(
        &exporter,
        "bitcoin_block_connection_duration_seconds_count 14\nbitcoin_block_connection_duration_seconds_sum 0.000014",
    );
    assert!(!exporter.log().contains("block_height=150"), "{}", exporter.log());
}

pub fn compact_blocks_are_counted_as_the_node_logs_them() {
    let dir = TempDir::new().unwrap();
    let record = dir.path().join("blocks");
    let (mut scene, [mut peer]) = Scene::with("net,validation", &["--block-log", record.to_str().unwrap()]);

    // The peer connected before the exporter started. The exporter reads the peer's connection type from the ping and
    // the pong.
    peer.wait_until_handled();

    // Send a compact block of which the node has all transactions.
    let known = scene.transactions(2);
    known.iter().for_each(|transaction| scene.send(transaction));
    let complete = scene.block(&known);
    peer.send_compact_block(&complete, &[]);
    scene.connected(&complete);
    assert_eq!(scene.field(&complete, "arrival").as_deref(), Some("compact_complete"));
    assert_eq!(scene.field(&complete, "announced_by").as_deref(), Some("cmpctblock"));
    assert_eq!(scene.field(&complete, "short_ids").as_deref(), Some("2"));
    assert_eq!(scene.field(&complete, "asked_us"), None);

    // Send a compact block with two transactions that are not in the node's mempool, one of which is prefilled.
    let unknown = scene.transactions(2);
    let one = scene.block(&unknown);
    peer.send_compact_block(&one, &[1]);
    let request = requested(&mut peer);
    give(&mut peer, &request, &one);
    scene.connected(&one);
    assert_eq!(scene.field(&one, "arrival").as_deref(), Some("compact_requested"));
    assert_eq!(scene.field(&one, "requested").as_deref(), Some("1"));
    assert_eq!(scene.field(&one, "prefilled").as_deref(), Some("2"));

    // Send a compact block whose many short IDs exceed the bytes that the BPF program copies.
    let many = scene.transactions(40);
    let many = scene.block(&many);
    peer.send_compact_block(&many, &[7, 8]);
    let request = requested(&mut peer);
    give(&mut peer, &request, &many);
    scene.connected(&many);
    let stages = ["compact_us", "asked_us", "answered_us", "complete_us", "connected_us"];
    let stages: Vec<u64> =
        stages.iter().map(|stage| scene.field(&many, stage).unwrap().parse().unwrap()).collect();
    assert!(stages.is_sorted(), "{stages:?}");

    let logged = scene.reconstructed(&[&complete, &one, &many]);
    assert_eq!(logged.len(), 3);
    eventually("the record has the node's numbers", || {
        let rows = objects(&record, &[]);
        let of = |row: &Value| {
            ["prefilled", "requested", "requested_bytes"].map(|name| row[name].as_u64().unwrap())
        };
        (rows.iter().map(of).collect::<Vec<_>>() == logged).then_some(())
    });
    for (metric, of) in [
        ("bitcoin_compact_block_prefilled_transactions", 0),
        ("bitcoin_compact_block_requested_transactions", 1),
        ("bitcoin_compact_block_requested_bytes", 2),
    ] {
        let total: u64 = logged.iter().map(|numbers| numbers[of]).sum();
        assert_eq!(scene.sum(&format!("{metric}_sum"), ""), total as f64, "{metric}");
        assert_eq!(scene.sum(&format!("{metric}_count"), ""), 3.0, "{metric}");
        assert!(total > 0);
    }
    assert_eq!(scene.sum("bitcoin_block_arrivals_total", "compact_complete"), 1.0);
    assert_eq!(scene.sum("bitcoin_block_arrivals_total", "compact_requested"), 2.0);
    assert_eq!(scene.sum("bitcoin_block_arrivals_total", ""), 3.0);
    assert_eq!(scene.sum("bitcoin_block_announcements_total", "cmpctblock"), 3.0);
    assert_eq!(scene.sum("bitcoin_block_first_announcements_total", "connection_type=\"inbound\""), 3.0);
    assert_eq!(scene.sum("bitcoin_compact_blocks_received_total", "high_bandwidth"), 3.0);
    assert_eq!(scene.sum("bitcoin_compact_block_roundtrip_seconds_count", ""), 2.0);
    for histogram in ["bitcoin_block_arrival_seconds", "bitcoin_block_assembly_seconds"] {
        assert_eq!(scene.sum(&format!("{histogram}_count"), ""), 3.0, "{histogram}");
    }
    let (arrival, assembly) = (
        scene.sum("bitcoin_block_arrival_seconds_sum", ""),
        scene.sum("bitcoin_block_assembly_seconds_sum", ""),
    );
    assert!(arrival > assembly && assembly > scene.sum("bitcoin_compact_block_roundtrip_seconds_sum", ""));
    // The timestamp in each block's header is at least five seconds before the announcement of the block.
    assert_eq!(scene.sum("bitcoin_block_header_age_seconds_count", ""), 3.0);
    assert_eq!(scene.sum("bitcoin_block_header_age_seconds_bucket", "le=\"2.0\""), 0.0);
    assert!(scene.sum("bitcoin_block_header_age_seconds_sum", "") >= 15.0);
    assert_eq!(scene.sum("fibre_exporter_errors_total", ""), 0.0, "{}", scene.exporter.metrics());
}

pub fn three_announcing_peers_are_distinguished() {
    let (mut scene, [mut first, mut second, mut third]) = Scene::new();

    // The node requests a compact block from the first peer, but gets the compact block from the third peer.
    let block = scene.block(&[]);
    first.send(NetworkMessage::Headers(vec![block.header]));
    fetched(&mut first, Inventory::CompactBlock(block.block_hash()));
    second.send(NetworkMessage::Inv(vec![Inventory::Block(block.block_hash())]));
    second.wait_until_handled();
    third.send_compact_block(&block, &[]);
    scene.connected(&block);
    assert_eq!(scene.field(&block, "announced_by").as_deref(), Some("headers"));
    assert_eq!(scene.field(&block, "announcements").as_deref(), Some("3"));
    // The connection type of the first peer is unknown, because this peer has sent no message from which the exporter
    // reads connection types since the exporter started.
    assert_eq!(scene.sum("bitcoin_block_first_announcements_total", "connection_type=\"unknown\""), 1.0);
    assert_eq!(scene.field(&block, "arrival").as_deref(), Some("compact_complete"));
    for by in ["headers", "inv", "cmpctblock"] {
        assert_eq!(scene.sum("bitcoin_block_announcements_total", &format!("by=\"{by}\"")), 1.0, "{by}");
    }

    // The requested compact block and a fourth announcement arrive after the node has connected the block. The exporter
    // must still count both messages.
    first.send_compact_block(&block, &[]);
    first.wait_until_handled();
    let mut fourth = Peer::connect(scene.node.p2p_port);
    fourth.send(NetworkMessage::Inv(vec![Inventory::Block(block.block_hash())]));
    fourth.wait_until_handled();
    eventually("the late messages are counted", || {
        let [inv, asked] = [
            ("bitcoin_block_announcements_total", "by=\"inv\""),
            ("bitcoin_compact_blocks_received_total", "low"),
        ]
        .map(|(metric, labels)| scene.sum(metric, labels));
        (inv == 2.0 && asked == 1.0).then_some(())
    });

    // Three announcements of a block by the same peer count as one. The compact block that the first peer sends after
    // the node's request completes this block.
    let next = scene.block(&[]);
    first.send(NetworkMessage::Headers(vec![next.header]));
    fetched(&mut first, Inventory::CompactBlock(next.block_hash()));
    first.send(NetworkMessage::Inv(vec![Inventory::Block(next.block_hash())]));
    first.send_compact_block(&next, &[]);
    scene.connected(&next);
    assert_eq!(scene.sum("bitcoin_block_announcements_total", "by=\"headers\""), 2.0);
    assert_eq!(scene.sum("bitcoin_block_announcements_total", "by=\"inv\""), 2.0);
    assert_eq!(scene.sum("bitcoin_block_announcements_total", "by=\"cmpctblock\""), 1.0);
    assert_eq!(scene.sum("bitcoin_compact_blocks_received_total", "high_bandwidth"), 1.0);
    assert_eq!(scene.sum("bitcoin_compact_blocks_received_total", "low_bandwidth"), 2.0);
    assert_eq!(scene.sum("bitcoin_block_arrivals_total", "compact_complete"), 2.0);
}

pub fn block_by_another_message_is_no_compact_block() {
    let (mut scene, [mut peer]) = Scene::new();

    // The peer responds with a wrong transaction, and the node then downloads the full block.
    let [asked, other] = scene.transactions(2).try_into().unwrap();
    let wrong = scene.block(&[asked]);
    peer.send_compact_block(&wrong, &[]);
    let request = requested(&mut peer);
    let transactions =
        BlockTransactions { block_hash: request.txs_request.block_hash, transactions: vec![other] };
    peer.send(NetworkMessage::BlockTxn(BlockTxn { transactions }));
    fetched(&mut peer, Inventory::WitnessBlock(wrong.block_hash()));
    peer.send(NetworkMessage::Block(wrong.clone()));
    scene.connected(&wrong);
    assert_eq!(scene.field(&wrong, "arrival").as_deref(), Some("full_block"));

    // The node gets a block over JSON-RPC while it waits for the block's transactions from the peer.
    let [unknown] = scene.transactions(1).try_into().unwrap();
    let submitted = scene.block(&[unknown]);
    peer.send_compact_block(&submitted, &[]);
    requested(&mut peer);
    scene.node.cli(&["submitblock", &serialize_hex(&submitted)]);
    scene.connected(&submitted);
    assert_eq!(scene.field(&submitted, "arrival").as_deref(), Some("other"));
    assert_eq!(scene.sum("bitcoin_block_arrivals_total", "full_block"), 1.0);
    assert_eq!(scene.sum("bitcoin_block_arrivals_total", "other"), 1.0);
    assert_eq!(scene.sum("bitcoin_compact_block_requested_transactions_count", ""), 0.0);
    assert_eq!(scene.reconstructed(&[&wrong, &submitted]).len(), 0);

    // The node reconstructs this block and then rejects it, because its coinbase pays too much.
    let invalid = block_on(&scene.tip, scene.height + 1, unix_time() - 5, Amount::ONE_BTC * 50, &[]);
    peer.send_compact_block(&invalid, &[]);
    peer.wait_until_handled();
    let valid = scene.block(&[]);
    peer.send_compact_block(&valid, &[]);
    scene.connected(&valid);
    assert_eq!(scene.reconstructed(&[&invalid, &valid]).len(), 2);
    assert_eq!(scene.sum("bitcoin_block_announcements_total", ""), 3.0);
    assert_eq!(scene.sum("bitcoin_block_arrivals_total", ""), 3.0);
    assert_eq!(scene.sum("bitcoin_compact_block_requested_transactions_count", ""), 1.0);
}

pub fn header_sync_announces_nothing() {
    let (mut scene, [mut peer]) = Scene::new();
    let (mut blocks, mut last) = (Vec::new(), scene.tip);
    for height in 1..=2000 {
        let block = block_on(&last, scene.height + height, last.time + 1, REWARD, &[]);
        last = block.header;
        blocks.push(block);
    }
    peer.send(NetworkMessage::Headers(blocks.iter().map(|block| block.header).collect()));
    let mut given = 0;
    while given < blocks.len() {
        let wanted = peer.receive("getdata", |message| match message {
            NetworkMessage::GetData(wanted) => Some(wanted),
            _ => None,
        });
        for inventory in wanted {
            let Inventory::WitnessBlock(hash) = inventory else { panic!("{inventory:?}") };
            let block = blocks.iter().find(|block| block.block_hash() == hash).unwrap();
            peer.send(NetworkMessage::Block(block.clone()));
            given += 1;
        }
    }
    (scene.tip, scene.height) = (last, scene.height + 2000);
    eventually("all are connected", || {
        (scene.node.cli(&["getblockcount"]) == scene.height.to_string()).then_some(())
    });
    eventually("all events are counted", || {
        (scene.sum("bitcoin_block_arrivals_total", "other") == 2000.0).then_some(())
    });
    assert_eq!(scene.sum("bitcoin_blocks_connected_total", ""), 2000.0);
    assert_eq!(scene.sum("bitcoin_block_announcements_total", ""), 0.0);
    assert_eq!(scene.sum("bitcoin_block_arrival_seconds_count", ""), 0.0);

    // One headers message announces the next two blocks.
    let first = block_on(&scene.tip, scene.height + 1, scene.tip.time + 1, REWARD, &[]);
    let second = block_on(&first.header, scene.height + 2, scene.tip.time + 2, REWARD, &[]);
    peer.send(NetworkMessage::Headers(vec![first.header, second.header]));
    for block in [&first, &second] {
        peer.send(NetworkMessage::Block(block.clone()));
    }
    scene.connected(&second);
    assert_eq!(scene.sum("bitcoin_block_announcements_total", "by=\"headers\""), 2.0);
    assert_eq!(scene.sum("bitcoin_block_arrivals_total", "full_block"), 2.0);
    assert_eq!(scene.sum("fibre_exporter_errors_total", ""), 0.0, "{}", scene.exporter.metrics());
}

pub fn peer_with_invented_blocks_evicts_no_other_blocks() {
    let (mut scene, [mut honest, mut other]) = Scene::new();
    let block = scene.block(&[]);
    honest.send(NetworkMessage::Inv(vec![Inventory::Block(block.block_hash())]));
    honest.wait_until_handled();
    for _ in 0..500 {
        let invented = deserialize(&rand::random::<[u8; 32]>()).unwrap();
        other.send(NetworkMessage::Inv(vec![Inventory::Block(invented)]));
    }
    other.wait_until_handled();
    honest.send_compact_block(&block, &[]);
    scene.connected(&block);
    assert_eq!(scene.field(&block, "announced_by").as_deref(), Some("inv"));
    assert_eq!(scene.sum("bitcoin_block_announcements_total", ""), 1.0);
    assert_eq!(scene.sum("bitcoin_block_arrivals_total", "compact_complete"), 1.0);
}

pub fn node_reports_are_counted() {
    let (_dir, mut fixture, exporter) = crate::fibre(&["-DSTANDARD"]);
    fixture.fire("way 3 40 5 6 7000");
    eventually("the block is counted", || {
        (exporter.metrics().contains("bitcoin_blocks_connected_total{node=\"relay\"} 1")).then_some(())
    });
    crate::assert_samples(
        &exporter,
        r#"
        bitcoin_block_announcements_total{by="inv"} 1
        bitcoin_block_arrivals_total{by="compact_requested"} 1
        bitcoin_compact_block_prefilled_transactions_sum 3.0
        bitcoin_compact_block_mempool_transactions_sum 40.0
        bitcoin_compact_block_mempool_transactions_count 1
        bitcoin_compact_block_extra_pool_transactions_sum 5.0
        bitcoin_compact_block_extra_pool_transactions_count 1
        bitcoin_compact_block_requested_transactions_sum 6.0
        bitcoin_compact_block_requested_bytes_sum 7000.0
        fibre_exporter_errors_total{error_type="argument"} 0
        "#,
    );
    let log = exporter.log();
    let entry = log.lines().find(|line| line.contains("block connected")).unwrap();
    for field in ["announced_by=\"inv\"", "announced_peer=1", "from_mempool=40", "from_extra_pool=5"] {
        assert!(entry.contains(&format!(" {field} ")), "{field} in {entry}");
    }
}

pub fn report_has_the_utxo_flush_a_block_waited_for() {
    let (mut scene, [mut peer]) = Scene::with("net,validation,utxocache", &[]);
    let block = scene.block(&[]);
    peer.send(NetworkMessage::Inv(vec![Inventory::Block(block.block_hash())]));
    peer.wait_until_handled();
    scene.node.cli(&["gettxoutsetinfo"]); // The node flushes its UTXO cache before it computes the result.
    peer.send_compact_block(&block, &[]);
    scene.connected(&block);
    let told: i64 = scene.field(&block, "flush_us").unwrap().parse().unwrap();
    let log = scene.exporter.log();
    let flushed = log.lines().filter(|line| line.contains("UTXO cache flushed"));
    let duration = |line: &str| -> i64 {
        line.split_once("duration_us=").unwrap().1.split(' ').next().unwrap().parse().unwrap()
    };
    // The field `flush_us` is the total duration of flushes between the block's first announcement and its connection,
    // which is at most the sum of all flushes.
    assert!(told > 0 && told <= flushed.map(duration).sum(), "{told}: {log}");

    let next = scene.block(&[]);
    peer.send_compact_block(&next, &[]);
    scene.connected(&next);
    assert_eq!(scene.field(&next, "flush_us"), None);
}
