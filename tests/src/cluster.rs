//! Three nats-servers that keep everything three times.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use async_nats::jetstream;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::broker::{Broker, free_port};
use crate::deployment::folder;
use crate::{Deployment, eventually};

/// Servers of a cluster.
pub const SERVERS: usize = 3;
/// Where servers with a host of their own listen for each other.
const ROUTES_PORT: u16 = 6222;
/// Messages after which a Raft log is dropped, and how large they are.
const MESSAGES_FORGOTTEN: usize = 160;
const LARGE_BYTES: usize = 64 * 1024;
/// How servers find out that they do not hear each other any more, as in deploy/nats/cluster.conf.
const DEAD_ROUTES: &str = r#"ping_interval: "2s", ping_max: 2,"#;
/// What an election takes, about.
const STEP_DOWN_PAUSE: Duration = Duration::from_millis(500);

/// The second and the third server of a cluster, whose first is the deployment's broker.
#[derive(Debug)]
pub struct Cluster {
    others: [Broker; SERVERS - 1],
    configurations: Vec<String>,
    _dirs: [TempDir; SERVERS - 1],
}

impl Cluster {
    /// Starts all of them, the broker of a deployment that was started without it among them; its options say how many.
    pub fn start(waybill: &mut Deployment) -> Self {
        let network = waybill.network();
        let routes: Vec<SocketAddr> = (0..SERVERS)
            .map(|n| match &network {
                Some(network) => (network.server(n).address(), ROUTES_PORT).into(),
                None => (Ipv4Addr::LOCALHOST, free_port()).into(),
            })
            .collect();
        let all = routes.iter().map(|route| format!("\"nats://{route}\"")).collect::<Vec<_>>().join(", ");
        let configurations = routes.iter().enumerate().map(|(n, route)| {
            let listen = format!("listen: \"{route}\"");
            let noticed = if network.is_some() { DEAD_ROUTES } else { "" };
            format!("server_name: n{n}\ncluster {{ name: waybill, {listen}, {noticed} routes: [{all}] }}")
        });
        let configurations = configurations.collect();
        let dirs = [(); SERVERS - 1].map(|()| folder());
        let others = [0, 1].map(|n| {
            let host = network.as_ref().map(|network| network.server(n + 1).clone());
            waybill.broker.peer(n, dirs[n].path()).on(host)
        });
        let mut cluster = Self { others, configurations, _dirs: dirs };
        for n in 0..SERVERS {
            cluster.start_server(waybill, n);
        }
        cluster
    }

    /// Starts one of them, or starts it again.
    pub fn start_server(&mut self, waybill: &mut Deployment, n: usize) {
        let configuration = self.configurations[n].clone();
        self.server(waybill, n).start_configured("", &configuration);
    }

    /// Starts one of them so that its copy of the order log stays behind ([`Self::stays_behind`]). It does everything else,
    /// but does not hear the messages that it has missed (`$JSC.R.>`), once the others have no Raft log of them any more
    /// ([`Self::forget`]).
    pub async fn start_server_behind(&mut self, waybill: &mut Deployment, n: usize) {
        let behind = r#"cluster { permissions: { import: { deny: ["$JSC.R.>"] } },"#;
        let configuration = self.configurations[n].replace("cluster {", behind);
        self.server(waybill, n).start_configured("", &configuration);
        eventually("a server that is behind", async || {
            self.server(waybill, n).output().contains("> ORDERS' stalled").then_some(())
        })
        .await;
    }

    /// Whether the server that was started behind the order log has stayed so. The leader of the log takes it for current.
    pub fn stays_behind(&self, waybill: &Deployment, n: usize) -> bool {
        !self.peek(waybill, n).output().contains("> ORDERS' complete")
    }

    /// Has the servers drop their Raft logs of what stream ORDERS holds by now, as they do after 8 MB. Then a server
    /// that is stopped has to request the messages.
    pub async fn forget(&self, waybill: &Deployment) {
        let jetstream = waybill.jetstream().await;
        for _ in 0..MESSAGES_FORGOTTEN {
            // Random bytes, so that compression does not shrink them.
            let mut payload = vec![0; LARGE_BYTES];
            rand::fill(&mut payload[..]);
            let stored =
                jetstream.publish("ORDER.00.c.o.filler.end", payload.into()).await.expect("connection");
            stored.await.expect("large message");
        }
    }

    /// One of them.
    pub fn server<'a>(&'a mut self, waybill: &'a mut Deployment, n: usize) -> &'a mut Broker {
        if n == 0 { &mut waybill.broker } else { &mut self.others[n - 1] }
    }

    /// One of them, read-only.
    pub fn peek<'a>(&'a self, waybill: &'a Deployment, n: usize) -> &'a Broker {
        if n == 0 { &waybill.broker } else { &self.others[n - 1] }
    }

    /// The leader of the stream, according to one server.
    pub async fn leader(&self, waybill: &Deployment, asked: usize, stream: &str) -> Option<usize> {
        let jetstream = self.peek(waybill, asked).jetstream().await;
        place(jetstream.get_stream(stream).await.ok()?.cached_info().cluster.as_ref())
    }

    /// Has the nth of them lead the stream, and waits until it does.
    pub async fn lead(&self, waybill: &Deployment, stream: &str, n: usize) {
        let jetstream = self.peek(waybill, n).jetstream().await;
        eventually(&format!("n{n} as leader of {stream}"), async || {
            let info = jetstream.get_stream(stream).await.ok()?;
            if place(info.cached_info().cluster.as_ref()) == Some(n) {
                return Some(());
            }
            step_down(&jetstream, format!("STREAM.LEADER.STEPDOWN.{stream}"), n).await;
            None
        })
        .await;
    }

    /// Has the nth of them lead the stream's consumer, and waits until it does.
    pub async fn lead_consumer(&self, waybill: &Deployment, stream: &str, consumer: &str, n: usize) {
        let jetstream = self.peek(waybill, n).jetstream().await;
        eventually(&format!("n{n} as leader of {consumer}"), async || {
            let info = jetstream.get_stream(stream).await.ok()?.consumer_info(consumer).await.ok()?;
            if place(info.cluster.as_ref()) == Some(n) {
                return Some(());
            }
            step_down(&jetstream, format!("CONSUMER.LEADER.STEPDOWN.{stream}.{consumer}"), n).await;
            None
        })
        .await;
    }

    /// Waits until everything has three replicas.
    pub async fn is_whole(&self, waybill: &Deployment) {
        for stream in ["ORDERS", "KV_INVENTORY", "DEAD_LETTERS"] {
            self.has_copies(waybill, stream).await;
        }
    }

    /// Waits until the stream has three replicas.
    pub async fn has_copies(&self, waybill: &Deployment, stream: &str) {
        eventually(&format!("three copies of {stream}"), async || {
            let stream = waybill.jetstream().await.get_stream(stream).await.ok()?;
            is_whole(stream.cached_info()).then_some(())
        })
        .await;
    }
}

/// Asks the leader of something to leave that to the nth server, which it may refuse for the moment.
async fn step_down(jetstream: &jetstream::Context, request: String, n: usize) {
    let to = json!({ "placement": { "preferred": format!("n{n}") } });
    jetstream.request::<_, _, Value>(request, &to).await.ok();
    sleep(STEP_DOWN_PAUSE).await;
}

/// Which server the leader is.
fn place(cluster: Option<&jetstream::stream::ClusterInfo>) -> Option<usize> {
    cluster?.leader.as_ref()?.strip_prefix('n')?.parse().ok()
}

fn is_whole(info: &jetstream::stream::Info) -> bool {
    info.cluster.as_ref().is_some_and(|cluster| {
        let current = cluster.replicas.iter().filter(|replica| replica.current && !replica.offline).count();
        cluster.leader.is_some() && current == SERVERS - 1
    })
}
