//! The wire of one program: a proxy before the broker and the payment service that reads each message, and kills the
//! program at a chosen one.
//!
//! A program that dies loses its memory and keeps what it has sent. So a crash matters only before or after a message
//! that changes something, and all of them are on its wire.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backbone::log::lifecycle::is_called_off;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use prost::Message;
use proto::payments::v1::CaptureRequest;
use proto::steps::v1::ActRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::select;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::PATIENCE;

/// A message of a step's consumer, on its way to the step.
pub const DELIVERY: &str = "delivery";

/// When the program dies, seen from its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before the message is on its way: the peer never sees it.
    Unsent,
    /// When the peer has dealt with the message: the program never sees the answer.
    Unanswered,
}

/// The wire of one program. Cut when dropped.
#[derive(Debug)]
pub struct Wire {
    broker: SocketAddr,
    service: Option<SocketAddr>,
    state: Arc<Mutex<State>>,
    _carriers: JoinSet<()>,
}

/// A message that the wire keeps back, and all that comes after it.
#[derive(Debug)]
pub struct Held {
    reached: oneshot::Receiver<()>,
    go_on: oneshot::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Names of what the program has sent to change something, each once.
    writes: Vec<String>,
    trip: Option<Trip>,
    sprung: Option<oneshot::Receiver<()>>,
    hold: Option<Hold>,
}

#[derive(Debug)]
struct Trip {
    name: String,
    about: String,
    moment: Moment,
    victim: Pid,
    sprung: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Hold {
    name: String,
    reached: oneshot::Sender<()>,
    go_on: oneshot::Receiver<()>,
}

impl Wire {
    /// Lays a wire to the broker, and to a payment service if there is one.
    pub(crate) async fn lay(broker: SocketAddr, service: Option<SocketAddr>) -> Self {
        let state = Arc::new(Mutex::default());
        let mut carriers = JoinSet::new();
        let broker = carry(&mut carriers, &state, broker, nats).await;
        let service = match service {
            Some(service) => Some(carry(&mut carriers, &state, service, http2).await),
            None => None,
        };
        Self { broker, service, state, _carriers: carriers }
    }

    /// Where the program finds the broker.
    pub(crate) fn broker(&self) -> SocketAddr {
        self.broker
    }

    /// Where the program finds the payment service.
    pub(crate) fn service_url(&self) -> Option<String> {
        Some(format!("http://{}", self.service?))
    }

    /// From now on it is noted what the program sends to change something.
    pub fn note(&self) {
        self.state().writes.clear();
    }

    /// The recorded messages, each once, in the order in which they were first sent.
    pub fn writes(&self) -> Vec<String> {
        self.state().writes.clone()
    }

    /// Kills the process at the next message of this name.
    pub fn trip(&self, name: &str, moment: Moment, victim: u32) {
        self.trip_about(name, "", moment, victim);
    }

    /// Kills the process at the next message of this name on a subject that contains `about`.
    pub fn trip_about(&self, name: &str, about: &str, moment: Moment, victim: u32) {
        let (sprung, tripped) = oneshot::channel();
        let victim = Pid::from_raw(i32::try_from(victim).expect("pid"));
        let mut state = self.state();
        let (name, about) = (name.to_owned(), about.to_owned());
        state.trip = Some(Trip { name, about, moment, victim, sprung });
        state.sprung = Some(tripped);
    }

    /// Stops killing the program.
    pub fn disarm(&self) {
        self.state().trip = None;
    }

    /// Waits until the process is dead.
    pub async fn tripped(&self) {
        let sprung = self.state().sprung.take().expect("a trip");
        timeout(PATIENCE, sprung).await.expect("a message that trips").expect("a wire");
    }

    /// Keeps back the next message of this name.
    pub fn hold(&self, name: &str) -> Held {
        let (reach, reached) = oneshot::channel();
        let (release, go_on) = oneshot::channel();
        self.state().hold = Some(Hold { name: name.to_owned(), reached: reach, go_on });
        Held { reached, go_on: release }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Held {
    /// Waits until the message has arrived.
    pub async fn reached(&mut self) {
        timeout(PATIENCE, &mut self.reached).await.expect("a message to hold").expect("a wire");
    }

    /// Lets it pass.
    pub fn release(self) {
        self.go_on.send(()).expect("a wire");
    }
}

impl Trip {
    /// When this returns, nothing of the process runs any more. It is left to be reaped.
    fn spring(self) {
        kill(self.victim, Signal::SIGKILL).expect("kill");
        waitid(Id::Pid(self.victim), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).expect("death");
        // The test has failed and no longer waits.
        self.sprung.send(()).ok();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One message of a protocol.
struct Frame {
    bytes: Vec<u8>,
    /// What it does, unless it changes nothing.
    name: Option<String>,
    /// Of a message by the broker.
    subject: String,
    /// What a message and the answer to it have in common.
    id: Option<String>,
}

/// Takes the first message from the received bytes, if it is complete.
type Parse = fn(End, &mut Vec<u8>) -> Option<Frame>;

/// Where bytes come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Program,
    Peer,
}

/// Carries connections to `peer`, and says where it takes them.
async fn carry(
    carriers: &mut JoinSet<()>,
    state: &Arc<Mutex<State>>,
    peer: SocketAddr,
    parse: Parse,
) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("free port");
    let address = listener.local_addr().expect("address");
    let state = state.clone();
    carriers.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((program, _)) = listener.accept().await {
            // A peer that is down looks to the program like a closed connection.
            let Ok(peer) = TcpStream::connect(peer).await else { continue };
            let state = state.clone();
            connections.spawn(async move { drop(connect(&state, program, peer, parse).await) });
        }
    });
    address
}

/// Carries one connection until either end is closed, or the program is dead.
async fn connect(
    state: &Mutex<State>,
    program: TcpStream,
    peer: TcpStream,
    parse: Parse,
) -> std::io::Result<()> {
    program.set_nodelay(true)?;
    peer.set_nodelay(true)?;
    let (mut from_program, mut to_program) = split(program, End::Program, parse);
    let (mut from_peer, mut to_peer) = split(peer, End::Peer, parse);
    // The trip that waits for its reply. Until then no further message of the program passes.
    let mut waiting: Option<(String, Trip)> = None;
    loop {
        select! {
            frame = from_program.next(), if waiting.is_none() => {
                let Some(frame) = frame else { return Ok(()) };
                let trip = meet(state, &frame).await;
                if let Some(trip) = trip {
                    if trip.moment == Moment::Unsent {
                        trip.spring();
                        return Ok(());
                    }
                    to_peer.write_all(&frame.bytes).await?;
                    if frame.id.is_none() {
                        // The broker replies in order, so its PONG shows that the message is processed.
                        to_peer.write_all(PING).await?;
                    }
                    waiting = Some((frame.id.unwrap_or_else(|| PONG.to_owned()), trip));
                } else {
                    to_peer.write_all(&frame.bytes).await?;
                }
            }
            frame = from_peer.next() => {
                let Some(frame) = frame else { return Ok(()) };
                let answered = waiting.take_if(|(id, _)| frame.id.as_ref() == Some(id)).map(|(_, trip)| trip);
                let trip = match answered {
                    Some(trip) => Some(trip),
                    None => meet(state, &frame).await,
                };
                if let Some(trip) = trip {
                    trip.spring();
                    return Ok(());
                }
                to_program.write_all(&frame.bytes).await?;
            }
        }
    }
}

/// Notes a message, keeps it back if it is to be held, and says whether it is one to die of.
async fn meet(state: &Mutex<State>, frame: &Frame) -> Option<Trip> {
    let name = frame.name.as_ref()?;
    let hold = lock(state).hold.take_if(|hold| hold.name == *name);
    if let Some(Hold { reached, go_on, .. }) = hold {
        reached.send(()).ok();
        // Fails if the test has ended without releasing it.
        go_on.await.ok();
    }
    let mut state = lock(state);
    if name != DELIVERY && !state.writes.iter().any(|noted| noted == name) {
        state.writes.push(name.clone());
    }
    state.trip.take_if(|trip| trip.name == *name && frame.subject.contains(&trip.about))
}

/// The messages that come by a connection.
struct Frames {
    read: OwnedReadHalf,
    end: End,
    buffer: Vec<u8>,
    parse: Parse,
}

fn split(connection: TcpStream, end: End, parse: Parse) -> (Frames, OwnedWriteHalf) {
    let (read, write) = connection.into_split();
    (Frames { read, end, buffer: Vec::new(), parse }, write)
}

impl Frames {
    /// The next message, unless the connection has ended. Cancel-safe.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = (self.parse)(self.end, &mut self.buffer) {
                return Some(frame);
            }
            let bytes = self.read.read_buf(&mut self.buffer).await.ok()?;
            (bytes > 0).then_some(())?;
        }
    }
}

const PING: &[u8] = b"PING\r\n";
const PONG: &str = "PONG";

/// The client protocol of NATS: a line each, and after some of them as many bytes as they say.
fn nats(from: End, buffer: &mut Vec<u8>) -> Option<Frame> {
    let line_bytes = buffer.windows(2).position(|end| end == b"\r\n")? + 2;
    let line = String::from_utf8_lossy(&buffer[..line_bytes]).into_owned();
    let words: Vec<_> = line.split_ascii_whitespace().collect();
    let number = |word: &str| word.parse::<usize>().expect("a length");
    let (subject, reply, header_bytes, content_bytes) = match words[..] {
        ["PUB", subject, bytes] => (subject, None, 0, number(bytes)),
        ["PUB", subject, reply, bytes] => (subject, Some(reply), 0, number(bytes)),
        ["HPUB", subject, header, bytes] => (subject, None, number(header), number(bytes)),
        ["HPUB", subject, reply, header, bytes] => (subject, Some(reply), number(header), number(bytes)),
        ["MSG", subject, _, bytes] => (subject, None, 0, number(bytes)),
        ["MSG", subject, _, reply, bytes] => (subject, Some(reply), 0, number(bytes)),
        ["HMSG", subject, _, header, bytes] => (subject, None, number(header), number(bytes)),
        ["HMSG", subject, _, reply, header, bytes] => (subject, Some(reply), number(header), number(bytes)),
        _ => {
            let id = (words == [PONG]).then(|| PONG.to_owned());
            let bytes = buffer.drain(..line_bytes).collect();
            return Some(Frame { bytes, name: None, subject: String::new(), id });
        }
    };
    let whole_bytes = line_bytes + content_bytes + 2;
    let payload = buffer.get(line_bytes + header_bytes..whole_bytes)?;
    let (name, id) = match from {
        End::Program => (write_name(subject, payload), reply.map(str::to_owned)),
        End::Peer => {
            let delivered = reply.is_some_and(|reply| reply.starts_with("$JS.ACK."));
            // Replies come on the subject that the request named.
            (delivered.then(|| DELIVERY.to_owned()), Some(subject.to_owned()))
        }
    };
    let bytes = buffer.drain(..whole_bytes).collect();
    Some(Frame { bytes, name, subject: subject.to_owned(), id })
}

/// What a message to the broker changes, if anything.
fn write_name(subject: &str, payload: &[u8]) -> Option<String> {
    let name = match subject.split('.').collect::<Vec<_>>()[..] {
        ["ORDER", _, _, _, event, _] | ["ORDER", event] => format!("append {event}"),
        ["$KV", "INVENTORY", record, ..] => format!("write {record}"),
        ["$KV", "EFFECTS", ..] => "write effect".to_owned(),
        ["DEFERRAL", "timer", ..] => "set timer".to_owned(),
        // The carry position is only progress: with an older record more is read again.
        ["DEAD_LETTER", "carrier"] => return None,
        ["DEAD_LETTER", state, ..] => format!("dead letter {state}"),
        ["$JS", "API", "STREAM", "MSG", "DELETE", "DEAD_LETTERS"] => "unlist dead letter".to_owned(),
        ["$JS", "API", "STREAM", "MSG", "DELETE", "DEFERRALS"] => "delete due message".to_owned(),
        ["$JS", "API", "CONSUMER", "DELETE", ..] => "delete consumer".to_owned(),
        // An empty request only tests the permission.
        ["$JS", "API", "CONSUMER", "CREATE", ..] if !payload.is_empty() => "make consumer".to_owned(),
        ["$JS", "ACK", ..] if payload.starts_with(b"+ACK") => "ack".to_owned(),
        ["$JS", "ACK", ..] if payload.starts_with(b"-NAK") => "nak".to_owned(),
        ["$JS", "ACK", ..] if payload.starts_with(b"+TERM") => "term".to_owned(),
        // Acks in progress, reads and pull requests change nothing.
        ["$JS", "ACK", ..] | ["$JS", "API", ..] => return None,
        _ => format!("publish {subject}"),
    };
    Some(name)
}

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HTTP2_HEADER_BYTES: usize = 9;
/// Before each message of gRPC.
const GRPC_PREFIX_BYTES: usize = 5;

/// HTTP/2 (RFC 9113): frames with their length before them. A request is its DATA up to END_STREAM, without which no
/// service answers; an answer begins with HEADERS.
fn http2(from: End, buffer: &mut Vec<u8>) -> Option<Frame> {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const END_STREAM: u8 = 1;
    if buffer.starts_with(HTTP2_PREFACE) {
        let bytes = buffer.drain(..HTTP2_PREFACE.len()).collect();
        return Some(Frame { bytes, name: None, subject: String::new(), id: None });
    }
    let (kind, mut flags, stream, mut whole_bytes) = http2_header(buffer)?;
    let content = buffer.get(HTTP2_HEADER_BYTES..whole_bytes)?;
    let request = content.get(GRPC_PREFIX_BYTES..).filter(|_| from == End::Program && kind == DATA);
    let name = request.and_then(call_name);
    while name.is_some() && flags & END_STREAM == 0 {
        let (_, next_flags, next_stream, bytes) = http2_header(buffer.get(whole_bytes..)?)?;
        whole_bytes += bytes;
        flags = if next_stream == stream { next_flags } else { 0 };
    }
    let id = (name.is_some() || kind == HEADERS).then(|| format!("stream {stream}"));
    let bytes = buffer.get(..whole_bytes)?.to_owned();
    buffer.drain(..whole_bytes);
    Some(Frame { bytes, name, subject: String::new(), id })
}

/// Kind, flags and stream of a frame, and its length with this header.
fn http2_header(bytes: &[u8]) -> Option<(u8, u8, u32, usize)> {
    let [a, b, c, kind, flags, stream @ ..] = *bytes.first_chunk::<HTTP2_HEADER_BYTES>()?;
    let content_bytes = u32::from_be_bytes([0, a, b, c]) as usize;
    Some((kind, flags, u32::from_be_bytes(stream), HTTP2_HEADER_BYTES + content_bytes))
}

/// Which call a request is. Those of steps have an attempt where a capture has its amount. A refund has a key as a capture has,
/// and no more.
fn call_name(request: &[u8]) -> Option<String> {
    if let Some(order) = ActRequest::decode(request).ok().and_then(|request| request.order) {
        let call = if is_called_off(&order) { "call compensate" } else { "call act" };
        return Some(call.to_owned());
    }
    let request =
        CaptureRequest::decode(request).ok().filter(|request| !request.idempotency_key.is_empty())?;
    let call = if request.amount.is_some() { "call capture" } else { "call refund" };
    Some(call.to_owned())
}
