//! Three nats-servers that keep everything three times.

use async_nats::jetstream;
use tempfile::TempDir;

use crate::broker::{Broker, free_port};
use crate::{Deployment, eventually};

/// Servers of a cluster.
pub const SERVERS: usize = 3;

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
        let routes: Vec<_> = (0..SERVERS).map(|_| free_port()).collect();
        let all =
            routes.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect::<Vec<_>>().join(", ");
        let configurations = routes.iter().enumerate().map(|(n, port)| {
            let listen = format!("listen: \"127.0.0.1:{port}\"");
            format!("server_name: n{n}\ncluster {{ name: waybill, {listen}, routes: [{all}] }}")
        });
        let configurations = configurations.collect();
        let dirs = [(); SERVERS - 1].map(|()| tempfile::tempdir().expect("directory"));
        let others = [0, 1].map(|n| waybill.broker.peer(n, dirs[n].path()));
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

    /// One of them.
    pub fn server<'a>(&'a mut self, waybill: &'a mut Deployment, n: usize) -> &'a mut Broker {
        if n == 0 { &mut waybill.broker } else { &mut self.others[n - 1] }
    }

    /// Waits until everything is there three times.
    pub async fn is_whole(&self, waybill: &Deployment) {
        for stream in ["ORDERS", "KV_INVENTORY", "DEAD_LETTERS"] {
            eventually(&format!("three copies of {stream}"), async || {
                let stream = waybill.jetstream().await.get_stream(stream).await.ok()?;
                is_whole(stream.cached_info()).then_some(())
            })
            .await;
        }
    }
}

fn is_whole(info: &jetstream::stream::Info) -> bool {
    info.cluster.as_ref().is_some_and(|cluster| {
        let current = cluster.replicas.iter().filter(|replica| replica.current && !replica.offline).count();
        cluster.leader.is_some() && current == SERVERS - 1
    })
}
