//! Compares the crate with hand-written code and with other libraries. `scripts/bench-peers` runs all
//! measurements.
//!
//! ```text
//! peers web|stores|costs|core|choices [--quick | --check]   measures, and writes benches/results/*.json
//! peers behaviour [--quick | --check]                       writes benches/results/behaviour.txt
//! peers report [--quick | --check]                          writes benches/RESULTS.md and its charts
//! peers choices <word> …                                    measures only some choices, and prints the table
//! peers one <contender> <workload>                          runs one measurement, for a profiler
//! peers work <name> <times>                                 does the crate's own work, for callgrind
//! ```
//!
//! With `--quick`, the results go to `target/results`, and the page to `target`. With `--check`, each
//! measurement runs only long enough to show that it works, and nothing is written; the behaviour and the report
//! are compared with the existing ones.

mod app;
mod behaviour;
#[path = "../../sessions/canned.rs"]
mod canned;
mod chart;
mod choices;
mod core;
mod costs;
mod goals;
mod load;
#[path = "../../../tests/support/proxy.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod proxy;
mod report;
#[path = "../../sessions/request.rs"]
#[allow(dead_code, reason = "the criterion benchmarks use more of it")]
mod request;
mod results;
#[path = "../../../tests/support/servers.rs"]
mod servers;
mod stores;
mod web;

use std::path::{Path, PathBuf};
use std::time::Duration;

use web::Effort;

/// How much is measured, and for what purpose.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Full,
    Quick,
    Check,
}

impl Mode {
    fn effort(self) -> Effort {
        let (rounds, millis) = match self {
            Self::Full => (11, 200),
            Self::Quick => (3, 100),
            Self::Check => (1, 10),
        };
        Effort { rounds, duration: Duration::from_millis(millis) }
    }

    fn most_sessions(self) -> usize {
        match self {
            Self::Full => 1_000_000,
            Self::Quick => 100_000,
            Self::Check => 1_000,
        }
    }

    /// Returns the directory to which measurements write results, and from which the report reads them.
    fn directory(self) -> PathBuf {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        package.join(if self == Self::Quick { "target/results" } else { "../results" })
    }
}

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let mut arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let mode = match arguments.last() {
        Some(&"--check") => Mode::Check,
        Some(&"--quick") => Mode::Quick,
        _ => Mode::Full,
    };
    arguments.retain(|argument| !argument.starts_with("--"));
    let effort = mode.effort();
    let mut measured = match arguments[..] {
        ["serve", contender, redis] => return app::serve(contender, redis),
        ["work", name, times] => return core::work(name, times.parse().unwrap()),
        ["one", contender, workload] => return web::one(contender, workload, effort),
        ["behaviour"] => return behaviour::run(mode),
        ["report"] => return report::report(&mode.directory(), mode),
        ["web"] => web::run(effort),
        ["stores"] => stores::run(effort),
        ["costs"] => costs::run(effort, mode.most_sessions()),
        ["core"] => core::run(mode),
        ["choices"] => choices::run(effort, &[]),
        ["choices", ref wanted @ ..] => {
            print!("{}", report::choices(&choices::run(effort, wanted)));
            return;
        }
        _ => panic!("see the beginning of benches/peers/src/main.rs"),
    };
    let rounds = format!("{} of {} ms", effort.rounds, effort.duration.as_millis());
    measured.about.insert("rounds".to_owned(), rounds);
    if mode != Mode::Check {
        measured.save(&mode.directory(), arguments[0]);
    }
}
