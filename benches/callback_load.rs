//! Measures the exporter under load, with a fake node that makes each callback as soon as the exporter has responded to
//! the previous callback. Prints the memory and the number of descriptors of the exporter's processes after the first
//! 100,000 callbacks and after all callbacks, and the exporter's response times to callbacks, with and without 64
//! clients that scrape its metrics (scrapers).
//!
//!     cargo bench --bench callback_load [-- CALLBACKS]

#[path = "../integration-tests/harness/fake.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod fake;
#[path = "../integration-tests/harness/templates.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod templates;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use fake::{Event, FakeNode, Offers};
use nix::libc;
use procfs::process::{Process, all_processes};

/// Number of callbacks that the fake node makes in one batch.
const BATCH: usize = 20_000;
/// Number of batches with scrapers, and also the number of batches without scrapers. The two kinds of batches
/// alternate.
const ROUNDS: usize = 25;

/// The resident memory in kB and the number of open descriptors of the exporter's three processes: supervisor, exporter
/// and guard.
fn used(supervisor: i32) -> Vec<(u64, usize)> {
    let is_part = |it: &Process| it.pid == supervisor || it.stat().is_ok_and(|stat| stat.ppid == supervisor);
    let parts = all_processes().unwrap().flatten().filter(is_part);
    parts.map(|it| (it.status().unwrap().vmrss.unwrap(), it.fd_count().unwrap())).collect()
}

fn percentile(waits: &mut [Duration], percent: usize) -> Duration {
    waits.sort();
    waits[waits.len() * percent / 100]
}

/// Lowers the CPU priority of the calling scraper thread, because a real scraper runs on another machine and does not
/// compete with the exporter for CPU time.
#[allow(unsafe_code, reason = "no crate wraps it")]
fn lower_priority() {
    // SAFETY: the arguments are numbers; 0 means the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
}

fn main() {
    let callbacks = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000);
    let node =
        FakeNode::start(Offers { mining: true, chain: true, node: true, tracing: true, ..Offers::default() });
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut exporter = Command::new(env!("CARGO_BIN_EXE_bitcoind-ipc-exporter"))
        .arg(node.socket())
        .args(["--utxo-trace", "on", "--metrics-addr", &address])
        .env(bitcoind_exporter::supervisor::IN_CONTAINER, "0")
        .stderr(Stdio::null())
        .spawn()
        .expect("the exporter starts");
    let pid = exporter.id() as i32;
    let since = Instant::now();
    while node.fire(vec![Event::Add(1)]) == 0 {
        assert!(since.elapsed() < Duration::from_secs(30), "it subscribes");
        std::thread::sleep(Duration::from_millis(50));
    }

    let fire = || {
        let waits = node.fire_and_time(vec![Event::Add(1); BATCH]);
        assert_eq!(waits.len(), BATCH);
        waits
    };
    for _ in 0..100_000 / BATCH {
        fire();
    }
    println!("after 100,000 callbacks, supervisor, exporter and guard: {:?} (kB, descriptors)", used(pid));
    for _ in 0..callbacks / BATCH {
        fire();
    }
    println!("after {callbacks} more: {:?}", used(pid));

    // The scrapers pause while the main thread has the write lock.
    let gate = Arc::new(RwLock::new(()));
    let mut locked = gate.write().unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let scrapers: Vec<_> = (0..64)
        .map(|_| {
            let (address, gate, done) = (address.clone(), gate.clone(), done.clone());
            std::thread::spawn(move || {
                lower_priority();
                // Like Prometheus, each scraper uses one persistent connection.
                let mut stream = BufReader::new(TcpStream::connect(&address).unwrap());
                let (mut line, mut page) = (String::new(), Vec::new());
                let mut scrapes = 0;
                while !done.load(Relaxed) {
                    let _open = gate.read().unwrap();
                    stream.get_mut().write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
                    let mut length = 0;
                    while line != "\r\n" {
                        line.clear();
                        stream.read_line(&mut line).unwrap();
                        length = line
                            .strip_prefix("content-length: ")
                            .map_or(length, |it| it.trim().parse().unwrap());
                    }
                    line.clear();
                    page.resize(length, 0);
                    stream.read_exact(&mut page).unwrap();
                    assert!(page.ends_with(b"\n") && length > 10_000, "{length} bytes");
                    scrapes += 1;
                }
                scrapes
            })
        })
        .collect();
    let (mut alone, mut scraped) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.extend(fire());
        drop(locked);
        std::thread::sleep(Duration::from_millis(100));
        scraped.extend(fire());
        locked = gate.write().unwrap();
    }
    done.store(true, Relaxed);
    drop(locked);
    let scrapes: u64 = scrapers.into_iter().map(|scraper| scraper.join().unwrap()).sum();
    for percent in [50, 90, 99] {
        let (alone, scraped) = (percentile(&mut alone, percent), percentile(&mut scraped, percent));
        let ratio = scraped.as_secs_f64() / alone.as_secs_f64();
        println!("percentile {percent}: alone {alone:?}, with 64 scrapers {scraped:?}, ratio {ratio:.2}");
    }
    println!("{scrapes} scrapes");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(exporter.wait().unwrap().success());
}
