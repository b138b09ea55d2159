//! How the crate's own types are represented in JSON, forms and queries.

#![cfg(all(feature = "testing", feature = "memory", feature = "axum", feature = "actix"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use support::stand::{Backend, Stand};
use unsticky::{Session, SessionId, SignIn, SignedIn, testing};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct End {
    id: SessionId,
}

const ID: &str = "AAECAwQFBgcICQoLDA0ODw";

/// Returns invalid ids: too short, too long, with characters from a different alphabet, with trailing
/// bits, or a whole token.
fn bad_ids() -> [String; 7] {
    let token = "A".repeat(43);
    let wrong_bits = format!("{}B", "A".repeat(21));
    ["", "A", &ID[1..], "AAECAwQFBgcICQoLDA0OD+", &wrong_bits, &token, "null"].map(str::to_owned)
}

/// A session id is read back unchanged from JSON, also as a map key. Anything that is not a valid id is
/// refused.
#[test]
fn id_round_trips() {
    let end = End { id: ID.parse().unwrap() };
    let text = serde_json::to_string(&end).unwrap();
    assert_eq!(text, format!("{{\"id\":\"{ID}\"}}"));
    assert_eq!(serde_json::from_str::<End>(&text).unwrap(), end);
    assert_eq!(serde_json::from_value::<End>(json!({ "id": ID })).unwrap(), end);
    // As a map key, which JSON allows only as a string.
    let map = std::collections::HashMap::from([(end.id, 1)]);
    let text = serde_json::to_string(&map).unwrap();
    assert_eq!(serde_json::from_str::<std::collections::HashMap<_, _>>(&text).unwrap(), map);
    for bad in bad_ids() {
        assert!(serde_json::from_value::<End>(json!({ "id": bad })).is_err(), "{bad:?}");
    }
    for bad in [json!(5), json!(null), json!([0, 1]), json!({})] {
        assert!(serde_json::from_value::<End>(json!({ "id": bad })).is_err(), "{bad}");
    }
}

/// Routes that respond with the id from the query, and with the principal and the list of sessions as
/// JSON.
mod applications {
    use actix_web::{App as ActixApp, test, web};
    use axum::Router;
    use axum::body::{Body, to_bytes};
    use axum::extract::Query;
    use axum::http::Request;
    use axum::routing::get;
    use tower::ServiceExt as _;
    use unsticky::actix::SessionMiddleware;
    use unsticky::tower::SessionLayer;
    use unsticky::{ListedSession, Result, Sessions};

    use super::*;

    type List = Vec<ListedSession>;

    async fn list(user: &SignedIn) -> Result<List> {
        user.session.directory()?.list().await
    }

    pub(crate) async fn in_axum(sessions: &Sessions, path: &str, cookie: &str) -> (u16, String) {
        let app: Router = Router::new()
            .route("/end", get(async |Query(end): Query<End>| axum::Json(end)))
            .route("/who", get(async |user: SignedIn| axum::Json(user.principal)))
            .route("/list", get(async |user: SignedIn| list(&user).await.map(axum::Json)))
            .layer(SessionLayer::new(sessions.clone()));
        let request = Request::get(path).header("cookie", cookie).body(Body::empty()).unwrap();
        let response = app.oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn end(web::Query(end): web::Query<End>) -> web::Json<End> {
        web::Json(end)
    }

    async fn who(user: SignedIn) -> web::Json<Arc<str>> {
        web::Json(user.principal)
    }

    async fn listed(user: SignedIn) -> Result<web::Json<List>> {
        list(&user).await.map(web::Json)
    }

    pub(crate) async fn in_actix(sessions: &Sessions, path: &str, cookie: &str) -> (u16, String) {
        let app = ActixApp::new()
            .wrap(SessionMiddleware::new(sessions.clone()))
            .route("/end", web::get().to(end))
            .route("/who", web::get().to(who))
            .route("/list", web::get().to(listed));
        let app = test::init_service(app).await;
        let request = test::TestRequest::get().uri(path).insert_header(("cookie", cookie));
        let response = test::call_service(&app, request.to_request()).await;
        let status = response.status().as_u16();
        let body = test::read_body(response).await;
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

async fn in_both(stand: &Stand, path: &str, cookie: &str) -> [(u16, String); 2] {
    let sessions = &stand.sessions;
    [
        applications::in_axum(sessions, path, cookie).await,
        applications::in_actix(sessions, path, cookie).await,
    ]
}

#[tokio::test]
async fn bad_id_is_refused_by_both_frameworks() {
    let stand = Backend::memory().stand();
    for (status, body) in in_both(&stand, &format!("/end?id={ID}"), "").await {
        assert_eq!((status, body), (200, format!("{{\"id\":\"{ID}\"}}")));
    }
    for bad in bad_ids() {
        for (status, body) in in_both(&stand, &format!("/end?id={bad}"), "").await {
            assert_eq!(status, 400, "{bad:?}: {body}");
        }
    }
}

#[tokio::test]
async fn principal_is_json_in_both_frameworks() {
    let stand = Backend::memory().stand();
    let cookie = testing::signed_in(&stand.sessions, "al\"ice", |_| Ok(())).await.unwrap();
    for (status, body) in in_both(&stand, "/who", &cookie).await {
        assert_eq!((status, body.as_str()), (200, "\"al\\\"ice\""));
    }
}

#[tokio::test]
async fn list_as_json_has_every_field_and_no_secret() {
    let stand = Backend::memory().stand();
    let sign_in = async |label: Option<&str>| {
        let cookie = testing::cookie(&stand.sessions, async |session| {
            let sign_in = SignIn::new("alice");
            session.sign_in_with(match label {
                Some(label) => sign_in.label(label),
                None => sign_in,
            })
        });
        cookie.await.unwrap()
    };
    let other = sign_in(None).await;
    stand.clock.advance(std::time::Duration::from_millis(61_999));
    let own = sign_in(Some("Firefox \"on\" Linux")).await;
    let id = async |cookie: &str| stand.visit(cookie, async |it: Session| Ok(it.id())).await.ok();
    let expected = json!([
        {
            "id": id(&own).await.unwrap().to_string(),
            "created": "2026-01-01T00:01:01Z",
            "signed_in_at": "2026-01-01T00:01:01Z",
            "last_seen": "2026-01-01T00:01:01Z",
            "expires_at": "2026-01-01T00:31:01Z",
            "label": "Firefox \"on\" Linux",
            "is_current": true,
        },
        {
            "id": id(&other).await.unwrap().to_string(),
            "created": "2026-01-01T00:00:00Z",
            "signed_in_at": "2026-01-01T00:00:00Z",
            // The request for the id counted as use of the session.
            "last_seen": "2026-01-01T00:01:01Z",
            "expires_at": "2026-01-01T00:31:01Z",
            "label": null,
            "is_current": false,
        },
    ]);
    for (status, body) in in_both(&stand, "/list", &own).await {
        let list: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &list), (200, &expected));
        for cookie in [&own, &other] {
            let token = cookie.split_once('=').unwrap().1;
            assert!(!body.contains(&token[22..]), "{body}");
        }
    }
}
