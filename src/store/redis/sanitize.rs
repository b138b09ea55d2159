//! Makes the server's error lines readable for the client.
//!
//! If a server does not know a command, it echoes the command's arguments in its error, and our arguments are
//! binary. The `redis` crate treats a line that is not UTF-8 as the end of the connection, so every other
//! command on the connection would fail as well.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream in whose error lines every byte other than printable ASCII is read as `?`.
pub(super) struct Sanitized<S> {
    stream: S,
    framing: Framing,
}

impl<S> Sanitized<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, framing: Framing::Type }
    }
}

/// The part of the protocol to which the next byte belongs. After the length of an aggregate, its elements
/// come in the same form as separate values, so they need not be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// The byte with the type of the next element.
    Type,
    /// A line, and whether its last byte so far was a carriage return.
    Line(Line, bool),
    /// The rest of a payload: the number of bytes left, including the line ending after the payload.
    Payload(u64),
    /// The data is not in the Redis protocol. All of it passes unchanged.
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// A value, or the length of an aggregate.
    Text,
    Error,
    /// The length of a payload, with the value of the digits read so far.
    Length(Option<u64>),
    /// A negative length: there is no payload.
    Nothing,
}

impl Framing {
    fn of_type(byte: u8) -> Self {
        let line = match byte {
            b'-' => Line::Error,
            b'$' | b'=' | b'!' => Line::Length(None),
            b'+' | b':' | b'_' | b',' | b'#' | b'(' | b'*' | b'%' | b'~' | b'>' | b'|' => {
                Line::Text
            }
            _ => return Self::Unknown,
        };
        Self::Line(line, false)
    }

    /// Returns what follows the end of a line.
    fn after(line: Line) -> Self {
        match line {
            Line::Text | Line::Error | Line::Nothing => Self::Type,
            Line::Length(Some(length)) => {
                length.checked_add(2).map_or(Self::Unknown, Self::Payload)
            }
            Line::Length(None) => Self::Unknown,
        }
    }

    /// Processes the bytes that were read next.
    fn clean(&mut self, mut bytes: &mut [u8]) {
        while let Some(&first) = bytes.first() {
            let used = match *self {
                Self::Unknown => return,
                Self::Type => {
                    *self = Self::of_type(first);
                    1
                }
                Self::Payload(left) => {
                    let used =
                        usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                    *self = match left - used as u64 {
                        0 => Self::Type,
                        left => Self::Payload(left),
                    };
                    used
                }
                Self::Line(line, ends) => self.clean_line(line, ends, bytes),
            };
            bytes = &mut bytes[used..];
        }
    }

    /// Processes a line. Returns how many bytes belong to it.
    fn clean_line(&mut self, mut line: Line, mut ends: bool, bytes: &mut [u8]) -> usize {
        for (at, byte) in bytes.iter_mut().enumerate() {
            if ends && *byte == b'\n' {
                *self = Self::after(line);
                return at + 1;
            }
            ends = *byte == b'\r';
            match &mut line {
                Line::Text | Line::Nothing => {}
                Line::Error if ends || matches!(byte, b' '..=b'~') => {}
                Line::Error => *byte = b'?',
                Line::Length(_) if ends => {}
                Line::Length(length) => match (*byte, *length) {
                    (digit @ b'0'..=b'9', so_far) => {
                        let so_far = so_far.unwrap_or(0).checked_mul(10);
                        *length =
                            so_far.and_then(|so_far| so_far.checked_add((digit - b'0').into()));
                        if length.is_none() {
                            *self = Self::Unknown;
                            return bytes.len();
                        }
                    }
                    (b'-', None) => line = Line::Nothing,
                    _ => {
                        *self = Self::Unknown;
                        return bytes.len();
                    }
                },
            }
        }
        *self = Self::Line(line, ends);
        bytes.len()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Sanitized<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.framing.clean(&mut buffer.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Sanitized<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use ::redis::parse_redis_value;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufWriter};
    use tokio::time::timeout;

    use super::*;

    /// Returns what a reader receives if it reads these bytes in pieces of these lengths and then the rest at
    /// once.
    fn cleaned(bytes: &[u8], pieces: &[usize]) -> Vec<u8> {
        let mut cleaned = bytes.to_vec();
        let mut framing = Framing::Type;
        let mut rest = &mut cleaned[..];
        for piece in pieces {
            let (now, later) = rest.split_at_mut((*piece).min(rest.len()));
            framing.clean(now);
            rest = later;
        }
        framing.clean(rest);
        cleaned
    }

    #[test]
    fn only_error_lines_are_changed() {
        for (sent, read) in [
            (&b"-ERR unknown 'SET' \xff\x00\n\x7f\t\r\n"[..], &b"-ERR unknown 'SET' ?????\r\n"[..]),
            (b"+\xff\r\n-\xff\r\n+\xff\r\n", b"+\xff\r\n-?\r\n+\xff\r\n"),
            (b"$4\r\n-\xff\r\n\r\n-\xff\r\n", b"$4\r\n-\xff\r\n\r\n-?\r\n"),
            (b"$0\r\n\r\n-\xff\r\n", b"$0\r\n\r\n-?\r\n"),
            (b"$-1\r\n-\xff\r\n", b"$-1\r\n-?\r\n"),
            (b"=2\r\n-\xff\r\n!1\r\n\xff\r\n-\xff\r\n", b"=2\r\n-\xff\r\n!1\r\n\xff\r\n-?\r\n"),
            (
                b"*2\r\n*-1\r\n*2\r\n:-1\r\n-\xff\r\n-\xff\r\n",
                b"*2\r\n*-1\r\n*2\r\n:-1\r\n-?\r\n-?\r\n",
            ),
            (
                b"%1\r\n+k\r\n-\xff\r\n>1\r\n-\xff\r\n|1\r\n_\r\n#t\r\n~1\r\n,1\r\n(1\r\n-\xff\r\n",
                b"%1\r\n+k\r\n-?\r\n>1\r\n-?\r\n|1\r\n_\r\n#t\r\n~1\r\n,1\r\n(1\r\n-?\r\n",
            ),
            (b"-a\rb\xff\r\r\n-\xff\r\n", b"-a\rb?\r\r\n-?\r\n"),
        ] {
            assert_eq!(
                cleaned(sent, &[]).escape_ascii().to_string(),
                read.escape_ascii().to_string()
            );
        }
    }

    #[test]
    fn other_protocols_pass_unchanged() {
        for bytes in [
            &b"\x15\x03\x01\x00\x02\x02\x46-\xff\r\n"[..],
            b"HTTP/1.1 400 Bad Request\r\n-\xff\r\n",
            b"$\r\n-\xff\r\n",
            b"$1x\r\n-\xff\r\n",
            b"$99999999999999999999\r\n-\xff\r\n",
            b"$18446744073709551615\r\n-\xff\r\n",
        ] {
            assert_eq!(cleaned(bytes, &[]), bytes);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn stream_is_read_cleaned_and_written_unchanged() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut ours = Sanitized::new(BufWriter::new(ours));
        theirs.write_all(b"-ERR \xff").await.unwrap();
        let mut room = [0; 32];
        let mut buffer = ReadBuf::new(&mut room);
        buffer.put_slice(b"\xff");
        poll_fn(|cx| Pin::new(&mut ours).poll_read(cx, &mut buffer)).await.unwrap();
        assert_eq!(buffer.filled(), b"\xff-ERR ?");

        let second = Duration::from_secs(1);
        ours.write_all(b"-\xff").await.unwrap();
        let slices = [IoSlice::new(b"\r\n"), IoSlice::new(b"-\xff\r\n")];
        assert_eq!(ours.write_vectored(&slices).await.unwrap(), 6);
        ours.flush().await.unwrap();
        let mut written = [0; 8];
        timeout(second, theirs.read_exact(&mut written)).await.unwrap().unwrap();
        assert_eq!(written, *b"-\xff\r\n-\xff\r\n");
        ours.shutdown().await.unwrap();
        assert_eq!(timeout(second, theirs.read(&mut written)).await.unwrap().unwrap(), 0);
    }

    /// Generates sequences of valid and broken protocol elements.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let payload = |mark: &'static str| {
            vec(any::<u8>(), 0..20).prop_map(move |bytes| {
                [format!("{mark}{}\r\n", bytes.len()).as_bytes(), &bytes, b"\r\n"].concat()
            })
        };
        let piece = prop_oneof![
            vec(any::<u8>(), 0..20).prop_map(|text| [&b"-"[..], &text, b"\r\n"].concat()),
            prop_oneof![payload("$"), payload("="), payload("!")],
            "[+:*%~>|,#(_][0-9a-z]{0,3}\r\n".prop_map(String::into_bytes),
            Just(b"$-1\r\n".to_vec()),
            vec(any::<u8>(), 0..4),
        ];
        vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn pieces_are_read_like_the_whole(bytes in stream(), pieces in vec(0..9_usize, 0..60)) {
            prop_assert_eq!(cleaned(&bytes, &pieces), cleaned(&bytes, &[]));
        }

        /// Whatever an error echoes, the client can read the error, and the payload between the errors is
        /// unchanged.
        #[test]
        fn client_reads_every_error(
            text in vec(any::<u8>().prop_filter("the line's end", |byte| *byte != b'\r'), 0..60),
            payload in vec(any::<u8>(), 0..60),
        ) {
            let length = payload.len();
            let sent = [
                &b"*3\r\n-ERR "[..], &text, b"\r\n",
                format!("${length}\r\n").as_bytes(), &payload, b"\r\n-ERR ", &text, b"\r\n",
            ]
            .concat();
            let read = parse_redis_value(&cleaned(&sent, &[])).unwrap();
            let ::redis::Value::Array(elements) = read else { panic!("{read:?}") };
            prop_assert_eq!(&elements[1], &::redis::Value::BulkString(payload));
        }
    }
}
