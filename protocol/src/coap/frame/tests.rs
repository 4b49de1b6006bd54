use alloc::{string::ToString, vec, vec::Vec};

use coap_lite::{ContentFormat, MessageClass, Packet, RequestType, ResponseType};
use proptest::prelude::*;

use super::*;
use crate::coap::block::Szx;

const LIMIT: usize = 1 << 20;

fn encode(message: &OutMessage<'_>, token: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(Token::new(token).unwrap(), LIMIT, &mut out).unwrap();
    out
}

fn sample() -> Vec<u8> {
    let block = Block::new(3, true, Szx::BERT).unwrap();
    let message = OutMessage::new(Code::POST)
        .payload(b"payload")
        .accept(format::OCTET_STREAM)
        .query("from=12")
        .path("/v1/log/ima")
        .content_format(format::OCTET_STREAM)
        .block2(block)
        .size2(70_000);
    encode(&message, b"tok")
}

#[test]
fn the_example_of_the_specification_decodes() {
    // RFC 8323 §3.2: a 2.03 with the token 7f, no options, no payload.
    let (message, used) = decode(&[0x01, 0x43, 0x7F], LIMIT).unwrap().unwrap();
    assert_eq!((used, message.code.to_string().as_str()), (3, "2.03"));
    assert_eq!(message.token.as_bytes(), [0x7F]);
    assert_eq!((message.options.iter().count(), message.payload.len()), (0, 0));
}

#[test]
fn bytes_of_a_request_are_pinned() {
    let message = OutMessage::new(Code::POST).path("v1/hello").payload(&[1, 2]);
    assert_eq!(encode(&message, &[9]), b"\xC1\x02\x09\xB2v1\x05hello\xFF\x01\x02");
}

#[test]
fn a_message_round_trips() {
    let bytes = sample();
    let (message, used) = decode(&bytes, LIMIT).unwrap().unwrap();
    assert_eq!(used, bytes.len());
    assert_eq!((message.code, message.token.as_bytes(), message.payload), (Code::POST, &b"tok"[..], &b"payload"[..]));
    let options = message.options;
    assert_eq!(options.path::<4>().unwrap().as_slice(), ["v1", "log", "ima"]);
    assert_eq!(options.path::<2>(), None);
    assert_eq!((options.query("from"), options.query("fro")), (Some("12"), None));
    assert_eq!((options.content_format(), options.accept()), (Some(42), Some(42)));
    assert_eq!(options.block2(), Ok(Some(Block::new(3, true, Szx::BERT).unwrap())));
    assert_eq!((options.block1(), options.size1(), options.size2()), (Ok(None), None, Some(70_000)));
    assert_eq!(options.unknown_critical(), None);
}

#[test]
fn every_truncated_prefix_asks_for_more() {
    let bytes = sample();
    for len in 0..bytes.len() {
        assert!(decode(&bytes[..len], LIMIT).unwrap().is_none(), "{len}");
    }
}

#[test]
fn trailing_bytes_are_left_alone() {
    let mut bytes = sample();
    let len = bytes.len();
    bytes.extend_from_slice(&[0xFF; 9]);
    assert_eq!(decode(&bytes, LIMIT).unwrap().unwrap().1, len);
}

#[test]
fn lengths_at_every_boundary_round_trip() {
    for len in [0, 1, 11, 12, 13, 267, 268, 269, 65_803, 65_804, 65_805, 100_000] {
        let payload = vec![7; len];
        let bytes = encode(&OutMessage::new(Code::CONTENT).payload(&payload), b"12345678");
        let (message, used) = decode(&bytes, LIMIT).unwrap().unwrap();
        assert_eq!((message.payload.len(), used), (len, bytes.len()));
        assert!(decode(&bytes, bytes.len()).unwrap().is_some());
        assert_eq!(decode(&bytes, bytes.len() - 1).unwrap_err(), FrameError::TooLong);
    }
    for len in [0, 12, 13, 268, 269, 1000] {
        let value = vec![7; len];
        let bytes = encode(&OutMessage::new(Code::CONTENT).raw(2000, &value).raw(1, &value).raw(14, b""), b"");
        let options = decode(&bytes, LIMIT).unwrap().unwrap().0.options;
        assert!(options.iter().eq([(1, &value[..]), (14, &[]), (2000, &value)]));
    }
}

#[test]
fn an_oversized_message_is_refused_before_its_body_is_there() {
    // 15 extended: 2^32 - 1 + 65805 bytes.
    assert_eq!(decode(&[0xF0, 0xFF, 0xFF, 0xFF, 0xFF], LIMIT).unwrap_err(), FrameError::TooLong);
    assert_eq!(decode(&[0xF0], 65_000).unwrap_err(), FrameError::TooLong, "65805 at least, whatever follows");
    assert_eq!(decode(&[0xE0, 0x10, 0x00], 4096).unwrap_err(), FrameError::TooLong);
    assert!(decode(&[0xE0, 0x0E], 4096).unwrap().is_none());
}

#[test]
fn token_lengths_over_eight_are_refused_at_the_first_byte() {
    for first in 9..=15 {
        assert_eq!(decode(&[first], LIMIT).unwrap_err(), FrameError::BadToken);
    }
    assert_eq!(Token::new(&[0; 9]), Err(FrameError::BadToken));
}

#[test]
fn malformed_options_are_refused() {
    let cases: [(&[u8], FrameError); 10] = [
        (&[0xF0], FrameError::BadOption),
        (&[0x0F], FrameError::BadOption),
        (&[0xF1, 0], FrameError::BadOption),
        (&[0xD0], FrameError::BadOption),
        (&[0xE0, 0], FrameError::BadOption),
        (&[0x1D], FrameError::BadOption),
        (&[0x13, 1, 2], FrameError::BadOption),
        (&[0xE0, 0xFE, 0xF3], FrameError::BadOption),
        (&[0x10, 0xFF], FrameError::EmptyPayload),
        (&[0xFF], FrameError::EmptyPayload),
    ];
    for (body, error) in cases {
        let mut bytes = vec![u8::try_from(body.len()).unwrap() << 4, 1];
        bytes.extend_from_slice(body);
        assert_eq!(decode(&bytes, LIMIT).unwrap_err(), error, "{body:02x?}");
    }
}

#[test]
fn an_option_too_many_is_refused_on_both_sides() {
    let full = (0..16).fold(OutMessage::new(Code::GET), |message, _| message.segment("a"));
    let mut bytes = encode(&full, b"");
    assert_eq!(decode(&bytes, LIMIT).unwrap().unwrap().0.options.iter().count(), MAX_OPTIONS);
    let mut out = vec![1];
    assert_eq!(full.segment("a").encode(Token::EMPTY, LIMIT, &mut out), Err(EncodeError::TooManyOptions));
    assert_eq!(out, [1]);
    bytes[1] += 1;
    bytes.push(0);
    assert_eq!(decode(&bytes, LIMIT).unwrap_err(), FrameError::TooManyOptions);
}

#[test]
fn what_the_peer_does_not_take_is_not_written() {
    let mut out = vec![1];
    let message = OutMessage::new(Code::CONTENT).payload(&[0; 100]);
    assert_eq!(message.encode(Token::EMPTY, 103, &mut out), Err(EncodeError::TooLong));
    assert_eq!(out, [1]);
    message.encode(Token::EMPTY, 104, &mut out).unwrap();
    assert_eq!(out.len(), 105);
    let long = vec![0; 70_000];
    let message = OutMessage::new(Code::CONTENT).raw(2, &long);
    assert_eq!(message.encode(Token::EMPTY, LIMIT, &mut out), Err(EncodeError::TooLong));
}

#[test]
fn what_may_not_be_ignored_is_told() {
    let get = || OutMessage::new(Code::GET);
    let refused = |message: &OutMessage<'_>| {
        let bytes = encode(message, b"");
        decode(&bytes, LIMIT).unwrap().unwrap().0.options.unknown_critical()
    };
    let long = [b'a'; 256];
    let whole = Block::new(0, false, Szx::MAX).unwrap();
    assert_eq!(refused(&get().path("a/a").query("b").query("b").raw(3, b"host").raw(2048, b"")), None);
    assert_eq!(refused(&get().block1(whole)), None);
    assert_eq!(refused(&get().block1(Block::new(0, true, Szx::MAX).unwrap())), Some(27));
    assert_eq!(refused(&get().block1(Block::new(1, false, Szx::MAX).unwrap())), Some(27));
    assert_eq!(refused(&get().block2(whole).block2(whole)), Some(23));
    assert_eq!(refused(&get().raw(23, &[0; 4])), Some(23));
    assert_eq!(refused(&get().accept(1).accept(1)), Some(17));
    assert_eq!(refused(&get().raw(11, &long)), Some(11));
    assert_eq!(refused(&get().raw(3, b"")), Some(3));
    assert_eq!(refused(&get().option(CoapOption::IfMatch, b"x")), Some(1));
    assert_eq!(refused(&get().option(CoapOption::ProxyUri, b"x")), Some(35));
    assert_eq!(refused(&get().raw(2049, b"")), Some(2049));
}

#[test]
fn numbers_are_those_of_coap_lite() {
    let responses = [
        (Code::CREATED, ResponseType::Created),
        (Code::CHANGED, ResponseType::Changed),
        (Code::CONTENT, ResponseType::Content),
        (Code::CONTINUE, ResponseType::Continue),
        (Code::BAD_REQUEST, ResponseType::BadRequest),
        (Code::UNAUTHORIZED, ResponseType::Unauthorized),
        (Code::BAD_OPTION, ResponseType::BadOption),
        (Code::FORBIDDEN, ResponseType::Forbidden),
        (Code::NOT_FOUND, ResponseType::NotFound),
        (Code::METHOD_NOT_ALLOWED, ResponseType::MethodNotAllowed),
        (Code::REQUEST_ENTITY_INCOMPLETE, ResponseType::RequestEntityIncomplete),
        (Code::CONFLICT, ResponseType::Conflict),
        (Code::REQUEST_ENTITY_TOO_LARGE, ResponseType::RequestEntityTooLarge),
        (Code::UNSUPPORTED_CONTENT_FORMAT, ResponseType::UnsupportedContentFormat),
        (Code::UNPROCESSABLE_ENTITY, ResponseType::UnprocessableEntity),
        (Code::TOO_MANY_REQUESTS, ResponseType::TooManyRequests),
        (Code::INTERNAL_SERVER_ERROR, ResponseType::InternalServerError),
        (Code::NOT_IMPLEMENTED, ResponseType::NotImplemented),
        (Code::SERVICE_UNAVAILABLE, ResponseType::ServiceUnavailable),
    ];
    for (ours, theirs) in responses {
        assert_eq!(ours.to_byte(), u8::from(MessageClass::Response(theirs)));
        assert!(ours.is_response() && !ours.is_request() && !ours.is_signal());
    }
    let requests = [
        (Code::GET, RequestType::Get),
        (Code::POST, RequestType::Post),
        (Code::PUT, RequestType::Put),
        (Code::DELETE, RequestType::Delete),
    ];
    for (ours, theirs) in requests {
        assert_eq!(ours.to_byte(), u8::from(MessageClass::Request(theirs)));
        assert!(ours.is_request());
    }
    let formats = [
        (format::TEXT, ContentFormat::TextPlain),
        (format::LINK, ContentFormat::ApplicationLinkFormat),
        (format::OCTET_STREAM, ContentFormat::ApplicationOctetStream),
    ];
    for (ours, theirs) in formats {
        assert_eq!(usize::from(ours), usize::from(theirs));
    }
    assert_eq!(Code::SERVICE_UNAVAILABLE.to_string(), "5.03");
    assert_eq!((Code::CSM.to_byte(), Code::ABORT.to_byte()), (0xE1, 0xE5));
    assert!(!Code::EMPTY.is_request());
}

#[test]
fn options_and_payload_are_encoded_as_coap_lite_does() {
    let mut theirs = Packet::new();
    theirs.header.code = MessageClass::Request(RequestType::Get);
    theirs.set_token(b"tk".to_vec());
    for (option, value) in [
        (CoapOption::UriPath, &b"v1"[..]),
        (CoapOption::UriPath, &[b'x'; 200]),
        (CoapOption::UriQuery, b"from=1"),
        (CoapOption::NoResponse, b"\x1A"),
        (CoapOption::Unknown(60_000), &[7; 300]),
    ] {
        theirs.add_option(option, value.to_vec());
    }
    theirs.payload = b"body".to_vec();
    let long = "x".repeat(200);
    let ours = OutMessage::new(Code::GET)
        .raw(60_000, &[7; 300])
        .uint(CoapOption::NoResponse, 26)
        .path("v1")
        .segment(&long)
        .query("from=1")
        .payload(b"body");
    // After the header: four bytes there; first byte, two of length, code here.
    assert_eq!(&encode(&ours, b"tk")[4..], &theirs.to_bytes().unwrap()[4..]);
}

#[test]
fn numbers_take_the_bytes_they_need() {
    for (value, len) in [(0, 0), (1, 1), (255, 1), (256, 2), (0xFF_FFFF, 3), (0x100_0000, 4), (u32::MAX, 4)] {
        let bytes = Uint::new(value);
        assert_eq!((bytes.as_bytes().len(), uint(bytes.as_bytes())), (len, Some(value)));
    }
    assert_eq!((uint(&[0, 0, 7]), uint(&[0; 5])), (Some(7), None));
    assert_eq!(Token::from_counter(0x0102).as_bytes(), [1, 2]);
}

#[test]
fn payloads_are_not_shown() {
    let bytes = encode(&OutMessage::new(Code::POST).path("a").payload(b"SECRET"), b"");
    let shown = alloc::format!("{:?}", decode(&bytes, LIMIT).unwrap().unwrap().0);
    assert!(shown.contains("payload_len: 6") && !shown.contains("83, 69"), "{shown}");
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), limit in 0_usize..300) {
        if let Ok(Some((message, used))) = decode(&bytes, limit) {
            prop_assert!(used <= limit && used <= bytes.len());
            prop_assert!(message.options.iter().count() <= MAX_OPTIONS);
            message.options.unknown_critical();
            // What is decoded encodes to a message that decodes to the same.
            let mut again = OutMessage::new(message.code).payload(message.payload);
            for (number, value) in message.options.iter() {
                again = again.raw(number, value);
            }
            let mut out = Vec::new();
            again.encode(message.token, usize::MAX, &mut out).unwrap();
            let (second, _) = decode(&out, usize::MAX).unwrap().unwrap();
            prop_assert_eq!((second.code, second.token, second.payload), (message.code, message.token, message.payload));
            prop_assert!(second.options.iter().eq(message.options.iter()));
        }
    }

    #[test]
    fn any_options_after_a_right_header_are_decoded_or_refused(body in prop::collection::vec(any::<u8>(), 13..200)) {
        let mut bytes = vec![0xD0, u8::try_from(body.len() - 13).unwrap(), 1];
        bytes.extend_from_slice(&body);
        if let Some((_, used)) = decode(&bytes, LIMIT).unwrap_or(None) {
            prop_assert_eq!(used, bytes.len());
        }
    }
}
