//! The API in axum.
//!
//! ```sh
//! PORT=3000 cargo run --bin api_axum
//! ```

#![allow(clippy::print_stdout, reason = "it prints the address that it listens on")]

use std::error::Error;
use std::fmt::Display;
use std::time::Duration;

use api::{Export, Live, Me, Notes, Problem, SignIn};
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequest, FromRequestParts, Path, Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use tokio::net::TcpListener;
use unsticky::tower::{GuardLayer, SessionLayer};
use unsticky::{
    Csrf, CsrfToken, Guard, ListedSession, Maybe, Result, Session, SessionId, Sessions, SignedIn,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let app = app(api::sessions()?, api::check_every()?);
    let listener = TcpListener::bind(api::address()?).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}

pub(crate) fn app(sessions: Sessions, check_every: Duration) -> Router {
    Router::new()
        .route("/sign-in", post(sign_in))
        .route("/sign-out", post(sign_out))
        .route("/me", get(me))
        .route("/sessions", get(list_sessions))
        .route("/sessions/{id}", delete(end_session))
        .route("/csrf", get(csrf))
        .route("/notes", put(put_notes))
        .route("/export", get(get_export).post(start_export))
        .route("/live", get(live))
        .with_state(check_every)
        // Pages on other sites cannot send requests that change something, and cannot open a WebSocket.
        .layer(GuardLayer::new(Guard::same_origin()))
        .layer(SessionLayer::new(sessions))
}

async fn sign_in(
    session: Session,
    Checked(Json(form)): Checked<Json<SignIn>>,
) -> Result<StatusCode> {
    api::sign_in(&session, form).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn sign_out(session: Session) -> StatusCode {
    session.sign_out();
    StatusCode::NO_CONTENT
}

/// Returns `null` if no user is signed in.
async fn me(Maybe(user): Maybe<SignedIn>) -> Result<Json<Option<Me>>> {
    user.as_ref().map(Me::of).transpose().map(Json)
}

async fn list_sessions(user: SignedIn) -> Result<Json<Vec<ListedSession>>> {
    user.session.directory()?.list().await.map(Json)
}

async fn end_session(
    user: SignedIn,
    Checked(Path(id)): Checked<Path<SessionId>>,
) -> Result<Response> {
    Ok(match api::end_session(&user, id).await? {
        true => StatusCode::NO_CONTENT.into_response(),
        false => (StatusCode::NOT_FOUND, Json(Problem::not_found())).into_response(),
    })
}

/// Returns the CSRF token, which changes at each sign-in.
async fn csrf(_: SignedIn, token: CsrfToken) -> Json<CsrfToken> {
    Json(token)
}

/// Requires the CSRF token in the `X-CSRF-Token` header. The guard already refuses cross-site requests; NIST
/// SP 800-63B-4 5.1 requires a token as well.
async fn put_notes(
    user: SignedIn,
    Csrf(Checked(Json(notes))): Csrf<Checked<Json<Notes>>>,
) -> Result<StatusCode> {
    api::put_notes(&user, notes)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn get_export(user: SignedIn) -> Result<Json<Export>> {
    Ok(Json(user.session.get(api::EXPORT)?.unwrap_or_default()))
}

async fn start_export(user: SignedIn) -> Result<StatusCode> {
    api::start_export(user).await?;
    Ok(StatusCode::ACCEPTED)
}

async fn live(
    user: SignedIn,
    State(check_every): State<Duration>,
    Checked(upgrade): Checked<WebSocketUpgrade>,
) -> Response {
    let live = Live::new(user, check_every);
    // The default limit in axum is 64 MiB.
    upgrade.max_message_size(64 * 1024).on_upgrade(move |socket| serve(socket, live))
}

async fn serve(mut socket: WebSocket, mut live: Live) {
    loop {
        let is_use = tokio::select! {
            message = socket.recv() => match message {
                Some(Ok(Message::Text(_))) => true,
                // axum answers pings. A browser sends them without any action by its user, so pings do not
                // count as use.
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                _ => return,
            },
            () = live.tick() => false,
        };
        let message = match live.check(is_use).await {
            Ok(text) => Message::Text(text.into()),
            Err(api::Close { code, reason }) => {
                Message::Close(Some(CloseFrame { code, reason: reason.into() }))
            }
        };
        // After the close frame, the client closes the connection too, and `recv` returns `None`.
        if socket.send(message).await.is_err() {
            return;
        }
    }
}

/// Wraps an axum extractor so that its rejections are JSON, like all other errors.
struct Checked<E>(E);

type BadRequest = (StatusCode, Json<Problem>);

fn bad_request(rejection: impl Display) -> BadRequest {
    (StatusCode::BAD_REQUEST, Json(Problem::bad_request(rejection)))
}

impl<S: Sync, E: FromRequest<S, Rejection: Display>> FromRequest<S> for Checked<E> {
    type Rejection = BadRequest;

    async fn from_request(request: Request, state: &S) -> Result<Self, BadRequest> {
        E::from_request(request, state).await.map(Self).map_err(bad_request)
    }
}

impl<S: Sync, E: FromRequestParts<S, Rejection: Display>> FromRequestParts<S> for Checked<E> {
    type Rejection = BadRequest;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, BadRequest> {
        E::from_request_parts(parts, state).await.map(Self).map_err(bad_request)
    }
}
