//! Serialises a listed session, for a "your sessions" page that a script renders.

use std::fmt;

use serde::ser::{Serialize, SerializeStruct as _, Serializer};
use time::{OffsetDateTime, UtcOffset};

use crate::sessions::directory::ListedSession;

/// Serialises all fields under their names. Times are strings in RFC 3339 format, in UTC and whole seconds,
/// such as `2026-01-01T09:30:00Z`.
impl Serialize for ListedSession {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { id, created, signed_in_at, last_seen, expires_at, label, is_current } = self;
        let mut fields = serializer.serialize_struct("ListedSession", 7)?;
        fields.serialize_field("id", id)?;
        fields.serialize_field("created", &Rfc3339(*created))?;
        fields.serialize_field("signed_in_at", &Rfc3339(*signed_in_at))?;
        fields.serialize_field("last_seen", &Rfc3339(*last_seen))?;
        fields.serialize_field("expires_at", &Rfc3339(*expires_at))?;
        fields.serialize_field("label", label)?;
        fields.serialize_field("is_current", is_current)?;
        fields.end()
    }
}

/// A time, shown in RFC 3339 format (section 5.6), rounded down to the second.
pub(crate) struct Rfc3339(pub(crate) OffsetDateTime);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.0.checked_to_offset(UtcOffset::UTC).unwrap_or(self.0);
        let (year, month, day) = time.to_calendar_date();
        let (hour, minute, second) = time.to_hms();
        let month = u8::from(month);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

impl Serialize for Rfc3339 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Millis;

    #[test]
    fn moment_is_text_in_utc_and_whole_seconds() {
        let moment = |millis| Millis(millis).to_time_or_last();
        for (time, text) in [
            (moment(0), "1970-01-01T00:00:00Z"),
            (moment(1_767_225_600_000), "2026-01-01T00:00:00Z"),
            (moment(1_770_000_001_999), "2026-02-02T02:40:01Z"),
            (moment(1_709_164_799_000), "2024-02-28T23:59:59Z"),
            (moment(253_402_300_799_999), "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(Rfc3339(time).to_string(), text);
        }
        let in_delhi = moment(0).to_offset(UtcOffset::from_hms(5, 30, 0).unwrap());
        assert_eq!(Rfc3339(in_delhi).to_string(), "1970-01-01T00:00:00Z");
    }
}
