//! Examines one server.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use ::redis::{Cmd, Value, cmd};
use bytes::Bytes;
use futures_util::future::{join, join_all, join3, join4};
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::check::{Finding, Level};
use crate::store::contract::Stored;
use crate::store::diagnose::Probe;
use crate::store::key::StoreKey;
use crate::store::redis::answer::Answer;
use crate::store::redis::check::certificate;
use crate::store::redis::check::findings::{self, Config, SETTINGS};
use crate::store::redis::check::info::Info;
pub(super) use crate::store::redis::check::role::Role;
use crate::store::redis::check::unreachable::remedy;
use crate::store::redis::compare::{Change, CompareAndSet, version};
use crate::store::redis::connection::{Failure, Lease, SharedConnection};
use crate::store::redis::dialing::{self, Server, Settings};
use crate::store::redis::native::Native;
use crate::store::redis::place::Place;
use crate::store::redis::reply::{field, text};
use crate::store::redis::{RedisStore, milliseconds};

/// Examines a store that has only one server.
pub(super) async fn examine(store: &RedisStore, probe: &Probe, link: &Arc<SharedConnection>) {
    let subject = link.name();
    if examine_server(probe, link, subject, Role::Master).await.is_none() {
        return;
    }
    let (tried, permitted) = match (probe.key(|_| true), probe.key(|_| true)) {
        (Ok(Some(tried)), Ok(Some(permitted))) => (tried, permitted),
        (Err(error), _) | (_, Err(error)) => return probe.report_without_key(&error, subject),
        _ => return,
    };
    let all = join(
        try_permissions(probe, link, &permitted, subject),
        probe.try_verbs(store, &tried, subject),
    );
    probe.part(subject, all).await;
}

/// Examines the client's certificate, which is the same for all servers.
pub(super) async fn examine_client(probe: &Probe, settings: &Settings) {
    let Some(tls) = &settings.tls else { return };
    if let Some(Some(certificate)) = probe.part("", tls.own_certificate()).await {
        probe.report(certificate::judged("The client's certificate", &certificate, probe.now()));
    }
}

/// Examines a server that is expected to have this `role`, without reading or writing a record. In the
/// report, the findings are attributed to `subject`.
///
/// If the server cannot be reached, currently accepts no commands or has a different role, this function
/// reports that and returns `None`, and the caller should not try anything else on the server. If sessions
/// work without the server, no finding is more severe than a warning.
pub(super) async fn examine_server(
    probe: &Probe,
    link: &Arc<SharedConnection>,
    subject: &str,
    role: Role,
) -> Option<()> {
    let examined = examined(probe, link, subject, role);
    if role.is_spare() {
        probe.spare_part(subject, examined).await?
    } else {
        probe.part(subject, examined).await?
    }
}

async fn examined(
    probe: &Probe,
    link: &Arc<SharedConnection>,
    subject: &str,
    role: Role,
) -> Option<()> {
    let report = |finding: Finding| {
        probe.report(finding.at_most(role.highest_level()).about(subject.to_owned()));
    };
    let lease = match link.lease().await {
        Ok(lease) => lease,
        Err(failure) => {
            report(unreachable(link, failure, role));
            return None;
        }
    };
    let info = cmd("INFO");
    let (clock, info, config, certificate) = join4(
        clock(probe, &lease, role),
        lease.try_to(&info),
        config(&lease, role),
        certificate(probe, link.settings(), lease.server()),
    )
    .await;
    let mut hidden = Vec::new();
    let info = match info {
        Ok(answer) => Info::parse(&lossy(&answer)),
        // A proxy may answer `INFO` with an error of its own.
        Err(Failure::Answered(answer)) if answer.code != "NOAUTH" => {
            let what = "Its version, role, memory, eviction policy, persistence and replicas are";
            hidden.push(hidden_by(what, &answer, "+info"));
            Info::default()
        }
        Err(failure) => {
            report(unreachable(link, failure, role));
            return None;
        }
    };
    let config = match config {
        Ok(config) => config,
        Err(Failure::Answered(answer)) => {
            let what = "Whether it makes snapshots, and how many replicas it needs for a write, is";
            hidden.push(hidden_by(what, &answer, "+config|get"));
            Config::new()
        }
        Err(failure) => {
            report(unreachable(link, failure, role));
            return None;
        }
    };
    findings::version(&info).into_iter().for_each(report);
    if let Some(finding) = findings::loading(&info) {
        report(finding);
        return None;
    }
    let found = findings::role(&info, role);
    let is_right = found.as_ref().is_none_or(|finding| finding.level() < Level::Error);
    found.into_iter().for_each(report);
    if !is_right {
        return None;
    }
    match clock {
        Ok(finding) => finding.into_iter().for_each(report),
        Err(Failure::Answered(answer)) => {
            hidden.push(hidden_by("Its time is", &answer, "+time"));
        }
        Err(failure) => {
            report(unreachable(link, failure, role));
            return None;
        }
    }
    let connection = [certificate, unencrypted(link.settings(), lease.server())];
    let of_server = findings::of_server(&info, &config);
    connection.into_iter().flatten().chain(of_server).chain(hidden).for_each(report);
    Some(())
}

/// Returns the finding for a server that cannot be used. Nothing else about the server is examined.
fn unreachable(link: &SharedConnection, failure: Failure, role: Role) -> Finding {
    let message = match failure {
        Failure::NotSent(reason) => {
            let known = format!("cannot connect to {}: ", link.name());
            format!(
                "The server cannot be reached: {}.",
                reason.strip_prefix(&known).unwrap_or(&reason)
            )
        }
        Failure::Full(reason) | Failure::Lost(reason) => {
            format!("The server did not answer: {reason}.")
        }
        Failure::Answered(answer) => format!("The server accepts no commands: {answer}."),
    };
    let remedy = remedy(&message, role);
    Finding::error("unreachable", message, remedy)
}

/// Returns the finding that says that `what` is unknown because of this answer, and which permission is
/// missing.
fn hidden_by(what: &str, answer: &Answer, permission: &str) -> Finding {
    let message = format!("{what} unknown: {answer}.");
    let remedy = if answer.is_of_permission() {
        format!("To have this examined, permit it with ACL SETUSER USER {permission}.")
    } else {
        "If this is a proxy, check the server behind it.".to_owned()
    };
    Finding::note("hidden", message, remedy)
}

/// Compares the server's clock with the clock of this process.
async fn clock(probe: &Probe, lease: &Lease<'_>, role: Role) -> Result<Option<Finding>, Failure> {
    // A Sentinel does not know the `TIME` command, and it keeps no sessions.
    if role == Role::Sentinel {
        return Ok(None);
    }
    let (before, begun) = (probe.now(), Instant::now());
    let answer = lease.try_to(&cmd("TIME")).await?;
    let round_trip = begun.elapsed();
    let Some(its) = time_of(&answer) else {
        let message = "Its time is unknown: the answer to TIME is not a Redis answer.";
        let remedy = "If this is a proxy, check the server behind it.";
        return Ok(Some(Finding::note("hidden", message, remedy)));
    };
    let ours = before + round_trip / 2;
    Ok(Some(findings::clock(ours - its, round_trip)))
}

/// Parses the answer to `TIME`: seconds and microseconds.
fn time_of(answer: &Value) -> Option<OffsetDateTime> {
    let Value::Array(parts) = answer else { return None };
    let mut numbers = parts.iter().map(|part| text(part)?.parse::<u32>().ok());
    let (seconds, micros) = (numbers.next()??, numbers.next()??);
    let seconds = OffsetDateTime::from_unix_timestamp(seconds.into()).ok()?;
    Some(seconds + time::Duration::microseconds(micros.into()))
}

/// Sends a separate `CONFIG GET` for each setting, because the command accepts only one name before Redis 7.
/// The commands are sent concurrently.
async fn config(lease: &Lease<'_>, role: Role) -> Result<Config, Failure> {
    if role == Role::Sentinel {
        return Ok(Config::new());
    }
    let settings = SETTINGS.map(async |name| {
        let answer = lease.try_to(cmd("CONFIG").arg("GET").arg(name)).await?;
        Ok(field(&answer, name).and_then(text).map(|value| (name, value.to_owned())))
    });
    let settings: Result<Vec<_>, _> = join_all(settings).await.into_iter().collect();
    Ok(settings?.into_iter().flatten().collect())
}

/// Judges the certificate that the server presents.
async fn certificate(probe: &Probe, settings: &Settings, server: &Server) -> Option<Finding> {
    match dialing::certificate(settings, server).await {
        Ok(certificate) => {
            Some(certificate::judged("The server's certificate", &certificate?, probe.now()))
        }
        Err(reason) => Some(Finding::error(
            "certificate",
            format!("No new connection can be encrypted: {reason}."),
            "Give the server a valid certificate that this process trusts.",
        )),
    }
}

/// Checks whether a password is sent over the network without encryption.
fn unencrypted(settings: &Settings, server: &Server) -> Option<Finding> {
    let Place::Tcp { host, .. } = &server.place else { return None };
    if settings.tls.is_some() || settings.login.password().is_none() || is_loopback(host) {
        return None;
    }
    Some(Finding::warning(
        "plain",
        "The password and all sessions are sent to this server without encryption, so anyone on the \
         network \
         can read them.",
        "Set tls-port on the server, and begin the address with rediss://.",
    ))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host.parse().is_ok_and(|address: IpAddr| address.to_canonical().is_loopback())
}

/// Returns the answer as text. The answer may contain file names from the server in any encoding.
fn lossy(answer: &Value) -> Cow<'_, str> {
    match answer {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes),
        answer => Cow::Borrowed(text(answer).unwrap_or_default()),
    }
}

/// Tries every command that the store sends, on one of the check's own keys, which must belong to this
/// server. Reports, for `subject`, which commands the user may not run and how compare-and-set is done.
pub(super) async fn try_permissions(
    probe: &Probe,
    link: &Arc<SharedConnection>,
    key: &StoreKey,
    subject: &str,
) {
    let report = |finding: Finding| probe.report(finding.about(subject.to_owned()));
    let record = match probe.record() {
        Ok(record) => record,
        Err(error) => return probe.report_without_key(&error, subject),
    };
    let Ok(lease) = link.lease().await else { return };
    let needed = needed(key, &record);
    let outcomes = join_all(needed.iter().map(|(_, command)| lease.try_to(command))).await;
    let (mut are_permitted, mut of_keys) = (true, Vec::new());
    for ((name, _), outcome) in needed.iter().zip(outcomes) {
        match outcome {
            Err(Failure::Answered(answer)) if answer.is_of_key_permission() => of_keys.push(*name),
            Err(Failure::Answered(answer)) if answer.is_of_permission() => {
                report(not_permitted(name));
            }
            Err(Failure::Answered(answer)) if answer.is_unknown_command() => report(disabled(name)),
            // The trial of the store's operations reports this failure.
            Err(Failure::NotSent(_) | Failure::Full(_) | Failure::Lost(_)) => {}
            Err(Failure::Answered(answer)) if answer.code.is_empty() || answer.code == "ERR" => {}
            // The command is permitted, but the server is out of memory or does not have the script.
            Ok(_) | Err(Failure::Answered(_)) => continue,
        }
        are_permitted = false;
    }
    if !of_keys.is_empty() {
        report(no_keys(&of_keys, probe.namespace()));
    }
    if are_permitted {
        report(Finding::fine(
            PERMISSION,
            "The user is permitted to run every command that sessions need.",
        ));
    }
    // These commands come last, because some proxies close the connection when they receive an unknown
    // command.
    let [set, delifeq, delex] = Native::trials(key);
    let (set, delifeq, delex) =
        join3(lease.try_to(&set), lease.try_to(&delifeq), lease.try_to(&delex)).await;
    for (name, outcome) in [("DELIFEQ", &delifeq), ("DELEX", &delex)] {
        if let Err(Failure::Answered(answer)) = outcome
            && answer.is_of_permission()
            && !answer.is_of_key_permission()
        {
            report(not_permitted_but_replaced(name));
        }
    }
    let sets = match set {
        Ok(answer) => answer == Value::Nil,
        Err(Failure::Answered(answer)) if answer.is_of_no_such_command() => false,
        Err(_) => return,
    };
    let deletes = |outcome: &Result<Value, Failure>| matches!(outcome, Ok(Value::Int(0)));
    let deletes = match (deletes(&delifeq), deletes(&delex)) {
        (true, _) => Some("DELIFEQ"),
        (_, true) => Some("DELEX"),
        _ => None,
    };
    report(findings::compare_and_set(sets, deletes));
}

const PERMISSION: &str = "permission";

/// Returns every command that sessions need, in the form in which the store sends it or a script runs it.
fn needed(key: &StoreKey, record: &Bytes) -> [(&'static str, Cmd); 6] {
    let expected = Stored::new(record.clone(), version(record));
    let delete = CompareAndSet { key, expected: &expected, change: Change::Delete };
    let on_key = |name| cmd(name).arg(key.as_str()).take();
    let mut set = on_key("SET");
    set.arg(&record[..]).arg("PX").arg(milliseconds(Probe::TTL)).arg("NX");
    [
        ("GET", on_key("GET")),
        ("SET", set),
        ("GETRANGE", on_key("GETRANGE").arg(0).arg(7).take()),
        ("EVALSHA", delete.by_hash()),
        ("EVAL", delete.by_source()),
        ("DEL", on_key("DEL")),
    ]
}

fn not_permitted(name: &str) -> Finding {
    let message = format!("The user may not run {name}, which sessions need, so requests fail.");
    let remedy = format!("Run ACL SETUSER USER +{} on the server.", name.to_lowercase());
    Finding::error(PERMISSION, message, remedy)
}

fn not_permitted_but_replaced(name: &str) -> Finding {
    let message = format!(
        "The user may not run {name}, so a script deletes records, which costs the server more time."
    );
    let remedy = format!("Run ACL SETUSER USER +{} on the server.", name.to_lowercase());
    Finding::note(PERMISSION, message, remedy)
}

fn disabled(name: &str) -> Finding {
    let message = format!("{name} is disabled or renamed on the server, but sessions need it.");
    let remedy = "Remove its rename-command line from redis.conf, and restart the server.";
    Finding::error(PERMISSION, message, remedy)
}

fn no_keys(names: &[&str], namespace: &str) -> Finding {
    let message = format!(
        "The user may not use the keys of the namespace {namespace} with {}, so requests fail.",
        names.join(", ")
    );
    let remedy =
        format!("Run ACL SETUSER USER ~{namespace}:* on the server, or correct the namespace.");
    Finding::error(PERMISSION, message, remedy)
}
