//! Exemplars: an example of what is in a bucket of a histogram, for scrapers that ask for OpenMetrics.

/// An example of what is in a bucket of a histogram without labels.
pub struct Exemplar {
    /// The histogram's name.
    pub family: &'static str,
    /// Which of its buckets, from 0 on.
    pub bucket: usize,
    /// As they are written, `name="value",…`: OpenMetrics allows 128 characters, names and values together.
    pub labels: String,
    /// In the unit of the metric.
    pub value: f64,
    /// Unix seconds.
    pub time: f64,
}

/// Exemplars go behind the samples of their buckets. prometheus-client writes them only where it has counted itself.
pub(super) fn insert(open_metrics: &str, exemplars: &[Exemplar]) -> String {
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

#[cfg(test)]
mod tests {
    use super::{Exemplar, insert};

    #[test]
    fn exemplars_are_behind_the_samples_of_their_buckets() {
        let text = "# TYPE a histogram\na_sum{node=\"x\"} 3.5\na_count{node=\"x\"} 2\na_bucket{le=\"1.0\",node=\"x\"} 1\n\
                    a_bucket{le=\"+Inf\",node=\"x\"} 2\n# TYPE a_bucket gauge\na_bucket{node=\"x\"} 2\n# EOF\n";
        let labels = "block_height=\"7\"".to_string();
        let exemplar =
            |family, bucket| Exemplar { family, bucket, labels: labels.clone(), value: 2.5, time: 1e9 };
        let shown = insert(text, &[exemplar("a", 1), exemplar("b", 0)]);
        let expected = text.replace(
            "\"+Inf\",node=\"x\"} 2",
            "\"+Inf\",node=\"x\"} 2 # {block_height=\"7\"} 2.5 1000000000.000",
        );
        assert_eq!(shown, expected);
    }
}
