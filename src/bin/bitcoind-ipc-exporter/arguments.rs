//! The command line.

use std::ffi::OsString;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use bitcoind_exporter::cli::{self, Cli, CommonArgs};
use bitcoind_exporter::endpoint::{self, CHAINS, ChainParams, NodeEndpoint, default_datadir};
use bitcoind_exporter::sandbox::AllowedFiles;
use bitcoind_exporter::{
    Config, Credentials, DatadirCandidates, HttpRpcConfig, NextBlockMode, Password, RPC_PASSWORD_VARIABLE,
    Url, UtxoTraceMode, http_rpc_tls,
};
use clap::Parser;

/// Prometheus metrics of a running Bitcoin node, over its IPC socket, without hurting it.
///
/// The node is a bitcoin-node (Bitcoin Core 30 or later) started with -ipcbind=unix; any other is asked over HTTP (--rpc on).
/// What can be seen depends on the interfaces that it offers; --check tells. Without a socket path, an inherited connection
/// or --datadir, the socket of a mainnet node in ~/.bitcoin is used.
#[derive(Parser, Debug)]
#[command(
    name = "bitcoind-ipc-exporter",
    after_help = "Every option with a value can also be set by the environment variable named \
behind it.\n\nExample: bitcoind-ipc-exporter --metrics-addr 127.0.0.1:9332 /var/lib/bitcoind/node.sock\nThen:    curl \
http://127.0.0.1:9332/metrics"
)]
pub struct Arguments {
    /// The node's IPC socket
    #[arg(env = "BITCOIND_IPC_EXPORTER_SOCKET_PATH")]
    pub socket_path: Option<PathBuf>,

    /// An inherited file descriptor that is connected to the node (also -ipcfd N, as Bitcoin Core spells it)
    #[arg(long, value_name = "N", env = "BITCOIN_IPC_FD")]
    pub ipc_fd: Option<RawFd>,

    /// The node's data directory, when no socket path is given
    #[arg(long, value_name = "DIR", env = "BITCOIND_IPC_EXPORTER_DATADIR")]
    pub datadir: Option<PathBuf>,

    /// The node's chain [default: by the folder of the socket, else main]
    #[arg(long, env = "BITCOIND_IPC_EXPORTER_CHAIN", value_parser = CHAINS.each_ref().map(|chain| chain.name))]
    pub chain: Option<String>,

    /// JSON-RPC over HTTP: auto asks there for what the node does not tell over IPC, if there is a cookie or a password; on
    /// warns when it cannot be used. With on or --rpc-url, and without a socket path, the node need not have IPC
    #[arg(long, value_enum, default_value = "auto", env = "BITCOIND_IPC_EXPORTER_RPC")]
    pub rpc: HttpRpcMode,

    /// Where the node's JSON-RPC listens [default: the chain's port on 127.0.0.1]
    #[arg(long, value_name = "URL", env = "BITCOIND_IPC_EXPORTER_RPC_URL")]
    pub rpc_url: Option<Url>,

    /// The authorities that are trusted behind https, a PEM file [default: those of the system]
    #[arg(long, value_name = "PATH", env = "BITCOIND_IPC_EXPORTER_RPC_CA_FILE", requires = "rpc_url")]
    pub rpc_ca_file: Option<PathBuf>,

    /// The node's JSON-RPC cookie [default: .cookie in the folder of the chain below the data directory, or beside the
    /// socket]
    #[arg(
        long,
        value_name = "PATH",
        env = "BITCOIND_IPC_EXPORTER_RPC_COOKIE_FILE",
        conflicts_with = "rpc_user"
    )]
    pub rpc_cookie_file: Option<PathBuf>,

    /// A user of the node's JSON-RPC, instead of the cookie. Its password is in --rpc-password-file or in the environment
    /// variable BITCOIND_IPC_EXPORTER_RPC_PASSWORD
    #[arg(long, value_name = "NAME", env = "BITCOIND_IPC_EXPORTER_RPC_USER")]
    pub rpc_user: Option<String>,

    /// The file whose first line is that password
    #[arg(long, value_name = "PATH", env = "BITCOIND_IPC_EXPORTER_RPC_PASSWORD_FILE", requires = "rpc_user")]
    pub rpc_password_file: Option<PathBuf>,

    /// Time between polls; a new tip triggers one at once
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = cli::duration, env = "BITCOIND_IPC_EXPORTER_POLL_INTERVAL")]
    pub poll_interval: Duration,

    /// Time that the node has to answer a call
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = cli::duration, env = "BITCOIND_IPC_EXPORTER_CALL_TIMEOUT")]
    pub call_timeout: Duration,

    /// Trace the UTXO cache, where the node can. It makes the node connect blocks more slowly: auto does it out of
    /// initial block download and gives it up for good when it exceeds its budget; on does without a budget
    #[arg(long, value_enum, default_value = "auto", env = "BITCOIND_IPC_EXPORTER_UTXO_TRACE")]
    pub utxo_trace: UtxoTraceMode,

    /// How long the node may wait for the UTXO cache trace in ten minutes, the time of a block
    #[arg(long, value_name = "DURATION", default_value = "50ms", value_parser = cli::duration, env = "BITCOIND_IPC_EXPORTER_UTXO_TRACE_BUDGET")]
    pub utxo_trace_budget: Duration,

    /// Have the node build a block template now and then, which tells what the next block is worth: auto out of initial block
    /// download, at a new tip and at most every --poll-interval, for at most 1 % of the node's time; on whatever it costs
    #[arg(long, value_enum, default_value = "auto", env = "BITCOIND_IPC_EXPORTER_NEXT_BLOCK")]
    pub next_block: NextBlockMode,

    /// End (exit 0) when the node shuts down, which it says over IPC alone, instead of waiting for the next one. Default when
    /// the connection was inherited and no socket path is given
    #[arg(long, env = "BITCOIND_IPC_EXPORTER_EXIT_WITH_NODE")]
    pub exit_with_node: bool,

    /// Connect, poll once, print the metrics, exit
    #[arg(long, conflicts_with = "check")]
    pub once: bool,

    /// Connect, say which node this is, what it offers and which metrics follow, exit
    #[arg(long)]
    pub check: bool,

    #[command(flatten)]
    pub common: CommonArgs,
}

/// When to ask for JSON-RPC over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub enum HttpRpcMode {
    /// Where IPC has none and there is a cookie or a password.
    Auto,
    /// Where IPC has none.
    On,
    /// Never.
    Off,
}

impl Cli for Arguments {
    const ENVIRONMENT: &'static str = "BITCOIND_IPC_EXPORTER";
    const METRICS_ADDR: &'static str = "127.0.0.1:9332";

    fn common(&self) -> &CommonArgs {
        &self.common
    }
}

impl Arguments {
    /// Reads the arguments behind the program's name; exits if they are wrong or ask for help.
    pub fn parse_or_exit(arguments: impl Iterator<Item = OsString>) -> Self {
        let arguments = std::iter::once("bitcoind-ipc-exporter".into()).chain(arguments.map(normalize_ipcfd));
        Self::read(arguments).unwrap_or_else(|error| error.exit())
    }

    /// The collector's settings.
    pub fn config(&self, source: &NodeEndpoint) -> Result<Config> {
        Ok(Config {
            data_directory: self.data_directory(source),
            poll_interval: self.poll_interval,
            call_timeout: self.call_timeout,
            utxo_trace: self.utxo_trace,
            utxo_trace_budget: self.utxo_trace_budget,
            next_block: self.next_block,
            exit_with_node: self.exit_with_node,
            http_rpc: self.http_rpc()?,
        })
    }

    /// `--chain`, else the one in whose folder the socket is.
    fn known_chain(&self) -> Option<&'static ChainParams> {
        let by_folder = || self.socket_path.as_deref().and_then(ChainParams::from_path);
        self.chain.as_deref().map(ChainParams::from_name).or_else(by_folder)
    }

    fn http_rpc(&self) -> Result<Option<HttpRpcConfig>> {
        if self.rpc == HttpRpcMode::Off {
            return Ok(None);
        }
        let chain = self.known_chain();
        let chain_or_main = chain.unwrap_or(&CHAINS[0]);
        let beside_socket = || Some(self.socket_path.as_ref()?.with_file_name(".cookie"));
        let credentials = match (&self.rpc_user, &self.rpc_password_file) {
            (Some(name), _) if name.is_empty() => bail!("--rpc-user: the name is empty"),
            (Some(name), _) if name.contains(':') => bail!("--rpc-user: a name cannot have a colon"),
            (Some(name), Some(path)) => {
                Credentials::User { name: name.clone(), password: Password::File(path.clone()) }
            }
            (Some(name), None) if std::env::var_os(RPC_PASSWORD_VARIABLE).is_some() => {
                Credentials::User { name: name.clone(), password: Password::Environment }
            }
            (Some(_), None) => {
                bail!("--rpc-user needs --rpc-password-file, or the password in {RPC_PASSWORD_VARIABLE}")
            }
            (None, _) => Credentials::Cookie(match (&self.rpc_cookie_file, &self.datadir) {
                (Some(path), _) => path.clone(),
                (None, Some(datadir)) => chain_or_main.folder(datadir).join(".cookie"),
                (None, None) => beside_socket()
                    .unwrap_or_else(|| chain_or_main.folder(&default_datadir()).join(".cookie")),
            }),
        };
        let url = self.rpc_url.clone().unwrap_or_else(|| Url::on_localhost(chain_or_main.rpc_port));
        if !url.tls && self.rpc_ca_file.is_some() {
            bail!("--rpc-ca-file is of no use without an https URL");
        }
        let tls = url.tls.then(|| http_rpc_tls::client_config(self.rpc_ca_file.as_deref())).transpose()?;
        Ok(Some(HttpRpcConfig {
            url,
            tls,
            credentials,
            chain: chain.map(|chain| chain.name.to_string()),
            required: self.rpc == HttpRpcMode::On,
            http_only: self.is_http_only_allowed(),
        }))
    }

    /// The directory of the chain below `--datadir`, and that of the socket.
    fn data_directory(&self, source: &NodeEndpoint) -> DatadirCandidates {
        let chain = self.known_chain().unwrap_or(&CHAINS[0]);
        DatadirCandidates {
            named: self.datadir.as_deref().map(|datadir| chain.folder(datadir)),
            found: source.socket().iter().filter_map(|path| Some(path.parent()?.to_path_buf())).collect(),
            of_log: None,
        }
    }

    /// The files and ports that it uses while it serves.
    pub fn files(&self, config: &Config) -> AllowedFiles {
        let mut files = self.common.files();
        if let Some(http) = &config.http_rpc {
            files.read.extend(http.credentials.file().map(PathBuf::from));
            files.connect.push(http.url.port);
            files.resolves_names = http.url.host.parse::<IpAddr>().is_err();
        }
        files
    }

    /// The path of the node's socket; `None` if there is nothing but an inherited connection.
    pub fn node_socket(&self, has_inherited: bool) -> Option<PathBuf> {
        let chain = self.chain.as_deref().unwrap_or("main");
        endpoint::socket_path(has_inherited, self.socket_path.clone(), self.datadir.as_deref(), chain)
    }

    /// Whether no argument names the node.
    pub fn has_no_node_argument(&self) -> bool {
        self.socket_path.is_none() && self.datadir.is_none() && !self.is_http_only_allowed()
    }

    /// Whether JSON-RPC over HTTP was asked for, and no connection over IPC.
    fn is_http_only_allowed(&self) -> bool {
        let asked = self.rpc == HttpRpcMode::On || (self.rpc == HttpRpcMode::Auto && self.rpc_url.is_some());
        asked && self.socket_path.is_none() && self.ipc_fd.is_none()
    }
}

/// Bitcoin Core gives its children `-ipcfd N`, which clap would read as five short options.
fn normalize_ipcfd(argument: OsString) -> OsString {
    match argument.to_str() {
        Some(text) if text == "-ipcfd" || text.starts_with("-ipcfd=") => {
            text.replacen("-ipcfd", "--ipc-fd", 1).into()
        }
        _ => argument,
    }
}
