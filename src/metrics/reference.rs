//! Writes `METRICS.md`, the reference of all metrics, from the declarations of the metrics.

use super::model::Declaration;

const HEAD: &str = "\
# Metrics

`bitcoind-usdt-exporter --print-metrics-reference` prints this page; a test fails when the page is out of date.

A value that the node does not provide is absent, never 0 or -1. Counters of events that the exporter counted are kept while
the exporter has no connection to a node. Values read from the node expire by these rules:

- A value is exported for two poll intervals (`--poll-interval`) after it was read, and is absent afterwards. A single failed
  call or poll therefore removes no value. A failed poll is retried after 1, 2, 4, 8 seconds and so on, at most after the poll
  interval.
- Calls that are costly for the node are made once a minute, or less often if they take long. For example, a call that took
  100 ms is repeated after 100 s, and a call that took longer than 240 ms after four minutes. The values of a costly call are
  exported for two intervals of the call, at most for five minutes.
- The contents of a connected block are counted at the next poll. If many blocks were connected, their contents are counted
  over several polls.
- Values of the last block (`getblockstats`, `getnetworkhashps`, `getdeploymentinfo`) are read once per tip, and are exported as
  long as polls return the same tip.
- Time during which the machine is suspended counts as elapsed. After a resume of the machine, all calls are repeated within
  two seconds.
- When the connection to the node is lost, all values read from the node are absent at once.
- The counters `bitcoin_utxo_cache_*_total` exist only while the UTXO cache trace is active. These counters are absent after the
  trace has exceeded `--utxo-trace-budget`, and during initial block download. `bitcoin_exporter_utxo_trace` has the state of
  the trace.
- `bitcoin_up` is 1 only if the last poll succeeded, even if older values are still exported.
  `bitcoin_exporter_last_poll_timestamp_seconds` is the time of the last successful poll.

The column *from* names the IPC method, JSON-RPC method, tracepoint or file from which the exporter gets the value. If the column
has several sources, separated by semicolons, the exporter uses the first source that the node supports. Sources separated by
commas are used together. *JSON-RPC* means JSON-RPC over IPC (`Rpc.executeRpc` in Bitcoin Core 32, `Node.executeRpc` in
development branches), or JSON-RPC over HTTP if the node has no JSON-RPC over IPC. `bitcoin_bytes_recv_total` and
`bitcoin_bytes_sent_total` are the node's own counters, and start again at 0 when the node restarts.

A counter of `bitcoind-usdt-exporter` is absent until the exporter has traced a node that has the counter's tracepoint. Counters
of `bitcoind-usdt-exporter` continue to increase when the node restarts. Each metric of `bitcoind-usdt-exporter` also has the
label `node` (`--node-name`).
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
