//! Server-side sessions for stateless processes, in axum and in actix-web, on Redis, Memcached or
//! memory.
//!
//! Any request may be served by any process, and a process may vanish between two requests: the
//! session lives in a store with time-expiration, and the balancer needs no affinity ("sticky
//! sessions"). Requests of one session may run at once, in as many processes as there are: no update
//! is lost, no session comes back from the dead, and there are never two valid secrets.
//!
//! ```text
//! request  -> layer | middleware    keeps the Cookie header                 no command
//!          -> handler(session)      the extractor reads the record, once    0..1 commands, 2 in strict mode
//!                                   get, insert, update, sign_in, sign_out
//! response <- layer | middleware    commits what was changed                0..1 commands, 3 for a sign-in
//!                                   Set-Cookie, Vary, Cache-Control
//! ```
//!
//! # axum
//!
//! ```
//! # #[cfg(all(feature = "axum", feature = "memory"))]
//! # mod example {
//! use axum::{Router, routing::get};
//! use unsticky::{Key, Result, Session, Sessions, tower::SessionLayer};
//!
//! const VISITS: Key<u64> = Key::new("visits");
//!
//! async fn visit(session: Session) -> Result<String> {
//!     session.update(VISITS, |visits| *visits += 1)?;
//!     Ok(format!("visit number {}", session.get(VISITS)?.unwrap_or(0)))
//! }
//!
//! pub fn app(url: &str) -> Result<Router, Box<dyn std::error::Error>> {
//!     let sessions = Sessions::builder(unsticky::connect(url)?).build()?;
//!     Ok(Router::new().route("/", get(visit)).layer(SessionLayer::new(sessions)))
//! }
//! # #[test]
//! # fn app_is_built() { app("memory:").unwrap(); }
//! # }
//! ```
//!
//! # actix-web
//!
//! ```
//! # #[cfg(all(feature = "actix", feature = "memory"))]
//! # mod example {
//! use actix_web::{App, HttpServer, web};
//! use unsticky::{Key, Result, Session, Sessions, actix::SessionMiddleware};
//!
//! const VISITS: Key<u64> = Key::new("visits");
//!
//! async fn visit(session: Session) -> Result<String> {
//!     session.update(VISITS, |visits| *visits += 1)?;
//!     Ok(format!("visit number {}", session.get(VISITS)?.unwrap_or(0)))
//! }
//!
//! pub async fn serve(url: &str) -> Result<(), Box<dyn std::error::Error>> {
//!     let sessions = Sessions::builder(unsticky::connect(url)?).build()?;
//!     let app = move || {
//!         App::new()
//!             .wrap(SessionMiddleware::new(sessions.clone()))
//!             .route("/", web::get().to(visit))
//!     };
//!     HttpServer::new(app).bind("127.0.0.1:8080")?.run().await?;
//!     Ok(())
//! }
//! # }
//! ```
//!
//! # Where to go from here
//!
//! - [`guide`]: what applications build around a session, task by task: sign-in pages, guards, error pages, messages,
//!   forms, OAuth, WebSockets, jobs, tests.
//! - [`Session`]: what a handler can do, and what each write promises.
//! - [`Sessions::builder`]: cookie, lifetimes, limits, policies, with their defaults.
//! - [`Cookie`]: its name and attributes, and development over plain http.
//! - [`connect`]: a store from an address, for configuration by environment.
//! - [`SignedIn`]: for routes that need a user who is signed in; [`AuthenticatedWithin`]: and who
//!   authenticated recently; [`Maybe`]: for pages that also serve visitors.
//! - [`Guard`]: the same for a group of routes, and permissions; [`Next`]: the way back after a sign-in.
//! - [`Directory`]: somebody's sessions, to be listed, opened, limited and ended.
//! - [`Session::flash`]: messages for the next page; [`CsrfToken`]: forms that only a page of this session can send.
//! - [`Store`]: the contract, for stores of your own, and `testing::conformance!` to check them.
//! - `testing::signed_in`: somebody who is signed in, for the tests of your application.
//! - [`exchange`]: the request cycle without a framework, for adapters of your own.
//! - [`ErrorKind`]: what can go wrong, and which response it becomes; [`Builder::on_error`]: your own pages
//!   for it.
//!
//! # Features
//!
//! None is on by default, and none changes what another one does. All of it runs on tokio.
//!
//! | feature | brings |
//! |---|---|
//! | `axum` | extractors and responses for axum 0.8; implies `tower` |
//! | `tower` | the layer for any tower stack |
//! | `actix` | the middleware, extractors and responses for actix-web 4 |
//! | `redis` | `RedisStore`, for Redis 6.2 or newer and Valkey |
//! | `redis-tls` | `rediss://` and `valkeys://` addresses |
//! | `memcached` | `MemcachedStore`, for Memcached 1.6.13 or newer |
//! | `memory` | `MemoryStore`, for development and tests |
//! | `tracing` | events for what goes wrong and what matters to security |
//! | `metrics` | counters of the same events, and how long the store takes |
//! | `testing` | signed-in visitors, the conformance suite, spy and fault doubles, the manual clock |
//! | `cli` | the command `unsticky`, to check a store, to look sessions up and to revoke them; nothing in the library |
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "actix")]
pub mod actix;
mod answer;
mod budget;
pub mod check;
mod clock;
mod commands;
mod commit;
mod completion;
mod cookie;
mod directory;
mod entropy;
mod error;
mod event;
pub mod exchange;
mod guard;
mod head;
#[cfg(any(fuzzing, feature = "testing", feature = "cli"))]
#[doc(hidden)]
pub mod internals;
mod key_lock;
mod limits;
mod load;
mod record;
mod session;
mod sessions;
mod settings;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "tower")]
pub mod tower;

pub use crate::answer::ErrorResponse;
pub use crate::clock::{Clock, SystemClock};
pub use crate::cookie::template::{Cookie, SameSite};
pub use crate::entropy::Entropy;
pub use crate::error::{Error, ErrorKind, Result};
pub use crate::event::Audit;
pub use crate::guard::Guard;
pub use crate::head::local_path::{LocalPath, Next};
pub use crate::head::request::Wants;
pub use crate::record::flash::{Flash, Level};
pub use crate::record::key::{AsKey, Key, RuntimeKey, StoredAs};
pub use crate::record::lifetime::{Lifetime, Persistence};
pub use crate::record::loaded::Loss;
pub use crate::record::sign_in::SignIn;
pub use crate::record::token::{ParseIdError, SessionId};
pub use crate::record::transaction::Transaction;
pub use crate::session::Session;
pub use crate::session::csrf::{Csrf, CsrfToken};
pub use crate::session::signed_in::{AuthenticatedWithin, Maybe, SignedIn};
pub use crate::sessions::builder::{Builder, ConfigError};
pub use crate::sessions::describe::Policy;
pub use crate::sessions::directory::{Directory, ListedSession, Revoked};
pub use crate::sessions::open::OpenSession;
pub use crate::settings::{ConcurrentSessions, DirectoryMode, OnFailedResponse, Sessions};
pub use crate::store::{ConnectError, Store, connect};
#[cfg(feature = "redis")]
pub use redis;

// Its examples are compiled where everything is there that they use.
#[cfg(all(
    doc,
    any(
        not(doctest),
        all(feature = "axum", feature = "actix", feature = "memory", feature = "testing")
    )
))]
pub mod guide;

/// The README's examples are compiled, too.
#[cfg(all(doctest, feature = "axum", feature = "actix", feature = "memory"))]
#[doc = include_str!("../README.md")]
struct Readme;
