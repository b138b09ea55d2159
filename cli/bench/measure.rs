//! Runs all measurements in a plan, one after another.

use std::sync::Arc;
use std::time::Duration;

use unsticky::Sessions;

use crate::bench::arguments::Operation;
use crate::bench::drive::{Load, Pace, Stop, Visitors, drive};
use crate::bench::own_keys::OwnKeys;
use crate::bench::plan::{Plan, half};
use crate::bench::progress::Progress;
use crate::bench::tally::{Errors, Tally};
use crate::bench::visitor::{Application, Deed};

/// The time limit for creating the sessions that a measurement needs, and for removing them.
const PREPARATION: Duration = Duration::from_secs(10);

/// The directories are removed after this many rounds of sign-ins, so that they stay as small as those of
/// real users.
const ROUNDS: u32 = 8;

/// A measurement at a fixed rate may take this many times its planned duration if the store cannot keep up.
const PATIENCE: u32 = 2;

/// The highest throughput for a number of callers.
#[derive(Debug)]
pub(crate) struct Throughput {
    pub(crate) operation: Operation,
    pub(crate) payload: u32,
    pub(crate) callers: u32,
    pub(crate) tally: Tally,
}

/// The latencies at a fixed rate.
#[derive(Debug)]
pub(crate) struct Latency {
    pub(crate) operation: Operation,
    pub(crate) payload: u32,
    pub(crate) rate: u32,
    /// The number of requests that were due.
    pub(crate) due: u64,
    pub(crate) tally: Tally,
}

impl Latency {
    /// Returns the number of requests that were due but not sent.
    pub(crate) fn unsent(&self) -> u64 {
        self.due.saturating_sub(self.tally.requests())
    }
}

#[derive(Debug, Default)]
pub(crate) struct Results {
    pub(crate) throughput: Vec<Throughput>,
    pub(crate) latency: Vec<Latency>,
    /// Errors from requests that were not measured.
    pub(crate) preparation: Errors,
    /// Whether the measurements ended early, because no request succeeded in the last one.
    pub(crate) is_cut_short: bool,
    /// The number of keys that could not be removed.
    pub(crate) keys_left: usize,
}

impl Results {
    pub(crate) fn errors(&self) -> Errors {
        let mut errors = self.preparation.clone();
        let tallies = self.throughput.iter().map(|it| &it.tally);
        for tally in tallies.chain(self.latency.iter().map(|it| &it.tally)) {
            errors.merge(&tally.errors);
        }
        errors
    }

    /// Returns the highest throughput for an operation and a payload.
    fn highest(&self, operation: Operation, payload: u32) -> f64 {
        self.throughput
            .iter()
            .filter(|it| (it.operation, it.payload) == (operation, payload))
            .map(|it| it.tally.throughput())
            .fold(0.0, f64::max)
    }
}

/// The remaining time and requests of a measurement.
#[derive(Debug, Clone, Copy)]
struct Quota {
    pace: Pace,
    time: Duration,
    requests: u64,
}

impl Quota {
    /// If `pace` is `None`, the operation is not measured.
    fn new(pace: Option<Pace>, time: Duration) -> Self {
        let (pace, time, requests) = match pace {
            None => (Pace::Most, Duration::ZERO, 0),
            Some(Pace::Most) => (Pace::Most, time, u64::MAX),
            Some(Pace::Rate(rate)) => {
                (Pace::Rate(rate), PATIENCE * time, u64::from(rate) * time.as_secs())
            }
        };
        Self { pace, time, requests }
    }

    fn is_used_up(&self) -> bool {
        self.time.is_zero() || self.requests == 0
    }

    fn use_up(&mut self, tally: &Tally) {
        self.time = self.time.saturating_sub(tally.elapsed);
        self.requests = self.requests.saturating_sub(tally.requests());
    }
}

/// The results of a measurement's sign-ins and sign-outs.
#[derive(Debug, Default)]
struct InAndOut {
    sign_in: Tally,
    sign_out: Tally,
}

pub(crate) struct Measurement<'a> {
    plan: &'a Plan,
    sessions: Sessions,
    keys: Arc<OwnKeys>,
    stop: Stop,
    progress: Progress,
    results: Results,
}

impl<'a> Measurement<'a> {
    /// `keys` must be the store that `sessions` uses.
    pub(crate) fn new(
        plan: &'a Plan,
        sessions: Sessions,
        keys: Arc<OwnKeys>,
        stop: Stop,
        progress: Progress,
    ) -> Self {
        Self { plan, sessions, keys, stop, progress, results: Results::default() }
    }

    /// Runs all measurements, or stops when the stop flag is set, and then removes the keys.
    pub(crate) async fn run(mut self) -> Results {
        for payload in &self.plan.payloads {
            for callers in &self.plan.callers {
                self.measure_throughput(*payload, *callers).await;
            }
        }
        for payload in &self.plan.payloads {
            self.measure_latency(*payload).await;
        }
        self.progress.clear();
        self.results.keys_left = self.keys.remove_all(self.plan.most_callers(), PREPARATION).await;
        self.results
    }

    fn is_over(&self) -> bool {
        self.stop.is_set() || self.results.is_cut_short
    }

    async fn measure_throughput(&mut self, payload: u32, callers: u32) {
        let application = self.application(payload);
        for operation in [Operation::Read, Operation::Write] {
            if self.plan.has(operation) && !self.is_over() {
                self.progress.step(operation.as_str(), payload, 1);
                let tally =
                    self.steady(&application, payload, operation, callers, Pace::Most).await;
                self.add_throughput(operation, payload, callers, tally);
            }
        }
        let pace = |operation| self.plan.has(operation).then_some(Pace::Most);
        let (pace_in, pace_out) = (pace(Operation::SignIn), pace(Operation::SignOut));
        if (pace_in.is_none() && pace_out.is_none()) || self.is_over() {
            return;
        }
        let steps = usize::from(pace_in.is_some()) + usize::from(pace_out.is_some());
        self.progress.step("sign-in and sign-out", payload, steps);
        let tallies = self.in_and_out(&application, payload, callers, pace_in, pace_out).await;
        if pace_in.is_some() {
            self.add_throughput(Operation::SignIn, payload, callers, tallies.sign_in);
        }
        if pace_out.is_some() {
            self.add_throughput(Operation::SignOut, payload, callers, tallies.sign_out);
        }
    }

    async fn measure_latency(&mut self, payload: u32) {
        let application = self.application(payload);
        let callers = self.plan.most_callers();
        for operation in [Operation::Read, Operation::Write] {
            if self.plan.has(operation) && !self.is_over() {
                let rate = self.rate(operation, payload);
                self.progress.step(operation.as_str(), payload, 1);
                let pace = Pace::Rate(rate);
                let tally = self.steady(&application, payload, operation, callers, pace).await;
                self.add_latency(operation, payload, rate, tally);
            }
        }
        let rate = |operation| self.plan.has(operation).then(|| self.rate(operation, payload));
        let (rate_in, rate_out) = (rate(Operation::SignIn), rate(Operation::SignOut));
        if (rate_in.is_none() && rate_out.is_none()) || self.is_over() {
            return;
        }
        let steps = usize::from(rate_in.is_some()) + usize::from(rate_out.is_some());
        self.progress.step("sign-in and sign-out", payload, steps);
        let (pace_in, pace_out) = (rate_in.map(Pace::Rate), rate_out.map(Pace::Rate));
        let tallies = self.in_and_out(&application, payload, callers, pace_in, pace_out).await;
        if let Some(rate) = rate_in {
            self.add_latency(Operation::SignIn, payload, rate, tallies.sign_in);
        }
        if let Some(rate) = rate_out {
            self.add_latency(Operation::SignOut, payload, rate, tallies.sign_out);
        }
    }

    fn application(&self, payload: u32) -> Arc<Application> {
        Arc::new(Application::new(self.sessions.clone(), payload))
    }

    fn rate(&self, operation: Operation, payload: u32) -> u32 {
        self.plan.rate.unwrap_or_else(|| half(self.results.highest(operation, payload)))
    }

    fn add_throughput(&mut self, operation: Operation, payload: u32, callers: u32, tally: Tally) {
        self.results.is_cut_short |= tally.succeeded == 0 && !self.stop.is_set();
        self.results.throughput.push(Throughput { operation, payload, callers, tally });
    }

    fn add_latency(&mut self, operation: Operation, payload: u32, rate: u32, tally: Tally) {
        self.results.is_cut_short |= tally.succeeded == 0 && !self.stop.is_set();
        let due = u64::from(rate) * u64::from(self.plan.seconds);
        self.results.latency.push(Latency { operation, payload, rate, due, tally });
    }

    /// Measures requests that use the same sessions repeatedly. Only one caller uses a session at a time.
    async fn steady(
        &mut self,
        application: &Arc<Application>,
        payload: u32,
        operation: Operation,
        callers: u32,
        pace: Pace,
    ) -> Tally {
        let sessions = self.plan.steady_sessions(payload);
        let visitors = Visitors::default();
        let load = self.unmeasured(Deed::Arrive);
        self.prepare(application, &Visitors::new(sessions), &visitors, load).await;
        if visitors.is_empty() {
            return Tally::default();
        }
        let Quota { time, requests, .. } = Quota::new(Some(pace), self.plan.duration());
        let deed = Deed::Measured(operation);
        let load = Load { deed, pace, callers, most: requests, time };
        let tally = drive(application, &visitors, &visitors, load, &self.stop).await;
        self.keys.remove_all(self.plan.most_callers(), PREPARATION).await;
        tally
    }

    /// Measures sign-ins and sign-outs alternately, so that there are never more sessions than planned. An
    /// operation whose pace is `None` is not measured. If sign-ins are measured at `Pace::Most`, the
    /// measurement of sign-outs ends together with that of sign-ins.
    async fn in_and_out(
        &mut self,
        application: &Arc<Application>,
        payload: u32,
        callers: u32,
        pace_in: Option<Pace>,
        pace_out: Option<Pace>,
    ) -> InAndOut {
        let (sign_in, sign_out) =
            (Deed::Measured(Operation::SignIn), Deed::Measured(Operation::SignOut));
        let time = self.plan.duration();
        let (mut quota_in, mut quota_out) = (Quota::new(pace_in, time), Quota::new(pace_out, time));
        let follows = pace_in == Some(Pace::Most);
        let mut tallies = InAndOut::default();
        let mut round = 0;
        while !self.stop.is_set() && (!quota_in.is_used_up() || !quota_out.is_used_up()) {
            let sessions = self.plan.sessions(payload);
            let needed = quota_in.requests.max(quota_out.requests);
            let count = u32::try_from(needed).unwrap_or(sessions).min(sessions);
            let visitors = Visitors::new(count);
            let (signed_in, gone) = (Visitors::default(), Visitors::default());
            let is_measured = !quota_in.is_used_up();
            if is_measured {
                let Quota { pace, time, requests } = quota_in;
                let load = Load { deed: sign_in, pace, callers, most: requests, time };
                let tally = drive(application, &visitors, &signed_in, load, &self.stop).await;
                quota_in.use_up(&tally);
                tallies.sign_in.merge(&tally);
            }
            if !quota_out.is_used_up() && (!is_measured || !follows) {
                let load = self.unmeasured(sign_in);
                self.prepare(application, &visitors, &signed_in, load).await;
            }
            if signed_in.is_empty() {
                break;
            }
            if !quota_out.is_used_up() {
                let Quota { pace, time, requests } = quota_out;
                let load = Load { deed: sign_out, pace, callers, most: requests, time };
                let tally = drive(application, &signed_in, &gone, load, &self.stop).await;
                quota_out.use_up(&tally);
                tallies.sign_out.merge(&tally);
            }
            let load = self.unmeasured(sign_out);
            self.prepare(application, &signed_in, &gone, load).await;
            if follows && quota_in.is_used_up() {
                break;
            }
            round += 1;
            if round % ROUNDS == 0 {
                self.keys.remove_all(self.plan.most_callers(), PREPARATION).await;
            }
        }
        self.keys.remove_all(self.plan.most_callers(), PREPARATION).await;
        tallies
    }

    /// Returns a load in which all visitors send their requests as fast as possible.
    fn unmeasured(&self, deed: Deed) -> Load {
        let callers = self.plan.most_callers();
        Load { deed, pace: Pace::Most, callers, most: u64::MAX, time: PREPARATION }
    }

    async fn prepare(
        &mut self,
        application: &Arc<Application>,
        from: &Visitors,
        to: &Visitors,
        load: Load,
    ) {
        if !from.is_empty() {
            let tally = drive(application, from, to, load, &self.stop).await;
            self.results.preparation.merge(&tally.errors);
        }
    }
}
