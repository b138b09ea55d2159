//! What a browser makes of the cookies, and a person of the shop: a headless Chromium, driven through
//! its driver, against the shop examples as processes and against small applications of the tests' own.
//!
//! Each test has a browser of its own with an empty profile, and servers of its own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod browser;
mod cookies;
mod people;
mod process;
#[path = "../../support/servers.rs"]
mod servers;
mod sessions;
mod shop;
mod shopping;
mod site;
