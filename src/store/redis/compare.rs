//! Compare-and-set with a script, which every server runs atomically.

use std::sync::LazyLock;

use ::redis::{Cmd, Script};
use bytes::Bytes;

use crate::store::contract::{Stored, Version};
use crate::store::key::{StoreKey, TAG_LEN};

/// A change to a record that takes effect only if the key still holds the expected record.
pub(super) struct CompareAndSet<'a> {
    pub(super) key: &'a StoreKey,
    pub(super) expected: &'a Stored,
    pub(super) change: Change<'a>,
}

pub(super) enum Change<'a> {
    /// `ttl` is in milliseconds.
    Replace {
        bytes: &'a Bytes,
        ttl: u64,
    },
    Delete,
}

impl CompareAndSet<'_> {
    /// Returns the command that runs the script by its hash. The server must have the script in its cache.
    pub(super) fn by_hash(&self) -> Cmd {
        self.invocation("EVALSHA", &self.script().hash)
    }

    pub(super) fn by_source(&self) -> Cmd {
        self.invocation("EVAL", self.script().source)
    }

    fn script(&self) -> &'static Atomic {
        match self.change {
            Change::Replace { .. } => &REPLACE,
            Change::Delete => &DELETE,
        }
    }

    fn invocation(&self, verb: &str, script: &str) -> Cmd {
        let key = self.key.as_str();
        let size = verb.len() + script.len() + key.len() + TAG_LEN + 1;
        match self.change {
            Change::Replace { bytes, ttl } => {
                let mut command = Cmd::with_capacity(7, size + bytes.len() + 20);
                command.arg(verb).arg(script).arg(1).arg(key);
                command.arg(&tag(self.expected.version)).arg(&bytes[..]).arg(ttl);
                command
            }
            Change::Delete => {
                let mut command = Cmd::with_capacity(5, size);
                command.arg(verb).arg(script).arg(1).arg(key).arg(&tag(self.expected.version));
                command
            }
        }
    }
}

/// A script that the server runs atomically.
struct Atomic {
    source: &'static str,
    hash: String,
}

impl Atomic {
    fn new(source: &'static str) -> Self {
        Self { source, hash: Script::new(source).get_hash().to_owned() }
    }
}

/// Returns nil for a missing key, 1 if the record was replaced, and otherwise the current record, so that a
/// conflict does not cost a second round trip.
static REPLACE: LazyLock<Atomic> = LazyLock::new(|| {
    Atomic::new(
        "\
if redis.call('GETRANGE', KEYS[1], 0, 7) == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return 1
end
return redis.call('GET', KEYS[1])",
    )
});

/// Returns 1 if the record was deleted, nil for a missing key, and otherwise the current record.
static DELETE: LazyLock<Atomic> = LazyLock::new(|| {
    Atomic::new(
        "\
if redis.call('GETRANGE', KEYS[1], 0, 7) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return redis.call('GET', KEYS[1])",
    )
});

/// Returns the version of a record: its write tag. Shorter data from another program is padded with zeros.
/// The scripts compare eight bytes, so such a version never matches.
pub(super) fn version(bytes: &[u8]) -> Version {
    let mut tag = [0; TAG_LEN];
    let length = bytes.len().min(TAG_LEN);
    tag[..length].copy_from_slice(&bytes[..length]);
    Version::new(u64::from_be_bytes(tag))
}

fn tag(version: Version) -> [u8; TAG_LEN] {
    version.get().to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_first_eight_bytes_of_record() {
        assert_eq!(tag(version(b"12345678rest")), *b"12345678");
        assert_eq!(tag(version(b"123")), *b"123\0\0\0\0\0");
        assert_eq!(tag(version(b"")), [0; 8]);
    }
}
