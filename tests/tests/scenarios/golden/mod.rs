//! What earlier versions have stored stays readable. `tests/golden` has a folder for each version that stored something
//! else than the one before, with what one run of it has left in the broker, and what each message has to read as.
//! `make golden` writes the folder of a new version; a folder that is there is never written again.

mod write;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use async_nats::{HeaderMap, HeaderName};
use backbone::dead_letters::LetterId;
use backbone::log::event::Recorded;
use backbone::log::ids::Revision;
use backbone::log::lifecycle::is_finished;
use backbone::log::subjects::EventKind;
use data_encoding::BASE64;
use harness::{Deployment, Options, PaymentSandbox, binary, eventually, these};
use processor::inventory::Reservation;
use prost::Message;
use prost_reflect::text_format::FormatOptions;
use prost_reflect::{DescriptorPool, DynamicMessage};
use proto::operations::v1::{DeadLetter, DeadLetterState, RedriveOutcome};
use proto::orders::v1::{Order, OrderStatus};
use proto::payments::v1::GetLedgerResponse;
use serde_json::{Value, json};

use crate::books::{Problems, check_history, check_money, check_stock, histories};
use crate::dead_letters::mend;
use crate::events::after;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/golden");
/// Units of each SKU that there were before the first golden order.
const WIDGETS: u64 = 1000;

/// One message as it lies in its stream, and what it reads as.
#[derive(Clone, Debug, PartialEq)]
struct Golden {
    subject: String,
    sequence: u64,
    headers: BTreeMap<String, String>,
    payload: Vec<u8>,
    reads_as: Vec<String>,
}

impl Golden {
    fn from_json(json: &Value) -> Self {
        let text = |name: &str| json[name].as_str().unwrap().to_owned();
        let headers = json["headers"].as_object().unwrap().iter();
        let lines = json["reads_as"].as_array().unwrap().iter();
        Self {
            subject: text("subject"),
            sequence: json["sequence"].as_u64().unwrap(),
            headers: headers
                .map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()))
                .collect(),
            payload: BASE64.decode(text("payload").as_bytes()).unwrap(),
            reads_as: lines.map(|line| line.as_str().unwrap().to_owned()).collect(),
        }
    }

    fn into_json(self) -> Value {
        json!({
            "subject": self.subject,
            "sequence": self.sequence,
            "headers": self.headers,
            "payload": BASE64.encode(&self.payload),
            "reads_as": self.reads_as,
        })
    }

    /// The headers that its writer gave it, or all of them.
    fn headers(&self, all: bool) -> HeaderMap {
        let headers = self.headers.iter().filter(|(name, _)| all || !name.starts_with("Nats-"));
        headers.map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.as_str())).fold(
            HeaderMap::new(),
            |mut map, (name, value)| {
                map.append(name, value);
                map
            },
        )
    }

    /// What this version reads it as, by the decoder that the product has for it.
    fn read(&self) -> Vec<String> {
        let text = match self.subject.split('.').next().unwrap() {
            "ORDER" => {
                let headers = self.headers(true);
                let payload = self.payload.clone().into();
                let read = Recorded::decode(&self.subject, Revision(self.sequence), Some(&headers), payload);
                match read {
                    Ok(event) => format!(
                        "{}\n{}",
                        event.kind().as_str(),
                        shown("orders.v1.OrderEvent", &event.into_proto())
                    ),
                    Err(undecodable) => undecodable.to_string(),
                }
            }
            "DEAD_LETTER" => {
                let letter = DeadLetter::decode(self.payload.as_slice()).unwrap();
                let id: LetterId = letter.dead_letter_id.parse().unwrap();
                assert!(
                    self.subject.ends_with(&format!(".{}.{}", id.step(), id.sequence())),
                    "{}",
                    self.subject
                );
                shown("operations.v1.DeadLetter", &letter)
            }
            "$KV" if self.subject.contains(".reservation.") => {
                let Reservation { creation_time, state, units } =
                    serde_json::from_slice(&self.payload).unwrap();
                format!("{state:?} {units:?} of the order of {creation_time}")
            }
            // Counts, as text.
            "$KV" => String::from_utf8(self.payload.clone()).unwrap(),
            other => panic!("a message on {other}"),
        };
        text.lines().map(str::to_owned).collect()
    }
}

/// A message in protobuf's text format, which leaves out what is not set: so it stays the same when fields are added.
fn shown(name: &str, message: &impl Message) -> String {
    let sets = [proto::DESCRIPTOR_SET, proto::OPERATIONS_DESCRIPTOR_SET, proto::PAYMENTS_DESCRIPTOR_SET];
    let pools = sets.map(|set| DescriptorPool::decode(set).unwrap());
    let descriptor = pools.iter().find_map(|pool| pool.get_message_by_name(name)).unwrap();
    let message = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).unwrap();
    message.to_text_format_with_options(&FormatOptions::new().pretty(true))
}

/// What a payment sandbox has on record, whoever called this process of it.
async fn on_record(sandbox: &PaymentSandbox) -> String {
    let ledger = sandbox.ledger("").await;
    shown("payments.v1.GetLedgerResponse", &GetLedgerResponse { capture_calls: 0, refund_calls: 0, ..ledger })
}

/// The folders of all versions.
fn versions() -> Vec<PathBuf> {
    let mut versions: Vec<_> = fs::read_dir(FOLDER).unwrap().map(|entry| entry.unwrap().path()).collect();
    versions.retain(|path| path.is_dir());
    versions.sort();
    versions
}

fn read(version: &Path, file: &str) -> Vec<Golden> {
    let text = fs::read_to_string(version.join(file)).unwrap();
    let messages: Vec<Value> = serde_json::from_str(&text).unwrap();
    messages.iter().map(Golden::from_json).collect()
}

const FILES: [&str; 3] = ["orders.json", "dead_letters.json", "inventory.json"];

#[test]
fn every_golden_message_reads_as_it_did_when_it_was_stored() {
    let mut count = 0;
    for (version, file) in versions().iter().flat_map(|version| FILES.map(|file| (version, file))) {
        for golden in read(version, file) {
            let place = format!("{} {file}, {} at {}", version.display(), golden.subject, golden.sequence);
            assert_eq!(golden.read(), golden.reads_as, "{place}");
            count += 1;
        }
    }
    eprintln!("{count} golden messages of {} versions", versions().len());
}

#[test]
fn every_kind_of_event_and_every_state_of_a_letter_has_a_golden_message() {
    let all = |file: &'static str| versions().into_iter().flat_map(move |version| read(&version, file));
    let is_whole = |golden: &Golden| golden.reads_as.len() > 1;
    let kinds: HashSet<_> =
        all("orders.json").filter(is_whole).map(|golden| golden.reads_as[0].clone()).collect();
    for kind in EventKind::ALL {
        assert!(kinds.contains(kind.as_str()), "no golden event says {:?}: make golden", kind.as_str());
    }
    let letters =
        all("dead_letters.json").map(|golden| DeadLetter::decode(golden.payload.as_slice()).unwrap());
    let states: HashSet<_> = letters.map(|letter| letter.state()).collect();
    for number in 0.. {
        let Ok(state) = DeadLetterState::try_from(number) else { break };
        assert!(states.contains(&state), "no golden letter is {state:?}: make golden");
    }
}

#[tokio::test]
async fn the_payments_of_every_version_are_still_on_record() {
    for version in versions() {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(version.join("payments.jsonl"), folder.path().join("payments.jsonl")).unwrap();
        let program = binary("waybill-payment-sandbox");
        let sandbox = PaymentSandbox::start(program, folder.path(), "127.0.0.1:0", &[]).await;
        let ledger = on_record(&sandbox).await;
        let expected = fs::read_to_string(version.join("payments.txt")).unwrap();
        assert_eq!(ledger.trim_end(), expected.trim_end(), "{}", version.display());
    }
}

#[tokio::test]
async fn what_every_version_has_left_is_served_and_brought_to_its_end() {
    for version in versions() {
        eprintln!("{}", version.display());
        served_and_brought_to_its_end(&version).await;
    }
}

async fn served_and_brought_to_its_end(version: &Path) {
    let options = Options {
        replicas: 0,
        payment_sandbox: true,
        payments: Some(version.join("payments.jsonl")),
        ..Options::default()
    };
    let mut waybill = Deployment::start_with(options).await;
    // It makes the bucket.
    waybill.start_processor("inventory");
    waybill.idle("inventory").await;
    eventually("the bucket", async || waybill.jetstream().await.get_key_value("INVENTORY").await.ok()).await;
    waybill.kill_processors("inventory");
    waybill.processors.clear();
    let jetstream = waybill.jetstream().await;
    for (file, golden) in
        FILES.iter().flat_map(|file| read(version, file).into_iter().map(move |it| (*file, it)))
    {
        let (subject, payload) = (golden.subject.clone(), golden.payload.clone().into());
        let ack = jetstream.publish_with_headers(subject, golden.headers(false), payload).await.unwrap();
        let sequence = ack.await.unwrap().sequence;
        assert!(
            file != "orders.json" || sequence == golden.sequence,
            "{sequence} is not {}",
            golden.sequence
        );
    }

    let events: Vec<_> =
        read(version, "orders.json").into_iter().filter(|it| it.reads_as.len() > 1).collect();
    let mut orders = HashSet::new();
    for golden in &events {
        let payload = golden.payload.clone().into();
        let event = Recorded::decode(&golden.subject, Revision(golden.sequence), None, payload).unwrap();
        orders.insert(event.id.to_string());
    }
    let order_ids: Vec<_> = orders.into_iter().collect();
    let mut served: Vec<_> = histories(&waybill, &order_ids).await.into_values().flatten().collect();
    served.sort_by_key(|event| after(event).revision);
    assert_eq!(served.len(), events.len());
    for (served, golden) in served.iter().zip(&events) {
        let served: Vec<_> = shown("orders.v1.OrderEvent", served).lines().map(str::to_owned).collect();
        assert_eq!(served, golden.reads_as[1..], "{}", golden.subject);
    }
    let mut parked = Vec::new();
    for golden in read(version, "dead_letters.json") {
        let letter = DeadLetter::decode(golden.payload.as_slice()).unwrap();
        if letter.state() == DeadLetterState::Unspecified {
            continue;
        }
        let served = waybill.letter(&letter.dead_letter_id).await.unwrap();
        let served: Vec<_> = shown("operations.v1.DeadLetter", &served).lines().map(str::to_owned).collect();
        assert_eq!(served, golden.reads_as, "{}", golden.subject);
        if letter.state() == DeadLetterState::Open && !letter.order_id.is_empty() {
            parked.push(letter.dead_letter_id);
        }
    }

    mend(&waybill).await;
    let parked: Vec<_> = parked.iter().map(String::as_str).collect();
    for (letter, outcome) in waybill.redrive(these(&parked)).await.unwrap() {
        assert_eq!(outcome, RedriveOutcome::Redriven, "{letter}");
    }
    for step in ["inventory", "payment", "fulfilment"] {
        waybill.start_processor(step);
    }
    let mut problems = Problems::default();
    let mut ends = Vec::<Order>::new();
    for order_id in &order_ids {
        ends.push(waybill.finished(order_id).await);
    }
    let unfinished = served.iter().filter(|event| !is_finished(after(event))).count();
    assert!(unfinished > 0, "nothing was left to do");
    let fulfilled = ends.iter().filter(|order| order.status() == OrderStatus::Fulfilled).count();
    eprintln!(
        "{} events of {} orders, of which {fulfilled} are FULFILLED in the end",
        events.len(),
        ends.len()
    );
    let histories = histories(&waybill, &order_ids).await;
    for (order_id, events) in &histories {
        if let Err(wrong) = check_history(events) {
            problems.add(order_id, wrong);
        }
    }
    let totals = check_money(&ends, &waybill.sandbox().accounts(), &mut problems);
    check_stock(&waybill, &[("widget", WIDGETS)], &totals, &mut problems).await;
    problems.none(&waybill, &histories);
}
