//! The shop in use: without JavaScript, with the keyboard only, on a phone, in several tabs, and with errors.

use fantoccini::key::Key;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use unsticky::ErrorKind;

use crate::browser::{Browser, Driver};
use crate::shop::{MESSAGE, SIGN_IN, SIGN_OUT, Shop, add, sign_in};
use crate::site::Site;

/// A page whose text shows whether scripts run.
const SCRIPTED: &str = "data:text/html,<p>no scripts</p>\
                        <script>document.querySelector('p').textContent = 'scripts'</script>";

/// Returns the response to a `fetch`: its status, content type and text.
async fn fetched(browser: &Browser, request: &str) -> Value {
    let script = format!(
        "return {request}.then(async it => [it.status, it.headers.get('content-type'), await it.text()])"
    );
    browser.script(&script, Vec::new()).await
}

/// Returns the response that a `fetch` must get if the session causes this error.
fn error(status: u16, kind: ErrorKind) -> Value {
    let text = format!(r#"{{"status":{status},"error":"{}"}}"#, kind.as_str());
    json!([status, "application/json", text])
}

#[tokio::test(flavor = "multi_thread")]
async fn sign_in_returns_to_requested_page() {
    let driver = Driver::start();
    let shop = Shop::start();
    for (browser, scripts) in [
        (driver.browser_without_scripts().await, "no scripts"),
        (driver.browser().await, "scripts"),
    ] {
        browser.open(SCRIPTED).await;
        assert_eq!(browser.text("p").await, scripts);
        for shop in [&shop.axum, &shop.actix] {
            for (wanted, sign_in_page, title) in [
                ("/sessions?by=name", "/sign-in?next=/sessions%3Fby%3Dname", "Your sessions"),
                ("/password", "/sign-in?next=/password", "Change your password"),
            ] {
                browser.open(&format!("{shop}{wanted}")).await;
                assert_eq!(browser.address().await, sign_in_page);
                assert_eq!(browser.text("h1").await, "Sign in");
                sign_in(&browser, "alice").await;
                assert_eq!(browser.address().await, wanted);
                assert_eq!(browser.text("h1").await, title);
                browser.press(SIGN_OUT).await;
            }
            for evil in
                ["//localhost/", "http://localhost/", "/\\localhost/", "javascript:alert(1)"]
            {
                browser.open(&format!("{shop}/sign-in?next={evil}")).await;
                sign_in(&browser, "alice").await;
                assert_eq!(browser.address().await, "/");
                assert_eq!(browser.text("h1").await, "Shop");
                browser.press(SIGN_OUT).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flash_is_shown_once_across_tabs() {
    let driver = Driver::start();
    let (shop, browser) = (Shop::start(), driver.browser().await);
    for (here, there) in [(&shop.axum, &shop.actix), (&shop.actix, &shop.axum)] {
        browser.open(here).await;
        add(&browser, "a book").await;
        browser.reload().await;
        assert_eq!(browser.count(MESSAGE).await, 0);

        // The message is still stored, because the script did not follow the redirect.
        let put = "fetch('/cart', { method: 'POST', redirect: 'manual', \
                   body: new URLSearchParams({ item: 'a lamp' }) })";
        fetched(&browser, put).await;
        let first_tab = browser.new_tab().await;
        browser.open(there).await;
        assert_eq!(browser.text(MESSAGE).await, "In your cart: a lamp");
        browser.go_to_tab(first_tab).await;
        browser.reload().await;
        assert_eq!(browser.count(MESSAGE).await, 0);

        // Only one of ten concurrent requests shows the message.
        fetched(&browser, put).await;
        let pages = "return Promise.all(Array.from({ length: 10 }, async () => { \
                     const page = await (await fetch('/', { cache: 'no-store' })).text(); \
                     return page.split('<p role=status').length - 1 }))";
        let shown = browser.script(pages, Vec::new()).await;
        let mut shown: Vec<u64> = serde_json::from_value(shown).unwrap();
        shown.sort_unstable();
        assert_eq!(shown, [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_shop_works_with_keyboard_only() {
    let driver = Driver::start();
    let (shop, browser) = (Shop::start(), driver.browser().await);
    for shop in [&shop.axum, &shop.actix] {
        for _ in 0..2 {
            let other = driver.browser().await;
            other.open(shop).await;
            sign_in(&other, "alice").await;
            other.quit().await;
        }

        browser.open(shop).await;
        browser.tab_to("input[name=item]").await;
        browser.keys("a book").await;
        browser.enter().await;
        assert_eq!(browser.text(MESSAGE).await, "In your cart: a book");

        browser.tab_to(SIGN_IN).await;
        browser.enter().await;
        browser.tab_to("input[name=name]").await;
        browser.keys("alice").await;
        browser.tab_to("input[name=password]").await;
        browser.keys("xyzzy").await;
        browser.tab_to("input[name=remember]").await;
        browser.keys(" ").await;
        browser.tab_to("main button").await;
        browser.enter().await;
        assert_eq!(browser.text("b").await, "alice");
        assert_eq!(browser.text("li").await, "a book");
        let expires = browser.cookie().await.expires_datetime().unwrap();
        let left = expires - OffsetDateTime::now_utc();
        assert!(left > Duration::days(29), "remembered for {left}");

        browser.tab_to("a[href='/sessions']").await;
        browser.enter().await;
        browser.tab_to("form[action='/sessions/end'] button").await;
        browser.enter().await;
        assert_eq!(browser.text(MESSAGE).await, "The session has ended.");
        browser.tab_to("form[action='/sessions/end-others'] button").await;
        browser.enter().await;
        assert_eq!(browser.text(MESSAGE).await, "All your other sessions have ended.");
        assert_eq!(browser.count("tr:has(td)").await, 1);

        browser.tab_to("a[href='/password']").await;
        browser.enter().await;
        browser.tab_to("input[name=old]").await;
        browser.keys("xyzzy").await;
        browser.tab_to("input[name=new]").await;
        browser.keys("plugh").await;
        browser.enter().await;
        assert!(browser.text(MESSAGE).await.starts_with("Your password has been changed"));

        // This is the page for users who signed in too long ago.
        browser.open(&format!("{shop}/confirm?next=/password")).await;
        browser.tab_to("input[name=password]").await;
        browser.keys("plugh").await;
        browser.enter().await;
        assert_eq!(browser.address().await, "/password");
        assert_eq!(browser.text(MESSAGE).await, "Thank you. You can continue.");

        browser.tab_to(SIGN_OUT).await;
        browser.enter().await;
        assert_eq!(browser.text(MESSAGE).await, "You are signed out.");
        assert_eq!(browser.count(SIGN_IN).await, 1);
    }
    // After the last element, the Tab key moves the focus to the first one again.
    browser.tab_to("main button").await;
    browser.keys(&Key::Tab).await;
    browser.tab_to("nav a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_overflows_at_320_pixels() {
    let driver = Driver::start();
    let shop = Shop::start();
    for (shop, framework) in [(&shop.axum, "axum"), (&shop.actix, "actix")] {
        let (browser, other) = (driver.phone(320, 640).await, driver.browser().await);
        // The longest text that the forms allow, with no place for a line break.
        let word = "W".repeat(50);
        browser.open(shop).await;
        fits(&browser, 320, &format!("{framework}-cart")).await;
        add(&browser, &word).await;
        fits(&browser, 320, &format!("{framework}-cart-filled")).await;
        browser.press(SIGN_IN).await;
        fits(&browser, 320, &format!("{framework}-sign-in")).await;
        sign_in(&browser, &word).await;
        fits(&browser, 320, &format!("{framework}-signed-in")).await;
        other.open(shop).await;
        sign_in(&other, &word).await;
        for path in ["/sessions", "/confirm", "/password"] {
            browser.open(&format!("{shop}{path}")).await;
            other.open(&format!("{shop}{path}")).await;
            let name = path.replace('/', "-");
            fits(&browser, 320, &format!("{framework}{name}")).await;
            other.picture(&format!("{framework}{name}-wide")).await;
        }
        forge_token(&browser).await;
        change_password(&browser).await;
        fits(&browser, 320, &format!("{framework}-error")).await;
    }
}

async fn change_password(browser: &Browser) {
    browser.fill("input[name=old]", "xyzzy").await;
    browser.fill("input[name=new]", "plugh").await;
    browser.press("main button").await;
}

async fn forge_token(browser: &Browser) {
    let script = "document.querySelector('[name=csrf_token]').value = 'forged'";
    browser.script(script, Vec::new()).await;
}

/// Asserts that no part of the page lies outside a screen of this width.
async fn fits(browser: &Browser, width: u32, name: &str) {
    browser.picture(&format!("{name}-{width}")).await;
    let outside = browser.script(
        "const isOutside = ({ left, right }) => left < 0 || right > arguments[0]; \
         return [document.documentElement.scrollWidth, ...[...document.querySelectorAll('body *')] \
             .filter(it => isOutside(it.getBoundingClientRect())).map(it => it.outerHTML)]",
        vec![width.into()],
    );
    assert_eq!(outside.await, json!([width]), "{name}");
}

#[tokio::test(flavor = "multi_thread")]
async fn error_page_is_html_and_data_error_is_json() {
    let driver = Driver::start();
    let (shop, browser) = (Shop::start(), driver.browser().await);
    let other = Site::start(unsticky::Cookie::default()).await;
    let is_error_page = async |kind: ErrorKind| {
        assert_eq!(browser.text("h1").await, "Sorry");
        // The page capitalises the first letter.
        let shown = browser.text("p.reason").await;
        assert_eq!(shown.to_lowercase(), kind.message().to_lowercase());
        assert_eq!(browser.count("a[href='/']").await, 1);
    };
    for here in [&shop.axum, &shop.actix] {
        browser.open(here).await;
        assert_eq!(
            fetched(&browser, "fetch('/sessions')").await,
            error(401, ErrorKind::NotSignedIn)
        );

        sign_in(&browser, "alice").await;
        browser.press("a[href='/sessions']").await;
        browser.press("a[href='/password']").await;
        let put = "fetch('/password', { method: 'POST', \
                   body: new URLSearchParams({ old: 'xyzzy', new: 'plugh' }) })";
        assert_eq!(fetched(&browser, put).await, error(403, ErrorKind::InvalidCsrfToken));
        forge_token(&browser).await;
        change_password(&browser).await;
        is_error_page(ErrorKind::InvalidCsrfToken).await;
        browser.picture("error").await;

        let form = format!("{here}/cart");
        browser.open(&other.elsewhere("elsewhere.localhost", "", &form, "")).await;
        browser.press("button").await;
        is_error_page(ErrorKind::CrossOrigin).await;

        browser.open(here).await;
        shop.redis.pause();
        assert_eq!(
            fetched(&browser, "fetch('/cart.json')").await,
            error(503, ErrorKind::Unavailable)
        );
        browser.reload().await;
        is_error_page(ErrorKind::Unavailable).await;
        shop.redis.resume();
        browser.open(here).await;
        assert_eq!(browser.text("b").await, "alice");
        browser.press(SIGN_OUT).await;
    }
}
