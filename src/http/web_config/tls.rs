//! `tls_server_config`: certificates, which are read again when they are renewed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::{NoClientAuth, WebPkiClientVerifier};
use rustls::{ServerConfig, SupportedProtocolVersion, version};
use serde::Deserialize;
use tracing::warn;

use crate::tls::{authorities, certificates};

/// As written in the file.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsServer {
    cert_file: PathBuf,
    key_file: PathBuf,
    #[serde(default)]
    client_auth_type: ClientAuth,
    client_ca_file: Option<PathBuf>,
    #[serde(default)]
    min_version: Option<TlsVersion>,
    #[serde(default)]
    max_version: Option<TlsVersion>,
    /// By Go's names; of TLS 1.2 only, as there.
    #[serde(default)]
    cipher_suites: Vec<String>,
    /// Accepted and without effect, as in Go since 1.18.
    #[serde(default, rename = "prefer_server_cipher_suites")]
    _prefer_server_cipher_suites: bool,
}

#[derive(Clone, Copy, Default, Deserialize, PartialEq)]
enum ClientAuth {
    #[default]
    NoClientCert,
    VerifyClientCertIfGiven,
    RequireAndVerifyClientCert,
}

#[derive(Clone, Copy, Deserialize, PartialEq, PartialOrd)]
enum TlsVersion {
    #[serde(rename = "TLS12")]
    Tls12,
    #[serde(rename = "TLS13")]
    Tls13,
}

impl TlsServer {
    /// A certificate with its key, and the defaults.
    pub fn of(certificate: &Path, key: &Path) -> Self {
        TlsServer { cert_file: certificate.into(), key_file: key.into(), ..Self::default() }
    }

    /// Paths in the file are relative to it.
    pub fn within(self, folder: &Path) -> Self {
        TlsServer {
            cert_file: folder.join(self.cert_file),
            key_file: folder.join(self.key_file),
            client_ca_file: self.client_ca_file.map(|path| folder.join(path)),
            ..self
        }
    }

    /// When its files were written last.
    fn written(&self) -> Vec<Option<SystemTime>> {
        let files = [Some(&self.cert_file), Some(&self.key_file), self.client_ca_file.as_ref()];
        files
            .into_iter()
            .flatten()
            .map(|path| path.metadata().and_then(|file| file.modified()).ok())
            .collect()
    }

    fn config(&self) -> Result<ServerConfig> {
        let certificates = certificates(&self.cert_file)?;
        let key = PrivateKeyDer::from_pem_file(&self.key_file)
            .with_context(|| format!("private key of {}", self.key_file.display()))?;
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
        let provider = Arc::new(provider);
        let allowed = |version| {
            self.min_version.is_none_or(|min| min <= version)
                && self.max_version.is_none_or(|max| version <= max)
        };
        let versions = [(TlsVersion::Tls12, &version::TLS12), (TlsVersion::Tls13, &version::TLS13)];
        let versions: Vec<&SupportedProtocolVersion> = versions
            .into_iter()
            .filter(|(version, _)| allowed(*version))
            .map(|(_, version)| version)
            .collect();
        if versions.is_empty() {
            bail!("tls_server_config: min_version is above max_version");
        }
        let verifier = match (self.client_auth_type, &self.client_ca_file) {
            (ClientAuth::NoClientCert, None) => Arc::new(NoClientAuth),
            (ClientAuth::NoClientCert, Some(_)) => {
                bail!("tls_server_config: client_ca_file is of no use without client_auth_type")
            }
            (_, None) => bail!("tls_server_config: client_auth_type needs client_ca_file"),
            (auth, Some(path)) => {
                let roots = Arc::new(authorities(path)?);
                let builder = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
                match auth {
                    ClientAuth::VerifyClientCertIfGiven => builder.allow_unauthenticated().build()?,
                    _ => builder.build()?,
                }
            }
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates, key)
            .with_context(|| format!("{} and {}", self.cert_file.display(), self.key_file.display()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// The certificates in use, and when their files were written.
pub struct Tls {
    files: TlsServer,
    loaded: Mutex<(Vec<Option<SystemTime>>, Arc<ServerConfig>)>,
}

impl Tls {
    /// Reads the files.
    pub fn load(files: TlsServer) -> Result<Self> {
        let loaded = Mutex::new((files.written(), Arc::new(files.config()?)));
        Ok(Tls { files, loaded })
    }

    /// Certificates that were replaced are used from the next connection on. If the new ones are no good, the old ones
    /// stay.
    pub fn current(&self) -> Arc<ServerConfig> {
        let written = self.files.written();
        let mut loaded = self.loaded.lock().expect("nobody panics holding it");
        if loaded.0 != written {
            match self.files.config() {
                Ok(config) => loaded.1 = Arc::new(config),
                Err(error) => warn!("the new certificates cannot be used, the old ones stay: {error:#}"),
            }
            loaded.0 = written;
        }
        loaded.1.clone()
    }

    /// Whether clients need a certificate.
    pub fn asks_for_certificate(&self) -> bool {
        self.files.client_auth_type == ClientAuth::RequireAndVerifyClientCert
    }
}
