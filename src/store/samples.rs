//! Random keys and records for tests.

#![allow(clippy::expect_used, reason = "a test without randomness can only stop")]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use rand::TryRng as _;

use crate::store::key::{Kind, StoreKey, TAG_LEN};

/// Creates a random key that no other test uses.
///
/// # Panics
///
/// If the operating system's random number generator fails.
#[must_use]
pub fn random_key() -> StoreKey {
    StoreKey::new("conformance:0:", Kind::Session, &random_id())
}

/// Creates a record of `len` random bytes, but no fewer than [`TAG_LEN`].
///
/// # Panics
///
/// If the operating system's random number generator fails.
#[must_use]
pub fn random_record(len: usize) -> Bytes {
    let mut bytes = vec![0; len.max(TAG_LEN)];
    rand::rngs::SysRng.try_fill_bytes(&mut bytes).expect("the system's randomness");
    bytes.into()
}

/// Creates the text form of an id that no other test uses.
pub(crate) fn random_id() -> String {
    URL_SAFE_NO_PAD.encode(random_record(16))
}
