//! The command line arguments of bitcoind-ipc-exporter. The block log is a SQLite file with a row for each new tip, and
//! the block store is a PostgreSQL database to which the exporter forwards these rows.

use std::ffi::OsString;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;

use anyhow::{Result, bail};
use bitcoind_exporter::bitcoin_core::{CHAINS, ChainParams, default_datadir};
use bitcoind_exporter::block_log::outbox::RowOrigin;
use bitcoind_exporter::block_log::{BlockLogThread, DEFAULT_KEEP, ReportQueue};
use bitcoind_exporter::block_store::{self, StoreSettings};
use bitcoind_exporter::cli::{Cli, CommonArgs};
use bitcoind_exporter::endpoint::{self, NodeEndpoint};
use bitcoind_exporter::sandbox::AllowedFiles;
use bitcoind_exporter::setup::SetupCommand;
use bitcoind_exporter::{
    Config, Credentials, DatadirCandidates, HttpRpcConfig, RPC_PASSWORD_VARIABLE, Url, http_rpc_tls,
};
use clap::{Parser, Subcommand};

/// Exports Prometheus metrics of a running Bitcoin node, which it polls over the node's IPC socket.
///
/// The node is a bitcoin-node (Bitcoin Core 30 or later) started with -ipcbind=unix. Any other node is polled with JSON-RPC
/// over HTTP (--rpc on). The available metrics depend on the node's interfaces; --check lists them. Without a socket path,
/// an inherited connection or --datadir, the exporter connects to the socket of a mainnet node in ~/.bitcoin.
#[derive(Parser, Debug)]
#[command(
    name = "bitcoind-ipc-exporter",
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    after_help = "Every option with a value can also be set by the environment variable in its \
brackets.\n\nExample: bitcoind-ipc-exporter --metrics-addr 127.0.0.1:9332 /var/lib/bitcoind/node.sock\nThen:    curl \
http://127.0.0.1:9332/metrics"
)]
pub struct Arguments {
    /// Path of the node's IPC socket [default: node.sock in the folder of the chain below the data directory]
    #[arg(env = "BITCOIND_IPC_EXPORTER_SOCKET_PATH")]
    pub socket_path: Option<PathBuf>,

    /// Inherited file descriptor that is connected to the node; -ipcfd N, as in Bitcoin Core, also works
    #[arg(long, value_name = "N", env = "BITCOIN_IPC_FD")]
    pub ipc_fd: Option<RawFd>,

    /// Node's data directory, which the exporter searches for the socket and the cookie if their paths are not given
    /// [default: ~/.bitcoin]
    #[arg(long, value_name = "DIR", env = "BITCOIND_IPC_EXPORTER_DATADIR")]
    pub datadir: Option<PathBuf>,

    /// Node's chain [default: the chain in whose folder the socket is, otherwise main]
    #[arg(long, env = "BITCOIND_IPC_EXPORTER_CHAIN", value_parser = CHAINS.each_ref().map(|chain| chain.name))]
    pub chain: Option<String>,

    /// Use of JSON-RPC over HTTP for data not available over IPC. With on or --rpc-url, and without a socket path, the
    /// exporter does not need IPC
    #[arg(long, value_enum, default_value = "auto", env = "BITCOIND_IPC_EXPORTER_RPC")]
    pub rpc: HttpRpcMode,

    /// URL of the node's JSON-RPC server [default: the chain's port on 127.0.0.1]
    #[arg(long, value_name = "URL", env = "BITCOIND_IPC_EXPORTER_RPC_URL")]
    pub rpc_url: Option<Url>,

    /// PEM file with the certificate authorities to trust for an https URL [default: the system's certificate
    /// authorities]
    #[arg(long, value_name = "PATH", env = "BITCOIND_IPC_EXPORTER_RPC_CA_FILE", requires = "rpc_url")]
    pub rpc_ca_file: Option<PathBuf>,

    /// Cookie file of the node's JSON-RPC server [default: .cookie in the folder of the chain below the data directory, or
    /// next to the socket]
    #[arg(
        long,
        value_name = "PATH",
        env = "BITCOIND_IPC_EXPORTER_RPC_COOKIE_FILE",
        conflicts_with = "rpc_user"
    )]
    pub rpc_cookie_file: Option<PathBuf>,

    /// JSON-RPC user, instead of the cookie. Set the password with --rpc-password-file or the environment variable
    /// BITCOIND_IPC_EXPORTER_RPC_PASSWORD
    #[arg(long, value_name = "NAME", env = "BITCOIND_IPC_EXPORTER_RPC_USER")]
    pub rpc_user: Option<String>,

    /// File with the password of --rpc-user in its first line
    #[arg(long, value_name = "PATH", env = "BITCOIND_IPC_EXPORTER_RPC_PASSWORD_FILE", requires = "rpc_user")]
    pub rpc_password_file: Option<PathBuf>,

    /// Settings of the collector, the part of the exporter that polls the node.
    #[command(flatten)]
    pub polling: Config,

    /// SQLite file for the block log: one row per new tip. The subcommand `blocks` of bitcoind-usdt-exporter reads it
    /// [default: no block log]
    #[arg(long, value_name = "PATH", env = "BITCOIND_IPC_EXPORTER_BLOCK_LOG")]
    pub block_log: Option<PathBuf>,

    /// Number of most recent blocks to keep in the block log
    #[arg(
        long,
        value_name = "N",
        default_value_t = DEFAULT_KEEP,
        env = "BITCOIND_IPC_EXPORTER_BLOCK_LOG_KEEP",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub block_log_keep: u32,

    /// Name of the node in the block store. If bitcoind-usdt-exporter also traces this node, both exporters need the
    /// same name
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        env = "BITCOIND_IPC_EXPORTER_NODE_NAME",
        hide_default_value = true
    )]
    pub node_name: String,

    /// Exit with status 0 when the node shuts down, instead of waiting for the next start of a node. Only a node with
    /// IPC announces its shutdown. This option is on by default if the connection is inherited and no socket path is
    /// given
    #[arg(long, env = "BITCOIND_IPC_EXPORTER_EXIT_WITH_NODE")]
    pub exit_with_node: bool,

    /// Connect, poll once, print the metrics, and exit
    #[arg(long, conflicts_with = "check")]
    pub once: bool,

    /// Connect, print the node's version, its interfaces and the available metrics, and exit
    #[arg(long)]
    pub check: bool,

    #[command(flatten)]
    pub common: CommonArgs,

    #[command(subcommand)]
    pub command: Option<Command>,
}

/// A subcommand, which runs instead of the exporter.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Inspect the machine and its nodes, and print the lines to add to bitcoin.conf, to systemd's units and to
    /// Prometheus. With --write, add the lines. No service is restarted
    Setup(SetupCommand),
}

/// The value of `--rpc`: whether to use JSON-RPC over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub enum HttpRpcMode {
    /// Use HTTP for nodes without JSON-RPC over IPC, if a cookie or a password is available.
    Auto,
    /// Use HTTP for nodes without JSON-RPC over IPC, and log a warning if HTTP fails.
    On,
    /// Do not use HTTP.
    Off,
}

impl Cli for Arguments {
    const ENVIRONMENT: &'static str = "BITCOIND_IPC_EXPORTER";
    const METRICS_ADDR: &'static str = "127.0.0.1:9332";
}

impl Arguments {
    /// Parses the arguments after the program name. Exits the process after invalid arguments, `--help` or `--version`.
    pub fn parse_or_exit(arguments: impl Iterator<Item = OsString>) -> Self {
        let arguments = std::iter::once("bitcoind-ipc-exporter".into()).chain(arguments.map(normalize_ipcfd));
        Self::read(arguments).unwrap_or_else(|error| error.exit())
    }

    /// The configuration of the collector for a node at `source`.
    ///
    /// # Errors
    /// The settings of JSON-RPC over HTTP are incomplete or invalid.
    pub fn config(&self, source: &NodeEndpoint) -> Result<Config> {
        Ok(Config {
            data_directory: self.data_directory(source),
            exit_with_node: self.exit_with_node,
            http_rpc: self.http_rpc()?,
            ..self.polling.clone()
        })
    }

    /// The chain in `--chain`, or without `--chain` the chain whose directory contains the node's IPC socket. `None` if
    /// neither is known.
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
            (Some(name), _) if name.is_empty() => bail!(
                "--rpc-user: the name is empty; set the user in -rpcauth of the \
                 node"
            ),
            (Some(name), _) if name.contains(':') => bail!("--rpc-user: the name must not contain a colon"),
            (Some(name), Some(path)) => Credentials::PasswordFile(name.clone(), path.clone()),
            (Some(name), None) if std::env::var_os(RPC_PASSWORD_VARIABLE).is_some() => {
                Credentials::PasswordVariable(name.clone())
            }
            (Some(_), None) => {
                bail!("--rpc-user needs a password: set --rpc-password-file or {RPC_PASSWORD_VARIABLE}")
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
            bail!("--rpc-ca-file needs an https URL in --rpc-url");
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

    /// Candidates for the directory in which the node stores its chain: the chain's directory in `--datadir`, and the
    /// directory of the node's IPC socket.
    fn data_directory(&self, source: &NodeEndpoint) -> DatadirCandidates {
        let chain = self.known_chain().unwrap_or(&CHAINS[0]);
        DatadirCandidates {
            named: self.datadir.as_deref().map(|datadir| chain.folder(datadir)),
            found: source.socket().iter().filter_map(|path| Some(path.parent()?.to_path_buf())).collect(),
            of_log: None,
        }
    }

    /// The settings of the block store; `None` if no block store is configured.
    ///
    /// # Errors
    /// The settings are invalid or incomplete, or the address of the block store is a Unix socket.
    pub fn store(&self) -> Result<Option<StoreSettings>> {
        let store = &self.common.store;
        let settings = store.settings(Self::ENVIRONMENT, self.block_log.as_deref(), &self.node_name)?;
        let Some(settings) = settings else { return Ok(None) };
        if settings.has_unix_socket() {
            bail!(
                "--block-store: the sandbox of this exporter allows no Unix sockets; use the address 127.0.0.1"
            );
        }
        Ok(Some(settings))
    }

    /// Starts the thread that writes the block log; `None` if no block log is configured. If `store` is not `None`,
    /// another thread forwards the rows of the block log to the block store.
    ///
    /// # Errors
    /// The file of the block log cannot be opened, or a thread cannot be started.
    pub fn start_block_log(
        &self,
        store: Option<StoreSettings>,
    ) -> Result<Option<(BlockLogThread, ReportQueue)>> {
        let Some(path) = &self.block_log else { return Ok(None) };
        let chain = self.known_chain().unwrap_or(&CHAINS[0]).name.to_string();
        let origin = RowOrigin { chain, node: self.node_name.clone(), source: "ipc" };
        let forwarding = store.map(|store| block_store::start(store, origin)).transpose()?;
        BlockLogThread::start(path, self.block_log_keep, forwarding).map(Some)
    }

    /// The files and ports that the exporter uses while it serves, and that its sandbox therefore has to allow.
    pub fn files(&self, config: &Config, store: Option<&StoreSettings>) -> AllowedFiles {
        let mut files = self.common.files();
        files.write.extend(self.block_log.clone());
        if let Some(store) = store {
            files.read.extend(store.password_file().map(PathBuf::from));
            files.connect.extend(store.ports());
            files.resolves_names = store.resolves_names();
        }
        if let Some(http) = &config.http_rpc {
            files.read.extend(http.credentials.file().map(PathBuf::from));
            files.connect.push(http.url.port);
            files.resolves_names |= http.url.host.parse::<IpAddr>().is_err();
        }
        files
    }

    /// Path of the node's IPC socket; `None` if the connection is inherited and neither a path nor a data directory is
    /// given.
    pub fn node_socket(&self, has_inherited: bool) -> Option<PathBuf> {
        let chain = self.chain.as_deref().unwrap_or("main");
        endpoint::socket_path(has_inherited, self.socket_path.clone(), self.datadir.as_deref(), chain)
    }

    /// Whether the arguments contain neither a socket path nor a data directory, and do not allow polling over HTTP
    /// without IPC.
    pub fn has_no_node_argument(&self) -> bool {
        self.socket_path.is_none() && self.datadir.is_none() && !self.is_http_only_allowed()
    }

    /// Whether the exporter may poll the node over HTTP if there is no connection over IPC: the arguments request
    /// JSON-RPC over HTTP, and contain neither a socket path nor the descriptor of an IPC connection.
    fn is_http_only_allowed(&self) -> bool {
        let asked = self.rpc == HttpRpcMode::On || (self.rpc == HttpRpcMode::Auto && self.rpc_url.is_some());
        asked && self.socket_path.is_none() && self.ipc_fd.is_none()
    }
}

/// Rewrites the argument `-ipcfd` to `--ipc-fd`, and returns other arguments unchanged. Bitcoin Core starts child
/// processes with `-ipcfd N`, which clap would parse as five short options.
fn normalize_ipcfd(argument: OsString) -> OsString {
    match argument.to_str() {
        Some(text) if text == "-ipcfd" || text.starts_with("-ipcfd=") => {
            text.replacen("-ipcfd", "--ipc-fd", 1).into()
        }
        _ => argument,
    }
}
