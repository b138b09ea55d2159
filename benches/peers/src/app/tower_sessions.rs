//! tower-sessions with its Redis store.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, post};
use time::Duration;
use tower_sessions::session::Error;
use tower_sessions::{Expiry, Session, SessionManagerLayer};
use tower_sessions_redis_store::RedisStore;
use tower_sessions_redis_store::fred::prelude::{ClientLike as _, Config, Pool};

use super::{LONG, SHORT, USER, text};

type Answer<T> = Result<T, (StatusCode, String)>;

fn failed(error: Error) -> (StatusCode, String) {
    (StatusCode::SERVICE_UNAVAILABLE, error.to_string())
}

async fn count(session: &Session) -> Answer<u64> {
    let user: Option<String> = session.get("user").await.map_err(failed)?;
    user.ok_or((StatusCode::UNAUTHORIZED, String::new()))?;
    Ok(session.get("count").await.map_err(failed)?.unwrap_or(0))
}

async fn read(session: Session) -> Answer<String> {
    Ok(count(&session).await?.to_string())
}

async fn increment(session: Session) -> Answer<String> {
    let count = count(&session).await? + 1;
    session.insert("count", count).await.map_err(failed)?;
    Ok(count.to_string())
}

async fn arrive(session: &Session, size: usize) -> Result<&'static str, Error> {
    session.cycle_id().await?;
    let count: u64 = session.get("count").await?.unwrap_or(0);
    session.insert("user", USER).await?;
    session.insert("count", count).await?;
    session.insert("text", text(size)).await?;
    Ok("welcome")
}

async fn sign_in(session: Session) -> Answer<&'static str> {
    arrive(&session, SHORT).await.map_err(failed)
}

async fn sign_in_1k(session: Session) -> Answer<&'static str> {
    arrive(&session, LONG).await.map_err(failed)
}

async fn sign_out(session: Session) -> Answer<&'static str> {
    session.flush().await.map_err(failed)?;
    Ok("goodbye")
}

/// Returns connected clients of the server.
pub async fn pool(url: &str) -> Pool {
    let pool = Pool::new(Config::from_url(url).unwrap(), None, None, None, 6).unwrap();
    pool.connect();
    pool.wait_for_connect().await.unwrap();
    pool
}

pub async fn app(url: &str) -> Router {
    let layer = SessionManagerLayer::new(RedisStore::new(pool(url).await))
        .with_expiry(Expiry::OnInactivity(Duration::minutes(30)));
    Router::new()
        .route("/plain", get(async || "plain"))
        .route("/read", get(read))
        .route("/increment", post(increment))
        .route("/sign-in", post(sign_in))
        .route("/sign-in-1k", post(sign_in_1k))
        .route("/sign-out", post(sign_out))
        .layer(layer)
}
