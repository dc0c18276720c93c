//! `--web.config.file`: TLS and basic authentication, in the format that the Prometheus exporters share.
//!
//! <https://prometheus.io/docs/prometheus/latest/configuration/https/>

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow, bail};
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoClientAuth, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion, version};
use serde::Deserialize;
use tracing::warn;

use super::basic_auth::Users;

/// The file, as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "tls_server_config, http_server_config or basic_auth_users")]
struct File {
    tls_server_config: Option<TlsServer>,
    http_server_config: Option<HttpServer>,
    #[serde(default)]
    basic_auth_users: BTreeMap<String, String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsServer {
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

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpServer {
    /// Only HTTP/1.1 is served; that may be said, but nothing else.
    #[serde(default)]
    http2: bool,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

/// What the file asks for; by default nothing, plain HTTP for everyone.
#[derive(Default)]
pub struct WebConfig {
    tls: Option<Tls>,
    users: Users,
    headers: HeaderMap,
}

impl WebConfig {
    /// What the option asks for; without it, plain HTTP for everyone.
    pub fn from_option(path: Option<&Path>) -> Result<Self> {
        path.map_or_else(|| Ok(Self::default()), Self::read)
    }

    /// One user with a password, and a certificate with its key; each may be left out.
    pub fn of(user: Option<(&str, &str)>, certificate: Option<(&Path, &Path)>) -> Result<Self> {
        /// bcrypt's default, 12, takes seconds on small machines. The hash never leaves this process.
        const COST: u32 = 10;
        let users = user.map(|(user, password)| {
            Ok::<_, bcrypt::BcryptError>((user.to_string(), bcrypt::hash(password, COST)?))
        });
        let tls = certificate.map(|(certificate, key)| {
            Tls::load(TlsServer { cert_file: certificate.into(), key_file: key.into(), ..Default::default() })
        });
        Ok(WebConfig {
            tls: tls.transpose()?,
            users: Users::new(users.transpose()?.into_iter().collect()),
            ..Default::default()
        })
    }

    /// Reads the file. Errors name the line, or the file that the configuration names.
    pub fn read(path: &Path) -> Result<Self> {
        let what = || format!("--web.config.file {}", path.display());
        let text = std::fs::read_to_string(path).with_context(what)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        Self::parse(&text, folder).with_context(what)
    }

    fn parse(text: &str, folder: &Path) -> Result<Self> {
        let file: File = serde_yaml_ng::from_str(if text.trim().is_empty() { "{}" } else { text })?;
        let http = file.http_server_config.unwrap_or_default();
        if http.http2 {
            bail!("http_server_config: http2 is not served; leave it out or set it to false");
        }
        let mut headers = HeaderMap::new();
        for (name, value) in http.headers {
            let what = || format!("http_server_config: headers: {name}");
            headers.insert(
                HeaderName::try_from(&name).with_context(what)?,
                HeaderValue::try_from(&value).with_context(what)?,
            );
        }
        for (user, hash) in &file.basic_auth_users {
            hash.parse::<bcrypt::HashParts>().map_err(|error| {
                anyhow!(
                    "basic_auth_users: {user}: not a bcrypt hash ({error}); make one with htpasswd -nB {user}"
                )
            })?;
        }
        let tls = file.tls_server_config.map(|tls| Tls::load(tls.within(folder))).transpose()?;
        Ok(WebConfig { tls, users: Users::new(file.basic_auth_users), headers })
    }

    /// What TLS connections are accepted with, if they have to be.
    pub(super) fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls.as_ref().map(Tls::current)
    }

    /// Whether nobody but who is known gets an answer.
    pub fn protects(&self) -> bool {
        let verifies = |tls: &Tls| tls.files.client_auth_type == ClientAuth::RequireAndVerifyClientCert;
        !self.users.is_empty() || self.tls.as_ref().is_some_and(verifies)
    }

    /// Headers of every answer.
    pub(super) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Who is permitted.
    pub(super) fn users(&self) -> &Users {
        &self.users
    }
}

impl TlsServer {
    /// Paths in the file are relative to it.
    fn within(self, folder: &Path) -> Self {
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
        let read = |path: &Path| -> Result<Vec<CertificateDer<'static>>> {
            let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
            let certificates: Vec<_> =
                certificates.with_context(|| format!("certificates of {}", path.display()))?;
            if certificates.is_empty() {
                bail!("{} holds no certificate", path.display());
            }
            Ok(certificates)
        };
        let certificates = read(&self.cert_file)?;
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
                let mut roots = RootCertStore::empty();
                for certificate in read(path)? {
                    roots.add(certificate).with_context(|| path.display().to_string())?;
                }
                let builder = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
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
struct Tls {
    files: TlsServer,
    loaded: Mutex<(Vec<Option<SystemTime>>, Arc<ServerConfig>)>,
}

impl Tls {
    fn load(files: TlsServer) -> Result<Self> {
        let loaded = Mutex::new((files.written(), Arc::new(files.config()?)));
        Ok(Tls { files, loaded })
    }

    /// Certificates that were replaced are used from the next connection on. If the new ones are no good, the old ones
    /// stay.
    fn current(&self) -> Arc<ServerConfig> {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        format!("{:#}", WebConfig::parse(text, Path::new("/nonexistent")).err().expect("refused"))
    }

    #[test]
    fn a_wrong_file_is_refused_with_what_is_wrong() {
        assert!(error("host").contains("expected tls_server_config, http_server_config or basic_auth_users"));
        assert!(error("basic_auth_user: {}").contains("unknown field `basic_auth_user`"));
        assert!(error("\n\nbasic_auth_users:\n  a: [").contains("line "));
        assert!(error("basic_auth_users: {prom: secret}").contains("prom: not a bcrypt hash"));
        assert!(error("http_server_config: {http2: true}").contains("http2 is not served"));
        assert!(error("http_server_config: {headers: {\"a b\": c}}").contains("headers: a b"));
        let tls = |rest: &str| error(&format!("tls_server_config: {{cert_file: c, key_file: k{rest}}}"));
        assert!(tls("").contains("certificates of /nonexistent/c"));
        assert!(tls(", min_version: TLS10").contains("TLS10"));
        assert!(tls(", client_auth: x").contains("unknown field `client_auth`"));
        assert!(error("tls_server_config: {cert_file: c}").contains("missing field `key_file`"));
    }

    #[test]
    fn an_empty_file_asks_for_nothing() {
        let config = WebConfig::parse("", Path::new("/")).unwrap();
        assert!(config.tls().is_none() && !config.protects());
    }
}
