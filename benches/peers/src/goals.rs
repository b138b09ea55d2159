//! The goals: those that are reached in one line, those that are not with the reason.

use crate::report::{FRAMEWORKS, Page, routes};

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    OverHand,
    OverPeer,
    Latency,
    Store,
}

impl Kind {
    const ALL: [Self; 4] = [Self::OverHand, Self::OverPeer, Self::Latency, Self::Store];

    fn name(self) -> &'static str {
        match self {
            Self::OverHand => "throughput over by hand",
            Self::OverPeer => "throughput over the best peer",
            Self::Latency => "p99 at a fixed rate over by hand, at most",
            Self::Store => "loads over the client by hand, one worker",
        }
    }
}

/// What it says, what was measured.
struct Goal {
    kind: Kind,
    whose: &'static str,
    what: &'static str,
    wanted: f64,
    measured: f64,
}

impl Goal {
    fn is_reached(&self) -> bool {
        // As it is printed.
        let measured = (self.measured * 100.0).round() / 100.0;
        if self.kind == Kind::Latency { measured <= self.wanted } else { measured >= self.wanted }
    }

    fn text(&self) -> String {
        format!("{} {} {:.2} ({:.2})", self.whose, self.what, self.measured, self.wanted)
    }

    /// Why it is not reached, where that is so.
    fn reason(&self) -> &'static str {
        match (self.kind, self.what) {
            (Kind::OverHand, "no cookie" | "unused") => {
                "The handle in the request's extensions and a look at the response are what remains of the middleware. \
                 One that does nothing takes 870 of 13,500 instructions in axum already."
            }
            (Kind::OverHand | Kind::OverPeer, "read" | "read 1 KiB") => {
                "A read has a time limit, checks the cookie's secret against its digest, the deadlines, and the form of the \
                 whole record. By hand nothing of that happens, with the peers a part of it."
            }
            (Kind::OverHand | Kind::OverPeer, "increment") => {
                "A change is a compare-and-set. In Redis 7 that is a script, with twice to five times the server's \
                 time of a plain SET, and the server shares a core with the load generator here. Valkey 9 has a command for it."
            }
            (Kind::OverHand | Kind::OverPeer, "sign-in" | "re-sign-in") => {
                "A sign-in enters its session in the account's directory, which nobody else keeps: the row with the directory \
                 off is the price of that. By hand it is one SET, with the peers a DEL and a SET."
            }
            (Kind::OverHand | Kind::OverPeer, "sign-out") => {
                "A sign-out reads the session and checks its secret first, so that a stale cookie ends nobody's session. By hand \
                 it is a DEL of whatever the cookie names."
            }
            (Kind::OverPeer, _) => {
                "Where no command is sent, the applications differ by a few hundred instructions, less than the rounds do."
            }
            (Kind::Latency, _) => {
                "A request takes as long as its work and its commands, one after the other: what a route does more than \
                 by hand is in the table of the safety's costs."
            }
            (Kind::Store, _) => {
                "The library's driver, parser and channels cost more than a client that knows one command. They also reconnect, \
                 limit, and speak the rest of the protocol."
            }
            (Kind::OverHand, _) => "",
        }
    }
}

fn list(page: &Page) -> Vec<Goal> {
    let over_hand = [
        [0.96, 0.93, 1.02, 1.08, 0.85, 0.75, 0.72, 0.85],
        [0.98, 0.96, 1.0, 1.08, 0.75, 0.75, 0.65, 0.7],
    ];
    let mut goals = Vec::new();
    for (whose, over_hand) in FRAMEWORKS.into_iter().zip(over_hand) {
        let own = format!("unsticky-{whose}");
        for (number, (what, wanted)) in routes().into_iter().zip(over_hand).enumerate() {
            // Where no command is sent, nobody need be ahead.
            let over_peer = if number < 2 { 1.0 } else { 1.15 };
            let figures = [
                (Kind::OverHand, wanted, page.over_hand(&own, what).median()),
                (Kind::OverPeer, over_peer, page.over_best_peer(whose, what)),
                (Kind::Latency, 1.0, page.p99_over_hand(whose, what).median()),
            ];
            let goal = |(kind, wanted, measured)| Goal { kind, whose, what, wanted, measured };
            goals.extend(figures.map(goal));
        }
    }
    for (whose, backend, wanted) in
        [("Redis", "redis", [0.65, 0.5]), ("Memcached", "memcached", [0.5, 0.5])]
    {
        for ((callers, what), wanted) in
            [(64, "64 callers"), (256, "256 callers")].into_iter().zip(wanted)
        {
            let measured = page.loads_over_hand(backend, callers);
            goals.push(Goal { kind: Kind::Store, whose, what, wanted, measured });
        }
    }
    goals
}

pub fn goals(page: &Page) -> String {
    let goals = list(page);
    let (reached, missed): (Vec<_>, Vec<_>) = goals.iter().partition(|goal| goal.is_reached());
    let reached_of = |kind| {
        let reached: Vec<_> =
            reached.iter().filter(|goal| goal.kind == kind).map(|goal| goal.text()).collect();
        (!reached.is_empty()).then(|| format!("{}: {}", kind.name(), reached.join(", ")))
    };
    let lines: Vec<_> = Kind::ALL.into_iter().filter_map(reached_of).collect();
    let mut text = format!(
        "## Goals\n\nMeasured, with the goal in brackets. {} of {} are reached: {}.\n",
        reached.len(),
        goals.len(),
        lines.join("; "),
    );
    if !missed.is_empty() {
        text += "\nNot reached:\n\n";
    }
    for kind in Kind::ALL {
        let mut rest: Vec<&Goal> = missed.iter().copied().filter(|it| it.kind == kind).collect();
        while let Some(first) = rest.first() {
            let reason = first.reason();
            let same: (Vec<&Goal>, Vec<&Goal>) =
                rest.into_iter().partition(|it| it.reason() == reason);
            let figures: Vec<_> = same.0.iter().map(|goal| goal.text()).collect();
            text += &format!("- **{}**: {}. {reason}\n", kind.name(), figures.join(", "));
            rest = same.1;
        }
    }
    text
}
