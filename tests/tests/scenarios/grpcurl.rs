//! What somebody with nothing but grpcurl sees, by reflection.

use std::process::Output;

use harness::{Deployment, Options, PATIENCE, skip};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;

use crate::dead_letters::{parked, with_damage};

/// grpcurl, where there is one.
pub(crate) struct Grpcurl {
    program: std::ffi::OsString,
    address: String,
}

impl Grpcurl {
    pub(crate) fn of(waybill: &Deployment) -> Option<Self> {
        let program = std::env::var_os("GRPCURL");
        if program.is_none() {
            skip("no grpcurl");
        }
        Some(Self { program: program?, address: waybill.gateway.grpc_addr.clone() })
    }

    /// The same at the address for operators.
    fn of_operators(waybill: &Deployment) -> Option<Self> {
        Some(Self { address: waybill.gateway.operations_addr.clone(), ..Self::of(waybill)? })
    }

    async fn run(&self, data: Option<Value>, method: &[&str]) -> Output {
        self.run_with(&[], data, method).await
    }

    /// Calls with further flags.
    pub(crate) async fn run_with(&self, flags: &[&str], data: Option<Value>, method: &[&str]) -> Output {
        let mut command = Command::new(&self.program);
        command.arg("-plaintext").args(flags).kill_on_drop(true);
        if let Some(data) = data {
            command.args(["-d", &data.to_string()]);
        }
        let output = command.arg(&self.address).args(method).output();
        timeout(PATIENCE, output).await.expect("grpcurl that ends").unwrap()
    }

    async fn text(&self, method: &[&str]) -> String {
        let output = self.run(None, method).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    async fn call(&self, method: &str, request: Value) -> Vec<Value> {
        let output = self.run(Some(request), &[method]).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let messages = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
        messages.map(Result::unwrap).collect()
    }
}

#[tokio::test]
async fn an_order_can_be_placed_and_watched_by_reflection_alone() {
    let waybill = Deployment::start().await;
    let Some(grpcurl) = Grpcurl::of(&waybill) else { return };
    let listed = grpcurl.text(&["list"]).await;
    for service in ["orders.v1.OrderService", "grpc.health.v1.Health"] {
        assert!(listed.lines().any(|line| line == service), "{listed}");
    }
    let described = grpcurl.text(&["describe", "orders.v1.OrderService"]).await;
    assert!(described.contains("rpc WatchOrder"), "{described}");
    let healthy = grpcurl.call("grpc.health.v1.Health/Check", json!({})).await;
    assert_eq!(healthy, [json!({"status": "SERVING"})]);

    let unit_price = json!({"currency_code": "EUR", "minor_units": 350});
    let items = json!([{"sku": "widget", "quantity": 2, "unit_price": unit_price}]);
    let request = json!({"request_id": "request", "customer_id": "customer", "items": items});
    let created = grpcurl.call("orders.v1.OrderService/CreateOrder", request).await;
    let order_id = &created[0]["order"]["orderId"];
    assert_eq!(created[0]["order"]["total"]["minorUnits"], "700");

    let request = json!({"order_id": order_id});
    let events = grpcurl.call("orders.v1.OrderService/WatchOrder", request.clone()).await;
    let details: Vec<_> = ["created", "reserved", "paid", "fulfilled"].into();
    assert_eq!(events.len(), details.len());
    for (event, detail) in events.iter().zip(details) {
        assert!(event["event"][detail].is_object(), "{event}");
    }
    let read = grpcurl.call("orders.v1.OrderService/GetOrder", request).await;
    assert_eq!(read[0]["order"]["status"], "ORDER_STATUS_FULFILLED");
}

#[tokio::test]
async fn a_refusal_is_shown_with_its_details() {
    let waybill = Deployment::start().await;
    let Some(grpcurl) = Grpcurl::of(&waybill) else { return };
    let output = grpcurl.run(Some(json!({})), &["orders.v1.OrderService/CreateOrder"]).await;
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    for part in ["InvalidArgument", "google.rpc.BadRequest", "fieldViolations", "customer_id", "items"] {
        assert!(said.contains(part), "{part} not in {said}");
    }
}

#[tokio::test]
async fn the_health_of_a_service_that_is_not_there_is_not_found() {
    let waybill = Deployment::start_with(Options { replicas: 0, ..Options::default() }).await;
    for grpcurl in [Grpcurl::of(&waybill), Grpcurl::of_operators(&waybill)].into_iter().flatten() {
        let output = grpcurl.run(Some(json!({"service": "nope"})), &["grpc.health.v1.Health/Check"]).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("Code: NotFound"), "{said}");
    }
}

#[tokio::test]
async fn reflection_can_be_turned_off() {
    let gateway = vec![("REFLECTION", "false".to_owned())];
    let waybill = Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await;
    let Some(grpcurl) = Grpcurl::of(&waybill) else { return };
    let output = grpcurl.run(None, &["list"]).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("does not support the reflection API"), "{said}");
}

#[tokio::test]
async fn an_operator_finds_and_tries_a_redrive_by_reflection_alone() {
    const SERVICE: &str = "operations.v1.DeadLetterService";
    let waybill = with_damage(1).await;
    let Some(grpcurl) = Grpcurl::of_operators(&waybill) else { return };
    let listed = grpcurl.text(&["list"]).await;
    assert!(listed.lines().any(|line| line == SERVICE), "{listed}");
    assert!(!listed.contains("orders.v1.OrderService"), "{listed}");
    let described = grpcurl.text(&["describe", SERVICE]).await;
    for method in ["ListDeadLetters", "GetDeadLetter", "RedriveDeadLetters", "DiscardDeadLetter"] {
        assert!(described.contains(&format!("rpc {method}")), "{described}");
    }
    let described = grpcurl.text(&["describe", "operations.v1.RedriveDeadLettersRequest"]).await;
    assert!(described.contains("bool dry_run = 3"), "{described}");

    let order = parked(&waybill, "poison").await;
    let listed = grpcurl.call(&format!("{SERVICE}/ListDeadLetters"), json!({})).await;
    let (letter, group) = (&listed[0]["deadLetters"][0], &listed[0]["groups"][0]);
    assert_eq!(letter["deadLetterId"], order.dead_letter_id);
    assert_eq!((&letter["orderId"], &letter["step"]), (&json!(order.order_id), &json!("inventory")));
    assert_eq!((&group["count"], &group["fingerprint"]), (&json!("1"), &letter["fingerprint"]));

    let request = json!({"filter": {"step": "inventory"}, "dry_run": true});
    let answers = grpcurl.call(&format!("{SERVICE}/RedriveDeadLetters"), request).await;
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(answers[0]["outcome"], "REDRIVE_OUTCOME_WOULD_REDRIVE");
    assert_eq!(waybill.get(&order.order_id).await.unwrap(), order);

    let output = grpcurl.run(Some(json!({})), &[&format!("{SERVICE}/RedriveDeadLetters")]).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("fieldViolations"), "{said}");
}
