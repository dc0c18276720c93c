//! Tests of the block tracker, with sequences of events that a test with real peers cannot produce reliably.

use super::trace::{ArrivalMethod, MAX_DELIVERIES, MAX_PEERS};
use super::tracker::MAX_BLOCKS;
use super::*;
use crate::sys::ClockError;

const MS: u64 = 1_000_000;
const HASH: RawBlockHash = [7; 32];

/// The event that the node's thread for P2P messages has connected a block at height 1.
fn connected() -> BlockEventKind {
    connected_at(1, ConnectingThread::Validation)
}

fn connected_at(height: i32, thread: ConnectingThread) -> BlockEventKind {
    BlockEventKind::Connected(ConnectedBlock {
        height,
        transactions: 1,
        inputs: 0,
        sigops: 0,
        duration_ns: 5 * MS as i64,
        thread,
    })
}

fn compact(peer: i64) -> BlockEventKind {
    BlockEventKind::Compact { peer, header_time: u32::MAX, short_ids: 1 }
}

fn inv(peer: i64) -> BlockEventKind {
    BlockEventKind::Announced { peer, by: Announcement::Inv, header_time: None }
}

/// Adds these events to the tracker, and processes the events. Each event is a time in milliseconds, the hash of a
/// block, and a kind.
fn happen(blocks: &BlockTracker, events: impl IntoIterator<Item = (u64, RawBlockHash, BlockEventKind)>) {
    let events = events.into_iter().map(|(at_ms, hash, kind)| BlockEvent { time_ns: at_ms * MS, hash, kind });
    blocks.add(|queue| queue.extend(events));
    blocks.process_queue();
}

fn arrivals(blocks: &BlockTracker) -> Vec<(&'static str, u64)> {
    let counts = blocks.counts().arrivals;
    ArrivalMethod::LABELS.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect()
}

#[test]
fn block_reconstructed_by_fibre_first_is_fibres() {
    let blocks = BlockTracker::default();
    // The exporter may read the events in an order that differs from the order of their times.
    happen(
        &blocks,
        [
            (110, HASH, connected()),
            (100, HASH, BlockEventKind::Fibre { height: None }),
            (101, HASH, compact(1)), // The compact block arrives while the node validates FIBRE's block.
            (90, HASH, inv(2)),
        ],
    );
    assert_eq!(arrivals(&blocks), [("fibre", 1)]);
    assert_eq!(blocks.counts().announcements, [0, 1, 1]);

    let other = [8; 32];
    happen(
        &blocks,
        [
            (200, other, compact(1)),
            (210, other, connected()), // The node began to connect the block at 205 ms.
            (206, other, BlockEventKind::Fibre { height: None }),
        ],
    );
    assert_eq!(arrivals(&blocks), [("compact_complete", 1), ("fibre", 1)]);
}

/// Two events from the node's tracepoints about peer 2: the node accepted the header of the block from this peer at
/// 101 ms, and reconstructed the peer's compact block at 103 ms.
fn reports_reconstruction(requested: u32) -> [(u64, RawBlockHash, BlockEventKind); 2] {
    let from =
        Reconstruction { prefilled: 3, from_mempool: 4, from_extra_pool: 5, requested, requested_bytes: 700 };
    [
        (101, HASH, BlockEventKind::HeaderAccepted { peer: 2 }),
        (103, HASH, BlockEventKind::Reconstructed { peer: 2, from }),
    ]
}

#[test]
fn node_reports_take_precedence_over_messages() {
    for (has, requested, expected) in [
        // If the node has the tracepoint `net:compact_block_reconstructed`, only a hit of this tracepoint completes a
        // compact block, and no P2P message does.
        (true, None, ("other", 1, None, None, None, 105)),
        (true, Some(0), ("compact_complete", 2, Some(3), Some(5), Some(0), 3)),
        (true, Some(6), ("compact_requested", 2, Some(3), Some(5), Some(6), 3)),
        (false, None, ("compact_complete", 1, Some(9), None, Some(0), 105)),
    ] {
        let blocks = BlockTracker::default();
        blocks.attached(|name| has && name == "net:compact_block_reconstructed");
        // There is no `HeaderAccepted` event for peer 1, because the node did not accept the header from this peer.
        happen(
            &blocks,
            [(
                90,
                HASH,
                BlockEventKind::Announced { peer: 1, by: Announcement::Headers, header_time: Some(u32::MAX) },
            )],
        );
        happen(&blocks, [(100, HASH, compact(2))]);
        happen(&blocks, requested.map(reports_reconstruction).into_iter().flatten());
        let duration_ns = 5 * MS as i64;
        let thread = ConnectingThread::Validation;
        let connected =
            ConnectedBlock { height: 1, transactions: 10, inputs: 0, sigops: 0, duration_ns, thread };
        happen(&blocks, [(200, HASH, BlockEventKind::Connected(connected))]);
        let (last, _) = blocks.last();
        let of = &last[0];
        let complete_ms = of.complete_us.unwrap() as u64 / 1000;
        let got = (
            of.arrival.unwrap(),
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
fn later_messages_did_not_complete_a_block() {
    let blocks = BlockTracker::default();
    blocks.attached(|_| true);
    happen(&blocks, [(100, HASH, compact(2))]);
    happen(&blocks, reports_reconstruction(6));
    // A full block and another compact block arrive after the node has reconstructed the block.
    happen(
        &blocks,
        [
            (110, HASH, BlockEventKind::FullBlock { peer: 9 }),
            (120, HASH, compact(3)),
            (200, HASH, connected()),
        ],
    );
    assert_eq!(arrivals(&blocks), [("compact_requested", 1)]);
    assert_eq!(blocks.last().0[0].requested, Some(6));
}

#[test]
fn announcements_of_own_blocks_count_as_late() {
    let blocks = BlockTracker::default();
    happen(&blocks, [(1, HASH, connected()), (2, HASH, inv(1)), (3, HASH, compact(2))]);
    // The block is disconnected and connected again.
    happen(&blocks, [(2000, HASH, connected())]);
    let counts = blocks.counts();
    assert_eq!((counts.announcements, counts.compact_blocks), ([0, 1, 1], [1, 0]));
    assert_eq!(arrivals(&blocks), [("other", 2)]);
    // Blocks that a syncing node connects must not evict announced blocks that the node has not yet connected.
    let hash = |number: u16| -> RawBlockHash { std::array::from_fn(|at| number.to_le_bytes()[at % 2]) };
    happen(&blocks, (1..=MAX_BLOCKS as u16).map(|number| (3000, hash(number), inv(1))));
    happen(
        &blocks,
        (1000..2000).map(|number| (3001, hash(number), connected_at(number.into(), ConnectingThread::Other))),
    );
    assert!(blocks.state().timelines.iter().all(|it| it.connected_ns.is_none()));
}

#[test]
fn second_compact_block_of_a_peer_is_ignored() {
    let blocks = BlockTracker::default();
    let lie = BlockEventKind::Compact { peer: 1, header_time: u32::MAX, short_ids: 0 };
    happen(
        &blocks,
        [
            (1, HASH, compact(1)),
            (2, HASH, BlockEventKind::TransactionsRequested { peer: 1, transactions: 1 }),
            (3, HASH, lie),
        ],
    );
    // The second `TransactionsReceived` event completes the block.
    let answered = |bytes| BlockEventKind::TransactionsReceived { peer: 1, bytes };
    happen(&blocks, [(4, HASH, answered(9)), (5, HASH, answered(276)), (20, HASH, connected())]);
    let (last, _) = blocks.last();
    assert_eq!((last[0].short_ids, last[0].requested_bytes), (Some(1), Some(276)));
}

#[test]
fn inv_counts_as_an_announcement_before_a_header() {
    let blocks = BlockTracker::default();
    happen(
        &blocks,
        [(1, HASH, inv(1)), (2, HASH, compact(2)), (3, HASH, BlockEventKind::HeaderAccepted { peer: 2 })],
    );
    happen(&blocks, [(10, HASH, connected())]);
    let (last, _) = blocks.last();
    assert_eq!((last[0].announced_by, last[0].announced_peer), (Some("inv"), Some(1)));
}

#[test]
fn report_has_the_winner_of_fibres_race() {
    let blocks = BlockTracker::default();
    let won = BlockEventKind::RaceWon { height: 1, mechanism: "fibre_udp" };
    happen(&blocks, [(1, HASH, compact(1)), (2, HASH, won), (10, HASH, connected())]);
    assert_eq!(blocks.last().0[0].race_winner, Some("fibre_udp"));

    // FIBRE reports the winner after it has connected the block. No peer has announced this block.
    let blocks = BlockTracker::default();
    let won = BlockEventKind::RaceWon { height: 1, mechanism: "bip152_cmpct" };
    let raced = BlockEventKind::RaceFinished { height: 1, udp_ns: None, compact_ns: Some(7) };
    happen(&blocks, [(10, HASH, connected())]);
    happen(&blocks, [(11, HASH, won), (12, HASH, raced)]);
    let (last, _) = blocks.last();
    assert_eq!((last[0].race_winner, last[0].race_compact_ns), (Some("bip152_cmpct"), Some(7)));
}

#[test]
fn reconnected_block_has_no_second_arrival() {
    let blocks = BlockTracker::default();
    happen(&blocks, [(1, HASH, compact(1)), (10, HASH, connected()), (50, HASH, connected())]);
    assert_eq!(arrivals(&blocks), [("compact_complete", 1), ("other", 1)]);
    let counts = blocks.counts();
    assert_eq!((counts.announcements, counts.compact_blocks), ([0, 0, 1], [1, 0]));
}

#[test]
fn announcements_stop_counting_after_a_minute() {
    let blocks = BlockTracker::default();
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
    let counts = blocks.counts();
    assert_eq!((counts.announcements, counts.compact_blocks), ([0, 2, 0], [1, 0]));
}

#[test]
fn invented_blocks_do_not_evict_a_requested_one() {
    let blocks = BlockTracker::default();
    let invented =
        |number: u16| (1, std::array::from_fn(|at| number.to_le_bytes()[at % 2]), inv(number.into()));
    happen(&blocks, (1000..1200).map(invented));
    happen(&blocks, [(2, HASH, inv(1)), (3, HASH, BlockEventKind::Requested { peer: 1, is_compact: true })]);
    happen(&blocks, (1200..1400).map(invented));
    happen(&blocks, [(4, HASH, compact(1)), (20, HASH, connected())]);
    let (last, _) = blocks.last();
    assert_eq!((last[0].announced_by, last[0].announced_peer), (Some("inv"), Some(1)));
}

#[test]
fn state_from_peers_is_bounded() {
    let blocks = BlockTracker::default();
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
    assert_eq!(blocks.counts().announcements, [0, 1, MAX_PEERS as u64 - 1]);
}

#[test]
fn peers_of_a_node_that_has_ended_are_forgotten() {
    let blocks = BlockTracker::default();
    happen(&blocks, [(1, HASH, compact(1))]);
    blocks.node_ended();
    happen(&blocks, [(10, HASH, connected())]);
    assert_eq!(arrivals(&blocks), [("other", 1)]);
    assert_eq!(blocks.counts().announcements, [0; 3]);
}

/// Unix time in nanoseconds at which the monotonic clock is 0. A whole number of seconds, because header timestamps are
/// in seconds.
const EPOCH_NS: i64 = 1_000_000 * 1_000_000_000;

fn header_age_ms(header_time: u32, steps_ns: i64) -> Option<i64> {
    let blocks = BlockTracker::default();
    let announced =
        BlockEventKind::Announced { peer: 1, by: Announcement::Headers, header_time: Some(header_time) };
    blocks.add(|queue| queue.push(BlockEvent { time_ns: 5000 * MS, hash: HASH, kind: announced }));
    blocks.process_queue_at(EPOCH_NS, None);
    blocks.add(|queue| queue.push(BlockEvent { time_ns: 6000 * MS, hash: HASH, kind: connected() }));
    blocks.process_queue_at(EPOCH_NS + steps_ns, None);
    let (last, _) = blocks.last();
    assert_eq!(last[0].time, 1_000_006.0 + steps_ns as f64 / 1e9);
    last[0].header_age_ms
}

#[test]
fn header_age_is_by_the_clock_at_the_announcement() {
    const SECOND: i64 = 1_000_000_000;
    for step in [0, -10 * SECOND, 3600 * SECOND, 600 * SECOND] {
        assert_eq!(header_age_ms(1_000_000, step), Some(5000));
    }
    assert_eq!(header_age_ms(1_000_010, 0), None, "in the future");
    assert_eq!(header_age_ms(1_000_005 - 7200, 0), Some(7_200_000));
    assert_eq!(header_age_ms(1_000_005 - 7201, 0), None, "absurd");
}

#[test]
fn check_of_the_database_leaves_a_block_as_it_was_counted() {
    let blocks = BlockTracker::default();
    happen(&blocks, [(1, HASH, compact(1)), (10, HASH, connected())]);
    happen(
        &blocks,
        [
            (20, HASH, connected_at(1, ConnectingThread::Other)),
            (30, HASH, connected_at(1, ConnectingThread::Main)),
        ],
    );
    assert_eq!(arrivals(&blocks), [("compact_complete", 1)]);
    let (last, _) = blocks.last();
    assert_eq!((last.len(), blocks.counts().connected), (1, 1));
    // When the node exits, the tracker forgets its blocks. The next process of the node may connect the same block
    // again.
    blocks.node_ended();
    happen(&blocks, [(40, HASH, connected_at(1, ConnectingThread::Other))]);
    assert_eq!(blocks.counts().connected, 2);
}

#[test]
fn clock_that_was_set_during_the_arrival_is_not_synchronized() {
    let error = ClockError { is_synchronized: true, max_us: 400, estimated_us: 20 };
    let synchronized = |step_ns: i64| {
        let blocks = BlockTracker::default();
        blocks.add(|queue| queue.push(BlockEvent { time_ns: 5000 * MS, hash: HASH, kind: compact(1) }));
        blocks.process_queue_at(EPOCH_NS, Some(error));
        blocks.add(|queue| queue.push(BlockEvent { time_ns: 6000 * MS, hash: HASH, kind: connected() }));
        let report = blocks.process_queue_at(EPOCH_NS + step_ns, Some(error)).remove(0);
        assert_eq!((report.clock_max_error_us, report.clock_estimated_error_us), (Some(400), Some(20)));
        report.clock_synchronized
    };
    assert_eq!(synchronized(0), Some(true));
    assert_eq!(synchronized(500_000), Some(true), "slewed");
    assert_eq!(synchronized(2_000_000_000), Some(false), "set forward");
    assert_eq!(synchronized(-6_000_000), Some(false), "set back");
}

#[test]
fn block_of_fibre_without_an_earlier_announcement_is_fibres() {
    let blocks = BlockTracker::default();
    let race = |winner| BlockEventKind::RaceFinished { height: 1, udp_ns: Some(winner), compact_ns: None };
    happen(&blocks, [(100, HASH, BlockEventKind::Fibre { height: None }), (110, HASH, connected())]);
    happen(&blocks, [(120, HASH, race(5))]);
    assert_eq!(arrivals(&blocks), [("fibre", 1)]);
    let (last, _) = blocks.last();
    let expected = (Some("fibre"), None, Some(10_000), Some(5));
    assert_eq!((last[0].arrival, last[0].announced_by, last[0].fibre_us, last[0].race_udp_ns), expected);

    happen(&blocks, [(130, HASH, connected())]); // The node connects the block again after a reorganization.
    assert_eq!(arrivals(&blocks), [("fibre", 1), ("other", 1)]);

    // The block is announced after FIBRE has reconstructed it and before the node connects it.
    let blocks = BlockTracker::default();
    let announced = BlockEventKind::Announced { peer: 1, by: Announcement::Headers, header_time: Some(1) };
    let events = [
        (100, HASH, BlockEventKind::Fibre { height: None }),
        (101, HASH, announced),
        (110, HASH, connected()),
    ];
    happen(&blocks, events);
    let (last, _) = blocks.last();
    assert_eq!(
        (last[0].arrival, last[0].fibre_us, last[0].header_us),
        (Some("fibre"), Some(10_000), Some(0))
    );
}

#[test]
fn header_after_an_inv_has_its_own_time() {
    let blocks = BlockTracker::default();
    let headers = BlockEventKind::Announced { peer: 1, by: Announcement::Headers, header_time: Some(1) };
    happen(&blocks, [(1, HASH, inv(1)), (4, HASH, headers), (10, HASH, connected())]);
    let (last, _) = blocks.last();
    assert_eq!((last[0].announced_by, last[0].header_us), (Some("inv"), Some(3000)));
}
