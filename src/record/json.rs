//! Encodes values as JSON. JSON is self-describing, so a type may change while sessions are alive, and
//! operators can read the values.

use std::fmt::{self, Display};
use std::io;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer, ser};
use serde_json::error::Category;
use serde_json::ser::{CompactFormatter, Formatter};

use crate::error::{Error, ErrorKind, Result};

/// The maximum depth of nested arrays and objects that `serde_json` reads.
const MAX_DEPTH: u8 = 127;

/// Encodes a value. Fails if [`decoded`] could not return it as a `T`.
///
/// The errors do not include messages from the encoder or decoder, because these may quote the value.
pub(crate) fn encoded<T: DeserializeOwned>(
    name: &str,
    value: &(impl Serialize + ?Sized),
    max: usize,
) -> Result<Bytes> {
    let refused = |reason: &dyn Display| {
        Error::new(ErrorKind::Encode, format!("the value of {name:?}: {reason}"))
    };
    value.serialize(Check { depth_left: MAX_DEPTH }).map_err(|refusal| refused(&refusal))?;
    let mut bytes = Vec::with_capacity(128);
    let mut json = serde_json::Serializer::with_formatter(&mut bytes, Exact);
    value.serialize(&mut json).map_err(|error| match error.classify() {
        Category::Data => refused(&Refusal::Serialize),
        _ => refused(&"it contains a map with keys that JSON cannot represent"),
    })?;
    if bytes.len() > max {
        let context =
            format!("the value of {name:?} has {} bytes, but the limit is {max}", bytes.len());
        return Err(Error::new(ErrorKind::TooLarge, context));
    }
    // Only the type's own `Deserialize` can show whether the JSON can be read back. For example, serde writes
    // a map's integer keys as text and does not convert them back under `flatten`.
    serde_json::from_slice::<T>(&bytes).map_err(|error| {
        refused(&format_args!("its JSON cannot be read back as the key's type{}", place(&error)))
    })?;
    Ok(bytes.into())
}

pub(crate) fn decoded<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        // Only the position is taken from the decoder's error, because its message may quote the value.
        let context = format!("the value of {name:?}{}", place(&error));
        Error::new(ErrorKind::Decode, context)
    })
}

/// Returns the JSON of a value unchanged.
pub(crate) fn text(name: &str, bytes: &[u8]) -> Result<String> {
    let not_text = |_| Error::new(ErrorKind::Decode, format!("the value of {name:?} is not UTF-8"));
    str::from_utf8(bytes).map(str::to_owned).map_err(not_text)
}

/// Returns the position of an error in the JSON, or an empty string if the type's `Deserialize` returned an
/// error without a position.
fn place(error: &serde_json::Error) -> String {
    match error.line() {
        0 => String::new(),
        line => format!(", at line {line} column {}", error.column()),
    }
}

/// Writes an `f32` so that it keeps its value even if it is first read as an `f64`, as happens under
/// `flatten` and in untagged enums. The shortest text of some `f32` values, for example 7.038531e-26, would
/// then be rounded twice. For these values, the text of the equal `f64` is written.
struct Exact;

impl Formatter for Exact {
    fn write_f32<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f32) -> io::Result<()> {
        let mut shortest = Vec::with_capacity(16);
        CompactFormatter.write_f32(&mut shortest, value)?;
        let read = serde_json::from_slice::<f64>(&shortest).map(|read| read as f32);
        match read {
            Ok(read) if read.to_bits() == value.to_bits() => writer.write_all(&shortest),
            _ => self.write_f64(writer, value.into()),
        }
    }
}

/// A serializer that writes nothing. It rejects values that `serde_json` writes without an error but cannot
/// read back: numbers that are not finite, which are written as `null`, and values that are nested too
/// deeply.
#[derive(Clone, Copy)]
struct Check {
    depth_left: u8,
}

/// Why a value cannot be stored.
#[derive(Debug)]
enum Refusal {
    NotFinite,
    TooDeep,
    Serialize,
}

impl Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFinite => {
                f.write_str("it contains NaN or an infinity, which JSON cannot represent")
            }
            Self::TooDeep => write!(f, "it is nested more than {MAX_DEPTH} levels deep"),
            Self::Serialize => f.write_str("its `Serialize` failed"),
        }
    }
}

impl std::error::Error for Refusal {}

impl ser::Error for Refusal {
    fn custom<T: Display>(_: T) -> Self {
        Self::Serialize
    }
}

type Checked<T = ()> = Result<T, Refusal>;

impl Check {
    /// Enters arrays or objects. Fails if they are nested too deeply.
    fn inside(self, levels: u8) -> Checked<Self> {
        let depth_left = self.depth_left.checked_sub(levels).ok_or(Refusal::TooDeep)?;
        Ok(Self { depth_left })
    }

    fn finite(is_finite: bool) -> Checked {
        if is_finite { Ok(()) } else { Err(Refusal::NotFinite) }
    }
}

/// Accepts a value that JSON can always represent.
macro_rules! accept {
    ($($method:ident($($argument:ty),*);)*) => {
        $(fn $method(self, $(_: $argument),*) -> Checked { Ok(()) })*
    };
}

/// Enters an array or an object, which adds the given number of levels.
macro_rules! enter {
    ($($method:ident($($argument:ty),*) -> $compound:ident: $levels:literal;)*) => {
        $(
            type $compound = Self;

            fn $method(self, $(_: $argument),*) -> Checked<Self> { self.inside($levels) }
        )*
    };
}

impl Serializer for Check {
    type Ok = ();
    type Error = Refusal;

    accept! {
        serialize_bool(bool);
        serialize_i8(i8);
        serialize_i16(i16);
        serialize_i32(i32);
        serialize_i64(i64);
        serialize_i128(i128);
        serialize_u8(u8);
        serialize_u16(u16);
        serialize_u32(u32);
        serialize_u64(u64);
        serialize_u128(u128);
        serialize_char(char);
        serialize_str(&str);
        serialize_bytes(&[u8]);
        serialize_none();
        serialize_unit();
        serialize_unit_struct(&'static str);
        serialize_unit_variant(&'static str, u32, &'static str);
    }

    enter! {
        serialize_seq(Option<usize>) -> SerializeSeq: 1;
        serialize_tuple(usize) -> SerializeTuple: 1;
        serialize_tuple_struct(&'static str, usize) -> SerializeTupleStruct: 1;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> SerializeTupleVariant: 2;
        serialize_map(Option<usize>) -> SerializeMap: 1;
        serialize_struct(&'static str, usize) -> SerializeStruct: 1;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> SerializeStructVariant: 2;
    }

    fn serialize_f32(self, value: f32) -> Checked {
        Self::finite(value.is_finite())
    }

    fn serialize_f64(self, value: f64) -> Checked {
        Self::finite(value.is_finite())
    }

    fn collect_str<T: ?Sized + Display>(self, _: &T) -> Checked {
        Ok(())
    }

    fn serialize_some<T: ?Sized + Serialize>(self, value: &T) -> Checked {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        value: &T,
    ) -> Checked {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Checked {
        value.serialize(self.inside(1)?)
    }
}

/// Checks each part of an array or an object.
macro_rules! check_each {
    ($($compound:ident { $($method:ident($($name:ty)?))* })*) => {
        $(impl ser::$compound for Check {
            type Ok = ();
            type Error = Refusal;

            $(fn $method<T: ?Sized + Serialize>(&mut self, $(_: $name,)? value: &T) -> Checked {
                value.serialize(*self)
            })*

            fn end(self) -> Checked { Ok(()) }
        })*
    };
}

check_each! {
    SerializeSeq { serialize_element() }
    SerializeTuple { serialize_element() }
    SerializeTupleStruct { serialize_field() }
    SerializeTupleVariant { serialize_field() }
    SerializeMap { serialize_key() serialize_value() }
    SerializeStruct { serialize_field(&'static str) }
    SerializeStructVariant { serialize_field(&'static str) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_is_encoded_within_size_and_decoded_as_its_type() {
        assert_eq!(encoded::<String>("a", "12345678", 10).unwrap(), &b"\"12345678\""[..]);
        let error = encoded::<String>("a", "12345678", 9).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert_eq!(decoded::<u32>("a", b"x").unwrap_err().kind(), ErrorKind::Decode);
        assert_eq!(decoded::<u32>("a", b"7").unwrap(), 7);
        assert_eq!(encoded::<u32>("a", "7", 9).unwrap_err().kind(), ErrorKind::Encode);
    }

    #[test]
    fn text_of_value_is_its_bytes() {
        assert_eq!(text("a", b"[ 1, 2 ]").unwrap(), "[ 1, 2 ]");
        let error = text("a", b"\"SWORD\xff\"").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Decode);
        let shown = format!("{error} {error:?}");
        assert!(shown.contains("\"a\"") && !shown.contains("SWORD"), "{shown}");
    }
}
