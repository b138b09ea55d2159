//! A server that speaks the Redis protocol and gives answers that a test needs but that a real server would
//! not give.

use std::io;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

pub struct Fake {
    port: u16,
    heard: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Fake {
    /// Starts a server that answers each command with `answer`, which gets the command's words separated by
    /// spaces. The server answers greetings with `OK`.
    pub async fn start(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (heard, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answer));
        let all_heard = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (heard, answer) = (Arc::clone(&all_heard), Arc::clone(&answer));
                connections.spawn(async move {
                    let mut stream = BufReader::new(stream);
                    while let Ok(command) = command(&mut stream).await {
                        let answer = if command.starts_with("CLIENT ") {
                            "+OK\r\n".to_owned()
                        } else {
                            heard.lock().unwrap().push(command.clone());
                            answer(&command)
                        };
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { port, heard, task }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns how many of the received commands begin with this text.
    pub fn heard(&self, beginning: &str) -> usize {
        self.heard.lock().unwrap().iter().filter(|command| command.starts_with(beginning)).count()
    }
}

/// Dropping the server closes its connections.
impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An array of strings.
pub fn list<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<_> =
        words.into_iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
    format!("*{}\r\n{}", words.len(), words.concat())
}

async fn command(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut words = Vec::new();
    for _ in 0..number(stream).await? {
        let mut word = vec![0; number(stream).await? + 2];
        stream.read_exact(&mut word).await?;
        words.push(String::from_utf8_lossy(&word).trim_end().to_owned());
    }
    Ok(words.join(" "))
}

async fn number(stream: &mut BufReader<TcpStream>) -> io::Result<usize> {
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let number = line.get(1..).and_then(|number| number.trim_end().parse().ok());
    number.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
