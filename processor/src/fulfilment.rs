//! Fulfilment: hands a paid order to the carrier.

use backbone::subjects::EventKind;
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Order, OrderFulfilled, OrderStatus};

use crate::step::{Step, StepError};

/// The fulfilment step.
#[derive(Clone, Copy, Debug)]
pub struct Fulfilment;

impl Step for Fulfilment {
    const NAME: &'static str = "fulfilment";
    const EVENTS: &'static [EventKind] = &[EventKind::Paid];

    async fn handle(&self, order: &Order) -> Result<Option<Detail>, StepError> {
        match order.status() {
            OrderStatus::Paid => {
                Ok(Some(Detail::Fulfilled(OrderFulfilled { shipment_id: shipment_id(order)? })))
            }
            OrderStatus::Unspecified
            | OrderStatus::Accepted
            | OrderStatus::Reserved
            | OrderStatus::Fulfilled
            | OrderStatus::Rejected
            | OrderStatus::Cancelled
            | OrderStatus::Failed => Ok(None),
        }
    }

    /// A shipment exists only as the event that announces it.
    async fn compensate(&self, _: &Order) -> Result<(), StepError> {
        Ok(())
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
