//! What the sample shop sells, and who buys there: a fixed mixture that shows every way an order can end.

use proto::orders::v1::{CreateOrderRequest, Money, OrderItem};

const CURRENCY: &str = "EUR";
const CUSTOMERS: [&str; 4] = ["ada", "barbara", "edsger", "grace"];
/// The payment sandbox declines every customer whose name begins so.
const DECLINED_CUSTOMER: &str = "declined-mallory";

struct Product {
    sku: &'static str,
    price_minor: i64,
    stock: i32,
}

const PLENTIFUL: [Product; 3] = [
    Product { sku: "widget", price_minor: 1250, stock: 100_000_000 },
    Product { sku: "gadget", price_minor: 4999, stock: 100_000_000 },
    Product { sku: "sprocket", price_minor: 75, stock: 100_000_000 },
];
/// Enough for one sample order, so that the next is out of stock. Stock is kept between runs like everything
/// else: it never comes back.
const SCARCE: Product = Product { sku: "limited-edition", price_minor: 99_900, stock: 5 };
const SCARCE_QUANTITY: i32 = 3;
const _: () = assert!(SCARCE_QUANTITY <= SCARCE.stock && 2 * SCARCE_QUANTITY > SCARCE.stock);

/// The stock to begin with, as the inventory step takes it: `sku=count,…`.
pub(super) fn stock() -> String {
    let lines: Vec<_> = PLENTIFUL
        .iter()
        .chain([&SCARCE])
        .map(|product| format!("{}={}", product.sku, product.stock))
        .collect();
    lines.join(",")
}

/// The n-th sample order of a run. Of ten, one is declined and two are for the scarce product.
pub(super) fn sample_order(run: &str, index: usize) -> CreateOrderRequest {
    let customer_id = match index % 10 {
        3 => DECLINED_CUSTOMER,
        _ => CUSTOMERS[index % CUSTOMERS.len()],
    };
    let items = match index % 10 {
        6 | 8 => vec![item(&SCARCE, SCARCE_QUANTITY)],
        _ => plentiful_items(index),
    };
    let (request_id, customer_id) = (format!("{run}-{index}"), customer_id.to_owned());
    CreateOrderRequest { request_id, customer_id, items, ..CreateOrderRequest::default() }
}

/// An order for grpcurl.
pub(super) fn example_json() -> String {
    let [product, ..] = &PLENTIFUL;
    format!(
        r#"{{"customer_id":"ada","items":[{{"sku":"{}","quantity":2,"unit_price":{{"currency_code":"{CURRENCY}","minor_units":{}}}}}]}}"#,
        product.sku, product.price_minor
    )
}

/// An item for `waybill order place`.
pub(super) fn example_item() -> String {
    let [product, ..] = &PLENTIFUL;
    format!("{}:2:{}", product.sku, product.price_minor)
}

/// One to three different products.
fn plentiful_items(index: usize) -> Vec<OrderItem> {
    let kinds = 1 + index % PLENTIFUL.len();
    let products = PLENTIFUL.iter().cycle().skip(index).take(kinds);
    products.zip(1..).map(|(product, quantity)| item(product, quantity)).collect()
}

fn item(product: &Product, quantity: i32) -> OrderItem {
    OrderItem {
        sku: product.sku.to_owned(),
        quantity,
        unit_price: Some(Money { currency_code: CURRENCY.to_owned(), minor_units: product.price_minor }),
        ..OrderItem::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stock_is_named_as_inventory_takes_it() {
        assert!(stock().starts_with("widget=100000000,gadget="));
        assert!(stock().ends_with(",limited-edition=5"));
    }

    #[test]
    fn of_ten_orders_one_is_declined_and_two_are_scarce() {
        let orders: Vec<_> = (0..10).map(|index| sample_order("run", index)).collect();
        let declined = orders.iter().filter(|order| order.customer_id.starts_with("declined"));
        let scarce = orders.iter().filter(|order| order.items.iter().any(|item| item.sku == SCARCE.sku));
        assert_eq!(declined.count(), 1);
        assert_eq!(scarce.count(), 2);
    }

    #[test]
    fn every_sample_order_has_its_own_request_id_and_is_always_the_same() {
        assert_eq!(sample_order("run", 7), sample_order("run", 7));
        assert_ne!(sample_order("run", 7).request_id, sample_order("run", 17).request_id);
    }
}
