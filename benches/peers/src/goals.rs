//! The goals: the figure measured for each, and why some goals are missed.

use crate::report::{FRAMEWORKS, Page, long_name, routes, table};
use crate::results::Record;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    OverHand,
    OverPeer,
    Latency,
}

impl Kind {
    const ALL: [Self; 3] = [Self::OverHand, Self::OverPeer, Self::Latency];

    fn name(self) -> &'static str {
        match self {
            Self::OverHand => "throughput, relative to hand-written",
            Self::OverPeer => "throughput, relative to the best peer",
            Self::Latency => "p99, relative to hand-written, at most",
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Verdict {
    Reached,
    Undecided,
    Missed,
}

/// A goal, and the rounds in which it was measured.
struct Goal {
    wanted: f64,
    rounds: Record,
    /// Whether a lower figure is better.
    is_limit: bool,
}

impl Goal {
    /// Returns the verdict that three quarters of the rounds support.
    fn verdict(&self) -> Verdict {
        // The figures are rounded as in the report.
        let at = |part| (self.rounds.quantile(part) * 100.0).round() / 100.0;
        let (low, high) = (at(0.25), at(0.75));
        let (is_reached, is_missed) = match self.is_limit {
            true => (high <= self.wanted, low > self.wanted),
            false => (low >= self.wanted, high < self.wanted),
        };
        match (is_reached, is_missed) {
            (true, _) => Verdict::Reached,
            (_, true) => Verdict::Missed,
            _ => Verdict::Undecided,
        }
    }

    fn text(&self) -> String {
        let mark = match self.verdict() {
            Verdict::Reached => "✓ ",
            Verdict::Undecided => "",
            Verdict::Missed => "✗ ",
        };
        format!("{mark}{:.2} ({:.2})", self.rounds.median(), self.wanted)
    }
}

const OVER_HAND: [[f64; 8]; 2] = [
    [0.96, 0.93, 1.02, 1.08, 0.85, 0.75, 0.72, 0.85],
    [0.98, 0.96, 1.0, 1.08, 0.75, 0.75, 0.65, 0.7],
];

/// The name of a row, and its goals.
type Row = (String, Vec<Goal>);

fn of_routes(page: &Page) -> Vec<Row> {
    let goal = |kind, framework, over_hand: f64, (place, route): (usize, &str)| match kind {
        Kind::OverHand => {
            let rounds = page.over_hand(&format!("unsticky-{framework}"), route);
            Goal { wanted: over_hand, rounds, is_limit: false }
        }
        Kind::OverPeer => {
            // In the first two columns, no command is sent, so unsticky need not be faster than its peers.
            let wanted = if place < 2 { 1.0 } else { 1.15 };
            Goal { wanted, rounds: page.over_best_peer(framework, route), is_limit: false }
        }
        Kind::Latency => {
            Goal { wanted: 1.0, rounds: page.p99_over_hand(framework, route), is_limit: true }
        }
    };
    let mut rows = Vec::new();
    for kind in Kind::ALL {
        for (framework, over_hand) in FRAMEWORKS.into_iter().zip(OVER_HAND) {
            let routes = routes().into_iter().enumerate().zip(over_hand);
            let goals = routes.map(|(route, over_hand)| goal(kind, framework, over_hand, route));
            rows.push((format!("{} | {}", kind.name(), long_name(framework)), goals.collect()));
        }
    }
    rows
}

fn of_stores(page: &Page) -> Vec<Row> {
    let row = |name: &str, backend, wanted: [f64; 2]| {
        let goals = CALLERS.into_iter().zip(wanted).map(|(callers, wanted)| {
            let rounds = page.loads_over_hand(backend, callers);
            Goal { wanted, rounds, is_limit: false }
        });
        (name.to_owned(), goals.collect())
    };
    vec![row("Redis", "redis", [0.65, 0.5]), row("Memcached", "memcached", [0.5, 0.5])]
}

/// The numbers of callers when the stores alone are measured.
const CALLERS: [usize; 2] = [64, 256];

fn marked(corner: &str, columns: impl IntoIterator<Item = String>, rows: &[Row]) -> String {
    let columns: Vec<_> = columns.into_iter().zip(0_usize..).collect();
    let rows = rows.iter().map(|(name, goals)| (name.clone(), goals));
    table(corner, &columns, rows, |goals, place| goals[*place].text())
}

const REASONS: &str = "\
- **No cookie, unused**: the middleware makes one small allocation, adds the handle to the request's extensions and
  inspects the response; see the instruction counts below. The difference between rounds is larger than this cost.
- **Reads**: a read has a time limit, compares the cookie's secret with its digest, and checks the deadlines and the form
  of the whole record. The hand-written code does none of this, and the peers do only part of it.
- **Increment**: a change needs more processor time in the application, for the same checks, the replay and the
  compare-and-set. In Redis 7, the compare-and-set is a script, which costs the server twice as much as creating a record,
  and the server shares the two cores with the application and the load generator. Valkey 9 has a command for
  compare-and-set.
- **Sign-in, re-sign-in**: in axum, most of the difference comes from the directory of sessions, which the peers do not
  keep; compare the \"directory off\" rows. In actix-web, where a command accounts for more of the cost of a request, the
  goals are missed even without the directory. A sign-in takes 3 commands in 2 round trips, and signing in again takes 4
  commands in 4 round trips. The hand-written code takes 1 command for a sign-in, and 3 commands in 2 round trips for
  signing in again.
- **Sign-out**: unsticky first reads the session and checks the cookie's secret, so that a stale cookie cannot end
  another user's session. It then deletes the session only if it is unchanged. The hand-written code and tower-sessions send one DEL;
  actix-session sends two commands, like unsticky.
- **p99**: the request rate is 0.3 of the hand-written application's throughput. For sign-in, re-sign-in and sign-out,
  this is between 0.45 and 0.8 of unsticky's own throughput, so requests queue.
- **Loads, relative to the hand-written client**: the libraries that unsticky uses for Redis and Memcached spend more time
  in their drivers, parsers and channels than a client that implements only one command. They also reconnect, apply time
  limits, and implement the rest of the protocol.
";

pub fn goals(page: &Page) -> String {
    let (of_routes, of_stores) = (of_routes(page), of_stores(page));
    let all = of_routes.iter().chain(&of_stores).flat_map(|(_, goals)| goals);
    let verdicts: Vec<_> = all.map(Goal::verdict).collect();
    let count = |verdict| verdicts.iter().filter(|it| **it == verdict).count();
    let of_routes = marked(" | ", routes().into_iter().map(str::to_owned), &of_routes);
    let callers = CALLERS.map(|callers| format!("{callers} callers"));
    let of_stores = marked("loads, relative to the hand-written client", callers, &of_stores);
    format!(
        "## Goals\n\n\
         Each cell has the median of the rounds, with the goal in brackets. It is marked ✓ if at least three quarters of the\n\
         rounds reach the goal and ✗ if at least three quarters do not; otherwise, the goal is undecided. \"Hand-written\" is\n\
         the hand-written application. The best peer is the fastest other library for the same framework that reads\n\
         from Redis on each request. Of {} goals, {} are reached, {} are undecided and {} are missed.\n\n{of_routes}\n{of_stores}\nWhy goals are missed:\n\n{REASONS}",
        verdicts.len(),
        count(Verdict::Reached),
        count(Verdict::Undecided),
        count(Verdict::Missed),
    )
}
