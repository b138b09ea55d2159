//! Tests with cookies other than the shop's: which cookies the browser accepts, sends and removes.

use serde_json::Value;
use time::{Duration, OffsetDateTime};
use unsticky::{Cookie, Lifetime, SameSite};

use crate::browser::{Browser, Driver, ForeignCookies, NO_COOKIES, OWN_HOSTS, PLAIN_HOSTS};
use crate::site::Site;

async fn who(browser: &Browser) -> String {
    browser.text("b").await
}

/// Signs in twice and then signs out. Returns the cookie from the second sign-in.
async fn in_and_out(browser: &Browser, address: &str, name: &str) -> Value {
    browser.open(address).await;
    browser.press("#usual").await;
    assert_eq!(who(browser).await, "alice", "{address}");
    let first = only(browser).await;
    assert_eq!(first["name"], name);
    assert_eq!(first["httpOnly"], true);
    assert_eq!(browser.cookies_for_scripts().await, "");

    browser.press("#usual").await;
    assert_eq!(who(browser).await, "alice");
    let second = only(browser).await;
    assert_ne!(first["value"], second["value"], "the cookie is replaced, not added");

    browser.press("#out").await;
    assert_eq!(who(browser).await, "no user");
    assert_eq!(browser.jar().await, NO_COOKIES, "{name} is removed");
    second
}

/// Returns the browser's only cookie.
async fn only(browser: &Browser) -> Value {
    let mut jar = browser.jar().await;
    assert_eq!(jar.len(), 1, "{jar:?}");
    jar.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn default_cookie_is_accepted_over_http_from_local_hosts_only() {
    let driver = Driver::start();
    let browser = driver.browser().await;
    let site = Site::start(Cookie::default()).await;
    for host in OWN_HOSTS {
        let cookie = in_and_out(&browser, &site.at(host), "__Host-id").await;
        assert_eq!(cookie["secure"], true);
        assert_eq!(cookie["sameSite"], "Lax");
        assert_eq!(cookie["path"], "/");
        assert_eq!(cookie["domain"], host);
    }

    let (secure, insecure) = (Cookie::new("id"), Cookie::new("id").insecure());
    let (secure, insecure) = (Site::start(secure).await, Site::start(insecure).await);
    for host in PLAIN_HOSTS {
        for site in [&site, &secure] {
            browser.open(&site.at(host)).await;
            browser.press("#usual").await;
            assert_eq!(who(&browser).await, "no user", "{host}");
            assert_eq!(browser.jar().await, NO_COOKIES, "{host}");
        }
        in_and_out(&browser, &insecure.at(host), "id").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn applications_on_one_host_need_different_cookie_names() {
    let driver = Driver::start();
    for (names, first_stays) in [(["shop", "blog"], true), (["id", "id"], false)] {
        let browser = driver.browser().await;
        let [shop, blog] = names.map(|name| Site::start(Cookie::new(name).insecure()));
        let (shop, blog) = (shop.await.at("localhost"), blog.await.at("localhost"));
        for site in [&shop, &blog] {
            browser.open(site).await;
            browser.press("#usual").await;
            assert_eq!(who(&browser).await, "alice");
        }
        assert_eq!(browser.jar().await.len(), if first_stays { 2 } else { 1 });
        browser.open(&shop).await;
        assert_eq!(who(&browser).await, if first_stays { "alice" } else { "no user" }, "{names:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_deletes_cookie_with_any_attributes() {
    let driver = Driver::start();
    let browser = driver.browser().await;

    let strict = Site::start(Cookie::default().same_site(SameSite::Strict)).await;
    let cookie = in_and_out(&browser, &strict.at("localhost"), "__Host-id").await;
    assert_eq!(cookie["sameSite"], "Strict");

    let none = Site::start(Cookie::new("id").same_site(SameSite::None)).await;
    let cookie = in_and_out(&browser, &none.at("localhost"), "id").await;
    assert_eq!(cookie["sameSite"], "None");

    let partitioned = Site::start(Cookie::default().partitioned()).await;
    let cookie = in_and_out(&browser, &partitioned.at("localhost"), "__Host-id").await;
    assert_eq!(cookie["partitionKey"]["topLevelSite"], "http://localhost");

    let cookie = Cookie::new("__Secure-id").domain("shop.localhost").path("/a");
    let shared = Site::start_at("/a/", cookie).await;
    let cookie = in_and_out(&browser, &shared.at("one.shop.localhost"), "__Secure-id").await;
    assert_eq!(cookie["domain"], ".shop.localhost");
    assert_eq!(cookie["path"], "/a");
}

#[tokio::test(flavor = "multi_thread")]
async fn cookie_is_shared_within_its_domain_and_path_only() {
    let driver = Driver::start();
    let browser = driver.browser().await;
    let cookie = Cookie::new("__Secure-id").domain("shop.localhost").path("/a");
    let site = Site::start_at("/a/", cookie).await;
    browser.open(&site.at("one.shop.localhost")).await;
    browser.press("#usual").await;

    browser.open(&site.at("two.shop.localhost")).await;
    assert_eq!(who(&browser).await, "alice");
    browser.open(&site.elsewhere("one.shop.localhost", "", "", "")).await;
    assert!(browser.cookies().await.is_empty(), "the cookie is not sent to other paths");
    browser.open(&site.at("localhost")).await;
    assert_eq!(who(&browser).await, "no user", "the cookie is not sent to the parent domain");

    browser.open(&site.at("two.shop.localhost")).await;
    browser.press("#out").await;
    browser.open(&site.at("one.shop.localhost")).await;
    assert_eq!(who(&browser).await, "no user");
    assert_eq!(browser.jar().await, NO_COOKIES);
}

/// With a partitioned cookie, a user is signed in separately under each embedding site, even in a browser
/// that refuses other third-party cookies.
#[tokio::test(flavor = "multi_thread")]
async fn partitioned_cookie_is_separate_for_each_embedding_site() {
    let driver = Driver::start();
    let embedded = Cookie::new("__Host-id").same_site(SameSite::None);
    let plain = Site::start(embedded.clone()).await;
    let partitioned = Site::start(embedded.partitioned()).await;
    for foreign in [ForeignCookies::Taken, ForeignCookies::Refused] {
        let browser = driver.browser_with_foreign_cookies(foreign).await;
        // The expected result for a cookie that is not partitioned.
        let under_both = match foreign {
            ForeignCookies::Taken => "alice",
            ForeignCookies::Refused => "no user",
        };
        open_frame(&browser, &plain, "one.localhost").await;
        browser.press("#usual").await;
        assert_eq!(who(&browser).await, under_both, "{foreign:?}");
        open_frame(&browser, &plain, "two.localhost").await;
        assert_eq!(who(&browser).await, under_both, "{foreign:?}");
        browser.press("#out").await;
        assert_eq!(browser.jar().await, NO_COOKIES);

        open_frame(&browser, &partitioned, "one.localhost").await;
        browser.press("#usual").await;
        assert_eq!(who(&browser).await, "alice", "{foreign:?}");
        open_frame(&browser, &partitioned, "two.localhost").await;
        assert_eq!(who(&browser).await, "no user", "{foreign:?}");
        browser.press("#usual").await;
        assert_eq!(who(&browser).await, "alice", "{foreign:?}");
        assert_eq!(browser.jar().await.len(), 2);
        browser.press("#out").await;
        let left = only(&browser).await;
        assert_eq!(left["partitionKey"]["topLevelSite"], "http://one.localhost");
        open_frame(&browser, &partitioned, "one.localhost").await;
        assert_eq!(who(&browser).await, "alice", "{foreign:?}");
        browser.press("#out").await;
        assert_eq!(browser.jar().await, NO_COOKIES);
    }
}

/// Opens the application in a frame on a page at this host.
async fn open_frame(browser: &Browser, site: &Site, host: &str) {
    browser.open(&site.elsewhere(host, "", "", &site.at("app.localhost"))).await;
    browser.enter_frame().await;
}

/// For each `SameSite` value, the browser follows a link from another site, and submits a form there that
/// would sign the user out.
#[tokio::test(flavor = "multi_thread")]
async fn same_site_limits_requests_from_other_sites() {
    let driver = Driver::start();
    let browser = driver.browser().await;
    for (same_site, by_link, after_post) in [
        (SameSite::Strict, "no user", "alice"),
        (SameSite::Lax, "alice", "alice"),
        (SameSite::None, "alice", "no user"),
    ] {
        let site = Site::start(Cookie::default().same_site(same_site)).await;
        let home = site.at("localhost");
        browser.open(&home).await;
        browser.press("#usual").await;
        let elsewhere =
            site.elsewhere("elsewhere.localhost", &home, &(home.clone() + "sign-out"), "");
        browser.open(&elsewhere).await;
        browser.press("a").await;
        assert_eq!(who(&browser).await, by_link, "{same_site:?}");
        browser.open(&elsewhere).await;
        browser.press("button").await;
        browser.open(&home).await;
        assert_eq!(who(&browser).await, after_post, "{same_site:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn browser_restart_keeps_only_persistent_cookies() {
    let driver = Driver::start();
    let browser = driver.browser_with("profile").await;
    let site = Site::start(Cookie::default()).await;
    let longest = Duration::try_from(Lifetime::MAX_COOKIE_AGE).unwrap();
    let lifetimes = [
        ("browser", None, "no user"),
        ("usual", Some(Duration::DAY), "alice"),
        // The session lasts 500 days, but browsers limit the age of cookies.
        ("remembered", Some(longest), "alice"),
    ];
    // Each cookie has its own host, so that the browser keeps them all.
    let home = |button: &str| site.at(&format!("{button}.localhost"));
    for (button, age, _) in lifetimes {
        browser.open(&home(button)).await;
        browser.press(&format!("#{button}")).await;
        assert_eq!(who(&browser).await, "alice");
        let expires = browser.cookie().await.expires_datetime();
        let left = expires.map(|expires| expires - OffsetDateTime::now_utc());
        match (left, age) {
            (None, None) => {}
            (Some(left), Some(age)) => {
                let range = age - Duration::MINUTE..=age + Duration::SECOND;
                assert!(range.contains(&left), "{button}: {left}");
            }
            _ => panic!("{button}: {left:?} instead of {age:?}"),
        }
    }
    browser.quit().await;

    let browser = driver.browser_with("profile").await;
    for (button, _, afterwards) in lifetimes {
        browser.open(&home(button)).await;
        assert_eq!(who(&browser).await, afterwards, "{button}");
    }
}
