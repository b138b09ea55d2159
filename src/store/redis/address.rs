//! `redis://[user:password@]host[:port][/database]` and its kin, taken apart.
//!
//! The crate `redis` reads addresses too, but ignores what it does not know: a fragment, an option, a
//! user without a password. What is ignored is a mistake that nobody is told of, and a password that is
//! not percent-encoded may end up as a host's name and in a log.

use std::net::Ipv6Addr;

use ::redis::{
    ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, ProtocolVersion, RedisConnectionInfo,
};

use crate::store::address::ConnectError;
use crate::store::redis::tls::Tls;

const DEFAULT_PORT: u16 = 6379;

/// What an address says.
#[derive(Debug)]
pub(super) struct Address {
    pub(super) info: ConnectionInfo,
    pub(super) tls: Option<Tls>,
}

/// Takes an address apart. An error repeats nothing of it.
pub(super) fn parse(url: &str) -> Result<Address, ConnectError> {
    let Some((scheme @ ("redis" | "rediss" | "valkey" | "valkeys" | "redis+unix" | "unix"), rest)) =
        url.split_once("://")
    else {
        return Err(ConnectError::address(
            "a redis address begins with redis://, rediss://, valkey://, valkeys://, redis+unix:// \
             or unix://",
        ));
    };
    if rest.contains(|char: char| char.is_whitespace() || char.is_control()) {
        return Err(ConnectError::address("it has a space or a line break in it"));
    }
    if rest.contains('#') {
        return Err(ConnectError::address(format!(
            "it has a fragment, which means nothing; {ENCODE}"
        )));
    }
    let (place, options) =
        rest.split_once('?').map_or((rest, None), |(place, options)| (place, Some(options)));
    let is_encrypted = matches!(scheme, "rediss" | "valkeys");
    if is_encrypted && options.is_some_and(|options| options.contains('@')) {
        // Otherwise the end of a password would be taken for a file's name, which errors repeat.
        return Err(ConnectError::address(ENCODE));
    }
    let (tls, options): (Vec<_>, Vec<_>) = pairs(options)?
        .into_iter()
        .partition(|(name, _)| matches!(name.as_str(), "cacert" | "cert" | "key" | "sni"));
    if !is_encrypted && !tls.is_empty() {
        return Err(ConnectError::address(
            "the options cacert, cert, key and sni need TLS: rediss:// or valkeys://",
        ));
    }
    let (addr, settings) = match scheme {
        "redis+unix" | "unix" => unix(place, options)?,
        _ => tcp(place, options)?,
    };
    let info = addr.into_connection_info();
    let info = info.map_err(|_| ConnectError::address("the crate redis does not take it"))?;
    let tls = is_encrypted.then(|| Tls::of_options(tls)).transpose()?;
    Ok(Address { info: info.set_redis_settings(settings), tls })
}

const ENCODE: &str = "`#`, `?`, `/`, `@` and `%` in a password must be percent-encoded";

type Parts = (ConnectionAddr, RedisConnectionInfo);
type Options = Vec<(String, String)>;

fn tcp(place: &str, options: Options) -> Result<Parts, ConnectError> {
    let (authority, path) = place.split_once('/').unwrap_or((place, ""));
    let mut settings = RedisConnectionInfo::default();
    let server = match authority.rsplit_once('@') {
        None => authority,
        Some((credentials, server)) => {
            let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
            if credentials.contains('@') {
                return Err(ConnectError::address(ENCODE));
            }
            if password.is_empty() {
                return Err(ConnectError::address("it has a user's name and no password"));
            }
            if !user.is_empty() {
                settings = settings.set_username(decoded(user)?);
            }
            settings = settings.set_password(decoded(password)?);
            server
        }
    };
    let addr = server_of(server)?;
    if !path.is_empty() {
        settings = settings.set_db(database(path)?);
    }
    for (name, value) in options {
        settings = match name.as_str() {
            "protocol" => settings.set_protocol(protocol(&value)?),
            _ => {
                return Err(ConnectError::address(format!(
                    "it has an option other than protocol and, for TLS, cacert, cert, key and sni; \
                     {ENCODE}"
                )));
            }
        };
    }
    Ok((addr, settings))
}

fn unix(path: &str, options: Options) -> Result<Parts, ConnectError> {
    if !path.starts_with('/') {
        return Err(ConnectError::address(
            "three slashes begin the path of a socket: unix:///path",
        ));
    }
    if path.ends_with('/') {
        return Err(ConnectError::address("it has no path of a socket"));
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
        return Err(ConnectError::address("it has a user's name and no password"));
    }
    Ok((ConnectionAddr::Unix(decoded(path)?.into()), settings))
}

fn server_of(text: &str) -> Result<ConnectionAddr, ConnectError> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) =
            rest.split_once(']').ok_or_else(|| ConnectError::address("a bracket is not closed"))?;
        let host: Ipv6Addr = host
            .parse()
            .map_err(|_| ConnectError::address("what stands in brackets is not an IPv6 address"))?;
        if host.is_unspecified() {
            return Err(ConnectError::address(WILDCARD));
        }
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(port),
            None if rest.is_empty() => None,
            None => return Err(ConnectError::address("only a port may follow a bracket")),
        };
        (host.to_string(), port)
    } else {
        let (host, port) =
            text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
        if port.is_some_and(|port| port.contains(':')) {
            return Err(ConnectError::address("an IPv6 address must stand in brackets"));
        }
        if host.is_empty() {
            return Err(ConnectError::address("the server has no name"));
        }
        if host.contains(',') {
            return Err(ConnectError::address("it names more than one server"));
        }
        if !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)) {
            return Err(ConnectError::address("the server's name is not a host name"));
        }
        if host == "0.0.0.0" {
            return Err(ConnectError::address(WILDCARD));
        }
        (host.to_ascii_lowercase(), port)
    };
    let port = match port.map(number::<u16>) {
        None => DEFAULT_PORT,
        Some(Some(port @ 1..)) => port,
        Some(_) => {
            return Err(ConnectError::address(format!(
                "the port is not a number from 1 to 65535; {ENCODE}"
            )));
        }
    };
    Ok(ConnectionAddr::Tcp(host, port))
}

const WILDCARD: &str = "its host means every address of a machine, not a server";

fn database(text: &str) -> Result<i64, ConnectError> {
    let database = number::<u32>(text).map(i64::from);
    database.ok_or_else(|| ConnectError::address(format!("the database is not a number; {ENCODE}")))
}

/// Digits only: the standard library takes a sign as well.
fn number<N: std::str::FromStr>(text: &str) -> Option<N> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn protocol(text: &str) -> Result<ProtocolVersion, ConnectError> {
    match text {
        "2" | "resp2" => Ok(ProtocolVersion::RESP2),
        "3" | "resp3" => Ok(ProtocolVersion::RESP3),
        _ => Err(ConnectError::address("the protocol is neither resp2 nor resp3")),
    }
}

/// The options' names and values.
fn pairs(options: Option<&str>) -> Result<Options, ConnectError> {
    let mut pairs = Options::new();
    for option in options.into_iter().flat_map(|options| options.split('&')) {
        let (name, value) = option
            .split_once('=')
            .filter(|(_, value)| !value.is_empty())
            .ok_or_else(|| ConnectError::address(format!("an option has no value; {ENCODE}")))?;
        // In forms it stands for a space, elsewhere for itself.
        if value.contains('+') {
            return Err(ConnectError::address("a `+` in an option's value must be written %2B"));
        }
        let name = decoded(name)?;
        if pairs.iter().any(|(other, _)| *other == name) {
            return Err(ConnectError::address("an option is given twice"));
        }
        pairs.push((name, decoded(value)?));
    }
    Ok(pairs)
}

/// The text that was percent-encoded.
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
                    "a `%` does not begin a percent-encoded byte; as a character it is written %25",
                )
            })?;
        bytes.push(byte);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes)
        .map_err(|_| ConnectError::address("what is percent-encoded is not UTF-8"))
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
            ("rediss://u%3A:p@[::1]:7/15", "::1:7", 15, Some("u:"), Some("p")),
            ("valkey://u:p%C3%A4@10.0.0.1", "10.0.0.1:6379", 0, Some("u"), Some("pä")),
            ("redis://[::1]", "::1:6379", 0, None, None),
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
            let Address { info, tls } = parse(url).unwrap();
            let settings = info.redis_settings();
            assert_eq!(info.addr().to_string(), server, "{url}");
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
                "authority: None, client: Some(Client { certificate: c.pem, key: k.pem }), server_name: None",
            ),
        ] {
            let Address { info, tls } = parse(&format!("rediss://u:p@h/{options}")).unwrap();
            assert_eq!(format!("{:?}", tls.unwrap()), format!("Tls {{ {expected} }}"));
            let resp3 = matches!(info.redis_settings().protocol(), ProtocolVersion::RESP3);
            assert_eq!(resp3, options.contains("protocol"));
        }
        for options in ["cert=/hunter2", "key=/hunter2"] {
            let error = parse(&format!("rediss://h?{options}")).unwrap_err().to_string();
            assert!(error.contains("belong together"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
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
