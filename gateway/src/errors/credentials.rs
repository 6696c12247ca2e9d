//! Calls whose credential is missing, is invalid, or lacks a role.

use std::collections::HashMap;

use tonic::Status;
use tonic_types::ErrorDetails;

use super::reason::Reason;
use super::status::{RETRY_DELAY, retry_later, status};

/// The call has no credential; `accepted` names the accepted kinds and how to send them.
pub(crate) fn credential_missing(accepted: &str) -> Status {
    let message = format!("credential missing; send {accepted}");
    status(Reason::CredentialMissing, &message, HashMap::new(), ErrorDetails::new())
}

/// The call has several credentials of one kind; a proxy may have checked any of them.
pub(crate) fn credential_ambiguous() -> Status {
    let message = "more than one credential of the same kind; send one";
    status(Reason::CredentialInvalid, message, HashMap::new(), ErrorDetails::new())
}

/// The credential is unknown.
pub(crate) fn credential_invalid() -> Status {
    let message = "credential is invalid or revoked";
    status(Reason::CredentialInvalid, message, HashMap::new(), ErrorDetails::new())
}

/// The credential has expired.
pub(crate) fn credential_expired() -> Status {
    let message = "the token has expired; get a new one";
    status(Reason::CredentialExpired, message, HashMap::new(), ErrorDetails::new())
}

/// The key that the credential would be checked with is not known, or not yet.
pub(crate) fn credential_unchecked() -> Status {
    let message = "the token cannot be checked at the moment; nothing was accepted, try again";
    retry_later(Reason::CredentialUnchecked, message, RETRY_DELAY)
}

/// The principal may not do this.
pub(crate) fn role_missing(role: &str) -> Status {
    let message = format!("the credential lacks the role {role}");
    let metadata = HashMap::from([("role".to_owned(), role.to_owned())]);
    status(Reason::RoleMissing, &message, metadata, ErrorDetails::new())
}
