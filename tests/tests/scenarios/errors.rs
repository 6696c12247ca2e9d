//! Every refusal that docs/errors.md lists, brought about, with its details as a client reads them.

use std::collections::BTreeMap;
use std::time::Duration;

use backbone::broker::streams::ORDERS;
use backbone::dead_letters::LetterId;
use backbone::log::ids::{OrderId, Revision};
use backbone::log::subjects;
use harness::certificates::replace;
use harness::issuer::{AUDIENCE, ISSUER, SigningKey, claims, key_set, seconds_from_now};
use harness::{Deployment, Options, Shows, eventually, item, order_of, these};
use http::uri::PathAndQuery;
use nix::sys::signal::Signal;
use processor::inventory::{BUCKET, stock_key};
use proto::inventory::v1::stock_service_client::StockServiceClient;
use proto::inventory::v1::{AddStockRequest, ListStockRequest, RemoveStockRequest, SetStockRequest};
use proto::operations::v1::dead_letter_service_client::DeadLetterServiceClient;
use proto::operations::v1::{DeadLetter, DeadLetterReason, DeadLetterState, DiscardDeadLetterRequest};
use proto::orders::v1::{
    CancelOrderRequest, CreateOrderRequest, GetOrderRequest, GetOrderResponse, ListOrderEventsRequest, Order,
    OrderStatus, WatchOrderRequest, WatchOrderResponse,
};
use tonic::client::Grpc;
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tonic_types::{ErrorInfo, StatusExt};

use crate::below_grpc::with_metadata;
use crate::deadlines::in_time;
use crate::storage_full::room_for;
use crate::tenants::{BOTH, Client, client, write_keys};

const DOCUMENTATION: &str = include_str!("../../../docs/errors.md");
/// Most subjects that the broker answers about in one request.
const SUBJECTS_READ_MAX: usize = 1_024;

/// Calls that a caller may have under way.
const CALLS_MAX: usize = 8;

/// How long a caller waits while the broker stands still.
const CALLER_TIMEOUT: Duration = Duration::from_secs(1);

/// The refusals seen so far: reason and code.
#[derive(Default)]
struct Seen(BTreeMap<String, Code>);

impl Seen {
    /// Takes a refusal down; its details are those of its code.
    fn refused<T: std::fmt::Debug>(&mut self, answer: Result<T, Status>) -> ErrorInfo {
        let status = answer.expect_err("a refusal");
        let info = status.get_details_error_info().unwrap_or_else(|| panic!("no reason: {status:?}"));
        assert_eq!(info.domain, "orders.waybill");
        let waits =
            status.get_details_retry_info().is_some_and(|info| info.retry_delay > Some(Duration::ZERO));
        // The same call with as much metadata is refused again.
        let is_too_large = info.reason == "METADATA_TOO_LARGE";
        let comes_back =
            matches!(status.code(), Code::Unavailable | Code::ResourceExhausted) && !is_too_large;
        assert_eq!(waits, comes_back, "{status:?}");
        let quota = status.get_details_quota_failure().is_some_and(|quota| !quota.violations.is_empty());
        assert_eq!(quota, status.code() == Code::ResourceExhausted, "{status:?}");
        let condition = status.get_details_precondition_failure();
        let condition = condition.is_some_and(|condition| !condition.violations.is_empty());
        assert_eq!(condition, status.code() == Code::FailedPrecondition, "{status:?}");
        self.0.insert(info.reason.clone(), status.code());
        info
    }
}

/// The documentation's table of reasons, with their codes as it writes them.
fn documented() -> BTreeMap<String, String> {
    let rows = DOCUMENTATION.lines().filter_map(|line| line.strip_prefix("| `"));
    let columns = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    columns.map(|columns| (columns[0].trim_matches('`').to_owned(), columns[1].replace('_', ""))).collect()
}

fn widget(request_id: &str, quantity: i32) -> CreateOrderRequest {
    order_of("ada", request_id, vec![item("widget", quantity)])
}

async fn place(client: &mut Client, request: CreateOrderRequest) -> Result<Order, Status> {
    Ok(client.create_order(request).await?.into_inner().order.unwrap())
}

async fn get(client: &mut Client, order_id: &str) -> Result<Order, Status> {
    let request = GetOrderRequest { order_id: order_id.to_owned() };
    Ok(client.get_order(request).await?.into_inner().order.unwrap())
}

/// Has the stream take no larger messages; -1 lifts the limit.
async fn message_bytes_max(waybill: &Deployment, max_message_size: i32) {
    let jetstream = waybill.jetstream().await;
    let config = jetstream.get_stream(ORDERS).await.unwrap().cached_info().config.clone();
    let config = async_nats::jetstream::stream::Config { max_message_size, ..config };
    jetstream.update_stream(config).await.unwrap();
}

async fn place_by(client: &mut Client, request: CreateOrderRequest) -> Result<(), Status> {
    let mut late = Request::new(request);
    late.set_timeout(CALLER_TIMEOUT);
    client.create_order(late).await.map(drop)
}

async fn watch(
    client: &mut Client,
    order_id: &str,
) -> Result<Response<Streaming<WatchOrderResponse>>, Status> {
    client.watch_order(WatchOrderRequest { order_id: order_id.to_owned(), after_revision: 0 }).await
}

/// A letter that cannot be redriven, and one that was.
async fn operators_refusals(waybill: &Deployment) -> [Result<(), Status>; 5] {
    let (channel, operator) = (waybill.operations_channel(), Shows::key("operator"));
    let mut operations = DeadLetterServiceClient::with_interceptor(channel.clone(), operator.clone());
    let stock = StockServiceClient::with_interceptor(channel, operator);
    let (mut adding, mut removing, mut setting) = (stock.clone(), stock.clone(), stock);
    waybill.inventory().await.put(stock_key("odd"), "oops".into()).await.unwrap();
    let request_id = "request".to_owned();
    let add = AddStockRequest { request_id: request_id.clone(), sku: "odd".to_owned(), units: 1 };
    let sku = "widget".to_owned();
    let remove =
        RemoveStockRequest { request_id: request_id.clone(), sku: sku.clone(), units: 1_000_000_000_000 };
    let set = SetStockRequest { request_id, sku, available_units: 1, expected_revision: 1 };
    let letters = waybill.dead_letters().await;
    let undecodable = LetterId::new("inventory", Revision(1_000_001)).unwrap();
    let redriven = LetterId::new("inventory", Revision(1_000_002)).unwrap();
    let state = DeadLetterState::Open.into();
    let reason = DeadLetterReason::Undecodable.into();
    letters.put(&undecodable, DeadLetter { state, reason, ..DeadLetter::default() }).await.unwrap();
    let open = letters.put(&redriven, DeadLetter { state, ..DeadLetter::default() }).await.unwrap();
    letters.resolve(&open, DeadLetterState::Redriven, "us", "redriven").await.unwrap();
    let discard = DiscardDeadLetterRequest { dead_letter_id: redriven.to_string(), reason: "x".to_owned() };
    [
        operations.redrive_dead_letters(these(&[&undecodable.to_string()])).await.map(drop),
        operations.discard_dead_letter(discard).await.map(drop),
        adding.add_stock(add).await.map(drop),
        removing.remove_stock(remove).await.map(drop),
        setting.set_stock(set).await.map(drop),
    ]
}

#[tokio::test]
async fn every_documented_reason_is_given_with_its_code_and_details() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    write_keys(
        &keys,
        &[
            ("one", "shop-1", BOTH),
            ("reader", "shop-1", "orders:read"),
            ("two", "shop-2", BOTH),
            ("three", "shop-3", BOTH),
            ("operator", "us", "operations"),
        ],
    );
    let gateway = vec![
        ("API_KEYS_FILE", keys.to_str().unwrap().to_owned()),
        // Tokens cannot be checked: nobody answers there.
        ("JWT_JWKS", "http://127.0.0.1:1/".to_owned()),
        ("JWT_ISSUER", ISSUER.to_owned()),
        ("JWT_AUDIENCE", AUDIENCE.to_owned()),
        ("MAX_STREAMS", "2".to_owned()),
        ("MAX_STREAMS_PER_CALLER", "1".to_owned()),
        ("MAX_CONCURRENT_REQUESTS_PER_CALLER", CALLS_MAX.to_string()),
    ];
    let mut waybill = Deployment::start_with(Options { gateway, ..Options::default() }).await;
    let mut seen = Seen::default();
    let mut one = client(&waybill, Some("one"));

    seen.refused(place(&mut client(&waybill, None), widget("r-1", 1)).await);
    seen.refused(place(&mut client(&waybill, Some("nobody's")), widget("r-1", 1)).await);
    let info = seen.refused(place(&mut client(&waybill, Some("reader")), widget("r-1", 1)).await);
    assert_eq!(info.metadata["role"], "orders:write");
    let issuer = SigningKey::ec("key");
    let mut with_token = Shows::token(&issuer.token(&claims("shop-1", "orders:read"))).on(waybill.channel());
    seen.refused(get(&mut with_token, "an order").await);

    let large = with_metadata(GetOrderRequest { order_id: "an order".to_owned() }, 20_000);
    seen.refused(one.get_order(large).await);
    let mut grpc = Grpc::new(InterceptedService::new(waybill.channel(), Shows::key("one")));
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static("/orders.v1.OrderService/GetOrder");
    // A number where the request has a text.
    let codec = ProstCodec::<i32, GetOrderResponse>::default();
    seen.refused(grpc.unary(Request::new(1), path, codec).await);

    let done = place(&mut one, widget("r-1", 1)).await.unwrap().order_id;
    let info = seen.refused(place(&mut one, widget("r-1", 2)).await);
    assert_eq!(info.metadata["order_id"], done);
    eventually("the end of the order", async || {
        let order = get(&mut one.clone(), &done).await.unwrap();
        (order.status() == OrderStatus::Fulfilled).then_some(())
    })
    .await;
    let cancel = CancelOrderRequest { order_id: done.clone(), message: String::new() };
    let info = seen.refused(one.cancel_order(cancel).await);
    assert_eq!((&info.metadata["order_id"], info.metadata["order_status"].as_str()), (&done, "FULFILLED"));

    for refused in operators_refusals(&waybill).await {
        seen.refused(refused);
    }

    waybill.kill_processors("inventory");
    let mut two = client(&waybill, Some("two"));
    let of_one = place(&mut one, widget("r-2", 1)).await.unwrap().order_id;
    let of_two = place(&mut two, widget("r-2", 1)).await.unwrap().order_id;
    let mut watched = watch(&mut one, &of_one).await.unwrap().into_inner();
    seen.refused(watch(&mut one, &of_one).await);
    let _watched = watch(&mut two, &of_two).await.unwrap();
    seen.refused(watch(&mut client(&waybill, Some("three")), &of_two).await);

    // More subjects than the broker gives an answer about.
    let id: OrderId = of_two.parse().unwrap();
    let jetstream = waybill.jetstream().await;
    for i in 0..=SUBJECTS_READ_MAX {
        let subject = subjects::order(&id).replace('>', &format!("foreign-{i}.end"));
        drop(jetstream.publish(subject, "".into()).await.unwrap());
    }
    eventually("all of them", async || {
        let stream = jetstream.get_stream(ORDERS).await.ok()?;
        (stream.cached_info().state.messages > SUBJECTS_READ_MAX as u64).then_some(())
    })
    .await;
    seen.refused(
        two.list_order_events(ListOrderEventsRequest { order_id: of_two, ..Default::default() }).await,
    );

    room_for(&waybill, i64::try_from(waybill.messages().await.len()).unwrap()).await;
    seen.refused(place(&mut one, widget("r-3", 1)).await);
    room_for(&waybill, -1).await;
    eventually("space that is noticed", async || place(&mut one.clone(), widget("r-3", 1)).await.ok()).await;
    message_bytes_max(&waybill, 100).await;
    seen.refused(place(&mut one, widget("r-5", 1)).await);
    message_bytes_max(&waybill, -1).await;

    waybill.broker.pause();
    let create = async || place_by(&mut one.clone(), widget("r-4", 1)).await;
    let info = seen.refused(Err::<(), _>(in_time(create).await));
    let unknown = info.metadata["order_id"].clone();
    let read = async || {
        let mut late = Request::new(GetOrderRequest { order_id: done.clone() });
        late.set_timeout(CALLER_TIMEOUT);
        one.clone().get_order(late).await.map(drop)
    };
    seen.refused(Err::<(), _>(in_time(read).await));
    let many = client(&waybill, Some("three"));
    let calls = (0..=CALLS_MAX).map(async |_| get(&mut many.clone(), &done).await.err());
    let answers = futures::future::join_all(calls).await;
    let refusal = answers.into_iter().flatten().find(|status| status.code() == Code::ResourceExhausted);
    seen.refused(Err::<(), _>(refusal.expect("one too many")));
    waybill.broker.resume();
    assert_eq!(place(&mut one, widget("r-4", 1)).await.unwrap().order_id, unknown);

    waybill.gateway.process.signal(Signal::SIGTERM);
    let end = loop {
        match watched.message().await {
            Ok(event) => assert!(event.is_some(), "an end without a reason"),
            Err(status) => break status,
        }
    };
    seen.refused(Err::<(), _>(end));
    waybill.restart_gateway().await;

    let mut one = client(&waybill, Some("one"));
    let mut watched = watch(&mut one, &of_one).await.unwrap().into_inner();
    watched.message().await.unwrap();
    jetstream.delete_stream(ORDERS).await.unwrap();
    seen.refused(Err::<(), _>(watched.message().await.unwrap_err()));

    jetstream.delete_stream(format!("KV_{BUCKET}")).await.unwrap();
    let stock = StockServiceClient::with_interceptor(waybill.operations_channel(), Shows::key("operator"));
    let missed = eventually("a bucket that is missed", async || {
        let listed = stock.clone().list_stock(ListStockRequest::default()).await;
        listed.err().filter(|status| status.code() == Code::FailedPrecondition)
    });
    seen.refused(Err::<(), _>(missed.await));

    waybill.broker.kill();
    eventually("a refusal", async || {
        let answer = get(&mut client(&waybill, Some("one")), &done).await;
        answer.as_ref().is_err_and(|status| status.code() == Code::Unavailable).then_some(())
    })
    .await;
    seen.refused(get(&mut client(&waybill, Some("one")), &done).await);
    drop(waybill);

    let gateway = vec![
        ("RATE_LIMIT", "1".to_owned()),
        ("RATE_BURST", "10".to_owned()),
        ("JWT_JWKS", replace(dir.path(), "jwks", &key_set(&[&issuer])).to_str().unwrap().to_owned()),
        ("JWT_ISSUER", ISSUER.to_owned()),
        ("JWT_AUDIENCE", AUDIENCE.to_owned()),
    ];
    let waybill = Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await;
    let mut claims = claims("shop-1", "orders:read");
    let mut hasty = Shows::token(&issuer.token(&claims)).on(waybill.channel());
    claims["exp"] = seconds_from_now(-3600).into();
    let mut late = Shows::token(&issuer.token(&claims)).on(waybill.channel());
    seen.refused(get(&mut late, &done).await);
    // Ten at once, and one a second, however slowly they come.
    let refusal =
        async || get(&mut hasty, &done).await.err().filter(|status| status.code() != Code::NotFound);
    seen.refused(Err::<(), _>(eventually("a refusal", refusal).await));
    drop(waybill);

    let gateway = vec![("DURABILITY", "strict".to_owned())];
    let careful =
        Deployment::start_without_broker(Options { replicas: 0, gateway, ..Options::default() }).await;
    seen.refused(place(&mut client(&careful, None), widget("r-1", 1)).await);

    let seen = seen.0.into_iter().map(|(reason, code)| (reason, format!("{code:?}").to_uppercase()));
    assert_eq!(seen.collect::<BTreeMap<_, _>>(), documented());
}
