//! Client of the node's Node interface: state of the node's mempool and network, and statistics of each P2P peer.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::connection::{BoundCapability, call, plain};
use super::{BlockHash, CallError};
use crate::schema::node_capnp::{node, node_stats};

/// Statistics of one P2P peer of the node, from the IPC method `Node.getNodesStats` or the JSON-RPC method
/// `getpeerinfo`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeerStats {
    /// The node's ID for the peer. A node does not reuse an ID until the node restarts.
    pub id: i64,
    /// Time at which the peer connected, in Unix seconds of the node's clock.
    pub connected: i64,
    /// Network of the peer, named as in getpeerinfo, for example `ipv4` or `onion`.
    pub network: &'static str,
    /// IP address of the peer, if the peer has an IP address and the node reports the address. The node reports no
    /// address for a peer that was added by host name (`-addnode=host`).
    pub address: Option<IpAddr>,
    /// Number of the autonomous system (AS) of the peer's address, if the node uses an AS map (`-asmap`).
    pub mapped_as: Option<u32>,
    /// Connection type, named as in getpeerinfo, for example `inbound` or `outbound-full-relay`.
    pub connection_type: &'static str,
    /// P2P transport protocol: `v1`, `v2` or `detecting`.
    pub transport: &'static str,
    /// P2P protocol version; 0 before the peer has sent its `version` message.
    pub version: i64,
    /// User agent in the peer's `version` message; empty before the peer has sent this message.
    pub subversion: String,
    /// Services that the peer offers: bits of Core's `ServiceFlags`; `None` if the node's response does not contain
    /// them.
    pub services: Option<u64>,
    /// Height of the best block that the peer has announced and whose header the node has; `None` if there is no such
    /// block.
    pub best_header: Option<i64>,
    /// Round-trip time of the last ping to the peer.
    pub ping: Option<Duration>,
    /// Shortest round-trip time of all pings to the peer.
    pub min_ping: Option<Duration>,
    /// Time since the node sent a ping that the peer has not answered yet; `None` if no ping is unanswered.
    pub ping_wait: Option<Duration>,
    /// Whether the node selected the peer as a BIP 152 high-bandwidth peer.
    pub high_bandwidth_to: bool,
    /// Whether the peer selected the node as a BIP 152 high-bandwidth peer.
    pub high_bandwidth_from: bool,
    /// Whether the node relays addresses of other nodes to the peer and accepts addresses from the peer.
    pub addr_relay: bool,
    /// Number of addresses from the peer that the node has processed; `None` if the call that returned these statistics
    /// does not report the number.
    pub addresses_processed: Option<u64>,
    /// Number of addresses from the peer that the node dropped because of its rate limit; `None` if the call that
    /// returned these statistics does not report the number.
    pub addresses_rate_limited: Option<u64>,
    /// Number of transactions that the node has yet to announce to the peer; `None` if the call that returned these
    /// statistics does not report the number.
    pub inv_to_send: Option<u64>,
    /// The peer's clock minus the node's clock, in seconds.
    pub time_offset: i64,
    /// Heights of the blocks that the node is downloading from the peer.
    pub blocks_in_flight: Vec<i64>,
    /// Whether the node announces transactions to the peer; false if the call that returned these statistics does not
    /// report this setting.
    pub relays_transactions: bool,
    /// The peer's minimum fee rate for transactions (BIP 133 `feefilter`), in BTC/kvB; `None` if the call that returned
    /// these statistics does not report the fee rate.
    pub min_fee_filter: Option<f64>,
    /// Bytes sent to the peer, by message type.
    pub sent: Vec<(String, u64)>,
    /// Bytes received from the peer, by message type.
    pub received: Vec<(String, u64)>,
}

pub use crate::bitcoin_core::{CONNECTION_TYPES, NETWORKS, TRANSPORTS};

/// The element of `names` at this index, or `other` if the index is out of range.
fn name(names: &[&'static str], index: i32) -> &'static str {
    usize::try_from(index).ok().and_then(|index| names.get(index)).unwrap_or(&"other")
}

impl PeerStats {
    /// Whether the peer opened the connection.
    pub fn is_inbound(&self) -> bool {
        self.connection_type == CONNECTION_TYPES[0]
    }

    fn read(stats: node_stats::Reader) -> Result<Self, CallError> {
        let by_type = |list: capnp::struct_list::Reader<
            crate::schema::common_capnp::pair_u_int64::Owned<capnp::text::Owned>,
        >|
         -> Result<Vec<(String, u64)>, CallError> {
            list.iter().map(|pair| Ok((pair.get_key()?.to_string()?, pair.get_value()))).collect()
        };
        let mut peer = PeerStats {
            id: stats.get_nodeid(),
            connected: stats.get_time_connected(),
            network: name(&NETWORKS, stats.get_network()),
            address: ip_address(stats.get_addr_name()?.to_str()?),
            mapped_as: Some(stats.get_mapped_as()).filter(|&number| number > 0),
            connection_type: name(&CONNECTION_TYPES, stats.get_conn_type()),
            transport: name(&TRANSPORTS, stats.get_transport_type().into()),
            version: stats.get_version().into(),
            subversion: stats.get_clean_sub_ver()?.to_string()?,
            ping: microseconds(stats.get_ping_time()),
            min_ping: microseconds(stats.get_min_ping_time()),
            high_bandwidth_to: stats.get_bip152_highbandwidth_to(),
            high_bandwidth_from: stats.get_bip152_highbandwidth_from(),
            sent: by_type(stats.get_send_bytes_per_msg_type()?)?,
            received: by_type(stats.get_recv_bytes_per_msg_type()?)?,
            ..PeerStats::default()
        };
        if stats.has_state_stats() {
            let state = stats.get_state_stats()?;
            peer.ping_wait = microseconds(state.get_ping_wait());
            peer.addr_relay = state.get_address_relay_enabled();
            peer.best_header = Some(i64::from(state.get_sync_height())).filter(|height| *height >= 0);
            peer.services = Some(state.get_their_services());
            peer.addresses_processed = Some(state.get_addresses_processed());
            peer.addresses_rate_limited = Some(state.get_addresses_rate_limited());
            peer.time_offset = state.get_time_offset();
            peer.blocks_in_flight = state.get_height_in_flight()?.iter().map(i64::from).collect();
        }
        Ok(peer)
    }
}

/// Parses a peer address of the form `IP:port` or `[IPv6]:port`, and returns the IP address. `None` for a host name or
/// an onion address.
pub fn ip_address(text: &str) -> Option<IpAddr> {
    text.parse::<SocketAddr>().ok().map(|address| address.ip())
}

/// Converts a number of microseconds to a duration. The node returns 0 or `i64::MAX` before the first measurement; both
/// values are converted to `None`.
fn microseconds(value: i64) -> Option<Duration> {
    (value != i64::MAX)
        .then(|| u64::try_from(value).ok().filter(|&value| value > 0).map(Duration::from_micros))?
}

/// Direction of the peer connections that [`Node::peers`] counts. The discriminants are the values of Core's
/// `ConnectionDirection`.
#[derive(Clone, Copy)]
pub enum PeerDirection {
    /// Inbound connections, which peers opened.
    In = 1,
    /// Outbound connections, which the node opened.
    Out = 2,
    /// Connections in both directions.
    Both = 3,
}

/// Client of a node's Node interface, with the node's thread that runs the calls.
pub type Node = BoundCapability<node::Client>;

impl Node {
    plain! {
        /// Bytes received from peers since the node started.
        total_bytes_received = get_total_bytes_recv_request -> i64;
        /// Bytes sent to peers since the node started.
        total_bytes_sent = get_total_bytes_sent_request -> i64;
        /// Number of transactions in the mempool.
        mempool_size = get_mempool_size_request -> u64;
        /// Bytes of memory that the mempool uses.
        mempool_usage = get_mempool_dynamic_usage_request -> u64;
        /// Maximum memory of the mempool, in bytes (`-maxmempool`).
        mempool_max_usage = get_mempool_max_usage_request -> u64;
        /// Timestamp in the header of the tip, Unix seconds.
        last_block_time = get_last_block_time_request -> i64;
        /// Core's estimate of the verified fraction of the chain, from 0 to 1.
        verification_progress = get_verification_progress_request -> f64;
        /// Whether the node is in initial block download.
        is_initial_block_download = is_initial_block_download_request -> bool;
    }

    /// Hash of the tip.
    ///
    /// # Errors
    /// The node does not respond in time, returns an error, or closes the connection ([`CallError`]).
    pub async fn best_block_hash(&self) -> Result<BlockHash, CallError> {
        call!(self, get_best_block_hash_request)?.get()?.get_result()?.try_into()
    }

    /// Number of peers that are connected in this direction.
    ///
    /// # Errors
    /// The node does not respond in time, returns an error, or closes the connection ([`CallError`]).
    pub async fn peers(&self, direction: PeerDirection) -> Result<u64, CallError> {
        Ok(call!(self, get_node_count_request, |params| params.set_flags(direction as i32))?
            .get()?
            .get_result())
    }

    /// Height of the best known header; `None` if the node has no header.
    ///
    /// # Errors
    /// The node does not respond in time, returns an error, or closes the connection ([`CallError`]).
    pub async fn header_height(&self) -> Result<Option<i32>, CallError> {
        let answer = call!(self, get_header_tip_request)?;
        let answer = answer.get()?;
        Ok(answer.get_result().then(|| answer.get_height()))
    }

    /// Statistics of each connected peer.
    ///
    /// # Errors
    /// The node does not respond in time, returns an error, or closes the connection ([`CallError`]).
    pub async fn peer_stats(&self) -> Result<Vec<PeerStats>, CallError> {
        let answer = call!(self, get_nodes_stats_request)?;
        answer.get()?.get_stats()?.iter().map(PeerStats::read).collect()
    }
}
