//! The values as they are stored, for code that does not know their types.

use crate::error::Result;
use crate::record::json;
use crate::session::Session;

impl Session {
    /// The names of all keys that have a value, in ascending order.
    ///
    /// Names that begin with `unsticky.` belong to values of this crate and are among them.
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
    /// // All values of a wizard, whatever their types are.
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

    /// The JSON of a value as it is stored; `None` where the key has none. It is neither parsed nor changed.
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
    /// [`Decode`](crate::ErrorKind::Decode) if the stored bytes are not UTF-8; they stay as they are.
    #[doc(alias("raw", "get_value"))]
    pub fn json(&self, name: &str) -> Result<Option<String>> {
        let value = self.state().value(name);
        value.map(|value| json::text(name, &value.bytes)).transpose()
    }
}
