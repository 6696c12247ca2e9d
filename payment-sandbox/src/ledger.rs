//! The record under each key, and the decisions that it permits. No I/O: the same records make the same ledger.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proto::payments::v1::{
    AlreadyRefunded, Captured, Declined, GetLedgerResponse, Money, NothingCaptured, Payment, PaymentState,
    Refunded, capture_response, refund_response,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use proto::payments::DECLINED_PREFIX;

/// Payments kept, some 550 bytes of memory each. None is ever forgotten, so further ones are refused.
pub(super) const PAYMENTS_MAX: usize = 1_000_000;
/// Payments shown in one answer.
const SHOWN_MAX: usize = 1000;

/// What a capture is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Charge {
    pub(super) order_id: String,
    pub(super) customer_id: String,
    pub(super) currency_code: String,
    pub(super) minor_units: i64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) payment_method: String,
}

/// One fact, as it stands in the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Record {
    Captured {
        idempotency_key: String,
        #[serde(flatten)]
        charge: Charge,
    },
    Declined {
        idempotency_key: String,
        #[serde(flatten)]
        charge: Charge,
    },
    /// Of something captured, or before anything was.
    Refunded { idempotency_key: String },
}

/// Why a call is not carried out. Nothing was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum Refusal {
    #[error("the idempotency_key was used for another order, customer, amount or payment method")]
    KeyReused,
    #[error("the sandbox holds {PAYMENTS_MAX} payments, its maximum; start with an empty file")]
    Full,
}

/// All payments.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    states: Vec<(Arc<str>, State)>,
    /// Where each key is in `states`, which are in the order of the keys' first records.
    by_key: HashMap<Arc<str>, usize>,
}

#[derive(Clone, Debug)]
enum State {
    Captured(Charge),
    Refunded(Charge),
    Declined(Charge),
    /// The refund came first.
    Forbidden,
}

impl Ledger {
    /// Adds a fact. Under each key the first capture or decline holds, and so does the first refund.
    pub(super) fn apply(&mut self, record: Record) {
        let (key, first) = match record {
            Record::Captured { idempotency_key, charge } => (idempotency_key, State::Captured(charge)),
            Record::Declined { idempotency_key, charge } => (idempotency_key, State::Declined(charge)),
            Record::Refunded { idempotency_key } => {
                if let Some(state) = self.state_mut(&idempotency_key) {
                    if let State::Captured(charge) = state {
                        *state = State::Refunded(charge.clone());
                    }
                    return;
                }
                (idempotency_key, State::Forbidden)
            }
        };
        if self.state(&key).is_none() {
            let key: Arc<str> = key.into();
            self.by_key.insert(key.clone(), self.states.len());
            self.states.push((key, first));
        }
    }

    /// Captures or declines, unless there is a record already. Returns the answer, and the record to write before it is
    /// given.
    pub(super) fn capture(
        &mut self,
        key: &str,
        charge: Charge,
        decline: bool,
    ) -> Result<(capture_response::Outcome, Option<Record>), Refusal> {
        let state = self.state(key);
        let outcome = match state {
            Some(State::Forbidden) => capture_response::Outcome::AlreadyRefunded(AlreadyRefunded {}),
            Some(State::Captured(known) | State::Refunded(known) | State::Declined(known))
                if *known != charge =>
            {
                return Err(Refusal::KeyReused);
            }
            Some(State::Refunded(_)) => capture_response::Outcome::AlreadyRefunded(AlreadyRefunded {}),
            Some(State::Captured(_)) => captured(key),
            Some(State::Declined(_)) => declined(&charge),
            None => {
                self.check_room()?;
                let idempotency_key = key.to_owned();
                let (outcome, record) = if decline {
                    (declined(&charge), Record::Declined { idempotency_key, charge })
                } else {
                    (captured(key), Record::Captured { idempotency_key, charge })
                };
                self.apply(record.clone());
                return Ok((outcome, Some(record)));
            }
        };
        Ok((outcome, None))
    }

    /// Refunds the capture, or blocks a later one. Returns the answer, and the record to write before it is given.
    pub(super) fn refund(
        &mut self,
        key: &str,
    ) -> Result<(refund_response::Outcome, Option<Record>), Refusal> {
        let nothing = refund_response::Outcome::NothingCaptured(NothingCaptured {});
        let outcome = match self.state(key) {
            // A decline is final, so no capture can follow and nothing is recorded.
            Some(State::Forbidden | State::Declined(_)) => return Ok((nothing, None)),
            Some(State::Refunded(charge)) => return Ok((refunded(key, charge), None)),
            Some(State::Captured(charge)) => refunded(key, charge),
            None => {
                self.check_room()?;
                nothing
            }
        };
        let record = Record::Refunded { idempotency_key: key.to_owned() };
        self.apply(record.clone());
        Ok((outcome, Some(record)))
    }

    /// Whose payment it is, if that is known.
    pub(super) fn customer_of(&self, key: &str) -> Option<&str> {
        Some(&charge_of(self.state(key)?)?.customer_id)
    }

    /// The payments of one order, or of all if it is empty, and their sums. The numbers of calls are left out.
    pub(super) fn of_order(&self, order_id: &str) -> GetLedgerResponse {
        let mut ledger = GetLedgerResponse::default();
        let (mut sums_captured, mut sums_refunded) = (Sums::default(), Sums::default());
        for (key, state) in &self.states {
            if !order_id.is_empty() && charge_of(state).is_none_or(|charge| charge.order_id != order_id) {
                continue;
            }
            if let State::Captured(charge) | State::Refunded(charge) = state {
                ledger.captures += 1;
                sums_captured.add(charge);
            }
            if let State::Refunded(charge) = state {
                ledger.refunds += 1;
                sums_refunded.add(charge);
            }
            ledger.payments.push(shown(key, state));
        }
        let first_shown = ledger.payments.len().saturating_sub(SHOWN_MAX);
        ledger.payments.drain(..first_shown);
        (ledger.captured, ledger.refunded) = (sums_captured.into_money(), sums_refunded.into_money());
        ledger
    }

    fn state(&self, key: &str) -> Option<&State> {
        Some(&self.states.get(*self.by_key.get(key)?)?.1)
    }

    fn state_mut(&mut self, key: &str) -> Option<&mut State> {
        Some(&mut self.states.get_mut(*self.by_key.get(key)?)?.1)
    }

    fn check_room(&self) -> Result<(), Refusal> {
        if self.states.len() < PAYMENTS_MAX { Ok(()) } else { Err(Refusal::Full) }
    }
}

/// Money by currency.
#[derive(Default)]
struct Sums<'a>(BTreeMap<&'a str, i64>);

impl<'a> Sums<'a> {
    fn add(&mut self, charge: &'a Charge) {
        let sum = self.0.entry(&charge.currency_code).or_default();
        *sum = sum.saturating_add(charge.minor_units);
    }

    fn into_money(self) -> Vec<Money> {
        self.0.into_iter().map(|(currency_code, sum)| money(currency_code, sum)).collect()
    }
}

fn charge_of(state: &State) -> Option<&Charge> {
    match state {
        State::Captured(charge) | State::Refunded(charge) | State::Declined(charge) => Some(charge),
        State::Forbidden => None,
    }
}

fn shown(key: &str, state: &State) -> Payment {
    let now = match state {
        State::Captured(_) => PaymentState::Captured,
        State::Refunded(_) => PaymentState::Refunded,
        State::Declined(_) => PaymentState::Declined,
        State::Forbidden => PaymentState::Forbidden,
    };
    let payment = Payment { idempotency_key: key.to_owned(), state: now.into(), ..Payment::default() };
    match charge_of(state) {
        Some(charge) => Payment {
            order_id: charge.order_id.clone(),
            customer_id: charge.customer_id.clone(),
            amount: Some(money(&charge.currency_code, charge.minor_units)),
            ..payment
        },
        None => payment,
    }
}

/// References derive from the key, so that a retry gets the same one without a record.
fn captured(key: &str) -> capture_response::Outcome {
    capture_response::Outcome::Captured(Captured { payment_id: format!("sandbox-{key}") })
}

fn refunded(key: &str, charge: &Charge) -> refund_response::Outcome {
    let amount = Some(money(&charge.currency_code, charge.minor_units));
    refund_response::Outcome::Refunded(Refunded { refund_id: format!("sandbox-refund-{key}"), amount })
}

fn declined(charge: &Charge) -> capture_response::Outcome {
    let message = if is_declined(&charge.customer_id) {
        format!("the sandbox declines customers whose id begins with \"{DECLINED_PREFIX}\"")
    } else {
        "declined, as SetBehaviour requested".to_owned()
    };
    capture_response::Outcome::Declined(Declined { message })
}

/// Whether the sandbox declines this customer by default.
pub(super) fn is_declined(customer_id: &str) -> bool {
    customer_id.starts_with(DECLINED_PREFIX)
}

fn money(currency_code: &str, minor_units: i64) -> Money {
    Money { currency_code: currency_code.to_owned(), minor_units }
}

#[cfg(test)]
mod tests {
    use super::*;
    use capture_response::Outcome::{AlreadyRefunded as TooLate, Captured as Taken, Declined as Refused};
    use refund_response::Outcome::{NothingCaptured as Nothing, Refunded as GivenBack};

    fn charge(minor_units: i64) -> Charge {
        Charge {
            order_id: "order".to_owned(),
            customer_id: "ada".to_owned(),
            currency_code: "EUR".to_owned(),
            minor_units,
            payment_method: String::new(),
        }
    }

    #[test]
    fn a_repeat_is_the_same_capture_and_records_nothing() {
        let mut ledger = Ledger::default();
        let (first, record) = ledger.capture("k", charge(350), false).unwrap();
        assert!(matches!(first, Taken(_)) && record.is_some());
        // Regardless of the behaviour set meanwhile.
        assert_eq!(ledger.capture("k", charge(350), true), Ok((first, None)));
        assert_eq!(ledger.of_order("").captured, [money("EUR", 350)]);
    }

    #[test]
    fn a_decline_is_the_answer_for_good() {
        let mut ledger = Ledger::default();
        let (first, record) = ledger.capture("k", charge(350), true).unwrap();
        assert!(matches!(first, Refused(_)) && record.is_some());
        assert_eq!(ledger.capture("k", charge(350), false), Ok((first.clone(), None)));
        assert!(matches!(ledger.refund("k"), Ok((Nothing(_), None))));
        assert_eq!(ledger.capture("k", charge(350), false), Ok((first, None)));
    }

    #[test]
    fn a_key_with_other_content_is_refused_and_charges_nothing() {
        let other_customer = Charge { customer_id: "grace".to_owned(), ..charge(350) };
        let other_card = Charge { payment_method: "tok_2".to_owned(), ..charge(350) };
        let mut ledger = Ledger::default();
        ledger.capture("k", charge(350), false).unwrap();
        for other in [charge(351), other_customer, other_card] {
            assert_eq!(ledger.capture("k", other.clone(), false), Err(Refusal::KeyReused));
            ledger.refund("k").unwrap();
            assert_eq!(ledger.capture("k", other, false), Err(Refusal::KeyReused), "refunded");
        }
        assert_eq!(ledger.of_order("").captures, 1);
    }

    #[test]
    fn a_refund_gives_back_what_was_captured_once() {
        let mut ledger = Ledger::default();
        ledger.capture("k", charge(350), false).unwrap();
        let (first, record) = ledger.refund("k").unwrap();
        let GivenBack(refunded) = &first else { panic!("{first:?}") };
        assert!(refunded.amount == Some(money("EUR", 350)) && record.is_some());
        assert_eq!(ledger.refund("k"), Ok((first, None)));
        assert!(matches!(ledger.capture("k", charge(350), false), Ok((TooLate(_), None))));
        let now = ledger.of_order("order");
        assert_eq!((now.captures, now.refunds, &now.refunded), (1, 1, &now.captured));
    }

    #[test]
    fn a_capture_that_comes_after_its_refund_is_refused_for_good() {
        let mut ledger = Ledger::default();
        assert!(matches!(ledger.refund("k"), Ok((Nothing(_), Some(_)))));
        assert!(matches!(ledger.capture("k", charge(350), false), Ok((TooLate(_), None))));
        assert!(matches!(ledger.refund("k"), Ok((Nothing(_), None))));
        let all = ledger.of_order("");
        assert_eq!((all.captures, all.refunds, all.payments.len()), (0, 0, 1));
        assert!(ledger.of_order("order").payments.is_empty(), "the refund did not name the order");
    }

    #[test]
    fn only_the_latest_payments_are_shown_and_all_are_counted() {
        let mut ledger = Ledger::default();
        for n in 0..SHOWN_MAX + 5 {
            ledger.capture(&n.to_string(), charge(2), false).unwrap();
        }
        let all = ledger.of_order("");
        assert_eq!(all.payments.len(), SHOWN_MAX);
        assert_eq!(all.payments[0].idempotency_key, "5");
        assert_eq!((all.captures, all.captured[0].minor_units), (1005, 2010));
    }

    #[test]
    fn a_full_ledger_rejects_new_payments_and_completes_known_ones() {
        let mut ledger = Ledger::default();
        ledger.capture("7", charge(1), false).unwrap();
        ledger.states.resize(PAYMENTS_MAX, ("other".into(), State::Forbidden));
        assert_eq!(ledger.capture("new", charge(1), false), Err(Refusal::Full));
        assert_eq!(ledger.refund("new"), Err(Refusal::Full));
        assert!(matches!(ledger.capture("7", charge(1), false), Ok((Taken(_), None))));
        assert!(matches!(ledger.refund("7"), Ok((GivenBack(_), Some(_)))));
    }
}
