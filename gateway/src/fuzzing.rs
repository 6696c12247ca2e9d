//! Properties that hold for any bytes from outside. Each function takes the bytes, and panics where a property is
//! violated. The fuzz targets in `fuzz/` call them with libFuzzer's input, the test below with its seeds.
//!
//! The rules are written here a second time, from the comments of the `.proto` files and docs/security.md.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "it tells by panicking")]

use std::collections::BTreeMap;

use backbone::log::event::BYTES_MAX;
use backbone::log::ids::{CustomerKey, OrderId, OrderKey, Revision};
use backbone::log::lifecycle;
use data_encoding::HEXLOWER;
use http::HeaderMap;
use prost::Message;
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{
    CancelOrderRequest, CreateOrderRequest, GetOrderRequest, ListOrderEventsRequest, ListOrdersRequest,
    OrderEvent, OrderItem, OrderStatus, PostalAddress, WatchOrderRequest, WatchOrdersRequest,
};
use routes::Routes;
use sha2::{Digest, Sha256};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::auth::{Directory, Kind, Tokens};
use crate::page_token::{History, List};
use crate::validation::{self, currency::is_currency};

const TENANT: &str = "shop-1";
const OTHER_TENANT: &str = "shop-2";

/// Error details that every client takes; some refuse headers of 8 KiB in all.
const DETAILS_BYTES_MAX: usize = 5 * 1024;
const HEADERS_BYTES_MAX: usize = 8 * 1024;
/// Headers of an event, with a trace state of 512 bytes, and its id and step.
const EVENT_HEADERS_BYTES_MAX: usize = 2 * 1024;

/// A CreateOrderRequest is accepted if it keeps every rule, and its total is the sum of its items.
pub fn create_order(bytes: &[u8]) {
    let Ok(request) = CreateOrderRequest::decode(bytes) else { return };
    let CreateOrderRequest { request_id, customer_id, items, route, metadata, .. } = &request;
    let sum: i128 = items.iter().map(|item| i128::from(item.quantity) * i128::from(price(item))).sum();
    if let Ok(total) = lifecycle::total(items) {
        assert_eq!(i128::from(total.minor_units), sum);
    }
    let is_known = ["", "standard"].contains(&route.as_str());
    let keeps_the_rules = (request_id.is_empty() || is_text(request_id, 128, "-_.:"))
        && is_text(customer_id, 128, "-_.:@")
        && (1..=100).contains(&items.len())
        && items.iter().all(is_item)
        && items.windows(2).all(|pair| code(&pair[0]) == code(&pair[1]))
        && sum <= i128::from(i64::MAX)
        && request.encoded_len() <= 60 * 1024
        && is_metadata(metadata, 50)
        && request.shipping_address.as_ref().is_none_or(is_address)
        && request.payment_method.chars().count() <= 256
        && request.payment_method.chars().all(|c| c == ' ' || c.is_ascii_graphic())
        && is_short(&request.note, 500)
        && is_short(&request.reference, 64)
        && (is_known || !request_id.is_empty());
    match validation::new_order(TENANT, &Routes::default(), request.clone()) {
        Ok(new) => {
            assert!(keeps_the_rules, "accepted: {request:?}");
            assert_eq!(new.id.customer, CustomerKey::of(TENANT, customer_id));
            let of_request = OrderKey::of_request(TENANT, customer_id, request_id);
            assert_eq!(new.id.order == of_request, !request_id.is_empty());
            assert_eq!(new.created.order_id, new.id.to_string());
            assert_eq!(new.route.is_some(), is_known);
            let Some(route) = new.route else { return };
            let order = lifecycle::create(&new.created, route, Default::default()).unwrap();
            assert_eq!((&order.metadata, &order.shipping_address), (metadata, &request.shipping_address));
            let texts = (&request.payment_method, &request.note, &request.reference);
            assert_eq!((&order.payment_method, &order.note, &order.reference), texts);
            assert_eq!(order.tenant, TENANT);
            assert_eq!(i128::from(order.total.as_ref().unwrap().minor_units), sum);
            assert_eq!((&order.items, &order.customer_id), (items, customer_id));
            let event = OrderEvent {
                order: Some(order),
                detail: Some(Detail::Created(new.created)),
                ..Default::default()
            };
            assert!(event.encoded_len() + EVENT_HEADERS_BYTES_MAX <= BYTES_MAX);
        }
        Err(rejection) => {
            assert!(!keeps_the_rules, "rejected: {request:?}: {rejection:?}");
            let fields = [
                "request_id",
                "customer_id",
                "items",
                "items[].sku",
                "items[].quantity",
                "items[].unit_price",
                "items[].unit_price.currency_code",
                "items[].unit_price.minor_units",
                "items[].name",
                "items[].metadata",
                "items[].metadata[]",
                "metadata",
                "metadata[]",
                "shipping_address.region_code",
                "shipping_address.language_code",
                "shipping_address.postal_code",
                "shipping_address.sorting_code",
                "shipping_address.administrative_area",
                "shipping_address.locality",
                "shipping_address.sublocality",
                "shipping_address.organization",
                "shipping_address.address_lines",
                "shipping_address.address_lines[]",
                "shipping_address.recipients",
                "shipping_address.recipients[]",
                "payment_method",
                "note",
                "reference",
                "route",
            ];
            check_rejection(&rejection, &fields, items.len());
        }
    }
}

/// A CancelOrderRequest is accepted if its order_id is one, and its message keeps the rule.
pub fn cancel_order(bytes: &[u8]) {
    let Ok(request) = CancelOrderRequest::decode(bytes) else { return };
    let CancelOrderRequest { order_id, message } = &request;
    let is_message = message.chars().count() <= 256 && !message.chars().any(char::is_control);
    match validation::cancel(request.clone()) {
        Ok((id, cancelled)) => {
            assert!(is_message, "accepted: {message:?}");
            assert_eq!((&id.to_string(), &cancelled.message), (order_id, message));
        }
        Err(rejection) => {
            assert!(!is_message || order_id.parse::<OrderId>().is_err(), "rejected: {request:?}");
            check_rejection(&rejection, &["order_id", "message"], 0);
        }
    }
}

/// A ListOrdersRequest is accepted if it keeps every rule, and a page_token only where it is of the same list.
pub fn list_orders(bytes: &[u8]) {
    let Ok(request) = ListOrdersRequest::decode(bytes) else { return };
    let ListOrdersRequest { customer_id, page_size, page_token, statuses } = &request;
    let keeps_the_rules = is_text(customer_id, 128, "-_.:@")
        && (0..=1000).contains(page_size)
        && statuses.iter().all(|status| (1..=7).contains(status));
    match validation::page(TENANT, &request) {
        Ok(page) => {
            assert!(keeps_the_rules, "accepted: {request:?}");
            assert_eq!(page.customer, CustomerKey::of(TENANT, customer_id));
            assert_eq!(page.size as i32, if *page_size == 0 { 50 } else { *page_size });
            assert!(page.statuses.is_sorted_by(|one, next| one < next), "{:?}", page.statuses);
            let asked_for = |status: &OrderStatus| statuses.contains(&i32::from(*status));
            assert!(page.statuses.iter().all(asked_for) && page.statuses.is_empty() == statuses.is_empty());
            assert_eq!(page.before.map(|before| page.list().token(before)).unwrap_or_default(), *page_token);
        }
        Err(rejection) => {
            assert!(!keeps_the_rules || !page_token.is_empty(), "rejected: {request:?}");
            let fields = ["customer_id", "page_size", "page_token", "statuses[]"];
            check_rejection(&rejection, &fields, statuses.len());
        }
    }
}

/// GetOrder, ListOrderEvents, WatchOrder and WatchOrders name an order or a customer; no other field can be invalid.
pub fn reads(bytes: &[u8]) {
    let named = [
        GetOrderRequest::decode(bytes).map(|request| request.order_id),
        ListOrderEventsRequest::decode(bytes).map(|request| request.order_id),
        WatchOrderRequest::decode(bytes).map(|request| request.order_id),
    ];
    for order_id in named.into_iter().flatten() {
        match validation::order_id(&order_id) {
            Ok(id) => assert_eq!(id.to_string(), order_id),
            Err(rejection) => check_rejection(&rejection, &["order_id"], 0),
        }
    }
    let Ok(WatchOrdersRequest { customer_id, .. }) = WatchOrdersRequest::decode(bytes) else { return };
    match validation::customer(TENANT, &customer_id) {
        Ok(customer) => {
            assert!(is_text(&customer_id, 128, "-_.:@"), "accepted: {customer_id:?}");
            assert_eq!(customer, CustomerKey::of(TENANT, &customer_id));
            assert_ne!(customer, CustomerKey::of(OTHER_TENANT, &customer_id));
        }
        Err(rejection) => {
            assert!(!is_text(&customer_id, 128, "-_.:@"), "rejected: {customer_id:?}");
            check_rejection(&rejection, &["customer_id"], 0);
        }
    }
}

/// A page token leads back to its place in its list or history, and to none in any other. Takes a revision, a byte of
/// statuses, and a text that may be a token.
pub fn page_token(bytes: &[u8]) {
    let Some((revision, [statuses, text @ ..])) = bytes.split_first_chunk() else { return };
    let revision = Revision(u64::from_be_bytes(*revision));
    let chosen = |status: &OrderStatus| statuses >> i32::from(*status) & 1 == 1;
    let statuses: Vec<_> =
        (1..=7).filter_map(|n| OrderStatus::try_from(n).ok()).filter(|status| chosen(status)).collect();
    let list = List { customer: CustomerKey::of(TENANT, "c"), statuses: &statuses };

    let token = list.token(revision);
    assert_eq!(list.parse(&token), Some(revision).filter(|revision| *revision > Revision::NONE));
    let of_another_tenant = List { customer: CustomerKey::of(OTHER_TENANT, "c"), ..list };
    assert_eq!(of_another_tenant.parse(&token), None);
    let of_fewer_statuses = statuses.split_last().map(|(_, fewer)| List { statuses: fewer, ..list });
    assert_eq!(of_fewer_statuses.and_then(|list| list.parse(&token)), None);

    let id = |customer: &str| OrderId {
        customer: CustomerKey::of(TENANT, customer),
        order: OrderKey::of_request(TENANT, customer, "r"),
    };
    let (history, another) = (History(id("c")), History(id("d")));
    assert_eq!(history.parse(&history.token(revision)), Some(revision).filter(|it| *it > Revision::NONE));
    assert_eq!((history.parse(&token), another.parse(&history.token(revision))), (None, None));

    let Ok(text) = str::from_utf8(text) else { return };
    if let Some(revision) = list.parse(text) {
        assert_eq!(list.token(revision), text);
    }
    if let Some(revision) = history.parse(text) {
        assert_eq!(history.token(revision), text);
    }
}

/// A file of API keys or of certificates accepts its entries, each for the tenant of its line. Takes a
/// key or a name, a zero byte, and a file; as in a request and as on disk, either may be any bytes.
pub fn credentials(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let (Some(shown), Some(file)) = (parts.next(), parts.next()) else { return };
    let Ok(text) = str::from_utf8(file) else { return };
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let counts = |line: &str| !line.is_empty() && !line.starts_with('#');
    for kind in [Kind::ApiKeys, Kind::Clients] {
        let directory = match Directory::of(kind, text) {
            Ok(directory) => directory,
            Err((line, problem)) => {
                assert!(counts(lines[line - 1]), "line {line}: {problem}");
                continue;
            }
        };
        for shown in [shown, b"one", b"two"] {
            let written = match kind {
                Kind::ApiKeys => HEXLOWER.encode(&Sha256::digest(shown)),
                Kind::Clients => String::from_utf8_lossy(shown).into_owned(),
            };
            let fields = lines.iter().filter(|line| counts(line)).map(|line| line.split_whitespace());
            let mut tenants = fields.filter_map(|mut fields| {
                (fields.next()? == written).then(|| fields.next().unwrap().to_owned())
            });
            let tenant = tenants.next();
            assert_eq!(tenants.next(), None, "in two lines");
            assert!(tenant.as_ref().is_none_or(|tenant| is_text(tenant, 64, "-_.")), "{tenant:?}");
            let found = directory.find(shown);
            // A certificate's name is text.
            if kind == Kind::ApiKeys || str::from_utf8(shown).is_ok() {
                assert_eq!(found.map(|principal| principal.tenant.to_string()), tenant);
            } else {
                assert!(found.is_none());
            }
        }
    }
}

/// No token is accepted without a valid signature, and signed claims name the caller. Takes a JWKS, a zero byte, a
/// token, a zero byte, and claims of a token signed with the key "k".
pub fn token(bytes: &[u8]) {
    let mut parts = bytes.splitn(3, |byte| *byte == 0).map(|part| str::from_utf8(part).unwrap_or_default());
    let mut part = || parts.next().unwrap_or_default();
    let (keys, token, claims) = (part(), part(), part());
    let Some(tokens) = Tokens::of(keys) else { return };
    assert_eq!(tokens.check(token).unwrap_err().code(), Code::Unauthenticated);
    let Ok(claims) = serde_json::from_str(claims) else { return };
    if let Some(principal) = tokens.claimed("k", &claims) {
        assert!(is_text(&principal.tenant, 64, "-_."));
        assert_eq!(claims["tenant"], *principal.tenant);
        assert!(claims["exp"].as_f64().unwrap() >= 0.0);
    }
}

fn is_text(text: &str, bytes_max: usize, punctuation: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || punctuation.as_bytes().contains(&byte);
    (1..=bytes_max).contains(&text.len()) && text.bytes().all(allowed)
}

fn is_item(item: &OrderItem) -> bool {
    is_text(&item.sku, 64, "-_")
        && (1..=1_000_000).contains(&item.quantity)
        && code(item).is_some_and(is_currency)
        && price(item) >= 0
        && is_short(&item.name, 200)
        && is_metadata(&item.metadata, 10)
}

fn is_short(text: &str, chars_max: usize) -> bool {
    text.chars().count() <= chars_max && text.chars().all(|c| !c.is_control())
}

fn is_line(text: &str, chars_max: usize) -> bool {
    !text.is_empty() && is_short(text, chars_max)
}

fn is_metadata(metadata: &BTreeMap<String, String>, entries_max: usize) -> bool {
    metadata.len() <= entries_max
        && metadata.iter().all(|(key, value)| is_line(key, 40) && is_short(value, 500))
}

fn is_address(address: &PostalAddress) -> bool {
    let names =
        [&address.administrative_area, &address.locality, &address.sublocality, &address.organization];
    address.region_code.len() == 2
        && address.region_code.bytes().all(|byte| byte.is_ascii_uppercase())
        && (address.language_code.is_empty() || is_text(&address.language_code, 35, "-"))
        && is_short(&address.postal_code, 32)
        && is_short(&address.sorting_code, 32)
        && names.into_iter().all(|name| is_short(name, 100))
        && address.address_lines.len() <= 5
        && address.address_lines.iter().all(|line| is_line(line, 200))
        && address.recipients.len() <= 5
        && address.recipients.iter().all(|recipient| is_line(recipient, 100))
}

fn code(item: &OrderItem) -> Option<&str> {
    Some(&item.unit_price.as_ref()?.currency_code)
}

fn price(item: &OrderItem) -> i64 {
    item.unit_price.as_ref().map_or(0, |price| price.minor_units)
}

/// A rejection names existing fields, and is small enough for every client.
/// `[]` among `fields` stands for an index below `length`.
fn check_rejection(rejection: &Status, fields: &[&str], length: usize) {
    assert_eq!(rejection.code(), Code::InvalidArgument);
    let violations = rejection.get_details_bad_request().unwrap().field_violations;
    assert!((1..=32).contains(&violations.len()), "{rejection:?}");
    for violation in &violations {
        let (field, index) = without_index(&violation.field);
        assert!(fields.contains(&field.as_str()), "{violation:?}");
        assert!(index.is_none_or(|index| index < length), "{violation:?}");
        assert!(!violation.description.is_empty(), "{violation:?}");
    }
    assert!(rejection.message().contains(&violations[0].field), "{rejection:?}");
    assert!(rejection.details().len() <= DETAILS_BYTES_MAX, "{} bytes", rejection.details().len());
    let mut headers = HeaderMap::new();
    rejection.add_header(&mut headers).unwrap();
    let header_bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    assert!(header_bytes <= HEADERS_BYTES_MAX, "{header_bytes} bytes");
}

/// A path such as `items[3].sku` as `items[].sku` and 3; the keys of maps are left out too.
fn without_index(path: &str) -> (String, Option<usize>) {
    let index = ["items[", "statuses["].iter().find_map(|list| path.strip_prefix(list));
    let index = index.map(|rest| rest.split_once(']').unwrap().0.parse().unwrap());
    let parts: Vec<_> =
        path.split(']').map(|part| part.split_once('[').map_or(part, |(before, _)| before)).collect();
    (parts.join("[]"), index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_seed_passes(name: &str, target: fn(&[u8])) {
        let folder = format!("{}/../fuzz/seeds/{name}", env!("CARGO_MANIFEST_DIR"));
        let seeds: Vec<_> = std::fs::read_dir(folder).unwrap().map(|seed| seed.unwrap().path()).collect();
        assert!(!seeds.is_empty(), "{name}");
        for seed in seeds {
            eprintln!("{}", seed.display());
            target(&std::fs::read(seed).unwrap());
        }
    }

    #[test]
    fn every_seed_passes_its_fuzz_target() {
        every_seed_passes("create_order", create_order);
        every_seed_passes("cancel_order", cancel_order);
        every_seed_passes("list_orders", list_orders);
        every_seed_passes("reads", reads);
        every_seed_passes("page_token", page_token);
        every_seed_passes("credentials", credentials);
        every_seed_passes("token", token);
    }
}
