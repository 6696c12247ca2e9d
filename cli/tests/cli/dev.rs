//! `waybill dev` with fakes of all that it starts: what it says when something is wrong, and what it leaves behind.

use std::net::TcpListener;
use std::time::Duration;

use nix::sys::signal::Signal;
use proto::orders::v1::OrderStatus;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::shop::{self, Script, order};
use crate::stage::{PATIENCE, Stage, is_gone, output_of, send, stderr, stdout, until};

#[tokio::test]
async fn a_missing_program_is_named_before_anything_starts() {
    for (program, remedy) in
        [("waybill-payment-sandbox", "cargo build --workspace"), ("nats-server", "--nats-server")]
    {
        let stage = Stage::new();
        stage.remove(program);
        let output = output_of(&mut stage.dev()).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(program) && stderr(&output).contains(remedy), "{}", stderr(&output));
        assert!(stage.pids_so_far().is_empty());
    }
}

#[tokio::test]
async fn who_wants_to_observe_is_told_what_to_install() {
    for (there, missing) in [(None, "jaeger"), (Some("jaeger"), "prometheus")] {
        let stage = Stage::new();
        if let Some(name) = there {
            stage.add(name);
        }
        let mut dev = stage.dev();
        dev.arg("--observe").env("JAEGER", stage.path("jaeger")).env("PROMETHEUS", stage.path("prometheus"));
        let output = output_of(&mut dev).await;
        assert_eq!(output.status.code(), Some(64));
        let complaint = stderr(&output);
        assert!(complaint.contains(&format!("{missing} not found")), "{complaint}");
        assert!(
            complaint.contains("make observe") && complaint.contains(&format!("--{missing}")),
            "{complaint}"
        );
        assert!(stage.pids_so_far().is_empty());
    }
}

#[tokio::test]
async fn with_observe_all_programs_are_wired_to_jaeger_and_prometheus() {
    let (addr, _) = shop::open(Script::default()).await;
    let stage = Stage::new();
    stage.add("jaeger");
    stage.add("prometheus");
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut dev = stage.dev_with_gateway(addr);
    dev.args(["--orders", "0", "--exit", "--observe", "--jaeger-port", "0", "--prometheus-port"])
        .arg(free.port().to_string())
        .env("JAEGER", stage.path("jaeger"))
        .env("PROMETHEUS", stage.path("prometheus"))
        .env("OTEL_SDK_DISABLED", "true")
        .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://elsewhere:1")
        .env("OTEL_BSP_SCHEDULE_DELAY", "9")
        .env_remove("OTEL_TRACES_SAMPLER");
    let dev = dev.spawn().unwrap();

    // The fakes do not listen, so the test listens for them.
    stage.pids_of(&["jaeger"]).await;
    assert!(!stage.path("pids/nats-server").exists());
    let config = std::fs::read_to_string(stage.path("data/observe/jaeger.yml")).unwrap();
    let endpoints: Vec<_> = config.split('\'').filter(|part| part.starts_with("127.0.0.1:")).collect();
    let [_, _, otlp] = endpoints[..] else { panic!("{config}") };
    let _jaeger: Vec<_> = endpoints.iter().map(|addr| TcpListener::bind(addr).unwrap()).collect();
    stage.pids_of(&["prometheus"]).await;
    let _prometheus = TcpListener::bind(free).unwrap();
    let output = timeout(PATIENCE, dev.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));

    for program in ["waybill-gateway", "waybill-inventory", "waybill-payment-sandbox"] {
        let has = |variable| stage.variable_of(program, variable);
        assert_eq!(has("OTEL_EXPORTER_OTLP_ENDPOINT"), Some(format!("http://{otlp}")), "{program}");
        assert_eq!(has("OTEL_EXPORTER_OTLP_PROTOCOL").as_deref(), Some("grpc"));
        assert_eq!(has("OTEL_METRICS_EXPORTER").as_deref(), Some("none"));
        assert_eq!(has("OTEL_TRACES_SAMPLER").as_deref(), Some("parentbased_always_on"));
        assert_eq!(has("OTEL_BSP_SCHEDULE_DELAY").as_deref(), Some("9"));
        assert_eq!((has("OTEL_SDK_DISABLED"), has("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")), (None, None));
    }
    assert_eq!(stage.variable_of("waybill-payment", "OPS_ADDR").as_deref(), Some("127.0.0.1:0"));
    let config = std::fs::read_to_string(stage.path("data/observe/prometheus.yml")).unwrap();
    for (job, addr) in
        [("gateway", "127.0.0.1:1"), ("inventory", "127.0.0.1:3"), ("fulfilment", "127.0.0.1:3")]
    {
        let line = format!("{{ job_name: {job}, static_configs: [{{ targets: ['{addr}'] }}] }}");
        assert!(config.contains(&line), "{config}");
    }
    assert!(stage.pids_so_far().into_iter().all(is_gone));
}

#[tokio::test]
async fn an_old_nats_server_is_refused() {
    let stage = Stage::new();
    let output = output_of(stage.dev().env("FAKE_NATS_VERSION", "2.11.9")).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("2.11") && stderr(&output).contains("2.12 or newer"));
    assert!(stage.pids_so_far().is_empty());
}

#[tokio::test]
async fn a_busy_port_is_named_with_the_flag_that_changes_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let addr = format!("127.0.0.1:{port}");
    for (flag, value) in [
        ("--nats-port", &port),
        ("--grpc-addr", &addr),
        ("--ops-addr", &addr),
        ("--operations-addr", &addr),
        ("--payment-sandbox-addr", &addr),
    ] {
        let stage = Stage::new();
        let output = output_of(stage.dev().args([flag, value])).await;
        assert_eq!(output.status.code(), Some(1));
        let complaint = stderr(&output);
        assert!(complaint.contains(&format!("port {port} ")) && complaint.contains(flag), "{complaint}");
        assert!(stage.pids_so_far().is_empty());
    }
}

#[tokio::test]
async fn a_child_that_dies_ends_everything_with_its_last_words() {
    let stage = Stage::new();
    let output = output_of(stage.dev().env("FAKE_DIES", "waybill-gateway")).await;
    assert_eq!(output.status.code(), Some(1));
    let complaint = stderr(&output);
    assert!(complaint.contains("gateway died (exit status: 3)"), "{complaint}");
    assert!(complaint.contains("gateway.log") && complaint.contains("  out of paper"), "{complaint}");
    assert!(stage.pids_so_far().into_iter().all(is_gone));
}

#[tokio::test]
async fn a_data_folder_has_one_user_at_a_time() {
    let stage = Stage::new();
    let mut first = stage.dev().spawn().unwrap();
    stage.pids_of(&["nats-server"]).await;
    let output = output_of(&mut stage.dev()).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("another `waybill dev`"), "{}", stderr(&output));
    send(&first, Signal::SIGTERM);
    timeout(PATIENCE, first.wait()).await.unwrap().unwrap();
}

#[tokio::test]
async fn nothing_outlives_a_killed_parent() {
    let stage = Stage::new();
    let mut dev = stage.dev().spawn().unwrap();
    let children = stage.pids_of(&["nats-server", "waybill-gateway"]).await;
    assert!(!children.iter().any(|&child| is_gone(child)));
    dev.start_kill().unwrap();
    until(|| children.iter().all(|&child| is_gone(child)).then_some(())).await;
    timeout(PATIENCE, dev.wait()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_signal_stops_every_child() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let (addr, _) = shop::open(Script::default()).await;
        let stage = Stage::new();
        let mut dev = stage.dev_with_gateway(addr).args(["--orders", "0"]).spawn().unwrap();
        let children =
            stage.pids_of(&["nats-server", "waybill-gateway", "waybill-inventory", "waybill-payment"]).await;
        send(&dev, signal);
        let status = timeout(PATIENCE, dev.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(0));
        assert!(children.into_iter().all(is_gone));
    }
}

#[tokio::test]
async fn a_second_signal_does_not_wait_for_a_stubborn_child() {
    let stage = Stage::new();
    let mut dev = stage.dev().env("FAKE_STUBBORN", "waybill-gateway").spawn().unwrap();
    let children = stage.pids_of(&["nats-server", "waybill-gateway"]).await;
    // Prints this once it ignores SIGTERM.
    until(|| {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", children[1])).ok()?;
        (name.trim() == "sleep").then_some(())
    })
    .await;
    send(&dev, Signal::SIGTERM);
    let mut said = BufReader::new(dev.stdout.take().unwrap()).lines();
    while let Some(line) = timeout(PATIENCE, said.next_line()).await.unwrap().unwrap() {
        if line.contains("stopping") {
            break;
        }
    }
    send(&dev, Signal::SIGTERM);
    let output = timeout(PATIENCE, dev.wait_with_output()).await.unwrap().unwrap();
    assert!(stderr(&output).contains("SIGTERM: killing"), "{}", stderr(&output));
    assert!(children.into_iter().all(is_gone));
}

#[tokio::test]
async fn a_sample_order_is_repeated_under_its_name_until_it_is_accepted() {
    let create = Box::new(|_: &_, before| match before {
        0 => {
            let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(1)));
            Err(Status::with_error_details(Code::ResourceExhausted, "over quota", details))
        }
        1 => Err(Status::unavailable("away")),
        _ => Ok(order(OrderStatus::Fulfilled, 4)),
    });
    let (addr, seen) = shop::open(Script { create, ..Script::default() }).await;
    let stage = Stage::new();
    let output = output_of(stage.dev_with_gateway(addr).args(["--orders", "1", "--exit"])).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("1  FULFILLED") && stdout(&output).contains("p99"));
    let creates = seen.creates.lock().unwrap();
    assert_eq!(creates.len(), 3);
    assert!(creates.iter().all(|create| create.request_id == creates[0].request_id));
    assert!(stage.pids_so_far().into_iter().all(is_gone));
}

#[tokio::test]
async fn an_order_that_does_not_end_in_time_is_named_and_fails_the_run() {
    let create = Box::new(|_: &_, _| Ok(order(OrderStatus::Accepted, 4)));
    let watch = Box::new(|_: &_, _| vec![Ok(order(OrderStatus::Reserved, 5))]);
    let (addr, _) = shop::open(Script { create, watch, ..Script::default() }).await;
    let stage = Stage::new();
    let mut dev = stage.dev_with_gateway(addr);
    let output = output_of(dev.args(["--orders", "1", "--exit", "--timeout", "500ms"])).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stdout(&output).contains("not finished: order customer-order, RESERVED: not finished in time"),
        "{}",
        stdout(&output)
    );
    assert!(stderr(&output).contains("1 sample orders did not finish"), "{}", stderr(&output));
    assert!(stage.pids_so_far().into_iter().all(is_gone));
}

#[tokio::test]
async fn a_parked_order_fails_the_run_at_once() {
    let create = Box::new(|_: &_, _| Ok(order(OrderStatus::Accepted, 4)));
    let watch = Box::new(|_: &_, _| vec![Ok(order(OrderStatus::Failed, 5))]);
    let (addr, _) = shop::open(Script { create, watch, ..Script::default() }).await;
    let stage = Stage::new();
    let mut dev = stage.dev_with_gateway(addr);
    let output = output_of(dev.args(["--orders", "1", "--exit", "--timeout", "1h"])).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("FAILED"), "{}", stdout(&output));
}

#[tokio::test]
async fn what_the_environment_says_holds_unless_the_children_would_not_start_with_it() {
    let (addr, _) = shop::open(Script::default()).await;
    let stage = Stage::new();
    let mut dev = stage.dev_with_gateway(addr);
    dev.args(["--orders", "0", "--exit"])
        .env("STOCK", "teapot=1")
        .env("RUST_LOG", "off")
        .env("RATE_LIMIT", "7");
    for variable in ["NATS_URL", "NATS_CREDS", "NATS_TLS_CA", "ORDERS_REPLICAS", "TLS_CERT"] {
        dev.env(variable, "3");
    }
    let output = output_of(&mut dev).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));

    let gateway = |variable| stage.variable_of("waybill-gateway", variable);
    assert_eq!(gateway("RATE_LIMIT").as_deref(), Some("7"));
    assert_eq!(gateway("NATS_URL").as_deref(), Some("nats://127.0.0.1:1"));
    assert_eq!(gateway("LOG_FORMAT").as_deref(), Some("json"));
    for variable in ["NATS_CREDS", "NATS_TLS_CA", "ORDERS_REPLICAS", "TLS_CERT"] {
        assert_eq!(gateway(variable), None, "{variable}");
    }
    let log = gateway("RUST_LOG").unwrap();
    assert!(log.starts_with("off,") && log.contains("gateway[{grpc_addr}]=info"), "{log}");
    assert_eq!(stage.variable_of("waybill-inventory", "STOCK").as_deref(), Some("teapot=1"));
}

#[tokio::test]
async fn without_a_word_from_the_environment_there_is_stock_for_the_sample_orders() {
    let (addr, _) = shop::open(Script::default()).await;
    let stage = Stage::new();
    let mut dev = stage.dev_with_gateway(addr);
    dev.args(["--orders", "0", "--exit"]).env_remove("STOCK").env_remove("RUST_LOG");
    assert_eq!(output_of(&mut dev).await.status.code(), Some(0));
    let stock = stage.variable_of("waybill-inventory", "STOCK").unwrap();
    assert!(stock.starts_with("widget="), "{stock}");
    assert_eq!(stage.variable_of("waybill-gateway", "RUST_LOG"), None);
}

#[tokio::test]
async fn payments_are_made_by_a_sandbox_whose_record_is_kept() {
    let (addr, _) = shop::open(Script::default()).await;
    let stage = Stage::new();
    let output = output_of(stage.dev_with_gateway(addr).args(["--orders", "0", "--exit"])).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let url = stage.variable_of("waybill-payment", "PAYMENT_URL");
    assert_eq!(url.as_deref(), Some("http://127.0.0.1:2"));
    let data = stage.variable_of("waybill-payment-sandbox", "PAYMENT_SANDBOX_DATA").unwrap();
    assert_eq!(data, stage.path("data/payments.jsonl").to_str().unwrap());
    assert!(stage.pids_so_far().into_iter().all(is_gone));
}

#[tokio::test]
async fn a_payment_service_of_the_users_own_takes_the_place_of_the_sandbox() {
    let (addr, _) = shop::open(Script::default()).await;
    let stage = Stage::new();
    let mut dev = stage.dev_with_gateway(addr);
    dev.args(["--orders", "0", "--exit"]).env("PAYMENT_URL", "http://payments:1");
    assert_eq!(output_of(&mut dev).await.status.code(), Some(0));
    let url = stage.variable_of("waybill-payment", "PAYMENT_URL");
    assert_eq!(url.as_deref(), Some("http://payments:1"));
    assert!(!stage.path("pids/waybill-payment-sandbox").exists());
}

#[tokio::test]
async fn the_help_names_every_variable_that_is_not_left_alone() {
    let output = output_of(Stage::new().dev().arg("--help")).await;
    let variables = [
        "NATS_URL",
        "NATS_TLS_KEY",
        "ORDERS_REPLICAS",
        "LOG_FORMAT",
        "DRAIN_TIMEOUT",
        "STOCK",
        "TLS_CLIENT_CA",
        "PAYMENT_URL",
        "PAYMENT_SANDBOX_DATA",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_METRICS_EXPORTER",
        "OTEL_TRACES_SAMPLER",
        "OTEL_SDK_DISABLED",
        "JAEGER",
    ];
    for variable in variables {
        assert!(stdout(&output).contains(variable), "{variable}");
    }
}

#[tokio::test]
async fn the_commands_to_try_begin_with_the_path_of_the_program() {
    let (addr, _) = shop::open(Script::default()).await;
    let stage = Stage::new();
    let mut dev = stage.dev_with_gateway(addr);
    let mut dev = dev.args(["--orders", "0"]).current_dir(stage.path("")).spawn().unwrap();
    let mut said = BufReader::new(dev.stdout.take().unwrap()).lines();
    let command = loop {
        let line = timeout(PATIENCE, said.next_line()).await.unwrap().unwrap().unwrap();
        if line.ends_with("get ORDER_ID") {
            break line;
        }
    };
    assert_eq!(command.trim(), format!("./waybill order --gateway http://{addr} get ORDER_ID"));
    send(&dev, Signal::SIGTERM);
    timeout(PATIENCE, dev.wait()).await.unwrap().unwrap();
}
