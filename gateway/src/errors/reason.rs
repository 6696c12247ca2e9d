//! The reason of a rejection, for clients and metrics.

use tonic::Code;

use super::fault::Fault;

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
    pub(super) fn fault(self) -> Fault {
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
            // The broker's limit is below what the contract allows.
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

    pub(super) fn code(self) -> Code {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_the_same_reasons() {
        let documentation = include_str!("../../../docs/errors.md");
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
