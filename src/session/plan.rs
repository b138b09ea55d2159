//! What is to be done at the end of a request: pure tables.

use super::record::Header;

/// What is known when the handler has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Situation {
    /// A token of our name came with the request, valid or not.
    pub(crate) presented: bool,
    /// A session was loaded with it.
    pub(crate) known: bool,
    /// The values differ from the loaded ones; after an end, from nothing.
    pub(crate) changed: bool,
    /// The handler ended the session.
    pub(crate) ended: bool,
    /// The handler signed somebody in.
    pub(crate) sign_in: SignIn,
    /// The handler asked for another secret or another lifetime.
    pub(crate) new_secret: bool,
    /// The session is used so late that it is worth a write.
    pub(crate) refresh_due: bool,
    /// The handler failed, so that nothing is to be kept.
    pub(crate) failed: bool,
    /// The session was found gone, or signed in anew, earlier in this request: the browser may hold a
    /// newer cookie by now, which must not be overwritten or removed.
    pub(crate) lost: bool,
}

/// Who was signed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignIn {
    No,
    /// On an anonymous session, or the same person again.
    Here,
    /// Another person than the one of the loaded session.
    Another,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// No store command, no cookie.
    Nothing,
    /// The browser is to forget tokens that are worth nothing, or too many.
    Forget,
    /// The changes belong to a session that is no more.
    Gone,
    /// A new session.
    Create,
    /// The loaded session with this request's changes, under a new secret or the same.
    Save { new_secret: bool },
    /// The loaded session as it is, for another idle timeout.
    Refresh,
    /// The loaded session ends.
    Delete,
    /// The loaded session ends, then a new one begins.
    DeleteThenCreate,
    /// A new session begins, and only then the loaded one ends, so that a refused write changes
    /// nothing.
    CreateThenDelete,
}

impl Plan {
    /// Whether it leads to a new secret, which only a cookie can bring to the browser.
    pub(crate) fn sends_token(self) -> bool {
        matches!(
            self,
            Self::Create
                | Self::Save { new_secret: true }
                | Self::DeleteThenCreate
                | Self::CreateThenDelete
        )
    }
}

pub(crate) fn decide(situation: Situation) -> Plan {
    let Situation {
        presented,
        known,
        changed,
        ended,
        sign_in,
        new_secret,
        refresh_due,
        failed,
        lost,
    } = situation;
    if lost {
        return match sign_in {
            _ if failed => Plan::Nothing,
            SignIn::Here | SignIn::Another => Plan::Create,
            SignIn::No if changed => Plan::Gone,
            SignIn::No => Plan::Nothing,
        };
    }
    if failed {
        return match (ended, known, presented) {
            (true, true, _) => Plan::Delete,
            (true, false, true) => Plan::Forget,
            _ => Plan::Nothing,
        };
    }
    match (known, ended, sign_in) {
        (false, _, SignIn::Here | SignIn::Another) => Plan::Create,
        (false, _, SignIn::No) if changed => Plan::Create,
        (false, true, SignIn::No) if presented => Plan::Forget,
        (false, _, SignIn::No) => Plan::Nothing,
        (true, true, SignIn::No) if changed => Plan::DeleteThenCreate,
        (true, true, SignIn::No) => Plan::Delete,
        (true, true, _) | (true, false, SignIn::Another) => Plan::CreateThenDelete,
        (true, false, SignIn::Here) => Plan::Save { new_secret: true },
        (true, false, SignIn::No) if changed || new_secret => Plan::Save { new_secret },
        (true, false, SignIn::No) if refresh_due => Plan::Refresh,
        (true, false, SignIn::No) => Plan::Nothing,
    }
}

/// What to do with a commit that met a newer record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Merge {
    /// Replay the changes on it.
    Replay {
        /// Another request gave the session a new secret already: that cookie stands, and this
        /// request must not make it void with one of its own.
        keep_secret: bool,
    },
    /// Somebody signed in meanwhile: this request's changes belong to a session that is no more.
    Gone,
    /// This request signs somebody in: it gets a session of its own.
    StartFresh,
}

pub(crate) fn merge(loaded: &Header, newer: &Header, signing_in: bool) -> Merge {
    if !loaded.same_sign_in(newer) {
        return if signing_in { Merge::StartFresh } else { Merge::Gone };
    }
    Merge::Replay { keep_secret: !signing_in && loaded.digest != newer.digest }
}

/// Whether ending a session also ends what another request made of it meanwhile: yes where it is the
/// same person's, also after a step-up; never somebody else's sign-in.
pub(crate) fn ends(loaded: &Header, newer: &Header) -> bool {
    loaded.principal == newer.principal
}

#[cfg(test)]
mod tests {
    use super::super::lifetime::{Lifetime, Millis};
    use super::super::record::Tag;
    use super::super::token::SecretDigest;
    use super::*;

    /// Every cell of the table: the fields that matter, `-` for any value.
    ///
    /// Columns: lost, failed, known, ended, sign-in, changed, new secret, refresh due, presented.
    const TABLE: &[(&str, Plan)] = &[
        // The session was lost on the way.
        ("L F - - - - - - -", Plan::Nothing),
        ("L . - - H - - - -", Plan::Create),
        ("L . - - A - - - -", Plan::Create),
        ("L . - - . C - - -", Plan::Gone),
        ("L . - - . . - - -", Plan::Nothing),
        // A failed request keeps nothing but an end.
        (". F K E - - - - -", Plan::Delete),
        (". F . E - - - - P", Plan::Forget),
        (". F . E - - - - .", Plan::Nothing),
        (". F - . - - - - -", Plan::Nothing),
        // Nobody is known.
        (". . . - H - - - -", Plan::Create),
        (". . . - A - - - -", Plan::Create),
        (". . . - . C - - -", Plan::Create),
        (". . . E . . - - P", Plan::Forget),
        (". . . E . . - - .", Plan::Nothing),
        (". . . . . . - - -", Plan::Nothing),
        // The session ends.
        (". . K E . . - - -", Plan::Delete),
        (". . K E . C - - -", Plan::DeleteThenCreate),
        (". . K E H - - - -", Plan::CreateThenDelete),
        (". . K E A - - - -", Plan::CreateThenDelete),
        // The session goes on.
        (". . K . A - - - -", Plan::CreateThenDelete),
        (". . K . H - - - -", Plan::Save { new_secret: true }),
        (". . K . . - N - -", Plan::Save { new_secret: true }),
        (". . K . . C . - -", Plan::Save { new_secret: false }),
        (". . K . . . . R -", Plan::Refresh),
        (". . K . . . . . -", Plan::Nothing),
    ];

    fn situations() -> impl Iterator<Item = (String, Situation)> {
        (0..1 << 8).flat_map(|bits: u16| {
            [(SignIn::No, '.'), (SignIn::Here, 'H'), (SignIn::Another, 'A')].map(
                |(sign_in, letter)| {
                    let on = |bit: u16| bits & 1 << bit != 0;
                    let mark = |bit, letter| if on(bit) { letter } else { '.' };
                    let cell = [
                        mark(7, 'L'),
                        mark(0, 'F'),
                        mark(1, 'K'),
                        mark(2, 'E'),
                        letter,
                        mark(3, 'C'),
                        mark(4, 'N'),
                        mark(5, 'R'),
                        mark(6, 'P'),
                    ];
                    let situation = Situation {
                        failed: on(0),
                        known: on(1),
                        ended: on(2),
                        sign_in,
                        changed: on(3),
                        new_secret: on(4),
                        refresh_due: on(5),
                        presented: on(6),
                        lost: on(7),
                    };
                    (cell.iter().collect(), situation)
                },
            )
        })
    }

    #[test]
    fn every_cell_of_the_plan_table() {
        let mut used = vec![0; TABLE.len()];
        for (cell, situation) in situations() {
            let rows: Vec<usize> = (0..TABLE.len())
                .filter(|row| {
                    let pattern = TABLE[*row].0.chars().filter(|mark| *mark != ' ');
                    pattern.zip(cell.chars()).all(|(mark, is)| mark == '-' || mark == is)
                })
                .collect();
            assert_eq!(rows.len(), 1, "{cell} is in rows {rows:?}");
            assert_eq!(decide(situation), TABLE[rows[0]].1, "{cell}");
            used[rows[0]] += 1;
        }
        assert!(used.iter().all(|times| *times > 0), "{used:?}");
    }

    fn header() -> Header {
        let digest = SecretDigest::from_bytes([1; 32]);
        Header::new(digest, Millis(0), &Lifetime::default(), Tag([0; 8]))
    }

    fn rotated(header: &Header) -> Header {
        Header { digest: SecretDigest::from_bytes([2; 32]), ..header.clone() }
    }

    fn signed_in(header: &Header, principal: &str) -> Header {
        let sign_ins = header.sign_ins + 1;
        Header { principal: Some(principal.into()), sign_ins, ..rotated(header) }
    }

    #[test]
    fn a_commit_that_met_a_newer_record() {
        let anonymous = header();
        let alice = signed_in(&anonymous, "alice");
        let keep = |keep_secret| Merge::Replay { keep_secret };
        for (loaded, newer, signing_in, expected) in [
            (&anonymous, &anonymous, false, keep(false)),
            (&anonymous, &rotated(&anonymous), false, keep(true)),
            (&anonymous, &rotated(&anonymous), true, keep(false)),
            (&anonymous, &alice, false, Merge::Gone),
            (&anonymous, &alice, true, Merge::StartFresh),
            (&alice, &alice, false, keep(false)),
            (&alice, &signed_in(&alice, "alice"), false, Merge::Gone),
            (&alice, &signed_in(&alice, "alice"), true, Merge::StartFresh),
        ] {
            assert_eq!(merge(loaded, newer, signing_in), expected);
        }
    }

    #[test]
    fn an_end_that_met_a_newer_record() {
        let anonymous = header();
        let alice = signed_in(&anonymous, "alice");
        assert!(ends(&anonymous, &rotated(&anonymous)));
        assert!(!ends(&anonymous, &alice));
        assert!(ends(&alice, &signed_in(&alice, "alice")));
        assert!(!ends(&alice, &signed_in(&alice, "bob")));
    }
}
