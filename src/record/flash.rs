//! Flash messages, and the list that holds them in a record.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Serialize, SerializeStruct as _, Serializer};
use serde_json::Value as Json;

use crate::error::{Error, ErrorKind, Result};

/// The key of the list, a JSON array that contains `[level, text]` for each message, oldest first.
pub(crate) const KEY: &str = "unsticky.flash";

/// The maximum number of messages in a session.
pub(crate) const MESSAGES: usize = 16;

/// The maximum size of the list, in bytes.
const LIST_BYTES: usize = 4096;

/// The maximum length of the text of a message, in bytes.
const TEXT_BYTES: usize = 1024;

/// The level of a [`Flash`] message, which determines how a page shows the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Level {
    /// Information. The default.
    #[default]
    Info,
    /// An action succeeded.
    Success,
    /// Something needs the user's attention.
    Warning,
    /// An action failed.
    Error,
}

impl Level {
    const ALL: [Self; 4] = [Self::Info, Self::Success, Self::Warning, Self::Error];

    /// Returns the level's name: `info`, `success`, `warning` or `error`. You can use it as a CSS class, for
    /// example.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Success => "success",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }

    /// Returns the level with this name. An unknown name, which a later release may have written, means
    /// `Info`.
    fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|level| level.as_str() == name).unwrap_or_default()
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for Level {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Deserialises a level from its name. An unknown name becomes [`Info`](Level::Info).
impl<'de> Deserialize<'de> for Level {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|name| Self::named(&name))
    }
}

/// A message for the next page; see [`Session::flash`](crate::Session::flash).
#[doc(alias("Message", "FlashMessage"))]
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Flash {
    /// The level of the message.
    pub level: Level,
    /// The text that was passed to [`Session::flash`](crate::Session::flash), unchanged. Escape it when you
    /// put it in a page.
    pub text: String,
}

impl Serialize for Flash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Flash", 2)?;
        fields.serialize_field("level", &self.level)?;
        fields.serialize_field("text", &self.text)?;
        fields.end()
    }
}

impl<'de> Deserialize<'de> for Flash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut fields = BTreeMap::<String, String>::deserialize(deserializer)?;
        let mut field = |name| fields.remove(name).ok_or_else(|| D::Error::missing_field(name));
        Ok(Self { level: Level::named(&field("level")?), text: field("text")? })
    }
}

/// Returns the maximum size of the list in bytes, which depends on the maximum size of a record.
pub(crate) fn most_bytes(max_record: usize) -> usize {
    LIST_BYTES.min(max_record / 4)
}

/// Encodes a message for a list of at most `most` bytes.
pub(crate) fn encoded(level: Level, text: &str, most: usize) -> Result<Bytes> {
    let refused = |size: usize, max: usize| {
        let context = format!("the flash message is {size} bytes long, but the limit is {max}");
        Err(Error::new(ErrorKind::TooLarge, context))
    };
    if text.len() > TEXT_BYTES {
        return refused(text.len(), TEXT_BYTES);
    }
    let message = Json::from(vec![level.as_str(), text]).to_string();
    if message.len() + 2 > most {
        return refused(message.len(), most.saturating_sub(2));
    }
    Ok(message.into())
}

/// Appends a message to the list. If the list would be too long, the oldest messages are removed. If the stored value
/// is not a list, a new list replaces it, because a message must not make a commit fail.
pub(crate) fn appended(list: Option<&[u8]>, message: &[u8], most: usize) -> Bytes {
    let earlier = list.and_then(items).unwrap_or_default();
    let earlier: Vec<String> = earlier.iter().map(Json::to_string).collect();
    let mut room = most.saturating_sub(message.len() + 2);
    let fits = |text: &&String| match room.checked_sub(text.len() + 1) {
        Some(left) => {
            room = left;
            true
        }
        None => false,
    };
    let kept = earlier.iter().rev().take(MESSAGES - 1).take_while(fits).count();
    let mut longer = b"[".to_vec();
    for text in &earlier[earlier.len() - kept..] {
        longer.extend_from_slice(text.as_bytes());
        longer.push(b',');
    }
    longer.extend_from_slice(message);
    longer.push(b']');
    longer.into()
}

/// Returns the messages of a list, and the number of items that cannot be decoded.
pub(crate) fn messages(list: &[u8]) -> (Vec<Flash>, usize) {
    let Some(items) = items(list) else { return (Vec::new(), 1) };
    let messages: Vec<_> = items.iter().filter_map(message).collect();
    let undecodable = items.len() - messages.len();
    (messages, undecodable)
}

fn items(list: &[u8]) -> Option<Vec<Json>> {
    serde_json::from_slice(list).ok()
}

fn message(item: &Json) -> Option<Flash> {
    let text = |place: usize| item.get(place).and_then(Json::as_str);
    Some(Flash { level: Level::named(text(0)?), text: text(1)?.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(texts: &[&str], most: usize) -> Bytes {
        let append = |list: Option<Bytes>, text: &&str| {
            let message = encoded(Level::Info, text, most).unwrap();
            Some(appended(list.as_deref(), &message, most))
        };
        texts.iter().fold(None, append).unwrap()
    }

    fn texts(list: &[u8]) -> Vec<String> {
        messages(list).0.into_iter().map(|flash| flash.text).collect()
    }

    #[test]
    fn list_is_json_of_level_and_text() {
        let saved = encoded(Level::Success, "sav\"ed\n", 100).unwrap();
        let list = appended(None, &saved, 100);
        assert_eq!(list, r#"[["success","sav\"ed\n"]]"#);
        let failed = encoded(Level::Error, "é", 100).unwrap();
        let list = appended(Some(&list), &failed, 100);
        let (read, undecodable) = messages(&list);
        assert_eq!((read[0].level, &*read[0].text), (Level::Success, "sav\"ed\n"));
        assert_eq!((read[1].level, &*read[1].text), (Level::Error, "é"));
        assert_eq!((read.len(), undecodable), (2, 0));
    }

    #[test]
    fn oldest_messages_make_room() {
        let numbers: Vec<_> = (0..20).map(|number| number.to_string()).collect();
        let numbers: Vec<_> = numbers.iter().map(String::as_str).collect();
        assert_eq!(texts(&list(&numbers, 4096)), numbers[4..]);
        // Eleven bytes per message, the commas between them, and two brackets.
        for (most, kept) in [(11 + 2, 1), (2 * 11 + 1 + 2, 2), (2 * 11 + 2, 1), (3 * 12 + 1, 3)] {
            let list = list(&["a", "b", "c"].map(|_| ""), most);
            assert_eq!((texts(&list).len(), list.len() <= most), (kept, true), "{most}");
        }
    }

    #[test]
    fn long_text_is_refused() {
        assert!(encoded(Level::Info, &"x".repeat(1024), most_bytes(65536)).is_ok());
        for (text, max_record) in
            [("x".repeat(1025), 65536), ("x".repeat(510), 2048), ("\u{1}".repeat(1000), 65536)]
        {
            let error = encoded(Level::Info, &text, most_bytes(max_record)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
            assert!(!error.to_string().contains("xx"));
        }
    }

    #[test]
    fn undecodable_parts_are_counted_and_replaced() {
        let message = encoded(Level::Info, "new", 100).unwrap();
        for no_list in ["", "7", "{}", "\"x\"", "[", "\u{fffd}"] {
            assert_eq!(messages(no_list.as_bytes()), (Vec::new(), 1), "{no_list}");
            assert_eq!(texts(&appended(Some(no_list.as_bytes()), &message, 100)), ["new"]);
        }
        let mixed = br#"[7, ["info"], ["later", "old", {"more": 1}], [1, 2]]"#;
        let (read, undecodable) = messages(mixed);
        assert_eq!((read[0].level, &*read[0].text), (Level::Info, "old"));
        assert_eq!((read.len(), undecodable), (1, 3));
        // Data that a later release has added is kept.
        let longer = appended(Some(br#"[["later","old",{"more":1}]]"#), &message, 100);
        assert_eq!(longer, r#"[["later","old",{"more":1}],["info","new"]]"#);
    }

    #[test]
    fn flash_is_json_of_an_application() {
        for level in Level::ALL {
            let flash = Flash { level, text: "saved".to_owned() };
            let json = serde_json::to_string(&flash).unwrap();
            assert_eq!(json, format!(r#"{{"level":"{level}","text":"saved"}}"#));
            assert_eq!(serde_json::from_str::<Flash>(&json).unwrap(), flash);
        }
        assert_eq!(serde_json::from_str::<Level>("\"later\"").unwrap(), Level::Info);
        assert!(serde_json::from_str::<Flash>(r#"{"level":"info"}"#).is_err());
    }
}
