//! The shop in axum. Start it together with `shop_actix` on one Redis or Memcached, on two ports,
//! and go back and forth between them: they know each other's sessions.
//!
//! ```sh
//! SESSION_URL=redis://127.0.0.1/ PORT=3000 \
//!     cargo run --features axum,redis,memcached,memory --example shop_axum
//! ```

#![allow(clippy::print_stdout, reason = "it says where it listens")]

use std::error::Error;

use axum::http::HeaderMap;
use axum::http::header::USER_AGENT;
use axum::response::{Html, IntoResponse, Redirect};
use axum::routing::{get, post};
use axum::{Form, Json, Router};
use tokio::net::TcpListener;
use unsticky::tower::SessionLayer;
use unsticky::{Result, Session, Sessions, SignedIn};

pub(crate) mod shop;

use shop::{Add, CART, Cart, End, Password, SignIn, Text};

const FRAMEWORK: &str = "axum";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let app = app(shop::sessions()?);
    let listener = TcpListener::bind(shop::address()?).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}

pub(crate) fn app(sessions: Sessions) -> Router {
    Router::new()
        .route("/", get(front_page))
        .route("/sign-in", post(sign_in))
        .route("/sign-out", post(sign_out))
        .route("/sessions", get(your_sessions))
        .route("/sessions/end", post(end))
        .route("/sessions/end-others", post(end_others))
        .route("/password", post(change_password))
        .route("/cart", post(add))
        .route("/cart.json", get(cart))
        // It takes no session, so it asks nothing of the store.
        .route("/healthz", get(async || "ok"))
        .layer(SessionLayer::new(sessions))
}

async fn front_page(session: Session) -> Result<Html<String>> {
    shop::front_page(&session, FRAMEWORK).map(Html)
}

async fn cart(session: Session) -> Result<Json<Cart>> {
    Cart::of(&session, FRAMEWORK).map(Json)
}

async fn sign_in(
    session: Session,
    sessions: Sessions,
    headers: HeaderMap,
    Form(form): Form<SignIn>,
) -> Result<Redirect> {
    let Text(name) = form.name;
    let user_agent = headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok());
    // Begun before the password is looked at: if it is changed meanwhile, this sign-in fails.
    let sign_in = sessions.of(name).begin_sign_in().await?;
    // Here an application verifies the password. The shop believes everybody.
    session.sign_in_with(sign_in.label(shop::label(user_agent)))?;
    Ok(Redirect::to("/"))
}

async fn sign_out(session: Session) -> impl IntoResponse {
    session.sign_out();
    ([shop::FORGET_PAGES], Redirect::to("/"))
}

async fn your_sessions(user: SignedIn) -> Result<Html<String>> {
    shop::sessions_page(&user).await.map(Html)
}

async fn end(user: SignedIn, Form(form): Form<End>) -> Result<Redirect> {
    // Nothing happens if it is somebody else's, or has ended already.
    user.session.directory()?.revoke(form.id).await?;
    Ok(Redirect::to("/sessions"))
}

async fn end_others(user: SignedIn) -> Result<Redirect> {
    user.session.directory()?.revoke_others(&user.session).await?;
    Ok(Redirect::to("/sessions"))
}

async fn change_password(user: SignedIn, Form(form): Form<Password>) -> Result<Redirect> {
    // Here an application verifies the old one and stores the new one. The shop has none to keep.
    let Password { old: Text(_), new: Text(_) } = form;
    // Whoever knew the old one may have signed in with it.
    user.session.directory()?.revoke_others(&user.session).await?;
    Ok(Redirect::to("/sessions"))
}

async fn add(session: Session, Form(form): Form<Add>) -> Result<Redirect> {
    let Text(item) = form.item;
    // Called again on the newer cart if another request has just changed it: no article is lost.
    session.update(CART, move |cart| cart.push(item.clone()))?;
    Ok(Redirect::to("/"))
}

#[cfg(all(test, feature = "testing"))]
#[allow(clippy::unwrap_used, reason = "these are tests")]
mod tests {
    use std::time::Duration;

    use axum::body::{Body, to_bytes};
    use axum::http::{Request, StatusCode};
    use tower::ServiceExt as _;
    use unsticky::store::MemoryStore;
    use unsticky::testing::{self, ManualClock};

    use super::*;

    async fn get(app: &Router, path: &str, cookie: &str) -> (StatusCode, String) {
        let request = Request::get(path).header("cookie", cookie).body(Body::empty()).unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn signed_in_visitor_sees_cart_and_sessions_until_idle_timeout() {
        let clock = ManualClock::new();
        let store = MemoryStore::with_clock(clock.clone());
        let sessions = Sessions::builder(store).clock(clock.clone()).build().unwrap();
        let app = app(sessions.clone());
        let cart = vec!["a book".to_owned()];
        let cookie = testing::signed_in(&sessions, "alice", |it| it.insert(CART, &cart)).await;
        let cookie = cookie.unwrap();

        let (_, cart) = get(&app, "/cart.json", &cookie).await;
        assert!(cart.contains("\"signed_in\":\"alice\",\"items\":[\"a book\"]"), "{cart}");
        let (status, page) = get(&app, "/sessions", &cookie).await;
        assert_eq!(status, StatusCode::OK);
        assert!(page.contains("Signed in as <b>alice</b>") && page.contains("this device"));

        clock.advance(Duration::from_secs(30 * 60));
        assert_eq!(get(&app, "/sessions", &cookie).await.0, StatusCode::UNAUTHORIZED);
    }
}
