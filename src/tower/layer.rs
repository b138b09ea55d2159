use tower_layer::Layer;

use super::service::SessionService;
use crate::config::Sessions;

/// The tower layer that gives requests their session.
///
/// Neither the inner service has to be `Clone` nor its body `Default`.
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
/// Layers with different cookies may be nested: the extractors then use the innermost one, and
/// [`Handle::of`](crate::exchange::Handle::of) finds another by its [`Sessions`]. Two applications
/// side by side, one for customers and one for administrators, just get a layer each.
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
