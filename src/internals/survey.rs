//! What stands under a prefix on the servers of a store: for the command `unsticky`.

#![allow(clippy::missing_errors_doc, reason = "nobody is to use it")]

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

/// The servers behind an address, whose keys can be walked through. Nothing is written, and no record is
/// read.
#[derive(Debug)]
pub struct Survey(Servers);

#[derive(Debug)]
enum Servers {
    Redis(RedisStore),
    Memcached(MemcachedStore),
}

impl Survey {
    /// The servers of this address. Nothing is sent yet.
    pub fn open(url: &str) -> Result<Self, ConnectError> {
        Self::open_within(url, limits::CONNECT + limits::RESPONSE)
    }

    /// The same, where one operation may take so long: half of it to connect, and half of it to be answered.
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

    /// Walks through all keys of all servers, one server after the other, and tells `each` of those that begin
    /// with `prefix`, each of them once, and of its progress.
    ///
    /// A key that was there all the time is met. Whether one is met that came or went meanwhile is chance, and
    /// so it is on a Memcached server for one that the server has moved from one of its lists to another
    /// meanwhile. Where keys may have been missed for another reason, it is an error.
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

    /// Whether any server has a key that begins with `prefix`. `None` where that cannot be known: a server
    /// does not show its keys, or the walk through them did not end within the budget.
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

/// What the keys of an application look like.
#[derive(Debug, Clone)]
pub struct Keys {
    /// Namespace and epoch, as the keys begin: `shop:0:`.
    prefix: String,
}

/// What a key under a namespace is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A session.
    Session,
    /// The directory of a principal's sessions.
    Directory,
    /// A session or a directory of another epoch.
    OtherEpoch,
    /// Something that this crate did not write.
    Foreign,
}

impl Keys {
    /// Those of these sessions.
    #[must_use]
    pub fn of(sessions: &Sessions) -> Self {
        Self { prefix: sessions.settings().key_prefix.clone() }
    }

    /// With what every key of the namespace begins, whatever its epoch: `shop:`.
    #[must_use]
    pub fn namespace(&self) -> &str {
        let end = self.prefix.find(':').map_or(self.prefix.len(), |colon| colon + 1);
        &self.prefix[..end]
    }

    /// Namespace and epoch, as the keys begin: `shop:0:`.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What a key under the namespace is.
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

/// Whether an epoch is written this way.
fn is_epoch(text: &str) -> bool {
    text.parse::<u32>().is_ok_and(|epoch| epoch.to_string() == text)
}

/// What the part of a key behind its epoch names.
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
