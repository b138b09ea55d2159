//! A request that has nothing to do with sessions allocates nothing for them, and others not much.

#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::hint::black_box;

use allocation_counter::measure;
use unsticky::exchange::{Exchange, Finish};
use unsticky::store::MemoryStore;
use unsticky::{Key, Session, Sessions};

#[test]
fn request_without_cookie_allocates_nothing() {
    let sessions = Sessions::builder(MemoryStore::new()).build().unwrap();
    for (headers, status) in [
        (&[][..], 200),
        (&[&b"theme=dark; lang=en"[..]][..], 200),
        (&[&b"a=1"[..], b"b=\"2\"; __Host-identity=3"][..], 503),
    ] {
        let allocated = measure(|| {
            let exchange = Exchange::begin(&sessions, headers.iter().copied(), None);
            let Finish::Ready(reply) = black_box(exchange).finish(status) else {
                panic!("there is something to do");
            };
            assert!(reply.set_cookie.is_none() && !reply.vary && reply.error.is_none());
        });
        assert_eq!(allocated.count_total, 0, "{headers:?}");
    }
}

/// One that could ask for its session costs one allocation: the handle.
#[test]
fn handle_costs_one_allocation() {
    let sessions = Sessions::builder(MemoryStore::new()).build().unwrap();
    let allocated = measure(|| {
        let exchange = Exchange::begin(&sessions, [&b"theme=dark"[..]], None);
        let handle = exchange.handle();
        assert!(matches!(exchange.finish(200), Finish::Ready(_)));
        drop(handle);
    });
    assert_eq!(allocated.count_total, 1);
}

/// With those of the memory store. The first request of a kind may make what later ones find.
#[test]
fn reading_and_changing_a_value_cost_few_allocations() {
    const COUNT: Key<u64> = Key::new("count");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let sessions = Sessions::builder(MemoryStore::new()).build().unwrap();
    let visit = |cookie: &str, handle: fn(&Session)| {
        runtime.block_on(async {
            let exchange = Exchange::begin(&sessions, [cookie.as_bytes()], None);
            handle(&exchange.handle().session().await.unwrap());
            match exchange.finish(200) {
                Finish::Ready(reply) => reply.set_cookie,
                Finish::Pending(reply) => reply.await.set_cookie,
            }
        })
    };
    let read = |session: &Session| assert!(session.get(COUNT).unwrap().is_some());
    let increment = |session: &Session| session.update(COUNT, |count| *count += 1).unwrap();
    let cookie = visit("", increment).unwrap();
    let cookie = cookie.split(';').next().unwrap();
    for (name, handle, most) in [("read", read as fn(&Session), 7), ("increment", increment, 21)] {
        visit(cookie, handle);
        let allocated = measure(|| drop(visit(cookie, handle)));
        assert!(allocated.count_total <= most, "{name}: {}", allocated.count_total);
    }
}
