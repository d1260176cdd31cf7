//! The manuals of the resources, and what to do in trouble.

use std::collections::{BTreeMap, BTreeSet};

use charon::reason::Reason;
use serde_json::Value;

use crate::document::{Document, Section, files};

const MANUALS: [(&str, &str); 2] =
    [("docs/payloadbuild.md", "PayloadBuild"), ("docs/payloadimport.md", "PayloadImport")];

/// The schema of a kind.
fn schema(kind: &str) -> Value {
    let crd = charon::api::crds().into_iter().find(|crd| crd.spec.names.kind == kind).unwrap();
    serde_json::to_value(&crd.spec.versions[0].schema).unwrap()["openAPIV3Schema"].take()
}

/// The paths of all fields below `schema`; a list of objects has `[]` behind its name.
fn fields(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let (mut path, mut inner) = (format!("{path}{name}"), property);
        if let Some(items) = property.get("items").filter(|items| items.get("properties").is_some()) {
            path.push_str("[]");
            inner = items;
        }
        fields(inner, &format!("{path}."), found);
        found.insert(path);
    }
}

/// The fields that a manual tells of: each in its own section, or in a line of its parent's.
fn told(manual: &Document) -> BTreeSet<String> {
    let mut told = BTreeSet::new();
    for section in manual.sections() {
        let Some(path) = section.name() else { continue };
        assert!(told.insert(path.to_owned()), "{}: {path} has two sections", manual.name);
        assert!(section.text.trim().len() > 1, "{}: nothing is said of {path}", manual.name);
        let lines = section.text.lines().filter_map(|line| line.strip_prefix("- `")?.split_once("`: "));
        for (inner, meaning) in lines {
            assert!(!meaning.is_empty(), "{}: nothing is said of {path}.{inner}", manual.name);
            // `a.b` tells of `a`, too.
            for (end, _) in inner.match_indices('.') {
                told.insert(format!("{path}.{}", &inner[..end]));
            }
            assert!(told.insert(format!("{path}.{inner}")), "{}: {path}.{inner} is told twice", manual.name);
        }
    }
    told
}

#[test]
fn a_manual_tells_of_every_field_of_its_resource_and_of_no_other() {
    for (manual, kind) in MANUALS {
        let (schema, mut expected) = (schema(kind), BTreeSet::new());
        for part in ["spec", "status"] {
            fields(&schema["properties"][part], &format!("{part}."), &mut expected);
            expected.insert(part.to_owned());
        }
        let told = told(&Document::open(manual));
        let forgotten: Vec<_> = expected.difference(&told).collect();
        let invented: Vec<_> = told.difference(&expected).collect();
        assert!(forgotten.is_empty() && invented.is_empty(), "{manual}: {forgotten:?} {invented:?}");
    }
}

#[test]
fn what_both_resources_have_is_told_in_the_same_words() {
    let [build, import] = MANUALS.map(|(manual, _)| {
        let sections = Document::open(manual).sections().into_iter();
        let named = sections.filter_map(|section| Some((section.name()?.to_owned(), section.text)));
        named.collect::<BTreeMap<_, _>>()
    });
    let shared: Vec<_> = build.keys().filter(|path| *path != "spec" && import.contains_key(*path)).collect();
    assert!(shared.len() > 20, "{shared:?}");
    for path in shared {
        assert_eq!(build[path], import[path], "{path}");
    }
}

#[test]
fn a_manual_gives_an_example_that_has_every_field_of_a_spec() {
    for (manual, kind) in MANUALS {
        let examples = Document::open(manual).blocks("yaml").join("\n---\n");
        let examples: Vec<Value> = serde_saphyr::from_multiple(&examples).unwrap();
        let mut given = BTreeSet::new();
        for example in examples {
            assert_eq!(example["kind"], kind, "{manual}");
            present(&example["spec"], "spec", &mut given);
        }
        let mut expected = BTreeSet::new();
        fields(&schema(kind)["properties"]["spec"], "spec.", &mut expected);
        let missing: Vec<_> = expected.difference(&given).collect();
        assert!(missing.is_empty(), "{manual}: {missing:?}");
    }
}

/// The paths of all fields of `value`.
fn present(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            found.insert(path.to_owned());
            fields.iter().for_each(|(name, inner)| present(inner, &format!("{path}.{name}"), found));
        }
        Value::Array(items) if items.iter().all(Value::is_object) => {
            for item in items {
                present(item, &format!("{path}[]"), found);
            }
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}

#[test]
fn each_reason_has_its_section_with_what_is_seen_and_no_other_word_has() {
    let sections = Document::open("docs/troubleshooting.md").sections();
    let told: Vec<&str> = sections.iter().filter_map(Section::name).collect();
    assert_eq!(told, Reason::ALL.map(Reason::as_str));
    for section in sections.iter().filter(|section| section.name().is_some()) {
        let (means, rest) = section.text.split_once("\n```text\n").expect(&section.heading);
        let (seen, then) = rest.split_once("\n```\n").expect(&section.heading);
        assert!([means, seen, then].iter().all(|part| part.trim().len() > 10), "{}", section.heading);
    }
}

#[test]
fn a_situation_names_no_reason_that_there_is_not() {
    for (manual, _) in MANUALS {
        let sections = Document::open(manual).sections();
        let situations = sections.iter().skip_while(|section| section.heading != "Situations").skip(1);
        let situations: Vec<_> = situations.take_while(|section| section.heading != "Every field").collect();
        assert!(situations.len() > 10, "{manual}");
        for situation in situations {
            // Behind the table's head and its line.
            let row = situation.text.lines().filter(|line| line.starts_with('|')).nth(2);
            let row = row.unwrap_or_else(|| panic!("{manual}: {} has no conditions", situation.heading));
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            let [_, ready, reconciling, stalled, _, _, _] = cells[..] else { panic!("{manual}: {row}") };
            let words = [ready, reconciling, stalled].into_iter().flat_map(|cell| {
                cell.split(|c: char| !c.is_alphanumeric()).filter(|word| word.starts_with(char::is_uppercase))
            });
            for word in words.filter(|word| !["True", "False", "Unknown"].contains(word)) {
                assert!(charon::reason::parse(word).is_some(), "{manual}: {}: {word}", situation.heading);
            }
            assert!(
                !ready.contains("True") || stalled.is_empty() && reconciling.is_empty(),
                "{manual}: {row}"
            );
            assert!(
                reconciling.is_empty() || stalled.is_empty() || ready == "*as before*",
                "{manual}: {row}"
            );
        }
    }
}

#[test]
fn each_message_that_is_quoted_is_one_that_the_program_forms() {
    let sources: String =
        files("src", ".rs").iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let sources = sources.replace("\\\"", "\"");
    let document = Document::open("docs/troubleshooting.md");
    let blocks = document.blocks("text");
    let messages: Vec<&str> = blocks.iter().flat_map(|block| block.lines()).collect();
    assert!(messages.len() > 100, "{}", messages.len());
    for message in messages {
        let mut pieces = 0;
        // What is filled in, and what is put together, has its place between these.
        for piece in
            message.split(['<', '>']).step_by(2).flat_map(|part| part.split([';', ':', ',', '(', ')']))
        {
            let piece = piece.trim_matches(|c: char| !c.is_alphanumeric());
            if piece.len() > 3 {
                assert!(sources.contains(piece), "{message:?}: {piece:?} is not in the sources");
                pieces += 1;
            }
        }
        assert!(pieces > 0, "{message:?}");
    }
}
