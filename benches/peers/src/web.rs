//! Measures and compares whole applications.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::app::{AT_RATE, CONTENDERS, baseline};
use crate::load::{Browser, Jar, Round, Workload, at_rate, round};
use crate::results::{Results, labels};
use crate::servers::RedisServer;

/// The number of concurrent browsers.
const BROWSERS: usize = 32;

/// The number of browsers that increment one session concurrently, and the number of increments by each: 200
/// in total.
const CROWD: usize = 40;
const INCREMENTS: usize = 5;

/// The rate at which latency is measured, as a share of the hand-written application's throughput.
const FIXED_RATE: f64 = 0.3;

/// The number of rounds, and the duration of each.
#[derive(Clone, Copy)]
pub struct Effort {
    pub rounds: usize,
    pub duration: Duration,
}

/// The environment in which an application runs.
#[derive(Clone, Copy)]
pub struct Setup<'a> {
    pub redis: &'a str,
    /// The library of a different allocator.
    pub allocator: Option<&'a Path>,
    pub workers: usize,
}

pub struct App {
    name: &'static str,
    port: u16,
    process: Child,
    /// The application exits when this pipe closes.
    _stdin: ChildStdin,
}

impl App {
    /// Starts an application. With one worker, the application is pinned to the first core, if there are two.
    pub fn start(name: &'static str, setup: Setup) -> Self {
        let own = std::env::current_exe().unwrap();
        let cores = if setup.workers == 1 { "0" } else { "0,1" };
        let mut command = match pin(cores) {
            Some(mut command) => {
                command.arg(own);
                command
            }
            None => Command::new(own),
        };
        command.args(["serve", name, setup.redis]).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.env("TOKIO_WORKER_THREADS", setup.workers.to_string());
        if let Some(library) = setup.allocator {
            command.env("LD_PRELOAD", library);
        }
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let stdin = process.stdin.take().unwrap();
        Self { name, port: line.trim().parse().unwrap(), process, _stdin: stdin }
    }

    fn pid(&self) -> u32 {
        self.process.id()
    }

    fn labels(&self, workload: Workload) -> BTreeMap<String, String> {
        labels([("contender", self.name.to_owned()), ("workload", workload.name().to_owned())])
    }

    pub async fn round(&self, workload: Workload, duration: Duration) -> Round {
        round(self.port, self.pid(), workload, BROWSERS, duration).await
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns a command that runs its arguments on these cores, or `None` if `taskset` does not work.
fn pin(cores: &str) -> Option<Command> {
    let mut command = Command::new("taskset");
    command.args(["-c", cores]);
    let works = Command::new("taskset").args(["-c", "0,1", "true"]).stderr(Stdio::null()).status();
    works.is_ok_and(|status| status.success()).then_some(command)
}

/// Pins a process, and its future child processes, to one core.
pub fn move_to(core: &str, process: u32) {
    if pin(core).is_some() {
        let process = process.to_string();
        let _ =
            Command::new("taskset").args(["-acp", core, &process]).stdout(Stdio::null()).status();
    }
}

/// Returns the runtime for the load generator, on a different core from the application's.
pub fn runtime() -> Runtime {
    move_to("1", std::process::id());
    Builder::new_current_thread().enable_all().build().unwrap()
}

pub fn run(effort: Effort) -> Results {
    // Redis may run on either core.
    let redis = RedisServer::start();
    let runtime = runtime();
    let setup = Setup { redis: &redis.url(), allocator: None, workers: 1 };
    let apps: Vec<_> = CONTENDERS.iter().map(|name| App::start(name, setup)).collect();
    let mut results = Results::new();
    runtime.block_on(async {
        for app in &apps {
            traffic(app, &redis, &mut results).await;
            lost_updates(app, &mut results).await;
        }
        for number in 0..effort.rounds {
            for workload in Workload::ALL {
                for app in turn(&apps, number * 3) {
                    measure(app, workload, effort.duration, &mut results).await;
                    redis.cli(&["FLUSHALL"]);
                }
            }
            eprintln!("web: throughput, round {} of {}", number + 1, effort.rounds);
        }
        let apps: Vec<_> = apps.iter().filter(|app| AT_RATE.contains(&app.name)).collect();
        for number in 0..effort.rounds {
            for workload in Workload::ALL {
                for app in turn(&apps, number) {
                    latency(app, workload, effort.duration, &mut results).await;
                    redis.cli(&["FLUSHALL"]);
                }
            }
            eprintln!("web: latency, round {} of {}", number + 1, effort.rounds);
        }
    });
    results
}

/// Returns all applications in turn, starting with a different one in each round.
pub fn turn<T>(apps: &[T], number: usize) -> impl Iterator<Item = &T> {
    let first = number % apps.len();
    apps[first..].iter().chain(&apps[..first])
}

/// Runs one workload on one contender, so that a profiler can observe the process.
pub fn one(name: &str, workload: &str, effort: Effort) {
    let redis = RedisServer::start();
    let runtime = runtime();
    let name = CONTENDERS.into_iter().find(|it| *it == name).unwrap();
    let app = App::start(name, Setup { redis: &redis.url(), allocator: None, workers: 1 });
    println!("process {}", app.pid());
    let workload = Workload::ALL.into_iter().find(|it| it.name() == workload).unwrap();
    let mut results = Results::new();
    for _ in 0..effort.rounds {
        runtime.block_on(measure(&app, workload, effort.duration, &mut results));
    }
    for record in &results.records {
        println!("{} {} {}", record.figure, record.median(), record.unit);
    }
}

async fn measure(app: &App, workload: Workload, duration: Duration, results: &mut Results) {
    let round = app.round(workload, duration).await;
    let requests = round.requests as f64;
    let mut push = |figure, unit, value| results.push(figure, app.labels(workload), unit, value);
    push("throughput", "1/s", requests / round.elapsed.as_secs_f64());
    push("cpu", "us/request", round.cpu.as_secs_f64() * 1e6 / requests);
}

async fn latency(app: &App, workload: Workload, duration: Duration, results: &mut Results) {
    let wanted = [("contender", baseline(app.name)), ("workload", workload.name())];
    let rate = FIXED_RATE * results.median("throughput", &wanted);
    let round = at_rate(app.port, app.pid(), workload, BROWSERS, rate, duration).await;
    let mut push = |figure, unit, value| results.push(figure, app.labels(workload), unit, value);
    push("rate", "1/s", rate);
    push("p50", "us", round.quantile(0.5));
    push("p99", "us", round.quantile(0.99));
    push("p99.9", "us", round.quantile(0.999));
}

/// Counts the commands and round trips to Redis per request, with a single browser that sends one request
/// after another.
async fn traffic(app: &App, redis: &RedisServer, results: &mut Results) {
    const REQUESTS: usize = 50;
    let mut browser = Browser::open(app.port).await.unwrap();
    for workload in Workload::ALL {
        let mut jars = workload.prepare(&mut browser, REQUESTS + 1).await;
        // The first request loads scripts and fills connection pools, so it is not counted.
        workload.request(&mut browser, &mut jars).await;
        redis.cli(&["CONFIG", "RESETSTAT"]);
        for _ in 0..REQUESTS {
            workload.request(&mut browser, &mut jars).await.unwrap();
        }
        let stats = redis.cli(&["INFO", "stats"]);
        let number = |name: &str| {
            let line = stats.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.trim().parse::<f64>().ok()).unwrap_or(f64::NAN)
        };
        // Redis also counts the commands that a script runs.
        let inside = 2 * redis.calls("evalsha");
        // Redis also counts the commands that this function itself sends: the reset, and the reads on this
        // connection.
        let commands = number("total_commands_processed:") - inside as f64 - 1.0;
        let reads = number("total_reads_processed:") - 2.0;
        let per_request = |count: f64| (count / REQUESTS as f64 * 10.0).round().max(0.0) / 10.0;
        results.push("commands", app.labels(workload), "1/request", per_request(commands));
        results.push("round trips", app.labels(workload), "1/request", per_request(reads));
    }
}

/// Increments one session concurrently, and counts the increments that are then missing.
async fn lost_updates(app: &App, results: &mut Results) {
    let mut first = Browser::open(app.port).await.unwrap();
    first.post("/sign-in").await;
    let jar: Jar = first.jar.clone();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..CROWD {
        let (jar, port) = (jar.clone(), app.port);
        tasks.spawn(async move {
            let mut browser = Browser::open(port).await.unwrap();
            browser.jar = jar;
            let mut answered = 0;
            for _ in 0..INCREMENTS {
                answered += u64::from(browser.post("/increment").await.status == 200);
            }
            answered
        });
    }
    let answered: u64 = tasks.join_all().await.into_iter().sum();
    let count = first.get("/read").await.body;
    let count: u64 = std::str::from_utf8(&count).unwrap().parse().unwrap_or(0);
    let labels = labels([("contender", app.name.to_owned())]);
    results.push("lost updates", labels.clone(), "count", answered.saturating_sub(count) as f64);
    results.push("increments", labels, "count", answered as f64);
}
