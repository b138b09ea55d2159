//! Tests a shop that runs in several processes, under the load of simulated users, while the processes are
//! killed one after the other. The users must not lose anything.
//!
//! ```sh
//! scripts/fleet --help
//! ```
//!
//! The processes share only a store. Every request goes to a random process, without affinity, and SIGKILL
//! gives a process no chance to shut down. The users know which of their requests were answered, and compare
//! what they see with these answers. With `--chaos`, the store is also paused, and killed if it keeps its
//! data. The users then accept outages, but no losses. A private Redis Cluster and a private set of Redis
//! Sentinels are always disturbed.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command prints its results")]
#![allow(clippy::duplicate_mod, reason = "both shops include the modules that they share")]

mod arguments;
mod balancer;
mod beside;
mod chaos;
mod process;
mod report;
mod serve;
mod servers;
#[allow(dead_code, reason = "its main function is not used here")]
#[path = "../../shop_actix.rs"]
mod shop_actix;
#[allow(dead_code, reason = "its main function is not used here")]
#[path = "../../shop_axum.rs"]
mod shop_axum;
mod support;
mod tally;
mod topology;
mod user;
mod verdict;

use std::convert::Infallible;
use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arguments::{Arguments, Command, Target};
use balancer::Balancer;
use process::Fleet;
use report::{Report, Trouble};
use servers::{Program, Server};
use tally::Tally;
use topology::{Group, Topology};
use user::{Network, User};
use verdict::{Outcome, Verdict};

/// How long users may continue after the end of the test to get their last answers.
const GRACE: Duration = Duration::from_secs(15);

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    match arguments::parse(std::env::args().skip(1)) {
        Ok(Command::Help) => {
            print!("{}", arguments::HELP);
            ExitCode::SUCCESS
        }
        Ok(Command::Serve(framework)) => match serve::serve(framework) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(&*error),
        },
        Ok(Command::Run(arguments)) => run(&arguments),
        Err(message) => complain(&*Box::<dyn Error>::from(message)),
    }
}

fn complain(error: &dyn Error) -> ExitCode {
    eprintln!("fleet: {error}");
    ExitCode::from(2)
}

/// Runs the test on one store after the other, and prints the verdict.
fn run(arguments: &Arguments) -> ExitCode {
    let stores = match &arguments.target {
        Target::Store(url) => vec![Store::Yours(url.clone())],
        Target::Auto => Program::ALL.map(Store::Private).to_vec(),
        Target::Topology(topology) => vec![Store::Several(*topology)],
    };
    leave_panics_of_tasks_to_verdict();
    let mut outcomes = Vec::new();
    let mut interrupted = false;
    match tokio::runtime::Runtime::new() {
        // If an error or a signal ends this future, the processes and servers in it are dropped, which ends
        // them.
        Ok(runtime) => runtime.block_on(async {
            tokio::select! {
                () = on_every_store(arguments, &stores, &mut outcomes) => {}
                () = interruption() => interrupted = true,
            }
        }),
        Err(error) => eprintln!("fleet: {error}"),
    }
    for store in stores.iter().skip(outcomes.len()) {
        outcomes.push((store.name(), Outcome::NotTested("interrupted".to_owned())));
    }
    let verdict = Verdict::of(&outcomes);
    match arguments.json {
        true => println!("{}", verdict.json()),
        false => println!("\n{verdict}"),
    }
    ExitCode::from(if interrupted { 130 } else { verdict.exit_status() })
}

/// Prints only panics on the main thread. A panic in a task becomes an error, which the verdict reports.
fn leave_panics_of_tasks_to_verdict() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name() == Some("main") {
            print(panic);
        }
    }));
}

/// A store to test on.
#[derive(Debug, Clone)]
enum Store {
    Private(Program),
    Several(Topology),
    Yours(String),
}

impl Store {
    fn name(&self) -> String {
        match self {
            Self::Private(program) => program.title().to_owned(),
            Self::Several(topology) => topology.title().to_owned(),
            Self::Yours(url) => report::without_password(url),
        }
    }
}

async fn on_every_store(
    arguments: &Arguments,
    stores: &[Store],
    outcomes: &mut Vec<(String, Outcome)>,
) {
    for store in stores {
        let outcome = match store {
            Store::Private(program) => on_private_server(arguments, *program).await,
            Store::Several(topology) => on_private_servers(arguments, *topology).await,
            Store::Yours(url) => on_store(arguments, url, None).await,
        };
        let outcome = outcome.unwrap_or_else(|error| Outcome::NotTested(one_line(&*error)));
        outcomes.push((store.name(), outcome));
    }
}

/// Joins the lines of an error message, because the verdict must be one line.
fn one_line(error: &dyn Error) -> String {
    error.to_string().replace('\n', " ")
}

async fn on_private_server(arguments: &Arguments, program: Program) -> Result<Outcome> {
    let Some(mut server) = Server::start(program, arguments.chaos).await? else {
        return Ok(Outcome::NotInstalled(program));
    };
    let url = server.url().to_owned();
    let disturbed = arguments.chaos.then_some(Disturbed::Server(program, &mut server));
    on_store(arguments, &url, disturbed).await
}

async fn on_private_servers(arguments: &Arguments, topology: Topology) -> Result<Outcome> {
    let Some(group) = Group::start(topology).await? else {
        return Ok(Outcome::NotInstalled(Program::Redis));
    };
    on_store(arguments, &group.url().await?, Some(Disturbed::Group(&group))).await
}

/// A store that is disturbed during the test.
enum Disturbed<'a> {
    Server(Program, &'a mut Server),
    Group(&'a Group),
}

impl Disturbed<'_> {
    fn trouble(&self) -> Trouble {
        match self {
            Self::Server(program, _) => Trouble::Server(*program),
            Self::Group(group) => Trouble::Topology(group.topology()),
        }
    }

    async fn disturb(self, until: Instant, tally: &Tally) -> Result<Infallible> {
        match self {
            Self::Server(_, server) => chaos::disturb(server, until, tally).await,
            Self::Group(group) => group.disturb(until, tally).await,
        }
    }
}

async fn on_store(
    arguments: &Arguments,
    url: &str,
    disturbed: Option<Disturbed<'_>>,
) -> Result<Outcome> {
    process::reach(url).await?;
    let balancer = Arc::new(Balancer::default());
    let tally = Arc::new(Tally::default());
    let mut fleet = Fleet::start(url, arguments.processes, balancer.clone()).await?;
    let started = Instant::now();
    let until = started + arguments.duration;
    eprintln!(
        "{}: {} processes, {} users, {} seconds",
        report::without_password(url),
        arguments.processes,
        arguments.users,
        arguments.duration.as_secs(),
    );
    let trouble = disturbed.as_ref().map(Disturbed::trouble);
    if let Some(trouble) = trouble {
        eprintln!("{}", trouble.announcement());
    }

    let network = Arc::new(Network::new()?);
    let mut users = tokio::task::JoinSet::new();
    for number in 0..arguments.users {
        let user = User::new(number, network.clone(), balancer.clone(), tally.clone(), until);
        users.spawn(user.shop());
    }
    let ran: Result<()> = tokio::select! {
        // The users stop by themselves when the time is up.
        ended = async {
            while let Some(user) = users.join_next().await {
                user?;
            }
            Ok(())
        } => ended,
        result = fleet.harass(until, &tally) => result.map(|never| match never {}),
        result = async {
            match disturbed {
                Some(disturbed) => disturbed.disturb(until, &tally).await,
                None => std::future::pending().await,
            }
        } => result.map(|never| match never {}),
        result = async {
            match &arguments.beside {
                Some(command) => {
                    beside::run(command, url, until, trouble.is_some(), &tally).await
                }
                None => std::future::pending().await,
            }
        } => result.map(|never| match never {}),
        never = report::live(started, &tally, trouble) => match never {},
    };

    let processes = fleet.stop().await?;
    let report = Report::new(arguments, url, trouble, started.elapsed(), &tally, processes);
    match arguments.json {
        true => println!("{}", report.json()),
        false => println!("{report}"),
    }
    Ok(match ran {
        Ok(()) if arguments.beside.is_some() && !report.ran_beside() => {
            let why = "the command of --beside did not finish once";
            Outcome::BrokenOff(report.figures(), why.to_owned())
        }
        Ok(()) => report.outcome(),
        Err(error) => Outcome::BrokenOff(report.figures(), one_line(&*error)),
    })
}

/// Waits for Ctrl-C, for SIGTERM from a supervisor, or for SIGHUP when the terminal closes.
async fn interruption() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};

        let signals = (signal(SignalKind::terminate()), signal(SignalKind::hangup()));
        if let (Ok(mut terminate), Ok(mut hangup)) = signals {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = hangup.recv() => return,
                Ok(()) = tokio::signal::ctrl_c() => return,
                else => {}
            }
        }
    }
    if tokio::signal::ctrl_c().await.is_err() {
        // No handler could be installed, so the signal ends the process immediately.
        std::future::pending::<()>().await;
    }
}
