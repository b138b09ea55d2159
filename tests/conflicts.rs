//! Two requests in one session, held at the point where they conflict, and writes whose answers are lost.

#![cfg(all(feature = "testing", feature = "memory", feature = "redis", feature = "memcached"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use support::interceptor::{Call, Intercepted, Interceptor};
use support::servers::RedisServer;
use support::stand::{A, B, Backend, SEED, Stand, eventually, on_every_store};
use support::stopwatch::Stopwatch;
use support::visit::{finish, rotate, sign_in, sign_out, visit};
use tokio::time::Instant;
use unsticky::store::{Kind, MemoryStore, Store as _, StoreKey};
use unsticky::testing::{Fault, Verb, random_record};
use unsticky::{
    ConcurrentSessions, Entropy, Error, ErrorKind, Key, Lifetime, Result, Session, Transaction,
};

async fn concurrent_writes_to_different_keys_all_survive(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let late = stand
        .overtaken(
            &cookie,
            async |session: Session| session.insert(A, &1),
            async || {
                stand.write(&cookie, B, 2).await;
            },
        )
        .await;
    assert_eq!((late.failure(), late.set_cookie), (None, None));
    assert_eq!(stand.read(&cookie, SEED).await, Some(1));
    assert_eq!(stand.read(&cookie, A).await, Some(1));
    assert_eq!(stand.read(&cookie, B).await, Some(2));
}

async fn last_commit_wins_for_same_key(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let insert = async |session: Session| session.insert(SEED, &7);
    stand.overtaken(&cookie, insert, async || stand.write(&cookie, SEED, 8).await).await.ok();
    assert_eq!(stand.read(&cookie, SEED).await, Some(7));
}

async fn two_hundred_concurrent_increments_are_all_counted(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let requests = (0..200).map(|_| {
        let (sessions, cookie) = (stand.sessions.clone(), cookie.clone());
        tokio::spawn(async move {
            let increment = async |session: Session| {
                tokio::task::yield_now().await;
                session.update(A, |number| *number += 1)
            };
            visit(&sessions, &cookie, increment).await.ok();
        })
    });
    for request in requests.collect::<Vec<_>>() {
        request.await.unwrap();
    }
    assert_eq!(stand.read(&cookie, A).await, Some(200));
}

async fn concurrent_takes_hand_out_value_once(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let take = async |session: Session| session.take(SEED);
    let late = stand
        .overtaken(&cookie, take, async || {
            assert_eq!(stand.visit(&cookie, take).await.ok(), Some(1));
        })
        .await;
    assert_eq!(late.failure(), Some(ErrorKind::ValueChanged));
    let late = stand.overtaken(&cookie, take, async || stand.write(&cookie, SEED, 2).await).await;
    // The value did not exist when the request began, so nothing was handed out.
    assert_eq!(late.ok(), None);
    let late = stand.overtaken(&cookie, take, async || stand.write(&cookie, SEED, 3).await).await;
    assert_eq!(late.failure(), Some(ErrorKind::ValueChanged));
    assert_eq!(stand.read(&cookie, SEED).await, Some(3));
}

async fn transact_enforces_attempt_limit_under_concurrency(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let requests = (0..200).map(|_| {
        let (sessions, cookie) = (stand.sessions.clone(), cookie.clone());
        tokio::spawn(async move {
            let attempt = async |session: Session| {
                session
                    .transact(|values| {
                        let attempts = values.get(A)?.unwrap_or(0);
                        if attempts < 5 {
                            values.insert(A, &(attempts + 1))?;
                        }
                        Ok(attempts < 5)
                    })
                    .await
            };
            visit(&sessions, &cookie, attempt).await.ok()
        })
    });
    let mut passed = 0;
    for request in requests.collect::<Vec<_>>() {
        passed += u32::from(request.await.unwrap());
    }
    assert_eq!((passed, stand.read(&cookie, A).await), (5, Some(5)));
}

async fn save_does_not_undo_concurrent_sign_out(on: Backend) {
    let stand = on.stand();
    let cookie = stand.signed_in("alice").await;
    for handler_writes in [true, false] {
        let cookie = if handler_writes { cookie.clone() } else { stand.signed_in("alice").await };
        let handler = async |session: Session| {
            if handler_writes { session.insert(A, &1) } else { Ok(()) }
        };
        let late = stand.overtaken(&cookie, handler, async || stand.sign_out(&cookie).await).await;
        assert_eq!(late.failure(), handler_writes.then_some(ErrorKind::Gone));
        assert_eq!(late.set_cookie, None);
        assert_eq!(stand.who(&cookie).await, None);
    }
}

async fn refresh_does_not_undo_concurrent_sign_out_or_lifetime_change(on: Backend) {
    let stand = on.stand();
    let minute = Duration::from_secs(60);
    let cookie = stand.signed_in("alice").await;
    stand.clock.advance(5 * minute);
    let late =
        stand.overtaken(&cookie, async |_| Ok(()), async || stand.sign_out(&cookie).await).await;
    assert_eq!((late.failure(), late.set_cookie), (None, None));
    assert_eq!(stand.who(&cookie).await, None);

    let cookie = stand.signed_in("alice").await;
    stand.clock.advance(5 * minute);
    let mut remembered = String::new();
    stand
        .overtaken(
            &cookie,
            async |_| Ok(()),
            async || {
                let remember = async |session: Session| {
                    session.sign_in("alice")?;
                    session.set_lifetime(Lifetime::new(100 * minute, 1000 * minute));
                    Ok(())
                };
                remembered = stand.visit(&cookie, remember).await.cookie();
            },
        )
        .await
        .ok();
    stand.clock.advance(99 * minute);
    assert_eq!(stand.who(&remembered).await.as_deref(), Some("alice"));
}

async fn save_with_old_secret_is_merged_after_rotation(on: Backend) {
    let stand = on.stand();
    let cookie = stand.signed_in("alice").await;
    let rotate = async |session: Session| {
        session.rotate();
        session.insert(B, &2)
    };
    let mut rotated = String::new();
    let late = stand
        .overtaken(
            &cookie,
            async |session: Session| session.insert(A, &1),
            async || {
                rotated = stand.visit(&cookie, rotate).await.cookie();
            },
        )
        .await;
    assert_eq!((late.failure(), late.set_cookie), (None, None));
    assert_eq!(stand.read(&rotated, A).await, Some(1));
    assert_eq!(stand.read(&rotated, B).await, Some(2));
    assert_eq!(stand.who(&cookie).await, None);
}

async fn second_concurrent_rotation_sends_no_cookie(on: Backend) {
    let stand = on.stand();
    let cookie = stand.signed_in("alice").await;
    let rotate = async |session: Session| {
        session.rotate();
        session.update(A, |number| *number += 1)
    };
    let mut first = String::new();
    let second = stand
        .overtaken(&cookie, rotate, async || {
            first = stand.visit(&cookie, rotate).await.cookie();
        })
        .await;
    assert_eq!((second.failure(), second.set_cookie), (None, None));
    assert_eq!(stand.read(&first, A).await, Some(2));
}

async fn lifetime_change_fails_after_concurrent_rotation(on: Backend) {
    let stand = on.stand();
    let cookie = stand.signed_in("alice").await;
    let remember = async |session: Session| {
        session.set_lifetime(Lifetime::nist_aal2());
        Ok(())
    };
    let late = stand
        .overtaken(&cookie, remember, async || {
            stand.visit(&cookie, rotate).await.ok();
        })
        .await;
    assert_eq!((late.failure(), late.set_cookie), (Some(ErrorKind::Gone), None));
}

async fn save_is_rejected_after_concurrent_sign_in(on: Backend) {
    let stand = on.stand();
    for before in ["", "alice"] {
        let cookie =
            if before.is_empty() { stand.seeded().await } else { stand.signed_in(before).await };
        let mut signed_in = String::new();
        let late = stand
            .overtaken(
                &cookie,
                async |session: Session| session.insert(A, &1),
                async || {
                    signed_in = stand.visit(&cookie, sign_in).await.cookie();
                },
            )
            .await;
        assert_eq!((late.failure(), late.set_cookie), (Some(ErrorKind::Gone), None));
        assert_eq!(stand.read(&signed_in, A).await, None);
        assert_eq!(stand.who(&signed_in).await.as_deref(), Some("alice"));
    }
}

async fn concurrent_sign_ins_of_same_principal_both_succeed(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let sign_in = |mark: u32| {
        async move |session: Session| {
            session.insert(A, &mark)?;
            session.sign_in("alice")
        }
    };
    let mut first = String::new();
    let second = stand
        .overtaken(&cookie, sign_in(2), async || {
            first = stand.visit(&cookie, sign_in(1)).await.cookie();
        })
        .await;
    let (second, answered) = (second.cookie(), second.ok());
    assert_eq!(answered, ());
    for (cookie, mark) in [(&first, 1), (&second, 2)] {
        assert_eq!(stand.who(cookie).await.as_deref(), Some("alice"));
        assert_eq!(stand.read(cookie, A).await, Some(mark));
        assert_eq!(stand.read(cookie, SEED).await, None);
    }
    assert_eq!(stand.who(&cookie).await, None);
}

async fn sign_in_on_ended_session_starts_new_session(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let visit = stand.overtaken(&cookie, sign_in, async || stand.sign_out(&cookie).await).await;
    assert_eq!(stand.who(&visit.cookie()).await.as_deref(), Some("alice"));
    assert_eq!(stand.who(&cookie).await, None);
}

async fn sign_out_wins_unless_another_principal_signs_in_concurrently(on: Backend) {
    let stand = on.stand();
    for (before, then, survives) in
        [("alice", "alice", false), ("", "alice", true), ("", "", false)]
    {
        let cookie =
            if before.is_empty() { stand.seeded().await } else { stand.signed_in(before).await };
        let mut newer = String::new();
        let late = stand
            .overtaken(&cookie, sign_out, async || {
                let change = async |session: Session| {
                    session.insert(A, &1)?;
                    if then.is_empty() { Ok(()) } else { session.sign_in(then) }
                };
                newer = stand.visit(&cookie, change).await.cookie();
            })
            .await;
        assert_eq!(late.removes_cookie(), !survives, "{before:?} {then:?}");
        assert_eq!(late.set_cookie.is_none(), survives);
        let left = if newer.is_empty() { &cookie } else { &newer };
        assert_eq!(stand.read(left, A).await.is_some(), survives);
    }
}

async fn sign_out_then_insert_fails_after_concurrent_sign_in(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let start_over = async |session: Session| {
        session.sign_out();
        session.insert(A, &1)
    };
    let mut newer = String::new();
    let late = stand
        .overtaken(&cookie, start_over, async || {
            newer = stand.visit(&cookie, sign_in).await.cookie();
        })
        .await;
    assert_eq!((late.failure(), late.set_cookie), (Some(ErrorKind::Gone), None));
    assert_eq!(stand.who(&newer).await.as_deref(), Some("alice"));
}

async fn commit_fails_with_gone_when_session_has_expired(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let late = stand
        .overtaken(
            &cookie,
            async |session: Session| session.insert(A, &1),
            async || {
                stand.clock.advance(Duration::from_secs(30 * 60));
            },
        )
        .await;
    assert_eq!((late.failure(), late.set_cookie), (Some(ErrorKind::Gone), None));
}

async fn save_error_ignored_by_handler_still_fails_response(on: Backend) {
    for goes_on in [false, true] {
        let stand = on.stand();
        let cookie = stand.seeded().await;
        let careless = async |session: Session| {
            session.insert(A, &1)?;
            let _ = session.save().await;
            if goes_on { session.insert(B, &1) } else { Ok(()) }
        };
        let late = stand.overtaken(&cookie, careless, async || stand.sign_out(&cookie).await).await;
        assert_eq!((late.failure(), late.set_cookie), (Some(ErrorKind::Gone), None), "{goes_on}");
    }
}

async fn save_of_nothing_keeps_session(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let save_first = async |session: Session| {
        session.save().await?;
        session.insert(A, &1)
    };
    let saved = stand.visit(&cookie, save_first).await;
    assert_eq!((saved.failure(), saved.set_cookie), (None, None));
    assert_eq!(stand.read(&cookie, A).await, Some(1));
    assert_eq!(stand.read(&cookie, SEED).await, Some(1));
}

/// The answer to the delete is lost, and the session is gone. Either this request or a different one may have
/// ended the session and taken the value.
async fn in_doubt_end_of_session_leaves_outcome_of_take_unknown(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    stand.store.inject(Verb::Delete, Fault::LoseAnswer);
    let ended = stand.visit(&cookie, async |session: Session| {
        assert_eq!(session.take(SEED)?, Some(1));
        sign_out(session).await
    });
    let ended = ended.await;
    assert_eq!((ended.failure(), ended.set_cookie), (Some(ErrorKind::OutcomeUnknown), None));
    assert_eq!(stand.read(&cookie, SEED).await, None);
}

/// A refresh that meets a conflict is attempted again only if it must also confirm the first use of a cookie.
async fn refresh_is_not_retried_after_conflict(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    stand.clock.advance(Duration::from_secs(300));
    let late = stand.overtaken(
        &cookie,
        async |_| Ok(()),
        async || {
            stand.write(&cookie, A, 1).await;
            stand.spy.take();
        },
    );
    late.await.ok();
    assert_eq!(stand.spy.verbs(), [Verb::Replace]);
    assert_eq!(stand.read(&cookie, A).await, Some(1));
}

/// The transaction sends one load, which shows that the record is still the newest or returns the newest
/// record. The function runs once per record.
async fn read_only_transaction_decides_once_on_each_record(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    for is_overtaken in [false, true] {
        let calls = Arc::new(AtomicUsize::new(0));
        let decide = async |session: Session| {
            let calls = calls.clone();
            let read = move |values: &mut Transaction<'_>| {
                calls.fetch_add(1, Ordering::Relaxed);
                values.get(SEED)
            };
            session.transact(read).await
        };
        let decided = stand.overtaken(&cookie, decide, async || {
            if is_overtaken {
                stand.write(&cookie, SEED, 9).await;
            }
            stand.spy.take();
        });
        assert_eq!(decided.await.ok(), Some(if is_overtaken { 9 } else { 1 }));
        assert_eq!(calls.load(Ordering::Relaxed), if is_overtaken { 2 } else { 1 });
        assert_eq!(stand.spy.verbs(), [Verb::Load], "{is_overtaken}");
    }
}

/// A read-only transaction sees the newest record even if the same commit confirms the first use of a
/// sign-in's cookie.
async fn read_only_transaction_at_first_use_decides_on_newest_record(on: Backend) {
    let stand = on.stand_with(|builder| builder.concurrent_sessions(ConcurrentSessions::Reject(3)));
    let signs_in = async |session: Session| {
        session.sign_in("alice")?;
        session.insert(A, &1)
    };
    let cookie = stand.visit("", signs_in).await.cookie();
    let reads = async |session: Session| session.transact(|values| values.get(A)).await;
    let late = stand.overtaken(&cookie, reads, async || stand.write(&cookie, A, 2).await);
    assert_eq!(late.await.ok(), Some(2));
    // If no other request writes, the function runs once, and the commit confirms the first use.
    let cookie = stand.visit("", signs_in).await.cookie();
    assert_eq!(stand.visit(&cookie, reads).await.ok(), Some(1));
    stand.spy.take();
    assert_eq!(stand.read(&cookie, A).await, Some(1));
    assert_eq!(stand.taken_verbs(), [Verb::Load]);
}

async fn failed_or_read_only_transaction_writes_nothing(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let version = async || stand.spy.verbs().iter().filter(|verb| **verb != Verb::Load).count();
    let before = version().await;
    let handler = async |session: Session| {
        let failed = session
            .transact(|values| {
                values.insert(A, &1)?;
                values.get(Key::<String>::new("seed")).map(|_| ())
            })
            .await;
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Decode);
        session.transact(|values| values.get(SEED)).await
    };
    assert_eq!(stand.visit(&cookie, handler).await.ok(), Some(1));
    assert_eq!(version().await, before);
    assert_eq!(stand.read(&cookie, A).await, None);
}

async fn transact_decides_on_newest_record(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let decide = async |session: Session| session.transact(|values| values.get(SEED)).await;
    let decided =
        stand.overtaken(&cookie, decide, async || stand.write(&cookie, SEED, 9).await).await;
    assert_eq!(decided.ok(), Some(9));
    let take = async |session: Session| session.transact(|values| values.take(SEED)).await;
    let taken = stand
        .overtaken(&cookie, take, async || {
            assert_eq!(stand.visit(&cookie, take).await.ok(), Some(9));
        })
        .await;
    assert_eq!(taken.ok(), None);
}

/// The faults after which it is in doubt whether a write was applied.
const DOUBTS: [Fault; 4] = [Fault::LoseRequest, Fault::LoseAnswer, Fault::Hang, Fault::HangAfter];

async fn in_doubt_update_is_settled_and_applied_once(on: Backend) {
    for fault in DOUBTS {
        let stand = on.stand();
        let cookie = stand.seeded().await;
        stand.store.inject(Verb::Replace, fault);
        let increment = async |session: Session| session.update(A, |number| *number += 1);
        assert_eq!(stand.visit(&cookie, increment).await.failure(), None, "{fault:?}");
        assert_eq!(stand.read(&cookie, A).await, Some(1), "{fault:?}");
    }
}

async fn in_doubt_creates_and_deletes_are_settled(on: Backend) {
    for fault in DOUBTS {
        let stand = on.stand();
        stand.store.inject(Verb::Create, fault);
        let cookie = stand.seeded().await;
        assert_eq!(stand.read(&cookie, SEED).await, Some(1), "{fault:?}");
        stand.store.inject(Verb::Delete, fault);
        stand.sign_out(&cookie).await;
        assert_eq!(stand.read(&cookie, SEED).await, None, "{fault:?}");
    }
}

async fn in_doubt_write_is_settled_after_up_to_seven_later_writes(on: Backend) {
    for fault in [Fault::LoseAnswer, Fault::LoseRequest] {
        for followers in [1, 7, 8] {
            let stand = on.stand();
            let cookie = stand.seeded().await;
            stand.store.inject(Verb::Replace, fault);
            // The load that settles the first request's write waits until the other requests have written.
            let increment = async |session: Session| session.update(A, |number| *number += 1);
            let lost = stand.visit(&cookie, async |session: Session| {
                session.update(A, |number| *number += 1)?;
                let gate = stand.store.hold(Verb::Load);
                let save = session.save();
                let others = async {
                    gate.reached().await;
                    for _ in 0..followers {
                        // The gate holds only the first call.
                        stand.visit(&cookie, increment).await.ok();
                    }
                    gate.release();
                };
                futures_util::join!(save, others).0
            });
            let failure = lost.await.failure();
            let total = stand.read(&cookie, A).await.unwrap();
            match failure {
                None => assert_eq!(total, followers + 1, "{fault:?} {followers}"),
                Some(ErrorKind::OutcomeUnknown) => {
                    assert_eq!(followers, 8, "eight writes are remembered");
                    assert!(total == followers || total == followers + 1);
                }
                failure => panic!("{fault:?} {followers}: {failure:?}"),
            }
        }
    }
}

/// The first copy of a retried write arrives only after a later write.
async fn late_copy_of_settled_write_has_no_effect(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let postponed = stand.late.postpone(Verb::Replace);
    let increment = async |session: Session| session.update(A, |number| *number += 1);
    stand.visit(&cookie, increment).await.ok();
    stand.visit(&cookie, increment).await.ok();
    assert!(postponed.deliver().await);
    assert_eq!(stand.read(&cookie, A).await, Some(2));
    stand.sign_out(&cookie).await;
    postponed.deliver().await;
    assert_eq!(stand.read(&cookie, A).await, None);
}

/// The write is retried because its first copy had not arrived. The first copy then reaches the store just
/// before the retry.
async fn late_copy_that_overtakes_its_retry_is_applied_once(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let postponed = stand.late.postpone(Verb::Replace);
    drop(stand.store.hold(Verb::Replace));
    let retry = stand.store.hold(Verb::Replace);
    let increment = async |session: Session| session.update(A, |number| *number += 1);
    let (visited, ()) = tokio::join!(stand.visit(&cookie, increment), async {
        retry.reached().await;
        assert!(postponed.deliver().await);
        retry.release();
    });
    visited.ok();
    assert_eq!(stand.read(&cookie, A).await, Some(1));
}

/// The first copy of the command may still arrive, so a refusal of the retry does not settle the outcome.
async fn refusal_of_retried_command_leaves_outcome_unknown(on: Backend) {
    async fn increment(session: Session) -> Result<()> {
        session.update(A, |number| *number += 1)
    }
    for fault in [Fault::Refused, Fault::TooLarge, Fault::Unavailable] {
        let stand = on.stand_with(|builder| builder.command_retries(1));
        let cookie = stand.seeded().await;
        for (verb, left) in [(Verb::Replace, Some(1)), (Verb::Delete, None)] {
            stand.store.hold(verb).release();
            let postponed = stand.late.postpone(verb);
            stand.store.inject(verb, fault);
            let visited = match verb {
                Verb::Replace => stand.visit(&cookie, increment).await,
                _ => stand.visit(&cookie, sign_out).await,
            };
            assert_eq!(visited.failure(), Some(ErrorKind::OutcomeUnknown), "{verb:?} {fault:?}");
            assert_eq!(visited.set_cookie, None);
            assert!(postponed.deliver().await);
            assert_eq!(stand.read(&cookie, A).await, left, "{verb:?} {fault:?}");
        }
    }
}

/// A connection that sends a write a second time of its own accord, after the first copy was applied.
#[derive(Default)]
struct SentTwice(AtomicBool);

impl Interceptor for SentTwice {
    async fn intercept<T: Send + 'static>(
        &self,
        verb: Verb,
        _: &StoreKey,
        call: Call<T>,
    ) -> Result<T> {
        if verb == Verb::Replace && !self.0.swap(true, Ordering::Relaxed) {
            call().await?;
        }
        call().await
    }
}

/// The second copy of the write conflicts with the first. Memcached is left out: its answer does not contain
/// the record, and its connections never send a command again.
#[tokio::test]
async fn write_sent_twice_by_connection_is_applied_once() {
    let server = RedisServer::start();
    for on in [Arc::new(MemoryStore::new()), unsticky::connect(&server.url()).unwrap()] {
        let stand =
            Stand::over(Arc::new(Intercepted::new(on, SentTwice::default())), |builder| builder);
        let cookie = stand.seeded().await;
        let increment = async |session: Session| session.update(A, |number| *number += 1);
        stand.visit(&cookie, increment).await.ok();
        assert_eq!(stand.read(&cookie, A).await, Some(1));
    }
}

/// A source of randomness that lets the test read the last secret.
#[derive(Debug, Clone, Default)]
struct Overheard(Arc<Mutex<Vec<u8>>>);

impl Entropy for Overheard {
    fn fill(&self, bytes: &mut [u8]) -> Result<()> {
        let random = random_record(bytes.len());
        bytes.copy_from_slice(&random[..bytes.len()]);
        if bytes.len() == 16 {
            *self.0.lock().unwrap() = bytes.to_vec();
        }
        Ok(())
    }
}

/// Before the cookie with the new secret is sent, a client that knows the secret rotates it or signs in with
/// it. The browser may then already hold a newer cookie, so the response sends none.
async fn replaced_secret_of_settled_write_is_not_sent(on: Backend) {
    for signs_in in [false, true] {
        let secret = Overheard::default();
        let stand = on.stand_with(|builder| builder.entropy(secret.clone()));
        let cookie = stand.seeded().await;
        let id = &BASE64.decode(cookie.split_once('=').unwrap().1).unwrap()[..16];
        let mut newer = String::new();
        let settled = stand.visit(&cookie, async |session: Session| {
            session.rotate();
            stand.store.inject(Verb::Replace, Fault::LoseAnswer);
            let gate = stand.store.hold(Verb::Load);
            let other = async {
                gate.reached().await;
                let token = BASE64.encode([id, &secret.0.lock().unwrap()[..]].concat());
                let cookie = format!("__Host-id={token}");
                newer = match signs_in {
                    true => stand.visit(&cookie, sign_in).await.cookie(),
                    false => stand.visit(&cookie, rotate).await.cookie(),
                };
                gate.release();
            };
            futures_util::join!(session.save(), other).0
        });
        let settled = settled.await;
        assert_eq!((settled.failure(), settled.set_cookie), (None, None));
        assert_eq!(stand.read(&cookie, SEED).await, None);
        let who = stand.who(&newer).await;
        assert_eq!(who.as_deref(), signs_in.then_some("alice"));
        assert_eq!(stand.read(&newer, SEED).await, (!signs_in).then_some(1));
    }
}

async fn unsettled_write_is_reported_and_not_retried(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let handler = async |session: Session| {
        stand.store.inject(Verb::Replace, Fault::LoseAnswer);
        stand.store.fail_always(Verb::Load, Fault::Unavailable);
        session.update(A, |number| *number += 1)?;
        assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
        // The handler ignores the error and continues.
        stand.store.heal();
        Ok(())
    };
    let visited = stand.visit(&cookie, handler).await;
    assert_eq!(visited.failure(), Some(ErrorKind::OutcomeUnknown));
    assert_eq!(stand.read(&cookie, A).await, Some(1));
}

async fn refused_write_leaves_session_unchanged(on: Backend) {
    for fault in [Fault::Refused, Fault::TooLarge, Fault::Unavailable] {
        let stand = on.stand();
        for principal in ["alice", "bob"] {
            let cookie = stand.signed_in("alice").await;
            let change = async |session: Session| {
                session.insert(SEED, &2)?;
                session.sign_in(principal)
            };
            stand.store.fail_always(Verb::Replace, fault);
            stand.store.fail_always(Verb::Create, fault);
            let refused = stand.visit(&cookie, change).await;
            assert!(refused.failure().is_some() && refused.set_cookie.is_none());
            stand.store.heal();
            assert_eq!(stand.who(&cookie).await.as_deref(), Some("alice"));
            assert_eq!(stand.read(&cookie, SEED).await, Some(1));
        }
    }
}

async fn hanging_store_returns_error_within_timeout(on: Backend) {
    let stand = on.stand();
    let cookie = stand.signed_in("alice").await;
    for verbs in
        [&[Verb::Load][..], &[Verb::Replace], &[Verb::Replace, Verb::Load], &[Verb::Delete]]
    {
        let (started, stopwatch) = (tokio::time::Instant::now(), Stopwatch::start());
        let handler = async |session: Session| {
            verbs.iter().for_each(|verb| stand.store.fail_always(*verb, Fault::Hang));
            match verbs {
                [Verb::Delete] => session.sign_out(),
                _ => session.update(A, |number| *number += 1)?,
            }
            Ok(())
        };
        if verbs == [Verb::Load] {
            stand.store.fail_always(Verb::Load, Fault::Hang);
        }
        let visited = stand.visit(&cookie, handler).await;
        let kind = visited.failure().unwrap();
        assert!([ErrorKind::Unavailable, ErrorKind::OutcomeUnknown].contains(&kind), "{kind:?}");
        assert_eq!(visited.set_cookie, None);
        let limit = Duration::from_millis(1100) + stopwatch.stalled();
        assert!(started.elapsed() <= limit, "{:?}", started.elapsed());
        stand.store.heal();
    }
}

async fn commit_completes_after_client_disconnects(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let gate = stand.store.hold(Verb::Replace);
    {
        let mut request =
            Box::pin(stand.visit(&cookie, async |session: Session| session.insert(A, &1)));
        tokio::select! {
            _ = &mut request => panic!("the request passed the gate"),
            () = gate.reached() => {}
        }
    }
    gate.release();
    let is_kept = async || stand.read(&cookie, A).await == Some(1);
    eventually(is_kept, "the commit was abandoned with its client").await;
}

async fn save_after_response_head_fails_only_if_it_needs_cookie(on: Backend) {
    let stand = on.stand();
    let mut kept = None;
    stand
        .visit("", async |session: Session| {
            kept = Some(session.clone());
            Ok(())
        })
        .await
        .ok();
    let session = kept.unwrap();
    session.insert(A, &1).unwrap();
    assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::HeadSent);

    // A stream that continues after the response head can save and see that the session is alive.
    let cookie = stand.seeded().await;
    let mut kept = None;
    stand
        .visit(&cookie, async |session: Session| {
            kept = Some(session.clone());
            Ok(())
        })
        .await
        .ok();
    let session = kept.unwrap();
    session.insert(A, &1).unwrap();
    session.save().await.unwrap();
    assert_eq!(stand.read(&cookie, A).await, Some(1));
    stand.write(&cookie, A, 2).await;
    session.reload().await.unwrap();
    assert_eq!(session.get(A).unwrap(), Some(2));
    stand.sign_out(&cookie).await;
    assert_eq!(session.reload().await.unwrap_err().kind(), ErrorKind::Gone);
}

async fn sessions_with_colliding_ids_stay_separate(on: Backend) {
    let id = Repeating::default();
    let stand = on.stand_with(|builder| builder.entropy(id.clone()));
    let create = |mark: u32| async move |session: Session| session.insert(A, &mark);
    // Both requests have drawn the same id before either has stored a record.
    let gate = stand.store.hold(Verb::Create);
    let both = async {
        let first = stand.visit("", create(1));
        let second = async {
            gate.reached().await;
            let second = stand.visit("", create(2)).await;
            gate.release();
            second
        };
        futures_util::join!(first, second)
    };
    let (first, second) = both.await;
    let (first, second) = (first.cookie(), second.cookie());
    // This range covers the cookie's name and the characters that encode only the id.
    assert_ne!(first[..31], second[..31]);
    assert_eq!(stand.read(&first, A).await, Some(1));
    assert_eq!(stand.read(&second, A).await, Some(2));
    assert!(id.was_repeated());
}

/// A source of randomness that returns its first sixteen bytes, which are a session id, a second time.
#[derive(Debug, Clone, Default)]
struct Repeating(Arc<Mutex<Vec<Vec<u8>>>>);

impl Repeating {
    fn was_repeated(&self) -> bool {
        let drawn = self.0.lock().unwrap();
        drawn.iter().filter(|id| **id == drawn[0]).count() > 1
    }
}

impl Entropy for Repeating {
    fn fill(&self, bytes: &mut [u8]) -> Result<()> {
        let random = random_record(bytes.len());
        bytes.copy_from_slice(&random[..bytes.len()]);
        if bytes.len() == 16 {
            let mut drawn = self.0.lock().unwrap();
            // The first request draws an id and a secret before the second request draws an id.
            if drawn.len() == 2 {
                bytes.copy_from_slice(&drawn[0]);
            }
            drawn.push(bytes.to_vec());
        }
        Ok(())
    }
}

/// A store that already holds a record with the new id whenever a session is created.
struct Taken(MemoryStore);

impl Interceptor for Taken {
    async fn intercept<T: Send + 'static>(
        &self,
        verb: Verb,
        key: &StoreKey,
        call: Call<T>,
    ) -> Result<T> {
        if verb == Verb::Create && key.kind() == Kind::Session {
            self.0.create(key, random_record(64), Duration::from_secs(60)).await?;
        }
        call().await
    }
}

/// If every new id belongs to an existing record, requests fail instead of giving a visitor someone else's
/// session.
#[tokio::test]
async fn session_is_not_created_under_existing_id() {
    let store = MemoryStore::new();
    let store = Intercepted::new(Arc::new(store.clone()), Taken(store));
    let stand = Stand::over(Arc::new(store), |builder| builder);
    let insert = stand.visit("", async |session: Session| session.insert(A, &1)).await;
    assert_eq!((insert.failure(), insert.set_cookie), (Some(ErrorKind::Randomness), None));
    let signed_in = stand.visit("", sign_in).await;
    assert_eq!((signed_in.failure(), signed_in.set_cookie), (Some(ErrorKind::Randomness), None));
    assert!(stand.sessions.of("alice").list().await.unwrap().is_empty());
}

/// The sign-out takes effect, and the error says that the later changes were not saved.
#[tokio::test]
async fn failed_create_after_sign_out_is_reported() {
    let stand = Backend::memory().stand();
    let cookie = stand.signed_in("alice").await;
    let start_over = async |session: Session| {
        session.sign_out();
        session.insert(A, &1)
    };
    stand.store.inject(Verb::Create, Fault::Refused);
    let visited = stand.visit(&cookie, start_over).await;
    assert!(visited.removes_cookie());
    assert_eq!(visited.failure(), Some(ErrorKind::Refused));
    assert_eq!(stand.who(&cookie).await, None);
}

/// Creates an error with this message.
type Make = fn(&'static str) -> Error;

/// A store that applies every command, but returns the given error for each command with the given verb.
#[derive(Default)]
struct Failing(Mutex<Option<(Verb, Make)>>);

impl Interceptor for Failing {
    async fn intercept<T: Send + 'static>(
        &self,
        verb: Verb,
        _: &StoreKey,
        call: Call<T>,
    ) -> Result<T> {
        let answer = call().await;
        match *self.0.lock().unwrap() {
            Some((failing, error)) if verb == failing => Err(error("as the test says")),
            _ => answer,
        }
    }
}

/// Returns sessions on a [`Failing`] store, and the handle that sets the verb and the error.
fn failing_stand() -> (Stand, Arc<Failing>) {
    let store = Intercepted::new(Arc::new(MemoryStore::new()), Failing::default());
    let fails = store.interceptor.clone();
    (Stand::over(Arc::new(store), |builder| builder), fails)
}

/// A server may have applied a write even if its answer is invalid, so a load settles the outcome.
#[tokio::test]
async fn invalid_answer_to_write_is_settled() {
    let (stand, fails) = failing_stand();
    let cookie = stand.seeded().await;
    let increment = async |session: Session| {
        *fails.0.lock().unwrap() = Some((Verb::Replace, |text| Error::corrupt(text)));
        session.update(A, |number| *number += 1)
    };
    assert_eq!(stand.visit(&cookie, increment).await.failure(), None);
    assert_eq!(stand.read(&cookie, A).await, Some(1));
}

/// A load changes nothing, so its outcome is never in doubt: an invalid answer counts as an outage. A
/// refusal stays a refusal.
#[tokio::test]
async fn failed_load_is_unavailable_or_refused() {
    let (stand, fails) = failing_stand();
    let cookie = stand.seeded().await;
    let cases: [(Make, _); 4] = [
        (|text| Error::unavailable(text), ErrorKind::Unavailable),
        (|text| Error::outcome_unknown(text), ErrorKind::Unavailable),
        (|text| Error::corrupt(text), ErrorKind::Unavailable),
        (|text| Error::refused(text), ErrorKind::Refused),
    ];
    for (error, kind) in cases {
        *fails.0.lock().unwrap() = Some((Verb::Load, error));
        let visited = stand.visit(&cookie, async |session: Session| session.get(SEED)).await;
        assert_eq!((visited.failure(), visited.set_cookie), (Some(kind), None));
    }
    *fails.0.lock().unwrap() = None;
    assert_eq!(stand.read(&cookie, SEED).await, Some(1));
}

/// A store in which a different writer always writes first. It records the commands that are sent to it.
struct AlwaysOvertaken {
    inner: MemoryStore,
    sent: Mutex<Vec<(Verb, Instant)>>,
}

impl Interceptor for AlwaysOvertaken {
    async fn intercept<T: Send + 'static>(
        &self,
        verb: Verb,
        key: &StoreKey,
        call: Call<T>,
    ) -> Result<T> {
        self.sent.lock().unwrap().push((verb, Instant::now()));
        if matches!(verb, Verb::Replace | Verb::Delete) {
            let stored = self.inner.load(key).await?.unwrap();
            let bytes = stored.bytes.clone();
            self.inner.replace(key, bytes, Duration::from_secs(3600), &stored).await?;
        }
        call().await
    }
}

/// A source of randomness that makes each pause as long as possible.
#[derive(Debug)]
struct LongestPauses;

impl Entropy for LongestPauses {
    fn fill(&self, bytes: &mut [u8]) -> Result<()> {
        match bytes.len() {
            2 => bytes.fill(0xff),
            length => bytes.copy_from_slice(&random_record(length)[..length]),
        }
        Ok(())
    }
}

/// The first attempts follow one another at once. Later attempts pause so that writers in other processes can
/// finish, and the pause doubles every eight attempts. Each attempt starts from the newest record.
#[tokio::test(start_paused = true)]
async fn pauses_between_attempts_grow() {
    const PROMPT: usize = 8;
    let deeds = [(Verb::Replace, "save"), (Verb::Delete, "sign-out"), (Verb::Replace, "sign-in")];
    for (verb, deed) in deeds {
        let inner = MemoryStore::new();
        let overtaken = AlwaysOvertaken { inner: inner.clone(), sent: Mutex::default() };
        let store = Intercepted::new(Arc::new(inner), overtaken);
        let overtaken = store.interceptor.clone();
        let stand = Stand::over(Arc::new(store), |builder| builder.entropy(LongestPauses));
        // This creates Alice's directory record.
        stand.signed_in("alice").await;
        let cookie = stand.seeded().await;
        let failing = async |session: Session| {
            overtaken.sent.lock().unwrap().clear();
            match deed {
                "save" => session.insert(A, &1),
                "sign-out" => sign_out(session).await,
                _ => sign_in(session).await,
            }
        };
        assert_eq!(stand.visit(&cookie, failing).await.failure(), Some(ErrorKind::Contended));
        let sent = overtaken.sent.lock().unwrap().clone();
        let attempts: Vec<_> = sent.iter().filter(|(sent, _)| *sent == verb).collect();
        assert_eq!(attempts.len(), 64, "{deed}");
        for (number, pair) in attempts.windows(2).enumerate() {
            let pause = pair[1].1 - pair[0].1;
            let longest = Duration::from_micros(500) * (1 << (number / PROMPT).min(5));
            match number < PROMPT {
                true => assert_eq!(pause, Duration::ZERO, "{deed} {number}"),
                // The runtime's clock counts milliseconds.
                false => assert!(
                    pause + Duration::from_millis(1) >= longest
                        && pause < longest + Duration::from_millis(1),
                    "{deed} {number}: {pause:?}"
                ),
            }
        }
        if deed == "save" {
            let verbs: Vec<_> = sent.iter().map(|(verb, _)| *verb).collect();
            let (prompt, later) = verbs.split_at(PROMPT + 1);
            assert_eq!(prompt, [Verb::Replace; PROMPT + 1]);
            let (pairs, _) = later.as_chunks();
            assert!(pairs.iter().all(|pair| *pair == [Verb::Load, Verb::Replace]), "{later:?}");
        }
    }
}

async fn commit_attempts_and_command_retries_follow_configuration(on: Backend) {
    let increment = async |session: Session| session.update(A, |number| *number += 1);
    for (attempts, failure) in [(1, Some(ErrorKind::Contended)), (2, None)] {
        let stand = on.stand_with(|builder| builder.commit_attempts(attempts));
        let cookie = stand.seeded().await;
        let overtaken =
            stand.overtaken(&cookie, increment, async || stand.write(&cookie, B, 1).await).await;
        assert_eq!(overtaken.failure(), failure);
    }
    for (repeats, failure) in [(0, Some(ErrorKind::Unavailable)), (1, None)] {
        let stand = on.stand_with(|builder| builder.command_retries(repeats));
        let cookie = stand.seeded().await;
        for verb in [Verb::Load, Verb::Replace] {
            stand.store.inject(verb, Fault::Unavailable);
            assert_eq!(stand.visit(&cookie, increment).await.failure(), failure);
        }
        stand.store.inject(Verb::Create, Fault::Unavailable);
        assert_eq!(stand.visit("", increment).await.failure(), failure);
        stand.store.inject(Verb::Delete, Fault::Unavailable);
        assert_eq!(stand.visit(&cookie, sign_out).await.failure(), failure);
    }
}

on_every_store! {
    sessions_with_colliding_ids_stay_separate,
    commit_attempts_and_command_retries_follow_configuration,
    concurrent_writes_to_different_keys_all_survive,
    last_commit_wins_for_same_key,
    two_hundred_concurrent_increments_are_all_counted,
    concurrent_takes_hand_out_value_once,
    transact_enforces_attempt_limit_under_concurrency,
    save_does_not_undo_concurrent_sign_out,
    refresh_does_not_undo_concurrent_sign_out_or_lifetime_change,
    save_with_old_secret_is_merged_after_rotation,
    second_concurrent_rotation_sends_no_cookie,
    lifetime_change_fails_after_concurrent_rotation,
    save_is_rejected_after_concurrent_sign_in,
    concurrent_sign_ins_of_same_principal_both_succeed,
    sign_in_on_ended_session_starts_new_session,
    sign_out_wins_unless_another_principal_signs_in_concurrently,
    sign_out_then_insert_fails_after_concurrent_sign_in,
    commit_fails_with_gone_when_session_has_expired,
    save_error_ignored_by_handler_still_fails_response,
    save_of_nothing_keeps_session,
    in_doubt_end_of_session_leaves_outcome_of_take_unknown,
    refresh_is_not_retried_after_conflict,
    read_only_transaction_decides_once_on_each_record,
    read_only_transaction_at_first_use_decides_on_newest_record,
    failed_or_read_only_transaction_writes_nothing,
    transact_decides_on_newest_record,
    in_doubt_update_is_settled_and_applied_once,
    in_doubt_creates_and_deletes_are_settled,
    in_doubt_write_is_settled_after_up_to_seven_later_writes,
    late_copy_of_settled_write_has_no_effect,
    late_copy_that_overtakes_its_retry_is_applied_once,
    refusal_of_retried_command_leaves_outcome_unknown,
    replaced_secret_of_settled_write_is_not_sent,
    unsettled_write_is_reported_and_not_retried,
    refused_write_leaves_session_unchanged,
    hanging_store_returns_error_within_timeout,
    commit_completes_after_client_disconnects,
    save_after_response_head_fails_only_if_it_needs_cookie,
}

/// The value that the handler has computed is written as it is, unless the record has changed since.
#[tokio::test]
async fn update_is_computed_again_only_after_conflict() {
    let stand = Backend::memory().stand();
    let cookie = stand.seeded().await;
    let computed = Arc::new(AtomicUsize::new(0));
    let increment = async |session: Session| {
        let computed = computed.clone();
        session.update(A, move |number| {
            computed.fetch_add(1, Ordering::Relaxed);
            *number += 1;
        })
    };
    stand.visit(&cookie, increment).await.ok();
    assert_eq!((stand.read(&cookie, A).await, computed.load(Ordering::Relaxed)), (Some(1), 1));
    let other = async || stand.write(&cookie, A, 10).await;
    stand.overtaken(&cookie, increment, other).await.ok();
    assert_eq!((stand.read(&cookie, A).await, computed.load(Ordering::Relaxed)), (Some(11), 3));
}

/// A stream that uses the session after the response gets the full timeout, not the time that the request had
/// left.
#[tokio::test(start_paused = true)]
async fn handle_used_after_response_gets_full_timeout() {
    let stand = Backend::memory().stand();
    let cookie = stand.seeded().await;
    let (exchange, session) = stand.begin(&cookie).await;
    stand.store.fail_always(Verb::Load, Fault::Hang);
    for _ in 0..10 {
        assert_eq!(session.reload().await.unwrap_err().kind(), ErrorKind::Unavailable);
    }
    stand.store.heal();
    assert_eq!(session.reload().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(finish(exchange, 200).await.error.is_none());
    // Each operation of the stream gets the full timeout, however many there are.
    for number in 1..=3 {
        let begun = Instant::now();
        stand.store.fail_always(Verb::Load, Fault::Hang);
        assert_eq!(session.reload().await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert!(begun.elapsed() > Duration::from_millis(500), "{:?}", begun.elapsed());
        stand.store.heal();
        session.insert(A, &number).unwrap();
        session.save().await.unwrap();
        assert_eq!(stand.read(&cookie, A).await, Some(number));
    }
}

/// No operation on the memory store waits, so requests conflict only if they run on several threads.
mod memory_on_two_threads {
    use super::Backend;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_hundred_concurrent_increments_are_all_counted() {
        super::two_hundred_concurrent_increments_are_all_counted(Backend::memory()).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn transact_enforces_attempt_limit_under_concurrency() {
        super::transact_enforces_attempt_limit_under_concurrency(Backend::memory()).await;
    }
}
