//! A store that answers immediately, always with the same records.

use std::time::Duration;

use bytes::Bytes;
use unsticky::store::{
    Created, Deleted, Diagnose, Kind, MemoryStore, Replaced, Store, StoreKey, Stored, Version,
};
use unsticky::testing::SpyStore;
use unsticky::{Builder, DirectoryMode, Result, Sessions};

use crate::request::arrive;

/// Acknowledges every write without storing anything.
#[derive(Debug)]
struct Canned {
    session: Bytes,
    directory: Option<Bytes>,
}

#[async_trait::async_trait]
impl Store for Canned {
    async fn create(&self, _: &StoreKey, _: Bytes, _: Duration) -> Result<Created> {
        Ok(Created::Created(Version::new(2)))
    }

    async fn load(&self, key: &StoreKey) -> Result<Option<Stored>> {
        let bytes = match key.kind() {
            Kind::Session => Some(&self.session),
            _ => self.directory.as_ref(),
        };
        Ok(bytes.map(|bytes| Stored::new(bytes.clone(), Version::new(1))))
    }

    async fn replace(&self, _: &StoreKey, _: Bytes, _: Duration, _: &Stored) -> Result<Replaced> {
        Ok(Replaced::Replaced(Version::new(2)))
    }

    async fn delete(&self, _: &StoreKey, _: Option<&Stored>) -> Result<Deleted> {
        Ok(Deleted::Deleted)
    }

    fn diagnosis(&self) -> Option<&dyn Diagnose> {
        None
    }
}

/// Returns sessions on such a store, and the cookie of the store's only session. A user is signed in to the
/// session, which holds a text of 1024 bytes.
pub async fn canned(mode: DirectoryMode) -> (Sessions, Bytes) {
    let spy = SpyStore::new(MemoryStore::new());
    let sessions = |builder: Builder| builder.directory(mode).build().unwrap();
    let cookie = arrive(&sessions(Sessions::builder(spy.clone())), 1024).await;
    let (mut session, mut directory) = (None, None);
    for command in spy.commands() {
        let stored = spy.load(&command.key).await.unwrap().map(|stored| stored.bytes);
        match command.key.kind() {
            Kind::Session => session = stored,
            _ => directory = stored,
        }
    }
    let store = Canned { session: session.unwrap(), directory };
    (sessions(Sessions::builder(store)), cookie)
}
