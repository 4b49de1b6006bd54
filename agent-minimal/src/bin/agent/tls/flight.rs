//! A TLS 1.3 server made by hand (RFC 8446), message by message, so that it can leave out, repeat and misplace what no
//! server would.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use aes_gcm::{Aes128Gcm, KeyInit as _, aead::Aead as _, aead::Payload};
use hmac::{Hmac, Mac as _};
use p256::{
    PublicKey,
    ecdh::EphemeralSecret,
    ecdsa::{Signature, SigningKey, signature::Signer as _},
};
use rand_core::OsRng;
use sha2::{Digest as _, Sha256};

pub(super) const ECDSA_P256_SHA256: u16 = 0x0403;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const APPLICATION_DATA: u8 = 23;
pub(super) const ALERT: u8 = 21;
pub(super) const CHANGE_CIPHER_SPEC: u8 = 20;
const ENCRYPTED_EXTENSIONS: u8 = 8;
const CERTIFICATE: u8 = 11;
const CERTIFICATE_VERIFY: u8 = 15;
const FINISHED: u8 = 20;

type Secret = [u8; 32];

/// One direction's keys.
struct Keys {
    secret: Secret,
    cipher: Aes128Gcm,
    iv: [u8; 12],
    sequence: u64,
}

impl Keys {
    fn new(secret: Secret) -> Self {
        let key = expand(&secret, "key", &[], 16);
        let iv = expand(&secret, "iv", &[], 12).try_into().unwrap();
        Self { secret, cipher: Aes128Gcm::new_from_slice(&key).unwrap(), iv, sequence: 0 }
    }

    fn nonce(&mut self) -> [u8; 12] {
        let mut nonce = self.iv;
        for (to, from) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *to ^= from;
        }
        self.sequence += 1;
        nonce
    }
}

/// The server's side of one connection, after ServerHello.
pub(super) struct Flight {
    pub(super) stream: TcpStream,
    transcript: Sha256,
    handshake_secret: Secret,
    server: Keys,
    client: Keys,
}

impl Flight {
    /// Takes the client's hello, and answers with ours.
    pub(super) fn hello(mut stream: TcpStream) -> Self {
        let (kind, hello) = read_record(&mut stream).unwrap();
        assert_eq!(kind, HANDSHAKE);
        let secret = EphemeralSecret::random(&mut OsRng);
        let share = p256::EncodedPoint::from(secret.public_key());
        let mut extensions = vec![0, 43, 0, 2, 3, 4, 0, 51, 0, 69, 0, 23, 0, 65];
        extensions.extend_from_slice(share.as_bytes());
        let mut body = vec![3, 3];
        body.extend_from_slice(&[0x5a; 32]);
        body.extend_from_slice(&[0, 0x13, 0x01, 0]);
        body.extend_from_slice(&(extensions.len() as u16).to_be_bytes());
        body.extend_from_slice(&extensions);
        let message = message(2, &body);
        let transcript = Sha256::new().chain_update(&hello).chain_update(&message);
        let shared = secret.diffie_hellman(&client_share(&hello));
        let early = extract(&[0; 32], &[0; 32]);
        let handshake_secret = extract(&derive(&early, "derived", &Sha256::new()), shared.raw_secret_bytes());
        let server = Keys::new(derive(&handshake_secret, "s hs traffic", &transcript));
        let client = Keys::new(derive(&handshake_secret, "c hs traffic", &transcript));
        write_record(&mut stream, HANDSHAKE, &message);
        Self { stream, transcript, handshake_secret, server, client }
    }

    /// A record as it is.
    pub(super) fn plain(&mut self, kind: u8, bytes: &[u8]) {
        write_record(&mut self.stream, kind, bytes);
    }

    /// A record protected under the keys of this moment; `inner` ends with its content type, where it has one.
    pub(super) fn protected(&mut self, inner: &[u8]) {
        let record = self.seal(inner);
        let _ = self.stream.write_all(&record);
    }

    /// The bytes of such a record, not sent yet.
    pub(super) fn seal(&mut self, inner: &[u8]) -> Vec<u8> {
        let mut record = vec![APPLICATION_DATA, 3, 3];
        record.extend_from_slice(&(inner.len() as u16 + 16).to_be_bytes());
        let nonce = self.server.nonce();
        let sealed = self.server.cipher.encrypt(&nonce.into(), Payload { msg: inner, aad: &record }).unwrap();
        record.extend_from_slice(&sealed);
        record
    }

    /// A handshake message in a record of its own.
    pub(super) fn handshake(&mut self, kind: u8, body: &[u8]) {
        let message = message(kind, body);
        self.transcript.update(&message);
        self.protected(&[&message[..], &[HANDSHAKE]].concat());
    }

    pub(super) fn encrypted_extensions(&mut self) {
        self.handshake(ENCRYPTED_EXTENSIONS, b"\x00\x0b\x00\x10\x00\x07\x00\x05\x04coap");
    }

    pub(super) fn certificate(&mut self, certificates: &[&[u8]]) {
        self.certificate_with_context(&[], certificates);
    }

    pub(super) fn certificate_with_context(&mut self, context: &[u8], certificates: &[&[u8]]) {
        let mut list = Vec::new();
        for der in certificates {
            list.extend_from_slice(&(der.len() as u32).to_be_bytes()[1..]);
            list.extend_from_slice(der);
            list.extend_from_slice(&[0, 0]);
        }
        let mut body = vec![context.len() as u8];
        body.extend_from_slice(context);
        body.extend_from_slice(&(list.len() as u32).to_be_bytes()[1..]);
        body.extend_from_slice(&list);
        self.handshake(CERTIFICATE, &body);
    }

    /// What a CertificateVerify of this moment has to sign.
    pub(super) fn signed(&self) -> Vec<u8> {
        let mut signed = vec![b' '; 64];
        signed.extend_from_slice(b"TLS 1.3, server CertificateVerify\0");
        signed.extend_from_slice(&self.transcript.clone().finalize());
        signed
    }

    pub(super) fn certificate_verify(&mut self, key: &SigningKey) {
        let signature: Signature = key.sign(&self.signed());
        self.certificate_verify_with(ECDSA_P256_SHA256, signature.to_der().as_bytes());
    }

    pub(super) fn certificate_verify_with(&mut self, scheme: u16, signature: &[u8]) {
        let mut body = scheme.to_be_bytes().to_vec();
        body.extend_from_slice(&(signature.len() as u16).to_be_bytes());
        body.extend_from_slice(signature);
        self.handshake(CERTIFICATE_VERIFY, &body);
    }

    /// Finished, and from here on the keys of application data. Waits for the client's Finished; `false` if it ends
    /// the connection instead.
    pub(super) fn finished(&mut self) -> bool {
        let key: Secret = expand(&self.server.secret, "finished", &[], 32).try_into().unwrap();
        let verify = hmac(&key, &[&self.transcript.clone().finalize()]);
        self.handshake(FINISHED, &verify);
        let master = extract(&derive(&self.handshake_secret, "derived", &Sha256::new()), &[0; 32]);
        self.server = Keys::new(derive(&master, "s ap traffic", &self.transcript));
        let client = Keys::new(derive(&master, "c ap traffic", &self.transcript));
        let open = self.receive().is_some_and(|inner| inner.first() == Some(&FINISHED));
        self.client = client;
        open
    }

    /// The next protected record's plaintext, without its content type.
    pub(super) fn receive(&mut self) -> Option<Vec<u8>> {
        let (kind, body) = read_record(&mut self.stream)?;
        if kind != APPLICATION_DATA {
            return None;
        }
        let [high, low] = (body.len() as u16).to_be_bytes();
        let aad = [APPLICATION_DATA, 3, 3, high, low];
        let nonce = self.client.nonce();
        let mut inner = self.client.cipher.decrypt(&nonce.into(), Payload { msg: &body, aad: &aad }).ok()?;
        inner.pop();
        Some(inner)
    }

    /// Waits until the client is gone, so that nothing that was sent to it is lost.
    pub(super) fn linger(&mut self) {
        let mut buf = [0; 1024];
        while matches!(self.stream.read(&mut buf), Ok(1..)) {}
    }
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = (body.len() as u32).to_be_bytes().to_vec();
    message[0] = kind;
    message.extend_from_slice(body);
    message
}

fn read_record(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut header = [0; 5];
    stream.read_exact(&mut header).ok()?;
    let mut body = vec![0; u16::from_be_bytes([header[3], header[4]]).into()];
    stream.read_exact(&mut body).ok()?;
    Some((header[0], body))
}

fn write_record(stream: &mut TcpStream, kind: u8, body: &[u8]) {
    let mut record = vec![kind, 3, 3];
    record.extend_from_slice(&(body.len() as u16).to_be_bytes());
    record.extend_from_slice(body);
    // A client that has seen enough may be gone.
    let _ = stream.write_all(&record);
}

/// The P-256 share in a ClientHello: the extension's head is not to be found anywhere else.
fn client_share(hello: &[u8]) -> PublicKey {
    let head = [0, 51, 0, 71, 0, 69, 0, 23, 0, 65];
    let at = hello.windows(head.len()).position(|window| window == head).unwrap() + head.len();
    PublicKey::from_sec1_bytes(&hello[at..at + 65]).unwrap()
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Secret {
    let mut mac = <Hmac<Sha256> as hmac::Mac>::new_from_slice(key).unwrap();
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

fn extract(salt: &[u8], ikm: &[u8]) -> Secret {
    hmac(salt, &[ikm])
}

/// HKDF-Expand-Label, for at most one block (RFC 8446 §7.1).
fn expand(secret: &Secret, label: &str, context: &[u8], len: usize) -> Vec<u8> {
    let mut info = (len as u16).to_be_bytes().to_vec();
    info.push(label.len() as u8 + 6);
    info.extend_from_slice(b"tls13 ");
    info.extend_from_slice(label.as_bytes());
    info.push(context.len() as u8);
    info.extend_from_slice(context);
    hmac(secret, &[&info, &[1]])[..len].to_vec()
}

fn derive(secret: &Secret, label: &str, transcript: &Sha256) -> Secret {
    expand(secret, label, &transcript.clone().finalize(), 32).try_into().unwrap()
}
