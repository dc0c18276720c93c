//! The HTTP connection to a node's JSON-RPC server. The connection stays open between requests, carries one request at
//! a time, and reads each response into memory.

use std::sync::Arc;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tokio_util::task::AbortOnDropHandle;

use super::{FailureCause, HttpFailure, HttpRpcConfig};

/// Maximum size of a response body in bytes. The response to getpeerinfo of a node with 1,000 peers has 2 MB.
const MAX_BODY_BYTES: usize = 64 << 20;
/// Maximum size of a response's status line and headers in bytes. The status line and headers of Bitcoin Core's
/// responses have about 150 bytes.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// An open HTTP connection to the node's JSON-RPC server, which the client keeps for its next request. The client keeps
/// at most one connection.
pub struct PooledConnection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// The `Authorization` header of the last request on this connection.
    pub authorization: HeaderValue,
    _driver: AbortOnDropHandle<()>,
}

/// Sends a request and reads the response. Opens a new connection if `pooled` is `None`, or if the node has closed the
/// connection `pooled`. Also returns the connection that carried the request, which the next request can use.
///
/// # Errors
/// The connection cannot be opened, or the node sends no complete response.
pub async fn send_request(
    config: &HttpRpcConfig,
    pooled: Option<PooledConnection>,
    authorization: &HeaderValue,
    body: &Bytes,
) -> Result<(PooledConnection, Response<Bytes>), HttpFailure> {
    let url = &config.url;
    let request = || {
        Request::post(&url.path)
            .header(HOST, url.authority())
            .header(AUTHORIZATION, authorization)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body.clone()))
            .map_err(|error| error.to_string())
    };
    if let Some(mut pooled) = pooled
        && pooled.sender.ready().await.is_ok()
        && let Ok(head) = pooled.sender.send_request(request()?).await
    {
        pooled.authorization = authorization.clone();
        return Ok((pooled, read_response(head).await?));
    }
    let mut pooled = connect(config, authorization).await?;
    let head = pooled.sender.send_request(request()?).await;
    let head = head.map_err(|error| {
        format!(
            "no HTTP response ({error}); check that this is the port of the node's JSON-RPC \
             (--rpc-url)"
        )
    })?;
    Ok((pooled, read_response(head).await?))
}

async fn connect(
    config: &HttpRpcConfig,
    authorization: &HeaderValue,
) -> Result<PooledConnection, HttpFailure> {
    let HttpRpcConfig { url, tls, .. } = config;
    let stream =
        TcpStream::connect((url.host.as_str(), url.port)).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::ConnectionRefused => HttpFailure::new(
                FailureCause::Refused,
                "connection refused; check that the node has -server=1 and this -rpcport (--rpc-url)",
            ),
            _ => format!("cannot connect: {error}").into(),
        })?;
    let _ = stream.set_nodelay(true); // an error is ignored, because calls without this option are only slower
    let stream = match tls.as_ref().filter(|_| url.tls) {
        Some(tls) => Either::Right(tls_connect(stream, &url.host, tls.clone()).await?),
        None => Either::Left(stream),
    };
    let handshake =
        http1::Builder::new().max_buf_size(MAX_HEADER_BYTES).handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(|error| error.to_string())?;
    let driver = AbortOnDropHandle::new(tokio::task::spawn_local(async {
        let _ = connection.await; // the request that is under way also returns this error
    }));
    Ok(PooledConnection { sender, authorization: authorization.clone(), _driver: driver })
}

async fn tls_connect(
    stream: TcpStream,
    host: &str,
    config: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, String> {
    let name = ServerName::try_from(host.to_string()).map_err(|error| error.to_string())?;
    TlsConnector::from(config).connect(name, stream).await.map_err(|error| {
        let error_of_tls = error.get_ref().and_then(|inner| inner.downcast_ref());
        let advice = match error_of_tls {
            Some(rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            )) => "; pass the certificate of its authority with --rpc-ca-file",
            Some(rustls::Error::InvalidMessage(_)) => {
                "; check that the server uses https (otherwise --rpc-url http://…)"
            }
            _ => "",
        };
        format!("TLS failed: {error}{advice}")
    })
}

/// Reads the complete body of a response.
async fn read_response(head: Response<Incoming>) -> Result<Response<Bytes>, HttpFailure> {
    let (head, body) = head.into_parts();
    let body = Limited::new(body, MAX_BODY_BYTES).collect().await.map_err(|error| match error
        .downcast_ref::<LengthLimitError>()
    {
        Some(_) => HttpFailure::new(
            FailureCause::TooLarge,
            format!("the response is larger than {} MB", MAX_BODY_BYTES >> 20),
        ),
        None => format!("the response is incomplete ({error})").into(),
    })?;
    Ok(Response::from_parts(head, body.to_bytes()))
}
