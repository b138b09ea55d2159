//! `unsticky bench`: measures the store from where the application runs.
//!
//! | file | content |
//! |---|---|
//! | `arguments` | the arguments |
//! | `plan` | the order of the measurements, their duration, and the memory that they need in the store |
//! | `measure` | runs the measurements, one after another |
//! | `drive` | sends requests from concurrent callers, as many as possible or at a fixed rate |
//! | `visitor` | the requests that are measured |
//! | `own_keys` | the store, which remembers the keys that must be removed |
//! | `tally` | counts, latencies and errors |
//! | `report`, `picture`, `progress` | the output |

mod arguments;
mod drive;
mod measure;
mod own_keys;
mod picture;
mod plan;
mod progress;
mod report;
mod tally;
mod visitor;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::signal::ctrl_c;
use unsticky::check::{Finding, Level, Report};
use unsticky::{DirectoryMode, Lifetime, Sessions};

use crate::arguments::Address;
pub(crate) use crate::bench::arguments::BenchArguments;
use crate::bench::drive::Stop;
use crate::bench::measure::Measurement;
use crate::bench::own_keys::OwnKeys;
use crate::bench::picture::Ink;
use crate::bench::plan::{KEY_LIFE, Plan};
use crate::bench::progress::Progress;
use crate::bench::report::Head;
use crate::failure::{Failure, STORE};
use crate::output::{Format, print, print_json};

/// The time limit for the search for other keys. A server with very many keys is not scanned completely.
const SEARCH: Duration = Duration::from_secs(10);

/// The maximum record size that the library allows.
const RECORD_BYTES: usize = 1_000_000;

pub(crate) async fn run(arguments: &BenchArguments, format: Format) -> Result<ExitCode, Failure> {
    let prepared = async {
        let (sessions, keys) = sessions(arguments)?;
        sessions.ping().await.map_err(|error| Failure::store(&error))?;
        expect_no_keys(arguments).await?;
        let check = sessions.check().await;
        expect_room(arguments, &check)?;
        Ok((sessions, keys, check))
    };
    let (sessions, keys, check) = tokio::select! {
        prepared = prepared => prepared?,
        _ = ctrl_c() => return Err(Failure::Interrupted),
    };
    let plan = Plan::new(arguments);
    let began = OffsetDateTime::now_utc();
    let head = Head { arguments, plan: &plan, check: &check, began };
    if format == Format::Text {
        print(&head.text())?;
    }
    let stop = Stop::default();
    let progress = Progress::new(plan.measurements());
    let measurement = Measurement::new(&plan, sessions, keys, stop.clone(), progress).run();
    tokio::pin!(measurement);
    let results = tokio::select! {
        results = &mut measurement => results,
        // The keys are removed first, unless the user interrupts again.
        _ = ctrl_c() => {
            stop.set();
            tokio::select! {
                _ = measurement => {}
                _ = ctrl_c() => {}
            }
            return Err(Failure::Interrupted);
        }
    };
    match format {
        Format::Text => {
            let ink = Ink::new(arguments.ascii, |name| std::env::var(name).ok());
            print(&report::text(&plan, &results, ink))?;
        }
        Format::Json => print_json(&head.json(&results, OffsetDateTime::now_utc()))?,
    }
    let has_failed = results.errors().count() > 0 || results.is_cut_short;
    Ok(if has_failed { ExitCode::from(STORE) } else { ExitCode::SUCCESS })
}

/// Returns the `Sessions` for the measurement, whose records live for at most [`KEY_LIFE`], and the store
/// that remembers their keys. Fails if the namespace looks like an application's.
fn sessions(arguments: &BenchArguments) -> Result<(Sessions, Arc<OwnKeys>), Failure> {
    let BenchArguments { url, namespace, timeout, .. } = arguments;
    // This looks like the name of a cookie, which an application uses as its namespace by default.
    if ["__Host-", "__Secure-", "__Http-"].iter().any(|prefix| namespace.starts_with(prefix)) {
        let reason =
            "this is an application's namespace; choose a different one for the measurement";
        return Err(Failure::usage("--namespace", reason));
    }
    let store = Address::required(url.as_ref())?.connect(*timeout)?;
    let keys = Arc::new(OwnKeys::new(store));
    let sessions = Sessions::builder(Arc::clone(&keys))
        .namespace(namespace.clone())
        // If both timeouts are the same, using a session does not extend it, so a read sends no write.
        .lifetime(Lifetime::new(KEY_LIFE, KEY_LIFE))
        .timeout(*timeout)
        .max_record_bytes(RECORD_BYTES)
        .directory(DirectoryMode::Listed)
        .build()
        .map_err(Failure::configuration)?;
    Ok((sessions, keys))
}

/// Refuses to measure a store that might evict or refuse applications' sessions because of the measurement.
fn expect_room(arguments: &BenchArguments, check: &Report) -> Result<(), Failure> {
    const ABOUT_MEMORY: [&str; 4] = ["memory", "evicted", "evictions", "refused_writes"];
    if let Some(error) = check.first_error() {
        let reason = format!("{} {}", error.message(), error.remedy());
        return Err(Failure::local(format!("the store cannot be used: {reason}")));
    }
    let is_scarce = |finding: &&Finding| {
        finding.level() >= Level::Warning && ABOUT_MEMORY.contains(&finding.code())
    };
    match check.findings().iter().find(is_scarce) {
        Some(finding) if !arguments.allow_scarce_memory => Err(Failure::usage(
            "the measurement may cost applications their sessions",
            format!("{} Add --allow-scarce-memory to measure anyway", finding.message()),
        )),
        _ => Ok(()),
    }
}

/// Refuses to measure a server that has keys under the namespace, because they belong to an application or to
/// an earlier run.
async fn expect_no_keys(arguments: &BenchArguments) -> Result<(), Failure> {
    let BenchArguments { url, namespace, allow_unseen_keys, timeout, .. } = arguments;
    let url = Address::required(url.as_ref())?;
    // A memory store belongs to this process alone.
    if url.is_memory() {
        return Ok(());
    }
    let survey = url.survey(*timeout)?;
    let holds_any = survey.holds_any(&format!("{namespace}:"), SEARCH).await;
    match holds_any.map_err(|error| Failure::store(&error))? {
        Some(false) => Ok(()),
        Some(true) => Err(Failure::usage(
            "--namespace",
            format!(
                "the store has keys under this namespace. Those of an earlier run expire within {} \
                 minutes. If \
                 they stay, they belong to another application: choose another namespace",
                KEY_LIFE.as_secs() / 60
            ),
        )),
        None if *allow_unseen_keys => Ok(()),
        None => Err(Failure::usage(
            "--namespace",
            "the store does not show whether other keys exist under this namespace; if nothing else \
             uses the \
             namespace, add --allow-unseen-keys",
        )),
    }
}
