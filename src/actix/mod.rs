//! Sessions in actix-web.
//!
//! ```text
//! request  --> SessionMiddleware: keeps the Cookie header, no I/O
//!          --> handler: the `Session` extractor finds the token and reads the record, once
//! response <-- SessionMiddleware: commits what was changed, adds Set-Cookie, Vary and Cache-Control
//! ```
//!
//! Unless [`Builder::on_error`](crate::Builder::on_error) is set, the middleware replaces a response only if
//! the session's changes could not be stored. In that case, and if an extractor, a [`GuardMiddleware`] or a
//! handler returned an [`Error`](crate::Error), the response's `error()` returns this error. The function set
//! with [`Builder::on_error`](crate::Builder::on_error) renders all of these errors. `ErrorHandlers` and
//! other middleware outside the session middleware can render them as well.
//!
//! If a middleware inside the session middleware returns an error instead of a response, the error is passed
//! on with its type unchanged, and the session's header fields are added to its `error_response()`. It is
//! replaced by an [`Error`](crate::Error) only if the session's changes could not be stored.
//!
//! **Do not use `Option<Session>` or `Option<SignedIn>` as extractors.** actix-web's own `Option` extractor
//! turns every error into `None`. While the store is down, a signed-in user would be treated as anonymous.
//! Use [`Maybe<SignedIn>`](crate::Maybe), or a `Result`, instead.

mod csrf;
mod extract;
mod future;
mod guard;
mod head;
mod middleware;

pub use self::future::ResponseFuture;
pub use self::guard::{GuardMiddleware, GuardService};
pub use self::middleware::{SessionMiddleware, SessionService};
