//! What an error of the client says about the operation: was it applied, was it not, or is that
//! unknown.

use memcache::exp;

use crate::error::{Error, Result};

/// Whether repeating an operation is harmless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Read,
    Write,
}

impl Effect {
    /// For an operation that may have been sent and whose answer nobody will read.
    pub(super) fn lost(self) -> Error {
        const REASON: &str = "the task that had sent the operation ended before its answer came";
        match self {
            Self::Read => Error::unavailable(REASON),
            Self::Write => Error::outcome_unknown(REASON),
        }
    }
}

/// The answers of the server at `address` to one batch, in its order.
pub(super) fn classify<T>(
    address: &str,
    effect: Effect,
    answers: Vec<exp::Result<T>>,
) -> Vec<Result<T>> {
    // The client reports the failure that ended a batch for every operation that had no answer
    // then. It belongs to the first of them; those behind it were sent and not answered.
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

/// Whether the failure puts the server's address in doubt, rather than the operation.
pub(super) fn is_transport(error: &exp::Error) -> bool {
    match error {
        exp::Error::Ambiguous { source, .. } => is_transport(source),
        exp::Error::Server(_) | exp::Error::Rejected(_) | exp::Error::Usage(_) => false,
        _ => true,
    }
}

/// For a failure before any operation was sent.
pub(super) fn connect_error(address: &str, error: exp::Error) -> Error {
    let reason = text(address, &error);
    match error {
        exp::Error::Rejected(line) if line == BARE_ERROR => turned_away(address),
        exp::Error::Rejected(_) => Error::refused(reason),
        _ => Error::unavailable(reason),
    }
}

/// All that the client keeps of `ERROR` and of `ERROR Too many open connections`.
const BARE_ERROR: &str = "ERROR";

fn turned_away(address: &str) -> Error {
    Error::unavailable(format!(
        "memcached at {address} has reached its limit of connections, or is older than 1.6"
    ))
}

/// The whole of it in one line: the client's errors repeat their sources and name no server.
fn text(address: &str, error: &exp::Error) -> String {
    match error {
        exp::Error::Io(error) => format!("memcached at {address}: {error}"),
        error => format!("memcached at {address}: {error}"),
    }
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
        // Not wrapped, these say that the command was not sent to its end: it has no effect.
        exp::Error::Io(_) | exp::Error::Timeout { .. } => Error::unavailable(reason),
        exp::Error::Usage(_) => Error::refused(reason),
        exp::Error::Ambiguous { source, .. } => {
            refusal(address, &source).unwrap_or_else(|| Error::outcome_unknown(reason))
        }
        _ => Error::outcome_unknown(reason),
    }
}

/// The error of an answer that says for certain that the write was not made.
///
/// Other server errors do not: a proxy says `SERVER_ERROR` where it lost the answer itself.
fn refusal(address: &str, answer: &exp::Error) -> Option<Error> {
    match answer {
        exp::Error::Server(line) if line.starts_with("object too large") => {
            Some(Error::too_large(format!("memcached at {address} refused the write: {line}")))
        }
        exp::Error::Server(line) if line.starts_with("out of memory") => {
            Some(Error::refused(format!("memcached at {address} refused the write: {line}")))
        }
        exp::Error::Rejected(line) if line == BARE_ERROR => Some(turned_away(address)),
        exp::Error::Rejected(line) => {
            Some(Error::refused(format!("memcached at {address} rejected the command: {line}")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

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
            (Client::Protocol("x".to_owned()), Corrupt),
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
            (Client::Protocol("x".to_owned()), OutcomeUnknown),
            (ambiguous(reset()), OutcomeUnknown),
            (ambiguous(timeout()), OutcomeUnknown),
            (ambiguous(Client::Protocol("x".to_owned())), OutcomeUnknown),
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
        let answers = vec![
            Ok(()),
            Err(Client::Protocol("x".to_owned())),
            Err(refused()),
            Err(refused()),
            Err(refused()),
        ];
        let found: Vec<_> = classify("h:1", Effect::Write, answers)
            .into_iter()
            .map(|answer| answer.err().map(|error| error.kind()))
            .collect();
        let unknown = Some(OutcomeUnknown);
        assert_eq!(found, [None, unknown, Some(Refused), unknown, unknown]);
    }
}
