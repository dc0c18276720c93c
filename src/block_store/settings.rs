//! The settings of the block store, the PostgreSQL database that collects the rows of many exporters: its URL, and the
//! source of the password.

use std::env;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use super::tls::{self, Verification};
use crate::files;

/// The command line arguments that configure the block store. The names of environment variables lack the prefix, which
/// [`crate::cli::Cli`] adds.
#[derive(Args, Debug)]
pub struct StoreArgs {
    /// PostgreSQL database for the rows of many nodes' block logs:
    /// postgres://USER@HOST:PORT/DATABASE?sslmode=verify-full. Needs --block-log, which keeps the rows until they are
    /// sent, and --node-name [default: no block store]
    #[arg(long, value_name = "URL", env = "BLOCK_STORE", hide_env_values = true)]
    pub block_store: Option<String>,

    /// File with the password of the block store's user in its first line. Alternatives: the environment variable with
    /// the suffix BLOCK_STORE_PASSWORD, or the systemd credential block-store-password
    #[arg(long, value_name = "PATH", env = "BLOCK_STORE_PASSWORD_FILE", requires = "block_store")]
    pub block_store_password_file: Option<PathBuf>,
}

impl StoreArgs {
    /// The settings of the block store; `None` if the user configured no block store. `environment` is the prefix of
    /// the names of environment variables.
    ///
    /// # Errors
    /// The URL or the certificate authorities are invalid, there is no block log, or the node's name is empty or the
    /// default `localhost`.
    pub fn settings(
        &self,
        environment: &str,
        block_log: Option<&Path>,
        node_name: &str,
    ) -> Result<Option<StoreSettings>> {
        let Some(url) = &self.block_store else { return Ok(None) };
        let settings = StoreSettings::new(url, self.block_store_password_file.clone(), environment);
        let settings = settings.context("--block-store")?;
        if block_log.is_none() {
            bail!("--block-store needs --block-log, the file that keeps the rows until they are sent");
        }
        if node_name.is_empty() || node_name == "localhost" {
            bail!("--block-store needs --node-name, a name that no other node in the block store has");
        }
        Ok(Some(settings))
    }
}

/// The source of the block store's password. The exporter reads the password again for each connection, because the
/// operator may change it.
#[derive(Clone, Debug)]
enum PasswordSource {
    File(PathBuf),
    Environment(String),
    /// The password is in the URL, or there is no password.
    Url,
}

/// Settings of connections to the block store: the database, the user, the source of the password, and TLS.
#[derive(Clone)]
pub struct StoreSettings {
    /// One element for each attempt to make a connection, without the password. The attempts are made in this order,
    /// each only after the earlier ones failed. They differ in their use of TLS: for example, `sslmode=allow` first
    /// connects without TLS.
    attempts: Vec<Config>,
    password: PasswordSource,
    /// TLS settings.
    pub(super) tls: tls::Connector,
    description: String,
}

impl fmt::Display for StoreSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)
    }
}

impl StoreSettings {
    /// Parses a URL. `environment` is the prefix of the names of environment variables.
    ///
    /// # Errors
    /// The URL or the certificate authorities are invalid. No error contains the password.
    pub fn new(url: &str, password_file: Option<PathBuf>, environment: &str) -> Result<Self> {
        const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            bail!("not a URL of PostgreSQL; expected postgres://USER@HOST:PORT/DATABASE");
        }
        let (url, sslmode, authorities) = split_tls_options(url)?;
        let (modes, verification) = tls_modes(&sslmode, authorities.is_some())?;
        let mut config: Config = url.parse().context("expected postgres://USER@HOST:PORT/DATABASE")?;
        // tokio_postgres ends the user name and the password at the first `@`. If the password contains an `@`, the
        // rest of the password would become a part of the host, which error messages contain.
        if config.get_hosts().iter().any(|host| matches!(host, Host::Tcp(name) if name.contains('@'))) {
            bail!(
                "the URL has more than one @; write %40 for an @ in the password, or pass the password in a file"
            );
        }
        if config.get_hosts().is_empty() || config.get_dbname().is_none() || config.get_user().is_none() {
            bail!("the URL needs a user, a host and a database: postgres://USER@HOST:PORT/DATABASE");
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        let attempt = |mode: &SslMode| config.clone().ssl_mode(*mode).clone();
        Ok(StoreSettings {
            attempts: modes.iter().map(attempt).collect(),
            password: password_source(password_file, environment),
            tls: tls::connector(verification, authorities.as_deref())?,
            description: describe(&config),
        })
    }

    /// The settings of each attempt to connect, with the password.
    ///
    /// # Errors
    /// The password cannot be read.
    pub(super) async fn attempts(&self, application: &str) -> Result<Vec<Config>> {
        let password = match &self.password {
            PasswordSource::File(path) => Some(read_password(path).await?),
            PasswordSource::Environment(name) => Some(env::var(name).with_context(|| name.clone())?),
            PasswordSource::Url => None,
        };
        let with_password = |config: &Config| {
            let mut config = config.clone();
            if let Some(password) = &password {
                config.password(password);
            }
            config.application_name(application).clone()
        };
        Ok(self.attempts.iter().map(with_password).collect())
    }

    /// The file from which the password is read; `None` if the password has another source.
    pub fn password_file(&self) -> Option<&Path> {
        match &self.password {
            PasswordSource::File(path) => Some(path),
            _ => None,
        }
    }

    /// TCP ports of the database servers in the URL.
    pub fn ports(&self) -> Vec<u16> {
        const DEFAULT_PORT: u16 = 5432;
        let ports = self.attempts[0].get_ports();
        if ports.is_empty() { vec![DEFAULT_PORT] } else { ports.to_vec() }
    }

    /// Whether one of the hosts in the URL is a host name, which the exporter has to resolve with DNS.
    pub fn resolves_names(&self) -> bool {
        let is_name = |host: &Host| matches!(host, Host::Tcp(name) if name.parse::<IpAddr>().is_err());
        self.attempts[0].get_hosts().iter().any(is_name)
    }

    /// Whether one of the hosts in the URL is the directory of a Unix socket.
    pub fn has_unix_socket(&self) -> bool {
        self.attempts[0].get_hosts().iter().any(|host| matches!(host, Host::Unix(_)))
    }
}

/// For a level of `sslmode`, the TLS modes of the attempts to connect, in their order, and the verification of the
/// server's certificate. As in libpq, `require` verifies the certificate only if the URL names a file of authorities
/// (`sslrootcert`).
fn tls_modes(sslmode: &str, has_authorities: bool) -> Result<(&'static [SslMode], Verification)> {
    Ok(match sslmode {
        "disable" => (&[SslMode::Disable], Verification::None),
        "allow" => (&[SslMode::Disable, SslMode::Require], Verification::None),
        "prefer" => (&[SslMode::Prefer, SslMode::Disable], Verification::None),
        "require" if has_authorities => (&[SslMode::Require], Verification::Authority),
        "require" => (&[SslMode::Require], Verification::None),
        "verify-ca" => (&[SslMode::Require], Verification::Authority),
        "verify-full" => (&[SslMode::Require], Verification::Full),
        _ => bail!("sslmode={sslmode}: expected disable, allow, prefer, require, verify-ca or verify-full"),
    })
}

/// Removes `sslmode` and `sslrootcert` from a URL, because tokio_postgres does not support all values of these options.
/// Returns the shortened URL and the values.
fn split_tls_options(url: &str) -> Result<(String, String, Option<PathBuf>)> {
    const DEFAULT_MODE: &str = "prefer";
    let (mut mode, mut authorities, mut uses_system) = (None, None, false);
    // Search for the `?` of the options after the `@`, because a password in front of the `@` can contain a `?`.
    let host = url.find('@').unwrap_or_default();
    let Some(mark) = url[host..].find('?') else { return Ok((url.into(), DEFAULT_MODE.into(), None)) };
    let (base, query) = (&url[..host + mark], &url[host + mark + 1..]);
    let mut others = Vec::new();
    for option in query.split('&').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("sslmode", value)) => mode = Some(value),
            Some(("sslrootcert", "system")) => (authorities, uses_system) = (None, true),
            Some(("sslrootcert", path)) => (authorities, uses_system) = (Some(PathBuf::from(path)), false),
            _ => others.push(option),
        }
    }
    let url = if others.is_empty() { base.into() } else { format!("{base}?{}", others.join("&")) };
    // As in libpq, `sslrootcert=system` requires the verification of the host name. Without this verification, a
    // certificate of any host would be accepted, because the system's authorities sign certificates of all hosts on the
    // internet.
    match mode {
        Some(mode) if uses_system && mode != "verify-full" => {
            bail!("sslrootcert=system needs sslmode=verify-full")
        }
        None if uses_system => Ok((url, "verify-full".into(), None)),
        mode => Ok((url, mode.unwrap_or(DEFAULT_MODE).into(), authorities)),
    }
}

/// The source of the block store's password, in this order of precedence: the file, the environment variable, the
/// systemd credential, the URL.
fn password_source(file: Option<PathBuf>, environment: &str) -> PasswordSource {
    let variable = format!("{environment}_BLOCK_STORE_PASSWORD");
    let credential =
        env::var_os("CREDENTIALS_DIRECTORY").map(|folder| Path::new(&folder).join("block-store-password"));
    match (file, credential.filter(|path| path.exists())) {
        (Some(path), _) => PasswordSource::File(path),
        (None, _) if env::var_os(&variable).is_some() => PasswordSource::Environment(variable),
        (None, Some(path)) => PasswordSource::File(path),
        (None, None) => PasswordSource::Url,
    }
}

async fn read_password(path: &Path) -> Result<String> {
    const MAX_BYTES: u64 = 4096;
    let at = || format!("cannot read the password of the block store in {}", path.display());
    let read = files::on_thread(path, |path| files::read_regular(path, MAX_BYTES)).await;
    let text = read.and_then(|bytes| bytes).with_context(at)?;
    let text = String::from_utf8(text).with_context(at)?;
    match text.lines().next().unwrap_or_default() {
        "" => bail!("{} has no password in its first line", path.display()),
        password => Ok(password.into()),
    }
}

/// Describes the database, the hosts and the user for messages, without the password.
fn describe(config: &Config) -> String {
    let host = |host: &Host| match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.display().to_string(),
    };
    let hosts: Vec<_> = config.get_hosts().iter().map(host).collect();
    let user = config.get_user().unwrap_or_default();
    format!("{} on {} (user {user})", config.get_dbname().unwrap_or_default(), hosts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssl_modes_are_those_of_libpq() {
        let split = |query: &str| split_tls_options(&format!("postgres://u@h/d{query}"));
        for (query, mode, authorities, rest) in [
            ("", "prefer", None, ""),
            ("?sslmode=disable", "disable", None, ""),
            ("?connect_timeout=3&sslmode=verify-full", "verify-full", None, "?connect_timeout=3"),
            ("?sslrootcert=/ca.pem&sslmode=verify-ca", "verify-ca", Some("/ca.pem"), ""),
            ("?sslrootcert=system&sslmode=verify-full", "verify-full", None, ""),
            ("?sslrootcert=system", "verify-full", None, ""),
        ] {
            let expected =
                (format!("postgres://u@h/d{rest}"), mode.to_string(), authorities.map(PathBuf::from));
            assert_eq!(split(query).unwrap(), expected);
        }
        assert!(split("?sslrootcert=system&sslmode=require").is_err());
        let password_with_mark = split_tls_options("postgres://u:a?b=c@h/d?sslmode=require").unwrap();
        assert_eq!(password_with_mark, ("postgres://u:a?b=c@h/d".into(), "require".into(), None));
        assert!(tls_modes("always", false).unwrap_err().to_string().contains("expected disable, allow"));
        assert_eq!(tls_modes("require", true).unwrap().1, Verification::Authority);
        assert_eq!(tls_modes("prefer", true).unwrap().1, Verification::None);
    }

    #[test]
    fn invalid_url_is_rejected_without_its_password() {
        for url in [
            "mysql://u:secret@h/d",
            "postgres://u:secret@h",
            "postgres://u:secret@h:port/d",
            "postgres://u:pass@secret@h/d",
            "postgres://u:secret@h/d?nothing=1",
            "postgres://u:secret@h/d?sslmode=no",
        ] {
            let error = StoreSettings::new(url, None, "X").err().unwrap();
            assert!(!format!("{error:#}").contains("secret"), "{url}: {error:#}");
        }
        let settings = StoreSettings::new("postgres://u:secret@h1,h2:1/d", None, "X").unwrap();
        assert_eq!(settings.to_string(), "d on h1, h2 (user u)");
    }
}
