//! Tracepoints of P2P messages and connections, provider `net`.

use anyhow::Result;
use libbpf_rs::{MapCore, MapFlags};

use super::blocks::{Announcement, BlockEvent, BlockEventKind, ConnectionType, RawBlockHash, Reconstruction};
use super::bpf::net::types::{self, connections, counts, direction, event, kind, messages};
use super::clock;
use super::group::GroupPrograms;
use super::histogram::Buckets;
use super::maps::{self, Maps, Pod};
use crate::bitcoin_core::{CONNECTION_TYPES, MISBEHAVING_REASONS, NETWORKS};
use crate::metrics::{Family, HistogramValue, MESSAGE_TYPES, counter, gauge, histogram};

// SAFETY: the struct consists of u64 only; see net.bpf.c.
unsafe impl Pod for counts {}
// SAFETY: the struct consists of integers only; see net.bpf.c.
unsafe impl Pod for connections {}
// SAFETY: the struct consists of integers only; see net.bpf.c.
unsafe impl Pod for event {}
// SAFETY: the struct consists of integers only; see net.bpf.c.
unsafe impl Pod for types::rodata {}

/// The reason for which the node marks a peer as misbehaving, NUL-terminated. The array has the size `REASON` of
/// net.bpf.c.
type MisbehavingReason = [u8; 136];

/// Size in bytes of an entry of an inv message. The value equals `INV_ENTRY` of net.bpf.c.
const INV_ENTRY: f64 = 36.0;
/// Buckets for the number of entries of an inv message, which the BPF programs compute from the size of the message in
/// bytes. An inv message begins with the number of its entries. This number takes one byte if it is at most
/// [`MAX_SHORT_INV`], and three bytes if it is greater. A node accepts at most 50,000 entries in an inv message, and
/// sends at most 1000.
#[rustfmt::skip]
const INV_ENTRIES: Buckets = Buckets::new(INV_ENTRY, &[
    1.0, 2.0, 5.0, 10.0, 20.0, 35.0, 50.0, 70.0, 100.0, MAX_SHORT_INV, 500.0, 1000.0, 5000.0, 10_000.0, 50_000.0,
]);
const MAX_SHORT_INV: f64 = 252.0;
/// Buckets for the number of addresses in an addr or addrv2 message. A node accepts and sends at most 1000 addresses in
/// a message.
const ADDR_ENTRIES: Buckets =
    Buckets::new(1.0, &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]);
/// Buckets for the age of a connection in seconds, up to 30 days.
#[rustfmt::skip]
const AGE: Buckets = Buckets::new(1.0, &[
    1.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 10_800.0, 21_600.0, 43_200.0, 86_400.0, 259_200.0, 604_800.0, 2_592_000.0,
]);

const MESSAGES: &[&str] = &["net:inbound_message", "net:outbound_message"];
const OPENED: &[&str] = &["net:inbound_connection", "net:outbound_connection"];
const CLOSED: &[&str] = &["net:closed_connection"];
const EVICTED: &[&str] = &["net:evicted_inbound_connection"];
const ENDED: &[&str] = &["net:closed_connection", "net:evicted_inbound_connection"];

/// The exporter's code for the tracepoint group `net`: P2P messages and connections, and the contents of messages about
/// blocks.
pub(super) struct NetGroup;

impl GroupPrograms for NetGroup {
    fn set_constants(&self, rodata: &mut [u8]) {
        maps::modify(rodata, |constants: &mut types::rodata| {
            constants.inbound_kinds = kinds(&INBOUND);
            constants.outbound_kinds = kinds(&OUTBOUND);
            constants.multiplier = multiplier();
            constants.inv_bounds = INV_ENTRIES.for_programs();
            constants.addr_bounds = ADDR_ENTRIES.for_programs();
            constants.age_s_bounds = AGE.for_programs();
        });
    }

    fn fill_maps(&self, maps: &Maps) -> Result<()> {
        self.update_clock(maps);
        maps.number_names("connection_types_map", CONNECTION_TYPES)?;
        maps.add_tallies("misbehaving_map", MISBEHAVING_REASONS)?;
        let Some(types) = maps.get("types_map") else { return Ok(()) };
        for (slot, message_type) in (0u32..).zip(slots(multiplier())) {
            let number = message_type.unwrap_or(OTHER) as u64;
            let text = message_type.map(|number| words(MESSAGE_TYPES[number])).unwrap_or_default();
            let value = [text[0], text[1], number].map(u64::to_ne_bytes).concat();
            types.update(&slot.to_ne_bytes(), &value, MapFlags::ANY)?;
        }
        Ok(())
    }

    #[rustfmt::skip]
    fn families(&self, maps: &Maps) -> Vec<Family> {
        let mut counts: counts = maps.sum("counts_map");
        for counts in [&mut counts.inbound, &mut counts.outbound] {
            counts.messages[inv()].number = counts.inv_sizes.iter().sum();
        }
        let counts = counts;
        let connections: connections = maps.single_value("connections_map");
        let directions = [("in", &counts.inbound), ("out", &counts.outbound)];
        vec![
            counter("bitcoin_p2p_messages_total", "P2P messages received from peers (`in`) and sent to peers (`out`), by \
                 type; unknown types are `other`", MESSAGES)
                .by(&["direction", "type"]).samples(by_type(directions, |messages| messages.number)),
            counter("bitcoin_p2p_message_bytes_total", "Bytes of the P2P messages received from peers (`in`) and sent to \
                 peers (`out`), by type, without the message headers", MESSAGES)
                .by(&["direction", "type"]).samples(by_type(directions, |messages| messages.bytes)),
            histogram("bitcoin_inv_entries", "Entries of the inv messages received from peers (`in`) and sent to peers (`out`), \
                 computed from the size of the message", MESSAGES, INV_ENTRIES.bounds)
                .by(&["direction"]).samples(by_direction(directions, inv_entries)),
            histogram("bitcoin_addr_entries", "Addresses in the addr and addrv2 messages received from peers (`in`) and sent to \
                 peers (`out`)", MESSAGES, ADDR_ENTRIES.bounds)
                .by(&["direction"]).samples(by_direction(directions, |counts| entries(&ADDR_ENTRIES, counts.addr_entries))),
            gauge("bitcoin_connections",
                "Open connections by direction, `in` (opened by the peer) or `out` (opened by the node). The value \
                 appears when a connection is opened and no connection was closed in the two seconds before", OPENED)
                .by(&["direction"]).samples(open_connections(&connections)),
            counter("bitcoin_connections_opened_total",
                "Connections opened, by direction, network and connection type", OPENED)
                .by(&["direction", "network", "connection_type"]).samples(opened_connections(directions)),
            counter("bitcoin_connections_closed_total", "Connections closed, by network", CLOSED)
                .by(&["network"]).samples(maps::by_name(NETWORKS, &counts.closed).map(|(network, closed)| ([network], *closed))),
            counter("bitcoin_connections_evicted_total", "Inbound connections that the node evicted to accept new \
                 connections",
                EVICTED).value(counts.evicted),
            histogram("bitcoin_connection_age_seconds", "Age of connections at their end, by direction and by \
                 whether the node evicted the peer to accept another connection (`evicted`) or the connection ended \
                 in another way (`closed`); 0 if the clock was set back behind the time at which the connection was \
                 established", ENDED, AGE.bounds)
                .by(&["direction", "end"]).samples(connection_ages(&counts)),
            counter("bitcoin_connections_misbehaving_total",
                "Misbehaving peers that the node has detected, by the node's reason, in which `N` replaces each \
                 number; `none` means that the node gave no reason, as for most invalid blocks. If there are more \
                 than 64 reasons, the counts of the least recent reasons are added to `other`",
                &["net:misbehaving_connection"])
                .by(&["reason"]).samples(maps.tallies_by_label("misbehaving_map", counts.misbehaving_other, reason_label)),
        ]
    }

    fn update_clock(&self, maps: &Maps) {
        if let Some(epoch) = maps.get("epoch_map") {
            let _ = epoch.update(&maps::FIRST_KEY, &clock::epoch_ns().to_ne_bytes(), MapFlags::ANY);
        }
    }

    fn block_events(&self, event: &[u8], queue: &mut Vec<BlockEvent>) {
        if let Some(event) = maps::decode(event) {
            read_message(&event, queue);
        }
    }

    /// Resets the number of open connections, because all connections end with the node.
    fn node_ended(&self, maps: &Maps) {
        maps.zero("connections_map");
    }
}

/// Inbound messages that the BPF programs pass to user space: messages about blocks, and verack, ping and pong, from
/// which the exporter determines the peer's connection type. Every peer sends verack after connecting, and ping or pong
/// every two minutes. Messages with addresses are not passed; the BPF programs count their entries.
const INBOUND: [(&str, kind); 10] = [
    ("addr", kind::ADDR),
    ("addrv2", kind::ADDRV2),
    ("block", kind::BLOCK),
    ("blocktxn", kind::BLOCKTXN),
    ("cmpctblock", kind::CMPCTBLOCK),
    ("headers", kind::HEADERS),
    ("inv", kind::INV),
    ("ping", kind::ALIVE),
    ("pong", kind::ALIVE),
    ("verack", kind::ALIVE),
];
/// Outbound messages that the BPF programs pass to user space, or whose entries they count.
const OUTBOUND: [(&str, kind); 5] = [
    ("addr", kind::ADDR),
    ("addrv2", kind::ADDRV2),
    ("getblocktxn", kind::GETBLOCKTXN),
    ("getdata", kind::GETDATA),
    ("inv", kind::SENT_INV),
];

/// The event kind of each P2P message type, by the index of the type in `MESSAGE_TYPES`. Types that are not in
/// `messages` have the kind 0: the BPF programs only count these messages.
fn kinds(messages: &[(&str, kind)]) -> [u8; 64] {
    let mut kinds = [0; 64];
    for (number, name) in MESSAGE_TYPES.iter().enumerate() {
        let found = messages.iter().find(|(message, _)| message == name);
        kinds[number] = found.map_or(0, |(_, message_kind)| message_kind.0 as u8);
    }
    kinds
}

/// Index of the message type inv in `MESSAGE_TYPES`.
fn inv() -> usize {
    MESSAGE_TYPES.iter().position(|name| *name == "inv").expect("it is in the list")
}

/// Common index of all P2P message types that are not in `MESSAGE_TYPES`. It equals `TYPES` - 1 of net.bpf.c.
const OTHER: usize = 63;

/// The name of a message type as two 64-bit words, the form in which the BPF programs compare names.
fn words(text: &str) -> [u64; 2] {
    let mut bytes = [0; 16];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|index| bytes[at + index]));
    [word(0), word(8)]
}

/// For each slot of the BPF map `types_map`, the index of a message type in `MESSAGE_TYPES`. The slot of a type is
/// computed from its name and `multiplier`. If two types share a slot, the slot has the later type.
fn slots(multiplier: u64) -> [Option<usize>; 256] {
    let mut slots = [None; 256];
    for (number, text) in MESSAGE_TYPES.iter().enumerate() {
        let [first, second] = words(text);
        slots[((first ^ second).wrapping_mul(multiplier) >> 56) as usize] = Some(number);
    }
    slots
}

/// A multiplier for which no two message types share a slot of `types_map`.
fn multiplier() -> u64 {
    const ODD: u64 = 0x2545_f491_4f6c_dd1d;
    let candidates = (0..).map(|step: u64| ODD.wrapping_mul(2 * step + 1));
    let is_alone = |it: &u64| slots(*it).iter().flatten().count() == MESSAGE_TYPES.len();
    candidates.take(1 << 16).find(is_alone).expect("one in some hundred is one")
}

/// Decoder for the bytes of a P2P message that a BPF program copied. The bytes are untrusted input, and may be
/// truncated.
struct MessageBytes<'a>(&'a [u8]);

impl MessageBytes<'_> {
    /// Removes the next `N` bytes and returns them; `None` if fewer are left.
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    /// Reads an integer in Bitcoin's variable-length format (CompactSize).
    fn compact_size(&mut self) -> Option<u64> {
        Some(match self.take()? {
            [0xfd] => u16::from_le_bytes(self.take()?).into(),
            [0xfe] => u32::from_le_bytes(self.take()?).into(),
            [0xff] => u64::from_le_bytes(self.take()?),
            [number] => number.into(),
        })
    }

    /// Reads a block header. Returns the hash of the block, and the timestamp in the header in Unix seconds.
    fn header(&mut self) -> Option<(RawBlockHash, u32)> {
        const TIME: usize = 4 + 32 + 32;
        let header: [u8; 80] = self.take()?;
        let time = header[TIME..].first_chunk().map(|time| u32::from_le_bytes(*time))?;
        Some((sha256(&sha256(&header)), time))
    }
}

fn sha256(bytes: &[u8]) -> RawBlockHash {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Decodes an event of a BPF program to block events, and appends them to `queue`. If the event has a truncated or
/// malformed P2P message, no block event is appended.
fn read_message(event: &event, queue: &mut Vec<BlockEvent>) {
    let add = |(hash, event_kind)| queue.push(BlockEvent { time_ns: event.time_ns, hash, kind: event_kind });
    match event.kind {
        kind::INV | kind::GETDATA => read_inventory(event, add),
        _ => {
            decode(event).map(add);
        }
    }
}

/// Decodes an event that concerns at most one block: a P2P message, or the node's report of an accepted header or a
/// reconstructed block. `None` if the event's bytes are truncated or malformed.
fn decode(event: &event) -> Option<(RawBlockHash, BlockEventKind)> {
    let peer = event.peer;
    let copied = match event.kind {
        kind::NEW_HEADER | kind::RECONSTRUCTED => &event.bytes[..],
        _ => copied_bytes(event),
    };
    let mut bytes = MessageBytes(copied);
    Some(match event.kind {
        kind::ALIVE => {
            let connection = ConnectionType::from_name(&maps::text(&event.bytes));
            (RawBlockHash::default(), BlockEventKind::PeerActive { peer, connection })
        }
        kind::HEADERS => {
            let (hash, time) = bytes.header()?;
            (hash, BlockEventKind::Announced { peer, by: Announcement::Headers, header_time: Some(time) })
        }
        kind::CMPCTBLOCK => {
            let (hash, header_time) = bytes.header()?;
            let _nonce: [u8; 8] = bytes.take()?;
            let short_ids = bytes.compact_size().filter(|ids| *ids <= u16::MAX.into())?;
            (hash, BlockEventKind::Compact { peer, header_time, short_ids })
        }
        kind::BLOCKTXN => {
            let hash = bytes.take()?;
            let _number = bytes.compact_size()?;
            let before = (copied.len() - bytes.0.len()) as u64;
            let bytes = u64::from(event.size).saturating_sub(before);
            (hash, BlockEventKind::TransactionsReceived { peer, bytes })
        }
        kind::BLOCK => (bytes.header()?.0, BlockEventKind::FullBlock { peer }),
        kind::GETBLOCKTXN => {
            let (hash, transactions) = (bytes.take()?, bytes.compact_size()?);
            (hash, BlockEventKind::TransactionsRequested { peer, transactions })
        }
        kind::NEW_HEADER => (bytes.take()?, BlockEventKind::HeaderAccepted { peer }),
        kind::RECONSTRUCTED => {
            let hash = bytes.take()?;
            let mut number = || bytes.take().map(u32::from_ne_bytes);
            let from = Reconstruction {
                prefilled: number()?,
                from_mempool: number()?,
                from_extra_pool: number()?,
                requested: number()?,
                requested_bytes: number()?,
            };
            (hash, BlockEventKind::Reconstructed { peer, from })
        }
        _ => return None,
    })
}

/// The bytes of the message that the BPF programs have copied, which are only its first bytes if the message is long.
fn copied_bytes(event: &event) -> &[u8] {
    &event.bytes[..event.bytes.len().min(event.size as usize)]
}

/// Decodes the block entries of an inv or getdata message.
fn read_inventory(event: &event, mut add: impl FnMut((RawBlockHash, BlockEventKind))) {
    const MSG_BLOCK: u32 = 2;
    const MSG_CMPCT_BLOCK: u32 = 4;
    const MSG_WITNESS_FLAG: u32 = 1 << 30;
    let peer = event.peer;
    let mut bytes = MessageBytes(copied_bytes(event));
    if bytes.compact_size().is_none() {
        return;
    }
    while let (Some(inventory), Some(hash)) = (bytes.take().map(u32::from_le_bytes), bytes.take()) {
        let is_compact = match inventory & !MSG_WITNESS_FLAG {
            MSG_BLOCK => false,
            MSG_CMPCT_BLOCK => true,
            _ => continue,
        };
        let announced = BlockEventKind::Announced { peer, by: Announcement::Inv, header_time: None };
        let is_request = event.kind == kind::GETDATA;
        add((hash, if is_request { BlockEventKind::Requested { peer, is_compact } } else { announced }));
    }
}

/// The value of `field` for each direction and message type. Types that were not sent or received in a direction are
/// omitted.
fn by_type(
    directions: [(&'static str, &direction); 2],
    field: fn(&messages) -> u64,
) -> impl Iterator<Item = ([&'static str; 2], u64)> {
    directions.into_iter().flat_map(move |(direction, counts)| {
        let seen = maps::by_name(MESSAGE_TYPES, &counts.messages).filter(|(_, messages)| messages.number > 0);
        seen.map(move |(name, messages)| ([direction, name], field(messages)))
    })
}

/// One sample for each direction (`in` and `out`), whose value is the result of `value` for the counts of this
/// direction.
fn by_direction(
    directions: [(&'static str, &direction); 2],
    value: fn(&direction) -> HistogramValue,
) -> [([&'static str; 1], HistogramValue); 2] {
    directions.map(|(direction, counts)| ([direction], value(counts)))
}

/// Histogram of the entries in the inv messages of one direction. The sum of the entries is computed from the total
/// size of these messages, because the BPF programs do not count entries of inv messages.
fn inv_entries(counts: &direction) -> HistogramValue {
    let messages = &counts.messages[inv()];
    let long = INV_ENTRIES.bounds.iter().position(|bound| *bound > MAX_SHORT_INV).unwrap_or_default();
    let lengths = messages.number + 2 * counts.inv_sizes[long..].iter().sum::<u64>();
    INV_ENTRIES.to_histogram(messages.bytes.saturating_sub(lengths), counts.inv_sizes)
}

fn entries(buckets: &Buckets, counts: types::histogram) -> HistogramValue {
    buckets.to_histogram(counts.sum, counts.buckets)
}

/// Opened connections by direction, network and connection type. Inbound connections have the type `inbound`, and
/// outbound connections have one of the other types. Any other pair of direction and type is omitted unless it occurs.
fn opened_connections<'a>(
    directions: [(&'static str, &'a direction); 2],
) -> impl Iterator<Item = ([&'a str; 3], u64)> {
    let pairs = |(direction, counts): (&'static str, &'a direction)| {
        maps::by_name(NETWORKS, &counts.opened).flat_map(move |(network, opened)| {
            let types = maps::by_name(CONNECTION_TYPES, opened);
            types.map(move |(connection_type, opened)| ([direction, network, connection_type], *opened))
        })
    };
    let is_possible = |[direction, _, connection_type]: &[&str; 3]| {
        *connection_type != "other" && (*direction == "in") == (*connection_type == "inbound")
    };
    directions.into_iter().flat_map(pairs).filter(move |(labels, opened)| *opened > 0 || is_possible(labels))
}

/// Histograms of the ages of connections at their end, by direction and by the kind of end (`closed` or `evicted`).
/// Only inbound connections are evicted.
fn connection_ages(counts: &counts) -> [([&'static str; 2], HistogramValue); 3] {
    [
        (["in", "closed"], entries(&AGE, counts.inbound.closed_age_s)),
        (["out", "closed"], entries(&AGE, counts.outbound.closed_age_s)),
        (["in", "evicted"], entries(&AGE, counts.evicted_age_s)),
    ]
}

/// The label value for the reason for which the node marks a peer as misbehaving. The BPF programs have replaced each
/// digit by `N`; this function replaces a sequence of `N` by a single `N`.
fn reason_label(reason: &MisbehavingReason) -> String {
    let mut reason = maps::text(reason);
    while reason.contains("NN") {
        reason = reason.replace("NN", "N");
    }
    if reason.is_empty() { "none".into() } else { reason }
}

/// Number of open connections by direction. A direction is omitted until the BPF programs have determined how many of
/// its connections are open.
fn open_connections(connections: &connections) -> impl Iterator<Item = ([&'static str; 1], f64)> {
    let number =
        |open: types::open| open.before.value.saturating_add(open.opened as i64 - open.closed as i64);
    let directions = [("in", connections.inbound), ("out", connections.outbound)];
    let started = directions.into_iter().filter(|(_, open)| open.before.known != 0);
    started.map(move |(direction, open)| ([direction], number(open).max(0) as f64))
}

#[cfg(test)]
mod tests {
    // `kind` itself cannot be imported: assert_eq! has a variable of that name.
    use super::types::{self, event};
    use super::{Announcement, BlockEvent, BlockEventKind, maps, read_message};

    /// Decodes a message, truncated to the length that the BPF programs copy.
    fn read(kind: types::kind, message: &[u8]) -> Vec<BlockEvent> {
        let mut event = event { kind, size: message.len() as u32, ..event::default() };
        let length = message.len().min(event.bytes.len());
        event.bytes[..length].copy_from_slice(&message[..length]);
        let mut queue = Vec::new();
        read_message(&event, &mut queue);
        queue
    }

    /// The header of block 1 of mainnet.
    fn header() -> [u8; 80] {
        let header = "010000006fe28c0ab6f1b372c1a6a246ae63f74f931e8365e15a089c68d6190000000000982051fd1e4ba744bbbe680e1\
                      fee14677ba1a3c3540bf7b1cdb606e857233e0e61bc6649ffff001d01e36299";
        let byte = |index: usize| u8::from_str_radix(&header[2 * index..2 * index + 2], 16).unwrap();
        std::array::from_fn(byte)
    }

    const HASH: &str = "00000000839a8e6886ab5951d76f411475428afc90947ee320161bbf18eb6048";

    #[test]
    fn each_type_of_message_has_a_slot_of_its_own() {
        let slots = super::slots(super::multiplier());
        let mut numbers: Vec<_> = slots.into_iter().flatten().collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..crate::metrics::MESSAGE_TYPES.len()).collect::<Vec<_>>());
    }

    /// Repeats the lookup of `number_of_text` in fast_paths.h: every message type has its own index, and every other
    /// text has the index `OTHER`.
    #[test]
    fn text_of_no_type_has_the_number_of_the_others() {
        let (multiplier, slots) = (super::multiplier(), super::slots(super::multiplier()));
        let number = |text: &str| {
            let [first, second] = super::words(text);
            let slot = ((first ^ second).wrapping_mul(multiplier) >> 56) as usize;
            slots[slot].filter(|number| super::MESSAGE_TYPES[*number] == text).unwrap_or(super::OTHER)
        };
        for (expected, text) in super::MESSAGE_TYPES.iter().enumerate() {
            assert_eq!(number(text), expected);
            assert_eq!((number(&format!("{text}x")), number(&text[1..])), (super::OTHER, super::OTHER));
        }
        assert_eq!(number(""), super::OTHER);
    }

    #[test]
    fn numbers_of_all_lengths_have_the_same_reason() {
        let label = |text: &str| {
            let mut reason = [0; 136];
            reason[..text.len()].copy_from_slice(text.as_bytes());
            super::reason_label(&reason)
        };
        for text in ["inv message size = N", "inv message size = NNNNN", "inv message size = NNNNNNNN"] {
            assert_eq!(label(text), "inv message size = N");
        }
        assert_eq!((label("NN of NNN").as_str(), label("").as_str()), ("N of N", "none"));
        let known = super::MISBEHAVING_REASONS.map(label);
        assert_eq!(known.iter().collect::<std::collections::BTreeSet<_>>().len(), known.len());
    }

    #[test]
    fn header_hash_and_time_are_read() {
        let events = read(types::kind::HEADERS, &header());
        let [
            BlockEvent {
                hash,
                kind: BlockEventKind::Announced { by: Announcement::Headers, header_time: Some(time), .. },
                ..
            },
        ] = events[..]
        else {
            panic!("{}", events.len())
        };
        assert_eq!((maps::hash(&hash).as_str(), time), (HASH, 1_231_469_665));
    }

    #[test]
    fn compact_block_short_ids_are_counted() {
        for (count, ids) in [(&[5][..], 5), (&[0xfd, 0xc4, 0x09], 2500), (&[0], 0)] {
            let mut message = [&header()[..], &[0; 8], count].concat();
            message.resize(message.len() + 6 * ids + 1, 0);
            let events = read(types::kind::CMPCTBLOCK, &message);
            let [BlockEvent { kind: BlockEventKind::Compact { short_ids, .. }, .. }] = events[..] else {
                panic!("{ids}")
            };
            assert_eq!(short_ids, ids as u64);
        }
        // The short ID count of this message exceeds the number of transactions that a block can have.
        let message = [&header()[..], &[0; 8], &[0xff; 9]].concat();
        assert!(read(types::kind::CMPCTBLOCK, &message).is_empty());
    }

    #[test]
    fn transaction_number_and_bytes_are_read() {
        let message = [&[3; 32][..], &[0xfd, 0x00, 0x01], &[0; 1000]].concat();
        let events = read(types::kind::BLOCKTXN, &message);
        assert!(matches!(
            events[..],
            [BlockEvent { kind: BlockEventKind::TransactionsReceived { bytes: 1000, .. }, .. }]
        ));
        let events = read(types::kind::GETBLOCKTXN, &message);
        assert!(matches!(
            events[..],
            [BlockEvent { kind: BlockEventKind::TransactionsRequested { transactions: 256, .. }, .. }]
        ));
    }

    #[test]
    fn blocks_are_found_in_the_first_inventory_entries() {
        let entry = |kind: u32, hash: u8| [&kind.to_le_bytes()[..], &[hash; 32]].concat();
        for (entries, expected) in [
            ([entry(2, 1), entry(4 | 1 << 30, 2), entry(2, 3)], &[(1, false), (2, true)][..]),
            ([entry(2, 1), entry(1, 2), entry(1, 3)], &[(1, false)]),
        ] {
            let message = [vec![3], entries.concat()].concat();
            let hashes: Vec<_> = read(types::kind::GETDATA, &message)
                .iter()
                .map(|event| {
                    (event.hash[0], matches!(event.kind, BlockEventKind::Requested { is_compact: true, .. }))
                })
                .collect();
            assert_eq!(hashes, expected);
        }
    }

    #[test]
    fn truncated_messages_give_no_events() {
        let inventory = [&[1, 2, 0, 0, 0][..], &[9; 32]].concat();
        for (kind, message) in [
            (types::kind::HEADERS, &header()[..]),
            (types::kind::BLOCK, &header()[..]),
            (types::kind::CMPCTBLOCK, &[&header()[..], &[0; 9]].concat()),
            (types::kind::BLOCKTXN, &[0; 33]),
            (types::kind::GETBLOCKTXN, &[0; 33]),
            (types::kind::INV, &inventory),
        ] {
            assert_eq!(read(kind, message).len(), 1);
            for length in 0..message.len() {
                assert!(read(kind, &message[..length]).is_empty(), "{length}");
            }
        }
    }
}
