//! The cuts that the harness makes between the servers of a cluster are what they are said to be.

use std::net::TcpStream;
use std::time::Duration;

use harness::{Cluster, Deployment, Network, Options, SERVERS, eventually};

/// Longer than a connection to a server takes that can be reached.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// What a cut off server is cut off by.
type Cut = fn(&Network, usize);

#[tokio::test]
async fn a_cut_off_leader_is_replaced_and_comes_back() {
    let Some(network) = Network::lay(SERVERS).await else { return };
    let options = Options { network: Some(network.clone()), servers: SERVERS, ..Options::default() };
    let mut waybill = Deployment::start_without_broker(options).await;
    let cluster = Cluster::start(&mut waybill);
    waybill.ready().await;
    cluster.is_whole(&waybill).await;
    let cuts: [Cut; 4] =
        [Network::isolate, Network::deafen, Network::mute, |network, n| network.cut(network.server(n))];
    for (n, cut) in [0, 1, 2, 0].into_iter().zip(cuts) {
        cluster.lead(&waybill, "ORDERS", n).await;
        cut(&network, n);
        eventually("another leader", async || {
            cluster.leader(&waybill, (n + 1) % SERVERS, "ORDERS").await.filter(|leader| *leader != n)
        })
        .await;
        network.heal();
        cluster.is_whole(&waybill).await;
    }
    network.cut(network.server(2));
    let is_reached = |n: usize| {
        let address = cluster.peek(&waybill, n).address();
        TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).is_ok()
    };
    assert!(is_reached(1) && !is_reached(2));
}
