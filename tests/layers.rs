//! Checks the architecture: each room, which is a file or folder in `src/`, is above the rooms that it
//! uses.
//!
//! [`ROOMS`] lists the files and folders of `src/` from top to bottom. A room may use only the rooms
//! below it, and the files of a folder must not depend on each other in a circle. The tests read every
//! `crate::`, `super::` and `self::` path in the sources, every path that starts with a child module,
//! and every path that starts with an imported module's name. This covers imports, code, macros and
//! unit tests. A method call contains no path, so the tests do not see it; a type may have methods in a
//! room above its own.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The rooms from top to bottom, and what each is for.
const ROOMS: &[(&str, &str)] = &[
    ("lib", "Exports the public items of the crate."),
    ("guide", "Includes the pages of `docs/` in the documentation."),
    (
        "internals",
        "Gives the command, the fuzz targets and the benchmarks access to private parts.",
    ),
    (
        "testing",
        "Contains the test tools for users: a conformance suite, a spy and a store with faults.",
    ),
    ("tower", "Contains the tower layer and axum's extractors, which only adapt `exchange`."),
    ("actix", "Contains the middleware and extractors for actix-web, which only adapt `exchange`."),
    ("guard", "Checks whether a request may use a group of routes."),
    ("exchange", "Handles one request and its response, without a framework."),
    ("sessions", "Configures the sessions of an application, and administers those of an account."),
    ("session", "Is the handle that a handler uses, with the session's state during a request."),
    ("commit", "Writes a request's changes to the store, and replays them after a conflict."),
    ("directory", "Reads and changes the record that lists an account's sessions."),
    ("load", "Reads a session's record from the store, decodes it, and reports a damaged one."),
    ("commands", "Runs store commands within a deadline, and settles in-doubt writes."),
    ("settings", "Holds the validated configuration that the rooms above read."),
    ("budget", "Limits the time that an operation may spend on the store."),
    ("key_lock", "Queues the commits of one record after a conflict."),
    ("event", "Emits the events and counts the metrics."),
    ("cookie", "Parses the `Cookie` header and writes the `Set-Cookie` header."),
    (
        "record",
        "Encodes a session's record and makes every decision about it, without a clock or I/O.",
    ),
    (
        "store",
        "Defines the contract of a store, and implements it for Redis, Memcached and memory.",
    ),
    ("completion", "Runs work to completion even if its caller stops waiting."),
    ("entropy", "Provides randomness."),
    ("clock", "Provides the time."),
    ("answer", "Converts an error to a response."),
    ("head", "Makes the decisions that depend only on a request's head, without I/O."),
    ("check", "Holds the findings of a store check as a report."),
    ("error", "Defines the error type and its kinds."),
    ("limits", "Defines the default limits of waiting and retrying."),
];

/// The tokens of each module. `""` is the root, and `store::redis` is `store/redis.rs` or
/// `store/redis/mod.rs`.
type Sources = BTreeMap<String, Vec<String>>;

/// A path in the sources: the module that contains it, the module to which it leads, and the path as
/// written.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Use {
    from: String,
    to: String,
    path: String,
}

fn sources() -> Sources {
    let mut sources = Sources::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut sources);
    sources
}

fn read(folder: &Path, module: &str, sources: &mut Sources) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let child = if module.is_empty() { name.to_owned() } else { format!("{module}::{name}") };
        if path.is_dir() {
            read(&path, &child, sources);
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let module = if matches!(name, "lib" | "mod") { module.to_owned() } else { child };
        sources.insert(module, tokens(&fs::read_to_string(&path).unwrap()));
    }
}

/// Returns every violation of the architecture in the sources.
fn violations(sources: &Sources, rooms: &[(&str, &str)]) -> Vec<String> {
    let uses = uses(sources);
    let mut violations = Vec::new();
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let place = |module: &str| rooms.iter().position(|(name, _)| *name == room(module));
    for module in sources.keys().filter(|module| place(module).is_none()) {
        violations.push(format!("{module}: is in no room"));
    }
    for (name, _) in rooms {
        if !sources.keys().any(|module| room(module) == *name) {
            violations.push(format!("{name}: is a room without a file"));
        }
    }
    violations.extend(hidden(sources));
    for Use { from, to, path } in &uses {
        if from == to {
            continue;
        }
        if to.is_empty() {
            violations.push(format!("{from}: {path} goes through the crate's root"));
        } else if room(from) == room(to) {
            edges.entry(from).or_default().insert(to);
        } else if place(from) >= place(to) {
            violations.push(format!("{from}: {path} is not below {}", room(from)));
        }
    }
    for module in edges.keys() {
        if let Some(circle) = circle(module, &edges) {
            violations.push(format!("{}: a circle", circle.join(" -> ")));
        }
    }
    violations
}

/// Returns the room of a module: its first file or folder under `src/`.
fn room(module: &str) -> &str {
    match module.split("::").next() {
        Some("") | None => "lib",
        Some(first) => first,
    }
}

/// Returns a path along the edges from a module back to itself, if there is one.
fn circle<'a>(
    start: &'a str,
    edges: &BTreeMap<&'a str, BTreeSet<&'a str>>,
) -> Option<Vec<&'a str>> {
    let mut seen = BTreeSet::new();
    let mut open = vec![vec![start]];
    while let Some(way) = open.pop() {
        for next in way.last().and_then(|last| edges.get(last)).into_iter().flatten() {
            let longer = [&way[..], &[*next]].concat();
            if *next == start {
                return Some(longer);
            }
            if seen.insert(*next) {
                open.push(longer);
            }
        }
    }
    None
}

/// Returns all paths in the sources that lead to a file of this crate.
fn uses(sources: &Sources) -> BTreeSet<Use> {
    let macros = exported_macros(sources);
    let mut uses = BTreeSet::new();
    for (file, tokens) in sources {
        let mut scope = Scope { file, sources, names: BTreeMap::new() };
        // Collects the imported names first, because a function may precede the import that it uses.
        for is_naming in [true, false] {
            for Found { here, path, name, is_macro } in scope.paths(tokens) {
                let target = match scope.names.get(&path[0]) {
                    Some(module) => {
                        segments(module).chain(path[1..].iter().map(|it| &**it)).collect()
                    }
                    None => absolute(&here, &path),
                };
                let to = match macros.get(target.join("::").as_str()) {
                    // Rust puts exported macros into the crate's root.
                    Some(home) if is_macro => home.to_string(),
                    _ => module_of(&target, sources),
                };
                if let Some(name) = name.filter(|_| is_naming && target.join("::") == to) {
                    scope.names.insert(name, to.clone());
                }
                uses.insert(Use { from: file.clone(), to, path: path.join("::") });
            }
        }
    }
    uses
}

/// A path in the code and the inline modules around it. `name` is the name under which an import brings
/// it in.
struct Found {
    here: Vec<String>,
    path: Vec<String>,
    name: Option<String>,
    is_macro: bool,
}

/// The segments with which a path in a file can start.
struct Scope<'a> {
    file: &'a str,
    sources: &'a Sources,
    /// The modules that have a name in this file: `use crate::record as r;` adds `r`.
    names: BTreeMap<String, String>,
}

impl Scope<'_> {
    /// Returns the paths in the file that start with `crate`, `super`, `self`, a child module or an
    /// imported module.
    fn paths(&self, tokens: &[String]) -> Vec<Found> {
        let mut found = Vec::new();
        // The inline modules around the current token, each with the brace depth outside it.
        let (mut inline, mut depth) = (Vec::<(String, usize)>::new(), 0_usize);
        let mut is_import = false;
        for (place, token) in tokens.iter().enumerate() {
            let after = tokens.get(place + 1).map_or("", String::as_str);
            match token.as_str() {
                "{" => depth += 1,
                "}" => {
                    depth = depth.saturating_sub(1);
                    inline.pop_if(|(_, outside)| *outside == depth);
                }
                "mod" if tokens.get(place + 2).is_some_and(|token| token == "{") => {
                    inline.push((after.to_owned(), depth));
                }
                "use" => is_import = true,
                ";" => is_import = false,
                first if self.is_ours(first) => {
                    let before = place.checked_sub(1).map_or("", |before| &*tokens[before]);
                    let is_path = after == "::" || (is_import && before == "use");
                    if is_path && before != "::" {
                        let within = inline.iter().map(|(name, _)| name.clone());
                        let here = segments(self.file).map(str::to_owned).chain(within).collect();
                        found.extend(leaves(tokens, place, is_import, here));
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// Returns whether a path that starts with this segment leads to a file of this crate.
    fn is_ours(&self, first: &str) -> bool {
        let is_child = || match self.file {
            "" => self.sources.contains_key(first),
            file => self.sources.contains_key(&format!("{file}::{first}")),
        };
        matches!(first, "crate" | "super" | "self") || self.names.contains_key(first) || is_child()
    }
}

/// Returns the path that starts at this position, or all paths if it is a group.
fn leaves(tokens: &[String], place: usize, is_import: bool, here: Vec<String>) -> Vec<Found> {
    let mut leaves = Vec::new();
    let mut next = place;
    tree(tokens, &mut next, &[], &mut leaves);
    let is_macro = tokens.get(next).is_some_and(|token| token == "!")
        && tokens.get(next + 1).is_some_and(|token| "([{".contains(token.as_str()));
    let found = |(path, alias): (Vec<String>, Option<String>)| Found {
        here: here.clone(),
        name: is_import.then(|| alias.or_else(|| path.last().cloned())).flatten(),
        path,
        is_macro,
    };
    leaves.into_iter().map(found).collect()
}

/// Returns the exported macros by name, each with its file.
fn exported_macros(sources: &Sources) -> BTreeMap<&str, &str> {
    let mut macros = BTreeMap::new();
    for (file, tokens) in sources {
        let definitions = tokens.windows(3).filter(|it| it[0] == "macro_rules" && it[1] == "!");
        macros.extend(definitions.map(|it| (it[2].as_str(), file.as_str())));
    }
    macros
}

fn segments(module: &str) -> impl Iterator<Item = &str> {
    module.split("::").filter(|segment| !segment.is_empty())
}

/// Reads the path or group of paths at `next`, and moves `next` past it. Returns each path with the
/// name that it gets.
fn tree(
    tokens: &[String],
    next: &mut usize,
    before: &[String],
    paths: &mut Vec<(Vec<String>, Option<String>)>,
) {
    let mut path = before.to_vec();
    loop {
        match tokens.get(*next).map(String::as_str) {
            Some("{") => {
                *next += 1;
                while tokens.get(*next).is_some_and(|token| token != "}") {
                    tree(tokens, next, &path, paths);
                    if tokens.get(*next).is_some_and(|token| token == ",") {
                        *next += 1;
                    }
                }
                *next += 1;
                return;
            }
            // `{self}` means the module itself.
            Some("self") if !path.is_empty() => {}
            Some(segment) => path.push(segment.to_owned()),
            None => break,
        }
        *next += 1;
        if tokens.get(*next).is_none_or(|token| token != "::") {
            break;
        }
        *next += 1;
        // A turbofish ends the path.
        if tokens.get(*next).is_some_and(|token| token == "<") {
            break;
        }
    }
    let mut alias = None;
    if tokens.get(*next).is_some_and(|token| token == "as") {
        alias = tokens.get(*next + 1).cloned();
        *next += 2;
    }
    paths.push((path, alias));
}

/// Returns the path with its start resolved, relative to the crate's root.
fn absolute<'a>(here: &'a [String], path: &'a [String]) -> Vec<&'a str> {
    let mut target: Vec<&str> = here.iter().map(String::as_str).collect();
    for segment in path {
        match segment.as_str() {
            "crate" => target.clear(),
            "self" => {}
            "super" => drop(target.pop()),
            segment => target.push(segment),
        }
    }
    target
}

/// Returns the file to which a path leads.
fn module_of(path: &[&str], sources: &Sources) -> String {
    let lengths = (0..=path.len()).rev();
    let mut modules = lengths.map(|length| path[..length].join("::"));
    modules.find(|module| sources.contains_key(module)).unwrap_or_default()
}

/// Returns the constructs that would hide a path from these tests.
fn hidden(sources: &Sources) -> Vec<String> {
    let mut hidden = Vec::new();
    for (file, tokens) in sources {
        let has = |sign: &[&str]| tokens.windows(sign.len()).any(|window| window == sign);
        for sign in [&["include", "!"][..], &["[", "path", "="], &["extern", "crate", "self"]] {
            if has(sign) {
                hidden.push(format!("{file}: {} hides where a path leads", sign.join(" ")));
            }
        }
        let glob = |window: &[String]| {
            window[1] == "::" && window[2] == "*" && window[0] != "super" && window[0] != "prelude"
        };
        let is_import = |window: &[String]| window[3] == ";";
        if tokens.windows(4).any(|window| glob(window) && is_import(window)) {
            hidden.push(format!("{file}: a glob import hides where a path leads"));
        }
        // In unit tests, `super::*` refers to the file itself.
        if has(&["use", "super", "::", "*"]) && !has(&["mod", "tests", "{"]) {
            hidden.push(format!("{file}: a glob import hides where a path leads"));
        }
        if tokens.iter().any(|token| token.starts_with("\"crate::")) {
            hidden.push(format!("{file}: a path in a text"));
        }
    }
    hidden
}

/// Splits a source file into identifiers, `::`, braces and other signs, and string literals with their
/// opening quote. Leaves out comments and other literals.
fn tokens(source: &str) -> Vec<String> {
    let characters: Vec<_> = source.chars().collect();
    let at = |place: usize| characters.get(place).copied().unwrap_or('\0');
    let is_name = |character: char| character.is_alphanumeric() || character == '_';
    let mut tokens = Vec::new();
    let mut place = 0;
    while place < characters.len() {
        let start = place;
        match at(place) {
            '/' if at(place + 1) == '/' => {
                while place < characters.len() && at(place) != '\n' {
                    place += 1;
                }
            }
            '/' if at(place + 1) == '*' => {
                let mut depth = 0;
                loop {
                    match (at(place), at(place + 1)) {
                        ('/', '*') => (depth, place) = (depth + 1, place + 2),
                        ('*', '/') => (depth, place) = (depth - 1, place + 2),
                        _ => place += 1,
                    }
                    if depth == 0 || place >= characters.len() {
                        break;
                    }
                }
            }
            'r' | 'b' | 'c' if raw_string(&characters[place..]).is_some() => {
                place += raw_string(&characters[place..]).unwrap();
            }
            '"' => {
                place += 1;
                while place < characters.len() && at(place) != '"' {
                    place += if at(place) == '\\' { 2 } else { 1 };
                }
                tokens.push(characters[start..place.min(characters.len())].iter().collect());
                place += 1;
            }
            '\'' if at(place + 1) == '\\' => {
                place += 3;
                while place < characters.len() && at(place) != '\'' {
                    place += 1;
                }
                place += 1;
            }
            '\'' if at(place + 2) == '\'' => place += 3,
            ':' if at(place + 1) == ':' => {
                place += 2;
                tokens.push("::".to_owned());
            }
            character if is_name(character) => {
                while is_name(at(place)) {
                    place += 1;
                }
                tokens.push(characters[start..place].iter().collect());
            }
            character => {
                place += 1;
                if !character.is_whitespace() {
                    tokens.push(character.to_string());
                }
            }
        }
    }
    tokens
}

/// Returns the length of the raw string at the start of the text.
fn raw_string(text: &[char]) -> Option<usize> {
    let prefix = text.iter().take_while(|sign| "rbc".contains(**sign)).count();
    if text[..prefix].last() != Some(&'r') || prefix > 2 {
        return None;
    }
    let hashes = text[prefix..].iter().take_while(|sign| **sign == '#').count();
    if text.get(prefix + hashes) != Some(&'"') {
        return None;
    }
    let start = prefix + hashes + 1;
    let end = [&['"'][..], &vec!['#'; hashes]].concat();
    let length = text[start..].windows(end.len()).position(|window| window == end);
    Some(length.map_or(text.len(), |length| start + length + end.len()))
}

#[test]
fn every_room_uses_only_rooms_below_it() {
    let sources = sources();
    assert!(sources.len() > 50, "{} files were found", sources.len());
    let violations = violations(&sources, ROOMS);
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

/// Checks a small crate with some changes. In it, `upper` may use `lower`, a folder with the files
/// `one` and `two`.
fn violations_of(changes: &[(&str, &str)]) -> Vec<String> {
    let rooms = [("lib", ""), ("upper", ""), ("lower", "")];
    let mut texts = BTreeMap::from([
        ("", "pub use crate::upper::Upper; mod upper; mod lower;"),
        ("upper", "use crate::lower::one::One; pub struct Upper;"),
        ("lower", "pub mod one; pub mod two;"),
        ("lower::one", "use super::two::Two; pub struct One;"),
        ("lower::two", "pub struct Two;"),
    ]);
    texts.extend(changes.iter().copied());
    let sources = texts.into_iter().map(|(module, text)| (module.to_owned(), tokens(text)));
    violations(&sources.collect(), &rooms)
}

#[test]
fn allowed_paths_are_no_violations() {
    assert_eq!(violations_of(&[]), [""; 0]);
    for allowed in [
        "/// See [`Upper`](crate::upper::Upper).\nstruct One; // crate::upper::Upper",
        "const TEXT: &str = \"see crate::upper::Upper\"; const RAW: &str = r#\"see crate::upper\"#;",
        "const QUOTE: char = '\"'; const OTHER: char = '\\''; use super::two::Two;",
        "mod tests { use super::*; use super::super::two::Two; fn f(self) { self.g() } }",
        "macro_rules! exported { () => {}; } fn f() { crate::exported! { crate::lower::two::Two } }",
        "fn f<'a>(text: &'a str) -> &'a str { crate::lower::two::f::<crate::lower::two::Two>(text) }",
    ] {
        assert_eq!(violations_of(&[("lower::one", allowed)]), [""; 0], "{allowed}");
    }
}

#[test]
fn upward_paths_are_violations() {
    for upward in [
        "use crate::upper::Upper;",
        "use crate::{lower::two::{self, Two as Other}, upper::Upper};",
        "pub(crate) use super::super::upper::Upper;",
        "fn f() { let _ = crate::upper::Upper; }",
        "fn f() -> crate::lower::two::Pair<crate::upper::Upper> { loop {} }",
        "macro_rules! m { () => { $crate::upper::Upper }; }",
        "#[cfg(test)] mod tests { use super::*; use crate::upper::Upper; }",
        "mod inner { use super::super::super::upper::Upper; }",
        "impl From<crate::upper::Upper> for One {}",
        "use crate::upper as above; fn f() { above::Upper::new() }",
        "fn f(n: usize) -> bool { crate::upper::MAX != n }",
        "/* /* nested */ */ const RAW: &str = r##\"a \" b\"##; use crate::upper::Upper;",
        "const BYTES: &[u8] = br\"\\\"; use crate::upper::Upper;",
    ] {
        let violations = violations_of(&[("lower::one", upward)]);
        let is_upward = |violation: &String| violation.contains("is not below lower");
        assert!(!violations.is_empty(), "{upward}");
        assert!(violations.iter().all(is_upward), "{upward}: {violations:?}");
    }
}

#[test]
fn paths_through_the_root_are_violations() {
    for through in ["use crate::Upper;", "use crate::*;", "fn f() { crate::Upper::new() }"] {
        for module in ["upper", "lower::two"] {
            let violations = violations_of(&[(module, through)]);
            let is_through = |violation: &String| violation.contains("through the crate's root");
            assert!(violations.iter().any(is_through), "{through}: {violations:?}");
        }
    }
    let through = [("lower::two", "use super::super::Upper;")];
    assert!(violations_of(&through)[0].contains("through the crate's root"));
}

#[test]
fn paths_that_cannot_be_followed_are_violations() {
    for hiding in [
        "use crate::lower::*;",
        "use super::*;",
        "extern crate self as me;",
        "include!(\"../upper.rs\");",
        "#[path = \"../upper.rs\"] mod copy;",
        "#[serde(with = \"crate::upper\")] struct S;",
    ] {
        assert!(!violations_of(&[("lower::two", hiding)]).is_empty(), "{hiding}");
    }
    let renamed = "use crate as root; fn f() { root::upper::Upper::new() }";
    let violations = violations_of(&[("lower::two", renamed)]);
    assert!(violations.iter().any(|it| it.contains("not below lower")), "{violations:?}");
    let exported = [
        ("upper", "#[macro_export] macro_rules! make { () => { $crate::upper::Upper } }"),
        ("lower::two", "fn f() { crate::make!() }"),
    ];
    assert!(violations_of(&exported)[0].contains("not below lower"));
}

#[test]
fn circles_inside_a_folder_are_violations() {
    let circle = [("lower::two", "use crate::lower::one::One;")];
    assert!(violations_of(&circle)[0].contains("a circle"));
    let front = [
        ("lower", "pub use self::one::One; pub mod one; pub mod two;"),
        ("lower::two", "use super::One;"),
    ];
    assert!(violations_of(&front)[0].contains("a circle"));
    let relative = [("lower", "mod one; fn f() { one::f() }"), ("lower::one", "use super::f;")];
    assert!(violations_of(&relative)[0].contains("a circle"));
    for import in ["use crate::lower;", "use crate::lower::{self};", "use crate::lower as lower;"] {
        let module = [("lower::two", format!("{import} fn f() {{ lower::one::One }}"))];
        let module = module.each_ref().map(|(name, text)| (*name, text.as_str()));
        assert!(violations_of(&module)[0].contains("a circle"), "{import}");
    }
}

#[test]
fn files_without_a_room_and_rooms_without_a_file_are_violations() {
    assert_eq!(violations_of(&[("attic", "")]), ["attic: is in no room"]);
    let sources = Sources::from([(String::new(), Vec::new())]);
    let rooms = [("lib", ""), ("cellar", "")];
    assert_eq!(violations(&sources, &rooms), ["cellar: is a room without a file"]);
}
