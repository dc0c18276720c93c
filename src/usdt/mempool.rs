//! The mempool: provider `mempool`.

use anyhow::Result;
use libbpf_rs::MapHandle;

use super::maps::{self, skeleton};
use super::subject::{Loaded, Tracepoints, count, counts_by, families};
use crate::metrics::{REMOVAL_REASONS, Sample};

skeleton!("mempool", counts: [counts], plain: []);

pub(super) struct Mempool {
    counts: MapHandle,
    rejected: MapHandle,
}

pub(super) struct Totals {
    counts: bpf::types::counts,
    /// (reason, count), sorted by reason.
    rejected: Vec<(String, u64)>,
}

impl Tracepoints for Mempool {
    type Builder = bpf::MempoolSkelBuilder;
    type Totals = Totals;

    families! { "mempool", bpf::MempoolProgs<'static>;
        Counter "bitcoin_mempool_tx_added_total" [] "Transactions added to the mempool",
            [added], |t| count(t.counts.added);
        Counter "bitcoin_mempool_added_fees_satoshis_total" [] "Fees of the transactions added to the mempool",
            [added], |t| count(t.counts.added_fees);
        Counter "bitcoin_mempool_added_vbytes_total" [] "Virtual sizes of the transactions added to the mempool",
            [added], |t| count(t.counts.added_vbytes);
        Counter "bitcoin_mempool_tx_removed_total" ["reason"] "Transactions removed from the mempool, by reason",
            [removed], |t| removed(&t.counts);
        Counter "bitcoin_mempool_tx_replaced_total" [] "Transactions replaced by others that pay more",
            [replaced], |t| count(t.counts.replaced);
        Counter "bitcoin_mempool_tx_rejected_total" ["reason"]
            "Transactions not accepted to the mempool, by reason; from the 65th reason on `other`",
            [rejected], |t| rejected(t);
    }

    fn new(programs: &Loaded<Self>) -> Result<Self> {
        maps::number_names(&programs.maps.reasons_map, REMOVAL_REASONS)?;
        Ok(Mempool {
            counts: MapHandle::try_from(&programs.maps.counts_map)?,
            rejected: MapHandle::try_from(&programs.maps.rejected_map)?,
        })
    }

    fn read(&self) -> Totals {
        let mut rejected: Vec<_> =
            maps::entries(&self.rejected).map(|(reason, count)| (maps::text(&reason), count)).collect();
        rejected.sort();
        Totals { counts: maps::sum(&self.counts).unwrap_or_default(), rejected }
    }
}

fn removed(counts: &bpf::types::counts) -> Vec<Sample> {
    counts_by(maps::by_name(REMOVAL_REASONS, &counts.removed).map(|(reason, &count)| (reason, count)))
}

fn rejected(totals: &Totals) -> Vec<Sample> {
    let other = Some(("other", totals.counts.rejected_other)).filter(|(_, count)| *count > 0);
    counts_by(totals.rejected.iter().map(|(reason, count)| (reason.as_str(), *count)).chain(other))
}
