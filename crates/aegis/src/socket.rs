//! The socket of a connection: the head of an answer and a small body go out in one plain `send`. Each part by itself in a `writev` takes the kernel
//! through its files' layer, which costs more than to copy a kilobyte. Nothing is held here: what is too large to copy goes as it is. Promises that a
//! peer that takes nothing of what is sent to it keeps its connection for a while, and not for good: no timer of hyper's runs then.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use aegis_edge::Alarm;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Most bytes that are copied: more than an answer to a call has.
const SMALL: usize = 2048;

/// How long a peer may take nothing of what is sent to it.
const PATIENCE: Duration = Duration::from_secs(30);

/// A socket, as hyper reads and writes it.
#[derive(Debug)]
pub(crate) struct Socket {
    io: TokioIo<TcpStream>,
    /// The connection's.
    alarm: Alarm,
    patience: Duration,
    /// When the peer is given up, if it takes nothing until then; None while it takes what is sent.
    until: Option<Instant>,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream, alarm: Alarm) -> Self {
        Self { io: TokioIo::new(stream), alarm, patience: PATIENCE, until: None }
    }

    fn io(self: Pin<&mut Self>) -> Pin<&mut TokioIo<TcpStream>> {
        Pin::new(&mut self.get_mut().io)
    }

    /// What a write came to, or the end of patience.
    fn in_time(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.until = None;
            return written;
        }
        let patience = self.patience;
        let until = *self.until.get_or_insert_with(|| Instant::now() + patience);
        self.alarm.poll_until(until, context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Read for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        self.io().poll_read(context, buffer)
    }
}

impl Write for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.as_mut().io().poll_write(context, bytes);
        self.in_time(context, written)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [whole] = parts {
            return self.poll_write(context, whole);
        }
        let mut small = [0_u8; SMALL];
        let mut length = 0;
        for part in parts {
            let Some(place) = small.get_mut(length..length + part.len()) else {
                let written = self.as_mut().io().poll_write_vectored(context, parts);
                return self.in_time(context, written);
            };
            place.copy_from_slice(part);
            length += part.len();
        }
        self.poll_write(context, &small[..length])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::poll_fn;

    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_is_written_in_parts_arrives_in_order_whatever_its_size() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut socket = Socket::new(listener.accept().await.unwrap().0, Alarm::default());
        assert!(socket.is_write_vectored());
        let bytes: Vec<u8> = (0..3 * SMALL).map(|place| (place % 251) as u8).collect();
        for parts in [
            vec![],
            vec![7],
            vec![0, 1, 2, 3],
            vec![SMALL / 2, SMALL / 2],
            vec![SMALL - 1, 2],
            vec![SMALL, 0],
            vec![SMALL, 1],
            vec![1, 2 * SMALL],
        ] {
            let mut slices = Vec::new();
            let mut end = 0;
            for length in parts {
                slices.push(IoSlice::new(&bytes[end..end + length]));
                end += length;
            }
            let written = poll_fn(|context| Pin::new(&mut socket).poll_write_vectored(context, &slices)).await.unwrap();
            assert_eq!(written, end, "the peer's buffer takes all of it");
            let mut read = Vec::new();
            while read.len() < end {
                peer.readable().await.unwrap();
                let mut buffer = [0; 1024];
                match peer.try_read(&mut buffer) {
                    Ok(count) => read.extend_from_slice(&buffer[..count]),
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            }
            assert_eq!(read, bytes[..end]);
        }
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_given_up_and_one_that_takes_a_little_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let alarm = Alarm::default();
        let stream = listener.accept().await.unwrap().0;
        let mut socket = Socket { patience: Duration::from_millis(50), ..Socket::new(stream, alarm) };
        let bytes = vec![7; 64 * 1024];
        // Whole and in parts, until the buffers of both sides are full.
        let refused = loop {
            let slices = [IoSlice::new(&bytes), IoSlice::new(&bytes)];
            if let Err(error) = poll_fn(|context| Pin::new(&mut socket).poll_write_vectored(context, &slices)).await {
                break error;
            }
        };
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        let again = poll_fn(|context| Pin::new(&mut socket).poll_write(context, &bytes)).await;
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::TimedOut, "it does not begin to wait anew");

        let taking = tokio::spawn(async move {
            let mut buffer = vec![0; 1024 * 1024];
            loop {
                peer.readable().await.unwrap();
                match peer.try_read(&mut buffer) {
                    Ok(0) => return,
                    Ok(_) => {}
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            }
        });
        socket.patience = Duration::from_secs(3600);
        socket.until = None;
        let written = poll_fn(|context| Pin::new(&mut socket).poll_write(context, &bytes)).await;
        assert!(written.unwrap() > 0);
        assert_eq!(socket.until, None, "who takes something has all the time again");
        drop(socket);
        taking.await.unwrap();
    }
}
