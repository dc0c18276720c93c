//! Names of enum values and the hash notation that Bitcoin Core uses over IPC, in JSON and in tracepoints, and the
//! chains of Bitcoin Core.

use std::path::{Path, PathBuf};

/// File names of the binaries that run a node.
pub const BINARIES: [&str; 4] = ["bitcoin-node", "bitcoind", "bitcoin-qt", "bitcoin-gui"];

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

/// Reasons for which the node marks a peer as misbehaving, as the tracepoint `net:misbehaving_connection` passes them,
/// with `N` in place of each number. Core gives an empty reason for most invalid blocks.
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

/// Formats a hash in the usual notation: the bytes on the wire, in reverse order and in hexadecimal.
pub fn hash_text(hash: &[u8; 32]) -> String {
    hash.iter().rev().map(|byte| format!("{byte:02x}")).collect()
}

/// Parameters of one of Bitcoin Core's chains: its name, its directory, and its default RPC port.
pub struct ChainParams {
    /// Name of the chain in `-chain` and in getblockchaininfo.
    pub name: &'static str,
    /// Directory of the chain below the data directory; empty for mainnet.
    pub(crate) folder: &'static str,
    /// Default port of JSON-RPC over HTTP.
    pub rpc_port: u16,
}

impl ChainParams {
    /// The chain with this name; mainnet if no chain has this name.
    pub fn from_name(name: &str) -> &'static Self {
        CHAINS.iter().find(|chain| chain.name == name).unwrap_or(&CHAINS[0])
    }

    /// The chain whose directory contains this file. Never returns mainnet, because mainnet's files are directly in the
    /// data directory.
    pub fn from_path(path: &Path) -> Option<&'static Self> {
        let folder = path.parent()?.file_name()?;
        CHAINS.iter().find(|chain| folder == chain.folder)
    }

    /// The directory in which a node on this chain creates its IPC socket and its RPC cookie.
    pub fn folder(&self, datadir: &Path) -> PathBuf {
        datadir.join(self.folder)
    }
}

/// The chains of Bitcoin Core; mainnet is first.
pub static CHAINS: [ChainParams; 5] = [
    ChainParams { name: "main", folder: "", rpc_port: 8332 },
    ChainParams { name: "test", folder: "testnet3", rpc_port: 18332 },
    ChainParams { name: "testnet4", folder: "testnet4", rpc_port: 48332 },
    ChainParams { name: "signet", folder: "signet", rpc_port: 38332 },
    ChainParams { name: "regtest", folder: "regtest", rpc_port: 18443 },
];

/// The default data directory of a node: `~/.bitcoin`.
pub fn default_datadir() -> PathBuf {
    std::env::home_dir().unwrap_or("/".into()).join(".bitcoin")
}

#[cfg(test)]
#[test]
fn each_chain_has_its_folder() {
    let datadir = Path::new("/d");
    let folder = |chain| ChainParams::from_name(chain).folder(datadir);
    assert_eq!(folder("main"), Path::new("/d/"));
    assert_eq!(folder("test"), Path::new("/d/testnet3"));
    assert_eq!(folder("regtest"), Path::new("/d/regtest"));
    let chain_of = |path: &str| ChainParams::from_path(Path::new(path)).map(|chain| chain.name);
    assert_eq!(chain_of("/d/testnet3/node.sock"), Some("test"));
    assert_eq!((chain_of("/d/node.sock"), chain_of("/node.sock"), chain_of("node.sock")), (None, None, None));
}
