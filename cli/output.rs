//! The output formats, and functions that print.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use serde::Serialize;
use unsticky::internals::operate::is_plain;

use crate::failure::Failure;

/// The format of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Text for people.
    Text,
    /// JSON for programs.
    Json,
}

/// Prints the whole text. It is not a failure if the reader has closed the pipe, as `head` does.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    write(text.as_bytes())
}

pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::local(format!("the output cannot be generated: {error}")))?;
    print(&format!("{}\n", escaped(&text)))
}

/// Escapes the characters in the JSON that can control a terminal. They occur only inside strings: outside
/// strings, this JSON has no control characters except line breaks.
fn escaped(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for char in json.chars() {
        if char == '\n' || is_plain(char) {
            escaped.push(char);
        } else {
            // Each of these characters is one UTF-16 code unit.
            let _ = write!(escaped, "\\u{:04x}", u32::from(char));
        }
    }
    escaped
}

pub(crate) fn print_bytes(bytes: &[u8]) -> Result<ExitCode, Failure> {
    write(bytes).map(|()| ExitCode::SUCCESS)
}

fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::output(error)),
        _ => Ok(()),
    }
}

/// Makes text from any source safe to print on one line. Control characters and marks that change the writing
/// direction are replaced by spaces, so the text can neither start a new line nor control the terminal.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|char| if is_plain(char) { char } else { ' ' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_commands_no_terminal_and_says_the_same() {
        let text = "a\u{7f}\u{9b}31m\u{202e}\u{2028}\n\u{1b}[0m é\u{1f600}";
        let json = serde_json::to_string_pretty(&[text]).unwrap_or_default();
        let escaped = escaped(&json);
        assert!(escaped.chars().all(|char| char == '\n' || is_plain(char)), "{escaped:?}");
        let back: Vec<String> = serde_json::from_str(&escaped).unwrap_or_default();
        assert_eq!(back, [text]);
        assert!(escaped.contains("é\u{1f600}"));
    }
}
