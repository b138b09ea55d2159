//! Measures the effect of an application's choices: its allocator, where Redis runs, and the number of
//! workers.

use std::path::{Path, PathBuf};

use crate::app::COUNTED;
use crate::load::Workload;
use crate::results::{Results, labels};
use crate::servers::RedisServer;
use crate::web::{App, Effort, Setup, move_to, runtime, turn};

/// The choices. The first is the baseline.
pub const CHOICES: [&str; 7] = [
    "as everywhere else",
    "jemalloc",
    "mimalloc",
    "Redis by a unix socket",
    "Redis on the application's core",
    "Redis on another core",
    "two workers on both cores",
];

pub const WORKLOADS: [Workload; 3] = [Workload::Read, Workload::Increment, Workload::SignIn];

/// Returns the path of an allocator's library from the Debian packages libjemalloc2 and libmimalloc2.0, if it
/// is installed.
fn library(name: &str) -> Option<PathBuf> {
    let arch = std::env::consts::ARCH;
    let path = Path::new("/usr/lib").join(format!("{arch}-linux-gnu")).join(name);
    path.exists().then_some(path)
}

/// Measures the choices whose names contain one of these words, or all choices if there are no words.
pub fn run(effort: Effort, wanted: &[&str]) -> Results {
    let socket = std::env::temp_dir().join(format!("peers-{}.sock", std::process::id()));
    let socket = socket.to_str().unwrap();
    let anywhere = RedisServer::start_with(&["--unixsocket", socket]);
    let (here, there) = (RedisServer::start(), RedisServer::start());
    let runtime = runtime();
    move_to("0", here.pid());
    move_to("1", there.pid());
    let (jemalloc, mimalloc) = (library("libjemalloc.so.2"), library("libmimalloc.so.2"));
    let [anywhere_url, here_url, there_url] = [&anywhere, &here, &there].map(RedisServer::url);
    let socket_url = format!("redis+unix://{socket}");

    let as_is = Setup { redis: &anywhere_url, allocator: None, workers: 1 };
    let setup = |choice| {
        Some(match choice {
            "jemalloc" => Setup { allocator: Some(jemalloc.as_deref()?), ..as_is },
            "mimalloc" => Setup { allocator: Some(mimalloc.as_deref()?), ..as_is },
            "Redis by a unix socket" => Setup { redis: &socket_url, ..as_is },
            "Redis on the application's core" => Setup { redis: &here_url, ..as_is },
            "Redis on another core" => Setup { redis: &there_url, ..as_is },
            "two workers on both cores" => Setup { workers: 2, ..as_is },
            _ => as_is,
        })
    };
    let is_wanted = |choice: &&str| {
        let is_named = wanted.iter().any(|word| choice.contains(word));
        wanted.is_empty() || is_named || *choice == CHOICES[0]
    };
    let mut results = Results::new();
    for contender in COUNTED {
        let start = |choice| Some((choice, App::start(contender, setup(choice)?)));
        let apps: Vec<_> = CHOICES.into_iter().filter(is_wanted).filter_map(start).collect();
        for number in 0..effort.rounds {
            for workload in WORKLOADS {
                for (choice, app) in turn(&apps, number) {
                    let round = runtime.block_on(app.round(workload, effort.duration));
                    let labels = labels([
                        ("choice", (*choice).to_owned()),
                        ("contender", contender.to_owned()),
                        ("workload", workload.name().to_owned()),
                    ]);
                    let rate = round.requests as f64 / round.elapsed.as_secs_f64();
                    results.push("throughput", labels, "1/s", rate);
                    for server in [&anywhere, &here, &there] {
                        server.cli(&["FLUSHALL"]);
                    }
                }
            }
        }
        eprintln!("choices: {contender}");
    }
    results
}
