//! The shop examples, as two processes on one Redis.

use std::path::PathBuf;
use std::process::Command;

use crate::browser::Browser;
use crate::process::Program;
use crate::servers::RedisServer;

/// The addresses of the two; the host is the same, and browsers do not tell ports apart.
pub(crate) struct Shop {
    pub(crate) axum: String,
    pub(crate) actix: String,
    _programs: [Program; 2],
    _redis: RedisServer,
}

impl Shop {
    pub(crate) fn start() -> Self {
        let redis = RedisServer::start();
        let start = |example: &str| {
            let mut command = Command::new(examples().join(example));
            command.env("SESSION_URL", redis.url()).env("PORT", "0");
            let program = Program::start(&mut command, "run scripts/test-browser, which builds it");
            (program.announces("listening on "), program)
        };
        let (axum, on_axum) = start("shop_axum");
        let (actix, on_actix) = start("shop_actix");
        Self { axum, actix, _programs: [on_axum, on_actix], _redis: redis }
    }
}

/// The button of those who are not signed in.
pub(crate) const SIGN_IN: &str = "form[action='/sign-in'] button";

pub(crate) async fn sign_in(browser: &Browser, name: &str) {
    browser.fill("form[action='/sign-in'] input", name).await;
    browser.press(SIGN_IN).await;
    assert_eq!(browser.text("b").await, name);
}

/// Where `cargo build` has put the examples.
fn examples() -> PathBuf {
    match std::env::var_os("UNSTICKY_EXAMPLES") {
        Some(directory) => directory.into(),
        None => concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/debug/examples").into(),
    }
}
