//! Redis Cluster: finds the slot for a key, the node for the slot, and the connection to the node.
//!
//! A node that does not have the key answers with the address of the node that has it, and changes nothing.
//! The command is then sent to that node. The map of slots therefore only saves a round trip, and need not be
//! correct.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use ::redis::{Cmd, Value, cmd};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{sleep, timeout};

use crate::store::redis::answer::{SLOTS, announced_host};
use crate::store::redis::connection::{Failure, SharedConnection, Target};
use crate::store::redis::dialing::{Server, Settings};
use crate::store::redis::place::Place;
use crate::store::redis::reply::{field, text};

/// The maximum number of redirects that a command follows. While slots move, there can be several: from the
/// node in an outdated map to the node that has the slot, and from there to the node to which the slot is
/// being moved.
const MAX_REDIRECTS: usize = 4;

/// The limits for the interval between renewals of the map. The interval grows while the map stays the same.
const SHORTEST_RENEWAL_INTERVAL: Duration = Duration::from_millis(100);
const LONGEST_RENEWAL_INTERVAL: Duration = Duration::from_millis(300);

/// How long the store waits for one node's answer before it also asks the next node for the map.
const HEAD_START: Duration = Duration::from_millis(50);

/// The nodes of a cluster, and which slots each of them has.
pub(super) struct Cluster {
    settings: Settings,
    /// The nodes in the address, with the host names used there.
    seeds: Vec<Place>,
    /// All nodes that the map, the address or a redirect has named recently.
    nodes: Mutex<HashMap<Place, Node>>,
    map: RwLock<Arc<Map>>,
    renewal: AtomicU8,
    /// Incremented when a node cannot be reached and at each renewal, so that a different node is tried first
    /// the next time.
    turn: AtomicUsize,
}

/// The states of a renewal of the map.
const IDLE: u8 = 0;
const UNDERWAY: u8 = 1;
/// Another renewal was requested after the current one started.
const WANTED: u8 = 2;

/// A node, represented by the connection to it.
pub(super) type Node = Arc<SharedConnection>;

impl Cluster {
    pub(super) fn new(settings: Settings, seeds: Vec<Place>) -> Self {
        Self {
            nodes: Mutex::default(),
            map: RwLock::new(Arc::new(Map::empty())),
            renewal: AtomicU8::new(IDLE),
            turn: AtomicUsize::new(0),
            settings,
            seeds,
        }
    }

    /// Returns the node that has the key, if it is known.
    pub(super) fn node(&self, key: &str) -> Option<Node> {
        self.map().node(slot(key.as_bytes())).cloned()
    }

    /// Sends a command to the first node that can be reached. Used if the map has no node for the command's
    /// slot: every node redirects to the right one.
    pub(super) async fn send_to_any(
        self: &Arc<Self>,
        key: &str,
        command: &Cmd,
    ) -> Result<Value, Failure> {
        self.renew();
        let mut failure = Failure::NotSent("the cluster has no node".to_owned());
        for node in self.candidates() {
            let known = self.node(key);
            let is_known = known.is_some();
            let node = known.unwrap_or(node);
            failure = match node.send(command).await {
                Err(failure @ Failure::NotSent(_)) if !is_known => failure,
                Ok(value) => return Ok(value),
                Err(failure) => return self.go_on(key, command, node, failure).await,
            };
            self.turn.fetch_add(1, Ordering::Relaxed);
        }
        Err(failure)
    }

    /// Tries other nodes after a command has failed on one, as long as the command certainly had no effect
    /// and another node is known to have the key.
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
                // The node may be gone for good, and the map may have been renewed in the meantime.
                Failure::NotSent(_) => {
                    self.node(key).filter(|current| !Arc::ptr_eq(current, &node))
                }
                Failure::Lost(_) | Failure::Full(_) => None,
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
        let is_of_other_map = match &failure {
            Failure::Answered(answer) => answer.is_of_changing_cluster(),
            Failure::NotSent(_) | Failure::Lost(_) => true,
            Failure::Full(_) => false,
        };
        if is_of_other_map {
            self.renew();
        }
        Err(failure)
    }

    /// Renews the map in a separate task, so that no command waits for it.
    pub(super) fn renew(self: &Arc<Self>) {
        if self.renewal.swap(WANTED, Ordering::AcqRel) == IDLE {
            tokio::spawn(renew(Arc::downgrade(self)));
        }
    }

    /// Returns the nodes in the address, with the host names used there.
    pub(super) fn seeds(&self) -> Vec<Node> {
        self.seeds.iter().map(|seed| self.seed_at(seed)).collect()
    }

    /// Returns all nodes: first the masters in the map, then the others, which may include nodes that have
    /// left the cluster.
    pub(super) fn candidates(&self) -> Vec<Node> {
        let mut masters = self.map().nodes.clone();
        let seeds = self.seeds();
        let mut others: Vec<Node> = Vec::new();
        for node in seeds.iter().chain(self.nodes().values()) {
            if !masters.iter().chain(&others).any(|known| Arc::ptr_eq(known, node)) {
                others.push(Arc::clone(node));
            }
        }
        let turn = self.turn.load(Ordering::Relaxed);
        for group in [&mut masters, &mut others] {
            let middle = turn.checked_rem(group.len()).unwrap_or(0);
            group.rotate_left(middle);
        }
        [masters, others].concat()
    }

    /// Returns the node for an entry in the address. The node's certificate must be valid for the name in the
    /// address, even if the node announces a different name. Otherwise the store could not recover from a
    /// wrong announcement.
    fn seed_at(&self, place: &Place) -> Node {
        let known = self.node_at(place.clone());
        match known.fixed_server() {
            Some(Server { tls_name: None, .. }) => known,
            _ => node(&self.settings, place.clone().into()),
        }
    }

    /// Returns the node at this address, and adds it to the known nodes if it is new.
    fn node_at(&self, place: Place) -> Node {
        let mut nodes = self.nodes();
        let known = nodes.entry(place.clone());
        Arc::clone(known.or_insert_with(|| node(&self.settings, place.into())))
    }

    /// Returns a connection to a server that another node has named: the existing one if it is for the same
    /// server, and otherwise a separate one.
    pub(super) fn link_to(&self, server: &Server) -> Node {
        let server = self.addressed(server.clone());
        let known =
            self.map().nodes.iter().find(|node| node.fixed_server() == Some(&server)).cloned();
        known.unwrap_or_else(|| node(&self.settings, server))
    }

    /// Creates a separate connection to a server.
    pub(super) fn separate_link(&self, server: &Server) -> Node {
        node(&self.settings, self.addressed(server.clone()))
    }

    /// Removes the certificate name if TLS is not used.
    fn addressed(&self, mut server: Server) -> Server {
        if self.settings.tls.is_none() {
            server.tls_name = None;
        }
        server
    }

    /// Installs the ranges that a node has reported. Nodes that are not in the report are dropped.
    fn install(&self, ranges: &[Range]) {
        let mut nodes = HashMap::new();
        let mut map = Map::empty();
        {
            let mut known = self.nodes();
            let mut node_at = |server: Server| {
                let server = self.addressed(server);
                let known_or_new = nodes.entry(server.place.clone()).or_insert_with(|| match known
                    .get(&server.place)
                {
                    Some(node) if node.fixed_server() == Some(&server) => Arc::clone(node),
                    _ => node(&self.settings, server),
                });
                Arc::clone(known_or_new)
            };
            for range in ranges {
                let master = node_at(range.master.clone());
                map.assign(range.first, range.last, master);
                for replica in &range.replicas {
                    node_at(replica.clone());
                }
            }
            *known = nodes;
        }
        *self.map.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(map);
    }

    /// Returns which node has which slots, according to the first master in the map.
    #[cfg(feature = "cli")]
    pub(super) async fn layout(&self) -> Result<Layout, Failure> {
        let Some(ranges) = ask(self.candidates()).await else {
            return Err(self.why_nobody_answers().await);
        };
        self.install(&ranges);
        let masters = self.map().nodes.clone();
        // Asks the node that `is_still_valid` will ask, so that a difference between two nodes' views is not
        // taken for a change.
        let ranges = match masters.first() {
            Some(master) => ask_node(Arc::clone(master)).await,
            None => None,
        };
        let ranges = ranges.ok_or_else(|| {
            Failure::Lost(
                "the first master of the cluster did not report which node has which slots"
                    .to_owned(),
            )
        })?;
        Ok(Layout { masters, shares: shares(&ranges) })
    }

    #[cfg(feature = "cli")]
    async fn why_nobody_answers(&self) -> Failure {
        for node in self.candidates() {
            if let Err(failure) = node.send(cmd("CLUSTER").arg("SLOTS")).await {
                return failure;
            }
        }
        Failure::NotSent("no node of the cluster reports which node has which slots".to_owned())
    }

    fn map(&self) -> Arc<Map> {
        Arc::clone(&self.map.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn nodes(&self) -> MutexGuard<'_, HashMap<Place, Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn node(settings: &Settings, server: Server) -> Node {
    Arc::new(SharedConnection::new(settings.clone(), Target::Node(server)))
}

/// Renews the map as long as commands request a newer one. The interval grows while the map stays the same.
async fn renew(cluster: Weak<Cluster>) {
    let mut release = ReleaseOnDrop(Some(cluster));
    let (mut before, mut interval) = (None, SHORTEST_RENEWAL_INTERVAL);
    while let Some(cluster) = release.cluster() {
        cluster.renewal.store(UNDERWAY, Ordering::Release);
        let candidates = cluster.candidates();
        cluster.turn.fetch_add(1, Ordering::Relaxed);
        drop(cluster);
        let ranges = ask(candidates).await;
        let Some(cluster) = release.cluster() else { return };
        if ranges.is_none() || ranges == before {
            interval = (2 * interval).min(LONGEST_RENEWAL_INTERVAL);
        } else if let Some(ranges) = &ranges {
            interval = SHORTEST_RENEWAL_INTERVAL;
            cluster.install(ranges);
        }
        before = ranges.or(before);
        drop(cluster);
        sleep(interval).await;
        let Some(cluster) = release.cluster() else { return };
        let (from, to) = (UNDERWAY, IDLE);
        let outcome =
            cluster.renewal.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
        if outcome.is_ok() {
            // Another renewal may have started in the meantime.
            release.0 = None;
        }
    }
}

/// Permits the next renewal if the current one is dropped because its runtime was shut down.
struct ReleaseOnDrop(Option<Weak<Cluster>>);

impl ReleaseOnDrop {
    fn cluster(&self) -> Option<Arc<Cluster>> {
        self.0.as_ref()?.upgrade()
    }
}

impl Drop for ReleaseOnDrop {
    fn drop(&mut self) {
        if let Some(cluster) = self.cluster() {
            cluster.renewal.store(IDLE, Ordering::Release);
        }
    }
}

/// Returns the answer from the first node that answers. If a node is slow to answer, the next one is asked as
/// well.
async fn ask(candidates: Vec<Node>) -> Option<Vec<Range>> {
    let mut answers = FuturesUnordered::new();
    let mut candidates = candidates.into_iter();
    loop {
        let next = candidates.next();
        let is_last = next.is_none();
        answers.extend(next.map(ask_node));
        loop {
            let answer = match is_last {
                true => answers.next().await,
                false => match timeout(HEAD_START, answers.next()).await {
                    Ok(answer) => answer,
                    Err(_) => break,
                },
            };
            match answer {
                Some(Some(ranges)) => return Some(ranges),
                Some(None) => {}
                None if is_last => return None,
                None => break,
            }
        }
    }
}

async fn ask_node(node: Node) -> Option<Vec<Range>> {
    let slots = node.send(cmd("CLUSTER").arg("SLOTS")).await.ok()?;
    ranges(&slots, &node)
}

/// Parses a node's answer to `CLUSTER SLOTS`. Returns `None` if the answer names no node.
pub(super) fn ranges(slots: &Value, answered: &Node) -> Option<Vec<Range>> {
    parse(slots, &answered.fixed_server()?.place)
}

/// The slots of each node at one point in time.
#[cfg(feature = "cli")]
pub(super) struct Layout {
    masters: Vec<Node>,
    shares: Vec<Share>,
}

/// The first and the last slot of a range, and the range's master.
#[cfg(feature = "cli")]
type Share = (u16, u16, Place);

#[cfg(feature = "cli")]
impl Layout {
    pub(super) fn masters(&self) -> &[Arc<SharedConnection>] {
        &self.masters
    }

    pub(super) fn covers_all_slots(&self) -> bool {
        let slots = self.shares.iter().map(|(first, last, _)| u32::from(last - first) + 1);
        slots.sum::<u32>() == u32::from(SLOTS)
    }

    /// Returns whether the node that gave this answer still gives the same answer.
    pub(super) async fn is_still_valid(&self) -> bool {
        let Some(master) = self.masters.first() else { return false };
        let ranges = ask_node(Arc::clone(master)).await;
        ranges.is_some_and(|ranges| shares(&ranges) == self.shares)
    }
}

#[cfg(feature = "cli")]
fn shares(ranges: &[Range]) -> Vec<Share> {
    let share = |range: &Range| (range.first, range.last, range.master.place.clone());
    let mut shares: Vec<_> = ranges.iter().map(share).collect();
    shares.sort();
    shares
}

/// The node of each slot.
struct Map {
    /// For each slot, the index of its node in `nodes`, or [`NOBODY`] if it has no node.
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

/// A range of slots that one master has.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) master: Server,
    pub(super) replicas: Vec<Server>,
}

/// Parses the answer to `CLUSTER SLOTS`. Returns `None` if the answer names no node, which is how a node
/// outside any cluster answers.
fn parse(answer: &Value, answered: &Place) -> Option<Vec<Range>> {
    let Value::Array(ranges) = answer else { return None };
    // An invalid range is ignored: commands for its slots are redirected to the right nodes.
    let ranges: Vec<_> = ranges.iter().filter_map(|range| parse_range(range, answered)).collect();
    (!ranges.is_empty()).then_some(ranges)
}

fn parse_range(range: &Value, answered: &Place) -> Option<Range> {
    let Value::Array(range) = range else { return None };
    let [first, last, master, replicas @ ..] = &range[..] else { return None };
    let (first, last) = (number(first)?, number(last)?);
    if first > last || last >= SLOTS {
        return None;
    }
    let replicas = replicas.iter().filter_map(|replica| parse_node(replica, answered)).collect();
    Some(Range { first, last, master: parse_node(master, answered)?, replicas })
}

/// Parses a node in the answer to `CLUSTER SLOTS`: `host, port, id, [name, value, …]`. Only the host and the
/// port are required.
fn parse_node(node: &Value, answered: &Place) -> Option<Server> {
    let Value::Array(node) = node else { return None };
    let [host, port, rest @ ..] = &node[..] else { return None };
    let host = match host {
        Value::Nil => None,
        host => announced_host(text(host)?)?,
    };
    let host = host.as_deref().or_else(|| answered.host())?;
    // If a node announces an IP address and a host name, its certificate is for the host name.
    let tls_name = rest
        .get(1)
        .and_then(|metadata| field(metadata, "hostname"))
        .and_then(|name| announced_host(text(name)?)?);
    // A node without TLS announces no TLS port.
    let port = number(port).filter(|port| *port > 0)?;
    Some(Server { place: Place::tcp(host, port), tls_name })
}

fn number(value: &Value) -> Option<u16> {
    match value {
        Value::Int(number) => u16::try_from(*number).ok(),
        _ => None,
    }
}

/// Returns the slot to which a key belongs (Redis Cluster specification, "Key distribution model" and "Hash
/// tags").
pub(super) fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|byte| *byte == b'}')?;
        (close > 0).then(|| &rest[..close])
    });
    crc16::State::<crc16::XMODEM>::calculate(tag.unwrap_or(key)) % SLOTS
}

#[cfg(test)]
mod tests {
    use ::redis::{RedisConnectionInfo, parse_redis_value};

    use super::*;
    #[cfg(feature = "redis-tls")]
    use crate::store::redis::tls::Tls;

    fn seed() -> Place {
        Place::tcp("seed.example", 7000)
    }

    fn server(host: &str, port: u16, tls_name: Option<&str>) -> Server {
        Server { place: Place::tcp(host, port), tls_name: tls_name.map(str::to_owned) }
    }

    /// Redis Cluster specification, "Hash tags", and its appendix with the check value of the CRC.
    #[test]
    fn slot_is_that_of_specification() {
        assert_eq!(slot(b"123456789"), 0x31c3);
        assert_eq!(slot(b""), 0);
        for (key, hashed) in [
            ("{user1000}.following", "user1000"),
            ("{user1000}.followers", "user1000"),
            ("foo{}{bar}", "foo{}{bar}"),
            ("foo{{bar}}zap", "{bar"),
            ("foo{bar}{zap}", "bar"),
            ("foo{bar", "foo{bar"),
            ("foo}bar{zap}", "zap"),
        ] {
            let crc = crc16::State::<crc16::XMODEM>::calculate(hashed.as_bytes());
            assert_eq!(slot(key.as_bytes()), crc % SLOTS, "{key}");
        }
        assert!(slot(&[0xff; 64]) < SLOTS);
    }

    /// In both versions of the protocol, RESP2 and RESP3.
    #[test]
    fn answer_to_cluster_slots_is_read() {
        let resp2 = b"*2\r\n\
            *4\r\n:0\r\n:99\r\n\
            *4\r\n$9\r\n127.0.0.1\r\n:7001\r\n$2\r\nid\r\n*2\r\n$8\r\nhostname\r\n$3\r\nn.X\r\n\
            *4\r\n$-1\r\n:7002\r\n$2\r\nid\r\n*0\r\n\
            *3\r\n:100\r\n:100\r\n*3\r\n$1\r\n?\r\n:7003\r\n$2\r\nid\r\n";
        let resp3 = b"*2\r\n\
            *4\r\n:0\r\n:99\r\n\
            *4\r\n$9\r\n127.0.0.1\r\n:7001\r\n$2\r\nid\r\n%1\r\n$8\r\nhostname\r\n$3\r\nn.X\r\n\
            *4\r\n_\r\n:7002\r\n$2\r\nid\r\n%0\r\n\
            *3\r\n:100\r\n:100\r\n*3\r\n$0\r\n\r\n:7003\r\n$2\r\nid\r\n";
        for answer in [&resp2[..], resp3] {
            let ranges = parse(&parse_redis_value(answer).unwrap(), &seed()).unwrap();
            let expected = [
                Range {
                    first: 0,
                    last: 99,
                    master: server("127.0.0.1", 7001, Some("n.x")),
                    replicas: vec![server("seed.example", 7002, None)],
                },
                Range {
                    first: 100,
                    last: 100,
                    master: server("seed.example", 7003, None),
                    replicas: Vec::new(),
                },
            ];
            assert_eq!(ranges, expected);
        }
    }

    #[test]
    fn range_that_makes_no_sense_is_left_out() {
        let sound = "*3\r\n:7\r\n:7\r\n*2\r\n$1\r\nh\r\n:7\r\n";
        for garbage in [
            "*3\r\n:9\r\n:8\r\n*2\r\n$1\r\nh\r\n:7\r\n",
            "*3\r\n:0\r\n:16384\r\n*2\r\n$1\r\nh\r\n:7\r\n",
            "*3\r\n:-1\r\n:8\r\n*2\r\n$1\r\nh\r\n:7\r\n",
            "*3\r\n:0\r\n:8\r\n*2\r\n$1\r\nh\r\n:0\r\n",
            "*3\r\n:0\r\n:8\r\n*2\r\n$1\r\nh\r\n:65536\r\n",
            "*3\r\n:0\r\n:8\r\n*2\r\n$3\r\nu@h\r\n:7\r\n",
            "*3\r\n:0\r\n:8\r\n*1\r\n$1\r\nh\r\n",
            "*2\r\n:0\r\n:8\r\n",
            ":1\r\n",
            "$-1\r\n",
        ] {
            let parsed =
                |answer: String| parse(&parse_redis_value(answer.as_bytes()).unwrap(), &seed());
            assert_eq!(parsed(format!("*1\r\n{garbage}")), None, "{garbage}");
            let ranges = parsed(format!("*2\r\n{garbage}{sound}")).unwrap();
            assert_eq!(ranges.len(), 1, "{garbage}");
            assert_eq!((ranges[0].first, ranges[0].last), (7, 7));
        }
        // Only the replica is omitted.
        let answer = "*1\r\n*4\r\n:0\r\n:8\r\n*2\r\n$1\r\nh\r\n:7\r\n*2\r\n$1\r\nh\r\n:0\r\n";
        let ranges = parse(&parse_redis_value(answer.as_bytes()).unwrap(), &seed()).unwrap();
        assert_eq!((ranges[0].last, ranges[0].replicas.len()), (8, 0));
        assert_eq!(parse(&Value::Array(Vec::new()), &seed()), None);
        assert_eq!(parse(&Value::Okay, &seed()), None);
    }

    fn settings() -> Settings {
        Settings::new(RedisConnectionInfo::default(), None)
    }

    #[test]
    fn map_knows_the_node_of_each_slot() {
        let nodes = [7001, 7002].map(|port| node(&settings(), server("h", port, None)));
        let mut map = Map::empty();
        assert!(map.node(0).is_none());
        map.assign(0, 99, Arc::clone(&nodes[0]));
        map.assign(100, SLOTS - 1, Arc::clone(&nodes[1]));
        map.assign(50, 50, Arc::clone(&nodes[1]));
        for (slot, expected) in [(0, 0), (49, 0), (50, 1), (51, 0), (99, 0), (100, 1), (16383, 1)] {
            assert!(Arc::ptr_eq(map.node(slot).unwrap(), &nodes[expected]), "{slot}");
        }
        assert!(map.node(SLOTS).is_none());
        assert_eq!(map.nodes.len(), 2);
        // An invalid range has no effect.
        map.assign(0, SLOTS, Arc::clone(&nodes[1]));
        assert!(Arc::ptr_eq(map.node(0).unwrap(), &nodes[0]));
    }

    #[test]
    fn nodes_that_are_named_again_are_kept_and_others_are_left() {
        let range = |port, tls_name, replicas: &[u16]| Range {
            first: 0,
            last: SLOTS - 1,
            master: server("h", port, tls_name),
            replicas: replicas.iter().map(|port| server("h", *port, None)).collect(),
        };
        let cluster = Cluster::new(settings(), vec![seed(), Place::tcp("h", 1)]);
        let known = || {
            let mut ports: Vec<_> = cluster.nodes().keys().map(Place::to_string).collect();
            ports.sort();
            ports.join(" ")
        };
        cluster.install(&[range(1, None, &[2])]);
        let first = cluster.node("key").unwrap();
        assert_eq!(known(), "h:1 h:2");
        cluster.install(&[range(2, None, &[1])]);
        assert!(Arc::ptr_eq(&cluster.node_at(Place::tcp("h", 1)), &first));
        // Without TLS, the certificate name does not matter.
        cluster.install(&[range(1, Some("n"), &[])]);
        assert!(Arc::ptr_eq(&cluster.node("key").unwrap(), &first));
        assert_eq!(known(), "h:1");
        // The masters are followed by the nodes in the address, with the host names used there.
        let candidates = cluster.candidates();
        let servers = candidates.iter().map(|node| node.fixed_server().unwrap().clone());
        let expected = [server("h", 1, None), seed().into()];
        assert_eq!(servers.collect::<Vec<_>>(), expected);
    }

    #[cfg(feature = "redis-tls")]
    #[test]
    fn seeds_keep_the_name_in_the_address_whatever_nodes_announce() {
        let settings = Settings { tls: Some(Tls::default()), ..settings() };
        let cluster = Cluster::new(settings, vec![Place::tcp("h", 1)]);
        let master = server("h", 1, Some("n"));
        cluster.install(&[Range { first: 0, last: SLOTS - 1, master, replicas: Vec::new() }]);
        let names = |node: &Node| node.fixed_server().unwrap().tls_name.clone();
        let names: Vec<_> = cluster.candidates().iter().map(names).collect();
        assert_eq!(names, [Some("n".to_owned()), None]);
    }
}
