//! Block templates of the fake node. A client error that would crash a real node is recorded as a fault.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use bitcoin::consensus::serialize;
use bitcoin::{Network, constants};
use bitcoind_exporter::testing::schema::mining_capnp::{block_template, create_new_block_core30, mining};
use capnp::Error;
use capnp::traits::IntoInternalStructReader;
use futures::AsyncRead;
use tokio::sync::watch;

use super::fake::Counts;

/// The fake node's response to a request for a block template.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// A template with this many transactions besides the coinbase.
    Transactions(usize),
    /// An error, because the template cannot be built.
    Failure,
    /// No template, because the node is shutting down.
    Nothing,
}

/// A kind of client calls about block templates. A test can make the fake node leave calls of one kind without a
/// response.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// `createNewBlock` of the Mining interface.
    Create,
    /// `getBlock`, `getTxFees` and `getTxSigops` of a template.
    Read,
    /// `destroy` of a template.
    Destroy,
}

/// The block template service of a fake node: returns templates or errors as the test has set, and detects templates
/// that a client has not released.
#[derive(Clone)]
pub struct Templates {
    pub outcome: Rc<Cell<Outcome>>,
    pub hangs_at: watch::Sender<Option<Step>>,
    counts: Arc<Counts>,
    /// For each block template that a client has not released, the number of the client's connection.
    held: Rc<RefCell<Vec<usize>>>,
}

impl Templates {
    /// Creates the block template service of a fake node, which by default returns templates with two transactions.
    pub fn new(counts: &Arc<Counts>) -> Self {
        Templates {
            outcome: Rc::new(Cell::new(Outcome::Transactions(2))),
            hangs_at: watch::Sender::new(None),
            counts: counts.clone(),
            held: Rc::default(),
        }
    }

    /// Delays a call of this kind until the test lets the fake node respond to such calls.
    async fn passes(&self, step: Step) {
        if *self.hangs_at.borrow() == Some(step) {
            self.counts.hanging.fetch_add(1, Relaxed);
            let _ = self.hangs_at.subscribe().wait_for(|at| *at != Some(step)).await;
            self.counts.hanging.fetch_sub(1, Relaxed);
        }
    }

    /// Responds to `createNewBlock` with the [`Outcome`] that the test has set.
    pub async fn create(
        &self,
        params: &mining::CreateNewBlockParams,
        core30: bool,
        connection: usize,
    ) -> Result<Option<block_template::Client>, Error> {
        self.counts.templates.fetch_add(1, Relaxed);
        self.check_options(params, core30)?;
        if self.held.borrow().contains(&connection) {
            self.counts.fault("a second template was asked for before the first was let go");
        }
        let outcome = self.outcome.get();
        self.passes(Step::Create).await;
        let transactions = match outcome {
            Outcome::Failure => return Err(Error::failed("std::exception: TestBlockValidity failed".into())),
            Outcome::Nothing => return Ok(None),
            Outcome::Transactions(transactions) => transactions,
        };
        self.held.borrow_mut().push(connection);
        Ok(Some(capnp_rpc::new_client(Template {
            transactions,
            templates: self.clone(),
            connection,
            busy: Cell::new(false),
            destroyed: Cell::new(false),
        })))
    }

    /// Records a client error if the parameters of `createNewBlock` are not those that the fake node's version of
    /// Bitcoin Core expects. The structure and the defaults of the parameters differ between Core 30 and later
    /// versions.
    fn check_options(&self, params: &mining::CreateNewBlockParams, core30: bool) -> Result<(), Error> {
        let params = params.get()?;
        let right = if core30 {
            let params: create_new_block_core30::Reader = params.into_internal_struct_reader().into();
            let options = params.get_options()?;
            options.get_use_mempool()
                && options.get_block_reserved_weight() == 8000
                && options.get_coinbase_output_max_additional_sigops() == 400
        } else {
            let options = params.get_options()?;
            !params.get_cooldown()
                && params.get_context()?.has_thread()
                && !options.get_use_mempool()
                && options.get_block_reserved_weight() == 0
        };
        if !right {
            self.counts.fault("a template was asked for with the parameters of another node");
        }
        Ok(())
    }
}

/// A block template of the fake node. A client error is recorded if the client calls the template after `destroy` or
/// during another call.
struct Template {
    transactions: usize,
    templates: Templates,
    connection: usize,
    busy: Cell<bool>,
    destroyed: Cell<bool>,
}

impl Drop for Template {
    fn drop(&mut self) {
        let mut held = self.templates.held.borrow_mut();
        let at = held.iter().position(|of| *of == self.connection).expect("an unreleased template");
        held.swap_remove(at);
        if self.busy.get() {
            self.templates.counts.fault("a template was let go while a call on it was under way");
        }
    }
}

impl Template {
    /// Starts a client's call on the template. Records a client error if the template was destroyed or another call is
    /// under way, because a real node would then read freed memory.
    async fn is_called(&self, step: Step) {
        if self.destroyed.get() {
            self.templates.counts.fault("a template was called after its destroy");
        }
        if self.busy.replace(true) {
            self.templates.counts.fault("two calls on a template at once");
        }
        self.templates.passes(step).await;
        self.busy.set(false);
    }

    /// The serialized block with a coinbase and the template's transactions.
    fn block(&self) -> Vec<u8> {
        let mut block = constants::genesis_block(Network::Regtest);
        block.header.prev_blockhash =
            bitcoin::BlockHash::from_raw_hash(bitcoin::hashes::Hash::from_byte_array([7; 32]));
        let transaction = block.txdata[0].clone();
        block.txdata.extend(std::iter::repeat_n(transaction, self.transactions));
        serialize(&block)
    }
}

impl block_template::Server for Template {
    async fn destroy(
        self: Rc<Self>,
        _: block_template::DestroyParams,
        _: block_template::DestroyResults,
    ) -> Result<(), Error> {
        self.is_called(Step::Destroy).await;
        self.destroyed.set(true);
        Ok(())
    }

    async fn get_block(
        self: Rc<Self>,
        _: block_template::GetBlockParams,
        mut results: block_template::GetBlockResults,
    ) -> Result<(), Error> {
        self.is_called(Step::Read).await;
        results.get().set_result(&self.block());
        Ok(())
    }

    async fn get_tx_fees(
        self: Rc<Self>,
        _: block_template::GetTxFeesParams,
        mut results: block_template::GetTxFeesResults,
    ) -> Result<(), Error> {
        self.is_called(Step::Read).await;
        let mut fees = results.get().init_result(self.transactions as u32);
        (0..self.transactions).for_each(|at| fees.set(at as u32, 1000));
        Ok(())
    }

    async fn get_tx_sigops(
        self: Rc<Self>,
        _: block_template::GetTxSigopsParams,
        mut results: block_template::GetTxSigopsResults,
    ) -> Result<(), Error> {
        self.is_called(Step::Read).await;
        let mut sigops = results.get().init_result(self.transactions as u32);
        (0..self.transactions).for_each(|at| sigops.set(at as u32, 4));
        Ok(())
    }
}

/// The reading half of a client's connection to the fake node. Records a client error if the client closes the
/// connection with an unreleased template.
pub struct Watched<R> {
    pub reads: R,
    pub templates: Templates,
    pub connection: usize,
}

impl<R: AsyncRead + Unpin> AsyncRead for Watched<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.reads).poll_read(context, buffer);
        if matches!(read, Poll::Ready(Ok(0))) && self.templates.held.borrow().contains(&self.connection) {
            self.templates.counts.fault("a template was left behind");
        }
        read
    }
}
