use std::io;

use clap::Args;
use clap_complete::Shell;

use super::{CliError, output};

/// Print a completion script for a shell
#[derive(Debug, Args)]
pub(super) struct Completion {
    /// The shell
    shell: Shell,
}

impl Completion {
    pub(super) fn run(&self) -> Result<(), CliError> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::command(), "charon", &mut script);
        io::Write::write_all(&mut io::stdout().lock(), &script)
            .map_err(|error| output::cannot_write("to standard output", &error))
    }
}
