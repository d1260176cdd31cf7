//! Documents, as far as the tests read them.

use std::fs;
use std::path::{Path, PathBuf};

/// A document of this repository.
pub(crate) struct Document {
    /// Its path in the repository.
    pub(crate) name: String,
    pub(crate) text: String,
}

/// A heading, and what stands below it up to the next one of any level.
pub(crate) struct Section {
    pub(crate) heading: String,
    pub(crate) text: String,
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files below a folder of the repository whose names end so.
pub(crate) fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_str().is_some_and(|path| path.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "no {ending} in {folder}");
    found.sort();
    found
}

impl Document {
    pub(crate) fn open(name: &str) -> Self {
        let text = fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { name: name.to_owned(), text }
    }

    /// All of them: what lies at the top, and what lies in docs/.
    pub(crate) fn all() -> Vec<Self> {
        let entries = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
        let top = entries.filter(|path| path.extension().is_some_and(|ending| ending == "md"));
        let mut paths: Vec<PathBuf> = top.chain(files("docs", ".md")).collect();
        paths.sort();
        let name = |path: PathBuf| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        paths.into_iter().map(name).map(|name| Self::open(&name)).collect()
    }

    pub(crate) fn sections(&self) -> Vec<Section> {
        let mut sections: Vec<Section> = Vec::new();
        let mut is_code = false;
        for line in self.text.lines() {
            is_code ^= line.starts_with("```");
            let heading = line.trim_start_matches('#');
            if !is_code && heading.len() < line.len() && heading.starts_with(' ') {
                sections.push(Section { heading: heading.trim().to_owned(), text: String::new() });
            } else if let Some(section) = sections.last_mut() {
                section.text.push_str(line);
                section.text.push('\n');
            }
        }
        sections
    }

    /// The blocks of code in `language`.
    pub(crate) fn blocks(&self, language: &str) -> Vec<String> {
        let begin = format!("\n```{language}\n");
        let blocks = self.text.split(&begin).skip(1);
        blocks.map(|rest| rest.split_once("\n```").unwrap().0.to_owned()).collect()
    }
}

impl Section {
    /// The heading, if it is one of a thing that has a name.
    pub(crate) fn name(&self) -> Option<&str> {
        self.heading.strip_prefix('`')?.strip_suffix('`')
    }

    /// Its anchor, as GitHub makes it.
    pub(crate) fn anchor(&self) -> String {
        let kept = self.heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
    }
}
