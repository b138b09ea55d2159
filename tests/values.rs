//! A value comes back as it was written, or is refused when it is written.

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

/// A float at every place where serde may treat it in another way.
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

    /// All of it, so that no bit is lost in a comparison: -0.0 is equal to 0.0.
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

/// What a value is after it was stored.
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
        // Its shortest text is another f32 where it is read as an f64 first.
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

on_every_store!(notable_floats_come_back_bit_for_bit, largest_integers_come_back);

proptest! {
    #[test]
    fn every_finite_float_comes_back_bit_for_bit(
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

/// Has each of the three write a value and refuse it for a reason, and nothing changes.
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
async fn float_that_is_not_finite_is_refused_wherever_it_is() {
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
async fn integer_keys_that_serde_cannot_read_back_are_refused() {
    #[derive(Clone, Serialize, Deserialize)]
    struct Flattened {
        #[serde(flatten)]
        numbered: HashMap<u32, String>,
    }

    let numbered = HashMap::from([(SECRET_NUMBER, SECRET.to_owned())]);
    assert_refused(Flattened { numbered: numbered.clone() }, UNREADABLE).await;
    assert_refused(Untagged::Numbered(numbered.clone()), UNREADABLE).await;
    // Where nothing is flattened or guessed, such a map is as good as any.
    const NUMBERED: Key<HashMap<u32, String>> = Key::new("numbered");
    assert_eq!(stored(&Backend::memory().stand(), NUMBERED, &numbered).await, numbered);
}

/// Arrays inside each other without end in memory.
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
async fn value_is_refused_from_the_depth_that_cannot_be_read() {
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
    // A variant with fields is an object in an object.
    stored(&stand, VARIANTS, &variants(63)).await;
    assert_refused(variants(64), TOO_DEEP).await;
    assert_refused(variants(200), TOO_DEEP).await;
    // Before it is written: each level is a call.
    assert_refused(Nested(10_000_000), TOO_DEEP).await;
}

#[tokio::test]
async fn value_is_refused_if_its_type_does_not_write_or_does_not_read_it() {
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
    assert_refused(listed, "a map in it has keys that JSON cannot hold").await;
}

#[tokio::test]
async fn update_that_leads_to_unreadable_value_on_newer_record_fails_commit() {
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

/// What the documentation of `Key` says: these come back as another value, and nobody can tell.
#[tokio::test]
async fn changes_that_only_the_type_could_notice_are_those_documented() {
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
