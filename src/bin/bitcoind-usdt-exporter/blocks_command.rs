//! The subcommand `blocks`, which prints blocks of the block log.

use std::io::{self, BufWriter};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use bitcoind_exporter::cli;
use bitcoind_exporter::usdt::block_log::DEFAULT_PATH;
use bitcoind_exporter::usdt::block_log::read::{self, BlockFilter};
use bitcoind_exporter::usdt::block_log::show::{self, OutputFormat};
use clap::Args;

/// Arguments of the subcommand `blocks`: the file, the filter, and the output format.
#[derive(Args, Debug)]
pub struct BlocksCommand {
    /// File of the block log. The default is the file of the shipped systemd unit
    #[arg(long, value_name = "PATH", default_value = DEFAULT_PATH, env = "BITCOIND_USDT_EXPORTER_BLOCK_LOG")]
    block_log: PathBuf,

    /// Print only blocks with at least this time (for example 100ms or 2s) from their first announcement to their
    /// connection. For blocks that no peer announced, the duration of their connection is compared
    #[arg(long, value_name = "TIME", value_parser = cli::duration)]
    slow: Option<Duration>,

    /// Print only blocks that were connected within the last period of this length, for example 24h or 7d
    #[arg(long, value_name = "TIME", value_parser = cli::duration)]
    since: Option<Duration>,

    /// Print only blocks of this height
    #[arg(long, value_name = "N")]
    height: Option<u32>,

    /// Output format
    #[arg(long, value_enum, default_value = "table")]
    format: OutputFormat,
}

impl BlocksCommand {
    /// Prints the blocks that match the filter.
    pub fn show(&self) -> Result<()> {
        let filter = BlockFilter { slow: self.slow, since: self.since, height: self.height };
        let rows = read::find(&self.block_log, &filter).context("cannot read the block log")?;
        cli::ignore_broken_pipe(show::print(&rows, self.format, &mut BufWriter::new(io::stdout().lock())))
    }
}
