//! Each alert is provoked by real processes, and fires for the series that they really show.
//!
//! What alerts wait for takes from a minute to hours. So every process is asked for its metrics while all is well, and
//! twice while something is wrong; promtool then lets an hour pass in which what was seen goes on: counters grow as they
//! did between the two looks, ages grow with the time, and everything else stays as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use async_nats::jetstream::consumer::{FromConsumer, pull};
use backbone::broker::streams::{DEAD_LETTERS, ORDERS};
use harness::{
    Cluster, Deployment, Load, Options, SERVERS, Scrape, create, eventually, free_port, http_get, item,
    order_of, skip,
};
use processor::inventory::{BUCKET, stock_key};
use proto::orders::v1::OrderStatus;
use proto::payments::v1::Fault;
use serde_json::json;

/// Scrapes are 15 s apart, so these are 20 minutes and an hour.
const WELL_COUNT: usize = 80;
const WRONG_COUNT: usize = 240;
const AGE: &str = "waybill_step_oldest_unprocessed_age_seconds";
const WITHOUT_CONSUMER: &str = "waybill_route_step_without_consumer";
const STEPS: [&str; 3] = ["inventory", "payment", "fulfilment"];

/// The series of all processes at one moment, with the labels that a scrape adds.
type Picture = BTreeMap<String, f64>;

/// Asks every process for its metrics.
async fn picture(waybill: &mut Deployment) -> Picture {
    let mut picture = Picture::new();
    let gateway = waybill.gateway.ops_addr.clone();
    add(&mut picture, "gateway", &gateway).await;
    for (step, processes) in &mut waybill.processors {
        for process in processes {
            let addr = process.ops_addr().await;
            add(&mut picture, step, &addr).await;
        }
    }
    picture
}

async fn add(picture: &mut Picture, job: &str, addr: &str) {
    let target = format!("job=\"{job}\",instance=\"{addr}\"");
    let answer = http_get(addr, "/metrics").await;
    let up = if answer.is_some() { 1.0 } else { 0.0 };
    picture.insert(format!("up{{{target}}}"), up);
    for sample in answer.map(|(_, text)| Scrape::read(&text).samples).into_iter().flatten() {
        let labels: String = sample.labels.iter().map(|(name, value)| format!(",{name}={value:?}")).collect();
        picture.insert(format!("{}{{{target}{labels}}}", sample.name), sample.value);
    }
}

/// How a series goes on, in promtool's notation.
fn goes_on(series: &str, first: Option<f64>, second: Option<f64>) -> String {
    let Some(second) = second else { return format!("stale _x{WRONG_COUNT}") };
    let name = series.split('{').next().unwrap_or_default();
    let counts = ["_total", "_count", "_sum", "_bucket"].iter().any(|suffix| name.ends_with(suffix));
    let by = if counts {
        // A counter that was not there yet began at 0.
        second - first.unwrap_or(0.0)
    } else if name.ends_with("_age_seconds") && second > 0.0 {
        15.0
    } else {
        0.0
    };
    format!("{second}+{}x{WRONG_COUNT}", by.max(0.0))
}

/// The alerts that fire if it goes on like that; none may while all is well.
fn fires(well: Option<&Picture>, wrong: [&Picture; 2], expected: &[&str]) {
    let Some(promtool) = promtool() else { return };
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/observability/prometheus");
    let [first, second] = wrong;
    let all = well.into_iter().chain(wrong).flat_map(BTreeMap::keys).collect::<BTreeSet<_>>();
    let mut test = format!(
        "rule_files: [{0:?}, {1:?}]\nevaluation_interval: 15s\ngroup_eval_order: [waybill-objectives, \
         waybill-create-order-series, waybill-order-series, waybill-stream-series, waybill-orders, waybill-steps, \
         waybill-broker, waybill-losses, waybill-targets]\ntests:\n- interval: 15s\n  input_series:\n",
        rules.join("rules.yml"),
        rules.join("alerts.yml"),
    );
    for series in all {
        let before = well.map_or(String::new(), |well| match well.get(series) {
            Some(value) => format!("{value}x{} ", WELL_COUNT - 1),
            None => format!("_x{WELL_COUNT} "),
        });
        let after = goes_on(series, first.get(series).copied(), second.get(series).copied());
        writeln!(test, "  - {{ series: '{series}', values: '{before}{after}' }}").unwrap();
    }
    let wrong_from = well.map_or(0, |_| WELL_COUNT);
    let end = (wrong_from + WRONG_COUNT) * 15;
    test.push_str("  promql_expr_test:\n");
    if well.is_some() {
        let at = (WELL_COUNT - 1) * 15;
        writeln!(test, "  - {{ eval_time: {at}s, expr: 'count by (alertname) (ALERTS)', exp_samples: [] }}")
            .unwrap();
    }
    let fired = "group by (alertname) (max_over_time(ALERTS{alertstate=\"firing\"}[1h]))";
    let samples: Vec<_> =
        expected.iter().map(|name| format!("{{ labels: '{{alertname=\"{name}\"}}', value: 1 }}")).collect();
    writeln!(test, "  - {{ eval_time: {end}s, expr: '{fired}', exp_samples: [{}] }}", samples.join(", "))
        .unwrap();

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("alerts.test.yml");
    std::fs::write(&file, &test).unwrap();
    let output = Command::new(promtool).args(["test", "rules"]).arg(&file).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

/// From PROMTOOL, or where tools/install puts it.
fn promtool() -> Option<PathBuf> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/promtool");
    let promtool =
        std::env::var_os("PROMTOOL").map(PathBuf::from).or_else(|| installed.exists().then_some(installed));
    if promtool.is_none() {
        skip("no promtool");
    }
    promtool
}

/// A Waybill that works, and how it looks: every step has had an order, and the backlog is known.
async fn at_work(options: Options) -> (Deployment, Picture) {
    let mut waybill = Deployment::start_with(options).await;
    let order = waybill.place(order_of("customer", "first", vec![item("widget", 1)])).await.unwrap();
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    let well = eventually("a backlog of none", async || {
        let picture = picture(&mut waybill).await;
        let ages = |step| value(&picture, AGE, step);
        let is_known = STEPS.map(ages) == [Some(0.0); STEPS.len()];
        (is_known && nobody_waits(&picture)).then_some(picture)
    })
    .await;
    (waybill, well)
}

/// The greatest value of the metric among the series of this job.
fn value(picture: &Picture, name: &str, job: &str) -> Option<f64> {
    let start = format!("{name}{{job=\"{job}\"");
    let of_job = picture.iter().filter(|(series, _)| series.starts_with(&start));
    of_job.map(|(_, value)| *value).reduce(f64::max)
}

/// Whether no message waits, as far as is known. A step looks every 15 s, and in between what it saw grows older.
fn nobody_waits(picture: &Picture) -> bool {
    let waits = |series: &str| {
        let is_built_in = || STEPS.iter().any(|step| series.contains(step));
        series.starts_with(AGE) || series.starts_with(WITHOUT_CONSUMER) && is_built_in()
    };
    picture.iter().all(|(series, value)| !waits(series) || *value == 0.0)
}

/// Looks again and again until a metric of a job has such a value, and gives what was seen then.
async fn seen(waybill: &mut Deployment, name: &str, job: &str, is: impl Fn(f64) -> bool) -> Picture {
    eventually(&format!("{name} of {job}"), async || {
        let picture = picture(waybill).await;
        value(&picture, name, job).is_some_and(&is).then_some(picture)
    })
    .await
}

fn orders(count: usize) -> Vec<proto::orders::v1::CreateOrderRequest> {
    (0..count).map(|i| order_of("customer", &format!("request-{i}"), vec![item("widget", 1)])).collect()
}

#[tokio::test]
async fn payments_that_are_away_and_come_back_late() {
    let (mut waybill, well) = at_work(Options { payment_sandbox: true, ..Options::default() }).await;
    waybill.sandbox().fail("", Fault::Outage, 0).await;
    let waiting = Load::start(waybill.channel(), orders(25)).all().await;
    let first = seen(&mut waybill, AGE, "payment", |age| age > 6.0).await;
    let second = seen(&mut waybill, "waybill_step_breaker_state", "payment", |state| state == 2.0).await;
    fires(Some(&well), [&first, &second], &["WaybillBreakerOpen", "WaybillOrdersWaiting"]);

    waybill.sandbox().recover().await;
    let ids: Vec<_> = waiting.into_iter().map(|order| order.order_id).collect();
    assert_eq!(waybill.statuses(&ids).await.get(&OrderStatus::Fulfilled), Some(&25));
    let done = eventually("that nobody waits", async || {
        let picture = picture(&mut waybill).await;
        nobody_waits(&picture).then_some(picture)
    })
    .await;
    fires(Some(&well), [&second, &done], &["WaybillOrdersSlow"]);
}

#[tokio::test]
async fn payments_that_are_away_for_one_customer() {
    let (mut waybill, well) = at_work(Options { payment_sandbox: true, ..Options::default() }).await;
    waybill.sandbox().fail("bad", Fault::Outage, 0).await;
    let bad = (0..12).map(|i| order_of("bad", &format!("bad-{i}"), vec![item("widget", 1)])).collect();
    Load::start(waybill.channel(), bad).all().await;
    let mut round = 0;
    let mut more_than = async |waybill: &mut Deployment, failures: f64| {
        loop {
            let order = order_of("customer", &format!("healthy-{round}"), vec![item("widget", 1)]);
            round += 1;
            let order = waybill.place(order).await.unwrap();
            waybill.finished(&order.order_id).await;
            let picture = picture(waybill).await;
            let failed_alone = value(&picture, "waybill_step_failed_alone_total", "payment");
            let waits = value(&picture, AGE, "payment");
            if failed_alone > Some(failures) && waits > Some(0.0) {
                return picture;
            }
        }
    };
    let first = more_than(&mut waybill, 0.0).await;
    // However many had failed by the first look.
    let seen = value(&first, "waybill_step_failed_alone_total", "payment").unwrap_or_default();
    let second = more_than(&mut waybill, seen + 6.0).await;
    fires(Some(&well), [&first, &second], &["WaybillOrdersFailAlone", "WaybillOrdersWaiting"]);
}

#[tokio::test]
async fn a_broker_that_is_down() {
    let (mut waybill, well) = at_work(Options::default()).await;
    waybill.broker.kill();
    seen(&mut waybill, "waybill_ready", "gateway", |ready| ready == 0.0).await;
    for job in ["gateway", "inventory", "payment", "fulfilment"] {
        seen(&mut waybill, "waybill_broker_connected", job, |connected| connected == 0.0).await;
    }
    let first = picture(&mut waybill).await;
    for request in orders(10) {
        waybill.place(request).await.unwrap_err();
    }
    let second = picture(&mut waybill).await;
    let expected = ["WaybillBrokerDown", "WaybillCreateOrderErrorBudgetBurn", "WaybillGatewayNotReady"];
    fires(Some(&well), [&first, &second], &expected);
}

#[tokio::test]
async fn a_replica_that_cannot_reach_the_broker() {
    let (mut waybill, well) = at_work(Options::default()).await;
    waybill.start_processor_at("payment", ([127, 0, 0, 1], free_port()).into());
    let cut_off = waybill.processor("payment").ops_addr().await;
    let wrong = eventually("a replica that is not connected", async || {
        let picture = picture(&mut waybill).await;
        let series = format!("waybill_broker_connected{{job=\"payment\",instance=\"{cut_off}\"}}");
        (picture.get(&series) == Some(&0.0)).then_some(picture)
    })
    .await;
    fires(Some(&well), [&wrong, &wrong], &["WaybillBrokerConnectionLost"]);
}

#[tokio::test]
async fn a_step_that_is_killed() {
    let (mut waybill, well) = at_work(Options::default()).await;
    waybill.kill_processors("payment");
    let wrong = seen(&mut waybill, "up", "payment", |up| up == 0.0).await;
    fires(Some(&well), [&wrong, &wrong], &["WaybillStepDown", "WaybillTargetDown"]);
}

#[tokio::test]
async fn a_route_through_a_step_that_nobody_runs() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("routes.yaml");
    let routes = "{default: standard, routes: {standard: [inventory, payment, fulfilment], \
                  reviewed: [inventory, fraud, payment, fulfilment]}}";
    std::fs::write(&file, routes).unwrap();
    let gateway = vec![("ROUTES_FILE", file.display().to_string())];
    // Not the provisioner's, who would make the consumer.
    let options = Options { least_privilege: false, gateway, ..Options::default() };
    let (mut waybill, wrong) = at_work(options).await;
    fires(None, [&wrong, &wrong], &["WaybillRouteStepWithoutConsumer"]);

    // With a consumer, and still without a process.
    let jetstream = waybill.jetstream().await;
    let stream = jetstream.get_stream(ORDERS).await.unwrap();
    let fraud = pull::Config { durable_name: Some("fraud".to_owned()), ..pull::Config::default() };
    stream.create_consumer(fraud).await.unwrap();
    let wrong = eventually("a consumer that is found", async || {
        let picture = picture(&mut waybill).await;
        let of_steps = picture.iter().filter(|(series, _)| series.starts_with(WITHOUT_CONSUMER));
        let without: Vec<_> = of_steps.map(|(_, without)| *without).collect();
        (without == [0.0; 4]).then_some(picture)
    })
    .await;
    fires(None, [&wrong, &wrong], &["WaybillStepDown"]);
}

#[tokio::test]
async fn orders_that_are_given_up() {
    let mut options = Options::default();
    options.processors.push(("MAX_ATTEMPTS", "1".to_owned()));
    let (mut waybill, well) = at_work(options).await;
    let bucket = waybill.jetstream().await.get_key_value(BUCKET).await.unwrap();
    bucket.put(stock_key("gadget"), "damaged".into()).await.unwrap();
    for i in 0..5 {
        let order = order_of("customer", &format!("poison-{i}"), vec![item("gadget", 1)]);
        let order = waybill.place(order).await.unwrap();
        waybill.reached(&order.order_id, OrderStatus::Failed).await;
    }
    let wrong = eventually("five letters", async || {
        let picture = picture(&mut waybill).await;
        let open = value(&picture, "waybill_dead_letters_open", "gateway");
        (open == Some(5.0) && nobody_waits(&picture)).then_some(picture)
    })
    .await;
    fires(Some(&well), [&wrong, &wrong], &["WaybillDeadLetters", "WaybillDeadLettersGrowing"]);

    waybill.jetstream().await.delete_stream(DEAD_LETTERS).await.unwrap();
    let lost = seen(&mut waybill, "waybill_dead_letters_lost", "gateway", |letters| letters == 5.0).await;
    fires(Some(&well), [&lost, &lost], &["WaybillDeadLettersLost"]);
}

#[tokio::test]
async fn unfinished_orders_that_the_gateway_may_not_carry() {
    let mut options =
        Options { least_privilege: true, withheld: Some("ORDER.*.*.*.carried"), ..Options::default() };
    options.environment.push(("ORDERS_RETENTION", "20s".to_owned()));
    options.processors.push(("MAX_ATTEMPTS", "1".to_owned()));
    let (mut waybill, well) = at_work(options).await;
    let bucket = waybill.jetstream().await.get_key_value(BUCKET).await.unwrap();
    bucket.put(stock_key("gadget"), "damaged".into()).await.unwrap();
    let order = waybill.place(order_of("customer", "poison", vec![item("gadget", 1)])).await.unwrap();
    waybill.reached(&order.order_id, OrderStatus::Failed).await;
    eventually("a letter that is counted", async || {
        let picture = picture(&mut waybill).await;
        (value(&picture, "waybill_dead_letters_open", "gateway") == Some(1.0)).then_some(())
    })
    .await;
    let wrong = seen(&mut waybill, "waybill_carry_age_seconds", "gateway", |age| age > 16.0).await;
    fires(Some(&well), [&wrong, &wrong], &["WaybillDeadLetters", "WaybillOrdersNotCarried"]);
}

#[tokio::test]
async fn a_consumer_that_brings_nothing() {
    let (mut waybill, well) = at_work(Options::default()).await;
    let client = async_nats::connect(waybill.broker.url()).await.unwrap();
    let pause = json!({ "pause_until": "2099-01-01T00:00:00Z" }).to_string();
    client.request("$JS.API.CONSUMER.PAUSE.ORDERS.payment", pause.into()).await.unwrap();
    waybill.place(order_of("customer", "second", vec![item("widget", 1)])).await.unwrap();
    let wrong = seen(&mut waybill, "waybill_step_pending", "payment", |pending| pending == 1.0).await;
    fires(Some(&well), [&wrong, &wrong], &["WaybillConsumerStuck", "WaybillOrdersWaiting"]);
}

#[tokio::test]
async fn a_consumer_that_somebody_edits_and_the_step_may_not_mend() {
    let options = Options { least_privilege: true, ..Options::default() };
    let (mut waybill, well) = at_work(options).await;
    let stream = waybill.jetstream().await.get_stream(ORDERS).await.unwrap();
    let config = stream.consumer_info("payment").await.unwrap().config;
    let config = pull::Config::try_from_consumer_config(config).unwrap();
    stream.update_consumer(pull::Config { max_ack_pending: 7, ..config }).await.unwrap();
    let wrong = seen(&mut waybill, "waybill_step_consumer_edited", "payment", |edited| edited == 1.0).await;
    fires(Some(&well), [&wrong, &wrong], &["WaybillConsumerEdited"]);
}

#[tokio::test]
async fn a_second_consumer_that_the_step_may_not_open() {
    let withheld = Some("$JS.API.CONSUMER.INFO.ORDERS.inventory-carried");
    let options = Options { least_privilege: true, withheld, ..Options::default() };
    let (mut waybill, wrong) = at_work(options).await;
    let open = |consumer| {
        let mut series = wrong.iter().filter(|(series, _)| series.starts_with("waybill_step_consumer_open{"));
        let label = format!("step=\"{consumer}\"");
        series.find(|(series, _)| series.contains(&label)).map(|(_, open)| *open)
    };
    assert_eq!(["inventory", "inventory-carried"].map(open), [Some(1.0), Some(0.0)]);
    let addr = waybill.processor("inventory").ops_addr().await;
    let (status, said) = http_get(&addr, "/readyz").await.unwrap();
    assert!(status == 503 && said.contains("inventory-carried: consumer not open: "), "{said}");
    fires(None, [&wrong, &wrong], &["WaybillConsumerNotOpen"]);
}

#[tokio::test]
async fn a_broker_without_storage_space() {
    let (mut waybill, well) = at_work(Options::default()).await;
    let jetstream = waybill.jetstream().await;
    let mut stream = jetstream.get_stream(ORDERS).await.unwrap();
    let info = stream.info().await.unwrap().clone();
    let max_messages = i64::try_from(info.state.messages).unwrap();
    let full = async_nats::jetstream::stream::Config { max_messages, ..info.config };
    jetstream.update_stream(full).await.unwrap();
    waybill.place(order_of("customer", "second", vec![item("widget", 1)])).await.unwrap_err();
    seen(&mut waybill, "waybill_storage_full", "gateway", |full| full == 1.0).await;
    let first = seen(&mut waybill, "waybill_ready", "gateway", |ready| ready == 0.0).await;
    for request in orders(10) {
        waybill.place(request).await.unwrap_err();
    }
    let second = picture(&mut waybill).await;
    let expected = ["WaybillCreateOrderErrorBudgetBurn", "WaybillGatewayNotReady", "WaybillStorageFull"];
    fires(Some(&well), [&first, &second], &expected);
}

#[tokio::test]
async fn a_stream_that_is_almost_full() {
    let (mut waybill, well) = at_work(Options::default()).await;
    let jetstream = waybill.jetstream().await;
    let mut info = jetstream.get_stream(ORDERS).await.unwrap();
    let info = info.info().await.unwrap();
    let bytes = i64::try_from(info.state.bytes).unwrap();
    let mut config = info.config.clone();
    config.max_bytes = bytes + bytes / 50;
    jetstream.update_stream(config).await.unwrap();
    let wrong = seen(&mut waybill, "waybill_stream_bytes_max", "gateway", |max| max > 0.0).await;
    fires(Some(&well), [&wrong, &wrong], &["WaybillStreamAlmostFull", "WaybillStreamFillingUp"]);
}

#[tokio::test]
async fn a_broker_that_keeps_less_than_was_asked() {
    let gateway = vec![("DURABILITY", "strict".to_owned())];
    let mut waybill = Deployment::start_without_broker(Options { gateway, ..Options::default() }).await;
    waybill.broker.start().await;
    seen(&mut waybill, "waybill_stream_replicas", "gateway", |replicas| replicas == 1.0).await;
    let wrong = seen(&mut waybill, "waybill_durability_below_wanted", "gateway", |below| below == 1.0).await;
    fires(None, [&wrong, &wrong], &["WaybillDurabilityBelowWanted", "WaybillGatewayNotReady"]);
}

/// A cluster that works, and how it looks: no message waits, and all copies of both streams are there.
async fn cluster_at_work(options: Options) -> (Deployment, Cluster, Picture) {
    let options = Options { servers: SERVERS, ..options };
    let mut waybill = Deployment::start_without_broker(options).await;
    let cluster = Cluster::start(&mut waybill);
    waybill.ready().await;
    let order =
        create(&waybill.client().await, &order_of("customer", "first", vec![item("widget", 1)])).await;
    waybill.finished(&order.unwrap().order_id).await;
    let well = with_copies(&mut waybill, SERVERS, nobody_waits).await;
    (waybill, cluster, well)
}

/// Waits until both streams have so many copies, and the rest is as it should be.
async fn with_copies(waybill: &mut Deployment, wanted: usize, is: impl Fn(&Picture) -> bool) -> Picture {
    eventually("copies of both streams", async || {
        let picture = picture(waybill).await;
        let copies =
            picture.iter().filter(|(series, _)| series.starts_with("waybill_stream_replicas_current{"));
        let copies: Vec<_> = copies.map(|(_, copies)| *copies as usize).collect();
        (copies == [wanted, wanted] && is(&picture)).then_some(picture)
    })
    .await
}

#[tokio::test]
async fn a_server_of_three_that_is_gone() {
    let (mut waybill, mut cluster, well) = cluster_at_work(Options::default()).await;
    cluster.server(&mut waybill, 2).kill();
    let wrong = with_copies(&mut waybill, 2, nobody_waits).await;
    fires(Some(&well), [&wrong, &wrong], &["WaybillStreamReplicasBehind"]);
}

#[tokio::test]
async fn a_server_that_is_behind_leads_a_consumer_and_the_step_may_not_depose_it() {
    let withheld = Some("$JS.API.CONSUMER.LEADER.STEPDOWN");
    let options = Options { least_privilege: true, withheld, ..Options::default() };
    let (mut waybill, mut cluster, well) = cluster_at_work(options).await;
    cluster.lead(&waybill, ORDERS, 0).await;
    cluster.server(&mut waybill, 2).kill();
    cluster.forget(&waybill).await;
    cluster.start_server_behind(&mut waybill, 2).await;
    cluster.lead_consumer(&waybill, ORDERS, "payment", 2).await;
    let request = order_of("customer", "second", vec![item("widget", 1)]);
    create(&waybill.client().await, &request).await.unwrap();
    let is_behind = |picture: &Picture| {
        let of_payment = |name| value(picture, name, "payment").is_some_and(|value| value > 0.0);
        let of_inventory = value(picture, AGE, "inventory");
        of_payment("waybill_step_consumer_lag")
            && of_payment("waybill_step_pending")
            && of_inventory == Some(0.0)
    };
    let first = with_copies(&mut waybill, SERVERS, is_behind).await;
    let second = picture(&mut waybill).await;
    let addr = waybill.processor("payment").ops_addr().await;
    let (status, said) = http_get(&addr, "/readyz").await.unwrap();
    assert!(status == 200 && said.contains("consumer leader n2 lags"), "{said}");
    // The broker tells of a refusal some time after the request; and the first request may meet an election.
    eventually("a request to step down that is refused", async || {
        let refused = waybill.logged_about("step-down not permitted");
        refused.iter().any(|line| line.contains("STEPDOWN.ORDERS.payment")).then_some(())
    })
    .await;
    let expected = ["WaybillConsumerLeaderLags", "WaybillConsumerStuck", "WaybillOrdersWaiting"];
    fires(Some(&well), [&first, &second], &expected);
    assert!(cluster.stays_behind(&waybill, 2), "it has caught up, and this shows nothing");
}

#[tokio::test]
async fn events_that_the_log_has_lost_and_the_stock_that_their_orders_hold() {
    let (mut waybill, well) = at_work(Options::default()).await;
    waybill.jetstream().await.get_stream(ORDERS).await.unwrap().purge().await.unwrap();
    seen(&mut waybill, "waybill_log_lost_events", "gateway", |events| events > 0.0).await;
    let orphaned = "waybill_stock_reservations_orphaned";
    let wrong = seen(&mut waybill, orphaned, "inventory", |reservations| reservations > 0.0).await;
    fires(Some(&well), [&wrong, &wrong], &["WaybillLogLost", "WaybillStockReservationsOrphaned"]);
}

#[tokio::test]
async fn a_bucket_with_the_stock_that_is_gone() {
    let (mut waybill, well) = at_work(Options::default()).await;
    waybill.jetstream().await.delete_stream(format!("KV_{BUCKET}")).await.unwrap();
    seen(&mut waybill, "waybill_stock_bucket_missing", "inventory", |missing| missing == 1.0).await;
    let wrong = seen(&mut waybill, "waybill_ready", "gateway", |ready| ready == 0.0).await;
    fires(Some(&well), [&wrong, &wrong], &["WaybillGatewayNotReady", "WaybillStockBucketMissing"]);
}
