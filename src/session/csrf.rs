//! CSRF tokens. Each is bound to a session, and a request that [`Csrf`] protects must contain one.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::ser::{Serialize, Serializer};
use subtle::ConstantTimeEq as _;

use crate::commit::Decision;
use crate::entropy::Entropy;
use crate::error::{Error, ErrorKind, Result};
use crate::event;
#[cfg(any(feature = "axum", feature = "actix"))]
use crate::head::query;
use crate::record::key::Name;
use crate::record::transaction::Transaction;
use crate::record::values::Value;
use crate::session::Session;

const KEY: Name = Name::Constant("unsticky.csrf");

/// The random value that is stored in the session.
type CsrfSecret = [u8; SECRET_BYTES];

const SECRET_BYTES: usize = 32;

/// Proves that a form was sent from a page served in this session (NIST SP 800-63B-4 5.1; OWASP's
/// synchronizer token).
///
/// Take a `CsrfToken` as an argument of the handler that renders the form, and insert its
/// [`field`](Self::field) into the form. [`Csrf`] verifies the token when the form is submitted.
///
/// When a page first asks for a token, a random value of 256 bits is stored in the session. Every sign-in
/// removes this value, even a sign-in as the same principal, and so do
/// [`revoke_others`](crate::Directory::revoke_others) and [`clear`](Session::clear); the next page then
/// stores a new one. Each token contains this value, masked with fresh random bytes, so compressed pages do
/// not reveal the value (BREACH). Tokens stay valid after a rotation and after a
/// [`step_up`](Session::step_up).
///
/// A browser may send a cookie that is no longer valid because the response to a sign-in or a rotation was
/// lost, or it may send the cookies of two sessions. The token is then bound to the cookies that the browser
/// sent: nothing is stored, no cookie is set, and the user can still sign in with the form.
///
/// If the request has no session, the first token creates one and sends a cookie, so ask for a token only on
/// pages that have a form. If a browser without a cookie loads two such pages at once, one of the two new
/// sessions is lost, and the page that belongs to it must be reloaded.
///
/// ```
/// use unsticky::{CsrfToken, Session};
///
/// // Works as a handler in axum and in actix-web.
/// async fn page(token: CsrfToken) -> String {
///     format!("<form method=post>{}<button>Buy</button></form>", token.field())
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> unsticky::Result<()> {
/// let session = Session::detached();
/// let html = page(session.csrf_token().await?).await;
/// assert!(html.contains(r#"<input type="hidden" name="csrf_token" value=""#));
/// // `Csrf` verifies the field like this:
/// let token = session.csrf_token().await?;
/// session.verify_csrf_token(token.as_str())?;
/// assert!(session.verify_csrf_token("forged").is_err());
/// # Ok(())
/// # }
/// ```
#[doc(alias("authenticity_token", "xsrf", "anti_forgery"))]
#[derive(Clone)]
pub struct CsrfToken {
    text: String,
}

impl CsrfToken {
    /// The name of the form field that contains the token.
    pub const FIELD: &'static str = "csrf_token";

    /// The name of the request header in which scripts send the token.
    pub const HEADER: &'static str = "x-csrf-token";

    /// Returns the token: 86 characters, each a letter, a digit, `-` or `_`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the HTML of a hidden form field that contains the token.
    #[must_use]
    pub fn field(&self) -> String {
        format!(r#"<input type="hidden" name="{}" value="{self}">"#, Self::FIELD)
    }

    /// Returns a token that contains the value, masked with fresh random bytes.
    fn masked(secret: &CsrfSecret, entropy: &dyn Entropy) -> Result<Self> {
        let mut bytes = [0; 2 * SECRET_BYTES];
        let (mask, masked) = bytes.split_at_mut(SECRET_BYTES);
        entropy.fill(mask)?;
        for ((masked, mask), byte) in masked.iter_mut().zip(mask).zip(secret) {
            *masked = *mask ^ byte;
        }
        Ok(Self { text: BASE64.encode(bytes) })
    }
}

/// Returns the value that a token contains.
fn unmasked(token: &str) -> Option<CsrfSecret> {
    let bytes: [u8; 2 * SECRET_BYTES] = BASE64.decode(token).ok()?.try_into().ok()?;
    let (mask, masked) = bytes.split_at(SECRET_BYTES);
    let mut secret = [0; SECRET_BYTES];
    for ((byte, mask), masked) in secret.iter_mut().zip(mask).zip(masked) {
        *byte = mask ^ masked;
    }
    Some(secret)
}

/// Returns the value as it is stored: a JSON string that contains base64.
fn stored_form(secret: &CsrfSecret) -> Value {
    Value::until_sign_in(format!("\"{}\"", BASE64.encode(secret)).into())
}

fn read(value: &Value) -> Option<CsrfSecret> {
    let text = value.bytes.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    BASE64.decode(text).ok()?.try_into().ok()
}

impl fmt::Display for CsrfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for CsrfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CsrfToken(..)")
    }
}

impl Serialize for CsrfToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// Extracts the body, as in `Csrf<Form<T>>` or `Csrf<Json<T>>`, after verifying the request's [`CsrfToken`].
///
/// A request without a valid token for its session gets a 403, [`ErrorKind::InvalidCsrfToken`].
///
/// The token is read from the [`CsrfToken::HEADER`] request header. If the request does not have this header
/// and its body is a URL-encoded form, the token is read from the [`CsrfToken::FIELD`] form field. The whole
/// form is then read into memory, up to the framework's body limit: `DefaultBodyLimit` in axum, and both
/// `PayloadConfig` and the form's own limit in actix-web. If `T` denies unknown fields, give it a
/// `csrf_token` field.
///
/// For requests without a body, take `Csrf<Bytes>`. For other bodies, such as `multipart/form-data`, read the
/// token yourself and call [`Session::verify_csrf_token`].
///
/// ```
/// # #[cfg(feature = "axum")]
/// # mod example {
/// use axum::Form;
/// use unsticky::{Csrf, Session};
///
/// # #[derive(serde::Deserialize)]
/// # struct Order { article: u32 }
/// // In actix-web, use `web::Form`.
/// async fn buy(session: Session, Csrf(Form(order)): Csrf<Form<Order>>) -> String {
///     format!("article {} is yours", order.article)
/// }
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
#[allow(
    clippy::exhaustive_structs,
    reason = "it is meant to be destructured in a handler's arguments"
)]
pub struct Csrf<E>(pub E);

impl Session {
    /// Returns a CSRF token for the forms of a page; see [`CsrfToken`].
    ///
    /// The first call in a session stores the value that its tokens are made from. Like
    /// [`transact`](Self::transact), it uses a single write, which also commits this request's earlier
    /// changes. Further calls send no store commands, as long as the session keeps this value.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// let token = session.csrf_token().await?.to_string();
    /// assert!(session.verify_csrf_token(&token).is_ok());
    /// assert!(session.verify_csrf_token("forged").is_err());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The errors of [`save`](Self::save).
    pub async fn csrf_token(&self) -> Result<CsrfToken> {
        let entropy = &*self.settings().entropy;
        let known = self.csrf_secret();
        let secret = match known {
            Some(secret) => secret,
            None => self.shown_csrf_secret().await?,
        };
        CsrfToken::masked(&secret, entropy)
    }

    /// Returns the stored value; stores a fresh one if there is none.
    async fn shown_csrf_secret(&self) -> Result<CsrfSecret> {
        let mut fresh = [0; SECRET_BYTES];
        self.settings().entropy.fill(&mut fresh)?;
        let has_session = self.state().loaded.is_some();
        let shown = self
            .run_to_completion(|session, driver| async move {
                let mut decision = ShowValue { fresh, shown: None, has_session };
                session.commit(&driver, false, Some(&mut decision)).await?;
                Ok(decision.shown)
            })
            .await?;
        // Even if the session was lost, the page gets a token.
        let shown = shown.or_else(|| self.csrf_secret());
        shown.ok_or_else(|| self.settings().gone("the session has ended"))
    }

    /// Verifies a CSRF token from the request, in constant time. Use this method if the request carries the
    /// token where [`Csrf`] does not look for it.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// let token = session.csrf_token().await?.to_string();
    /// assert!(session.verify_csrf_token(&token).is_ok());
    /// assert!(session.verify_csrf_token("forged").is_err());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidCsrfToken`] if the token does not belong to this session.
    pub fn verify_csrf_token(&self, token: &str) -> Result<()> {
        let is_valid = unmasked(token)
            .zip(self.csrf_secret())
            .is_some_and(|(token, secret)| token.ct_eq(&secret).into());
        if is_valid { Ok(()) } else { Err(self.refused_csrf("invalid")) }
    }

    /// Returns the value that CSRF tokens are made from, or `None` if the session does not have one yet.
    ///
    /// If the request's session tokens are stale or belong to several sessions, no cookie may be sent and
    /// nothing can be stored. A sign-in must still be possible, because it ends this state. The value is then
    /// derived from these session tokens, so the page is bound to the browser.
    fn csrf_secret(&self) -> Option<CsrfSecret> {
        let state = self.state();
        if state.is_astray() {
            drop(state);
            return self.0.presented.digest(self.settings().cookie.name(), &KEY);
        }
        state.value(&KEY).as_ref().and_then(read)
    }

    fn refused_csrf(&self, reason: &'static str) -> Error {
        let principal = self.principal();
        event::csrf_refused(self.id(), self.settings().who(principal.as_deref()), reason);
        Error::new(ErrorKind::InvalidCsrfToken, "")
    }
}

/// Adds the value to the stored record, unless another request has already added one.
struct ShowValue {
    fresh: CsrfSecret,
    shown: Option<CsrfSecret>,
    /// If the request has no session, one is created for the value. If the request has lost its session, none
    /// is created.
    has_session: bool,
}

impl Decision for ShowValue {
    fn decide(&mut self, values: &mut Transaction<'_>) -> Result<()> {
        let stored = values.stored(&KEY).as_ref().and_then(read);
        if stored.is_none() {
            values.put(KEY, Some(stored_form(&self.fresh)));
        }
        self.shown = stored.or(Some(self.fresh));
        Ok(())
    }

    fn is_optional(&self) -> bool {
        self.has_session
    }

    fn give_up(&mut self) {
        self.shown = None;
    }
}

/// The part of a request that contains its CSRF token.
#[cfg(any(feature = "axum", feature = "actix"))]
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// The header. The text is empty, and therefore invalid, if the header appears more than once or is not
    /// UTF-8.
    Header(String),
    /// The URL-encoded body, which may contain the token.
    Form,
    Nothing,
}

#[cfg(any(feature = "axum", feature = "actix"))]
impl Carrier {
    /// Determines the carrier from the values of [`CsrfToken::HEADER`] and the body's content type.
    /// `is_encoded` means that the body has a content encoding, such as compression.
    pub(crate) fn of<'a>(
        tokens: impl IntoIterator<Item = &'a [u8]>,
        content_type: Option<&[u8]>,
        is_encoded: bool,
    ) -> Self {
        let mut tokens = tokens.into_iter();
        match (tokens.next().map(<[u8]>::to_vec), tokens.next()) {
            (Some(token), None) => Self::Header(String::from_utf8(token).unwrap_or_default()),
            (Some(_), Some(_)) => Self::Header(String::new()),
            (None, _) if !is_encoded && content_type.is_some_and(is_form) => Self::Form,
            (None, _) => Self::Nothing,
        }
    }
}

#[cfg(any(feature = "axum", feature = "actix"))]
fn is_form(content_type: &[u8]) -> bool {
    const FORM: &[u8] = b"application/x-www-form-urlencoded";

    let essence = content_type.split(|byte| *byte == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(FORM)
}

#[cfg(any(feature = "axum", feature = "actix"))]
impl Session {
    /// Verifies the token of a request. `form` is the body, if it may contain the token.
    pub(crate) fn verify_csrf(&self, carrier: Carrier, form: &[u8]) -> Result<()> {
        let token = match carrier {
            Carrier::Header(token) => Some(token),
            Carrier::Form => query::field(form, CsrfToken::FIELD),
            Carrier::Nothing => None,
        };
        match token {
            Some(token) => self.verify_csrf_token(&token),
            None => Err(self.refused_csrf("missing")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::OsEntropy;

    #[test]
    fn token_is_masked_anew_and_means_the_same_value() {
        let secret = [7; SECRET_BYTES];
        let tokens = [0; 8].map(|_| CsrfToken::masked(&secret, &OsEntropy).unwrap());
        for (place, token) in tokens.iter().enumerate() {
            assert_eq!((token.as_str().len(), unmasked(token.as_str())), (86, Some(secret)));
            assert!(tokens[..place].iter().all(|other| other.text[..43] != token.text[..43]));
            assert!(tokens[..place].iter().all(|other| other.text[43..] != token.text[43..]));
        }
        assert_eq!(read(&stored_form(&secret)), Some(secret));
    }

    #[test]
    fn text_of_another_form_is_no_token() {
        let token = CsrfToken::masked(&[7; SECRET_BYTES], &OsEntropy).unwrap().text;
        for text in [
            "",
            &token[..85],
            &token[1..],
            &format!("{token}A"),
            &format!("{token}=="),
            &format!(" {token}"),
            &"é".repeat(43),
            &"+".repeat(86),
        ] {
            assert_eq!(unmasked(text), None, "{text}");
        }
        for text in ["", "\"", "7", "\"7\"", "null", "[]"] {
            assert_eq!(read(&Value::until_sign_in(text.into())), None, "{text}");
        }
    }

    #[cfg(any(feature = "axum", feature = "actix"))]
    #[test]
    fn header_is_looked_at_before_form() {
        let form = Some(&b"application/x-www-form-urlencoded"[..]);
        let with_charset = Some(&b" Application/X-WWW-Form-URLEncoded ; charset=utf-8"[..]);
        let json = Some(&b"application/json"[..]);
        let header = || Carrier::Header("t".to_owned());
        for (tokens, content_type, is_encoded, expected) in [
            (&["t"][..], form, false, header()),
            (&["t"], json, false, header()),
            (&["t"], None, true, header()),
            (&["t", "t"], form, false, Carrier::Header(String::new())),
            (&[], form, false, Carrier::Form),
            (&[], with_charset, false, Carrier::Form),
            (&[], form, true, Carrier::Nothing),
            (&[], json, false, Carrier::Nothing),
            (&[], Some(b"application/x-www-form-urlencoded-not"), false, Carrier::Nothing),
            (&[], None, false, Carrier::Nothing),
        ] {
            let fields = tokens.iter().map(|token| token.as_bytes());
            assert_eq!(Carrier::of(fields, content_type, is_encoded), expected, "{tokens:?}");
        }
        assert_eq!(Carrier::of([&b"\xff"[..]], form, false), Carrier::Header(String::new()));
    }
}
