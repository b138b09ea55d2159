//! The address of one server.

use std::fmt;
use std::path::PathBuf;

/// The address of one server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Place {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

impl Place {
    pub(super) fn tcp(host: impl Into<String>, port: u16) -> Self {
        Self::Tcp { host: host.into(), port }
    }

    /// Returns the host, if there is one.
    pub(super) fn host(&self) -> Option<&str> {
        match self {
            Self::Tcp { host, .. } => Some(host),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_is_printed_as_address_names_it() {
        assert_eq!(Place::tcp("cache.internal", 6379).to_string(), "cache.internal:6379");
        assert_eq!(Place::tcp("::1", 7).to_string(), "[::1]:7");
        assert_eq!(Place::Unix("/run/r.sock".into()).to_string(), "/run/r.sock");
    }
}
