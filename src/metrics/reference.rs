//! `METRICS.md`, from the declarations.

/// A metric in `METRICS.md`.
pub struct Row {
    name: String,
    kind: &'static str,
    labels: Vec<&'static str>,
    help: String,
    source: String,
}

impl Row {
    pub(super) fn new(
        name: &str,
        kind: &'static str,
        labels: &[&'static str],
        help: &str,
        source: &str,
    ) -> Self {
        Row { name: name.into(), kind, labels: labels.to_vec(), help: help.into(), source: source.into() }
    }
}

const HEAD: &str = "\
# Metrics

Generated from the registry by `bitcoind-usdt-exporter --print-metrics-reference`; a test fails when it is out of date.

A value that the node in front of us cannot give is absent, never 0, -1 or stale. What is read from the node disappears
while the node is away; counters of events that the exporter counted stay. Where several sources are given, the first
one that the node offers is used. *JSON-RPC* means JSON-RPC over the IPC connection, `Rpc.executeRpc` (Bitcoin Core 32) or
`Node.executeRpc` (development branches), and over HTTP where that has none. `bitcoin_bytes_recv_total` and
`bitcoin_bytes_sent_total` are the node's own totals and restart with it.

What `bitcoind-usdt-exporter` counts is absent until a node with the tracepoint has been traced, and goes on when the
node restarts. Each of its metrics has the label `node` besides (`--node-name`).
";

/// The text of `METRICS.md`: a section for each exporter.
pub fn markdown(exporters: &[(&str, &[Row])]) -> String {
    let mut text = HEAD.to_string();
    for (exporter, rows) in exporters {
        text.push_str(&format!("\n## {exporter}\n\n| metric | type | meaning | from |\n|---|---|---|---|\n"));
        for Row { name, kind, labels, help, source } in *rows {
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            text.push_str(&format!("| `{name}{labels}` | {kind} | {help} | {source} |\n"));
        }
    }
    text
}
