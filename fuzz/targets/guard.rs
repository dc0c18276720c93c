//! Fuzzes the guard, the process between a node and an exporter, with arbitrary bytes from both of them. The fuzz input
//! is a sequence of pieces, each with its sender (node or exporter), its length and its bytes.
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bitcoind_exporter::testing::{OpenFiles, TimedEvent, relay};
use libfuzzer_sys::fuzz_target;

nix::ioctl_read_bad!(unread_by_the_other, 0x5411 /* TIOCOUTQ */, nix::libc::c_int);

/// Waits until the guard has read all bytes that were sent to this socket, but at most 2 ms.
fn taken(socket: &UnixStream) {
    let since = Instant::now();
    let mut left = 1;
    // SAFETY: the call writes an int to `left`, and the descriptor is open.
    while left > 0 && unsafe { unread_by_the_other(socket.as_raw_fd(), &mut left) }.is_ok() {
        if since.elapsed() > Duration::from_millis(2) {
            return;
        }
        std::thread::yield_now();
    }
}

fuzz_target!(|data: &[u8]| {
    let [(mut node, node_theirs), (mut exporter, exporter_theirs), (mut events, events_theirs)] =
        [(); 3].map(|()| UnixStream::pair().unwrap());
    for socket in [&node, &exporter] {
        socket.set_nonblocking(true).unwrap();
    }
    let guard = std::thread::spawn(move || {
        relay(
            node_theirs,
            exporter_theirs,
            events_theirs,
            Some(Duration::from_millis(50)),
            OpenFiles::default(),
            |_| (),
        )
    });
    let (mut rest, mut sink) = (data, [0; 4096]);
    while let [head, low, high, tail @ ..] = rest {
        let (now, later) = tail.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(tail.len()));
        rest = later;
        let socket = if head & 1 == 0 { &mut node } else { &mut exporter };
        let _ = socket.write_all(now);
        taken(socket);
        for socket in [&mut node, &mut exporter] {
            while socket.read(&mut sink).is_ok_and(|read| read > 0) {}
        }
    }
    // If the last byte of the input is odd, the exporter closes its connection a millisecond before the node, and the
    // guard starts to disconnect from the node.
    if data.last().is_some_and(|last| last & 1 == 1) {
        let _ = exporter.shutdown(Shutdown::Both);
        std::thread::sleep(Duration::from_millis(1));
    }
    drop((node, exporter));
    let _ = guard.join().expect("the guard does not panic");
    let mut notices = Vec::new();
    events.read_to_end(&mut notices).unwrap();
    let mut rest = &notices[..];
    while let Some((_, length)) = TimedEvent::decode(rest) {
        rest = &rest[length..];
    }
    assert!(rest.is_empty(), "the guard writes only complete events");
});
