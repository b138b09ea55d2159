//! Sessions in actix-web.
//!
//! ```text
//! request  --> SessionMiddleware: keeps the Cookie header, no I/O
//!          --> handler: the `Session` extractor finds the token and reads the record, once
//! response <-- SessionMiddleware: commits what was changed, adds Set-Cookie, Vary and Cache-Control
//! ```
//!
//! A response is replaced only where the changes of its handler could not be kept; the new one's
//! `error()` is then an [`Error`](crate::Error), for `ErrorHandlers` and other middleware further out.

mod extract;
mod future;
mod middleware;

pub use self::future::ResponseFuture;
pub use self::middleware::{SessionMiddleware, SessionService};
