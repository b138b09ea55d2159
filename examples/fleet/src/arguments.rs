//! The command line.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::balancer::Framework;
use crate::topology::Topology;

/// The help text. The text is in a separate file, so that `scripts/fleet --help` can print it without a
/// build.
pub(crate) const HELP: &str = include_str!("../help.txt");

#[derive(Debug)]
pub(crate) enum Command {
    Help,
    Run(Arguments),
    /// Runs as one process of the shop. The fleet starts its own program with this command.
    Serve(Framework),
}

#[derive(Debug)]
pub(crate) struct Arguments {
    pub(crate) target: Target,
    pub(crate) chaos: bool,
    pub(crate) processes: usize,
    pub(crate) users: usize,
    pub(crate) duration: Duration,
    /// A shell command to run repeatedly while the users shop.
    pub(crate) beside: Option<String>,
    pub(crate) json: bool,
}

#[derive(Debug)]
pub(crate) enum Target {
    Auto,
    Topology(Topology),
    Store(String),
}

pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Command, String> {
    let mut arguments = arguments.into_iter().peekable();
    if arguments.next_if(|first| first == "serve").is_some() {
        let name = arguments.next().unwrap_or_default();
        let framework = Framework::ALL.into_iter().find(|framework| framework.name() == name);
        return framework
            .map(Command::Serve)
            .ok_or_else(|| format!("{name:?} is not the name of a framework"));
    }
    let mut run = Arguments {
        target: Target::Auto,
        chaos: false,
        processes: 4,
        users: 100,
        duration: Duration::from_secs(15),
        beside: None,
        json: false,
    };
    while let Some(flag) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "--help" | "-h" => return Ok(Command::Help),
            "--json" => run.json = true,
            "--chaos" => run.chaos = true,
            "--store" => {
                let store = value()?;
                let topology = Topology::ALL.into_iter().find(|one| one.address() == store);
                run.target = match topology {
                    _ if store == "auto" => Target::Auto,
                    Some(topology) => Target::Topology(topology),
                    None => Target::Store(store),
                }
            }
            "--beside" => run.beside = Some(value()?),
            "--processes" => run.processes = number(&flag, &value()?, 1..=32)?,
            "--users" => run.users = number(&flag, &value()?, 1..=2000)?,
            "--seconds" => {
                let seconds = number(&flag, &value()?, 1..=600)?;
                run.duration = Duration::from_secs(seconds as u64);
            }
            _ => return Err(format!("{flag} is unknown; --help lists the options")),
        }
    }
    match run.target {
        Target::Store(_) if run.chaos => {
            Err("--chaos stops and kills the store, so it is allowed only for the private servers \
                 of --store auto, not for your own store"
                .to_owned())
        }
        Target::Topology(topology) if run.chaos => Err(format!(
            "--chaos is only for --store auto; the servers of --store {} are always disturbed",
            topology.address()
        )),
        _ => Ok(Command::Run(run)),
    }
}

fn number(flag: &str, value: &str, range: RangeInclusive<usize>) -> Result<usize, String> {
    let number = value.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| {
        format!("{flag} must be a number from {} to {}, not {value:?}", range.start(), range.end())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::{Disturbance, Loss};
    use crate::verdict::Word;

    #[test]
    fn help_explains_every_loss_and_every_verdict() {
        for loss in Loss::ALL {
            assert!(HELP.contains(loss.label()), "{}", loss.label());
        }
        for word in Word::ALL {
            assert!(HELP.contains(&format!("\n    {:<17}", word.text())), "{}", word.text());
            let exit_status = format!("\n    {:<4}{}\n", word.exit_status(), word.text());
            assert!(HELP.contains(&exit_status), "{exit_status}");
        }
    }

    #[test]
    fn help_explains_every_disturbance() {
        for disturbance in Disturbance::ALL {
            assert!(HELP.contains(disturbance.label()), "{}", disturbance.label());
        }
        for topology in Topology::ALL {
            assert!(HELP.contains(&format!("--store {}\n", topology.address())));
        }
    }

    fn target(store: &str) -> Target {
        match parse(["--store", store].map(str::to_owned)) {
            Ok(Command::Run(arguments)) => arguments.target,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_auto_addresses_start_servers() {
        for topology in Topology::ALL {
            assert!(
                matches!(target(topology.address()), Target::Topology(found) if found == topology)
            );
        }
        assert!(matches!(target("auto"), Target::Auto));
        for own in ["redis+cluster://auto:7000", "redis+sentinel://auto/main", "redis://auto"] {
            assert!(matches!(target(own), Target::Store(url) if url == own));
        }
    }

    #[test]
    fn chaos_is_refused_for_servers_that_are_always_disturbed() {
        for topology in Topology::ALL {
            let arguments = ["--chaos", "--store", topology.address()].map(str::to_owned);
            let refused = parse(arguments).unwrap_err();
            assert!(refused.contains(topology.address()), "{refused}");
        }
    }

    #[test]
    fn chaos_is_refused_for_your_own_store() {
        let arguments = ["--chaos", "--store", "redis://127.0.0.1/"].map(str::to_owned);
        assert!(parse(arguments).unwrap_err().contains("--chaos"));
    }
}
