//! The TLS settings of the client for JSON-RPC over HTTPS: the CA certificates that the exporter trusts.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustls::crypto::ring::default_provider;
use rustls::{ClientConfig, RootCertStore};

use crate::tls;

/// Creates the TLS settings of the client for JSON-RPC over HTTPS. With these settings the exporter trusts the CA
/// certificates in the PEM file `authorities`, or the system's CA certificates if `authorities` is `None`.
///
/// # Errors
/// The file cannot be read or contains no certificate, or the system has no CA certificates.
pub fn client_config(authorities: Option<&Path>) -> Result<Arc<ClientConfig>> {
    let roots = match authorities {
        Some(path) => {
            let pem = tls::read_pem(path).context("--rpc-ca-file")?;
            tls::authorities(&pem, path).context("--rpc-ca-file")?
        }
        None => system_roots()?,
    };
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Returns the CA certificates of the operating system.
///
/// # Errors
/// The operating system has no CA certificates.
pub fn system_roots() -> Result<RootCertStore> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let why = found.errors.first().map_or(String::new(), |error| format!(" ({error})"));
        bail!("the system has no CA certificates{why}: install ca-certificates, or pass yours in a file");
    }
    Ok(roots)
}
