use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use clap_mangen::Man;

use super::{CliError, output};

/// Print the manual page
#[derive(Debug, Args)]
pub(super) struct ManPages {
    /// Write the pages of all commands into this folder instead
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

impl ManPages {
    pub(super) fn run(&self) -> Result<(), CliError> {
        match &self.folder {
            Some(folder) => {
                [super::command(), super::kubectl::command()].into_iter().try_for_each(|command| {
                    clap_mangen::generate_to(command, folder).map_err(|error| {
                        output::cannot_write(&format!("the manual pages to {}", folder.display()), &error)
                    })
                })
            }
            None => {
                print().map_err(|error| output::cannot_write("the manual page to standard output", &error))
            }
        }
    }
}

fn print() -> io::Result<()> {
    let mut page = Vec::new();
    Man::new(super::command()).render(&mut page)?;
    io::stdout().lock().write_all(&page)
}
