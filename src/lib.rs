//! Server-side sessions for stateless processes, in axum and in actix-web, on Redis, Valkey, Memcached or
//! memory.
//!
//! Any process can serve any request, and a process may be killed at any time: sessions are kept in a store,
//! which also expires them. The load balancer therefore needs no sticky sessions. Several requests in one
//! session may run at once, in any number of processes. No update is lost, a session that has ended stays
//! ended, and a session never has two valid secrets.
//!
//! ```text
//! request  -> session layer         keeps the Cookie header                     no command
//!          -> handler               asks for Session: the record is read once   0 or 1 command, 2 in strict mode
//!                                   get, insert, update, sign_in, sign_out      in memory
//! response <- session layer         commits what the handler changed            0 or 1 command, 3 for a sign-in
//!                                   Set-Cookie, Vary, Cache-Control
//! ```
//!
//! [How it works](guide::how_it_works) explains this diagram, and the [`guide`] leads from a first application
//! to production.
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
//! /// `transact` stores the change before it returns, so two concurrent requests get two different numbers.
//! async fn visit(session: Session) -> Result<String> {
//!     let visits = session
//!         .transact(|values| {
//!             let visits = values.get(VISITS)?.unwrap_or(0) + 1;
//!             values.insert(VISITS, &visits)?;
//!             Ok(visits)
//!         })
//!         .await?;
//!     Ok(format!("visit number {visits}"))
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
//! const CART: Key<Vec<String>> = Key::new("cart");
//!
//! /// Concurrent requests each add their own item.
//! async fn add(session: Session, item: web::Path<String>) -> Result<&'static str> {
//!     let item = item.into_inner();
//!     session.update(CART, move |cart| cart.push(item.clone()))?;
//!     Ok("added")
//! }
//!
//! pub async fn serve(url: &str) -> Result<(), Box<dyn std::error::Error>> {
//!     let sessions = Sessions::builder(unsticky::connect(url)?).build()?;
//!     let app = move || {
//!         App::new()
//!             .wrap(SessionMiddleware::new(sessions.clone()))
//!             .route("/cart/{item}", web::post().to(add))
//!     };
//!     HttpServer::new(app).bind("127.0.0.1:8080")?.run().await?;
//!     Ok(())
//! }
//! # }
//! ```
//!
//! # Where to go next
//!
//! | you want to | look at |
//! |---|---|
//! | build an application, task by task | the [`guide`] |
//! | read and change values | [`Session`], [`Key`] |
//! | configure the cookie, timeouts and limits | [`Sessions::builder`], [`Cookie`], [`Lifetime`] |
//! | choose the store with an environment variable | [`connect`] |
//! | require a signed-in user | [`SignedIn`], [`AuthenticatedWithin`], [`Maybe`]; for groups of routes, [`Guard`] |
//! | return to the requested page after a sign-in | [`Next`] |
//! | list, limit and revoke an account's sessions | [`Directory`], [`ConcurrentSessions`] |
//! | show a message on the next page | [`Session::flash`] |
//! | protect forms | [`CsrfToken`], [`Csrf`], [`Guard::same_origin`] |
//! | handle and render errors | [`ErrorKind`], [`Builder::on_error`] |
//! | test an application | `testing::signed_in`, `testing::ManualClock` |
//! | check the store before you accept traffic | [`Sessions::check`], [`Sessions::ping`] |
//! | write a store | [`Store`], `testing::conformance!` |
//! | write an adapter for another framework | [`exchange`] |
//!
//! # Features
//!
//! No feature is enabled by default, and no feature changes the behaviour of another. The crate needs the tokio
//! runtime.
//!
//! | feature | adds |
//! |---|---|
//! | `axum` | extractors and responses for axum 0.8; enables `tower` |
//! | `tower` | the layer for any tower stack |
//! | `actix` | the middleware, extractors and responses for actix-web 4 |
//! | `redis` | `RedisStore`, for Redis 6.2 or later and Valkey, including Cluster and Sentinel |
//! | `redis-tls` | TLS for Redis: addresses that begin with `rediss` or `valkeys` |
//! | `memcached` | `MemcachedStore`, for Memcached 1.6.13 or later |
//! | `memory` | `MemoryStore`, for development and tests |
//! | `tracing` | events for failures and for everything that is relevant to security |
//! | `metrics` | counters for the same events, and the store's latency |
//! | `testing` | signed-in users for tests, the conformance suite for stores, test doubles, a manual clock |
//! | `cli` | the `unsticky` command, which checks a store, and finds and revokes sessions; adds nothing to the library |
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

// The guide's examples need these features.
#[cfg(all(
    doc,
    any(
        not(doctest),
        all(feature = "axum", feature = "actix", feature = "memory", feature = "testing")
    )
))]
pub mod guide;

/// Compiles the examples of the README.
#[cfg(all(doctest, feature = "axum", feature = "actix", feature = "memory"))]
#[doc = include_str!("../README.md")]
struct Readme;
