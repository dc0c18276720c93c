//! The scenarios of the NixOS VM tests, run here in containers of Debian with a real systemd. Each is a file that uses
//! only the vocabulary of the NixOS test driver; `nspawn` gives it that.
//!
//! Needs root, and TRIXIE in the environment (`../trixie`). Without, these tests are skipped, and it says so.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration-tests/nixos");
    let can = std::env::var_os("TRIXIE").is_some() && nix::unistd::Uid::effective().is_root();
    if !can {
        eprintln!("\nSKIPPED, and counted as ignored: the systemd scenarios, which need root and TRIXIE\n");
    }
    let scenarios = std::fs::read_dir(folder.join("scenarios")).expect("the scenarios are there");
    let mut scenarios: Vec<_> = scenarios.map(|entry| entry.unwrap().path()).collect();
    scenarios.sort();
    let trials = scenarios.into_iter().map(|scenario| {
        let name = scenario.file_stem().unwrap().to_string_lossy().into_owned();
        let runner = folder.join("nspawn");
        Trial::test(name, move || run(&runner, &scenario)).with_ignored_flag(!can)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
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
