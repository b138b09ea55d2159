//! Recognises pages on which browsers drop a `Secure` cookie.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Returns whether a page with this origin was loaded over plain http from another machine, so that the
/// browser keeps no `Secure` cookie. Browsers treat names and addresses of their own machine as secure (W3C
/// Secure Contexts 3.1). Returns `false` if the text is not an origin.
pub(crate) fn drops_secure_cookies(origin: &[u8]) -> bool {
    let host = str::from_utf8(origin).ok().and_then(|origin| origin.strip_prefix("http://"));
    host.and_then(without_port).is_some_and(|host| !is_own_machine(host))
}

/// Returns the host of `host` or `host:port`, or `None` if the text has neither form.
fn without_port(authority: &str) -> Option<&str> {
    let (host, port) = match authority.rsplit_once(':') {
        // The colon is part of an address in brackets.
        Some((_, end)) if end.ends_with(']') => (authority, "0"),
        Some(parts) => parts,
        None => (authority, "0"),
    };
    let is_host_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let is_host = ipv6(host).is_some() || (!host.is_empty() && host.bytes().all(is_host_byte));
    (is_host && port.parse::<u16>().is_ok()).then_some(host)
}

fn ipv6(host: &str) -> Option<Ipv6Addr> {
    host.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

fn is_own_machine(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || host.parse().is_ok_and(|address: Ipv4Addr| address.is_loopback())
        || ipv6(host).is_some_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secure_cookies_are_dropped_on_plain_http_of_other_machines_only() {
        for origin in [
            "http://shop.test",
            "http://shop.test:3000",
            "http://SHOP.test.:80",
            "http://localhost.shop.test",
            "http://notlocalhost",
            "http://192.168.1.5:3000",
            "http://10.0.0.1",
            "http://128.0.0.1",
            "http://127.0.0.1.shop.test",
            "http://[fe80::1]:3000",
            "http://[2001:db8::1]",
            "http://my_laptop",
        ] {
            assert!(drops_secure_cookies(origin.as_bytes()), "{origin}");
        }
        for origin in [
            "http://localhost",
            "http://localhost:3000",
            "http://LOCALHOST",
            "http://localhost.:3000",
            "http://app.localhost:3000",
            "http://a.b.localhost",
            "http://127.0.0.1:3000",
            "http://127.0.0.2",
            "http://127.255.255.255",
            "http://[::1]",
            "http://[::1]:3000",
            "https://shop.test",
            "https://192.168.1.5",
            "null",
            "",
            "http://",
            "http://:3000",
            "http:/shop.test",
            "//shop.test",
            "shop.test",
            "http://shop.test/",
            "http://shop.test:",
            "http://shop.test:port",
            "http://shop.test:99999",
            "http://a b",
            "http://user@shop.test",
            "http://[::1",
            "http://[::1]x",
            "http://[shop.test]",
            "http://::1",
            "http://é.test",
            "ws://shop.test",
        ] {
            assert!(!drops_secure_cookies(origin.as_bytes()), "{origin}");
        }
        assert!(!drops_secure_cookies(b"http://shop\xff.test"));
        assert!(!drops_secure_cookies(&[b'a'; 9000]));
    }
}
