//! What packages ship beside a binary: its manual page, and completions for shells.

use std::io::{self, Write};

use clap_complete::Shell;

/// What to print.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Generated {
    /// The manual page.
    Man,
    /// Completions for bash.
    Bash,
    /// Completions for fish.
    Fish,
    /// Completions for zsh.
    Zsh,
}

/// Prints it to standard output.
pub fn print(what: Generated, mut command: clap::Command) -> io::Result<()> {
    let name = command.get_name().to_string();
    let mut output = Vec::new();
    let shell = match what {
        Generated::Man => {
            clap_mangen::Man::new(command).render(&mut output)?;
            return io::stdout().write_all(&output);
        }
        Generated::Bash => Shell::Bash,
        Generated::Fish => Shell::Fish,
        Generated::Zsh => Shell::Zsh,
    };
    clap_complete::generate(shell, &mut command, name, &mut output);
    io::stdout().write_all(&output)
}
