//! How many blocks lie between two tips, by walking headers over JSON-RPC.

use serde_json::{Value, json};

use crate::ipc::{BlockRef, CallError, Hash, JsonRpc};

/// Whether a retry is useless: the node does not know the block, because it is on another chain or its block index was rebuilt.
/// All other failures pass, malformed responses of a proxy included.
pub fn is_final(error: &CallError) -> bool {
    /// `RPC_INVALID_ADDRESS_OR_KEY` in Core's rpc/protocol.h.
    const BLOCK_NOT_FOUND: i64 = -5;
    matches!(error, CallError::JsonRpc { code: BLOCK_NOT_FOUND, .. })
}

/// An error if the node does not know the block.
pub async fn is_known(json_rpc: &JsonRpc, old: BlockRef) -> Result<(), CallError> {
    Header::read(json_rpc.call("getblockheader", json!([old.hash.to_string()])).await?).map(drop)
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
        true => Some(hash_of(json_rpc.call("getblockhash", json!([old.height])).await?)?),
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
        let previous = match &header["previousblockhash"] {
            // The genesis block.
            Value::Null if header["height"] == 0 => String::new(),
            previous => hash_of(previous.clone())?,
        };
        match header["confirmations"].as_i64() {
            Some(confirmations) => Ok(Header { previous, active: confirmations >= 0 }),
            None => Err(CallError::Malformed("a header without confirmations".into())),
        }
    }
}

/// A block hash as the node prints it.
fn hash_of(value: Value) -> Result<String, CallError> {
    let hash: Hash = value.as_str().unwrap_or_default().parse()?;
    Ok(hash.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unknown_block_is_final() {
        let of_node = |code| CallError::JsonRpc { code, message: "Block not found".into() };
        assert!(is_final(&of_node(-5)));
        for error in [of_node(-32601), of_node(-28), of_node(-1), CallError::Malformed("null".into())] {
            assert!(!is_final(&error), "{error}");
        }
    }

    #[test]
    fn incomplete_headers_are_malformed() {
        let hash = "07".repeat(32);
        let header =
            Header::read(json!({"height": 7, "confirmations": -1, "previousblockhash": hash})).unwrap();
        assert_eq!((header.previous, header.active), (hash.clone(), false));
        assert!(Header::read(json!({"height": 0, "confirmations": 1})).is_ok(), "the genesis block");
        for header in [
            json!(null),
            json!({"height": 7, "previousblockhash": hash}),
            json!({"height": 7, "confirmations": 1}),
            json!({"height": 7, "confirmations": 1, "previousblockhash": "07"}),
        ] {
            assert!(matches!(Header::read(header), Err(CallError::Malformed(_))));
        }
    }
}
