//! The shop in actix-web. Start it together with `shop_axum` on one Redis or Memcached, on two
//! ports, and go back and forth between them: they know each other's sessions.
//!
//! ```sh
//! SESSION_URL=redis://127.0.0.1/ PORT=3001 \
//!     cargo run --features actix,redis,memcached,memory --example shop_actix
//! ```

#![allow(clippy::print_stdout, reason = "it says where it listens")]

use std::error::Error;

use actix_web::web::{self, Form, Html, Json, Redirect, ServiceConfig};
use actix_web::{App, HttpServer};
use unsticky::actix::SessionMiddleware;
use unsticky::{Result, Session};

mod shop;

use shop::{Add, CART, Cart, SignIn, Text};

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
        .route("/cart", web::post().to(add))
        .route("/cart.json", web::get().to(cart))
        // It takes no session, so it asks nothing of the store.
        .route("/healthz", web::get().to(async || "ok"));
}

async fn front_page(session: Session) -> Result<Html> {
    shop::page(&session, FRAMEWORK).map(Html::new)
}

async fn cart(session: Session) -> Result<Json<Cart>> {
    Cart::of(&session, FRAMEWORK).map(Json)
}

async fn sign_in(session: Session, Form(form): Form<SignIn>) -> Result<Redirect> {
    let Text(name) = form.name;
    // Here an application verifies a password first. The shop believes everybody.
    session.sign_in(name)?;
    Ok(Redirect::to("/").see_other())
}

async fn sign_out(session: Session) -> Redirect {
    session.sign_out();
    Redirect::to("/").see_other()
}

async fn add(session: Session, Form(form): Form<Add>) -> Result<Redirect> {
    let Text(item) = form.item;
    // Called again on the newer cart if another request has just changed it: no article is lost.
    session.update(CART, move |cart| cart.push(item.clone()))?;
    Ok(Redirect::to("/").see_other())
}
