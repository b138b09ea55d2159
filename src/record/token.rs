//! The token, which is the cookie's value: a public id and a secret.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::entropy::Entropy;
use crate::error::Result;

const ID_BYTES: usize = 16;
const SECRET_BYTES: usize = 16;
const TOKEN_BYTES: usize = ID_BYTES + SECRET_BYTES;

// ASVS 5.0 7.2.3 asks for at least 128 bits from a CSPRNG.
const _: () = assert!(SECRET_BYTES * 8 >= 128);

/// The public id of a session: 128 random bits that stay the same for the session's whole life.
///
/// The id is part of the record's key in the store. It is **not** a credential: it cannot be used to access
/// the session, so you may log it, list it and show it on an administrator's page.
///
/// As text, in JSON and in forms, the id is 22 characters of base64url. Any other text is rejected:
///
/// ```
/// use unsticky::SessionId;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let id: SessionId = "AAECAwQFBgcICQoLDA0ODw".parse()?;
/// assert_eq!(serde_json::to_string(&id)?, "\"AAECAwQFBgcICQoLDA0ODw\"");
/// assert!(serde_json::from_str::<SessionId>("\"somebody's\"").is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId([u8; ID_BYTES]);

impl SessionId {
    /// The number of characters that [`Display`](fmt::Display) prints.
    pub const ENCODED_LEN: usize = 22;

    pub(crate) fn random(entropy: &dyn Entropy) -> Result<Self> {
        let mut bytes = [0; ID_BYTES];
        entropy.fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    pub(crate) const fn from_bytes(bytes: [u8; ID_BYTES]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; ID_BYTES] {
        &self.0
    }

    pub(crate) fn encoded(self, text: &mut [u8; Self::ENCODED_LEN]) -> &str {
        // The buffer has exactly the right length, and base64 is ASCII.
        let length = URL_SAFE_NO_PAD.encode_slice(self.0, &mut text[..]).unwrap_or(0);
        std::str::from_utf8(&text[..length]).unwrap_or_default()
    }
}

impl fmt::Display for SessionId {
    /// Prints the id as 22 characters of base64url.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.encoded(&mut [0; Self::ENCODED_LEN]))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({self})")
    }
}

/// The error returned for a string that is not a [`SessionId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a session id")]
#[non_exhaustive]
pub struct ParseIdError;

impl FromStr for SessionId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        decode(text.as_bytes()).map(Self).ok_or(ParseIdError)
    }
}

impl Serialize for SessionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.encoded(&mut [0; Self::ENCODED_LEN]))
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = SessionId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the 22 characters of a session id")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<SessionId, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}

/// The credential. It leaves this module only inside a cookie.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Secret([u8; SECRET_BYTES]);

impl Secret {
    pub(crate) fn random(entropy: &dyn Entropy) -> Result<Self> {
        let mut bytes = [0; SECRET_BYTES];
        entropy.fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// Returns the digest of this secret for a cookie with this name.
    pub(crate) fn digest(&self, cookie_name: &str) -> SecretDigest {
        SecretDigest(digest_under(cookie_name, &self.0))
    }
}

/// Returns the SHA-256 hash of the length of the cookie's name (8 bytes, big-endian), the cookie's name, and
/// `content`. A token is therefore valid under one cookie name only.
pub(crate) fn digest_under(cookie_name: &str, content: &[u8]) -> [u8; 32] {
    let length = u64::try_from(cookie_name.len()).unwrap_or(u64::MAX);
    let name = Sha256::new().chain_update(length.to_be_bytes()).chain_update(cookie_name);
    name.chain_update(content).finalize().into()
}

/// Returns the digest from [`digest_under`] as 43 characters of base64url.
pub(crate) fn encoded_digest(cookie_name: &str, content: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(digest_under(cookie_name, content))
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The stored form of a secret: its [digest under the cookie's name](digest_under).
///
/// The secret has 128 random bits, so its plain digest can be neither reversed nor guessed; a slow password
/// hash would add nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct SecretDigest([u8; SecretDigest::LEN]);

impl SecretDigest {
    pub(crate) const LEN: usize = 32;

    pub(crate) const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// Returns whether this is the digest of `secret` for a cookie with this name. The comparison takes
    /// constant time.
    pub(crate) fn matches(&self, secret: &Secret, cookie_name: &str) -> bool {
        self.0.ct_eq(&secret.digest(cookie_name).0).into()
    }
}

impl fmt::Debug for SecretDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretDigest(..)")
    }
}

/// A token, `id || secret`. It has exactly one text form: 43 characters of base64url.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) id: SessionId,
    pub(crate) secret: Secret,
}

impl Token {
    pub(crate) const ENCODED_LEN: usize = 43;

    /// Parses the text form, and returns `None` for any other text.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let bytes: [u8; TOKEN_BYTES] = decode(text)?;
        let (id, secret) = bytes.split_at(ID_BYTES);
        Some(Self { id: SessionId(id.try_into().ok()?), secret: Secret(secret.try_into().ok()?) })
    }

    pub(crate) fn encode_into(&self, text: &mut String) {
        let mut bytes = [0; TOKEN_BYTES];
        bytes[..ID_BYTES].copy_from_slice(&self.id.0);
        bytes[ID_BYTES..].copy_from_slice(&self.secret.0);
        URL_SAFE_NO_PAD.encode_string(bytes, text);
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Decodes exactly `N` bytes. The alphabet, the length and the trailing bits must be correct, so that each
/// value has only one text form.
fn decode<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    // The `base64` crate needs room for its own estimate of the length, which may be a little too high.
    let mut buffer = [0; TOKEN_BYTES + 3];
    let length = URL_SAFE_NO_PAD.decode_slice(text, &mut buffer).ok()?;
    buffer.get(..length)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::entropy::OsEntropy;

    fn token() -> Token {
        Token {
            id: SessionId::random(&OsEntropy).unwrap(),
            secret: Secret::random(&OsEntropy).unwrap(),
        }
    }

    #[test]
    fn token_has_one_text_form_of_43_characters() {
        let token = token();
        let mut text = String::new();
        token.encode_into(&mut text);
        assert_eq!(text.len(), Token::ENCODED_LEN);
        assert_eq!(Token::parse(text.as_bytes()), Some(token));
        assert_eq!(Token::parse(&text.as_bytes()[..42]), None);
        assert_eq!(Token::parse(format!("{text}=").as_bytes()), None);
        assert_eq!(Token::parse(format!("{text}A").as_bytes()), None);
        // The last character carries two bits that must be zero.
        let zero = "A".repeat(43);
        assert!(Token::parse(zero.as_bytes()).is_some());
        assert_eq!(Token::parse(format!("{}B", "A".repeat(42)).as_bytes()), None);
        assert_eq!(Token::parse("+".repeat(43).as_bytes()), None);
        assert_eq!(Token::parse(&[0xff; 43]), None);
        assert_eq!(Token::parse(&[b'A'; 4096]), None);
    }

    #[test]
    fn session_id_survives_text_round_trip() {
        let id = token().id;
        let text = id.to_string();
        assert_eq!(text.len(), SessionId::ENCODED_LEN);
        assert_eq!(text.parse(), Ok(id));
        assert_eq!("".parse::<SessionId>(), Err(ParseIdError));
        assert_eq!("A".repeat(43).parse::<SessionId>(), Err(ParseIdError));
    }

    #[test]
    fn one_million_ids_and_secrets_are_distinct() {
        let mut seen = HashSet::with_capacity(2_000_000);
        for _ in 0..1_000_000 {
            let token = token();
            assert!(seen.insert(token.id.0));
            assert!(seen.insert(token.secret.0));
        }
    }

    #[test]
    fn digest_matches_only_its_own_secret() {
        let (one, other) = (token().secret, token().secret);
        assert!(one.digest("id").matches(&one, "id"));
        assert!(!one.digest("id").matches(&other, "id"));
        let mut flipped = one;
        flipped.0[15] ^= 1;
        assert!(!one.digest("id").matches(&flipped, "id"));
    }

    #[test]
    fn secret_matches_only_under_its_own_cookie_name() {
        let secret = Secret([7; SECRET_BYTES]);
        for other in ["", "i", "ID", "idd", "__Host-id"] {
            assert!(!secret.digest("id").matches(&secret, other), "{other:?}");
        }
        let documented = [&8_u64.to_be_bytes()[..], b"__Host-x", &[7; SECRET_BYTES]].concat();
        assert_eq!(secret.digest("__Host-x").0, <[u8; 32]>::from(Sha256::digest(documented)));
    }

    #[test]
    fn debug_prints_no_secret() {
        let token = Token { id: SessionId([1; 16]), secret: Secret([0xAB; 16]) };
        let printed = format!("{token:?} {:?} {:?}", token.secret, token.secret.digest("id"));
        let mut whole = String::new();
        token.encode_into(&mut whole);
        let alone = URL_SAFE_NO_PAD.encode([0xAB; 16]);
        for secret in ["171, 171", "abab", "ABAB", "AB, AB", &alone, &whole[22..]] {
            assert!(!printed.contains(secret), "{printed}");
        }
        assert!(printed.contains(&token.id.to_string()));
    }
}
