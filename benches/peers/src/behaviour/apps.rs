//! The same small application with each library, wired as its README shows.
//!
//! | route | what it does |
//! |---|---|
//! | `/plain` | does not use the session |
//! | `/user`, `/count`, `/note` | return one value, or `-` |
//! | `/sign-in` | signs `alice` in, with the library's protection against fixation |
//! | `/sign-out`, `/rotate` | end the session, and replace its id |
//! | `/increment` | adds one to the count, and is held before the write |
//! | `/write` | reads the user, is held, and writes the note |
//! | `/write-at-once` | writes the note |
//! | `/claim` | signs `mallory` in without replacing the id |

use std::net::TcpListener;
use std::sync::Arc;
use std::thread;

use axum::Router;
use axum::routing::{get, post};
use fred::prelude::Pool;

use super::hold;
use crate::app::tower_sessions::pool;

pub struct App {
    pub name: &'static str,
    /// One port for each process that is simulated.
    pub ports: Vec<u16>,
    /// A cookie that the application never set.
    pub unknown: &'static str,
}

const UNKNOWN_UUID: &str = "session=2b9d2f1e-5d0a-4c43-9b63-6b1d4cf1f2aa";

/// Starts all applications. They end with this process.
pub async fn start(url: &str) -> Vec<App> {
    let mut apps = Vec::new();
    let mut add = |name, ports, unknown| apps.push(App { name, ports, unknown });
    macro_rules! two {
        ($app:expr) => {
            vec![serve($app).await, serve($app).await]
        };
    }
    let own = "__Host-id=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    add("unsticky", two!(unsticky_app::app(url)), own);
    let id = "id=AAAAAAAAAAAAAAAAAAAAAA";
    add("tower-sessions 0.14", two!(tower_sessions_14::app(url).await), id);
    add("tower-sessions 0.15, memory store", vec![serve(tower_sessions_15::app()).await], id);
    add("tower-sessions-ext", two!(tower_sessions_fork::app(url).await), id);
    add("ruts", two!(ruts_app::app(url).await), "ruts=AAAAAAAAAAAAAAAAAAAAAA");
    add("axum_session", two!(axum_session_app::app(url, true).await), UNKNOWN_UUID);
    add("axum_session, memory off", two!(axum_session_app::app(url, false).await), UNKNOWN_UUID);
    let key = actix_web::cookie::Key::generate();
    let ports = (0..2).map(|_| actix_app::serve(url, key.clone())).collect();
    add("actix-session", ports, "id=AAAA");
    apps
}

async fn serve(app: Router) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async { axum::serve(listener, app).await });
    port
}

/// Returns a router with the handlers of the module.
macro_rules! routes {
    () => {
        Router::new()
            .route("/plain", get(async || "plain"))
            .route("/user", get(user))
            .route("/count", get(count))
            .route("/note", get(note))
            .route("/sign-in", post(sign_in))
            .route("/sign-out", post(sign_out))
            .route("/rotate", post(rotate))
            .route("/increment", post(increment))
            .route("/write", post(write))
            .route("/write-at-once", post(write_at_once))
            .route("/claim", post(claim))
    };
}

mod unsticky_app {
    use super::*;
    use ::unsticky::tower::SessionLayer;
    use ::unsticky::{Key, Result, Session, Sessions};

    const COUNT: Key<u64> = Key::new("count");
    const NOTE: Key<String> = Key::new("note");

    async fn user(session: Session) -> String {
        session.principal().map_or("-".to_owned(), |principal| principal.to_string())
    }

    async fn count(session: Session) -> Result<String> {
        Ok(session.get(COUNT)?.unwrap_or(0).to_string())
    }

    async fn note(session: Session) -> Result<String> {
        Ok(session.get(NOTE)?.unwrap_or("-".to_owned()))
    }

    async fn sign_in(session: Session) -> Result<()> {
        session.sign_in("alice")
    }

    async fn sign_out(session: Session) {
        session.sign_out();
    }

    async fn rotate(session: Session) {
        session.rotate();
    }

    async fn increment(session: Session) -> Result<()> {
        hold().await;
        session.update(COUNT, |count| *count += 1)
    }

    async fn write(session: Session) -> Result<()> {
        let _ = session.principal();
        hold().await;
        session.insert(NOTE, "x")
    }

    async fn write_at_once(session: Session) -> Result<()> {
        session.insert(NOTE, "x")
    }

    /// A sign-in always replaces the secret, so this writes a value.
    async fn claim(session: Session) -> Result<()> {
        session.insert(NOTE, "mallory")
    }

    pub fn app(url: &str) -> Router {
        let sessions = Sessions::builder(::unsticky::connect(url).unwrap()).build().unwrap();
        routes!().layer(SessionLayer::new(sessions))
    }
}

/// The handlers for tower-sessions and its fork, whose sessions have the same methods.
macro_rules! tower_sessions_handlers {
    () => {
        async fn user(session: Session) -> String {
            session.get("user").await.unwrap().unwrap_or("-".to_owned())
        }

        async fn count(session: Session) -> String {
            session.get::<u64>("count").await.unwrap().unwrap_or(0).to_string()
        }

        async fn note(session: Session) -> String {
            session.get("note").await.unwrap().unwrap_or("-".to_owned())
        }

        async fn sign_in(session: Session) {
            session.cycle_id().await.unwrap();
            session.insert("user", "alice").await.unwrap();
        }

        async fn sign_out(session: Session) {
            session.flush().await.unwrap();
        }

        async fn rotate(session: Session) {
            session.cycle_id().await.unwrap();
        }

        async fn increment(session: Session) {
            let count = session.get::<u64>("count").await.unwrap().unwrap_or(0);
            hold().await;
            session.insert("count", count + 1).await.unwrap();
        }

        async fn write(session: Session) {
            session.get::<String>("user").await.unwrap();
            hold().await;
            session.insert("note", "x").await.unwrap();
        }

        async fn write_at_once(session: Session) {
            session.insert("note", "x").await.unwrap();
        }

        async fn claim(session: Session) {
            session.insert("user", "mallory").await.unwrap();
        }
    };
}

mod tower_sessions_14 {
    use super::*;
    use ::tower_sessions::{Session, SessionManagerLayer};
    use tower_sessions_redis_store::RedisStore;

    tower_sessions_handlers!();

    pub async fn app(url: &str) -> Router {
        routes!().layer(SessionManagerLayer::new(RedisStore::new(pool(url).await)))
    }
}

mod tower_sessions_15 {
    use super::*;
    use ::tower_sessions_15::{MemoryStore, Session, SessionManagerLayer};

    tower_sessions_handlers!();

    pub fn app() -> Router {
        routes!().layer(SessionManagerLayer::new(MemoryStore::default()))
    }
}

mod tower_sessions_fork {
    use super::*;
    use tower_sessions_ext::{Session, SessionManagerLayer};
    use tower_sessions_ext_redis_store::RedisStore;

    tower_sessions_handlers!();

    pub async fn app(url: &str) -> Router {
        routes!().layer(SessionManagerLayer::new(RedisStore::new(pool(url).await)))
    }
}

mod ruts_app {
    use super::*;
    use ruts::store::Ttl;
    use ruts::store::redis::RedisStore;
    use ruts::{CookieOptions, SessionLayer};
    use tower_cookies::CookieManagerLayer;

    type Session = ruts::Session<RedisStore<Pool>>;

    fn ttl() -> Ttl {
        Ttl::new(1800).unwrap()
    }

    async fn user(session: Session) -> String {
        session.get("user").await.unwrap().unwrap_or("-".to_owned())
    }

    async fn count(session: Session) -> String {
        session.get::<u64>("count").await.unwrap().unwrap_or(0).to_string()
    }

    async fn note(session: Session) -> String {
        session.get("note").await.unwrap().unwrap_or("-".to_owned())
    }

    async fn sign_in(session: Session) {
        session.prepare_regenerate();
        session.set("user", &"alice", ttl(), None).await.unwrap();
    }

    async fn sign_out(session: Session) {
        session.delete().await.unwrap();
    }

    async fn rotate(session: Session) {
        session.regenerate().await.unwrap();
    }

    async fn increment(session: Session) {
        let count = session.get::<u64>("count").await.unwrap().unwrap_or(0);
        hold().await;
        session.set("count", &(count + 1), ttl(), None).await.unwrap();
    }

    async fn write(session: Session) {
        session.get::<String>("user").await.unwrap();
        hold().await;
        session.set("note", &"x", ttl(), None).await.unwrap();
    }

    async fn write_at_once(session: Session) {
        session.set("note", &"x", ttl(), None).await.unwrap();
    }

    async fn claim(session: Session) {
        session.set("user", &"mallory", ttl(), None).await.unwrap();
    }

    pub async fn app(url: &str) -> Router {
        let store = RedisStore::new(Arc::new(pool(url).await)).await.unwrap();
        let cookie = CookieOptions::build().name("ruts").http_only(true).path("/").max_age(1800);
        routes!()
            .layer(SessionLayer::new(Arc::new(store)).with_cookie_options(cookie))
            .layer(CookieManagerLayer::new())
    }
}

mod axum_session_app {
    use super::*;
    use crate::app::axum_session::layer;
    use axum_session_redispool::SessionRedisPool;

    type Session = ::axum_session::Session<SessionRedisPool>;

    async fn user(session: Session) -> String {
        session.get("user").unwrap_or("-".to_owned())
    }

    async fn count(session: Session) -> String {
        session.get::<u64>("count").unwrap_or(0).to_string()
    }

    async fn note(session: Session) -> String {
        session.get("note").unwrap_or("-".to_owned())
    }

    async fn sign_in(session: Session) {
        session.renew();
        session.set("user", "alice");
    }

    async fn sign_out(session: Session) {
        session.destroy();
    }

    async fn rotate(session: Session) {
        session.renew();
    }

    async fn increment(session: Session) {
        let count = session.get::<u64>("count").unwrap_or(0);
        hold().await;
        session.set("count", count + 1);
    }

    async fn write(session: Session) {
        session.get::<String>("user");
        hold().await;
        session.set("note", "x");
    }

    async fn write_at_once(session: Session) {
        session.set("note", "x");
    }

    async fn claim(session: Session) {
        session.set("user", "mallory");
    }

    pub async fn app(url: &str, memory: bool) -> Router {
        routes!().layer(layer(url, memory).await)
    }
}

mod actix_app {
    use super::*;
    use ::actix_session::storage::RedisSessionStore;
    use ::actix_session::{Session, SessionMiddleware};
    use actix_web::cookie::Key;
    use actix_web::{App, HttpServer, Result, web};

    async fn user(session: Session) -> Result<String> {
        Ok(session.get("user")?.unwrap_or("-".to_owned()))
    }

    async fn count(session: Session) -> Result<String> {
        Ok(session.get::<u64>("count")?.unwrap_or(0).to_string())
    }

    async fn note(session: Session) -> Result<String> {
        Ok(session.get("note")?.unwrap_or("-".to_owned()))
    }

    async fn sign_in(session: Session) -> Result<&'static str> {
        session.renew();
        session.insert("user", "alice")?;
        Ok("")
    }

    async fn sign_out(session: Session) -> &'static str {
        session.purge();
        ""
    }

    async fn rotate(session: Session) -> &'static str {
        session.renew();
        ""
    }

    async fn increment(session: Session) -> Result<&'static str> {
        let count = session.get::<u64>("count")?.unwrap_or(0);
        hold().await;
        session.insert("count", count + 1)?;
        Ok("")
    }

    async fn write(session: Session) -> Result<&'static str> {
        session.get::<String>("user")?;
        hold().await;
        session.insert("note", "x")?;
        Ok("")
    }

    async fn write_at_once(session: Session) -> Result<&'static str> {
        session.insert("note", "x")?;
        Ok("")
    }

    async fn claim(session: Session) -> Result<&'static str> {
        session.insert("user", "mallory")?;
        Ok("")
    }

    pub fn serve(url: &str, key: Key) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = url.to_owned();
        thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let store = RedisSessionStore::new(url).await.unwrap();
                let app = move || {
                    App::new()
                        .wrap(SessionMiddleware::new(store.clone(), key.clone()))
                        .route("/plain", web::get().to(async || "plain"))
                        .route("/user", web::get().to(user))
                        .route("/count", web::get().to(count))
                        .route("/note", web::get().to(note))
                        .route("/sign-in", web::post().to(sign_in))
                        .route("/sign-out", web::post().to(sign_out))
                        .route("/rotate", web::post().to(rotate))
                        .route("/increment", web::post().to(increment))
                        .route("/write", web::post().to(write))
                        .route("/write-at-once", web::post().to(write_at_once))
                        .route("/claim", web::post().to(claim))
                };
                let server = HttpServer::new(app).workers(1).disable_signals();
                server.listen(listener).unwrap().run().await.unwrap();
            });
        });
        port
    }
}
