//! Messages for the next page: written, and taken by the page that shows them.

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
    /// Leaves a message for the next page that [asks](Self::flashes), also across redirects, a sign-in and
    /// a sign-out.
    ///
    /// It is committed like any other change, in the same write. At most 16 messages of 4 KiB together (a
    /// quarter of [`max_record_bytes`](crate::Builder::max_record_bytes), if that is less) wait in a session;
    /// one more drops the oldest. If the record would be too large with them, they are dropped and the
    /// application's own values are stored.
    ///
    /// After [`sign_out`](Self::sign_out), or before it in the same request, the message goes into a new
    /// anonymous session. Messages that are stored by then, by earlier requests or by a
    /// [`save`](Self::save), end with the old session, since they may be personal; the same holds for a
    /// sign-in as another person. To end all sessions and say so, call
    /// [`revoke_others`](crate::Directory::revoke_others), then `sign_out`, then this: after
    /// [`revoke_all`](crate::Directory::revoke_all) no cookie may be sent for the message.
    ///
    /// If the session has ended or was signed in anew meanwhile, no cookie may be sent: the message is
    /// dropped with the event `flash_dropped`, and the request succeeds. So is the message of a sign-out
    /// that the store has no room for. After the response, a message that would begin a session fails at
    /// [`save`](Self::save) with [`ErrorKind::HeadSent`](crate::ErrorKind::HeadSent), as every value does.
    ///
    /// ```
    /// use unsticky::{Level, Session};
    ///
    /// // The same in an axum handler and in one of actix-web: save, and redirect to a page.
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

    /// Takes the messages that wait for a page, the oldest first, for the response that shows them.
    ///
    /// Each message goes to exactly one response. Where none waits, as this request has read the session,
    /// nothing is sent to the store. Otherwise the messages are removed before this returns, in one write
    /// that commits what this request has changed so far as well, like [`transact`](Self::transact). Of
    /// pages at once one gets them and the others get none; that is no error, and neither is a session that
    /// ended or was signed in anew meanwhile. A page that fails after this has taken its messages.
    ///
    /// # Errors
    ///
    /// Those of [`save`](Self::save); [`ErrorKind::Gone`](crate::ErrorKind::Gone) only where other changes
    /// of this request are lost, and after the response.
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
    /// The list where nothing of it is stored, so that it is only taken back; `None` where some of it is.
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

/// Takes the list from the stored record, if there still is one.
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
