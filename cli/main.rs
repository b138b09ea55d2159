//! The command `unsticky`: examines what stands behind a store, looks sessions up and revokes them.

mod arguments;
mod bench;
mod check;
mod count;
mod failure;
mod output;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use crate::arguments::{Action, Arguments};
use crate::failure::Failure;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
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
            // A measurement removes its keys first.
            _ = tokio::signal::ctrl_c(), if !matches!(arguments.action, Action::Bench(_)) => {
                Err(Failure::Interrupted)
            }
        }
    });
    // Whoever was interrupted does not wait for what is still under way.
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
        Action::Count(count) => count::run(count, format).await,
        Action::Bench(bench) => bench::run(bench, format).await,
        Action::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Arguments::command(), "unsticky", &mut script);
            output::print_bytes(&script)
        }
        Action::Man => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Arguments::command())
                .render(&mut page)
                .map_err(Failure::output)?;
            output::print_bytes(&page)
        }
    }
}
