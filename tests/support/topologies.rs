//! Several Redis servers that act as one: a cluster, or a master with Sentinels.
//!
//! They are real processes on loopback, like those in [`servers`](super::servers). The functions here block, up
//! to a time limit, and panic on failure.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "it is for tests")]

use std::ops::RangeInclusive;
use std::panic::resume_unwind;
use std::thread;
use std::time::{Duration, Instant};

use super::servers::{Link, RedisServer, field, redis_program};

/// The number of slots in a cluster.
pub const SLOTS: u16 = 16384;

/// The number of masters in a cluster. Each master has one replica, except in a cluster of masters only.
pub const SHARDS: usize = 3;

/// The name under which the Sentinels know their master.
pub const MASTER: &str = "mymaster";

/// The time that the servers may take to agree.
const AGREEMENT: Duration = Duration::from_secs(30);

/// Makes a master send its data to a replica immediately. By default, the master first waits for more
/// replicas.
const EAGER: [&str; 2] = ["--repl-diskless-sync-delay", "0"];

/// Returns the slot of a key: the CRC16 (XMODEM) of the text in its first braces, or of the whole key.
pub fn slot_of(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
    let hashed = tag.map(|(tag, _)| tag).filter(|tag| !tag.is_empty()).unwrap_or(key);
    let crc = hashed.bytes().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    });
    crc % SLOTS
}

/// Returns a key in this slot.
pub fn key_in(slot: u16) -> String {
    (0_u32..).map(|number| format!("key:{number}")).find(|key| slot_of(key) == slot).unwrap()
}

/// A Redis Cluster with three masters, which are nodes 0, 1 and 2, and one replica for each, which are nodes
/// 3, 4 and 5. A shard consists of nodes `shard` and `shard + 3`, either of which can be the master.
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
    ids: Vec<String>,
}

impl RedisCluster {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a cluster with additional arguments for each node, for example
    /// `["--cluster-require-full-coverage", "no"]`.
    pub fn start_with(arguments: &[&str]) -> Self {
        let cluster = Self::of(&redis_program(), 2 * SHARDS, arguments);
        cluster.share_out();
        for shard in 0..SHARDS {
            let (master, replica) = (&cluster.ids[shard], &cluster.nodes[shard + SHARDS]);
            eventually("the replica does not hear of its master", || {
                replica.ask(&["CLUSTER", "REPLICATE", master]).is_ok()
            });
        }
        cluster.settle();
        cluster
    }

    /// Starts only the three masters, with this program. A master that dies is not replaced.
    pub fn masters(program: &str, arguments: &[&str]) -> Self {
        let cluster = Self::of(program, SHARDS, arguments);
        cluster.share_out();
        cluster.settle();
        cluster
    }

    /// Starts one node that serves all slots, with additional arguments.
    pub fn single(arguments: &[&str]) -> Self {
        let cluster = Self::of(&redis_program(), 1, arguments);
        cluster.nodes[0].cli(&["CLUSTER", "ADDSLOTSRANGE", "0", &(SLOTS - 1).to_string()]);
        cluster.settle();
        cluster
    }

    fn of(program: &str, count: usize, arguments: &[&str]) -> Self {
        let arguments = [&["--cluster-node-timeout", "1000"], &EAGER, arguments].concat();
        let nodes = at_once(count, || RedisServer::cluster_node(program, &arguments));
        let ids = nodes.iter().map(|node| node.cli(&["CLUSTER", "MYID"])).collect();
        Self { nodes, ids }
    }

    /// Assigns the slots to the masters, and introduces all nodes to one another.
    fn share_out(&self) {
        for shard in 0..SHARDS {
            let node = &self.nodes[shard];
            // The epochs are distinct, so that no two masters have to resolve a conflict about slots.
            node.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &(shard + 1).to_string()]);
            let slots = slots_at_first(shard);
            let (first, last) = (slots.start().to_string(), slots.end().to_string());
            node.cli(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
        }
        self.introduce();
    }

    /// Introduces every node to every other node, which is faster than waiting for gossip.
    fn introduce(&self) {
        for (at, node) in self.nodes.iter().enumerate() {
            let bus = node.cli(&["CONFIG", "GET", "cluster-port"]);
            let bus = bus.lines().last().unwrap_or_default();
            for other in &self.nodes[..at] {
                other.cli(&["CLUSTER", "MEET", "127.0.0.1", &node.port().to_string(), bus]);
            }
        }
    }

    /// Returns the URL of the cluster, which lists every node.
    pub fn url(&self) -> String {
        format!("redis+cluster://{}", hosts(&self.nodes))
    }

    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    pub fn node_mut(&mut self, node: usize) -> &mut RedisServer {
        &mut self.nodes[node]
    }

    /// Makes a cluster's single node announce this port from now on. It is the port of a proxy in front of
    /// the node.
    pub fn announce(&self, port: u16) {
        self.nodes[0].cli(&["CONFIG", "SET", "cluster-announce-port", &port.to_string()]);
    }

    /// Returns the node that reports itself as the shard's master.
    pub fn master_of(&self, shard: usize) -> usize {
        let is_master = |&node: &usize| is_master(&self.nodes[node]);
        let master = [shard, shard + SHARDS].into_iter().find(is_master);
        master.unwrap_or_else(|| panic!("shard {shard} has no master"))
    }

    /// Returns the shard's other node.
    pub fn replica_of(&self, shard: usize) -> usize {
        2 * shard + SHARDS - self.master_of(shard)
    }

    /// Returns the node that serves the slot according to the first running node.
    pub fn server_of(&self, slot: u16) -> usize {
        let view = self.view(self.running().next().unwrap());
        let node = view.iter().find(|seen| seen.slots.iter().any(|slots| slots.contains(&slot)));
        let node = node.unwrap_or_else(|| panic!("no node serves slot {slot}"));
        self.ids.iter().position(|id| *id == node.id).unwrap()
    }

    /// Returns a slot that the master serves.
    pub fn slot_of_master(&self, master: usize) -> u16 {
        let view = self.view(master);
        let seen = view.iter().find(|seen| seen.id == self.ids[master]);
        *seen.and_then(|seen| seen.slots.first()).unwrap().start()
    }

    /// Returns the keys in the slot, according to the node that serves it.
    pub fn keys_in(&self, slot: u16) -> Vec<String> {
        let node = &self.nodes[self.server_of(slot)];
        lines(&node.cli(&["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), "1000000"]))
    }

    /// Returns all keys in the shard, according to its master.
    pub fn keys_of(&self, shard: usize) -> Vec<String> {
        lines(&self.nodes[self.master_of(shard)].cli(&["KEYS", "*"]))
    }

    /// Moves slots from one master to another while both serve requests, as `redis-cli --cluster
    /// reshard` does.
    pub fn move_slots(&self, slots: impl IntoIterator<Item = u16>, from: usize, to: usize) {
        self.move_slots_in_steps(slots, from, to, Duration::ZERO);
    }

    /// Moves slots like [`move_slots`](Self::move_slots), but pauses before each step, while the slot's keys
    /// are on both nodes.
    pub fn move_slots_in_steps(
        &self,
        slots: impl IntoIterator<Item = u16>,
        from: usize,
        to: usize,
        pause: Duration,
    ) {
        // If the target does not know the newest epoch of the other nodes, it takes over a slot with an older
        // epoch. Messages that were sent before the move then count as newer, and the two nodes redirect
        // requests to each other.
        self.settle();
        let (source_id, target_id) = (&*self.ids[from], &*self.ids[to]);
        let port = self.nodes[to].port().to_string();
        let (mut source, mut target) = (self.nodes[from].dial(), self.nodes[to].dial());
        let others = self.nodes.iter().enumerate().filter(|&(node, server)| {
            node != from && node != to && server.is_running() && is_master(server)
        });
        let mut others: Vec<_> = others.map(|(_, server)| server.dial()).collect();
        for slot in slots {
            let slot = &*slot.to_string();
            target.cli(&["CLUSTER", "SETSLOT", slot, "IMPORTING", source_id]);
            source.cli(&["CLUSTER", "SETSLOT", slot, "MIGRATING", target_id]);
            loop {
                thread::sleep(pause);
                let keys = source.cli(&["CLUSTER", "GETKEYSINSLOT", slot, "10"]);
                if keys.is_empty() {
                    break;
                }
                let mut migrate = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
                migrate.extend(keys.lines());
                source.cli(&migrate);
            }
            // The target is told first, so that there is always one node that serves the slot.
            for node in [&mut target, &mut source].into_iter().chain(&mut others) {
                node.cli(&["CLUSTER", "SETSLOT", slot, "NODE", target_id]);
            }
        }
    }

    fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|&node| self.nodes[node].is_running())
    }

    /// Starts to move a slot from one master to another, but moves no key.
    pub fn open_slot(&self, slot: u16, from: usize, to: usize) {
        let slot = &*slot.to_string();
        self.nodes[to].cli(&["CLUSTER", "SETSLOT", slot, "IMPORTING", &self.ids[from]]);
        self.nodes[from].cli(&["CLUSTER", "SETSLOT", slot, "MIGRATING", &self.ids[to]]);
    }

    /// Moves one key from a slot that [`open_slot`](Self::open_slot) has opened.
    pub fn move_key(&self, key: &str, from: usize, to: usize) {
        let port = self.nodes[to].port().to_string();
        let moved = self.nodes[from].cli(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]);
        assert_eq!(moved, "OK");
    }

    /// Reassigns empty slots from one master to another.
    pub fn hand_over(&self, slots: RangeInclusive<u16>, to: usize) {
        let (first, last) = (slots.start().to_string(), slots.end().to_string());
        for node in &self.nodes {
            // The node refuses this command if it knows no owner of the slots.
            let _ = node.ask(&["CLUSTER", "DELSLOTSRANGE", &first, &last]);
        }
        self.nodes[to].cli(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
    }

    /// Makes the other nodes forget this node, which then belongs to no cluster.
    pub fn remove(&self, node: usize) {
        for other in (0..self.nodes.len()).filter(|&other| other != node) {
            self.nodes[other].cli(&["CLUSTER", "FORGET", &self.ids[node]]);
        }
        self.nodes[node].cli(&["CLUSTER", "RESET"]);
    }

    /// Kills the node immediately.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].stop();
    }

    /// Restarts a node with its identity. The node keeps its data only if its arguments make it store the
    /// data on disk.
    pub fn restart(&mut self, node: usize) {
        self.nodes[node].restart();
    }

    /// Starts a planned failover to the shard's replica. Returns when both nodes know about it.
    pub fn fail_over(&self, shard: usize) {
        let [old, new] = [self.master_of(shard), self.replica_of(shard)];
        let has_happened = || is_master(&self.nodes[new]) && !is_master(&self.nodes[old]);
        let mut asked = None;
        eventually("the replica does not take its master's place", || {
            // If the replica's attempt has timed out, it is asked again.
            if asked.is_none_or(|asked: Instant| asked.elapsed() > Duration::from_secs(6)) {
                asked = Some(Instant::now());
                let _ = self.nodes[new].ask(&["CLUSTER", "FAILOVER"]);
            }
            has_happened()
        });
    }

    /// Returns whether the node currently accepts a write to this slot.
    pub fn takes_writes(&self, node: usize, slot: u16) -> bool {
        takes_write(&self.nodes[node], &key_in(slot))
    }

    pub fn settle(&self) {
        eventually("the nodes of the cluster do not agree", || self.is_settled());
    }

    /// Returns whether all running nodes serve requests, agree on the slots, and have their masters' data.
    pub fn is_settled(&self) -> bool {
        let mut views = self.running().map(|node| self.agreed(node));
        let first = views.next().unwrap();
        first.is_some() && views.all(|view| view == first)
    }

    /// Returns the node's view of the cluster: the role, the slots and the epoch of each node. Returns `None`
    /// if this node reports a problem or is not connected to its master.
    fn agreed(&self, node: usize) -> Option<Vec<Seen>> {
        let server = &self.nodes[node];
        // The node does not answer while it is loading its data.
        let info = server.ask(&["CLUSTER", "INFO"]).ok()?;
        let replication = server.cli(&["INFO", "replication"]);
        let link = field(&replication, "master_link_status:");
        let mut view = self.view(node);
        view.sort_by(|one, other| one.id.cmp(&other.id));
        let is_well = field(&info, "cluster_state:").as_deref() == Some("ok")
            && link.is_none_or(|link| link == "up")
            && view.len() == self.nodes.len()
            && view.iter().all(|seen| {
                let at = self.ids.iter().position(|id| *id == seen.id);
                at.is_some_and(|at| seen.is_well || !self.nodes[at].is_running())
            });
        is_well.then_some(view)
    }

    fn view(&self, node: usize) -> Vec<Seen> {
        self.nodes[node].cli(&["CLUSTER", "NODES"]).lines().map(Seen::read).collect()
    }
}

/// How a node sees another node, or itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    id: String,
    /// The id of its master, or `-`.
    replicates: String,
    /// The configuration epoch in which the node was given its slots.
    epoch: u64,
    is_well: bool,
    slots: Vec<RangeInclusive<u16>>,
}

impl Seen {
    /// Parses a line of `CLUSTER NODES`.
    fn read(line: &str) -> Self {
        let words: Vec<_> = line.split(' ').collect();
        let is_failing = words[2]
            .split(',')
            .any(|flag| matches!(flag, "fail" | "fail?" | "handshake" | "noaddr"));
        // Slots that are being moved come after the others, in brackets.
        let slots = words[8..].iter().filter(|word| !word.starts_with('[')).map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            first.parse().unwrap()..=last.parse().unwrap()
        });
        Self {
            id: words[0].to_owned(),
            replicates: words[3].to_owned(),
            epoch: words[6].parse().unwrap(),
            is_well: !is_failing && words[7] == "connected",
            slots: slots.collect(),
        }
    }
}

/// Returns the slots that a shard has if none has been moved.
pub fn slots_at_first(shard: usize) -> RangeInclusive<u16> {
    let first = |shard: usize| u16::try_from(shard * usize::from(SLOTS) / SHARDS).unwrap();
    first(shard)..=first(shard + 1) - 1
}

/// A master with two replicas, and three Sentinels, two of which have to agree.
pub struct SentinelSet {
    servers: Vec<RedisServer>,
    sentinels: Vec<RedisServer>,
}

impl SentinelSet {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts the data servers with additional arguments, for example `["--min-replicas-to-write", "1"]`.
    pub fn start_with(arguments: &[&str]) -> Self {
        let arguments = [&EAGER, arguments].concat();
        let servers = at_once(3, || RedisServer::start_with(&arguments));
        let port = servers[0].port();
        for replica in &servers[1..] {
            replica.cli(&["REPLICAOF", "127.0.0.1", &port.to_string()]);
        }
        // A Sentinel that sees the replicas when it starts need not look for them later, which it does only
        // every ten seconds.
        eventually("the replicas do not find their master", || {
            servers[0].cli(&["INFO", "replication"]).matches("state=online").count() == 2
        });
        let set = Self { servers, sentinels: at_once(3, RedisServer::sentinel) };
        for sentinel in &set.sentinels {
            watch(sentinel, port, 2);
            // The Sentinels send a ping once a second, so with a shorter time they would replace healthy
            // masters.
            for (setting, milliseconds) in
                [("down-after-milliseconds", "2000"), ("failover-timeout", "3000")]
            {
                sentinel.cli(&["SENTINEL", "SET", MASTER, setting, milliseconds]);
            }
        }
        set.settle();
        set
    }

    /// Starts one server, with additional arguments, and one Sentinel, which never considers the server down.
    pub fn single(arguments: &[&str]) -> Self {
        let servers = vec![RedisServer::start_with(arguments)];
        let set = Self { servers, sentinels: vec![RedisServer::sentinel()] };
        set.announce(set.servers[0].port());
        set
    }

    /// Makes the running Sentinels query the servers and one another ten times as often as usual. Use this
    /// only in tests that do not measure the Sentinels' delay.
    pub fn hasten(&self) {
        for sentinel in self.running_sentinels() {
            let periods = ["info-period", "1000", "publish-period", "200"];
            self.sentinels[sentinel].cli(&[&["SENTINEL", "DEBUG"], &periods[..]].concat());
        }
    }

    /// Returns the URL that lists the Sentinels and their master's name.
    pub fn url(&self) -> String {
        format!("redis+sentinel://{}/{MASTER}", hosts(&self.sentinels))
    }

    /// Makes a single Sentinel announce this port for the master from now on. It can be the port of a proxy
    /// in front of the master.
    pub fn announce(&self, port: u16) {
        let sentinel = &self.sentinels[0];
        if self.named_by(0) != Some(port) {
            let _ = sentinel.ask(&["SENTINEL", "REMOVE", MASTER]);
            watch(sentinel, port, 1);
            let never = Duration::from_secs(24 * 3600).as_millis().to_string();
            sentinel.cli(&["SENTINEL", "SET", MASTER, "down-after-milliseconds", &never]);
        }
    }

    /// Returns the servers that hold the data.
    pub fn servers(&self) -> &[RedisServer] {
        &self.servers
    }

    pub fn server_mut(&mut self, server: usize) -> &mut RedisServer {
        &mut self.servers[server]
    }

    pub fn sentinels(&self) -> &[RedisServer] {
        &self.sentinels
    }

    /// Returns the server that the Sentinels report as the master.
    pub fn master(&self) -> usize {
        let sentinel = self.sentinels.iter().position(RedisServer::is_running).unwrap();
        let port = self.named_by(sentinel).unwrap();
        self.servers.iter().position(|server| server.port() == port).unwrap()
    }

    /// Returns the port of the master according to this Sentinel.
    fn named_by(&self, sentinel: usize) -> Option<u16> {
        let address =
            self.sentinels[sentinel].cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER]);
        address.lines().nth(1)?.parse().ok()
    }

    /// Starts a planned failover, waits until the Sentinels report a different master, and returns that
    /// master. For some seconds, the old master does not know that it has been replaced.
    pub fn fail_over(&self) -> usize {
        let old = self.master();
        self.begin_fail_over();
        self.succeeded(old)
    }

    /// Makes a Sentinel start a failover.
    pub fn begin_fail_over(&self) {
        let sentinel = &self.sentinels[self.running_sentinels().next().unwrap()];
        eventually("the Sentinel does not start a failover", || {
            sentinel.ask(&["SENTINEL", "FAILOVER", MASTER]).is_ok()
        });
    }

    /// Kills the master immediately and returns it.
    pub fn kill_master(&mut self) -> usize {
        let master = self.master();
        self.servers[master].stop();
        master
    }

    /// Waits until the Sentinels report a different master that accepts writes, and returns that master.
    pub fn succeeded(&self, old: usize) -> usize {
        let old = Some(self.servers[old].port());
        eventually("no other server becomes master", || {
            self.running_sentinels().all(|sentinel| self.named_by(sentinel) != old)
                && self.takes_writes(self.master())
        });
        self.master()
    }

    /// Restarts a server, which keeps its data only if its arguments make it store the data on disk. The
    /// server acts as a master until the Sentinels reconfigure it, which takes some seconds.
    pub fn restart(&mut self, server: usize) {
        self.servers[server].restart();
    }

    pub fn kill_sentinel(&mut self, sentinel: usize) {
        self.sentinels[sentinel].stop();
    }

    /// Restarts a Sentinel, which keeps its state on disk.
    pub fn restart_sentinel(&mut self, sentinel: usize) {
        self.sentinels[sentinel].restart();
    }

    /// Returns whether the server currently accepts a write.
    pub fn takes_writes(&self, server: usize) -> bool {
        takes_write(&self.servers[server], "key")
    }

    pub fn settle(&self) {
        eventually("the servers and Sentinels do not agree", || self.is_settled());
    }

    /// Returns whether all running servers and Sentinels know one another, the replicas have the master's
    /// data, and the master accepts writes.
    pub fn is_settled(&self) -> bool {
        let running = self.servers.iter().filter(|server| server.is_running()).count();
        let server = &self.servers[self.master()];
        let replicas = server.cli(&["INFO", "replication"]).matches("state=online").count();
        let port = server.port().to_string();
        let agrees = |sentinel: usize| self.agrees(sentinel, &port, replicas);
        replicas == running - 1
            && self.running_sentinels().all(agrees)
            && self.takes_writes(self.master())
    }

    /// Returns whether the Sentinel reports the master at this port, at least this many replicas, all the
    /// other Sentinels, and no problem.
    fn agrees(&self, sentinel: usize, port: &str, replicas: usize) -> bool {
        let sentinel = &self.sentinels[sentinel];
        let state = sentinel.cli(&["SENTINEL", "MASTER", MASTER]);
        let linked = sentinel.cli(&["SENTINEL", "REPLICAS", MASTER]);
        let others = (self.sentinels.len() - 1).to_string();
        [("port", port), ("flags", "master"), ("num-other-sentinels", &others)]
            .iter()
            .all(|&(name, value)| after(&state, name) == Some(value))
            && linked.matches("master-link-status\nok").count() >= replicas
            && sentinel.ask(&["SENTINEL", "CKQUORUM", MASTER]).is_ok()
    }

    fn running_sentinels(&self) -> impl Iterator<Item = usize> {
        (0..self.sentinels.len()).filter(|&sentinel| self.sentinels[sentinel].is_running())
    }
}

/// Makes the Sentinel watch the master at this port.
fn watch(sentinel: &RedisServer, port: u16, quorum: u8) {
    let (port, quorum) = (port.to_string(), quorum.to_string());
    sentinel.cli(&["SENTINEL", "MONITOR", MASTER, "127.0.0.1", &port, &quorum]);
}

/// Makes a master pause its writes for ten seconds. Returns when this many replicas have every write that the
/// master has acknowledged, because any other write would be lost with the master.
pub fn hold_writes(master: &RedisServer, key: &str, replicas: usize) {
    let mut link = master.dial();
    // A transaction ensures that no other write follows the confirmed one.
    link.cli(&["MULTI"]);
    link.cli(&["SET", key, "the last one", "PX", "1"]);
    link.cli(&["CLIENT", "PAUSE", "10000", "WRITE"]);
    link.cli(&["EXEC"]);
    confirmed(&mut link, replicas);
}

/// Waits until this many replicas have every write that their master has acknowledged so far. The master must
/// serve the key.
pub fn wait_for_replicas(master: &RedisServer, key: &str, replicas: usize) {
    let mut link = master.dial();
    link.cli(&["SET", key, "the last one", "PX", "1"]);
    confirmed(&mut link, replicas);
}

/// Waits until the replicas confirm the last write on this connection. `WAIT` covers no write from other
/// connections, and returns immediately if this connection has written nothing.
fn confirmed(link: &mut Link, replicas: usize) {
    let replicas = replicas.to_string();
    let confirmed = link.cli(&["WAIT", &replicas, "4000"]);
    assert_eq!(
        confirmed, replicas,
        "the replicas do not confirm what their master has acknowledged"
    );
}

/// Makes the server execute writes again, starting with those that have been waiting.
pub fn release_writes(server: &RedisServer) {
    server.cli(&["CLIENT", "UNPAUSE"]);
}

/// Returns whether the server reports itself as a master, or `false` if the server does not answer.
fn is_master(server: &RedisServer) -> bool {
    server.ask(&["ROLE"]).is_ok_and(|role| role.starts_with("master"))
}

fn takes_write(server: &RedisServer, key: &str) -> bool {
    server.ask(&["SET", key, "a probe's", "PX", "1"]).is_ok()
}

/// Returns the line that follows the line `name`.
fn after<'a>(lines: &'a str, name: &str) -> Option<&'a str> {
    lines.lines().skip_while(|line| *line != name).nth(1)
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

fn hosts(servers: &[RedisServer]) -> String {
    let hosts: Vec<_> =
        servers.iter().map(|server| format!("127.0.0.1:{}", server.port())).collect();
    hosts.join(",")
}

/// Starts this many servers at once, each on its own thread.
fn at_once(count: usize, start: impl Fn() -> RedisServer + Sync) -> Vec<RedisServer> {
    thread::scope(|scope| {
        let starting: Vec<_> = (0..count).map(|_| scope.spawn(&start)).collect();
        let started = starting.into_iter().map(|server| server.join());
        started.map(|server| server.unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

/// Polls the condition until it holds. Panics if that takes too long.
#[track_caller]
pub fn eventually(otherwise: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + AGREEMENT;
    while !holds() {
        assert!(Instant::now() < deadline, "{otherwise}");
        thread::sleep(Duration::from_millis(10));
    }
}
