//! The two exposition formats: OpenMetrics 1.0, which prometheus-client writes, and Prometheus text 0.0.4.

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

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
    use super::to_text_format;

    #[test]
    fn counters_get_their_full_name_and_the_rest_stays() {
        let open_metrics = "# HELP a_bytes Sent, a counter.\n# TYPE a_bytes counter\na_bytes_total{x=\"y\"} 1\n\
                            # HELP b A gauge.\n# TYPE b gauge\nb 2\n# EOF\n";
        let text = "# HELP a_bytes_total Sent, a counter.\n# TYPE a_bytes_total counter\na_bytes_total{x=\"y\"} 1\n\
                    # HELP b A gauge.\n# TYPE b gauge\nb 2\n";
        assert_eq!(to_text_format(open_metrics), text);
    }
}
