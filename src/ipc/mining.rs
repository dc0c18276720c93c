//! Mining: the one interface that every node has.

use std::fmt;
use std::time::Duration;

use super::{CallError, Thread, call};
use crate::schema::common_capnp::block_ref;
use crate::schema::mining_capnp::{MAX_DOUBLE, mining};

/// A block's hash, in the order of the wire; displayed reversed, as users know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hash(pub [u8; 32]);

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().rev().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl TryFrom<&[u8]> for Hash {
    type Error = CallError;
    fn try_from(bytes: &[u8]) -> Result<Self, CallError> {
        let length = bytes.len();
        bytes.try_into().map(Hash).map_err(|_| CallError::Malformed(format!("a hash of {length} bytes")))
    }
}

/// A block in the chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockRef {
    /// Its hash.
    pub hash: Hash,
    /// Its height.
    pub height: i32,
}

impl BlockRef {
    fn read(block: block_ref::Reader) -> Result<Self, CallError> {
        Ok(BlockRef { hash: block.get_hash()?.try_into()?, height: block.get_height() })
    }
}

/// The Mining interface.
pub struct Mining {
    client: mining::Client,
    /// Core 30's schema has no default value for the timeout, and a default changes how values are encoded.
    timeout_has_default: bool,
}

impl Mining {
    pub(super) fn new(client: mining::Client, timeout_has_default: bool) -> Self {
        Mining { client, timeout_has_default }
    }

    /// The tip; `None` before the genesis block is connected.
    pub async fn tip(&self, on: &Thread) -> Result<Option<BlockRef>, CallError> {
        let answer = call!(self.client, get_tip_request, on)?;
        let answer = answer.get()?;
        answer.get_has_result().then(|| BlockRef::read(answer.get_result()?)).transpose()
    }

    /// Whether the node is in initial block download.
    pub async fn is_initial_block_download(&self, on: &Thread) -> Result<bool, CallError> {
        Ok(call!(self.client, is_initial_block_download_request, on)?.get()?.get_result())
    }

    /// Waits until the tip is another than `current`, at most `timeout`, and returns the tip. `None` is the node's
    /// word that it is shutting down.
    pub async fn wait_tip_changed(
        &self,
        on: &Thread,
        current: Hash,
        timeout: Duration,
    ) -> Result<Option<BlockRef>, CallError> {
        let mut milliseconds = timeout.as_secs_f64() * 1000.0;
        if !self.timeout_has_default {
            // Undo the exclusive or with the default that our schema brings about.
            milliseconds = f64::from_bits(milliseconds.to_bits() ^ MAX_DOUBLE.to_bits());
        }
        let answer = call!(self.client, wait_tip_changed_request, on, |params| {
            params.set_current_tip(&current.0);
            params.set_timeout(milliseconds)
        })?;
        let answer = answer.get()?;
        answer.has_result().then(|| BlockRef::read(answer.get_result()?)).transpose()
    }
}
