//! The applications that are compared. All contenders have the same routes.
//!
//! | route | what it does |
//! |---|---|
//! | `/empty` | does nothing, outside the session layer; in actix-web, the middleware wraps all routes, including this one |
//! | `/plain` | does nothing, inside the session layer |
//! | `/read` | returns one value from the session, as text |
//! | `/increment` | increments that value |
//! | `/sign-in`, `/sign-in-1k` | signs in with a new secret; stores a count and a text of 100 or 1024 bytes |
//! | `/sign-out` | ends the session |

mod actix_session;
pub mod axum_session;
mod hand;
pub mod tower_sessions;
mod unsticky;

use std::io::Read as _;
use std::net::TcpListener;

use ::unsticky::DirectoryMode;
use axum::Router;
use tokio::runtime;

/// The contenders, in the order of the page: this crate, its peers as their READMEs set them up, and
/// hand-written code.
pub const CONTENDERS: [&str; 12] = [
    "unsticky-axum",
    "unsticky-axum, directory off",
    "tower-sessions",
    "axum_session",
    "axum_session, memory off",
    "hand-axum",
    "hand-axum, nodelay",
    "unsticky-actix",
    "unsticky-actix, directory off",
    "actix-session",
    "hand-actix",
    "hand-actix, nodelay",
];

/// The contenders whose latency is measured at a fixed rate.
pub const AT_RATE: [&str; 6] = [
    "unsticky-axum",
    "tower-sessions",
    "hand-axum",
    "unsticky-actix",
    "actix-session",
    "hand-actix",
];

/// The contenders whose instructions and allocations are counted, and for which the choices are measured.
pub const COUNTED: [&str; 4] = ["unsticky-axum", "hand-axum", "unsticky-actix", "hand-actix"];

/// Returns the hand-written application for the same framework.
pub fn baseline(contender: &str) -> &'static str {
    if contender.contains("actix") { "hand-actix" } else { "hand-axum" }
}

const USER: &str = "account-4711";
const SHORT: usize = 100;
const LONG: usize = 1024;

/// Serves until standard input closes.
pub fn serve(contender: &str, redis: &str) {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    println!("{}", listener.local_addr().unwrap().port());
    match contender {
        "unsticky-axum" => axum(listener, unsticky::axum(redis, DirectoryMode::default())),
        "unsticky-axum, directory off" => axum(listener, unsticky::axum(redis, DirectoryMode::Off)),
        "tower-sessions" => axum(listener, tower_sessions::app(redis)),
        "axum_session" => axum(listener, axum_session::app(redis, true)),
        "axum_session, memory off" => axum(listener, axum_session::app(redis, false)),
        "hand-axum" => axum(listener, hand::axum(redis, false)),
        "hand-axum, nodelay" => axum(listener, hand::axum(redis, true)),
        "unsticky-actix" => unsticky::actix(listener, redis, DirectoryMode::default()),
        "unsticky-actix, directory off" => unsticky::actix(listener, redis, DirectoryMode::Off),
        "actix-session" => actix_session::serve(listener, redis),
        "hand-actix" => hand::actix(listener, redis, false),
        "hand-actix, nodelay" => hand::actix(listener, redis, true),
        _ => panic!("there is no {contender}"),
    }
}

fn axum(listener: TcpListener, app: impl Future<Output = Router>) {
    // This is the runtime of `#[tokio::main]`. `TOKIO_WORKER_THREADS` sets the number of workers.
    runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
            stream.set_nodelay(true).unwrap();
        });
        let app = app.await.route("/empty", axum::routing::get(async || "empty"));
        // The server runs as a task, because the thread that blocks here is not a worker.
        tokio::spawn(async { axum::serve(listener, app).await }).await.unwrap().unwrap();
    });
}

/// Returns the number of workers for actix-web. tokio reads the same variable itself.
fn workers() -> usize {
    std::env::var("TOKIO_WORKER_THREADS").map_or(1, |workers| workers.parse().unwrap())
}

/// Serves the application that `$app` creates.
macro_rules! serve_actix {
    ($listener:expr, $app:expr) => {
        HttpServer::new($app)
            .workers(crate::app::workers())
            .listen($listener)
            .unwrap()
            .disable_signals()
            .run()
            .await
            .unwrap()
    };
}
use serve_actix;

fn text(bytes: usize) -> String {
    "x".repeat(bytes)
}
