//! Sessions end at the deadlines in their records on every store, even if the server still holds the
//! record. Servers also expire records by themselves.

#![cfg(all(feature = "testing", feature = "memory", feature = "redis", feature = "memcached"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::stand::{Backend, SEED, Stand};
use support::visit::visit;
use time::OffsetDateTime;
use unsticky::testing::{ManualClock, SpyStore, Verb};
use unsticky::{Clock as _, ErrorKind, Lifetime, Session, Sessions, Store};

const DAY: Duration = Duration::from_secs(86_400);

/// The stores do not use the manual clock, so they still hold records that have expired by that clock.
fn stand(on: &Backend, lifetime: Lifetime) -> Stand {
    Stand::over(on.store(), |builder| builder.lifetime(lifetime))
}

/// Returns whether the server still holds the record of the session that was used last.
async fn holds_the_last_key(spy: &SpyStore<Arc<dyn Store>>) -> bool {
    let key = spy.commands().last().unwrap().key.clone();
    spy.load(&key).await.unwrap().is_some()
}

async fn create(sessions: &Sessions) -> String {
    visit(sessions, "", async |session: Session| session.insert(SEED, &1)).await.cookie()
}

/// Returns whether the cookie is still valid.
async fn lives(sessions: &Sessions, cookie: &str) -> bool {
    let read = async |session: Session| session.get(SEED);
    visit(sessions, cookie, read).await.ok().is_some()
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[tokio::test]
async fn idle_timeout_ends_session_to_the_millisecond() {
    for on in Backend::every() {
        let Stand { sessions, spy, clock, .. } = stand(&on, Lifetime::new(ms(60_000), DAY));
        let (in_time, too_late) = (create(&sessions).await, create(&sessions).await);
        clock.advance(ms(59_999));
        assert!(lives(&sessions, &in_time).await, "{}", on.name());
        clock.advance(ms(1));
        assert!(lives(&sessions, &in_time).await, "{}: it was used", on.name());
        assert!(!lives(&sessions, &too_late).await, "{}", on.name());
        assert!(holds_the_last_key(&spy).await, "{}: the record decides", on.name());
    }
}

#[tokio::test]
async fn sliding_refresh_is_throttled_by_threshold() {
    for on in Backend::every() {
        let lifetime = Lifetime::new(ms(60_000), DAY).refresh_after(ms(10_000));
        let Stand { sessions, spy, clock, .. } = stand(&on, lifetime);
        let cookie = create(&sessions).await;
        for (advance, expected) in [
            (9_999, &[Verb::Load][..]),
            (1, &[Verb::Load, Verb::Replace]),
            (0, &[Verb::Load]),
            (9_999, &[Verb::Load]),
            (50_000, &[Verb::Load, Verb::Replace]),
            (59_999, &[Verb::Load, Verb::Replace]),
        ] {
            clock.advance(ms(advance));
            spy.take();
            assert!(lives(&sessions, &cookie).await, "{} {advance}", on.name());
            assert_eq!(spy.verbs(), expected, "{} {advance}", on.name());
        }
        clock.advance(ms(60_000));
        assert!(!lives(&sessions, &cookie).await, "{}", on.name());
    }
}

#[tokio::test]
async fn absolute_timeout_ends_session_in_constant_use() {
    for on in Backend::every() {
        let Stand { sessions, spy, clock, .. } = stand(&on, Lifetime::new(ms(60_000), ms(200_000)));
        let cookie = create(&sessions).await;
        for _ in 0..4 {
            clock.advance(ms(49_999));
            assert!(lives(&sessions, &cookie).await, "{}", on.name());
        }
        clock.advance(ms(3));
        assert!(lives(&sessions, &cookie).await, "{}", on.name());
        clock.advance(ms(1));
        assert!(!lives(&sessions, &cookie).await, "{}", on.name());
        assert!(holds_the_last_key(&spy).await, "{}: the record decides", on.name());
    }
}

#[tokio::test]
async fn step_up_renews_stale_authentication() {
    for on in Backend::every() {
        let Stand { sessions, clock, .. } = stand(&on, Lifetime::new(ms(600_000), ms(700_000)));
        let is_fresh = async |session: Session| Ok(session.authenticated_within(ms(60_000)));
        let sign_in = async |session: Session| {
            assert!(!session.authenticated_within(Duration::MAX), "nobody is signed in");
            session.insert(SEED, &1)?;
            session.sign_in("alice")?;
            session.insert(SEED, &2)?;
            Ok(session.authenticated_within(Duration::ZERO))
        };
        let signed_in = visit(&sessions, "", sign_in).await;
        let cookie = signed_in.cookie();
        assert!(signed_in.ok(), "{}: this request has seen the proof", on.name());
        clock.advance(ms(60_000));
        assert!(visit(&sessions, &cookie, is_fresh).await.ok(), "{}", on.name());
        clock.advance(ms(1));
        assert!(!visit(&sessions, &cookie, is_fresh).await.ok(), "{}", on.name());
        let stepped_up =
            visit(&sessions, &cookie, async |session: Session| session.step_up()).await;
        assert_eq!(stepped_up.failure(), None, "{}", on.name());
        assert!(!lives(&sessions, &cookie).await, "{}: the old secret is invalid", on.name());
        let cookie = stepped_up.cookie();
        assert!(visit(&sessions, &cookie, is_fresh).await.ok(), "{}", on.name());
        // Both timeouts have been restarted: the first absolute timeout has already passed.
        clock.advance(ms(599_999));
        assert!(lives(&sessions, &cookie).await, "{}", on.name());
        clock.advance(ms(99_999));
        let read = async |session: Session| Ok((session.get(SEED)?, session.principal()));
        let kept = visit(&sessions, &cookie, read).await.ok();
        assert_eq!(kept, (Some(2), Some("alice".into())), "{}", on.name());
    }
}

#[tokio::test]
async fn only_new_end_by_moves_session_end() {
    for on in Backend::every() {
        let Stand { sessions, clock, .. } = stand(&on, Lifetime::new(ms(600_000), ms(700_000)));
        let end = clock.now() + ms(100_000);
        let sign_in = async |session: Session| {
            session.sign_in("alice")?;
            session.insert(SEED, &1)?;
            session.end_by(end);
            Ok(())
        };
        let signed_in = visit(&sessions, "", sign_in).await;
        let set_cookie = signed_in.set_cookie.clone().unwrap();
        assert!(set_cookie.ends_with("; Max-Age=100"), "{}: {set_cookie}", on.name());
        clock.advance(ms(50_000));
        // Neither a step-up, nor a new lifetime, nor use of the session moves this deadline.
        let renew = async |session: Session| {
            session.set_lifetime(Lifetime::new(ms(900_000), DAY));
            session.step_up()
        };
        let renewed = visit(&sessions, &signed_in.cookie(), renew).await;
        let set_cookie = renewed.set_cookie.clone().unwrap();
        assert!(set_cookie.ends_with("; Max-Age=50"), "{}: {set_cookie}", on.name());
        let cookie = renewed.cookie();
        clock.advance(ms(49_999));
        assert!(lives(&sessions, &cookie).await, "{}", on.name());
        // The identity provider has extended its own session.
        let later = async |session: Session| {
            session.end_by(end + ms(10_000));
            Ok(())
        };
        let cookie = visit(&sessions, &cookie, later).await.cookie();
        clock.advance(ms(10_000));
        assert!(lives(&sessions, &cookie).await, "{}", on.name());
        clock.advance(ms(1));
        assert!(!lives(&sessions, &cookie).await, "{}", on.name());
    }
}

#[tokio::test]
async fn step_up_without_sign_in_fails_and_writes_nothing() {
    for on in Backend::every() {
        let Stand { sessions, spy, .. } = stand(&on, Lifetime::default());
        let cookie = create(&sessions).await;
        for cookie in ["", &cookie] {
            spy.take();
            let visit = visit(&sessions, cookie, async |session: Session| session.step_up()).await;
            assert_eq!(visit.failure(), Some(ErrorKind::NotSignedIn), "{}", on.name());
            assert_eq!(visit.set_cookie, None, "{}", on.name());
            let writes = spy.verbs().into_iter().filter(|verb| *verb != Verb::Load);
            assert_eq!(writes.count(), 0, "{}", on.name());
        }
    }
}

#[tokio::test]
async fn sign_in_restarts_both_timeouts() {
    for on in Backend::every() {
        let Stand { sessions, clock, .. } = stand(&on, Lifetime::new(ms(60_000), ms(100_000)));
        let anonymous = create(&sessions).await;
        clock.advance(ms(50_000));
        let sign_in = async |session: Session| {
            session.sign_in("alice")?;
            session.insert(SEED, &2)?;
            session.save().await?;
            Ok((session.authenticated_at(), session.expires_at()))
        };
        let visit = visit(&sessions, &anonymous, sign_in).await;
        let cookie = visit.cookie();
        let now = unsticky::Clock::now(&clock);
        assert_eq!(visit.ok(), (Some(now), Some(now + ms(60_000))));
        clock.advance(ms(59_999));
        assert!(lives(&sessions, &cookie).await, "{}", on.name());
        clock.advance(ms(40_000));
        assert!(lives(&sessions, &cookie).await, "{}", on.name());
        clock.advance(ms(1));
        assert!(!lives(&sessions, &cookie).await, "{}", on.name());
    }
}

#[tokio::test]
async fn lifetime_over_thirty_days_is_honoured() {
    for on in Backend::every() {
        let Stand { sessions, spy, clock, .. } = stand(&on, Lifetime::new(DAY * 40, DAY * 400));
        // Memcached interprets a time to live of more than thirty days as a date, so this test needs
        // the real time.
        clock.set(OffsetDateTime::now_utc());
        let cookie = create(&sessions).await;
        assert!(holds_the_last_key(&spy).await, "{}", on.name());
        clock.advance(DAY * 39);
        assert!(lives(&sessions, &cookie).await, "{}", on.name());
        clock.advance(DAY * 40 - ms(1));
        assert!(lives(&sessions, &cookie).await, "{}", on.name());
        clock.advance(DAY * 40);
        assert!(!lives(&sessions, &cookie).await, "{}", on.name());
    }
}

#[tokio::test]
async fn lifetime_under_one_second_is_honoured() {
    for on in Backend::every() {
        let Stand { sessions, clock, .. } = stand(&on, Lifetime::new(ms(400), ms(900)));
        let cookie = create(&sessions).await;
        clock.advance(ms(399));
        assert!(lives(&sessions, &cookie).await, "{}", on.name());
        clock.advance(ms(399));
        assert!(lives(&sessions, &cookie).await, "{}", on.name());
        clock.advance(ms(102));
        assert!(!lives(&sessions, &cookie).await, "{}", on.name());
    }
}

#[tokio::test]
async fn servers_expire_sessions_by_themselves() {
    for on in Backend::every() {
        let Stand { sessions, spy, clock, .. } = stand(&on, Lifetime::new(ms(700), DAY));
        clock.set(OffsetDateTime::now_utc());
        let cookie = create(&sessions).await;
        assert!(holds_the_last_key(&spy).await, "{}", on.name());
        // The manual clock stands still, so only the server can expire the record, soon after its
        // deadline.
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        while holds_the_last_key(&spy).await {
            assert!(tokio::time::Instant::now() < deadline, "{}: kept for ever", on.name());
            tokio::time::sleep(ms(50)).await;
        }
        assert!(!lives(&sessions, &cookie).await, "{}", on.name());
    }
}

#[tokio::test]
async fn request_with_slow_clock_does_not_shorten_session() {
    let lifetime = Lifetime::new(ms(60_000), DAY);
    let stand = stand(&Backend::memory(), lifetime);
    let (ahead, behind) = (&stand.clock, ManualClock::new());
    ahead.advance(ms(5_000));
    let ahead_of = &stand.sessions;
    let behind_of = stand.process(|builder| builder.clock(behind.clone()).lifetime(lifetime));
    let cookie = create(ahead_of).await;
    // A process whose clock is behind uses the session. It does not shorten the deadline that the other
    // process has set.
    behind.advance(ms(20_000));
    assert!(lives(&behind_of, &cookie).await);
    ahead.advance(ms(59_999));
    assert!(lives(ahead_of, &cookie).await);
}
