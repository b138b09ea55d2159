//! Stands in for `tls` where the feature `redis-tls` is off: there is no configuration of TLS.

use std::io;

use tokio::net::TcpStream;

use crate::store::address::ConnectError;

/// None can be made.
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

/// A connection without TLS presents none.
pub(super) fn certificate(_: &TcpStream) -> Option<Vec<u8>> {
    None
}

/// Why a connection broke.
pub(super) fn reason(error: &io::Error) -> String {
    error.to_string()
}
