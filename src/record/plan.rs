//! Decides what to do at the end of a request, and how a write continues if another request has changed the
//! session. Pure functions without store access, so the tests can check every case.

use crate::record::authority::{Authority, SecretStatus};
use crate::record::header::Header;

/// What is known about a request when its handler has finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Situation {
    pub(crate) session: KnownSession,
    /// The values differ from the loaded ones or, if the handler destroyed the session, there are new values.
    pub(crate) changed: bool,
    /// The handler destroyed the session.
    pub(crate) ended: bool,
    pub(crate) proof: SignInTarget,
    /// The handler asked for a new secret, or for a change that requires one.
    pub(crate) new_secret: bool,
    /// The handler asked for a change that is allowed only with the session's current secret.
    pub(crate) needs_current_secret: bool,
    /// The request presented several valid tokens. It is treated as anonymous, or uses a session that it has
    /// created itself.
    pub(crate) several: bool,
    /// Whether the use of the session is written to the store.
    pub(crate) refresh: Refresh,
    /// The handler failed, so only its sign-out or `destroy` is carried out.
    pub(crate) failed: bool,
}

/// What a request knows about its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KnownSession {
    /// The request presented no valid token. `removable` means that it presented an invalid session cookie,
    /// which the response may remove.
    Nothing { removable: bool },
    /// A session was loaded, and the request holds its current secret.
    Current,
    /// A session was loaded, and another request has since rotated its secret.
    Rotated,
    /// The request may no longer use its session, because the session is gone, another request has signed in,
    /// or the request's secret has been replaced. The browser may hold a newer token.
    Lost,
}

/// Whether the request authenticates a user, and in which session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignInTarget {
    None,
    /// Signs an anonymous user in, or signs the session's own principal in again.
    Same,
    /// Signs in a principal other than that of the loaded session.
    Other,
    /// The signed-in principal authenticates again (step-up).
    StepUp,
}

/// Whether the use of a session must be written to the store, even if there is nothing else to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refresh {
    No,
    /// It is time to extend the idle timeout.
    Due,
    /// The browser has sent the session's cookie back for the first time.
    Confirms,
}

/// What to do at the end of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Send no store command and no cookie.
    Nothing,
    /// Remove the browser's invalid cookie.
    Forget,
    /// Reject the changes, because the request has lost its session, or no longer holds the secret that they
    /// require.
    Gone,
    /// Create a new session.
    Create,
    /// Save the loaded session with this request's changes, with a new secret if `new_secret` is set.
    Save { new_secret: bool },
    /// Write the loaded session without changes, to extend the idle timeout or confirm the cookie.
    Refresh,
    /// End the presented sessions.
    Delete,
    /// End the presented sessions, then create a new one.
    DeleteThenCreate,
    /// Create a new session, then end the presented ones. In this order, a failure to create the session
    /// leaves the presented ones alive.
    CreateThenDelete,
}

impl Plan {
    /// Returns whether the plan creates a new secret, so that a cookie must be sent.
    pub(crate) fn sends_token(self) -> bool {
        matches!(
            self,
            Self::Create
                | Self::Save { new_secret: true }
                | Self::DeleteThenCreate
                | Self::CreateThenDelete
        )
    }

    /// Returns whether the plan ends the presented sessions.
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
    // Whether the request presented a session that could end.
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
        // If the presented sessions stayed alive, the next request would present their tokens as well.
        _ if several && signs_in => Plan::CreateThenDelete,
        KnownSession::Nothing { .. } if signs_in || changed => Plan::Create,
        KnownSession::Nothing { removable: true } if ended => Plan::Forget,
        KnownSession::Nothing { .. } => Plan::Nothing,
        KnownSession::Lost if signs_in => Plan::Create,
        KnownSession::Lost if changed || needs_current_secret => Plan::Gone,
        KnownSession::Lost => Plan::Nothing,
        KnownSession::Current if proof == SignInTarget::Other => Plan::CreateThenDelete,
        // Another request has rotated the session's secret, so the sign-in gets a session of its own.
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

/// What a request asks of its session, apart from changes to values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Requested {
    pub(crate) signs_in: bool,
    pub(crate) steps_up: bool,
    pub(crate) rotates: bool,
    /// Replaces the secret so that requests with an older secret lose the session. Used for the session that
    /// remains when all others are revoked.
    pub(crate) supersedes: bool,
    /// Asks for a lifetime or a time limit different from the session's own.
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

/// How a commit continues with the session's current record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Merge {
    /// Apply the changes to the record.
    Write { new_secret: bool },
    /// Drop the changes, because this request has lost the session. `fails` means that an error is reported
    /// even if no value was changed.
    Gone { fails: bool },
    /// Create a new session for the sign-in, and end no session.
    StartFresh,
}

/// Decides how a commit continues. `secret_status` is `None` if the session is gone. `outlived` means that
/// the response has been sent.
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
        // A request to change the lifetime does not fail: the session has already ended.
        None => Merge::Gone { fails: requested.steps_up || requested.supersedes || outlived },
    }
}

/// Why a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndReason {
    SignOut,
    /// A sign-in replaces the session.
    SignIn,
}

impl EndReason {
    /// Returns the reason as events show it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::SignOut => "sign_out",
            Self::SignIn => "replaced",
        }
    }
}

/// Returns whether the request may end the session in its current state.
///
/// A sign-out ends the session if the session still belongs to the same principal, even after a step-up in
/// another request. A sign-out never ends a session that belongs to a different principal. A sign-in replaces
/// the session only if the request holds the session's current secret.
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

    /// The plan for every situation. `-` matches any value, `.` matches "no".
    ///
    /// Columns: `F`ailed; session (`n`othing, `f`orgettable, `o`: the request's own secret is current,
    /// `r`otated, `l`ost); `S`everal tokens; `E`nded; sign-in (`H`ere, as `A`nother principal, `S`tep-up);
    /// `C`hanged; `N`ew secret; needs its `O`wn secret; refresh (`D`ue, `C`onfirms).
    const TABLE: &[(&str, Plan)] = &[
        // A failed request stores nothing, but its sign-out is carried out.
        ("F [orl] - E - - - - -", Plan::Delete),
        ("F [nf] S E - - - - -", Plan::Delete),
        ("F f . E - - - - -", Plan::Forget),
        ("F n . E - - - - -", Plan::Nothing),
        ("F o - . - - - - C", Plan::Refresh),
        ("F o - . - - - - [.D]", Plan::Nothing),
        ("F [nfrl] - . - - - - -", Plan::Nothing),
        // The presented sessions end.
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
        // The request has lost its session.
        (". l . . [HA] - - - -", Plan::Create),
        (". l - . [.S] C - - -", Plan::Gone),
        (". l - . [.S] . - O -", Plan::Gone),
        (". l - . [.S] . - . -", Plan::Nothing),
        // The session stays, and the request holds its current secret.
        (". o . . A - - - -", Plan::CreateThenDelete),
        (". o . . H - - - -", Plan::Save { new_secret: true }),
        (". o - . S - - - -", Plan::Save { new_secret: true }),
        (". o - . . - N - -", Plan::Save { new_secret: true }),
        (". o - . . C . - -", Plan::Save { new_secret: false }),
        (". o - . . . . - [DC]", Plan::Refresh),
        (". o - . . . . - .", Plan::Nothing),
        // The session stays, and another request has rotated its secret.
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
