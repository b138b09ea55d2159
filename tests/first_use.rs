//! A request's session is created when one of its handles is first used, which may be after the
//! response.

#![cfg(all(feature = "testing", feature = "memory"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use futures_util::FutureExt as _;
use support::runtime;
use support::stand::{A, Backend, SEED};
use support::visit::{cookie_of, finish};
use time::OffsetDateTime;
use unsticky::exchange::{Exchange, Finish, SessionHandle};
use unsticky::store::MemoryStore;
use unsticky::{Clock, Cookie, ErrorKind, Sessions};

/// A request that does not use its session reads no clock, sends no store command and needs no runtime.
#[test]
fn request_without_session_use_reads_no_clock() {
    #[derive(Debug)]
    struct NoClock;

    impl Clock for NoClock {
        fn now(&self) -> OffsetDateTime {
            panic!("the clock was read");
        }
    }

    let sessions = Sessions::builder(MemoryStore::new()).clock(NoClock).build().unwrap();
    let token = format!("__Host-id={}", "A".repeat(43));
    for status in [200, 500] {
        let exchange = Exchange::begin(&sessions, [token.clone()], None);
        let handle = exchange.handle();
        let Finish::Ready(reply) = exchange.finish(status) else { panic!("{status}") };
        assert!(reply.is_empty());
        drop(handle);
    }
    drop(Exchange::begin(&sessions, [token], None));
}

/// What happens to the exchange before its handle is first used.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Answered,
    Failed,
    Dropped,
}

async fn ended(exchange: Exchange, end: End) {
    match end {
        End::Answered => assert!(finish(exchange, 200).await.is_empty()),
        End::Failed => assert!(finish(exchange, 500).await.is_empty()),
        End::Dropped => drop(exchange),
    }
}

#[tokio::test]
async fn handle_first_used_after_response_saves_values_and_sends_no_cookie() {
    for end in [End::Answered, End::Failed, End::Dropped] {
        let stand = Backend::memory().stand();
        let cookie = stand.seeded().await;
        let exchange = Exchange::begin(&stand.sessions, [cookie.clone()], None);
        let (one, other) = (exchange.handle(), exchange.handle());
        ended(exchange, end).await;

        let session = one.session().await.unwrap();
        assert_eq!(session.get(SEED).unwrap(), Some(1), "{end:?}");
        session.insert(A, &1).unwrap();
        // Here too, all handles of a request share one session.
        assert_eq!(other.session().await.unwrap().get(A).unwrap(), Some(1), "{end:?}");
        session.save().await.unwrap();
        assert_eq!(stand.read(&cookie, A).await, Some(1), "{end:?}");

        session.rotate();
        assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::HeadSent, "{end:?}");
        assert_eq!(stand.read(&cookie, A).await, Some(1), "{end:?}: the secret is void");
    }
}

#[tokio::test]
async fn handle_first_used_after_response_creates_no_session() {
    for end in [End::Answered, End::Failed, End::Dropped] {
        let stand = Backend::memory().stand();
        let exchange = Exchange::begin(&stand.sessions, [""], None);
        let handle = exchange.handle();
        ended(exchange, end).await;

        let session = handle.session().await.unwrap();
        session.insert(A, &1).unwrap();
        assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::HeadSent, "{end:?}");
        session.sign_in("alice").unwrap();
        assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::HeadSent, "{end:?}");
        assert_eq!(stand.taken_verbs(), [], "{end:?}");
    }
}

/// Two layers share a `Sessions`. It does not matter when the inner exchange ends: a cookie can be set
/// until the outer one ends.
#[tokio::test]
async fn handle_of_shared_session_can_set_cookie_until_outer_layer_finishes() {
    for in_time in [true, false] {
        let stand = Backend::memory().stand();
        let admins = stand.process(|builder| builder.cookie(Cookie::new("__Host-admin")));
        let outer = Exchange::begin(&stand.sessions, [""], None);
        let middle = Exchange::begin(&admins, [""], Some(outer.handle()));
        let inner = Exchange::begin(&stand.sessions, [""], Some(middle.handle()));
        let handle = inner.handle();
        assert!(finish(inner, 200).await.is_empty());
        assert!(finish(middle, 200).await.is_empty());
        let write = async |handle: SessionHandle| {
            let session = handle.session().await.unwrap();
            session.insert(A, &1).unwrap();
            session
        };
        if in_time {
            write(handle).await;
            let cookie = cookie_of(&finish(outer, 200).await).unwrap();
            assert_eq!(stand.read(&cookie, A).await, Some(1));
        } else {
            assert!(finish(outer, 200).await.is_empty());
            let saved = write(handle).await.save().await;
            assert_eq!(saved.unwrap_err().kind(), ErrorKind::HeadSent);
        }
    }
}

/// A `Cookie` header that is slow to parse: parsing it takes until the request has finished, or 100 ms
/// if the request waits for the parsing.
struct SlowToParse {
    is_parsed: mpsc::Sender<()>,
    is_finished: Mutex<mpsc::Receiver<()>>,
}

impl AsRef<[u8]> for SlowToParse {
    fn as_ref(&self) -> &[u8] {
        self.is_parsed.send(()).unwrap();
        let _ = self.is_finished.lock().unwrap().recv_timeout(Duration::from_millis(100));
        b""
    }
}

/// One thread finishes the request while another creates its session. Either the response includes the
/// session's changes, or the session knows that it is too late: a write never appears to succeed in a
/// session whose cookie was not sent.
#[test]
fn session_extracted_during_commit_cannot_set_cookie() {
    let stand = Backend::memory().stand();
    let runtime = runtime();
    let (is_parsed, parsed) = mpsc::channel();
    let (say_finished, is_finished) = mpsc::channel();
    let cookie = SlowToParse { is_parsed, is_finished: Mutex::new(is_finished) };
    let exchange = Exchange::begin(&stand.sessions, [cookie], None);
    let handle = exchange.handle();
    let asking = thread::spawn(move || handle.session().now_or_never().unwrap().unwrap());
    parsed.recv().unwrap();
    let reply = runtime.block_on(finish(exchange, 200));
    // The receiver is normally gone, because parsing ends first.
    let _ = say_finished.send(());
    assert!(reply.set_cookie.is_none() && reply.error.is_none());
    let session = asking.join().unwrap();
    session.insert(A, &1).unwrap();
    let saved = runtime.block_on(session.save());
    assert_eq!(saved.unwrap_err().kind(), ErrorKind::HeadSent);
    assert_eq!(stand.taken_verbs(), []);
}
