//! An application with actix-web, in one file. The page `actix-web` of the guide explains it.
#![allow(clippy::print_stdout, reason = "the report of the check")]

use std::error::Error;

use actix_web::http::StatusCode;
use actix_web::http::header::USER_AGENT;
use actix_web::web::{self, Bytes, Data, Form, Html, Redirect, ServiceConfig};
use actix_web::{App, Either, HttpRequest, HttpResponse, HttpServer, Responder};
use serde::Deserialize;
use unsticky::actix::{GuardMiddleware, SessionMiddleware};
use unsticky::{
    Builder, Cookie, Csrf, CsrfToken, Guard, Key, Level, Maybe, Next, Result, Session, SessionId,
    Sessions, SignedIn, Store,
};

/// A cart that a visitor fills before the sign-in is still there afterwards.
const CART: Key<Vec<String>> = Key::new("cart").survives_sign_in();

#[actix_web::main]
async fn main() -> std::result::Result<(), Box<dyn Error>> {
    // redis://127.0.0.1/ in production; `memory:` needs no server, and forgets everything when the process ends.
    let url = std::env::var("SESSION_URL").unwrap_or_else(|_| "memory:".to_owned());
    let sessions = sessions(unsticky::connect(&url)?).build()?;
    println!("{}", sessions.check().await); // what would go wrong with this store, and what to do about it
    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    // The closure runs once for each worker; the workers share `sessions`.
    let server =
        HttpServer::new(move || App::new().configure(|config| app(config, sessions.clone())))
            .bind(format!("127.0.0.1:{port}"))?;
    println!("listening on http://localhost:{port}");
    server.run().await?;
    Ok(())
}

/// The settings, for `main` and for the tests.
fn sessions(store: impl Store) -> Builder {
    let cookie = match cfg!(debug_assertions) {
        true => Cookie::new("shop").insecure(), // a debug build: for http://localhost
        false => Cookie::default(),             // a release build: for https only
    };
    Sessions::builder(store).namespace("shop").cookie(cookie).sign_in_page("/sign-in")
}

fn app(config: &mut ServiceConfig, sessions: Sessions) {
    let account = web::scope("/sessions")
        .wrap(GuardMiddleware::new(Guard::signed_in()))
        .route("", web::get().to(your_sessions))
        .route("/revoke", web::post().to(revoke))
        .route("/revoke-others", web::post().to(revoke_others));
    let pages = web::scope("")
        .wrap(GuardMiddleware::new(Guard::same_origin()))
        .wrap(SessionMiddleware::new(sessions.clone())) // the last one is the outermost
        .route("/", web::get().to(front_page))
        .route("/cart", web::post().to(add))
        .route("/sign-in", web::get().to(sign_in_page))
        .route("/sign-in", web::post().to(sign_in))
        .route("/sign-out", web::post().to(sign_out))
        .service(account);
    config
        .app_data(Data::new(sessions))
        // Before `pages`: an empty scope matches every path, so no route after it is reached.
        .route("/ready", web::get().to(ready))
        .service(pages);
}

/// Tells the load balancer whether the store answers. Each request reads one record, so do not expose this route to
/// the public. It is outside the middleware, so it takes `Data`.
async fn ready(sessions: Data<Sessions>) -> HttpResponse {
    match sessions.ping().await {
        Ok(()) => HttpResponse::Ok().finish(),
        Err(_) => HttpResponse::ServiceUnavailable().finish(),
    }
}

async fn front_page(session: Session, Maybe(user): Maybe<SignedIn>) -> Result<Html> {
    let mut page = format!(
        "<!doctype html><meta charset=utf-8><title>Shop</title><h1>Shop</h1>{}<ul>",
        messages(&session).await?
    );
    for item in session.get(CART)?.unwrap_or_default() {
        page += &format!("<li>{}</li>", escape(&item));
    }
    page += "</ul><form method=post action=/cart><input name=item required><button>Add to cart</button></form>";
    page += &match user {
        Some(user) => format!(
            "<p>Hello {}. <a href=/sessions>Your sessions</a></p>
             <form method=post action=/sign-out><button>Sign out</button></form>",
            escape(&user.principal)
        ),
        None => "<p><a href=/sign-in>Sign in</a></p>".to_owned(),
    };
    Ok(Html::new(page))
}

#[derive(Deserialize)]
struct Add {
    item: String,
}

async fn add(session: Session, Form(form): Form<Add>) -> Result<Redirect> {
    session.update(CART, move |cart| cart.push(form.item.clone()))?;
    session.flash(Level::Success, "Added to your cart.")?;
    Ok(Redirect::to("/").see_other())
}

/// The messages for this page. Every page to which a handler redirects after `flash` must show them.
async fn messages(session: &Session) -> Result<String> {
    let messages = session.flashes().await?;
    Ok(messages
        .iter()
        .map(|message| format!("<p role=status>{}</p>", escape(&message.text)))
        .collect())
}

async fn sign_in_page(next: Next) -> Html {
    sign_in_form(&next, "")
}

fn sign_in_form(next: &Next, error: &str) -> Html {
    let action = next.page("/sign-in"); // keeps the page that the visitor asked for
    Html::new(format!(
        "<p role=alert>{error}</p><form method=post action=\"{action}\"><input name=name required>
         <input name=password type=password required><button>Sign in</button></form>"
    ))
}

#[derive(Deserialize)]
struct SignInForm {
    name: String,
    password: String,
}

async fn sign_in(
    session: Session,
    sessions: Sessions,
    next: Next,
    request: HttpRequest,
    Form(form): Form<SignInForm>,
) -> Result<Either<impl Responder, Redirect>> {
    let account = form.name.to_lowercase(); // in a real application, the account's stable id
    // If all sessions of the account are revoked while the password is verified, the sign-in fails.
    let begun = sessions.of(&account).begin_sign_in().await?;
    if form.password != "correct horse" {
        let page = sign_in_form(&next, "The name or the password is wrong.");
        return Ok(Either::Left(page.customize().with_status(StatusCode::UNPROCESSABLE_ENTITY)));
    }
    // A real application shows and logs a shorter label, such as `Firefox on Linux`.
    let browser = request.headers().get(USER_AGENT).and_then(|value| value.to_str().ok());
    session.sign_in_with(begun.label(browser.unwrap_or("unknown")))?;
    // Without `see_other` this is a 307, and the browser sends the password to the next page as well.
    Ok(Either::Right(Redirect::to(next.or("/")).see_other()))
}

async fn sign_out(session: Session) -> Redirect {
    session.sign_out();
    Redirect::to("/").see_other()
}

async fn your_sessions(user: SignedIn, token: CsrfToken) -> Result<Html> {
    let token = token.field(); // a hidden field of the forms
    let mut page = format!("<h1>Your sessions</h1>{}", messages(&user.session).await?);
    for listed in user.session.directory()?.list().await? {
        let browser = escape(listed.label.as_deref().unwrap_or("unknown"));
        page += &match listed.is_current {
            true => format!("<p>{browser} (this one)</p>"),
            false => format!(
                "<form method=post action=/sessions/revoke>{browser} {token}
                 <input type=hidden name=id value=\"{id}\"><button>Sign out there</button></form>",
                id = listed.id
            ),
        };
    }
    page += &format!(
        "<form method=post action=/sessions/revoke-others>{token}
         <button>Sign out everywhere else</button></form>"
    );
    Ok(Html::new(page))
}

#[derive(Deserialize)]
struct Revoke {
    id: SessionId,
}

async fn revoke(user: SignedIn, Csrf(Form(form)): Csrf<Form<Revoke>>) -> Result<Redirect> {
    user.session.directory()?.revoke(form.id).await?; // revokes only sessions of this account
    Ok(Redirect::to("/sessions").see_other())
}

/// `Csrf<Bytes>` verifies the token of a form that has no other field.
async fn revoke_others(user: SignedIn, _: Csrf<Bytes>) -> Result<Redirect> {
    user.session.directory()?.revoke_others(&user.session).await?;
    user.session.flash(Level::Success, "All your other sessions have ended.")?;
    Ok(Redirect::to("/sessions").see_other())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use actix_web::http::header::{COOKIE, LOCATION, SET_COOKIE};
    use actix_web::test::{self, TestRequest};
    use unsticky::store::MemoryStore;
    use unsticky::testing::{self, Fault, FaultStore, ManualClock, Verb};

    use super::*;

    /// A macro, because the type of the service has no name.
    macro_rules! service {
        ($sessions:expr) => {
            test::init_service(App::new().configure(|config| app(config, $sessions))).await
        };
    }

    #[actix_web::test]
    async fn account_pages_need_a_sign_in_that_has_not_expired() {
        let clock = ManualClock::new();
        let store = MemoryStore::with_clock(clock.clone());
        let sessions = sessions(store).clock(clock.clone()).build().unwrap();
        let alice = testing::signed_in(&sessions, "alice", |_| Ok(())).await.unwrap();
        let service = service!(sessions);
        let page = || TestRequest::get().uri("/sessions");
        let with_cookie = || page().insert_header((COOKIE, alice.as_str())).to_request();

        let response = test::call_service(&service, page().to_request()).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED); // a browser would be redirected

        let body = test::call_and_read_body(&service, with_cookie()).await;
        assert!(String::from_utf8_lossy(&body).contains("(this one)"));

        clock.advance(Duration::from_secs(30 * 60)); // the idle timeout
        let response = test::call_service(&service, with_cookie()).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    }

    #[actix_web::test]
    async fn sign_in_leads_to_the_page_that_the_visitor_asked_for() {
        let service = service!(sessions(MemoryStore::new()).build().unwrap());
        let sign_in = async |password| {
            let form = [("name", "alice"), ("password", password)];
            let request = TestRequest::post().uri("/sign-in?next=/sessions").set_form(form);
            test::call_service(&service, request.to_request()).await
        };
        assert_eq!(sign_in("wrong").await.status(), StatusCode::UNPROCESSABLE_ENTITY);

        let response = sign_in("correct horse").await;
        assert_eq!(response.status(), StatusCode::SEE_OTHER);
        assert_eq!(response.headers().get(LOCATION).unwrap(), "/sessions");
        let set_cookie = response.headers().get(SET_COOKIE).unwrap().to_str().unwrap();
        let cookie = set_cookie.split(';').next().unwrap();
        let request = TestRequest::get().uri("/sessions").insert_header((COOKIE, cookie));
        let body = test::call_and_read_body(&service, request.to_request()).await;
        assert!(String::from_utf8_lossy(&body).contains("(this one)"));

        let without_token = TestRequest::post().uri("/sessions/revoke-others");
        let request = without_token.insert_header((COOKIE, cookie)).to_request();
        assert_eq!(test::call_service(&service, request).await.status(), StatusCode::FORBIDDEN);
    }

    #[actix_web::test]
    async fn process_is_ready_only_while_the_store_answers() {
        let store = FaultStore::new(MemoryStore::new());
        let service = service!(sessions(store.clone()).build().unwrap());
        let ready = || TestRequest::get().uri("/ready").to_request();
        assert_eq!(test::call_service(&service, ready()).await.status(), StatusCode::OK);
        store.fail_always(Verb::Load, Fault::Unavailable);
        let response = test::call_service(&service, ready()).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
