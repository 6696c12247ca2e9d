//! A server of a cluster is cut off from the others, in one way after the other, while orders are placed, read, listed,
//! watched and cancelled through a gateway that is connected to it and one that is not. Neither takes the answer of one
//! server for that of the cluster.
//!
//! TURNS=n runs each scenario n times; PROGRAMS names a folder of other programs than those of this workspace, such as earlier
//! ones, by which it fails.

mod clients;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use harness::{Cluster, Deployment, Gateway, Host, Network, Options, PATIENCE, SERVERS, eventually};
use tokio::time::{Instant, sleep, sleep_until};

use clients::{Clients, Found};

/// The server that is cut off.
pub(crate) const CUT_OFF: usize = 0;
/// How long everything goes well first.
const BEFORE: Duration = Duration::from_secs(2);
/// How long the cut lasts: longer than a deposed leader believes that it leads (10 s).
const CUT: Duration = Duration::from_secs(12);
/// How long orders are placed after the heal.
const AFTER: Duration = Duration::from_secs(4);
/// How long a gateway may be wrong about whether it can take orders. After a heal the servers may elect leaders first, since one
/// that comes back with a later term deposes a good leader, which takes 4 to 9 s: what counts is from when on they commit.
const READINESS_MAX: Duration = Duration::from_secs(5);

/// One scenario.
struct Scenario {
    /// Whether the cut off server leads the streams.
    leads: bool,
    cut: fn(&Network, usize),
    /// Whether the gateway that is connected to the cut off server reaches no other.
    confined: bool,
}

#[tokio::test]
async fn a_leader_is_cut_off_both_ways() {
    run(&Scenario { leads: true, cut: Network::isolate, confined: false }).await;
}

#[tokio::test]
async fn a_leader_hears_nobody() {
    run(&Scenario { leads: true, cut: Network::deafen, confined: false }).await;
}

#[tokio::test]
async fn a_leader_is_heard_by_nobody() {
    run(&Scenario { leads: true, cut: Network::mute, confined: false }).await;
}

#[tokio::test]
async fn a_follower_is_cut_off() {
    run(&Scenario { leads: false, cut: Network::isolate, confined: false }).await;
}

#[tokio::test]
async fn a_gateway_reaches_only_a_cut_off_leader() {
    run(&Scenario { leads: true, cut: Network::isolate, confined: true }).await;
}

async fn run(scenario: &Scenario) {
    let turns = std::env::var("TURNS").map_or(1, |turns| turns.parse().expect("a number in TURNS"));
    for turn in 1..=turns {
        let Some(network) = Network::lay(SERVERS).await else { return };
        let found = Box::pin(play(scenario, network)).await;
        eprintln!("turn {turn}: {found}");
        found.must_be_right();
    }
}

async fn play(scenario: &Scenario, network: Arc<Network>) -> Found {
    let programs = std::env::var_os("PROGRAMS").map(PathBuf::from);
    let options =
        Options { programs, network: Some(network.clone()), servers: SERVERS, ..Options::default() };
    let mut waybill = Deployment::start_without_broker(options).await;
    let cluster = Cluster::start(&mut waybill);
    waybill.ready().await;
    cluster.is_whole(&waybill).await;
    let leader = if scenario.leads { CUT_OFF } else { CUT_OFF + 1 };
    for stream in ["ORDERS", "KV_INVENTORY", "DEAD_LETTERS"] {
        cluster.lead(&waybill, stream, leader).await;
    }
    let edge = edge_gateway(&waybill, &cluster, &network, scenario.confined).await;
    cluster.is_whole(&waybill).await;

    // By the servers that the gateways can reach.
    let reached = [CUT_OFF + 1, if scenario.confined { CUT_OFF } else { CUT_OFF + 1 }];
    let [first, second] = reached.map(|n| cluster.peek(&waybill, n).jetstream());
    let mut clients = Clients::start([&waybill.gateway, &edge], [first.await, second.await]);
    sleep(BEFORE).await;
    let begun = Instant::now();
    (scenario.cut)(&network, CUT_OFF);
    clients.cut();
    sleep_until(begun + CUT).await;
    network.heal_servers();
    let healed = Instant::now();
    clients.healed();
    for gateway in [&waybill.gateway, &edge] {
        eventually("a gateway that is ready again", async || {
            (gateway.http("/readyz").await.0 == 200).then_some(())
        })
        .await;
    }
    let ready_after = healed.elapsed();
    sleep_until(healed + AFTER).await;
    let mut found = clients.end(&waybill, &cluster).await;
    found.ready_after_heal = ready_after;
    found.finished_after_heal = found.finished_at.map_or(PATIENCE, |at| at - healed);
    found.readiness_max = READINESS_MAX;
    found.finished_max = PATIENCE;
    found
}

fn edge_host(network: &Network) -> Host {
    network.host("edge").unwrap_or_else(|| network.another_host("edge"))
}

/// The host reaches no other server than the one that is cut off.
fn confine(network: &Network, host: &Host) {
    for n in (0..SERVERS).filter(|n| *n != CUT_OFF) {
        network.cut_between(host, network.server(n));
    }
}

/// A gateway that is connected to the server that is going to be cut off.
async fn edge_gateway(waybill: &Deployment, cluster: &Cluster, network: &Network, confined: bool) -> Gateway {
    let host = edge_host(network);
    confine(network, &host);
    let servers: Vec<_> = (0..SERVERS).map(|n| cluster.peek(waybill, n)).collect();
    let edge = waybill.gateway_on(&host, "gateway-edge", &servers).await;
    edge.ready().await;
    if !confined {
        network.heal();
    }
    edge
}
