//! Small files beside a payload.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::NO_DETOUR;

/// `path` with more at its end.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Writes a small file beside `path`, under its name and `suffix`: it is there as a whole or
/// not at all.
pub(crate) fn write_beside(path: &Path, suffix: &str, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let partial = format!("{}.partial", suffix.trim_end_matches(".json"));
    let (whole, partial) = (beside(path, suffix), beside(path, &partial));
    let mut options = OpenOptions::new();
    let opened: io::Result<File> =
        options.create(true).write(true).truncate(true).custom_flags(NO_DETOUR).open(&partial);
    let written = opened.and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, &whole)
    });
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}
