//! What is to be done at the end of a request, and what becomes of it where the session is another
//! than the request has seen: pure tables.

use crate::record::authority::{Authority, SecretStatus};
use crate::record::header::Header;

/// What is known when the handler has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Situation {
    pub(crate) session: KnownSession,
    /// The values differ from the loaded ones; after an end, from nothing.
    pub(crate) changed: bool,
    /// The handler ended the session.
    pub(crate) ended: bool,
    pub(crate) proof: SignInTarget,
    /// The handler asked for a new secret, or for what comes with one.
    pub(crate) new_secret: bool,
    /// What the handler asked for can be had with the session's own secret only.
    pub(crate) needs_current_secret: bool,
    /// Several valid tokens came along; the request is anonymous, or goes on with a session that it has
    /// made since.
    pub(crate) several: bool,
    /// The session is used so late that it is worth a write, or for the first time.
    pub(crate) refresh: Refresh,
    /// The handler failed, so that nothing is to be kept.
    pub(crate) failed: bool,
}

/// What a request knows of its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KnownSession {
    /// No valid token came along. `removable`: one of our name did, and the browser may forget it.
    Nothing { removable: bool },
    /// A session was loaded, and the request's secret is the session's.
    Current,
    /// A session was loaded, and another request has given it a new secret since.
    Rotated,
    /// The session was found gone or signed in anew, or the request's secret void: the browser may hold
    /// a newer token.
    Lost,
}

/// Whether somebody proves who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignInTarget {
    None,
    /// Signs in on an anonymous session, or the same person again.
    Same,
    /// Signs in as another person than the one of the loaded session.
    Other,
    /// The one who is signed in.
    StepUp,
}

/// Whether using the session is worth a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refresh {
    No,
    /// The idle timeout is to be extended.
    Due,
    /// The session's cookie came back for the first time.
    Confirms,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// No store command, no cookie.
    Nothing,
    /// The browser is to forget tokens that are worth nothing.
    Forget,
    /// The changes belong to a session that is no more.
    Gone,
    /// A new session.
    Create,
    /// The loaded session with this request's changes, under a new secret or the same.
    Save { new_secret: bool },
    /// The loaded session as it is, for another idle timeout or to note that its cookie came back.
    Refresh,
    /// The sessions that came along end.
    Delete,
    /// The sessions that came along end, then a new one begins.
    DeleteThenCreate,
    /// A new session begins, and only then those that came along end, so that a refused write changes
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

    /// Whether the sessions that came along end.
    pub(crate) fn ends(self) -> bool {
        matches!(self, Self::Delete | Self::DeleteThenCreate | Self::CreateThenDelete)
    }
}

pub(crate) fn decide(situation: Situation) -> Plan {
    let Situation {
        session,
        changed,
        ended,
        proof,
        new_secret,
        needs_current_secret,
        several,
        refresh,
        failed,
    } = situation;
    // Whether any session came along that could end.
    let came_along = several || !matches!(session, KnownSession::Nothing { .. });
    let signs_in = matches!(proof, SignInTarget::Same | SignInTarget::Other);
    if failed {
        return match session {
            _ if ended && came_along => Plan::Delete,
            KnownSession::Nothing { removable: true } if ended => Plan::Forget,
            KnownSession::Current if refresh == Refresh::Confirms => Plan::Refresh,
            _ => Plan::Nothing,
        };
    }
    match session {
        _ if came_along && ended && signs_in => Plan::CreateThenDelete,
        _ if came_along && ended && changed => Plan::DeleteThenCreate,
        _ if came_along && ended => Plan::Delete,
        // The next request would bring their tokens as well.
        _ if several && signs_in => Plan::CreateThenDelete,
        KnownSession::Nothing { .. } if signs_in || changed => Plan::Create,
        KnownSession::Nothing { removable: true } if ended => Plan::Forget,
        KnownSession::Nothing { .. } => Plan::Nothing,
        KnownSession::Lost if signs_in => Plan::Create,
        KnownSession::Lost if changed || needs_current_secret => Plan::Gone,
        KnownSession::Lost => Plan::Nothing,
        KnownSession::Current if proof == SignInTarget::Other => Plan::CreateThenDelete,
        // That session's secret is somebody else's by now.
        KnownSession::Rotated if signs_in => Plan::Create,
        KnownSession::Current if proof != SignInTarget::None => Plan::Save { new_secret: true },
        KnownSession::Current if changed || new_secret => Plan::Save { new_secret },
        KnownSession::Current if refresh != Refresh::No => Plan::Refresh,
        KnownSession::Current => Plan::Nothing,
        KnownSession::Rotated if needs_current_secret => Plan::Gone,
        KnownSession::Rotated if changed => Plan::Save { new_secret: false },
        KnownSession::Rotated => Plan::Nothing,
    }
}

/// What a request wants of a session besides its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Requested {
    pub(crate) signs_in: bool,
    pub(crate) steps_up: bool,
    pub(crate) rotates: bool,
    /// A new secret behind which nothing older counts: for the session that is kept when all others
    /// are revoked.
    pub(crate) supersedes: bool,
    /// Another lifetime, or another end, than the session has.
    pub(crate) changes_lifetime: bool,
}

impl Requested {
    pub(crate) fn need_current_secret(self) -> bool {
        self.steps_up || self.supersedes || self.changes_lifetime
    }

    pub(crate) fn new_secret(self) -> bool {
        self.need_current_secret() || self.signs_in || self.rotates
    }
}

/// What to do with a commit on the session as it stands now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Merge {
    /// Replay the changes on it.
    Write { new_secret: bool },
    /// The changes belong to a session that is no more. `fails`: also where the values are as they
    /// were.
    Gone { fails: bool },
    /// This request signs somebody in: they get a session of their own, and nothing ends.
    StartFresh,
}

/// `secret_status` is `None` where there is no session any more. `outlived`: the response has left.
pub(crate) fn merge(
    secret_status: Option<SecretStatus>,
    requested: Requested,
    outlived: bool,
) -> Merge {
    match secret_status {
        Some(SecretStatus::Current) => Merge::Write { new_secret: requested.new_secret() },
        _ if requested.signs_in => Merge::StartFresh,
        Some(SecretStatus::Rotated) if !requested.need_current_secret() && !outlived => {
            Merge::Write { new_secret: false }
        }
        Some(_) => Merge::Gone { fails: requested.need_current_secret() || outlived },
        // A session that has ended needs no other end.
        None => Merge::Gone { fails: requested.steps_up || requested.supersedes || outlived },
    }
}

/// Why a session is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndReason {
    SignOut,
    /// A sign-in takes its place.
    SignIn,
}

impl EndReason {
    /// As events say it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::SignOut => "sign_out",
            Self::SignIn => "replaced",
        }
    }
}

/// Whether the session may be ended as it stands now: by a sign-out where it is the same person's, also
/// after a step-up, and never somebody else's sign-in; by a sign-in with its own secret only.
pub(crate) fn ends(why: EndReason, authority: &Authority, header: &Header) -> bool {
    match (authority.status_on(header), why) {
        (SecretStatus::Current, _) | (SecretStatus::Rotated, EndReason::SignOut) => true,
        (SecretStatus::Superseded, EndReason::SignOut) => authority.is_of_the_same(header),
        (_, EndReason::SignIn) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Millis;

    use crate::record::authority::Authority;
    use crate::record::header::Header;
    use crate::record::lifetime::Lifetime;
    use crate::record::tag::Tag;
    use crate::record::token::SecretDigest;

    /// Every cell of the table: the fields that matter, `-` for any value.
    ///
    /// Columns: failed; session (`n`othing, `f`orgettable, `o`: its own secret is current, `r`otated, `l`ost); several tokens;
    /// ended; sign-in (`H`ere, as `A`nother principal, `S`tep-up); changed; new secret; needs the current secret; refresh (`D`ue,
    /// `C`onfirms).
    const TABLE: &[(&str, Plan)] = &[
        // A failed request keeps nothing but an end.
        ("F [orl] - E - - - - -", Plan::Delete),
        ("F [nf] S E - - - - -", Plan::Delete),
        ("F f . E - - - - -", Plan::Forget),
        ("F n . E - - - - -", Plan::Nothing),
        ("F o - . - - - - C", Plan::Refresh),
        ("F o - . - - - - [.D]", Plan::Nothing),
        ("F [nfrl] - . - - - - -", Plan::Nothing),
        // What came along ends.
        (". [orl] - E [HA] - - - -", Plan::CreateThenDelete),
        (". [nf] S E [HA] - - - -", Plan::CreateThenDelete),
        (". [orl] - E [.S] C - - -", Plan::DeleteThenCreate),
        (". [nf] S E [.S] C - - -", Plan::DeleteThenCreate),
        (". [orl] - E [.S] . - - -", Plan::Delete),
        (". [nf] S E [.S] . - - -", Plan::Delete),
        (". - S . [HA] - - - -", Plan::CreateThenDelete),
        // No session is known.
        (". [nf] . - [HA] - - - -", Plan::Create),
        (". [nf] . E [.S] C - - -", Plan::Create),
        (". [nf] - . [.S] C - - -", Plan::Create),
        (". f . E [.S] . - - -", Plan::Forget),
        (". n . E [.S] . - - -", Plan::Nothing),
        (". [nf] - . [.S] . - - -", Plan::Nothing),
        // The session was lost on the way.
        (". l . . [HA] - - - -", Plan::Create),
        (". l - . [.S] C - - -", Plan::Gone),
        (". l - . [.S] . - O -", Plan::Gone),
        (". l - . [.S] . - . -", Plan::Nothing),
        // The session goes on.
        (". o . . A - - - -", Plan::CreateThenDelete),
        (". o . . H - - - -", Plan::Save { new_secret: true }),
        (". o - . S - - - -", Plan::Save { new_secret: true }),
        (". o - . . - N - -", Plan::Save { new_secret: true }),
        (". o - . . C . - -", Plan::Save { new_secret: false }),
        (". o - . . . . - [DC]", Plan::Refresh),
        (". o - . . . . - .", Plan::Nothing),
        // Under a secret that this request does not have.
        (". r . . [HA] - - - -", Plan::Create),
        (". r - . [.S] - - O -", Plan::Gone),
        (". r - . [.S] C - . -", Plan::Save { new_secret: false }),
        (". r - . [.S] . - . -", Plan::Nothing),
    ];

    fn situations() -> impl Iterator<Item = (String, Situation)> {
        let sessions = [
            (KnownSession::Nothing { removable: false }, 'n'),
            (KnownSession::Nothing { removable: true }, 'f'),
            (KnownSession::Current, 'o'),
            (KnownSession::Rotated, 'r'),
            (KnownSession::Lost, 'l'),
        ];
        let proofs = [
            (SignInTarget::None, '.'),
            (SignInTarget::Same, 'H'),
            (SignInTarget::Other, 'A'),
            (SignInTarget::StepUp, 'S'),
        ];
        let refreshes = [(Refresh::No, '.'), (Refresh::Due, 'D'), (Refresh::Confirms, 'C')];
        (0..1_usize << 6).flat_map(move |bits| {
            (0..sessions.len() * proofs.len() * refreshes.len()).map(move |choice| {
                let (session, s) = sessions[choice % 5];
                let (proof, p) = proofs[choice / 5 % 4];
                let (refresh, r) = refreshes[choice / 20];
                let on = |bit: usize| bits & 1 << bit != 0;
                let mark = |bit, letter| if on(bit) { letter } else { '.' };
                let flags = [mark(1, 'E'), p, mark(2, 'C'), mark(3, 'N'), mark(4, 'O'), r];
                let cell = [mark(0, 'F'), s, mark(5, 'S')].into_iter().chain(flags);
                let situation = Situation {
                    session,
                    failed: on(0),
                    ended: on(1),
                    proof,
                    changed: on(2),
                    new_secret: on(3),
                    needs_current_secret: on(4),
                    several: on(5),
                    refresh,
                };
                (cell.collect(), situation)
            })
        })
    }

    #[test]
    fn decide_matches_every_cell_of_plan_table() {
        let mut used = vec![0; TABLE.len()];
        for (cell, situation) in situations() {
            let rows: Vec<usize> = (0..TABLE.len())
                .filter(|row| {
                    TABLE[*row].0.split(' ').zip(cell.chars()).all(|(allowed, is)| {
                        allowed == "-" || allowed.trim_matches(['[', ']']).contains(is)
                    })
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
    fn authority_follows_presented_secret() {
        let anonymous = header();
        let alice = signed_in(&anonymous, "alice");
        for (presented, now, expected) in [
            (&anonymous, &anonymous, SecretStatus::Current),
            (&anonymous, &rotated(&anonymous), SecretStatus::Rotated),
            (&anonymous, &alice, SecretStatus::Superseded),
            (&alice, &alice, SecretStatus::Current),
            (&alice, &signed_in(&alice, "alice"), SecretStatus::Superseded),
            (&alice, &signed_in(&alice, "bob"), SecretStatus::Superseded),
        ] {
            assert_eq!(Authority::of(presented, true).status_on(now), expected);
        }
    }

    #[test]
    fn merge_matches_every_cell_of_merge_table() {
        use SecretStatus::{Current, Rotated, Superseded};

        let none = Requested::default();
        let keep = Merge::Write { new_secret: false };
        let renew = Merge::Write { new_secret: true };
        let (passes, fails) = (Merge::Gone { fails: false }, Merge::Gone { fails: true });
        let found = [Some(Current), Some(Rotated), Some(Superseded), None];
        for (requested, expected) in [
            (none, [keep, keep, passes, passes]),
            (Requested { rotates: true, ..none }, [renew, keep, passes, passes]),
            (Requested { changes_lifetime: true, ..none }, [renew, fails, fails, passes]),
            (Requested { steps_up: true, ..none }, [renew, fails, fails, fails]),
            (Requested { supersedes: true, ..none }, [renew, fails, fails, fails]),
            (
                Requested { signs_in: true, ..none },
                [renew, Merge::StartFresh, Merge::StartFresh, Merge::StartFresh],
            ),
        ] {
            for (secret_status, expected) in found.into_iter().zip(expected) {
                assert_eq!(
                    merge(secret_status, requested, false),
                    expected,
                    "{requested:?} {secret_status:?}"
                );
            }
        }
        assert_eq!(found.map(|found| merge(found, none, true)), [keep, fails, fails, fails]);
    }

    #[test]
    fn sign_out_ends_session_of_same_principal_and_sign_in_only_its_own() {
        let anonymous = header();
        let alice = signed_in(&anonymous, "alice");
        for (presented, now, by_sign_out, by_sign_in) in [
            (&anonymous, &anonymous, true, true),
            (&anonymous, &rotated(&anonymous), true, false),
            (&anonymous, &alice, false, false),
            (&alice, &signed_in(&alice, "alice"), true, false),
            (&alice, &signed_in(&alice, "bob"), false, false),
        ] {
            let authority = Authority::of(presented, true);
            assert_eq!(ends(EndReason::SignOut, &authority, now), by_sign_out);
            assert_eq!(ends(EndReason::SignIn, &authority, now), by_sign_in);
        }
    }
}
