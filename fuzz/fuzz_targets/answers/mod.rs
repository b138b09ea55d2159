//! A store, connected to a server whose answers the fuzzer chooses.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use unsticky::ErrorKind;
use unsticky::store::{Store, StoreKey};
use unsticky::testing::{random_key, random_record};

/// The server's next answer.
#[derive(Debug, Clone)]
pub enum Say {
    /// The answer of a correct server that holds no keys.
    Honest,
    /// These bytes, in pieces of this length. The server then closes the connection.
    Bytes(Vec<u8>, usize),
}

/// The protocol-specific part of the server.
pub struct Protocol {
    /// Returns the answer to what a client sends before its first store command, or `None` for a store command.
    pub greeting: fn(&[u8]) -> Option<Vec<u8>>,
    /// Returns the answer of a correct, empty server to a read.
    pub nothing: fn(&[u8]) -> Vec<u8>,
}

pub struct Stand {
    runtime: Runtime,
    store: Arc<dyn Store>,
    say: Arc<Mutex<Say>>,
    key: StoreKey,
}

impl Stand {
    pub fn new(protocol: Protocol, store: impl FnOnce(u16) -> Arc<dyn Store>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let say = Arc::new(Mutex::new(Say::Honest));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let store = store(listener.local_addr().unwrap().port());
        let protocol = Arc::new(protocol);
        let asked = Arc::clone(&say);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&protocol), Arc::clone(&asked)));
            }
        });
        Self { runtime, store, say, key: random_key() }
    }

    /// Asserts that a command returns an allowed result, whatever the answer is, and that the store recovers
    /// as soon as the server answers correctly again.
    pub fn is_answered(&self, data: &[u8]) {
        let Some((&how, answer)) = data.split_first() else { return };
        let piece = usize::from(how >> 2) + 1;
        *self.say.lock().unwrap_or_else(PoisonError::into_inner) =
            Say::Bytes(answer.to_vec(), piece);
        let (store, key) = (&self.store, &self.key);
        let ttl = Duration::from_secs(60);
        let version = unsticky::store::Version::new(7);
        let expected = unsticky::store::Stored::new(random_record(20), version);
        let command = async {
            match how & 3 {
                0 => store.load(key).await.map(|stored| {
                    // The store returns only bytes that the server sent.
                    let sent = |stored: unsticky::store::Stored| {
                        let len = stored.bytes.len();
                        len == 0 || answer.windows(len).any(|part| part == stored.bytes)
                    };
                    assert!(stored.is_none_or(sent));
                }),
                1 => store.create(key, random_record(20), ttl).await.map(drop),
                2 => store.replace(key, random_record(20), ttl, &expected).await.map(drop),
                _ => store.delete(key, Some(&expected)).await.map(drop),
            }
        };
        let honest = async {
            *self.say.lock().unwrap_or_else(PoisonError::into_inner) = Say::Honest;
            for _ in 0..4 {
                match store.load(key).await {
                    Ok(None) => return,
                    // Answers arrive in the order of the commands. The store may interpret bytes that were
                    // sent before the old connection ended as an answer, but no other bytes.
                    Ok(Some(stored)) => {
                        let len = stored.bytes.len().max(1);
                        assert!(answer.windows(len).any(|part| part.starts_with(&stored.bytes)));
                    }
                    Err(error) => assert!(
                        matches!(
                            error.kind(),
                            ErrorKind::Unavailable | ErrorKind::Corrupt | ErrorKind::Refused
                        ),
                        "{error:?}"
                    ),
                }
            }
            panic!("the store does not recover, although the server answers correctly");
        };
        self.runtime.block_on(async {
            let limit = Duration::from_secs(5);
            if let Err(error) =
                tokio::time::timeout(limit, command).await.expect("a command did not end")
            {
                let expected = [
                    ErrorKind::Unavailable,
                    ErrorKind::OutcomeUnknown,
                    ErrorKind::Refused,
                    ErrorKind::TooLarge,
                    ErrorKind::Corrupt,
                ];
                assert!(expected.contains(&error.kind()), "{error:?}");
            }
            tokio::time::timeout(limit, honest).await.expect("a command did not end");
        });
    }
}

async fn serve(mut stream: TcpStream, protocol: Arc<Protocol>, say: Arc<Mutex<Say>>) {
    let mut buffer = vec![0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        let said = &buffer[..length];
        if let Some(greeting) = (protocol.greeting)(said) {
            let _ = stream.write_all(&greeting).await;
            continue;
        }
        let say = say.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match say {
            Say::Honest => {
                let _ = stream.write_all(&(protocol.nothing)(said)).await;
            }
            Say::Bytes(bytes, piece) => {
                for piece in bytes.chunks(piece) {
                    let _ = stream.write_all(piece).await;
                }
                return;
            }
        }
    }
}

/// Uses one store and one server for all inputs, because starting them takes longer than running an input.
pub fn with_stand(make: impl FnOnce() -> Stand, data: &[u8]) {
    thread_local!(static STAND: RefCell<Option<Stand>> = const { RefCell::new(None) });
    STAND.with_borrow_mut(|stand| stand.get_or_insert_with(make).is_answered(data));
}
