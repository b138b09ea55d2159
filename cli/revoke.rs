//! `unsticky revoke`: revokes sessions.

use std::collections::HashSet;
use std::process::ExitCode;

use serde_json::{Value as Json, json};
use unsticky::internals::operate::{self, Outcome};
use unsticky::{Error, Result, Revoked, SessionId, Sessions};

use crate::arguments::RevokeArguments;
use crate::failure::{Failure, NOT_FOUND};
use crate::output::{Format, print, print_json};
use crate::principal;

pub(crate) async fn run(
    asked: &RevokeArguments,
    format: Format,
) -> std::result::Result<ExitCode, Failure> {
    let sessions = asked.store.sessions()?;
    let actor = asked.store.actor();
    match &asked.all {
        Some(principal) => {
            let principal = principal::read(Some(principal)).await?;
            let revoked = sessions.of(principal).by(actor).revoke_all().await;
            let revoked = revoked.map_err(|error| Failure::store(&error))?;
            match format {
                Format::Text => print(&text(revoked))?,
                Format::Json => print_json(&json!({
                    "count": revoked.count,
                    "complete": revoked.complete && revoked.found,
                    "found": revoked.found,
                }))?,
            }
            // A directory that an earlier revocation created does not prove that the principal exists.
            let is_known = revoked.found && (revoked.complete || revoked.count > 0);
            Ok(if is_known { ExitCode::SUCCESS } else { ExitCode::from(NOT_FOUND) })
        }
        None => each(&sessions, &asked.ids, &actor, format).await,
    }
}

fn text(revoked: Revoked) -> String {
    if !revoked.found {
        return "This principal has no directory, so no session was revoked. The principal has not signed in \
                recently, the store has lost the directory, or the principal, --cookie, --namespace or --epoch \
                differs from the application's. Sign-ins of this principal that started before now will fail.\n\
                Sessions without a directory may stay valid until their absolute timeout. In strict mode they are \
                invalid; otherwise, change the epoch to end them.\n"
            .to_owned();
    }
    let count = match revoked.count {
        0 => "There was no session to revoke".to_owned(),
        1 => "1 session was revoked".to_owned(),
        count => format!("{count} sessions were revoked"),
    };
    let completeness = if revoked.complete {
        "The directory is known to be complete: these were all sessions of the principal."
    } else {
        "The directory may be incomplete: it did not exist when the principal's sessions were revoked before. \
         Sessions that it did not list may stay valid until their absolute timeout. In strict mode they are \
         invalid; otherwise, change the epoch to end them."
    };
    format!("{count}, and sign-ins that started before now will fail.\n{completeness}\n")
}

/// Revokes each of the sessions, and continues if one cannot be revoked.
async fn each(
    sessions: &Sessions,
    ids: &[SessionId],
    actor: &str,
    format: Format,
) -> std::result::Result<ExitCode, Failure> {
    let mut seen = HashSet::new();
    let (mut done, mut failures, mut is_missing) = (Vec::new(), Vec::new(), false);
    for id in ids.iter().filter(|id| seen.insert(**id)) {
        let outcome = operate::revoke(sessions, *id, actor).await;
        is_missing |= matches!(outcome, Ok(Outcome::NotFound));
        match format {
            // Printed at once, because the next revocation may take a long time.
            Format::Text => print(&format!("{id}  {}\n", told(&outcome)))?,
            Format::Json => done.push(json_of(*id, &outcome)),
        }
        failures.extend(outcome.err());
    }
    if format == Format::Json {
        print_json(&done)?;
    }
    match failures.first() {
        Some(first) => Err(Failure::partly(failures.len(), seen.len(), first)),
        None if is_missing => Ok(ExitCode::from(NOT_FOUND)),
        None => Ok(ExitCode::SUCCESS),
    }
}

fn told(outcome: &Result<Outcome>) -> &'static str {
    match outcome {
        Ok(Outcome::Revoked) => "revoked",
        Ok(Outcome::Expired) => "expired",
        Ok(Outcome::NotFound) => "not found",
        Err(_) => "failed",
    }
}

fn json_of(id: SessionId, outcome: &Result<Outcome, Error>) -> Json {
    let error = outcome.as_ref().err().map(|error| error.kind().as_str());
    json!({ "id": id, "outcome": told(outcome).replace(' ', "_"), "error": error })
}
