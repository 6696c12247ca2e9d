//! HTTP/2 as it is on the wire (RFC 9113), for clients that break its rules: a frame is sent because it was asked
//! for, and none by itself.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};

use harness::PATIENCE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::select;
use tokio::time::timeout;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
/// A type that no RFC knows.
pub(crate) const UNKNOWN: u8 = 0xf7;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// The setting of how much a stream may send before it is asked for more.
const INITIAL_WINDOW_SIZE: u16 = 4;
const FRAME_HEAD_BYTES: usize = 9;

/// Where abuse comes from: not the address of the other callers, who have a quota of their own.
pub(crate) const ABUSER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// One frame.
pub(crate) fn frame(kind: u8, flags: u8, stream_id: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = frame_head(payload.len(), kind, flags, stream_id);
    frame.extend(payload);
    frame
}

/// The head of a frame that says that so many bytes follow.
pub(crate) fn frame_head(length: usize, kind: u8, flags: u8, stream_id: u32) -> Vec<u8> {
    let mut head = u32::try_from(length).unwrap().to_be_bytes()[1..].to_vec();
    head.extend([kind, flags]);
    head.extend(stream_id.to_be_bytes());
    head
}

/// The headers of a gRPC call, packed (RFC 7541) without compression.
pub(crate) fn call_headers(method: &str) -> Vec<u8> {
    call_headers_of(&format!("/orders.v1.OrderService/{method}"))
}

pub(crate) fn call_headers_of(path: &str) -> Vec<u8> {
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "gateway"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    headers.iter().flat_map(|(name, value)| header(name, value)).collect()
}

/// One header, literal and not kept.
pub(crate) fn header(name: &str, value: &str) -> Vec<u8> {
    let mut packed = vec![0];
    text(&mut packed, name);
    text(&mut packed, value);
    packed
}

/// One header, literal and kept in the table, where it is then the first: [`KEPT`] repeats it.
pub(crate) fn kept_header(name: &str, value: &str) -> Vec<u8> {
    let mut packed = vec![0x40];
    text(&mut packed, name);
    text(&mut packed, value);
    packed
}

/// The header that was kept last, in one byte.
pub(crate) const KEPT: u8 = 0x80 | 62;

/// A text behind its length, whose first byte has room for 126.
fn text(packed: &mut Vec<u8>, text: &str) {
    match text.len() {
        short @ ..127 => packed.push(u8::try_from(short).unwrap()),
        long => {
            packed.push(127);
            let mut rest = long - 127;
            while rest >= 128 {
                packed.push(0x80 | u8::try_from(rest % 128).unwrap());
                rest /= 128;
            }
            packed.push(u8::try_from(rest).unwrap());
        }
    }
    packed.extend(text.as_bytes());
}

/// A message as gRPC frames it.
pub(crate) fn grpc_message(message: &[u8]) -> Vec<u8> {
    let mut framed = vec![0];
    framed.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    framed.extend(message);
    framed
}

/// The ids of a client's streams, from the first on.
pub(crate) fn stream_ids() -> impl Iterator<Item = u32> {
    (1..).step_by(2)
}

/// A frame that the gateway has sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream_id: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The error code of a GOAWAY.
    pub(crate) fn goaway_code(&self) -> Option<u32> {
        let code = self.payload.get(4..8)?.try_into().ok()?;
        (self.kind == GOAWAY).then(|| u32::from_be_bytes(code))
    }

    /// The value of a setting in a SETTINGS frame.
    pub(crate) fn setting(&self, id: u16) -> Option<u32> {
        let mut settings = self.payload.chunks_exact(6);
        let value = settings.find(|setting| setting[..2] == id.to_be_bytes())?[2..].try_into().ok()?;
        Some(u32::from_be_bytes(value))
    }
}

/// A connection whose client does nothing that it is not told to.
#[derive(Debug)]
pub(crate) struct Raw {
    stream: TcpStream,
}

impl Raw {
    /// Connects, and says nothing.
    pub(crate) async fn connect(addr: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((ABUSER, 0))).unwrap();
        let stream = socket.connect(addr.parse().unwrap()).await.expect("connection");
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }

    /// Connects, and begins as every client does.
    pub(crate) async fn greet(addr: &str) -> Self {
        Self::greet_with(addr, &[]).await
    }

    /// The same, and no stream may send the client more than `window` bytes.
    pub(crate) async fn greet_with_window(addr: &str, window: u32) -> Self {
        let mut setting = INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
        setting.extend(window.to_be_bytes());
        Self::greet_with(addr, &setting).await
    }

    async fn greet_with(addr: &str, settings: &[u8]) -> Self {
        let mut raw = Self::connect(addr).await;
        let mut greeting = PREFACE.to_vec();
        greeting.extend(frame(SETTINGS, 0, 0, settings));
        greeting.extend(frame(SETTINGS, ACK, 0, &[]));
        assert!(raw.write(&greeting).await);
        raw
    }

    /// Sends the bytes and reads nothing. Says whether the gateway still took them.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// Sends the bytes, and reads and forgets what comes meanwhile. Says whether the gateway still took them.
    pub(crate) async fn flood(&mut self, bytes: &[u8]) -> bool {
        let (mut reader, mut writer) = self.stream.split();
        let mut writing = std::pin::pin!(writer.write_all(bytes));
        let mut forgotten = vec![0; 64 * 1024];
        loop {
            select! {
                written = &mut writing => return written.is_ok(),
                read = reader.read(&mut forgotten) => {
                    if !matches!(read, Ok(1..)) {
                        return false;
                    }
                }
            }
        }
    }

    /// Begins a call at a path, on the first stream.
    pub(crate) async fn begin(&mut self, path: &str) {
        assert!(self.write(&frame(HEADERS, END_HEADERS, 1, &call_headers_of(path))).await);
    }

    /// Says that nothing more will come, and waits until the gateway hangs up.
    pub(crate) async fn finish(&mut self) {
        // It may have hung up already.
        self.stream.shutdown().await.ok();
        self.ended().await;
    }

    /// Waits until the gateway hangs up.
    pub(crate) async fn ended(&mut self) {
        let mut forgotten = vec![0; 64 * 1024];
        let ending = async { while matches!(self.stream.read(&mut forgotten).await, Ok(1..)) {} };
        timeout(PATIENCE, ending).await.expect("an end of the connection");
    }

    /// Waits until the gateway has read all that was sent.
    pub(crate) async fn all_read(&mut self) {
        assert!(self.write(&frame(PING, 0, 0, b"all read")).await);
        while self.next().await.kind != PING {}
    }

    /// Waits until so many streams have an answer, or the begin of one.
    pub(crate) async fn answers(&mut self, count: usize) {
        let mut answered = HashSet::new();
        while answered.len() < count {
            let frame = self.next().await;
            if frame.kind == HEADERS {
                answered.insert(frame.stream_id);
            }
        }
    }

    /// The next frame.
    async fn next(&mut self) -> Frame {
        timeout(PATIENCE, self.read()).await.expect("a frame in time").expect("an open connection")
    }

    /// The next frame, whatever it is; `None` when the gateway has hung up.
    pub(crate) async fn next_silently(&mut self) -> Option<Frame> {
        timeout(PATIENCE, self.read()).await.expect("a frame in time").ok()
    }

    /// The next frame but pings, which are answered as every client has to; `None` when the gateway has hung up.
    pub(crate) async fn next_of_client(&mut self) -> Option<Frame> {
        loop {
            let frame = timeout(PATIENCE, self.read()).await.expect("a frame in time").ok()?;
            if frame.kind != PING {
                return Some(frame);
            }
            if frame.flags & ACK == 0 {
                self.write(&self::frame(PING, ACK, 0, &frame.payload)).await;
            }
        }
    }

    async fn read(&mut self) -> std::io::Result<Frame> {
        let mut head = [0; FRAME_HEAD_BYTES];
        self.stream.read_exact(&mut head).await?;
        let [high, middle, low, kind, flags, id @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
        self.stream.read_exact(&mut payload).await?;
        Ok(Frame { kind, flags, stream_id: u32::from_be_bytes(id), payload })
    }
}
