//! Requests outside the store: it answers at once, always with the same record.

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::Criterion;
use unsticky::exchange::{Exchange, Finish};
use unsticky::store::{Created, Deleted, MemoryStore, Replaced, Store, StoreKey, Stored, Version};
use unsticky::testing::SpyStore;
use unsticky::{Result, Session, Sessions};

use crate::request::{COUNT, arrive, increment, read, request};

/// Says that everything was done, and does nothing.
#[derive(Debug)]
struct Canned(Bytes);

#[async_trait::async_trait]
impl Store for Canned {
    async fn create(&self, _: &StoreKey, _: Bytes, _: Duration) -> Result<Created> {
        Ok(Created::Created(Version::new(2)))
    }

    async fn load(&self, _: &StoreKey) -> Result<Option<Stored>> {
        Ok(Some(Stored { bytes: self.0.clone(), version: Version::new(1) }))
    }

    async fn replace(&self, _: &StoreKey, _: Bytes, _: Duration, _: Version) -> Result<Replaced> {
        Ok(Replaced::Replaced(Version::new(2)))
    }

    async fn delete(&self, _: &StoreKey, _: Option<Version>) -> Result<Deleted> {
        Ok(Deleted::Deleted)
    }
}

pub fn exchange(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (cookie, bytes) = runtime.block_on(async {
        let spy = SpyStore::new(MemoryStore::new());
        let sessions = Sessions::builder(spy.clone()).build().unwrap();
        let cookie = arrive(&sessions, 1024).await;
        let key = spy.commands().pop().unwrap().key;
        (cookie, spy.load(&key).await.unwrap().unwrap().bytes)
    });
    let sessions = Sessions::builder(Canned(bytes)).build().unwrap();
    let mut group = criterion.benchmark_group("exchange");
    for (name, header) in [("no cookie", "theme=dark; lang=en"), ("cookie, unused", &cookie[..])] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let exchange = Exchange::begin(&sessions, [black_box(header).as_bytes()], None);
                assert!(matches!(exchange.finish(200), Finish::Ready(_)));
            });
        });
        group.bench_function(format!("{name}, with a handle"), |bencher| {
            bencher.iter(|| {
                let exchange = Exchange::begin(&sessions, [black_box(header).as_bytes()], None);
                let handle = exchange.handle();
                assert!(matches!(exchange.finish(200), Finish::Ready(_)));
                handle
            });
        });
    }
    group.bench_function("read", |bencher| {
        bencher.to_async(&runtime).iter(|| read(&sessions, &cookie));
    });
    group.bench_function("increment", |bencher| {
        bencher.to_async(&runtime).iter(|| increment(&sessions, &cookie));
    });
    group.bench_function("sign in again", |bencher| {
        bencher
            .to_async(&runtime)
            .iter(|| request(&sessions, &cookie, async |session| session.sign_in("account-4711")));
    });
    let session = runtime.block_on(async {
        let exchange = Exchange::begin(&sessions, [cookie.as_bytes()], None);
        let session: Session = exchange.handle().session().await.unwrap();
        session
    });
    group.bench_function("one value", |bencher| bencher.iter(|| session.get(COUNT).unwrap()));
    group.finish();
}
