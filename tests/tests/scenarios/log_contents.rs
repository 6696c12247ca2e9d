//! What the log tells: enough to find an order's trace and span, and nothing of who bought what, or of anybody's secrets.

use std::collections::BTreeMap;

use harness::collector::Collector;
use harness::issuer::{AUDIENCE, ISSUER, SigningKey, claims, key_set};
use harness::{Deployment, Options, PERSONAL, Shows, eventually, full_order_of};
use proto::orders::v1::{
    CancelOrderRequest, GetOrderRequest, ListOrdersRequest, Money, Order, OrderItem, OrderStatus,
    WatchOrdersRequest,
};
use proto::payments::v1::Fault;
use serde_json::Value;

use crate::dead_letters::{break_gadgets, mend};
use crate::tenants::{BOTH, write_keys};

const CUSTOMER: &str = "zaphod-of-betelgeuse";
const EMAIL: &str = "trillian.astra@heartofgold.example";
const DECLINED: &str = "declined-slartibartfast";
const SKU: &str = "babelfish-deluxe";
const PRICE: i64 = 73_313_373;
const REQUEST_ID: &str = "towel-day-request";
const MESSAGE: &str = "mostly harmless after all";
const KEY: &str = "key-42-vogon-poetry-0123456789";
const WRONG_KEY: &str = "key-13-wrong-poetry-9876543210";
const PASSWORD: &str = "magrathea/pass:word";

fn items(sku: &str) -> Vec<OrderItem> {
    let unit_price = Some(Money { currency_code: "EUR".to_owned(), minor_units: PRICE });
    vec![OrderItem { sku: sku.to_owned(), quantity: 1, unit_price, ..OrderItem::default() }]
}

/// The lines of every process, the broker's too.
fn logs(waybill: &Deployment) -> Vec<String> {
    waybill.logged_about("").into_iter().filter(|line| !line.is_empty()).collect()
}

#[tokio::test]
async fn no_log_tells_who_bought_what_or_what_anybody_shows_or_knows() {
    let dir = tempfile::tempdir().unwrap();
    let (keys, jwks, signer) = (dir.path().join("keys"), dir.path().join("jwks"), SigningKey::ec("ec"));
    write_keys(&keys, &[(KEY, "shop-1", &format!("{BOTH},operations"))]);
    std::fs::write(&jwks, key_set(&[&signer])).unwrap();
    let set = |name, value: &str| (name, value.to_owned());
    let collector = Collector::start().await;
    let mut environment = collector.environment();
    environment.push(set(
        "RUST_LOG",
        "info,program=debug,backbone=debug,gateway=debug,processor=debug,waybill_payment_sandbox=debug",
    ));
    let options = Options {
        stock: vec![(SKU, 1_000), ("gadget", 1_000)],
        password: Some(PASSWORD),
        payment_sandbox: true,
        gateway: vec![
            set("API_KEYS_FILE", keys.to_str().unwrap()),
            set("JWT_JWKS", jwks.to_str().unwrap()),
            set("JWT_ISSUER", ISSUER),
            set("JWT_AUDIENCE", AUDIENCE),
        ],
        environment,
        processors: vec![set("ACK_WAIT", "2s"), set("MAX_ATTEMPTS", "2")],
        ..Options::default()
    };
    let mut waybill = Deployment::start_with(options).await;
    waybill.idle("inventory").await;
    break_gadgets(&waybill).await;
    let token = signer.token(&claims("shop-1", "orders:write orders:read"));
    let mut by_key = Shows::key(KEY).on(waybill.channel());
    let mut by_token = Shows::token(&token).on(waybill.channel());
    let order = |customer: &str, request_id: &str, sku: &str| {
        full_order_of(customer, &format!("{REQUEST_ID}-{request_id}"), items(sku))
    };
    let mut ended: BTreeMap<String, Order> = BTreeMap::new();

    // Good, declined, out of stock, parked and redriven, cancelled; tried again, refused, invalid.
    waybill.sandbox().fail(EMAIL, Fault::Outage, 2).await;
    let placed = [
        (order(CUSTOMER, "good", SKU), OrderStatus::Fulfilled),
        (order(EMAIL, "again", SKU), OrderStatus::Fulfilled),
        (order(DECLINED, "declined", SKU), OrderStatus::Rejected),
        (order(CUSTOMER, "none", "unheard-of-sku"), OrderStatus::Rejected),
        (order(CUSTOMER, "poison", "gadget"), OrderStatus::Failed),
    ];
    for (request, status) in placed {
        let id = by_key.create_order(request).await.unwrap().into_inner().order.unwrap().order_id;
        let order = eventually(&format!("{status:?}"), async || {
            let request = GetOrderRequest { order_id: id.clone() };
            let order = by_token.get_order(request).await.ok()?.into_inner().order?;
            (order.status() == status).then_some(order)
        })
        .await;
        ended.insert(id, order);
    }
    let request = ListOrdersRequest { customer_id: CUSTOMER.to_owned(), ..ListOrdersRequest::default() };
    by_key.list_orders(request).await.unwrap();
    let request = WatchOrdersRequest { customer_id: EMAIL.to_owned(), after_revision: 0 };
    let watch = by_key.watch_orders(request).await.unwrap();
    let failed = ended.values().find(|order| order.status() == OrderStatus::Failed).unwrap();
    let cancel = CancelOrderRequest { order_id: failed.order_id.clone(), message: MESSAGE.to_owned() };
    mend(&waybill).await;
    by_token.cancel_order(cancel.clone()).await.unwrap();
    assert!(Shows::key(WRONG_KEY).on(waybill.channel()).cancel_order(cancel.clone()).await.is_err());
    assert!(
        Shows::token(&token[..token.len() - 9]).on(waybill.channel()).cancel_order(cancel).await.is_err()
    );
    let mut invalid = order(CUSTOMER, "invalid", SKU);
    invalid.items[0].quantity = -1;
    assert!(by_key.create_order(invalid).await.is_err());
    let mut invalid = order(CUSTOMER, "invalid", SKU);
    invalid.note.push('\n');
    invalid.payment_method.push('\n');
    invalid.metadata.values_mut().for_each(|value| value.push('\n'));
    assert!(by_key.create_order(invalid).await.is_err());
    let again = order(CUSTOMER, "good", "gadget");
    assert!(by_key.create_order(again).await.is_err());
    let (status, metrics) = waybill.http("/metrics").await;
    assert_eq!(status, 200);

    // While the broker is away, and when somebody makes it say what is none of its business.
    waybill.broker.kill();
    assert!(by_key.create_order(order(CUSTOMER, "away", SKU)).await.is_err());
    waybill.broker.start().await;
    waybill.ready().await;
    let jetstream = waybill.jetstream().await;
    let mut damaged = waybill.messages().await.remove(0).payload.to_vec();
    damaged.truncate(damaged.len() / 2);
    jetstream.publish("ORDER.0.junk.junk.junk.inventory", damaged.into()).await.unwrap().await.unwrap();
    eventually("the damaged message", async || {
        (!waybill.logged_about("undecodable message, stored as dead letter").is_empty()).then_some(())
    })
    .await;
    drop(watch);
    for process in waybill.processors.values_mut().flatten() {
        assert!(process.stop().await.success());
    }
    assert!(waybill.gateway.process.stop().await.success());

    let lines = logs(&waybill);
    let signature = token.rsplit('.').next().unwrap();
    let price = PRICE.to_string();
    let secrets = [
        CUSTOMER,
        EMAIL,
        DECLINED,
        SKU,
        &price,
        REQUEST_ID,
        MESSAGE,
        KEY,
        WRONG_KEY,
        signature,
        &token,
        PASSWORD,
        "magrathea",
        "insufficient funds",
        "heartofgold",
    ];
    let secrets = [&secrets[..], &PERSONAL].concat();
    // What is in stock at the start is a setting of whoever runs it, and no order's.
    let is_setting = |line: &str| line.contains(r#""message":"stock created""#);
    for secret in secrets {
        let telling: Vec<_> =
            lines.iter().filter(|line| line.contains(secret) && !is_setting(line)).collect();
        assert!(telling.is_empty(), "{secret} is told: {telling:#?}");
    }

    // Spans and metrics tell no more. The sandbox's spans are no concern of Waybill's.
    let spans = format!("{:?}", collector.spans());
    assert!(spans.contains("CreateOrder") && spans.contains("process"), "{spans}");
    for text in [CUSTOMER, EMAIL].iter().chain(&PERSONAL) {
        assert!(!spans.contains(text), "{text} is in a span");
        assert!(!metrics.contains(text), "{text} is in a metric");
    }
    let messages = waybill.messages().await;
    for message in &messages {
        let open = format!("{} {:?}", message.subject, message.headers);
        assert!(PERSONAL.iter().all(|text| !open.contains(text)), "{open}");
    }

    // Every line of a program of ours about an order names its trace and span, and a step its own name.
    let mut about = 0;
    for line in lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let fields = &line["fields"];
        let Some(order_id) = fields["order_id"].as_str() else { continue };
        // Who only reads an order may do so for several calls.
        let reads = ["backbone::log::read", "backbone::log::watch"];
        if reads.iter().any(|reader| line["target"] == *reader) {
            continue;
        }
        about += 1;
        let is = |field: &str, length: usize| fields[field].as_str().is_some_and(|text| text.len() == length);
        assert!(is("trace_id", 32) && is("span_id", 16), "{line}");
        assert_eq!(order_id.len(), 43, "{line}");
        let target = line["target"].as_str().unwrap();
        if target.starts_with("processor") {
            assert!(fields["step"].is_string(), "{line}");
        }
        let done = [
            "event appended",
            "order accepted",
            "order cancelled",
            "order parked",
            "attempt failed, order retried",
            "order redriven",
        ];
        if done.iter().any(|done| fields["message"] == *done) {
            assert!(fields["revision"].is_u64(), "{line}");
        }
    }
    assert!(about >= 15, "{about} lines about orders");
}
