//! Parses addresses such as `redis://[user:password@]host[:port][/database]`.
//!
//! The `redis` crate can parse addresses too, but it ignores fragments, unknown options and users without
//! passwords. With its parser, mistakes would go unnoticed, and a password that is not percent-encoded could
//! be taken for a host name and appear in a log.

use std::fmt;

use ::redis::{ProtocolVersion, RedisConnectionInfo};

use crate::store::address::{ConnectError, bracketed};
use crate::store::redis::place::Place;
use crate::store::redis::tls::Tls;

const DEFAULT_PORT: u16 = 6379;
const DEFAULT_SENTINEL_PORT: u16 = 26379;

/// The parts of an address.
#[derive(Debug)]
pub(super) struct Address {
    pub(super) servers: Servers,
    pub(super) login: RedisConnectionInfo,
    pub(super) tls: Option<Tls>,
}

/// The servers that an address names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Servers {
    One(Place),
    /// Some nodes of a cluster. Each node knows all the others.
    Cluster(Vec<Place>),
    /// Sentinels, and the name under which they watch the master.
    Sentinel {
        sentinels: Vec<Place>,
        master: String,
    },
}

impl Servers {
    /// Adds the servers to the output of `Debug`, without a user name or password.
    pub(super) fn describe(&self, debug: &mut fmt::DebugStruct<'_, '_>) {
        let list =
            |places: &[Place]| -> Vec<String> { places.iter().map(Place::to_string).collect() };
        match self {
            Self::One(place) => debug.field("server", &place.to_string()),
            Self::Cluster(nodes) => debug.field("cluster", &list(nodes)),
            Self::Sentinel { sentinels, master } => {
                debug.field("master", master).field("sentinels", &list(sentinels))
            }
        };
    }
}

/// Parses an address. Errors quote no part of the address.
pub(super) fn parse(url: &str) -> Result<Address, ConnectError> {
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let (kind, is_encrypted) = match scheme {
        "redis" | "valkey" => (Kind::One, false),
        "rediss" | "valkeys" => (Kind::One, true),
        "redis+cluster" | "valkey+cluster" => (Kind::Cluster, false),
        "rediss+cluster" | "valkeys+cluster" => (Kind::Cluster, true),
        "redis+sentinel" | "valkey+sentinel" => (Kind::Sentinel, false),
        "rediss+sentinel" | "valkeys+sentinel" => (Kind::Sentinel, true),
        "redis+unix" | "unix" => (Kind::Unix, false),
        _ => {
            return Err(ConnectError::address(
                "a redis address begins with redis://, redis+cluster:// or redis+sentinel:// (with rediss, \
                 valkey or valkeys in place of redis), or with redis+unix:// or unix://",
            ));
        }
    };
    if rest.contains(|char: char| char.is_whitespace() || char.is_control()) {
        return Err(ConnectError::address(
            "it contains a space or a line break; remove it, or write a space in a password as %20",
        ));
    }
    if rest.contains('#') {
        return Err(ConnectError::address(format!(
            "it contains a fragment (`#`), which has no meaning in an address; {ENCODE}"
        )));
    }
    let (place, options) =
        rest.split_once('?').map_or((rest, None), |(place, options)| (place, Some(options)));
    if is_encrypted && options.is_some_and(|options| options.contains('@')) {
        // Otherwise the end of a password could be taken for a file name, and errors quote file names.
        return Err(ConnectError::address(ENCODE_AT));
    }
    let (tls, options): (Vec<_>, Vec<_>) = pairs(options)?
        .into_iter()
        .partition(|(name, _)| matches!(name.as_str(), "cacert" | "cert" | "key" | "sni"));
    if !is_encrypted && !tls.is_empty() {
        return Err(ConnectError::address(
            "the options cacert, cert, key and sni need TLS; write rediss:// or valkeys:// at the \
             beginning",
        ));
    }
    let (servers, login) = match kind {
        Kind::Unix => unix(place, options)?,
        _ => tcp(kind, place, options)?,
    };
    let tls = is_encrypted.then(|| Tls::of_options(tls)).transpose()?;
    Ok(Address { servers, login, tls })
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    One,
    Cluster,
    Sentinel,
    Unix,
}

const ENCODE: &str = "if it is part of a password, note that `#`, `?`, `/`, `@` and `%` must be \
                      percent-encoded there";

const ENCODE_AT: &str = "it contains an `@` in the wrong place; `#`, `?`, `/`, `@` and `%` in a user \
                         name, a \
                         password or an option must be percent-encoded";

const NO_PASSWORD: &str =
    "it has a user name but no password; write user:password, or :password for a password alone";

type Parts = (Servers, RedisConnectionInfo);
type Options = Vec<(String, String)>;

fn tcp(kind: Kind, place: &str, options: Options) -> Result<Parts, ConnectError> {
    let (authority, path) = place.split_once('/').unwrap_or((place, ""));
    let mut login = RedisConnectionInfo::default();
    let hosts = match authority.rsplit_once('@') {
        None => authority,
        Some((credentials, hosts)) => {
            let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
            if credentials.contains('@') {
                return Err(ConnectError::address(ENCODE_AT));
            }
            if password.is_empty() {
                return Err(ConnectError::address(NO_PASSWORD));
            }
            if !user.is_empty() {
                login = login.set_username(decoded(user)?);
            }
            login = login.set_password(decoded(password)?);
            hosts
        }
    };
    let (servers, path) = match kind {
        Kind::Cluster => {
            let places = server_list(hosts, DEFAULT_PORT)?;
            if !path.is_empty() {
                return Err(ConnectError::address(format!(
                    "a cluster has no numbered databases, so no path may follow its nodes; {ENCODE}"
                )));
            }
            (Servers::Cluster(places), "")
        }
        Kind::Sentinel => {
            let sentinels = server_list(hosts, DEFAULT_SENTINEL_PORT)?;
            let (master, path) = path.split_once('/').unwrap_or((path, ""));
            if master.is_empty() {
                return Err(ConnectError::address(
                    "the name of the master that the Sentinels watch is missing; write it as a path: \
                     redis+sentinel://HOST,HOST/MASTER",
                ));
            }
            (Servers::Sentinel { sentinels, master: master_name(master)? }, path)
        }
        Kind::One | Kind::Unix => {
            if hosts.contains(',') {
                return Err(ConnectError::address(
                    "it names more than one server; write redis+cluster:// for a cluster, or \
                     redis+sentinel:// for Sentinels",
                ));
            }
            (Servers::One(server(hosts, DEFAULT_PORT)?), path)
        }
    };
    if !path.is_empty() {
        login = login.set_db(database(path)?);
    }
    for (name, value) in options {
        login = match name.as_str() {
            "protocol" => login.set_protocol(protocol(&value)?),
            _ => {
                return Err(ConnectError::address(format!(
                    "it has an option other than protocol and, with TLS, cacert, cert, key and sni; \
                     {ENCODE}"
                )));
            }
        };
    }
    Ok((servers, login))
}

/// Parses a list of servers, separated by commas. Refuses duplicates.
fn server_list(text: &str, default_port: u16) -> Result<Vec<Place>, ConnectError> {
    let mut places = Vec::new();
    for text in text.split(',') {
        let place = server(text, default_port)?;
        if places.contains(&place) {
            return Err(ConnectError::address("it lists the same server twice; remove one"));
        }
        places.push(place);
    }
    Ok(places)
}

fn is_name(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
}

/// Parses the name of a master. Only the characters that Sentinel accepts are allowed.
fn master_name(text: &str) -> Result<String, ConnectError> {
    let name = decoded(text)?;
    is_name(&name).then_some(name).ok_or_else(|| {
        ConnectError::address(
            "the name of the master may contain only letters, digits, `.`, `-` and `_`",
        )
    })
}

fn unix(path: &str, options: Options) -> Result<Parts, ConnectError> {
    if !path.starts_with('/') {
        return Err(ConnectError::address(
            "the path of a socket is absolute, so three slashes follow the scheme: unix:///path/to/socket",
        ));
    }
    if path.ends_with('/') {
        return Err(ConnectError::address(
            "it has no path to a socket; write unix:///path/to/socket",
        ));
    }
    let mut settings = RedisConnectionInfo::default();
    for (name, value) in options {
        settings = match name.as_str() {
            "db" => settings.set_db(database(&value)?),
            "user" => settings.set_username(value),
            "pass" => settings.set_password(value),
            "protocol" => settings.set_protocol(protocol(&value)?),
            _ => {
                return Err(ConnectError::address(format!(
                    "it has an option other than db, user, pass and protocol; {ENCODE}"
                )));
            }
        };
    }
    if settings.username().is_some() && settings.password().is_none() {
        return Err(ConnectError::address(NO_PASSWORD));
    }
    Ok((Servers::One(Place::Unix(decoded(path)?.into())), settings))
}

fn server(text: &str, default_port: u16) -> Result<Place, ConnectError> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = bracketed(rest)?;
        if host.is_unspecified() {
            return Err(ConnectError::address(WILDCARD));
        }
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(port),
            None if rest.is_empty() => None,
            None => {
                return Err(ConnectError::address("only `:PORT` may follow the closing bracket"));
            }
        };
        (host.to_string(), port)
    } else {
        let (host, port) =
            text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
        if port.is_some_and(|port| port.contains(':')) {
            return Err(ConnectError::address(
                "an IPv6 address must be in brackets, as in [::1]:6379",
            ));
        }
        if host.is_empty() {
            return Err(ConnectError::address(
                "the server has no name; write its host name or IP address",
            ));
        }
        if !is_name(host) {
            return Err(ConnectError::address(
                "the server's name is not a host name; it may contain only letters, digits, `.`, `-` \
                 and `_`",
            ));
        }
        if host == "0.0.0.0" {
            return Err(ConnectError::address(WILDCARD));
        }
        (host.to_ascii_lowercase(), port)
    };
    let port = match port.map(number::<u16>) {
        None => default_port,
        Some(Some(port @ 1..)) => port,
        Some(_) => {
            return Err(ConnectError::address(format!(
                "the port is not a number from 1 to 65535; {ENCODE}"
            )));
        }
    };
    Ok(Place::Tcp { host, port })
}

const WILDCARD: &str =
    "its host, 0.0.0.0 or [::], means every address of a machine; write the address of one server";

fn database(text: &str) -> Result<i64, ConnectError> {
    let database = number::<u32>(text).map(i64::from);
    database.ok_or_else(|| {
        ConnectError::address(format!(
            "the database is not a number, as in redis://host/1; {ENCODE}"
        ))
    })
}

/// Parses a number that consists of digits only. The standard library would also accept a sign.
fn number<N: std::str::FromStr>(text: &str) -> Option<N> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn protocol(text: &str) -> Result<ProtocolVersion, ConnectError> {
    match text {
        "2" | "resp2" => Ok(ProtocolVersion::RESP2),
        "3" | "resp3" => Ok(ProtocolVersion::RESP3),
        _ => Err(ConnectError::address("the option protocol is neither resp2 nor resp3")),
    }
}

/// Returns the names and values of the options.
fn pairs(options: Option<&str>) -> Result<Options, ConnectError> {
    let mut pairs = Options::new();
    for option in options.into_iter().flat_map(|options| options.split('&')) {
        let (name, value) =
            option.split_once('=').filter(|(_, value)| !value.is_empty()).ok_or_else(|| {
                ConnectError::address(format!("an option has no value (`name=value`); {ENCODE}"))
            })?;
        // In form encoding, `+` means a space; elsewhere it means itself.
        if value.contains('+') {
            return Err(ConnectError::address("a `+` in an option's value must be written %2B"));
        }
        let name = decoded(name)?;
        if pairs.iter().any(|(other, _)| *other == name) {
            return Err(ConnectError::address("the same option is given twice; remove one"));
        }
        pairs.push((name, decoded(value)?));
    }
    Ok(pairs)
}

/// Decodes percent-encoded text.
fn decoded(text: &str) -> Result<String, ConnectError> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let byte = part
            .get(..2)
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .ok_or_else(|| {
                ConnectError::address(
                    "a `%` is not followed by two hexadecimal digits; write the character itself as %25",
                )
            })?;
        bytes.push(byte);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes)
        .map_err(|_| ConnectError::address("the percent-encoded text is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_address_are_read() {
        for (url, server, database, user, password) in [
            ("redis://h", "h:6379", 0, None, None),
            ("redis://Cache-1.internal:1/", "cache-1.internal:1", 0, None, None),
            ("redis://:p%40%23%3f%25@h:7/3", "h:7", 3, None, Some("p@#?%")),
            ("rediss://u%3A:p@[::1]:7/15", "[::1]:7", 15, Some("u:"), Some("p")),
            ("valkey://u:p%C3%A4@10.0.0.1", "10.0.0.1:6379", 0, Some("u"), Some("pä")),
            ("redis://[::1]", "[::1]:6379", 0, None, None),
            ("valkeys://h/2?protocol=resp3", "h:6379", 2, None, None),
            ("redis://h?protocol=3", "h:6379", 0, None, None),
            ("redis://h?protocol=resp2", "h:6379", 0, None, None),
            ("unix:///r?protocol=2", "/r", 0, None, None),
            ("redis+unix:///run/r.sock", "/run/r.sock", 0, None, None),
            ("redis://u:p:=+&@h", "h:6379", 0, Some("u"), Some("p:=+&")),
            ("unix:///r%20r?db=3&user=u&pass=a%2Bb=", "/r r", 3, Some("u"), Some("a+b=")),
        ] {
            let is_encrypted = url.starts_with("rediss") || url.starts_with("valkeys");
            if is_encrypted && cfg!(not(feature = "redis-tls")) {
                assert_eq!(parse(url).unwrap_err(), ConnectError::feature("redis-tls"));
                continue;
            }
            let Address { servers, login: settings, tls } = parse(url).unwrap();
            let Servers::One(place) = servers else { panic!("{url}: {servers:?}") };
            assert_eq!(place.to_string(), server, "{url}");
            assert_eq!(settings.db(), database, "{url}");
            assert_eq!(settings.username(), user, "{url}");
            assert_eq!(settings.password(), password, "{url}");
            assert_eq!(tls.is_some(), is_encrypted, "{url}");
            let resp3 = matches!(settings.protocol(), ProtocolVersion::RESP3);
            assert_eq!(resp3, url.ends_with("resp3") || url.ends_with("protocol=3"), "{url}");
        }
    }

    #[cfg(feature = "redis-tls")]
    #[test]
    fn tls_options_are_read() {
        for (options, expected) in [
            ("", "authority: None, client: None, server_name: None"),
            (
                "?sni=redis.example&protocol=3&cacert=/a%20b%2B%40.pem",
                "authority: Some(/a b+@.pem), client: None, server_name: Some(\"redis.example\")",
            ),
            (
                "?key=k.pem&cert=c.pem",
                "authority: None, client: Some(Client { certificate: c.pem, key: k.pem }), server_name: \
                 None",
            ),
        ] {
            let Address { login, tls, .. } = parse(&format!("rediss://u:p@h/{options}")).unwrap();
            assert_eq!(format!("{:?}", tls.unwrap()), format!("Tls {{ {expected} }}"));
            let resp3 = matches!(login.protocol(), ProtocolVersion::RESP3);
            assert_eq!(resp3, options.contains("protocol"));
        }
        for options in ["cert=/hunter2", "key=/hunter2"] {
            let error = parse(&format!("rediss://h?{options}")).unwrap_err().to_string();
            assert!(error.contains("needs both"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn address_of_several_servers_is_read() {
        let places = |list: &[(&str, u16)]| {
            list.iter().map(|(host, port)| Place::tcp(*host, *port)).collect::<Vec<_>>()
        };
        let (ab, abc) = (
            places(&[("a", 7000), ("b", 6379)]),
            places(&[("a", 7000), ("::1", 26379), ("c", 26379)]),
        );
        let cluster =
            |scheme: &str| (format!("{scheme}://u:p%40@A:7000,b/"), Servers::Cluster(ab.clone()));
        let sentinel = |scheme: &str| {
            let servers =
                Servers::Sentinel { sentinels: abc.clone(), master: "my-1.x_y".to_owned() };
            (format!("{scheme}://u:p%40@a:7000,[::1],c/my-1.x_y/3"), servers)
        };
        for (scheme, tls) in
            [("redis", false), ("rediss", true), ("valkey", false), ("valkeys", true)]
        {
            let several = [
                (cluster(&format!("{scheme}+cluster")), 0),
                (sentinel(&format!("{scheme}+sentinel")), 3),
            ];
            for ((url, servers), database) in several {
                if tls && cfg!(not(feature = "redis-tls")) {
                    assert_eq!(parse(&url).unwrap_err(), ConnectError::feature("redis-tls"));
                    continue;
                }
                let address = parse(&url).unwrap();
                assert_eq!(address.servers, servers, "{url}");
                assert_eq!(address.tls.is_some(), tls, "{url}");
                assert_eq!(address.login.db(), database, "{url}");
                assert_eq!(address.login.username(), Some("u"), "{url}");
                assert_eq!(address.login.password(), Some("p@"), "{url}");
            }
        }
    }

    #[test]
    fn unusable_address_is_refused_without_repeating_it() {
        for (url, reason) in [
            ("redis:h", "begins with"),
            ("unix:/hunter2", "begins with"),
            ("memcached://hunter2", "begins with"),
            ("redis://user:1234#hunter2@host", "fragment"),
            ("redis://:hunter2@h#insecure", "fragment"),
            ("rediss://:hunter2@h/#insecure", "fragment"),
            ("unix:///hunter2#x", "fragment"),
            ("redis://h?db=2", "other than protocol"),
            ("redis://h/?timeout=5s", "other than protocol"),
            ("redis://user:1234?hunter2@host", "no value"),
            ("redis://user:1234?x=hunter2@host", "other than protocol"),
            ("redis://h?protocol=hunter2", "resp2"),
            ("redis://h?protocol=3&protocol=3", "twice"),
            ("redis://h?protocol", "no value"),
            ("redis://h?", "no value"),
            ("redis://h?cacert=/hunter2", "need TLS"),
            ("valkey://h?sni=hunter2", "need TLS"),
            ("unix:///r?cert=/hunter2&key=/hunter2", "need TLS"),
            ("rediss://user:1234?cacert=hunter2@host", "percent-encoded"),
            ("rediss://h?cacert=/hunter2&cacert=/b", "twice"),
            ("rediss://h?key=", "no value"),
            ("rediss://h?insecure=hunter2", "other than protocol"),
            ("redis://user:1234/hunter2@host", "database"),
            ("redis://user:hunter2/1@host", "port"),
            ("redis://user:hunt@er2@host", "percent-encoded"),
            ("redis://:hunter2%@host", "%25"),
            ("redis://:hunter2%4@host", "%25"),
            ("redis://:hunter2%+1@host", "%25"),
            ("redis://:hunter2%ä@host", "%25"),
            ("redis://:hunter2%FF@host", "UTF-8"),
            ("redis://hunter2@host", "no password"),
            ("redis://hunter2:@host", "no password"),
            ("redis://@host", "no password"),
            ("redis://h/1/2", "database"),
            ("redis://h//1", "database"),
            ("redis://h/1/", "database"),
            ("redis://h/-1", "database"),
            ("redis://h/+1", "database"),
            ("redis://h/99999999999", "database"),
            ("redis://", "no name"),
            ("redis:///1", "no name"),
            ("redis://:6379", "no name"),
            ("redis://:hunter2@", "no name"),
            ("redis://h:0", "port"),
            ("redis://h:", "port"),
            ("redis://h:65536", "port"),
            ("redis://h:+1", "port"),
            ("redis://0.0.0.0", "every address"),
            ("redis://[::]", "every address"),
            ("redis://::1", "brackets"),
            ("redis://[::1", "bracket"),
            ("redis://[h]", "IPv6"),
            ("redis://[::1]x", "bracket"),
            ("redis://a,b", "more than one"),
            ("redis://h%20x", "host name"),
            ("redis://hö", "host name"),
            ("redis://h x", "space"),
            ("redis://:hunter2@h\n", "line break"),
            ("redis+cluster://", "no name"),
            ("redis+cluster://:hunter2@a,", "no name"),
            ("redis+cluster://a,a", "twice"),
            ("redis+cluster://a,A:6379", "twice"),
            ("redis+cluster://a:7000,b/1", "numbered"),
            ("redis+cluster://:hunter2@a,b/x?db=1", "numbered"),
            ("redis+cluster://u:hunter2@a,v:hunter2@b", "percent-encoded"),
            ("redis+cluster:///run/r.sock", "no name"),
            ("redis+cluster+tls://a", "begins with"),
            ("redis+sentinel://a,b", "name of the master"),
            ("redis+sentinel://a,b/", "name of the master"),
            ("redis+sentinel://:hunter2@a,b//1", "name of the master"),
            ("redis+sentinel://a/my%20master", "letters"),
            ("redis+sentinel://a/mymaster/x", "database"),
            ("redis+sentinel://a/mymaster/1/2", "database"),
            ("redis+sentinel://a:x/mymaster", "port"),
            ("redis+sentinel://a/mymaster?master=b", "other than protocol"),
            ("unix://hunter2", "three slashes"),
            ("unix://u:hunter2@/r.sock", "three slashes"),
            ("unix://", "three slashes"),
            ("unix:///", "no path"),
            ("unix:///run/", "no path"),
            ("unix:///r?db=x", "database"),
            ("unix:///r?db=1&db=1", "twice"),
            ("unix:///r?password=hunter2", "other than db"),
            ("unix:///r?pass=hunter2&x", "no value"),
            ("unix:///r?pass=hunt+er2", "`+`"),
            ("unix:///r?pass=", "no value"),
            ("unix:///r?user=hunter2", "no password"),
        ] {
            let error = parse(url).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(reason), "{url}: {text}");
            for secret in ["hunter2", "er2", "1234"] {
                assert!(!format!("{text} {error:?}").contains(secret), "{url}: {text}");
            }
        }
    }
}
