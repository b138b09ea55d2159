//! Enrolment: lists a session in its principal's directory before its cookie is sent.
//!
//! An existing session is listed before it is written, so a sign-in that cannot be listed leaves the session
//! unchanged. A new session is written first, while the directory is read. This is safe because its secret is
//! unknown until its cookie is sent.

use std::sync::Arc;

use crate::commit::Commit;
use crate::directory::record::{Enrolment, Purpose, Reservation};
use crate::directory::{DirectoryHandle, DirectorySnapshot, directory_key};
use crate::error::{Error, ErrorKind, Result};
use crate::record::header::{Authentication, Header};
use crate::record::sign_in::{Mark, SIGN_IN_WINDOW};
use crate::record::token::SessionId;
use crate::settings::DirectoryMode;

impl Commit<'_, '_> {
    /// Returns whether the directory must be written in addition to the session: for a sign-in or a step-up,
    /// and if a signed-in session will live longer than before.
    pub(super) fn needs_enrolment(&self, base: Option<&Header>, header: &Header) -> bool {
        let deadline = header.clocks.absolute_deadline;
        self.settings.options.directory != DirectoryMode::Off
            && header.principal.is_some()
            && (self.changes.signing_in().is_some()
                || base.is_none_or(|base| base.clocks.absolute_deadline < deadline))
    }

    /// Lists the session in its principal's directory.
    ///
    /// `base` is the header that `header` replaces, or `None` for a new session. `read` is the directory, if
    /// it was already read. Returns `false` if the session is new and another request has ended it in the
    /// meantime.
    pub(super) async fn enrol(
        &mut self,
        id: SessionId,
        base: Option<&Header>,
        header: &Header,
        read: Option<DirectorySnapshot>,
    ) -> Result<bool> {
        let Some(principal) = &header.principal else { return Ok(true) };
        self.check_sign_in_window()?;
        let read = match base {
            Some(_) => self.begun_directory(id, header),
            None => read,
        };
        let enrolment_request =
            Enrolment { is_written: base.is_none(), ..self.enrolment_request(id, header) };
        let expected = self.expected_mark();
        if base.is_none() {
            // Set before the write, in case its outcome stays unknown: only this sign-in can have added the
            // entry for a new session.
            self.enrolment.reservation = self.reservation(&enrolment_request, base, header, true);
        }
        let directory = self.directory(principal);
        let (mark, is_new) = match directory.enrol(&enrolment_request, expected, read).await {
            Ok(Some(enrolled)) => enrolled,
            Ok(None) => {
                self.enrolment.reservation = None;
                return Ok(false);
            }
            Err(error) => {
                if error.kind() == ErrorKind::TooManySessions {
                    // The directory refused the session before listing it.
                    self.enrolment.reservation = None;
                }
                return Err(error);
            }
        };
        self.enrolment.reservation = self.reservation(&enrolment_request, base, header, is_new);
        self.enrolment.mark = Some(mark);
        self.enrolment.listed = Some(id);
        Ok(true)
    }

    /// Fails if the sign-in has taken so long that the directory may have forgotten a revocation.
    pub(super) fn check_sign_in_window(&self) -> Result<()> {
        let begun = self.changes.signing_in().and_then(|sign_in| sign_in.begun.as_ref());
        if begun.is_some_and(|begun| self.settings.now().since(begun.at) > SIGN_IN_WINDOW) {
            return Err(Error::new(
                ErrorKind::Revoked,
                "the sign-in took longer than the time limit",
            ));
        }
        Ok(())
    }

    /// Returns the directory that must be read before a new session with this header can be listed, or `None`
    /// if the session need not be listed.
    pub(super) fn directory_to_read<'b>(
        &'b self,
        header: &'b Header,
    ) -> Option<DirectoryHandle<'b>> {
        let principal = header.principal.as_ref()?;
        self.needs_enrolment(None, header).then(|| self.directory(principal))
    }

    /// Returns the directory of a principal. Keeps the key of the first principal for the rest of the
    /// commit, which normally has no other.
    fn directory<'b>(&'b self, principal: &'b Arc<str>) -> DirectoryHandle<'b> {
        let key_of = || directory_key(self.settings, principal);
        let (owner, key) = self.enrolment.key.get_or_init(|| (principal.clone(), key_of()));
        let key = if owner == principal { key.clone() } else { key_of() };
        DirectoryHandle::with_key(self.settings, self.commands, principal, key)
    }

    /// Returns the directory as `begin_sign_in` read it, if this commit can use that copy. Used for the first
    /// attempt only.
    pub(super) fn begun_directory(
        &mut self,
        id: SessionId,
        header: &Header,
    ) -> Option<DirectorySnapshot> {
        let start = self.changes.signing_in()?.begun.as_ref()?;
        if self.enrolment.mark.is_some() {
            return None;
        }
        let directory = self.directory_to_read(header)?;
        let begun = directory.begun_snapshot(start, &self.enrolment_request(id, header))?;
        self.keep_mark_of(&begun);
        Some(begun)
    }

    /// Keeps the mark of the directory that was read for this sign-in. If all sessions are revoked before the
    /// new session is listed, the mark no longer matches and the sign-in fails.
    pub(super) fn keep_mark_of(&mut self, read: &DirectorySnapshot) {
        self.enrolment.mark = self.expected_mark().or(Some(read.mark()));
    }

    fn enrolment_request(&self, id: SessionId, header: &Header) -> Enrolment {
        let sign_in = self.changes.signing_in();
        let signed_in = header.clocks.authenticated.unwrap_or(header.clocks.created);
        let is_new_sign_in = matches!(self.changes.proof(), Authentication::SignIn(_));
        let is_strict = self.settings.options.directory == DirectoryMode::Strict;
        Enrolment {
            id,
            signed_in,
            begun: sign_in.and_then(|sign_in| Some(sign_in.begun.as_ref()?.at)),
            purpose: match sign_in {
                None => Purpose::LongerLife,
                Some(sign_in) if sign_in.is_step_up => Purpose::StepUp,
                Some(_) if self.enrolment.listed == Some(id) => Purpose::Again,
                Some(_) => Purpose::SignIn,
            },
            life: header.clocks.absolute_deadline.since(signed_in),
            label: sign_in.and_then(|sign_in| sign_in.label.clone()),
            replacing: self.enrolment.replacing.clone(),
            must_be_listed: is_strict && !is_new_sign_in,
            is_written: false,
        }
    }

    /// Returns the mark that the directory must still have, or `None` if any mark is accepted. (Revoking all
    /// sessions changes the mark.) The expected mark is the one that this commit found when it first enrolled
    /// the session or read the directory; before that, it is the mark that `begin_sign_in` read.
    fn expected_mark(&self) -> Option<Option<Mark>> {
        let sign_in = self.changes.signing_in()?;
        self.enrolment.mark.or(sign_in.begun.as_ref().map(|begun| begun.mark))
    }

    /// Returns the reservation for the session, if this sign-in holds one.
    fn reservation(
        &self,
        enrolment_request: &Enrolment,
        base: Option<&Header>,
        header: &Header,
        is_new: bool,
    ) -> Option<Reservation> {
        let id = enrolment_request.id;
        let earlier = self.enrolment.reservation.filter(|_| self.enrolment.listed == Some(id));
        // If the session was already signed in, its entry is not this sign-in's reservation.
        let was_anonymous = base.is_none_or(|base| base.principal.is_none());
        let is_own = was_anonymous && (is_new || earlier.is_some());
        let signed_in = match earlier {
            // The directory keeps the time of the first attempt.
            Some(earlier) if !is_new => earlier.signed_in,
            _ => enrolment_request.signed_in,
        };
        is_own.then(|| Reservation { id, signed_in, tag: header.tags.newest() })
    }

    /// Releases the reservation of a failed sign-in. Store errors are ignored.
    pub(super) async fn release_reservation(&mut self) {
        let Some(reservation) = self.enrolment.reservation else { return };
        let Some(principal) = self.changes.principal() else { return };
        let _ = self.directory(principal).release(reservation).await;
    }
}
