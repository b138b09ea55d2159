//! A small application whose cookie the test chooses, and pages on other sites that lead to the application.

use std::collections::HashMap;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::response::{Html, Redirect};
use axum::routing::{get, post};
use tokio::net::TcpListener;
use unsticky::store::MemoryStore;
use unsticky::tower::SessionLayer;
use unsticky::{Cookie, Lifetime, Result, Session, Sessions};

/// A lifetime that exceeds the time for which browsers keep any cookie.
pub(crate) const REMEMBERED: Lifetime =
    Lifetime::new(Duration::from_secs(500 * 86_400), Duration::from_secs(500 * 86_400));

/// The application. It listens on one port and accepts any host name.
pub(crate) struct Site {
    port: u16,
    /// The application's path, which is `/` or below the cookie's path.
    path: &'static str,
}

impl Site {
    pub(crate) async fn start(cookie: Cookie) -> Self {
        Self::start_at("/", cookie).await
    }

    pub(crate) async fn start_at(path: &'static str, cookie: Cookie) -> Self {
        let sessions = Sessions::builder(MemoryStore::new()).cookie(cookie).build().unwrap();
        let pages = Router::new()
            .route("/", get(page))
            .route("/sign-in/{lifetime}", post(sign_in))
            .route("/sign-out", post(sign_out))
            .layer(SessionLayer::new(sessions))
            .with_state(path);
        let router = match path {
            "/" => pages,
            _ => Router::new().nest(path, pages),
        };
        let router = router.route("/elsewhere", get(elsewhere));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async { axum::serve(listener, router).await });
        Self { port, path }
    }

    /// Returns the URL of the application's page on this host.
    pub(crate) fn at(&self, host: &str) -> String {
        format!("http://{host}:{}{}", self.port, self.path)
    }

    /// Returns the URL of an unrelated page on this host. The page has a link and a form that lead to the
    /// given URLs, and a frame if the frame's URL is not empty.
    pub(crate) fn elsewhere(&self, host: &str, link: &str, form: &str, frame: &str) -> String {
        format!("http://{host}:{}/elsewhere?link={link}&form={form}&frame={frame}", self.port)
    }
}

async fn page(session: Session) -> Html<String> {
    let who = session.principal();
    let who = who.as_deref().unwrap_or("no user");
    Html(format!(
        "<!doctype html><meta charset=utf-8><title>Site</title><b>{who}</b>\
         <form method=post action=sign-in/usual><button id=usual>Sign in</button></form>\
         <form method=post action=sign-in/browser><button id=browser>For now</button></form>\
         <form method=post action=sign-in/remembered><button id=remembered>Stay</button></form>\
         <form method=post action=sign-out><button id=out>Sign out</button></form>"
    ))
}

async fn sign_in(
    session: Session,
    State(path): State<&'static str>,
    Path(lifetime): Path<String>,
) -> Result<Redirect> {
    session.sign_in("alice")?;
    match lifetime.as_str() {
        "browser" => session.set_lifetime(Lifetime::default().browser_session()),
        "remembered" => session.set_lifetime(REMEMBERED),
        _ => {}
    }
    Ok(Redirect::to(path))
}

async fn sign_out(session: Session, State(path): State<&'static str>) -> Redirect {
    session.sign_out();
    Redirect::to(path)
}

async fn elsewhere(Query(there): Query<HashMap<String, String>>) -> Html<String> {
    let address = |name: &str| there.get(name).map_or("", String::as_str);
    let frame = match address("frame") {
        "" => String::new(),
        frame => format!("<iframe src='{frame}'></iframe>"),
    };
    Html(format!(
        "<!doctype html><meta charset=utf-8><title>Elsewhere</title>\
         <a href='{}'>There</a>\
         <form method=post action='{}'><button>Post</button></form>{frame}",
        address("link"),
        address("form"),
    ))
}
