//! The private parts that the benchmarks measure. Nothing here is part of the public interface, and anything
//! may change without notice.

#![allow(missing_docs, clippy::missing_errors_doc, reason = "not a public interface")]

use bytes::Bytes;

use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::record::header::Header;
use crate::record::lifetime::Lifetime;
use crate::record::loaded::Record;
use crate::record::plan::{KnownSession, Refresh, SignInTarget, Situation};
use crate::record::tag::Tag;
use crate::record::token::SecretDigest;
use crate::record::values::Value;
use crate::record::{codec, plan};
use crate::store::TAG_LEN;

/// Returns the record of a signed-in session with `values` values of `bytes` bytes each.
#[must_use]
pub fn record(values: usize, bytes: usize) -> Bytes {
    let mut header = Header::new(
        SecretDigest::from_bytes([7; 32]),
        Millis(1_800_000_000_000),
        &Lifetime::default(),
        Tag([1; TAG_LEN]),
    );
    header.principal = Some("account-4711".into());
    header.clocks.authenticated = Some(header.clocks.created);
    header.sign_ins = 1;
    let json = Bytes::from(format!("\"{}\"", "x".repeat(bytes.saturating_sub(2))));
    let keys: Vec<_> = (0..values).map(|number| format!("key-{number:03}")).collect();
    let values: Vec<_> =
        keys.iter().map(|key| (key.as_str(), Value::new(json.clone(), false))).collect();
    codec::encode(&header, &values)
}

/// A decoded record.
#[derive(Debug)]
pub struct Decoded(Record);

impl Decoded {
    pub fn new(bytes: Bytes) -> Result<Self> {
        codec::decode(bytes).map(Self).map_err(|_| Error::corrupt("not a record"))
    }

    #[must_use]
    pub fn encode(&self) -> Bytes {
        codec::encode_indexed(&self.0.header, &self.0.values.items().collect::<Vec<_>>()).0
    }

    #[must_use]
    pub fn get(&self, key: &str) -> Option<Bytes> {
        self.0.values.get(key).map(|value| value.bytes)
    }
}

/// Decides, for every kind of request, what happens at the end of the request. Returns the number of kinds
/// for which there is something to do.
#[must_use]
pub fn decide_all() -> u32 {
    let mut writes = 0;
    for bits in 0..1_u32 << 8 {
        let is = |bit: u32| bits & 1 << bit != 0;
        let situation = Situation {
            session: if is(0) {
                KnownSession::Current
            } else {
                KnownSession::Nothing { removable: is(1) }
            },
            changed: is(2),
            ended: is(3),
            proof: if is(4) { SignInTarget::Same } else { SignInTarget::None },
            new_secret: is(5),
            needs_current_secret: false,
            several: false,
            refresh: if is(6) { Refresh::Due } else { Refresh::No },
            failed: is(7),
        };
        writes += u32::from(plan::decide(situation) != plan::Plan::Nothing);
    }
    writes
}
