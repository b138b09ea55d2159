//! Compares the guard against cross-site requests with the equivalent layer in tower-http.

#![cfg(feature = "axum")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::convert::Infallible;

use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use tower::{Layer as _, ServiceExt as _};
use tower_http::csrf::CsrfLayer;
use unsticky::Guard;
use unsticky::tower::GuardLayer;

const TRUSTED: &str = "https://login.example";

/// Covers every combination of header values, except WebSockets and repeated headers, which tower-http
/// does not check.
#[tokio::test]
async fn origin_check_matches_tower_http() {
    let inner = tower::service_fn(async |_: Request<Body>| {
        Ok::<_, Infallible>(Response::new(Body::empty()))
    });
    let ours = GuardLayer::new(Guard::same_origin().trust(TRUSTED).unwrap()).layer(inner);
    let theirs = CsrfLayer::new().add_trusted_origin(TRUSTED).unwrap().layer(inner);
    let hosts = [None, Some("shop.example"), Some("shop.example:8443"), Some("10.0.0.7:3000")];
    let origins = [
        None,
        Some("null"),
        Some("https://shop.example"),
        Some("http://shop.example"),
        Some("https://shop.example:8443"),
        Some("https://shop.example:9000"),
        Some("https://evil.example"),
        Some("https://shop.example.evil.example"),
        Some("ftp://shop.example"),
        Some("shop.example"),
        Some(TRUSTED),
        Some("http://login.example"),
    ];
    let sites = [
        None,
        Some(""),
        Some("same-origin"),
        Some("none"),
        Some("same-site"),
        Some("cross-site"),
        Some("Same-Origin"),
    ];
    let mut refused = 0;
    for method in ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"]
    {
        for target in ["/", "https://shop.example/"] {
            for host in hosts {
                for origin in origins {
                    for site in sites {
                        let fields = [("host", host), ("origin", origin), ("sec-fetch-site", site)];
                        let request = || {
                            let mut request = Request::builder().method(method).uri(target);
                            for (name, value) in fields {
                                if let Some(value) = value {
                                    request = request.header(name, value);
                                }
                            }
                            request.body(Body::empty()).unwrap()
                        };
                        let ours = ours.clone().oneshot(request()).await.unwrap().status();
                        let theirs = theirs.clone().oneshot(request()).await.unwrap().status();
                        assert_eq!(ours, theirs, "{method} {target} {fields:?}");
                        refused += usize::from(ours == StatusCode::FORBIDDEN);
                    }
                }
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}
