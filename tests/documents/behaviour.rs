//! The behaviour of other libraries, as the comparison page describes it and as it was measured.

use std::fs;

use crate::markdown::root;

/// A section of the measured behaviour, a line that it contains, and what the page says about it: the row, the
/// library's column, and a part of the cell.
const CLAIMS: &[(&str, &str, &str, &str, &str)] = &[
    (
        "unsticky",
        "at once: 200 and 200; the count is 2",
        "two concurrent",
        "unsticky",
        "both are counted",
    ),
    ("tower-sessions 0.14", "the count is 1", "two concurrent", "tower-sessions", "one is lost"),
    ("tower-sessions-ext", "the count is 1", "two concurrent", "tower-sessions", "one is lost"),
    ("actix-session", "the count is 1", "two concurrent", "actix-session", "one is lost"),
    ("axum_session", "the count is 1", "two concurrent", "axum_session", "one is lost"),
    ("ruts", "the count is 1", "two concurrent", "ruts", "one is lost"),
    (
        "unsticky",
        "sign-out during a slow write: 200; the write is answered with 409",
        "a sign-out during",
        "unsticky",
        "409",
    ),
    (
        "tower-sessions 0.14",
        "sign-out during a slow write: 200; the write is answered with 500 \"\"",
        "a sign-out during",
        "tower-sessions",
        "an empty 500",
    ),
    (
        "tower-sessions 0.15, memory store",
        "with the old cookie: the user is alice, the note is x",
        "a sign-out during",
        "tower-sessions",
        "the session comes back",
    ),
    (
        "actix-session",
        "with the cookie that the slow response set: the user is alice",
        "a sign-out during",
        "actix-session",
        "sets a cookie with which the user is signed in",
    ),
    (
        "axum_session",
        "with the old cookie: the user is -, the note is -",
        "a sign-out during",
        "axum_session",
        "the write is lost",
    ),
    (
        "ruts",
        "with the old cookie: the user is -, the note is x",
        "a sign-out during",
        "ruts",
        "stored under the old id",
    ),
    (
        "unsticky",
        "with the cookie that the rotation set: the user is alice, the note is x",
        "a rotation during",
        "unsticky",
        "the write is kept",
    ),
    (
        "axum_session",
        "the slow response sets the old cookie again",
        "a rotation during",
        "axum_session",
        "sets the old cookie again",
    ),
    (
        "axum_session, memory off",
        "with the cookie that the rotation set: the user is -",
        "a rotation during",
        "axum_session",
        "neither id is signed in",
    ),
    (
        "unsticky",
        "sets a new one; with the unknown id: the user is -, the note is -",
        "an unknown id",
        "unsticky",
        "replaced by a new one",
    ),
    (
        "axum_session",
        "with the unknown id: the user is mallory",
        "an unknown id",
        "axum_session",
        "adopted",
    ),
    ("ruts", "with the unknown id: the user is mallory", "an unknown id", "ruts", "adopted"),
    (
        "axum_session",
        "in the second the user is alice",
        "a sign-out in one process",
        "axum_session",
        "still signed in",
    ),
    (
        "axum_session, memory off",
        "in the second the user is -",
        "a sign-out in one process",
        "axum_session",
        "with its memory turned off, the user is signed out",
    ),
];

/// How the libraries answer after Redis was killed.
const SERVER_DOWN: &[(&str, &str, &str)] = &[
    ("unsticky: answered with 503", "unsticky", "a 503 at once"),
    ("tower-sessions 0.14: no answer within 8 s", "tower-sessions", "no answer within 8 seconds"),
    ("tower-sessions-ext: no answer within 8 s", "tower-sessions", "no answer within 8 seconds"),
    (
        "actix-session: no answer within 8 s; a route that does not use the session: no answer",
        "actix-session",
        "also on routes that do not use the session",
    ),
    ("axum_session: answered with 200", "axum_session", "is served"),
    ("axum_session, memory off: answered with 500", "axum_session", "500"),
    ("ruts: no answer within 8 s", "ruts", "no answer within 8 seconds"),
];

/// Returns the cell of the first row that begins with this text, in the first column whose header begins with the
/// library's name.
fn cell<'a>(page: &'a str, row: &str, library: &str) -> &'a str {
    let cells =
        |line: &'a str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>();
    let table = page.split("## Behaviour").nth(1).expect("the section on behaviour");
    let mut rows = table.lines().filter(|line| line.starts_with('|')).map(cells);
    let header = rows.next().unwrap();
    let column = header.iter().position(|name| name.starts_with(library)).expect(library);
    let found = rows.find(|cells| cells[0].starts_with(row));
    found.unwrap_or_else(|| panic!("no row {row}"))[column]
}

#[test]
fn comparison_says_what_was_measured() {
    let page = fs::read_to_string(root().join("docs/comparison.md")).unwrap();
    let measured = fs::read_to_string(root().join("benches/results/behaviour.txt")).unwrap();
    let section = |name: &str| {
        let start = measured.split(&format!("== {name}\n")).nth(1).expect(name);
        start.split("\n== ").next().unwrap()
    };
    for (library, line, row, column, said) in CLAIMS {
        assert!(section(library).contains(line), "{library} is not measured to: {line}");
        let cell = cell(&page, row, column);
        assert!(cell.contains(said), "{row}, {column}: {cell:?} does not say {said:?}");
    }
    let down = section("the server is killed, and a request reads its session");
    for (line, column, said) in SERVER_DOWN {
        assert!(down.contains(line), "not measured: {line}");
        let cell = cell(&page, "a request reads its session", column);
        assert!(cell.contains(said), "{column}: {cell:?} does not say {said:?}");
    }
}
