//! Interprets the client's errors: whether the operation was applied, was not applied, or is in doubt.

use std::io;

use memcache::exp;

use crate::error::{Error, Result};

/// Whether an operation reads or writes. Only a read can be retried without harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Read,
    Write,
}

impl Effect {
    /// Returns the error for an operation that may have been sent but whose answer was lost.
    pub(super) fn lost(self) -> Error {
        const REASON: &str = "the task that sent the operation ended before the answer arrived";
        match self {
            Self::Read => Error::unavailable(REASON),
            Self::Write => Error::outcome_unknown(REASON),
        }
    }
}

/// Converts the client's results for a batch sent to the server at `address`, keeping their order.
pub(super) fn classify<T>(
    address: &str,
    effect: Effect,
    answers: Vec<exp::Result<T>>,
) -> Vec<Result<T>> {
    // If a batch fails, the client reports the failure for every operation without an answer. The failure
    // belongs to the first of these operations. The others were sent but not answered.
    let mut failed = false;
    let mut write = |error: exp::Error| match error {
        exp::Error::Ambiguous { .. } if std::mem::replace(&mut failed, true) => {
            Error::outcome_unknown(text(address, &error))
        }
        error => write_error(address, error),
    };
    answers
        .into_iter()
        .map(|answer| {
            answer.map_err(|error| match effect {
                Effect::Read => read_error(address, error),
                Effect::Write => write(error),
            })
        })
        .collect()
}

/// Returns whether the failure concerns the connection to the server rather than the operation.
pub(super) fn is_transport(error: &exp::Error) -> bool {
    match error {
        exp::Error::Ambiguous { source, .. } => is_transport(source),
        exp::Error::Server(_) | exp::Error::Rejected(_) | exp::Error::Usage(_) => false,
        _ => true,
    }
}

/// Returns the error for a server that could not be reached at any of its addresses.
pub(super) fn unreachable(address: &str, reason: &str) -> Error {
    Error::unavailable(named(address, reason))
}

/// Returns the error for a batch that was not sent because one of its operations is malformed.
pub(super) fn malformed(address: &str, error: &exp::Error) -> Error {
    Error::refused(text(address, error))
}

/// Returns the error for a failure that occurred before any operation was sent.
pub(super) fn connect_error(address: &str, error: exp::Error) -> Error {
    let reason = text(address, &error);
    match error {
        exp::Error::Rejected(line) if line != BARE_ERROR => Error::refused(reason),
        _ => Error::unavailable(reason),
    }
}

/// What the client keeps of both `ERROR` and `ERROR Too many open connections`.
const BARE_ERROR: &str = "ERROR";

/// Returns the error as one line. The client's own messages repeat their sources and do not identify the
/// server.
fn text(address: &str, error: &exp::Error) -> String {
    named(address, &reason(error))
}

fn named(address: &str, reason: &str) -> String {
    format!("memcached at {address}: {reason}")
}

/// Returns why the first command on a connection received no answer.
pub(super) fn greeting_reason(error: &exp::Error) -> String {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    match error {
        exp::Error::Io(error)
            if matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe) =>
        {
            "it closed the connection without an answer; if the port expects TLS, use another one: this \
             store does \
             not speak TLS"
                .to_owned()
        }
        error => reason(error),
    }
}

/// Returns a description of the error that contains neither the key nor any text that the server may have
/// echoed.
fn reason(error: &exp::Error) -> String {
    match error {
        exp::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            "it closed the connection".to_owned()
        }
        exp::Error::Io(error) => error.to_string(),
        exp::Error::Timeout { .. } => "it did not answer in time".to_owned(),
        exp::Error::Ambiguous { source, .. } => reason(source),
        exp::Error::Rejected(line) if line == BARE_ERROR => {
            "it has reached its connection limit, or is older than 1.6".to_owned()
        }
        exp::Error::Rejected(line) => format!("it rejected the command: {}", prose(line)),
        exp::Error::Server(line) => format!("it answered with an error: {}", prose(line)),
        // The client's message contains the bytes that it could not parse.
        exp::Error::Protocol(line) if line.contains(TLS_ALERT) => {
            "it answered in TLS, which this store does not speak".to_owned()
        }
        exp::Error::Protocol(line) => {
            format!("its answer is not a Memcached answer: {}", prose(line))
        }
        exp::Error::Usage(reason) => format!("the command is not well-formed: {reason}"),
        _ => "the client failed".to_owned(),
    }
}

/// The first bytes of a TLS alert, as the client prints them.
const TLS_ALERT: &str = r#""\u{15}\u{3}"#;

/// Returns the leading words of a line from the server, as long as they are prose. After them, a server may
/// echo the command, which contains a record. A record begins with random bytes, so it is not mistaken for
/// prose.
fn prose(line: &str) -> String {
    const MAX_LENGTH: usize = 200;
    let mut text = String::new();
    for word in line.split(' ') {
        // Includes the space before the word, and the ellipsis that shows where the text was cut.
        if !is_prose(word) || text.len() + word.len() + 2 > MAX_LENGTH {
            text.push('…');
            break;
        }
        text.push_str(word);
        text.push(' ');
    }
    text.truncate(text.trim_end().len());
    text
}

fn is_prose(word: &str) -> bool {
    const COMMANDS: [&str; 4] = ["mg", "ms", "md", "mn"];
    // Keys and encoded bytes are longer.
    const MAX_LENGTH: usize = 24;
    let bare = word.trim_matches(|char: char| !char.is_ascii_alphanumeric());
    word.len() <= MAX_LENGTH
        && !COMMANDS.contains(&bare)
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.,:;()/".contains(&byte))
}

fn read_error(address: &str, error: exp::Error) -> Error {
    match error {
        exp::Error::Protocol(_) => Error::corrupt(text(address, &error)),
        exp::Error::Usage(_) => Error::refused(text(address, &error)),
        _ => connect_error(address, error),
    }
}

fn write_error(address: &str, error: exp::Error) -> Error {
    let reason = text(address, &error);
    match error {
        // If these errors are not wrapped, the command was not sent completely, so it had no effect.
        exp::Error::Io(_) | exp::Error::Timeout { .. } => Error::unavailable(reason),
        exp::Error::Usage(_) => Error::refused(reason),
        exp::Error::Ambiguous { source, .. } => {
            refusal(address, &source).unwrap_or_else(|| Error::outcome_unknown(reason))
        }
        _ => Error::outcome_unknown(reason),
    }
}

/// Returns the error to report if the answer proves that the write was not applied.
///
/// Other server errors do not prove this: a proxy also answers `SERVER_ERROR` if it has lost the server's
/// answer.
fn refusal(address: &str, answer: &exp::Error) -> Option<Error> {
    let reason = text(address, answer);
    match answer {
        exp::Error::Server(line) if line.starts_with("object too large") => {
            Some(Error::too_large(reason))
        }
        exp::Error::Server(line) if line.starts_with("out of memory") => {
            Some(Error::refused(reason))
        }
        exp::Error::Rejected(line) if line == BARE_ERROR => Some(Error::unavailable(reason)),
        exp::Error::Rejected(_) => Some(Error::refused(reason)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use memcache::exp::Error as Client;

    use super::*;
    use crate::error::ErrorKind;

    fn reset() -> Client {
        Client::Io(io::Error::from(io::ErrorKind::ConnectionReset))
    }

    fn timeout() -> Client {
        Client::Timeout { key: b"k".to_vec() }
    }

    fn ambiguous(source: Client) -> Client {
        Client::Ambiguous { key: b"k".to_vec(), source: Box::new(source) }
    }

    fn server(text: &str) -> Client {
        Client::Server(text.to_owned())
    }

    fn rejected(text: &str) -> Client {
        Client::Rejected(text.to_owned())
    }

    fn protocol(text: &str) -> Client {
        Client::Protocol(text.to_owned())
    }

    fn kinds(effect: Effect, errors: Vec<Client>) -> Vec<ErrorKind> {
        let answers = errors.into_iter().map(Err::<(), _>).collect();
        classify("h:1", effect, answers)
            .into_iter()
            .map(|answer| answer.unwrap_err().kind())
            .collect()
    }

    #[test]
    fn failed_read_is_never_in_doubt() {
        use ErrorKind::{Corrupt, Refused, Unavailable};
        for (error, kind) in [
            (reset(), Unavailable),
            (timeout(), Unavailable),
            (ambiguous(reset()), Unavailable),
            (server("out of memory writing get response"), Unavailable),
            (rejected("ERROR"), Unavailable),
            (rejected("unauthenticated"), Refused),
            (Client::Usage("x"), Refused),
            (protocol("x"), Corrupt),
        ] {
            let text = error.to_string();
            assert_eq!(kinds(Effect::Read, vec![error]), [kind], "{text}");
        }
    }

    #[test]
    fn failed_write_is_in_doubt_unless_unsent_or_refused() {
        use ErrorKind::{OutcomeUnknown, Refused, TooLarge, Unavailable};
        for (error, kind) in [
            (reset(), Unavailable),
            (timeout(), Unavailable),
            (Client::Usage("x"), Refused),
            (protocol("x"), OutcomeUnknown),
            (ambiguous(reset()), OutcomeUnknown),
            (ambiguous(timeout()), OutcomeUnknown),
            (ambiguous(protocol("x")), OutcomeUnknown),
            (ambiguous(server("out of memory storing object")), Refused),
            (ambiguous(server("object too large for cache")), TooLarge),
            (ambiguous(server("backend timed out")), OutcomeUnknown),
            (ambiguous(rejected("bad data chunk")), Refused),
            (ambiguous(rejected("ERROR")), Unavailable),
        ] {
            let text = error.to_string();
            assert_eq!(kinds(Effect::Write, vec![error]), [kind], "{text}");
        }
    }

    #[test]
    fn error_names_server_once_and_reason_once() {
        let error = connect_error("h:1", reset());
        let source = std::error::Error::source(&error).unwrap();
        assert!(source.source().is_none());
        assert_eq!(source.to_string(), "memcached at h:1: connection reset");
    }

    #[test]
    fn refusal_is_assigned_to_first_unanswered_write() {
        use ErrorKind::{OutcomeUnknown, Refused};
        let refused = || ambiguous(server("out of memory storing object"));
        let answers =
            vec![Ok(()), Err(protocol("x")), Err(refused()), Err(refused()), Err(refused())];
        let found: Vec<_> = classify("h:1", Effect::Write, answers)
            .into_iter()
            .map(|answer| answer.err().map(|error| error.kind()))
            .collect();
        let unknown = Some(OutcomeUnknown);
        assert_eq!(found, [None, unknown, Some(Refused), unknown, unknown]);
    }

    /// Returns everything that the error and its sources print.
    fn printed(error: &Error) -> String {
        let source = std::error::Error::source(error).unwrap();
        format!("{error} {error:?} {source} {source:?}")
    }

    #[test]
    fn only_transport_failure_puts_server_in_doubt() {
        for (error, expected) in [
            (reset as fn() -> Client, true),
            (timeout, true),
            (|| protocol("x"), true),
            (|| server("out of memory storing object"), false),
            (|| rejected("ERROR"), false),
            (|| Client::Usage("x"), false),
        ] {
            assert_eq!(is_transport(&error()), expected, "{}", error());
            assert_eq!(is_transport(&ambiguous(error())), expected, "{}", error());
        }
    }

    #[test]
    fn error_says_what_happened() {
        for (error, reason) in [
            (reset(), "connection reset"),
            (Client::Io(io::ErrorKind::UnexpectedEof.into()), "it closed the connection"),
            (timeout(), "it did not answer in time"),
            (ambiguous(timeout()), "it did not answer in time"),
            (server("backend timed out"), "it answered with an error: backend timed out"),
            (rejected("unauthenticated"), "it rejected the command: unauthenticated"),
            (rejected("ERROR"), "it has reached its connection limit, or is older than 1.6"),
            (
                protocol(r#"unknown return code "HTTP/1.1""#),
                "its answer is not a Memcached answer: unknown return code …",
            ),
            (Client::Usage("no key"), "the command is not well-formed: no key"),
            (Client::Conflict, "the client failed"),
        ] {
            assert_eq!(text("h:1", &error), format!("memcached at h:1: {reason}"));
        }
    }

    #[test]
    fn refusal_repeats_servers_own_words() {
        for (line, own) in [
            ("object too large for cache", "object too large for cache"),
            ("out of memory storing object", "out of memory storing object"),
        ] {
            let error = write_error("h:1", ambiguous(server(line)));
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert_eq!(source, format!("memcached at h:1: it answered with an error: {own}"));
        }
    }

    #[test]
    fn error_repeats_nothing_of_command_and_record() {
        let record = "\u{7}Tag\u{fffd}\u{1}{\"password\":\"hunter2\"}";
        for tail in [
            "(ms hunter2".to_owned(),
            "ms app:0:s:id 60 T60 hunter2".to_owned(),
            "mg hunter2".to_owned(),
            "md hunter2".to_owned(),
            "mn hunter2".to_owned(),
            record.to_owned(),
            format!("b{record}"),
            "'hunter2'".to_owned(),
            "\"hunter2\"".to_owned(),
            "`hunter2`".to_owned(),
            "=hunter2".to_owned(),
            "\thunter2".to_owned(),
            "\rhunter2".to_owned(),
            "\u{1b}[31mhunter2".to_owned(),
            "\\x00hunter2".to_owned(),
            "\u{e9}hunter2".to_owned(),
            format!("{} hunter2", "A".repeat(25)),
        ] {
            let line = format!("bad thing (error 7, at a/b-c_d.e; see: manual) {tail} hunter2");
            for error in [server, rejected, protocol] {
                for effect in [Effect::Read, Effect::Write] {
                    let errors = vec![Err::<(), _>(error(&line)), Err(ambiguous(error(&line)))];
                    for answer in classify("h:1", effect, errors) {
                        let printed = printed(&answer.unwrap_err());
                        let own = "bad thing (error 7, at a/b-c_d.e; see: manual) …";
                        assert!(printed.contains(own), "{line:?}: {printed}");
                        assert!(!printed.contains("hunter2"), "{line:?}: {printed}");
                        assert!(!printed.contains("s:id"), "{line:?}: {printed}");
                    }
                }
            }
        }
    }

    #[test]
    fn error_is_short_however_long_the_answer() {
        let longest = "x".repeat(24);
        assert_eq!(prose(&longest), longest);
        assert_eq!(prose(""), "");
        assert_eq!(prose(&"x".repeat(25)), "…");
        let full = format!("{}{}", "123456789 ".repeat(18), "y".repeat(18));
        assert_eq!(prose(&full), full);
        assert_eq!(prose(&format!("{full} and more")).chars().count(), 200);
        assert_eq!(prose(&format!("{full}y")), format!("{}…", "123456789 ".repeat(18)));
        for word in ["a", "ab", "a b", "word", &longest] {
            let text = prose(&format!("{word} ").repeat(100_000));
            assert!((160..=203).contains(&text.len()), "{}: {text}", text.len());
            assert!(text.chars().count() <= 200, "{text}");
            assert!(text.ends_with(" …"), "{text}");
        }
    }

    #[test]
    fn tls_port_is_recognized() {
        let alert = protocol(r#"unknown return code "\u{15}\u{3}\u{1}""#);
        assert!(greeting_reason(&alert).contains("answered in TLS"));
        for kind in [
            io::ErrorKind::UnexpectedEof,
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::BrokenPipe,
        ] {
            let closed = Client::Io(kind.into());
            assert!(greeting_reason(&closed).contains("if the port expects TLS"), "{kind:?}");
        }
        let refused = Client::Io(io::ErrorKind::ConnectionRefused.into());
        assert_eq!(greeting_reason(&refused), "connection refused");
    }
}
