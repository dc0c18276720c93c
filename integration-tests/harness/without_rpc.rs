//! A proxy that forwards IPC connections to a real node and hides the node's Rpc interface. For a client of the
//! proxy, the node has the same interfaces as Bitcoin Core 31.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use bitcoind_exporter::testing::schema::init_capnp::init;
use capnp::Error;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{RpcSystem, new_client, twoparty};
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

/// A running proxy that forwards only the calls of the Init and Mining interfaces to a node. The proxy stops when this
/// value is dropped.
pub struct WithoutRpc {
    dir: TempDir,
    _end: oneshot::Sender<()>,
}

impl WithoutRpc {
    /// Starts a proxy in front of the node's socket `node`.
    pub fn start(node: &Path) -> Self {
        let dir = TempDir::new().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join("node.sock")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (end, ended) = oneshot::channel();
        let node = node.to_path_buf();
        // The exporter calls a node without JSON-RPC over IPC only when the process that listens on the socket has a
        // thread with this name, because a real node starts this thread after it has loaded its chain.
        let thread = std::thread::Builder::new().name("b-msghand".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async {
                tokio::select! {
                    () = serve(UnixListener::from_std(listener).unwrap(), node) => {}
                    _ = ended => {}
                }
            });
        });
        thread.unwrap();
        WithoutRpc { dir, _end: end }
    }

    /// Path of the socket on which the proxy listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("node.sock")
    }
}

/// Runs a proxy that listens on `socket`, on the calling thread until the process exits.
pub fn serve_forever(socket: &Path, node: &Path) {
    let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    nix::sys::prctl::set_name(c"b-msghand").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        serve(UnixListener::from_std(listener).unwrap(), node.into()).await;
    });
}

/// Accepts connections and forwards them to the node.
async fn serve(listener: UnixListener, node: PathBuf) {
    while let Ok((client, _)) = listener.accept().await {
        let Ok(node) = UnixStream::connect(&node).await else { continue };
        tokio::task::spawn_local(async move {
            let mut system = RpcSystem::new(Box::new(network(node, Side::Client)), None);
            let node = Init(system.bootstrap(Side::Server));
            let ours: init::Client = new_client(node);
            let clients = RpcSystem::new(Box::new(network(client, Side::Server)), Some(ours.client));
            tokio::select! {
                _ = system => {}
                _ = clients => {}
            }
        });
    }
}

/// A Cap'n Proto connection over this stream.
fn network(
    stream: UnixStream,
    side: Side,
) -> twoparty::VatNetwork<tokio_util::compat::Compat<tokio::net::unix::OwnedReadHalf>> {
    let (read, write) = stream.into_split();
    twoparty::VatNetwork::new(read.compat(), write.compat_write(), side, Default::default())
}

/// The Init interface of the proxy, which forwards `construct` and `makeMining` to the node.
struct Init(init::Client);

impl init::Server for Init {
    async fn construct(
        self: Rc<Self>,
        params: init::ConstructParams,
        mut results: init::ConstructResults,
    ) -> Result<(), Error> {
        let mut request = self.0.construct_request();
        request.get().set_thread_map(params.get()?.get_thread_map()?);
        results.get().set_thread_map(request.send().promise.await?.get()?.get_thread_map()?);
        Ok(())
    }

    async fn make_mining(
        self: Rc<Self>,
        params: init::MakeMiningParams,
        mut results: init::MakeMiningResults,
    ) -> Result<(), Error> {
        let mut request = self.0.make_mining_request();
        request.get().init_context().set_thread(params.get()?.get_context()?.get_thread()?);
        results.get().set_result(request.send().promise.await?.get()?.get_result()?);
        Ok(())
    }
}
