//! The life of a block template.
//!
//! The node keeps a template's transactions in memory until the template is destroyed or released. A destroy while it
//! answers another call on the template, or a call after one, reads memory that is gone. So the exporter has at most one
//! template, makes one call on it at a time, and none after a destroy; and only the guard releases it: when the exporter has
//! no more use for it, or is gone, and no call on it is under way. A released template is destroyed on a thread that the node
//! has for that, which no answer tells of and nobody waits for.

use super::{FromExporter, Own, ProtocolState, Purpose};
use crate::ipc::guard::message::{self, Method, Target};

/// A template that the node holds for the exporter.
#[derive(Debug)]
pub(super) struct Template {
    /// The node's number for it.
    pub export: u32,
    /// References that the exporter was given, all of which the node still counts.
    references: u32,
    /// A destroy was asked for.
    destroyed: bool,
}

impl ProtocolState {
    /// The exporter asks for a template.
    pub(super) fn may_create_template(&self) -> Result<Purpose, FromExporter> {
        let asks = |it: &Purpose| matches!(it, Purpose::CreateNewBlock);
        match self.templates.is_empty() && !self.questions.values().any(|it| asks(&it.purpose)) {
            true => Ok(Purpose::CreateNewBlock),
            false => Err(FromExporter::Refuse("it asks for a second block template")),
        }
    }

    /// The exporter calls a method of a capability. `None` if it is no template.
    pub(super) fn may_call_template(
        &mut self,
        target: Target,
        method: Method,
    ) -> Option<Result<Purpose, FromExporter>> {
        let export = match target {
            Target::Export(export) => export,
            Target::Answer(question) if self.gives_template(question) => {
                return Some(Err(FromExporter::Refuse("it calls a block template before it is there")));
            }
            Target::Answer(_) => return None,
        };
        let is_called = self.is_called(export);
        let template = self.templates.iter_mut().find(|it| it.export == export)?;
        if is_called {
            return Some(Err(FromExporter::Refuse("it makes two calls on a block template at once")));
        }
        if template.destroyed {
            return Some(Err(FromExporter::Refuse("it calls a block template that it has destroyed")));
        }
        if method == message::DESTROY_TEMPLATE {
            template.destroyed = true;
        } else if !message::reads_template(method) {
            return Some(Err(FromExporter::Refuse("it does more with a block template than to read it")));
        }
        Some(Ok(Purpose::CallTemplate(export)))
    }

    /// Whether a template is in the answer to this call, or will be. Templates are called by their own numbers only.
    fn gives_template(&self, question: u32) -> bool {
        let is_template = |export: &u32| self.templates.iter().any(|it| it.export == *export);
        self.questions.get(&question).is_some_and(|it| {
            matches!(it.purpose, Purpose::CreateNewBlock) || it.results.iter().any(is_template)
        })
    }

    /// The node gave a template.
    pub(super) fn keep_template(&mut self, export: u32) {
        self.templates.push(Template { export, references: 1, destroyed: false });
    }

    /// Releases the templates that the exporter has no more use for.
    pub(super) fn let_templates_go(&mut self) {
        for at in (0..self.templates.len()).rev() {
            let Template { export, references, .. } = self.templates[at];
            let is_used = self.leaving.is_none() && self.exports.get(&export).is_some_and(|&held| held > 0);
            if !is_used && !self.is_called(export) {
                self.templates.swap_remove(at);
                self.exports.remove(&export);
                self.finishes.push_back(Own::Release { export, count: references });
            }
        }
    }

    /// Whether a call on it is under way.
    fn is_called(&self, export: u32) -> bool {
        self.questions.values().any(|it| matches!(it.purpose, Purpose::CallTemplate(of) if of == export))
    }
}
