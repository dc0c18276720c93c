//! The paths of the exporter's HTTP endpoint, and the response for each path.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_SECURITY_POLICY,
    CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, VARY, WWW_AUTHENTICATE,
};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::Value;

use super::negotiate::{accepts_gzip, negotiate};
use crate::metrics::Format;

/// The contents of the HTTP endpoint's pages, which each of the two exporters implements.
pub trait Pages: Send + Sync + 'static {
    /// Body of `/metrics` in this exposition format.
    fn metrics(&self, format: Format) -> String;
    /// Result of the readiness check `/readyz`: `Ok` is served as status 200, an error as status 503.
    ///
    /// # Errors
    /// The exporter is not ready, for the reason in the text.
    fn ready(&self) -> Result<(), String>;
    /// Body of `/`, the HTML status page.
    fn index(&self) -> String;
    /// Body of `/status.json`, the data that the page at `/` shows.
    fn status(&self) -> Value;
}

/// The set of paths that a listener serves.
#[derive(Clone, Copy, PartialEq)]
pub enum EndpointScope {
    /// All paths.
    Everything,
    /// Only `/livez` and `/readyz`, and their aliases `/health` and `/ready`.
    Health,
}

/// Paths that every listener serves.
const HEALTH_PATHS: [&str; 4] = ["/livez", "/health", "/readyz", "/ready"];
/// Paths that only a listener with [`EndpointScope::Everything`] serves.
const OTHER_PATHS: [&str; 3] = ["/", "/metrics", "/status.json"];
/// Smallest response body that is compressed, in bytes. A smaller body fits into one network packet without
/// compression.
const MIN_COMPRESSED_BYTES: usize = 1024;
const TEXT: &str = "text/plain; charset=utf-8";
/// Content security policy of the page at `/`: the browser runs the page's inline script, which may connect only to
/// this server.
const ONLY_OURS: &str =
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'";

/// Builds the response to a request whose host name is allowed and whose credentials are correct.
pub fn answer(
    request: &Request<Incoming>,
    access: EndpointScope,
    pages: &impl Pages,
) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let is_page = access == EndpointScope::Everything && OTHER_PATHS.contains(&path);
    if !is_page && !HEALTH_PATHS.contains(&path) {
        let text = match access {
            EndpointScope::Everything => "not found; try /metrics\n",
            EndpointScope::Health => "not found; this port serves only /health and /ready\n",
        };
        return respond(StatusCode::NOT_FOUND, TEXT, text.into());
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut response =
            respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD are supported\n".into());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/livez" | "/health" => respond(StatusCode::OK, TEXT, "ok\n".into()),
        "/readyz" | "/ready" => match pages.ready() {
            Ok(()) => respond(StatusCode::OK, TEXT, "ok\n".into()),
            Err(why) => respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{why}\n")),
        },
        "/metrics" => {
            let format = negotiate(values(request, &ACCEPT));
            respond_compressed(request, format.content_type(), pages.metrics(format))
        }
        "/status.json" => respond_compressed(request, "application/json", pages.status().to_string()),
        _ => {
            let mut response = respond_compressed(request, "text/html; charset=utf-8", pages.index());
            response.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(ONLY_OURS));
            response
        }
    }
}

/// The values of all headers of the request that have this name.
fn values<'a>(request: &'a Request<Incoming>, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    request.headers().get_all(name).iter().filter_map(|value| value.to_str().ok())
}

/// Builds a response with status 200, compressed with gzip if the client accepts gzip and the body is large enough.
fn respond_compressed(request: &Request<Incoming>, kind: &str, body: String) -> Response<Full<Bytes>> {
    let compressed = accepts_gzip(values(request, &ACCEPT_ENCODING)).then(|| compress(&body)).flatten();
    let mut response = respond(StatusCode::OK, kind, body);
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    if let Some(compressed) = compressed {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        *response.body_mut() = Full::from(compressed);
    }
    response
}

/// Compresses the body with gzip. Returns `None` if the body has less than `MIN_COMPRESSED_BYTES`.
fn compress(body: &str) -> Option<Bytes> {
    if body.len() < MIN_COMPRESSED_BYTES {
        return None;
    }
    // The fastest compression level is used. All other levels take several times as long, and save only a few percent
    // of the size.
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 8), Compression::fast());
    encoder.write_all(body.as_bytes()).ok()?;
    encoder.finish().ok().map(Bytes::from)
}

fn respond(status: StatusCode, kind: &str, body: String) -> Response<Full<Bytes>> {
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, kind)
        .header(CACHE_CONTROL, "no-store")
        .body(Full::from(body))
        .expect("these headers are valid")
}

/// Builds the response to a request whose host name is not allowed (see `host`).
pub fn misdirected() -> Response<Full<Bytes>> {
    let text = "a listener on loopback accepts only requests for loopback's names (localhost, 127.0.0.1, [::1]); allow \
         others, e.g. a reverse proxy's, with --web.allowed-host NAME\n";
    respond(StatusCode::MISDIRECTED_REQUEST, TEXT, text.into())
}

/// Builds the response to a request whose password cannot be verified now, because too many other requests are waiting
/// for a password check.
pub fn busy() -> Response<Full<Bytes>> {
    /// Value of the `Retry-After` header, in seconds.
    const RETRY_SECONDS: u32 = 10;
    Response::builder()
        .status(StatusCode::TOO_MANY_REQUESTS)
        .header(RETRY_AFTER, RETRY_SECONDS)
        .header(CONNECTION, "close")
        .body(Full::from("too many passwords are waiting to be verified; try again later\n"))
        .expect("these headers are valid")
}

/// Builds the response to a request without a password, or with a wrong password.
pub fn unauthorized() -> Response<Full<Bytes>> {
    Response::builder()
        .status(StatusCode::UNAUTHORIZED)
        .header(WWW_AUTHENTICATE, "Basic realm=\"metrics\", charset=\"UTF-8\"")
        .body(Full::from("a user name and a password are required\n"))
        .expect("these headers are valid")
}

#[cfg(test)]
#[test]
fn large_bodies_are_compressed_without_loss() {
    use std::io::Read;
    let page: String = (0..2000).map(|n| format!("bitcoin_metric{{label=\"{n}\"}} {n}\n")).collect();
    let compressed = compress(&page).unwrap();
    assert!(compressed.len() * 4 < page.len(), "{}", compressed.len());
    let mut text = String::new();
    flate2::read::GzDecoder::new(&compressed[..]).read_to_string(&mut text).unwrap();
    assert_eq!(text, page);
    assert_eq!(compress("ok\n"), None);
}
