//! The operators' address: who may use it, and what it lists.

use std::fmt::Write as _;

use harness::{Deployment, Options, PATIENCE, Shows, health};
use proto::inventory::v1::AddStockRequest;
use proto::inventory::v1::stock_service_client::StockServiceClient;
use proto::operations::v1::dead_letter_service_client::DeadLetterServiceClient;
use proto::operations::v1::{DeadLetterFilter, ListDeadLettersRequest, ListDeadLettersResponse};
use proto::orders::v1::OrderStatus;
use sha2::{Digest, Sha256};
use tokio::process::Command;
use tokio::time::timeout;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt;

use crate::dead_letters::{mend, parked, with_damage};

async fn list(waybill: &Deployment, request: ListDeadLettersRequest) -> ListDeadLettersResponse {
    waybill.operations().list_dead_letters(request).await.unwrap().into_inner()
}

fn ids(listed: &ListDeadLettersResponse) -> Vec<String> {
    listed.dead_letters.iter().map(|letter| letter.dead_letter_id.clone()).collect()
}

#[tokio::test]
async fn letters_are_listed_by_pages_and_counted_by_their_cause() {
    let waybill = with_damage(1).await;
    let mut parked_by = Vec::new();
    for request_id in ["one", "two", "three"] {
        parked_by.push(parked(&waybill, request_id).await.dead_letter_id);
    }
    let jetstream = waybill.jetstream().await;
    jetstream.publish("ORDER.0.junk.junk.junk.inventory", "junk".into()).await.unwrap().await.unwrap();
    waybill.idle("inventory").await;

    let first = list(&waybill, ListDeadLettersRequest { page_size: 2, ..Default::default() }).await;
    assert_eq!(ids(&first), parked_by[..2]);
    assert!(first.dead_letters.iter().all(|letter| letter.payload.is_empty() && letter.attempts.len() == 1));
    let groups: Vec<_> =
        first.groups.iter().map(|group| (group.count, group.sample_error.as_str())).collect();
    assert_eq!((groups.len(), groups[0].0, groups[1].0), (2, 3, 1), "{groups:?}");
    assert!(groups[0].1.contains("stock.gadget") && !first.groups_incomplete, "{groups:?}");
    let next =
        ListDeadLettersRequest { page_size: 2, page_token: first.next_page_token, ..Default::default() };
    let second = list(&waybill, next).await;
    assert_eq!((second.dead_letters.len(), ids(&second)[0].as_str()), (2, parked_by[2].as_str()));
    assert_eq!((second.next_page_token.as_str(), second.groups.len()), ("", 0));

    let filtered = async |filter: DeadLetterFilter| {
        list(&waybill, ListDeadLettersRequest { filter: Some(filter), ..Default::default() }).await
    };
    let fingerprint = first.groups[0].fingerprint.clone();
    assert_eq!(ids(&filtered(DeadLetterFilter { fingerprint, ..Default::default() }).await), parked_by);
    let step = |step: &str| DeadLetterFilter { step: step.to_owned(), ..Default::default() };
    assert_eq!(filtered(step("inventory")).await.dead_letters.len(), 4);
    assert_eq!(filtered(step("payment")).await.dead_letters.len(), 0);
    let older_than = Some(prost_types::Duration { seconds: 3600, nanos: 0 });
    assert_eq!(filtered(DeadLetterFilter { older_than, ..Default::default() }).await.dead_letters.len(), 0);
}

#[tokio::test]
async fn only_operators_get_in_and_only_by_their_own_address() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    let mut lines = String::new();
    for (key, roles) in [("operator", "operations"), ("shop", "orders:write,orders:read")] {
        for byte in Sha256::digest(key) {
            write!(lines, "{byte:02x}").unwrap();
        }
        writeln!(lines, " {key} {roles}").unwrap();
    }
    std::fs::write(&path, lines).unwrap();
    let gateway = vec![("API_KEYS_FILE", path.to_str().unwrap().to_owned())];
    let waybill = Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await;

    let listed = async |shows: Shows, channel| {
        let mut client = DeadLetterServiceClient::with_interceptor(channel, shows);
        client.list_dead_letters(ListDeadLettersRequest::default()).await.map(drop)
    };
    listed(Shows::key("operator"), waybill.operations_channel()).await.unwrap();
    // The stock too: neither seen nor changed by anybody else.
    let changed = async |shows: Shows, channel| {
        let mut client = StockServiceClient::with_interceptor(channel, shows);
        let request =
            AddStockRequest { request_id: "delivery".to_owned(), sku: "widget".to_owned(), units: 1 };
        client.add_stock(request).await.map(drop)
    };
    let refused = changed(Shows::key("shop"), waybill.operations_channel()).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::PermissionDenied, "the credential lacks the role operations")
    );
    let refused = changed(Shows::default(), waybill.operations_channel()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let elsewhere = changed(Shows::key("operator"), waybill.channel()).await.unwrap_err();
    assert_eq!(elsewhere.code(), Code::Unimplemented);
    for (shows, code, reason) in [
        (Shows::default(), Code::Unauthenticated, "CREDENTIAL_MISSING"),
        (Shows::key("nobody"), Code::Unauthenticated, "CREDENTIAL_INVALID"),
        (Shows::key("shop"), Code::PermissionDenied, "ROLE_MISSING"),
    ] {
        let refused = listed(shows, waybill.operations_channel()).await.unwrap_err();
        assert_eq!(refused.code(), code);
        assert_eq!(refused.get_details_error_info().unwrap().reason, reason);
    }
    let elsewhere = listed(Shows::key("operator"), waybill.channel()).await.unwrap_err();
    assert_eq!(elsewhere.code(), Code::Unimplemented);
    for service in ["", "operations.v1.DeadLetterService", "inventory.v1.StockService"] {
        let state = health(waybill.operations_channel(), service).await;
        assert_eq!(state, Some(ServingStatus::Serving), "{service}");
    }
}

/// What `waybill dead-letter` says, and whether it ends well.
async fn waybill_dead_letter(waybill: &Deployment, args: &[&str]) -> (bool, String) {
    let mut command = Command::new(harness::binary("waybill"));
    command.arg("dead-letter").args(args).kill_on_drop(true);
    command.env("WAYBILL_OPERATIONS", format!("http://{}", waybill.gateway.operations_addr));
    let output = timeout(PATIENCE, command.output()).await.expect("an end").unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    (output.status.success(), said)
}

#[tokio::test]
async fn an_operator_needs_nothing_but_the_command_line() {
    let waybill = with_damage(1).await;
    let (one, two) = (parked(&waybill, "one").await, parked(&waybill, "two").await);
    let (jetstream, dir) = (waybill.jetstream().await, tempfile::tempdir().unwrap());
    let junk =
        jetstream.publish("ORDER.0.junk.junk.junk.inventory", "junk".into()).await.unwrap().await.unwrap();
    let junk = format!("inventory-{}", junk.sequence);
    waybill.idle("inventory").await;
    let run = async |args: &[&str]| waybill_dead_letter(&waybill, args).await;

    let (ended_well, said) = run(&["list"]).await;
    assert!(ended_well, "{said}");
    for part in
        [&one.dead_letter_id, &two.order_id, &junk, "      2  inventory  RETRIES_EXHAUSTED", "stock.gadget"]
    {
        assert!(said.contains(part), "{part} not in {said}");
    }
    let (_, said) = run(&["list", "--step", "payment"]).await;
    assert_eq!(said, "no dead letters found\n");
    let file = dir.path().join("payload");
    let (ended_well, said) = run(&["get", &junk, "--payload", file.to_str().unwrap()]).await;
    assert!(ended_well && said.contains("UNDECODABLE") && said.contains("4 bytes"), "{said}");
    assert_eq!(std::fs::read(file).unwrap(), b"junk");

    let (ended_well, said) = run(&["redrive"]).await;
    assert!(!ended_well && said.contains("--all"), "{said}");
    let (ended_well, said) = run(&["redrive", "--all", "--dry-run"]).await;
    assert!(ended_well && said.contains("1 not redrivable, 2 would be redriven"), "{said}");
    let (ended_well, said) = run(&["redrive", "--all", "--canary"]).await;
    assert!(!ended_well && said.contains("canary failed"), "{said}");
    mend(&waybill).await;
    let (ended_well, said) = run(&["redrive", "--older-than", "0s", "--rate", "100", "--canary"]).await;
    assert!(ended_well && said.contains("1 canary passed, 1 not redrivable, 2 redriven"), "{said}");
    for order in [one, two] {
        assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    }
    let (ended_well, said) = run(&["redrive", &junk]).await;
    assert!(!ended_well && said.contains("FAILED_PRECONDITION") && said.contains(&junk), "{said}");
    let (ended_well, said) = run(&["discard", &junk, "--reason", "a test"]).await;
    assert!(ended_well && said.contains("DISCARDED: a test"), "{said}");
    assert_eq!(run(&["list"]).await, (true, "no dead letters found\n".to_owned()));
}
