//! The report of a connected block: facts about the block and its arrival at the node. The exporter writes the report
//! to the block log as a row. The USDT exporter also logs the report and shows it on its status page.

use rusqlite::ToSql;
use serde::Serialize;
use tracing::info;

use crate::sys::ClockError;

/// Generates the struct `BlockReport`, its log line, and its columns in the block log, from one list of fields.
macro_rules! block_report {
    ($($field:ident: $type:ty,)*) => {
        /// The report of one block that the node has connected to its active chain: the block's contents, and the
        /// stages of its arrival at the node. `docs/journal.md` (names in upper case) and `docs/usdt.md` describe the
        /// fields. The times of stages (`header_us`, `compact_us`, `asked_us`, `answered_us`, `complete_us`,
        /// `connected_us`) are measured from the first announcement of the block. The time of a stage that did not
        /// occur is `None`. If no peer announced the block, the fields from `announced_by` to `flush_us` are `None`.
        /// The IPC exporter, which cannot see the arrival, sets only the time, the height, the hash, the resolution and
        /// the clock's error.
        #[derive(Clone, Debug, Default, PartialEq, Serialize)]
        #[allow(missing_docs, reason = "in docs/journal.md")]
        pub struct BlockReport {
            /// Time at which the node had connected the block, in Unix seconds. In reports of the IPC exporter, the
            /// time at which this exporter learned of the new tip. The log line omits this field, because every log
            /// line has a timestamp.
            pub time: f64,
            $(pub $field: $type,)*
        }

        impl BlockReport {
            /// Logs the report as one line with all fields except `time`.
            pub fn log(&self) {
                info!($($field = self.$field,)* "block connected");
            }

            /// Name and value of each column of the report's row in the block log.
            pub fn columns(&self) -> Vec<(&'static str, &dyn ToSql)> {
                vec![("time", &self.time as &dyn ToSql), $((stringify!($field), &self.$field)),*]
            }
        }
    };
}

// CONTRIBUTING.md lists the files to change for a new field of the report.
block_report! {
    block_height: i64,
    block_hash: String,
    transactions: Option<i64>,
    inputs: Option<i64>,
    sigops: Option<i64>,
    duration_us: Option<i64>,
    arrival: Option<&'static str>,
    announced_by: Option<&'static str>,
    announced_connection: Option<&'static str>,
    announced_peer: Option<i64>,
    announcements: Option<i64>,
    header_age_ms: Option<i64>,
    header_us: Option<i64>,
    compact_blocks: Option<i64>,
    compact_us: Option<i64>,
    short_ids: Option<i64>,
    prefilled: Option<i64>,
    asked_peers: Option<i64>,
    asked_us: Option<i64>,
    answered_us: Option<i64>,
    from_mempool: Option<i64>,
    from_extra_pool: Option<i64>,
    requested: Option<i64>,
    requested_bytes: Option<i64>,
    complete_us: Option<i64>,
    connected_us: Option<i64>,
    flush_us: Option<i64>,
    fibre_us: Option<i64>,
    race_winner: Option<&'static str>,
    race_udp_ns: Option<i64>,
    race_compact_ns: Option<i64>,
    resolution_us: Option<i64>,
    clock_synchronized: Option<bool>,
    clock_max_error_us: Option<i64>,
    clock_estimated_error_us: Option<i64>,
}

impl BlockReport {
    /// Sets the fields for the error of the machine's wall clock (`clock_…`). If the clock was set since the first
    /// announcement of the block (`was_set`), the report states that the clock was not synchronized.
    pub fn set_clock_error(&mut self, error: Option<ClockError>, was_set: bool) {
        self.clock_synchronized = error.map(|error| error.is_synchronized && !was_set);
        self.clock_max_error_us = error.map(|error| error.max_us);
        self.clock_estimated_error_us = error.map(|error| error.estimated_us);
    }
}
