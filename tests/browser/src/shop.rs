//! The example shops, as two processes on one Redis server.

use std::path::PathBuf;
use std::process::Command;

use crate::browser::Browser;
use crate::process::Program;
use crate::servers::RedisServer;

/// The URLs of both shops. The host is the same, and cookies ignore the port.
pub(crate) struct Shop {
    pub(crate) axum: String,
    pub(crate) actix: String,
    _programs: [Program; 2],
    pub(crate) redis: RedisServer,
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
        Self { axum, actix, _programs: [on_axum, on_actix], redis }
    }
}

/// The sign-in link, which is on every page while no user is signed in.
pub(crate) const SIGN_IN: &str = "a[href='/sign-in']";

/// The sign-out button, which is on every page while a user is signed in.
pub(crate) const SIGN_OUT: &str = "form[action='/sign-out'] button";

/// The flash message from the last action.
pub(crate) const MESSAGE: &str = "p[role=status]";

/// Signs in on the sign-in page, after following the link to that page if necessary.
pub(crate) async fn sign_in(browser: &Browser, name: &str) {
    if browser.count("input[name=password]").await == 0 {
        browser.press(SIGN_IN).await;
    }
    browser.fill("input[name=name]", name).await;
    browser.fill("input[name=password]", "xyzzy").await;
    browser.press("main button").await;
    assert_eq!(browser.text("b").await, name);
    assert_eq!(browser.text(MESSAGE).await, "You are signed in.");
}

pub(crate) async fn add(browser: &Browser, article: &str) {
    browser.fill("form[action='/cart'] input", article).await;
    browser.press("form[action='/cart'] button").await;
    assert_eq!(browser.text(MESSAGE).await, format!("In your cart: {article}"));
}

/// Returns the directory in which `cargo build` put the examples.
fn examples() -> PathBuf {
    match std::env::var_os("UNSTICKY_EXAMPLES") {
        Some(directory) => directory.into(),
        None => concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/debug/examples").into(),
    }
}
