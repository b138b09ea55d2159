/// The parts of a request's head on which this crate's decisions depend. For adapters; see
/// [`exchange`](crate::exchange).
///
/// An adapter sets the fields from its framework's request:
///
/// ```
/// use unsticky::exchange::{RequestHead, Wants};
///
/// let mut head = RequestHead::default();
/// (head.method, head.target) = ("GET", "/cart?page=2");
/// let head = head.with_fields(|name| (name == "accept").then_some(&b"text/html,*/*;q=0.8"[..]));
/// assert_eq!(head.wants(), Wants::Page);
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct RequestHead<'a> {
    /// The method as the client sent it, such as `GET`.
    pub method: &'a str,
    /// The path and the query as the browser sent them, including any prefix that a router has removed.
    pub target: &'a str,
    /// The host and port of the target, if it has them: in HTTP/2, and in HTTP/1 with an absolute target.
    pub authority: Option<&'a str>,
    /// The `Host` header itself, not a header in which a proxy reports the original host.
    pub host: Option<&'a [u8]>,
    /// The `Origin` header.
    pub origin: Option<&'a [u8]>,
    /// The `Sec-Fetch-Site` header.
    pub sec_fetch_site: Option<&'a [u8]>,
    /// The `Sec-Fetch-Mode` header.
    pub sec_fetch_mode: Option<&'a [u8]>,
    /// The `Accept` header.
    pub accept: Option<&'a [u8]>,
    /// The `Upgrade` header.
    pub upgrade: Option<&'a [u8]>,
}

/// What a request wants as its response: a page or data.
///
/// The function that you pass to [`Builder::on_error`](crate::Builder::on_error) receives a `Wants`. A
/// handler can also take one as an argument, with or without the session layer. A response that depends on a
/// `Wants` varies by `Sec-Fetch-Mode` and `Accept`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums)]
pub enum Wants {
    /// A page: a browser shows the response to a user.
    Page,
    /// Data: a script, a program or a WebSocket receives the response.
    Data,
}

impl Wants {
    /// The headers on which the answer depends, for `Vary`.
    pub(crate) const VARY: &'static str = "sec-fetch-mode, accept";
}

impl<'a> RequestHead<'a> {
    /// Sets the headers. `values` takes a header name in lower case, and returns all values of that header.
    #[must_use]
    pub fn with_fields<V>(self, values: impl Fn(&'static str) -> V) -> Self
    where
        V: IntoIterator<Item = &'a [u8]>,
    {
        let field = |name| Self::field(values(name));
        Self {
            // The `Host` header itself, not `Forwarded`, which a client can set.
            host: field("host"),
            origin: field("origin"),
            sec_fetch_site: field("sec-fetch-site"),
            sec_fetch_mode: field("sec-fetch-mode"),
            accept: field("accept"),
            upgrade: field("upgrade"),
            ..self
        }
    }

    /// Returns the value of a header that must not be repeated, given all its values. If the header is
    /// repeated, returns a value that no rule accepts.
    fn field(values: impl IntoIterator<Item = &'a [u8]>) -> Option<&'a [u8]> {
        let mut values = values.into_iter();
        let first = values.next()?;
        // A list of several values contains a comma.
        Some(if values.next().is_some() { b"," } else { first })
    }

    /// Returns whether the request wants a page or data.
    ///
    /// A request wants a page if its `Sec-Fetch-Mode` is `navigate`, and data if that header has any other
    /// value. If the client does not send the header, the request wants a page if its `Accept` contains
    /// `text/html`.
    #[must_use]
    pub fn wants(&self) -> Wants {
        let is_page = match self.sec_fetch_mode {
            Some(mode) => mode == b"navigate",
            None => self.accept.is_some_and(accepts_html),
        };
        if is_page { Wants::Page } else { Wants::Data }
    }

    /// Returns the host and port to which the request was sent.
    pub(crate) fn own_authority(&self) -> Option<&'a [u8]> {
        self.authority.map(str::as_bytes).or(self.host)
    }

    /// Returns whether this is a request for `page`, which is a path or a complete URL.
    pub(crate) fn is_for(&self, page: &str) -> bool {
        let (page, _) = split_query(page);
        let path = match (page.split_once("://"), self.own_authority()) {
            (Some((_, rest)), Some(own)) => rest.as_bytes().strip_prefix(own),
            (Some(_), None) => None,
            (None, _) => Some(page.as_bytes()),
        };
        path == Some(self.path().as_bytes())
    }

    /// Returns the target without its query.
    pub(crate) fn path(&self) -> &'a str {
        split_query(self.target).0
    }

    /// Returns the target's query.
    pub(crate) fn query(&self) -> &'a str {
        split_query(self.target).1
    }
}

/// Splits a target into its path and its query, which may be empty.
pub(crate) fn split_query(target: &str) -> (&str, &str) {
    target.split_once('?').unwrap_or((target, ""))
}

fn accepts_html(accept: &[u8]) -> bool {
    accept.split(|byte| *byte == b',').any(|range| {
        let media_type = range.split(|byte| *byte == b';').next().unwrap_or_default();
        media_type.trim_ascii().eq_ignore_ascii_case(b"text/html")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn navigations_want_pages_and_everything_else_wants_data() {
        for (mode, accept, expected) in [
            (Some("navigate"), None, Wants::Page),
            (Some("navigate"), Some("application/json"), Wants::Page),
            (Some("cors"), Some("text/html"), Wants::Data),
            (Some("no-cors"), Some("text/html"), Wants::Data),
            (Some("websocket"), None, Wants::Data),
            (Some("NAVIGATE"), Some("text/html"), Wants::Data),
            (Some(""), Some("text/html"), Wants::Data),
            (None, Some("text/html"), Wants::Page),
            (None, Some("text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"), Wants::Page),
            (None, Some("*/* , TEXT/HTML ;q=0.5"), Wants::Page),
            (None, Some("application/json"), Wants::Data),
            (None, Some("*/*"), Wants::Data),
            (None, Some("text/htmlx, x/text/html"), Wants::Data),
            (None, Some(""), Wants::Data),
            (None, None, Wants::Data),
        ] {
            let head = RequestHead {
                sec_fetch_mode: mode.map(str::as_bytes),
                accept: accept.map(str::as_bytes),
                ..RequestHead::default()
            };
            assert_eq!(head.wants(), expected, "{mode:?} {accept:?}");
        }
    }

    #[test]
    fn request_for_page_is_recognised_by_path_and_whole_address() {
        let http1 = RequestHead {
            target: "/sign-in?next=/a",
            host: Some(b"shop.example:8443"),
            ..RequestHead::default()
        };
        let http2 = RequestHead { authority: Some("shop.example:8443"), host: None, ..http1 };
        for head in [http1, http2] {
            for (page, expected) in [
                ("/sign-in", true),
                ("/sign-in?way=code", true),
                ("https://shop.example:8443/sign-in?way=code", true),
                ("/sign-i", false),
                ("/sign-in/", false),
                ("https://shop.example/sign-in", false),
                ("https://login.example/sign-in", false),
                ("https://shop.example:8443", false),
                ("sign-in", false),
            ] {
                assert_eq!(head.is_for(page), expected, "{page}");
            }
        }
        let nowhere = RequestHead { target: "/sign-in", ..RequestHead::default() };
        assert!(nowhere.is_for("/sign-in") && !nowhere.is_for("https:///sign-in"));
    }

    #[test]
    fn repeated_field_has_a_value_that_no_rule_accepts() {
        assert_eq!(RequestHead::field([]), None);
        assert_eq!(RequestHead::field([&b"navigate"[..]]), Some(&b"navigate"[..]));
        assert_eq!(RequestHead::field([&b"navigate"[..], b"navigate"]), Some(&b","[..]));
    }
}
