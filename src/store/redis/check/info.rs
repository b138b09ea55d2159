//! Parses the answer to `INFO`.

use std::collections::HashMap;

/// The fields of the answer by name.
#[derive(Debug, Default)]
pub(super) struct Info(HashMap<String, String>);

/// A replica, as its master sees it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Follower {
    pub(super) is_online: bool,
    /// How many bytes of the replication stream the replica has acknowledged.
    pub(super) offset: u64,
    /// How many seconds ago the replica last sent an acknowledgement. `None` before the first one.
    pub(super) lag: Option<u64>,
}

impl Info {
    pub(super) fn parse(text: &str) -> Self {
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        Self(fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    pub(super) fn is(&self, name: &str, value: &str) -> bool {
        self.text(name) == Some(value)
    }

    /// Returns the replicas of a master.
    pub(super) fn followers(&self) -> Vec<Follower> {
        let lines = (0..).map_while(|number| self.text(&format!("slave{number}")));
        lines.map(Follower::parse).collect()
    }
}

impl Follower {
    fn parse(line: &str) -> Self {
        let field = |name: &str| {
            let mut fields = line.split(',').filter_map(|field| field.split_once('='));
            fields.find(|field| field.0 == name).map(|field| field.1)
        };
        let number = |name| field(name).and_then(|value| value.parse().ok());
        Self {
            is_online: field("state") == Some("online"),
            offset: number("offset").unwrap_or(0),
            lag: number("lag"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_and_replicas_are_parsed() {
        let info = Info::parse(
            "# Server\r\nredis_version:7.0.15\r\nmaxmemory:5\r\n\r\n\
             slave0:ip=::1,port=7,state=online,offset=42,lag=-1\r\n\
             slave1:ip=h,port=7,state=send_bulk,offset=0,lag=3,type=replica\r\n\
             slave3:state=online\r\n",
        );
        assert_eq!(info.text("redis_version"), Some("7.0.15"));
        assert_eq!(info.number("maxmemory"), Some(5));
        assert_eq!(info.number("redis_version"), None);
        assert!(info.is("maxmemory", "5") && !info.is("minmemory", ""));
        let first = Follower { is_online: true, offset: 42, lag: None };
        let second = Follower { is_online: false, offset: 0, lag: Some(3) };
        assert_eq!(info.followers(), [first, second]);
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_parsed_without_panic(text in "(slave[0-3]|[a-z]*|:|=|,|\r|\n|.)*") {
            let info = Info::parse(&text);
            prop_assert!(info.followers().len() <= text.lines().count());
        }
    }
}
