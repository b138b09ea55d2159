//! The middleware that gives requests their session.

use std::future::{Ready, ready};

use actix_web::HttpMessage as _;
use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{Service, ServiceRequest, ServiceResponse, Transform, forward_ready};
use actix_web::http::header::{COOKIE, HeaderValue, ORIGIN};

use super::future::ResponseFuture;
use super::head;
use crate::exchange::{ErrorRenderer, Exchange, SessionHandle};
use crate::settings::Sessions;

/// The actix-web middleware that provides each request with its session and commits the session's changes before
/// the response is sent.
///
/// Create the [`Sessions`] outside the closure that you pass to `HttpServer::new`, so that all workers share
/// one store. The closure runs once per worker, so each worker would otherwise get its own memory store.
///
/// ```
/// # #[cfg(all(feature = "actix", feature = "memory"))]
/// # #[actix_web::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use actix_web::{App, test, web};
/// use unsticky::{Session, Sessions, actix::SessionMiddleware};
///
/// async fn hello(session: Session) -> String {
///     format!("signed in: {}", session.is_signed_in())
/// }
///
/// let sessions = Sessions::builder(unsticky::connect("memory:")?).build()?;
/// let app = App::new()
///     .wrap(SessionMiddleware::new(sessions.clone()))
///     .route("/", web::get().to(hello));
///
/// let app = test::init_service(app).await;
/// let request = test::TestRequest::get().uri("/").to_request();
/// assert_eq!(test::call_and_read_body(&app, request).await, "signed in: false");
/// # Ok(())
/// # }
/// # #[cfg(not(all(feature = "actix", feature = "memory")))]
/// # fn main() {}
/// ```
///
/// # Several cookies in one application
///
/// If you have two separate scopes, for example one for customers and one for administrators, wrap each in
/// its own middleware. If middlewares are nested, the extractors use the innermost one. To get another
/// middleware's session, pass that middleware's [`Sessions`] to [`SessionHandle::of`]:
///
/// ```
/// use actix_web::web;
/// use unsticky::{Result, Sessions, exchange::SessionHandle};
///
/// struct Admins(Sessions);
///
/// async fn dashboard(handle: SessionHandle, admins: web::Data<Admins>) -> Result<String> {
///     let session = match handle.of(&admins.0) {
///         Some(handle) => handle.session().await?,
///         None => return Err(unsticky::exchange::missing_layer("add the administrators' middleware")),
///     };
///     Ok(format!("administrator: {}", session.is_signed_in()))
/// }
/// # let _ = dashboard;
/// ```
///
/// Give the middlewares different cookie names. A token is valid only under the name of its own cookie, and
/// the default [namespace](crate::Builder::namespace) is derived from that name, so the sessions of the
/// middlewares share nothing in the store. If two nested middlewares have the same cookie name, an error
/// event reports this. If two nested middlewares have the same [`Sessions`], there is only one session: the
/// inner middleware uses the session of the outer middleware, which commits it.
///
/// # Order of middleware
///
/// When a response passes through this middleware, the session's changes become final. The middleware that is
/// wrapped last is the outermost.
///
/// - Place middleware that can replace the handler's response with an error, such as a timeout, *inside* this
///   one. By default, if the error has status 408 or 5xx, the handler's incomplete changes are
///   [discarded](crate::Builder::on_failed_response).
/// - Middleware that adds header fields to every response, such as CORS, request ids and tracing, can be on
///   either side. If a response is replaced because the session's changes could not be stored, the new
///   response keeps all header fields except [these](crate::exchange::REPLACED_FIELDS). Tracing *outside*
///   this middleware sees the status of the new response.
#[doc(alias("SessionLayer", "SessionManagerLayer"))]
#[derive(Debug, Clone)]
pub struct SessionMiddleware {
    sessions: Sessions,
}

impl SessionMiddleware {
    /// Creates a middleware with the configuration and the store of `sessions`.
    #[must_use]
    pub fn new(sessions: Sessions) -> Self {
        Self { sessions }
    }
}

impl<S, B> Transform<S, ServiceRequest> for SessionMiddleware
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = actix_web::Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = actix_web::Error;
    type Transform = SessionService<S>;
    type InitError = ();
    type Future = Ready<Result<Self::Transform, Self::InitError>>;

    fn new_transform(&self, service: S) -> Self::Future {
        ready(Ok(SessionService { inner: service, sessions: self.sessions.clone() }))
    }
}

/// The service made by [`SessionMiddleware`].
#[derive(Debug)]
pub struct SessionService<S> {
    inner: S,
    sessions: Sessions,
}

impl<S, B> Service<ServiceRequest> for SessionService<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = actix_web::Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = actix_web::Error;
    type Future = ResponseFuture<S::Future, B>;

    forward_ready!(inner);

    fn call(&self, request: ServiceRequest) -> Self::Future {
        let outer = request.extensions().get::<SessionHandle>().cloned();
        let renderer = ErrorRenderer::of(&self.sessions, || head::of(request.request()));
        let cookies = request.headers().get_all(COOKIE).cloned();
        let mut exchange = Exchange::begin(&self.sessions, cookies, outer.clone());
        let origin = request.headers().get(ORIGIN).map(HeaderValue::as_bytes);
        exchange.note_origin(origin, || head::of(request.request()));
        request.extensions_mut().insert(exchange.handle());
        ResponseFuture::new(self.inner.call(request), exchange, outer, renderer)
    }
}
