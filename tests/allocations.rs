//! The exact number of allocations for each kind of request. The tests fail if a number falls as well as if
//! it rises, so that the tables stay accurate.

#![cfg(all(feature = "testing", feature = "memory", feature = "axum", feature = "actix"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

#[path = "../benches/sessions/canned.rs"]
#[allow(unreachable_pub, reason = "the benchmarks use it too")]
mod canned;
#[path = "../benches/sessions/request.rs"]
#[allow(dead_code, unreachable_pub, reason = "the benchmarks use more of it")]
mod request;

use actix_web::dev::Service as _;
use actix_web::{App, web};
use allocation_counter::measure;
use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use futures_util::FutureExt as _;
use tower::ServiceExt as _;
use unsticky::actix::{GuardMiddleware, SessionMiddleware};
use unsticky::exchange::{Exchange, Finish};
use unsticky::tower::{GuardLayer, SessionLayer};
use unsticky::{DirectoryMode, Guard, Session, Sessions};

use canned::canned;
use request::{increment, read, request, sign_out};

/// Requests without a framework, on a store that answers immediately. The first number is with the directory
/// off, and the second with the directory on.
const REQUESTS: &[(&str, [u64; 2])] = &[
    ("no cookie", [1, 1]),
    ("cookie, unused", [1, 1]),
    ("no cookie, session asked for", [2, 2]),
    ("read", [9, 9]),
    ("increment", [23, 23]),
    ("sign-in", [16, 31]),
    ("re-sign-in", [22, 37]),
    ("sign-out", [18, 18]),
];

/// The allocations that a session layer adds to a route that does not use the session: in axum, compared with
/// a layer that does nothing, and in actix-web.
const LAYERS: &[(&str, [u64; 2])] = &[("no cookie", [3, 2]), ("cookie, unused", [3, 2])];

/// The allocations that a guard adds to a route that uses the session, if the guard admits the request: in
/// axum, compared with a layer that does nothing, and in actix-web.
const GUARDS: &[(&str, [u64; 2])] = &[("same origin", [0, 1]), ("signed in", [1, 1])];

const OTHER_COOKIES: &[u8] = b"theme=dark; lang=en";

/// Counts the allocations of work that never waits. The first runs fill caches and are not counted.
fn allocations(mut work: impl FnMut()) -> u64 {
    (0..3).for_each(|_| work());
    measure(work).count_total
}

/// Counts the allocations for a request of this kind.
fn of_request(kind: &str, sessions: &Sessions, cookie: &Bytes) -> u64 {
    let other = Bytes::from_static(OTHER_COOKIES);
    let sign_in = async |session: Session| session.sign_in("account-4711");
    allocations(|| match kind {
        "no cookie" | "cookie, unused" => {
            let cookie = if kind == "no cookie" { &other } else { cookie };
            let exchange = Exchange::begin(sessions, [cookie.clone()], None);
            let handle = exchange.handle();
            assert!(matches!(exchange.finish(200), Finish::Ready(reply) if reply.is_empty()));
            drop(handle);
        }
        "no cookie, session asked for" => {
            let unused = request(sessions, &other, async |_| Ok(()));
            assert!(unused.now_or_never().unwrap().is_none());
        }
        "read" => read(sessions, cookie).now_or_never().unwrap(),
        "increment" => increment(sessions, cookie).now_or_never().unwrap(),
        "sign-in" => drop(request(sessions, &other, sign_in).now_or_never().unwrap().unwrap()),
        "re-sign-in" => drop(request(sessions, cookie, sign_in).now_or_never().unwrap().unwrap()),
        "sign-out" => sign_out(sessions, cookie).now_or_never().unwrap(),
        _ => panic!("there is no {kind}"),
    })
}

#[test]
fn each_kind_of_request_costs_its_allocations() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stands = [DirectoryMode::Off, DirectoryMode::Listed];
    let stands = stands.map(|mode| runtime.block_on(canned(mode)));
    let _within = runtime.enter();
    let counted = REQUESTS.iter().map(|(kind, _)| {
        let counts = stands.each_ref().map(|(sessions, cookie)| of_request(kind, sessions, cookie));
        (*kind, counts)
    });
    assert_eq!(counted.collect::<Vec<_>>(), REQUESTS);
}

fn in_axum(app: &Router, cookie: &Bytes) -> u64 {
    let request = || {
        let cookie = axum::http::HeaderValue::from_maybe_shared(cookie.clone()).unwrap();
        let request = axum::http::Request::post("/").header("sec-fetch-site", "same-origin");
        request.header("cookie", cookie).body(Body::empty()).unwrap()
    };
    // A server does this once. Without this call, the layers would be built again for each request.
    let app = app.clone().with_state::<()>(());
    let mut prepared: Vec<_> = (0..4).map(|_| (app.clone(), request())).collect();
    allocations(|| {
        let (app, request) = prepared.pop().unwrap();
        let response = app.oneshot(request).now_or_never().unwrap().unwrap();
        assert_eq!(response.status(), 200);
    })
}

/// Counts the allocations for a request to an actix-web application. This is a macro because the
/// application's type contains its middlewares.
macro_rules! in_actix {
    ($app:expr, $handler:expr, $cookie:expr) => {{
        let app = actix_web::test::init_service($app.route("/", web::post().to($handler))).await;
        let request = || {
            let value = actix_web::http::header::HeaderValue::from_maybe_shared($cookie.clone());
            let request = actix_web::test::TestRequest::post();
            let request = request.insert_header(("sec-fetch-site", "same-origin"));
            request.insert_header(("cookie", value.unwrap())).to_request()
        };
        let mut prepared: Vec<_> = (0..4).map(|_| request()).collect();
        allocations(|| {
            let response = app.call(prepared.pop().unwrap()).now_or_never().unwrap().unwrap();
            assert_eq!(response.status(), 200);
        })
    }};
}

#[tokio::test]
async fn request_without_session_use_costs_layer_allocations_only() {
    let (sessions, cookie) = canned(DirectoryMode::Off).await;
    let mut counted = Vec::new();
    for (kind, _) in LAYERS {
        let other = Bytes::from_static(OTHER_COOKIES);
        let cookie = if *kind == "no cookie" { &other } else { &cookie };
        let route = || Router::new().route("/", axum::routing::post(async || ""));
        let nothing = tower::util::MapRequestLayer::new(|request: axum::extract::Request| request);
        let without = in_axum(&route().layer(nothing), cookie);
        let axum = in_axum(&route().layer(SessionLayer::new(sessions.clone())), cookie) - without;
        let without = in_actix!(App::new(), async || "", cookie);
        let app = App::new().wrap(SessionMiddleware::new(sessions.clone()));
        counted.push((*kind, [axum, in_actix!(app, async || "", cookie) - without]));
    }
    assert_eq!(counted, LAYERS);
}

#[tokio::test]
async fn guard_that_lets_request_pass_costs_its_allocations() {
    let (sessions, cookie) = canned(DirectoryMode::Off).await;
    let takes_session = async |_: Session| "";
    let route = || Router::new().route("/", axum::routing::post(takes_session));
    let layer = SessionLayer::new(sessions.clone());
    let middleware = || SessionMiddleware::new(sessions.clone());
    let mut counted = Vec::new();
    for (kind, guard) in [("same origin", Guard::same_origin()), ("signed in", Guard::signed_in())]
    {
        let nothing = tower::util::MapRequestLayer::new(|request: axum::extract::Request| request);
        let without = in_axum(&route().layer(nothing).layer(layer.clone()), &cookie);
        let guarded = route().layer(GuardLayer::new(guard.clone())).layer(layer.clone());
        let axum = in_axum(&guarded, &cookie) - without;
        let without = in_actix!(App::new().wrap(middleware()), takes_session, &cookie);
        let guarded = App::new().wrap(GuardMiddleware::new(guard)).wrap(middleware());
        counted.push((kind, [axum, in_actix!(guarded, takes_session, &cookie) - without]));
    }
    assert_eq!(counted, GUARDS);
}
