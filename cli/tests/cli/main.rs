//! `waybill` as people run it: the real binary, against programs and a gateway that do as a test wants.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod dev;
mod health;
mod order;
mod shop;
mod stage;
mod usage;
