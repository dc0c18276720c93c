//! The loop around poll(2) in which the guard, the process between the node and the exporter, reads, handles and
//! forwards the messages of the node and of the exporter. [`protocol`](super::protocol) decides how each message is
//! handled. To disconnect cleanly means to end the subscriptions and to wait for the responses to all calls before the
//! guard closes the connection to the node.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::ClockId;

use super::busy_poll::BusyPoll;
use super::events::{EventQueue, GuardEvent};
use super::frame::{BufferedSocket, FrameReader, MAX_MESSAGE_BYTES, MAX_SKIPPED_BYTES, ReadOutcome};
use super::message::{self, Message, Return};
use super::outgoing::{self, EmptyAnswer};
use super::protocol::{ExporterMessageAction, NodeMessageAction, ProtocolState};
use super::subscription_store::SubscriptionStore;
use super::trace_budget::TraceBudget;
use crate::scheduling::RunDelayFile;
use crate::{sys, text};

/// Maximum size in bytes of a message from the exporter. All calls of the exporter are much shorter.
const MAX_QUESTION_BYTES: usize = 1 << 20;
/// Number of unsent bytes at which the guard's send buffer for the node or for the exporter counts as full. If the
/// buffer for the node is full, the guard reads neither from the node nor from the exporter. If the buffer for the
/// exporter is full, the guard does not read from the exporter.
const MAX_UNSENT_BYTES: usize = 1 << 20;
/// Time for which the guard collects events before it sends them to the exporter. One write for each event would delay
/// the response to the node's next callback.
const EVENT_FLUSH_INTERVAL: Duration = Duration::from_millis(1);
/// Time since the arrival of a block for which the receive buffer for the node's messages keeps the memory that it
/// allocated for the block. The buffer keeps the memory for the next block, because allocating the memory again takes
/// as long as reading a block from the socket.
const MEMORY_KEEP_INTERVAL: Duration = Duration::from_millis(200);
/// Minimum interval between readings of the guard's run delay, the time for which the guard waited for a CPU.
const RUN_DELAY_INTERVAL: Duration = Duration::from_millis(5);

/// The files that a guard inherits or opens before it applies its sandbox, and whether the guard is a replacement. The
/// default value contains no files.
#[derive(Default)]
pub struct OpenFiles {
    /// The memory file to which the guard writes its subscriptions, for a replacement guard.
    pub store: Option<SubscriptionStore>,
    /// The kernel's statistic of the time for which the guard waited for a CPU.
    pub run_delay: Option<RunDelayFile>,
    /// Whether the store has the subscriptions of a killed guard, which this guard replaces.
    pub replaces: bool,
}

/// Relays messages between the node and the exporter until the node closes the connection, or the guard has
/// disconnected cleanly. A guard that replaces a killed guard ends the subscriptions in the store, disconnects, and
/// relays nothing. If the guard cannot parse or store a message of the node, the relay passes an error to `log`, and
/// then waits until the node closes the connection.
///
/// # Errors
/// A socket cannot be used, or the process at the other end of `node` is not a node.
pub fn relay(
    node: UnixStream,
    exporter: UnixStream,
    events: UnixStream,
    trace_budget: Option<Duration>,
    files: OpenFiles,
    log: impl FnOnce(&str),
) -> io::Result<()> {
    let subscriptions = files.store.as_ref().filter(|_| files.replaces).map(SubscriptionStore::subscriptions);
    let protocol = match subscriptions {
        Some(subscriptions) => ProtocolState::replacement(subscriptions, now()),
        None => ProtocolState::new(TraceBudget::new(trace_budget), now()),
    };
    let mut relay = Relay {
        node: BufferedSocket::new(node)?,
        from_node: FrameReader::new(MAX_MESSAGE_BYTES, MAX_SKIPPED_BYTES),
        exporter: BufferedSocket::new(exporter)?,
        from_exporter: FrameReader::new(MAX_QUESTION_BYTES, MAX_QUESTION_BYTES),
        events: EventQueue::new(events)?,
        files,
        protocol,
        answer: EmptyAnswer::new(),
        busy_poll: BusyPoll::default(),
        last_large_at: Duration::ZERO,
        run_delay_at: Duration::ZERO,
    };
    let mut ended = relay.run();
    if ended.is_err() && relay.protocol.is_node() {
        // Log an error only if the guard cannot parse or store a message. Any other error means that the node has
        // closed the connection.
        if let Err(error) = &ended
            && matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::OutOfMemory)
        {
            log(&format!(
                "bitcoind-guard: cannot relay the node's messages: {}; the guard no longer responds to callbacks, and a \
                 node that waits for a response hangs: restart the node. The connection stays open until the node \
                 closes it, because closing it can crash the node",
                text::message(error)
            ));
            ended = Ok(());
        }
        // If the node's messages cannot be parsed, the node may still have subscriptions, and closing the connection
        // could crash the node. The connection therefore stays open until the node closes it.
        relay.exporter.close();
        relay.node.discard_until_closed();
    }
    relay.node.close();
    relay.events.finish();
    relay.exporter.close();
    ended
}

/// The guard's sockets to the node and to the exporter, with the state that the loop around poll(2) needs to relay
/// messages between them.
struct Relay {
    node: BufferedSocket,
    /// The receive buffer for the node's messages, which is taken out of the struct while the relay handles the
    /// received messages.
    from_node: FrameReader,
    exporter: BufferedSocket,
    from_exporter: FrameReader,
    events: EventQueue,
    files: OpenFiles,
    protocol: ProtocolState,
    answer: EmptyAnswer,
    busy_poll: BusyPoll,
    /// Time at which bytes of a message larger than `frame::BUFFER_BYTES` last arrived from the node.
    last_large_at: Duration,
    /// Time at which the guard's run delay was last read.
    run_delay_at: Duration,
}

impl Relay {
    fn run(&mut self) -> io::Result<()> {
        loop {
            while let Some(call) = self.protocol.next_call(now()) {
                self.node.send(&call.encode())?;
            }
            if let Some(store) = &mut self.files.store {
                store.update(self.protocol.active_subscriptions());
            }
            while let Some(event) = self.protocol.next_event() {
                self.events.send(event);
            }
            if self.node.unsent() == 0 && self.protocol.may_close(now()) {
                return Ok(());
            }
            let (node, exporter) = self.wait()?;
            if !node.is_empty() && self.read_node()? == ReadOutcome::End {
                return Ok(());
            }
            if self.spin()? == ReadOutcome::End {
                return Ok(());
            }
            // The protocol state is checked again, because the messages handled above may have announced the node's
            // shutdown. After such an announcement the guard reads no messages of the exporter.
            let reads_exporter = !exporter.is_empty() && self.protocol.reads_exporter();
            if reads_exporter && self.read_exporter().is_err() {
                self.protocol.drain(now());
            }
            if node.is_empty() {
                self.events.flush();
                if now().saturating_sub(self.last_large_at) >= MEMORY_KEEP_INTERVAL {
                    self.from_node.shrink();
                }
            }
        }
    }

    /// Waits until a socket is ready, or a timer is due. Returns the poll(2) events of the node's and of the exporter's
    /// socket.
    fn wait(&mut self) -> io::Result<(PollFlags, PollFlags)> {
        let node_reads = self.node.unsent() < MAX_UNSENT_BYTES;
        let mut sockets = Vec::with_capacity(3);
        sockets.push(self.node.interest(node_reads));
        let reads_exporter = self.protocol.reads_exporter();
        if reads_exporter {
            let reads = node_reads && self.exporter.unsent() < MAX_UNSENT_BYTES;
            sockets.push(self.exporter.interest(reads));
        }
        sockets.extend(self.events.blocked());
        let flush = self.events.is_waiting().then_some(EVENT_FLUSH_INTERVAL);
        let shrink = self.from_node.has_grown().then_some(MEMORY_KEEP_INTERVAL);
        let earliest = [flush, shrink, self.protocol.next_wakeup(now())].into_iter().flatten().min();
        // The timeout is rounded up to a millisecond. If it were rounded down to zero, the loop would run without
        // sleeping until the timer is due.
        let timeout = earliest.map_or(PollTimeout::NONE, |wait| {
            PollTimeout::try_from(wait + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut sockets, timeout) {
            Err(Errno::EINTR) => return Ok((PollFlags::empty(), PollFlags::empty())),
            result => result?,
        };
        let ready = |at: usize| sockets.get(at).and_then(PollFd::revents).unwrap_or(PollFlags::empty());
        let exporter = if reads_exporter { ready(1) } else { PollFlags::empty() };
        let (node, events) = (ready(0), ready(1 + usize::from(reads_exporter)));
        if !events.is_empty() {
            self.events.unblock();
        }
        Ok((node, exporter))
    }

    /// During a burst of callbacks, reads the node's next messages in a loop instead of sleeping. Calls `sched_yield`
    /// after each read, for other tasks that need the CPU.
    fn spin(&mut self) -> io::Result<ReadOutcome> {
        let since = now();
        let mut at = since;
        while self.busy_poll.should_spin(since, at) {
            if self.read_node()? == ReadOutcome::End {
                return Ok(ReadOutcome::End);
            }
            let yielded_at = now();
            std::thread::yield_now();
            at = now();
            self.busy_poll.on_preempted(yielded_at, at);
        }
        Ok(ReadOutcome::Nothing)
    }

    fn read_node(&mut self) -> io::Result<ReadOutcome> {
        let at = now();
        let filled = receive(&mut self.node, &mut self.from_node)?;
        let mut incoming = std::mem::take(&mut self.from_node);
        let is_truncated = incoming.is_truncated();
        while let Some(frame) = incoming.next()? {
            self.handle_node_frame(frame, is_truncated, at)?;
        }
        if filled == ReadOutcome::Read && incoming.is_amid_large() {
            self.busy_poll.on_partial_message(at);
            self.last_large_at = at;
        }
        self.from_node = incoming;
        Ok(filled)
    }

    fn handle_node_frame(&mut self, frame: &[u8], is_truncated: bool, at: Duration) -> io::Result<()> {
        let opened = message::open(frame).map_err(malformed)?;
        let message = Message::parse(&opened, is_truncated).map_err(malformed)?;
        match (self.protocol.on_node(&message, at).map_err(malformed)?, &message) {
            (NodeMessageAction::AnswerCallback, Message::Call(call)) => {
                if message::is_of_trace(call.method)
                    && at.saturating_sub(self.run_delay_at) >= RUN_DELAY_INTERVAL
                {
                    self.run_delay_at = at;
                    let run_delay = self.files.run_delay.as_ref().and_then(RunDelayFile::read);
                    run_delay.into_iter().for_each(|total| self.protocol.add_run_delay(total));
                }
                self.node.send(self.answer.for_question(call.question))?;
                let waited = now().saturating_sub(at);
                self.busy_poll.on_callback(at);
                if !self.protocol.is_draining() {
                    self.events.queue(waited, GuardEvent::from_callback(call));
                }
            }
            (NodeMessageAction::AnswerThread(question, thread), _) => {
                self.node.send(&outgoing::thread_answer(question, thread))?
            }
            (NodeMessageAction::AnswerUnimplemented(question), _) => {
                self.node.send(&outgoing::unimplemented(question))?
            }
            (NodeMessageAction::Forward, Message::Return(Return { question, no_finish_needed, .. }))
                if is_truncated =>
            {
                self.forward(&outgoing::too_large(*question, *no_finish_needed), at);
            }
            (NodeMessageAction::Forward, _) => self.forward(frame, at),
            (NodeMessageAction::Keep | NodeMessageAction::AnswerCallback, _) => {}
        }
        Ok(())
    }

    /// Forwards a message to the exporter. If the exporter does not read its socket, starts the clean disconnect.
    fn forward(&mut self, frame: &[u8], at: Duration) {
        let stuck = self.exporter.unsent() > MAX_MESSAGE_BYTES;
        if stuck || self.exporter.send(frame).is_err() {
            self.protocol.drain(at);
        }
    }

    /// Reads and handles the exporter's messages. Returns an error if the exporter has closed its connection or has
    /// broken the protocol.
    fn read_exporter(&mut self) -> io::Result<()> {
        let filled = receive(&mut self.exporter, &mut self.from_exporter)?;
        let mut incoming = std::mem::take(&mut self.from_exporter);
        while let Some(frame) = incoming.next()? {
            self.handle_exporter_frame(frame)?;
        }
        self.from_exporter = incoming;
        if filled == ReadOutcome::End { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn handle_exporter_frame(&mut self, frame: &[u8]) -> io::Result<()> {
        /// Memory in bytes for the `Finish` messages that the guard sends before it forwards a message of the exporter.
        const FINISHES_BYTES: usize = 4096;
        // The memory is reserved first, because `on_exporter` records the message as sent to the node, and the send
        // buffer must then have room for the message.
        self.node.reserve(frame.len() + FINISHES_BYTES)?;
        let opened = message::open(frame).map_err(malformed)?;
        let message = Message::parse(&opened, false).map_err(malformed)?;
        let action = self.protocol.on_exporter(&message, now());
        // Errors of `self.node.send` are ignored here, because the next read from the node's socket returns them. The
        // `Finish` messages are sent first, because the forwarded message may reuse their question IDs.
        while let Some(finish) = self.protocol.next_finish() {
            let _ = self.node.send(&finish.encode());
        }
        match action {
            ExporterMessageAction::Forward => drop(self.node.send(frame)),
            ExporterMessageAction::Keep => {}
            ExporterMessageAction::Answer(question) => {
                self.exporter.send(self.answer.for_question(question))?
            }
            ExporterMessageAction::Reject(question, rejection) => {
                self.exporter.send(&outgoing::failed(question, &rejection.to_string()))?
            }
            ExporterMessageAction::Violation(why) => return Err(malformed(why)),
        }
        Ok(())
    }
}

/// Sends the bytes in the send buffer of `socket`, and then reads from `socket` once unless the send buffer is still
/// full.
fn receive(socket: &mut BufferedSocket, incoming: &mut FrameReader) -> io::Result<ReadOutcome> {
    socket.flush()?;
    if socket.unsent() >= MAX_UNSENT_BYTES {
        return Ok(ReadOutcome::Nothing);
    }
    incoming.fill(&socket.socket)
}

fn malformed(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

fn now() -> Duration {
    sys::clock(ClockId::CLOCK_MONOTONIC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::guard::subscription_store::SubscriptionIds;
    use std::io::{Read, Write};
    use std::sync::mpsc;

    #[test]
    fn malformed_message_is_logged_before_the_node_closes() {
        let [(mut node, node_theirs), (_exporter, exporter_theirs), (_events, events_theirs)] =
            [(); 3].map(|()| UnixStream::pair().unwrap());
        let (send, logged) = mpsc::channel();
        let mut store = SubscriptionStore::new().unwrap();
        store.update([SubscriptionIds { callback: 1, handler: 2, thread: 3 }].into_iter());
        let files = OpenFiles { store: Some(store), replaces: true, ..OpenFiles::default() };
        let guard = std::thread::spawn(move || {
            let log = move |line: &str| send.send(line.to_string()).unwrap();
            relay(node_theirs, exporter_theirs, events_theirs, None, files, log)
        });
        node.write_all(&[0xff; 64]).unwrap();
        let line = logged.recv_timeout(Duration::from_secs(60)).expect("a log line while the node is there");
        assert!(
            line.contains("cannot relay the node's messages: a message of")
                && line.contains("restart the node")
        );
        node.set_nonblocking(true).unwrap();
        assert_ne!(node.read(&mut [0; 64]).ok(), Some(0), "the connection stays open");
        drop(node);
        guard.join().unwrap().unwrap();
    }

    /// If the guard continued to read calls of an exporter that reads no responses, the responses would fill the
    /// guard's memory.
    #[test]
    fn exporter_that_does_not_read_is_not_read() {
        use super::super::message::DISCONNECT;
        use capnp::message::Builder;
        use capnp::serialize::write_message_to_words;
        use capnp_rpc::rpc_capnp::message as rpc_message;

        const MUCH: usize = 32 << 20;
        let encode = |build: &dyn Fn(rpc_message::Builder)| {
            let mut message = Builder::new_default();
            build(message.init_root());
            write_message_to_words(&message)
        };
        let [(mut node, node_theirs), (mut exporter, exporter_theirs), (_events, events_theirs)] =
            [(); 3].map(|()| UnixStream::pair().unwrap());
        let guard = std::thread::spawn(move || {
            relay(node_theirs, exporter_theirs, events_theirs, None, OpenFiles::default(), |_| ())
        });
        let bootstrap = encode(&|it| it.init_bootstrap().set_question_id(0));
        exporter.write_all(&bootstrap).unwrap();
        node.read_exact(&mut vec![0; bootstrap.len()]).unwrap();
        let answer = encode(&|it| {
            let mut answer = it.init_return();
            answer.set_answer_id(0);
            answer.init_results().init_cap_table(1).get(0).set_sender_hosted(0);
        });
        node.write_all(&answer).unwrap();
        exporter.read_exact(&mut vec![0; answer.len()]).unwrap();
        // The guard responds to this call itself, because no subscription has this handler.
        let disconnect = encode(&|it| {
            let mut call = it.init_call();
            call.set_question_id(1);
            call.set_interface_id(DISCONNECT.0);
            call.set_method_id(DISCONNECT.1);
            call.reborrow().init_target().set_imported_cap(0);
            call.init_params();
        });
        exporter.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        let calls = disconnect.repeat(1000);
        let mut sent = 0;
        while sent < MUCH && exporter.write_all(&calls).is_ok() {
            sent += calls.len();
        }
        assert!(sent < MUCH, "the guard has read {sent} bytes");
        drop((exporter, node));
        let _ = guard.join().unwrap();
    }
}
