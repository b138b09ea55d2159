//! Invalid bytes, from clients or in the store, cause only the documented errors: nothing panics, and no
//! unreadable record is overwritten.

#![cfg(all(feature = "testing", feature = "memory"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::collections::HashMap;

use proptest::prelude::*;
use support::runtime;
use support::stand::{Backend, SEED, Stand};
use support::visit::{Visit, visit_with};
use unsticky::store::StoreKey;
use unsticky::testing::FailingEntropy;
use unsticky::{ErrorKind, Key, Result, Session};

fn stand() -> Stand {
    Backend::memory().stand()
}

/// Creates a session. Returns its cookie and the key of its record, and leaves the spy's log empty.
async fn seeded(stand: &Stand) -> (String, StoreKey) {
    let cookie = stand.seeded().await;
    let key = stand.key(&cookie).await;
    (cookie, key)
}

async fn read(session: Session) -> Result<Option<u32>> {
    session.get(SEED)
}

async fn write(session: Session) -> Result<()> {
    session.insert(SEED, &2)
}

proptest! {
    #[test]
    fn arbitrary_cookie_header_makes_request_anonymous(header in prop::collection::vec(any::<u8>(), 0..300)) {
        runtime().block_on(async {
            let stand = stand();
            seeded(&stand).await;
            let visit = visit_with(&stand.sessions, &header, read).await;
            prop_assert_eq!(visit.set_cookie.as_ref(), None);
            prop_assert_eq!(visit.ok(), None);
            prop_assert_eq!(stand.spy.take(), []);
            Ok(())
        })?;
    }

    #[test]
    fn arbitrary_session_cookie_value_makes_request_anonymous(
        values in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..100),
                // Well-formed tokens, some of which occur more than once.
                "[A-D]{2}[A-Za-z0-9_-]{0}".prop_map(|start| format!("{start:A<43}").into_bytes()),
            ],
            0..8,
        )
    ) {
        runtime().block_on(async {
            let stand = stand();
            let pairs: Vec<_> =
                values.iter().map(|value| [b"__Host-id=", &value[..]].concat()).collect();
            let header = pairs.join(&b"; "[..]);
            let visit = visit_with(&stand.sessions, &header, read).await;
            prop_assert_eq!(visit.set_cookie.as_ref(), None);
            prop_assert_eq!(visit.ok(), None);
            prop_assert!(stand.spy.take().len() <= 3);
            Ok(())
        })?;
    }

    #[test]
    fn altered_token_makes_request_anonymous(index in 10_usize..53, byte in any::<u8>()) {
        runtime().block_on(async {
            let stand = stand();
            let (cookie, key) = seeded(&stand).await;
            let mut changed = cookie.clone().into_bytes();
            prop_assume!(changed[index] != byte);
            changed[index] = byte;
            let before = stand.stored(&key).await;
            let visit = visit_with(&stand.sessions, &changed, read).await;
            // The changed byte can make the value empty or quoted, but can never open the session.
            prop_assert_eq!(visit.set_cookie.as_ref(), None);
            prop_assert_eq!(visit.ok(), None);
            prop_assert_eq!(stand.stored(&key).await, before);
            Ok(())
        })?;
    }

    #[test]
    fn arbitrary_bytes_in_store_are_never_overwritten(garbage in prop::collection::vec(any::<u8>(), 0..300)) {
        runtime().block_on(async {
            let stand = stand();
            let (cookie, key) = seeded(&stand).await;
            stand.put(&key, garbage.clone()).await;
            let read = stand.visit(&cookie, read).await;
            prop_assert_eq!(read.set_cookie.as_ref(), None);
            let newer = read.failure() == Some(ErrorKind::NewerFormat);
            if !newer {
                prop_assert_eq!(read.ok(), None);
                // The visitor's next write creates a session with a new id.
                let written = stand.visit(&cookie, write).await;
                prop_assert!(!written.cookie().is_empty());
                prop_assert_ne!(written.cookie(), cookie);
            }
            prop_assert_eq!(stand.stored(&key).await, garbage);
            Ok(())
        })?;
    }

    #[test]
    fn damaged_record_causes_no_panic_and_is_not_overwritten(
        index in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()
    ) {
        runtime().block_on(async {
            let stand = stand();
            let (cookie, key) = seeded(&stand).await;
            let mut damaged = stand.stored(&key).await.to_vec();
            damaged.truncate(8 + cut.index(damaged.len() - 8));
            let index = index.index(damaged.len());
            damaged[index] = byte;
            stand.put(&key, damaged.clone()).await;
            let visit: Visit<_> = stand.visit(&cookie, write).await;
            // If the damaged record could not be read, it must be left as it is.
            if visit.failure().is_some() || visit.set_cookie.is_some() {
                prop_assert_eq!(stand.stored(&key).await, damaged);
            }
            Ok(())
        })?;
    }

    #[test]
    fn keys_and_values_are_stored_or_rejected_as_too_large(name in ".{0,3000}", length in 0_usize..80_000) {
        runtime().block_on(async {
            let stand = stand();
            let (cookie, key) = seeded(&stand).await;
            let before = stand.stored(&key).await;
            let size = name.len() + length;
            let name = Key::<String>::runtime(name);
            let value = "v".repeat(length);
            let insert = async |session: Session| session.insert(&name, &value);
            let inserted = stand.visit(&cookie, insert).await;
            match inserted.failure() {
                None => {
                    let get = async |session: Session| session.get(&name);
                    prop_assert_eq!(stand.visit(&cookie, get).await.ok(), Some(value.clone()));
                    prop_assert!(stand.stored(&key).await.len() <= 65_536);
                }
                Some(ErrorKind::TooLarge) => {
                    // A record's header takes a few hundred bytes.
                    prop_assert!(size > 65_000);
                    prop_assert_eq!(stand.stored(&key).await, before);
                }
                failure => prop_assert!(false, "{:?}", failure),
            }
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn record_in_newer_format_returns_error_and_is_kept() {
    let stand = stand();
    let (cookie, key) = seeded(&stand).await;
    let mut newer = stand.stored(&key).await.to_vec();
    newer[8] += 1;
    stand.put(&key, newer.clone()).await;
    for _ in 0..2 {
        let visit = stand.visit(&cookie, write).await;
        assert_eq!((visit.failure(), visit.set_cookie), (Some(ErrorKind::NewerFormat), None));
        assert_eq!(visit.output.unwrap_err().status(), 503);
    }
    assert_eq!(stand.stored(&key).await, newer);
}

#[tokio::test]
async fn value_of_wrong_type_returns_decode_error_and_is_kept() {
    let stand = stand();
    let (cookie, _) = seeded(&stand).await;
    let wrong: Key<Vec<String>> = Key::new("seed");
    let handler = async |session: Session| {
        for kind in [
            session.get(wrong).unwrap_err().kind(),
            session.take(wrong).unwrap_err().kind(),
            session.update(wrong, Vec::clear).unwrap_err().kind(),
        ] {
            assert_eq!(kind, ErrorKind::Decode);
        }
        assert!(session.contains(wrong));
        session.get(SEED)
    };
    assert_eq!(stand.visit(&cookie, handler).await.ok(), Some(1));
}

#[tokio::test]
async fn value_that_cannot_be_encoded_returns_error() {
    let stand = stand();
    let key: Key<HashMap<(u8, u8), u8>> = Key::new("map");
    let insert = async |session: Session| session.insert(key, &HashMap::from([((1, 2), 3)]));
    let visit = stand.visit("", insert).await;
    assert_eq!((visit.failure(), visit.set_cookie), (Some(ErrorKind::Encode), None));
}

#[tokio::test]
async fn record_over_size_limit_is_rejected_and_left_unchanged() {
    let stand = stand();
    let (cookie, key) = seeded(&stand).await;
    let before = stand.stored(&key).await;
    let insert = async |session: Session| {
        for number in 0..10 {
            session.insert(Key::<String>::runtime(number.to_string()), &"x".repeat(10_000))?;
        }
        Ok(())
    };
    let visit = stand.visit(&cookie, insert).await;
    assert_eq!((visit.failure(), visit.set_cookie), (Some(ErrorKind::TooLarge), None));
    assert_eq!(stand.stored(&key).await, before);
}

#[tokio::test]
async fn sign_in_accepts_only_principals_of_1_to_1024_bytes() {
    let stand = stand();
    for principal in ["a", "ünïcödé 💥", "a\r\nSet-Cookie: x=y\0", &"p".repeat(1024)] {
        let sign_in = async |session: Session| session.sign_in(principal);
        let cookie = stand.visit("", sign_in).await.cookie();
        let who = async |session: Session| Ok(session.principal());
        assert_eq!(stand.visit(&cookie, who).await.ok().as_deref(), Some(principal));
    }
    for principal in ["", &"p".repeat(1025)] {
        let sign_in = async |session: Session| session.sign_in(principal);
        let visit = stand.visit("", sign_in).await;
        assert_eq!((visit.failure(), visit.set_cookie), (Some(ErrorKind::InvalidPrincipal), None));
    }
}

#[tokio::test]
async fn failing_entropy_returns_error_and_creates_no_session() {
    let stand = Backend::memory().stand_with(|builder| builder.entropy(FailingEntropy));
    let visit = stand.visit("", write).await;
    assert_eq!((visit.failure(), visit.set_cookie), (Some(ErrorKind::Randomness), None));
    assert_eq!(stand.spy.commands(), []);
}
