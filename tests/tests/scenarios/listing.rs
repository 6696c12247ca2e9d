//! Lists of a customer's orders, page by page, and an order's events.

use std::collections::HashSet;

use backbone::log::ids::OrderId;
use backbone::log::lifecycle::is_finished;
use backbone::log::subjects::{self, EventKind};
use data_encoding::BASE64URL_NOPAD;
use harness::{Cluster, Deployment, Load, Options, PATIENCE, SERVERS, item, order_of};
use prost::Message;
use proto::orders::v1::{
    CreateOrderRequest, ListOrderEventsRequest, ListOrdersRequest, ListOrdersResponse, Order, OrderStatus,
    WatchOrdersRequest,
};
use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::accounting::WHOLE_WAY;
use crate::events::{after, kinds, revisions};

async fn without_processors() -> Deployment {
    let unlimited = "1000000".to_owned();
    let gateway = vec![("RATE_LIMIT", unlimited.clone()), ("RATE_BURST", unlimited)];
    Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await
}

fn orders_of(customer_id: &str, count: usize) -> Vec<CreateOrderRequest> {
    (0..count).map(|i| order_of(customer_id, &format!("r-{i}"), vec![item("widget", 1)])).collect()
}

fn request(customer_id: &str, page_size: i32) -> ListOrdersRequest {
    ListOrdersRequest { customer_id: customer_id.to_owned(), page_size, ..ListOrdersRequest::default() }
}

async fn list(waybill: &Deployment, request: &ListOrdersRequest) -> Result<ListOrdersResponse, Status> {
    Ok(waybill.client().await.list_orders(request.clone()).await?.into_inner())
}

/// Every page of a list, one after the other.
async fn all_pages(waybill: &Deployment, mut request: ListOrdersRequest) -> Vec<Vec<Order>> {
    let mut pages = Vec::new();
    loop {
        let page = list(waybill, &request).await.unwrap();
        pages.push(page.orders);
        if page.next_page_token.is_empty() {
            return pages;
        }
        request.page_token = page.next_page_token;
    }
}

/// An order of nearly 60 KiB, as large as the rules allow.
fn large(customer_id: &str, request_id: &str) -> CreateOrderRequest {
    let of_sku = |i: usize| {
        let mut item = item(&format!("{:s<64}", format!("sku-{i}-")), 1_000_000);
        item.name = "n".repeat(200);
        item.metadata = [("k".to_owned(), "v".repeat(280))].into();
        item
    };
    order_of(customer_id, request_id, (0..100).map(of_sku).collect())
}

fn ids<'a>(orders: impl IntoIterator<Item = &'a Order>) -> Vec<String> {
    orders.into_iter().map(|order| order.order_id.clone()).collect()
}

#[tokio::test]
async fn a_customers_orders_are_listed_newest_first_and_nobody_elses() {
    let waybill = without_processors().await;
    let mut placed = Vec::new();
    for request in orders_of("ada", 7) {
        placed.push(waybill.place(request).await.unwrap());
        waybill.place(order_of("bob", "", vec![item("widget", 1)])).await.unwrap();
    }
    placed.reverse();
    for page_size in [1, 3, 7, 8, 0] {
        let pages = all_pages(&waybill, request("ada", page_size)).await;
        let full = usize::try_from(page_size).unwrap();
        assert!(pages.iter().rev().skip(1).all(|page| page.len() == full), "page_size {page_size}");
        assert_eq!(pages.concat(), placed, "page_size {page_size}");
    }
    assert_eq!(all_pages(&waybill, request("nobody", 5)).await, [[]]);
}

#[tokio::test]
async fn ten_thousand_orders_are_paged_through_while_more_arrive() {
    let waybill = without_processors().await;
    let before = Load::start(waybill.channel(), orders_of("ada", 10_000)).all().await;
    let mut arriving: Load = Load::start(waybill.channel(), orders_of("ada", 11_000).split_off(10_000));

    let mut request = request("ada", 250);
    let (mut seen, mut last_created) = (Vec::new(), u64::MAX);
    for page_number in 1.. {
        let page = list(&waybill, &request).await.unwrap();
        for order in &page.orders {
            assert!(order.revision < last_created, "newest first");
            last_created = order.revision;
        }
        seen.extend(ids(&page.orders));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
        // Orders arrive between any two pages.
        arriving.acknowledged((page_number * 25).min(1_000)).await;
    }
    let arrived = arriving.all().await;

    let once: HashSet<_> = seen.iter().cloned().collect();
    assert_eq!(once.len(), seen.len(), "shown twice");
    assert!(ids(&before).iter().all(|id| once.contains(id)), "skipped");
    let known: HashSet<_> = ids(before.iter().chain(&arrived)).into_iter().collect();
    assert!(once.is_subset(&known));
}

#[tokio::test]
async fn a_hundred_thousand_orders_are_paged_through_while_more_arrive() {
    let waybill = without_processors().await;
    let first = waybill.place(order_of("ada", "first", vec![item("widget", 1)])).await.unwrap();
    let mut before = waybill.seed_orders_like(&first, 99_999).await;
    before.push(first.order_id);
    let mut arriving: Load = Load::start(waybill.channel(), orders_of("ada", 1_000));

    let mut request = request("ada", 1_000);
    let (mut seen, mut last_created) = (Vec::new(), u64::MAX);
    for page_number in 1.. {
        let page = list(&waybill, &request).await.unwrap();
        for order in &page.orders {
            assert!(order.revision < last_created, "newest first");
            last_created = order.revision;
        }
        seen.extend(ids(&page.orders));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
        arriving.acknowledged((page_number * 10).min(1_000)).await;
    }
    let arrived = arriving.all().await;

    let once: HashSet<_> = seen.iter().cloned().collect();
    assert_eq!(once.len(), seen.len(), "shown twice");
    assert!(before.iter().all(|id| once.contains(id)), "skipped");
    let known: HashSet<_> = before.into_iter().chain(ids(&arrived)).collect();
    assert!(once.is_subset(&known));
}

#[tokio::test]
async fn the_newest_page_of_a_customer_who_stopped_ordering_is_found() {
    let waybill = without_processors().await;
    let [ada, bob] = ["ada", "bob"].map(|customer| order_of(customer, "first", vec![item("widget", 1)]));
    let (ada, bob) = (waybill.place(ada).await.unwrap(), waybill.place(bob).await.unwrap());
    let mut placed = waybill.seed_orders_like(&ada, 1_500).await;
    waybill.seed_orders_like(&bob, 10_000).await;
    placed.insert(0, ada.order_id);
    placed.reverse();
    // The last message of the log is gone, like an expired barrier.
    waybill.write_and_lose_a_message().await;
    // The second time, the gateway knows that they are too many for one request.
    for _ in 0..2 {
        let page = list(&waybill, &request("ada", 20)).await.unwrap();
        assert_eq!(ids(&page.orders), placed[..20]);
    }
    let pages = all_pages(&waybill, request("ada", 400)).await;
    assert_eq!(ids(pages.iter().flatten()), placed);
}

#[tokio::test]
async fn orders_on_both_sides_of_a_long_gap_are_found() {
    let waybill = without_processors().await;
    let [ada, bob] = ["ada", "bob"].map(|customer| order_of(customer, "first", vec![item("widget", 1)]));
    let (ada, bob) = (waybill.place(ada).await.unwrap(), waybill.place(bob).await.unwrap());
    let mut placed = vec![ada.order_id.clone()];
    placed.extend(waybill.seed_orders_like(&ada, 1_500).await);
    waybill.seed_orders_like(&bob, 10_000).await;
    placed.extend(waybill.seed_orders_like(&ada, 300).await);
    placed.reverse();
    for size in [20, 299, 301, 1_000] {
        let pages = all_pages(&waybill, request("ada", size)).await;
        assert_eq!(ids(pages.iter().flatten()), placed);
    }
}

#[tokio::test]
async fn foreign_messages_behind_first_events_neither_hide_nor_double_orders() {
    let waybill = without_processors().await;
    let mut placed = Load::start(waybill.channel(), orders_of("ada", 5)).all().await;
    placed.sort_by_key(|order| std::cmp::Reverse(order.revision));
    let jetstream = waybill.jetstream().await;
    for (order, next) in placed.iter().zip(["inventory", "payment"]) {
        let id: OrderId = order.order_id.parse().unwrap();
        let subject = subjects::event(EventKind::Created, &id, next);
        jetstream.publish(subject, "x".into()).await.unwrap().await.unwrap();
    }
    let pages = all_pages(&waybill, request("ada", 2)).await;
    assert_eq!(ids(pages.iter().flatten()), ids(&placed));
}

/// A page token of the same list that names another revision.
fn with_revision(token: &str, revision: u64) -> String {
    let mut bytes = BASE64URL_NOPAD.decode(token.as_bytes()).unwrap();
    bytes[1..9].copy_from_slice(&revision.to_be_bytes());
    BASE64URL_NOPAD.encode(&bytes)
}

#[tokio::test]
async fn a_forged_page_token_behind_the_log_lists_as_the_first_page_does() {
    let waybill = without_processors().await;
    let first = waybill.place(order_of("ada", "first", vec![item("widget", 1)])).await.unwrap();
    waybill.seed_orders_like(&first, 1_500).await;
    // The first call counts the customer's orders, and the second knows that they are many.
    for size in [1, 20] {
        let newest = list(&waybill, &request("ada", size)).await.unwrap();
        for revision in [1 << 20, 1 << 62, u64::MAX] {
            let page_token = with_revision(&newest.next_page_token, revision);
            let forged =
                list(&waybill, &ListOrdersRequest { page_token, ..request("ada", size) }).await.unwrap();
            assert_eq!(ids(&forged.orders), ids(&newest.orders));
        }
    }
}

#[tokio::test]
async fn a_new_order_is_on_the_first_page_whichever_replica_answers() {
    let options = Options { replicas: 0, servers: SERVERS, ..Options::default() };
    let mut waybill = Deployment::start_without_broker(options).await;
    let _cluster = Cluster::start(&mut waybill);
    waybill.ready().await;
    let first = waybill.place(order_of("ada", "first", vec![item("widget", 1)])).await.unwrap();
    waybill.seed_orders_like(&first, 1_500).await;
    for n in 0..50 {
        let placed =
            waybill.place(order_of("ada", &format!("r-{n}"), vec![item("widget", 1)])).await.unwrap();
        let page = list(&waybill, &request("ada", 2)).await.unwrap();
        assert_eq!(ids(&page.orders)[0], placed.order_id);
    }
}

#[tokio::test]
async fn a_list_goes_on_at_another_gateway_after_a_restart() {
    let mut waybill = without_processors().await;
    let placed = Load::start(waybill.channel(), orders_of("ada", 20)).all().await;
    let mut request = request("ada", 15);
    let first = list(&waybill, &request).await.unwrap();
    waybill.broker.kill();
    waybill.broker.start().await;
    waybill.replace_gateway().await;
    waybill.ready().await;
    request.page_token = first.next_page_token;
    let second = list(&waybill, &request).await.unwrap();
    let listed: HashSet<_> = ids(first.orders.iter().chain(&second.orders)).into_iter().collect();
    assert_eq!(listed, ids(&placed).into_iter().collect());
    assert_eq!((first.orders.len(), second.orders.len()), (15, 5));
    assert_eq!(second.next_page_token, "");
}

#[tokio::test]
async fn a_list_can_be_narrowed_to_statuses() {
    let waybill = Deployment::start().await;
    let mut fulfilled = Vec::new();
    for i in 0..6 {
        let sku = if i % 2 == 0 { "widget" } else { "unknown" };
        let order = waybill.place(order_of("ada", &format!("r-{i}"), vec![item(sku, 1)])).await.unwrap();
        let order = waybill.finished(&order.order_id).await;
        assert!(is_finished(&order));
        if order.status() == OrderStatus::Fulfilled {
            fulfilled.insert(0, order);
        }
    }
    assert_eq!(fulfilled.len(), 3);
    let narrowed = |statuses: &[OrderStatus]| ListOrdersRequest {
        statuses: statuses.iter().map(|status| i32::from(*status)).collect(),
        ..request("ada", 2)
    };
    let pages = all_pages(&waybill, narrowed(&[OrderStatus::Fulfilled])).await;
    assert_eq!(pages.concat(), fulfilled);
    let both = narrowed(&[OrderStatus::Rejected, OrderStatus::Fulfilled]);
    assert_eq!(all_pages(&waybill, both).await.concat().len(), 6);
    assert_eq!(all_pages(&waybill, narrowed(&[OrderStatus::Failed])).await.concat(), []);
}

#[tokio::test]
async fn a_list_of_statuses_that_no_order_has_comes_to_its_end_page_by_page() {
    let waybill = without_processors().await;
    Load::start(waybill.channel(), orders_of("ada", 2_500)).all().await;
    let statuses = vec![OrderStatus::Rejected.into()];
    let pages = all_pages(&waybill, ListOrdersRequest { statuses, ..request("ada", 1) }).await;
    assert_eq!(pages.concat(), []);
    // A call looks at no more than a thousand.
    assert!(pages.len() >= 3, "{}", pages.len());
}

#[tokio::test]
async fn a_list_that_cannot_be_says_why() {
    let waybill = without_processors().await;
    Load::start(waybill.channel(), orders_of("ada", 3)).all().await;
    let token = list(&waybill, &request("ada", 1)).await.unwrap().next_page_token;
    assert_ne!(token, "");

    let refused = async |request: ListOrdersRequest| {
        let status = list(&waybill, &request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let violations = status.get_details_bad_request().unwrap().field_violations;
        violations.into_iter().map(|violation| violation.field).collect::<Vec<_>>()
    };
    let broken = ListOrdersRequest {
        customer_id: "no customer".to_owned(),
        page_size: 1_001,
        page_token: "nonsense".to_owned(),
        statuses: vec![0, 1, 99],
    };
    assert_eq!(
        refused(broken).await,
        ["customer_id", "page_size", "statuses[0]", "statuses[2]", "page_token"]
    );
    assert_eq!(refused(request("ada", -1)).await, ["page_size"]);
    let of_another = ListOrdersRequest { page_token: token.clone(), ..request("bob", 1) };
    assert_eq!(refused(of_another).await, ["page_token"]);
    let narrowed = ListOrdersRequest { page_token: token, statuses: vec![1], ..request("ada", 1) };
    assert_eq!(refused(narrowed).await, ["page_token"]);
}

#[tokio::test]
async fn an_orders_events_are_listed_with_their_traces() {
    let waybill = Deployment::start().await;
    let order = waybill.place(order_of("ada", "r-1", vec![item("widget", 1)])).await.unwrap();
    waybill.finished(&order.order_id).await;
    let list = async |order_id: &str| {
        let request = ListOrderEventsRequest { order_id: order_id.to_owned(), ..Default::default() };
        Ok::<_, Status>(waybill.client().await.list_order_events(request).await?.into_inner().events)
    };

    let events = list(&order.order_id).await.unwrap();
    assert_eq!(kinds(&events), WHOLE_WAY);
    assert_eq!(events, waybill.watch(&order.order_id, 0).await.unwrap().rest().await);
    let previous: Vec<_> = events.iter().map(|event| event.previous_revision).collect();
    assert_eq!(previous[0], 0);
    assert_eq!(previous[1..], revisions(&events)[..3]);
    assert_eq!(events[0].trace_id.len(), 32);
    assert!(events.iter().all(|event| event.trace_id == events[0].trace_id), "one trace");

    let unknown = "aaaaaaaaaaaaaaaa-aaaaaaaaaaaaaaaaaaaaaaaaaa";
    assert_eq!(list(unknown).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(list("ORDER.>").await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_page_of_large_orders_ends_before_it_is_too_large_for_a_message() {
    let waybill = without_processors().await;
    let requests = (0..250).map(|i| large("ada", &format!("r-{i}"))).collect();
    let placed = Load::start(waybill.channel(), requests).all().await;
    let pages = all_pages(&waybill, request("ada", 1_000)).await;
    assert!(pages.len() > 1, "{} pages", pages.len());
    for page in &pages {
        let bytes: usize = page.iter().map(Message::encoded_len).sum();
        assert!(bytes < 2 * 1024 * 1024, "{bytes} bytes");
    }
    let listed: Vec<_> = pages.into_iter().flatten().collect();
    assert!(listed.is_sorted_by(|newer, older| newer.revision > older.revision));
    let listed: HashSet<_> = ids(&listed).into_iter().collect();
    assert_eq!(listed, ids(&placed).into_iter().collect());
    assert_eq!(listed.len(), placed.len());

    let all = WatchOrdersRequest { customer_id: "ada".to_owned(), after_revision: 0 };
    let mut watch = waybill.client().await.watch_orders(all).await.unwrap().into_inner();
    let mut watched = HashSet::new();
    for _ in 0..placed.len() {
        let event = timeout(PATIENCE, watch.message()).await.unwrap().unwrap().unwrap().event.unwrap();
        watched.insert(after(&event).order_id.clone());
    }
    assert_eq!(watched, listed, "every event once");
}
