//! `METRICS.md`, from the declarations.

use super::model::Declaration;

const HEAD: &str = "\
# Metrics

Generated from the registry by `bitcoind-usdt-exporter --print-metrics-reference`; a test fails when it is out of date.

A value that the node cannot give is absent, never 0 or -1. Counters of events that the exporter counted stay while the
node is away. Values that are read from the node age by one rule:

- A value is shown for two poll intervals (`--poll-interval`) after it was read, then it is absent. A single failed call or
  poll hides nothing: a failed poll is retried after a second, then after 2, 4, 8 seconds and so on, at most the interval.
- Costly calls are made once a minute, or less often if they take long: a call that took 100 ms is made again after 100 s, one
  that took longer than 240 ms after four minutes. Their values are shown for two of these intervals, at most five minutes.
  Values of the last block (`getblockstats`, `getnetworkhashps`, `getdeploymentinfo`) are read once and shown as long as polls
  find the same tip.
- The time in which the machine is suspended counts. After it everything is polled within a second or two.
- When the connection to the node is lost, all values read from it disappear at once.
- The counters `bitcoin_utxo_cache_*_total` of the UTXO cache trace exist while it is active. They disappear when the trace
  exceeds `--utxo-trace-budget`, and during initial block download; `bitcoin_exporter_utxo_trace` has its state.
- `bitcoin_up` is 1 if the last poll succeeded, whatever is still shown. `bitcoin_exporter_last_poll_timestamp_seconds` is the
  time of the last successful poll.

Where several sources are given, the first
one that the node offers is used. *JSON-RPC* means JSON-RPC over the IPC connection, `Rpc.executeRpc` (Bitcoin Core 32) or
`Node.executeRpc` (development branches), and over HTTP where that has none. `bitcoin_bytes_recv_total` and
`bitcoin_bytes_sent_total` are the node's own totals and restart with it.

What `bitcoind-usdt-exporter` counts is absent until a node with the tracepoint has been traced, and goes on when the
node restarts. Each of its metrics has the label `node` besides (`--node-name`).
";

/// The text of `METRICS.md`: a section for each exporter.
pub fn markdown(exporters: &[(&str, Vec<Declaration>)]) -> String {
    let mut text = HEAD.to_string();
    for (exporter, declarations) in exporters {
        text.push_str(&format!("\n## {exporter}\n\n| metric | type | meaning | from |\n|---|---|---|---|\n"));
        for Declaration { name, kind, labels, help, sources, .. } in declarations {
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let (kind, sources) = (kind.name(), sources.join(", "));
            text.push_str(&format!("| `{name}{labels}` | {kind} | {help} | {sources} |\n"));
        }
    }
    text
}
