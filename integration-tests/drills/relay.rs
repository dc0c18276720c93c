//! Drills (fault injection tests of the alerts) with blocks that arrive slowly, and with compact blocks whose
//! transactions are not in the node's mempool.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bitcoin::block::Header;
use bitcoin::consensus::encode::deserialize_hex;
use bitcoin::p2p::message::NetworkMessage;

use crate::fleet::{Fleet, Kind, Plan, warning};
use crate::harness::node::Node;
use crate::harness::peer::Peer;
use crate::harness::{eventually, fixture};
use crate::network::Network;

/// Factor by which these drills divide all durations in Prometheus rules. With 120, six simulated hours take three
/// minutes of real time.
const FACTOR: u32 = 120;

/// The configuration of a node whose exporter requests no block templates. If the exporter requested templates, the
/// alert about slow templates could fire on a busy machine.
fn rpc() -> Plan {
    Plan::new(Kind::Rpc).exporter(&["--next-block", "off"])
}

/// Drill 21 in docs/alerts.md: because of its -minrelaytxfee, the node rejects the transactions that the hub then
/// mines.
pub fn compact_blocks_without_transactions_are_an_alert() {
    if fixture::cannot_bpf() {
        return eprintln!("drill 21 needs BPF");
    }
    let policy = ["-minrelaytxfee=0.1", "-blockreconstructionextratxn=0"];
    let plans = vec![rpc().named("strict").node(&policy), rpc().named("well")];
    let fleet = Fleet::start_scaled("21 compact blocks", FACTOR, plans);
    let since = Instant::now();
    let expected = [warning("BitcoinCompactBlocksIncomplete")];
    fleet.expect(since, &["strict".into()], &expected, 360.0);
}

/// Drill 21 in docs/alerts.md: a peer announces each block six seconds before the node gets the block. The alert's
/// limit is five seconds of real time, because latencies are not divided by the factor.
pub fn blocks_that_come_slowly_are_an_alert() {
    const DELAY: Duration = Duration::from_secs(6);
    if fixture::cannot_bpf() {
        return eprintln!("drill 21 needs BPF");
    }
    let network = Network::start(crate::fleet::FACTOR);
    network.pace.blocks.store(0, Relaxed);
    // This peer gets the hub's chain up to the current tip, and no later blocks.
    let peer = Node::start(&["-whitelist=noban,in,out@127.0.0.1"]);
    peer.cli(&["addnode", &network.address(), "onetry"]);
    let tip = |node: &Node| node.cli(&["getbestblockhash"]);
    eventually("the peer has the chain", || (tip(&peer) == tip(&network.hub)).then_some(()));
    peer.cli(&["setnetworkactive", "false"]);
    // The node closes its connections some time after `setnetworkactive false`. If `setnetworkactive true` were called
    // earlier, these connections would stay open.
    eventually("the peer is alone", || (peer.cli(&["getconnectioncount"]) == "0").then_some(()));
    peer.cli(&["setnetworkactive", "true"]);
    let connect = format!("-connect=127.0.0.1:{}", peer.p2p_port);
    let plans = vec![rpc().named("slow").alone().node(&[&connect]), rpc().named("well")];
    let fleet = Fleet::start_on("21 slow blocks", crate::fleet::FACTOR, network, plans);
    let (hub, slow) = (&fleet.network.hub, fleet.members[0].real());
    eventually("the node has the chain", || (tip(slow) == tip(hub)).then_some(()));
    let since = Instant::now();
    let mut announcer = Peer::connect(slow.p2p_port);
    for _ in 0..18 {
        let hash = hub.mine(1).remove(0);
        let header: Header = deserialize_hex(&hub.cli(&["getblockheader", &hash, "false"])).unwrap();
        announcer.send(NetworkMessage::Headers(vec![header]));
        fleet.stack.wait(DELAY);
        slow.cli(&["submitblock", &hub.cli(&["getblock", &hash, "0"])]);
        fleet.stack.wait(fleet.stack.minutes(10.0).saturating_sub(DELAY));
    }
    fleet.expect(since, &["slow".into()], &[warning("BitcoinBlocksArriveSlowly")], 360.0);
}
