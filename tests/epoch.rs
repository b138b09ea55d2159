//! A deployment whose epoch is changed in one process at a time.

#![cfg(all(feature = "testing", feature = "memory", feature = "redis", feature = "memcached"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use support::stand::{A, Backend, on_every_store};
use support::visit::visit;
use unsticky::testing::Verb;
use unsticky::{Session, Sessions};

async fn increment(session: Session) -> unsticky::Result<()> {
    session.update(A, |number| *number += 1)
}

async fn number(sessions: &Sessions, cookie: &str) -> Option<u32> {
    visit(sessions, cookie, async |session: Session| session.get(A)).await.ok()
}

async fn new_epoch_ends_every_session_without_extra_commands(on: Backend) {
    let stand = on.stand();
    let process = |epoch| stand.process(|builder| builder.epoch(epoch));
    let (old, new) = (process(1), process(2));
    let mut cookies = Vec::new();
    for principal in ["alice", "bob"] {
        let arrive = async |session: Session| {
            session.sign_in(principal)?;
            increment(session).await
        };
        cookies.push(visit(&old, "", arrive).await.cookie());
    }
    for cookie in &cookies {
        stand.spy.take();
        assert_eq!(number(&new, cookie).await, None, "signed out");
        assert_eq!(number(&old, cookie).await, Some(1), "the old processes still serve");
        assert_eq!(stand.spy.verbs(), [Verb::Load, Verb::Load], "one command each, as always");
    }
    // While both versions serve requests, a session in one epoch is unknown in the other.
    let begun = visit(&new, &cookies[0], increment).await.cookie();
    assert_eq!((number(&new, &begun).await, number(&old, &begun).await), (Some(1), None));
    let visited = visit(&old, &begun, async |session: Session| Ok(session.is_signed_in())).await;
    assert_eq!(visited.set_cookie, None, "the newer cookie stays in the browser");
    // Sessions that have ended stay ended, and the sessions of the new epoch continue.
    assert_eq!(number(&new, &cookies[1]).await, None);
    visit(&new, &begun, increment).await.ok();
    assert_eq!(number(&process(2), &begun).await, Some(2));
}

on_every_store! { new_epoch_ends_every_session_without_extra_commands }
