//! Which types can move between threads, checked by the compiler.

#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use std::str::FromStr as _;

use unsticky::exchange::{ErrorRenderer, Exchange, Finish, Reply, SessionHandle};
use unsticky::{
    Builder, ConfigError, Cookie, CsrfToken, Error, Flash, Guard, Key, Lifetime, LocalPath, Maybe,
    Next, OpenSession, Session, SessionId, Sessions, SignedIn, Store,
};

fn send_and_sync<T: Send + Sync + 'static>() {}
fn send<T: Send>(_: T) {}
fn clone<T: Clone>() {}

#[test]
fn public_types_are_send_and_sync() {
    send_and_sync::<Session>();
    send_and_sync::<Sessions>();
    send_and_sync::<Builder>();
    send_and_sync::<OpenSession>();
    send_and_sync::<SessionHandle>();
    send_and_sync::<Exchange>();
    send_and_sync::<Reply>();
    send_and_sync::<SignedIn>();
    send_and_sync::<Maybe<SignedIn>>();
    send_and_sync::<Guard>();
    send_and_sync::<Next>();
    send_and_sync::<LocalPath>();
    send_and_sync::<ErrorRenderer>();
    send_and_sync::<Error>();
    send_and_sync::<ConfigError>();
    send_and_sync::<Cookie>();
    send_and_sync::<Lifetime>();
    send_and_sync::<Flash>();
    send_and_sync::<CsrfToken>();
    send_and_sync::<SessionId>();
    send_and_sync::<Key<std::rc::Rc<u8>>>();
    send_and_sync::<Box<dyn Store>>();
    clone::<Session>();
    clone::<Error>();
    clone::<Key<Vec<u8>>>();
    clone::<std::sync::Arc<dyn Store>>();
}

#[test]
fn session_futures_are_send() {
    let session = Session::detached();
    send(session.save());
    send(session.reload());
    send(session.touch());
    send(session.transact(|_| Ok(())));
    send(unsticky::testing::signed_in(session.sessions(), "alice", |_| Ok(())));
    send(session.flashes());
    send(session.csrf_token());
    fn finish(exchange: Exchange) {
        if let Finish::Pending(reply) = exchange.finish(200) {
            send(reply);
        }
    }
    let _ = finish;
    let directory = session.sessions().of("alice");
    send(directory.open(SessionId::from_str("AAAAAAAAAAAAAAAAAAAAAA").unwrap()));
    fn job(mut session: OpenSession) {
        send(session.transact(|_| Ok(())));
        send(session.revoke());
    }
    let _ = job;
}
