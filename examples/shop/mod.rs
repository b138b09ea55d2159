//! What the shop is, whichever framework serves it: its settings, its key and its pages.

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use unsticky::{Cookie, Key, ListedSession, Session, SessionId, Sessions, SignedIn};

/// A visitor fills the cart before they sign in, so it goes with them.
pub(crate) const CART: Key<Vec<String>> = Key::new("cart").survives_sign_in();

/// A header of the answer to a sign-out: without it the browser keeps the pages of the one who has left,
/// and its "back" shows them to whoever comes next.
pub(crate) const FORGET_PAGES: (&str, &str) = ("clear-site-data", "\"cache\"");

/// The sessions of the shop. Where they are kept is a setting of the deployment: `SESSION_URL`.
pub(crate) fn sessions() -> Result<Sessions, Box<dyn Error>> {
    let url = env::var("SESSION_URL").unwrap_or_else(|_| "memory:".to_owned());
    let sessions = Sessions::builder(unsticky::connect(&url)?)
        // The same in every process that is to know the same sessions.
        .namespace("shop")
        // For http://localhost only; the default is a cookie that needs https.
        .cookie(Cookie::for_plain_http())
        // Where those are sent who ask for a page that needs a sign-in.
        .sign_in_page("/")
        .build()?;
    Ok(sessions)
}

/// Where to listen: `PORT`, on this machine only.
pub(crate) fn address() -> Result<(&'static str, u16), Box<dyn Error>> {
    let port = env::var("PORT").map_or(Ok(3000), |port| port.parse());
    Ok(("127.0.0.1", port.map_err(|_| "PORT is not the number of a port")?))
}

/// The form of `POST /sign-in`.
#[derive(Deserialize)]
pub(crate) struct SignIn {
    pub(crate) name: Text,
}

/// The form of `POST /cart`.
#[derive(Deserialize)]
pub(crate) struct Add {
    pub(crate) item: Text,
}

/// The form of `POST /sessions/end`.
#[derive(Deserialize)]
pub(crate) struct End {
    pub(crate) id: SessionId,
}

/// The form of `POST /password`.
#[derive(Deserialize)]
pub(crate) struct Password {
    pub(crate) old: Text,
    pub(crate) new: Text,
}

/// What a visitor typed: something, and not too much of it. Anything else is a bad request.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Text(pub(crate) String);

impl TryFrom<String> for Text {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let text = text.trim();
        match text.len() {
            1..=200 => Ok(Self(text.to_owned())),
            _ => Err("one to 200 bytes"),
        }
    }
}

/// The answer to `GET /cart.json`.
#[derive(Serialize)]
pub(crate) struct Cart {
    signed_in: Option<Arc<str>>,
    items: Vec<String>,
    served_by: u32,
    framework: &'static str,
}

impl Cart {
    pub(crate) fn of(session: &Session, framework: &'static str) -> unsticky::Result<Self> {
        Ok(Self {
            signed_in: session.principal(),
            items: session.get(CART)?.unwrap_or_default(),
            served_by: std::process::id(),
            framework,
        })
    }
}

/// The answer to `GET /`.
pub(crate) fn front_page(session: &Session, framework: &'static str) -> unsticky::Result<String> {
    let Cart { signed_in, items, served_by, .. } = Cart::of(session, framework)?;
    let visitor = match signed_in {
        Some(name) => format!(
            "<p>Signed in as <b>{}</b> · <a href=/sessions>Your sessions</a></p>\
             <form method=post action=/sign-out><button>Sign out</button></form>",
            escaped(&name)
        ),
        None => "<p>Nobody is signed in</p>\
                 <form method=post action=/sign-in>\
                 <input name=name required maxlength=50 placeholder=Name> \
                 <button>Sign in</button></form>"
            .to_owned(),
    };
    let cart = items.iter().fold(String::new(), |mut list, item| {
        // Writing to a string cannot fail.
        let _ = write!(list, "<li>{}</li>", escaped(item));
        list
    });
    Ok(page(
        "Shop",
        &format!(
            "{visitor}<h2>Cart</h2><ul>{cart}</ul>\
             <form method=post action=/cart>\
             <input name=item required maxlength=50 placeholder=Article> \
             <button>Add</button></form>\
             <p><small>Served by process {served_by} ({framework})</small></p>"
        ),
    ))
}

/// The answer to `GET /sessions`.
pub(crate) async fn sessions_page(user: &SignedIn) -> unsticky::Result<String> {
    let sessions = user.session.directory()?.list().await?;
    let rows: String = sessions.iter().map(row).collect();
    let end_others = match sessions.iter().any(|session| !session.is_current) {
        true => {
            "<form method=post action=/sessions/end-others><button>End all others</button></form>"
        }
        false => "",
    };
    Ok(page(
        "Your sessions",
        &format!(
            "<p>Signed in as <b>{}</b> · <a href=/>Back to the shop</a></p>\
             <table><tr><th>Browser<th>Signed in<th>Last seen<th></tr>{rows}</table>{end_others}\
             <h2>Change password</h2>\
             <form method=post action=/password>\
             <input type=password name=old required maxlength=50 placeholder='Old password' \
             autocomplete=current-password> \
             <input type=password name=new required maxlength=50 placeholder='New password' \
             autocomplete=new-password> \
             <button>Change</button></form>\
             <p><small>This ends your sessions in all other browsers.</small></p>",
            escaped(&user.principal)
        ),
    ))
}

fn row(session: &ListedSession) -> String {
    let ListedSession { id, signed_in_at, last_seen, label, is_current, .. } = session;
    let action = match is_current {
        true => "this device".to_owned(),
        false => format!(
            "<form method=post action=/sessions/end>\
             <input type=hidden name=id value='{id}'><button>End</button></form>"
        ),
    };
    format!(
        "<tr><td>{}<td>{}<td>{}<td>{action}</tr>",
        escaped(label.as_deref().unwrap_or("Unknown browser")),
        minute(*signed_in_at),
        minute(*last_seen)
    )
}

fn minute(time: OffsetDateTime) -> String {
    format!("{} {:02}:{:02} UTC", time.date(), time.hour(), time.minute())
}

/// What a person may recognise their browser by, as in "Firefox on Linux". Any text may stand in a
/// `User-Agent`, so it is only searched for names, and none of it gets any further.
pub(crate) fn label(user_agent: Option<&str>) -> String {
    let find = |names: &[(&str, &'static str)]| {
        let agent = user_agent.unwrap_or_default();
        names.iter().find(|(part, _)| agent.contains(part)).map(|(_, name)| *name)
    };
    // Most of them also claim to be those that come after them.
    let browser = find(&[
        ("Edg", "Edge"),
        ("OPR/", "Opera"),
        ("Firefox/", "Firefox"),
        ("Chrome/", "Chrome"),
        ("Safari/", "Safari"),
    ]);
    let system = find(&[
        ("Android", "Android"),
        ("iPhone", "iOS"),
        ("iPad", "iOS"),
        ("Windows", "Windows"),
        ("Mac OS X", "macOS"),
        ("Linux", "Linux"),
    ]);
    let browser = browser.unwrap_or("Unknown browser");
    system.map_or(browser.to_owned(), |system| format!("{browser} on {system}"))
}

fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>\
         <style>body {{ font-family: sans-serif; line-height: 1.5; max-width: 44rem; \
         margin: 2rem auto; padding: 0 1rem }} \
         table {{ border-collapse: collapse; width: 100%; margin-bottom: 1rem }} \
         th, td {{ text-align: left; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid #ccc }}\
         </style><h1>{title}</h1>{body}</html>"
    )
}

/// What visitors typed is text, never markup.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            character => escaped.push(character),
        }
    }
    escaped
}
