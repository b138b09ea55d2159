//! Tests the cookies and the example shops in a headless Chromium, which is controlled through its driver.
//! The tests run the shops as separate processes, and also use small applications of their own.
//!
//! Each test has its own browser with an empty profile, and its own servers.

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
