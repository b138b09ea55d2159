//! The table of findings in `docs/operating.md` lists exactly what the sources report.

#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The levels in ascending order.
const LEVELS: [&str; 4] = ["fine", "note", "warning", "error"];

/// The codes of findings, each with its levels as indices of [`LEVELS`].
type Codes = BTreeMap<String, BTreeSet<usize>>;

/// The store, or the stores, that report a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reporter {
    EveryStore,
    Redis,
    Memcached,
}

impl Reporter {
    fn of_source(path: &str) -> Self {
        if path.contains("/redis/") {
            Self::Redis
        } else if path.contains("/memcached/") {
            Self::Memcached
        } else {
            Self::EveryStore
        }
    }

    fn of_section(title: &str) -> Option<Self> {
        match title {
            "Every store" => Some(Self::EveryStore),
            "Redis and Valkey" | "Redis Cluster" | "Redis Sentinel" => Some(Self::Redis),
            "Memcached" => Some(Self::Memcached),
            _ => None,
        }
    }
}

#[test]
fn every_finding_is_documented_with_its_levels() {
    let (documented, mut reported) = (documented(), reported());
    let common = documented[&Reporter::EveryStore].clone();
    for (reporter, codes) in &mut reported {
        if *reporter != Reporter::EveryStore {
            // Findings in the table for every store need not be repeated in the other tables.
            codes.retain(|code, levels| {
                let known = common.get(code);
                let is_repeated = documented[reporter].contains_key(code);
                is_repeated || !known.is_some_and(|known| levels.is_subset(known))
            });
        }
    }
    assert!(reported.values().map(BTreeMap::len).sum::<usize>() > 20);
    for (reporter, codes) in &documented {
        assert_eq!(codes, &reported[reporter], "documented and reported, {reporter:?}");
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn none() -> BTreeMap<Reporter, Codes> {
    let all = [Reporter::EveryStore, Reporter::Redis, Reporter::Memcached];
    all.into_iter().map(|reporter| (reporter, Codes::new())).collect()
}

/// Returns the findings that the tables list.
fn documented() -> BTreeMap<Reporter, Codes> {
    let text = fs::read_to_string(root().join("docs/operating.md")).unwrap();
    let (mut all, mut reporter) = (none(), None);
    for line in text.lines() {
        if line.starts_with("## ") {
            reporter = None;
        } else if let Some(title) = line.strip_prefix("### ") {
            reporter = Reporter::of_section(title);
        } else if let (Some(reporter), Some(row)) = (reporter, line.strip_prefix("| `")) {
            let cells: Vec<_> = row.trim_end_matches('|').split(" | ").map(str::trim).collect();
            assert_eq!(cells.len(), 4, "{line}");
            let code = cells[0].trim_end_matches('`').to_owned();
            let levels: Vec<_> = cells[1].split(", ").map(level).collect();
            assert!(levels.is_sorted(), "in ascending order: {line}");
            all.get_mut(&reporter).unwrap().entry(code).or_default().extend(levels);
        }
    }
    all
}

fn level(name: &str) -> usize {
    let level = LEVELS.iter().position(|level| *level == name);
    level.unwrap_or_else(|| panic!("there is no level {name}"))
}

/// Returns the findings that the sources report.
fn reported() -> BTreeMap<Reporter, Codes> {
    let mut all = none();
    each_source(&root().join("src"), &mut |path, text| {
        let codes = all.get_mut(&Reporter::of_source(path)).unwrap();
        for (code, level) in findings(path, text) {
            codes.entry(code).or_default().insert(level);
        }
    });
    all
}

fn each_source(folder: &Path, read: &mut impl FnMut(&str, &str)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            each_source(&path, read);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]\nmod ").next().unwrap();
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            read(path.to_str().unwrap(), &code.collect::<Vec<_>>().join("\n"));
        }
    }
}

/// Returns the code and level of each finding that this text creates.
fn findings(path: &str, text: &str) -> Vec<(String, usize)> {
    let mut all = Vec::new();
    for (at, made) in text.match_indices("Finding::") {
        let rest = &text[at + made.len()..];
        let name = word(rest);
        let Some(level) = LEVELS.iter().position(|level| *level == name) else { continue };
        let argument = rest[name.len()..].strip_prefix('(').unwrap_or_else(|| {
            panic!("{path}: Finding::{name} must be called directly, so that this test can find it")
        });
        let argument = argument.trim_start();
        let code = match argument.strip_prefix('"') {
            Some(literal) => literal.split('"').next().unwrap(),
            None => constant(path, text, at, word(argument)),
        };
        all.push((code.to_owned(), level));
    }
    all
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

/// Returns the value of a constant, from its last definition before this position or else from its first
/// definition after it.
fn constant<'a>(path: &str, text: &'a str, at: usize, name: &str) -> &'a str {
    let definition = format!("const {name}: &str = \"");
    let before = text[..at].rfind(&definition);
    let found = before.or_else(|| text.find(&definition));
    let Some(found) = found.filter(|_| !name.is_empty()) else {
        panic!(
            "{path}: the code {name} must be a literal or a constant in this file, so that this test can find it"
        )
    };
    text[found + definition.len()..].split('"').next().unwrap()
}
