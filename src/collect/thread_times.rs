//! CPU time of the node's process by group of threads, for example all threads of the node's HTTP server.

use std::collections::HashMap;

use crate::node_process::ThreadTime;

/// Groups of threads: for each group its label value, and prefixes of the names of its threads, without the `b-` that
/// Bitcoin Core puts in front of each thread name.
const GROUPS: [(&str, &[&str]); 8] = [
    ("msghand", &["msghand"]),
    ("scriptch", &["scriptch"]),
    ("prevout", &["prevout"]),
    ("utxocompact", &["utxocompact"]),
    ("net", &["net", "opencon", "addcon", "dnsseed", "torcontrol", "i2paccept"]),
    ("http", &["http"]),
    ("capnp-loop", &["capnp-loop"]),
    ("scheduler", &["scheduler"]),
];
/// Label value of the group of all threads that are in none of the `GROUPS`.
const OTHER: &str = "other";

/// Counters of the CPU time of the node's process, by group of threads. The CPU time of a thread remains counted after
/// the thread has exited.
#[derive(Default)]
pub struct ThreadTimes {
    /// PID of the node's process, and its start time in clock ticks since boot.
    process: Option<(i32, u64)>,
    /// CPU time of each existing thread in seconds at the last reading, by thread ID.
    threads: HashMap<i32, f64>,
    /// CPU time of each group in seconds, in the order of [`GROUPS`]; the last element is the CPU time of [`OTHER`].
    totals: [f64; GROUPS.len() + 1],
}

impl ThreadTimes {
    /// Updates and returns the CPU time of each group in seconds. `process` is the PID and the start time of the node's
    /// process, `threads` are its existing threads, and `whole` is the CPU time of the whole process in seconds.
    pub fn by_group(
        &mut self,
        process: (i32, u64),
        threads: &[ThreadTime],
        whole: f64,
    ) -> impl Iterator<Item = (&'static str, f64)> {
        if self.process != Some(process) {
            *self = ThreadTimes { process: Some(process), ..ThreadTimes::default() };
        }
        let before = std::mem::take(&mut self.threads);
        for thread in threads {
            self.threads.insert(thread.id, thread.seconds);
            // If the CPU time of a thread ID has decreased, the kernel has reused the ID for a new thread.
            let known = before.get(&thread.id).filter(|known| **known <= thread.seconds);
            let name = thread.name.strip_prefix("b-").unwrap_or(&thread.name);
            let group =
                GROUPS.iter().position(|(_, names)| names.iter().any(|start| name.starts_with(start)));
            if let Some(group) = group {
                self.totals[group] += thread.seconds - known.unwrap_or(&0.0);
            }
        }
        let [groups @ .., other] = &mut self.totals;
        // The CPU time of all other threads is the difference between the CPU time of the process and the sum of the
        // groups. This difference can decrease slightly because the kernel rounds the times. The total is then left
        // unchanged, because a counter must not decrease.
        *other = other.max(whole - groups.iter().sum::<f64>());
        GROUPS.map(|(name, _)| name).into_iter().chain([OTHER]).zip(self.totals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_of_an_ended_thread_is_kept() {
        let mut times = ThreadTimes::default();
        let mut totals = |process, threads: &[(i32, &str, f64)], whole| {
            let threads: Vec<_> = threads
                .iter()
                .map(|&(id, name, seconds)| ThreadTime { id, name: name.into(), seconds })
                .collect();
            let totals: HashMap<_, _> = times.by_group((process, 1), &threads, whole).collect();
            assert_eq!(totals["prevout"], 0.0);
            (totals["http"], totals["scriptch"], totals[OTHER])
        };
        let main = (1, "bitcoin-node", 2.0);
        assert_eq!(totals(1, &[main, (2, "b-http_pool_3", 1.0)], 3.0), (1.0, 0.0, 2.0));
        // Thread 2 exits between two readings, and a new thread reuses its ID.
        assert_eq!(
            totals(1, &[main, (2, "b-http", 0.5), (3, "b-scriptch.12", 0.25)], 4.0),
            (1.5, 0.25, 2.25)
        );
        assert_eq!(totals(1, &[main], 4.0), (1.5, 0.25, 2.25));
        // The node was restarted as another process.
        assert_eq!(totals(2, &[main], 2.0), (0.0, 0.0, 2.0));
    }

    #[test]
    fn threads_of_all_versions_have_their_group() {
        let mut times = ThreadTimes::default();
        let names = [
            ("b-prevout.12", "prevout"),
            ("b-opencon", "net"),
            ("b-addcon", "net"),
            ("b-net", "net"),
            ("b-utxocompact", "utxocompact"),
            ("b-qt-init", OTHER),
        ];
        let threads = names.iter().zip(1..).map(|((name, _), id)| ThreadTime {
            id,
            name: (*name).into(),
            seconds: 1.0,
        });
        let totals: HashMap<_, _> =
            times.by_group((1, 1), &Vec::from_iter(threads), names.len() as f64).collect();
        for group in ["prevout", "net", "utxocompact", OTHER] {
            let expected = names.iter().filter(|(_, of)| *of == group).count();
            assert_eq!(totals[group], expected as f64, "{group}");
        }
    }
}
