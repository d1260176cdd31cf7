//! What documents point to is there.

use std::collections::HashMap;
use std::fs;
use std::path::{Component, Path};

use crate::document::{Document, root};

/// The links of a document that lead into this repository: path, perhaps empty, and anchor, perhaps none.
fn links(document: &Document) -> Vec<(String, Option<String>)> {
    let targets = document.text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    let targets = targets.map(|(target, _)| target).filter(|target| !target.contains("://"));
    let parts = targets.map(|target| match target.split_once('#') {
        Some((path, anchor)) => (path.to_owned(), Some(anchor.to_owned())),
        None => (target.to_owned(), None),
    });
    parts.collect()
}

/// `path` without `.` and `..`.
fn plain(path: &Path) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(parts.pop()),
            Component::Normal(part) => parts.push(part.to_str().unwrap()),
            _ => {}
        }
    }
    parts.join("/")
}

#[test]
fn each_link_leads_to_a_file_and_to_a_heading_that_it_has() {
    let documents = Document::all();
    let anchors: HashMap<&str, Vec<String>> = documents
        .iter()
        .map(|document| {
            let anchors = document.sections().iter().map(crate::document::Section::anchor).collect();
            (document.name.as_str(), anchors)
        })
        .collect();
    let mut count = 0;
    for document in &documents {
        for (path, anchor) in links(document) {
            let from = Path::new(&document.name);
            let target = match path.as_str() {
                "" => document.name.clone(),
                path => plain(&from.parent().unwrap().join(path)),
            };
            assert!(root().join(&target).exists(), "{}: {path} is not there", document.name);
            if let Some(anchor) = anchor {
                let there = anchors.get(target.as_str()).is_some_and(|anchors| anchors.contains(&anchor));
                assert!(there, "{}: {target} has no #{anchor}", document.name);
            }
            count += 1;
        }
    }
    assert!(count > 40, "{count} links");
}

/// The tests that a text names, each with the file that was named last before it.
fn tests_named_in(text: &str) -> Vec<(&str, &str)> {
    let mut named = Vec::new();
    let mut file = None;
    for quoted in text.split('`').skip(1).step_by(2) {
        let path = Path::new(quoted);
        if path.extension().is_some_and(|ending| ending == "rs") {
            file = Some(quoted);
        } else if quoted.matches('_').count() > 2
            && quoted.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        {
            named.push((file.unwrap_or_else(|| panic!("{quoted} is in no file")), quoted));
        }
    }
    named
}

#[test]
fn each_test_that_a_document_names_is_in_its_file() {
    for name in ["docs/acceptance.md", "docs/security.md"] {
        let document = Document::open(name);
        // Blocks of code are no prose.
        let prose: String = document.text.split("```").step_by(2).collect();
        let named = tests_named_in(&prose);
        assert!(named.len() > 20, "{name}: {}", named.len());
        for (file, test) in named {
            let source =
                fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert!(source.contains(&format!("fn {test}(")), "{name}: {file} has no {test}");
        }
    }
}

#[test]
fn each_row_of_the_acceptance_list_has_its_complaint_its_answer_its_tests_and_how_they_were_seen_to_fail() {
    let sections = Document::open("docs/acceptance.md").sections();
    let rows: Vec<_> = sections.iter().filter(|section| section.heading.starts_with('D')).collect();
    let numbers: Vec<_> = rows.iter().map(|row| row.heading.split_once(": ").unwrap().0.to_owned()).collect();
    assert_eq!(numbers, (1..=18).map(|number| format!("D{number}")).collect::<Vec<_>>());
    for row in rows {
        for part in ["- **Complaint:** ", "- **Charon:** ", "- **Tests:** ", "- **Seen to fail:** "] {
            assert!(row.text.contains(part), "{} has no {part}", row.heading);
        }
        assert!(row.text.contains("](https://github.com/"), "{} names no thread", row.heading);
        assert!(!tests_named_in(&row.text).is_empty(), "{} names no test", row.heading);
    }
}
