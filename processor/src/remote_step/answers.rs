//! Checks the service's answers for size and form, like any input. Does no I/O.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use backbone::log::lifecycle::{REASON_CANCELLED, SHIPMENT_ATTRIBUTES};
use program::config::DAY;
use proto::orders::v1::{Order, StepDeferred};
use proto::steps::v1::{Deferred, Rejected};

use crate::dead_lettering::RETRIES_EXHAUSTED;
use crate::remote::{CallError, shortened, text, unusable};

const ATTRIBUTES_MAX: usize = 20;
const KEY_BYTES_MAX: usize = 40;
const VALUE_CHARS_MAX: usize = 500;
/// Bytes of the attributes of all steps of an order. They are in each of its later events.
const ALL_ATTRIBUTES_BYTES_MAX: usize = 16 * 1024;
const REASON_BYTES_MAX: usize = 40;
const DEFERRAL_MIN: Duration = Duration::from_secs(1);
const DEFERRAL_MAX: Duration = DAY.saturating_mul(366);

/// The attributes of the order that the step reports.
pub(super) fn attributes(
    order: &Order,
    step: &str,
    attributes: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, CallError> {
    if attributes.len() > ATTRIBUTES_MAX {
        let count = attributes.len();
        return Err(unusable(&format!("{count} attributes, must be at most {ATTRIBUTES_MAX}")));
    }
    let mut bytes: usize = order.attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
    for (key, value) in &attributes {
        if !is_word(key, KEY_BYTES_MAX, u8::is_ascii_lowercase) {
            let key = shortened(key, "");
            return Err(unusable(&format!(
                "attribute {key:?}: a key has 1-{KEY_BYTES_MAX} characters of a-z, 0-9 and '_', the first one of a-z"
            )));
        }
        text(&format!("attribute {key}"), value.clone(), VALUE_CHARS_MAX)?;
        bytes += step.len() + 1 + key.len() + value.len();
    }
    if bytes > ALL_ATTRIBUTES_BYTES_MAX {
        return Err(unusable(&format!(
            "the order's attributes have {bytes} bytes, must have at most {ALL_ATTRIBUTES_BYTES_MAX}"
        )));
    }
    let [.., tracking_url] = SHIPMENT_ATTRIBUTES;
    let url = attributes.get(tracking_url).filter(|url| !url.is_empty());
    if url.is_some_and(|url| !url.starts_with("https://") && !url.starts_with("http://")) {
        return Err(unusable("attribute tracking_url must begin with https:// or http://"));
    }
    Ok(attributes)
}

/// The reason and the message of a rejection.
pub(super) fn rejection(rejected: Rejected) -> Result<(String, String), CallError> {
    Ok((reason(rejected.reason)?, shortened(&rejected.message, "")))
}

/// The event of a deferral that was answered at `now`.
pub(super) fn deferral(deferred: Deferred, now: SystemTime) -> Result<StepDeferred, CallError> {
    let until = deferred.until.ok_or_else(|| unusable("deferred without a time"))?;
    let until = SystemTime::try_from(until).map_err(|_| unusable("deferred to an impossible time"))?;
    if until > now + DEFERRAL_MAX {
        return Err(unusable("deferred by more than 366 days"));
    }
    let until = until.max(now + DEFERRAL_MIN);
    let (reason, message) = (reason(deferred.reason)?, shortened(&deferred.message, ""));
    Ok(StepDeferred { until: Some(until.into()), reason, message })
}

fn reason(reason: String) -> Result<String, CallError> {
    if !is_word(&reason, REASON_BYTES_MAX, u8::is_ascii_uppercase) {
        let reason = shortened(&reason, "");
        return Err(unusable(&format!(
            "reason {reason:?} must have 1-{REASON_BYTES_MAX} characters of A-Z, 0-9 and '_', the first one of A-Z"
        )));
    }
    if [REASON_CANCELLED, RETRIES_EXHAUSTED].contains(&reason.as_str()) {
        return Err(unusable(&format!("reason {reason} has a meaning of its own; use another word")));
    }
    Ok(reason)
}

fn is_word(text: &str, bytes_max: usize, is_letter: impl Fn(&u8) -> bool) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| is_letter(&first))
        && bytes.all(|byte| is_letter(&byte) || byte.is_ascii_digit() || byte == b'_')
        && text.len() <= bytes_max
}
