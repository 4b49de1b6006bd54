//! TCP and TLS 1.3 to a gateway, and the only maker of [`ServerAuthenticated`].
//!
//! A server proves itself before anything else: exactly one certificate, issued directly by a pinned authority and
//! naming the configured server, then a CertificateVerify over the handshake with its key. Only when the guard has seen
//! both, in this order, does a [`Connection`] exist. Below it, [`Wire`] lets nothing through that has no place at that
//! point of the record layer. Nothing of ours rests on TLS alone; what certificates must say is [`x509`](crate::x509).

use std::{
    cell::Cell,
    fmt, fs,
    io::{self, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use embedded_io::ErrorKind;
use embedded_tls::{
    Aes128GcmSha256, CertificateEntryRef, CertificateRef, CertificateVerifyRef, CryptoProvider, FlushPolicy,
    SignatureScheme, TlsConfig, TlsContext, TlsError, TlsVerifier, blocking::TlsConnection,
};
use p256::ecdsa::{Signature, VerifyingKey, signature::Verifier as _};
use protocol::limits;
use sha2::{Digest as _, Sha256};

use crate::{
    config::ServerAddress,
    dial::dial,
    entropy::Rng,
    sys,
    x509::{self, Authority, CertificateError, Clock, PemError, ServerName},
};

/// The whole handshake: two flights each way. At 600 ms and 30 % loss one in a hundred takes longer.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(20);
/// From a record's first byte to its last: eight packets, of which, at 30 % loss, one is lost five times in a row (15 s)
/// in every thirtieth record, and six times (30 s) in every hundredth. As long as an answer may take altogether.
const RECORD_LIMIT: Duration = Duration::from_millis(limits::REQUEST_TIMEOUT_MS);
/// A record's plaintext, its content type, tag, and padding that a server may add.
const READ_BUFFER_LEN: usize = limits::MAX_RECORD_LEN + 256;
/// One message in one record, with the library's overhead of 128 bytes.
const WRITE_BUFFER_LEN: usize = 9 * 1024;
/// Ours are under 200 bytes.
const MAX_SERVER_HELLO_LEN: usize = 1024;
/// Content type and tag: the shortest record that carries anything.
const MIN_PROTECTED_LEN: usize = 17;
/// RFC 8446 §5.2.
const MAX_PROTECTED_LEN: usize = 16_384 + 256;
/// RFC 8323 §8.2.
const ALPN: &[u8] = b"coap";
/// Seconds since 1970 at which this program was made, at the latest: no clock is right that shows less. Builders of
/// images set SOURCE_DATE_EPOCH.
const BUILD_DATE: u64 = match option_env!("SOURCE_DATE_EPOCH") {
    Some(text) => decimal(text),
    None => 1_767_225_600,
};

const fn decimal(text: &str) -> u64 {
    let (mut rest, mut value) = (text.as_bytes(), 0);
    while let [digit @ b'0'..=b'9', tail @ ..] = rest {
        value = value * 10 + (*digit - b'0') as u64;
        rest = tail;
    }
    value
}

/// What is known about the time: at early boot the clock may show any date, and one before the program's making is not
/// believed.
pub(crate) fn clock() -> Clock {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Clock { not_before: BUILD_DATE, now: (now >= BUILD_DATE).then_some(now) }
}

/// Proof that a server holds the key of a certificate it was allowed to show. Only [`Connector::connect`] makes one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ServerAuthenticated {
    certificate_digest: [u8; 32],
}

impl ServerAuthenticated {
    /// SHA-256 of the certificate's DER: quotes and proofs name it, so that they are of no use at another server.
    pub(crate) const fn certificate_digest(&self) -> &[u8; 32] {
        &self.certificate_digest
    }
}

/// Why the pinned authorities could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaError {
    /// The file.
    #[error("ca {path}: cannot be read: {1}", path = .0.display())]
    Unreadable(PathBuf, io::Error),
    /// What is in it.
    #[error("ca {path}: {1}", path = .0.display())]
    Unusable(PathBuf, PemError),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The resolver does not know the name.
    #[error("its name cannot be resolved: {0}")]
    Resolve(io::Error),
    /// No TCP connection.
    #[error("it cannot be reached: {0}")]
    Unreachable(io::Error),
    /// The guard's word.
    #[error("{0}")]
    Unproven(#[from] ProofError),
    /// The record layer's.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// Not TLS 1.3 with our choices.
    #[error("it does not speak TLS 1.3 with AES-128-GCM and P-256 as required")]
    Handshake,
}

/// Why a server has not proven itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum ProofError {
    #[error("the server showed no certificate")]
    NoCertificate,
    #[error("the server did not prove that it holds its certificate's key")]
    NoProof,
    #[error("the server sent certificate and proof out of order")]
    OutOfOrder,
    #[error("the server has to show exactly one certificate, without a request context")]
    NotOneCertificate,
    #[error("the server's certificate {0}")]
    Certificate(CertificateError),
    #[error("the server's proof does not use ecdsa_secp256r1_sha256")]
    Scheme,
    #[error("the server's proof does not verify under its certificate's key")]
    BadProof,
}

/// What ended the record layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the connection was closed")]
    Closed,
    #[error("the connection broke")]
    Broken,
    #[error("the server took too long")]
    Stalled,
    #[error("the server ended the connection with TLS alert {0}")]
    Alert(u8),
    #[error("the server sent a record that has no place there")]
    Record,
}

/// How long the other end is waited for.
#[derive(Clone, Copy)]
struct Patience {
    handshake: Duration,
    record: Duration,
}

/// Makes connections, one at a time: holds what they share.
pub(crate) struct Connector {
    patience: Patience,
    authorities: Vec<Authority>,
    /// How often whoever answered was not a gateway of ours, since the last that was.
    turn: Rc<Cell<usize>>,
    rng: Rng,
    read_buf: Box<[u8]>,
    write_buf: Box<[u8]>,
}

impl Connector {
    /// Reads the pinned authorities.
    ///
    /// # Errors
    /// [`CaError`].
    pub(crate) fn new(ca: &Path, rng: Rng) -> Result<Self, CaError> {
        let pem = fs::read_to_string(ca).map_err(|why| CaError::Unreadable(ca.to_owned(), why))?;
        let authorities = Authority::all_from_pem(&pem).map_err(|why| CaError::Unusable(ca.to_owned(), why))?;
        Ok(Self::with(authorities, rng))
    }

    fn with(authorities: Vec<Authority>, rng: Rng) -> Self {
        Self {
            patience: Patience { handshake: HANDSHAKE_LIMIT, record: RECORD_LIMIT },
            authorities,
            turn: Rc::default(),
            rng,
            read_buf: vec![0; READ_BUFFER_LEN].into_boxed_slice(),
            write_buf: vec![0; WRITE_BUFFER_LEN].into_boxed_slice(),
        }
    }

    /// Connects, and has the server prove itself.
    ///
    /// # Errors
    /// [`ConnectError`]; nothing of ours was sent then but the TLS handshake.
    pub(crate) fn connect(&mut self, server: &ServerAddress) -> Result<Connection<'_>, ConnectError> {
        let addresses = server.addresses().map_err(ConnectError::Resolve)?;
        let (turn, now) = (Rc::clone(&self.turn), self.turn.get());
        let stream = dial(addresses, now).map_err(ConnectError::Unreachable)?;
        // An address may be somebody else's by now, and answer: the next connection begins with another.
        turn.set(now.wrapping_add(1));
        let connection = self.open(stream, &server.name, clock())?;
        turn.set(now);
        Ok(connection)
    }

    fn open(&mut self, stream: TcpStream, name: &ServerName, clock: Clock) -> Result<Connection<'_>, ConnectError> {
        let wire = Rc::new(Wire::new(stream, self.patience));
        let mut tls = TlsConnection::new(Socket(Rc::clone(&wire)), &mut self.read_buf, &mut self.write_buf);
        tls.set_flush_policy(FlushPolicy::Relaxed);
        let mut config = TlsConfig::new().with_alpn(&[ALPN]);
        if let ServerName::Dns(name) = name {
            config = config.with_server_name(name);
        }
        let guard = Guard { authorities: &self.authorities, name, clock, state: Proof::AwaitCertificate };
        let mut provider = Provider { guard, rng: &mut self.rng };
        let opened = tls.open(TlsContext::new(&config, &mut provider));
        // What the guard and the wire have to say comes before what the library made of it.
        let server = match (provider.guard.state, opened) {
            (Proof::Failed(why), _) => return Err(why.into()),
            (_, Err(_)) if wire.fault.get().is_some() => return Err(wire.fault().into()),
            (_, Err(_)) => return Err(ConnectError::Handshake),
            (Proof::AwaitCertificate, Ok(())) => return Err(ProofError::NoCertificate.into()),
            (Proof::AwaitVerify { .. }, Ok(())) => return Err(ProofError::NoProof.into()),
            (Proof::Proven(server), Ok(())) => server,
        };
        wire.phase.set(Phase::Open);
        Ok(Connection { tls, wire, server, buffered: 0 })
    }
}

/// What came of a read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Read {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing came in time; the connection is as it was.
    TimedOut,
    /// The server is gone.
    Closed,
}

/// An open connection to a server that has proven itself.
pub(crate) struct Connection<'a> {
    tls: TlsConnection<'a, Socket, Aes128GcmSha256>,
    wire: Rc<Wire>,
    server: ServerAuthenticated,
    /// Plaintext that was decrypted and not read yet.
    buffered: usize,
}

impl Connection<'_> {
    /// The proof this connection rests on.
    pub(crate) const fn server(&self) -> &ServerAuthenticated {
        &self.server
    }

    /// Reads what there is, waiting at most `timeout` for a record to begin; `None` waits for ever.
    ///
    /// # Errors
    /// [`WireError`]; the connection cannot be used any more.
    pub(crate) fn read(&mut self, buf: &mut [u8], timeout: Option<Duration>) -> Result<Read, WireError> {
        if buf.is_empty() {
            return Ok(Read::Bytes(0));
        }
        self.wire.deadline.set(timeout.map(|timeout| Instant::now() + timeout));
        self.wire.has_begun.set(false);
        match self.tls.read_buffered() {
            Ok(mut plaintext) => {
                let len = plaintext.pop_into(buf);
                self.buffered = plaintext.len();
                Ok(Read::Bytes(len))
            }
            Err(TlsError::Io(ErrorKind::TimedOut)) => Ok(Read::TimedOut),
            Err(TlsError::ConnectionClosed) => {
                self.wire.fault.set(Some(WireError::Closed));
                Ok(Read::Closed)
            }
            Err(_) => match self.wire.fault() {
                WireError::Closed => Ok(Read::Closed),
                fault => Err(fault),
            },
        }
    }

    /// Whether a read would return at once: plaintext is buffered, or the socket has bytes or an end.
    pub(crate) fn readable_now(&self) -> bool {
        self.buffered > 0 || sys::wait_readable(&self.wire.stream, Some(Duration::ZERO)).unwrap_or(true)
    }

    /// Sends all bytes, in one record if they fit one.
    ///
    /// # Errors
    /// [`WireError`]; the connection cannot be used any more.
    pub(crate) fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), WireError> {
        while !bytes.is_empty() {
            let taken = self.tls.write(bytes).map_err(|_| self.wire.fault())?;
            bytes = bytes.get(taken..).unwrap_or_default();
        }
        self.tls.flush().map_err(|_| self.wire.fault())
    }

    /// Bytes sent so far, as TLS records, handshake included.
    pub(crate) fn bytes_up(&self) -> u64 {
        self.wire.up.get()
    }

    /// Bytes received so far, as TLS records, handshake included.
    pub(crate) fn bytes_down(&self) -> u64 {
        self.wire.down.get()
    }

    /// Says goodbye where that is still possible.
    pub(crate) fn close(self) {
        if self.wire.fault.get().is_none() {
            let _ = self.tls.close();
        }
    }
}

impl fmt::Debug for Connection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

/// How far the guard has got.
enum Proof {
    AwaitCertificate,
    AwaitVerify { key: VerifyingKey, server: ServerAuthenticated, transcript: Sha256 },
    Proven(ServerAuthenticated),
    Failed(ProofError),
}

/// Judges what the server shows, and keeps what came of it.
struct Guard<'a> {
    authorities: &'a [Authority],
    name: &'a ServerName,
    clock: Clock,
    state: Proof,
}

impl Guard<'_> {
    fn certificate(&self, transcript: &Sha256, message: &CertificateRef<'_>) -> Result<Proof, ProofError> {
        if !matches!(self.state, Proof::AwaitCertificate) {
            return Err(ProofError::OutOfOrder);
        }
        let [CertificateEntryRef::X509(der)] = message.entries.as_slice() else {
            return Err(ProofError::NotOneCertificate);
        };
        if !has_empty_context(message) {
            return Err(ProofError::NotOneCertificate);
        }
        let key = x509::verify_server(der, self.authorities, self.name, self.clock).map_err(ProofError::Certificate)?;
        let server = ServerAuthenticated { certificate_digest: Sha256::digest(der).into() };
        Ok(Proof::AwaitVerify { key, server, transcript: transcript.clone() })
    }

    fn verify(&self, message: &CertificateVerifyRef<'_>) -> Result<Proof, ProofError> {
        let Proof::AwaitVerify { key, server, transcript } = &self.state else {
            return Err(ProofError::OutOfOrder);
        };
        if message.signature_scheme != SignatureScheme::EcdsaSecp256r1Sha256 {
            return Err(ProofError::Scheme);
        }
        // RFC 8446 §4.4.3.
        let mut signed = Vec::with_capacity(130);
        signed.resize(64, b' ');
        signed.extend_from_slice(b"TLS 1.3, server CertificateVerify\0");
        signed.extend_from_slice(&transcript.clone().finalize());
        let signature = Signature::from_der(message.signature).map_err(|_| ProofError::BadProof)?;
        key.verify(&signed, &signature).map_err(|_| ProofError::BadProof)?;
        Ok(Proof::Proven(*server))
    }

    /// After a failure the guard stays where it is, whatever else arrives.
    fn settle(&mut self, next: Result<Proof, ProofError>) -> Result<(), TlsError> {
        let next = match (&self.state, next) {
            (Proof::Failed(why), _) => Proof::Failed(*why),
            (_, Ok(next)) => next,
            (_, Err(why)) => Proof::Failed(why),
        };
        self.state = next;
        if matches!(self.state, Proof::Failed(_)) { Err(TlsError::InvalidCertificate) } else { Ok(()) }
    }
}

impl TlsVerifier<Aes128GcmSha256> for Guard<'_> {
    fn set_hostname_verification(&mut self, _: &str) -> Result<(), TlsError> {
        Ok(())
    }

    fn verify_certificate(&mut self, transcript: &Sha256, message: CertificateRef<'_>) -> Result<(), TlsError> {
        let next = self.certificate(transcript, &message);
        self.settle(next)
    }

    fn verify_signature(&mut self, message: CertificateVerifyRef<'_>) -> Result<(), TlsError> {
        let next = self.verify(&message);
        self.settle(next)
    }
}

/// Whether certificate_request_context is empty, as it has to be in a handshake (RFC 8446 §4.4.2). The field is shown
/// by nothing but the message's debug form, which is watched for it and cut off behind it.
fn has_empty_context(message: &CertificateRef<'_>) -> bool {
    const EMPTY: &[u8] = b"request_context: []";
    struct Watch {
        matched: usize,
    }
    impl fmt::Write for Watch {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            for byte in text.bytes() {
                // The first letter comes once in the pattern, so a mismatch begins anew with nothing lost.
                self.matched = match EMPTY.get(self.matched) {
                    Some(expected) if *expected == byte => self.matched + 1,
                    Some(_) => usize::from(byte == b'r'),
                    None => return Err(fmt::Error),
                };
            }
            Ok(())
        }
    }
    let mut watch = Watch { matched: 0 };
    let _ = fmt::Write::write_fmt(&mut watch, format_args!("{message:?}"));
    watch.matched == EMPTY.len()
}

/// What the library asks for: our random bytes, our guard; a client certificate there is none.
struct Provider<'a> {
    guard: Guard<'a>,
    rng: &'a mut Rng,
}

impl CryptoProvider for Provider<'_> {
    type CipherSuite = Aes128GcmSha256;
    type Signature = [u8; 0];

    fn rng(&mut self) -> impl embedded_tls::CryptoRngCore {
        &mut *self.rng
    }

    fn verifier(&mut self) -> Result<&mut impl TlsVerifier<Aes128GcmSha256>, TlsError> {
        Ok(&mut self.guard)
    }
}

/// How far the record layer has got.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Phase {
    /// One plaintext handshake record may come.
    AwaitServerHello,
    /// Protected records, and one ChangeCipherSpec that means nothing.
    Handshake { may_change_cipher: bool },
    /// Protected records.
    Open,
}

/// The socket, and where in the stream of records it stands. Shared by the library, which reads and writes, and by
/// [`Connection`], which sets deadlines and asks what went wrong.
struct Wire {
    stream: TcpStream,
    record_limit: Duration,
    phase: Cell<Phase>,
    header: Cell<[u8; 5]>,
    /// Bytes of the header that the library has not read yet.
    header_left: Cell<usize>,
    /// Bytes of the record that are still on the way.
    body_left: Cell<usize>,
    /// Until when the current record has to be complete.
    record_deadline: Cell<Instant>,
    /// Until when a record may begin.
    deadline: Cell<Option<Instant>>,
    /// Whether a record was begun for the current read: the first is taken even where the deadline is now.
    has_begun: Cell<bool>,
    fault: Cell<Option<WireError>>,
    up: Cell<u64>,
    down: Cell<u64>,
}

impl Wire {
    fn new(stream: TcpStream, patience: Patience) -> Self {
        let deadline = Instant::now() + patience.handshake;
        Self {
            stream,
            record_limit: patience.record,
            phase: Cell::new(Phase::AwaitServerHello),
            header: Cell::new([0; 5]),
            header_left: Cell::new(0),
            body_left: Cell::new(0),
            record_deadline: Cell::new(deadline),
            deadline: Cell::new(Some(deadline)),
            has_begun: Cell::new(false),
            fault: Cell::new(None),
            up: Cell::new(0),
            down: Cell::new(0),
        }
    }

    /// What went wrong; where the wire saw nothing, the bytes it carried were not what they had to be.
    fn fault(&self) -> WireError {
        let fault = self.fault.get().unwrap_or(WireError::Record);
        self.fault.set(Some(fault));
        fault
    }

    fn fail<T>(&self, fault: WireError) -> Result<T, WireError> {
        self.fault.set(Some(fault));
        Err(fault)
    }

    /// Some bytes of the current record.
    fn receive(&self, buf: &mut [u8]) -> Result<usize, WireError> {
        loop {
            let left = self.record_deadline.get().saturating_duration_since(Instant::now());
            match sys::wait_readable(&self.stream, Some(left)) {
                Ok(true) => {}
                Ok(false) => return self.fail(WireError::Stalled),
                Err(_) => return self.fail(WireError::Broken),
            }
            match (&self.stream).read(buf) {
                Ok(0) => return self.fail(WireError::Closed),
                Ok(len) => {
                    self.down.set(self.down.get() + len as u64);
                    return Ok(len);
                }
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.fail(WireError::Broken),
            }
        }
    }

    fn receive_all(&self, mut buf: &mut [u8]) -> Result<(), WireError> {
        while !buf.is_empty() {
            let len = self.receive(buf)?;
            buf = buf.get_mut(len..).unwrap_or_default();
        }
        Ok(())
    }

    /// Takes headers until one belongs to a record that the library may see. `false` if none came in time.
    fn next_record(&self) -> Result<bool, WireError> {
        loop {
            let left = self.deadline.get().map(|deadline| deadline.saturating_duration_since(Instant::now()));
            // A peer that keeps a reader busy with records of no content does not outlast the deadline.
            let in_time = match left {
                Some(Duration::ZERO) if self.has_begun.get() => Ok(false),
                _ => sys::wait_readable(&self.stream, left),
            };
            match (in_time, self.phase.get()) {
                (Ok(true), _) => {}
                (Ok(false), Phase::Open) => return Ok(false),
                (Ok(false), _) => return self.fail(WireError::Stalled),
                (Err(_), _) => return self.fail(WireError::Broken),
            }
            self.has_begun.set(true);
            if self.phase.get() == Phase::Open {
                self.record_deadline.set(Instant::now() + self.record_limit);
            }
            let mut header = [0; 5];
            self.receive_all(&mut header)?;
            let [kind, major, _, high, low] = header;
            let len = usize::from(u16::from_be_bytes([high, low]));
            match (self.phase.get(), kind, len) {
                _ if major != 3 => return self.fail(WireError::Record),
                (Phase::AwaitServerHello, 22, 4..=MAX_SERVER_HELLO_LEN) => {
                    self.phase.set(Phase::Handshake { may_change_cipher: true });
                }
                (Phase::Handshake { may_change_cipher: true }, 20, 1) => {
                    let mut body = [0];
                    self.receive_all(&mut body)?;
                    if body != [1] {
                        return self.fail(WireError::Record);
                    }
                    self.phase.set(Phase::Handshake { may_change_cipher: false });
                    continue;
                }
                (Phase::Handshake { .. } | Phase::Open, 23, MIN_PROTECTED_LEN..=MAX_PROTECTED_LEN) => {}
                (_, 21, 2) => {
                    let mut body = [0; 2];
                    self.receive_all(&mut body)?;
                    let [_, description] = body;
                    return self.fail(WireError::Alert(description));
                }
                _ => return self.fail(WireError::Record),
            }
            self.header.set(header);
            self.header_left.set(header.len());
            self.body_left.set(len);
            return Ok(true);
        }
    }

    fn read(&self, buf: &mut [u8]) -> Result<usize, SocketError> {
        if buf.is_empty() {
            return Ok(0);
        }
        if let Some(fault) = self.fault.get() {
            return Err(fault.into());
        }
        if self.header_left.get() == 0 && self.body_left.get() == 0 && !self.next_record()? {
            return Err(SocketError(ErrorKind::TimedOut));
        }
        let header = self.header.get();
        let pending = header.get(header.len() - self.header_left.get()..).unwrap_or_default();
        if !pending.is_empty() {
            let mut len = 0;
            for (to, from) in buf.iter_mut().zip(pending) {
                *to = *from;
                len += 1;
            }
            self.header_left.set(self.header_left.get() - len);
            return Ok(len);
        }
        let most = buf.len().min(self.body_left.get());
        let len = self.receive(buf.get_mut(..most).unwrap_or_default())?;
        self.body_left.set(self.body_left.get() - len);
        Ok(len)
    }

    fn write(&self, buf: &[u8]) -> Result<usize, SocketError> {
        loop {
            match (&self.stream).write(buf) {
                Ok(0) if !buf.is_empty() => {
                    self.fault.set(Some(WireError::Closed));
                    return Err(WireError::Closed.into());
                }
                Ok(len) => {
                    self.up.set(self.up.get() + len as u64);
                    return Ok(len);
                }
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => {
                    let fault = match why.kind() {
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => WireError::Stalled,
                        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => WireError::Closed,
                        _ => WireError::Broken,
                    };
                    self.fault.set(Some(fault));
                    return Err(fault.into());
                }
            }
        }
    }
}

/// The library's end of the wire.
struct Socket(Rc<Wire>);

/// What the library learns of a failure; what it was stands in [`Wire::fault`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?}")]
struct SocketError(ErrorKind);

impl From<WireError> for SocketError {
    fn from(_: WireError) -> Self {
        Self(ErrorKind::Other)
    }
}

impl embedded_io::Error for SocketError {
    fn kind(&self) -> ErrorKind {
        self.0
    }
}

impl embedded_io::ErrorType for Socket {
    type Error = SocketError;
}

impl embedded_io::Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, SocketError> {
        self.0.read(buf)
    }
}

impl embedded_io::Write for Socket {
    fn write(&mut self, buf: &[u8]) -> Result<usize, SocketError> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> Result<(), SocketError> {
        Ok(())
    }
}

#[cfg(test)]
mod flight;
#[cfg(test)]
mod tests;
