//! Listing, counting, limiting and revoking the sessions of a principal, on every store.

#![cfg(all(feature = "testing", feature = "memory", feature = "redis", feature = "memcached"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::interceptor::{Call, Intercepted, Interceptor};
use support::stand::{A, Backend, SEED, Stand, on_every_store};
use support::visit::{Visit, finish, visit};
use unsticky::store::{Created, Kind, Store, StoreKey};
use unsticky::testing::{Command, Fault, Verb};
use unsticky::{
    Clock as _, ConcurrentSessions, DirectoryMode, ErrorKind, Lifetime, ListedSession, Result,
    Session, Sessions, SignIn,
};

const ALICE: &str = "alice";

/// Signs Alice in with a new session and returns the session's cookie.
async fn arrives(stand: &Stand, label: &str) -> String {
    arrival(&stand.sessions, label).await.cookie()
}

/// Signs Alice in with a new session, uses the session once to confirm the sign-in, and returns its cookie.
async fn confirmed(stand: &Stand, label: &str) -> String {
    let cookie = arrives(stand, label).await;
    assert!(is_alice(stand, &cookie).await);
    cookie
}

async fn arrival(sessions: &Sessions, label: &str) -> Visit<()> {
    let sign_in = SignIn::new(ALICE).label(label);
    visit(sessions, "", async |session: Session| session.sign_in_with(sign_in)).await
}

async fn list(stand: &Stand) -> Vec<ListedSession> {
    stand.sessions.of(ALICE).list().await.unwrap()
}

async fn labels(stand: &Stand) -> Vec<String> {
    let list = list(stand).await;
    list.iter().map(|listed| listed.label.as_deref().unwrap_or("-").to_owned()).collect()
}

async fn is_alice(stand: &Stand, cookie: &str) -> bool {
    stand.who(cookie).await.as_deref() == Some(ALICE)
}

/// Returns whether Alice is still signed in with each of the cookies.
async fn usable(stand: &Stand, cookies: &[String]) -> Vec<bool> {
    let mut usable = Vec::new();
    for cookie in cookies {
        usable.push(is_alice(stand, cookie).await);
    }
    usable
}

/// Counts the records of Alice's sessions in the store, whether or not they are listed.
async fn stored_as_alices(stand: &Stand) -> usize {
    let commands = stand.spy.commands();
    let sessions = commands.iter().filter(|command| command.key.kind() == Kind::Session);
    let keys: HashSet<&str> = sessions.clone().map(|command| command.key.as_str()).collect();
    let mut count = 0;
    for key in keys {
        let key = commands.iter().find(|command| command.key.as_str() == key).unwrap().key.clone();
        let stored = stand.spy.load(&key).await.unwrap();
        let is_alices = |bytes: &[u8]| bytes.windows(5).any(|part| part == b"alice");
        count += usize::from(stored.is_some_and(|stored| is_alices(&stored.bytes)));
    }
    count
}

/// Signs Alice in with this cookie's session, in a separate task.
fn sign_in_apart(stand: &Stand, cookie: &str) -> tokio::task::JoinHandle<Visit<()>> {
    let (sessions, cookie) = (stand.sessions.clone(), cookie.to_owned());
    tokio::spawn(async move {
        visit(&sessions, &cookie, async |session: Session| session.sign_in(ALICE)).await
    })
}

async fn list_shows_every_signed_in_session(on: Backend) {
    let stand = on.stand();
    assert!(list(&stand).await.is_empty());
    let phone = arrives(&stand, "phone").await;
    stand.clock.advance(Duration::from_secs(10));
    let anonymous = stand.seeded().await;
    let began = stand.clock.now();
    stand.clock.advance(Duration::from_secs(10));
    let laptop = stand.sign_in(&anonymous).await;
    stand.signed_in("bob").await;

    let look = async |session: Session| {
        let list = session.directory()?.list().await?;
        Ok((session.id().unwrap(), session.expires_at().unwrap(), list))
    };
    let (id, expires_at, found) = stand.visit(&laptop, look).await.ok();
    assert_eq!(found.len(), 2);
    let newest = &found[0];
    assert_eq!((newest.id, newest.label.as_deref(), newest.is_current), (id, None, true));
    assert_eq!((newest.created, newest.signed_in_at), (began, stand.clock.now()));
    assert_eq!((newest.last_seen, newest.expires_at), (stand.clock.now(), expires_at));
    assert_eq!((found[1].label.as_deref(), found[1].is_current), (Some("phone"), false));
    // An administrator sees the same list, but no session is marked as current.
    let seen: Vec<_> = list(&stand).await.iter().map(|one| (one.id, one.is_current)).collect();
    assert_eq!(seen, [(id, false), (found[1].id, false)]);
    assert_eq!(stand.sessions.of("bob").count().await.unwrap(), 1);
    assert_eq!(stand.sessions.of("carol").count().await.unwrap(), 0);

    // A session that signs in again moves to the top of the list, keeps its label, and is listed once.
    let phone = stand.sign_in(&phone).await;
    assert_eq!(labels(&stand).await, ["phone", "-"]);
    stand.sign_out(&laptop).await;
    assert_eq!(labels(&stand).await, ["phone"]);
    let rename =
        async |session: Session| session.sign_in_with(SignIn::new(ALICE).label("new phone"));
    let phone = stand.visit(&phone, rename).await.cookie();
    assert_eq!(labels(&stand).await, ["new phone"]);
    // Bob signs in with the same cookie: Alice's session ends, and the new session is on Bob's list.
    let switch = async |session: Session| session.sign_in("bob");
    stand.visit(&phone, switch).await.ok();
    assert!(list(&stand).await.is_empty());
    assert_eq!(stand.sessions.of("bob").count().await.unwrap(), 2);
}

async fn session_is_listed_until_it_expires(on: Backend) {
    let hours = |hours: u64| Duration::from_secs(3600 * hours);
    let stand = on.stand_with(|builder| builder.lifetime(Lifetime::new(hours(1), hours(2))));
    let short = arrives(&stand, "short").await;
    let long = arrives(&stand, "long").await;
    let remember = async |session: Session| {
        session.set_lifetime(Lifetime::new(hours(100), hours(1000)));
        Ok(())
    };
    let long = stand.visit(&long, remember).await.cookie();
    // Constant use keeps a session in the directory until its absolute timeout.
    for _ in 0..3 {
        stand.clock.advance(hours(1) - Duration::from_secs(600));
        assert!(is_alice(&stand, &long).await);
        is_alice(&stand, &short).await;
    }
    assert!(!is_alice(&stand, &short).await, "past its absolute timeout");
    assert_eq!(labels(&stand).await, ["long"]);
    stand.clock.advance(hours(90));
    assert!(is_alice(&stand, &long).await);
    // A later sign-in removes the expired entries, and no others.
    arrives(&stand, "new").await;
    assert_eq!(labels(&stand).await, ["new", "long"]);
}

async fn three_concurrent_sign_ins_list_three_sessions(on: Backend) {
    let stand = on.stand();
    let (one, two, three) = tokio::join!(
        arrival(&stand.sessions, "one"),
        arrival(&stand.sessions, "two"),
        arrival(&stand.sessions, "three")
    );
    assert_eq!([one.failure(), two.failure(), three.failure()], [None; 3]);
    let mut found = labels(&stand).await;
    found.sort();
    assert_eq!(found, ["one", "three", "two"]);
}

/// After more concurrent sign-ins than the limit allows, exactly as many sessions exist as are allowed, under
/// each policy. A sign-in that returned an error has no session.
async fn session_limit_holds_for_concurrent_sign_ins(on: Backend) {
    for policy in [ConcurrentSessions::EvictOldest(4), ConcurrentSessions::Reject(4)] {
        for at_once in [5, 20] {
            let stand = on.stand_with(|builder| {
                let namespace =
                    format!("limit-{at_once}-{}", policy == ConcurrentSessions::Reject(4));
                builder
                    .concurrent_sessions(policy)
                    .namespace(namespace)
                    .timeout(Duration::from_secs(20))
            });
            let arrivals = (0..at_once).map(|number| {
                let sessions = stand.sessions.clone();
                tokio::spawn(async move { arrival(&sessions, &number.to_string()).await })
            });
            let mut cookies = Vec::new();
            for arrival in arrivals.collect::<Vec<_>>() {
                let visit = arrival.await.unwrap();
                match visit.failure() {
                    None => cookies.push(visit.cookie()),
                    Some(failure) => {
                        let is_refused = failure == ErrorKind::TooManySessions;
                        let rejects = policy == ConcurrentSessions::Reject(4);
                        let is_expected = failure == ErrorKind::Contended || is_refused && rejects;
                        assert!(is_expected, "{policy:?}: {failure:?}");
                        assert_eq!(visit.set_cookie, None);
                    }
                }
            }
            let alive = usable(&stand, &cookies).await.into_iter().filter(|usable| *usable).count();
            assert_eq!(alive, 4, "{policy:?}, {at_once} at once, {} answered", cookies.len());
            assert_eq!(list(&stand).await.len(), 4, "{policy:?}");
            // A later sign-in may have revoked a session that no browser has used yet.
            assert!(cookies.len() >= 4, "{policy:?}");
        }
    }
}

async fn sign_in_evicts_session_that_signed_in_longest_ago(on: Backend) {
    let stand =
        on.stand_with(|builder| builder.concurrent_sessions(ConcurrentSessions::EvictOldest(2)));
    let first = arrives(&stand, "first").await;
    let second = arrives(&stand, "second").await;
    let first = stand.sign_in(&first).await;
    // The first session has signed in more recently than the second.
    let third = arrives(&stand, "third").await;
    assert_eq!(usable(&stand, &[first.clone(), second, third.clone()]).await, [true, false, true]);
    // A session that has ended makes room, even if it signed in recently.
    stand.sign_out(&third).await;
    let fourth = arrives(&stand, "fourth").await;
    assert_eq!(usable(&stand, &[first, fourth]).await, [true, true]);
}

async fn sign_in_over_session_limit_is_refused(on: Backend) {
    let stand = on.stand_with(|builder| builder.concurrent_sessions(ConcurrentSessions::Reject(1)));
    let first = confirmed(&stand, "first").await;
    let anonymous = stand.seeded().await;
    let sign_in = async |session: Session| {
        session.insert(A, &7)?;
        session.sign_in(ALICE)
    };
    let refused = stand.visit(&anonymous, sign_in).await;
    assert_eq!((refused.failure(), &refused.set_cookie), (Some(ErrorKind::TooManySessions), &None));
    // The sign-in was refused before anything was changed.
    assert_eq!(stand.read(&anonymous, SEED).await, Some(1));
    assert_eq!(stand.read(&anonymous, A).await, None);
    assert_eq!(stand.who(&anonymous).await, None);
    // A handler can save early and render its own response.
    let save = async |session: Session| {
        session.sign_in(ALICE)?;
        session.save().await
    };
    let kind = stand.visit(&anonymous, save).await.output.unwrap_err().kind();
    assert_eq!(kind, ErrorKind::TooManySessions);
    let a_page_of_its_own = async |session: Session| {
        session.insert(A, &7)?;
        session.sign_in(ALICE)?;
        assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::TooManySessions);
        // There is room again, but the commit at the end of the request must not retry the sign-in.
        stand.sign_out(&first).await;
        Ok(session.is_signed_in())
    };
    let page = stand.visit(&anonymous, a_page_of_its_own).await;
    assert_eq!((page.set_cookie.clone(), page.ok()), (None, false));
    assert_eq!((stand.who(&anonymous).await, stand.read(&anonymous, A).await), (None, None));
    let first = arrives(&stand, "first").await;
    // Signing in again with the same session does not count as an additional session, and neither does
    // signing in after the request has ended its old session.
    let first = stand.sign_in(&first).await;
    let renew = async |session: Session| {
        session.sign_out();
        session.sign_in(ALICE)
    };
    let renewed = stand.visit(&first, renew).await.cookie();
    assert_eq!(usable(&stand, &[first, renewed.clone()]).await, [false, true]);
    // A sign-out makes room at once.
    stand.sign_out(&renewed).await;
    let again = arrives(&stand, "again").await;
    assert!(is_alice(&stand, &again).await);
    // An idle timeout makes room too. The server removes expired records according to its own clock, so the
    // test deletes the record itself.
    let id = stand.visit(&again, async |session: Session| Ok(session.id())).await.ok().unwrap();
    stand.clock.advance(Duration::from_secs(31 * 60));
    let is_its = |command: &&Command| command.key.as_str().ends_with(&id.to_string());
    let key = stand.spy.commands().iter().rfind(is_its).unwrap().key.clone();
    stand.spy.delete(&key, None).await.unwrap();
    assert!(is_alice(&stand, &arrives(&stand, "later").await).await);
}

async fn revoke_ends_one_session_of_its_principal(on: Backend) {
    let stand = on.stand();
    let (phone, laptop) = (arrives(&stand, "phone").await, arrives(&stand, "laptop").await);
    let bob = stand.signed_in("bob").await;
    let bobs = stand.sessions.of("bob").list().await.unwrap()[0].id;
    let directory = stand.sessions.of(ALICE);
    let id = list(&stand).await[1].id;
    // A principal's directory cannot revoke another principal's session.
    assert!(!directory.revoke(bobs).await.unwrap());
    assert!(directory.revoke(id).await.unwrap());
    assert!(!directory.revoke(id).await.unwrap(), "already revoked");
    assert_eq!(usable(&stand, &[phone, laptop.clone()]).await, [false, true]);
    assert_eq!(stand.who(&bob).await.as_deref(), Some("bob"));
    assert_eq!(labels(&stand).await, ["laptop"]);
    // A request that revokes its own session loses the values that it wrote.
    let end_own = async |session: Session| {
        session.insert(A, &1)?;
        let own = session.id().unwrap();
        session.directory()?.revoke(own).await
    };
    let ended = stand.visit(&laptop, end_own).await;
    assert_eq!((ended.error, &ended.set_cookie), (Some(ErrorKind::Gone), &None));
}

async fn revoke_all_ends_every_session_of_principal(on: Backend) {
    let stand = on.stand();
    let directory = stand.sessions.of(ALICE);
    let nobody = stand.sessions.of("nobody").revoke_all().await.unwrap();
    assert_eq!((nobody.count, nobody.complete), (0, false), "there was no directory");
    let cookies =
        [arrives(&stand, "1").await, arrives(&stand, "2").await, arrives(&stand, "3").await];
    stand.sign_out(&cookies[1]).await;
    let bob = stand.signed_in("bob").await;
    let revoked = directory.revoke_all().await.unwrap();
    assert_eq!((revoked.count, revoked.complete), (2, true));
    assert_eq!(usable(&stand, &cookies).await, [false; 3]);
    assert!(list(&stand).await.is_empty());
    assert_eq!(stand.who(&bob).await.as_deref(), Some("bob"));
    // Later sign-ins succeed.
    assert!(is_alice(&stand, &arrives(&stand, "new").await).await);
    assert_eq!(directory.revoke_all().await.unwrap().count, 1);
}

async fn revoke_others_ends_every_other_session(on: Backend) {
    let stand = on.stand_with(|builder| builder.gone_status(440));
    let other = arrives(&stand, "other").await;
    let own = arrives(&stand, "own").await;
    let change_password = async |session: Session| {
        session.insert(A, &5)?;
        session.directory()?.revoke_others(&session).await
    };
    let visit = stand.visit(&own, change_password).await;
    let renewed = visit.cookie();
    let revoked = visit.ok();
    assert_eq!((revoked.count, revoked.complete), (1, true));
    // The kept session has a new secret and the value that the request wrote.
    assert_eq!(usable(&stand, &[other, own, renewed.clone()]).await, [false, false, true]);
    assert_eq!(stand.read(&renewed, A).await, Some(5));
    assert_eq!(labels(&stand).await, ["own"]);
    // Another principal's session cannot revoke Alice's sessions.
    let bob = stand.signed_in("bob").await;
    let alices = stand.sessions.of(ALICE);
    let foreign = async |session: Session| alices.revoke_others(&session).await;
    assert_eq!(stand.visit(&bob, foreign).await.failure(), Some(ErrorKind::NotSignedIn));
    let anonymous = async |session: Session| session.directory().map(|_| ());
    assert_eq!(stand.visit("", anonymous).await.failure(), Some(ErrorKind::NotSignedIn));
    // A session that was revoked during the request cannot revoke the others.
    let thief = arrives(&stand, "thief").await;
    let id = list(&stand).await[0].id;
    let too_late = async |session: Session| session.directory()?.revoke_others(&session).await;
    let visit = stand.overtaken(&thief, too_late, async || {
        assert!(alices.revoke(id).await.unwrap());
    });
    let error = visit.await.output.unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::Gone, 440));
    assert!(is_alice(&stand, &renewed).await);
    // A session that was revoked right after its secret was rotated cannot revoke the others either.
    let thief = arrives(&stand, "thief").await;
    let id = list(&stand).await[0].id;
    let gate = stand.store.hold_answer(Verb::Replace);
    let (visit, ()) = tokio::join!(stand.visit(&thief, too_late), async {
        gate.reached().await;
        assert!(alices.revoke(id).await.unwrap());
        gate.release();
    });
    let error = visit.output.unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::Gone, 440));
    assert!(is_alice(&stand, &renewed).await);
    // If two sessions revoke all others at the same time, exactly one of the two is left.
    let second = arrives(&stand, "second").await;
    let (one, two) = tokio::join!(stand.visit(&renewed, too_late), stand.visit(&second, too_late));
    let cookies = [renewed, second, one.cookie(), two.cookie()];
    let left: Vec<_> = usable(&stand, &cookies).await;
    assert_eq!(left.iter().filter(|usable| **usable).count(), 1, "{left:?}");
    // A session that signs in during the same request is kept as well.
    let reset = async |session: Session| {
        session.sign_in(ALICE)?;
        session.directory()?.revoke_others(&session).await
    };
    let visit = stand.visit("", reset).await;
    let kept = visit.cookie();
    assert_eq!(visit.ok().count, 1);
    assert_eq!(usable(&stand, &cookies).await, [false; 4]);
    assert!(is_alice(&stand, &kept).await);
}

/// The directory marks the session as revoked, but the session's record still exists.
async fn session_that_is_being_revoked_cannot_revoke_others(on: Backend) {
    let stand = on.stand();
    let other = arrives(&stand, "other").await;
    let thief = arrives(&stand, "thief").await;
    let (alices, id) = (stand.sessions.of(ALICE), list(&stand).await[0].id);
    let revoke_others = async |session: Session| session.directory()?.revoke_others(&session).await;
    let gate = stand.store.hold(Verb::Delete);
    let (revoked, visit) = tokio::join!(alices.revoke(id), async {
        gate.reached().await;
        let visit = stand.visit(&thief, revoke_others).await;
        gate.release();
        visit
    });
    assert!(revoked.unwrap());
    assert_eq!(visit.failure(), Some(ErrorKind::Gone));
    assert_eq!(usable(&stand, &[thief, visit.cookie(), other]).await, [false, false, true]);
    assert_eq!(labels(&stand).await, ["other"]);
}

/// After all sessions have been revoked, none is alive, whatever requests were in progress at the time.
async fn revoke_all_beats_requests_in_progress(on: Backend) {
    let stand = on.stand();
    type Deed = fn(&Session) -> Result<()>;
    let deeds: [(&str, Deed); 4] = [
        ("a slow save", |session| session.insert(A, &1)),
        ("a rotation", |session| {
            session.rotate();
            Ok(())
        }),
        ("a step-up", Session::step_up),
        ("another lifetime", |session| {
            session.set_lifetime(Lifetime::nist_aal1());
            Ok(())
        }),
    ];
    for (name, deed) in deeds {
        let cookie = arrives(&stand, name).await;
        let visit = stand
            .overtaken(
                &cookie,
                async |session: Session| deed(&session),
                async || {
                    assert_eq!(
                        stand.sessions.of(ALICE).revoke_all().await.unwrap().count,
                        1,
                        "{name}"
                    );
                },
            )
            .await;
        let lost = ["a slow save", "a step-up"].contains(&name).then_some(ErrorKind::Gone);
        assert_eq!(visit.failure(), lost, "{name}");
        assert_eq!(visit.set_cookie, None, "{name}");
        assert!(!is_alice(&stand, &cookie).await, "{name}");
        assert!(list(&stand).await.is_empty(), "{name}");
    }
    // This request causes a refresh, because part of the idle timeout has passed.
    let cookie = arrives(&stand, "refresh").await;
    stand.clock.advance(Duration::from_secs(600));
    let (exchange, session) = stand.begin(&cookie).await;
    stand.sessions.of(ALICE).revoke_all().await.unwrap();
    drop(session);
    assert_eq!(finish(exchange, 200).await.error.map(|error| error.kind()), None);
    assert!(!is_alice(&stand, &cookie).await);
}

/// Another request writes to the session after `revoke_all` has loaded it and before `revoke_all` deletes it.
async fn revoke_all_beats_write_between_load_and_delete(on: Backend) {
    let stand = on.stand();
    let cookie = arrives(&stand, "busy").await;
    let gate = stand.store.hold(Verb::Delete);
    let revoked = {
        let alice = stand.sessions.of(ALICE);
        tokio::spawn(async move { alice.revoke_all().await })
    };
    gate.reached().await;
    stand.write(&cookie, A, 1).await;
    gate.release();
    assert_eq!(revoked.await.unwrap().unwrap().count, 1);
    assert!(!is_alice(&stand, &cookie).await);
    assert_eq!(stored_as_alices(&stand).await, 0);
}

/// A sign-in with a new or an anonymous session has read the directory but not written it yet, or has
/// enrolled an anonymous session but not written it yet. After `revoke_all`, it fails with `Revoked`.
async fn revoke_all_beats_enrolled_sign_in(on: Backend) {
    for (is_new, is_listed) in [(true, false), (false, false), (false, true)] {
        let stand = on.stand_with(|builder| builder.timeout(Duration::from_secs(20)));
        let cookie = if is_new { String::new() } else { stand.seeded().await };
        arrives(&stand, "first").await;
        stand.sessions.of(ALICE).revoke_all().await.unwrap();
        if is_listed {
            // The write to the directory record passes.
            drop(stand.store.hold(Verb::Replace));
        }
        let gate = stand.store.hold(Verb::Replace);
        let sign_in = {
            let sessions = stand.sessions.clone();
            tokio::spawn(async move {
                visit(&sessions, &cookie, async |session: Session| {
                    session.insert(A, &3)?;
                    session.sign_in(ALICE)
                })
                .await
            })
        };
        gate.reached().await;
        assert_eq!(list(&stand).await, []);
        let revoked = stand.sessions.of(ALICE).revoke_all().await.unwrap();
        assert_eq!(revoked.count, 0);
        gate.release();
        let visit = sign_in.await.unwrap();
        assert_eq!(visit.failure(), Some(ErrorKind::Revoked), "{is_new} {is_listed}");
        assert_eq!(visit.set_cookie, None);
        assert!(list(&stand).await.is_empty());
        assert_eq!(stored_as_alices(&stand).await, 0);
    }
}

/// A sign-in is enrolled, and then the store refuses to write its anonymous session. `revoke_all` leaves the
/// anonymous session alone, and also the session of another principal who later signs in with it.
async fn revoke_all_spares_session_left_enrolled_by_failed_sign_in(on: Backend) {
    let stand = on.stand();
    arrives(&stand, "first").await;
    let cookie = stand.seeded().await;
    drop(stand.store.hold(Verb::Replace));
    stand.store.inject(Verb::Replace, Fault::Refused);
    let sign_in = async |session: Session| session.sign_in(ALICE);
    assert_eq!(stand.visit(&cookie, sign_in).await.failure(), Some(ErrorKind::Refused));
    assert_eq!(labels(&stand).await, ["first"]);
    // Revoking all sessions leaves the anonymous session and its values alone.
    assert_eq!(stand.sessions.of(ALICE).revoke_all().await.unwrap().count, 1);
    assert_eq!(stand.read(&cookie, SEED).await, Some(1));

    drop(stand.store.hold(Verb::Replace));
    stand.store.inject(Verb::Replace, Fault::Refused);
    assert_eq!(stand.visit(&cookie, sign_in).await.failure(), Some(ErrorKind::Refused));
    let as_bob = async |session: Session| session.sign_in("bob");
    let cookie = stand.visit(&cookie, as_bob).await.cookie();
    assert_eq!(list(&stand).await, []);
    assert_eq!(stand.sessions.of(ALICE).revoke_all().await.unwrap().count, 0);
    assert_eq!(stand.who(&cookie).await.as_deref(), Some("bob"));
}

/// A pool of servers. The server that stores a certain session can be down.
struct Pool {
    inner: Arc<dyn Store>,
    down: Mutex<Down>,
    /// The keys under which records were created, the newest last.
    created: Mutex<Vec<StoreKey>>,
}

enum Down {
    Nothing,
    /// The server that will store the next session goes down. `is_lost` determines whether the outcome of the
    /// session's create is then unknown.
    Next {
        is_lost: bool,
    },
    /// No server is down, but the client sends the create of the next session twice.
    Repeats,
    At(StoreKey),
}

impl Pool {
    fn start(parallel: ConcurrentSessions) -> (Arc<Self>, Sessions) {
        let (inner, down) = (Backend::memory().store(), Mutex::new(Down::Nothing));
        let pool = Self { inner: inner.clone(), down, created: Mutex::default() };
        let store = Intercepted::new(inner, pool);
        let builder = Sessions::builder(store.clone()).concurrent_sessions(parallel);
        (store.interceptor, builder.build().unwrap())
    }

    fn set(&self, down: Down) {
        *self.down.lock().unwrap() = down;
    }

    fn newest(&self, kind: Kind) -> StoreKey {
        let created = self.created.lock().unwrap();
        created.iter().rev().find(|key| key.kind() == kind).unwrap().clone()
    }

    fn created(&self, kind: Kind) -> usize {
        self.created.lock().unwrap().iter().filter(|key| key.kind() == kind).count()
    }

    /// Runs before a session is created. Returns whether the client sends the command twice.
    fn creates(&self, key: &StoreKey) -> Result<bool> {
        let mut down = self.down.lock().unwrap();
        match *down {
            Down::Repeats => {
                *down = Down::Nothing;
                return Ok(true);
            }
            Down::Next { is_lost } => {
                *down = Down::At(key.clone());
                if is_lost {
                    return Err(unsticky::Error::outcome_unknown("it went down"));
                }
            }
            Down::Nothing | Down::At(_) => {}
        }
        Ok(false)
    }

    fn reach(&self, key: &StoreKey) -> Result<()> {
        match &*self.down.lock().unwrap() {
            Down::At(down) if down == key => Err(unsticky::Error::unavailable("it is down")),
            _ => Ok(()),
        }
    }
}

impl Interceptor for Pool {
    async fn intercept<T: Send + 'static>(
        &self,
        verb: Verb,
        key: &StoreKey,
        call: Call<T>,
    ) -> Result<T> {
        if verb == Verb::Create {
            self.created.lock().unwrap().push(key.clone());
            if key.kind() == Kind::Session && self.creates(key)? {
                call().await?;
            }
        }
        self.reach(key)?;
        call().await
    }
}

/// Returns whether a principal is signed in with this cookie.
async fn is_valid(sessions: &Sessions, cookie: &str) -> bool {
    visit(sessions, cookie, async |session: Session| Ok(session.is_signed_in())).await.ok()
}

/// A sign-in whose session cannot be written keeps no reservation.
#[tokio::test]
async fn reservation_is_released_when_session_cannot_be_written() {
    for has_session in [false, true] {
        let (pool, sessions) = Pool::start(ConcurrentSessions::Reject(1));
        let anonymous = if has_session {
            let seed = async |session: Session| session.insert(SEED, &1);
            let anonymous = visit(&sessions, "", seed).await.cookie();
            let down = pool.newest(Kind::Session);
            let sign_in = async |session: Session| {
                pool.set(Down::At(down));
                session.sign_in(ALICE)
            };
            let failed = visit(&sessions, &anonymous, sign_in).await;
            assert_eq!(failed.failure(), Some(ErrorKind::Unavailable));
            Some(anonymous)
        } else {
            pool.set(Down::Next { is_lost: false });
            let failed = arrival(&sessions, "down").await;
            assert_eq!(failed.failure(), Some(ErrorKind::Unavailable));
            None
        };
        // The session's server is still down.
        let up = arrival(&sessions, "up").await.cookie();
        assert!(is_valid(&sessions, &up).await);
        pool.set(Down::Nothing);
        let list = sessions.of(ALICE).list().await.unwrap();
        assert_eq!(list.len(), 1, "{list:?}");
        if let Some(anonymous) = anonymous {
            let kept = visit(&sessions, &anonymous, async |session: Session| session.get(SEED));
            assert_eq!(kept.await.ok(), Some(1));
        }
    }
}

/// The outcome of a session's create is in doubt, so the request tries a second id. The first attempt does
/// not count against the limit.
#[tokio::test]
async fn in_doubt_reservation_does_not_count_against_limit() {
    let (pool, sessions) = Pool::start(ConcurrentSessions::Reject(1));
    for down in [Down::Next { is_lost: true }, Down::Repeats] {
        pool.set(down);
        let before = pool.created(Kind::Session);
        let new = arrival(&sessions, "new").await.cookie();
        assert_eq!(pool.created(Kind::Session), before + 2, "there was a second try");
        assert!(is_valid(&sessions, &new).await);
        pool.set(Down::Nothing);
        assert_eq!(sessions.of(ALICE).count().await.unwrap(), 1);
        assert_eq!(sessions.of(ALICE).revoke_all().await.unwrap().count, 1);
    }
}

/// A failed sign-in does not affect a different sign-in that has succeeded with the same session.
#[tokio::test]
async fn failed_sign_in_spares_other_sign_in_on_same_session() {
    for (enrols_first, fails) in [(false, true), (true, true), (true, false)] {
        let (pool, sessions) = Pool::start(ConcurrentSessions::Reject(1));
        let seed = async |session: Session| session.insert(SEED, &1);
        let anonymous = visit(&sessions, "", seed).await.cookie();
        let server = pool.newest(Kind::Session);
        let sign_in = async |session: Session| session.sign_in(ALICE);
        let mut other = String::new();
        let slow = async |session: Session| {
            if enrols_first {
                pool.set(Down::At(server.clone()));
                session.sign_in(ALICE)?;
                assert!(session.save().await.is_err());
                pool.set(Down::Nothing);
            }
            other = visit(&sessions, &anonymous, sign_in).await.cookie();
            assert!(
                is_valid(&sessions, &other).await,
                "the first use of the cookie confirms the sign-in"
            );
            if fails {
                pool.set(Down::At(server.clone()));
            }
            session.sign_in(ALICE)
        };
        let slow = visit(&sessions, &anonymous, slow).await;
        let kind = if fails { ErrorKind::Unavailable } else { ErrorKind::TooManySessions };
        assert_eq!(slow.failure(), Some(kind));
        pool.set(Down::Nothing);
        assert_eq!(sessions.of(ALICE).count().await.unwrap(), 1, "{enrols_first} {fails}");
        assert!(is_valid(&sessions, &other).await, "{enrols_first} {fails}");
    }
}

/// Creates a directory record that lists no sessions.
async fn empty_directory(stand: &Stand) {
    let old = arrives(stand, "old").await;
    stand.sign_out(&old).await;
    stand.clock.advance(Duration::from_secs(600));
    assert!(list(stand).await.is_empty());
}

/// While a failed sign-in releases its reservation, a second sign-in with the same session succeeds, in the
/// same millisecond or in the next. The second sign-in stays listed and valid.
async fn released_reservation_spares_newer_sign_in_on_same_session(on: Backend) {
    for (millis, is_down) in [(0, false), (1, false), (1, true)] {
        let namespace = format!("between-{millis}-{is_down}");
        let stand = on.stand_with(|builder| builder.command_retries(0).namespace(namespace));
        empty_directory(&stand).await;
        let anonymous = stand.seeded().await;
        // The session cannot be written, so the directory is read a second time. The test holds this load.
        drop(stand.store.hold(Verb::Replace));
        stand.store.inject(Verb::Replace, Fault::Unavailable);
        drop(stand.store.hold(Verb::Load));
        drop(stand.store.hold(Verb::Load));
        let gives_back = stand.store.hold(Verb::Load);
        let failing = sign_in_apart(&stand, &anonymous);
        gives_back.reached().await;
        stand.clock.advance(Duration::from_millis(millis));
        let other = stand.sign_in(&anonymous).await;
        if is_down {
            // The request then cannot load the session to find out who is signed in.
            stand.store.inject(Verb::Load, Fault::Unavailable);
        }
        gives_back.release();
        assert_eq!(failing.await.unwrap().failure(), Some(ErrorKind::Unavailable));
        stand.store.heal();
        assert_eq!(list(&stand).await.len(), 1, "{millis} {is_down}");
        assert!(is_alice(&stand, &other).await, "{millis} {is_down}");
    }
}

/// If a user who is signed in fails to sign in again, the session does not end, even if the directory does
/// not list it.
#[tokio::test]
async fn failed_reauthentication_ends_no_session() {
    let (pool, sessions) = Pool::start(ConcurrentSessions::default());
    let cookie = arrival(&sessions, "phone").await.cookie();
    pool.inner.delete(&pool.newest(Kind::Directory), None).await.unwrap();
    let sign_in = async |session: Session| {
        pool.set(Down::At(pool.newest(Kind::Session)));
        session.sign_in(ALICE)
    };
    let failed = visit(&sessions, &cookie, sign_in).await;
    assert_eq!(failed.failure(), Some(ErrorKind::Unavailable));
    pool.set(Down::Nothing);
    assert_eq!(sessions.of(ALICE).count().await.unwrap(), 1);
    assert!(is_valid(&sessions, &cookie).await);
}

/// The secret of an in-doubt sign-in was never sent to a client, so the sign-in keeps no reservation.
async fn in_doubt_sign_in_keeps_no_reservation(on: Backend) {
    for (fault, is_written) in [(Fault::LoseRequest, false), (Fault::LoseAnswer, true)] {
        let namespace = format!("unknown-{is_written}");
        let stand = on.stand_with(|builder| {
            builder.concurrent_sessions(ConcurrentSessions::Reject(1)).namespace(namespace)
        });
        empty_directory(&stand).await;
        let anonymous = stand.seeded().await;
        // The loads of the session and the directory pass. The load that would settle the session's write
        // fails.
        drop(stand.store.hold(Verb::Load));
        drop(stand.store.hold(Verb::Load));
        (0..3).for_each(|_| stand.store.inject(Verb::Load, Fault::Unavailable));
        drop(stand.store.hold(Verb::Replace));
        stand.store.inject(Verb::Replace, fault);
        let sign_in = async |session: Session| session.sign_in(ALICE);
        let unknown = stand.visit(&anonymous, sign_in).await;
        assert_eq!(unknown.failure(), Some(ErrorKind::OutcomeUnknown), "{fault:?}");
        stand.store.heal();
        assert_eq!(stored_as_alices(&stand).await, 0, "{fault:?}");
        assert_eq!(stand.read(&anonymous, SEED).await, (!is_written).then_some(1), "{fault:?}");
        stand.spy.take();
        assert!(list(&stand).await.is_empty());
        assert_eq!(stand.spy.verbs(), [Verb::Load], "the directory is empty: {fault:?}");
        let new = arrives(&stand, "new").await;
        assert!(is_alice(&stand, &new).await);
        assert_eq!(list(&stand).await.len(), 1);
    }
}

/// The answer to the directory write is lost, and then the directory cannot be read to settle the write.
async fn sign_in_keeps_no_reservation_when_directory_becomes_unreachable(on: Backend) {
    let stand = on.stand_with(|builder| builder.concurrent_sessions(ConcurrentSessions::Reject(1)));
    empty_directory(&stand).await;
    // The directory's first load passes.
    drop(stand.store.hold(Verb::Load));
    (0..3).for_each(|_| stand.store.inject(Verb::Load, Fault::Unavailable));
    stand.store.inject(Verb::Replace, Fault::LoseAnswer);
    let unsure = arrival(&stand.sessions, "unsure").await;
    assert_eq!((unsure.failure(), &unsure.set_cookie), (Some(ErrorKind::OutcomeUnknown), &None));
    stand.store.heal();
    stand.spy.take();
    assert!(list(&stand).await.is_empty());
    assert_eq!(stand.spy.verbs(), [Verb::Load], "the directory is empty");
    assert_eq!(stored_as_alices(&stand).await, 0);
    let new = arrives(&stand, "new").await;
    assert!(is_alice(&stand, &new).await);
    assert_eq!(list(&stand).await.len(), 1);
}

/// The answer to the directory write is lost, and the new session is revoked or evicted before the directory
/// is read again. The sign-in must not list that session again, and must not evict another session for it.
async fn sign_in_whose_session_was_revoked_gets_another_id(on: Backend) {
    for has_directory in [false, true] {
        for is_revoked in [false, true] {
            let namespace = format!("ended-{has_directory}-{is_revoked}");
            let stand = on.stand_with(|builder| {
                let builder = builder.concurrent_sessions(ConcurrentSessions::EvictOldest(1));
                builder.namespace(namespace).timeout(Duration::from_secs(20))
            });
            if has_directory {
                empty_directory(&stand).await;
                stand.store.inject(Verb::Replace, Fault::LoseAnswer);
            } else {
                drop(stand.store.hold(Verb::Create));
                stand.store.inject(Verb::Create, Fault::LoseAnswer);
            }
            drop(stand.store.hold(Verb::Load));
            let reads_again = stand.store.hold(Verb::Load);
            let first = sign_in_apart(&stand, "");
            reads_again.reached().await;
            let place = format!("{has_directory} {is_revoked}");
            let mut second = None;
            if is_revoked {
                let listed = list(&stand).await.pop().expect("its entry was written");
                assert!(stand.sessions.of(ALICE).revoke(listed.id).await.unwrap(), "{place}");
            } else {
                second = Some(arrives(&stand, "second").await);
            }
            reads_again.release();
            let first = first.await.unwrap();
            assert_eq!(first.failure(), None, "{place}");
            assert!(is_alice(&stand, &first.cookie()).await, "{place}");
            if let Some(second) = second {
                assert!(!is_alice(&stand, &second).await, "it was evicted: {place}");
            }
            assert_eq!(list(&stand).await.len(), 1, "{place}");
            assert_eq!(stored_as_alices(&stand).await, 1, "{place}");
        }
    }
}

/// The answers to the session's create and to the directory write are both lost. The sign-in is listed only
/// once.
async fn sign_in_with_two_lost_answers_is_listed_once(on: Backend) {
    let stand = on.stand_with(|builder| builder.concurrent_sessions(ConcurrentSessions::Reject(1)));
    empty_directory(&stand).await;
    stand.store.inject(Verb::Create, Fault::LoseAnswer);
    stand.store.inject(Verb::Replace, Fault::LoseAnswer);
    let new = arrives(&stand, "new").await;
    assert!(is_alice(&stand, &new).await);
    assert_eq!(list(&stand).await.len(), 1);
    assert_eq!(stored_as_alices(&stand).await, 1, "the first one is deleted");
}

/// The answers to the session's creates are lost. The session is deleted, even if no other id is tried
/// because the store cannot be read.
async fn in_doubt_new_session_is_deleted_when_its_sign_in_fails(on: Backend) {
    let stand = on.stand();
    for is_read in [true, false] {
        for _ in 0..3 {
            stand.store.inject(Verb::Create, Fault::LoseAnswer);
            if !is_read {
                stand.store.inject(Verb::Load, Fault::Unavailable);
            }
        }
        let failed = arrival(&stand.sessions, "failed").await;
        assert_eq!(failed.failure(), Some(ErrorKind::Unavailable), "{is_read}");
        assert_eq!(stored_as_alices(&stand).await, 0, "{is_read}");
        stand.store.heal();
    }
}

/// A request recognises its own reservation after a lost answer, or after a conflict a moment later, and
/// releases it when the sign-in fails.
async fn reservation_is_released_after_retried_enrolment(on: Backend) {
    for conflicts in [false, true] {
        let namespace = format!("second-{conflicts}");
        let stand = on.stand_with(|builder| builder.command_retries(0).namespace(namespace));
        empty_directory(&stand).await;
        let anonymous = stand.seeded().await;
        let sign_in = async |session: Session| session.sign_in(ALICE);
        let failed = if conflicts {
            // These writes come before the one that fails: the directory write, the session write, the other
            // request's write to the session, and a second directory write.
            drop(stand.store.hold(Verb::Replace));
            let writes = stand.store.hold(Verb::Replace);
            drop(stand.store.hold(Verb::Replace));
            drop(stand.store.hold(Verb::Replace));
            stand.store.inject(Verb::Replace, Fault::Unavailable);
            let (failed, ()) = tokio::join!(stand.visit(&anonymous, sign_in), async {
                writes.reached().await;
                stand.write(&anonymous, A, 1).await;
                stand.clock.advance(Duration::from_millis(1));
                writes.release();
            });
            failed
        } else {
            stand.store.inject(Verb::Replace, Fault::LoseAnswer);
            drop(stand.store.hold(Verb::Replace));
            stand.store.inject(Verb::Replace, Fault::Unavailable);
            stand.visit(&anonymous, sign_in).await
        };
        assert_eq!(failed.failure(), Some(ErrorKind::Unavailable), "{conflicts}");
        stand.spy.take();
        assert!(list(&stand).await.is_empty());
        assert_eq!(stand.spy.verbs(), [Verb::Load], "the directory is empty");
    }
}

/// Bob's session has been written, but Alice's earlier session cannot be ended. The sign-in fails, and Bob
/// can sign in again.
#[tokio::test(start_paused = true)]
async fn failed_account_switch_keeps_no_reservation() {
    let reject =
        |builder: unsticky::Builder| builder.concurrent_sessions(ConcurrentSessions::Reject(1));
    let stand = Backend::memory().stand_with(reject);
    let alice = arrives(&stand, "phone").await;
    stand.store.fail_always(Verb::Delete, Fault::Hang);
    let switch = stand.visit(&alice, async |session: Session| session.sign_in("bob")).await;
    assert_eq!((switch.failure(), &switch.set_cookie), (Some(ErrorKind::OutcomeUnknown), &None));
    stand.store.heal();
    let bob = stand.signed_in("bob").await;
    assert_eq!(stand.who(&bob).await.as_deref(), Some("bob"));
    assert_eq!(stand.sessions.of("bob").count().await.unwrap(), 1);
    assert!(is_alice(&stand, &alice).await);
}

/// There is no directory from which the new session could be cleaned up later, so the request itself must
/// delete it.
async fn failed_account_switch_leaves_no_new_session(on: Backend) {
    let stand = on.stand_with(|builder| builder.directory(DirectoryMode::Off));
    let alice = arrives(&stand, "phone").await;
    stand.store.inject(Verb::Delete, Fault::Refused);
    stand.spy.take();
    let switch = stand.visit(&alice, async |session: Session| session.sign_in("bob")).await;
    assert_eq!((switch.failure(), switch.set_cookie), (Some(ErrorKind::Refused), None));
    let commands = stand.spy.take();
    let created = commands.iter().find(|command| command.verb == Verb::Create).unwrap();
    assert_eq!(stand.spy.load(&created.key).await.unwrap(), None);
    assert!(is_alice(&stand, &alice).await);
}

/// A second sign-in is about to take over a reservation when the sign-in that holds the reservation
/// continues. Exactly one session remains, whichever of the two finishes first.
async fn contested_reservation_leaves_exactly_one_session(on: Backend) {
    let stand = on.stand_with(|builder| {
        builder.concurrent_sessions(ConcurrentSessions::Reject(1)).timeout(Duration::from_secs(20))
    });
    empty_directory(&stand).await;
    let anonymous = stand.seeded().await;
    // The first sign-in has been enrolled and waits before its session is written.
    drop(stand.store.hold(Verb::Replace));
    let first_writes = stand.store.hold(Verb::Replace);
    let first = sign_in_apart(&stand, &anonymous);
    first_writes.reached().await;
    // The second sign-in rewrites the first one's session and waits before it takes over the reservation.
    drop(stand.store.hold(Verb::Replace));
    let second_enrols = stand.store.hold(Verb::Replace);
    let second = {
        let sessions = stand.sessions.clone();
        tokio::spawn(async move { arrival(&sessions, "second").await })
    };
    second_enrols.reached().await;
    first_writes.release();
    let first = first.await.unwrap();
    second_enrols.release();
    let second = second.await.unwrap();
    let mut signed_in = 0;
    for visit in [&first, &second] {
        signed_in += usize::from(visit.failure().is_none());
    }
    // Both may succeed: the second sign-in may find that the first one has succeeded but that its cookie has
    // not been used yet.
    assert!(signed_in >= 1, "{:?} {:?}", first.failure(), second.failure());
    assert_eq!(list(&stand).await.len(), 1);
    assert_eq!(stored_as_alices(&stand).await, 1);
}

/// A sign-in evicts a session whose server is down. The sign-in does not wait for the server, and the evicted
/// session ends once the server is back.
#[tokio::test]
async fn unreachable_evicted_session_does_not_block_sign_in() {
    let (pool, sessions) = Pool::start(ConcurrentSessions::EvictOldest(1));
    let old = arrival(&sessions, "old").await.cookie();
    pool.set(Down::At(pool.newest(Kind::Session)));
    let new = arrival(&sessions, "new").await.cookie();
    assert!(is_valid(&sessions, &new).await);
    let directory = sessions.of(ALICE);
    assert_eq!(directory.count().await.unwrap(), 1);
    // The unreachable session does not prevent other sessions from being revoked. Only a revocation that
    // includes it returns an error.
    let id = directory.list().await.unwrap()[0].id;
    assert!(directory.revoke(id).await.unwrap());
    assert!(!is_valid(&sessions, &new).await);
    assert_eq!(directory.revoke_all().await.unwrap_err().kind(), ErrorKind::Unavailable);
    pool.set(Down::Nothing);
    assert_eq!(directory.count().await.unwrap(), 0);
    assert!(!is_valid(&sessions, &old).await);
}

/// A sign-in, successful or not, spends at most half its timeout waiting for a session that does not answer.
#[tokio::test(start_paused = true)]
async fn hanging_session_delays_sign_in_by_at_most_half_of_timeout() {
    let stand = Backend::memory()
        .stand_with(|builder| builder.concurrent_sessions(ConcurrentSessions::EvictOldest(1)));
    arrives(&stand, "old").await;
    let half = Duration::from_millis(500);
    let begun = tokio::time::Instant::now();
    stand.store.fail_always(Verb::Delete, Fault::Hang);
    let new = arrives(&stand, "new").await;
    assert!(begun.elapsed() <= half, "{:?}", begun.elapsed());
    stand.store.heal();
    assert!(is_alice(&stand, &new).await);

    let anonymous = stand.seeded().await;
    let begun = tokio::time::Instant::now();
    // Bob's directory record is created, and then the session cannot be written.
    stand.store.inject(Verb::Replace, Fault::Refused);
    // Both records are read, and then the directory is read again to release the reservation. After that, the
    // load of the session hangs.
    (0..3).for_each(|_| drop(stand.store.hold(Verb::Load)));
    stand.store.fail_always(Verb::Load, Fault::Hang);
    let sign_in = async |session: Session| session.sign_in("bob");
    assert_eq!(stand.visit(&anonymous, sign_in).await.failure(), Some(ErrorKind::Refused));
    assert!(begun.elapsed() <= half, "{:?}", begun.elapsed());
    stand.store.heal();
    assert!(stand.sessions.of("bob").list().await.unwrap().is_empty());
}

/// The store still holds the record, but the record says that the session has expired.
#[tokio::test]
async fn list_leaves_out_expired_session_that_is_still_stored() {
    let stand = Stand::over(Backend::memory().store(), |builder| builder);
    arrives(&stand, "old").await;
    assert_eq!(labels(&stand).await, ["old"]);
    stand.clock.advance(Duration::from_secs(1800));
    assert!(list(&stand).await.is_empty());
    assert_eq!(stored_as_alices(&stand).await, 1);
}

/// A process that is suspended until its request has timed out must not complete the sign-in, because the
/// tombstone that blocks a revoked sign-in expires.
#[tokio::test]
async fn sign_in_answered_after_deadline_fails() {
    struct Stalling;

    impl Interceptor for Stalling {
        async fn intercept<T: Send + 'static>(
            &self,
            verb: Verb,
            _: &StoreKey,
            call: Call<T>,
        ) -> Result<T> {
            let answer = call().await;
            if verb == Verb::Create {
                // This blocks the whole process, not only the task.
                std::thread::sleep(Duration::from_millis(15));
            }
            answer
        }
    }

    let builder = Sessions::builder(Intercepted::new(Backend::memory().store(), Stalling));
    let builder = builder.directory(DirectoryMode::Off).timeout(Duration::from_millis(10));
    let visit = arrival(&builder.build().unwrap(), "late").await;
    assert_eq!((visit.failure(), visit.set_cookie), (Some(ErrorKind::Unavailable), None));
}

/// All sessions are revoked after `begin_sign_in`, for example because the password was changed while a slow
/// password check was running. The sign-in fails.
async fn revoke_all_beats_begun_sign_in(on: Backend) {
    let stand = on.stand();
    // This also holds if the account has never signed in, so that there is no directory record yet.
    let sign_in = stand.sessions.of(ALICE).begin_sign_in().await.unwrap();
    stand.sessions.of(ALICE).revoke_all().await.unwrap();
    let finish_it = async |session: Session| session.sign_in_with(sign_in);
    assert_eq!(stand.visit("", finish_it).await.failure(), Some(ErrorKind::Revoked));
    stand.clock.advance(Duration::from_secs(2));
    for had_directory in [false, true] {
        let sign_in = stand.sessions.of(ALICE).begin_sign_in().await.unwrap();
        let other = stand.sessions.of(ALICE).begin_sign_in().await.unwrap();
        // Another device signs in meanwhile, which must not make this sign-in fail.
        arrives(&stand, "meanwhile").await;
        let finish_it = async |session: Session| session.sign_in_with(other.label("in time"));
        let in_time = stand.visit("", finish_it).await.cookie();
        assert!(is_alice(&stand, &in_time).await, "{had_directory}");
        stand.sessions.of(ALICE).revoke_all().await.unwrap();
        let finish_it = async |session: Session| session.sign_in_with(sign_in.clone());
        let late = stand.visit("", finish_it).await;
        assert_eq!((late.failure(), &late.set_cookie), (Some(ErrorKind::Revoked), &None));
        assert_eq!(stored_as_alices(&stand).await, 0, "{had_directory}");
    }
    // A sign-in that takes longer than the time for which revocations are remembered fails, even if the
    // directory record still exists.
    arrives(&stand, "another").await;
    let just_in_time = stand.sessions.of(ALICE).begin_sign_in().await.unwrap();
    stand.clock.advance(Duration::from_secs(3600));
    let finish_it = async |session: Session| session.sign_in_with(just_in_time);
    assert_eq!(stand.visit("", finish_it).await.failure(), None);
    let sign_in = stand.sessions.of(ALICE).begin_sign_in().await.unwrap();
    stand.clock.advance(Duration::from_secs(3601));
    let finish_it = async |session: Session| session.sign_in_with(sign_in);
    stand.spy.take();
    assert_eq!(stand.visit("", finish_it).await.failure(), Some(ErrorKind::Revoked));
    assert_eq!(stand.spy.verbs(), [], "nothing is written or deleted");
}

/// The sign-in is enrolled, but the write of its session conflicts, and by then the sign-in's time limit has
/// passed. The reservation is removed.
async fn sign_in_that_took_too_long_keeps_no_reservation(on: Backend) {
    let stand = on.stand_with(|builder| builder.timeout(Duration::from_secs(20)));
    let begun = stand.sessions.of(ALICE).begin_sign_in().await.unwrap();
    stand.clock.advance(Duration::from_secs(3600));
    let anonymous = stand.seeded().await;
    // The directory record is created, so the first replace writes the session.
    let writes = stand.store.hold(Verb::Replace);
    let slow = {
        let (sessions, cookie) = (stand.sessions.clone(), anonymous.clone());
        let sign_in = async |session: Session| session.sign_in_with(begun);
        tokio::spawn(async move { visit(&sessions, &cookie, sign_in).await })
    };
    writes.reached().await;
    stand.write(&anonymous, A, 1).await;
    stand.clock.advance(Duration::from_secs(1));
    writes.release();
    assert_eq!(slow.await.unwrap().failure(), Some(ErrorKind::Revoked));
    stand.spy.take();
    assert!(list(&stand).await.is_empty());
    assert_eq!(stand.spy.verbs(), [Verb::Load], "the directory is empty");
    assert_eq!(stand.read(&anonymous, SEED).await, Some(1));
}

/// A sign-in reuses the copy of the directory record that `begin_sign_in` read only if the copy is at most
/// ten seconds old and one write to the directory is enough.
async fn begun_sign_in_reads_directory_again_if_it_is_old_or_full(on: Backend) {
    use Verb::{Create, Load, Replace};
    let stand = on.stand_with(|builder| {
        builder.concurrent_sessions(ConcurrentSessions::EvictOldest(150)).namespace("one")
    });
    let verbs = async |sessions: &Sessions, begun: SignIn| {
        stand.spy.take();
        let finish_it = async |session: Session| session.sign_in_with(begun);
        assert_eq!(visit(sessions, "", finish_it).await.failure(), None);
        stand.taken_verbs()
    };
    let begin = async || stand.sessions.of(ALICE).begin_sign_in().await.unwrap();
    arrives(&stand, "first").await;
    for (seconds, expected) in [(10, vec![Create, Replace]), (11, vec![Create, Load, Replace])] {
        let begun = begin().await;
        stand.clock.advance(Duration::from_secs(seconds));
        assert_eq!(verbs(&stand.sessions, begun).await, expected, "{seconds}");
    }
    // This sign-in was begun on a different store and for a different principal, whose directory record does
    // not exist here.
    let other = on.stand_with(|builder| builder.namespace("other"));
    let begun = other.sessions.of("bob").begin_sign_in().await.unwrap();
    assert_eq!(verbs(&stand.sessions, begun).await, [Create, Load, Create]);
    // Under this process's lower limit the directory is full, so the copy from `begin_sign_in` must not
    // determine which session is evicted.
    let process = stand.process(|builder| {
        builder.concurrent_sessions(ConcurrentSessions::EvictOldest(3)).namespace("one")
    });
    let begun = process.of(ALICE).begin_sign_in().await.unwrap();
    stand.spy.take();
    let finish_it = async |session: Session| session.sign_in_with(begun);
    assert_eq!(visit(&process, "", finish_it).await.failure(), None);
    let second = &stand.spy.take()[1];
    assert_eq!((second.verb, second.key.kind()), (Load, Kind::Directory));
    // The record is now too large for a sign-in to keep in memory.
    for number in 0..130 {
        arrives(&stand, &format!("{number:x>128}")).await;
    }
    let begun = begin().await;
    assert_eq!(verbs(&stand.sessions, begun).await, [Create, Load, Replace]);
}

/// The directory has changed since `begin_sign_in` read it. The sign-in reads it again and starts over from
/// the newer record.
async fn begun_sign_in_reads_directory_again_if_it_has_changed(on: Backend) {
    use Verb::{Create, Load, Replace};
    let stand = on.stand();
    let begin = async || stand.sessions.of(ALICE).begin_sign_in().await.unwrap();
    let sign_in = async |begun: SignIn| {
        stand.spy.take();
        let finish_it = async |session: Session| session.sign_in_with(begun);
        let cookie = stand.visit("", finish_it).await.cookie();
        let verbs = stand.taken_verbs();
        assert!(is_alice(&stand, &cookie).await);
        verbs
    };
    // There was no directory record at first, but now there is one.
    let begun = begin().await;
    arrives(&stand, "meanwhile").await;
    assert_eq!(sign_in(begun.clone()).await, [Create, Create, Load, Replace]);
    let begun = begin().await;
    arrives(&stand, "meanwhile").await;
    assert_eq!(sign_in(begun).await, [Create, Replace, Load, Replace]);
    assert_eq!(list(&stand).await.len(), 4);
    // The store has evicted the directory record.
    let begun = begin().await;
    let key = stand.directory_key(ALICE).await;
    stand.spy.delete(&key, None).await.unwrap();
    assert_eq!(sign_in(begun).await, [Create, Replace, Load, Create]);
    assert_eq!(list(&stand).await.len(), 1);
}

/// A session that was written but cannot be listed is deleted again.
async fn refused_sign_in_leaves_no_session(on: Backend) {
    let stand = on.stand_with(|builder| builder.concurrent_sessions(ConcurrentSessions::Reject(1)));
    confirmed(&stand, "first").await;
    let refused = arrival(&stand.sessions, "second").await;
    assert_eq!((refused.failure(), refused.set_cookie), (Some(ErrorKind::TooManySessions), None));
    assert_eq!(stored_as_alices(&stand).await, 1);
    (0..3).for_each(|_| stand.store.inject(Verb::Load, Fault::Unavailable));
    let unread = arrival(&stand.sessions, "third").await;
    assert_eq!((unread.failure(), unread.set_cookie), (Some(ErrorKind::Unavailable), None));
    assert_eq!(stored_as_alices(&stand).await, 1);
    stand.sessions.of(ALICE).revoke_all().await.unwrap();
    stand.store.inject(Verb::Replace, Fault::Refused);
    let unlisted = arrival(&stand.sessions, "fourth").await;
    assert_eq!((unlisted.failure(), unlisted.set_cookie), (Some(ErrorKind::Refused), None));
    assert_eq!(stored_as_alices(&stand).await, 0);
}

/// If the session cannot be deleted, the sign-in is still refused within its time limit.
#[tokio::test(start_paused = true)]
async fn hanging_delete_delays_refused_sign_in_by_at_most_half_of_timeout() {
    let stand = Backend::memory()
        .stand_with(|builder| builder.concurrent_sessions(ConcurrentSessions::Reject(1)));
    confirmed(&stand, "first").await;
    stand.store.fail_always(Verb::Delete, Fault::Hang);
    let begun = tokio::time::Instant::now();
    let refused = arrival(&stand.sessions, "second").await;
    assert_eq!(refused.failure(), Some(ErrorKind::TooManySessions));
    assert!(begun.elapsed() <= Duration::from_millis(500), "{:?}", begun.elapsed());
    stand.store.heal();
    // The session that is left is not listed, and its secret was never sent.
    assert_eq!(stored_as_alices(&stand).await, 2);
    assert_eq!(labels(&stand).await, ["first"]);
}

/// A sign-in has been enrolled, but its session has not been written, as if its process had died. A new
/// sign-in takes over the reservation. If the first sign-in continues after all, it starts over and is
/// refused. Only an existing session can be in this state, because a new session is written before it is
/// enrolled.
async fn unwritten_reservation_makes_room_for_sign_in(on: Backend) {
    let stand = on.stand_with(|builder| {
        builder.concurrent_sessions(ConcurrentSessions::Reject(1)).timeout(Duration::from_secs(20))
    });
    // The directory record is created, so the first replace writes the session.
    let gate = stand.store.hold(Verb::Replace);
    let slow = sign_in_apart(&stand, &stand.seeded().await);
    gate.reached().await;
    assert_eq!(list(&stand).await, []);
    let quick = arrives(&stand, "quick").await;
    assert!(is_alice(&stand, &quick).await);
    gate.release();
    assert_eq!(slow.await.unwrap().failure(), Some(ErrorKind::TooManySessions));
    assert_eq!(labels(&stand).await, ["quick"]);
    assert_eq!(stored_as_alices(&stand).await, 1);
}

/// A slow sign-in keeps its reservation until its session is written. Even under a rejecting policy, a later
/// sign-in then revokes that session if no browser has used its cookie, so there is never more than one
/// session.
#[tokio::test(start_paused = true)]
async fn slow_sign_in_keeps_reservation_until_written() {
    let stand = Backend::memory().stand_with(|builder| {
        builder.concurrent_sessions(ConcurrentSessions::Reject(1)).timeout(Duration::from_secs(20))
    });
    // The directory record is created, so the first replace writes the session.
    let writes = stand.store.hold(Verb::Replace);
    let first = sign_in_apart(&stand, &stand.seeded().await);
    writes.reached().await;
    let a_moment_later = async {
        tokio::time::sleep(Duration::from_millis(15)).await;
        writes.release();
        first.await.unwrap()
    };
    let (second, first) = tokio::join!(arrival(&stand.sessions, "second"), a_moment_later);
    // The first sign-in had no conflict: no other request has rewritten its session.
    assert_eq!((first.failure(), second.failure()), (None, None));
    assert_eq!(usable(&stand, &[first.cookie(), second.cookie()]).await, [false, true]);
    assert_eq!(stored_as_alices(&stand).await, 1);
}

/// A sign-in whose commands or answers are lost is either listed or leaves no usable session.
async fn in_doubt_sign_in_leaves_no_session_unlisted(on: Backend) {
    for verb in [Verb::Create, Verb::Replace, Verb::Load] {
        for nth in 0..3 {
            for fault in [Fault::LoseAnswer, Fault::LoseRequest, Fault::Unavailable] {
                let stand =
                    on.stand_with(|builder| builder.namespace(format!("{verb:?}-{nth}-{fault:?}")));
                let anonymous = stand.seeded().await;
                arrives(&stand, "first").await;
                for _ in 0..nth {
                    drop(stand.store.hold(verb));
                }
                stand.store.inject(verb, fault);
                let place = format!("{verb:?} {nth} {fault:?}");
                let mut signed_in = 1;
                for cookie in ["", &anonymous] {
                    let sign_in = async |session: Session| session.sign_in(ALICE);
                    let visit = stand.visit(cookie, sign_in).await;
                    if visit.failure().is_none() {
                        assert!(is_alice(&stand, &visit.cookie()).await, "{place}");
                        signed_in += 1;
                    }
                }
                stand.store.heal();
                assert_eq!(list(&stand).await.len(), signed_in, "{place}");
                assert_eq!(stored_as_alices(&stand).await, signed_in, "{place}");
                stand.sessions.of(ALICE).revoke_all().await.unwrap();
                assert_eq!(stored_as_alices(&stand).await, 0, "{place}");
            }
        }
    }
}

/// Commands or answers are lost while all sessions are revoked. The sessions have ended once `revoke_all`
/// returns success, on the first call or on the second.
async fn in_doubt_revoke_all_leaves_no_session_alive(on: Backend) {
    for verb in [Verb::Load, Verb::Replace, Verb::Delete, Verb::Create] {
        for nth in 0..3 {
            for fault in [Fault::LoseAnswer, Fault::LoseRequest, Fault::Unavailable] {
                let place = format!("{verb:?}-{nth}-{fault:?}");
                let stand = on.stand_with(|builder| builder.namespace(place.clone()));
                for label in ["1", "2"] {
                    arrives(&stand, label).await;
                }
                // One session is missing from the store, so a sign-in might still be in progress.
                stand.sign_out(&arrives(&stand, "3").await).await;
                for _ in 0..nth {
                    drop(stand.store.hold(verb));
                }
                stand.store.inject(verb, fault);
                let directory = stand.sessions.of(ALICE);
                if directory.revoke_all().await.is_err() {
                    stand.store.heal();
                    directory.revoke_all().await.unwrap();
                }
                assert_eq!(stored_as_alices(&stand).await, 0, "{place}");
                stand.store.heal();
                assert!(list(&stand).await.is_empty(), "{place}");
            }
        }
    }
}

/// A request whose session has ended cannot evict another session.
async fn ended_session_evicts_no_other_session(on: Backend) {
    for policy in [ConcurrentSessions::EvictOldest(1), ConcurrentSessions::Reject(1)] {
        let namespace = format!("dead-{}", policy == ConcurrentSessions::Reject(1));
        let stand =
            on.stand_with(|builder| builder.concurrent_sessions(policy).namespace(namespace));
        let old = arrives(&stand, "old").await;
        let remember = async |session: Session| {
            session.insert(A, &1)?;
            session.set_lifetime(Lifetime::nist_aal1());
            Ok(())
        };
        let mut new = String::new();
        let visit = stand.overtaken(&old, remember, async || {
            stand.sessions.of(ALICE).revoke_all().await.unwrap();
            new = arrives(&stand, "new").await;
        });
        assert_eq!(visit.await.failure(), Some(ErrorKind::Gone), "{policy:?}");
        assert_eq!(usable(&stand, &[old, new]).await, [false, true], "{policy:?}");
    }
}

/// Signs Alice in with a new session, which her identity provider limits to fifteen minutes. Returns the
/// session's cookie.
async fn federated(stand: &Stand) -> String {
    let cap = stand.clock.now() + Duration::from_secs(900);
    let sign_in = async |session: Session| {
        session.sign_in(ALICE)?;
        session.end_by(cap);
        Ok(())
    };
    stand.visit("", sign_in).await.cookie()
}

/// The time limit that an identity provider sets is kept through step-ups of the same sign-in, and does not
/// apply to other sign-ins.
async fn end_by_applies_to_its_own_sign_in_only(on: Backend) {
    for mode in [DirectoryMode::Listed, DirectoryMode::Strict] {
        let namespace = format!("{mode:?}");
        let stand = on.stand_with(|builder| builder.directory(mode).namespace(namespace));
        let cookie = federated(&stand).await;
        let step_up = async |session: Session| session.step_up();
        let mut first = String::new();
        let second = stand.overtaken(&cookie, step_up, async || {
            first = stand.visit(&cookie, step_up).await.cookie();
        });
        let second = second.await;
        assert_eq!((second.failure(), second.set_cookie), (Some(ErrorKind::Gone), None));
        assert!(is_alice(&stand, &first).await);
        let password = async |session: Session| session.sign_in(ALICE);
        let by_password = stand.visit(&federated(&stand).await, password).await.cookie();
        let late = federated(&stand).await;
        let late = stand.overtaken(&late, password, async || {
            stand.clock.advance(Duration::from_secs(900));
        });
        let late = late.await.cookie();
        assert!(!is_alice(&stand, &first).await, "{mode:?}");
        assert_eq!(usable(&stand, &[by_password, late]).await, [true, true], "{mode:?}");
    }
}

/// A revocation that is only partly carried out returns an error, and the next use of the directory
/// completes it.
async fn partial_revoke_all_is_finished_by_next_directory_use(on: Backend) {
    for strict in [false, true] {
        let mode = if strict { DirectoryMode::Strict } else { DirectoryMode::Listed };
        let namespace = format!("{mode:?}");
        let stand = on.stand_with(|builder| builder.directory(mode).namespace(namespace));
        let cookies = [arrives(&stand, "1").await, arrives(&stand, "2").await];
        stand.store.fail_always(Verb::Delete, Fault::Unavailable);
        let failed = stand.sessions.of(ALICE).revoke_all().await.unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::Unavailable);
        // In strict mode, the mark in the directory is enough to end the sessions.
        assert_eq!(usable(&stand, &cookies).await, [!strict; 2]);
        // Signing in with a session that is being revoked fails.
        if !strict {
            let on_it =
                stand.visit(&cookies[0], async |session: Session| session.sign_in(ALICE)).await;
            assert_eq!(on_it.failure(), Some(ErrorKind::Unavailable));
        }
        // A revocation that cannot be carried out does not block sign-ins, and the session is not listed.
        let new = arrives(&stand, "new").await;
        assert!(is_alice(&stand, &new).await);
        assert_eq!(labels(&stand).await, ["new"]);
        stand.store.heal();
        stand.sign_out(&new).await;
        assert_eq!(list(&stand).await, []);
        assert_eq!(usable(&stand, &cookies).await, [false; 2]);
        assert_eq!(stored_as_alices(&stand).await, 0);
    }
}

/// The directory record is lost, and `revoke_all` finds none. Requests in progress must not list their
/// sessions again.
async fn strict_mode_relists_session_only_by_sign_in(on: Backend) {
    let stand = on.stand_with(|builder| builder.directory(DirectoryMode::Strict));
    type Deed = fn(&Session) -> Result<()>;
    let step_up: Deed = Session::step_up;
    let longer: Deed = |session| {
        session.set_lifetime(Lifetime::nist_aal1());
        Ok(())
    };
    // Changing the lifetime of a session that is gone loses nothing, so it is not an error.
    for (deed, failure, name) in
        [(step_up, Some(ErrorKind::Gone), "step up"), (longer, None, "longer life")]
    {
        let phone = arrives(&stand, "phone").await;
        let key = stand.directory_key(ALICE).await;
        let late = stand.overtaken(
            &phone,
            async |session: Session| deed(&session),
            async || {
                stand.spy.delete(&key, None).await.unwrap();
                assert!(stand.sessions.of(ALICE).revoke_all().await.unwrap().complete);
            },
        );
        let late = late.await;
        assert_eq!((late.failure(), &late.set_cookie), (failure, &None), "{name}");
        assert!(list(&stand).await.is_empty(), "{name}");
        assert!(!is_alice(&stand, &phone).await, "{name}");
    }
}

/// Two requests step up at the same time, and then the directory record is lost. The step-up that is still in
/// progress must not bring the session back.
async fn strict_mode_step_up_cannot_restart_unlisted_session(on: Backend) {
    let stand = on.stand_with(|builder| builder.directory(DirectoryMode::Strict));
    let phone = arrives(&stand, "phone").await;
    let key = stand.directory_key(ALICE).await;
    let (exchange, session) = stand.begin(&phone).await;
    session.step_up().unwrap();
    // The directory write passes, and the session write waits.
    drop(stand.store.hold(Verb::Replace));
    let writes = stand.store.hold(Verb::Replace);
    let saves = {
        let session = session.clone();
        tokio::spawn(async move { session.save().await })
    };
    writes.reached().await;
    stand.visit(&phone, async |session: Session| session.step_up()).await.ok();
    stand.spy.delete(&key, None).await.unwrap();
    writes.release();
    assert_eq!(saves.await.unwrap().unwrap_err().kind(), ErrorKind::Gone);
    assert_eq!(session.principal(), None);
    drop(session);
    assert_eq!(finish(exchange, 200).await.set_cookie, None);
    assert!(list(&stand).await.is_empty());
}

/// A step-up does not replace a sign-in in the same request: the label is kept, and a revoked sign-in still
/// fails.
async fn step_up_keeps_sign_in_of_same_request(on: Backend) {
    let stand = on.stand();
    for is_ended in [false, true] {
        let begun = stand.sessions.of(ALICE).begin_sign_in().await.unwrap();
        if is_ended {
            stand.sessions.of(ALICE).revoke_all().await.unwrap();
        }
        let both = async |session: Session| {
            session.sign_in_with(begun.label("phone"))?;
            session.step_up()
        };
        let visit = stand.visit("", both).await;
        assert_eq!(visit.failure(), is_ended.then_some(ErrorKind::Revoked));
        assert_eq!(labels(&stand).await, if is_ended { vec![] } else { vec!["phone"] });
    }
}

/// If a user signs out and is then refused a sign-in as another principal, the user is signed out all the
/// same.
async fn sign_out_takes_effect_when_following_sign_in_is_refused(on: Backend) {
    let stand = on.stand_with(|builder| builder.concurrent_sessions(ConcurrentSessions::Reject(1)));
    let (alice, bob) = (arrives(&stand, "phone").await, stand.signed_in("bob").await);
    // The first use of a cookie confirms its sign-in, so a later one is refused.
    assert_eq!(stand.who(&bob).await.as_deref(), Some("bob"));
    let switch = async |session: Session| {
        session.sign_out();
        session.insert(A, &1)?;
        session.sign_in("bob")?;
        assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::TooManySessions);
        Ok(())
    };
    let visit = stand.visit(&alice, switch).await;
    assert!(visit.removes_cookie());
    visit.ok();
    assert_eq!(stand.who(&alice).await, None);
    // This also holds if the handler leaves the commit to the end of the request.
    let alice = arrives(&stand, "phone").await;
    let switch = async |session: Session| {
        session.sign_out();
        session.sign_in("bob")
    };
    let visit = stand.visit(&alice, switch).await;
    assert_eq!(visit.failure(), Some(ErrorKind::TooManySessions));
    assert!(visit.removes_cookie());
    assert_eq!(stand.who(&alice).await, None);
    assert!(list(&stand).await.is_empty());
    assert_eq!(stand.sessions.of("bob").count().await.unwrap(), 1);
}

async fn strict_mode_accepts_only_listed_sessions(on: Backend) {
    let strict = |builder: unsticky::Builder| builder.directory(DirectoryMode::Strict);
    let stand = on.stand_with(strict);
    let (phone, laptop) = (arrives(&stand, "phone").await, arrives(&stand, "laptop").await);
    assert_eq!(usable(&stand, &[phone.clone(), laptop.clone()]).await, [true, true]);
    // Anonymous sessions belong to no principal and cost no additional commands.
    let anonymous = stand.seeded().await;
    stand.spy.take();
    assert_eq!(stand.read(&anonymous, SEED).await, Some(1));
    assert_eq!(stand.spy.verbs(), [Verb::Load]);
    stand.spy.take();
    assert!(is_alice(&stand, &phone).await);
    assert_eq!(stand.spy.verbs(), [Verb::Load, Verb::Load]);
    // If the directory cannot be read, the request fails and the visitor is not treated as anonymous.
    drop(stand.store.hold(Verb::Load));
    for _ in 0..3 {
        stand.store.inject(Verb::Load, Fault::Unavailable);
    }
    let read = async |session: Session| Ok(session.principal());
    assert_eq!(stand.visit(&phone, read).await.failure(), Some(ErrorKind::Unavailable));
    stand.store.heal();
    // A request in progress learns of the revocation when it reloads.
    let (exchange, session) = stand.begin(&laptop).await;
    // The session record itself still exists.
    stand.store.fail_always(Verb::Delete, Fault::Unavailable);
    assert!(stand.sessions.of(ALICE).revoke(session.id().unwrap()).await.is_err());
    stand.store.heal();
    assert_eq!(session.reload().await.unwrap_err().kind(), ErrorKind::Gone);
    drop(session);
    finish(exchange, 200).await;
    // If the directory record is lost (evicted by the store, for example), all its sessions are invalid.
    let key = stand.directory_key(ALICE).await;
    stand.spy.delete(&key, None).await.unwrap();
    assert_eq!(usable(&stand, &[phone, laptop]).await, [false, false]);
    assert!(is_alice(&stand, &arrives(&stand, "new").await).await);
}

/// In the default mode, a session stays valid after the store has evicted the directory record. The next
/// sign-in or lifetime change lists it again.
async fn lost_directory_record_ends_no_session_and_is_rebuilt(on: Backend) {
    let stand = on.stand();
    let old = arrives(&stand, "old").await;
    let key = stand.directory_key(ALICE).await;
    stand.spy.delete(&key, None).await.unwrap();
    assert!(is_alice(&stand, &old).await);
    let revoked = stand.sessions.of(ALICE).revoke_all().await.unwrap();
    assert_eq!((revoked.count, revoked.complete), (0, false));
    assert!(is_alice(&stand, &old).await, "still valid although unlisted");
    // A second call does not report completeness either, until every unlisted session has expired.
    assert!(!stand.sessions.of(ALICE).revoke_all().await.unwrap().complete);
    // The next sign-in with the session lists it again, and so does a longer lifetime.
    let old = stand.sign_in(&old).await;
    assert_eq!(list(&stand).await.len(), 1);
    stand.spy.delete(&key, None).await.unwrap();
    let remember = async |session: Session| {
        session.set_lifetime(Lifetime::nist_aal1());
        Ok(())
    };
    stand.visit(&old, remember).await.ok();
    assert_eq!(stand.sessions.of(ALICE).revoke_all().await.unwrap().count, 1);
}

async fn directory_operations_fail_when_directory_is_off(on: Backend) {
    let stand = on.stand_with(|builder| builder.directory(DirectoryMode::Off));
    stand.spy.take();
    let cookie = arrives(&stand, "label").await;
    assert_eq!(stand.spy.verbs(), [Verb::Create]);
    let directory = stand.sessions.of(ALICE);
    assert_eq!(directory.list().await.unwrap_err().kind(), ErrorKind::NoDirectory);
    assert_eq!(directory.count().await.unwrap_err().kind(), ErrorKind::NoDirectory);
    assert_eq!(directory.revoke_all().await.unwrap_err().kind(), ErrorKind::NoDirectory);
    assert_eq!(directory.begin_sign_in().await.unwrap_err().kind(), ErrorKind::NoDirectory);
    let others = async |session: Session| session.directory()?.revoke_others(&session).await;
    assert_eq!(stand.visit(&cookie, others).await.failure(), Some(ErrorKind::NoDirectory));
}

async fn directory_accepts_any_principal_and_label_text(on: Backend) {
    let stand = on.stand();
    let long = "p".repeat(1024);
    for name in ["\u{0}", "a b\r\n:{}*", "ünï", "🦀", &long, "alice", "ALICE", "d:s:"] {
        let label = "<b>\u{0}\r\n\"\u{202e}";
        let sign_in = SignIn::new(name).label(label);
        let arrive = async |session: Session| session.sign_in_with(sign_in);
        let cookie = stand.visit("", arrive).await.cookie();
        assert_eq!(stand.who(&cookie).await.as_deref(), Some(name));
        let listed = stand.sessions.of(name).list().await.unwrap();
        assert_eq!(listed.len(), 1, "{name:?}");
        assert_eq!(listed[0].label.as_deref(), Some(label));
        assert_eq!(stand.sessions.of(name).revoke_all().await.unwrap().count, 1);
    }
    for name in ["", &"p".repeat(1025), &"p".repeat(1_000_000)] {
        let directory = stand.sessions.of(name);
        let kinds = [
            directory.list().await.unwrap_err().kind(),
            directory.revoke_all().await.unwrap_err().kind(),
            directory.begin_sign_in().await.unwrap_err().kind(),
        ];
        assert_eq!(kinds, [ErrorKind::InvalidPrincipal; 3]);
        let sign_in = stand.visit("", async |session: Session| session.sign_in(name)).await;
        assert_eq!((sign_in.failure(), sign_in.set_cookie), (Some(kinds[0]), None));
        assert_eq!(sign_in.output.unwrap_err().status(), 400);
    }
}

/// A phone's `User-Agent` can be 139 bytes long. A label is truncated to 128 bytes, but never inside a
/// character.
async fn long_label_is_truncated_at_character_boundary(on: Backend) {
    let stand = on.stand();
    let x = |count: usize| "x".repeat(count);
    for (label, kept) in [
        (x(128), x(128)),
        (x(129), x(128)),
        (x(1_000_000), x(128)),
        (format!("{}é", x(126)), format!("{}é", x(126))),
        (format!("{}éé", x(127)), x(127)),
        (format!("{}🦀", x(125)), x(125)),
    ] {
        let sign_in = SignIn::new(ALICE).label(label);
        let arrive = async |session: Session| session.sign_in_with(sign_in);
        assert!(is_alice(&stand, &stand.visit("", arrive).await.cookie()).await);
        assert_eq!(labels(&stand).await, [kept]);
        stand.sessions.of(ALICE).revoke_all().await.unwrap();
    }
}

/// The error is reported, the record stays as it is, and no session is affected.
async fn undecodable_directory_record_is_reported_and_kept(on: Backend) {
    use DirectoryMode::{Listed, Strict};
    let corrupt = ErrorKind::Corrupt;
    let cases = [(1, corrupt, Listed), (2, ErrorKind::NewerFormat, Listed), (1, corrupt, Strict)];
    for (format, kind, mode) in cases {
        let namespace = format!("format-{format}-{mode:?}");
        let stand = on.stand_with(|builder| builder.namespace(namespace).directory(mode));
        let cookie = arrives(&stand, "old").await;
        let anonymous = stand.seeded().await;
        let key = stand.directory_key(ALICE).await;
        let stored = stand.spy.load(&key).await.unwrap().unwrap();
        let damaged = [&stored.bytes[..8], &[format], &b"d\x02\x05oops!"[..]].concat();
        let hour = Duration::from_secs(3600);
        stand.spy.replace(&key, damaged.clone().into(), hour, &stored).await.unwrap();
        let directory = stand.sessions.of(ALICE);
        assert_eq!(directory.list().await.unwrap_err().kind(), kind);
        assert_eq!(directory.revoke_all().await.unwrap_err().kind(), kind);
        assert_eq!(directory.begin_sign_in().await.unwrap_err().kind(), kind);
        let sign_in = async |session: Session| session.sign_in(ALICE);
        for cookie in ["", &anonymous, &cookie] {
            assert_eq!(stand.visit(cookie, sign_in).await.failure(), Some(kind));
        }
        let read = async |session: Session| Ok(session.is_signed_in());
        let seen = stand.visit(&cookie, read).await;
        match mode {
            Strict => assert_eq!(seen.failure(), Some(kind)),
            _ => assert!(seen.ok()),
        }
        assert_eq!(stand.read(&anonymous, SEED).await, Some(1));
        assert_eq!(stand.spy.load(&key).await.unwrap().unwrap().bytes, damaged);
        assert!(stand.who(&stand.signed_in("bob").await).await.is_some());
    }
}

/// A write that the store refuses returns an error and is not treated as a conflict.
async fn refused_write_for_directory_is_reported_and_not_repeated(on: Backend) {
    let stand = on.stand();
    stand.store.inject(Verb::Create, Fault::Refused);
    let first = arrival(&stand.sessions, "first").await;
    assert_eq!((first.failure(), first.set_cookie), (Some(ErrorKind::Refused), None));
    // A listed session is missing: its sign-in may be in progress and must be blocked.
    let cookie = arrives(&stand, "second").await;
    stand.sign_out(&cookie).await;
    stand.store.inject(Verb::Create, Fault::Refused);
    let directory = stand.sessions.of(ALICE);
    assert_eq!(directory.revoke_all().await.unwrap_err().kind(), ErrorKind::Refused);
    // A lost answer is not a refusal: the record is read again.
    stand.store.inject(Verb::Create, Fault::LoseAnswer);
    assert!(directory.revoke_all().await.unwrap().complete);
}

/// Alice's sign-in with a session failed, and Bob signed in with the session before its entry could be
/// removed from Alice's directory. Revoking Alice's sessions leaves Bob's session alone.
async fn revoke_all_spares_session_that_another_principal_has_taken(on: Backend) {
    let stand = on.stand_with(|builder| builder.command_retries(0));
    empty_directory(&stand).await;
    let anonymous = stand.seeded().await;
    // The directory is written, the session is not, and then the directory cannot be read.
    drop(stand.store.hold(Verb::Replace));
    stand.store.inject(Verb::Replace, Fault::Refused);
    (0..2).for_each(|_| drop(stand.store.hold(Verb::Load)));
    stand.store.inject(Verb::Load, Fault::Unavailable);
    let sign_in = async |session: Session| session.sign_in(ALICE);
    assert_eq!(stand.visit(&anonymous, sign_in).await.failure(), Some(ErrorKind::Refused));
    let as_bob = async |session: Session| session.sign_in("bob");
    let bob = stand.visit(&anonymous, as_bob).await.cookie();
    assert!(list(&stand).await.is_empty());
    let id = stand.visit(&bob, async |session: Session| Ok(session.id())).await.ok().unwrap();
    let directory = stand.sessions.of(ALICE);
    stand.spy.take();
    assert!(!directory.revoke(id).await.unwrap());
    assert!(stand.spy.verbs().contains(&Verb::Replace), "it is in her directory");
    assert_eq!(directory.revoke_all().await.unwrap().count, 0);
    assert_eq!(stand.who(&bob).await.as_deref(), Some("bob"));
}

/// An unlisted session can live until its absolute timeout, plus a clock difference of five minutes.
async fn revoke_all_without_directory_is_incomplete_until_every_session_has_expired(on: Backend) {
    let hour = Duration::from_secs(3600);
    let stand = on.stand_with(|builder| builder.lifetime(Lifetime::new(hour, 2 * hour)));
    let directory = stand.sessions.of(ALICE);
    assert!(!directory.revoke_all().await.unwrap().complete);
    stand.clock.advance(2 * hour + Duration::from_secs(299));
    assert!(!directory.revoke_all().await.unwrap().complete);
    stand.clock.advance(Duration::from_secs(1));
    assert!(directory.revoke_all().await.unwrap().complete);
}

/// An older release enrols a new session before it creates the session. Once such a sign-in has been revoked,
/// it stays blocked, however often `revoke_all` checks the session.
async fn sign_in_revoked_twice_before_it_is_written_fails(on: Backend) {
    let stand = on.stand_with(|builder| builder.timeout(Duration::from_secs(20)));
    let cookie = arrives(&stand, "late").await;
    let key = stand.key(&cookie).await;
    let bytes = stand.stored(&key).await;
    stand.spy.delete(&key, None).await.unwrap();
    // The first `revoke_all` cannot remove the entry.
    drop(stand.store.hold(Verb::Replace));
    (0..3).for_each(|_| stand.store.inject(Verb::Replace, Fault::Unavailable));
    let directory = stand.sessions.of(ALICE);
    for _ in 0..2 {
        assert!(directory.revoke_all().await.unwrap().complete);
    }
    stand.clock.advance(Duration::from_secs(60));
    let late = stand.spy.create(&key, bytes, Duration::from_secs(60)).await.unwrap();
    assert_eq!(late, Created::Occupied);
    assert!(!is_alice(&stand, &cookie).await);
    assert_eq!(stored_as_alices(&stand).await, 0);
}

/// Without the directory record, there is no evidence of a revocation. Only strict mode treats a missing
/// record as the end of the session.
async fn session_of_lost_directory_can_revoke_others_unless_mode_is_strict(on: Backend) {
    for mode in [DirectoryMode::Listed, DirectoryMode::Strict] {
        let namespace = format!("lost-{mode:?}");
        let stand = on.stand_with(|builder| builder.directory(mode).namespace(namespace));
        let cookie = arrives(&stand, "phone").await;
        let key = stand.directory_key(ALICE).await;
        let revoke_others =
            async |session: Session| session.directory()?.revoke_others(&session).await;
        let visit = stand.overtaken(&cookie, revoke_others, async || {
            stand.spy.delete(&key, None).await.unwrap();
        });
        let visit = visit.await;
        match mode {
            DirectoryMode::Strict => assert_eq!(visit.failure(), Some(ErrorKind::Gone)),
            _ => {
                assert_eq!(visit.failure(), None);
                assert!(is_alice(&stand, &visit.cookie()).await);
            }
        }
    }
}

/// The directory is written only if a session will live longer than the directory expects.
async fn lifetime_within_directory_expectation_costs_no_directory_write(on: Backend) {
    use Verb::{Load, Replace};
    let stand = on.stand();
    let mut cookie = arrives(&stand, "phone").await;
    let (short, long) = (Lifetime::owasp_low_risk(), Lifetime::nist_aal1());
    for (lifetime, verbs) in [
        (long, vec![Load, Load, Replace, Replace]),
        (short, vec![Load, Replace]),
        (long, vec![Load, Load, Replace]),
    ] {
        let choose = async |session: Session| {
            session.set_lifetime(lifetime);
            Ok(())
        };
        stand.spy.take();
        cookie = stand.visit(&cookie, choose).await.cookie();
        assert_eq!(stand.taken_verbs(), verbs, "{lifetime:?}");
        assert!(is_alice(&stand, &cookie).await);
    }
}

/// A listed session is missing, and its own sign-in must have finished long ago. A new sign-in does not wait
/// for that session.
async fn session_that_ended_long_ago_is_checked_only_once(on: Backend) {
    let stand =
        on.stand_with(|builder| builder.concurrent_sessions(ConcurrentSessions::EvictOldest(1)));
    let old = arrives(&stand, "old").await;
    stand.sign_out(&old).await;
    // This is twice the request timeout.
    stand.clock.advance(Duration::from_secs(2));
    stand.spy.take();
    let new = arrives(&stand, "new").await;
    let commands = stand.spy.take();
    let looks = commands
        .iter()
        .filter(|command| command.verb == Verb::Load && command.key.kind() == Kind::Session);
    // The first load is the check, and the second precedes the tombstone under the session's id.
    assert_eq!(looks.count(), 2);
    assert!(is_alice(&stand, &new).await);
}

/// The directory accepts its maximum number of sessions and no more, and one call revokes them all.
async fn directory_holds_at_most_one_thousand_sessions(on: Backend) {
    let stand = on.stand_with(|builder| {
        builder.concurrent_sessions(ConcurrentSessions::Allow).timeout(Duration::from_secs(30))
    });
    for number in 0..1000 {
        let visit = arrival(&stand.sessions, &"x".repeat(number % 129)).await;
        assert_eq!(visit.failure(), None, "{number}");
    }
    let one_more = arrival(&stand.sessions, "one more").await;
    assert_eq!(one_more.failure(), Some(ErrorKind::TooManySessions));
    assert_eq!(list(&stand).await.len(), 1000);
    let revoked = stand.sessions.of(ALICE).revoke_all().await.unwrap();
    assert_eq!((revoked.count, revoked.complete), (1000, true));
    assert!(list(&stand).await.is_empty());
}

async fn session_limit_holds_for_one_thousand_sign_ins(on: Backend) {
    crowd(on, 1_000).await;
}

#[tokio::test(start_paused = true)]
async fn session_limit_holds_for_ten_thousand_sign_ins() {
    crowd(Backend::memory(), 10_000).await;
}

/// Signs in this many times, a hundred at a time, with labels of the maximum length.
async fn crowd(on: Backend, sign_ins: usize) {
    let stand = on.stand_with(|builder| {
        builder
            .concurrent_sessions(ConcurrentSessions::EvictOldest(50))
            .timeout(Duration::from_secs(30))
    });
    let mut last = String::new();
    for _ in 0..sign_ins / 100 {
        let crowd = (0..100).map(|_| {
            let sessions = stand.sessions.clone();
            tokio::spawn(async move { arrival(&sessions, &"x".repeat(128)).await })
        });
        for one in crowd.collect::<Vec<_>>() {
            let visit = one.await.unwrap();
            match visit.failure() {
                None => last = visit.cookie(),
                Some(kind) => assert_eq!(kind, ErrorKind::Contended),
            }
        }
        stand.spy.take();
    }
    assert!(!last.is_empty());
    assert_eq!(list(&stand).await.len(), 50);
    let revoked = stand.sessions.of(ALICE).revoke_all().await.unwrap();
    assert_eq!((revoked.count, revoked.complete), (50, true));
}

/// A cookie can address only session records.
async fn cookie_with_directory_id_makes_request_anonymous(on: Backend) {
    let stand = on.stand();
    arrives(&stand, "old").await;
    let key = stand.directory_key(ALICE).await;
    let (_, id) = key.as_str().rsplit_once(':').unwrap();
    assert_eq!(id.len(), 43, "as long as a token");
    for token in [id.to_owned(), format!("{}{}", &id[..22], &id[..21])] {
        let cookie = format!("__Host-id={}A", &token[..42]);
        stand.spy.take();
        assert_eq!(stand.who(&cookie).await, None);
        assert!(stand.spy.commands().iter().all(|command| command.key.kind() == Kind::Session));
    }
    assert_eq!(list(&stand).await.len(), 1);
}

/// The number of store commands for each operation, as counted by the test store.
async fn directory_operations_match_command_budget(on: Backend) {
    use Verb::{Create, Delete, Load, Replace};
    let stand = on.stand();
    let sign_in = async |session: Session| session.sign_in(ALICE);
    stand.visit("", sign_in).await.ok();
    let anonymous = stand.seeded().await;
    stand.spy.take();
    stand.visit("", sign_in).await.ok();
    assert_eq!(
        stand.taken_verbs(),
        [Create, Load, Replace],
        "one for the session and two for the directory"
    );
    let cookie = stand.visit(&anonymous, sign_in).await.cookie();
    assert_eq!(
        stand.taken_verbs(),
        [Load, Load, Replace, Replace],
        "two for the session and two for the directory"
    );
    assert_eq!(list(&stand).await.len(), 3);
    assert_eq!(stand.taken_verbs(), [Load; 4], "one more than there are sessions");
    let mut bob = String::new();
    for verbs in [vec![Create, Create], vec![Load, Replace, Replace], vec![Load, Replace, Replace]]
    {
        let begun = stand.sessions.of("bob").begin_sign_in().await.unwrap();
        assert_eq!(stand.taken_verbs(), [Load]);
        let finish_it = async |session: Session| session.sign_in_with(begun);
        bob = stand.visit(&bob, finish_it).await.cookie();
        assert_eq!(stand.taken_verbs(), verbs, "the directory had already been read");
    }
    assert!(is_alice(&stand, &cookie).await);
    assert_eq!(stand.taken_verbs(), [Load], "a read");
    stand.write(&cookie, A, 1).await;
    assert_eq!(stand.taken_verbs(), [Load, Replace], "a write");
    stand.sign_out(&cookie).await;
    assert_eq!(stand.taken_verbs(), [Load, Delete], "a sign-out");
    // The session is marked in the directory, loaded and deleted, and then its entry is removed.
    let id = list(&stand).await[0].id;
    stand.spy.take();
    assert!(stand.sessions.of(ALICE).revoke(id).await.unwrap());
    assert_eq!(stand.taken_verbs(), [Load, Replace, Load, Delete, Replace], "revoke one");
    // One session is alive. The other was signed out.
    assert_eq!(stand.sessions.of(ALICE).revoke_all().await.unwrap().count, 1);
    let verbs = stand.taken_verbs();
    assert_eq!(verbs.len(), 2 * 2 + 3, "revoke all: {verbs:?}");
}

/// A list takes two round trips, however many sessions there are, because all of them are loaded at once.
async fn list_loads_all_sessions_concurrently(on: Backend) {
    let stand = on.stand();
    for label in ["one", "two", "three", "four"] {
        arrives(&stand, label).await;
    }
    // The load of the directory record passes.
    drop(stand.store.hold(Verb::Load));
    let looks: [_; 4] = std::array::from_fn(|_| stand.store.hold(Verb::Load));
    let directory = stand.sessions.of(ALICE);
    let listed = tokio::spawn(async move { directory.list().await.unwrap().len() });
    for look in &looks {
        let reached = tokio::time::timeout(Duration::from_secs(10), look.reached());
        reached.await.expect("one after the other");
    }
    looks.iter().for_each(|look| look.release());
    assert_eq!(listed.await.unwrap(), 4);
}

on_every_store! {
    list_shows_every_signed_in_session,
    session_is_listed_until_it_expires,
    three_concurrent_sign_ins_list_three_sessions,
    session_limit_holds_for_concurrent_sign_ins,
    sign_in_evicts_session_that_signed_in_longest_ago,
    sign_in_over_session_limit_is_refused,
    revoke_ends_one_session_of_its_principal,
    revoke_all_ends_every_session_of_principal,
    revoke_others_ends_every_other_session,
    session_that_is_being_revoked_cannot_revoke_others,
    failed_account_switch_leaves_no_new_session,
    revoke_all_beats_requests_in_progress,
    revoke_all_beats_write_between_load_and_delete,
    revoke_all_beats_enrolled_sign_in,
    revoke_all_beats_begun_sign_in,
    revoke_all_spares_session_left_enrolled_by_failed_sign_in,
    unwritten_reservation_makes_room_for_sign_in,
    in_doubt_sign_in_leaves_no_session_unlisted,
    in_doubt_revoke_all_leaves_no_session_alive,
    ended_session_evicts_no_other_session,
    end_by_applies_to_its_own_sign_in_only,
    in_doubt_sign_in_keeps_no_reservation,
    sign_in_keeps_no_reservation_when_directory_becomes_unreachable,
    sign_in_whose_session_was_revoked_gets_another_id,
    sign_in_with_two_lost_answers_is_listed_once,
    in_doubt_new_session_is_deleted_when_its_sign_in_fails,
    sign_in_that_took_too_long_keeps_no_reservation,
    begun_sign_in_reads_directory_again_if_it_is_old_or_full,
    reservation_is_released_after_retried_enrolment,
    contested_reservation_leaves_exactly_one_session,
    directory_holds_at_most_one_thousand_sessions,
    partial_revoke_all_is_finished_by_next_directory_use,
    strict_mode_accepts_only_listed_sessions,
    strict_mode_relists_session_only_by_sign_in,
    strict_mode_step_up_cannot_restart_unlisted_session,
    released_reservation_spares_newer_sign_in_on_same_session,
    step_up_keeps_sign_in_of_same_request,
    sign_out_takes_effect_when_following_sign_in_is_refused,
    lost_directory_record_ends_no_session_and_is_rebuilt,
    directory_operations_fail_when_directory_is_off,
    directory_accepts_any_principal_and_label_text,
    long_label_is_truncated_at_character_boundary,
    undecodable_directory_record_is_reported_and_kept,
    session_limit_holds_for_one_thousand_sign_ins,
    cookie_with_directory_id_makes_request_anonymous,
    directory_operations_match_command_budget,
    list_loads_all_sessions_concurrently,
    refused_write_for_directory_is_reported_and_not_repeated,
    revoke_all_spares_session_that_another_principal_has_taken,
    revoke_all_without_directory_is_incomplete_until_every_session_has_expired,
    sign_in_revoked_twice_before_it_is_written_fails,
    begun_sign_in_reads_directory_again_if_it_has_changed,
    refused_sign_in_leaves_no_session,
    session_of_lost_directory_can_revoke_others_unless_mode_is_strict,
    lifetime_within_directory_expectation_costs_no_directory_write,
    session_that_ended_long_ago_is_checked_only_once,
}
