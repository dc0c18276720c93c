//! Names and notations that Bitcoin Core uses over IPC, in JSON and in tracepoints.

/// Names of the values of Core's `Network`, in its order, as in getpeerinfo.
pub const NETWORKS: [&str; 7] =
    ["not_publicly_routable", "ipv4", "ipv6", "onion", "i2p", "cjdns", "internal"];
/// Names of the values of Core's `ConnectionType`, in its order, as in getpeerinfo.
pub const CONNECTION_TYPES: [&str; 7] = [
    "inbound",
    "outbound-full-relay",
    "manual",
    "feeler",
    "block-relay-only",
    "addr-fetch",
    "private-broadcast",
];
/// Names of the values of Core's `TransportProtocolType`, in its order, as in getpeerinfo.
pub const TRANSPORTS: [&str; 3] = ["detecting", "v1", "v2"];

/// Reasons why a transaction left the mempool: names of the values of Core's `MemPoolRemovalReason`, in its order, as in
/// `mempool:removed`.
pub const REMOVAL_REASONS: [&str; 6] = ["expiry", "sizelimit", "reorg", "block", "conflict", "replaced"];

/// Reasons for which peers misbehave, as in `net:misbehaving_connection`, with `N` for a number. Core gives an empty reason for most invalid
/// blocks.
pub const MISBEHAVING_REASONS: [&str; 18] = [
    "",
    "addr message size = N",
    "addrv2 message size = N",
    "bad filteradd message",
    "getblocktxn with out-of-bounds tx indices",
    "getdata message size = N",
    "header with invalid proof of work",
    "headers message size = N",
    "inv message size = N",
    "invalid compact block",
    "invalid compact block/non-matching block transactions",
    "invalid header received",
    "invalid header via cmpctblock",
    "invalid sendcmpct announce field",
    "mutated block",
    "non-continuous headers sequence",
    "previous compact block reconstruction attempt failed",
    "too-large bloom filter",
];

/// The usual notation of a hash: its wire bytes in reverse order, in hexadecimal.
pub fn hash_text(hash: &[u8; 32]) -> String {
    hash.iter().rev().map(|byte| format!("{byte:02x}")).collect()
}
