//! What can be asked for on the command line.

use std::ffi::OsString;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use unsticky::internals::operate;
use unsticky::internals::survey::{Rate, Survey};
use unsticky::{Audit, Builder, Cookie, DirectoryMode, Lifetime, SessionId, Sessions, Store};

use crate::bench::BenchArguments;
use crate::failure::Failure;
use crate::output::{Format, one_line};

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

/// The commands that have a manual page of their own.
const DESCRIBED: [&str; 6] = ["check", "sessions", "show", "revoke", "count", "bench"];

const AFTER_HELP: &str = "\
Exit status:
  0    done, and nothing is wrong
  1    the check found an error, or what was asked for is not there
  2    the arguments are wrong, or a measurement was refused
  3    the store cannot be reached, refused a command, or holds what cannot be decoded
  130  interrupted";

impl Arguments {
    /// What was typed. One session id of 64 begins with a hyphen; no option looks like one.
    pub(crate) fn parse_typed(
        typed: impl IntoIterator<Item = OsString>,
    ) -> Result<Self, clap::Error> {
        let all: Vec<_> = typed.into_iter().collect();
        let mut typed = all.iter().cloned();
        let options = typed.by_ref().take_while(|argument| argument != "--");
        let (ids, mut arguments): (Vec<_>, Vec<_>) = options.partition(is_id_like_an_option);
        if ids.is_empty() {
            // `help` takes no `--`.
            return Self::try_parse_from(all);
        }
        arguments.push("--".into());
        arguments.extend(ids);
        arguments.extend(typed);
        let mut arguments = Self::try_parse_from(arguments)?;
        if let Action::Revoke(revoke) = &mut arguments.action {
            // In the order in which they were typed.
            let is = |typed: &OsString, id| {
                typed.to_str().and_then(|text| text.parse().ok()) == Some(id)
            };
            revoke.ids.sort_by_key(|id| all.iter().position(|typed| is(typed, *id)));
        }
        Ok(arguments)
    }

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
    /// List the sessions of a principal, as the application sees them.
    ///
    /// What earlier revocations have left half done is finished, as by every use of the directory.
    Sessions(SessionsArguments),
    /// Show a session by its public id, with or without somebody signed in.
    ///
    /// Prints its times, deadlines and principal, and its keys with the sizes of their values.
    Show(ShowArguments),
    /// Revoke sessions by their public ids, or all of a principal.
    Revoke(RevokeArguments),
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
    /// Print a manual page, in roff: `unsticky man bench | man -l -`.
    Man {
        /// The command that it is about. Default: all of them, in short.
        #[arg(value_parser = PossibleValuesParser::new(DESCRIBED), value_name = "COMMAND")]
        command: Option<String>,
    },
}

/// The sessions of whom.
#[derive(Debug, Args)]
pub(crate) struct SessionsArguments {
    /// The principal, as the application signs it in. Without it, or as -, one line is read from the standard
    /// input.
    #[arg(value_name = "PRINCIPAL")]
    pub(crate) principal: Option<String>,
    #[command(flatten)]
    pub(crate) store: AuditedStore,
}

/// Which session.
#[derive(Debug, Args)]
pub(crate) struct ShowArguments {
    /// The public id: 22 characters, as events and lists have it.
    #[arg(value_name = "ID")]
    pub(crate) id: SessionId,
    /// Print the values as well. They may be personal data.
    #[arg(long)]
    pub(crate) values: bool,
    #[command(flatten)]
    pub(crate) store: AuditedStore,
}

/// Which sessions are to end.
#[derive(Debug, Args)]
pub(crate) struct RevokeArguments {
    /// The public ids: 22 characters each, as events and lists have them.
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    pub(crate) ids: Vec<SessionId>,
    /// Revoke all sessions of this principal, and every sign-in that has begun. Without a value, or as -, one
    /// line is read from the standard input.
    #[arg(long, value_name = "PRINCIPAL", num_args = 0..=1, default_missing_value = "-")]
    pub(crate) all: Option<String>,
    #[command(flatten)]
    pub(crate) store: AuditedStore,
}

/// The store, who asks, and how events name people.
#[derive(Debug, Args)]
pub(crate) struct AuditedStore {
    /// Who asks: the field actor of the events that are printed to the standard error stream. Default: the user
    /// who runs the command.
    #[arg(long, value_name = "NAME", value_parser = actor)]
    actor: Option<String>,
    /// How these events name a principal.
    #[arg(long, value_enum, default_value_t = NamedBy::Digest, value_name = "HOW")]
    audit: NamedBy,
    #[command(flatten)]
    store: StoreArguments,
}

/// How events name a principal.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum NamedBy {
    /// By the digest that is the last part of its directory's key.
    Digest,
    /// As it is.
    Principal,
    /// Not at all.
    Nothing,
}

impl AuditedStore {
    /// The sessions as the application configures them, and what events are to tell of a principal.
    pub(crate) fn sessions(&self) -> Result<Sessions, Failure> {
        let audit = match self.audit {
            NamedBy::Digest => Audit::Digest,
            NamedBy::Principal => Audit::Principal,
            NamedBy::Nothing => Audit::Nothing,
        };
        self.store.builder()?.audit(audit).build().map_err(Failure::configuration)
    }

    /// Who asks.
    pub(crate) fn actor(&self) -> String {
        let user = || {
            let names = ["USER", "LOGNAME"].into_iter();
            names.filter_map(|name| std::env::var(name).ok()).find_map(|name| actor(&name).ok())
        };
        self.actor.clone().or_else(user).unwrap_or_else(|| "unsticky".to_owned())
    }
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
    url: Option<Address>,
    /// Name of the application's session cookie.
    #[arg(long, default_value = "__Host-id", value_name = "NAME")]
    cookie: String,
    /// The application's namespace. Default: made from the name of the cookie, as in the library.
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// The application's epoch.
    #[arg(long, default_value_t = 0, value_name = "NUMBER", value_parser = epoch)]
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
        self.builder()?.build().map_err(Failure::configuration)
    }

    fn builder(&self) -> Result<Builder, Failure> {
        let store = Address::required(self.url.as_ref())?.connect(self.timeout)?;
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
        Ok(builder)
    }

    /// The servers, to walk through their keys.
    pub(crate) fn survey(&self) -> Result<Survey, Failure> {
        Address::required(self.url.as_ref())?.survey(self.timeout)
    }
}

/// The address of a store, which may hold a password.
#[derive(Clone)]
pub(crate) struct Address(String);

impl Address {
    /// That it is needed is no rule of the argument, since help would ask for it where the variable is set.
    pub(crate) fn required(address: Option<&Self>) -> Result<&Self, Failure> {
        address.ok_or_else(|| {
            let missing = "the address of the store is missing: set SESSION_URL, or give --url";
            Failure::Usage(missing.to_owned())
        })
    }

    pub(crate) fn connect(&self, timeout: Duration) -> Result<Arc<dyn Store>, Failure> {
        operate::connect(&self.0, timeout).map_err(|error| Failure::usage("--url", error))
    }

    /// The servers, to walk through their keys.
    pub(crate) fn survey(&self, timeout: Duration) -> Result<Survey, Failure> {
        let survey = Survey::open_within(&self.0, timeout);
        survey.map_err(|error| Failure::usage("--url", error))
    }

    /// Whether the sessions are this process's own.
    pub(crate) fn is_memory(&self) -> bool {
        self.0.starts_with("memory:")
    }
}

impl From<String> for Address {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Address(..)")
    }
}

/// A number of keys per second. The error repeats nothing.
fn rate(text: &str) -> Result<Rate, String> {
    let rate = text.parse().ok().and_then(Rate::per_second);
    rate.ok_or_else(|| "write a whole number of keys per second, 1 at least".to_owned())
}

fn is_id_like_an_option(argument: &OsString) -> bool {
    let text = argument.to_str().filter(|text| text.starts_with('-'));
    text.is_some_and(|text| text.parse::<SessionId>().is_ok())
}

/// A name for logs. The error repeats nothing.
fn actor(text: &str) -> Result<String, String> {
    const MOST: usize = 200;
    match text.chars().count() {
        1..=MOST if one_line(text) == text => Ok(text.to_owned()),
        _ => Err("write 1 to 200 characters without control characters".to_owned()),
    }
}

/// A number. The error repeats nothing.
fn epoch(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "write a whole number from 0 to 4294967295".to_owned())
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
    fn id_that_begins_with_hyphen_is_no_option() {
        let ids = ["-AECAwQFBgcICQoLDA0ODw", "--ECAwQFBgcICQoLDA0ODw", "AAECAwQFBgcICQoLDA0ODw"];
        for (typed, count) in [
            (&["--json", ids[0], ids[1], "--url", "x:", ids[2], "--strict"][..], 3),
            (&["--url", "x:", ids[0], "--json", "--", ids[1]], 2),
        ] {
            let typed = ["unsticky", "revoke"].iter().chain(typed).map(OsString::from);
            let arguments = Arguments::parse_typed(typed).unwrap();
            let Action::Revoke(revoke) = arguments.action else { panic!("{:?}", arguments.action) };
            assert!(arguments.json);
            let typed = ids[..count].iter().map(|id| id.parse().unwrap());
            assert_eq!(revoke.ids, typed.collect::<Vec<SessionId>>());
        }
        let mut command = Arguments::command();
        command.build();
        for argument in command.get_subcommands().flat_map(clap::Command::get_arguments) {
            let option = format!("--{}", argument.get_long().unwrap_or_default());
            assert!(!is_id_like_an_option(&option.into()), "{argument}");
        }
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
