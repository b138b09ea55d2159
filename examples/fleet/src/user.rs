//! A simulated user: a browser with a cookie jar, which remembers the responses so far.
//!
//! A user may expect the following:
//!
//! - If the request to add an article succeeded, the article is in the cart from then on, exactly once.
//! - If the request got no response, or an error, the article may or may not be in the cart. After a 503, the
//!   user sends the request again until the response is different. The article may then be in the cart as
//!   often as it was requested, but not more often.
//! - If the sign-in succeeded, the user is signed in until they sign out, and the earlier cookie is invalid.
//! - If the sign-in got no response, or a 503, the cookie in the browser may be invalid. The user signs in
//!   again. The new session may then lack the items from the earlier session.
//! - If the sign-out succeeded, the old cookie is invalid in every process. If it got no response, or a 503,
//!   the user may or may not be signed out, and signs out again.
//! - A page that shows the cart shows the correct cart or a 503, but never an empty cart in place of a full
//!   one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::cookie::{CookieStore as _, Jar};
use reqwest::header::{COOKIE, HeaderMap, HeaderValue, RETRY_AFTER, SET_COOKIE};
use reqwest::{Client, Url, redirect};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use crate::balancer::{Balancer, Instance};
use crate::tally::{Loss, Tally};
use crate::{GRACE, Result};

/// The connections, which all users share. They do not share cookies.
#[derive(Debug)]
pub(crate) struct Network {
    client: Client,
    requests: Semaphore,
}

impl Network {
    /// The number of requests that run at the same time. It stays below the usual limit on open files.
    const REQUESTS: usize = 128;

    pub(crate) fn new() -> Result<Self> {
        let client = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .timeout(Duration::from_secs(5))
            .pool_max_idle_per_host(16)
            // The client closes idle connections before the server does. Otherwise, the server might close a
            // connection while a request is on its way.
            .pool_idle_timeout(Duration::from_secs(2))
            .build()?;
        Ok(Self { client, requests: Semaphore::new(Self::REQUESTS) })
    }
}

#[derive(Debug)]
pub(crate) struct User {
    number: usize,
    network: Arc<Network>,
    balancer: Arc<Balancer>,
    tally: Arc<Tally>,
    until: Instant,
    scenario: u32,
    items_made: u32,
    site: Option<Url>,
    jar: Jar,
    expected: Expected,
    /// The start of the first request that failed since the last success.
    without: Mutex<Option<Instant>>,
}

/// What the cart must show next.
#[derive(Debug, Default)]
struct Expected {
    signed_in: Option<String>,
    items: HashMap<String, Copies>,
}

/// How often an article may be in the cart. A request is sent again until there is a response, so an article
/// that was requested several times may correctly be in the cart several times.
#[derive(Debug, Default)]
struct Copies {
    at_least: usize,
    at_most: usize,
    /// Whether the article was reported as lost. It is reported once, and not checked afterwards.
    lost: bool,
}

/// The response to `GET /cart.json`.
#[derive(Debug, Deserialize)]
struct Cart {
    signed_in: Option<String>,
    items: Vec<String>,
    served_by: u32,
}

#[derive(Debug)]
struct Request<'a> {
    path: &'static str,
    form: Option<(&'static str, &'a str)>,
    cookie: CookieOf<'a>,
}

#[derive(Debug)]
enum CookieOf<'a> {
    Jar,
    Past(&'a HeaderValue),
}

/// The result of a request.
#[derive(Debug)]
enum Sent {
    Answered {
        status: u16,
        body: Vec<u8>,
    },
    /// A 503: the request is sent again after this time. The change may or may not have been made.
    Later(Duration),
    Unanswered,
    /// The connection was refused, so the process did not receive the request.
    Refused,
}

/// The result of a request that changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrote {
    Yes,
    Maybe,
    /// The change may have been made. The response says when to send the request again.
    Later(Duration),
}

/// Why a scenario ended early.
#[derive(Debug)]
enum Stop {
    TimeIsUp,
    StartOver,
    /// There was no successful response before the end, so the state that the user should see is unknown.
    GiveUp,
}

impl User {
    pub(crate) fn new(
        number: usize,
        network: Arc<Network>,
        balancer: Arc<Balancer>,
        tally: Arc<Tally>,
        until: Instant,
    ) -> Self {
        Self {
            number,
            network,
            balancer,
            tally,
            until,
            scenario: 0,
            items_made: 0,
            // Cookies ignore the port, so all processes are one site to the browser.
            site: Url::parse("http://127.0.0.1/").ok(),
            jar: Jar::default(),
            expected: Expected::default(),
            without: Mutex::default(),
        }
    }

    /// Runs one scenario after the other until the time is up.
    pub(crate) async fn shop(mut self) {
        // The users do not all start at the same time.
        sleep(Duration::from_millis(fastrand::u64(..500))).await;
        loop {
            self.scenario += 1;
            self.jar = Jar::default();
            self.expected = Expected::default();
            match self.scenario().await {
                Ok(()) => self.tally.counts().scenarios += 1,
                Err(Stop::StartOver) => {}
                Err(Stop::GiveUp) => return self.give_up(),
                Err(Stop::TimeIsUp) => {
                    // Everything that was confirmed must still be there.
                    if let Err(Stop::GiveUp) = self.check().await {
                        self.give_up();
                    }
                    return;
                }
            }
        }
    }

    fn give_up(&self) {
        self.tally.lost(Loss::NoAnswer, 1, || {
            format!("user {} in scenario {}: no successful answer", self.number, self.scenario)
        });
    }

    async fn scenario(&mut self) -> Result<(), Stop> {
        self.visit().await?;
        for _ in 0..fastrand::u32(1..=3) {
            self.add().await?;
        }
        if fastrand::bool() {
            self.check().await?;
        }
        self.think().await?;
        self.sign_in().await?;
        for _ in 0..fastrand::u32(2..=6) {
            match fastrand::bool() {
                true => self.add_two_at_once().await?,
                false => self.add().await?,
            }
            self.think().await?;
            self.check().await?;
        }
        // The rest of the users leave without signing out, and their sessions expire.
        if fastrand::u8(..10) < 7 {
            self.think().await?;
            self.sign_out().await?;
        }
        Ok(())
    }

    async fn visit(&mut self) -> Result<(), Stop> {
        self.think().await?;
        let request = Request { path: "/", form: None, cookie: CookieOf::Jar };
        self.read(&request).await?;
        Ok(())
    }

    async fn add(&mut self) -> Result<(), Stop> {
        self.think().await?;
        let item = self.new_item();
        self.put(&item).await
    }

    /// Requests an article. Repeats the request as long as the response is a 503.
    async fn put(&mut self, item: &str) -> Result<(), Stop> {
        loop {
            let wrote = self.write("/cart", ("item", item)).await?;
            self.expect(item, wrote);
            match wrote {
                Wrote::Yes | Wrote::Maybe => return Ok(()),
                Wrote::Later(wait) => self.pause(wait).await?,
            }
        }
    }

    /// Sends two requests to two processes at the same time. Neither may undo the other's change.
    async fn add_two_at_once(&mut self) -> Result<(), Stop> {
        self.think().await?;
        let Some([one, other]) = self.balancer.pick_two() else { return Ok(()) };
        let items = [self.new_item(), self.new_item()];
        let [first, second] = items.each_ref().map(|item| Request {
            path: "/cart",
            form: Some(("item", item)),
            cookie: CookieOf::Jar,
        });
        let wrote = tokio::join!(self.send(&one, &first), self.send(&other, &second));
        let wrote = [wrote.0, wrote.1].map(|sent| self.written(&sent));
        for (item, wrote) in items.iter().zip(wrote) {
            if let Some(wrote) = wrote {
                self.expect(item, wrote);
            }
        }
        for (item, wrote) in items.iter().zip(wrote) {
            if let Some(Wrote::Later(wait)) = wrote {
                self.pause(wait).await?;
                self.put(item).await?;
            }
        }
        Ok(())
    }

    async fn sign_in(&mut self) -> Result<(), Stop> {
        let name = format!("user-{}-{}", self.number, self.scenario);
        let before = self.cookie();
        let is_first = self.insist("/sign-in", ("name", &name)).await?;
        self.expected.signed_in = Some(name);
        {
            let mut counts = self.tally.counts();
            counts.sign_ins += 1;
            counts.signed_in.insert(self.number);
        }
        // An earlier attempt may have moved the cart to a session whose cookie never reached the browser.
        let put_before = if is_first { Vec::new() } else { self.expect_no_items() };
        if let Some(before) = before {
            self.check_is_invalid(&before, Loss::AliveAfterSignIn).await?;
        }
        self.check().await?;
        let left_behind = put_before.into_iter().map(|(item, copies)| {
            let now = self.expected.items.get(&item).map_or(0, |now| now.at_least);
            copies.saturating_sub(now) as u64
        });
        let left_behind: u64 = left_behind.sum();
        self.tally.counts().items_left_behind += left_behind;
        Ok(())
    }

    /// Stops expecting the items in the cart until they are seen there again. Returns those items.
    fn expect_no_items(&mut self) -> Vec<(String, usize)> {
        let mut put_before = Vec::new();
        for (item, copies) in &mut self.expected.items {
            put_before.push((item.clone(), std::mem::take(&mut copies.at_least)));
        }
        let count: usize = put_before.iter().map(|(_, copies)| copies).sum();
        let mut counts = self.tally.counts();
        counts.sign_ins_repeated += 1;
        counts.items -= count as u64;
        put_before
    }

    async fn sign_out(&mut self) -> Result<(), Stop> {
        let before = self.cookie();
        self.insist("/sign-out", ("", "")).await?;
        self.expected = Expected::default();
        self.tally.counts().sign_outs += 1;
        match before {
            Some(before) => self.check_is_invalid(&before, Loss::AliveAfterSignOut).await,
            None => Ok(()),
        }
    }

    /// Compares the cart with what the user expects.
    async fn check(&mut self) -> Result<(), Stop> {
        let request = Request { path: "/cart.json", form: None, cookie: CookieOf::Jar };
        let cart = self.read_cart(&request).await?;
        let who = format!("user {} in scenario {}", self.number, self.scenario);
        let Cart { signed_in, items, served_by } = cart;
        if signed_in != self.expected.signed_in {
            let expected = &self.expected.signed_in;
            let loss = if signed_in.is_none() { Loss::SignedOut } else { Loss::MixedUp };
            if loss == Loss::SignedOut {
                self.tally.counts().signed_out.insert(self.number);
            }
            self.tally.lost(loss, 1, || {
                format!("{who}: {signed_in:?} instead of {expected:?}, by process {served_by}")
            });
            return Err(Stop::StartOver);
        }
        let mut seen = HashMap::<&str, usize>::new();
        for item in &items {
            *seen.entry(item).or_default() += 1;
        }
        for (item, copies) in &mut self.expected.items {
            let seen = seen.remove(&**item).unwrap_or_default();
            let Copies { at_least, at_most, lost } = *copies;
            self.tally.lost(Loss::Doubled, seen.saturating_sub(at_most), || {
                format!("{who}: {seen} of {item}, {at_most} at most, by process {served_by}")
            });
            self.tally.lost(Loss::Item, at_least.saturating_sub(seen), || {
                format!(
                    "{who}: {seen} of {item}, {at_least} at least, in {items:?}, by process \
                     {served_by}"
                )
            });
            // An item that has been seen must stay. A lost or doubled item is reported once.
            let lost = lost || seen < at_least;
            let confirmed = if lost { 0 } else { seen.min(at_most) };
            self.tally.counts().items += confirmed.saturating_sub(at_least) as u64;
            *copies = Copies { at_least: confirmed, at_most: at_most.max(seen), lost };
        }
        let strange: Vec<_> = seen.into_keys().collect();
        self.tally.lost(Loss::MixedUp, strange.len(), || {
            format!("{who}: {strange:?} of another user, by process {served_by}")
        });
        Ok(())
    }

    /// Sends an earlier cookie to a random process. Reports a loss if the cookie is still valid.
    async fn check_is_invalid(&self, past: &HeaderValue, loss: Loss) -> Result<(), Stop> {
        let request = Request { path: "/cart.json", form: None, cookie: CookieOf::Past(past) };
        let cart = self.read_cart(&request).await?;
        let is_alive = cart.signed_in.is_some() || !cart.items.is_empty();
        self.tally.lost(loss, is_alive.into(), || {
            format!("user {} in scenario {}: still {cart:?}", self.number, self.scenario)
        });
        Ok(())
    }

    fn new_item(&mut self) -> String {
        self.items_made += 1;
        format!("item-{}-{}", self.number, self.items_made)
    }

    fn expect(&mut self, item: &str, wrote: Wrote) {
        let copies = self.expected.items.entry(item.to_owned()).or_default();
        copies.at_most += 1;
        if wrote == Wrote::Yes {
            copies.at_least += 1;
            self.tally.counts().items += 1;
        }
    }

    fn cookie(&self) -> Option<HeaderValue> {
        self.jar.cookies(self.site.as_ref()?)
    }

    /// Waits as long as a user takes to click. Ends the scenario when the time is up.
    async fn think(&self) -> Result<(), Stop> {
        sleep(Duration::from_millis(fastrand::u64(40..160))).await;
        if Instant::now() < self.until { Ok(()) } else { Err(Stop::TimeIsUp) }
    }

    /// Waits before a request is sent again. Gives up at the end of the grace period.
    async fn pause(&self, wait: Duration) -> Result<(), Stop> {
        sleep(wait).await;
        if Instant::now() < self.until + GRACE { Ok(()) } else { Err(Stop::GiveUp) }
    }

    async fn read_cart(&self, request: &Request<'_>) -> Result<Cart, Stop> {
        loop {
            match serde_json::from_slice(&self.read(request).await?) {
                Ok(cart) => return Ok(cart),
                Err(_) => self.tally.error("unreadable cart"),
            }
            self.pause(soon()).await?;
        }
    }

    /// Sends the request to random processes until one responds with 200.
    async fn read(&self, request: &Request<'_>) -> Result<Vec<u8>, Stop> {
        loop {
            let mut wait = soon();
            if let Some(process) = self.balancer.pick() {
                match self.send(&process, request).await {
                    Sent::Answered { status: 200, body } => return Ok(body),
                    Sent::Answered { status, .. } => self.tally.error(status.to_string()),
                    Sent::Later(after) => wait = after,
                    Sent::Unanswered | Sent::Refused => {}
                }
            }
            self.pause(wait).await?;
        }
    }

    /// Sends the request to random processes until one of them may have received it.
    async fn write(&self, path: &'static str, field: (&'static str, &str)) -> Result<Wrote, Stop> {
        let request = Request { path, form: Some(field), cookie: CookieOf::Jar };
        loop {
            if let Some(process) = self.balancer.pick() {
                let sent = self.send(&process, &request).await;
                if let Some(wrote) = self.written(&sent) {
                    return Ok(wrote);
                }
            }
            self.pause(soon()).await?;
        }
    }

    /// Sends the request until it succeeds. Returns whether the first attempt succeeded.
    async fn insist(&self, path: &'static str, field: (&'static str, &str)) -> Result<bool, Stop> {
        let mut is_first = true;
        loop {
            let wait = match self.write(path, field).await? {
                Wrote::Yes => return Ok(is_first),
                Wrote::Maybe => soon(),
                Wrote::Later(wait) => wait,
            };
            is_first = false;
            self.pause(wait).await?;
        }
    }

    /// Returns what the user knows about the change, or `None` if it is certain that nothing was written.
    fn written(&self, sent: &Sent) -> Option<Wrote> {
        match sent {
            Sent::Answered { status: 303, .. } => Some(Wrote::Yes),
            Sent::Answered { status, body } => {
                self.tally.error(format!("{status} {}", String::from_utf8_lossy(body)));
                Some(Wrote::Maybe)
            }
            Sent::Later(wait) => Some(Wrote::Later(*wait)),
            Sent::Unanswered => Some(Wrote::Maybe),
            Sent::Refused => None,
        }
    }

    async fn send(&self, process: &Instance, request: &Request<'_>) -> Sent {
        // The semaphore is never closed. The wait for a permit does not count as response time.
        let _permit = self.network.requests.acquire().await;
        let started = Instant::now();
        let sent = self.send_now(process, request, started).await;
        let is_good = matches!(sent, Sent::Answered { status: 200..400, .. });
        let mut without = self.without.lock().unwrap_or_else(PoisonError::into_inner);
        match is_good {
            true => {
                if let Some(since) = without.take() {
                    self.tally.user_was_without(since.elapsed());
                }
            }
            false => {
                without.get_or_insert(started);
            }
        }
        sent
    }

    async fn send_now(&self, process: &Instance, request: &Request<'_>, started: Instant) -> Sent {
        let url = format!("http://{}{}", process.address, request.path);
        let mut builder = match &request.form {
            Some(field) => self.network.client.post(url).form(&[field]),
            None => self.network.client.get(url),
        };
        let cookie = match request.cookie {
            CookieOf::Jar => self.cookie(),
            CookieOf::Past(cookie) => Some(cookie.clone()),
        };
        if let Some(cookie) = cookie {
            builder = builder.header(COOKIE, cookie);
        }
        let response = match builder.send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() => return Sent::Refused,
            Err(error) => return self.unanswered(process, &error),
        };
        let status = response.status().as_u16();
        let later = (status == 503).then(|| self.later(response.headers()));
        if let (CookieOf::Jar, Some(site)) = (&request.cookie, &self.site) {
            // Like a browser, it stores the cookies before it reads the body.
            let mut cookies = response.headers().get_all(SET_COOKIE).iter();
            self.jar.set_cookies(&mut cookies, site);
        }
        match response.bytes().await {
            Ok(body) => {
                process.count_request();
                self.tally.answered(started.elapsed());
                match later {
                    Some(wait) => {
                        self.tally.later(&body);
                        Sent::Later(wait)
                    }
                    None => Sent::Answered { status, body: body.into() },
                }
            }
            Err(error) => self.unanswered(process, &error),
        }
    }

    /// Returns how long to wait before the request is sent again: about a tenth of the time in `Retry-After`,
    /// with a random variation so that the users do not all return at the same time.
    fn later(&self, headers: &HeaderMap) -> Duration {
        let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        if seconds.is_none() {
            self.tally.error("503 without Retry-After");
        }
        Duration::from_millis(seconds.unwrap_or(1).min(60) * fastrand::u64(75..125))
    }

    fn unanswered(&self, process: &Instance, error: &reqwest::Error) -> Sent {
        process.count_request();
        let reason = if error.is_timeout() { "timeout" } else { "connection lost" };
        self.tally.unanswered(process.was_killed(), reason);
        Sent::Unanswered
    }
}

/// Returns the time that a user takes to click again.
fn soon() -> Duration {
    Duration::from_millis(fastrand::u64(20..100))
}
