//! `waybill order` against a gateway that answers as the test wants.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Output, Stdio};
use std::time::Duration;

use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{ListOrdersResponse, Order, OrderCancelled, OrderCreated, OrderEvent, OrderStatus};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::shop::{self, Script, order};
use crate::stage::{PATIENCE, output_of, stderr, stdout};

fn waybill_order(addr: SocketAddr) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_waybill"));
    command.args(["order", "--gateway", &format!("http://{addr}")]);
    command
}

#[tokio::test]
async fn place_sends_the_items_and_shows_the_order() {
    let create = Box::new(|_: &_, _| Ok(order(OrderStatus::Accepted, 7)));
    let (addr, seen) = shop::open(Script { create, ..Script::default() }).await;
    let output = output_of(waybill_order(addr).args([
        "place",
        "--customer",
        "ada",
        "--item",
        "widget:2:1250",
        "--item",
        "gadget:1:4999",
        "--request-id",
        "r-1",
    ]))
    .await;

    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("order     customer-order\n"));
    assert!(stdout(&output).contains("status    ACCEPTED\n"));
    let seen = seen.creates.lock().unwrap();
    let request = &seen[0];
    assert_eq!((request.customer_id.as_str(), request.request_id.as_str()), ("ada", "r-1"));
    let items: Vec<_> = request.items.iter().map(|item| (item.sku.as_str(), item.quantity)).collect();
    assert_eq!(items, [("widget", 2), ("gadget", 1)]);
    let price = request.items[1].unit_price.as_ref().unwrap();
    assert_eq!((price.currency_code.as_str(), price.minor_units), ("EUR", 4999));
}

const PLACED: &str = r#"{"customer_id": "ada", "paymentMethod": "tok_1", "note": "ring twice",
    "items": [{"sku": "widget", "quantity": 2, "unit_price": {"currency_code": "EUR", "minor_units": 350},
        "metadata": {"color": "blue"}}]}"#;

#[tokio::test]
async fn place_sends_all_that_an_order_can_say() {
    let create = Box::new(|_: &_, _| Ok(order(OrderStatus::Accepted, 7)));
    let (addr, seen) = shop::open(Script { create, ..Script::default() }).await;
    let flags = [
        ["--customer", "ada"],
        ["--item", "widget:2:350:Blue: widget"],
        ["--metadata", "channel=web"],
        ["--metadata", "formula=a=b"],
        ["--payment-method", "tok_1"],
        ["--note", "ring twice"],
        ["--reference", "PO-17"],
        ["--recipient", "Ada"],
        ["--address-line", "Street 1"],
        ["--address-line", "Floor 2"],
        ["--postal-code", "8001"],
        ["--locality", "Z\u{fc}rich"],
        ["--region-code", "CH"],
    ];
    let output = output_of(waybill_order(addr).arg("place").args(flags.concat())).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let request = seen.creates.lock().unwrap()[0].clone();
    assert_eq!(request.items[0].name, "Blue: widget");
    let entries: Vec<_> =
        request.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(entries, [("channel", "web"), ("formula", "a=b")]);
    let texts = [request.payment_method, request.note, request.reference];
    assert_eq!(texts, ["tok_1", "ring twice", "PO-17"]);
    let address = request.shipping_address.unwrap();
    assert_eq!(
        (address.recipients.concat(), address.address_lines.concat()),
        ("Ada".into(), "Street 1Floor 2".into())
    );
    assert_eq!([address.postal_code, address.locality, address.region_code], ["8001", "Z\u{fc}rich", "CH"]);
}

#[tokio::test]
async fn place_takes_an_order_from_a_file_or_from_stdin() {
    let create = Box::new(|_: &_, _| Ok(order(OrderStatus::Accepted, 7)));
    let (addr, seen) = shop::open(Script { create, ..Script::default() }).await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(PLACED.as_bytes()).unwrap();
    let path = file.path().to_str().unwrap();
    let output = output_of(waybill_order(addr).args(["place", "--file", path])).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let mut piped = waybill_order(addr);
    let from_stdin =
        output_of(piped.args(["place", "--file", "-"]).stdin(std::fs::File::open(path).unwrap())).await;
    assert_eq!(from_stdin.status.code(), Some(0), "{}", stderr(&from_stdin));
    let requests = seen.creates.lock().unwrap().clone();
    assert_eq!(requests[0], requests[1]);
    assert_eq!((requests[0].payment_method.as_str(), requests[0].items[0].quantity), ("tok_1", 2));
    assert_eq!(requests[0].items[0].metadata["color"], "blue");
}

#[tokio::test]
async fn place_says_what_is_wrong_with_a_file_and_its_flags() {
    let (addr, _) = shop::open(Script::default()).await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(br#"{"items": [{"sku": "widget", "quantity": "two"}]}"#).unwrap();
    let path = file.path().to_str().unwrap();
    let wrong = output_of(waybill_order(addr).args(["place", "--file", path])).await;
    assert_eq!(wrong.status.code(), Some(1));
    assert!(
        stderr(&wrong).contains(path) && stderr(&wrong).contains("items[0].quantity"),
        "{}",
        stderr(&wrong)
    );
    let missing = output_of(waybill_order(addr).args(["place", "--file", "no-such-file"])).await;
    assert!(stderr(&missing).contains("no-such-file cannot be read"), "{}", stderr(&missing));
    for flags in [["--note", "x"], ["--region-code", "CH"], ["--customer", "ada"]] {
        let both = output_of(waybill_order(addr).args(["place", "--file", path]).args(flags)).await;
        assert_eq!(both.status.code(), Some(64), "{flags:?}");
    }
    let neither = output_of(waybill_order(addr).args(["place"])).await;
    assert!(stderr(&neither).contains("--customer"), "{}", stderr(&neither));
    let twice = ["place", "--customer", "a", "--item", "w:1:1", "--metadata", "k=1", "--metadata", "k=2"];
    let twice = output_of(waybill_order(addr).args(twice)).await;
    assert!(stderr(&twice).contains("the key k twice"), "{}", stderr(&twice));
}

#[tokio::test]
async fn place_with_watch_follows_the_order_to_its_end() {
    let create = Box::new(|_: &_, _| Ok(order(OrderStatus::Accepted, 7)));
    let watch =
        Box::new(|_: &_, _| vec![Ok(order(OrderStatus::Accepted, 7)), Ok(order(OrderStatus::Fulfilled, 9))]);
    let (addr, _) = shop::open(Script { create, watch, ..Script::default() }).await;
    let output =
        output_of(waybill_order(addr).args(["place", "--customer", "a", "--item", "w:1:1", "--watch"])).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("revision 9 "));
    assert!(stdout(&output).trim_end().ends_with("FULFILLED"));
}

#[tokio::test]
async fn a_refusal_shows_its_code_and_every_detail() {
    let get = Box::new(|_: &_, _| {
        let mut details = ErrorDetails::new();
        details
            .add_bad_request_violation("order_id", "must be 43 characters")
            .set_error_info("MALFORMED", "waybill", HashMap::new())
            .set_retry_info(Some(Duration::from_millis(250)));
        Err(Status::with_error_details(Code::InvalidArgument, "1 invalid field", details))
    });
    let (addr, _) = shop::open(Script { get, ..Script::default() }).await;
    let output = output_of(waybill_order(addr).args(["get", "nonsense"])).await;
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output), "");
    assert_eq!(
        stderr(&output),
        "error: INVALID_ARGUMENT: 1 invalid field\n  order_id: must be 43 characters\n  reason: MALFORMED\n  \
         retry in 250ms\n"
    );
}

#[tokio::test]
async fn a_watch_that_breaks_takes_up_after_the_last_revision() {
    let watch = Box::new(|_: &_, before| match before {
        0 => vec![Ok(order(OrderStatus::Accepted, 7)), Err(Status::unavailable("draining"))],
        _ => vec![Ok(order(OrderStatus::Fulfilled, 9))],
    });
    let (addr, seen) = shop::open(Script { watch, ..Script::default() }).await;
    let output =
        output_of(waybill_order(addr).args(["watch", "customer-order", "--after-revision", "3"])).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().count(), 2);
    let revisions: Vec<_> = seen.watches.lock().unwrap().iter().map(|watch| watch.after_revision).collect();
    assert_eq!(revisions, [3, 7]);
}

#[tokio::test]
async fn a_watch_without_progress_gives_up() {
    let watch = Box::new(|_: &_, _| {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(1)));
        vec![Err(Status::with_error_details(Code::Unavailable, "draining", details))]
    });
    let (addr, seen) = shop::open(Script { watch, ..Script::default() }).await;
    let output = output_of(waybill_order(addr).args(["watch", "customer-order"])).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("UNAVAILABLE: draining"));
    assert_eq!(seen.watches.lock().unwrap().len(), 11);
}

#[tokio::test]
async fn a_gateway_that_is_not_there_is_said_not_to_be_there() {
    let addr = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let output = output_of(waybill_order(addr).arg0("bin/waybill").args(["get", "customer-order"])).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("cannot reach a gateway") && stderr(&output).contains("`bin/waybill dev`")
    );
}

#[tokio::test]
async fn cancel_sends_the_reason_and_shows_the_order() {
    let cancel = Box::new(|_: &_, _| Ok(order(OrderStatus::Cancelled, 9)));
    let (addr, seen) = shop::open(Script { cancel, ..Script::default() }).await;
    let output =
        output_of(waybill_order(addr).args(["cancel", "customer-order", "--message", "too late"])).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("status    CANCELLED\n"));
    let seen = seen.cancels.lock().unwrap();
    assert_eq!((seen[0].order_id.as_str(), seen[0].message.as_str()), ("customer-order", "too late"));
}

#[tokio::test]
async fn list_follows_the_pages_to_the_last() {
    let list = Box::new(|_: &_, before| match before {
        0 => page(2, "two"),
        // A page without an order of the wanted status.
        1 => page(0, "three"),
        _ => page(1, ""),
    });
    let (addr, seen) = shop::open(Script { list, ..Script::default() }).await;
    let output = output_of(
        waybill_order(addr).args(["list", "ada", "--status", "PAID", "--status", "failed", "--limit", "150"]),
    )
    .await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!((stdout(&output).lines().count(), stderr(&output).as_str()), (3, ""));
    assert!(stdout(&output).lines().all(|line| line.ends_with("  customer-order  PAID")));
    let seen = seen.lists.lock().unwrap();
    let pages: Vec<_> = seen.iter().map(|list| (list.page_token.as_str(), list.page_size)).collect();
    assert_eq!(pages, [("", 100), ("two", 100), ("three", 100)]);
    let statuses = [OrderStatus::Paid.into(), OrderStatus::Failed.into()];
    assert!(seen.iter().all(|list| list.customer_id == "ada" && list.statuses == statuses));
}

#[tokio::test]
async fn a_list_has_headings_where_people_read_it() {
    let list = Box::new(|_: &_, before| if before == 0 { page(1, "two") } else { page(1, "") });
    let (addr, _) = shop::open(Script { list, ..Script::default() }).await;
    let terminal = nix::pty::openpty(None, None).unwrap();
    let output =
        output_without_stdout(waybill_order(addr).args(["list", "ada"]).stdout(terminal.slave)).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let (mut screen, mut seen) = (std::fs::File::from(terminal.master), Vec::new());
    // The read ends with an error, because no process writes to the terminal any more.
    screen.read_to_end(&mut seen).unwrap_err();
    let seen = String::from_utf8(seen).unwrap();
    let lines: Vec<_> = seen.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!((lines.len(), &lines[0][..]), (3, &["CREATED", "ORDER", "STATUS"][..]), "{seen}");
}

#[tokio::test]
async fn a_list_of_nothing_says_so() {
    let list = Box::new(|_: &_, _| page(0, ""));
    let (addr, _) = shop::open(Script { list, ..Script::default() }).await;
    let output = output_of(waybill_order(addr).args(["list", "ada"])).await;
    assert_eq!(output.status.code(), Some(0));
    assert_eq!((stdout(&output).as_str(), stderr(&output).as_str()), ("", "no orders found\n"));
}

#[tokio::test]
async fn list_ends_at_its_limit_and_says_that_there_may_be_more() {
    let list = Box::new(|_: &_, _| page(2, "more"));
    let (addr, seen) = shop::open(Script { list, ..Script::default() }).await;
    let output = output_of(waybill_order(addr).args(["list", "ada", "--limit", "4"])).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().count(), 4);
    assert!(stderr(&output).contains("newest 4") && stderr(&output).contains("--limit"));
    let sizes: Vec<_> = seen.lists.lock().unwrap().iter().map(|list| list.page_size).collect();
    assert_eq!(sizes, [4, 2]);
}

#[tokio::test]
async fn events_are_lines_of_time_kind_status_revision_and_trace() {
    let event = |status, revision, detail| OrderEvent {
        order: Some(order(status, revision)),
        trace_id: format!("trace-{revision}"),
        detail: Some(detail),
        ..OrderEvent::default()
    };
    let cancelled = OrderCancelled { message: "too late".to_owned() };
    let events = vec![
        event(OrderStatus::Accepted, 7, Detail::Created(OrderCreated::default())),
        event(OrderStatus::Cancelled, 9, Detail::Cancelled(cancelled)),
    ];
    let (addr, _) = shop::open(Script { events, ..Script::default() }).await;
    let output = output_of(waybill_order(addr).args(["events", "customer-order"])).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(
        stdout(&output),
        "unknown  revision 7  created    ACCEPTED  trace trace-7\n\
         unknown  revision 9  cancelled  CANCELLED  too late  trace trace-9\n"
    );
}

#[tokio::test]
async fn every_command_shows_the_credential_to_the_gateway_and_to_nobody_else() {
    let (addr, seen) = shop::open(Script::default()).await;
    let place = ["place", "--customer", "a", "--item", "w:1:1"];
    let commands: [&[&str]; 7] = [
        &place,
        &["get", "x"],
        &["watch", "x"],
        &["cancel", "x"],
        &["list", "x"],
        &["events", "x"],
        &["trace", "x"],
    ];
    for command in commands {
        let output = output_of(waybill_order(addr).args(command).env("WAYBILL_API_KEY", "sesame")).await;
        assert!(!format!("{output:?}").contains("sesame"));
        output_of(waybill_order(addr).args(command).args(["--api-key", "other"])).await;
        let output = output_of(waybill_order(addr).args(command).env("WAYBILL_TOKEN", "a.sesame.c")).await;
        assert!(!format!("{output:?}").contains("sesame"));
        output_of(waybill_order(addr).args(command)).await;
    }
    let credentials = seen.credentials.lock().unwrap();
    assert_eq!(*credentials, ["sesame", "other", "Bearer a.sesame.c", ""].repeat(commands.len()));
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_ends_the_command_quietly() {
    let get = Box::new(|_: &_, _| Ok(order(OrderStatus::Accepted, 7)));
    // Never fulfilled, so the command ends only because its reader is gone.
    let watch = Box::new(|_: &_, _| vec![Ok(order(OrderStatus::Accepted, 7))]);
    let (addr, _) = shop::open(Script { get, watch, ..Script::default() }).await;
    for command in [["get", "x"], ["watch", "x"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = output_without_stdout(waybill_order(addr).args(command).stdout(writer)).await;
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    }
}

#[tokio::test]
async fn an_answer_that_cannot_be_written_is_an_error() {
    let get = Box::new(|_: &_, _| Ok(order(OrderStatus::Accepted, 7)));
    let (addr, _) = shop::open(Script { get, ..Script::default() }).await;
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = output_without_stdout(waybill_order(addr).args(["get", "x"]).stdout(full)).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("No space left"), "{}", stderr(&output));
}

/// Unlike [`output_of`], leaves standard output where the test has led it.
async fn output_without_stdout(command: &mut Command) -> Output {
    let child = command.stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    timeout(PATIENCE, child.wait_with_output()).await.expect("it does not end").unwrap()
}

fn page(orders: usize, next_page_token: &str) -> ListOrdersResponse {
    ListOrdersResponse {
        orders: vec![order(OrderStatus::Paid, 9); orders],
        next_page_token: next_page_token.to_owned(),
    }
}

#[tokio::test]
async fn what_a_server_says_does_nothing_to_the_terminal() {
    let get = Box::new(|_: &_, _| {
        let reason = "\u{1b}[2J\u{1b}]0;owned\u{7}\nstatus    FULFILLED".to_owned();
        Ok(Order { reason, ..order(OrderStatus::Rejected, 7) })
    });
    let (addr, _) = shop::open(Script { get, ..Script::default() }).await;
    let output = output_of(waybill_order(addr).args(["get", "customer-order"])).await;
    let said = stdout(&output);
    assert!(said.contains("REJECTED (\\u{1b}[2J\\u{1b}]0;owned\\u{7}\\nstatus    FULFILLED)"), "{said}");
    assert!(!said.contains(|c: char| c.is_control() && c != '\n'), "{said:?}");

    let get = Box::new(|_: &_, _| Err(Status::not_found("no \u{1b}[31m such order")));
    let (addr, _) = shop::open(Script { get, ..Script::default() }).await;
    let output = output_of(waybill_order(addr).args(["get", "customer-order"])).await;
    assert_eq!(stderr(&output), "error: NOT_FOUND: no \\u{1b}[31m such order\n");
}
