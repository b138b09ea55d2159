// The pages of `docs/`, as part of the crate's documentation.
//
// A page links to another page by a reference, such as `[Values][values]`, and ends with the definition
// `[values]: values.md`, which leads from file to file. `guide/links.md` defines the same labels as paths of
// modules. It comes first, and the first definition of a label counts.

#![doc = include_str!("guide/links.md")]
#![doc = include_str!("../docs/guide.md")]

macro_rules! pages {
    ($($module:ident $file:literal)*) => {
        $(
            #[doc = include_str!("guide/links.md")]
            #[doc = include_str!(concat!("../docs/", $file))]
            pub mod $module {}
        )*
    };
}

pages! {
    how_it_works "how-it-works.md"
    application "application.md"
    actix_web "actix-web.md"
    values "values.md"
    signing_in "signing-in.md"
    account_sessions "account-sessions.md"
    guards "guards.md"
    flash_messages "flash-messages.md"
    csrf "csrf.md"
    oauth "oauth.md"
    streams "streams.md"
    background_work "background-work.md"
    errors "errors.md"
    several_sessions "several-sessions.md"
    testing "testing.md"
    production "production.md"
    topologies "topologies.md"
    operating "operating.md"
    observability "observability.md"
    performance "performance.md"
    scaling "scaling.md"
    security "security.md"
    guarantees "guarantees.md"
    stability "stability.md"
    comparison "comparison.md"
    from_tower_sessions "from-tower-sessions.md"
    from_actix_session "from-actix-session.md"
    faq "faq.md"
    glossary "glossary.md"
}
