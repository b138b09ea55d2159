//! Several Redis servers that act as one: a cluster, and a master that Sentinels watch over.
//!
//! Real processes on loopback, like those of [`servers`](super::servers). Everything here blocks, is
//! bounded and panics.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "it is for tests")]

use std::ops::RangeInclusive;
use std::panic::resume_unwind;
use std::thread;
use std::time::{Duration, Instant};

use super::servers::{Link, RedisServer, field, redis_program};

/// How many slots a cluster has.
pub const SLOTS: u16 = 16384;

/// How many masters a cluster has; each has one replica.
pub const SHARDS: usize = 3;

/// The name under which the Sentinels know their master.
pub const MASTER: &str = "mymaster";

/// How long the servers may take to agree.
const AGREEMENT: Duration = Duration::from_secs(30);

/// Replicas are sent the data at once; the server waits for further ones otherwise.
const EAGER: [&str; 2] = ["--repl-diskless-sync-delay", "0"];

/// The slot of a key: the CRC16 (XMODEM) of what stands between its first braces, or else of all of it.
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

/// A key that belongs in the slot.
pub fn key_in(slot: u16) -> String {
    (0_u32..).map(|number| format!("key:{number}")).find(|key| slot_of(key) == slot).unwrap()
}

/// A Redis Cluster: three masters, which are the nodes 0, 1 and 2, and a replica of each, the nodes
/// 3, 4 and 5. A shard is a pair of them, `shard` and `shard + 3`, whichever is the master.
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
    ids: Vec<String>,
}

impl RedisCluster {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With further arguments for each node, as in `["--cluster-require-full-coverage", "no"]`.
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

    /// The three masters alone, whose program this is. A master that dies has no successor.
    pub fn masters(program: &str, arguments: &[&str]) -> Self {
        let cluster = Self::of(program, SHARDS, arguments);
        cluster.share_out();
        cluster.settle();
        cluster
    }

    /// One node that serves all slots, with further arguments.
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

    /// Gives each master its slots, and tells all nodes of each other.
    fn share_out(&self) {
        for shard in 0..SHARDS {
            let node = &self.nodes[shard];
            // A number of its own, so that no two of them have to settle whose slots count.
            node.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &(shard + 1).to_string()]);
            let slots = slots_at_first(shard);
            let (first, last) = (slots.start().to_string(), slots.end().to_string());
            node.cli(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
        }
        self.introduce();
    }

    /// Each is told of each, which is sooner than hearsay.
    fn introduce(&self) {
        for (at, node) in self.nodes.iter().enumerate() {
            let bus = node.cli(&["CONFIG", "GET", "cluster-port"]);
            let bus = bus.lines().last().unwrap_or_default();
            for other in &self.nodes[..at] {
                other.cli(&["CLUSTER", "MEET", "127.0.0.1", &node.port().to_string(), bus]);
            }
        }
    }

    /// The address of the cluster, with every node in it.
    pub fn url(&self) -> String {
        format!("redis+cluster://{}", hosts(&self.nodes))
    }

    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    pub fn node_mut(&mut self, node: usize) -> &mut RedisServer {
        &mut self.nodes[node]
    }

    /// Has a single node say from now on that it is at this port, which is that of a proxy before it.
    pub fn announce(&self, port: u16) {
        self.nodes[0].cli(&["CONFIG", "SET", "cluster-announce-port", &port.to_string()]);
    }

    /// The node that is the shard's master, by its own word.
    pub fn master_of(&self, shard: usize) -> usize {
        let is_master = |&node: &usize| is_master(&self.nodes[node]);
        let master = [shard, shard + SHARDS].into_iter().find(is_master);
        master.unwrap_or_else(|| panic!("shard {shard} has no master"))
    }

    /// The other node of the shard.
    pub fn replica_of(&self, shard: usize) -> usize {
        2 * shard + SHARDS - self.master_of(shard)
    }

    /// The node that serves the slot, as the first node that runs sees it.
    pub fn server_of(&self, slot: u16) -> usize {
        let view = self.view(self.running().next().unwrap());
        let node = view.iter().find(|seen| seen.slots.iter().any(|slots| slots.contains(&slot)));
        let node = node.unwrap_or_else(|| panic!("nobody serves slot {slot}"));
        self.ids.iter().position(|id| *id == node.id).unwrap()
    }

    /// A slot that the master serves.
    pub fn slot_of_master(&self, master: usize) -> u16 {
        let view = self.view(master);
        let seen = view.iter().find(|seen| seen.id == self.ids[master]);
        *seen.and_then(|seen| seen.slots.first()).unwrap().start()
    }

    /// The keys of the slot that its server has.
    pub fn keys_in(&self, slot: u16) -> Vec<String> {
        let node = &self.nodes[self.server_of(slot)];
        lines(&node.cli(&["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), "1000000"]))
    }

    /// All keys of the shard, as its master has them.
    pub fn keys_of(&self, shard: usize) -> Vec<String> {
        lines(&self.nodes[self.master_of(shard)].cli(&["KEYS", "*"]))
    }

    /// Moves slots from one master to another one while both serve them, as `redis-cli --cluster
    /// reshard` does.
    pub fn move_slots(&self, slots: impl IntoIterator<Item = u16>, from: usize, to: usize) {
        self.move_slots_in_steps(slots, from, to, Duration::ZERO);
    }

    /// The same, with a pause before each step, in which the keys of the slot are at two places.
    pub fn move_slots_in_steps(
        &self,
        slots: impl IntoIterator<Item = u16>,
        from: usize,
        to: usize,
        pause: Duration,
    ) {
        // A node that has not heard of another one's newest epoch takes a slot under an older one. What was
        // sent before the move then counts as newer, and the two nodes redirect to each other.
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
            // The target knows first, so that there is always a node that serves the slot.
            for node in [&mut target, &mut source].into_iter().chain(&mut others) {
                node.cli(&["CLUSTER", "SETSLOT", slot, "NODE", target_id]);
            }
        }
    }

    fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|&node| self.nodes[node].is_running())
    }

    /// Begins to move a slot from one master to another one, and leaves it at that.
    pub fn open_slot(&self, slot: u16, from: usize, to: usize) {
        let slot = &*slot.to_string();
        self.nodes[to].cli(&["CLUSTER", "SETSLOT", slot, "IMPORTING", &self.ids[from]]);
        self.nodes[from].cli(&["CLUSTER", "SETSLOT", slot, "MIGRATING", &self.ids[to]]);
    }

    /// Moves one key of such a slot.
    pub fn move_key(&self, key: &str, from: usize, to: usize) {
        let port = self.nodes[to].port().to_string();
        let moved = self.nodes[from].cli(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]);
        assert_eq!(moved, "OK");
    }

    /// Takes slots that hold nothing away from one master and gives them to another one.
    pub fn hand_over(&self, slots: RangeInclusive<u16>, to: usize) {
        let (first, last) = (slots.start().to_string(), slots.end().to_string());
        for node in &self.nodes {
            // It may know of no owner.
            let _ = node.ask(&["CLUSTER", "DELSLOTSRANGE", &first, &last]);
        }
        self.nodes[to].cli(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
    }

    /// Has the other nodes forget a node, which then belongs to no cluster.
    pub fn remove(&self, node: usize) {
        for other in (0..self.nodes.len()).filter(|&other| other != node) {
            self.nodes[other].cli(&["CLUSTER", "FORGET", &self.ids[node]]);
        }
        self.nodes[node].cli(&["CLUSTER", "RESET"]);
    }

    /// Kills the node at once.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].stop();
    }

    /// Starts a node anew, as itself, with the data that it has kept.
    pub fn restart(&mut self, node: usize) {
        self.nodes[node].restart();
    }

    /// Has the shard's replica take its master's place, as planned; returns when both know.
    pub fn fail_over(&self, shard: usize) {
        let [old, new] = [self.master_of(shard), self.replica_of(shard)];
        let has_happened = || is_master(&self.nodes[new]) && !is_master(&self.nodes[old]);
        let mut asked = None;
        eventually("the replica does not take its master's place", || {
            // Asked again when the time is over in which a replica tries.
            if asked.is_none_or(|asked: Instant| asked.elapsed() > Duration::from_secs(6)) {
                asked = Some(Instant::now());
                let _ = self.nodes[new].ask(&["CLUSTER", "FAILOVER"]);
            }
            has_happened()
        });
    }

    /// Whether the node stores a key of this slot now.
    pub fn takes_writes(&self, node: usize, slot: u16) -> bool {
        takes_write(&self.nodes[node], &key_in(slot))
    }

    /// Waits until the cluster [is settled](Self::is_settled).
    pub fn settle(&self) {
        eventually("the nodes of the cluster do not agree", || self.is_settled());
    }

    /// Whether all nodes that run serve, agree who serves what, and have the data of their masters.
    pub fn is_settled(&self) -> bool {
        let mut views = self.running().map(|node| self.agreed(node));
        let first = views.next().unwrap();
        first.is_some() && views.all(|view| view == first)
    }

    /// How the node sees the cluster: who has which role and serves which slots since when. `None` while
    /// it sees something amiss, or is behind its own master.
    fn agreed(&self, node: usize) -> Option<Vec<Seen>> {
        let server = &self.nodes[node];
        // It answers nothing while it reads its data.
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

/// How a node sees another one, or itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    id: String,
    /// The identity of its master, or `-`.
    replicates: String,
    /// Since when it serves its slots, as the cluster counts.
    epoch: u64,
    is_well: bool,
    slots: Vec<RangeInclusive<u16>>,
}

impl Seen {
    /// From a line of `CLUSTER NODES`.
    fn read(line: &str) -> Self {
        let words: Vec<_> = line.split(' ').collect();
        let is_failing = words[2]
            .split(',')
            .any(|flag| matches!(flag, "fail" | "fail?" | "handshake" | "noaddr"));
        // Slots on the move stand in brackets after the others.
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

/// The slots of a shard as long as none was moved.
pub fn slots_at_first(shard: usize) -> RangeInclusive<u16> {
    let first = |shard: usize| u16::try_from(shard * usize::from(SLOTS) / SHARDS).unwrap();
    first(shard)..=first(shard + 1) - 1
}

/// A master with two replicas, and three Sentinels of which two have to agree.
pub struct SentinelSet {
    servers: Vec<RedisServer>,
    sentinels: Vec<RedisServer>,
}

impl SentinelSet {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With further arguments for the servers that hold the data, as in
    /// `["--min-replicas-to-write", "1"]`.
    pub fn start_with(arguments: &[&str]) -> Self {
        let arguments = [&EAGER, arguments].concat();
        let servers = at_once(3, || RedisServer::start_with(&arguments));
        let port = servers[0].port();
        for replica in &servers[1..] {
            replica.cli(&["REPLICAOF", "127.0.0.1", &port.to_string()]);
        }
        // A Sentinel that finds them there need not look again, which it does every ten seconds.
        eventually("the replicas do not find their master", || {
            servers[0].cli(&["INFO", "replication"]).matches("state=online").count() == 2
        });
        let set = Self { servers, sentinels: at_once(3, RedisServer::sentinel) };
        for sentinel in &set.sentinels {
            watch(sentinel, port, 2);
            // They ask once a second, so a shorter time has them replace masters that are well.
            for (setting, milliseconds) in
                [("down-after-milliseconds", "2000"), ("failover-timeout", "3000")]
            {
                sentinel.cli(&["SENTINEL", "SET", MASTER, setting, milliseconds]);
            }
        }
        set.settle();
        set
    }

    /// One server with further arguments, and one Sentinel, which never finds it down.
    pub fn single(arguments: &[&str]) -> Self {
        let servers = vec![RedisServer::start_with(arguments)];
        let set = Self { servers, sentinels: vec![RedisServer::sentinel()] };
        set.announce(set.servers[0].port());
        set
    }

    /// Has the Sentinels that run look after the servers and tell each other ten times as often as usual,
    /// where it is not measured how long they take.
    pub fn hasten(&self) {
        for sentinel in self.running_sentinels() {
            let periods = ["info-period", "1000", "publish-period", "200"];
            self.sentinels[sentinel].cli(&[&["SENTINEL", "DEBUG"], &periods[..]].concat());
        }
    }

    /// The address that names the Sentinels and their master.
    pub fn url(&self) -> String {
        format!("redis+sentinel://{}/{MASTER}", hosts(&self.sentinels))
    }

    /// Has a single Sentinel say from now on that the master is at this port, which is that of a proxy
    /// before it.
    pub fn announce(&self, port: u16) {
        let sentinel = &self.sentinels[0];
        if self.named_by(0) != Some(port) {
            let _ = sentinel.ask(&["SENTINEL", "REMOVE", MASTER]);
            watch(sentinel, port, 1);
            let never = Duration::from_secs(24 * 3600).as_millis().to_string();
            sentinel.cli(&["SENTINEL", "SET", MASTER, "down-after-milliseconds", &never]);
        }
    }

    /// The servers that hold the data.
    pub fn servers(&self) -> &[RedisServer] {
        &self.servers
    }

    pub fn server_mut(&mut self, server: usize) -> &mut RedisServer {
        &mut self.servers[server]
    }

    pub fn sentinels(&self) -> &[RedisServer] {
        &self.sentinels
    }

    /// The server that the Sentinels say is master.
    pub fn master(&self) -> usize {
        let sentinel = self.sentinels.iter().position(RedisServer::is_running).unwrap();
        let port = self.named_by(sentinel).unwrap();
        self.servers.iter().position(|server| server.port() == port).unwrap()
    }

    /// The port of the master, as the Sentinel has it.
    fn named_by(&self, sentinel: usize) -> Option<u16> {
        let address =
            self.sentinels[sentinel].cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER]);
        address.lines().nth(1)?.parse().ok()
    }

    /// Has the Sentinels put another server in the master's place, as planned; returns which one when
    /// they name it. The old master does not know of it for some seconds.
    pub fn fail_over(&self) -> usize {
        let old = self.master();
        self.begin_fail_over();
        self.succeeded(old)
    }

    /// Has a Sentinel begin with that.
    pub fn begin_fail_over(&self) {
        let sentinel = &self.sentinels[self.running_sentinels().next().unwrap()];
        eventually("the Sentinel begins no failover", || {
            sentinel.ask(&["SENTINEL", "FAILOVER", MASTER]).is_ok()
        });
    }

    /// Kills the master at once; returns which server that was.
    pub fn kill_master(&mut self) -> usize {
        let master = self.master();
        self.servers[master].stop();
        master
    }

    /// Waits until the Sentinels name another master than this one, which takes writes; returns which.
    pub fn succeeded(&self, old: usize) -> usize {
        let old = Some(self.servers[old].port());
        eventually("no other server becomes master", || {
            self.running_sentinels().all(|sentinel| self.named_by(sentinel) != old)
                && self.takes_writes(self.master())
        });
        self.master()
    }

    /// Starts a server anew, with the data that it has kept. It thinks that it is a master until the
    /// Sentinels tell it otherwise, after some seconds.
    pub fn restart(&mut self, server: usize) {
        self.servers[server].restart();
    }

    pub fn kill_sentinel(&mut self, sentinel: usize) {
        self.sentinels[sentinel].stop();
    }

    /// Starts a Sentinel anew, with what it knew.
    pub fn restart_sentinel(&mut self, sentinel: usize) {
        self.sentinels[sentinel].restart();
    }

    /// Whether the server stores something now.
    pub fn takes_writes(&self, server: usize) -> bool {
        takes_write(&self.servers[server], "key")
    }

    /// Waits until the servers and Sentinels [are settled](Self::is_settled).
    pub fn settle(&self) {
        eventually("the servers and Sentinels do not agree", || self.is_settled());
    }

    /// Whether all servers and Sentinels that run know each other, the replicas have the data of the
    /// master, and the master takes writes.
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

    /// Whether the Sentinel finds all well: the master at this port, as many replicas, the others.
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

/// Has the Sentinel watch the master at this port.
fn watch(sentinel: &RedisServer, port: u16, quorum: u8) {
    let (port, quorum) = (port.to_string(), quorum.to_string());
    sentinel.cli(&["SENTINEL", "MONITOR", MASTER, "127.0.0.1", &port, &quorum]);
}

/// Has a master answer no write for ten seconds, and returns when so many replicas have all that it has
/// answered before. What they do not have is lost with it, and no client can do anything about that.
pub fn hold_writes(master: &RedisServer, key: &str, replicas: usize) {
    let mut link = master.dial();
    // One step, so that nothing is written behind the one that is confirmed.
    link.cli(&["MULTI"]);
    link.cli(&["SET", key, "the last one", "PX", "1"]);
    link.cli(&["CLIENT", "PAUSE", "10000", "WRITE"]);
    link.cli(&["EXEC"]);
    confirmed(&mut link, replicas);
}

/// Returns when so many replicas have all that their master has answered until now. The key is one that the
/// master serves.
pub fn wait_for_replicas(master: &RedisServer, key: &str, replicas: usize) {
    let mut link = master.dial();
    link.cli(&["SET", key, "the last one", "PX", "1"]);
    confirmed(&mut link, replicas);
}

/// `WAIT` is about what its own connection has written last, and returns at once where that is nothing.
fn confirmed(link: &mut Link, replicas: usize) {
    let replicas = replicas.to_string();
    let confirmed = link.cli(&["WAIT", &replicas, "4000"]);
    assert_eq!(confirmed, replicas, "the replicas do not confirm what their master has answered");
}

/// Has the server answer writes again, those first that have waited.
pub fn release_writes(server: &RedisServer) {
    server.cli(&["CLIENT", "UNPAUSE"]);
}

/// By the server's own word; false where it gives none.
fn is_master(server: &RedisServer) -> bool {
    server.ask(&["ROLE"]).is_ok_and(|role| role.starts_with("master"))
}

fn takes_write(server: &RedisServer, key: &str) -> bool {
    server.ask(&["SET", key, "a probe's", "PX", "1"]).is_ok()
}

/// What stands in the line after this one.
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

/// So many servers, each started by a thread of its own.
fn at_once(count: usize, start: impl Fn() -> RedisServer + Sync) -> Vec<RedisServer> {
    thread::scope(|scope| {
        let starting: Vec<_> = (0..count).map(|_| scope.spawn(&start)).collect();
        let started = starting.into_iter().map(|server| server.join());
        started.map(|server| server.unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

/// Asks until it is so.
#[track_caller]
pub fn eventually(otherwise: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + AGREEMENT;
    while !holds() {
        assert!(Instant::now() < deadline, "{otherwise}");
        thread::sleep(Duration::from_millis(10));
    }
}
