//! Replaces the `tls` module if the `redis-tls` feature is not enabled.

use std::io;

use tokio::net::TcpStream;

use crate::store::address::ConnectError;

/// Has no values: without the feature, there are no TLS settings.
#[derive(Debug, Clone)]
pub(super) enum Tls {}

impl Tls {
    pub(super) fn of_options(_: Vec<(String, String)>) -> Result<Self, ConnectError> {
        Err(ConnectError::feature("redis-tls"))
    }

    pub(super) fn check(&self) -> Result<(), ConnectError> {
        match *self {}
    }

    pub(super) async fn encrypt(&self, _: &str, _: TcpStream) -> Result<TcpStream, String> {
        match *self {}
    }

    pub(super) async fn own_certificate(&self) -> Option<Vec<u8>> {
        match *self {}
    }
}

/// Returns no certificate, because there is no TLS.
pub(super) fn certificate(_: &TcpStream) -> Option<Vec<u8>> {
    None
}

/// Describes why a connection failed.
pub(super) fn reason(error: &io::Error) -> String {
    error.to_string()
}
