//! Parses certificates for the HTTPS server and for the client of JSON-RPC over HTTPS, and tracks the expiry of the
//! server's certificates.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use der::asn1::{AnyRef, GeneralizedTime, UtcTime};
use der::{Decode, Reader, SliceReader, Tag, Tagged};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::files;

/// Parses the certificates in the contents of a PEM file. `path` is used in error messages.
///
/// # Errors
/// The contents are not valid PEM, or contain no certificate.
pub fn certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.with_context(|| format!("certificates of {}", path.display()))?;
    if certificates.is_empty() {
        bail!("{} contains no certificate", path.display());
    }
    Ok(certificates)
}

/// Parses the CA certificates in the contents of a PEM file. `path` is used in error messages.
///
/// # Errors
/// The errors of [`certificates`], or a certificate cannot be used as a CA certificate.
pub fn authorities(pem: &[u8], path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, path)? {
        roots.add(certificate).with_context(|| path.display().to_string())?;
    }
    Ok(roots)
}

/// Reads the contents of a PEM file, without parsing them.
///
/// # Errors
/// The errors of [`files::read`].
pub fn read_pem(path: &Path) -> Result<Vec<u8>> {
    files::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Expiry time of a DER-encoded certificate (`notAfter`, RFC 5280, 4.1.2.5); `None` if the certificate is malformed or
/// expired before 1970.
pub fn not_after(certificate: &[u8]) -> Option<SystemTime> {
    let to_be_signed = *elements(AnyRef::from_der(certificate).ok()?)?.first()?;
    let fields = elements(to_be_signed)?;
    // In a certificate, the version (absent in certificates of version 1), the serial number, the signature algorithm
    // and the issuer precede the validity.
    let has_version = fields.first()?.tag().is_context_specific();
    let validity = *fields.get(3 + usize::from(has_version))?;
    let not_after = *elements(validity)?.get(1)?;
    let since_1970 = match not_after.tag() {
        Tag::UtcTime => not_after.decode_as::<UtcTime>().ok()?.to_unix_duration(),
        _ => not_after.decode_as::<GeneralizedTime>().ok()?.to_unix_duration(),
    };
    Some(UNIX_EPOCH + since_1970)
}

/// The elements of a DER sequence; `None` if the value is malformed.
fn elements<'a>(sequence: AnyRef<'a>) -> Option<Vec<AnyRef<'a>>> {
    let read = |reader: &mut SliceReader<'a>| -> der::Result<_> {
        let mut elements = Vec::new();
        while !reader.is_finished() {
            elements.push(AnyRef::decode(reader)?);
        }
        Ok(elements)
    };
    sequence.sequence(read).ok()
}

/// Expiry times of the HTTPS server's certificates, by path of the certificate file; `None` if the time is unknown.
static EXPIRY: Mutex<BTreeMap<PathBuf, Option<SystemTime>>> = Mutex::new(BTreeMap::new());

/// Sets the expiry time of the HTTPS server's certificate in this file; `None` if it is unknown.
pub fn set_expiry(path: &Path, at: Option<SystemTime>) {
    EXPIRY.lock().expect("nobody panics holding it").insert(path.into(), at);
}

/// Earliest expiry time of the HTTPS server's certificates, in Unix seconds; `None` if no expiry time is known.
pub fn first_expiry() -> Option<f64> {
    let expiry = EXPIRY.lock().expect("nobody panics holding it");
    let first = expiry.values().flatten().min()?;
    Some(first.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64())
}

/// Returns a warning for the log if the certificate at `path` has expired or expires within two weeks.
pub fn expiry_warning(path: &Path, expires: SystemTime, now: SystemTime) -> Option<String> {
    /// Time before the expiry at which the warnings begin. The period is shorter than 30 days, because certificates
    /// with a lifetime of 90 days are usually renewed 30 days before they expire.
    const WARNING_PERIOD: Duration = Duration::from_secs(14 * 24 * 60 * 60);
    let (path, at) = (path.display(), humantime::format_rfc3339_seconds(expires));
    match expires.duration_since(now) {
        Err(_) => Some(format!("the certificate {path} expired at {at} and clients reject it; renew it")),
        Ok(left) if left <= WARNING_PERIOD => {
            let days = left.as_secs() / (24 * 60 * 60);
            Some(format!("the certificate {path} expires at {at}, in {days} days; renew it"))
        }
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    #[test]
    fn expiry_is_read_from_certificates_of_both_time_formats() {
        for (year, seconds) in [(1999, 915_148_800), (2049, 2_493_072_000), (2050, 2_524_608_000)] {
            let mut params = CertificateParams::new(["localhost".to_string()]).unwrap();
            params.not_before = date_time_ymd(1990, 1, 1);
            params.not_after = date_time_ymd(year, 1, 1);
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            let expires = not_after(certificate.der());
            assert_eq!(expires, Some(UNIX_EPOCH + Duration::from_secs(seconds)), "{year}");
            let mut cut = certificate.der().to_vec();
            while cut.pop().is_some() {
                assert_eq!(not_after(&cut), None, "{} bytes", cut.len());
            }
        }
    }

    #[test]
    fn certificate_warning_starts_two_weeks_before_expiry() {
        let expires = UNIX_EPOCH + 20_000 * DAY;
        let warning = |now| expiry_warning(Path::new("/c.pem"), expires, now);
        assert_eq!(warning(expires - 15 * DAY), None);
        assert_eq!(
            warning(expires - 3 * DAY).unwrap(),
            "the certificate /c.pem expires at 2024-10-04T00:00:00Z, in 3 days; renew it"
        );
        assert!(warning(expires + DAY).unwrap().starts_with("the certificate /c.pem expired at 2024-10-04"));
    }
}
