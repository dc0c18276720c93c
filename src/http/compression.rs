//! Compresses responses with gzip, for clients that accept gzip.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::body::Bytes;

/// Smallest response body that is compressed, in bytes. A smaller body fits into one network packet without
/// compression.
const MIN_BYTES: usize = 1024;

/// Whether the `Accept-Encoding` headers of a request permit gzip. A quality value (`q`) of 0 forbids an encoding. The
/// name `*` means all encodings that the headers do not name.
pub fn accepts_gzip<'a>(headers: impl Iterator<Item = &'a str>) -> bool {
    let (mut gzip, mut any) = (None, None);
    for coding in headers.flat_map(|value| value.split(',')) {
        let mut parts = coding.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let quality = parts.find_map(|parameter| {
            let (name, value) = parameter.split_once('=')?;
            name.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse().unwrap_or(0.0))
        });
        let accepted = quality.unwrap_or(1.0) > 0.0;
        if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
            gzip = Some(accepted);
        } else if name == "*" {
            any = Some(accepted);
        }
    }
    gzip.or(any).unwrap_or(false)
}

/// Compresses the body with gzip. Returns `None` if the body has less than `MIN_BYTES`.
pub fn compress(body: &str) -> Option<Bytes> {
    if body.len() < MIN_BYTES {
        return None;
    }
    // The fastest compression level is used. All other levels take several times as long, and save only a few percent
    // of the size.
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 8), Compression::fast());
    encoder.write_all(body.as_bytes()).ok()?;
    encoder.finish().ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

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

    #[test]
    fn large_bodies_are_compressed_without_loss() {
        let page: String = (0..2000).map(|n| format!("bitcoin_metric{{label=\"{n}\"}} {n}\n")).collect();
        let compressed = compress(&page).unwrap();
        assert!(compressed.len() * 4 < page.len(), "{}", compressed.len());
        let mut text = String::new();
        flate2::read::GzDecoder::new(&compressed[..]).read_to_string(&mut text).unwrap();
        assert_eq!(text, page);
        assert_eq!(compress("ok\n"), None);
    }
}
