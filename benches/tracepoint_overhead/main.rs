//! Measures how long a hit of a tracepoint takes in a process to which one of these programs is attached: no program,
//! an empty BPF program, the exporter's BPF program and, if bpftrace is installed, bpftrace with only `count()` and
//! bpftrace with the same work as the exporter's program. One run measures these variants alternately. Prints the
//! medians, and the ratio of each variant's overhead to the overhead of the empty program. Needs root, clang and
//! systemtap-sdt-dev.
//!
//!     cargo bench --bench tracepoint_overhead

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use bitcoind_exporter::testing::EventReader;
use bitcoind_exporter::usdt::{Programs, TracepointGroup};
use libbpf_rs::libbpf_sys::API_HEADERS;
use libbpf_rs::{Object, ObjectBuilder};

/// Number of rounds. A round is so short that most rounds are not interrupted by other processes, and the medians are
/// therefore valid also on a busy machine.
const ROUNDS: usize = 500;
/// Number of tracepoint hits in a round. With this number, the exporter's BPF program wakes up user space at most once
/// in a round, because it does so after each 256 events (WAKEUP in net.bpf.c). The events of a round are read from the
/// ring buffer before the next round.
const HITS: usize = 200;

/// A process of the program `fires.c`, which fires a tracepoint on request and prints the time for a hit.
struct Fires {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Fires {
    fn start(binary: &Path) -> Self {
        let mut child = Command::new(binary).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Fires { child, input, output }
    }

    /// Makes the process fire a tracepoint `times` times. Returns the mean time for a hit in nanoseconds.
    fn fire(&mut self, what: &str, times: usize) -> f64 {
        writeln!(self.input, "{what} {times}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().parse().unwrap()
    }
}

fn main() {
    let dir = std::env::temp_dir().join(format!("bitcoind-exporter-bench-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    let same = "@number = count(); @value = sum(arg3);";
    bench(&dir, "utxocache", "add", TracepointGroup::Utxocache, same, &["add"]);
    let same = "@number[str(arg3)] = count(); @bytes[str(arg3)] = sum(arg4);";
    let messages = ["tx", "inv", "inv_block", "headers", "cmpctblock", "blocktxn", "block", "addr", "addrv2"];
    bench(&dir, "net", "inbound_message", TracepointGroup::Net, same, &messages);
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Compiles `fires.c` to a binary with this name. Each variant needs its own binary, because the kernel attaches
/// uprobes to a file, and the uprobes of one variant must not affect the processes of other variants.
fn compile(dir: &Path, name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/tracepoint_overhead/fires.c");
    let binary = dir.join(name);
    assert!(Command::new("cc").args(["-O2", "-o"]).arg(&binary).arg(source).status().unwrap().success());
    binary
}

/// Compiles `empty.bpf.c` with the headers of the crate libbpf-sys, and loads the program.
fn empty_program(dir: &Path) -> Object {
    let headers = dir.join("include/bpf");
    std::fs::create_dir_all(&headers).unwrap();
    for (name, text) in API_HEADERS {
        std::fs::write(headers.join(name), text).unwrap();
    }
    let mut clang = Command::new("clang");
    clang.args(["-target", "bpf", "-g", "-O2"]);
    clang.arg(format!("-D__TARGET_ARCH_{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "x86" }));
    clang
        .arg(format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH))
        .arg("-I")
        .arg(dir.join("include"));
    let object = dir.join("empty.bpf.o");
    clang.args(["-c", "benches/tracepoint_overhead/empty.bpf.c", "-o"]).arg(&object);
    assert!(clang.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
    ObjectBuilder::default().open_file(&object).unwrap().load().unwrap()
}

/// Measures a tracepoint in all variants, each in its own process. `same` is the bpftrace action that does the same
/// work as the exporter's program. `fired` are the commands for the program `fires.c`, each of which is measured
/// separately.
fn bench(dir: &Path, provider: &str, tracepoint: &str, group: TracepointGroup, same: &str, fired: &[&str]) {
    let start = |name: &str| {
        let binary = compile(dir, &format!("{name}-{tracepoint}"));
        (Fires::start(&binary), binary)
    };
    let (mut bare, _) = start("bare");
    let (mut empty, empty_binary) = start("empty");
    let (mut ours, ours_binary) = start("ours");

    let object = empty_program(dir);
    let program = object.progs_mut().next().unwrap();
    let _empty = program.attach_usdt(empty.child.id() as i32, &empty_binary, provider, tracepoint).unwrap();

    let mut programs = Programs::load(&[group]).unwrap();
    let attached = programs.attach(ours.child.id() as i32, &ours_binary);
    let name = format!("{provider}:{tracepoint}");
    assert!(attached.iter().any(|it| it.name == name && it.result.is_ok()), "{name} is attached");

    let mut count = bpftrace(start("count"), provider, tracepoint, "@hits = count();");
    let mut the_same = bpftrace(start("same"), provider, tracepoint, same);

    let events = EventReader::from_programs(&programs).unwrap();
    for what in fired {
        let mut times: [Vec<f64>; 5] = Default::default();
        for _ in 0..ROUNDS {
            let [count, the_same] = [&mut count, &mut the_same].map(|it| it.as_mut().map(|(fires, _)| fires));
            let tracees = [Some(&mut bare), Some(&mut empty), Some(&mut ours), count, the_same];
            for (fires, times) in tracees.into_iter().zip(&mut times) {
                if let Some(events) = &events {
                    events.consume().unwrap();
                }
                times.extend(fires.map(|fires| fires.fire(what, HITS)));
            }
        }
        let medians = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times.get(times.len() / 2).copied()
        });
        let [Some(bare), Some(empty), ..] = medians else { unreachable!("measured") };
        println!("{name}, {what}, nanoseconds for a hit:");
        for (what, median) in ["nothing", "empty program", "ours", "bpftrace count()", "bpftrace, as ours"]
            .into_iter()
            .zip(medians)
        {
            match median {
                Some(median) => println!(
                    "  {what:<18} {median:8.0}   adds {:.2} times what the empty program adds",
                    (median - bare) / (empty - bare)
                ),
                None => println!("  {what:<18}        - (not installed)"),
            }
        }
    }
    for (_, mut bpftrace) in count.into_iter().chain(the_same) {
        let _ = bpftrace.kill();
        let _ = bpftrace.wait();
    }
}

/// Starts bpftrace with this action, and waits until bpftrace is attached to the process `fires`. Returns `None` if
/// bpftrace is not installed.
fn bpftrace(
    (fires, binary): (Fires, PathBuf),
    provider: &str,
    tracepoint: &str,
    action: &str,
) -> Option<(Fires, Child)> {
    let program = format!(
        "usdt:{}:{provider}:{tracepoint} {{ {action} }} BEGIN {{ printf(\"attached\\n\"); }}",
        binary.display()
    );
    let pid = fires.child.id().to_string();
    let mut child =
        Command::new("bpftrace").args(["-p", &pid, "-e", &program]).stdout(Stdio::piped()).spawn().ok()?;
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("attached")))?.ok()?;
    std::thread::spawn(move || lines.for_each(drop));
    std::thread::sleep(Duration::from_secs(1));
    Some((fires, child))
}
