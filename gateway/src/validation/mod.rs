//! The rules of every request field. All that a request breaks is reported at once.

mod address;
pub(crate) mod currency;
mod items;
mod metadata;
mod violations;

pub(crate) use violations::Violations;

use backbone::log::ids::{CustomerKey, OrderId, OrderKey, Revision};
use prost::Message;
use proto::orders::v1::{
    CancelOrderRequest, CreateOrderRequest, ListOrderEventsRequest, ListOrdersRequest, OrderCancelled,
    OrderCreated, OrderStatus, Route,
};
use routes::Routes;
use tonic::Status;

use crate::errors;
use crate::page_token::{History, List};

/// Longest customer_id and request_id, in characters.
const ID_CHARS_MAX: usize = 128;
/// Longest message of a cancel, in characters.
const MESSAGE_CHARS_MAX: usize = 256;
/// Longest payment_method, in characters.
const PAYMENT_METHOD_CHARS_MAX: usize = 256;
/// Longest note, in characters.
const NOTE_CHARS_MAX: usize = 500;
/// Longest reference, in characters.
const REFERENCE_CHARS_MAX: usize = 64;
/// Most entries in the metadata of an order.
const METADATA_ENTRIES_MAX: usize = 50;
/// Largest CreateOrderRequest, encoded. Below the limit of any request, so that the answer names what to shorten. An order with
/// 100 items and every other field at its limit fits in ASCII, except for the metadata of its items.
/// [`BYTES_MAX`](backbone::log::event::BYTES_MAX) follows from it.
pub(crate) const ORDER_BYTES_MAX: usize = 60 * 1024;
/// Most orders of one page, and how many there are if the client does not say.
const PAGE_SIZE_MAX: usize = 1_000;
const PAGE_SIZE_DEFAULT: usize = 50;
/// The same of events.
const EVENTS_PAGE_SIZE_MAX: usize = 1_000;
const EVENTS_PAGE_SIZE_DEFAULT: usize = 100;

/// Characters that customer_id may hold beside alphanumeric ones.
const CUSTOMER_ID_PUNCTUATION: &str = "-_.:@";

/// An order that may be appended.
#[derive(Debug)]
pub(crate) struct NewOrder {
    pub(crate) id: OrderId,
    pub(crate) created: OrderCreated,
    /// `None`: there is no such route now. A retry of a request from before the route file changed may name it.
    pub(crate) route: Option<Route>,
}

/// Checks a CreateOrderRequest of `tenant`, names the order, and finds its route.
pub(crate) fn new_order(
    tenant: &str,
    routes: &Routes,
    request: CreateOrderRequest,
) -> Result<NewOrder, Status> {
    let mut violations = Violations::default();
    violations.check_size(&request);
    let CreateOrderRequest {
        request_id,
        customer_id,
        items,
        route: route_name,
        metadata,
        shipping_address,
        payment_method,
        note,
        reference,
    } = request;
    if !request_id.is_empty() {
        violations.check_text("request_id", &request_id, ID_CHARS_MAX, "-_.:");
    }
    violations.check_text("customer_id", &customer_id, ID_CHARS_MAX, CUSTOMER_ID_PUNCTUATION);
    violations.check_items(&items);
    violations.check_metadata("metadata", &metadata, METADATA_ENTRIES_MAX);
    if let Some(address) = &shipping_address {
        violations.check_address(address);
    }
    let is_printable = payment_method.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if payment_method.len() > PAYMENT_METHOD_CHARS_MAX || !is_printable {
        let rule = format_args!("must be at most {PAYMENT_METHOD_CHARS_MAX} printable ASCII characters");
        violations.add("payment_method", rule);
    }
    violations.check_short_text("note", &note, NOTE_CHARS_MAX);
    violations.check_short_text("reference", &reference, REFERENCE_CHARS_MAX);
    let route = routes.route(&route_name);
    let is_retriable = !request_id.is_empty() && violations.is_empty();
    if route.is_none() && !is_retriable {
        add_unknown_route(routes, &mut violations);
    }
    violations.into_result()?;

    let order = if request_id.is_empty() {
        OrderKey::unique()
    } else {
        OrderKey::of_request(tenant, &customer_id, &request_id)
    };
    let id = OrderId { customer: CustomerKey::of(tenant, &customer_id), order };
    let created = OrderCreated {
        order_id: id.to_string(),
        customer_id,
        items,
        request_id,
        route: route_name,
        metadata,
        shipping_address,
        payment_method,
        note,
        reference,
        tenant: tenant.to_owned(),
    };
    Ok(NewOrder { id, created, route })
}

impl Violations {
    /// Checks the size of the whole order. Names the field that takes most of it.
    fn check_size(&mut self, request: &CreateOrderRequest) {
        let bytes = request.encoded_len();
        if bytes <= ORDER_BYTES_MAX {
            return;
        }
        let of_items: usize = request.items.iter().map(Message::encoded_len).sum();
        let field = if of_items > bytes / 2 { "items" } else { "metadata" };
        let fix = "shorten names and metadata, or place two orders";
        let rule = format_args!("must leave the request at most {ORDER_BYTES_MAX} bytes, not {bytes}; {fix}");
        self.add(field, rule);
    }
}

/// The rejection of a request whose route does not exist.
pub(crate) fn unknown_route(routes: &Routes) -> Status {
    let mut violations = Violations::default();
    add_unknown_route(routes, &mut violations);
    violations.into_status()
}

fn add_unknown_route(routes: &Routes, violations: &mut Violations) {
    let known = routes.names().collect::<Vec<_>>().join(", ");
    violations.add("route", format_args!("must be one of {known}, or empty for {}", routes.default_name()));
}

/// Checks an order_id.
pub(crate) fn order_id(text: &str) -> Result<OrderId, Status> {
    let mut violations = Violations::default();
    let id = violations.check_order_id(text);
    violations.into_result()?;
    // Unreachable: a missing id is a violation.
    id.ok_or_else(|| errors::invalid(Vec::new(), 0))
}

/// Checks a CancelOrderRequest.
pub(crate) fn cancel(request: CancelOrderRequest) -> Result<(OrderId, OrderCancelled), Status> {
    let CancelOrderRequest { order_id, message } = request;
    let mut violations = Violations::default();
    let id = violations.check_order_id(&order_id);
    violations.check_short_text("message", &message, MESSAGE_CHARS_MAX);
    violations.into_result()?;
    let id = id.ok_or_else(|| errors::invalid(Vec::new(), 0))?;
    Ok((id, OrderCancelled { message }))
}

/// Checks the customer_id of a `tenant`'s customer.
pub(crate) fn customer(tenant: &str, customer_id: &str) -> Result<CustomerKey, Status> {
    let mut violations = Violations::default();
    violations.check_text("customer_id", customer_id, ID_CHARS_MAX, CUSTOMER_ID_PUNCTUATION);
    violations.into_result()?;
    Ok(CustomerKey::of(tenant, customer_id))
}

/// A page that may be read.
#[derive(Debug)]
pub(crate) struct PageRequest {
    pub(crate) customer: CustomerKey,
    pub(crate) size: usize,
    /// Only orders created before here.
    pub(crate) before: Option<Revision>,
    /// In ascending order, each once; empty for all.
    pub(crate) statuses: Vec<OrderStatus>,
}

impl PageRequest {
    /// The list that the page is part of.
    pub(crate) fn list(&self) -> List<'_> {
        List { customer: self.customer, statuses: &self.statuses }
    }
}

/// Checks a ListOrdersRequest of `tenant`.
pub(crate) fn page(tenant: &str, request: &ListOrdersRequest) -> Result<PageRequest, Status> {
    let mut violations = Violations::default();
    violations.check_text("customer_id", &request.customer_id, ID_CHARS_MAX, CUSTOMER_ID_PUNCTUATION);
    let size = violations.page_size(request.page_size, PAGE_SIZE_MAX, PAGE_SIZE_DEFAULT);
    let mut statuses = Vec::new();
    for (i, status) in request.statuses.iter().enumerate() {
        match OrderStatus::try_from(*status) {
            Ok(OrderStatus::Unspecified) | Err(_) => {
                violations
                    .add(format_args!("statuses[{i}]"), format_args!("is not a status of orders: {status}"));
            }
            Ok(status) => statuses.push(status),
        }
    }
    statuses.sort_unstable();
    statuses.dedup();
    let customer = CustomerKey::of(tenant, &request.customer_id);
    let mut page = PageRequest { customer, size, before: None, statuses };
    if !request.page_token.is_empty() {
        page.before = page.list().parse(&request.page_token);
        if page.before.is_none() {
            violations.add(
                "page_token",
                "must be the next_page_token of an answer for the same customer_id and statuses, or empty",
            );
        }
    }
    violations.into_result()?;
    Ok(page)
}

/// The requested events of an order.
#[derive(Debug)]
pub(crate) struct EventsRequest {
    pub(crate) id: OrderId,
    /// Only events behind this one.
    pub(crate) after: Revision,
    /// Most events.
    pub(crate) size: usize,
}

/// Checks a ListOrderEventsRequest.
pub(crate) fn events(request: &ListOrderEventsRequest) -> Result<EventsRequest, Status> {
    let id = order_id(&request.order_id)?;
    let mut violations = Violations::default();
    let size = violations.page_size(request.page_size, EVENTS_PAGE_SIZE_MAX, EVENTS_PAGE_SIZE_DEFAULT);
    let after = match History(id).parse(&request.page_token) {
        Some(after) => after,
        None => {
            if !request.page_token.is_empty() {
                let rule = "must be the next_page_token of an answer for the same order_id, or empty";
                violations.add("page_token", rule);
            }
            Revision::NONE
        }
    };
    violations.into_result()?;
    Ok(EventsRequest { id, after, size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use backbone::log::lifecycle;
    use proptest::prelude::*;
    use proto::orders::v1::{Money, OrderItem, PostalAddress};
    use tonic::Code;
    use tonic_types::StatusExt;

    fn item(sku: &str, quantity: i32, currency: &str, minor_units: i64) -> OrderItem {
        let unit_price = Some(Money { currency_code: currency.into(), minor_units });
        OrderItem { sku: sku.into(), quantity, unit_price, ..OrderItem::default() }
    }

    fn request(items: Vec<OrderItem>) -> CreateOrderRequest {
        let (request_id, customer_id) = ("r-1".into(), "c@example.org".into());
        CreateOrderRequest { request_id, customer_id, items, ..CreateOrderRequest::default() }
    }

    /// The fields that a request is refused for.
    fn refused(request: CreateOrderRequest) -> Vec<String> {
        let status = new_order("", &Routes::default(), request).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status.get_details_bad_request().unwrap();
        details.field_violations.into_iter().map(|violation| violation.field).collect()
    }

    #[test]
    fn every_violation_is_reported_at_once() {
        let items = vec![
            item("", 0, "eur", -1),
            OrderItem { sku: "a b".into(), quantity: 1_000_001, ..OrderItem::default() },
        ];
        let (request_id, route) = ("r 1".into(), "nowhere".into());
        let request = CreateOrderRequest { request_id, items, route, ..CreateOrderRequest::default() };
        assert_eq!(
            refused(request),
            [
                "request_id",
                "customer_id",
                "items[0].sku",
                "items[0].quantity",
                "items[0].unit_price.currency_code",
                "items[0].unit_price.minor_units",
                "items[1].sku",
                "items[1].quantity",
                "items[1].unit_price",
                "route",
            ]
        );
    }

    #[test]
    fn limits_are_where_the_contract_says() {
        let good = || item(&"s".repeat(64), 1_000_000, "EUR", 0);
        assert!(new_order("", &Routes::default(), request(vec![good(); 100])).is_ok());
        assert_eq!(refused(request(vec![good(); 101])), ["items"]);
        assert_eq!(refused(request(vec![item("", 1, "EUR", 1); 101])).len(), 32);
        assert_eq!(refused(request(vec![])), ["items"]);
        assert_eq!(refused(request(vec![item(&"s".repeat(65), 1, "EUR", 1)])), ["items[0].sku"]);
        assert_eq!(
            refused(CreateOrderRequest { customer_id: "c".repeat(129), ..request(vec![good()]) }),
            ["customer_id"]
        );
        assert_eq!(
            refused(CreateOrderRequest { request_id: "r".repeat(129), ..request(vec![good()]) }),
            ["request_id"]
        );
    }

    #[test]
    fn an_order_has_one_currency_and_a_total_that_fits() {
        let items = vec![item("a", 1, "EUR", 1), item("b", 1, "USD", 1), item("c", 1, "EUR", 1)];
        assert_eq!(refused(request(items)), ["items[1].unit_price.currency_code"]);
        assert_eq!(refused(request(vec![item("a", 2, "EUR", i64::MAX)])), ["items"]);
    }

    #[test]
    fn an_invalid_item_hides_no_violation_of_the_order() {
        let items = vec![
            item("a b", 1, "eur", 1),
            item("b", 0, "EUR", 1),
            item("c", 1, "USD", 1),
            item("d", 2, "EUR", i64::MAX),
        ];
        let expected = [
            "items[0].sku",
            "items[0].unit_price.currency_code",
            "items[1].quantity",
            "items[2].unit_price.currency_code",
            "items",
        ];
        assert_eq!(refused(request(items)), expected);
    }

    fn with(change: impl FnOnce(&mut CreateOrderRequest)) -> CreateOrderRequest {
        let mut request = request(vec![item("widget", 1, "EUR", 1)]);
        change(&mut request);
        request
    }

    fn with_address(change: impl FnOnce(&mut PostalAddress)) -> CreateOrderRequest {
        let mut address = PostalAddress { region_code: "CH".to_owned(), ..PostalAddress::default() };
        change(&mut address);
        with(|request| request.shipping_address = Some(address))
    }

    fn metadata(entries: usize, key_chars: usize, value: &str) -> BTreeMap<String, String> {
        (0..entries).map(|n| (format!("{n:0>key_chars$}"), value.to_owned())).collect()
    }

    #[test]
    fn texts_have_limits_and_no_control_characters() {
        for (field, chars_max, request) in [
            ("note", 500, (|text| with(|request| request.note = text)) as fn(String) -> CreateOrderRequest),
            ("reference", 64, |text| with(|request| request.reference = text)),
            ("payment_method", 256, |text| with(|request| request.payment_method = text)),
            ("items[0].name", 200, |text| with(|request| request.items[0].name = text)),
            ("shipping_address.postal_code", 32, |text| with_address(|address| address.postal_code = text)),
            ("shipping_address.sorting_code", 32, |text| with_address(|address| address.sorting_code = text)),
            ("shipping_address.locality", 100, |text| with_address(|address| address.locality = text)),
            ("shipping_address.sublocality", 100, |text| with_address(|address| address.sublocality = text)),
            ("shipping_address.organization", 100, |text| {
                with_address(|address| address.organization = text)
            }),
            ("shipping_address.administrative_area", 100, |text| {
                with_address(|address| address.administrative_area = text)
            }),
            ("shipping_address.language_code", 35, |text| {
                with_address(|address| address.language_code = text)
            }),
            ("shipping_address.address_lines[0]", 200, |text| {
                with_address(|address| address.address_lines = vec![text])
            }),
            ("shipping_address.recipients[0]", 100, |text| {
                with_address(|address| address.recipients = vec![text])
            }),
        ] {
            new_order("", &Routes::default(), request("x".repeat(chars_max))).unwrap();
            assert_eq!(refused(request("x".repeat(chars_max + 1))), [field]);
            for control in ["a\nb", "a\0", "\u{85}", "\u{1b}[2J"] {
                assert_eq!(refused(request(control.to_owned())), [field], "{control:?}");
            }
        }
    }

    #[test]
    fn a_payment_method_is_printable_ascii_and_never_repeated() {
        let bad = with(|request| request.payment_method = "tok_\u{fc}4242".to_owned());
        let status = new_order("", &Routes::default(), bad).unwrap_err();
        assert!(!format!("{status:?}").contains("4242"), "{status:?}");
        assert!(status.message().contains("printable ASCII"), "{status:?}");
    }

    #[test]
    fn an_address_has_a_region_and_few_lines() {
        assert_eq!(
            refused(with(|request| request.shipping_address = Some(PostalAddress::default()))),
            ["shipping_address.region_code"]
        );
        for code in ["ch", "CHE", "C", "C1"] {
            let request = with_address(|address| address.region_code = code.to_owned());
            assert_eq!(refused(request), ["shipping_address.region_code"], "{code}");
        }
        let lines = || vec!["line".to_owned(); 6];
        assert_eq!(
            refused(with_address(|address| address.address_lines = lines())),
            ["shipping_address.address_lines"]
        );
        assert_eq!(
            refused(with_address(|address| address.recipients = lines())),
            ["shipping_address.recipients"]
        );
        let empty = with_address(|address| address.recipients = vec!["Ada".to_owned(), String::new()]);
        assert_eq!(refused(empty), ["shipping_address.recipients[1]"]);
    }

    #[test]
    fn metadata_has_limits_and_names_the_entry() {
        let of_order = |metadata| with(|request| request.metadata = metadata);
        let of_item = |metadata| with(|request| request.items[0].metadata = metadata);
        let long = "v".repeat(500);
        new_order("", &Routes::default(), of_order(metadata(50, 40, &long))).unwrap();
        new_order("", &Routes::default(), of_item(metadata(10, 40, &long))).unwrap();
        assert_eq!(refused(of_order(metadata(51, 40, ""))), ["metadata"]);
        assert_eq!(refused(of_item(metadata(11, 40, ""))), ["items[0].metadata"]);
        assert_eq!(refused(of_order(metadata(1, 41, ""))), ["metadata"]);
        assert_eq!(refused(of_order(metadata(1, 5, &"v".repeat(501)))), ["metadata[00000]"]);
        assert_eq!(refused(of_item(metadata(1, 5, "a\tb"))), ["items[0].metadata[00000]"]);
        let entry = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        assert_eq!(refused(of_order(entry("", "v"))), ["metadata"]);
        assert_eq!(refused(of_order(entry("a\nb", "v"))), ["metadata"]);
        new_order("", &Routes::default(), of_order(entry("Gru\u{df} an", "\u{fc}"))).unwrap();
        assert_eq!(refused(of_order(entry("Gru\u{df} an", "\n"))), ["metadata"]);
    }

    #[test]
    fn an_order_of_the_largest_fields_fits_and_a_larger_one_names_what_to_shorten() {
        let largest = largest();
        assert!(largest.encoded_len() <= ORDER_BYTES_MAX, "{} bytes", largest.encoded_len());
        new_order("", &Routes::default(), largest.clone()).unwrap();
        let mut items = largest.clone();
        items.items[0].metadata = metadata(10, 40, &"v".repeat(500));
        assert_eq!(refused(items), ["items"]);
        let mut letters = largest;
        letters.items.truncate(1);
        letters.metadata = metadata(50, 40, &"\u{1f600}".repeat(500));
        assert_eq!(refused(letters), ["metadata"]);
    }

    #[test]
    fn only_currencies_in_use_are_accepted() {
        for code in ["XYZ", "XTS", "XXX", "DEM"] {
            let request = request(vec![item("widget", 1, code, 1)]);
            let status = new_order("", &Routes::default(), request).unwrap_err();
            assert!(status.message().contains("ISO 4217"), "{status:?}");
            assert_eq!(
                refused(self::request(vec![item("widget", 1, code, 1)])),
                ["items[0].unit_price.currency_code"]
            );
        }
    }

    /// A request with all fields at their limits, in ASCII, but for the metadata of items.
    fn largest() -> CreateOrderRequest {
        let text = |chars: usize| "x".repeat(chars);
        let item = OrderItem { name: text(200), ..item(&text(64), 1_000_000, "EUR", 1 << 36) };
        CreateOrderRequest {
            request_id: text(128),
            customer_id: text(128),
            items: vec![item; 100],
            route: String::new(),
            metadata: metadata(50, 40, &text(500)),
            shipping_address: Some(PostalAddress {
                region_code: "CH".to_owned(),
                language_code: text(35),
                postal_code: text(32),
                sorting_code: text(32),
                administrative_area: text(100),
                locality: text(100),
                sublocality: text(100),
                address_lines: vec![text(200); 5],
                recipients: vec![text(100); 5],
                organization: text(100),
            }),
            payment_method: text(256),
            note: text(500),
            reference: text(64),
        }
    }

    #[test]
    fn many_violations_fit_in_a_header() {
        let status =
            new_order("", &Routes::default(), request(vec![item(&"ü".repeat(500), -5, "EURO", -7); 100]))
                .unwrap_err();
        assert_eq!(status.get_details_bad_request().unwrap().field_violations.len(), 32);
        assert!(status.details().len() < 5 * 1024, "{} bytes", status.details().len());
        assert!(status.message().contains("left out"), "{}", status.message());
    }

    #[test]
    fn a_million_violations_are_reported_as_far_as_they_fit() {
        let statuses = vec![0; 1_000_000];
        let request = ListOrdersRequest { customer_id: "c".into(), statuses, ..Default::default() };
        let status = page("", &request).unwrap_err();
        assert_eq!(status.get_details_bad_request().unwrap().field_violations.len(), 32);
        assert!(status.message().contains("999968 further violations"), "{}", status.message());
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_can_be_appended(
            customer_id in "\\PC{0,8}|[a-z@.:_-]{1,8}",
            lines in proptest::collection::vec(("[a-z]{0,3}", -1..3i32, "[A-Z]{3}|EUR", -1..i64::MAX), 0..4),
        ) {
            let items = lines.iter().map(|(sku, quantity, currency, price)| item(sku, *quantity, currency, *price)).collect();
            if let Ok(order) = new_order("", &Routes::default(), CreateOrderRequest { customer_id, items, ..CreateOrderRequest::default() }) {
                prop_assert!(lifecycle::total(&order.created.items).is_ok());
                prop_assert_eq!(order.created.order_id, order.id.to_string());
            }
        }
    }
}
