//! The payment method of an order. It is in the log, because steps read orders from there alone. Code that passes an order or
//! an event to clients, operators or other steps than payment removes it first.

use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
};
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Order, OrderEvent};

/// Numbers of `order` and `created` in OrderEvent.
const ORDER: u32 = 3;
const CREATED: u32 = 10;
/// Numbers of `payment_method` in Order and in OrderCreated.
const IN_ORDER: u32 = 22;
const IN_CREATED: u32 = 12;

/// The order as others than the payment step see it.
pub fn removed_from_order(mut order: Order) -> Order {
    order.payment_method.clear();
    order
}

/// The event as others than the payment step see it.
pub fn removed_from_event(mut event: OrderEvent) -> OrderEvent {
    event.order = event.order.map(removed_from_order);
    if let Some(Detail::Created(created)) = &mut event.detail {
        created.payment_method.clear();
    }
    event
}

/// The payload of a stored event without the payment method. All other bytes stay as they are, also those of a payload that
/// is torn or not an event.
pub fn removed_from_payload(payload: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(payload.len());
    copy(payload, &in_event, &mut kept);
    kept
}

/// What happens to a field.
enum Field {
    Keep,
    Remove,
    /// A message, of which the field with this number is removed.
    RemoveWithin(u32),
}

fn in_event(number: u32) -> Field {
    match number {
        ORDER => Field::RemoveWithin(IN_ORDER),
        CREATED => Field::RemoveWithin(IN_CREATED),
        _ => Field::Keep,
    }
}

/// Copies a message field by field. A torn field at its end counts as a field.
fn copy(message: &[u8], rule: &dyn Fn(u32) -> Field, kept: &mut Vec<u8>) {
    let mut rest = message;
    while !rest.is_empty() {
        let from_here = rest;
        let Ok((number, wire_type)) = decode_key(&mut rest) else { return kept.extend_from_slice(from_here) };
        let field = if wire_type == WireType::LengthDelimited { rule(number) } else { Field::Keep };
        if matches!(field, Field::Keep) {
            if skip_field(wire_type, number, &mut rest, DecodeContext::default()).is_err() {
                return kept.extend_from_slice(from_here);
            }
            kept.extend_from_slice(&from_here[..from_here.len() - rest.len()]);
            continue;
        }
        let Ok(length) = decode_varint(&mut rest) else { return };
        let (content, after) = rest.split_at(usize::try_from(length).unwrap_or(usize::MAX).min(rest.len()));
        rest = after;
        if let Field::RemoveWithin(removed) = field {
            let is_removed = |number| if number == removed { Field::Remove } else { Field::Keep };
            let mut within = Vec::with_capacity(content.len());
            copy(content, &is_removed, &mut within);
            if within.len() == content.len() {
                kept.extend_from_slice(&from_here[..from_here.len() - rest.len()]);
            } else {
                encode_key(number, WireType::LengthDelimited, kept);
                encode_varint(length - (content.len() - within.len()) as u64, kept);
                kept.append(&mut within);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;
    use proto::orders::v1::OrderCreated;

    const TOKEN: &str = "tok_4242424242424242";

    fn event() -> OrderEvent {
        let payment_method = TOKEN.to_owned();
        let created =
            OrderCreated { payment_method: payment_method.clone(), note: "n".into(), ..Default::default() };
        OrderEvent {
            event_id: "an-event".to_owned(),
            order: Some(Order { payment_method, tenant: "shop-1".to_owned(), ..Order::default() }),
            step: "step".to_owned(),
            detail: Some(Detail::Created(created)),
            ..OrderEvent::default()
        }
    }

    fn has_token(bytes: &[u8]) -> bool {
        // Two characters of it tell nothing.
        bytes.windows(3).any(|window| TOKEN.as_bytes().windows(3).any(|part| part == window))
    }

    #[test]
    fn an_event_keeps_all_but_the_payment_method() {
        let stored = event().encode_to_vec();
        assert!(has_token(&stored));
        let removed = removed_from_payload(&stored);
        assert!(!has_token(&removed));
        let shown = OrderEvent::decode(removed.as_slice()).unwrap();
        assert_eq!(shown, removed_from_event(event()));
        assert_eq!(shown.order.unwrap().tenant, "shop-1");
    }

    #[test]
    fn an_event_that_is_torn_anywhere_tells_nothing_either() {
        let stored = event().encode_to_vec();
        for end in 0..stored.len() {
            assert!(!has_token(&removed_from_payload(&stored[..end])), "torn at {end}");
        }
    }

    #[test]
    fn fields_of_a_newer_version_stay() {
        let mut stored = event().encode_to_vec();
        stored.extend([0xaa, 0x7d, 2, b'h', b'i']);
        assert!(removed_from_payload(&stored).ends_with(b"hi"));
    }

    proptest! {
        #[test]
        fn other_bytes_stay_as_they_are(payload: Vec<u8>) {
            let removed = removed_from_payload(&payload);
            if removed != payload {
                prop_assert!(removed.len() < payload.len());
            }
        }
    }
}
