//! The command-line arguments.

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

/// Check the servers of a session store, look up, revoke and count sessions, and measure the store.
#[derive(Debug, Parser)]
#[command(name = "unsticky", version, max_term_width = 100, after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) action: Action,
}

/// The commands that have a manual page of their own.
const DESCRIBED: [&str; 6] = ["check", "sessions", "show", "revoke", "count", "bench"];

const AFTER_HELP: &str = "\
Exit status:
  0    success
  1    the check found an error, or the session or principal was not found
  2    the arguments are wrong, or a measurement was refused
  3    the store cannot be reached, refused a command, or has a record that cannot be decoded
  130  interrupted";

impl Arguments {
    /// Parses the command line. One session id in 64 begins with a hyphen, but no option looks like an id.
    pub(crate) fn parse_typed(
        typed: impl IntoIterator<Item = OsString>,
    ) -> Result<Self, clap::Error> {
        let all: Vec<_> = typed.into_iter().collect();
        let mut typed = all.iter().cloned();
        let options = typed.by_ref().take_while(|argument| argument != "--");
        let (ids, mut arguments): (Vec<_>, Vec<_>) = options.partition(is_id_like_an_option);
        if ids.is_empty() {
            // `help` does not accept `--`.
            return Self::try_parse_from(all);
        }
        arguments.push("--".into());
        arguments.extend(ids);
        arguments.extend(typed);
        let mut arguments = Self::try_parse_from(arguments)?;
        if let Action::Revoke(revoke) = &mut arguments.action {
            // Restores the order of the command line.
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
    /// Check the servers: version, permissions, memory, replication, clocks, certificates.
    ///
    /// The check tries commands on keys of its own, which expire within ten seconds. It does not read or
    /// write any other record. It takes at most twice --timeout.
    Check(StoreArguments),
    /// List the sessions of a principal, as the application sees them.
    ///
    /// The command also tries to complete earlier revocations that were interrupted, as a sign-in does.
    Sessions(SessionsArguments),
    /// Show a session by its public id, whether or not a user is signed in.
    ///
    /// Prints the session's principal, times and deadlines, and its keys with the size of each value in
    /// bytes.
    Show(ShowArguments),
    /// Revoke sessions by their public ids, or all sessions of a principal.
    Revoke(RevokeArguments),
    /// Count sessions and directories, and report their sizes in bytes.
    ///
    /// The command scans all keys on each server at a limited rate. It writes nothing and reads no record.
    Count(CountArguments),
    /// Measure the throughput and latency of the store from this machine.
    ///
    /// The command creates its own sessions under a separate namespace and uses them to read, write, sign in
    /// and sign out. It removes these sessions at the end. If it cannot, they expire within five minutes. The
    /// command puts full load on the store, so other applications that use the store become slower while the
    /// measurement runs.
    ///
    /// With the defaults, a run takes less than a minute. The command prints an estimate first. For each
    /// payload, read and write each take --seconds once per number in --callers and once more for latency.
    /// Sign-in and sign-out together take --seconds twice per number in --callers, and two and a half times
    /// for latency. Creating and removing the sessions adds a little to that.
    Bench(BenchArguments),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print a manual page, in roff: `unsticky man bench | man -l -`.
    Man {
        /// The command to describe. Default: a summary of all commands.
        #[arg(value_parser = PossibleValuesParser::new(DESCRIBED), value_name = "COMMAND")]
        command: Option<String>,
    },
}

/// The principal whose sessions are listed.
#[derive(Debug, Args)]
pub(crate) struct SessionsArguments {
    /// The principal, exactly as the application passes it to Session::sign_in. If the argument is missing or
    /// -, one line is read from standard input.
    #[arg(value_name = "PRINCIPAL")]
    pub(crate) principal: Option<String>,
    #[command(flatten)]
    pub(crate) store: AuditedStore,
}

/// The session to show.
#[derive(Debug, Args)]
pub(crate) struct ShowArguments {
    /// The public id: 22 characters, as in events and lists.
    #[arg(value_name = "ID")]
    pub(crate) id: SessionId,
    /// Print the values as well. They may contain personal data.
    #[arg(long)]
    pub(crate) values: bool,
    #[command(flatten)]
    pub(crate) store: AuditedStore,
}

/// The sessions to revoke.
#[derive(Debug, Args)]
pub(crate) struct RevokeArguments {
    /// The public ids: 22 characters each, as in events and lists.
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    pub(crate) ids: Vec<SessionId>,
    /// Revoke all sessions of this principal, and make every sign-in that is already under way fail. If the
    /// value is missing or -, one line is read from standard input.
    #[arg(long, value_name = "PRINCIPAL", num_args = 0..=1, default_missing_value = "-")]
    pub(crate) all: Option<String>,
    #[command(flatten)]
    pub(crate) store: AuditedStore,
}

/// The store, the actor, and how events identify a principal.
#[derive(Debug, Args)]
pub(crate) struct AuditedStore {
    /// Your name, for the actor field in the events that are printed to standard error. Default: the user who
    /// runs the command (USER or LOGNAME), or "unsticky" if neither names one.
    #[arg(long, value_name = "NAME", value_parser = actor)]
    actor: Option<String>,
    /// How these events identify a principal.
    #[arg(long, value_enum, default_value_t = NamedBy::Digest, value_name = "HOW")]
    audit: NamedBy,
    #[command(flatten)]
    store: StoreArguments,
}

/// How events identify a principal.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum NamedBy {
    /// By the digest at the end of the key of the principal's directory record.
    Digest,
    /// By the principal itself, as plain text.
    Principal,
    /// Not at all.
    Nothing,
}

impl AuditedStore {
    /// Returns the sessions with the application's settings and the chosen way to identify principals in
    /// events.
    pub(crate) fn sessions(&self) -> Result<Sessions, Failure> {
        let audit = match self.audit {
            NamedBy::Digest => Audit::Digest,
            NamedBy::Principal => Audit::Principal,
            NamedBy::Nothing => Audit::Nothing,
        };
        self.store.builder()?.audit(audit).build().map_err(Failure::configuration)
    }

    /// Returns the actor to record in events.
    pub(crate) fn actor(&self) -> String {
        let user = || {
            let names = ["USER", "LOGNAME"].into_iter();
            names.filter_map(|name| std::env::var(name).ok()).find_map(|name| actor(&name).ok())
        };
        self.actor.clone().or_else(user).unwrap_or_else(|| "unsticky".to_owned())
    }
}

/// The store whose sessions are counted, and the rate.
#[derive(Debug, Clone, Args)]
pub(crate) struct CountArguments {
    #[command(flatten)]
    pub(crate) store: StoreArguments,
    /// The maximum number of keys to scan per second on each server. Other applications' keys count as well.
    #[arg(long, default_value = "10000", value_name = "KEYS", value_parser = rate)]
    pub(crate) rate: Rate,
}

/// The store, and the application's settings for it.
#[derive(Debug, Clone, Args)]
pub(crate) struct StoreArguments {
    /// Address of the store, as the application uses it. Prefer the environment variable: other users of this
    /// machine can read the command line, including the password.
    #[arg(long, env = "SESSION_URL", hide_env_values = true, value_name = "ADDRESS")]
    url: Option<Address>,
    /// Name of the application's session cookie.
    #[arg(long, default_value = "__Host-id", value_name = "NAME")]
    cookie: String,
    /// The application's namespace. Default: the name of the cookie, as in the library.
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// The application's epoch.
    #[arg(long, default_value_t = 0, value_name = "NUMBER", value_parser = epoch)]
    epoch: u32,
    /// Set this if the application's directory is in strict mode.
    #[arg(long)]
    strict: bool,
    /// The application's absolute timeout, such as 90m, 24h or 30d.
    #[arg(long, default_value = "24h", value_name = "DURATION", value_parser = duration)]
    absolute_timeout: Duration,
    /// How long one operation may wait for the store, such as 500ms or 2s; from 10ms to 60s. Connecting and
    /// waiting for the answer each get a fixed share of this time.
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = duration)]
    timeout: Duration,
}

impl StoreArguments {
    /// Returns the sessions with the application's settings.
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

    /// Returns the servers whose keys are scanned.
    pub(crate) fn survey(&self) -> Result<Survey, Failure> {
        Address::required(self.url.as_ref())?.survey(self.timeout)
    }
}

/// The address of a store. It may contain a password.
#[derive(Clone)]
pub(crate) struct Address(String);

impl Address {
    /// Fails if there is no address. This is not left to clap, because the help would then show the argument
    /// as required even if the environment variable is set.
    pub(crate) fn required(address: Option<&Self>) -> Result<&Self, Failure> {
        address.ok_or_else(|| {
            let missing =
                "the address of the store is missing: set SESSION_URL, or add --url ADDRESS";
            Failure::Usage(missing.to_owned())
        })
    }

    pub(crate) fn connect(&self, timeout: Duration) -> Result<Arc<dyn Store>, Failure> {
        operate::connect(&self.0, timeout).map_err(|error| Failure::usage(self.source(), error))
    }

    /// Returns the servers whose keys are scanned.
    pub(crate) fn survey(&self, timeout: Duration) -> Result<Survey, Failure> {
        let survey = Survey::open_within(&self.0, timeout);
        survey.map_err(|error| Failure::usage(self.source(), error))
    }

    /// Returns where the address comes from, for errors. The argument takes precedence over the environment
    /// variable.
    fn source(&self) -> &'static str {
        let mut typed = std::env::args_os().take_while(|argument| argument != "--");
        let is_typed =
            typed.any(|argument| argument.to_str().is_some_and(|text| text.starts_with("--url")));
        if is_typed { "--url" } else { "SESSION_URL" }
    }

    /// Returns whether the sessions exist only in this process.
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

/// Parses a number of keys per second. The error does not quote the text.
fn rate(text: &str) -> Result<Rate, String> {
    let rate = text.parse().ok().and_then(Rate::per_second);
    rate.ok_or_else(|| "write a whole number of keys per second, at least 1".to_owned())
}

fn is_id_like_an_option(argument: &OsString) -> bool {
    let text = argument.to_str().filter(|text| text.starts_with('-'));
    text.is_some_and(|text| text.parse::<SessionId>().is_ok())
}

/// Parses a name for logs. The error does not quote the text.
fn actor(text: &str) -> Result<String, String> {
    const MOST: usize = 200;
    match text.chars().count() {
        1..=MOST if one_line(text) == text => Ok(text.to_owned()),
        _ => Err("write 1 to 200 characters without control characters".to_owned()),
    }
}

/// Parses an epoch. The error does not quote the text.
fn epoch(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "write a whole number from 0 to 4294967295".to_owned())
}

/// Parses a duration with a unit. The error does not quote the text.
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
