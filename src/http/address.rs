//! Parses the addresses on which the exporter's HTTP endpoint listens (`--metrics-addr`).

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// An address on which the exporter's HTTP endpoint listens, for example the value of `--metrics-addr`.
#[derive(Clone, Debug, PartialEq)]
pub enum Address {
    /// TCP address: `HOST:PORT` or `[IPv6]:PORT`.
    Tcp(String),
    /// Path of a Unix socket, written as `unix:/path`.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => f.write_str(address),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Address {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => return Err("unix: needs a path, as in unix:/run/metrics.sock".into()),
            Some(path) => return Ok(Address::Unix(path.into())),
            None => {}
        }
        let (host, port) = text.rsplit_once(':').ok_or("expected HOST:PORT or unix:/path")?;
        if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
            return Err("an IPv6 address needs brackets: [::1]:9332".into());
        }
        port.parse::<u16>().map_err(|_| format!("{port:?} is not a port"))?;
        Ok(Address::Tcp(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_users_write_them() {
        assert_eq!("127.0.0.1:9332".parse(), Ok(Address::Tcp("127.0.0.1:9332".into())));
        assert_eq!("[::1]:9332".parse(), Ok(Address::Tcp("[::1]:9332".into())));
        assert_eq!("localhost:0".parse(), Ok(Address::Tcp("localhost:0".into())));
        assert_eq!("unix:/run/x".parse(), Ok(Address::Unix("/run/x".into())));
        for wrong in ["9332", "::1:9332", "localhost:http", "unix:", "localhost:99999"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
        for text in ["localhost:0", "unix:/run/x"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }
}
