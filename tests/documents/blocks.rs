//! The code blocks in the documents are valid: Rust is compiled, JSON is parsed, and manifests and
//! commands refer to things that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use crate::markdown::{Block, documents, files, root};

/// The languages that a code block may have. Rustdoc would compile a block without a language.
const LANGUAGES: [&str; 15] = [
    "rust",
    "toml",
    "sh",
    "json",
    "yaml",
    "text",
    "html",
    "http",
    "ini",
    "nginx",
    "promql",
    "js",
    "diff",
    "dockerfile",
    "sql",
];

/// Returns the documents that rustdoc reads, so that it compiles their examples.
fn in_documentation() -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    for path in files(&root().join("src"), "rs") {
        let text = fs::read_to_string(&path).unwrap();
        for included in text.split("include_str!(\"").skip(1) {
            let file = path.parent().unwrap().join(included.split('"').next().unwrap());
            all.extend(file.canonicalize());
        }
        for page in text.split('"').filter(|literal| literal.ends_with(".md")) {
            all.extend(root().join("docs").join(page).canonicalize());
        }
    }
    all
}

#[test]
fn rust_is_compiled_by_rustdoc() {
    let compiled = in_documentation();
    let mut checked = 0;
    for document in documents() {
        for block in document.blocks() {
            let Block::Code { line, info, .. } = block else { continue };
            let place = format!("{}, line {line}", document.path);
            let mut words = info.split([',', ' ']);
            let language = words.next().unwrap();
            assert!(LANGUAGES.contains(&language), "{place}: is {language:?} a language?");
            if language == "rust" {
                let file = root().join(&document.path).canonicalize().unwrap();
                assert!(compiled.contains(&file), "{place}: src/lib.rs does not include this file");
                let is_skipped = words.any(|word| word.starts_with("ignore"));
                assert!(!is_skipped, "{place}: an example is compiled, and not ignored");
                checked += 1;
            }
        }
    }
    assert!(checked > 10);
}

#[test]
fn json_is_json() {
    for document in documents() {
        for block in document.blocks() {
            let Block::Code { line, info: "json", text } = block else { continue };
            for value in serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>()
            {
                let error = value.err();
                assert!(error.is_none(), "{}, line {line}: {error:?}", document.path);
            }
        }
    }
}

/// Returns the lines of one section of a manifest.
fn section(manifest: &str, name: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(manifest)).unwrap();
    let lines = text.lines().skip_while(|line| *line != format!("[{name}]")).skip(1);
    lines.take_while(|line| !line.starts_with('[')).map(str::to_owned).collect()
}

/// Returns the features that a manifest declares.
fn features(manifest: &str) -> BTreeSet<String> {
    let lines = section(manifest, "features").into_iter();
    let names = lines.filter_map(|line| Some(line.split_once(" = ")?.0.to_owned()));
    names.filter(|name| !name.starts_with('#')).collect()
}

/// Returns what is wrong with the dependency on this crate in an example of a manifest.
fn fault_of_manifest(text: &str) -> Option<String> {
    let ours = features("Cargo.toml");
    let version = env!("CARGO_PKG_VERSION");
    for line in text.lines().filter(|line| line.starts_with("unsticky")) {
        let wanted = line.split("version = \"").nth(1).map(|rest| rest.split('"').next().unwrap());
        if !wanted.is_some_and(|wanted| version.starts_with(wanted)) {
            return Some(format!("the version is {version}: {line}"));
        }
        let list = line.split("features = [").nth(1).unwrap_or_default();
        let list = list.split(']').next().unwrap_or_default();
        for feature in list.split('"').skip(1).step_by(2) {
            if !ours.contains(feature) {
                return Some(format!("no feature {feature}"));
            }
        }
    }
    None
}

#[test]
fn manifests_name_features_and_version_of_this_crate() {
    for document in documents() {
        for block in document.blocks() {
            let Block::Code { line, info: "toml", text } = block else { continue };
            assert_eq!(fault_of_manifest(&text), None, "{}, line {line}", document.path);
        }
    }
    assert!(fault_of_manifest("unsticky = { version = \"0.1\", features = [\"axum\"] }").is_none());
    assert!(fault_of_manifest("unsticky = { version = \"9.9\", features = [\"axum\"] }").is_some());
    assert!(fault_of_manifest("unsticky = { version = \"0.1\", features = [\"axom\"] }").is_some());
}

/// A word in a command that starts with one of these is a path in the repository.
const FOLDERS: [&str; 7] =
    ["scripts/", "./scripts/", ".ci/", "tests/", "examples/", "docs/", "benches/"];

/// Returns the first word that refers to something that does not exist.
fn fault_of_commands(text: &str) -> Option<String> {
    let mut folder = PathBuf::new();
    for command in text.lines().flat_map(|line| line.split("&&")) {
        let command = command.split(" #").next().unwrap();
        let words: Vec<_> =
            command.split_whitespace().map(|it| it.trim_matches(['\'', '"'])).collect();
        let is_cargo = words.contains(&"cargo") && !words.contains(&"install");
        for (at, word) in words.iter().enumerate() {
            let next = words.get(at + 1).copied().unwrap_or_default();
            let is_missing = match *word {
                "cd" if at == 0 => {
                    folder.push(next);
                    !root().join(&folder).is_dir()
                }
                "--manifest-path" => !root().join(&folder).join(next).is_file(),
                "--example" if is_cargo => {
                    let examples = root().join(&folder).join("examples");
                    !examples.join(next).join("main.rs").is_file()
                        && !examples.join(format!("{next}.rs")).is_file()
                }
                "--test" if is_cargo => {
                    let tests = root().join(&folder).join("tests");
                    !tests.join(next).join("main.rs").is_file()
                        && !tests.join(format!("{next}.rs")).is_file()
                }
                "--features" | "-F" => {
                    let ours = features(&folder.join("Cargo.toml").to_string_lossy());
                    next.split(',').any(|feature| !ours.contains(feature))
                }
                _ if at > 0 && words[at - 1] == "cd" => false,
                _ => {
                    FOLDERS.iter().any(|folder| word.starts_with(folder))
                        && !root().join(&folder).join(word).exists()
                }
            };
            if is_missing {
                return Some(format!("{word} {next}"));
            }
        }
    }
    None
}

#[test]
fn commands_name_what_is_there() {
    for document in documents() {
        for block in document.blocks() {
            let Block::Code { line, info: "sh", text } = block else { continue };
            assert_eq!(fault_of_commands(&text), None, "{}, line {line}", document.path);
        }
    }
    assert_eq!(fault_of_commands("cd benches/peers\ncargo run --release -- choices"), None);
    assert_eq!(fault_of_commands("cargo test --features axum,redis --test parity # all"), None);
    for wrong in [
        "scripts/no-such-script",
        "cd examples/no-such-folder",
        "cargo run --example no_such_example",
        "cargo test --test no_such_test",
        "cargo install unsticky --features no_such_feature",
    ] {
        assert!(fault_of_commands(wrong).is_some(), "{wrong}");
    }
}
