//! Reports a failure of the command, with one line on standard error and an exit status.
//!
//! The line never quotes the value of an argument, because it may contain a password.

use std::fmt::Display;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use unsticky::internals::operate;
use unsticky::{ConfigError, Error};

use crate::output::one_line;

/// The check found an error.
pub(crate) const FOUND_WRONG: u8 = 1;
/// The session, or the principal's directory, does not exist.
pub(crate) const NOT_FOUND: u8 = 1;
const USAGE: u8 = 2;
/// The store cannot be reached, or it refused a command.
pub(crate) const STORE: u8 = 3;
const INTERRUPTED: u8 = 130;

#[derive(Debug)]
pub(crate) enum Failure {
    /// The arguments cannot be used.
    Usage(String),
    /// The store cannot be reached, or a record cannot be decoded.
    Store(String),
    /// The operating system failed.
    Local(String),
    Interrupted,
}

impl Failure {
    /// `reason` must not quote the argument's value.
    pub(crate) fn usage(argument: &str, reason: impl Display) -> Self {
        Self::Usage(format!("{argument}: {reason}"))
    }

    /// Returns the failure for a setting that the library does not allow. The error names the setting but not
    /// its value.
    pub(crate) fn configuration(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }

    /// Returns the failure for an error from the library, with its causes.
    pub(crate) fn store(error: &Error) -> Self {
        let reason = operate::causes(error);
        match error.kind() {
            unsticky::ErrorKind::InvalidPrincipal => Self::usage("PRINCIPAL", reason),
            _ => Self::Store(reason),
        }
    }

    /// Returns the failure for the case in which some of the sessions could not be revoked.
    pub(crate) fn partly(failed: usize, of: usize, first: &Error) -> Self {
        let reason = operate::causes(first);
        Self::Store(format!("{failed} of {of} sessions could not be revoked: {reason}"))
    }

    pub(crate) fn local(reason: String) -> Self {
        Self::Local(reason)
    }

    pub(crate) fn output(error: std::io::Error) -> Self {
        Self::Local(format!("the output cannot be written: {error}"))
    }

    /// Prints the line and returns the exit status.
    pub(crate) fn report(self) -> ExitCode {
        let (line, status) = match self {
            Self::Usage(reason) => (reason, USAGE),
            Self::Store(reason) | Self::Local(reason) => (reason, STORE),
            Self::Interrupted => ("interrupted".to_owned(), INTERRUPTED),
        };
        print_line(&line);
        ExitCode::from(status)
    }
}

/// Reports an error from clap in one line that quotes no value. Help and version are not failures.
pub(crate) fn report_usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return if error.print().is_ok() { ExitCode::SUCCESS } else { ExitCode::from(STORE) };
    }
    let argument = match error.get(ContextKind::InvalidArg) {
        // For this kind of error, the argument is the text that the user typed.
        _ if error.kind() == ErrorKind::UnknownArgument => String::new(),
        Some(ContextValue::String(argument)) => argument.clone(),
        Some(ContextValue::Strings(arguments)) => arguments.join(", "),
        _ => String::new(),
    };
    let valid = match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) if !values.is_empty() => {
            format!("; write one of {}", values.join(", "))
        }
        _ => String::new(),
    };
    let reason = std::error::Error::source(error).map(|source| format!(": {source}"));
    let reason = reason.unwrap_or(valid);
    print_line(&match error.kind() {
        ErrorKind::InvalidValue => {
            format!("the value of {argument} is missing or unknown{reason}")
        }
        ErrorKind::ValueValidation => format!("the value of {argument} cannot be used{reason}"),
        ErrorKind::UnknownArgument => {
            "this command does not have one of the arguments; see unsticky --help, or --help after the \
             command"
                .to_owned()
        }
        ErrorKind::InvalidSubcommand => "this command does not exist; see unsticky --help".to_owned(),
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            "a command is missing; see unsticky --help".to_owned()
        }
        ErrorKind::MissingRequiredArgument => format!("{argument} is missing; add --help to see what the command needs"),
        ErrorKind::ArgumentConflict => {
            format!("{argument} cannot be combined with another argument that was given")
        }
        ErrorKind::TooManyValues | ErrorKind::TooFewValues | ErrorKind::WrongNumberOfValues => {
            format!("{argument} has the wrong number of values")
        }
        ErrorKind::InvalidUtf8 => "an argument is not UTF-8".to_owned(),
        _ => "the arguments cannot be used; see unsticky --help".to_owned(),
    });
    ExitCode::from(USAGE)
}

#[allow(clippy::print_stderr, reason = "a command reports errors here")]
fn print_line(line: &str) {
    eprintln!("unsticky: {}", one_line(line));
}
