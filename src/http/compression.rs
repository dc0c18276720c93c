//! Compresses responses with gzip.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::body::Bytes;

/// Smallest response body that is compressed, in bytes. A smaller body fits into one network packet without
/// compression.
const MIN_BYTES: usize = 1024;

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
