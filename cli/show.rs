//! `unsticky show`: shows one session by its public id.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde_json::{Value as Json, json};
use unsticky::internals::operate::{self, Content, Examination, Examined, Standing, rfc3339};

use crate::arguments::ShowArguments;
use crate::failure::{Failure, NOT_FOUND};
use crate::output::{Format, one_line, print, print_json};

pub(crate) async fn run(asked: &ShowArguments, format: Format) -> Result<ExitCode, Failure> {
    let sessions = asked.store.sessions()?;
    let examined = operate::examine(&sessions, asked.id, &asked.store.actor()).await;
    let examined = examined.map_err(|error| Failure::store(&error))?;
    match (&examined, format) {
        (Some(session), Format::Text) => print(&text(session, asked.values))?,
        (Some(session), Format::Json) => print_json(&json(session, asked.values))?,
        (None, Format::Text) => print("No session has this id.\n")?,
        (None, Format::Json) => print_json(&Json::Null)?,
    }
    Ok(if examined.is_some() { ExitCode::SUCCESS } else { ExitCode::from(NOT_FOUND) })
}

fn text(session: &Examined, with_values: bool) -> String {
    let mut text = String::new();
    let mut row = |name: &str, content: &str| {
        let _ = writeln!(text, "{name:17}  {}", one_line(content));
    };
    row("id", &session.id.to_string());
    row("principal", session.principal.as_deref().unwrap_or("none (no user is signed in)"));
    match (&session.standing, session.is_strict) {
        (Standing::Anonymous, _) => {}
        (Standing::Listed { label }, _) => {
            row("directory", "lists it");
            if let Some(label) = label {
                row("label", label);
            }
        }
        (Standing::Unlisted, true) => {
            row("directory", "does not list it, so the session is invalid in strict mode");
        }
        (Standing::Unlisted, false) => row("directory", "does not list it"),
        (Standing::Unknown, _) => row("directory", "cannot be decoded"),
    }
    row("created", &rfc3339(session.created));
    if let Some(signed_in_at) = session.signed_in_at {
        row("signed in", &rfc3339(signed_in_at));
    }
    row("last seen", &rfc3339(session.last_seen));
    row("idle deadline", &rfc3339(session.idle_deadline));
    row("absolute deadline", &rfc3339(session.absolute_deadline));
    let expiry = rfc3339(session.expires_at);
    match session.is_expired {
        true => row("expired", &format!("{expiry}; the store still has the record")),
        false => row("expires", &expiry),
    }
    row("values", &session.values.len().to_string());
    let longest = session.values.iter().map(|value| value.key.chars().count()).max().unwrap_or(0);
    for value in &session.values {
        let survives = if value.survives_sign_in { "  kept at sign-in" } else { "" };
        let key = one_line(&value.key);
        let _ = writeln!(text, "  {key:longest$}  {:>7} bytes{survives}", value.bytes);
        if with_values {
            let _ = writeln!(text, "    {}", one_line(shown(value)));
        }
    }
    text
}

/// Returns a value in the form in which it is printed.
fn shown(value: &Examination) -> &str {
    match &value.content {
        Content::Json(json) => json,
        Content::Binary => "not text",
        Content::Secret => "a secret, which is never printed",
    }
}

fn json(session: &Examined, with_values: bool) -> Json {
    let (listed, label) = match &session.standing {
        Standing::Listed { label } => (Some(true), label.as_deref()),
        Standing::Unlisted => (Some(false), None),
        Standing::Anonymous | Standing::Unknown => (None, None),
    };
    let values = session.values.iter().map(|value| {
        let mut fields = json!({
            "key": value.key,
            "bytes": value.bytes,
            "survives_sign_in": value.survives_sign_in,
        });
        if with_values {
            // Kept as text, so that no number is rounded.
            fields["json"] = match &value.content {
                Content::Json(json) => json.as_str().into(),
                Content::Binary | Content::Secret => Json::Null,
            };
        }
        fields
    });
    json!({
        "id": session.id,
        "principal": session.principal.as_deref(),
        "listed": listed,
        "label": label,
        "created": rfc3339(session.created),
        "signed_in_at": session.signed_in_at.map(rfc3339),
        "last_seen": rfc3339(session.last_seen),
        "idle_deadline": rfc3339(session.idle_deadline),
        "absolute_deadline": rfc3339(session.absolute_deadline),
        "expires_at": rfc3339(session.expires_at),
        "expired": session.is_expired,
        "values": values.collect::<Json>(),
    })
}
