//! Whole applications against each other.

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

/// So many browsers at once.
const BROWSERS: usize = 32;

/// So many browsers increment one session at once, each so often: 200 times in all.
const CROWD: usize = 40;
const INCREMENTS: usize = 5;

/// The share of the hand-written application's throughput at which latency is measured.
const FIXED_RATE: f64 = 0.3;

/// How long and how often.
#[derive(Clone, Copy)]
pub struct Effort {
    pub rounds: usize,
    pub duration: Duration,
}

/// What the application's owner chooses.
#[derive(Clone, Copy)]
pub struct Setup<'a> {
    pub redis: &'a str,
    /// A library that has another allocator.
    pub allocator: Option<&'a Path>,
    pub workers: usize,
}

pub struct App {
    name: &'static str,
    port: u16,
    process: Child,
    /// The application ends with it.
    _stdin: ChildStdin,
}

impl App {
    /// With one worker it has a core of its own, where there are two.
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

/// A command that runs what follows on these cores.
fn pin(cores: &str) -> Option<Command> {
    let mut command = Command::new("taskset");
    command.args(["-c", cores]);
    let works = Command::new("taskset").args(["-c", "0,1", "true"]).stderr(Stdio::null()).status();
    works.is_ok_and(|status| status.success()).then_some(command)
}

/// Moves a process, and what it starts from now on, to one core.
pub fn move_to(core: &str, process: u32) {
    if pin(core).is_some() {
        let process = process.to_string();
        let _ =
            Command::new("taskset").args(["-acp", core, &process]).stdout(Stdio::null()).status();
    }
}

/// The load generator's, on a core that is not the application's.
pub fn runtime() -> Runtime {
    move_to("1", std::process::id());
    Builder::new_current_thread().enable_all().build().unwrap()
}

pub fn run(effort: Effort) -> Results {
    // Redis may run on either core, wherever there is time left.
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

/// All of them; another one begins each time.
pub fn turn<T>(apps: &[T], number: usize) -> impl Iterator<Item = &T> {
    let first = number % apps.len();
    apps[first..].iter().chain(&apps[..first])
}

/// One workload on one contender, for a profiler that looks at the process.
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

/// How many commands a request sends to Redis, and how often Redis is waited for: counted with one
/// browser, whose requests follow each other.
async fn traffic(app: &App, redis: &RedisServer, results: &mut Results) {
    const REQUESTS: usize = 50;
    let mut browser = Browser::open(app.port).await.unwrap();
    for workload in Workload::ALL {
        let mut jars = workload.prepare(&mut browser, REQUESTS + 1).await;
        // Scripts are loaded and pools filled with the first one.
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
        // What a script runs inside of the server counts as a command there.
        let inside = 2 * redis.calls("evalsha");
        // And so does what was asked here: the reset itself, and this connection's read of it.
        let commands = number("total_commands_processed:") - inside as f64 - 1.0;
        let reads = number("total_reads_processed:") - 2.0;
        let per_request = |count: f64| (count / REQUESTS as f64 * 10.0).round().max(0.0) / 10.0;
        results.push("commands", app.labels(workload), "1/request", per_request(commands));
        results.push("round trips", app.labels(workload), "1/request", per_request(reads));
    }
}

/// Increments one session at once, and counts what is missing afterwards.
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
