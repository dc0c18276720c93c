//! The URL of a node's JSON-RPC server: `http://HOST:PORT` or `https://HOST`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use hyper::Uri;

/// The URL of a node's JSON-RPC server, split into its parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Url {
    /// Whether the scheme is https. Bitcoin Core does not support TLS, but a proxy in front of the node can support
    /// TLS.
    pub tls: bool,
    /// Host name or IP address. An IPv6 address has no brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Path of the requests; `/` unless the URL has another path.
    pub path: String,
}

impl Url {
    /// Returns the URL `http://127.0.0.1:port/`.
    pub fn on_localhost(port: u16) -> Self {
        Url { tls: false, host: "127.0.0.1".into(), port, path: "/".into() }
    }

    /// Value of the `Host` header of requests to this URL.
    pub fn authority(&self) -> String {
        let Url { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// Whether the host is `localhost` or a loopback address.
    pub fn is_local(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path == "/" { "" } else { &self.path };
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{path}", self.authority())
    }
}

impl FromStr for Url {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let example = "expected a URL like http://127.0.0.1:8332";
        let uri: Uri = text.parse().map_err(|error| format!("{error}; {example}"))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(format!("not an http:// or https:// URL; {example}")),
        };
        let port = uri.port_u16().or(tls.then_some(443)).filter(|&port| port != 0);
        let (Some(authority), Some(port)) = (uri.authority(), port) else {
            return Err(format!("no port; {example}"));
        };
        if authority.as_str().contains('@') {
            return Err(
                "passwords in the URL are not supported, because every user of the machine can read arguments: use \
                 --rpc-user with --rpc-password-file"
                    .into(),
            );
        }
        if uri.query().is_some() {
            return Err(format!("queries are not supported; {example}"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_string();
        if host.is_empty() {
            return Err(format!("no host; {example}"));
        }
        Ok(Url { tls, host, port, path: uri.path().into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_as_users_write_them() {
        assert_eq!("http://127.0.0.1:8332".parse(), Ok(Url::on_localhost(8332)));
        assert_eq!("http://127.0.0.1:8332/".parse(), Ok(Url::on_localhost(8332)));
        let six: Url = "http://[::1]:18443/wallet/x".parse().unwrap();
        assert_eq!((six.host.as_str(), six.port, six.path.as_str()), ("::1", 18443, "/wallet/x"));
        assert_eq!(six.to_string(), "http://[::1]:18443/wallet/x");
        let behind_tls: Url = "https://node.example/rpc".parse().unwrap();
        assert!(behind_tls.tls && behind_tls.port == 443);
        assert_eq!(behind_tls.to_string(), "https://node.example:443/rpc");
        assert!(six.is_local() && !Url { host: "node.example".into(), ..six }.is_local());
    }

    #[test]
    fn unusable_urls_are_rejected_with_advice() {
        for (text, why) in [
            ("127.0.0.1:8332", "expected a URL like"),
            ("http://127.0.0.1", "no port"),
            ("http://127.0.0.1:0", "no port"),
            ("https://node.example:0", "no port"),
            ("http://user:secret@127.0.0.1:8332", "--rpc-password-file"),
            ("http://127.0.0.1:8332/?x", "queries are not supported"),
            ("ftp://127.0.0.1:8332", "not an http:// or https://"),
            ("https://user:secret@node.example", "--rpc-password-file"),
            ("", "expected a URL like"),
        ] {
            let error = text.parse::<Url>().unwrap_err();
            assert!(error.contains(why) && !error.contains("secret"), "{text}: {error}");
        }
    }
}
