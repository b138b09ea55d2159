use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use serde::{Serialize, Serializer};

use crate::head::query::{encode_value, field, percent_decoded};
use crate::head::request::{RequestHead, split_query};

/// A path on this site, with its query, to which you can safely redirect.
///
/// A `LocalPath` never leads to another site, even if the text comes from a client (ASVS 5.0 3.7.2 and
/// CWE-601, open redirect).
///
/// ```
/// use unsticky::LocalPath;
///
/// let path = LocalPath::parse("/orders/17?page=2").unwrap();
/// assert_eq!(path.as_str(), "/orders/17?page=2");
/// assert_eq!(path.after("/sign-in"), "/sign-in?next=/orders/17%3Fpage%3D2");
/// for evil in ["//evil.example", "/\\evil.example", "/%2fevil.example", "javascript:alert(1)"] {
///     assert!(LocalPath::parse(evil).is_none());
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LocalPath(String);

/// The maximum length of a local path, in bytes.
const LONGEST: usize = 1024;

/// The maximum number of times that a path may be percent-encoded.
const MOST_ENCODINGS: usize = 3;

/// The name of the query parameter that contains a local path.
const NEXT: &str = "next";

impl LocalPath {
    /// Parses a path. Returns `None` if the text is not a path on this site, or if a browser, a proxy and a
    /// router could interpret the text in different ways.
    ///
    /// The text must be at most 1024 bytes long and consist of printable ASCII characters other than the
    /// space, `\`, `"`, `<`, `>` and `#`. It must begin with exactly one `/`. No segment of the path may be
    /// `.` or `..`, only the last segment may be empty, and no segment may contain a backslash or a control
    /// character. The rules for the leading `/` and for segments also apply after each of up to three
    /// percent-decodings; a path that is encoded more than three times over is rejected. No further rules
    /// apply to the query.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"\\\"<>#".contains(&byte);
        let is_local =
            text.len() <= LONGEST && text.bytes().all(is_plain) && is_local(split_query(text).0);
        is_local.then(|| Self(text.to_owned()))
    }

    /// Returns the path with its query.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the URL of `page` with this path added as the `next` query parameter. The page's handler reads
    /// this parameter with [`Next`].
    ///
    /// The page can then redirect back to this path. The URL needs no escaping in an HTML attribute unless
    /// `page` itself does.
    #[must_use]
    pub fn after(&self, page: &str) -> String {
        let mut address = String::with_capacity(page.len() + 3 * self.0.len());
        address.push_str(page);
        address.push(if page.contains('?') { '&' } else { '?' });
        address.push_str(NEXT);
        address.push('=');
        encode_value(&self.0, &mut address);
        address
    }

    /// Returns the path of this request, if the page to which the request is redirected can later redirect
    /// back to it.
    pub(crate) fn of(head: &RequestHead<'_>) -> Option<Self> {
        // A redirect back can only repeat requests with these methods. It cannot send a form again.
        if matches!(head.method, "GET" | "HEAD") { Self::parse(head.target) } else { None }
    }

    /// Returns whether `next` can be added to the URL of a page. The page must be on this site, and its URL
    /// must not contain `next` yet.
    pub(crate) fn can_follow(page: &str) -> bool {
        let is_told = || field(split_query(page).1.as_bytes(), NEXT).is_some();
        Self::parse(page).is_some() && !is_told()
    }
}

fn is_local(path: &str) -> bool {
    let mut path = Cow::Borrowed(path.as_bytes());
    for _ in 0..=MOST_ENCODINGS {
        if !is_unambiguous(&path) {
            return false;
        }
        match percent_decoded(&path) {
            Cow::Borrowed(_) => return true,
            Cow::Owned(decoded) => path = Cow::Owned(decoded),
        }
    }
    false
}

/// Returns whether all browsers, proxies and routers interpret a path in the same way. For example, a browser
/// takes a path that begins with two slashes for the URL of another site.
fn is_unambiguous(path: &[u8]) -> bool {
    let Some(segments) = path.strip_prefix(b"/") else { return false };
    let is_text = |byte: &u8| !byte.is_ascii_control() && *byte != b'\\';
    let is_segment = |segment: &[u8]| !matches!(segment, b"" | b"." | b"..");
    let mut segments = segments.split(|byte| *byte == b'/').rev();
    let last = segments.next().unwrap_or_default();
    path.iter().all(is_text) && (last.is_empty() || is_segment(last)) && segments.all(is_segment)
}

/// Converts the path for frameworks whose redirects own their URL.
impl From<LocalPath> for Cow<'static, str> {
    fn from(path: LocalPath) -> Self {
        Self::Owned(path.0)
    }
}

impl fmt::Display for LocalPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Deref for LocalPath {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Serialize for LocalPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// The path that the user wanted to open before being redirected to this page, taken from the `next`
/// parameter in this request's query.
///
/// [`Guard`](crate::Guard), [`SignedIn`](crate::SignedIn) and
/// [`AuthenticatedWithin`](crate::AuthenticatedWithin) can add the parameter when they redirect to the
/// sign-in page or the step-up page; see [`Builder::sign_in_page`](crate::Builder::sign_in_page). Take `Next`
/// as an argument of that page's handler, in axum or in actix-web. `Next` never rejects a request. If the
/// parameter is not a [`LocalPath`], it is ignored.
///
/// ```
/// use unsticky::{Next, Result, Session};
///
/// /// `GET /sign-in`: the form passes `next` on.
/// async fn form(next: Next) -> String {
///     format!("<form method=post action=\"{}\">…</form>", next.page("/sign-in"))
/// }
///
/// /// `POST /sign-in`: where to redirect to.
/// async fn sign_in(session: Session, next: Next) -> Result<String> {
///     session.sign_in("alice")?;
///     // In axum `Redirect::to(&next.or("/"))`, in actix-web `Redirect::to(next.or("/")).see_other()`.
///     Ok(next.or("/").to_string())
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let next = || Next::of_query("next=/orders");
/// # assert!(form(next()).await.contains("action=\"/sign-in?next=/orders\""));
/// # assert_eq!(sign_in(Session::detached(), next()).await.unwrap(), "/orders");
/// # }
/// ```
#[doc(alias("return_to", "redirect_to", "continue"))]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next(Option<LocalPath>);

impl Next {
    /// Reads `next` from a query, given without the `?`. For use in your own extractors.
    #[must_use]
    pub fn of_query(query: &str) -> Self {
        Self(field(query.as_bytes(), NEXT).and_then(|next| LocalPath::parse(&next)))
    }

    /// Reads `next` from a request's query. For adapters.
    #[must_use]
    pub fn of(head: &RequestHead<'_>) -> Self {
        Self::of_query(head.query())
    }

    /// Returns the path, or `None` if the parameter is missing or invalid.
    #[must_use]
    pub fn path(&self) -> Option<&LocalPath> {
        self.0.as_ref()
    }

    /// Returns the path, or `default` if the parameter is missing or invalid. If `default` is not a valid
    /// [`LocalPath`] either, returns `/`.
    #[must_use]
    pub fn or(self, default: &str) -> LocalPath {
        self.0.or_else(|| LocalPath::parse(default)).unwrap_or_else(|| LocalPath("/".to_owned()))
    }

    /// Returns the URL of `page` with the same `next` parameter, or `page` itself if the parameter is missing
    /// or invalid. Use it as the action of the sign-in form, or to link to another way of signing in.
    #[must_use]
    pub fn page(&self, page: &str) -> String {
        self.0.as_ref().map_or_else(|| page.to_owned(), |path| path.after(page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use url::Url;

    const LOCAL: &[&str] = &[
        "/",
        "/a",
        "/a/",
        "/a?b",
        "/a?next=//evil.example",
        "/a?x=https://evil.example/../\u{7e}",
        "/a?b=%0d%0a%00%5c",
        "/@evil.example",
        "/a:b@evil.example",
        "/https:evil.example",
        "/https:/evil.example",
        "/javascript:alert(1)",
        "/.well-known",
        "/a..b/...",
        "/caf%C3%A9",
        "/a%20b",
        "/100%",
        "/%zz/%4",
        "/a%252Db",
        "/a%25252Db",
        "/it's;v=1,2/(x)*!$&+~",
    ];

    const EVIL: &[&str] = &[
        "",
        "evil",
        "@evil.example",
        "?next=/",
        "//evil.example",
        "///evil.example",
        "/\\evil.example",
        "\\/evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "/\r/evil.example",
        "\t//evil.example",
        " //evil.example",
        "/ /evil.example",
        "/%09/evil.example",
        "/%0a/evil.example",
        "/%0D%0ASet-Cookie:%20a=b",
        "/a\r\nSet-Cookie: a=b",
        "/a\0",
        "/a%00",
        "/%7f",
        "/a%2500",
        "/%2fevil.example",
        "/%2Fevil.example",
        "%2f%2fevil.example",
        "/%2f%2fevil.example",
        "/%252fevil.example",
        "/%25%32%66evil.example",
        "/%25252fevil.example",
        "/%2525252Da",
        "/%5cevil.example",
        "/%255cevil.example",
        "/.//evil.example",
        "/..//evil.example",
        "/./evil",
        "/../evil",
        "/a/..",
        "/a/.",
        "/%2e%2e/evil",
        "/%2e",
        "/a//b",
        "/a//",
        "https:evil.example",
        "https://evil.example",
        "https:/evil.example",
        "http:///evil.example",
        "javascript:alert(1)",
        "/javascript:alert(1)#\"",
        "data:text/html,x",
        "/a#b",
        "/\"onload=",
        "/<script>",
        "/a>b",
        "/é",
        "/\u{2028}",
        "/\u{ff0f}evil.example",
    ];

    fn on_this_site(path: &str) -> bool {
        let site = Url::parse("https://shop.example/sign-in?next=x").unwrap();
        site.join(path).is_ok_and(|to| to.origin() == site.origin())
    }

    #[test]
    fn local_paths_are_taken_as_they_are() {
        for text in LOCAL {
            let path = LocalPath::parse(text).map(|path| path.to_string());
            assert_eq!(path.as_deref(), Some(*text));
            assert!(on_this_site(text), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in EVIL {
            assert_eq!(LocalPath::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn path_has_at_most_1024_bytes() {
        let longest = format!("/{}", "a".repeat(1023));
        assert!(LocalPath::parse(&longest).is_some());
        assert!(LocalPath::parse(&format!("{longest}a")).is_none());
    }

    #[test]
    fn next_leads_on_to_local_paths_only() {
        for (query, path, page) in [
            ("", "/home", "/sign-in"),
            ("next=", "/home", "/sign-in"),
            (
                "next=/orders%3Fa%3D1%26b%3D2",
                "/orders?a=1&b=2",
                "/sign-in?next=/orders%3Fa%3D1%26b%3D2",
            ),
            ("next=/a&next=/a", "/home", "/sign-in"),
            ("next=//evil.example", "/home", "/sign-in"),
            ("next=%2F%2Fevil.example", "/home", "/sign-in"),
            ("next=/%2509/evil.example", "/home", "/sign-in"),
            ("next=/a%00", "/home", "/sign-in"),
            ("next=%ff", "/home", "/sign-in"),
        ] {
            let next = Next::of_query(query);
            assert_eq!(next.page("/sign-in"), page, "{query}");
            assert_eq!(next.path().is_some(), page != "/sign-in", "{query}");
            assert_eq!(&*next.or("/home"), path, "{query}");
        }
        assert_eq!(Next::of_query("").or("//evil.example").as_str(), "/");
        let next = Next::of_query("next=/a");
        assert_eq!(next.page("/sign-in?way=code"), "/sign-in?way=code&next=/a");
        assert_eq!(Next::of_query(split_query(&next.page("/x")).1), next);
    }

    proptest! {
        #[test]
        fn local_path_stays_on_its_site(
            text in "[/\\\\]{0,3}([%@:.#?a-f0-9/\\\\\\t\\r\\n ]|%2[fFeE5]|%5[cC]|%0[9aAdD]|\\PC){0,12}"
        ) {
            if let Some(path) = LocalPath::parse(&text) {
                prop_assert!(on_this_site(&path), "{path}");
                // A proxy or router may rewrite the path in this way.
                let decoded = String::from_utf8_lossy(&percent_decoded(path.as_bytes())).into_owned();
                prop_assert!(on_this_site(split_query(&decoded).0), "{path}");
                prop_assert_eq!(Next::of_query(split_query(&path.after("/s")).1).0, Some(path));
            }
        }
    }
}
