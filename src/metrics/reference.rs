//! Writes `METRICS.md` from the declarations.

use super::model::Declaration;

const HEAD: &str = "\
# Metrics

Generated from the registry by `bitcoind-usdt-exporter --print-metrics-reference`; a test fails when it is out of date.

A value that the node does not provide is absent, never 0 or -1. Counters of events that the exporter counted are kept while
the exporter has no connection to a node. Values read from the node expire by these rules:

- A value is exported for two poll intervals (`--poll-interval`) after it was read, and is absent after that. A single failed call
  or poll therefore removes no value. A failed poll is retried after a second, then after 2, 4, 8 seconds and so on, at most after
  the poll interval.
- Calls that are costly for the node are made once a minute, or less often if they take long. For example, a call that took
  100 ms is repeated after 100 s, and a call that took longer than 240 ms after four minutes. The values of a costly call are
  exported for two of its intervals, at most for five minutes.
- Contents of connected blocks are counted at the next poll, or at one of the next polls after many blocks were connected.
- Values of the last block (`getblockstats`, `getnetworkhashps`, `getdeploymentinfo`) are read once per tip, and are exported as
  long as polls return the same tip.
- Time during which the machine is suspended counts as elapsed. After a resume, all calls are repeated within two
  seconds.
- When the connection to the node is lost, all values read from it are absent at once.
- The counters `bitcoin_utxo_cache_*_total` exist only while the UTXO cache trace is active. They are absent after the trace has
  exceeded `--utxo-trace-budget`, and during initial block download. `bitcoin_exporter_utxo_trace` has the state of the trace.
- `bitcoin_up` is 1 only if the last poll succeeded, even if older values are still exported.
  `bitcoin_exporter_last_poll_timestamp_seconds` is the time of the last successful poll.

If a metric has several sources, separated by semicolons, the first source that the node supports is used. *JSON-RPC* means
JSON-RPC over IPC (`Rpc.executeRpc` in Bitcoin Core 32, `Node.executeRpc` in development branches), or JSON-RPC over HTTP if the
node has no JSON-RPC over IPC. `bitcoin_bytes_recv_total` and `bitcoin_bytes_sent_total` are the node's own counters, and start
again at 0 when the node restarts.

A counter of `bitcoind-usdt-exporter` is absent until the exporter has traced a node that has the counter's tracepoint. The
counter continues to increase when the node restarts. Each metric of `bitcoind-usdt-exporter` also has the label
`node` (`--node-name`).
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
