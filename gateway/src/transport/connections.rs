//! Connections, before there is a call on them: how many there may be, their TLS, and how long one may say
//! nothing.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::stream::unfold;
use futures::{Stream, StreamExt};
use http::Request;
use program::telemetry::Seldom;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::select;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;
use tonic::body::Body;
use tracing::{debug, warn};

use crate::gate::Admit;
use crate::transport::tls::{self, Tls};

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client then has for its first bytes.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// The client connection preface (RFC 9113, section 3.4): 24 bytes, and a SETTINGS frame of at least 9.
const PREFACE_BYTES: usize = 33;
/// How HTTP/2 begins (RFC 9113, section 3.4).
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a stranger keeps its place when others wait for one.
const STRANGER_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is then looked for strangers.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after a connection could not be accepted; for want of file descriptors, as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many connections there may be at a time, those in their TLS handshake included.
#[derive(Debug)]
pub(crate) struct Limit {
    connections_max: usize,
    strangers: Option<Strangers>,
}

impl Limit {
    /// Those that are too many wait in the system's queue until another one ends.
    pub(crate) fn of(connections_max: usize) -> Self {
        Self { connections_max, strangers: None }
    }

    /// Those that are too many wait at most until a stranger's time is over: a client that [`Acquaint`] has not
    /// let pass.
    pub(crate) fn of_acquaintances(connections_max: usize) -> Self {
        Self { connections_max, strangers: Some(Strangers::default()) }
    }
}

/// The connections that come in at `listener`. Those that have said nothing yet end when the drain begins.
pub(crate) fn accept(
    listener: TcpListener,
    limit: Limit,
    tls: Option<Tls>,
    draining: CancellationToken,
) -> impl Stream<Item = Connection> {
    let accepted = accept_tcp(listener, limit, draining.clone());
    match tls {
        None => accepted.map(move |accepted| accepted.in_the_clear(draining.clone())).left_stream(),
        Some(tls) => accepted
            .map(move |accepted| {
                // A task of its own: others are accepted, and make their handshakes, meanwhile.
                let secured = accepted.secured(tls.clone(), draining.clone());
                AbortOnDropHandle::new(tokio::spawn(secured))
            })
            // The places are the bound.
            .buffer_unordered(usize::MAX)
            .filter_map(async |secured| secured.ok().flatten())
            .right_stream(),
    }
}

fn accept_tcp(
    listener: TcpListener,
    limit: Limit,
    draining: CancellationToken,
) -> impl Stream<Item = Accepted> {
    static FULL: Seldom = Seldom::new();
    static FAILED: Seldom = Seldom::new();
    let Limit { connections_max, strangers } = limit;
    let places = Arc::new(Semaphore::new(connections_max));
    unfold((listener, places, strangers, draining), async |(listener, places, strangers, draining)| {
        if places.available_permits() == 0
            && let Some(left_out) = FULL.may_tell()
        {
            warn!(left_out, "as many connections as there may be; others have to wait");
        }
        let place = loop {
            select! {
                // The semaphore is never closed.
                place = places.clone().acquire_owned() => break place.ok()?,
                () = sleep(LOOK_INTERVAL), if strangers.is_some() => {
                    strangers.iter().for_each(Strangers::send_one_away);
                }
            }
        };
        let stream = loop {
            match listener.accept().await {
                Ok((stream, _)) => break stream,
                Err(error) => {
                    if let Some(left_out) = FAILED.may_tell() {
                        warn!(left_out, %error, "connection not accepted");
                    }
                    select! {
                        () = sleep(ACCEPT_PAUSE) => {}
                        () = draining.cancelled() => return None,
                    }
                }
            }
        };
        // Answers are small: they must not wait for more to fill a packet.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "connection keeps its delay");
        }
        let standing = strangers.as_ref().map(Strangers::welcome);
        Some((Accepted { stream, place, standing }, (listener, places, strangers, draining)))
    })
}

/// Connections on which nobody has shown a good credential yet, and others, the oldest first.
#[derive(Clone, Debug, Default)]
struct Strangers(Arc<Mutex<Vec<Weak<Standing>>>>);

/// Whether somebody has shown a good credential on a connection.
#[derive(Debug)]
struct Standing {
    since: Instant,
    is_known: AtomicBool,
    leave: CancellationToken,
}

impl Strangers {
    fn welcome(&self) -> Arc<Standing> {
        let (is_known, leave) = (AtomicBool::new(false), CancellationToken::new());
        let standing = Arc::new(Standing { since: Instant::now(), is_known, leave });
        // Nothing panics while it is held, so poison would mean nothing.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that are left are as many as there are places.
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(&standing));
        standing
    }

    fn send_one_away(&self) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let stranger = all.iter().filter_map(Weak::upgrade).find(|other| {
            let is_known = other.is_known.load(Ordering::Relaxed) || other.leave.is_cancelled();
            !is_known && other.since.elapsed() >= STRANGER_PATIENCE
        });
        if let Some(stranger) = stranger {
            stranger.leave.cancel();
        }
    }
}

/// Behind authentication: whoever gets as far keeps the connection.
#[derive(Clone, Debug)]
pub(crate) struct Acquaint;

impl Admit for Acquaint {
    fn admit(&self, request: &mut Request<Body>) -> Result<(), Status> {
        if let Some(standing) = request.extensions().get::<Peer>().and_then(|peer| peer.standing.as_ref()) {
            standing.is_known.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// A connection on which nothing was said yet.
struct Accepted {
    stream: TcpStream,
    place: OwnedSemaphorePermit,
    standing: Option<Arc<Standing>>,
}

impl Accepted {
    fn in_the_clear(self, draining: CancellationToken) -> Connection {
        let peer = Peer { addr: self.addr(), certificate_names: None, standing: self.standing };
        Connection::new(Box::new(self.stream), peer, self.place, draining)
    }

    /// The connection after its TLS handshake, if that comes about in time.
    async fn secured(self, tls: Tls, draining: CancellationToken) -> Option<Connection> {
        let addr = self.addr();
        let handshake = timeout(HANDSHAKE_TIMEOUT, tls.handshake(self.stream)).await;
        let stream = match handshake.map_err(io::Error::from).flatten() {
            Ok(stream) => stream,
            Err(error) => {
                debug!(?addr, %error, "no TLS handshake");
                return None;
            }
        };
        let (_, session) = stream.get_ref();
        let certificate = session.peer_certificates().and_then(<[_]>::first);
        let certificate_names = certificate.map(|certificate| tls::names(certificate).into());
        let peer = Peer { addr, certificate_names, standing: self.standing };
        Some(Connection::new(Box::new(stream), peer, self.place, draining))
    }

    /// `None` of a connection that is gone already.
    fn addr(&self) -> Option<IpAddr> {
        self.stream.peer_addr().ok().map(|addr| addr.ip())
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// `None` of a connection that is gone already.
    pub(crate) addr: Option<IpAddr>,
    certificate_names: Option<Arc<[String]>>,
    /// Where strangers have to leave when there are too many.
    standing: Option<Arc<Standing>>,
}

impl Peer {
    /// What the client's certificate says of it, if it has shown one.
    pub(crate) fn certificate_names(&self) -> Option<&[String]> {
        self.certificate_names.as_deref()
    }
}

/// With or without TLS.
trait Io: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug> Io for T {}

/// A connection that ends when its client is silent from the start.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Box<dyn Io>,
    peer: Peer,
    /// Until it is known that the client speaks HTTP/2, and for ever if it speaks an older one.
    opening: Option<Opening>,
    sent_away: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    _place: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Opening {
    missing_bytes: usize,
    /// Whether what has come so far is how HTTP/2 begins.
    is_http2: bool,
    head: Head,
    timeout: Pin<Box<Sleep>>,
    draining: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// The head of a request of HTTP/1, as far as it has come.
#[derive(Debug, Default)]
struct Head {
    /// How much of the empty line at its end.
    end_bytes: usize,
    is_answered: bool,
}

impl Connection {
    fn new(
        stream: Box<dyn Io>,
        peer: Peer,
        place: OwnedSemaphorePermit,
        draining: CancellationToken,
    ) -> Self {
        let opening = Opening {
            missing_bytes: PREFACE_BYTES,
            is_http2: true,
            head: Head::default(),
            timeout: Box::pin(sleep(PREFACE_TIMEOUT)),
            draining: Box::pin(draining.cancelled_owned()),
        };
        let sent_away =
            peer.standing.as_ref().map(|standing| Box::pin(standing.leave.clone().cancelled_owned()));
        Self { stream, peer, opening: Some(opening), sent_away, _place: place }
    }

    /// Who is at the other end, for each call that comes on it.
    pub(crate) fn peer(&self) -> Peer {
        self.peer.clone()
    }

    fn answers(&mut self) {
        if let Some(opening) = &mut self.opening {
            opening.head.is_answered = true;
        }
    }

    /// Whether there is nothing more to wait for.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(sent_away) = &mut self.sent_away
            && sent_away.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(());
        }
        self.opening.as_mut().map_or(Poll::Pending, |opening| opening.poll_over(cx))
    }
}

impl Opening {
    fn hear(&mut self, bytes: &[u8]) {
        let heard = PREFACE_BYTES - self.missing_bytes;
        let expected = HTTP2.get(heard..).unwrap_or_default();
        self.is_http2 &= expected.iter().zip(bytes).all(|(expected, byte)| expected == byte);
        self.missing_bytes = self.missing_bytes.saturating_sub(bytes.len());
        self.head.hear(bytes);
    }

    /// Silence is over at its timeout. When the drain begins, so is a head without end; HTTP/2 says good-bye by
    /// itself.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let is_silent = self.missing_bytes > 0;
        if is_silent && self.timeout.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if is_silent || self.head.is_half() { self.draining.as_mut().poll(cx) } else { Poll::Pending }
    }
}

impl Head {
    const END: &[u8] = b"\r\n\r\n";

    fn hear(&mut self, bytes: &[u8]) {
        if self.is_answered && !bytes.is_empty() {
            *self = Self::default();
        }
        for &byte in bytes {
            match Self::END.get(self.end_bytes) {
                Some(&expected) if byte == expected => self.end_bytes += 1,
                Some(_) => self.end_bytes = usize::from(byte == Self::END[0]),
                // What follows is the message.
                None => return,
            }
        }
    }

    fn is_half(&self) -> bool {
        !self.is_answered && self.end_bytes < Self::END.len()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        if read.is_pending() {
            ready!(this.poll_over(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if let Some(opening) = &mut this.opening {
            opening.hear(&buf.filled()[before..]);
            if opening.missing_bytes == 0 && opening.is_http2 {
                this.opening = None;
            }
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.answers();
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.answers();
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_a_request_is_half_until_its_empty_line() {
        let mut head = Head::default();
        for part in ["POST / HTTP/1.1\r\nhost: x\r", "\n\r", "x\r\n\r"] {
            head.hear(part.as_bytes());
            assert!(head.is_half(), "{part:?}");
        }
        head.hear(b"\nand a message\r\n");
        assert!(!head.is_half());
        head.is_answered = true;
        assert!(!head.is_half(), "an idle connection");
        head.hear(b"P");
        assert!(head.is_half(), "the next request");
    }
}
