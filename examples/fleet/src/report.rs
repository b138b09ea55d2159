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
use crate::verdict::{Figures, Outcome};

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
            false => {
                format!("{name} is stopped for a while, and not restarted{}", Self::NO_RESTART)
            }
        }
    }

    const NO_RESTART: &str = ", because it always restarts empty";
}

#[derive(Debug)]
pub(crate) struct Report {
    store: String,
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
        trouble: Option<Trouble>,
        elapsed: Duration,
        tally: &Tally,
        instances: Vec<Arc<Instance>>,
    ) -> Self {
        let mut counts = std::mem::take(&mut *tally.counts());
        counts.latencies.sort_unstable();
        Self {
            store: without_password(url),
            trouble,
            processes: arguments.processes,
            users: arguments.users,
            elapsed,
            counts,
            instances,
        }
    }

    pub(crate) fn outcome(&self) -> Outcome {
        let counts = &self.counts;
        let figures = self.figures();
        // A loss is a loss, however little else happened.
        if figures.nothing_lost() && (counts.items == 0 || counts.sign_ins == 0) {
            return Outcome::NotTested("no user could sign in with a cart".to_owned());
        }
        if figures.nothing_lost() && counts.kills == 0 {
            return Outcome::NotTested("no process was killed in so short a time".to_owned());
        }
        Outcome::Tested(figures)
    }

    pub(crate) fn figures(&self) -> Figures {
        let counts = &self.counts;
        let losses: u64 = counts.losses.iter().sum();
        Figures {
            users: counts.signed_in.len() as u64,
            users_signed_out: counts.signed_out.len() as u64,
            items: counts.items,
            items_lost: counts.of(Loss::Item),
            other_losses: losses - counts.of(Loss::Item) - counts.of(Loss::SignedOut),
            kills: counts.kills,
            store_pauses: counts.store_pauses,
            store_restarts: counts.store_restarts,
        }
    }

    fn milliseconds(&self, percentile: f64) -> f64 {
        let sorted = &self.counts.latencies;
        let last = sorted.len().saturating_sub(1);
        let index = (last as f64 * percentile / 100.0).round() as usize;
        f64::from(sorted.get(index).copied().unwrap_or_default()) / 1000.0
    }

    fn explanation(&self) -> Option<&'static str> {
        (self.store.starts_with("memory:") && !self.figures().nothing_lost()).then_some(
            "Each process kept its sessions in its own memory. The other processes do not know \
             them, and\nthey end with the process. Keep sessions in a store that all processes \
             share: Redis or Memcached.",
        )
    }

    /// Each loss with how much there was to lose, where that has a number.
    fn loss(&self, loss: Loss) -> String {
        let counts = &self.counts;
        let count = counts.of(loss);
        let text = match loss {
            Loss::SignedOut => {
                format!("{} of {} users", counts.signed_out.len(), counts.signed_in.len())
            }
            Loss::Item => format!("{count} of {}", counts.items),
            Loss::AliveAfterSignOut => format!("{count} of {}", counts.sign_outs),
            Loss::AliveAfterSignIn => format!("{count} of {}", counts.sign_ins),
            Loss::Doubled | Loss::SomebodyElses => count.to_string(),
        };
        if count == 0 { text } else { text + "  (must be 0)" }
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        let counts = &self.counts;
        let instances: Vec<_> = self
            .instances
            .iter()
            .map(|instance| {
                json!({
                    "pid": instance.process,
                    "framework": instance.framework.name(),
                    "requests": instance.requests(),
                    "killed": instance.was_killed(),
                })
            })
            .collect();
        let mut report = json!({
            "store": self.store,
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
            "visits": counts.scenarios,
            "sign_ins": counts.sign_ins,
            "sign_outs": counts.sign_outs,
            "users_signed_in": counts.signed_in.len(),
            "users_signed_out": counts.signed_out.len(),
            "items": counts.items,
            "requests_cut_off_by_kills": counts.cut_off,
            "sign_ins_sent_again": counts.sign_ins_repeated,
            "items_left_behind": counts.items_left_behind,
            "unexpected_answers": counts.errors,
            "stories": counts.stories,
            "latency_ms": {
                "p50": self.milliseconds(50.0),
                "p95": self.milliseconds(95.0),
                "p99": self.milliseconds(99.0),
                "max": self.milliseconds(100.0),
            },
            "nothing_lost": self.figures().nothing_lost(),
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
        let line = |f: &mut fmt::Formatter<'_>, label: &str, value: &dyn fmt::Display| {
            writeln!(f, "{label:35} {value}")
        };
        writeln!(f)?;
        line(f, "store", &self.store)?;
        let requests = format!("{} in {seconds:.1} s, by {} users", counts.requests, self.users);
        line(f, "requests", &requests)?;
        for instance in &self.instances {
            let label = format!("  {:<10} process {}", instance.framework.name(), instance.process);
            let killed = if instance.was_killed() { "  killed" } else { "" };
            line(f, &label, &format!("{:6}{killed}", instance.requests()))?;
        }
        line(f, "processes killed", &counts.kills)?;
        let Counts { scenarios, sign_ins, items, sign_outs, .. } = counts;
        let visits =
            format!("{scenarios}; {sign_ins} sign-ins, {items} cart items, {sign_outs} sign-outs");
        line(f, "visits", &visits)?;
        if let Some(trouble) = self.trouble {
            line(f, "store pauses", &counts.store_pauses)?;
            let note = if trouble.restarts { "" } else { Trouble::NO_RESTART };
            line(f, "store restarts", &format!("{}{note}", counts.store_restarts))?;
            let outages = format!(
                "{:.0} ms for a user, {:.0} ms of the store",
                in_milliseconds(counts.longest_outage),
                in_milliseconds(counts.longest_store_outage)
            );
            line(f, "longest outage", &outages)?;
        }

        writeln!(f, "\nLosses")?;
        for loss in Loss::ALL {
            line(f, &format!("  {}", loss.label()), &self.loss(loss))?;
        }
        for story in &counts.stories {
            writeln!(f, "    {story}")?;
        }

        writeln!(f, "\nInterruptions")?;
        let cut_off = match counts.cut_off {
            0 => "none".to_owned(),
            count => format!("{count}, none of them confirmed to the user"),
        };
        line(f, "  requests cut off by a kill", &cut_off)?;
        let later = match counts.answers_503() {
            0 => "none".to_owned(),
            count => format!("{count}: {}", listed(&counts.later)),
        };
        line(f, "  answers \"try again later\"", &later)?;
        let repeated = match (counts.sign_ins_repeated, counts.items_left_behind) {
            (0, _) => "none".to_owned(),
            (count, 0) => count.to_string(),
            (count, items) => format!("{count}; {items} items did not come along, see --help"),
        };
        line(f, "  sign-ins sent again", &repeated)?;
        line(f, "  unexpected answers", &listed(&counts.errors))?;
        write!(
            f,
            "{:35} p50 {:.1} ms, p95 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
            "  response time",
            self.milliseconds(50.0),
            self.milliseconds(95.0),
            self.milliseconds(99.0),
            self.milliseconds(100.0)
        )?;
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
