//! The two exposition formats: OpenMetrics 1.0, which prometheus-client writes, and Prometheus text 0.0.4.

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

use super::snapshot::Exemplar;

/// An exposition format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus text 0.0.4.
    Text,
}

impl Format {
    /// The `Content-Type` of an answer in this format.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

pub(super) fn render(registry: &Registry, format: Format) -> String {
    let mut text = String::with_capacity(64 * 1024);
    text::encode(&mut text, registry).expect("writing to a String does not fail");
    match format {
        Format::OpenMetrics => text,
        Format::Text => to_text_format(&text),
    }
}

/// Exemplars go behind the samples of their buckets. prometheus-client writes them only where it has counted itself.
pub(super) fn with_exemplars(open_metrics: &str, exemplars: &[Exemplar]) -> String {
    let mut text = String::with_capacity(open_metrics.len() + 200 * exemplars.len());
    let (mut family, mut bucket) = ("", 0);
    for line in open_metrics.lines() {
        text.push_str(line);
        if let Some(of) = line.strip_prefix("# TYPE ") {
            (family, bucket) = (of.split(' ').next().unwrap_or_default(), 0);
        }
        let is_bucket =
            !family.is_empty() && line.strip_prefix(family).is_some_and(|rest| rest.starts_with("_bucket{"));
        if is_bucket {
            if let Some(it) = exemplars.iter().find(|it| it.family == family && it.bucket == bucket) {
                text.push_str(&format!(" # {{{}}} {} {:.3}", it.labels, it.value, it.time));
            }
            bucket += 1;
        }
        text.push('\n');
    }
    text
}

/// The older format names a counter's family with its `_total` and has no end mark; nothing else that we use differs.
fn to_text_format(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + 1024);
    let mut lines = open_metrics.lines().peekable();
    while let Some(line) = lines.next() {
        if line == "# EOF" {
            break;
        }
        let family = |line: &str| line.split(' ').nth(2).map(str::to_string);
        match line.strip_prefix("# HELP ") {
            Some(help) if lines.peek().is_some_and(|next| next.ends_with(" counter")) => {
                let name = family(line).unwrap_or_default();
                text.push_str(&format!("# HELP {name}_total{}\n", &help[name.len()..]));
                text.push_str(&format!("# TYPE {name}_total counter\n"));
                lines.next();
            }
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Exemplar, to_text_format, with_exemplars};

    #[test]
    fn exemplars_are_behind_the_samples_of_their_buckets() {
        let text = "# TYPE a histogram\na_sum{node=\"x\"} 3.5\na_count{node=\"x\"} 2\na_bucket{le=\"1.0\",node=\"x\"} 1\n\
                    a_bucket{le=\"+Inf\",node=\"x\"} 2\n# TYPE a_bucket gauge\na_bucket{node=\"x\"} 2\n# EOF\n";
        let labels = "block_height=\"7\"".to_string();
        let exemplar =
            |family, bucket| Exemplar { family, bucket, labels: labels.clone(), value: 2.5, time: 1e9 };
        let shown = with_exemplars(text, &[exemplar("a", 1), exemplar("b", 0)]);
        let expected = text.replace(
            "\"+Inf\",node=\"x\"} 2",
            "\"+Inf\",node=\"x\"} 2 # {block_height=\"7\"} 2.5 1000000000.000",
        );
        assert_eq!(shown, expected);
    }

    #[test]
    fn counters_get_their_full_name_and_the_rest_stays() {
        let open_metrics = "# HELP a_bytes Sent, a counter.\n# TYPE a_bytes counter\na_bytes_total{x=\"y\"} 1\n\
                            # HELP b A gauge.\n# TYPE b gauge\nb 2\n# EOF\n";
        let text = "# HELP a_bytes_total Sent, a counter.\n# TYPE a_bytes_total counter\na_bytes_total{x=\"y\"} 1\n\
                    # HELP b A gauge.\n# TYPE b gauge\nb 2\n";
        assert_eq!(to_text_format(open_metrics), text);
    }
}
