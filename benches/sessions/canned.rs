//! A store that answers at once, always with the same records.

use std::time::Duration;

use bytes::Bytes;
use unsticky::store::{
    Created, Deleted, Kind, MemoryStore, Replaced, Store, StoreKey, Stored, Version,
};
use unsticky::testing::SpyStore;
use unsticky::{Builder, DirectoryMode, Result, Sessions};

use crate::request::arrive;

/// Says that everything was done, and does nothing.
#[derive(Debug)]
struct Canned {
    session: Option<Bytes>,
    directory: Option<Bytes>,
}

#[async_trait::async_trait]
impl Store for Canned {
    async fn create(&self, _: &StoreKey, _: Bytes, _: Duration) -> Result<Created> {
        Ok(Created::Created(Version::new(2)))
    }

    async fn load(&self, key: &StoreKey) -> Result<Option<Stored>> {
        let record = if key.kind() == Kind::Session { &self.session } else { &self.directory };
        Ok(record.clone().map(|bytes| Stored::new(bytes, Version::new(1))))
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
pub async fn canned(mode: DirectoryMode) -> (Sessions, String) {
    let spy = SpyStore::new(MemoryStore::new());
    let with_mode = |builder: Builder| builder.directory(mode).build().unwrap();
    let cookie = arrive(&with_mode(Sessions::builder(spy.clone())), 1024).await;
    let record = async |kind| {
        let key =
            spy.commands().into_iter().map(|command| command.key).find(|key| key.kind() == kind);
        Some(spy.load(&key?).await.unwrap()?.bytes)
    };
    let store =
        Canned { session: record(Kind::Session).await, directory: record(Kind::Directory).await };
    (with_mode(Sessions::builder(store)), cookie)
}
