//! What a run has shown.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use crate::arguments::Arguments;
use crate::balancer::Instance;
use crate::servers::{Program, Server};
use crate::tally::{Counts, Loss, Tally};

/// Says every second how it goes.
pub(crate) async fn live(started: Instant, tally: &Tally, trouble: bool) -> Infallible {
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);
    // The first tick is at once.
    seconds.tick().await;
    loop {
        seconds.tick().await;
        let counts = tally.counts();
        let of_the_store = match trouble {
            true => format!(
                "{:3} pauses  {:3} restarts  {:5} x 503  ",
                counts.store_pauses,
                counts.store_restarts,
                counts.answers_503()
            ),
            false => String::new(),
        };
        eprintln!(
            "{:4} s  {:7} requests  {:3} kills  {of_the_store}{} signed out, {} lost, {} alive \
             after sign-out",
            started.elapsed().as_secs(),
            counts.requests,
            counts.kills,
            counts.of(Loss::SignedOut),
            counts.of(Loss::Item),
            counts.of(Loss::AliveAfterSignOut),
        );
    }
}

/// An address as it may be shown: without user, password and parameters.
pub(crate) fn without_password(url: &str) -> String {
    let url = url.split('?').next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    format!("{scheme}://{host}")
}

/// What is done to the store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trouble {
    program: Program,
    restarts: bool,
}

impl Trouble {
    pub(crate) fn of(server: &Server) -> Self {
        Self { program: server.program(), restarts: server.keeps_data() }
    }

    pub(crate) fn announcement(self) -> String {
        let name = self.program.name();
        match self.restarts {
            true => format!("{name} is stopped for a while, or killed and restarted with its data"),
            false => format!("{name} is stopped for a while; {}", Self::NO_RESTART),
        }
    }

    const NO_RESTART: &str = "no restart: that would end all its sessions by nature";
}

#[derive(Debug)]
pub(crate) struct Report {
    store: String,
    in_one_process: bool,
    trouble: Option<Trouble>,
    processes: usize,
    users: usize,
    elapsed: Duration,
    counts: Counts,
    instances: Vec<Arc<Instance>>,
}

impl Report {
    pub(crate) fn new(
        arguments: &Arguments,
        url: &str,
        in_one_process: bool,
        trouble: Option<Trouble>,
        elapsed: Duration,
        tally: &Tally,
        instances: Vec<Arc<Instance>>,
    ) -> Self {
        let mut counts = std::mem::take(&mut *tally.counts());
        counts.latencies.sort_unstable();
        Self {
            store: without_password(url),
            in_one_process,
            trouble,
            processes: arguments.processes,
            users: arguments.users,
            elapsed,
            counts,
            instances,
        }
    }

    /// Nothing was lost, and there was something to lose.
    pub(crate) fn all_well(&self) -> bool {
        self.counts.losses.iter().all(|lost| *lost == 0) && self.counts.items > 0
    }

    fn milliseconds(&self, percentile: f64) -> f64 {
        let sorted = &self.counts.latencies;
        let last = sorted.len().saturating_sub(1);
        let index = (last as f64 * percentile / 100.0).round() as usize;
        f64::from(sorted.get(index).copied().unwrap_or_default()) / 1000.0
    }

    fn explanation(&self) -> Option<&'static str> {
        if self.counts.items == 0 {
            return Some("Nothing could be put into any cart, so this run has shown nothing.");
        }
        let of_memory = self.store.starts_with("memory:") && !self.in_one_process;
        (of_memory && !self.all_well()).then_some(
            "With memory: every process has sessions of its own, so a user is known to one process \
             and a\nstranger to the others, and what a process knew ends with it. This is what the \
             twelve-factor app\nwarns of: keep sessions in a store that all processes share, Redis or \
             Memcached.",
        )
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        let counts = &self.counts;
        let instances: Vec<_> = self
            .instances
            .iter()
            .map(|instance| {
                json!({
                    "pid": instance.process,
                    "framework": instance.framework.to_string(),
                    "requests": instance.requests(),
                    "killed": instance.was_killed(),
                })
            })
            .collect();
        let mut report = json!({
            "store": self.store,
            "in_one_process": self.in_one_process,
            "processes": self.processes,
            "users": self.users,
            "seconds": self.elapsed.as_secs_f64(),
            "requests": counts.requests,
            "requests_by_process": instances,
            "kills": counts.kills,
            "chaos": self.trouble.is_some(),
            "store_pauses": counts.store_pauses,
            "store_restarts": counts.store_restarts,
            "longest_store_outage_ms": in_milliseconds(counts.longest_store_outage),
            "longest_outage_seen_ms": in_milliseconds(counts.longest_outage),
            "answers_503": counts.answers_503(),
            "answers_503_by_message": counts.later,
            "scenarios": counts.scenarios,
            "sign_ins": counts.sign_ins,
            "sign_outs": counts.sign_outs,
            "items_added": counts.items,
            "answers_lost_to_kills": counts.unanswered,
            "sign_ins_started_over": counts.started_over,
            "errors": counts.errors,
            "stories": counts.stories,
            "latency_ms": {
                "p50": self.milliseconds(50.0),
                "p95": self.milliseconds(95.0),
                "p99": self.milliseconds(99.0),
                "max": self.milliseconds(100.0),
            },
            "ok": self.all_well(),
        });
        for loss in Loss::ALL {
            report[loss.json_name()] = counts.of(loss).into();
        }
        report
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        let seconds = self.elapsed.as_secs_f64();
        writeln!(f)?;
        writeln!(f, "store                            {}", self.store)?;
        writeln!(
            f,
            "requests                         {} in {seconds:.1} s, by {} users",
            counts.requests, self.users
        )?;
        for instance in &self.instances {
            writeln!(
                f,
                "  {:<10} process {:<8}     {:6}{}",
                instance.framework,
                instance.process,
                instance.requests(),
                if instance.was_killed() { "  killed" } else { "" }
            )?;
        }
        writeln!(
            f,
            "scenarios                        {}: {} sign-ins, {} cart items, {} sign-outs",
            counts.scenarios, counts.sign_ins, counts.items, counts.sign_outs
        )?;
        writeln!(f, "kills                            {}", counts.kills)?;
        if let Some(trouble) = self.trouble {
            let note = match trouble.restarts {
                true => String::new(),
                false => format!("  ({})", Trouble::NO_RESTART),
            };
            writeln!(f, "store pauses                     {}", counts.store_pauses)?;
            writeln!(f, "store restarts                   {}{note}", counts.store_restarts)?;
            writeln!(
                f,
                "longest outage seen by a user    {:.0} ms, of the store {:.0} ms",
                in_milliseconds(counts.longest_outage),
                in_milliseconds(counts.longest_store_outage)
            )?;
        }
        for loss in Loss::ALL {
            let count = counts.of(loss);
            let verdict = if count == 0 { "" } else { "  (must be 0)" };
            writeln!(f, "{:32} {count}{verdict}", loss.label())?;
        }
        writeln!(f, "answers lost to kills            {}", counts.unanswered)?;
        let later = match counts.answers_503() {
            0 => "none".to_owned(),
            all => format!("{all}: {}", listed(&counts.later)),
        };
        writeln!(f, "answers 503                      {later}")?;
        writeln!(f, "sign-ins repeated                {}", counts.started_over)?;
        writeln!(f, "errors                           {}", listed(&counts.errors))?;
        write!(
            f,
            "latency                          p50 {:.1} ms, p95 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
            self.milliseconds(50.0),
            self.milliseconds(95.0),
            self.milliseconds(99.0),
            self.milliseconds(100.0)
        )?;
        for story in &counts.stories {
            write!(f, "\n  {story}")?;
        }
        match self.explanation() {
            Some(explanation) => write!(f, "\n\n{explanation}"),
            None => Ok(()),
        }
    }
}

fn in_milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn listed(counts: &BTreeMap<String, u64>) -> String {
    let list: Vec<_> = counts.iter().map(|(what, count)| format!("{count} x {what}")).collect();
    if list.is_empty() { "none".to_owned() } else { list.join(", ") }
}
