//! The exporters' logging to stderr or the systemd journal, and optionally to a file.

mod journal;
mod log_file;
mod queue;
mod repeats;

use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use log_file::LogFile;
use queue::{LineQueue, MAX_WAITING_LINES};
pub use queue::{LogWriter, dropped_lines};
pub use repeats::RepeatLimiter;

/// The destination and the format of the exporter's log lines.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum LogTarget {
    /// The journal if stderr is connected to it, otherwise text.
    Auto,
    /// Text on stderr.
    Text,
    /// JSON on stderr, one object per line.
    Json,
    /// Structured entries in the systemd journal.
    Journal,
}

/// The minimum level of log lines.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum LogLevel {
    /// All messages, including each event.
    Debug,
    /// Normal operation, warnings and errors.
    Info,
    /// Warnings and errors.
    #[value(alias = "warn")]
    Warning,
    /// Errors only.
    Error,
}

impl LogLevel {
    fn directives(self) -> &'static str {
        match self {
            LogLevel::Debug => "info,bitcoind_exporter=debug",
            LogLevel::Info => "info",
            LogLevel::Warning => "warn",
            LogLevel::Error => "error",
        }
    }
}

/// Handle of the threads that write the log. Dropping the handle waits at most a second per thread until the queued
/// lines are written.
pub struct Logging {
    _writers: Vec<LogWriter>,
}

/// Starts logging to `log`, and also to the file `file` if it is not `None`. `RUST_LOG` overrides the level. No caller
/// waits for a line to be written, because stderr, the journal and the file each have a thread and a bounded queue.
/// [`dropped_lines`] counts the lines that were not written.
///
/// # Errors
/// RUST_LOG is invalid, or the journal or the log file cannot be opened.
pub fn start(log: LogTarget, level: LogLevel, file: Option<&Path>) -> Result<Logging> {
    let directives = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or(level.directives().into());
    let filter = EnvFilter::try_new(&directives).with_context(|| format!("RUST_LOG={directives}"))?;
    let to_journal =
        matches!(log, LogTarget::Journal) || (matches!(log, LogTarget::Auto) && stderr_is_the_journal());
    let (layer, writer) = if to_journal {
        let (layer, writer) =
            journal::start().context("cannot connect to the systemd journal; use --log text")?;
        (layer.boxed(), writer)
    } else {
        let (lines, writer) = lines("log", io::stderr())?;
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || lines.clone())
            .with_target(false)
            .with_ansi(io::stderr().is_terminal());
        (if matches!(log, LogTarget::Json) { layer.json().boxed() } else { layer.boxed() }, writer)
    };
    let (mut layers, mut writers) = (vec![layer], vec![writer]);
    if let Some(path) = file {
        let file = LogFile::open(path).with_context(|| format!("cannot log to {}", path.display()))?;
        let (lines, writer) = lines("log-file", file)?;
        let layer = tracing_subscriber::fmt::layer().with_writer(move || lines.clone());
        layers.push(layer.with_target(false).with_ansi(false).boxed());
        writers.push(writer);
    }
    tracing_subscriber::registry().with(layers.with_filter(filter)).init();
    Ok(Logging { _writers: writers })
}

fn lines(thread: &str, mut to: impl Write + Send + 'static) -> io::Result<(LineQueue<Vec<u8>>, LogWriter)> {
    queue::start(thread, MAX_WAITING_LINES, move |line: Vec<u8>| to.write_all(&line))
}

/// Prints to standard output from another thread. The calling thread is not delayed if no process reads the output, for
/// example from a full pipe. Dropping the returned writer waits at most a second until the text is written.
///
/// # Errors
/// The thread cannot be started.
pub fn print_in_background(text: Vec<u8>) -> io::Result<LogWriter> {
    let (lines, writer) = queue::start("stdout", 1, |text: Vec<u8>| io::stdout().write_all(&text))?;
    lines.push(text);
    Ok(writer)
}

/// Whether stderr is connected to the journal. systemd sets JOURNAL_STREAM to the device and inode of the stream that
/// it connected to the journal.
fn stderr_is_the_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    std::fs::metadata("/proc/self/fd/2")
        .is_ok_and(|stderr| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}
