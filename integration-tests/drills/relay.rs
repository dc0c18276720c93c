//! Blocks that come slowly, and compact blocks whose transactions the node does not have.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bitcoin::block::Header;
use bitcoin::consensus::encode::deserialize_hex;
use bitcoin::p2p::message::NetworkMessage;

use crate::fleet::{Fleet, Kind, Plan, warning};
use crate::harness::fixture;
use crate::harness::peer::Peer;

/// Six hours take a minute and a half.
const FACTOR: u32 = 240;

/// Drill 21: the node takes none of the transactions that miners take.
pub fn compact_blocks_without_transactions_are_an_alert() {
    if fixture::cannot_bpf() {
        return eprintln!("drill 21 needs BPF");
    }
    let policy = ["-minrelaytxfee=0.1", "-blockreconstructionextratxn=0"];
    let plans = vec![Plan::new(Kind::Rpc).named("strict").node(&policy), Plan::new(Kind::Rpc).named("well")];
    let fleet = Fleet::start_scaled("21 compact blocks", FACTOR, plans);
    let since = Instant::now();
    // It gets no transactions either.
    let expected = [warning("BitcoinCompactBlocksIncomplete")];
    fleet.expect(since, &["strict".into()], &expected, 360.0);
}

/// Drill 21: a peer announces blocks six seconds before anybody has them.
pub fn blocks_that_come_slowly_are_an_alert() {
    const DELAY: Duration = Duration::from_secs(6);
    if fixture::cannot_bpf() {
        return eprintln!("drill 21 needs BPF");
    }
    let plans = vec![Plan::new(Kind::Rpc).named("slow").alone(), Plan::new(Kind::Rpc).named("well")];
    let fleet = Fleet::start_scaled("21 slow blocks", FACTOR, plans);
    let (hub, slow) = (&fleet.network.hub, fleet.members[0].real());
    slow.cli(&["addnode", &fleet.network.address(), "onetry"]);
    crate::harness::eventually("the node has the blocks", || {
        (slow.cli(&["getbestblockhash"]) == hub.cli(&["getbestblockhash"])).then_some(())
    });
    let since = Instant::now();
    slow.cli(&["setnetworkactive", "false"]);
    slow.cli(&["setnetworkactive", "true"]);
    fleet.network.pace.blocks.store(0, Relaxed);
    let mut peer = Peer::connect(slow.p2p_port);
    let mut late = std::collections::VecDeque::new();
    for _ in 0..26 {
        let hash = hub.mine(1).remove(0);
        let header: Header = deserialize_hex(&hub.cli(&["getblockheader", &hash, "false"])).unwrap();
        peer.say(NetworkMessage::Headers(vec![header]));
        late.push_back((Instant::now() + DELAY, hash));
        fleet.stack.wait(fleet.stack.minutes(10.0));
        while late.front().is_some_and(|(at, _)| *at < Instant::now()) {
            let (_, hash) = late.pop_front().unwrap();
            slow.cli(&["submitblock", &hub.cli(&["getblock", &hash, "0"])]);
        }
    }
    fleet.expect(since, &["slow".into()], &[warning("BitcoinBlocksArriveSlowly")], 360.0);
}
