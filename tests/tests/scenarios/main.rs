//! What Waybill promises, tried on a real nats-server and the real programs. Each scenario has a deployment
//! of its own; each module holds one idea.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod abuse;
mod accounting;
mod bad_input;
mod books;
mod broker_away;
mod browsers;
mod cancel_races;
mod cancelling;
mod client_certificates;
mod connections;
mod crash_points;
mod crashes;
mod credential_files;
mod dead_letters;
mod deadlines;
mod draining;
mod environment;
mod errors;
mod events;
mod foreign_messages;
mod getting_in;
mod grpcurl;
mod health;
mod http2;
mod idempotency;
mod isolation;
mod listing;
mod log_lines;
mod many_streams;
mod odd_events;
mod operators;
mod order_path;
mod paying;
mod probes;
mod random_schedules;
mod rate_limit;
mod redelivery;
mod redriving;
mod replicas;
mod retention;
mod slow_readers;
mod storage_full;
mod stream_setup;
mod stuck_consumers;
mod ten_thousand;
mod tenants;
mod tls;
mod tokens;
mod traces;
mod watching;
mod watching_customers;
mod worker_pool;
