//! axum_session with its Redis pool. By default, it also keeps sessions in the process's memory, so a user's
//! requests must always go to the same process.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum_session::{Session, SessionConfig, SessionLayer, SessionStore};
use axum_session_redispool::SessionRedisPool;
use time::Duration;

use super::{LONG, SHORT, USER, text};

type Handle = Session<SessionRedisPool>;

fn count(session: &Handle) -> Result<u64, StatusCode> {
    session.get::<String>("user").ok_or(StatusCode::UNAUTHORIZED)?;
    Ok(session.get("count").unwrap_or(0))
}

async fn read(session: Handle) -> Result<String, StatusCode> {
    Ok(count(&session)?.to_string())
}

async fn increment(session: Handle) -> Result<String, StatusCode> {
    let count = count(&session)? + 1;
    session.set("count", count);
    Ok(count.to_string())
}

fn arrive(session: &Handle, size: usize) -> &'static str {
    session.renew();
    session.set("count", session.get::<u64>("count").unwrap_or(0));
    session.set("user", USER);
    session.set("text", text(size));
    "welcome"
}

async fn sign_in(session: Handle) -> &'static str {
    arrive(&session, SHORT)
}

async fn sign_in_1k(session: Handle) -> &'static str {
    arrive(&session, LONG)
}

async fn sign_out(session: Handle) -> &'static str {
    session.destroy();
    "goodbye"
}

/// Returns the layer, which keeps sessions in the memory of the process as well if `memory` is set.
pub async fn layer(url: &str, memory: bool) -> SessionLayer<SessionRedisPool> {
    let pool = redis_pool::RedisPool::from(redis::Client::open(url).unwrap());
    let mut config = SessionConfig::default();
    if !memory {
        config = config.with_memory_lifetime(Duration::ZERO);
    }
    let pool = SessionRedisPool::from(pool);
    SessionLayer::new(SessionStore::new(Some(pool), config).await.unwrap())
}

pub async fn app(url: &str, memory: bool) -> Router {
    Router::new()
        .route("/plain", get(async || "plain"))
        .route("/read", get(read))
        .route("/increment", post(increment))
        .route("/sign-in", post(sign_in))
        .route("/sign-in-1k", post(sign_in_1k))
        .route("/sign-out", post(sign_out))
        .layer(layer(url, memory).await)
}
