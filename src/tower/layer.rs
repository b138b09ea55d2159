//! The layer that gives requests their session.

use tower_layer::Layer;

use super::service::SessionService;
use crate::settings::Sessions;

/// The tower layer that provides each request with its session and commits the session's changes before the
/// response is sent.
///
/// The inner service need not implement `Clone`. Its response body must implement `From<Bytes>`, because the
/// layer replaces a response with an error if the session's changes could not be stored; see
/// [below](#the-body-of-a-response).
///
/// ```
/// # #[cfg(all(feature = "axum", feature = "memory"))]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use axum::body::{Body, to_bytes};
/// use axum::http::Request;
/// use axum::{Router, routing::get};
/// use tower::ServiceExt as _;
/// use unsticky::{Session, Sessions, tower::SessionLayer};
///
/// async fn hello(session: Session) -> String {
///     format!("signed in: {}", session.is_signed_in())
/// }
///
/// let sessions = Sessions::builder(unsticky::connect("memory:")?).build()?;
/// let app: Router = Router::new().route("/", get(hello)).layer(SessionLayer::new(sessions));
///
/// let response = app.oneshot(Request::get("/").body(Body::empty())?).await?;
/// assert_eq!(to_bytes(response.into_body(), 100).await?, "signed in: false");
/// # Ok(())
/// # }
/// # #[cfg(not(all(feature = "axum", feature = "memory")))]
/// # fn main() {}
/// ```
///
/// # Several cookies in one application
///
/// If you have two separate routers, for example one for customers and one for administrators, give each its
/// own layer. If layers are nested, the extractors use the innermost one. To get another layer's session,
/// pass that layer's [`Sessions`] to [`SessionHandle::of`](crate::exchange::SessionHandle::of):
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
/// /// The session of an administrator, independent of the customer's session.
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
/// Give the layers different cookie names. A token is valid only under the name of its own cookie, and the
/// default [namespace](crate::Builder::namespace) is derived from that name, so the sessions of the layers
/// share nothing in the store. If two nested layers have the same cookie name, an error event reports this.
/// If two nested layers have the same [`Sessions`], there is only one session: the inner layer uses the
/// session of the outer layer, which commits it.
///
/// # Order of layers
///
/// When a response passes through this layer, the session's changes become final.
///
/// - Place layers that can replace the handler's response with an error, such as a timeout, *inside* this
///   layer. By default, if the error has status 408 or 5xx, the handler's incomplete changes are
///   [discarded](crate::Builder::on_failed_response).
/// - Layers that add header fields to every response, such as CORS, request ids and tracing, can be on either
///   side. If a response is replaced because the session's changes could not be stored, the new response
///   keeps all header fields except [these](crate::exchange::REPLACED_FIELDS). Tracing *outside* this layer
///   sees the status of the new response.
///
/// # The body of a response
///
/// The layer keeps the body type of the inner service. axum's `Body` and `http_body_util::Full<Bytes>`
/// implement `From<Bytes>`. Layers such as compression have their own body types, and hyper services often
/// have a `BoxBody`. `Router::layer` converts them into axum's `Body` automatically. Elsewhere, for example
/// in a `ServiceBuilder`, convert a body that does not implement `From<Bytes>` before it reaches this layer:
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
#[doc(alias("SessionManagerLayer", "SessionMiddleware"))]
#[derive(Debug, Clone)]
pub struct SessionLayer {
    sessions: Sessions,
}

impl SessionLayer {
    /// Creates a layer with the configuration and the store of `sessions`.
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
