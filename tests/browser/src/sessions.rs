//! The page on which users see and revoke their sessions, used from two browsers.

use time::OffsetDateTime;

use crate::browser::{Browser, Driver};
use crate::shop::{MESSAGE, SIGN_IN, SIGN_OUT, Shop, sign_in};

const ROWS: &str = "tr:has(td)";
const END: &str = "form[action='/sessions/end'] button";
const END_OTHERS: &str = "form[action='/sessions/end-others'] button";
const THEIRS: &str = "a[href='/sessions']";

/// Returns whether the user is signed in. Follows the link to the sessions page, which leads to the sign-in
/// page if the user is not signed in.
async fn is_signed_in(browser: &Browser) -> bool {
    browser.press(THEIRS).await;
    let is_signed_in = browser.text("h1").await == "Your sessions";
    assert_eq!(browser.count(SIGN_IN).await == 0, is_signed_in);
    is_signed_in
}

/// Returns the current minute in the page's format.
fn minute() -> String {
    let now = OffsetDateTime::now_utc();
    format!("{} {:02}:{:02} UTC", now.date(), now.hour(), now.minute())
}

#[tokio::test(flavor = "multi_thread")]
async fn user_sees_sessions_and_ends_one() {
    let driver = Driver::start();
    let (shop, mine, other) = (Shop::start(), driver.browser().await, driver.browser().await);
    for (here, there) in [(&shop.axum, &shop.actix), (&shop.actix, &shop.axum)] {
        mine.open(&format!("{here}/sessions")).await;
        assert_eq!(mine.text("h1").await, "Sign in", "this page requires a sign-in");

        let before = minute();
        sign_in(&mine, "alice").await;
        assert_eq!(mine.text("h1").await, "Your sessions");
        other.open(there).await;
        sign_in(&other, "alice").await;
        mine.press(THEIRS).await;
        assert_eq!(mine.count(ROWS).await, 2);
        let cell = async |row: usize, column: usize| {
            mine.text(&format!("tr:nth-of-type({}) td:nth-of-type({column})", row + 1)).await
        };
        for (row, action) in [(1, "End"), (2, "this device")] {
            assert_eq!(cell(row, 1).await, "Chrome on Linux");
            for time in [cell(row, 2).await, cell(row, 3).await] {
                assert!(before <= time && time <= minute(), "{time}");
            }
            assert_eq!(cell(row, 4).await, action, "the newest sign-in comes first");
        }
        mine.picture("sessions").await;

        mine.press(END).await;
        assert_eq!(mine.text(MESSAGE).await, "The session has ended.");
        assert_eq!(mine.count(ROWS).await, 1);
        assert_eq!(cell(1, 4).await, "this device");
        assert_eq!(mine.count(END).await + mine.count(END_OTHERS).await, 0);
        assert!(!is_signed_in(&other).await);

        mine.open(here).await;
        assert!(is_signed_in(&mine).await);
        mine.press(SIGN_OUT).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ending_others_or_changing_password_keeps_only_this_session() {
    let driver = Driver::start();
    let (shop, mine, other) = (Shop::start(), driver.browser().await, driver.browser().await);
    mine.open(&shop.axum).await;
    sign_in(&mine, "alice <b>& friends").await;
    // A different host has its own cookie in the same browser.
    let neighbour = shop.actix.replace("127.0.0.1", "localhost");
    other.open(&neighbour).await;
    sign_in(&other, "bob").await;
    for (here, there) in [(&shop.axum, &shop.actix), (&shop.actix, &shop.axum)] {
        for changes_password in [false, true] {
            other.open(there).await;
            sign_in(&other, "alice <b>& friends").await;
            mine.open(&format!("{here}/sessions")).await;
            assert_eq!(mine.text("b").await, "alice <b>& friends");
            assert_eq!(mine.count(ROWS).await, 2);
            let cookie = mine.cookie().await;
            if changes_password {
                mine.press("a[href='/password']").await;
                mine.fill("input[name=old]", "xyzzy").await;
                mine.fill("input[name=new]", "plugh").await;
                mine.press("form[action='/password'] button").await;
            } else {
                mine.press(END_OTHERS).await;
            }
            assert_eq!(mine.text("h1").await, "Your sessions");
            assert_eq!(mine.count(ROWS).await, 1);
            assert_ne!(mine.cookie().await.value(), cookie.value());
            assert!(!is_signed_in(&other).await);
        }
    }
    other.open(&neighbour).await;
    assert!(is_signed_in(&other).await, "other users are not affected");
    assert_eq!(other.count(ROWS).await, 1);
}
