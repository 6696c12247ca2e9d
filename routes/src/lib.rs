//! The routes of orders: which steps an order goes through, as `ROUTES_FILE` defines them. docs/routes.md has the file's form.
//!
//! The gateway stamps the route into each new order, `waybill provision` creates a consumer for every step, and `waybill dev`
//! starts a program for each. Unfinished orders keep the route that they were created with.

mod built_in;
mod check;
pub mod config;
mod faults;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod read;
mod routes;
#[cfg(test)]
mod tests;
mod yaml;

pub use config::RoutesConfig;
pub use faults::{Fault, Faults};
pub use read::RoutesError;
pub use routes::Routes;
