//! The known ack floor of a consumer, and resetting the consumer to it.
//!
//! In a cluster a new leader of a consumer may count undelivered messages as acknowledged (nats-server issue 8036; seen
//! with 2.15.1 after a server had paused for some seconds). Nothing is pending then, and those orders would wait
//! forever. So a process that had the consumer open under the former leader resets it to the ack floor seen there. For
//! processes that start later the floor is recorded.

use std::time::{Duration, SystemTime};

use async_nats::HeaderMap;
use async_nats::datetime::DateTime;
use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::warn;

use crate::broker::connection::Connection;
use crate::broker::direct_get::{self, ReadError};
use crate::broker::leader_get;
use crate::broker::streams::{DEAD_LETTERS, ORDERS};
use crate::log::event::stored;

/// How long a record is kept. A step that did not run for so long reads its consumer as it is.
const RECORD_TTL: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The ack floor of a consumer when it was last configured as required. All messages up to there were acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckFloor {
    /// When the consumer was created. The floor does not apply to another consumer of the same name.
    created_ns: i128,
    sequence: u64,
    leader: Option<Leader>,
}

/// The server that leads a consumer's replicas, and since when: one that has come back may know less than before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Leader {
    server: String,
    since_ns: Option<i128>,
}

impl Leader {
    /// `None` for a consumer without replicas.
    fn of(info: &Info) -> Option<Self> {
        let cluster = info.cluster.as_ref()?;
        Some(Self { server: cluster.leader.clone()?, since_ns: cluster.leader_since.map(nanos) })
    }
}

impl AckFloor {
    pub(crate) fn of(info: &Info) -> Self {
        let (created_ns, sequence) = (nanos(info.created), info.ack_floor.stream_sequence);
        Self { created_ns, sequence, leader: Leader::of(info) }
    }

    /// The state of a consumer that is read again. While its settings are wrong (`is_wrong`) it may skip messages, and
    /// its position is meaningless.
    pub(crate) fn again(former: Option<&Self>, info: &Info, is_wrong: bool) -> Self {
        let seen = Self::of(info);
        if !is_wrong {
            return seen;
        }
        let known = former.filter(|former| former.is_of(info)).map_or(0, |former| former.sequence);
        Self { sequence: known.min(seen.sequence), ..seen }
    }

    pub(crate) fn is_of(&self, info: &Info) -> bool {
        self.created_ns == nanos(info.created)
    }

    /// Whether the consumer has got another leader since.
    pub(crate) fn is_of_former_leader(&self, info: &Info) -> bool {
        let both = self.leader.as_ref().zip(Leader::of(info));
        self.is_of(info) && both.is_some_and(|(former, present)| *former != present)
    }

    /// Whether the consumer may have skipped messages after this floor, because it has a new leader. A consumer before
    /// the floor was set back, by a loss of data or by an operator.
    pub(crate) fn is_passed(&self, info: &Info) -> bool {
        self.is_of_former_leader(info) && self.sequence <= info.ack_floor.stream_sequence
    }

    /// The first message that is not known to be done.
    pub(crate) fn next(&self) -> u64 {
        self.sequence.saturating_add(1)
    }

    /// The recorded floor of the consumer.
    pub(crate) async fn recorded(connection: &Connection, consumer: &str) -> Result<Option<Self>, ReadError> {
        let record = leader_get::last(connection, DEAD_LETTERS, &subject(consumer)).await?;
        let read = record.map(|record| serde_json::from_slice(&record.payload));
        Ok(read.transpose().unwrap_or_else(|error| {
            warn!(consumer, %error, "foreign message in place of the recorded ack floor, skipped");
            None
        }))
    }

    /// How far each consumer was known to have come, and when that was recorded.
    pub async fn all_recorded(connection: &Connection) -> Result<Vec<(u64, SystemTime)>, ReadError> {
        let filter = [subject("*")];
        let records = direct_get::last_of_each(&connection.client, DEAD_LETTERS, &filter).await?;
        let floors = records.into_iter().filter_map(|record| {
            let floor: Self = serde_json::from_slice(&record.payload).ok()?;
            Some((floor.sequence, stored(&record.headers)?))
        });
        Ok(floors.collect())
    }

    /// Records it, where it has a leader to lose. Nothing waits for that: an older record leads farther back.
    pub(crate) async fn record(&self, connection: &Connection, consumer: &str) {
        if self.leader.is_none() {
            return;
        }
        let mut headers = HeaderMap::new();
        headers.insert("Nats-TTL", format!("{}s", RECORD_TTL.as_secs()));
        let record = json!(self).to_string();
        if let Err(error) =
            connection.client.publish_with_headers(subject(consumer), headers, record.into()).await
        {
            warn!(consumer, %error, "ack floor not recorded");
        }
    }
}

fn nanos(time: DateTime) -> i128 {
    time.unix_timestamp_nanos()
}

/// Beside the dead letters, which are what else a step keeps of its work.
fn subject(consumer: &str) -> String {
    format!("DEAD_LETTER.floor.{consumer}")
}

/// The subject of a request to reset a consumer.
pub(crate) fn reset_subject(consumer: &str) -> String {
    format!("$JS.API.{}", reset(consumer))
}

fn reset(consumer: &str) -> String {
    format!("CONSUMER.RESET.{ORDERS}.{consumer}")
}

/// Whether the broker can have a consumer go back.
pub(crate) fn supports_reset(connection: &Connection) -> bool {
    connection.client.is_server_compatible(2, 14, 0)
}

/// Resets a consumer, so that it redelivers everything from this message on. `None` if this user may not do that.
pub(crate) async fn reset_consumer(
    connection: &Connection,
    consumer: &str,
    from: u64,
) -> Result<Option<Info>, async_nats::Error> {
    let request = json!({ "seq": from });
    let going = connection.jetstream.request(reset(consumer), &request);
    match connection.if_allowed(&reset_subject(consumer), going).await.transpose()? {
        None => Ok(None),
        Some(Response::Ok(info)) => Ok(Some(info)),
        Some(Response::Err { error }) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(created: &str, leader: Option<(&str, &str)>) -> Info {
        let cluster =
            leader.map(|(leader, since)| serde_json::json!({"leader": leader, "leader_since": since}));
        let position = serde_json::json!({"consumer_seq": 7, "stream_seq": 41});
        serde_json::from_value(serde_json::json!({
            "stream_name": "ORDERS",
            "name": "step",
            "created": created,
            "config": {"ack_policy": "explicit", "deliver_policy": "all", "replay_policy": "instant"},
            "delivered": position,
            "ack_floor": position,
            "num_ack_pending": 0,
            "num_redelivered": 0,
            "num_waiting": 0,
            "num_pending": 0,
            "cluster": cluster,
        }))
        .unwrap()
    }

    #[test]
    fn under_an_edit_only_the_leader_is_updated() {
        let (monday, tuesday) = ("2026-11-16T00:00:00Z", "2026-11-17T00:00:00Z");
        let present = info(monday, Some(("n2", tuesday)));
        let before = AckFloor { sequence: 7, ..AckFloor::of(&info(monday, Some(("n1", monday)))) };
        assert_eq!(AckFloor::again(Some(&before), &present, false), AckFloor::of(&present));
        let again = AckFloor::again(Some(&before), &present, true);
        assert_eq!(again.next(), 8);
        assert!(!again.is_of_former_leader(&present));
        let of_another = AckFloor { created_ns: 1, ..before };
        for former in [None, Some(&of_another)] {
            assert_eq!(AckFloor::again(former, &present, true).next(), 1, "{former:?}");
        }
    }

    #[test]
    fn a_leader_change_is_detected_even_back_to_the_same_server() {
        let (monday, tuesday) = ("2026-11-16T00:00:00Z", "2026-11-17T00:00:00Z");
        let floor = AckFloor::of(&info(monday, Some(("n1", monday))));
        assert_eq!(floor.next(), 42);
        for (leader, is_other) in [(("n1", monday), false), (("n2", tuesday), true), (("n1", tuesday), true)]
        {
            assert_eq!(floor.is_of_former_leader(&info(monday, Some(leader))), is_other, "{leader:?}");
        }
        let set_back = AckFloor { sequence: 42, ..floor.clone() };
        for (floor, is_passed) in [(&floor, true), (&set_back, false)] {
            assert_eq!(floor.is_passed(&info(monday, Some(("n2", tuesday)))), is_passed, "{floor:?}");
        }
        assert!(!floor.is_of_former_leader(&info(tuesday, Some(("n2", tuesday)))), "another consumer");
        assert!(!floor.is_of_former_leader(&info(monday, None)), "no leader reported");
        let read: AckFloor = serde_json::from_value(json!(floor)).unwrap();
        assert_eq!(read, floor, "as it is recorded");
        assert!(!AckFloor::of(&info(monday, None)).is_of_former_leader(&info(monday, Some(("n1", monday)))));
    }
}
