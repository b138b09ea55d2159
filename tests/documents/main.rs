//! What the documents say is true: their code compiles, their links lead somewhere, the tests that they
//! refer to exist, and the figures that they quote are those in the results.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod behaviour;
mod blocks;
mod figures;
mod generated;
mod links;
mod markdown;
mod numbers;
mod pages;
mod tests_named;
