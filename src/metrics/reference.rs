//! Writes `METRICS.md`, the reference of all metrics, from the declarations of the metrics.

use super::model::Declaration;

/// The text of METRICS.md in front of the tables of metrics.
const HEAD: &str = include_str!("reference.md");

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
