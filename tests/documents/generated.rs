//! Links into the generated documentation, and links within it.
//!
//! `scripts/test` runs these tests after `cargo doc`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::links::addresses;
use crate::markdown::files;

const ONLINE: &str = "https://docs.rs/unsticky/latest/";

/// A link in the documentation of a trait from the `tracing` crate, which rustdoc copies.
const OF_TRACING: &str = "dispatcher#setting-the-default-subscriber";

/// Returns the directory into which `cargo doc` writes: next to the files that this test was built
/// from.
fn generated() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(3).unwrap().join("doc")
}

/// Returns the values of an attribute.
fn attributes<'a>(html: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let beginning = format!(" {name}=");
    let found: Vec<_> =
        html.match_indices(&beginning).map(|(at, it)| &html[at + it.len()..]).collect();
    found.into_iter().filter_map(|value| match value.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next(),
        None => value.split([' ', '>']).next(),
    })
}

/// The ids on each page that was read, or `None` if it could not be read.
#[derive(Default)]
struct Pages(BTreeMap<PathBuf, Option<BTreeSet<String>>>);

impl Pages {
    /// Returns what is wrong with a link to this file.
    fn fault(&mut self, file: &Path, fragment: &str) -> Option<&'static str> {
        let ids = self.0.entry(file.to_owned()).or_insert_with(|| {
            let html = fs::read_to_string(file).ok()?;
            Some(attributes(&html, "id").map(str::to_owned).collect())
        });
        let Some(ids) = ids else {
            return (!file.is_file()).then_some("there is no such file");
        };
        // A link to lines of a source file has a range.
        let mut wanted = vec![fragment];
        if file.components().any(|part| part.as_os_str() == "src") {
            wanted = fragment.split('-').collect();
        }
        let leads = fragment.is_empty() || wanted.iter().all(|id| ids.contains(*id));
        (!leads).then_some("there is no such id in it")
    }
}

/// Returns the path without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut path, part| {
        match part {
            Component::ParentDir => {
                path.pop();
            }
            Component::CurDir => {}
            part => path.push(part),
        }
        path
    })
}

fn split(target: &str) -> (&str, &str) {
    let (file, fragment) = target.split_once('#').unwrap_or((target, ""));
    (file.split('?').next().unwrap(), fragment)
}

#[test]
#[ignore = "needs the generated documentation"]
fn links_to_documentation_lead_to_its_pages_and_ids() {
    let mut pages = Pages::default();
    let all = addresses(ONLINE);
    assert!(!all.is_empty());
    let mut faults = Vec::new();
    for (path, target) in all {
        let (file, fragment) = split(&target);
        let file = if file.is_empty() || file.ends_with('/') {
            format!("{file}index.html")
        } else {
            file.to_owned()
        };
        if let Some(fault) = pages.fault(&generated().join(&file), fragment) {
            faults.push(format!("{path}: {target}: {fault}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
#[ignore = "needs the generated documentation"]
fn links_inside_documentation_lead_to_pages_and_ids() {
    let (mut pages, mut faults, mut checked) = (Pages::default(), BTreeSet::new(), 0);
    let all = files(&generated().join("unsticky"), "html");
    assert!(all.len() > 50, "run `cargo doc --all-features --no-deps` first");
    for page in all {
        let html = without_examples(&fs::read_to_string(&page).unwrap());
        for target in attributes(&html, "href") {
            let is_relative = !target.contains(':') && !target.starts_with("//");
            if target.is_empty() || !is_relative || target == OF_TRACING {
                continue;
            }
            let (file, fragment) = split(target);
            let to = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            if let Some(fault) = pages.fault(&plain(&to), fragment) {
                faults.insert(format!("{}: {target}: {fault}", page.display()));
            }
            checked += 1;
        }
    }
    assert!(checked > 1000);
    assert!(faults.is_empty(), "{}", faults.into_iter().collect::<Vec<_>>().join("\n"));
}

/// Returns the page without its code examples. HTML in the strings there is text.
fn without_examples(html: &str) -> String {
    let mut parts = html.split("rust-example-rendered");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once("</pre>").map_or("", |(_, rest)| rest))
}

#[test]
fn links_in_code_examples_are_text() {
    let html = r#"<a href=a><pre class="rust rust-example-rendered">href=b</pre><a href=c>"#;
    assert_eq!(attributes(&without_examples(html), "href").collect::<Vec<_>>(), ["a", "c"]);
}

#[test]
fn attributes_and_paths_are_read() {
    let html = "<a id=\"x\" href=\"../y.html#z\"><a href=#1 id=1>";
    assert_eq!(attributes(html, "href").collect::<Vec<_>>(), ["../y.html#z", "#1"]);
    assert_eq!(attributes(html, "id").collect::<Vec<_>>(), ["x", "1"]);
    assert_eq!(plain(Path::new("a/./b/../c")), Path::new("a/c"));
    assert_eq!(split("y.html?search#z"), ("y.html", "z"));
}
