//! Client of the Mining interface, the only interface that every node with IPC has.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::connection::{BoundCapability, call};
use super::error::ok_if_offered;
use super::{CallError, IpcConnection, NodeThread};
use crate::bitcoin_core;
use crate::schema::common_capnp::block_ref;
use crate::schema::mining_capnp::{MAX_DOUBLE, mining};

/// A block hash in the byte order of the P2P protocol. `Display` prints the hash in reverse byte order, like Bitcoin
/// Core.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockHash(pub [u8; 32]);

impl BlockHash {
    /// The last 13 hexadecimal digits of the displayed hash as a number. An f64 represents 13 hexadecimal digits (52
    /// bits) exactly.
    pub fn suffix(&self) -> f64 {
        const DIGITS: u32 = 13;
        let low = u64::from_le_bytes(*self.0.first_chunk().expect("32 bytes"));
        (low & ((1 << (4 * DIGITS)) - 1)) as f64
    }
}

impl fmt::Display for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bitcoin_core::hash_text(&self.0))
    }
}

impl FromStr for BlockHash {
    type Err = CallError;
    fn from_str(text: &str) -> Result<Self, CallError> {
        let malformed = || CallError::Malformed(format!("not a block hash: {text:.64}"));
        if text.len() != 64 || !text.is_ascii() {
            return Err(malformed());
        }
        let mut hash = [0; 32];
        for (byte, at) in hash.iter_mut().rev().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| malformed())?;
        }
        Ok(BlockHash(hash))
    }
}

impl TryFrom<&[u8]> for BlockHash {
    type Error = CallError;
    fn try_from(bytes: &[u8]) -> Result<Self, CallError> {
        let length = bytes.len();
        bytes.try_into().map(BlockHash).map_err(|_| CallError::Malformed(format!("a hash of {length} bytes")))
    }
}

/// Hash and height of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockRef {
    /// Hash of the block.
    pub hash: BlockHash,
    /// Height of the block.
    pub height: i32,
}

impl BlockRef {
    fn read(block: block_ref::Reader) -> Result<Self, CallError> {
        Ok(BlockRef { hash: block.get_hash()?.try_into()?, height: block.get_height() })
    }
}

/// Timeout of [`Mining::wait_tip_changed`], the exporter's long poll: a call to which the node responds when the tip
/// changes or the timeout passes. The timeout is short for three reasons: the node's thread is free soon after the
/// exporter has disconnected, the exporter can disconnect between two long polls within the stop timeout of a service
/// manager, and Core 30 does not shut down during a long poll.
pub const LONG_POLL: Duration = Duration::from_secs(1);

/// The version of the Mining schema that a node uses. Cap'n Proto encodes a value as its XOR with the default value in
/// the schema, so the versions encode some values differently.
#[derive(Clone, Copy)]
pub enum MiningSchema {
    /// Schema of Core 30: the timeout of waitTipChanged and the options of createNewBlock have no default values.
    Core30,
    /// Schema of Core 31 and later: the timeout of waitTipChanged and the options of createNewBlock have default
    /// values.
    Core31,
}

impl MiningSchema {
    /// Returns the number that the exporter sets as the timeout of waitTipChanged. A node with this version of the
    /// schema then reads `timeout` in milliseconds.
    pub fn encode_timeout(self, timeout: Duration) -> f64 {
        let milliseconds = timeout.as_secs_f64() * 1000.0;
        match self {
            // This XOR cancels the XOR that Cap'n Proto applies because of the default value in the exporter's schema.
            MiningSchema::Core30 => f64::from_bits(milliseconds.to_bits() ^ MAX_DOUBLE.to_bits()),
            MiningSchema::Core31 => milliseconds,
        }
    }
}

/// Client of a node's Mining interface, with the node's thread that runs the calls.
pub struct Mining {
    pub(super) capability: BoundCapability<mining::Client>,
    pub(super) schema: MiningSchema,
}

impl Mining {
    /// Requests the Mining interface with the ordinal of `makeMining` in this version of the schema. Core 31 and later
    /// respond only when their chain state is loaded, which can take a long time. Core 30 responds at any time, but
    /// aborts if the interface is used before the chain state is loaded. `None` if the node does not have this method.
    ///
    /// # Errors
    /// The node does not respond in time, returns an error, or closes the connection ([`CallError`]).
    pub async fn discover(
        connection: &IpcConnection,
        thread: &NodeThread,
        schema: MiningSchema,
    ) -> Result<Option<Self>, CallError> {
        let init = connection.init(thread);
        let client = match schema {
            MiningSchema::Core30 => ok_if_offered(call!(init, make_mining_core30_request))?
                .and_then(|answer| answer.get().ok()?.get_result().ok()),
            MiningSchema::Core31 => ok_if_offered(call!(init, make_mining_request))?
                .and_then(|answer| answer.get().ok()?.get_result().ok()),
        };
        Ok(client.map(|client| Mining { capability: thread.bind(client), schema }))
    }

    /// Returns a client of the same interface whose calls run on `thread`.
    pub fn on_thread(&self, thread: &NodeThread) -> Self {
        Mining { capability: self.capability.on_thread(thread), schema: self.schema }
    }

    /// The tip of the active chain; `None` before the genesis block is connected.
    ///
    /// # Errors
    /// The node does not respond in time, returns an error, or closes the connection ([`CallError`]).
    pub async fn tip(&self) -> Result<Option<BlockRef>, CallError> {
        let answer = call!(self.capability, get_tip_request)?;
        let answer = answer.get()?;
        answer.get_has_result().then(|| BlockRef::read(answer.get_result()?)).transpose()
    }

    /// Whether the node is in initial block download.
    ///
    /// # Errors
    /// The node does not respond in time, returns an error, or closes the connection ([`CallError`]).
    pub async fn is_initial_block_download(&self) -> Result<bool, CallError> {
        Ok(call!(self.capability, is_initial_block_download_request)?.get()?.get_result())
    }

    /// Waits until the tip is not `current`, for at most [`LONG_POLL`], and returns the tip. `None` means that the node
    /// is shutting down.
    ///
    /// # Errors
    /// The node does not respond in time, returns an error, or closes the connection ([`CallError`]).
    pub async fn wait_tip_changed(&self, current: BlockHash) -> Result<Option<BlockRef>, CallError> {
        let milliseconds = self.schema.encode_timeout(LONG_POLL);
        let answer = call!(self.capability, wait_tip_changed_request, |params| {
            params.set_current_tip(&current.0);
            params.set_timeout(milliseconds)
        })?;
        let answer = answer.get()?;
        answer.has_result().then(|| BlockRef::read(answer.get_result()?)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_read_as_they_are_shown() {
        let text = "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f";
        let hash: BlockHash = text.parse().unwrap();
        assert_eq!((hash.0[0], hash.to_string().as_str()), (0x6f, text));
        assert_eq!(hash.suffix() as u64, u64::from_str_radix(&text[51..], 16).unwrap());
        assert_eq!(BlockHash([0xff; 32]).suffix() as u64, (1 << 52) - 1);
        for wrong in ["", "00", &text[1..], &format!("{}x", &text[1..]), &"é".repeat(32)] {
            assert!(wrong.parse::<BlockHash>().is_err(), "{wrong}");
        }
    }
}
