//! The mempool: provider `mempool`.

use anyhow::Result;
use libbpf_rs::MapHandle;

use super::maps::{self, Tallied, Tallies, skeleton};
use super::subject::{Loaded, Tracepoints, count, counts_by, families};
use crate::metrics::{REMOVAL_REASONS, Sample};

skeleton!("mempool", counts: [counts], plain: []);

pub(super) struct Mempool {
    counts: MapHandle,
    rejected: Tallies<Rejection>,
}

/// A reason, NUL-terminated: `REJECTION` of the BPF file.
type Rejection = [u8; 128];
/// Reasons that are shown at a time.
const REASONS: usize = 64;

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
            "Transactions not accepted to the mempool, by reason; `testmempoolaccept` of one transaction counts, too. Of more than 64 \
             reasons, the least recent are added to `other`",
            [rejected], |t| rejected(t);
    }

    fn new(programs: &Loaded<Self>) -> Result<Self> {
        maps::number_names(&programs.maps.reasons_map, REMOVAL_REASONS)?;
        Ok(Mempool {
            counts: MapHandle::try_from(&programs.maps.counts_map)?,
            rejected: Tallies::new(MapHandle::try_from(&programs.maps.rejected_map)?, REASONS, |_| 0),
        })
    }

    fn read(&self) -> Totals {
        let Tallied { present, removed } = self.rejected.read();
        let mut rejected: Vec<_> =
            present.into_iter().map(|(reason, count)| (maps::text(&reason), count)).collect();
        rejected.sort();
        let mut counts: bpf::types::counts = maps::sum(&self.counts).unwrap_or_default();
        counts.rejected_other += removed.values().sum::<u64>();
        Totals { counts, rejected }
    }
}

fn removed(counts: &bpf::types::counts) -> Vec<Sample> {
    counts_by(maps::by_name(REMOVAL_REASONS, &counts.removed).map(|(reason, &count)| (reason, count)))
}

fn rejected(totals: &Totals) -> Vec<Sample> {
    let other = Some(("other", totals.counts.rejected_other)).filter(|(_, count)| *count > 0);
    counts_by(totals.rejected.iter().map(|(reason, count)| (reason.as_str(), *count)).chain(other))
}
