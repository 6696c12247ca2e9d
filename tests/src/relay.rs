//! A relay between a client and the broker, which can break what no other tool can.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// Passes on what a client of the broker sends, message by message, and all that the broker answers.
#[derive(Debug)]
pub struct Relay {
    addr: SocketAddr,
    lines: Arc<Mutex<Lines>>,
    task: AbortHandle,
}

#[derive(Debug, Default)]
struct Lines {
    /// Subscriptions by their inboxes, as the client made them.
    subscriptions: Vec<(String, String)>,
    /// The inbox of the pull requests.
    asking: Option<String>,
    /// The messages to send to the broker in the client's name.
    forged: Vec<String>,
}

impl Relay {
    /// Starts one for the broker at this address.
    pub async fn start(broker: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let addr = listener.local_addr().expect("address");
        let lines = Arc::<Mutex<Lines>>::default();
        let shared = lines.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let broker = TcpStream::connect(broker).await.expect("broker");
                tokio::spawn(pass_on(client, broker, shared.clone()));
            }
        });
        Self { addr, lines, task: task.abort_handle() }
    }

    /// Where the client finds the broker.
    pub fn address(&self) -> SocketAddr {
        self.addr
    }

    /// Makes the broker forget the subscription for the messages of the client's consumer. The client does not learn of
    /// it, and the connection stays up.
    pub fn lose_subscription(&self) {
        let mut lines = self.lines.lock().expect("lines");
        let asking = lines.asking.clone().expect("a request for messages");
        let (_, sid) =
            lines.subscriptions.iter().rev().find(|(inbox, _)| *inbox == asking).expect("its subscription");
        let unsubscribe = format!("UNSUB {sid}\r\n");
        lines.forged.push(unsubscribe);
    }

    /// Whether all messages were sent to the broker.
    pub fn is_done(&self) -> bool {
        self.lines.lock().expect("lines").forged.is_empty()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass_on(client: TcpStream, broker: TcpStream, lines: Arc<Mutex<Lines>>) {
    let (from_client, mut to_client) = client.into_split();
    let (mut from_broker, mut to_broker) = broker.into_split();
    let answers = tokio::spawn(async move { copy(&mut from_broker, &mut to_client).await });
    let mut from_client = BufReader::new(from_client);
    let mut line = String::new();
    // Ends when either side closes.
    while from_client.read_line(&mut line).await.is_ok_and(|bytes| bytes > 0) {
        let payload_bytes = lines.lock().expect("lines").see(&line);
        let mut message = std::mem::take(&mut line).into_bytes();
        if let Some(bytes) = payload_bytes {
            let payload_at = message.len();
            message.resize(payload_at + bytes + "\r\n".len(), 0);
            if from_client.read_exact(&mut message[payload_at..]).await.is_err() {
                break;
            }
        }
        for forged in std::mem::take(&mut lines.lock().expect("lines").forged) {
            message.extend_from_slice(forged.as_bytes());
        }
        if to_broker.write_all(&message).await.is_err() {
            break;
        }
    }
    answers.abort();
}

impl Lines {
    /// Learns from a line that the client has sent, and tells how many bytes of payload follow it.
    fn see(&mut self, line: &str) -> Option<usize> {
        let words: Vec<_> = line.split_whitespace().collect();
        let inbox = |subject: &str| Some(subject.rsplit_once('.')?.0.to_owned());
        match words[..] {
            ["SUB", subject, sid] => {
                self.subscriptions.push((inbox(subject)?, sid.to_owned()));
                None
            }
            ["PUB" | "HPUB", subject, .., bytes] => {
                if subject.starts_with("$JS.API.CONSUMER.MSG.NEXT.") {
                    self.asking = inbox(words[2]);
                }
                bytes.parse().ok()
            }
            _ => None,
        }
    }
}
