//! The loop over a node without IPC: JSON-RPC over HTTP alone, until it cannot be used any more.

use std::rc::Rc;

use tokio::sync::{Notify, mpsc};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::context::Context;
use super::poll::Poller;
use super::session::{End, keep_polling, show, show_failed};
use super::tip::{TipEnd, TipWatch};
use crate::http_rpc::HttpRpc;
use crate::ipc::source::Source;
use crate::ipc::{Interfaces, JsonRpc};

/// A node that answers over HTTP.
pub struct HttpSession {
    http: HttpRpc,
    /// JSON-RPC over HTTP, and nothing else.
    pub interfaces: Rc<Interfaces>,
    context: Rc<Context>,
}

impl HttpSession {
    /// Of a node that was found usable.
    pub fn new(http: HttpRpc, context: &Rc<Context>) -> Self {
        let json_rpc = Some(JsonRpc::over_http(http.clone()));
        let interfaces = Rc::new(Interfaces { json_rpc, ..Interfaces::default() });
        HttpSession { http, interfaces, context: context.clone() }
    }

    /// A poller of this node.
    pub fn poller(&self) -> Poller {
        Poller::new(self.interfaces.clone(), self.context.clone())
    }

    /// Polls and follows the tip until something ends it. A node that was restarted need not have been missed: that it has a socket
    /// now shows in its file.
    pub async fn run(self, source: &Source) -> End {
        let socket = source.file();
        let new_tip = Rc::new(Notify::new());
        let (polls_sender, mut polls) = mpsc::unbounded_channel();
        let interval = self.context.config.poll_interval;
        let _polling = AbortOnDropHandle::new(tokio::task::spawn_local(keep_polling(
            self.poller(),
            interval,
            new_tip.clone(),
            polls_sender,
        )));
        let mut tip = Some(TipWatch::over_http(&self.http, &self.interfaces, &self.context, new_tip));
        let mut failing = false;
        loop {
            tokio::select! {
                biased;
                () = self.context.shutdown.cancelled() => return End::ShutdownRequested,
                () = self.http.given_up() => return End::Closed(self.http.why_not().into()),
                end = TipWatch::ended(&mut tip) => return match end {
                    TipEnd::NodeShutsDown => End::NodeShutDown,
                    TipEnd::Lost(error) => error.into(),
                },
                Some(polled) = polls.recv() => {
                    let failed_before = std::mem::replace(&mut failing, polled.is_err());
                    match polled {
                        Ok(_) if source.file().is_some_and(|file| socket != Some(file)) => {
                            return End::Closed("it has a socket now".into());
                        }
                        Ok(polled) => show(&polled, &self.interfaces, &self.context),
                        Err(why) => {
                            show_failed(&why, &self.context);
                            if !failed_before {
                                warn!("a poll failed: {why}");
                            }
                        }
                    }
                }
            }
        }
    }
}
