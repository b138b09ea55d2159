//! A small TCP proxy on loopback that can do to a connection what networks do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

/// What is done to the bytes that pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Each direction takes this long.
    Delay(Duration),
    /// Connections stay open, and nothing passes: what arrives is kept until the mode changes.
    Stall,
    /// Nothing passes any more, and what arrives is lost: a firewall that has forgotten the link.
    Blackhole,
    /// One byte at a time.
    Trickle,
    /// New connections are closed at once.
    Refuse,
}

pub struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    /// Counted up to cut all connections.
    cuts: watch::Sender<u64>,
    accepted: Arc<AtomicUsize>,
    acceptor: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn start(target_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, modes) = watch::channel(Mode::Pass);
        let (cuts, cut) = watch::channel(0);
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = accepted.clone();
        let acceptor = tokio::spawn(async move {
            let mut links = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                if *modes.borrow() == Mode::Refuse {
                    continue;
                }
                links.spawn(link(client, target_port, modes.clone(), cut.clone()));
                while links.try_join_next().is_some() {}
            }
        });
        Self { address, mode, cuts, accepted, acceptor }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Closes every connection there is.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// How many connections were ever accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

async fn link(
    client: TcpStream,
    target_port: u16,
    modes: watch::Receiver<Mode>,
    mut cut: watch::Receiver<u64>,
) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target_port)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    cut.mark_unchanged();
    tokio::select! {
        () = pump(client_reads, server_writes, modes.clone()) => {}
        () = pump(server_reads, client_writes, modes) => {}
        _ = cut.changed() => {}
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut modes: watch::Receiver<Mode>,
) {
    // Delayed bytes must not hold up those that come after them.
    let (queue, mut queued) = tokio::sync::mpsc::unbounded_channel::<(Instant, Mode, Vec<u8>)>();
    let reader_modes = modes.clone();
    let read = async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let mode = *reader_modes.borrow();
            let due = match mode {
                Mode::Delay(delay) => Instant::now() + delay,
                _ => Instant::now(),
            };
            if mode != Mode::Blackhole
                && queue.send((due, mode, buffer[..length].to_vec())).is_err()
            {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, mode, bytes)) = queued.recv().await {
            sleep_until(due).await;
            if modes.wait_for(|mode| *mode != Mode::Stall).await.is_err() {
                return;
            }
            if *modes.borrow() == Mode::Blackhole {
                continue;
            }
            if mode == Mode::Trickle {
                for byte in bytes {
                    if to.write_all(&[byte]).await.is_err() {
                        return;
                    }
                    // Long enough for the byte to leave by itself.
                    sleep(Duration::from_micros(50)).await;
                }
            } else if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}
