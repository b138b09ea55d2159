//! Reads the principal from an argument, or from standard input, which keeps it out of the process list.

use std::io::{self, IsTerminal as _, Read as _};

use crate::failure::Failure;

/// The maximum length of a line, in bytes. The library's own limit is lower.
const LONGEST_LINE: u64 = 4096;

/// The argument that stands for standard input.
const STANDARD_INPUT: &str = "-";

pub(crate) async fn read(argument: Option<&str>) -> Result<String, Failure> {
    match argument {
        Some(principal) if principal != STANDARD_INPUT => return Ok(principal.to_owned()),
        None if io::stdin().is_terminal() => {
            let reason = "add it as an argument, or add - to type it on the standard input";
            return Err(Failure::usage("PRINCIPAL is missing", reason));
        }
        _ => {}
    }
    // Runs in a separate thread, so that the wait for input can be interrupted.
    let read = || {
        let mut bytes = Vec::new();
        io::stdin().lock().take(LONGEST_LINE + 3).read_to_end(&mut bytes).map(|_| bytes)
    };
    let bytes = match tokio::task::spawn_blocking(read).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => {
            return Err(Failure::local(format!("the standard input cannot be read: {error}")));
        }
        Err(_) => return Err(Failure::local("the standard input cannot be read".to_owned())),
    };
    one_line(bytes).map_err(|reason| Failure::usage("the standard input", reason))
}

/// Returns the line without its line break. The error does not quote the line.
fn one_line(bytes: Vec<u8>) -> Result<String, &'static str> {
    let mut text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    if text.is_empty() {
        return Err("it is empty; one line with the principal is expected");
    }
    if text.len() as u64 > LONGEST_LINE {
        return Err("it is longer than 4096 bytes; one line with the principal is expected");
    }
    if text.contains('\n') {
        return Err("it has several lines; one line with the principal is expected");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_is_taken_without_its_end() {
        for (bytes, principal) in [
            ("alice", "alice"),
            ("alice\n", "alice"),
            ("alice\r\n", "alice"),
            (" a b \n", " a b "),
            ("-\n", "-"),
        ] {
            assert_eq!(one_line(bytes.as_bytes().to_vec()).as_deref(), Ok(principal));
        }
        assert!(one_line([b"a".repeat(4096), b"\r\n".to_vec()].concat()).is_ok());
    }

    #[test]
    fn text_that_is_not_one_line_is_refused() {
        let long = "a".repeat(4097);
        for bytes in ["", "\n", "\r\n", "alice\nbob\n", "alice\n\n", "\nalice", &*long] {
            assert!(one_line(bytes.as_bytes().to_vec()).is_err(), "{bytes:?}");
        }
        assert!(one_line(b"\xff\n".to_vec()).is_err());
    }
}
