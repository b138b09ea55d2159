//! Checks when a certificate expires.

use time::{Date, Duration, Month, OffsetDateTime, PrimitiveDateTime, Time};

use crate::check::Finding;

const CODE: &str = "certificate";

/// A certificate should be renewed at least this long before it expires.
const SOON: Duration = Duration::days(14);

/// Judges a certificate by its expiry date. `whose` begins the finding's message, for example
/// `The server's certificate`.
pub(super) fn judged(whose: &str, certificate: &[u8], now: OffsetDateTime) -> Finding {
    let Some(end) = not_after(certificate) else {
        let message = format!("The expiry of {} is written in an unknown form.", lower(whose));
        return Finding::note(CODE, message, "Monitor its expiry with another tool.");
    };
    let day = end.date();
    let left = end - now;
    if left.is_negative() {
        let message = format!("{whose} expired on {day} (UTC), so no new connection can be made.");
        return Finding::error(CODE, message, "Renew the certificate.");
    }
    let left_text = match left.whole_days() {
        0 | 1 => match left.whole_hours() {
            1 => "1 hour".to_owned(),
            hours => format!("{hours} hours"),
        },
        days => format!("{days} days"),
    };
    let message = format!("{whose} expires on {day} (UTC), in {left_text}.");
    if left < SOON {
        let remedy = "Renew the certificate before that: afterwards no new connection can be made.";
        return Finding::warning(CODE, message, remedy);
    }
    Finding::fine(CODE, message)
}

/// Changes the words for use in the middle of a sentence.
fn lower(whose: &str) -> String {
    whose.replacen("The ", "the ", 1)
}

/// DER tags (ITU-T X.690).
const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

/// Returns the time at which an X.509 certificate in DER format expires (RFC 5280, 4.1). Returns `None` if
/// these bytes are not a certificate.
fn not_after(certificate: &[u8]) -> Option<OffsetDateTime> {
    let (certificate, _) = expect(SEQUENCE, certificate)?;
    let (to_be_signed, _) = expect(SEQUENCE, certificate)?;
    let rest = match element(to_be_signed)? {
        (VERSION, _, rest) => rest,
        _ => to_be_signed,
    };
    let (_serial_number, rest) = expect(INTEGER, rest)?;
    let (_signature, rest) = expect(SEQUENCE, rest)?;
    let (_issuer, rest) = expect(SEQUENCE, rest)?;
    let (validity, _) = expect(SEQUENCE, rest)?;
    let (_, _not_before, rest) = element(validity)?;
    let (tag, not_after, _) = element(rest)?;
    point_in_time(tag, not_after)
}

/// Returns the content of an element with this tag, and the bytes after it.
fn expect(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = element(bytes)?;
    (found == tag).then_some((content, rest))
}

/// Returns the tag and the content of the first element, and the bytes after it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    /// No certificate needs more bytes than this for a length.
    const LONGEST: usize = 4;
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if !(1..=LONGEST).contains(&length.len()) {
            return None;
        }
        let length = length.iter().try_fold(0_usize, |length, &byte| {
            length.checked_mul(256)?.checked_add(usize::from(byte))
        });
        (length?, rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// Parses a time in a certificate (RFC 5280, 4.1.2.5), which is in UTC and has seconds.
fn point_in_time(tag: u8, text: &[u8]) -> Option<OffsetDateTime> {
    let (digits, zone) = text.split_last_chunk::<1>()?;
    if zone != b"Z" || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |digits: &[u8]| {
        digits.iter().fold(0_u16, |number, digit| number * 10 + u16::from(digit - b'0'))
    };
    let (year, rest) = match tag {
        UTC_TIME if digits.len() == 12 => {
            let (year, rest) = digits.split_at(2);
            let year = number(year);
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME if digits.len() == 14 => {
            let (year, rest) = digits.split_at(4);
            (number(year), rest)
        }
        _ => return None,
    };
    let mut pairs = rest.chunks(2).map(|pair| u8::try_from(number(pair)).ok());
    let mut next = || pairs.next().flatten();
    let date = Date::from_calendar_date(year.into(), Month::try_from(next()?).ok()?, next()?);
    let time = Time::from_hms(next()?, next()?, next()?);
    Some(PrimitiveDateTime::new(date.ok()?, time.ok()?).assume_utc())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use crate::check::Level;

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(seconds).unwrap()
    }

    fn certificate(end: OffsetDateTime) -> Vec<u8> {
        let mut params = CertificateParams::new(["redis.example".to_owned()]).unwrap();
        params.not_after = end;
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn expiry_is_read_in_both_forms() {
        // Years up to 2049 are written in the short form, later years in the long form.
        for end in [0, 946_684_799, 2_524_607_999, 2_524_608_000, 253_402_300_799] {
            assert_eq!(not_after(&certificate(at(end))), Some(at(end)));
        }
    }

    #[test]
    fn malformed_time_is_none() {
        assert_eq!(point_in_time(UTC_TIME, b"700101000001Z"), Some(at(1)));
        assert_eq!(point_in_time(GENERALIZED_TIME, b"19700101000001Z"), Some(at(1)));
        for (tag, text) in [
            (UTC_TIME, "7001010000Z"),
            (UTC_TIME, "700101000001"),
            (UTC_TIME, "700101000001+0000"),
            (UTC_TIME, "701301000001Z"),
            (UTC_TIME, "700100000001Z"),
            (UTC_TIME, "700101240001Z"),
            (UTC_TIME, "7001010000-1Z"),
            (UTC_TIME, "19700101000001Z"),
            (GENERALIZED_TIME, "700101000001Z"),
            (GENERALIZED_TIME, "19700101000001.5Z"),
            (GENERALIZED_TIME, ""),
            (INTEGER, "700101000001Z"),
        ] {
            assert_eq!(point_in_time(tag, text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn certificate_is_judged_by_remaining_time() {
        let end = at(1_800_000_000);
        let certificate = certificate(end);
        for (left, level, text) in [
            (Duration::days(14), Level::Fine, "expires on 2027-01-15 (UTC), in 14 days."),
            (Duration::days(14) - Duration::SECOND, Level::Warning, "in 13 days."),
            (Duration::days(1), Level::Warning, "in 24 hours."),
            (Duration::ZERO, Level::Warning, "in 0 hours."),
            (-Duration::SECOND, Level::Error, "expired on 2027-01-15"),
        ] {
            let finding = judged("The server's certificate", &certificate, end - left);
            assert_eq!(finding.level(), level, "{finding}");
            assert!(finding.message().contains(text), "{finding}");
        }
        assert_eq!(judged("The server's certificate", b"no certificate", end).level(), Level::Note);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = not_after(&bytes);
        }

        #[test]
        fn arbitrary_times_are_read_without_panic(tag in 0x16..0x19_u8, text in "[0-9a-z]{0,15}Z?") {
            let _ = point_in_time(tag, text.as_bytes());
        }

        #[test]
        fn damaged_certificate_is_read_without_panic(
            changes in prop::collection::vec((0..400_usize, any::<u8>()), 0..8),
            length in 0..800_usize,
        ) {
            let mut certificate = certificate(at(1_800_000_000));
            for (index, byte) in changes {
                let index = index % certificate.len();
                certificate[index] = byte;
            }
            certificate.truncate(length);
            let _ = not_after(&certificate);
        }
    }
}
