//! The pages in `docs/`, which are also modules in the crate's documentation.

use std::collections::BTreeMap;
use std::fs;

use crate::markdown::{Block, Link, document, documents, files, root};

const SOURCE: &str = "https://docs.rs/crate/unsticky/latest/source/";

/// Returns the labels in `src/guide/links.md`, with their targets.
fn labels() -> BTreeMap<String, String> {
    let text = fs::read_to_string(root().join("src/guide/links.md")).unwrap();
    let pairs = text.lines().filter(|line| !line.is_empty()).map(|line| {
        let (label, target) = line.trim_start_matches('[').split_once("]: ").expect(line);
        (label.to_owned(), target.to_owned())
    });
    pairs.collect()
}

/// Returns the names of the files in `docs/`, without the extension.
fn pages() -> Vec<String> {
    let name = |path: std::path::PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    files(&root().join("docs"), "md").into_iter().map(name).collect()
}

#[test]
fn every_page_is_a_module_and_every_module_is_a_page() {
    let guide = fs::read_to_string(root().join("src/guide.rs")).unwrap();
    let list = guide.split("pages! {").nth(1).expect("the list of pages");
    let mut modules: Vec<_> = list.lines().filter_map(|line| line.trim().split_once(' ')).collect();
    modules.push(("guide", "\"guide.md\""));
    let mut in_modules = Vec::new();
    for (module, file) in modules {
        let page = file.trim_matches('"').strip_suffix(".md").expect("a Markdown file");
        assert_eq!(module, page.replace('-', "_"), "the module has the name of its page");
        in_modules.push(page.to_owned());
    }
    let mut in_docs = pages();
    in_docs.sort();
    in_modules.sort();
    assert_eq!(in_docs, in_modules, "docs/, and src/guide.rs");
}

#[test]
fn every_page_has_its_label() {
    let labels = labels();
    for page in pages() {
        let module = page.replace('-', "_");
        let module = if page == "guide" { String::new() } else { format!("::{module}") };
        let target = format!("crate::guide{module}");
        assert_eq!(labels.get(&page), Some(&target), "{page} in src/guide/links.md");
    }
    for (label, target) in &labels {
        let is_page = target.starts_with("crate::") && pages().contains(label);
        assert!(is_page || target.starts_with(SOURCE), "{label} in src/guide/links.md");
    }
}

/// The same link leads from file to file in a clone, and to the same page in the documentation.
#[test]
fn pages_link_by_the_labels_of_links_md() {
    let labels = labels();
    for document in documents().iter().filter(|document| document.path.starts_with("docs/")) {
        let path = &document.path;
        for link in document.links() {
            let is_relative =
                |target: &str| !target.starts_with("https://") && !target.starts_with('#');
            match link {
                Link::Inline(target) => {
                    assert!(!is_relative(&target), "{path}: ({target}) must be a reference link");
                }
                Link::Definition(label, target) if is_relative(&target) => {
                    let expected = match labels.get(&label).map(|it| it.strip_prefix(SOURCE)) {
                        Some(Some(file)) => format!("../{file}"),
                        Some(None) => format!("{label}.md"),
                        None => panic!("{path}: [{label}] is not in src/guide/links.md"),
                    };
                    assert_eq!(target, expected, "{path}: [{label}]");
                }
                Link::Definition(..) | Link::Reference(_) => {}
            }
        }
    }
}

/// The applications on the pages are examples of the crate, so that their tests run.
#[test]
fn applications_on_pages_are_those_in_examples() {
    for (page, example) in [
        ("docs/application.md", "application_axum.rs"),
        ("docs/actix-web.md", "application_actix.rs"),
    ] {
        let program = fs::read_to_string(root().join("examples").join(example)).unwrap();
        let (_description, program) = program.split_once("\n\n").unwrap();
        let page = document(&root().join(page));
        let is_shown = page.blocks().iter().any(|block| {
            matches!(block, Block::Code { info: "rust,no_run", text, .. } if text.trim_end() == program.trim_end())
        });
        assert!(is_shown, "{} does not show examples/{example} as it is now", page.path);
    }
}
