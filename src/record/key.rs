//! The name and the type of a value.

use std::fmt;
use std::marker::PhantomData;

/// The name of a session value together with its type.
///
/// Declare keys as constants; then no handler repeats a name or a type:
///
/// ```
/// use unsticky::{Key, Session};
///
/// const CART: Key<Vec<String>> = Key::new("cart").survives_sign_in();
/// const THEME: Key<String> = Key::new("theme");
///
/// # fn main() -> unsticky::Result<()> {
/// let session = Session::detached();
/// session.insert(THEME, &"dark".to_owned())?;
/// session.update(CART, |cart| cart.push("a book".to_owned()))?;
/// assert_eq!(session.get(THEME)?.as_deref(), Some("dark"));
/// assert_eq!(session.get(CART)?, Some(vec!["a book".to_owned()]));
/// # Ok(())
/// # }
/// ```
///
/// Any name is allowed; it counts towards the record's size. Keys that are made at run time are
/// passed by reference:
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
pub struct Key<T> {
    name: &'static str,
    survives_sign_in: bool,
    value: PhantomData<fn() -> T>,
}

impl<T> Key<T> {
    /// A key with a constant name.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { name, survives_sign_in: false, value: PhantomData }
    }

    /// A key whose name is known only at run time.
    #[must_use]
    pub fn runtime(name: impl Into<String>) -> RuntimeKey<T> {
        RuntimeKey { name: name.into(), survives_sign_in: false, value: PhantomData }
    }

    /// Keeps the value when an anonymous session is signed in; the default is to drop it.
    ///
    /// Whoever plants a session on a victim's browser can also plant values in it. A shopping cart
    /// is worth that risk; a `return_to` address or a half-finished e-mail change is not. The flag
    /// is stored with the value when the value is written.
    #[must_use]
    pub const fn survives_sign_in(self) -> Self {
        Self { survives_sign_in: true, ..self }
    }
}

/// A [`Key`] whose name was made at run time; see [`Key::runtime`].
pub struct RuntimeKey<T> {
    name: String,
    survives_sign_in: bool,
    value: PhantomData<fn() -> T>,
}

impl<T> RuntimeKey<T> {
    /// Keeps the value when an anonymous session is signed in; see [`Key::survives_sign_in`].
    #[must_use]
    pub fn survives_sign_in(self) -> Self {
        Self { survives_sign_in: true, ..self }
    }
}

/// What names a session value and knows its type: a [`Key`], or a [`RuntimeKey`] by reference.
///
/// Sealed: there are no other implementations.
pub trait AsKey: sealed::Sealed {
    /// The type of the value.
    type Value;

    /// The key's name.
    fn name(&self) -> &str;

    /// Whether the value is kept when an anonymous session is signed in.
    fn survives(&self) -> bool;
}

mod sealed {
    pub trait Sealed {}

    impl<T> Sealed for super::Key<T> {}
    impl<T> Sealed for super::RuntimeKey<T> {}
    impl<K: Sealed + ?Sized> Sealed for &K {}
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
