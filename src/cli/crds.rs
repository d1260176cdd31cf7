use super::{CliError, output};
use crate::api;

/// Print the definitions of PayloadBuild and PayloadImport, for `kubectl apply -f -`
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct CrdsArgs {}

pub(super) fn run(_: CrdsArgs) -> Result<(), CliError> {
    api::crds_yaml().iter().try_for_each(|document| output::line(&format!("---\n{}", document.trim_end())))
}
