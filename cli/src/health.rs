//! `waybill health`: one question whether a program is well, and an exit code. For images without a shell.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::time::timeout;
use tonic::transport::Uri;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::address::parse_address;
use crate::client;
use crate::console::{self, plain};
use crate::tls::Tls;
use crate::usage::{UsageError, parse_timeout};

/// Most that is read of an answer.
const BODY_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct HealthArgs {
    /// The address to check: with a path over HTTP, such as http://127.0.0.1:9464/readyz, where 200 is healthy;
    /// without one over gRPC (grpc.health.v1).
    #[arg(env = "WAYBILL_HEALTH", default_value = "http://127.0.0.1:50051", value_name = "URL",
          value_parser = parse_address)]
    url: Uri,
    /// The gRPC service to ask about, such as orders.v1.OrderService. Unset: the server as a whole.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    service: String,
    /// Deadline, 1ms-1d.
    #[arg(long, default_value = "2s", value_name = "TIME", value_parser = parse_timeout)]
    timeout: humantime::Duration,
    #[command(flatten)]
    tls: Tls,
}

/// Fails unless the answer is that all is well.
pub(crate) async fn run(args: HealthArgs) -> anyhow::Result<()> {
    let wait = Duration::from(args.timeout);
    let asked =
        async { if args.url.path() == "/" { over_grpc(&args).await } else { over_http(&args).await } };
    let answer = timeout(wait, asked)
        .await
        .with_context(|| format!("{}: no answer within {}", args.url, args.timeout))??;
    Ok(console::answer(&answer)?)
}

async fn over_grpc(args: &HealthArgs) -> anyhow::Result<String> {
    let endpoint = args.tls.apply(client::endpoint(args.url.clone()))?;
    let channel = endpoint.connect().await.with_context(|| format!("cannot reach {}", args.url))?;
    let request = HealthCheckRequest { service: args.service.clone() };
    let status = HealthClient::new(channel).check(request).await?.into_inner().status();
    match status {
        ServingStatus::Serving => Ok(status.as_str_name().to_owned()),
        ServingStatus::NotServing | ServingStatus::Unknown | ServingStatus::ServiceUnknown => {
            bail!("{}: {}", args.url, status.as_str_name())
        }
    }
}

async fn over_http(args: &HealthArgs) -> anyhow::Result<String> {
    if args.url.scheme_str() != Some("http") || !args.service.is_empty() {
        return Err(UsageError(format!(
            "{}: a check over HTTP supports neither TLS nor --service",
            args.url
        ))
        .into());
    }
    args.tls.check_unused(&args.url)?;
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let answer = client.get(args.url.clone()).await.with_context(|| format!("cannot reach {}", args.url))?;
    let status = answer.status();
    if !status.is_success() {
        let body = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await;
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        let causes = String::from_utf8_lossy(&body).trim_end().replace('\n', "; ");
        bail!("{}: {status}: {}", args.url, plain(&causes));
    }
    Ok(status.to_string())
}
