//! Parses the headers in which a client states its preferences: the exposition format of the response (OpenMetrics or
//! Prometheus' text format), and compression.

use crate::metrics::Format;

/// An element of an `Accept` or `Accept-Encoding` header.
struct Element<'a> {
    name: &'a str,
    /// The quality value (`q`): 0 forbids the format or the encoding.
    quality: f64,
    version: Option<&'a str>,
}

/// Parses the elements of the given values of `Accept` or `Accept-Encoding` headers, for example of
/// `text/plain;version=0.0.4;q=0.5,*/*`.
fn elements<'a>(headers: impl Iterator<Item = &'a str>) -> impl Iterator<Item = Element<'a>> {
    headers.flat_map(|header| header.split(',')).map(|element| {
        let mut parts = element.split(';').map(str::trim);
        let mut element = Element { name: parts.next().unwrap_or_default(), quality: 1.0, version: None };
        for (name, value) in parts.filter_map(|parameter| parameter.split_once('=')) {
            match name.trim() {
                "q" | "Q" => element.quality = value.trim().parse().unwrap_or(0.0),
                "version" => element.version = Some(value),
                _ => {}
            }
        }
        element
    })
}

/// Selects the exposition format of a response: OpenMetrics 1.0 if the `Accept` headers of the request name
/// OpenMetrics, with a quality value above 0 that is not lower than the value of the text format. Otherwise the text
/// format is selected.
pub fn negotiate<'a>(accept: impl Iterator<Item = &'a str>) -> Format {
    let (mut open_metrics, mut text) = (0.0_f64, 0.0_f64);
    for Element { name, quality, version } in elements(accept) {
        match (name, version) {
            ("application/openmetrics-text", None | Some("1.0.0")) => {
                open_metrics = quality.max(open_metrics)
            }
            ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", _) => text = quality.max(text),
            _ => {}
        }
    }
    if open_metrics > 0.0 && open_metrics >= text { Format::OpenMetrics } else { Format::Text }
}

/// Whether the `Accept-Encoding` headers of a request permit gzip. The name `*` means all encodings that the headers do
/// not name.
pub fn accepts_gzip<'a>(headers: impl Iterator<Item = &'a str>) -> bool {
    let (mut gzip, mut any) = (None, None);
    for Element { name, quality, .. } in elements(headers) {
        if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
            gzip = Some(quality > 0.0);
        } else if name == "*" {
            any = Some(quality > 0.0);
        }
    }
    gzip.or(any).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scraper_gets_its_preferred_format() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                          application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, format) in [
            (prometheus, Format::OpenMetrics),
            ("application/openmetrics-text; version=1.0.0", Format::OpenMetrics),
            ("application/openmetrics-text;version=0.0.1,text/plain;q=0.5", Format::Text),
            ("text/plain;version=0.0.4;q=0.9,application/openmetrics-text;q=0.1", Format::Text),
            ("application/openmetrics-text;q=0", Format::Text),
            ("*/*", Format::Text),
            ("text/html,;;q=,=;q=x", Format::Text),
            ("", Format::Text),
        ] {
            assert_eq!(negotiate([accept].into_iter()), format, "{accept}");
        }
    }

    #[test]
    fn gzip_is_used_if_it_is_accepted() {
        for (accepted, headers) in [
            (true, &["gzip"][..]),
            (true, &["deflate, gzip;q=1.0, *;q=0.5"]),
            (true, &["deflate", "GZIP ; q=0.1"]),
            (true, &["*"]),
            (true, &["zstd,gzip"]),
            (false, &[]),
            (false, &[""]),
            (false, &["identity"]),
            (false, &["gzip;q=0"]),
            (false, &["gzip; q=0.000, *"]),
            (false, &["*;q=0"]),
            (false, &["gzip;q=x"]),
            (false, &["gzipped, br"]),
            (false, &[",;=,;q"]),
        ] {
            assert_eq!(accepts_gzip(headers.iter().copied()), accepted, "{headers:?}");
        }
    }
}
