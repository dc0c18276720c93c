//! Names and notations that Bitcoin Core uses over IPC, in JSON and in tracepoints, and its chains.

use std::path::{Path, PathBuf};

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

/// The usual notation of a hash: its wire bytes in reverse order, in hexadecimal.
pub fn hash_text(hash: &[u8; 32]) -> String {
    hash.iter().rev().map(|byte| format!("{byte:02x}")).collect()
}

/// A chain of Bitcoin Core: its name, its directory, and its default port.
pub struct ChainParams {
    /// Name of the chain in `-chain` and in getblockchaininfo.
    pub name: &'static str,
    /// Directory of the chain below the data directory; empty for mainnet.
    pub(crate) folder: &'static str,
    /// Default port of JSON-RPC over HTTP.
    pub rpc_port: u16,
}

impl ChainParams {
    const fn new(name: &'static str, folder: &'static str, rpc_port: u16) -> Self {
        ChainParams { name, folder, rpc_port }
    }

    /// The chain with this name; mainnet if there is none.
    pub fn from_name(name: &str) -> &'static Self {
        CHAINS.iter().find(|chain| chain.name == name).unwrap_or(&CHAINS[0])
    }

    /// The chain whose directory contains this file; never mainnet, which has no directory of its own below the data directory.
    pub fn from_path(path: &Path) -> Option<&'static Self> {
        let folder = path.parent()?.file_name()?;
        CHAINS.iter().find(|chain| folder == chain.folder)
    }

    /// The directory in which a node on this chain has its socket and its cookie.
    pub fn folder(&self, datadir: &Path) -> PathBuf {
        datadir.join(self.folder)
    }
}

/// The chains of Bitcoin Core; mainnet is first.
pub static CHAINS: [ChainParams; 5] = [
    ChainParams::new("main", "", 8332),
    ChainParams::new("test", "testnet3", 18332),
    ChainParams::new("testnet4", "testnet4", 48332),
    ChainParams::new("signet", "signet", 38332),
    ChainParams::new("regtest", "regtest", 18443),
];

/// The default data directory of a node.
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
