//! A connection that ends when its client stays silent after connecting, or when it is evicted.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::http1_head::Head;
use super::peer::Peer;

/// How long a client has for its first bytes.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// The client connection preface (RFC 9113, section 3.4): 24 bytes, and a SETTINGS frame of at least 9.
const PREFACE_BYTES: usize = 33;
/// How HTTP/2 begins (RFC 9113, section 3.4).
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// With or without TLS.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug> Io for T {}

/// A connection that ends when its client stays silent after connecting, or when it is evicted.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Box<dyn Io>,
    peer: Peer,
    /// Until the client is known to speak HTTP/2; for an older version, as long as the connection lasts.
    opening: Option<Opening>,
    evicted: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Opening {
    missing_bytes: usize,
    /// Whether the bytes so far are the beginning of HTTP/2.
    is_http2: bool,
    head: Head,
    timeout: Pin<Box<Sleep>>,
    draining: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connection {
    pub(super) fn new(
        stream: Box<dyn Io>,
        peer: Peer,
        permit: OwnedSemaphorePermit,
        draining: CancellationToken,
    ) -> Self {
        let opening = Opening {
            missing_bytes: PREFACE_BYTES,
            is_http2: true,
            head: Head::default(),
            timeout: Box::pin(sleep(PREFACE_TIMEOUT)),
            draining: Box::pin(draining.cancelled_owned()),
        };
        let evicted = peer
            .authentication
            .as_ref()
            .map(|authentication| Box::pin(authentication.evicted().cancelled_owned()));
        Self { stream, peer, opening: Some(opening), evicted, _permit: permit }
    }

    /// The peer, for each call on the connection.
    pub(crate) fn peer(&self) -> Peer {
        self.peer.clone()
    }

    fn answers(&mut self) {
        if let Some(opening) = &mut self.opening {
            opening.head.answered();
        }
    }

    /// Ready when the connection has to end.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(evicted) = &mut self.evicted
            && evicted.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(());
        }
        self.opening.as_mut().map_or(Poll::Pending, |opening| opening.poll_over(cx))
    }
}

impl Opening {
    fn receive(&mut self, bytes: &[u8]) {
        let received = PREFACE_BYTES - self.missing_bytes;
        let expected = HTTP2.get(received..).unwrap_or_default();
        self.is_http2 &= expected.iter().zip(bytes).all(|(expected, byte)| expected == byte);
        self.missing_bytes = self.missing_bytes.saturating_sub(bytes.len());
        self.head.receive(bytes);
    }

    /// A silent client is cut off after the timeout. The drain ends an incomplete head too; HTTP/2 has its own goodbye
    /// (GOAWAY).
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let is_silent = self.missing_bytes > 0;
        if is_silent && self.timeout.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if is_silent || self.head.is_incomplete() { self.draining.as_mut().poll(cx) } else { Poll::Pending }
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
            opening.receive(&buf.filled()[before..]);
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
