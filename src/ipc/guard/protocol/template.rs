//! The state of a block template, from the exporter's request to the guard's release.
//!
//! The node keeps the transactions of a template in memory until the template is destroyed or released. A node reads
//! freed memory if it destroys a template while it handles another call on the template, or if it handles a call after
//! `destroy`. Therefore the exporter has at most one template, makes one call on it at a time, and makes no call after
//! `destroy`. Only the guard releases the template. The guard releases the template as soon as no call on the template
//! is under way and the exporter has released the template or has exited. The node destroys a released template on a
//! separate thread. The guard does not wait for the destruction, because the node sends no message when the template is
//! destroyed.

use crate::ipc::guard::message::{self, Method};

/// The exporter's only block template in the node's memory: none, requested, or created.
#[derive(Debug, Default, PartialEq)]
pub(super) enum TemplateState {
    #[default]
    None,
    /// `createNewBlock` is under way.
    Requested,
    Held {
        /// The node's export ID for the template.
        export: u32,
        /// Whether a call on the template has no response yet.
        called: bool,
        destroyed: bool,
    },
}

impl TemplateState {
    /// The node's export ID for the template; `None` if there is no template.
    pub fn export(&self) -> Option<u32> {
        match self {
            TemplateState::Held { export, .. } => Some(*export),
            _ => None,
        }
    }

    /// Checks that the exporter may request a template: the exporter must have no template, and no request for a
    /// template under way.
    ///
    /// # Errors
    /// The exporter already has a template, or has already requested a template.
    pub fn may_be_created(&self) -> Result<(), &'static str> {
        if *self == TemplateState::None { Ok(()) } else { Err("request for a second block template") }
    }

    pub fn on_create_start(&mut self) {
        *self = TemplateState::Requested;
    }

    /// Records the response to `createNewBlock`. `export` is `None` if the response has no template, or if an early
    /// `Finish` of the exporter releases the template.
    pub fn on_create_end(&mut self, export: Option<u32>) {
        *self = export.map_or(TemplateState::None, |export| TemplateState::Held {
            export,
            called: false,
            destroyed: false,
        });
    }

    /// Checks that the exporter may call this method of the template now. Returns whether the method is `destroy`.
    ///
    /// # Errors
    /// Another call on the template is under way, the template is destroyed, or the method is not permitted.
    pub fn may_be_called(&self, method: Method) -> Result<bool, &'static str> {
        let destroys = method == message::DESTROY_TEMPLATE;
        match self {
            TemplateState::Held { called: true, .. } => Err("two concurrent calls on a block template"),
            TemplateState::Held { destroyed: true, .. } => Err("call on a destroyed block template"),
            _ if destroys || message::reads_template(method) => Ok(destroys),
            _ => Err("call on a block template that does not read it"),
        }
    }

    pub fn on_call_start(&mut self, destroys: bool) {
        if let TemplateState::Held { called, destroyed, .. } = self {
            (*called, *destroyed) = (true, destroys);
        }
    }

    pub fn on_call_end(&mut self) {
        if let TemplateState::Held { called, .. } = self {
            *called = false;
        }
    }

    /// If the exporter no longer uses the template and no call on it is under way, removes the template from the state
    /// and returns the template's export ID. The caller has to release the template.
    pub fn take_unused(&mut self, is_used: impl FnOnce(u32) -> bool) -> Option<u32> {
        match *self {
            TemplateState::Held { export, called: false, .. } if !is_used(export) => {
                *self = TemplateState::None;
                Some(export)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::mining_capnp::block_template;
    use capnp::traits::HasTypeId;

    const GET_BLOCK: Method = (block_template::Client::TYPE_ID, 2);
    const SUBMIT_SOLUTION: Method = (block_template::Client::TYPE_ID, 7);

    fn held(called: bool, destroyed: bool) -> TemplateState {
        TemplateState::Held { export: 90, called, destroyed }
    }

    #[test]
    fn calls_are_one_at_a_time_read_only_and_none_after_destroy() {
        for (template, method, expected) in [
            (held(false, false), GET_BLOCK, Ok(false)),
            (held(false, false), message::DESTROY_TEMPLATE, Ok(true)),
            (held(false, false), SUBMIT_SOLUTION, Err("call on a block template that does not read it")),
            (held(true, false), GET_BLOCK, Err("two concurrent calls on a block template")),
            (held(true, false), message::DESTROY_TEMPLATE, Err("two concurrent calls on a block template")),
            (held(false, true), GET_BLOCK, Err("call on a destroyed block template")),
        ] {
            assert_eq!(template.may_be_called(method), expected, "{template:?} {method:?}");
        }
    }

    #[test]
    fn one_template_exists_until_it_is_released() {
        let mut template = TemplateState::default();
        assert!(template.may_be_created().is_ok());
        template.on_create_start();
        assert!(template.may_be_created().is_err());
        template.on_create_end(Some(90));
        assert!(template.may_be_created().is_err());
        template.on_call_start(true);
        assert_eq!(template, held(true, true));
        assert_eq!(template.take_unused(|_| false), None, "a call is under way");
        template.on_call_end();
        assert_eq!(template.take_unused(|_| true), None, "the exporter has it");
        assert_eq!(template.take_unused(|_| false), Some(90));
        assert!(template.may_be_created().is_ok());
        template.on_create_start();
        template.on_create_end(None);
        assert!(template.may_be_created().is_ok());
    }
}
