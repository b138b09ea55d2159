//! A custom store: four operations on bytes. The library handles sessions, cookies, conflicts and deadlines.
//! The conformance suite below checks everything that a store is responsible for.
//!
//! ```sh
//! cargo run --features testing --example custom_store
//! cargo test --features testing --example custom_store
//! ```

#![allow(clippy::print_stdout, reason = "it prints what it does")]

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use unsticky::check::Finding;
use unsticky::exchange::{Exchange, Finish};
use unsticky::store::{Created, Deleted, Diagnose, Probe, Replaced, StoreKey, Stored, Version};
use unsticky::{Key, Result, Sessions, Store};

/// Keeps records in a plain map.
#[derive(Debug, Default)]
struct MapStore {
    shelf: Mutex<Shelf>,
}

#[derive(Debug, Default)]
struct Shelf {
    records: HashMap<String, Record>,
    /// One counter for all keys, so no key ever has the same version twice, even after a delete.
    last_version: u64,
}

#[derive(Debug)]
struct Record {
    stored: Stored,
    /// `None` if the record expires later than this machine's clock can count.
    expires: Option<Instant>,
}

impl MapStore {
    /// Every verb holds the lock throughout, which makes the verb atomic. No verb leaves the map in an
    /// inconsistent state, so a panic in another thread can be ignored.
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        // A store with many records would remove expired records only from time to time.
        shelf.records.retain(|_, record| record.expires.is_none_or(|at| Instant::now() < at));
        shelf
    }
}

impl Shelf {
    fn put(&mut self, key: &StoreKey, bytes: Bytes, ttl: Duration) -> Version {
        self.last_version += 1;
        let version = Version::new(self.last_version);
        let stored = Stored::new(bytes, version);
        let record = Record { stored, expires: Instant::now().checked_add(ttl) };
        self.records.insert(key.as_str().to_owned(), record);
        version
    }

    fn stored(&self, key: &StoreKey) -> Option<Stored> {
        self.records.get(key.as_str()).map(|record| record.stored.clone())
    }
}

#[async_trait]
impl Store for MapStore {
    async fn create(&self, key: &StoreKey, bytes: Bytes, ttl: Duration) -> Result<Created> {
        let mut shelf = self.shelf();
        Ok(match shelf.stored(key) {
            Some(_) => Created::Occupied,
            None => Created::Created(shelf.put(key, bytes, ttl)),
        })
    }

    async fn load(&self, key: &StoreKey) -> Result<Option<Stored>> {
        Ok(self.shelf().stored(key))
    }

    async fn replace(
        &self,
        key: &StoreKey,
        bytes: Bytes,
        ttl: Duration,
        expected: &Stored,
    ) -> Result<Replaced> {
        let mut shelf = self.shelf();
        Ok(match shelf.stored(key) {
            None => Replaced::Missing,
            Some(stored) if stored.version != expected.version => Replaced::Conflict(Some(stored)),
            Some(_) => Replaced::Replaced(shelf.put(key, bytes, ttl)),
        })
    }

    async fn delete(&self, key: &StoreKey, expected: Option<&Stored>) -> Result<Deleted> {
        let mut shelf = self.shelf();
        Ok(match shelf.stored(key) {
            None => Deleted::Missing,
            Some(stored) if expected.is_some_and(|it| it.version != stored.version) => {
                Deleted::Conflict(Some(stored))
            }
            Some(_) => {
                shelf.records.remove(key.as_str());
                Deleted::Deleted
            }
        })
    }

    fn diagnosis(&self) -> Option<&dyn Diagnose> {
        Some(self)
    }
}

/// What `Sessions::check` reports about the store. A store need not implement this trait.
#[async_trait]
impl Diagnose for MapStore {
    async fn diagnose(&self, probe: &Probe) {
        let records = self.shelf().records.len();
        let message =
            format!("The map holds {records} records, which are lost when this process ends.");
        probe.report(Finding::warning(
            "map",
            message,
            "Use another store for sessions that must survive a restart.",
        ));
        // Tries the four verbs on a key that only the check uses.
        probe.try_store(self).await;
    }
}

const VISITS: Key<u32> = Key::new("visits");

/// Runs three requests by one visitor, without a framework.
#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let sessions = Sessions::builder(MapStore::default()).build()?;
    println!("{}", sessions.check().await);
    let mut cookie = String::new();
    for _ in 0..3 {
        let exchange = Exchange::begin(&sessions, [cookie.to_owned()], None);
        let session = exchange.handle().session().await?;
        session.update(VISITS, |visits| *visits += 1)?;
        println!("visit {}", session.get(VISITS)?.unwrap_or_default());
        let reply = match exchange.finish(200) {
            Finish::Ready(reply) => reply,
            Finish::Pending(reply) => reply.await,
        };
        if let Some(error) = reply.error {
            return Err(error.into());
        }
        // Like a browser, keeps only the part before the attributes.
        if let Some(set_cookie) = reply.set_cookie {
            println!("a new cookie, for the id {:?}", session.id());
            cookie = set_cookie.split(';').next().unwrap_or_default().to_owned();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use unsticky::testing::Subject;

    use super::MapStore;

    async fn setup() -> Subject {
        Subject::new(MapStore::default())
    }

    // Expands to one test for each rule in the contract.
    unsticky::conformance!(setup);
}
