//! Metrics of the node's P2P network: connections, traffic, connected peers, and known addresses of other nodes.

use serde_json::{Value, json};

use super::RateLimitedCalls;
use crate::collect::json::{count, flag, length, number};
use crate::collect::node_start::NodeIdentity;
use crate::collect::peers::{self, AnnouncementBacklog, NodeState};
use crate::ipc::{NETWORKS, Node, PeerDirection, PeerStats};
use crate::metrics::NetworkMetrics;

/// Reads the metrics of the P2P network, at each poll. `height` is the height of the node's tip, and `info` is the
/// response to getnetworkinfo.
pub async fn poll(calls: &mut RateLimitedCalls, height: Option<f64>, info: &Value) {
    let interfaces = calls.interfaces.clone();
    let node = interfaces.node.as_ref();
    let mut connections = Vec::new();
    for (direction, field) in [
        (PeerDirection::Both, "connections"),
        (PeerDirection::In, "connections_in"),
        (PeerDirection::Out, "connections_out"),
    ] {
        let peers = calls.call("Node.getNodeCount", node.map(|node| node.peers(direction))).await;
        connections.push(peers.map(|peers| peers as f64).or(number(info, field)));
    }
    let received = calls.call("Node.getTotalBytesRecv", node.map(Node::total_bytes_received)).await;
    let mut received = received.and_then(|total| u64::try_from(total).ok());
    let sent = calls.call("Node.getTotalBytesSent", node.map(Node::total_bytes_sent)).await;
    let mut sent = sent.and_then(|total| u64::try_from(total).ok());
    let totals = calls.rpc("getnettotals", json!([])).await;
    received = received.or(count(&totals, "totalbytesrecv"));
    sent = sent.or(count(&totals, "totalbytessent"));
    let mut peers = calls.call("Node.getNodesStats", node.map(Node::peer_stats)).await;
    if peers.is_none() {
        peers = peers::from_json(&calls.rpc("getpeerinfo", json!([])).await);
    }
    let addresses = calls.rpc("getaddrmaninfo", json!([])).await;
    let banned = calls.rpc("listbanned", json!([])).await;
    let added = calls.rpc("getaddednodeinfo", json!([])).await;

    let backlog = AnnouncementBacklog::from_json(info);
    if let Some(peers) = peers {
        show_peers(calls, &peers, backlog, height);
    }
    let metrics = &calls.metrics().network;
    metrics.peers.set(connections[0]);
    metrics.connections.replace_if_any([(["in"], connections[1]), (["out"], connections[2])]);
    metrics.bytes_received.set(received);
    metrics.bytes_sent.set(sent);
    metrics.inv_backlog.replace_if_any([(["in"], backlog.inbound), (["out"], backlog.outbound)]);
    metrics.tx_send_rate.set(number(info, "tx_send_rate"));
    let tokens = [("in", "inbound"), ("out", "outbound")].into_iter().flat_map(|(direction, field)| {
        [("transactions", "count_tok"), ("bytes", "size_tok")]
            .map(|(unit, tokens)| ([direction, unit], number(&info["inv_buckets"][field], tokens)))
    });
    metrics.inv_tokens.replace_if_any(tokens);
    metrics.clock_offset.set(number(info, "timeoffset"));
    show_upload_target(&totals["uploadtarget"], metrics);
    show_added_nodes(&added, metrics);
    metrics.banned.set(length(&banned));
    metrics.active.set(flag(info, "networkactive"));
    let reachable = info["networks"].as_array().into_iter().flatten().filter_map(|network| {
        let name = NETWORKS.iter().find(|name| network["name"] == **name)?;
        Some(([*name], flag(network, "reachable")))
    });
    metrics.reachable.replace_if_any(reachable);
    metrics.local_addresses.set(length(&info["localaddresses"]));
    let tables = NETWORKS.iter().flat_map(|network| ["new", "tried"].map(|table| [*network, table]));
    let samples = tables.map(|labels| (labels, number(&addresses[labels[0]], labels[1])));
    metrics.addresses.replace_if_any(samples);
}

/// Exports the metrics of the node's upload target, its daily limit of sent bytes (`-maxuploadtarget`). The node
/// returns a target of 0 if no upload target is configured.
fn show_upload_target(upload: &Value, metrics: &NetworkMetrics) {
    let Some(target) = count(upload, "target") else { return };
    let upload = Some(upload).filter(|_| target > 0);
    let of_target = |field| upload.and_then(|upload| flag(upload, field));
    for (gauge, value) in [
        (&metrics.upload_target, upload.map(|_| target as f64)),
        (&metrics.upload_left, upload.and_then(|upload| number(upload, "bytes_left_in_cycle"))),
        (&metrics.upload_reached, of_target("target_reached")),
        (&metrics.upload_historical, of_target("serve_historical_blocks")),
    ] {
        gauge.replace(value);
    }
}

/// Exports how many of the peers that the node's operator added with `addnode` are connected, and how many are
/// disconnected.
fn show_added_nodes(added: &Value, metrics: &NetworkMetrics) {
    let Some(added) = added.as_array() else { return };
    let connected = added.iter().filter(|node| node["connected"] == true).count();
    let states = [(["connected"], connected as f64), (["disconnected"], (added.len() - connected) as f64)];
    metrics.added_nodes.replace(states.into_iter().filter(|_| !added.is_empty()));
}

fn show_peers(
    calls: &mut RateLimitedCalls,
    peers: &[PeerStats],
    backlog: AnnouncementBacklog,
    height: Option<f64>,
) {
    let state = &mut *calls.context.persistent_state.borrow_mut();
    // If an earlier poll of this IPC connection has exported peers, the earlier and the current peers were reported by
    // the same node process, because all responses on one IPC connection come from one process.
    let is_same = calls.showed_peers && !calls.interfaces.is_http_only();
    let identity = state.node_start.take_identity();
    let identity = if is_same { NodeIdentity::Same } else { identity };
    let node = NodeState { backlog, height, identity };
    state.peers.show(peers, node, &calls.context.metrics.network);
    calls.showed_peers = true;
}
