//! One server and the client that talks to it.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use memcache::exp::{AsyncMetaClient, Operation};

use super::answer::{self, Effect};
use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    pub(super) connect: Duration,
    pub(super) response: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_millis(400), response: Duration::from_millis(400) }
    }
}

pub(super) struct Node {
    address: String,
    timeouts: Timeouts,
    /// The client resolves the server's name once, so it is dropped when the server stops
    /// answering, and the next call looks for the server anew.
    client: Mutex<Option<AsyncMetaClient>>,
}

impl Node {
    pub(super) fn new(address: String, timeouts: Timeouts) -> Self {
        Self { address, timeouts, client: Mutex::new(None) }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// Sends the operations in one round trip; one answer for each, in their order.
    pub(super) async fn exchange<O: Operation>(
        &self,
        effect: Effect,
        operations: Vec<O>,
    ) -> Vec<Result<O::Output>> {
        let count = operations.len();
        let all = |error: Error| (0..count).map(|_| Err(error.clone())).collect();
        let client = match self.client().await {
            Ok(client) => client,
            Err(error) => return all(error),
        };
        match client.run_many(operations).await {
            Ok(answers) => {
                if answers.iter().any(|answer| answer.as_ref().is_err_and(answer::is_transport)) {
                    *self.slot() = None;
                }
                answer::classify(effect, answers)
            }
            // Nothing of a batch is sent where a part of it is not well-formed.
            Err(error) => all(Error::refused(error)),
        }
    }

    async fn client(&self) -> Result<AsyncMetaClient> {
        if let Some(client) = &*self.slot() {
            return Ok(client.clone());
        }
        let client = tokio::time::timeout(self.timeouts.connect, self.open())
            .await
            .map_err(|_| Error::unavailable(format!("no connection to {self} in time")))?
            .map_err(answer::connect_error)?;
        *self.slot() = Some(client.clone());
        Ok(client)
    }

    async fn open(&self) -> memcache::exp::Result<AsyncMetaClient> {
        let client = AsyncMetaClient::builder()
            .max_idle(MAX_IDLE)
            .connect_timeout(Some(self.timeouts.connect))
            .io_timeout(Some(self.timeouts.response))
            .connect_async(self.address.as_str())
            .await?;
        // A server that does not know the protocol would read a record as commands, and one that
        // hangs would leave a write in doubt. Here nothing is at stake yet.
        client.noop().await?;
        Ok(client)
    }

    fn slot(&self) -> MutexGuard<'_, Option<AsyncMetaClient>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As many as are ever in use at once: each lane has its drainers and one caller on its own.
const MAX_IDLE: usize = 2 * (super::lane::DRAINERS + 1);

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}
