//! The present state of a stream, from the broker.

use std::time::SystemTime;

use async_nats::jetstream::stream::{Info, StorageType};

/// How full a stream is, and how safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamState {
    /// When it was made.
    pub created: SystemTime,
    /// Messages that it holds.
    pub messages: u64,
    /// Bytes that they use.
    pub bytes: u64,
    /// Bytes that they may use; `None` if the stream sets no limit, and only the broker's storage does.
    pub bytes_max: Option<u64>,
    /// Configured number of replicas.
    pub replicas: usize,
    /// Whether there is a leader, as far as the server knows that answered.
    pub has_leader: bool,
    /// Replicas that are up to date.
    pub replicas_current: usize,
    /// Whether it is on disk.
    pub on_file: bool,
    /// Names of the servers that hold it.
    pub servers: Vec<String>,
}

impl From<&Info> for StreamState {
    fn from(info: &Info) -> Self {
        let (config, state) = (&info.config, &info.state);
        let cluster = info.cluster.as_ref();
        let leader = cluster.and_then(|cluster| cluster.leader.clone()).filter(|leader| !leader.is_empty());
        let followers = cluster.map(|cluster| &cluster.replicas[..]).unwrap_or_default();
        let current = followers.iter().filter(|follower| follower.current && !follower.offline).count();
        Self {
            created: info.created.into(),
            messages: state.messages,
            bytes: state.bytes,
            bytes_max: u64::try_from(config.max_bytes).ok().filter(|bytes| *bytes > 0),
            replicas: config.num_replicas,
            has_leader: leader.is_some(),
            replicas_current: current + usize::from(leader.is_some()),
            on_file: config.storage == StorageType::File,
            servers: leader
                .into_iter()
                .chain(followers.iter().map(|follower| follower.name.clone()))
                .collect(),
        }
    }
}
