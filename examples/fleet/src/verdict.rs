//! The verdict on all stores: one sentence and an exit status.

use std::fmt;
use std::ops::AddAssign;

use serde_json::json;

use crate::servers::Program;
use crate::tally::{Disturbance, Disturbances};

/// The outcome of the test on one store.
#[derive(Debug)]
pub(crate) enum Outcome {
    Tested(Figures),
    /// The test was aborted for this reason. These are the figures up to then.
    BrokenOff(Figures, String),
    NotInstalled(Program),
    /// The test could not run, or proved nothing, for this reason.
    NotTested(String),
}

/// The figures on which the verdict is based.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    pub(crate) users: u64,
    pub(crate) users_signed_out: u64,
    pub(crate) items: u64,
    pub(crate) items_lost: u64,
    /// Losses of all other kinds.
    pub(crate) other_losses: u64,
    pub(crate) kills: u64,
    pub(crate) disturbances: Disturbances,
}

impl Figures {
    pub(crate) fn nothing_lost(&self) -> bool {
        self.users_signed_out + self.items_lost + self.other_losses == 0
    }
}

impl AddAssign<&Self> for Figures {
    fn add_assign(&mut self, other: &Self) {
        self.users += other.users;
        self.users_signed_out += other.users_signed_out;
        self.items += other.items;
        self.items_lost += other.items_lost;
        self.other_losses += other.other_losses;
        self.kills += other.kills;
        self.disturbances += &other.disturbances;
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { users, users_signed_out, items, items_lost, .. } = self;
        write!(f, "{users_signed_out} of {users} users signed out, ")?;
        write!(f, "{items_lost} of {items} cart items lost, ")?;
        if self.other_losses > 0 {
            write!(f, "{} other losses, ", self.other_losses)?;
        }
        write!(f, "{} processes killed", self.kills)?;
        for disturbance in Disturbance::ALL {
            let count = self.disturbances.of(disturbance);
            if count > 0 {
                write!(f, ", {count} {}", disturbance.label())?;
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    Pass,
    Fail,
    NothingProved,
    Incomplete,
}

impl Word {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 4] =
        [Self::Pass, Self::Fail, Self::NothingProved, Self::Incomplete];

    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Fail => "FAIL",
            Self::NothingProved => "NOTHING PROVED",
            Self::Incomplete => "INCOMPLETE",
        }
    }

    /// Returns the exit status. Status 2 is reserved for an invalid command line.
    pub(crate) const fn exit_status(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Fail => 1,
            Self::NothingProved => 3,
            Self::Incomplete => 4,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Verdict {
    word: Word,
    sentence: String,
}

impl Verdict {
    /// Returns the verdict on these stores, given the name of each and the outcome of its test.
    pub(crate) fn of(outcomes: &[(String, Outcome)]) -> Self {
        let mut total = Figures::default();
        let (mut passed, mut failed) = (Vec::new(), Vec::new());
        let (mut broken, mut untested, mut missing) = (Vec::new(), Vec::new(), Vec::new());
        for (store, outcome) in outcomes {
            match outcome {
                Outcome::Tested(figures) => {
                    total += figures;
                    let stores = if figures.nothing_lost() { &mut passed } else { &mut failed };
                    stores.push(store.as_str());
                }
                Outcome::BrokenOff(figures, why) => {
                    total += figures;
                    if !figures.nothing_lost() {
                        failed.push(store.as_str());
                    }
                    broken.push(format!("{store} ({why})"));
                }
                Outcome::NotInstalled(program) => {
                    untested.push(format!("{store} ({} is not installed)", program.name()));
                    missing.push(program.name());
                }
                Outcome::NotTested(why) => untested.push(format!("{store} ({why})")),
            }
        }
        let untested = untested.join(" and ");
        let mut sentence;
        let has_failed = !failed.is_empty() || !broken.is_empty();
        let word = match (passed.is_empty(), has_failed, untested.is_empty()) {
            (_, true, _) => {
                sentence = total.to_string();
                if !failed.is_empty() {
                    sentence += &format!("; the losses were on {}", failed.join(" and "));
                }
                if !broken.is_empty() {
                    sentence += &format!("; the test was aborted on {}", broken.join(" and "));
                }
                Word::Fail
            }
            (true, false, _) => {
                sentence = format!("not tested: {untested}");
                Word::NothingProved
            }
            (false, false, true) => {
                sentence = format!("{total}, on {}", passed.join(" and "));
                Word::Pass
            }
            (false, false, false) => {
                sentence =
                    format!("{total}, on {} only; not tested: {untested}", passed.join(" and "));
                Word::Incomplete
            }
        };
        if !missing.is_empty() && word != Word::Fail {
            sentence += &Self::how_to_install(&missing.join(" "));
        }
        Self { word, sentence }
    }

    fn how_to_install(programs: &str) -> String {
        let homebrew = programs.replace(Program::Redis.name(), "redis");
        format!(
            ". Install the missing programs (on Debian and Ubuntu: sudo apt-get install {programs}; \
             with Homebrew: brew install {homebrew}) and run scripts/fleet again, or use your own \
             server: scripts/fleet --store redis://HOST:PORT"
        )
    }

    pub(crate) const fn exit_status(&self) -> u8 {
        self.word.exit_status()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        json!({
            "verdict": self.word.text(),
            "exit_status": self.exit_status(),
            "text": self.to_string(),
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.word.text(), self.sentence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Figures = Figures {
        users: 100,
        users_signed_out: 0,
        items: 412,
        items_lost: 0,
        other_losses: 0,
        kills: 9,
        disturbances: Disturbances([0; Disturbance::ALL.len()]),
    };

    fn verdict(redis: Outcome, memcached: Outcome) -> (u8, String) {
        let verdict =
            Verdict::of(&[("Redis".to_owned(), redis), ("Memcached".to_owned(), memcached)]);
        let text = verdict.to_string();
        assert!(!text.contains('\n'), "the verdict is one line: {text}");
        (verdict.exit_status(), text)
    }

    #[test]
    fn passes_if_no_store_has_losses() {
        assert_eq!(
            verdict(Outcome::Tested(WELL), Outcome::Tested(WELL)),
            (
                0,
                "PASS: 0 of 200 users signed out, 0 of 824 cart items lost, 18 processes killed, on \
                 Redis and Memcached"
                    .to_owned()
            )
        );
    }

    #[test]
    fn verdict_counts_disturbances() {
        let disturbed = |count: u64| {
            let mut figures = Figures { kills: 2, ..WELL };
            for disturbance in [Disturbance::SlotMoved, Disturbance::MasterKilled] {
                figures.disturbances.0[disturbance as usize] = count;
            }
            Outcome::Tested(figures)
        };
        let (_, text) = verdict(disturbed(3), disturbed(4));
        assert!(
            text.contains("lost, 4 processes killed, 7 slots moved, 7 masters killed, on Redis"),
            "{text}"
        );
    }

    #[test]
    fn fails_if_one_store_has_losses() {
        let losses = [
            Figures { users_signed_out: 1, ..WELL },
            Figures { items_lost: 1, ..WELL },
            Figures { other_losses: 1, ..WELL },
        ];
        for figures in losses {
            let others = [
                Outcome::Tested(WELL),
                Outcome::NotInstalled(Program::Memcached),
                Outcome::NotTested("interrupted".to_owned()),
            ];
            for other in others {
                let (status, text) = verdict(Outcome::Tested(figures.clone()), other);
                assert_eq!(status, 1);
                assert!(text.starts_with("FAIL: "), "{text}");
                assert!(text.ends_with("; the losses were on Redis"), "{text}");
            }
        }
    }

    #[test]
    fn fails_if_test_was_aborted() {
        let broken = |figures| Outcome::BrokenOff(figures, "a process ended".to_owned());
        let (status, text) = verdict(broken(WELL), Outcome::Tested(WELL));
        assert_eq!(status, 1);
        assert!(text.starts_with("FAIL: 0 of 200 users signed out, "), "{text}");
        assert!(
            text.ends_with("killed; the test was aborted on Redis (a process ended)"),
            "{text}"
        );
        let (status, text) =
            verdict(broken(Figures { items_lost: 1, ..WELL }), Outcome::NotTested("x".to_owned()));
        assert_eq!(status, 1);
        assert!(text.contains("; the losses were on Redis; the test was aborted on"), "{text}");
    }

    #[test]
    fn incomplete_if_one_store_was_not_tested() {
        let (status, text) =
            verdict(Outcome::Tested(WELL), Outcome::NotInstalled(Program::Memcached));
        assert_eq!(status, 4);
        assert!(text.starts_with("INCOMPLETE: 0 of 100 users signed out, "), "{text}");
        assert!(text.contains("on Redis only; not tested: Memcached (memcached is not"), "{text}");
        assert!(text.contains("sudo apt-get install memcached;"), "{text}");
    }

    #[test]
    fn nothing_proved_without_servers() {
        let (status, text) = verdict(
            Outcome::NotInstalled(Program::Redis),
            Outcome::NotInstalled(Program::Memcached),
        );
        assert_eq!(status, 3);
        assert!(text.starts_with("NOTHING PROVED: "), "{text}");
        assert!(text.contains("sudo apt-get install redis-server memcached;"), "{text}");
        assert!(text.contains("brew install redis memcached)"), "{text}");
    }

    #[test]
    fn nothing_proved_if_interrupted() {
        let why = || Outcome::NotTested("interrupted".to_owned());
        let (status, text) = verdict(why(), why());
        assert_eq!(status, 3);
        assert_eq!(
            text,
            "NOTHING PROVED: not tested: Redis (interrupted) and Memcached (interrupted)"
        );
    }
}
