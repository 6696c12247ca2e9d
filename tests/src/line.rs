//! A line between a client and a gateway, which can be cut.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Passes on all that both sides say, until it is cut.
#[derive(Debug)]
pub struct Line {
    addr: SocketAddr,
    whole: watch::Sender<bool>,
    task: AbortHandle,
}

impl Line {
    /// Lays one to the gateway at this address.
    pub async fn lay(gateway: &str) -> Self {
        let gateway = gateway.to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let addr = listener.local_addr().expect("address");
        let (whole, cuts) = watch::channel(true);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass_on(client, gateway.clone(), cuts.clone()));
            }
        });
        Self { addr, whole, task: task.abort_handle() }
    }

    /// Where clients find the gateway.
    pub fn addr(&self) -> String {
        self.addr.to_string()
    }

    /// Breaks every connection. New ones are taken, and get no answer.
    pub fn cut(&self) {
        self.whole.send_replace(false);
    }

    /// Passes on what new connections say.
    pub fn mend(&self) {
        self.whole.send_replace(true);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass_on(mut client: TcpStream, gateway: String, mut cuts: watch::Receiver<bool>) {
    // Fails only if the line itself is gone.
    if cuts.wait_for(|whole| *whole).await.is_err() {
        return;
    }
    let mut gateway = TcpStream::connect(gateway).await.expect("gateway");
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut gateway) => (),
        _ = cuts.wait_for(|whole| !*whole) => (),
    }
}
