//! Flash messages: each is shown by exactly one response, and none makes a request fail.

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

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use support::app::{Gates, both, both_with};
use support::stand::{A, Backend, SEED, Stand, on_every_store, save_in_a_task};
use support::visit::{Visit, cookie_of, finish, rotate, sign_in, sign_out, visit};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use unsticky::testing::{Fault, Verb};
use unsticky::{ErrorKind, Flash, Key, Level, Result, Session, Sessions};

/// A handler that adds a message.
fn say(text: &str) -> impl AsyncFnOnce(Session) -> Result<()> {
    async move |session: Session| session.flash(Level::Info, text)
}

fn texts(flashes: Vec<Flash>) -> Vec<String> {
    flashes.into_iter().map(|flash| flash.text).collect()
}

/// A handler that takes and shows the messages.
async fn page(session: Session) -> Result<Vec<String>> {
    session.flashes().await.map(texts)
}

/// Returns the messages that a page of this session shows.
async fn shown(stand: &Stand, cookie: &str) -> Vec<String> {
    let page = stand.visit(cookie, page).await;
    assert_eq!(page.set_cookie, None);
    page.ok()
}

/// Returns the cookie of an anonymous session with a message.
async fn told(stand: &Stand, text: &str) -> String {
    stand.visit("", say(text)).await.cookie()
}

/// Returns the output of a request that must succeed and set no cookie.
fn unharmed<T: std::fmt::Debug>(visit: Visit<T>) -> T {
    assert_eq!((visit.failure(), &visit.set_cookie), (None, &None), "{:?}", visit.output);
    visit.ok()
}

const NOTHING: [&str; 0] = [];

async fn message_is_shown_once_with_its_level(on: Backend) {
    let stand = on.stand();
    for cookie in [stand.seeded().await, stand.signed_in("alice").await] {
        let save = async |session: Session| {
            session.flash(Level::Success, "saved")?;
            session.flash(Level::Error, "not sent")
        };
        unharmed(stand.visit(&cookie, save).await);
        let shown = stand.visit(&cookie, async |session: Session| session.flashes().await);
        let shown = unharmed(shown.await);
        let shown: Vec<_> = shown.iter().map(|flash| (flash.level, &*flash.text)).collect();
        assert_eq!(shown, [(Level::Success, "saved"), (Level::Error, "not sent")]);
        assert_eq!(self::shown(&stand, &cookie).await, NOTHING);
        assert_eq!(stand.read(&cookie, SEED).await, Some(1));
    }
}

async fn visitor_without_session_gets_message(on: Backend) {
    let stand = on.stand();
    let cookie = told(&stand, "hello").await;
    assert_eq!(shown(&stand, &cookie).await, ["hello"]);
    assert_eq!(shown(&stand, &cookie).await, NOTHING);
}

async fn message_waits_for_page_that_asks(on: Backend) {
    let stand = on.stand();
    let cookie = told(&stand, "hello").await;
    for hop in 0..3 {
        stand.read(&cookie, A).await;
        stand.write(&cookie, A, hop).await;
    }
    let cookie = stand.visit(&cookie, rotate).await.cookie();
    assert_eq!(shown(&stand, &cookie).await, ["hello"]);
    assert_eq!(stand.read(&cookie, A).await, Some(2));
}

async fn message_survives_sign_in_of_same_person(on: Backend) {
    let stand = on.stand();
    let cookie = told(&stand, "first").await;
    let sign_in = async |session: Session| {
        session.flash(Level::Info, "before")?;
        session.sign_in("alice")?;
        session.flash(Level::Info, "after")
    };
    let cookie = stand.visit(&cookie, sign_in).await.cookie();
    assert_eq!(shown(&stand, &cookie).await, ["first", "before", "after"]);
    // Messages also survive a second sign-in by the same user, and a step-up.
    unharmed(stand.visit(&cookie, say("first")).await);
    let cookie = stand.visit(&cookie, sign_in).await.cookie();
    let step_up = async |session: Session| session.step_up();
    let cookie = stand.visit(&cookie, step_up).await.cookie();
    assert_eq!(shown(&stand, &cookie).await, ["first", "before", "after"]);
}

/// Earlier messages were meant for the user who was signed in before, so only this request's are kept.
async fn sign_in_as_another_person_keeps_only_messages_of_its_request(on: Backend) {
    let stand = on.stand();
    let cookie = stand.signed_in("alice").await;
    unharmed(stand.visit(&cookie, say("alice's")).await);
    let switch = async |session: Session| {
        session.flash(Level::Info, "before")?;
        session.sign_in("bob")?;
        session.flash(Level::Info, "after")
    };
    let bob = stand.visit(&cookie, switch).await.cookie();
    assert_eq!(shown(&stand, &bob).await, ["before", "after"]);
    assert_eq!(stand.who(&bob).await.as_deref(), Some("bob"));
    assert_eq!(stand.read(&bob, SEED).await, None);
    assert_eq!(shown(&stand, &cookie).await, NOTHING);
}

/// The response sets the cookie of a new anonymous session instead of removing the cookie.
async fn message_of_sign_out_goes_into_new_session(on: Backend) {
    let stand = on.stand();
    type Deed = fn(&Session) -> Result<()>;
    let before: Deed = |session| {
        session.flash(Level::Info, "goodbye")?;
        session.sign_out();
        Ok(())
    };
    let after: Deed = |session| {
        session.sign_out();
        session.flash(Level::Info, "goodbye")
    };
    for deed in [before, after] {
        let cookie = stand.signed_in("alice").await;
        unharmed(stand.visit(&cookie, say("alice's")).await);
        let left = stand.visit(&cookie, async |session: Session| deed(&session)).await;
        assert_eq!((left.failure(), left.removes_cookie()), (None, false));
        let left = left.cookie();
        assert_eq!(stand.who(&left).await, None);
        assert_eq!(shown(&stand, &left).await, ["goodbye"]);
        assert_eq!(shown(&stand, &left).await, NOTHING);
        assert_eq!(stand.read(&left, SEED).await, None);
        assert_eq!(stand.read(&cookie, SEED).await, None);
    }
}

async fn sign_out_and_tell(session: Session) -> Result<()> {
    session.sign_out();
    session.flash(Level::Info, "goodbye")
}

/// Two sign-outs of one session at the same time, as after a double click: both succeed, and only the
/// first keeps its message.
async fn second_sign_out_at_once_succeeds_and_drops_its_message(on: Backend) {
    let stand = on.stand();
    let cookie = stand.signed_in("alice").await;
    let mut first = String::new();
    let second = stand.overtaken(&cookie, sign_out_and_tell, async || {
        first = stand.visit(&cookie, sign_out_and_tell).await.cookie();
    });
    unharmed(second.await);
    assert_eq!(shown(&stand, &first).await, ["goodbye"]);
    // If the second sign-out also loses a value, it fails, as it would without a message.
    let cookie = stand.signed_in("alice").await;
    let with_value = async |session: Session| {
        session.insert(A, &1)?;
        session.sign_out();
        session.insert(A, &2)?;
        session.flash(Level::Info, "goodbye")
    };
    let second = stand.overtaken(&cookie, with_value, async || stand.sign_out(&cookie).await);
    let second = second.await;
    assert_eq!((second.failure(), second.set_cookie), (Some(ErrorKind::Gone), None));
}

/// The session has ended, as requested. The message is dropped, because no new session can hold it.
async fn sign_out_succeeds_where_its_message_cannot_be_stored(on: Backend) {
    let stand = on.stand();
    for fault in [Fault::Refused, Fault::Unavailable] {
        let cookie = stand.signed_in("alice").await;
        stand.store.fail_always(Verb::Create, fault);
        let left = stand.visit(&cookie, sign_out_and_tell).await;
        assert_eq!((left.failure(), left.removes_cookie()), (None, true));
        // If a value is lost too, the request fails.
        stand.store.heal();
        let cookie = stand.signed_in("alice").await;
        stand.store.fail_always(Verb::Create, fault);
        let with_value = async |session: Session| {
            session.sign_out();
            session.insert(A, &1)?;
            session.flash(Level::Info, "goodbye")
        };
        let left = stand.visit(&cookie, with_value).await;
        assert!(left.failure().is_some() && left.removes_cookie());
        stand.store.heal();
        assert_eq!(stand.who(&cookie).await, None);
    }
}

async fn sign_out_overtaken_by_other_persons_sign_in_sends_nothing(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let mut newer = String::new();
    let late = stand.overtaken(&cookie, sign_out_and_tell, async || {
        newer = stand.sign_in(&cookie).await;
    });
    unharmed(late.await);
    assert_eq!(shown(&stand, &newer).await, NOTHING);
    assert_eq!(stand.who(&newer).await.as_deref(), Some("alice"));
}

/// A new session for the message would need a cookie, which would overwrite the newer one.
async fn request_with_stale_cookie_drops_its_message(on: Backend) {
    let stand = on.stand();
    let stale = stand.signed_in("alice").await;
    let cookie = stand.visit(&stale, rotate).await.cookie();
    unharmed(stand.visit(&stale, say("lost")).await);
    let saved = async |session: Session| {
        session.flash(Level::Info, "lost")?;
        session.save().await
    };
    unharmed(stand.visit(&stale, saved).await);
    let own = async |session: Session| {
        session.flash(Level::Info, "own")?;
        page(session).await
    };
    assert_eq!(unharmed(stand.visit(&stale, own).await), ["own"]);
    assert_eq!(shown(&stand, &stale).await, NOTHING);
    assert_eq!(shown(&stand, &cookie).await, NOTHING);
    let with_value = async |session: Session| {
        session.flash(Level::Info, "lost")?;
        session.insert(A, &1)
    };
    assert_eq!(stand.visit(&stale, with_value).await.failure(), Some(ErrorKind::Gone));
}

/// A handler that finds that its session is gone can still respond, although it has added a message.
async fn message_fails_no_request_that_found_its_session_lost(on: Backend) {
    let stand = on.stand();
    for (touches, writes) in [(false, false), (true, false), (false, true), (true, true)] {
        let cookie = stand.signed_in("alice").await;
        unharmed(stand.visit(&cookie, say("waits")).await);
        let look = async |session: Session| {
            session.flash(Level::Info, "own")?;
            if writes {
                session.insert(A, &1)?;
            }
            let looked = if touches { session.touch().await } else { session.reload().await };
            assert_eq!(looked.unwrap_err().kind(), ErrorKind::Gone);
            // Messages that were waiting in the session are not shown.
            let shown = page(session.clone()).await?;
            session.flash(Level::Info, "dropped")?;
            Ok(shown)
        };
        let late = stand.overtaken(&cookie, look, async || {
            stand.sign_out(&cookie).await;
            stand.clock.advance(Duration::from_secs(120));
        });
        let late = late.await;
        match writes {
            false => assert_eq!(unharmed(late), ["own"]),
            // With a lost value, the request fails, as it would without a message.
            true => assert_eq!((late.failure(), late.set_cookie), (Some(ErrorKind::Gone), None)),
        }
    }
}

async fn page_at_once_with_sign_in_never_fails(on: Backend) {
    for before in ["", "alice"] {
        let stand = on.stand();
        let visitor = async || match before {
            "" => stand.seeded().await,
            _ => stand.signed_in(before).await,
        };
        let cookie = visitor().await;
        unharmed(stand.visit(&cookie, say("hello")).await);
        let mut signed_in = String::new();
        let late = stand.overtaken(&cookie, page, async || {
            signed_in = stand.sign_in(&cookie).await;
        });
        assert_eq!(unharmed(late.await), NOTHING);
        assert_eq!(shown(&stand, &signed_in).await, ["hello"]);

        let cookie = visitor().await;
        unharmed(stand.visit(&cookie, say("hello")).await);
        let mut first = Vec::new();
        let late = stand.overtaken(&cookie, sign_in, async || {
            first = shown(&stand, &cookie).await;
        });
        let late = late.await;
        assert_eq!((late.failure(), first), (None, vec!["hello".to_owned()]));
        assert_eq!(shown(&stand, &late.cookie()).await, NOTHING);
    }
}

async fn page_at_once_with_sign_out_never_fails(on: Backend) {
    let stand = on.stand();
    for has_expired in [false, true] {
        let cookie = stand.signed_in("alice").await;
        unharmed(stand.visit(&cookie, say("hello")).await);
        let late = stand.overtaken(&cookie, page, async || match has_expired {
            false => stand.sign_out(&cookie).await,
            true => stand.clock.advance(Duration::from_secs(30 * 60)),
        });
        assert_eq!(unharmed(late.await), NOTHING);
    }
    let cookie = stand.signed_in("alice").await;
    unharmed(stand.visit(&cookie, say("hello")).await);
    let mut first = Vec::new();
    let late = stand.overtaken(&cookie, sign_out, async || {
        first = shown(&stand, &cookie).await;
    });
    assert!(late.await.removes_cookie());
    assert_eq!(first, ["hello"]);
}

/// The page has also changed a value. The change is lost, so the page fails, as it would without a
/// message.
async fn page_that_loses_other_changes_fails(on: Backend) {
    let stand = on.stand();
    let cookie = stand.signed_in("alice").await;
    unharmed(stand.visit(&cookie, say("hello")).await);
    let page = async |session: Session| {
        session.insert(A, &1)?;
        page(session).await
    };
    let late = stand.overtaken(&cookie, page, async || stand.sign_out(&cookie).await).await;
    assert_eq!((late.failure(), late.set_cookie), (Some(ErrorKind::Gone), None));
}

async fn page_at_once_with_rotation_shows_message(on: Backend) {
    let stand = on.stand();
    let cookie = stand.signed_in("alice").await;
    unharmed(stand.visit(&cookie, say("hello")).await);
    let mut rotated = String::new();
    let late = stand.overtaken(&cookie, page, async || {
        rotated = stand.visit(&cookie, rotate).await.cookie();
    });
    assert_eq!(unharmed(late.await), ["hello"]);
    assert_eq!(shown(&stand, &rotated).await, NOTHING);
}

/// A request adds a message while another request writes, adds a message, rotates, signs in or signs
/// out. The message is then shown after the other request's message, or it is dropped. Either way, the
/// request that added it succeeds.
async fn message_written_at_once_with_other_request_is_merged_or_dropped(on: Backend) {
    let stand = on.stand();
    type Deed = fn(&Session) -> Result<()>;
    let nothing: Deed = |_| Ok(());
    let writes: Deed = |session| session.insert(A, &1);
    let speaks: Deed = |session| session.flash(Level::Info, "first");
    let rotates: Deed = |session| {
        session.rotate();
        Ok(())
    };
    let signs_in: Deed = |session| session.sign_in("alice");
    let switches: Deed = |session| session.sign_in("bob");
    let signs_out: Deed = |session| {
        session.sign_out();
        Ok(())
    };
    for (deed, expected) in [
        (nothing, &["hello"][..]),
        (writes, &["hello"]),
        (speaks, &["first", "hello"]),
        (rotates, &["hello"]),
        (signs_in, &[]),
        (switches, &[]),
        (signs_out, &[]),
    ] {
        let cookie = stand.signed_in("alice").await;
        let mut newest = cookie.clone();
        let late = stand.overtaken(&cookie, say("hello"), async || {
            let other = stand.visit(&cookie, async |session: Session| deed(&session)).await;
            if other.set_cookie.is_some() {
                newest = other.cookie();
            }
        });
        unharmed(late.await);
        assert_eq!(shown(&stand, &newest).await, expected);
    }
}

async fn own_message_is_shown_without_being_stored(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let own = async |session: Session| {
        session.flash(Level::Info, "own")?;
        page(session).await
    };
    for (cookie, commands) in [("", &[][..]), (&cookie, &[Verb::Load])] {
        stand.spy.take();
        assert_eq!(unharmed(stand.visit(cookie, own).await), ["own"]);
        assert_eq!(stand.taken_verbs(), commands);
    }
    // A message added by another request in the meantime is left for the next page.
    let late = stand.overtaken(&cookie, own, async || {
        unharmed(stand.visit(&cookie, say("other")).await);
    });
    assert_eq!(unharmed(late.await), ["own"]);
    assert_eq!(shown(&stand, &cookie).await, ["other"]);
    // A page shows its own message after those that were waiting.
    unharmed(stand.visit(&cookie, say("waits")).await);
    assert_eq!(unharmed(stand.visit(&cookie, own).await), ["waits", "own"]);
    assert_eq!(shown(&stand, &cookie).await, NOTHING);
    // A message added after the page has taken the messages waits for the next page.
    let afterwards = async |session: Session| {
        session.flash(Level::Info, "shown")?;
        let shown = page(session.clone()).await?;
        session.flash(Level::Info, "next")?;
        Ok(shown)
    };
    assert_eq!(unharmed(stand.visit(&cookie, afterwards).await), ["shown"]);
    assert_eq!(shown(&stand, &cookie).await, ["next"]);
}

/// A page takes a message while another handle of its request is storing it.
async fn message_that_is_being_stored_is_shown_once(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let (exchange, session) = stand.begin(&cookie).await;
    session.flash(Level::Info, "hello").unwrap();
    let gate = stand.store.hold(Verb::Replace);
    let saving = save_in_a_task(&session);
    gate.reached().await;
    let page = tokio::spawn(page(session.clone()));
    tokio::task::yield_now().await;
    session.flash(Level::Info, "later").unwrap();
    gate.release();
    saving.await.unwrap().unwrap();
    let mut seen = page.await.unwrap().unwrap();
    assert_eq!(finish(exchange, 200).await.error.map(|error| error.kind()), None);
    seen.extend(shown(&stand, &cookie).await);
    assert_eq!(seen, ["hello", "later"]);
}

async fn pages_cost_one_command_and_two_with_message(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    for (has_message, commands) in
        [(false, &[Verb::Load][..]), (true, &[Verb::Load, Verb::Replace]), (false, &[Verb::Load])]
    {
        if has_message {
            unharmed(stand.visit(&cookie, say("hello")).await);
        }
        stand.spy.take();
        assert_eq!(shown(&stand, &cookie).await.len(), usize::from(has_message));
        assert_eq!(stand.taken_verbs(), commands);
    }
    stand.spy.take();
    assert_eq!(shown(&stand, "").await, NOTHING);
    assert!(stand.taken_verbs().is_empty());
    // A page that also changes a value sends no extra command: one write covers both.
    stand.spy.take();
    unharmed(stand.visit(&cookie, say("hello")).await);
    assert_eq!(stand.taken_verbs(), [Verb::Load, Verb::Replace]);
    let writing_page = async |session: Session| {
        session.insert(A, &1)?;
        page(session).await
    };
    assert_eq!(unharmed(stand.visit(&cookie, writing_page).await), ["hello"]);
    assert_eq!(stand.taken_verbs(), [Verb::Load, Verb::Replace]);
}

async fn oversize_message_is_refused_and_nothing_is_lost(on: Backend) {
    let stand = on.stand();
    let cookie = told(&stand, "waits").await;
    let text = "x".repeat(1025);
    let refused = stand.visit(&cookie, say(&text)).await;
    assert_eq!(refused.failure(), Some(ErrorKind::TooLarge));
    assert!(!refused.output.unwrap_err().to_string().contains("xx"));
    let goes_on = async |session: Session| {
        session.flash(Level::Info, "kept")?;
        let refused = session.flash(Level::Info, &text).unwrap_err();
        assert_eq!((refused.kind(), refused.status()), (ErrorKind::TooLarge, 500));
        session.insert(A, &1)
    };
    unharmed(stand.visit(&cookie, goes_on).await);
    assert_eq!(shown(&stand, &cookie).await, ["waits", "kept"]);
    assert_eq!(stand.read(&cookie, A).await, Some(1));
}

async fn seventeenth_message_drops_oldest(on: Backend) {
    let stand = on.stand();
    let numbers: Vec<_> = (0..40).map(|number| number.to_string()).collect();
    let cookie = stand.seeded().await;
    for number in &numbers[..20] {
        unharmed(stand.visit(&cookie, say(number)).await);
    }
    assert_eq!(shown(&stand, &cookie).await, numbers[4..20]);
    let in_one_request = async |session: Session| {
        numbers.iter().try_for_each(|number| session.flash(Level::Info, number))
    };
    unharmed(stand.visit(&cookie, in_one_request).await);
    assert_eq!(shown(&stand, &cookie).await, numbers[24..]);
    // The oldest are also dropped if the messages are too large together.
    for number in 0..20 {
        let text = format!("{number}{}", "x".repeat(1000));
        unharmed(stand.visit(&cookie, say(&text)).await);
    }
    let shown = shown(&stand, &cookie).await;
    assert_eq!((shown.len(), &shown[3][..3]), (4, "19x"));
}

/// An application's values have priority over messages, whichever were written first.
async fn messages_take_no_room_from_values(on: Backend) {
    const TEXT: Key<String> = Key::new("text");
    let stand = on.stand_with(|builder| builder.max_record_bytes(2048));
    let cookie = stand.seeded().await;
    // A record keeps the tags of its last eight writes, so it has its full size after eight writes.
    for number in 0..8 {
        stand.write(&cookie, A, number).await;
    }
    let mut largest = 0;
    for size in (1000..2048).rev() {
        let write = async |session: Session| session.insert(TEXT, &"x".repeat(size));
        if stand.visit(&cookie, write).await.failure().is_none() {
            largest = size;
            break;
        }
    }
    assert!(largest > 1000);
    let write = async |session: Session| session.insert(TEXT, &"y".repeat(largest));
    let read = async |session: Session| Ok(session.get(TEXT)?.unwrap_or_default());

    // There is no room for a message, so it is dropped; no request fails for that reason.
    unharmed(stand.visit(&cookie, say("dropped")).await);
    assert_eq!(shown(&stand, &cookie).await, NOTHING);
    // Stored messages are dropped to make room for a value.
    unharmed(
        stand.visit(&cookie, async |session: Session| session.insert(TEXT, &String::new())).await,
    );
    for _ in 0..20 {
        unharmed(stand.visit(&cookie, say(&"z".repeat(400))).await);
    }
    unharmed(stand.visit(&cookie, write).await);
    assert_eq!(stand.visit(&cookie, read).await.ok(), "y".repeat(largest));
    assert_eq!(shown(&stand, &cookie).await, NOTHING);
    // Messages also make room within one request, and in a `transact`.
    let both = async |session: Session| {
        session.insert(TEXT, &String::new())?;
        session.save().await?;
        session.flash(Level::Info, "z".repeat(400))?;
        session.insert(TEXT, &"y".repeat(largest))?;
        let larger = "w".repeat(largest);
        session.transact(move |values| values.insert(TEXT, &larger)).await
    };
    unharmed(stand.visit(&cookie, both).await);
    assert_eq!(stand.visit(&cookie, read).await.ok(), "w".repeat(largest));
    // A value that is too large even without messages is refused as usual.
    let too_much = async |session: Session| {
        session.flash(Level::Info, "dropped")?;
        session.insert(TEXT, &"v".repeat(largest + 1))
    };
    assert_eq!(stand.visit(&cookie, too_much).await.failure(), Some(ErrorKind::TooLarge));
    assert_eq!(stand.visit(&cookie, read).await.ok(), "w".repeat(largest));
}

async fn undecodable_list_is_dropped(on: Backend) {
    const LIST: Key<u32> = Key::new("unsticky.flash");
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let damage = async |session: Session| session.insert(LIST, &7);
    unharmed(stand.visit(&cookie, damage).await);
    assert_eq!(shown(&stand, &cookie).await, NOTHING);
    let contains = async |session: Session| Ok(session.contains(LIST));
    assert!(!stand.visit(&cookie, contains).await.ok());
    unharmed(stand.visit(&cookie, damage).await);
    unharmed(stand.visit(&cookie, say("hello")).await);
    assert_eq!(shown(&stand, &cookie).await, ["hello"]);
    assert_eq!(stand.read(&cookie, SEED).await, Some(1));
}

async fn failed_response_keeps_waiting_messages_and_discards_its_own(on: Backend) {
    let stand = on.stand();
    let cookie = told(&stand, "waits").await;
    let (exchange, session) = stand.begin(&cookie).await;
    session.flash(Level::Info, "discarded").unwrap();
    assert!(finish(exchange, 500).await.error.is_none());
    assert_eq!(shown(&stand, &cookie).await, ["waits"]);
    // A page takes the messages when it calls `flashes`, even if its response then fails.
    unharmed(stand.visit(&cookie, say("taken")).await);
    let (exchange, session) = stand.begin(&cookie).await;
    assert_eq!(page(session).await.unwrap(), ["taken"]);
    finish(exchange, 500).await;
    assert_eq!(shown(&stand, &cookie).await, NOTHING);
}

async fn clear_removes_messages(on: Backend) {
    let stand = on.stand();
    let cookie = told(&stand, "waits").await;
    let clear = async |session: Session| {
        session.flash(Level::Info, "cleared")?;
        session.clear();
        assert_eq!(page(session.clone()).await?, NOTHING);
        session.flash(Level::Info, "after")
    };
    unharmed(stand.visit(&cookie, clear).await);
    assert_eq!(shown(&stand, &cookie).await, ["after"]);
    unharmed(stand.visit(&cookie, say("waits")).await);
    unharmed(stand.overtaken(&cookie, clear, async || stand.write(&cookie, A, 1).await).await);
    assert_eq!(shown(&stand, &cookie).await, ["after"]);
}

async fn handle_after_its_response_stores_and_takes_messages(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let (exchange, session) = stand.begin(&cookie).await;
    finish(exchange, 200).await;
    session.flash(Level::Info, "late").unwrap();
    session.save().await.unwrap();
    assert_eq!(shown(&stand, &cookie).await, ["late"]);
    // The request itself wrote this message, but a page has taken it since.
    assert_eq!(page(session.clone()).await.unwrap(), NOTHING);
    session.flash(Level::Info, "lost").unwrap();
    stand.sign_out(&cookie).await;
    assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::Gone);

    let (exchange, session) = stand.begin("").await;
    finish(exchange, 200).await;
    session.flash(Level::Info, "late").unwrap();
    assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::HeadSent);
    assert_eq!(page(session).await.unwrap(), ["late"]);
}

/// The write that takes a message gets no answer. If the record can be read back, the page shows the
/// message; otherwise the page fails, and the next page shows the message if the write was not applied.
async fn lost_answer_shows_message_at_most_once(on: Backend) {
    let stand = on.stand();
    for (fault, failed_loads, expected) in [
        (Fault::LoseAnswer, 0, Some(1)),
        (Fault::LoseRequest, 0, Some(1)),
        // The record cannot be read back either, so the outcome is unknown.
        (Fault::LoseAnswer, 3, None),
        (Fault::LoseRequest, 3, None),
    ] {
        let cookie = told(&stand, "hello").await;
        stand.store.inject(Verb::Replace, fault);
        let (exchange, session) = stand.begin(&cookie).await;
        for _ in 0..failed_loads {
            stand.store.inject(Verb::Load, Fault::Unavailable);
        }
        let taken = page(session).await;
        let reply = finish(exchange, 200).await;
        stand.store.heal();
        match expected {
            Some(count) => {
                assert_eq!((taken.unwrap().len(), reply.error.is_none()), (count, true));
                assert_eq!(shown(&stand, &cookie).await, NOTHING);
            }
            None => {
                assert_eq!(taken.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
                assert_eq!(reply.error.unwrap().kind(), ErrorKind::OutcomeUnknown);
                let left = usize::from(fault == Fault::LoseRequest);
                assert_eq!(shown(&stand, &cookie).await.len(), left);
                assert_eq!(shown(&stand, &cookie).await, NOTHING);
            }
        }
    }
}

/// The write that took the messages was applied, so this page shows them, even though its answer was
/// lost and a sign-in has replaced the session since.
async fn message_taken_before_sign_in_is_shown_although_its_answer_is_lost(on: Backend) {
    let stand = on.stand();
    let cookie = stand.signed_in("alice").await;
    unharmed(stand.visit(&cookie, say("hello")).await);
    let (exchange, session) = stand.begin(&cookie).await;
    stand.store.inject(Verb::Replace, Fault::LoseAnswer);
    let read_back = stand.store.hold(Verb::Load);
    let page = tokio::spawn(page(session));
    read_back.reached().await;
    let signed_in = stand.sign_in(&cookie).await;
    read_back.release();
    assert_eq!(page.await.unwrap().unwrap(), ["hello"]);
    let reply = finish(exchange, 200).await;
    assert_eq!((cookie_of(&reply), reply.error.map(|error| error.kind())), (None, None));
    assert_eq!(shown(&stand, &signed_in).await, NOTHING);
}

/// Loads a page in `count` concurrent requests, each of which may also change a value, and counts how
/// often each message was shown.
async fn pages_at_once(
    sessions: &Sessions,
    cookie: &str,
    count: usize,
    writes: bool,
) -> BTreeMap<String, usize> {
    let barrier = Arc::new(Barrier::new(count));
    let mut pages = JoinSet::new();
    for _ in 0..count {
        let (sessions, cookie, barrier) = (sessions.clone(), cookie.to_owned(), barrier.clone());
        pages.spawn(async move {
            let page = async |session: Session| {
                // At this point, all requests have loaded the session.
                barrier.wait().await;
                if writes {
                    session.update(A, |number| *number += 1)?;
                }
                page(session).await
            };
            visit(&sessions, &cookie, page).await
        });
    }
    let mut seen = BTreeMap::new();
    while let Some(page) = pages.join_next().await {
        for text in unharmed(page.unwrap()) {
            *seen.entry(text).or_default() += 1;
        }
    }
    seen
}

async fn hundred_and_twenty_pages_at_once_show_each_message_once(on: Backend) {
    let stand = on.stand_with(|builder| builder.timeout(Duration::from_secs(20)));
    let expected: BTreeMap<_, _> = (0..3).map(|number| (format!("message {number}"), 1)).collect();
    for round in 0..4 {
        let cookie = stand.seeded().await;
        for text in expected.keys() {
            unharmed(stand.visit(&cookie, say(text)).await);
        }
        let writes = round % 2 == 1;
        assert_eq!(pages_at_once(&stand.sessions, &cookie, 120, writes).await, expected);
        assert_eq!(shown(&stand, &cookie).await, NOTHING);
        assert_eq!(stand.read(&cookie, A).await, writes.then_some(120));
        assert_eq!(stand.read(&cookie, SEED).await, Some(1));
    }
}

/// All at the same time: messages, pages, lost answers, and a rotation, a sign-in or a sign-out.
async fn everything_at_once_shows_no_message_twice_and_fails_no_page(on: Backend) {
    for round in 0..12_usize {
        let loses_answers = round % 4 == 3;
        let stand = on.stand_with(|builder| builder.timeout(Duration::from_secs(20)));
        let cookie = stand.signed_in("alice").await;
        for number in 0..3 {
            unharmed(stand.visit(&cookie, say(&format!("first {number}"))).await);
        }
        let mut requests = JoinSet::new();
        for number in 0..40_usize {
            let (sessions, cookie) = (stand.sessions.clone(), cookie.clone());
            if loses_answers && number % 10 == 0 {
                stand.store.inject(Verb::Replace, Fault::LoseAnswer);
            }
            requests.spawn(async move {
                let work = async |session: Session| {
                    for _ in 0..fastrand::usize(..4) {
                        tokio::task::yield_now().await;
                    }
                    match number {
                        7 if round % 3 == 0 => session.sign_out(),
                        7 if round % 3 == 1 => session.sign_in("alice")?,
                        7 => session.rotate(),
                        _ if number % 3 == 0 => {
                            session.flash(Level::Info, format!("message {number}"))?;
                        }
                        _ => return page(session).await,
                    }
                    Ok(Vec::new())
                };
                visit(&sessions, &cookie, work).await
            });
        }
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let mut newest = cookie;
        let mut in_doubt = 0;
        while let Some(request) = requests.join_next().await {
            let request = request.unwrap();
            if request.failure() == Some(ErrorKind::OutcomeUnknown) && loses_answers {
                // Other requests wrote too often for the outcome to be settled.
                in_doubt += 1;
                continue;
            }
            assert_eq!(request.failure(), None, "round {round}");
            if request.set_cookie.is_some() {
                newest = request.cookie();
            }
            for text in request.ok() {
                *seen.entry(text).or_default() += 1;
            }
        }
        stand.store.heal();
        for text in stand.visit(&newest, page).await.ok() {
            *seen.entry(text).or_default() += 1;
        }
        assert!(seen.values().all(|count| *count == 1), "round {round}: {seen:?}");
        if round % 3 != 0 && in_doubt == 0 {
            // Unless the session was signed out, the messages from the start are all shown.
            let first = seen.keys().filter(|text| text.starts_with("first")).count();
            assert_eq!(first, 3, "round {round}: {seen:?}");
        }
    }
}

/// Each row: the script to run with the newest cookie, the body, and what the response does with the
/// cookie.
#[tokio::test]
async fn both_frameworks_show_same_messages() {
    const TOKEN: Option<bool> = Some(false);
    const REMOVAL: Option<bool> = Some(true);
    let stand = Backend::memory().stand();
    for app in both(&stand.sessions).await {
        let mut cookie = String::new();
        for (script, body, sent) in [
            ("flashes", "", None),
            ("flash:one", "", TOKEN),
            ("flash:two,status:303", "", None),
            ("get:seed,status:303", "-", None),
            ("flashes", "one two", None),
            ("flashes", "", None),
            ("flash:three,sign-in:alice,status:303", "", TOKEN),
            ("flashes,status:500", "three", None),
            ("flashes", "", None),
            ("flash:never,status:500", "", None),
            ("flashes", "", None),
            ("flash:alice's,set:a=1", "", None),
            ("flash:four,sign-out,flash:five,status:303", "", TOKEN),
            ("who,get:a,flashes", "- - four five", None),
            ("sign-out", "", REMOVAL),
            ("flashes,flash:six,flashes,flash:seven", "six", TOKEN),
            ("flashes", "seven", None),
        ] {
            let reply = app.run(script, &cookie).await;
            let removes = reply.cookies().first().map(|cookie| cookie.contains("Max-Age=0"));
            assert_eq!((&*reply.body, removes), (body, sent), "{} {script}", app.framework);
            if removes.is_some() {
                cookie = reply.cookie();
            }
        }
        // A double click on the sign-out button, and two pages at the same time.
        let cookie = app.sign_in("alice").await;
        app.run("flash:waits", &cookie).await;
        let scripts = ["sign-out,flash:bye", "flashes", "sign-out,flash:bye", "get:a,flashes"];
        let all = scripts.map(|script| app.run(script, &cookie));
        for reply in futures_util::future::join_all(all).await {
            assert_eq!(reply.status, 200, "{} {reply:?}", app.framework);
        }
        let refused = app.run(&format!("flash:{}", "x".repeat(1025)), "").await;
        assert_eq!((refused.status, refused.cookies()), (500, vec![]));
    }
}

#[tokio::test]
async fn message_of_lost_session_causes_no_409_in_both_frameworks() {
    let stand = Backend::memory().stand();
    let gates = Gates::default();
    for app in both_with(std::slice::from_ref(&stand.sessions), gates.clone()).await {
        for (script, status, body) in [
            ("flash:own,gate:out,is-lost", 200, "true"),
            ("gate:out,is-lost,flash:own", 200, "true"),
            ("gate:out,flash:own", 200, ""),
            ("set:a=1,flash:own,gate:out,is-lost", 409, ErrorKind::Gone.message()),
        ] {
            let cookie = app.sign_in("alice").await;
            let sign_out = async {
                gates.reached("out").await;
                assert_eq!(app.run("sign-out", &cookie).await.status, 200);
                gates.open("out");
            };
            let (reply, ()) = futures_util::future::join(app.run(script, &cookie), sign_out).await;
            assert_eq!((reply.status, &*reply.body), (status, body), "{} {script}", app.framework);
            assert_eq!(reply.cookies(), [""; 0], "{} {script}", app.framework);
        }
    }
}

on_every_store!(
    message_is_shown_once_with_its_level,
    visitor_without_session_gets_message,
    message_waits_for_page_that_asks,
    message_survives_sign_in_of_same_person,
    sign_in_as_another_person_keeps_only_messages_of_its_request,
    message_of_sign_out_goes_into_new_session,
    second_sign_out_at_once_succeeds_and_drops_its_message,
    sign_out_succeeds_where_its_message_cannot_be_stored,
    sign_out_overtaken_by_other_persons_sign_in_sends_nothing,
    request_with_stale_cookie_drops_its_message,
    message_fails_no_request_that_found_its_session_lost,
    page_at_once_with_sign_in_never_fails,
    page_at_once_with_sign_out_never_fails,
    page_that_loses_other_changes_fails,
    page_at_once_with_rotation_shows_message,
    message_written_at_once_with_other_request_is_merged_or_dropped,
    own_message_is_shown_without_being_stored,
    message_that_is_being_stored_is_shown_once,
    pages_cost_one_command_and_two_with_message,
    oversize_message_is_refused_and_nothing_is_lost,
    seventeenth_message_drops_oldest,
    messages_take_no_room_from_values,
    undecodable_list_is_dropped,
    failed_response_keeps_waiting_messages_and_discards_its_own,
    clear_removes_messages,
    handle_after_its_response_stores_and_takes_messages,
    lost_answer_shows_message_at_most_once,
    message_taken_before_sign_in_is_shown_although_its_answer_is_lost,
    hundred_and_twenty_pages_at_once_show_each_message_once,
    everything_at_once_shows_no_message_twice_and_fails_no_page,
);
