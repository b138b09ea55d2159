//! Keys: the name of a session value together with its type.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

use serde::Serialize;

/// The name of a session value together with its type.
///
/// Declare keys as constants, so that no handler repeats a name or a type:
///
/// ```
/// use unsticky::{Key, Session};
///
/// const CART: Key<Vec<String>> = Key::new("cart").survives_sign_in();
/// const THEME: Key<String> = Key::new("theme");
///
/// # fn main() -> unsticky::Result<()> {
/// let session = Session::detached();
/// session.insert(THEME, "dark")?;
/// session.update(CART, |cart| cart.push("a book".to_owned()))?;
/// assert_eq!(session.get(THEME)?.as_deref(), Some("dark"));
/// assert_eq!(session.get(CART)?, Some(vec!["a book".to_owned()]));
/// # Ok(())
/// # }
/// ```
///
/// Use any name that does not begin with `unsticky.`: these names belong to the crate. A name's length
/// counts towards the size of the record. A key that is created at run time is passed by reference:
///
/// ```
/// use unsticky::{Key, Session};
///
/// # fn main() -> unsticky::Result<()> {
/// let session = Session::detached();
/// let wizard = Key::<u32>::runtime(format!("wizard.{}", 7));
/// session.insert(&wizard, &2)?;
/// assert_eq!(session.get(&wizard)?, Some(2));
/// # Ok(())
/// # }
/// ```
///
/// # Values
///
/// A value can have any type that implements serde's `Serialize` and `DeserializeOwned`: any type that
/// derives `Serialize` and `Deserialize` and borrows nothing. It is stored as JSON, so the type may change
/// between releases while sessions are alive, and an operator can read the value. All numbers are restored
/// exactly, and every finite `f32` and `f64` bit for bit. The only exception concerns integers beyond 64
/// bits; it is listed below.
///
/// Before a new value is accepted, its JSON is decoded once as the key's type. If that fails, the write fails
/// with [`ErrorKind::Encode`], and the error contains the reason. This check rejects:
///
/// - NaN and the infinities, at any depth, because JSON cannot represent them;
/// - arrays and objects that are nested more than 127 levels deep;
/// - maps whose keys are not serialised as text, numbers, `bool`s or unit variants (newtypes of these are
///   accepted);
/// - values that the type's own `Deserialize` cannot read back, for example a map with integer keys behind
///   `#[serde(flatten)]` or in an untagged enum, or a struct with a field that serde skips when writing but
///   requires when reading.
///
/// The check shows that the value can be decoded, but not that the decoded value equals the original, because
/// the type need not be comparable. The following values are accepted, but may be different when they are
/// read back:
///
/// - `Some(None)` and `Some(())` are stored as `null` and decoded as `None`;
/// - a field that serde skips is decoded as its default;
/// - an untagged enum is decoded as the first variant that matches the JSON, and an integer beyond 64 bits in
///   such an enum, or behind `#[serde(flatten)]`, can become a float;
/// - `serde_json::Value` turns NaN and the infinities into `Null` before they reach the session;
/// - a `Deserialize` implementation of your own may return any value.
///
/// When a new release of the application changes the type, [`Session::get`] fails with [`ErrorKind::Decode`]
/// for stored values that cannot be decoded as the new type. Use `#[serde(default)]` for new fields.
///
/// # Bytes
///
/// JSON has no type for bytes. A `Vec<u8>` is stored as an array of numbers, so 20 kB take up to 80 kB;
/// `serde_bytes` does not change that. Instead, store bytes as base64 text, which takes 27 kB:
///
/// ```
/// use base64::prelude::{BASE64_STANDARD, Engine as _};
/// use serde::de::{Deserialize, Deserializer, Error as _};
/// use serde::ser::{Serialize, Serializer};
/// use unsticky::{Key, Session};
///
/// #[derive(Debug, PartialEq)]
/// struct Binary(Vec<u8>);
///
/// impl Serialize for Binary {
///     fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
///         serializer.serialize_str(&BASE64_STANDARD.encode(&self.0))
///     }
/// }
///
/// impl<'de> Deserialize<'de> for Binary {
///     fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
///         let text = String::deserialize(deserializer)?;
///         BASE64_STANDARD.decode(text).map(Self).map_err(D::Error::custom)
///     }
/// }
///
/// const TICKET: Key<Binary> = Key::new("ticket");
///
/// # fn main() -> unsticky::Result<()> {
/// # const AS_ARRAY: Key<Vec<u8>> = Key::new("array");
/// # let session = Session::detached();
/// # let refused = session.insert(AS_ARRAY, &vec![255; 20_000]).unwrap_err();
/// # assert!(refused.to_string().contains("80001 bytes"));
/// let ticket = Binary(vec![255; 20_000]);
/// session.insert(TICKET, &ticket)?;
/// assert_eq!(session.get(TICKET)?, Some(ticket));
/// # Ok(())
/// # }
/// ```
///
/// The `serde_with` crate contains such a type, `serde_with::base64::Base64`. Each request that uses the
/// session reads the whole record, so keep anything larger than a few kilobytes in a store of your own, and
/// keep only its name in the session.
///
/// [`ErrorKind::Encode`]: crate::ErrorKind::Encode
/// [`ErrorKind::Decode`]: crate::ErrorKind::Decode
/// [`Session::get`]: crate::Session::get
pub struct Key<T> {
    name: &'static str,
    survives_sign_in: bool,
    value: PhantomData<fn() -> T>,
}

impl<T> Key<T> {
    /// Creates a key with a constant name.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { name, survives_sign_in: false, value: PhantomData }
    }

    /// Creates a key whose name is known only at run time.
    #[must_use]
    pub fn runtime(name: impl Into<String>) -> RuntimeKey<T> {
        RuntimeKey { name: name.into(), survives_sign_in: false, value: PhantomData }
    }

    /// Keeps the value when an anonymous user signs in. By default, the value is dropped, unless the request
    /// that signs the user in wrote it.
    ///
    /// An attacker who plants a session in a victim's browser can also plant values in that session. A
    /// shopping cart is worth that risk. A `return_to` URL or a half-finished change of an email address is
    /// not. The flag that this method sets is stored with the value when the value is written.
    #[must_use]
    pub const fn survives_sign_in(self) -> Self {
        Self { survives_sign_in: true, ..self }
    }
}

/// A [`Key`] whose name is created at run time; see [`Key::runtime`].
pub struct RuntimeKey<T> {
    name: String,
    survives_sign_in: bool,
    value: PhantomData<fn() -> T>,
}

impl<T> RuntimeKey<T> {
    /// Keeps the value when an anonymous user signs in; see [`Key::survives_sign_in`].
    #[must_use]
    pub fn survives_sign_in(self) -> Self {
        Self { survives_sign_in: true, ..self }
    }
}

/// A key for a session value: a [`Key`], or a reference to a [`RuntimeKey`].
///
/// The trait is sealed: you cannot implement it.
pub trait AsKey: sealed::Sealed {
    /// The type of the value.
    type Value;

    /// Returns the key's name.
    fn name(&self) -> &str;

    /// Returns `true` if the value is kept when an anonymous user signs in.
    fn survives(&self) -> bool;
}

/// A value that can be stored under a `Key<T>`: a `T` itself or, if the key is a `Key<String>`, a `str`.
///
/// [`Session::insert`](crate::Session::insert) accepts such values. The trait is sealed: you cannot implement
/// it.
#[diagnostic::on_unimplemented(
    message = "a `{Self}` cannot be stored under a `Key<{T}>`",
    label = "expected `&{T}`",
    note = "a key of `String` also takes a `&str`"
)]
pub trait StoredAs<T>: Serialize + sealed::Stored<T> {}

impl<T: Serialize> StoredAs<T> for T {}

impl StoredAs<String> for str {}

/// The owned name of a key. A constant name is not copied.
#[derive(Debug, Clone)]
pub(crate) enum Name {
    Constant(&'static str),
    Shared(Arc<str>),
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Constant(name) => name,
            Self::Shared(name) => name,
        }
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        self
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Name {}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl From<&str> for Name {
    fn from(name: &str) -> Self {
        Self::Shared(name.into())
    }
}

#[allow(private_interfaces, reason = "nobody else can implement or call it")]
mod sealed {
    use super::{Key, Name, RuntimeKey};

    pub trait Sealed {
        fn to_name(&self) -> Name;
    }

    pub trait Stored<T> {}

    impl<T> Stored<T> for T {}

    impl Stored<String> for str {}

    impl<T> Sealed for Key<T> {
        fn to_name(&self) -> Name {
            Name::Constant(self.name)
        }
    }

    impl<T> Sealed for RuntimeKey<T> {
        fn to_name(&self) -> Name {
            self.name.as_str().into()
        }
    }

    impl<K: Sealed + ?Sized> Sealed for &K {
        fn to_name(&self) -> Name {
            (**self).to_name()
        }
    }
}

impl<T> AsKey for Key<T> {
    type Value = T;

    fn name(&self) -> &str {
        self.name
    }

    fn survives(&self) -> bool {
        self.survives_sign_in
    }
}

impl<T> AsKey for RuntimeKey<T> {
    type Value = T;

    fn name(&self) -> &str {
        &self.name
    }

    fn survives(&self) -> bool {
        self.survives_sign_in
    }
}

impl<K: AsKey + ?Sized> AsKey for &K {
    type Value = K::Value;

    fn name(&self) -> &str {
        (**self).name()
    }

    fn survives(&self) -> bool {
        (**self).survives()
    }
}

impl<T> Clone for Key<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Key<T> {}

impl<T> Clone for RuntimeKey<T> {
    fn clone(&self) -> Self {
        Self { name: self.name.clone(), ..*self }
    }
}

impl<T> fmt::Debug for Key<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Key").field(&self.name).finish()
    }
}

impl<T> fmt::Debug for RuntimeKey<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Key").field(&self.name).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(key: impl AsKey) -> (String, bool) {
        (key.name().to_owned(), key.survives())
    }

    #[test]
    fn key_reports_name_and_sign_in_survival() {
        const KEY: Key<u8> = Key::new("cart");
        assert_eq!(both(KEY), ("cart".to_owned(), false));
        assert_eq!(both(KEY.survives_sign_in()), ("cart".to_owned(), true));
        let key = Key::<u8>::runtime("of-7".to_owned());
        assert_eq!(both(&key), ("of-7".to_owned(), false));
        let key = key.survives_sign_in();
        assert_eq!(both(&key), ("of-7".to_owned(), true));
    }
}
