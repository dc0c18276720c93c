//! Runs a real node (`bitcoin-node` or `bitcoind`) on regtest.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bitcoin::absolute::LockTime;
use bitcoin::consensus::encode::serialize_hex;
use bitcoin::script::ScriptBuf;
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, Sequence, Transaction, TxIn, TxOut, Txid, Witness};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::eventually;

/// Path of `bitcoin-node`, which `integration-tests/run` sets in BITCOIN_NODE.
pub fn bitcoin_node() -> PathBuf {
    std::env::var_os("BITCOIN_NODE").expect("BITCOIN_NODE is not set: use integration-tests/run").into()
}

/// Path of the `bitcoin-cli` from the same build as [`bitcoin_node`].
pub fn bitcoin_cli() -> PathBuf {
    let node = bitcoin_node();
    let beside = node.with_file_name("bitcoin-cli");
    if beside.exists() { beside } else { node.parent().unwrap().with_file_name("bin").join("bitcoin-cli") }
}

/// Path and arguments of a node without IPC: `bitcoind`, or `bitcoin-node -noipcbind` if the build of BITCOIN_NODE has
/// no `bitcoind`.
fn bitcoind() -> (PathBuf, Vec<String>) {
    let beside = bitcoin_cli().with_file_name("bitcoind");
    match std::env::var_os("BITCOIND").map(PathBuf::from).or(Some(beside).filter(|path| path.exists())) {
        Some(bitcoind) => (bitcoind, Vec::new()),
        None => {
            eprintln!("there is no bitcoind beside bitcoin-cli: using bitcoin-node -noipcbind instead");
            (bitcoin_node(), vec!["-noipcbind".into()])
        }
    }
}

/// A free port below the kernel's range of ephemeral ports, which the kernel therefore does not assign to other sockets
/// before the node binds it or while the node restarts.
pub fn free_port() -> u16 {
    let mut candidates = std::iter::repeat_with(|| rand::random_range(10_000..32_000)).take(1000);
    candidates.find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok()).expect("a free port")
}

/// An -rpcauth argument in the format of Bitcoin Core's share/rpcauth/rpcauth.py.
pub fn rpcauth(user: &str, password: &str) -> String {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"salt");
    let digest = ring::hmac::sign(&key, password.as_bytes());
    let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("-rpcauth={user}:salt${digest}")
}

/// A node on regtest with its own data directory. The node is killed when this value is dropped.
pub struct Node {
    dir: TempDir,
    rpc_port: u16,
    pub p2p_port: u16,
    program: PathBuf,
    arguments: Vec<String>,
    child: Child,
}

impl Node {
    /// Starts `bitcoin-node` with an IPC socket and these additional arguments. Waits until the node responds.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_program(bitcoin_node(), [&["-ipcbind=unix"], arguments].concat())
    }

    /// Starts a node without IPC, usually `bitcoind`.
    pub fn start_bitcoind(arguments: &[&str]) -> Self {
        let (program, needed) = bitcoind();
        let needed: Vec<_> = needed.iter().map(String::as_str).collect();
        Self::start_program(program, [&needed[..], arguments].concat())
    }

    /// Starts the node binary `program` with a new data directory.
    pub fn start_program(program: PathBuf, arguments: Vec<&str>) -> Self {
        Self::start_program_in(TempDir::new().unwrap(), program, arguments)
    }

    /// Like [`Self::start`], but with this data directory.
    pub fn start_in(dir: TempDir, arguments: &[&str]) -> Self {
        Self::start_program_in(dir, bitcoin_node(), [&["-ipcbind=unix"], arguments].concat())
    }

    /// Starts the node binary `program` with this data directory. Waits until the node responds.
    pub fn start_program_in(dir: TempDir, program: PathBuf, arguments: Vec<&str>) -> Self {
        let arguments: Vec<_> = arguments.into_iter().map(str::to_string).collect();
        let (rpc_port, p2p_port) = (free_port(), free_port());
        let child = Self::launch(dir.path(), &program, rpc_port, p2p_port, &arguments);
        let mut node = Node { dir, rpc_port, p2p_port, program, arguments, child };
        for _ in 0..5 {
            if node.has_its_ports() {
                break;
            }
            std::fs::remove_file(node.dir.path().join("stderr")).unwrap();
            (node.rpc_port, node.p2p_port) = (free_port(), free_port());
            node.child =
                Self::launch(node.dir.path(), &node.program, node.rpc_port, node.p2p_port, &node.arguments);
        }
        node.until_it_answers();
        node
    }

    /// Starts the node's process, whose stderr is appended to the file `stderr`.
    fn launch(dir: &Path, program: &Path, rpc_port: u16, p2p_port: u16, arguments: &[String]) -> Child {
        let stderr = std::fs::File::options().append(true).create(true).open(dir.join("stderr")).unwrap();
        Command::new(program)
            .args(["-regtest", "-server", "-listenonion=0", "-printtoconsole=0", "-acceptnonstdtxn=1"])
            .args([format!("-datadir={}", dir.display()), format!("-rpcport={rpc_port}")])
            .args([format!("-bind=127.0.0.1:{p2p_port}"), "-fixedseeds=0".into(), "-dnsseed=0".into()])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("the node starts")
    }

    /// Waits until the node responds or exits. Returns false if another process was using one of the node's ports.
    fn has_its_ports(&mut self) -> bool {
        eventually("the node starts", || match self.child.try_wait().unwrap() {
            Some(_) => Some(!self.stderr().contains("Unable to bind")),
            None => self.try_cli(&["getblockcount"]).ok().map(|_| true),
        })
    }

    /// Waits until the node's JSON-RPC responds.
    fn until_it_answers(&mut self) {
        eventually("the node responds", || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the node ended: {}", self.stderr());
            self.try_cli(&["getblockcount"]).ok()
        });
    }

    /// The node's data directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Path of the node's IPC socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("regtest/node.sock")
    }

    /// Arguments of an exporter that polls this node over HTTP only.
    pub fn over_http(&self) -> [String; 6] {
        let datadir = self.dir().display().to_string();
        ["--datadir".into(), datadir, "--chain".into(), "regtest".into(), "--rpc-url".into(), self.rpc_url()]
    }

    /// URL of the node's JSON-RPC server.
    pub fn rpc_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.rpc_port)
    }

    /// The node's output on stderr so far.
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("stderr")).unwrap()
    }

    /// Calls `bitcoin-cli`. Returns the output or the error message of `bitcoin-cli`.
    pub fn try_cli(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(bitcoin_cli())
            .args([
                "-regtest",
                &format!("-datadir={}", self.dir.path().display()),
                &format!("-rpcport={}", self.rpc_port),
            ])
            .args(["-rpcclienttimeout=30"])
            .args(arguments)
            .output()
            .unwrap();
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).unwrap().trim().to_string())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Calls `bitcoin-cli`, and returns its output.
    pub fn cli(&self, arguments: &[&str]) -> String {
        self.try_cli(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    }

    /// Calls `bitcoin-cli`, and parses its output as JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.cli(arguments)).expect("JSON")
    }

    /// Mines blocks whose coinbase outputs anyone can spend. Returns the blocks' hashes.
    pub fn mine(&self, blocks: u32) -> Vec<String> {
        let hashes = self.json(&["generatetodescriptor", &blocks.to_string(), "raw(51)"]);
        hashes.as_array().unwrap().iter().map(|hash| hash.as_str().unwrap().to_string()).collect()
    }

    /// The ID of the coinbase transaction of a block.
    pub fn coinbase_of(&self, block: &str) -> Txid {
        self.json(&["getblock", block])["tx"][0].as_str().unwrap().parse().unwrap()
    }

    /// Makes these JSON-RPC calls (method and parameters) over HTTP in one batch. Panics if a call fails.
    pub fn batch(&self, calls: &[(&str, Value)]) {
        let answers = self.try_batch(calls).unwrap();
        let failed = answers.iter().find(|answer| !answer["error"].is_null());
        assert!(failed.is_none() && answers.len() == calls.len(), "{failed:?}");
    }

    /// Makes these JSON-RPC calls (method and parameters) over HTTP in one batch. Returns the responses.
    pub fn try_batch(&self, calls: &[(&str, Value)]) -> std::io::Result<Vec<Value>> {
        let call = |(method, params): &(&str, Value)| json!({"id": 1, "method": method, "params": params});
        let body = Value::from_iter(calls.iter().map(call)).to_string();
        let cookie = std::fs::read(self.dir().join("regtest/.cookie"))?;
        let mut stream = TcpStream::connect(("127.0.0.1", self.rpc_port))?;
        let head = format!(
            "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Basic {}\r\nContent-Length: {}\r\n\r\n",
            BASE64_STANDARD.encode(cookie),
            body.len()
        );
        stream.write_all((head + &body).as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        Ok(serde_json::from_str(body)?)
    }

    /// Fills the mempool with independent transactions. A mined transaction splits the coinbase of `block` into
    /// outputs, and each transaction in the mempool spends one of these outputs, with a different fee.
    pub fn fan_out(&self, block: &str, transactions: u64) {
        let (mut divided, _) = self.spending(self.coinbase_of(block), 0);
        let whole: Amount = divided.output.iter().map(|output| output.value).sum();
        let part = |at: u64| TxOut {
            value: whole / transactions - Amount::from_sat(100 + at % 7),
            script_pubkey: divided.output[0].script_pubkey.clone(),
        };
        divided.output = (0..transactions).map(part).collect();
        self.batch(&[("generateblock", json!(["raw(51)", [serialize_hex(&divided)]]))]);
        let parts = (0..transactions).map(|at| {
            let mut spends = divided.clone();
            spends.input[0].previous_output = OutPoint::new(divided.compute_txid(), at as u32);
            let value = divided.output[at as usize].value - Amount::from_sat(1000 + at);
            spends.output = vec![TxOut { value: value / 2, ..divided.output[0].clone() }; 2];
            ("sendrawtransaction", json!([serialize_hex(&spends), 0]))
        });
        self.batch(&parts.collect::<Vec<_>>());
    }

    /// Creates a transaction that spends the first output of the transaction `previous`, but does not send it. Returns
    /// the new transaction and its fee, which is `fee` satoshis or one satoshi more.
    fn spending(&self, previous: Txid, fee: u64) -> (Transaction, u64) {
        // Query the output in the chain first, which also finds an output that a mempool transaction spends. An output
        // of an unconfirmed transaction is found only in the mempool.
        let output = |mempool: &str| self.cli(&["gettxout", &previous.to_string(), "0", mempool]);
        let output = Some(output("false")).filter(|it| !it.is_empty()).unwrap_or_else(|| output("true"));
        let output: Value = serde_json::from_str(&output).expect("an output that is not spent");
        let value = Amount::from_btc(output["value"].as_f64().unwrap());
        let anyone = || ScriptBuf::from_hex("51").unwrap();
        // The transaction has two outputs: with one output, it would be smaller than the minimum size of the
        // transactions that a node relays.
        let value = value.unwrap();
        let half = (value - Amount::from_sat(fee)) / 2;
        let transaction = Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![TxIn {
                previous_output: OutPoint::new(previous, 0),
                script_sig: ScriptBuf::new(),
                sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
                witness: Witness::new(),
            }],
            output: vec![
                TxOut { value: half, script_pubkey: anyone() },
                TxOut { value: half, script_pubkey: anyone() },
            ],
        };
        (transaction, (value - half * 2).to_sat())
    }

    /// Creates a transaction that spends the coinbase of a block, but does not send it.
    pub fn spending_coinbase_of(&self, block: &str, fee: u64) -> Transaction {
        self.spending(self.coinbase_of(block), fee).0
    }

    /// Sends a transaction that spends the coinbase of a block. Returns the transaction's fee in satoshis and its size
    /// in vbytes.
    pub fn spend_coinbase_of(&self, block: &str, fee: u64) -> (u64, u64) {
        let (_, fee, size) = self.spend(self.coinbase_of(block), fee);
        (fee, size)
    }

    /// Sends a transaction that spends the first output of the transaction `previous`. Returns the new transaction's
    /// ID, its fee in satoshis and its size in vbytes.
    pub fn spend(&self, previous: Txid, fee: u64) -> (Txid, u64, u64) {
        let (transaction, fee) = self.spending(previous, fee);
        self.cli(&["sendrawtransaction", &serialize_hex(&transaction), "0"]);
        (transaction.compute_txid(), fee, transaction.vsize() as u64)
    }

    /// Runs `bitcoin-cli stop`, and returns the node's exit status.
    pub fn stop(&mut self) -> ExitStatus {
        self.cli(&["stop"]);
        self.ended()
    }

    /// Waits until the node exits, and returns its exit status.
    pub fn ended(&mut self) -> ExitStatus {
        eventually("the node exits", || self.child.try_wait().unwrap())
    }

    /// Kills the node with SIGKILL, and waits until it has exited.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Kills the node if it is running, and starts it again with the same data directory.
    pub fn restart(&mut self) {
        self.kill();
        self.child =
            Self::launch(self.dir.path(), &self.program, self.rpc_port, self.p2p_port, &self.arguments);
        self.until_it_answers();
    }

    /// Adds this argument to the node's command line. [`Self::restart`] uses the new command line.
    pub fn add_argument(&mut self, argument: &str) {
        self.arguments.push(argument.into());
    }

    /// Removes this argument from the node's command line. [`Self::restart`] uses the new command line.
    pub fn remove_argument(&mut self, argument: &str) {
        self.arguments.retain(|it| it != argument);
    }

    /// Sends a signal to the node's process.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("the node runs");
    }

    /// PID of the node's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
