//! What the guard tells the exporter, over a bounded queue.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::str::FromStr;
use std::time::Duration;

use anyhow::bail;
use serde::{Deserialize, Serialize};

use super::frame::{BUFFER_BYTES, Outgoing};
use super::message::{self, Call};
use crate::ipc::{ChainEvent, CoinEvent};
use crate::schema::chain_capnp::chain_notifications;
use crate::schema::tracing_capnp::utxo_cache_trace;

/// Limit on the bytes of events that wait for the exporter: half a million small ones.
const MAX_QUEUED_BYTES: usize = 16 << 20;
/// Beyond this a block is announced without its contents, so that it can still be counted.
const MAX_QUEUED_CONTENTS: usize = 8 << 20;

/// What the exporter needs to know.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum Event<'a> {
    /// A notification of the chain.
    Chain(#[serde(borrow)] ChainEvent<'a>),
    /// An event of the UTXO cache trace.
    Coin(CoinEvent),
    /// This many callbacks were answered and not handed on: the exporter was too slow.
    Dropped(u64),
    /// A call of the exporter's was not forwarded.
    Rejected {
        /// One of a few hundred texts, `Mining.9`.
        call: Cow<'a, str>,
        /// What is not permitted about it.
        reason: Cow<'a, str>,
    },
    /// The UTXO cache trace kept the node waiting too long; the guard unsubscribes from it.
    OverBudget,
    /// The node is shutting down; the guard takes leave of it.
    NodeShutsDown,
    /// A subscription began.
    Subscribed(SubscriptionIds),
    /// The node has let go of the callback of this number: its subscription is over.
    Released(u32),
}

impl<'a> Event<'a> {
    /// What the exporter is told of a callback; nothing of `destroy`. The contents of a block are left out on request.
    pub(super) fn of_callback(call: &Call<'a>, with_contents: bool) -> capnp::Result<Option<Self>> {
        let parameters = call.parameters()?;
        // add, spend and uncache have the same parameters.
        let coin = || -> capnp::Result<i64> {
            Ok(parameters.get_as::<utxo_cache_trace::add_params::Reader>()?.get_utxo_info()?.get_value())
        };
        Ok(Some(match call.method {
            message::ADDED_TO_MEMPOOL => Event::Chain(ChainEvent::AddedToMempool),
            message::REMOVED_FROM_MEMPOOL => {
                let parameters: chain_notifications::transaction_removed_from_mempool_params::Reader =
                    parameters.get_as()?;
                Event::Chain(ChainEvent::RemovedFromMempool(parameters.get_reason()))
            }
            message::BLOCK_CONNECTED => {
                let parameters: chain_notifications::block_connected_params::Reader = parameters.get_as()?;
                let block = parameters.get_block()?;
                Event::Chain(ChainEvent::BlockConnected {
                    height: block.get_height(),
                    historical: parameters.get_role()?.get_historical(),
                    data: if with_contents { Some(block.get_data()?) } else { None },
                })
            }
            message::BLOCK_DISCONNECTED => {
                let parameters: chain_notifications::block_disconnected_params::Reader =
                    parameters.get_as()?;
                Event::Chain(ChainEvent::BlockDisconnected { height: parameters.get_block()?.get_height() })
            }
            message::UPDATED_TIP => Event::Chain(ChainEvent::UpdatedTip),
            message::FLUSHED => Event::Chain(ChainEvent::Flushed),
            message::COIN_ADDED => Event::Coin(CoinEvent::Added(coin()?)),
            message::COIN_SPENT => Event::Coin(CoinEvent::Spent(coin()?)),
            message::COIN_UNCACHED => Event::Coin(CoinEvent::Uncached(coin()?)),
            _ => return Ok(None),
        }))
    }
}

/// The numbers that a subscription's parts have on the connection: what is needed to end it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SubscriptionIds {
    /// The exporter's number for the callback.
    pub callback: u32,
    /// The node's number for the handler of the subscription.
    pub handler: u32,
    /// The node's number for the thread that runs calls of the handler.
    pub thread: u32,
}

impl fmt::Display for SubscriptionIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{}", self.callback, self.handler, self.thread)
    }
}

impl FromStr for SubscriptionIds {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbers = text.split(',').map(str::parse).collect::<Result<Vec<u32>, _>>()?;
        let [callback, handler, thread] = numbers[..] else { bail!("expected three numbers, not {text:?}") };
        Ok(SubscriptionIds { callback, handler, thread })
    }
}

/// An event, and how long the node waited.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Notice<'a> {
    /// What happened.
    #[serde(borrow)]
    pub event: Event<'a>,
    /// From the moment that the guard saw the callback to the answer.
    pub waited: Duration,
}

/// The length of a notice's length.
const PREFIX: usize = size_of::<u32>();

impl<'a> Notice<'a> {
    /// Appends the notice with its length to a queue.
    pub fn encode(&self, queue: &mut Vec<u8>) {
        let start = queue.len();
        queue.extend([0; PREFIX]);
        postcard::to_io(self, &mut *queue).expect("a vector takes everything");
        let length = (queue.len() - start - PREFIX) as u32;
        queue[start..start + PREFIX].copy_from_slice(&length.to_le_bytes());
    }

    /// The notice at the start of `bytes` and its length; `None` if it is not whole yet, or is none.
    pub fn decode(bytes: &'a [u8]) -> Option<(Self, usize)> {
        let length = u32::from_le_bytes(bytes.get(..PREFIX)?.try_into().expect("four bytes")) as usize;
        let notice = postcard::from_bytes(bytes.get(PREFIX..PREFIX + length)?).ok()?;
        Some((notice, PREFIX + length))
    }
}

/// Notices on their way to the exporter.
pub struct EventQueue {
    socket: UnixStream,
    unsent: Outgoing,
    blocked: bool,
    dropped: u64,
}

impl EventQueue {
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(EventQueue { socket, unsent: Outgoing::default(), blocked: false, dropped: 0 })
    }

    /// Queues a callback of this size, or counts it as dropped when the queue is full. `event` is told whether there is room
    /// for the contents of a block, and gives nothing for a callback that is none of the exporter's business.
    pub fn queue<'a>(
        &mut self,
        waited: Duration,
        size: usize,
        event: impl FnOnce(bool) -> capnp::Result<Option<Event<'a>>>,
    ) {
        let queued = self.unsent.len();
        let has_room = queued < MAX_QUEUED_CONTENTS && self.unsent.reserve(size).is_ok();
        match event(has_room) {
            Ok(None) => {}
            Ok(Some(event)) if queued < MAX_QUEUED_BYTES => {
                self.append_dropped();
                self.append(Notice { event, waited });
            }
            // A callback that does not decode was answered like any other.
            _ => self.dropped += 1,
        }
        if self.unsent.len() > BUFFER_BYTES {
            self.flush();
        }
    }

    /// Queues what is no callback, whether there is room or not, and sends it at once.
    pub fn tell(&mut self, event: Event) {
        self.append(Notice { event, waited: Duration::ZERO });
        self.flush();
    }

    fn append(&mut self, notice: Notice) {
        self.unsent.queue(|queue| notice.encode(queue));
    }

    /// Whether there is something that the socket may take.
    pub fn is_waiting(&self) -> bool {
        !self.unsent.is_empty() && !self.blocked
    }

    /// Whether the socket takes nothing until it is polled to be writable.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// The socket may take more.
    pub fn unblock(&mut self) {
        self.blocked = false;
    }

    /// Sends what the socket takes in one piece. A block takes several, and the node's next callback goes first.
    pub fn flush(&mut self) {
        if self.blocked || self.unsent.is_empty() {
            return;
        }
        // Without a reader there is nothing to hand on; the exporter's other socket tells that it is gone.
        if self.unsent.flush_some(&self.socket).is_err() {
            self.unsent = Outgoing::default();
        }
        self.blocked = !self.unsent.is_empty();
    }

    /// Whether a block has left memory behind.
    pub fn has_grown(&self) -> bool {
        self.unsent.has_grown()
    }

    /// Gives the memory of a block back.
    pub fn shrink(&mut self) {
        self.unsent.shrink();
    }

    /// Queues the number of events that were dropped since the last one that was queued.
    fn append_dropped(&mut self) {
        if self.dropped > 0 {
            let event = Event::Dropped(std::mem::take(&mut self.dropped));
            self.append(Notice { event, waited: Duration::ZERO });
        }
    }

    /// Sends the last events, within a second.
    pub fn finish(mut self) {
        self.append_dropped();
        let _ = self.socket.set_nonblocking(false);
        let _ = self.socket.set_write_timeout(Some(Duration::from_secs(1)));
        let _ = self.unsent.flush(&self.socket);
    }
}

impl AsFd for EventQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_arrive_as_they_were_sent_and_only_whole() {
        let block = |data| ChainEvent::BlockConnected { height: -1, historical: true, data };
        let events = [
            Event::Chain(ChainEvent::AddedToMempool),
            Event::Chain(ChainEvent::RemovedFromMempool(i32::MIN)),
            Event::Chain(block(Some(&[1, 2, 3]))),
            Event::Chain(block(None)),
            Event::Coin(CoinEvent::Uncached(i64::MAX)),
            Event::Dropped(u64::MAX),
            Event::Rejected { call: "Mining.9".into(), reason: "method 9 of Mining".into() },
            Event::Subscribed(SubscriptionIds { callback: 0, handler: u32::MAX, thread: 7 }),
            Event::Released(u32::MAX),
        ];
        for event in events {
            let mut bytes = Vec::new();
            let sent = Notice { event, waited: Duration::from_nanos(5) };
            sent.encode(&mut bytes);
            for part in 0..bytes.len() {
                assert!(Notice::decode(&bytes[..part]).is_none());
            }
            bytes.push(0xff);
            assert_eq!(Notice::decode(&bytes), Some((sent, bytes.len() - 1)));
        }
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut queue = EventQueue::new(ours).unwrap();
        let block = vec![7; 1 << 20];
        let block = |room: bool| {
            let data = room.then_some(&block[..]);
            Ok(Some(Event::Chain(ChainEvent::BlockConnected { height: 1, historical: false, data })))
        };
        let coin = |_| Ok(Some(Event::Coin(CoinEvent::Added(1))));
        (0..20).for_each(|_| queue.queue(Duration::ZERO, 1 << 20, block));
        let full = (MAX_QUEUED_BYTES - queue.unsent.len()) / 7 + 10_000;
        (0..full).for_each(|_| queue.queue(Duration::ZERO, 100, coin));
        assert!(queue.unsent.len() <= MAX_QUEUED_BYTES + 64);
        let dropped = queue.dropped;
        assert!(dropped > 0);
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut theirs, &mut bytes).unwrap();
            let (mut rest, mut counts) = (&bytes[..], (0, 0, 0, 0));
            while let Some((Notice { event, .. }, length)) = Notice::decode(rest) {
                rest = &rest[length..];
                match event {
                    Event::Chain(ChainEvent::BlockConnected { data: Some(_), .. }) => counts.0 += 1,
                    Event::Chain(_) => counts.1 += 1,
                    Event::Coin(_) => counts.2 += 1,
                    Event::Dropped(events) => counts.3 += events,
                    _ => panic!("never queued"),
                }
            }
            assert!(rest.is_empty());
            counts
        });
        queue.finish();
        let (whole, announced, coins, told) = reader.join().unwrap();
        assert_eq!((whole + announced, coins + told, told), (20, full as u64, dropped));
        assert!(announced > 0, "blocks without contents");
    }
}
