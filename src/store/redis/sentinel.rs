//! Redis Sentinel: asks which server is the master, and detects when another server becomes the master.
//!
//! Sentinels learn of a failover one after another, and the view with the greatest configuration epoch is the
//! right one (Sentinel documentation, "Configuration epochs" and "Configuration propagation"). Therefore, the
//! store asks all Sentinels and uses the newest view. Even the Sentinel that leads a failover reports the
//! promoted replica up to a second late, and writes that the old master accepts until then are lost. The
//! store therefore asks the replica itself whether it is already a master.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ::redis::aio::PubSub;
use ::redis::{RedisConnectionInfo, Value, cmd};
use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::future::join;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::store::redis::connection::{FindMaster, SharedConnection, Target};
use crate::store::redis::dialing::{Server, Settings, open, unspoken};
use crate::store::redis::place::Place;
use crate::store::redis::reply::{field, role, text};

/// How long the store waits for the other Sentinels after the first one has answered: the first value applies
/// while commands are waiting for a connection, and the second otherwise.
const GRACE: Duration = Duration::from_millis(100);
const LONG_GRACE: Duration = Duration::from_millis(250);

/// How long a replica may take to say whether it has been promoted.
const ROLE_TIMEOUT: Duration = Duration::from_millis(100);

/// How often the Sentinels are asked if no event has arrived, because a subscription may be dead without an
/// error.
const REVIEW_INTERVAL: Duration = Duration::from_secs(1);

/// The shortest interval between two requests to the Sentinels, however many commands fail: the first value
/// applies while a replica is being promoted, and the second otherwise.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(20);
const SHORT_INTERVAL: Duration = Duration::from_millis(100);

/// How long a view remains valid if no Sentinel confirms it. Sentinels inform each other within seconds.
const MEMORY: Duration = Duration::from_secs(10);

/// How long a view remains valid if it names a promoted replica that no Sentinel reports as the master yet.
/// Such a view is confirmed within about a second, unless the Sentinel that leads the failover has died. In
/// that case, the other Sentinels undo the promotion.
const MEMORY_AHEAD: Duration = Duration::from_secs(2);

/// The events that Sentinels publish when another server becomes the master. Only the Sentinel that leads the
/// failover publishes the first two. Every Sentinel publishes the third, each at a different time.
const EVENTS: [&str; 3] = ["+selected-slave", "+promoted-slave", "+switch-master"];

/// The connection to the server that is currently the master.
pub(super) struct Master {
    pub(super) connection: Arc<SharedConnection>,
    sentinels: Arc<Sentinels>,
    tasks: Vec<AbortHandle>,
}

impl Master {
    /// `login` is for the Sentinels, `settings` for the master.
    pub(super) fn new(
        settings: &Settings,
        sentinels: Vec<Place>,
        login: RedisConnectionInfo,
        name: String,
    ) -> Self {
        let sentinel_settings = Settings { login, ..settings.clone() };
        let servers: Vec<Server> = sentinels.into_iter().map(Server::from).collect();
        let connect = |server: &Server| connect(&sentinel_settings, server.clone());
        let sentinels = Arc::new(Sentinels {
            name,
            connections: servers.iter().map(connect).collect(),
            settings: settings.clone(),
            state: Mutex::new(State::default()),
            suspicion: Notify::new(),
        });
        let finder: Arc<dyn FindMaster> = sentinels.clone();
        let connection = Arc::new(SharedConnection::new(settings.clone(), Target::Master(finder)));
        let mut tasks: Vec<_> = servers
            .into_iter()
            .map(|server| listen(sentinel_settings.clone(), server, Arc::clone(&sentinels)))
            .map(|task| tokio::spawn(task).abort_handle())
            .collect();
        let review = review(Arc::clone(&sentinels), Arc::downgrade(&connection));
        tasks.push(tokio::spawn(review).abort_handle());
        Self { connection, sentinels, tasks }
    }

    /// Returns the name under which the Sentinels watch the master.
    pub(super) fn name(&self) -> &str {
        &self.sentinels.name
    }

    /// Returns the connections to the Sentinels that the address names.
    pub(super) fn sentinels(&self) -> &[Arc<SharedConnection>] {
        &self.sentinels.connections
    }

    /// Creates a separate connection to one of the replicas.
    pub(super) fn replica(&self, place: Place) -> Arc<SharedConnection> {
        let target = Target::Server(place.into());
        Arc::new(SharedConnection::new(self.sentinels.settings.clone(), target))
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn connect(settings: &Settings, server: Server) -> Arc<SharedConnection> {
    Arc::new(SharedConnection::new(settings.clone(), Target::Sentinel(server)))
}

/// The Sentinels that watch a master.
struct Sentinels {
    /// The name of the master.
    name: String,
    connections: Vec<Arc<SharedConnection>>,
    /// The settings for the servers that the Sentinels watch.
    settings: Settings,
    state: Mutex<State>,
    /// Notified if another server may have become the master.
    suspicion: Notify,
}

#[derive(Default)]
struct State {
    /// The view in use, and when it was last received. An older view replaces it if every Sentinel has
    /// answered and none reports a newer one, or after a time without confirmation.
    newest: Option<(Instant, View)>,
    /// The server that was found last, and the time until which it is returned without asking again.
    found: Option<(Instant, Server)>,
    /// The replica that is being promoted.
    candidate: Option<(Place, Arc<SharedConnection>)>,
}

/// A Sentinel's view.
#[derive(Debug, Clone, PartialEq, Eq)]
struct View {
    age: Age,
    place: Place,
}

/// The age of a view. The greater of two ages belongs to the newer view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Age {
    epoch: u64,
    /// Whether the view names a promoted replica that the Sentinel does not yet report as the master.
    is_ahead: bool,
}

/// The result of asking all Sentinels.
struct Found {
    master: Result<Server, String>,
    /// Whether every Sentinel has answered, so that no newer view can be missing.
    is_complete: bool,
    /// Whether a replica is about to be promoted.
    is_changing: bool,
}

#[async_trait]
impl FindMaster for Sentinels {
    fn name(&self) -> &str {
        &self.name
    }

    async fn find(&self) -> Result<Server, String> {
        if let Some((until, found)) = &self.state().found
            && Instant::now() < *until
        {
            return Ok(found.clone());
        }
        self.ask_all(GRACE).await.master
    }

    fn suspect(&self) {
        self.suspicion.notify_one();
    }
}

impl Sentinels {
    async fn ask_all(&self, grace: Duration) -> Found {
        let begun = Instant::now();
        let mut answers: FuturesUnordered<_> =
            self.connections.iter().map(|sentinel| ask(sentinel, &self.name)).collect();
        let mut opinions = Vec::new();
        let mut is_unknown = false;
        let mut reasons: Vec<String> = Vec::new();
        let mut until = None;
        let is_complete = loop {
            let answer = match until {
                None => answers.next().await,
                Some(until) => match timeout_at(until, answers.next()).await {
                    Ok(answer) => answer,
                    Err(_) => break false,
                },
            };
            match answer {
                None => break reasons.is_empty(),
                Some(Ok(Some(opinion))) => {
                    opinions.push(opinion);
                    until = until.or_else(|| Some(Instant::now() + grace));
                }
                Some(Ok(None)) => is_unknown = true,
                Some(Err(reason)) if reasons.contains(&reason) => {}
                Some(Err(reason)) => reasons.push(reason),
            }
        };
        let promoted = opinions.iter().filter_map(Opinion::promoted).max_by_key(|view| view.age);
        let is_promoted = match &promoted {
            Some(view) => self.is_master(&view.place).await,
            None => Some(false),
        };
        let is_changing = promoted.is_some() && is_promoted != Some(true);
        let mut views: Vec<View> = opinions.into_iter().map(|opinion| opinion.view).collect();
        views.extend(promoted.filter(|_| is_promoted == Some(true)));
        let now = Instant::now();
        let mut state = self.state();
        let remembered = state.newest.take().filter(|(at, view)| {
            let memory = if view.age.is_ahead { MEMORY_AHEAD } else { MEMORY };
            now.duration_since(*at) < memory
        });
        // A view that was received while these answers were under way may be newer than they are.
        let is_complete = is_complete
            && is_promoted.is_some()
            && remembered.as_ref().is_none_or(|(at, _)| *at <= begun);
        let heard = newest_of(views).map(|view| (now, view));
        state.newest = believed(heard, remembered, is_complete);
        let master = match &state.newest {
            Some((_, view)) => Ok(view.place.clone().into()),
            None if is_unknown => Err("no Sentinel watches a master of this name".to_owned()),
            None => Err(format!("no Sentinel answered: {}", reasons.join("; "))),
        };
        let interval = if is_changing { SHORTEST_INTERVAL } else { SHORT_INTERVAL };
        state.found = master.clone().ok().map(|server| (now + interval, server));
        Found { master, is_complete, is_changing }
    }

    /// Returns whether a replica that is being promoted is already a master, or `None` if it does not answer
    /// in time.
    async fn is_master(&self, place: &Place) -> Option<bool> {
        let connection = {
            let mut state = self.state();
            match &state.candidate {
                Some((known, connection)) if known == place => Arc::clone(connection),
                _ => {
                    let target = Target::Server(place.clone().into());
                    let connection = Arc::new(SharedConnection::new(self.settings.clone(), target));
                    state.candidate = Some((place.clone(), Arc::clone(&connection)));
                    connection
                }
            }
        };
        match timeout(ROLE_TIMEOUT, connection.send(&cmd("ROLE"))).await {
            Ok(Ok(answer)) => role(&answer).map(|role| role == "master"),
            _ => None,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the newest view. If several views have the same age, returns the one that most Sentinels report.
fn newest_of(views: Vec<View>) -> Option<View> {
    let votes = |view: &View| views.iter().filter(|other| *other == view).count();
    views.iter().max_by_key(|view| (view.age, votes(view))).cloned()
}

/// Returns the view to use, and when it was received. A remembered view is used only if the answers may lack
/// the newest view, and if no view was heard or the remembered one is newer.
fn believed(
    heard: Option<(Instant, View)>,
    remembered: Option<(Instant, View)>,
    is_complete: bool,
) -> Option<(Instant, View)> {
    match (heard, remembered) {
        (Some(heard), Some(remembered)) if !is_complete && heard.1.age < remembered.1.age => {
            Some(remembered)
        }
        (None, remembered) if !is_complete => remembered,
        (heard, _) => heard,
    }
}

/// One Sentinel's answer.
#[derive(Debug, PartialEq, Eq)]
struct Opinion {
    view: View,
    /// The replica that the Sentinel has chosen as the next master.
    chosen: Option<Place>,
}

impl Opinion {
    /// Returns the view that will be right once the chosen replica is a master.
    fn promoted(&self) -> Option<View> {
        let place = self.chosen.clone()?;
        let age = Age { is_ahead: true, ..self.view.age };
        (place != self.view.place).then_some(View { age, place })
    }
}

/// Asks one Sentinel. Returns `Ok(None)` if it watches no master of that name.
async fn ask(sentinel: &Arc<SharedConnection>, name: &str) -> Result<Option<Opinion>, String> {
    let command = |verb: &str| cmd("SENTINEL").arg(verb).arg(name).take();
    let (master, address) = (command("MASTER"), command("GET-MASTER-ADDR-BY-NAME"));
    // The commands are sent in this order so that an epoch is never combined with an older address. During a
    // failover, `SENTINEL MASTER` returns the old address for longer than the second command.
    let (master, address) = join(sentinel.send(&master), sentinel.send(&address)).await;
    let place = match address.map_err(|failure| failure.to_string())? {
        Value::Nil => return Ok(None),
        Value::Array(parts) => match &parts[..] {
            [host, port] => place(Some(host), Some(port)),
            _ => None,
        },
        _ => None,
    };
    let place =
        place.ok_or_else(|| "a Sentinel gave an invalid address for the master".to_owned())?;
    // Without the epoch, this answer could not be compared in age with the other Sentinels' answers.
    let master = master.map_err(|failure| failure.to_string())?;
    let epoch = field(&master, "config-epoch").and_then(text).and_then(|epoch| epoch.parse().ok());
    let chosen = if has_flag(&master, "failover_in_progress") {
        chosen(&sentinel.send(&command("REPLICAS")).await.unwrap_or(Value::Nil))
    } else {
        None
    };
    let age = Age { epoch: epoch.unwrap_or(0), is_ahead: false };
    let view = View { age, place };
    Ok(Some(Opinion { view, chosen }))
}

/// Returns the replica that the Sentinel has chosen as the next master.
fn chosen(replicas: &Value) -> Option<Place> {
    let Value::Array(replicas) = replicas else { return None };
    let chosen = replicas.iter().find(|replica| has_flag(replica, "promoted"))?;
    place(field(chosen, "ip"), field(chosen, "port"))
}

pub(super) fn place(host: Option<&Value>, port: Option<&Value>) -> Option<Place> {
    let host = text(host?).filter(|host| !host.is_empty())?;
    Some(Place::tcp(host, text(port?)?.parse().ok()?))
}

fn has_flag(instance: &Value, flag: &str) -> bool {
    let flags = field(instance, "flags").and_then(text);
    flags.is_some_and(|flags| flags.split(',').any(|is| is == flag))
}

/// Watches for a new master, and discards the connection to a server that is no longer the master.
async fn review(sentinels: Arc<Sentinels>, connection: Weak<SharedConnection>) {
    let mut is_changing = false;
    let mut last_event: Option<Instant> = None;
    loop {
        if !is_changing {
            sentinels.state().candidate = None;
            if timeout(REVIEW_INTERVAL, sentinels.suspicion.notified()).await.is_ok() {
                last_event = Some(Instant::now());
            }
        }
        is_changing = false;
        if connection.upgrade().is_some_and(|connection| connection.is_connected()) {
            let found = sentinels.ask_all(LONG_GRACE).await;
            // The Sentinel that leads a failover may be among those that have not answered.
            let is_recent = last_event.is_some_and(|at| at.elapsed() < REVIEW_INTERVAL);
            is_changing = found.is_changing || (is_recent && !found.is_complete);
            if let (Ok(master), Some(connection)) = (found.master, connection.upgrade()) {
                connection.leave_unless_at(&master);
            }
        }
        sleep(SHORTEST_INTERVAL).await;
    }
}

/// Receives a Sentinel's events.
async fn listen(settings: Settings, sentinel: Server, sentinels: Arc<Sentinels>) {
    loop {
        if let Ok(Some(mut subscription)) =
            timeout(settings.connect_timeout, subscribe(&settings, &sentinel)).await
        {
            // A failover may have happened in the meantime.
            sentinels.suspect();
            let mut events = subscription.on_message();
            while events.next().await.is_some() {
                sentinels.suspect();
            }
        }
        sleep(REVIEW_INTERVAL).await;
    }
}

async fn subscribe(settings: &Settings, sentinel: &Server) -> Option<PubSub> {
    let stream = open(settings, sentinel, |_| ()).await.ok()?;
    let mut subscription = PubSub::new(&unspoken(settings), stream).await.ok()?;
    subscription.subscribe(&EVENTS).await.ok()?;
    Some(subscription)
}

#[cfg(test)]
mod tests {
    use ::redis::parse_redis_value;

    use super::*;

    fn view(epoch: u64, is_ahead: bool, host: &str) -> View {
        View { age: Age { epoch, is_ahead }, place: Place::tcp(host, 6379) }
    }

    #[tokio::test(start_paused = true)]
    async fn older_view_counts_only_if_all_sentinels_have_it() {
        let then = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        let now = Instant::now();
        let (old, new) = (view(1, false, "old"), view(2, false, "new"));
        for (said, remembered, is_complete, counts) in [
            (Some(&old), None, false, Some((now, &old))),
            (Some(&new), Some(&old), false, Some((now, &new))),
            // The view is confirmed.
            (Some(&new), Some(&new), false, Some((now, &new))),
            (Some(&old), Some(&new), false, Some((then, &new))),
            (Some(&old), Some(&new), true, Some((now, &old))),
            (None, Some(&new), false, Some((then, &new))),
            (None, Some(&new), true, None),
            (None, None, false, None),
        ] {
            let said = said.map(|view| (now, view.clone()));
            let remembered = remembered.map(|view| (then, view.clone()));
            let counts = counts.map(|(at, view)| (at, view.clone()));
            assert_eq!(believed(said, remembered, is_complete), counts);
        }
    }

    #[test]
    fn newest_view_counts_and_of_several_the_one_that_most_have() {
        let newest = |views: &[View]| newest_of(views.to_vec());
        let (old, ahead, new) = (view(1, false, "z"), view(1, true, "a"), view(2, false, "a"));
        assert_eq!(newest(&[]), None);
        assert_eq!(newest(&[ahead.clone(), old.clone()]), Some(ahead.clone()));
        assert_eq!(newest(&[old.clone(), new.clone(), ahead]), Some(new));
        let other = view(1, false, "a");
        for views in [[&old, &other, &other], [&other, &old, &other], [&other, &other, &old]] {
            assert_eq!(newest(&views.map(Clone::clone)), Some(other.clone()));
        }
    }

    #[test]
    fn chosen_replica_is_ahead_until_it_is_named() {
        let place = |host: &str| Place::tcp(host, 6379);
        let opinion = |chosen: Option<&str>| Opinion {
            view: view(3, false, "old"),
            chosen: chosen.map(place),
        };
        assert_eq!(opinion(Some("new")).promoted(), Some(view(3, true, "new")));
        assert_eq!(opinion(Some("old")).promoted(), None);
        assert_eq!(opinion(None).promoted(), None);
    }

    /// Checks fields in a list of names and values, and fields in a map.
    #[test]
    fn fields_are_found_by_either_version_of_the_protocol() {
        let fields = |ip: &str, flags: &str| {
            let pairs = ["ip", ip, "port", "6380", "flags", flags];
            pairs.map(|word| format!("${}\r\n{word}\r\n", word.len())).concat()
        };
        for header in ["*6", "%3"] {
            let replica = |ip: &str, flags: &str| format!("{header}\r\n{}", fields(ip, flags));
            let read = |text: String| parse_redis_value(text.as_bytes()).unwrap();
            let one = read(replica("h", "slave,promoted,disconnected"));
            assert_eq!(field(&one, "port").and_then(text), Some("6380"));
            assert_eq!(field(&one, "6380"), None);
            assert!(has_flag(&one, "slave") && has_flag(&one, "promoted"));
            assert!(!has_flag(&one, "promote") && !has_flag(&Value::Nil, "promoted"));
            for (ip, flags, expected) in [
                ("h", "slave,promoted", Some(Place::tcp("h", 6380))),
                ("h", "slave", None),
                ("", "promoted", None),
            ] {
                let replicas = format!("*2\r\n{}{}", replica("x", "slave"), replica(ip, flags));
                assert_eq!(chosen(&read(replicas)), expected, "{ip} {flags}");
            }
        }
        assert_eq!(chosen(&Value::Nil), None);
        let bytes = |text: &str| Value::BulkString(text.into());
        assert_eq!(place(Some(&bytes("h")), Some(&bytes("65536"))), None);
        assert_eq!(place(Some(&bytes("h")), None), None);
        assert_eq!(place(Some(&Value::BulkString(vec![0xff])), Some(&bytes("1"))), None);
    }
}
