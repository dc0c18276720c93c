//! Compiles the Cap'n Proto schemas and the BPF programs, and passes the git revision and the compiler version to the
//! binaries.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

fn main() {
    #[cfg(feature = "usdt")]
    bpf::compile();
    if let Err(error) = Command::new("capnp").arg("--version").output() {
        if error.kind() == io::ErrorKind::NotFound {
            println!(
                "cargo::error=the Cap'n Proto compiler `capnp` is missing: install it (Debian: apt-get install capnproto; Nix: capnproto)"
            );
        } else {
            println!("cargo::error=the Cap'n Proto compiler `capnp` does not run: {error}");
        }
        return;
    }
    let mut compiler = capnpc::CompilerCommand::new();
    compiler.src_prefix("schema").default_parent_module(vec!["schema".into()]);
    let mut modules = String::new();
    for schema in schemas() {
        compiler.file(&schema);
        let module = format!("{}_capnp", schema.file_stem().expect("a file").display());
        modules.push_str(&format!(
            "pub mod {module} {{ include!(concat!(env!(\"OUT_DIR\"), \"/{module}.rs\")); }}\n"
        ));
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    if let Err(error) = compiler.run() {
        println!("cargo::error=cannot compile schema/: {error}");
    }
    if let Err(error) = fs::write(out.join("schema.rs"), modules) {
        println!("cargo::error=cannot write to {}: {error}", out.display());
    }

    // A package build outside a git repository sets the environment variable BUILD_REVISION to the revision of the
    // sources. If the variable is not set, git returns the revision.
    println!("cargo::rerun-if-env-changed=BUILD_REVISION");
    let revision = env::var("BUILD_REVISION").ok();
    let revision = revision.or_else(|| output("git", &["rev-parse", "--short=12", "HEAD"]));
    let rustc = output(&env::var("RUSTC").unwrap_or("rustc".into()), &["--version"]);
    println!("cargo::rustc-env=BUILD_REVISION={}", revision.as_deref().unwrap_or("unknown"));
    println!("cargo::rustc-env=BUILD_RUSTC={}", rustc.as_deref().unwrap_or("unknown"));
    println!("cargo::rerun-if-changed=schema");
    for file in [".git/HEAD", ".git/refs/heads"] {
        if Path::new(file).exists() {
            println!("cargo::rerun-if-changed={file}");
        }
    }
}

/// The paths of the Cap'n Proto schemas (`*.capnp`) in schema/, sorted.
fn schemas() -> Vec<PathBuf> {
    let files = fs::read_dir("schema").expect("the folder schema/ is readable").flatten();
    let mut schemas: Vec<_> = files
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "capnp"))
        .collect();
    schemas.sort();
    schemas
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_string())
}

#[cfg(feature = "usdt")]
mod bpf {
    use std::{env, fs, path::Path, path::PathBuf};

    use libbpf_cargo::SkeletonBuilder;

    const PROGRAMS: &str = "src/usdt/bpf";

    /// Compiles the BPF files and writes `bpf.rs`, which has a Rust module for each BPF file. A module has the Rust
    /// types of the values in the file's BPF maps, and the file's compiled programs.
    pub fn compile() {
        println!("cargo::rerun-if-changed={PROGRAMS}");
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
        let mut modules = String::new();
        for file in fs::read_dir(PROGRAMS).expect("the programs' folder").flatten() {
            let source = file.path();
            let name = file.file_name();
            let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".bpf.c")) else { continue };
            let skeleton = SkeletonBuilder::new()
                .source(&source)
                .clang_args(arguments(&out))
                .obj(out.join(format!("{name}.bpf.o")))
                .reference_obj(true)
                .build_and_generate(out.join(format!("{name}.skel.rs")));
            if let Err(error) = skeleton {
                println!(
                    "cargo::error=cannot compile {}: {error:#}. It needs clang and the kernel's \
                     headers (Debian: apt-get install clang linux-libc-dev); without bitcoind-usdt-exporter: \
                     --no-default-features",
                    source.display()
                );
            }
            modules.push_str(&format!(
                "pub mod {name} {{
                    include!(concat!(env!(\"OUT_DIR\"), \"/{name}.skel.rs\"));
                    pub const OBJECT: &[u8] = include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}.bpf.o\"));
                }}\n"
            ));
        }
        fs::write(out.join("bpf.rs"), modules).expect("OUT_DIR is writable");
    }

    fn arguments(out: &Path) -> Vec<String> {
        // Write libbpf's headers to a fixed path. libbpf-cargo would write them to a folder with a random name, and
        // builds would not be reproducible.
        let libbpf = out.join("libbpf/bpf");
        fs::create_dir_all(&libbpf).expect("OUT_DIR is writable");
        for (name, text) in libbpf_sys::API_HEADERS {
            fs::write(libbpf.join(name), text).expect("OUT_DIR is writable");
        }
        let mut arguments = vec!["-Wall".to_string(), "-Wno-pass-failed".into()];
        // BTF contains the paths of the source files. Map them to relative paths, because builds in different folders
        // must produce identical files.
        if let Ok(here) = env::current_dir() {
            arguments.push(format!("-ffile-prefix-map={}=.", here.display()));
        }
        arguments.push(format!("-ffile-prefix-map={}=out", out.display()));
        arguments.push(format!("-I{}", out.join("libbpf").display()));
        arguments.extend(headers());
        arguments
    }

    /// The include flag for Debian's architecture-specific headers: the folder for native builds or, if that is
    /// missing, the folder for cross-compiling.
    fn headers() -> Option<String> {
        let machine = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
        let paths =
            [format!("/usr/include/{machine}-linux-gnu"), format!("/usr/{machine}-linux-gnu/include")];
        paths.iter().find(|path| Path::new(path).exists()).map(|path| format!("-I{path}"))
    }
}
