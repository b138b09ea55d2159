//! A request can act only with the secret from its cookie, or with the newest secret that its own handle has
//! created. It never acts with the secret that the store holds now. The table contains all combinations, and
//! each is tested on every store.

#![cfg(all(feature = "testing", feature = "memory", feature = "redis", feature = "memcached"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::time::Duration;

use Act::{
    EndBy, Insert, InsertNothingNew, Reload, RevokeOthers, Rotate, SetLifetime, SignInAgain,
    SignInAsAnother, SignOut, StepUp, Transact,
};
use Found::{Gone, Own, Rotated, SignedInAnew};
use futures_util::future::BoxFuture;
use support::stand::{A, B, Backend, SEED, Stand, on_every_store};
use support::visit::{cookie_of, finish, rotate, sign_out};
use unsticky::exchange::{Exchange, Reply};
use unsticky::testing::Verb;
use unsticky::{Clock as _, ErrorKind, Lifetime, Result, Session, SessionId};

const REMEMBERED: Lifetime =
    Lifetime::new(Duration::from_secs(3600 * 24), Duration::from_secs(3600 * 24 * 30));

/// What another request did to the session before this request acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Own,
    /// Another request rotated the secret.
    Rotated,
    /// Another request stepped up, or revoked all other sessions from this one.
    SignedInAnew(Anew),
    /// Another request signed out.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Anew {
    SignIn,
    StepUp,
    RevokeOthers,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Insert,
    /// Inserts the value that was loaded.
    InsertNothingNew,
    Transact,
    Rotate,
    SetLifetime,
    EndBy,
    StepUp,
    SignInAgain,
    SignInAsAnother,
    SignOut,
    Reload,
    RevokeOthers,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Nothing,
    /// A new secret for the same session.
    Same,
    /// The token for a different session.
    Fresh,
    Removal,
}

/// A request that was sent with Alice's cookie, and what has happened to her session since.
struct Scene {
    stand: Stand,
    exchange: Option<Exchange>,
    session: Session,
    id: SessionId,
    cookie: String,
    /// The cookie that is now valid for Alice's session, if any.
    newest: Option<String>,
}

impl Scene {
    async fn new(on: &Backend, found: Found) -> Self {
        let stand = on.stand();
        let cookie = stand.signed_in("alice").await;
        let (exchange, session) = stand.begin(&cookie).await;
        let id = session.id().unwrap();
        let deed = async |session: Session| -> Result<()> {
            match found {
                Own => {}
                Rotated => session.rotate(),
                SignedInAnew(Anew::SignIn) => session.sign_in("alice")?,
                SignedInAnew(Anew::StepUp) => session.step_up()?,
                SignedInAnew(Anew::RevokeOthers) => {
                    session.directory()?.revoke_others(&session).await?;
                }
                Gone => session.sign_out(),
            }
            Ok(())
        };
        let visit = stand.visit(&cookie, deed).await;
        let newest = match found {
            Own => Some(cookie.clone()),
            Gone => None,
            Rotated | SignedInAnew(_) => Some(visit.cookie()),
        };
        visit.ok();
        Self { stand, exchange: Some(exchange), session, id, cookie, newest }
    }

    async fn act(&self, act: Act) -> Result<()> {
        let session = &self.session;
        match act {
            Insert => session.insert(A, &7)?,
            InsertNothingNew => session.insert(SEED, &1)?,
            Transact => {
                let decided = session.transact(|values| {
                    values.update(A, |number| *number += 7)?;
                    values.get(SEED)
                });
                assert_eq!(decided.await?, Some(1));
            }
            Rotate => session.rotate(),
            SetLifetime => session.set_lifetime(REMEMBERED),
            EndBy => session.end_by(self.stand.clock.now() + Duration::from_secs(600)),
            StepUp => session.step_up()?,
            SignInAgain => session.sign_in("alice")?,
            SignInAsAnother => session.sign_in("bob")?,
            SignOut => session.sign_out(),
            Reload => session.reload().await?,
            RevokeOthers => {
                session.directory()?.revoke_others(session).await?;
            }
        }
        Ok(())
    }

    fn sent(&self, reply: &Reply) -> Sent {
        match cookie_of(reply) {
            None => Sent::Nothing,
            Some(cookie) if cookie.ends_with('=') => Sent::Removal,
            Some(_) if self.session.id() == Some(self.id) => Sent::Same,
            Some(_) => Sent::Fresh,
        }
    }
}

/// The expected result of one combination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cell {
    /// The error that the request returns.
    error: Option<ErrorKind>,
    sent: Sent,
    /// Whether Alice's session still exists afterwards, under its newest secret.
    lives: bool,
    /// Whether the session contains the value that the request wrote.
    stored: bool,
}

const fn cell(error: Option<ErrorKind>, sent: Sent, lives: bool) -> Cell {
    Cell { error, sent, lives, stored: false }
}

fn expected(found: Found, act: Act) -> Cell {
    let gone = Some(ErrorKind::Gone);
    match (found, act) {
        (Own, Insert | Transact) => Cell { stored: true, ..cell(None, Sent::Nothing, true) },
        (Own, InsertNothingNew | Reload) => cell(None, Sent::Nothing, true),
        (Own, Rotate | SetLifetime | EndBy | StepUp | SignInAgain | RevokeOthers) => {
            cell(None, Sent::Same, true)
        }
        (Own, SignInAsAnother) => cell(None, Sent::Fresh, false),
        (Own | Rotated | SignedInAnew(_), SignOut) => cell(None, Sent::Removal, false),
        (Rotated, Insert | Transact) => Cell { stored: true, ..cell(None, Sent::Nothing, true) },
        (Rotated, InsertNothingNew | Rotate) => cell(None, Sent::Nothing, true),
        (Rotated | SignedInAnew(_), SetLifetime | EndBy | StepUp | Reload | RevokeOthers) => {
            cell(gone, Sent::Nothing, true)
        }
        (Rotated | SignedInAnew(_), SignInAgain | SignInAsAnother) => cell(None, Sent::Fresh, true),
        (SignedInAnew(_), Insert | Transact) => cell(gone, Sent::Nothing, true),
        (SignedInAnew(_), InsertNothingNew | Rotate) => cell(None, Sent::Nothing, true),
        (Gone, Insert | Transact | StepUp | Reload | RevokeOthers) => {
            cell(gone, Sent::Nothing, false)
        }
        (Gone, InsertNothingNew | Rotate | SetLifetime | EndBy | SignOut) => {
            cell(None, Sent::Nothing, false)
        }
        (Gone, SignInAgain | SignInAsAnother) => cell(None, Sent::Fresh, false),
    }
}

async fn check(on: &Backend, found: Found, act: Act) {
    let place = format!("{found:?} {act:?}");
    let mut scene = Scene::new(on, found).await;
    let other = scene.stand.signed_in("alice").await;
    let acted = scene.act(act).await.map_err(|error| error.kind());
    // A second reload gives the same result.
    if act == Reload && acted.is_err() {
        let again = scene.session.clone().reload().await;
        assert_eq!(again.map_err(|error| error.kind()), Err(ErrorKind::Gone), "{place}");
    }
    let status = if acted.is_err() { 409 } else { 200 };
    let reply = finish(scene.exchange.take().unwrap(), status).await;
    let Scene { stand, newest, .. } = &scene;
    let error = acted.err().or(reply.error.as_ref().map(unsticky::Error::kind));
    let sent = scene.sent(&reply);
    let sent_cookie = cookie_of(&reply).filter(|cookie| !cookie.ends_with('='));
    let newest = match sent {
        Sent::Same => sent_cookie.clone(),
        _ => newest.clone(),
    };
    let (mut lives, mut stored) = (false, false);
    if let Some(newest) = &newest {
        lives = stand.who(newest).await.as_deref() == Some("alice");
        stored = stand.read(newest, A).await == Some(7);
    }
    assert_eq!(Cell { error, sent, lives, stored }, expected(found, act), "{place}: {reply:?}");
    if let Some(cookie) = &sent_cookie {
        let who = if act == SignInAsAnother { "bob" } else { "alice" };
        assert_eq!(stand.who(cookie).await.as_deref(), Some(who), "{place}");
    }
    if newest.as_ref() != Some(&scene.cookie) {
        assert_eq!(stand.who(&scene.cookie).await, None, "{place}: the old secret");
    }
    let are_others_ended = found == Own && act == RevokeOthers;
    assert_eq!(stand.who(&other).await.is_none(), are_others_ended, "{place}: the others");
}

const ANEW: [Found; 3] =
    [SignedInAnew(Anew::SignIn), SignedInAnew(Anew::StepUp), SignedInAnew(Anew::RevokeOthers)];

/// Defines a module per row and, for each combination, a test that runs on every store.
macro_rules! table {
    ($($row:ident: $found:expr => { $($cell:ident: $act:expr),* $(,)? })*) => {$(
        mod $row {
            use super::*;

            $(async fn $cell(on: Backend) {
                for found in $found {
                    check(&on, found, $act).await;
                }
            })*

            on_every_store! { $($cell),* }
        }
    )*};
}

table! {
    with_own_secret: [Own] => {
        insert_is_committed: Insert,
        insert_of_loaded_value_has_no_effect: InsertNothingNew,
        transact_is_committed: Transact,
        rotate_issues_new_secret: Rotate,
        set_lifetime_issues_new_secret: SetLifetime,
        end_by_issues_new_secret: EndBy,
        step_up_issues_new_secret: StepUp,
        sign_in_issues_new_secret: SignInAgain,
        sign_in_as_another_principal_ends_old_session: SignInAsAnother,
        sign_out_ends_session: SignOut,
        reload_succeeds: Reload,
        revoke_others_ends_other_sessions: RevokeOthers,
    }
    after_rotation: [Rotated] => {
        insert_is_merged: Insert,
        insert_of_loaded_value_has_no_effect: InsertNothingNew,
        transact_decides_on_newest_record: Transact,
        rotate_has_no_effect: Rotate,
        set_lifetime_fails_with_gone: SetLifetime,
        end_by_fails_with_gone: EndBy,
        step_up_fails_with_gone: StepUp,
        sign_in_starts_new_session_and_keeps_old_session: SignInAgain,
        sign_in_as_another_principal_starts_new_session_and_keeps_old_session: SignInAsAnother,
        sign_out_ends_session: SignOut,
        reload_always_fails_with_gone: Reload,
        revoke_others_fails_with_gone_and_ends_no_session: RevokeOthers,
    }
    after_new_sign_in: ANEW => {
        insert_fails_with_gone: Insert,
        insert_of_loaded_value_has_no_effect: InsertNothingNew,
        transact_fails_with_gone: Transact,
        rotate_sends_no_cookie: Rotate,
        set_lifetime_fails_with_gone: SetLifetime,
        end_by_fails_with_gone: EndBy,
        step_up_fails_with_gone: StepUp,
        sign_in_starts_new_session_and_keeps_old_session: SignInAgain,
        sign_in_as_another_principal_starts_new_session_and_keeps_old_session: SignInAsAnother,
        sign_out_ends_session_of_same_principal: SignOut,
        reload_always_fails_with_gone: Reload,
        revoke_others_fails_with_gone_and_ends_no_session: RevokeOthers,
    }
    after_session_ended: [Gone] => {
        insert_fails_with_gone: Insert,
        insert_of_loaded_value_is_ignored: InsertNothingNew,
        transact_fails_with_gone: Transact,
        rotate_is_ignored: Rotate,
        set_lifetime_is_ignored: SetLifetime,
        end_by_is_ignored: EndBy,
        step_up_fails_with_gone: StepUp,
        sign_in_starts_new_session: SignInAgain,
        sign_in_as_another_principal_starts_new_session: SignInAsAnother,
        sign_out_sends_no_cookie: SignOut,
        reload_always_fails_with_gone: Reload,
        revoke_others_fails_with_gone_and_ends_no_session: RevokeOthers,
    }
}

/// None of these acts gives a request with a replaced secret a cookie for the session, or ends the session,
/// whatever the request did first. A sign-out does end the session, as the table above shows.
async fn request_with_replaced_secret_cannot_take_over_session(on: Backend) {
    type First = fn(&Session) -> BoxFuture<'_, Result<()>>;
    let first: [First; 4] = [
        |_| Box::pin(async { Ok(()) }),
        |session| Box::pin(session.reload()),
        |session| Box::pin(session.transact(|values| values.insert(A, &1))),
        |session| {
            Box::pin(async {
                session.insert(A, &1)?;
                session.save().await
            })
        },
    ];
    for found in [Rotated].into_iter().chain(ANEW) {
        for (number, first) in first.iter().enumerate() {
            for act in [Rotate, SetLifetime, EndBy, StepUp, SignInAgain, SignInAsAnother] {
                let place = format!("{found:?} {number} {act:?}");
                let mut scene = Scene::new(&on, found).await;
                let _ = first(&scene.session).await;
                let _ = scene.act(act).await;
                let _ = scene.session.save().await;
                let _ = scene.act(act).await;
                let reply = finish(scene.exchange.take().unwrap(), 200).await;
                let Scene { stand, newest, cookie, .. } = &scene;
                let owner = stand.who(newest.as_ref().unwrap()).await;
                assert_eq!(owner.as_deref(), Some("alice"), "{place}");
                assert_eq!(stand.who(cookie).await, None, "{place}");
                assert!(matches!(scene.sent(&reply), Sent::Nothing | Sent::Fresh), "{place}");
            }
        }
    }
}

/// Models a WebSocket that was opened with a stolen cookie. The session's owner has since rotated the secret
/// or revoked all other sessions, so every operation with the WebSocket's handle fails with `Gone`.
async fn long_lived_handle_with_replaced_secret_always_gets_gone(on: Backend) {
    for found in [Rotated].into_iter().chain(ANEW) {
        let stand = on.stand();
        let cookie = stand.signed_in("alice").await;
        let (exchange, session) = stand.begin(&cookie).await;
        assert!(finish(exchange, 200).await.error.is_none());
        let revoke = async |session: Session| match found {
            Rotated => {
                session.rotate();
                Ok(())
            }
            _ => session.directory()?.revoke_others(&session).await.map(|_| ()),
        };
        let newest = stand.visit(&cookie, revoke).await.cookie();
        session.insert(A, &1).unwrap();
        assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::Gone, "{found:?}");
        for session in [session.clone(), session.clone(), session.clone()] {
            assert_eq!(session.reload().await.unwrap_err().kind(), ErrorKind::Gone, "{found:?}");
            let transact = session.transact(|values| values.get(SEED)).await;
            assert_eq!(transact.unwrap_err().kind(), ErrorKind::Gone, "{found:?}");
            session.insert(A, &1).unwrap();
            assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::Gone, "{found:?}");
            assert!(!session.is_signed_in(), "{found:?}");
        }
        assert_eq!(stand.read(&newest, A).await, None, "{found:?}");
        assert_eq!(stand.who(&newest).await.as_deref(), Some("alice"), "{found:?}");
    }
}

/// The session was anonymous when the request began, and another request has since signed a user in with it.
async fn sign_out_of_anonymous_session_spares_concurrent_sign_in(on: Backend) {
    let stand = on.stand();
    for reloads in [false, true] {
        let cookie = stand.seeded().await;
        let (exchange, session) = stand.begin(&cookie).await;
        let alice = stand.sign_in(&cookie).await;
        if reloads {
            assert_eq!(session.reload().await.unwrap_err().kind(), ErrorKind::Gone);
        }
        session.sign_out();
        let reply = finish(exchange, 200).await;
        assert_eq!((cookie_of(&reply), reply.error.map(|error| error.kind())), (None, None));
        assert_eq!(stand.who(&alice).await.as_deref(), Some("alice"));
    }
}

/// Another request has replaced the secret. This request calls `reload`, `save` or `transact`, which fails
/// with `Gone` unless the change can be merged. Its sign-out then ends the session all the same.
async fn sign_out_after_gone_ends_session_of_same_principal(on: Backend) {
    for found in [Rotated].into_iter().chain(ANEW) {
        for way in ["reload", "save", "transact"] {
            let mut scene = Scene::new(&on, found).await;
            let told = match way {
                "reload" => scene.session.reload().await,
                "save" => {
                    scene.session.insert(A, &1).unwrap();
                    scene.session.save().await
                }
                _ => scene.session.transact(|values| values.insert(A, &1)).await,
            };
            let merges = found == Rotated && way != "reload";
            assert_eq!(told.is_ok(), merges, "{found:?} {way}");
            scene.session.sign_out();
            let reply = finish(scene.exchange.take().unwrap(), 200).await;
            let Scene { stand, newest, .. } = &scene;
            assert_eq!(stand.who(newest.as_ref().unwrap()).await, None, "{found:?} {way}");
            assert_eq!(scene.sent(&reply), Sent::Removal, "{found:?} {way}");
        }
    }
}

/// Signing out of a session that has already ended removes no cookie, because the browser may hold a newer
/// one.
async fn sign_out_of_ended_session_removes_no_newer_cookie(on: Backend) {
    let stand = on.stand();
    let cookie = stand.signed_in("alice").await;
    let (exchange, session) = stand.begin(&cookie).await;
    stand.sign_out(&cookie).await;
    session.sign_out();
    session.insert(A, &1).unwrap();
    let reply = finish(exchange, 200).await;
    let kind = reply.error.as_ref().map(unsticky::Error::kind);
    assert_eq!((cookie_of(&reply), kind), (None, Some(ErrorKind::Gone)));
    // A stale token, whose session has a newer token, causes no removal either. For an unknown token, the
    // cookie is removed.
    let stale = stand.signed_in("alice").await;
    stand.sign_in(&stale).await;
    assert_eq!(stand.visit(&stale, sign_out).await.set_cookie, None);
    assert!(stand.visit(&cookie, sign_out).await.removes_cookie());
}

/// Two requests are in progress when a third rotates their secret. Their own rotations send no cookie, but
/// their updates are merged.
async fn rotation_after_concurrent_rotation_sends_no_cookie(on: Backend) {
    let stand = on.stand();
    let cookie = stand.signed_in("alice").await;
    let (one, two) = (stand.begin(&cookie).await, stand.begin(&cookie).await);
    let newest = stand.visit(&cookie, rotate).await.cookie();
    for (exchange, session) in [one, two] {
        session.rotate();
        session.update(B, |number| *number += 1).unwrap();
        session.save().await.unwrap();
        session.rotate();
        assert_eq!(finish(exchange, 200).await.set_cookie, None);
    }
    assert_eq!(stand.read(&newest, B).await, Some(2));
}

/// Two concurrent requests set the same lifetime and the same end. The second request changes nothing, and
/// neither does a later request, which only loads the session.
async fn setting_current_lifetime_or_end_has_no_effect(on: Backend) {
    let stand = on.stand();
    let end = stand.clock.now() + Duration::from_secs(600);
    let set = async |session: Session| {
        session.end_by(end);
        session.set_lifetime(REMEMBERED);
        Ok(())
    };
    let cookie = stand.signed_in("alice").await;
    let mut first = String::new();
    let second = stand.overtaken(&cookie, set, async || {
        first = stand.visit(&cookie, set).await.cookie();
    });
    let second = second.await;
    assert_eq!((second.failure(), second.set_cookie), (None, None));
    stand.spy.take();
    let third = stand.visit(&first, set).await;
    assert_eq!((third.failure(), third.set_cookie), (None, None));
    assert_eq!(stand.spy.verbs(), [Verb::Load]);
    assert_eq!(stand.who(&first).await.as_deref(), Some("alice"));
}

on_every_store! {
    request_with_replaced_secret_cannot_take_over_session,
    long_lived_handle_with_replaced_secret_always_gets_gone,
    sign_out_of_anonymous_session_spares_concurrent_sign_in,
    sign_out_after_gone_ends_session_of_same_principal,
    sign_out_of_ended_session_removes_no_newer_cookie,
    rotation_after_concurrent_rotation_sends_no_cookie,
    setting_current_lifetime_or_end_has_no_effect,
}
