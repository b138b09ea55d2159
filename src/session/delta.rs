//! What a request changed: a list of changes that can be replayed on a newer record, and the view of
//! the values that results.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;

use super::record::{Value, Values};
use crate::error::{Error, ErrorKind, Result};

/// The function of an `update`, over encoded values.
pub(crate) type UpdateFn = dyn Fn(Option<&[u8]>) -> Result<Bytes> + Send + Sync;

/// One change, as the handler asked for it.
#[derive(Clone)]
pub(crate) enum Change {
    Clear,
    Set {
        key: Arc<str>,
        value: Value,
    },
    Remove {
        key: Arc<str>,
    },
    /// A value was handed out for good; `seen` is what the record held.
    Take {
        key: Arc<str>,
        seen: Bytes,
    },
    Update {
        key: Arc<str>,
        survives: bool,
        function: Arc<UpdateFn>,
    },
}

impl Change {
    fn key(&self) -> Option<&Arc<str>> {
        match self {
            Self::Clear => None,
            Self::Set { key, .. }
            | Self::Remove { key }
            | Self::Take { key, .. }
            | Self::Update { key, .. } => Some(key),
        }
    }
}

/// What a change does to a view.
#[derive(Clone)]
pub(crate) enum Effect {
    Clear,
    Put(Arc<str>, Value),
    Drop(Arc<str>),
}

/// The changes of a request, in order, and the view they lead to.
#[derive(Clone, Default)]
pub(crate) struct Delta {
    changes: Vec<(u64, Change)>,
    made: u64,
    view: View,
}

impl Delta {
    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// How many changes were made so far: a bookmark, and a way to see that nothing came between.
    pub(crate) fn made(&self) -> u64 {
        self.made
    }

    /// The one way in which a handler changes a value.
    pub(crate) fn push(&mut self, change: Change, effect: Effect) {
        self.changes.retain(|(_, earlier)| match (earlier, &change) {
            // What was handed out is checked at the commit whatever comes after.
            (Change::Take { .. }, _) => true,
            (_, Change::Clear) => false,
            (_, Change::Update { .. }) => true,
            (earlier, change) => earlier.key() != change.key(),
        });
        self.made += 1;
        self.changes.push((self.made, change));
        self.view.accept(effect);
    }

    /// Drops every change that was made so far.
    pub(crate) fn discard(&mut self) {
        *self = Self { made: self.made + 1, ..Self::default() };
    }

    /// Drops every change but those that were handed out: whatever comes now, the commit has to find
    /// the taken values untouched.
    pub(crate) fn start_over(&mut self) {
        self.changes.retain(|(_, change)| matches!(change, Change::Take { .. }));
        self.made += 1;
        self.view = View::default();
    }

    /// Something other than a value was changed; returns the number of that change.
    pub(crate) fn mark(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    /// Whether every value that was handed out still stands in `base` as it was.
    pub(crate) fn check_taken(&self, base: &Values) -> Result<()> {
        for (_, change) in &self.changes {
            if let Change::Take { key, seen } = change
                && base.get(key).is_none_or(|value| value.bytes != *seen)
            {
                return Err(Error::new(ErrorKind::ValueChanged, key.to_string()));
            }
        }
        Ok(())
    }

    /// The view that the same changes lead to on other values.
    pub(crate) fn replay(&self, base: &Values, only_surviving: bool) -> Result<View> {
        let mut view = View { only_surviving, ..View::default() };
        for (_, change) in &self.changes {
            let effect = view.effect(base, change)?;
            view.accept(effect);
        }
        Ok(view)
    }

    pub(crate) fn show(&mut self, view: View) {
        self.view = view;
    }

    /// Drops the changes up to a bookmark: they were committed.
    pub(crate) fn forget(&mut self, bookmark: u64) {
        self.changes.retain(|(number, _)| *number > bookmark);
    }
}

impl fmt::Debug for Delta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} changes>", self.changes.len())
    }
}

/// The values as the handler sees them: what was changed, over what was read.
#[derive(Clone, Default)]
pub(crate) struct View {
    cleared: bool,
    only_surviving: bool,
    slots: BTreeMap<Arc<str>, Option<Value>>,
}

impl View {
    pub(crate) fn get(&self, base: &Values, key: &str) -> Option<Value> {
        match self.slots.get(key) {
            Some(slot) => slot.clone(),
            None => base.get(key).filter(|value| self.shows(value)),
        }
    }

    /// Whether a value of the record is still there where nothing was said of its key.
    fn shows(&self, value: &Value) -> bool {
        !self.cleared && (!self.only_surviving || value.survives_sign_in())
    }

    /// Whether the key was not touched, so that its value is the record's.
    pub(crate) fn is_untouched(&self, key: &str) -> bool {
        !self.slots.contains_key(key)
    }

    pub(crate) fn accept(&mut self, effect: Effect) {
        match effect {
            Effect::Clear => {
                self.cleared = true;
                self.slots.clear();
            }
            Effect::Put(key, value) => {
                self.slots.insert(key, Some(value));
            }
            Effect::Drop(key) => {
                self.slots.insert(key, None);
            }
        }
    }

    fn effect(&self, base: &Values, change: &Change) -> Result<Effect> {
        Ok(match change {
            Change::Clear => Effect::Clear,
            Change::Set { key, value } => Effect::Put(key.clone(), value.clone()),
            Change::Remove { key } | Change::Take { key, .. } => Effect::Drop(key.clone()),
            Change::Update { key, survives, function } => {
                let current = self.get(base, key);
                let bytes = catch_unwind(AssertUnwindSafe(|| {
                    function(current.as_ref().map(|value| &value.bytes[..]))
                }))
                .map_err(|_| Error::new(ErrorKind::UpdatePanicked, key.to_string()))??;
                Effect::Put(key.clone(), Value::new(bytes, *survives))
            }
        })
    }

    /// Whether a record with these values would differ from one with `base`.
    pub(crate) fn differs_from(&self, base: &Values) -> bool {
        self.slots.iter().any(|(key, slot)| base.get(key) != *slot)
            || base.iter().any(|(key, value)| self.is_untouched(key) && !self.shows(&value))
    }

    /// The values in ascending order of their keys.
    pub(crate) fn values<'a>(&'a self, base: &'a Values) -> Vec<(&'a str, Value)> {
        let kept = base.iter().filter(|(key, value)| self.is_untouched(key) && self.shows(value));
        let changed =
            self.slots.iter().filter_map(|(key, slot)| slot.clone().map(|value| (&**key, value)));
        let mut values: Vec<_> = kept.chain(changed).collect();
        values.sort_unstable_by_key(|(key, _)| *key);
        values
    }

    pub(crate) fn is_empty(&self, base: &Values) -> bool {
        self.slots.values().all(Option::is_none)
            && !base.iter().any(|(key, value)| self.is_untouched(key) && self.shows(&value))
    }
}

#[cfg(test)]
mod tests {
    use super::super::codec;
    use super::super::lifetime::{Lifetime, Millis};
    use super::super::record::{Header, Tag};
    use super::super::token::SecretDigest;
    use super::*;

    fn value(text: &str) -> Value {
        Value::new(Bytes::copy_from_slice(text.as_bytes()), false)
    }

    fn base(pairs: &[(&str, &str)]) -> Values {
        flagged(&pairs.iter().map(|(key, text)| (*key, *text, false)).collect::<Vec<_>>())
    }

    fn flagged(triples: &[(&str, &str, bool)]) -> Values {
        let digest = SecretDigest::from_bytes([0; 32]);
        let header = Header::new(digest, Millis(0), &Lifetime::default(), Tag([0; 8]));
        let values = triples.iter().map(|(key, text, survives)| {
            (*key, Value::new(Bytes::copy_from_slice(text.as_bytes()), *survives))
        });
        codec::decode(codec::encode(&header, &values.collect::<Vec<_>>())).unwrap().values
    }

    fn set(delta: &mut Delta, key: &str, text: &str) {
        let (key, value): (Arc<str>, _) = (key.into(), value(text));
        delta.push(Change::Set { key: key.clone(), value: value.clone() }, Effect::Put(key, value));
    }

    fn remove(delta: &mut Delta, key: &str) {
        delta.push(Change::Remove { key: key.into() }, Effect::Drop(key.into()));
    }

    /// Appends a letter; panics on "panic" and refuses "bad".
    fn append(delta: &mut Delta, base: &Values, key: &str) {
        let function: Arc<UpdateFn> = Arc::new(|current| match current {
            Some(b"panic") => panic!("as asked"),
            Some(b"bad") => Err(Error::new(ErrorKind::Decode, "")),
            current => Ok([current.unwrap_or_default(), b"+"].concat().into()),
        });
        let change = Change::Update { key: key.into(), survives: false, function };
        let effect = delta.view().effect(base, &change).unwrap();
        delta.push(change, effect);
    }

    fn take(delta: &mut Delta, key: &str, seen: &'static str) {
        let change = Change::Take { key: key.into(), seen: Bytes::from_static(seen.as_bytes()) };
        delta.push(change, Effect::Drop(key.into()));
    }

    fn shown(view: &View, base: &Values) -> String {
        let values = view.values(base);
        let texts = values
            .iter()
            .map(|(key, value)| format!("{key}={}", String::from_utf8_lossy(&value.bytes)));
        texts.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn changes_of_different_keys_are_merged_with_a_newer_record() {
        let old = base(&[("a", "1"), ("b", "1")]);
        let mut delta = Delta::default();
        set(&mut delta, "a", "2");
        remove(&mut delta, "b");
        set(&mut delta, "c", "2");
        assert_eq!(shown(delta.view(), &old), "a=2 c=2");
        let newer = base(&[("a", "9"), ("b", "9"), ("z", "9")]);
        assert_eq!(shown(&delta.replay(&newer, false).unwrap(), &newer), "a=2 c=2 z=9");
    }

    #[test]
    fn an_update_is_computed_again_on_the_newer_value() {
        let old = base(&[("n", "x")]);
        let mut delta = Delta::default();
        append(&mut delta, &old, "n");
        append(&mut delta, &old, "n");
        assert_eq!(shown(delta.view(), &old), "n=x++");
        let newer = base(&[("n", "y")]);
        assert_eq!(shown(&delta.replay(&newer, false).unwrap(), &newer), "n=y++");
        let none = Values::default();
        assert_eq!(shown(&delta.replay(&none, false).unwrap(), &none), "n=++");
    }

    #[test]
    fn a_replay_that_fails_is_an_error() {
        let mut delta = Delta::default();
        append(&mut delta, &Values::default(), "n");
        let failure = |text| delta.replay(&base(&[("n", text)]), false).map(|_| ()).unwrap_err();
        assert_eq!(failure("panic").kind(), ErrorKind::UpdatePanicked);
        assert_eq!(failure("bad").kind(), ErrorKind::Decode);
    }

    #[test]
    fn clear_hides_what_was_read_and_what_is_newer() {
        let old = base(&[("a", "1"), ("b", "1")]);
        let mut delta = Delta::default();
        set(&mut delta, "c", "1");
        delta.push(Change::Clear, Effect::Clear);
        set(&mut delta, "d", "1");
        assert_eq!(shown(delta.view(), &old), "d=1");
        assert_eq!(delta.view().get(&old, "a"), None);
        let newer = base(&[("z", "9")]);
        assert_eq!(shown(&delta.replay(&newer, false).unwrap(), &newer), "d=1");
        assert!(!delta.view().is_empty(&old));
        remove(&mut delta, "d");
        assert!(delta.view().is_empty(&old));
    }

    #[test]
    fn what_was_taken_must_still_be_there_unchanged() {
        let old = base(&[("otp", "7")]);
        let mut delta = Delta::default();
        take(&mut delta, "otp", "7");
        assert!(delta.check_taken(&old).is_ok());
        set(&mut delta, "otp", "8");
        delta.push(Change::Clear, Effect::Clear);
        delta.start_over();
        for newer in [base(&[("otp", "8")]), Values::default()] {
            let error = delta.check_taken(&newer).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ValueChanged);
        }
        delta.discard();
        assert!(delta.check_taken(&Values::default()).is_ok());
    }

    #[test]
    fn only_marked_values_survive_a_sign_in_and_own_writes_do() {
        let old = flagged(&[("cart", "1", true), ("n", "evil", false), ("planted", "1", false)]);
        let mut delta = Delta::default();
        set(&mut delta, "own", "1");
        append(&mut delta, &old, "n");
        delta.show(delta.replay(&old, true).unwrap());
        // The update saw nothing of the planted value.
        assert_eq!(shown(delta.view(), &old), "cart=1 n=+ own=1");
        assert_eq!(delta.view().get(&old, "planted"), None);
    }

    #[test]
    fn a_change_that_changes_nothing_is_seen_as_that() {
        let old = base(&[("a", "1")]);
        let mut delta = Delta::default();
        assert!(!delta.view().differs_from(&old));
        set(&mut delta, "a", "1");
        remove(&mut delta, "b");
        assert!(!delta.view().differs_from(&old));
        set(&mut delta, "a", "2");
        assert!(delta.view().differs_from(&old));
        delta.push(Change::Clear, Effect::Clear);
        assert!(delta.view().differs_from(&old));
        assert!(!delta.view().differs_from(&Values::default()));
    }

    /// A number tells whether something came between, so none is given twice.
    #[test]
    fn every_change_has_a_number_of_its_own() {
        let mut delta = Delta::default();
        assert!(delta.is_empty());
        let steps: [fn(&mut Delta); 4] = [
            |delta| set(delta, "a", "1"),
            |delta| assert_eq!(delta.made() + 1, delta.mark()),
            Delta::start_over,
            Delta::discard,
        ];
        let mut last = delta.made();
        for step in steps.iter().cycle().take(8) {
            step(&mut delta);
            assert!(delta.made() > last);
            last = delta.made();
        }
        assert!(delta.is_empty());
    }

    #[test]
    fn overwritten_changes_are_dropped_and_committed_ones_forgotten() {
        let mut delta = Delta::default();
        for round in 0..1000 {
            set(&mut delta, "a", &round.to_string());
        }
        assert_eq!(delta.changes.len(), 1);
        let bookmark = delta.made();
        set(&mut delta, "b", "1");
        delta.forget(bookmark);
        assert_eq!(delta.changes.len(), 1);
        let none = Values::default();
        delta.show(delta.replay(&none, false).unwrap());
        assert_eq!(shown(delta.view(), &none), "b=1");
    }
}
