//! `unsticky sessions`: lists a principal's sessions.

use std::fmt::Write as _;
use std::process::ExitCode;

use unsticky::ListedSession;
use unsticky::internals::operate::rfc3339;

use crate::arguments::SessionsArguments;
use crate::failure::{Failure, NOT_FOUND};
use crate::output::{Format, one_line, print, print_json};
use crate::principal;

pub(crate) async fn run(asked: &SessionsArguments, format: Format) -> Result<ExitCode, Failure> {
    let sessions = asked.store.sessions()?;
    let principal = principal::read(asked.principal.as_deref()).await?;
    let directory = sessions.of(principal).by(asked.store.actor());
    let listed = directory.list().await.map_err(|error| Failure::store(&error))?;
    match format {
        Format::Text => print(&text(&listed))?,
        Format::Json => print_json(&listed)?,
    }
    Ok(if listed.is_empty() { ExitCode::from(NOT_FOUND) } else { ExitCode::SUCCESS })
}

fn text(listed: &[ListedSession]) -> String {
    if listed.is_empty() {
        return "The principal has no sessions.\n".to_owned();
    }
    let mut text = String::new();
    let mut row = |cells: [&str; 5]| {
        let [id, signed_in, last_seen, expires, label] = cells;
        let row = format!("{id:22}  {signed_in:20}  {last_seen:20}  {expires:20}  {label}");
        let _ = writeln!(text, "{}", row.trim_end());
    };
    row(["ID", "SIGNED IN", "LAST SEEN", "EXPIRES", "LABEL"]);
    for session in listed {
        row([
            &session.id.to_string(),
            &rfc3339(session.signed_in_at),
            &rfc3339(session.last_seen),
            &rfc3339(session.expires_at),
            &one_line(session.label.as_deref().unwrap_or_default()),
        ]);
    }
    text
}
