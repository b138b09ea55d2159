//! Parses the Markdown files in the repository, as far as the checks need.

use std::fs;
use std::path::{Path, PathBuf};

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A Markdown file.
pub(crate) struct Document {
    /// Relative to the root of the repository, with slashes.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// A part of a document between blank lines.
#[derive(Debug, PartialEq)]
pub(crate) enum Block<'a> {
    /// An HTML comment, without its delimiters.
    Comment(&'a str),
    Code {
        line: usize,
        /// The text after the opening backticks.
        info: &'a str,
        text: String,
    },
    Heading(&'a str),
    /// A paragraph, a list or a table.
    Text {
        line: usize,
        text: String,
    },
}

/// A link in a document.
#[derive(Debug, PartialEq)]
pub(crate) enum Link {
    /// `[text](target)`
    Inline(String),
    /// `[text][label]`
    Reference(String),
    /// `[label]: target`
    Definition(String, String),
}

pub(crate) fn documents() -> Vec<Document> {
    let mut all: Vec<_> = files(root(), "md").iter().map(|path| document(path)).collect();
    all.sort_by(|one, other| one.path.cmp(&other.path));
    assert!(all.len() > 30, "the Markdown files of the repository");
    all
}

pub(crate) fn document(path: &Path) -> Document {
    let text = fs::read_to_string(path).unwrap();
    let path = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    Document { path, text }
}

/// Returns all files with this extension, except those that builds have created.
pub(crate) fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if name != "target" && name != "corpus" && !name.starts_with('.') {
                all.extend(files(&path, extension));
            }
        } else if path.extension().is_some_and(|found| found == extension) {
            all.push(path);
        }
    }
    all
}

impl Document {
    pub(crate) fn blocks(&self) -> Vec<Block<'_>> {
        blocks(&self.text)
    }

    /// Returns the links outside code.
    pub(crate) fn links(&self) -> Vec<Link> {
        let mut all = Vec::new();
        for block in self.blocks() {
            match block {
                Block::Text { text, .. } => all.extend(links(&text)),
                Block::Heading(text) => all.extend(links(text)),
                Block::Comment(_) | Block::Code { .. } => {}
            }
        }
        all
    }

    /// Returns the ids of the headings, in the form that repository hosts give them.
    pub(crate) fn anchors(&self) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for block in self.blocks() {
            if let Block::Heading(text) = block {
                let anchor = anchor(text);
                let earlier = all.iter().filter(|one| **one == anchor).count();
                all.push(if earlier == 0 { anchor } else { format!("{anchor}-{earlier}") });
            }
        }
        all
    }
}

fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut all = Vec::new();
    let mut lines = text.lines().enumerate();
    let (mut paragraph, mut begun) = (String::new(), 0);
    let end = |paragraph: &mut String, begun: usize, all: &mut Vec<Block<'_>>| {
        if !paragraph.is_empty() {
            all.push(Block::Text { line: begun, text: std::mem::take(paragraph) });
        }
    };
    while let Some((number, line)) = lines.next() {
        let trimmed = line.trim_start();
        if let Some(info) = trimmed.strip_prefix("```") {
            end(&mut paragraph, begun, &mut all);
            let ticks = trimmed.len() - trimmed.trim_start_matches('`').len();
            let inside = lines.by_ref().map(|(_, line)| line);
            let inside = inside.take_while(|line| line.trim() != "`".repeat(ticks));
            let text = inside.fold(String::new(), |text, line| text + line + "\n");
            let info = info.trim_start_matches('`').trim();
            all.push(Block::Code { line: number + 1, info, text });
        } else if line.starts_with("<!--") {
            end(&mut paragraph, begun, &mut all);
            let start = line.as_ptr() as usize - text.as_ptr() as usize;
            let length = text[start..].find("-->").expect("an HTML comment ends");
            let comment = &text[start + 4..start + length];
            for _ in comment.matches('\n') {
                lines.next();
            }
            all.push(Block::Comment(comment.trim()));
        } else if let Some(heading) = heading(line) {
            end(&mut paragraph, begun, &mut all);
            all.push(Block::Heading(heading));
        } else if trimmed.is_empty() {
            end(&mut paragraph, begun, &mut all);
        } else {
            if paragraph.is_empty() {
                begun = number + 1;
            }
            paragraph += line;
            paragraph.push('\n');
        }
    }
    end(&mut paragraph, begun, &mut all);
    all
}

fn heading(line: &str) -> Option<&str> {
    let text = line.trim_start_matches('#');
    (text.len() < line.len()).then(|| text.strip_prefix(' ')).flatten()
}

/// Returns the text with spaces in place of its code spans.
pub(crate) fn without_code(text: &str) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('`') {
        let ticks = rest[at..].len() - rest[at..].trim_start_matches('`').len();
        let fence = "`".repeat(ticks);
        let inside = &rest[at + ticks..];
        result += &rest[..at];
        let Some(length) = inside.find(&fence) else { return result + &rest[at..] };
        result.extend(inside[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &inside[length + ticks..];
    }
    result + rest
}

/// Returns the links outside code spans. For a link inside a link, as in a badge, both targets are
/// returned.
fn links(text: &str) -> Vec<Link> {
    let text = without_code(text);
    let mut all = Vec::new();
    for (at, _) in text.match_indices("](") {
        if let Some(end) = text[at..].find(')') {
            let target = text[at + 2..at + end].split_whitespace().next().unwrap_or_default();
            all.push(Link::Inline(target.trim_matches(['<', '>']).to_owned()));
        }
    }
    for (at, _) in text.match_indices("][") {
        if let Some(end) = text[at + 2..].find(']') {
            let label = text[at + 2..at + 2 + end].split_whitespace().collect::<Vec<_>>();
            // A label that is code is empty here: rustdoc resolves such links.
            if !label.is_empty() {
                all.push(Link::Reference(label.join(" ")));
            }
        }
    }
    for line in text.lines() {
        let parts = line.strip_prefix('[').and_then(|it| it.split_once("]: "));
        // A line of prose may also begin with a link and a colon.
        if let Some((label, target)) = parts.filter(|(label, _)| !label.contains(']')) {
            all.push(Link::Definition(label.to_owned(), target.trim().to_owned()));
        }
    }
    all
}

#[test]
fn document_is_taken_apart() {
    let text = "# A `b` c\none\ntwo\n<!-- figures: x -->\nthree\n\n```rust,no_run\nlet x;\n```\n";
    let parts = [
        Block::Heading("A `b` c"),
        Block::Text { line: 2, text: "one\ntwo\n".to_owned() },
        Block::Comment("figures: x"),
        Block::Text { line: 5, text: "three\n".to_owned() },
        Block::Code { line: 7, info: "rust,no_run", text: "let x;\n".to_owned() },
    ];
    assert_eq!(blocks(text), parts);
    assert_eq!(anchor("A `b`, c-d"), "a-b-c-d");
    let comment = "<!--\nfigures\n-->\nafter\n";
    let after = Block::Text { line: 4, text: "after\n".to_owned() };
    assert_eq!(blocks(comment), [Block::Comment("figures"), after]);
}

#[test]
fn links_are_found_outside_of_code() {
    let text = "[a](b.md#c) [`d`][e\nf] `[g](h)` [n][`o`]\n[k](l.md): m\n[i]: j.md\n";
    let found = [
        Link::Inline("b.md#c".to_owned()),
        Link::Inline("l.md".to_owned()),
        Link::Reference("e f".to_owned()),
        Link::Definition("i".to_owned(), "j.md".to_owned()),
    ];
    assert_eq!(links(text), found);
}
