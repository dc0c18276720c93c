//! TLS connections to the block store, a PostgreSQL database, with the levels of verification of libpq's option
//! `sslmode`.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::Socket;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::{http_rpc_tls, tls};

/// The level of verification of the server's certificate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verification {
    /// No verification: the connection is encrypted, but the server is not authenticated.
    None,
    /// A trusted authority must have signed the certificate (`verify-ca`).
    Authority,
    /// A trusted authority must have signed the certificate for this host (`verify-full`).
    Full,
}

/// Creates the connector that makes TLS connections with this level of verification. If the level requires an
/// authority, the connector trusts the certificate authorities in the file `authorities`, or if there is no file, the
/// system's authorities.
///
/// # Errors
/// The file cannot be read or contains no certificate, or the system has no authorities.
pub fn connector(verification: Verification, authorities: Option<&Path>) -> Result<Connector> {
    let provider = Arc::new(default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let inner = match verification {
        Verification::None => None,
        _ => {
            let roots = match authorities {
                Some(path) => tls::authorities(&tls::read_pem(path).context("sslrootcert")?, path)?,
                None => http_rpc_tls::system_roots().context("sslrootcert")?,
            };
            Some(WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?)
        }
    };
    let verifier = match (verification, inner) {
        (Verification::Full, Some(inner)) => inner as Arc<dyn ServerCertVerifier>,
        (_, authority) => Arc::new(LaxVerifier { authority, provider }),
    };
    let config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    Ok(Connector(Arc::new(config)))
}

/// Verifier of the server's certificate for [`Verification::None`] and [`Verification::Authority`], which ignores the
/// host name in the certificate. If `authority` is `None`, the verifier accepts every certificate.
#[derive(Debug)]
struct LaxVerifier {
    authority: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for LaxVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(authority) = &self.authority else { return Ok(ServerCertVerified::assertion()) };
        match authority.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Makes TLS connections to the hosts of the block store, for `tokio_postgres`.
#[derive(Clone)]
pub struct Connector(pub Arc<ClientConfig>);

impl MakeTlsConnect<Socket> for Connector {
    type Stream = Box<dyn TlsSocket>;
    type TlsConnect = HostConnector;
    type Error = InvalidDnsNameError;

    fn make_tls_connect(&mut self, host: &str) -> Result<HostConnector, InvalidDnsNameError> {
        Ok(HostConnector(self.0.clone().into(), ServerName::try_from(host)?.to_owned()))
    }
}

/// Makes one TLS connection to the PostgreSQL server with this host name.
pub struct HostConnector(TlsConnector, ServerName<'static>);

impl TlsConnect<Socket> for HostConnector {
    type Stream = Box<dyn TlsSocket>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Stream>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(async move { Ok(Box::new(self.0.connect(self.1, socket).await?) as Self::Stream) })
    }
}

/// A socket with TLS. tokio_postgres requires that the type of the connection implements tokio_postgres's trait
/// `TlsStream`. Rust permits the implementation of this trait only for types of this crate, or for a `Box` of such a
/// type, and `tokio_rustls::client::TlsStream` is a type of another crate.
pub trait TlsSocket: AsyncRead + AsyncWrite + Send + Unpin {}

impl TlsSocket for TlsStream<Socket> {}

impl tokio_postgres::tls::TlsStream for Box<dyn TlsSocket> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}
