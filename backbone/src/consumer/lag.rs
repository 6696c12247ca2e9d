//! Whether the server that leads a consumer lags behind the stream.
//!
//! A consumer's leader delivers its own copy of the stream, and counts pending messages there. A server that has
//! returned and not caught up reports nothing pending, and orders wait (nats-server 2.15 restarts a stalled catch-up
//! after 5 to 30 s). The stream's leader calls that copy current once it has sent the missing messages. So the
//! consumer's position is compared with the stream's. No I/O.

use std::time::Duration;

use async_nats::datetime::DateTime;
use async_nats::jetstream::consumer;
use async_nats::jetstream::stream::{self, PeerInfo};
use tokio::time::Instant;

/// How long a consumer with open pull requests may take to reach the stream's earlier position.
const BEHIND_MAX: Duration = Duration::from_secs(5);

/// The observations of a consumer so far.
#[derive(Debug, Default)]
pub struct Lag {
    sample: Option<Sample>,
    cleared: Option<Cleared>,
}

/// Where the stream ended at the first observation of the consumer before that position, with nothing pending.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    last_sequence: u64,
}

/// The position up to which no message is for the consumer. Its leader does not always report that it has skipped
/// other consumers' messages.
#[derive(Clone, Debug)]
struct Cleared {
    /// The leadership that this holds for. Another leader may begin farther back.
    leadership: Leadership,
    to: u64,
}

type Leadership = Option<(Option<String>, Option<DateTime>)>;

/// Messages that the consumer has not reached, though it had the time. Its leader lags if one of them is for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnseenRange {
    /// The first of them.
    pub(crate) from: u64,
    /// The last one that it has had the time for.
    pub(crate) to: u64,
}

/// A consumer's leader that lags behind the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaggingLeader {
    /// The server that leads the consumer.
    pub leader: String,
    /// Messages of the stream behind the consumer's position, for it or not.
    pub messages: u64,
    /// The server to lead it instead; `None` if there is none that keeps up.
    pub successor: Option<String>,
}

impl Lag {
    /// Compares what the leader of the consumer and the leader of the stream say now. A deposed leader of the stream
    /// that does not know it yet reports too few messages. That may hide a lag, but never shows a false one.
    pub(crate) fn observe(
        &mut self,
        consumer: &consumer::Info,
        stream: &stream::Info,
        now: Instant,
    ) -> Option<UnseenRange> {
        let (position, last_sequence) = (self.position(consumer), stream.state.last_sequence);
        if !is_waiting(consumer) {
            self.sample = None;
            return None;
        }
        match self.sample.filter(|sample| position < sample.last_sequence) {
            Some(sample) if now.duration_since(sample.at) >= BEHIND_MAX => {
                Some(UnseenRange { from: position.saturating_add(1), to: sample.last_sequence })
            }
            Some(_) => None,
            None => {
                self.sample = (position < last_sequence).then_some(Sample { at: now, last_sequence });
                None
            }
        }
    }

    /// None of the messages that the consumer had not seen is for it.
    pub(crate) fn clear(&mut self, consumer: &consumer::Info, unseen: UnseenRange) {
        self.sample = None;
        self.cleared = Some(Cleared { leadership: leadership(consumer), to: unseen.to });
    }

    fn position(&self, consumer: &consumer::Info) -> u64 {
        let cleared = self.cleared.as_ref().filter(|cleared| cleared.leadership == leadership(consumer));
        consumer.delivered.stream_sequence.max(cleared.map_or(0, |cleared| cleared.to))
    }
}

fn leadership(consumer: &consumer::Info) -> Leadership {
    consumer.cluster.as_ref().map(|cluster| (cluster.leader.clone(), cluster.leader_since))
}

/// Whether the consumer has replicas and open pull requests, may deliver, and reports nothing pending: then its
/// position moves to the end of its leader's copy of the stream.
fn is_waiting(consumer: &consumer::Info) -> bool {
    let has_replicas = consumer.cluster.as_ref().is_some_and(|cluster| !cluster.replicas.is_empty());
    let has_room = i64::try_from(consumer.num_ack_pending).is_ok_and(|ack_pending| {
        consumer.config.max_ack_pending <= 0 || ack_pending < consumer.config.max_ack_pending
    });
    has_replicas && consumer.num_waiting > 0 && consumer.num_pending == 0 && has_room && !consumer.paused
}

impl LaggingLeader {
    /// The lag of a consumer whose leader does not have what the leader of the stream has.
    pub(crate) fn of(consumer: &consumer::Info, stream: &stream::Info) -> Option<Self> {
        let cluster = consumer.cluster.as_ref()?;
        let leader = cluster.leader.clone()?;
        let messages = stream.state.last_sequence.saturating_sub(consumer.delivered.stream_sequence);
        let copies = stream.cluster.as_ref();
        // Sorted, so that all replicas of a step choose the same successor. The stream's leader comes first: it cannot lag.
        let of_stream = copies.and_then(|copies| copies.leader.as_ref());
        let current = copies.into_iter().flat_map(|copies| &copies.replicas).filter(|copy| is_current(copy));
        let mut others: Vec<_> = current.map(|copy| &copy.name).collect();
        others.sort_unstable();
        let may_lead = |name: &&String| cluster.replicas.iter().any(|replica| replica.name == **name);
        let successor = of_stream.into_iter().chain(others).find(may_lead).cloned();
        Some(Self { leader, messages, successor })
    }
}

fn is_current(copy: &PeerInfo) -> bool {
    copy.current && !copy.offline
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn replicas(names: &[(&str, bool)]) -> Vec<Value> {
        let replica = |(name, current): &(&str, bool)| json!({"name": name, "current": current, "active": 0, "offline": false});
        names.iter().map(replica).collect()
    }

    /// A consumer led by n2 at this position, with open pull requests and nothing pending.
    fn consumer(position: u64, edit: impl FnOnce(&mut Value)) -> consumer::Info {
        let mut info = json!({
            "stream_name": "ORDERS",
            "name": "step",
            "created": "2026-11-16T00:00:00Z",
            "config": {
                "ack_policy": "explicit", "deliver_policy": "all", "replay_policy": "instant", "max_ack_pending": 100
            },
            "delivered": {"consumer_seq": position, "stream_seq": position},
            "ack_floor": {"consumer_seq": position, "stream_seq": position},
            "num_ack_pending": 0,
            "num_redelivered": 0,
            "num_waiting": 1,
            "num_pending": 0,
            "cluster": {"leader": "n2", "replicas": replicas(&[("n0", true), ("n1", true)])},
        });
        edit(&mut info);
        serde_json::from_value(info).unwrap()
    }

    /// The stream led by this server, with copies at the others.
    fn stream(last_sequence: u64, leader: &str, copies: &[(&str, bool)]) -> stream::Info {
        serde_json::from_value(json!({
            "config": stream::Config::default(),
            "created": "2026-11-16T00:00:00Z",
            "state": {
                "messages": last_sequence, "bytes": 0, "first_seq": 1, "first_ts": "2026-11-16T00:00:00Z",
                "last_seq": last_sequence, "last_ts": "2026-11-16T00:00:00Z", "consumer_count": 1
            },
            "cluster": {"leader": leader, "replicas": replicas(copies)},
        }))
        .unwrap()
    }

    fn after(seconds: u64) -> Instant {
        static BEGIN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        *BEGIN + Duration::from_secs(seconds)
    }

    fn seen(lag: &mut Lag, consumer: &consumer::Info, last_sequence: u64, at: u64) -> Option<UnseenRange> {
        lag.observe(consumer, &stream(last_sequence, "n0", &[]), after(at))
    }

    #[test]
    fn a_stalled_consumer_lags() {
        let (mut lag, stuck) = (Lag::default(), consumer(10, |_| {}));
        for (last_sequence, at) in [(10, 0), (12, 3), (20, 6)] {
            assert_eq!(seen(&mut lag, &stuck, last_sequence, at), None, "it may just have been asked");
        }
        assert_eq!(seen(&mut lag, &stuck, 30, 9), Some(UnseenRange { from: 11, to: 12 }));
    }

    #[test]
    fn an_advancing_consumer_never_lags() {
        let mut lag = Lag::default();
        for look in 0..100 {
            let position = consumer(1000 * look, |_| {});
            assert_eq!(seen(&mut lag, &position, 1000 * look + 900, 4 * look), None, "{look}");
        }
    }

    #[test]
    fn a_consumer_with_a_reason_to_wait_does_not_lag() {
        let reasons: [fn(&mut Value); 5] = [
            |info| info["num_pending"] = json!(1),
            |info| info["num_waiting"] = json!(0),
            |info| info["num_ack_pending"] = json!(100),
            |info| info["paused"] = json!(true),
            |info| info["cluster"] = json!({"leader": "n2", "replicas": []}),
        ];
        for reason in reasons {
            let (mut lag, stands) = (Lag::default(), consumer(10, reason));
            for at in [0, 15, 30] {
                assert_eq!(seen(&mut lag, &stands, 20, at), None, "{stands:?}");
            }
        }
    }

    #[test]
    fn time_with_a_reason_to_wait_does_not_count() {
        let (mut lag, waits) = (Lag::default(), consumer(10, |_| {}));
        let busy = consumer(10, |info| info["num_waiting"] = json!(0));
        for (consumer, at) in [(&waits, 0), (&busy, 15), (&waits, 30)] {
            assert_eq!(seen(&mut lag, consumer, 20, at), None);
        }
        assert_eq!(seen(&mut lag, &waits, 20, 38), Some(UnseenRange { from: 11, to: 20 }));
    }

    #[test]
    fn messages_for_other_consumers_are_checked_once() {
        let (mut lag, quiet) = (Lag::default(), consumer(10, |_| {}));
        let unseen = UnseenRange { from: 11, to: 12 };
        assert_eq!(seen(&mut lag, &quiet, 12, 0), None);
        assert_eq!(seen(&mut lag, &quiet, 12, 8), Some(unseen));
        lag.clear(&quiet, unseen);
        for at in [12, 30, 50] {
            assert_eq!(seen(&mut lag, &quiet, 12, at), None);
        }
        // Another leader may have less of the stream.
        let led_by_another = consumer(10, |info| info["cluster"]["leader"] = json!("n1"));
        assert_eq!(seen(&mut lag, &led_by_another, 12, 60), None);
        assert_eq!(seen(&mut lag, &led_by_another, 12, 68), Some(unseen));
    }

    #[test]
    fn the_successor_is_the_stream_leader_or_a_current_replica() {
        let lagging = consumer(10, |_| {});
        let behind = |stream| LaggingLeader::of(&lagging, &stream).unwrap();
        let expected =
            LaggingLeader { leader: "n2".to_owned(), messages: 90, successor: Some("n1".to_owned()) };
        assert_eq!(behind(stream(100, "n1", &[("n2", false), ("n0", true)])), expected);
        // The lagging leader leads the stream itself.
        let copies = [("n1", true), ("n0", false)];
        assert_eq!(behind(stream(100, "n2", &copies)).successor.as_deref(), Some("n1"));
        assert_eq!(behind(stream(100, "n2", &[("n1", false), ("n0", false)])).successor, None);
        // The stream's leader has no replica of the consumer.
        assert_eq!(behind(stream(100, "n9", &[("n8", true)])).successor, None);
        let unknown = consumer(10, |info| info["cluster"] = json!({"replicas": []}));
        assert_eq!(LaggingLeader::of(&unknown, &stream(100, "n1", &[])), None, "no leader");
    }
}
