//! The shop in actix-web. Start it together with `shop_axum` on one Redis or Memcached, on two
//! ports, and go back and forth between them: they know each other's sessions.
//!
//! ```sh
//! SESSION_URL=redis://127.0.0.1/ PORT=3001 \
//!     cargo run --features actix,redis,memcached,memory --example shop_actix
//! ```

#![allow(clippy::print_stdout, reason = "it says where it listens")]

use std::error::Error;

use actix_web::http::header::USER_AGENT;
use actix_web::web::{self, Form, Html, Json, Redirect, ServiceConfig};
use actix_web::{App, HttpRequest, HttpServer, Responder};
use unsticky::actix::SessionMiddleware;
use unsticky::{Result, Session, Sessions, SignedIn};

mod shop;

use shop::{Add, CART, Cart, End, Password, SignIn, Text};

const FRAMEWORK: &str = "actix-web";

#[actix_web::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Outside the closure, which every worker calls: they share the store's connections.
    let sessions = shop::sessions()?;
    let server = HttpServer::new(move || {
        App::new().wrap(SessionMiddleware::new(sessions.clone())).configure(routes)
    })
    .bind(shop::address()?)?;
    for address in server.addrs() {
        println!("listening on http://{address}");
    }
    server.run().await?;
    Ok(())
}

pub(crate) fn routes(app: &mut ServiceConfig) {
    app.route("/", web::get().to(front_page))
        .route("/sign-in", web::post().to(sign_in))
        .route("/sign-out", web::post().to(sign_out))
        .route("/sessions", web::get().to(your_sessions))
        .route("/sessions/end", web::post().to(end))
        .route("/sessions/end-others", web::post().to(end_others))
        .route("/password", web::post().to(change_password))
        .route("/cart", web::post().to(add))
        .route("/cart.json", web::get().to(cart))
        // It takes no session, so it asks nothing of the store.
        .route("/healthz", web::get().to(async || "ok"));
}

async fn front_page(session: Session) -> Result<Html> {
    shop::front_page(&session, FRAMEWORK).map(Html::new)
}

async fn cart(session: Session) -> Result<Json<Cart>> {
    Cart::of(&session, FRAMEWORK).map(Json)
}

async fn sign_in(
    session: Session,
    sessions: Sessions,
    request: HttpRequest,
    Form(form): Form<SignIn>,
) -> Result<Redirect> {
    let Text(name) = form.name;
    let user_agent = request.headers().get(USER_AGENT).and_then(|agent| agent.to_str().ok());
    // Begun before the password is looked at: if it is changed meanwhile, this sign-in fails.
    let sign_in = sessions.of(name).begin_sign_in().await?;
    // Here an application verifies the password. The shop believes everybody.
    session.sign_in_with(sign_in.label(shop::label(user_agent)))?;
    Ok(Redirect::to("/").see_other())
}

async fn sign_out(session: Session) -> impl Responder {
    session.sign_out();
    Redirect::to("/").see_other().customize().insert_header(shop::FORGET_PAGES)
}

async fn your_sessions(user: SignedIn) -> Result<Html> {
    shop::sessions_page(&user).await.map(Html::new)
}

async fn end(user: SignedIn, Form(form): Form<End>) -> Result<Redirect> {
    // Nothing happens if it is somebody else's, or has ended already.
    user.session.directory()?.revoke(form.id).await?;
    Ok(Redirect::to("/sessions").see_other())
}

async fn end_others(user: SignedIn) -> Result<Redirect> {
    user.session.directory()?.revoke_others(&user.session).await?;
    Ok(Redirect::to("/sessions").see_other())
}

async fn change_password(user: SignedIn, Form(form): Form<Password>) -> Result<Redirect> {
    // Here an application verifies the old one and stores the new one. The shop has none to keep.
    let Password { old: Text(_), new: Text(_) } = form;
    // Whoever knew the old one may have signed in with it.
    user.session.directory()?.revoke_others(&user.session).await?;
    Ok(Redirect::to("/sessions").see_other())
}

async fn add(session: Session, Form(form): Form<Add>) -> Result<Redirect> {
    let Text(item) = form.item;
    // Called again on the newer cart if another request has just changed it: no article is lost.
    session.update(CART, move |cart| cart.push(item.clone()))?;
    Ok(Redirect::to("/").see_other())
}

#[cfg(all(test, feature = "testing"))]
#[allow(clippy::unwrap_used, reason = "these are tests")]
mod tests {
    use std::time::Duration;

    use actix_web::http::StatusCode;
    use actix_web::test::{TestRequest, call_service, init_service, read_body};
    use unsticky::store::MemoryStore;
    use unsticky::testing::{self, ManualClock};

    use super::*;

    async fn get(sessions: &Sessions, path: &str, cookie: &str) -> (StatusCode, String) {
        let app = App::new().wrap(SessionMiddleware::new(sessions.clone())).configure(routes);
        let app = init_service(app).await;
        let request = TestRequest::get().uri(path).insert_header(("cookie", cookie));
        let response = call_service(&app, request.to_request()).await;
        (response.status(), String::from_utf8(read_body(response).await.to_vec()).unwrap())
    }

    #[actix_web::test]
    async fn signed_in_visitor_sees_cart_and_sessions_until_idle_timeout() {
        let clock = ManualClock::new();
        let store = MemoryStore::with_clock(clock.clone());
        let sessions = Sessions::builder(store).clock(clock.clone()).build().unwrap();
        let cart = vec!["a book".to_owned()];
        let cookie = testing::signed_in(&sessions, "alice", |it| it.insert(CART, &cart)).await;
        let cookie = cookie.unwrap();

        let (_, cart) = get(&sessions, "/cart.json", &cookie).await;
        assert!(cart.contains("\"signed_in\":\"alice\",\"items\":[\"a book\"]"), "{cart}");
        let (status, page) = get(&sessions, "/sessions", &cookie).await;
        assert_eq!(status, StatusCode::OK);
        assert!(page.contains("Signed in as <b>alice</b>") && page.contains("this device"));

        clock.advance(Duration::from_secs(30 * 60));
        assert_eq!(get(&sessions, "/sessions", &cookie).await.0, StatusCode::UNAUTHORIZED);
    }
}
