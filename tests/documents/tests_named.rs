//! The tests to which `docs/guarantees.md` and `docs/security.md` refer exist.

use std::fs;

use crate::markdown::root;

#[test]
fn tests_named_in_guarantees_exist() {
    assert!(named_tests("docs/guarantees.md", 1) > 50);
}

/// Each requirement that the library provides refers to a test.
#[test]
fn tests_named_in_security_document_exist() {
    assert!(named_tests("docs/security.md", 3) > 40);
    let text = fs::read_to_string(root().join("docs/security.md")).unwrap();
    for row in rows(&text) {
        assert!(row[1] != "provided" || row[3].contains("::"), "{}", row[0]);
        let answers = ["provided", "yours", "deliberately not"];
        assert!(answers.contains(&row[1]), "{}", row[0]);
    }
}

/// Returns the cells of the tables, without the header rows.
pub(crate) fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let is_head = |row: &&str| {
        ["| promise", "| fault", "| requirement"].iter().any(|head| row.starts_with(head))
    };
    let rows = text.lines().filter(|line| line.starts_with("| ")).filter(move |row| !is_head(row));
    rows.map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 4, "{row}");
        cells
    })
}

/// Returns the number of tests in a column of the document. Asserts that each of them exists.
fn named_tests(document: &str, column: usize) -> usize {
    let text = fs::read_to_string(root().join(document)).unwrap();
    let mut checked = 0;
    for row in rows(&text) {
        for name in row[column].split('`').skip(1).step_by(2).filter(|name| !name.starts_with('…'))
        {
            let name = name.trim_end_matches('*');
            if name.contains('/') {
                assert!(root().join(name).exists(), "{name}");
                continue;
            }
            let (path, test) = match name.rsplit_once("::") {
                Some((module, "tests")) => (format!("src/{}.rs", module.replace("::", "/")), ""),
                Some((file, test)) => (format!("tests/{file}.rs"), test),
                None if name.ends_with('_') => (format!("tests/{name}memory.rs"), ""),
                None => (format!("tests/{name}.rs"), ""),
            };
            let text = fs::read_to_string(root().join(&path)).unwrap_or_default();
            let nested = fs::read_to_string(root().join(path.replace(".rs", "/mod.rs")));
            let text = if text.is_empty() { nested.unwrap_or_default() } else { text };
            // The test is a function, or a row in a table of tests.
            let is_there = [format!("fn {test}"), format!("        {test}: ")];
            let is_there = is_there.iter().any(|test| text.contains(test));
            assert!(!text.is_empty() && is_there, "{name} in {path}");
            checked += 1;
        }
    }
    checked
}
