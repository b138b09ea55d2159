//! Handles that continue after their response, in the body of a stream. They keep their session alive
//! with `touch`, and can find out why it was lost. Each scenario runs in a response body, in both
//! frameworks and on every store.

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

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join};
use futures_util::{FutureExt as _, Stream};
use support::stand::{A, B, Backend, SEED, Stand, on_every_store};
use support::visit::{finish, rotate, sign_in};
use unsticky::store::Store as _;
use unsticky::testing::{Fault, Verb};
use unsticky::{
    Builder, Clock as _, ConcurrentSessions, DirectoryMode, ErrorKind, Lifetime, Loss, Session,
};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const UNTHROTTLED: Lifetime = Lifetime::new(Duration::from_secs(1800), Duration::from_secs(86_400))
    .refresh_after(Duration::ZERO);
const REMEMBERED: Lifetime = Lifetime::new(Duration::from_secs(86_400 * 7), Lifetime::MAX);

/// What a response body does with its session.
#[derive(Clone)]
struct Work(Arc<dyn Fn(Session) -> BoxFuture<'static, ()> + Send + Sync>);

impl Work {
    fn body(&self, session: Session) -> impl Stream<Item = Result<Bytes, Infallible>> + use<> {
        let work = (self.0)(session);
        futures_util::stream::once(work.map(|()| Ok(Bytes::from_static(b"done"))))
    }
}

mod on_axum {
    use axum::body::{Body, to_bytes};
    use axum::http::{Request, header};
    use axum::routing::get;
    use axum::{Extension, Router};
    use tower::ServiceExt as _;
    use unsticky::tower::SessionLayer;

    use super::*;

    pub(super) async fn stream(stand: &Stand, cookie: &str, work: Work) -> Bytes {
        let stream = async |session: Session, Extension(work): Extension<Work>| {
            Body::from_stream(work.body(session))
        };
        let app = Router::new()
            .route("/", get(stream))
            .layer(Extension(work))
            .layer(SessionLayer::new(stand.sessions.clone()));
        let request = Request::get("/").header(header::COOKIE, cookie).body(Body::empty()).unwrap();
        to_bytes(app.oneshot(request).await.unwrap().into_body(), usize::MAX).await.unwrap()
    }
}

mod on_actix {
    use actix_web::http::header;
    use actix_web::{App, HttpResponse, test, web};
    use unsticky::actix::SessionMiddleware;

    use super::*;

    async fn respond(session: Session, work: web::Data<Work>) -> HttpResponse {
        HttpResponse::Ok().streaming(work.body(session))
    }

    pub(super) async fn stream(stand: &Stand, cookie: &str, work: Work) -> Bytes {
        let app = App::new()
            .app_data(web::Data::new(work))
            .route("/", web::get().to(respond))
            .wrap(SessionMiddleware::new(stand.sessions.clone()));
        let service = test::init_service(app).await;
        let request = test::TestRequest::get().insert_header((header::COOKIE, cookie));
        test::call_and_read_body(&service, request.to_request()).await
    }
}

/// Alice's stream, and what other requests do in the same session.
struct Scene {
    stand: Arc<Stand>,
    /// The handle that the stream uses.
    session: Session,
    cookie: String,
}

impl Scene {
    fn later(&self, time: Duration) {
        self.stand.clock.advance(time);
    }

    /// Returns the result of a touch.
    async fn touch(&self) -> Result<(), ErrorKind> {
        self.session.touch().await.map_err(|error| error.kind())
    }

    /// Asserts that every touch returns `Gone`. Returns the reason.
    async fn touch_fails(&self) -> Option<Loss> {
        assert_eq!(self.touch().await, Err(ErrorKind::Gone));
        self.stand.spy.take();
        assert_eq!(self.touch().await, Err(ErrorKind::Gone));
        assert_eq!(self.stand.taken_verbs(), [], "a lost session needs no command");
        assert!(self.session.is_empty() && !self.session.is_signed_in());
        self.session.loss()
    }

    async fn is_alive(&self) -> bool {
        self.stand.who(&self.cookie).await.as_deref() == Some("alice")
    }
}

async fn run(
    on: &Backend,
    configure: impl Fn(Builder) -> Builder,
    scenario: impl Fn(Scene) -> BoxFuture<'static, ()> + Send + Sync + Copy + 'static,
) {
    for is_axum in [true, false] {
        let namespace = if is_axum { "axum" } else { "actix" };
        let stand = Arc::new(on.stand_with(|builder| configure(builder).namespace(namespace)));
        let cookie = stand.signed_in("alice").await;
        // This use confirms the session, if the configuration records confirmations.
        assert_eq!(stand.who(&cookie).await.as_deref(), Some("alice"));
        let scene = (stand.clone(), cookie.clone());
        let work = Work(Arc::new(move |session| {
            let (stand, cookie) = scene.clone();
            scenario(Scene { stand, session, cookie })
        }));
        let body = match is_axum {
            true => on_axum::stream(&stand, &cookie, work).await,
            false => on_actix::stream(&stand, &cookie, work).await,
        };
        assert_eq!(body, "done");
    }
}

/// Turns each scenario into a test on every store, with sessions configured like this.
macro_rules! streams {
    ($($module:ident: $configure:expr => { $($scenario:ident),* $(,)? })*) => {$(
        mod $module {
            use super::*;

            $(async fn $scenario(on: Backend) {
                run(&on, $configure, |scene| super::$scenario(scene).boxed()).await;
            })*

            on_every_store! { $($scenario),* }
        }
    )*};
}

streams! {
    in_default_mode: |builder| builder => {
        touch_in_use_outlives_idle_timeout,
        touch_not_due_costs_nothing,
        touch_due_costs_one_replace,
        touch_never_passes_absolute_timeout,
        touch_after_sign_out_returns_ended,
        touch_after_revoke_all_returns_ended,
        touch_after_rotation_returns_superseded,
        touch_after_sign_in_returns_superseded,
        touch_after_idle_timeout_returns_expired,
        touch_of_session_that_another_request_kept_alive_succeeds,
        touch_when_store_is_down_is_503_and_keeps_handle,
        touch_writes_no_pending_value,
        touch_counts_for_passive_request,
        reload_does_not_extend_session,
        save_and_transact_that_write_extend_session,
        touch_concurrent_with_sign_out_returns_ended,
        touch_concurrent_with_revoke_all_returns_ended,
        touch_concurrent_with_rotation_returns_superseded,
        touch_does_not_undo_changed_lifetime,
        touch_concurrent_with_other_write_succeeds,
        concurrent_touches_write_once,
        in_doubt_touch_is_settled,
        in_doubt_touch_followed_by_rotation_returns_superseded,
        unsettled_touch_keeps_handle,
        abandoned_touch_runs_to_completion,
        unpolled_touch_blocks_no_other_call,
        touch_that_never_wins_against_writers_is_503_and_keeps_handle,
        touch_does_not_restore_session_after_concurrent_sign_out,
        save_transact_and_reload_report_why_session_was_lost,
        reported_loss_never_changes,
        own_sign_out_and_new_sign_in_report_no_loss,
        touch_of_anonymous_visitor_does_nothing,
    }
    in_strict_mode: |builder| builder.directory(DirectoryMode::Strict) => {
        touch_in_strict_mode_costs_one_more_load,
        touch_of_unlisted_session_in_strict_mode_returns_ended,
    }
    with_limit: |builder| builder.concurrent_sessions(ConcurrentSessions::Reject(2)) => {
        touch_confirms_cookie_once,
    }
    without_threshold: |builder| builder.lifetime(UNTHROTTLED) => {
        touch_without_threshold_writes_each_time,
    }
}

/// What another request does between a touch's decision and its write.
type Meanwhile = for<'a> fn(&'a Scene) -> BoxFuture<'a, ()>;

/// Returns the result of a touch during which another request does something.
async fn met(scene: &Scene, meanwhile: Meanwhile) -> Result<(), ErrorKind> {
    let (gate, touch) = scene.stand.held(Verb::Replace, scene.session.touch()).await;
    meanwhile(scene).await;
    gate.release();
    touch.await.map_err(|error| error.kind())
}

/// Returns the result of a touch whose answer is lost, and which is settled after another request has
/// done something.
async fn settled_after(scene: &Scene, meanwhile: Meanwhile) -> Result<(), ErrorKind> {
    scene.stand.store.inject(Verb::Replace, Fault::LoseAnswer);
    let gate = scene.stand.store.hold(Verb::Load);
    let session = scene.session.clone();
    let touch = tokio::spawn(async move { session.touch().await });
    gate.reached().await;
    meanwhile(scene).await;
    gate.release();
    touch.await.unwrap().map_err(|error| error.kind())
}

fn nothing(_: &Scene) -> BoxFuture<'_, ()> {
    async {}.boxed()
}

fn signs_out(scene: &Scene) -> BoxFuture<'_, ()> {
    scene.stand.sign_out(&scene.cookie).boxed()
}

fn revokes_all(scene: &Scene) -> BoxFuture<'_, ()> {
    async {
        assert_eq!(scene.stand.sessions.of("alice").revoke_all().await.unwrap().count, 1);
    }
    .boxed()
}

fn rotates(scene: &Scene) -> BoxFuture<'_, ()> {
    async { assert!(!scene.stand.visit(&scene.cookie, rotate).await.cookie().is_empty()) }.boxed()
}

fn signs_in(scene: &Scene) -> BoxFuture<'_, ()> {
    async { assert!(!scene.stand.visit(&scene.cookie, sign_in).await.cookie().is_empty()) }.boxed()
}

fn writes_passively(scene: &Scene) -> BoxFuture<'_, ()> {
    let write = async |session: Session| {
        session.mark_passive();
        session.insert(B, &2)
    };
    async move { scene.stand.visit(&scene.cookie, write).await.ok() }.boxed()
}

fn writes(scene: &Scene) -> BoxFuture<'_, ()> {
    scene.stand.write(&scene.cookie, B, 2).boxed()
}

fn reads(scene: &Scene) -> BoxFuture<'_, ()> {
    async { assert!(scene.is_alive().await) }.boxed()
}

async fn touch_in_use_outlives_idle_timeout(scene: Scene) {
    let expires_at = || scene.session.expires_at().unwrap();
    let first = expires_at();
    for _ in 0..6 {
        scene.later(20 * MINUTE);
        scene.touch().await.unwrap();
    }
    assert_eq!(expires_at(), first + 120 * MINUTE);
    assert!(scene.is_alive().await);
}

async fn touch_not_due_costs_nothing(scene: Scene) {
    scene.stand.spy.take();
    scene.touch().await.unwrap();
    scene.later(59 * MINUTE / 60);
    scene.touch().await.unwrap();
    assert_eq!(scene.stand.taken_verbs(), []);
}

async fn touch_due_costs_one_replace(scene: Scene) {
    scene.stand.spy.take();
    scene.later(MINUTE);
    for _ in 0..3 {
        scene.touch().await.unwrap();
    }
    assert_eq!(scene.stand.taken_verbs(), [Verb::Replace]);
}

async fn touch_without_threshold_writes_each_time(scene: Scene) {
    scene.stand.spy.take();
    for _ in 0..2 {
        scene.touch().await.unwrap();
    }
    assert_eq!(scene.stand.taken_verbs(), [Verb::Replace; 2]);
}

async fn touch_never_passes_absolute_timeout(scene: Scene) {
    let last = scene.stand.clock.now() + 24 * HOUR;
    for _ in 0..71 {
        scene.later(20 * MINUTE);
        scene.touch().await.unwrap();
        assert!(scene.session.expires_at().unwrap() <= last);
    }
    // Another touch cannot extend the session any further.
    scene.stand.spy.take();
    scene.later(19 * MINUTE);
    scene.touch().await.unwrap();
    assert_eq!(scene.stand.taken_verbs(), []);
    assert!(scene.is_alive().await);
    scene.later(MINUTE);
    assert_eq!(scene.touch_fails().await, Some(Loss::Expired));
    assert!(!scene.is_alive().await);
}

async fn touch_after_sign_out_returns_ended(scene: Scene) {
    signs_out(&scene).await;
    scene.later(MINUTE);
    assert_eq!(scene.touch_fails().await, Some(Loss::Ended));
    assert!(!scene.is_alive().await);
}

async fn touch_after_revoke_all_returns_ended(scene: Scene) {
    revokes_all(&scene).await;
    scene.later(MINUTE);
    assert_eq!(scene.touch_fails().await, Some(Loss::Ended));
    assert!(!scene.is_alive().await);
}

async fn touch_after_rotation_returns_superseded(scene: Scene) {
    let newer = scene.stand.visit(&scene.cookie, rotate).await.cookie();
    scene.later(MINUTE);
    assert_eq!(scene.touch_fails().await, Some(Loss::Superseded));
    assert_eq!(scene.stand.who(&newer).await.as_deref(), Some("alice"));
}

async fn touch_after_sign_in_returns_superseded(scene: Scene) {
    let newer = scene.stand.sign_in(&scene.cookie).await;
    scene.later(MINUTE);
    assert_eq!(scene.touch_fails().await, Some(Loss::Superseded));
    assert_eq!(scene.stand.who(&newer).await.as_deref(), Some("alice"));
}

async fn touch_after_idle_timeout_returns_expired(scene: Scene) {
    scene.later(30 * MINUTE);
    assert_eq!(scene.touch_fails().await, Some(Loss::Expired));
}

async fn touch_of_session_that_another_request_kept_alive_succeeds(scene: Scene) {
    scene.later(29 * MINUTE);
    reads(&scene).await;
    scene.later(29 * MINUTE);
    scene.touch().await.unwrap();
    scene.later(29 * MINUTE);
    assert!(scene.is_alive().await);
}

async fn touch_when_store_is_down_is_503_and_keeps_handle(scene: Scene) {
    scene.session.insert(A, &7).unwrap();
    scene.later(MINUTE);
    scene.stand.store.fail_always(Verb::Replace, Fault::Unavailable);
    let error = scene.session.touch().await.unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::Unavailable, 503));
    assert_eq!(scene.session.loss(), None);
    scene.stand.store.heal();
    scene.touch().await.unwrap();
    assert_eq!(scene.session.get(A).unwrap(), Some(7));
    scene.session.save().await.unwrap();
    assert_eq!(scene.stand.read(&scene.cookie, A).await, Some(7));
}

async fn touch_in_strict_mode_costs_one_more_load(scene: Scene) {
    scene.stand.spy.take();
    scene.touch().await.unwrap();
    scene.later(MINUTE);
    scene.touch().await.unwrap();
    assert_eq!(scene.stand.taken_verbs(), [Verb::Load, Verb::Replace]);
}

async fn touch_of_unlisted_session_in_strict_mode_returns_ended(scene: Scene) {
    let directory = scene.stand.directory_key("alice").await;
    scene.stand.spy.delete(&directory, None).await.unwrap();
    scene.later(MINUTE);
    scene.stand.spy.take();
    assert_eq!(scene.touch().await, Err(ErrorKind::Gone));
    assert_eq!(scene.stand.taken_verbs(), [Verb::Load]);
    assert_eq!(scene.session.loss(), Some(Loss::Ended));
}

async fn touch_confirms_cookie_once(scene: Scene) {
    let cookie = scene.stand.signed_in("alice").await;
    let (exchange, session) = scene.stand.begin(&cookie).await;
    scene.stand.spy.take();
    session.touch().await.unwrap();
    session.touch().await.unwrap();
    assert_eq!(scene.stand.taken_verbs(), [Verb::Replace]);
    assert!(finish(exchange, 200).await.error.is_none());
    assert_eq!(scene.stand.taken_verbs(), [], "the end of the request has nothing to confirm");
    assert_eq!(scene.stand.visit("", sign_in).await.failure(), Some(ErrorKind::TooManySessions));
}

async fn touch_writes_no_pending_value(scene: Scene) {
    scene.session.insert(A, &7).unwrap();
    scene.session.update(SEED, |seed| *seed += 10).unwrap();
    scene.stand.write(&scene.cookie, SEED, 2).await;
    scene.later(2 * MINUTE);
    scene.touch().await.unwrap();
    // The handle sees the stored values with the pending changes applied.
    assert_eq!(scene.session.get(SEED).unwrap(), Some(12));
    assert_eq!(scene.stand.read(&scene.cookie, A).await, None);
    assert_eq!(scene.stand.read(&scene.cookie, SEED).await, Some(2));
    scene.session.save().await.unwrap();
    assert_eq!(scene.stand.read(&scene.cookie, A).await, Some(7));
    assert_eq!(scene.stand.read(&scene.cookie, SEED).await, Some(12));
}

async fn touch_counts_for_passive_request(scene: Scene) {
    scene.session.mark_passive();
    scene.later(20 * MINUTE);
    scene.touch().await.unwrap();
    scene.later(20 * MINUTE);
    assert!(scene.is_alive().await);
}

async fn reload_does_not_extend_session(scene: Scene) {
    let expires_at = scene.session.expires_at();
    scene.later(20 * MINUTE);
    scene.session.reload().await.unwrap();
    assert_eq!(scene.session.expires_at(), expires_at);
    scene.later(10 * MINUTE);
    assert!(!scene.is_alive().await);
}

async fn save_and_transact_that_write_extend_session(scene: Scene) {
    for step in 0..4 {
        scene.later(20 * MINUTE);
        match step {
            0 => scene.session.insert(A, &1).unwrap(),
            1 => scene.session.transact(|values| values.insert(A, &2)).await.unwrap(),
            // There is nothing to save. The save extends the session, as a request that only reads
            // does.
            _ => {}
        }
        scene.session.save().await.unwrap();
    }
    assert!(scene.is_alive().await);
    // A call that writes nothing does not extend the session.
    let expires_at = scene.session.expires_at();
    scene.later(20 * MINUTE);
    scene.session.transact(|values| values.get(A)).await.unwrap();
    assert_eq!(scene.session.expires_at(), expires_at);
    scene.session.mark_passive();
    scene.session.save().await.unwrap();
    scene.session.insert(A, &3).unwrap();
    scene.session.save().await.unwrap();
    assert_eq!(scene.session.expires_at(), expires_at);
}

async fn touch_concurrent_with_sign_out_returns_ended(scene: Scene) {
    scene.later(MINUTE);
    assert_eq!(met(&scene, signs_out).await, Err(ErrorKind::Gone));
    assert_eq!(scene.session.loss(), Some(Loss::Ended));
    assert!(!scene.is_alive().await);
}

async fn touch_concurrent_with_revoke_all_returns_ended(scene: Scene) {
    scene.later(MINUTE);
    assert_eq!(met(&scene, revokes_all).await, Err(ErrorKind::Gone));
    assert_eq!(scene.session.loss(), Some(Loss::Ended));
    assert!(!scene.is_alive().await);
}

async fn touch_concurrent_with_rotation_returns_superseded(scene: Scene) {
    let meanwhile: [Meanwhile; 2] = [rotates, signs_in];
    for meanwhile in meanwhile {
        let cookie = scene.stand.signed_in("alice").await;
        let (_exchange, session) = scene.stand.begin(&cookie).await;
        scene.later(MINUTE);
        let other = Scene { stand: scene.stand.clone(), session, cookie };
        assert_eq!(met(&other, meanwhile).await, Err(ErrorKind::Gone));
        assert_eq!(other.session.loss(), Some(Loss::Superseded));
    }
}

async fn touch_does_not_undo_changed_lifetime(scene: Scene) {
    scene.later(MINUTE);
    let (gate, touch) = scene.stand.held(Verb::Replace, scene.session.touch()).await;
    let remember = async |session: Session| {
        session.set_lifetime(REMEMBERED);
        Ok(())
    };
    let newer = scene.stand.visit(&scene.cookie, remember).await.cookie();
    gate.release();
    assert_eq!(touch.await.unwrap_err().kind(), ErrorKind::Gone);
    assert_eq!(scene.session.loss(), Some(Loss::Superseded));
    scene.later(24 * HOUR * 6);
    assert_eq!(scene.stand.who(&newer).await.as_deref(), Some("alice"));
}

async fn touch_concurrent_with_other_write_succeeds(scene: Scene) {
    for meanwhile in [writes as Meanwhile, writes_passively, reads] {
        scene.later(20 * MINUTE);
        assert_eq!(met(&scene, meanwhile).await, Ok(()));
        assert_eq!(scene.session.loss(), None);
        let deadline = scene.stand.clock.now() + 30 * MINUTE;
        assert_eq!(scene.session.expires_at(), Some(deadline));
    }
    assert_eq!(scene.stand.read(&scene.cookie, B).await, Some(2));
    assert_eq!(scene.session.get(B).unwrap(), Some(2));
}

async fn concurrent_touches_write_once(scene: Scene) {
    let (_exchange, other) = scene.stand.begin(&scene.cookie).await;
    scene.later(MINUTE);
    let (gate, touch) = scene.stand.held(Verb::Replace, scene.session.touch()).await;
    other.touch().await.unwrap();
    scene.stand.spy.take();
    gate.release();
    touch.await.unwrap();
    // The write conflicts. Memcached's answer does not contain the record, so it is loaded.
    let verbs = scene.stand.taken_verbs();
    assert!(verbs == [Verb::Replace] || verbs == [Verb::Replace, Verb::Load], "{verbs:?}");
    assert_eq!(scene.session.expires_at(), other.expires_at());
}

async fn in_doubt_touch_is_settled(scene: Scene) {
    scene.later(20 * MINUTE);
    assert_eq!(settled_after(&scene, nothing).await, Ok(()));
    scene.later(20 * MINUTE);
    assert_eq!(settled_after(&scene, writes_passively).await, Ok(()));
    assert_eq!(scene.session.get(B).unwrap(), Some(2));
    scene.later(20 * MINUTE);
    assert!(scene.is_alive().await);
    scene.later(MINUTE);
    assert_eq!(settled_after(&scene, signs_out).await, Err(ErrorKind::Gone));
    assert_eq!(scene.session.loss(), Some(Loss::Ended));
    assert!(!scene.is_alive().await);
}

async fn in_doubt_touch_followed_by_rotation_returns_superseded(scene: Scene) {
    for meanwhile in [rotates as Meanwhile, signs_in] {
        let cookie = scene.stand.signed_in("alice").await;
        let (_exchange, session) = scene.stand.begin(&cookie).await;
        scene.later(MINUTE);
        let other = Scene { stand: scene.stand.clone(), session, cookie };
        assert_eq!(settled_after(&other, meanwhile).await, Err(ErrorKind::Gone));
        assert_eq!(other.session.loss(), Some(Loss::Superseded));
    }
}

async fn unsettled_touch_keeps_handle(scene: Scene) {
    scene.later(MINUTE);
    scene.stand.store.inject(Verb::Replace, Fault::LoseAnswer);
    scene.stand.store.fail_always(Verb::Load, Fault::Unavailable);
    assert_eq!(scene.touch().await, Err(ErrorKind::OutcomeUnknown));
    scene.stand.store.heal();
    scene.touch().await.unwrap();
    assert_eq!(scene.session.loss(), None);
    // A touch is not a commit, so the handle can be used without a reload.
    scene.session.insert(A, &7).unwrap();
    scene.session.save().await.unwrap();
    assert_eq!(scene.stand.read(&scene.cookie, A).await, Some(7));
}

async fn abandoned_touch_runs_to_completion(scene: Scene) {
    scene.later(20 * MINUTE);
    let (gate, touch) = scene.stand.held(Verb::Replace, scene.session.touch()).await;
    drop(touch);
    gate.release();
    // The reload waits for the touch.
    scene.session.reload().await.unwrap();
    scene.later(20 * MINUTE);
    assert!(scene.is_alive().await);
}

async fn unpolled_touch_blocks_no_other_call(scene: Scene) {
    scene.later(MINUTE);
    let (gate, _unpolled) = scene.stand.held(Verb::Replace, scene.session.touch()).await;
    gate.release();
    scene.session.insert(A, &7).unwrap();
    scene.session.save().await.unwrap();
    assert_eq!(scene.stand.read(&scene.cookie, A).await, Some(7));
}

/// None of the other writers extends the session, so the touch stays due.
async fn touch_that_never_wins_against_writers_is_503_and_keeps_handle(scene: Scene) {
    scene.later(MINUTE);
    let mut gate = scene.stand.store.hold(Verb::Replace);
    let session = scene.session.clone();
    let touch = tokio::spawn(async move { session.touch().await });
    for attempt in 1..=8 {
        gate.reached().await;
        scene
            .stand
            .visit(&scene.cookie, async |session: Session| {
                session.mark_passive();
                session.insert(B, &attempt)
            })
            .await
            .ok();
        let next = (attempt < 8).then(|| scene.stand.store.hold(Verb::Replace));
        gate.release();
        gate = next.unwrap_or(gate);
    }
    let error = touch.await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::Contended, 503));
    assert_eq!(scene.session.loss(), None);
    scene.touch().await.unwrap();
    assert_eq!(scene.session.get(B).unwrap(), Some(8));
}

async fn touch_does_not_restore_session_after_concurrent_sign_out(scene: Scene) {
    for round in 0..50 {
        let cookie = scene.stand.signed_in("alice").await;
        let (_exchange, session) = scene.stand.begin(&cookie).await;
        scene.later(MINUTE);
        let touching = tokio::spawn(async move { (session.touch().await, session.loss()) });
        let (touched, ()) = join(touching, scene.stand.sign_out(&cookie)).await;
        match touched.unwrap() {
            (Ok(()), None) => {}
            (Err(error), Some(Loss::Ended)) => assert_eq!(error.kind(), ErrorKind::Gone),
            other => panic!("{round}: {other:?}"),
        }
        assert_eq!(scene.stand.who(&cookie).await, None, "{round}");
    }
}

async fn save_transact_and_reload_report_why_session_was_lost(scene: Scene) {
    type Act = for<'a> fn(&'a Session) -> BoxFuture<'a, unsticky::Result<()>>;
    let acts: [Act; 3] = [
        |session| {
            async {
                session.insert(A, &1)?;
                session.save().await
            }
            .boxed()
        },
        |session| session.transact(|values| values.insert(A, &1)).boxed(),
        |session| session.reload().boxed(),
    ];
    for act in acts {
        for (meanwhile, loss) in
            [(rotates as Meanwhile, Loss::Superseded), (signs_out, Loss::Ended)]
        {
            let cookie = scene.stand.signed_in("alice").await;
            let (exchange, session) = scene.stand.begin(&cookie).await;
            assert_eq!(finish(exchange, 200).await.set_cookie, None);
            let other = Scene { stand: scene.stand.clone(), session, cookie };
            meanwhile(&other).await;
            assert_eq!(other.session.loss(), None, "the handle has not checked yet");
            assert_eq!(act(&other.session).await.unwrap_err().kind(), ErrorKind::Gone);
            assert_eq!(other.session.loss(), Some(loss));
        }
    }
}

async fn reported_loss_never_changes(scene: Scene) {
    signs_out(&scene).await;
    assert_eq!(scene.session.reload().await.unwrap_err().kind(), ErrorKind::Gone);
    scene.later(48 * HOUR);
    scene.session.save().await.unwrap();
    assert_eq!(scene.session.reload().await.unwrap_err().kind(), ErrorKind::Gone);
    assert_eq!(scene.session.loss(), Some(Loss::Ended));
}

async fn own_sign_out_and_new_sign_in_report_no_loss(scene: Scene) {
    scene.session.sign_out();
    scene.session.save().await.unwrap();
    assert_eq!(scene.session.loss(), None);
    scene.touch().await.unwrap();
    // A request that has lost its session can sign in, and then has a session again.
    let cookie = scene.stand.signed_in("alice").await;
    let again = async |session: Session| {
        scene.stand.sign_out(&cookie).await;
        assert_eq!(session.reload().await.unwrap_err().kind(), ErrorKind::Gone);
        assert_eq!(session.loss(), Some(Loss::Ended));
        session.sign_in("alice")?;
        session.save().await?;
        assert_eq!(session.loss(), None);
        session.touch().await
    };
    scene.stand.visit(&cookie, again).await.ok();
}

async fn touch_of_anonymous_visitor_does_nothing(scene: Scene) {
    let touch = async |session: Session| session.touch().await;
    for cookie in ["", &format!("__Host-id={}", "A".repeat(43))] {
        let visit = scene.stand.visit(cookie, touch).await;
        assert_eq!((visit.failure(), visit.set_cookie), (None, None));
    }
}
