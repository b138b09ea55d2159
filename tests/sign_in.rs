//! Signing in: with several cookies, under several names, with a lifetime, and under a limit.

#![cfg(all(feature = "testing", feature = "memory", feature = "redis", feature = "memcached"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::time::Duration;

use support::stand::{A, Backend, SEED, Stand, eventually, on_every_store};
use support::visit::{Visit, cookie_of, finish, rotate, sign_in, sign_out, visit};
use unsticky::store::Kind;
use unsticky::testing::{Fault, Verb};
use unsticky::{
    Builder, Clock as _, ConcurrentSessions, Cookie, DirectoryMode, ErrorKind, Key, Lifetime,
    Session, Sessions,
};

const DAY: Duration = Duration::from_secs(86_400);
const REMEMBERED: Lifetime = Lifetime::new(DAY.saturating_mul(30), DAY.saturating_mul(90));

fn rejects(builder: Builder) -> Builder {
    builder.concurrent_sessions(ConcurrentSessions::Reject(1))
}

/// The browser sends two valid cookies, and the sign-in sets a new one. Both old sessions must end.
async fn sign_in_ends_every_presented_session(on: Backend) {
    let stand = on.stand();
    for (one, two) in [("", ""), ("alice", ""), ("alice", "alice"), ("alice", "bob")] {
        let cookies = [session_of(&stand, one).await, session_of(&stand, two).await];
        let both = cookies.join("; ");
        let signed_in = stand.visit(&both, sign_in).await;
        assert_eq!(signed_in.failure(), None, "{one:?} {two:?}");
        let all = format!("{both}; {}", signed_in.cookie());
        assert_eq!(stand.who(&all).await.as_deref(), Some("alice"), "{one:?} {two:?}");
        for cookie in &cookies {
            assert_eq!(stand.who(cookie).await, None, "{one:?} {two:?}");
        }
    }
}

async fn session_of(stand: &Stand, principal: &str) -> String {
    if principal.is_empty() { stand.seeded().await } else { stand.signed_in(principal).await }
}

async fn sessions_ended_by_sign_in_do_not_count_against_limit(on: Backend) {
    for policy in [ConcurrentSessions::Reject(2), ConcurrentSessions::EvictOldest(3)] {
        let namespace = format!("limit-{}", policy == ConcurrentSessions::Reject(2));
        let stand =
            on.stand_with(|builder| builder.concurrent_sessions(policy).namespace(namespace));
        let (one, two) = (stand.signed_in("alice").await, stand.signed_in("alice").await);
        for cookie in [&one, &two] {
            assert!(
                stand.who(cookie).await.is_some(),
                "the first use of the cookie confirms the sign-in"
            );
        }
        let oldest_elsewhere = match policy {
            ConcurrentSessions::EvictOldest(_) => Some(stand.signed_in("alice").await),
            _ => None,
        };
        let new = stand.visit(&format!("{one}; {two}"), sign_in).await;
        assert_eq!(new.failure(), None, "{policy:?}");
        assert!(stand.who(&new.cookie()).await.is_some(), "{policy:?}");
        if let Some(elsewhere) = oldest_elsewhere {
            assert!(stand.who(&elsewhere).await.is_some(), "nobody was evicted");
        }
        let left = stand.sessions.of("alice").count().await.unwrap();
        assert_eq!(
            left,
            usize::from(new.set_cookie.is_some())
                + usize::from(policy == ConcurrentSessions::EvictOldest(3))
        );
    }
}

/// The sign-in fails and deletes its new session. Otherwise the browser would have a second valid
/// cookie, and its next request would be anonymous.
async fn sign_in_fails_if_presented_session_cannot_be_ended(on: Backend) {
    for fault in [Fault::Unavailable, Fault::Refused] {
        let stand = on.stand_with(|builder| {
            rejects(builder).command_retries(0).namespace(format!("{fault:?}"))
        });
        let (one, two) = (stand.seeded().await, stand.seeded().await);
        let both = format!("{one}; {two}");
        // Lets the first delete pass, so that the second fails.
        drop(stand.store.hold(Verb::Delete));
        stand.store.inject(Verb::Delete, fault);
        let failed = stand.visit(&both, sign_in).await;
        let kind =
            if fault == Fault::Refused { ErrorKind::Refused } else { ErrorKind::Unavailable };
        assert_eq!((failed.failure(), &failed.set_cookie), (Some(kind), &None));
        assert_eq!(stand.sessions.of("alice").count().await.unwrap(), 0, "{fault:?}");
        // One of the two sessions has ended, so the next request is no longer anonymous.
        assert_eq!(stand.read(&both, SEED).await, Some(1), "{fault:?}");
        let again = stand.visit(&both, sign_in).await;
        assert_eq!(again.failure(), None, "{fault:?}");
        let all = format!("{both}; {}", again.cookie());
        assert_eq!(stand.who(&all).await.as_deref(), Some("alice"), "{fault:?}");
    }
}

/// A session that another request has rotated in the meantime must not be ended by this request. If the
/// session belongs to the same principal, the sign-in fails, because it would exceed the limit.
async fn sign_in_beside_concurrently_rotated_session_keeps_limit(on: Backend) {
    let stand = on.stand_with(rejects);
    let (bob, alice) = (stand.signed_in("bob").await, stand.signed_in("alice").await);
    assert!(stand.who(&alice).await.is_some(), "the first use of the cookie confirms the sign-in");
    let mut newest = String::new();
    let both = format!("{bob}; {alice}");
    let overtaken = stand.overtaken(&both, sign_in, async || {
        newest = stand.visit(&alice, rotate).await.cookie();
    });
    let overtaken = overtaken.await;
    assert_eq!((overtaken.failure(), overtaken.set_cookie), (Some(ErrorKind::Contended), None));
    assert_eq!(stand.who(&newest).await.as_deref(), Some("alice"));
    assert_eq!(stand.sessions.of("alice").count().await.unwrap(), 1);
}

/// Two applications use one store and differ only in the cookie name.
async fn applications_with_different_cookie_names_are_isolated(on: Backend) {
    let one = on.stand_with(|builder| builder.cookie(Cookie::new("__Host-one")));
    let two = one.process(|builder| {
        let builder = builder.cookie(Cookie::new("__Host-two"));
        builder.concurrent_sessions(ConcurrentSessions::EvictOldest(1))
    });
    let first = one.signed_in("alice").await;
    let second = visit(&two, "", sign_in).await.cookie();
    assert!(first.starts_with("__Host-one=") && second.starts_with("__Host-two="));
    let under_the_other_name = first.replace("-one", "-two");
    let who = async |session: Session| Ok(session.principal());
    assert_eq!(visit(&two, &under_the_other_name, who).await.ok(), None);
    // Neither application lists, limits or revokes the other's sessions.
    assert!(one.who(&first).await.is_some());
    assert_eq!(one.sessions.of("alice").count().await.unwrap(), 1);
    assert_eq!(two.of("alice").revoke_all().await.unwrap().count, 1);
    assert!(one.who(&first).await.is_some());
}

/// Both applications use the same namespace. Also tries cookie names that contain each other.
async fn token_is_invalid_under_another_cookie_name(on: Backend) {
    let name = |name: &'static str| {
        move |builder: Builder| builder.namespace("shared").cookie(Cookie::new(name))
    };
    let customers = on.stand_with(name("id"));
    let customer = customers.signed_in("root").await;
    let who = async |session: Session| Ok(session.principal());
    for other in ["admin", "i", "idd", "ID", "__Host-id"] {
        let builder = Sessions::builder(customers.store.clone()).clock(customers.clock.clone());
        let admins = name(other)(builder).build().unwrap();
        let token = customer.strip_prefix("id=").unwrap();
        let stolen = format!("{other}={token}");
        assert_eq!(visit(&admins, &stolen, who).await.ok(), None, "{other}");
        // A sign-out in one application does not affect the other, and an invalid cookie is not
        // removed.
        assert_eq!(visit(&admins, &stolen, sign_out).await.set_cookie, None, "{other}");
        assert_eq!(customers.who(&customer).await.as_deref(), Some("root"), "{other}");
    }
}

/// "Remember me" applies to one sign-in only.
async fn sign_in_starts_from_configured_lifetime(on: Backend) {
    let stand = on.stand();
    let remember = async |session: Session| {
        session.set_lifetime(REMEMBERED);
        sign_in(session).await
    };
    let max_age = |visit: &Visit<()>| {
        let cookie = visit.set_cookie.as_deref().unwrap();
        cookie.rsplit_once("Max-Age=").unwrap().1.parse::<u64>().unwrap()
    };
    let remembered = stand.visit("", remember).await;
    assert_eq!(max_age(&remembered), 90 * 86_400);
    let unticked = stand.visit(&remembered.cookie(), sign_in).await;
    assert_eq!(max_age(&unticked), 86_400);
    // The lifetime that was set for an anonymous session does not apply to the account.
    let chosen_before = async |session: Session| {
        session.insert(A, &1)?;
        session.set_lifetime(REMEMBERED);
        Ok(())
    };
    let anonymous = stand.visit("", chosen_before).await;
    assert_eq!(max_age(&anonymous), 90 * 86_400);
    assert_eq!(max_age(&stand.visit(&anonymous.cookie(), sign_in).await), 86_400);
    // A lifetime set in the same request applies, whichever comes first, and also after an early save.
    for saves in [false, true] {
        let cookie = stand.seeded().await;
        let both = async |session: Session| {
            session.set_lifetime(REMEMBERED);
            if saves {
                session.save().await?;
            }
            sign_in(session.clone()).await?;
            if saves { session.save().await } else { Ok(()) }
        };
        assert_eq!(max_age(&stand.visit(&cookie, both).await), 90 * 86_400, "{saves}");
    }
    // A step-up keeps the lifetime.
    let step_up = async |session: Session| session.step_up();
    let remembered = stand.visit("", remember).await.cookie();
    assert_eq!(max_age(&stand.visit(&remembered, step_up).await), 90 * 86_400);
}

/// The time limit set with `end_by` applies only to the identity provider's own sign-in.
async fn sign_in_clears_end_by_and_step_up_keeps_it(on: Backend) {
    let stand = on.stand();
    let end = stand.clock.now() + Duration::from_secs(600);
    let federated = async |session: Session| {
        session.end_by(end);
        sign_in(session).await
    };
    let step_up = async |session: Session| session.step_up();
    let (first, second) =
        (stand.visit("", federated).await.cookie(), stand.visit("", federated).await.cookie());
    let by_password = stand.visit(&first, sign_in).await.cookie();
    let stepped_up = stand.visit(&second, step_up).await.cookie();
    stand.clock.advance(Duration::from_secs(600));
    assert!(stand.who(&by_password).await.is_some());
    assert_eq!(stand.who(&stepped_up).await, None);
}

/// A client that disconnects during its sign-in gets no cookie. The session that it never received must
/// not lock it out.
async fn sign_in_of_vanished_client_does_not_block_next_sign_in(on: Backend) {
    let stand = on.stand_with(rejects);
    for on_a_session in [false, true] {
        let cookie = if on_a_session { stand.seeded().await } else { String::new() };
        let (exchange, session) = stand.begin(&cookie).await;
        session.sign_in("alice").unwrap();
        // Drops the response future before it completes.
        drop(exchange.finish(200));
        let directory = stand.sessions.of("alice");
        eventually(async || directory.count().await.unwrap() == 1, "it was not written").await;
        let again = stand.visit("", sign_in).await;
        assert_eq!(again.failure(), None, "{on_a_session}");
        assert_eq!(directory.count().await.unwrap(), 1);
        // This session's cookie is used, so the session counts.
        assert!(stand.who(&again.cookie()).await.is_some());
        let refused = stand.visit("", sign_in).await;
        assert_eq!(refused.failure(), Some(ErrorKind::TooManySessions), "{on_a_session}");
        stand.sign_out(&again.cookie()).await;
    }
}

/// The first use of a cookie sends one write, and the next none. With other policies, no use sends any.
async fn first_use_of_cookie_confirms_sign_in(on: Backend) {
    for (policy, first) in [
        (ConcurrentSessions::Reject(3), vec![Verb::Load, Verb::Replace]),
        (ConcurrentSessions::EvictOldest(3), vec![Verb::Load]),
    ] {
        let namespace = format!("confirms-{}", first.len());
        let stand =
            on.stand_with(|builder| builder.concurrent_sessions(policy).namespace(namespace));
        type Use = (&'static str, fn(&Session), u16);
        let uses: [Use; 4] = [
            ("reads", |_| {}, 200),
            ("is passive", Session::mark_passive, 200),
            ("fails", |session| session.insert(A, &1).unwrap(), 500),
            ("times out", |session| session.insert(A, &1).unwrap(), 408),
        ];
        for (name, deed, status) in uses {
            let cookie = stand.signed_in("alice").await;
            stand.spy.take();
            let (exchange, session) = stand.begin(&cookie).await;
            deed(&session);
            let expires_at = session.expires_at();
            assert_eq!(finish(exchange, status).await.set_cookie, None);
            assert_eq!(stand.spy.verbs(), first, "{policy:?} {name}");
            stand.spy.take();
            let after = stand.visit(&cookie, async |session: Session| Ok(session.expires_at()));
            assert_eq!(after.await.ok(), expires_at, "{name}");
            assert_eq!(stand.spy.verbs(), [Verb::Load], "{policy:?} {name}");
            assert_eq!(stand.read(&cookie, A).await, None);
            stand.sign_out(&cookie).await;
        }
        // A request that writes anyway confirms the sign-in with the same write.
        let cookie = stand.signed_in("alice").await;
        stand.spy.take();
        stand.write(&cookie, A, 1).await;
        assert_eq!(stand.spy.verbs(), [Verb::Load, Verb::Replace]);
        stand.spy.take();
        assert_eq!(stand.read(&cookie, A).await, Some(1));
        assert_eq!(stand.spy.verbs(), [Verb::Load]);
    }
}

/// Even if the write of a confirmation fails, the request succeeds.
async fn failed_confirmation_does_not_fail_request(on: Backend) {
    let stand = on.stand_with(rejects);
    for fault in [Fault::Unavailable, Fault::Refused, Fault::LoseAnswer, Fault::LoseRequest] {
        let cookie = stand.signed_in("alice").await;
        stand.store.fail_always(Verb::Replace, fault);
        assert_eq!(stand.who(&cookie).await.as_deref(), Some("alice"), "{fault:?}");
        stand.store.heal();
        assert_eq!(stand.who(&cookie).await.as_deref(), Some("alice"), "{fault:?}");
        stand.sign_out(&cookie).await;
    }
}

/// A double click signs in twice at the same time. Afterwards exactly one session exists, and exactly
/// one of the cookies that were set is valid.
async fn double_sign_in_leaves_one_valid_session_under_limit_of_one(on: Backend) {
    let stand = on.stand_with(|builder| rejects(builder).timeout(Duration::from_secs(20)));
    for shared in [false, true] {
        let cookie = if shared { stand.seeded().await } else { String::new() };
        let click = || {
            let (sessions, cookie) = (stand.sessions.clone(), cookie.clone());
            tokio::spawn(async move { visit(&sessions, &cookie, sign_in).await })
        };
        let clicks = [click(), click()];
        let mut signed_in = Vec::new();
        for click in clicks {
            let answer = click.await.unwrap();
            match answer.failure() {
                None => signed_in.push(answer.cookie()),
                Some(kind) => {
                    assert!(matches!(kind, ErrorKind::TooManySessions | ErrorKind::Contended));
                }
            }
        }
        assert_eq!(stand.sessions.of("alice").count().await.unwrap(), 1, "{shared}");
        let mut valid = 0;
        for cookie in &signed_in {
            valid += usize::from(stand.who(cookie).await.is_some());
        }
        assert_eq!(valid, 1, "{shared}: of {} answers", signed_in.len());
        stand.sessions.of("alice").revoke_all().await.unwrap();
    }
}

/// A cookie is used for the first time while a later sign-in is about to revoke its session. The
/// session is kept, and the later sign-in is refused: there are never two sessions.
async fn session_confirmed_during_eviction_is_kept(on: Backend) {
    let stand = on.stand_with(|builder| rejects(builder).timeout(Duration::from_secs(20)));
    let first = stand.signed_in("alice").await;
    // The sign-in has loaded the session, and is stopped before it deletes the session.
    let gate = stand.store.hold(Verb::Delete);
    let second = {
        let sessions = stand.sessions.clone();
        tokio::spawn(async move { visit(&sessions, "", sign_in).await })
    };
    gate.reached().await;
    assert!(stand.who(&first).await.is_some(), "the first use of the cookie confirms the sign-in");
    gate.release();
    assert_eq!(second.await.unwrap().failure(), Some(ErrorKind::TooManySessions));
    assert!(stand.who(&first).await.is_some());
    assert_eq!(stand.sessions.of("alice").count().await.unwrap(), 1);
}

/// At the limit, unconfirmed sessions are evicted first, starting with the oldest.
async fn oldest_unconfirmed_session_is_evicted_first(on: Backend) {
    let stand = on.stand_with(|builder| builder.concurrent_sessions(ConcurrentSessions::Reject(3)));
    let mut cookies = Vec::new();
    for confirms in [true, false, false] {
        cookies.push(stand.signed_in("alice").await);
        stand.clock.advance(Duration::from_secs(1));
        if confirms {
            assert!(stand.who(&cookies[0]).await.is_some());
        }
    }
    let fourth = stand.visit("", sign_in).await;
    assert_eq!(fourth.failure(), None);
    let mut valid = Vec::new();
    for cookie in &cookies {
        valid.push(stand.who(cookie).await.is_some());
    }
    assert_eq!(valid, [true, false, true]);
    assert!(stand.who(&fourth.cookie()).await.is_some());
    let refused = stand.visit("", sign_in).await;
    assert_eq!(refused.failure(), Some(ErrorKind::TooManySessions));
}

/// If Alice's earlier session cannot be ended, Bob's new session is deleted and its cookie is not sent.
async fn failed_account_switch_leaves_both_accounts_unchanged(on: Backend) {
    let stand = on.stand_with(|builder| builder.command_retries(0));
    let alice = stand.signed_in("alice").await;
    stand.store.inject(Verb::Delete, Fault::Unavailable);
    let switch = stand.visit(&alice, async |session: Session| session.sign_in("bob")).await;
    assert_eq!((switch.failure(), switch.set_cookie), (Some(ErrorKind::Unavailable), None));
    assert_eq!(stand.sessions.of("bob").count().await.unwrap(), 0);
    assert_eq!(stand.who(&alice).await.as_deref(), Some("alice"));
}

/// When `list` removes the last entry of a directory, it keeps the record of an earlier revocation.
async fn begun_sign_in_succeeds_after_list_empties_directory(on: Backend) {
    let stand = on.stand();
    let directory = stand.sessions.of("alice");
    stand.signed_in("alice").await;
    assert!(directory.revoke_all().await.unwrap().complete);
    let cookie = stand.signed_in("alice").await;
    stand.sign_out(&cookie).await;
    // Longer than a sign-in may take.
    stand.clock.advance(Duration::from_secs(2 * 3600));
    let begun = directory.begin_sign_in().await.unwrap();
    assert!(directory.list().await.unwrap().is_empty());
    stand.clock.advance(Duration::from_secs(60));
    let signed_in = stand.visit("", async |session: Session| session.sign_in_with(begun)).await;
    assert_eq!(signed_in.failure(), None);
    assert!(stand.who(&signed_in.cookie()).await.is_some());
}

/// A process whose clock is a day ahead removes no live session from the directory, neither by a
/// sign-in nor by a list.
async fn process_with_fast_clock_unlists_no_live_session(on: Backend) {
    for policy in [ConcurrentSessions::default(), ConcurrentSessions::EvictOldest(2)] {
        let namespace = format!("ahead-{}", policy == ConcurrentSessions::default());
        let stand = on
            .stand_with(|builder| builder.concurrent_sessions(policy).namespace(namespace.clone()));
        let (one, two) = (stand.signed_in("alice").await, stand.signed_in("alice").await);
        let ahead = unsticky::testing::ManualClock::new();
        ahead.set(stand.clock.now() + Duration::from_secs(86_400 + 3600));
        let elsewhere = stand.process(|builder| {
            builder.clock(ahead.clone()).namespace(namespace).concurrent_sessions(policy)
        });
        elsewhere.of("alice").list().await.unwrap();
        if policy == ConcurrentSessions::default() {
            visit(&elsewhere, "", sign_in).await.ok();
            let listed = stand.sessions.of("alice").list().await.unwrap();
            assert_eq!(listed.len(), 3);
        }
        let revoked = elsewhere.of("alice").revoke_all().await.unwrap();
        assert_eq!(revoked.count, if policy == ConcurrentSessions::default() { 3 } else { 2 });
        assert!(revoked.complete);
        for cookie in [&one, &two] {
            assert_eq!(stand.who(cookie).await, None, "revoked, and not only forgotten");
        }
    }
}

/// A sign-in at the limit checks sixteen sessions, however many the account has.
async fn sign_in_at_large_limit_checks_only_sixteen_sessions(on: Backend) {
    let stand =
        on.stand_with(|builder| builder.concurrent_sessions(ConcurrentSessions::EvictOldest(40)));
    let mut cookies = Vec::new();
    for _ in 0..40 {
        cookies.push(stand.signed_in("alice").await);
        stand.clock.advance(Duration::from_secs(1));
    }
    stand.spy.take();
    stand.visit("", sign_in).await.ok();
    let commands = stand.spy.take();
    let looks = commands
        .iter()
        .filter(|command| command.verb == Verb::Load && command.key.kind() == Kind::Session);
    // Sixteen of forty, and the evicted session once more before its deletion.
    assert_eq!(looks.count(), 17);
    assert_eq!(stand.who(&cookies[0]).await, None);
    assert_eq!(stand.sessions.of("alice").count().await.unwrap(), 40);
    // If most sessions have ended, one of the sixteen has, and no live session is evicted.
    for cookie in &cookies[2..] {
        stand.sign_out(cookie).await;
    }
    stand.visit("", sign_in).await.ok();
    assert!(stand.who(&cookies[1]).await.is_some());
}

/// Labels are stored only in the directory.
async fn label_is_ignored_without_directory(on: Backend) {
    let stand = on.stand_with(|builder| builder.directory(DirectoryMode::Off));
    let labelled = async |session: Session| {
        session.sign_in_with(unsticky::SignIn::new("alice").label("phone"))
    };
    let visit = stand.visit("", labelled).await;
    assert!(stand.who(&visit.cookie()).await.is_some());
    let (exchange, session) = stand.begin("").await;
    session.sign_in("alice").unwrap();
    assert!(cookie_of(&finish(exchange, 200).await).is_some());
}

const CART: Key<u32> = Key::new("cart").survives_sign_in();

/// Surviving values are taken only from the anonymous session on which the user signs in, never from a
/// signed-in session.
async fn surviving_value_is_carried_over_from_own_anonymous_session_only(on: Backend) {
    let stand = on.stand();
    let fill = async |session: Session| session.insert(CART, &1);
    let alice = stand.signed_in("alice").await;
    stand.visit(&alice, fill).await.ok();
    assert_eq!(stand.read(&alice, CART).await, Some(1));
    let bob = stand.visit(&alice, async |session: Session| session.sign_in("bob")).await.cookie();
    assert_eq!(
        (stand.who(&bob).await.as_deref(), stand.read(&bob, CART).await),
        (Some("bob"), None)
    );
    // Nor are they taken from a session that the same request has ended.
    let anonymous = stand.visit("", fill).await.cookie();
    let start_over = async |session: Session| {
        session.sign_out();
        sign_in(session).await
    };
    let renewed = stand.visit(&anonymous, start_over).await.cookie();
    assert_eq!(stand.read(&renewed, CART).await, None);
    // But they are taken from a session that the request itself created, even if it carried several
    // tokens.
    let (one, two) = (stand.seeded().await, stand.seeded().await);
    let fill_and_sign_in = async |session: Session| {
        session.insert(CART, &2)?;
        session.save().await?;
        sign_in(session).await
    };
    let signed_in = stand.visit(&format!("{one}; {two}"), fill_and_sign_in).await.cookie();
    assert_eq!(stand.who(&signed_in).await.as_deref(), Some("alice"));
    assert_eq!(stand.read(&signed_in, CART).await, Some(2));
}

/// A second write by the request that signs in does not show that the response reached the browser.
async fn own_write_does_not_confirm_sign_in(on: Backend) {
    let stand = on.stand_with(rejects);
    let (exchange, session) = stand.begin("").await;
    session.sign_in("alice").unwrap();
    assert!(cookie_of(&finish(exchange, 200).await).is_some());
    session.insert(A, &1).unwrap();
    session.save().await.unwrap();
    let again = stand.visit("", sign_in).await;
    assert_eq!(again.failure(), None);
    assert!(stand.who(&again.cookie()).await.is_some());
}

/// The request that signed in writes again while its cookie is used for the first time. The
/// confirmation must not be lost.
async fn confirmation_is_repeated_after_conflict(on: Backend) {
    let stand = on.stand_with(rejects);
    let (exchange, session) = stand.begin("").await;
    session.sign_in("alice").unwrap();
    let cookie = cookie_of(&finish(exchange, 200).await).unwrap();
    let first_use = stand.overtaken(
        &cookie,
        async |_| Ok(()),
        async || {
            session.insert(A, &1).unwrap();
            session.save().await.unwrap();
        },
    );
    first_use.await.ok();
    assert_eq!(stand.visit("", sign_in).await.failure(), Some(ErrorKind::TooManySessions));
    assert_eq!(stand.read(&cookie, A).await, Some(1));
}

/// Another principal has signed in on one of the presented sessions, and that session has expired
/// since.
#[tokio::test]
async fn sign_in_succeeds_beside_expired_session_that_is_still_stored() {
    let stand = Stand::over(Backend::memory().store(), |builder| builder);
    let (one, two) = (stand.seeded().await, stand.seeded().await);
    let both = format!("{one}; {two}");
    let late = stand.overtaken(&both, sign_in, async || {
        stand.sign_in(&one).await;
        stand.clock.advance(Duration::from_secs(1800));
    });
    let late = late.await;
    assert_eq!(late.failure(), None);
    assert_eq!(stand.who(&late.cookie()).await.as_deref(), Some("alice"));
}

on_every_store! {
    sign_in_ends_every_presented_session,
    sessions_ended_by_sign_in_do_not_count_against_limit,
    sign_in_fails_if_presented_session_cannot_be_ended,
    sign_in_beside_concurrently_rotated_session_keeps_limit,
    applications_with_different_cookie_names_are_isolated,
    token_is_invalid_under_another_cookie_name,
    sign_in_starts_from_configured_lifetime,
    sign_in_clears_end_by_and_step_up_keeps_it,
    sign_in_of_vanished_client_does_not_block_next_sign_in,
    first_use_of_cookie_confirms_sign_in,
    failed_confirmation_does_not_fail_request,
    double_sign_in_leaves_one_valid_session_under_limit_of_one,
    session_confirmed_during_eviction_is_kept,
    oldest_unconfirmed_session_is_evicted_first,
    failed_account_switch_leaves_both_accounts_unchanged,
    begun_sign_in_succeeds_after_list_empties_directory,
    process_with_fast_clock_unlists_no_live_session,
    sign_in_at_large_limit_checks_only_sixteen_sessions,
    label_is_ignored_without_directory,
    surviving_value_is_carried_over_from_own_anonymous_session_only,
    own_write_does_not_confirm_sign_in,
    confirmation_is_repeated_after_conflict,
}
