//! A block's line in the log, each stage a field of its own.

use tracing::info;

use super::journey::Journey;

pub fn write(journey: &Journey) {
    info!(
        block_height = journey.block_height,
        block_hash = journey.block_hash,
        transactions = journey.transactions,
        inputs = journey.inputs,
        sigops = journey.sigops,
        duration_us = journey.duration_us,
        arrival = journey.arrival,
        announced_by = journey.announced_by,
        announced_peer = journey.announced_peer,
        announcements = journey.announcements,
        header_age_ms = journey.header_age_ms,
        compact_blocks = journey.compact_blocks,
        compact_us = journey.compact_us,
        short_ids = journey.short_ids,
        prefilled = journey.prefilled,
        asked_peers = journey.asked_peers,
        asked_us = journey.asked_us,
        answered_us = journey.answered_us,
        from_mempool = journey.from_mempool,
        from_extra_pool = journey.from_extra_pool,
        requested = journey.requested,
        requested_bytes = journey.requested_bytes,
        complete_us = journey.complete_us,
        connected_us = journey.connected_us,
        flush_us = journey.flush_us,
        race_winner = journey.race_winner,
        "block connected"
    );
}
