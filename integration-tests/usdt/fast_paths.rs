//! Tests that the fast paths of the BPF programs (src/usdt/bpf/fast_paths.h) give the same results as libbpf's helpers.

use std::path::Path;
use std::process::Command;

use libbpf_rs::libbpf_sys::API_HEADERS;
use libbpf_rs::{MapCore, MapFlags, Object, ObjectBuilder};
use tempfile::TempDir;

use crate::harness::fixture::Fixture;

const ARGUMENTS: usize = 12;

/// The values that the BPF program `fast_paths.bpf.c` has read.
struct Results {
    /// For each argument, the value that the exporter's code reads and the value that libbpf's helper reads.
    arguments: Vec<(i64, i64)>,
    /// The text that the exporter's code reads and the text that libbpf's helper reads, both NUL-padded.
    text: ([u8; 16], [u8; 16]),
    /// Number of arguments with each kind of location: a constant, a register, memory addressed by one register, and
    /// memory addressed by two registers.
    places: [i64; 4],
}

impl Results {
    fn read(programs: &Object) -> Self {
        let map = programs.maps().find(|map| map.name() == "results_map").unwrap();
        let bytes = map.lookup(&[0; 4], MapFlags::ANY).unwrap().unwrap();
        let words: Vec<i64> = bytes.as_chunks().0.iter().map(|word| i64::from_ne_bytes(*word)).collect();
        let text =
            |at: usize| [words[at].to_ne_bytes(), words[at + 1].to_ne_bytes()].concat().try_into().unwrap();
        Results {
            arguments: (0..ARGUMENTS).map(|number| (words[number], words[ARGUMENTS + number])).collect(),
            text: (text(2 * ARGUMENTS), text(2 * ARGUMENTS + 2)),
            places: words[2 * ARGUMENTS + 4..].try_into().unwrap(),
        }
    }
}

fn compile(dir: &Path) -> Object {
    let headers = dir.join("include/bpf");
    std::fs::create_dir_all(&headers).unwrap();
    for (name, text) in API_HEADERS {
        std::fs::write(headers.join(name), text).unwrap();
    }
    let object = dir.join("fast_paths.bpf.o");
    let mut clang = Command::new("clang");
    clang.args(["-target", "bpf", "-g", "-O2", "-Wall", "-Wno-pass-failed", "-Isrc/usdt/bpf"]);
    clang.arg(format!("-D__TARGET_ARCH_{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "x86" }));
    clang
        .arg(format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH))
        .arg("-I")
        .arg(dir.join("include"));
    clang.args(["-c", "integration-tests/usdt/fast_paths.bpf.c", "-o"]).arg(&object);
    assert!(clang.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
    ObjectBuilder::default().open_file(&object).unwrap().load().unwrap()
}

pub fn fast_paths_read_what_libbpfs_helpers_read() {
    let dir = TempDir::new().unwrap();
    let binary = dir.path().join("fast_paths");
    let mut compiler = Command::new("c++");
    compiler.args(["-O2", "-o"]).arg(&binary).arg("integration-tests/usdt/fast_paths.cc");
    assert!(compiler.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
    let mut fixture = Fixture::start(&binary);
    let programs = compile(dir.path());
    let attach = |program: libbpf_rs::ProgramMut<'_>| {
        let name = program.name().to_string_lossy().into_owned();
        program.attach_usdt(fixture.pid() as i32, &binary, "test", name).unwrap()
    };
    let _links: Vec<_> = programs.progs_mut().map(attach).collect();

    for text in
        ["", "tx", "7 bytes", "8 bytes!", "nine byte", "cmpctblock", "fifteen bytes!!", "16 bytes: not in"]
    {
        fixture.fire(text);
        let Results { arguments, text: (ours, helpers), places } = Results::read(&programs);
        let [numbers @ .., index, element, byte, constant] = &arguments[..] else { unreachable!("12") };
        let known = [-1, 200, -300, 60_000, -70_000, 3_000_000_000, -5_000_000_000, -2];
        for ((ours, helpers), known) in numbers.iter().zip(known) {
            assert_eq!((*ours, *helpers), (known, known));
        }
        let place = text.len() % 4;
        assert_eq!(*element, ([1, -2, 3, -40_000][place], [1, -2, 3, -40_000][place]));
        assert_eq!((*index, *byte, *constant), ((place as i64, place as i64), (250, 250), (-7, -7)));
        // The compiler must have used each kind of location for some argument.
        assert!(places.iter().all(|arguments| *arguments > 0), "{places:?}");

        assert_eq!(ours, helpers, "{text:?}");
        let read = &text.as_bytes()[..text.len().min(15)];
        assert_eq!((&ours[..read.len()], &ours[read.len()..]), (read, &[0; 16][read.len()..]), "{text:?}");
    }
}
