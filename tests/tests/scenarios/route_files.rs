//! What the gateway makes of its route file: steps that nobody runs, files that cannot work, routes that do not exist.

use std::process::{Command, Output};

use backbone::log::subjects::EventKind::{Completed, Created};
use harness::{Deployment, Options, binary, eventually, item, order_of};
use proto::orders::v1::{CreateOrderRequest, OrderStatus};
use tonic::{Code, Status};
use tonic_types::StatusExt;

const ROUTES: &str = "
default: plain
routes:
  plain: [inventory, payment, fulfilment]
  guarded: [inventory, screening, payment, fulfilment]
";
const METRIC: &str = "waybill_route_step_without_consumer";

fn request(request_id: &str, route: &str) -> CreateOrderRequest {
    let request = order_of("customer", request_id, vec![item("widget", 1)]);
    CreateOrderRequest { route: route.to_owned(), ..request }
}

async fn deployment(routes: &str, steps: &[&'static str]) -> Deployment {
    let options = Options { routes: Some(routes.to_owned()), steps: steps.to_vec(), ..Options::default() };
    Deployment::start_with(options).await
}

/// Waits until the gateway is ready and says, or does not say, that orders wait for screening.
async fn lacks_screening(waybill: &Deployment, lacking: bool) {
    eventually("the step at /readyz", async || {
        let (status, body) = waybill.http("/readyz").await;
        assert_eq!(status, 200, "{body}");
        let is_named = body.contains("step screening has no consumer, its orders (routes guarded) wait");
        (is_named == lacking).then_some(())
    })
    .await;
    let scrape = waybill.scrape().await;
    let without_consumer = |step| scrape.sum(METRIC, &[("step", step)]);
    assert_eq!(without_consumer("screening"), Some(f64::from(u8::from(lacking))));
    assert_eq!(without_consumer("inventory"), Some(0.0));
}

#[tokio::test]
async fn orders_wait_for_a_step_that_nobody_runs_and_the_gateway_names_it() {
    let mut waybill = deployment(ROUTES, &["inventory", "payment", "fulfilment"]).await;
    for step in ["inventory", "payment", "fulfilment"] {
        waybill.idle(step).await;
    }
    let mut waiting = Vec::new();
    for n in 0..5 {
        let order = waybill.place(request(&format!("guarded-{n}"), "guarded")).await.unwrap();
        waybill.reached(&order.order_id, OrderStatus::Reserved).await;
        waiting.push(order.order_id);
    }
    let plain = waybill.place(request("plain", "")).await.unwrap();
    assert_eq!(waybill.finished(&plain.order_id).await.status(), OrderStatus::Fulfilled);
    lacks_screening(&waybill, true).await;
    for order_id in &waiting {
        let order = waybill.get(order_id).await.unwrap();
        assert_eq!((order.status(), order.current_step.as_str()), (OrderStatus::Reserved, "screening"));
    }

    waybill.start_processor("screening");
    assert_eq!(waybill.statuses(&waiting).await.get(&OrderStatus::Fulfilled), Some(&waiting.len()));
    lacks_screening(&waybill, false).await;
}

#[tokio::test]
async fn a_route_needs_none_of_the_steps_that_are_built_in() {
    let routes = "routes: {bare: [{name: screening, status: FULFILLED}]}";
    let waybill = deployment(routes, &["screening"]).await;
    let order = waybill.place(request("bare", "bare")).await.unwrap();
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    assert_eq!(waybill.history(&order.order_id).await, [Created, Completed]);
}

fn fields(status: &Status) -> Vec<String> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let violations = status.get_details_bad_request().unwrap().field_violations;
    violations.into_iter().map(|violation| violation.field).collect()
}

#[tokio::test]
async fn an_order_on_a_route_that_does_not_exist_is_refused() {
    let waybill = deployment(ROUTES, &[]).await;
    for request_id in ["", "request"] {
        let refused = waybill.place(request(request_id, "unheard-of")).await.unwrap_err();
        assert_eq!(fields(&refused), ["route"]);
        let rule = "route must be one of plain, guarded, or empty for plain";
        assert_eq!(refused.message(), rule);
    }
    assert!(waybill.subjects().await.is_empty());

    let order = waybill.place(request("request", "plain")).await.unwrap();
    let again = waybill.place(request("request", "")).await.unwrap();
    assert_eq!(again.order_id, order.order_id, "the default is the same route");
    for route in ["guarded", "unheard-of"] {
        let refused = waybill.place(request("request", route)).await.unwrap_err();
        assert_eq!(refused.code(), Code::AlreadyExists, "{refused:?}");
    }
}

/// A program with this route file, which has to end by itself.
fn run(program: &str, args: &[&str], routes: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("routes.yaml");
    std::fs::write(&file, routes).unwrap();
    let mut command = Command::new(binary(program));
    // No broker is there: a program that accepts the file would wait for it.
    let environment = [("NATS_URL", "nats://127.0.0.1:1"), ("GRPC_ADDR", "127.0.0.1:0")];
    command.args(args).env_clear().envs(environment).env("ROUTES_FILE", &file);
    command.output().unwrap()
}

#[test]
fn a_route_file_that_cannot_work_stops_a_program_which_names_every_fault() {
    let routes = "
default: standart
routes:
  standard: [inventory, inventory, fulfilment]
  reviewed:
    - {name: inventory, compensate: true}
    - {name: Fraud Check}
    - payment
  endless: []
";
    let faults = [
        "routes.standard[1]",
        "routes.reviewed[0].compensate",
        "routes.reviewed[1]",
        "routes.reviewed[2]",
        "routes.endless",
        "default: no route is named \"standart\"",
    ];
    for (program, args) in [("waybill-gateway", &[][..]), ("waybill", &["provision"])] {
        let Output { status, stdout, stderr } = run(program, args, routes);
        let said = String::from_utf8_lossy(&stdout) + String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(64), "{program}: {said}");
        for fault in faults {
            assert!(said.contains(fault), "{program} does not say {fault}: {said}");
        }
    }
}
