//! Examines the Sentinels and the servers that they watch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ::redis::{Value, cmd};
use futures_util::StreamExt as _;
use futures_util::future::{join, join_all, join4};
use futures_util::stream::FuturesUnordered;

use crate::check::{Finding, counted};
use crate::store::diagnose::Probe;
use crate::store::redis::RedisStore;
use crate::store::redis::check::server::{Role, examine_server, try_permissions};
use crate::store::redis::connection::{Failure, SharedConnection};
use crate::store::redis::place::Place;
use crate::store::redis::reply::{field, text};
use crate::store::redis::sentinel::{Master, place};

/// Examines the Sentinels, the master and its replicas.
pub(super) async fn examine(store: &RedisStore, probe: &Probe, master: &Master) {
    let sentinels = master.sentinels().iter();
    let mut asked: FuturesUnordered<_> =
        sentinels.map(|sentinel| examine_sentinel(probe, sentinel, master.name())).collect();
    let watched = async {
        let mut said = Vec::new();
        // One answer that lists replicas is enough to examine them. The other Sentinels may never answer.
        let mut replicas = BTreeSet::new();
        while replicas.is_empty()
            && let Some(answer) = asked.next().await
        {
            replicas = answer.replicas();
            said.push(answer);
        }
        let replicas =
            replicas.iter().map(|replica| examine_replica(probe, master, replica.clone()));
        let (_, others) = join(join_all(replicas), asked.collect::<Vec<_>>()).await;
        said.extend(others);
        said
    };
    let (said, ()) = join(watched, examine_master(store, probe, master)).await;
    judge(probe, master.name(), &said);
}

/// A Sentinel's answer.
struct Said {
    sentinel: Arc<SharedConnection>,
    opinion: Opinion,
}

enum Opinion {
    /// The Sentinel did not answer, or its answer could not be used. The reason is reported at the end.
    None(String),
    /// The Sentinel watches no master of this name.
    Unknown,
    Known(View),
}

/// A Sentinel's view of its master.
struct View {
    master: Place,
    flags: BTreeSet<String>,
    quorum: usize,
    /// The number of Sentinels, including this one.
    sentinels: usize,
    /// Whether the Sentinel could get a majority for a failover. `None` if the user may not run the command.
    can_fail_over: Option<bool>,
    /// `None` if the user may not run the command.
    replicas: Option<Vec<Replica>>,
}

/// A Sentinel's view of a replica.
struct Replica {
    place: Place,
    flags: BTreeSet<String>,
    is_linked: bool,
    /// Whether the replica may become the master.
    may_lead: bool,
}

impl Said {
    fn view(&self) -> Option<&View> {
        match &self.opinion {
            Opinion::Known(view) => Some(view),
            Opinion::None(_) | Opinion::Unknown => None,
        }
    }

    fn replicas(&self) -> BTreeSet<Place> {
        let replicas = self.view().and_then(|view| view.replicas.as_ref()).into_iter().flatten();
        replicas.map(|replica| replica.place.clone()).collect()
    }
}

fn flags(instance: &Value) -> BTreeSet<String> {
    let flags = field(instance, "flags").and_then(text).unwrap_or_default();
    flags.split(',').map(str::to_owned).collect()
}

fn number(instance: &Value, name: &str) -> Option<usize> {
    field(instance, name).and_then(text)?.parse().ok()
}

/// Asks a Sentinel for its view, and examines it as a server.
async fn examine_sentinel(probe: &Probe, sentinel: &Arc<SharedConnection>, name: &str) -> Said {
    let subject = sentinel.name();
    let examined = async {
        let opinion = opinion(sentinel, name).await;
        if !matches!(opinion, Opinion::None(_)) {
            examine_server(probe, sentinel, subject, Role::Sentinel).await;
        }
        opinion
    };
    let opinion = probe.spare_part(subject, examined).await;
    let silence = || Opinion::None(format!("{subject} did not answer in time"));
    let opinion = opinion.unwrap_or_else(silence);
    Said { sentinel: Arc::clone(sentinel), opinion }
}

async fn opinion(sentinel: &Arc<SharedConnection>, name: &str) -> Opinion {
    let command = |verb: &str| cmd("SENTINEL").arg(verb).arg(name).take();
    let (address, master, replicas, quorum) = (
        command("GET-MASTER-ADDR-BY-NAME"),
        command("MASTER"),
        command("REPLICAS"),
        command("CKQUORUM"),
    );
    let (address, master, replicas, quorum) = join4(
        sentinel.send(&address),
        sentinel.send(&master),
        sentinel.send(&replicas),
        sentinel.send(&quorum),
    )
    .await;
    let (address, master) = match (address, master) {
        (Ok(Value::Nil), _) => return Opinion::Unknown,
        (Ok(Value::Array(address)), Ok(master)) => (place(address.first(), address.get(1)), master),
        (Err(failure), _) | (_, Err(failure)) => return Opinion::None(failure.to_string()),
        (Ok(_), Ok(_)) => (None, Value::Nil),
    };
    let (Some(address), Some(quorum_size)) = (address, number(&master, "quorum")) else {
        return Opinion::None(format!(
            "the answer of {} is not a Sentinel's answer",
            sentinel.name()
        ));
    };
    Opinion::Known(View {
        master: address,
        flags: flags(&master),
        quorum: quorum_size,
        sentinels: number(&master, "num-other-sentinels").unwrap_or(0) + 1,
        can_fail_over: match quorum {
            Ok(_) => Some(true),
            Err(Failure::Answered(answer)) if answer.code == "NOQUORUM" => Some(false),
            Err(_) => None,
        },
        replicas: match replicas {
            Ok(Value::Array(replicas)) => Some(replicas.iter().filter_map(Replica::read).collect()),
            _ => None,
        },
    })
}

impl Replica {
    fn read(replica: &Value) -> Option<Self> {
        Some(Self {
            place: place(field(replica, "ip"), field(replica, "port"))?,
            flags: flags(replica),
            is_linked: field(replica, "master-link-status").and_then(text) == Some("ok"),
            may_lead: number(replica, "slave-priority") != Some(0),
        })
    }

    /// Returns the Sentinel's own term for the reason why the replica cannot be used, or `None` if it can.
    fn trouble(&self) -> Option<&'static str> {
        let is = |flag: &str| self.flags.contains(flag);
        if is("s_down") || is("o_down") {
            Some("s_down")
        } else if is("disconnected") {
            Some("disconnected")
        } else if !self.is_linked {
            Some("master-link-status err")
        } else {
            None
        }
    }
}

/// Examines the current master, and tries commands on the check's own keys.
async fn examine_master(store: &RedisStore, probe: &Probe, master: &Master) {
    let link = &master.connection;
    let examined = async {
        let place = match link.lease().await {
            Ok(lease) => lease.server().place.clone(),
            Err(failure) => {
                let message = format!("The master cannot be used: {failure}.");
                let remedy = "The Sentinels promote a replica if they can. Read the other findings, and \
                              run \
                              SENTINEL MASTER on a Sentinel.";
                return probe.report(Finding::error("master", message, remedy));
            }
        };
        let subject = format!("redis at {place}");
        let message = "The Sentinels name this server as the master, and the server confirms it.";
        probe.report(Finding::fine("master", message).about(subject.clone()));
        if examine_server(probe, link, &subject, Role::Master).await.is_none() {
            return;
        }
        let key = || probe.key(|_| true);
        match (key(), key()) {
            (Ok(Some(first)), Ok(Some(second))) => {
                let permitted = try_permissions(probe, link, &first, &subject);
                join(permitted, probe.try_verbs(store, &second, &subject)).await;
            }
            (Err(error), _) | (_, Err(error)) => probe.report_without_key(&error, &subject),
            (Ok(_), Ok(_)) => {}
        }
    };
    probe.part(link.name(), examined).await;
}

async fn examine_replica(probe: &Probe, master: &Master, place: Place) {
    let link = master.replica(place);
    let name = link.name();
    let examined = async {
        // For a replica this is only a warning, because sessions remain available. For a master it is an
        // error.
        if let Err(failure @ (Failure::NotSent(_) | Failure::Lost(_))) =
            link.send(&cmd("ROLE")).await
        {
            let message = format!("This replica cannot be used: {failure}.");
            let remedy = "Start it. If it is gone for good, run SENTINEL RESET on each Sentinel.";
            probe.report(Finding::warning("replica", message, remedy).about(name.to_owned()));
            return;
        }
        examine_server(probe, &link, name, Role::Replica).await;
    };
    probe.spare_part(name, examined).await;
}

/// Combines the Sentinels' answers into findings and reports them.
fn judge(probe: &Probe, name: &str, said: &[Said]) {
    let views: Vec<_> = said.iter().filter_map(Said::view).collect();
    for Said { sentinel, opinion } in said {
        let (message, remedy) = match opinion {
            Opinion::Known(_) => continue,
            Opinion::Unknown => (
                format!("This Sentinel watches no master named {name}."),
                "Correct the name at the end of the address, or run SENTINEL MONITOR on the Sentinel.",
            ),
            Opinion::None(reason) => (
                format!("This Sentinel cannot be asked for the master: {reason}."),
                "Start it, set its credentials with RedisBuilder::sentinel_credentials if it asks for \
                 them, or \
                 remove it from the address.",
            ),
        };
        let finding = Finding::warning("sentinel", message, remedy);
        probe.report(finding.about(sentinel.name().to_owned()));
    }
    let mut masters: BTreeMap<_, usize> = BTreeMap::new();
    for view in &views {
        *masters.entry(&view.master).or_default() += 1;
    }
    let count = said.len();
    match masters.keys().collect::<Vec<_>>()[..] {
        [] => return probe.report(unknown(name, said)),
        [master] => probe.report(Finding::fine(
            "sentinel",
            format!(
                "{} of the {} that the address names {} {master} as the master {name}.",
                views.len(),
                counted(count, "Sentinel"),
                if views.len() == 1 { "has" } else { "have" },
            ),
        )),
        _ => {
            let named = masters.iter().map(|(master, votes)| format!("{master} by {votes}"));
            let message = format!(
                "The Sentinels name different servers as the master {name}: {}.",
                named.collect::<Vec<_>>().join(", ")
            );
            probe.report(Finding::warning(
                "sentinel",
                message,
                "Right after a failover this resolves itself within seconds. Otherwise check whether the \
                 Sentinels can reach each other.",
            ));
        }
    }
    judge_number(probe, count, &views);
    probe.report(judged_quorum(count, &views));
    judge_master(probe, &views);
    judge_replicas(probe, &views);
}

/// Returns the finding for the case in which no Sentinel knows the master.
fn unknown(name: &str, said: &[Said]) -> Finding {
    let count = said.len();
    if said.iter().any(|said| matches!(said.opinion, Opinion::Unknown)) {
        return Finding::error(
            "sentinel",
            format!("No Sentinel that answers watches a master named {name}."),
            "Correct the name at the end of the address. SENTINEL MASTERS lists the watched masters.",
        );
    }
    Finding::error(
        "sentinel",
        format!(
            "None of the {} that the address names says which server is the master.",
            counted(count, "Sentinel")
        ),
        "Name Sentinels in the address that are running and can be reached from here. For a single server \
         without Sentinels, write an address that begins with redis:// or rediss://.",
    )
}

/// Returns the number of Sentinels, according to the Sentinel that knows the most others.
fn total(views: &[&View]) -> usize {
    views.iter().map(|view| view.sentinels).max().unwrap_or(0)
}

fn judge_number(probe: &Probe, named: usize, views: &[&View]) {
    let total = total(views);
    let remedy = "Run three Sentinels or another odd number, each on a machine of its own.";
    if total < 3 {
        let message = match total {
            1 => "There is one Sentinel, so no failover happens while it is down.".to_owned(),
            _ => format!("There are {total} Sentinels, so no failover happens while one is down."),
        };
        probe.report(Finding::warning("sentinel", message, remedy));
    } else if total.is_multiple_of(2) {
        let message = format!(
            "There are {total} Sentinels. They tolerate no more failures than {} would.",
            total - 1
        );
        probe.report(Finding::note("sentinel", message, remedy));
    }
    if named < total {
        let message = format!("The address names {named} of the {total} Sentinels.");
        let remedy =
            "List all of them, so that the store finds the master even if some of them are down.";
        probe.report(Finding::note("sentinel", message, remedy));
    }
}

fn answering(count: usize) -> String {
    format!("{count} {} here", if count == 1 { "answers" } else { "answer" })
}

/// Checks whether the Sentinels can agree on a failover.
fn judged_quorum(named: usize, views: &[&View]) -> Finding {
    let total = total(views);
    let quorum = views.iter().map(|view| view.quorum).max().unwrap_or(0);
    // A quorum must agree that the master is down, and a majority must elect the Sentinel that carries out
    // the failover.
    let needed = quorum.max(total / 2 + 1);
    let rule =
        format!("A failover needs {needed} of {} (quorum is {quorum})", counted(total, "Sentinel"));
    let remedy = "Start the Sentinels that are down. If the quorum is higher than their number, lower \
                  it with \
                  SENTINEL SET MASTER quorum NUMBER. SENTINEL RESET removes Sentinels that are gone for good.";
    let asked = || views.iter().filter_map(|view| view.can_fail_over);
    let (able, unable) =
        (asked().filter(|able| *able).count(), asked().filter(|able| !able).count());
    match (able, unable) {
        (0, 0) if views.len() >= needed => {
            Finding::fine("quorum", format!("{rule}, and {}.", answering(views.len())))
        }
        (0, 0) if needed > total || named >= total => {
            Finding::warning("quorum", format!("{rule}, and {}.", answering(views.len())), remedy)
        }
        (0, 0) => Finding::note(
            "hidden",
            "The user may not run SENTINEL CKQUORUM, and the address names too few Sentinels to tell \
             whether a failover is possible.",
            "Run ACL SETUSER USER +sentinel|ckquorum on each Sentinel, or list all Sentinels in the \
             address.",
        ),
        (0, _) => Finding::warning(
            "quorum",
            format!(
                "{rule}, but too few reach each other, so no replica would replace the master."
            ),
            remedy,
        ),
        // A Sentinel is slow to notice that another one is down. The address names all Sentinels, so what
        // counts is how many have answered.
        (_, 0) if named >= total && views.len() < needed => Finding::warning(
            "quorum",
            format!(
                "{rule}, but only {}, so no replica would replace the master.",
                answering(views.len())
            ),
            remedy,
        ),
        (_, 0) => Finding::fine("quorum", format!("{rule}, and enough reach each other.")),
        (able, unable) => Finding::warning(
            "quorum",
            format!("{rule}. {able} of them can reach enough others, and {unable} cannot."),
            "Check whether the Sentinels can reach each other.",
        ),
    }
}

/// Reports what the Sentinels say about the master.
fn judge_master(probe: &Probe, views: &[&View]) {
    let with = |flag: &str| views.iter().filter(|view| view.flags.contains(flag)).count();
    let (agreed, alone) = (with("o_down"), with("s_down"));
    let (broken, changing) = (with("disconnected"), with("failover_in_progress"));
    let count = views.len();
    if changing > 0 {
        probe.report(Finding::warning(
            "master",
            "A failover is in progress.",
            "Wait a few seconds, and run the check again.",
        ));
    }
    if agreed > 0 {
        probe.report(Finding::error(
            "master",
            format!(
                "The Sentinels agree that the master is down ({agreed} of {count} report o_down)."
            ),
            "The Sentinels promote a replica if the quorum is reached. Read their logs.",
        ));
    } else if alone + broken > 0 {
        probe.report(Finding::warning(
            "master",
            format!(
                "{} of {} cannot reach the master (s_down or disconnected).",
                alone.max(broken),
                counted(count, "Sentinel")
            ),
            "Check whether the master is running and can be reached from the Sentinels. Sentinels that \
             are cut \
             off cannot replace it.",
        ));
    }
}

/// Reports what the Sentinels say about the replicas.
fn judge_replicas(probe: &Probe, views: &[&View]) {
    let views: Vec<&Vec<Replica>> =
        views.iter().filter_map(|view| view.replicas.as_ref()).collect();
    let mut replicas: BTreeMap<&Place, Vec<&Replica>> = BTreeMap::new();
    for replica in views.iter().copied().flatten() {
        replicas.entry(&replica.place).or_default().push(replica);
    }
    if views.is_empty() {
        return probe.report(Finding::note(
            "hidden",
            "The user may not run SENTINEL REPLICAS, so the replicas are unknown.",
            "Run ACL SETUSER USER +sentinel|replicas on each Sentinel.",
        ));
    }
    let mut sound = 0;
    for (place, seen) in &replicas {
        let troubles: BTreeSet<_> = seen.iter().filter_map(|replica| replica.trouble()).collect();
        if troubles.is_empty() {
            sound += 1;
            continue;
        }
        let count = seen.iter().filter(|replica| replica.trouble().is_some()).count();
        let troubles = troubles.into_iter().collect::<Vec<_>>().join(" and ");
        let message = format!(
            "{count} of {} report {troubles} for this replica, so it cannot replace the master.",
            counted(seen.len(), "Sentinel")
        );
        let remedy = "Check whether it is running and can reach its master (INFO replication). If it is \
                      gone \
                      for good, run SENTINEL RESET on each Sentinel.";
        let finding = Finding::warning("replica", message, remedy);
        probe.report(finding.about(format!("redis at {place}")));
    }
    let finding = if replicas.is_empty() {
        Finding::warning(
            "replica",
            "The master has no replica, so all sessions are lost if it fails.",
            "Start another server and run REPLICAOF HOST PORT on it, with the master's address.",
        )
    } else if sound == 0 {
        Finding::warning(
            "replica",
            format!("None of the {} can replace the master.", counted(replicas.len(), "replica")),
            "Follow the findings about the replicas.",
        )
    } else if replicas.values().all(|seen| seen.iter().any(|replica| !replica.may_lead)) {
        Finding::warning(
            "replica",
            "No replica may replace the master, because replica-priority is 0 for each.",
            "Set replica-priority to 100 on at least one replica.",
        )
    } else {
        let count = replicas.len();
        Finding::fine(
            "replica",
            format!("{sound} of {} can replace the master.", counted(count, "replica")),
        )
    };
    probe.report(finding);
}
