//! A request that has nothing to do with sessions allocates nothing for them.

#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::hint::black_box;

use allocation_counter::measure;
use unsticky::Sessions;
use unsticky::exchange::{Exchange, Finish};
use unsticky::store::MemoryStore;

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
