//! Tests of the option `--web.config.file`, with curl as the HTTP client.

use std::path::Path;
use std::process::Command;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use crate::eventually;
use crate::exporter::{Exporter, command};

/// Writes a new certificate for localhost to `cert.pem`, and its key to `key.pem`, in this directory.
fn certificate(dir: &Path) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
    std::fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
}

fn start(dir: &Path, config: &str) -> Exporter {
    std::fs::write(dir.join("web.yml"), config).unwrap();
    let mut command = command();
    Exporter::spawn(command.arg("--web.config.file").arg(dir.join("web.yml")).arg(dir.join("none.sock")))
}

/// Requests the metrics with curl and these arguments. Returns the status and the body, or curl's exit code as the
/// error.
fn curl(exporter: &Exporter, dir: &Path, arguments: &[&str]) -> Result<(u16, String), i32> {
    let port = exporter.address().rsplit(':').next().unwrap();
    let scheme = if exporter.log().contains("https://") { "https" } else { "http" };
    let output = Command::new("curl")
        .args(["-s", "--max-time", "60", "-w", "\n%{http_code}", "--resolve"])
        .arg(format!("localhost:{port}:127.0.0.1"))
        .arg("--cacert")
        .arg(dir.join("cert.pem"))
        .args(arguments)
        .arg(format!("{scheme}://localhost:{port}/metrics"))
        .output()
        .expect("curl");
    let message = String::from_utf8(output.stdout).unwrap();
    let (body, status) = message.rsplit_once('\n').unwrap();
    match output.status.code() {
        Some(0) => Ok((status.parse().unwrap(), body.to_string())),
        code => Err(code.unwrap()),
    }
}

#[test]
fn tls_is_served_and_renewed_certificates_are_used() {
    let dir = TempDir::new().unwrap();
    certificate(dir.path());
    let config = "tls_server_config: {cert_file: cert.pem, key_file: key.pem, min_version: TLS12}\n\
                  http_server_config: {headers: {X-Frame-Options: deny}}\n";
    let exporter = start(dir.path(), config);
    for version in ["--tlsv1.2", "--tlsv1.3"] {
        let (status, body) = curl(&exporter, dir.path(), &[version, "-i"]).unwrap();
        assert_eq!(status, 200);
        assert!(body.contains("\nbitcoin_up 0\n") && body.contains("x-frame-options: deny"), "{body}");
    }
    assert!(curl(&exporter, dir.path(), &["--tls-max", "1.1"]).is_err());
    // The exporter sends no response to a request without TLS on its TLS port.
    let plain = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| exporter.get("/metrics")));
    assert!(plain.is_err());

    certificate(dir.path());
    let scraped = || curl(&exporter, dir.path(), &[]).map(|(status, _)| status);
    eventually("the new certificate is used", || (scraped() == Ok(200)).then_some(()));
    eventually("the log line is written", || {
        exporter.log().contains("using the renewed certificates").then_some(())
    });
    std::fs::write(dir.path().join("key.pem"), "no key").unwrap();
    eventually("the log line is written", || {
        exporter.log().contains("keeping the current ones").then_some(())
    });
    assert_eq!(scraped(), Ok(200), "the old one stays");
}

#[test]
fn blocking_certificate_keeps_the_last_good_one() {
    let dir = TempDir::new().unwrap();
    certificate(dir.path());
    let config = "tls_server_config: {cert_file: served.pem, key_file: key.pem}";
    let served = dir.path().join("served.pem");
    std::fs::copy(dir.path().join("cert.pem"), &served).unwrap();
    let exporter = start(dir.path(), config);
    let scraped = || curl(&exporter, dir.path(), &[]).map(|(status, _)| status);
    assert_eq!(scraped(), Ok(200));
    let replace_by_fifo = || {
        std::fs::remove_file(&served).unwrap();
        mkfifo(&served, Mode::S_IRWXU).unwrap();
    };
    replace_by_fifo();
    let logged = |text: &str| exporter.log().matches(text).count();
    eventually("the log line is written", || (logged("it is not a regular file") > 0).then_some(()));
    assert_eq!(scraped(), Ok(200), "the old one stays");
    std::fs::remove_file(&served).unwrap();
    std::fs::copy(dir.path().join("cert.pem"), &served).unwrap();
    eventually("the log line is written", || (logged("certificates exist again") > 0).then_some(()));
    assert_eq!(logged("it is not a regular file"), 1);
    assert_eq!(scraped(), Ok(200));
    // If the certificate file is a FIFO, an exporter that starts must exit with an error.
    replace_by_fifo();
    let end = |config: &Path| {
        let output = command().arg("--web.config.file").arg(config).arg("/none.sock").output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let error = end(&dir.path().join("web.yml"));
    assert!(error.contains("served.pem: it is not a regular file"), "{error}");
    let error = end(&served);
    assert!(error.contains("served.pem: it is not a regular file"), "{error}");
}

#[test]
fn certificates_that_expire_are_logged_and_exported() {
    let dir = TempDir::new().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    std::fs::write(dir.path().join("key.pem"), key.serialize_pem()).unwrap();
    let expires = |year| {
        let mut parameters = rcgen::CertificateParams::new(["localhost".to_string()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
        std::fs::write(dir.path().join("cert.pem"), parameters.self_signed(&key).unwrap().pem()).unwrap();
    };
    expires(2020);
    let exporter = start(dir.path(), "tls_server_config: {cert_file: cert.pem, key_file: key.pem}");
    eventually("the log line is written", || {
        exporter.log().contains("expired at 2020-01-01T00:00:00Z").then_some(())
    });
    let shown = || {
        let (_, body) = curl(&exporter, dir.path(), &["--insecure"]).ok()?;
        let name = "bitcoin_exporter_certificate_expiry_timestamp_seconds ";
        body.lines().find_map(|line| line.strip_prefix(name)?.parse::<f64>().ok())
    };
    assert_eq!(shown(), Some(1_577_836_800.0));
    expires(4000);
    eventually("the expiry time of the renewed certificate is exported", || {
        (shown() == Some(64_060_588_800.0)).then_some(())
    });
    assert_eq!(exporter.log().matches("expired at").count(), 1);
}

#[test]
fn slow_bcrypt_costs_are_rejected_or_logged() {
    let dir = TempDir::new().unwrap();
    let hash = |cost: u32| bcrypt::hash("secret", 4).unwrap().replacen("$04$", &format!("${cost}$"), 1);
    for cost in [99, 31] {
        let path = dir.path().join("bad.yml");
        std::fs::write(&path, format!("# users\nbasic_auth_users:\n  prom: {}\n", hash(cost))).unwrap();
        let output = command().arg("--web.config.file").arg(&path).arg("/none.sock").output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        let expected = format!("prom (line 3): the bcrypt cost {cost}");
        assert!(!output.status.success() && error.contains(&expected), "{error}");
    }
    let users = format!("basic_auth_users: {{slow: {}, fast: {}}}", hash(16), bcrypt::hash("x", 4).unwrap());
    let exporter = start(dir.path(), &users);
    let log = exporter.log();
    assert!(log.contains("slow: verifying a password with bcrypt cost 16 takes about"), "{log}");
    assert!(!log.contains("fast:"), "{log}");
}

#[test]
fn client_without_required_certificate_is_rejected() {
    let dir = TempDir::new().unwrap();
    certificate(dir.path());
    let config = "tls_server_config: {cert_file: cert.pem, key_file: key.pem, client_ca_file: cert.pem, \
                  client_auth_type: RequireAndVerifyClientCert}";
    let exporter = start(dir.path(), config);
    assert!(curl(&exporter, dir.path(), &[]).is_err());
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let with = ["--cert", cert.to_str().unwrap(), "--key", key.to_str().unwrap()];
    assert_eq!(curl(&exporter, dir.path(), &with).map(|(status, _)| status), Ok(200));
}

#[test]
fn password_guesses_delay_no_authenticated_client() {
    let dir = TempDir::new().unwrap();
    certificate(dir.path()); // curl fails if the file in its option --cacert does not exist
    let hash = bcrypt::hash("secret", 13).unwrap(); // With a cost of 13, a password check takes a second.
    let exporter = start(dir.path(), &format!("basic_auth_users:\n  prom: {hash}\n"));
    assert_eq!(curl(&exporter, dir.path(), &[]).map(|(status, _)| status), Ok(401));
    assert_eq!(curl(&exporter, dir.path(), &["-u", "prom:secret"]).map(|(status, _)| status), Ok(200));
    let guessers: Vec<_> = (0..20)
        .map(|i| {
            let port = exporter.address().to_string();
            let guess = format!("prom:guess-{i}");
            Command::new("curl")
                .args(["-s", "-o", "/dev/null", "-u", &guess, &format!("http://{port}/metrics")])
                .spawn()
        })
        .collect();
    // The exporter has already verified the correct password in the request above. This request with the same password
    // must therefore not wait for the checks of the 20 guessed passwords.
    assert_eq!(curl(&exporter, dir.path(), &["-u", "prom:secret"]).map(|(status, _)| status), Ok(200));
    let mut guessers: Vec<_> = guessers.into_iter().map(Result::unwrap).collect();
    let waiting =
        guessers.iter_mut().filter_map(|guesser| guesser.try_wait().unwrap().is_none().then_some(guesser));
    assert_ne!(waiting.map(|guesser| guesser.kill()).count(), 0, "all of them were answered before it");
    guessers.iter_mut().for_each(|guesser| drop(guesser.wait()));
}

/// The sandbox permits the exporter to read the folders with its certificates. If `web.yml` configures no certificate,
/// the exporter must nevertheless be able to read `web.yml` again.
#[test]
fn web_config_of_users_only_is_read_in_the_sandbox() {
    let dir = TempDir::new().unwrap();
    let hash = bcrypt::hash("secret", 4).unwrap();
    let exporter = start(dir.path(), &format!("basic_auth_users:\n  prom: {hash}\n"));
    let (status, _, _) =
        exporter.request("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(status, 401);
}

#[test]
fn invalid_web_config_is_rejected_at_startup() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("web.yml");
    std::fs::write(&path, "basic_auth_users:\n  prom: [\n").unwrap();
    let output = command().arg("--web.config.file").arg(&path).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && message.contains("web.yml") && message.contains("line "),
        "{message}"
    );
}
