//! What a request costs: `cargo bench --all-features`.
//!
//! The store is the embedded one, or the one that `SESSION_URL` names.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use tokio::runtime::Runtime;
use unsticky::exchange::{Exchange, Finish};
use unsticky::{Key, Result, Session, Sessions};

const COUNT: Key<u64> = Key::new("count");
const TEXT: Key<String> = Key::new("text");

/// One request; returns the cookie that it set.
async fn request(
    sessions: &Sessions,
    cookie: &str,
    handler: impl AsyncFnOnce(Session) -> Result<()>,
) -> Option<String> {
    let exchange = Exchange::begin(sessions, [cookie.as_bytes()], None);
    let session = exchange.handle().session().await.unwrap();
    handler(session).await.unwrap();
    let reply = match exchange.finish(200) {
        Finish::Ready(reply) => reply,
        Finish::Pending(reply) => reply.await,
    };
    assert!(reply.error.is_none(), "{:?}", reply.error);
    reply.set_cookie
}

async fn signs_in(session: Session) -> Result<()> {
    session.insert(TEXT, &"x".repeat(1024))?;
    session.sign_in("somebody")
}

fn requests(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let url = std::env::var("SESSION_URL").unwrap_or_else(|_| "memory:".to_owned());
    let sessions = Sessions::builder(unsticky::connect(&url).unwrap()).build().unwrap();
    let cookie = runtime.block_on(request(&sessions, "", signs_in)).unwrap();
    let cookie = cookie.split(';').next().unwrap();

    let mut group = criterion.benchmark_group("request");
    group.bench_function("no cookie", |bencher| {
        bencher.iter(|| {
            let exchange = Exchange::begin(&sessions, [&b"theme=dark; lang=en"[..]], None);
            assert!(matches!(black_box(exchange).finish(200), Finish::Ready(_)));
        });
    });
    group.bench_function("cookie, unused", |bencher| {
        bencher.iter(|| {
            let exchange = Exchange::begin(&sessions, [cookie.as_bytes()], None);
            assert!(matches!(black_box(exchange).finish(200), Finish::Ready(_)));
        });
    });
    group.bench_function("read", |bencher| {
        bencher.to_async(&runtime).iter(|| {
            request(&sessions, cookie, async |session| {
                black_box(session.get(COUNT)?);
                Ok(())
            })
        });
    });
    group.bench_function("increment", |bencher| {
        bencher.to_async(&runtime).iter(|| {
            request(&sessions, cookie, async |session| session.update(COUNT, |count| *count += 1))
        });
    });
    group.bench_function("sign in and out", |bencher| {
        bencher.to_async(&runtime).iter(async || {
            let cookie = request(&sessions, "", signs_in).await.unwrap();
            let cookie = cookie.split(';').next().unwrap();
            request(&sessions, cookie, async |session| {
                session.sign_out();
                Ok(())
            })
            .await
        });
    });
    group.finish();
}

criterion_group!(benches, requests);
criterion_main!(benches);
