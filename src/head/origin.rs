//! Detects requests that a page on another site made a browser send (cross-site request forgery).

use crate::head::request::RequestHead;

/// The header that revealed a cross-site request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Foreign {
    /// `Sec-Fetch-Site`.
    Site,
    /// `Origin`.
    Origin,
}

impl Foreign {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Site => "site",
            Self::Origin => "origin",
        }
    }
}

/// The headers on which the check depends, for `Vary`.
pub(crate) const VARY: &str = "sec-fetch-site, origin";

/// Checks whether a request may change anything. A request passes if it only reads, if it was sent from this
/// site or a trusted origin, or if it does not come from a browser.
pub(crate) fn check(head: &RequestHead<'_>, trusted: &[String]) -> Result<(), Foreign> {
    // `TRACE` is not listed, because it is not needed. A WebSocket handshake is a `GET` that any site can
    // make a browser send, with cookies, and the messages that follow are not checked (ASVS 5.0 4.4.2).
    let only_reads = matches!(head.method, "GET" | "HEAD" | "OPTIONS");
    if only_reads && head.upgrade.is_none_or(<[u8]>::is_empty) {
        return Ok(());
    }
    if head.origin.is_some_and(|origin| trusted.iter().any(|trusted| trusted.as_bytes() == origin))
    {
        return Ok(());
    }
    match head.sec_fetch_site.unwrap_or_default() {
        b"same-origin" | b"none" => return Ok(()),
        // The browser does not send the header, or the page was loaded over plain HTTP.
        b"" => {}
        _ => return Err(Foreign::Site),
    }
    // Every browser sends `Origin` with WebSocket handshakes and with all requests other than `GET` and
    // `HEAD`.
    let Some(origin) = head.origin else { return Ok(()) };
    let of_origin = [&b"https://"[..], b"http://"].iter().find_map(|it| origin.strip_prefix(*it));
    // Browsers write both authorities in the same form: in lower case, and without the scheme's default port.
    let of_request = head.own_authority();
    match of_origin {
        Some(authority) if !authority.is_empty() && of_request == Some(authority) => Ok(()),
        _ => Err(Foreign::Origin),
    }
}

/// Returns whether a text is an origin in the form that browsers send: `scheme://host` or `scheme://host:port`.
pub(crate) fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_lowercase())
        && scheme.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte)
        });
    let own_port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => "",
    };
    let is_plain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._:[]".contains(&byte);
    is_scheme
        && !authority.is_empty()
        && authority.bytes().all(is_plain)
        && (own_port.is_empty() || !authority.ends_with(own_port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRUSTED: &str = "https://login.example";

    /// A request: method, authority, Host, Origin, Sec-Fetch-Site, Upgrade.
    type Row<'a> = (
        &'a str,
        Option<&'a str>,
        Option<&'a str>,
        Option<&'a str>,
        Option<&'a str>,
        Option<&'a str>,
    );

    fn verdict((method, authority, host, origin, site, upgrade): Row<'_>) -> Result<(), Foreign> {
        let head = RequestHead {
            method,
            target: "/",
            authority,
            host: host.map(str::as_bytes),
            origin: origin.map(str::as_bytes),
            sec_fetch_site: site.map(str::as_bytes),
            upgrade: upgrade.map(str::as_bytes),
            ..RequestHead::default()
        };
        check(&head, &[TRUSTED.to_owned()])
    }

    const SHOP: Option<&str> = Some("shop.example");
    const OURS: Option<&str> = Some("https://shop.example");
    const EVIL: Option<&str> = Some("https://evil.example");
    const SAME: Option<&str> = Some("same-origin");
    const CROSS: Option<&str> = Some("cross-site");
    const WS: Option<&str> = Some("websocket");

    #[test]
    fn requests_of_this_site_pass() {
        for row in [
            // Requests that only read.
            ("GET", None, SHOP, None, None, None),
            ("GET", None, SHOP, EVIL, CROSS, None),
            ("HEAD", None, SHOP, EVIL, CROSS, None),
            ("OPTIONS", None, SHOP, EVIL, CROSS, None),
            ("GET", None, SHOP, EVIL, CROSS, Some("")),
            // Accepted because of `Sec-Fetch-Site`.
            ("POST", None, SHOP, OURS, SAME, None),
            ("POST", None, SHOP, None, SAME, None),
            ("POST", None, None, None, SAME, None),
            ("DELETE", None, SHOP, OURS, SAME, None),
            ("GET", None, SHOP, OURS, SAME, WS),
            // A proxy has replaced the `Host` header.
            ("POST", None, Some("10.0.0.7:3000"), OURS, SAME, None),
            // A URL typed into the address bar, or a bookmark.
            ("POST", None, SHOP, None, Some("none"), None),
            // Accepted because of `Origin`.
            ("POST", None, SHOP, OURS, None, None),
            ("POST", None, SHOP, OURS, Some(""), None),
            ("PUT", None, SHOP, Some("http://shop.example"), None, None),
            (
                "PATCH",
                None,
                Some("shop.example:8443"),
                Some("https://shop.example:8443"),
                None,
                None,
            ),
            ("POST", None, Some("[::1]:3000"), Some("http://[::1]:3000"), None, None),
            ("POST", SHOP, None, OURS, None, None),
            ("POST", SHOP, Some("other.example"), OURS, None, None),
            ("GET", None, SHOP, OURS, None, WS),
            ("CONNECT", SHOP, None, OURS, None, None),
            // Requests that do not come from a browser.
            ("POST", None, SHOP, None, None, None),
            ("POST", None, None, None, None, None),
            ("GET", None, SHOP, None, None, Some("h2c")),
            // Requests from a trusted origin.
            ("POST", None, SHOP, Some(TRUSTED), CROSS, None),
            ("POST", None, SHOP, Some(TRUSTED), None, None),
            ("GET", None, SHOP, Some(TRUSTED), CROSS, WS),
        ] {
            assert_eq!(verdict(row), Ok(()), "{row:?}");
        }
    }

    #[test]
    fn cross_site_requests_are_refused() {
        for (row, foreign) in [
            (("POST", None, SHOP, EVIL, CROSS, None), Foreign::Site),
            (("POST", None, SHOP, OURS, CROSS, None), Foreign::Site),
            (("POST", None, SHOP, None, CROSS, None), Foreign::Site),
            // A sibling domain may belong to another party.
            (("POST", None, SHOP, OURS, Some("same-site"), None), Foreign::Site),
            (("POST", None, SHOP, OURS, Some("Same-Origin"), None), Foreign::Site),
            (("POST", None, SHOP, OURS, Some("same-origin, none"), None), Foreign::Site),
            // The header is repeated.
            (("POST", None, SHOP, OURS, Some(","), None), Foreign::Site),
            (("TRACE", None, SHOP, EVIL, CROSS, None), Foreign::Site),
            (("get", None, SHOP, EVIL, CROSS, None), Foreign::Site),
            (("GET", None, SHOP, EVIL, CROSS, WS), Foreign::Site),
            (("GET", None, SHOP, EVIL, CROSS, Some("WebSocket")), Foreign::Site),
            (("GET", None, SHOP, EVIL, CROSS, Some("x, websocket")), Foreign::Site),
            (("GET", None, SHOP, EVIL, None, WS), Foreign::Origin),
            (("GET", None, SHOP, EVIL, None, Some(",")), Foreign::Origin),
            (("CONNECT", SHOP, None, EVIL, None, None), Foreign::Origin),
            (("POST", None, SHOP, EVIL, None, None), Foreign::Origin),
            (("POST", None, SHOP, EVIL, Some(""), None), Foreign::Origin),
            (("POST", None, SHOP, Some("null"), None, None), Foreign::Origin),
            (("POST", None, SHOP, Some(""), None, None), Foreign::Origin),
            (("POST", None, SHOP, Some(","), None, None), Foreign::Origin),
            (("POST", None, SHOP, Some("shop.example"), None, None), Foreign::Origin),
            (("POST", None, SHOP, Some("ftp://shop.example"), None, None), Foreign::Origin),
            (("POST", None, SHOP, Some("https://shop.example/"), None, None), Foreign::Origin),
            (("POST", None, SHOP, Some("https://shop.example:443"), None, None), Foreign::Origin),
            (("POST", None, SHOP, Some("https://SHOP.example"), None, None), Foreign::Origin),
            (("POST", None, SHOP, Some("https://shop.example.evil"), None, None), Foreign::Origin),
            (("POST", None, SHOP, Some("https://x@shop.example"), None, None), Foreign::Origin),
            (("POST", None, None, OURS, None, None), Foreign::Origin),
            (("POST", None, Some(""), Some("https://"), None, None), Foreign::Origin),
            (("POST", None, Some(","), OURS, None, None), Foreign::Origin),
            (("POST", Some("evil.example"), SHOP, OURS, None, None), Foreign::Origin),
            // A proxy has replaced the `Host` header, and the browser does not send `Sec-Fetch-Site`.
            (("POST", None, Some("10.0.0.7:3000"), OURS, None, None), Foreign::Origin),
            (("POST", None, SHOP, Some("https://login.example:8443"), None, None), Foreign::Origin),
            (("POST", None, SHOP, Some("http://login.example"), CROSS, None), Foreign::Site),
        ] {
            assert_eq!(verdict(row), Err(foreign), "{row:?}");
        }
    }

    #[test]
    fn trusted_origins_are_those_that_browsers_write() {
        for origin in [
            "https://a.example",
            "http://localhost:3000",
            "capacitor://localhost",
            "https://[::1]:8",
        ] {
            assert!(is_origin(origin), "{origin}");
        }
        for text in [
            "",
            "null",
            "*",
            "a.example",
            "https://",
            "://a.example",
            "https://a.example/",
            "https://a.example:443",
            "http://a.example:80",
            "https://A.example",
            "HTTPS://a.example",
            "https://a.example?x",
            "https://x@a.example",
            "https://*.example",
            "https://a.example https://b.example",
            "https://b\u{fc}cher.example",
        ] {
            assert!(!is_origin(text), "{text}");
        }
    }
}
