//! Names of enum values and the hash notation that Bitcoin Core uses over IPC, in JSON and in tracepoints.

/// Names of the values of Bitcoin Core's enum `Network`, in the order of the enum, as getpeerinfo returns them.
pub const NETWORKS: [&str; 7] =
    ["not_publicly_routable", "ipv4", "ipv6", "onion", "i2p", "cjdns", "internal"];
/// Names of the values of Bitcoin Core's enum `ConnectionType`, in the order of the enum, as getpeerinfo returns them.
pub const CONNECTION_TYPES: [&str; 7] = [
    "inbound",
    "outbound-full-relay",
    "manual",
    "feeler",
    "block-relay-only",
    "addr-fetch",
    "private-broadcast",
];
/// Names of the values of Bitcoin Core's enum `TransportProtocolType`, in the order of the enum, as getpeerinfo returns
/// them.
pub const TRANSPORTS: [&str; 3] = ["detecting", "v1", "v2"];

/// Reasons for which a transaction is removed from the mempool: names of the values of Bitcoin Core's enum
/// `MemPoolRemovalReason`, in the order of the enum, as the tracepoint `mempool:removed` passes them.
pub const REMOVAL_REASONS: [&str; 6] = ["expiry", "sizelimit", "reorg", "block", "conflict", "replaced"];

/// The usual notation of a hash: its bytes on the wire, in reverse order and in hexadecimal.
pub fn hash_text(hash: &[u8; 32]) -> String {
    hash.iter().rev().map(|byte| format!("{byte:02x}")).collect()
}
