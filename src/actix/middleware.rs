use std::future::{Ready, ready};

use actix_web::HttpMessage as _;
use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{Service, ServiceRequest, ServiceResponse, Transform, forward_ready};
use actix_web::http::header::{COOKIE, HeaderValue, ORIGIN};

use super::future::ResponseFuture;
use super::head;
use crate::exchange::{ErrorRenderer, Exchange, SessionHandle};
use crate::settings::Sessions;

/// The actix-web middleware that gives requests their session.
///
/// Make the [`Sessions`] outside the closure of `HttpServer::new`, so that all workers share its
/// connections.
///
/// ```
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use actix_web::{App, web};
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
/// # let _ = app;
/// # Ok(())
/// # }
/// ```
///
/// # Several cookies in one application
///
/// Two scopes side by side, one for customers and one for administrators, just get a middleware each.
/// Where middlewares are nested, the extractors use the innermost one, and [`SessionHandle::of`] finds another
/// by its [`Sessions`]:
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
///         None => return Err(unsticky::exchange::missing_layer("add the administrators' one")),
///     };
///     Ok(format!("administrator: {}", session.is_signed_in()))
/// }
/// # let _ = dashboard;
/// ```
///
/// Give them different cookie names: a token is valid under its own cookie's name only, and the default
/// [namespace](crate::Builder::namespace) is made from that name, so that they share nothing in the store.
/// One inside the other with the same name is an error event. The same [`Sessions`] twice, one inside the
/// other, is one session: the inner middleware uses that of the outer one, which commits it.
///
/// # Where other layers belong
///
/// A response is final for the session when it passes this middleware. What may replace the handler's
/// response by an error, such as a time limit, belongs further in: its 408 or 503 then discards what the
/// handler has done half. What adds header fields to every response, such as CORS, request ids and
/// tracing, may be on either side: a response that is replaced because its session changes could not be
/// kept keeps all header fields but [these](crate::exchange::REPLACED_FIELDS). Tracing further out also sees
/// the status of the replaced response.
#[derive(Debug, Clone)]
pub struct SessionMiddleware {
    sessions: Sessions,
}

impl SessionMiddleware {
    /// A middleware for these sessions.
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

/// The service that [`SessionMiddleware`] makes.
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
