//! Compares the crate with hand-written code and with its peers. `scripts/bench-peers` runs all of it.
//!
//! ```text
//! peers web|stores|costs|core [--quick | --check]   measures, and writes benches/results/*.json
//! peers report                                      writes benches/RESULTS.md and its plots
//! ```
//!
//! With `--check` everything runs just long enough to see that it works, and nothing is written.

mod app;
mod load;
mod results;
#[path = "../../../tests/support/servers.rs"]
mod servers;
mod web;

use std::time::Duration;

use web::Effort;

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let (effort, written) = match arguments.last() {
        Some(&"--check") => (Effort { rounds: 1, duration: Duration::from_millis(20) }, false),
        Some(&"--quick") => (Effort { rounds: 3, duration: Duration::from_millis(200) }, true),
        _ => (Effort { rounds: 9, duration: Duration::from_millis(400) }, true),
    };
    let measured = match arguments[..] {
        ["serve", contender, redis] => return app::serve(contender, redis),
        ["web", ..] => web::run(effort),
        _ => panic!("peers web|stores|costs|core [--quick | --check], or peers report"),
    };
    if written {
        measured.save(&results::committed(), arguments[0]);
    }
}
