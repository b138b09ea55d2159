//! The greeting on a new connection, which authenticates and selects the database.
//!
//! The `redis` crate can do this too, but it discards the server's answer: a wrong password, a server with
//! too many clients and a port that expects TLS would all lead to the same error.

use std::io;

use ::redis::{Cmd, RedisConnectionInfo, cmd};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};

use crate::store::redis::answer::Answer;

/// The maximum length of a line. All expected lines are shorter.
const LONGEST_LINE: u64 = 16 * 1024;

/// Why a greeting failed.
pub(super) enum Refusal {
    /// The connection ended, and the server did not say why.
    Broken(io::Error),
    /// The server's answer was not the expected one. The message says what was wrong with it, and contains
    /// nothing that the server may have echoed.
    Answered(String),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// Authenticates, selects the database and sends the name of this library, all in one write.
pub(super) async fn greet<S>(stream: &mut S, info: &RedisConnectionInfo) -> Result<(), Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (needed, wished) = (needed(info), wished());
    let mut packed = Vec::new();
    for (_, command) in needed.iter().chain(&wished) {
        command.write_packed_command(&mut packed);
    }
    // A server that refuses the connection sends the reason and closes the connection. The reason can be read
    // even if this write fails.
    let _ = stream.write_all(&packed).await;
    let _ = stream.flush().await;

    let mut link = BufReader::new(stream);
    let mut answers = Vec::new();
    for (name, _) in needed.iter().chain(&wished) {
        match reply(&mut link).await {
            Ok(None) => answers.push(None),
            Ok(Some(line)) => answers.push(Some(Answer::of_line(name, &line))),
            Err(Refusal::Broken(error)) => {
                return Err(match answers.into_iter().flatten().next() {
                    Some(answer) => Refusal::Answered(format!("{answer}, and hung up")),
                    None => Refusal::Broken(error),
                });
            }
            Err(refusal) => return Err(refusal),
        }
    }
    if !link.buffer().is_empty() {
        // The extra data would be taken for the answer to the next command.
        return Err(Refusal::Answered("the server sent more than was requested".to_owned()));
    }
    match answers.into_iter().take(needed.len()).flatten().next() {
        None => Ok(()),
        Some(answer)
            if answer.is_unknown_command() && is_sentinel(&mut link).await.unwrap_or(false) =>
        {
            Err(Refusal::Answered(answer.of_sentinel().to_string()))
        }
        Some(answer) => Err(Refusal::Answered(answer.to_string())),
    }
}

/// Commands by their names.
type Commands = Vec<(&'static str, Cmd)>;

/// Returns the commands without which the connection cannot be used.
fn needed(info: &RedisConnectionInfo) -> Commands {
    let mut commands = Commands::new();
    if let Some(password) = info.password() {
        let mut sign_in = cmd("AUTH");
        if let Some(user) = info.username() {
            sign_in.arg(user);
        }
        sign_in.arg(password);
        commands.push(("AUTH", sign_in));
    }
    if info.db() != 0 {
        commands.push(("SELECT", cmd("SELECT").arg(info.db()).take()));
    }
    commands
}

/// Returns the commands that set this library's name in the server's list of clients. Older servers do not
/// know these commands.
fn wished() -> Commands {
    [("LIB-NAME", "unsticky"), ("LIB-VER", env!("CARGO_PKG_VERSION"))]
        .map(|(name, value)| {
            ("CLIENT SETINFO", cmd("CLIENT").arg("SETINFO").arg(name).arg(value).take())
        })
        .into()
}

/// Reads the answer to one command. Returns `None` for success, or otherwise the error line.
async fn reply<S: AsyncRead + Unpin>(link: &mut BufReader<S>) -> Result<Option<String>, Refusal> {
    let line = line(link).await?;
    match &line[..] {
        [0x15 | 0x16, 0x03, ..] => {
            Err(Refusal::Answered("the server speaks TLS there: use rediss://".to_owned()))
        }
        [b'+', .., b'\n'] => Ok(None),
        [b'-', error @ .., b'\n'] => Ok(Some(String::from_utf8_lossy(error).trim_end().to_owned())),
        [b'+' | b'-', ..] => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        _ => Err(Refusal::Answered("the server does not speak the protocol of Redis".to_owned())),
    }
}

/// Reads a line, including its line ending if it has one.
async fn line<S: AsyncRead + Unpin>(link: &mut BufReader<S>) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    match link.take(LONGEST_LINE).read_until(b'\n', &mut line).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line),
    }
}

/// Asks the server whether it is a Sentinel.
async fn is_sentinel<S>(link: &mut BufReader<&mut S>) -> io::Result<bool>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    link.write_all(&cmd("ROLE").get_packed_command()).await?;
    link.flush().await?;
    for expected in ["*", "$8\r\n", "sentinel\r\n"] {
        if !line(link).await?.starts_with(expected.as_bytes()) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const OK: &[u8] = b"+OK\r\n";
    const UNKNOWN: &[u8] = b"-ERR unknown command 'private'\r\n";

    fn nobody() -> RedisConnectionInfo {
        RedisConnectionInfo::default()
    }

    /// Returns what a server that gives these answers receives, and the outcome of the greeting. The server
    /// answers `ROLE` with its role, and closes the connection if it has none.
    async fn greeted(
        login: RedisConnectionInfo,
        answers: &[&[u8]],
        role: Option<&[u8]>,
    ) -> (Vec<u8>, String) {
        let (mut ours, mut theirs) = tokio::io::duplex(64 * 1024);
        let client = async move { greet(&mut ours, &login).await };
        let server = async {
            theirs.write_all(&answers.concat()).await.unwrap();
            if role.is_none() {
                theirs.shutdown().await.unwrap();
            }
            let mut heard = Vec::new();
            while theirs.read_buf(&mut heard).await.unwrap() > 0 {
                if let (Some(role), true) = (role, heard.ends_with(b"ROLE\r\n")) {
                    theirs.write_all(role).await.unwrap();
                }
            }
            heard
        };
        let (outcome, heard) = tokio::join!(client, server);
        let said = match outcome {
            Ok(()) => "welcome".to_owned(),
            Err(Refusal::Broken(error)) => format!("broken: {:?}", error.kind()),
            Err(Refusal::Answered(reason)) => reason,
        };
        assert!(!said.contains("private"), "{said}");
        (heard, said)
    }

    #[tokio::test]
    async fn greeting_says_what_the_address_does() {
        let library = [
            cmd("CLIENT").arg("SETINFO").arg("LIB-NAME").arg("unsticky").get_packed_command(),
            cmd("CLIENT")
                .arg("SETINFO")
                .arg("LIB-VER")
                .arg(env!("CARGO_PKG_VERSION"))
                .get_packed_command(),
        ]
        .concat();
        let all = [cmd("AUTH").arg("app").arg("pass").take(), cmd("SELECT").arg(3).take()];
        for (login, commands) in [
            (nobody(), &[][..]),
            (nobody().set_db(0), &[]),
            (nobody().set_password("pass"), &[cmd("AUTH").arg("pass").take()]),
            (nobody().set_db(3), &all[1..]),
            (nobody().set_username("app").set_password("pass").set_db(3), &all),
        ] {
            let answers = vec![OK; commands.len() + 2];
            let mut expected: Vec<u8> = Vec::new();
            for command in commands {
                command.write_packed_command(&mut expected);
            }
            expected.extend_from_slice(&library);
            let (heard, said) = greeted(login, &answers, None).await;
            assert_eq!(heard.escape_ascii().to_string(), expected.escape_ascii().to_string());
            assert_eq!(said, "welcome");
        }
    }

    #[tokio::test]
    async fn refused_greeting_says_why() {
        const CLIENTS: &[u8] = b"-ERR max number of clients reached\r\n";
        const WRONG: &[u8] = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n";
        let long =
            [b"-OOM command not allowed when used memory", &[b'x'; 8000][..], b"\r\n"].concat();
        let endless = [b"-OOM ", &[b'x'; 20_000][..]].concat();
        for (answers, expected) in [
            (&[OK, OK, OK][..], "welcome"),
            // Older servers do not accept a library name.
            (&[OK, UNKNOWN, UNKNOWN], "welcome"),
            (&[OK, OK, OK, OK], "the server sent more than was requested"),
            (&[WRONG, OK, OK], "it answered SELECT with WRONGPASS invalid username-password pair"),
            (&[CLIENTS], "open fewer connections, and hung up"),
            (&[OK, CLIENTS], "open fewer connections, and hung up"),
            (&[], "broken: UnexpectedEof"),
            (&[OK], "broken: UnexpectedEof"),
            (&[b"+O"], "broken: UnexpectedEof"),
            (&[b"-ERR max number of cl"], "broken: UnexpectedEof"),
            (&[b"\x15\x03\x01\x00\x02\x02\x46"], "the server speaks TLS there: use rediss://"),
            (&[b"\x16\x03\x01\n"], "the server speaks TLS there: use rediss://"),
            (&[b"HTTP/1.1 400 private\r\n"], "does not speak the protocol of Redis"),
            (&[b":1\r\n", OK, OK], "does not speak the protocol of Redis"),
            (&[&long, OK, OK], "the server's memory is full"),
        ] {
            let (_, said) = greeted(nobody().set_db(3), answers, None).await;
            assert!(said.contains(expected), "{expected}: {said}");
        }
        // The greeting does not wait forever for the end of a line.
        let answers = [&endless[..]];
        let greeting = greeted(nobody().set_db(3), &answers, Some(OK));
        let (_, said) = timeout(Duration::from_secs(5), greeting).await.unwrap();
        assert_eq!(said, "broken: UnexpectedEof");
    }

    #[tokio::test]
    async fn only_sentinel_is_called_one() {
        for (role, is_sentinel) in [
            (&b"*2\r\n$8\r\nsentinel\r\n*0\r\n"[..], true),
            (b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n", false),
            (UNKNOWN, false),
        ] {
            let answers = [UNKNOWN, UNKNOWN, UNKNOWN];
            let (_, said) = greeted(nobody().set_db(3), &answers, Some(role)).await;
            assert!(said.starts_with("it answered SELECT with ERR unknown command: "), "{said}");
            assert_eq!(said.contains("the server is a Sentinel"), is_sentinel, "{said}");
        }
        // After any other error, the greeting does not ask whether the server is a Sentinel.
        let answers = [&b"-NOPERM private\r\n"[..], OK, OK];
        let (heard, _) = greeted(nobody().set_db(3), &answers, None).await;
        assert!(!heard.ends_with(b"ROLE\r\n"));
    }
}
