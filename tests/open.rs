//! Jobs change a principal's session outside a request, with `Sessions::of(principal).open(id)`.

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

use futures_util::future::{join, join_all};
use support::stand::{A, B, Backend, SEED, Stand, on_every_store};
use support::visit::{finish, rotate, sign_in, visit};
use unsticky::store::{Store as _, StoreKey};
use unsticky::testing::{Fault, Verb};
use unsticky::{
    Clock as _, DirectoryMode, ErrorKind, Key, OpenSession, Result, Session, SessionId, SignIn,
};

const MINUTE: Duration = Duration::from_secs(60);

async fn id_of(stand: &Stand, cookie: &str) -> SessionId {
    stand.visit(cookie, async |session: Session| Ok(session.id().unwrap())).await.ok()
}

async fn open(stand: &Stand, id: SessionId) -> Option<OpenSession> {
    stand.sessions.of("alice").open(id).await.unwrap()
}

/// Returns Alice's cookie, and her session as a job has opened it.
async fn opened(stand: &Stand) -> (String, OpenSession) {
    let cookie = stand.signed_in("alice").await;
    let session = open(stand, id_of(stand, &cookie).await).await.unwrap();
    (cookie, session)
}

/// Writes a value and returns the kind of the error.
async fn write(session: &mut OpenSession, key: Key<u32>, value: u32) -> Result<(), ErrorKind> {
    let written = session.transact(move |values| values.insert(key, &value)).await;
    written.map_err(|error| error.kind())
}

async fn opened_session_is_read_and_changed(on: Backend) {
    let stand = on.stand();
    let begun = stand.clock.now();
    let cookie = stand.signed_in("alice").await;
    let id = id_of(&stand, &cookie).await;
    stand.clock.advance(20 * MINUTE);
    assert_eq!(stand.read(&cookie, SEED).await, Some(1));
    stand.clock.advance(20 * MINUTE);
    stand.spy.take();
    let mut session = open(&stand, id).await.unwrap();
    assert_eq!(stand.taken_verbs(), [Verb::Load]);
    assert_eq!((session.id(), &*session.principal()), (id, "alice"));
    assert_eq!((session.created(), session.signed_in_at()), (begun, begun));
    assert_eq!(session.last_seen(), begun + 20 * MINUTE);
    assert_eq!(session.expires_at(), begun + 50 * MINUTE);
    assert_eq!((session.get(SEED).unwrap(), session.get(A).unwrap()), (Some(1), None));
    assert!(session.contains(SEED) && !session.contains(A));
    assert_eq!(session.get(Key::<String>::new("seed")).unwrap_err().kind(), ErrorKind::Decode);
    let attempts = session.transact(|values| {
        values.update(SEED, |seed| *seed += 1)?;
        values.get(SEED)
    });
    assert_eq!(attempts.await.unwrap(), Some(2));
    assert_eq!(stand.taken_verbs(), [Verb::Load, Verb::Replace]);
    assert_eq!(session.get(SEED).unwrap(), Some(2));
    assert_eq!(stand.read(&cookie, SEED).await, Some(2));
    assert_eq!(session.keys(), ["seed"]);
    assert_eq!(write(&mut session, A, 7).await, Ok(()));
    assert_eq!(session.keys(), ["a", "seed"]);
    assert_eq!(session.json("seed").unwrap().as_deref(), Some("2"));
    assert_eq!(session.json("b").unwrap(), None);
    assert_eq!(format!("{session:?}"), format!("OpenSession {{ id: {id:?}, .. }}"));
}

async fn open_without_changes_writes_nothing(on: Backend) {
    let stand = on.stand();
    let (_, mut session) = opened(&stand).await;
    stand.spy.take();
    assert_eq!(session.transact(|values| values.get(SEED)).await.unwrap(), Some(1));
    assert_eq!(write(&mut session, SEED, 1).await, Ok(()));
    assert_eq!(stand.taken_verbs(), [Verb::Load; 2]);
}

/// One request reads the session before the job writes; another writes after the job has read it. No
/// change is lost, and the job decides from the record that is stored when it writes.
async fn changes_survive_concurrent_requests_in_both_directions(on: Backend) {
    let stand = on.stand();
    let (cookie, mut session) = opened(&stand).await;
    // The request has read the session before the job writes.
    let late = stand.overtaken(
        &cookie,
        async |session: Session| {
            session.update(SEED, |seed| *seed += 1)?;
            session.insert(A, &1)
        },
        async || assert_eq!(write(&mut session, B, 2).await, Ok(())),
    );
    late.await.ok();
    // The job has read the session before the request writes.
    let (mut job, gate) =
        (open(&stand, session.id()).await.unwrap(), stand.store.hold(Verb::Replace));
    let writing = tokio::spawn(async move {
        job.transact(|values| values.update(SEED, |seed| *seed += 10)).await.unwrap();
        job
    });
    gate.reached().await;
    let increment = async |session: Session| session.update(SEED, |seed| *seed += 100);
    stand.visit(&cookie, increment).await.ok();
    gate.release();
    let job = writing.await.unwrap();
    assert_eq!(job.get(SEED).unwrap(), Some(112));
    for (key, value) in [(SEED, 112), (A, 1), (B, 2)] {
        assert_eq!(stand.read(&cookie, key).await, Some(value));
    }
}

async fn hundred_increments_by_jobs_and_requests_are_all_counted(on: Backend) {
    let stand = on.stand();
    let (cookie, session) = opened(&stand).await;
    let id = session.id();
    let work = (0..100_u32).map(|number| {
        let (sessions, cookie) = (stand.sessions.clone(), cookie.clone());
        tokio::spawn(async move {
            if number % 2 == 0 {
                let increment = async |session: Session| session.update(A, |count| *count += 1);
                return visit(&sessions, &cookie, increment).await.ok();
            }
            let mut job = sessions.of("alice").open(id).await.unwrap().unwrap();
            job.transact(|values| values.update(A, |count| *count += 1)).await.unwrap();
        })
    });
    for done in join_all(work.collect::<Vec<_>>()).await {
        done.unwrap();
    }
    assert_eq!(stand.read(&cookie, A).await, Some(100));
}

async fn anonymous_session_or_session_of_another_principal_is_none(on: Backend) {
    let stand = on.stand();
    let anonymous = stand.seeded().await;
    let bobs = stand.signed_in("bob").await;
    for cookie in [anonymous, bobs] {
        let id = id_of(&stand, &cookie).await;
        assert!(open(&stand, id).await.is_none());
        assert_eq!(stand.read(&cookie, SEED).await, Some(1));
    }
    assert!(open(&stand, "A".repeat(22).parse().unwrap()).await.is_none());
    let error = stand.sessions.of("").open("A".repeat(22).parse().unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidPrincipal);
}

async fn ended_session_is_none(on: Backend) {
    let stand = on.stand();
    for end in 0..3 {
        let (cookie, session) = opened(&stand).await;
        match end {
            0 => stand.sign_out(&cookie).await,
            1 => assert!(stand.sessions.of("alice").revoke(session.id()).await.unwrap()),
            _ => stand.clock.advance(30 * MINUTE),
        }
        assert!(open(&stand, session.id()).await.is_none(), "{end}");
    }
}

async fn undecodable_record_is_none_and_newer_format_is_an_error(on: Backend) {
    let stand = on.stand();
    let (cookie, session) = opened(&stand).await;
    let key = stand.key(&cookie).await;
    let damage = async |place: usize, byte: u8| {
        let mut bytes = stand.stored(&key).await.to_vec();
        bytes[place] = byte;
        stand.put(&key, bytes).await;
    };
    damage(8, 2).await;
    let error = stand.sessions.of("alice").open(session.id()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NewerFormat);
    damage(8, 0).await;
    assert!(open(&stand, session.id()).await.is_none());
}

async fn unavailable_store_returns_error(on: Backend) {
    let stand = on.stand();
    let (_, mut session) = opened(&stand).await;
    let id = session.id();
    stand.store.fail_always(Verb::Load, Fault::Unavailable);
    let error = stand.sessions.of("alice").open(id).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(write(&mut session, A, 1).await, Err(ErrorKind::Unavailable));
    stand.store.heal();
    assert_eq!(write(&mut session, A, 1).await, Ok(()));
    let off = stand.process(|builder| builder.directory(DirectoryMode::Off));
    assert_eq!(off.of("alice").open(id).await.unwrap_err().kind(), ErrorKind::NoDirectory);
}

/// A job does not count as use of the session, sets no cookie and invalidates none.
async fn opened_session_is_not_extended_and_keeps_its_cookie(on: Backend) {
    let stand = on.stand();
    let (cookie, mut session) = opened(&stand).await;
    let expires_at = session.expires_at();
    for value in 0..2 {
        stand.clock.advance(10 * MINUTE);
        assert_eq!(write(&mut session, A, value).await, Ok(()));
    }
    assert_eq!(session.expires_at(), expires_at);
    let (exchange, _) = stand.begin(&cookie).await;
    assert_eq!(finish(exchange, 200).await.set_cookie, None);
    stand.clock.advance(29 * MINUTE);
    assert_eq!(stand.who(&cookie).await.as_deref(), Some("alice"));
    let (cookie, mut session) = opened(&stand).await;
    stand.clock.advance(29 * MINUTE);
    assert_eq!(write(&mut session, B, 2).await, Ok(()));
    stand.clock.advance(MINUTE);
    assert_eq!(stand.who(&cookie).await, None);
    assert_eq!(write(&mut session, B, 3).await, Err(ErrorKind::Gone));
}

/// If a limit on sessions refuses new sign-ins, a job does not confirm the session's cookie.
async fn opened_session_stays_unconfirmed(on: Backend) {
    let stand = on
        .stand_with(|builder| builder.concurrent_sessions(unsticky::ConcurrentSessions::Reject(1)));
    let lost = stand.signed_in("alice").await;
    let listed = stand.sessions.of("alice").list().await.unwrap();
    let mut session = open(&stand, listed[0].id).await.unwrap();
    assert_eq!(write(&mut session, A, 1).await, Ok(()));
    // The browser never sent this cookie back, so the session is revoked to make room.
    let newer = stand.signed_in("alice").await;
    assert_eq!(stand.who(&newer).await.as_deref(), Some("alice"));
    assert_eq!(stand.who(&lost).await, None);
}

async fn job_survives_rotation_step_up_and_sign_in_of_same_principal(on: Backend) {
    let stand = on.stand();
    let (mut cookie, mut session) = opened(&stand).await;
    let step_up = async |session: Session| session.step_up();
    for round in 0..3 {
        let renewed = match round {
            0 => stand.visit(&cookie, rotate).await.cookie(),
            1 => stand.visit(&cookie, step_up).await.cookie(),
            _ => stand.visit(&cookie, sign_in).await.cookie(),
        };
        assert_ne!(renewed, "");
        assert_eq!(write(&mut session, A, round).await, Ok(()), "{round}");
        assert_eq!(stand.read(&renewed, A).await, Some(round));
        assert_eq!(stand.who(&cookie).await, None, "the old secret stays invalid");
        cookie = renewed;
    }
    // The secret is rotated while the job writes: the request gets its new secret, and the job's change
    // is kept.
    let gate = stand.store.hold(Verb::Replace);
    let writing = tokio::spawn(async move { write(&mut session, B, 7).await });
    gate.reached().await;
    let renewed = stand.visit(&cookie, rotate).await.cookie();
    gate.release();
    assert_eq!(writing.await.unwrap(), Ok(()));
    assert_eq!(stand.read(&renewed, B).await, Some(7));
}

async fn sign_in_of_another_principal_ends_job(on: Backend) {
    let stand = on.stand();
    let (cookie, mut session) = opened(&stand).await;
    let as_bob = async |session: Session| session.sign_in("bob");
    let bobs = stand.visit(&cookie, as_bob).await.cookie();
    assert_eq!(write(&mut session, A, 1).await, Err(ErrorKind::Gone));
    assert_eq!(write(&mut session, A, 1).await, Err(ErrorKind::Gone), "each time");
    assert_eq!(stand.read(&bobs, A).await, None);
    assert!(!session.revoke().await.unwrap());
    assert_eq!(stand.who(&bobs).await.as_deref(), Some("bob"));
}

/// The job's write does not restore a session that is revoked at the same time.
async fn session_revoked_during_job_returns_gone(on: Backend) {
    let stand = on.stand();
    for end in 0..3 {
        let (cookie, mut session) = opened(&stand).await;
        let id = session.id();
        let gate = stand.store.hold(Verb::Replace);
        let writing = tokio::spawn(async move { (write(&mut session, A, 1).await, session) });
        gate.reached().await;
        match end {
            0 => stand.sign_out(&cookie).await,
            1 => assert_eq!(stand.sessions.of("alice").revoke_all().await.unwrap().count, 1),
            _ => assert!(
                stand.sessions.of("alice").open(id).await.unwrap().unwrap().revoke().await.unwrap()
            ),
        }
        gate.release();
        let (written, session) = writing.await.unwrap();
        assert_eq!(written, Err(ErrorKind::Gone), "{end}");
        assert_eq!(stand.who(&cookie).await, None, "{end}");
        assert!(!session.revoke().await.unwrap());
        assert!(open(&stand, id).await.is_none(), "{end}");
    }
}

async fn job_does_not_restore_session_after_concurrent_sign_out(on: Backend) {
    let stand = on.stand();
    for round in 0..100 {
        let (cookie, mut session) = opened(&stand).await;
        let id = session.id();
        let writing = tokio::spawn(async move { write(&mut session, A, 1).await });
        let (written, ()) = join(writing, stand.sign_out(&cookie)).await;
        let written = written.unwrap();
        assert!(matches!(written, Ok(()) | Err(ErrorKind::Gone)), "{round}: {written:?}");
        assert_eq!(stand.who(&cookie).await, None, "{round}");
        assert!(open(&stand, id).await.is_none(), "{round}");
    }
}

async fn directory_without_it(stand: &Stand) -> StoreKey {
    let directory = stand.directory_key("alice").await;
    stand.spy.delete(&directory, None).await.unwrap();
    directory
}

async fn unlisted_session_is_none_and_gone_in_strict_mode(on: Backend) {
    let stand = on.stand_with(|builder| builder.directory(DirectoryMode::Strict));
    let cookie = stand.signed_in("alice").await;
    let id = id_of(&stand, &cookie).await;
    stand.spy.take();
    let mut session = open(&stand, id).await.unwrap();
    assert_eq!(stand.taken_verbs(), [Verb::Load; 2]);
    assert_eq!(write(&mut session, A, 1).await, Ok(()));
    assert_eq!(stand.taken_verbs(), [Verb::Load, Verb::Load, Verb::Replace]);
    directory_without_it(&stand).await;
    assert_eq!(write(&mut session, A, 2).await, Err(ErrorKind::Gone));
    assert!(open(&stand, id).await.is_none());
}

/// Outside strict mode, a session continues without its directory. In both modes it can still be
/// revoked.
async fn session_with_lost_directory_can_be_revoked(on: Backend) {
    for (mode, is_begun_anew) in [
        (DirectoryMode::Listed, false),
        (DirectoryMode::Listed, true),
        (DirectoryMode::Strict, false),
        (DirectoryMode::Strict, true),
    ] {
        let stand = on.stand_with(|builder| builder.directory(mode));
        let (cookie, session) = opened(&stand).await;
        let again = open(&stand, session.id()).await.unwrap();
        let key = stand.key(&cookie).await;
        directory_without_it(&stand).await;
        let newer = match is_begun_anew {
            true => stand.signed_in("alice").await,
            false => String::new(),
        };
        assert!(!stand.sessions.of("alice").revoke(session.id()).await.unwrap());
        let lives = mode == DirectoryMode::Listed;
        assert_eq!(stand.who(&cookie).await.is_some(), lives);
        assert!(session.revoke().await.unwrap());
        assert_eq!(stand.who(&cookie).await, None);
        assert_eq!(stand.spy.load(&key).await.unwrap(), None);
        assert!(!again.revoke().await.unwrap());
        // Sessions that signed in later are unaffected.
        assert_eq!(stand.who(&newer).await.is_some(), is_begun_anew);
    }
}

/// The store still holds the record, so a process with a different clock may consider the session
/// alive.
async fn expired_session_still_in_store_can_be_revoked(on: Backend) {
    for is_lost in [false, true] {
        let stand = Stand::over(on.store(), |builder| builder);
        let (cookie, session) = opened(&stand).await;
        let key = stand.key(&cookie).await;
        let again = open(&stand, session.id()).await.unwrap();
        if is_lost {
            directory_without_it(&stand).await;
        }
        stand.clock.advance(30 * MINUTE);
        assert!(stand.spy.load(&key).await.unwrap().is_some());
        assert!(session.revoke().await.unwrap());
        assert_eq!(stand.spy.load(&key).await.unwrap(), None);
        assert!(!again.revoke().await.unwrap());
    }
}

async fn in_doubt_change_is_settled_and_applied_once(on: Backend) {
    let stand = on.stand();
    let (cookie, mut session) = opened(&stand).await;
    let add = async |session: &mut OpenSession| {
        let added = session.transact(|values| values.update(SEED, |seed| *seed += 1));
        added.await.map_err(|error| error.kind())
    };
    for fault in [Fault::LoseAnswer, Fault::LoseRequest] {
        stand.store.inject(Verb::Replace, fault);
        assert_eq!(add(&mut session).await, Ok(()), "{fault:?}");
    }
    assert_eq!(stand.read(&cookie, SEED).await, Some(3));
    // A change that stays in doubt is reported as an error, and the next change starts from the stored
    // record.
    stand.store.inject(Verb::Replace, Fault::LoseAnswer);
    let id = session.id();
    // Only the first load succeeds.
    stand.store.hold(Verb::Load).release();
    stand.store.fail_always(Verb::Load, Fault::Unavailable);
    assert_eq!(add(&mut session).await, Err(ErrorKind::OutcomeUnknown));
    stand.store.heal();
    assert_eq!(add(&mut session).await, Ok(()));
    assert_eq!(stand.read(&cookie, SEED).await, Some(5));
    assert_eq!(open(&stand, id).await.unwrap().get(SEED).unwrap(), Some(5));
}

async fn failed_function_writes_nothing(on: Backend) {
    let stand = on.stand();
    let (cookie, mut session) = opened(&stand).await;
    let failed = session.transact(|values| {
        values.insert(A, &1)?;
        values.get(Key::<String>::new("seed"))
    });
    assert_eq!(failed.await.unwrap_err().kind(), ErrorKind::Decode);
    const LONG: Key<String> = Key::new("long");
    let large = session.transact(|values| values.insert(LONG, &"x".repeat(70_000)));
    assert_eq!(large.await.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(session.get(A).unwrap(), None);
    assert_eq!(stand.read(&cookie, A).await, None);
}

async fn abandoned_change_runs_to_completion(on: Backend) {
    let stand = on.stand();
    let (cookie, mut session) = opened(&stand).await;
    // The load has been answered, and the write is held. If the caller goes away now, the write
    // continues in a task of its own.
    let gate = stand.store.hold(Verb::Replace);
    {
        let mut writing = Box::pin(session.transact(|values| values.insert(A, &7)));
        tokio::select! {
            biased;
            _ = &mut writing => panic!("the write is held"),
            () = gate.reached() => {}
        }
    }
    gate.release();
    let is_stored = async || stand.read(&cookie, A).await == Some(7);
    support::stand::eventually(is_stored, "the change was not stored").await;
}

/// An identity provider's logout token contains a session id, which the application stored as the
/// label.
async fn back_channel_logout_finds_session_by_label(on: Backend) {
    let stand = on.stand();
    let with_sid = async |sid: &str| {
        let sign_in = SignIn::new("alice").label(sid);
        stand.visit("", async |session: Session| session.sign_in_with(sign_in)).await.cookie()
    };
    let (one, two) = (with_sid("sid-1").await, with_sid("sid-2").await);
    let alice = stand.sessions.of("alice");
    let listed = alice.list().await.unwrap();
    let of_sid = listed.iter().find(|listed| listed.label.as_deref() == Some("sid-1")).unwrap();
    assert!(alice.open(of_sid.id).await.unwrap().unwrap().revoke().await.unwrap());
    assert_eq!(stand.who(&one).await, None);
    assert_eq!(stand.who(&two).await.as_deref(), Some("alice"));
}

on_every_store! {
    opened_session_is_read_and_changed,
    open_without_changes_writes_nothing,
    changes_survive_concurrent_requests_in_both_directions,
    hundred_increments_by_jobs_and_requests_are_all_counted,
    anonymous_session_or_session_of_another_principal_is_none,
    ended_session_is_none,
    undecodable_record_is_none_and_newer_format_is_an_error,
    unavailable_store_returns_error,
    opened_session_is_not_extended_and_keeps_its_cookie,
    opened_session_stays_unconfirmed,
    job_survives_rotation_step_up_and_sign_in_of_same_principal,
    sign_in_of_another_principal_ends_job,
    session_revoked_during_job_returns_gone,
    job_does_not_restore_session_after_concurrent_sign_out,
    unlisted_session_is_none_and_gone_in_strict_mode,
    session_with_lost_directory_can_be_revoked,
    expired_session_still_in_store_can_be_revoked,
    in_doubt_change_is_settled_and_applied_once,
    failed_function_writes_nothing,
    abandoned_change_runs_to_completion,
    back_channel_logout_finds_session_by_label,
    job_spawned_by_handler_changes_session_after_response,
}

/// A handler that starts a job and responds. The job continues after the request.
async fn start(session: Session, tasks: Tasks) -> Result<&'static str> {
    let (sessions, principal) = (session.sessions().clone(), session.principal().unwrap());
    let id = session.id().unwrap();
    session.insert(A, &1)?;
    let job = async move {
        let mut session = sessions.of(principal).open(id).await?.unwrap();
        session.transact(|values| values.update(A, |number| *number += 1)).await
    };
    tasks.0.send(Box::pin(job)).unwrap();
    Ok("started")
}

type Job = futures_util::future::BoxFuture<'static, Result<()>>;

#[derive(Clone)]
struct Tasks(tokio::sync::mpsc::UnboundedSender<Job>);

async fn job_spawned_by_handler_changes_session_after_response(on: Backend) {
    let stand = on.stand();
    for is_axum in [true, false] {
        let cookie = stand.signed_in("alice").await;
        let (tasks, mut jobs) = tokio::sync::mpsc::unbounded_channel();
        let status = match is_axum {
            true => on_axum(&stand, &cookie, Tasks(tasks)).await,
            false => on_actix(&stand, &cookie, Tasks(tasks)).await,
        };
        assert_eq!((status, stand.read(&cookie, A).await), (200, Some(1)));
        tokio::spawn(jobs.recv().await.unwrap()).await.unwrap().unwrap();
        assert_eq!(stand.read(&cookie, A).await, Some(2));
    }
}

async fn on_axum(stand: &Stand, cookie: &str, tasks: Tasks) -> u16 {
    use axum::body::Body;
    use axum::http::{Request, header};
    use axum::{Extension, Router, routing};
    use tower::ServiceExt as _;

    let handler =
        async |session: Session, Extension(tasks): Extension<Tasks>| start(session, tasks).await;
    let app = Router::new()
        .route("/", routing::get(handler))
        .layer(Extension(tasks))
        .layer(unsticky::tower::SessionLayer::new(stand.sessions.clone()));
    let request = Request::get("/").header(header::COOKIE, cookie).body(Body::empty()).unwrap();
    app.oneshot(request).await.unwrap().status().as_u16()
}

async fn on_actix(stand: &Stand, cookie: &str, tasks: Tasks) -> u16 {
    use actix_web::http::header;
    use actix_web::{App, test, web};

    async fn handler(session: Session, tasks: web::Data<Tasks>) -> Result<&'static str> {
        start(session, tasks.get_ref().clone()).await
    }
    let app = App::new()
        .app_data(web::Data::new(tasks))
        .route("/", web::get().to(handler))
        .wrap(unsticky::actix::SessionMiddleware::new(stand.sessions.clone()));
    let service = test::init_service(app).await;
    let request = test::TestRequest::get().insert_header((header::COOKIE, cookie));
    test::call_service(&service, request.to_request()).await.status().as_u16()
}
