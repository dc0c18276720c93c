//! Writes `METRICS.md` from the declarations.

use super::model::Declaration;

const HEAD: &str = "\
# Metrics

Generated from the registry by `bitcoind-usdt-exporter --print-metrics-reference`; a test fails when it is out of date.

A value that the node cannot give is absent, never 0 or -1. Counters of events that the exporter counted remain while the
node is away. Values read from the node expire by these rules:

- A value is exported for two poll intervals (`--poll-interval`) after it was read, and is absent after that. A single failed call
  or poll therefore removes no value. A failed poll is retried after a second, then after 2, 4, 8 seconds and so on, at most after
  the poll interval.
- Costly calls are made once a minute, or less often if they take long. For example, a call that took 100 ms is repeated after
  100 s, and a call that took longer than 240 ms after four minutes. Their values are exported for two of these intervals, at most
  for five minutes.
- Contents of connected blocks are counted at the next poll, or at one of the next polls after many blocks were connected.
- Values of the last block (`getblockstats`, `getnetworkhashps`, `getdeploymentinfo`) are read once, and are exported as long as
  polls find the same tip.
- Time during which the machine is suspended counts as elapsed. After a resume, everything is polled within two seconds.
- When the connection to the node is lost, all values read from it are absent at once.
- The counters `bitcoin_utxo_cache_*_total` exist only while the UTXO cache trace is active. They are absent after the trace has
  exceeded `--utxo-trace-budget`, and during initial block download. `bitcoin_exporter_utxo_trace` has the state of the trace.
- `bitcoin_up` is 1 only if the last poll succeeded, even if older values are still exported.
  `bitcoin_exporter_last_poll_timestamp_seconds` is the time of the last successful poll.

If a metric has several sources, the first that the node supports is used. *JSON-RPC* means JSON-RPC over IPC, `Rpc.executeRpc`
(Bitcoin Core 32) or `Node.executeRpc` (development branches), or over HTTP for nodes without it. `bitcoin_bytes_recv_total` and
`bitcoin_bytes_sent_total` are the node's own counters, and start again at 0 when the node restarts.

A counter of `bitcoind-usdt-exporter` is absent until a node with its tracepoint has been traced, and continues when the node
restarts. Each metric of this exporter also has the label `node` (`--node-name`).
";

/// The text of `METRICS.md`, with a section for each exporter.
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
