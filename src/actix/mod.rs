//! Sessions in actix-web.
//!
//! ```text
//! request  --> SessionMiddleware: keeps the Cookie header, no I/O
//!          --> handler: the `Session` extractor finds the token and reads the record, once
//! response <-- SessionMiddleware: commits what was changed, adds Set-Cookie, Vary and Cache-Control
//! ```
//!
//! A response is replaced only where the changes of its handler could not be kept; the new one's
//! `error()` is then an [`Error`](crate::Error), as it is where an extractor, a [`GuardMiddleware`] or a
//! handler failed with one. [`Builder::on_error`](crate::Builder::on_error) renders all of them;
//! `ErrorHandlers` and other middleware further out can do so, too. Where a middleware further in fails with an
//! error in place of a response, that error goes on, of the type that it is, and what the session adds is
//! added to its `error_response()`.
//!
//! **Do not take `Option<Session>` or `Option<SignedIn>`.** actix-web's own `Option` extractor turns every
//! error into `None`: while the store is down, a user who is signed in would seem to be nobody. Take
//! [`Maybe<SignedIn>`](crate::Maybe), or a `Result`.

mod csrf;
mod extract;
mod future;
mod guard;
mod head;
mod middleware;

pub use self::future::ResponseFuture;
pub use self::guard::{GuardMiddleware, GuardService};
pub use self::middleware::{SessionMiddleware, SessionService};
