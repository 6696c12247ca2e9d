//! The required settings of a durable consumer, how an operator may have edited it, and how it is reconciled.
//!
//! Editing a consumer back does not deliver the messages that it skipped: the broker continues at the consumer's
//! position. So a consumer that may have skipped messages is deleted and recreated. It starts after the last known ack
//! floor, or else at the first message.

mod reconcile;

use async_nats::Request;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{Config, Info, IntoConsumerConfig, pull};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream::{ConsumerErrorKind, Stream};
use bytes::Bytes;
use tracing::{error, info, warn};

use self::reconcile::{
    Plan, Settings, differences, differing, marked, plan, requested, settings, starting_at,
    with_operator_settings,
};
use crate::broker::connection::{ACK_TIMEOUT, Connection};
use crate::broker::streams::{ORDERS, PROVISION};
use crate::consumer::ack_floor::{AckFloor, reset_consumer, reset_subject, supports_reset};
use crate::consumer::config::ConsumerConfig;

/// A consumer as requested, and as it was when it was opened.
#[derive(Debug)]
pub(crate) struct Durable {
    pub(crate) name: String,
    requested: Config,
    opened: Settings,
    /// The settings that differed from the required ones, although they should have been reconciled.
    pub(crate) wrong: Option<String>,
}

impl Durable {
    /// Creates the consumer if it is missing, and reconciles it if its settings differ. Settings that this user may not
    /// change stay as they are. `floor` is the known ack floor.
    pub(crate) async fn open(
        connection: &Connection,
        config: &ConsumerConfig,
        floor: Option<&AckFloor>,
    ) -> Result<(Self, Info), async_nats::Error> {
        let (name, requested) = (config.name.as_str(), requested(config));
        let stream = connection.jetstream.get_stream_no_info(ORDERS).await?;
        let (info, may) = match stream.consumer_info(name).await {
            Ok(present) => {
                let (info, may) = match reconciled(connection, &stream, &requested, &present, floor).await? {
                    Some(info) => (info, true),
                    None => (present, false),
                };
                let former = floor.filter(|floor| floor.is_passed(&info));
                match former {
                    Some(former) => {
                        (reset_to_floor(connection, &stream, &requested, info, former).await?, may)
                    }
                    None => (info, may),
                }
            }
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => {
                (create(connection, &stream, requested.clone()).await?, true)
            }
            Err(error) => return Err(error.into()),
        };
        let (requested, opened) = (requested.into_consumer_config(), settings(&info.config));
        let mut durable = Self { name: name.to_owned(), requested, opened, wrong: None };
        durable.wrong = differing(&info.config, &durable.requested);
        match (&durable.wrong, may) {
            (None, true) => {}
            // They come from another program or were never marked, but the required ones hold.
            (None, false) => info!(consumer = name, "consumer settings kept: {PROVISION}"),
            (Some(wrong), true) => {
                error!(consumer = name, wrong, "consumer has other settings than requested");
            }
            (Some(wrong), false) => {
                error!(consumer = name, wrong, "consumer not configured as required: {PROVISION}");
            }
        }
        Ok((durable, info))
    }

    /// The settings edited since it was opened, as text.
    pub(crate) fn edited(&self, present: &Config) -> Option<String> {
        if settings(present) == self.opened {
            return None;
        }
        let restored = || self.wrong.as_ref().map(|_| "configured as required again".to_owned());
        differing(present, &self.requested).or_else(restored)
    }
}

/// The reconciled consumer, or `None` if this user may not reconcile it.
async fn reconciled(
    connection: &Connection,
    stream: &Stream<()>,
    requested: &pull::Config,
    present: &Info,
    floor: Option<&AckFloor>,
) -> Result<Option<Info>, async_nats::Error> {
    let (consumer, differing) =
        (&present.name, differences(&present.config, &requested.clone().into_consumer_config()));
    let settings: Vec<_> = differing.iter().map(|(setting, ..)| *setting).collect();
    let settings = settings.join(", ");
    match plan(requested, present, floor) {
        Plan::Leave => Ok(Some(present.clone())),
        Plan::Update(config) => {
            let updating = stream.update_consumer(config);
            let Some(updated) = connection.if_allowed(&create_subject(consumer), updating).await else {
                return Ok(None);
            };
            let updated = updated?.cached_info().clone();
            if !settings.is_empty() {
                warn!(consumer, settings, "consumer settings differed, updated");
            }
            Ok(Some(updated))
        }
        Plan::Replace(config, from) => {
            let new = recreated(connection, stream, consumer, config).await?;
            if new.is_some() {
                warn!(consumer, settings, from, "consumer may have skipped orders, recreated");
            }
            Ok(new)
        }
    }
}

/// The consumer that replaces the present one, or `None` if this user may not do that.
async fn recreated(
    connection: &Connection,
    stream: &Stream<()>,
    consumer: &str,
    config: pull::Config,
) -> Result<Option<Info>, async_nats::Error> {
    // A user that may delete but not create would leave no consumer. An empty request creates nothing, and its error shows
    // whether creating is permitted.
    let empty = Request::new().payload(Bytes::new()).timeout(Some(ACK_TIMEOUT));
    let request = connection.client.send_request(create_subject(consumer), empty);
    let Some(answer) = connection.if_allowed(&create_subject(consumer), request).await else {
        return Ok(None);
    };
    answer?;
    let deleting = format!("$JS.API.CONSUMER.DELETE.{ORDERS}.{consumer}");
    match connection.if_allowed(&deleting, stream.delete_consumer(consumer)).await {
        None => return Ok(None),
        Some(Ok(_)) => {}
        // Another replica has deleted it.
        Some(Err(error)) if is_missing(&error.kind()) => {}
        Some(Err(error)) => return Err(error.into()),
    }
    create(connection, stream, config).await.map(Some)
}

/// The consumer after a leader change: it is reset to the last known ack floor of the former leader.
async fn reset_to_floor(
    connection: &Connection,
    stream: &Stream<()>,
    requested: &pull::Config,
    present: Info,
    floor: &AckFloor,
) -> Result<Info, async_nats::Error> {
    let (consumer, from) = (&present.name, floor.next());
    let deliver_policy = starting_at(from);
    let config = pull::Config { deliver_policy, ..with_operator_settings(&present.config, requested) };
    let back = if supports_reset(connection) {
        match reset_consumer(connection, consumer, from).await {
            Ok(back) => back,
            // The consumer's leader may run a version without reset. If it does support it, recreating does no harm.
            Err(error) => Some(recreated(connection, stream, consumer, config).await?.ok_or(error)?),
        }
    } else {
        recreated(connection, stream, consumer, config).await?
    };
    let Some(back) = back else {
        let needed = reset_subject(consumer);
        error!(
            consumer,
            needed, "consumer leader changed, reset not permitted; orders may have been skipped"
        );
        return Ok(present);
    };
    warn!(consumer, from, "consumer leader changed, consumer reset");
    Ok(back)
}

fn is_missing(kind: &ConsumerErrorKind) -> bool {
    matches!(kind, ConsumerErrorKind::JetStream(refusal) if refusal.error_code() == ErrorCode::CONSUMER_NOT_FOUND)
}

/// Of several concurrent creators one succeeds; the others retry and find the consumer.
async fn create(
    connection: &Connection,
    stream: &Stream<()>,
    config: pull::Config,
) -> Result<Info, async_nats::Error> {
    let name = config.durable_name.clone().unwrap_or_default();
    let creating = stream.create_consumer_strict(marked(config));
    match connection.if_allowed(&create_subject(&name), creating).await {
        Some(made) => Ok(made?.cached_info().clone()),
        None => Err(format!("consumer {name} is missing: {PROVISION}").into()),
    }
}

/// The subjects of requests that create and update a consumer.
fn create_subject(consumer: &str) -> String {
    format!("$JS.API.CONSUMER.CREATE.{ORDERS}.{consumer}")
}
