//! The payload's encryption: AES-256-GCM in the STREAM construction, chunk by chunk.
//!
//! Chunks hold [`CHUNK_LEN`] bytes of plaintext, the last one what is left, and only an empty payload has an empty
//! chunk, so that a plaintext has one ciphertext. Nonce = 7 zero bytes ‖ counter u32 big-endian ‖ last flag u8: a key
//! serves one sealing, so none repeats. Chunks that are reordered, missing or left over do not open. What the plaintext
//! holds is [`container`](super::container)'s.

use alloc::vec::Vec;
use core::fmt;
use core::mem;

use aes_gcm::aead::{AeadInPlace, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::labels;
use super::manifest::{Manifest, VerifiedManifest};
use super::secret::PayloadKey;
use crate::id::{SealingId, Subject};
use crate::limits::MAX_PAYLOAD_LEN;

/// Bytes of plaintext in a chunk: one row of a store, and what a node holds in memory at once.
pub const CHUNK_LEN: usize = 64 * 1024;
/// Bytes that a chunk grows by when it is sealed.
pub const TAG_LEN: usize = 16;
/// Bytes of a sealed chunk that is not the last.
pub const SEALED_CHUNK_LEN: usize = CHUNK_LEN + TAG_LEN;

/// Why a chunk or a whole payload was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum PayloadError {
    #[error("a chunk has a length that it cannot have at its place")]
    BadChunkLength,
    #[error("the payload is longer than its manifest says, or than the limit")]
    TooLong,
    #[error("the payload ends before its last chunk does")]
    Truncated,
    #[error("a chunk does not open: another key, another place, or altered bytes")]
    DoesNotOpen,
    #[error("the ciphertext's digest is not the manifest's")]
    WrongDigest,
    #[error("the payload has ended, or has failed before")]
    Closed,
}

/// How many bytes a payload of `plaintext_len` bytes has when it is sealed.
pub const fn ciphertext_len(plaintext_len: u64) -> u64 {
    chunk_count(plaintext_len).saturating_mul(TAG_LEN as u64).saturating_add(plaintext_len)
}

/// How many chunks a payload of `plaintext_len` bytes has; at least one.
pub const fn chunk_count(plaintext_len: u64) -> u64 {
    let full = plaintext_len.div_ceil(CHUNK_LEN as u64);
    if full == 0 { 1 } else { full }
}

/// Seals a payload's chunks in their order.
pub struct PayloadSealer(Stream);

impl PayloadSealer {
    /// Starts with the first chunk.
    pub fn new(key: &PayloadKey, subject: Subject, sealing_id: SealingId) -> Self {
        Self(Stream::new(key, subject, sealing_id))
    }

    /// Seals one chunk in place and appends its tag. Every chunk but the last holds exactly [`CHUNK_LEN`] bytes.
    ///
    /// # Errors
    /// [`PayloadError::BadChunkLength`], [`PayloadError::TooLong`], and [`PayloadError::Closed`] after the last chunk.
    /// After any of them the sealer is closed.
    pub fn seal_chunk(&mut self, chunk: &mut Vec<u8>, last: bool) -> Result<(), PayloadError> {
        let nonce = self.0.next(chunk.len(), last)?;
        let tag = self.0.cipher.encrypt_in_place_detached(Nonce::from_slice(&nonce), &self.0.associated_data, chunk);
        chunk.extend_from_slice(&tag.map_err(|_| PayloadError::TooLong)?);
        self.0.done(last);
        Ok(())
    }
}

/// Opens a payload's chunks in their order.
pub struct PayloadOpener(Stream);

impl PayloadOpener {
    /// Starts with the first chunk.
    pub fn new(key: &PayloadKey, subject: Subject, sealing_id: SealingId) -> Self {
        Self(Stream::new(key, subject, sealing_id))
    }

    /// Opens one chunk in place and takes its tag off. Every chunk but the last has [`SEALED_CHUNK_LEN`] bytes; who
    /// calls knows from the signed length which is the last.
    ///
    /// # Errors
    /// [`PayloadError::BadChunkLength`], [`PayloadError::DoesNotOpen`], [`PayloadError::TooLong`], and
    /// [`PayloadError::Closed`] after the last chunk. After any of them the opener is closed.
    pub fn open_chunk(&mut self, chunk: &mut Vec<u8>, last: bool) -> Result<(), PayloadError> {
        let Some((body, tag)) = chunk.split_last_chunk_mut::<TAG_LEN>() else {
            self.0.place = Place::Failed;
            return Err(PayloadError::BadChunkLength);
        };
        let nonce = self.0.next(body.len(), last)?;
        let tag = Tag::from_slice(tag);
        self.0
            .cipher
            .decrypt_in_place_detached(Nonce::from_slice(&nonce), &self.0.associated_data, body, tag)
            .map_err(|_| PayloadError::DoesNotOpen)?;
        self.0.done(last);
        let len = body.len();
        chunk.truncate(len);
        Ok(())
    }

    /// Whether the last chunk has been opened.
    pub const fn is_finished(&self) -> bool {
        matches!(self.0.place, Place::Finished)
    }
}

impl fmt::Debug for PayloadSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PayloadSealer")
    }
}

impl fmt::Debug for PayloadOpener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PayloadOpener")
    }
}

/// What went wrong while a payload was pushed through.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum ReceiveError<E: core::error::Error + 'static> {
    #[error("the payload was refused")]
    Payload(#[from] PayloadError),
    #[error("the plaintext was not taken")]
    Sink(#[source] E),
}

/// The plaintext of a chunk: wiped when it is dropped.
pub type Plaintext = Zeroizing<Vec<u8>>;

/// Takes a ciphertext in pieces of any length, as a verified manifest describes it, and gives out plaintext chunks.
///
/// Each chunk is authentic under K_b when it is given out; that the *whole* is what the tenant signed, only
/// [`finish`](Self::finish) says.
pub struct PayloadReceiver {
    opener: PayloadOpener,
    /// The next chunk as far as it came, then its plaintext.
    chunk: Plaintext,
    digest: Sha256,
    expected_digest: [u8; 32],
    /// Bytes of ciphertext that have not come yet.
    awaited: u64,
}

impl PayloadReceiver {
    /// Starts with the first byte.
    pub fn new(key: &PayloadKey, manifest: &VerifiedManifest) -> Self {
        let Manifest { subject, sealing_id, ciphertext_len, ciphertext_digest, .. } = *manifest.manifest();
        Self {
            opener: PayloadOpener::new(key, subject, sealing_id),
            chunk: Plaintext::default(),
            digest: Sha256::new(),
            expected_digest: ciphertext_digest,
            awaited: ciphertext_len,
        }
    }

    /// Bytes of ciphertext that have not come yet.
    pub const fn awaited(&self) -> u64 {
        self.awaited
    }

    /// Takes the next piece; `plaintext` is called with each chunk that it completes, and may take it away (with
    /// [`core::mem::take`]) rather than copy it.
    ///
    /// # Errors
    /// [`PayloadError::TooLong`] if more comes than the manifest says, [`PayloadError::DoesNotOpen`] for a chunk that
    /// is not authentic, and what `plaintext` returns. After any of them the receiver is closed.
    pub fn push<E: core::error::Error + 'static>(
        &mut self,
        piece: &[u8],
        mut plaintext: impl FnMut(&mut Plaintext) -> Result<(), E>,
    ) -> Result<(), ReceiveError<E>> {
        let result = self.take(piece, &mut plaintext);
        if result.is_err() {
            self.opener.0.place = Place::Failed;
        }
        result
    }

    /// Ends the payload: all of it came, and its digest is the one that was signed.
    ///
    /// # Errors
    /// [`PayloadError::Truncated`], [`PayloadError::WrongDigest`], and [`PayloadError::Closed`] after an earlier error.
    pub fn finish(self) -> Result<(), PayloadError> {
        match self.opener.0.place {
            Place::Open => Err(PayloadError::Truncated),
            Place::Failed => Err(PayloadError::Closed),
            Place::Finished if <[u8; 32]>::from(self.digest.finalize()) == self.expected_digest => Ok(()),
            Place::Finished => Err(PayloadError::WrongDigest),
        }
    }

    fn take<E: core::error::Error + 'static>(
        &mut self,
        mut piece: &[u8],
        plaintext: &mut impl FnMut(&mut Plaintext) -> Result<(), E>,
    ) -> Result<(), ReceiveError<E>> {
        if piece.is_empty() {
            return Ok(());
        }
        if self.opener.0.place == Place::Failed {
            return Err(PayloadError::Closed.into());
        }
        self.awaited = self.awaited.checked_sub(piece.len() as u64).ok_or(PayloadError::TooLong)?;
        self.digest.update(piece);
        let coming = usize::try_from(self.awaited).unwrap_or(usize::MAX).saturating_add(piece.len());
        self.make_room(coming);
        // What is left of `piece` is counted as come already: hence the second condition on the last chunk.
        while !piece.is_empty() {
            let room = SEALED_CHUNK_LEN.saturating_sub(self.chunk.len());
            let (head, rest) = piece.split_at_checked(room).unwrap_or((piece, &[]));
            // Where the chunk before was taken away, there is room for this piece only: the rest is made when more comes,
            // when whoever took it is done with it. So there is one buffer of a chunk's size at a time.
            self.make_room(head.len());
            self.chunk.extend_from_slice(head);
            piece = rest;
            let last = self.awaited == 0 && piece.is_empty();
            if last || self.chunk.len() == SEALED_CHUNK_LEN {
                self.opener.open_chunk(&mut self.chunk, last)?;
                plaintext(&mut self.chunk).map_err(ReceiveError::Sink)?;
                self.chunk.clear();
            }
        }
        Ok(())
    }

    /// Makes room for so many bytes more of the chunk, or for its end. What is moved is ciphertext; plaintext lies where
    /// its ciphertext did, and is wiped there.
    fn make_room(&mut self, more: usize) {
        let len = self.chunk.len().saturating_add(more).min(SEALED_CHUNK_LEN);
        if self.chunk.capacity() < len {
            let mut larger = Vec::with_capacity(len);
            larger.extend_from_slice(&self.chunk);
            self.chunk = Zeroizing::new(larger);
        }
    }
}

impl fmt::Debug for PayloadReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PayloadReceiver({} bytes awaited)", self.awaited)
    }
}

/// The place in the sequence of chunks, equal on both ends.
struct Stream {
    cipher: Aes256Gcm,
    associated_data: Vec<u8>,
    counter: u32,
    place: Place,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Place {
    /// A chunk may follow.
    Open,
    /// The last chunk is through.
    Finished,
    /// A chunk failed, or is being worked on.
    Failed,
}

impl Stream {
    fn new(key: &PayloadKey, subject: Subject, sealing_id: SealingId) -> Self {
        Self {
            cipher: Aes256Gcm::new(key.expose().into()),
            associated_data: [labels::PAYLOAD, &subject.to_bytes(), sealing_id.as_bytes()].concat(),
            counter: 0,
            place: Place::Open,
        }
    }

    /// The nonce of the next chunk, whose plaintext has `len` bytes. Until [`done`](Self::done) the stream counts as
    /// failed.
    fn next(&mut self, len: usize, last: bool) -> Result<[u8; 12], PayloadError> {
        if mem::replace(&mut self.place, Place::Failed) != Place::Open {
            return Err(PayloadError::Closed);
        }
        let first = self.counter == 0;
        let fits = if last { len <= CHUNK_LEN && (len > 0 || first) } else { len == CHUNK_LEN };
        if !fits {
            return Err(PayloadError::BadChunkLength);
        }
        let before = u64::from(self.counter).saturating_mul(CHUNK_LEN as u64);
        if before.saturating_add(len as u64) > MAX_PAYLOAD_LEN {
            return Err(PayloadError::TooLong);
        }
        let [a, b, c, d] = self.counter.to_be_bytes();
        self.counter = self.counter.checked_add(1).ok_or(PayloadError::TooLong)?;
        Ok([0, 0, 0, 0, 0, 0, 0, a, b, c, d, last.into()])
    }

    /// The chunk that [`next`](Self::next) was asked for is through.
    const fn done(&mut self, last: bool) {
        self.place = if last { Place::Finished } else { Place::Open };
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;

    use aead::stream::EncryptorBE32;
    use core::convert::Infallible;
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::hash::sha256;
    use crate::crypto::manifest::TenantSigningKey;
    use crate::crypto::secret::{KeyTag, Secret};
    use crate::id::NodeId;

    const SUBJECT: Subject = Subject::Node(NodeId([1; 32]));
    const SEALING: SealingId = SealingId([2; 16]);

    fn key(byte: u8) -> PayloadKey {
        PayloadKey::from_slice(&[byte; 32]).unwrap()
    }

    fn opener() -> PayloadOpener {
        PayloadOpener::new(&key(3), SUBJECT, SEALING)
    }

    fn plaintext(len: usize) -> Vec<u8> {
        (0..len).map(|index| u8::try_from(index % 251).unwrap()).collect()
    }

    fn seal(plaintext: &[u8]) -> Vec<Vec<u8>> {
        let mut sealer = PayloadSealer::new(&key(3), SUBJECT, SEALING);
        let count = usize::try_from(chunk_count(plaintext.len() as u64)).unwrap();
        (0..count)
            .map(|index| {
                let rest = &plaintext[index * CHUNK_LEN..];
                let mut chunk = rest[..rest.len().min(CHUNK_LEN)].to_vec();
                sealer.seal_chunk(&mut chunk, index + 1 == count).unwrap();
                chunk
            })
            .collect()
    }

    fn open(chunks: &[Vec<u8>]) -> Result<Vec<u8>, PayloadError> {
        let mut opener = opener();
        let mut plaintext = Vec::new();
        for (index, chunk) in chunks.iter().enumerate() {
            let mut chunk = chunk.clone();
            opener.open_chunk(&mut chunk, index + 1 == chunks.len())?;
            plaintext.extend(chunk);
        }
        Ok(plaintext)
    }

    #[test]
    fn payloads_of_every_shape_open() {
        for len in [0, 1, CHUNK_LEN - 1, CHUNK_LEN, CHUNK_LEN + 1, 2 * CHUNK_LEN, 3 * CHUNK_LEN + 7] {
            let chunks = seal(&plaintext(len));
            assert_eq!(chunks.concat().len() as u64, ciphertext_len(len as u64), "{len} bytes");
            assert_eq!(open(&chunks).unwrap(), plaintext(len), "{len} bytes");
        }
    }

    #[test]
    fn chunks_are_those_of_the_stream_construction() {
        let plaintext = plaintext(CHUNK_LEN + 100);
        let associated_data = [b"trefoil-v1-payload\x01".as_slice(), &[1; 32], &[2; 16]].concat();
        let mut stream = EncryptorBE32::<Aes256Gcm>::new((&[3; 32]).into(), (&[0; 7]).into());
        let payload = |msg| aead::Payload { msg, aad: &associated_data };
        let first = stream.encrypt_next(payload(&plaintext[..CHUNK_LEN])).unwrap();
        let last = stream.encrypt_last(payload(&plaintext[CHUNK_LEN..])).unwrap();
        assert_eq!(seal(&plaintext), [first, last]);
    }

    #[test]
    fn an_empty_payloads_bytes_are_pinned() {
        assert_eq!(hex::encode(seal(&[]).concat()), "fbf4b32545f4c9a70fd5febd1b7f66d7");
    }

    #[test]
    fn reordered_missing_or_repeated_chunks_do_not_open() {
        let chunks = seal(&plaintext(3 * CHUNK_LEN));
        let [a, b, c] = &chunks[..] else { unreachable!("three chunks were sealed") };
        let of = |chunks: &[&Vec<u8>]| open(&chunks.iter().map(|chunk| (*chunk).clone()).collect::<Vec<_>>());
        assert!(of(&[a, b, c]).is_ok());
        for wrong in [&[b, a, c][..], &[a, c], &[a, b], &[a, a, c], &[a, b, b, c], &[c], &[b, c]] {
            assert_eq!(of(wrong), Err(PayloadError::DoesNotOpen));
        }
    }

    #[test]
    fn nothing_follows_the_last_chunk_or_an_error() {
        let chunks = seal(&plaintext(10));
        let mut opener = opener();
        opener.open_chunk(&mut chunks[0].clone(), true).unwrap();
        assert!(opener.is_finished());
        assert_eq!(opener.open_chunk(&mut chunks[0].clone(), true), Err(PayloadError::Closed));

        let mut opener = self::opener();
        let mut altered = chunks[0].clone();
        altered[3] ^= 1;
        assert_eq!(opener.open_chunk(&mut altered, true), Err(PayloadError::DoesNotOpen));
        assert_eq!(opener.open_chunk(&mut chunks[0].clone(), true), Err(PayloadError::Closed));

        let mut sealer = PayloadSealer::new(&key(3), SUBJECT, SEALING);
        sealer.seal_chunk(&mut vec![], true).unwrap();
        assert_eq!(sealer.seal_chunk(&mut vec![], true), Err(PayloadError::Closed));
    }

    #[test]
    fn chunks_of_a_wrong_length_are_refused() {
        let sealer = || PayloadSealer::new(&key(3), SUBJECT, SEALING);
        let refused = Err(PayloadError::BadChunkLength);
        assert_eq!(sealer().seal_chunk(&mut vec![0; CHUNK_LEN - 1], false), refused);
        assert_eq!(sealer().seal_chunk(&mut vec![0; CHUNK_LEN + 1], true), refused);
        let mut sealer = sealer();
        sealer.seal_chunk(&mut vec![0; CHUNK_LEN], false).unwrap();
        assert_eq!(sealer.seal_chunk(&mut vec![], true), refused);
        assert_eq!(opener().open_chunk(&mut vec![0; TAG_LEN - 1], true), refused);
        assert_eq!(opener().open_chunk(&mut vec![0; SEALED_CHUNK_LEN + 1], true), refused);
        assert_eq!(opener().open_chunk(&mut vec![0; SEALED_CHUNK_LEN - 1], false), refused);
    }

    #[test]
    fn another_key_subject_or_sealing_does_not_open() {
        let chunk = seal(&plaintext(10)).concat();
        for mut opener in [
            PayloadOpener::new(&key(4), SUBJECT, SEALING),
            PayloadOpener::new(&key(3), Subject::Node(NodeId([9; 32])), SEALING),
            PayloadOpener::new(&key(3), SUBJECT, SealingId([9; 16])),
        ] {
            assert_eq!(opener.open_chunk(&mut chunk.clone(), true), Err(PayloadError::DoesNotOpen));
        }
    }

    #[test]
    fn more_than_the_limit_is_not_sealed() {
        let mut stream = Stream::new(&key(3), SUBJECT, SEALING);
        stream.counter = u32::try_from(MAX_PAYLOAD_LEN / CHUNK_LEN as u64).unwrap() - 1;
        assert!(stream.next(CHUNK_LEN, false).is_ok());
        stream.done(false);
        assert_eq!(stream.next(1, true), Err(PayloadError::TooLong));
    }

    fn verified(plaintext_len: usize, ciphertext: &[u8]) -> VerifiedManifest {
        let manifest = Manifest {
            subject: SUBJECT,
            payload_id: [0; 16],
            version: 1,
            sealing_id: SEALING,
            ciphertext_len: ciphertext.len() as u64,
            ciphertext_digest: sha256(&[ciphertext]),
            plaintext_len: plaintext_len as u64,
            key_tag: KeyTag([0; 32]),
            autorun: false,
            not_after: None,
        };
        let signing_key = TenantSigningKey::from_secret(&Secret::from_slice(&[9; 32]).unwrap()).unwrap();
        let bytes = manifest.encode().unwrap();
        VerifiedManifest::verify(&bytes, &signing_key.sign(&bytes), &[signing_key.public()]).unwrap()
    }

    fn receive(manifest: &VerifiedManifest, pieces: &[&[u8]]) -> Result<Vec<u8>, ReceiveError<Infallible>> {
        let mut receiver = PayloadReceiver::new(&key(3), manifest);
        let mut received = Vec::new();
        for piece in pieces {
            receiver.push(piece, |chunk| {
                received.extend_from_slice(chunk);
                Ok(())
            })?;
        }
        receiver.finish()?;
        Ok(received)
    }

    #[test]
    fn a_payload_arrives_whatever_pieces_it_comes_in() {
        for len in [0, 1, CHUNK_LEN, CHUNK_LEN + 1, 2 * CHUNK_LEN, 2 * CHUNK_LEN + 7] {
            let ciphertext = seal(&plaintext(len)).concat();
            let manifest = verified(len, &ciphertext);
            for piece_len in [1023, 1024, SEALED_CHUNK_LEN - 1, SEALED_CHUNK_LEN, SEALED_CHUNK_LEN + 1, 1 << 20] {
                let pieces: Vec<_> = ciphertext.chunks(piece_len).collect();
                assert_eq!(receive(&manifest, &pieces), Ok(plaintext(len)), "{len} in {piece_len}");
            }
        }
    }

    #[test]
    fn a_payload_that_is_short_long_or_another_is_refused() {
        let ciphertext = seal(&plaintext(CHUNK_LEN + 9)).concat();
        let manifest = verified(CHUNK_LEN + 9, &ciphertext);
        let short = &ciphertext[..ciphertext.len() - 1];
        assert_eq!(receive(&manifest, &[short]), Err(PayloadError::Truncated.into()));
        assert_eq!(receive(&manifest, &[&ciphertext[..SEALED_CHUNK_LEN]]), Err(PayloadError::Truncated.into()));
        assert_eq!(receive(&manifest, &[]), Err(PayloadError::Truncated.into()));
        assert_eq!(receive(&manifest, &[&ciphertext, &[0]]), Err(PayloadError::TooLong.into()));
        let mut altered = ciphertext.clone();
        altered[SEALED_CHUNK_LEN] ^= 1;
        assert_eq!(receive(&manifest, &[&altered]), Err(PayloadError::DoesNotOpen.into()));
        // Another payload under the right key, of the same length: it opens, but is not what was signed.
        let other = seal(&vec![7; CHUNK_LEN + 9]).concat();
        assert_eq!(receive(&manifest, &[&other]), Err(PayloadError::WrongDigest.into()));
    }

    #[test]
    fn chunks_that_are_taken_away_are_whole_and_the_next_begins_with_what_was_left() {
        let len = 3 * CHUNK_LEN + 11;
        let ciphertext = seal(&plaintext(len)).concat();
        let manifest = verified(len, &ciphertext);
        for piece_len in [1000, 1024, SEALED_CHUNK_LEN, SEALED_CHUNK_LEN + 7, 1 << 20] {
            let mut receiver = PayloadReceiver::new(&key(3), &manifest);
            let mut taken = Vec::new();
            for piece in ciphertext.chunks(piece_len) {
                let before = taken.len();
                let take = |chunk: &mut Plaintext| {
                    taken.push(core::mem::take(chunk));
                    Ok::<(), Infallible>(())
                };
                receiver.push(piece, take).unwrap();
                assert!(taken.len() == before || receiver.chunk.capacity() <= piece_len, "a second buffer");
            }
            receiver.finish().unwrap();
            assert_eq!(
                taken.iter().map(|chunk| chunk.len()).collect::<Vec<_>>(),
                [CHUNK_LEN, CHUNK_LEN, CHUNK_LEN, 11]
            );
            assert!(taken.iter().flat_map(|chunk| chunk.iter()).eq(&plaintext(len)));
        }
    }

    #[test]
    fn a_receiver_that_failed_stays_closed() {
        let ciphertext = seal(&plaintext(9)).concat();
        let mut receiver = PayloadReceiver::new(&key(3), &verified(9, &ciphertext));
        let full = |_: &mut Plaintext| Err(PayloadError::TooLong);
        assert_eq!(receiver.push(&ciphertext, full), Err(ReceiveError::Sink(PayloadError::TooLong)));
        assert_eq!(receiver.finish(), Err(PayloadError::Closed));

        let mut receiver = PayloadReceiver::new(&key(4), &verified(9, &ciphertext));
        let ignore = |_: &mut Plaintext| Ok::<(), Infallible>(());
        assert_eq!(receiver.push(&ciphertext, ignore), Err(PayloadError::DoesNotOpen.into()));
        assert_eq!(receiver.push(&ciphertext, ignore), Err(PayloadError::Closed.into()));
        assert_eq!(receiver.finish(), Err(PayloadError::Closed));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn opening_anything_is_total(chunk in proptest::collection::vec(any::<u8>(), 0..200), last in any::<bool>()) {
            let refused = opener().open_chunk(&mut chunk.clone(), last);
            prop_assert!(matches!(refused, Err(PayloadError::BadChunkLength | PayloadError::DoesNotOpen)));
        }
    }
}
