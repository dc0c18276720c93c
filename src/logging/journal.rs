//! Log target for the systemd journal. A separate thread writes to the journal's socket, because a write blocks if the
//! journal does not read its socket.

use std::fmt::Debug;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tracing::field::{Field, Value, Visit};
use tracing::{Dispatch, Event, Metadata, Subscriber};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::{Layer, registry};

use super::queue::{self, LineQueue, LogWriter, MAX_WAITING_LINES};

const SOCKET: &str = "/run/systemd/journal/socket";
/// Interval between attempts of the writer thread to reach a journal that is not running.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum time for which the startup of the exporter waits for a journal whose socket is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A log event for the journal, with its field values as text.
struct JournalEntry {
    metadata: &'static Metadata<'static>,
    /// Values in the order of the metadata's fields; `None` for fields without a value.
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

/// A `tracing` layer that queues log events for the thread that writes to the journal. Spans of `tracing` are ignored,
/// because the exporters use none.
struct JournalLayer(LineQueue<JournalEntry>);

impl<S: Subscriber> Layer<S> for JournalLayer {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let metadata = event.metadata();
        let mut entry = JournalEntry { metadata, values: vec![None; metadata.fields().len()] };
        event.record(&mut entry);
        self.0.push(entry);
    }
}

/// Connects to the journal. Blocks while the journal's socket is full.
fn connect() -> io::Result<Dispatch> {
    // Set the priorities of the levels info and debug, because by default tracing_journald maps these levels to the
    // higher priorities notice and info.
    let priorities =
        PriorityMappings { info: Priority::Informational, debug: Priority::Debug, ..PriorityMappings::new() };
    // Field names get no prefix, so `journalctl BLOCK_HEIGHT=800000` finds the log lines whose field `block_height` has
    // this value.
    let journal = tracing_journald::layer()?.with_field_prefix(None).with_priority_mappings(priorities);
    // The syslog identifier is the file name of the binary in all processes. The process name is not used, because the
    // exporter process, which the supervisor (the process that the user starts) starts, has another process name.
    let binary = std::env::current_exe().ok();
    let name = binary.as_deref().and_then(Path::file_name).unwrap_or_default();
    let journal = journal.with_syslog_identifier(name.to_string_lossy().into());
    Ok(Dispatch::new(registry().with(journal)))
}

/// Connects to the journal, and starts the writer thread.
///
/// # Errors
/// There is no systemd journal, or a thread cannot be started.
pub fn start<S: Subscriber>() -> io::Result<(impl Layer<S>, LogWriter)> {
    let probe = UnixDatagram::unbound()?;
    probe.set_nonblocking(true)?;
    match probe.send_to(&[], SOCKET) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
        _ => probe.set_nonblocking(false)?, // a full socket shows that the journal exists
    }
    // Connect now, because the sandbox forbids new sockets later. If the journal's socket is full, the thread
    // `log-connect` has created its socket before the timeout, and connects later.
    let (sender, connected) = mpsc::channel();
    thread::Builder::new().name("log-connect".into()).spawn(move || sender.send(connect()))?;
    let mut journal = connected.recv_timeout(CONNECT_TIMEOUT).ok().transpose()?;
    let (entries, writer) = queue::start("log-journal", MAX_WAITING_LINES, move |entry: JournalEntry| {
        // tracing_journald does not report entries that it could not send. Therefore test the socket first with an
        // empty message, which the journal discards.
        while probe.send_to(&[], SOCKET).is_err() {
            thread::sleep(RETRY_INTERVAL);
        }
        let journal = match &journal {
            Some(journal) => Dispatch::clone(journal),
            None => journal.insert(connected.recv().map_err(io::Error::other)??).clone(),
        };
        let values: Vec<_> =
            entry.values.iter().map(|value| value.as_ref().map(|value| value as &dyn Value)).collect();
        let fields = entry.metadata.fields().value_set_all(&values);
        journal.event(&Event::new(entry.metadata, &fields));
        Ok(())
    })?;
    Ok((JournalLayer(entries), writer))
}
