//! The command line.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::process::Plan;

pub(crate) const HELP: &str = "\
Runs a shop in several processes on one session store, half of them axum and half actix-web, has
users click through it, kills a random process every one or two seconds, and reports what the users
lost. It is to be nothing.

    fleet [--store URL | auto] [--chaos] [--processes N] [--users N] [--seconds N] [--json]

    --store URL      redis://host:port, memcached://host:port or memory:
    --store auto     private servers, redis-server and memcached in turn, whichever are installed
                     (default)
    --chaos          disturbs the private servers too, every two or three seconds: stops them for
                     up to one and a half, and kills Redis and starts it again with its data.
                     Memcached is only stopped: a restart ends all its sessions by nature
    --processes N    how many processes run at a time, 1 to 32 (default 4)
    --users N        how many users click at a time, 1 to 2000 (default 100)
    --seconds N      for how long, 1 to 600 (default 15)
    --json           prints one JSON object for each run
    --help           prints this

Exit status: 0 if nothing was lost, 1 if anything was, 2 if it could not be tried.";

#[derive(Debug)]
pub(crate) enum Command {
    Help,
    Run(Arguments),
    /// What the command starts itself as: a process of the shop.
    Serve(Plan),
}

#[derive(Debug)]
pub(crate) struct Arguments {
    pub(crate) target: Target,
    pub(crate) chaos: bool,
    pub(crate) processes: usize,
    pub(crate) users: usize,
    pub(crate) duration: Duration,
    pub(crate) json: bool,
}

#[derive(Debug)]
pub(crate) enum Target {
    Auto,
    Store(String),
}

pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Command, String> {
    let mut arguments = arguments.into_iter().peekable();
    if arguments.next_if(|first| first == "serve").is_some() {
        return serve(arguments);
    }
    let mut run = Arguments {
        target: Target::Auto,
        chaos: false,
        processes: 4,
        users: 100,
        duration: Duration::from_secs(15),
        json: false,
    };
    while let Some(flag) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "--help" | "-h" => return Ok(Command::Help),
            "--json" => run.json = true,
            "--chaos" => run.chaos = true,
            "--store" => {
                run.target = match value()?.as_str() {
                    "auto" => Target::Auto,
                    url => Target::Store(url.to_owned()),
                }
            }
            "--processes" => run.processes = number(&flag, &value()?, 1..=32)?,
            "--users" => run.users = number(&flag, &value()?, 1..=2000)?,
            "--seconds" => {
                let seconds = number(&flag, &value()?, 1..=600)?;
                run.duration = Duration::from_secs(seconds as u64);
            }
            _ => return Err(format!("{flag} is unknown; --help says what is known")),
        }
    }
    if run.chaos && matches!(run.target, Target::Store(_)) {
        return Err("--chaos stops and kills the store, so it is for the private servers of \
                    --store auto only, not for a store of your own"
            .to_owned());
    }
    Ok(Command::Run(run))
}

fn serve(mut arguments: impl Iterator<Item = String>) -> Result<Command, String> {
    let mut plan = Plan::default();
    while let Some(flag) = arguments.next() {
        let value = arguments.next().unwrap_or_default();
        match flag.as_str() {
            "--axum" => plan.axum = number(&flag, &value, 0..=32)?,
            "--actix" => plan.actix = number(&flag, &value, 0..=32)?,
            _ => return Err(format!("{flag} is unknown")),
        }
    }
    Ok(Command::Serve(plan))
}

fn number(flag: &str, value: &str, range: RangeInclusive<usize>) -> Result<usize, String> {
    let number = value.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| {
        format!("{flag} is a number from {} to {}, not {value:?}", range.start(), range.end())
    })
}
