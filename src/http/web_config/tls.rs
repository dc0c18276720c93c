//! Implements the section `tls_server_config` of the web configuration file (`--web.config.file`): TLS settings of the
//! HTTP server, and certificates, which are reloaded when their files change.
//!
//! A separate thread checks for changed files, because reading from a file system that does not respond would block the
//! HTTP thread.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, WebPkiClientVerifier};
use rustls::{ServerConfig, SupportedProtocolVersion, version};
use serde::Deserialize;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::scheduling;
use crate::tls::{authorities, certificates, expiry_warning, not_after, read_pem, set_expiry};

/// Interval between checks whether the certificate files have changed.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);
/// Interval between warnings that a certificate expires soon.
const WARNING_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// The section `tls_server_config` of the web configuration file: the certificate of the HTTPS server, and the rules
/// for its TLS connections.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsServerConfig {
    cert_file: PathBuf,
    key_file: PathBuf,
    #[serde(default)]
    client_auth_type: ClientAuth,
    client_ca_file: Option<PathBuf>,
    #[serde(default)]
    min_version: Option<TlsVersion>,
    #[serde(default)]
    max_version: Option<TlsVersion>,
    /// Names of the permitted cipher suites, in the notation of Go. As in Go, the list applies only to TLS 1.2.
    #[serde(default)]
    cipher_suites: Vec<String>,
    /// This option is accepted for compatibility with the files of other Prometheus exporters. It has no effect, as in
    /// Go since version 1.18.
    #[serde(default, rename = "prefer_server_cipher_suites")]
    _prefer_server_cipher_suites: bool,
}

/// Whether clients need a certificate. The names of the variants are from Go's crypto/tls, because the web
/// configuration file uses Go's names.
#[derive(Clone, Copy, Default, Deserialize, PartialEq)]
enum ClientAuth {
    #[default]
    NoClientCert,
    VerifyClientCertIfGiven,
    RequireAndVerifyClientCert,
}

/// A TLS version, for `min_version` and `max_version`.
#[derive(Clone, Copy, Deserialize)]
enum TlsVersion {
    #[serde(rename = "TLS12")]
    Tls12,
    #[serde(rename = "TLS13")]
    Tls13,
}

impl TlsServerConfig {
    /// Creates a configuration with this certificate file and key file. All other settings have their defaults.
    pub fn new(certificate: &Path, key: &Path) -> Self {
        TlsServerConfig { cert_file: certificate.into(), key_file: key.into(), ..Self::default() }
    }

    /// Resolves relative paths against `folder`, the directory of the web configuration file.
    pub fn relative_to(self, folder: &Path) -> Self {
        TlsServerConfig {
            cert_file: folder.join(self.cert_file),
            key_file: folder.join(self.key_file),
            client_ca_file: self.client_ca_file.map(|path| folder.join(path)),
            ..self
        }
    }

    /// Returns the paths of the certificate and key files that the section names.
    pub fn files(self) -> Vec<PathBuf> {
        [self.cert_file, self.key_file].into_iter().chain(self.client_ca_file).collect()
    }

    fn read(&self) -> Result<PemFiles> {
        let authorities = self.client_ca_file.as_deref().map(read_pem).transpose();
        Ok(PemFiles {
            certificates: read_pem(&self.cert_file).context("tls_server_config: cert_file")?,
            key: read_pem(&self.key_file).context("tls_server_config: key_file")?,
            client_authorities: authorities.context("tls_server_config: client_ca_file")?,
        })
    }

    /// Builds the rustls server configuration from the contents of the PEM files. Also returns the expiry time of the
    /// server's certificate.
    fn config(&self, contents: &PemFiles) -> Result<(ServerConfig, Option<SystemTime>)> {
        let certificates = certificates(&contents.certificates, &self.cert_file)?;
        let expires = not_after(&certificates[0]);
        let key = PrivateKeyDer::from_pem_slice(&contents.key)
            .with_context(|| format!("private key of {}", self.key_file.display()))?;
        let provider = Arc::new(self.provider()?);
        let verifier = self.client_verifier(contents, &provider)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&self.versions()?)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates, key)
            .with_context(|| format!("{} and {}", self.cert_file.display(), self.key_file.display()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok((config, expires))
    }

    /// Returns rustls' crypto provider. With `cipher_suites`, the provider has only the listed cipher suites for TLS
    /// 1.2, and all cipher suites for TLS 1.3.
    fn provider(&self) -> Result<CryptoProvider> {
        let mut provider = default_provider();
        if !self.cipher_suites.is_empty() {
            let names: Vec<_> =
                provider.cipher_suites.iter().map(|suite| format!("{:?}", suite.suite())).collect();
            if let Some(unknown) = self.cipher_suites.iter().find(|suite| !names.contains(suite)) {
                bail!("tls_server_config: cipher_suites: {unknown} is not one of {}", names.join(", "));
            }
            provider.cipher_suites.retain(|suite| {
                suite.tls13().is_some() || self.cipher_suites.contains(&format!("{:?}", suite.suite()))
            });
        }
        Ok(provider)
    }

    fn versions(&self) -> Result<Vec<&'static SupportedProtocolVersion>> {
        use TlsVersion::{Tls12, Tls13};
        match (self.min_version.unwrap_or(Tls12), self.max_version.unwrap_or(Tls13)) {
            (Tls12, Tls12) => Ok(vec![&version::TLS12]),
            (Tls12, Tls13) => Ok(vec![&version::TLS12, &version::TLS13]),
            (Tls13, Tls13) => Ok(vec![&version::TLS13]),
            (Tls13, Tls12) => bail!("tls_server_config: min_version is higher than max_version"),
        }
    }

    fn client_verifier(
        &self,
        contents: &PemFiles,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ClientCertVerifier>> {
        let file = self.client_ca_file.as_deref().zip(contents.client_authorities.as_deref());
        let roots = match (self.client_auth_type, file) {
            (ClientAuth::NoClientCert, None) => return Ok(Arc::new(NoClientAuth)),
            (ClientAuth::NoClientCert, Some(_)) => {
                bail!("tls_server_config: client_ca_file needs client_auth_type")
            }
            (_, None) => bail!("tls_server_config: client_auth_type needs client_ca_file"),
            (_, Some((path, pem))) => Arc::new(authorities(pem, path)?),
        };
        let mut builder = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
        if self.client_auth_type == ClientAuth::VerifyClientCertIfGiven {
            builder = builder.allow_unauthenticated();
        }
        Ok(builder.build()?)
    }
}

/// The contents of the three PEM files: certificate, key, and CA certificates for client certificates.
#[derive(PartialEq)]
struct PemFiles {
    certificates: Vec<u8>,
    key: Vec<u8>,
    client_authorities: Option<Vec<u8>>,
}

/// The current TLS configuration of the HTTPS server. A separate thread replaces the configuration within seconds when
/// the certificate files change.
pub struct ReloadableTls {
    config: watch::Receiver<Arc<ServerConfig>>,
    /// Whether the server rejects clients without a client certificate.
    pub asks_for_certificate: bool,
}

impl ReloadableTls {
    /// Reads the certificate files, and starts the thread that reloads the files when they change.
    ///
    /// # Errors
    /// A file cannot be read or contains unusable data, or the thread cannot be started.
    pub fn load(files: TlsServerConfig) -> Result<Self> {
        let contents = files.read()?;
        let (config, expires) = files.config(&contents)?;
        set_expiry(&files.cert_file, expires);
        let asks_for_certificate = files.client_auth_type == ClientAuth::RequireAndVerifyClientCert;
        let (sender, config) = watch::channel(Arc::new(config));
        let reloader = Reloader { files, config: sender, expires, contents, last_logged: None };
        std::thread::Builder::new().name("certificates".into()).spawn(|| reloader.run())?;
        Ok(ReloadableTls { config, asks_for_certificate })
    }

    /// The current TLS configuration of the server, for a new connection.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.config.borrow().clone()
    }
}

/// The state of the thread that reloads the certificates.
struct Reloader {
    files: TlsServerConfig,
    /// The TLS configuration for new connections.
    config: watch::Sender<Arc<ServerConfig>>,
    /// Expiry time of the server's certificate; `None` if the expiry time cannot be parsed.
    expires: Option<SystemTime>,
    /// The contents of the PEM files from which the configuration was built.
    contents: PemFiles,
    /// The last logged reason why the changed files cannot be used; `None` if the files are in use.
    last_logged: Option<String>,
}

impl Reloader {
    /// Reloads the certificates until the server no longer uses the configuration.
    fn run(mut self) {
        scheduling::lower_priority();
        let mut warned_at: Option<Instant> = None;
        while !self.config.is_closed() {
            if self.reload() || warned_at.is_none_or(|at| at.elapsed() >= WARNING_INTERVAL) {
                warned_at = Some(Instant::now());
                self.warn_about_expiry();
            }
            std::thread::sleep(RELOAD_INTERVAL);
        }
    }

    /// Reads the certificate files. If the files have changed, starts to use the new contents and returns true. If the
    /// new contents cannot be used, logs the reason once and continues to use the last valid contents.
    fn reload(&mut self) -> bool {
        let at = self.files.cert_file.display();
        let renewed = self.files.read().and_then(|contents| {
            let is_used = self.contents == contents;
            (!is_used).then(|| Ok((self.files.config(&contents)?, contents))).transpose()
        });
        match renewed {
            Ok(Some(((config, expires), contents))) => {
                self.config.send_replace(Arc::new(config));
                (self.expires, self.contents, self.last_logged) = (expires, contents, None);
                set_expiry(&self.files.cert_file, expires);
                info!("using the renewed certificates: {at}");
                return true;
            }
            Ok(None) => {
                if self.last_logged.take().is_some() {
                    info!("the files of the current certificates exist again: {at}");
                }
            }
            Err(error) => {
                let error = format!("{error:#}");
                if self.last_logged.as_ref() != Some(&error) {
                    warn!("cannot load the new certificates, keeping the current ones: {error}");
                    self.last_logged = Some(error);
                }
            }
        }
        false
    }

    fn warn_about_expiry(&self) {
        let path = &self.files.cert_file;
        match self.expires {
            Some(expires) => {
                let warning = expiry_warning(path, expires, SystemTime::now());
                warning.into_iter().for_each(|warning| warn!("{warning}"));
            }
            None => warn!("cannot read the expiry time of the certificate {}", path.display()),
        }
    }
}
