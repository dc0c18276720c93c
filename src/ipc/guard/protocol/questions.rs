//! The unfinished calls to the node: calls of the exporter, and calls of the guard, the process that relays messages
//! between the node and the exporter. Cap'n Proto's term for an unfinished call is *question*. A call of the exporter
//! is unfinished until the exporter has sent `Finish`, the message after which the node may discard the results.

use std::collections::HashMap;
use std::time::Duration;

use super::FIRST_GUARD_ID;
use super::shutdown_watch::LongPoll;

/// The purpose of a call to the node, which determines how the node's response changes the guard's protocol state.
#[derive(Debug)]
pub(super) enum CallPurpose {
    /// A bootstrap request or a call of `construct`, which run on the node's event loop.
    Handshake,
    MakeThread {
        thread_map: u32,
    },
    WaitTipChanged(Option<LongPoll>),
    Subscribe {
        callback: u32,
        thread: u32,
        traces: bool,
    },
    Disconnect {
        callback: u32,
    },
    CreateNewBlock,
    CallTemplate {
        destroys: bool,
    },
    Other,
}

/// A call to which the node has not responded yet: an entry of the table [`Questions`].
#[derive(Debug)]
pub(super) struct Question {
    pub purpose: CallPurpose,
    /// Export ID of the node's thread that runs the call; `None` for calls on the node's event loop, and for the
    /// guard's own calls.
    thread: Option<u32>,
    /// `Some` if the exporter sent `Finish` before the node's response arrived. The value is whether that `Finish` also
    /// releases the capabilities in the response.
    pub finished: Option<bool>,
    pub asked_at: Duration,
}

/// Table of all unfinished calls to the node, keyed by question ID.
#[derive(Default)]
pub(super) struct Questions {
    unanswered: HashMap<u32, Question>,
    /// The exporter's calls to which the node has responded, and for which the exporter has not sent `Finish`. The
    /// value has the export IDs of the capabilities in the response; `None` if the node responded with
    /// `noFinishNeeded`. A `Finish` for such a call is still valid, because the exporter may have sent the `Finish`
    /// before it received the response.
    answered: HashMap<u32, Option<Vec<u32>>>,
}

impl Questions {
    pub fn is_used(&self, number: u32) -> bool {
        self.unanswered.contains_key(&number) || self.awaits_finish(number)
    }

    /// Whether the node has responded to this call, and keeps the results until the exporter sends `Finish`.
    fn awaits_finish(&self, number: u32) -> bool {
        self.answered.get(&number).is_some_and(Option::is_some)
    }

    pub fn insert(&mut self, number: u32, purpose: CallPurpose, thread: Option<u32>, now: Duration) {
        self.answered.remove(&number);
        self.unanswered.insert(number, Question { purpose, thread, finished: None, asked_at: now });
    }

    /// Whether the exporter made this call and has not sent `Finish` for it. The exporter may then use capabilities in
    /// the response.
    pub fn is_open(&self, number: u32) -> bool {
        let is_awaited = |question: &Question| question.finished.is_none();
        let is_unanswered = self.unanswered.get(&number).is_some_and(is_awaited);
        number < FIRST_GUARD_ID && is_unanswered || self.awaits_finish(number)
    }

    pub fn any_unanswered(&self) -> bool {
        !self.unanswered.is_empty()
    }

    /// Whether a call is under way (has no response yet) whose question ID and purpose fulfil this condition.
    pub fn any_under_way(&self, is_sought: impl Fn(u32, &CallPurpose) -> bool) -> bool {
        self.unanswered.iter().any(|(number, question)| is_sought(*number, &question.purpose))
    }

    /// Whether this thread of the node runs a call of the exporter that has no response yet.
    pub fn is_running_on(&self, thread: u32) -> bool {
        self.unanswered.values().any(|question| question.thread == Some(thread))
    }

    /// Number of the exporter's calls for which it may still send a `Finish`, plus the number of the guard's own
    /// unfinished calls.
    pub fn count(&self) -> usize {
        self.unanswered.len() + self.answered.len()
    }

    /// Records the node's response, which contains the capabilities `hosted`. Returns `None` if no unanswered call has
    /// this question ID, for example because a killed guard made the call.
    pub fn answered(&mut self, number: u32, hosted: &[u32], no_finish_needed: bool) -> Option<Question> {
        let mut question = self.unanswered.remove(&number)?;
        // The guard needs the handler in the response to end the subscription. An early `Finish` of the exporter
        // therefore does not release the handler.
        if let CallPurpose::Subscribe { .. } = question.purpose {
            question.finished = question.finished.map(|_| false);
        }
        if number < FIRST_GUARD_ID && question.finished.is_none() {
            self.answered.insert(number, (!no_finish_needed).then(|| hosted.to_vec()));
        }
        Some(question)
    }

    /// Records a `Finish` of the exporter. Returns the export IDs of the capabilities in the node's response if the
    /// `Finish` has to be sent to the node now. `None` if the `Finish` has to be sent when the node has responded, or
    /// if the node does not need it.
    ///
    /// # Errors
    /// The exporter has made no call with this question ID, or has already sent a `Finish` for the call.
    pub fn finish(&mut self, number: u32, releases: bool) -> Result<Option<Vec<u32>>, &'static str> {
        match self.unanswered.get_mut(&number).filter(|_| number < FIRST_GUARD_ID) {
            Some(Question { finished: Some(_), .. }) => Err("second finish of a question"),
            Some(question) => {
                question.finished = Some(releases);
                Ok(None)
            }
            None => self.answered.remove(&number).ok_or("finish of an unknown question"),
        }
    }

    /// Marks all calls as finished by the exporter, because the exporter no longer sends `Finish` messages. The guard
    /// then sends `Finish` for each call when the node responds. Returns the question IDs of calls to which the node
    /// has already responded, for which the caller has to send `Finish` now.
    pub fn finish_all(&mut self) -> Vec<u32> {
        for question in self.unanswered.values_mut() {
            question.finished.get_or_insert(false);
        }
        self.answered.drain().filter_map(|(number, results)| results.map(|_| number)).collect()
    }
}
