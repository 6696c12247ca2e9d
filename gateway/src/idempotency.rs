//! Which requests are the same: a retry with a request_id gets the order that the first call created.

use proto::orders::v1::{Order, OrderCreated};

/// Whether this request has created the order, whose id has the same customer and request_id. The default route may have
/// changed since.
pub(crate) fn is_retry(asked: &OrderCreated, order: &Order) -> bool {
    // Without `..`: a new field belongs into the comparison.
    let OrderCreated {
        items,
        route,
        metadata,
        shipping_address,
        payment_method,
        note,
        reference,
        // The order's id follows from these.
        order_id: _,
        customer_id: _,
        request_id: _,
        tenant: _,
    } = asked;
    let of_order = order.route.as_ref().map_or("", |route| &route.name);
    let is_route = route.is_empty() || route == of_order;
    is_route
        && (items, metadata, shipping_address) == (&order.items, &order.metadata, &order.shipping_address)
        && (payment_method, note, reference) == (&order.payment_method, &order.note, &order.reference)
}
