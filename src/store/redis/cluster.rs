//! A Redis Cluster: the key's slot, the slot's node, and the connection to that node.
//!
//! A node that does not have the key answers with the name of the one that has it, and has done
//! nothing; the command is then sent there. So the map of slots saves a detour and need not be right.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use ::redis::{Cmd, Value, cmd};
use futures_util::future::select_ok;
use tokio::time::sleep;

use crate::store::redis::answer::announced_host;
use crate::store::redis::connection::{Failure, SharedConnection, Target};
use crate::store::redis::dialing::{Server, Settings};
use crate::store::redis::place::Place;

/// How many slots every cluster has (Redis Cluster specification, "Key distribution model").
const SLOTS: u16 = 16384;

/// How often a command goes on to another node. More than one while slots move: a node that the map
/// names wrongly, the one that it names, and the one to which the slot is moved.
const MAX_REDIRECTS: usize = 4;

/// The map is renewed no more often than this.
const RENEWAL_INTERVAL: Duration = Duration::from_millis(100);

/// How many nodes are asked for the map at a time.
const ASKED_AT_ONCE: usize = 3;

/// The nodes of a cluster, and which of them has which slot.
pub(super) struct Cluster {
    settings: Settings,
    /// Those that the address names.
    seeds: Vec<Node>,
    /// Every node that has been named since.
    nodes: Mutex<HashMap<Place, Node>>,
    map: RwLock<Arc<Map>>,
    renewal: AtomicU8,
    /// Moves on with each node that cannot be reached, so that the next one is tried first.
    turn: AtomicUsize,
}

/// The states of a renewal of the map.
const IDLE: u8 = 0;
const UNDERWAY: u8 = 1;
/// Another one has been asked for since the current one began.
const WANTED: u8 = 2;

/// A node, by the connection to it.
type Node = Arc<SharedConnection>;

impl Cluster {
    pub(super) fn new(settings: Settings, seeds: Vec<Place>) -> Self {
        let places = seeds.iter().cloned();
        let seeds: Vec<_> = seeds.iter().map(|seed| node(&settings, seed.clone().into())).collect();
        Self {
            nodes: Mutex::new(places.zip(seeds.iter().cloned()).collect()),
            map: RwLock::new(Arc::new(Map::empty())),
            renewal: AtomicU8::new(IDLE),
            turn: AtomicUsize::new(0),
            settings,
            seeds,
        }
    }

    /// The node that has the key, as far as that is known.
    pub(super) fn node(&self, key: &str) -> Option<Node> {
        self.map().node(slot(key.as_bytes())).cloned()
    }

    /// Sends a command to the first node that can be reached, where the map has none for its slot. Every
    /// node knows the right one.
    pub(super) async fn send_to_any(
        self: &Arc<Self>,
        key: &str,
        command: &Cmd,
    ) -> Result<Value, Failure> {
        self.renew();
        let mut failure = Failure::NotSent("the cluster has no node".to_owned());
        for node in self.candidates() {
            let node = self.node(key).unwrap_or(node);
            failure = match node.send(command).await {
                Ok(value) => return Ok(value),
                Err(failure @ Failure::NotSent(_)) => failure,
                Err(failure) => return self.go_on(key, command, node, failure).await,
            };
            self.turn.fetch_add(1, Ordering::Relaxed);
        }
        Err(failure)
    }

    /// After a command failed at a node: goes on as long as it is certain that nothing has been done and
    /// another node is known to have the key.
    pub(super) async fn go_on(
        self: &Arc<Self>,
        key: &str,
        command: &Cmd,
        mut node: Node,
        mut failure: Failure,
    ) -> Result<Value, Failure> {
        for _ in 0..MAX_REDIRECTS {
            let mut is_ask = false;
            let next = match &failure {
                Failure::Answered(answer) => answer.redirect().and_then(|redirect| {
                    is_ask = redirect.is_ask;
                    Some(self.node_at(redirect.place(&node.fixed_server()?.place)?))
                }),
                // It may be gone for good, and the map may say so by now.
                Failure::NotSent(_) => {
                    self.node(key).filter(|current| !Arc::ptr_eq(current, &node))
                }
                Failure::Lost(_) => None,
            };
            let Some(next) = next else { break };
            node = next;
            let outcome = if is_ask {
                node.send_asking(command).await
            } else {
                self.renew();
                node.send(command).await
            };
            failure = match outcome {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
        }
        Err(match failure {
            Failure::Answered(answer) => {
                if answer.is_of_changing_cluster() || answer.redirect().is_some() {
                    self.renew();
                }
                Failure::Answered(answer.of_cluster_node())
            }
            failure => {
                self.renew();
                failure
            }
        })
    }

    /// Has the map renewed by a task that no command waits for.
    fn renew(self: &Arc<Self>) {
        if self.renewal.swap(WANTED, Ordering::AcqRel) == IDLE {
            tokio::spawn(renew(Arc::downgrade(self)));
        }
    }

    /// All nodes, those first that are most likely to know the map.
    fn candidates(&self) -> Vec<Node> {
        let map = self.map();
        let mut candidates = map.nodes.clone();
        let turn = self.turn.load(Ordering::Relaxed);
        let mut others: Vec<_> = self.seeds.clone();
        others.extend(self.nodes().values().cloned());
        for group in [&mut candidates, &mut others] {
            let middle = turn.checked_rem(group.len()).unwrap_or(0);
            group.rotate_left(middle);
        }
        for node in others {
            if !candidates.iter().any(|known| Arc::ptr_eq(known, &node)) {
                candidates.push(node);
            }
        }
        candidates
    }

    /// The node at a place that another one has named.
    fn node_at(&self, place: Place) -> Node {
        let mut nodes = self.nodes();
        let known = nodes.entry(place.clone());
        Arc::clone(known.or_insert_with(|| node(&self.settings, place.into())))
    }

    /// Takes over what a node has said; nodes that nobody names any more are left.
    fn install(&self, ranges: Vec<Range>) {
        let mut nodes = HashMap::new();
        let mut map = Map::empty();
        {
            let mut known = self.nodes();
            let mut node_at = |server: Server| {
                let known_or_new = nodes.entry(server.place.clone()).or_insert_with(|| match known
                    .get(&server.place)
                {
                    Some(node) if node.fixed_server() == Some(&server) => Arc::clone(node),
                    _ => node(&self.settings, server),
                });
                Arc::clone(known_or_new)
            };
            for range in ranges {
                let master = node_at(range.master);
                map.assign(range.first, range.last, master);
                for replica in range.replicas {
                    node_at(replica);
                }
            }
            *known = nodes;
        }
        *self.map.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(map);
    }

    fn map(&self) -> Arc<Map> {
        Arc::clone(&self.map.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn nodes(&self) -> MutexGuard<'_, HashMap<Place, Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn node(settings: &Settings, server: Server) -> Node {
    Arc::new(SharedConnection::new(settings.clone(), Target::Server(server)))
}

/// Renews the map as long as somebody wants it newer.
async fn renew(cluster: Weak<Cluster>) {
    loop {
        let Some(cluster_now) = cluster.upgrade() else { return };
        cluster_now.renewal.store(UNDERWAY, Ordering::Release);
        let candidates = cluster_now.candidates();
        cluster_now.turn.fetch_add(1, Ordering::Relaxed);
        drop(cluster_now);
        let ranges = ask(candidates).await;
        let Some(cluster_now) = cluster.upgrade() else { return };
        if let Some(ranges) = ranges {
            cluster_now.install(ranges);
        }
        drop(cluster_now);
        sleep(RENEWAL_INTERVAL).await;
        let Some(cluster_now) = cluster.upgrade() else { return };
        let outcome = cluster_now.renewal.compare_exchange(
            UNDERWAY,
            IDLE,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        if outcome.is_ok() {
            return;
        }
    }
}

/// What the first node says that can be asked.
async fn ask(candidates: Vec<Node>) -> Option<Vec<Range>> {
    for nodes in candidates.chunks(ASKED_AT_ONCE) {
        let answers = nodes.iter().map(|node| {
            Box::pin(async {
                let slots = node.send(cmd("CLUSTER").arg("SLOTS")).await.map_err(drop)?;
                node.fixed_server().and_then(|server| parse(&slots, &server.place)).ok_or(())
            })
        });
        if let Ok((ranges, _)) = select_ok(answers).await {
            return Some(ranges);
        }
    }
    None
}

/// Which node has which slot.
struct Map {
    /// The place in `nodes` for each slot, and [`NOBODY`] for those that no node has.
    slots: Box<[u16]>,
    nodes: Vec<Node>,
}

const NOBODY: u16 = u16::MAX;

impl Map {
    fn empty() -> Self {
        Self { slots: vec![NOBODY; usize::from(SLOTS)].into_boxed_slice(), nodes: Vec::new() }
    }

    fn node(&self, slot: u16) -> Option<&Node> {
        let index = *self.slots.get(usize::from(slot))?;
        self.nodes.get(usize::from(index))
    }

    fn assign(&mut self, first: u16, last: u16, node: Node) {
        let known = self.nodes.iter().position(|known| Arc::ptr_eq(known, &node));
        let index = known.unwrap_or_else(|| {
            self.nodes.push(node);
            self.nodes.len() - 1
        });
        let range = usize::from(first)..=usize::from(last);
        if let (Some(slots), Ok(index)) = (self.slots.get_mut(range), u16::try_from(index)) {
            slots.fill(index);
        }
    }
}

/// Slots that one master has.
#[derive(Debug, PartialEq, Eq)]
struct Range {
    first: u16,
    last: u16,
    master: Server,
    replicas: Vec<Server>,
}

/// The answer to `CLUSTER SLOTS`; none where it names no node at all, as that of a node which belongs to
/// no cluster.
fn parse(answer: &Value, answered: &Place) -> Option<Vec<Range>> {
    let Value::Array(ranges) = answer else { return None };
    let ranges: Option<Vec<_>> = ranges.iter().map(|range| parse_range(range, answered)).collect();
    ranges.filter(|ranges| !ranges.is_empty())
}

fn parse_range(range: &Value, answered: &Place) -> Option<Range> {
    let Value::Array(range) = range else { return None };
    let [first, last, master, replicas @ ..] = &range[..] else { return None };
    let (first, last) = (number(first)?, number(last)?);
    if first > last || last >= SLOTS {
        return None;
    }
    // A replica is only asked where no master answers, so one that makes no sense does not matter.
    let replicas = replicas.iter().filter_map(|replica| parse_node(replica, answered)).collect();
    Some(Range { first, last, master: parse_node(master, answered)?, replicas })
}

/// `host, port, id, [name, value, …]`.
fn parse_node(node: &Value, answered: &Place) -> Option<Server> {
    let Value::Array(node) = node else { return None };
    let [host, port, rest @ ..] = &node[..] else { return None };
    let host = match host {
        Value::Nil => None,
        host => announced_host(text(host)?)?,
    };
    let host = host.as_deref().or_else(|| answered.host())?;
    // Where nodes announce IP addresses, their certificates have the host name that stands beside it.
    let tls_name = rest.get(1).and_then(|metadata| {
        let pairs: Vec<(&Value, &Value)> = match metadata {
            Value::Array(list) => list.chunks_exact(2).map(|pair| (&pair[0], &pair[1])).collect(),
            Value::Map(map) => map.iter().map(|(name, value)| (name, value)).collect(),
            _ => Vec::new(),
        };
        let (_, name) = pairs.into_iter().find(|(name, _)| text(name) == Some("hostname"))?;
        announced_host(text(name)?)?
    });
    Some(Server { place: Place::tcp(host, number(port)?), tls_name })
}

fn number(value: &Value) -> Option<u16> {
    match value {
        Value::Int(number) => u16::try_from(*number).ok(),
        _ => None,
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

/// The slot of a key (Redis Cluster specification, "Key distribution model" and "Hash tags").
fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|byte| *byte == b'}')?;
        (close > 0).then(|| &rest[..close])
    });
    crc16::State::<crc16::XMODEM>::calculate(tag.unwrap_or(key)) % SLOTS
}
