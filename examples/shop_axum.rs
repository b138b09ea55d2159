//! The shop in axum. Start it together with `shop_actix` on one Redis or Memcached, on two ports,
//! and go back and forth between them: they know each other's sessions.
//!
//! ```sh
//! SESSION_URL=redis://127.0.0.1/ PORT=3000 \
//!     cargo run --features axum,redis,memcached,memory --example shop_axum
//! ```

#![allow(clippy::print_stdout, reason = "it says where it listens")]

use std::error::Error;

use axum::response::{Html, Redirect};
use axum::routing::{get, post};
use axum::{Form, Json, Router};
use tokio::net::TcpListener;
use unsticky::tower::SessionLayer;
use unsticky::{Result, Session, Sessions};

pub(crate) mod shop;

use shop::{Add, CART, Cart, SignIn, Text};

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
        .route("/cart", post(add))
        .route("/cart.json", get(cart))
        // It takes no session, so it asks nothing of the store.
        .route("/healthz", get(async || "ok"))
        .layer(SessionLayer::new(sessions))
}

async fn front_page(session: Session) -> Result<Html<String>> {
    shop::page(&session, FRAMEWORK).map(Html)
}

async fn cart(session: Session) -> Result<Json<Cart>> {
    Cart::of(&session, FRAMEWORK).map(Json)
}

async fn sign_in(session: Session, Form(form): Form<SignIn>) -> Result<Redirect> {
    let Text(name) = form.name;
    // Here an application verifies a password first. The shop believes everybody.
    session.sign_in(name)?;
    Ok(Redirect::to("/"))
}

async fn sign_out(session: Session) -> Redirect {
    session.sign_out();
    Redirect::to("/")
}

async fn add(session: Session, Form(form): Form<Add>) -> Result<Redirect> {
    let Text(item) = form.item;
    // Called again on the newer cart if another request has just changed it: no article is lost.
    session.update(CART, move |cart| cart.push(item.clone()))?;
    Ok(Redirect::to("/"))
}
