//! `waybill health` against servers that are healthy, are not, never answer, or do not exist.

use std::net::SocketAddr;
use std::process::Output;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic_health::ServingStatus;

use crate::stage::{output_of, stderr, stdout};

async fn health(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_waybill"));
    output_of(command.arg("health").args(args).env_remove("WAYBILL_HEALTH")).await
}

/// A gRPC server that is well, except for the service `payments`.
async fn grpc() -> SocketAddr {
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter.set_service_status("orders", ServingStatus::Serving).await;
    reporter.set_service_status("payments", ServingStatus::NotServing).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    addr
}

/// Answers every HTTP request with `status`.
async fn http(status: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let read = socket.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"GET /readyz HTTP/1.1\r\n"));
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    addr
}

#[tokio::test]
async fn over_grpc_only_what_serves_is_well() {
    let url = format!("http://{}", grpc().await);
    for (args, code, said) in [
        (vec![], 0, "SERVING\n"),
        (vec!["--service", "orders"], 0, "SERVING\n"),
        (vec!["--service", "payments"], 1, "NOT_SERVING"),
        (vec!["--service", "nobody"], 1, "NOT_FOUND"),
    ] {
        let output = health(&[&[url.as_str()], &args[..]].concat()).await;
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        let text = if code == 0 { stdout(&output) } else { stderr(&output) };
        assert!(text.contains(said), "{args:?}: {text}");
    }
}

#[tokio::test]
async fn over_http_only_200_is_well() {
    for (status, code) in [("200 OK", 0), ("503 Service Unavailable", 1), ("404 Not Found", 1)] {
        let output = health(&[&format!("http://{}/readyz", http(status).await)]).await;
        assert_eq!(output.status.code(), Some(code), "{status}: {}", stderr(&output));
        let said = if code == 0 { stdout(&output) } else { stderr(&output) };
        assert!(said.contains(status), "{said}");
    }
}

#[tokio::test]
async fn what_cannot_be_asked_is_not_well() {
    // Accepts connections, and never replies.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = silent.local_addr().unwrap();
    for url in [format!("http://{addr}"), format!("http://{addr}/readyz")] {
        let output = health(&[&url, "--timeout", "100ms"]).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("no answer within 100ms"), "{}", stderr(&output));
    }
    drop(silent);
    for url in [format!("http://{addr}"), format!("http://{addr}/readyz")] {
        let output = health(&[&url]).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("cannot reach"), "{}", stderr(&output));
    }
}

#[tokio::test]
async fn a_question_that_makes_no_sense_is_a_usage_error() {
    for args in [
        &["localhost:50051"][..],
        &["http://localhost", "--timeout", "soon"],
        &["http://localhost", "--timeout", "2d"],
        &["http://localhost:99999"],
        &["http://localhost:0/readyz"],
        &["https://localhost/readyz"],
        &["http://localhost/readyz", "--service", "orders"],
        &["http://localhost/readyz", "--ca", "ca.pem"],
    ] {
        assert_eq!(health(args).await.status.code(), Some(64));
    }
}
