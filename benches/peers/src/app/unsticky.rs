//! This crate, in both frameworks, with the same handlers.

use std::net::TcpListener;

use actix_web::{App, HttpServer, web};
use axum::Router;
use axum::routing::{get, post};
use unsticky::actix::SessionMiddleware;
use unsticky::tower::SessionLayer;
use unsticky::{DirectoryMode, Key, Result, Session, Sessions, SignedIn};

use super::{LONG, SHORT, USER, serve_actix, text};

const COUNT: Key<u64> = Key::new("count");
const TEXT: Key<String> = Key::new("text");

async fn read(SignedIn { session, .. }: SignedIn) -> Result<String> {
    Ok(session.get(COUNT)?.unwrap_or(0).to_string())
}

async fn increment(SignedIn { session, .. }: SignedIn) -> Result<String> {
    session.update(COUNT, |count| *count += 1)?;
    Ok(session.get(COUNT)?.unwrap_or(0).to_string())
}

fn arrive(session: &Session, size: usize) -> Result<&'static str> {
    // A new session gets a random principal, so each session has a directory record of its own.
    let own = || format!("{USER}-{}", fastrand::u32(..)).into();
    session.sign_in(session.principal().unwrap_or_else(own))?;
    session.insert(TEXT, &text(size))?;
    session.update(COUNT, |_| ())?;
    Ok("welcome")
}

async fn sign_in(session: Session) -> Result<&'static str> {
    arrive(&session, SHORT)
}

async fn sign_in_1k(session: Session) -> Result<&'static str> {
    arrive(&session, LONG)
}

async fn sign_out(session: Session) -> &'static str {
    session.sign_out();
    "goodbye"
}

fn sessions(url: &str, directory: DirectoryMode) -> Sessions {
    Sessions::builder(unsticky::connect(url).unwrap()).directory(directory).build().unwrap()
}

pub async fn axum(url: &str, directory: DirectoryMode) -> Router {
    Router::new()
        .route("/plain", get(async || "plain"))
        .route("/read", get(read))
        .route("/increment", post(increment))
        .route("/sign-in", post(sign_in))
        .route("/sign-in-1k", post(sign_in_1k))
        .route("/sign-out", post(sign_out))
        .layer(SessionLayer::new(sessions(url, directory)))
}

pub fn actix(listener: TcpListener, url: &str, directory: DirectoryMode) {
    let sessions = sessions(url, directory);
    actix_web::rt::System::new().block_on(async {
        let app = move || {
            App::new()
                .wrap(SessionMiddleware::new(sessions.clone()))
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
