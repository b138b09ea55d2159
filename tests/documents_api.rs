//! Every public method of the main types has an example that asserts something.

#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::fs;
use std::path::{Path, PathBuf};

const TYPES: [&str; 4] = ["Session", "Sessions", "Builder", "Directory"];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Returns the name of a public method, if the line declares one.
fn public_method(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("    pub ")?;
    let rest = rest.strip_prefix("const ").unwrap_or(rest);
    let rest = rest.strip_prefix("async ").unwrap_or(rest);
    let name = rest.strip_prefix("fn ")?;
    name.split(['(', '<']).next()
}

/// Returns whether a doc comment has a code block with an assertion.
fn has_asserting_example(doc: &[&str]) -> bool {
    let blocks = doc.split(|line| line.starts_with("```"));
    // Every second part is between two fences.
    blocks.skip(1).step_by(2).flatten().any(|line| line.contains("assert"))
}

/// Returns the public methods in a file's `impl` blocks for these types, and whether each has an
/// example.
fn methods(source: &str) -> Vec<(String, bool)> {
    let (mut of, mut doc, mut found) = (None, Vec::new(), Vec::new());
    for line in source.lines() {
        if let Some(head) = line.strip_prefix("impl ") {
            of = TYPES.into_iter().find(|name| head.trim_end_matches(" {") == *name);
        } else if line == "}" {
            of = None;
        }
        let trimmed = line.trim_start();
        match (of, trimmed.strip_prefix("///"), public_method(line)) {
            (Some(_), Some(text), _) => doc.push(text.trim()),
            (Some(name), None, Some(method)) => {
                found.push((format!("{name}::{method}"), has_asserting_example(&doc)));
                doc.clear();
            }
            _ if trimmed.starts_with('#') => {}
            _ => doc.clear(),
        }
    }
    found
}

#[test]
fn public_methods_have_examples_that_assert() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let all: Vec<_> =
        files.iter().flat_map(|file| methods(&fs::read_to_string(file).unwrap())).collect();
    for name in ["Session::get", "Sessions::of", "Builder::build", "Directory::open"] {
        assert!(all.iter().any(|(found, _)| found == name), "{name} was not found");
    }
    let without: Vec<_> = all.iter().filter(|(_, has)| !has).map(|(name, _)| name).collect();
    assert!(without.is_empty(), "these methods have no example that asserts: {without:?}");
}

#[test]
fn methods_are_found_with_and_without_examples() {
    let source = "impl Session {\n    /// Text.\n    ///\n    /// ```\n    /// assert!(true);\n    /// ```\n    \
                  #[must_use]\n    pub const fn a() {}\n\n    /// Does not assert.\n    pub async fn b<T>() {}\n}\n\n\
                  impl Other {\n    pub fn c() {}\n}\n";
    let expected = [("Session::a".to_owned(), true), ("Session::b".to_owned(), false)];
    assert_eq!(methods(source), expected);
}
