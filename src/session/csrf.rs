//! A value bound to the session, which requests that change something bring back.

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

/// The value that the session keeps.
type CsrfSecret = [u8; SECRET_BYTES];

const SECRET_BYTES: usize = 32;

/// A token for the forms of a page, which shows that a request comes from a page of this session (NIST SP
/// 800-63B-4 5.1, OWASP's synchronizer token). As an argument of a handler it is that of the request's
/// session; [`Csrf`] verifies it when the form is sent.
///
/// The session keeps a random value of 256 bits, made when a page first asks for a token, and a new one
/// after each sign-in, also of the same person, and after [`revoke_others`](crate::Directory::revoke_others);
/// [`clear`](Session::clear) removes it as well. The token is that value masked anew for each page, so that
/// compression leaks nothing of it (BREACH). Tokens stay valid after a rotation and a
/// [`step_up`](Session::step_up), as long as the value does.
///
/// A browser may hold a cookie that is not valid any more, because the response to a sign-in or a rotation
/// never arrived, or the cookies of two sessions. Its pages get a token that is bound to these cookies
/// instead: nothing is stored, no cookie is sent, and the form can be used to sign in.
///
/// A visitor without a session gets one with the first token, and a cookie: ask for a token only on pages
/// that have a form. Of two first pages that are loaded at once without a cookie, the session of one is lost;
/// its form has to be loaded again.
///
/// ```
/// use unsticky::{CsrfToken, Session};
///
/// // The same in an axum handler and in one of actix-web.
/// async fn page(token: CsrfToken) -> String {
///     format!("<form method=post>{}<button>Buy</button></form>", token.field())
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> unsticky::Result<()> {
/// let session = Session::detached();
/// let html = page(session.csrf_token().await?).await;
/// assert!(html.contains(r#"<input type="hidden" name="csrf_token" value=""#));
/// // What `Csrf` does with the field:
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
    /// The name of the form field that carries the token.
    pub const FIELD: &'static str = "csrf_token";

    /// The name of the header field that carries the token, for scripts.
    pub const HEADER: &'static str = "x-csrf-token";

    /// The token: 86 characters, letters and digits, `-` and `_`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The hidden field of a form, as HTML.
    #[must_use]
    pub fn field(&self) -> String {
        format!(r#"<input type="hidden" name="{}" value="{self}">"#, Self::FIELD)
    }

    /// The value under a fresh mask.
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

/// The value of a token.
fn unmasked(token: &str) -> Option<CsrfSecret> {
    let bytes: [u8; 2 * SECRET_BYTES] = BASE64.decode(token).ok()?.try_into().ok()?;
    let (mask, masked) = bytes.split_at(SECRET_BYTES);
    let mut secret = [0; SECRET_BYTES];
    for ((byte, mask), masked) in secret.iter_mut().zip(mask).zip(masked) {
        *byte = mask ^ masked;
    }
    Some(secret)
}

/// The value as it is stored: base64 as JSON.
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

/// An extractor of a body, such as `Csrf<Form<T>>` or `Csrf<Json<T>>`, for requests that bring the
/// session's [`CsrfToken`]; all others get a 403, [`ErrorKind::InvalidCsrfToken`].
///
/// The token is looked for in the header field [`CsrfToken::HEADER`] and, if the request has none and its
/// body is an urlencoded form, in the form's field [`CsrfToken::FIELD`]. A form is read whole for that,
/// within the framework's limit for bodies: axum's `DefaultBodyLimit`, and in actix-web `PayloadConfig` besides
/// the form's own. A type that denies unknown fields needs a field `csrf_token`.
/// A request without a body takes `Csrf<Bytes>`. For other bodies, such as `multipart/form-data`, take the token out yourself and call
/// [`Session::verify_csrf_token`].
///
/// ```
/// # #[cfg(feature = "axum")]
/// # mod example {
/// use axum::Form;
/// use unsticky::{Csrf, Session};
///
/// # #[derive(serde::Deserialize)]
/// # struct Order { article: u32 }
/// // With actix-web the same, and `web::Form`.
/// async fn buy(session: Session, Csrf(Form(order)): Csrf<Form<Order>>) -> String {
///     format!("article {} is yours", order.article)
/// }
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
#[allow(clippy::exhaustive_structs, reason = "it is made to be taken apart in arguments")]
pub struct Csrf<E>(pub E);

impl Session {
    /// Returns a CSRF token for the forms of a page; see [`CsrfToken`].
    ///
    /// The first call in a session stores the value behind the tokens, in one write that also commits the
    /// earlier changes of this request, like [`transact`](Self::transact). Later calls send nothing to the
    /// store.
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
    /// Those of [`save`](Self::save).
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
        // If the session was lost, a page need not fail for that.
        let shown = shown.or_else(|| self.csrf_secret());
        shown.ok_or_else(|| self.settings().gone("the session has ended"))
    }

    /// Verifies a CSRF token of the request, in constant time. Use it if the token is sent in a way that
    /// [`Csrf`] does not read.
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

    /// The value that tokens stand for, if there is one yet.
    ///
    /// Where the browser's tokens lead astray, no cookie may be sent and nothing can be stored, and yet a
    /// sign-in must be possible, which ends that: those tokens themselves are what ties the page to the
    /// browser then.
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

/// Makes the value in the stored record, unless another page was earlier.
struct ShowValue {
    fresh: CsrfSecret,
    shown: Option<CsrfSecret>,
    /// A visitor gets a session for it. One that was lost gets none.
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

/// How a request carries its token.
#[cfg(any(feature = "axum", feature = "actix"))]
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// What is no single token is an empty text, which is none.
    Header(String),
    /// If it has one, it is in the urlencoded body.
    Form,
    Nothing,
}

#[cfg(any(feature = "axum", feature = "actix"))]
impl Carrier {
    /// By the fields of the header: those of [`CsrfToken::HEADER`], and the body's type; `is_encoded`: the
    /// body is compressed or the like.
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
    /// Verifies the token of a request; `form` is its body where that may carry the token.
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
