//! Examines the nodes of a cluster, and whether they serve all slots.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ::redis::{Value, cmd};
use futures_util::StreamExt as _;
use futures_util::future::{join, join_all, join3};
use futures_util::stream::FuturesUnordered;

use crate::check::{Finding, Level, counted};
use crate::store::diagnose::Probe;
use crate::store::redis::RedisStore;
use crate::store::redis::answer::SLOTS;
use crate::store::redis::check::server::{Role, examine_server, try_permissions};
use crate::store::redis::cluster::{Cluster, Node, Range, ranges, slot};
use crate::store::redis::connection::Failure;
use crate::store::redis::dialing::Server;
use crate::store::redis::reply::{field, text};

/// Examines each node of a cluster.
pub(super) async fn examine(store: &RedisStore, probe: &Probe, cluster: &Arc<Cluster>) {
    let seeds = cluster.seeds();
    let mut asked: FuturesUnordered<_> = seeds.iter().map(|seed| ask(probe, seed)).collect();
    let mut answers = Vec::new();
    // The first answer is enough to continue. A node that does not answer must not delay the examination.
    let mut told = None;
    while told.is_none()
        && let Some(answer) = asked.next().await
    {
        told = answer.told();
        answers.push(answer);
    }
    if told.is_none() {
        told = others(probe, cluster, &seeds).await;
    }
    let Some((ids, ranges)) = told else {
        return examine_unknown(store, probe, &answers).await;
    };
    let shards = Shard::of(&ranges);
    let masters = shards.iter().map(|shard| examine_master(store, probe, cluster, shard));
    let replicas = shards.iter().map(|shard| async {
        let replicas = shard.replicas.iter();
        let replicas = replicas.map(|replica| examine_replica(probe, cluster, shard, replica));
        join_all(replicas).await
    });
    let seeds = async {
        answers.extend(asked.collect::<Vec<_>>().await);
        judge_seeds(probe, &answers, &ids);
    };
    let (views, replicas, ()) = join3(join_all(masters), join_all(replicas), seeds).await;
    for ((shard, view), are_up) in shards.iter().zip(&views).zip(&replicas) {
        if let Some(view) = view {
            judge_shard(probe, shard, view, are_up);
        }
    }
    judge_cluster(probe, &shards, &views.into_iter().flatten().collect::<Vec<_>>());
}

/// A node's answer to `CLUSTER SLOTS`.
struct Asked {
    node: Node,
    /// `None` if the node did not answer in time. The timeout has already been reported.
    slots: Option<Result<Value, Failure>>,
}

async fn ask(probe: &Probe, node: &Node) -> Asked {
    let command = cmd("CLUSTER").arg("SLOTS").take();
    // Any one of the nodes in the address is enough to find the cluster, so a node that does not answer
    // causes only a warning.
    let slots = probe.spare_part(node.name(), node.send(&command)).await;
    Asked { node: Arc::clone(node), slots }
}

impl Asked {
    /// Returns the ids of all nodes and the ranges of slots, if the node described the cluster.
    fn told(&self) -> Option<(BTreeSet<String>, Vec<Range>)> {
        let Some(Ok(slots)) = &self.slots else { return None };
        Some((ids(slots), ranges(slots, &self.node)?))
    }

    /// Returns whether the server does not permit or does not know `CLUSTER SLOTS`.
    fn is_hidden(&self) -> bool {
        matches!(&self.slots, Some(Err(Failure::Answered(answer))) if answer.is_of_no_such_command())
    }

    /// Returns the reason why the node does not describe a cluster.
    fn reason(&self) -> String {
        match &self.slots {
            None => format!("{} did not answer in time", self.node.name()),
            Some(Err(failure)) => failure.to_string(),
            Some(Ok(_)) => format!("{} belongs to no cluster that has slots", self.node.name()),
        }
    }
}

/// Returns the ids of the nodes in an answer to `CLUSTER SLOTS`.
fn ids(slots: &Value) -> BTreeSet<String> {
    let Value::Array(ranges) = slots else { return BTreeSet::new() };
    let nodes = ranges.iter().flat_map(|range| match range {
        Value::Array(range) => range.get(2..).unwrap_or_default(),
        _ => &[],
    });
    let ids = nodes.filter_map(|node| match node {
        Value::Array(node) => text(node.get(2)?).map(str::to_owned),
        _ => None,
    });
    ids.collect()
}

/// Asks the known nodes that are not in the address. Used if no node in the address described the cluster.
async fn others(
    probe: &Probe,
    cluster: &Arc<Cluster>,
    seeds: &[Node],
) -> Option<(BTreeSet<String>, Vec<Range>)> {
    let is_seed = |node: &Node| seeds.iter().any(|seed| seed.fixed_server() == node.fixed_server());
    let mut others = cluster.candidates();
    others.retain(|node| !is_seed(node));
    let mut asked: FuturesUnordered<_> = others.iter().map(|node| ask(probe, node)).collect();
    while let Some(answer) = asked.next().await {
        if let Some(told) = answer.told() {
            return Some(told);
        }
    }
    None
}

/// Examines a cluster if none of its nodes describes it.
async fn examine_unknown(store: &RedisStore, probe: &Probe, answers: &[Asked]) {
    if answers.iter().any(Asked::is_hidden) {
        probe.report(Finding::warning(
            "cluster",
            "The user may not run CLUSTER SLOTS, so most commands are sent twice, and nodes that the \
             address does not name were not examined.",
            "Run ACL SETUSER USER +cluster|slots on each node.",
        ));
        let examined = answers.iter().filter(|answer| answer.is_hidden()).map(|answer| {
            let name = answer.node.name();
            probe.part(name, examine_server(probe, &answer.node, name, Role::Node))
        });
        judge_seeds(probe, answers, &BTreeSet::new());
        join(join_all(examined), probe.try_store(store)).await;
        return;
    }
    let reason = answers.first().map(Asked::reason).unwrap_or_default();
    let message = match answers.len() {
        1 => format!("The node that the address names does not describe a cluster: {reason}."),
        count => format!(
            "None of the {count} nodes that the address names describes a cluster. The first reason: \
             {reason}."
        ),
    };
    let remedy = "Name nodes in the address that are running and can be reached from here. For a single \
                  server without a cluster, write an address that begins with redis:// or rediss://.";
    probe.report(Finding::error("cluster", message, remedy));
    judge_seeds(probe, answers, &BTreeSet::new());
}

/// Reports which nodes in the address belong to the cluster with these node ids.
fn judge_seeds(probe: &Probe, answers: &[Asked], known: &BTreeSet<String>) {
    let mut usable = 0;
    for answer in answers {
        let own = match &answer.slots {
            Some(Ok(slots)) => ids(slots),
            _ => BTreeSet::new(),
        };
        let message = if answer.is_hidden() || !own.is_disjoint(known) {
            usable += 1;
            continue;
        } else if own.is_empty() {
            format!("The address names this node, which cannot be used: {}.", answer.reason())
        } else {
            "The address names this node, which belongs to a different cluster from the others."
                .to_owned()
        };
        let remedy = "Start the node, or remove it from the address.";
        let finding = Finding::warning("seed", message, remedy);
        probe.report(finding.about(answer.node.name().to_owned()));
    }
    match (usable, answers.len()) {
        (0, _) => {}
        (1, 1) => probe.report(Finding::note(
            "seed",
            "The address names one node, so a process that starts while this node is down cannot find the \
             cluster.",
            "Name at least one node of each shard in the address.",
        )),
        (usable, count) => probe.report(Finding::fine(
            "seed",
            format!("{usable} of the {count} nodes that the address names lead to the cluster."),
        )),
    }
}

/// A master with its slots and its replicas.
struct Shard {
    master: Server,
    slots: Vec<RangeInclusive<u16>>,
    /// The replicas that the node does not report as failed.
    replicas: Vec<Server>,
}

impl Shard {
    fn of(ranges: &[Range]) -> Vec<Self> {
        let mut shards: Vec<Self> = Vec::new();
        for range in ranges {
            let (master, slots) = (&range.master, range.first..=range.last);
            let replicas = range.replicas.iter().cloned();
            match shards.iter_mut().find(|shard| shard.master == *master) {
                Some(shard) => shard.slots.push(slots),
                None => shards.push(Self {
                    master: master.clone(),
                    slots: vec![slots],
                    replicas: replicas.collect(),
                }),
            }
        }
        shards
    }

    fn has(&self, slot: u16) -> bool {
        self.slots.iter().any(|range| range.contains(&slot))
    }

    /// Returns the number of slots as text, such as `5461 slots`.
    fn size(&self) -> String {
        counted(self.slots.iter().map(ExactSizeIterator::len).sum::<usize>(), "slot")
    }
}

/// A master's view of its cluster.
struct View {
    /// Like every field, `None` if the user may not run the command.
    info: Option<Info>,
    /// The answer to `CLUSTER NODES`.
    nodes: Option<String>,
    /// Whether `cluster-require-full-coverage` is set.
    needs_all_slots: Option<bool>,
}

/// The relevant part of the answer to `CLUSTER INFO`.
struct Info {
    is_ok: bool,
    /// The number of slots whose master is down: according to most masters, and according to this one.
    failed: u64,
    suspected: u64,
}

impl Info {
    fn read(info: &str) -> Self {
        let value = |name: &str| {
            let line = info.lines().find_map(|line| line.trim_end().strip_prefix(name));
            line.and_then(|line| line.strip_prefix(':'))
        };
        let number = |name| value(name).and_then(|number| number.parse().ok()).unwrap_or(0);
        Self {
            is_ok: value("cluster_state") == Some("ok"),
            failed: number("cluster_slots_fail"),
            suspected: number("cluster_slots_pfail"),
        }
    }
}

/// Examines a master, and tries commands on the check's own keys. Returns `None` if the master cannot be
/// used.
async fn examine_master(
    store: &RedisStore,
    probe: &Probe,
    cluster: &Arc<Cluster>,
    shard: &Shard,
) -> Option<View> {
    let link = cluster.link_to(&shard.master);
    let name = link.name();
    let examined = async {
        if examine_server(probe, &link, name, Role::Node).await.is_none() {
            let size = shard.size();
            let message =
                format!("It is the master of {size}, whose sessions cannot be read or written.");
            let remedy = if shard.replicas.is_empty() {
                "Start it again: it has no replica that could replace it."
            } else {
                "The cluster promotes a replica after cluster-node-timeout if most masters are up. \
                 Watch it with \
                 CLUSTER NODES."
            };
            probe.report(Finding::error("shard", message, remedy).about(name.to_owned()));
            return None;
        }
        let tried = async {
            let key = || probe.key(|key| shard.has(slot(key.as_str().as_bytes())));
            match (key(), key()) {
                (Ok(Some(first)), Ok(Some(second))) => {
                    try_asking(probe, &cluster.separate_link(&shard.master)).await;
                    let permitted = try_permissions(probe, &link, &first, name);
                    join(permitted, probe.try_verbs(store, &second, name)).await;
                }
                (Err(error), _) | (_, Err(error)) => probe.report_without_key(&error, name),
                (Ok(_), Ok(_)) => {}
            }
        };
        let (view, ()) = join(view(&link), tried).await;
        Some(view)
    };
    probe.part(name, examined).await.flatten()
}

/// Tries `ASKING`, which the store sends for a key that has already moved out of a slot that is still being
/// moved. `ASKING` affects the next command on its connection, so no other command may use this connection.
async fn try_asking(probe: &Probe, link: &Node) {
    if let Err(Failure::Answered(answer)) = link.send(&cmd("ASKING")).await
        && answer.is_of_permission()
    {
        let message = "The user may not run ASKING, so while slots are moved, requests fail for keys that \
                        have already been moved.";
        let remedy = "Run ACL SETUSER USER +asking on each node.";
        let finding = Finding::warning("permission", message, remedy);
        probe.report(finding.about(link.name().to_owned()));
    }
}

async fn view(link: &Node) -> View {
    let command = |name: &str, arguments: &[&str]| cmd(name).arg(arguments).take();
    let (info, nodes, coverage) = (
        command("CLUSTER", &["INFO"]),
        command("CLUSTER", &["NODES"]),
        command("CONFIG", &["GET", COVERAGE]),
    );
    let (info, nodes, coverage) =
        join3(link.send(&info), link.send(&nodes), link.send(&coverage)).await;
    View {
        info: info.ok().as_ref().and_then(text).map(Info::read),
        nodes: nodes.ok().as_ref().and_then(text).map(str::to_owned),
        needs_all_slots: coverage
            .ok()
            .as_ref()
            .and_then(|coverage| field(coverage, COVERAGE).and_then(text))
            .map(|coverage| coverage == "yes"),
    }
}

const COVERAGE: &str = "cluster-require-full-coverage";

/// Examines a replica. Returns whether it is up.
async fn examine_replica(
    probe: &Probe,
    cluster: &Arc<Cluster>,
    shard: &Shard,
    replica: &Server,
) -> bool {
    let link = cluster.link_to(replica);
    let name = link.name();
    let examined = async {
        // For a replica this is only a warning, because sessions remain available. For a master it is an
        // error.
        if let Err(failure @ (Failure::NotSent(_) | Failure::Lost(_))) =
            link.send(&cmd("ROLE")).await
        {
            let message =
                format!("This replica of {} cannot be used: {failure}.", shard.master.place);
            let remedy =
                "Start it, or remove it with redis-cli --cluster del-node and add another replica.";
            probe.report(Finding::warning("shard", message, remedy).about(name.to_owned()));
            return false;
        }
        examine_server(probe, &link, name, Role::SpareNode).await.is_some()
    };
    probe.spare_part(name, examined).await.unwrap_or(false)
}

/// A line in the answer to `CLUSTER NODES`: the id of the node, its address, its flags, the id of its master,
/// and the slots that are being moved.
struct Line<'a> {
    id: &'a str,
    address: &'a str,
    flags: Vec<&'a str>,
    master: &'a str,
    open: Vec<u16>,
}

impl<'a> Line<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (id, address, flags, master) =
            (words.next()?, words.next()?, words.next()?, words.next()?);
        // `[slot->-ID]`: the slot is moving to that node. `[slot-<-ID]`: the slot is coming from that node.
        let open = words.filter_map(|word| {
            let (slot, _) = word.strip_prefix('[')?.split_once('-')?;
            slot.parse().ok()
        });
        Some(Self {
            id,
            address: address.split('@').next().unwrap_or(address),
            flags: flags.split(',').collect(),
            master,
            open: open.collect(),
        })
    }

    /// Returns whether most masters report the node as failed. `CLUSTER SLOTS` omits a replica that has
    /// failed.
    fn has_failed(&self) -> bool {
        self.flags.contains(&"fail")
    }
}

impl View {
    fn lines(&self) -> Vec<Line<'_>> {
        self.nodes.iter().flat_map(|nodes| nodes.lines()).filter_map(Line::read).collect()
    }

    /// Returns the slots that this node is exporting or importing.
    fn open_slots(&self) -> Vec<u16> {
        let lines = self.lines().into_iter().filter(|line| line.flags.contains(&"myself"));
        lines.flat_map(|line| line.open).collect()
    }
}

/// Reports whether a replica could replace the shard's master. `are_up` has one value per replica in the
/// shard.
fn judge_shard(probe: &Probe, shard: &Shard, view: &View, are_up: &[bool]) {
    let lines = view.lines();
    let own = lines.iter().find(|line| line.flags.contains(&"myself")).map(|line| line.id);
    let replicas = lines.iter().filter(|line| Some(line.master) == own);
    let (failed, alive): (Vec<&Line<'_>>, Vec<&Line<'_>>) =
        replicas.partition(|line| line.has_failed());
    // `CLUSTER SLOTS` also omits replicas that have not received a write yet.
    let new = alive.len().saturating_sub(are_up.len());
    let down: Vec<_> = failed.iter().map(|line| line.address).collect();
    let (size, up) = (shard.size(), new + are_up.iter().filter(|is_up| **is_up).count());
    let finding = match (up, new + are_up.len() + down.len()) {
        (0, 0) => Finding::warning(
            "shard",
            format!("It has {size} and no replica, so their sessions are lost if it fails."),
            "Add a replica with redis-cli --cluster add-node and --cluster-slave.",
        ),
        (0, count) => Finding::warning(
            "shard",
            format!(
                "It has {size}, and {}, so their sessions are lost if it fails{}.",
                match count {
                    1 => "its only replica is down".to_owned(),
                    count => format!("none of its {count} replicas is up"),
                },
                named(&down),
            ),
            "Start its replicas, or add another one.",
        ),
        (up, count) if up < count => Finding::warning(
            "shard",
            format!(
                "It has {size}, and {up} of its {} {} up{}.",
                counted(count, "replica"),
                if up == 1 { "is" } else { "are" },
                named(&down)
            ),
            "Start the replica, or remove it with redis-cli --cluster del-node.",
        ),
        (up, _) => Finding::fine("shard", format!("It has {size} and {}.", counted(up, "replica"))),
    };
    probe.report(finding.about(format!("redis at {}", shard.master.place)));
}

/// Lists the replicas that a master reports as failed.
fn named(down: &[&str]) -> String {
    match down {
        [] => String::new(),
        down => format!(" (CLUSTER NODES has {} as failed)", down.join(" and ")),
    }
}

/// Reports whether all slots are served. `views` contains the views of the masters that can be used.
fn judge_cluster(probe: &Probe, shards: &[Shard], views: &[View]) {
    let infos: Vec<_> = views.iter().filter_map(|view| view.info.as_ref()).collect();
    let unserved: Vec<_> =
        (0..SLOTS).filter(|slot| !shards.iter().any(|shard| shard.has(*slot))).collect();
    let failed = infos.iter().map(|info| info.failed).max().unwrap_or(0);
    let suspected = infos.iter().map(|info| info.suspected).max().unwrap_or(0);
    let stopped = infos.iter().filter(|info| !info.is_ok).count();
    let masters = counted(shards.len(), "master");
    let finding = if let Some(first) = unserved.first() {
        Finding::error(
            "cluster",
            format!(
                "{} of {SLOTS} slots have no master (the first is {first}); {}.",
                unserved.len(),
                consequence(views)
            ),
            "Assign them to a master with redis-cli --cluster fix or CLUSTER ADDSLOTSRANGE.",
        )
    } else if failed > 0 {
        Finding::error(
            "cluster",
            format!(
                "{failed} of {SLOTS} slots have a master that is down; {}.",
                consequence(views)
            ),
            "Start that master again, or run CLUSTER FAILOVER FORCE on one of its replicas.",
        )
    } else if stopped > 0 {
        Finding::error(
            "cluster",
            format!(
                "cluster_state is fail for {stopped} of {}, which then refuse commands.",
                counted(infos.len(), "master")
            ),
            "Run CLUSTER NODES on these masters: they may be cut off from most of the others.",
        )
    } else if suspected > 0 {
        Finding::warning(
            "cluster",
            format!(
                "{suspected} of {SLOTS} slots have a master that does not answer another node."
            ),
            "Find the node that CLUSTER NODES shows as fail?, and check whether it can be reached.",
        )
    } else if infos.is_empty() {
        Finding::fine("cluster", format!("All {SLOTS} slots have a master ({masters})."))
    } else {
        Finding::fine(
            "cluster",
            format!("All {SLOTS} slots have a master ({masters}), and cluster_state is ok."),
        )
    };
    // If no master could be examined, a good result would add nothing to the findings about the servers.
    if !views.is_empty() || finding.level() > Level::Fine {
        probe.report(finding);
    }
    report_moves(probe, views);
    report_hidden(probe, views);
}

/// Describes how sessions are affected while some slots have no node.
fn consequence(views: &[View]) -> &'static str {
    let mut settings = views.iter().map(|view| view.needs_all_slots);
    if settings.clone().any(|needs_all| needs_all == Some(true)) {
        "cluster-require-full-coverage is yes, so the cluster refuses all commands"
    } else if settings.all(|needs_all| needs_all == Some(false)) {
        "cluster-require-full-coverage is no, so only the sessions in these slots are unavailable"
    } else {
        "unless cluster-require-full-coverage is no, the cluster refuses all commands"
    }
}

fn report_moves(probe: &Probe, views: &[View]) {
    let open: BTreeSet<_> = views.iter().flat_map(View::open_slots).collect();
    let Some(first) = open.first() else { return };
    let message = match open.len() {
        1 => format!("Slot {first} is being moved from one master to another."),
        count => format!("{count} slots are being moved between masters (the first is {first})."),
    };
    probe.report(Finding::note(
        "moving",
        message,
        "No session is lost by this. If no move is under way, complete it with redis-cli --cluster fix.",
    ));
}

fn report_hidden(probe: &Probe, views: &[View]) {
    let hides = |is_hidden: fn(&View) -> bool| views.iter().any(is_hidden);
    let (info, nodes) = (hides(|view| view.info.is_none()), hides(|view| view.nodes.is_none()));
    let (commands, unknown) = match (info, nodes) {
        (false, false) => return,
        (true, false) => ("CLUSTER INFO", "cluster_state is unknown"),
        (false, true) => {
            ("CLUSTER NODES", "slots that are being moved and failed replicas are unknown")
        }
        (true, true) => (
            "CLUSTER INFO and CLUSTER NODES",
            "cluster_state, slots that are being moved and failed replicas are unknown",
        ),
    };
    probe.report(Finding::note(
        "hidden",
        format!("The user may not run {commands}, so {unknown}."),
        "Run ACL SETUSER USER +cluster|info +cluster|nodes on each node, or run the check as another user.",
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_of_node_is_read() {
        let line = "07c3 10.0.0.1:6379@16379,n.example myself,master - 0 0 3 connected 0-5 7 [93-<-292f] \
                    [77->-e7d1]";
        let line = Line::read(line).unwrap();
        assert_eq!((line.id, line.address, line.master), ("07c3", "10.0.0.1:6379", "-"));
        assert_eq!(line.open, [93, 77]);
        assert!(line.flags.contains(&"myself") && !line.has_failed());
        let line = Line::read("67ed :0@0 slave,fail,noaddr 07c3 0 0 1 disconnected").unwrap();
        assert!(line.has_failed());
        assert_eq!(line.master, "07c3");
        assert!(Line::read("67ed :0@0").is_none());
    }

    #[test]
    fn state_of_cluster_is_read() {
        let info =
            Info::read("cluster_state:ok\r\ncluster_slots_pfail:7\r\ncluster_slots_fail:0\r\n");
        assert!(info.is_ok);
        assert_eq!((info.failed, info.suspected), (0, 7));
        let info = Info::read("cluster_state:fail\r\ncluster_slots_fail:12\r\n");
        assert_eq!((info.is_ok, info.failed), (false, 12));
    }
}
