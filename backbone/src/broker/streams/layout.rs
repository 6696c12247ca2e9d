//! The required layout of each stream, and the permitted changes to an existing one.

use std::time::Duration;

use async_nats::jetstream::stream::{
    Config, DiscardPolicy, PersistenceMode, Republish, RetentionPolicy, StorageType,
};
use program::config::DAY;

use super::config::{RETENTION_DEFAULT, StreamConfig};
use super::names::{DEAD_LETTERS, DEFERRALS, ORDERS};
use crate::dead_letters::id::ALL_DEAD_LETTERS;
use crate::log::event::BYTES_MAX;
use crate::log::subjects::{ALL_DEFERRALS, ALL_ORDERS, LIVE_PREFIX};

/// What one stream needs.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) name: &'static str,
    /// The stream as a new one is made.
    new: Config,
    /// Minimum retention of messages; zero is forever. `None`: that of the stream.
    retention: Option<Duration>,
    /// How many replicas there have to be at least. `None`: as many as the stream has.
    pub(super) replicas: Option<usize>,
    /// Whether there may be more replicas than that.
    more_replicas: bool,
}

impl Layout {
    pub(super) fn of_orders(config: &StreamConfig) -> Self {
        let new = Config {
            name: ORDERS.to_owned(),
            description: Some("Waybill: every event of every order".to_owned()),
            subjects: vec![ALL_ORDERS.to_owned()],
            max_age: config.orders_retention.unwrap_or(RETENTION_DEFAULT),
            republish: Some(republish()),
            allow_atomic_publish: true,
            // Barriers expire.
            allow_message_ttl: true,
            ..keeping_everything()
        };
        let replicas = config.orders_replicas.map(usize::from);
        Self { name: ORDERS, new, retention: config.orders_retention, replicas, more_replicas: false }
    }

    /// Dead letters are kept until an operator resolves them, with as many replicas as the orders.
    pub(super) fn of_dead_letters(replicas: usize) -> Self {
        let new = Config {
            name: DEAD_LETTERS.to_owned(),
            description: Some("Waybill: what its steps have given up".to_owned()),
            subjects: vec![ALL_DEAD_LETTERS.to_owned()],
            max_messages_per_subject: 1,
            allow_message_ttl: true,
            ..keeping_everything()
        };
        let (retention, replicas) = (Some(Duration::ZERO), Some(replicas));
        Self { name: DEAD_LETTERS, new, retention, replicas, more_replicas: true }
    }

    /// Timers are kept until their time, with as many replicas as the orders. The broker schedules no messages in a stream
    /// that rejects messages when it is full. Without limits, this one is never full and discards nothing.
    pub(super) fn of_deferrals(replicas: usize) -> Self {
        let new = Config {
            name: DEFERRALS.to_owned(),
            description: Some("Waybill: timers of deferred orders".to_owned()),
            subjects: vec![ALL_DEFERRALS.to_owned()],
            discard: DiscardPolicy::Old,
            allow_message_schedules: true,
            allow_message_ttl: true,
            ..keeping_everything()
        };
        let (retention, replicas) = (Some(Duration::ZERO), Some(replicas));
        Self { name: DEFERRALS, new, retention, replicas, more_replicas: true }
    }

    /// The stream as a new one is made.
    pub(super) fn wanted(&self, replicas: usize) -> Config {
        Config { num_replicas: replicas, ..self.new.clone() }
    }

    /// Whether a stream that is `present` has all required features, though perhaps less retention or fewer replicas
    /// than configured.
    pub(super) fn can_do_with(&self, present: &Config) -> bool {
        let least = Self { retention: None, replicas: None, ..self.clone() };
        least.complete(present).is_ok_and(|(_, changes)| changes.is_empty())
    }

    /// The configuration that `present` needs and the changes to it, or every difference that forbids a change.
    pub(super) fn complete(&self, present: &Config) -> Result<(Config, Vec<String>), Vec<String>> {
        let mut completed = present.clone();
        let mut changes = Vec::new();
        let mut harm = harm(present, &self.wanted(present.num_replicas));
        let mut require = |holds: bool, field: &str, is: String, needs: &str| {
            if !holds {
                harm.push(format!("{field} is {is}, must be {needs}"));
            }
        };

        if let Some(needs) = self.retention {
            let is = present.max_age;
            let shorter = kept_for(needs) < kept_for(is);
            require(!shorter, "max_age", age(is), &format!("{} (ORDERS_RETENTION)", age(needs)));
            if !shorter && needs != is {
                completed.max_age = needs;
                changes.push(format!("max_age from {} to {}", age(is), age(needs)));
            }
        }
        if let Some(needs) = self.replicas {
            let is = present.num_replicas;
            let holds = self.more_replicas || needs >= is;
            require(holds, "num_replicas", is.to_string(), &format!("{needs} (ORDERS_REPLICAS)"));
            if needs > is {
                completed.num_replicas = needs;
                changes.push(format!("num_replicas from {is} to {needs}"));
            }
        }
        match (&self.new.republish, &present.republish) {
            (None, _) => {}
            (Some(needs), None) => {
                completed.republish = Some(needs.clone());
                changes.push("republish added".to_owned());
            }
            (Some(needs), Some(is)) => {
                let said =
                    |republish: &Republish| format!("{} to {}", republish.source, republish.destination);
                require(is == needs, "republish", said(is), &said(needs));
            }
        }
        let features = [
            ("allow_direct", self.new.allow_direct, &mut completed.allow_direct),
            ("allow_atomic_publish", self.new.allow_atomic_publish, &mut completed.allow_atomic_publish),
            ("allow_msg_ttl", self.new.allow_message_ttl, &mut completed.allow_message_ttl),
            ("allow_msg_schedules", self.new.allow_message_schedules, &mut completed.allow_message_schedules),
        ];
        for (feature, needed, is) in features {
            if needed && !*is {
                *is = true;
                changes.push(format!("{feature} added"));
            }
        }
        if harm.is_empty() { Ok((completed, changes)) } else { Err(harm) }
    }
}

/// A stream that rejects messages when it is full, and drops none to make space.
fn keeping_everything() -> Config {
    Config {
        storage: StorageType::File,
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::New,
        allow_direct: true,
        ..Config::default()
    }
}

fn republish() -> Republish {
    Republish {
        source: ALL_ORDERS.to_owned(),
        destination: format!("{LIVE_PREFIX}{ALL_ORDERS}"),
        headers_only: false,
    }
}

/// Zero stands for no limit.
fn kept_for(max_age: Duration) -> Duration {
    if max_age.is_zero() { Duration::MAX } else { max_age }
}

/// How a stream that is `present` could lose or reject messages that one made as `needed` keeps. Ages and replicas are
/// not compared: a stream may have more of both than needed.
pub fn harm(present: &Config, needed: &Config) -> Vec<String> {
    let fields = guarantees(present).into_iter().zip(guarantees(needed));
    let differing = fields.filter(|(is, needs)| is != needs);
    differing.map(|((field, is), (_, needs))| format!("{field} is {is}, must be {needs}")).collect()
}

/// The settings that decide whether a stream keeps all messages.
fn guarantees(config: &Config) -> [(&'static str, String); 13] {
    let set = |set: bool| if set { "set" } else { "none" }.to_owned();
    let per_subject = match config.max_messages_per_subject {
        ..=0 => "unlimited".to_owned(),
        messages => messages.to_string(),
    };
    // `Async` acknowledges before a message is written.
    let persist_mode = config.persist_mode.unwrap_or(PersistenceMode::Default);
    [
        ("storage", format!("{:?}", config.storage)),
        ("retention", format!("{:?}", config.retention)),
        ("discard", format!("{:?}", config.discard)),
        // A limit of a stream that rejects messages when it is full drops none.
        ("max_msgs or max_bytes", set(config.discard == DiscardPolicy::Old && is_limited(config))),
        ("discard_new_per_subject", config.discard_new_per_subject.to_string()),
        ("subjects", config.subjects.join(",")),
        ("max_msgs_per_subject", per_subject),
        ("persist_mode", format!("{persist_mode:?}")),
        ("no_ack", config.no_ack.to_string()),
        ("sealed", config.sealed.to_string()),
        ("mirror", set(config.mirror.is_some())),
        ("sources", set(config.sources.as_ref().is_some_and(|sources| !sources.is_empty()))),
        ("subject_transform", set(config.subject_transform.is_some())),
    ]
}

fn is_limited(config: &Config) -> bool {
    config.max_messages > 0 || config.max_bytes > 0
}

/// The limit that the largest event of the contract exceeds, if any: the broker's `max_payload`, or the stream's
/// `max_msg_size`, which is not positive without a limit.
pub(super) fn too_small(max_payload: usize, max_msg_size: i32) -> Option<String> {
    let of_stream = usize::try_from(max_msg_size).ok().filter(|bytes| *bytes > 0);
    let limits = [("max_payload", Some(max_payload)), ("max_msg_size", of_stream)];
    let small = limits.into_iter().filter_map(|(limit, bytes)| {
        let bytes = bytes.filter(|bytes| *bytes < BYTES_MAX)?;
        Some(format!("{limit} is {bytes}"))
    });
    let small: Vec<_> = small.collect();
    (!small.is_empty()).then(|| {
        format!("{}, must be at least {BYTES_MAX} bytes; large orders will be rejected", small.join(", "))
    })
}

/// How long messages are kept, in words.
pub fn age(age: Duration) -> String {
    let (day_s, age_s) = (DAY.as_secs(), age.as_secs());
    match age {
        Duration::ZERO => "unlimited".to_owned(),
        // Not in months: their length varies.
        _ if age == Duration::from_secs(age_s) && age_s > day_s && age_s.is_multiple_of(day_s) => {
            format!("{}days", age_s / day_s)
        }
        _ => humantime::format_duration(age).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::streams::{RETENTION_MAX, RETENTION_MIN};
    use program::config::duration;

    fn wanted(config: &StreamConfig, replicas: usize) -> Config {
        Layout::of_orders(config).wanted(replicas)
    }

    fn complete(present: &Config, config: &StreamConfig) -> Result<(Config, Vec<String>), Vec<String>> {
        Layout::of_orders(config).complete(present)
    }

    fn config(retention: &str) -> StreamConfig {
        let parse = duration(RETENTION_MIN..=RETENTION_MAX);
        StreamConfig { orders_retention: Some(parse(retention).unwrap()), orders_replicas: None }
    }

    #[test]
    fn a_stream_made_by_waybill_needs_no_change() {
        let present = wanted(&config("30d"), 1);
        for again in [StreamConfig::default(), config("30d")] {
            assert_eq!(complete(&present, &again).unwrap().1, Vec::<String>::new());
        }
    }

    #[test]
    fn harmless_settings_are_added() {
        let present = Config { republish: None, allow_direct: false, ..wanted(&config("30d"), 1) };
        let (completed, changes) = complete(&present, &config("60d")).unwrap();
        assert_eq!(completed, wanted(&config("60d"), 1));
        assert_eq!(changes.len(), 3, "{changes:?}");
    }

    #[test]
    fn a_stream_that_lacks_only_retention_and_replicas_is_usable() {
        let layout = Layout::of_orders(&StreamConfig { orders_replicas: Some(3), ..config("60d") });
        let present = wanted(&config("30d"), 1);
        assert!(layout.can_do_with(&present));
        assert!(!layout.can_do_with(&Config { republish: None, ..present.clone() }));
        assert!(!layout.can_do_with(&Config { storage: StorageType::Memory, ..present }));
    }

    #[test]
    fn every_setting_that_could_lose_orders_is_rejected_by_name() {
        let present = Config {
            storage: StorageType::Memory,
            discard: DiscardPolicy::Old,
            max_messages_per_subject: 1,
            ..wanted(&config("30d"), 3)
        };
        let wish = StreamConfig { orders_replicas: Some(1), ..config("1d") };
        let harm = complete(&present, &wish).unwrap_err().join("\n");
        for field in ["storage", "discard", "max_msgs_per_subject", "max_age", "num_replicas"] {
            assert!(harm.contains(field), "{field} not in {harm}");
        }
    }

    #[test]
    fn limits_below_the_contract_are_named() {
        assert_eq!(too_small(1024 * 1024, -1), None);
        assert_eq!(too_small(BYTES_MAX, i32::try_from(BYTES_MAX).unwrap()), None);
        let small = too_small(16_384, 1_000).unwrap();
        assert!(small.starts_with("max_payload is 16384, max_msg_size is 1000, must be "), "{small}");
        assert!(too_small(16_384, 0).unwrap().starts_with("max_payload is 16384, must"));
    }

    #[test]
    fn dead_letters_are_kept_for_ever_on_as_many_replicas_as_the_orders() {
        let letters = Layout::of_dead_letters(3);
        let present =
            Config { max_age: Duration::from_secs(60), allow_message_ttl: false, ..letters.wanted(1) };
        let (completed, changes) = letters.complete(&present).unwrap();
        assert_eq!(completed, letters.wanted(3));
        assert_eq!(changes.len(), 3, "{changes:?}");
        assert_eq!(letters.complete(&letters.wanted(5)).unwrap().1, Vec::<String>::new());
        let harm =
            letters.complete(&Config { max_messages_per_subject: 0, ..letters.wanted(3) }).unwrap_err();
        assert!(harm[0].starts_with("max_msgs_per_subject"), "{harm:?}");
    }
}
