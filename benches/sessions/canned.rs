//! A store that answers at once, always with the same record.

use std::time::Duration;

use bytes::Bytes;
use unsticky::store::{Created, Deleted, MemoryStore, Replaced, Store, StoreKey, Stored, Version};
use unsticky::testing::SpyStore;
use unsticky::{Builder, DirectoryMode, Result, Sessions};

use crate::request::arrive;

/// Says that everything was done, and does nothing.
#[derive(Debug)]
struct Canned(Bytes);

#[async_trait::async_trait]
impl Store for Canned {
    async fn create(&self, _: &StoreKey, _: Bytes, _: Duration) -> Result<Created> {
        Ok(Created::Created(Version::new(2)))
    }

    async fn load(&self, _: &StoreKey) -> Result<Option<Stored>> {
        Ok(Some(Stored::new(self.0.clone(), Version::new(1))))
    }

    async fn replace(&self, _: &StoreKey, _: Bytes, _: Duration, _: &Stored) -> Result<Replaced> {
        Ok(Replaced::Replaced(Version::new(2)))
    }

    async fn delete(&self, _: &StoreKey, _: Option<&Stored>) -> Result<Deleted> {
        Ok(Deleted::Deleted)
    }
}

/// Sessions in such a store, and the cookie of the one that it has: of somebody who is signed in, with
/// a text of 1024 bytes.
pub async fn canned() -> (Sessions, String) {
    let spy = SpyStore::new(MemoryStore::new());
    let without = |builder: Builder| builder.directory(DirectoryMode::Off).build().unwrap();
    let sessions = without(Sessions::builder(spy.clone()));
    let cookie = arrive(&sessions, 1024).await;
    let key = spy.commands().pop().unwrap().key;
    let bytes = spy.load(&key).await.unwrap().unwrap().bytes;
    (without(Sessions::builder(Canned(bytes))), cookie)
}
