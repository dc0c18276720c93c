//! Tests with many reorgs of a node in a short time.

use std::collections::{BTreeMap, HashMap};

use crate::eventually;
use crate::exporter::{Exporter, command};
use crate::fake::{FakeNode, Offers};
use crate::node::Node;

/// A copy of the node's block tree and tip, from which the test computes the expected counts of connected and
/// disconnected blocks.
struct Tree {
    /// The hash of the parent and the height of each block, by the block's hash.
    blocks: HashMap<String, (String, u32)>,
    tip: String,
    connected: f64,
    disconnected: f64,
}

impl Tree {
    fn add(&mut self, hash: &str, parent: &str) {
        let height = self.blocks[parent].1 + 1;
        self.blocks.insert(hash.into(), (parent.into(), height));
    }

    /// The hash of the block that is `depth` blocks below the tip on the best chain.
    fn below_tip(&self, depth: u64) -> String {
        (0..depth).fold(self.tip.clone(), |hash, _| self.blocks[&hash].0.clone())
    }

    /// Changes the tip, and counts the blocks that this reorg disconnects and connects.
    fn switch_to(&mut self, tip: &str) {
        let (mut old, mut new) = (self.tip.clone(), tip.to_string());
        while old != new {
            let (old_parent, old_height) = self.blocks[&old].clone();
            let (new_parent, new_height) = self.blocks[&new].clone();
            if old_height >= new_height {
                self.disconnected += 1.0;
                old = old_parent;
            }
            if new_height >= old_height {
                self.connected += 1.0;
                new = new_parent;
            }
        }
        self.tip = tip.into();
    }
}

/// The reorgs are random, but the same in each run.
#[test]
fn thousand_invalidations_and_reconnects_are_counted() {
    let node = Node::start(&[]);
    let genesis = node.cli(&["getblockhash", "0"]);
    let mut tree = Tree {
        blocks: HashMap::from([(genesis.clone(), (String::new(), 0))]),
        tip: genesis.clone(),
        connected: 0.0,
        disconnected: 0.0,
    };
    let mut parent = genesis;
    for hash in node.mine(20) {
        tree.add(&hash, &parent);
        parent = hash;
    }
    tree.tip = parent;
    let exporter = Exporter::start(&node.socket(), &[]).ready();
    exporter.wait_for("bitcoin_blocks_connected_total", 0.0);
    let mut random = 0x5eed_u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let mut invalid = Vec::new();
    for step in 0..1000_u32 {
        match next(10) {
            0..4 if tree.blocks[&tree.tip].1 > 8 => {
                let block = tree.below_tip(next(5));
                node.cli(&["invalidateblock", &block]);
                invalid.push(block);
            }
            4..7 if !invalid.is_empty() => {
                let block = invalid.swap_remove(next(invalid.len() as u64) as usize);
                node.cli(&["reconsiderblock", &block]);
            }
            _ => {
                let blocks = (1 + next(3)).to_string();
                // Each step mines to another script. With the same script, a new block could be identical to an
                // existing block.
                let mined = node.json(&["generatetodescriptor", &blocks, &format!("raw(04{step:08x})")]);
                let mut parent = tree.tip.clone();
                for hash in mined.as_array().unwrap() {
                    tree.add(hash.as_str().unwrap(), &parent);
                    parent = hash.as_str().unwrap().to_string();
                }
            }
        }
        tree.switch_to(&node.cli(&["getbestblockhash"]));
        let expected = (Some(tree.connected), Some(tree.disconnected));
        let counted = || {
            let counted = ["bitcoin_blocks_connected_total", "bitcoin_blocks_disconnected_total"];
            let [connected, disconnected] = counted.map(|sample| exporter.value(sample));
            ((connected, disconnected) == expected).then_some(())
        };
        eventually(&format!("step {step}: {expected:?} blocks are connected and disconnected"), counted);
    }
    assert!(tree.disconnected > 500.0, "{} were disconnected", tree.disconnected);
    let height = f64::from(tree.blocks[&tree.tip].1);
    assert_eq!(tree.connected - tree.disconnected, height - 20.0);
    exporter.wait_for("bitcoin_chain_height", height);
    assert_eq!(exporter.value("bitcoin_exporter_uncounted_tip_changes_total"), Some(0.0));

    // A running exporter reads the chain tips only at intervals. The test therefore starts a new exporter, which reads
    // the chain tips in its first poll.
    let mut by_status: BTreeMap<String, u32> = BTreeMap::new();
    for tip in node.json(&["getchaintips"]).as_array().unwrap() {
        *by_status.entry(tip["status"].as_str().unwrap().into()).or_default() += 1;
    }
    let output = command().arg("--once").arg(node.socket()).output().unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    for (status, tips) in &by_status {
        let line = format!("bitcoin_chain_tips{{status=\"{status}\"}} {tips}");
        assert!(shown.lines().any(|shown| shown == line), "{line} in {shown}");
    }
    assert!(by_status.len() > 1, "{by_status:?}");
}

/// During a reorg or while a node catches up with the network, its tip can change thousands of times a second. The
/// exporter must limit the rate of its long polls for a new tip.
#[test]
fn rapid_tip_changes_are_polled_at_an_interval() {
    let node = FakeNode::start(Offers { mining: true, rpc: true, ..Offers::default() });
    let exporter = Exporter::start(&node.socket(), &[]).ready();
    let (polls, since) = (node.long_polls(), std::time::Instant::now());
    for block in 8..=250 {
        node.set_tip(block);
        std::thread::sleep(std::time::Duration::from_millis(4));
    }
    // The exporter may make 20 long polls a second, and the guard may also make 20 long polls a second.
    let most = 2.0 * (20.0 * since.elapsed().as_secs_f64() + 2.0);
    let polls = f64::from(node.long_polls() - polls);
    assert!(polls <= most, "{polls} long polls, {most} at most");
    node.set_tip(251);
    exporter.wait_for("bitcoin_block_height", 35.0 + 251.0);
    exporter.wait_for("bitcoin_blocks_connected_total", 251.0 - 7.0);
}
