//! Checks the `Host` header of requests to an exporter that listens on a loopback address, as a defence against DNS
//! rebinding.
//!
//! The operator of a web page can make the page's host name resolve to 127.0.0.1. A script of the page can then read
//! the responses of a service on loopback, because the browser treats the service as the page's own server. The browser
//! sends the page's host name in the `Host` header. Requests for host names other than `localhost`, loopback addresses
//! and the names in `--web.allowed-host` are therefore rejected.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use hyper::header::HOST;
use hyper::{HeaderMap, Uri};
use tracing::warn;

use crate::text;

/// Parses a host name or IP address for `--web.allowed-host`. A port in the text is omitted from the result, because
/// each allowed name is allowed with any port.
///
/// # Errors
/// The reason why the text is invalid.
pub fn host_name(text: &str) -> Result<String, String> {
    let (name, port) = split_port(text);
    if port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err(
            "the port is not a number up to 65535; leave it out: names are allowed with any port".into()
        );
    }
    let is_name =
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if !is_name && name.parse::<IpAddr>().is_err() {
        return Err("expected a host name without a scheme, like metrics.example.com".into());
    }
    Ok(name.into())
}

/// The set of host names for which an HTTP listener of the exporter serves requests.
#[derive(Default)]
pub struct AllowedHosts {
    names: Vec<String>,
    has_logged: AtomicBool,
}

impl AllowedHosts {
    /// Allows requests for `localhost`, for loopback addresses, and for the host names in `names`.
    pub fn loopback_and(names: Vec<String>) -> Self {
        AllowedHosts { names, ..Self::default() }
    }

    /// Whether the host name of a request is allowed. A request without a host name is allowed, because every browser
    /// sends a host name. Logs the first host name that is rejected.
    pub fn permit(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        let of_uri = uri.authority().map(|authority| authority.as_str().as_bytes());
        let of_headers = headers.get_all(HOST).iter().map(|value| value.as_bytes());
        let rejected = of_uri.into_iter().chain(of_headers).find(|host| !self.allows(host));
        let Some(host) = rejected else { return true };
        if !self.has_logged.swap(true, Relaxed) {
            let host = text::label(String::from_utf8_lossy(host));
            warn!(
                "rejected a request for the host {host:?}: a listener on loopback accepts only loopback's names; allow \
                 others, e.g. a reverse proxy's, with --web.allowed-host (logged once)"
            );
        }
        false
    }

    fn allows(&self, host: &[u8]) -> bool {
        let Ok(host) = str::from_utf8(host) else { return false };
        let (name, _) = split_port(host);
        name.is_empty()
            || name.eq_ignore_ascii_case("localhost")
            || name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
            || self.names.iter().any(|allowed| name.eq_ignore_ascii_case(allowed))
    }
}

/// Splits `HOST:PORT`. Returns the host name or address, without the brackets of an IPv6 address and without a trailing
/// dot, and the digits of the port if there is one.
fn split_port(host: &str) -> (&str, Option<&str>) {
    let host = host.trim();
    if let Some((address, rest)) = host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        return (address, rest.strip_prefix(':'));
    }
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            (name, Some(port))
        }
        _ => (host, None),
    };
    (name.strip_suffix('.').unwrap_or(name), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(hosts: &AllowedHosts, uri: &str, names: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for name in names {
            headers.append(HOST, name.parse().unwrap());
        }
        hosts.permit(&uri.parse().unwrap(), &headers)
    }

    #[test]
    fn loopback_listener_accepts_loopback_names() {
        let hosts = AllowedHosts::default();
        for name in [
            "localhost",
            "localhost:9332",
            "LocalHost",
            "localhost.:80",
            "127.0.0.1:9332",
            "127.1.2.3",
            "[::1]",
            "[::1]:9332",
            "[::ffff:127.0.0.1]:9332",
            "",
        ] {
            assert!(permits(&hosts, "/metrics", &[name]), "{name}");
        }
        assert!(permits(&hosts, "/metrics", &[]), "HTTP/1.0");
        for name in [
            "evil.example",
            "evil.example:9332",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "192.0.2.1",
            "0.0.0.0",
            "[::]:9332",
            "[::1",
            "localhost:9332:1",
            "localhost evil.example",
            "[evil.example]",
        ] {
            assert!(!permits(&hosts, "/metrics", &[name]), "{name}");
            assert!(!permits(&hosts, "/metrics", &["localhost", name]), "{name} second");
        }
        assert!(!permits(&hosts, "http://evil.example/metrics", &["localhost"]));
        assert!(permits(&hosts, "http://localhost:9332/metrics", &["localhost"]));
    }

    #[test]
    fn other_names_are_answered_where_they_are_allowed() {
        let names = ["Metrics.Example.com", "[2001:db8::1]", "192.0.2.1"];
        let hosts = AllowedHosts::loopback_and(names.map(|name| host_name(name).unwrap()).into());
        for name in
            ["metrics.example.com:443", "METRICS.example.com.", "[2001:db8::1]:80", "192.0.2.1", "localhost"]
        {
            assert!(permits(&hosts, "/", &[name]), "{name}");
        }
        assert!(!permits(&hosts, "/", &["evil.metrics.example.com"]));
        assert_eq!(host_name("x:65535"), Ok("x".into()));
        for wrong in [
            "",
            ".",
            "http://metrics.example.com",
            "a/b",
            "a b",
            "*",
            "a,b",
            "x:99999",
            "x:",
            "[2001:db8::1]:99999",
            "[2001:db8::1]:http",
        ] {
            assert!(host_name(wrong).is_err(), "{wrong}");
        }
    }
}
