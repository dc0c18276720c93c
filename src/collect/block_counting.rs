//! Which blocks are counted when the tip changes: decided from what is known, without a call.

use crate::ipc::BlockRef;

/// What the tip of an earlier connection means to this one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reconnected {
    /// The first tip of this connection is not known yet.
    Now,
    /// The node came back at a lower height: after a crash it goes back to its last flush and connects the same blocks
    /// again, which is no reorganization. Until it is as high as before nothing is counted.
    RolledBack,
    /// The blocks that came between the connections are counted.
    CaughtUp,
}

/// Whether headers can be asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Headers {
    /// The node has no JSON-RPC.
    Never,
    /// When JSON-RPC over HTTP can be used.
    Later,
    Now,
}

/// What is known when the tip changes.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    pub reconnected: Reconnected,
    /// Notifications count the blocks of this connection.
    pub notified: bool,
    pub headers: Headers,
    /// The answer to [`Action::CheckRestart`] is in `reconnected`.
    pub restart_checked: bool,
}

/// What to do to count the blocks up to the tip.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// There are none to count.
    Advance,
    /// They cannot be counted. Only the height is shown.
    ShowHeight,
    /// They are counted when headers can be asked for. The height is shown.
    Wait,
    /// Find out whether the node was restarted, and decide again.
    CheckRestart,
    /// Check that the node knows this tip, up to which blocks are counted: then it was rolled back.
    CheckKnown(BlockRef),
    /// The node was rolled back, and is not as high as before.
    StayRolledBack,
    /// Count the blocks from this tip on.
    Count(BlockRef),
}

/// `counted` is the tip up to which blocks are counted, over all connections.
pub fn next_action(counted: Option<BlockRef>, tip: BlockRef, facts: &Facts) -> Action {
    let Facts { reconnected, notified, headers, restart_checked } = *facts;
    let Some(old) = counted.filter(|old| old.hash != tip.hash) else { return Action::Advance };
    if notified && (reconnected == Reconnected::CaughtUp || headers != Headers::Now) {
        return Action::Advance;
    }
    match (headers, reconnected) {
        (Headers::Never, _) => Action::ShowHeight,
        (Headers::Later, _) => Action::Wait,
        _ if tip.height >= old.height => Action::Count(old),
        (_, Reconnected::Now) => Action::CheckKnown(old),
        (_, Reconnected::RolledBack) => Action::StayRolledBack,
        (_, Reconnected::CaughtUp) if !restart_checked => Action::CheckRestart,
        (_, Reconnected::CaughtUp) => Action::Count(old),
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
    fn blocks_are_counted_once_over_reconnects_rollbacks_and_transports() {
        use Action::{Advance, CheckKnown, CheckRestart, Count, ShowHeight, StayRolledBack, Wait};
        use Reconnected::{CaughtUp, Now, RolledBack};
        let (old, higher, beside, lower) = (block(1, 100), block(2, 103), block(3, 100), block(4, 90));
        let from = Some(old);
        let (polled, notified) = (false, true);
        for (counted, tip, notified, headers, reconnected, expected) in [
            // The first tip of all, and the same tip again.
            (None, higher, polled, Headers::Now, Now, Advance),
            (from, old, polled, Headers::Now, Now, Advance),
            (from, old, polled, Headers::Later, CaughtUp, Advance),
            // Without notifications each change is counted by headers.
            (from, higher, polled, Headers::Now, Now, Count(old)),
            (from, higher, polled, Headers::Now, CaughtUp, Count(old)),
            (from, beside, polled, Headers::Now, CaughtUp, Count(old)),
            (from, higher, polled, Headers::Now, RolledBack, Count(old)),
            (from, beside, polled, Headers::Now, RolledBack, Count(old)),
            // A lower tip is a rollback after a reconnect, else a reorganization, unless the node was restarted.
            (from, lower, polled, Headers::Now, Now, CheckKnown(old)),
            (from, lower, polled, Headers::Now, RolledBack, StayRolledBack),
            (from, lower, polled, Headers::Now, CaughtUp, CheckRestart),
            // Without headers.
            (from, higher, polled, Headers::Never, Now, ShowHeight),
            (from, lower, polled, Headers::Never, CaughtUp, ShowHeight),
            (from, higher, polled, Headers::Later, Now, Wait),
            (from, lower, polled, Headers::Later, RolledBack, Wait),
            // Notifications count what comes after the first tip of a connection.
            (from, higher, notified, Headers::Now, Now, Count(old)),
            (from, lower, notified, Headers::Now, Now, CheckKnown(old)),
            (from, higher, notified, Headers::Now, CaughtUp, Advance),
            (from, lower, notified, Headers::Now, CaughtUp, Advance),
            (from, higher, notified, Headers::Never, Now, Advance),
            (from, higher, notified, Headers::Later, Now, Advance),
        ] {
            let facts = Facts { reconnected, notified, headers, restart_checked: false };
            assert_eq!(next_action(counted, tip, &facts), expected, "{counted:?} {tip:?} {facts:?}");
        }
        let facts =
            Facts { reconnected: CaughtUp, notified: false, headers: Headers::Now, restart_checked: true };
        assert_eq!(next_action(from, lower, &facts), Count(old), "a reorganization");
    }
}
