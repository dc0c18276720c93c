//! A block's line in the log, each stage a field of its own.

use tracing::info;

use super::block_report::BlockReport;

pub fn write(report: &BlockReport) {
    info!(
        block_height = report.block_height,
        block_hash = report.block_hash,
        transactions = report.transactions,
        inputs = report.inputs,
        sigops = report.sigops,
        duration_us = report.duration_us,
        arrival = report.arrival,
        announced_by = report.announced_by,
        announced_peer = report.announced_peer,
        announcements = report.announcements,
        header_age_ms = report.header_age_ms,
        compact_blocks = report.compact_blocks,
        compact_us = report.compact_us,
        short_ids = report.short_ids,
        prefilled = report.prefilled,
        asked_peers = report.asked_peers,
        asked_us = report.asked_us,
        answered_us = report.answered_us,
        from_mempool = report.from_mempool,
        from_extra_pool = report.from_extra_pool,
        requested = report.requested,
        requested_bytes = report.requested_bytes,
        complete_us = report.complete_us,
        connected_us = report.connected_us,
        flush_us = report.flush_us,
        race_winner = report.race_winner,
        "block connected"
    );
}
