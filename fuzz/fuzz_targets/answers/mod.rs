//! A store and a server that answers with what the fuzzer says.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use unsticky::ErrorKind;
use unsticky::store::{Store, StoreKey};
use unsticky::testing::{random_key, random_record};

/// What the server says next.
#[derive(Debug, Clone)]
pub enum Say {
    /// What an honest server answers that holds nothing.
    Honest,
    /// These bytes, in pieces of this length, and then the end of the connection.
    Bytes(Vec<u8>, usize),
}

/// What a protocol needs of a server.
pub struct Protocol {
    /// The answer to all that a client says before its first command, if that is what it said.
    pub greeting: fn(&[u8]) -> Option<Vec<u8>>,
    /// What an honest server that holds nothing answers to a read.
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

    /// Whatever is answered, a command comes to an end with what it may end with, and a server that
    /// comes to its senses is understood at once.
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
                    // What was read is what was sent.
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
                    // Answers come in the order of the questions: what was said before the old
                    // connection ended may be taken for an answer, but nothing else may.
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
            panic!("the server is not understood any more");
        };
        self.runtime.block_on(async {
            let limit = Duration::from_secs(5);
            if let Err(error) = tokio::time::timeout(limit, command).await.expect("a hang") {
                let expected = [
                    ErrorKind::Unavailable,
                    ErrorKind::OutcomeUnknown,
                    ErrorKind::Refused,
                    ErrorKind::TooLarge,
                    ErrorKind::Corrupt,
                ];
                assert!(expected.contains(&error.kind()), "{error:?}");
            }
            tokio::time::timeout(limit, honest).await.expect("a hang");
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

/// The same stand for every input: to make one takes longer than to use it.
pub fn with_stand(make: impl FnOnce() -> Stand, data: &[u8]) {
    thread_local!(static STAND: RefCell<Option<Stand>> = const { RefCell::new(None) });
    STAND.with_borrow_mut(|stand| stand.get_or_insert_with(make).is_answered(data));
}
