//! The transport: listening, connections, TLS, and the files and limits that they need. Knows no method.

pub(crate) mod connections;
pub(crate) mod files;
pub(crate) mod http_client;
pub(crate) mod open_files;
pub(crate) mod peer;
pub(crate) mod server;
pub(crate) mod tls;

mod connection;
mod eviction;
mod http1_head;
