#!/usr/bin/env python3
"""Writes the dashboards. `dashboards.py [--check]` compares instead. Needs what requirements.txt names.

A panel is a title, a unit, a description, and a legend for each expression; `{*}` is the choice of job, exporter and
node, and `{*,x="y"}` narrows it.
"""

import json
import pathlib
import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from panels import bars, build, graph, number, rows, text_of_label

FOLDER = pathlib.Path(__file__).parent / "dashboards"
UP = {0: ("down", "red"), 1: ("up", "green")}
YES = {0: ("no", "green"), 1: ("yes", "orange")}


def rate(metric, labels="", by=""):
    """Per second, for each exporter, and by labels."""
    grouping = f"instance,{by}" if by else "instance"
    return f"sum by ({grouping}) (rate({metric}{{*{labels}}}[$__rate_interval]))"


def top(expression):
    return f"topk(10, {expression})"


def quantiles(metric, by=""):
    """Of a histogram: the median and the tail."""
    grouping = f"le,{by}" if by else "le"
    legend = "{{%s}} " % by if by else ""
    return {
        f"{legend}p{quantile:.0%}".replace("%", ""):
            f"histogram_quantile({quantile}, sum by ({grouping}) (rate({metric}_bucket{{*}}[$__rate_interval])))"
        for quantile in [0.5, 0.9, 0.99]
    }


def mean(metric):
    return f"rate({metric}_sum{{*}}[$__rate_interval]) / rate({metric}_count{{*}}[$__rate_interval])"


EXPORTER = "{{instance}}"

NODE = {
    "At a glance": [
        number("Node", "none", "1 while the connection to the node works and the last poll succeeded.",
               {EXPORTER: "bitcoin_up{*}"}, words=UP),
        number("Height", "none", "Height of the tip of the active chain.", {EXPORTER: "bitcoin_chain_height{*}"}),
        number("Headers ahead", "none", "Headers that are known and whose blocks are not connected yet.",
               {EXPORTER: "bitcoin_header_height{*} - bitcoin_chain_height{*}"}, steps=[(2, "orange"), (10, "red")]),
        number("Tip age", "s", "Since the time in the tip's header, which its miner chose. Mainnet finds a block in 10 "
               "minutes on average.", {EXPORTER: "time() - bitcoin_tip_timestamp_seconds{*}"},
               steps=[(3600, "orange"), (7200, "red")]),
        number("Peers", "none", "Connected peers.", {EXPORTER: "bitcoin_peers{*}"}),
        number("Initial block download", "none", "Whether the node is still catching up with the chain.",
               {EXPORTER: "bitcoin_ibd{*}"}, words=YES),
        number("Mempool", "none", "Transactions in the mempool.", {EXPORTER: "bitcoin_mempool_size{*}"}),
        number("Mempool full", "percentunit", "Memory of the mempool, as a share of what it may use.",
               {EXPORTER: "bitcoin_mempool_bytes{*} / bitcoin_mempool_max_bytes{*}"},
               steps=[(0.8, "orange"), (0.98, "red")]),
        number("Sync", "percentunit", "Estimated share of the chain's transactions that are verified.",
               {EXPORTER: "bitcoin_verification_progress{*}"}),
        number("Uptime", "s", "Since the node started.", {EXPORTER: "bitcoin_node_uptime_seconds{*}"}),
        number("Warnings", "none", "Warnings that the node gives; `bitcoin-cli getnetworkinfo` has their text.",
               {EXPORTER: "bitcoin_warnings{*}"}, steps=[(1, "orange")]),
        text_of_label("Version", "What the node calls itself.", "subversion", "bitcoin_node_info{*}"),
    ],
    "Chain": [
        graph("Height", "none", "Blocks of the active chain, and the best known header.",
              {"{{instance}} blocks": "bitcoin_chain_height{*}", "{{instance}} headers": "bitcoin_header_height{*}"},
              least=None),
        graph("Blocks", "none", "Blocks connected and disconnected within an hour. Disconnected blocks are a reorganization.",
              {"{{instance}} connected": "increase(bitcoin_blocks_connected_total{*}[1h])",
               "{{instance}} disconnected": "increase(bitcoin_blocks_disconnected_total{*}[1h])"}),
        graph("Tip age", "s", "Since the time in the tip's header; it falls with each block.",
              {EXPORTER: "time() - bitcoin_tip_timestamp_seconds{*}"}),
        graph("Tip changes", "none", "Changes of the tip within an hour, and the height of the last block connected.",
              {"{{instance}} changes": "increase(bitcoin_tip_updates_total{*}[1h])"}),
        graph("Last connected block", "none", "Height of the last block that was connected while we watched.",
              {EXPORTER: "bitcoin_block_height{*}"}, least=None),
        graph("Chain tips", "none", "Tips of the block tree by status: forks that the node has seen.",
              {"{{instance}} {{status}}": "bitcoin_chain_tips{*}"}),
        graph("Verification progress", "percentunit", "Estimated share of the chain's transactions that are verified.",
              {EXPORTER: "bitcoin_verification_progress{*}"}),
        graph("Difficulty", "sishort", "Proof-of-work difficulty of the tip.", {EXPORTER: "bitcoin_difficulty{*}"}),
        graph("Hashrate", "Hs", "Estimated from the last blocks: 144 are a day, 2016 a difficulty period.",
              {"{{instance}} {{blocks}} blocks": "bitcoin_hashrate_estimate{*}"}),
        graph("Size on disk", "bytes", "Block and undo files.", {EXPORTER: "bitcoin_chain_size_bytes{*}"}),
        graph("Pruned to", "none", "First block that a pruning node stores whole; nodes that do not prune have none.",
              {EXPORTER: "bitcoin_prune_height{*}"}, least=None),
        graph("Pruning", "none", "1 on nodes that prune.", {EXPORTER: "bitcoin_pruned{*}"}),
    ],
    "Blocks": [
        graph("Transactions per block", "none", "Of the tip, coinbase included.",
              {EXPORTER: "bitcoin_last_block_transactions{*}"}),
        graph("Weight and size of the tip", "none", "Weight units and bytes of the tip, without its coinbase.",
              {"{{instance}} weight": "bitcoin_last_block_weight{*}",
               "{{instance}} bytes": "bitcoin_last_block_size_bytes{*}"}),
        graph("Fees of the tip", "suffix: sat", "Fees that the tip's transactions paid.",
              {EXPORTER: "bitcoin_last_block_fees_satoshis{*}"}),
        graph("Inputs and outputs of the tip", "none", "Inputs without, outputs with the coinbase.",
              {"{{instance}} inputs": "bitcoin_last_block_inputs{*}",
               "{{instance}} outputs": "bitcoin_last_block_outputs{*}"}),
        graph("Connected per second", "cps", "Parts of the blocks that were connected, from the blocks themselves. Needs "
              "the Chain interface.",
              {"{{instance}} transactions": rate("bitcoin_connected_transactions_total"),
               "{{instance}} inputs": rate("bitcoin_connected_inputs_total"),
               "{{instance}} outputs": rate("bitcoin_connected_outputs_total")}),
        graph("Connected bytes per second", "Bps", "Serialized size and weight of the blocks that were connected. Needs the "
              "Chain interface.",
              {"{{instance}} bytes": rate("bitcoin_connected_bytes_total"),
               "{{instance}} weight": rate("bitcoin_connected_weight_total")}),
        graph("Value connected per second", "suffix: sat/s", "Value of the outputs of connected blocks. Needs the Chain "
              "interface.",
              {EXPORTER: rate("bitcoin_connected_output_value_satoshis_total")}),
    ],
    "Mempool": [
        graph("Transactions", "none", "In the mempool.", {EXPORTER: "bitcoin_mempool_size{*}"}),
        graph("Memory", "bytes", "What the mempool uses, and what it may use.",
              {"{{instance}} used": "bitcoin_mempool_bytes{*}", "{{instance}} limit": "bitcoin_mempool_max_bytes{*}"}),
        graph("Virtual size", "suffix: vB", "Of the mempool's transactions; a block takes a million.",
              {EXPORTER: "bitcoin_mempool_vbytes{*}"}),
        graph("Fees waiting", "suffix: sat", "Fees of the mempool's transactions.",
              {EXPORTER: "bitcoin_mempool_fees_satoshis{*}"}),
        graph("In and out", "cps", "Transactions added to and removed from the mempool per second. Needs the Chain "
              "interface, or bitcoind-usdt-exporter.",
              {"{{instance}} added": rate("bitcoin_mempool_tx_added_total"),
               "{{instance}} {{reason}}": rate("bitcoin_mempool_tx_removed_total", by="reason")}),
        graph("Not yet relayed", "none", "The node's own transactions that no peer has asked for yet.",
              {EXPORTER: "bitcoin_mempool_unbroadcast{*}"}),
    ],
    "Fees": [
        graph("Fee estimates", "suffix: sat/vB", "To be confirmed within so many blocks; absent without an estimate.",
              {"{{instance}} {{blocks}} blocks": "bitcoin_fee_estimate_sat_per_vbyte{*}"}),
        graph("Minimum feerate", "suffix: sat/vB", "Below it the mempool takes no transaction; it rises when it is full.",
              {EXPORTER: "bitcoin_mempool_min_feerate_sat_per_vbyte{*}"}),
    ],
    "Peers": [
        graph("Connections", "none", "By who opened them.",
              {"{{instance}} {{direction}}": "bitcoin_connections{*}", "{{instance}} all": "bitcoin_peers{*}"}),
        graph("By network", "none", "Connected peers by network.",
              {"{{instance}} {{network}}": "sum by (instance,network) (bitcoin_peers_by{*})"}, stacked=True),
        graph("By type", "none", "Connected peers by type of connection.",
              {"{{instance}} {{connection_type}}": "sum by (instance,connection_type) (bitcoin_peers_by{*})"},
              stacked=True),
        graph("By transport", "none", "Connected peers by transport protocol: v2 is encrypted.",
              {"{{instance}} {{transport}}": "sum by (instance,transport) (bitcoin_peers_by{*})"}, stacked=True),
        graph("Ping", "s", "Last ping time over the present peers: median, 90th percentile, slowest.",
              {"{{instance}} p{{percentile}}": "bitcoin_peer_ping_seconds{*}"}),
        graph("Shortest ping", "s", "Each peer's shortest ping time, over the present peers.",
              {"{{instance}} p{{percentile}}": "bitcoin_peer_min_ping_seconds{*}"}),
        graph("By protocol version", "none", "Connected peers by protocol version.",
              {"{{instance}} {{version}}": "bitcoin_peers_by_version{*}"}, stacked=True),
        graph("High-bandwidth peers", "none", "BIP152: `to` those that we chose, `from` those that chose us.",
              {"{{instance}} {{direction}}": "bitcoin_peers_high_bandwidth{*}"}),
        graph("Remarkable peers", "none", "Clock off by more than 10 seconds; ping unanswered for more than 5; taking "
              "transactions below 1 sat/vB; taking part in address relay.",
              {"{{instance}} clock off": "bitcoin_peers_clock_off{*}",
               "{{instance}} ping overdue": "bitcoin_peers_ping_overdue{*}",
               "{{instance}} low fees": "bitcoin_peers_low_fee_relay{*}",
               "{{instance}} address relay": "bitcoin_peers_addr_relay{*}"}),
        graph("Download", "none", "Blocks in flight, and the peers that send them.",
              {"{{instance}} blocks": "bitcoin_blocks_in_flight{*}",
               "{{instance}} peers": "bitcoin_peers_with_blocks_in_flight{*}"}),
        graph("Banned", "none", "Addresses and subnets that are banned.", {EXPORTER: "bitcoin_banned{*}"}),
    ],
    "Traffic": [
        graph("Bandwidth", "Bps", "The node's own totals.",
              {"{{instance}} received": rate("bitcoin_bytes_recv_total"),
               "{{instance}} sent": rate("bitcoin_bytes_sent_total")}),
        graph("Received by message", "Bps", "The ten largest types.",
              {"{{instance}} {{type}}": top(rate("bitcoin_p2p_message_bytes_total", ',direction="in"', "type"))},
              stacked=True),
        graph("Sent by message", "Bps", "The ten largest types.",
              {"{{instance}} {{type}}": top(rate("bitcoin_p2p_message_bytes_total", ',direction="out"', "type"))},
              stacked=True),
    ],
    "UTXO cache": [
        graph("Coins", "cps", "Added to, spent from and dropped from a UTXO cache per second. Needs the Tracing interface "
              "and the end of initial block download.",
              {"{{instance}} added": rate("bitcoin_utxo_cache_add_total"),
               "{{instance}} spent": rate("bitcoin_utxo_cache_spend_total"),
               "{{instance}} dropped": rate("bitcoin_utxo_cache_uncache_total")}),
        graph("Value", "suffix: sat/s", "Value of those coins.",
              {"{{instance}} added": rate("bitcoin_utxo_cache_add_value_total"),
               "{{instance}} spent": rate("bitcoin_utxo_cache_spend_value_total"),
               "{{instance}} dropped": rate("bitcoin_utxo_cache_uncache_value_total")}),
        graph("Flushes", "none", "Flushes of the chain state to disk within an hour. Needs the Chain interface.",
              {EXPORTER: "increase(bitcoin_chain_state_flushes_total{*}[1h])"}),
        graph("UTXO trace", "none", "Which state the trace is in: active, off, ibd (it waits), over_budget (given up).",
              {"{{instance}} {{state}}": "bitcoin_exporter_utxo_trace{*}"}),
    ],
    "Exporter": [
        graph("Connection", "none", "1 while the connection to the node works and the last poll succeeded; and since when "
              "the last poll is over.", {EXPORTER: "bitcoin_up{*}"}, span=8),
        graph("Since the last poll", "s", "End of the last successful poll; it grows while the node does not answer.",
              {EXPORTER: "time() - bitcoin_exporter_last_poll_timestamp_seconds{*}"}, span=8),
        graph("Connects and disconnects", "none", "Within an hour; why a connection ended: shutdown, lost, hung, refused.",
              {"{{instance}} connects": "increase(bitcoin_exporter_connects_total{*}[1h])",
               "{{instance}} {{reason}}": "increase(bitcoin_exporter_disconnects_total{*}[1h])"}, span=8),
        graph("Poll time", "s", "Time that a poll of the node took.", quantiles("bitcoin_exporter_poll_duration_seconds")),
        graph("Failed calls", "none", "Calls to the node that failed within an hour, by call.",
              {"{{instance}} {{call}}": "increase(bitcoin_exporter_poll_failures_total{*}[1h])"}),
        graph("Notifications", "cps", "What the node told us per second, by callback.",
              {"{{instance}} {{callback}}": rate("bitcoin_exporter_callbacks_total", by="callback")}),
        graph("Time the node waited", "s", "How long we kept the node waiting for the answer to a notification.",
              quantiles("bitcoin_exporter_callback_duration_seconds")),
        graph("Not counted", "none", "Within an hour: events that were answered but not counted, and log lines not written.",
              {"{{instance}} {{event}}": "increase(bitcoin_exporter_events_dropped_total{*}[1h])",
               "{{instance}} log lines": "increase(bitcoin_exporter_log_lines_dropped_total{*}[1h])"}),
        graph("Exporter's processor time", "percentunit", "Of one processor.",
              {EXPORTER: "rate(process_cpu_seconds_total{*}[$__rate_interval])"}),
        graph("Exporter's memory", "bytes", "Resident memory.", {EXPORTER: "process_resident_memory_bytes{*}"}, span=8),
        graph("Exporter's descriptors", "none", "Open files and sockets.", {EXPORTER: "process_open_fds{*}"}, span=8),
        number("Exporter's uptime", "s", "Since the exporter started.", {EXPORTER: "time() - process_start_time_seconds{*}"},
               span=8),
        graph("Locked memory of the node", "bytes", "The node's locked pool, for keys.",
              {"{{instance}} {{state}}": "bitcoin_memory_locked_bytes{*}"}),
        rows("Interfaces", "none", "What each node offers over IPC.", "bitcoin_exporter_interface{*}",
             ["instance", "interface"]),
        rows("Builds", "none", "What runs where.", "bitcoind_ipc_exporter_build_info{*}",
             ["instance", "version", "revision", "rustc"]),
    ],
}

FIBRE = {
    "At a glance": [
        number("Blocks reconstructed", "none", "From FIBRE/UDP chunks.", {EXPORTER: "fibre_blocks_reconstructed_total{*}"}),
        number("Blocks sent", "none", "That the node began to send over FIBRE.", {EXPORTER: "fibre_blocks_sent_total{*}"}),
        number("FIBRE win rate", "percentunit", "Share of the races that FIBRE/UDP won.",
               {EXPORTER: 'sum by (instance) (fibre_block_race_wins_total{*,mechanism="fibre_udp"}) / '
                          "sum by (instance) (fibre_block_race_wins_total{*})"}),
        number("Last block", "none", "Height of the block that was raced last.", {EXPORTER: "fibre_last_block_height{*}"}),
        number("UDP wins", "none", "Blocks that FIBRE/UDP delivered first.",
               {EXPORTER: 'fibre_block_race_wins_total{*,mechanism="fibre_udp"}'}),
        number("Compact block wins", "none", "Blocks that BIP152 compact blocks delivered first.",
               {EXPORTER: 'fibre_block_race_wins_total{*,mechanism="bip152_cmpct"}'}),
    ],
    "Races": [
        graph("Race wins over time", "none", "Races won within an hour, by mechanism.",
              {"{{instance}} {{mechanism}}": "increase(fibre_block_race_wins_total{*}[1h])"}, stacked=True),
        graph("Wins by mechanism", "percentunit", "Share of the races that each mechanism won within an hour.",
              {"{{instance}} {{mechanism}}": "increase(fibre_block_race_wins_total{*}[1h]) / on (job,instance,node) "
               "group_left () sum by (job,instance,node) (increase(fibre_block_race_wins_total{*}[1h]))"}),
        graph("Relay latency", "s", "Time until a mechanism had the block, of those that took part.",
              quantiles("fibre_block_race_latency_seconds", by="mechanism")),
        graph("Winning margin", "s", "How far the winner was ahead, when both took part.",
              quantiles("fibre_race_margin_seconds", by="winner")),
        bars("Block race results", "none", "Blocks by the mechanism that delivered them first, and races of both.",
             {"{{instance}} {{mechanism}}": "fibre_block_race_wins_total{*}",
              "{{instance}} both took part": "fibre_races_with_both_total{*}"}),
        rows("Delivery by peer", "none", "Blocks by the mechanism and the peer that delivered them first.",
             "topk(50, sum by (instance,mechanism,peer) (fibre_block_deliveries_total{*}))",
             ["instance", "peer", "mechanism"]),
    ],
    "Reconstruction": [
        graph("Reconstruction time", "s", "From the first chunk to the block.",
              quantiles("fibre_block_reconstruction_duration_seconds")),
        graph("Blocks", "none", "Reconstructed and sent within an hour.",
              {"{{instance}} reconstructed": "increase(fibre_blocks_reconstructed_total{*}[1h])",
               "{{instance}} sent": "increase(fibre_blocks_sent_total{*}[1h])"}),
        graph("Chunk throughput", "cps", "Chunks per second of the blocks that were reconstructed.",
              {"{{instance}} received": rate("fibre_chunks_received_total"),
               "{{instance}} used": rate("fibre_chunks_used_total")}),
        graph("Chunk efficiency", "percentunit", "Chunks that were needed, of those that were received.",
              {EXPORTER: "rate(fibre_chunks_used_total{*}[$__rate_interval]) / "
                         "rate(fibre_chunks_received_total{*}[$__rate_interval])"}),
        graph("Chunks per block", "none", "Chunks used to reconstruct one block.", quantiles("fibre_block_chunks_used")),
        graph("Transactions from the mempool", "none", "Mean per reconstructed block. Needs "
              "`udp:block_reconstruction_detail` in the node.",
              {"{{instance}} in the mempool": mean("fibre_block_mempool_tx_count"),
               "{{instance}} missing": mean("fibre_block_missing_tx_count")}),
        graph("Missing bytes", "bytes", "Mean size of the transactions that were not in the mempool.",
              {EXPORTER: mean("fibre_block_missing_tx_bytes")}),
        graph("Nothing missing", "none", "Reconstructed blocks within an hour whose transactions were all in the mempool.",
              {EXPORTER: "increase(fibre_block_all_tx_from_mempool_total{*}[1h])"}),
    ],
    "Exporter": [
        number("Exporter", "none", "1 while the exporter runs.", {EXPORTER: "fibre_exporter_up{*}"}, words=UP),
        number("Probes attached", "none", "Tracepoints that are attached; 0 while no node with tracepoints runs.",
               {EXPORTER: "fibre_exporter_probes_attached{*}"}),
        number("Uptime", "s", "Since the exporter started.", {EXPORTER: "time() - fibre_exporter_start_time_seconds{*}"}),
        text_of_label("Version", "Of the exporter.", "version", "fibre_exporter_info{*}"),
        graph("Events", "cps", "FIBRE events per second, by tracepoint.",
              {"{{instance}} {{event_type}}": rate("fibre_exporter_events_processed_total", by="event_type")}, span=8),
        graph("Errors", "none", "Events within an hour that were lost or not read whole.",
              {"{{instance}} {{error_type}}": "increase(fibre_exporter_errors_total{*}[1h])"}, span=8),
    ],
}

INTERNALS = {
    "Network": [
        graph("Messages by type", "cps", "The ten most frequent types, both directions.",
              {"{{instance}} {{type}}": top(rate("bitcoin_p2p_messages_total", by="type"))}),
        graph("Bandwidth", "Bps", "Bytes of the messages, by direction.",
              {"{{instance}} {{direction}}": rate("bitcoin_p2p_message_bytes_total", by="direction")}),
        graph("Connections", "none", "Open connections by who opened them.",
              {"{{instance}} {{direction}}": "bitcoin_connections{*}"}),
        graph("Opened", "none", "Connections opened within an hour, by network.",
              {"{{instance}} {{network}}": "sum by (instance,network) (increase(bitcoin_connections_opened_total{*}[1h]))"}),
        graph("Closed", "none", "Connections closed within an hour, by network.",
              {"{{instance}} {{network}}": "increase(bitcoin_connections_closed_total{*}[1h])"}),
        graph("Evicted and misbehaving", "none", "Within an hour: connections closed to make room for others, and peers "
              "that misbehaved.",
              {"{{instance}} evicted": "increase(bitcoin_connections_evicted_total{*}[1h])",
               "{{instance}} misbehaving": "increase(bitcoin_connections_misbehaving_total{*}[1h])"}),
    ],
    "Blocks": [
        graph("Connection time", "s", "Time that connecting a block took.",
              quantiles("bitcoin_block_connection_duration_seconds")),
        graph("Blocks connected", "none", "Within an hour.", {EXPORTER: "increase(bitcoin_blocks_connected_total{*}[1h])"}),
        graph("Transactions per block", "none", "Mean over the blocks connected.",
              {EXPORTER: mean("bitcoin_block_tx_count")}),
        graph("Sigops per block", "none", "Mean cost of a block's signature operations.",
              {EXPORTER: mean("bitcoin_block_sigops")}),
        graph("Inputs per block", "none", "Mean over the blocks connected.", {EXPORTER: mean("bitcoin_block_inputs")}),
    ],
    "UTXO cache": [
        graph("Flush time", "s", "Time that writing the UTXO cache to disk took.",
              {EXPORTER: "histogram_quantile(0.99, sum by (le,instance) "
                         "(increase(bitcoin_utxo_cache_flush_duration_seconds_bucket{*}[1h])))"}),
        graph("Coins at the last flush", "none", "In the UTXO cache.", {EXPORTER: "bitcoin_utxo_cache_flush_coins{*}"}),
        graph("Memory at the last flush", "bytes", "Of the UTXO cache.", {EXPORTER: "bitcoin_utxo_cache_flush_bytes{*}"}),
        graph("Coins", "cps", "Added to, spent from and dropped from a UTXO cache per second.",
              {"{{instance}} added": rate("bitcoin_utxo_cache_add_total"),
               "{{instance}} spent": rate("bitcoin_utxo_cache_spend_total"),
               "{{instance}} dropped": rate("bitcoin_utxo_cache_uncache_total")}),
    ],
    "Mempool": [
        graph("Transactions", "cpm", "Added, removed, replaced and rejected in a minute.",
              {"{{instance}} added": f"60 * {rate('bitcoin_mempool_tx_added_total')}",
               "{{instance}} removed": f"60 * {rate('bitcoin_mempool_tx_removed_total')}",
               "{{instance}} replaced": f"60 * {rate('bitcoin_mempool_tx_replaced_total')}",
               "{{instance}} rejected": f"60 * {rate('bitcoin_mempool_tx_rejected_total')}"}),
        graph("Mean feerate", "suffix: sat/vB", "Of the transactions that entered the mempool.",
              {EXPORTER: f"{rate('bitcoin_mempool_added_fees_satoshis_total')} / {rate('bitcoin_mempool_added_vbytes_total')}"}),
        graph("Why removed", "cpm", "Transactions removed in a minute, by reason.",
              {"{{instance}} {{reason}}": f"60 * {rate('bitcoin_mempool_tx_removed_total', by='reason')}"}),
        graph("Why rejected", "cpm", "Transactions rejected in a minute, the ten most frequent reasons.",
              {"{{instance}} {{reason}}": top("60 * " + rate("bitcoin_mempool_tx_rejected_total", by="reason"))}),
    ],
    "From bitcoind-ipc-exporter": [
        graph("Sync progress", "percentunit", "Estimated share of the chain's transactions that are verified.",
              {EXPORTER: "bitcoin_verification_progress{*}"}),
        graph("Height", "none", "Blocks of the active chain, and the best known header.",
              {"{{instance}} blocks": "bitcoin_chain_height{*}", "{{instance}} headers": "bitcoin_header_height{*}"},
              least=None),
        graph("Difficulty", "sishort", "Proof-of-work difficulty of the tip.", {EXPORTER: "bitcoin_difficulty{*}"}),
        graph("Size on disk", "bytes", "Block and undo files.", {EXPORTER: "bitcoin_chain_size_bytes{*}"}),
        graph("Transactions in the mempool", "none", "At each poll.", {EXPORTER: "bitcoin_mempool_size{*}"}),
        graph("Mempool's memory", "bytes", "What it uses, and what it may use.",
              {"{{instance}} used": "bitcoin_mempool_bytes{*}", "{{instance}} limit": "bitcoin_mempool_max_bytes{*}"}),
        graph("Minimum feerate", "suffix: sat/vB", "Below it the mempool takes no transaction.",
              {EXPORTER: "bitcoin_mempool_min_feerate_sat_per_vbyte{*}"}),
        graph("Bandwidth, by the node's own totals", "Bps", "Since they restart with the node, as rates.",
              {"{{instance}} received": rate("bitcoin_bytes_recv_total"),
               "{{instance}} sent": rate("bitcoin_bytes_sent_total")}),
    ],
    "The exporters agree": [
        graph("Blocks connected: IPC less USDT", "none", "Blocks that bitcoind-ipc-exporter counted within an hour, less "
              "those of bitcoind-usdt-exporter on the same node (the same label `node`). Always 0, but for the moment "
              "between two scrapes.",
              {"{{node}}": "sum by (node) (increase(bitcoin_blocks_connected_total{job=\"bitcoind-ipc\"}[1h])) - "
               "sum by (node) (increase(bitcoin_blocks_connected_total{job=\"bitcoind-usdt\"}[1h]))"}, least=None),
        rows("Builds", "none", "What runs where.", "bitcoind_usdt_exporter_build_info{*}",
             ["instance", "version", "revision", "rustc"]),
    ],
}

DASHBOARDS = [
    build("bitcoin-node", "Bitcoin node", "A Bitcoin node over IPC: chain, mempool, fees, peers, traffic, UTXO cache, and "
          "bitcoind-ipc-exporter itself.", '__name__="bitcoin_up"', NODE),
    build("bitcoin-fibre", "FIBRE", "Block relay: FIBRE/UDP against BIP152 compact blocks, from a node's tracepoints.",
          '__name__="fibre_exporter_up"', FIBRE),
    build("bitcoin-internals", "Node internals", "A Bitcoin node from its tracepoints: messages, connections, blocks, "
          "UTXO cache, mempool; and what used to be polled over JSON-RPC.", '__name__=~"bitcoin_up|fibre_exporter_up"',
          INTERNALS),
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
