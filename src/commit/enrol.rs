//! Enrolment: a session is listed in its principal's directory before it is written.

use crate::commit::Commit;
use crate::directory::DirectoryHandle;
use crate::directory::record::{Enrolment, Purpose, Reservation};
use crate::error::{Error, ErrorKind, Result};
use crate::record::header::{Authentication, Header};
use crate::record::sign_in::{Mark, SIGN_IN_WINDOW};
use crate::record::token::SessionId;
use crate::settings::DirectoryMode;

impl Commit<'_, '_> {
    /// Whether the directory has to know of a write beforehand: of a sign-in, and of a session that will
    /// live longer than the directory expects.
    pub(super) fn needs_enrolment(&self, base: Option<&Header>, header: &Header) -> bool {
        let deadline = header.clocks.absolute_deadline;
        self.settings.options.directory != DirectoryMode::Off
            && header.principal.is_some()
            && (self.changes.signing_in().is_some()
                || base.is_none_or(|base| base.clocks.absolute_deadline < deadline))
    }

    /// Lists the session in its principal's directory. `base` is the header that `header` replaces.
    pub(super) async fn enrol(
        &mut self,
        id: SessionId,
        base: Option<&Header>,
        header: &Header,
    ) -> Result<()> {
        let Some(principal) = &header.principal else { return Ok(()) };
        self.check_sign_in_window(header)?;
        let enrolment_request = self.enrolment_request(id, header);
        let expected = self.expected_mark();
        let abandoned = self.enrolment.abandoned.map(|reservation| reservation.id);
        let directory = DirectoryHandle::new(self.settings, self.commands, principal);
        let (mark, is_new) = directory.enrol(&enrolment_request, expected, abandoned).await?;
        self.enrolment.reservation = self.reservation(&enrolment_request, base, header, is_new);
        self.enrolment.mark = Some(mark);
        self.enrolment.listed = Some(id);
        self.enrolment.abandoned = None;
        Ok(())
    }

    /// A sign-in must be completed in time after it was begun.
    fn check_sign_in_window(&self, header: &Header) -> Result<()> {
        let begun = self.changes.signing_in().and_then(|sign_in| sign_in.begun);
        if begun.is_some_and(|begun| header.clocks.last_seen.since(begun.at) > SIGN_IN_WINDOW) {
            return Err(Error::new(ErrorKind::Revoked, "the sign-in took too long"));
        }
        Ok(())
    }

    fn enrolment_request(&self, id: SessionId, header: &Header) -> Enrolment {
        let sign_in = self.changes.signing_in();
        let signed_in = header.clocks.authenticated.unwrap_or(header.clocks.created);
        let is_new_sign_in = matches!(self.changes.proof(), Authentication::SignIn(_));
        let is_strict = self.settings.options.directory == DirectoryMode::Strict;
        Enrolment {
            id,
            signed_in,
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
        }
    }

    /// The mark that the directory must have: the one that this sign-in found when it began, or listed the
    /// session first. `None` if any mark will do.
    fn expected_mark(&self) -> Option<Option<Mark>> {
        let sign_in = self.changes.signing_in()?;
        self.enrolment.mark.or(sign_in.begun.map(|begun| begun.mark))
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

    /// Releases the reservations of sessions that could not be written, as far as the store allows.
    pub(super) async fn release_reservations(&mut self) {
        let reservations = [self.enrolment.reservation, self.enrolment.abandoned];
        let Some(principal) = self.changes.principal() else { return };
        let directory = DirectoryHandle::new(self.settings, self.commands, principal);
        for reservation in reservations.into_iter().flatten() {
            let _ = directory.release(reservation).await;
        }
    }
}
