//! Regression tests for attacks on the crate. Each of these attacks once succeeded.

#![cfg(all(feature = "testing", feature = "memory", feature = "redis", feature = "memcached"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::poll;
use support::stand::{A, B, Backend, C, SEED, on_every_store, save_in_a_task};
use support::visit::{cookie_of, finish, rotate, sign_in, visit};
use unsticky::exchange::Exchange;
use unsticky::testing::{Fault, Verb};
use unsticky::{
    ConcurrentSessions, Cookie, DirectoryMode, ErrorKind, Lifetime, Result, Session, Sessions,
};

/// A thief's request began with a copied cookie. The session then ends, and its owner signs in again. The
/// thief's step-up fails and evicts no session.
async fn step_up_on_ended_session_fails_and_evicts_no_other_session(on: Backend) {
    for policy in [ConcurrentSessions::EvictOldest(1), ConcurrentSessions::Reject(1)] {
        for revokes in [false, true] {
            let namespace = format!("{revokes}-{}", policy == ConcurrentSessions::Reject(1));
            let stand =
                on.stand_with(|builder| builder.concurrent_sessions(policy).namespace(namespace));
            let copied = stand.signed_in("alice").await;
            let (exchange, thief) = stand.begin(&copied).await;
            if revokes {
                stand.sessions.of("alice").revoke_all().await.unwrap();
            } else {
                stand.sign_out(&copied).await;
            }
            let owner = stand.signed_in("alice").await;
            thief.step_up().unwrap();
            let reply = finish(exchange, 200).await;
            assert_eq!(reply.error.unwrap().kind(), ErrorKind::Gone, "{policy:?} {revokes}");
            assert!(stand.who(&owner).await.is_some(), "{policy:?} {revokes}");
        }
    }
}

/// A request steps up with a secret that another request has replaced. If the step-up counted as a sign-in,
/// the next sign-in would evict the newer session instead of the oldest one.
async fn step_up_with_old_secret_leaves_eviction_order_unchanged(on: Backend) {
    let stand =
        on.stand_with(|builder| builder.concurrent_sessions(ConcurrentSessions::EvictOldest(2)));
    let oldest = stand.signed_in("alice").await;
    let (exchange, session) = stand.begin(&oldest).await;
    let oldest = stand.visit(&oldest, rotate).await.cookie();
    stand.clock.advance(Duration::from_secs(1));
    let newer = stand.signed_in("alice").await;
    session.step_up().unwrap();
    assert_eq!(finish(exchange, 200).await.error.unwrap().kind(), ErrorKind::Gone);
    stand.clock.advance(Duration::from_secs(1));
    stand.signed_in("alice").await;
    assert!(stand.who(&newer).await.is_some() && stand.who(&oldest).await.is_none());
}

/// Another request has rotated the token, so the browser already holds the newer one. A write with the stale
/// token fails with `Gone`, even if the request signs out first, and the response has no cookie.
async fn stale_token_writes_nothing_and_gets_no_cookie(on: Backend) {
    let stand = on.stand();
    let stale = stand.signed_in("alice").await;
    let newest = stand.visit(&stale, rotate).await.cookie();
    let write = stand.visit(&stale, async |session: Session| session.insert(A, &1)).await;
    assert_eq!((write.failure(), write.set_cookie), (Some(ErrorKind::Gone), None));
    let ends_and_writes = async |session: Session| {
        session.sign_out();
        session.insert(A, &1)
    };
    let write = stand.visit(&stale, ends_and_writes).await;
    assert_eq!((write.failure(), write.set_cookie), (Some(ErrorKind::Gone), None));
    assert_eq!(stand.who(&newest).await.as_deref(), Some("alice"));
    // A sign-in with the stale token creates a separate session and ends no session.
    let again = stand.visit(&stale, sign_in).await;
    assert_eq!(again.failure(), None);
    assert!(stand.who(&again.cookie()).await.is_some() && stand.who(&newest).await.is_some());
}

/// The request counts the attempt with `transact` before it checks the password and signs in. The sign-in
/// still ends every session whose cookie the request presented.
async fn sign_in_after_transact_ends_every_presented_session(on: Backend) {
    let stand = on.stand_with(|builder| builder.concurrent_sessions(ConcurrentSessions::Reject(2)));
    for kind in ["alice", "bob"] {
        let cookies = [stand.signed_in(kind).await, stand.signed_in(kind).await];
        for cookie in &cookies {
            assert!(
                stand.who(cookie).await.is_some(),
                "the first use of the cookie confirms the sign-in"
            );
        }
        let both = cookies.join("; ");
        let counted = async |session: Session| {
            session.transact(|values| values.update(A, |number| *number += 1)).await?;
            session.sign_in("alice")
        };
        let signed_in = stand.visit(&both, counted).await;
        assert_eq!(signed_in.failure(), None, "{kind}");
        let all = format!("{both}; {}", signed_in.cookie());
        assert_eq!(stand.who(&all).await.as_deref(), Some("alice"), "{kind}");
        stand.sessions.of("alice").revoke_all().await.unwrap();
    }
}

/// The request presents two sessions, one of which another request rotates. The sign-in fails with
/// `Contended` and leaves no session of the new principal behind.
async fn sign_in_is_rolled_back_if_presented_session_is_rotated(on: Backend) {
    let stand = on.stand();
    let (bob, anonymous) = (stand.signed_in("bob").await, stand.seeded().await);
    let both = format!("{bob}; {anonymous}");
    let overtaken = stand.overtaken(&both, sign_in, async || {
        stand.visit(&bob, rotate).await.ok();
    });
    let overtaken = overtaken.await;
    assert_eq!((overtaken.failure(), overtaken.set_cookie), (Some(ErrorKind::Contended), None));
    assert_eq!(stand.sessions.of("alice").count().await.unwrap(), 0);
}

/// `take` returns a value whose write is in progress. A different request then takes the stored value, so the
/// first request fails with `ValueChanged`.
async fn value_taken_while_being_committed_is_handed_out_once(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let (exchange, session) = stand.begin(&cookie).await;
    session.insert(A, &5).unwrap();
    let gate = stand.store.hold(Verb::Replace);
    let saving = save_in_a_task(&session);
    gate.reached().await;
    assert_eq!(session.take(A).unwrap(), Some(5));
    gate.release();
    saving.await.unwrap().unwrap();
    let other = stand.visit(&cookie, async |session: Session| session.take(A)).await;
    assert_eq!(other.ok(), Some(5));
    let kind = finish(exchange, 200).await.error.map(|error| error.kind());
    assert_eq!(kind, Some(ErrorKind::ValueChanged));
}

/// The sign-in exceeds the limit on concurrent sessions and is refused. A value that the handler inserted
/// during the commit is stored all the same.
async fn refused_sign_in_keeps_changes_made_during_its_commit(on: Backend) {
    let stand = on.stand_with(|builder| builder.concurrent_sessions(ConcurrentSessions::Reject(1)));
    let other = stand.signed_in("alice").await;
    assert!(stand.who(&other).await.is_some(), "the first use of the cookie confirms the sign-in");
    let cookie = stand.seeded().await;
    let (exchange, session) = stand.begin(&cookie).await;
    session.sign_in("alice").unwrap();
    let gate = stand.store.hold(Verb::Load);
    let saving = save_in_a_task(&session);
    gate.reached().await;
    session.insert(B, &7).unwrap();
    gate.release();
    assert_eq!(saving.await.unwrap().unwrap_err().kind(), ErrorKind::TooManySessions);
    assert!(finish(exchange, 200).await.error.is_none());
    assert_eq!(stand.read(&cookie, B).await, Some(7));
}

/// A sign-in that began before a revocation is refused. A call of `revoke_others` while that sign-in is being
/// committed either fails, or sends a new cookie and invalidates the old secret.
async fn revoke_others_during_refused_sign_in_fails_or_invalidates_old_secret(on: Backend) {
    let stand = on.stand();
    let begun = stand.sessions.of("alice").begin_sign_in().await.unwrap();
    let cookie = stand.signed_in("alice").await;
    let revoke = async |session: Session| session.directory()?.revoke_others(&session).await;
    let cookie = {
        let visit = stand.visit(&cookie, revoke).await;
        visit.cookie()
    };
    let (exchange, session) = stand.begin(&cookie).await;
    session.sign_in_with(begun).unwrap();
    let gate = stand.store.hold(Verb::Load);
    let saving = save_in_a_task(&session);
    gate.reached().await;
    let revoking = tokio::spawn({
        let session = session.clone();
        async move { session.directory()?.revoke_others(&session).await }
    });
    tokio::task::yield_now().await;
    gate.release();
    assert_eq!(saving.await.unwrap().unwrap_err().kind(), ErrorKind::Revoked);
    let revoked = revoking.await.unwrap();
    let newest = cookie_of(&finish(exchange, 200).await);
    assert_eq!(revoked.is_ok(), newest.is_some());
    assert_eq!(stand.who(&cookie).await.is_none(), revoked.is_ok());
}

/// The handler signs out while a commit is in progress. The session ends, whether that commit succeeds or
/// fails because another request has stepped up.
async fn sign_out_during_failing_commit_still_ends_session(on: Backend) {
    for steps_up in [false, true] {
        let stand = on.stand();
        let cookie = stand.signed_in("alice").await;
        let (exchange, session) = stand.begin(&cookie).await;
        session.insert(A, &1).unwrap();
        let mut newest = cookie.clone();
        if steps_up {
            let step_up = async |session: Session| session.step_up();
            newest = stand.visit(&cookie, step_up).await.cookie();
        }
        let gate = stand.store.hold_answer(Verb::Replace);
        let saving = save_in_a_task(&session);
        gate.reached().await;
        session.sign_out();
        if !steps_up {
            stand.store.fail_always(Verb::Load, Fault::Unavailable);
            stand.store.fail_always(Verb::Replace, Fault::LoseAnswer);
        }
        gate.release();
        let saved = saving.await.unwrap();
        assert_eq!(saved.is_err(), steps_up);
        stand.store.heal();
        finish(exchange, 503).await;
        assert_eq!(stand.who(&newest).await, None, "{steps_up}");
    }
}

/// The update panics when it runs again on a newer record.
async fn update_that_panics_on_replay_fails_reload_and_commit(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let (exchange, session) = stand.begin(&cookie).await;
    let once = |number: &mut u32| {
        assert!(*number < 2, "as the test says");
        *number += 1;
    };
    session.update(SEED, once).unwrap();
    stand.write(&cookie, SEED, 2).await;
    assert_eq!(session.reload().await.unwrap_err().kind(), ErrorKind::UpdatePanicked);
    assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::UpdatePanicked);
    let kind = finish(exchange, 200).await.error.map(|error| error.kind());
    assert_eq!(kind, Some(ErrorKind::UpdatePanicked));
}

/// A stream sets the lifetime that the session had. Meanwhile, another request has set a different lifetime
/// and thereby replaced the secret.
async fn stream_gets_gone_for_lifetime_replaced_by_another_request(on: Backend) {
    let (first, second) = (Lifetime::nist_aal2(), Lifetime::owasp_low_risk());
    let stand = on.stand();
    let choose = |lifetime: Lifetime| {
        async move |session: Session| -> Result<()> {
            session.set_lifetime(lifetime);
            Ok(())
        }
    };
    let cookie = stand.signed_in("alice").await;
    let cookie = stand.visit(&cookie, choose(first)).await.cookie();
    let (exchange, session) = stand.begin(&cookie).await;
    finish(exchange, 200).await;
    session.set_lifetime(first);
    session.save().await.unwrap();
    stand.visit(&cookie, choose(second)).await.ok();
    session.set_lifetime(first);
    assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::Gone);
}

/// Once the response has been sent, changes that need a new cookie fail with `HeadSent`. They do not block
/// later changes that need none.
async fn stream_continues_after_operation_that_needs_cookie_fails(on: Backend) {
    type Deed = fn(&Session) -> Result<()>;
    let deeds: [Deed; 3] = [
        |session| {
            session.rotate();
            Ok(())
        },
        |session| {
            session.set_lifetime(Lifetime::nist_aal2());
            Ok(())
        },
        Session::step_up,
    ];
    let stand = on.stand();
    let cookie = stand.signed_in("alice").await;
    for deed in deeds {
        let (exchange, session) = stand.begin(&cookie).await;
        finish(exchange, 200).await;
        deed(&session).unwrap();
        assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::HeadSent);
        session.update(A, |number| *number += 1).unwrap();
        session.save().await.unwrap();
        let revoked = session.directory().unwrap().revoke_others(&session).await;
        assert_eq!(revoked.unwrap_err().kind(), ErrorKind::HeadSent);
        session.transact(|values| values.update(A, |number| *number += 1)).await.unwrap();
    }
    assert_eq!(stand.read(&cookie, A).await, Some(6));
    let (exchange, session) = stand.begin(&cookie).await;
    finish(exchange, 200).await;
    session.sign_out();
    session.insert(A, &1).unwrap();
    assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::HeadSent);
    assert_eq!(stand.who(&cookie).await, None, "the session has ended");
}

async fn stream_continues_after_in_doubt_write_once_reloaded(on: Backend) {
    let stand = on.stand();
    let cookie = stand.signed_in("alice").await;
    let (exchange, session) = stand.begin(&cookie).await;
    finish(exchange, 200).await;
    session.insert(A, &1).unwrap();
    stand.store.fail_always(Verb::Replace, Fault::LoseRequest);
    assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    stand.store.heal();
    session.reload().await.unwrap();
    session.insert(B, &2).unwrap();
    session.save().await.unwrap();
    assert_eq!(stand.read(&cookie, B).await, Some(2));
}

/// The session's directory record is deleted while two handles use the session.
async fn unlisted_session_cannot_write_or_revoke_in_strict_mode(on: Backend) {
    let stand = on.stand_with(|builder| builder.directory(DirectoryMode::Strict));
    let cookie = stand.signed_in("alice").await;
    let (exchange, session) = stand.begin(&cookie).await;
    finish(exchange, 200).await;
    stand.spy.take();
    stand.sessions.of("alice").begin_sign_in().await.unwrap();
    let directory = stand.spy.take()[0].key.clone();
    let (exchange, request) = stand.begin(&cookie).await;
    stand.spy.take();
    unsticky::Store::delete(&stand.spy, &directory, None).await.unwrap();
    session.insert(A, &1).unwrap();
    assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::Gone);
    let transact = session.transact(|values| values.get(SEED)).await;
    assert_eq!(transact.unwrap_err().kind(), ErrorKind::Gone);
    let revoked = request.directory().unwrap().revoke_others(&request).await;
    assert_eq!(revoked.unwrap_err().kind(), ErrorKind::Gone);
    drop(exchange);
}

/// The request that signed in keeps writing to the session while the browser uses the cookie for the first
/// time.
async fn first_use_of_cookie_confirms_sign_in_despite_concurrent_write(on: Backend) {
    let stand = on.stand_with(|builder| builder.concurrent_sessions(ConcurrentSessions::Reject(1)));
    for reads in [true, false] {
        let (exchange, stream) = stand.begin("").await;
        stream.sign_in("alice").unwrap();
        let cookie = cookie_of(&finish(exchange, 200).await).unwrap();
        let (exchange, session) = stand.begin(&cookie).await;
        if !reads {
            session.insert(A, &7).unwrap();
        }
        stream.insert(A, &7).unwrap();
        stream.save().await.unwrap();
        assert!(finish(exchange, 200).await.error.is_none());
        let second = stand.visit("", sign_in).await;
        assert_eq!(second.failure(), Some(ErrorKind::TooManySessions), "{reads}");
        stand.sign_out(&cookie).await;
    }
}

/// A future that is left unpolled for longer than the request timeout still succeeds when it is polled again.
async fn unpolled_future_does_not_use_up_request_timeout(on: Backend) {
    let stand = on.stand_with(|builder| builder.timeout(Duration::from_millis(200)));
    let cookie = stand.seeded().await;
    let exchange = Exchange::begin(&stand.sessions, [cookie.to_owned()], None);
    let gate = stand.store.hold_answer(Verb::Load);
    let mut kept = Box::pin(exchange.handle().session());
    while poll!(Box::pin(gate.reached())).is_pending() {
        assert!(poll!(&mut kept).is_pending());
        tokio::task::yield_now().await;
    }
    gate.release();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let session = kept.await.unwrap();
    session.insert(A, &1).unwrap();
    let gate = stand.store.hold_answer(Verb::Replace);
    let mut kept = Box::pin(session.save());
    while poll!(Box::pin(gate.reached())).is_pending() {
        assert!(poll!(&mut kept).is_pending());
        tokio::task::yield_now().await;
    }
    gate.release();
    tokio::time::sleep(Duration::from_millis(300)).await;
    session.insert(B, &2).unwrap();
    session.save().await.unwrap();
    kept.await.unwrap();
    assert!(finish(exchange, 200).await.error.is_none());
    assert_eq!((stand.read(&cookie, A).await, stand.read(&cookie, B).await), (Some(1), Some(2)));
}

/// Extractors that wait for the store at the same time share one timeout. Added up, the eight waits would
/// exceed it.
async fn concurrent_extractors_use_up_timeout_once(on: Backend) {
    let stand = on.stand_with(|builder| builder.timeout(Duration::from_secs(10)));
    let cookie = stand.seeded().await;
    let exchange = Exchange::begin(&stand.sessions, [cookie.to_owned()], None);
    let gates: Vec<_> = (0..8).map(|_| stand.store.hold(Verb::Load)).collect();
    let open = async {
        for gate in &gates {
            gate.reached().await;
        }
        tokio::time::sleep(Duration::from_millis(1500)).await;
        gates.iter().for_each(unsticky::testing::Gate::release);
    };
    let extractors = (0..8).map(|_| exchange.handle().session());
    let (sessions, ()) = futures_util::join!(join_all(extractors), open);
    let session = sessions.into_iter().next().unwrap().unwrap();
    session.insert(A, &1).unwrap();
    assert!(finish(exchange, 200).await.error.is_none());
    assert_eq!(stand.read(&cookie, A).await, Some(1));
}

/// Customers and administrators have the same namespace but different cookie names. Revoking all of a
/// principal's administrator sessions leaves the same principal's customer session alone.
async fn cookie_names_have_separate_directories_in_one_namespace(on: Backend) {
    let shared = |name: &'static str| {
        move |builder: unsticky::Builder| {
            let builder = builder.namespace("shop").cookie(Cookie::new(name));
            builder.concurrent_sessions(ConcurrentSessions::Reject(1))
        }
    };
    let customers = on.stand_with(shared("__Host-id"));
    let builder = Sessions::builder(customers.store.clone()).clock(customers.clock.clone());
    let admins = shared("__Host-admin")(builder).build().unwrap();
    let customer = customers.signed_in("1").await;
    assert!(customers.who(&customer).await.is_some());
    let admin = visit(&admins, "", async |session: Session| session.sign_in("1")).await;
    assert_eq!(admin.failure(), None);
    assert_eq!(admins.of("1").revoke_all().await.unwrap().count, 1);
    assert!(customers.who(&customer).await.is_some());
}

on_every_store! {
    step_up_on_ended_session_fails_and_evicts_no_other_session,
    step_up_with_old_secret_leaves_eviction_order_unchanged,
    stale_token_writes_nothing_and_gets_no_cookie,
    sign_in_after_transact_ends_every_presented_session,
    sign_in_is_rolled_back_if_presented_session_is_rotated,
    value_taken_while_being_committed_is_handed_out_once,
    refused_sign_in_keeps_changes_made_during_its_commit,
    revoke_others_during_refused_sign_in_fails_or_invalidates_old_secret,
    sign_out_during_failing_commit_still_ends_session,
    update_that_panics_on_replay_fails_reload_and_commit,
    stream_gets_gone_for_lifetime_replaced_by_another_request,
    stream_continues_after_operation_that_needs_cookie_fails,
    stream_continues_after_in_doubt_write_once_reloaded,
    unlisted_session_cannot_write_or_revoke_in_strict_mode,
    first_use_of_cookie_confirms_sign_in_despite_concurrent_write,
    unpolled_future_does_not_use_up_request_timeout,
    concurrent_extractors_use_up_timeout_once,
    cookie_names_have_separate_directories_in_one_namespace,
}

/// Another thread constantly changes a different key, which must not conflict with the update.
#[test]
fn update_succeeds_while_another_thread_changes_other_key() {
    let session = Session::detached();
    let (other, goes_on) = (session.clone(), Arc::new(AtomicBool::new(true)));
    let running = goes_on.clone();
    let noise = std::thread::spawn(move || {
        let mut number = 0;
        while running.load(Ordering::Relaxed) {
            other.insert(B, &number).unwrap();
            number += 1;
        }
    });
    for _ in 0..2000 {
        session.update(A, |number| *number += 1).unwrap();
    }
    goes_on.store(false, Ordering::Relaxed);
    noise.join().unwrap();
    assert_eq!(session.get(A).unwrap(), Some(2000));
}

/// The revocation waits for a save, which fails. It must not report success while the old secret is still
/// valid.
#[tokio::test(start_paused = true)]
async fn revoke_others_behind_failing_save_fails_or_invalidates_old_secret() {
    let stand = Backend::memory().stand();
    let cookie = stand.signed_in("alice").await;
    let (exchange, session) = stand.begin(&cookie).await;
    session.insert(A, &1).unwrap();
    let (gate, kept) = stand.held(Verb::Replace, session.save()).await;
    let directory = session.directory().unwrap();
    let mut revoke = Box::pin(directory.revoke_others(&session));
    assert!(poll!(&mut revoke).is_pending());
    stand.write(&cookie, B, 1).await;
    stand.store.inject(Verb::Replace, Fault::Refused);
    gate.release();
    assert!(kept.await.is_err());
    let revoked = revoke.await;
    finish(exchange, 200).await;
    assert!(revoked.is_err() || stand.who(&cookie).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn revoke_others_between_failing_saves_fails_or_invalidates_old_secret() {
    let stand = Backend::memory().stand();
    let cookie = stand.signed_in("alice").await;
    let (exchange, session) = stand.begin(&cookie).await;
    let directory = session.directory().unwrap();
    session.insert(A, &1).unwrap();
    let (gate, _one) = stand.held(Verb::Replace, session.save()).await;
    session.insert(B, &1).unwrap();
    let mut two = Box::pin(session.save());
    assert!(poll!(&mut two).is_pending());
    let mut revoke = Box::pin(directory.revoke_others(&session));
    assert!(poll!(&mut revoke).is_pending());
    stand.store.inject(Verb::Replace, Fault::Refused);
    gate.release();
    let revoked = revoke.await;
    finish(exchange, 200).await;
    assert!(revoked.is_err() || stand.who(&cookie).await.is_none());
}

/// The request is abandoned while the revocation waits for a save.
#[tokio::test(start_paused = true)]
async fn revoke_others_of_abandoned_request_fails_or_invalidates_old_secret() {
    let stand = Backend::memory().stand();
    let cookie = stand.signed_in("alice").await;
    let (exchange, session) = stand.begin(&cookie).await;
    let directory = session.directory().unwrap();
    session.insert(A, &1).unwrap();
    let (gate, one) = stand.held(Verb::Replace, session.save()).await;
    let mut revoke = Box::pin(directory.revoke_others(&session));
    assert!(poll!(&mut revoke).is_pending());
    drop(exchange);
    gate.release();
    let _ = one.await;
    let revoked = revoke.await;
    assert!(revoked.is_err() || stand.who(&cookie).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn take_of_value_inserted_during_commit_does_not_fail_request() {
    let stand = Backend::memory().stand();
    let cookie = stand.seeded().await;
    let (exchange, session) = stand.begin(&cookie).await;
    session.insert(A, &1).unwrap();
    let (gate, kept) = stand.held(Verb::Replace, session.save()).await;
    session.insert(C, &5).unwrap();
    assert_eq!(session.take(C).unwrap(), Some(5));
    session.insert(B, &3).unwrap();
    gate.release();
    kept.await.unwrap();
    assert_eq!(finish(exchange, 200).await.error.map(|error| error.kind()), None);
}

#[tokio::test(start_paused = true)]
async fn take_during_commit_returns_value_being_committed() {
    let stand = Backend::memory().stand();
    let cookie = stand.seeded().await;
    let (exchange, session) = stand.begin(&cookie).await;
    session.insert(SEED, &8).unwrap();
    let (gate, kept) = stand.held(Verb::Replace, session.save()).await;
    assert_eq!(session.take(SEED).unwrap(), Some(8));
    gate.release();
    kept.await.unwrap();
    assert_eq!(finish(exchange, 200).await.error.map(|error| error.kind()), None);
}

#[tokio::test(start_paused = true)]
async fn take_of_value_whose_commit_fails_does_not_fail_request() {
    let stand = Backend::memory().stand();
    let cookie = stand.seeded().await;
    let (exchange, session) = stand.begin(&cookie).await;
    session.insert(A, &1).unwrap();
    let (gate, _kept) = stand.held(Verb::Replace, session.save()).await;
    assert_eq!(session.take(A).unwrap(), Some(1));
    session.insert(B, &1).unwrap();
    stand.write(&cookie, C, 1).await;
    stand.store.inject(Verb::Replace, Fault::Refused);
    gate.release();
    assert_eq!(finish(exchange, 200).await.error.map(|error| error.kind()), None);
}

#[tokio::test(start_paused = true)]
async fn sign_out_then_sign_in_succeeds_despite_concurrent_sign_in() {
    let stand = Backend::memory().stand();
    let cookie = stand.seeded().await;
    let visit = stand
        .overtaken(
            &cookie,
            async |session: Session| {
                session.sign_out();
                session.sign_in("alice")
            },
            async || {
                stand.sign_in(&cookie).await;
            },
        )
        .await;
    assert_eq!(visit.failure(), None);
}

#[tokio::test(start_paused = true)]
async fn panicking_transact_leaves_no_commit_in_progress() {
    let stand = Backend::memory().stand();
    let cookie = stand.seeded().await;
    let (exchange, session) = stand.begin(&cookie).await;
    let own = session.clone();
    let joined = tokio::spawn(async move {
        own.transact(|_| -> Result<()> { panic!("as the test says") }).await
    })
    .await;
    assert!(joined.is_err());
    session.insert(C, &5).unwrap();
    assert_eq!(session.take(C).unwrap(), Some(5));
    session.insert(B, &3).unwrap();
    assert_eq!(finish(exchange, 200).await.error.map(|error| error.kind()), None);
}

#[tokio::test(start_paused = true)]
async fn revoke_all_left_unpolled_fails_within_timeout() {
    let stand = Backend::memory().stand();
    for _ in 0..50 {
        stand.signed_in("alice").await;
    }
    let cookie = stand.signed_in("alice").await;
    let (exchange, session) = stand.begin(&cookie).await;
    let directory = session.directory().unwrap();
    let gates: Vec<_> = (0..49).map(|_| stand.store.hold(Verb::Load)).collect();
    stand.store.fail_always(Verb::Load, Fault::Hang);
    let begun = tokio::time::Instant::now();
    let mut kept = Box::pin(directory.revoke_all());
    assert!(poll!(&mut kept).is_pending());
    gates[0].release();
    assert!(poll!(&mut kept).is_pending());
    gates[48].reached().await;
    for gate in &gates {
        gate.release();
    }
    tokio::time::advance(Duration::from_millis(400)).await;
    kept.await.unwrap_err();
    assert!(begun.elapsed() <= Duration::from_millis(1450), "{:?}", begun.elapsed());
    drop(exchange);
}

#[tokio::test(start_paused = true)]
async fn handle_of_abandoned_request_continues_after_in_doubt_write() {
    let stand = Backend::memory().stand();
    let cookie = stand.seeded().await;
    let (exchange, session) = stand.begin(&cookie).await;
    session.insert(A, &1).unwrap();
    stand.store.fail_always(Verb::Replace, Fault::LoseRequest);
    assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    stand.store.heal();
    drop(exchange);
    session.insert(B, &1).unwrap();
    session.save().await.unwrap();
    assert_eq!(stand.read(&cookie, B).await, Some(1));
}
