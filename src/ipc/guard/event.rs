//! What the guard tells the exporter.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::bail;

use crate::ipc::{ChainEvent, CoinEvent};

/// A callback of the node's.
#[derive(Debug)]
pub enum Event {
    /// A notification of the chain.
    Chain(ChainEvent),
    /// An event of the UTXO cache trace.
    Coin(CoinEvent),
    /// So many callbacks were answered and not handed on: the exporter was too slow.
    Dropped(u64),
    /// The UTXO cache trace kept the node waiting too long; the guard has begun to unsubscribe from it.
    OverBudget,
    /// The node holds a callback from now on.
    Held(Held),
    /// The node has let go of the callback of this number.
    Released(u32),
}

/// A callback that a node holds, by the numbers that it has on the connection: what is needed to end the subscription.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Held {
    /// The exporter's number for the callback.
    pub callback: u32,
    /// The node's number for the handler of the subscription.
    pub handler: u32,
    /// The node's number for the thread that runs calls of the handler.
    pub thread: u32,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{}", self.callback, self.handler, self.thread)
    }
}

impl FromStr for Held {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbers = text.split(',').map(str::parse).collect::<Result<Vec<u32>, _>>()?;
        let [callback, handler, thread] = numbers[..] else { bail!("expected three numbers, not {text:?}") };
        Ok(Held { callback, handler, thread })
    }
}

/// An event, and what the node saw of it.
#[derive(Debug)]
pub struct Notice {
    /// What happened.
    pub event: Event,
    /// When the callback arrived, on the system's monotonic clock.
    pub at: Duration,
    /// From its arrival to the answer: how long the node was kept waiting.
    pub kept: Duration,
}

/// kind, flag, two unused bytes, length of the data (u32), value (i64), at (u64 ns), kept (u64 ns); little-endian.
const HEAD: usize = 32;

const HISTORICAL: u8 = 1;
const WITHOUT_CONTENTS: u8 = 2;

impl Notice {
    /// Appends the notice to a queue.
    pub fn encode(&self, queue: &mut Vec<u8>) {
        let (mut flag, mut data) = (0, &[][..]);
        let numbers;
        let (kind, value) = match &self.event {
            Event::Chain(ChainEvent::AddedToMempool) => (0, 0),
            Event::Chain(ChainEvent::RemovedFromMempool(reason)) => (1, i64::from(*reason)),
            Event::Chain(ChainEvent::BlockConnected { height, historical, data: contents }) => {
                flag = if *historical { HISTORICAL } else { 0 };
                match contents {
                    Some(contents) => data = contents,
                    None => flag |= WITHOUT_CONTENTS,
                }
                (2, i64::from(*height))
            }
            Event::Chain(ChainEvent::BlockDisconnected { height }) => (3, i64::from(*height)),
            Event::Chain(ChainEvent::UpdatedTip) => (4, 0),
            Event::Chain(ChainEvent::Flushed) => (5, 0),
            Event::Coin(CoinEvent::Added(value)) => (6, *value),
            Event::Coin(CoinEvent::Spent(value)) => (7, *value),
            Event::Coin(CoinEvent::Uncached(value)) => (8, *value),
            Event::Dropped(count) => (9, *count as i64),
            Event::OverBudget => (10, 0),
            Event::Held(held) => {
                numbers = [held.callback, held.handler, held.thread].map(u32::to_le_bytes);
                data = numbers.as_flattened();
                (11, 0)
            }
            Event::Released(callback) => (12, i64::from(*callback)),
        };
        queue.extend([kind, flag, 0, 0]);
        queue.extend((data.len() as u32).to_le_bytes());
        queue.extend(value.to_le_bytes());
        queue.extend((self.at.as_nanos() as u64).to_le_bytes());
        queue.extend((self.kept.as_nanos() as u64).to_le_bytes());
        queue.extend(data);
    }

    /// The notice at the start of `bytes` and its length; `None` if it is not whole yet.
    pub fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        let head = bytes.get(..HEAD)?;
        let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
        let length = HEAD + (word(0) >> 32) as usize;
        let data = bytes.get(HEAD..length)?;
        let (flag, value) = (head[1], word(8) as i64);
        let event = match head[0] {
            0 => Event::Chain(ChainEvent::AddedToMempool),
            1 => Event::Chain(ChainEvent::RemovedFromMempool(value as i32)),
            2 => Event::Chain(ChainEvent::BlockConnected {
                height: value as i32,
                historical: flag & HISTORICAL != 0,
                data: (flag & WITHOUT_CONTENTS == 0).then(|| data.to_vec()),
            }),
            3 => Event::Chain(ChainEvent::BlockDisconnected { height: value as i32 }),
            4 => Event::Chain(ChainEvent::UpdatedTip),
            5 => Event::Chain(ChainEvent::Flushed),
            6 => Event::Coin(CoinEvent::Added(value)),
            7 => Event::Coin(CoinEvent::Spent(value)),
            8 => Event::Coin(CoinEvent::Uncached(value)),
            9 => Event::Dropped(value as u64),
            10 => Event::OverBudget,
            11 => {
                let number = |at: usize| Some(u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?));
                Event::Held(Held { callback: number(0)?, handler: number(4)?, thread: number(8)? })
            }
            _ => Event::Released(value as u32),
        };
        let (at, kept) = (Duration::from_nanos(word(16)), Duration::from_nanos(word(24)));
        Some((Notice { event, at, kept }, length))
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
            Event::Chain(block(Some(vec![1, 2, 3]))),
            Event::Chain(block(None)),
            Event::Chain(ChainEvent::BlockDisconnected { height: i32::MAX }),
            Event::Chain(ChainEvent::UpdatedTip),
            Event::Chain(ChainEvent::Flushed),
            Event::Coin(CoinEvent::Added(i64::MIN)),
            Event::Coin(CoinEvent::Spent(7)),
            Event::Coin(CoinEvent::Uncached(i64::MAX)),
            Event::Dropped(u64::MAX),
            Event::OverBudget,
            Event::Held(Held { callback: 0, handler: u32::MAX, thread: 7 }),
            Event::Released(u32::MAX),
        ];
        let (at, kept) = (Duration::from_secs(86_400), Duration::from_nanos(5));
        for event in events {
            let mut bytes = Vec::new();
            let sent = Notice { event, at, kept };
            sent.encode(&mut bytes);
            for part in 0..bytes.len() {
                assert!(Notice::decode(&bytes[..part]).is_none());
            }
            bytes.push(0xff);
            let (received, length) = Notice::decode(&bytes).unwrap();
            assert_eq!((format!("{received:?}"), length), (format!("{sent:?}"), bytes.len() - 1));
        }
    }
}
