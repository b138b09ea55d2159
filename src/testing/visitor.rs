//! Session cookies for an application's tests.

use crate::error::Result;
use crate::exchange::{Exchange, Finish};
use crate::session::Session;
use crate::settings::Sessions;

/// Signs in a new user and returns their cookie, as the value of a `Cookie` header field.
///
/// `values` runs after the sign-in and can store values in the new session or choose its lifetime. The
/// session is stored, listed and limited like any other, so pass the same `Sessions` that the application
/// under test uses.
///
/// ```
/// # #[cfg(all(feature = "axum", feature = "memory"))]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use axum::body::{Body, to_bytes};
/// use axum::http::Request;
/// use axum::{Router, routing::get};
/// use tower::ServiceExt as _;
/// use unsticky::{Key, Result, Sessions, SignedIn, testing, tower::SessionLayer};
///
/// const THEME: Key<String> = Key::new("theme");
///
/// async fn profile(user: SignedIn) -> Result<String> {
///     let theme = user.session.get(THEME)?.unwrap_or_default();
///     Ok(format!("{} likes it {theme}", user.principal))
/// }
///
/// let sessions = Sessions::builder(unsticky::connect("memory:")?).build()?;
/// let app: Router =
///     Router::new().route("/profile", get(profile)).layer(SessionLayer::new(sessions.clone()));
///
/// let cookie = testing::signed_in(&sessions, "alice", |it| it.insert(THEME, "dark")).await?;
///
/// let request = Request::get("/profile").header("cookie", &cookie).body(Body::empty())?;
/// let response = app.oneshot(request).await?;
/// assert_eq!(to_bytes(response.into_body(), 100).await?, "alice likes it dark");
/// # Ok(())
/// # }
/// # #[cfg(not(all(feature = "axum", feature = "memory")))]
/// # fn main() {}
/// ```
///
/// With actix-web:
///
/// ```
/// # #[cfg(all(feature = "actix", feature = "memory"))]
/// # #[actix_web::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use actix_web::{App, test, web};
/// use unsticky::{Sessions, SignedIn, actix::SessionMiddleware, testing};
///
/// async fn profile(user: SignedIn) -> String {
///     format!("hello {}", user.principal)
/// }
///
/// let sessions = Sessions::builder(unsticky::connect("memory:")?).build()?;
/// let app = App::new()
///     .wrap(SessionMiddleware::new(sessions.clone()))
///     .route("/profile", web::get().to(profile));
/// let app = test::init_service(app).await;
///
/// let cookie = testing::signed_in(&sessions, "alice", |_| Ok(())).await?;
///
/// let request = test::TestRequest::get().uri("/profile").insert_header(("cookie", cookie));
/// assert_eq!(test::call_and_read_body(&app, request.to_request()).await, "hello alice");
/// # Ok(())
/// # }
/// # #[cfg(not(all(feature = "actix", feature = "memory")))]
/// # fn main() {}
/// ```
///
/// # Errors
///
/// The errors from `values`, from [`Session::sign_in`] and from the commit, such as
/// [`TooManySessions`](crate::ErrorKind::TooManySessions).
#[doc(alias("login", "force_login", "act_as", "acting_as", "login_user"))]
pub async fn signed_in(
    sessions: &Sessions,
    principal: impl AsRef<str>,
    values: impl FnOnce(&Session) -> Result<()>,
) -> Result<String> {
    let (exchange, session) = begin(sessions).await?;
    session.sign_in(principal)?;
    values(&session)?;
    finish(exchange).await
}

/// Runs `handler` with the session of a new visitor and returns the cookie that the visitor received, as the
/// value of a `Cookie` header field. Use it for sessions in a state other than a plain [sign-in](signed_in).
///
/// If `handler` stored nothing, there is no session, and the returned string is empty. A request with an
/// empty `Cookie` header field is treated like one without a cookie.
///
/// ```
/// use unsticky::{Key, Sessions, testing};
///
/// const CART: Key<Vec<u32>> = Key::new("cart");
///
/// # #[cfg(feature = "memory")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let sessions = Sessions::builder(unsticky::connect("memory:")?).build()?;
/// let cookie = testing::cookie(&sessions, async |it| it.insert(CART, &vec![7])).await?;
/// assert!(cookie.starts_with("__Host-id="));
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "memory"))]
/// # fn main() {}
/// ```
///
/// # Errors
///
/// The errors from `handler` and from the commit after it.
pub async fn cookie(
    sessions: &Sessions,
    handler: impl AsyncFnOnce(&Session) -> Result<()>,
) -> Result<String> {
    let (exchange, session) = begin(sessions).await?;
    handler(&session).await?;
    finish(exchange).await
}

/// Begins a request from a visitor without a cookie.
async fn begin(sessions: &Sessions) -> Result<(Exchange, Session)> {
    let exchange = Exchange::begin(sessions, [""; 0], None);
    let session = exchange.handle().session().await?;
    Ok((exchange, session))
}

/// Returns the cookie that the response sets, in the form in which a browser sends it back.
async fn finish(exchange: Exchange) -> Result<String> {
    let reply = match exchange.finish(200) {
        Finish::Ready(reply) => reply,
        Finish::Pending(reply) => reply.await,
    };
    if let Some(error) = reply.error {
        return Err(error);
    }
    let cookie = reply.set_cookie.unwrap_or_default();
    Ok(cookie.split(';').next().unwrap_or_default().to_owned())
}
