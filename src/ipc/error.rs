//! Conversion of Cap'n Proto errors to [`CallError`], the exporter's error type for a failed call to the node.

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

/// Whether the node rejected a call with this error text because the thread that the call names is still running
/// another call, or is still cleaning up after another call.
pub(super) fn is_thread_busy(text: &str) -> bool {
    text.contains("thread busy")
}

/// Converts an Unimplemented or Failed error to `Ok(None)`, which means that the node does not offer the method. A node
/// returns Unimplemented for a method that it does not have, and Failed for a method that it has only as a stub.
pub(super) fn ok_if_offered<T>(answer: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(CallError::Unimplemented(_) | CallError::Failed(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
