//! Metrics of the next block, which are read from block templates (candidates for the next block). The exporter
//! requests templates from the node periodically, for a limited share of the node's time.
//!
//! The node holds `cs_main` and the mempool's lock while it builds a template. The requests run on a separate thread of
//! the node, so a request to which the node never responds does not delay other calls.

use std::ops::ControlFlow;
use std::pin::pin;
use std::rc::Rc;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::context::{Context, NewTip, NextBlockMode};
use super::rate_limit::{RateLimit, Suspensions};
use crate::ipc::{BlockContents, BlockHash, BlockTemplate, Interfaces, Mining, NodeThread};
use crate::json_rpc::CallError;

/// Whether the exporter requests templates from this node. Nodes of development branches, which have the Chain or the
/// Node interface, are excluded, because such a node aborts with an exception if it cannot build a template.
pub fn is_wanted(interfaces: &Interfaces, mode: NextBlockMode) -> bool {
    let is_branch = interfaces.chain.is_some() || interfaces.node.is_some();
    if mode == NextBlockMode::On && is_branch {
        info!(
            "--next-block on has no effect: a node with the Chain or Node interface aborts if it cannot build a template"
        );
    }
    mode != NextBlockMode::Off && interfaces.mining.is_some() && !is_branch
}

/// Minimum time between the starts of two requests for a template, as a multiple of the duration of the first request.
/// With 100, requests take at most 1 % of the node's time.
const TIME_SHARE: u32 = 100;

/// The task that requests block templates over one connection, and exports the number, weight, fees and signature
/// operations of their transactions.
pub struct TemplatePoller {
    mining: Mining,
    context: Rc<Context>,
    new_tip: watch::Receiver<Option<NewTip>>,
    limit: RateLimit,
    last_parent: LastParent,
    /// Whether the last request for a template failed. Only the first of several failed requests in a row is logged.
    failing: bool,
}

/// Parent block of the last block template that the exporter has read; `None` before the first template.
#[derive(Default)]
struct LastParent(Option<BlockHash>);

impl LastParent {
    /// Returns `new_tip` if the template with this parent is the first template that is built on `new_tip`. An earlier
    /// template may have the same parent, because the node may have built a template on the block before it reported
    /// the block as the tip.
    fn first_after(&mut self, new_tip: Option<NewTip>, parent: BlockHash) -> Option<NewTip> {
        let is_first = self.0.replace(parent) != Some(parent);
        new_tip.filter(|tip| is_first && tip.hash == parent)
    }
}

/// Totals of a template's transactions, in the order of `NextBlockMetrics::totals`.
type TemplateTotals = [f64; 4];

impl TemplatePoller {
    /// Creates a poller whose calls run on `thread`, which must run no other calls. Returns `None` if the node has no
    /// Mining interface.
    pub fn new(interfaces: &Interfaces, thread: &NodeThread, context: &Rc<Context>) -> Option<Self> {
        let mining = interfaces.mining.as_ref()?.on_thread(&thread.without_deadline());
        let new_tip = context.new_tip.subscribe();
        context.metrics.next_block.start();
        let share = if context.config.next_block == NextBlockMode::Auto { TIME_SHARE } else { 0 };
        let limit = RateLimit::new(context.config.poll_interval, share);
        Some(TemplatePoller {
            mining,
            context: context.clone(),
            new_tip,
            limit,
            last_parent: LastParent::default(),
            failing: false,
        })
    }

    /// Requests templates periodically, until the connection is closed or the node responds that it does not have the
    /// method `createNewBlock`.
    pub async fn run(mut self) {
        let mut new_tip = None;
        let mut suspensions = Suspensions::new();
        // Creates the series of failed template requests with value 0, before the first response.
        self.context.metrics.exporter.poll_failures.inc_by(["Mining.createNewBlock"], 0);
        loop {
            if self.poll(new_tip.take()).await.is_break() {
                return self.context.metrics.next_block.clear();
            }
            tokio::select! {
                () = sleep_until(self.limit.due()) => {}
                () = suspensions.next() => {}
                Ok(()) = self.new_tip.changed() => match self.limit.due_at_event() {
                    due if due <= Instant::now() => new_tip = *self.new_tip.borrow_and_update(),
                    due => {
                        // The exported values are of a template that was built on another block than the new tip.
                        self.context.metrics.next_block.clear();
                        sleep_until(due).await;
                    }
                }
            }
        }
    }

    /// Requests one template now, and exports the totals of its transactions. `new_tip` is the new tip that caused the
    /// request; `None` if the request is periodic. Returns `Break` if further requests cannot succeed, because the
    /// connection is closed or the node does not have the method `createNewBlock`.
    pub async fn poll(&mut self, new_tip: Option<NewTip>) -> ControlFlow<()> {
        let context = self.context.clone();
        let metrics = &context.metrics.next_block;
        let failures = &context.metrics.exporter.poll_failures;
        let started = Instant::now();
        let answer = self.request_template(new_tip).await;
        let ended = Instant::now();
        if answer.is_ok() {
            self.limit.succeeded(started, ended);
            if new_tip.is_some() {
                self.limit.was_early(started);
            }
        } else {
            self.limit.failed(ended);
        }
        match answer {
            Ok(Some(totals)) => {
                failures.inc_by(["Mining.createNewBlock"], 0);
                self.failing = false;
                let shown_for = self.limit.lifetime();
                for (gauge, total) in metrics.totals().into_iter().zip(totals) {
                    gauge.set_for(shown_for, Some(total));
                }
            }
            Ok(None) => metrics.clear(),
            Err(CallError::Disconnected(_) | CallError::Unimplemented(_)) => return ControlFlow::Break(()),
            Err(error) => {
                failures.inc_by(["Mining.createNewBlock"], 1);
                if !std::mem::replace(&mut self.failing, true) {
                    context.warn_limited(&format!(
                        "the node returned no block template: {error}; retrying until it succeeds"
                    ));
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Requests a template, and reads the totals of its transactions. Returns `None` when the node is shutting down,
    /// and in mode `auto` also during initial block download, when no template is requested.
    async fn request_template(
        &mut self,
        new_tip: Option<NewTip>,
    ) -> Result<Option<TemplateTotals>, CallError> {
        let auto = self.context.config.next_block == NextBlockMode::Auto;
        if auto && self.mining.is_initial_block_download().await? {
            return Ok(None);
        }
        let requested_at = Instant::now();
        let Some(template) = self.create_template().await? else { return Ok(None) };
        let created = Instant::now();
        let contents = read(&template).await;
        // The template is destroyed even if reading it failed, to free the node's memory.
        template.destroy().await?;
        let (parent, totals) = contents?;
        let metrics = &self.context.metrics.next_block;
        metrics.duration.observe((created - requested_at).as_secs_f64());
        if let Some(tip) = self.last_parent.first_after(new_tip, parent) {
            metrics.after_tip.observe((created - tip.at).as_secs_f64());
        }
        debug!(took = ?requested_at.elapsed(), built = ?(created - requested_at), "template");
        Ok(Some(totals))
    }

    /// Requests a template from the node. Waits for the response without a time limit, because the request can be
    /// neither cancelled nor repeated while the node builds the template.
    async fn create_template(&self) -> Result<Option<BlockTemplate>, CallError> {
        let call_timeout = self.context.config.call_timeout;
        let mut creating = pin!(self.mining.create_new_block());
        match timeout(call_timeout, &mut creating).await {
            Ok(created) => created,
            Err(_) => {
                warn!(
                    "the node has not built a block template within {}; waiting for it, without further requests",
                    humantime::format_duration(call_timeout)
                );
                creating.await
            }
        }
    }
}

/// Reads the parent block of a template, and the totals of its transactions. The weight of the transactions is computed
/// from the serialized block of the template, of up to 4 MB. The node holds no lock while it copies this block.
async fn read(template: &BlockTemplate) -> Result<(BlockHash, TemplateTotals), CallError> {
    let fees = template.fees().await?;
    let sigops = template.sigops().await?;
    let read =
        |block: &[u8]| Some((BlockHash::try_from(block.get(4..36)?).ok()?, BlockContents::count(block)?));
    let Some((parent, contents)) = template.block(read).await? else {
        return Err(CallError::Malformed("the block template is not a valid block".into()));
    };
    let sum = |values: &[i64]| values.iter().fold(0, |sum: i64, &one| sum.saturating_add(one)) as f64;
    let totals = [fees.len() as f64, contents.weight as f64, sum(&fees), sum(&sigops)];
    Ok((parent, totals))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_template_on_a_tip_is_not_the_first_after_it() {
        let (a, b) = (BlockHash([1; 32]), BlockHash([2; 32]));
        let tip = |hash| Some(NewTip { hash, at: Instant::now() });
        let mut last_parent = LastParent::default();
        assert!(last_parent.first_after(None, a).is_none(), "no new tip");
        assert!(last_parent.first_after(tip(b), b).is_some());
        assert!(last_parent.first_after(tip(a), b).is_none(), "on another block");
        assert!(last_parent.first_after(None, a).is_none(), "due, before the tip is reported");
        assert!(last_parent.first_after(tip(a), a).is_none());
        assert!(last_parent.first_after(tip(b), b).is_some(), "a reorg back");
    }
}
