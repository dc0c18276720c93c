//! Generates files that packages ship with a binary: the manual page and shell completions.

use std::io::{self, Write};

use clap_complete::Shell;

/// A file that `--generate` prints.
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

/// Prints the requested file to standard output.
///
/// # Errors
/// Standard output cannot be written.
pub fn print(what: PackageFile, mut command: clap::Command) -> io::Result<()> {
    let name = command.get_name().to_string();
    let mut output = Vec::new();
    let shell = match what {
        PackageFile::Man => {
            manual(command, &mut output)?;
            return io::stdout().write_all(&output);
        }
        PackageFile::Bash => Shell::Bash,
        PackageFile::Fish => Shell::Fish,
        PackageFile::Zsh => Shell::Zsh,
    };
    clap_complete::generate(shell, &mut command, name, &mut output);
    io::stdout().write_all(&output)
}

/// Writes one manual page that describes all subcommands. The page of clap_mangen only refers to a separate page for
/// each subcommand.
fn manual(command: clap::Command, page: &mut Vec<u8>) -> io::Result<()> {
    let commands: Vec<_> = command.get_subcommands().cloned().collect();
    let man = clap_mangen::Man::new(command);
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    for command in commands {
        let (name, about) =
            (command.get_name().to_uppercase(), command.get_about().cloned().unwrap_or_default());
        let mut options = Vec::new();
        clap_mangen::Man::new(command).render_options_section(&mut options)?;
        let options = String::from_utf8_lossy(&options).replace(".SH OPTIONS\n", "");
        writeln!(page, ".SH COMMAND {name}\n{about}\n{options}")?;
    }
    man.render_extra_section(page)?;
    man.render_version_section(page)
}
