//! Implements `tls_server_config`: TLS settings and certificates, which are reloaded when their files change.
//!
//! A separate thread checks for changed files, because reading from a file system that does not respond would block the
//! HTTP thread.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
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
use tracing::{info, warn};

use crate::scheduling;
use crate::tls::{authorities, certificates, expiry_warning, not_after, read_pem, set_expiry};

/// Interval between checks whether the certificate files have changed.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);
/// Interval between warnings that a certificate expires soon.
const WARNING_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// The `tls_server_config` section of the configuration file.
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
    /// This option is accepted for compatibility and has no effect, as in Go since version 1.18.
    #[serde(default, rename = "prefer_server_cipher_suites")]
    _prefer_server_cipher_suites: bool,
}

/// The policy for client certificates. The names of the variants are from Go's crypto/tls.
#[derive(Clone, Copy, Default, Deserialize, PartialEq)]
enum ClientAuth {
    #[default]
    NoClientCert,
    VerifyClientCertIfGiven,
    RequireAndVerifyClientCert,
}

/// A TLS version, for `min_version` and `max_version`.
#[derive(Clone, Copy, Deserialize, PartialEq, PartialOrd)]
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

    /// Resolves relative paths against the directory of the configuration file.
    pub fn relative_to(self, folder: &Path) -> Self {
        TlsServerConfig {
            cert_file: folder.join(self.cert_file),
            key_file: folder.join(self.key_file),
            client_ca_file: self.client_ca_file.map(|path| folder.join(path)),
            ..self
        }
    }

    /// Returns the paths of the files to which the configuration refers.
    pub fn files(self) -> Vec<PathBuf> {
        [self.cert_file, self.key_file].into_iter().chain(self.client_ca_file).collect()
    }

    fn read(&self) -> Result<PemFiles> {
        Ok(PemFiles {
            certificates: read_pem(&self.cert_file).context("tls_server_config: cert_file")?,
            key: read_pem(&self.key_file).context("tls_server_config: key_file")?,
            client_authorities: match &self.client_ca_file {
                Some(path) => Some(read_pem(path).context("tls_server_config: client_ca_file")?),
                None => None,
            },
        })
    }

    /// Builds the rustls server configuration from the contents of the files. Also returns the expiry time of the
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
        let allowed = |version| {
            self.min_version.is_none_or(|min| min <= version)
                && self.max_version.is_none_or(|max| version <= max)
        };
        let versions = [(TlsVersion::Tls12, &version::TLS12), (TlsVersion::Tls13, &version::TLS13)];
        let versions: Vec<_> = versions
            .into_iter()
            .filter(|(version, _)| allowed(*version))
            .map(|(_, version)| version)
            .collect();
        if versions.is_empty() {
            bail!("tls_server_config: min_version is higher than max_version");
        }
        Ok(versions)
    }

    fn client_verifier(
        &self,
        contents: &PemFiles,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ClientCertVerifier>> {
        Ok(
            match (
                self.client_auth_type,
                self.client_ca_file.as_deref().zip(contents.client_authorities.as_deref()),
            ) {
                (ClientAuth::NoClientCert, None) => Arc::new(NoClientAuth),
                (ClientAuth::NoClientCert, Some(_)) => {
                    bail!("tls_server_config: client_ca_file needs client_auth_type")
                }
                (_, None) => bail!("tls_server_config: client_auth_type needs client_ca_file"),
                (auth, Some((path, pem))) => {
                    let roots = Arc::new(authorities(pem, path)?);
                    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
                    match auth {
                        ClientAuth::VerifyClientCertIfGiven => builder.allow_unauthenticated().build()?,
                        _ => builder.build()?,
                    }
                }
            },
        )
    }
}

/// The contents of the three PEM files: certificate, key, and CA certificates for client certificates.
#[derive(PartialEq)]
struct PemFiles {
    certificates: Vec<u8>,
    key: Vec<u8>,
    client_authorities: Option<Vec<u8>>,
}

/// The server's TLS configuration. A thread replaces the configuration within seconds when the certificate files
/// change.
pub struct ReloadableTls(Arc<TlsState>);

/// The TLS settings with the paths of the certificate files, and the loaded certificates. The HTTP thread and the
/// thread that reloads the certificates share this value.
struct TlsState {
    files: TlsServerConfig,
    loaded: Mutex<LoadedCertificates>,
}

/// The certificates that are in use: the TLS configuration for new connections, and the contents of the PEM files from
/// which the configuration was built.
struct LoadedCertificates {
    config: Arc<ServerConfig>,
    /// Expiry time of the server's certificate; `None` if the expiry time cannot be parsed.
    expires: Option<SystemTime>,
    contents: PemFiles,
    /// The last logged reason why the changed files cannot be used; `None` if the files are in use.
    last_logged: Option<String>,
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
        let loaded = LoadedCertificates { config: Arc::new(config), expires, contents, last_logged: None };
        let shared = Arc::new(TlsState { files, loaded: Mutex::new(loaded) });
        let weak = Arc::downgrade(&shared);
        std::thread::Builder::new().name("certificates".into()).spawn(|| reload_while_used(weak))?;
        Ok(ReloadableTls(shared))
    }

    /// The current TLS configuration, for a new connection.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.0.loaded().config.clone()
    }

    /// Whether the server rejects clients without a client certificate.
    pub fn asks_for_certificate(&self) -> bool {
        self.0.files.client_auth_type == ClientAuth::RequireAndVerifyClientCert
    }
}

fn reload_while_used(shared: Weak<TlsState>) {
    scheduling::lower_priority();
    let mut warned_at: Option<Instant> = None;
    while let Some(shared) = shared.upgrade() {
        if shared.reload() || warned_at.is_none_or(|at| at.elapsed() >= WARNING_INTERVAL) {
            warned_at = Some(Instant::now());
            shared.warn_about_expiry();
        }
        drop(shared);
        std::thread::sleep(RELOAD_INTERVAL);
    }
}

impl TlsState {
    fn loaded(&self) -> MutexGuard<'_, LoadedCertificates> {
        self.loaded.lock().expect("nobody panics holding it")
    }

    /// Reads the certificate files. If the files have changed, starts to use the new contents and returns true. If the
    /// new contents cannot be used, logs the reason once and continues to use the last valid contents.
    fn reload(&self) -> bool {
        // The files are read before the lock is taken, because the HTTP thread needs the lock for each new connection,
        // and a file system that does not respond must not block the HTTP thread.
        let renewed = self.files.read().and_then(|contents| {
            let is_used = self.loaded().contents == contents;
            (!is_used).then(|| Ok((self.files.config(&contents)?, contents))).transpose()
        });
        let mut loaded = self.loaded();
        let at = self.files.cert_file.display();
        match renewed {
            Ok(Some(((config, expires), contents))) => {
                *loaded =
                    LoadedCertificates { config: Arc::new(config), expires, contents, last_logged: None };
                set_expiry(&self.files.cert_file, expires);
                info!("using the renewed certificates: {at}");
                return true;
            }
            Ok(None) => {
                if loaded.last_logged.take().is_some() {
                    info!("the files of the current certificates exist again: {at}");
                }
            }
            Err(error) => {
                let error = format!("{error:#}");
                if loaded.last_logged.as_ref() != Some(&error) {
                    warn!("cannot load the new certificates, keeping the current ones: {error}");
                    loaded.last_logged = Some(error);
                }
            }
        }
        false
    }

    fn warn_about_expiry(&self) {
        let expires = self.loaded().expires;
        match expires {
            Some(expires) => {
                let warning = expiry_warning(&self.files.cert_file, expires, SystemTime::now());
                warning.into_iter().for_each(|warning| warn!("{warning}"));
            }
            None => {
                warn!("cannot read the expiry time of the certificate {}", self.files.cert_file.display())
            }
        }
    }
}
