//! Reads the service's answers, and distinguishes them from missing ones. Does no I/O.

use std::borrow::Cow;
use std::error::Error;

use program::plain_text::is_plain;
use proto::orders::v1::Money;
use proto::payments::v1 as payments;
use tonic::{Code, Status};

use crate::payment::provider::ProviderError;

/// References and messages go into the order's history.
pub(super) const TEXT_CHARS_MAX: usize = 256;
/// Stands for the payment method in texts of the service.
const HIDDEN: &str = "[payment_method]";

/// Whether a retry of the call may succeed.
pub(super) fn may_pass(status: &Status) -> bool {
    // A status that the client library made has the connection's error as its source.
    status.source().is_some()
        || matches!(
            status.code(),
            Code::Unavailable
                | Code::DeadlineExceeded
                | Code::Cancelled
                | Code::Aborted
                | Code::ResourceExhausted
        )
}

/// The outcome of a call. A rejected caller or a missing service is not the order's fault either, though an immediate
/// retry does not help.
pub(super) fn provider_error(status: &Status, payment_method: &str) -> ProviderError {
    let text = format!("{:?}: {}", status.code(), shortened(status.message(), payment_method));
    let refused =
        matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented);
    if refused || may_pass(status) { ProviderError::Unavailable(text) } else { ProviderError::Unusable(text) }
}

pub(super) fn unusable(what: &str) -> ProviderError {
    ProviderError::Unusable(what.to_owned())
}

pub(super) fn reference(field: &str, text: String) -> Result<String, ProviderError> {
    if !text.chars().all(is_plain) {
        return Err(unusable(&format!("{field} contains control characters")));
    }
    match text.chars().count() {
        1..=TEXT_CHARS_MAX => Ok(text),
        chars => Err(unusable(&format!("{field} has {chars} characters, must have 1-{TEXT_CHARS_MAX}"))),
    }
}

/// A text for people, with characters replaced that a terminal would interpret, and without the payment method: it goes into
/// logs, spans, dead letters and the order's history.
pub(super) fn shortened(text: &str, payment_method: &str) -> String {
    let text = match payment_method {
        "" => Cow::Borrowed(text),
        token => Cow::Owned(text.replace(token, HIDDEN)),
    };
    let plain = |c| if is_plain(c) { c } else { char::REPLACEMENT_CHARACTER };
    text.chars().take(TEXT_CHARS_MAX).map(plain).collect()
}

pub(super) fn to_payments(amount: &Money) -> payments::Money {
    payments::Money { currency_code: amount.currency_code.clone(), minor_units: amount.minor_units }
}

pub(super) fn from_payments(amount: payments::Money) -> Result<Money, ProviderError> {
    let payments::Money { currency_code, minor_units } = amount;
    let is_code = currency_code.len() == 3 && currency_code.bytes().all(|byte| byte.is_ascii_uppercase());
    if !is_code || minor_units < 0 {
        return Err(unusable("invalid refund amount"));
    }
    Ok(Money { currency_code, minor_units })
}
