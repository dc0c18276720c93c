//! The rules of the guard (the process that relays messages between the node and the exporter) for a block template
//! in the node's memory.
//!
//! The node keeps the transactions of a template in memory until the template is destroyed or released. A node reads
//! freed memory if it destroys a template while it handles another call on the template, or if it handles a call after
//! `destroy`. Therefore the exporter has at most one template, makes one call on it at a time, and makes no call after
//! `destroy`. Only the guard releases the template. The guard releases the template as soon as no call on the template
//! is under way and the exporter has released the template or has exited. The node destroys a released template on a
//! separate thread. The guard does not wait for the destruction, because the node sends no message when the template is
//! destroyed.

use super::{CallPurpose, GuardMessage, ProtocolState};
use crate::ipc::guard::message::{self, Method};

/// The guard's state for the exporter's only block template, from the response to `createNewBlock` until the guard
/// releases the template.
#[derive(Debug)]
pub(super) struct Template {
    /// The node's export ID for the template.
    pub export: u32,
    /// Whether the exporter has called `destroy`.
    pub destroyed: bool,
}

impl ProtocolState {
    /// Checks that the exporter may request a template: the exporter must have no template, and no request for a
    /// template under way.
    ///
    /// # Errors
    /// The exporter already has a template, or has already requested a template.
    pub(super) fn may_create_template(&self) -> Result<(), &'static str> {
        let is_requested =
            self.questions.any_under_way(|_, purpose| matches!(purpose, CallPurpose::CreateNewBlock));
        if self.template.is_some() || is_requested {
            Err("request for a second block template")
        } else {
            Ok(())
        }
    }

    /// Checks that the exporter may call this method of its template now. Returns whether the method is `destroy`.
    ///
    /// # Errors
    /// Another call on the template is under way, the template is destroyed, or the method is not permitted.
    pub(super) fn may_call(&self, template: &Template, method: Method) -> Result<bool, &'static str> {
        let destroys = method == message::DESTROY_TEMPLATE;
        if self.is_template_called() {
            Err("two concurrent calls on a block template")
        } else if template.destroyed {
            Err("call on a destroyed block template")
        } else if destroys || message::reads_template(method) {
            Ok(destroys)
        } else {
            Err("call on a block template that does not read it")
        }
    }

    fn is_template_called(&self) -> bool {
        self.questions.any_under_way(|_, purpose| matches!(purpose, CallPurpose::CallTemplate { .. }))
    }

    /// Releases the block template if the exporter no longer uses it and no call on it is under way.
    pub(super) fn release_unused_template(&mut self) {
        let is_unused = |template: &mut Template| {
            self.draining_since.is_some() || !self.capabilities.has(template.export)
        };
        if !self.is_template_called()
            && let Some(Template { export, .. }) = self.template.take_if(is_unused)
        {
            self.capabilities.remove(export);
            self.finishes.push_back(GuardMessage::Release { export, count: 1 });
        }
    }
}
