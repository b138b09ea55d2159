//! The `unsticky` command in a real terminal: width, progress and keyboard input.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::fmt::Write as _;

use support::servers::RedisServer;
use support::terminal::Terminal;
use support::visit::visit;
use unsticky::{Cookie, Session, Sessions};

const UNSTICKY: &str = env!("CARGO_BIN_EXE_unsticky");
const COMMANDS: [&str; 7] = ["", "check", "sessions", "show", "revoke", "count", "bench"];

#[test]
fn help_fits_width_of_terminal() {
    for columns in [60, 80, 132] {
        for command in COMMANDS {
            let mut terminal =
                Terminal::start(columns, &format!("{UNSTICKY} {command} --help"), &[]);
            assert_eq!(terminal.end(), Some(0), "{:?}", terminal.shown);
            assert!(terminal.shown.contains("Usage:"), "{:?}", terminal.shown);
            assert!(!terminal.shown.contains('\u{1b}'), "{:?}", terminal.shown);
            for line in terminal.lines() {
                assert!(line.chars().count() <= usize::from(columns), "{columns} columns: {line}");
            }
        }
    }
}

/// Creates this many keys in the format of sessions. Counting does not depend on their content.
fn fill(server: &RedisServer, keys: u32) {
    let mut script = String::from("for i = 1, ");
    // Digits are valid characters in base64url.
    let _ = write!(
        script,
        "{keys} do redis.call('SET', 'shop:0:s:' .. string.format('%018d', i) .. 'AAAA', 'x', 'PX', 600000) end"
    );
    server.cli(&["EVAL", &script, "0"]);
}

#[test]
fn progress_is_shown_in_terminal_and_erased_at_the_end() {
    let server = RedisServer::start();
    fill(&server, 4_000);
    let count = format!("{UNSTICKY} count --namespace shop --rate 2000");
    let mut terminal = Terminal::start(80, &count, &[("SESSION_URL", &server.url())]);
    assert_eq!(terminal.end(), Some(0), "{:?}", terminal.shown);
    let returns = terminal.shown.replace("\r\n", "\n").matches('\r').count();
    assert!(returns >= 3, "{returns}: {:?}", terminal.shown);
    let lines = terminal.lines();
    assert!(lines.iter().any(|line| line.contains("4000")), "{lines:?}");
    // The final output is the same as without a terminal: no trace of the progress remains.
    let piped = format!("sh -c '{count} | cat'");
    let mut without = Terminal::start(80, &piped, &[("SESSION_URL", &server.url())]);
    assert_eq!(without.end(), Some(0));
    let timeless = |line: &String| !line.contains(" s");
    let [lines, without] = [lines, without.lines()].map(|lines| {
        lines.into_iter().filter(timeless).filter(|line| !line.is_empty()).collect::<Vec<_>>()
    });
    assert_eq!(lines, without);
}

#[test]
fn interrupt_key_ends_long_count() {
    let server = RedisServer::start();
    fill(&server, 4_000);
    let count = format!("{UNSTICKY} count --namespace shop --rate 10");
    let mut terminal = Terminal::start(80, &count, &[("SESSION_URL", &server.url())]);
    terminal.wait_for("\r");
    terminal.type_in("\u{3}");
    assert_eq!(terminal.end(), Some(130), "{:?}", terminal.shown);
    assert!(terminal.lines().iter().any(|line| line.ends_with("unsticky: interrupted")));
}

#[tokio::test(flavor = "multi_thread")]
async fn principal_is_typed_in() {
    let server = RedisServer::start();
    let builder = Sessions::builder(unsticky::connect(&server.url()).unwrap());
    let sessions = builder.cookie(Cookie::new("shop")).build().unwrap();
    visit(&sessions, "", async |session: Session| session.sign_in("alice")).await;
    let list = format!("{UNSTICKY} sessions --cookie shop -");
    let mut terminal = Terminal::start(120, &list, &[("SESSION_URL", &server.url())]);
    terminal.type_in("alice\n\u{4}");
    assert_eq!(terminal.end(), Some(0), "{:?}", terminal.shown);
    assert!(terminal.shown.contains("SIGNED IN"), "{:?}", terminal.shown);
    // Without a hyphen, the command does not read from the keyboard.
    let list = format!("{UNSTICKY} sessions --cookie shop");
    let mut terminal = Terminal::start(120, &list, &[("SESSION_URL", &server.url())]);
    assert_eq!(terminal.end(), Some(2), "{:?}", terminal.shown);
}
