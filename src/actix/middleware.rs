use std::future::{Ready, ready};
use std::pin::Pin;
use std::rc::Rc;

use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{Service, ServiceRequest, ServiceResponse, Transform, forward_ready};
use actix_web::error::InternalError;
use actix_web::http::header::{
    CACHE_CONTROL, COOKIE, HeaderMap, HeaderName, HeaderValue, SET_COOKIE, VARY,
};
use actix_web::{HttpMessage as _, HttpResponse};

use crate::exchange::{Exchange, Finish, REPLACED_FIELDS, Reply, SessionHandle};
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
        ready(Ok(SessionService { inner: Rc::new(service), sessions: self.sessions.clone() }))
    }
}

/// The service that [`SessionMiddleware`] makes.
#[derive(Debug)]
pub struct SessionService<S> {
    inner: Rc<S>,
    sessions: Sessions,
}

impl<S, B> Service<ServiceRequest> for SessionService<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = actix_web::Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = actix_web::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>>>>;

    forward_ready!(inner);

    fn call(&self, request: ServiceRequest) -> Self::Future {
        let outer = request.extensions().get::<SessionHandle>().cloned();
        let cookies = request.headers().get_all(COOKIE).map(HeaderValue::as_bytes);
        let exchange = Exchange::begin(&self.sessions, cookies, outer.clone());
        request.extensions_mut().insert(exchange.handle());
        let response = self.inner.call(request);
        Box::pin(async move {
            match response.await {
                Ok(response) => {
                    let reply = finished(exchange, response.status().as_u16()).await;
                    // Requests share their extensions with what is further out.
                    if let Some(outer) = outer {
                        response.request().extensions_mut().insert(outer);
                    }
                    let (request, response) = response.into_parts();
                    Ok(ServiceResponse::new(request, replied(response, reply)))
                }
                // A middleware further in failed; as a response it is what a handler's failure is.
                Err(error) => {
                    let status = error.as_response_error().status_code().as_u16();
                    let reply = finished(exchange, status).await;
                    if !reply.vary && reply.set_cookie.is_none() && reply.error.is_none() {
                        return Err(error);
                    }
                    let response = replied(error.error_response(), reply);
                    Err(InternalError::from_response(error, response.map_into_boxed_body()).into())
                }
            }
        })
    }
}

async fn finished(exchange: Exchange, status: u16) -> Reply {
    match exchange.finish(status) {
        Finish::Ready(reply) => reply,
        Finish::Pending(commit) => commit.await,
    }
}

/// The response with what the exchange adds to it, or the error that takes its place.
fn replied<B: MessageBody>(
    response: HttpResponse<B>,
    mut reply: Reply,
) -> HttpResponse<EitherBody<B>> {
    let mut response = match reply.error.take() {
        Some(error) => {
            let mut replaced = HttpResponse::from_error(error).map_into_right_body();
            let is_replaced = |name: &HeaderName| REPLACED_FIELDS.contains(&name.as_str());
            for (name, value) in response.headers().iter().filter(|(name, _)| !is_replaced(name)) {
                replaced.headers_mut().append(name.clone(), value.clone());
            }
            replaced
        }
        None => response.map_into_left_body(),
    };
    add_headers(response.headers_mut(), reply);
    response
}

fn add_headers(headers: &mut HeaderMap, reply: Reply) {
    if reply.adds_vary(headers.get_all(VARY).map(HeaderValue::as_bytes)) {
        headers.append(VARY, HeaderValue::from_static("cookie"));
    }
    if let Some(cookie) = reply.set_cookie.and_then(|cookie| HeaderValue::try_from(cookie).ok()) {
        // Added: the handler's own cookies stay.
        headers.append(SET_COOKIE, cookie);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
}
