//! Tests of all BPF programs of the USDT exporter on Debian's kernels, in virtual machines of QEMU. In each virtual
//! machine, the exporter loads the BPF programs, attaches them to a program with all tracepoints, and counts the
//! tracepoints' events.
//!
//! The tests need the folder $KERNELS, which `integration-tests/kernels/fetch` creates. The tests for arm64 also need
//! the package $DEB_ARM64, which `contrib/debian/package arm64` builds. Tests whose files are missing are skipped with
//! a message.

#[path = "../harness/skip.rs"]
mod skip;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use libtest_mimic::{Arguments, Trial};
use skip::skip;

const COMMANDS: &str = "\
way 1 2 3 4 500
reconstructed source 5 7 2 1000 799999
send
winner 800000 FIBRE/UDP peer
time 800000 1000000 a 26000000 b
detail 3 1234 2497 2500 1
header_chunk 10 20 30 40
log_queued 7 127
log_started 7 1
log_completed 7 1 0
message inv 73
message addr 61
message addrv2 100
misbehaving inv message size = 50001
standard 8 2 3 4 5000000 block text
";

/// Samples, without the label `node`, that the exporter must export after the traced program has executed [`COMMANDS`].
/// Each tracepoint has at least one sample here whose value is not 0.
const SAMPLES: &str = r#"
    fibre_exporter_probes_attached 27
    fibre_exporter_errors_total{error_type="argument"} 0
    fibre_exporter_errors_total{error_type="unreadable"} 0
    fibre_exporter_errors_total{error_type="lost"} 0
    fibre_block_reconstruction_duration_seconds_sum 0.001
    fibre_block_reconstruction_duration_seconds_bucket{le="0.001"} 1
    fibre_chunks_received_total 7
    fibre_blocks_sent_total 1
    fibre_block_deliveries_total{mechanism="fibre_udp",peer="peer"} 1
    fibre_race_margin_seconds_sum{winner="fibre_udp"} 0.025
    fibre_last_block_height 8
    fibre_block_missing_tx_bytes_sum 1234.0
    fibre_block_header_chunk_duration_seconds_count{stage="finish"} 1
    bitcoin_block_inputs_sum 3.0
    bitcoin_block_connection_duration_seconds_sum 0.005
    bitcoin_block_connection_duration_seconds_bucket{le="0.0025"} 1
    bitcoin_block_connection_duration_seconds_bucket{le="0.005"} 2
    bitcoin_block_announcements_total{by="inv"} 1
    bitcoin_block_arrivals_total{by="compact_requested"} 1
    bitcoin_compact_block_prefilled_transactions_sum 1.0
    bitcoin_compact_block_requested_bytes_sum 500.0
    bitcoin_p2p_message_bytes_total{direction="in",type="block"} 2
    bitcoin_p2p_message_bytes_total{direction="out",type="block"} 2
    bitcoin_inv_entries_sum{direction="in"} 3.0
    bitcoin_inv_entries_sum{direction="out"} 2.0
    bitcoin_inv_entries_bucket{le="1.0",direction="in"} 1
    bitcoin_inv_entries_bucket{le="2.0",direction="in"} 2
    bitcoin_addr_entries_sum{direction="in"} 7.0
    bitcoin_addr_entries_sum{direction="out"} 7.0
    bitcoin_connections_opened_total{direction="in",network="i2p",connection_type="other"} 1
    bitcoin_connections_opened_total{direction="out",network="i2p",connection_type="other"} 1
    bitcoin_connections{direction="in"} 2
    bitcoin_connections{direction="out"} 1
    bitcoin_connections_closed_total{network="i2p"} 1
    bitcoin_connections_evicted_total 1
    bitcoin_connection_age_seconds_count{direction="out",end="closed"} 1
    bitcoin_connection_age_seconds_count{direction="in",end="evicted"} 1
    bitcoin_connections_misbehaving_total{reason="inv message size = N"} 1
    bitcoin_connections_misbehaving_total{reason="text"} 1
    bitcoin_mempool_added_fees_satoshis_total 2
    bitcoin_mempool_tx_removed_total{reason="block"} 1
    bitcoin_mempool_tx_replaced_total 1
    bitcoin_mempool_replaced_vbytes_total 8
    bitcoin_mempool_replaced_fees_satoshis_total 2
    bitcoin_mempool_tx_rejected_total{reason="text"} 1
    bitcoin_utxo_cache_add_value_total 3
    bitcoin_utxo_cache_spend_value_total 3
    bitcoin_utxo_cache_uncache_value_total 3
    bitcoin_utxo_cache_flush_duration_seconds_sum 5.0
    bitcoin_utxo_cache_flush_bytes 3
    bitcoin_log_queue_depth_sum 127.0
    bitcoin_log_queue_wait_seconds_count 1
    bitcoin_log_operation_duration_seconds_count{kind="write"} 1
"#;

/// Commands of bitcoin-cli for the test with a real node. The command `addnode` makes the node open a connection to
/// itself, which fires the tracepoints of connections. The node then detects that it is its own peer.
const NODE_COMMANDS: &str = "\
generatetodescriptor 5 raw(51)#8lvh9jxk
addnode 127.0.0.1:18444 onetry
gettxoutsetinfo
generatetodescriptor 1 raw(51)#8lvh9jxk
";

const NODE_SAMPLES: &str = r#"
    fibre_exporter_probes_attached 16
    fibre_exporter_errors_total{error_type="argument"} 0
    fibre_exporter_errors_total{error_type="unreadable"} 0
    fibre_exporter_errors_total{error_type="lost"} 0
    bitcoin_blocks_connected_total 6
    bitcoin_block_tx_count_sum 6.0
    bitcoin_block_inputs_sum 6.0
    fibre_last_block_height 6
    bitcoin_connections_opened_total{direction="in",network="not_publicly_routable",connection_type="inbound"} 1
    bitcoin_connections_opened_total{direction="out",network="not_publicly_routable",connection_type="manual"} 1
    bitcoin_p2p_messages_total{direction="in",type="version"} 1
    bitcoin_p2p_messages_total{direction="out",type="version"} 1
"#;

const REAL_NODE: &str = "a_real_node_on_arm64_is_counted";

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Run one virtual machine at a time: all tests take longer if several virtual machines run at the same time.
    arguments.test_threads = Some(1);
    let missing_node = std::env::var_os("NODE_ARM64")
        .is_none()
        .then_some("set NODE_ARM64=$(integration-tests/kernels/node-arm64)");
    let test = |name: &str, kernel: &'static str, test: fn(&Kernel)| {
        let kernel = Kernel::new(kernel);
        let missing = kernel.missing().or_else(|| missing_node.filter(|_| name == REAL_NODE));
        if let Some(missing) = &missing {
            skip(&format!("{name}: {missing}"), true);
        }
        Trial::test(name, move || {
            test(&kernel);
            Ok(())
        })
        .with_ignored_flag(missing.is_some())
    };
    let tests = vec![
        test("linux_5_10_counts_all", "bullseye-amd64", counts_all),
        test("linux_6_1_counts_all", "bookworm-amd64", counts_all),
        test("linux_6_12_counts_all", "trixie-amd64", counts_all),
        test("linux_6_1_on_arm64_counts_all", "bookworm-arm64", counts_all),
        test("linux_6_12_on_arm64_counts_all", "trixie-arm64", counts_all),
        test(REAL_NODE, "trixie-arm64", real_node),
        test("a_kernel_without_type_information_counts_all", "bookworm-amd64", without_type_information),
        test("a_program_that_the_kernel_refuses_costs_only_itself", "trixie-amd64", refused),
    ];
    libtest_mimic::run(&arguments, tests).exit_code()
}

/// A kernel on which the BPF programs are tested, with the exporter and the C compiler for the kernel's architecture.
struct Kernel {
    folder: Option<PathBuf>,
    exporter: Option<PathBuf>,
    compiler: &'static str,
}

impl Kernel {
    fn new(name: &str) -> Self {
        let folder = std::env::var_os("KERNELS").map(|kernels| Path::new(&kernels).join(name));
        if name.ends_with("-arm64") {
            let exporter = std::env::var_os("DEB_ARM64").map(|package| exporter_in(Path::new(&package)));
            return Kernel { folder, exporter, compiler: "aarch64-linux-gnu-gcc" };
        }
        Kernel { folder, exporter: Some(env!("CARGO_BIN_EXE_bitcoind-usdt-exporter").into()), compiler: "cc" }
    }

    fn missing(&self) -> Option<&'static str> {
        match self {
            Kernel { folder: None, .. } => Some("set KERNELS=$(integration-tests/kernels/fetch)"),
            Kernel { exporter: None, .. } => Some("set DEB_ARM64=$(contrib/debian/package arm64)"),
            _ => None,
        }
    }

    /// Compiles `fixture.c` for this kernel's architecture, and returns the path of the program.
    fn fixture(&self) -> PathBuf {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let program = dir.join(format!("tracepoints-{}", self.compiler));
        let mut compiler = Command::new(self.compiler);
        compiler.args(["-O2", "-pthread", "-DDETAIL", "-DNEWEST", "-DSTANDARD", "-o"]).arg(&program);
        // The header `sys/sdt.h` is the same for all architectures.
        compiler.args(["-idirafter", "/usr/include/x86_64-linux-gnu"]);
        compiler.arg(root.join("integration-tests/usdt/fixture.c"));
        assert!(compiler.status().expect(self.compiler).success());
        program
    }

    /// Boots the kernel in a virtual machine with these kernel parameters, and runs this program there with `commands`
    /// on standard input. Returns the exporter's metrics and log.
    fn boot(&self, program: &Path, commands: &str, variables: &[&str]) -> (String, String) {
        let (Some(folder), Some(exporter)) = (&self.folder, &self.exporter) else { unreachable!("checked") };
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut boot = Command::new(root.join("integration-tests/kernels/boot"));
        boot.arg(folder).arg(exporter).arg(program).args(variables);
        let mut boot = boot.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        boot.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
        let output = boot.wait_with_output().unwrap();
        let message = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        assert!(output.status.success(), "{message}");
        let (metrics, log) = message.split_once("\nlog:\n").unwrap_or_else(|| panic!("{message}"));
        (metrics.replace("node=\"localhost\",", "").replace("{node=\"localhost\"}", ""), log.to_string())
    }
}

/// Extracts a Debian package, and returns the path of the exporter in it.
fn exporter_in(package: &Path) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("package-arm64");
    let extracted = Command::new("dpkg-deb").arg("--extract").args([package, &folder]).status();
    assert!(extracted.expect("dpkg-deb").success());
    folder.join("usr/bin/bitcoind-usdt-exporter")
}

fn counts_all(kernel: &Kernel) {
    check(kernel, &[]);
}

fn without_type_information(kernel: &Kernel) {
    check(kernel, &["HIDE_BTF=1"]);
}

fn check(kernel: &Kernel, variables: &[&str]) {
    let (metrics, log) = kernel.boot(&kernel.fixture(), COMMANDS, variables);
    assert_samples(SAMPLES, &metrics, &log);
    for event in ["block connected", "UTXO cache flushed", "block race won", "block reconstructed"] {
        assert!(log.contains(event), "{event} in:\n{log}");
    }
}

fn real_node(kernel: &Kernel) {
    let node = std::env::var_os("NODE_ARM64").expect("checked");
    let (metrics, log) = kernel.boot(&Path::new(&node).join("bitcoind"), NODE_COMMANDS, &[]);
    assert_samples(NODE_SAMPLES, &metrics, &log);
    assert_eq!(log.matches("block connected").count(), 6, "{log}");
    assert!(log.contains("UTXO cache flushed"), "{log}");
}

fn assert_samples(samples: &str, metrics: &str, log: &str) {
    for sample in samples.lines().map(str::trim).filter(|line| !line.is_empty()) {
        assert!(metrics.lines().any(|line| line == sample), "{sample} in:\n{metrics}\nlog:\n{log}");
    }
}

/// A kernel in the lockdown mode `confidentiality` rejects all BPF programs that read an argument of a tracepoint.
fn refused(kernel: &Kernel) {
    let (metrics, log) = kernel.boot(&kernel.fixture(), COMMANDS, &["lockdown=confidentiality"]);
    for sample in ["fibre_exporter_probes_attached 1", "fibre_blocks_sent_total 1"] {
        assert!(metrics.lines().any(|line| line == sample), "{sample} in:\n{metrics}\nlog:\n{log}");
    }
    assert!(!metrics.contains("bitcoin_blocks_connected_total"), "{metrics}");
    let failed = log.lines().find(|line| line.contains("✗ Failed: validation:block_connected"));
    assert!(failed.is_some_and(|line| line.contains("cannot use helper bpf_probe_read")), "{log}");
}
