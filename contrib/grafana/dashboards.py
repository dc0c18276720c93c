#!/usr/bin/env python3
"""Writes the JSON files of the dashboards. With `--check`, only compares the files with the dashboards in this script. Needs the
packages in requirements.txt.

A panel has a title, a unit, a description, and a legend for each expression. In an expression, `{*}` selects the job, exporter
and node that are chosen on the dashboard, `{*,x="y"}` also selects a label, and `{@}` selects only the node, for series of the
other exporter.
"""

import pathlib
import sys

from panels import OUR_ALERTS, bars, build, columns, encoded, graph, heatmap, logs, number, rows, text_of_label
from propagation import propagation

FOLDER = pathlib.Path(__file__).parent / "dashboards"
UP = {0: ("down", "red"), 1: ("up", "green")}
YES = {0: ("no", "green"), 1: ("yes", "orange")}


def rate(metric, labels="", by=""):
    """Expression for the rate per second of a counter, for each node and exporter, and by further labels."""
    return f"sum by ({','.join(['node', 'instance', by]).rstrip(',')}) (rate({metric}{{*{labels}}}[$__rate_interval]))"


# Blocks arrive every ten minutes on average. The dashboards therefore count events of blocks over an hour, because many
# shorter windows contain no event.


def hourly(metric, by=""):
    """Expression for the increase of a counter within an hour, for each node and exporter, and by further labels. The result is
    rounded, because increase() extrapolates."""
    return f"round(sum by ({','.join(['node', 'instance', by]).rstrip(',')}) (increase({metric}{{*}}[1h])))"


def quantiles(metric, by="", window="1d"):
    """Expressions for the median and the tail of a histogram over a day, for each node and exporter, and by a label. (An hour
    would be too short for quantiles over blocks, because it has only six blocks.)"""
    grouping = ",".join(["le", "node", "instance", by]).rstrip(",")
    legend = "{{node}} {{%s}}" % by if by else "{{node}}"
    return {
        f"{legend} p{quantile:.0%}".replace("%", ""):
            f"histogram_quantile({quantile}, sum by ({grouping}) (rate({metric}_bucket{{*}}[{window}])))"
        for quantile in [0.5, 0.9, 0.99]
    }


def mean(metric):
    """Expression for the mean of a histogram over an hour."""
    return f"increase({metric}_sum{{*}}[1h]) / increase({metric}_count{{*}}[1h])"


NAME = "{{node}}"

NODE = {
    "At a glance": [
        number("Node", "none", "State of the node: up if the exporter's connection works and its last poll succeeded; down also "
               "while Prometheus cannot scrape the exporter.", {NAME: "bitcoin_up{*} or up{*} == 0"}, words=UP),
        number("Firing alerts", "none", "Number of alerts of the rules that fire for the selected nodes. See docs/alerts.md for the remedies.",
               {"firing": f"count(ALERTS{{{OUR_ALERTS}}}) or vector(0)"}, steps=[(1, "orange")]),
        number("Tip age", "s", "Age of the timestamp in the tip's header, which its miner chose. Mainnet has a block every 10 "
               "minutes on average.", {NAME: "time() - bitcoin_tip_timestamp_seconds{*}"},
               steps=[(3600, "orange"), (7200, "red")]),
        number("Height", "none", "Height of the tip of the active chain.", {NAME: "bitcoin_chain_height{*}"}, history=True),
        number("Outbound peers", "none", "Connections opened by the node, 10 by default. Without outbound peers, the node "
               "receives only the data that inbound peers choose to send.", {NAME: 'bitcoin_connections{*,direction="out"}'},
               steps=[(None, "red"), (1, "orange"), (8, "green")]),
        number("Headers ahead", "none", "Headers whose blocks are not connected yet.",
               {NAME: "bitcoin_header_height{*} - bitcoin_chain_height{*}"}, steps=[(2, "orange"), (10, "red")]),
        number("Mempool full", "percentunit", "Memory of the mempool, as a share of its limit (`-maxmempool`).",
               {NAME: "bitcoin_mempool_bytes{*} / bitcoin_mempool_max_bytes{*}"},
               steps=[(0.8, "orange"), (0.98, "red")]),
        number("Mempool", "short", "Transactions in the mempool.", {NAME: "bitcoin_mempool_size{*}"}),
        number("Peers", "none", "Connected peers, inbound and outbound.", {NAME: "bitcoin_peers{*}"}),
        number("Initial block download", "none", "Initial block download: yes while the node catches up with the chain.",
               {NAME: "bitcoin_ibd{*}"}, words=YES),
        number("Sync", "percentunit", "Estimated share of verified transactions of the chain.",
               {NAME: "bitcoin_verification_progress{*}"}),
        number("Warnings", "none", "Number of the node's warnings, without the warning of a pre-release build. `bitcoin-cli "
               "getnetworkinfo` shows the text of the warnings.", {NAME: 'sum by (node,instance) (bitcoin_warnings{*,kind!="pre_release"})'}, steps=[(1, "orange")]),
        number("Uptime", "s", "Time since the node started.", {NAME: "bitcoin_node_uptime_seconds{*}"}),
        text_of_label("Version", "User agent of the node.", "subversion", "bitcoin_node_info{*}", span=20),
    ],
    "Chain": [
        graph("Blocks", "none", "Blocks connected and disconnected within an hour. Disconnected blocks mean a reorganization.",
              {"{{node}} connected": "round(increase(bitcoin_blocks_connected_total{*}[1h]))",
               "{{node}} disconnected": "round(increase(bitcoin_blocks_disconnected_total{*}[1h]))"}),
        graph("Tip age", "s", "Age of the timestamp in the tip's header. Each block resets the age.",
              {NAME: "time() - bitcoin_tip_timestamp_seconds{*}"}),
        graph("Chain tips", "none", "Tips of the block tree by status: the active chain and the forks that the node has seen.",
              {"{{node}} {{status}}": "bitcoin_chain_tips{*}"}),
        graph("Index lag", "none", "Blocks by which each optional index is behind the chain.",
              {"{{node}} {{index}}": "bitcoin_chain_height{*} - on (job,instance,node) group_right () bitcoin_index_height{*}"}),
    ],
    "Mempool": [
        graph("Transactions", "short", "Transactions in the mempool.", {NAME: "bitcoin_mempool_size{*}"}),
        graph("Memory", "bytes", "Memory of the mempool, and its limit (`-maxmempool`).",
              {"{{node}} used": "bitcoin_mempool_bytes{*}", "{{node}} limit": "bitcoin_mempool_max_bytes{*}"}),
        graph("Fees in the mempool", "si:sat", "Total fees of all transactions in the mempool.",
              {NAME: "bitcoin_mempool_fees_satoshis{*}"}),
        graph("In and out", "cps", "Transactions added to and removed from the mempool per second. Needs the Chain "
              "interface, or bitcoind-usdt-exporter.",
              {"{{node}} added": rate("bitcoin_mempool_tx_added_total"),
               "{{node}} {{reason}}": rate("bitcoin_mempool_tx_removed_total", by="reason")}),
    ],
    "Fees": [
        graph("Fee estimates", "suffix: sat/vB", "The node's estimate of the fee rate for confirmation within the given number of blocks; absent without an estimate.",
              {"{{node}} {{blocks}} blocks": "bitcoin_fee_estimate_sat_per_vbyte{*}"}),
        graph("Minimum fee rate", "suffix: sat/vB", "Lowest fee rate that the mempool accepts. The fee rate rises when the mempool is full.",
              {NAME: "bitcoin_mempool_min_feerate_sat_per_vbyte{*}"}),
    ],
    "Peers": [
        graph("Connections", "none", "Connected peers by direction: in (opened by the peer) or out (opened by the node).",
              {"{{node}} {{direction}}": "bitcoin_connections{*}", "{{node}} all": "bitcoin_peers{*}"}),
        graph("By network", "none", "Connected peers by network.",
              {"{{node}} {{network}}": "sum by (node,instance,network) (bitcoin_peers_by{*})"}, stacked=True),
        graph("Ping", "s", "Last ping time of the connected peers: median, 90th percentile, slowest.",
              {"{{node}} p{{percentile}}": "bitcoin_peer_ping_seconds{*}"}),
        graph("Download", "none", "Blocks in flight, and the number of peers that send them.",
              {"{{node}} blocks": "bitcoin_blocks_in_flight{*}",
               "{{node}} peers": "bitcoin_peers_with_blocks_in_flight{*}"}),
        graph("Largest group", "none", "Peers in the largest group of addresses: an IPv4 /16 or IPv6 /32, or an autonomous system (with "
              "`-asmap`). A large group can mean that one operator surrounds the node (an eclipse attack).",
              {"{{node}} {{direction}} {{by}}": "bitcoin_peers_largest_group{*}"}),
        graph("Announcements queued", "none", "Transactions waiting to be announced: the sum over all peers, and the maximum for one "
              "peer. Needs Bitcoin Core 31 and JSON-RPC.", {"{{node}} {{statistic}}": "bitcoin_peers_inv_to_send{*}"}),
    ],
    "Chain in detail": [
        graph("Tip changes", "none", "Changes of the tip within an hour.",
              {"{{node}} changes": "round(increase(bitcoin_tip_updates_total{*}[1h]))"}),
        graph("Verification progress", "percentunit", "Estimated share of verified transactions of the chain.",
              {NAME: "bitcoin_verification_progress{*}"}),
        graph("Difficulty", "sishort", "Proof-of-work difficulty of the tip.", {NAME: "bitcoin_difficulty{*}"}),
        graph("Hashrate", "Hs", "Hash rate, estimated from the last 144 blocks (a day) and 2016 blocks (a difficulty period).",
              {"{{node}} {{blocks}} blocks": "bitcoin_hashrate_estimate{*}"}),
        graph("Size on disk", "bytes", "Size of the block and undo files.", {NAME: "bitcoin_chain_size_bytes{*}"}),
    ],
    "Mempool in detail": [
        graph("Virtual size", "si:vB", "Virtual size of the mempool's transactions. A block has room for 1 MvB.",
              {NAME: "bitcoin_mempool_vbytes{*}"}),
        graph("Not yet relayed", "none", "The node's own transactions that no peer has requested yet.",
              {NAME: "bitcoin_mempool_unbroadcast{*}"}),
        graph("Orphans", "none", "Orphan transactions waiting for their parents. Needs Bitcoin Core 29.",
              {NAME: "bitcoin_orphan_transactions{*}"}),
        graph("Private broadcast", "none", "The node's own transactions sent over separate connections "
              "(`-privatebroadcast`) that no other peer has announced back yet. Needs Bitcoin Core 31.",
              {NAME: "bitcoin_private_broadcast_pending{*}"}),
    ],
    "Peers in detail": [
        graph("By type", "none", "Connected peers by type of connection.",
              {"{{node}} {{connection_type}}": "sum by (node,instance,connection_type) (bitcoin_peers_by{*})"},
              stacked=True),
        graph("By transport", "none", "Connected peers by transport protocol: v2 is encrypted.",
              {"{{node}} {{transport}}": "sum by (node,instance,transport) (bitcoin_peers_by{*})"}, stacked=True),
        graph("Shortest ping", "s", "Shortest ping time of each connected peer: median, 90th percentile, slowest.",
              {"{{node}} p{{percentile}}": "bitcoin_peer_min_ping_seconds{*}"}),
        graph("By protocol version", "none", "Connected peers by protocol version.",
              {"{{node}} {{version}}": "bitcoin_peers_by_version{*}"}, stacked=True),
        graph("By client", "none", "Connected peers by the software that they claim to run: Bitcoin Core by major version, Knots, others.",
              {"{{node}} {{software}}": 'label_join(bitcoin_peers_by_client{*}, "software", " ", "client", "version")'}, stacked=True),
        graph("By service", "none", "Connected peers by the services that they offer; a peer that offers several services counts for each of them.",
              {"{{node}} {{service}}": "bitcoin_peers_by_service{*}"}),
        graph("Ahead of the node", "none", "Peers that have announced a valid header higher than the node's tip, and added nodes (`-addnode`) "
              "that are not connected.",
              {"{{node}} ahead": "bitcoin_peers_ahead{*}", "{{node}} added, {{state}}": "bitcoin_added_nodes{*}"}),
        graph("High-bandwidth peers", "none", "Peers in high-bandwidth mode (BIP152): `to` peers selected by the node, `from` peers that selected the node.",
              {"{{node}} {{direction}}": "bitcoin_peers_high_bandwidth{*}"}),
        graph("Peers by property", "none", "Peers whose clock is off by more than 10 seconds; whose ping is unanswered for more "
              "than 5 seconds; that accept transactions below 1 sat/vB; that take part in address relay.",
              {"{{node}} clock {{direction}}": "bitcoin_peers_clock_off{*}",
               "{{node}} ping overdue": "bitcoin_peers_ping_overdue{*}",
               "{{node}} low fees": "bitcoin_peers_low_fee_relay{*}",
               "{{node}} address relay": "bitcoin_peers_addr_relay{*}"}),
        graph("Banned", "none", "Banned addresses and subnets.", {NAME: "bitcoin_banned{*}"}),
        graph("Groups", "none", "Number of groups of addresses that the peers belong to. The node avoids two outbound peers in one group.",
              {"{{node}} {{direction}} {{by}}": "bitcoin_peers_groups{*}"}),
        graph("Rate-limited addresses", "none", "Peers with rate-limited `addr` messages: the node dropped some of their addresses.",
              {NAME: "bitcoin_peers_addr_rate_limited{*}"}),
        graph("Gossiped addresses", "cps", "Addresses in `addr` messages per second that the node processed, and that it dropped because the "
              "peer had sent too many.",
              {"{{node}} processed": rate("bitcoin_addresses_processed_total"),
               "{{node}} dropped": rate("bitcoin_addresses_rate_limited_total")}),
        graph("Known addresses", "short", "Peer addresses in the node's address manager, by network and table: `new` were received from peers, `tried` "
              "had a successful connection.", {"{{node}} {{network}} {{table}}": "bitcoin_addrman_addresses{*}"}, stacked=True),
        graph("Networks", "none", "1 for each network that the node opens connections to; `active` is 0 if networking is switched off "
              "(`setnetworkactive`).",
              {"{{node}} {{network}}": "bitcoin_network_reachable{*}", "{{node}} active": "bitcoin_network_active{*}"}),
    ],
    "Blocks": [
        graph("Transactions of the tip", "none", "Transactions of the last block, including the coinbase.",
              {NAME: "bitcoin_last_block_transactions{*}"}),
        graph("Weight and size of the tip", "short", "Weight (WU) and size (bytes) of the last block, without the coinbase.",
              {"{{node}} weight": "bitcoin_last_block_weight{*}",
               "{{node}} bytes": "bitcoin_last_block_size_bytes{*}"}),
        graph("Fees of the tip", "si:sat", "Total fees of the last block.",
              {NAME: "bitcoin_last_block_fees_satoshis{*}"}),
        graph("Fee rates of the tip", "suffix: sat/vB", "Percentiles of the fee rates in the last block, by weight.",
              {"{{node}} {{percentile}} %": "bitcoin_last_block_feerate_sat_per_vbyte{*}"}),
        graph("Value of the tip", "si:sat", "Value of the outputs of the last block without the coinbase, and its subsidy.",
              {"{{node}} outputs": "bitcoin_last_block_output_value_satoshis{*}",
               "{{node}} subsidy": "bitcoin_last_block_subsidy_satoshis{*}"}),
        graph("Segwit share of the tip", "percentunit", "Share of the transactions of the last block that have witness data, without the coinbase.",
              {NAME: "bitcoin_last_block_segwit_transactions{*} / (bitcoin_last_block_transactions{*} - 1 > 0)"}),
        graph("UTXO increase of the tip", "none", "Outputs minus inputs of the last block.",
              {NAME: "bitcoin_last_block_utxo_increase{*}"}, least=None),
        graph("Inputs and outputs of the tip", "none", "Inputs (without the coinbase) and outputs (with the coinbase) of the last block.",
              {"{{node}} inputs": "bitcoin_last_block_inputs{*}",
               "{{node}} outputs": "bitcoin_last_block_outputs{*}"}),
        graph("Connected in an hour", "short", "Transactions, inputs and outputs of the blocks connected within an "
              "hour.",
              {"{{node}} transactions": hourly("bitcoin_connected_transactions_total"),
               "{{node}} inputs": hourly("bitcoin_connected_inputs_total"),
               "{{node}} outputs": hourly("bitcoin_connected_outputs_total")}),
        graph("Size connected in an hour", "bytes", "Serialized size of the transactions in the blocks connected within an hour, without "
              "the coinbase.", {NAME: hourly("bitcoin_connected_bytes_total")}),
        graph("Historical blocks connected in an hour", "none", "Blocks below the snapshot that an assumeutxo node connected within an hour "
              "to validate it. Needs the Chain interface.", {NAME: hourly("bitcoin_historical_blocks_connected_total")}),
        graph("Tip changes not counted", "none", "Tip changes within an hour whose blocks could not be counted: another chain, pruned "
              "blocks, or a failed call.", {NAME: "round(increase(bitcoin_exporter_uncounted_tip_changes_total{*}[1h]))"}),
        graph("Weight connected in an hour", "si:WU", "Weight of the transactions in the blocks connected within an hour, without the "
              "coinbase; a block has at most 4 MWU.", {NAME: hourly("bitcoin_connected_weight_total")}),
        graph("Value connected in an hour", "si:sat", "Value of the outputs and fees of the blocks connected within an hour, without the "
              "coinbase.", {"{{node}} outputs": hourly("bitcoin_connected_output_value_satoshis_total"),
                            "{{node}} fees": hourly("bitcoin_connected_fees_satoshis_total")}),
        graph("Blocks not counted", "none", "Connected blocks within an hour whose contents could not be counted, because the node no longer had them.",
              {NAME: "round(increase(bitcoin_exporter_uncounted_blocks_total{*}[1h]))"}),
    ],
    "Traffic": [
        graph("Bandwidth", "Bps", "Total P2P bytes per second, from the node's own counters.",
              {"{{node}} received": rate("bitcoin_bytes_recv_total"),
               "{{node}} sent": rate("bitcoin_bytes_sent_total")}),
        graph("Upload target", "bytes", "Bytes that the node may send in 24 hours (`-maxuploadtarget`), and the bytes that are left.",
              {"{{node}} target": "bitcoin_upload_target_bytes{*}", "{{node}} left": "bitcoin_upload_target_left_bytes{*}"}),
        graph("RPC server", "none", "JSON-RPC calls that the node is executing for other clients.",
              {NAME: "bitcoin_rpc_active_commands{*}"}),
        graph("Longest RPC call", "s", "Time for which the longest-running JSON-RPC call has been running.",
              {NAME: "bitcoin_rpc_longest_command_seconds{*}"}),
        graph("Received by message", "Bps", "P2P message bytes per second of the connected peers, by message type.",
              {"{{node}} {{type}}": rate("bitcoin_p2p_message_bytes_total", ',direction="in"', "type")},
              stacked=True),
        graph("Sent by message", "Bps", "P2P message bytes per second of the connected peers, by message type.",
              {"{{node}} {{type}}": rate("bitcoin_p2p_message_bytes_total", ',direction="out"', "type")},
              stacked=True),
    ],
    "Pruning, assumeutxo, signalling": [
        graph("Pruned to", "none", "Height of the first complete block on a pruned node; absent on other nodes.",
              {NAME: "bitcoin_prune_height{*}"}, least=None),
        graph("Pruning", "none", "1 on pruned nodes, 0 on others.", {NAME: "bitcoin_pruned{*}"}),
        graph("Chainstates", "none", "Height of each chainstate: normal; or, after loading a snapshot (assumeutxo), the snapshot's, which follows "
              "the chain, and the background one until the snapshot is validated.",
              {"{{node}} {{chainstate}}": "bitcoin_chainstate_height{*}"}, least=None),
        graph("Background validation", "percentunit", "Share of validated transactions below an assumeutxo snapshot. Needs "
              "Bitcoin Core 32.", {NAME: "bitcoin_background_validation_progress{*}"}),
        graph("Signalling", "none", "Blocks of the current period that signal for a soft fork that is not locked in yet.",
              {"{{node}} {{deployment}}": "bitcoin_deployment_signalling_blocks{*}"}),
    ],
    "UTXO cache": [
        graph("Coins", "cps", "Coins added to, spent from and dropped from the UTXO cache per second. Needs the Tracing interface, "
              "and starts after initial block download.",
              {"{{node}} added": rate("bitcoin_utxo_cache_add_total"),
               "{{node}} spent": rate("bitcoin_utxo_cache_spend_total"),
               "{{node}} dropped": rate("bitcoin_utxo_cache_uncache_total")}),
        graph("Value", "si:sat/s", "Value of the coins added to, spent from and dropped from the UTXO cache per second.",
              {"{{node}} added": rate("bitcoin_utxo_cache_add_value_total"),
               "{{node}} spent": rate("bitcoin_utxo_cache_spend_value_total"),
               "{{node}} dropped": rate("bitcoin_utxo_cache_uncache_value_total")}),
        graph("Flushes", "none", "Flushes of the chain state to disk within an hour. Needs the Chain interface.",
              {NAME: "round(increase(bitcoin_chain_state_flushes_total{*}[1h]))"}),
        graph("UTXO trace", "none", "State of the UTXO trace: active, off, ibd (waits for the end of initial block download), over_budget (disabled).",
              {"{{node}} {{state}}": "bitcoin_exporter_utxo_trace{*}"}),
    ],
    "Process": [
        graph("Resident memory", "bytes", "Resident memory of the node. Panels about the node's process need IPC, or bitcoind.pid in the data directory.",
              {NAME: "bitcoin_node_process_resident_memory_bytes{*}"}),
        graph("Processor time", "percentunit", "Processor time by group of threads; 100 % is one processor.",
              {"{{node}} {{thread}}": rate("bitcoin_node_process_cpu_seconds_total", by="thread")}, stacked=True),
        graph("Disk", "Bps", "Bytes per second that the node read from and wrote to disk. Needs an exporter that runs as the node's user.",
              {"{{node}} {{direction}}": rate("bitcoin_node_process_io_bytes_total", by="direction")}),
        graph("Written in an hour", "bytes", "Bytes that the node wrote to disk within an hour. One rewrite of mainnet's chainstate is "
              "about 11 GB.", {NAME: 'round(increase(bitcoin_node_process_io_bytes_total{*,direction="write"}[1h]))'}),
        graph("Free disk", "bytes", "Free space and size of the file system that holds the node's data directory.",
              {"{{node}} free": "bitcoin_datadir_filesystem_free_bytes{*}", "{{node}} size": "bitcoin_datadir_filesystem_size_bytes{*}"}),
        graph("Page faults", "cps", "Page faults per second; `major` page faults waited for the disk.",
              {"{{node}} {{kind}}": rate("bitcoin_node_process_page_faults_total", by="kind")}),
        graph("Descriptors and threads", "none", "Open file descriptors and threads of the node.",
              {"{{node}} descriptors": "bitcoin_node_process_open_fds{*}", "{{node}} threads": "bitcoin_node_process_threads{*}"}),
        graph("Caches", "bytes", "Memory limit of each coin cache (`-dbcache`): `db` is the database's cache, `tip` the cache above it.",
              {"{{node}} {{chainstate}} {{cache}}": "bitcoin_chainstate_cache_bytes{*}"}),
    ],
    "Exporter": [
        graph("Connection", "none", "1 while the connection to the node works and the last poll succeeded, otherwise 0.", {NAME: "bitcoin_up{*}"}, span=8),
        graph("Time since the last poll", "s", "Time since the end of the last successful poll. The time grows while the node does not respond.",
              {NAME: "time() - bitcoin_exporter_last_poll_timestamp_seconds{*}"}, span=8),
        graph("Connects and disconnects", "none", "Connections to the node that began and ended within an hour, with the reason of the end: shutdown, lost, hung, refused.",
              {"{{node}} connects": "round(increase(bitcoin_exporter_connects_total{*}[1h]))",
               "{{node}} {{reason}}": "round(increase(bitcoin_exporter_disconnects_total{*}[1h]))"}, span=8),
        graph("Poll time", "s", "Duration of a poll of the node.", quantiles("bitcoin_exporter_poll_duration_seconds", window="$__rate_interval")),
        graph("Call time", "s", "Duration of the last call to the node, by call.",
              {"{{node}} {{call}}": "bitcoin_exporter_call_duration_seconds{*}"}),
        graph("Failed calls", "none", "Calls to the node that failed within an hour, by call.",
              {"{{node}} {{call}}": "round(increase(bitcoin_exporter_poll_failures_total{*}[1h]))"}),
        graph("Failures over HTTP", "none", "JSON-RPC requests over HTTP that failed within an hour, by cause.",
              {"{{node}} {{cause}}": "round(increase(bitcoin_exporter_http_rpc_failures_total{*}[1h]))"}),
        graph("Notifications", "cps", "Notifications from the node per second, by callback.",
              {"{{node}} {{callback}}": rate("bitcoin_exporter_callbacks_total", by="callback")}),
        graph("Callback response time", "s", "Time for which the node waited for the guard's response to a notification.",
              quantiles("bitcoin_exporter_callback_duration_seconds", window="$__rate_interval")),
        graph("Guard's wait for a processor", "percentunit", "Share of time that the guard was ready to run and waited for "
              "a processor, because of a quota or a busy machine.",
              {NAME: "rate(bitcoin_exporter_guard_run_delay_seconds_total{*}[$__rate_interval])"}),
        graph("Dropped", "none", "Events that were answered but not counted, and log lines that were not written, within an hour.",
              {"{{node}} {{event}}": "round(increase(bitcoin_exporter_events_dropped_total{*}[1h]))",
               "{{node}} log lines": "round(increase(bitcoin_exporter_log_lines_dropped_total{*}[1h]))"}),
        graph("Exporter's processor time", "percentunit", "Processor time of the exporter, as a share of one processor.",
              {NAME: "rate(process_cpu_seconds_total{*}[$__rate_interval])"}),
        graph("Exporter's memory", "bytes", "Resident memory of the exporter.", {NAME: "process_resident_memory_bytes{*}"}, span=8),
        graph("Exporter's descriptors", "none", "Open files and sockets of the exporter.", {NAME: "process_open_fds{*}"}, span=8),
        number("Exporter's uptime", "s", "Time since the exporter started.", {NAME: "time() - process_start_time_seconds{*}"},
               span=8),
        graph("Locked memory of the node", "bytes", "Size of the node's locked memory pool, which holds keys.",
              {"{{node}} {{state}}": "bitcoin_memory_locked_bytes{*}"}),
        rows("Interfaces", "none", "Interfaces of each node over IPC.", "bitcoin_exporter_interface{*}",
             ["node", "interface"]),
        rows("Builds", "none", "Version, revision and compiler of each exporter.", "bitcoind_ipc_exporter_build_info{*}",
             ["node", "instance", "version", "revision", "rustc"]),
    ],
    "Logs": [
        logs("Log", "Lines of the node's debug.log and of the exporters' journal, from Loki.",
             '{job=~"bitcoin-core|bitcoind-exporter",node=~"$node"}'),
        logs("Warnings and errors", "Lines of the node and the exporters at the levels warning and error, from Loki.",
             '{job=~"bitcoin-core|bitcoind-exporter",node=~"$node",level=~"warning|error"}'),
    ],
}

# Panels of the dashboard *Bitcoin fleet*, which show series of the recording rules.
FLEET = {
    "At a glance": [
        number("Nodes up", "none", "Number of nodes with a working connection to their exporter.",
               {"up": "sum(instance:bitcoin_up:value{*})"}),
        number("Nodes down", "none", "Number of nodes that are down, or whose exporter cannot be scraped.",
               {"down": "count(instance:bitcoin_up:value{*} == 0) or vector(0)"}, steps=[(1, "red")]),
        number("Firing alerts", "none", "Number of alerts of the rules that fire for the selected nodes. See docs/alerts.md for the remedies.",
               {"firing": f"count(ALERTS{{{OUR_ALERTS}}}) or vector(0)"}, steps=[(1, "orange")]),
        number("Most blocks behind", "none", "Largest number of blocks that a selected node is behind the best node of its chain.",
               {"behind": "max(instance:bitcoin_blocks_behind:value{*})"}, steps=[(1, "orange"), (3, "red")]),
        number("Oldest tip", "s", "Greatest tip age of the selected nodes.",
               {"age": "max(instance:bitcoin_tip_age_seconds:value{*})"}, steps=[(3600, "orange"), (7200, "red")]),
        number("Fewest outbound peers", "none", "Outbound peers of the selected node with the fewest outbound peers.",
               {"peers": "min(instance:bitcoin_outbound_peers:value{*})"},
               steps=[(None, "red"), (1, "orange"), (8, "green")]),
    ],
    "Nodes": [
        columns("Nodes", "Version, chain, state, firing alerts and key values of each node. The name links "
                "to its dashboard. The tip age is coloured on chains with regular blocks.",
                {"Height": ("instance:bitcoin_chain_height:value{*} * on (job,instance,node) group_left (subversion) "
                            "topk by (job,instance,node) (1, bitcoin_node_info{*}) or instance:bitcoin_chain_height:value{*} "
                            "unless on (job,instance,node) bitcoin_node_info{*}", "none", None),
                 "Up": ("instance:bitcoin_up:value{*}", "none", UP),
                 "Alerts": (f"count by (node) (ALERTS{{{OUR_ALERTS}}}) or 0 * instance:bitcoin_up:value{{*}}", "none", [(1, "orange")]),
                 "IBD": ("bitcoin_ibd{*}", "none", YES),
                 "Uptime": ("time() - bitcoin_node_start_time_seconds{*}", "s", None),
                 "Behind": ("instance:bitcoin_blocks_behind:value{*}", "none", [(1, "orange"), (3, "red")]),
                 "Tip age": ("instance:bitcoin_tip_age_seconds:value{*} and on (job,instance,node) instance:bitcoin_expects_blocks:info",
                             "s", [(3600, "orange"), (7200, "red")]),
                 "Tip age, other chains": ("instance:bitcoin_tip_age_seconds:value{*} unless on (job,instance,node) "
                                           "instance:bitcoin_expects_blocks:info", "s", None),
                 "Outbound": ("instance:bitcoin_outbound_peers:value{*}", "none", None),
                 "Mempool": ("instance:bitcoin_mempool_used:ratio{*}", "percentunit", [(0.98, "orange")])},
                by="node", texts={"subversion": "Version", "chain": "Chain"}, link="bitcoin-node"),
        rows("Alerts", "none", "Alerts of the rules that fire for the selected nodes.", f"ALERTS{{{OUR_ALERTS}}}",
             ["node", "severity", "alertname"], span=24, hidden=["alertstate", "instance", "Value"], sort="severity"),
    ],
    "Chains": [
        graph("Nodes up", "none", "Nodes of each chain: the nodes that are up, and all nodes whose chain is known.",
              {"{{chain}} {{chain_id}} up": "chain:bitcoin_up:sum", "{{chain}} {{chain_id}} known": "chain:bitcoin_nodes:count"}),
        graph("Best height", "none", "Greatest height of the nodes of each chain.",
              {"{{chain}} {{chain_id}}": "chain:bitcoin_chain_height:max"}, least=None),
    ],
    "Comparison": [
        graph("Blocks behind", "none", "Blocks that each node is behind the best node of its chain.",
              {NAME: "instance:bitcoin_blocks_behind:value{*}"}),
        graph("Tip age", "s", "Age of the timestamp in the header of each node's tip.",
              {NAME: "instance:bitcoin_tip_age_seconds:value{*}"}),
        graph("Outbound peers", "none", "Outbound connections of each node.",
              {NAME: "instance:bitcoin_outbound_peers:value{*}"}),
        graph("Mempool used", "percentunit", "Memory of each node's mempool, as a share of its limit (`-maxmempool`).",
              {NAME: "instance:bitcoin_mempool_used:ratio{*}"}),
        graph("Blocks disconnected", "none", "Blocks that each node disconnected within an hour: a reorganization.",
              {NAME: "instance:bitcoin_blocks_disconnected:increase1h{*}"}),
        graph("Mempool", "short", "Transactions in each node's mempool.", {NAME: "bitcoin_mempool_size{*}"}),
    ],
}

FIBRE = {
    "At a glance": [
        number("Blocks reconstructed", "none", "Blocks reconstructed from FIBRE/UDP chunks in the selected time range.",
               {NAME: "round(increase(fibre_blocks_reconstructed_total{*}[$__range]))"}),
        number("Blocks sent", "none", "Blocks that the node began to send over FIBRE in the selected time range.",
               {NAME: "round(increase(fibre_blocks_sent_total{*}[$__range]))"}),
        number("FIBRE win rate", "percentunit", "Share of the races in the selected time range that FIBRE/UDP won.",
               {NAME: 'sum by (node,instance) (increase(fibre_block_race_wins_total{*,mechanism="fibre_udp"}[$__range])) / '
                      "sum by (node,instance) (increase(fibre_block_race_wins_total{*}[$__range]))"}),
        number("Last block", "none", "Height of the last block that was connected, raced or reconstructed.", {NAME: "fibre_last_block_height{*}"}),
        number("UDP wins", "none", "Blocks in the selected time range that FIBRE/UDP delivered first.",
               {NAME: 'round(increase(fibre_block_race_wins_total{*,mechanism="fibre_udp"}[$__range]))'}),
        number("Compact block wins", "none", "Blocks in the selected time range that BIP152 compact blocks delivered first.",
               {NAME: 'round(increase(fibre_block_race_wins_total{*,mechanism="bip152_cmpct"}[$__range]))'}),
    ],
    "Races": [
        graph("Race wins over time", "none", "Races within an hour, by winning mechanism.",
              {"{{node}} {{mechanism}}": hourly("fibre_block_race_wins_total", by="mechanism")}, stacked=True),
        graph("Wins by mechanism", "percentunit", "Share of the races within an hour, by winning mechanism.",
              {"{{node}} {{mechanism}}": "increase(fibre_block_race_wins_total{*}[1h]) / on (job,instance,node) "
               "group_left () sum by (job,instance,node) (increase(fibre_block_race_wins_total{*}[1h]))"}),
        graph("Relay latency", "s", "Time that FIBRE reports for each relay mechanism in a race: in FIBRE's public source, from the mechanism's first "
              "data to the connection of the block.",
              quantiles("fibre_block_race_latency_seconds", by="mechanism")),
        graph("Margin", "s", "Difference of the two times that FIBRE reports for a race in which both relay mechanisms took part, by the mechanism with "
              "the shorter time. With FIBRE's public source, this is often not the winner.",
              quantiles("fibre_race_margin_seconds", by="winner")),
        bars("Block race results", "none", "Blocks in the selected time range by the mechanism that delivered them first, and races with "
             "both mechanisms.",
             {"{{node}} {{mechanism}}": "round(increase(fibre_block_race_wins_total{*}[$__range]))",
              "{{node}} both took part": "round(increase(fibre_races_with_both_total{*}[$__range]))"}),
        rows("Delivery by peer", "none", "Blocks in the selected time range by the mechanism and peer that delivered them first: the 50 largest.",
             "topk(50, round(sum by (node,mechanism,peer) (increase(fibre_block_deliveries_total{*}[$__range]))))",
             ["node", "peer", "mechanism"]),
    ],
    "Reconstruction": [
        graph("Reconstruction time", "s", "Time from the first chunk of a block to the whole block.",
              quantiles("fibre_block_reconstruction_duration_seconds")),
        graph("Blocks", "none", "Blocks reconstructed from FIBRE/UDP, and blocks sent over FIBRE/UDP, within an hour.",
              {"{{node}} reconstructed": "round(increase(fibre_blocks_reconstructed_total{*}[1h]))",
               "{{node}} sent": "round(increase(fibre_blocks_sent_total{*}[1h]))"}),
        graph("Chunks in an hour", "short", "Chunks received and used for the blocks reconstructed within an hour.",
              {"{{node}} received": hourly("fibre_chunks_received_total"),
               "{{node}} used": hourly("fibre_chunks_used_total")}),
        graph("Chunk efficiency", "percentunit", "Share of the received chunks that were needed to reconstruct blocks, over an hour.",
              {NAME: f"{hourly('fibre_chunks_used_total')} / {hourly('fibre_chunks_received_total')}"}),
        graph("Chunks per block", "none", "Chunks used to reconstruct one block.", quantiles("fibre_block_chunks_used")),
        graph("Transactions from the mempool", "none", "Mean number of transactions of a reconstructed block that were in the mempool, and that were missing. Needs "
              "the tracepoint `udp:block_reconstruction_detail`.",
              {"{{node}} in the mempool": mean("fibre_block_mempool_tx_count"),
               "{{node}} missing": mean("fibre_block_missing_tx_count")}),
        graph("Missing bytes", "bytes", "Mean size of the transactions that were not in the mempool.",
              {NAME: mean("fibre_block_missing_tx_bytes")}),
        graph("Blocks with no missing transaction", "none", "Reconstructed blocks within an hour whose transactions were all in the mempool.",
              {NAME: "round(increase(fibre_block_all_tx_from_mempool_total{*}[1h]))"}),
    ],
    "Peers": [
        graph("UDP peers", "none", "FIBRE/UDP peers that have responded and those that have not, by group. Needs bitcoind-ipc-exporter "
              "and `getudppeerinfo`.",
              {"{{node}} group {{group}}": "bitcoin_fibre_peers_connected{@}",
               "{{node}} group {{group}} not connected": "bitcoin_fibre_peers{@} - bitcoin_fibre_peers_connected{@}"}, span=8),
        graph("Round trip", "s", "Round trip times to the FIBRE/UDP peers of a group, over the last ten pings of each (one ping in 15 minutes).",
              {"{{node}} group {{group}} {{statistic}}": "bitcoin_fibre_peer_round_trip_seconds{@}"}, span=8),
        graph("Silence", "s", "Time since the last packet of a group's most silent peer. Each peer sends a packet every 10 seconds.",
              {"{{node}} group {{group}}": "bitcoin_fibre_peer_silence_seconds{@}"}, span=8),
    ],
    "Exporter": [
        number("Exporter", "none", "State of bitcoind-usdt-exporter: up if Prometheus can scrape it.", {NAME: "up{*}"}, words=UP),
        number("Probes attached", "none", "Attached tracepoints; 0 while no node with tracepoints runs.",
               {NAME: "fibre_exporter_probes_attached{*}"}),
        number("Uptime", "s", "Time since bitcoind-usdt-exporter started.", {NAME: "time() - fibre_exporter_start_time_seconds{*}"}),
        text_of_label("Version", "Version of bitcoind-usdt-exporter.", "version", "fibre_exporter_info{*}"),
        graph("Events", "none", "FIBRE events within an hour, by tracepoint.",
              {"{{node}} {{event_type}}": hourly("fibre_exporter_events_processed_total", by="event_type")}, span=8),
        graph("Errors", "none", "Events within an hour that were lost or read incompletely.",
              {"{{node}} {{error_type}}": "round(increase(fibre_exporter_errors_total{*}[1h]))"}, span=8),
    ],
}

def relay():
    """Rows of panels about the arrival of blocks at the node."""
    announced = 'sum by (job,instance,node) (increase(bitcoin_block_arrivals_total{*,by!="other"}[%s]))'
    without = 'sum by (job,instance,node) (increase(bitcoin_block_arrivals_total{*,by=~"compact_complete|fibre"}[%s]))'
    shared = f"{without} / {announced}"
    return {
        "At a glance": [
            number("Without a round trip", "percentunit", "Share of the announced blocks in the selected time range that needed no "
                   "request for transactions: the compact block was sufficient, or FIBRE delivered the block.",
                   {NAME: shared % (("$__range",) * 2)}),
            number("Arrival, median", "s", "Median time from the first announcement of a block until the node had connected it, in "
                   "the selected time range.", {NAME: "histogram_quantile(0.5, sum by (le,node,instance) "
                                       "(rate(bitcoin_block_arrival_seconds_bucket{*}[$__range])))"}, steps=[(2, "orange"), (10, "red")]),
            number("Assembly, median", "s", "Median time from the first compact block until all transactions had arrived, in the selected time range.",
                   {NAME: "histogram_quantile(0.5, sum by (le,node,instance) "
                          "(rate(bitcoin_block_assembly_seconds_bucket{*}[$__range])))"}),
            number("Whole blocks", "none", "Blocks in the selected time range that were downloaded whole.",
                   {NAME: 'round(increase(bitcoin_block_arrivals_total{*,by="full_block"}[$__range]))'}),
            number("Requested transactions", "none", "Transactions requested for compact blocks in the selected time range.",
                   {NAME: "round(increase(bitcoin_compact_block_requested_transactions_sum{*}[$__range]))"}),
            number("FIBRE's margin, median", "s", "Median difference of the two times that FIBRE reports, in races in which FIBRE/UDP has the shorter time, in the selected time range. "
                   "FIBRE nodes only.", {NAME: 'histogram_quantile(0.5, sum by (le,node,instance) '
                                         '(rate(fibre_race_margin_seconds_bucket{*,winner="fibre_udp"}[$__range])))'}),
        ],
        "Arrival": [
            heatmap("From the first announcement until connected", "s", "Blocks by arrival time. A point is one block, and links "
                    "to its log lines.", "bitcoin_block_arrival_seconds"),
            graph("From the first announcement until connected, of a day", "s", "Median and tail over a day. A point is one block.",
                  quantiles("bitcoin_block_arrival_seconds")),
            graph("From the first compact block until complete", "s", "Median and tail over a day.",
                  quantiles("bitcoin_block_assembly_seconds")),
            graph("Completed by", "none", "Blocks connected within an hour, by the means that completed them. No peer announced "
                  "the blocks with `other`: a sync, or a block that this node mined.",
                  {"{{node}} {{by}}": hourly("bitcoin_block_arrivals_total", by="by")}, stacked=True),
            graph("Share without a round trip", "percentunit", "Share of the blocks announced within six hours that needed no request for transactions.",
                  {NAME: shared % (("6h",) * 2)}),
            graph("Age of the header", "s", "Delay between a block's header timestamp, which its miner chose, and its first announcement. "
                  "Median and tail over a day.", quantiles("bitcoin_block_header_age_seconds")),
            heatmap("Connecting", "s", "Blocks by the time to connect them. A point is one block.",
                    "bitcoin_block_connection_duration_seconds"),
        ],
        "Compact blocks": [
            graph("Requested transactions", "none", "Transactions requested for one compact block. Median and tail over a day.",
                  quantiles("bitcoin_compact_block_requested_transactions")),
            graph("Requested bytes", "bytes", "Bytes of the transactions requested for one compact block. Median and tail over a day.",
                  quantiles("bitcoin_compact_block_requested_bytes")),
            graph("Round trip", "s", "Time from a request for transactions to their arrival. Median and tail over a day.",
                  quantiles("bitcoin_compact_block_roundtrip_seconds")),
            graph("Prefilled transactions", "none", "Mean number of transactions contained in a compact block, including the coinbase, over an hour.",
                  {NAME: mean("bitcoin_compact_block_prefilled_transactions")}),
            graph("Compact blocks received", "none", "Compact blocks received within an hour: as the announcement (high bandwidth), or after a "
                  "request (low bandwidth).", {"{{node}} {{mode}}": hourly("bitcoin_compact_blocks_received_total", by="mode")}),
        ],
        "Announcements": [
            graph("First announcers", "none", "Blocks connected within an hour, by connection type of the first announcing peer.",
                  {"{{node}} {{connection_type}}": hourly("bitcoin_block_first_announcements_total", by="connection_type")}, stacked=True),
            graph("Announcements", "none", "Announcements of blocks within an hour, by message.",
                  {"{{node}} {{by}}": hourly("bitcoin_block_announcements_total", by="by")}),
        ],
        "FIBRE and compact blocks": [
            graph("Margin", "s",
                  "Difference of the two times that FIBRE reports for a race in which both relay mechanisms took part, by the mechanism with the "
                  "shorter time. Median and tail over a day.",
                  quantiles("fibre_race_margin_seconds", by="winner")),
            graph("Wins", "none", "Races within an hour, by winning mechanism.",
                  {"{{node}} {{mechanism}}": hourly("fibre_block_race_wins_total", by="mechanism")}, stacked=True),
        ],
    }


INTERNALS = {
    "Network": [
        graph("Messages by type", "cps", "Messages per second by type, both directions.",
              {"{{node}} {{type}}": rate("bitcoin_p2p_messages_total", by="type")}),
        graph("Bandwidth", "Bps", "P2P message bytes per second, by direction.",
              {"{{node}} {{direction}}": rate("bitcoin_p2p_message_bytes_total", by="direction")}),
        graph("Connections", "none", "Open connections by direction: in (opened by the peer) or out (opened by the node).",
              {"{{node}} {{direction}}": "bitcoin_connections{*}"}),
        graph("Opened", "none", "Connections opened within an hour, by network.",
              {"{{node}} {{network}}": "round(sum by (node,instance,network) (increase(bitcoin_connections_opened_total{*}[1h])))"}),
        graph("Opened by type", "none", "Connections opened within an hour, by connection type.",
              {"{{node}} {{connection_type}}": hourly("bitcoin_connections_opened_total", by="connection_type")}),
        graph("Closed", "none", "Connections closed within an hour, by network.",
              {"{{node}} {{network}}": "round(increase(bitcoin_connections_closed_total{*}[1h]))"}),
        graph("Evicted and misbehaving", "none", "Connections evicted in favour of others, and misbehaving peers, within "
              "an hour.",
              {"{{node}} evicted": "round(increase(bitcoin_connections_evicted_total{*}[1h]))",
               "{{node}} misbehaving": hourly("bitcoin_connections_misbehaving_total")}),
        graph("Misbehaving peers by reason", "none", "Misbehaving peers within an hour, by the node's reason.",
              {"{{node}} {{reason}}": hourly("bitcoin_connections_misbehaving_total", by="reason")}),
        graph("Age of closed connections", "s", "Median and tail, over a day, of the age of connections at their end.",
              quantiles("bitcoin_connection_age_seconds", by="direction")),
    ],
    "Blocks": [
        graph("Connection time", "s", "Time to connect a block.",
              quantiles("bitcoin_block_connection_duration_seconds")),
        graph("Blocks connected", "none", "Blocks connected within an hour.", {NAME: "round(increase(bitcoin_blocks_connected_total{*}[1h]))"}),
        graph("Transactions per block", "none", "Mean number of transactions of the blocks connected within an hour.",
              {NAME: mean("bitcoin_block_tx_count")}),
        graph("Sigops per block", "none", "Mean cost of the signature operations of the blocks connected within an hour.",
              {NAME: mean("bitcoin_block_sigops")}),
        graph("Inputs per block", "none", "Mean number of inputs of the blocks connected within an hour.", {NAME: mean("bitcoin_block_inputs")}),
    ],
    "UTXO cache": [
        graph("Flush time", "s", "Time to write the UTXO cache to disk.",
              quantiles("bitcoin_utxo_cache_flush_duration_seconds")),
        graph("Coins at the last flush", "none", "Coins in the UTXO cache at its last flush to disk.", {NAME: "bitcoin_utxo_cache_flush_coins{*}"}),
        graph("Memory at the last flush", "bytes", "Memory used by the UTXO cache at its last flush to disk.",
              {NAME: "bitcoin_utxo_cache_flush_bytes{*}"}),
        graph("Coins", "cps", "Coins added to, spent from and dropped from the UTXO cache per second.",
              {"{{node}} added": rate("bitcoin_utxo_cache_add_total"),
               "{{node}} spent": rate("bitcoin_utxo_cache_spend_total"),
               "{{node}} dropped": rate("bitcoin_utxo_cache_uncache_total")}),
    ],
    "Mempool": [
        graph("Transactions", "cpm", "Transactions added to the mempool, removed, replaced and rejected per minute.",
              {"{{node}} added": f"60 * {rate('bitcoin_mempool_tx_added_total')}",
               "{{node}} removed": f"60 * {rate('bitcoin_mempool_tx_removed_total')}",
               "{{node}} replaced": f"60 * {rate('bitcoin_mempool_tx_replaced_total')}",
               "{{node}} rejected": f"60 * {rate('bitcoin_mempool_tx_rejected_total')}"}),
        graph("Mean fee rate", "suffix: sat/vB", "Mean fee rate of the transactions that entered the mempool.",
              {NAME: f"{rate('bitcoin_mempool_added_fees_satoshis_total')} / {rate('bitcoin_mempool_added_vbytes_total')}"}),
        graph("Removed by reason", "cpm", "Transactions removed from the mempool per minute, by reason.",
              {"{{node}} {{reason}}": f"60 * {rate('bitcoin_mempool_tx_removed_total', by='reason')}"}),
        graph("Rejected by reason", "cpm", "Transactions rejected by the mempool per minute, by reason.",
              {"{{node}} {{reason}}": "60 * " + rate("bitcoin_mempool_tx_rejected_total", by="reason")}),
    ],
    "From bitcoind-ipc-exporter": [
        graph("Sync progress", "percentunit", "Estimated share of verified transactions of the chain.",
              {NAME: "bitcoin_verification_progress{@}"}),
        graph("Difficulty", "sishort", "Proof-of-work difficulty of the tip.", {NAME: "bitcoin_difficulty{@}"}),
        graph("Size on disk", "bytes", "Size of the block and undo files.", {NAME: "bitcoin_chain_size_bytes{@}"}),
        graph("Transactions in the mempool", "short", "Transactions in the mempool at each poll.", {NAME: "bitcoin_mempool_size{@}"}),
        graph("Mempool's memory", "bytes", "Memory of the mempool, and its limit (`-maxmempool`).",
              {"{{node}} used": "bitcoin_mempool_bytes{@}", "{{node}} limit": "bitcoin_mempool_max_bytes{@}"}),
        graph("Minimum fee rate", "suffix: sat/vB", "Lowest fee rate that the mempool accepts.",
              {NAME: "bitcoin_mempool_min_feerate_sat_per_vbyte{@}"}),
        graph("Bandwidth, by the node's own counters", "Bps", "Total P2P bytes per second, from the node's own counters.",
              {"{{node}} received": "rate(bitcoin_bytes_recv_total{@}[$__rate_interval])",
               "{{node}} sent": "rate(bitcoin_bytes_sent_total{@}[$__rate_interval])"}),
    ],
    "The exporters agree": [
        graph("Blocks connected: IPC minus USDT", "none", "Blocks that bitcoind-ipc-exporter counted within an hour, minus "
              "the blocks that bitcoind-usdt-exporter counted on the same node (the same label `node`). Always 0, except "
              "between two scrapes.",
              {"{{node}}": "round(sum by (node) (increase(bitcoin_blocks_connected_total{job=\"bitcoind-ipc\"}[1h])) - "
               "sum by (node) (increase(bitcoin_blocks_connected_total{job=\"bitcoind-usdt\"}[1h])))"}, least=None),
        rows("Builds", "none", "Version, revision and compiler of each exporter.", "bitcoind_usdt_exporter_build_info{*}",
             ["node", "instance", "version", "revision", "rustc"]),
    ],
}

# The bands of the graph *Mempool by fee rate*: for each band the values of the label `from` (a fee rate) whose series
# the band sums, and the band's colour. More bands would have colours that are hard to distinguish. The lightness
# increases from one band to the next (colour map viridis), so people who do not see colours can distinguish the bands.
FEERATE_BANDS = {
    "from 233": ("233|377|610|987", "#fde725"),
    "89 to 233": ("89|144", "#a0da39"),
    "34 to 89": ("34|55", "#4ac16d"),
    "13 to 34": ("13|21", "#1fa187"),
    "5 to 13": ("5|8", "#277f8e"),
    "2 to 5": ("2|3", "#365c8d"),
    "1 to 2": ("1", "#46327e"),
    "below 1": ("0|0.1|0.2|0.5", "#440154"),
}


def by_feerate():
    """Panel with the mempool's virtual size in stacked bands of fee rates. The band with the highest fee rates, which is mined first, is at the bottom."""
    queries = {f"{band} sat/vB": f'sum(bitcoin_mempool_feerate_vbytes{{*,from=~"{labels}"}})'
               for band, (labels, _) in FEERATE_BANDS.items()}
    colours = {f"{band} sat/vB": colour for band, (_, colour) in FEERATE_BANDS.items()}
    return graph("Mempool by fee rate", "si:vB", "Virtual size of the mempool by the fee rate at which its transactions would be mined. A "
                 "block takes 1 MvB, from the bottom. Needs Bitcoin Core 31.",
                 queries, span=16, stacked=True, colours=colours)


def mining():
    """The dashboard with the values that a miner needs."""
    fees, weight = "bitcoin_next_block_fees_satoshis{*}", "bitcoin_next_block_weight{*}"
    templates = "rate(bitcoin_template_duration_seconds"
    return build("bitcoin-mining", "Mining", "The next block: its value, the time to build it, and the delay after a "
                 "new tip. Needs the Mining interface (Bitcoin Core 30 and later).", "bitcoind-ipc", one_node=True, parts={
        "At a glance": [
            number("Next block's fees", "si:sat", "Fees of the next block, as in the node's current block template.", {NAME: fees}),
            number("Next block full", "percentunit", "Weight of the next block's transactions, as a share of a block's 4 MWU.",
                   {NAME: f"{weight} / 4e6"}),
            number("Next block's transactions", "short", "Transactions of the next block, without the coinbase.",
                   {NAME: "bitcoin_next_block_transactions{*}"}),
            number("Next block's signature operations", "percentunit", "Cost of the next block's signature operations, as a share of the limit of 80,000.",
                   {NAME: "bitcoin_next_block_sigops{*} / 80000"}),
            number("Time to build", "s", "Mean time of the node to build a template, over an hour.",
                   {NAME: mean("bitcoin_template_duration_seconds")}, steps=[(1, "orange"), (5, "red")]),
            number("Tip to template", "s", "Mean time from a new tip to the first template built on it, over an hour.",
                   {NAME: mean("bitcoin_template_after_tip_seconds")}, steps=[(2, "orange"), (10, "red")]),
            number("Tip age", "s", "Age of the timestamp in the tip's header, which its miner chose.",
                   {NAME: "time() - bitcoin_tip_timestamp_seconds{*}"}, steps=[(3600, "orange"), (7200, "red")]),
            number("Stale tips", "none", "Tips of valid branches outside the active chain: stale blocks, whose miners get no reward.",
                   {NAME: 'bitcoin_chain_tips{*,status="valid-fork"} or 0 * bitcoin_chain_tips{*,status="active"}'}),
            number("Reorganized blocks", "none", "Blocks disconnected within a day.",
                   {NAME: "round(increase(bitcoin_blocks_disconnected_total{*}[1d]))"}, steps=[(1, "orange"), (2, "red")]),
        ],
        "Templates": [
            graph("Value of the next block", "si:sat", "Fees of the next block, and of the last one.",
                  {"{{node}} next": fees, "{{node}} last": "bitcoin_last_block_fees_satoshis{*}"}),
            graph("Weight of the next block", "si:WU", "Weight of the transactions of the next block, and of the last one.",
                  {"{{node}} next": weight, "{{node}} last": "bitcoin_last_block_weight{*}"}),
            graph("Time to build a template", "s", "Response time of the node to a request for a template.",
                  quantiles("bitcoin_template_duration_seconds")),
            graph("Time from tip to template", "s", "Time from learning of a new tip to receiving the first template built on it.",
                  quantiles("bitcoin_template_after_tip_seconds")),
            graph("Templates", "cpm", "Templates that the exporter received per minute, and failed requests.",
                  {"{{node}} built": f"60 * {templates}_count{{*}}[10m])",
                   "{{node}} failed": '60 * rate(bitcoin_exporter_poll_failures_total{*,call="Mining.createNewBlock"}[10m])'}),
            graph("Node's time for templates", "percentunit", "Share of time that the node spent on the exporter's templates; at most 1 % "
                  "with `--next-block auto`.", {NAME: f"{templates}_sum{{*}}[10m])"}),
        ],
        "Tips": [
            graph("Tip changes in an hour", "none", "Changes of the tip within an hour.",
                  {NAME: "round(increase(bitcoin_tip_updates_total{*}[1h]))"}),
            graph("Tips of branches", "none", "Tips of the block tree by status; `valid-fork` tips are stale blocks.",
                  {"{{node}} {{status}}": "bitcoin_chain_tips{*}"}),
        ],
        "Mempool": [
            by_feerate(),
            rows("Bands", "si:vB", "Virtual size of the mempool in each band of fee rates; a band begins at `from` sat/vB.",
                 "bitcoin_mempool_feerate_vbytes{*}", ["node", "from"], span=8, hidden=["instance"]),
            graph("Fee rate for the next blocks", "suffix: sat/vB", "Lowest fee rate in the given number of blocks filled with the best transactions of the "
                  "mempool; absent if the mempool has fewer.", {"{{node}} {{blocks}}": "bitcoin_mempool_depth_feerate_sat_per_vbyte{*}"}),
            graph("Fees by fee rate", "si:sat", "Fees of the mempool's transactions by the fee rate at which they would be mined.",
                  {"{{node}} from {{from}} sat/vB": "bitcoin_mempool_feerate_fees_satoshis{*}"}),
        ],
        "Node threads": [
            graph("Processor time by thread", "percentunit", "Processor time as a share of one processor: `capnp-loop` serves all IPC clients "
                  "and runs their calls, including templates; `msghand` connects blocks; `scriptch` checks scripts.",
                  {"{{node}} {{thread}}": rate("bitcoin_node_process_cpu_seconds_total", by="thread")}, stacked=True),
            graph("Node's memory", "bytes", "Resident memory of the node, including the transactions of each template until its destruction.",
                  {NAME: "bitcoin_node_process_resident_memory_bytes{*}"}),
        ],
    })


DASHBOARDS = [
    build("bitcoin-fleet", "Bitcoin fleet", "All nodes at a glance, from the recording rules.", "bitcoind-ipc", FLEET),
    build("bitcoin-node", "Bitcoin node", "A Bitcoin node over IPC: chain, mempool, fees, peers, traffic, UTXO cache, and "
          "bitcoind-ipc-exporter itself.", "bitcoind-ipc", NODE, unfolded=5, one_node=True),
    build("bitcoin-fibre", "FIBRE", "Block relay by FIBRE/UDP compared with BIP152 compact blocks, from the node's tracepoints.",
          "bitcoind-usdt|fibre", FIBRE),
    build("bitcoin-relay", "Block relay", "How blocks arrive at a node, from its tracepoints: announcements, compact blocks, requested transactions, and FIBRE "
          "if the node has it.", "bitcoind-usdt|fibre", relay()),
    build("bitcoin-internals", "Node internals", "A Bitcoin node from its tracepoints: messages, connections, blocks, "
          "UTXO cache, mempool; and values polled over JSON-RPC.", "bitcoind-usdt|fibre", INTERNALS),
    mining(),
    propagation(),
]


def main():
    check = sys.argv[1:] == ["--check"]
    stale = []
    for board in DASHBOARDS:
        file = FOLDER / f"{board.uid}.json"
        text = encoded(board)
        if check and (not file.exists() or file.read_text() != text):
            stale.append(file.name)
        elif not check:
            file.write_text(text)
    if stale:
        sys.exit(f"out of date: {', '.join(stale)}; run contrib/grafana/dashboards.py")


if __name__ == "__main__":
    main()
