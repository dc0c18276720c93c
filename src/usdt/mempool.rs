//! Tracepoints of the mempool, provider `mempool`.

use anyhow::Result;

use super::bpf::mempool::types;
use super::group::GroupPrograms;
use super::maps::{self, Maps, Pod};
use crate::bitcoin_core::REMOVAL_REASONS;
use crate::metrics::{Family, counter};

// SAFETY: the struct consists of u64 only; see mempool.bpf.c.
unsafe impl Pod for types::counts {}

/// The exporter's code for the tracepoint group `mempool`: transactions that the mempool adds, removes, replaces and
/// rejects.
pub(super) struct MempoolGroup;

/// The node's reason for rejecting a transaction, NUL-terminated. The array has the size `REJECTION` of mempool.bpf.c.
type RejectionReason = [u8; 128];

const ADDED: &[&str] = &["mempool:added"];
const REPLACED: &[&str] = &["mempool:replaced"];

impl GroupPrograms for MempoolGroup {
    fn fill_maps(&self, maps: &Maps) -> Result<()> {
        maps.number_names("reasons_map", REMOVAL_REASONS)
    }

    #[rustfmt::skip]
    fn families(&self, maps: &Maps) -> Vec<Family> {
        let counts: types::counts = maps.sum("counts_map");
        let removed = maps::by_name(REMOVAL_REASONS, &counts.removed).map(|(reason, count)| ([reason], *count));
        vec![
            counter("bitcoin_mempool_tx_added_total", "Transactions added to the mempool", ADDED).value(counts.added),
            counter("bitcoin_mempool_added_fees_satoshis_total", "Total fees of the transactions added to the mempool, in satoshis", ADDED)
                .value(counts.added_fees),
            counter("bitcoin_mempool_added_vbytes_total", "Total virtual size of the transactions added to the mempool", ADDED)
                .value(counts.added_vbytes),
            counter("bitcoin_mempool_tx_removed_total", "Transactions removed from the mempool, by reason", &["mempool:removed"])
                .by(&["reason"]).samples(removed),
            counter("bitcoin_mempool_tx_replaced_total", "Transactions replaced by transactions with higher fees", REPLACED)
                .value(counts.replaced),
            counter("bitcoin_mempool_replaced_vbytes_total", "Total virtual size of the replaced transactions", REPLACED)
                .value(counts.replaced_vbytes),
            counter("bitcoin_mempool_replaced_fees_satoshis_total", "Total fees of the replaced transactions, in satoshis", REPLACED)
                .value(counts.replaced_fees),
            counter("bitcoin_mempool_tx_rejected_total",
                "Transactions rejected by the mempool, by reason, including rejections by calls of `testmempoolaccept` \
                 with one transaction. If there are more than 64 reasons, the counts of the least recent reasons are added to `other`", &["mempool:rejected"])
                .by(&["reason"]).samples(maps.tallies_by_label("rejected_map", counts.rejected_other, |reason: &RejectionReason| maps::text(reason))),
        ]
    }
}
