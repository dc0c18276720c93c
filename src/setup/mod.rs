//! The subcommand `setup`: inspects the machine, and prints or makes the changes to configuration files and systemd
//! units that connect bitcoind-ipc-exporter to a node.
//!
//! `machine` collects facts about the machine, `settings` parses the settings of a node, `plan` decides from these
//! facts, without I/O, which changes to make, and `block` writes the files. In this module, a block is not a block of a
//! chain: it is a group of lines that setup adds to a file, between two comments.

mod block;
mod machine;
mod plan;
mod settings;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use self::block::Change;
use self::machine::Machine;
use self::plan::{Plan, Secret};
use crate::cli;

/// Arguments of the subcommand `setup`.
#[derive(clap::Args, Debug)]
pub struct SetupCommand {
    /// Make the changes. Without this option, nothing is changed
    #[arg(long)]
    pub write: bool,

    /// Remove the changes of all earlier runs with --write
    #[arg(long, conflicts_with_all = ["write", "node"])]
    pub undo: bool,

    /// PID, systemd unit or data directory of the node, if several nodes run
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,

    /// Directory that replaces / for files of the system, for tests
    #[arg(long, hide = true, default_value = "/")]
    pub root: PathBuf,
}

impl SetupCommand {
    /// Prints the facts about the nodes and the planned changes, and with `--write` makes the changes. Returns a
    /// failure if a problem prevents the changes.
    ///
    /// # Errors
    /// `/proc` cannot be read, or a file cannot be written. All files are unchanged, except a file that the error
    /// describes as changed already.
    pub fn run(&self) -> Result<ExitCode> {
        if self.undo {
            return self.undo();
        }
        let machine = Machine::inspect(&self.root, self.node.as_deref())?;
        let mut plan = Plan::new(&machine, self.node.as_deref(), Secret::random());
        let (mut changes, mut lines) = (Vec::new(), String::new());
        for block in &plan.blocks {
            match Change::add(block) {
                Ok(Some(change)) => {
                    let _ = writeln!(lines, "{} {}", change.verb(), change.path.display());
                    if !self.write {
                        lines += &indented(&block.text);
                    }
                    changes.push(change);
                }
                Ok(None) => {}
                Err(error) => plan.problems.push(format!("{error:#}")),
            }
        }
        let is_possible = plan.problems.is_empty();
        if self.write && !is_possible {
            lines.clear();
        }
        let writes = self.write && is_possible && !changes.is_empty();
        if writes {
            block::write(&self.root, changes)?;
        }
        let nodes: String = machine.nodes.iter().map(|node| node.describe() + "\n").collect();
        cli::print(&(nodes + &describe(&plan, &lines, writes)))?;
        Ok(if is_possible { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn undo(&self) -> Result<ExitCode> {
        let changes = block::undo(&self.root)?;
        let mut text: String =
            changes.iter().map(|change| format!("{}d {}\n", change.verb(), change.path.display())).collect();
        text += if changes.is_empty() {
            "There is nothing to undo.\n"
        } else {
            "Next: systemctl daemon-reload, and restart the exporter. The node uses its earlier settings after its next restart.\n"
        };
        cli::print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Describes the planned changes for the operator. `lines` lists the files to change, and if they have not been
/// written, the lines to add. `is_written` is whether the files have been written.
fn describe(plan: &Plan, lines: &str, is_written: bool) -> String {
    let list = |title: &str, items: &[String]| match items {
        [] => String::new(),
        items => {
            items.iter().fold(format!("{title}:\n"), |text, item| {
                text + "- " + &item.trim_end().replace('\n', "\n  ") + "\n"
            }) + "\n"
        }
    };
    let mut text = list("Problems", &plan.problems) + &list("Notes", &plan.notes);
    if !lines.is_empty() {
        let title = if is_written { "Changed files" } else { "Lines to add at the beginning of these files" };
        let commands = indented(&plan.commands.join("\n"));
        let _ = writeln!(text, "{title}:\n{lines}\nThen run:\n{commands}");
    }
    text += match (plan.problems.is_empty(), lines.is_empty(), is_written) {
        (false, ..) => "Nothing was changed. Solve the problems, and run setup again.\n",
        (true, true, _) => "Nothing has to be changed.\n",
        (true, false, true) => "Setup restarts no node; `setup --undo` reverts these changes.\n",
        (true, false, false) => {
            "Nothing was changed. To make these changes, run as root: bitcoind-ipc-exporter setup --write\n"
        }
    };
    text
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}
