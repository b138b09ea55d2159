//! Scans the keys of each master with `SCAN`.

use std::ops::ControlFlow;

use ::redis::{Value, cmd};
use futures_util::future::join_all;

use crate::error::{Error, Result};
use crate::store::redis::cluster::Cluster;
use crate::store::redis::connection::{Failure, Lease};
use crate::store::redis::reply::{role, text};
use crate::store::redis::topology::Topology;
use crate::store::redis::{Access, RedisStore, Route};
use crate::store::survey::{Met, Outcome, Pace, Plan, Seen, Visitor, Walk};

const CHANGED: &str = "the cluster moved slots or failed over during the scan of its keys, or is doing so now, so \
                       some keys may have been missed; count again when this has finished";

impl RedisStore {
    /// Scans all keys, one master after another. Each server is scanned on a single connection, because a
    /// `SCAN` cursor is valid only on the server that returned it, and only until that server restarts.
    ///
    /// # Errors
    ///
    /// The errors that any read can return, and an error if some keys may have been missed.
    pub(crate) async fn survey(
        &self,
        plan: &Plan<'_>,
        visitor: &mut Visitor<'_>,
    ) -> Result<Vec<Walk>> {
        let Route::Own(own) = &self.route else {
            return Err(Error::refused(
                "the keys behind a connection that the application made are not scanned",
            ));
        };
        let topology = own.topology().map_err(read)?;
        match &*topology {
            Topology::One(link) => {
                let lease = link.lease().await.map_err(read)?;
                must_be_alone(&lease).await?;
                Ok(vec![walk(&lease, plan, visitor).await?])
            }
            Topology::Master(master) => {
                let lease = master.connection.lease().await.map_err(read)?;
                let walk = walk(&lease, plan, visitor).await?;
                if walk.outcome != Outcome::Ended {
                    must_be_master(&lease).await?;
                }
                Ok(vec![walk])
            }
            Topology::Cluster(cluster) => walk_cluster(cluster, plan, visitor).await,
        }
    }
}

fn read(failure: Failure) -> Error {
    failure.into_error(Access::Read)
}

/// Fails on a cluster node: a node returns only its own keys, so the count would be too low.
async fn must_be_alone(lease: &Lease<'_>) -> Result<()> {
    match lease.try_to(cmd("CLUSTER").arg("SLOTS")).await {
        Ok(Value::Array(ranges)) if !ranges.is_empty() => Err(Error::refused(format!(
            "the server at {} is a node of a Redis Cluster; the address of a cluster begins with \
             redis+cluster:// or rediss+cluster://",
            lease.place()
        ))),
        // The server is not a cluster node, or it does not permit the command.
        Ok(_) | Err(Failure::Answered(_)) => Ok(()),
        Err(failure) => Err(read(failure)),
    }
}

/// Fails if the server was replaced as the master during the scan. It then lacks the keys that were written
/// to its successor.
async fn must_be_master(lease: &Lease<'_>) -> Result<()> {
    let answer = lease.send(&cmd("ROLE")).await.map_err(read)?;
    if role(&answer) == Some("master") {
        return Ok(());
    }
    Err(Error::unavailable(format!(
        "the server at {} stopped being the master during the scan of its keys, so some may have been missed; \
         count again",
        lease.place()
    )))
}

async fn walk_cluster(
    cluster: &Cluster,
    plan: &Plan<'_>,
    visitor: &mut Visitor<'_>,
) -> Result<Vec<Walk>> {
    let layout = cluster.layout().await.map_err(read)?;
    if !layout.covers_all_slots() {
        return Err(Error::unavailable(
            "some slots of the cluster have no master, so their keys cannot be scanned",
        ));
    }
    let mut walks = Vec::new();
    for master in layout.masters() {
        let lease = master.lease().await.map_err(read)?;
        must_be_settled(&lease).await?;
        let walk = walk(&lease, plan, visitor).await?;
        let is_ended = walk.outcome == Outcome::Ended;
        walks.push(walk);
        if is_ended {
            return Ok(walks);
        }
    }
    for master in layout.masters() {
        must_be_settled(&master.lease().await.map_err(read)?).await?;
    }
    if layout.is_still_valid().await {
        return Ok(walks);
    }
    Err(Error::unavailable(CHANGED))
}

/// Fails if the node is moving a slot or is not a master. While a slot is moved, its keys are split between two
/// nodes, so a scan could miss some keys or return some twice.
async fn must_be_settled(lease: &Lease<'_>) -> Result<()> {
    let answer = lease.send(cmd("CLUSTER").arg("NODES")).await.map_err(read)?;
    let nodes = match &answer {
        Value::VerbatimString { text, .. } => Some(text.as_str()),
        answer => text(answer),
    };
    let nodes =
        nodes.ok_or_else(|| Error::corrupt("redis gave an unexpected answer to CLUSTER NODES"))?;
    if is_moving_slots(nodes) { Err(Error::unavailable(CHANGED)) } else { Ok(()) }
}

/// Returns whether the node that gives this answer is moving a slot or is not a master. Only the node's own
/// line shows that: `id address flags master ping pong epoch state slot … [slot->-id]`.
fn is_moving_slots(nodes: &str) -> bool {
    let own = nodes.lines().find(|line| {
        line.split(' ').nth(2).is_some_and(|flags| flags.split(',').any(|flag| flag == "myself"))
    });
    own.is_none_or(|line| {
        let is_master = line.split(' ').nth(2).is_some_and(|flags| flags.contains("master"));
        !is_master || line.split(' ').skip(8).any(|slots| slots.starts_with('['))
    })
}

/// Scans the keys of one server.
async fn walk(lease: &Lease<'_>, plan: &Plan<'_>, visitor: &mut Visitor<'_>) -> Result<Walk> {
    let server = lease.place().to_string();
    let pattern = pattern(plan.prefix);
    let batch = plan.rate.batch();
    let mut pace = Pace::new(plan.rate);
    let mut seen = Seen::default();
    let mut lengths = Lengths { are_wanted: plan.wants_lengths, refused: None };
    let mut cursor = "0".to_owned();
    let mut walked = 0;
    loop {
        pace.turn().await;
        let mut command = cmd("SCAN");
        command.arg(&cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(batch);
        let answer = lease.send(&command).await.map_err(read)?;
        let (next, mut keys) = keys(&answer)
            .ok_or_else(|| Error::corrupt("redis gave an unexpected answer to SCAN"))?;
        let examined = batch.max(u64::try_from(keys.len()).unwrap_or(u64::MAX));
        pace.spend(examined);
        walked += examined;
        keys.retain(|key| key.starts_with(plan.prefix) && seen.is_new(key));
        let mut is_over = visitor(Met::Walked { server: &server, keys: walked });
        for (key, bytes) in lengths.of(lease, keys).await? {
            if is_over.is_continue() {
                is_over = visitor(Met::Key { server: &server, key: &key, bytes });
            }
        }
        if is_over == ControlFlow::Break(()) {
            return Ok(Walk { server, outcome: Outcome::Ended });
        }
        if next == "0" {
            let (no_lengths, may_repeat) = (lengths.refused, seen.is_full());
            return Ok(Walk { server, outcome: Outcome::Complete { no_lengths, may_repeat } });
        }
        cursor = next;
    }
}

/// Requests the lengths of values until the server refuses the command.
struct Lengths {
    are_wanted: bool,
    refused: Option<String>,
}

impl Lengths {
    /// Returns the keys that still exist, with the lengths of their values if these are known.
    async fn of(
        &mut self,
        lease: &Lease<'_>,
        keys: Vec<String>,
    ) -> Result<Vec<(String, Option<u64>)>> {
        if !self.are_wanted || self.refused.is_some() {
            return Ok(keys.into_iter().map(|key| (key, None)).collect());
        }
        let ask = async |key: &String| lease.try_to(cmd("STRLEN").arg(key)).await;
        // There is one command per key in the batch. All of them are sent together in a few writes.
        let answers = join_all(keys.iter().map(ask)).await;
        let mut found = Vec::with_capacity(keys.len());
        for (key, answer) in keys.into_iter().zip(answers) {
            match answer {
                // The record was deleted or has expired since the scan. No record is empty.
                Ok(Value::Int(0)) => {}
                Ok(Value::Int(bytes)) => found.push((key, u64::try_from(bytes).ok())),
                Ok(_) => return Err(Error::corrupt("redis gave an unexpected answer to STRLEN")),
                Err(Failure::Answered(answer)) if answer.is_of_no_such_command() => {
                    self.refused = Some(answer.to_string());
                    found.push((key, None));
                }
                Err(Failure::Answered(answer)) if answer.code == "WRONGTYPE" => {
                    found.push((key, None));
                }
                Err(Failure::Answered(answer)) if answer.is_redirect() => {
                    return Err(Error::unavailable(CHANGED));
                }
                Err(failure) => return Err(read(failure)),
            }
        }
        Ok(found)
    }
}

/// Returns the next cursor and the keys from an answer to `SCAN`. Ignores keys that are not UTF-8, because
/// this crate writes no such keys.
fn keys(answer: &Value) -> Option<(String, Vec<String>)> {
    let Value::Array(parts) = answer else { return None };
    let [cursor, Value::Array(keys)] = &parts[..] else { return None };
    let cursor = text(cursor)?.to_owned();
    let keys = keys.iter().filter_map(text).map(str::to_owned).collect();
    Some((cursor, keys))
}

/// Returns the pattern that matches all keys that begin with this prefix.
fn pattern(prefix: &str) -> String {
    let mut pattern = String::with_capacity(prefix.len() + 1);
    for char in prefix.chars() {
        if matches!(char, '*' | '?' | '[' | ']' | '\\' | '^') {
            pattern.push('\\');
        }
        pattern.push(char);
    }
    pattern.push('*');
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_matches_prefix_literally() {
        assert_eq!(pattern("shop:0:"), "shop:0:*");
        assert_eq!(pattern(r"a*b?[c]\^d"), r"a\*b\?\[c\]\\\^d*");
        assert_eq!(pattern(""), "*");
    }

    #[test]
    fn node_that_moves_slots_or_is_no_master_is_recognized() {
        let other = "b 127.0.0.1:2@12 slave c 0 0 1 connected [7->-c]\n";
        let own = |flags: &str, slots: &str| {
            format!("{other}a 127.0.0.1:1@11 {flags} - 0 0 1 connected {slots}\n")
        };
        assert!(!is_moving_slots(&own("myself,master", "0-99 200")));
        assert!(is_moving_slots(&own("myself,master", "0-99 [100-<-b]")));
        assert!(is_moving_slots(&own("myself,master", "0-99 [99->-b]")));
        assert!(is_moving_slots(&own("myself,slave", "")));
        assert!(is_moving_slots(other));
        assert!(is_moving_slots(""));
    }
}
