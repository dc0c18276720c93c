//! How many blocks lie between two tips, by walking headers over JSON-RPC.

use serde_json::{Value, json};

use crate::ipc::BlockRef;
use crate::json_rpc::{CallError, JsonRpc};

/// Whether asking again is of no use: the node does not know the block (it is on another chain, or its block index was
/// built anew) or the method, or its answer is malformed.
pub fn is_final(error: &CallError) -> bool {
    const BLOCK_NOT_FOUND: i64 = -5;
    const METHOD_NOT_FOUND: i64 = -32601;
    matches!(
        error,
        CallError::JsonRpc { code: BLOCK_NOT_FOUND | METHOD_NOT_FOUND, .. } | CallError::Malformed(_)
    )
}

/// An error if the node does not know the block.
pub async fn is_known(json_rpc: &JsonRpc, old: BlockRef) -> Result<(), CallError> {
    json_rpc.call("getblockheader", json!([old.hash.to_string()])).await.map(drop)
}

/// The way from one tip to another.
#[derive(Debug, PartialEq)]
pub struct Walk {
    pub disconnected: u64,
    pub connected: u64,
}

/// Further ahead than this, asking the active chain by height is cheaper than walking.
const MAX_STEPS: i32 = 16;

/// Steps back from the old tip to the last block that the new one builds on. Headers never change, so the walk is
/// exact even while the chain moves on.
pub async fn walk(json_rpc: &JsonRpc, old: BlockRef, new: BlockRef) -> Result<Walk, CallError> {
    let header = async |hash: &str| Header::read(json_rpc.call("getblockheader", json!([hash])).await?);
    // Where the new tip is far ahead, the node knows its ancestor: the active chain's block at that height. It is asked
    // first: if the new tip is active after it was, then that block is an ancestor.
    let ahead = new.height.saturating_sub(old.height);
    let at_old_height = match ahead > MAX_STEPS {
        true => json_rpc.call("getblockhash", json!([old.height])).await?.as_str().map(str::to_string),
        false => None,
    };
    let tip = header(&new.hash.to_string()).await?;
    // The usual step, one block on top of another, needs one call.
    if tip.previous == old.hash.to_string() {
        return Ok(Walk { disconnected: 0, connected: 1 });
    }
    // The old chain back to the height of the new one and vice versa, then both together until they meet.
    let (mut ours, mut our_height) = (old.hash.to_string(), old.height);
    let (mut theirs, mut their_height) = (new.hash.to_string(), new.height);
    match at_old_height {
        Some(ancestor) if tip.active => (theirs, their_height) = (ancestor, our_height),
        _ if their_height > our_height => (theirs, their_height) = (tip.previous, their_height - 1),
        _ => {}
    }
    while their_height > our_height {
        theirs = header(&theirs).await?.previous;
        their_height -= 1;
    }
    while our_height > their_height {
        ours = header(&ours).await?.previous;
        our_height -= 1;
    }
    while ours != theirs {
        if our_height <= 0 {
            return Err(CallError::Malformed("two chains without a common block".into()));
        }
        ours = header(&ours).await?.previous;
        theirs = header(&theirs).await?.previous;
        our_height -= 1;
    }
    let distance = |from: i32| u64::try_from(from.saturating_sub(our_height)).unwrap_or(0);
    Ok(Walk { disconnected: distance(old.height), connected: distance(new.height) })
}

struct Header {
    previous: String,
    active: bool,
}

impl Header {
    fn read(header: Value) -> Result<Self, CallError> {
        // The genesis block has no previous one.
        let previous = header["previousblockhash"].as_str().unwrap_or_default().to_string();
        match header["confirmations"].as_i64() {
            Some(confirmations) => Ok(Header { previous, active: confirmations >= 0 }),
            None => Err(CallError::Malformed("a header without confirmations".into())),
        }
    }
}
