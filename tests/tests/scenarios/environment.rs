//! A setting that cannot be used ends a program at once, and its name is said.

use std::net::TcpListener;
use std::process::Output;

use harness::certificates::{Authority, replace};
use harness::issuer::{SigningKey, key_set};
use harness::{Broker, PATIENCE, Process, binary};
use tokio::process::Command;
use tokio::time::timeout;

const PROCESSORS: [&str; 3] = ["waybill-inventory", "waybill-payment", "waybill-fulfilment"];

const PAYMENT_SANDBOX: &str = "waybill-payment-sandbox";

const NO_FILE: &str = "/no/such/file";
/// A file that is there and holds neither a certificate nor a key.
const NO_PEM: &str = env!("CARGO_MANIFEST_PATH");

/// Runs a program that is to end by itself.
async fn run(program: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(binary(program));
    command.env_clear().envs(environment.iter().copied()).kill_on_drop(true);
    let ended = timeout(PATIENCE, command.output()).await;
    ended.unwrap_or_else(|_| panic!("{program} goes on with {environment:?}")).unwrap()
}

async fn refuses(program: &str, variable: &str, value: &str) {
    let output = run(program, &[(variable, value)]).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{program} with {variable}={value}: {errors}");
    assert!(errors.contains(variable), "{program} with {variable}={value}: {errors}");
    assert!(!errors.contains("s3cr3t"), "{program} with {variable}={value}: {errors}");
}

#[tokio::test]
async fn every_program_refuses_settings_that_cannot_be_used() {
    let settings = [
        ("NATS_URL", ":::"),
        ("NATS_URL", ""),
        ("NATS_URL", ","),
        ("NATS_URL", "nats://"),
        ("NATS_URL", "nats://a,,b"),
        ("NATS_URL", "ws://localhost"),
        // As they come of passwords that are not escaped.
        ("NATS_URL", "nats://user:s3cr3t/#@?@localhost"),
        ("NATS_URL", "nats://a,nats://user:s3cr3t@b:99999"),
        ("NATS_CREDS", NO_FILE),
        ("NATS_TLS_CA", NO_FILE),
        ("NATS_TLS_CA", NO_PEM),
        ("NATS_TLS_CERT", NO_FILE),
        ("NATS_TLS_KEY", NO_PEM),
        ("OPS_ADDR", "nonsense"),
        ("LOG_FORMAT", "xml"),
        ("RUST_LOG", "a=b=c"),
        ("RUST_LOG", "infoo"),
        ("RUST_LOG", "info,backbone"),
        ("ORDERS_REPLICAS", "9"),
        ("ORDERS_RETENTION", "long"),
        ("ORDERS_RETENTION", "999ms"),
        // More nanoseconds than the broker can count.
        ("ORDERS_RETENTION", "293y"),
        ("DRAIN_TIMEOUT", "soon"),
        ("DRAIN_TIMEOUT", "18446744073709551615s"),
    ];
    for program in PROCESSORS.into_iter().chain(["waybill-gateway"]) {
        for (variable, value) in settings {
            refuses(program, variable, value).await;
        }
    }
}

#[tokio::test]
async fn credentials_of_services_that_do_not_fit_are_refused_before_anything_else() {
    for (program, prefix) in [("waybill-payment", "PAYMENT"), ("waybill-step", "STEP")] {
        for (url, file, wanted) in [
            ("http://example.org", "TOKEN_FILE", "needs a service at https://"),
            ("http://localhost", "CA_FILE", "need a service at https://"),
            ("https://localhost", "CERT_FILE", "must be given together"),
            ("https://localhost", "KEY_FILE", "must be given together"),
            ("https://localhost", "CA_FILE", "has no certificate"),
            ("https://localhost", "TOKEN_FILE", "visible ASCII"),
        ] {
            let (url_variable, variable) = (format!("{prefix}_URL"), format!("{prefix}_{file}"));
            let environment =
                [("STEP_NAME", "fraud"), (url_variable.as_str(), url), (variable.as_str(), NO_PEM)];
            let output = run(program, &environment).await;
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(64), "{variable}: {said}");
            assert!(said.contains(&variable) && said.contains(wanted), "{variable}: {said}");
        }
    }
}

#[tokio::test]
async fn the_gateway_refuses_settings_that_cannot_be_used() {
    let settings = [
        ("GRPC_ADDR", "nonsense"),
        ("OPS_ADDR", "127.0.0.1"),
        ("OPERATIONS_ADDR", "operators"),
        ("RATE_LIMIT", "0"),
        ("RATE_BURST", "-1"),
        ("REQUEST_TIMEOUT", "5"),
        ("REQUEST_TIMEOUT", "0s"),
        ("REQUEST_TIMEOUT", "18446744073709551615s"),
        ("API_KEYS_FILE", NO_FILE),
        ("TLS_CERT", NO_PEM),
        ("TLS_KEY", NO_PEM),
        ("TLS_CLIENT_CA", NO_PEM),
        ("TLS_CLIENTS_FILE", NO_FILE),
        ("JWT_JWKS", "http://example.org/jwks"),
        ("JWT_ISSUER", "https://example.org"),
        ("JWT_AUDIENCE", "waybill"),
        ("JWT_ALGORITHMS", "HS256"),
        ("JWT_ALGORITHMS", "RS256,none"),
        ("JWT_TENANT_CLAIM", ""),
        ("TLS_CLIENT_OPTIONAL", "true"),
        // Not regular files, one of them without an end.
        ("API_KEYS_FILE", "/dev/zero"),
        ("API_KEYS_FILE", "/dev"),
        ("REFLECTION", "perhaps"),
        ("DURABILITY", "very"),
        ("NATS_MONITOR_URL", "nats://nats:8222"),
        ("NATS_MONITOR_URL", "http://user:s3cr3t@nats:8222"),
        ("OTEL_METRICS_EXPORTER", "prometheus"),
    ];
    for (variable, value) in settings {
        refuses("waybill-gateway", variable, value).await;
    }
    for variable in ["JWT_ISSUER", "JWT_AUDIENCE"] {
        let mut environment =
            vec![("JWT_JWKS", NO_FILE), ("JWT_ISSUER", "issuer"), ("JWT_AUDIENCE", "waybill")];
        environment.retain(|(name, _)| *name != variable);
        environment.push((variable, ""));
        refuses_with(&environment, variable).await;
    }
}

#[tokio::test]
async fn an_optional_setting_that_is_empty_is_unset() {
    let dir = tempfile::tempdir().unwrap();
    for (program, variables) in [
        ("waybill-payment", ["PAYMENT_URL", "WORKER_POOL_SIZE"]),
        ("waybill-inventory", ["STOCK", "ORDERS_RETENTION"]),
        ("waybill-gateway", ["OPERATIONS_ADDR", "ORDERS_REPLICAS"]),
    ] {
        let mut command = std::process::Command::new(binary(program));
        command.env_clear().env("NATS_URL", "nats://127.0.0.1:1").envs(variables.map(|name| (name, "")));
        command.env("GRPC_ADDR", "127.0.0.1:0").env("OPS_ADDR", "127.0.0.1:0");
        let mut process = Process::start(program, command, dir.path());
        process.line("that it has begun", |line| line.contains("broker").then_some(())).await;
    }
    for variable in ["API_KEYS_FILE", "JWT_JWKS", "TLS_CERT", "TLS_CLIENT_CA", "NATS_CREDS", "NATS_TLS_CA"] {
        refuses("waybill-gateway", variable, "").await;
    }
}

/// The one that is at fault is named, with the reason, though others have to be there.
#[tokio::test]
async fn the_gateway_refuses_files_that_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| replace(dir.path(), name, text).display().to_string();
    let authority = Authority::new();
    let (of_gateway, other) = (authority.gateway(), authority.gateway());
    let (cert, key) = (path("cert", &of_gateway.cert), path("key", &of_gateway.key));
    let other_key = path("other", &other.key);
    for (cert, key, client_ca, named) in [
        (NO_FILE, key.as_str(), None, "TLS_CERT: /no/such/file cannot be read"),
        (NO_PEM, &key, None, "TLS_CERT: "),
        (&cert, NO_FILE, None, "TLS_KEY: /no/such/file cannot be read"),
        (&cert, NO_PEM, None, "TLS_KEY: "),
        (&cert, &other_key, None, "TLS_CERT and TLS_KEY: "),
        (&cert, &key, Some(NO_PEM), "TLS_CLIENT_CA: "),
    ] {
        let mut environment = vec![("TLS_CERT", cert), ("TLS_KEY", key)];
        environment.extend(client_ca.map(|path| ("TLS_CLIENT_CA", path)));
        refuses_with(&environment, named).await;
    }
    for (jwks, named) in [(NO_FILE, "cannot be read"), (NO_PEM, "is not a JWKS")] {
        let environment = [("JWT_JWKS", jwks), ("JWT_ISSUER", "issuer"), ("JWT_AUDIENCE", "waybill")];
        refuses_with(&environment, &format!("JWT_JWKS: {jwks} {named}")).await;
    }
}

#[tokio::test]
async fn other_machines_are_served_only_if_callers_are_asked_who_they_are() {
    let everywhere = ("GRPC_ADDR", "0.0.0.0:0");
    refuses_with(&[everywhere], "GRPC_ADDR: 0.0.0.0:0 can be reached from other machines").await;
    // Operators are asked, whatever clients are not.
    let operations = [("OPERATIONS_ADDR", "0.0.0.0:0"), ("ALLOW_ANONYMOUS", "true")];
    refuses_with(&operations, "OPERATIONS_ADDR: 0.0.0.0:0 can be reached from other machines").await;
    // TLS alone asks nobody.
    let dir = tempfile::tempdir().unwrap();
    let settings = Authority::new().gateway().settings(dir.path());
    let mut environment: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    environment.push(everywhere);
    refuses_with(&environment, "GRPC_ADDR: ").await;

    let ec = SigningKey::ec("key");
    let jwks = replace(dir.path(), "jwks", &key_set(&[&ec])).display().to_string();
    let mut command = std::process::Command::new(binary("waybill-gateway"));
    command
        .env_clear()
        .env("GRPC_ADDR", "0.0.0.0:0")
        .env("OPS_ADDR", "127.0.0.1:0")
        .env("LOG_FORMAT", "json");
    command.env("JWT_JWKS", jwks).env("JWT_ISSUER", "issuer").env("JWT_AUDIENCE", "waybill");
    let mut gateway = Process::start("gateway", command, dir.path());
    gateway.logged("its address", |fields| fields["grpc_addr"].as_str().map(str::to_owned)).await;
}

async fn refuses_with(environment: &[(&str, &str)], said: &str) {
    let output = run("waybill-gateway", environment).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{environment:?}: {errors}");
    assert!(errors.contains(said), "{environment:?}: {errors}");
}

#[tokio::test]
async fn processors_refuse_settings_that_cannot_be_used() {
    let settings = [
        ("WORKER_POOL_SIZE", "ten"),
        ("WORKER_POOL_SIZE", "0"),
        ("ACK_WAIT", "soon"),
        ("ACK_WAIT", "0s"),
        ("ACK_WAIT", "2d"),
        ("ATTEMPT_TIMEOUT", "-1s"),
        ("ATTEMPT_TIMEOUT", "0s"),
        ("ATTEMPT_TIMEOUT", "18446744073709551615s"),
    ];
    for program in PROCESSORS {
        for (variable, value) in settings {
            refuses(program, variable, value).await;
        }
    }
    for value in [
        "http://payments#1",
        "http://payments:0",
        "payments:1",
        "ftp://payments",
        "http://payments/v1",
        "http://me:secret@payments",
    ] {
        refuses("waybill-payment", "PAYMENT_URL", value).await;
    }
    for value in ["0s", "soon", "2d"] {
        refuses("waybill-payment", "PAYMENT_TIMEOUT", value).await;
    }
    for value in ["widget=1,widget=1", "widget", "widget=", "=1", "wid get=1", "widget=-1"] {
        refuses("waybill-inventory", "STOCK", value).await;
    }
}

#[tokio::test]
async fn the_payment_sandbox_refuses_settings_that_cannot_be_used() {
    for (variable, value) in [
        ("PAYMENT_SANDBOX_ADDR", "nonsense"),
        ("PAYMENT_SANDBOX_DATA", ""),
        ("DRAIN_TIMEOUT", "soon"),
        ("RUST_LOG", "infoo"),
        ("LOG_FORMAT", "xml"),
    ] {
        refuses(PAYMENT_SANDBOX, variable, value).await;
    }
    let output = run(PAYMENT_SANDBOX, &[("PAYMENT_SANDBOX_DATA", "/no/such/folder/file")]).await;
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("PAYMENT_SANDBOX_DATA") && said.contains("/no/such/folder/file"), "{said}");
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named_once() {
    for variable in ["NATS_CREDS", "NATS_TLS_CA", "NATS_TLS_CERT", "NATS_TLS_KEY"] {
        let output = run("waybill-gateway", &[(variable, NO_FILE)]).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(errors.matches(NO_FILE).count(), 1, "{errors}");
        assert_eq!(errors.matches("cannot be read").count(), 1, "{errors}");
    }
}

#[tokio::test]
async fn help_names_every_variable() {
    for (program, variables) in [
        (
            "waybill-gateway",
            &["GRPC_ADDR", "OPS_ADDR", "OPERATIONS_ADDR", "RATE_LIMIT", "NATS_URL", "RUST_LOG"][..],
        ),
        (
            "waybill-inventory",
            &["STOCK", "WORKER_POOL_SIZE", "MAX_ATTEMPTS", "ACK_WAIT", "NATS_URL", "LOG_FORMAT"],
        ),
        ("waybill-payment", &["PAYMENT_URL", "PAYMENT_TIMEOUT", "WORKER_POOL_SIZE"]),
        (PAYMENT_SANDBOX, &["PAYMENT_SANDBOX_ADDR", "PAYMENT_SANDBOX_DATA", "DRAIN_TIMEOUT", "RUST_LOG"]),
    ] {
        let output = Command::new(binary(program)).arg("--help").output().await.unwrap();
        let help = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success());
        for variable in variables {
            assert!(help.contains(variable), "{variable} not in {help}");
        }
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_by_its_setting() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::reserve(directory.path()).url();
    let free = "127.0.0.1:0";
    for (variable, other) in [("GRPC_ADDR", "OPS_ADDR"), ("OPS_ADDR", "GRPC_ADDR")] {
        let output =
            run("waybill-gateway", &[(variable, &taken), (other, free), ("NATS_URL", &broker)]).await;
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(variable) && said.contains(&taken), "{said}");
    }
}

#[tokio::test]
async fn a_log_that_goes_to_no_terminal_has_no_colours() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let output = run("waybill-gateway", &[("GRPC_ADDR", &taken), ("LOG_FORMAT", "text")]).await;
    assert!(!output.stdout.is_empty() && !output.stdout.contains(&b'\x1b'), "{output:?}");
}
