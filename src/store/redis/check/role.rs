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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Finding;

    #[test]
    fn nothing_about_a_server_that_sessions_can_do_without_is_an_error() {
        for (role, expected) in [
            (Role::Master, Level::Error),
            (Role::Node, Level::Error),
            (Role::Replica, Level::Warning),
            (Role::SpareNode, Level::Warning),
            (Role::Sentinel, Level::Warning),
        ] {
            let of = |finding: Finding| finding.at_most(role.highest_level()).level();
            assert_eq!(of(Finding::error("unreachable", "", "")), expected, "{role:?}");
            assert_eq!(of(Finding::fine("version", "")), Level::Fine);
        }
    }
}
