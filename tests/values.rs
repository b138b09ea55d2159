//! A value is either read back exactly as it was written, or refused when it is written.

#![cfg(all(feature = "testing", feature = "memory", feature = "redis", feature = "memcached"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod support;

use std::collections::{BTreeMap, HashMap};
use std::error::Error as _;
use std::fmt::Debug;

use proptest::prelude::*;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::ser::{Error as _, SerializeSeq as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};
use support::runtime;
use support::stand::{Backend, Stand, on_every_store};
use unsticky::testing::Verb;
use unsticky::{Error, ErrorKind, Key, Result, Session};

const SECRET: &str = "SWORDFISH";
const SECRET_NUMBER: u32 = 471_147_114;

/// Floats in every position that serde may treat in a different way.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Floats {
    double: f64,
    single: f32,
    inside: Vec<Option<(f64, f32)>>,
    variant: Variants,
    untagged: Vec<Untagged>,
    #[serde(flatten)]
    flat: Flat,
    #[serde(flatten)]
    rest: BTreeMap<String, f32>,
    any: Value,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Flat {
    flat_double: f64,
    flat_single: f32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Single { single: f32 },
    Double(f64),
    Numbered(HashMap<u32, String>),
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
enum Variants {
    #[default]
    Unit,
    Newtype(f64),
    Tuple(f32, f64),
    Struct {
        single: f32,
        deeper: Option<Box<Variants>>,
    },
}

impl Floats {
    fn new(double: f64, single: f32) -> Self {
        Self {
            double,
            single,
            inside: vec![Some((double, single))],
            variant: Variants::Struct {
                single,
                deeper: Some(Box::new(Variants::Tuple(single, double))),
            },
            untagged: vec![Untagged::Double(double), Untagged::Single { single }],
            flat: Flat { flat_double: double, flat_single: single },
            rest: [("rest".to_owned(), single)].into(),
            any: json!({ "any": [double, single] }),
        }
    }

    /// Returns the bits of all floats, because a comparison of floats would treat -0.0 and 0.0 as
    /// equal.
    fn bits(&self) -> (Vec<u64>, Vec<u32>) {
        let Self { double, single, inside, variant, untagged, flat, rest, any } = self;
        let (mut doubles, mut singles) =
            (vec![*double, flat.flat_double], vec![*single, flat.flat_single, rest["rest"]]);
        let (inner_double, inner_single) = inside[0].unwrap();
        doubles.push(inner_double);
        singles.push(inner_single);
        let Variants::Struct { single, deeper: Some(deeper) } = variant else { panic!() };
        let Variants::Tuple(deep_single, deep_double) = **deeper else { panic!() };
        singles.extend([*single, deep_single]);
        doubles.push(deep_double);
        let (Untagged::Double(double), Untagged::Single { single }) = (&untagged[0], &untagged[1])
        else {
            panic!("an untagged enum came back as another variant")
        };
        doubles.push(*double);
        singles.push(*single);
        doubles.extend([0, 1].map(|index| any["any"][index].as_f64().unwrap()));
        (
            doubles.into_iter().map(f64::to_bits).collect(),
            singles.into_iter().map(f32::to_bits).collect(),
        )
    }
}

/// Stores a value, and returns it as it is read back.
async fn stored<T>(stand: &Stand, key: Key<T>, value: &T) -> T
where
    T: Serialize + DeserializeOwned,
{
    let cookie =
        stand.visit("", async |session: Session| session.insert(key, value)).await.cookie();
    stand.visit(&cookie, async |session: Session| session.get(key)).await.ok().unwrap()
}

const FLOATS: Key<Vec<Floats>> = Key::new("floats");

async fn assert_floats_come_back(stand: &Stand, floats: Vec<Floats>) {
    let expected: Vec<_> = floats.iter().map(Floats::bits).collect();
    let found = stored(stand, FLOATS, &floats).await;
    assert_eq!(found.iter().map(Floats::bits).collect::<Vec<_>>(), expected);
}

async fn notable_floats_come_back_bit_for_bit(on: Backend) {
    let double = [
        0.921_568_632_125_854_5,
        0.1,
        -0.0,
        f64::MAX,
        f64::MIN,
        f64::MIN_POSITIVE,
        f64::MIN_POSITIVE / 2.0,
        f64::from_bits(1),
        f64::EPSILON,
        9_007_199_254_740_993.0,
        2.225_073_858_507_201e-308,
        123_456_789_012_345_680_000.0,
    ];
    let single = [
        // The shortest decimal form of this `f32` yields a different number if it is first parsed as an
        // `f64`.
        7.038_531e-26,
        0.1,
        -0.0,
        f32::MAX,
        f32::MIN,
        f32::MIN_POSITIVE,
        f32::MIN_POSITIVE / 2.0,
        f32::from_bits(1),
        f32::EPSILON,
        16_777_217.0,
        1.175_494_2e-38,
        -7.038_531e-26,
    ];
    let floats = double.into_iter().zip(single).map(|(double, single)| Floats::new(double, single));
    assert_floats_come_back(&on.stand(), floats.collect()).await;
}

async fn largest_integers_come_back(on: Backend) {
    const INTEGERS: Key<(u64, i64, u128, i128)> = Key::new("integers");
    const NUMBERED: Key<BTreeMap<i128, i64>> = Key::new("numbered");
    let stand = on.stand();
    let integers = (u64::MAX, i64::MIN, u128::MAX, i128::MIN);
    assert_eq!(stored(&stand, INTEGERS, &integers).await, integers);
    let numbered = [(i128::MIN, i64::MIN), (i128::MAX, i64::MAX)].into();
    assert_eq!(stored(&stand, NUMBERED, &numbered).await, numbered);
}

on_every_store!(
    notable_floats_come_back_bit_for_bit,
    largest_integers_come_back,
    text_is_stored_as_string,
    keys_are_those_of_view_and_record,
    json_is_text_as_stored,
);

proptest! {
    #[test]
    fn every_finite_float_round_trips_exactly(
        bits in proptest::collection::vec(any::<(u64, u32)>(), 1..20),
    ) {
        let floats = bits
            .into_iter()
            .map(|(double, single)| (f64::from_bits(double), f32::from_bits(single)))
            .filter(|(double, single)| double.is_finite() && single.is_finite())
            .map(|(double, single)| Floats::new(double, single))
            .collect();
        runtime().block_on(assert_floats_come_back(&Backend::memory().stand(), floats));
    }
}

/// Asserts that all three ways of writing refuse the value for this reason and change nothing.
async fn assert_refused<T>(value: T, reason: &str)
where
    T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
{
    let key = Key::<Option<T>>::new("the key");
    let stand = Backend::memory().stand();
    let cookie = stand.seeded().await;
    let value = Some(value);
    let assert_error = |how: &str, result: Result<()>| {
        let error = result.err().unwrap_or_else(|| panic!("{how} took the value: {reason}"));
        assert_eq!(error.kind(), ErrorKind::Encode, "{how}: {error}");
        let text = error.to_string();
        assert!(text.contains("\"the key\"") && text.contains(reason), "{how}: {text}");
        assert_shows_no_secret(&error);
    };
    let write = async |session: Session| {
        assert_error("insert", session.insert(key, &value));
        let updated = value.clone();
        assert_error("update", session.update(key, move |value| value.clone_from(&updated)));
        let inserted = value.clone();
        let insert = session.transact(move |values| values.insert(key, &inserted));
        assert_error("insert in transact", insert.await);
        let updated = value.clone();
        let update =
            session.transact(move |values| values.update(key, |value| value.clone_from(&updated)));
        assert_error("update in transact", update.await);
        Ok(session.contains(key))
    };
    stand.spy.take();
    assert!(!stand.visit(&cookie, write).await.ok());
    assert!(stand.taken_verbs().iter().all(|verb| *verb == Verb::Load));
}

fn assert_shows_no_secret(error: &Error) {
    let mut texts = format!("{error} {error:?} {error:#?}");
    let mut source = error.source();
    while let Some(error) = source {
        texts += &format!("{error} {error:?}");
        source = error.source();
    }
    assert!(!texts.contains(SECRET) && !texts.contains(&SECRET_NUMBER.to_string()), "{texts}");
}

const NOT_FINITE: &str = "NaN or an infinity";
const TOO_DEEP: &str = "nested more than 127 levels deep";
const UNREADABLE: &str = "its JSON cannot be read back as the key's type";

#[tokio::test]
async fn non_finite_float_is_refused_at_any_depth() {
    #[derive(Clone, Serialize, Deserialize)]
    struct Newtype(f32);
    #[derive(Clone, Serialize, Deserialize)]
    struct Tuple(u8, f64);

    for double in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_refused(double, NOT_FINITE).await;
        let single = double as f32;
        assert_refused(single, NOT_FINITE).await;
        assert_refused(Some(single), NOT_FINITE).await;
        assert_refused(Newtype(single), NOT_FINITE).await;
        assert_refused(Tuple(1, double), NOT_FINITE).await;
        assert_refused((1, double), NOT_FINITE).await;
        assert_refused(vec![vec![0.0, single]], NOT_FINITE).await;
        assert_refused(BTreeMap::from([(1, double)]), NOT_FINITE).await;
        assert_refused(Variants::Newtype(double), NOT_FINITE).await;
        assert_refused(Variants::Tuple(single, 0.0), NOT_FINITE).await;
        assert_refused(Variants::Struct { single, deeper: None }, NOT_FINITE).await;
        assert_refused(Untagged::Double(double), NOT_FINITE).await;
        let flat = Flat { flat_double: double, flat_single: 0.0 };
        assert_refused(Floats { flat, ..Floats::default() }, NOT_FINITE).await;
    }
}

#[tokio::test]
async fn integer_keys_that_cannot_be_deserialised_are_refused() {
    #[derive(Clone, Serialize, Deserialize)]
    struct Flattened {
        #[serde(flatten)]
        numbered: HashMap<u32, String>,
    }

    let numbered = HashMap::from([(SECRET_NUMBER, SECRET.to_owned())]);
    assert_refused(Flattened { numbered: numbered.clone() }, UNREADABLE).await;
    assert_refused(Untagged::Numbered(numbered.clone()), UNREADABLE).await;
    // Without a flattened field or an untagged enum, such a map can be stored.
    const NUMBERED: Key<HashMap<u32, String>> = Key::new("numbered");
    assert_eq!(stored(&Backend::memory().stand(), NUMBERED, &numbered).await, numbered);
}

/// Serialises as nested arrays of this depth, but takes up no memory for them.
#[derive(Clone)]
struct Nested(u32);

impl Serialize for Nested {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut array = serializer.serialize_seq(Some(1))?;
        if self.0 > 1 {
            array.serialize_element(&Self(self.0 - 1))?;
        }
        array.end()
    }
}

impl<'de> Deserialize<'de> for Nested {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self(0))
    }
}

#[tokio::test]
async fn value_nested_too_deeply_to_be_read_is_refused() {
    let nested =
        |depth, layer: fn(Value) -> Value| (1..depth).fold(json!([]), |value, _| layer(value));
    let variants = |depth: usize| {
        let outer = |inner| Variants::Struct { single: 0.0, deeper: Some(Box::new(inner)) };
        (0..depth).fold(Variants::Unit, |inner, _| outer(inner))
    };
    let stand = Backend::memory().stand();
    for layer in [|value| json!([value]), |value| json!({ "a": value })] {
        const ANY: Key<Value> = Key::new("any");
        let deepest = nested(127, layer);
        assert_eq!(stored(&stand, ANY, &deepest).await, deepest);
        assert_refused(nested(128, layer), TOO_DEEP).await;
        assert_refused(nested(200, layer), TOO_DEEP).await;
    }
    const VARIANTS: Key<Variants> = Key::new("variants");
    // A variant with fields is an object inside an object.
    stored(&stand, VARIANTS, &variants(63)).await;
    assert_refused(variants(64), TOO_DEEP).await;
    assert_refused(variants(200), TOO_DEEP).await;
    // This value is refused while it is being serialised, because each level is a recursive call.
    assert_refused(Nested(10_000_000), TOO_DEEP).await;
}

#[tokio::test]
async fn value_that_does_not_round_trip_is_refused() {
    #[derive(Clone, Deserialize)]
    struct Unwritable;
    impl Serialize for Unwritable {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(S::Error::custom(SECRET))
        }
    }
    #[derive(Clone, Serialize, Deserialize)]
    struct Renamed {
        #[serde(rename(serialize = "new", deserialize = "old"))]
        number: u8,
    }
    #[derive(Clone, Serialize)]
    struct Unreadable(String);
    impl<'de> Deserialize<'de> for Unreadable {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            Err(serde::de::Error::custom(String::deserialize(deserializer)?))
        }
    }

    assert_refused(Unwritable, "its `Serialize` failed").await;
    assert_refused(Renamed { number: 1 }, UNREADABLE).await;
    assert_refused(Unreadable(SECRET.to_owned()), UNREADABLE).await;
    let listed = BTreeMap::from([(vec![SECRET_NUMBER], SECRET.to_owned())]);
    assert_refused(listed, "it contains a map with keys that JSON cannot represent").await;
}

#[tokio::test]
async fn update_that_produces_unreadable_value_on_replay_fails_commit() {
    const RATIO: Key<f64> = Key::new("ratio");
    let stand = Backend::memory().stand();
    let cookie = stand.seeded().await;
    let set = async |ratio: f64| {
        stand.visit(&cookie, async |session: Session| session.insert(RATIO, &ratio)).await.ok();
    };
    set(2.0).await;
    let invert = async |session: Session| session.update(RATIO, |ratio| *ratio = 1.0 / *ratio);
    let overtaken = async |session: Session| {
        invert(session).await?;
        set(0.0).await;
        Ok(())
    };
    assert_eq!(stand.visit(&cookie, overtaken).await.failure(), Some(ErrorKind::Encode));
    let ratio = stand.visit(&cookie, async |session: Session| session.get(RATIO)).await.ok();
    assert_eq!(ratio, Some(0.0));
}

/// The changes that the documentation of `Key` describes: these values are read back as different
/// values, which the crate cannot detect.
#[tokio::test]
async fn undetected_round_trip_changes_match_documentation() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Number {
        Float(f64),
        Wide(u128),
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Skipping {
        #[serde(skip)]
        skipped: u8,
    }
    async fn assert_read_as<T>(written: T, read: T)
    where
        T: Serialize + DeserializeOwned + Debug + PartialEq,
    {
        assert_eq!(stored(&Backend::memory().stand(), Key::new("value"), &written).await, read);
    }

    assert_read_as(vec![Some(None::<u8>)], vec![None]).await;
    assert_read_as(vec![Some(())], vec![None]).await;
    assert_read_as(Number::Wide(1 << 100), Number::Float(2_f64.powi(100))).await;
    assert_read_as(Skipping { skipped: 1 }, Skipping { skipped: 0 }).await;
    assert_read_as(json!(f64::NAN), json!(null)).await;
}

const NUMBER: Key<u64> = Key::new("number");
const WORD: Key<String> = Key::new("word");

/// The key alone determines a value's type. The argument can have any form that serialises to that
/// type.
#[tokio::test]
async fn values_of_usual_shapes_are_inserted() {
    const FLOAT: Key<f32> = Key::new("float");
    const LIST: Key<Vec<u8>> = Key::new("list");
    const MAYBE: Key<Option<u8>> = Key::new("maybe");
    const PAIR: Key<(u8, String)> = Key::new("pair");
    const MAP: Key<BTreeMap<String, u8>> = Key::new("map");
    const ARRAY: Key<[u16; 2]> = Key::new("array");
    const UNIT: Key<()> = Key::new("unit");

    let session = Session::detached();
    let (number, list, word) = (6_u64, vec![1_u8], "w".to_owned());
    let all = [
        session.insert(NUMBER, &1),
        session.insert(NUMBER, &(number + 1)),
        session.insert(NUMBER, &number),
        session.insert(NUMBER, &"7".parse::<u64>().unwrap()),
        session.insert(NUMBER, &u64::from(7_u8)),
        session.insert(FLOAT, &1.5),
        session.insert(FLOAT, &f32::MAX),
        session.insert(LIST, &vec![]),
        session.insert(LIST, &vec![1, 2]),
        session.insert(LIST, &Vec::new()),
        session.insert(LIST, &list),
        session.insert(LIST, &[list.clone(), vec![3]].concat()),
        session.insert(LIST, &list.iter().map(|item| item + 1).collect::<Vec<_>>()),
        session.insert(MAYBE, &None),
        session.insert(MAYBE, &Some(1)),
        session.insert(PAIR, &(1, word.clone())),
        session.insert(MAP, &BTreeMap::new()),
        session.insert(MAP, &[("a".to_owned(), 1)].into_iter().collect::<BTreeMap<_, _>>()),
        session.insert(ARRAY, &[1, 2]),
        session.insert(UNIT, &()),
        session.insert(WORD, &word),
        session.insert(WORD, &format!("{word}!")),
        session.insert(WORD, &String::new()),
        session.insert(WORD, word.as_str()),
        session.insert(WORD, &*word),
        session.insert(WORD, "text"),
        session.insert(Key::<String>::runtime("runtime"), "text"),
    ];
    assert!(all.iter().all(Result::is_ok), "{all:?}");
}

async fn text_is_stored_as_string(on: Backend) {
    let stand = on.stand();
    let texts = ["", "dark", "Ünïcode \"quoted\" \u{0}\u{1f600}"];
    for text in texts {
        let cookie =
            stand.visit("", async |session: Session| session.insert(WORD, text)).await.cookie();
        let read = async |session: Session| Ok((session.get(WORD)?, session.json("word")?));
        let json = serde_json::to_string(text).unwrap();
        assert_eq!(stand.visit(&cookie, read).await.ok(), (Some(text.to_owned()), Some(json)));
        // The session already has this value.
        stand.spy.take();
        stand.visit(&cookie, async |session: Session| session.insert(WORD, text)).await.ok();
        assert_eq!(stand.taken_verbs(), [Verb::Load]);
        let decided = async |session: Session| {
            session.transact(move |values| values.insert(WORD, &*format!("{text}!"))).await?;
            session.get(WORD)
        };
        assert_eq!(stand.visit(&cookie, decided).await.ok(), Some(format!("{text}!")));
    }
    let long = "x".repeat(70_000);
    let failure = stand.visit("", async |session: Session| session.insert(WORD, &*long)).await;
    assert_eq!(failure.failure(), Some(ErrorKind::TooLarge));
}

/// The keys are those in the record and those that the request has added, without those that it has
/// removed.
async fn keys_are_those_of_view_and_record(on: Backend) {
    let stand = on.stand();
    let write = async |session: Session| {
        assert_eq!(session.keys(), [""; 0]);
        for name in ["c", "a", "é", "A", "", "b"] {
            session.insert(Key::<u32>::runtime(name), &1)?;
        }
        Ok(session.keys())
    };
    let written = stand.visit("", write).await;
    let cookie = written.cookie();
    assert_eq!(written.ok(), ["", "A", "a", "b", "c", "é"]);
    let read = async |session: Session| {
        let stored = session.keys();
        session.remove(Key::<u32>::new("b"));
        session.insert(Key::<u32>::new("aa"), &1)?;
        session.insert(Key::<u32>::new("c"), &2)?;
        let of_transaction = session.transact(|values| {
            values.insert(Key::<u32>::new("z"), &1)?;
            Ok(values.keys())
        });
        let changed = session.keys();
        let of_transaction = of_transaction.await?;
        session.clear();
        let cleared = session.keys();
        session.insert(Key::<u32>::new("new"), &1)?;
        Ok([stored, changed, of_transaction, cleared, session.keys()])
    };
    let [stored, changed, of_transaction, cleared, new] = stand.visit(&cookie, read).await.ok();
    assert_eq!(stored, ["", "A", "a", "b", "c", "é"]);
    assert_eq!(changed, ["", "A", "a", "aa", "c", "é"]);
    assert_eq!(of_transaction, ["", "A", "a", "aa", "c", "z", "é"]);
    assert_eq!((cleared, new), (Vec::new(), vec!["new".to_owned()]));
    let after = stand.visit(&cookie, async |session: Session| Ok(session.keys())).await.ok();
    assert_eq!(after, ["new"]);
}

async fn json_is_text_as_stored(on: Backend) {
    const FLOATS: Key<Vec<f32>> = Key::new("floats");
    let stand = on.stand();
    let write = async |session: Session| {
        session.insert(FLOATS, &vec![1.5, 2.0])?;
        session.insert(WORD, "a \"b\"")?;
        Ok([session.json("floats")?, session.json("word")?, session.json("none")?])
    };
    let written = stand.visit("", write).await;
    let cookie = written.cookie();
    let expected = [Some("[1.5,2.0]".to_owned()), Some("\"a \\\"b\\\"\"".to_owned()), None];
    assert_eq!(written.ok(), expected);
    let read = async |session: Session| {
        session
            .transact(|values| {
                Ok([values.json("floats")?, values.json("word")?, values.json("none")?])
            })
            .await
    };
    assert_eq!(stand.visit(&cookie, read).await.ok(), expected);
}

/// If the bytes in the store are damaged, a value that is not UTF-8 is an error, and any other text is
/// returned unchanged.
#[tokio::test]
async fn json_of_damaged_value_is_decode_error() {
    let stand = Backend::memory().stand();
    let write = async |session: Session| session.insert(WORD, SECRET);
    let cookie = stand.visit("", write).await.cookie();
    let key = stand.key(&cookie).await;
    let mut bytes = stand.stored(&key).await.to_vec();
    let place = bytes.windows(SECRET.len()).position(|part| part == SECRET.as_bytes()).unwrap();
    let read = async |session: Session| {
        let error = session.json("word").err();
        Ok((session.keys(), error, session.transact(|values| values.json("word")).await.err()))
    };
    // Overwrites the opening quotation mark. The result is text, but not JSON.
    bytes[place - 1] = b'?';
    stand.put(&key, bytes.clone()).await;
    let (keys, error, of_transaction) = stand.visit(&cookie, read).await.ok();
    assert_eq!((keys.as_slice(), error.is_none()), (&["word".to_owned()][..], true));
    assert!(of_transaction.is_none());
    bytes[place] = 0xff;
    stand.put(&key, bytes).await;
    let (keys, error, of_transaction) = stand.visit(&cookie, read).await.ok();
    assert_eq!(keys, ["word"]);
    for error in [error.unwrap(), of_transaction.unwrap()] {
        assert_eq!(error.kind(), ErrorKind::Decode);
        assert_shows_no_secret(&error);
    }
}
