//! Client of the Mining interface's block templates. The guard, the process that relays the exporter's calls to the
//! node, forwards only calls that read a template, and `destroy`.

use capnp::capability::Request;

use super::connection::{BoundCapability, call};
use super::guard::CREATE_NEW_BLOCK;
use super::mining::MiningSchema;
use super::{CallError, Mining};
use crate::schema::mining_capnp::{block_template, create_new_block_core30, mining};

/// A block template that the node has assembled from its mempool, and that the node keeps in memory until
/// [`destroy`](Self::destroy).
pub type BlockTemplate = BoundCapability<block_template::Client>;

impl Mining {
    /// Requests a template of the block that the node would mine now. `None` means that the node is shutting down. Core
    /// 30 assembles the template on its event loop thread, which serves all IPC connections.
    ///
    /// # Errors
    /// The node does not respond in time, returns an error, or closes the connection ([`CallError`]).
    pub async fn create_new_block(&self) -> Result<Option<BlockTemplate>, CallError> {
        let answer = match self.schema {
            MiningSchema::Core30 => {
                let client = &self.capability.client.client;
                let (interface, ordinal) = CREATE_NEW_BLOCK; // the same in the schemas of Core 30 and 31
                let mut create: Request<
                    create_new_block_core30::Owned,
                    mining::create_new_block_results::Owned,
                > = client.new_call(interface, ordinal, None);
                // Core's default values for these options. The schema of Core 31 and later contains these default
                // values; the schema of Core 30 does not.
                let mut options = create.get().init_options();
                options.set_use_mempool(true);
                options.set_block_reserved_weight(8000);
                options.set_coinbase_output_max_additional_sigops(400);
                self.capability.thread.call(|| create.send().promise).await?
            }
            MiningSchema::Core31 => call!(self.capability, create_new_block_request, |params| {
                params.reborrow().init_options();
                // With the default value `true` of this option, the node responds only after it has caught up with the
                // chain. The exporter does not need this delay, because the caller of this method decides when to
                // request a template.
                params.set_cooldown(false)
            })?,
        };
        let answer = answer.get()?;
        let template = answer.has_result().then(|| answer.get_result()).transpose()?;
        Ok(template.map(|client| self.capability.thread.bind(client)))
    }
}

impl BlockTemplate {
    /// Fee of each transaction of the template except the coinbase, in satoshis.
    ///
    /// # Errors
    /// The node does not respond in time, returns an error, or closes the connection ([`CallError`]).
    pub async fn fees(&self) -> Result<Vec<i64>, CallError> {
        let answer = call!(self, get_tx_fees_request)?;
        Ok(answer.get()?.get_result()?.iter().collect())
    }

    /// Signature operations cost of each transaction of the template except the coinbase. The consensus limit for a
    /// block is 80,000.
    ///
    /// # Errors
    /// The node does not respond in time, returns an error, or closes the connection ([`CallError`]).
    pub async fn sigops(&self) -> Result<Vec<i64>, CallError> {
        let answer = call!(self, get_tx_sigops_request)?;
        Ok(answer.get()?.get_result()?.iter().collect())
    }

    /// Requests the template's serialized block, which has up to 4 MB, and passes the block to `read` without a copy.
    /// The block's coinbase is a placeholder.
    ///
    /// # Errors
    /// The node does not respond in time, returns an error, or closes the connection ([`CallError`]).
    pub async fn block<T>(&self, read: impl FnOnce(&[u8]) -> T) -> Result<T, CallError> {
        let answer = call!(self, get_block_request)?;
        Ok(read(answer.get()?.get_result()?))
    }

    /// Requests that the node destroys the template, and waits until the node has destroyed it.
    ///
    /// # Errors
    /// The node does not respond in time, returns an error, or closes the connection ([`CallError`]).
    pub async fn destroy(self) -> Result<(), CallError> {
        call!(self, destroy_request).map(drop)
    }
}
