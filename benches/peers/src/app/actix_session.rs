//! actix-session with its Redis store.

use std::net::TcpListener;

use actix_session::storage::RedisSessionStore;
use actix_session::{Session, SessionMiddleware};
use actix_web::cookie::Key;
use actix_web::error::ErrorUnauthorized;
use actix_web::{App, HttpServer, Result, web};

use super::{LONG, SHORT, USER, serve_actix, text};

fn count(session: &Session) -> Result<u64> {
    session.get::<String>("user")?.ok_or_else(|| ErrorUnauthorized(""))?;
    Ok(session.get("count")?.unwrap_or(0))
}

async fn read(session: Session) -> Result<String> {
    Ok(count(&session)?.to_string())
}

async fn increment(session: Session) -> Result<String> {
    let count = count(&session)? + 1;
    session.insert("count", count)?;
    Ok(count.to_string())
}

fn arrive(session: &Session, size: usize) -> Result<&'static str> {
    session.renew();
    let count: u64 = session.get("count")?.unwrap_or(0);
    session.insert("user", USER)?;
    session.insert("count", count)?;
    session.insert("text", text(size))?;
    Ok("welcome")
}

async fn sign_in(session: Session) -> Result<&'static str> {
    arrive(&session, SHORT)
}

async fn sign_in_1k(session: Session) -> Result<&'static str> {
    arrive(&session, LONG)
}

async fn sign_out(session: Session) -> &'static str {
    session.purge();
    "goodbye"
}

pub fn serve(listener: TcpListener, url: &str) {
    actix_web::rt::System::new().block_on(async {
        let store = RedisSessionStore::new(url).await.unwrap();
        let key = Key::generate();
        let app = move || {
            App::new()
                .wrap(SessionMiddleware::new(store.clone(), key.clone()))
                .route("/empty", web::get().to(async || "empty"))
                .route("/plain", web::get().to(async || "plain"))
                .route("/read", web::get().to(read))
                .route("/increment", web::post().to(increment))
                .route("/sign-in", web::post().to(sign_in))
                .route("/sign-in-1k", web::post().to(sign_in_1k))
                .route("/sign-out", web::post().to(sign_out))
        };
        serve_actix!(listener, app);
    });
}
