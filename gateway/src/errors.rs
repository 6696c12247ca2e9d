//! The one place where what went wrong becomes a gRPC status that a client can act on without reading text.

use std::collections::HashMap;
use std::time::Duration;

use backbone::dead_letters::{LetterId, PutError};
use backbone::direct_get::ReadError;
use backbone::ids::{OrderId, Revision};
use backbone::log::AppendError;
use governor::Jitter;
use program::telemetry::Seldom;
use proto::orders::v1::OrderStatus;
use stock::{ChangeError, UNITS_MAX};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};
use tracing::{error, warn};

use crate::auth::Role;
use crate::fault::{Fault, Refusal};

// Lines that each call brings about while the broker is away, full or out of order.
static NOT_STORED: Seldom = Seldom::new();
static TOO_LARGE: Seldom = Seldom::new();
static REFUSED: Seldom = Seldom::new();
static UNKNOWN: Seldom = Seldom::new();
static NOT_READ: Seldom = Seldom::new();
static UNREADABLE: Seldom = Seldom::new();

/// Domain of every reason in an ErrorInfo.
const DOMAIN: &str = "orders.waybill";
/// The reason in an ErrorInfo: what clients act on. Never renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    CredentialMissing,
    CredentialInvalid,
    CredentialExpired,
    CredentialUnchecked,
    RoleMissing,
    RequestIdReused,
    RateLimited,
    TooManyStreams,
    TooManyCalls,
    MetadataTooLarge,
    MalformedRequest,
    Overloaded,
    BrokerUnavailable,
    StorageFull,
    MessageTooLarge,
    Draining,
    OutcomeUnknown,
    TimedOut,
    NotDurable,
    NotCancellable,
    NotRedrivable,
    AlreadyRedriven,
    InsufficientStock,
    StockUnreadable,
    StockChanged,
    StockMissing,
    LogReplaced,
    Internal,
}

impl Reason {
    /// Every reason there is; docs/errors.md lists the same.
    pub(crate) const ALL: [Self; 28] = [
        Self::CredentialMissing,
        Self::CredentialInvalid,
        Self::CredentialExpired,
        Self::CredentialUnchecked,
        Self::RoleMissing,
        Self::RequestIdReused,
        Self::RateLimited,
        Self::TooManyStreams,
        Self::TooManyCalls,
        Self::MetadataTooLarge,
        Self::MalformedRequest,
        Self::Overloaded,
        Self::BrokerUnavailable,
        Self::StorageFull,
        Self::MessageTooLarge,
        Self::Draining,
        Self::OutcomeUnknown,
        Self::TimedOut,
        Self::NotDurable,
        Self::NotCancellable,
        Self::NotRedrivable,
        Self::AlreadyRedriven,
        Self::InsufficientStock,
        Self::StockUnreadable,
        Self::StockChanged,
        Self::StockMissing,
        Self::LogReplaced,
        Self::Internal,
    ];

    /// The reason as clients and metrics have it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::CredentialMissing => "CREDENTIAL_MISSING",
            Self::CredentialInvalid => "CREDENTIAL_INVALID",
            Self::CredentialExpired => "CREDENTIAL_EXPIRED",
            Self::CredentialUnchecked => "CREDENTIAL_UNCHECKED",
            Self::RoleMissing => "ROLE_MISSING",
            Self::RequestIdReused => "REQUEST_ID_REUSED",
            Self::RateLimited => "RATE_LIMITED",
            Self::TooManyStreams => "TOO_MANY_STREAMS",
            Self::TooManyCalls => "TOO_MANY_CALLS",
            Self::MetadataTooLarge => "METADATA_TOO_LARGE",
            Self::MalformedRequest => "MALFORMED_REQUEST",
            Self::Overloaded => "OVERLOADED",
            Self::BrokerUnavailable => "BROKER_UNAVAILABLE",
            Self::StorageFull => "STORAGE_FULL",
            Self::MessageTooLarge => "MESSAGE_TOO_LARGE",
            Self::Draining => "DRAINING",
            Self::OutcomeUnknown => "OUTCOME_UNKNOWN",
            Self::TimedOut => "TIMED_OUT",
            Self::NotDurable => "NOT_DURABLE",
            Self::NotCancellable => "NOT_CANCELLABLE",
            Self::NotRedrivable => "NOT_REDRIVABLE",
            Self::AlreadyRedriven => "ALREADY_REDRIVEN",
            Self::InsufficientStock => "INSUFFICIENT_STOCK",
            Self::StockUnreadable => "STOCK_UNREADABLE",
            Self::StockChanged => "STOCK_CHANGED",
            Self::StockMissing => "STOCK_MISSING",
            Self::LogReplaced => "LOG_REPLACED",
            Self::Internal => "INTERNAL",
        }
    }

    /// Whose fault it is, where the status does not know it better.
    fn fault(self) -> Fault {
        match self {
            Self::CredentialMissing
            | Self::CredentialInvalid
            | Self::CredentialExpired
            | Self::RoleMissing
            | Self::RequestIdReused
            | Self::RateLimited
            | Self::TooManyStreams
            | Self::TooManyCalls
            | Self::MetadataTooLarge
            | Self::MalformedRequest
            | Self::NotCancellable
            | Self::NotRedrivable
            | Self::AlreadyRedriven
            | Self::InsufficientStock
            | Self::StockUnreadable
            | Self::StockChanged => Fault::Theirs,
            Self::CredentialUnchecked
            | Self::Overloaded
            | Self::BrokerUnavailable
            | Self::StorageFull
            // The broker takes less than the contract allows.
            | Self::MessageTooLarge
            | Self::Draining
            | Self::OutcomeUnknown
            | Self::TimedOut
            | Self::NotDurable
            | Self::StockMissing
            | Self::LogReplaced
            | Self::Internal => Fault::Ours,
        }
    }

    fn code(self) -> Code {
        match self {
            Self::CredentialMissing | Self::CredentialInvalid | Self::CredentialExpired => {
                Code::Unauthenticated
            }
            Self::RoleMissing => Code::PermissionDenied,
            Self::RequestIdReused => Code::AlreadyExists,
            Self::RateLimited | Self::TooManyStreams | Self::TooManyCalls | Self::MetadataTooLarge => {
                Code::ResourceExhausted
            }
            Self::MalformedRequest => Code::InvalidArgument,
            Self::CredentialUnchecked
            | Self::Overloaded
            | Self::BrokerUnavailable
            | Self::StorageFull
            | Self::NotDurable
            | Self::Draining => Code::Unavailable,
            Self::OutcomeUnknown | Self::TimedOut => Code::DeadlineExceeded,
            Self::MessageTooLarge
            | Self::NotCancellable
            | Self::NotRedrivable
            | Self::AlreadyRedriven
            | Self::InsufficientStock
            | Self::StockUnreadable
            | Self::StockMissing => Code::FailedPrecondition,
            Self::StockChanged => Code::Aborted,
            Self::LogReplaced => Code::DataLoss,
            Self::Internal => Code::Internal,
        }
    }
}

/// When to come back after a refusal that passes by itself, on average.
const RETRY_DELAY: Duration = Duration::from_millis(500);
/// When to come back while the stream has no room, on average: somebody has to make some.
const RETRY_DELAY_FULL: Duration = Duration::from_secs(30);
/// What the retries of gRPC's own libraries obey: milliseconds until the next attempt, or -1 for none (gRFC A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// The longest wait that a library is told to sit out. A longer one is for the caller to know of.
const PUSHBACK_MAX: Duration = Duration::from_secs(5);
/// Most violations in one answer: error details travel in a header, and clients bound those.
pub(crate) const VIOLATIONS_MAX: usize = 32;
/// Most violations spelled out in the message, for people; the details name them all.
const VIOLATIONS_SAID_MAX: usize = 3;

/// Fields that break rules, at most [`VIOLATIONS_MAX`] of them, and how many more there are.
pub(crate) fn invalid(violations: Vec<FieldViolation>, left_out: usize) -> Status {
    let said: Vec<_> = violations
        .iter()
        .take(VIOLATIONS_SAID_MAX)
        .map(|v| format!("{} {}", v.field, v.description))
        .collect();
    let more = if violations.len() > said.len() { "; and more, see BadRequest" } else { "" };
    let mut message = format!("{}{more}", said.join("; "));
    if left_out > 0 {
        message.push_str(&format!("; {left_out} further violations are left out"));
    }
    Status::with_error_details(Code::InvalidArgument, message, ErrorDetails::with_bad_request(violations))
}

/// The request_id was used for another order.
pub(crate) fn request_id_reused(id: &OrderId) -> Status {
    let message = "request_id was already used for an order with other content; use a new one";
    status(Reason::RequestIdReused, message, of_order(id), ErrorDetails::new())
}

/// There is no such order.
pub(crate) fn not_found(id: &OrderId) -> Status {
    let description = "there is no order with this order_id";
    let details = ErrorDetails::with_resource_info("orders.v1.Order", id.to_string(), "", description);
    Status::with_error_details(Code::NotFound, description, details)
}

/// The order ended in another way before it could be cancelled.
pub(crate) fn not_cancellable(id: &OrderId, ended_as: OrderStatus) -> Status {
    let ended_as = ended_as.as_str_name().trim_start_matches("ORDER_STATUS_");
    let description = format!("the order is {ended_as} and can no longer be cancelled");
    let details =
        ErrorDetails::with_precondition_failure_violation("ORDER_STATUS", id.to_string(), &description);
    let mut metadata = of_order(id);
    metadata.insert("order_status".to_owned(), ended_as.to_owned());
    status(Reason::NotCancellable, &description, metadata, details)
}

/// The call shows no credential; `accepted` says which ones it may show, and how.
pub(crate) fn credential_missing(accepted: &str) -> Status {
    let message = format!("this gateway asks for a credential: send {accepted}");
    status(Reason::CredentialMissing, &message, HashMap::new(), ErrorDetails::new())
}

/// The call shows several credentials of one kind, and it cannot be known which one a proxy has checked.
pub(crate) fn credential_ambiguous() -> Status {
    let message = "the call shows more than one credential of the same kind; send one";
    status(Reason::CredentialInvalid, message, HashMap::new(), ErrorDetails::new())
}

/// The credential is none of those that are good.
pub(crate) fn credential_invalid() -> Status {
    let message = "the credential is not, or no longer, good";
    status(Reason::CredentialInvalid, message, HashMap::new(), ErrorDetails::new())
}

/// The credential was good until its time was over.
pub(crate) fn credential_expired() -> Status {
    let message = "the token has expired; get a new one";
    status(Reason::CredentialExpired, message, HashMap::new(), ErrorDetails::new())
}

/// The key that the credential would be checked with is not known, or not yet.
pub(crate) fn credential_unchecked() -> Status {
    let message = "the token cannot be checked at the moment; nothing was accepted, try again";
    come_back(Reason::CredentialUnchecked, message, RETRY_DELAY)
}

/// The principal may not do this.
pub(crate) fn role_missing(role: Role) -> Status {
    let message = format!("the credential lacks the role {}", role.as_str());
    let metadata = HashMap::from([("role".to_owned(), role.as_str().to_owned())]);
    status(Reason::RoleMissing, &message, metadata, ErrorDetails::new())
}

/// Too many calls by `subject`: one tenant, one peer address, or all callers of the gateway.
pub(crate) fn rate_limited(subject: &str, wait: Duration) -> Status {
    over_quota(Reason::RateLimited, subject, &format!("calls per second of this {subject}"), wait)
}

/// The caller has as many streams open as it may.
pub(crate) fn too_many_streams(subject: &str, streams_max: usize) -> Status {
    let description = format!("at most {streams_max} open streams of this {subject}");
    over_quota(Reason::TooManyStreams, subject, &description, around(RETRY_DELAY))
}

/// The caller has as many calls under way as it may.
pub(crate) fn too_many_calls(subject: &str, calls_max: usize) -> Status {
    let description = format!("at most {calls_max} calls under way of this {subject}");
    over_quota(Reason::TooManyCalls, subject, &description, around(RETRY_DELAY))
}

/// The call has more metadata than is read; the same call is refused again.
pub(crate) fn metadata_too_large(bytes_max: usize) -> Status {
    let description = format!("at most {bytes_max} bytes of metadata in a call");
    let details = ErrorDetails::with_quota_failure_violation("call", &description);
    let message = format!("the metadata of this call is too large: {description}; send less of it");
    status(Reason::MetadataTooLarge, &message, HashMap::new(), details)
}

/// What came is no call of gRPC.
pub(crate) fn malformed(description: &str) -> Status {
    status(Reason::MalformedRequest, description, HashMap::new(), ErrorDetails::new())
}

fn over_quota(reason: Reason, subject: &str, description: &str, wait: Duration) -> Status {
    let mut details = ErrorDetails::with_retry_info(Some(wait));
    details.add_quota_failure_violation(subject, description);
    let message = format!("over quota: {description}; wait as long as RetryInfo says");
    status(reason, &message, HashMap::new(), details)
}

/// As many calls are under way, or streams open, as there may be.
pub(crate) fn overloaded() -> Status {
    come_back(Reason::Overloaded, "the gateway has too much to do; try again", RETRY_DELAY)
}

/// The gateway is about to stop.
pub(crate) fn draining() -> Status {
    let message = "this gateway is stopping; call again, and resume a watch with the last revision seen";
    come_back(Reason::Draining, message, RETRY_DELAY)
}

/// What the broker guarantees is less than was asked for, or not known yet.
pub(crate) fn not_durable(reason: &str) -> Status {
    let message = format!("nothing was accepted: {reason}");
    come_back(Reason::NotDurable, &message, RETRY_DELAY)
}

/// The log that a stream was read from is lost.
pub(crate) fn log_replaced() -> Status {
    let message = "the order log was lost and begins anew, and so do revisions; watch again after_revision 0";
    status(Reason::LogReplaced, message, HashMap::new(), ErrorDetails::new())
}

/// The log that a stream was read from has lost events.
pub(crate) fn events_lost() -> Status {
    let message = "the order log has lost events, or keeps them no longer; watch again after_revision 0 for what it has";
    status(Reason::LogReplaced, message, HashMap::new(), ErrorDetails::new())
}

/// The deadline that its caller has set for a stream has come.
pub(crate) fn stream_timed_out() -> Status {
    let message = "the deadline of this stream has come; resume with the last revision seen";
    by_caller(Reason::TimedOut, message)
}

/// The deadline that its caller has set for a redrive has come.
pub(crate) fn redrive_timed_out() -> Status {
    let message = "the deadline of this call has come; the letters that were answered for are dealt with, and the next \
                   one perhaps: repeat the call for the others, no order is redriven twice from one letter";
    status(Reason::TimedOut, message, HashMap::new(), ErrorDetails::new())
}

/// The deadline that its caller has set has come, and the call had no answer of its own yet.
pub(crate) fn caller_timed_out() -> Status {
    let message = "the deadline of this call has come before its answer, and it is not known whether the call was \
                   accepted; repeat it with a longer deadline (a CreateOrder with the same request_id)";
    status(Reason::OutcomeUnknown, message, HashMap::new(), ErrorDetails::new())
}

/// More came than any request needs.
pub(crate) fn too_long(bytes_max: usize) -> Status {
    Status::out_of_range(format!(
        "the call has sent more than {bytes_max} bytes; send one message of at most half of that"
    ))
}

/// The request itself did not come whole in the time that it has for that.
pub(crate) fn request_late() -> Status {
    let message = "the request did not come in time, and nothing was changed; send it again";
    by_caller(Reason::TimedOut, message)
}

/// Time ran out over a call that changes nothing.
pub(crate) fn timed_out() -> Status {
    let message = "no answer within the deadline; nothing was changed, call again";
    status(Reason::TimedOut, message, HashMap::new(), ErrorDetails::new())
}

/// A status for an event that was not appended, or may not have been.
pub(crate) fn append(id: &OrderId, append_error: &AppendError) -> Status {
    match append_error {
        AppendError::Unavailable(_) => {
            if let Some(left_out) = NOT_STORED.may_tell() {
                warn!(left_out, order_id = %id, error = %append_error, "event not stored");
            }
            come_back(Reason::BrokerUnavailable, "nothing was accepted; try again", RETRY_DELAY)
        }
        // Of which the log has a line in a while.
        AppendError::Full(_) => {
            let message = "nothing was accepted: storage is full; try again later";
            come_back(Reason::StorageFull, message, RETRY_DELAY_FULL)
        }
        AppendError::TooLarge(_) => {
            if let Some(left_out) = TOO_LARGE.may_tell() {
                warn!(left_out, order_id = %id, error = %append_error, "event not stored");
            }
            message_too_large(id)
        }
        AppendError::Gone => not_found(id),
        AppendError::Permanent(_) => {
            if let Some(left_out) = REFUSED.may_tell() {
                error!(left_out, order_id = %id, error = %append_error, "event not stored");
            }
            internal()
        }
        AppendError::Unknown(_) => {
            if let Some(left_out) = UNKNOWN.may_tell() {
                warn!(left_out, order_id = %id, error = %append_error, "outcome of an append unknown");
            }
            let message = "it is not known whether this was accepted; repeat it (a CreateOrder with the same \
                           request_id), or get the order_id";
            status(Reason::OutcomeUnknown, message, of_order(id), ErrorDetails::new())
        }
        AppendError::Refused(_) => {
            error!(order_id = %id, error = %append_error, "the lifecycle refused a checked request");
            internal()
        }
    }
}

/// The order is larger than the broker is configured to take.
fn message_too_large(id: &OrderId) -> Status {
    let description = "nothing was accepted: with this event the order is larger than the broker takes; send a smaller \
                       order, or have the broker's limit raised";
    let details =
        ErrorDetails::with_precondition_failure_violation("MESSAGE_SIZE", id.to_string(), description);
    status(Reason::MessageTooLarge, description, of_order(id), details)
}

/// A status for a read that gave no answer.
pub(crate) fn read(read_error: &ReadError) -> Status {
    match read_error {
        ReadError::NoAnswer(_) => {
            if let Some(left_out) = NOT_READ.may_tell() {
                warn!(left_out, error = %read_error, "order log not read");
            }
            let message = "the order log cannot be read at the moment; try again";
            come_back(Reason::BrokerUnavailable, message, RETRY_DELAY)
        }
        ReadError::Broker(_) => {
            if let Some(left_out) = UNREADABLE.may_tell() {
                error!(left_out, error = %read_error, "order log not read");
            }
            internal()
        }
    }
}

/// A status for a watch behind a revision that is not there yet.
pub(crate) fn beyond(last: Revision) -> Status {
    let description = format!("is beyond the last revision, {last}; send the last one that you saw, or 0");
    invalid(vec![FieldViolation::new("after_revision", description)], 0)
}

fn come_back(reason: Reason, message: &str, retry_delay: Duration) -> Status {
    let details = ErrorDetails::with_retry_info(Some(around(retry_delay)));
    status(reason, message, HashMap::new(), details)
}

/// Half to one and a half times as long, so that those who were refused together do not come back together.
fn around(mean: Duration) -> Duration {
    Jitter::up_to(mean) + mean / 2
}

/// Why a letter without an event cannot be redriven, and what to do about it.
pub(crate) const UNDECODABLE: &str = "the message cannot be decoded, so there is no order to redrive; find out who wrote \
                                      it (GetDeadLetter shows it), and discard the letter";

/// There is no such letter.
pub(crate) fn letter_not_found(id: &LetterId) -> Status {
    let description = "there is no dead letter with this dead_letter_id";
    let details =
        ErrorDetails::with_resource_info("operations.v1.DeadLetter", id.to_string(), "", description);
    Status::with_error_details(Code::NotFound, format!("{description}: {id}"), details)
}

/// Letters were named that cannot be redriven.
pub(crate) fn undecodable(ids: &[LetterId]) -> Status {
    let mut details = ErrorDetails::new();
    for id in ids.iter().take(VIOLATIONS_MAX) {
        details.add_precondition_failure_violation("UNDECODABLE", id.to_string(), UNDECODABLE);
    }
    status(Reason::NotRedrivable, UNDECODABLE, HashMap::new(), details)
}

/// The letter's order is on its way again.
pub(crate) fn already_redriven(id: &LetterId) -> Status {
    let description = "the order of this letter was redriven; if it fails again, it gets a new letter";
    let details =
        ErrorDetails::with_precondition_failure_violation("DEAD_LETTER_STATE", id.to_string(), description);
    status(Reason::AlreadyRedriven, description, of_letter(id), details)
}

/// A status for a letter that was not changed, or may not have been.
pub(crate) fn put(id: &LetterId, put_error: &PutError) -> Status {
    warn!(dead_letter_id = %id, error = %put_error, "dead letter not changed");
    match put_error {
        PutError::Conflict | PutError::Unavailable(_) => {
            come_back(Reason::BrokerUnavailable, "nothing was changed; try again", RETRY_DELAY)
        }
        PutError::Unknown(_) => letter_unknown(id),
        PutError::Permanent(_) => internal(),
    }
}

/// Whether the letter was changed is not known.
pub(crate) fn letter_unknown(id: &LetterId) -> Status {
    let message = "it is not known whether the letter was changed; repeat the call";
    status(Reason::OutcomeUnknown, message, of_letter(id), ErrorDetails::new())
}

/// There is no such SKU.
pub(crate) fn sku_not_found(sku: &str) -> Status {
    let description = "there is no stock of this sku; AddStock creates it";
    let details = ErrorDetails::with_resource_info("inventory.v1.Stock", sku, "", description);
    Status::with_error_details(Code::NotFound, description, details)
}

/// A status for stock that was not changed, or may not have been.
pub(crate) fn stock(sku: &str, change_error: &ChangeError) -> Status {
    let mut metadata = HashMap::from([("sku".to_owned(), sku.to_owned())]);
    let mut say = |key: &str, value: u64| metadata.insert(key.to_owned(), value.to_string());
    let failed =
        |kind: &str, message: &str| ErrorDetails::with_precondition_failure_violation(kind, sku, message);
    match change_error {
        ChangeError::RequestIdReused => {
            let message = "request_id belongs to another change of stock; use a new one";
            status(Reason::RequestIdReused, message, metadata, ErrorDetails::new())
        }
        ChangeError::TooFew { available } => {
            say("available_units", *available);
            let message = format!("only {available} units are available");
            status(Reason::InsufficientStock, &message, metadata, failed("STOCK", &message))
        }
        ChangeError::TooMany { available } => {
            let rule = format!("would make more than {UNITS_MAX} of a sku that has {available}");
            invalid(vec![FieldViolation::new("units", rule)], 0)
        }
        ChangeError::Stale { revision, available } => {
            say("revision", revision.0);
            if let Some(available) = available {
                say("available_units", *available);
            }
            let message = if *revision == Revision::NONE {
                "there is no such sku; to make it, set it at revision 0".to_owned()
            } else {
                format!("the stock has changed and is at revision {revision} now; read it again")
            };
            status(Reason::StockChanged, &message, metadata, ErrorDetails::new())
        }
        ChangeError::Unreadable { revision } => {
            say("revision", revision.0);
            let message = format!("the count that is stored cannot be read; set it at revision {revision}");
            status(Reason::StockUnreadable, &message, metadata, failed("STOCK", &message))
        }
        ChangeError::Full(_) => {
            let message = "nothing was changed: storage is full; try again later";
            come_back(Reason::StorageFull, message, RETRY_DELAY_FULL)
        }
        ChangeError::Refused(_) => {
            error!(sku, error = %change_error, "stock not changed");
            internal()
        }
        ChangeError::Unavailable(_) => {
            warn!(sku, error = %change_error, "stock not changed");
            come_back(Reason::BrokerUnavailable, "nothing was changed; try again", RETRY_DELAY)
        }
        ChangeError::Unknown(_) => {
            warn!(sku, error = %change_error, "stock perhaps not changed");
            stock_unknown()
        }
    }
}

/// The bucket with the stock is missing; `lacking` says what to do.
pub(crate) fn stock_missing(lacking: &str) -> Status {
    let details = ErrorDetails::with_precondition_failure_violation("STOCK", "INVENTORY", lacking);
    status(Reason::StockMissing, lacking, HashMap::new(), details)
}

/// Whether the stock was changed is not known.
pub(crate) fn stock_unknown() -> Status {
    let message = "it is not known whether the stock was changed; repeat the call with the same request_id";
    status(Reason::OutcomeUnknown, message, HashMap::new(), ErrorDetails::new())
}

fn of_letter(id: &LetterId) -> HashMap<String, String> {
    HashMap::from([("dead_letter_id".to_owned(), id.to_string())])
}

/// A fault of ours.
pub(crate) fn internal() -> Status {
    status(Reason::Internal, "internal error; it was logged", HashMap::new(), ErrorDetails::new())
}

fn of_order(id: &OrderId) -> HashMap<String, String> {
    HashMap::from([("order_id".to_owned(), id.to_string())])
}

/// A refusal by the caller's own fault, though others for the same reason are by ours.
fn by_caller(reason: Reason, message: &str) -> Status {
    let status = status(reason, message, HashMap::new(), ErrorDetails::new());
    Refusal { reason, fault: Fault::Theirs }.mark(status)
}

fn status(
    reason: Reason,
    message: &str,
    metadata: HashMap<String, String>,
    mut details: ErrorDetails,
) -> Status {
    details.set_error_info(reason.as_str(), DOMAIN, metadata);
    let retry_delay = details.retry_info().and_then(|retry| retry.retry_delay);
    let mut status = Status::with_error_details(reason.code(), message, details);
    // Some libraries repeat whatever has this, and callers over their quota are to know that they are.
    if let (Code::Unavailable, Some(retry_delay)) = (reason.code(), retry_delay) {
        status.metadata_mut().insert(PUSHBACK, pushback(retry_delay));
    }
    Refusal { reason, fault: reason.fault() }.mark(status)
}

fn pushback(retry_delay: Duration) -> MetadataValue<Ascii> {
    if retry_delay > PUSHBACK_MAX {
        return MetadataValue::from_static("-1");
    }
    // Rounded up: a call that comes early is refused again. At most 5,000, so nothing is cut off.
    MetadataValue::from(retry_delay.as_millis() as u64 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_the_same_reasons() {
        let documentation = include_str!("../../docs/errors.md");
        let listed: Vec<_> = documentation.lines().filter_map(|line| line.strip_prefix("| `")).collect();
        let listed: Vec<_> = listed.iter().filter_map(|line| line.split('`').next()).collect();
        assert_eq!(listed, Reason::ALL.map(Reason::as_str));
        for reason in Reason::ALL {
            let row =
                documentation.lines().find(|line| line.starts_with(&format!("| `{}`", reason.as_str())));
            let code = format!("{:?}", reason.code());
            let said = row.unwrap().split('|').nth(2).unwrap().trim().replace('_', "");
            assert_eq!(said.to_lowercase(), code.to_lowercase());
        }
    }
}
