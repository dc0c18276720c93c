//! The subcommand `blocks`, which prints blocks of the block log (a SQLite file with a row for each connected block) or
//! of the block store (a PostgreSQL database to which many exporters forward these rows).

use std::io::{self, BufWriter};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use bitcoind_exporter::block_log::DEFAULT_PATH;
use bitcoind_exporter::block_log::read::{self, BlockFilter, Rows};
use bitcoind_exporter::block_log::show::{self, OutputFormat};
use bitcoind_exporter::block_store::{StoreSettings, propagation};
use bitcoind_exporter::cli::{self, Cli};
use clap::Args;

use crate::arguments::Arguments;

/// Arguments of the subcommand `blocks`: the file, the filter, and the output format.
#[derive(Args, Debug)]
pub struct BlocksCommand {
    /// File of the block log. The default is the file of the shipped systemd unit
    #[arg(long, value_name = "PATH", default_value = DEFAULT_PATH, env = "BITCOIND_USDT_EXPORTER_BLOCK_LOG")]
    block_log: PathBuf,

    /// The blocks to print.
    #[command(flatten)]
    filter: BlockFilter,

    /// Block store that --propagation reads: postgres://USER@HOST/DATABASE. Set the password with --store-password-file
    /// or the environment variable BITCOIND_USDT_EXPORTER_BLOCK_STORE_PASSWORD
    #[arg(long, value_name = "URL", env = "BITCOIND_USDT_EXPORTER_BLOCK_STORE", hide_env_values = true)]
    store: Option<String>,

    /// File with the password of the block store's user in its first line
    #[arg(
        long,
        value_name = "PATH",
        env = "BITCOIND_USDT_EXPORTER_BLOCK_STORE_PASSWORD_FILE",
        requires = "store"
    )]
    store_password_file: Option<PathBuf>,

    /// Print when each node in the block store connected the blocks of --height, as offsets from the first node
    #[arg(long, requires_all = ["store", "height"], conflicts_with_all = ["slow", "since"])]
    propagation: bool,

    /// Chain in the block store [default: its only chain]
    #[arg(long, requires = "propagation")]
    chain: Option<String>,

    /// Output format
    #[arg(long, value_enum, default_value = "table")]
    format: OutputFormat,
}

impl BlocksCommand {
    /// Prints the blocks that match the filter, or with `--propagation` the times at which each node in the block store
    /// connected the blocks.
    ///
    /// # Errors
    /// The block log or the block store cannot be read, or the output cannot be written.
    pub fn show(&self) -> Result<()> {
        if self.propagation {
            return self.show_propagation();
        }
        let rows = read::find(&self.block_log, &self.filter).context("cannot read the block log")?;
        self.print(&rows, show::BLOCK_LOG)
    }

    /// Prints when each node in the block store connected the blocks of a height.
    fn show_propagation(&self) -> Result<()> {
        let (Some(url), Some(height)) = (&self.store, self.filter.height) else {
            bail!("--store and --height are missing")
        };
        let settings = StoreSettings::new(url, self.store_password_file.clone(), Arguments::ENVIRONMENT);
        let settings = settings.context("--store")?;
        let height = i32::try_from(height).context("--height")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let read = propagation::at_height(&settings, self.chain.as_deref(), height);
        let rows =
            runtime.block_on(read).with_context(|| format!("cannot read the block store {settings}"))?;
        self.print(&rows, show::PROPAGATION)?;
        for node in propagation::excluded(&rows) {
            cli::print_error(format_args!("{node} is excluded: its clock was not synchronized"));
        }
        Ok(())
    }

    fn print(&self, rows: &Rows, columns: &[show::Column]) -> Result<()> {
        let printed = show::print(rows, self.format, columns, &mut BufWriter::new(io::stdout().lock()));
        cli::ignore_broken_pipe(printed)
    }
}
