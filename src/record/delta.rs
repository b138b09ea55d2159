//! The changes that a request makes to values, which can be applied again to a newer record, and the
//! resulting view of the values.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::error::{Error, ErrorKind, Result};
use crate::record::flash;
use crate::record::key::Name;
use crate::record::small_map::SmallMap;
use crate::record::values::{Item, Items, NO_VALUES, OnSignIn, Value, Values};

/// The function that was passed to `update`, applied to encoded values.
pub(crate) type UpdateFn = dyn Fn(Option<&[u8]>) -> Result<Bytes> + Send + Sync;

/// One change to one key.
#[derive(Clone)]
pub(crate) enum Change {
    Set(Value),
    Remove,
    /// The handler took the value. `seen` is the value in the record at that time.
    Take {
        seen: Bytes,
    },
    Update {
        survives: bool,
        function: Arc<UpdateFn>,
    },
    /// Appends a message to the list that is stored under a key. The list then has at most `most` bytes.
    Append {
        message: Bytes,
        most: usize,
    },
}

impl Change {
    fn is_take(&self) -> bool {
        matches!(self, Self::Take { .. })
    }

    fn is_append(&self) -> bool {
        matches!(self, Self::Append { .. })
    }
}

/// The changes to one key in order, each with its sequence number.
type KeyChanges = SmallVec<[(u64, Change); 1]>;

/// Update functions of dropped changes. They may capture the application's values, whose destructors must not
/// run while the session is locked.
pub(crate) type Dropped = Vec<Arc<UpdateFn>>;

/// The changes that a request makes to values, and the resulting view of the values.
///
/// Changes to different keys are independent, so they are kept by key.
#[derive(Clone, Default)]
pub(crate) struct Delta {
    /// The changes by key. No list is empty.
    keys: SmallMap<KeyChanges>,
    /// The sequence number of the change that removed all values of the record, if there was one. That change
    /// is applied before the changes in `keys`.
    cleared: Option<u64>,
    made: u64,
    view: View,
    dropped: Dropped,
}

impl Delta {
    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.cleared.is_none()
    }

    /// Returns the number of changes made so far. The number serves as a bookmark, and a comparison with an
    /// earlier number shows whether a change was made in between.
    pub(crate) fn made(&self) -> u64 {
        self.made
    }

    /// Returns the number of pending changes after a bookmark.
    pub(crate) fn pending_after(&self, bookmark: u64) -> usize {
        let changes = self.keys.values().flatten().map(|(number, _)| *number);
        changes.chain(self.cleared).filter(|number| *number > bookmark).count()
    }

    /// Returns the functions that have been dropped since the last call.
    pub(crate) fn take_dropped(&mut self) -> Dropped {
        std::mem::take(&mut self.dropped)
    }

    /// Records a change to a value. `value` is the key's value after the change.
    pub(crate) fn push(&mut self, key: Name, change: Change, value: Option<Value>) {
        self.made += 1;
        let earlier = self.keys.get_or_default(key.clone());
        match change {
            Change::Update { .. } => {}
            Change::Append { .. } => drop_oldest_append(earlier),
            // A taken value is checked at the commit, even if the key is changed afterwards.
            _ => drop_changes(earlier, &mut self.dropped, |_, change| !change.is_take()),
        }
        // Only the stored value needs that check. After an earlier change, the value is the request's own.
        let change = match change {
            Change::Take { .. } if !earlier.is_empty() => Change::Remove,
            change => change,
        };
        earlier.push((self.made, change));
        self.view.put(key, value);
    }

    /// Returns whether this key was changed at or before a bookmark.
    pub(crate) fn has_until(&self, key: &str, bookmark: u64) -> bool {
        let mut changes = self.keys.get(key).into_iter().flatten();
        changes.any(|(number, _)| *number <= bookmark)
    }

    /// Records that the value `seen` was taken from this key before the key's other changes. It was taken
    /// while a commit was storing it, so the record now contains it.
    pub(crate) fn taken_early(&mut self, key: Name, seen: Bytes) {
        if let Some((number, _)) = self.keys.get(&key).and_then(|changes| changes.first()) {
            let taken = (*number, Change::Take { seen });
            self.keys.get_or_default(key).insert(0, taken);
        }
    }

    /// Removes all values.
    pub(crate) fn clear(&mut self) {
        self.made += 1;
        self.cleared = Some(self.made);
        self.drop_changes(|_, change| !change.is_take());
        self.view.clear();
    }

    /// Drops all changes.
    pub(crate) fn discard(&mut self) {
        self.reset(|_| true);
    }

    /// Drops all changes except taken values and flash messages. The commit must still check that the taken
    /// values are unchanged, and flash messages are shown on the next page even if the handler ends the
    /// session or signs in a different principal.
    pub(crate) fn start_over(&mut self) {
        self.reset(|change| !change.is_take() && !change.is_append());
        // The remaining changes call no function, so this cannot fail.
        self.view = self.replay(&NO_VALUES, OnSignIn::Nobody).unwrap_or_default();
    }

    /// Drops the changes to a key that has no value in the record, so that the key has no value at all.
    pub(crate) fn withdraw(&mut self, key: Name) {
        self.made += 1;
        drop_changes(self.keys.get_or_default(key.clone()), &mut self.dropped, |_, _| true);
        self.keys.retain(|changes| !changes.is_empty());
        self.view.put(key, None);
    }

    /// Returns the number of pending flash messages.
    pub(crate) fn messages(&self) -> usize {
        let changes = self.keys.get(flash::KEY).into_iter().flatten();
        changes.filter(|(_, change)| change.is_append()).count()
    }

    fn reset(&mut self, is_dropped: impl Fn(&Change) -> bool) {
        self.drop_changes(|_, change| is_dropped(change));
        self.cleared = None;
        self.hide();
    }

    /// Drops the changes up to a bookmark, because they were committed or because their commit failed.
    pub(crate) fn forget(&mut self, bookmark: u64) {
        self.drop_changes(|number, _| number <= bookmark);
        self.cleared = self.cleared.filter(|number| *number > bookmark);
    }

    fn drop_changes(&mut self, is_dropped: impl Fn(u64, &Change) -> bool) {
        self.keys.retain(|changes| {
            drop_changes(changes, &mut self.dropped, &is_dropped);
            !changes.is_empty()
        });
    }

    /// Returns whether computing the view calls the application's functions.
    pub(crate) fn has_functions(&self) -> bool {
        let mut changes = self.keys.values().flatten();
        changes.any(|(_, change)| matches!(change, Change::Update { .. }))
    }

    /// Counts a change that does not affect a value, and returns its sequence number.
    pub(crate) fn mark(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    /// Checks that every taken value is unchanged in `base`.
    pub(crate) fn check_taken(&self, base: &Values) -> Result<()> {
        for (key, changes) in self.keys.iter() {
            for (_, change) in changes {
                if let Change::Take { seen } = change
                    && base.get(key).is_none_or(|value| value.bytes != *seen)
                {
                    return Err(Error::new(ErrorKind::ValueChanged, key.to_string()));
                }
            }
        }
        Ok(())
    }

    /// Applies the changes to the values in `base` and returns the resulting view.
    pub(crate) fn replay(&self, base: &Values, sign_in: OnSignIn) -> Result<View> {
        let cleared = self.cleared.is_some();
        let mut view = View { cleared, sign_in, ..View::default() };
        for (key, changes) in self.keys.iter() {
            for (_, change) in changes {
                let value = view.changed(base, key, change)?;
                view.put(key.clone(), value);
            }
        }
        Ok(view)
    }

    /// Resets the view to the record as it was read, until the view is recomputed.
    pub(crate) fn hide(&mut self) {
        self.made += 1;
        self.view = View::default();
    }

    pub(crate) fn show(&mut self, view: View) {
        self.view = view;
    }
}

impl fmt::Debug for Delta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} changes>", self.pending_after(0))
    }
}

/// Drops some of a key's changes and moves their functions to `dropped`.
fn drop_changes(
    changes: &mut KeyChanges,
    dropped: &mut Dropped,
    is_dropped: impl Fn(u64, &Change) -> bool,
) {
    changes.retain(|(number, change)| {
        let is_dropped = is_dropped(*number, change);
        if let Change::Update { function, .. } = change
            && is_dropped
        {
            dropped.push(function.clone());
        }
        !is_dropped
    });
}

/// Drops the oldest pending message if the number of pending messages has reached the list's limit.
fn drop_oldest_append(changes: &mut KeyChanges) {
    let is_append = |(_, change): &(u64, Change)| change.is_append();
    if changes.iter().filter(|change| is_append(change)).count() >= flash::MESSAGES
        && let Some(oldest) = changes.iter().position(is_append)
    {
        changes.remove(oldest);
    }
}

/// The values as the handler sees them: the changed values on top of those that were read.
#[derive(Clone, Default)]
pub(crate) struct View {
    cleared: bool,
    sign_in: OnSignIn,
    slots: SmallMap<Option<Value>>,
    /// The total size in bytes of the keys and values in `slots`.
    size: usize,
}

impl View {
    pub(crate) fn get(&self, base: &Values, key: &str) -> Option<Value> {
        match self.slots.get(key) {
            Some(slot) => slot.clone(),
            None => base.get(key).filter(|value| !self.cleared && value.outlives(self.sign_in)),
        }
    }

    /// Fails if, with this value, the changed values alone would exceed the size limit of a record.
    pub(crate) fn check_room(&self, key: &str, value: &Value, max: usize) -> Result<()> {
        let replaced = self.slots.get(key).map_or(0, |slot| room(key, slot.as_ref()));
        if self.size - replaced + room(key, Some(value)) <= max {
            return Ok(());
        }
        let context =
            format!("with {key:?}, the changed values would exceed the limit of {max} bytes");
        Err(Error::new(ErrorKind::TooLarge, context))
    }

    /// Sets or removes the value of a key.
    pub(crate) fn put(&mut self, key: Name, value: Option<Value>) {
        let added = room(&key, value.as_ref());
        let slot = self.slots.get_or_default(key.clone());
        let replaced = std::mem::replace(slot, value);
        self.size = self.size + added - room(&key, replaced.as_ref());
    }

    pub(crate) fn clear(&mut self) {
        self.cleared = true;
        self.slots = SmallMap::default();
        self.size = 0;
    }

    /// Returns the key's value after a change.
    pub(crate) fn changed(
        &self,
        base: &Values,
        key: &str,
        change: &Change,
    ) -> Result<Option<Value>> {
        Ok(match change {
            Change::Set(value) => Some(value.clone()),
            Change::Remove | Change::Take { .. } => None,
            Change::Update { survives, function } => {
                let current = self.get(base, key);
                let bytes = catch_unwind(AssertUnwindSafe(|| {
                    function(current.as_ref().map(|value| &value.bytes[..]))
                }))
                .map_err(|_| Error::new(ErrorKind::UpdatePanicked, key.to_owned()))??;
                Some(Value::new(bytes, *survives))
            }
            Change::Append { message, most } => {
                let list = self.get(base, key);
                let list = list.as_ref().map(|list| &list.bytes[..]);
                Some(Value::new(flash::appended(list, message, *most), true))
            }
        })
    }

    /// Returns whether these values differ from `base`.
    pub(crate) fn differs_from(&self, base: &Values) -> bool {
        self.differs_in(base, |_| true)
    }

    /// Returns whether these values differ from `base` in more than flash messages. The loss of flash
    /// messages is not an error.
    pub(crate) fn matters_to(&self, base: &Values) -> bool {
        self.differs_in(base, |key| key != flash::KEY.as_bytes())
    }

    fn differs_in(&self, base: &Values, counts: impl Fn(&[u8]) -> bool) -> bool {
        let is_changed = |(key, slot): (&Name, &Option<Value>)| {
            counts(key.as_bytes()) && !base.holds(key, slot.as_ref())
        };
        let hides = self.cleared || self.sign_in != OnSignIn::Nobody;
        let shown = || self.items(base).iter().filter(|item| counts(item.key)).count();
        self.slots.iter().any(is_changed)
            || (hides && shown() < base.items().filter(|item| counts(item.key)).count())
    }

    /// Returns the values in ascending order of their keys.
    pub(crate) fn items<'a>(&'a self, base: &'a Values) -> Items<'a> {
        let changed = |(key, slot): (&'a Name, &'a Option<Value>)| {
            slot.as_ref().map(|value| Item::new(key, value))
        };
        let mut items = Items::new();
        let mut slots = self.slots.iter().peekable();
        for item in base.items() {
            let is_before = |(key, _): &(&Name, _)| key.as_bytes() < item.key;
            items.extend(std::iter::from_fn(|| slots.next_if(is_before)).filter_map(changed));
            match slots.next_if(|(key, _)| key.as_bytes() == item.key) {
                Some(slot) => items.extend(changed(slot)),
                None if !self.cleared && item.outlives(self.sign_in) => items.push(item),
                None => {}
            }
        }
        items.extend(slots.filter_map(changed));
        items
    }

    pub(crate) fn is_empty(&self, base: &Values) -> bool {
        self.items(base).is_empty()
    }

    /// Returns the keys of the values, in ascending order.
    pub(crate) fn keys(&self, base: &Values) -> Vec<String> {
        let items = self.items(base);
        items.iter().map(|item| String::from_utf8_lossy(item.key).into_owned()).collect()
    }
}

/// Returns the size of a slot in bytes. Flash messages count as 0: they have their own limit and do not
/// reduce the space for the application's values.
fn room(key: &str, value: Option<&Value>) -> usize {
    value.filter(|_| key != flash::KEY).map_or(0, |value| key.len() + value.bytes.len())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::clock::Millis;
    use crate::error::{Error, ErrorKind};
    use crate::record::codec;
    use crate::record::header::Header;
    use crate::record::lifetime::Lifetime;
    use crate::record::tag::Tag;
    use crate::record::token::SecretDigest;
    use crate::record::values::{OnSignIn, Value, Values};

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
        let value = value(text);
        delta.push(key.into(), Change::Set(value.clone()), Some(value));
    }

    fn remove(delta: &mut Delta, key: &str) {
        delta.push(key.into(), Change::Remove, None);
    }

    /// Appends `+`; panics on "panic" and fails on "bad".
    fn append(delta: &mut Delta, base: &Values, key: &str) {
        let function: Arc<UpdateFn> = Arc::new(|current| match current {
            Some(b"panic") => panic!("as asked"),
            Some(b"bad") => Err(Error::new(ErrorKind::Decode, "")),
            current => Ok([current.unwrap_or_default(), b"+"].concat().into()),
        });
        let change = Change::Update { survives: false, function };
        let value = delta.view().changed(base, key, &change).unwrap();
        delta.push(key.into(), change, value);
    }

    fn take(delta: &mut Delta, key: &str, seen: &'static str) {
        let change = Change::Take { seen: Bytes::from_static(seen.as_bytes()) };
        delta.push(key.into(), change, None);
    }

    fn shown(view: &View, base: &Values) -> String {
        let text = String::from_utf8_lossy;
        let texts = view
            .items(base)
            .into_iter()
            .map(|item| format!("{}={}", text(item.key), text(item.bytes)));
        texts.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn changes_to_different_keys_are_merged_into_newer_record() {
        let old = base(&[("a", "1"), ("b", "1")]);
        let mut delta = Delta::default();
        set(&mut delta, "a", "2");
        remove(&mut delta, "b");
        set(&mut delta, "c", "2");
        assert_eq!(shown(delta.view(), &old), "a=2 c=2");
        let newer = base(&[("a", "9"), ("b", "9"), ("z", "9")]);
        assert_eq!(shown(&delta.replay(&newer, OnSignIn::Nobody).unwrap(), &newer), "a=2 c=2 z=9");
    }

    #[test]
    fn update_is_recomputed_on_newer_value() {
        let old = base(&[("n", "x")]);
        let mut delta = Delta::default();
        append(&mut delta, &old, "n");
        append(&mut delta, &old, "n");
        assert_eq!(shown(delta.view(), &old), "n=x++");
        let newer = base(&[("n", "y")]);
        assert_eq!(shown(&delta.replay(&newer, OnSignIn::Nobody).unwrap(), &newer), "n=y++");
        let none = Values::default();
        assert_eq!(shown(&delta.replay(&none, OnSignIn::Nobody).unwrap(), &none), "n=++");
    }

    #[test]
    fn failing_replay_returns_error() {
        let mut delta = Delta::default();
        append(&mut delta, &Values::default(), "n");
        let failure =
            |text| delta.replay(&base(&[("n", text)]), OnSignIn::Nobody).map(|_| ()).unwrap_err();
        assert_eq!(failure("panic").kind(), ErrorKind::UpdatePanicked);
        assert_eq!(failure("bad").kind(), ErrorKind::Decode);
    }

    #[test]
    fn clear_hides_loaded_and_newer_values() {
        let old = base(&[("a", "1"), ("b", "1")]);
        let mut delta = Delta::default();
        set(&mut delta, "c", "1");
        delta.clear();
        set(&mut delta, "d", "1");
        assert_eq!(shown(delta.view(), &old), "d=1");
        assert_eq!(delta.view().get(&old, "a"), None);
        let newer = base(&[("z", "9")]);
        assert_eq!(shown(&delta.replay(&newer, OnSignIn::Nobody).unwrap(), &newer), "d=1");
        assert!(!delta.view().is_empty(&old));
        remove(&mut delta, "d");
        assert!(delta.view().is_empty(&old));
    }

    #[test]
    fn taken_value_must_be_unchanged_at_commit() {
        let old = base(&[("otp", "7")]);
        let mut delta = Delta::default();
        take(&mut delta, "otp", "7");
        assert!(delta.check_taken(&old).is_ok());
        set(&mut delta, "otp", "8");
        delta.clear();
        delta.start_over();
        for newer in [base(&[("otp", "8")]), Values::default()] {
            let error = delta.check_taken(&newer).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ValueChanged);
        }
        delta.discard();
        assert!(delta.check_taken(&Values::default()).is_ok());
    }

    #[test]
    fn sign_in_keeps_only_marked_values_and_own_writes() {
        let old = flagged(&[("cart", "1", true), ("n", "evil", false), ("planted", "1", false)]);
        let mut delta = Delta::default();
        set(&mut delta, "own", "1");
        append(&mut delta, &old, "n");
        delta.show(delta.replay(&old, OnSignIn::First).unwrap());
        // The update did not see the planted value.
        assert_eq!(shown(delta.view(), &old), "cart=1 n=+ own=1");
        assert_eq!(delta.view().get(&old, "planted"), None);
    }

    #[test]
    fn change_without_effect_is_detected() {
        let old = base(&[("a", "1")]);
        let mut delta = Delta::default();
        assert!(!delta.view().differs_from(&old));
        set(&mut delta, "a", "1");
        remove(&mut delta, "b");
        assert!(!delta.view().differs_from(&old));
        set(&mut delta, "a", "2");
        assert!(delta.view().differs_from(&old));
        delta.clear();
        assert!(delta.view().differs_from(&old));
        assert!(!delta.view().differs_from(&Values::default()));
    }

    /// Sequence numbers show whether a change was made in between, so none may occur twice.
    #[test]
    fn every_change_gets_unique_number() {
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
    fn overwritten_changes_are_dropped_and_committed_changes_are_forgotten() {
        let mut delta = Delta::default();
        for round in 0..1000 {
            set(&mut delta, "a", &round.to_string());
        }
        assert_eq!(delta.pending_after(0), 1);
        let bookmark = delta.made();
        set(&mut delta, "b", "1");
        delta.forget(bookmark);
        assert_eq!(delta.pending_after(0), 1);
        let none = Values::default();
        delta.show(delta.replay(&none, OnSignIn::Nobody).unwrap());
        assert_eq!(shown(delta.view(), &none), "b=1");
    }

    #[test]
    fn dropped_functions_are_returned_to_caller() {
        let none = Values::default();
        let mut delta = Delta::default();
        let held = |delta: &mut Delta| delta.take_dropped().len();
        append(&mut delta, &none, "a");
        set(&mut delta, "a", "1");
        assert_eq!((held(&mut delta), delta.pending_after(0)), (1, 1));
        append(&mut delta, &none, "a");
        append(&mut delta, &none, "b");
        delta.clear();
        // Both functions are returned. The plain value is not, because dropping it runs no application code.
        assert_eq!((held(&mut delta), delta.pending_after(0)), (2, 1));
        append(&mut delta, &none, "a");
        delta.forget(delta.made());
        assert_eq!((held(&mut delta), delta.is_empty()), (1, true));
        append(&mut delta, &none, "a");
        delta.start_over();
        append(&mut delta, &none, "a");
        delta.discard();
        assert_eq!((held(&mut delta), delta.is_empty()), (2, true));
    }

    proptest! {
        /// Covers changed values whose keys come before, between and after those in the record.
        #[test]
        fn view_lists_changed_and_unchanged_values_in_order_of_keys(
            stored in prop::collection::btree_map("[a-f]{1,2}", any::<bool>(), 0..20),
            changed in prop::collection::btree_map("[a-f]{1,2}", any::<bool>(), 0..20),
            cleared in any::<bool>(),
            only_surviving in any::<bool>(),
        ) {
            let triples: Vec<_> =
                stored.iter().map(|(key, survives)| (&**key, "old", *survives)).collect();
            let base = flagged(&triples);
            let sign_in = if only_surviving { OnSignIn::First } else { OnSignIn::Nobody };
            let mut view = View { cleared, sign_in, ..View::default() };
            let shows = |survives: bool| !cleared && (survives || !only_surviving);
            let kept = stored.iter().filter(|(_, survives)| shows(**survives));
            let mut model: BTreeMap<&str, &str> = kept.map(|(key, _)| (&**key, "old")).collect();
            for (key, is_set) in &changed {
                view.put((&**key).into(), is_set.then(|| value("new")));
                model.remove(&**key);
                model.extend(is_set.then_some((&**key, "new")));
            }
            let listed: Vec<_> = model.iter().map(|(key, text)| format!("{key}={text}")).collect();
            prop_assert_eq!(shown(&view, &base), listed.join(" "));
            prop_assert_eq!(view.is_empty(&base), model.is_empty());
            let before: Vec<_> = stored.keys().map(|key| format!("{key}=old")).collect();
            prop_assert_eq!(view.differs_from(&base), listed != before);
        }
    }

    #[test]
    fn value_taken_again_after_insert_is_checked_once() {
        let old = base(&[("otp", "7")]);
        let mut delta = Delta::default();
        for _ in 0..1000 {
            take(&mut delta, "otp", "7");
            set(&mut delta, "otp", "8");
        }
        assert_eq!(delta.pending_after(0), 2);
        assert!(delta.check_taken(&old).is_ok());
        assert!(delta.check_taken(&base(&[("otp", "8")])).is_err());
    }

    fn say(delta: &mut Delta, base: &Values, text: &str) {
        let message = Bytes::from(format!("[\"info\",\"{text}\"]"));
        let change = Change::Append { message, most: 4096 };
        let value = delta.view().changed(base, flash::KEY, &change).unwrap();
        delta.push(flash::KEY.into(), change, value);
    }

    fn said(view: &View, base: &Values) -> Vec<String> {
        let list = view.get(base, flash::KEY);
        let messages = list.map(|list| flash::messages(&list.bytes).0).unwrap_or_default();
        messages.into_iter().map(|flash| flash.text).collect()
    }

    #[test]
    fn messages_are_added_to_newer_list_and_kept_after_end() {
        let old = flagged(&[("a", "1", false), (flash::KEY, r#"[["info","old"]]"#, true)]);
        let newer = flagged(&[(flash::KEY, r#"[["info","newer"]]"#, true)]);
        let none = Values::default();
        let mut delta = Delta::default();
        say(&mut delta, &old, "one");
        set(&mut delta, "a", "2");
        say(&mut delta, &old, "two");
        assert_eq!(said(delta.view(), &old), ["old", "one", "two"]);
        assert_eq!((delta.messages(), delta.pending_after(0)), (2, 3));
        for (sign_in, base, expected) in [
            (OnSignIn::Nobody, &newer, &["newer", "one", "two"][..]),
            (OnSignIn::First, &newer, &["newer", "one", "two"]),
            (OnSignIn::Again, &newer, &["newer", "one", "two"]),
            (OnSignIn::Nobody, &none, &["one", "two"]),
        ] {
            assert_eq!(said(&delta.replay(base, sign_in).unwrap(), base), expected);
        }
        delta.start_over();
        assert_eq!(said(delta.view(), &none), ["one", "two"]);
        assert_eq!(shown(delta.view(), &none).matches('=').count(), 1);
        say(&mut delta, &none, "three");
        assert_eq!(said(delta.view(), &none), ["one", "two", "three"]);
        delta.clear();
        assert_eq!((delta.messages(), said(delta.view(), &old)), (0, Vec::new()));
        say(&mut delta, &old, "four");
        assert_eq!(said(delta.view(), &old), ["four"]);
        delta.discard();
        assert!(delta.is_empty());
    }

    #[test]
    fn messages_alone_do_not_matter() {
        let old = flagged(&[("a", "1", false), (flash::KEY, "[]", true)]);
        let mut delta = Delta::default();
        say(&mut delta, &old, "one");
        assert!(delta.view().differs_from(&old) && !delta.view().matters_to(&old));
        set(&mut delta, "a", "1");
        assert!(!delta.view().matters_to(&old));
        set(&mut delta, "a", "2");
        assert!(delta.view().matters_to(&old));
        delta.discard();
        delta.clear();
        assert!(delta.view().matters_to(&old));
        let list = flagged(&[(flash::KEY, "[]", true)]);
        assert!(delta.view().differs_from(&list) && !delta.view().matters_to(&list));
    }

    #[test]
    fn withdrawn_messages_leave_nothing() {
        let none = Values::default();
        let mut delta = Delta::default();
        say(&mut delta, &none, "one");
        set(&mut delta, "a", "1");
        let made = delta.made();
        delta.withdraw(flash::KEY.into());
        assert_eq!((delta.messages(), delta.pending_after(0)), (0, 1));
        assert!(delta.made() > made && said(delta.view(), &none).is_empty());
        let newer = flagged(&[(flash::KEY, r#"[["info","newer"]]"#, true)]);
        assert_eq!(said(&delta.replay(&newer, OnSignIn::Nobody).unwrap(), &newer), ["newer"]);
        delta.forget(delta.made());
        assert!(delta.is_empty());
    }

    #[test]
    fn only_messages_that_fit_into_list_are_pending() {
        let none = Values::default();
        let mut delta = Delta::default();
        for number in 0..1000 {
            say(&mut delta, &none, &number.to_string());
        }
        assert_eq!((delta.messages(), said(delta.view(), &none).len()), (16, 16));
        let replayed = delta.replay(&none, OnSignIn::Nobody).unwrap();
        assert_eq!(said(&replayed, &none), said(delta.view(), &none));
        assert_eq!(replayed.size, 0);
    }

    #[test]
    fn sign_in_again_drops_only_values_that_end_with_it() {
        let digest = SecretDigest::from_bytes([0; 32]);
        let header = Header::new(digest, Millis(0), &Lifetime::default(), Tag([0; 8]));
        let value = |flags| Value { bytes: Bytes::from_static(b"1"), flags };
        let values = [("ends", value(2)), ("plain", value(0)), ("survives", value(1))];
        let base = codec::decode(codec::encode(&header, &values)).unwrap().values;
        for (sign_in, expected) in [
            (OnSignIn::Nobody, "ends=1 plain=1 survives=1"),
            (OnSignIn::First, "survives=1"),
            (OnSignIn::Again, "plain=1 survives=1"),
        ] {
            let view = Delta::default().replay(&base, sign_in).unwrap();
            assert_eq!(shown(&view, &base), expected);
            assert_eq!(view.get(&base, "ends").is_some(), sign_in == OnSignIn::Nobody);
            assert_eq!(view.differs_from(&base), sign_in != OnSignIn::Nobody);
        }
    }

    #[test]
    fn size_limit_counts_changed_values_only() {
        let mut delta = Delta::default();
        set(&mut delta, "a", "123");
        set(&mut delta, "a", "1234");
        set(&mut delta, "bb", "12");
        assert_eq!(delta.view().size, 5 + 4);
        assert!(delta.view().check_room("a", &value("12345"), 10).is_ok());
        assert!(delta.view().check_room("a", &value("123456"), 10).is_err());
        assert!(delta.view().check_room("c", &value("1"), 10).is_err());
        remove(&mut delta, "bb");
        assert_eq!(delta.view().size, 5);
        assert_eq!(delta.replay(&Values::default(), OnSignIn::Nobody).unwrap().size, 5);
        delta.clear();
        assert_eq!(delta.view().size, 0);
    }
}
