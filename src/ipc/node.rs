//! Node: state of the mempool and the network, and statistics of each peer.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::connection::{BoundCapability, call};
use super::{BlockHash, CallError};
use crate::schema::node_capnp::{node, node_stats};

/// One peer's statistics, whichever call they came from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeerStats {
    /// The node's number for the peer; the same process never uses it again.
    pub id: i64,
    /// When it connected, Unix seconds by the node's clock of then.
    pub connected: i64,
    /// `ipv4`, `onion` and so on, as getpeerinfo names them.
    pub network: &'static str,
    /// Its IP address, if it has one. The node does not report that of a peer that was added by name (`-addnode=host`).
    pub address: Option<IpAddr>,
    /// The autonomous system of the address, if the node has a map of them (`-asmap`).
    pub mapped_as: Option<u32>,
    /// `inbound`, `outbound-full-relay` and so on, as getpeerinfo names them.
    pub connection_type: &'static str,
    /// `v1`, `v2` or `detecting`.
    pub transport: &'static str,
    /// Protocol version; 0 before the peer has sent it.
    pub version: i64,
    /// The last ping's round trip.
    pub ping: Option<Duration>,
    /// The shortest round trip.
    pub min_ping: Option<Duration>,
    /// How long a ping has been unanswered.
    pub ping_wait: Option<Duration>,
    /// We chose the peer for high-bandwidth compact blocks.
    pub high_bandwidth_to: bool,
    /// The peer chose us for high-bandwidth compact blocks.
    pub high_bandwidth_from: bool,
    /// The peer takes part in address relay.
    pub addr_relay: bool,
    /// How many of the peer's addresses were dropped because it sent too many, if the call has it.
    pub addresses_rate_limited: Option<u64>,
    /// Transactions that wait to be announced to the peer, if the call has it.
    pub inv_to_send: Option<u64>,
    /// The peer's clock against ours, in seconds.
    pub time_offset: i64,
    /// Heights of the blocks that we are downloading from the peer.
    pub blocks_in_flight: Vec<i64>,
    /// We announce transactions to the peer, if the call has it.
    pub relays_transactions: bool,
    /// The feerate below which the peer wants no transactions, BTC/kvB, if the call has it.
    pub min_fee_filter: Option<f64>,
    /// Bytes sent to the peer, by message type.
    pub sent: Vec<(String, u64)>,
    /// Bytes received from the peer, by message type.
    pub received: Vec<(String, u64)>,
}

pub use crate::bitcoin_core::{CONNECTION_TYPES, NETWORKS, TRANSPORTS};

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
            peer.addresses_rate_limited = Some(state.get_addresses_rate_limited());
            peer.time_offset = state.get_time_offset();
            peer.blocks_in_flight = state.get_height_in_flight()?.iter().map(i64::from).collect();
        }
        Ok(peer)
    }
}

/// Of an address with a port, as the node writes it.
pub fn ip_address(text: &str) -> Option<IpAddr> {
    text.parse::<SocketAddr>().ok().map(|address| address.ip())
}

/// The node returns 0 or its largest value before the first measurement.
fn microseconds(value: i64) -> Option<Duration> {
    (value != i64::MAX)
        .then(|| u64::try_from(value).ok().filter(|&value| value > 0).map(Duration::from_micros))?
}

/// Which peers [`Node::peers`] counts, as Core's `ConnectionDirection`.
#[derive(Clone, Copy)]
pub enum PeerDirection {
    /// Connections that peers opened.
    In = 1,
    /// Connections that we opened.
    Out = 2,
    /// All.
    Both = 3,
}

/// The Node interface.
pub struct Node(pub(super) BoundCapability<node::Client>);

/// A method that takes only the context and has one plain result.
macro_rules! plain {
    ($($(#[$doc:meta])* $name:ident = $request:ident -> $type:ty;)*) => {
        $($(#[$doc])* pub async fn $name(&self) -> Result<$type, CallError> {
            Ok(call!(self.0, $request)?.get()?.get_result())
        })*
    };
}

impl Node {
    plain! {
        /// Bytes received from peers since the node started.
        total_bytes_received = get_total_bytes_recv_request -> i64;
        /// Bytes sent to peers since the node started.
        total_bytes_sent = get_total_bytes_sent_request -> i64;
        /// Transactions in the mempool.
        mempool_size = get_mempool_size_request -> u64;
        /// Bytes of memory that the mempool uses.
        mempool_usage = get_mempool_dynamic_usage_request -> u64;
        /// Bytes of memory that the mempool may use.
        mempool_max_usage = get_mempool_max_usage_request -> u64;
        /// Time in the tip's header, Unix seconds.
        last_block_time = get_last_block_time_request -> i64;
        /// 0 to 1.
        verification_progress = get_verification_progress_request -> f64;
        /// Whether the node is in initial block download.
        is_initial_block_download = is_initial_block_download_request -> bool;
    }

    /// Hash of the tip.
    pub async fn best_block_hash(&self) -> Result<BlockHash, CallError> {
        call!(self.0, get_best_block_hash_request)?.get()?.get_result()?.try_into()
    }

    /// Connected peers.
    pub async fn peers(&self, direction: PeerDirection) -> Result<u64, CallError> {
        Ok(call!(self.0, get_node_count_request, |params| params.set_flags(direction as i32))?
            .get()?
            .get_result())
    }

    /// Height of the best known header.
    pub async fn header_height(&self) -> Result<Option<i32>, CallError> {
        let answer = call!(self.0, get_header_tip_request)?;
        let answer = answer.get()?;
        Ok(answer.get_result().then(|| answer.get_height()))
    }

    /// Each peer's statistics.
    pub async fn peer_stats(&self) -> Result<Vec<PeerStats>, CallError> {
        let answer = call!(self.0, get_nodes_stats_request)?;
        answer.get()?.get_stats()?.iter().map(PeerStats::read).collect()
    }
}
