//! The API in actix-web.
//!
//! ```sh
//! PORT=3001 cargo run --bin api_actix
//! ```

#![allow(clippy::print_stdout, reason = "it prints the address that it listens on")]

use std::error::Error;
use std::fmt::Display;
use std::time::Duration;

use actix_web::error::InternalError;
use actix_web::web::{self, Json, JsonConfig, Path, PathConfig, ServiceConfig};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use actix_ws::{CloseReason, Message, MessageStream};
use api::{Export, Live, Me, Notes, Problem, SignIn};
use unsticky::actix::{GuardMiddleware, SessionMiddleware};
use unsticky::{
    Csrf, CsrfToken, Guard, ListedSession, Maybe, Result, Session, SessionId, Sessions, SignedIn,
};

#[actix_web::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Every worker calls the closure. The sessions are created outside it, so that all workers share
    // connections.
    let (sessions, check_every) = (api::sessions()?, api::check_every()?);
    let server = HttpServer::new(move || {
        App::new().configure(|config| routes(config, &sessions, check_every))
    })
    .bind(api::address()?)?;
    for address in server.addrs() {
        println!("listening on http://{address}");
    }
    server.run().await?;
    Ok(())
}

pub(crate) fn routes(config: &mut ServiceConfig, sessions: &Sessions, check_every: Duration) {
    let api = web::scope("")
        .app_data(web::Data::new(check_every))
        // Makes these errors JSON, like all others.
        .app_data(JsonConfig::default().error_handler(|error, _| bad_request(error)))
        .app_data(PathConfig::default().error_handler(|error, _| bad_request(error)))
        .route("/sign-in", web::post().to(sign_in))
        .route("/sign-out", web::post().to(sign_out))
        .route("/me", web::get().to(me))
        .route("/sessions", web::get().to(list_sessions))
        .route("/sessions/{id}", web::delete().to(end_session))
        .route("/csrf", web::get().to(csrf))
        .route("/notes", web::put().to(put_notes))
        .route("/export", web::get().to(get_export))
        .route("/export", web::post().to(start_export))
        .route("/live", web::get().to(live))
        // Pages on other sites cannot send requests that change something, and cannot open a WebSocket.
        .wrap(GuardMiddleware::new(Guard::same_origin()))
        .wrap(SessionMiddleware::new(sessions.clone()));
    config.service(api);
}

fn no_content() -> HttpResponse {
    HttpResponse::NoContent().finish()
}

async fn sign_in(session: Session, Json(form): Json<SignIn>) -> Result<HttpResponse> {
    api::sign_in(&session, form).await?;
    Ok(no_content())
}

async fn sign_out(session: Session) -> HttpResponse {
    session.sign_out();
    no_content()
}

/// Returns `null` if no user is signed in.
async fn me(Maybe(user): Maybe<SignedIn>) -> Result<Json<Option<Me>>> {
    user.as_ref().map(Me::of).transpose().map(Json)
}

async fn list_sessions(user: SignedIn) -> Result<Json<Vec<ListedSession>>> {
    user.session.directory()?.list().await.map(Json)
}

async fn end_session(user: SignedIn, id: Path<SessionId>) -> Result<HttpResponse> {
    Ok(match api::end_session(&user, *id).await? {
        true => no_content(),
        false => HttpResponse::NotFound().json(Problem::not_found()),
    })
}

/// Returns the CSRF token, which changes at each sign-in.
async fn csrf(_: SignedIn, token: CsrfToken) -> Json<CsrfToken> {
    Json(token)
}

/// Requires the CSRF token in the `X-CSRF-Token` header. The guard already refuses cross-site requests; NIST
/// SP 800-63B-4 5.1 requires a token as well.
async fn put_notes(user: SignedIn, Csrf(Json(notes)): Csrf<Json<Notes>>) -> Result<HttpResponse> {
    api::put_notes(&user, notes)?;
    Ok(no_content())
}

async fn get_export(user: SignedIn) -> Result<Json<Export>> {
    Ok(Json(user.session.get(api::EXPORT)?.unwrap_or_default()))
}

async fn start_export(user: SignedIn) -> Result<HttpResponse> {
    api::start_export(user).await?;
    Ok(HttpResponse::Accepted().finish())
}

async fn live(
    user: SignedIn,
    check_every: web::Data<Duration>,
    request: HttpRequest,
    body: web::Payload,
) -> Result<HttpResponse, actix_web::Error> {
    let live = Live::new(user, **check_every);
    let (response, socket, messages) = actix_ws::handle(&request, body).map_err(bad_request)?;
    actix_web::rt::spawn(serve(socket, messages, live));
    Ok(response)
}

async fn serve(mut socket: actix_ws::Session, mut messages: MessageStream, mut live: Live) {
    let reason = loop {
        let is_use = tokio::select! {
            message = messages.recv() => match message {
                Some(Ok(Message::Text(_))) => true,
                // A browser sends pings without any action by its user, so pings do not count as use.
                Some(Ok(Message::Ping(ping))) => match socket.pong(&ping).await {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                Some(Ok(Message::Pong(_))) => continue,
                _ => break None,
            },
            () = live.tick() => false,
        };
        match live.check(is_use).await {
            Ok(text) => {
                if socket.text(text).await.is_err() {
                    return;
                }
            }
            Err(api::Close { code, reason }) => {
                break Some(CloseReason { code: code.into(), description: Some(reason.into()) });
            }
        }
    };
    // Fails if the client has already disconnected.
    let _ = socket.close(reason).await;
}

fn bad_request(error: impl Display + std::fmt::Debug + 'static) -> actix_web::Error {
    let problem = Problem::bad_request(&error);
    InternalError::from_response(error, HttpResponse::BadRequest().json(problem)).into()
}
