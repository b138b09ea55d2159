//! Keys and records for tests.

#![allow(clippy::expect_used, reason = "a test without randomness can only stop")]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use rand::TryRng as _;

use crate::store::key::{Kind, StoreKey, TAG_LEN};

/// A key that no other test has.
///
/// # Panics
///
/// Where the operating system gives no randomness.
#[must_use]
pub fn random_key() -> StoreKey {
    StoreKey::new("conformance:0:", Kind::Session, &random_id())
}

/// A record of this length, of random bytes; at least [`TAG_LEN`] of them.
///
/// # Panics
///
/// Where the operating system gives no randomness.
#[must_use]
pub fn random_record(len: usize) -> Bytes {
    let mut bytes = vec![0; len.max(TAG_LEN)];
    rand::rngs::SysRng.try_fill_bytes(&mut bytes).expect("the system's randomness");
    bytes.into()
}

/// The text form of an id that no other test has.
pub(crate) fn random_id() -> String {
    URL_SAFE_NO_PAD.encode(random_record(16))
}
