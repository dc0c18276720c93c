//! Generates files that packages ship with a binary: the manual page and shell completions.

use std::io::{self, Write};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// A file that `--generate` prints for packages: a manual page, or a completion script for a shell.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum PackageFile {
    /// The manual page.
    Man,
    /// Completions for bash.
    Bash,
    /// Completions for fish.
    Fish,
    /// Completions for zsh.
    Zsh,
}

/// The contents of `file` for the command line `command`.
///
/// # Errors
/// The manual page cannot be rendered.
pub fn contents(file: PackageFile, mut command: Command) -> io::Result<Vec<u8>> {
    let shell = match file {
        PackageFile::Man => return manual(command),
        PackageFile::Bash => Shell::Bash,
        PackageFile::Fish => Shell::Fish,
        PackageFile::Zsh => Shell::Zsh,
    };
    let name = command.get_name().to_string();
    let mut completions = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut completions);
    Ok(completions)
}

/// Renders one manual page that describes all subcommands. The page that clap_mangen renders by default only refers to
/// a separate page for each subcommand.
fn manual(command: Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let man = Man::new(command.clone());
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    for command in command.get_subcommands() {
        let name = command.get_name().to_uppercase();
        let about = command.get_about().cloned().unwrap_or_default();
        let mut options = Vec::new();
        Man::new(command.clone()).render_options_section(&mut options)?;
        let options = String::from_utf8_lossy(&options).replace(".SH OPTIONS\n", "");
        writeln!(page, ".SH COMMAND {name}\n{about}\n{options}")?;
    }
    man.render_extra_section(&mut page)?;
    man.render_version_section(&mut page)?;
    Ok(page)
}
