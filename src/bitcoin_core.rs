//! Names and notations of Bitcoin Core, over IPC, in JSON and in tracepoints.

/// Names of Core's `Network`, in its order; as getpeerinfo gives them.
pub const NETWORKS: [&str; 7] =
    ["not_publicly_routable", "ipv4", "ipv6", "onion", "i2p", "cjdns", "internal"];
/// Names of Core's `ConnectionType`, in its order; as getpeerinfo gives them.
pub const CONNECTION_TYPES: [&str; 7] = [
    "inbound",
    "outbound-full-relay",
    "manual",
    "feeler",
    "block-relay-only",
    "addr-fetch",
    "private-broadcast",
];
/// Names of Core's `TransportProtocolType`, in its order; as getpeerinfo gives them.
pub const TRANSPORTS: [&str; 3] = ["detecting", "v1", "v2"];

/// Why a transaction left the mempool: names of Core's `MemPoolRemovalReason`, in its order; as `mempool:removed` gives them.
pub const REMOVAL_REASONS: [&str; 6] = ["expiry", "sizelimit", "reorg", "block", "conflict", "replaced"];

/// A hash as users write it: the bytes of the wire in reverse order, in hexadecimal.
pub fn hash_text(hash: &[u8; 32]) -> String {
    hash.iter().rev().map(|byte| format!("{byte:02x}")).collect()
}
