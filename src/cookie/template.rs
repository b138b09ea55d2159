//! The session cookie that is sent to browsers.

use std::borrow::Cow;
use std::time::Duration;

use crate::error::Result;
use crate::record::lifetime::Persistence;
use crate::record::token::Token;

/// Controls whether a browser sends the cookie with cross-site requests (RFC 6265bis).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum SameSite {
    /// Never. A user who follows a link from another site appears to be signed out.
    Strict,
    /// Only if the user navigates to this site with a safe method such as GET, for example by following a
    /// link. This is the default.
    #[default]
    Lax,
    /// Always. This needs `Secure`.
    None,
}

impl SameSite {
    const fn text(self) -> &'static str {
        match self {
            Self::Strict => "Strict",
            Self::Lax => "Lax",
            Self::None => "None",
        }
    }
}

/// The name and the attributes of the session cookie. Set it with [`Builder::cookie`](crate::Builder::cookie).
///
/// The default is `__Host-id; Path=/; Secure; HttpOnly; SameSite=Lax`. The name reveals nothing about the
/// software. With the `__Host-` prefix, a browser accepts the cookie only from this exact host and only over
/// https, with [exceptions](#plain-http) for a developer's machine (RFC 6265bis). `HttpOnly` cannot be turned
/// off, because no script needs the token.
///
/// [`Builder::build`](crate::Builder::build) returns an error for a cookie that browsers would refuse.
///
/// ```
/// use unsticky::{Cookie, SameSite};
///
/// // One session for app.example.com and api.example.com.
/// let shared = Cookie::new("__Secure-id").domain("example.com").same_site(SameSite::Strict);
/// assert_eq!(shared.name(), "__Secure-id");
///
/// // Plain http on a developer's machine: a name without a prefix, and no `Secure`.
/// let development = Cookie::new("shop").insecure();
/// assert_eq!(development.name(), "shop");
/// ```
///
/// # Plain http
///
/// Whether a browser keeps a `Secure` cookie that it received over plain http depends on the host in its
/// address bar. The `__Host-` prefix makes no difference:
///
/// | page | Chromium, Firefox | Safari |
/// |---|---|---|
/// | `http://localhost`, `http://app.localhost` | kept | dropped |
/// | `http://127.0.0.1` and all of `127.0.0.0/8`, `http://[::1]` | kept | dropped |
/// | any other name, such as `http://laptop` or `http://shop.test` | dropped | dropped |
/// | any other address, such as `http://192.168.1.5` | dropped | dropped |
///
/// The results for Chromium and Firefox were measured in Chromium 156 and Firefox 153. Those for Safari are
/// from [WebKit bug 281149](https://bugs.webkit.org/show_bug.cgi?id=281149), which proposes to change this.
///
/// If the browser drops the cookie, a sign-in has no effect. The `secure_cookie_on_plain_http` event reports
/// the first time that a `Secure` session cookie is sent to a page in one of the last two rows. In Chromium and
/// Firefox, you can use the default cookie for development on `localhost`. For Safari, for another device in
/// your network, and for the host name of a container, use [`insecure`](Self::insecure).
///
/// Browsers keep one set of cookies per host, whatever the port (RFC 6265 8.5). Two applications on
/// `localhost:3000` and `localhost:3001` with the same cookie name therefore sign each other's users out. Give
/// each application its own cookie name, as in `Cookie::new("shop")`, or its own host, as in `shop.localhost`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cookie {
    name: Cow<'static, str>,
    path: Cow<'static, str>,
    domain: Option<Cow<'static, str>>,
    secure: bool,
    same_site: SameSite,
    partitioned: bool,
}

impl Default for Cookie {
    fn default() -> Self {
        Self::new("__Host-id")
    }
}

impl Cookie {
    /// Creates a cookie with this name and the default attributes.
    #[must_use]
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self {
            name: name.into(),
            path: Cow::Borrowed("/"),
            domain: None,
            secure: true,
            same_site: SameSite::Lax,
            partitioned: false,
        }
    }

    /// Leaves out `Secure`, so that browsers also keep the cookie over [plain http](Self#plain-http). For
    /// development only: anyone on the network can read the cookie.
    ///
    /// The name must not have a prefix such as `__Host-`, and neither [`SameSite::None`] nor
    /// [`partitioned`](Self::partitioned) is allowed. Otherwise [`Builder::build`](crate::Builder::build)
    /// returns an error.
    ///
    /// ```
    /// use unsticky::{Cookie, Sessions};
    ///
    /// # #[cfg(feature = "memory")]
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = unsticky::connect("memory:")?;
    /// // Two applications on one developer's machine, or two layers in one application.
    /// let shop = Sessions::builder(store.clone()).cookie(Cookie::new("shop").insecure()).build()?;
    /// let admin = Sessions::builder(store.clone()).cookie(Cookie::new("admin").insecure()).build()?;
    /// # let _ = (shop, admin);
    ///
    /// assert!(Sessions::builder(store).cookie(Cookie::new("__Host-id").insecure()).build().is_err());
    /// # Ok(())
    /// # }
    /// # #[cfg(not(feature = "memory"))]
    /// # fn main() {}
    /// ```
    #[doc(alias("secure", "plain_http", "with_secure", "cookie_secure"))]
    #[must_use]
    pub fn insecure(self) -> Self {
        Self { secure: false, ..self }
    }

    /// Sets the path under which the browser sends the cookie. Default: `/`.
    ///
    /// A name with the `__Host-` prefix requires the path `/`.
    #[doc(alias("with_path", "cookie_path"))]
    #[must_use]
    pub fn path(self, path: impl Into<Cow<'static, str>>) -> Self {
        Self { path: path.into(), ..self }
    }

    /// Sets the domain that shares the cookie with all its subdomains. Default: none, so only this host gets
    /// the cookie.
    ///
    /// The name must not have the `__Host-` prefix.
    #[doc(alias("with_domain", "cookie_domain"))]
    #[must_use]
    pub fn domain(self, domain: impl Into<Cow<'static, str>>) -> Self {
        Self { domain: Some(domain.into()), ..self }
    }

    /// Sets whether the browser sends the cookie with cross-site requests. Default: [`SameSite::Lax`].
    #[doc(alias("with_same_site", "cookie_same_site"))]
    #[must_use]
    pub fn same_site(self, same_site: SameSite) -> Self {
        Self { same_site, ..self }
    }

    /// Adds `Partitioned`, so that the browser keeps a separate cookie for each site that embeds this one
    /// (CHIPS). Needs `Secure`. Default: not partitioned.
    #[doc(alias("chips", "with_partitioned"))]
    #[must_use]
    pub fn partitioned(self) -> Self {
        Self { partitioned: true, ..self }
    }

    /// Returns the name of the cookie.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Checks that browsers accept the cookie with all its attributes. The error states the reason.
    pub(crate) fn validate(&self) -> Result<(), &'static str> {
        if self.name.is_empty() || !self.name.bytes().all(is_token_byte) {
            return Err("the name must have one or more of: letters, digits, !#$%&'*+-.^_`|~");
        }
        if self.name.len() > MAX_NAME {
            return Err("the name must have at most 256 characters");
        }
        if !self.path.starts_with('/') || !self.path.bytes().all(is_attribute_byte) {
            return Err("the path must begin with / and must not contain ; or control characters");
        }
        if self.path.len() > MAX_ATTRIBUTE
            || self.domain.as_ref().is_some_and(|domain| domain.len() > MAX_ATTRIBUTE)
        {
            return Err(
                "the path and the domain must have at most 1024 characters each: browsers ignore longer ones",
            );
        }
        if let Some(domain) = &self.domain
            && (domain.is_empty()
                || !domain
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte)))
        {
            return Err(
                "the domain may contain only letters, digits, - and . and must not be empty",
            );
        }
        // Browsers ignore case when they compare the prefixes.
        let has_prefix = |prefix: &str| {
            self.name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        };
        let for_host = has_prefix("__Host-");
        if for_host && self.domain.is_some() {
            return Err(
                "a name with the prefix __Host- allows no domain; use the prefix __Secure-",
            );
        }
        if for_host && self.path != "/" {
            return Err("a name with the prefix __Host- needs the path /");
        }
        if !self.secure && ["__Host-", "__Secure-", "__Http-"].into_iter().any(has_prefix) {
            return Err(
                "a name with the prefix __Host-, __Secure- or __Http- needs Secure; use a name without a prefix for plain http",
            );
        }
        if !self.secure && self.same_site == SameSite::None {
            return Err("SameSite=None needs Secure; remove `insecure`");
        }
        if !self.secure && self.partitioned {
            return Err("Partitioned needs Secure; remove `insecure`");
        }
        Ok(())
    }
}

/// RFC 6265bis 5.6: the name and the value together have at most 4096 octets.
const MAX_NAME: usize = 256;
const _: () = assert!(MAX_NAME + Token::ENCODED_LEN <= 4096);

/// RFC 6265bis 5.6: longer attributes are ignored.
const MAX_ATTRIBUTE: usize = 1024;

/// `tchar` of RFC 9110 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_attribute_byte(byte: u8) -> bool {
    (0x20..0x7f).contains(&byte) && byte != b';'
}

/// A validated cookie, split into the parts of its `Set-Cookie` header.
#[derive(Debug)]
pub(crate) struct CookieTemplate {
    /// `name=`
    start: String,
    /// `; Path=/; Secure; …`
    attributes: String,
    /// Whether the cookie has `Secure`, so that browsers may drop it over plain http.
    pub(crate) is_secure: bool,
}

impl CookieTemplate {
    pub(crate) fn new(cookie: &Cookie) -> Self {
        let mut attributes = format!("; Path={}", cookie.path);
        if let Some(domain) = &cookie.domain {
            attributes.push_str("; Domain=");
            attributes.push_str(domain);
        }
        if cookie.secure {
            attributes.push_str("; Secure");
        }
        attributes.push_str("; HttpOnly; SameSite=");
        attributes.push_str(cookie.same_site.text());
        if cookie.partitioned {
            attributes.push_str("; Partitioned");
        }
        Self { start: format!("{}=", cookie.name), attributes, is_secure: cookie.secure }
    }

    pub(crate) fn name(&self) -> &str {
        self.start.strip_suffix('=').unwrap_or_default()
    }

    /// Returns the name and the attributes, for reports.
    pub(crate) fn description(&self) -> String {
        format!("{}{}", self.name(), self.attributes)
    }

    /// Returns `name=`, which precedes the token in a `Cookie` header.
    pub(crate) fn name_and_equals(&self) -> &[u8] {
        self.start.as_bytes()
    }

    /// Returns the header that sets a token. `age` is its remaining lifetime.
    pub(crate) fn set(&self, token: &Token, age: Duration, persistence: Persistence) -> String {
        let age = match persistence {
            Persistence::BrowserSession => None,
            // The age is rounded up, so that the browser never drops the cookie while the session is alive.
            Persistence::Persistent => Some(age.as_millis().div_ceil(1000)),
        };
        self.header(Some(token), age)
    }

    /// Returns the header that removes the cookie. Its attributes must be those with which the cookie was
    /// set.
    pub(crate) fn removal(&self) -> String {
        self.header(None, Some(0))
    }

    /// Returns whether this header sets a token, rather than removing the cookie.
    pub(crate) fn is_set_by(&self, header: &str) -> bool {
        header.strip_prefix(&self.start).is_some_and(|rest| !rest.starts_with(';'))
    }

    fn header(&self, token: Option<&Token>, age: Option<u128>) -> String {
        use std::fmt::Write as _;

        let size = self.start.len() + Token::ENCODED_LEN + self.attributes.len() + 24;
        let mut header = String::with_capacity(size);
        header.push_str(&self.start);
        if let Some(token) = token {
            token.encode_into(&mut header);
        }
        header.push_str(&self.attributes);
        if let Some(age) = age {
            // Writing to a string cannot fail.
            let _ = write!(header, "; Max-Age={age}");
        }
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::lifetime::Persistence;
    use crate::record::token::Token;

    #[test]
    fn name_and_attribute_lengths_match_browser_limits() {
        let path = |length: usize| Cookie::new("a").path(format!("/{}", "p".repeat(length - 1)));
        let domain = |length: usize| Cookie::new("a").domain("d".repeat(length));
        assert_eq!(Cookie::new("a").name(), "a");
        for (cookie, is_taken) in [
            (Cookie::new("n".repeat(256)), true),
            (Cookie::new("n".repeat(257)), false),
            (path(1024), true),
            (path(1025), false),
            (domain(1024), true),
            (domain(1025), false),
        ] {
            assert_eq!(cookie.validate().is_ok(), is_taken, "{cookie:?}");
        }
    }

    fn token() -> Token {
        Token::parse(&[b'A'; 43]).unwrap()
    }

    fn template(cookie: Cookie) -> CookieTemplate {
        cookie.validate().unwrap();
        CookieTemplate::new(&cookie)
    }

    #[test]
    fn set_and_removal_cookies_have_same_attributes() {
        let a = "A".repeat(43);
        for (cookie, start, attributes) in [
            (Cookie::default(), "__Host-id=", "; Path=/; Secure; HttpOnly; SameSite=Lax"),
            (Cookie::new("id").insecure(), "id=", "; Path=/; HttpOnly; SameSite=Lax"),
            (
                Cookie::new("__Secure-s")
                    .path("/a")
                    .domain("example.com")
                    .same_site(SameSite::None)
                    .partitioned(),
                "__Secure-s=",
                "; Path=/a; Domain=example.com; Secure; HttpOnly; SameSite=None; Partitioned",
            ),
        ] {
            let template = template(cookie);
            let age = Duration::from_millis(1_500);
            assert_eq!(
                template.set(&token(), age, Persistence::Persistent),
                format!("{start}{a}{attributes}; Max-Age=2")
            );
            assert_eq!(
                template.set(&token(), age, Persistence::BrowserSession),
                format!("{start}{a}{attributes}")
            );
            assert_eq!(template.removal(), format!("{start}{attributes}; Max-Age=0"));
            assert_eq!(template.is_secure, attributes.contains("; Secure"));
            assert!(template.is_set_by(&template.set(&token(), age, Persistence::Persistent)));
            assert!(!template.is_set_by(&template.removal()));
        }
    }

    #[test]
    fn cookie_that_browsers_refuse_is_refused() {
        let plain = || Cookie::new("id").insecure();
        for (cookie, reason) in [
            (Cookie::new(""), "name"),
            (Cookie::new("a b"), "name"),
            (Cookie::new("a;b"), "name"),
            (Cookie::new("a=b"), "name"),
            (Cookie::new("é"), "name"),
            (Cookie::new("a".repeat(257)), "256"),
            (Cookie::new("id").path(""), "path"),
            (Cookie::new("id").path("a"), "path"),
            (Cookie::new("id").path("/;"), "path"),
            (Cookie::new("id").path("/\n"), "path"),
            (Cookie::new("id").path(format!("/{}", "a".repeat(1024))), "1024"),
            (Cookie::new("id").domain(""), "domain"),
            (Cookie::new("id").domain("a;b"), "domain"),
            (Cookie::default().domain("example.com"), "__Secure-"),
            (Cookie::new("__host-id").domain("example.com"), "__Secure-"),
            (Cookie::default().path("/a"), "path /"),
            (Cookie::default().insecure(), "Secure"),
            (Cookie::new("__Secure-id").insecure(), "Secure"),
            (Cookie::new("__Host-Http-id").insecure(), "Secure"),
            (plain().same_site(SameSite::None), "SameSite=None"),
            (plain().partitioned(), "Partitioned"),
        ] {
            let refused = cookie.validate().unwrap_err();
            assert!(refused.contains(reason), "{cookie:?}: {refused}");
        }
    }

    #[test]
    fn longest_cookie_fits_browser_limit() {
        let name = "a".repeat(MAX_NAME);
        let header =
            template(Cookie::new(name)).set(&token(), Duration::ZERO, Persistence::Persistent);
        assert!(header.split(';').next().unwrap().len() <= 4096);
    }
}
