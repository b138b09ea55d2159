//! Flash messages: one request stores them, and the next page that shows them removes them.

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
    /// Stores a flash message for the next page that reads it with [`flashes`](Self::flashes). The message
    /// survives redirects and, as described below, a sign-in and a sign-out.
    ///
    /// The message is committed like any other change, in the same write. A session holds at most 16 messages
    /// with a total size of 4 KiB (or a quarter of [`max_record_bytes`](crate::Builder::max_record_bytes), if
    /// that is less); a message beyond these limits replaces the oldest ones. If the messages would make the
    /// record too large, they are dropped and the application's values are stored without them.
    ///
    /// If the request also [signs out](Self::sign_out), before or after this call, the message is stored in a
    /// new anonymous session. Messages stored earlier, by previous requests or by a [`save`](Self::save), are
    /// removed with the old session, because they may be personal. A sign-in as a different principal removes
    /// them as well. To revoke all sessions and show a message, call
    /// [`revoke_others`](crate::Directory::revoke_others), then `sign_out`, then `flash`: after
    /// [`revoke_all`](crate::Directory::revoke_all) no cookie may be sent for the message.
    ///
    /// If another request has ended the session or signed a user in, no cookie may be sent: the message is
    /// dropped, the `flash_dropped` event reports this, and the request succeeds. A message stored along with
    /// a sign-out is also dropped if the store has no room for it. After the response, a [`save`](Self::save)
    /// fails with [`ErrorKind::HeadSent`](crate::ErrorKind::HeadSent) if the message needs a new session, as
    /// it does for any other value.
    ///
    /// ```
    /// use unsticky::{Level, Session};
    ///
    /// // Called before a redirect, in axum or in actix-web.
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
    /// [`ErrorKind::TooLarge`](crate::ErrorKind::TooLarge) if the text is longer than 1024 bytes or exceeds
    /// the limit for all messages together. In that case, nothing is changed.
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

    /// Removes the pending flash messages and returns them, oldest first.
    ///
    /// Each message is returned to at most one request. If the session had no messages when this request read
    /// it, no store command is sent. Otherwise, this method removes the messages before it returns, in a
    /// single write that also commits this request's earlier changes, like [`transact`](Self::transact). If
    /// several pages ask at the same time, one of them gets the messages. If another request has ended the
    /// session or signed a user in, this method returns no messages rather than an error. If the page fails
    /// afterwards, its messages are lost.
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
    /// The errors of [`save`](Self::save). [`ErrorKind::Gone`](crate::ErrorKind::Gone) is returned only if
    /// other changes by this request are lost, or after the response.
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

/// Takes the list from the stored record, if the record still has one.
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
