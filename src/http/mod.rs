//! The metrics endpoint.
//!
//! It has a thread of its own: neither a slow or hostile scraper nor rendering a large page can delay an answer to
//! the node.

mod basic_auth;
mod connections;
mod deadline;
mod history;
mod web_config;

use std::convert::Infallible;
use std::net::{IpAddr, TcpListener as StdTcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::PathBuf;
use std::pin::pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue,
    RETRY_AFTER, WWW_AUTHENTICATE,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{
    AddressFamily, SockaddrLike, SockaddrStorage, getsockname, getsockopt, setsockopt, sockopt,
};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use basic_auth::Verdict;
pub use connections::{Connections, Place};
use deadline::Deadline;
pub use history::History;
pub use web_config::WebConfig;

use crate::metrics::Format;
use crate::priority;
use crate::systemd::Pulse;

/// Connections at once, as far as the limit of open files allows. Prometheus uses one. Each costs up to 80 kB, most of it
/// an answer that is not read.
const CONNECTIONS: u64 = 256;
/// Open files that are not scrapers' connections.
const OTHER_FILES: u64 = 64;
/// A request's line and headers; Prometheus sends about 300 bytes.
const HEADER_BYTES: usize = 16 * 1024;
/// To send a request's headers, the first byte included; so an idle kept-alive connection ends after it.
const HEADER_TIME: Duration = Duration::from_secs(75);
/// To take an answer. Prometheus gives up after 10 s.
const ANSWER_TIME: Duration = Duration::from_secs(15);
/// What the kernel may keep of what a scraper sends, and of what it does not read. Left alone it keeps megabytes, and
/// whoever asks a hundred times and never reads has a hundred answers made.
const SOCKET_BYTES: usize = 32 * 1024;
/// Until those who are told to come again should do so.
const RETRY_SECONDS: u32 = 10;
/// For a TLS handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// Where to listen.
#[derive(Clone, Debug, PartialEq)]
pub enum Address {
    /// `HOST:PORT`, `[IPv6]:PORT`
    Tcp(String),
    /// `unix:/path`
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err("unix: needs a path".into())
            } else {
                Ok(Address::Unix(path.into()))
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or("expected HOST:PORT or unix:/path")?;
        if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
            return Err("an IPv6 address needs brackets: [::1]:9332".into());
        }
        port.parse::<u16>().map_err(|_| format!("{port:?} is not a port"))?;
        Ok(Address::Tcp(text.into()))
    }
}

/// A socket that listens.
pub enum Listener {
    /// TCP.
    Tcp(StdTcpListener),
    /// A Unix socket, with its path if we made it.
    Unix(StdUnixListener, Option<PathBuf>),
}

impl Listener {
    /// Binds; an address in use is an error that says so, a socket file that nobody listens on any more is replaced.
    pub fn bind(address: &Address) -> Result<Self> {
        match address {
            Address::Tcp(address) => {
                let listener = StdTcpListener::bind(address).with_context(|| {
                    format!("cannot listen on {address} (choose another with --metrics-addr HOST:PORT)")
                })?;
                Ok(Listener::Tcp(listener))
            }
            Address::Unix(path) => {
                let stale = path.symlink_metadata().is_ok_and(|file| file.file_type().is_socket())
                    && std::os::unix::net::UnixStream::connect(path)
                        .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
                if stale {
                    std::fs::remove_file(path)?;
                }
                let listener = StdUnixListener::bind(path).with_context(|| {
                    format!("cannot listen on {} (choose another with --metrics-addr)", path.display())
                })?;
                Ok(Listener::Unix(listener, Some(path.clone())))
            }
        }
    }

    /// A socket that the service manager listens on for us.
    pub fn inherited(fd: OwnedFd) -> Result<Self> {
        if !getsockopt(&fd, sockopt::AcceptConn).unwrap_or(false) {
            bail!("the inherited HTTP file descriptor is not a listening socket");
        }
        let name: SockaddrStorage = getsockname(std::os::fd::AsRawFd::as_raw_fd(&fd))?;
        Ok(match name.family() {
            Some(AddressFamily::Unix) => Listener::Unix(fd.into(), None),
            _ => Listener::Tcp(fd.into()),
        })
    }

    /// Removes the socket file, if we made one.
    pub fn remove_file(&self) {
        if let Listener::Unix(_, Some(path)) = self {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Whether only this machine can connect.
    fn is_local(&self) -> bool {
        match self {
            Listener::Tcp(listener) => listener.local_addr().is_ok_and(|address| address.ip().is_loopback()),
            Listener::Unix(..) => true,
        }
    }

    /// With the scheme that the configuration asks for.
    fn describe_with(&self, web_config: &WebConfig) -> String {
        match web_config.tls() {
            Some(_) => self.describe().replacen("http://", "https://", 1),
            None => self.describe(),
        }
    }

    /// As a user would type it.
    pub fn describe(&self) -> String {
        match self {
            Listener::Tcp(listener) => listener
                .local_addr()
                .map_or("an unknown address".into(), |address| format!("http://{address}")),
            Listener::Unix(listener, _) => {
                let path =
                    listener.local_addr().ok().and_then(|address| address.as_pathname().map(PathBuf::from));
                format!("unix:{}", path.unwrap_or_default().display())
            }
        }
    }
}

/// What the endpoint shows.
pub trait Pages: Send + Sync + 'static {
    /// `/metrics`
    fn metrics(&self, format: Format) -> String;
    /// `/readyz`: 200, or 503 with what is missing.
    fn ready(&self) -> Result<(), String>;
    /// `/`: HTML.
    fn index(&self) -> String;
    /// `/status.json`, for [`STATUS_PAGE`].
    fn status(&self) -> Option<Value> {
        None
    }
    /// Called every so often, to keep what `status` tells of the past.
    fn keep(&self) {}
}

/// A node at a glance: reads `metrics` and `status.json`, and nothing from elsewhere.
pub const STATUS_PAGE: &str = include_str!("status.html");

/// Who gets what from a listener.
pub struct Endpoint {
    web_config: WebConfig,
    health_only: bool,
}

impl Endpoint {
    /// Every page, for those whom the configuration permits.
    pub fn all(web_config: WebConfig) -> Self {
        Endpoint { web_config, health_only: false }
    }

    /// `/health` and `/ready`, for everyone.
    pub fn health() -> Self {
        Endpoint { web_config: WebConfig::default(), health_only: true }
    }
}

/// What is served, until it is finished or dropped.
#[must_use = "dropping it ends the serving"]
pub struct Serving(watch::Sender<()>);

impl Serving {
    /// Accepts no more connections, answers what was asked, and returns after half a second at the latest.
    pub fn finish(self) {
        const AT_MOST: Duration = Duration::from_millis(500);
        const AGAIN: Duration = Duration::from_millis(2);
        let since = Instant::now();
        self.0.send_replace(());
        while self.0.receiver_count() > 0 && since.elapsed() < AT_MOST {
            std::thread::sleep(AGAIN);
        }
    }
}

/// Serves on a thread of its own; the process ends with an error when that fails.
pub fn serve_on_thread(
    listeners: impl IntoIterator<Item = (Arc<Listener>, Endpoint)>,
    pages: Arc<impl Pages>,
    pulse: Pulse,
) -> Result<Serving> {
    let (serving, ending) = watch::channel(());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listeners: Vec<_> = listeners.into_iter().collect();
    std::thread::Builder::new().name("http".into()).spawn(move || {
        priority::give_way();
        for (listener, endpoint) in listeners {
            match endpoint.health_only {
                true => info!("answering health checks on {}/health", listener.describe()),
                false => {
                    info!("serving metrics on {}/metrics", listener.describe_with(&endpoint.web_config))
                }
            }
            if !listener.is_local() && !endpoint.web_config.protects() && !endpoint.health_only {
                warn!(
                    "whoever reaches {} can read the metrics; --web.config.file can ask for a password",
                    listener.describe()
                );
            }
            let (pages, ending) = (pages.clone(), ending.clone());
            runtime.spawn(async move {
                if let Err(error) = serve(&listener, Arc::new(endpoint), pages, ending).await {
                    eprintln!("serving metrics failed: {error:#}");
                    std::process::exit(1);
                }
            });
        }
        drop(ending);
        runtime.spawn(async move {
            loop {
                pages.keep();
                tokio::time::sleep(history::EVERY).await;
            }
        });
        runtime.block_on(pulse.beat());
    })?;
    Ok(Serving(serving))
}

/// Serves until `ending` changes.
pub async fn serve(
    listener: &Listener,
    endpoint: Arc<Endpoint>,
    pages: Arc<impl Pages>,
    mut ending: watch::Receiver<()>,
) -> Result<()> {
    let connections = Connections::new(room());
    match listener {
        Listener::Tcp(listener) => {
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener.try_clone()?)?;
            loop {
                tokio::select! {
                    _ = ending.changed() => return Ok(()),
                    accepted = listener.accept() => {
                        let accepted = accepted.map(|(stream, address)| (stream, Some(address.ip())));
                        accept(accepted, &connections, &endpoint, &pages, &ending).await;
                    }
                }
            }
        }
        Listener::Unix(listener, _) => {
            listener.set_nonblocking(true)?;
            let listener = UnixListener::from_std(listener.try_clone()?)?;
            loop {
                tokio::select! {
                    _ = ending.changed() => return Ok(()),
                    accepted = listener.accept() => {
                        let accepted = accepted.map(|(stream, _)| (stream, None));
                        accept(accepted, &connections, &endpoint, &pages, &ending).await;
                    }
                }
            }
        }
    }
}

/// How many connections the limit of open files has room for.
fn room() -> usize {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    limit.saturating_sub(OTHER_FILES).clamp(1, CONNECTIONS) as usize
}

async fn accept<S>(
    accepted: std::io::Result<(S, Option<IpAddr>)>,
    connections: &Arc<Connections>,
    endpoint: &Arc<Endpoint>,
    pages: &Arc<impl Pages>,
    ending: &watch::Receiver<()>,
) where
    S: AsyncRead + AsyncWrite + AsFd + Send + Unpin + 'static,
{
    let (stream, from) = match accepted {
        Ok(accepted) => accepted,
        Err(error) => {
            // Out of descriptors, most likely: waiting is better than spinning.
            warn!("cannot accept a connection: {error}");
            return tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let _ = setsockopt(&stream, sockopt::SndBuf, &SOCKET_BYTES);
    let _ = setsockopt(&stream, sockopt::RcvBuf, &SOCKET_BYTES);
    let place = connections.enter(from);
    let (endpoint, pages, ending) = (endpoint.clone(), pages.clone(), ending.clone());
    tokio::spawn(async move {
        let serve = async {
            match endpoint.web_config.tls() {
                None => serve_connection(stream, &endpoint, &*pages, &place, ending).await,
                Some(tls) => {
                    let handshake = TlsAcceptor::from(tls).accept(stream);
                    match tokio::time::timeout(HANDSHAKE_TIME, handshake).await {
                        Ok(Ok(stream)) => serve_connection(stream, &endpoint, &*pages, &place, ending).await,
                        Ok(Err(error)) => Err(error.into()),
                        Err(_) => Err(anyhow::anyhow!("no TLS handshake within {HANDSHAKE_TIME:?}")),
                    }
                }
            }
        };
        let served = tokio::select! {
            served = serve => served,
            () = place.taken() => Err(anyhow::anyhow!("closed to make room for another")),
        };
        if let Err(error) = served {
            tracing::debug!("a scraper's connection ended: {error:#}");
        }
    });
    // So that one that had to make room is closed before the next is accepted.
    tokio::task::yield_now().await;
}

/// Answers one scraper until it is done, breaks the rules, or takes too long. When `ending` changes it has one more answer.
pub async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    endpoint: &Endpoint,
    pages: &impl Pages,
    place: &Place,
    mut ending: watch::Receiver<()>,
) -> Result<()> {
    let web_config = &endpoint.web_config;
    let answer = service_fn(async |request: Request<Incoming>| {
        let mut response = match web_config.users().permit(request.headers(), place.from()).await {
            Verdict::Permitted => {
                if !web_config.users().is_empty() {
                    place.set_known();
                }
                answer(&request, endpoint.health_only, pages)
            }
            Verdict::Refused => unauthorized(),
            Verdict::Busy => busy(),
        };
        response.headers_mut().extend(web_config.headers().clone());
        Ok::<_, Infallible>(response)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(Deadline::new(stream, ANSWER_TIME)), answer);
    let mut connection = pin!(connection);
    tokio::select! {
        served = connection.as_mut() => return Ok(served?),
        _ = ending.changed() => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}

fn busy() -> Response<Full<Bytes>> {
    Response::builder()
        .status(StatusCode::TOO_MANY_REQUESTS)
        .header(RETRY_AFTER, RETRY_SECONDS)
        .header(CONNECTION, "close")
        .body(Full::from("too many passwords wait to be checked; try again\n"))
        .expect("these headers are valid")
}

fn unauthorized() -> Response<Full<Bytes>> {
    Response::builder()
        .status(StatusCode::UNAUTHORIZED)
        .header(WWW_AUTHENTICATE, "Basic realm=\"metrics\", charset=\"UTF-8\"")
        .body(Full::from("a user and a password are needed\n"))
        .expect("these headers are valid")
}

fn answer(request: &Request<Incoming>, health_only: bool, pages: &impl Pages) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    const ONLY_OURS: &str =
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'";
    let respond = |status: StatusCode, kind: &str, body: String| {
        Response::builder()
            .status(status)
            .header(CONTENT_TYPE, kind)
            .header(CACHE_CONTROL, "no-store")
            .body(Full::from(body))
            .expect("these headers are valid")
    };
    let path = request.uri().path();
    let is_health = ["/livez", "/health", "/readyz", "/ready"].contains(&path);
    if health_only && !is_health {
        return respond(StatusCode::NOT_FOUND, TEXT, "not found; only /health and /ready are here\n".into());
    }
    let status = if path == "/status.json" { pages.status() } else { None };
    if status.is_none() && !is_health && !["/", "/metrics"].contains(&path) {
        return respond(StatusCode::NOT_FOUND, TEXT, "not found; try /metrics\n".into());
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".into());
        response.headers_mut().insert(ALLOW, "GET, HEAD".parse().expect("valid"));
        return response;
    }
    if let Some(status) = status {
        return respond(StatusCode::OK, "application/json", status.to_string());
    }
    match path {
        "/metrics" => {
            let accept = request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
            let format = negotiate(accept);
            respond(StatusCode::OK, format.content_type(), pages.metrics(format))
        }
        "/livez" | "/health" => respond(StatusCode::OK, TEXT, "ok\n".into()),
        "/readyz" | "/ready" => match pages.ready() {
            Ok(()) => respond(StatusCode::OK, TEXT, "ok\n".into()),
            Err(why) => respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{why}\n")),
        },
        _ => {
            let mut response = respond(StatusCode::OK, "text/html; charset=utf-8", pages.index());
            response.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(ONLY_OURS));
            response
        }
    }
}

/// A small page: facts, and links to the other pages. Everything is escaped: a node chooses its own name.
pub fn page(title: &str, facts: &[(&str, &str)]) -> String {
    let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let row = |(name, fact): &(&str, &str)| {
        format!("<tr><th>{}</th><td>{}</td></tr>\n", escape(name), escape(fact))
    };
    let rows: String = facts.iter().map(row).collect();
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>:root {{ color-scheme: light dark }} body {{ font: 16px sans-serif; margin: 2em }} \
         th {{ text-align: left; padding-right: 1em; vertical-align: top }}</style>\n\
         <h1>{title}</h1>\n<table>\n{rows}</table>\n<p><a href=\"metrics\">Metrics</a> · \
         <a href=\"livez\">Alive</a> · <a href=\"readyz\">Ready</a></p>\n</html>\n"
    )
}

/// The format with the higher quality in Accept, OpenMetrics 1.0 only where it is named; text when in doubt.
fn negotiate<'a>(accept: impl Iterator<Item = &'a str>) -> Format {
    let (mut open_metrics, mut text) = (0.0_f64, 0.0_f64);
    for range in accept.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let (mut quality, mut version) = (1.0_f64, None);
        for parameter in parts {
            match parameter.split_once('=') {
                Some(("q", value)) => quality = value.parse().unwrap_or(0.0),
                Some(("version", value)) => version = Some(value),
                _ => {}
            }
        }
        match (kind, version) {
            ("application/openmetrics-text", None | Some("1.0.0")) => {
                open_metrics = quality.max(open_metrics)
            }
            ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", _) => text = quality.max(text),
            _ => {}
        }
    }
    if open_metrics > 0.0 && open_metrics >= text { Format::OpenMetrics } else { Format::Text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scraper_gets_the_format_it_prefers() {
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
    fn addresses_are_read_as_users_write_them() {
        assert_eq!("127.0.0.1:9332".parse(), Ok(Address::Tcp("127.0.0.1:9332".into())));
        assert_eq!("[::1]:9332".parse(), Ok(Address::Tcp("[::1]:9332".into())));
        assert_eq!("localhost:0".parse(), Ok(Address::Tcp("localhost:0".into())));
        assert_eq!("unix:/run/x".parse(), Ok(Address::Unix("/run/x".into())));
        for wrong in ["9332", "::1:9332", "localhost:http", "unix:", "localhost:99999"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}
