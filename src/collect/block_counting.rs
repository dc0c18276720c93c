//! Decides which blocks the exporter adds to its counters of connected and disconnected blocks when the node's tip
//! changes. `tip` makes the calls to the node that the decision requires.

use crate::ipc::BlockRef;

/// Progress after a new connection to the node: whether the exporter has counted the blocks that the node connected
/// between the previous and this connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ReconnectState {
    /// The first tip that the node returned on this connection is not processed yet.
    FirstTip,
    /// The node was restarted and its height is lower than before. After a crash a node starts from its last flushed
    /// state and connects the same blocks again, which is not a reorganization. No blocks are counted until the node
    /// has reached the earlier height.
    RolledBack,
    /// All blocks that the node connected before the exporter opened this connection are counted, or cannot be counted.
    CaughtUp,
}

/// Whether block headers can be requested from the node over JSON-RPC.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HeaderAccess {
    /// JSON-RPC is available neither over IPC nor over HTTP.
    Unavailable,
    /// Headers cannot be requested yet, because JSON-RPC over HTTP is not usable at the moment.
    NotYet,
    /// Headers can be requested now.
    Available,
}

/// The conditions from which [`next_action`] decides, together with the last counted tip and the new tip, how the
/// blocks between these tips are counted.
#[derive(Clone, Copy, Debug)]
pub struct CountingConditions {
    pub reconnected: ReconnectState,
    /// Whether the node's `blockConnected` notifications count the blocks on this connection.
    pub notified: bool,
    pub headers: HeaderAccess,
    /// Whether the restart check ([`CountingAction::CheckRestart`]) was made for the new tip. `reconnected` has the
    /// result of the check.
    pub restart_checked: bool,
}

/// The next step in counting the blocks up to a new tip.
#[derive(Debug, PartialEq)]
pub enum CountingAction {
    /// Make the new tip the last counted tip without counting blocks by their headers, because there is no block to
    /// count, or because the blocks are counted from the node's notifications.
    Advance,
    /// Export only the height of the new tip, because headers cannot be requested and the blocks therefore cannot be
    /// counted.
    ShowHeight,
    /// Export the height of the new tip now, and count the blocks later, when headers can be requested.
    Wait,
    /// Check whether the node was restarted, then call [`next_action`] again.
    CheckRestart,
    /// Check whether the node has this block, which is the last counted tip. If the node has the block, the lower
    /// height of the new tip shows that the node was rolled back.
    CheckKnown(BlockRef),
    /// Count no blocks, because the node was rolled back and has not reached its earlier height yet.
    StayRolledBack,
    /// Count the blocks between this block, which is the last counted tip, and the new tip.
    Count(BlockRef),
}

/// Decides the next step for the new tip `tip`. `counted` is the last counted tip: the exporter has processed the
/// blocks up to this block, on this or an earlier connection.
pub fn next_action(
    counted: Option<BlockRef>,
    tip: BlockRef,
    conditions: &CountingConditions,
) -> CountingAction {
    let CountingConditions { reconnected, notified, headers, restart_checked } = *conditions;
    let Some(old) = counted.filter(|old| old.hash != tip.hash) else { return CountingAction::Advance };
    if notified && (reconnected == ReconnectState::CaughtUp || headers != HeaderAccess::Available) {
        return CountingAction::Advance;
    }
    match (headers, reconnected) {
        (HeaderAccess::Unavailable, _) => CountingAction::ShowHeight,
        (HeaderAccess::NotYet, _) => CountingAction::Wait,
        _ if tip.height >= old.height => CountingAction::Count(old),
        (_, ReconnectState::FirstTip) => CountingAction::CheckKnown(old),
        (_, ReconnectState::RolledBack) => CountingAction::StayRolledBack,
        (_, ReconnectState::CaughtUp) if !restart_checked => CountingAction::CheckRestart,
        (_, ReconnectState::CaughtUp) => CountingAction::Count(old),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::BlockHash;

    fn block(name: u8, height: i32) -> BlockRef {
        BlockRef { hash: BlockHash([name; 32]), height }
    }

    #[test]
    fn blocks_are_counted_once_over_reconnects_and_rollbacks() {
        use CountingAction::{Advance, CheckKnown, CheckRestart, Count, ShowHeight, StayRolledBack, Wait};
        use ReconnectState::{CaughtUp, FirstTip, RolledBack};
        let (old, higher, beside, lower) = (block(1, 100), block(2, 103), block(3, 100), block(4, 90));
        let from = Some(old);
        let (polled, notified) = (false, true);
        for (counted, tip, notified, headers, reconnected, expected) in [
            // No blocks to count: the exporter's first tip, and a tip that equals the last counted tip.
            (None, higher, polled, HeaderAccess::Available, FirstTip, Advance),
            (from, old, polled, HeaderAccess::Available, FirstTip, Advance),
            (from, old, polled, HeaderAccess::NotYet, CaughtUp, Advance),
            // Without notifications, the blocks of each tip change are counted by their headers.
            (from, higher, polled, HeaderAccess::Available, FirstTip, Count(old)),
            (from, higher, polled, HeaderAccess::Available, CaughtUp, Count(old)),
            (from, beside, polled, HeaderAccess::Available, CaughtUp, Count(old)),
            (from, higher, polled, HeaderAccess::Available, RolledBack, Count(old)),
            (from, beside, polled, HeaderAccess::Available, RolledBack, Count(old)),
            // A lower tip is a rollback if it is the first tip of a connection. A lower tip later on a connection is a
            // reorganization, unless the node was restarted.
            (from, lower, polled, HeaderAccess::Available, FirstTip, CheckKnown(old)),
            (from, lower, polled, HeaderAccess::Available, RolledBack, StayRolledBack),
            (from, lower, polled, HeaderAccess::Available, CaughtUp, CheckRestart),
            // Without access to headers, blocks are not counted (`Unavailable`), or counted later (`NotYet`).
            (from, higher, polled, HeaderAccess::Unavailable, FirstTip, ShowHeight),
            (from, lower, polled, HeaderAccess::Unavailable, CaughtUp, ShowHeight),
            (from, higher, polled, HeaderAccess::NotYet, FirstTip, Wait),
            (from, lower, polled, HeaderAccess::NotYet, RolledBack, Wait),
            // With notifications, headers are used only for the first tip of a connection.
            (from, higher, notified, HeaderAccess::Available, FirstTip, Count(old)),
            (from, lower, notified, HeaderAccess::Available, FirstTip, CheckKnown(old)),
            (from, higher, notified, HeaderAccess::Available, CaughtUp, Advance),
            (from, lower, notified, HeaderAccess::Available, CaughtUp, Advance),
            (from, higher, notified, HeaderAccess::Unavailable, FirstTip, Advance),
            (from, higher, notified, HeaderAccess::NotYet, FirstTip, Advance),
        ] {
            let conditions = CountingConditions { reconnected, notified, headers, restart_checked: false };
            assert_eq!(
                next_action(counted, tip, &conditions),
                expected,
                "{counted:?} {tip:?} {conditions:?}"
            );
        }
        let conditions = CountingConditions {
            reconnected: CaughtUp,
            notified: false,
            headers: HeaderAccess::Available,
            restart_checked: true,
        };
        assert_eq!(next_action(from, lower, &conditions), Count(old), "a reorganization");
    }
}
