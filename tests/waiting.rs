//! No request waits forever: not for a future that is kept without being polled, and not because a
//! function uses the session that calls it. The changes that a handler can accumulate are limited.

#![cfg(all(feature = "testing", feature = "memory", feature = "redis", feature = "memcached"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::poll;
use support::runtime;
use support::stand::{A, B, Backend, C, SEED, on_every_store};
use support::visit::{cookie_of, finish, visit};
use tokio::time::timeout;
use unsticky::testing::Verb;
use unsticky::{ErrorKind, Key, Session};

/// Much longer than any operation here takes, and longer than a request's timeout for the store.
const BOUND: Duration = Duration::from_secs(20);

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(BOUND, future).await.unwrap_or_else(|_| panic!("{what} never returned"))
}

/// A `save()` loses in a `select!`, and its future is kept without being polled.
async fn unpolled_save_blocks_neither_other_saves_nor_response(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let (exchange, session) = stand.begin(&cookie).await;
    session.insert(A, &1).unwrap();
    let (gate, kept) = stand.held(Verb::Replace, session.save()).await;
    gate.release();
    session.insert(B, &2).unwrap();
    in_time("another save", session.save()).await.unwrap();
    session.insert(C, &3).unwrap();
    assert!(in_time("the response", finish(exchange, 200)).await.error.is_none());
    for (key, value) in [(A, 1), (B, 2), (C, 3)] {
        assert_eq!(stand.read(&cookie, key).await, Some(value));
    }
    // The kept future still returns its own result when it is polled again.
    in_time("the kept one", kept).await.unwrap();
}

/// Futures of `transact` and `reload` are kept without being polled.
async fn unpolled_transact_and_reload_block_no_other_call(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let (exchange, session) = stand.begin(&cookie).await;
    let (gate, transact) =
        stand.held(Verb::Replace, session.transact(|values| values.insert(A, &1))).await;
    gate.release();
    let gate = stand.store.hold(Verb::Load);
    let mut reload = Box::pin(session.reload());
    assert!(poll!(&mut reload).is_pending());
    gate.release();
    session.insert(B, &2).unwrap();
    in_time("a save", session.save()).await.unwrap();
    assert!(in_time("the response", finish(exchange, 200)).await.error.is_none());
    assert_eq!((stand.read(&cookie, A).await, stand.read(&cookie, B).await), (Some(1), Some(2)));
    in_time("the kept transact", transact).await.unwrap();
    in_time("the kept reload", reload).await.unwrap();
}

/// The response is not polled at the end of the request, for example because the connection is stuck.
async fn unpolled_response_blocks_no_long_lived_handle(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let (exchange, session) = stand.begin(&cookie).await;
    session.insert(A, &1).unwrap();
    let (gate, kept) = stand.held(Verb::Replace, finish(exchange, 200)).await;
    gate.release();
    in_time("a save", session.save()).await.unwrap();
    assert_eq!(stand.read(&cookie, A).await, Some(1));
    assert!(in_time("the kept one", kept).await.error.is_none());
}

/// After a conflict, a commit waits in its session's queue. Its future may be kept without being polled
/// there, and other requests in that session still succeed.
async fn unpolled_queued_commit_fails_no_other_request(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let (exchange, session) = stand.begin(&cookie).await;
    session.update(A, |number| *number += 1).unwrap();
    stand.write(&cookie, B, 1).await;
    // The commit is at the head of the queue, in its second attempt.
    drop(stand.store.hold(Verb::Replace));
    let gate = stand.store.hold(Verb::Replace);
    let mut kept = Box::pin(session.save());
    while !matches!(poll!(Box::pin(gate.reached())), std::task::Poll::Ready(())) {
        assert!(poll!(&mut kept).is_pending());
        tokio::task::yield_now().await;
    }
    gate.release();
    let others = (0..5).map(|_| async {
        let visit = stand.overtaken(
            &cookie,
            async |session: Session| session.update(C, |number| *number += 1),
            async || stand.write(&cookie, B, fastrand::u32(..)).await,
        );
        visit.await.ok();
    });
    in_time("the others", join_all(others)).await;
    assert_eq!(stand.read(&cookie, C).await, Some(5));
    assert_eq!(stand.read(&cookie, A).await, Some(1), "completed by other requests");
    drop((kept, exchange));
}

/// A `select!` keeps an extractor's future without polling it, and another extractor is used.
async fn unpolled_load_blocks_no_other_extractor(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let exchange = unsticky::exchange::Exchange::begin(&stand.sessions, [cookie.to_owned()], None);
    let (gate, kept) = stand.held(Verb::Load, exchange.handle().session()).await;
    let session = in_time("another load", exchange.handle().session()).await.unwrap();
    assert_eq!(session.get(SEED).unwrap(), Some(1));
    session.insert(A, &1).unwrap();
    gate.release();
    // Whichever load finishes first, all handles see the same session.
    let late = in_time("the kept load", kept).await.unwrap();
    assert_eq!(late.get(A).unwrap(), Some(1));
    assert!(in_time("the response", finish(exchange, 200)).await.error.is_none());
    assert_eq!(stand.read(&cookie, A).await, Some(1));
}

/// Revocations queue too, for their principal's directory. A revocation whose future is not polled
/// blocks no sign-in.
async fn unpolled_revocation_blocks_no_sign_in(on: Backend) {
    let stand = on.stand();
    stand.signed_in("alice").await;
    let directory = stand.sessions.of("alice");
    let gate = stand.store.hold(Verb::Replace);
    let mut kept = Box::pin(directory.revoke_all());
    while !matches!(poll!(Box::pin(gate.reached())), std::task::Poll::Ready(())) {
        assert!(poll!(&mut kept).is_pending());
        tokio::task::yield_now().await;
    }
    // The write of this revocation will conflict when it continues, so the revocation will join the
    // queue.
    let first = stand.signed_in("alice").await;
    gate.release();
    for _ in 0..20 {
        let _ = poll!(&mut kept).is_ready();
        tokio::task::yield_now().await;
        if stand.who(&first).await.is_none() {
            break;
        }
    }
    let signed_in = in_time("a sign-in", stand.signed_in("alice")).await;
    assert_eq!(stand.who(&signed_in).await.as_deref(), Some("alice"));
    drop(kept);
}

on_every_store! {
    unpolled_save_blocks_neither_other_saves_nor_response,
    unpolled_transact_and_reload_block_no_other_call,
    unpolled_response_blocks_no_long_lived_handle,
    unpolled_queued_commit_fails_no_other_request,
    unpolled_load_blocks_no_other_extractor,
    unpolled_revocation_blocks_no_sign_in,
    changes_of_replaced_response_are_not_saved_later,
    transact_after_sign_out_calls_function_once,
    transact_calls_function_once_when_create_is_in_doubt,
}

/// Runs the code on a separate thread, because it may hold a lock or never return.
fn apart(what: &str, work: impl FnOnce() + Send + 'static) {
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        work();
        done.send(()).unwrap();
    });
    is_done.recv_timeout(BOUND).unwrap_or_else(|_| panic!("{what} never returned"));
}

#[test]
fn update_function_that_changes_session_returns_error() {
    apart("an update", || {
        let session = Session::detached();
        let own = session.clone();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let changes = move |number: &mut u32| {
            counted.fetch_add(1, Ordering::Relaxed);
            own.insert(B, &1).unwrap();
            *number += 1;
        };
        let error = session.update(A, changes).unwrap_err();
        assert_eq!((error.kind(), error.status()), (ErrorKind::Reentrant, 500));
        assert!(calls.load(Ordering::Relaxed) <= 100);
        assert_eq!(session.get(A).unwrap(), None);
        // The session can still be used.
        session.update(A, |number| *number += 1).unwrap();
        assert_eq!(session.get(A).unwrap(), Some(1));
    });
}

/// The function changes the session only when it is called again, at the commit or when the values are
/// computed again.
#[test]
fn update_function_that_changes_session_on_replay_returns_error() {
    apart("a sign-in", || {
        runtime().block_on(async {
            let session = Session::detached();
            let own = session.clone();
            let calls = AtomicUsize::new(0);
            let changes = move |number: &mut u32| {
                if calls.fetch_add(1, Ordering::Relaxed) > 0 {
                    own.remove(B);
                }
                *number += 1;
            };
            session.update(A, changes).unwrap();
            let error = session.sign_in("alice").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Reentrant);
            session.save().await.unwrap();
            assert_eq!(session.get(A).unwrap(), Some(1));
        });
    });
}

/// Reads the session when it is dropped.
struct ReadsOnDrop(Session, Arc<AtomicUsize>);

impl Drop for ReadsOnDrop {
    fn drop(&mut self) {
        let _ = self.0.contains(A);
        self.0.remove(C);
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn update_captures_are_dropped_while_session_is_unlocked() {
    type Ends = (&'static str, fn(&Session));
    let ways: [Ends; 7] = [
        ("insert", |session| session.insert(A, &1).unwrap()),
        ("remove", |session| session.remove(A)),
        ("take", |session| assert_eq!(session.take(A).unwrap(), Some(1))),
        ("clear", Session::clear),
        ("destroy", Session::destroy),
        ("sign in as another", |session| {
            session.sign_in("alice").unwrap();
            session.sign_in("bob").unwrap();
        }),
        ("save", |session| {
            runtime().block_on(session.save()).unwrap();
        }),
    ];
    for (name, way) in ways {
        apart(name, move || {
            let session = Session::detached();
            let dropped = Arc::new(AtomicUsize::new(0));
            let guard = ReadsOnDrop(session.clone(), dropped.clone());
            let update = move |number: &mut u32| {
                let _ = &guard;
                *number += 1;
            };
            session.update(A, update).unwrap();
            way(&session);
            assert_eq!(dropped.load(Ordering::Relaxed), 1, "{name}: kept");
        });
    }
}

/// Like the test above, but at the end of the request: after a failed response, and after the client
/// disconnects.
#[test]
fn update_captures_are_dropped_unlocked_when_request_ends() {
    for status in [Some(500), None] {
        apart("the end of a request", move || {
            runtime().block_on(async {
                let stand = Backend::memory().stand();
                let (exchange, session) = stand.begin("").await;
                let dropped = Arc::new(AtomicUsize::new(0));
                let guard = ReadsOnDrop(session.clone(), dropped.clone());
                let update = move |number: &mut u32| {
                    let _ = &guard;
                    *number += 1;
                };
                session.update(A, update).unwrap();
                match status {
                    Some(status) => drop(finish(exchange, status).await),
                    None => drop(exchange),
                }
                assert_eq!(dropped.load(Ordering::Relaxed), 1);
            });
        });
    }
}

#[test]
fn pending_changes_are_bounded_by_record_size() {
    let session = Session::detached();
    let value = "x".repeat(98);
    let key = |number: usize| Key::<String>::runtime(format!("{number:08}"));
    let kept = (0..).take_while(|number| session.insert(key(*number), &value).is_ok()).count();
    // Each value takes 100 bytes of JSON and 8 for its key, out of 65,536.
    assert_eq!(kept, 606);
    let error = session.insert(key(kept), &value).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(!session.contains(key(kept)));
    let longer = move |text: &mut String| text.push_str(&"y".repeat(1000));
    assert_eq!(session.update(key(0), longer).unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(session.get(&key(0)).unwrap().as_deref(), Some(&value[..]));
    // Overwriting or removing a value makes room.
    for _ in 0..10_000 {
        session.insert(key(0), &value).unwrap();
    }
    session.remove(key(1));
    session.insert(key(kept), &value).unwrap();
}

/// The work for a change must not grow with the number of earlier changes. When it did, forty thousand
/// changes took seconds.
#[test]
fn cost_of_changes_grows_linearly() {
    let took = |changes: usize| {
        let session = Session::detached();
        let begun = std::time::Instant::now();
        for number in 0..changes {
            session.remove(Key::<u32>::runtime(number.to_string()));
        }
        for number in 0..changes {
            session.insert(Key::<u32>::runtime((number % 1000).to_string()), &1).unwrap();
        }
        begun.elapsed()
    };
    // Takes the shortest of several runs, so that a busy machine does not affect the result. Ten times
    // as many changes may take up to thirty times as long; quadratic work would take a hundred times as
    // long.
    let shortest = |changes| (0..5).map(|_| took(changes)).min().unwrap();
    let (few, many) = (shortest(4_000), shortest(40_000));
    assert!(many < few * 30, "{few:?} for 4,000, {many:?} for 40,000");
}

/// The request returned an error, so its changes must not be applied later.
async fn changes_of_replaced_response_are_not_saved_later(on: Backend) {
    use unsticky::testing::Fault;

    let stand = on.stand();
    let cookie = stand.seeded().await;
    for fault in [Fault::Unavailable, Fault::Refused] {
        let (exchange, session) = stand.begin(&cookie).await;
        session.update(A, |number| *number += 1).unwrap();
        stand.store.fail_always(Verb::Replace, fault);
        assert_eq!(finish(exchange, 200).await.error.unwrap().status(), 503);
        stand.store.heal();
        session.save().await.unwrap();
        assert_eq!(stand.read(&cookie, A).await, None, "{fault:?}");
    }
}

fn counts(calls: &Arc<AtomicUsize>) -> impl Fn() + Send + 'static + use<> {
    let calls = calls.clone();
    move || {
        calls.fetch_add(1, Ordering::Relaxed);
    }
}

async fn transact_after_sign_out_calls_function_once(on: Backend) {
    let stand = on.stand();
    let cookie = stand.signed_in("alice").await;
    let calls = Arc::new(AtomicUsize::new(0));
    let (exchange, session) = stand.begin(&cookie).await;
    session.sign_out();
    let count = counts(&calls);
    let decided = session.transact(move |values| {
        count();
        values.insert(A, &1)
    });
    decided.await.unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    let cookie = cookie_of(&finish(exchange, 200).await).unwrap();
    assert_eq!((stand.read(&cookie, A).await, stand.who(&cookie).await), (Some(1), None));
}

/// If the create is in doubt, it is tried again under a different id, with the same decision.
async fn transact_calls_function_once_when_create_is_in_doubt(on: Backend) {
    let stand = on.stand();
    stand.store.inject(Verb::Create, unsticky::testing::Fault::LoseAnswer);
    let calls = Arc::new(AtomicUsize::new(0));
    let count = counts(&calls);
    let visit = visit(&stand.sessions, "", async |session: Session| {
        let decided = session.transact(move |values| {
            count();
            values.insert(A, &1)
        });
        decided.await
    });
    let cookie = visit.await.cookie();
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    assert_eq!(stand.read(&cookie, A).await, Some(1));
}
