//! What a server is to be.

use crate::check::Level;

/// The part of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Master,
    Replica,
    /// A node of a cluster that serves slots.
    Node,
    /// Another node of a cluster, whichever of the two it is at the moment.
    SpareNode,
    Sentinel,
}

impl Role {
    /// Sessions work without it, as long as nothing else fails.
    pub(super) fn is_spare(self) -> bool {
        matches!(self, Self::Replica | Self::SpareNode | Self::Sentinel)
    }

    /// The highest level of a finding about such a server.
    pub(super) fn highest_level(self) -> Level {
        if self.is_spare() { Level::Warning } else { Level::Error }
    }
}
