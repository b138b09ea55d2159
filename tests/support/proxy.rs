//! A small TCP proxy on loopback that disturbs connections in the ways that networks do.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep_until};

/// What the proxy does to the bytes that pass through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Delays the bytes in each direction by this duration.
    Delay(Duration),
    /// Keeps connections open and holds back the bytes until the mode changes.
    Stall,
    /// Drops all bytes, like a firewall that has forgotten the connection.
    Blackhole,
    /// Passes one byte at a time.
    Trickle,
    /// Closes new connections immediately.
    Refuse,
    /// Replaces each piece of the server's answers with these bytes.
    Answer(&'static [u8]),
    /// Replaces each piece of the server's answers except the answer to a greeting.
    AnswerAfterGreeting(&'static [u8]),
}

pub struct Proxy {
    address: SocketAddr,
    target: Arc<AtomicU16>,
    mode: watch::Sender<Mode>,
    /// Incrementing one of these counters applies its action to all connections.
    cut: watch::Sender<u64>,
    forget: watch::Sender<u64>,
    half_close: watch::Sender<u64>,
    accepted: Arc<AtomicUsize>,
    /// Has one receiver per open connection, excluding those that were cut.
    open: Arc<Mutex<watch::Sender<()>>>,
    /// Has one receiver per connection that the last cut affected and that is still open.
    closing: Mutex<watch::Sender<()>>,
    acceptor: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn start(target_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = Arc::new(AtomicU16::new(target_port));
        let (mode, modes) = watch::channel(Mode::Pass);
        let (cut, cuts) = watch::channel(0);
        let (forget, forgets) = watch::channel(0);
        let (half_close, half_closes) = watch::channel(0);
        let accepted = Arc::new(AtomicUsize::new(0));
        let orders = Orders { mode: modes, cut: cuts, forget: forgets, half_close: half_closes };
        let open = Arc::new(Mutex::new(watch::Sender::new(())));
        let closing = Mutex::new(watch::Sender::new(()));
        let (counter, port, connections) = (accepted.clone(), target.clone(), open.clone());
        let acceptor = tokio::spawn(async move {
            let mut links = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                if *orders.mode.borrow() == Mode::Refuse {
                    continue;
                }
                // Both calls are made under the lock, so a connection that counts as open is cut and
                // forgotten with the others.
                let (is_open, orders) = {
                    let open = connections.lock().unwrap();
                    (open.subscribe(), orders.unmarked())
                };
                let link = link(client, port.load(Ordering::Relaxed), orders);
                links.spawn(async move {
                    link.await;
                    drop(is_open);
                });
                while links.try_join_next().is_some() {}
            }
        });
        Self { address, target, mode, cut, forget, half_close, accepted, open, closing, acceptor }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Makes new connections lead to a different server. Existing connections are not affected.
    pub fn lead_to(&self, target_port: u16) {
        self.target.store(target_port, Ordering::Relaxed);
    }

    /// Closes every existing connection.
    pub fn cut(&self) {
        let mut open = self.open.lock().unwrap();
        *self.closing.lock().unwrap() = std::mem::replace(&mut open, watch::Sender::new(()));
        self.cut.send_modify(|cuts| *cuts += 1);
    }

    /// Keeps every existing connection open, but passes no more data on it in any mode, like a middlebox that
    /// has forgotten the connection.
    pub fn forget(&self) {
        self.forget.send_modify(|forgets| *forgets += 1);
    }

    /// Closes the server's sending side of every existing connection. The client's data still reaches the
    /// server.
    pub fn half_close(&self) {
        self.half_close.send_modify(|half_closes| *half_closes += 1);
    }

    /// Waits until every connection that was cut has closed.
    pub async fn all_closed(&self) {
        let closing = self.closing.lock().unwrap().clone();
        closing.closed().await;
    }

    /// Returns the number of connections accepted since the proxy started.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

/// The actions to apply to a connection. The values change while the connection is open.
#[derive(Clone)]
struct Orders {
    mode: watch::Receiver<Mode>,
    cut: watch::Receiver<u64>,
    forget: watch::Receiver<u64>,
    half_close: watch::Receiver<u64>,
}

impl Orders {
    /// Returns the orders for a new connection, which ignores all earlier actions.
    fn unmarked(&self) -> Self {
        let mut orders = self.clone();
        for order in [&mut orders.cut, &mut orders.forget, &mut orders.half_close] {
            order.mark_unchanged();
        }
        orders
    }

    fn mode(&self) -> Mode {
        match self.forget.has_changed() {
            Ok(false) => *self.mode.borrow(),
            _ => Mode::Blackhole,
        }
    }
}

async fn link(client: TcpStream, target_port: u16, orders: Orders) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target_port)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    let mut cut = orders.cut.clone();
    tokio::select! {
        () = pump(client_reads, server_writes, orders.clone(), false) => {}
        () = pump(server_reads, client_writes, orders, true) => {}
        _ = cut.changed() => {}
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut orders: Orders,
    answers: bool,
) {
    // Bytes that are delayed must not hold up bytes that arrive later.
    let (queue, mut queued) = tokio::sync::mpsc::unbounded_channel::<(Instant, Mode, Vec<u8>)>();
    let reader = orders.clone();
    let mut half_close = orders.half_close.clone();
    let read = async move {
        let mut buffer = vec![0; 64 * 1024];
        let mut greeted = false;
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let mode = reader.mode();
            let due = match mode {
                Mode::Delay(delay) => Instant::now() + delay,
                _ => Instant::now(),
            };
            let bytes = match mode {
                Mode::Blackhole => continue,
                Mode::Answer(bytes) if answers => bytes,
                Mode::AnswerAfterGreeting(bytes) if answers => {
                    if is_greeting(&buffer[..length], !greeted) { &buffer[..length] } else { bytes }
                }
                _ => &buffer[..length],
            };
            greeted = true;
            if queue.send((due, mode, bytes.to_vec())).is_err() {
                return;
            }
        }
    };
    let write = async {
        let pass_on = async {
            while let Some((due, mode, bytes)) = queued.recv().await {
                sleep_until(due).await;
                if orders.mode.wait_for(|mode| *mode != Mode::Stall).await.is_err() {
                    return;
                }
                if orders.mode() == Mode::Blackhole {
                    continue;
                }
                if mode == Mode::Trickle {
                    for byte in bytes {
                        if to.write_all(&[byte]).await.is_err() {
                            return;
                        }
                        // Lets the receiver read this byte on its own.
                        yield_now().await;
                    }
                } else if to.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        };
        let ended = tokio::select! {
            () = pass_on => true,
            _ = half_close.changed(), if answers => false,
        };
        if !ended {
            let _ = to.shutdown().await;
            // The other direction continues.
            std::future::pending::<()>().await;
        }
    };
    tokio::join!(read, write);
}

/// Returns whether this is the answer to a greeting. On a Redis connection, only the first answer can be one.
/// Memcached answers a greeting with a distinctive word.
fn is_greeting(answer: &[u8], first: bool) -> bool {
    answer.starts_with(b"MN\r\n") || (first && answer.starts_with(b"+") | answer.starts_with(b"-"))
}
