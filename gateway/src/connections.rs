//! Connections, before there is a call on them: how many there may be, their TLS, and how long one may say
//! nothing.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::stream::unfold;
use futures::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::select;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use crate::tls::{self, Tls};

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client then has for its first bytes.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// The client connection preface (RFC 9113, section 3.4): 24 bytes, and a SETTINGS frame of at least 9.
const PREFACE_BYTES: usize = 33;
/// Pause after a connection could not be accepted; for want of file descriptors, as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The connections that come in at `listener`, at most `connections_max` at a time, those in their TLS handshake
/// included. Others wait in the system's queue. Those that have said nothing yet end when the drain begins.
pub(crate) fn accept(
    listener: TcpListener,
    connections_max: usize,
    tls: Option<Tls>,
    draining: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> {
    let accepted = accept_tcp(listener, connections_max, draining.clone());
    match tls {
        None => accepted.map(move |accepted| Ok(accepted.in_the_clear(draining.clone()))).left_stream(),
        Some(tls) => accepted
            .map(move |accepted| {
                // A task of its own: others are accepted, and make their handshakes, meanwhile.
                let secured = accepted.secured(tls.clone(), draining.clone());
                AbortOnDropHandle::new(tokio::spawn(secured))
            })
            // The places are the bound.
            .buffer_unordered(usize::MAX)
            .filter_map(async |secured| secured.ok().flatten().map(Ok))
            .right_stream(),
    }
}

fn accept_tcp(
    listener: TcpListener,
    connections_max: usize,
    draining: CancellationToken,
) -> impl Stream<Item = Accepted> {
    let places = Arc::new(Semaphore::new(connections_max));
    unfold((listener, places, draining), async |(listener, places, draining)| {
        if places.available_permits() == 0 {
            warn!("as many connections as there may be; others have to wait");
        }
        // The semaphore is never closed.
        let place = places.clone().acquire_owned().await.ok()?;
        let mut failing = false;
        let stream = loop {
            match listener.accept().await {
                Ok((stream, _)) => break stream,
                Err(error) => {
                    if !failing {
                        warn!(%error, "connection not accepted");
                    }
                    failing = true;
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
        Some((Accepted { stream, place }, (listener, places, draining)))
    })
}

/// A connection on which nothing was said yet.
struct Accepted {
    stream: TcpStream,
    place: OwnedSemaphorePermit,
}

impl Accepted {
    fn in_the_clear(self, draining: CancellationToken) -> Connection {
        let peer = Peer { addr: self.addr(), certificate_names: None };
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
        let peer = Peer { addr, certificate_names };
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
    /// Until the client has said that it speaks HTTP.
    preface: Option<Preface>,
    _place: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Preface {
    missing_bytes: usize,
    timeout: Pin<Box<Sleep>>,
    draining: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connection {
    fn new(
        stream: Box<dyn Io>,
        peer: Peer,
        place: OwnedSemaphorePermit,
        draining: CancellationToken,
    ) -> Self {
        let preface = Preface {
            missing_bytes: PREFACE_BYTES,
            timeout: Box::pin(sleep(PREFACE_TIMEOUT)),
            draining: Box::pin(draining.cancelled_owned()),
        };
        Self { stream, peer, preface: Some(preface), _place: place }
    }
}

impl Preface {
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.timeout.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => self.draining.as_mut().poll(cx),
        }
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
        let Some(preface) = &mut this.preface else { return read };
        if read.is_pending() {
            ready!(preface.poll_over(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let bytes = buf.filled().len() - before;
        preface.missing_bytes = preface.missing_bytes.saturating_sub(bytes);
        if preface.missing_bytes == 0 {
            this.preface = None;
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
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

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.peer.clone()
    }
}
