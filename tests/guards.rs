//! Groups of routes behind a guard, and the equivalent extractors: one table of scenarios for both
//! frameworks.

#![cfg(all(feature = "testing", feature = "memory", feature = "axum", feature = "actix"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::time::Duration;

use actix_web::web;
use axum::Router;
use axum::routing::any;
use support::app::{App, Ask, Reply, both_of};
use support::stand::{Backend, Stand};
use unsticky::actix::GuardMiddleware;
use unsticky::testing::{Fault, Verb};
use unsticky::tower::GuardLayer;
use unsticky::{
    AuthenticatedWithin, ConfigError, Guard, Key, Maybe, Next, Result, Session, Sessions, SignedIn,
};

use Verb::Load;

const ROLE: Key<String> = Key::new("role");
const TEN_MINUTES: Duration = Duration::from_secs(600);

type Headers = &'static [(&'static str, &'static str)];

const NAVIGATION: Headers = &[("sec-fetch-mode", "navigate"), ("accept", "text/html,*/*;q=0.8")];
const FETCH: Headers = &[("sec-fetch-mode", "cors"), ("accept", "*/*")];
const OLD_BROWSER: Headers = &[("accept", "text/html,application/xhtml+xml")];
const JSON: Headers = &[("accept", "application/json")];
const NOTHING_SAID: Headers = &[];
const WEBSOCKET: Headers = &[
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-fetch-mode", "websocket"),
];

async fn welcome(user: SignedIn) -> String {
    format!("welcome {}", user.principal)
}

async fn confirmed(user: AuthenticatedWithin<600>) -> String {
    format!("welcome {}", user.principal)
}

async fn sign_in(next: Next) -> String {
    format!("{} then {}", next.page("/sign-in"), next.or("/home"))
}

async fn open() -> &'static str {
    "done"
}

fn is_staff(user: &SignedIn) -> Result<bool> {
    Ok(user.session.get(ROLE)?.as_deref() == Some("staff"))
}

/// The guards and the paths that they protect.
fn guards() -> Vec<(&'static str, Guard)> {
    let stale = || Guard::authenticated_within(TEN_MINUTES);
    vec![
        ("/guard", Guard::signed_in()),
        ("/guard/danger", stale()),
        (
            "/own",
            stale().sign_in_page("/own-sign-in").unwrap().step_up_page("/own-confirm").unwrap(),
        ),
        ("/own-sign-in", Guard::signed_in().sign_in_page("/own-sign-in?way=code").unwrap()),
        ("/elsewhere", Guard::signed_in().sign_in_page("https://login.example/?a").unwrap()),
        ("/told", Guard::signed_in().sign_in_page("/sign-in?next=/told-before").unwrap()),
        ("/staff", Guard::signed_in().permit(is_staff)),
        ("/both", Guard::signed_in().and_same_origin()),
        (
            "/boss",
            Guard::signed_in().permit(is_staff).permit(|user| Ok(&*user.principal == "boss")),
        ),
    ]
}

fn same_origin() -> Guard {
    Guard::same_origin().trust("https://login.example").unwrap()
}

/// Returns the same routes in both frameworks. Some are in nested scopes, with the guard on the inner
/// or the outer one.
async fn apps(layers: &[Sessions]) -> [App; 2] {
    let guard = || Guard::signed_in();
    let inside = Router::new()
        .route("/page", any(welcome))
        .route_layer(GuardLayer::new(guard()))
        .route("/extract", any(welcome));
    let around = Router::new().nest("/a", Router::new().route("/page", any(welcome)));
    let mut router = Router::new()
        .route("/sign-in", any(sign_in))
        .route("/extract", any(welcome))
        .route("/extract/danger", any(confirmed))
        .route("/same-origin", any(open).layer(GuardLayer::new(same_origin())))
        .nest("/nest/inside", inside)
        .merge(Router::new().nest("/nest/around", around).route_layer(GuardLayer::new(guard())))
        .nest(
            "/any",
            Router::new().fallback(async || "found").layer(GuardLayer::new(Guard::signed_in())),
        );
    for (path, guard) in guards() {
        let routes = Router::new().route(path, any(welcome));
        router = router.merge(routes.route_layer(GuardLayer::new(guard)));
    }
    let routes = |config: &mut web::ServiceConfig| {
        for (path, guard) in guards() {
            let resource = web::resource(path).wrap(GuardMiddleware::new(guard));
            config.service(resource.to(welcome));
        }
        let inside = web::scope("/inside")
            .service(web::resource("/page").wrap(GuardMiddleware::new(guard())).to(welcome))
            .route("/extract", web::route().to(welcome));
        let around = web::scope("/around")
            .wrap(GuardMiddleware::new(guard()))
            .service(web::scope("/a").route("/page", web::route().to(welcome)));
        config
            .route("/sign-in", web::route().to(sign_in))
            .route("/extract", web::route().to(welcome))
            .route("/extract/danger", web::route().to(confirmed))
            .service(
                web::resource("/same-origin").wrap(GuardMiddleware::new(same_origin())).to(open),
            )
            .service(web::scope("/nest").service(inside).service(around))
            .service(
                web::scope("/any")
                    .wrap(GuardMiddleware::new(guard()))
                    .default_service(web::route().to(async || "found")),
            );
    };
    both_of(router, routes, layers).await
}

#[derive(Debug, Clone, Copy)]
enum Visitor {
    Nobody,
    /// Signed in a moment ago.
    Alice,
    /// Signed in more than ten minutes ago.
    Stale,
}

use Visitor::{Alice, Nobody, Stale};

/// Returns a stand with sign-in and step-up pages, and the cookies of Alice and of Stale.
async fn stand() -> (Stand, String, String) {
    let stand = Backend::memory()
        .stand_with(|builder| builder.sign_in_page("/sign-in").step_up_page("/confirm?again"));
    let stale = stand.signed_in("stale").await;
    stand.clock.advance(TEN_MINUTES + Duration::from_millis(1));
    // Extends Stale's idle timeout now, so that no later request has to send a command for it.
    stand.visit(&stale, async |session: Session| session.get(ROLE)).await.ok();
    let alice = stand.signed_in("alice").await;
    stand.spy.take();
    (stand, alice, stale)
}

async fn ask(app: &App, method: &str, path: &str, headers: Headers, cookie: &str) -> Reply {
    let with = |ask: Ask, (name, value): &(&str, &str)| ask.header(name, value);
    app.ask(headers.iter().fold(Ask::new(method, path).cookie(cookie), with)).await
}

/// Returns the field names in the `Vary` header, sorted.
fn vary(reply: &Reply) -> String {
    let mut fields = reply.all("vary");
    fields.sort_unstable();
    fields.join(" + ")
}

type Row = (&'static str, Visitor, &'static str, &'static str, Headers, u16, Option<&'static str>);

/// Columns: description, visitor, method, target below `/guard` and `/extract`, header fields, status,
/// `Location`.
const TABLE: &[Row] = &[
    ("signed in passes", Alice, "GET", "", NAVIGATION, 200, None),
    ("signed in passes with a form", Alice, "POST", "?a", NAVIGATION, 200, None),
    ("signed in passes as data", Alice, "GET", "", FETCH, 200, None),
    ("recently authenticated passes", Alice, "GET", "/danger", NAVIGATION, 200, None),
    ("stale is still signed in", Stale, "GET", "", NAVIGATION, 200, None),
    ("page GET is sent with next", Nobody, "GET", "", NAVIGATION, 303, Some("/sign-in?next=@")),
    (
        "query is kept",
        Nobody,
        "GET",
        "?page=2&q=a%20b+c",
        NAVIGATION,
        303,
        Some("/sign-in?next=@%3Fpage%3D2%26q%3Da%2520b%2Bc"),
    ),
    ("HEAD is sent with next", Nobody, "HEAD", "", NAVIGATION, 303, Some("/sign-in?next=@")),
    ("POST is sent without next", Nobody, "POST", "", NAVIGATION, 303, Some("/sign-in")),
    ("fetch gets 401", Nobody, "GET", "", FETCH, 401, None),
    ("API under the same configuration gets 401", Nobody, "GET", "", JSON, 401, None),
    ("API that posts gets 401", Nobody, "POST", "", JSON, 401, None),
    ("old browser is sent", Nobody, "GET", "", OLD_BROWSER, 303, Some("/sign-in?next=@")),
    ("nothing said gets 401", Nobody, "GET", "", NOTHING_SAID, 401, None),
    ("WebSocket handshake gets 401", Nobody, "GET", "", WEBSOCKET, 401, None),
    (
        "nobody is sent to the sign-in page",
        Nobody,
        "GET",
        "/danger",
        NAVIGATION,
        303,
        Some("/sign-in?next=@/danger"),
    ),
    (
        "stale is sent to the step-up page",
        Stale,
        "GET",
        "/danger?a=1",
        NAVIGATION,
        303,
        Some("/confirm?again&next=@/danger%3Fa%3D1"),
    ),
    ("stale POST is sent", Stale, "POST", "/danger", NAVIGATION, 303, Some("/confirm?again")),
    ("stale fetch gets 401", Stale, "GET", "/danger", FETCH, 401, None),
];

#[tokio::test]
async fn guards_and_extractors_match_scenario_table() {
    let (stand, alice, stale) = stand().await;
    for app in apps(std::slice::from_ref(&stand.sessions)).await {
        for (row, visitor, method, target, headers, status, location) in TABLE.iter().copied() {
            for area in ["/guard", "/extract"] {
                let row = format!("{} {row} at {area}", app.framework);
                let (cookie, commands, reason) = match visitor {
                    Nobody => ("", vec![], "Please sign in."),
                    Alice => (&*alice, vec![Load], "welcome alice"),
                    Stale if status == 200 => (&*stale, vec![Load], "welcome stale"),
                    Stale => (&*stale, vec![Load], "Please confirm your identity."),
                };
                let reply = ask(&app, method, &format!("{area}{target}"), headers, cookie).await;
                assert_eq!(stand.taken_verbs(), commands, "{row}");
                let location = location.map(|location| location.replace('@', area));
                assert_eq!(reply.status, status, "{row}: {reply:?}");
                assert_eq!(reply.all("location").pop(), location.as_deref(), "{row}");
                if method != "HEAD" {
                    assert_eq!(reply.body, reason, "{row}");
                }
                let (varies, cached) = match status {
                    200 => ("cookie", vec![]),
                    _ => ("cookie + sec-fetch-mode, accept", vec!["no-store"]),
                };
                assert_eq!((vary(&reply), reply.all("cache-control")), (varies.to_owned(), cached));
                assert_eq!(reply.cookies(), [""; 0], "{row}");
            }
        }
    }
}

#[tokio::test]
async fn guard_on_nested_router_uses_full_request_path() {
    let (stand, ..) = stand().await;
    for app in apps(std::slice::from_ref(&stand.sessions)).await {
        for path in ["/nest/inside/page", "/nest/inside/extract", "/nest/around/a/page"] {
            let reply = ask(&app, "GET", &format!("{path}?a"), NAVIGATION, "").await;
            let location = format!("/sign-in?next={path}%3Fa");
            assert_eq!(reply.all("location"), [location], "{} {path}", app.framework);
        }
    }
}

/// The client chooses the target, so it becomes `next` only if it is a short, unambiguous path on this
/// site.
#[tokio::test]
async fn ambiguous_or_long_target_is_sent_without_next() {
    let (stand, ..) = stand().await;
    let long = format!("/any/{}", "a".repeat(1024));
    for app in apps(std::slice::from_ref(&stand.sessions)).await {
        for (target, location) in [
            ("/any/ok", "/sign-in?next=/any/ok"),
            ("/any//evil.example", "/sign-in"),
            ("/any/%2e%2e//evil.example", "/sign-in"),
            ("/any/%0d%0aa", "/sign-in"),
            (&long, "/sign-in"),
        ] {
            let reply = ask(&app, "GET", target, NAVIGATION, "").await;
            assert_eq!(reply.all("location"), [location], "{} {target}", app.framework);
        }
    }
}

#[tokio::test]
async fn guard_pages_override_configured_pages() {
    let (stand, _, stale) = stand().await;
    for app in apps(std::slice::from_ref(&stand.sessions)).await {
        for (path, cookie, status, location) in [
            ("/own", "", 303, Some("/own-sign-in?next=/own")),
            ("/own", &*stale, 303, Some("/own-confirm?next=/own")),
            // A page on another site does not receive the path that the visitor came from.
            ("/elsewhere", "", 303, Some("https://login.example/?a")),
            // A `next` parameter set by the application is kept.
            ("/told", "", 303, Some("/sign-in?next=/told-before")),
            // If the sign-in page is behind its own guard, `next` would send the browser round in
            // circles.
            ("/own-sign-in?way=code&next=/own", "", 401, None),
        ] {
            let reply = ask(&app, "GET", path, NAVIGATION, cookie).await;
            assert_eq!((reply.status, reply.all("location").pop()), (status, location), "{path}");
        }
    }
    assert_eq!(Guard::signed_in().sign_in_page("").unwrap_err(), ConfigError::Page);
    assert_eq!(Guard::signed_in().step_up_page("/a\r\nb").unwrap_err(), ConfigError::Page);
}

#[tokio::test]
async fn stale_sign_in_is_redirected_to_sign_in_page_if_no_step_up_page_is_configured() {
    for page in [None, Some("/sign-in")] {
        let stand = Backend::memory().stand_with(|builder| match page {
            Some(page) => builder.sign_in_page(page),
            None => builder,
        });
        let alice = stand.signed_in("alice").await;
        stand.clock.advance(2 * TEN_MINUTES);
        for app in apps(std::slice::from_ref(&stand.sessions)).await {
            let reply = ask(&app, "GET", "/guard/danger", NAVIGATION, &alice).await;
            let expected = page.map(|page| format!("{page}?next=/guard/danger"));
            assert_eq!(reply.status, if page.is_some() { 303 } else { 401 });
            assert_eq!(reply.all("location").pop(), expected.as_deref());
            // If no page is configured, the response does not depend on the kind of request.
            assert_eq!(vary(&reply).contains("accept"), page.is_some());
        }
    }
}

#[tokio::test]
async fn next_parameter_accepts_only_local_paths() {
    let (stand, ..) = stand().await;
    for app in apps(std::slice::from_ref(&stand.sessions)).await {
        let sent = ask(&app, "GET", "/guard?a=1&b=%26", NAVIGATION, "").await;
        let page = sent.all("location")[0];
        let shown = app.get(page, "").await.body;
        assert_eq!(shown, format!("{page} then /guard?a=1&b=%26"), "the form keeps the path");
        for evil in ["//evil.example", "%2F%2Fevil.example", "/%5Cevil.example", "/%2509/x", "x"] {
            let reply = app.get(&format!("/sign-in?next={evil}"), "").await;
            assert_eq!((reply.status, &*reply.body), (200, "/sign-in then /home"), "{evil}");
        }
    }
    assert_eq!(stand.taken_verbs(), []);
}

#[tokio::test]
async fn permission_is_decided_on_current_session() {
    let (stand, ..) = stand().await;
    let with = async |name: &str, role: &str| {
        let sign_in = async |session: Session| {
            session.sign_in(name)?;
            session.insert(ROLE, &role.to_owned())
        };
        stand.visit("", sign_in).await.cookie()
    };
    let (staff, boss, guest) =
        (with("staff", "staff").await, with("boss", "staff").await, with("boss", "guest").await);
    let broken = async |session: Session| {
        session.sign_in("broken")?;
        session.insert(Key::<u32>::new("role"), &1)
    };
    let broken = stand.visit("", broken).await.cookie();
    for app in apps(std::slice::from_ref(&stand.sessions)).await {
        for (path, cookie, status, body) in [
            ("/staff", &staff, 200, "welcome staff"),
            ("/staff", &guest, 403, "You do not have permission to do this."),
            ("/boss", &boss, 200, "welcome boss"),
            ("/boss", &staff, 403, "You do not have permission to do this."),
            ("/boss", &guest, 403, "You do not have permission to do this."),
            // The session's role cannot be decoded. The user is signed in, so asking for a sign-in
            // would not help.
            ("/staff", &broken, 500, "Something went wrong on our side."),
        ] {
            for headers in [NAVIGATION, FETCH] {
                let reply = ask(&app, "GET", path, headers, cookie).await;
                assert_eq!((reply.status, &*reply.body), (status, body), "{path}");
                assert_eq!(reply.all("location"), [""; 0]);
            }
        }
        let reply = ask(&app, "GET", "/staff", NAVIGATION, "").await;
        assert_eq!(reply.all("location"), ["/sign-in?next=/staff"]);
    }
}

#[tokio::test]
async fn outage_returns_503_and_does_not_redirect_to_sign_in() {
    let (stand, alice, _) = stand().await;
    stand.store.fail_always(Load, Fault::Unavailable);
    for app in apps(std::slice::from_ref(&stand.sessions)).await {
        for path in ["/guard", "/guard/danger", "/staff", "/extract", "/extract/danger"] {
            let reply = ask(&app, "GET", path, NAVIGATION, &alice).await;
            assert_eq!((reply.status, reply.all("location")), (503, vec![]), "{path}");
            assert_eq!(reply.all("retry-after"), ["1"]);
        }
    }
}

#[tokio::test]
async fn guard_without_session_layer_is_500() {
    for app in apps(&[]).await {
        let reply = ask(&app, "GET", "/guard", NAVIGATION, "").await;
        assert_eq!((reply.status, &*reply.body), (500, "Something went wrong on our side."));
    }
}

async fn maybe(Maybe(user): Maybe<SignedIn>) -> String {
    user.map_or("nobody".to_owned(), |user| user.principal.to_string())
}

async fn maybe_confirmed(Maybe(user): Maybe<AuthenticatedWithin<600>>) -> String {
    user.map_or("nobody".to_owned(), |user| user.principal.to_string())
}

async fn option(user: Option<SignedIn>) -> String {
    maybe(Maybe(user)).await
}

async fn option_confirmed(user: Option<AuthenticatedWithin<600>>) -> String {
    maybe_confirmed(Maybe(user)).await
}

/// `Maybe` behaves alike in both frameworks, and so does `Option` in axum. In actix-web, `Option` hides
/// every error.
#[tokio::test]
async fn optional_extractor_returns_none_for_anonymous_and_error_in_outage() {
    let (stand, alice, stale) = stand().await;
    let router = Router::new()
        .route("/maybe", any(maybe))
        .route("/maybe/confirmed", any(maybe_confirmed))
        .route("/option", any(option))
        .route("/option/confirmed", any(option_confirmed));
    let routes = |config: &mut web::ServiceConfig| {
        config
            .route("/maybe", web::route().to(maybe))
            .route("/maybe/confirmed", web::route().to(maybe_confirmed))
            .route("/option", web::route().to(option))
            .route("/option/confirmed", web::route().to(option_confirmed));
    };
    for app in both_of(router, routes, std::slice::from_ref(&stand.sessions)).await {
        for (way, confirmed) in [("/maybe", "/maybe/confirmed"), ("/option", "/option/confirmed")] {
            for (cookie, name, confirmed_name) in
                [("", "nobody", "nobody"), (&alice, "alice", "alice"), (&stale, "stale", "nobody")]
            {
                for (path, name) in [(way, name), (confirmed, confirmed_name)] {
                    let reply = ask(&app, "GET", path, NAVIGATION, cookie).await;
                    assert_eq!((reply.status, &*reply.body), (200, name), "{path}");
                    assert_eq!(
                        (vary(&reply), reply.all("location")),
                        ("cookie".to_owned(), vec![])
                    );
                }
            }
            stand.store.fail_always(Load, Fault::Unavailable);
            for path in [way, confirmed] {
                let reply = ask(&app, "GET", path, NAVIGATION, &alice).await;
                let hides = app.framework == "actix" && way == "/option";
                let expected = match hides {
                    true => (200, "nobody"),
                    false => (503, "This is temporarily unavailable. Please try again."),
                };
                assert_eq!((reply.status, &*reply.body), expected, "{} {path}", app.framework);
            }
            stand.store.heal();
        }
    }
}

const SHOP: (&str, &str) = ("host", "shop.example");
const OURS: (&str, &str) = ("origin", "https://shop.example");
const EVIL: (&str, &str) = ("origin", "https://evil.example");
const CROSS_SITE: (&str, &str) = ("sec-fetch-site", "cross-site");
const SAME_ORIGIN: (&str, &str) = ("sec-fetch-site", "same-origin");
const HANDSHAKE: (&str, &str) = ("upgrade", "websocket");

/// Columns: description, method, target, header fields, status.
const ORIGINS: &[(&str, &str, &str, Headers, u16)] = &[
    ("cross-site POST", "POST", "", &[SHOP, EVIL, CROSS_SITE], 403),
    ("same-origin POST", "POST", "", &[SHOP, OURS, SAME_ORIGIN], 200),
    ("cross-site GET", "GET", "", &[SHOP, CROSS_SITE], 200),
    ("WebSocket of another site", "GET", "", &[SHOP, HANDSHAKE, EVIL, CROSS_SITE], 403),
    ("WebSocket of this site", "GET", "", &[SHOP, HANDSHAKE, OURS, SAME_ORIGIN], 200),
    ("trusted origin", "POST", "", &[SHOP, ("origin", "https://login.example"), CROSS_SITE], 200),
    ("no browser", "POST", "", &[SHOP], 200),
    ("old browser", "POST", "", &[SHOP, OURS], 200),
    ("old browser on another site", "POST", "", &[SHOP, EVIL], 403),
    ("Host rewritten by a proxy", "POST", "", &[("host", "10.0.0.7:3000"), OURS], 403),
    (
        "Host rewritten by a proxy, with Sec-Fetch-Site",
        "POST",
        "",
        &[("host", "10.0.0.7:3000"), OURS, SAME_ORIGIN],
        200,
    ),
    (
        "what a client says about a proxy",
        "POST",
        "",
        &[SHOP, EVIL, ("x-forwarded-host", "evil.example"), ("forwarded", "host=evil.example")],
        403,
    ),
    ("authority of HTTP/2", "POST", "https://shop.example", &[OURS], 200),
    ("another authority of HTTP/2", "POST", "https://shop.example", &[EVIL], 403),
    ("repeated Origin", "POST", "", &[SHOP, OURS, OURS], 403),
    ("repeated Sec-Fetch-Site", "POST", "", &[SHOP, OURS, SAME_ORIGIN, SAME_ORIGIN], 403),
    ("repeated Host", "POST", "", &[SHOP, SHOP, OURS], 403),
    ("repeated Upgrade", "GET", "", &[SHOP, HANDSHAKE, HANDSHAKE, EVIL], 403),
];

#[tokio::test]
async fn cross_site_requests_are_refused() {
    let (stand, ..) = stand().await;
    // This guard does not use the session, so it needs no session layer.
    for layers in [std::slice::from_ref(&stand.sessions), &[]] {
        for app in apps(layers).await {
            for (row, method, authority, headers, status) in ORIGINS.iter().copied() {
                let row = format!("{} {row}", app.framework);
                let reply =
                    ask(&app, method, &format!("{authority}/same-origin"), headers, "").await;
                assert_eq!(reply.status, status, "{row}: {reply:?}");
                let expected = match status {
                    200 => ("done", vec![], vec![]),
                    _ => (
                        "This request came from another site and was refused.",
                        vec!["sec-fetch-site, origin"],
                        vec!["no-store"],
                    ),
                };
                let answer = (&*reply.body, reply.all("vary"), reply.all("cache-control"));
                assert_eq!(answer, expected, "{row}");
            }
        }
    }
    assert_eq!(stand.taken_verbs(), []);
}

/// The origin is checked first, so another site cannot learn whether the visitor is signed in.
#[tokio::test]
async fn origin_is_checked_before_session_is_loaded() {
    let (stand, alice, _) = stand().await;
    for app in apps(std::slice::from_ref(&stand.sessions)).await {
        let foreign: Headers = &[SHOP, EVIL, CROSS_SITE, ("accept", "text/html")];
        let own: Headers = &[SHOP, OURS, SAME_ORIGIN, ("accept", "text/html")];
        for cookie in ["", &alice] {
            assert_eq!(ask(&app, "POST", "/both", foreign, cookie).await.status, 403);
        }
        assert_eq!(stand.taken_verbs(), []);
        assert_eq!(ask(&app, "POST", "/both", own, &alice).await.body, "welcome alice");
        assert_eq!(ask(&app, "POST", "/both", own, "").await.all("location"), ["/sign-in"]);
        assert_eq!(stand.taken_verbs(), [Load]);
    }
    let refused = ["https://Login.example", "https://login.example/", "login.example", "*"];
    for origin in refused {
        assert_eq!(Guard::same_origin().trust(origin).unwrap_err(), ConfigError::Origin);
    }
}
