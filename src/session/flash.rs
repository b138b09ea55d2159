//! Flash messages: one request writes them, and the next page that shows them removes them.

use bytes::Bytes;

use crate::commit::Decision;
use crate::error::Result;
use crate::event;
use crate::record::delta::Change;
use crate::record::flash::{self, Flash, Level};
use crate::record::key::Name;
use crate::record::transaction::Transaction;
use crate::session::Session;
use crate::session::state::State;

const KEY: Name = Name::Constant(flash::KEY);

impl Session {
    /// Stores a flash message for the next page that reads it with [`flashes`](Self::flashes). It survives
    /// redirects, a sign-in and a sign-out.
    ///
    /// The message is committed like any other change, in the same write. A session holds at most 16 messages,
    /// of 4 KiB in total (or a quarter of [`max_record_bytes`](crate::Builder::max_record_bytes), if that is
    /// less); a further message replaces the oldest. If the record would be too large with the messages, they
    /// are dropped and the application's values are stored.
    ///
    /// If the request also [signs out](Self::sign_out), before or after this call, the message is stored in a new
    /// anonymous session. Messages that were already stored, by earlier requests or by a [`save`](Self::save),
    /// are removed with the old session, because they may be personal. The same applies to a sign-in as another
    /// principal. To revoke all sessions and show a message, call
    /// [`revoke_others`](crate::Directory::revoke_others), then `sign_out`, then `flash`: after
    /// [`revoke_all`](crate::Directory::revoke_all) no cookie may be sent for the message.
    ///
    /// If another request ended the session or signed in on it, no cookie may be sent: the message is dropped
    /// with the event `flash_dropped`, and the request succeeds. The message of a sign-out is also
    /// dropped if the store has no room for it. After the response, a message that needs a new session fails at
    /// [`save`](Self::save) with [`ErrorKind::HeadSent`](crate::ErrorKind::HeadSent), like any value.
    ///
    /// ```
    /// use unsticky::{Level, Session};
    ///
    /// // Call it before a redirect, in axum and in actix-web.
    /// async fn save(session: Session) -> unsticky::Result<()> {
    ///     session.flash(Level::Success, "Your changes were saved.")
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = Session::detached();
    /// save(session.clone()).await?;
    /// let shown = session.flashes().await?;
    /// assert_eq!((shown[0].level.as_str(), &*shown[0].text), ("success", "Your changes were saved."));
    /// assert!(session.flashes().await?.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooLarge`](crate::ErrorKind::TooLarge) if the text has more than 1024 bytes, or more
    /// than all messages together may have. Nothing is changed then.
    #[doc(alias("message", "flash_message", "notice"))]
    pub fn flash(&self, level: Level, text: impl AsRef<str>) -> Result<()> {
        let most = flash::most_bytes(self.settings().options.max_record);
        let message = flash::encoded(level, text.as_ref(), most)?;
        let change = Change::Append { message, most };
        let mut state = self.state();
        let list = state.with_values(|view, values| view.changed(values, &KEY, &change))?;
        state.changed().push(KEY, change, list);
        Ok(())
    }

    /// Removes the pending flash messages and returns them, the oldest first.
    ///
    /// Each message is returned to exactly one request. If the session that this request read has no messages,
    /// nothing is sent to the store. Otherwise the messages are removed before this returns, in one write that
    /// also commits the earlier changes of this request, like [`transact`](Self::transact). If several pages ask
    /// at once, one of them gets the messages. It is not an error if another request
    /// ended the session or signed in on it. If the page fails afterwards, its messages are lost.
    ///
    /// ```
    /// use unsticky::{Level, Session};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = Session::detached();
    /// session.flash(Level::Success, "Saved.")?;
    /// session.save().await?;
    /// assert_eq!(session.flashes().await?.len(), 1);
    /// assert!(session.flashes().await?.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`save`](Self::save). [`ErrorKind::Gone`](crate::ErrorKind::Gone) is returned only if other
    /// changes of this request are lost, or after the response.
    #[doc(alias("messages", "flash_messages", "get_messages"))]
    pub async fn flashes(&self) -> Result<Vec<Flash>> {
        let own = self.state().take_unstored_messages();
        let list = match own {
            Some(list) => list,
            None => {
                self.run_to_completion(|session, driver| async move {
                    let mut take = TakeMessages { list: None };
                    session.commit(&driver, false, Some(&mut take)).await?;
                    Ok(take.list)
                })
                .await?
            }
        };
        let (messages, undecodable) = list.as_deref().map(flash::messages).unwrap_or_default();
        if undecodable > 0 {
            event::flash_dropped(undecodable);
        }
        Ok(messages)
    }
}

impl State {
    /// Withdraws and returns the list if none of it is stored; returns `None` if some of it is.
    fn take_unstored_messages(&mut self) -> Option<Option<Bytes>> {
        let Some(list) = self.value(flash::KEY) else { return Some(None) };
        let is_stored = self.with_values(|_, values| values.get(flash::KEY)).is_some();
        if is_stored || self.is_being_stored(flash::KEY) {
            return None;
        }
        self.changed().withdraw(KEY);
        Some(Some(list.bytes))
    }
}

/// Takes the list from the stored record, if it still has one.
struct TakeMessages {
    list: Option<Bytes>,
}

impl Decision for TakeMessages {
    fn decide(&mut self, values: &mut Transaction<'_>) -> Result<()> {
        self.list = values.stored(flash::KEY).map(|list| list.bytes);
        if self.list.is_some() {
            values.put(KEY, None);
        }
        Ok(())
    }

    fn is_optional(&self) -> bool {
        true
    }

    fn give_up(&mut self) {
        self.list = None;
    }
}
