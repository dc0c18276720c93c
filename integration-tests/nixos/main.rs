//! Runs the scenarios of the NixOS VM tests in Debian containers with a real systemd. A scenario is a Python file that
//! uses the functions of the NixOS test driver, which `nspawn` implements. Also tests the Nix files, the container
//! images and the Debian package.
//!
//! The scenarios need root, and these environment variables: TRIXIE and BOOKWORM (folders that `../debian-root` has
//! created) and, to install the exporters, DEB (the package that `../../contrib/debian/package` has built), TARBALL
//! (built by `../../contrib/debian/tarball`) and INSTALLED (the folder into which `cargo install` has installed the
//! exporters). The test of the container images needs SLIM (the folder of `../debian-root trixie slim`) and Podman.
//! Tests whose files or programs are missing are skipped with a message.

#[path = "../harness/skip.rs"]
mod skip;

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};
use skip::skip;
use tempfile::TempDir;

fn main() -> ExitCode {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration-tests/nixos");
    let boots = can_boot();
    // The scenarios in the folders `debian`, `debian-12` and `any-debian` install the exporters from the Debian
    // package, from the tarball or with `cargo install`.
    let folders = [
        ("scenarios", "TRIXIE"),
        ("debian", "TRIXIE"),
        ("debian-12", "BOOKWORM"),
        ("any-debian", "TRIXIE"),
        ("any-debian", "BOOKWORM"),
    ];
    // Pairs of a text and an environment variable. A scenario whose file contains the text needs the file or folder
    // whose path is in the environment variable.
    let needs = [
        ("machine.with_package()", "DEB"),
        ("machine.with_tarball()", "TARBALL"),
        ("machine.with_cargo_install()", "INSTALLED"),
    ];
    let mut trials = Vec::new();
    for (part, suite) in folders {
        let root = std::env::var_os(suite).filter(|_| boots);
        for entry in std::fs::read_dir(folder.join(part)).expect("scenarios") {
            let scenario = entry.unwrap().path();
            let text = std::fs::read_to_string(&scenario).unwrap();
            let has_files = needs
                .iter()
                .all(|(call, variable)| !text.contains(call) || std::env::var_os(variable).is_some());
            let can = has_files && root.is_some();
            let (runner, root) = (folder.join("nspawn"), root.clone().unwrap_or_default());
            let mut name = scenario.file_stem().unwrap().to_string_lossy().into_owned();
            if part == "any-debian" {
                name = format!("{name}-on-{}", suite.to_lowercase());
            }
            trials.push(Trial::test(name, move || run(&[&runner, &scenario], &root)).with_ignored_flag(!can));
        }
    }
    let can_build = ["SLIM", "DEB"].iter().all(|variable| std::env::var_os(variable).is_some());
    let (runner, slim) = (folder.join("images"), std::env::var_os("SLIM").unwrap_or_default());
    let images = move || run(&[&runner], &slim);
    trials.push(Trial::test("images", images).with_ignored_flag(!(boots && can_build)));
    if trials.iter().any(Trial::has_ignored_flag) {
        let needs = "TRIXIE, BOOKWORM, SLIM, DEB, TARBALL, INSTALLED, root, and permission to mount";
        skip(&format!("the scenarios, which need {needs}"), boots);
    }
    trials.sort_by(|one, other| one.name().cmp(other.name()));
    let revision = Trial::test("build_has_the_given_revision", build_has_the_given_revision);
    let no_package = std::env::var_os("DEB").is_none();
    if no_package {
        skip("the tests that need DEB (contrib/debian/package)", true);
    }
    let lintian = Trial::test("lintian_finds_nothing_in_the_package", lintian_finds_nothing_in_the_package)
        .with_ignored_flag(no_package);
    let trials = trials.into_iter().chain(nix()).chain([revision, lintian]).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Tests of the Nix files, which do not need nixpkgs: `evaluate.nix` has replacements for nixpkgs' packages and for
/// NixOS modules, and `lib.nix` has replacements for nixpkgs' lib. If NIXPKGS_LIB is the folder of nixpkgs' lib, the
/// results with nixpkgs' lib must be the same as with `lib.nix`.
fn nix() -> Vec<Trial> {
    let has_nix = Command::new("nix-instantiate").arg("--version").output().is_ok();
    if !has_nix {
        skip("the tests of the Nix files, which need nix-instantiate", true);
    }
    /// A test function for the Nix files, which returns an error if the test fails.
    type Test = fn() -> Result<(), Failed>;
    let tests: [(&str, Test); 5] = [
        ("nix_files_parse", nix_files_parse),
        ("nix_module_evaluates", nix_module_evaluates),
        ("nix_flake_evaluates", nix_flake_evaluates),
        ("nix_packages_install_what_they_should", nix_packages_install_what_they_should),
        ("nix_flake_is_locked", nix_flake_is_locked),
    ];
    tests.into_iter().map(|(name, test)| Trial::test(name, test).with_ignored_flag(!has_nix)).collect()
}

fn nix_files_parse() -> Result<(), Failed> {
    let folder = "integration-tests/nixos";
    let files = ["machine.nix", "evaluate.nix", "lib.nix"].map(|file| format!("{folder}/{file}"));
    for file in files.iter().map(String::as_str).chain(["flake.nix", "module.nix"]) {
        nix_instantiate(&["--parse", file])?;
    }
    Ok(())
}

fn evaluate() -> Result<serde_json::Value, Failed> {
    let evaluate = |arguments: &str| {
        let expression = format!("import ./integration-tests/nixos/evaluate.nix {arguments}");
        nix_instantiate(&["--eval", "--strict", "--json", "-E", &expression])
    };
    let made = evaluate("{ }")?;
    if let Ok(lib) = std::env::var("NIXPKGS_LIB") {
        assert_eq!(made, evaluate(&format!("{{ lib = import {lib}; }}"))?, "nixpkgs' lib gives the second");
    }
    Ok(serde_json::from_str(&made)?)
}

fn nix_module_evaluates() -> Result<(), Failed> {
    let made = evaluate()?;
    let ipc = |case: &str| made[case]["services"]["bitcoind-ipc-exporter"].clone();
    assert_eq!(ipc("default")["OpenFile"], "/run/bitcoind/node.sock:ipc:graceful");
    assert_eq!(
        (&ipc("default")["DynamicUser"], &ipc("default")["PrivateNetwork"]),
        (&true.into(), &true.into())
    );
    assert_eq!(made["default"]["sockets"]["bitcoind-ipc-exporter"]["ListenStream"], "127.0.0.1:9332");
    assert_eq!(ipc("as-before")["User"], "bitcoind-mainnet");
    let command = ipc("as-before")["ExecStart"].clone();
    let expected = "\"/nix/store/another-exporter/bin/bitcoind-ipc-exporter\" \"--metrics-addr\" \"127.0.0.1:9332\" \
                    \"/var/lib/bitcoind-mainnet/node.sock\"";
    assert_eq!(command, expected);
    let owner = |case: &str| (ipc(case)["User"].clone(), ipc(case)["Group"].clone());
    assert_eq!(owner("known-owner"), ("bitcoind-signet".into(), "nodes".into()));
    assert_eq!(owner("flat-owner"), ("bitcoin".into(), "bitcoin".into()));
    for case in ["other-owner", "named-without-ipc", "flat-without-ipc"] {
        assert_eq!(ipc(case)["DynamicUser"], true, "{case}");
    }
    assert_eq!(ipc("flat-owner")["EnvironmentFile"], "/run/secrets/exporter.env");
    assert_eq!(made["nobody"]["failed"].as_array().unwrap().len(), 1);
    assert_eq!(made["default"]["failed"].as_array().unwrap().len(), 0);
    let beside = ipc("rpc-beside-ipc");
    assert_eq!(
        beside["ExecStart"],
        "\"/nix/store/bitcoind-exporter/bin/bitcoind-ipc-exporter\" \"--metrics-addr\" \"127.0.0.1:9332\" \"--chain\" \
         \"signet\" --rpc-cookie-file %d/rpc-cookie"
    );
    assert_eq!(beside["LoadCredential"], serde_json::json!(["rpc-cookie:/var/lib/bitcoind/signet/.cookie"]));
    assert_eq!(beside["SetCredential"], "rpc-cookie:none");
    assert_eq!(
        (&beside["PrivateNetwork"], &beside["IPAddressDeny"], &beside["IPAddressAllow"]),
        (&false.into(), &"any".into(), &"localhost".into())
    );
    assert_eq!(beside["RestrictAddressFamilies"], serde_json::json!(["AF_UNIX", "AF_INET", "AF_INET6"]));
    let without = ipc("without-ipc");
    let command = without["ExecStart"].as_str().unwrap();
    let expected = "\"--chain\" \"main\" \"--rpc\" \"on\" \"--rpc-url\" \"http://127.0.0.1:18000\" \"--rpc-user\" \"exporter\" \
                    --rpc-password-file %d/rpc-password";
    assert!(command.ends_with(expected), "{command}");
    assert_eq!((&without["OpenFile"], &without["DynamicUser"]), (&serde_json::Value::Null, &true.into()));
    assert_eq!(ipc("default")["IPAddressAllow"], serde_json::Value::Null);
    let failed = |case: &str| made[case]["failed"].as_array().unwrap().len();
    assert_eq!(["rpc-beside-ipc", "without-ipc", "neither", "cookie-without-ipc"].map(failed), [0, 0, 1, 1]);
    let usdt = &made["usdt"]["services"]["bitcoind-usdt-exporter"];
    let command = usdt["ExecStart"].as_str().unwrap();
    // systemd must expand only the specifier that the module adds, and no `%` or `$` in values of the configuration.
    assert!(command.contains(r#""--node-name" "50%% of $$HOME" "#), "{command}");
    let block_log =
        r#""--block-log" "/var/lib/bitcoind-usdt-exporter/blocks.sqlite" "--block-log-keep" "100000""#;
    let allowed = r#""--web.allowed-host" "metrics.example.com""#;
    let end = format!(r#""--tracepoints" "fibre,net" {block_log} {allowed} --web.config.file %d/web.yml"#);
    assert!(command.ends_with(&end), "{command}");
    assert_eq!(made["usdt"]["packages"], serde_json::json!(["bitcoind-exporter"]));
    assert_eq!(made["default"]["packages"], serde_json::json!([]));
    assert_eq!(usdt["LoadCredential"], serde_json::json!(["web.yml:/run/secrets/web.yml"]));
    for (error, fails) in made["errors"].as_object().unwrap() {
        assert_eq!(fails, true, "{error} is accepted");
    }
    Ok(())
}

fn nix_flake_evaluates() -> Result<(), Failed> {
    let flake = evaluate()?["flake"].take();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration-tests/nixos/scenarios");
    let mut scenarios: Vec<_> = std::fs::read_dir(folder)?.map(|file| file.unwrap().path()).collect();
    scenarios.sort();
    let checks = flake["checks"].as_object().unwrap();
    assert_eq!(
        checks.keys().map(String::as_str).collect::<Vec<_>>(),
        scenarios.iter().map(|file| file.file_stem().unwrap().to_str().unwrap()).collect::<Vec<_>>()
    );
    for (name, check) in checks {
        let services = check["services"].as_object().unwrap();
        assert_eq!(
            services.keys().collect::<Vec<_>>(),
            ["bitcoind", "bitcoind-ipc-exporter", "bitcoind-usdt-exporter", "prometheus"],
            "{name}"
        );
        assert_eq!(check["failed"].as_array().unwrap().len(), 0, "{name}");
        assert_eq!(services["prometheus"]["wantedBy"].as_array().unwrap().len(), 0, "{name}");
    }
    // As in the real test driver, `pkgs` of a machine is read-only.
    assert_eq!(flake["overlays-in-a-machine-fail"], true);
    assert_eq!(flake["revision"], "0123abc");
    assert_eq!(flake["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(flake["formatter"], "nixfmt");
    assert_eq!(flake["shell-headers"], flake["build-headers"]);
    Ok(())
}

/// Runs the packages' postInstall scripts, and checks the installed files.
fn nix_packages_install_what_they_should() -> Result<(), Failed> {
    let flake = evaluate()?["flake"].take();
    let out = TempDir::new().unwrap();
    let post_install = |name: &str| {
        let script = flake[name].as_str().unwrap();
        let done = Command::new("bash")
            .args(["-euc", script])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("out", out.path())
            .output()
            .unwrap();
        assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let [bin, libexec] = ["bin", "libexec"].map(|folder| out.path().join(folder));
    std::fs::create_dir(&bin)?;
    std::fs::create_dir(&libexec)?;
    let exporters = [
        ("bitcoind-ipc-exporter", env!("CARGO_BIN_EXE_bitcoind-ipc-exporter")),
        ("bitcoind-usdt-exporter", env!("CARGO_BIN_EXE_bitcoind-usdt-exporter")),
    ];
    for (name, path) in exporters {
        std::os::unix::fs::symlink(path, bin.join(name))?;
    }
    post_install("exporters-post-install");
    for (name, _) in exporters {
        let page = std::fs::read_to_string(out.path().join(format!("share/man/man1/{name}.1")))?;
        assert!(page.contains(".TH"), "{name}: {page}");
    }
    // The systemd units contain the paths of Debian, and the Nix packages must not install them.
    assert!(!out.path().join("lib/systemd").exists());

    std::fs::write(libexec.join("bitcoin-node"), "the node")?;
    post_install("node-post-install");
    assert_eq!(std::fs::read_to_string(bin.join("bitcoin-node"))?, "the node");
    Ok(())
}

/// Checks that flake.lock has every input of the flake. Nix evaluates the flake without a network, and must not change
/// flake.lock.
fn nix_flake_is_locked() -> Result<(), Failed> {
    let dir = TempDir::new().unwrap();
    let flake = dir.path().join("flake");
    std::fs::create_dir(&flake)?;
    for file in ["flake.nix", "flake.lock"] {
        std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join(file), flake.join(file))?;
    }
    let output = Command::new("nix")
        .args(["--extra-experimental-features", "nix-command flakes", "--offline", "--store"])
        .arg(dir.path().join("store"))
        .args(["flake", "metadata", "--json", "--no-update-lock-file"])
        .arg(format!("path:{}", flake.display()))
        .env("XDG_CACHE_HOME", dir.path())
        .output()?;
    // Nix makes the files in its store read-only. Without write permission, the test could not delete the temporary
    // folder.
    Command::new("chmod").arg("-R").arg("u+w").arg(dir.path()).status()?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned().into())
    }
}

fn lintian_finds_nothing_in_the_package() -> Result<(), Failed> {
    let changelog = include_str!("../../contrib/debian/changelog");
    let first = format!("bitcoind-exporter ({}-1) ", env!("CARGO_PKG_VERSION"));
    assert!(changelog.starts_with(&first), "contrib/debian/changelog does not begin with {first}");
    let packages = ["DEB", "DEB_ARM64"].into_iter().filter_map(std::env::var_os);
    let output = Command::new("lintian").args(["--fail-on", "error,warning"]).args(packages).output()?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stdout).into_owned().into())
    }
}

/// Checks that build.rs uses the revision in BUILD_REVISION. The flake sets this variable, because Nix builds without a
/// Git repository.
fn build_has_the_given_revision() -> Result<(), Failed> {
    // OUT_DIR is target/debug/build/bitcoind-exporter-…/out. The build script's binary is in another folder below
    // target/debug/build, whose name also begins with `bitcoind-exporter-`.
    let builds = Path::new(env!("OUT_DIR")).ancestors().nth(2).expect("the folder of all builds");
    let scripts = std::fs::read_dir(builds)?.filter_map(|folder| {
        let folder = folder.unwrap();
        let is_ours = folder.file_name().to_string_lossy().starts_with("bitcoind-exporter-");
        let script = folder.path().join("build-script-build");
        Some((is_ours.then_some(script.metadata().ok()?.modified().ok()?)?, script))
    });
    let (_, script) = scripts.max().expect("a build script");
    let dir = TempDir::new().unwrap();
    let output = Command::new(&script)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("OUT_DIR", dir.path())
        .env("CARGO_MANIFEST_DIR", env!("CARGO_MANIFEST_DIR"))
        .env("CARGO_CFG_TARGET_ARCH", std::env::consts::ARCH)
        .env("BUILD_REVISION", "0123abc")
        .output()?;
    let message = String::from_utf8_lossy(&output.stdout);
    assert!(message.lines().any(|line| line == "cargo::rustc-env=BUILD_REVISION=0123abc"), "{message}");
    Ok(())
}

fn nix_instantiate(arguments: &[&str]) -> Result<String, Failed> {
    let output =
        Command::new("nix-instantiate").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output()?;
    if output.status.success() {
        Ok(String::from_utf8(output.stdout)?)
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned().into())
    }
}

/// Whether this process may create the mounts that a container with systemd needs.
fn can_boot() -> bool {
    let mounts = [
        "--mount",
        "sh",
        "-ec",
        "mount --make-rprivate / && mount -t cgroup2 cgroup2 /mnt && mount -t tmpfs tmpfs /mnt",
    ];
    Command::new("unshare").args(mounts).output().is_ok_and(|output| output.status.success())
}

fn run(command: &[&Path], root: &OsStr) -> Result<(), Failed> {
    let exporters = Path::new(env!("CARGO_BIN_EXE_bitcoind-ipc-exporter")).parent().expect("a folder");
    // A scenario may take 600 seconds.
    let output = Command::new("timeout")
        .arg("600")
        .args(command)
        .env("EXPORTERS", exporters)
        .env("ROOT", root)
        .output()?;
    let message =
        [output.stdout, output.stderr].map(|message| String::from_utf8_lossy(&message).into_owned()).concat();
    if output.status.success() { Ok(()) } else { Err(message.into()) }
}
