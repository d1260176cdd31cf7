use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::Stream;

use super::PayloadError;
use crate::digest::{Digest, Hasher};

/// Passes bytes on while it hashes them, and withholds the last piece until the digest is right:
/// who reads to the end has read exactly the bytes of that digest.
#[derive(Debug)]
pub struct Verified<S> {
    inner: S,
    digest: Digest,
    /// `None` once the end was reached.
    hasher: Option<Hasher>,
    withheld: Option<Bytes>,
}

impl<S> Verified<S> {
    /// Verifies that `inner` gives the bytes of `digest`.
    pub fn new(inner: S, digest: Digest) -> Self {
        let hasher = Some(digest.hasher());
        Self { inner, digest, hasher, withheld: None }
    }
}

impl<S: Stream<Item = io::Result<Bytes>> + Unpin> Stream for Verified<S> {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if self.hasher.is_none() {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut self.inner).poll_next(context)) {
                Some(Ok(chunk)) if chunk.is_empty() => {}
                Some(Ok(chunk)) => {
                    if let Some(hasher) = &mut self.hasher {
                        hasher.update(&chunk);
                    }
                    if let Some(before) = self.withheld.replace(chunk) {
                        return Poll::Ready(Some(Ok(before)));
                    }
                }
                Some(Err(error)) => {
                    self.hasher = None;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    let found = self.hasher.take().map(Hasher::finish);
                    return Poll::Ready(match found {
                        Some(found) if found != self.digest => {
                            let digest = self.digest.clone();
                            Some(Err(io::Error::new(
                                io::ErrorKind::InvalidData,
                                PayloadError::WrongDigest { digest, found },
                            )))
                        }
                        _ => self.withheld.take().map(Ok),
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    async fn read(chunks: &'static [&'static [u8]], digest: Digest) -> (Vec<u8>, Option<io::Error>) {
        let inner = futures::stream::iter(chunks.iter().map(|chunk| Ok(Bytes::from_static(chunk))));
        let mut stream = Verified::new(inner, digest);
        let (mut bytes, mut error) = (Vec::new(), None);
        while let Some(chunk) = stream.next().await {
            match chunk {
                Ok(chunk) => bytes.extend(chunk),
                Err(found) => error = Some(found),
            }
        }
        (bytes, error)
    }

    #[tokio::test]
    async fn the_right_bytes_all_come_through() {
        let (bytes, error) = read(&[b"cha", b"", b"ron"], Digest::sha256(b"charon")).await;
        assert_eq!((bytes.as_slice(), error.is_none()), (b"charon".as_slice(), true));
        let (bytes, error) = read(&[], Digest::sha256(b"")).await;
        assert!(bytes.is_empty() && error.is_none());
    }

    #[tokio::test]
    async fn of_wrong_bytes_the_last_piece_never_comes() {
        let (bytes, error) = read(&[b"cha", b"ron"], Digest::sha256(b"styx")).await;
        assert_eq!(bytes, b"cha");
        assert!(error.unwrap().to_string().contains("corrupt"));
    }
}
