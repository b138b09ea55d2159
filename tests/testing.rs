//! The helpers for an application's own tests, in both frameworks.

#![cfg(all(feature = "testing", feature = "memory", feature = "axum", feature = "actix"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::time::Duration;

use support::app::{REMEMBERED, both};
use support::stand::{A, Backend, Stand};
use unsticky::testing::{self, Fault, Verb};
use unsticky::{ConcurrentSessions, DirectoryMode, ErrorKind, Key, SignIn};

const TEXT: Key<String> = Key::new("a");

#[tokio::test]
async fn test_cookie_is_signed_in_in_both_frameworks() {
    let stand = Backend::memory().stand();
    for app in both(&stand.sessions).await {
        let cookie = testing::signed_in(&stand.sessions, "alice", |_| Ok(())).await.unwrap();
        assert_eq!(app.run("who", &cookie).await.body, "alice", "{}", app.framework);
        assert_eq!(cookie.len(), "__Host-id=".len() + 43, "no attributes");
        assert_eq!(app.get("/profile", &cookie).await.body, "profile of alice");
        // The cookie works like any other: its session can be rotated and signed out.
        let renewed = app.run("rotate", &cookie).await.cookie();
        assert_eq!(app.run("who", &cookie).await.body, "-");
        app.run("sign-out", &renewed).await;
        assert_eq!(app.run("who", &renewed).await.body, "-");
    }
}

#[tokio::test]
async fn test_session_has_values_and_lifetime_set_by_closure() {
    let stand = Backend::memory().stand();
    for app in both(&stand.sessions).await {
        let cookie = testing::signed_in(&stand.sessions, "alice", |session| {
            assert_eq!(session.principal().as_deref(), Some("alice"));
            session.set_lifetime(REMEMBERED);
            session.insert(TEXT, "book")
        });
        let cookie = cookie.await.unwrap();
        assert_eq!(app.run("who,get:a", &cookie).await.body, "alice book");
        stand.clock.advance(Duration::from_secs(6 * 86_400));
        assert_eq!(app.run("who,get:a", &cookie).await.body, "alice book");
    }
}

#[tokio::test]
async fn test_session_expires_by_manual_clock() {
    let stand = Backend::memory().stand();
    for app in both(&stand.sessions).await {
        let cookie = testing::signed_in(&stand.sessions, "alice", |_| Ok(())).await.unwrap();
        stand.clock.advance(Duration::from_secs(30 * 60 - 1));
        assert_eq!(app.get("/profile", &cookie).await.status, 200);
        stand.clock.advance(Duration::from_secs(30 * 60));
        assert_eq!(app.get("/profile", &cookie).await.status, 401);
    }
}

#[tokio::test]
async fn session_is_listed_and_valid_in_strict_mode() {
    let stand = Backend::memory().stand_with(|builder| builder.directory(DirectoryMode::Strict));
    for app in both(&stand.sessions).await {
        let cookie = testing::signed_in(&stand.sessions, "alice", |_| Ok(())).await.unwrap();
        assert_eq!(app.run("who", &cookie).await.body, "alice");
        let alice = stand.sessions.of("alice");
        assert_eq!(alice.revoke_all().await.unwrap().count, 1);
        assert_eq!(app.run("who", &cookie).await.body, "-");
    }
}

#[tokio::test]
async fn session_limit_applies_to_test_sessions() {
    let stand = Backend::memory()
        .stand_with(|builder| builder.concurrent_sessions(ConcurrentSessions::EvictOldest(1)));
    let sign_in = async || testing::signed_in(&stand.sessions, "alice", |_| Ok(())).await;
    let (first, second) = (sign_in().await.unwrap(), sign_in().await.unwrap());
    for app in both(&stand.sessions).await {
        assert_eq!(app.run("who", &first).await.body, "-");
        assert_eq!(app.run("who", &second).await.body, "alice");
    }
}

#[tokio::test]
async fn handler_can_create_any_other_test_session() {
    let Stand { sessions, .. } = &Backend::memory().stand();
    let visitor = testing::cookie(sessions, async |session| session.insert(A, &1)).await.unwrap();
    let labelled = testing::cookie(sessions, async |session| {
        session.sign_in_with(SignIn::new("alice").label("Firefox"))?;
        session.save().await
    });
    let labelled = labelled.await.unwrap();
    let nobody = testing::cookie(sessions, async |_| Ok(())).await.unwrap();
    assert_eq!(nobody, "");
    for app in both(sessions).await {
        assert_eq!(app.run("who,get-number:a", &visitor).await.body, "- 1");
        assert_eq!(app.run("who,get-number:a", &labelled).await.body, "alice 0");
        assert_eq!(app.run("who,get-number:a", &nobody).await.body, "- 0");
    }
    let list = sessions.of("alice").list().await.unwrap();
    assert_eq!(list[0].label.as_deref(), Some("Firefox"));
}

#[tokio::test]
async fn failures_are_returned_and_leave_nothing_behind() {
    let stand = Backend::memory().stand();
    let failed = |session: &unsticky::Session| session.get(TEXT).and(session.step_up());
    let error = testing::cookie(&stand.sessions, async |session| {
        session.insert(TEXT, "book")?;
        failed(session)
    });
    assert_eq!(error.await.unwrap_err().kind(), ErrorKind::NotSignedIn);
    let error = testing::signed_in(&stand.sessions, "", |_| Ok(())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidPrincipal);
    assert!(stand.spy.commands().is_empty());
    stand.store.fail_always(Verb::Create, Fault::Refused);
    let error = testing::signed_in(&stand.sessions, "alice", |_| Ok(())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
}
