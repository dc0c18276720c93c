//! Reads `--web.config.file`: TLS and basic authentication, in the file format of the official Prometheus exporters.
//!
//! <https://prometheus.io/docs/prometheus/latest/configuration/https/>

mod basic_auth;
mod tls;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use rustls::ServerConfig;
use serde::Deserialize;
use tracing::warn;

use crate::files;
pub(super) use basic_auth::AuthResult;
use basic_auth::Users;
use tls::{ReloadableTls, TlsServerConfig};

/// The contents of the web configuration file (`--web.config.file`, YAML), before validation.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "tls_server_config, http_server_config or basic_auth_users")]
struct WebConfigFile {
    tls_server_config: Option<TlsServerConfig>,
    http_server_config: Option<HttpServer>,
    #[serde(default)]
    basic_auth_users: BTreeMap<String, String>,
}

/// The section `http_server_config` of the web configuration file: the HTTP version and the headers of responses.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpServer {
    /// Whether to offer HTTP/2. The exporter supports only HTTP/1.1, so the only valid value is false.
    #[serde(default)]
    http2: bool,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

/// A validated web configuration for a listener of the HTTP server: TLS settings, users and response headers. The
/// default is plain HTTP without authentication.
#[derive(Default)]
pub struct WebConfig {
    tls: Option<ReloadableTls>,
    /// The users that may make requests, with the hashes of their passwords; `None` if requests need no password.
    pub(super) users: Option<Users>,
    /// The configured HTTP headers, which the server adds to every response.
    pub(super) headers: HeaderMap,
}

impl WebConfig {
    /// Returns the paths of the files that the web configuration file at `path` names and that the server reads
    /// repeatedly: certificate, key and CA certificates. Returns no paths if the web configuration is invalid;
    /// [`read`](Self::read) then returns the error.
    pub fn reloaded_files(path: &Path) -> Vec<PathBuf> {
        let file =
            files::read_text(path).ok().and_then(|text| serde_yaml_ng::from_str::<WebConfigFile>(&text).ok());
        let tls = file.and_then(|file| file.tls_server_config);
        let folder = path.parent().unwrap_or(Path::new("."));
        tls.map(|tls| tls.relative_to(folder).files()).unwrap_or_default()
    }

    /// Creates a configuration with an optional user and password, and with an optional certificate and key.
    ///
    /// # Errors
    /// The certificate or the key cannot be read or used.
    pub fn from_parts(user: Option<(&str, &str)>, certificate: Option<(&Path, &Path)>) -> Result<Self> {
        /// bcrypt cost of the password's hash. The cost is lower than bcrypt's default of 12, with which a password
        /// check takes seconds on small machines. A low cost is sufficient, because the hash never leaves this process.
        const COST: u32 = 10;
        let mut hashes = BTreeMap::new();
        if let Some((user, password)) = user {
            hashes.insert(user.to_string(), bcrypt::hash(password, COST)?);
        }
        let files = certificate.map(|(certificate, key)| TlsServerConfig::new(certificate, key));
        let tls = files.map(ReloadableTls::load).transpose()?;
        Ok(WebConfig { tls, users: Users::new(hashes), ..Default::default() })
    }

    /// Reads and validates the web configuration file at `path`. Error messages contain the line in the web
    /// configuration file, or the path of the certificate or key file.
    ///
    /// # Errors
    /// The configuration file, or a file to which it refers, cannot be read or is invalid.
    pub fn read(path: &Path) -> Result<Self> {
        let location = || format!("--web.config.file {}", path.display());
        let text = files::read_text(path).with_context(location)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        Self::parse(&text, folder).with_context(location)
    }

    fn parse(text: &str, folder: &Path) -> Result<Self> {
        let file: WebConfigFile = serde_yaml_ng::from_str(if text.trim().is_empty() { "{}" } else { text })?;
        let http = file.http_server_config.unwrap_or_default();
        if http.http2 {
            bail!("http_server_config: http2 is not supported; remove it or set it to false");
        }
        let mut headers = HeaderMap::new();
        for (name, value) in http.headers {
            let location = || format!("http_server_config: headers: {name}");
            headers.insert(
                HeaderName::try_from(&name).with_context(location)?,
                HeaderValue::try_from(&value).with_context(location)?,
            );
        }
        let mut costs = BTreeMap::new();
        for (user, hash) in &file.basic_auth_users {
            let cost = cost(hash).map_err(|why| {
                let line = text.lines().position(|line| line.contains(hash.as_str()));
                let line = line.map_or(String::new(), |line| format!(" (line {})", line + 1));
                anyhow!("basic_auth_users: {user}{line}: {why}; create a hash with htpasswd -nBC 10 {user}")
            })?;
            costs.insert(user.as_str(), cost);
        }
        warn_about_slow_checks(&costs);
        let tls =
            file.tls_server_config.map(|tls| ReloadableTls::load(tls.relative_to(folder))).transpose()?;
        Ok(WebConfig { tls, users: Users::new(file.basic_auth_users), headers })
    }

    /// The current TLS configuration of the server, for a new connection; `None` for plain HTTP.
    pub(super) fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls.as_ref().map(ReloadableTls::current)
    }

    /// Whether the server rejects clients without a password or without a client certificate.
    pub fn protects(&self) -> bool {
        self.users.is_some() || self.tls.as_ref().is_some_and(|tls| tls.asks_for_certificate)
    }
}

/// Returns the cost of a bcrypt hash, or the reason why the hash is invalid.
fn cost(hash: &str) -> Result<u32, String> {
    /// Minimum cost that bcrypt permits for a hash.
    const MIN_COST: u32 = 4;
    /// Maximum bcrypt cost that the exporter permits. At this cost a password check takes several seconds, for which
    /// the first request with the password waits. Each increment of the cost doubles the time of a check.
    const MAX_COST: u32 = 16;
    let parts = hash.parse::<bcrypt::HashParts>().map_err(|error| format!("not a bcrypt hash ({error})"))?;
    match parts.get_cost() {
        cost @ MIN_COST..=MAX_COST => Ok(cost),
        cost => Err(format!("the bcrypt cost {cost} is not between {MIN_COST} and {MAX_COST}")),
    }
}

/// Logs a warning for users whose passwords take longer than a second to verify.
fn warn_about_slow_checks(costs: &BTreeMap<&str, u32>) {
    /// bcrypt cost of the hash that the exporter computes at startup to measure the speed of the machine. The cost is
    /// low, so the measurement does not delay the startup.
    const MEASURED_COST: u32 = 6;
    /// bcrypt cost below which a password check takes less than a second on any machine.
    const MAYBE_SLOW_COST: u32 = 10;
    if costs.values().all(|cost| *cost < MAYBE_SLOW_COST) {
        return;
    }
    let measure = || {
        let since = Instant::now();
        let _ = bcrypt::hash("", MEASURED_COST);
        since.elapsed()
    };
    // The minimum of three measurements is used, because other threads may use the CPU during a measurement.
    let measured = (0..3).map(|_| measure()).min().unwrap_or_default();
    for (user, cost) in costs {
        let check = check_time(measured, MEASURED_COST, *cost);
        if check > Duration::from_secs(1) {
            warn!(
                "basic_auth_users: {user}: verifying a password with bcrypt cost {cost} takes about {} s, for which the \
                 client waits; a lower cost is sufficient for a long random password (htpasswd -nBC 10 {user})",
                check.as_secs_f64().round()
            );
        }
    }
}

/// Estimates the time of a password check with the bcrypt cost `cost` from the time that was measured with the cost
/// `measured_cost`. Each increment of the cost doubles the time.
fn check_time(measured: Duration, measured_cost: u32, cost: u32) -> Duration {
    measured.mul_f64(2_f64.powi(cost as i32 - measured_cost as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a bcrypt hash that was computed with cost 4, but whose text states the cost `cost`.
    fn hash(cost: &str) -> String {
        bcrypt::hash("secret", 4).unwrap().replacen("$04$", &format!("${cost}$"), 1)
    }

    #[test]
    fn slow_bcrypt_cost_is_rejected() {
        for good in ["04", "10", "16"] {
            assert_eq!(cost(&hash(good)), Ok(good.parse().unwrap()));
        }
        for bad in ["00", "03", "17", "31", "99"] {
            let config = format!("\nbasic_auth_users:\n  good: {}\n  prom: {}\n", hash("04"), hash(bad));
            let error = error(&config);
            let expected = format!(
                "basic_auth_users: prom (line 4): the bcrypt cost {} is not",
                bad.parse::<u32>().unwrap()
            );
            assert!(error.starts_with(&expected), "{error}");
        }
    }

    #[test]
    fn each_step_of_cost_doubles_the_time_of_a_check() {
        let measured = Duration::from_millis(4);
        assert_eq!(check_time(measured, 6, 6), measured);
        assert_eq!(check_time(measured, 6, 14), Duration::from_millis(1024));
        assert_eq!(check_time(measured, 6, 4), Duration::from_millis(1));
    }

    fn error(text: &str) -> String {
        format!("{:#}", WebConfig::parse(text, Path::new("/nonexistent")).err().expect("refused"))
    }

    #[test]
    fn invalid_web_config_is_rejected_with_the_reason() {
        assert!(error("host").contains("expected tls_server_config, http_server_config or basic_auth_users"));
        assert!(error("basic_auth_user: {}").contains("unknown field `basic_auth_user`"));
        assert!(error("\n\nbasic_auth_users:\n  a: [").contains("line "));
        assert!(error("basic_auth_users: {prom: secret}").contains("prom (line 1): not a bcrypt hash"));
        assert!(error("http_server_config: {http2: true}").contains("http2 is not supported"));
        assert!(error("http_server_config: {headers: {\"a b\": c}}").contains("headers: a b"));
        let tls = |rest: &str| error(&format!("tls_server_config: {{cert_file: c, key_file: k{rest}}}"));
        assert!(tls("").contains("cert_file: cannot read /nonexistent/c"));
        assert!(tls(", min_version: TLS10").contains("TLS10"));
        assert!(tls(", client_auth: x").contains("unknown field `client_auth`"));
        assert!(error("tls_server_config: {cert_file: c}").contains("missing field `key_file`"));
    }

    #[test]
    fn empty_web_config_sets_nothing() {
        let config = WebConfig::parse("", Path::new("/")).unwrap();
        assert!(config.tls().is_none() && !config.protects());
    }
}
