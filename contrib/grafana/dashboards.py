#!/usr/bin/env python3
"""Writes the dashboards. `dashboards.py [--check]` compares instead. Needs what requirements.txt names.

A panel is a title, a unit, a description, and a legend for each expression; `{*}` is the choice of job, exporter and
node, `{*,x="y"}` narrows it, and `{@}` is the choice of node alone, for series of the other exporter.
"""

import json
import pathlib
import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from panels import bars, build, columns, graph, logs, number, rows, text_of_label

FOLDER = pathlib.Path(__file__).parent / "dashboards"
UP = {0: ("down", "red"), 1: ("up", "green")}
YES = {0: ("no", "green"), 1: ("yes", "orange")}


def rate(metric, labels="", by=""):
    """Per second, for each node and exporter, and by labels."""
    return f"sum by ({','.join(['node', 'instance', by]).rstrip(',')}) (rate({metric}{{*{labels}}}[$__rate_interval]))"


# Blocks come every ten minutes, so what comes with them is counted over an hour: a shorter window is mostly empty.


def hourly(metric, by=""):
    """Within an hour, for each node and exporter, and by labels. Whole numbers: increase() extrapolates."""
    return f"round(sum by ({','.join(['node', 'instance', by]).rstrip(',')}) (increase({metric}{{*}}[1h])))"


def quantiles(metric, by="", window="1h"):
    """Of a histogram: the median and the tail, for each node and exporter, and by a label."""
    grouping = ",".join(["le", "node", "instance", by]).rstrip(",")
    legend = "{{node}} {{%s}}" % by if by else "{{node}}"
    return {
        f"{legend} p{quantile:.0%}".replace("%", ""):
            f"histogram_quantile({quantile}, sum by ({grouping}) (rate({metric}_bucket{{*}}[{window}])))"
        for quantile in [0.5, 0.9, 0.99]
    }


def mean(metric):
    """Of a histogram, over an hour."""
    return f"increase({metric}_sum{{*}}[1h]) / increase({metric}_count{{*}}[1h])"


NAME = "{{node}}"

NODE = {
    "At a glance": [
        number("Node", "none", "Whether the exporter's connection to the node works and its last poll succeeded; down as well "
               "while the exporter itself cannot be scraped.", {NAME: "bitcoin_up{*} or up{*} == 0"}, words=UP),
        number("Firing alerts", "none", "Alerts that fire, on the chosen nodes. What to do: docs/alerts.md.",
               {"firing": 'count(ALERTS{alertstate="firing",node=~"$node"}) or vector(0)'}, steps=[(1, "orange")]),
        number("Tip age", "s", "Time since the time in the tip's header, which its miner chose. Mainnet finds a block in 10 "
               "minutes on average.", {NAME: "time() - bitcoin_tip_timestamp_seconds{*}"},
               steps=[(3600, "orange"), (7200, "red")]),
        number("Height", "none", "Height of the tip of the active chain.", {NAME: "bitcoin_chain_height{*}"}),
        number("Outbound peers", "none", "Connections that the node opened. A node has 10 by default; with none it hears only "
               "what inbound peers choose to tell.", {NAME: 'bitcoin_connections{*,direction="out"}'},
               steps=[(None, "red"), (1, "orange"), (8, "green")]),
        number("Headers ahead", "none", "Headers that are known and whose blocks are not connected yet.",
               {NAME: "bitcoin_header_height{*} - bitcoin_chain_height{*}"}, steps=[(2, "orange"), (10, "red")]),
        number("Mempool full", "percentunit", "Memory of the mempool, as a share of what it may use.",
               {NAME: "bitcoin_mempool_bytes{*} / bitcoin_mempool_max_bytes{*}"},
               steps=[(0.8, "orange"), (0.98, "red")]),
        number("Mempool", "short", "Transactions in the mempool.", {NAME: "bitcoin_mempool_size{*}"}),
        number("Peers", "none", "Connected peers, inbound and outbound.", {NAME: "bitcoin_peers{*}"}),
        number("Initial block download", "none", "Whether the node is still catching up with the chain.",
               {NAME: "bitcoin_ibd{*}"}, words=YES),
        number("Sync", "percentunit", "Estimated share of the chain's transactions that are verified.",
               {NAME: "bitcoin_verification_progress{*}"}),
        number("Warnings", "none", "Present warnings of the node. The exporter logs their text; `bitcoin-cli getnetworkinfo` has it.",
               {NAME: "sum without (kind) (bitcoin_warnings{*})"}, steps=[(1, "orange")]),
        number("Uptime", "s", "Time since the node started.", {NAME: "bitcoin_node_uptime_seconds{*}"}),
        text_of_label("Version", "What the node calls itself.", "subversion", "bitcoin_node_info{*}", span=20),
    ],
    "Chain": [
        graph("Height", "none", "Blocks of the active chain, and the best known header.",
              {"{{node}} blocks": "bitcoin_chain_height{*}", "{{node}} headers": "bitcoin_header_height{*}"},
              least=None),
        graph("Blocks", "none", "Blocks connected and disconnected within an hour. Disconnected blocks are a reorganization.",
              {"{{node}} connected": "round(increase(bitcoin_blocks_connected_total{*}[1h]))",
               "{{node}} disconnected": "round(increase(bitcoin_blocks_disconnected_total{*}[1h]))"}),
        graph("Tip age", "s", "Time since the time in the tip's header; it falls with each block.",
              {NAME: "time() - bitcoin_tip_timestamp_seconds{*}"}),
        graph("Tip changes", "none", "Changes of the tip within an hour.",
              {"{{node}} changes": "round(increase(bitcoin_tip_updates_total{*}[1h]))"}),
        graph("Last connected block", "none", "Height of the last block that was connected while we watched.",
              {NAME: "bitcoin_block_height{*}"}, least=None),
        graph("Chain tips", "none", "Tips of the block tree by status: forks that the node has seen.",
              {"{{node}} {{status}}": "bitcoin_chain_tips{*}"}),
        graph("Verification progress", "percentunit", "Estimated share of the chain's transactions that are verified.",
              {NAME: "bitcoin_verification_progress{*}"}),
        graph("Difficulty", "sishort", "Proof-of-work difficulty of the tip.", {NAME: "bitcoin_difficulty{*}"}),
        graph("Hashrate", "Hs", "Estimated from the last blocks: 144 are a day, 2016 a difficulty period.",
              {"{{node}} {{blocks}} blocks": "bitcoin_hashrate_estimate{*}"}),
        graph("Size on disk", "bytes", "Block and undo files.", {NAME: "bitcoin_chain_size_bytes{*}"}),
        graph("Pruned to", "none", "First block that a pruning node stores whole; nodes that do not prune have none.",
              {NAME: "bitcoin_prune_height{*}"}, least=None),
        graph("Pruning", "none", "1 on nodes that prune.", {NAME: "bitcoin_pruned{*}"}),
        graph("Index lag", "none", "Blocks by which each optional index is behind the chain.",
              {"{{node}} {{index}}": "bitcoin_chain_height{*} - on (job,instance,node) group_right () bitcoin_index_height{*}"}),
        graph("Chainstates", "none", "Height of each chainstate: normal, or after loading a snapshot (assumeutxo) the one that follows "
              "the chain and, until the snapshot is validated, the one in the background.",
              {"{{node}} {{chainstate}}": "bitcoin_chainstate_height{*}"}, least=None),
        graph("Background validation", "percentunit", "Share of the transactions below an assumeutxo snapshot that are validated. Needs "
              "Bitcoin Core 32.", {NAME: "bitcoin_background_validation_progress{*}"}),
        graph("Signalling", "none", "Blocks of this period that signal for a soft fork that is not locked in yet.",
              {"{{node}} {{deployment}}": "bitcoin_deployment_signalling_blocks{*}"}),
    ],
    "Blocks": [
        graph("Transactions of the tip", "none", "Transactions of the last block, coinbase included.",
              {NAME: "bitcoin_last_block_transactions{*}"}),
        graph("Weight and size of the tip", "short", "Weight units and bytes of the last block, without its coinbase.",
              {"{{node}} weight": "bitcoin_last_block_weight{*}",
               "{{node}} bytes": "bitcoin_last_block_size_bytes{*}"}),
        graph("Fees of the tip", "si:sat", "Fees that the transactions of the last block paid.",
              {NAME: "bitcoin_last_block_fees_satoshis{*}"}),
        graph("Inputs and outputs of the tip", "none", "Inputs and outputs of the last block: inputs without, outputs with the coinbase.",
              {"{{node}} inputs": "bitcoin_last_block_inputs{*}",
               "{{node}} outputs": "bitcoin_last_block_outputs{*}"}),
        graph("Connected in an hour", "short", "Transactions, inputs and outputs of the blocks that were connected within an "
              "hour, from the blocks themselves. Needs the Chain interface.",
              {"{{node}} transactions": hourly("bitcoin_connected_transactions_total"),
               "{{node}} inputs": hourly("bitcoin_connected_inputs_total"),
               "{{node}} outputs": hourly("bitcoin_connected_outputs_total")}),
        graph("Size connected in an hour", "bytes", "Serialized size of the blocks that were connected within an hour. Needs the "
              "Chain interface.", {NAME: hourly("bitcoin_connected_bytes_total")}),
        graph("Historical blocks connected in an hour", "none", "Blocks that an assumeutxo node connected within an hour far below its "
              "tip, to check its snapshot. Needs the Chain interface.", {NAME: hourly("bitcoin_historical_blocks_connected_total")}),
        graph("Tip changes not counted", "none", "Tip changes within an hour whose blocks could not be counted: another chain, pruned "
              "away, or a call that failed.", {NAME: "round(increase(bitcoin_exporter_uncounted_tip_changes_total{*}[1h]))"}),
        graph("Weight connected in an hour", "si:WU", "Weight of the blocks that were connected within an hour; a block has at most "
              "4 MWU. Needs the Chain interface.", {NAME: hourly("bitcoin_connected_weight_total")}),
        graph("Value connected in an hour", "si:sat", "Value of the outputs of the blocks that were connected within an hour. "
              "Needs the Chain interface.", {NAME: hourly("bitcoin_connected_output_value_satoshis_total")}),
    ],
    "Mempool": [
        graph("Transactions", "short", "Transactions in the mempool.", {NAME: "bitcoin_mempool_size{*}"}),
        graph("Memory", "bytes", "Memory that the mempool uses, and that it may use (`-maxmempool`).",
              {"{{node}} used": "bitcoin_mempool_bytes{*}", "{{node}} limit": "bitcoin_mempool_max_bytes{*}"}),
        graph("Virtual size", "si:vB", "Virtual size of the mempool's transactions; a block takes 1 MvB.",
              {NAME: "bitcoin_mempool_vbytes{*}"}),
        graph("Fees waiting", "si:sat", "Fees of all of the mempool's transactions.",
              {NAME: "bitcoin_mempool_fees_satoshis{*}"}),
        graph("In and out", "cps", "Transactions added to and removed from the mempool per second. Needs the Chain "
              "interface, or bitcoind-usdt-exporter.",
              {"{{node}} added": rate("bitcoin_mempool_tx_added_total"),
               "{{node}} {{reason}}": rate("bitcoin_mempool_tx_removed_total", by="reason")}),
        graph("Not yet relayed", "none", "The node's own transactions that no peer has asked for yet.",
              {NAME: "bitcoin_mempool_unbroadcast{*}"}),
        graph("Orphans", "none", "Transactions that wait for those whose outputs they spend. Needs Bitcoin Core 29.",
              {NAME: "bitcoin_orphan_transactions{*}"}),
        graph("Private broadcast", "none", "The node's own transactions that are sent over connections of their own "
              "(`-privatebroadcast`) and have not come back yet. Needs Bitcoin Core 31.",
              {NAME: "bitcoin_private_broadcast_pending{*}"}),
    ],
    "Fees": [
        graph("Fee estimates", "suffix: sat/vB", "Feerate to be confirmed within so many blocks, as the node estimates it; absent without an estimate.",
              {"{{node}} {{blocks}} blocks": "bitcoin_fee_estimate_sat_per_vbyte{*}"}),
        graph("Minimum feerate", "suffix: sat/vB", "Below it the mempool takes no transaction; it rises when it is full.",
              {NAME: "bitcoin_mempool_min_feerate_sat_per_vbyte{*}"}),
    ],
    "Peers": [
        graph("Connections", "none", "Connected peers by who opened the connection: in or out.",
              {"{{node}} {{direction}}": "bitcoin_connections{*}", "{{node}} all": "bitcoin_peers{*}"}),
        graph("By network", "none", "Connected peers by network.",
              {"{{node}} {{network}}": "sum by (node,instance,network) (bitcoin_peers_by{*})"}, stacked=True),
        graph("By type", "none", "Connected peers by type of connection.",
              {"{{node}} {{connection_type}}": "sum by (node,instance,connection_type) (bitcoin_peers_by{*})"},
              stacked=True),
        graph("By transport", "none", "Connected peers by transport protocol: v2 is encrypted.",
              {"{{node}} {{transport}}": "sum by (node,instance,transport) (bitcoin_peers_by{*})"}, stacked=True),
        graph("Ping", "s", "Last ping time over the present peers: median, 90th percentile, slowest.",
              {"{{node}} p{{percentile}}": "bitcoin_peer_ping_seconds{*}"}),
        graph("Shortest ping", "s", "Each peer's shortest ping time, over the present peers: median, 90th percentile, slowest.",
              {"{{node}} p{{percentile}}": "bitcoin_peer_min_ping_seconds{*}"}),
        graph("By protocol version", "none", "Connected peers by protocol version.",
              {"{{node}} {{version}}": "bitcoin_peers_by_version{*}"}, stacked=True),
        graph("High-bandwidth peers", "none", "Peers in high-bandwidth mode (BIP152): `to` those that we chose, `from` those that chose us.",
              {"{{node}} {{direction}}": "bitcoin_peers_high_bandwidth{*}"}),
        graph("Remarkable peers", "none", "Peers whose clock is off by more than 10 seconds; whose ping is unanswered for more "
              "than 5; who take transactions below 1 sat/vB; who take part in address relay.",
              {"{{node}} clock off": "bitcoin_peers_clock_off{*}",
               "{{node}} ping overdue": "bitcoin_peers_ping_overdue{*}",
               "{{node}} low fees": "bitcoin_peers_low_fee_relay{*}",
               "{{node}} address relay": "bitcoin_peers_addr_relay{*}"}),
        graph("Download", "none", "Blocks in flight, and the peers that send them.",
              {"{{node}} blocks": "bitcoin_blocks_in_flight{*}",
               "{{node}} peers": "bitcoin_peers_with_blocks_in_flight{*}"}),
        graph("Banned", "none", "Addresses and subnets that are banned.", {NAME: "bitcoin_banned{*}"}),
        graph("Largest group", "none", "The most peers in one group of addresses: an IPv4 /16 or IPv6 /32, or an autonomous system (with "
              "`-asmap`). Many are a sign of somebody who surrounds the node.",
              {"{{node}} {{by}} {{direction}}": "bitcoin_peers_largest_group{*}"}),
        graph("Announcements queued", "none", "Transactions that wait to be announced: to all peers, and to the one that waits for the "
              "most. Needs Bitcoin Core 31, asked over JSON-RPC.", {"{{node}} {{statistic}}": "bitcoin_peers_inv_to_send{*}"}),
        graph("Addresses dropped", "none", "Peers that sent more addresses than the node takes.",
              {NAME: "bitcoin_peers_addr_rate_limited{*}"}),
        graph("Known addresses", "short", "Addresses of peers that the node knows, by network: `new` those that it heard of, `tried` those "
              "that it was connected to.", {"{{node}} {{network}} {{table}}": "bitcoin_addrman_addresses{*}"}, stacked=True),
        graph("Networks", "none", "1 for each network that the node opens connections to; `active` is 0 when all are switched off "
              "(`setnetworkactive`).",
              {"{{node}} {{network}}": "bitcoin_network_reachable{*}", "{{node}} active": "bitcoin_network_active{*}"}),
    ],
    "Traffic": [
        graph("Bandwidth", "Bps", "Bytes per second, from the node's own totals.",
              {"{{node}} received": rate("bitcoin_bytes_recv_total"),
               "{{node}} sent": rate("bitcoin_bytes_sent_total")}),
        graph("Received by message", "Bps", "Bytes per second of messages with the present peers, by type.",
              {"{{node}} {{type}}": rate("bitcoin_p2p_message_bytes_total", ',direction="in"', "type")},
              stacked=True),
        graph("Sent by message", "Bps", "Bytes per second of messages with the present peers, by type.",
              {"{{node}} {{type}}": rate("bitcoin_p2p_message_bytes_total", ',direction="out"', "type")},
              stacked=True),
    ],
    "UTXO cache": [
        graph("Coins", "cps", "Coins added to, spent from and dropped from a UTXO cache per second. Needs the Tracing interface "
              "and the end of initial block download.",
              {"{{node}} added": rate("bitcoin_utxo_cache_add_total"),
               "{{node}} spent": rate("bitcoin_utxo_cache_spend_total"),
               "{{node}} dropped": rate("bitcoin_utxo_cache_uncache_total")}),
        graph("Value", "si:sat/s", "Value of the coins added to, spent from and dropped from a UTXO cache per second.",
              {"{{node}} added": rate("bitcoin_utxo_cache_add_value_total"),
               "{{node}} spent": rate("bitcoin_utxo_cache_spend_value_total"),
               "{{node}} dropped": rate("bitcoin_utxo_cache_uncache_value_total")}),
        graph("Flushes", "none", "Flushes of the chain state to disk within an hour. Needs the Chain interface.",
              {NAME: "round(increase(bitcoin_chain_state_flushes_total{*}[1h]))"}),
        graph("UTXO trace", "none", "Which state the trace is in: active, off, ibd (it waits), over_budget (given up).",
              {"{{node}} {{state}}": "bitcoin_exporter_utxo_trace{*}"}),
    ],
    "Process": [
        graph("Resident memory", "bytes", "Resident memory of the node. Needs IPC, as all in this row.",
              {NAME: "bitcoin_node_process_resident_memory_bytes{*}"}),
        graph("Processor time", "percentunit", "Processor time by group of threads; 100 % is one processor.",
              {"{{node}} {{thread}}": rate("bitcoin_node_process_cpu_seconds_total", by="thread")}, stacked=True),
        graph("Disk", "Bps", "Bytes per second that the node made disks read and write. Needs an exporter that runs as the node's user.",
              {"{{node}} {{direction}}": rate("bitcoin_node_process_io_bytes_total", by="direction")}),
        graph("Written in an hour", "bytes", "Bytes that the node made disks write within an hour. Rewriting mainnet's chainstate takes "
              "some 11 GB.", {NAME: 'round(increase(bitcoin_node_process_io_bytes_total{*,direction="write"}[1h]))'}),
        graph("Page faults", "cps", "Page faults per second: `major` ones had to wait for a disk.",
              {"{{node}} {{kind}}": rate("bitcoin_node_process_page_faults_total", by="kind")}),
        graph("Descriptors and threads", "none", "Open file descriptors and threads of the node.",
              {"{{node}} descriptors": "bitcoin_node_process_open_fds{*}", "{{node}} threads": "bitcoin_node_process_threads{*}"}),
        graph("Caches", "bytes", "Memory that the node allows each cache of coins (`-dbcache`): `db` the database's, `tip` the one above it.",
              {"{{node}} {{chainstate}} {{cache}}": "bitcoin_chainstate_cache_bytes{*}"}),
    ],
    "Exporter": [
        graph("Connection", "none", "1 while the connection to the node works and the last poll succeeded.", {NAME: "bitcoin_up{*}"}, span=8),
        graph("Since the last poll", "s", "Time since the end of the last successful poll; it grows while the node does not answer.",
              {NAME: "time() - bitcoin_exporter_last_poll_timestamp_seconds{*}"}, span=8),
        graph("Connects and disconnects", "none", "Connections to the node that began and ended within an hour; why they ended: shutdown, lost, hung, refused.",
              {"{{node}} connects": "round(increase(bitcoin_exporter_connects_total{*}[1h]))",
               "{{node}} {{reason}}": "round(increase(bitcoin_exporter_disconnects_total{*}[1h]))"}, span=8),
        graph("Poll time", "s", "Time that a poll of the node took.", quantiles("bitcoin_exporter_poll_duration_seconds", window="$__rate_interval")),
        graph("Failed calls", "none", "Calls to the node that failed within an hour, by call.",
              {"{{node}} {{call}}": "round(increase(bitcoin_exporter_poll_failures_total{*}[1h]))"}),
        graph("Notifications", "cps", "What the node told us per second, by callback.",
              {"{{node}} {{callback}}": rate("bitcoin_exporter_callbacks_total", by="callback")}),
        graph("Time the node waited", "s", "How long we kept the node waiting for the answer to a notification.",
              quantiles("bitcoin_exporter_callback_duration_seconds", window="$__rate_interval")),
        graph("Guard's wait for a processor", "percentunit", "Share of time that the guard was ready to answer the node and waited for "
              "a processor: a quota, or a busy machine.",
              {NAME: "rate(bitcoin_exporter_guard_run_delay_seconds_total{*}[$__rate_interval])"}),
        graph("Not counted", "none", "Events that were answered but not counted, and log lines that were not written, within an hour.",
              {"{{node}} {{event}}": "round(increase(bitcoin_exporter_events_dropped_total{*}[1h]))",
               "{{node}} log lines": "round(increase(bitcoin_exporter_log_lines_dropped_total{*}[1h]))"}),
        graph("Exporter's processor time", "percentunit", "Processor time of the exporter, as a share of one processor.",
              {NAME: "rate(process_cpu_seconds_total{*}[$__rate_interval])"}),
        graph("Exporter's memory", "bytes", "Resident memory of the exporter.", {NAME: "process_resident_memory_bytes{*}"}, span=8),
        graph("Exporter's descriptors", "none", "Open files and sockets of the exporter.", {NAME: "process_open_fds{*}"}, span=8),
        number("Exporter's uptime", "s", "Time since the exporter started.", {NAME: "time() - process_start_time_seconds{*}"},
               span=8),
        graph("Locked memory of the node", "bytes", "The node's locked pool, for keys.",
              {"{{node}} {{state}}": "bitcoin_memory_locked_bytes{*}"}),
        rows("Interfaces", "none", "What each node offers over IPC.", "bitcoin_exporter_interface{*}",
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

# From the recording rules.
FLEET = {
    "At a glance": [
        number("Nodes up", "none", "Nodes whose exporter has a working connection to them.",
               {"up": "sum(instance:bitcoin_up:value{*})"}),
        number("Nodes down", "none", "Nodes that are down, or whose exporter cannot be scraped.",
               {"down": "count(instance:bitcoin_up:value{*} == 0) or vector(0)"}, steps=[(1, "red")]),
        number("Firing alerts", "none", "Alerts that fire, on the chosen nodes. What to do: docs/alerts.md.",
               {"firing": 'count(ALERTS{alertstate="firing",node=~"$node"}) or vector(0)'}, steps=[(1, "orange")]),
        number("Most blocks behind", "none", "Blocks that the last of the chosen nodes is behind the best of its chain.",
               {"behind": "max(instance:bitcoin_blocks_behind:value{*})"}, steps=[(1, "orange"), (3, "red")]),
        number("Oldest tip", "s", "Greatest age of a tip of the chosen nodes.",
               {"age": "max(instance:bitcoin_tip_age_seconds:value{*})"}, steps=[(3600, "orange"), (7200, "red")]),
        number("Fewest outbound peers", "none", "Outbound peers of the node that has the fewest.",
               {"peers": "min(instance:bitcoin_outbound_peers:value{*})"},
               steps=[(None, "red"), (1, "orange"), (8, "green")]),
    ],
    "Nodes": [
        columns("Nodes", "Each node: whether it is up, its height, how far it is behind the best of its chain, the age of its tip, "
                "its outbound peers, and how full its mempool is.",
                {"Up": ("instance:bitcoin_up:value{*}", "none", UP),
                 "Height": ("instance:bitcoin_chain_height:value{*}", "none", None),
                 "Behind": ("instance:bitcoin_blocks_behind:value{*}", "none", None),
                 "Tip age": ("instance:bitcoin_tip_age_seconds:value{*}", "s", None),
                 "Outbound": ("instance:bitcoin_outbound_peers:value{*}", "none", None),
                 "Mempool": ("instance:bitcoin_mempool_used:ratio{*}", "percentunit", None)}, by="node"),
        rows("Alerts", "none", "Alerts that fire, on the chosen nodes.", 'ALERTS{alertstate="firing",node=~"$node"}',
             ["node", "severity", "alertname"], span=24, hidden=["alertstate", "instance", "Value"], sort="severity"),
    ],
    "Chains": [
        graph("Nodes up", "none", "Nodes of each chain that are up, and those that were seen within a day.",
              {"{{chain}} up": "chain:bitcoin_up:sum", "{{chain}} known": "chain:bitcoin_nodes:count"}),
        graph("Best height", "none", "Greatest height of our nodes on each chain.",
              {"{{chain}}": "chain:bitcoin_chain_height:max"}, least=None),
    ],
    "Compared": [
        graph("Blocks behind", "none", "Blocks that each node is behind the best of its chain.",
              {NAME: "instance:bitcoin_blocks_behind:value{*}"}),
        graph("Tip age", "s", "Time since the time in the header of each node's tip.",
              {NAME: "instance:bitcoin_tip_age_seconds:value{*}"}),
        graph("Outbound peers", "none", "Connections that each node opened.",
              {NAME: "instance:bitcoin_outbound_peers:value{*}"}),
        graph("Mempool used", "percentunit", "Memory of each node's mempool, as a share of what it may use.",
              {NAME: "instance:bitcoin_mempool_used:ratio{*}"}),
        graph("Blocks disconnected", "none", "Blocks that each node disconnected within an hour: a reorganization.",
              {NAME: "instance:bitcoin_blocks_disconnected:increase1h{*}"}),
        graph("Mempool", "short", "Transactions in each node's mempool.", {NAME: "bitcoin_mempool_size{*}"}),
    ],
}

FIBRE = {
    "At a glance": [
        number("Blocks reconstructed", "none", "Blocks reconstructed from FIBRE/UDP chunks in the chosen time.",
               {NAME: "round(increase(fibre_blocks_reconstructed_total{*}[$__range]))"}),
        number("Blocks sent", "none", "Blocks that the node began to send over FIBRE in the chosen time.",
               {NAME: "round(increase(fibre_blocks_sent_total{*}[$__range]))"}),
        number("FIBRE win rate", "percentunit", "Share of the races of the chosen time that FIBRE/UDP won.",
               {NAME: 'sum by (node,instance) (increase(fibre_block_race_wins_total{*,mechanism="fibre_udp"}[$__range])) / '
                      "sum by (node,instance) (increase(fibre_block_race_wins_total{*}[$__range]))"}),
        number("Last block", "none", "Height of the block that was seen last: connected, raced or reconstructed.", {NAME: "fibre_last_block_height{*}"}),
        number("UDP wins", "none", "Blocks of the chosen time that FIBRE/UDP delivered first.",
               {NAME: 'round(increase(fibre_block_race_wins_total{*,mechanism="fibre_udp"}[$__range]))'}),
        number("Compact block wins", "none", "Blocks of the chosen time that BIP152 compact blocks delivered first.",
               {NAME: 'round(increase(fibre_block_race_wins_total{*,mechanism="bip152_cmpct"}[$__range]))'}),
    ],
    "Races": [
        graph("Race wins over time", "none", "Races won within an hour, by the mechanism that won.",
              {"{{node}} {{mechanism}}": hourly("fibre_block_race_wins_total", by="mechanism")}, stacked=True),
        graph("Wins by mechanism", "percentunit", "Share of the races that each mechanism won within an hour.",
              {"{{node}} {{mechanism}}": "increase(fibre_block_race_wins_total{*}[1h]) / on (job,instance,node) "
               "group_left () sum by (job,instance,node) (increase(fibre_block_race_wins_total{*}[1h]))"}),
        graph("Relay latency", "s", "Time until a mechanism had the block, of those that took part.",
              quantiles("fibre_block_race_latency_seconds", by="mechanism")),
        graph("Winning margin", "s", "Time by which the winner was ahead, of the races that both mechanisms took part in.",
              quantiles("fibre_race_margin_seconds", by="winner")),
        bars("Block race results", "none", "Blocks of the chosen time by the mechanism that delivered them first, and races that both "
             "took part in.",
             {"{{node}} {{mechanism}}": "round(increase(fibre_block_race_wins_total{*}[$__range]))",
              "{{node}} both took part": "round(increase(fibre_races_with_both_total{*}[$__range]))"}),
        rows("Delivery by peer", "none", "Blocks of the chosen time by the mechanism and the peer that delivered them first: the 50 largest.",
             "topk(50, round(sum by (node,mechanism,peer) (increase(fibre_block_deliveries_total{*}[$__range]))))",
             ["node", "peer", "mechanism"]),
    ],
    "Reconstruction": [
        graph("Reconstruction time", "s", "Time from the first chunk of a block to the whole block.",
              quantiles("fibre_block_reconstruction_duration_seconds")),
        graph("Blocks", "none", "Blocks reconstructed from FIBRE/UDP and sent over it within an hour.",
              {"{{node}} reconstructed": "round(increase(fibre_blocks_reconstructed_total{*}[1h]))",
               "{{node}} sent": "round(increase(fibre_blocks_sent_total{*}[1h]))"}),
        graph("Chunks in an hour", "short", "Chunks of the blocks that were reconstructed within an hour.",
              {"{{node}} received": hourly("fibre_chunks_received_total"),
               "{{node}} used": hourly("fibre_chunks_used_total")}),
        graph("Chunk efficiency", "percentunit", "Share of the received chunks that were needed, over an hour.",
              {NAME: f"{hourly('fibre_chunks_used_total')} / {hourly('fibre_chunks_received_total')}"}),
        graph("Chunks per block", "none", "Chunks used to reconstruct one block.", quantiles("fibre_block_chunks_used")),
        graph("Transactions from the mempool", "none", "Mean number of transactions of a reconstructed block that were in the mempool and that were not. Needs "
              "`udp:block_reconstruction_detail` in the node.",
              {"{{node}} in the mempool": mean("fibre_block_mempool_tx_count"),
               "{{node}} missing": mean("fibre_block_missing_tx_count")}),
        graph("Missing bytes", "bytes", "Mean size of the transactions that were not in the mempool.",
              {NAME: mean("fibre_block_missing_tx_bytes")}),
        graph("Nothing missing", "none", "Reconstructed blocks within an hour whose transactions were all in the mempool.",
              {NAME: "round(increase(fibre_block_all_tx_from_mempool_total{*}[1h]))"}),
    ],
    "Peers": [
        graph("UDP peers", "none", "FIBRE/UDP peers that have answered and those that have not, by group. From bitcoind-ipc-exporter, by "
              "`getudppeerinfo`.",
              {"{{node}} group {{group}}": "bitcoin_fibre_peers_connected{@}",
               "{{node}} group {{group}} not connected": "bitcoin_fibre_peers{@} - bitcoin_fibre_peers_connected{@}"}, span=8),
        graph("Round trip", "s", "Round trips to the FIBRE/UDP peers of a group: of the last ten pings of each, one in 15 minutes.",
              {"{{node}} group {{group}} {{statistic}}": "bitcoin_fibre_peer_round_trip_seconds{@}"}, span=8),
        graph("Silence", "s", "Time since the most silent peer of a group was heard. Each says something every 10 seconds.",
              {"{{node}} group {{group}}": "bitcoin_fibre_peer_silence_seconds{@}"}, span=8),
    ],
    "Exporter": [
        number("Exporter", "none", "Whether Prometheus can scrape bitcoind-usdt-exporter.", {NAME: "up{*}"}, words=UP),
        number("Probes attached", "none", "Tracepoints that are attached; 0 while no node with tracepoints runs.",
               {NAME: "fibre_exporter_probes_attached{*}"}),
        number("Uptime", "s", "Time since bitcoind-usdt-exporter started.", {NAME: "time() - fibre_exporter_start_time_seconds{*}"}),
        text_of_label("Version", "Version of bitcoind-usdt-exporter.", "version", "fibre_exporter_info{*}"),
        graph("Events", "none", "FIBRE events within an hour, by tracepoint.",
              {"{{node}} {{event_type}}": hourly("fibre_exporter_events_processed_total", by="event_type")}, span=8),
        graph("Errors", "none", "Events within an hour that were lost or not read whole.",
              {"{{node}} {{error_type}}": "round(increase(fibre_exporter_errors_total{*}[1h]))"}, span=8),
    ],
}

def relay():
    """How blocks come to the node, from what its peers say."""
    announced = 'sum by (job,instance,node) (increase(bitcoin_block_arrivals_total{*,by!="other"}[%s]))'
    without = 'sum by (job,instance,node) (increase(bitcoin_block_arrivals_total{*,by=~"compact_complete|fibre"}[%s]))'
    shared = f"{without} / {announced}"
    return {
        "At a glance": [
            number("Without a round trip", "percentunit", "Share of the blocks of the chosen time that were announced and for which "
                   "nothing had to be requested: the compact block was enough, or FIBRE had the block.",
                   {NAME: shared % (("$__range",) * 2)}),
            number("Arrival, median", "s", "Half of the blocks of the chosen time took longer from the first announcement until they "
                   "were connected.", {NAME: "histogram_quantile(0.5, sum by (le,node,instance) "
                                       "(rate(bitcoin_block_arrival_seconds_bucket{*}[$__range])))"}, steps=[(2, "orange"), (10, "red")]),
            number("Assembly, median", "s", "Half of the compact blocks of the chosen time took longer until all transactions were there.",
                   {NAME: "histogram_quantile(0.5, sum by (le,node,instance) "
                          "(rate(bitcoin_block_assembly_seconds_bucket{*}[$__range])))"}),
            number("Whole blocks", "none", "Blocks of the chosen time that had to be fetched whole.",
                   {NAME: 'round(increase(bitcoin_block_arrivals_total{*,by="full_block"}[$__range]))'}),
            number("Requested transactions", "none", "Transactions that were requested for compact blocks in the chosen time.",
                   {NAME: "round(increase(bitcoin_compact_block_requested_transactions_sum{*}[$__range]))"}),
            number("FIBRE ahead", "s", "Half of the races of the chosen time that FIBRE won against a compact block were won by more. "
                   "FIBRE nodes only.", {NAME: 'histogram_quantile(0.5, sum by (le,node,instance) '
                                         '(rate(fibre_race_margin_seconds_bucket{*,winner="fibre_udp"}[$__range])))'}),
        ],
        "Arrival": [
            graph("From the first announcement until connected", "s", "Median and tail of an hour. Exemplars in Prometheus name the "
                  "block.", quantiles("bitcoin_block_arrival_seconds")),
            graph("From the first compact block until complete", "s", "Median and tail of an hour.",
                  quantiles("bitcoin_block_assembly_seconds")),
            graph("What completed blocks", "none", "Blocks connected within an hour, by what completed them; `other` was announced "
                  "by nobody: a sync, or a block of the node's own.",
                  {"{{node}} {{by}}": hourly("bitcoin_block_arrivals_total", by="by")}, stacked=True),
            graph("Share without a round trip", "percentunit", "Share of the blocks announced in six hours for which nothing had to be requested.",
                  {NAME: shared % (("6h",) * 2)}),
            graph("Age of the header", "s", "Time from that in the header of a block, which its miner chose, until the first announcement. "
                  "Median and tail of an hour.", quantiles("bitcoin_block_header_age_seconds")),
            graph("Connecting", "s", "Time that connecting a block took. Median and tail of an hour.",
                  quantiles("bitcoin_block_connection_duration_seconds")),
        ],
        "Compact blocks": [
            graph("Requested transactions", "none", "Transactions requested for one compact block. Median and tail of an hour.",
                  quantiles("bitcoin_compact_block_requested_transactions")),
            graph("Requested bytes", "bytes", "Bytes of the transactions requested for one compact block. Median and tail of an hour.",
                  quantiles("bitcoin_compact_block_requested_bytes")),
            graph("Round trip", "s", "Time from a request for transactions to their arrival. Median and tail of an hour.",
                  quantiles("bitcoin_compact_block_roundtrip_seconds")),
            graph("Prefilled transactions", "none", "Transactions that a compact block itself contained, the coinbase among them: mean of an hour.",
                  {NAME: mean("bitcoin_compact_block_prefilled_transactions")}),
            graph("Compact blocks received", "none", "Compact blocks received within an hour: as the announcement (high bandwidth), or after a "
                  "request (low bandwidth).", {"{{node}} {{mode}}": hourly("bitcoin_compact_blocks_received_total", by="mode")}),
        ],
        "Announcements": [
            graph("First announcers", "none", "Blocks connected within an hour, by the kind of connection of the peer that announced them first.",
                  {"{{node}} {{connection_type}}": hourly("bitcoin_block_first_announcements_total", by="connection_type")}, stacked=True),
            graph("Announcements", "none", "Announcements of blocks within an hour, by the message.",
                  {"{{node}} {{by}}": hourly("bitcoin_block_announcements_total", by="by")}),
        ],
        "FIBRE against compact blocks": [
            graph("Ahead by", "s", "Time by which the winner of a race had the block earlier, where both took part. Median and tail of an hour.",
                  quantiles("fibre_race_margin_seconds", by="winner")),
            graph("Wins", "none", "Races within an hour by the mechanism that won them.",
                  {"{{node}} {{mechanism}}": hourly("fibre_block_race_wins_total", by="mechanism")}, stacked=True),
        ],
    }


INTERNALS = {
    "Network": [
        graph("Messages by type", "cps", "Messages per second by type, both directions.",
              {"{{node}} {{type}}": rate("bitcoin_p2p_messages_total", by="type")}),
        graph("Bandwidth", "Bps", "Bytes per second of the messages, by direction.",
              {"{{node}} {{direction}}": rate("bitcoin_p2p_message_bytes_total", by="direction")}),
        graph("Connections", "none", "Open connections by who opened them.",
              {"{{node}} {{direction}}": "bitcoin_connections{*}"}),
        graph("Opened", "none", "Connections opened within an hour, by network.",
              {"{{node}} {{network}}": "round(sum by (node,instance,network) (increase(bitcoin_connections_opened_total{*}[1h])))"}),
        graph("Closed", "none", "Connections closed within an hour, by network.",
              {"{{node}} {{network}}": "round(increase(bitcoin_connections_closed_total{*}[1h]))"}),
        graph("Evicted and misbehaving", "none", "Connections closed to make room for others, and peers that misbehaved, within "
              "an hour.",
              {"{{node}} evicted": "round(increase(bitcoin_connections_evicted_total{*}[1h]))",
               "{{node}} misbehaving": "round(increase(bitcoin_connections_misbehaving_total{*}[1h]))"}),
    ],
    "Blocks": [
        graph("Connection time", "s", "Time that connecting a block took.",
              quantiles("bitcoin_block_connection_duration_seconds")),
        graph("Blocks connected", "none", "Blocks connected within an hour.", {NAME: "round(increase(bitcoin_blocks_connected_total{*}[1h]))"}),
        graph("Transactions per block", "none", "Mean number of transactions of the blocks connected within an hour.",
              {NAME: mean("bitcoin_block_tx_count")}),
        graph("Sigops per block", "none", "Mean cost of the signature operations of the blocks connected within an hour.",
              {NAME: mean("bitcoin_block_sigops")}),
        graph("Inputs per block", "none", "Mean number of inputs of the blocks connected within an hour.", {NAME: mean("bitcoin_block_inputs")}),
    ],
    "UTXO cache": [
        graph("Flush time", "s", "Time that writing the UTXO cache to disk took.",
              quantiles("bitcoin_utxo_cache_flush_duration_seconds")),
        graph("Coins at the last flush", "none", "Coins in the UTXO cache when it was written to disk.", {NAME: "bitcoin_utxo_cache_flush_coins{*}"}),
        graph("Memory at the last flush", "bytes", "Memory of the UTXO cache when it was written to disk.", {NAME: "bitcoin_utxo_cache_flush_bytes{*}"}),
        graph("Coins", "cps", "Coins added to, spent from and dropped from a UTXO cache per second.",
              {"{{node}} added": rate("bitcoin_utxo_cache_add_total"),
               "{{node}} spent": rate("bitcoin_utxo_cache_spend_total"),
               "{{node}} dropped": rate("bitcoin_utxo_cache_uncache_total")}),
    ],
    "Mempool": [
        graph("Transactions", "cpm", "Transactions added to the mempool, removed, replaced and rejected in a minute.",
              {"{{node}} added": f"60 * {rate('bitcoin_mempool_tx_added_total')}",
               "{{node}} removed": f"60 * {rate('bitcoin_mempool_tx_removed_total')}",
               "{{node}} replaced": f"60 * {rate('bitcoin_mempool_tx_replaced_total')}",
               "{{node}} rejected": f"60 * {rate('bitcoin_mempool_tx_rejected_total')}"}),
        graph("Mean feerate", "suffix: sat/vB", "Mean feerate of the transactions that entered the mempool.",
              {NAME: f"{rate('bitcoin_mempool_added_fees_satoshis_total')} / {rate('bitcoin_mempool_added_vbytes_total')}"}),
        graph("Why removed", "cpm", "Transactions removed in a minute, by reason.",
              {"{{node}} {{reason}}": f"60 * {rate('bitcoin_mempool_tx_removed_total', by='reason')}"}),
        graph("Why rejected", "cpm", "Transactions rejected in a minute, by reason.",
              {"{{node}} {{reason}}": "60 * " + rate("bitcoin_mempool_tx_rejected_total", by="reason")}),
    ],
    "From bitcoind-ipc-exporter": [
        graph("Sync progress", "percentunit", "Estimated share of the chain's transactions that are verified.",
              {NAME: "bitcoin_verification_progress{@}"}),
        graph("Height", "none", "Blocks of the active chain, and the best known header.",
              {"{{node}} blocks": "bitcoin_chain_height{@}", "{{node}} headers": "bitcoin_header_height{@}"},
              least=None),
        graph("Difficulty", "sishort", "Proof-of-work difficulty of the tip.", {NAME: "bitcoin_difficulty{@}"}),
        graph("Size on disk", "bytes", "Block and undo files.", {NAME: "bitcoin_chain_size_bytes{@}"}),
        graph("Transactions in the mempool", "short", "Transactions in the mempool, at each poll.", {NAME: "bitcoin_mempool_size{@}"}),
        graph("Mempool's memory", "bytes", "Memory that the mempool uses, and that it may use (`-maxmempool`).",
              {"{{node}} used": "bitcoin_mempool_bytes{@}", "{{node}} limit": "bitcoin_mempool_max_bytes{@}"}),
        graph("Minimum feerate", "suffix: sat/vB", "Below it the mempool takes no transaction.",
              {NAME: "bitcoin_mempool_min_feerate_sat_per_vbyte{@}"}),
        graph("Bandwidth, by the node's own totals", "Bps", "Bytes per second, from the node's own totals.",
              {"{{node}} received": "rate(bitcoin_bytes_recv_total{@}[$__rate_interval])",
               "{{node}} sent": "rate(bitcoin_bytes_sent_total{@}[$__rate_interval])"}),
    ],
    "The exporters agree": [
        graph("Blocks connected: IPC less USDT", "none", "Blocks that bitcoind-ipc-exporter counted within an hour, less "
              "those of bitcoind-usdt-exporter on the same node (the same label `node`). Always 0, but for the moment "
              "between two scrapes.",
              {"{{node}}": "round(sum by (node) (increase(bitcoin_blocks_connected_total{job=\"bitcoind-ipc\"}[1h])) - "
               "sum by (node) (increase(bitcoin_blocks_connected_total{job=\"bitcoind-usdt\"}[1h])))"}, least=None),
        rows("Builds", "none", "Version, revision and compiler of each exporter.", "bitcoind_usdt_exporter_build_info{*}",
             ["node", "instance", "version", "revision", "rustc"]),
    ],
}

# The bands of the metric `from`, as they are stacked: more cannot be told apart. Lightness rises from one to the next (viridis), so
# that nobody needs to see colours.
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
    """The mempool in bands, stacked, those that are mined first at the bottom."""
    queries = {f"{band} sat/vB": f'sum(bitcoin_mempool_feerate_vbytes{{*,from=~"{labels}"}})'
               for band, (labels, _) in FEERATE_BANDS.items()}
    colours = {f"{band} sat/vB": colour for band, (_, colour) in FEERATE_BANDS.items()}
    return graph("Mempool by feerate", "si:vB", "Virtual size of the mempool by the feerate that its transactions would be mined with. A "
                 "block takes 1 MvB, from the bottom. Choose one node: those of several are added. Needs Bitcoin Core 31.",
                 queries, span=16, stacked=True, colours=colours)


def mining():
    """What a miner watches."""
    fees, weight = "bitcoin_next_block_fees_satoshis{*}", "bitcoin_next_block_weight{*}"
    templates = "rate(bitcoin_template_duration_seconds"
    return build("bitcoin-mining", "Mining", "The next block: what it is worth, how long the node takes to build it, and how soon after a "
                 "new tip. Needs Mining (Bitcoin Core 30 and later).", '__name__="bitcoin_up"', {
        "At a glance": [
            number("Next block's fees", "si:sat", "Fees of the block that the node would mine now.", {NAME: fees}),
            number("Next block full", "percentunit", "Weight of its transactions, as a share of a block's 4 MWU.",
                   {NAME: f"{weight} / 4e6"}),
            number("Next block's transactions", "short", "Transactions of the block that the node would mine now, without the coinbase.",
                   {NAME: "bitcoin_next_block_transactions{*}"}),
            number("Next block's signature operations", "percentunit", "Cost of its signature operations, as a share of the limit of 80,000.",
                   {NAME: "bitcoin_next_block_sigops{*} / 80000"}),
            number("Time to build", "s", "Mean time that the node took for a template, within an hour.",
                   {NAME: mean("bitcoin_template_duration_seconds")}, steps=[(1, "orange"), (5, "red")]),
            number("Tip to template", "s", "Mean time from a new tip to the first template on it, within an hour.",
                   {NAME: mean("bitcoin_template_after_tip_seconds")}, steps=[(2, "orange"), (10, "red")]),
            number("Tip age", "s", "Time since the time in the tip's header, which its miner chose.",
                   {NAME: "time() - bitcoin_tip_timestamp_seconds{*}"}, steps=[(3600, "orange"), (7200, "red")]),
            number("Stale tips", "none", "Tips of branches that were valid and lost: blocks that somebody mined for nothing.",
                   {NAME: 'bitcoin_chain_tips{*,status="valid-fork"} or 0 * bitcoin_chain_tips{*,status="active"}'}),
            number("Reorganized blocks", "none", "Blocks that were disconnected within a day.",
                   {NAME: "round(increase(bitcoin_blocks_disconnected_total{*}[1d]))"}, steps=[(1, "orange"), (2, "red")]),
        ],
        "Templates": [
            graph("Worth of the next block", "si:sat", "Fees of the block that the node would mine now, and of the last one.",
                  {"{{node}} next": fees, "{{node}} last": "bitcoin_last_block_fees_satoshis{*}"}),
            graph("Weight of the next block", "si:WU", "Weight of its transactions, and of the last block's.",
                  {"{{node}} next": weight, "{{node}} last": "bitcoin_last_block_weight{*}"}),
            graph("Time to build a template", "s", "Time that the node took to answer a request for a template.",
                  quantiles("bitcoin_template_duration_seconds")),
            graph("Time from tip to template", "s", "Time from the exporter's hearing of a new tip to the first template on it.",
                  quantiles("bitcoin_template_after_tip_seconds")),
            graph("Templates", "cpm", "Templates that the exporter asked for per minute, and those that failed.",
                  {"{{node}} built": f"60 * {templates}_count{{*}}[10m])",
                   "{{node}} failed": '60 * rate(bitcoin_exporter_poll_failures_total{*,call="Mining.createNewBlock"}[10m])'}),
            graph("Node's time for templates", "percentunit", "Share of the node's time that it built the exporter's templates; at most 1 % "
                  "with `--next-block auto`.", {NAME: f"{templates}_sum{{*}}[10m])"}),
        ],
        "Tips": [
            graph("Tip changes in an hour", "none", "Changes of the tip within an hour.",
                  {NAME: "round(increase(bitcoin_tip_updates_total{*}[1h]))"}),
            graph("Tips of branches", "none", "Tips of the block tree by status; valid-fork ones are stale blocks.",
                  {"{{node}} {{status}}": "bitcoin_chain_tips{*}"}),
        ],
        "Mempool": [
            by_feerate(),
            rows("Bands", "si:vB", "Virtual size in each band of feerates, which begins at `from` sat/vB.",
                 "bitcoin_mempool_feerate_vbytes{*}", ["node", "from"], span=8, hidden=["instance"]),
            graph("Feerate to be in the next blocks", "suffix: sat/vB", "Feerate at the end of the best so many blocks' worth of the mempool; "
                  "absent when the mempool has less.", {"{{node}} {{blocks}}": "bitcoin_mempool_depth_feerate_sat_per_vbyte{*}"}),
            graph("Fees by feerate", "si:sat", "Fees of the mempool's transactions by the feerate that they would be mined with.",
                  {"{{node}} from {{from}} sat/vB": "bitcoin_mempool_feerate_fees_satoshis{*}"}),
        ],
        "The node's threads": [
            graph("Processor time by thread", "percentunit", "Processor time as a share of one processor: `capnp-loop` speaks to all clients over "
                  "IPC and runs their calls, templates included; `msghand` connects blocks, `scriptch` checks scripts.",
                  {"{{node}} {{thread}}": rate("bitcoin_node_process_cpu_seconds_total", by="thread")}, stacked=True),
            graph("Node's memory", "bytes", "Resident memory of the node; a template's transactions are in it until it is destroyed.",
                  {NAME: "bitcoin_node_process_resident_memory_bytes{*}"}),
        ],
    })


DASHBOARDS = [
    build("bitcoin-fleet", "Bitcoin fleet", "All nodes at once, from the recording rules.", '__name__="bitcoin_up"', FLEET),
    build("bitcoin-node", "Bitcoin node", "A Bitcoin node over IPC: chain, mempool, fees, peers, traffic, UTXO cache, and "
          "bitcoind-ipc-exporter itself.", '__name__="bitcoin_up"', NODE),
    build("bitcoin-fibre", "FIBRE", "Block relay: FIBRE/UDP against BIP152 compact blocks, from a node's tracepoints.",
          '__name__="fibre_exporter_up"', FIBRE),
    build("bitcoin-relay", "Block relay", "How blocks come to a node: announcements, compact blocks, what had to be requested, and FIBRE "
          "where the node has it; from its tracepoints.", '__name__="fibre_exporter_up"', relay()),
    build("bitcoin-internals", "Node internals", "A Bitcoin node from its tracepoints: messages, connections, blocks, "
          "UTXO cache, mempool; and what used to be polled over JSON-RPC.", '__name__="fibre_exporter_up"', INTERNALS),
    mining(),
]


def main():
    check = sys.argv[1:] == ["--check"]
    stale = []
    for board in DASHBOARDS:
        file = FOLDER / f"{board.uid}.json"
        text = json.dumps(board, cls=JSONEncoder, indent=1, sort_keys=True) + "\n"
        if check and (not file.exists() or file.read_text() != text):
            stale.append(file.name)
        elif not check:
            file.write_text(text)
    if stale:
        sys.exit(f"out of date: {', '.join(stale)}; run contrib/grafana/dashboards.py")


if __name__ == "__main__":
    main()
