//! Conversion of Cap'n Proto errors to [`CallError`].

use super::CallError;
use super::guard::TOO_LARGE;

impl From<capnp::Error> for CallError {
    fn from(error: capnp::Error) -> Self {
        use capnp::ErrorKind::{Disconnected, Failed, Overloaded, Unimplemented};
        let text = match error.extra.strip_prefix("remote exception: ") {
            Some(remote) => remote.to_string(),
            None => error.to_string(),
        };
        match error.kind {
            Overloaded if text == TOO_LARGE => CallError::TooLarge(text),
            Unimplemented => CallError::Unimplemented(text),
            Failed | Overloaded => CallError::Failed(text),
            Disconnected => CallError::Disconnected(text),
            _ => CallError::Malformed(text),
        }
    }
}

/// Whether an error with this text means that the thread of the node is running another call, or is about to finish one.
pub(super) fn is_thread_busy(text: &str) -> bool {
    text.contains("thread busy")
}

/// Converts the error of a method that the node does not offer to `None`, which is no failure. A missing method returns Unimplemented,
/// a stub of one returns Failed.
pub(super) fn ok_if_offered<T>(answer: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(CallError::Unimplemented(_) | CallError::Failed(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
