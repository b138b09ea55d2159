//! Access to stored values without their types.

use crate::error::Result;
use crate::record::json;
use crate::session::Session;

impl Session {
    /// Returns the names of all keys that have a value, in ascending order.
    ///
    /// The result includes names that begin with `unsticky.`, which belong to this crate's own values.
    ///
    /// ```
    /// use unsticky::{Key, Session};
    ///
    /// const CART: Key<Vec<u32>> = Key::new("cart");
    /// const THEME: Key<String> = Key::new("theme");
    ///
    /// # fn main() -> unsticky::Result<()> {
    /// let session = Session::detached();
    /// session.insert(THEME, "dark")?;
    /// session.insert(CART, &vec![7])?;
    /// assert_eq!(session.keys(), ["cart", "theme"]);
    ///
    /// // Remove all values of a wizard, whatever their types.
    /// for name in session.keys().iter().filter(|name| name.starts_with("wizard.")) {
    ///     session.remove(&Key::<()>::runtime(name));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("iter", "entries", "names"))]
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.state().with_values(|view, values| view.keys(values))
    }

    /// Returns the stored JSON of a value unchanged, or `None` if the key has no value.
    ///
    /// ```
    /// use unsticky::{Key, Session};
    ///
    /// const CART: Key<Vec<u32>> = Key::new("cart");
    ///
    /// # fn main() -> unsticky::Result<()> {
    /// let session = Session::detached();
    /// session.insert(CART, &vec![7, 8])?;
    /// assert_eq!(session.json("cart")?.as_deref(), Some("[7,8]"));
    /// assert_eq!(session.json("theme")?, None);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Decode`](crate::ErrorKind::Decode) if the stored bytes are not UTF-8. They are left unchanged.
    #[doc(alias("raw", "get_value"))]
    pub fn json(&self, name: &str) -> Result<Option<String>> {
        let value = self.state().value(name);
        value.map(|value| json::text(name, &value.bytes)).transpose()
    }
}
