//! The unfinished calls to the node, both the exporter's calls and the guard's own calls. Cap'n Proto's term for an
//! unfinished call is *question*.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::FIRST_GUARD_ID;
use super::shutdown_watch::LongPoll;

/// The purpose of a call to the node, which determines how its response changes the state.
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

/// Record of an unfinished call to the node, with which the guard handles the node's response and the exporter's
/// `Finish`.
#[derive(Debug)]
struct Question {
    purpose: CallPurpose,
    /// Export ID of the node's thread that runs the call; `None` for calls on the node's event loop, and for the
    /// guard's own calls.
    thread: Option<u32>,
    answered: bool,
    /// Export IDs of the capabilities in the response.
    results: Vec<u32>,
    /// `Some` if the exporter sent `Finish` before the node's response arrived. The value is whether that `Finish` also
    /// releases the capabilities in the response.
    finished: Option<bool>,
    asked_at: Duration,
}

/// A call to the node whose response has just arrived.
pub(super) struct AnsweredQuestion {
    pub purpose: CallPurpose,
    /// Whether the guard itself made the call.
    pub own: bool,
    /// Same meaning as [`Question::finished`].
    pub finished: Option<bool>,
    pub asked_at: Duration,
}

/// The guard's action for a `Finish` message of the exporter.
pub(super) enum FinishAction {
    /// Send the `Finish` to the node when the node has responded to the call.
    Later,
    /// Send the `Finish` to the node now. The response contained the capabilities with these export IDs.
    Now(Vec<u32>),
    /// Do not send the `Finish`, because the node does not need it.
    NotNeeded,
}

/// Table of all unfinished calls to the node, keyed by question ID.
#[derive(Default)]
pub(super) struct Questions {
    all: HashMap<u32, Question>,
    /// Question IDs of the exporter's calls to which the node responded with `noFinishNeeded`. A `Finish` for such a
    /// call is still valid, because the exporter may have sent the `Finish` before it received the response.
    finished_by_node: HashSet<u32>,
}

impl Questions {
    pub fn is_used(&self, number: u32) -> bool {
        self.all.contains_key(&number)
    }

    pub fn insert(&mut self, number: u32, purpose: CallPurpose, thread: Option<u32>, now: Duration) {
        self.finished_by_node.remove(&number);
        let question =
            Question { purpose, thread, answered: false, results: Vec::new(), finished: None, asked_at: now };
        self.all.insert(number, question);
    }

    /// Whether the exporter made this call and has not sent `Finish` for it. The exporter may then use capabilities in
    /// the response.
    pub fn is_open(&self, number: u32) -> bool {
        number < FIRST_GUARD_ID && self.all.get(&number).is_some_and(|question| question.finished.is_none())
    }

    pub fn any_unanswered(&self) -> bool {
        self.all.values().any(|question| !question.answered)
    }

    /// Whether this thread of the node runs a call of the exporter that has no response yet.
    pub fn is_running_on(&self, thread: u32) -> bool {
        self.all.values().any(|question| !question.answered && question.thread == Some(thread))
    }

    /// Number of the exporter's calls for which it may still send a `Finish`, plus the number of the guard's own
    /// unfinished calls.
    pub fn count(&self) -> usize {
        self.all.len() + self.finished_by_node.len()
    }

    /// Records the node's response, which contains the capabilities `hosted`. Returns `None` if no unanswered call has
    /// this question ID, for example because a killed guard made the call.
    pub fn answered(
        &mut self,
        number: u32,
        hosted: &[u32],
        no_finish_needed: bool,
    ) -> Option<AnsweredQuestion> {
        let question = self.all.get_mut(&number).filter(|question| !question.answered)?;
        question.answered = true;
        let own = number >= FIRST_GUARD_ID;
        // The guard needs the handler in the response to end the subscription. An early `Finish` of the exporter
        // therefore does not release the handler.
        if let CallPurpose::Subscribe { .. } = question.purpose {
            question.finished = question.finished.map(|_| false);
        }
        let (finished, asked_at) = (question.finished, question.asked_at);
        let purpose = std::mem::replace(&mut question.purpose, CallPurpose::Other);
        if own || finished.is_some() || no_finish_needed {
            self.all.remove(&number);
            if !own && finished.is_none() {
                self.finished_by_node.insert(number);
            }
        } else {
            question.results = hosted.to_vec();
        }
        Some(AnsweredQuestion { purpose, own, finished, asked_at })
    }

    /// Records a `Finish` of the exporter, and returns the guard's action.
    ///
    /// # Errors
    /// The exporter has made no call with this question ID, or has already sent a `Finish` for the call.
    pub fn finish(&mut self, number: u32, releases: bool) -> Result<FinishAction, &'static str> {
        const NOT_ASKED: &str = "finish of an unknown question";
        if number >= FIRST_GUARD_ID {
            return Err(NOT_ASKED);
        }
        match self.all.get_mut(&number) {
            Some(question) if question.finished.is_some() => Err("second finish of a question"),
            Some(question) if !question.answered => {
                question.finished = Some(releases);
                Ok(FinishAction::Later)
            }
            Some(_) => Ok(FinishAction::Now(
                self.all.remove(&number).map(|question| question.results).unwrap_or_default(),
            )),
            None if self.finished_by_node.remove(&number) => Ok(FinishAction::NotNeeded),
            None => Err(NOT_ASKED),
        }
    }

    /// Marks all calls as finished by the exporter, because the exporter no longer sends `Finish` messages. The guard
    /// then sends `Finish` for each call when the node responds. Returns the question IDs of calls to which the node
    /// has already responded, for which the caller has to send `Finish` now.
    pub fn finish_all(&mut self) -> Vec<u32> {
        for question in self.all.values_mut() {
            question.finished.get_or_insert(false);
        }
        self.all.extract_if(|_, question| question.answered).map(|(number, _)| number).collect()
    }
}
