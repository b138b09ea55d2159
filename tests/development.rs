//! Development over plain HTTP: the cookie's name and its `Secure` attribute can be chosen, several
//! applications can share a host, and a warning is logged if browsers would drop the cookie.

#![cfg(all(
    feature = "testing",
    feature = "memory",
    feature = "axum",
    feature = "actix",
    feature = "tracing"
))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex};

use support::app::{Gates, Reply, both, both_with};
use support::stand::{Backend, Stand};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use unsticky::store::MemoryStore;
use unsticky::{ConfigError, Cookie, SameSite, Sessions};

/// The cookies that a browser holds for one host. They are the same for all ports.
#[derive(Default)]
struct Jar(BTreeMap<String, String>);

impl Jar {
    fn keep(&mut self, reply: &Reply) {
        for cookie in reply.cookies() {
            let (name, value) = cookie.split(';').next().unwrap().split_once('=').unwrap();
            match value {
                "" => drop(self.0.remove(name)),
                value => drop(self.0.insert(name.to_owned(), value.to_owned())),
            }
        }
    }

    fn header(&self) -> String {
        let pairs: Vec<_> = self.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        pairs.join("; ")
    }
}

fn named(stand: &Stand, name: &'static str) -> Sessions {
    stand.process(|builder| builder.cookie(Cookie::new(name).insecure()))
}

#[tokio::test]
async fn two_layers_in_one_application_get_different_cookie_names() {
    let stand = Backend::memory().stand();
    let layers = [named(&stand, "shop"), named(&stand, "admin")];
    for app in both_with(&layers, Gates::default()).await {
        let reply = app.get("/both", "").await;
        let mut jar = Jar::default();
        jar.keep(&reply);
        assert_eq!(jar.0.keys().collect::<Vec<_>>(), ["admin", "shop"], "{}", app.framework);
        for cookie in reply.cookies() {
            assert!(cookie.contains("; Path=/; HttpOnly; SameSite=Lax; Max-Age="), "{cookie}");
        }
        assert_eq!(app.run("who", &jar.header()).await.body, "alice");
        jar.keep(&app.run("sign-out", &jar.header()).await);
        assert_eq!(jar.0.keys().collect::<Vec<_>>(), ["admin"]);
    }
}

#[tokio::test]
async fn applications_on_one_host_keep_separate_sign_ins() {
    // The applications share one store, or each has its own.
    let (one, other) = (Backend::memory().stand(), Backend::memory().stand());
    for other in [&one, &other] {
        let (shop, blog) = (named(&one, "shop"), named(other, "blog"));
        for (shop, blog) in both(&shop).await.into_iter().zip(both(&blog).await) {
            let mut jar = Jar::default();
            jar.keep(&shop.run("sign-in:alice", &jar.header()).await);
            jar.keep(&blog.run("sign-in:bob", &jar.header()).await);
            assert_eq!(shop.run("who", &jar.header()).await.body, "alice");
            assert_eq!(blog.run("who", &jar.header()).await.body, "bob");
            jar.keep(&blog.run("sign-out", &jar.header()).await);
            assert_eq!(shop.run("who", &jar.header()).await.body, "alice");
            assert_eq!(blog.run("who", &jar.header()).await.body, "-");
        }
    }
}

#[test]
fn insecure_cookie_that_browsers_reject_is_refused_at_build() {
    let stand = Backend::memory().stand();
    for cookie in [
        Cookie::default().insecure(),
        Cookie::new("__Secure-shop").insecure(),
        Cookie::new("__host-shop").insecure(),
        Cookie::new("shop").insecure().same_site(SameSite::None),
        Cookie::new("shop").partitioned().insecure(),
    ] {
        let built = Sessions::builder(stand.store.clone()).cookie(cookie.clone()).build();
        assert!(matches!(built, Err(ConfigError::Cookie(_))), "{cookie:?}");
    }
}

/// Routes that sign in, sign out and read, in both frameworks.
mod applications {
    use actix_web::http::header::HeaderValue as ActixValue;
    use actix_web::{App as ActixApp, test, web};
    use axum::Router;
    use axum::body::Body;
    use axum::http::{HeaderValue, Request};
    use axum::routing::get;
    use tower::ServiceExt as _;
    use unsticky::actix::SessionMiddleware;
    use unsticky::tower::SessionLayer;
    use unsticky::{Result, Session};

    use super::*;

    async fn sign_in(session: Session) -> Result<&'static str> {
        session.sign_in("alice")?;
        Ok("in")
    }

    async fn sign_out(session: Session) -> &'static str {
        session.sign_out();
        "out"
    }

    async fn read(session: Session) -> String {
        session.is_signed_in().to_string()
    }

    pub(crate) async fn in_axum(
        sessions: &Sessions,
        path: &str,
        cookie: &str,
        [origin, host]: [&[u8]; 2],
    ) -> String {
        let app: Router = Router::new()
            .route("/in", get(sign_in))
            .route("/out", get(sign_out))
            .route("/read", get(read))
            .layer(SessionLayer::new(sessions.clone()));
        let request = Request::get(path)
            .header("cookie", cookie)
            .header("host", HeaderValue::from_bytes(host).unwrap())
            .header("origin", HeaderValue::from_bytes(origin).unwrap());
        let response = app.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        let cookie = response.headers().get("set-cookie");
        cookie.map_or("", |cookie| cookie.to_str().unwrap()).to_owned()
    }

    pub(crate) async fn in_actix(
        sessions: &Sessions,
        path: &str,
        cookie: &str,
        [origin, host]: [&[u8]; 2],
    ) -> String {
        let app = ActixApp::new()
            .wrap(SessionMiddleware::new(sessions.clone()))
            .route("/in", web::get().to(sign_in))
            .route("/out", web::get().to(sign_out))
            .route("/read", web::get().to(read));
        let app = test::init_service(app).await;
        let request = test::TestRequest::get()
            .uri(path)
            .insert_header(("cookie", cookie))
            .insert_header(("host", ActixValue::from_bytes(host).unwrap()))
            .insert_header(("origin", ActixValue::from_bytes(origin).unwrap()));
        let response = test::call_service(&app, request.to_request()).await;
        assert_eq!(response.status(), 200);
        let cookie = response.headers().get("set-cookie");
        cookie.map_or("", |cookie| cookie.to_str().unwrap()).to_owned()
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Framework {
    Axum,
    Actix,
}

/// Sends a same-site request with this origin. Returns the response's `Set-Cookie` header.
async fn ask(on: Framework, at: &Sessions, path: &str, cookie: &str, origin: &[u8]) -> String {
    let host = origin.splitn(3, |byte| *byte == b'/').nth(2).unwrap_or_default();
    ask_host(on, at, path, cookie, [origin, host]).await
}

async fn ask_host(
    on: Framework,
    at: &Sessions,
    path: &str,
    cookie: &str,
    origin_and_host: [&[u8]; 2],
) -> String {
    match on {
        Framework::Axum => applications::in_axum(at, path, cookie, origin_and_host).await,
        Framework::Actix => applications::in_actix(at, path, cookie, origin_and_host).await,
    }
}

/// Returns sessions with a cookie name that no other test uses.
fn with_own_name(cookie: impl Fn(String) -> Cookie) -> (Sessions, String) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("cookie-{}", COUNT.fetch_add(1, Ordering::Relaxed));
    LazyLock::force(&LISTENING);
    let builder = Sessions::builder(MemoryStore::new()).cookie(cookie(name.clone()));
    (builder.build().unwrap(), name)
}

const ELSEWHERE: &[u8] = b"http://shop.test:3000";

#[tokio::test]
async fn secure_cookie_on_plain_http_is_reported_once_with_fix() {
    for on in [Framework::Axum, Framework::Actix] {
        let (sessions, name) = with_own_name(Cookie::new);
        for _ in 0..3 {
            assert!(ask(on, &sessions, "/in", "", ELSEWHERE).await.contains("; Secure;"));
        }
        let told = told(&name);
        assert_eq!(told.len(), 1, "{on:?}: {told:?}");
        assert!(told[0].starts_with("WARN ") && told[0].contains(".insecure()"), "{told:?}");
        // Other sessions belong to a different application or layer, so they have their own warning.
        let (others, other_name) = with_own_name(Cookie::new);
        ask(on, &others, "/in", "", b"http://192.168.1.5:3000").await;
        assert_eq!(self::told(&other_name).len(), 1);
    }
}

#[tokio::test]
async fn nothing_is_reported_if_browsers_accept_cookie() {
    for on in [Framework::Axum, Framework::Actix] {
        let (sessions, name) = with_own_name(Cookie::new);
        for origin in [
            "http://localhost:3000",
            "http://app.localhost",
            "http://127.0.0.1:3000",
            "http://127.0.0.2",
            "http://[::1]:3000",
            "https://shop.test",
            "https://192.168.1.5:3000",
            "null",
            "",
            "http://",
            "http://a b",
            "shop.test",
        ] {
            ask(on, &sessions, "/in", "", origin.as_bytes()).await;
            assert!(told(&name).is_empty(), "{on:?} {origin}");
        }
        ask(on, &sessions, "/in", "", b"http://shop\xff.test").await;
        assert!(told(&name).is_empty(), "{on:?}");
        // A request from another site's page proves nothing about this site, which may use HTTPS.
        for host in [&b"shop.example"[..], b"shop.test", b"shop.test:300", b""] {
            ask_host(on, &sessions, "/in", "", [ELSEWHERE, host]).await;
            assert!(told(&name).is_empty(), "{on:?}");
        }
        let (insecure, insecure_name) = with_own_name(|name| Cookie::new(name).insecure());
        ask(on, &insecure, "/in", "", ELSEWHERE).await;
        assert!(told(&insecure_name).is_empty(), "{on:?}");
        // None of these requests has used up the single warning.
        ask(on, &sessions, "/in", "", ELSEWHERE).await;
        assert_eq!(told(&name).len(), 1, "{on:?}");
    }
}

#[tokio::test]
async fn nothing_is_reported_if_no_token_is_sent() {
    for on in [Framework::Axum, Framework::Actix] {
        let (sessions, name) = with_own_name(Cookie::new);
        let cookie = ask(on, &sessions, "/in", "", b"null").await;
        let cookie = cookie.split(';').next().unwrap();
        assert_eq!(ask(on, &sessions, "/read", cookie, ELSEWHERE).await, "");
        assert!(ask(on, &sessions, "/out", cookie, ELSEWHERE).await.contains("Max-Age=0"));
        assert!(told(&name).is_empty(), "{on:?}");
        ask(on, &sessions, "/in", "", ELSEWHERE).await;
        assert_eq!(told(&name).len(), 1, "{on:?}");
    }
}

/// The warnings. Each has the cookie's name, and the level and message.
static EVENTS: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// The subscriber serves the whole process. Tests that run at the same time recognise their own events by the
/// cookie's name.
static LISTENING: LazyLock<()> = LazyLock::new(|| {
    let subscriber = tracing_subscriber::registry().with(Listener);
    tracing::subscriber::set_global_default(subscriber).unwrap();
});

/// Returns the warnings about the cookie with this name.
fn told(name: &str) -> Vec<String> {
    let events = EVENTS.lock().unwrap();
    let of_name = events.iter().filter(|(cookie, _)| cookie == name);
    of_name.map(|(_, message)| message.clone()).collect()
}

struct Listener;

#[derive(Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Listener {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let field = |name| fields.0.get(name).map_or("", |value| value.trim_matches('"'));
        if field("event") == "secure_cookie_on_plain_http" {
            let message = format!("{} {}", event.metadata().level(), field("message"));
            EVENTS.lock().unwrap().push((field("name").to_owned(), message));
        }
    }
}
