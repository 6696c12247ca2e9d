//! `waybill`: one binary for people. `dev` runs the whole system on this machine, `order`,
//! `dead-letter` and `stock` talk to a gateway, `health` checks whether a program is healthy.

mod address;
mod args;
mod client;
mod console;
mod credential;
mod dead_letter;
mod dev;
mod die_with_parent;
mod error_report;
mod health;
mod operators;
mod order;
mod order_file;
mod program_path;
mod provision;
mod render;
mod stock;
mod timeline;
mod tls;
mod usage;
mod watch;

use std::process::ExitCode;

use anyhow::Context;

use crate::args::{Args, Command};

fn main() -> ExitCode {
    let args = match usage::parse::<Args>() {
        Ok(args) => args,
        Err(code) => return code,
    };
    match run(args.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::warn(&format!("error: {}", error_report::explain(&error)));
            usage::exit_code(&error)
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Dev(args) => block_on(dev::run(&args)),
        Command::Order(args) => block_on(order::run(args)),
        Command::DeadLetter(args) => block_on(dead_letter::run(args)),
        Command::Stock(args) => block_on(stock::run(args)),
        Command::Provision(args) => block_on(provision::run(*args)),
        Command::Health(args) => block_on(health::run(args)),
        Command::Tether(args) => Err(die_with_parent::become_program(&args)),
    }
}

/// One thread for everything: the kernel ties a child's life to the thread that started it (see [`die_with_parent`]),
/// and this thread is the last to go.
fn block_on(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(command)
}
