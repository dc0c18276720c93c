//! Tests of the exporter's HTTP endpoint with clients that lack a password or overload the endpoint.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use tempfile::TempDir;

use crate::eventually;
use crate::exporter::{Exporter, command};
use crate::fake::{FakeNode, Offers};

/// The text of a scrape request with this user name and password.
fn request(user: &str, password: &str) -> String {
    let credentials = BASE64_STANDARD.encode(format!("{user}:{password}"));
    format!(
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {credentials}\r\nConnection: close\r\n\r\n"
    )
}

/// Raises this process's limit of open files as far as possible. Returns `wanted`, or the number of connections that
/// the limit permits if that is lower.
fn connections(wanted: u64) -> u64 {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let limit = soft.max(hard.min(wanted + 200));
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard).unwrap();
    wanted.min(limit - 200)
}

#[test]
fn authenticated_scraper_skips_the_password_queue() {
    let dir = TempDir::new().unwrap();
    let hash = bcrypt::hash("secret", 12).unwrap();
    std::fs::write(dir.path().join("web.yml"), format!("basic_auth_users:\n  prom: {hash}\n")).unwrap();
    let mut command = command();
    command.arg("--web.config.file").arg(dir.path().join("web.yml")).arg(dir.path().join("none.sock"));
    let exporter = Exporter::spawn(&mut command);
    let known = request("prom", "secret");
    assert_eq!(exporter.request(&known).0, 200);
    // The exporter must not check all of these 4,400 passwords, which would take more than an hour.
    let strangers: Vec<_> = (0..connections(4400))
        .map(|number| {
            let mut stream =
                TcpStream::connect(exporter.address()).expect("the exporter accepts the connection");
            stream.set_nonblocking(true).unwrap();
            let _ = stream.write_all(request("prom", &format!("guess-{number}")).as_bytes());
            stream
        })
        .collect();
    assert_eq!(exporter.request(&known).0, 200);
    let mut told_to_come_again = 0;
    for mut stream in strangers {
        stream.set_nonblocking(true).unwrap();
        let mut answer = [0; 1024];
        // If there is nothing to read, the exporter has closed the connection or has not yet checked its password.
        let read = stream.read(&mut answer).unwrap_or(0);
        let answer = String::from_utf8_lossy(&answer[..read]).to_lowercase();
        if answer.starts_with("http/1.1 429") {
            assert!(answer.contains("\r\nretry-after: 10\r\n"), "{answer}");
            told_to_come_again += 1;
        }
        assert!(!answer.starts_with("http/1.1 200"), "{answer}");
    }
    assert!(told_to_come_again > 0);
    assert_eq!(exporter.request(&known).0, 200);
}

/// Clients open connections as fast as possible, and send a different wrong password on each.
#[test]
fn connection_flood_does_not_block_scrapers() {
    const KEPT: usize = 100;
    let dir = TempDir::new().unwrap();
    let hash = bcrypt::hash("secret", 12).unwrap();
    std::fs::write(dir.path().join("web.yml"), format!("basic_auth_users:\n  prom: {hash}\n")).unwrap();
    let mut command = command();
    command.arg("--web.config.file").arg(dir.path().join("web.yml")).arg(dir.path().join("none.sock"));
    let exporter = Exporter::spawn(&mut command);
    let known = request("prom", "secret");
    assert_eq!(exporter.request(&known).0, 200);
    let (over, opened) = (AtomicBool::new(false), AtomicUsize::new(0));
    let flood = || {
        let mut kept = VecDeque::new();
        while !over.load(Relaxed) {
            let number = opened.fetch_add(1, Relaxed);
            let Ok(mut stream) = TcpStream::connect(exporter.address()) else { continue };
            let _ = stream.write_all(request("prom", &format!("guess-{number}")).as_bytes());
            kept.push_back(stream);
            kept.drain(..kept.len().saturating_sub(KEPT));
        }
    };
    let scraped: Vec<_> = std::thread::scope(|scope| {
        (0..4).for_each(|_| drop(scope.spawn(flood)));
        eventually("there are more connections than the limit", || {
            (opened.load(Relaxed) > 1000).then_some(())
        });
        let answers = (0..20).map(|_| exporter.try_request(&known)).collect();
        over.store(true, Relaxed);
        answers
    });
    assert!(scraped.iter().all(|status| *status == Some(200)), "{scraped:?} beside {opened:?} connections");
}

#[test]
fn slow_scrapers_are_disconnected_and_cost_little() {
    let node =
        FakeNode::start(Offers { mining: true, chain: true, node: true, tracing: true, ..Offers::default() });
    let exporter = Exporter::start(&node.socket(), &[]).ready();
    let resident = || exporter.value("process_resident_memory_bytes").unwrap() / 1e6;
    let files = || exporter.value("process_open_fds").unwrap();
    let (resident_before, files_before) = (resident(), files());
    let mut most: f64 = 0.0;
    let scrapers: Vec<_> = (0..connections(4000))
        .map(|number| {
            let mut stream =
                TcpStream::connect(exporter.address()).expect("the exporter accepts the connection");
            setsockopt(&stream, sockopt::RcvBuf, &2048).unwrap();
            stream.set_nonblocking(true).unwrap();
            let _ =
                stream.write_all("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(200).as_bytes());
            if number % 200 == 0 {
                most = most.max(resident());
            }
            stream
        })
        .collect();
    most = most.max(resident());
    println!("{} scrapers that do not read: {resident_before} MB before, {most} MB at most", scrapers.len());
    assert!(most - resident_before < 20.0, "{resident_before} MB before, {most} MB at most");
    eventually("the connections are closed", || (files() <= files_before).then_some(()));
    drop(scrapers);
}

fn status(exporter: &Exporter, path: &str, host: &str) -> (u16, String) {
    let (status, _, body) =
        exporter.request(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
    (status, body)
}

#[test]
fn loopback_listener_accepts_loopback_and_allowed_names() {
    const REJECTED: &str = "rejected a request for the host";
    let socket = "/nonexistent/node.sock";
    let exporter = Exporter::start(socket.as_ref(), &["--web.allowed-host", "metrics.example,other.example"]);
    let port = exporter.address().rsplit(':').next().unwrap().to_string();
    for host in ["localhost", "127.0.0.1", "[::1]", "metrics.example", "Other.Example"] {
        assert_eq!(status(&exporter, "/metrics", host).0, 200, "{host}");
        assert_eq!(status(&exporter, "/metrics", &format!("{host}:{port}")).0, 200, "{host} with a port");
    }
    for path in ["/metrics", "/status.json", "/", "/livez"] {
        let (status, body) = status(&exporter, path, &format!("rebound.example:{port}"));
        assert!(status == 421 && body.contains("--web.allowed-host"), "{path}: {status} {body}");
    }
    let (status_of_ten, _, _) = exporter.request("GET /livez HTTP/1.0\r\n\r\n");
    assert_eq!(status_of_ten, 200, "HTTP/1.0 has no host");
    eventually("the rejection is logged", || exporter.log().contains(REJECTED).then_some(()));
    let log = exporter.log();
    assert_eq!(log.matches(REJECTED).count(), 1, "{log}");
    // An exporter that listens on a non-loopback address accepts every host name in the `Host` header. A check of the
    // header would not protect this exporter, because other machines can connect to it directly.
    let open = Exporter::spawn_without_address(command().args(["--metrics-addr", "0.0.0.0:0", socket]));
    let local = format!("127.0.0.1:{}", open.address().rsplit(':').next().unwrap());
    let mut stream = TcpStream::connect(local).unwrap();
    let mut answer = String::new();
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: node.example\r\nConnection: close\r\n\r\n").unwrap();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// A client sends many requests over one connection. The exporter's timeout applies to each response, and not to the
/// whole connection.
#[test]
fn kept_alive_scraper_is_served() {
    let exporter = Exporter::start("/nonexistent/node.sock".as_ref(), &[]);
    let mut stream = TcpStream::connect(exporter.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for _ in 0..100 {
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = [0; 1024];
        let read = stream.read(&mut answer).unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 200"));
    }
}
