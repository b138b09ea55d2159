//! Several handles of one request, early commits, and what comes after them.

#![cfg(all(feature = "testing", feature = "memory", feature = "axum", feature = "actix"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;
use std::sync::Arc;
use std::time::Duration;
use support::app::{Gates, both_with};
use support::visit::visit;
use unsticky::exchange::{Exchange, Finish, Reply};
use unsticky::store::MemoryStore;
use unsticky::testing::{Fault, FaultStore, ManualClock, SpyStore, Verb};
use unsticky::{Cookie, ErrorKind, Key, Session, Sessions};

const SEED: Key<u32> = Key::new("seed");
const A: Key<u32> = Key::new("a");
const B: Key<u32> = Key::new("b");
const C: Key<u32> = Key::new("c");
type Faulty = FaultStore<SpyStore<MemoryStore>>;
struct Stand {
    store: Faulty,
    sessions: Sessions,
}
fn stand() -> Stand {
    let clock = ManualClock::new();
    let store = FaultStore::new(SpyStore::new(MemoryStore::with_clock(clock.clone())));
    let sessions = Sessions::builder(store.clone()).clock(clock.clone()).build().unwrap();
    Stand { store, sessions }
}
impl Stand {
    async fn seeded(&self) -> String {
        visit(&self.sessions, "", async |s: Session| s.insert(SEED, &1)).await.cookie()
    }
    async fn alice(&self) -> String {
        visit(&self.sessions, "", async |s: Session| {
            s.sign_in("alice")?;
            s.insert(SEED, &1)
        })
        .await
        .cookie()
    }
    async fn read(&self, cookie: &str, key: Key<u32>) -> Option<u32> {
        visit(&self.sessions, cookie, async |s: Session| s.get(key)).await.ok()
    }
    async fn who(&self, cookie: &str) -> Option<Arc<str>> {
        visit(&self.sessions, cookie, async |s: Session| Ok(s.principal())).await.ok()
    }
    async fn sign_in(&self, cookie: &str) -> String {
        visit(&self.sessions, cookie, async |s: Session| s.sign_in("alice")).await.cookie()
    }
    async fn begin(&self, cookie: &str) -> (Exchange, Session) {
        let e = Exchange::begin(&self.sessions, [cookie.as_bytes()], None);
        let s = e.handle().session().await.unwrap();
        (e, s)
    }
}
async fn finish(e: Exchange, status: u16) -> Reply {
    match e.finish(status) {
        Finish::Ready(r) => r,
        Finish::Pending(r) => r.await,
    }
}
fn ck(r: &Reply) -> Option<String> {
    r.set_cookie.as_ref().map(|c| c.split(';').next().unwrap().to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_write_after_a_settled_one_loses_nobody_elses() {
    let st = stand();
    let cookie = st.seeded().await;
    let (e, s) = st.begin(&cookie).await;
    s.update(A, |n| *n += 1).unwrap();
    st.store.inject(Verb::Replace, Fault::LoseAnswer);
    let gate = st.store.hold(Verb::Load);
    let other = async {
        gate.reached().await;
        visit(&st.sessions, &cookie, async |s: Session| s.insert(B, &2)).await.ok();
        gate.release();
    };
    let (r, ()) = futures_util::join!(s.save(), other);
    r.unwrap();
    s.insert(C, &3).unwrap();
    let r = finish(e, 200).await;
    assert!(r.error.is_none());
    assert_eq!(
        (st.read(&cookie, A).await, st.read(&cookie, B).await, st.read(&cookie, C).await),
        (Some(1), Some(2), Some(3))
    );
}

#[tokio::test(start_paused = true)]
async fn a_write_after_a_settled_one_does_not_undo_a_sign_in() {
    let st = stand();
    let cookie = st.seeded().await;
    let (e, s) = st.begin(&cookie).await;
    s.update(A, |n| *n += 1).unwrap();
    st.store.inject(Verb::Replace, Fault::LoseAnswer);
    let gate = st.store.hold(Verb::Load);
    let mut signed = String::new();
    let other = async {
        gate.reached().await;
        signed = st.sign_in(&cookie).await;
        gate.release();
    };
    let (saved, ()) = futures_util::join!(s.save(), other);
    saved.unwrap();
    s.insert(C, &3).unwrap();
    let r = finish(e, 200).await;
    assert_eq!(r.error.map(|error| error.kind()), Some(ErrorKind::Gone));
    assert_eq!(st.who(&signed).await.as_deref(), Some("alice"));
    assert_eq!(st.read(&cookie, SEED).await, None, "old secret valid again");
}

#[test]
fn the_function_of_an_update_may_use_the_session() {
    let (tx, rx) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(
            async {
                let s = Session::detached();
                let c = s.clone();
                s.update(A, move |n| *n += u32::from(c.is_signed_in())).unwrap();
                s.sign_in("alice").unwrap();
                tx.send(()).unwrap();
            },
        )
    });
    rx.recv_timeout(Duration::from_secs(3)).expect("DEADLOCK in sign_in");
}

#[tokio::test]
async fn a_new_session_sends_no_cookie_over_a_sign_in() {
    let st = stand();
    let cookie = st.seeded().await;
    let (e, s) = st.begin(&cookie).await;
    st.sign_in(&cookie).await;
    s.sign_out();
    s.insert(A, &1).unwrap();
    let r = finish(e, 200).await;
    assert_eq!(ck(&r), None, "cookie overwrites alice's");
}

#[tokio::test]
async fn a_cookie_of_an_early_save_is_not_sent_over_a_sign_in() {
    for end in [false, true] {
        let st = stand();
        let cookie = st.seeded().await;
        let (e1, s1) = st.begin(&cookie).await;
        let (e2, s2) = st.begin(&cookie).await;
        s1.rotate();
        s1.save().await.unwrap();
        s2.sign_in("alice").unwrap();
        assert!(ck(&finish(e2, 200).await).is_some());
        if end {
            s1.sign_out()
        } else {
            s1.insert(A, &1).unwrap()
        }
        let r = finish(e1, 200).await;
        assert_eq!(ck(&r), None, "end={end} error={:?}", r.error);
    }
}

#[tokio::test]
async fn a_sign_out_ends_every_session_that_was_presented() {
    let st = stand();
    let (a, b) = (st.alice().await, st.alice().await);
    visit(&st.sessions, &format!("{a}; {b}"), async |s: Session| {
        s.sign_out();
        s.insert(A, &1)
    })
    .await
    .ok();
    assert_eq!((st.who(&a).await, st.who(&b).await), (None, None));
}

#[tokio::test]
async fn a_sign_out_with_several_tokens_spares_somebody_elses_sign_in() {
    let st = stand();
    let (a, b) = (st.seeded().await, st.seeded().await);
    let (e, s) = st.begin(&format!("{a}; {b}")).await;
    let alice = st.sign_in(&a).await;
    s.sign_out();
    finish(e, 200).await;
    assert_eq!(st.who(&alice).await.as_deref(), Some("alice"));
}

#[tokio::test]
async fn a_value_is_taken_once_also_by_those_who_leave_the_session() {
    for with in ["destroy", "switch"] {
        let st = stand();
        let cookie = st.alice().await;
        let (e1, s1) = st.begin(&cookie).await;
        let (e2, s2) = st.begin(&cookie).await;
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

#[tokio::test(start_paused = true)]
async fn a_sign_out_is_carried_out_after_an_earlier_failure() {
    for status in [200, 500] {
        let st = stand();
        let cookie = st.alice().await;
        let (e, s) = st.begin(&cookie).await;
        s.update(A, |n| *n += 1).unwrap();
        st.store.inject(Verb::Replace, Fault::LoseAnswer);
        st.store.fail_always(Verb::Load, Fault::Unavailable);
        assert!(s.save().await.is_err());
        st.store.heal();
        s.sign_out();
        let r = finish(e, status).await;
        let expected = (status == 200).then_some(ErrorKind::OutcomeUnknown);
        assert_eq!(r.error.map(|error| error.kind()), expected);
        assert_eq!(st.who(&cookie).await, None, "{status}: still signed in");
    }
}

#[tokio::test]
async fn a_session_that_was_lost_is_not_replaced_by_a_fresh_one() {
    for how in ["rotate", "sign_out", "reload"] {
        let st = stand();
        let cookie = st.seeded().await;
        let (e, s) = st.begin(&cookie).await;
        let alice = st.sign_in(&cookie).await;
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
        s.insert(A, &1).unwrap();
        let r = finish(e, 200).await;
        assert_eq!(r.error.map(|error| error.kind()), Some(ErrorKind::Gone), "{how}");
        assert_eq!(st.who(&alice).await.as_deref(), Some("alice"));
        assert_eq!(r.set_cookie, None, "{how}");
    }
}

#[tokio::test]
async fn nobody_gets_the_values_of_somebody_else() {
    let st = stand();
    let cookie = st.alice().await;
    let v = visit(&st.sessions, &cookie, async |s: Session| {
        s.sign_in("bob")?;
        s.insert(A, &7)?;
        s.sign_in("alice")?;
        s.get(A)
    })
    .await;
    assert_eq!(v.ok(), None);
    let v = visit(&st.sessions, "", async |s: Session| {
        s.sign_in("bob")?;
        s.insert(A, &7)?;
        s.sign_in("alice")?;
        s.get(A)
    })
    .await;
    assert_eq!(v.ok(), None, "anon");
}

#[tokio::test(start_paused = true)]
async fn a_late_copy_of_a_create_brings_nothing_back() {
    let st = stand();
    let p = st.store.postpone(Verb::Create);
    let cookie = st.alice().await;
    assert_eq!(st.who(&cookie).await.as_deref(), Some("alice"));
    visit(&st.sessions, &cookie, async |s: Session| {
        s.sign_out();
        Ok(())
    })
    .await
    .ok();
    assert_eq!(st.who(&cookie).await, None);
    assert!(p.deliver().await);
    assert_eq!(st.who(&cookie).await, None);
}

#[tokio::test]
async fn what_a_failed_request_wrote_is_not_saved_later() {
    let st = stand();
    let cookie = st.seeded().await;
    let (e, s) = st.begin(&cookie).await;
    s.insert(A, &1).unwrap();
    finish(e, 500).await;
    s.insert(B, &1).unwrap();
    s.save().await.unwrap();
    assert_eq!(st.read(&cookie, A).await, None);
}

#[tokio::test]
async fn a_rotation_under_way_gets_its_cookie_into_a_failed_response() {
    let st = stand();
    let cookie = st.alice().await;
    let (e, s) = st.begin(&cookie).await;
    s.rotate();
    let gate = st.store.hold(Verb::Replace);
    {
        let mut save = Box::pin(s.save());
        tokio::select! { _ = &mut save => panic!(), () = gate.reached() => {} }
    }
    let ex = tokio::spawn(finish(e, 500));
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    gate.release();
    let r = ex.await.unwrap();
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    let now = ck(&r).unwrap_or(cookie);
    assert_eq!(
        st.who(&now).await.as_deref(),
        Some("alice"),
        "signed out by a cookie that was never sent"
    );
}

#[tokio::test]
async fn a_session_being_created_gets_its_cookie_into_the_response() {
    let st = stand();
    let (e, s) = st.begin("").await;
    let gate = st.store.hold(Verb::Create);
    let transact = tokio::spawn({
        let s = s.clone();
        async move { s.transact(|v| v.insert(A, &1)).await }
    });
    gate.reached().await;
    let ex = tokio::spawn(finish(e, 200));
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    gate.release();
    transact.await.unwrap().unwrap();
    assert!(ck(&ex.await.unwrap()).is_some(), "stored, and no cookie");
}

#[tokio::test]
async fn what_is_asked_for_during_a_commit_does_not_repeat_what_was_committed() {
    let st = stand();
    let cookie = st.alice().await;
    let (e, s) = st.begin(&cookie).await;
    s.destroy();
    s.insert(A, &1).unwrap();
    let gate = st.store.hold(Verb::Create);
    let other = async {
        gate.reached().await;
        s.rotate();
        gate.release();
    };
    let (r, ()) = futures_util::join!(s.save(), other);
    r.unwrap();
    let r = finish(e, 200).await;
    assert_eq!(st.read(&ck(&r).unwrap(), A).await, Some(1));
}

#[tokio::test]
async fn a_change_during_a_commit_of_an_abandoned_request_is_kept() {
    let st = stand();
    let cookie = st.seeded().await;
    let (e, s) = st.begin(&cookie).await;
    s.insert(A, &1).unwrap();
    let gate = st.store.hold(Verb::Replace);
    let save = tokio::spawn({
        let s = s.clone();
        async move { s.save().await }
    });
    gate.reached().await;
    drop(e);
    s.insert(B, &2).unwrap();
    gate.release();
    save.await.unwrap().unwrap();
    s.save().await.unwrap();
    assert_eq!(st.read(&cookie, B).await, Some(2), "lost");
}

#[tokio::test]
async fn an_expired_session_is_not_brought_back_while_the_store_still_has_it() {
    let clock = ManualClock::new();
    let sessions = Sessions::builder(MemoryStore::new()).clock(clock.clone()).build().unwrap();
    for writes in [false, true] {
        let cookie = visit(&sessions, "", async |s: Session| s.insert(SEED, &1)).await.cookie();
        visit(&sessions, &cookie, async |s: Session| {
            clock.advance(Duration::from_secs(1800));
            if writes { s.insert(A, &1) } else { Ok(()) }
        })
        .await;
        let alive = visit(&sessions, &cookie, async |s: Session| s.get(SEED)).await.ok();
        assert_eq!(alive, None, "writes={writes}: expired session lives again");
    }
}

#[tokio::test]
async fn an_abandoned_request_makes_no_secret_void() {
    let st = stand();
    let cookie = st.alice().await;
    let (e, s) = st.begin(&cookie).await;
    drop(e);
    s.rotate();
    assert_eq!(st.who(&cookie).await.as_deref(), Some("alice"));
}

#[tokio::test]
async fn a_finish_that_is_dropped_unpolled_is_carried_out() {
    let st = stand();
    let cookie = st.alice().await;
    let (e, s) = st.begin(&cookie).await;
    s.sign_out();
    drop(e.finish(200));
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert_eq!(st.who(&cookie).await, None, "the end was lost");
}

#[tokio::test]
async fn a_decision_that_fails_leaves_everything_as_it_is() {
    let st = stand();
    let cookie = st.alice().await;
    let (e, s) = st.begin(&cookie).await;
    s.sign_out();
    let refused = s.transact(|_| Err::<(), _>(unsticky::Error::refused("no"))).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(st.who(&cookie).await.as_deref(), Some("alice"));
    let r = finish(e, 200).await;
    assert!(r.error.is_none() && r.set_cookie.unwrap().contains("Max-Age=0"));
    assert_eq!(st.who(&cookie).await, None);
}

#[tokio::test]
async fn an_error_keeps_the_cookies_of_layers_further_in() {
    let inner = Sessions::builder(MemoryStore::new()).build().unwrap();
    let store = FaultStore::new(MemoryStore::new());
    let cookie = Cookie::new("__Host-admin");
    let outer = Sessions::builder(store.clone()).cookie(cookie).build().unwrap();
    store.fail_always(Verb::Create, Fault::Unavailable);
    for app in both_with(&[inner, outer], Gates::default()).await {
        let reply = app.get("/both", "").await;
        assert_eq!(reply.status, 503, "{reply:?}");
        assert!(reply.cookie().starts_with("__Host-id="), "{reply:?}");
    }
}

#[tokio::test]
async fn what_follows_a_sign_out_is_not_compared_with_the_old_session() {
    let st = stand();
    let cookie = st.seeded().await;
    let (e, s) = st.begin(&cookie).await;
    st.sign_in(&cookie).await;
    s.sign_out();
    s.insert(SEED, &1).unwrap();
    let r = finish(e, 200).await;
    assert_eq!((ck(&r), r.error.map(|e| e.kind())), (None, Some(ErrorKind::Gone)));
}

#[tokio::test]
async fn after_signing_in_anew_a_lost_session_is_forgotten() {
    let st = stand();
    let cookie = st.seeded().await;
    let (e, s) = st.begin(&cookie).await;
    visit(&st.sessions, &cookie, async |s: Session| {
        s.sign_out();
        Ok(())
    })
    .await
    .ok();
    s.rotate();
    s.save().await.unwrap();
    s.sign_in("alice").unwrap();
    s.save().await.unwrap();
    s.insert(A, &1).unwrap();
    let r = finish(e, 200).await;
    assert!(r.error.is_none(), "{r:?}");
    let cookie = ck(&r).unwrap();
    assert_eq!(st.read(&cookie, A).await, Some(1));
    assert_eq!(st.who(&cookie).await.as_deref(), Some("alice"));
}
