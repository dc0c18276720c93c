//! The calls that the node has to answer, the exporter's and the guard's own.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::OWN_NUMBERS;
use super::shutdown_watch::LongPoll;

/// The purpose of a call.
#[derive(Debug)]
pub(super) enum CallPurpose {
    /// Runs on the node's event loop: bootstrap, `construct`.
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

/// A call that is not finished.
#[derive(Debug)]
struct Question {
    purpose: CallPurpose,
    /// The node's thread that runs it, of the exporter's calls.
    thread: Option<u32>,
    answered: bool,
    /// The capabilities that came with the answer.
    results: Vec<u32>,
    /// The exporter finished it before the answer. The value: whether the capabilities of the answer are released with it.
    finished: Option<bool>,
    asked_at: Duration,
}

/// A call that the node has just answered.
pub(super) struct AnsweredQuestion {
    pub purpose: CallPurpose,
    /// The guard's own.
    pub own: bool,
    /// See [`Question::finished`].
    pub finished: Option<bool>,
    pub asked_at: Duration,
}

/// The effect of the exporter's `Finish`.
pub(super) enum FinishAction {
    /// It is sent when the node has answered.
    Later,
    /// The exporter is done with the answer, which came with these capabilities.
    Now(Vec<u32>),
    /// The node needs none.
    NotNeeded,
}

/// The calls that are not finished, by their numbers.
#[derive(Default)]
pub(super) struct Questions {
    all: HashMap<u32, Question>,
    /// The exporter's numbers of answered calls that need no `Finish`. It may have sent one before it had the answer.
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

    /// Whether the exporter can use the answer to this call of its own, whenever it comes.
    pub fn is_open(&self, number: u32) -> bool {
        number < OWN_NUMBERS && self.all.get(&number).is_some_and(|question| question.finished.is_none())
    }

    pub fn any_unanswered(&self) -> bool {
        self.all.values().any(|question| !question.answered)
    }

    /// Whether a call of the exporter's runs on this thread of the node.
    pub fn is_running_on(&self, thread: u32) -> bool {
        self.all.values().any(|question| !question.answered && question.thread == Some(thread))
    }

    pub fn makes_thread(&self, number: u32) -> bool {
        self.all
            .get(&number)
            .is_some_and(|question| matches!(question.purpose, CallPurpose::MakeThread { .. }))
    }

    /// Whether the answer to this call has the block template, or will have one.
    pub fn gives_template(&self, number: u32, template: Option<u32>) -> bool {
        self.all.get(&number).is_some_and(|question| {
            matches!(question.purpose, CallPurpose::CreateNewBlock)
                || template.is_some_and(|template| question.results.contains(&template))
        })
    }

    /// The node has answered, with these capabilities. `None` if no such call waits for an answer: it is a killed guard's,
    /// or unknown.
    pub fn answered(
        &mut self,
        number: u32,
        hosted: &[u32],
        no_finish_needed: bool,
    ) -> Option<AnsweredQuestion> {
        let question = self.all.get_mut(&number).filter(|question| !question.answered)?;
        question.answered = true;
        let own = number >= OWN_NUMBERS;
        // The guard ends a subscription with the handler that comes with the answer, whatever the exporter sends.
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

    /// The exporter finishes a call. The text is the reason of an error.
    pub fn finish(&mut self, number: u32, releases: bool) -> Result<FinishAction, &'static str> {
        const NOT_ASKED: &str = "finish of an unknown question";
        if number >= OWN_NUMBERS {
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

    /// The exporter is gone: its calls are finished when they are answered. Returns those that are answered already.
    pub fn finish_all(&mut self) -> Vec<u32> {
        for question in self.all.values_mut() {
            question.finished.get_or_insert(false);
        }
        self.all.extract_if(|_, question| question.answered).map(|(number, _)| number).collect()
    }
}
