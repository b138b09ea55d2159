//! One server and the client that talks to it.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use memcache::exp::{self, AsyncMetaClient, Operation, Router};

use super::answer;
use super::answer::Effect;
use crate::error::Result;
use crate::limits;
use crate::store::dial::dial_name;

#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) connect: Duration,
    pub(super) response: Duration,
    /// The number of operations that may wait in a lane.
    pub(super) waiting: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connect: limits::CONNECT, response: limits::RESPONSE, waiting: limits::WAITING }
    }
}

/// A server, as used by one runtime.
pub(super) struct Node {
    address: String,
    limits: Limits,
    slot: Mutex<Slot>,
}

/// The client knows only one address of the server. It is therefore discarded when the server stops
/// answering, and the next call resolves the name again.
struct Slot {
    client: Option<Client>,
    /// The last generation assigned to a client.
    generation: u64,
}

#[derive(Clone)]
pub(super) struct Client {
    inner: AsyncMetaClient,
    /// Distinguishes this client from a newer one, which must not be discarded because of this client's
    /// failures.
    generation: u64,
}

impl Node {
    pub(super) fn new(address: String, limits: Limits) -> Self {
        Self { address, limits, slot: Mutex::new(Slot { client: None, generation: 0 }) }
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Sends the operations in one round trip. Returns one answer per operation, in the same order.
    pub(super) async fn exchange<O: Operation>(
        &self,
        client: &Client,
        effect: Effect,
        operations: Vec<O>,
    ) -> Vec<Result<O::Output>> {
        let count = operations.len();
        let mut doubt = Doubt { node: self, generation: client.generation, cleared: false };
        match client.inner.run_many(operations).await {
            Ok(answers) => {
                doubt.cleared =
                    !answers.iter().any(|answer| answer.as_ref().is_err_and(answer::is_transport));
                answer::classify(&self.address, effect, answers)
            }
            // If one operation in a batch is malformed, the client sends none of the batch.
            Err(error) => {
                doubt.cleared = true;
                let error = answer::malformed(&self.address, &error);
                (0..count).map(|_| Err(error.clone())).collect()
            }
        }
    }

    /// Returns the current client, or a new one that has received an answer from the server.
    pub(super) async fn client(&self) -> Result<Client> {
        if let Some(client) = &self.slot().client {
            return Ok(client.clone());
        }
        let opened =
            dial_name(self.address.as_str(), self.limits.connect, |at| self.open(at)).await;
        let inner = match opened {
            Ok(answered) => {
                answered.map_err(|error| answer::connect_error(&self.address, error))?
            }
            Err(reason) => return Err(answer::unreachable(&self.address, &reason)),
        };
        let mut slot = self.slot();
        slot.generation += 1;
        let client = Client { inner, generation: slot.generation };
        slot.client = Some(client.clone());
        Ok(client)
    }

    /// Creates a client for this address only, so that all its connections lead to the same server.
    ///
    /// An answer from a Memcached server is final, even if it is a refusal. If there is no answer, another
    /// address may be tried.
    async fn open(&self, at: SocketAddr) -> Result<exp::Result<AsyncMetaClient>, String> {
        let greeted = async {
            let client = AsyncMetaClient::builder()
                .max_idle(MAX_IDLE)
                .connect_timeout(Some(self.limits.connect))
                .io_timeout(Some(self.limits.response.min(LONGEST)))
                .router(OnlyServer)
                .connect_async(at)
                .await?;
            // A server that does not know the protocol would read a record as commands, and a server that
            // hangs would leave a write in doubt. This first command avoids both.
            client.noop().await?;
            Ok(client)
        };
        match greeted.await {
            Err(error) if answer::is_transport(&error) => Err(answer::greeting_reason(&error)),
            answered => Ok(answered),
        }
    }

    fn give_up(&self, generation: u64) {
        let mut slot = self.slot();
        if slot.generation == generation {
            let client = slot.client.take();
            drop(slot);
            // Dropped without holding the lock, because this closes the client's connections.
            drop(client);
        }
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Discards the client unless the server has answered, even if the caller stopped waiting.
struct Doubt<'a> {
    node: &'a Node,
    generation: u64,
    cleared: bool,
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if !self.cleared {
            self.node.give_up(self.generation);
        }
    }
}

/// A client has only one server, so keys need not be hashed.
struct OnlyServer;

impl Router for OnlyServer {
    fn route(&self, _: &[u8], _: &[String]) -> usize {
        0
    }
}

/// The number of batches per lane that may be under way at the same time.
pub(super) const DRAINERS: usize = 2;

/// The number of connections that can be in use at once: each lane has its drainers and one direct caller.
const MAX_IDLE: usize = 2 * (DRAINERS + 1);

/// The longest time limit. The client adds the limit to the current time, which panics if the sum overflows.
const LONGEST: Duration = Duration::from_secs(31_536_000);

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use memcache::exp::Get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::error::ErrorKind;

    const GREETING: &[u8] = b"MN\r\n";

    /// Returns a node whose server answers the first command and nothing else.
    async fn node() -> Node {
        answering(GREETING, b"").await.0
    }

    /// Returns a node and the number of connections that its server has accepted. The server answers the
    /// first command with `greeting` and everything else with `answer`.
    async fn answering(greeting: &'static [u8], answer: &'static [u8]) -> (Node, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let mut question = [0; 64];
                    while let Ok(1..) = stream.read(&mut question).await {
                        let answer = if question.starts_with(b"mn") { greeting } else { answer };
                        stream.write_all(answer).await.unwrap();
                    }
                });
            }
        });
        let limits = Limits { response: Duration::from_millis(100), ..Limits::default() };
        (Node::new(address, limits), accepted)
    }

    #[tokio::test]
    async fn cancelled_exchange_gives_up_its_client() {
        let node = node().await;
        let client = node.client().await.unwrap();
        let exchange = node.exchange(&client, Effect::Read, vec![Get::new("key")]);
        let early = Duration::from_millis(20);
        assert!(tokio::time::timeout(early, exchange).await.is_err());
        assert!(node.slot().client.is_none());
    }

    #[tokio::test]
    async fn failure_of_old_client_leaves_newer_client_alone() {
        let node = node().await;
        let old = node.client().await.unwrap();
        node.give_up(old.generation);
        let new = node.client().await.unwrap();
        let answers = node.exchange(&old, Effect::Read, vec![Get::new("key")]).await;
        assert!(answers[0].is_err());
        let current = node.slot().client.as_ref().map(|client| client.generation);
        assert_eq!(current, Some(new.generation));
    }

    #[tokio::test]
    async fn answered_exchange_keeps_its_client() {
        for answer in [&b"EN O0\r\n"[..], b"SERVER_ERROR out of memory\r\n"] {
            let (node, _) = answering(GREETING, answer).await;
            let client = node.client().await.unwrap();
            let answers = node.exchange(&client, Effect::Read, vec![Get::new("key")]).await;
            assert_eq!(answers.len(), 1);
            assert_eq!(answers[0].is_ok(), answer.starts_with(b"EN"));
            let again = node.client().await.unwrap();
            assert_eq!(again.generation, client.generation);
        }
    }

    #[tokio::test]
    async fn malformed_operation_is_refused_and_its_client_kept() {
        let node = node().await;
        let client = node.client().await.unwrap();
        let operations = vec![Get::new("key"), Get::new("k".repeat(251))];
        let answers = node.exchange(&client, Effect::Read, operations).await;
        assert_eq!(answers.len(), 2);
        for answer in answers {
            assert_eq!(answer.unwrap_err().kind(), ErrorKind::Refused);
        }
        assert!(node.slot().client.is_some());
    }

    #[tokio::test]
    async fn client_of_server_that_does_not_answer_is_not_kept() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let limits = Limits { connect: Duration::from_millis(20), ..Limits::default() };
        let node = Node::new(address.clone(), limits);
        let error = node.client().await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(source, format!("memcached at {address}: it did not answer in time"));
        assert!(node.slot().client.is_none());
    }

    #[tokio::test]
    async fn no_answer_is_not_final_and_every_answer_is() {
        for (greeting, is_final) in [
            (GREETING, true),
            (b"CLIENT_ERROR unauthenticated\r\n", true),
            (b"HTTP/1.1 400 Bad Request\r\n", false),
        ] {
            let (node, _) = answering(greeting, b"").await;
            let opened = node.open(node.address.parse().unwrap()).await;
            assert_eq!(opened.is_ok(), is_final);
        }
    }

    #[tokio::test]
    async fn refused_greeting_is_a_refusal() {
        for (greeting, kind) in [
            (&b"CLIENT_ERROR unauthenticated\r\n"[..], ErrorKind::Refused),
            (b"ERROR Too many open connections\r\n", ErrorKind::Unavailable),
            (b"SERVER_ERROR busy\r\n", ErrorKind::Unavailable),
            (b"HTTP/1.1 400 Bad Request\r\n", ErrorKind::Unavailable),
        ] {
            let (node, _) = answering(greeting, b"").await;
            assert_eq!(node.client().await.err().unwrap().kind(), kind);
            assert!(node.slot().client.is_none());
        }
    }

    #[tokio::test]
    async fn as_many_connections_stay_open_as_are_ever_in_use() {
        let (node, accepted) = answering(GREETING, b"EN O0\r\n").await;
        let client = node.client().await.unwrap();
        for _ in 0..3 {
            let exchange = || node.exchange(&client, Effect::Read, vec![Get::new("key")]);
            for answers in join_all((0..6).map(|_| exchange())).await {
                assert!(answers[0].is_ok(), "{answers:?}");
            }
        }
        assert_eq!(accepted.load(Ordering::Relaxed), 6);
    }
}
