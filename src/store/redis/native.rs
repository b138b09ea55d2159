//! The server's own compare-and-set commands. They have the same effect as the scripts and are faster.
//!
//! | server | replace | delete |
//! |---|---|---|
//! | Valkey 9 | `SET … IFEQ` | `DELIFEQ` |
//! | Valkey 8.1 | `SET … IFEQ` | script |
//! | Redis 8.4 | `SET … IFEQ` | `DELEX … IFEQ` |
//! | older versions | script | script |
//!
//! These commands compare the whole value, so the expected record must be sent as well. `IFDEQ`, which
//! compares digests, is not used: the digest has no secret key, so an attacker who can choose values can find
//! two that have the same digest.

use std::sync::atomic::{AtomicBool, Ordering};

use ::redis::{Cmd, Value, cmd};

use crate::store::key::StoreKey;
use crate::store::redis::compare::{Change, CompareAndSet};

/// The compare-and-set commands that a server has.
pub(super) struct Native {
    set: AtomicBool,
    delifeq: AtomicBool,
    delex: AtomicBool,
}

/// The outcome of trying a command.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Trial {
    Answered(Value),
    /// The server does not know the command in this form, or does not permit it.
    Unknown,
    /// The server currently refuses the command.
    Refused,
    /// No answer arrived.
    Lost,
}

impl Native {
    /// Returns the commands to try. They use a key that no record uses and under which nothing is stored. It
    /// is not enough to look at the server's version, because permissions and command names are configurable.
    ///
    /// A server that does not know a command echoes its arguments, so the arguments contain no part of a
    /// record.
    pub(super) fn trials(key: &StoreKey) -> [Cmd; 3] {
        let key = trial_key(key);
        let mut set = cmd("SET");
        // A server that ignores the condition stores this value, which then expires.
        set.arg(&key).arg("new").arg("IFEQ").arg("old").arg("PX").arg(1000);
        let mut delifeq = cmd("DELIFEQ");
        delifeq.arg(&key).arg("old");
        let mut delex = cmd("DELEX");
        delex.arg(&key).arg("IFEQ").arg("old");
        [set, delifeq, delex]
    }

    /// Interprets the outcomes of the trials.
    pub(super) fn judged([set, delifeq, delex]: [Trial; 3]) -> Self {
        Self {
            set: AtomicBool::new(set == Trial::Answered(Value::Nil)),
            delifeq: AtomicBool::new(delifeq == Trial::Answered(Value::Int(0))),
            delex: AtomicBool::new(delex == Trial::Answered(Value::Int(0))),
        }
    }

    /// Returns the server's own command for a change, if it has one.
    pub(super) fn command(&self, operation: &CompareAndSet<'_>) -> Option<Cmd> {
        let CompareAndSet { key, expected, change } = operation;
        let (key, old) = (key.as_str(), &expected.bytes[..]);
        let is_known = |command: &AtomicBool| command.load(Ordering::Relaxed);
        let room = |new: usize| key.len() + old.len() + new + 50;
        match change {
            Change::Replace { bytes, ttl } => is_known(&self.set).then(|| {
                let mut command = Cmd::with_capacity(7, room(bytes.len()));
                command.arg("SET").arg(key).arg(&bytes[..]);
                command.arg("IFEQ").arg(old).arg("PX").arg(*ttl);
                command
            }),
            Change::Delete if is_known(&self.delifeq) => {
                let mut command = Cmd::with_capacity(3, room(0));
                command.arg("DELIFEQ").arg(key).arg(old);
                Some(command)
            }
            Change::Delete => is_known(&self.delex).then(|| {
                let mut command = Cmd::with_capacity(4, room(0));
                command.arg("DELEX").arg(key).arg("IFEQ").arg(old);
                command
            }),
        }
    }

    /// Records that the server does not have the command after all: a proxy may have forwarded it to an older
    /// server, or the permissions have changed.
    pub(super) fn forget(&self, change: &Change<'_>) {
        let commands: &[_] = match change {
            Change::Replace { .. } => &[&self.set],
            Change::Delete => &[&self.delifeq, &self.delex],
        };
        for command in commands {
            command.store(false, Ordering::Relaxed);
        }
    }
}

/// Returns a key in the same namespace as the record's key, so that the application's permissions cover it.
/// Because of the braces, a cluster puts both keys into the same slot.
fn trial_key(key: &StoreKey) -> String {
    let key = key.as_str();
    let prefix = key.rsplit_once(':').map_or("", |(prefix, _)| prefix);
    format!("{prefix}:compare-and-set:{{{key}}}")
}

#[cfg(test)]
mod tests {
    use ::redis::Arg;
    use bytes::Bytes;

    use super::*;
    use crate::store::contract::{Stored, Version};
    use crate::store::key::Kind;

    #[test]
    fn trial_key_lies_in_namespace_and_is_no_session() {
        let key = StoreKey::new("app:7:", Kind::Session, "AAAAAAAAAAAAAAAAAAAAAA");
        let expected = "app:7:s:compare-and-set:{app:7:s:AAAAAAAAAAAAAAAAAAAAAA}";
        assert_eq!(trial_key(&key), expected);
    }

    #[test]
    fn only_commands_with_right_answers_are_used() {
        const UNUSED: &str = "";
        let answered = Trial::Answered;
        let (nil, zero) = (answered(Value::Nil), answered(Value::Int(0)));
        let (one, okay, unknown) = (answered(Value::Int(1)), answered(Value::Okay), Trial::Unknown);
        for (set, delifeq, delex, used) in [
            (&nil, &zero, &zero, ["SET", "DELIFEQ"]),
            (&nil, &unknown, &zero, ["SET", "DELEX"]),
            (&nil, &unknown, &unknown, ["SET", UNUSED]),
            (&unknown, &zero, &unknown, [UNUSED, "DELIFEQ"]),
            (&unknown, &unknown, &unknown, [UNUSED, UNUSED]),
            // A server that ignores the command's condition.
            (&okay, &one, &one, [UNUSED, UNUSED]),
            (&zero, &nil, &nil, [UNUSED, UNUSED]),
        ] {
            let native = Native::judged([set, delifeq, delex].map(Clone::clone));
            assert_eq!(commands(&native), used);
        }
    }

    /// Returns the names of the native commands for replacing and for deleting; empty where a script is used.
    fn commands(native: &Native) -> [String; 2] {
        let key = StoreKey::new("app:7:", Kind::Session, "AAAAAAAAAAAAAAAAAAAAAA");
        let bytes = Bytes::from_static(b"12345678");
        let expected = Stored::new(bytes.clone(), Version::new(1));
        changes(&bytes).map(|change| {
            let command = native.command(&CompareAndSet { key: &key, expected: &expected, change });
            match command.as_ref().and_then(|command| command.args_iter().next()) {
                Some(Arg::Simple(name)) => String::from_utf8_lossy(name).into_owned(),
                _ => String::new(),
            }
        })
    }

    fn changes(bytes: &Bytes) -> [Change<'_>; 2] {
        [Change::Replace { bytes, ttl: 1 }, Change::Delete]
    }

    #[test]
    fn only_the_command_that_was_refused_is_forgotten() {
        let known =
            || Native::judged([Value::Nil, Value::Int(0), Value::Int(0)].map(Trial::Answered));
        let bytes = Bytes::new();
        for (refused, left) in changes(&bytes).iter().zip([["", "DELIFEQ"], ["SET", ""]]) {
            let native = known();
            native.forget(refused);
            assert_eq!(commands(&native), left);
        }
    }
}
