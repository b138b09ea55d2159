//! The shop in actix-web. Start it together with `shop_axum`, on the same Redis or Memcached and on a
//! different port, and switch between them: they share their sessions.
//!
//! ```sh
//! SESSION_URL=redis://127.0.0.1/ PORT=3001 \
//!     cargo run --features actix,redis,memcached,memory --example shop_actix
//! ```

#![allow(clippy::print_stdout, reason = "it prints the report of the store and its address")]

use std::error::Error;

use actix_web::http::header::{CACHE_CONTROL, ContentType, USER_AGENT};
use actix_web::web::{self, Data, Form, Html, Json, Redirect, ServiceConfig};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, Responder};
use unsticky::actix::{GuardMiddleware, SessionMiddleware};
use unsticky::{Csrf, CsrfToken, Guard, Level, Next, Result, Session, Sessions, SignedIn};

mod shop;

use shop::ready::Readiness;
use shop::{Add, CART, Cart, Confirm, End, Password, SignIn, Text};

const FRAMEWORK: &str = "actix-web";

#[actix_web::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // The closure runs once per worker. The sessions are created outside it, so that all workers share one
    // store.
    let sessions = shop::sessions()?;
    let (readiness, report) = Readiness::check(&sessions).await;
    println!("{report}");
    let server = HttpServer::new(move || {
        let shop = web::scope("").wrap(SessionMiddleware::new(sessions.clone())).configure(routes);
        App::new().configure(probes(&readiness)).service(shop)
    })
    .bind(shop::address()?)?;
    for address in server.addrs() {
        println!("listening on http://{address}");
    }
    server.run().await?;
    Ok(())
}

pub(crate) fn routes(app: &mut ServiceConfig) {
    let sessions = web::scope("/sessions")
        .wrap(GuardMiddleware::new(Guard::signed_in()))
        .route("", web::get().to(your_sessions))
        .route("/end", web::post().to(end))
        .route("/end-others", web::post().to(end_others));
    let confirm = web::resource("/confirm")
        .wrap(GuardMiddleware::new(Guard::signed_in()))
        .get(confirm_page)
        .post(confirm);
    let password = web::resource("/password")
        .wrap(GuardMiddleware::new(Guard::authenticated_within(shop::RECENTLY)))
        .get(password_page)
        .post(change_password);
    let all = web::scope("")
        .wrap(GuardMiddleware::new(Guard::same_origin()))
        .route("/", web::get().to(front_page))
        .route("/sign-in", web::get().to(sign_in_page))
        .route("/sign-in", web::post().to(sign_in))
        .route("/sign-out", web::post().to(sign_out))
        .route("/cart", web::post().to(add))
        .route("/cart.json", web::get().to(cart))
        // This route does not use the session, so it sends no store command.
        .route("/healthz", web::get().to(async || "ok"))
        .service(sessions)
        .service(confirm)
        .service(password);
    app.service(all);
}

/// These routes are outside the session middleware. Do not make them public: they reveal what is wrong.
fn probes(readiness: &Readiness) -> impl FnOnce(&mut ServiceConfig) + use<> {
    let readiness = Data::new(readiness.clone());
    move |app| {
        app.app_data(readiness).route("/ready", web::get().to(ready));
    }
}

async fn ready(readiness: Data<Readiness>) -> HttpResponse {
    let (mut response, text) = match readiness.answer().await {
        Ok(()) => (HttpResponse::Ok(), "ready".to_owned()),
        Err(reason) => (HttpResponse::ServiceUnavailable(), reason),
    };
    response.content_type(ContentType::plaintext()).insert_header((CACHE_CONTROL, "no-store"));
    response.body(text)
}

async fn front_page(session: Session) -> Result<Html> {
    shop::front_page(&session, FRAMEWORK).await.map(Html::new)
}

async fn cart(session: Session) -> Result<Json<Cart>> {
    Cart::of(&session, FRAMEWORK).map(Json)
}

async fn add(session: Session, Form(form): Form<Add>) -> Result<Redirect> {
    let Text(item) = form.item;
    session.flash(Level::Success, format!("In your cart: {item}"))?;
    // If another request wrote first, this change is applied again to the newer cart, so no article is lost.
    session.update(CART, move |cart| cart.push(item.clone()))?;
    Ok(Redirect::to("/").see_other())
}

async fn sign_in_page(session: Session, next: Next) -> Result<Html> {
    shop::sign_in_page(&session, &next).await.map(Html::new)
}

async fn sign_in(
    session: Session,
    sessions: Sessions,
    next: Next,
    request: HttpRequest,
    Form(form): Form<SignIn>,
) -> Result<Redirect> {
    let Text(name) = form.name;
    let user_agent = request.headers().get(USER_AGENT).and_then(|agent| agent.to_str().ok());
    // This call comes before the password check. If the password is changed in between, the sign-in fails.
    let sign_in = sessions.of(name).begin_sign_in().await?;
    // A real application verifies the password here. The shop accepts any password.
    session.sign_in_with(sign_in.label(shop::label(user_agent)))?;
    if form.remember.is_some() {
        session.set_lifetime(shop::REMEMBERED);
    }
    session.flash(Level::Success, "You are signed in.")?;
    Ok(Redirect::to(next.or("/").to_string()).see_other())
}

async fn sign_out(session: Session) -> Result<impl Responder> {
    session.sign_out();
    session.flash(Level::Info, "You are signed out.")?;
    Ok(Redirect::to("/").see_other().customize().insert_header(shop::FORGET_PAGES))
}

async fn your_sessions(user: SignedIn, token: CsrfToken) -> Result<Html> {
    shop::sessions_page(&user, &token).await.map(Html::new)
}

async fn end(user: SignedIn, Csrf(Form(form)): Csrf<Form<End>>) -> Result<Redirect> {
    // Has no effect if the session belongs to another user.
    match user.session.directory()?.revoke(form.id).await? {
        true => user.session.flash(Level::Success, "The session has ended.")?,
        false => user.session.flash(Level::Info, "The session had already ended.")?,
    }
    Ok(Redirect::to("/sessions").see_other())
}

// This form contains only the token.
async fn end_others(user: SignedIn, _: Csrf<String>) -> Result<Redirect> {
    user.session.directory()?.revoke_others(&user.session).await?;
    user.session.flash(Level::Success, "All your other sessions have ended.")?;
    Ok(Redirect::to("/sessions").see_other())
}

async fn password_page(user: SignedIn, token: CsrfToken) -> Result<Html> {
    shop::password_page(&user, &token).await.map(Html::new)
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
    Ok(Redirect::to("/sessions").see_other())
}

async fn confirm_page(user: SignedIn, next: Next, token: CsrfToken) -> Result<Html> {
    shop::confirm_page(&user, &next, &token).await.map(Html::new)
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
    Ok(Redirect::to(next.or("/").to_string()).see_other())
}

#[cfg(all(test, feature = "testing"))]
#[allow(clippy::unwrap_used, reason = "these are tests")]
mod tests {
    use std::time::Duration;

    use actix_web::http::StatusCode;
    use actix_web::http::header::{ACCEPT, CONTENT_TYPE, COOKIE, HeaderName, LOCATION, SET_COOKIE};
    use actix_web::test::{TestRequest, call_service, init_service, read_body};
    use unsticky::store::MemoryStore;
    use unsticky::testing::{self, ManualClock};

    use super::*;
    use crate::shop::probing::{self, Reply};

    async fn ask(readiness: &Readiness) -> Reply {
        let app = init_service(App::new().configure(probes(readiness))).await;
        let response = call_service(&app, TestRequest::get().uri("/ready").to_request()).await;
        let field = |name| response.headers().get(name).unwrap().to_str().unwrap().to_owned();
        let (content_type, cache_control) = (field(CONTENT_TYPE), field(CACHE_CONTROL));
        let status = response.status().as_u16();
        let body = String::from_utf8(read_body(response).await.to_vec()).unwrap();
        Reply { status, content_type, cache_control, body }
    }

    #[actix_web::test]
    async fn process_is_not_ready_while_redis_is_down() {
        probing::unready_while_redis_is_down(ask).await;
    }

    #[actix_web::test]
    async fn process_that_starts_first_is_ready_once_redis_is_up() {
        probing::unready_until_redis_is_up(ask).await;
    }

    #[actix_web::test]
    async fn process_is_not_ready_while_it_may_not_write() {
        probing::unready_until_permission_is_there(ask).await;
    }

    #[actix_web::test]
    async fn two_hundred_probes_share_one_load_a_second() {
        probing::probes_share_one_load_a_second(ask).await;
    }

    /// This is true even if the probe sends a cookie. The shop's own routes are still found.
    #[actix_web::test]
    async fn probe_is_no_request_of_the_session_middleware() {
        let (sessions, _) = sessions();
        let (readiness, _) = Readiness::check(&sessions).await;
        let shop = web::scope("").wrap(SessionMiddleware::new(sessions)).configure(routes);
        let app = init_service(App::new().configure(probes(&readiness)).service(shop)).await;
        let cookie = format!("shop={}", "A".repeat(43));
        for (path, varies) in [("/ready", false), ("/cart.json", true)] {
            let request = TestRequest::get().uri(path).insert_header((COOKIE, &*cookie));
            let response = call_service(&app, request.to_request()).await;
            assert_eq!(response.status(), StatusCode::OK, "{path}");
            assert_eq!(response.headers().contains_key("vary"), varies, "{path}");
        }
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
            self.send(TestRequest::get().uri(path)).await
        }

        async fn post(&mut self, path: &str, form: &str) -> Answer {
            let content_type = (CONTENT_TYPE, "application/x-www-form-urlencoded");
            let request = TestRequest::post().uri(path).insert_header(content_type);
            self.send(request.set_payload(form.to_owned())).await
        }

        async fn send(&mut self, request: TestRequest) -> Answer {
            let app = App::new().wrap(SessionMiddleware::new(self.sessions.clone()));
            let app = init_service(app.configure(routes)).await;
            let request = request.insert_header((ACCEPT, "text/html"));
            let request = request.insert_header((COOKIE, &*self.cookie)).to_request();
            let response = call_service(&app, request).await;
            let field = |name: HeaderName| {
                response.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
            };
            if let Some(cookie) = field(SET_COOKIE) {
                self.cookie = cookie.split(';').next().unwrap().to_owned();
            }
            let (status, location) = (response.status(), field(LOCATION));
            let body = String::from_utf8(read_body(response).await.to_vec()).unwrap();
            Answer { status, location, body }
        }
    }

    #[actix_web::test]
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

    #[actix_web::test]
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

    #[actix_web::test]
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

    #[actix_web::test]
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
