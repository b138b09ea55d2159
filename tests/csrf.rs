//! The CSRF token: bound to the session, masked differently for each page, and verified in both frameworks.

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

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::Deserialize;
use support::app::{App, Ask, Reply, both_of};
use support::stand::{Backend, SEED, on_every_store};
use support::visit::{rotate, sign_in, sign_out, visit};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use unsticky::testing::{Fault, Verb};
use unsticky::{Csrf, CsrfToken, ErrorKind, Key, Result, Session, Sessions};

/// The key of the stored value from which the session's tokens are made.
const STORED: Key<String> = Key::new("unsticky.csrf");

#[derive(Deserialize)]
struct Order {
    article: u32,
}

impl Order {
    fn taken(&self) -> String {
        format!("article {}", self.article)
    }
}

/// A page with a form, a page without one, and the routes that accept the forms.
async fn shops(sessions: &Sessions) -> [App; 2] {
    let router = {
        use axum::routing::{get, post};
        use axum::{Form, Json};
        Router::new()
            .route("/form", get(async |token: CsrfToken| token.to_string()))
            .route("/plain", get(async |_: Session| "plain"))
            .route("/form", post(async |Csrf(Form(order)): Csrf<Form<Order>>| order.taken()))
            .route("/json", post(async |Csrf(Json(order)): Csrf<Json<Order>>| order.taken()))
            .route("/text", post(async |Csrf(text): Csrf<String>| text))
    };
    let routes = |config: &mut actix_web::web::ServiceConfig| {
        use actix_web::web::{Form, Json, get, post};
        let form = async |Csrf(Form(order)): Csrf<Form<Order>>| order.taken();
        let json = async |Csrf(Json(order)): Csrf<Json<Order>>| order.taken();
        config
            .route("/form", get().to(async |token: CsrfToken| token.to_string()))
            .route("/plain", get().to(async |_: Session| "plain"))
            .route("/form", post().to(form))
            .route("/json", post().to(json))
            .route("/text", post().to(async |Csrf(text): Csrf<String>| text));
    };
    both_of(router, routes, std::slice::from_ref(sessions)).await
}

/// Loads a page with a form. Returns the cookie that the browser then holds, and the token.
async fn page(app: &App, cookie: &str) -> (String, String) {
    let reply = app.get("/form", cookie).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let cookie = if reply.cookies().is_empty() { cookie.to_owned() } else { reply.cookie() };
    (cookie, reply.body)
}

fn form(cookie: &str, form: &str) -> Ask {
    Ask::post("/form").cookie(cookie).form(form)
}

fn with_field(cookie: &str, token: &str) -> Ask {
    form(cookie, &format!("article=7&csrf_token={token}"))
}

fn assert_taken(reply: &Reply) {
    assert_eq!((reply.status, &*reply.body), (200, "article 7"), "{reply:?}");
}

/// Asserts that the token was refused. Every invalid token gets the same response, which contains neither the
/// token nor a cookie.
fn assert_refused(reply: &Reply) {
    assert_eq!(
        (reply.status, &*reply.body),
        (403, ErrorKind::InvalidCsrfToken.message()),
        "{reply:?}"
    );
    assert_eq!(reply.cookies(), [""; 0]);
    assert_eq!(reply.all("cache-control"), ["no-store"]);
}

#[tokio::test]
async fn token_is_taken_from_form_field_and_from_header() {
    let stand = Backend::memory().stand();
    for app in shops(&stand.sessions).await {
        let (cookie, token) = page(&app, "").await;
        assert_taken(&app.ask(with_field(&cookie, &token)).await);
        let first = form(&cookie, &format!("csrf_token={token}&article=7"));
        assert_taken(&app.ask(first).await);
        // A form body may percent-encode every character.
        let encoded: String = token.bytes().map(|byte| format!("%{byte:02X}")).collect();
        assert_taken(&app.ask(with_field(&cookie, &encoded)).await);
        let header = |ask: Ask| ask.cookie(&cookie).header(CsrfToken::HEADER, &token);
        assert_taken(&app.ask(header(Ask::post("/form")).form("article=7")).await);
        let json = header(Ask::post("/json")).body("application/json", r#"{"article":7}"#);
        assert_taken(&app.ask(json).await);
        let text = header(Ask::post("/text")).body("text/plain", "article 7");
        assert_taken(&app.ask(text).await);
        assert_eq!(stand.spy.verbs().iter().filter(|verb| **verb == Verb::Create).count(), 1);
        stand.spy.take();
    }
}

/// Missing and forged tokens are refused for anonymous and for signed-in visitors, whatever the body is.
#[tokio::test]
async fn missing_and_forged_tokens_are_403() {
    let stand = Backend::memory().stand();
    for app in shops(&stand.sessions).await {
        let (anonymous, token) = page(&app, "").await;
        let (other, _) = page(&app, "").await;
        let signed_in = stand.signed_in("alice").await;
        let (signed_in, of_alice) = page(&app, &signed_in).await;
        let tampered = format!("{}{}", if token.starts_with('A') { "B" } else { "A" }, &token[1..]);
        let zeros = "A".repeat(86);
        let long = "A".repeat(10_000);
        for (cookie, own) in
            [("", ""), (&anonymous, &*token), (&other, ""), (&signed_in, &of_alice)]
        {
            let longer = format!("{token}A");
            let forged = ["", "x", &tampered, &token[..85], &longer, &zeros, &long];
            // A token from a different session is refused too.
            let foreign = [&*token, &of_alice].into_iter().filter(|token| *token != own);
            for token in forged.into_iter().chain(foreign) {
                assert_refused(&app.ask(with_field(cookie, token)).await);
                let header = form(cookie, "article=7").header(CsrfToken::HEADER, token);
                assert_refused(&app.ask(header).await);
            }
            // Bodies without a token, and tokens in places that are not read, are refused.
            for body in
                ["article=7", "", "article=7&csrf-token=x", "article=7&CSRF_TOKEN=x", "csrf_token"]
            {
                assert_refused(&app.ask(form(cookie, body)).await);
            }
            let in_query = Ask::post(&format!("/form?csrf_token={token}"));
            assert_refused(&app.ask(in_query.cookie(cookie).form("article=7")).await);
            let in_json = format!(r#"{{"article":7,"csrf_token":"{token}"}}"#);
            let json = Ask::post("/json").cookie(cookie).body("application/json", in_json);
            assert_refused(&app.ask(json).await);
            let as_text = format!("article=7&csrf_token={token}");
            let text = Ask::post("/text").cookie(cookie).body("text/plain", as_text);
            assert_refused(&app.ask(text).await);
            assert_refused(&app.ask(Ask::post("/form").cookie(cookie)).await);
        }
        let twice = format!("article=7&csrf_token={token}&csrf_token={token}");
        assert_refused(&app.ask(form(&anonymous, &twice)).await);
        let two_headers = form(&anonymous, "article=7")
            .header(CsrfToken::HEADER, &token)
            .header(CsrfToken::HEADER, &token);
        assert_refused(&app.ask(two_headers).await);
        // An invalid header is refused even if the form field is valid.
        let both = with_field(&anonymous, &token).header(CsrfToken::HEADER, "x");
        assert_refused(&app.ask(both).await);
        let not_text = with_field(&anonymous, &token).header(CsrfToken::HEADER, b"\xff");
        assert_refused(&app.ask(not_text).await);
        assert_taken(&app.ask(with_field(&anonymous, &token)).await);
    }
}

/// A token is valid in its session until the next sign-in or until the session ends.
#[tokio::test]
async fn csrf_token_changes_at_sign_in_and_expires_with_session() {
    let stand = Backend::memory().stand();
    let step_up = async |session: Session| session.step_up();
    let switch = async |session: Session| session.sign_in("bob");
    for app in shops(&stand.sessions).await {
        let (mut cookie, first) = page(&app, "").await;
        let mut tokens = vec![first];
        for is_other in [false, false, true] {
            cookie = match is_other {
                false => stand.visit(&cookie, sign_in).await.cookie(),
                true => stand.visit(&cookie, switch).await.cookie(),
            };
            for old in &tokens {
                assert_refused(&app.ask(with_field(&cookie, old)).await);
            }
            let (_, token) = page(&app, &cookie).await;
            assert_taken(&app.ask(with_field(&cookie, &token)).await);
            for old in &tokens {
                assert_refused(&app.ask(with_field(&cookie, old)).await);
            }
            tokens.push(token);
        }
        // After a rotation or a step-up, forms that are already open stay valid.
        let last = tokens.pop().unwrap();
        cookie = stand.visit(&cookie, rotate).await.cookie();
        assert_taken(&app.ask(with_field(&cookie, &last)).await);
        cookie = stand.visit(&cookie, step_up).await.cookie();
        assert_taken(&app.ask(with_field(&cookie, &last)).await);
        let left = stand.visit(&cookie, async |session: Session| {
            session.sign_out();
            session.insert(SEED, &1)
        });
        let left = left.await.cookie();
        assert_refused(&app.ask(with_field(&left, &last)).await);
        assert_refused(&app.ask(with_field(&cookie, &last)).await);
        assert_refused(&app.ask(with_field("", &last)).await);
    }
}

/// If the response to a sign-in contains a form, the form contains the token of the signed-in session.
#[tokio::test]
async fn page_that_signs_in_contains_csrf_token_of_new_session() {
    let stand = Backend::memory().stand();
    for before in ["", "alice"] {
        for app in shops(&stand.sessions).await {
            let cookie = match before {
                "" => page(&app, "").await.0,
                _ => page(&app, &stand.signed_in(before).await).await.0,
            };
            let (_, old) = page(&app, &cookie).await;
            let signs_in = async |session: Session| {
                session.sign_in("alice")?;
                assert_eq!(
                    session.verify_csrf_token(&old).unwrap_err().kind(),
                    ErrorKind::InvalidCsrfToken
                );
                session.csrf_token().await
            };
            let signed_in = stand.visit(&cookie, signs_in).await;
            let (cookie, token) = (signed_in.cookie(), signed_in.ok());
            assert_taken(&app.ask(with_field(&cookie, token.as_str())).await);
            assert_refused(&app.ask(with_field(&cookie, &old)).await);
        }
    }
}

#[tokio::test]
async fn each_page_masks_token_differently_and_costs_one_command() {
    let stand = Backend::memory().stand();
    for app in shops(&stand.sessions).await {
        stand.spy.take();
        let (cookie, first) = page(&app, "").await;
        assert_eq!(stand.taken_verbs(), [Verb::Create]);
        let mut tokens = BTreeSet::from([first]);
        for _ in 0..20 {
            let (_, token) = page(&app, &cookie).await;
            assert_eq!(stand.taken_verbs(), [Verb::Load]);
            tokens.insert(token);
        }
        assert_eq!(tokens.len(), 21);
        let halves = tokens.iter().flat_map(|token| {
            let bytes = BASE64.decode(token).unwrap();
            [bytes[..32].to_vec(), bytes[32..].to_vec()]
        });
        assert_eq!(halves.collect::<BTreeSet<_>>().len(), 42);
        for token in &tokens {
            assert_taken(&app.ask(with_field(&cookie, token)).await);
        }
        stand.spy.take();
        // Creating the first token in an existing session costs a write, and verifying it costs a read.
        let seeded = stand.seeded().await;
        stand.spy.take();
        let (_, token) = page(&app, &seeded).await;
        assert_eq!(stand.taken_verbs(), [Verb::Load, Verb::Replace]);
        assert_taken(&app.ask(with_field(&seeded, &token)).await);
        assert_eq!(stand.taken_verbs(), [Verb::Load]);
    }
}

#[tokio::test]
async fn page_without_form_creates_nothing() {
    let stand = Backend::memory().stand();
    for app in shops(&stand.sessions).await {
        stand.spy.take();
        let reply = app.get("/plain", "").await;
        assert_eq!((reply.status, reply.cookies()), (200, vec![]));
        assert_refused(&app.ask(with_field("", "x")).await);
        assert!(stand.taken_verbs().is_empty());
    }
}

/// The session is checked first, then the token, then the body.
#[tokio::test]
async fn outage_is_503_and_bad_body_returns_extractor_error() {
    let stand = Backend::memory().stand();
    for app in shops(&stand.sessions).await {
        let (cookie, token) = page(&app, "").await;
        stand.store.fail_always(Verb::Load, Fault::Unavailable);
        for token in [&*token, "x"] {
            let reply = app.ask(with_field(&cookie, token)).await;
            assert_eq!((reply.status, reply.all("retry-after")), (503, vec!["1"]));
        }
        assert_eq!(app.get("/form", &cookie).await.status, 503);
        stand.store.heal();
        let bad = app.ask(form(&cookie, &format!("article=x&csrf_token={token}"))).await;
        assert!([400, 422].contains(&bad.status), "{bad:?}");
        assert_refused(&app.ask(form(&cookie, "article=x")).await);
        // This body is larger than either framework accepts.
        let large = format!("article=7&csrf_token={token}&x={}", "x".repeat(3_000_000));
        assert_eq!(app.ask(form(&cookie, &large)).await.status, 413);
        let header = form(&cookie, &large).header(CsrfToken::HEADER, &token);
        assert_eq!(app.ask(header).await.status, 413);
        stand.store.fail_always(Verb::Create, Fault::Refused);
        assert_eq!(app.get("/form", "").await.status, 503);
        stand.store.heal();
    }
}

/// A body with a content encoding is not searched for a token. Only the header is read.
#[tokio::test]
async fn encoded_form_needs_token_in_header() {
    let stand = Backend::memory().stand();
    for app in shops(&stand.sessions).await {
        let (cookie, token) = page(&app, "").await;
        let encoded = with_field(&cookie, &token).header("content-encoding", "identity");
        assert_refused(&app.ask(encoded).await);
    }
}

#[tokio::test]
async fn token_and_field_are_safe_in_html_and_hidden_from_debug() {
    let stand = Backend::memory().stand();
    let token = stand.visit("", async |session: Session| session.csrf_token().await).await.ok();
    let text = token.as_str();
    assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
    assert_eq!(text.len(), 86);
    let field = format!(r#"<input type="hidden" name="csrf_token" value="{text}">"#);
    assert_eq!((token.field(), token.to_string()), (field, text.to_owned()));
    assert_eq!(format!("{token:?}"), "CsrfToken(..)");
    assert_eq!(serde_json::to_string(&token).unwrap(), format!("\"{text}\""));
    assert_eq!((CsrfToken::FIELD, CsrfToken::HEADER), ("csrf_token", "x-csrf-token"));
}

/// Pages that are loaded at the same time all show tokens for the stored value.
async fn pages_at_once_show_tokens_of_stored_value(on: Backend) {
    const PAGES: usize = 120;
    let stand = on.stand_with(|builder| builder.timeout(Duration::from_secs(20)));
    let cookie = stand.seeded().await;
    let barrier = Arc::new(Barrier::new(PAGES));
    let mut pages = JoinSet::new();
    for _ in 0..PAGES {
        let (sessions, cookie, barrier) = (stand.sessions.clone(), cookie.clone(), barrier.clone());
        pages.spawn(async move {
            let page = async |session: Session| {
                barrier.wait().await;
                session.csrf_token().await
            };
            visit(&sessions, &cookie, page).await.ok()
        });
    }
    while let Some(token) = pages.join_next().await {
        let token = token.unwrap();
        let verify = async |session: Session| session.verify_csrf_token(token.as_str());
        stand.visit(&cookie, verify).await.ok();
    }
    assert_eq!(stand.read(&cookie, SEED).await, Some(1));
}

/// If a page creates a token during a concurrent sign-in, the token is never valid in the signed-in session.
async fn token_made_at_once_with_sign_in_does_not_outlive_it(on: Backend) {
    let stand = on.stand();
    for before in ["", "alice"] {
        let cookie = match before {
            "" => stand.seeded().await,
            _ => stand.signed_in(before).await,
        };
        let token = async |session: Session| session.csrf_token().await;
        let mut made = None;
        let late = stand.overtaken(&cookie, sign_in, async || {
            made = Some(stand.visit(&cookie, token).await.ok());
        });
        let signed_in = late.await.cookie();
        let contains = async |session: Session| Ok(session.contains(STORED));
        assert!(!stand.visit(&signed_in, contains).await.ok());
        let old = made.unwrap();
        let verify = async |session: Session| session.verify_csrf_token(old.as_str());
        let refused = stand.visit(&signed_in, verify).await.failure();
        assert_eq!(refused, Some(ErrorKind::InvalidCsrfToken));
        // In the other order, the token is valid with the old cookie only.
        let mut signed_in = String::new();
        let cookie = stand.seeded().await;
        let late = stand.overtaken(&cookie, token, async || {
            signed_in = stand.sign_in(&cookie).await;
        });
        let late = late.await;
        assert_eq!(late.set_cookie, None);
        let old = late.ok();
        assert!(!stand.visit(&signed_in, contains).await.ok());
        let verify = async |session: Session| session.verify_csrf_token(old.as_str());
        assert_eq!(
            stand.visit(&signed_in, verify).await.failure(),
            Some(ErrorKind::InvalidCsrfToken)
        );
        let verify = async |session: Session| session.verify_csrf_token(old.as_str());
        stand.visit(&cookie, verify).await.ok();
    }
}

/// A page creates the first token while another request writes or signs out. The other request's value is
/// kept, and after a sign-out the page gets neither an error nor a cookie.
async fn value_made_at_once_with_write_and_sign_out_is_merged_or_gone(on: Backend) {
    let stand = on.stand();
    let token = async |session: Session| session.csrf_token().await;
    let cookie = stand.seeded().await;
    let late = stand.overtaken(&cookie, token, async || stand.write(&cookie, SEED, 9).await);
    let token_text = late.await.ok();
    let verify = async |session: Session| session.verify_csrf_token(token_text.as_str());
    stand.visit(&cookie, verify).await.ok();
    assert_eq!(stand.read(&cookie, SEED).await, Some(9));
    let cookie = stand.seeded().await;
    let late = stand.overtaken(&cookie, token, async || {
        assert!(stand.visit(&cookie, sign_out).await.removes_cookie());
    });
    let late = late.await;
    assert_eq!((late.failure(), late.set_cookie), (None, None));
}

/// The browser never received the response to a sign-in or a rotation, or it holds two sessions' cookies. The
/// page with the form can still be loaded, which writes nothing. Sending the form signs the user in and
/// resolves the situation.
async fn form_signs_in_whose_cookie_leads_astray(on: Backend) {
    let stand = on.stand();
    let token = async |session: Session| session.csrf_token().await;
    let first = async |session: Session| session.csrf_token().await.map(drop);
    let both = |cookies: [&String; 2]| format!("{}; {}", cookies[0], cookies[1]);
    let lost_sign_in = stand.visit("", first).await.cookie();
    stand.sign_in(&lost_sign_in).await;
    let lost_rotation = stand.seeded().await;
    stand.visit(&lost_rotation, rotate).await.ok();
    let [one, other] = [stand.seeded().await, stand.signed_in("bob").await];
    let cases = [
        (lost_sign_in.clone(), lost_sign_in.clone()),
        (lost_rotation.clone(), lost_rotation.clone()),
        (both([&one, &other]), both([&other, &one])),
        (both([&one, &lost_rotation]), both([&lost_rotation, &one])),
    ];
    for (at, (cookies, in_another_order)) in cases.iter().enumerate() {
        stand.spy.take();
        let page = stand.visit(cookies, token).await;
        assert_eq!(page.set_cookie, None);
        let shown = page.ok();
        assert!(stand.taken_verbs().iter().all(|verb| *verb == Verb::Load));
        // The token is invalid with other cookies.
        for cookies in cases.iter().map(|(cookies, _)| cookies).filter(|other| *other != cookies) {
            let verify = async |session: Session| session.verify_csrf_token(shown.as_str());
            let refused = stand.visit(cookies, verify).await.failure();
            assert_eq!(refused, Some(ErrorKind::InvalidCsrfToken), "{at}");
        }
        let sends = async |session: Session| {
            session.verify_csrf_token(shown.as_str())?;
            session.sign_in("alice")
        };
        let signed_in = stand.visit(in_another_order, sends).await;
        let cookie = signed_in.cookie();
        signed_in.ok();
        let verify = async |session: Session| {
            assert_eq!(session.principal().as_deref(), Some("alice"));
            session.verify_csrf_token(shown.as_str())
        };
        assert_eq!(stand.visit(&cookie, verify).await.failure(), Some(ErrorKind::InvalidCsrfToken));
    }
}

/// `revoke_others` replaces the session's token, because someone whom it signs out may know tokens that pages
/// have shown.
async fn token_is_new_when_others_are_revoked(on: Backend) {
    let stand = on.stand();
    let token = async |session: Session| session.csrf_token().await;
    let cookie = stand.signed_in("alice").await;
    let old = stand.visit(&cookie, token).await.ok();
    let revoke = async |session: Session| {
        session.insert(SEED, &7)?;
        session.directory()?.revoke_others(&session).await?;
        assert!(session.verify_csrf_token(old.as_str()).is_err());
        session.csrf_token().await
    };
    let revoked = stand.visit(&cookie, revoke).await;
    let (cookie, new) = (revoked.cookie(), revoked.ok());
    let verify = async |session: Session| {
        assert_eq!(session.get(SEED)?, Some(7));
        assert!(session.verify_csrf_token(old.as_str()).is_err());
        session.verify_csrf_token(new.as_str())
    };
    stand.visit(&cookie, verify).await.ok();
}

/// A stored value that does not have the expected form counts as missing and is replaced.
async fn value_of_another_form_is_replaced(on: Backend) {
    let stand = on.stand();
    let cookie = stand.seeded().await;
    let damage = async |session: Session| session.insert(STORED, &"x".to_owned());
    stand.visit(&cookie, damage).await.ok();
    let verify = async |session: Session| session.verify_csrf_token(&"A".repeat(86));
    assert_eq!(stand.visit(&cookie, verify).await.failure(), Some(ErrorKind::InvalidCsrfToken));
    let token = async |session: Session| session.csrf_token().await;
    let token = stand.visit(&cookie, token).await.ok();
    let verify = async |session: Session| session.verify_csrf_token(token.as_str());
    stand.visit(&cookie, verify).await.ok();
}

/// The request or the answer is lost when the value is written. The write is settled, and the token is valid
/// for the stored value.
async fn token_whose_answer_was_lost_is_valid(on: Backend) {
    let stand = on.stand();
    for fault in [Fault::LoseAnswer, Fault::LoseRequest] {
        let cookie = stand.seeded().await;
        stand.store.inject(Verb::Replace, fault);
        let token = async |session: Session| session.csrf_token().await;
        let token = stand.visit(&cookie, token).await.ok();
        let verify = async |session: Session| session.verify_csrf_token(token.as_str());
        stand.visit(&cookie, verify).await.ok();
    }
}

/// After the response, a handle can no longer send a cookie, so it can create a token only in an existing
/// session.
async fn token_after_response_needs_session(on: Backend) {
    let stand = on.stand();
    let (exchange, session) = stand.begin("").await;
    support::visit::finish(exchange, 200).await;
    assert_eq!(session.csrf_token().await.unwrap_err().kind(), ErrorKind::HeadSent);
    let cookie = stand.seeded().await;
    let (exchange, session) = stand.begin(&cookie).await;
    support::visit::finish(exchange, 200).await;
    let token = session.csrf_token().await.unwrap();
    session.verify_csrf_token(token.as_str()).unwrap();
}

on_every_store!(
    pages_at_once_show_tokens_of_stored_value,
    token_made_at_once_with_sign_in_does_not_outlive_it,
    value_made_at_once_with_write_and_sign_out_is_merged_or_gone,
    value_of_another_form_is_replaced,
    form_signs_in_whose_cookie_leads_astray,
    token_is_new_when_others_are_revoked,
    token_whose_answer_was_lost_is_valid,
    token_after_response_needs_session,
);

/// Handlers need this error to render the refusal themselves.
#[tokio::test]
async fn refused_csrf_token_returns_crate_error() {
    let session = Session::detached();
    let refused: Result<()> = session.verify_csrf_token("x");
    let refused = refused.unwrap_err();
    assert_eq!((refused.kind(), refused.status()), (ErrorKind::InvalidCsrfToken, 403));
    assert_eq!(refused.to_string(), "the CSRF token is missing or does not belong to this session");
}
