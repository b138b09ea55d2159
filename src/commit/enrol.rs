//! Enrolment: a session is listed in its principal's directory before its cookie is sent.
//!
//! A session that is there already is listed before it is written, so that a sign-in that cannot be listed
//! leaves it as it was. A new one is written first, while the directory is read: until its cookie is sent,
//! nobody can use it.

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
    /// Whether the directory has to know of a write: of a sign-in, and of a session that will live longer than
    /// the directory expects.
    pub(super) fn needs_enrolment(&self, base: Option<&Header>, header: &Header) -> bool {
        let deadline = header.clocks.absolute_deadline;
        self.settings.options.directory != DirectoryMode::Off
            && header.principal.is_some()
            && (self.changes.signing_in().is_some()
                || base.is_none_or(|base| base.clocks.absolute_deadline < deadline))
    }

    /// Lists the session in its principal's directory. `base` is the header that `header` replaces, and
    /// `read` the directory as it was read for this, if it was. Returns whether the session is listed: a new
    /// one is not if somebody else has ended it meanwhile.
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
            // Should the outcome be unknown, the entry of a new session can only be this sign-in's.
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
                    // There was no entry when it was refused.
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

    /// Fails if the sign-in has taken too long: the directory may not remember a revocation any more.
    pub(super) fn check_sign_in_window(&self) -> Result<()> {
        let begun = self.changes.signing_in().and_then(|sign_in| sign_in.begun.as_ref());
        if begun.is_some_and(|begun| self.settings.now().since(begun.at) > SIGN_IN_WINDOW) {
            return Err(Error::new(ErrorKind::Revoked, "the sign-in took too long"));
        }
        Ok(())
    }

    /// The directory that has to be read before a new session with this header can be listed in it.
    pub(super) fn directory_to_read<'b>(
        &'b self,
        header: &'b Header,
    ) -> Option<DirectoryHandle<'b>> {
        let principal = header.principal.as_ref()?;
        self.needs_enrolment(None, header).then(|| self.directory(principal))
    }

    /// The directory of a principal. The key is computed once for a commit, which has one principal.
    fn directory<'b>(&'b self, principal: &'b Arc<str>) -> DirectoryHandle<'b> {
        let key_of = || directory_key(self.settings, principal);
        let (owner, key) = self.enrolment.key.get_or_init(|| (principal.clone(), key_of()));
        let key = if owner == principal { key.clone() } else { key_of() };
        DirectoryHandle::with_key(self.settings, self.commands, principal, key)
    }

    /// The directory as the sign-in brings it along from its beginning, for its first attempt.
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

    /// The directory was read for this sign-in: if all sessions are revoked before its session is listed, it
    /// fails.
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

    /// The mark that the directory must have: the one that this sign-in found when it began, or listed the
    /// session first. `None` if any mark will do.
    fn expected_mark(&self) -> Option<Option<Mark>> {
        let sign_in = self.changes.signing_in()?;
        self.enrolment.mark.or(sign_in.begun.as_ref().map(|begun| begun.mark))
    }

    /// The reservation of a session that was listed just now, if this sign-in made the reservation.
    fn reservation(
        &self,
        enrolment_request: &Enrolment,
        base: Option<&Header>,
        header: &Header,
        is_new: bool,
    ) -> Option<Reservation> {
        let id = enrolment_request.id;
        let earlier = self.enrolment.reservation.filter(|_| self.enrolment.listed == Some(id));
        // A session that was signed in before is listed by its earlier sign-in, or lives unlisted.
        let was_anonymous = base.is_none_or(|base| base.principal.is_none());
        let is_own = was_anonymous && (is_new || earlier.is_some());
        let signed_in = match earlier {
            // The directory keeps the time of the first attempt.
            Some(earlier) if !is_new => earlier.signed_in,
            _ => enrolment_request.signed_in,
        };
        is_own.then(|| Reservation { id, signed_in, tag: header.tags.newest() })
    }

    /// Releases the reservation of a session whose sign-in failed, as far as the store allows.
    pub(super) async fn release_reservation(&mut self) {
        let Some(reservation) = self.enrolment.reservation else { return };
        let Some(principal) = self.changes.principal() else { return };
        let _ = self.directory(principal).release(reservation).await;
    }
}
