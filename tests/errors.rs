//! Errors from every source are rendered in one place. The same table is checked in both frameworks.

#![cfg(all(feature = "testing", feature = "memory", feature = "axum", feature = "actix"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use actix_web::body::MessageBody;
use actix_web::dev::{Service as _, ServiceRequest, ServiceResponse};
use actix_web::error::InternalError;
use actix_web::middleware::{Condition, from_fn};
use actix_web::{HttpResponse, test, web};
use axum::Router;
use axum::http::{HeaderName, HeaderValue};
use axum::response::IntoResponse as _;
use axum::routing::get;
use support::app::{App, Ask, Reply, both_of};
use support::stand::{A, Backend, Stand};
use support::visit::visit;
use tower::ServiceExt as _;
use unsticky::actix::{GuardMiddleware, SessionMiddleware};
use unsticky::exchange::{ErrorResponse, SessionHandle, Wants};
use unsticky::testing::{Fault, Verb};
use unsticky::tower::{GuardLayer, SessionLayer};
use unsticky::{
    Builder, Cookie, Csrf, CsrfToken, Error, ErrorKind, Guard, Key, Maybe, Result, Session,
    Sessions, SignedIn,
};

thread_local! {
    /// The current request's cookie, with which a handler can make a second request.
    static COOKIE: RefCell<String> = const { RefCell::new(String::new()) };
}

async fn used(_: Session) -> &'static str {
    "ok"
}

async fn user(_: SignedIn) -> &'static str {
    "ok"
}

async fn writes(session: Session) -> Result<&'static str> {
    session.insert(A, &1)?;
    Ok("ok")
}

async fn ended_meanwhile(session: Session, sessions: Sessions) -> Result<&'static str> {
    session.insert(A, &1)?;
    sessions.of("alice").revoke_all().await?;
    Ok("ok")
}

async fn taken_meanwhile(session: Session, sessions: Sessions) -> Result<&'static str> {
    session.take(Key::<u32>::new("seed"))?;
    let cookie = COOKIE.with_borrow(String::clone);
    let other = async |session: Session| session.insert(Key::<u32>::new("seed"), &2);
    visit(&sessions, &cookie, other).await.ok();
    Ok("ok")
}

async fn wrong_type(session: Session) -> Result<String> {
    Ok(session.get(Key::<String>::new("seed"))?.unwrap_or_default())
}

/// An application's own error type, which responds with the crate's error.
#[derive(Debug)]
struct Own(Error);

impl From<Error> for Own {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl std::fmt::Display for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "own: {}", self.0)
    }
}

impl axum::response::IntoResponse for Own {
    fn into_response(self) -> axum::response::Response {
        self.0.into_response()
    }
}

impl actix_web::ResponseError for Own {
    fn status_code(&self) -> actix_web::http::StatusCode {
        self.0.status_code()
    }

    fn error_response(&self) -> actix_web::HttpResponse {
        self.0.error_response()
    }
}

async fn wrapped(session: Session) -> Result<String, Own> {
    Ok(wrong_type(session).await?)
}

async fn wants(wants: Wants) -> String {
    format!("{wants:?}")
}

async fn maybe(_: Maybe<SignedIn>) -> &'static str {
    "ok"
}

async fn form(token: CsrfToken) -> String {
    token.to_string()
}

async fn sent(_: Csrf<String>) -> &'static str {
    "ok"
}

/// A response that the handler renders itself.
fn degraded(session: &Result<Session>) -> String {
    match session {
        Ok(_) => "ok".to_owned(),
        Err(error) => format!("without a session: {}", error.kind().as_str()),
    }
}

fn forbids() -> Guard {
    Guard::signed_in().permit(|_| Ok(false))
}

async fn apps(layers: &[Sessions]) -> [App; 2] {
    let guarded = |path: &str, guard: Guard| {
        Router::new().route(path, get(used)).route_layer(GuardLayer::new(guard))
    };
    let router = Router::new()
        .route("/used", get(used))
        .route("/user", get(user))
        .route("/writes", get(writes))
        .route("/ended", get(ended_meanwhile))
        .route("/taken", get(taken_meanwhile))
        .route("/wrong-type", get(wrong_type))
        .route("/wrapped", get(wrapped))
        .route("/maybe", get(maybe))
        .route("/wants", get(wants))
        .route("/form", get(form).post(sent))
        .route("/itself", get(async |session: Result<Session>| degraded(&session)))
        .merge(guarded("/guarded", Guard::signed_in()))
        .merge(guarded("/forbidden", forbids()))
        .merge(guarded("/same-origin", Guard::same_origin()));
    let routes = |config: &mut web::ServiceConfig| {
        let guarded = |path: &str, guard: Guard| {
            web::resource(path).wrap(GuardMiddleware::new(guard)).route(web::get().to(used))
        };
        config
            .route("/used", web::get().to(used))
            .route("/user", web::get().to(user))
            .route("/writes", web::get().to(writes))
            .route("/ended", web::get().to(ended_meanwhile))
            .route("/taken", web::get().to(taken_meanwhile))
            .route("/wrong-type", web::get().to(wrong_type))
            .route("/wrapped", web::get().to(wrapped))
            .route("/maybe", web::get().to(maybe))
            .route("/wants", web::get().to(wants))
            .route("/form", web::get().to(form))
            .route("/form", web::post().to(sent))
            .route("/itself", web::get().to(async |session: Result<Session>| degraded(&session)))
            .service(guarded("/guarded", Guard::signed_in()))
            .service(guarded("/forbidden", forbids()))
            .service(guarded("/same-origin", Guard::same_origin()));
    };
    both_of(router, routes, layers).await
}

/// The test application's renderer.
fn render(response: ErrorResponse, error: &Error, wants: Wants) -> ErrorResponse {
    let name = error.kind().as_str();
    match wants {
        Wants::Page => response.html(format!("<h1>{name}</h1>")),
        Wants::Data => response.json(format!("{{\"error\":\"{name}\"}}")),
    }
}

fn configured(builder: Builder, renders: bool) -> Builder {
    let builder = builder.gone_status(440);
    if renders { builder.on_error(render) } else { builder }
}

async fn request(app: &App, path: &str, accept: &str, cookie: &str) -> Reply {
    COOKIE.with_borrow_mut(|now| cookie.clone_into(now));
    app.ask(Ask::get(path).header("accept", accept).cookie(cookie)).await
}

/// The fault that the store injects.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    None,
    At(Verb),
}

use Trouble::At;

/// The description, the path, whether the request has Alice's session, the fault, and the expected kind and
/// status.
const TABLE: &[(&str, &str, bool, Trouble, ErrorKind, u16)] = &[
    ("outage in extractor", "/used", true, At(Verb::Load), ErrorKind::Unavailable, 503),
    ("outage in SignedIn", "/user", true, At(Verb::Load), ErrorKind::Unavailable, 503),
    ("outage in guard", "/guarded", true, At(Verb::Load), ErrorKind::Unavailable, 503),
    ("changes not kept", "/writes", false, At(Verb::Create), ErrorKind::Unavailable, 503),
    ("gone, with the configured status", "/ended", true, Trouble::None, ErrorKind::Gone, 440),
    ("value changed", "/taken", true, Trouble::None, ErrorKind::ValueChanged, 409),
    ("error of a handler", "/wrong-type", true, Trouble::None, ErrorKind::Decode, 500),
    (
        "error of a handler, in one of its own",
        "/wrapped",
        true,
        Trouble::None,
        ErrorKind::Decode,
        500,
    ),
    ("outage in Maybe", "/maybe", true, At(Verb::Load), ErrorKind::Unavailable, 503),
    ("not signed in", "/user", false, Trouble::None, ErrorKind::NotSignedIn, 401),
    ("not signed in, at a guard", "/guarded", false, Trouble::None, ErrorKind::NotSignedIn, 401),
    ("forbidden", "/forbidden", true, Trouble::None, ErrorKind::Forbidden, 403),
];

#[tokio::test]
async fn every_error_is_rendered_in_one_place() {
    for (row, path, with_session, trouble, kind, status) in TABLE.iter().copied() {
        for renders in [false, true] {
            let stand = Backend::memory().stand_with(|builder| configured(builder, renders));
            for app in apps(std::slice::from_ref(&stand.sessions)).await {
                for accept in ["text/html", "application/json"] {
                    let row = format!("{} {row}, {renders}, {accept}", app.framework);
                    let cookie = match with_session {
                        true => stand.signed_in("alice").await,
                        false => String::new(),
                    };
                    if let At(verb) = trouble {
                        stand.store.fail_always(verb, Fault::Unavailable);
                    }
                    let reply = request(&app, path, accept, &cookie).await;
                    stand.store.heal();
                    let (body, content_type) = match (renders, accept) {
                        (false, _) => (kind.message().to_owned(), "text/plain; charset=utf-8"),
                        (true, "text/html") => {
                            (format!("<h1>{}</h1>", kind.as_str()), "text/html; charset=utf-8")
                        }
                        (true, _) => {
                            (format!("{{\"error\":\"{}\"}}", kind.as_str()), "application/json")
                        }
                    };
                    assert_eq!((reply.status, &*reply.body), (status, &*body), "{row}");
                    assert_eq!(reply.all("content-type"), [content_type], "{row}");
                    assert_eq!(reply.all("cache-control"), ["no-store"], "{row}");
                    let retry: &[&str] = if status == 503 { &["1"] } else { &[] };
                    assert_eq!(reply.all("retry-after"), retry, "{row}");
                    let mut vary = reply.all("vary");
                    vary.sort_unstable();
                    let expected: &[&str] =
                        if renders { &["cookie", "sec-fetch-mode, accept"] } else { &["cookie"] };
                    assert_eq!(vary, expected, "{row}");
                }
            }
        }
    }
}

/// The `Wants` extractor needs no session layer.
#[tokio::test]
async fn handler_extracts_whether_request_wants_page_or_data() {
    for app in apps(&[]).await {
        for (accept, expected) in [("text/html", "Page"), ("application/json", "Data")] {
            let reply = request(&app, "/wants", accept, "").await;
            assert_eq!((reply.status, &*reply.body), (200, expected), "{}", app.framework);
        }
    }
}

#[tokio::test]
async fn redirect_survives_rendering() {
    let stand =
        Backend::memory().stand_with(|builder| configured(builder, true).sign_in_page("/sign-in"));
    for app in apps(std::slice::from_ref(&stand.sessions)).await {
        for path in ["/user", "/guarded"] {
            let reply = request(&app, path, "text/html", "").await;
            let location = format!("/sign-in?next={path}");
            assert_eq!((reply.status, reply.all("location")), (303, vec![&*location]));
            assert_eq!(reply.body, "<h1>not_signed_in</h1>");
            let mut vary = reply.all("vary");
            vary.sort_unstable();
            assert_eq!(vary, ["cookie", "sec-fetch-mode, accept"]);
            let reply = request(&app, path, "application/json", "").await;
            assert_eq!((reply.status, reply.all("location")), (401, vec![]));
        }
    }
}

#[tokio::test]
async fn refused_request_of_another_site_is_rendered() {
    let stand = Backend::memory().stand_with(|builder| configured(builder, true));
    for app in apps(std::slice::from_ref(&stand.sessions)).await {
        let ask = Ask::post("/same-origin").header("sec-fetch-site", "cross-site");
        let reply = app.ask(ask).await;
        assert_eq!((reply.status, &*reply.body), (403, "{\"error\":\"cross_origin\"}"));
        let mut vary = reply.all("vary");
        vary.sort_unstable();
        assert_eq!(vary, ["sec-fetch-mode, accept", "sec-fetch-site, origin"]);
    }
}

/// The application renders the same response whether the token is missing, forged, or taken from another
/// session.
#[tokio::test]
async fn refused_csrf_token_is_rendered() {
    for renders in [false, true] {
        let stand = Backend::memory().stand_with(|builder| configured(builder, renders));
        for app in apps(std::slice::from_ref(&stand.sessions)).await {
            let cookie = stand.signed_in("alice").await;
            let own = app.get("/form", &cookie).await.body;
            let of_another = app.get("/form", &stand.signed_in("alice").await).await.body;
            let of_a_visitor = app.get("/form", "").await.body;
            let forged = "A".repeat(86);
            let refused = [None, Some(&*forged), Some(&*of_another), Some(&*of_a_visitor)];
            for (token, accept, body, content_type) in refused.into_iter().flat_map(|token| {
                let message = ErrorKind::InvalidCsrfToken.message();
                let plain = "text/plain; charset=utf-8";
                match renders {
                    false => [
                        (token, "text/html", message, plain),
                        (token, "application/json", message, plain),
                    ],
                    true => [
                        (
                            token,
                            "text/html",
                            "<h1>invalid_csrf_token</h1>",
                            "text/html; charset=utf-8",
                        ),
                        (
                            token,
                            "application/json",
                            "{\"error\":\"invalid_csrf_token\"}",
                            "application/json",
                        ),
                    ],
                }
            }) {
                let row = format!("{} {renders} {token:?} {accept}", app.framework);
                let ask = Ask::post("/form").cookie(&cookie).header("accept", accept);
                let ask = token.iter().fold(ask, |ask, token| ask.header(CsrfToken::HEADER, token));
                let reply = app.ask(ask).await;
                assert_eq!((reply.status, &*reply.body), (403, body), "{row}");
                assert_eq!(reply.all("content-type"), [content_type], "{row}");
                assert_eq!(reply.all("cache-control"), ["no-store"], "{row}");
                assert_eq!(reply.cookies(), [""; 0], "{row}");
                let mut vary = reply.all("vary");
                vary.sort_unstable();
                let expected: &[&str] =
                    if renders { &["cookie", "sec-fetch-mode, accept"] } else { &["cookie"] };
                assert_eq!(vary, expected, "{row}");
            }
            let ask = Ask::post("/form").cookie(&cookie).header(CsrfToken::HEADER, &own);
            assert_eq!(app.ask(ask).await.status, 200);
        }
    }
}

#[tokio::test]
async fn response_rendered_by_handler_is_not_replaced() {
    let stand = Backend::memory().stand_with(|builder| configured(builder, true));
    stand.store.fail_always(Verb::Load, Fault::Unavailable);
    let cookie = format!("__Host-id={}", "A".repeat(43));
    for app in apps(std::slice::from_ref(&stand.sessions)).await {
        let reply = request(&app, "/itself", "text/html", &cookie).await;
        assert_eq!(
            (reply.status, &*reply.body),
            (200, "without a session: unavailable"),
            "{}",
            app.framework
        );
    }
}

#[tokio::test]
async fn missing_layer_error_shows_no_details_to_client() {
    for app in apps(&[]).await {
        for path in ["/used", "/user", "/guarded"] {
            let reply = request(&app, path, "text/html", "").await;
            assert_eq!((reply.status, &*reply.body), (500, "Something went wrong on our side."));
        }
    }
}

/// Returns sessions whose renderer counts its calls, and the counter.
fn counting(
    stand: &Stand,
    cookie: &'static str,
    name: &'static str,
) -> (Sessions, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let sessions = stand.process(|builder| {
        builder.cookie(Cookie::new(cookie)).on_error(move |response, _, _| {
            counted.fetch_add(1, Ordering::Relaxed);
            response.html(name)
        })
    });
    (sessions, calls)
}

#[tokio::test]
async fn nested_layers_render_error_once_in_innermost_layer() {
    let stand = Backend::memory().stand();
    let silent = stand.process(|builder| builder.cookie(Cookie::new("__Host-silent")));
    let (inner, inner_calls) = counting(&stand, "__Host-inner", "inner");
    let (outer, outer_calls) = counting(&stand, "__Host-outer", "outer");
    let calls = || [&inner_calls, &outer_calls].map(|calls| calls.swap(0, Ordering::Relaxed));
    for (layers, body, expected) in [
        ([inner.clone(), outer.clone()], "inner", [1, 0]),
        ([silent.clone(), outer.clone()], "outer", [0, 1]),
        ([inner.clone(), silent], "inner", [1, 0]),
        // A layer that is applied twice shares one session and renders once.
        ([inner.clone(), inner.clone()], "inner", [1, 0]),
    ] {
        for app in apps(&layers).await {
            for path in ["/user", "/guarded"] {
                let reply = request(&app, path, "text/html", "").await;
                assert_eq!((reply.status, &*reply.body), (401, body), "{}", app.framework);
                assert_eq!(calls(), expected, "{} {path}", app.framework);
            }
        }
    }
}

/// The handler's header fields stay, except those that describe the body.
#[tokio::test]
async fn rendered_response_keeps_headers_unrelated_to_its_body() {
    const FIELDS: [(&str, &str); 4] = [
        ("set-cookie", "own=1"),
        ("vary", "origin"),
        ("etag", "\"1\""),
        ("cache-control", "public"),
    ];
    let stand = Backend::memory().stand_with(|builder| configured(builder, true));
    stand.store.fail_always(Verb::Create, Fault::Unavailable);
    let in_axum = async |session: Session| -> Result<_> {
        session.insert(A, &1)?;
        let mut response = "ok".into_response();
        for (name, value) in FIELDS {
            let name = HeaderName::from_static(name);
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        Ok(response)
    };
    let in_actix = async |session: Session| -> Result<HttpResponse> {
        session.insert(A, &1)?;
        let mut response = HttpResponse::Ok();
        for field in FIELDS {
            response.insert_header(field);
        }
        Ok(response.body("ok"))
    };
    let router = Router::new().route("/", get(in_axum));
    let routes = |config: &mut web::ServiceConfig| {
        config.route("/", web::get().to(in_actix));
    };
    for app in both_of(router, routes, std::slice::from_ref(&stand.sessions)).await {
        let reply = request(&app, "/", "text/html", "").await;
        assert_eq!((reply.status, &*reply.body), (503, "<h1>unavailable</h1>"));
        assert_eq!(reply.all("set-cookie"), ["own=1"]);
        assert_eq!(reply.all("cache-control"), ["no-store"]);
        assert_eq!(reply.all("etag"), [""; 0]);
        let mut vary = reply.all("vary");
        vary.sort_unstable();
        assert_eq!(vary, ["cookie", "origin", "sec-fetch-mode, accept"]);
    }
}

/// Outer layers receive the error itself, whether or not it was rendered.
#[tokio::test]
async fn error_stays_with_its_response() {
    for renders in [false, true] {
        let stand = Backend::memory().stand_with(|builder| configured(builder, renders));
        stand.store.fail_always(Verb::Create, Fault::Unavailable);
        let router = Router::new()
            .route("/user", get(user))
            .route("/writes", get(writes))
            .layer(SessionLayer::new(stand.sessions.clone()));
        let actix = actix_web::App::new()
            .wrap(SessionMiddleware::new(stand.sessions))
            .route("/user", web::get().to(user))
            .route("/writes", web::get().to(writes));
        let actix = test::init_service(actix).await;
        for (path, kind) in [("/user", ErrorKind::NotSignedIn), ("/writes", ErrorKind::Unavailable)]
        {
            let ask = axum::http::Request::get(path).body(axum::body::Body::empty()).unwrap();
            let response = router.clone().oneshot(ask).await.unwrap();
            assert_eq!(response.extensions().get::<Error>().unwrap().kind(), kind);
            let ask = test::TestRequest::with_uri(path).to_request();
            let response = actix.call(ask).await.unwrap();
            let error = response.response().error().unwrap().as_error::<Error>().unwrap();
            assert_eq!(error.kind(), kind);
        }
    }
}

/// An actix-web middleware may fail with an error instead of a response. Outer middleware receives the error
/// with its original type, and the error's response gets the same headers and cookies as any other response.
#[tokio::test]
async fn error_of_inner_actix_middleware_keeps_its_type() {
    type Own = InternalError<&'static str>;
    let fails = async |handle: SessionHandle,
                       request: ServiceRequest,
                       _: actix_web::middleware::Next<actix_web::body::BoxBody>|
           -> Result<ServiceResponse, actix_web::Error> {
        let session = handle.session().await?;
        match request.path() {
            "/signs-in" => session.sign_in("alice")?,
            _ => session.insert(A, &1)?,
        }
        let response = HttpResponse::Forbidden().insert_header(("x-own", "1")).body("own");
        Err(Own::from_response("own", response).into())
    };
    for (renders, nested) in [(false, false), (true, false), (true, true)] {
        let stand = Backend::memory().stand_with(|builder| configured(builder, renders));
        let outer = counting(&stand, "__Host-outer", "outer").0;
        let app = actix_web::App::new()
            .wrap(from_fn(fails))
            .wrap(SessionMiddleware::new(stand.sessions.clone()))
            .wrap(Condition::new(nested, SessionMiddleware::new(outer)))
            .route("/{any}", web::get().to(used));
        let app = test::init_service(app).await;
        let valid = stand.signed_in("alice").await;
        for (path, cookie, fault, kind, status, is_set, keeps) in [
            ("/reads", &*valid, Some(Verb::Load), Some(ErrorKind::Unavailable), 503, false, false),
            ("/writes", "", Some(Verb::Create), Some(ErrorKind::Unavailable), 503, false, true),
            ("/writes", "", None, None, 403, true, true),
            ("/signs-in", "", None, None, 403, true, true),
        ] {
            let row = format!("{path} {fault:?} {renders} {nested}");
            if let Some(verb) = fault {
                stand.store.fail_always(verb, Fault::Unavailable);
            }
            let mut ask = test::TestRequest::with_uri(path);
            if !cookie.is_empty() {
                ask = ask.insert_header(("cookie", cookie));
            }
            let error = app.call(ask.to_request()).await.unwrap_err();
            stand.store.heal();
            assert_eq!(error.as_error::<Error>().map(Error::kind), kind, "{row}");
            let response = error.error_response();
            assert_eq!(response.status(), status, "{row}");
            let all = |name: &str| -> Vec<_> {
                response.headers().get_all(name).map(|value| value.to_str().unwrap()).collect()
            };
            assert!(all("vary").contains(&"cookie"), "{row}");
            assert_eq!(all("cache-control"), ["no-store"], "{row}");
            assert_eq!(all("set-cookie").len(), usize::from(is_set), "{row}");
            assert_eq!(all("x-own").len(), usize::from(keeps), "{row}");
            let expected = match (kind, renders) {
                (None, _) => "own".to_owned(),
                (Some(kind), false) => kind.message().to_owned(),
                (Some(kind), true) => format!("{{\"error\":\"{}\"}}", kind.as_str()),
            };
            assert_eq!(response.into_body().try_into_bytes().unwrap(), expected, "{row}");
            if kind.is_none() {
                assert!(error.as_error::<Own>().is_some(), "{row}");
            }
        }
    }
}
