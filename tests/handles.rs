//! Several handles in one request, early commits, and the use of handles afterwards.

#![cfg(all(
    feature = "testing",
    feature = "memory",
    feature = "redis",
    feature = "memcached",
    feature = "axum",
    feature = "actix"
))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::time::Duration;

use support::app::{Gates, both_with};
use support::runtime;
use support::stand::{A, B, Backend, C, SEED, Stand, eventually, on_every_store, save_in_a_task};
use support::visit::{cookie_of, finish, rotate, sign_out};
use unsticky::exchange::{Exchange, Finish};
use unsticky::store::MemoryStore;
use unsticky::testing::{Fault, Verb};
use unsticky::{Cookie, ErrorKind, Lifetime, Result, Session, Sessions};

/// A save gets no answer and is settled by a load. Before that load, another request changes the
/// record. The first request's next write keeps that change.
async fn write_after_settled_write_keeps_concurrent_write(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let (e, s) = stand.begin(&cookie).await;
    s.update(A, |n| *n += 1).unwrap();
    stand.store.inject(Verb::Replace, Fault::LoseAnswer);
    let gate = stand.store.hold(Verb::Load);
    let other = async {
        gate.reached().await;
        stand.visit(&cookie, async |s: Session| s.insert(B, &2)).await.ok();
        gate.release();
    };
    let (r, ()) = futures_util::join!(s.save(), other);
    r.unwrap();
    s.insert(C, &3).unwrap();
    let r = finish(e, 200).await;
    assert!(r.error.is_none());
    assert_eq!(
        (stand.read(&cookie, A).await, stand.read(&cookie, B).await, stand.read(&cookie, C).await),
        (Some(1), Some(2), Some(3))
    );
}

/// A save gets no answer and is settled by a load. Before that load, another request signs in. The
/// first request's next write must not restore the old secret.
async fn write_after_settled_write_does_not_undo_sign_in(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let (e, s) = stand.begin(&cookie).await;
    s.update(A, |n| *n += 1).unwrap();
    stand.store.inject(Verb::Replace, Fault::LoseAnswer);
    let gate = stand.store.hold(Verb::Load);
    let mut signed = String::new();
    let other = async {
        gate.reached().await;
        signed = stand.sign_in(&cookie).await;
        gate.release();
    };
    let (saved, ()) = futures_util::join!(s.save(), other);
    saved.unwrap();
    s.insert(C, &3).unwrap();
    let r = finish(e, 200).await;
    assert_eq!(r.error.map(|error| error.kind()), Some(ErrorKind::Gone));
    assert_eq!(stand.who(&signed).await.as_deref(), Some("alice"));
    assert_eq!(stand.read(&cookie, SEED).await, None, "old secret valid again");
}

#[test]
fn update_function_may_read_session() {
    let (tx, rx) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime().block_on(async {
            let s = Session::detached();
            let c = s.clone();
            s.update(A, move |n| *n += u32::from(c.is_signed_in())).unwrap();
            s.sign_in("alice").unwrap();
            tx.send(()).unwrap();
        })
    });
    rx.recv_timeout(Duration::from_secs(3)).expect("sign_in deadlocked");
}

async fn sign_out_then_insert_sends_no_cookie_over_concurrent_sign_in(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let (e, s) = stand.begin(&cookie).await;
    stand.sign_in(&cookie).await;
    s.sign_out();
    s.insert(A, &1).unwrap();
    let r = finish(e, 200).await;
    assert_eq!(cookie_of(&r), None, "cookie overwrites alice's");
}

async fn sign_in_after_early_saved_rotation_starts_separate_session(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let (e1, s1) = stand.begin(&cookie).await;
    let (e2, s2) = stand.begin(&cookie).await;
    s1.rotate();
    s1.save().await.unwrap();
    s2.sign_in("alice").unwrap();
    // The secret was already replaced when this sign-in was saved, so the user is signed in to a new
    // session and both cookies are valid.
    let signed_in = cookie_of(&finish(e2, 200).await).unwrap();
    s1.insert(A, &1).unwrap();
    let rotated = cookie_of(&finish(e1, 200).await).unwrap();
    assert_eq!((stand.read(&rotated, A).await, stand.who(&rotated).await), (Some(1), None));
    assert_eq!(stand.who(&signed_in).await.as_deref(), Some("alice"));
    assert_eq!(stand.read(&signed_in, SEED).await, None);
}

async fn sign_out_ends_every_presented_session(on: Backend) {
    let stand = on.stand();
    let (a, b) = (stand.signed_in("alice").await, stand.signed_in("alice").await);
    stand
        .visit(&format!("{a}; {b}"), async |s: Session| {
            s.sign_out();
            s.insert(A, &1)
        })
        .await
        .ok();
    assert_eq!((stand.who(&a).await, stand.who(&b).await), (None, None));
}

async fn sign_out_with_several_tokens_spares_concurrent_sign_in(on: Backend) {
    let stand = on.stand();
    let (a, b) = (stand.seeded().await, stand.seeded().await);
    let (e, s) = stand.begin(&format!("{a}; {b}")).await;
    let alice = stand.sign_in(&a).await;
    s.sign_out();
    finish(e, 200).await;
    assert_eq!(stand.who(&alice).await.as_deref(), Some("alice"));
}

async fn value_taken_before_leaving_session_is_handed_out_once(on: Backend) {
    for with in ["destroy", "switch"] {
        let stand = on.stand();
        let cookie = stand.signed_in("alice").await;
        let (e1, s1) = stand.begin(&cookie).await;
        let (e2, s2) = stand.begin(&cookie).await;
        let mut got = 0;
        for (e, s) in [(e1, s1), (e2, s2)] {
            let v = s.take(SEED).unwrap();
            if with == "destroy" {
                s.destroy();
                s.insert(B, &1).unwrap();
            } else {
                s.sign_in("bob").unwrap();
            }
            if finish(e, 200).await.error.is_none() && v.is_some() {
                got += 1;
            }
        }
        assert_eq!(got, 1, "{with}");
    }
}

/// A sign-out ends the session even if an earlier save in the same request stays in doubt.
async fn sign_out_takes_effect_after_failed_save(on: Backend) {
    for status in [200, 500] {
        let stand = on.stand();
        let cookie = stand.signed_in("alice").await;
        let (e, s) = stand.begin(&cookie).await;
        s.update(A, |n| *n += 1).unwrap();
        stand.store.inject(Verb::Replace, Fault::LoseAnswer);
        stand.store.fail_always(Verb::Load, Fault::Unavailable);
        assert!(s.save().await.is_err());
        stand.store.heal();
        s.sign_out();
        let r = finish(e, status).await;
        let expected = (status == 200).then_some(ErrorKind::OutcomeUnknown);
        assert_eq!(r.error.map(|error| error.kind()), expected);
        assert_eq!(stand.who(&cookie).await, None, "{status}: still signed in");
    }
}

/// Another request signs in on the session. Whatever the first request then does with its handle, a
/// value that it writes goes neither to that session nor to a new one.
async fn lost_session_is_not_replaced_by_new_session(on: Backend) {
    for how in ["rotate", "sign_out", "reload"] {
        let stand = on.stand();
        let cookie = stand.seeded().await;
        let (e, s) = stand.begin(&cookie).await;
        let alice = stand.sign_in(&cookie).await;
        match how {
            "rotate" => {
                s.rotate();
                s.save().await.unwrap();
            }
            "sign_out" => {
                s.sign_out();
                s.save().await.unwrap();
            }
            _ => assert_eq!(s.reload().await.unwrap_err().kind(), ErrorKind::Gone),
        }
        // There is nothing to save, but the handle must remember that its session was replaced.
        s.save().await.unwrap();
        s.insert(A, &1).unwrap();
        let r = finish(e, 200).await;
        assert_eq!(r.error.map(|error| error.kind()), Some(ErrorKind::Gone), "{how}");
        assert_eq!(stand.who(&alice).await.as_deref(), Some("alice"));
        assert_eq!(r.set_cookie, None, "{how}");
    }
}

/// A request signs in as Bob, writes a value, and signs in as Alice. Alice does not see Bob's value.
async fn sign_in_as_another_principal_hides_previous_values(on: Backend) {
    let stand = on.stand();
    let cookie = stand.signed_in("alice").await;
    let v = stand
        .visit(&cookie, async |s: Session| {
            s.sign_in("bob")?;
            s.insert(A, &7)?;
            s.sign_in("alice")?;
            s.get(A)
        })
        .await;
    assert_eq!(v.ok(), None);
    let v = stand
        .visit("", async |s: Session| {
            s.sign_in("bob")?;
            s.insert(A, &7)?;
            s.sign_in("alice")?;
            s.get(A)
        })
        .await;
    assert_eq!(v.ok(), None, "anon");
}

/// A delayed copy of the create reaches the store after the session was signed out.
async fn late_copy_of_create_does_not_restore_session(on: Backend) {
    let stand = on.stand();
    let p = stand.late.postpone(Verb::Create);
    let cookie = stand.signed_in("alice").await;
    assert_eq!(stand.who(&cookie).await.as_deref(), Some("alice"));
    stand.visit(&cookie, sign_out).await.ok();
    assert_eq!(stand.who(&cookie).await, None);
    assert!(p.deliver().await);
    assert_eq!(stand.who(&cookie).await, None);
}

async fn changes_of_failed_request_are_not_saved_later(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let (e, s) = stand.begin(&cookie).await;
    s.insert(A, &1).unwrap();
    finish(e, 500).await;
    s.insert(B, &1).unwrap();
    s.save().await.unwrap();
    assert_eq!(stand.read(&cookie, A).await, None);
}

/// The response fails while a rotation is being written. The browser must not be left with an invalid
/// cookie.
async fn rotation_in_progress_at_failed_response_keeps_session_usable(on: Backend) {
    let stand = on.stand();
    let cookie = stand.signed_in("alice").await;
    let (e, s) = stand.begin(&cookie).await;
    s.rotate();
    let gate = stand.store.hold(Verb::Replace);
    {
        let mut save = Box::pin(s.save());
        tokio::select! { _ = &mut save => panic!(), () = gate.reached() => {} }
    }
    let mut end = Box::pin(finish(e, 500));
    assert!(futures_util::poll!(&mut end).is_pending());
    gate.release();
    let r = end.await;
    // After this call, all work in progress has completed.
    let _ = s.save().await;
    let now = cookie_of(&r).unwrap_or(cookie);
    assert_eq!(
        stand.who(&now).await.as_deref(),
        Some("alice"),
        "signed out by a cookie that was never sent"
    );
}

/// The request ends while a `transact` is still creating its session. The response waits, and sets the
/// cookie.
async fn session_being_created_gets_its_cookie_into_response(on: Backend) {
    let stand = on.stand();
    let (e, s) = stand.begin("").await;
    let gate = stand.store.hold(Verb::Create);
    let transact = tokio::spawn({
        let s = s.clone();
        async move { s.transact(|v| v.insert(A, &1)).await }
    });
    gate.reached().await;
    let mut end = Box::pin(finish(e, 200));
    assert!(futures_util::poll!(&mut end).is_pending());
    gate.release();
    transact.await.unwrap().unwrap();
    assert!(cookie_of(&end.await).is_some(), "stored, but no cookie was set");
}

/// While a `destroy` and a new value are being committed, the handle calls `rotate`. The new session must
/// not be destroyed as well.
async fn rotation_during_commit_does_not_repeat_committed_destroy(on: Backend) {
    let stand = on.stand();
    let cookie = stand.signed_in("alice").await;
    let (e, s) = stand.begin(&cookie).await;
    s.destroy();
    s.insert(A, &1).unwrap();
    let gate = stand.store.hold(Verb::Create);
    let other = async {
        gate.reached().await;
        s.rotate();
        gate.release();
    };
    let (r, ()) = futures_util::join!(s.save(), other);
    r.unwrap();
    let r = finish(e, 200).await;
    assert_eq!(stand.read(&cookie_of(&r).unwrap(), A).await, Some(1));
}

async fn change_during_commit_of_abandoned_request_is_kept(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let (e, s) = stand.begin(&cookie).await;
    s.insert(A, &1).unwrap();
    let gate = stand.store.hold(Verb::Replace);
    let save = save_in_a_task(&s);
    gate.reached().await;
    drop(e);
    s.insert(B, &2).unwrap();
    gate.release();
    save.await.unwrap().unwrap();
    s.save().await.unwrap();
    assert_eq!(stand.read(&cookie, B).await, Some(2), "lost");
}

#[tokio::test]
async fn expired_session_is_not_revived_while_still_stored() {
    let stand = Stand::over(Backend::memory().store(), |builder| builder);
    for writes in [false, true] {
        let cookie = stand.seeded().await;
        let expires = async |s: Session| {
            stand.clock.advance(Duration::from_secs(1800));
            if writes { s.insert(A, &1) } else { Ok(()) }
        };
        stand.visit(&cookie, expires).await;
        assert_eq!(
            stand.read(&cookie, SEED).await,
            None,
            "writes={writes}: the expired session was revived"
        );
    }
}

async fn abandoned_request_does_not_invalidate_secret(on: Backend) {
    let stand = on.stand();
    let cookie = stand.signed_in("alice").await;
    let (e, s) = stand.begin(&cookie).await;
    drop(e);
    s.rotate();
    assert_eq!(stand.who(&cookie).await.as_deref(), Some("alice"));
}

async fn response_future_dropped_unpolled_still_ends_session(on: Backend) {
    let stand = on.stand();
    let cookie = stand.signed_in("alice").await;
    let (e, s) = stand.begin(&cookie).await;
    s.sign_out();
    drop(e.finish(200));
    eventually(async || stand.who(&cookie).await.is_none(), "the session was not ended").await;
}

async fn failed_transact_leaves_pending_sign_out_for_response(on: Backend) {
    let stand = on.stand();
    let cookie = stand.signed_in("alice").await;
    let (e, s) = stand.begin(&cookie).await;
    s.sign_out();
    let refused = s.transact(|_| Err::<(), _>(unsticky::Error::refused("no"))).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(stand.who(&cookie).await.as_deref(), Some("alice"));
    let r = finish(e, 200).await;
    assert!(r.error.is_none() && r.set_cookie.unwrap().contains("Max-Age=0"));
    assert_eq!(stand.who(&cookie).await, None);
}

#[tokio::test]
async fn error_response_keeps_cookies_of_inner_layers() {
    let inner = Sessions::builder(MemoryStore::new()).build().unwrap();
    let cookie = Cookie::new("__Host-admin");
    let outer = Backend::memory().stand_with(|builder| builder.cookie(cookie));
    outer.store.fail_always(Verb::Create, Fault::Unavailable);
    for app in both_with(&[inner, outer.sessions], Gates::default()).await {
        let reply = app.get("/both", "").await;
        assert_eq!(reply.status, 503, "{reply:?}");
        assert!(reply.cookie().starts_with("__Host-id="), "{reply:?}");
    }
}

/// The value equals the one in the old session, but it was written after the sign-out. It is therefore
/// a change, and its loss is reported.
async fn insert_after_sign_out_is_not_compared_with_old_session(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let (e, s) = stand.begin(&cookie).await;
    stand.sign_in(&cookie).await;
    s.sign_out();
    s.insert(SEED, &1).unwrap();
    let r = finish(e, 200).await;
    assert_eq!((cookie_of(&r), r.error.map(|e| e.kind())), (None, Some(ErrorKind::Gone)));
}

async fn sign_in_recovers_request_whose_session_was_lost(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let (e, s) = stand.begin(&cookie).await;
    stand.visit(&cookie, sign_out).await.ok();
    s.rotate();
    s.save().await.unwrap();
    s.sign_in("alice").unwrap();
    s.save().await.unwrap();
    s.insert(A, &1).unwrap();
    let r = finish(e, 200).await;
    assert!(r.error.is_none(), "{r:?}");
    let cookie = cookie_of(&r).unwrap();
    assert_eq!(stand.read(&cookie, A).await, Some(1));
    assert_eq!(stand.who(&cookie).await.as_deref(), Some("alice"));
}

/// A change without effect needs no write. It is also left out of later commits by the same handle,
/// which would overwrite the values of other requests.
async fn change_without_effect_is_not_saved_after_response(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let (exchange, session) = stand.begin(&cookie).await;
    session.insert(SEED, &1).unwrap();
    assert_eq!(finish(exchange, 200).await.error.map(|error| error.kind()), None);
    stand.write(&cookie, SEED, 2).await;
    session.insert(A, &1).unwrap();
    session.save().await.unwrap();
    assert_eq!((stand.read(&cookie, SEED).await, stand.read(&cookie, A).await), (Some(2), Some(1)));
}

/// A new session would need a cookie, which would replace the newer one that the browser may already
/// hold.
async fn write_with_old_secret_starts_no_new_session(on: Backend) {
    let stand = on.stand();
    let old = stand.seeded().await;
    let newer = stand.visit(&old, rotate).await.cookie();
    let late = stand.visit(&old, async |session: Session| session.insert(A, &1)).await;
    assert_eq!((late.failure(), late.set_cookie), (Some(ErrorKind::Gone), None));
    assert_eq!((stand.read(&newer, SEED).await, stand.read(&newer, A).await), (Some(1), None));
}

/// If the session has ended, there is no lifetime left to change, so nothing is lost. If another
/// request has signed in, the change is lost, so the request fails.
async fn lifetime_change_of_lost_session_fails_only_if_session_lives(on: Backend) {
    for lives in [false, true] {
        let stand = on.stand();
        let overtake = async |cookie: &str| match lives {
            true => drop(stand.sign_in(cookie).await),
            false => stand.sign_out(cookie).await,
        };
        let gone = lives.then_some(ErrorKind::Gone);
        let cookie = stand.seeded().await;
        let (exchange, session) = stand.begin(&cookie).await;
        overtake(&cookie).await;
        assert_eq!(session.reload().await.unwrap_err().kind(), ErrorKind::Gone);
        session.set_lifetime(Lifetime::nist_aal2());
        let reply = finish(exchange, 200).await;
        assert_eq!((reply.error.map(|error| error.kind()), reply.set_cookie), (gone, None));
        // The outcome is the same if a sign-out after the response has already found that the session
        // is gone.
        let cookie = stand.seeded().await;
        let (exchange, session) = stand.begin(&cookie).await;
        overtake(&cookie).await;
        session.sign_out();
        session.insert(A, &1).unwrap();
        assert_eq!(finish(exchange, 200).await.error.unwrap().kind(), ErrorKind::Gone);
        session.set_lifetime(Lifetime::nist_aal2());
        assert_eq!(session.save().await.err().map(|error| error.kind()), gone, "{lives}");
    }
}

/// The request changes and saves a value, but when it ends it sends no command to extend the session.
async fn request_with_replaced_secret_does_not_extend_idle_timeout(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    stand.clock.advance(Duration::from_secs(600));
    let rotate_passively = async |session: Session| {
        session.mark_passive();
        rotate(session).await
    };
    let (exchange, session) = stand.begin(&cookie).await;
    let newer = stand.visit(&cookie, rotate_passively).await.cookie();
    session.insert(A, &1).unwrap();
    session.save().await.unwrap();
    stand.spy.take();
    assert_eq!(finish(exchange, 200).await.error.map(|error| error.kind()), None);
    assert_eq!(stand.spy.verbs(), []);
    stand.clock.advance(Duration::from_secs(1200));
    assert_eq!(stand.read(&newer, A).await, None);
}

/// The values of an in-doubt commit are no longer visible, but changes made while it ran are.
async fn change_during_in_doubt_commit_stays_visible(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let (exchange, session) = stand.begin(&cookie).await;
    session.insert(A, &1).unwrap();
    let _lost = stand.late.postpone(Verb::Replace);
    let gate = stand.store.hold(Verb::Replace);
    stand.store.fail_always(Verb::Load, Fault::Unavailable);
    let (saved, ()) = tokio::join!(session.save(), async {
        gate.reached().await;
        session.insert(B, &2).unwrap();
        gate.release();
    });
    assert_eq!(saved.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    stand.store.heal();
    assert_eq!((session.get(SEED).unwrap(), session.get(B).unwrap()), (Some(1), Some(2)));
    assert_eq!(session.get(A).unwrap(), None);
    assert_eq!(finish(exchange, 200).await.error.unwrap().kind(), ErrorKind::OutcomeUnknown);
}

/// Each commit returns the error until the record is reloaded.
async fn outcome_unknown_after_response_is_reported_until_reload(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let (exchange, session) = stand.begin(&cookie).await;
    finish(exchange, 200).await;
    session.insert(A, &1).unwrap();
    drop(stand.store.hold(Verb::Load));
    stand.store.inject(Verb::Replace, Fault::LoseAnswer);
    stand.store.fail_always(Verb::Load, Fault::Unavailable);
    assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    stand.store.heal();
    session.insert(B, &2).unwrap();
    assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    session.reload().await.unwrap();
    session.insert(C, &3).unwrap();
    session.save().await.unwrap();
    assert_eq!((stand.read(&cookie, A).await, stand.read(&cookie, C).await), (Some(1), Some(3)));
}

/// A request with several tokens is anonymous. After the response, its handle continues with the
/// session that it created.
async fn value_taken_from_session_created_despite_several_tokens_is_handed_out_once(on: Backend) {
    let stand = on.stand();
    let (one, two) = (stand.seeded().await, stand.seeded().await);
    let (exchange, session) = stand.begin(&format!("{one}; {two}")).await;
    session.insert(A, &7).unwrap();
    let cookie = cookie_of(&finish(exchange, 200).await).unwrap();
    assert_eq!(session.take(A).unwrap(), Some(7));
    let take = async |session: Session| session.take(A);
    assert_eq!(stand.visit(&cookie, take).await.ok(), Some(7));
    session.sign_out();
    assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::ValueChanged);
}

/// After a panic in the function that was passed to `transact`, the session works as if the function
/// had not been called.
async fn panic_in_transaction_leaves_session_usable(on: Backend) {
    let stand = on.stand();
    let (exchange, session) = stand.begin("").await;
    session.insert(A, &1).unwrap();
    let panicking = tokio::spawn({
        let session = session.clone();
        async move { session.transact(|_| -> Result<()> { panic!("as the test says") }).await }
    });
    assert!(panicking.await.unwrap_err().is_panic());
    assert_eq!(session.take(A).unwrap(), Some(1));
    session.insert(B, &2).unwrap();
    let gate = stand.store.hold(Verb::Create);
    let (saved, ()) = tokio::join!(session.save(), async {
        gate.reached().await;
        session.insert(A, &3).unwrap();
        gate.release();
    });
    saved.unwrap();
    let reply = finish(exchange, 200).await;
    let cookie = cookie_of(&reply).unwrap();
    assert_eq!(reply.error.map(|error| error.kind()), None);
    assert_eq!((stand.read(&cookie, A).await, stand.read(&cookie, B).await), (Some(3), Some(2)));
}

/// A request that only reads its session starts no task, takes no lock and does not wait.
async fn request_without_changes_finishes_without_waiting(on: Backend) {
    let stand = on.stand();
    for cookie in [stand.seeded().await, String::new()] {
        for status in [200, 500] {
            let (exchange, session) = stand.begin(&cookie).await;
            session.get(SEED).unwrap();
            let Finish::Ready(reply) = exchange.finish(status) else { panic!("{status}") };
            assert!(reply.vary && reply.set_cookie.is_none() && reply.error.is_none());
        }
    }
}

async fn vary_field_is_added_unless_response_has_it(on: Backend) {
    let stand = on.stand();
    let (exchange, _session) = stand.begin("").await;
    let reply = finish(exchange, 200).await;
    for fields in [&[][..], &["accept"], &["accept, x-cookie", "origin"]] {
        assert!(reply.adds_vary(fields.iter().map(|field| field.as_bytes())), "{fields:?}");
    }
    for fields in [&["*"][..], &["Cookie"], &["accept,  COOKIE"], &["accept", "origin, cookie"]] {
        assert!(!reply.adds_vary(fields.iter().map(|field| field.as_bytes())), "{fields:?}");
    }
    let unused = Exchange::begin(&stand.sessions, [""], None);
    assert!(!finish(unused, 200).await.adds_vary([]));
}

/// The commit runs in a task of a runtime that shuts down before the commit completes.
#[test]
fn response_returns_error_if_runtime_shuts_down_during_commit() {
    let (one, two) = (runtime(), runtime());
    let stand = Backend::memory().stand();
    let (exchange, session, cookie) = one.block_on(async {
        let cookie = stand.seeded().await;
        let (exchange, session) = stand.begin(&cookie).await;
        (exchange, session, cookie)
    });
    session.insert(A, &1).unwrap();
    let gate = stand.store.hold(Verb::Replace);
    let within = one.enter();
    let Finish::Pending(mut reply) = exchange.finish(200) else { panic!("nothing to do") };
    drop(within);
    two.block_on(async {
        assert!(futures_util::poll!(&mut reply).is_pending());
        gate.reached().await;
        // A second commit waits for this one, so the first continues in a task.
        let mut other = Box::pin(session.save());
        assert!(futures_util::poll!(&mut other).is_pending());
    });
    drop(one);
    let reply = two.block_on(reply);
    assert_eq!(reply.error.map(|error| error.kind()), Some(ErrorKind::OutcomeUnknown));
    assert_eq!(reply.set_cookie, None);
    assert_eq!(two.block_on(stand.read(&cookie, A)), None);
}

on_every_store! {
    write_after_settled_write_keeps_concurrent_write,
    write_after_settled_write_does_not_undo_sign_in,
    sign_out_then_insert_sends_no_cookie_over_concurrent_sign_in,
    sign_in_after_early_saved_rotation_starts_separate_session,
    sign_out_ends_every_presented_session,
    sign_out_with_several_tokens_spares_concurrent_sign_in,
    value_taken_before_leaving_session_is_handed_out_once,
    sign_out_takes_effect_after_failed_save,
    lost_session_is_not_replaced_by_new_session,
    sign_in_as_another_principal_hides_previous_values,
    late_copy_of_create_does_not_restore_session,
    changes_of_failed_request_are_not_saved_later,
    rotation_in_progress_at_failed_response_keeps_session_usable,
    session_being_created_gets_its_cookie_into_response,
    rotation_during_commit_does_not_repeat_committed_destroy,
    change_during_commit_of_abandoned_request_is_kept,
    abandoned_request_does_not_invalidate_secret,
    response_future_dropped_unpolled_still_ends_session,
    failed_transact_leaves_pending_sign_out_for_response,
    insert_after_sign_out_is_not_compared_with_old_session,
    sign_in_recovers_request_whose_session_was_lost,
    change_without_effect_is_not_saved_after_response,
    write_with_old_secret_starts_no_new_session,
    lifetime_change_of_lost_session_fails_only_if_session_lives,
    request_with_replaced_secret_does_not_extend_idle_timeout,
    change_during_in_doubt_commit_stays_visible,
    outcome_unknown_after_response_is_reported_until_reload,
    value_taken_from_session_created_despite_several_tokens_is_handed_out_once,
    panic_in_transaction_leaves_session_usable,
    vary_field_is_added_unless_response_has_it,
    request_without_changes_finishes_without_waiting,
}
