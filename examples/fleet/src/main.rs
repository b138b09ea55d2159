//! A shop of several processes under users who click fast, while the processes are killed one after
//! the other: nobody is to notice.
//!
//! ```sh
//! cargo run --manifest-path examples/fleet/Cargo.toml -- --help
//! ```
//!
//! The processes share nothing but a store. Every request goes to any of them, without affinity,
//! and none of them gets a chance to say goodbye (SIGKILL). The users know which of their requests
//! were answered, and compare what they then see with what they were told. With `--chaos` the store is
//! stopped and killed too, as far as it keeps its data, and the users put up with an outage now and
//! then, but with nothing else.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command whose output is the point"
)]
#![allow(clippy::duplicate_mod, reason = "both shops bring along what they share")]

mod arguments;
mod balancer;
mod chaos;
mod process;
mod report;
mod serve;
mod servers;
#[allow(dead_code, reason = "its main is for running it alone")]
#[path = "../../shop_actix.rs"]
mod shop_actix;
#[allow(dead_code, reason = "its main is for running it alone")]
#[path = "../../shop_axum.rs"]
mod shop_axum;
mod tally;
mod user;

use std::error::Error;
use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arguments::{Arguments, Command, Target};
use balancer::Balancer;
use process::{Fleet, Plan};
use report::{Report, Trouble};
use servers::{Program, Server};
use tally::Tally;
use user::{Network, User};

/// How long users may go on after the end to get their last answers.
const GRACE: Duration = Duration::from_secs(15);

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    let outcome = match arguments::parse(std::env::args().skip(1)) {
        Ok(Command::Help) => {
            println!("{}", arguments::HELP);
            Ok(true)
        }
        Ok(Command::Serve(plan)) => serve::serve(plan).map(|()| true),
        Ok(Command::Run(arguments)) => run(&arguments),
        Err(message) => Err(message.into()),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) if error.is::<Interrupted>() => ExitCode::from(130),
        Err(error) => {
            eprintln!("fleet: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs on one store after the other, and tells whether nothing was lost on any.
fn run(arguments: &Arguments) -> Result<bool> {
    let runtime = tokio::runtime::Runtime::new()?;
    // Whatever ends this future, an error or a signal, drops the processes and servers in it, and
    // so ends them.
    runtime.block_on(async {
        tokio::select! {
            all_well = on_every_store(arguments) => all_well,
            () = interrupted() => Err(Interrupted.into()),
        }
    })
}

async fn on_every_store(arguments: &Arguments) -> Result<bool> {
    if let Target::Store(url) = &arguments.target {
        return on_store(arguments, url, false, None).await;
    }
    let mut all_well = true;
    let mut installed = 0;
    for program in Program::ALL {
        let Some(mut server) = Server::start(program, arguments.chaos).await? else {
            eprintln!("{} is not installed, so it is left out", program.name());
            continue;
        };
        installed += 1;
        let url = server.url().to_owned();
        let disturbed = arguments.chaos.then_some(&mut server);
        all_well &= on_store(arguments, &url, false, disturbed).await?;
    }
    if installed == 0 && arguments.chaos {
        return Err("--chaos needs redis-server or memcached, and neither is installed".into());
    }
    if installed == 0 {
        eprintln!(
            "Several processes need a store that they can share: install redis-server or \
             memcached, or name a store with --store.\n\
             Until then: one process on several ports, with the sessions in its memory. It is not \
             killed, since they would end with it."
        );
        all_well = on_store(arguments, "memory:", true, None).await?;
    }
    Ok(all_well)
}

async fn on_store(
    arguments: &Arguments,
    url: &str,
    in_one_process: bool,
    disturbed: Option<&mut Server>,
) -> Result<bool> {
    process::reach(url).await?;
    let count = arguments.processes;
    let balancer = Arc::new(Balancer::default());
    let tally = Arc::new(Tally::default());
    let plans = match in_one_process {
        true => vec![Plan::half_and_half(count)],
        false => Plan::one_each(count),
    };
    let mut fleet = Fleet::start(url, plans, balancer.clone()).await?;
    let started = Instant::now();
    let until = started + arguments.duration;
    eprintln!(
        "{}: {count} {}, {} users, {} seconds",
        report::without_password(url),
        if in_one_process { "ports of one process" } else { "processes" },
        arguments.users,
        arguments.duration.as_secs(),
    );
    let trouble = disturbed.as_ref().map(|server| Trouble::of(server));
    if let Some(trouble) = trouble {
        eprintln!("{}", trouble.announcement());
    }

    let network = Arc::new(Network::new()?);
    let mut users = tokio::task::JoinSet::new();
    for number in 0..arguments.users {
        let user = User::new(number, network.clone(), balancer.clone(), tally.clone(), until);
        users.spawn(user.shop());
    }
    tokio::select! {
        // The users stop by themselves; the processes are killed meanwhile.
        ended = async {
            while let Some(user) = users.join_next().await {
                user?;
            }
            Result::<()>::Ok(())
        } => ended?,
        result = fleet.harass(until, &tally, !in_one_process) => match result? {},
        result = async {
            match disturbed {
                Some(server) => chaos::disturb(server, until, &tally).await,
                None => std::future::pending().await,
            }
        } => match result? {},
        never = report::live(started, &tally, trouble.is_some()) => match never {},
    }

    let processes = fleet.stop().await?;
    let report =
        Report::new(arguments, url, in_one_process, trouble, started.elapsed(), &tally, processes);
    match arguments.json {
        true => println!("{}", report.json()),
        false => println!("{report}"),
    }
    Ok(report.all_well())
}

/// Ctrl-C, the polite signal of a supervisor, or the end of the terminal.
async fn interrupted() {
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
        // No handler could be set: the system's own way of ending a process is left.
        std::future::pending::<()>().await;
    }
}

#[derive(Debug)]
struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl Error for Interrupted {}
