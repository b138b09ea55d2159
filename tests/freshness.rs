//! Routes that require recent authentication, in both frameworks.

#![cfg(all(feature = "axum", feature = "actix", feature = "memory", feature = "testing"))]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use actix_web::{App, test as actix, web};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use axum::routing::get;
use support::stand::{Backend, Stand};
use support::visit::sent_back;
use tower::ServiceExt as _;
use unsticky::actix::SessionMiddleware;
use unsticky::tower::SessionLayer;
use unsticky::{AuthenticatedWithin, Result, Session, Sessions};

/// A response's status, `Location` header and body, and the cookie that it sets.
type Answer = (u16, Option<String>, String, Option<String>);

async fn delete_account(user: AuthenticatedWithin<600>) -> String {
    format!("goodbye {}", user.principal)
}

async fn sign_in(session: Session) -> Result<&'static str> {
    session.sign_in("alice")?;
    Ok("welcome")
}

async fn step_up(session: Session) -> Result<&'static str> {
    session.step_up()?;
    Ok("welcome back")
}

async fn on_axum(sessions: &Sessions, path: &str, cookie: &str) -> Answer {
    let app = Router::new()
        .route("/delete", get(delete_account))
        .route("/sign-in", get(sign_in))
        .route("/step-up", get(step_up))
        .layer(SessionLayer::new(sessions.clone()));
    let request = Request::get(path)
        .header("cookie", cookie)
        .header("accept", "text/html")
        .body(Body::empty())
        .unwrap();
    let answer = app.oneshot(request).await.unwrap();
    let header = |name| Some(answer.headers().get(name)?.to_str().unwrap().to_owned());
    let (location, cookie) = (header("location"), header("set-cookie"));
    let status = answer.status().as_u16();
    let body = to_bytes(answer.into_body(), 1000).await.unwrap();
    (status, location, String::from_utf8(body.into()).unwrap(), cookie.as_deref().map(sent_back))
}

async fn on_actix(sessions: &Sessions, path: &str, cookie: &str) -> Answer {
    let app = App::new()
        .wrap(SessionMiddleware::new(sessions.clone()))
        .route("/delete", web::get().to(delete_account))
        .route("/sign-in", web::get().to(sign_in))
        .route("/step-up", web::get().to(step_up));
    let app = actix::init_service(app).await;
    let request = actix::TestRequest::get().uri(path).insert_header(("cookie", cookie));
    let request = request.insert_header(("accept", "text/html"));
    let answer = actix::call_service(&app, request.to_request()).await;
    let header = |name| Some(answer.headers().get(name)?.to_str().unwrap().to_owned());
    let (location, cookie) = (header("location"), header("set-cookie"));
    let status = answer.status().as_u16();
    let body = actix::read_body(answer).await;
    (status, location, String::from_utf8(body.into()).unwrap(), cookie.as_deref().map(sent_back))
}

async fn scenario(visit: impl AsyncFn(&Sessions, &str, &str) -> Answer) {
    for page in [None, Some("/sign-in")] {
        let Stand { clock, sessions, .. } = Backend::memory().stand_with(|builder| match page {
            Some(page) => builder.sign_in_page(page),
            None => builder,
        });
        let turned_away = |answer: Answer, reason: &str| {
            let (status, location, body, cookie) = answer;
            assert_eq!(status, if page.is_some() { 303 } else { 401 });
            let expected = page.map(|page| format!("{page}?next=/delete"));
            assert_eq!((location, &*body, cookie), (expected, reason, None));
        };
        turned_away(visit(&sessions, "/delete", "").await, "Please sign in.");
        assert_eq!(visit(&sessions, "/step-up", "").await.0, 401);
        let cookie = visit(&sessions, "/sign-in", "").await.3.unwrap();
        clock.advance(Duration::from_secs(600));
        assert_eq!(visit(&sessions, "/delete", &cookie).await.2, "goodbye alice");
        clock.advance(Duration::from_millis(1));
        turned_away(visit(&sessions, "/delete", &cookie).await, "Please confirm your identity.");
        let renewed = visit(&sessions, "/step-up", &cookie).await.3.unwrap();
        turned_away(visit(&sessions, "/delete", &cookie).await, "Please sign in.");
        assert_eq!(visit(&sessions, "/delete", &renewed).await.2, "goodbye alice");
    }
}

#[tokio::test]
async fn axum_rejects_stale_authentication() {
    scenario(on_axum).await;
}

#[actix_web::test]
async fn actix_rejects_stale_authentication() {
    scenario(on_actix).await;
}
