//! The systemd journal. Writing to its socket blocks while nothing reads it, so a separate thread writes.

use std::fmt::Debug;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::thread;
use std::time::Duration;

use tracing::field::{Field, Value, Visit};
use tracing::{Dispatch, Event, Metadata, Subscriber};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::{Layer, registry};

use super::queue::{self, LineQueue, LogWriter, MAX_WAITING_LINES};

const SOCKET: &str = "/run/systemd/journal/socket";
/// How often a journal that is away is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// An event with its fields as text.
struct JournalEntry {
    metadata: &'static Metadata<'static>,
    /// In the order of the metadata's fields; `None` for those that have no value.
    values: Vec<Option<String>>,
}

impl Visit for JournalEntry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.values[field.index()] = Some(value.to_string());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.values[field.index()] = Some(format!("{value:?}"));
    }
}

/// Hands events over to the thread. There are no spans in this program.
struct JournalLayer(LineQueue<JournalEntry>);

impl<S: Subscriber> Layer<S> for JournalLayer {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let metadata = event.metadata();
        let mut entry = JournalEntry { metadata, values: vec![None; metadata.fields().len()] };
        event.record(&mut entry);
        self.0.push(entry);
    }
}

/// Connects to the journal. Blocks while it is full.
fn connect() -> io::Result<Dispatch> {
    let priorities = PriorityMappings {
        error: Priority::Error,
        warn: Priority::Warning,
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
    };
    // Fields are found under their own names, `journalctl BLOCK_HEIGHT=800000`, and levels are those of syslog.
    let journal = tracing_journald::layer()?.with_field_prefix(None).with_priority_mappings(priorities);
    // As users know it, also for the process that the supervising one starts.
    let binary = std::env::current_exe().ok();
    let name = binary.as_deref().and_then(Path::file_name).unwrap_or_default();
    let journal = journal.with_syslog_identifier(name.to_string_lossy().into());
    Ok(Dispatch::new(registry().with(journal)))
}

/// Starts the thread. Fails if there is no journal.
pub fn start<S: Subscriber>() -> io::Result<(impl Layer<S>, LogWriter)> {
    let probe = UnixDatagram::unbound()?;
    probe.set_nonblocking(true)?;
    match probe.send_to(&[], SOCKET) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
        _ => probe.set_nonblocking(false)?, // also a full journal is one
    }
    // Connects at once, before the sandbox forbids it.
    let mut connecting = Some(thread::Builder::new().name("log-connect".into()).spawn(connect)?);
    let mut journal = None;
    let (entries, writer) = queue::start("log-journal", MAX_WAITING_LINES, move |entry: JournalEntry| {
        // The crate does not report what it could not send. The journal discards what is empty.
        while probe.send_to(&[], SOCKET).is_err() {
            thread::sleep(RETRY_INTERVAL);
        }
        if let Some(connecting) = connecting.take() {
            journal = connecting.join().ok().transpose()?;
        }
        let Some(journal) = &journal else { return Err(io::ErrorKind::NotConnected.into()) };
        let values: Vec<_> =
            entry.values.iter().map(|value| value.as_ref().map(|value| value as &dyn Value)).collect();
        let fields = entry.metadata.fields().value_set_all(&values);
        journal.event(&Event::new(entry.metadata, &fields));
        Ok(())
    })?;
    Ok((JournalLayer(entries), writer))
}
