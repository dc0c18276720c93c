//! Writes metric families in the two exposition formats, OpenMetrics 1.0 and Prometheus text 0.0.4, with the encoder of
//! the crate prometheus-client.
//!
//! The two formats differ in three points: in OpenMetrics, the family name of a counter has no `_total`, buckets of
//! histograms can have exemplars, and the text ends with `# EOF`. prometheus-client encodes exemplars only of its own
//! metric types. The exporters use other types (`model`), and `write_family` therefore adds the exemplars.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write as _};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;

use super::model::{self, Family, Kind, Value};

/// An exposition format that a scraper can request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus text 0.0.4.
    Text,
}

impl Format {
    /// The `Content-Type` of a response in this format.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Writes all samples in the given format. Each sample also gets the labels in `common`, which are pairs of name and
/// value.
pub fn render(families: &[Family], common: &[(&str, &str)], format: Format) -> String {
    let mut text = String::with_capacity(64 * 1024);
    for family in families.iter().filter(|family| !family.samples.is_empty()) {
        write_family(&mut text, family, common, format).expect("writing to a String does not fail");
    }
    if format == Format::OpenMetrics {
        encode_eof(&mut text).expect("writing to a String does not fail");
    }
    text
}

fn write_family(text: &mut String, family: &Family, common: &[(&str, &str)], format: Format) -> fmt::Result {
    let owned = |text: &str| Cow::Owned(text.to_string());
    let mut registry = Registry::with_labels(common.iter().map(|(name, value)| (owned(name), owned(value))));
    registry.register_collector(Box::new(EncodedFamily { family: family.clone(), format }));
    let start = text.len();
    encode_registry(text, &registry)?;
    if format == Format::Text {
        return Ok(());
    }
    let exemplars = exemplars(family);
    if !exemplars.is_empty() {
        for (index, line) in text.split_off(start).lines().enumerate() {
            let exemplar = exemplars.get(&index).map_or("", String::as_str);
            writeln!(text, "{line}{exemplar}")?;
        }
    }
    Ok(())
}

/// Adapter through which prometheus-client encodes a metric family in one of the exposition formats. It implements
/// [`Collector`], the trait by which prometheus-client reads metrics.
#[derive(Debug)]
struct EncodedFamily {
    family: Family,
    format: Format,
}

impl Collector for EncodedFamily {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let declaration = &self.family.declaration;
        let name = match self.format {
            Format::OpenMetrics => declaration.name.strip_suffix("_total").unwrap_or(declaration.name),
            Format::Text => declaration.name,
        };
        let kind = match declaration.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram(_) => MetricType::Histogram,
        };
        let help = format!("{}.", declaration.help);
        let mut encoder = encoder.encode_descriptor(name, &help, None, kind)?;
        for sample in self.family.samples.iter() {
            let names = declaration.labels.iter().copied();
            let labels: Vec<(&str, &str)> = names.zip(sample.labels.iter().map(String::as_str)).collect();
            if labels.is_empty() {
                self.encode_value(&mut encoder, &sample.value)?;
            } else {
                self.encode_value(&mut encoder.encode_family(&labels)?, &sample.value)?;
            }
        }
        Ok(())
    }
}

impl EncodedFamily {
    fn encode_value(&self, encoder: &mut MetricEncoder<'_>, value: &Value) -> fmt::Result {
        // In the OpenMetrics format, the encoder appends `_total` to the name of a counter, so the name is passed to it
        // without this ending. In the text format, the name is passed with the ending.
        let appends_total = self.format == Format::OpenMetrics;
        match (value, self.family.declaration.kind) {
            (Value::Count(count), Kind::Counter) if appends_total => encoder.encode_counter(count, NONE),
            (Value::Number(number), Kind::Counter) if appends_total => encoder.encode_counter(number, NONE),
            (Value::Count(count), _) => encoder.encode_gauge(count),
            (Value::Number(number), Kind::Counter) => encoder.encode_gauge(number),
            (Value::Number(number), _) => match as_whole(*number) {
                Some(whole) => encoder.encode_gauge(&whole),
                None => encoder.encode_gauge(number),
            },
            (Value::Histogram(histogram), Kind::Histogram(bounds)) => {
                let bounds = bounds.iter().copied().chain([f64::INFINITY]);
                let buckets: Vec<_> = bounds.zip(histogram.counts.iter().copied()).collect();
                let count = histogram.counts.iter().sum();
                let none = None::<&HashMap<usize, Exemplar<NoLabelSet, f64>>>;
                encoder.encode_histogram(histogram.sum, count, &buckets, none)
            }
            (Value::Histogram(_), _) => {
                debug_assert!(false, "{} is no histogram", self.family.declaration.name);
                Ok(())
            }
        }
    }
}

/// The exemplar argument of `encode_counter`. Counters are exported without exemplars.
const NONE: Option<&Exemplar<NoLabelSet, f64>> = None;

/// The number as an integer; `None` if the number has a fraction, or is so large that an f64 cannot represent every
/// integer of this size.
fn as_whole(number: f64) -> Option<i64> {
    /// Every integer below this bound is exactly representable as an f64.
    const EXACT: f64 = (1u64 << 53) as f64;
    (number.fract() == 0.0 && number.abs() < EXACT).then_some(number as i64)
}

/// The exemplars of a histogram, by the line index of their bucket in the encoded family. The encoded family begins
/// with the HELP and TYPE lines. For each sample, the lines of the sum and the count precede the lines of the buckets.
fn exemplars(family: &Family) -> BTreeMap<usize, String> {
    let mut lines = BTreeMap::new();
    let mut first = 2;
    for sample in family.samples.iter() {
        let Value::Histogram(histogram) = &sample.value else { continue };
        for (bucket, exemplar) in &histogram.exemplars {
            lines.insert(first + 2 + bucket, suffix(exemplar));
        }
        first += 2 + histogram.counts.len();
    }
    lines
}

/// Formats an exemplar. The label names and values are chosen by the exporter and contain no characters that need
/// escaping.
fn suffix(exemplar: &model::Exemplar) -> String {
    let labels: Vec<_> = exemplar.labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    format!(" # {{{}}} {} {:.3}", labels.join(","), exemplar.value, exemplar.time)
}

#[cfg(test)]
mod tests {
    use super::super::model::{Exemplar, counter, gauge, histogram};
    use super::*;

    fn text(family: Family) -> String {
        render(&[family], &[], Format::Text)
    }

    #[test]
    fn counters_family_has_its_full_name_in_text_only() {
        let bytes = counter("a_bytes_total", "Sent, a counter", &[]).by(&["x"]).samples([(["y"], 1u64)]);
        let sample = "a_bytes_total{node=\"n\",x=\"y\"} 1\n";
        let rendered = |format| render(std::slice::from_ref(&bytes), &[("node", "n")], format);
        assert_eq!(
            rendered(Format::OpenMetrics),
            format!("# HELP a_bytes Sent, a counter.\n# TYPE a_bytes counter\n{sample}# EOF\n")
        );
        assert_eq!(
            rendered(Format::Text),
            format!("# HELP a_bytes_total Sent, a counter.\n# TYPE a_bytes_total counter\n{sample}")
        );
    }

    #[test]
    fn exemplar_is_behind_its_bucket_in_open_metrics_only() {
        let exemplar = Exemplar { labels: vec![("block_height", "7".into())], value: 2.5, time: 1e9 };
        let counted =
            model::HistogramValue { sum: 3.5, counts: vec![1, 1, 0], exemplars: vec![(1, exemplar)] };
        let family = histogram("a", "A", &[], &[0.000002, 3.0]).by(&["x"]).samples([(["y"], counted)]);
        let expected = "# HELP a A.\n# TYPE a histogram\na_sum{x=\"y\"} 3.5\na_count{x=\"y\"} 2\n\
                        a_bucket{le=\"0.000002\",x=\"y\"} 1\n\
                        a_bucket{le=\"3.0\",x=\"y\"} 2 # {block_height=\"7\"} 2.5 1000000000.000\n\
                        a_bucket{le=\"+Inf\",x=\"y\"} 2\n# EOF\n";
        assert_eq!(render(std::slice::from_ref(&family), &[], Format::OpenMetrics), expected);
        let without =
            expected.replace(" # {block_height=\"7\"} 2.5 1000000000.000", "").replace("# EOF\n", "");
        assert_eq!(text(family), without);
    }

    #[test]
    fn gauges_print_whole_numbers_whole_and_others_exactly() {
        let shown = |value: f64| {
            let text = text(gauge("g", "G", &[]).value(value));
            text.lines().last().unwrap().strip_prefix("g ").unwrap().to_string()
        };
        assert_eq!(shown(-1.0), "-1");
        assert_eq!(shown(126_411_437_451_912.23).parse(), Ok(126_411_437_451_912.23));
        assert_eq!(shown(6.5e20), "650000000000000000000.0");
        assert_eq!((shown(0.000002), shown(4.5e-10)), ("0.000002".to_string(), "4.5e-10".to_string()));
        assert_eq!(shown(f64::NAN), "NaN");
    }

    #[test]
    fn label_values_are_escaped() {
        let family = gauge("g", "G", &[]).by(&["x"]).samples([(["\"\\\nä"], 1.0)]);
        assert!(text(family).ends_with("g{x=\"\\\"\\\\\\nä\"} 1\n"));
    }

    #[test]
    fn family_without_samples_is_absent() {
        assert_eq!(text(gauge("g", "G", &[]).value_if_known(None::<f64>)), "");
    }
}
