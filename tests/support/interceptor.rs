//! A store that passes each command to the test first.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use unsticky::Result;
use unsticky::store::{Created, Deleted, Diagnose, Replaced, Store, StoreKey, Stored};
use unsticky::testing::Verb;

/// Each call sends the command once.
pub type Call<T> = Box<dyn Fn() -> BoxFuture<'static, Result<T>> + Send + Sync>;

/// Determines what happens to the commands that are sent to a store.
pub trait Interceptor: Send + Sync + 'static {
    /// Runs in place of the command.
    fn intercept<T: Send + 'static>(
        &self,
        verb: Verb,
        key: &StoreKey,
        call: Call<T>,
    ) -> impl Future<Output = Result<T>> + Send;
}

/// A store whose commands go through an [`Interceptor`].
pub struct Intercepted<I> {
    inner: Arc<dyn Store>,
    pub interceptor: Arc<I>,
}

impl<I: Interceptor> Intercepted<I> {
    pub fn new(inner: Arc<dyn Store>, interceptor: I) -> Self {
        Self { inner, interceptor: Arc::new(interceptor) }
    }

    async fn run<T: Send + 'static, F: Future<Output = Result<T>> + Send + 'static>(
        &self,
        verb: Verb,
        key: &StoreKey,
        command: impl Fn(Arc<dyn Store>, StoreKey) -> F + Send + Sync + 'static,
    ) -> Result<T> {
        let (inner, own) = (self.inner.clone(), key.clone());
        let call = move || command(inner.clone(), own.clone()).boxed();
        self.interceptor.intercept(verb, key, Box::new(call)).await
    }
}

impl<I> Clone for Intercepted<I> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), interceptor: self.interceptor.clone() }
    }
}

impl<I> fmt::Debug for Intercepted<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intercepted").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[async_trait]
impl<I: Interceptor> Store for Intercepted<I> {
    async fn create(&self, key: &StoreKey, bytes: Bytes, ttl: Duration) -> Result<Created> {
        let command = move |inner: Arc<dyn Store>, key: StoreKey| {
            let bytes = bytes.clone();
            async move { inner.create(&key, bytes, ttl).await }
        };
        self.run(Verb::Create, key, command).await
    }

    async fn load(&self, key: &StoreKey) -> Result<Option<Stored>> {
        let command = |inner: Arc<dyn Store>, key: StoreKey| async move { inner.load(&key).await };
        self.run(Verb::Load, key, command).await
    }

    async fn replace(
        &self,
        key: &StoreKey,
        bytes: Bytes,
        ttl: Duration,
        expected: &Stored,
    ) -> Result<Replaced> {
        let expected = expected.clone();
        let command = move |inner: Arc<dyn Store>, key: StoreKey| {
            let (bytes, expected) = (bytes.clone(), expected.clone());
            async move { inner.replace(&key, bytes, ttl, &expected).await }
        };
        self.run(Verb::Replace, key, command).await
    }

    async fn delete(&self, key: &StoreKey, expected: Option<&Stored>) -> Result<Deleted> {
        let expected = expected.cloned();
        let command = move |inner: Arc<dyn Store>, key: StoreKey| {
            let expected = expected.clone();
            async move { inner.delete(&key, expected.as_ref()).await }
        };
        self.run(Verb::Delete, key, command).await
    }

    fn diagnosis(&self) -> Option<&dyn Diagnose> {
        None
    }
}
