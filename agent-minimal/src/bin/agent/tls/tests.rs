//! What a server has to do before there is a connection, and what it may do then. Servers are rustls, and flights made
//! by hand where no server would send them.

use std::{
    net::TcpListener,
    sync::Arc,
    thread::{self, JoinHandle},
};

use p256::ecdsa::SigningKey;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer},
};

use super::{
    flight::{ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, Flight, HANDSHAKE},
    *,
};
use crate::{
    entropy::Kernel,
    x509::tests::{CLOCK, Ca, authority_params, ca, dns, server_params},
};

/// A certificate, and its key in the two forms that servers here take.
struct Leaf {
    der: Vec<u8>,
    key: KeyPair,
}

impl Leaf {
    fn signing_key(&self) -> SigningKey {
        // The scalar in the ECPrivateKey (RFC 5915) of a PKCS#8 key: version 1, then 32 bytes.
        let (der, head) = (self.key.serialize_der(), [2, 1, 1, 4, 32]);
        let at = der.windows(head.len()).position(|window| window == head).unwrap() + head.len();
        SigningKey::from_slice(&der[at..at + 32]).unwrap()
    }
}

fn leaf(ca: &Ca, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
    let mut params = server_params();
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    Leaf { der: params.signed_by(&key, &ca.issuer).unwrap().der().to_vec(), key }
}

fn connector(ca: &Ca) -> Connector {
    let rng = Rng::new(&Kernel::gather(Duration::ZERO), None).unwrap();
    Connector::with(Authority::all_from_pem(&ca.pem).unwrap(), rng)
}

/// A server on a port of its own, for one connection.
fn serve<T: Send + 'static>(server: impl FnOnce(TcpStream) -> T + Send + 'static) -> (TcpStream, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_nodelay(true).unwrap();
    let (stream, _) = listener.accept().unwrap();
    stream.set_nodelay(true).unwrap();
    // No test waits for ever.
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (client, thread::spawn(move || server(stream)))
}

/// What comes of a flight that is sent behind ServerHello.
fn outcome(ca: &Ca, flight: impl FnOnce(&mut Flight) + Send + 'static) -> Result<(), ConnectError> {
    let (client, server) = serve(move |stream| {
        let mut server = Flight::hello(stream);
        flight(&mut server);
        server.linger();
    });
    let result = connector(ca).open(client, &dns("gw.example.org"), CLOCK).map(|_| ());
    server.join().unwrap();
    result
}

fn proof_error(ca: &Ca, flight: impl FnOnce(&mut Flight) + Send + 'static) -> ProofError {
    match outcome(ca, flight) {
        Err(ConnectError::Unproven(why)) => why,
        other => panic!("{other:?}"),
    }
}

fn wire_error(ca: &Ca, flight: impl FnOnce(&mut Flight) + Send + 'static) -> WireError {
    match outcome(ca, flight) {
        Err(ConnectError::Wire(why)) => why,
        other => panic!("{other:?}"),
    }
}

/// Everything a server has to send, as it has to be sent.
fn complete(server: &mut Flight, leaf: &Leaf) {
    server.encrypted_extensions();
    server.certificate(&[&leaf.der]);
    server.certificate_verify(&leaf.signing_key());
    assert!(server.finished());
}

/// A flight with one certificate and an honest proof of its key: what is refused then is the certificate.
fn certificate_error(ca: &Ca, leaf: Leaf) -> CertificateError {
    let why = proof_error(ca, move |server| {
        server.encrypted_extensions();
        server.certificate(&[&leaf.der]);
        server.certificate_verify(&leaf.signing_key());
        server.finished();
    });
    match why {
        ProofError::Certificate(why) => why,
        other => panic!("{other:?}"),
    }
}

// What a server has to do.

#[test]
fn complete_flight_makes_a_connection_that_names_its_certificate() {
    let ca = ca(authority_params());
    let leaf = leaf(&ca, |_| {});
    let digest: [u8; 32] = Sha256::digest(&leaf.der).into();
    let (client, server) = serve(move |stream| {
        let mut server = Flight::hello(stream);
        server.plain(CHANGE_CIPHER_SPEC, &[1]);
        complete(&mut server, &leaf);
        assert_eq!(server.receive().unwrap(), b"question");
        server.protected(&[&b"answer"[..], &[APPLICATION_DATA, 0, 0, 0]].concat());
        server.linger();
    });
    let mut connector = connector(&ca);
    let mut connection = connector.open(client, &dns("gw.example.org"), CLOCK).unwrap();
    assert_eq!(connection.server().certificate_digest(), &digest);
    connection.write_all(b"question").unwrap();
    let mut buf = [0; 64];
    assert_eq!(connection.read(&mut buf, None), Ok(Read::Bytes(6)));
    assert_eq!(&buf[..6], b"answer");
    connection.close();
    server.join().unwrap();
}

#[test]
fn server_without_certificate_and_proof_is_refused() {
    let why = proof_error(&ca(authority_params()), |server| {
        server.encrypted_extensions();
        server.finished();
    });
    assert_eq!(why, ProofError::NoCertificate);
}

#[test]
fn certificate_without_proof_is_refused() {
    let ca = ca(authority_params());
    let leaf = leaf(&ca, |_| {});
    let why = proof_error(&ca, move |server| {
        server.encrypted_extensions();
        server.certificate(&[&leaf.der]);
        server.finished();
    });
    assert_eq!(why, ProofError::NoProof);
}

#[test]
fn proof_without_certificate_is_refused() {
    let ca = ca(authority_params());
    let leaf = leaf(&ca, |_| {});
    let why = proof_error(&ca, move |server| {
        server.encrypted_extensions();
        server.certificate_verify(&leaf.signing_key());
        server.finished();
    });
    assert_eq!(why, ProofError::OutOfOrder);
}

#[test]
fn proof_before_the_certificate_is_refused() {
    let ca = ca(authority_params());
    let leaf = leaf(&ca, |_| {});
    let why = proof_error(&ca, move |server| {
        server.encrypted_extensions();
        server.certificate_verify(&leaf.signing_key());
        server.certificate(&[&leaf.der]);
        server.finished();
    });
    assert_eq!(why, ProofError::OutOfOrder);
}

#[test]
fn second_certificate_or_proof_is_refused() {
    let ca = ca(authority_params());
    let leaf = Arc::new(leaf(&ca, |_| {}));
    for again in 0..3 {
        let leaf = Arc::clone(&leaf);
        let why = proof_error(&ca, move |server| {
            server.encrypted_extensions();
            server.certificate(&[&leaf.der]);
            if again == 0 {
                server.certificate(&[&leaf.der]);
            }
            server.certificate_verify(&leaf.signing_key());
            match again {
                1 => server.certificate_verify(&leaf.signing_key()),
                2 => server.certificate(&[&leaf.der]),
                _ => {}
            }
            server.finished();
        });
        assert_eq!(why, ProofError::OutOfOrder, "{again}");
    }
}

#[test]
fn proof_by_another_key_or_over_another_handshake_is_refused() {
    let ca = ca(authority_params());
    let leaf = Arc::new(leaf(&ca, |_| {}));
    let shown = Arc::clone(&leaf);
    let other = SigningKey::random(&mut rand_core::OsRng);
    let why = proof_error(&ca, move |server| {
        server.encrypted_extensions();
        server.certificate(&[&shown.der]);
        server.certificate_verify(&other);
        server.finished();
    });
    assert_eq!(why, ProofError::BadProof);
    let why = proof_error(&ca, move |server| {
        server.encrypted_extensions();
        let earlier: p256::ecdsa::Signature =
            p256::ecdsa::signature::Signer::sign(&leaf.signing_key(), &server.signed());
        server.certificate(&[&leaf.der]);
        server.certificate_verify_with(super::flight::ECDSA_P256_SHA256, earlier.to_der().as_bytes());
        server.finished();
    });
    assert_eq!(why, ProofError::BadProof);
}

#[test]
fn proof_of_another_scheme_or_no_signature_at_all_is_refused() {
    let ca = ca(authority_params());
    let leaf = Arc::new(leaf(&ca, |_| {}));
    for (scheme, signature, expected) in [
        (0x0503, None, ProofError::Scheme),
        (0x0807, None, ProofError::Scheme),
        (0x0403, Some(vec![]), ProofError::BadProof),
        (0x0403, Some(vec![0x30, 6, 2, 1, 0, 2, 1, 0]), ProofError::BadProof),
    ] {
        let leaf = Arc::clone(&leaf);
        let why = proof_error(&ca, move |server| {
            server.encrypted_extensions();
            server.certificate(&[&leaf.der]);
            let honest: p256::ecdsa::Signature =
                p256::ecdsa::signature::Signer::sign(&leaf.signing_key(), &server.signed());
            server.certificate_verify_with(scheme, &signature.unwrap_or_else(|| honest.to_der().as_bytes().to_vec()));
            server.finished();
        });
        assert_eq!(why, expected, "{scheme:04x}");
    }
}

#[test]
fn other_than_one_certificate_is_refused() {
    let ca = ca(authority_params());
    let leaf = Arc::new(leaf(&ca, |_| {}));
    for count in [0, 2] {
        let leaf = Arc::clone(&leaf);
        let why = proof_error(&ca, move |server| {
            server.encrypted_extensions();
            server.certificate(&vec![leaf.der.as_slice(); count]);
            server.certificate_verify(&leaf.signing_key());
            server.finished();
        });
        assert_eq!(why, ProofError::NotOneCertificate, "{count}");
    }
}

#[test]
fn certificate_with_a_request_context_is_refused() {
    let ca = ca(authority_params());
    let leaf = leaf(&ca, |_| {});
    let why = proof_error(&ca, move |server| {
        server.encrypted_extensions();
        server.certificate_with_context(b"context", &[&leaf.der]);
        server.certificate_verify(&leaf.signing_key());
        server.finished();
    });
    assert_eq!(why, ProofError::NotOneCertificate);
}

#[test]
fn certificate_with_anything_wrong_is_refused() {
    let pinned = ca(authority_params());
    let of = |change: fn(&mut CertificateParams)| certificate_error(&pinned, leaf(&pinned, change));
    assert_eq!(
        of(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
        CertificateError::NotForServers
    );
    assert_eq!(
        of(|params| {
            params.subject_alt_names = vec![SanType::DnsName("other.example.org".try_into().unwrap())];
            params.distinguished_name.push(DnType::CommonName, "gw.example.org");
        }),
        CertificateError::OtherName
    );
    assert_eq!(of(|params| params.not_after = rcgen::date_time_ymd(2026, 6, 1)), CertificateError::Expired);
    assert_eq!(of(|params| params.not_before = rcgen::date_time_ymd(2030, 1, 1)), CertificateError::NotYetValid);
    assert_eq!(of(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), CertificateError::IsAuthority);

    let other = ca(authority_params());
    assert_eq!(certificate_error(&pinned, leaf(&other, |_| {})), CertificateError::BadSignature);

    let issuing = leaf(&pinned, |_| {});
    let key = KeyPair::generate().unwrap();
    let der = server_params().signed_by(&key, &Issuer::new(server_params(), issuing.key)).unwrap().der().to_vec();
    assert_eq!(certificate_error(&pinned, Leaf { der, key }), CertificateError::UnknownIssuer);

    let mut longer = leaf(&pinned, |_| {});
    longer.der.push(0);
    assert_eq!(certificate_error(&pinned, longer), CertificateError::TrailingBytes);
}

// What the record layer lets through.

#[test]
fn record_without_content_is_refused_before_and_after_the_handshake() {
    let ca = ca(authority_params());
    assert_eq!(wire_error(&ca, |server| server.protected(&[])), WireError::Record);
    assert_eq!(after_handshake(|server| server.protected(&[])), WireError::Record);
}

#[test]
fn record_of_nothing_but_padding_is_refused() {
    let result = outcome(&ca(authority_params()), |server| server.protected(&[0; 40]));
    assert!(matches!(result, Err(ConnectError::Handshake)), "{result:?}");
    assert_eq!(after_handshake(|server| server.protected(&[0; 40])), WireError::Record);
}

#[test]
fn plaintext_record_is_refused_before_and_after_the_handshake() {
    let ca = ca(authority_params());
    for kind in [HANDSHAKE, 0, 24, 255] {
        assert_eq!(wire_error(&ca, move |server| server.plain(kind, &[4, 0, 0, 1, 0])), WireError::Record, "{kind}");
        assert_eq!(after_handshake(move |server| server.plain(kind, &[4, 0, 0, 1, 0])), WireError::Record, "{kind}");
    }
    assert_eq!(after_handshake(|server| server.plain(CHANGE_CIPHER_SPEC, &[1])), WireError::Record);
}

#[test]
fn change_of_cipher_comes_once_and_means_nothing() {
    let ca = ca(authority_params());
    for bodies in [vec![vec![1], vec![1]], vec![vec![2]], vec![vec![1, 1]], vec![vec![]]] {
        let flight = bodies.clone();
        let why = wire_error(&ca, move |server| flight.iter().for_each(|body| server.plain(CHANGE_CIPHER_SPEC, body)));
        assert_eq!(why, WireError::Record, "{bodies:?}");
    }
}

#[test]
fn alert_is_named() {
    let ca = ca(authority_params());
    assert_eq!(wire_error(&ca, |server| server.plain(ALERT, &[2, 120])), WireError::Alert(120));
    assert_eq!(wire_error(&ca, |server| server.plain(ALERT, &[2])), WireError::Record);
}

#[test]
fn first_record_has_to_be_a_server_hello() {
    let ca = ca(authority_params());
    for (record, expected) in [
        (&[APPLICATION_DATA, 3, 3, 0, 20][..], WireError::Record),
        (&[HANDSHAKE, 3, 3, 0x40, 0], WireError::Record),
        (&[HANDSHAKE, 2, 3, 0, 40], WireError::Record),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", WireError::Record),
        (&[ALERT, 3, 3, 0, 2, 2, 40], WireError::Alert(40)),
        (&[HANDSHAKE, 3], WireError::Closed),
        (&[], WireError::Closed),
    ] {
        let (client, server) = serve(move |mut stream| {
            let mut hello = [0; 5];
            stream.read_exact(&mut hello).unwrap();
            let mut body = vec![0; usize::from(u16::from_be_bytes([hello[3], hello[4]]))];
            stream.read_exact(&mut body).unwrap();
            stream.write_all(record).unwrap();
        });
        match connector(&ca).open(client, &dns("gw.example.org"), CLOCK) {
            Err(ConnectError::Wire(why)) => assert_eq!(why, expected, "{record:?}"),
            other => panic!("{record:?}: {other:?}"),
        }
        server.join().unwrap();
    }
}

#[test]
fn junk_in_place_of_the_flight_ends_in_an_error() {
    let ca = ca(authority_params());
    let mut state = 7_u32;
    for _ in 0..150 {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        // A plausible message type and length before junk, under the right keys.
        let kind = [2, 4, 8, 11, 13, 15, 20, 24][usize::from(next() % 8)];
        let len = usize::from(next());
        let mut inner = vec![kind, 0, 0, len as u8];
        inner.extend((0..len).map(|_| next() % if kind == 20 { 255 } else { 8 }));
        inner.push(HANDSHAKE);
        let result = outcome(&ca, move |server| {
            server.protected(&inner);
            server.finished();
        });
        assert!(result.is_err());
    }
}

/// What a read of an open connection says to what the server sends then.
fn after_handshake(flight: impl FnOnce(&mut Flight) + Send + 'static) -> WireError {
    let ca = ca(authority_params());
    let leaf = leaf(&ca, |_| {});
    let (client, server) = serve(move |stream| {
        let mut server = Flight::hello(stream);
        complete(&mut server, &leaf);
        flight(&mut server);
        server.linger();
    });
    let mut connector = connector(&ca);
    let mut connection = connector.open(client, &dns("gw.example.org"), CLOCK).unwrap();
    let result = connection.read(&mut [0; 64], Some(Duration::from_secs(5)));
    // After an error it stays closed.
    assert!(!matches!(connection.read(&mut [0; 64], Some(Duration::ZERO)), Ok(Read::Bytes(_) | Read::TimedOut)));
    drop(connection);
    server.join().unwrap();
    result.unwrap_err()
}

// Time.

#[test]
fn record_may_be_late_but_not_slow() {
    let ca = ca(authority_params());
    let leaf = leaf(&ca, |_| {});
    let (client, server) = serve(move |stream| {
        let mut server = Flight::hello(stream);
        complete(&mut server, &leaf);
        assert_eq!(server.receive().unwrap(), b"now");
        // A record in two parts, with a pause that is longer than the reader's wait and shorter than a record may take.
        let record = server.seal(&[&b"late"[..], &[APPLICATION_DATA]].concat());
        server.stream.write_all(&record[..9]).unwrap();
        thread::sleep(Duration::from_millis(120));
        server.stream.write_all(&record[9..]).unwrap();
        assert_eq!(server.receive().unwrap(), b"again");
        let record = server.seal(&[&b"never whole"[..], &[APPLICATION_DATA]].concat());
        server.stream.write_all(&record[..9]).unwrap();
        server.linger();
    });
    let mut connector = connector(&ca);
    connector.patience.record = Duration::from_millis(400);
    let mut connection = connector.open(client, &dns("gw.example.org"), CLOCK).unwrap();
    let (mut buf, wait) = ([0; 64], Some(Duration::from_millis(40)));
    assert_eq!(connection.read(&mut buf, wait), Ok(Read::TimedOut));
    assert!(!connection.readable_now());
    connection.write_all(b"now").unwrap();
    assert_eq!(connection.read(&mut buf, Some(Duration::from_millis(80))), Ok(Read::Bytes(4)));
    assert_eq!(connection.read(&mut buf, wait), Ok(Read::TimedOut));
    connection.write_all(b"again").unwrap();
    let start = Instant::now();
    assert_eq!(connection.read(&mut buf, Some(Duration::from_secs(5))), Err(WireError::Stalled));
    assert!(start.elapsed() < Duration::from_secs(3));
    drop(connection);
    server.join().unwrap();
}

#[test]
fn records_without_bytes_do_not_outlast_the_deadline() {
    let ca = ca(authority_params());
    let leaf = leaf(&ca, |_| {});
    let (client, server) = serve(move |stream| {
        let mut server = Flight::hello(stream);
        complete(&mut server, &leaf);
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            let record = server.seal(&[APPLICATION_DATA]);
            if server.stream.write_all(&record).is_err() {
                return true;
            }
        }
        false
    });
    let mut connector = connector(&ca);
    let mut connection = connector.open(client, &dns("gw.example.org"), CLOCK).unwrap();
    let start = Instant::now();
    assert_eq!(connection.read(&mut [0; 64], Some(Duration::from_millis(100))), Ok(Read::TimedOut));
    assert!(start.elapsed() < Duration::from_secs(2));
    drop(connection);
    assert!(server.join().unwrap());
}

#[test]
fn silent_server_ends_the_handshake() {
    let ca = ca(authority_params());
    let (client, server) = serve(|stream| Flight::hello(stream).linger());
    let mut connector = connector(&ca);
    connector.patience.handshake = Duration::from_millis(150);
    let result = connector.open(client, &dns("gw.example.org"), CLOCK).map(|_| ());
    assert!(matches!(result, Err(ConnectError::Wire(WireError::Stalled))), "{result:?}");
    server.join().unwrap();
}

#[test]
fn end_of_the_connection_is_seen_with_and_without_a_goodbye() {
    for goodbye in [true, false] {
        let ca = ca(authority_params());
        let leaf = leaf(&ca, |_| {});
        let (client, server) = serve(move |stream| {
            let mut server = Flight::hello(stream);
            complete(&mut server, &leaf);
            if goodbye {
                server.protected(&[1, 0, ALERT]);
                server.linger();
            }
        });
        let mut connector = connector(&ca);
        let mut connection = connector.open(client, &dns("gw.example.org"), CLOCK).unwrap();
        assert_eq!(connection.read(&mut [0; 64], None), Ok(Read::Closed), "{goodbye}");
        drop(connection);
        server.join().unwrap();
    }
}

// A server as it is used.

fn rustls_server(leaf: &Leaf) -> Arc<ServerConfig> {
    let provider = rustls::crypto::ring::default_provider();
    let key = PrivateKeyDer::try_from(leaf.key.serialize_der()).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![CertificateDer::from(leaf.der.clone())], key)
        .unwrap();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.max_fragment_size = Some(limits::MAX_RECORD_LEN);
    Arc::new(config)
}

#[test]
fn rustls_is_talked_to_by_name_and_by_address() {
    let ca = ca(authority_params());
    let leaf = leaf(&ca, |_| {});
    let config = rustls_server(&leaf);
    for name in [dns("gw.example.org"), ServerName::Ip("192.0.2.1".parse().unwrap())] {
        let config = Arc::clone(&config);
        let (client, server) = serve(move |stream| {
            let mut tls = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
            let mut bytes = vec![0; 40_000];
            tls.read_exact(&mut bytes).unwrap();
            assert_eq!(tls.conn.alpn_protocol(), Some(ALPN));
            tls.write_all(&bytes).unwrap();
            tls.conn.send_close_notify();
            tls.flush().unwrap();
        });
        let mut connector = connector(&ca);
        let mut connection = connector.open(client, &name, CLOCK).unwrap();
        let sent: Vec<u8> = (0..40_000_u32).map(|i| i as u8).collect();
        connection.write_all(&sent).unwrap();
        let (mut received, mut buf) = (Vec::new(), [0; 1000]);
        while let Read::Bytes(len) = connection.read(&mut buf, None).unwrap() {
            received.extend_from_slice(&buf[..len]);
            assert!(received.len() % 1000 != 0 || received.len() == 40_000 || connection.readable_now());
        }
        assert!(received == sent);
        assert!(connection.bytes_up() > 40_000 && connection.bytes_up() < 41_000);
        assert!(connection.bytes_down() > 40_000 && connection.bytes_down() < 42_000);
        server.join().unwrap();
    }
}

#[test]
fn server_that_speaks_another_protocol_is_refused() {
    let ca = ca(authority_params());
    let leaf = leaf(&ca, |_| {});
    let mut config = Arc::unwrap_or_clone(rustls_server(&leaf));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (client, server) = serve(move |stream| {
        let mut tls = StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), stream);
        let _ = tls.read(&mut [0; 1]);
        let _ = tls.sock.read(&mut [0; 1]);
    });
    let result = connector(&ca).open(client, &dns("gw.example.org"), CLOCK).map(|_| ());
    assert!(matches!(result, Err(ConnectError::Handshake)), "{result:?}");
    server.join().unwrap();
}

#[test]
fn server_that_is_not_there_is_unreachable() {
    let ca = ca(authority_params());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = ServerAddress { name: ServerName::Ip("127.0.0.1".parse().unwrap()), port };
    assert!(matches!(connector(&ca).connect(&server), Err(ConnectError::Unreachable(_))));
}

#[test]
fn authorities_that_cannot_be_read_are_named_with_their_file() {
    let rng = || Rng::new(&Kernel::gather(Duration::ZERO), None).unwrap();
    let missing = Connector::new(Path::new("/nonexistent/ca.pem"), rng()).err().unwrap();
    assert!(missing.to_string().starts_with("ca /nonexistent/ca.pem: cannot be read"), "{missing}");
    let unusable = Connector::new(Path::new("/proc/self/status"), rng()).err().unwrap();
    assert_eq!(unusable.to_string(), "ca /proc/self/status: needs 1 to 4 blocks of CERTIFICATE in PEM form");
}
