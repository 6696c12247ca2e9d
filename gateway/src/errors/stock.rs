//! Errors for stock that does not exist, or cannot be changed.

use std::collections::HashMap;

use backbone::log::ids::Revision;
use stock::{ChangeError, UNITS_MAX};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use super::invalid::invalid;
use super::reason::Reason;
use super::status::{RETRY_DELAY, RETRY_DELAY_FULL, internal, retry_later, status};

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
            let message = "request_id already used by another stock change; send a new request_id";
            status(Reason::RequestIdReused, message, metadata, ErrorDetails::new())
        }
        ChangeError::TooFew { available } => {
            say("available_units", *available);
            let message = format!("only {available} units are available; remove fewer");
            status(Reason::InsufficientStock, &message, metadata, failed("STOCK", &message))
        }
        ChangeError::TooMany { available } => {
            let rule = format!("would exceed {UNITS_MAX} units; {available} are available");
            invalid(vec![FieldViolation::new("units", rule)], 0)
        }
        ChangeError::Stale { revision, available } => {
            say("revision", revision.0);
            if let Some(available) = available {
                say("available_units", *available);
            }
            let message = if *revision == Revision::NONE {
                "there is no such sku; set it at revision 0 to create it".to_owned()
            } else {
                format!("stock changed, now at revision {revision}; read it again")
            };
            status(Reason::StockChanged, &message, metadata, ErrorDetails::new())
        }
        ChangeError::Unreadable { revision } => {
            say("revision", revision.0);
            let message = format!("stored count cannot be decoded; set it at revision {revision}");
            status(Reason::StockUnreadable, &message, metadata, failed("STOCK", &message))
        }
        ChangeError::Full(_) => {
            let message = "broker storage is full, nothing was changed; try again later";
            retry_later(Reason::StorageFull, message, RETRY_DELAY_FULL)
        }
        ChangeError::Refused(_) => internal(),
        ChangeError::Unavailable(_) => retry_later(
            Reason::BrokerUnavailable,
            "broker unavailable, nothing was changed; try again",
            RETRY_DELAY,
        ),
        ChangeError::Unknown(_) => stock_unknown(),
    }
}

/// The bucket with the stock is missing; `lacking` describes the fix.
pub(crate) fn stock_missing(lacking: &str) -> Status {
    let details = ErrorDetails::with_precondition_failure_violation("STOCK", "INVENTORY", lacking);
    status(Reason::StockMissing, lacking, HashMap::new(), details)
}

/// Whether the stock was changed is not known.
pub(crate) fn stock_unknown() -> Status {
    let message =
        "outcome unknown: the stock may have been changed; repeat the call with the same request_id";
    status(Reason::OutcomeUnknown, message, HashMap::new(), ErrorDetails::new())
}
