//! Making sure that the ports are ours to take, so that nothing foreign is ever mistaken for our own child.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::anyhow;

use crate::args::DevArgs;

/// Fails, naming the port, its purpose and the flag, if something else listens on one of them.
pub(super) fn check_free(args: &DevArgs) -> anyhow::Result<()> {
    let nats_addr = SocketAddr::from((Ipv4Addr::LOCALHOST, args.nats_port));
    let mut wanted = vec![
        (nats_addr, "nats-server", "--nats-port"),
        (args.grpc_addr, "the gateway's gRPC", "--grpc-addr"),
        (args.ops_addr, "the gateway's health", "--ops-addr"),
        (args.operations_addr, "the gateway's service for operators", "--operations-addr"),
    ];
    if args.payment_url.as_deref().unwrap_or_default().is_empty() {
        wanted.push((args.payment_sandbox_addr, "the payment sandbox", "--payment-sandbox-addr"));
    }
    if args.observe {
        let on_loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        wanted.push((on_loopback(args.jaeger_port), "Jaeger", "--jaeger-port"));
        wanted.push((on_loopback(args.prometheus_port), "Prometheus", "--prometheus-port"));
    }
    // All are bound at the same time, so that two equal addresses are detected.
    let held = wanted.into_iter().map(|(addr, purpose, flag)| {
        TcpListener::bind(addr).map_err(|error| bind_error(addr, purpose, flag, &error))
    });
    held.collect::<anyhow::Result<Vec<_>>>().map(drop)
}

fn bind_error(addr: SocketAddr, purpose: &str, flag: &str, error: &io::Error) -> anyhow::Error {
    let port = addr.port();
    if error.kind() == io::ErrorKind::AddrInUse {
        anyhow!(
            "port {port} on {} is in use, and {purpose} needs it: stop what listens there, or choose another with \
             {flag} (port 0 takes a free one)",
            addr.ip()
        )
    } else {
        anyhow!("cannot listen on {addr} for {purpose}: {error}; choose another address with {flag}")
    }
}
