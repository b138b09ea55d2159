//! Sessions in axum and in any other tower stack.
//!
//! ```text
//! request  --> SessionLayer: keeps the Cookie header, no I/O
//!          --> handler: the `Session` extractor finds the token and reads the record, once
//! response <-- SessionLayer: commits what was changed, adds Set-Cookie, Vary and Cache-Control
//! ```
//!
//! Unless [`Builder::on_error`](crate::Builder::on_error) is set, the layer replaces a response only if the
//! session's changes could not be stored. In that case, and if an extractor, a [`GuardLayer`] or a handler
//! returned an [`Error`](crate::Error), the response's extensions contain this error. The function set with
//! [`Builder::on_error`](crate::Builder::on_error) renders all of these errors. Your own layer outside the
//! session layer can render them as well:
//!
//! ```
//! # #[cfg(feature = "axum")]
//! # mod example {
//! use http::Response;
//!
//! /// For `axum::middleware::map_response`, outside the session layer.
//! async fn render<B: From<String>>(response: Response<B>) -> Response<B> {
//!     match response.extensions().get::<unsticky::Error>() {
//!         Some(error) => {
//!             let page = format!("<h1>Sorry</h1><p>{}</p>", error.kind().message());
//!             response.map(|_| page.into())
//!         }
//!         None => response,
//!     }
//! }
//! # }
//! ```

#[cfg(feature = "axum")]
mod csrf;
#[cfg(feature = "axum")]
mod extract;
mod future;
mod guard;
mod head;
mod layer;
mod service;

pub use self::future::ResponseFuture;
pub use self::guard::{GuardFuture, GuardLayer, GuardService};
pub use self::layer::SessionLayer;
pub use self::service::SessionService;
