//! Requests without the time that a store takes: the store answers immediately, always with the same record.

use std::hint::black_box;

use bytes::Bytes;
use criterion::Criterion;
use unsticky::exchange::{Exchange, Finish};
use unsticky::{DirectoryMode, Session};

use crate::canned::canned;
use crate::request::{COUNT, increment, read, request};

pub fn exchange(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (sessions, cookie) = runtime.block_on(canned(DirectoryMode::Off));
    let mut group = criterion.benchmark_group("exchange");
    let other = Bytes::from_static(b"theme=dark; lang=en");
    for (name, header) in [("no cookie", &other), ("cookie, unused", &cookie)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let exchange = Exchange::begin(&sessions, [black_box(header).clone()], None);
                assert!(matches!(exchange.finish(200), Finish::Ready(_)));
            });
        });
        group.bench_function(format!("{name}, with a handle"), |bencher| {
            bencher.iter(|| {
                let exchange = Exchange::begin(&sessions, [black_box(header).clone()], None);
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
        let exchange = Exchange::begin(&sessions, [cookie.clone()], None);
        let session: Session = exchange.handle().session().await.unwrap();
        session
    });
    group.bench_function("one value", |bencher| bencher.iter(|| session.get(COUNT).unwrap()));
    group.finish();
}
