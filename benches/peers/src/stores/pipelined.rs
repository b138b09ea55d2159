//! The upper limit for one connection: a hand-written client for one command, which sends all waiting
//! requests in one write and reads all answers that have arrived. The client does not reconnect, has no time
//! limits and handles no errors, so it is not suitable for production.

use std::io;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

#[derive(Clone, Copy)]
pub enum Protocol {
    Redis,
    Memcached,
}

struct Request {
    bytes: Vec<u8>,
    reply: oneshot::Sender<Option<Bytes>>,
}

#[derive(Clone)]
pub struct Pipelined {
    protocol: Protocol,
    requests: mpsc::UnboundedSender<Request>,
}

impl Pipelined {
    pub async fn connect(port: u16, protocol: Protocol) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (requests, queue) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            if let Err(error) = drive(stream, queue, protocol).await {
                eprintln!("the pipelined client ended: {error}");
            }
        });
        Self { protocol, requests }
    }

    pub async fn load(&self, key: &str) -> Option<Bytes> {
        let bytes = match self.protocol {
            Protocol::Redis => format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len()),
            Protocol::Memcached => format!("mg {key} v c\r\n"),
        };
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request { bytes: bytes.into_bytes(), reply }).ok()?;
        answer.await.ok()?
    }
}

async fn drive(
    stream: TcpStream,
    mut queue: mpsc::UnboundedReceiver<Request>,
    protocol: Protocol,
) -> io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let (sent, mut waiting) = mpsc::unbounded_channel();
    let reading = tokio::spawn(async move {
        let mut received = BytesMut::with_capacity(1 << 20);
        while reader.read_buf(&mut received).await? > 0 {
            while let Some(answer) = parse(&mut received, protocol) {
                let reply: oneshot::Sender<_> = waiting.recv().await.unwrap();
                let _ = reply.send(answer);
            }
        }
        io::Result::Ok(())
    });
    let (mut batch, mut out) = (Vec::new(), Vec::new());
    while queue.recv_many(&mut batch, 1024).await > 0 {
        // Lets other tasks that are ready now add their requests to the batch.
        tokio::task::yield_now().await;
        while let Ok(request) = queue.try_recv() {
            batch.push(request);
        }
        out.clear();
        for request in batch.drain(..) {
            out.extend_from_slice(&request.bytes);
            let _ = sent.send(request.reply);
        }
        writer.write_all(&out).await?;
    }
    reading.abort();
    Ok(())
}

/// Returns the next answer, if it has arrived completely.
fn parse(received: &mut BytesMut, protocol: Protocol) -> Option<Option<Bytes>> {
    let line_end = received.windows(2).position(|pair| pair == b"\r\n")?;
    let line = std::str::from_utf8(&received[..line_end]).unwrap();
    let length = match protocol {
        Protocol::Redis => line.strip_prefix('$').filter(|length| *length != "-1"),
        Protocol::Memcached => line.strip_prefix("VA ").and_then(|rest| rest.split(' ').next()),
    };
    let Some(length) = length else {
        received.advance(line_end + 2);
        return Some(None);
    };
    let length: usize = length.parse().unwrap();
    if received.len() < line_end + 2 + length + 2 {
        return None;
    }
    received.advance(line_end + 2);
    let value = received.split_to(length).freeze();
    received.advance(2);
    Some(Some(value))
}
