//! The shop in axum. Start it together with `shop_actix`, on the same Redis or Memcached and on a different
//! port, and switch between them: they share their sessions.
//!
//! ```sh
//! SESSION_URL=redis://127.0.0.1/ PORT=3000 \
//!     cargo run --features axum,redis,memcached,memory --example shop_axum
//! ```

#![allow(clippy::print_stdout, reason = "it prints the report of the store and its address")]

use std::error::Error;

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, USER_AGENT};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Redirect};
use axum::routing::{get, post};
use axum::{Form, Json, Router};
use tokio::net::TcpListener;
use unsticky::tower::{GuardLayer, SessionLayer};
use unsticky::{Csrf, CsrfToken, Guard, Level, Next, Result, Session, Sessions, SignedIn};

pub(crate) mod shop;

use shop::ready::Readiness;
use shop::{Add, CART, Cart, Confirm, End, Password, SignIn, Text};

const FRAMEWORK: &str = "axum";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let sessions = shop::sessions()?;
    let (readiness, report) = Readiness::check(&sessions).await;
    println!("{report}");
    let app = app(sessions).merge(probes(readiness));
    let listener = TcpListener::bind(shop::address()?).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}

pub(crate) fn app(sessions: Sessions) -> Router {
    let account = Router::new()
        .route("/sessions", get(your_sessions))
        .route("/sessions/end", post(end))
        .route("/sessions/end-others", post(end_others))
        .route("/confirm", get(confirm_page).post(confirm))
        .route_layer(GuardLayer::new(Guard::signed_in()));
    let password = Router::new()
        .route("/password", get(password_page).post(change_password))
        .route_layer(GuardLayer::new(Guard::authenticated_within(shop::RECENTLY)));
    Router::new()
        .route("/", get(front_page))
        .route("/sign-in", get(sign_in_page).post(sign_in))
        .route("/sign-out", post(sign_out))
        .route("/cart", post(add))
        .route("/cart.json", get(cart))
        // This route does not use the session, so it sends no store command.
        .route("/healthz", get(async || "ok"))
        .merge(account)
        .merge(password)
        .layer(GuardLayer::new(Guard::same_origin()))
        .layer(SessionLayer::new(sessions))
}

/// These routes are outside the session layer. Do not make them public: they reveal what is wrong.
fn probes(readiness: Readiness) -> Router {
    Router::new().route("/ready", get(ready)).with_state(readiness)
}

async fn ready(State(readiness): State<Readiness>) -> impl IntoResponse {
    let (status, text) = match readiness.answer().await {
        Ok(()) => (StatusCode::OK, "ready".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason),
    };
    (status, [(CACHE_CONTROL, "no-store")], text)
}

async fn front_page(session: Session) -> Result<Html<String>> {
    shop::front_page(&session, FRAMEWORK).await.map(Html)
}

async fn cart(session: Session) -> Result<Json<Cart>> {
    Cart::of(&session, FRAMEWORK).map(Json)
}

async fn add(session: Session, Form(form): Form<Add>) -> Result<Redirect> {
    let Text(item) = form.item;
    session.flash(Level::Success, format!("In your cart: {item}"))?;
    // If another request wrote first, this change is applied again to the newer cart, so no article is lost.
    session.update(CART, move |cart| cart.push(item.clone()))?;
    Ok(Redirect::to("/"))
}

async fn sign_in_page(session: Session, next: Next) -> Result<Html<String>> {
    shop::sign_in_page(&session, &next).await.map(Html)
}

async fn sign_in(
    session: Session,
    sessions: Sessions,
    next: Next,
    headers: HeaderMap,
    Form(form): Form<SignIn>,
) -> Result<Redirect> {
    let Text(name) = form.name;
    let user_agent = headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok());
    // This call comes before the password check. If the password is changed in between, the sign-in fails.
    let sign_in = sessions.of(name).begin_sign_in().await?;
    // A real application verifies the password here. The shop accepts any password.
    session.sign_in_with(sign_in.label(shop::label(user_agent)))?;
    if form.remember.is_some() {
        session.set_lifetime(shop::REMEMBERED);
    }
    session.flash(Level::Success, "You are signed in.")?;
    Ok(Redirect::to(&next.or("/")))
}

async fn sign_out(session: Session) -> Result<impl IntoResponse> {
    session.sign_out();
    session.flash(Level::Info, "You are signed out.")?;
    Ok(([shop::FORGET_PAGES], Redirect::to("/")))
}

async fn your_sessions(user: SignedIn, token: CsrfToken) -> Result<Html<String>> {
    shop::sessions_page(&user, &token).await.map(Html)
}

async fn end(user: SignedIn, Csrf(Form(form)): Csrf<Form<End>>) -> Result<Redirect> {
    // Has no effect if the session belongs to another user.
    match user.session.directory()?.revoke(form.id).await? {
        true => user.session.flash(Level::Success, "The session has ended.")?,
        false => user.session.flash(Level::Info, "The session had already ended.")?,
    }
    Ok(Redirect::to("/sessions"))
}

// This form contains only the token.
async fn end_others(user: SignedIn, _: Csrf<String>) -> Result<Redirect> {
    user.session.directory()?.revoke_others(&user.session).await?;
    user.session.flash(Level::Success, "All your other sessions have ended.")?;
    Ok(Redirect::to("/sessions"))
}

async fn password_page(user: SignedIn, token: CsrfToken) -> Result<Html<String>> {
    shop::password_page(&user, &token).await.map(Html)
}

async fn change_password(
    user: SignedIn,
    Csrf(Form(form)): Csrf<Form<Password>>,
) -> Result<Redirect> {
    // A real application verifies the old password and stores the new one here. The shop stores no passwords.
    let Password { old: Text(_), new: Text(_) } = form;
    // Someone else who knew the old password may have signed in with it.
    user.session.directory()?.revoke_others(&user.session).await?;
    let done = "Your password has been changed, and all your other sessions have ended.";
    user.session.flash(Level::Success, done)?;
    Ok(Redirect::to("/sessions"))
}

async fn confirm_page(user: SignedIn, next: Next, token: CsrfToken) -> Result<Html<String>> {
    shop::confirm_page(&user, &next, &token).await.map(Html)
}

async fn confirm(
    user: SignedIn,
    next: Next,
    Csrf(Form(form)): Csrf<Form<Confirm>>,
) -> Result<Redirect> {
    // A real application verifies the password here.
    let Confirm { password: Text(_) } = form;
    user.session.step_up()?;
    user.session.flash(Level::Success, "Thank you. You can continue.")?;
    Ok(Redirect::to(&next.or("/")))
}

#[cfg(all(test, feature = "testing"))]
#[allow(clippy::unwrap_used, reason = "these are tests")]
mod tests {
    use std::time::Duration;

    use axum::body::{Body, to_bytes};
    use axum::http::header::{ACCEPT, CONTENT_TYPE, COOKIE, LOCATION, SET_COOKIE};
    use axum::http::{HeaderName, Request};
    use tower::ServiceExt as _;
    use unsticky::store::MemoryStore;
    use unsticky::testing::{self, ManualClock};

    use super::*;
    use crate::shop::probing::{self, Reply};

    async fn ask(readiness: &Readiness) -> Reply {
        let request = Request::get("/ready").body(Body::empty()).unwrap();
        let response = probes(readiness.clone()).oneshot(request).await.unwrap();
        let field = |name| response.headers()[name].to_str().unwrap().to_owned();
        let (content_type, cache_control) = (field(CONTENT_TYPE), field(CACHE_CONTROL));
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        Reply { status, content_type, cache_control, body }
    }

    #[tokio::test]
    async fn process_is_not_ready_while_redis_is_down() {
        probing::unready_while_redis_is_down(ask).await;
    }

    #[tokio::test]
    async fn process_that_starts_first_is_ready_once_redis_is_up() {
        probing::unready_until_redis_is_up(ask).await;
    }

    #[tokio::test]
    async fn process_is_not_ready_while_it_may_not_write() {
        probing::unready_until_permission_is_there(ask).await;
    }

    #[tokio::test]
    async fn two_hundred_probes_share_one_load_a_second() {
        probing::probes_share_one_load_a_second(ask).await;
    }

    /// This is true even if the probe sends a cookie.
    #[tokio::test]
    async fn probe_is_no_request_of_the_session_layer() {
        let (sessions, _) = sessions();
        let (readiness, _) = Readiness::check(&sessions).await;
        let request = Request::get("/ready").header(COOKIE, format!("shop={}", "A".repeat(43)));
        let app = app(sessions).merge(probes(readiness));
        let response = app.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert!(!response.headers().contains_key("vary"), "{response:?}");
        assert!(!response.headers().contains_key(SET_COOKIE), "{response:?}");
    }

    /// Returns sessions with the shop's settings and a memory store, and the clock that both use.
    fn sessions() -> (Sessions, ManualClock) {
        let clock = ManualClock::new();
        let store = MemoryStore::with_clock(clock.clone());
        (shop::settings(store).clock(clock.clone()).build().unwrap(), clock)
    }

    /// A browser, which keeps the cookie and requests pages.
    struct Browser {
        sessions: Sessions,
        cookie: String,
    }

    struct Answer {
        status: StatusCode,
        location: Option<String>,
        body: String,
    }

    impl Answer {
        fn leads_to(&self) -> &str {
            assert_eq!(self.status, StatusCode::SEE_OTHER);
            self.location.as_deref().unwrap()
        }

        /// Returns the CSRF token in the page's first form that has one.
        fn token(&self) -> String {
            let (_, rest) = self.body.split_once("name=\"csrf_token\" value=\"").unwrap();
            rest.split_once('"').unwrap().0.to_owned()
        }
    }

    impl Browser {
        fn new(sessions: &Sessions) -> Self {
            Self { sessions: sessions.clone(), cookie: String::new() }
        }

        async fn get(&mut self, path: &str) -> Answer {
            self.send(Request::get(path).body(Body::empty()).unwrap()).await
        }

        async fn post(&mut self, path: &str, form: &str) -> Answer {
            let request = Request::post(path)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(Body::from(form.to_owned()));
            self.send(request.unwrap()).await
        }

        async fn send(&mut self, mut request: Request<Body>) -> Answer {
            request.headers_mut().insert(ACCEPT, "text/html".parse().unwrap());
            request.headers_mut().insert(COOKIE, self.cookie.parse().unwrap());
            let response = app(self.sessions.clone()).oneshot(request).await.unwrap();
            let field = |name: HeaderName| {
                response.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
            };
            if let Some(cookie) = field(SET_COOKIE) {
                self.cookie = cookie.split(';').next().unwrap().to_owned();
            }
            let (status, location) = (response.status(), field(LOCATION));
            let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
            Answer { status, location, body: String::from_utf8(body.to_vec()).unwrap() }
        }
    }

    #[tokio::test]
    async fn signed_in_visitor_sees_cart_and_sessions_until_idle_timeout() {
        let (sessions, clock) = sessions();
        let cart = vec!["a book".to_owned()];
        let cookie = testing::signed_in(&sessions, "alice", |it| it.insert(CART, &cart)).await;
        let mut browser = Browser::new(&sessions);
        browser.cookie = cookie.unwrap();

        let cart = browser.get("/cart.json").await.body;
        assert!(cart.contains("\"signed_in\":\"alice\",\"items\":[\"a book\"]"), "{cart}");
        let page = browser.get("/sessions").await.body;
        assert!(page.contains("Signed in as <b>alice</b>") && page.contains("this device"));

        clock.advance(Duration::from_secs(30 * 60));
        assert_eq!(browser.get("/sessions").await.leads_to(), "/sign-in?next=/sessions");
    }

    #[tokio::test]
    async fn sign_in_leads_back_to_the_page_that_was_asked_for() {
        let (sessions, clock) = sessions();
        let mut browser = Browser::new(&sessions);
        let answer = browser.get("/sessions?page=2").await;
        assert_eq!(answer.leads_to(), "/sign-in?next=/sessions%3Fpage%3D2");
        let form = browser.get(answer.leads_to()).await;
        assert!(form.body.contains("action=\"/sign-in?next=/sessions%3Fpage%3D2\""));
        let answer = browser.post("/sign-in?next=/sessions%3Fpage%3D2", "name=alice").await;
        assert_eq!(answer.leads_to(), "/sessions?page=2");
        let answer = browser.post("/sign-in?next=//evil.example", "name=alice").await;
        assert_eq!(answer.leads_to(), "/");

        // The password can be changed for ten minutes after the sign-in. Then the page requires the password
        // first.
        assert_eq!(browser.get("/password").await.status, StatusCode::OK);
        clock.advance(shop::RECENTLY + Duration::from_secs(1));
        let answer = browser.get("/password").await;
        assert_eq!(answer.leads_to(), "/confirm?next=/password");
        let token = browser.get(answer.leads_to()).await.token();
        let form = format!("password=xyzzy&csrf_token={token}");
        let answer = browser.post("/confirm?next=/password", &form).await;
        assert_eq!(answer.leads_to(), "/password");
        assert_eq!(browser.get("/password").await.status, StatusCode::OK);
    }

    #[tokio::test]
    async fn message_is_shown_once() {
        let (sessions, _) = sessions();
        let mut browser = Browser::new(&sessions);
        browser.post("/cart", "item=a+book").await;
        let message = "<p role=status class=success>In your cart: a book</p>";
        assert!(browser.get("/sign-in").await.body.contains(message));
        for path in ["/", "/sign-in"] {
            assert!(!browser.get(path).await.body.contains("<p role=status"), "{path}");
        }
        let answer = browser.post("/sign-out", "").await;
        assert!(browser.get(answer.leads_to()).await.body.contains(">You are signed out.<"));
    }

    #[tokio::test]
    async fn form_without_token_is_refused() {
        let (sessions, _) = sessions();
        let cookie = testing::signed_in(&sessions, "alice", |_| Ok(())).await.unwrap();
        let mut browser = Browser::new(&sessions);
        browser.cookie = cookie;
        for (path, form) in [
            ("/password", "old=xyzzy&new=plugh"),
            ("/sessions/end", "id=AAAAAAAAAAAAAAAAAAAAAA"),
            ("/sessions/end-others", ""),
            ("/confirm", "password=xyzzy"),
        ] {
            let answer = browser.post(path, form).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path}");
            assert!(answer.body.contains("<h1>Sorry</h1>"), "{path}");
            let token = browser.get("/password").await.token();
            let answer = browser.post(path, &format!("{form}&csrf_token={token}")).await;
            assert_eq!(answer.status, StatusCode::SEE_OTHER, "{path}");
        }
    }
}
