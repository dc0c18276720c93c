//! The exporter's HTTP server, which accepts connections and handles their requests on a separate thread.

use std::convert::Infallible;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Result, anyhow};
use futures::FutureExt;
use futures::future::join_all;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info, warn};

use super::connections::{Authenticated, Connections};
use super::deadline::WriteDeadline;
use super::host::AllowedHosts;
use super::routes::{EndpointScope, answer, busy, misdirected, unauthorized};
use super::web_config::AuthResult;
use super::{Listener, Pages, WebConfig};
use crate::scheduling;
use crate::systemd::Heartbeat;

/// Maximum number of concurrent HTTP connections of the process. If the limit on open files is low, `max_connections`
/// lowers this number. Prometheus uses one connection. Each connection needs up to 80 kB of memory, most of it for a
/// response that the client has not read yet.
const MAX_CONNECTIONS: u64 = 256;
/// Maximum number of connections of the separate listener for health checks (`--health-port` of
/// bitcoind-usdt-exporter). These connections count towards [`MAX_CONNECTIONS`]. The separate limit is needed because
/// health checks need no password: clients without a password could otherwise use up all connections.
const MAX_HEALTH_CONNECTIONS: usize = 16;
/// Number of file descriptors that the exporter needs for other purposes than HTTP connections.
const OTHER_FILES: u64 = 64;
/// Maximum size of a request's first line and headers, in bytes. Prometheus sends about 300 bytes.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Maximum time to receive the headers of a request, including the wait for the first byte. An idle keep-alive
/// connection is therefore closed after this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);
/// Maximum time to send a response. The time is longer than Prometheus' default timeout for a scrape, which is 10 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Size of the kernel's send and receive buffers of a connection, in bytes. The kernel's default buffers of megabytes
/// would accept many responses for a client that sends a hundred requests and reads no response, and the server would
/// render each of them.
const SOCKET_BYTES: usize = 32 * 1024;
/// Maximum duration of a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum time for which a shutdown of the server waits for responses that are being sent.
const FINISH_TIMEOUT: Duration = Duration::from_millis(500);
/// Time after a failed accept(2) until the server tries to accept a connection again.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// The configuration of one listener (a listening socket) of the HTTP server, which decides which requests the listener
/// serves: the paths, TLS, the users and the allowed host names.
pub struct Endpoint {
    web_config: WebConfig,
    access: EndpointScope,
    /// The host names that requests may have; `None` if every host name is allowed.
    hosts: Option<AllowedHosts>,
}

impl Endpoint {
    /// Creates the configuration of a listener that serves these paths, with the TLS settings and users of the web
    /// configuration. If the listener has a loopback address, requests for the host names in `names` are also allowed.
    pub fn new(access: EndpointScope, web_config: WebConfig, names: &[String]) -> Self {
        Endpoint { web_config, access, hosts: Some(AllowedHosts::loopback_and(names.to_vec())) }
    }

    fn announce(&self, listener: &Listener) {
        if self.access == EndpointScope::Health {
            let at = listener.describe_with(&self.web_config);
            return info!("serving health checks on {at}/health");
        }
        info!("serving metrics on {}/metrics", listener.describe_with(&self.web_config));
        if !listener.is_local() && !self.web_config.protects() {
            warn!(
                "{} is reachable without authentication; set a password with --web.config.file",
                listener.describe()
            );
        }
    }
}

/// Handle to the running HTTP server. Dropping the handle stops the server.
#[must_use = "dropping it ends the serving"]
pub struct HttpServerHandle {
    end: DropGuard,
    /// Channel without messages, which the server's thread closes when the thread exits.
    ended: mpsc::Receiver<Infallible>,
}

impl HttpServerHandle {
    /// Stops the server: accepts no more connections, responds to the requests received so far, and returns after at
    /// most half a second.
    pub fn finish(self) {
        drop(self.end);
        let _ = self.ended.recv_timeout(FINISH_TIMEOUT);
    }
}

/// Starts the HTTP server for all `listeners` on a new thread, which increments `heartbeat` as long as it does not
/// hang.
///
/// # Errors
/// The tokio runtime or the thread cannot be created, or a listener cannot be used.
pub fn serve_on_thread(
    max_connections: usize,
    listeners: impl IntoIterator<Item = (Arc<Listener>, Endpoint)>,
    pages: Arc<impl Pages>,
    heartbeat: Heartbeat,
) -> Result<HttpServerHandle> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let end = CancellationToken::new();
    let mut servers = Vec::new();
    {
        let _runtime = runtime.enter();
        for (listener, mut endpoint) in listeners {
            endpoint.announce(&listener);
            if !listener.is_on_loopback() {
                endpoint.hosts = None;
            }
            let connections = Connections::new(connection_limit(max_connections, endpoint.access));
            let (endpoint, pages, end) = (Arc::new(endpoint), pages.clone(), end.clone());
            servers.push(match &*listener {
                Listener::Tcp(listener) => {
                    listener.set_nonblocking(true)?;
                    let listener = TcpListener::from_std(listener.try_clone()?)?;
                    serve(listener, connections, endpoint, pages, end).boxed()
                }
                Listener::Unix(listener, _) => {
                    listener.set_nonblocking(true)?;
                    let listener = UnixListener::from_std(listener.try_clone()?)?;
                    serve(listener, connections, endpoint, pages, end).boxed()
                }
            });
        }
    }
    let (alive, ended) = mpsc::channel();
    std::thread::Builder::new().name("http".into()).spawn(move || {
        let _alive = alive;
        scheduling::lower_priority();
        runtime.block_on(async {
            tokio::select! {
                _ = join_all(servers) => {}
                () = heartbeat.beat() => {}
            }
        });
    })?;
    Ok(HttpServerHandle { end: end.drop_guard(), ended })
}

/// Accepts connections until `end` is cancelled, then waits for the responses on open connections, for at most
/// [`FINISH_TIMEOUT`].
async fn serve<L>(
    mut listener: L,
    mut connections: Connections,
    endpoint: Arc<Endpoint>,
    pages: Arc<impl Pages>,
    end: CancellationToken,
) where
    L: tokio_util::net::Listener,
    L::Io: AsFd + Send + Unpin + 'static,
{
    let graceful = GracefulShutdown::new();
    while let Some(accepted) = end.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => {
                let _ = setsockopt(&stream, sockopt::SndBuf, &SOCKET_BYTES);
                let _ = setsockopt(&stream, sockopt::RcvBuf, &SOCKET_BYTES);
                let (endpoint, pages, watcher) = (endpoint.clone(), pages.clone(), graceful.watcher());
                connections
                    .spawn(|authenticated| serve_stream(stream, endpoint, pages, authenticated, watcher));
                // If `spawn` aborted the task of an old connection, the yield lets that task end before the next
                // connection is accepted.
                tokio::task::yield_now().await;
            }
            Err(error) => {
                // accept(2) most likely failed because the process has no free file descriptor, and an immediate retry
                // would fail, too.
                warn!("cannot accept a connection: {error}");
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(FINISH_TIMEOUT, graceful.shutdown()).await;
}

/// The maximum number of HTTP connections of the process: [`MAX_CONNECTIONS`], or fewer if the process's limit on open
/// files is low.
pub fn max_connections() -> usize {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    limit.saturating_sub(OTHER_FILES).clamp(2, MAX_CONNECTIONS) as usize
}

/// The maximum number of connections of one listener. The health check listener has a separate limit, so the server
/// never closes a connection of Prometheus to accept a connection for health checks.
fn connection_limit(max_connections: usize, access: EndpointScope) -> usize {
    let health = (max_connections / 4).clamp(1, MAX_HEALTH_CONNECTIONS);
    if access == EndpointScope::Health { health } else { max_connections - health }
}

/// Serves one connection: makes the TLS handshake if TLS is configured, then handles requests until the connection is
/// closed.
async fn serve_stream(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    endpoint: Arc<Endpoint>,
    pages: Arc<impl Pages>,
    authenticated: Authenticated,
    watcher: Watcher,
) {
    let serve = async {
        let Some(tls) = endpoint.web_config.tls() else {
            return serve_connection(stream, &endpoint, &*pages, &authenticated, watcher).await;
        };
        let handshake = TlsAcceptor::from(tls).accept(stream);
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(stream) => serve_connection(stream?, &endpoint, &*pages, &authenticated, watcher).await,
            Err(_) => Err(anyhow!("no TLS handshake within {HANDSHAKE_TIMEOUT:?}")),
        }
    };
    if let Err(error) = serve.await {
        debug!("an HTTP connection failed: {error:#}");
    }
}

/// Handles the requests of one client until the client disconnects, exceeds a size limit, or exceeds a timeout. At a
/// graceful shutdown of the server, the response to the current request is still sent.
///
/// # Errors
/// The client sent an invalid request, exceeded a size limit or a timeout, or the connection failed.
pub async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    endpoint: &Endpoint,
    pages: &impl Pages,
    authenticated: &Authenticated,
    watcher: Watcher,
) -> Result<()> {
    let web_config = &endpoint.web_config;
    let answer = service_fn(async |request: Request<Incoming>| {
        let (uri, headers) = (request.uri(), request.headers());
        let is_host_allowed = endpoint.hosts.as_ref().is_none_or(|hosts| hosts.permit(uri, headers));
        let mut response = match &web_config.users {
            _ if !is_host_allowed => misdirected(),
            None => answer(&request, endpoint.access, pages),
            Some(users) => match users.permit(headers).await {
                AuthResult::Permitted => {
                    authenticated.store(true, Relaxed);
                    answer(&request, endpoint.access, pages)
                }
                AuthResult::Rejected => unauthorized(),
                AuthResult::Busy => busy(),
            },
        };
        response.headers_mut().extend(web_config.headers.clone());
        Ok::<_, Infallible>(response)
    });
    // With `half_close`, a client that shuts down its sending side after the request still receives the response.
    let connection = http1::Builder::new()
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(WriteDeadline::new(stream, ANSWER_TIMEOUT)), answer);
    Ok(watcher.watch(connection).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Address;
    use crate::metrics::Format;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};

    /// Test implementation of [`Pages`] with fixed contents.
    struct FixedPages;

    impl Pages for FixedPages {
        fn metrics(&self, _: Format) -> String {
            "metrics".into()
        }
        fn ready(&self) -> Result<(), String> {
            Ok(())
        }
        fn index(&self) -> String {
            "index".into()
        }
        fn status(&self) -> serde_json::Value {
            serde_json::Value::Null
        }
    }

    fn listener() -> (Arc<Listener>, SocketAddr) {
        let listener = Listener::bind(&Address::Tcp("127.0.0.1:0".into())).unwrap();
        let Listener::Tcp(tcp) = &listener else { unreachable!() };
        let address = tcp.local_addr().unwrap();
        (Arc::new(listener), address)
    }

    /// Sends a request on this connection, and returns whether the server responds.
    fn is_answered(stream: &mut TcpStream) -> bool {
        let request = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
        stream.write_all(request).is_ok() && stream.read(&mut [0; 1024]).is_ok_and(|read| read > 0)
    }

    #[test]
    fn health_checks_have_a_small_share_of_the_connections() {
        let shares = |max| {
            (connection_limit(max, EndpointScope::Everything), connection_limit(max, EndpointScope::Health))
        };
        assert_eq!(shares(256), (240, 16));
        assert_eq!(shares(20), (15, 5));
        assert_eq!(shares(2), (1, 1));
    }

    #[test]
    fn connections_for_health_checks_close_no_scrapers() {
        let [(metrics, metrics_at), (health, health_at)] = [listener(), listener()];
        let endpoint = |access| Endpoint::new(access, WebConfig::default(), &[]);
        let listeners =
            [(metrics, endpoint(EndpointScope::Everything)), (health, endpoint(EndpointScope::Health))];
        let serving = serve_on_thread(6, listeners, Arc::new(FixedPages), Heartbeat::default()).unwrap();
        let mut scrapers: Vec<_> = (0..5).map(|_| TcpStream::connect(metrics_at).unwrap()).collect();
        assert!(scrapers.iter_mut().all(is_answered));
        let mut checks: Vec<_> = (0..30).map(|_| TcpStream::connect(health_at).unwrap()).collect();
        assert!(is_answered(checks.last_mut().unwrap()));
        assert_eq!(
            checks.iter_mut().filter_map(|check| is_answered(check).then_some(())).count(),
            1,
            "health's share"
        );
        assert!(scrapers.iter_mut().all(is_answered), "scrapers keep theirs");
        serving.finish();
    }
}
