//! Connections, before there is a call on them: how many there may be, and how long one may say nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use futures::stream::unfold;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::select;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};
use tracing::{debug, warn};

/// How long a client has for its first bytes.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// The client connection preface (RFC 9113, section 3.4): 24 bytes, and a SETTINGS frame of at least 9.
const PREFACE_BYTES: usize = 33;
/// Pause after a connection could not be accepted; for want of file descriptors, as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The connections that come in at `listener`, at most `connections_max` at a time. Others wait in the
/// system's queue. Those that have said nothing yet end when the drain begins.
pub(crate) fn accept(
    listener: TcpListener,
    connections_max: usize,
    draining: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> {
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
        let preface = Preface {
            missing_bytes: PREFACE_BYTES,
            timeout: Box::pin(sleep(PREFACE_TIMEOUT)),
            draining: Box::pin(draining.clone().cancelled_owned()),
        };
        let connection = Connection { stream, preface: Some(preface), _place: place };
        Some((Ok(connection), (listener, places, draining)))
    })
}

/// A connection that ends when its client is silent from the start.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
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
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}
