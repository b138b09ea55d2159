//! The report about the test on one store.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use crate::arguments::Arguments;
use crate::balancer::Instance;
use crate::servers::Program;
use crate::tally::{Counts, Disturbance, Loss, Tally};
use crate::topology::Topology;
use crate::verdict::{Figures, Outcome};

/// Prints the progress every second.
pub(crate) async fn live(started: Instant, tally: &Tally, trouble: Option<Trouble>) -> Infallible {
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);
    // The first tick comes immediately.
    seconds.tick().await;
    loop {
        seconds.tick().await;
        let counts = tally.counts();
        let mut of_the_store = String::new();
        if let Some(trouble) = trouble {
            for disturbance in trouble.disturbances() {
                let count = counts.disturbances.of(*disturbance);
                of_the_store += &format!("{count:3} {}  ", disturbance.label());
            }
            of_the_store += &format!("{:5} x 503  ", counts.answers_503());
        }
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

/// Returns a URL without user, password and parameters, so that it can be printed.
pub(crate) fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    // The order matters: a password that is not percent-encoded can contain any of these characters.
    let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let host = rest.split(['?', '#']).next().unwrap_or_default();
    if scheme.is_empty() { host.to_owned() } else { format!("{scheme}://{host}") }
}

/// The kind of store that is disturbed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trouble {
    Server(Program),
    Topology(Topology),
}

impl Trouble {
    pub(crate) fn announcement(self) -> String {
        match self {
            Self::Server(program) if program.can_keep_data() => {
                format!("{} is paused, or killed and restarted with its data", program.name())
            }
            Self::Server(program) => {
                format!("{} is paused, but not restarted{}", program.name(), Self::NO_RESTART)
            }
            Self::Topology(topology) => topology.announcement().to_owned(),
        }
    }

    /// Returns the disturbances that can occur.
    const fn disturbances(self) -> &'static [Disturbance] {
        match self {
            Self::Server(_) => &[Disturbance::Pause, Disturbance::Restart],
            Self::Topology(topology) => topology.disturbances(),
        }
    }

    /// Returns the reason why this disturbance never occurs, or an empty text if it can occur.
    const fn note(self, disturbance: Disturbance) -> &'static str {
        match (self, disturbance) {
            (Self::Server(program), Disturbance::Restart) if !program.can_keep_data() => {
                Self::NO_RESTART
            }
            _ => "",
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
        // A loss counts even if the test was too short to prove anything else.
        if figures.nothing_lost() && (counts.items == 0 || counts.sign_ins == 0) {
            return Outcome::NotTested("no user could fill a cart and sign in".to_owned());
        }
        if figures.nothing_lost() && counts.kills == 0 {
            return Outcome::NotTested("the test was too short: no process was killed".to_owned());
        }
        if figures.nothing_lost() && self.trouble.is_some() && counts.disturbances.is_none() {
            return Outcome::NotTested(
                "the test was too short: the store was not disturbed".to_owned(),
            );
        }
        Outcome::Tested(figures)
    }

    pub(crate) fn ran_beside(&self) -> bool {
        self.counts.beside.0 > 0
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
            disturbances: counts.disturbances.clone(),
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
            "Each process kept its sessions in its own memory. Other processes cannot see them, and \
             they are\nlost when the process ends. Use a store that all processes share: Redis or \
             Memcached.",
        )
    }

    /// Returns the number of losses and, where it is counted, how many were possible.
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
            Loss::Doubled | Loss::MixedUp | Loss::NoAnswer => count.to_string(),
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
            "commands_beside": counts.beside.0,
            "commands_beside_failed": counts.beside.1,
            "chaos": self.trouble.is_some(),
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
        for disturbance in Disturbance::ALL {
            report[disturbance.json_name()] = counts.disturbances.of(disturbance).into();
        }
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
            for disturbance in trouble.disturbances() {
                let (count, note) =
                    (counts.disturbances.of(*disturbance), trouble.note(*disturbance));
                line(f, disturbance.label(), &format!("{count}{note}"))?;
            }
            let outages = format!(
                "{:.0} ms for a user, {:.0} ms of the store",
                in_milliseconds(counts.longest_outage),
                in_milliseconds(counts.longest_store_outage)
            );
            line(f, "longest outage", &outages)?;
        }

        if let (ran @ 1.., failed) = counts.beside {
            line(f, "commands beside", &format!("{ran}, of which {failed} failed"))?;
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
            (count, items) => format!("{count}; {items} items were not taken over, see --help"),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn report(trouble: Option<Trouble>, change: impl Fn(&mut Counts)) -> Report {
        let mut counts = Counts { kills: 1, items: 1, sign_ins: 1, ..Counts::default() };
        change(&mut counts);
        Report {
            store: "redis+cluster://a".to_owned(),
            trouble,
            processes: 1,
            users: 1,
            elapsed: Duration::from_secs(1),
            counts,
            instances: Vec::new(),
        }
    }

    #[test]
    fn store_that_was_not_disturbed_is_not_tested() {
        let trouble = Some(Trouble::Topology(Topology::Cluster));
        assert!(matches!(report(trouble, |_| ()).outcome(), Outcome::NotTested(_)));
        let moved = |counts: &mut Counts| {
            counts.disturbances.0[Disturbance::SlotMoved as usize] = 1;
        };
        assert!(matches!(report(trouble, moved).outcome(), Outcome::Tested(_)));
        assert!(matches!(report(None, |_| ()).outcome(), Outcome::Tested(_)));
    }

    #[test]
    fn user_without_answer_is_a_loss() {
        let left = |counts: &mut Counts| counts.losses[Loss::NoAnswer as usize] = 1;
        assert_eq!(report(None, left).figures().other_losses, 1);
        assert!(!report(None, left).figures().nothing_lost());
    }

    #[test]
    fn report_counts_disturbances_of_servers() {
        let moved = |counts: &mut Counts| {
            counts.disturbances.0[Disturbance::SlotMoved as usize] = 40;
        };
        let report = report(Some(Trouble::Topology(Topology::Cluster)), moved);
        let text = report.to_string();
        for (label, count) in [("slots moved", 40), ("planned failovers", 0), ("masters killed", 0)]
        {
            assert!(text.contains(&format!("\n{label:35} {count}\n")), "{text}");
        }
        assert!(!text.contains("store pauses") && !text.contains("Sentinels killed"), "{text}");
        assert_eq!(report.json()["slots_moved"], 40);
        assert_eq!(report.json()["sentinels_killed"], 0);
    }

    #[test]
    fn shown_address_has_no_password() {
        for (address, shown) in [
            ("redis://10.0.0.1:6379/2", "redis://10.0.0.1:6379/2"),
            ("rediss://app:s3cret@host?ca=/etc/ca.pem", "rediss://host"),
            ("redis+cluster://app:s3cret@a:7000,b:7001", "redis+cluster://a:7000,b:7001"),
            ("redis+sentinel://:s3cret@s1,s2/mymaster/1", "redis+sentinel://s1,s2/mymaster/1"),
            // URLs with a mistake. The error message about such a URL contains this text.
            ("redis://:s3c?ret@host", "redis://host"),
            ("redis://:s3c#r@et@host", "redis://host"),
            ("app:s3cret@host", "host"),
            ("memory:", "memory:"),
        ] {
            assert_eq!(without_password(address), shown);
        }
    }
}
