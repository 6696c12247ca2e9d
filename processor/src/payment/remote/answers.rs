//! Reads the payment service's answers. Does no I/O.

use proto::orders::v1::Money;
use proto::payments::v1 as payments;

use crate::remote::{CallError, TEXT_CHARS_MAX, text, unusable};

pub(super) fn reference(field: &str, reference: String) -> Result<String, CallError> {
    if reference.is_empty() {
        return Err(unusable(&format!("{field} has 0 characters, must have 1-{TEXT_CHARS_MAX}")));
    }
    text(field, reference, TEXT_CHARS_MAX)
}

pub(super) fn to_payments(amount: &Money) -> payments::Money {
    payments::Money { currency_code: amount.currency_code.clone(), minor_units: amount.minor_units }
}

pub(super) fn from_payments(amount: payments::Money) -> Result<Money, CallError> {
    let payments::Money { currency_code, minor_units } = amount;
    let is_code = currency_code.len() == 3 && currency_code.bytes().all(|byte| byte.is_ascii_uppercase());
    if !is_code || minor_units < 0 {
        return Err(unusable("invalid refund amount"));
    }
    Ok(Money { currency_code, minor_units })
}
