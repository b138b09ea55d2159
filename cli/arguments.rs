//! What can be asked for on the command line.

use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use unsticky::internals::survey::{Rate, Survey};
use unsticky::{Cookie, DirectoryMode, Lifetime, Sessions};

use crate::bench::BenchArguments;
use crate::failure::Failure;
use crate::output::Format;

/// Examine what stands behind a session store, look sessions up, and revoke them.
#[derive(Debug, Parser)]
#[command(name = "unsticky", version, max_term_width = 100, after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// Print JSON in place of text.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) action: Action,
}

const AFTER_HELP: &str = "\
Exit status:
  0    done, and nothing is wrong
  1    the check found an error, or what was asked for is not there
  2    the arguments are wrong
  3    the store cannot be reached, or it refused a command
  130  interrupted";

impl Arguments {
    pub(crate) fn format(&self) -> Format {
        if self.json { Format::Json } else { Format::Text }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Examine the servers: version, permissions, memory, replication, clocks, certificates.
    ///
    /// Commands are tried on a key of the check's own, which expires within ten seconds. No other record is
    /// read or written.
    Check(StoreArguments),
    /// Count the sessions and the directories, and the bytes that they take.
    ///
    /// All keys of each server are walked through at a bounded rate. Nothing is written, and no record is read.
    Count(CountArguments),
    /// Measure what the store can do from here: throughput and latency of requests.
    ///
    /// Sessions of the measurement's own are read, written, signed in and signed out under a namespace of
    /// their own. They are removed at the end, and expire within five minutes whatever happens. The run with
    /// the defaults takes less than a minute. It is a load for the store: mind the applications that use it.
    Bench(BenchArguments),
    /// Print a script that completes arguments in a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page, in roff.
    Man,
}

/// What is counted, and how fast.
#[derive(Debug, Clone, Args)]
pub(crate) struct CountArguments {
    #[command(flatten)]
    pub(crate) store: StoreArguments,
    /// How many keys of a server are walked through in a second at most, whoever they belong to.
    #[arg(long, default_value = "10000", value_name = "KEYS", value_parser = rate)]
    pub(crate) rate: Rate,
}

/// The store, and what the application has configured for it.
#[derive(Debug, Clone, Args)]
pub(crate) struct StoreArguments {
    /// Address of the store, as the application has it. Prefer the environment variable: other users of this
    /// machine can read a command line, and the password in it.
    #[arg(long, env = "SESSION_URL", hide_env_values = true, value_name = "ADDRESS")]
    url: String,
    /// Name of the application's session cookie.
    #[arg(long, default_value = "__Host-id", value_name = "NAME")]
    cookie: String,
    /// The application's namespace. Default: made from the name of the cookie, as in the library.
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// The application's epoch.
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    epoch: u32,
    /// The application's directory is in strict mode.
    #[arg(long)]
    strict: bool,
    /// The application's absolute timeout, as in 90m, 24h or 30d.
    #[arg(long, default_value = "24h", value_name = "DURATION", value_parser = duration)]
    absolute_timeout: Duration,
    /// How long one operation may wait for the store, as in 500ms or 2s; from 10ms to 60s.
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = duration)]
    timeout: Duration,
}

impl StoreArguments {
    /// The sessions as the application configures them.
    pub(crate) fn sessions(&self) -> Result<Sessions, Failure> {
        let store = unsticky::connect(&self.url).map_err(|error| Failure::usage("--url", error))?;
        let idle = Lifetime::default().idle().min(self.absolute_timeout);
        let mut builder = Sessions::builder(store)
            .cookie(Cookie::new(self.cookie.clone()))
            .epoch(self.epoch)
            .lifetime(Lifetime::new(idle, self.absolute_timeout))
            .timeout(self.timeout);
        if let Some(namespace) = &self.namespace {
            builder = builder.namespace(namespace.clone());
        }
        if self.strict {
            builder = builder.directory(DirectoryMode::Strict);
        }
        builder.build().map_err(Failure::configuration)
    }

    /// The servers, to walk through their keys.
    pub(crate) fn survey(&self) -> Result<Survey, Failure> {
        let survey = Survey::open_within(&self.url, self.timeout);
        survey.map_err(|error| Failure::usage("--url", error))
    }
}

/// A number of keys per second. The error repeats nothing.
fn rate(text: &str) -> Result<Rate, String> {
    let rate = text.parse().ok().and_then(Rate::per_second);
    rate.ok_or_else(|| "write a whole number of keys per second, 1 at least".to_owned())
}

/// A duration with its unit. The error repeats nothing.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "write a whole number and a unit: ms, s, m, h or d";
    let digits = text.len() - text.trim_start_matches(|char: char| char.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| EXPECTED)?;
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(EXPECTED.to_owned()),
    };
    number.checked_mul(factor).map(Duration::from_millis).ok_or_else(|| EXPECTED.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn declaration_of_arguments_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn duration_needs_number_and_unit() {
        for (text, millis) in [("0ms", 0), ("1500ms", 1_500), ("2s", 2_000), ("90m", 5_400_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(duration("30d"), Ok(Duration::from_secs(30 * 24 * 3600)));
        for text in ["", "1", "s", "-1s", "+1s", "1.5s", "1S", "1 s", "1w", "99999999999999999999s"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(duration("18446744073709551615d").is_err());
    }

    #[test]
    fn rate_is_whole_number_and_not_zero() {
        assert_eq!(rate("1"), Ok(Rate::per_second(1).unwrap()));
        for text in ["", "0", "-1", "1.5", "1k", "4294967296"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }
}
