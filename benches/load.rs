//! The exporter under load, beside a node that calls back as fast as it is answered. Prints memory and descriptors after
//! the first 100,000 callbacks and after all, and how long the node waited with and without 64 scrapers.
//!
//!     cargo bench --bench load [-- CALLBACKS]

#[path = "../integration-tests/harness/fake.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod fake;
#[path = "../integration-tests/harness/temp_dir.rs"]
mod temp_dir;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use fake::{Event, FakeNode, Offers};
use nix::libc;
use procfs::process::{Process, all_processes};

const BATCH: usize = 50_000;

/// Resident kB and open descriptors of the exporter and its guard.
fn used(exporter: i32) -> Vec<(u64, usize)> {
    let guard = all_processes().unwrap().flatten().find(|it| it.stat().is_ok_and(|it| it.ppid == exporter));
    let of = |it: Process| (it.status().unwrap().vmrss.unwrap(), it.fd_count().unwrap());
    [Process::new(exporter).unwrap(), guard.expect("a guard")].map(of).into()
}

fn percentile(waits: &mut [Duration], percent: usize) -> Duration {
    waits.sort();
    waits[waits.len() * percent / 100]
}

fn main() {
    let callbacks = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000);
    let node =
        FakeNode::start(Offers { mining: true, chain: true, node: true, tracing: true, ..Offers::default() });
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut exporter = Command::new(env!("CARGO_BIN_EXE_bitcoind-ipc-exporter"))
        .arg(node.socket())
        .args(["--utxo-trace", "on", "--metrics-addr", &address])
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
        let mut waits = node.fire_and_time(vec![Event::Add(1); BATCH]);
        assert_eq!(waits.len(), BATCH);
        (percentile(&mut waits, 50), percentile(&mut waits, 99))
    };
    for _ in 0..100_000 / BATCH {
        fire();
    }
    println!("after 100,000 callbacks, exporter and guard: {:?} (kB, descriptors)", used(pid));
    for _ in 0..callbacks / BATCH {
        fire();
    }
    println!("after {callbacks} more: {:?}", used(pid));

    let (scraping, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let scrapers: Vec<_> = (0..64)
        .map(|_| {
            let (address, scraping, done) = (address.clone(), scraping.clone(), done.clone());
            std::thread::spawn(move || {
                // In place of other machines: what they need is not taken from the node.
                // SAFETY: takes numbers only; 0 is the calling thread.
                unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
                let mut answer = Vec::new();
                let mut scrapes = 0;
                while !done.load(Relaxed) {
                    if scraping.load(Relaxed) == 0 {
                        std::thread::sleep(Duration::from_millis(20));
                        continue;
                    }
                    let mut stream = TcpStream::connect(&address).unwrap();
                    stream
                        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                        .unwrap();
                    answer.clear();
                    stream.read_to_end(&mut answer).unwrap();
                    assert!(answer.starts_with(b"HTTP/1.1 200"));
                    scrapes += 1;
                }
                scrapes
            })
        })
        .collect();
    for round in 0..5 {
        scraping.store(0, Relaxed);
        std::thread::sleep(Duration::from_millis(300));
        let alone = fire();
        scraping.store(1, Relaxed);
        std::thread::sleep(Duration::from_millis(300));
        println!("round {round}, median and 99th percentile: alone {alone:?}, with 64 scrapers {:?}", fire());
    }
    done.store(true, Relaxed);
    let scrapes: u64 = scrapers.into_iter().map(|scraper| scraper.join().unwrap()).sum();
    println!("{scrapes} scrapes");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(exporter.wait().unwrap().success());
}
