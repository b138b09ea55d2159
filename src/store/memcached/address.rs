//! Parses addresses of the form `memcached://host[:port][,host[:port]…]`.

use crate::store::address::{ConnectError, bracketed};

const SCHEME: &str = "memcached://";
const DEFAULT_PORT: u16 = 11211;

/// Returns the servers as `host:port`, in the normalised form that is used to route keys.
pub(super) fn parse(url: &str) -> Result<Vec<String>, ConnectError> {
    let list = url
        .strip_prefix(SCHEME)
        .ok_or_else(|| ConnectError::address("a memcached address begins with memcached://"))?;
    if list.contains('@') {
        return Err(ConnectError::address(
            "it has a user or a password, which this store does not support; write memcached://HOST:PORT",
        ));
    }
    if list.split(',').any(has_weight) {
        return Err(ConnectError::address(WEIGHTS));
    }
    if list.contains(['/', '?', '#']) {
        return Err(ConnectError::address(
            "it has a path or an option, which a memcached address cannot have; write \
             memcached://HOST:PORT,HOST:PORT",
        ));
    }
    let mut servers: Vec<String> = Vec::new();
    for entry in list.split(',') {
        let server = server(entry)?;
        if servers.contains(&server) {
            return Err(ConnectError::address("it lists the same server twice; remove one"));
        }
        servers.push(server);
    }
    Ok(servers)
}

const WEIGHTS: &str = "weights are not supported: every server gets an equal share of the sessions; \
                       remove the weights, and let a larger machine run several servers";

/// Returns whether a weight follows the server, in one of the forms that other clients use:
/// `host:port:2`, `host=2`, `host:port 2`, `host:port?weight=2`, `host:port/?2`.
fn has_weight(entry: &str) -> bool {
    if entry.to_ascii_lowercase().contains("weight=") {
        return true;
    }
    let Some((server, weight)) = entry.rsplit_once([':', '=', '?', ' ']) else {
        return false;
    };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let may_follow = match entry.as_bytes().get(server.len()) {
        // A weight can only follow a port. Without a port, the number is the port.
        Some(b':') => server.rsplit_once(':').is_some_and(|(host, port)| {
            is_number(port) && (host.ends_with(']') || !host.contains(':'))
        }),
        // After a `?`, the number would be the value of another option.
        Some(b'=') => !server.contains('?'),
        _ => true,
    };
    may_follow && weight.split('.').all(is_number)
}

fn server(entry: &str) -> Result<String, ConnectError> {
    if let Some(rest) = entry.strip_prefix('[') {
        let (host, rest) = bracketed(rest)?;
        let port = match rest.strip_prefix(':') {
            Some(text) => port(text)?,
            None if rest.is_empty() => DEFAULT_PORT,
            None => {
                return Err(ConnectError::address("only `:PORT` may follow the closing bracket"));
            }
        };
        return Ok(format!("[{host}]:{port}"));
    }
    let (host, port) = match entry.split_once(':') {
        Some((_, text)) if text.contains(':') => {
            return Err(ConnectError::address(
                "an IPv6 address must be in brackets, as in [::1]:11211",
            ));
        }
        Some((host, text)) => (host, port(text)?),
        None => (entry, DEFAULT_PORT),
    };
    if host.is_empty() {
        return Err(ConnectError::address(
            "a server has no name; write its host name or IP address",
        ));
    }
    if !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)) {
        return Err(ConnectError::address(
            "a server's name is not a host name; it may contain only letters, digits, `.`, `-` and `_`",
        ));
    }
    Ok(format!("{}:{port}", host.to_ascii_lowercase()))
}

fn port(text: &str) -> Result<u16, ConnectError> {
    match text.parse() {
        Ok(port @ 1..) if text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(port),
        _ => Err(ConnectError::address("a port is not a number from 1 to 65535")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_addresses_are_normalized() {
        let servers = parse("memcached://Cache-1.internal,b:11212,[0:0::1],[fe80::1]:7").unwrap();
        let expected = ["cache-1.internal:11211", "b:11212", "[::1]:11211", "[fe80::1]:7"];
        assert_eq!(servers, expected);
    }

    #[test]
    fn invalid_server_list_is_refused_without_repeating_it() {
        for (url, reason) in [
            ("redis://a", "begin"),
            ("memcached:a", "begin"),
            ("memcached://", "no name"),
            ("memcached://a,", "no name"),
            ("memcached://a,,b", "no name"),
            ("memcached://:11211", "no name"),
            ("memcached://a,A:11211", "twice"),
            ("memcached://[::1],[0::1]:11211", "twice"),
            ("memcached://user:hunter2@a", "password"),
            ("memcached://a/0", "path"),
            ("memcached://a?x=hunter2", "path"),
            ("memcached:///run/hunter2.sock", "path"),
            ("memcached://::1", "brackets"),
            ("memcached://[::1", "bracket"),
            ("memcached://[a]", "IPv6"),
            ("memcached://[::1]x", "bracket"),
            ("memcached://a b", "host name"),
            ("memcached://a:0", "port"),
            ("memcached://a:65536", "port"),
            ("memcached://a:+1", "port"),
            ("memcached://a:", "port"),
            ("memcached://hunter2:11211:3", "weights"),
            ("memcached://a,hunter2:11211:0.5", "weights"),
            ("memcached://[::1]:11211:3", "weights"),
            ("memcached://hunter2=3", "weights"),
            ("memcached://hunter2:11211=3,b", "weights"),
            ("memcached://[::1]=3", "weights"),
            ("memcached://hunter2:11211 3", "weights"),
            ("memcached://hunter2:11211 weight=3", "weights"),
            ("memcached://hunter2:11211?weight=2", "weights"),
            ("memcached://hunter2:11211?Weight=x", "weights"),
            ("memcached://hunter2:11211?3", "weights"),
            ("memcached://hunter2:11211/?3", "weights"),
            ("memcached://user:hunter2:3", "brackets"),
            ("memcached://user:3:hunter2", "brackets"),
            ("memcached://user:3:hunter2@a", "password"),
            ("memcached://a:11211:", "brackets"),
            ("memcached://a:11211:1.", "brackets"),
            ("memcached://1::2", "brackets"),
            ("memcached://1:2:3:4:5:6:7:8", "brackets"),
            ("memcached://a::3", "brackets"),
            ("memcached://:11211:3", "weights"),
            ("memcached://a?timeout=3", "path"),
            ("memcached://hunter2,hunter2", "twice"),
        ] {
            let error = parse(url).unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
            assert!(!error.contains("hunter2"), "{url}: {error}");
        }
    }
}
