//! Interprets the server's errors, and decides how much of each may be printed.

use std::fmt;

use ::redis::{Arg, Cmd, RedisError};

use crate::store::redis::place::Place;

/// An error that the server returned.
///
/// A server may echo a command in its error, and a proxy may do so in words of its own, so any part of the
/// message can contain a record or a password. The message is therefore not kept: only its code, the entry
/// of [`KNOWN`] or [`SCRIPT_ERRORS`] that it matches, and the address in a redirect.
#[derive(Debug)]
pub(super) struct Answer {
    /// The server that answered. `None` for a connection made by the application, for which advice about
    /// addresses is of no use.
    server: Option<String>,
    /// The name of the command.
    command: String,
    pub(super) code: String,
    known: Option<&'static Known>,
    certainty: Certainty,
    /// The cluster node to which the answer redirects.
    redirect: Option<Redirect>,
    source: Source,
}

/// The type of the server that answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Server,
    Sentinel,
    /// A server that the address declares to be a cluster node.
    ClusterNode,
    /// A server that Sentinels named as the master.
    Master,
}

/// The number of slots in every cluster (Redis Cluster specification, "Key distribution model").
pub(super) const SLOTS: u16 = 16384;

/// The cluster node that has a key, or to which the key's slot is being moved.
pub(super) struct Redirect {
    /// The slot is being moved, and the node accepts only a command that comes right after `ASKING`.
    pub(super) is_ask: bool,
    host: Option<String>,
    port: u16,
}

/// The host is not printed, because it comes from an error message.
impl fmt::Debug for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redirect").field("is_ask", &self.is_ask).finish_non_exhaustive()
    }
}

impl Redirect {
    fn of(error: &RedisError) -> Option<Self> {
        let (node, slot) = error.redirect_node()?;
        let (host, port) = node.rsplit_once(':')?;
        let (host, port) = (announced_host(host)?, port.parse().ok()?);
        let is_ask = error.code() == Some("ASK");
        (slot < SLOTS && port > 0).then_some(Self { is_ask, host, port })
    }

    /// Returns the node's address. If the redirect names no host, the host is that of the node that answered.
    pub(super) fn place(&self, answered: &Place) -> Option<Place> {
        let host = self.host.as_deref().or_else(|| answered.host())?;
        Some(Place::tcp(host, self.port))
    }
}

/// Returns the host that a cluster node announces, or `Some(None)` if the node does not know its host or
/// announces the wildcard address. Only characters allowed in host names are accepted, so that no other part
/// of an error can be taken for a host and printed.
pub(super) fn announced_host(host: &str) -> Option<Option<String>> {
    const UNKNOWN: [&str; 4] = ["", "?", "0.0.0.0", "::"];
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
    if UNKNOWN.contains(&host) {
        return Some(None);
    }
    host.bytes().all(is_host).then(|| Some(host.to_ascii_lowercase()))
}

/// What an error reveals about whether a write was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Certainty {
    NothingWritten,
    Unknown,
}

/// An error code, part of the message that a server sends with it, and the meaning.
type Known = (&'static str, &'static str, &'static str);

const UNKNOWN_COMMAND: &str = "unknown command";
const SYNTAX_ERROR: &str = "syntax error";
const NO_CLUSTER: &str = "This instance has cluster support disabled";

const CLUSTER: &str = "the server is a node of a Redis Cluster; the address of a cluster begins with \
                       redis+cluster:// or rediss+cluster://";
const SLOT_DOWN: &str = "the cluster does not serve the key now: the master is down or cut off, or no node \
                         serves the slot";
const SLOT_MOVING: &str = "the cluster is moving the key's slot";
const NO_DATABASES: &str = "a cluster has only the database 0; remove the number from the address";
const REPLICA: &str =
    "the server is a replica, which takes no writes; write the address of its master";
const RENAMED: &str = "the command is disabled or renamed there, or the server is not Redis";
const PERMISSION: &str = "the server's access control list (ACL) does not permit the user to do that; RedisStore documents the \
     permissions that it needs";
const SCRIPT_PERMISSION: &str = "the server's access control list (ACL) does not permit the user to run \
                                 a command that the script runs: GETRANGE, GET, SET or DEL";
const SCRIPT_RENAMED: &str = "a command that the script runs is disabled or renamed there: GETRANGE, GET, \
                              SET or DEL";
const NO_SENTINEL: &str = "the server is not a Sentinel";
const SENTINEL: &str = "the server is a Sentinel, which keeps no data; the address of what it watches \
                        begins with redis+sentinel://";

/// The first entry that matches is used. An entry with an empty message matches every message with its code.
const KNOWN: &[Known] = &[
    ("ERR", UNKNOWN_COMMAND, RENAMED),
    ("ERR", "unknown subcommand", RENAMED),
    ("ERR", "wrong number of arguments", "the server is not Redis 6.2 or newer"),
    ("ERR", SYNTAX_ERROR, "the server does not know this form of the command"),
    ("ERR", "max number of clients", "raise maxclients there, or open fewer connections"),
    (
        "ERR",
        "DB index is out of range",
        "the server has no database with that number; change it in the address, or raise databases there",
    ),
    ("ERR", "SELECT is not allowed in cluster mode", CLUSTER),
    (
        "ERR",
        NO_CLUSTER,
        "the server is not a node of a cluster; the address of one server begins with redis:// or rediss://",
    ),
    (
        "ERR",
        "called without any password configured for the default user",
        "the server has no password for its default user, and one is given; remove it from the address, or set \
         requirepass there",
    ),
    // Envoy sends no code.
    ("", "no upstream host", "a proxy has no server for the command"),
    ("", "upstream failure", "a proxy has lost its connection to the server"),
    ("", "upstream protocol error", "a proxy did not understand the server's answer"),
    ("NOPERM", "no permissions to run", PERMISSION),
    ("NOPERM", "no permissions to access", PERMISSION),
    ("NOPERM", "No permissions to access", PERMISSION),
    ("NOPERM", "", PERMISSION),
    (
        "WRONGPASS",
        "invalid username-password pair or user is disabled",
        "the user's name or the password is wrong: in the address, or for a Sentinel in sentinel_credentials",
    ),
    (
        "NOAUTH",
        "Authentication required",
        "the server asks for a password, and none is given: write user:password@ before the host in the \
         address, or for a Sentinel use sentinel_credentials",
    ),
    ("NOAUTH", "", "the server asks for a password"),
    (
        "DENIED",
        "protected mode",
        "the server accepts connections from its own machine only; set a password there (requirepass), or \
         turn its protected-mode off",
    ),
    ("READONLY", "You can't write against a read only replica", REPLICA),
    ("READONLY", "", REPLICA),
    (
        "MASTERDOWN",
        "Link with MASTER is down",
        "the server is a replica that has lost its master; write the address of a master",
    ),
    ("MOVED", "", CLUSTER),
    ("ASK", "", CLUSTER),
    ("TRYAGAIN", "", CLUSTER),
    ("CROSSSLOT", "", CLUSTER),
    ("CLUSTERDOWN", "Hash slot not served", CLUSTER),
    ("CLUSTERDOWN", "The cluster is down", CLUSTER),
    ("CLUSTERDOWN", "", CLUSTER),
    ("LOADING", "loading the dataset in memory", "the server is starting and reads its data"),
    ("OOM", "command not allowed when used memory", "the server's memory is full (maxmemory)"),
    (
        "MISCONF",
        "unable to persist to disk",
        "the server cannot write to its disk, and takes no writes until it can",
    ),
    (
        "MISCONF",
        "Errors writing to the AOF file",
        "the server cannot write to its disk, and takes no writes until it can",
    ),
    (
        "NOREPLICAS",
        "Not enough good replicas to write",
        "fewer replicas are connected than min-replicas-to-write requires",
    ),
    ("BUSY", "busy running a script", "another client's script is blocking the server"),
    (
        "WRONGTYPE",
        "Operation against a key holding the wrong kind of value",
        "another program keeps something else under the key; choose another namespace",
    ),
    ("NOSCRIPT", "No matching script", "the script was forgotten before it could be run"),
];

/// The errors with which the server aborts a script at a command that it refuses to run.
const SCRIPT_ERRORS: &[Known] = &[
    ("ERR", "The user executing the script can't run this command", SCRIPT_PERMISSION),
    ("ERR", "The user executing the script can't access at least one of the keys", PERMISSION),
    ("ERR", "ACL failure in script", SCRIPT_PERMISSION),
    ("ERR", "Unknown Redis command called from", SCRIPT_RENAMED),
    ("ERR", "Unknown command called from script", SCRIPT_RENAMED),
];

impl Answer {
    /// Returns the server's answer, if the error came from the server.
    pub(super) fn of(server: Option<String>, command: &Cmd, error: &RedisError) -> Option<Self> {
        let code = error.code()?;
        let command = match command.args_iter().next() {
            Some(Arg::Simple(name)) => String::from_utf8_lossy(name).into_owned(),
            _ => String::new(),
        };
        let answer = Self::new(server, command, code, error.detail().unwrap_or_default());
        Some(Self { redirect: Redirect::of(error), ..answer })
    }

    /// Creates an answer from an error line, without its minus sign, that was received while connecting.
    pub(super) fn of_line(command: &str, line: &str) -> Self {
        let (code, detail) = line.split_once(' ').unwrap_or((line, ""));
        Self::new(Some("it".to_owned()), command.to_owned(), code, detail)
    }

    fn new<'a>(
        server: Option<String>,
        command: String,
        mut code: &'a str,
        mut detail: &'a str,
    ) -> Self {
        // Our scripts write only in their last step, so an error that aborted a script occurred before the
        // write. A proxy may echo a record in a message of its own, so such an error counts only in its exact
        // form, and only in answer to a script.
        let is_script = matches!(command.as_str(), "EVAL" | "EVALSHA");
        let mut ended_script = false;
        if is_script && code == "ERR" {
            if let Some(inner) = error_before_redis_7(detail) {
                ended_script = true;
                if let Some(inner) = inner.strip_prefix('-') {
                    (code, detail) = inner.split_once(' ').unwrap_or((inner, ""));
                }
            } else {
                ended_script = SCRIPT_ERRORS.iter().any(|error| detail.starts_with(error.1))
                    && ends_with_place_in_script(detail);
            }
        }
        let is_code =
            (1..=20).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_uppercase());
        let certainty = if ended_script || proves_nothing_written(code, detail) {
            Certainty::NothingWritten
        } else {
            Certainty::Unknown
        };
        Self {
            server,
            command,
            code: if is_code { code.to_owned() } else { String::new() },
            known: match is_code {
                true => KNOWN
                    .iter()
                    .chain(SCRIPT_ERRORS)
                    .find(|known| known.0 == code && detail.contains(known.1)),
                false => {
                    let line = format!("{code} {detail}");
                    KNOWN.iter().find(|known| known.0.is_empty() && line.starts_with(known.1))
                }
            },
            certainty,
            redirect: None,
            source: Source::Server,
        }
    }

    /// Returns whether the error usually passes without an operator's action, so that a retry makes sense.
    pub(super) fn is_passing(&self) -> bool {
        matches!(
            self.code.as_str(),
            "NOAUTH" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "BUSY" | "TRYAGAIN"
        ) || match self.source {
            Source::ClusterNode => self.is_redirect(),
            // Another server is the master by now or will be soon.
            Source::Master => matches!(self.code.as_str(), "READONLY" | "NOREPLICAS"),
            Source::Server | Source::Sentinel => false,
        }
    }

    /// Returns whether the answer redirects to another cluster node, which has the key.
    pub(super) fn is_redirect(&self) -> bool {
        matches!(self.code.as_str(), "MOVED" | "ASK")
    }

    /// Returns whether the server says that it is not a cluster node.
    pub(super) fn is_of_no_cluster(&self) -> bool {
        self.known.is_some_and(|known| known.1 == NO_CLUSTER)
    }

    /// Returns whether it is certain that nothing was written. An error code that only a proxy uses proves
    /// nothing: the proxy may have forwarded the command.
    pub(super) fn is_of_nothing_written(&self) -> bool {
        self.certainty == Certainty::NothingWritten
    }

    /// Returns whether the server's name may by now lead to a different server.
    pub(super) fn is_of_the_wrong_server(&self) -> bool {
        matches!(self.code.as_str(), "NOAUTH" | "LOADING" | "MASTERDOWN" | "READONLY")
    }

    /// Returns whether the answer could come from a server that is no longer the master and whose replicas
    /// now follow another server.
    pub(super) fn is_of_perhaps_the_wrong_server(&self) -> bool {
        self.code == "NOREPLICAS"
    }

    /// Returns the cluster node to which the command should be sent instead of the node that answered.
    pub(super) fn redirect(&self) -> Option<&Redirect> {
        self.redirect.as_ref()
    }

    /// Returns whether other nodes of the cluster may know better which node has the key.
    pub(super) fn is_of_changing_cluster(&self) -> bool {
        self.is_of_the_wrong_server()
            || self.is_redirect()
            || matches!(self.code.as_str(), "CLUSTERDOWN" | "TRYAGAIN")
    }

    /// Returns whether the server does not know the command at all. A Sentinel knows none of the store's
    /// commands.
    pub(super) fn is_unknown_command(&self) -> bool {
        self.known.is_some_and(|known| known.1 == UNKNOWN_COMMAND)
    }

    /// Returns whether the server does not know the command in this form, or does not permit it.
    pub(super) fn is_of_no_such_command(&self) -> bool {
        let is_unknown = |known: &Known| [UNKNOWN_COMMAND, SYNTAX_ERROR].contains(&known.1);
        self.code == "NOPERM" || self.known.is_some_and(is_unknown)
    }

    /// Returns whether the user lacks a permission. Returns `false` for an error inside a script.
    pub(super) fn is_of_permission(&self) -> bool {
        self.code == "NOPERM"
    }

    /// Returns whether the user may run the command, but not on this key.
    pub(super) fn is_of_key_permission(&self) -> bool {
        self.is_of_permission() && self.known.is_some_and(|known| known.1.ends_with("to access"))
    }

    /// Marks the answer as coming from a server that has identified itself as a Sentinel.
    pub(super) fn of_sentinel(self) -> Self {
        Self { source: Source::Sentinel, ..self }
    }

    /// Marks the answer as coming from a server that the store uses as a cluster node.
    pub(super) fn of_cluster_node(self) -> Self {
        Self { source: Source::ClusterNode, ..self }
    }

    /// Marks the answer as coming from the server that the Sentinels named as the master.
    pub(super) fn of_master(self) -> Self {
        Self { source: Source::Master, ..self }
    }

    /// Returns the explanation to print in the error.
    fn meaning(&self, meaning: &'static str) -> &'static str {
        match (self.source, self.code.as_str()) {
            (Source::Sentinel, _) => SENTINEL,
            (Source::Server, "ERR") if self.command == "SENTINEL" && meaning == RENAMED => {
                NO_SENTINEL
            }
            (Source::ClusterNode, "MOVED" | "ASK") if self.redirect.is_none() => {
                "the node redirected to an address that cannot be used"
            }
            (Source::ClusterNode, "MOVED" | "ASK") => {
                "the nodes of the cluster redirect to each other"
            }
            (Source::ClusterNode, "TRYAGAIN") => SLOT_MOVING,
            (Source::ClusterNode, "CLUSTERDOWN") => SLOT_DOWN,
            (Source::ClusterNode, _) if meaning == CLUSTER => NO_DATABASES,
            _ => meaning,
        }
    }
}

/// Returns the error from a command inside a script. Before version 7, Redis wraps it like this:
/// `Error running script (call to f_HASH): @user_script:LINE: ERROR`.
fn error_before_redis_7(detail: &str) -> Option<&str> {
    let (hash, rest) = detail.strip_prefix("Error running script (call to f_")?.split_once(')')?;
    let (line, error) = rest.strip_prefix(": @user_script:")?.split_once(": ")?;
    let is_hash = hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_hash && is_number(line)).then_some(error)
}

/// Returns whether the message ends like a script error from Redis 7 or Valkey: `on @user_script:LINE.`
fn ends_with_place_in_script(detail: &str) -> bool {
    let line =
        detail.trim_end().strip_suffix('.').and_then(|text| text.rsplit_once("on @user_script:"));
    line.is_some_and(|(_, line)| is_number(line))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns whether the server sends this error before it carries out any part of the command.
fn proves_nothing_written(code: &str, detail: &str) -> bool {
    match code {
        "OOM" | "READONLY" | "MISCONF" | "NOREPLICAS" | "WRONGTYPE" | "NOPERM" | "NOAUTH"
        | "LOADING" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "MOVED" | "ASK"
        | "CROSSSLOT" | "NOSCRIPT" => true,
        "ERR" => [UNKNOWN_COMMAND, SYNTAX_ERROR, "wrong number"]
            .into_iter()
            .any(|beginning| detail.starts_with(beginning)),
        _ => false,
    }
}

/// Describes why a command that was sent while connecting failed, without anything that the server may have
/// echoed.
pub(super) fn explained(command: &Cmd, error: &RedisError) -> String {
    match Answer::of(Some("it".to_owned()), command, error) {
        Some(answer) => answer.to_string(),
        None => reason(error),
    }
}

/// Describes what happened, without anything that the server may have echoed.
pub(super) fn reason(error: &RedisError) -> String {
    if error.is_io_error() { error.to_string() } else { error.category().to_owned() }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server = self.server.as_deref().unwrap_or("redis");
        write!(f, "{server} answered {} with ", self.command)?;
        let Some((_, text, meaning)) = self.known else {
            return f.write_str(if self.code.is_empty() { "an unknown error" } else { &self.code });
        };
        let between = if self.code.is_empty() || text.is_empty() { "" } else { " " };
        write!(f, "{}{between}{text}", self.code)?;
        match self.server {
            None => Ok(()),
            Some(_) => write!(f, ": {}", self.meaning(meaning)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use ::redis::{ErrorKind as Said, cmd, parse_redis_value};

    use super::*;

    fn answer(line: &str) -> Answer {
        answer_to("SET", line)
    }

    fn answer_to(command: &str, line: &str) -> Answer {
        let value = parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        let error = value.extract_error().unwrap_err();
        Answer::of(Some("it".to_owned()), cmd(command).arg("k").arg("private"), &error).unwrap()
    }

    #[test]
    fn error_code_is_found_inside_script_error() {
        for (line, code) in [
            ("OOM command not allowed", "OOM"),
            ("OOM command not allowed script: 5f, on @user_script:2.", "OOM"),
            ("READONLY You can't write", "READONLY"),
            ("ERR Error running script (call to f_5f): @user_script:2: -READONLY You", "READONLY"),
            ("ERR Error running script (call to f_5f): @user_script:2: -OOM", "OOM"),
            ("LOADING Redis is loading", "LOADING"),
            ("ERR something else: no", "ERR"),
            ("ERR upstream: -OOM no", "ERR"),
            ("MISCONF @user_script:2: -OOM no", "MISCONF"),
            ("TWENTYLETTERSLONGCODE x", ""),
            ("TWENTYLETTERLONGCODE x", "TWENTYLETTERLONGCODE"),
            ("Err x", ""),
            ("ERR2 x", ""),
        ] {
            assert_eq!(answer_to("EVALSHA", line).code, code, "{line}");
        }
    }

    #[test]
    fn only_known_errors_prove_that_nothing_was_written() {
        for (line, certain) in [
            ("OOM command not allowed", true),
            ("READONLY You can't write", true),
            ("MOVED 3999 127.0.0.1:6381", true),
            ("ASK 3999 127.0.0.1:6381", true),
            ("CROSSSLOT Keys in request don't hash to the same slot", true),
            ("TRYAGAIN Multiple keys request during rehashing of slot", true),
            ("CLUSTERDOWN Hash slot not served", true),
            ("MASTERDOWN Link with MASTER is down", true),
            ("MISCONF Redis is configured to save RDB snapshots", true),
            ("NOREPLICAS Not enough good replicas to write.", true),
            ("WRONGTYPE Operation against a key holding the wrong kind of value", true),
            ("NOAUTH Authentication required.", true),
            ("LOADING Redis is loading the dataset in memory", true),
            ("BUSY Redis is busy running a script.", true),
            ("NOSCRIPT No matching script. Please use EVAL.", true),
            ("ERR Error running script (call to f_5f): @user_script:2: -OOM", true),
            ("ERR unknown command 'EVALSHA', with args beginning with: 'x'", true),
            ("ERR wrong number of arguments for 'set' command", true),
            ("ERR syntax error", true),
            ("NOPERM User app has no permissions to run the 'evalsha' command", true),
            // Redis 7, 6.2, Valkey 9.
            (
                "ERR The user executing the script can't run this command or subcommand script: 5f, on @user_script:2.",
                true,
            ),
            ("ERR Unknown Redis command called from script script: 5f, on @user_script:2.", true),
            (
                "ERR Error running script (call to f_5f): @user_script:2: @user_script: 2: The user executing the script can't run this command or subcommand",
                true,
            ),
            (
                "ERR Error running script (call to f_5f): @user_script:2: @user_script: 2: Unknown Redis command called from Lua script",
                true,
            ),
            (
                "ERR ACL failure in script: User app has no permissions to run the 'set' command script: on @user_script:1.",
                true,
            ),
            ("ERR Unknown command called from script script: on @user_script:1.", true),
            ("ERR upstream connection lost after the request was sent", false),
            ("ERR the server said: unknown command", false),
            ("ERR upstream: -OOM no", false),
            ("ERR", false),
            ("EXECABORT Transaction discarded", false),
            ("UPSTREAM failure", false),
        ] {
            assert_eq!(answer_to("EVAL", line).is_of_nothing_written(), certain, "{line}");
        }
    }

    /// A proxy may echo a record, and thus any text that a visitor has chosen.
    #[test]
    fn repeated_record_does_not_pass_for_end_of_script() {
        const DENIED: &str = "The user executing the script can't run this command";
        for line in [
            "ERR lost after sending SET k @user_script: : -READONLY x".to_owned(),
            "ERR lost after sending SET k @user_script:2: -READONLY x".to_owned(),
            "ERR lost after sending SET k script: 5f, on @user_script:2.".to_owned(),
            format!("ERR lost after sending {DENIED} script: 5f, on @user_script:2."),
            format!("ERR {DENIED} was lost"),
            format!("ERR {DENIED} on @user_script:2. and on"),
            format!("ERR {DENIED} on @user_script:x."),
            format!("UPSTREAM {DENIED} script: 5f, on @user_script:2."),
            "ERR lost: Error running script (call to f_5f): @user_script:2: -OOM".to_owned(),
            "ERR Error running script (call to f_x): @user_script:2: -OOM".to_owned(),
            "ERR Error running script (call to f_5f): @user_script:x: -OOM".to_owned(),
            "ERR Error running script (call to f_5f): lost @user_script:2: -OOM".to_owned(),
        ] {
            assert!(!answer_to("EVALSHA", &line).is_of_nothing_written(), "{line}");
        }
        // If the command runs no script, none of these forms proves anything.
        for line in [
            format!("ERR {DENIED} script: 5f, on @user_script:2."),
            "ERR Error running script (call to f_5f): @user_script:2: -OOM".to_owned(),
        ] {
            assert!(answer_to("EVALSHA", &line).is_of_nothing_written(), "{line}");
            assert!(!answer_to("SET", &line).is_of_nothing_written(), "{line}");
        }
    }

    #[test]
    fn only_known_texts_are_printed() {
        for (line, printed) in [
            (
                "ERR unknown command 'EVALSHA', with args beginning with: '5f' 'private'",
                "it answered SET with ERR unknown command: the command is disabled",
            ),
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                "OOM command not allowed when",
            ),
            ("MOVED 3999 private:6381", "it answered SET with MOVED: the server is a node of"),
            ("READONLY private", "it answered SET with READONLY: the server is a replica"),
            ("ERR cannot send SET k private", "it answered SET with ERR"),
            ("UPSTREAM private", "it answered SET with UPSTREAM"),
            ("ERR max number of clients + cluster", "ERR max number of clients: raise maxclients"),
            ("no upstream host", "it answered SET with no upstream host: a proxy has no server"),
            ("upstream failure private", "SET with upstream failure: a proxy has lost"),
            ("private", "it answered SET with an unknown error"),
            ("PRIVATEPRIVATEPRIVATEPRIVATE x", "it answered SET with an unknown error"),
            (
                "NOPERM User private has no permissions to run the 'set' command",
                "NOPERM no permissions to run:",
            ),
        ] {
            let answer = answer(line);
            let text = format!("{answer} {answer:?}");
            assert!(text.contains(printed), "{text}");
            assert!(!text.to_lowercase().contains("private"), "{text}");
        }
    }

    #[test]
    fn redirect_names_a_place() {
        let answered = Place::tcp("seed.example", 1);
        for (line, expected) in [
            ("MOVED 3999 127.0.0.1:6381", Some((false, "127.0.0.1:6381"))),
            ("ASK 3999 Node-1.example:6381", Some((true, "node-1.example:6381"))),
            ("MOVED 16383 2001:db8::1:6381", Some((false, "[2001:db8::1]:6381"))),
            ("MOVED 0 :6381", Some((false, "seed.example:6381"))),
            ("MOVED 0 ?:6381", Some((false, "seed.example:6381"))),
            ("MOVED 0 0.0.0.0:6381", Some((false, "seed.example:6381"))),
            ("MOVED 16384 h:6381", None),
            ("MOVED 70000 h:6381", None),
            ("MOVED h:6381", None),
            ("MOVED 0 h", None),
            ("MOVED 0 h:0", None),
            ("MOVED 0 h:65536", None),
            ("MOVED 0 u:p@h:6381", None),
            ("MOVED 0 h%00:6381", None),
            ("MOVED", None),
            ("ERR MOVED 0 h:6381", None),
        ] {
            let answer = answer(line);
            let redirect = answer
                .redirect()
                .map(|redirect| (redirect.is_ask, redirect.place(&answered).unwrap().to_string()));
            let expected = expected.map(|(is_ask, place)| (is_ask, place.to_owned()));
            assert_eq!(redirect, expected, "{line}");
            let unix = Place::Unix("/r.sock".into());
            let has_host = line.contains("127") || line.contains("Node") || line.contains("db8");
            let place = answer.redirect().and_then(|redirect| redirect.place(&unix));
            assert_eq!(place.is_some(), has_host, "{line}");
        }
    }

    #[test]
    fn node_of_cluster_is_understood_as_one() {
        for (line, is_passing, printed) in [
            ("MOVED 1 h:1", true, "MOVED: the nodes of the cluster redirect to each other"),
            ("ASK 1 h:1", true, "ASK: the nodes of the cluster redirect to each other"),
            ("MOVED 1 h:0", true, "MOVED: the node redirected to an address that cannot be used"),
            ("TRYAGAIN x", true, SLOT_MOVING),
            ("CLUSTERDOWN Hash slot not served", true, SLOT_DOWN),
            ("CLUSTERDOWN The cluster is down", true, SLOT_DOWN),
            ("ERR SELECT is not allowed in cluster mode", false, NO_DATABASES),
            ("CROSSSLOT x", false, "CROSSSLOT"),
            ("OOM command not allowed when used memory", false, "memory is full"),
        ] {
            let answer = answer(line).of_cluster_node();
            assert!(answer.to_string().contains(printed), "{answer}");
            assert_eq!(answer.is_passing(), is_passing, "{line}");
        }
        assert!(!answer("MOVED 1 h:1").is_passing());
        let no_cluster = answer("ERR This instance has cluster support disabled");
        assert!(no_cluster.is_of_no_cluster());
        assert!(no_cluster.to_string().contains("the server is not a node of a cluster"));
        assert!(!answer("ERR syntax error").is_of_no_cluster());
    }

    #[test]
    fn codes_decide_what_happens_next() {
        for (line, meanings) in [
            ("NOAUTH Authentication required.", "passing elsewhere"),
            ("LOADING Redis is loading the dataset in memory", "passing elsewhere"),
            ("MASTERDOWN Link with MASTER is down", "passing elsewhere"),
            ("CLUSTERDOWN The cluster is down", "passing"),
            ("BUSY Redis is busy running a script.", "passing"),
            ("TRYAGAIN Multiple keys request during rehashing of slot", "passing"),
            ("READONLY You can't write against a read only replica.", "elsewhere"),
            ("NOPERM User app has no permissions to run the 'delex' command", "impossible"),
            ("NOPERM something else", "impossible"),
            ("ERR syntax error", "impossible"),
            ("ERR unknown command 'DELEX', with args", "unknown impossible"),
            ("ERR unknown subcommand 'SETINFO'", ""),
            ("ERR wrong number of arguments for 'delex' command", ""),
            ("ERR something else", ""),
            ("OOM command not allowed when used memory > 'maxmemory'.", ""),
            ("MISCONF Redis is configured to save RDB snapshots", ""),
            ("WRONGPASS invalid username-password pair or user is disabled.", ""),
            ("UPSTREAM unknown command", ""),
        ] {
            let answer = answer(line);
            let found = [
                (answer.is_passing(), "passing"),
                (answer.is_of_the_wrong_server(), "elsewhere"),
                (answer.is_unknown_command(), "unknown"),
                (answer.is_of_no_such_command(), "impossible"),
            ];
            let found: Vec<_> =
                found.into_iter().filter_map(|(is_so, name)| is_so.then_some(name)).collect();
            assert_eq!(found.join(" "), meanings, "{line}");
        }
    }

    /// These are actual answers from Redis, Valkey and proxies.
    #[test]
    fn meaning_of_error_is_printed() {
        for (line, printed) in [
            ("ERR unknown subcommand 'SETINFO'. Try CLIENT HELP.", RENAMED),
            (
                "ERR wrong number of arguments for 'set' command",
                "the server is not Redis 6.2 or newer",
            ),
            ("ERR syntax error", "does not know this form"),
            (
                "ERR The user executing the script can't access at least one of the keys mentioned in the command arguments script: 5f, on @user_script:2.",
                PERMISSION,
            ),
            ("no upstream host", "a proxy has no server"),
            ("upstream failure", "a proxy has lost its connection"),
            (
                "NOPERM this user has no permissions to access one of the keys",
                "NOPERM no permissions to access: ",
            ),
            ("NOPERM No permissions to access a key", "NOPERM No permissions to access: "),
            ("ERR DB index is out of range", "has no database with that number"),
            ("ERR SELECT is not allowed in cluster mode", CLUSTER),
            (
                "ERR AUTH <password> called without any password configured for the default user.",
                "has no password for its default user",
            ),
            ("ERR The user executing the script can't run this command", SCRIPT_PERMISSION),
            ("ERR ACL failure in script: User app has no permissions", SCRIPT_PERMISSION),
            ("ERR Unknown Redis command called from script script: 5f", SCRIPT_RENAMED),
            ("ERR Unknown command called from script script: on", SCRIPT_RENAMED),
            ("NOAUTH Authentication required.", "and none is given"),
            ("DENIED Redis is running in protected mode", "connections from its own machine"),
            ("MASTERDOWN Link with MASTER is down", "has lost its master"),
            ("LOADING Redis is loading the dataset in memory", "is starting and reads its data"),
            ("CLUSTERDOWN Hash slot not served", "CLUSTERDOWN Hash slot not served: "),
            ("NOPERM private", PERMISSION),
            (
                "NOAUTH HELLO must be called with the client already authenticated",
                "asks for a password",
            ),
            ("ASK 3999 127.0.0.1:6381", CLUSTER),
            ("TRYAGAIN Multiple keys request during rehashing of slot", CLUSTER),
            ("CROSSSLOT Keys in request don't hash to the same slot", CLUSTER),
            ("CLUSTERDOWN The cluster is down", "CLUSTERDOWN The cluster is down: "),
            ("CLUSTERDOWN private", CLUSTER),
            (
                "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
                "cannot write to its disk",
            ),
            (
                "MISCONF Errors writing to the AOF file: No space left on device",
                "cannot write to its disk",
            ),
            ("NOREPLICAS Not enough good replicas to write.", "min-replicas-to-write"),
            (
                "BUSY Redis is busy running a script. You can only call SCRIPT KILL",
                "script is blocking the server",
            ),
            (
                "WRONGTYPE Operation against a key holding the wrong kind of value",
                "keeps something else under the key",
            ),
            ("NOSCRIPT No matching script. Please use EVAL.", "forgotten before it could be run"),
        ] {
            let text = answer(line).to_string();
            assert!(text.starts_with("it answered SET with ") && text.contains(printed), "{text}");
            assert!(!text.contains("private"), "{text}");
        }
        let sentinel = answer("ERR unknown command 'SET'").of_sentinel().to_string();
        assert_eq!(sentinel, format!("it answered SET with ERR unknown command: {SENTINEL}"));
    }

    /// For a connection made by the application, advice about addresses is of no use.
    #[test]
    fn answer_on_application_connection_is_not_explained() {
        let error =
            parse_redis_value(b"-READONLY You can't write against a read only replica.\r\n");
        let error = error.unwrap().extract_error().unwrap_err();
        let answer = Answer::of(None, &cmd("SET"), &error).unwrap();
        let text = "redis answered SET with READONLY You can't write against a read only replica";
        assert_eq!(answer.to_string(), text);
    }

    #[test]
    fn reason_repeats_nothing_of_the_server() {
        let error = io::Error::other("the network is gone");
        assert_eq!(reason(&error.into()), "the network is gone");
        let error = RedisError::from((Said::Parse, "no valid answer", "private".to_owned()));
        assert_eq!(reason(&error), error.category());
        assert!(!error.category().is_empty());
        assert!(error.to_string().contains("private"));
    }
}
