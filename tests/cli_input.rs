//! Invalid input for every argument of the `unsticky` command. The command must print one plain line that
//! does not contain the input, print nothing on standard output, and exit with status 2.
//!
//! [`BAD`] has a row for each argument that `--help` lists. An argument without a row makes a test fail.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use support::command::Unsticky;

const ID: &str = "AAECAwQFBgcICQoLDA0ODw";

/// No server listens on this port, so a command that tries to use the store exits with status 3.
const URL: &str = "redis://127.0.0.1:1/";

/// A part of most invalid inputs. It must not appear in the output.
const MARK: &str = "SWORDFISH";

/// A long value. Not even part of it may appear in the output.
const LONG: &str = "SWORDFISHSWORDFISHSWORDFISHSWORDFISHSWORDFISHSWORDFISHSWORDFISHSWORDFISHSWORDFISH\
    SWORDFISHSWORDFISHSWORDFISHSWORDFISHSWORDFISHSWORDFISHSWORDFISHSWORDFISHSWORDFISHSWORDFISH\
    SWORDFISHSWORDFISHSWORDFISHSWORDFISHSWORDFISHSWORDFISHSWORDFISHSWORDFISHSWORDFISHSWORDFISH";

/// The subcommands and their required arguments.
const COMMANDS: &[(&str, &[&str])] = &[
    ("check", &[]),
    ("sessions", &["alice"]),
    ("show", &[ID]),
    ("revoke", &[ID]),
    ("count", &[]),
    ("bench", &[]),
    ("completions", &["bash"]),
    ("man", &[]),
];

/// Invalid values for each argument. A flag has none, because it takes no value.
const BAD: &[(&str, &[&str])] = &[
    ("--json", &[]),
    ("--help", &[]),
    ("--version", &[]),
    (
        "--url",
        &[
            "",
            MARK,
            "http://SWORDFISH/",
            "redis://",
            "redis://:SWORDFISH@",
            "redis://:SWORDFISH@127.0.0.1:99999/",
            "redis://:SWORDFISH@127.0.0.1/SWORDFISH",
            "redis://a\nb:SWORDFISH@127.0.0.1:1/\u{1b}[31m",
            "memcached://SWORDFISH:SWORDFISH",
            LONG,
        ],
    ),
    ("--cookie", &["", "SWORD FISH", "SWORDFISH;", "SWORD\nFISH", "SWORDFISH\u{1b}[31m", "é"]),
    ("--namespace", &["", "SWORD FISH", "SWORD\nFISH", "SWORDFISH\u{1b}[31m", "é", LONG]),
    ("--epoch", &["", "-1", MARK, "1.5", "4294967296", "99999999999999999999", "1\n", LONG]),
    ("--strict", &[]),
    (
        "--absolute-timeout",
        &["", "1", "-1s", MARK, "1.5h", "24 h", "99999999999999999999s", "1h\n", "1\u{1b}h", LONG],
    ),
    (
        "--timeout",
        &["", "1", "1w", MARK, "9ms", "61s", "0s", "1s\n", "18446744073709551615d", LONG],
    ),
    ("--actor", &["", "SWORD\nFISH", "SWORDFISH\u{1b}[31m", "SWORDFISH\u{202e}", LONG]),
    ("--audit", &["", MARK, "DIGEST", "digest\n", LONG]),
    ("--values", &[]),
    ("--rate", &["", "0", "-1", MARK, "1.5", "1 000", "99999999999999999999", "1\n", LONG]),
    ("--allow-unseen-keys", &[]),
    ("--allow-scarce-memory", &[]),
    ("--ascii", &[]),
    ("--operations", &["", MARK, "read,SWORDFISH", "read,", "READ", "read write", LONG]),
    ("--callers", &["", "0", "-1", MARK, "1,", "1,0", "501", "1;2", "1,2,3,4,5,6", LONG]),
    ("--payload", &["", "0", "-1", MARK, "1,", "990001", "99999999999999999999", "1k", LONG]),
    ("--seconds", &["", "0", "-1", MARK, "61", "1s", "0.5", LONG]),
    // Any other text is a valid principal.
    ("--all", &[""]),
    ("PRINCIPAL", &[""]),
    ("ID", &["", MARK, "AAECAwQFBgcICQoLDA0ODx", "AAECAwQFBgcICQoLDA0ODw=", "AAECAw\n", LONG]),
    ("COMMAND", &["", MARK, "CHECK", "help", "check\n", LONG]),
    ("SHELL", &["", MARK, "BASH", "bash\n", LONG]),
];

/// Asserts that these arguments are refused as invalid input, and that the output contains none of them.
fn is_refused(arguments: &[OsString], input: &[u8]) {
    let ran = Unsticky::new(arguments).env("SESSION_URL", URL).input(input).run();
    let shown = format!("{arguments:?} {ran:?}");
    assert_eq!(ran.status, Some(2), "{shown}");
    assert_eq!(ran.stdout, "", "{shown}");
    let line = ran.stderr.strip_suffix('\n').unwrap_or_else(|| panic!("{shown}"));
    assert!(line.starts_with("unsticky: ") && line.len() > 20 && line.len() < 300, "{shown}");
    assert!(!line.chars().any(char::is_control), "{shown}");
    assert!(
        !line.contains(MARK) && !line.contains("FISH") && !line.contains('\u{202e}'),
        "{shown}"
    );
    let repeated = arguments.iter().filter_map(|argument| argument.to_str());
    let mut values = repeated.filter(|text| text.len() > 3 && text.contains("99999"));
    assert!(!values.any(|value| line.contains(value)), "{shown}");
}

fn refused<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) {
    let arguments: Vec<_> = arguments.into_iter().map(|text| text.as_ref().to_owned()).collect();
    is_refused(&arguments, b"");
}

/// The arguments of a command, as listed by `--help`.
struct Help {
    /// Each option, for example `--url`, and whether it takes a value.
    options: Vec<(String, bool)>,
    /// The positional arguments, for example `ID`.
    positions: Vec<String>,
    commands: BTreeSet<String>,
}

fn help(command: &[&str]) -> Help {
    let ran = Unsticky::new(command.iter().chain(&["--help"])).run();
    let mut help = Help { options: Vec::new(), positions: Vec::new(), commands: BTreeSet::new() };
    let mut part = "";
    for line in ran.with_status(0).lines().filter(|line| !line.trim().is_empty()) {
        if !line.starts_with(' ') {
            part = line;
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let text = line.trim_start();
        match part {
            "Options:" if text.starts_with('-') && indent < 10 => {
                let (_, option) = text.split_once("--").unwrap();
                let (name, _) = option.split_once(' ').unwrap_or((option, ""));
                help.options.push((format!("--{name}"), option.contains('<')));
            }
            "Arguments:" if (text.starts_with('<') || text.starts_with('[')) && indent < 10 => {
                let name = text[1..].split(['>', ']']).next().unwrap();
                help.positions.push(name.to_owned());
            }
            "Commands:" if indent == 2 => {
                help.commands.extend(text.split(' ').next().map(str::to_owned));
            }
            _ => {}
        }
    }
    help
}

fn bad(argument: &str) -> &'static [&'static str] {
    let row = BAD.iter().find(|(name, _)| *name == argument);
    row.unwrap_or_else(|| panic!("{argument} has no row in the table")).1
}

#[test]
fn every_subcommand_and_every_argument_has_a_row() {
    let mut commands = help(&[]).commands;
    assert!(commands.remove("help"));
    assert_eq!(commands, COMMANDS.iter().map(|(name, _)| (*name).to_owned()).collect());
    let mut arguments = BTreeSet::from(["--version".to_owned()]);
    for (command, _) in COMMANDS {
        let Help { options, positions, .. } = help(&[command]);
        for (option, takes_value) in options {
            assert_eq!(bad(&option).is_empty(), !takes_value, "{command} {option}");
            arguments.insert(option);
        }
        arguments.extend(positions);
    }
    assert_eq!(arguments, BAD.iter().map(|(name, _)| (*name).to_owned()).collect());
}

#[test]
fn bad_value_of_any_option_is_refused() {
    for (command, needed) in COMMANDS {
        for (option, takes_value) in help(&[command]).options {
            // `--all` takes the place of a session id.
            let needed = if option == "--all" { &[][..] } else { needed };
            let arguments = [&[*command], needed].concat();
            let with = |further: &[&OsStr]| {
                let arguments = arguments.iter().map(OsStr::new).chain(further.iter().copied());
                refused(arguments);
            };
            let name = OsStr::new(&option);
            if !takes_value {
                with(&[OsStr::new(&format!("{option}={MARK}"))]);
                continue;
            }
            for value in bad(&option) {
                with(&[name, OsStr::new(value)]);
                with(&[OsStr::new(&format!("{option}={value}"))]);
            }
            with(&[name]);
            with(&[name, OsStr::from_bytes(b"SWORDFISH\xff")]);
            with(&[name, OsStr::new("1"), name, OsStr::new("1")]);
        }
    }
}

#[test]
fn bad_position_is_refused() {
    for (command, needed) in COMMANDS {
        let positions = help(&[command]).positions;
        for position in &positions {
            for value in bad(position) {
                refused([*command, "--", value]);
            }
            refused([OsStr::new(command), OsStr::from_bytes(b"SWORDFISH\xff")]);
            // Without an argument, the principal is read from standard input, which is empty.
            if *command != "man" {
                refused([*command]);
            }
        }
        if *command != "revoke" {
            refused([&[*command], *needed, &[MARK]].concat());
        }
    }
    refused(["revoke", ID, MARK]);
    refused(["revoke", ID, "--all", MARK]);
    let too_long = "x".repeat(1025);
    refused(["sessions", &too_long]);
    refused(["revoke", "--all", &too_long]);
}

#[test]
fn bad_line_of_standard_input_is_refused() {
    let too_long = MARK.repeat(500);
    for arguments in
        [&["sessions"][..], &["sessions", "-"], &["revoke", "--all"], &["revoke", "--all", "-"]]
    {
        let arguments: Vec<_> = arguments.iter().map(OsString::from).collect();
        for input in [
            &b""[..],
            b"\n",
            b"\r\n",
            b"SWORDFISH\nalice\n",
            b"SWORDFISH\n\n",
            b"SWORDFISH\xff\n",
            &b"x".repeat(1025),
            too_long.as_bytes(),
            &b"x\n".repeat(100_000),
        ] {
            is_refused(&arguments, input);
        }
    }
}

#[test]
fn unknown_arguments_are_refused() {
    let nothing: [&str; 0] = [];
    refused(nothing);
    refused([MARK]);
    refused([""]);
    refused(["--swordfish-SWORDFISH"]);
    refused([OsStr::from_bytes(b"SWORDFISH\xff")]);
    for (command, needed) in COMMANDS {
        for unknown in [
            "--swordfish-SWORDFISH",
            "--swordfish=SWORDFISH",
            "-x",
            "-xSWORDFISH",
            "--jsonSWORDFISH",
        ] {
            refused([&[*command], *needed, &[unknown]].concat());
        }
        let unreadable = OsStr::from_bytes(b"--SWORDFISH\xff");
        let arguments = [&[*command], *needed].concat();
        refused(arguments.iter().map(OsStr::new).chain([unreadable]));
    }
}

#[test]
fn bad_address_in_environment_is_refused() {
    for url in
        bad("--url").iter().map(OsStr::new).chain([OsStr::from_bytes(b"redis://SWORDFISH\xff")])
    {
        for arguments in [["check"].iter(), ["sessions", "alice"].iter(), ["show", ID].iter()] {
            let ran = Unsticky::new(arguments).env("SESSION_URL", url).run();
            assert_eq!(ran.with_status(2), "", "{url:?}");
            assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
            assert!(
                ran.stderr.starts_with("unsticky: ") && !ran.stderr.contains("FISH"),
                "{ran:?}"
            );
        }
    }
    let ran = Unsticky::new(["check"]).run();
    assert_eq!(ran.with_status(2), "");
    assert!(ran.stderr.contains("SESSION_URL"), "{ran:?}");
}
