//! The required settings of a consumer, and how to repair one that differs. No I/O.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::consumer::{
    AckPolicy, Config, DeliverPolicy, FromConsumer, Info, IntoConsumerConfig, pull,
};

use crate::consumer::ack_floor::AckFloor;
use crate::consumer::config::ConsumerConfig;
use crate::log::subjects::ALL_ORDERS;

/// Messages delivered and not yet acknowledged, over all replicas. Orders that wait for their retry count among
/// them, so this bounds how many may fail at once before the others have to wait. The broker writes all of them down up to
/// ten times a second, some ten bytes each.
const ACK_PENDING_MAX: i64 = 100_000;
/// Requests that may stand at once, over all replicas: the broker's default.
const REQUESTS_MAX: i64 = 512;
/// Metadata by which a consumer says which settings one of our programs gave it. Another one may give it others, as in
/// a rolling change; what none of them gave it is an edit.
const SETTINGS_KEY: &str = "waybill-settings";
/// Settings that can be changed in place, because no message is passed over by them.
const IN_PLACE: [&str; 10] = [
    "ack_wait",
    "max_ack_pending",
    "backoff",
    "max_batch",
    "max_bytes",
    "max_expires",
    "priority_groups",
    "priority_policy",
    "priority_timeout",
    INACTIVE_THRESHOLD,
];
/// After so long without a request the broker deletes the consumer. No Waybill program sets this, so the mark that a
/// program writes does not cover it.
const INACTIVE_THRESHOLD: &str = "inactive_threshold";

/// The settings that decide which messages a consumer delivers and how, by the broker's names.
pub(super) type Settings = [(&'static str, String); 18];

pub(super) fn requested(config: &ConsumerConfig) -> pull::Config {
    pull::Config {
        durable_name: Some(config.name.clone()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: config.ack_wait,
        max_ack_pending: ACK_PENDING_MAX,
        // What the broker reports for an unset value.
        max_deliver: -1,
        max_waiting: REQUESTS_MAX,
        filter_subjects: vec![config.filter.clone()],
        ..pull::Config::default()
    }
}

/// The plan for an existing consumer.
#[derive(Debug, PartialEq)]
pub(super) enum Plan {
    Leave,
    Update(pull::Config),
    /// It may have passed messages over, from this sequence on.
    Replace(pull::Config, u64),
}

/// Decides what has to be done about a consumer, so that it is configured as requested and has skipped nothing.
pub(super) fn plan(requested: &pull::Config, present: &Info, floor: Option<&AckFloor>) -> Plan {
    let config = &present.config;
    let floor = floor.filter(|floor| floor.is_of(present));
    let given = is_marked(config);
    let mut wanted = with_operator_settings(config, requested);
    // The start cannot be edited. Unless Waybill is known to have made this consumer, it may start too late.
    if given || floor.is_some() {
        wanted.deliver_policy = config.deliver_policy;
    }
    let needed = wanted.clone().into_consumer_config();
    let passes_over = |(setting, ..): &(&str, String, String)| match *setting {
        "filter_subjects" => !covers(config, &needed),
        other => !IN_PLACE.contains(&other),
    };
    let differing = differences(config, &needed);
    if differing.is_empty() && given {
        return Plan::Leave;
    }
    if !differing.iter().any(passes_over) {
        return Plan::Update(marked(wanted));
    }
    let start_sequence = floor.map_or(1, AckFloor::next);
    wanted.deliver_policy = starting_at(start_sequence);
    Plan::Replace(marked(wanted), start_sequence)
}

pub(super) fn starting_at(start_sequence: u64) -> DeliverPolicy {
    match start_sequence {
        1 => DeliverPolicy::All,
        start_sequence => DeliverPolicy::ByStartSequence { start_sequence },
    }
}

/// The required settings, and the operator's: replicas, pause, description.
pub(super) fn with_operator_settings(present: &Config, requested: &pull::Config) -> pull::Config {
    // A push consumer has no pull settings.
    let present = pull::Config::try_from_consumer_config(present.clone()).unwrap_or_default();
    let metadata = present.metadata.into_iter().filter(|(name, _)| !name.starts_with("_nats."));
    pull::Config {
        description: present.description,
        sample_frequency: present.sample_frequency,
        num_replicas: present.num_replicas,
        memory_storage: present.memory_storage,
        pause_until: present.pause_until,
        metadata: metadata.collect::<HashMap<_, _>>(),
        ..requested.clone()
    }
}

/// With its settings written on it.
pub(super) fn marked(mut config: pull::Config) -> pull::Config {
    let given = text(&settings(&config.clone().into_consumer_config()));
    config.metadata.insert(SETTINGS_KEY.to_owned(), given);
    config
}

/// Whether the consumer has the settings that a Waybill program gave it.
fn is_marked(config: &Config) -> bool {
    config.metadata.get(SETTINGS_KEY).is_some_and(|given| *given == text(&settings(config)))
}

fn text(settings: &Settings) -> String {
    let settings = settings.iter().filter(|(setting, _)| *setting != INACTIVE_THRESHOLD);
    settings.map(|(setting, value)| format!("{setting}={value}")).collect::<Vec<_>>().join(" ")
}

/// How a consumer differs from the requested settings, in words, unless a Waybill program set them.
pub(super) fn differing(present: &Config, requested: &Config) -> Option<String> {
    let mut differing = differences(present, requested);
    if is_marked(present) && covers(present, requested) {
        differing.retain(|(setting, ..)| *setting == INACTIVE_THRESHOLD);
    }
    let said = |(setting, is, needs): (&str, String, String)| format!("{setting} is {is}, must be {needs}");
    (!differing.is_empty()).then(|| differing.into_iter().map(said).collect::<Vec<_>>().join("; "))
}

pub(super) fn differences(present: &Config, needed: &Config) -> Vec<(&'static str, String, String)> {
    let both = settings(present).into_iter().zip(settings(needed));
    let differing = both.filter(|(is, needs)| is != needs);
    differing.map(|((setting, is), (_, needs))| (setting, is, needs)).collect()
}

pub(super) fn settings(config: &Config) -> Settings {
    let duration = |duration: Duration| humantime::format_duration(duration).to_string();
    let backoff: Vec<_> = config.backoff.iter().map(|pause| duration(*pause)).collect();
    [
        ("filter_subjects", filters(config).join(",")),
        ("max_deliver", config.max_deliver.to_string()),
        ("ack_policy", format!("{:?}", config.ack_policy)),
        ("deliver_policy", format!("{:?}", config.deliver_policy)),
        ("replay_policy", format!("{:?}", config.replay_policy)),
        ("headers_only", config.headers_only.to_string()),
        ("deliver_subject", config.deliver_subject.clone().unwrap_or_default()),
        ("max_waiting", config.max_waiting.to_string()),
        ("ack_wait", duration(config.ack_wait)),
        ("max_ack_pending", config.max_ack_pending.to_string()),
        ("backoff", backoff.join(",")),
        ("max_batch", config.max_batch.to_string()),
        ("max_bytes", config.max_bytes.to_string()),
        ("max_expires", duration(config.max_expires)),
        // With priority groups the broker rejects pull requests without a group, such as Waybill's.
        ("priority_groups", config.priority_groups.join(",")),
        ("priority_policy", format!("{:?}", config.priority_policy)),
        ("priority_timeout", duration(config.priority_timeout)),
        (INACTIVE_THRESHOLD, duration(config.inactive_threshold)),
    ]
}

/// The subjects that it reads, in a fixed order; all of them if it names none.
fn filters(config: &Config) -> Vec<String> {
    let one = (!config.filter_subject.is_empty()).then(|| config.filter_subject.clone());
    let mut filters: Vec<_> = config.filter_subjects.iter().cloned().chain(one).collect();
    if filters.is_empty() {
        filters.push(">".to_owned());
    }
    filters.sort_unstable();
    filters
}

/// Whether it reads all subjects that are needed.
fn covers(present: &Config, needed: &Config) -> bool {
    let present = filters(present);
    let all = |filter: &String| filter == ">" || filter == ALL_ORDERS;
    present.iter().any(all) || filters(needed).iter().all(|filter| present.contains(filter))
}

#[cfg(test)]
mod tests {
    use super::super::Durable;
    use super::*;
    use crate::log::subjects::{self, EventKind};

    const FLOOR: u64 = 41;

    fn config(ack_wait_s: u64) -> ConsumerConfig {
        ConsumerConfig::of_step("step", Duration::from_secs(ack_wait_s))
    }

    fn usual() -> ConsumerConfig {
        config(10)
    }

    /// The consumer as the broker describes it after an operator edited a Waybill consumer.
    fn info(made_by: &ConsumerConfig, edit: impl FnOnce(&mut Config)) -> Info {
        let mut config = marked(requested(made_by)).into_consumer_config();
        edit(&mut config);
        let position = |sequence| serde_json::json!({"consumer_seq": sequence, "stream_seq": sequence});
        serde_json::from_value(serde_json::json!({
            "stream_name": "ORDERS",
            "name": "step",
            "created": "2026-11-21T00:00:00Z",
            "config": config,
            "delivered": position(FLOOR),
            "ack_floor": position(FLOOR),
            "num_ack_pending": 0,
            "num_redelivered": 0,
            "num_waiting": 0,
            "num_pending": 0,
        }))
        .unwrap()
    }

    /// What `wanted` has to do about the consumer when it starts.
    fn planned(wanted: &ConsumerConfig, present: &Info, floor: Option<&AckFloor>) -> Plan {
        plan(&requested(wanted), present, floor)
    }

    /// The result of a later check by a program that has opened the consumer.
    fn looked_at(wanted: &ConsumerConfig, present: &Info) -> Option<String> {
        let requested = marked(requested(wanted)).into_consumer_config();
        let durable =
            Durable { name: "step".to_owned(), opened: settings(&requested), requested, wrong: None };
        durable.edited(&present.config)
    }

    fn narrowed(config: &mut Config) {
        config.filter_subjects = vec![subjects::kind(EventKind::Cancelled)];
    }

    #[test]
    fn a_consumer_made_by_waybill_is_kept() {
        let present = info(&usual(), |_| {});
        assert_eq!(planned(&usual(), &present, None), Plan::Leave);
        assert_eq!(looked_at(&usual(), &present), None);
    }

    #[test]
    fn an_edit_that_may_skip_messages_recreates_the_consumer_from_the_ack_floor() {
        let edits: [fn(&mut Config); 4] = [
            narrowed,
            |config| config.max_deliver = 3,
            |config| config.ack_policy = AckPolicy::None,
            |config| config.headers_only = true,
        ];
        for edit in edits {
            let present = info(&usual(), edit);
            let seen = looked_at(&usual(), &present).unwrap();
            let floor = AckFloor::of(&info(&usual(), |_| {}));
            for (floor, from) in [(Some(&floor), FLOOR + 1), (None, 1)] {
                let Plan::Replace(made, start) = planned(&usual(), &present, floor) else { panic!("{seen}") };
                assert_eq!(start, from);
                let made = Info { config: made.into_consumer_config(), ..present.clone() };
                assert_eq!(planned(&usual(), &made, None), Plan::Leave, "{seen}");
                assert_eq!(looked_at(&usual(), &made), None, "{seen}");
            }
        }
    }

    #[test]
    fn the_ack_floor_of_another_consumer_is_ignored() {
        let present = info(&usual(), narrowed);
        let created = present.created - Duration::from_secs(1);
        let other = AckFloor::of(&Info { created, ..present.clone() });
        let Plan::Replace(_, start) = planned(&usual(), &present, Some(&other)) else {
            panic!("left narrowed")
        };
        assert_eq!(start, 1);
        // Created by another program, starting with new messages only.
        let late = info(&usual(), |config| {
            config.metadata.clear();
            config.deliver_policy = DeliverPolicy::New;
        });
        assert!(matches!(planned(&usual(), &late, Some(&other)), Plan::Replace(_, 1)));
    }

    #[test]
    fn an_edit_that_delays_messages_is_undone_in_place_and_operator_settings_stay() {
        let present = info(&usual(), |config| {
            config.max_ack_pending = 1;
            config.ack_wait = Duration::from_secs(3600);
            config.priority_groups = vec!["A".to_owned()];
            config.num_replicas = 3;
            config.description = Some("ours".to_owned());
        });
        let seen = looked_at(&usual(), &present).unwrap();
        assert_eq!(
            seen,
            "ack_wait is 1h, must be 10s; max_ack_pending is 1, must be 100000; priority_groups is A, must be "
        );
        let Plan::Update(config) = planned(&usual(), &present, None) else { panic!("{seen}") };
        assert_eq!((config.max_ack_pending, config.ack_wait), (ACK_PENDING_MAX, usual().ack_wait));
        assert_eq!((config.num_replicas, config.description.as_deref()), (3, Some("ours")));
        // Made by a version that did not record its settings in the metadata.
        let unmarked = info(&usual(), |config| config.metadata.clear());
        assert_eq!(looked_at(&usual(), &unmarked), None);
        assert!(matches!(planned(&usual(), &unmarked, None), Plan::Update(_)));
    }

    #[test]
    fn an_inactive_threshold_is_reset_although_the_metadata_lacks_it() {
        let longer = config(60);
        let present = info(&usual(), |config| config.inactive_threshold = Duration::from_secs(5));
        for requested in [&usual(), &longer] {
            assert_eq!(
                looked_at(requested, &present).as_deref(),
                Some("inactive_threshold is 5s, must be 0s"),
            );
            let Plan::Update(made) = planned(requested, &present, None) else { panic!("kept, or recreated") };
            assert_eq!(made.inactive_threshold, Duration::ZERO);
            let made = Info { config: made.into_consumer_config(), ..present.clone() };
            assert_eq!((planned(requested, &made, None), looked_at(requested, &made)), (Plan::Leave, None));
        }
        // As written by versions that did not check the threshold.
        let marker = &info(&usual(), |_| {}).config.metadata[SETTINGS_KEY];
        assert!(marker.ends_with("priority_timeout=0s"), "{marker}");
    }

    #[test]
    fn replicas_with_other_settings_do_not_fight() {
        let longer = config(60);
        let present = info(&usual(), |_| {});
        // The replica that starts later applies its settings, once.
        let Plan::Update(config) = planned(&longer, &present, None) else { panic!("not taken over") };
        let present = Info { config: config.into_consumer_config(), ..present };
        for config in [&usual(), &longer] {
            assert_eq!(looked_at(config, &present), None);
        }
    }
}
