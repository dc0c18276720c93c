//! Credentials for a node's JSON-RPC over HTTP: the node's cookie, or a user name with a password.

use std::io::{Error, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderValue;
use nix::unistd::{Uid, User};

use crate::files;

/// Name of the environment variable that contains the password of `--rpc-user`.
pub const PASSWORD_VARIABLE: &str = "BITCOIND_IPC_EXPORTER_RPC_PASSWORD";

/// Maximum size of a cookie file or password file, in bytes. The cookie of Bitcoin Core has 75 bytes.
const MAX_FILE_BYTES: u64 = 4096;

/// The source of the credentials for JSON-RPC over HTTP. The value contains no secret; the secret is read from the
/// source when a request needs it.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// Path of the cookie file, which the node writes at each start.
    Cookie(PathBuf),
    /// Name of an RPC user that the node's option `-rpcauth` or `-rpcuser` defines, and path of the file whose first
    /// line is the user's password.
    PasswordFile(String, PathBuf),
    /// Name of an RPC user, whose password is in the environment variable [`PASSWORD_VARIABLE`].
    PasswordVariable(String),
}

impl Credentials {
    /// Path of the file that contains the secret; `None` if the secret is in an environment variable.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Credentials::Cookie(path) | Credentials::PasswordFile(_, path) => Some(path),
            Credentials::PasswordVariable(_) => None,
        }
    }

    /// Reads the current credentials. Returns the credentials as the value of an `Authorization` header.
    ///
    /// # Errors
    /// The file cannot be read, the file contains no cookie or password, or the environment variable is not set.
    pub async fn read(&self) -> Result<HeaderValue, String> {
        let both = match self {
            Credentials::Cookie(path) => {
                let cookie = first_line(path, "cookie").await?;
                if !cookie.contains(':') {
                    return Err(format!("{} is not a cookie file: it has no colon", path.display()));
                }
                cookie
            }
            Credentials::PasswordFile(user, path) => {
                format!("{user}:{}", first_line(path, "password").await?)
            }
            Credentials::PasswordVariable(user) => match std::env::var(PASSWORD_VARIABLE) {
                Ok(password) => format!("{user}:{password}"),
                Err(_) => return Err(format!("{PASSWORD_VARIABLE} has no password")),
            },
        };
        let mut header = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(both)))
            .map_err(|error| error.to_string())?;
        header.set_sensitive(true);
        Ok(header)
    }

    /// Description of the credentials for log messages, without the secret.
    pub fn describe(&self) -> String {
        match self {
            Credentials::Cookie(path) => format!("the cookie in {}", path.display()),
            Credentials::PasswordFile(user, path) => {
                format!("user {user} with the password in {}", path.display())
            }
            Credentials::PasswordVariable(user) => {
                format!("user {user} with the password of {PASSWORD_VARIABLE}")
            }
        }
    }

    /// Advice for the log if the node rejects the credentials.
    pub fn advice(&self) -> &'static str {
        match self {
            Credentials::Cookie(_) => {
                "check that it is the cookie of the node at this port (--rpc-cookie-file, --rpc-url; a node with \
                 -rpcpassword has none)"
            }
            _ => "compare the user and password with -rpcauth or -rpcuser of the node",
        }
    }
}

async fn first_line(path: &Path, secret: &'static str) -> Result<String, String> {
    let read = files::on_thread(path, move |path| read_first_line(path, secret)).await;
    read.unwrap_or_else(|error| Err(format!("cannot read the {secret} in {}: {error}", path.display())))
}

fn read_first_line(path: &Path, secret: &str) -> Result<String, String> {
    let at = path.display();
    let text = files::read_regular(path, MAX_FILE_BYTES).and_then(|bytes| {
        String::from_utf8(bytes).map_err(|error| Error::new(ErrorKind::InvalidData, error))
    });
    let text = match text {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound && secret == "cookie" => {
            return Err(format!(
                "there is no cookie at {at}; start the node with -server, or pass its cookie file with --rpc-cookie-file"
            ));
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let owner = path
                .metadata()
                .ok()
                .and_then(|file| User::from_uid(Uid::from_raw(file.uid())).ok().flatten());
            let owner = owner.map_or(String::new(), |user| format!(" (it belongs to user {})", user.name));
            return Err(format!(
                "cannot read the {secret} in {at}: permission denied{owner}; run as that user, or let its group read it \
                 (the node's -rpccookieperms=group)"
            ));
        }
        Err(error) => return Err(format!("cannot read the {secret} in {at}: {error}")),
    };
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_string()),
        _ => Err(format!("{at} is empty: there is no {secret} in it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(credentials: &Credentials) -> Result<String, String> {
        credentials.read().await.map(|header| {
            let text = header.to_str().unwrap().strip_prefix("Basic ").unwrap();
            String::from_utf8(STANDARD.decode(text).unwrap()).unwrap()
        })
    }

    #[tokio::test]
    async fn secrets_are_read_when_they_are_needed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let cookie = Credentials::Cookie(path.clone());
        let user = Credentials::PasswordFile("exporter".into(), path.clone());
        assert!(read(&cookie).await.unwrap_err().contains("there is no cookie at"));
        for text in ["__cookie__:a", "__cookie__:b"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read(&cookie).await.unwrap(), text);
        }
        std::fs::write(&path, "pass word\n").unwrap();
        assert_eq!(read(&user).await.unwrap(), "exporter:pass word");
        assert!(read(&cookie).await.unwrap_err().contains("no colon"));
        std::fs::write(&path, "").unwrap();
        assert!(read(&user).await.unwrap_err().contains("is empty"));
        assert!(
            read(&Credentials::Cookie(dir.path().into())).await.unwrap_err().contains("not a regular file")
        );
        assert!(!format!("{user:?}").contains("pass word"));
    }
}
