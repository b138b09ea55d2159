//! Nested session layers, and what a layer does to a response, in both frameworks.

#![cfg(all(feature = "testing", feature = "memory", feature = "axum", feature = "actix"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use actix_web::body::BoxBody;
use actix_web::dev::{Service as _, ServiceRequest, ServiceResponse};
use actix_web::middleware::{Next, from_fn};
use actix_web::{App, HttpResponse, test, web};
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use support::stand::{Backend, Stand};
use support::visit::{finish, sent_back};
use tower::{Layer as _, ServiceExt as _};
use unsticky::actix::SessionMiddleware;
use unsticky::exchange::{Exchange, Finish, REPLACED_FIELDS, SessionHandle};
use unsticky::testing::{Fault, Verb};
use unsticky::tower::SessionLayer;
use unsticky::{Cookie, DirectoryMode, Key, Result, Session, Sessions};

const SEEN: Key<u32> = Key::new("seen");
const VISITS: Key<u32> = Key::new("visits");

fn sessions(stand: &Stand, cookie: &'static str) -> Sessions {
    stand.process(|builder| builder.cookie(Cookie::new(cookie)).directory(DirectoryMode::Off))
}

/// The status and the headers of a response, in order.
type Reply = (u16, Vec<(String, String)>);

fn reply<'a>(status: u16, headers: impl Iterator<Item = (impl ToString, &'a [u8])>) -> Reply {
    let text = |value: &[u8]| std::str::from_utf8(value).unwrap().to_owned();
    (status, headers.map(|(name, value)| (name.to_string(), text(value))).collect())
}

fn cookies(reply: &Reply) -> Vec<String> {
    let cookies = reply.1.iter().filter(|(name, _)| name == "set-cookie");
    cookies.map(|(_, cookie)| sent_back(cookie)).collect()
}

async fn sign_in(session: Session) -> Result<String> {
    session.update(VISITS, |visits| *visits += 1)?;
    session.sign_in("alice")?;
    Ok("signed in".to_owned())
}

/// A middleware between two layers that changes the session before and after the inner service runs.
async fn writes_in_axum(
    handle: SessionHandle,
    request: Request,
    next: axum::middleware::Next,
) -> Response {
    let session = handle.session().await.unwrap();
    session.update(SEEN, |seen| *seen += 1).unwrap();
    let response = next.run(request).await;
    session.update(SEEN, |seen| *seen += 1).unwrap();
    response
}

async fn writes_in_actix(
    handle: SessionHandle,
    request: ServiceRequest,
    next: Next<impl actix_web::body::MessageBody>,
) -> Result<ServiceResponse<impl actix_web::body::MessageBody>, actix_web::Error> {
    let session = handle.session().await?;
    session.update(SEEN, |seen| *seen += 1)?;
    let response = next.call(request).await?;
    session.update(SEEN, |seen| *seen += 1)?;
    Ok(response)
}

/// Sends a request with this cookie through the outer layer, the middleware that writes, and the inner
/// layer.
async fn axum_reply(outer: &Sessions, inner: &Sessions, cookie: &str) -> Reply {
    let inner = Router::new()
        .route("/", axum::routing::get(sign_in))
        .layer(SessionLayer::new(inner.clone()));
    let app = Router::new()
        .merge(inner)
        .layer(axum::middleware::from_fn(writes_in_axum))
        .layer(SessionLayer::new(outer.clone()));
    let request = Request::get("/").header("cookie", cookie).body(Body::empty()).unwrap();
    let response = app.oneshot(request).await.unwrap();
    let headers = response.headers().iter().map(|(name, value)| (name, value.as_bytes()));
    reply(response.status().as_u16(), headers)
}

async fn actix_reply(outer: &Sessions, inner: &Sessions, cookie: &str) -> Reply {
    let scope = web::scope("")
        .wrap(SessionMiddleware::new(inner.clone()))
        .route("/", web::get().to(sign_in));
    let app = App::new()
        .wrap(from_fn(writes_in_actix))
        .wrap(SessionMiddleware::new(outer.clone()))
        .service(scope);
    let service = test::init_service(app).await;
    let request = test::TestRequest::get().uri("/").insert_header(("cookie", cookie));
    let response = service.call(request.to_request()).await.unwrap();
    let headers = response.headers().iter().map(|(name, value)| (name, value.as_bytes()));
    reply(response.status().as_u16(), headers)
}

async fn both(outer: &Sessions, inner: &Sessions, cookie: &str) -> [(&'static str, Reply); 2] {
    [
        ("axum", axum_reply(outer, inner, cookie).await),
        ("actix", actix_reply(outer, inner, cookie).await),
    ]
}

async fn read(sessions: &Sessions, cookie: &str) -> (Option<String>, Option<u32>, Option<u32>) {
    let exchange = Exchange::begin(sessions, [cookie.to_owned()], None);
    let session = exchange.handle().session().await.unwrap();
    let principal = session.principal().map(|principal| principal.to_string());
    (principal, session.get(SEEN).unwrap(), session.get(VISITS).unwrap())
}

#[tokio::test]
async fn nested_layer_of_same_sessions_shares_session_of_outer_layer() {
    let stand = Backend::memory().stand();
    let sessions = sessions(&stand, "__Host-id");
    for (framework, reply) in both(&sessions, &sessions, "").await {
        let [cookie] = &cookies(&reply)[..] else { panic!("{framework}: {reply:?}") };
        let all = (Some("alice".to_owned()), Some(2), Some(1));
        assert_eq!((reply.0, read(&sessions, cookie).await), (200, all), "{framework}");
        let vary = reply.1.iter().filter(|(name, _)| name == "vary").count();
        assert_eq!(vary, 1, "{framework}: {reply:?}");
        // If the session exists, the two layers and the middleware together send one read and one
        // write.
        stand.spy.take();
        let again = match framework {
            "axum" => axum_reply(&sessions, &sessions, cookie).await,
            _ => actix_reply(&sessions, &sessions, cookie).await,
        };
        assert_eq!(stand.spy.verbs(), [Verb::Load, Verb::Replace], "{framework}");
        let newest = &cookies(&again)[0];
        assert_eq!(read(&sessions, newest).await, (Some("alice".to_owned()), Some(4), Some(2)));
    }
}

/// A third layer between the two, with a different cookie, makes no difference.
#[tokio::test]
async fn nested_layer_finds_same_sessions_beyond_intermediate_layer() {
    let stand = Backend::memory().stand();
    let (customers, admins) = (sessions(&stand, "__Host-id"), sessions(&stand, "__Host-admin"));
    let outer = Exchange::begin(&customers, [""], None);
    let middle = Exchange::begin(&admins, [""], Some(outer.handle()));
    let inner = Exchange::begin(&customers, [""], Some(middle.handle()));
    let session = inner.handle().session().await.unwrap();
    session.insert(SEEN, &1).unwrap();
    let admin = inner.handle().of(&admins).unwrap().session().await.unwrap();
    admin.insert(SEEN, &2).unwrap();
    let outermost = outer.handle().session().await.unwrap();
    assert_eq!(outermost.get(SEEN).unwrap(), Some(1));
    let mut sent = Vec::new();
    for exchange in [inner, middle, outer] {
        let reply = finish(exchange, 200).await;
        sent.push(reply.set_cookie.map(|cookie| cookie.split('=').next().unwrap().to_owned()));
    }
    assert_eq!(sent, [None, Some("__Host-admin".to_owned()), Some("__Host-id".to_owned())]);
}

/// Dropping an inner layer, for example because of a time limit between the two, does not discard the
/// outer layer's changes.
#[tokio::test]
async fn dropped_inner_exchange_keeps_changes_of_outer_exchange() {
    let stand = Backend::memory().stand();
    let sessions = sessions(&stand, "__Host-id");
    let outer = Exchange::begin(&sessions, [""], None);
    let inner = Exchange::begin(&sessions, [""], Some(outer.handle()));
    inner.handle().session().await.unwrap().insert(SEEN, &1).unwrap();
    drop(inner);
    let Finish::Pending(reply) = outer.finish(200) else { panic!("nothing to write") };
    let cookie = reply.await.set_cookie.unwrap();
    assert_eq!(read(&sessions, &sent_back(&cookie)).await.1, Some(1));
}

#[tokio::test]
async fn layers_with_different_cookie_names_keep_separate_sessions() {
    let stand = Backend::memory().stand();
    let (customers, admins) = (sessions(&stand, "__Host-id"), sessions(&stand, "__Host-admin"));
    for (framework, reply) in both(&customers, &admins, "").await {
        let names: Vec<_> = cookies(&reply)
            .iter()
            .map(|cookie| cookie.split('=').next().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["__Host-admin", "__Host-id"], "{framework}");
    }
}

/// An inner middleware that signs out or writes a value, and then fails in place of the handler.
async fn fails_in_actix(script: &'static str, sessions: &Sessions, cookie: &str) -> Reply {
    let fails =
        from_fn(move |handle: SessionHandle, _: ServiceRequest, _: Next<BoxBody>| async move {
            let session = handle.session().await?;
            match script {
                "sign-out" => session.sign_out(),
                _ => session.update(SEEN, |seen| *seen += 1)?,
            }
            Err::<ServiceResponse<BoxBody>, _>(actix_web::error::ErrorBadRequest("no"))
        });
    let app = App::new()
        .wrap(fails)
        .wrap(SessionMiddleware::new(sessions.clone()))
        .route("/", web::get().to(sign_in));
    let service = test::init_service(app).await;
    let request = test::TestRequest::get().uri("/").insert_header(("cookie", cookie));
    let error = service.call(request.to_request()).await.unwrap_err();
    let response = error.error_response();
    let headers = response.headers().iter().map(|(name, value)| (name, value.as_bytes()));
    reply(response.status().as_u16(), headers)
}

/// If an inner middleware returns an error, the error response gets the same headers as any other: the
/// removal of the cookie, and `Vary`.
#[tokio::test]
async fn error_of_inner_middleware_carries_what_session_adds() {
    let stand = Backend::memory().stand();
    let sessions = sessions(&stand, "__Host-id");
    for (script, removes, left) in [
        ("sign-out", true, (None, None, None)),
        ("write", false, (Some("alice".to_owned()), Some(1), Some(1))),
    ] {
        let first = axum_reply(&sessions, &sessions, "").await;
        let cookie = &cookies(&first)[0];
        let before = read(&sessions, cookie).await.1;
        let (status, headers) = fails_in_actix(script, &sessions, cookie).await;
        let has = |name: &str, value: &str| {
            headers.iter().any(|(is, has)| is == name && has.contains(value))
        };
        assert_eq!(status, 400, "{script}");
        assert_eq!(has("set-cookie", "Max-Age=0"), removes, "{script}: {headers:?}");
        assert!(has("vary", "cookie"), "{script}: {headers:?}");
        let (who, seen, visits) = read(&sessions, cookie).await;
        let written = seen.zip(before).map(|(seen, before)| seen - before);
        assert_eq!((who, written, visits), left, "{script}");
    }
}

/// Headers that a handler sends with its response.
const FIELDS: [(&str, &str); 9] = [
    ("set-cookie", "own=1"),
    ("access-control-allow-origin", "https://example.com"),
    ("x-request-id", "4711"),
    ("strict-transport-security", "max-age=63072000"),
    ("content-type", "application/json"),
    ("content-encoding", "identity"),
    ("etag", "\"1\""),
    ("cache-control", "public"),
    ("location", "/elsewhere"),
];

async fn answers_in_axum(session: Session) -> Result<Response> {
    session.insert(SEEN, &1)?;
    let mut response = "{}".into_response();
    for (name, value) in FIELDS {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    Ok(response)
}

async fn answers_in_actix(session: Session) -> Result<HttpResponse> {
    session.insert(SEEN, &1)?;
    let mut response = HttpResponse::Ok();
    for field in FIELDS {
        response.insert_header(field);
    }
    Ok(response.body("{}"))
}

#[tokio::test]
async fn replaced_response_keeps_headers_unrelated_to_its_body() {
    let stand = Backend::memory().stand();
    stand.store.fail_always(Verb::Create, Fault::Unavailable);
    let sessions = stand.sessions;
    let axum = Router::new()
        .route("/", axum::routing::get(answers_in_axum))
        .layer(SessionLayer::new(sessions.clone()));
    let response = axum.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
    let headers = response.headers().iter().map(|(name, value)| (name, value.as_bytes()));
    let on_axum = reply(response.status().as_u16(), headers);
    let actix = App::new()
        .wrap(SessionMiddleware::new(sessions))
        .route("/", web::get().to(answers_in_actix));
    let service = test::init_service(actix).await;
    let request = test::TestRequest::get().uri("/").to_request();
    let response = service.call(request).await.unwrap();
    let headers = response.headers().iter().map(|(name, value)| (name, value.as_bytes()));
    let on_actix = reply(response.status().as_u16(), headers);
    for (status, mut headers) in [on_axum, on_actix] {
        assert_eq!(status, 503);
        headers.retain(|(name, _)| name != "content-length");
        headers.sort();
        let headers: Vec<_> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let expected = [
            ("access-control-allow-origin", "https://example.com"),
            ("cache-control", "no-store"),
            ("content-type", "text/plain; charset=utf-8"),
            ("retry-after", "1"),
            ("set-cookie", "own=1"),
            ("strict-transport-security", "max-age=63072000"),
            ("vary", "cookie"),
            ("x-request-id", "4711"),
        ];
        assert_eq!(headers, expected);
    }
    let mut sorted = REPLACED_FIELDS;
    sorted.sort_unstable();
    assert_eq!(REPLACED_FIELDS, sorted, "in alphabetical order, in lower case");
}

/// The layer works with any body type that can be made from bytes; this test uses `Vec<u8>`.
#[tokio::test]
async fn tower_layer_keeps_body_type_of_inner_service() {
    for (fails, expected) in
        [(false, "the handler's"), (true, "This is temporarily unavailable. Please try again.")]
    {
        let stand = Backend::memory().stand();
        if fails {
            stand.store.fail_always(Verb::Create, Fault::Unavailable);
        }
        let inner = tower::service_fn(async |request: Request| {
            let handle = request.extensions().get::<SessionHandle>().unwrap().clone();
            handle.session().await?.insert(SEEN, &1)?;
            Ok::<_, unsticky::Error>(axum::http::Response::new(b"the handler's".to_vec()))
        });
        let service = SessionLayer::new(stand.sessions).layer(inner);
        let request = Request::get("/").body(Body::empty()).unwrap();
        let response: axum::http::Response<Vec<u8>> = service.oneshot(request).await.unwrap();
        assert_eq!(std::str::from_utf8(response.body()).unwrap(), expected);
    }
}

/// An inner time limit cancels the handler. Its incomplete changes are dropped, in both frameworks.
#[tokio::test]
async fn timed_out_or_failed_request_commits_only_sign_out() {
    let stand = Backend::memory().stand();
    let sessions = sessions(&stand, "__Host-id");
    for (status, keeps) in [(408, false), (500, false), (599, false), (404, true), (409, true)] {
        let exchange = Exchange::begin(&sessions, [""], None);
        let session = exchange.handle().session().await.unwrap();
        session.sign_in("alice").unwrap();
        let reply = finish(exchange, status).await;
        assert_eq!(reply.set_cookie.is_some(), keeps, "{status}");
    }
    // A change that must be kept even if the request fails can be committed early, here with
    // `transact`.
    let exchange = Exchange::begin(&sessions, [""], None);
    let session = exchange.handle().session().await.unwrap();
    session.transact(|values| values.insert(SEEN, &1)).await.unwrap();
    session.sign_in("alice").unwrap();
    let Finish::Ready(reply) = exchange.finish(408) else { panic!("nothing to write") };
    let cookie = reply.set_cookie.unwrap();
    let cookie = sent_back(&cookie);
    assert_eq!(read(&sessions, &cookie).await, (None, Some(1), None));
    let exchange = Exchange::begin(&sessions, [cookie.to_owned()], None);
    exchange.handle().session().await.unwrap().sign_out();
    let Finish::Pending(reply) = exchange.finish(408) else {
        panic!("the sign-out is not committed")
    };
    assert!(reply.await.set_cookie.unwrap().contains("Max-Age=0"));
}
