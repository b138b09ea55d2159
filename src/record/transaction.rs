//! The values that the function passed to `transact` reads and changes.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Result;
use crate::record::delta::View;
use crate::record::json::{decoded, encoded, text};
use crate::record::key::{AsKey, Name, StoredAs};
use crate::record::values::{Value, Values};

/// Gives the function passed to [`Session::transact`](crate::Session::transact) access to the values of the
/// stored record.
pub struct Transaction<'a> {
    base: &'a Values,
    view: &'a mut View,
    max_record: usize,
}

impl<'a> Transaction<'a> {
    pub(crate) fn new(base: &'a Values, view: &'a mut View, max_record: usize) -> Self {
        Self { base, view, max_record }
    }

    /// Returns the value of a key, or `None` if the key has no value.
    ///
    /// # Errors
    ///
    /// [`Decode`](crate::ErrorKind::Decode) if the stored value cannot be decoded as the key's type.
    pub fn get<K: AsKey>(&self, key: K) -> Result<Option<K::Value>>
    where
        K::Value: DeserializeOwned,
    {
        let name = key.name();
        self.view.get(self.base, name).map(|value| decoded(name, &value.bytes)).transpose()
    }

    /// Returns `true` if the key has a value, whatever its type.
    #[must_use]
    pub fn contains(&self, key: impl AsKey) -> bool {
        self.view.get(self.base, key.name()).is_some()
    }

    /// Returns the names of all keys that have a value, in ascending order; see
    /// [`Session::keys`](crate::Session::keys).
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.view.keys(self.base)
    }

    /// Returns the stored JSON of a value unchanged; see [`Session::json`](crate::Session::json).
    ///
    /// # Errors
    ///
    /// [`Decode`](crate::ErrorKind::Decode) if the stored bytes are not UTF-8.
    pub fn json(&self, name: &str) -> Result<Option<String>> {
        self.view.get(self.base, name).map(|value| text(name, &value.bytes)).transpose()
    }

    /// Sets the value of a key, like [`Session::insert`](crate::Session::insert).
    ///
    /// # Errors
    ///
    /// [`Encode`](crate::ErrorKind::Encode) if the value cannot be encoded, or [cannot be decoded
    /// again](crate::Key#values). [`TooLarge`](crate::ErrorKind::TooLarge) if, with this value, the values
    /// changed so far would exceed the [maximum size of a record](crate::Builder::max_record_bytes).
    pub fn insert<K, V>(&mut self, key: K, value: &V) -> Result<()>
    where
        K: AsKey,
        K::Value: DeserializeOwned,
        V: StoredAs<K::Value> + ?Sized,
    {
        let encoded = encoded::<K::Value>(key.name(), value, self.max_record)?;
        let value = Value::new(encoded, key.survives());
        self.view.check_room(key.name(), &value, self.max_record)?;
        self.view.put(key.to_name(), Some(value));
        Ok(())
    }

    /// Removes the value of a key. Has no effect if the key has no value.
    pub fn remove(&mut self, key: impl AsKey) {
        self.view.put(key.to_name(), None);
    }

    /// Removes the value of a key and returns it, or `None` if the key has no value. If several transactions take a
    /// value concurrently, only one of them gets it.
    ///
    /// # Errors
    ///
    /// [`Decode`](crate::ErrorKind::Decode) if the stored value cannot be decoded as the key's type. The value is left
    /// unchanged.
    pub fn take<K: AsKey>(&mut self, key: K) -> Result<Option<K::Value>>
    where
        K::Value: DeserializeOwned,
    {
        let taken = self.get(&key)?;
        self.remove(&key);
        Ok(taken)
    }

    /// Changes the value of a key with a function. If the key has no value, the function receives the type's
    /// default.
    ///
    /// # Errors
    ///
    /// [`Decode`](crate::ErrorKind::Decode) if the stored value cannot be decoded as the key's type, and the
    /// errors that [`insert`](Self::insert) returns for the new value.
    pub fn update<K: AsKey>(&mut self, key: K, function: impl FnOnce(&mut K::Value)) -> Result<()>
    where
        K::Value: Serialize + DeserializeOwned + Default,
    {
        let mut value = self.get(&key)?.unwrap_or_default();
        function(&mut value);
        self.insert(key, &value)
    }

    /// Returns a value in its stored form.
    pub(crate) fn stored(&self, name: &str) -> Option<Value> {
        self.view.get(self.base, name)
    }

    /// Sets a value in its stored form, or removes it.
    pub(crate) fn put(&mut self, name: Name, value: Option<Value>) {
        self.view.put(name, value);
    }

    /// Removes all values.
    pub fn clear(&mut self) {
        self.view.clear();
    }

    /// Returns `true` if there are no values.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.view.is_empty(self.base)
    }
}

impl fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::record::delta::View;
    use crate::record::key::Key;
    use crate::record::values::Values;

    const A: Key<u32> = Key::new("a");
    const B: Key<u32> = Key::new("b").survives_sign_in();

    #[test]
    fn transaction_sees_its_own_earlier_changes() {
        let nothing = Values::default();
        let mut view = View::default();
        let mut values = Transaction::new(&nothing, &mut view, 10);
        assert!(values.is_empty() && !values.contains(A));
        values.insert(A, &1).unwrap();
        values.update(B, |number| *number += 5).unwrap();
        assert!(!values.is_empty() && values.contains(A));
        assert_eq!((values.get(A).unwrap(), values.get(B).unwrap()), (Some(1), Some(5)));
        assert_eq!(values.take(A).unwrap(), Some(1));
        assert_eq!((values.take(A).unwrap(), values.contains(A)), (None, false));
        values.remove(B);
        assert!(!values.contains(B) && values.is_empty());
        values.insert(A, &1).unwrap();
        values.clear();
        assert!(values.is_empty());
        values.insert(A, &12_345_678).unwrap();
        assert_eq!(values.insert(B, &1).unwrap_err().kind(), ErrorKind::TooLarge);
        assert!(!values.contains(B));
    }
}
