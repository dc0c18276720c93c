//! The two exposition formats: OpenMetrics 1.0, and Prometheus text 0.0.4.
//!
//! They differ in a counter's family, whose name has no `_total` in OpenMetrics, and in exemplars and the end mark, which only
//! OpenMetrics has. (prometheus-client writes OpenMetrics only, and exemplars only of what it has counted itself.)

use std::fmt::{self, Write};

use super::model::{Family, Histogram, Kind, Value};

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

/// All samples as a scraper reads them. Each also has the `common` labels, names and values.
pub fn render(families: &[Family], common: &[(&str, &str)], format: Format) -> String {
    let mut text = String::with_capacity(64 * 1024);
    for family in families.iter().filter(|family| !family.samples.is_empty()) {
        write_family(&mut text, family, common, format).expect("writing to a String does not fail");
    }
    if format == Format::OpenMetrics {
        text.push_str("# EOF\n");
    }
    text
}

fn write_family(text: &mut String, family: &Family, common: &[(&str, &str)], format: Format) -> fmt::Result {
    let declaration = &family.declaration;
    let (name, kind) = (declaration.name, declaration.kind);
    let described = match format {
        Format::OpenMetrics => name.strip_suffix("_total").unwrap_or(name),
        Format::Text => name,
    };
    writeln!(text, "# HELP {described} {}.", declaration.help)?;
    writeln!(text, "# TYPE {described} {}", kind.name())?;
    for sample in family.samples.iter() {
        let labels = |le: Option<&str>| {
            let own = declaration.labels.iter().zip(&sample.labels);
            let common = common.iter().map(|(name, value)| (*name, *value));
            braces(
                common.chain(le.map(|bound| ("le", bound))).chain(own.map(|(name, value)| (*name, &**value))),
            )
        };
        match (&sample.value, kind) {
            (Value::Count(count), _) => writeln!(text, "{name}{} {count}", labels(None))?,
            (Value::Number(number), Kind::Gauge) => {
                writeln!(text, "{name}{} {}", labels(None), whole_or_float(*number))?;
            }
            (Value::Number(number), _) => writeln!(text, "{name}{} {}", labels(None), float(*number))?,
            (Value::Histogram(histogram), Kind::Histogram(bounds)) => {
                write_histogram(text, name, bounds, histogram, labels, format)?;
            }
            (Value::Histogram(_), _) => debug_assert!(false, "{name} is no histogram"),
        }
    }
    Ok(())
}

/// `labels` are those of the sample, with `le` where it is given.
fn write_histogram(
    text: &mut String,
    name: &str,
    bounds: &[f64],
    histogram: &Histogram,
    labels: impl Fn(Option<&str>) -> String,
    format: Format,
) -> fmt::Result {
    writeln!(text, "{name}_sum{} {}", labels(None), float(histogram.sum))?;
    writeln!(text, "{name}_count{} {}", labels(None), histogram.counts.iter().sum::<u64>())?;
    let mut cumulative = 0;
    for (bucket, count) in histogram.counts.iter().enumerate() {
        cumulative += count;
        let le = bounds.get(bucket).map_or("+Inf".to_string(), |bound| float(*bound));
        write!(text, "{name}_bucket{} {cumulative}", labels(Some(&le)))?;
        let exemplar = histogram.exemplars.iter().find(|(of, _)| *of == bucket);
        if let Some((_, exemplar)) = exemplar.filter(|_| format == Format::OpenMetrics) {
            let labels = braces(exemplar.labels.iter().map(|(name, value)| (*name, value.as_str())));
            write!(text, " # {labels} {} {:.3}", exemplar.value, exemplar.time)?;
        }
        text.push('\n');
    }
    Ok(())
}

/// `{name="value",…}`; nothing without labels.
fn braces<'a>(labels: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = String::new();
    for (name, value) in labels {
        text.push_str(if text.is_empty() { "{" } else { "," });
        text.push_str(name);
        text.push_str("=\"");
        for character in value.chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                other => text.push(other),
            }
        }
        text.push('"');
    }
    if !text.is_empty() {
        text.push('}');
    }
    text
}

/// A whole number as such.
fn whole_or_float(number: f64) -> String {
    /// Below this every whole number is an exact f64.
    const EXACT: f64 = (1u64 << 53) as f64;
    if number.fract() == 0.0 && number.abs() < EXACT { (number as i64).to_string() } else { float(number) }
}

/// With a decimal point, or an exponent if it is tiny. A histogram's bounds are label values, and stay spelled as they are.
fn float(number: f64) -> String {
    const SMALLEST_DECIMAL: f64 = 1e-6;
    if number != 0.0 && number.abs() < SMALLEST_DECIMAL {
        return format!("{number:e}");
    }
    let text = number.to_string();
    if text.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit()) { text + ".0" } else { text }
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
        let counted = Histogram { sum: 3.5, counts: vec![1, 1, 0], exemplars: vec![(1, exemplar)] };
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
