//! Sessions in axum and in any other tower stack.
//!
//! ```text
//! request  --> SessionLayer: keeps the Cookie header, no I/O
//!          --> handler: the `Session` extractor finds the token and reads the record, once
//! response <-- SessionLayer: commits what was changed, adds Set-Cookie, Vary and Cache-Control
//! ```
//!
//! A response is replaced only where the changes of its handler could not be kept. The
//! [`Error`](crate::Error) is then in the response's extensions, as it is where an extractor, a
//! [`GuardLayer`] or a handler answered with one. [`Builder::on_error`](crate::Builder::on_error) renders all
//! of them; a layer of your own further out can do so, too:
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
