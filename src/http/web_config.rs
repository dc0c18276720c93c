//! `--web.config.file`: TLS and basic authentication, in the format that the Prometheus exporters share.
//!
//! <https://prometheus.io/docs/prometheus/latest/configuration/https/>

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};
use ring::hmac;
use ring::rand::SystemRandom;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoClientAuth, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion, version};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tracing::warn;

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
    users: BTreeMap<String, String>,
    headers: HeaderMap,
    checked: Checked,
}

impl WebConfig {
    /// What the option asks for; without it, plain HTTP for everyone.
    pub fn from_option(path: Option<&Path>) -> Result<Self> {
        path.map_or_else(|| Ok(Self::default()), Self::read)
    }

    /// One user with a password, and a certificate with its key; each may be left out.
    pub fn of(user: Option<(&str, &str)>, certificate: Option<(&Path, &Path)>) -> Result<Self> {
        let users = user.map(|(user, password)| {
            Ok::<_, bcrypt::BcryptError>((user.to_string(), bcrypt::hash(password, bcrypt::DEFAULT_COST)?))
        });
        let tls = certificate.map(|(certificate, key)| {
            Tls::load(TlsServer { cert_file: certificate.into(), key_file: key.into(), ..Default::default() })
        });
        Ok(WebConfig {
            tls: tls.transpose()?,
            users: users.transpose()?.into_iter().collect(),
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
        Ok(WebConfig { tls, users: file.basic_auth_users, headers, checked: Checked::default() })
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

    /// Whether this request comes from a user with their password.
    pub(super) async fn permits(&self, headers: &HeaderMap) -> bool {
        if self.users.is_empty() {
            return true;
        }
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let encoded = given.and_then(|value| value.split_once(' '));
        let encoded = encoded.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"));
        let decoded = encoded.and_then(|(_, encoded)| BASE64_STANDARD.decode(encoded.trim()).ok());
        let decoded = decoded.and_then(|decoded| String::from_utf8(decoded).ok());
        match decoded.as_deref().and_then(|decoded| decoded.split_once(':')) {
            Some((user, password)) => {
                self.checked.check(user, password, self.users.get(user).map(String::as_str)).await
            }
            None => false,
        }
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

/// Answers to passwords. bcrypt is slow on purpose: a scraper's password is checked once, and strangers wait in line
/// without keeping anyone else waiting.
///
/// Names and passwords are remembered only as digests with a key of this process, so that neither memory nor the time of
/// a lookup tells them.
struct Checked {
    key: hmac::Key,
    known: Mutex<HashMap<Vec<u8>, bool>>,
    one_at_a_time: Semaphore,
}

/// Answers that are remembered.
const REMEMBERED: usize = 1000;
/// For users that do not exist, so that the time does not tell them.
static NOBODY: LazyLock<String> =
    LazyLock::new(|| bcrypt::hash("", bcrypt::DEFAULT_COST).expect("these are good parameters"));

impl Default for Checked {
    fn default() -> Self {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .expect("the kernel's random numbers");
        Checked { key, known: Mutex::default(), one_at_a_time: Semaphore::new(1) }
    }
}

impl Checked {
    async fn check(&self, user: &str, password: &str, hash: Option<&str>) -> bool {
        // No user's name holds a colon.
        let digest = hmac::sign(&self.key, format!("{user}:{password}").as_bytes()).as_ref().to_vec();
        let remembered = || self.known.lock().expect("nobody panics holding it").get(&digest).copied();
        if let Some(permitted) = remembered() {
            return permitted;
        }
        let _turn = self.one_at_a_time.acquire().await.expect("never closed");
        if let Some(permitted) = remembered() {
            return permitted;
        }
        let (password, hash) = (password.to_string(), hash.map(str::to_string));
        let verify = move || {
            bcrypt::verify(password, hash.as_ref().unwrap_or(&NOBODY))
                .is_ok_and(|same| same && hash.is_some())
        };
        let permitted = tokio::task::spawn_blocking(verify).await.unwrap_or(false);
        let mut known = self.known.lock().expect("nobody panics holding it");
        if known.len() >= REMEMBERED {
            // Strangers' guesses go; who is permitted need not wait again.
            known.retain(|_, permitted| *permitted);
        }
        known.insert(digest, permitted);
        permitted
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

    #[tokio::test]
    async fn only_a_user_with_their_password_is_permitted() {
        let hash = bcrypt::hash("secret", 4).unwrap();
        let config =
            WebConfig::parse(&format!("basic_auth_users: {{prom: {hash}}}"), Path::new("/")).unwrap();
        assert!(config.protects());
        let asks = async |header: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, header.parse().unwrap());
            config.permits(&headers).await
        };
        let basic = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
        for _ in 0..2 {
            assert!(asks(&basic("prom:secret")).await);
            assert!(asks(&basic("prom:secret").replace("Basic", "basic")).await);
            for wrong in ["prom:wrong", "prom:", "prom", ":secret", "other:secret", "prom:secret:"] {
                assert!(!asks(&basic(wrong)).await, "{wrong}");
            }
            for wrong in ["", "Basic", "Basic !!!", "Bearer x"] {
                assert!(!asks(wrong).await, "{wrong}");
            }
        }
        assert!(!config.permits(&HeaderMap::new()).await);
    }
}
