//! The HTTP client for token keys and the broker's monitoring ports.

use std::io;

use anyhow::Context;
use bytes::Bytes;
use http::{StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio_rustls::rustls::crypto::aws_lc_rs;

/// A client that trusts the system's certificate authorities and follows no redirects. Sets no deadline of its own.
#[derive(Debug)]
pub(crate) struct HttpClient {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    answer_bytes_max: usize,
}

impl HttpClient {
    /// Fails if the system's certificates cannot be read.
    pub(crate) fn new(answer_bytes_max: usize) -> io::Result<Self> {
        let connector =
            HttpsConnectorBuilder::new().with_provider_and_native_roots(aws_lc_rs::default_provider())?;
        let connector = connector.https_or_http().enable_http1().build();
        // Requests are too rare to keep connections.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Ok(Self { client, answer_bytes_max })
    }

    /// Gets `uri`. Any other status than 200 is an error.
    pub(crate) async fn get(&self, uri: Uri) -> anyhow::Result<Bytes> {
        let answer = self.client.get(uri).await?;
        let status = answer.status();
        anyhow::ensure!(status == StatusCode::OK, "answered {status}");
        let body = Limited::new(answer.into_body(), self.answer_bytes_max).collect().await;
        Ok(body.map_err(anyhow::Error::from_boxed).context("incomplete answer")?.to_bytes())
    }
}
