//! Fields of a newer version of the contract are preserved in snapshots that this version writes.
//!
//! A snapshot derives from the previous one. Decoding and encoding it with this version would drop the fields of a
//! newer one. While both versions run side by side, the next step may be the older one. So this version copies a
//! snapshot with unknown fields byte for byte, except for the fields that change in an order's life.

use bytes::{Buf, Bytes};
use prost::Message;
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
};
use proto::orders::v1::{Order, OrderEvent};

/// Number of `order` in OrderEvent.
const ORDER: u32 = 3;
/// Numbers of the fields of Order that its life changes: `status`, `reason`, `compensation_pending`, `parked_status`,
/// `revision`, `update_time`, `dead_letter_id`, `current_step`, `completed_steps`, `attributes`, `deferral`, `shipment`.
const CHANGING: [u32; 12] = [5, 6, 7, 8, 9, 11, 12, 14, 15, 16, 17, 18];

/// The order snapshot of a stored event, if it contains fields that `event` lacks; else empty.
pub(crate) fn beyond(event: &OrderEvent, payload: &Bytes) -> Bytes {
    // Without unknown fields the payload is never longer than its encoding.
    if payload.len() <= event.encoded_len() {
        return Bytes::new();
    }
    let mut order = Vec::new();
    for (number, mut field) in fields(payload.clone()) {
        // A message field may occur several times; protobuf merges the parts.
        if number == ORDER && decode_key(&mut field).is_ok() && decode_varint(&mut field).is_ok() {
            order.extend_from_slice(&field);
        }
    }
    let known = event.order.as_ref().map_or(0, Order::encoded_len);
    if order.len() > known { order.into() } else { Bytes::new() }
}

/// The event as it is stored, and its order with the fields in `unknown`.
pub(crate) fn encode(event: &mut OrderEvent, unknown: &Bytes) -> Bytes {
    if unknown.is_empty() {
        return event.encode_to_vec().into();
    }
    let order = event.order.take().unwrap_or_default();
    let mut bytes = event.encode_to_vec();
    let kept = fields(unknown.clone()).filter(|(number, _)| !CHANGING.contains(number));
    let mut snapshot: Vec<u8> = kept.flat_map(|(_, field)| field).collect();
    snapshot.extend(changing(&order).encode_to_vec());
    encode_key(ORDER, WireType::LengthDelimited, &mut bytes);
    encode_varint(snapshot.len() as u64, &mut bytes);
    bytes.append(&mut snapshot);
    event.order = Some(order);
    bytes.into()
}

/// What an order's life changes of it.
fn changing(order: &Order) -> Order {
    Order {
        status: order.status,
        reason: order.reason.clone(),
        compensation_pending: order.compensation_pending.clone(),
        parked_status: order.parked_status,
        revision: order.revision,
        update_time: order.update_time,
        dead_letter_id: order.dead_letter_id.clone(),
        current_step: order.current_step.clone(),
        completed_steps: order.completed_steps,
        attributes: order.attributes.clone(),
        deferral: order.deferral.clone(),
        shipment: order.shipment.clone(),
        ..Order::default()
    }
}

/// The fields of a message that decodes, one after the other: number, and bytes with the key before them.
fn fields(message: Bytes) -> impl Iterator<Item = (u32, Bytes)> {
    let mut rest = message;
    std::iter::from_fn(move || {
        if !rest.has_remaining() {
            return None;
        }
        let before = rest.clone();
        let (number, wire_type) = decode_key(&mut rest).ok()?;
        skip_field(wire_type, number, &mut rest, DecodeContext::default()).ok()?;
        Some((number, before.slice(..before.len() - rest.len())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::ids::Revision;
    use crate::log::lifecycle;
    use prost_types::Timestamp;
    use proto::orders::v1::order_event::Detail;
    use proto::orders::v1::{
        OrderCancelled, OrderCreated, OrderFailed, OrderItem, OrderRedriven, PostalAddress, Route, RouteStep,
    };

    /// A field that no version has, with something in it.
    const FROM_THE_FUTURE: [u8; 5] = [0xaa, 0x7d, 2, b'h', b'i'];

    fn order() -> Order {
        let unit_price = Some(proto::orders::v1::Money { currency_code: "EUR".to_owned(), minor_units: 350 });
        let item = OrderItem { sku: "widget".to_owned(), quantity: 2, unit_price, ..OrderItem::default() };
        let created = OrderCreated {
            order_id: "an-order".to_owned(),
            customer_id: "ada".to_owned(),
            items: vec![item],
            metadata: [("channel".to_owned(), "web".to_owned())].into(),
            shipping_address: Some(PostalAddress {
                region_code: "CH".to_owned(),
                ..PostalAddress::default()
            }),
            payment_method: "tok_1".to_owned(),
            note: "ring twice".to_owned(),
            reference: "PO-17".to_owned(),
            tenant: "shop-1".to_owned(),
            ..OrderCreated::default()
        };
        let step =
            |name: &str| RouteStep { name: name.to_owned(), compensates: true, ..RouteStep::default() };
        let route = Route { name: "usual".to_owned(), steps: vec![step("stock"), step("money")] };
        lifecycle::create(&created, route, Timestamp { seconds: 1_800_000_000, nanos: 5 }).unwrap()
    }

    fn event(order: Order) -> OrderEvent {
        OrderEvent { event_id: "an-event".to_owned(), order: Some(order), ..OrderEvent::default() }
    }

    /// The event as a newer version writes it: it says more of the order, and of its item.
    fn newer(order: &Order) -> Bytes {
        let mut bytes = event(order.clone()).encode_to_vec();
        let mut item = order.items[0].encode_to_vec();
        item.extend(FROM_THE_FUTURE);
        let mut known = Order { items: Vec::new(), ..order.clone() }.encode_to_vec();
        known.extend(FROM_THE_FUTURE);
        encode_key(3, WireType::LengthDelimited, &mut known);
        encode_varint(item.len() as u64, &mut known);
        known.extend(item);
        bytes = OrderEvent { order: None, ..OrderEvent::decode(bytes.as_slice()).unwrap() }.encode_to_vec();
        encode_key(ORDER, WireType::LengthDelimited, &mut bytes);
        encode_varint(known.len() as u64, &mut bytes);
        bytes.extend(known);
        bytes.into()
    }

    fn times_in(bytes: &[u8]) -> usize {
        bytes.windows(FROM_THE_FUTURE.len()).filter(|window| *window == FROM_THE_FUTURE).count()
    }

    #[test]
    fn an_event_of_this_version_has_no_unknown_fields() {
        let event = event(order());
        assert!(beyond(&event, &event.encode_to_vec().into()).is_empty());
    }

    #[test]
    fn unknown_fields_survive_events_of_an_older_version() {
        let failed = OrderFailed { dead_letter_id: "step-1".to_owned(), ..OrderFailed::default() };
        let life = [
            Detail::Reserved(Default::default()),
            Detail::Failed(failed),
            Detail::Redriven(OrderRedriven::default()),
            Detail::Cancelled(OrderCancelled::default()),
            Detail::Released(Default::default()),
            Detail::Refunded(Default::default()),
        ];
        let mut stored = newer(&order());
        for (i, detail) in life.into_iter().enumerate() {
            assert_eq!(times_in(&stored), 2, "before {detail:?}");
            let before = OrderEvent::decode(stored.clone()).unwrap();
            let unknown = beyond(&before, &stored);
            let now = Timestamp { seconds: 1_800_000_001, nanos: i32::try_from(i).unwrap() };
            let order = before.order.unwrap();
            let after = lifecycle::apply(&order, &order.current_step, &detail, now).unwrap();
            let mut next =
                OrderEvent { previous_revision: Revision(7).0, detail: Some(detail), ..event(after) };
            stored = encode(&mut next, &unknown);
            assert_eq!(OrderEvent::decode(stored.clone()).unwrap(), next, "nothing else is changed by it");
        }
        assert_eq!(times_in(&stored), 2);
    }
}
