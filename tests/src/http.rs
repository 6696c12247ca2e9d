//! HTTP, as a probe or a scrape uses it.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A plain HTTP GET: status and body, if there is an answer.
pub async fn http_get(addr: &str, path: &str) -> Option<(u16, String)> {
    let mut connection = TcpStream::connect(addr).await.ok()?;
    // HTTP/1.0, so that the response is not chunked.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n");
    connection.write_all(request.as_bytes()).await.ok()?;
    let mut response = String::new();
    connection.read_to_string(&mut response).await.ok()?;
    let (head, body) = response.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}
