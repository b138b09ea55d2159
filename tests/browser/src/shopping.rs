//! The shop's cookie, in both frameworks.

use fantoccini::cookies::Cookie;
use time::{Duration, OffsetDateTime};

use crate::browser::{Browser, Driver, NO_COOKIES};
use crate::shop::{MESSAGE, SIGN_IN, SIGN_OUT, Shop, add, sign_in};
use crate::site::Site;

/// Returns the shop's cookie from the browser, after checking its attributes.
async fn checked_cookie(browser: &Browser) -> Cookie<'static> {
    let cookie = browser.cookie().await;
    assert_eq!(cookie.name(), "shop");
    assert_eq!(cookie.domain(), Some("127.0.0.1"));
    assert_eq!(cookie.path(), Some("/"));
    assert_eq!(cookie.http_only(), Some(true));
    assert_eq!(cookie.secure(), Some(false));
    assert_eq!(cookie.same_site().unwrap().to_string(), "Lax");
    let left = cookie.expires_datetime().unwrap() - OffsetDateTime::now_utc();
    let day = Duration::hours(24);
    assert!(left <= day + Duration::SECOND && left > day - Duration::MINUTE, "{left}");
    assert_eq!(browser.cookies_for_scripts().await, "");
    cookie
}

#[tokio::test(flavor = "multi_thread")]
async fn cookie_is_kept_as_configured_and_sent_to_both_shops() {
    let driver = Driver::start();
    let (shop, browser) = (Shop::start(), driver.browser().await);
    browser.open(&shop.axum).await;
    assert_eq!(browser.jar().await, NO_COOKIES, "no session is needed yet");

    add(&browser, "a <b>book</b> & \"more\"").await;
    let cookie = checked_cookie(&browser).await;
    assert_eq!(browser.text("li").await, "a <b>book</b> & \"more\"");
    assert!(browser.text("body").await.contains("(axum)"));

    browser.open(&shop.actix).await;
    assert_eq!(browser.text("li").await, "a <b>book</b> & \"more\"");
    assert!(browser.text("body").await.contains("(actix-web)"));
    add(&browser, "a lamp").await;
    browser.open(&shop.axum).await;
    assert_eq!(browser.count("li").await, 2);
    assert_eq!(checked_cookie(&browser).await, cookie, "the cookie is set only once");
}

#[tokio::test(flavor = "multi_thread")]
async fn sign_in_and_sign_out_replace_cookie() {
    let driver = Driver::start();
    let (shop, browser) = (Shop::start(), driver.browser().await);
    for (here, there) in [(&shop.axum, &shop.actix), (&shop.actix, &shop.axum)] {
        browser.open(here).await;
        add(&browser, "a book").await;
        let visitor = checked_cookie(&browser).await;
        sign_in(&browser, "alice").await;
        let signed_in = checked_cookie(&browser).await;
        assert_ne!(signed_in.value(), visitor.value());
        assert_eq!(browser.text("li").await, "a book", "the cart is kept");
        browser.picture("shop").await;

        browser.open(there).await;
        assert_eq!(browser.text("b").await, "alice");
        browser.press(SIGN_OUT).await;
        assert_eq!(browser.count(SIGN_IN).await, 1);
        // The message is in a new session, without a user and without a cart.
        assert_eq!(browser.text(MESSAGE).await, "You are signed out.");
        assert_eq!(browser.count("li").await, 0);
        let signed_out = checked_cookie(&browser).await;
        assert_ne!(signed_out.value(), signed_in.value());

        // The old cookies are invalid.
        for old in [visitor, signed_in] {
            browser.add_cookie(old.clone()).await;
            browser.open(here).await;
            assert_eq!(browser.cookie().await.value(), old.value());
            assert_eq!(browser.count(SIGN_IN).await, 1);
            assert_eq!(browser.count("li").await, 0);
        }
        // A sign-in replaces the invalid cookie.
        sign_in(&browser, "bob").await;
        checked_cookie(&browser).await;
        browser.press(SIGN_OUT).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn back_navigation_after_sign_out_shows_no_user() {
    let driver = Driver::start();
    let (shop, browser) = (Shop::start(), driver.browser().await);
    for shop in [&shop.axum, &shop.actix] {
        browser.open(shop).await;
        sign_in(&browser, "alice").await;
        browser.press("a[href='/sessions']").await;
        browser.press("a[href='/']").await;
        assert_eq!(browser.text("b").await, "alice");
        browser.press(SIGN_OUT).await;
        for _ in 0..3 {
            browser.back().await;
            assert_eq!(browser.count(SIGN_IN).await, 1);
            assert!(!browser.text("body").await.contains("alice"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_sites_can_link_to_shop_but_not_act_in_it() {
    let driver = Driver::start();
    let (shop, browser) = (Shop::start(), driver.browser().await);
    let other = Site::start(unsticky::Cookie::default()).await;
    browser.open(&shop.axum).await;
    sign_in(&browser, "alice").await;
    let cookie = checked_cookie(&browser).await;
    for shop in [&shop.axum, &shop.actix] {
        let sign_out = format!("{shop}/sign-out");
        browser.open(&other.elsewhere("elsewhere.localhost", shop, &sign_out, "")).await;
        browser.press("a").await;
        assert_eq!(browser.text("b").await, "alice");

        browser.open(&other.elsewhere("elsewhere.localhost", shop, &sign_out, "")).await;
        browser.press("button").await;
        assert_eq!(browser.text("h1").await, "Sorry");
        browser.open(shop).await;
        assert_eq!(browser.text("b").await, "alice");
        assert_eq!(checked_cookie(&browser).await, cookie);
    }
}
