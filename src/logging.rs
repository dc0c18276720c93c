//! Logging to stderr or to the journal, and to a file.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// Where log lines go and how they look.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Log {
    /// The journal when stderr is connected to it, else text.
    Auto,
    /// Lines on stderr.
    Text,
    /// JSON objects on stderr, one a line.
    Json,
    /// Structured entries in the systemd journal.
    Journal,
}

/// How important a line has to be.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Level {
    /// All of ours.
    Debug,
    /// What happens.
    Info,
    /// What needs attention.
    #[value(alias = "warn")]
    Warning,
    /// What failed.
    Error,
}

impl Level {
    fn directives(self) -> &'static str {
        match self {
            Level::Debug => "info,bitcoind_exporter=debug",
            Level::Info => "info",
            Level::Warning => "warn",
            Level::Error => "error",
        }
    }
}

/// Dropping it writes the last lines.
pub struct Logging {
    _writers: Vec<WorkerGuard>,
}

/// Limit on lines that wait to be written. More come only with debug logging or when stderr is not read, and are dropped.
const MAX_WAITING_LINES: usize = 10_000;

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// How many lines of stderr were dropped.
pub fn dropped_lines() -> u64 {
    DROPPED.get().map_or(0, |dropped| dropped.dropped_lines() as u64)
}

/// Starts logging, to `file` besides. `RUST_LOG` overrides the level. Lines for stderr and for the file are written by
/// threads of their own.
pub fn start(log: Log, level: Level, file: Option<&Path>) -> Result<Logging> {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(directives) => {
            EnvFilter::try_new(&directives).with_context(|| format!("RUST_LOG={directives}"))?
        }
        Err(_) => EnvFilter::new(level.directives()),
    };
    let (writer, guard) = not_waited_for("log", std::io::stderr());
    let mut writers = vec![guard];
    DROPPED.get_or_init(|| writer.error_counter());
    let stderr = || {
        tracing_subscriber::fmt::layer()
            .with_writer(writer)
            .with_target(false)
            .with_ansi(std::io::stderr().is_terminal())
    };
    let layer = match log {
        Log::Json => stderr().json().boxed(),
        Log::Journal => journal().context("cannot reach the systemd journal; use --log text")?.boxed(),
        Log::Auto if stderr_is_the_journal() => journal()?.boxed(),
        Log::Auto | Log::Text => stderr().boxed(),
    };
    let lines = file.map(|path| -> Result<_> {
        let file = File::options().append(true).create(true).open(path);
        let file = file.with_context(|| format!("cannot log to {}", path.display()))?;
        let (writer, guard) = not_waited_for("log-file", file);
        writers.push(guard);
        Ok(tracing_subscriber::fmt::layer().with_writer(writer).with_target(false).with_ansi(false).boxed())
    });
    let layers = [Some(layer), lines.transpose()?].into_iter().flatten().collect::<Vec<_>>();
    tracing_subscriber::registry().with(layers.with_filter(filter)).init();
    Ok(Logging { _writers: writers })
}

/// Writes lines on a thread of their own, and drops those that it is too slow for.
fn not_waited_for(thread: &str, to: impl Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(MAX_WAITING_LINES)
        .thread_name(thread)
        .finish(to)
}

/// Fields are found under their own names, `journalctl BLOCK_HEIGHT=800000`, and levels are those of syslog.
fn journal() -> std::io::Result<tracing_journald::Layer> {
    let priorities = PriorityMappings {
        error: Priority::Error,
        warn: Priority::Warning,
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
    };
    Ok(tracing_journald::layer()?.with_field_prefix(None).with_priority_mappings(priorities))
}

/// systemd sets JOURNAL_STREAM to the device and inode of the stream that it connected to the journal.
fn stderr_is_the_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    std::fs::metadata("/proc/self/fd/2")
        .is_ok_and(|stderr| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}
