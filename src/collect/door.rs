//! The way to the node: its socket, or HTTP alone where there is no socket.

use anyhow::{Result, anyhow};

use super::context::{Context, UtxoTrace};
use super::http_rpc::Checker;
use crate::ipc::source::Source;
use crate::supervisor::Guarded;

/// Where a node can be asked.
pub enum Door {
    /// The socket, connected behind a guard.
    Ipc(Guarded),
    /// JSON-RPC over HTTP, which answered; and why there is no connection over IPC.
    Http(Checker, String),
}

/// Connects to the socket. Where that fails, and the node need not have one, asks over HTTP.
pub async fn open(source: &mut Source, context: &Context) -> Result<Door> {
    let config = &context.config;
    let trace_budget = (config.utxo_trace == UtxoTrace::Auto).then_some(config.utxo_trace_budget);
    let error = match source.open(trace_budget).await {
        Ok(guarded) => return Ok(Door::Ipc(guarded)),
        Err(error) => error,
    };
    let Some(http) = context.http_rpc.as_ref().filter(|http| http.settings().alone) else {
        return Err(error);
    };
    let checker = Checker::alone(http.clone());
    checker.check().await;
    match http.is_used() {
        true => Ok(Door::Http(checker, format!("{error:#}"))),
        false => Err(anyhow!("{error:#}; JSON-RPC over HTTP: {}", http.why_not())),
    }
}
