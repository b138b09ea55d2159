//! The `unsticky` command: checks the servers of a store, looks up and revokes sessions, and measures the
//! store.

mod arguments;
mod bench;
mod check;
mod count;
mod failure;
mod output;
mod principal;
mod revoke;
mod sessions;
mod show;

use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_mangen::Man;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};

use crate::arguments::{Action, Arguments};
use crate::failure::Failure;

fn main() -> ExitCode {
    let arguments = match Arguments::parse_typed(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => return failure::report_usage(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::local(format!("the runtime cannot start: {error}")).report(),
    };
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = run(&arguments) => outcome,
            // A measurement handles the interruption itself and removes its keys first.
            _ = tokio::signal::ctrl_c(), if !matches!(arguments.action, Action::Bench(_)) => {
                Err(Failure::Interrupted)
            }
        }
    });
    // After an interruption, do not wait for operations that are still under way.
    runtime.shutdown_background();
    match outcome {
        Ok(status) => status,
        Err(failure) => failure.report(),
    }
}

async fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let format = arguments.format();
    match &arguments.action {
        Action::Check(check) => check::run(check, format).await,
        Action::Sessions(sessions) => {
            print_events();
            sessions::run(sessions, format).await
        }
        Action::Show(show) => {
            print_events();
            show::run(show, format).await
        }
        Action::Revoke(revoke) => {
            print_events();
            revoke::run(revoke, format).await
        }
        Action::Count(count) => count::run(count, format).await,
        Action::Bench(bench) => bench::run(bench, format).await,
        Action::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Arguments::command(), "unsticky", &mut script);
            output::print_bytes(&script)
        }
        Action::Man { command } => {
            let mut page = Vec::new();
            described(command.as_deref()).render(&mut page).map_err(Failure::output)?;
            output::print_bytes(&page)
        }
    }
}

/// Returns the manual page for a command, or the summary of all commands.
fn described(name: Option<&str>) -> Man {
    let mut whole = Arguments::command();
    // This adds the global options to each page.
    whole.build();
    let command = name.and_then(|name| whole.find_subcommand(name).cloned());
    Man::new(command.unwrap_or(whole))
}

/// Prints the library's events to the standard error stream, one line each, so that they can be kept as an
/// audit log.
fn print_events() {
    let is_told = |event: &Metadata<'_>| {
        event.target() == "unsticky"
            && *event.level() <= Level::INFO
            // If a store command failed for good, the error that this program prints already says so.
            && event.fields().field("verb").is_none()
    };
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr);
    let events = tracing_subscriber::registry().with(lines.with_filter(filter_fn(is_told)));
    // This fails only if a subscriber has already been set.
    let _ = tracing::subscriber::set_global_default(events);
}
