//! Links from one file to another.

use std::path::Path;
use std::process::Command;

use crate::markdown::{Link, document, documents, files, root};

const SOURCE: &str = "https://docs.rs/crate/unsticky/latest/source/";

/// Returns what is wrong with a link from this file to this target.
fn fault(path: &str, target: &str) -> Option<String> {
    let (file, fragment) = target.split_once('#').unwrap_or((target, ""));
    let from = root().join(path);
    let to = if file.is_empty() { from } else { from.parent().unwrap().join(file) };
    let Ok(to) = to.canonicalize() else { return Some(format!("{path}: no file {target}")) };
    if !to.starts_with(root().canonicalize().unwrap()) {
        return Some(format!("{path}: {target} is outside of the repository"));
    }
    let is_markdown = to.extension().is_some_and(|extension| extension == "md");
    let to = root().join(to.strip_prefix(root().canonicalize().unwrap()).unwrap());
    let leads = fragment.is_empty()
        || is_markdown && document(&to).anchors().iter().any(|anchor| anchor == fragment);
    (!leads).then(|| format!("{path}: no heading {target}"))
}

#[test]
fn relative_links_lead_to_files_and_headings() {
    let mut checked = 0;
    for document in documents().iter().filter(|document| document.path != "src/guide/links.md") {
        for link in document.links() {
            let (Link::Inline(target) | Link::Definition(_, target)) = link else { continue };
            if !target.contains("://") && !target.starts_with("mailto:") {
                assert_eq!(fault(&document.path, &target), None);
                checked += 1;
            }
        }
    }
    assert!(checked > 10, "{checked} relative links");
}

#[test]
fn dead_relative_link_is_a_fault() {
    assert_eq!(fault("docs/values.md", "guide.md"), None);
    assert_eq!(fault("docs/values.md", "../README.md#stability-and-licence"), None);
    assert!(fault("docs/values.md", "no-such-page.md").is_some());
    assert!(fault("docs/values.md", "../README.md#no-such-heading").is_some());
    assert!(fault("docs/values.md", "../../elsewhere").is_some());
}

#[test]
fn labels_of_references_are_defined_in_their_file() {
    for document in documents() {
        let links = document.links();
        for link in &links {
            let Link::Reference(label) = link else { continue };
            let is_defined = links.iter().any(
                |one| matches!(one, Link::Definition(name, _) if name.eq_ignore_ascii_case(label)),
            );
            assert!(is_defined, "{}: [{label}] is not defined", document.path);
        }
    }
}

/// The crate registry shows the README without the repository, so a relative link does not work there.
/// One is allowed only if its text is the file's path, which readers can find in a clone.
#[test]
fn readme_links_to_addresses() {
    let readme = document(&root().join("README.md"));
    for link in readme.links() {
        let (Link::Inline(target) | Link::Definition(_, target)) = link else { continue };
        let is_address = target.starts_with("https://") || target.starts_with('#');
        let is_path = readme.text.contains(&format!("[{target}]({target})"));
        assert!(is_address || is_path, "README.md: {target} must be a full URL");
    }
}

/// Returns all URLs with this beginning, in documents and sources, each with the file that contains it.
pub(crate) fn addresses(beginning: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for extension in ["md", "rs", "toml"] {
        for path in files(root(), extension) {
            if path.starts_with(root().join("tests/documents")) {
                continue;
            }
            let document = document(&path);
            for (at, _) in document.text.match_indices(beginning) {
                let rest = &document.text[at + beginning.len()..];
                let end = rest.find(|c: char| c.is_whitespace() || "<>()[]\"'`|".contains(c));
                let target = rest[..end.unwrap_or(rest.len())].trim_end_matches(['.', ',']);
                all.push((document.path.clone(), target.to_owned()));
            }
        }
    }
    all
}

#[test]
fn linked_sources_are_in_the_package() {
    let arguments = ["package", "--list", "--allow-dirty", "--offline"];
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(root()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let list = String::from_utf8(output.stdout).unwrap();
    let is_packed = |file: &str| list.lines().any(|line| Path::new(line) == Path::new(file));
    let linked = addresses(SOURCE);
    assert!(!linked.is_empty());
    for (path, file) in linked {
        let file = file.split('#').next().unwrap();
        assert!(is_packed(file), "{path}: {file} is not in the package");
    }
}
