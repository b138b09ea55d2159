//! Redis Sentinel: asks which server is the master, and notices when another one becomes it.
//!
//! Sentinels learn of a failover one after the other, and the greater configuration epoch is right
//! (Sentinel documentation, "Configuration epochs" and "Configuration propagation"). So all of them are
//! asked, and the address with the greatest epoch counts.

use std::sync::{Arc, Weak};
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

use crate::store::redis::connection::{Failure, FindMaster, SharedConnection, Target};
use crate::store::redis::dialing::{Server, Settings, open, unspoken};
use crate::store::redis::place::Place;

/// How long the other Sentinels may take after the first one has answered.
const GRACE: Duration = Duration::from_millis(50);

/// How often the Sentinels are asked although nothing seems to have happened: a subscription may be
/// dead without anybody noticing.
const REVIEW_INTERVAL: Duration = Duration::from_secs(1);

/// However many commands fail, the Sentinels are asked no more often than this.
const SHORTEST_REVIEW_INTERVAL: Duration = Duration::from_millis(20);

/// What a Sentinel publishes when another server becomes the master: first the one that has promoted it,
/// then all of them.
const EVENTS: [&str; 2] = ["+promoted-slave", "+switch-master"];

/// The connection to whichever server is the master.
pub(super) struct Master {
    pub(super) connection: Arc<SharedConnection>,
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
        let sentinels = Arc::new(Sentinels {
            name,
            connections: servers
                .iter()
                .map(|server| {
                    let target = Target::Server(server.clone());
                    Arc::new(SharedConnection::new(sentinel_settings.clone(), target))
                })
                .collect(),
            suspicion: Notify::new(),
        });
        let finder: Arc<dyn FindMaster> = sentinels.clone();
        let connection = Arc::new(SharedConnection::new(settings.clone(), Target::Master(finder)));
        let mut tasks: Vec<_> = servers
            .into_iter()
            .map(|server| listen(sentinel_settings.clone(), server, Arc::clone(&sentinels)))
            .map(|task| tokio::spawn(task).abort_handle())
            .collect();
        let review = review(sentinels, Arc::downgrade(&connection));
        tasks.push(tokio::spawn(review).abort_handle());
        Self { connection, tasks }
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

struct Sentinels {
    /// Of the master.
    name: String,
    connections: Vec<Arc<SharedConnection>>,
    /// The master may be another server by now.
    suspicion: Notify,
}

#[async_trait]
impl FindMaster for Sentinels {
    fn name(&self) -> &str {
        &self.name
    }

    async fn find(&self) -> Result<Server, String> {
        let mut answers: FuturesUnordered<_> =
            self.connections.iter().map(|sentinel| ask(sentinel, &self.name)).collect();
        let mut newest: Option<View> = None;
        let mut is_unknown = false;
        let mut reasons: Vec<String> = Vec::new();
        let mut until = None;
        loop {
            let answer = match until {
                None => answers.next().await,
                Some(until) => timeout_at(until, answers.next()).await.unwrap_or(None),
            };
            match answer {
                None => break,
                Some(Ok(Some(view))) => {
                    if newest.as_ref().is_none_or(|newest| newest.epoch < view.epoch) {
                        newest = Some(view);
                    }
                    until = until.or_else(|| Some(Instant::now() + GRACE));
                }
                Some(Ok(None)) => is_unknown = true,
                Some(Err(reason)) if reasons.contains(&reason) => {}
                Some(Err(reason)) => reasons.push(reason),
            }
        }
        match newest {
            Some(view) => Ok(view.place.into()),
            None if is_unknown => Err("no Sentinel watches a master of this name".to_owned()),
            None => Err(format!("no Sentinel answered: {}", reasons.join("; "))),
        }
    }

    fn suspect(&self) {
        self.suspicion.notify_one();
    }
}

/// What a Sentinel knows.
#[derive(Debug, PartialEq, Eq)]
struct View {
    epoch: u64,
    place: Place,
}

/// Asks one Sentinel; `Ok(None)` where it watches no such master.
async fn ask(sentinel: &Arc<SharedConnection>, name: &str) -> Result<Option<View>, String> {
    let (mut master, mut address) = (cmd("SENTINEL"), cmd("SENTINEL"));
    master.arg("MASTER").arg(name);
    address.arg("GET-MASTER-ADDR-BY-NAME").arg(name);
    // In this order, so that an epoch never stands with an address that is older. The first one names
    // the old address for longer during a failover.
    let (master, address) = join(sentinel.send(&master), sentinel.send(&address)).await;
    match address.map_err(text_of)? {
        Value::Nil => Ok(None),
        Value::Array(parts) => {
            let place = match &parts[..] {
                [host, port] => place(host, port),
                _ => None,
            };
            let epoch = master.ok().and_then(|master| epoch(&master)).unwrap_or(0);
            let view = place.map(|place| View { epoch, place });
            view.map(Some).ok_or_else(|| "a Sentinel gave a strange address".to_owned())
        }
        _ => Err("a Sentinel gave a strange answer".to_owned()),
    }
}

fn text_of(failure: Failure) -> String {
    match failure {
        Failure::NotSent(reason) | Failure::Lost(reason) => reason,
        Failure::Answered(answer) => answer.to_string(),
    }
}

fn place(host: &Value, port: &Value) -> Option<Place> {
    let (Value::BulkString(host), Value::BulkString(port)) = (host, port) else { return None };
    let host = std::str::from_utf8(host).ok().filter(|host| !host.is_empty())?;
    Some(Place::tcp(host, std::str::from_utf8(port).ok()?.parse().ok()?))
}

/// The field `config-epoch` of a master.
fn epoch(master: &Value) -> Option<u64> {
    let is_epoch = |name: &Value| *name == Value::BulkString(b"config-epoch".to_vec());
    let value = match master {
        Value::Array(fields) => fields.chunks_exact(2).find(|pair| is_epoch(&pair[0]))?.get(1)?,
        Value::Map(fields) => &fields.iter().find(|(name, _)| is_epoch(name))?.1,
        _ => return None,
    };
    let Value::BulkString(value) = value else { return None };
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Leaves a server that is the master no longer.
async fn review(sentinels: Arc<Sentinels>, connection: Weak<SharedConnection>) {
    loop {
        let _ = timeout(REVIEW_INTERVAL, sentinels.suspicion.notified()).await;
        let is_connected = connection.upgrade().is_some_and(|connection| connection.is_connected());
        if is_connected
            && let Ok(master) = sentinels.find().await
            && let Some(connection) = connection.upgrade()
        {
            connection.leave_unless_at(&master);
        }
        sleep(SHORTEST_REVIEW_INTERVAL).await;
    }
}

/// Hears of failovers from a Sentinel.
async fn listen(settings: Settings, sentinel: Server, sentinels: Arc<Sentinels>) {
    loop {
        if let Ok(Some(mut subscription)) =
            timeout(settings.connect_timeout, subscribe(&settings, &sentinel)).await
        {
            // Something may have happened meanwhile.
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
