//! `charon crds`: prints the custom resource definitions.

use std::io::Write;

use crate::api;

/// Print the definitions of PayloadBuild and PayloadImport, for `kubectl apply -f -`
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct CrdsArgs {}

/// Writes the definitions to `out`, as YAML documents.
pub fn run(_: &CrdsArgs, out: &mut dyn Write) -> std::io::Result<()> {
    for document in api::crds_yaml() {
        write!(out, "---\n{document}")?;
    }
    Ok(())
}
