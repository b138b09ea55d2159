use tower_layer::Layer;

use super::service::SessionService;
use crate::settings::Sessions;

/// The tower layer that gives requests their session.
///
/// The inner service need not be `Clone`. Its body must be `From<Bytes>`, because a response whose session
/// changes could not be kept is replaced by an error; see [below](#the-body-of-a-response).
///
/// ```
/// # #[cfg(feature = "axum")]
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use axum::{Router, routing::get};
/// use unsticky::{Session, Sessions, tower::SessionLayer};
///
/// async fn hello(session: Session) -> String {
///     format!("signed in: {}", session.is_signed_in())
/// }
///
/// let sessions = Sessions::builder(unsticky::connect("memory:")?).build()?;
/// let app: Router = Router::new().route("/", get(hello)).layer(SessionLayer::new(sessions));
/// # Ok(())
/// # }
/// ```
///
/// # Several cookies in one application
///
/// Two routers side by side, one for customers and one for administrators, just get a layer each.
/// Where layers are nested, the extractors use the innermost one, and
/// [`SessionHandle::of`](crate::exchange::SessionHandle::of) finds another by its [`Sessions`]:
///
/// ```
/// # #[cfg(feature = "axum")]
/// # mod example {
/// use axum::extract::{FromRef, FromRequestParts};
/// use http::request::Parts;
/// use unsticky::{Result, Session, Sessions, exchange::SessionHandle};
///
/// /// In the application's state.
/// #[derive(Clone)]
/// struct Admins(Sessions);
///
/// /// An administrator's session, whatever customer's session there is besides.
/// struct AdminSession(Session);
///
/// impl<S: Send + Sync> FromRequestParts<S> for AdminSession
/// where
///     Admins: FromRef<S>,
/// {
///     type Rejection = unsticky::Error;
///
///     async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
///         let Admins(admins) = Admins::from_ref(state);
///         let handle = SessionHandle::from_request_parts(parts, state).await?;
///         match handle.of(&admins) {
///             Some(handle) => handle.session().await.map(Self),
///             None => Err(unsticky::exchange::missing_layer("add the administrators' layer")),
///         }
///     }
/// }
/// # }
/// ```
///
/// Give them different cookie names: a token is valid under its own cookie's name only, and the default
/// [namespace](crate::Builder::namespace) is made from that name, so that they share nothing in the store.
/// One inside the other with the same name is an error event. The same [`Sessions`] twice, one inside the
/// other, is one session: the inner layer uses that of the outer one, which commits it.
///
/// # Where other layers belong
///
/// A response is final for the session when it passes this layer. What may replace the handler's
/// response by an error, such as a time limit, belongs further in: its 408 or 503 then discards what the
/// handler has done half. What adds header fields to every response, such as CORS, request ids and
/// tracing, may be on either side: a response that is replaced because its session changes could not be
/// kept keeps all header fields but [these](crate::exchange::REPLACED_FIELDS). Tracing further out also sees
/// the status of the replaced response.
///
/// # The body of a response
///
/// The layer keeps the body type of the service inside it. axum's `Body` and `http_body_util::Full<Bytes>`
/// are `From<Bytes>`. Layers such as compression make a body of their own, and hyper services often have a
/// `BoxBody`. `Router::layer` turns them into axum's `Body` by itself; elsewhere, such as in a
/// `ServiceBuilder`, turn a body that is not `From<Bytes>` into one that is before it gets to this layer:
///
/// ```
/// # #[cfg(feature = "axum")]
/// # fn example(sessions: unsticky::Sessions) {
/// use axum::body::Body;
/// use http::Response;
/// use tower::ServiceBuilder;
/// use unsticky::tower::SessionLayer;
///
/// # type CompressedBody = Body;
/// # let compression = tower::layer::util::Identity::new();
/// let layers = ServiceBuilder::new()
///     .layer(SessionLayer::new(sessions))
///     .map_response(|response: Response<CompressedBody>| response.map(Body::new))
///     .layer(compression);
/// # let app: axum::Router = axum::Router::new().layer(layers);
/// # }
/// ```
#[doc(alias = "SessionManagerLayer")]
#[derive(Debug, Clone)]
pub struct SessionLayer {
    sessions: Sessions,
}

impl SessionLayer {
    /// A layer for these sessions.
    #[must_use]
    pub fn new(sessions: Sessions) -> Self {
        Self { sessions }
    }
}

impl<S> Layer<S> for SessionLayer {
    type Service = SessionService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        SessionService::new(inner, self.sessions.clone())
    }
}
