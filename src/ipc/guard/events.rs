//! Events that the guard (the process that relays messages between the node and the exporter) sends to the
//! exporter, and the bounded queue of events that the guard has not sent yet.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::poll::PollFd;
use serde::{Deserialize, Serialize};

use super::allow_list::Rejection;
use super::frame::{BUFFER_BYTES, BufferedSocket};
use super::message::{self, Call};
use crate::ipc::{BlockContents, ChainEvent, CoinEvent};
use crate::schema::chain_capnp::chain_notifications;
use crate::schema::tracing_capnp::utxo_cache_trace;

/// Maximum size of all queued events in bytes, enough for half a million events of 32 bytes.
const MAX_QUEUED_BYTES: usize = 16 << 20;
/// Maximum encoded size of the event for one callback, in bytes.
const MAX_EVENT_BYTES: usize = 160;

/// An event that the guard reports to the exporter: a callback of the node, or a change of the connection's state.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum GuardEvent {
    /// A callback of the subscription to chain notifications.
    Chain(ChainEvent),
    /// A callback of the UTXO cache trace.
    Coin(CoinEvent),
    /// Number of callbacks to which the guard responded, but for which it queued no event, because the queue was full,
    /// memory was short, or the callback could not be decoded.
    Dropped(u64),
    /// The guard rejected a call of the exporter that is not on the allow-list.
    Rejected(Rejection),
    /// The UTXO cache trace exceeded its time budget, and the guard unsubscribes from the trace.
    OverBudget,
    /// The node has announced its shutdown, and the guard disconnects from the node.
    NodeShutsDown,
}

impl GuardEvent {
    /// Decodes a callback of the node into an event, and counts the contents of a connected block. Returns `None` for
    /// the callback `destroy`, for which there is no event.
    pub(super) fn from_callback(call: &Call) -> capnp::Result<Option<Self>> {
        let parameters = call.parameters()?;
        // The callbacks `add`, `spend` and `uncache` have the same parameters, so one reader type serves all three.
        let coin = || -> capnp::Result<i64> {
            Ok(parameters.get_as::<utxo_cache_trace::add_params::Reader>()?.get_utxo_info()?.get_value())
        };
        Ok(Some(match call.method {
            message::ADDED_TO_MEMPOOL => GuardEvent::Chain(ChainEvent::AddedToMempool),
            message::REMOVED_FROM_MEMPOOL => {
                let parameters: chain_notifications::transaction_removed_from_mempool_params::Reader =
                    parameters.get_as()?;
                GuardEvent::Chain(ChainEvent::RemovedFromMempool(parameters.get_reason()))
            }
            message::BLOCK_CONNECTED => {
                let parameters: chain_notifications::block_connected_params::Reader = parameters.get_as()?;
                let block = parameters.get_block()?;
                let historical = parameters.get_role()?.get_historical();
                let data = block.get_data()?;
                let contents = if historical { None } else { BlockContents::count(data) };
                let (height, bytes) = (block.get_height(), data.len());
                let hash = block.get_hash()?.try_into().ok();
                GuardEvent::Chain(ChainEvent::BlockConnected { hash, height, historical, bytes, contents })
            }
            message::BLOCK_DISCONNECTED => {
                let parameters: chain_notifications::block_disconnected_params::Reader =
                    parameters.get_as()?;
                GuardEvent::Chain(ChainEvent::BlockDisconnected {
                    height: parameters.get_block()?.get_height(),
                })
            }
            message::UPDATED_TIP => GuardEvent::Chain(ChainEvent::UpdatedTip),
            message::FLUSHED => GuardEvent::Chain(ChainEvent::Flushed),
            message::COIN_ADDED => GuardEvent::Coin(CoinEvent::Added(coin()?)),
            message::COIN_SPENT => GuardEvent::Coin(CoinEvent::Spent(coin()?)),
            message::COIN_UNCACHED => GuardEvent::Coin(CoinEvent::Uncached(coin()?)),
            _ => return Ok(None),
        }))
    }
}

/// An event of the guard, with the time for which the node waited for the response to the callback that caused the
/// event.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct TimedEvent {
    /// The callback, or the change of the connection's state.
    pub event: GuardEvent,
    /// Time from reading the callback to sending the response, measured in the guard; zero for events that are not
    /// callbacks.
    pub waited: Duration,
}

impl TimedEvent {
    /// Appends the encoded event to `queue`.
    pub fn encode(&self, queue: &mut Vec<u8>) {
        postcard::to_io(self, queue).expect("a vector takes everything");
    }

    /// Decodes the event at the start of `bytes`. Returns the event and the number of bytes of its encoding; `None` if
    /// the event is incomplete or invalid.
    pub fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        let (event, rest) = postcard::take_from_bytes(bytes).ok()?;
        Some((event, bytes.len() - rest.len()))
    }
}

/// The bounded queue of encoded events, with the socket over which the guard sends them to the exporter.
pub struct EventQueue {
    socket: BufferedSocket,
    blocked: bool,
    dropped: u64,
}

impl EventQueue {
    /// Creates an empty queue for the events that are sent over `socket`.
    ///
    /// # Errors
    /// The socket cannot be made nonblocking.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        Ok(EventQueue { socket: BufferedSocket::new(socket)?, blocked: false, dropped: 0 })
    }

    /// Queues the event of a callback. Counts the event as dropped if the queue is full, memory is short, or the
    /// callback could not be decoded.
    pub fn queue(&mut self, waited: Duration, event: capnp::Result<Option<GuardEvent>>) {
        let has_room =
            self.socket.unsent() < MAX_QUEUED_BYTES && self.socket.reserve(2 * MAX_EVENT_BYTES).is_ok();
        match event {
            Ok(None) => {}
            Ok(Some(event)) if has_room => {
                self.append_dropped();
                self.append(TimedEvent { event, waited });
            }
            // The guard has already responded to this callback, so the node does not repeat it. A callback that cannot
            // be decoded also counts as dropped.
            _ => self.dropped += 1,
        }
        if self.socket.unsent() > BUFFER_BYTES {
            self.flush();
        }
    }

    /// Queues an event that does not come from a callback, even if the queue is full, and sends the queue immediately.
    pub fn send(&mut self, event: GuardEvent) {
        self.append(TimedEvent { event, waited: Duration::ZERO });
        self.flush();
    }

    fn append(&mut self, event: TimedEvent) {
        self.socket.queue(|queue| event.encode(queue));
    }

    /// Whether the queue has unsent events and the socket is not known to be full.
    pub fn is_waiting(&self) -> bool {
        self.socket.unsent() > 0 && !self.blocked
    }

    /// The event socket as an argument of poll(2), if the last write filled the socket's buffer and poll(2) has not
    /// reported the socket as writable since then.
    pub fn blocked(&self) -> Option<PollFd<'_>> {
        self.blocked.then(|| self.socket.interest(false))
    }

    /// Records that poll(2) has reported the socket as writable.
    pub fn unblock(&mut self) {
        self.blocked = false;
    }

    /// Makes one write with as many queued bytes as the socket accepts. A long queue, for example after the exporter
    /// was stopped by SIGSTOP, needs several writes. The guard handles callbacks of the node between the writes.
    pub fn flush(&mut self) {
        if !self.is_waiting() {
            return;
        }
        // A write error means that the exporter has closed this socket, so the queued events are discarded. The guard
        // detects the exporter's exit on the other socket, which carries the exporter's calls.
        if self.socket.flush_some().is_err() {
            self.socket.clear();
        }
        self.blocked = self.socket.unsent() > 0;
    }

    /// Queues a [`GuardEvent::Dropped`] with the number of events dropped since the previous `Dropped` event.
    fn append_dropped(&mut self) {
        if self.dropped > 0 {
            let event = GuardEvent::Dropped(std::mem::take(&mut self.dropped));
            self.append(TimedEvent { event, waited: Duration::ZERO });
        }
    }

    /// Sends the remaining queued events. Discards the events that are left when the socket has accepted no bytes for
    /// one second.
    pub fn finish(mut self) {
        self.append_dropped();
        let _ = self.socket.socket.set_nonblocking(false);
        let _ = self.socket.socket.set_write_timeout(Some(Duration::from_secs(1)));
        let _ = self.socket.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_arrive_unchanged_and_complete() {
        let block = |contents| ChainEvent::BlockConnected {
            hash: None,
            height: -1,
            historical: true,
            bytes: 3,
            contents,
        };
        let events = [
            GuardEvent::Chain(ChainEvent::AddedToMempool),
            GuardEvent::Chain(ChainEvent::RemovedFromMempool(i32::MIN)),
            GuardEvent::Chain(block(Some(BlockContents { transactions: 7, ..BlockContents::default() }))),
            GuardEvent::Chain(block(None)),
            GuardEvent::Coin(CoinEvent::Uncached(i64::MAX)),
            GuardEvent::Dropped(u64::MAX),
            GuardEvent::Rejected(Rejection { call: "Mining.9".into(), reason: "method 9 of Mining".into() }),
        ];
        for event in events {
            let mut bytes = Vec::new();
            let sent = TimedEvent { event, waited: Duration::from_nanos(5) };
            sent.encode(&mut bytes);
            for part in 0..bytes.len() {
                assert!(TimedEvent::decode(&bytes[..part]).is_none());
            }
            bytes.push(0xff);
            assert_eq!(TimedEvent::decode(&bytes), Some((sent, bytes.len() - 1)));
        }
    }

    #[test]
    fn events_beyond_the_queue_are_counted() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut queue = EventQueue::new(ours).unwrap();
        let coin = || Ok(Some(GuardEvent::Coin(CoinEvent::Added(1))));
        let sent = MAX_QUEUED_BYTES as u64 / 4 + 100_000; // an event has 5 bytes
        (0..sent).for_each(|_| queue.queue(Duration::ZERO, coin()));
        queue.queue(Duration::ZERO, Ok(None)); // the callback `destroy`, which causes no event
        queue.queue(Duration::ZERO, Err(capnp::Error::failed("does not decode".into())));
        assert!(queue.socket.unsent() <= MAX_QUEUED_BYTES + MAX_EVENT_BYTES);
        let dropped = queue.dropped;
        assert!(dropped > 1);
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut theirs, &mut bytes).unwrap();
            let (mut rest, mut coins, mut reported) = (&bytes[..], 0, 0);
            while let Some((TimedEvent { event, .. }, length)) = TimedEvent::decode(rest) {
                rest = &rest[length..];
                match event {
                    GuardEvent::Coin(_) => coins += 1,
                    GuardEvent::Dropped(events) => reported += events,
                    _ => panic!("never queued"),
                }
            }
            assert!(rest.is_empty());
            (coins, reported)
        });
        queue.finish();
        assert_eq!(reader.join().unwrap(), (sent + 1 - dropped, dropped));
    }

    #[test]
    fn event_of_a_callback_never_exceeds_its_limit() {
        let max = u64::MAX;
        let contents = BlockContents {
            transactions: max,
            inputs: max,
            outputs: max,
            output_value: max,
            weight: max,
            bytes: max,
        };
        let contents = Some(contents);
        let hash = Some([0xff; 32]);
        let (height, bytes) = (i32::MIN, usize::MAX);
        let block = ChainEvent::BlockConnected { hash, height, historical: true, bytes, contents };
        let mut bytes = Vec::new();
        TimedEvent { event: GuardEvent::Chain(block), waited: Duration::MAX }.encode(&mut bytes);
        assert!(bytes.len() <= MAX_EVENT_BYTES, "{}", bytes.len());
    }
}
