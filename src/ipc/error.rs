//! Errors over IPC.

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

/// Whether a call failed with this text because its thread of the node runs another one, or is about to end one.
pub(super) fn is_thread_busy(text: &str) -> bool {
    text.contains("thread busy")
}

/// 'Not offered' is normal: a method that the node does not have answers Unimplemented, one of its stubs Failed.
pub(super) fn ok_if_offered<T>(answer: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(CallError::Unimplemented(_) | CallError::Failed(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
