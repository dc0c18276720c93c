//! The scenarios of the NixOS VM tests, run here in containers of Debian with a real systemd. Each is a file that uses
//! only the vocabulary of the NixOS test driver; `nspawn` gives it that.
//!
//! Needs root, and TRIXIE in the environment (`../trixie`), and DEB for the package's scenario
//! (`../../contrib/debian/package`). Without, these tests are skipped, and it says so.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration-tests/nixos");
    let can = std::env::var_os("TRIXIE").is_some() && can_boot();
    if !can {
        eprintln!(
            "\nSKIPPED, and counted as ignored: the systemd scenarios, which need TRIXIE, root, and leave to mount\n"
        );
    }
    // Those in `debian` are about how a Debian package lays things out.
    let entries =
        ["scenarios", "debian"].map(|part| std::fs::read_dir(folder.join(part)).expect("scenarios"));
    let mut scenarios: Vec<_> = entries.into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    scenarios.sort();
    let trials = scenarios.into_iter().map(|scenario| {
        let name = scenario.file_stem().unwrap().to_string_lossy().into_owned();
        let runner = folder.join("nspawn");
        let can = can && (name != "package" || std::env::var_os("DEB").is_some());
        Trial::test(name, move || run(&runner, &scenario)).with_ignored_flag(!can)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.chain(nix()).collect()).exit_code()
}

/// That the Nix files parse, and what the module makes of some configurations with the `lib` of nixpkgs that NIXPKGS_LIB
/// names. Ignored where there is none.
fn nix() -> [Trial; 2] {
    let has_nix = Command::new("nix-instantiate").arg("--version").output().is_ok();
    let lib = std::env::var("NIXPKGS_LIB");
    let has_lib = lib.is_ok();
    let parse = || {
        for file in [
            "flake.nix",
            "module.nix",
            "integration-tests/nixos/machine.nix",
            "integration-tests/nixos/evaluate.nix",
        ] {
            nix_instantiate(&["--parse", file])?;
        }
        Ok(())
    };
    let evaluate = move || {
        let expression =
            format!("import ./integration-tests/nixos/evaluate.nix {{ lib = import {}; }}", lib?);
        let made = nix_instantiate(&["--eval", "--strict", "--json", "-E", &expression])?;
        let made: serde_json::Value = serde_json::from_str(&made)?;
        let ipc = |case: &str| made[case]["services"]["bitcoind-ipc-exporter"].clone();
        assert_eq!(ipc("default")["OpenFile"], "/run/bitcoind/node.sock:ipc:graceful");
        assert_eq!(
            (&ipc("default")["DynamicUser"], &ipc("default")["PrivateNetwork"]),
            (&true.into(), &true.into())
        );
        assert_eq!(made["default"]["sockets"]["bitcoind-ipc-exporter"]["ListenStream"], "127.0.0.1:9332");
        assert_eq!(ipc("as-before")["User"], "bitcoind-mainnet");
        assert!(
            ipc("as-before")["ExecStart"].as_str().unwrap().ends_with(" /var/lib/bitcoind-mainnet/node.sock")
        );
        assert_eq!(ipc("known-owner")["User"], "bitcoind-main");
        assert_eq!(made["nobody"]["failed"].as_array().unwrap().len(), 1);
        assert_eq!(made["default"]["failed"].as_array().unwrap().len(), 0);
        let usdt = &made["usdt"]["services"]["bitcoind-usdt-exporter"];
        let expected = " --tracepoints fibre,net --web.config.file %d/web.yml";
        assert!(usdt["ExecStart"].as_str().unwrap().ends_with(expected), "{usdt}");
        assert_eq!(usdt["LoadCredential"], "web.yml:/run/secrets/web.yml");
        Ok(())
    };
    [
        Trial::test("nix_files_parse", parse).with_ignored_flag(!has_nix),
        Trial::test("nix_module_evaluates", evaluate).with_ignored_flag(!has_nix || !has_lib),
    ]
}

fn nix_instantiate(arguments: &[&str]) -> Result<String, Failed> {
    let output =
        Command::new("nix-instantiate").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output()?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout)?),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned().into()),
    }
}

/// Whether this process may make what a container of systemd needs.
fn can_boot() -> bool {
    let mounts = [
        "--mount",
        "sh",
        "-ec",
        "mount --make-rprivate / && mount -t cgroup2 cgroup2 /mnt && mount -t tmpfs tmpfs /mnt",
    ];
    Command::new("unshare").args(mounts).output().is_ok_and(|output| output.status.success())
}

fn run(runner: &Path, scenario: &PathBuf) -> Result<(), Failed> {
    let exporters = Path::new(env!("CARGO_BIN_EXE_bitcoind-ipc-exporter")).parent().expect("a folder");
    // Nothing in a scenario waits longer than this in all.
    let output =
        Command::new("timeout").arg("600").arg(runner).arg(scenario).env("EXPORTERS", exporters).output()?;
    let said =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    match output.status.success() {
        true => Ok(()),
        false => Err(said.into()),
    }
}
