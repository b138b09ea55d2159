//! Scans the keys under a prefix on a store's servers, for the `unsticky` command.

#![allow(clippy::missing_errors_doc, reason = "not a public interface")]

use std::ops::ControlFlow;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::time::timeout;

use crate::error::{ErrorKind, Result};
use crate::limits;
use crate::record::token::SessionId;
use crate::settings::Sessions;
use crate::store::survey::Plan;
pub use crate::store::survey::{Met, Outcome, Rate, Walk};
use crate::store::{ConnectError, MemcachedStore, RedisStore};

/// The servers behind an address. Their keys can be scanned; a scan writes nothing and reads no record.
#[derive(Debug)]
pub struct Survey(Servers);

#[derive(Debug)]
enum Servers {
    Redis(RedisStore),
    Memcached(MemcachedStore),
}

impl Survey {
    /// Returns the servers of this address. Sends nothing yet.
    pub fn open(url: &str) -> Result<Self, ConnectError> {
        Self::open_within(url, limits::CONNECT + limits::RESPONSE)
    }

    /// Like `open`, but with a time limit for each operation: half of it for connecting, and half for the
    /// answer.
    pub fn open_within(url: &str, timeout: Duration) -> Result<Self, ConnectError> {
        let half = timeout / 2;
        match url.split([':', '+']).next().unwrap_or_default() {
            "memory" => Err(ConnectError::address(
                "the sessions of memory: are in the memory of another process, so this one cannot count them",
            )),
            "memcached" => {
                let store = MemcachedStore::builder(url)?;
                let store = store.connect_timeout(half).response_timeout(half);
                Ok(Self(Servers::Memcached(store.build())))
            }
            "redis" | "rediss" | "valkey" | "valkeys" | "unix" => {
                let store = RedisStore::builder(url)?;
                let store = store.connect_timeout(half).response_timeout(half);
                Ok(Self(Servers::Redis(store.build()?)))
            }
            _ => Err(ConnectError::UnknownScheme),
        }
    }

    /// Scans all keys on all servers, one server after another. Calls `each` for each key that begins with
    /// `prefix` (once, unless `Outcome::Complete::may_repeat` is `true`), and also to report progress.
    ///
    /// The scan finds every key that exists during the whole scan. It may or may not find a key that is
    /// created or removed during the scan, or an item that a Memcached server moves from one of its lists to
    /// another during the scan. If keys may have been missed for any other reason, the result is an error.
    pub async fn scan(
        &self,
        prefix: &str,
        rate: Rate,
        mut each: impl FnMut(Met<'_>) + Send,
    ) -> Result<Vec<Walk>> {
        let plan = Plan { prefix, rate, wants_lengths: true };
        let mut visitor = |met: Met<'_>| {
            each(met);
            ControlFlow::Continue(())
        };
        match &self.0 {
            Servers::Redis(store) => store.survey(&plan, &mut visitor).await,
            Servers::Memcached(store) => store.survey(&plan, &mut visitor).await,
        }
    }

    /// Returns whether any server has a key that begins with `prefix`. Returns `None` if this is unknown,
    /// because a server does not list its keys or because the scan did not finish within the budget.
    pub async fn holds_any(&self, prefix: &str, budget: Duration) -> Result<Option<bool>> {
        let plan = Plan { prefix, rate: Rate::FAST, wants_lengths: false };
        let mut is_found = false;
        let mut visitor = |met: Met<'_>| match met {
            Met::Key { .. } => {
                is_found = true;
                ControlFlow::Break(())
            }
            Met::Walked { .. } => ControlFlow::Continue(()),
        };
        let walks = async {
            match &self.0 {
                Servers::Redis(store) => store.survey(&plan, &mut visitor).await,
                Servers::Memcached(store) => store.survey(&plan, &mut visitor).await,
            }
        };
        let walks = timeout(budget, walks).await;
        if is_found {
            return Ok(Some(true));
        }
        match walks {
            Ok(Ok(walks)) => {
                let is_complete =
                    walks.iter().all(|walk| matches!(walk.outcome, Outcome::Complete { .. }));
                Ok(is_complete.then_some(false))
            }
            Ok(Err(error)) if error.kind() == ErrorKind::Refused => Ok(None),
            Ok(Err(error)) => Err(error),
            Err(_) => Ok(None),
        }
    }
}

/// The form of an application's keys.
#[derive(Debug, Clone)]
pub struct Keys {
    /// The namespace and the epoch at the beginning of each key: `shop:0:`.
    prefix: String,
}

/// The kind of a key under a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A session.
    Session,
    /// The directory of a principal's sessions.
    Directory,
    /// A session or directory with a different epoch.
    OtherEpoch,
    /// A key that this crate did not write.
    Foreign,
}

impl Keys {
    /// Returns the form of the keys that these sessions use.
    #[must_use]
    pub fn of(sessions: &Sessions) -> Self {
        Self { prefix: sessions.settings().key_prefix.clone() }
    }

    /// Returns the prefix of all keys under the namespace, whatever their epoch: `shop:`.
    #[must_use]
    pub fn namespace(&self) -> &str {
        let end = self.prefix.find(':').map_or(self.prefix.len(), |colon| colon + 1);
        &self.prefix[..end]
    }

    /// Returns the namespace and the epoch at the beginning of each key: `shop:0:`.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Returns the kind of a key under the namespace.
    #[must_use]
    pub fn owner(&self, key: &str) -> Owner {
        if let Some(rest) = key.strip_prefix(&self.prefix) {
            return record(rest).unwrap_or(Owner::Foreign);
        }
        let other = key
            .strip_prefix(self.namespace())
            .and_then(|rest| rest.split_once(':'))
            .filter(|(epoch, rest)| is_epoch(epoch) && record(rest).is_some());
        if other.is_some() { Owner::OtherEpoch } else { Owner::Foreign }
    }
}

/// Returns whether the text is an epoch, written as it is in keys.
fn is_epoch(text: &str) -> bool {
    text.parse::<u32>().is_ok_and(|epoch| epoch.to_string() == text)
}

/// Returns the kind of record to which a key belongs, given the part of the key after the epoch, or `None` if
/// this is not the key of a record.
fn record(rest: &str) -> Option<Owner> {
    let (kind, id) = rest.split_once(':')?;
    match kind {
        "s" => id.parse::<SessionId>().is_ok().then_some(Owner::Session),
        "d" => {
            let digest = URL_SAFE_NO_PAD.decode(id).ok()?;
            (digest.len() == 32).then_some(Owner::Directory)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_of_its_epoch_or_foreign() {
        let keys = Keys { prefix: "shop:7:".to_owned() };
        let (id, digest) = ("A".repeat(22), "A".repeat(43));
        assert_eq!(keys.namespace(), "shop:");
        for (key, expected) in [
            (format!("shop:7:s:{id}"), Owner::Session),
            (format!("shop:7:d:{digest}"), Owner::Directory),
            (format!("shop:0:s:{id}"), Owner::OtherEpoch),
            (format!("shop:4294967295:d:{digest}"), Owner::OtherEpoch),
            (format!("shop:4294967296:s:{id}"), Owner::Foreign),
            (format!("shop:07:s:{id}"), Owner::Foreign),
            (format!("shop:+7:s:{id}"), Owner::Foreign),
            (format!("shop:7:d:{id}"), Owner::Foreign),
            (format!("shop:7:s:{id}:"), Owner::Foreign),
            (format!("shop:7:x:{id}"), Owner::Foreign),
            (format!("shop:eu:7:s:{id}"), Owner::Foreign),
            (format!("shop:7:s:compare-and-set:{{shop:7:s:{id}}}"), Owner::Foreign),
            ("shop:".to_owned(), Owner::Foreign),
            ("shop:7:".to_owned(), Owner::Foreign),
        ] {
            assert_eq!(keys.owner(&key), expected, "{key}");
        }
    }
}
