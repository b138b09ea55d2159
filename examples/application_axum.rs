//! An application with axum, in one file. The page `application` of the guide explains it.
#![allow(clippy::print_stdout, reason = "the report of the check")]

use std::error::Error;

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, header::USER_AGENT};
use axum::response::{Html, IntoResponse as _, Redirect, Response};
use axum::routing::{get, post};
use axum::{Form, Router};
use serde::Deserialize;
use unsticky::tower::{GuardLayer, SessionLayer};
use unsticky::{
    Builder, Cookie, Csrf, CsrfToken, Guard, Key, Level, Maybe, Next, Result, Session, SessionId,
    Sessions, SignedIn, Store,
};

/// A cart that a visitor fills before the sign-in is still there afterwards.
const CART: Key<Vec<String>> = Key::new("cart").survives_sign_in();

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn Error>> {
    // redis://127.0.0.1/ in production; `memory:` needs no server, and forgets everything when the process ends.
    let url = std::env::var("SESSION_URL").unwrap_or_else(|_| "memory:".to_owned());
    let sessions = sessions(unsticky::connect(&url)?).build()?;
    println!("{}", sessions.check().await); // what would go wrong with this store, and what to do about it
    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://localhost:{port}");
    axum::serve(listener, app(sessions)).await?;
    Ok(())
}

/// The settings, for `main` and for the tests.
fn sessions(store: impl Store) -> Builder {
    let cookie = match cfg!(debug_assertions) {
        true => Cookie::new("shop").insecure(), // a debug build: for http://localhost
        false => Cookie::default(),             // a release build: for https only
    };
    Sessions::builder(store).namespace("shop").cookie(cookie).sign_in_page("/sign-in")
}

fn app(sessions: Sessions) -> Router {
    let account = Router::new()
        .route("/sessions", get(your_sessions))
        .route("/sessions/revoke", post(revoke))
        .route("/sessions/revoke-others", post(revoke_others))
        .route_layer(GuardLayer::new(Guard::signed_in()));
    Router::new()
        .route("/", get(front_page))
        .route("/cart", post(add))
        .route("/sign-in", get(sign_in_page).post(sign_in))
        .route("/sign-out", post(sign_out))
        .merge(account)
        .layer(GuardLayer::new(Guard::same_origin()))
        .layer(SessionLayer::new(sessions.clone())) // the last layer is the outermost
        .route("/ready", get(move || ready(sessions))) // after the layers, so it is outside of them
}

/// Tells the load balancer whether the store answers. Each request reads one record, so do not expose this route to
/// the public.
async fn ready(sessions: Sessions) -> StatusCode {
    match sessions.ping().await {
        Ok(()) => StatusCode::OK,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn front_page(session: Session, Maybe(user): Maybe<SignedIn>) -> Result<Html<String>> {
    let mut page = format!(
        "<!doctype html><meta charset=utf-8><title>Shop</title><h1>Shop</h1>{}<ul>",
        messages(&session).await?
    );
    for item in session.get(CART)?.unwrap_or_default() {
        page += &format!("<li>{}</li>", escape(&item));
    }
    page += "</ul><form method=post action=/cart><input name=item required><button>Add to cart</button></form>";
    page += &match user {
        Some(user) => format!(
            "<p>Hello {}. <a href=/sessions>Your sessions</a></p>
             <form method=post action=/sign-out><button>Sign out</button></form>",
            escape(&user.principal)
        ),
        None => "<p><a href=/sign-in>Sign in</a></p>".to_owned(),
    };
    Ok(Html(page))
}

#[derive(Deserialize)]
struct Add {
    item: String,
}

async fn add(session: Session, Form(form): Form<Add>) -> Result<Redirect> {
    session.update(CART, move |cart| cart.push(form.item.clone()))?;
    session.flash(Level::Success, "Added to your cart.")?;
    Ok(Redirect::to("/"))
}

/// The messages for this page. Every page to which a handler redirects after `flash` must show them.
async fn messages(session: &Session) -> Result<String> {
    let messages = session.flashes().await?;
    Ok(messages
        .iter()
        .map(|message| format!("<p role=status>{}</p>", escape(&message.text)))
        .collect())
}

async fn sign_in_page(next: Next) -> Html<String> {
    sign_in_form(&next, "")
}

fn sign_in_form(next: &Next, error: &str) -> Html<String> {
    let action = next.page("/sign-in"); // keeps the page that the visitor asked for
    Html(format!(
        "<p role=alert>{error}</p><form method=post action=\"{action}\"><input name=name required>
         <input name=password type=password required><button>Sign in</button></form>"
    ))
}

#[derive(Deserialize)]
struct SignInForm {
    name: String,
    password: String,
}

async fn sign_in(
    session: Session,
    sessions: Sessions,
    next: Next,
    headers: HeaderMap,
    Form(form): Form<SignInForm>,
) -> Result<Response> {
    let account = form.name.to_lowercase(); // in a real application, the account's stable id
    // If all sessions of the account are revoked while the password is verified, the sign-in fails.
    let begun = sessions.of(&account).begin_sign_in().await?;
    if form.password != "correct horse" {
        let page = sign_in_form(&next, "The name or the password is wrong.");
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, page).into_response());
    }
    // A real application shows and logs a shorter label, such as `Firefox on Linux`.
    let browser =
        headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or("unknown");
    session.sign_in_with(begun.label(browser))?;
    Ok(Redirect::to(&next.or("/")).into_response())
}

async fn sign_out(session: Session) -> Redirect {
    session.sign_out();
    Redirect::to("/")
}

async fn your_sessions(user: SignedIn, token: CsrfToken) -> Result<Html<String>> {
    let token = token.field(); // a hidden field of the forms
    let mut page = format!("<h1>Your sessions</h1>{}", messages(&user.session).await?);
    for listed in user.session.directory()?.list().await? {
        let browser = escape(listed.label.as_deref().unwrap_or("unknown"));
        page += &match listed.is_current {
            true => format!("<p>{browser} (this one)</p>"),
            false => format!(
                "<form method=post action=/sessions/revoke>{browser} {token}
                 <input type=hidden name=id value=\"{id}\"><button>Sign out there</button></form>",
                id = listed.id
            ),
        };
    }
    page += &format!(
        "<form method=post action=/sessions/revoke-others>{token}
         <button>Sign out everywhere else</button></form>"
    );
    Ok(Html(page))
}

#[derive(Deserialize)]
struct Revoke {
    id: SessionId,
}

async fn revoke(user: SignedIn, Csrf(Form(form)): Csrf<Form<Revoke>>) -> Result<Redirect> {
    user.session.directory()?.revoke(form.id).await?; // revokes only sessions of this account
    Ok(Redirect::to("/sessions"))
}

/// `Csrf<Bytes>` verifies the token of a form that has no other field.
async fn revoke_others(user: SignedIn, _: Csrf<Bytes>) -> Result<Redirect> {
    user.session.directory()?.revoke_others(&user.session).await?;
    user.session.flash(Level::Success, "All your other sessions have ended.")?;
    Ok(Redirect::to("/sessions"))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use axum::http::header::{CONTENT_TYPE, COOKIE, LOCATION, SET_COOKIE};
    use tower::ServiceExt as _;
    use unsticky::store::MemoryStore;
    use unsticky::testing::{self, Fault, FaultStore, ManualClock, Verb};

    use super::*;

    async fn send(app: &Router, request: Request<Body>) -> (StatusCode, String) {
        let response = app.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let page = to_bytes(response.into_body(), 10_000).await.unwrap();
        (status, String::from_utf8_lossy(&page).into_owned())
    }

    #[tokio::test]
    async fn account_pages_need_a_sign_in_that_has_not_expired() {
        let clock = ManualClock::new();
        let store = MemoryStore::with_clock(clock.clone());
        let sessions = sessions(store).clock(clock.clone()).build().unwrap();
        let alice = testing::signed_in(&sessions, "alice", |_| Ok(())).await.unwrap();
        let app = app(sessions);
        let with_cookie =
            || Request::get("/sessions").header(COOKIE, &alice).body(Body::empty()).unwrap();

        let without_cookie = Request::get("/sessions").body(Body::empty()).unwrap();
        let (status, _) = send(&app, without_cookie).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED); // a browser would be redirected

        let (status, page) = send(&app, with_cookie()).await;
        assert_eq!(status, StatusCode::OK);
        assert!(page.contains("(this one)"));

        clock.advance(Duration::from_secs(30 * 60)); // the idle timeout
        assert_eq!(send(&app, with_cookie()).await.0, StatusCode::UNAUTHORIZED);
    }

    #[tokio::test]
    async fn sign_in_leads_to_the_page_that_the_visitor_asked_for() {
        let app = app(sessions(MemoryStore::new()).build().unwrap());
        let sign_in = async |password: &str| {
            let request = Request::post("/sign-in?next=/sessions")
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(Body::from(format!("name=alice&password={password}")))
                .unwrap();
            app.clone().oneshot(request).await.unwrap()
        };
        assert_eq!(sign_in("wrong").await.status(), StatusCode::UNPROCESSABLE_ENTITY);

        let response = sign_in("correct+horse").await;
        assert_eq!(response.status(), StatusCode::SEE_OTHER);
        assert_eq!(response.headers()[LOCATION], "/sessions");
        let cookie = response.headers()[SET_COOKIE].to_str().unwrap().split(';').next().unwrap();
        let request = Request::get("/sessions").header(COOKIE, cookie).body(Body::empty()).unwrap();
        assert!(send(&app, request).await.1.contains("(this one)"));

        let without_token = Request::post("/sessions/revoke-others").header(COOKIE, cookie);
        let (status, _) = send(&app, without_token.body(Body::empty()).unwrap()).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
    }

    #[tokio::test]
    async fn process_is_ready_only_while_the_store_answers() {
        let store = FaultStore::new(MemoryStore::new());
        let app = app(sessions(store.clone()).build().unwrap());
        let ready = || Request::get("/ready").body(Body::empty()).unwrap();
        assert_eq!(send(&app, ready()).await.0, StatusCode::OK);
        store.fail_always(Verb::Load, Fault::Unavailable);
        assert_eq!(send(&app, ready()).await.0, StatusCode::SERVICE_UNAVAILABLE);
    }
}
