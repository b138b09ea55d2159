//! Compares the crate with hand-written code and with its peers. `scripts/bench-peers` runs all of it.
//!
//! ```text
//! peers web|stores|costs|core [--quick | --check]   measures, and writes benches/results/*.json
//! peers one <contender> <workload>                   one of them, for a profiler
//! peers report                                      writes benches/RESULTS.md and its plots
//! ```
//!
//! With `--check` everything runs just long enough to see that it works, and nothing is written.

mod app;
#[path = "../../sessions/canned.rs"]
mod canned;
mod core;
mod costs;
mod load;
#[path = "../../../tests/support/proxy.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod proxy;
#[path = "../../sessions/request.rs"]
#[allow(dead_code, reason = "the criterion benchmarks use more of it")]
mod request;
mod report;
mod results;
#[path = "../../../tests/support/servers.rs"]
mod servers;
mod stores;
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
        ["one", contender, workload, ..] => {
            web::one(contender, workload, effort);
            return;
        }
        ["web", ..] => web::run(effort),
        ["report"] => return report::write(),
        ["work", name, times] => return core::work(name, times.parse().unwrap()),
        ["core", ..] => core::run(effort),
        ["costs", "--check"] => costs::run(effort, 1_000),
        ["costs", "--quick"] => costs::run(effort, 100_000),
        ["costs"] => costs::run(effort, 1_000_000),
        ["stores", ..] => stores::run(effort),
        _ => panic!("peers web|stores|costs|core [--quick | --check], or peers report"),
    };
    if written {
        measured.save(&results::committed(), arguments[0]);
    }
}
