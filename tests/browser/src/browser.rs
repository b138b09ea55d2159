//! A browser and its driver.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::http::Method;
use fantoccini::actions::{InputSource as _, KeyAction, KeyActions};
use fantoccini::cookies::Cookie;
use fantoccini::elements::Element;
use fantoccini::error::{CmdError, ErrorStatus};
use fantoccini::key::Key;
use fantoccini::wd::{Capabilities, WebDriverCompatibleCommand, WindowHandle};
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use url::{ParseError, Url};

use crate::process::Program;

/// The time limit for every browser operation.
const PATIENCE: Duration = Duration::from_secs(30);

/// A name and an address that no browser regards as its own machine.
pub(crate) const PLAIN_HOSTS: [&str; 2] = ["shop.test", "192.168.1.5"];

/// Names and addresses that browsers regard as their own machine.
pub(crate) const OWN_HOSTS: [&str; 5] =
    ["localhost", "app.localhost", "127.0.0.1", "127.0.0.2", "[::1]"];

/// An empty cookie jar.
pub(crate) const NO_COOKIES: [Value; 0] = [];

/// Whether the browser accepts cookies from a site that is embedded in a different site. Users can choose
/// this.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum ForeignCookies {
    Taken,
    /// Refused, unless they are partitioned.
    #[default]
    Refused,
}

/// A browser's settings, where they can differ from the defaults.
#[derive(Debug, Default)]
struct Setup {
    profile: Option<PathBuf>,
    foreign: ForeignCookies,
    runs_no_scripts: bool,
    /// The width and height of the screen, for a phone's browser.
    screen: Option<(u32, u32)>,
}

/// The test's own driver, whose browsers exit when it is dropped.
pub(crate) struct Driver {
    program: Program,
    port: u16,
    dir: PathBuf,
}

impl Driver {
    pub(crate) fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = format!("unsticky-browser-{}-{count}", std::process::id());
        let dir = std::env::temp_dir().join(dir);
        fs::create_dir_all(&dir).unwrap();
        let mut command = Command::new("chromedriver");
        // The browsers' profiles are in this directory too.
        command.arg("--port=0").env("TMPDIR", &dir);
        let program = Program::start(&mut command, "apt-get install chromium chromium-driver");
        let port = program.announces("ChromeDriver was started successfully on port ");
        let port = port.trim_end_matches('.').parse().unwrap();
        Self { program, port, dir }
    }

    /// Starts a browser with an empty profile.
    pub(crate) async fn browser(&self) -> Browser {
        self.launch(Setup::default()).await
    }

    pub(crate) async fn browser_with_foreign_cookies(&self, foreign: ForeignCookies) -> Browser {
        self.launch(Setup { foreign, ..Setup::default() }).await
    }

    /// Starts a browser with the profile that has this name, as the previous browser left it.
    pub(crate) async fn browser_with(&self, profile: &str) -> Browser {
        self.launch(Setup { profile: Some(self.dir.join(profile)), ..Setup::default() }).await
    }

    /// Starts a browser whose user has turned JavaScript off.
    pub(crate) async fn browser_without_scripts(&self) -> Browser {
        self.launch(Setup { runs_no_scripts: true, ..Setup::default() }).await
    }

    /// Starts a phone's browser with a screen of this size, in CSS pixels.
    pub(crate) async fn phone(&self, width: u32, height: u32) -> Browser {
        self.launch(Setup { screen: Some((width, height)), ..Setup::default() }).await
    }

    async fn launch(&self, setup: Setup) -> Browser {
        let mut arguments = vec![
            "--headless=new".to_owned(),
            "--disable-gpu".to_owned(),
            // Chromium does not run as root in a sandbox. In these tests, it loads only pages from our own
            // servers.
            "--no-sandbox".to_owned(),
            // Containers have little shared memory.
            "--disable-dev-shm-usage".to_owned(),
            // With a pipe, the browser exits when the driver exits for any reason.
            "--remote-debugging-pipe".to_owned(),
            "--no-proxy-server".to_owned(),
            "--window-size=900,700".to_owned(),
            // Every host name resolves to the loopback address, on which the servers listen.
            "--host-resolver-rules=MAP * 127.0.0.1".to_owned(),
        ];
        if let Some(profile) = setup.profile {
            arguments.push(format!("--user-data-dir={}", profile.display()));
        }
        let refuses = setup.foreign == ForeignCookies::Refused;
        // In this setting, 1 allows scripts and 2 blocks them.
        let scripts = 1 + u8::from(setup.runs_no_scripts);
        let preferences = json!({
            "profile.cookie_controls_mode": u8::from(refuses),
            "profile.managed_default_content_settings.javascript": scripts,
        });
        let mut options = json!({ "args": arguments, "prefs": preferences });
        if let Some((width, height)) = setup.screen {
            let screen = json!({ "width": width, "height": height, "pixelRatio": 1.0 });
            options["mobileEmulation"] = json!({ "deviceMetrics": screen });
        }
        let capabilities = json!({
            "goog:chromeOptions": options,
            "timeouts": { "implicit": 0, "pageLoad": 15_000, "script": 15_000 },
        });
        let Value::Object(capabilities) = capabilities else { unreachable!() };
        let capabilities = Capabilities::from_iter(capabilities);
        let address = format!("http://127.0.0.1:{}", self.port);
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities(capabilities);
        match tokio::time::timeout(PATIENCE, builder.connect(&address)).await {
            Ok(Ok(client)) => Browser { client },
            Ok(Err(error)) => panic!(
                "chromium did not start: {error}; install chromium and chromium-driver in the same \
                 version"
            ),
            Err(_) => panic!("chromium did not start within {PATIENCE:?}"),
        }
    }

    /// Makes the driver close its browsers and then exit.
    fn shut_down(&mut self) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /shutdown HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        // The first byte of the response shows that the shutdown has begun.
        stream.read_exact(&mut [0])?;
        self.program.wait(Duration::from_secs(5));
        Ok(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // If this fails, dropping the program kills it.
        let _ = self.shut_down();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

pub(crate) struct Browser {
    client: Client,
}

impl Browser {
    pub(crate) async fn open(&self, address: &str) {
        within(address, self.client.goto(address)).await;
    }

    pub(crate) async fn back(&self) {
        within("back", self.client.back()).await;
    }

    /// Returns the element's text.
    pub(crate) async fn text(&self, selector: &str) -> String {
        within(selector, self.find(selector).await.text()).await
    }

    /// Returns how many elements on the page match the selector.
    pub(crate) async fn count(&self, selector: &str) -> usize {
        within(selector, self.client.find_all(Locator::Css(selector))).await.len()
    }

    pub(crate) async fn fill(&self, selector: &str, text: &str) {
        within(selector, self.find(selector).await.send_keys(text)).await;
    }

    /// Returns the page's path and query.
    pub(crate) async fn address(&self) -> String {
        let address = within("address", self.client.current_url()).await;
        let query = address.query().map(|query| format!("?{query}")).unwrap_or_default();
        format!("{}{query}", address.path())
    }

    pub(crate) async fn reload(&self) {
        within("reload", self.client.refresh()).await;
    }

    /// Clicks the element, and waits until the browser shows a new page.
    pub(crate) async fn press(&self, selector: &str) {
        let element = self.find(selector).await;
        within(selector, element.click()).await;
        within(selector, left(&element)).await;
    }

    /// Types on the keyboard, wherever the focus is.
    pub(crate) async fn keys(&self, text: &str) {
        let keys = text.chars().fold(KeyActions::new("keyboard".to_owned()), |keys, value| {
            keys.then(KeyAction::Down { value }).then(KeyAction::Up { value })
        });
        within(text, self.client.perform_actions(keys)).await;
    }

    /// Moves the focus to this element with the Tab key, and asserts that the focus is always visible.
    pub(crate) async fn tab_to(&self, selector: &str) {
        for _ in 0..30 {
            self.keys(&Key::Tab).await;
            let focus = self.script(
                "const { activeElement: it } = document, style = getComputedStyle(it); \
                 const isSeen = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2; \
                 return { isThere: it.matches(arguments[0]), isSeen: it === document.body || isSeen }",
                vec![selector.into()],
            );
            let focus = focus.await;
            assert_eq!(focus["isSeen"], true, "invisible focus on the way to {selector}");
            if focus["isThere"] == true {
                return;
            }
        }
        panic!("{selector} cannot be reached with the Tab key");
    }

    /// Presses the Enter key, and waits until the browser shows a new page.
    pub(crate) async fn enter(&self) {
        let focused = within("focus", self.client.active_element()).await;
        self.keys(&Key::Enter).await;
        within("enter", left(&focused)).await;
    }

    /// Runs a script on the page, and returns its result or the result of its promise.
    pub(crate) async fn script(&self, script: &str, arguments: Vec<Value>) -> Value {
        within("script", self.client.execute(script, arguments)).await
    }

    /// Opens a new tab and switches to it. Returns the handle of the previous tab.
    pub(crate) async fn new_tab(&self) -> WindowHandle {
        let before = within("tab", self.client.window()).await;
        let tab = within("tab", self.client.new_window(true)).await;
        self.go_to_tab(tab.handle).await;
        before
    }

    pub(crate) async fn go_to_tab(&self, tab: WindowHandle) {
        within("tab", self.client.switch_to_window(tab)).await;
    }

    async fn find(&self, selector: &str) -> Element {
        let wait = self.client.wait().at_most(PATIENCE / 2).every(Duration::from_millis(10));
        within(selector, wait.for_element(Locator::Css(selector))).await
    }

    /// Switches to the page's frame.
    pub(crate) async fn enter_frame(&self) {
        within("frame", self.find("iframe").await.enter_frame()).await;
    }

    /// Returns the cookies that the browser sends to this page.
    pub(crate) async fn cookies(&self) -> Vec<Cookie<'static>> {
        within("cookies", self.client.get_all_cookies()).await
    }

    /// Returns the only cookie that the browser sends to this page.
    pub(crate) async fn cookie(&self) -> Cookie<'static> {
        let mut cookies = self.cookies().await;
        assert_eq!(cookies.len(), 1, "{cookies:?}");
        cookies.remove(0)
    }

    pub(crate) async fn add_cookie(&self, cookie: Cookie<'static>) {
        within("cookie", self.client.add_cookie(cookie)).await;
    }

    /// Returns all of the browser's cookies, for every site and partition.
    pub(crate) async fn jar(&self) -> Vec<Value> {
        let command = Devtools { method: "Storage.getCookies" };
        let answer = within("jar", self.client.issue_cmd(command)).await;
        answer["cookies"].as_array().unwrap().clone()
    }

    /// Returns the cookies that scripts on the page can read.
    pub(crate) async fn cookies_for_scripts(&self) -> String {
        self.script("return document.cookie", Vec::new()).await.as_str().unwrap().to_owned()
    }

    /// Saves a screenshot of the page in `target/tmp`.
    pub(crate) async fn picture(&self, name: &str) {
        let picture = within("picture", self.client.screenshot()).await;
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.png"));
        fs::write(path, picture).unwrap();
    }

    /// Closes the browser as a user does.
    pub(crate) async fn quit(self) {
        within("quit", self.client.close()).await;
    }
}

/// Returns the browser's answer. Panics if the operation fails or takes too long.
async fn within<T>(what: &str, answer: impl Future<Output = Result<T, CmdError>>) -> T {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => panic!("{what}: {error}"),
        Err(_) => panic!("{what}: no answer within {PATIENCE:?}"),
    }
}

/// Waits until the element's page has been replaced.
async fn left(element: &Element) -> Result<(), CmdError> {
    while !is_stale(element.tag_name().await)? {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Returns whether the element's page has been replaced.
fn is_stale<T>(asked: Result<T, CmdError>) -> Result<bool, CmdError> {
    match asked {
        Ok(_) => Ok(false),
        Err(CmdError::Standard(error)) => match error.error {
            ErrorStatus::StaleElementReference | ErrorStatus::NoSuchElement => Ok(true),
            // The driver gives this answer while the browser changes from one page to another.
            ErrorStatus::UnknownError => Ok(false),
            _ => Err(CmdError::Standard(error)),
        },
        Err(error) => Err(error),
    }
}

/// A DevTools protocol command without parameters.
#[derive(Debug)]
struct Devtools {
    method: &'static str,
}

impl WebDriverCompatibleCommand for Devtools {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, ParseError> {
        base.join(&format!("session/{}/goog/cdp/execute", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        let body = json!({ "cmd": self.method, "params": {} });
        (Method::POST, Some(body.to_string()))
    }
}
