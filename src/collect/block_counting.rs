//! Decides which blocks are counted when the tip changes. Makes no calls.

use crate::ipc::BlockRef;

/// Progress of a connection in counting the blocks since the last counted tip of an earlier connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ReconnectState {
    /// The first tip of this connection is not processed yet.
    FirstTip,
    /// The node has returned with a lower height. After a crash it goes back to its last flush and connects the same blocks again,
    /// which is not a reorganization. Nothing is counted until it has reached the earlier height.
    RolledBack,
    /// The blocks that were connected between the two connections are counted.
    CaughtUp,
}

/// Whether headers can be requested from the node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HeaderAccess {
    /// The node has no JSON-RPC.
    Unavailable,
    /// They can be requested once JSON-RPC over HTTP is usable.
    NotYet,
    /// They can be requested now.
    Available,
}

/// The state of the connection on which the decision of [`next_action`] depends.
#[derive(Clone, Copy, Debug)]
pub struct CountingConditions {
    pub reconnected: ReconnectState,
    /// Whether notifications count the blocks of this connection.
    pub notified: bool,
    pub headers: HeaderAccess,
    /// Whether [`CountingAction::CheckRestart`] was done; its result is in `reconnected`.
    pub restart_checked: bool,
}

/// The next step in counting the blocks up to a new tip.
#[derive(Debug, PartialEq)]
pub enum CountingAction {
    /// There is nothing to count here. The new tip becomes the last counted tip.
    Advance,
    /// The blocks cannot be counted. Only the height is exported.
    ShowHeight,
    /// The blocks are counted later, when headers can be requested. The height is exported now.
    Wait,
    /// Check whether the node was restarted, and decide again.
    CheckRestart,
    /// Check whether the node has this block, the last counted tip. If it has, the node was rolled back.
    CheckKnown(BlockRef),
    /// The node was rolled back, and has not reached its earlier height.
    StayRolledBack,
    /// Count the blocks from this tip to the new one.
    Count(BlockRef),
}

/// Decides the next step for the new tip `tip`. `counted` is the last counted tip, over all connections.
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
            // The first tip ever, and the same tip again.
            (None, higher, polled, HeaderAccess::Available, FirstTip, Advance),
            (from, old, polled, HeaderAccess::Available, FirstTip, Advance),
            (from, old, polled, HeaderAccess::NotYet, CaughtUp, Advance),
            // Without notifications each change is counted by headers.
            (from, higher, polled, HeaderAccess::Available, FirstTip, Count(old)),
            (from, higher, polled, HeaderAccess::Available, CaughtUp, Count(old)),
            (from, beside, polled, HeaderAccess::Available, CaughtUp, Count(old)),
            (from, higher, polled, HeaderAccess::Available, RolledBack, Count(old)),
            (from, beside, polled, HeaderAccess::Available, RolledBack, Count(old)),
            // A lower tip is a rollback after a reconnect, else a reorganization, unless the node was restarted.
            (from, lower, polled, HeaderAccess::Available, FirstTip, CheckKnown(old)),
            (from, lower, polled, HeaderAccess::Available, RolledBack, StayRolledBack),
            (from, lower, polled, HeaderAccess::Available, CaughtUp, CheckRestart),
            // Headers cannot be requested.
            (from, higher, polled, HeaderAccess::Unavailable, FirstTip, ShowHeight),
            (from, lower, polled, HeaderAccess::Unavailable, CaughtUp, ShowHeight),
            (from, higher, polled, HeaderAccess::NotYet, FirstTip, Wait),
            (from, lower, polled, HeaderAccess::NotYet, RolledBack, Wait),
            // Notifications count the blocks after the first tip of a connection.
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
