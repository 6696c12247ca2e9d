//! Fulfilment: hands a paid order to the carrier.

use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Order, OrderFulfilled};

use crate::step::{Step, StepError, StepProfile};

/// The fulfilment step.
pub const PROFILE: StepProfile = StepProfile::new("fulfilment");

/// The fulfilment step.
#[derive(Clone, Copy, Debug)]
pub struct Fulfilment;

impl Step for Fulfilment {
    /// A shipment exists only as the event that announces it.
    async fn act(&self, order: &Order, _: u64) -> Result<Detail, StepError> {
        Ok(Detail::Fulfilled(OrderFulfilled { shipment_id: shipment_id(order)? }))
    }
}

/// The same order always has the same shipment number, so it cannot ship under two.
fn shipment_id(order: &Order) -> Result<String, StepError> {
    let (_, order_key) = order
        .order_id
        .split_once('-')
        .ok_or_else(|| StepError::Unexpected("malformed order_id".to_owned()))?;
    Ok(format!("SHP-{}", order_key.to_ascii_uppercase()))
}
