//! The socket of a connection: the head of an answer and a small body go out in one plain `send`. Each part by itself in a `writev` takes the kernel
//! through its files' layer, which costs more than to copy a kilobyte. Nothing is held here: what is too large to copy goes as it is.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Most bytes that are copied: more than an answer to a call has.
const SMALL: usize = 2048;

/// A socket, as hyper reads and writes it.
#[derive(Debug)]
pub(crate) struct Socket(TokioIo<TcpStream>);

impl Socket {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self(TokioIo::new(stream))
    }

    fn io(self: Pin<&mut Self>) -> Pin<&mut TokioIo<TcpStream>> {
        Pin::new(&mut self.get_mut().0)
    }
}

impl Read for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        self.io().poll_read(context, buffer)
    }
}

impl Write for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.io().poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if let [whole] = parts {
            return self.io().poll_write(context, whole);
        }
        let mut small = [0_u8; SMALL];
        let mut length = 0;
        for part in parts {
            let Some(place) = small.get_mut(length..length + part.len()) else {
                return self.io().poll_write_vectored(context, parts);
            };
            place.copy_from_slice(part);
            length += part.len();
        }
        self.io().poll_write(context, &small[..length])
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
        let mut socket = Socket::new(listener.accept().await.unwrap().0);
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
}
