//! What is counted of events in an order that peers do not make on demand.

use super::correlation::MAX_BLOCKS;
use super::timeline::{Arrival, MAX_DELIVERIES, MAX_PEERS};
use super::*;

const MS: u64 = 1_000_000;
const HASH: Hash = [7; 32];

fn connected() -> What {
    let duration_ns = 5 * MS as i64;
    What::Connected(Connected { height: 1, transactions: 1, inputs: 0, sigops: 0, duration_ns })
}

fn compact(peer: i64) -> What {
    What::Compact { peer, compact: Compact { header_time: u32::MAX, short_ids: 1 } }
}

fn inv(peer: i64) -> What {
    What::Announced { peer, by: Announcement::Inv }
}

/// What happened, with the milliseconds when it did.
fn happen(blocks: &Blocks, events: impl IntoIterator<Item = (u64, Hash, What)>) {
    let events = events.into_iter().map(|(at_ms, hash, what)| Event { time_ns: at_ms * MS, hash, what });
    blocks.add(|queue| queue.extend(events));
    blocks.settle();
}

fn arrivals(blocks: &Blocks) -> Vec<(&'static str, u64)> {
    let counts = blocks.totals().0.arrivals;
    Arrival::LABELS.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect()
}

#[test]
fn what_fibre_put_together_before_it_was_connected_is_fibres() {
    let blocks = Blocks::default();
    // The order in which the buffers are read is another than that in which it happened.
    happen(
        &blocks,
        [
            (110, HASH, connected()),
            (100, HASH, What::Fibre),
            (101, HASH, compact(1)), // comes while FIBRE's block is being checked
            (90, HASH, inv(2)),
        ],
    );
    assert_eq!(arrivals(&blocks), [("fibre", 1)]);
    assert_eq!(blocks.totals().0.announcements, [0, 1, 1]);

    let other = [8; 32];
    happen(
        &blocks,
        [
            (200, other, compact(1)),
            (210, other, connected()), // begun at 205
            (206, other, What::Fibre),
        ],
    );
    assert_eq!(arrivals(&blocks), [("compact_complete", 1), ("fibre", 1)]);
}

/// The node says of peer 2 that it took its header, and what became of its compact block.
fn told(requested: u32) -> [(u64, Hash, What); 2] {
    let from =
        Reconstructed { prefilled: 3, from_mempool: 4, from_extra_pool: 5, requested, requested_bytes: 700 };
    [
        (101, HASH, What::Header { peer: 2, is_compact: true }),
        (103, HASH, What::Reconstructed { peer: 2, from }),
    ]
}

#[test]
fn what_the_node_itself_says_of_a_block_comes_before_what_its_messages_tell() {
    for (has, requested, expected) in [
        // Of a node that can say it, the messages alone do not tell that the block was complete.
        (true, None, ("other", 1, None, None, None, 105)),
        (true, Some(0), ("compact_complete", 2, Some(3), Some(5), Some(0), 2)),
        (true, Some(6), ("compact_requested", 2, Some(3), Some(5), Some(6), 2)),
        (false, None, ("compact_complete", 1, Some(9), None, Some(0), 105)),
    ] {
        let blocks = Blocks::default();
        blocks.attached(|name| has && name == "net:compact_block_reconstructed");
        // The first peer's header could not be used when it came.
        happen(&blocks, [(90, HASH, What::Announced { peer: 1, by: Announcement::Headers(u32::MAX) })]);
        happen(&blocks, [(100, HASH, compact(2))]);
        happen(&blocks, requested.map(told).into_iter().flatten());
        let connected =
            Connected { height: 1, transactions: 10, inputs: 0, sigops: 0, duration_ns: 5 * MS as i64 };
        happen(&blocks, [(200, HASH, What::Connected(connected))]);
        let (last, _) = blocks.last();
        let of = &last[0];
        let complete_ms = of.complete_us.unwrap() as u64 / 1000;
        let got = (
            of.arrival,
            of.announced_peer.unwrap(),
            of.prefilled,
            of.from_extra_pool,
            of.requested,
            complete_ms,
        );
        assert_eq!(got, expected);
    }
}

#[test]
fn a_hash_alone_announces_a_block_before_a_header_does() {
    let blocks = Blocks::default();
    happen(
        &blocks,
        [(1, HASH, inv(1)), (2, HASH, compact(2)), (3, HASH, What::Header { peer: 2, is_compact: true })],
    );
    happen(&blocks, [(10, HASH, connected())]);
    let (last, _) = blocks.last();
    assert_eq!((last[0].announced_by, last[0].announced_peer), (Some("inv"), Some(1)));
}

#[test]
fn who_won_fibres_race_is_told_with_the_block() {
    let blocks = Blocks::default();
    let won = What::Won { mechanism: "fibre_udp" };
    happen(&blocks, [(1, HASH, compact(1)), (2, HASH, won), (10, HASH, connected())]);
    assert_eq!(blocks.last().0[0].race_winner, Some("fibre_udp"));
}

#[test]
fn a_block_that_is_connected_again_did_not_arrive_again() {
    let blocks = Blocks::default();
    happen(&blocks, [(1, HASH, compact(1)), (10, HASH, connected()), (50, HASH, connected())]);
    assert_eq!(arrivals(&blocks), [("compact_complete", 1), ("other", 1)]);
    let counts = blocks.totals().0;
    assert_eq!((counts.announcements, counts.compact_blocks), ([0, 0, 1], [1, 0]));
}

#[test]
fn a_minute_after_it_was_connected_a_block_is_not_announced_any_more() {
    let blocks = Blocks::default();
    happen(
        &blocks,
        [
            (1, HASH, inv(1)),
            (10, HASH, connected()),
            (60_010, HASH, inv(2)),
            (60_010, HASH, compact(2)),
            (60_011, HASH, inv(3)),
            (60_011, HASH, compact(4)),
        ],
    );
    let counts = blocks.totals().0;
    assert_eq!((counts.announcements, counts.compact_blocks), ([0, 2, 0], [1, 0]));
}

#[test]
fn what_peers_say_is_bounded() {
    let blocks = Blocks::default();
    let invented = (0..1000u16).map(|number| {
        let mut hash = [0; 32];
        hash[..2].copy_from_slice(&number.to_le_bytes());
        (5, hash, inv(9))
    });
    happen(&blocks, [(1, HASH, inv(1))].into_iter().chain(invented));
    assert_eq!(blocks.state().timelines.len(), MAX_BLOCKS);
    happen(&blocks, (0..1000).map(|peer| (6, HASH, compact(peer))));
    assert_eq!(blocks.state().find(&HASH).unwrap().peers.len(), MAX_PEERS);
    assert_eq!(blocks.state().find(&HASH).unwrap().deliveries.len(), MAX_DELIVERIES);
    happen(&blocks, [(20, HASH, connected())]);
    assert_eq!(arrivals(&blocks), [("compact_complete", 1)]);
    assert_eq!(blocks.totals().0.announcements, [0, 1, MAX_PEERS as u64 - 1]);
}

#[test]
fn peers_of_a_node_that_has_ended_are_forgotten() {
    let blocks = Blocks::default();
    happen(&blocks, [(1, HASH, compact(1))]);
    blocks.node_ended();
    happen(&blocks, [(10, HASH, connected())]);
    assert_eq!(arrivals(&blocks), [("other", 1)]);
    assert_eq!(blocks.totals().0.announcements, [0; 3]);
}
