//! Counts the blocks that a node disconnected and connected when its tip changed. The functions request the headers of
//! these blocks over JSON-RPC, and follow the parent hashes in the headers.

use serde_json::{Value, json};

use crate::ipc::{BlockHash, BlockRef};
use crate::json_rpc::{CallError, JsonRpc};

/// Whether this error of getblockheader is permanent, because the error shows that the node does not have the requested
/// block. A node does not have a block that it had before if it uses another chain now, or if its block index was
/// rebuilt. All other errors may be temporary, including malformed responses of an HTTP proxy in front of the node.
pub fn is_final(error: &CallError) -> bool {
    /// `RPC_INVALID_ADDRESS_OR_KEY` in Core's rpc/protocol.h.
    const BLOCK_NOT_FOUND: i64 = -5;
    matches!(error, CallError::JsonRpc { code: BLOCK_NOT_FOUND, .. })
}

/// Checks that the node has the block `old`.
///
/// # Errors
/// The node does not have the block, or the call failed.
pub async fn is_known(json_rpc: &JsonRpc, old: BlockRef) -> Result<(), CallError> {
    Header::read(json_rpc.call("getblockheader", json!([old.hash.to_string()])).await?).map(drop)
}

/// The numbers of blocks that a node disconnects and connects when it changes from one tip to another.
#[derive(Debug, PartialEq)]
pub struct ChainDiff {
    pub disconnected: u64,
    pub connected: u64,
}

/// Maximum height difference between the tips for which all headers between them are requested. For a larger
/// difference, one request for the hash of the active chain's block at the old tip's height is cheaper than a request
/// for each header.
const MAX_STEPS: i32 = 16;

/// Counts the blocks between two tips, from each of the two tips back to their last common block. The result is exact
/// even if the node's tip changes during the calls, because headers never change.
///
/// # Errors
/// A call failed, or the node returned inconsistent headers.
pub async fn diff_tips(json_rpc: &JsonRpc, old: BlockRef, new: BlockRef) -> Result<ChainDiff, CallError> {
    let header = async |hash: &str| Header::read(json_rpc.call("getblockheader", json!([hash])).await?);
    // If the new tip is far above the old tip, request the active chain's block at the old tip's height, and then the
    // new tip's header. If the header shows that the new tip is in the active chain, the requested block is an
    // ancestor of the new tip.
    let ahead = new.height.saturating_sub(old.height);
    let at_old_height = if ahead > MAX_STEPS {
        Some(parse_hash(json_rpc.call("getblockhash", json!([old.height])).await?)?)
    } else {
        None
    };
    let tip = header(&new.hash.to_string()).await?;
    // In the usual case, the new tip is a child of the old tip, and no further call is necessary.
    if tip.previous == old.hash.to_string() {
        return Ok(ChainDiff { disconnected: 0, connected: 1 });
    }
    // Go back from the higher tip to the height of the lower tip, then go back on both chains until they have the same
    // block.
    let (mut ours, mut our_height) = (old.hash.to_string(), old.height);
    let (mut theirs, mut their_height) = (new.hash.to_string(), new.height);
    match at_old_height {
        Some(ancestor) if tip.active => (theirs, their_height) = (ancestor, our_height),
        _ if their_height > our_height => (theirs, their_height) = (tip.previous, their_height - 1),
        _ => {}
    }
    while ours != theirs {
        let (our, their) = (our_height, their_height);
        if our == their && our <= 0 {
            return Err(CallError::Malformed("the two tips have no common block".into()));
        }
        if our >= their {
            ours = header(&ours).await?.previous;
            our_height -= 1;
        }
        if their >= our {
            theirs = header(&theirs).await?.previous;
            their_height -= 1;
        }
    }
    let distance = |from: i32, to: i32| u64::try_from(from.saturating_sub(to)).unwrap_or(0);
    let disconnected = distance(old.height, our_height);
    Ok(ChainDiff { disconnected, connected: distance(new.height, their_height) })
}

/// A block header from getblockheader: the hash of the parent block, and whether the block is in the active chain.
struct Header {
    previous: String,
    active: bool,
}

impl Header {
    fn read(header: Value) -> Result<Self, CallError> {
        let previous = match &header["previousblockhash"] {
            // The genesis block has no parent.
            Value::Null if header["height"] == 0 => String::new(),
            previous => parse_hash(previous.clone())?,
        };
        match header["confirmations"].as_i64() {
            Some(confirmations) => Ok(Header { previous, active: confirmations >= 0 }),
            None => Err(CallError::Malformed("the header has no confirmations".into())),
        }
    }
}

/// Parses a block hash, and returns it as 64 lower-case hex digits.
fn parse_hash(value: Value) -> Result<String, CallError> {
    let hash: BlockHash = value.as_str().unwrap_or_default().parse()?;
    Ok(hash.to_string())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use futures::future::LocalBoxFuture;

    use super::*;
    use crate::json_rpc::Transport;

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

    /// Two chains of blocks, as a fake JSON-RPC transport that returns their headers. The active chain is `a0` to
    /// `a40`; the branch `b` forks off after `a30` and ends with `b34`. The field of the struct records the names of
    /// the called methods.
    struct Chains(Rc<RefCell<Vec<String>>>);

    fn block(branch: char, height: i32) -> BlockRef {
        let mut hash = [0; 32];
        (hash[0], hash[1]) = (height as u8, branch as u8);
        BlockRef { hash: BlockHash(hash), height }
    }

    impl Transport for Chains {
        fn call<'a>(
            &'a self,
            method: &'static str,
            params: &'a Value,
        ) -> LocalBoxFuture<'a, Result<String, CallError>> {
            self.0.borrow_mut().push(method.to_string());
            let not_found = Err(CallError::JsonRpc { code: -5, message: "Block not found".into() });
            let answer = match (method, &params[0]) {
                ("getblockhash", height) => {
                    json!(block('a', height.as_i64().unwrap() as i32).hash.to_string())
                }
                (_, hash) => {
                    let BlockHash(hash) = hash.as_str().unwrap().parse().unwrap();
                    let (height, branch) = (i32::from(hash[0]), char::from(hash[1]));
                    if !matches!((branch, height), ('a', 0..=40) | ('b', 31..=34)) {
                        return Box::pin(async { not_found });
                    }
                    let previous =
                        block(if height == 31 { 'a' } else { branch }, height - 1).hash.to_string();
                    let confirmations = if branch == 'a' { 41 - height } else { -1 };
                    let mut header = json!({"height": height, "confirmations": confirmations});
                    if height > 0 {
                        header["previousblockhash"] = previous.into();
                    }
                    header
                }
            };
            Box::pin(async move { Ok(answer.to_string()) })
        }
    }

    /// Returns the result of `diff_tips`, and the number of JSON-RPC calls that it made.
    async fn diff(old: BlockRef, new: BlockRef) -> (Result<ChainDiff, CallError>, usize) {
        let calls = Rc::new(RefCell::new(Vec::new()));
        let json_rpc = JsonRpc::new(Chains(calls.clone()));
        let diff = diff_tips(&json_rpc, old, new).await;
        let calls = calls.borrow().len();
        (diff, calls)
    }

    #[tokio::test]
    async fn blocks_between_two_tips_are_found_with_few_calls() {
        let (a, b) = (|height| block('a', height), |height| block('b', height));
        for (old, new, disconnected, connected, max_calls) in [
            (a(39), a(40), 0, 1, 1),
            (a(36), a(40), 0, 4, 4),
            (a(20), a(40), 0, 20, 2), // a request by height replaces 20 headers
            (a(40), a(38), 2, 0, 3),
            (b(31), a(31), 1, 1, 3),
            (b(34), a(34), 4, 4, 9),
            (b(34), a(40), 4, 10, 15),
            (a(40), b(34), 10, 4, 15),
            (a(2), b(34), 0, 32, 34), // the new tip is far ahead, but no longer in the active chain
            (a(30), b(31), 0, 1, 1),
        ] {
            let (diff, calls) = diff(old, new).await;
            assert_eq!(diff.unwrap(), ChainDiff { disconnected, connected }, "{old:?} {new:?}");
            assert!(calls <= max_calls, "{old:?} {new:?}: {calls} calls");
        }
    }

    #[tokio::test]
    async fn unknown_tips_have_no_difference() {
        for (old, new) in [(block('x', 33), block('a', 34)), (block('a', 33), block('x', 34))] {
            let error = diff(old, new).await.0.unwrap_err();
            assert!(is_final(&error), "{error}");
        }
        // Two chains without a common block: their blocks differ even at height 0.
        let old = BlockRef { height: 0, ..block('a', 1) };
        let new = BlockRef { height: 0, ..block('a', 3) };
        assert!(matches!(diff(old, new).await.0, Err(CallError::Malformed(_))));
    }
}
