use alloc::{format, string::String, vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::coap::block::{Fetch, Szx, slice_for};

const MAX_LEN: usize = 16 * 1024;
const CSM: [u8; 2] = [0x00, 0xE1];

/// What an event was, without its borrow.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Seen {
    Request(Token, Code, Vec<u8>),
    Response(u32, Code, Vec<u8>),
    Stray,
    Pong,
    Release(Option<u32>),
    Abort(Option<u16>, String),
}

impl From<Event<'_, u32>> for Seen {
    fn from(event: Event<'_, u32>) -> Self {
        match event {
            Event::Request { token, message } => Self::Request(token, message.code, message.payload.to_vec()),
            Event::Response { context, message } => Self::Response(context, message.code, message.payload.to_vec()),
            Event::Stray => Self::Stray,
            Event::Pong => Self::Pong,
            Event::Closing(Closing::Release(release)) => Self::Release(release.hold_off_s),
            Event::Closing(Closing::Abort(abort)) => {
                Self::Abort(abort.bad_csm_option, String::from_utf8_lossy(abort.diagnostic).into_owned())
            }
        }
    }
}

fn events(exchange: &mut Exchange<u32>, mut bytes: &[u8], now_ms: u64) -> Result<Vec<Seen>, Error> {
    let mut seen = Vec::new();
    loop {
        bytes = &bytes[exchange.feed(bytes)..];
        while let Some(event) = exchange.next_event(now_ms)? {
            seen.push(event.into());
        }
        if bytes.is_empty() {
            return Ok(seen);
        }
    }
}

/// Moves what `from` wants to send to `to`.
fn carry(from: &mut Exchange<u32>, to: &mut Exchange<u32>) -> Vec<Seen> {
    let bytes = from.take_outgoing();
    events(to, &bytes, 0).unwrap()
}

/// Two ends that know each other's CSM.
fn pair() -> (Exchange<u32>, Exchange<u32>) {
    let (mut a, mut b) = (Exchange::new(MAX_LEN), Exchange::new(MAX_LEN));
    assert!(carry(&mut a, &mut b).is_empty() && carry(&mut b, &mut a).is_empty());
    (a, b)
}

/// An end whose peer has said only that it is there.
fn ready() -> Exchange<u32> {
    let mut exchange = Exchange::new(MAX_LEN);
    assert_eq!(events(&mut exchange, &CSM, 0), Ok(vec![]));
    exchange.take_outgoing();
    exchange
}

fn bytes(message: &OutMessage<'_>, token: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(Token::new(token).unwrap(), usize::MAX, &mut out).unwrap();
    out
}

/// The Abort that waits to be sent.
fn abort_of(exchange: &Exchange<u32>) -> (Option<u16>, String) {
    let (message, used) = frame::decode(exchange.outgoing(), usize::MAX).unwrap().unwrap();
    assert_eq!(used, exchange.outgoing().len());
    match Signal::decode(&message).unwrap() {
        Signal::Abort(abort) => (abort.bad_csm_option, String::from_utf8(abort.diagnostic.to_vec()).unwrap()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn requests_go_both_ways_and_responses_in_any_order() {
    let (mut a, mut b) = pair();
    for context in 0..3 {
        a.request(&OutMessage::new(Code::POST).path("v1/hello").payload(&[context as u8 + 1]), context, 10).unwrap();
        b.request(&OutMessage::new(Code::GET).path("v1/log/boot"), 100 + context, 10).unwrap();
    }
    let (at_b, at_a) = (carry(&mut a, &mut b), carry(&mut b, &mut a));
    assert_eq!((at_a.len(), at_b.len(), a.unanswered_count(), a.pending_count()), (3, 3, 3, 3));
    for (exchange, seen) in [(&mut b, at_b), (&mut a, at_a)] {
        for request in seen.into_iter().rev() {
            let Seen::Request(token, _, payload) = request else { panic!() };
            exchange.respond(token, &OutMessage::new(Code::CONTENT).payload(&payload)).unwrap();
        }
    }
    let expected = [2, 1, 0].map(|at| Seen::Response(at, Code::CONTENT, vec![at as u8 + 1]));
    assert_eq!(carry(&mut b, &mut a), expected);
    let expected = [102, 101, 100].map(|at| Seen::Response(at, Code::CONTENT, vec![]));
    assert_eq!(carry(&mut a, &mut b), expected);
    assert_eq!((a.pending_count(), a.unanswered_count(), b.unanswered_count()), (0, 0, 0));
}

#[test]
fn one_byte_at_a_time_is_as_good_as_all_at_once() {
    let mut stream = CSM.to_vec();
    stream.extend(bytes(&OutMessage::new(Code::POST).path("v1/hello").payload(&[7; 300]), b"a"));
    stream.extend(bytes(&OutMessage::new(Code::EMPTY), b""));
    stream.extend(bytes(&OutMessage::new(Code::CONTENT), b"zz"));
    stream.extend(bytes(&OutMessage::new(Code::GET), b"b"));
    stream.extend(bytes(&Signal::Release(Release { alternative: Some("x"), hold_off_s: Some(9) }).encode(), b""));
    let expected = [
        Seen::Request(Token::new(b"a").unwrap(), Code::POST, vec![7; 300]),
        Seen::Stray,
        Seen::Request(Token::new(b"b").unwrap(), Code::GET, vec![]),
        Seen::Release(Some(9)),
    ];
    let mut merged = Exchange::new(MAX_LEN);
    assert_eq!(events(&mut merged, &stream, 0).unwrap(), expected);
    let mut split = Exchange::new(MAX_LEN);
    let seen: Vec<_> = stream.iter().flat_map(|byte| events(&mut split, &[*byte], 0).unwrap()).collect();
    assert_eq!(seen, expected);
    assert_eq!((split.stray_count(), split.unanswered_count()), (1, 2));
}

#[test]
fn csm_comes_first_and_may_come_again() {
    for first in [bytes(&OutMessage::new(Code::GET), b"t"), bytes(&Signal::Ping { custody: false }.encode(), b"")] {
        let mut exchange: Exchange<u32> = Exchange::new(MAX_LEN);
        exchange.take_outgoing();
        assert_eq!(events(&mut exchange, &first, 0), Err(Error::NoCsm));
        assert_eq!(abort_of(&exchange), (None, "first message is not CSM".into()));
    }
    let mut exchange = Exchange::new(MAX_LEN);
    assert!(!exchange.is_ready());
    let csm = |max_message_len, block_wise| bytes(&Signal::Csm(Csm { max_message_len, block_wise }).encode(), b"");
    let empty = bytes(&OutMessage::new(Code::EMPTY), b"");
    assert_eq!(events(&mut exchange, &empty, 0), Ok(vec![]));
    assert_eq!(events(&mut exchange, &csm(None, false), 0), Ok(vec![]));
    assert_eq!((exchange.is_ready(), exchange.peer_max_message_len()), (true, 1152));
    assert_eq!(exchange.block_room(), Room { payload_len: 1024, bert: false });
    assert_eq!(events(&mut exchange, &csm(Some(8192), true), 0), Ok(vec![]));
    assert_eq!(exchange.block_room(), Room { payload_len: 8064, bert: true });
    assert_eq!(events(&mut exchange, &csm(None, false), 0), Ok(vec![]));
    assert_eq!(exchange.block_room(), Room { payload_len: 8064, bert: true }, "what is not named stays");
}

#[test]
fn a_csm_that_is_not_understood_is_answered_with_its_option() {
    let mut exchange: Exchange<u32> = Exchange::new(MAX_LEN);
    exchange.take_outgoing();
    let error = Error::Signal(SignalError::CriticalOption { code: Code::CSM, option: 7 });
    assert_eq!(events(&mut exchange, &bytes(&OutMessage::new(Code::CSM).raw(7, b""), b""), 0), Err(error));
    assert_eq!(abort_of(&exchange), (Some(7), "critical option 7 of signal 7.01 is not understood".into()));
}

#[test]
fn a_ping_gets_its_pong_with_custody_once_all_is_answered() {
    let (mut a, mut b) = pair();
    b.ping().unwrap();
    assert_eq!(carry(&mut b, &mut a), []);
    assert_eq!(carry(&mut a, &mut b), [Seen::Pong]);
    let mut exchange = ready();
    let ping = bytes(&Signal::Ping { custody: true }.encode(), b"tok");
    let token = Token::new(b"q").unwrap();
    events(&mut exchange, &bytes(&OutMessage::new(Code::GET), token.as_bytes()), 0).unwrap();
    events(&mut exchange, &ping, 0).unwrap();
    assert_eq!(exchange.take_outgoing(), bytes(&Signal::Pong { custody: false }.encode(), b"tok"));
    exchange.respond(token, &OutMessage::new(Code::NOT_FOUND)).unwrap();
    exchange.take_outgoing();
    events(&mut exchange, &ping, 0).unwrap();
    assert_eq!(exchange.outgoing(), bytes(&Signal::Pong { custody: true }.encode(), b"tok"));
}

#[test]
fn a_peer_that_pings_and_does_not_read_is_cut_off() {
    let mut exchange = ready();
    let pings = bytes(&Signal::Ping { custody: false }.encode(), b"").repeat(1000);
    let error = (0..1000).find_map(|_| events(&mut exchange, &pings, 0).err());
    assert_eq!(error, Some(Error::Flooded));
    assert!(exchange.outgoing().len() < MAX_PONG_BACKLOG_LEN + 100);
}

#[test]
fn a_release_lets_what_is_under_way_finish() {
    let (mut a, mut b) = pair();
    let get = OutMessage::new(Code::GET);
    a.request(&get, 1, 10).unwrap();
    let Seen::Request(token, ..) = carry(&mut a, &mut b).remove(0) else { panic!() };
    b.release(Some(30)).unwrap();
    assert_eq!(carry(&mut b, &mut a), [Seen::Release(Some(30))]);
    assert_eq!(a.request(&get, 2, 10), Err(SendError::Closing));
    assert_eq!(b.request(&get, 2, 10), Err(SendError::Closing));
    assert!(!a.is_drained() && !b.is_drained());
    b.respond(token, &OutMessage::new(Code::CONTENT)).unwrap();
    assert!(!b.is_drained());
    assert_eq!(carry(&mut b, &mut a), [Seen::Response(1, Code::CONTENT, vec![])]);
    assert!(a.is_drained() && b.is_drained());
}

#[test]
fn an_abort_is_seen_once_and_ends_everything() {
    let (mut a, mut b) = pair();
    a.request(&OutMessage::new(Code::GET), 5, 10).unwrap();
    b.abort("too old");
    b.abort("again");
    let bytes = b.take_outgoing();
    a.feed(&bytes);
    assert_eq!(a.next_event(0).unwrap().map(Seen::from), Some(Seen::Abort(None, "too old".into())));
    assert_eq!(a.next_event(0).unwrap_err(), Error::Aborted);
    assert_eq!((a.error(), b.error()), (Some(Error::Aborted), Some(Error::Closed)));
    assert_eq!(a.ping(), Err(SendError::Over(Error::Aborted)));
    assert_eq!(a.respond(Token::EMPTY, &OutMessage::new(Code::CONTENT)), Err(SendError::Over(Error::Aborted)));
    assert_eq!((a.give_up(), a.give_up()), (Some(5), None));
    assert_eq!(b.next_event(0).unwrap_err(), Error::Closed);
    assert_eq!(b.feed(&[1; 1 << 20]), 1 << 20, "taken and dropped");
}

#[test]
fn malformed_messages_end_the_connection_with_a_reason() {
    let cases: [(&[u8], Error, &str); 6] = [
        (&[0x09], FrameError::BadToken.into(), "token length is over 8 bytes"),
        (&[0xE0, 0xFF, 0xFF], FrameError::TooLong.into(), "message is longer than the announced maximum"),
        (&[0x10, 0x01, 0xF0], FrameError::BadOption.into(), "malformed option"),
        (&[0x10, 0x01, 0xFF], FrameError::EmptyPayload.into(), "payload marker without a payload"),
        (&[0x00, 0x25], Error::ReservedCode(Code::from_byte(0x25)), "reserved message code 1.05"),
        (&[0x00, 0xE0], SignalError::UnknownCode(Code::from_byte(0xE0)).into(), "unknown signal 7.00"),
    ];
    for (bytes, error, text) in cases {
        let mut exchange = ready();
        assert_eq!(events(&mut exchange, bytes, 0), Err(error));
        assert_eq!(abort_of(&exchange), (None, text.into()));
        assert_eq!(events(&mut exchange, &CSM, 0), Err(error), "and it stays so");
        assert_eq!(exchange.error(), Some(error));
    }
}

#[test]
fn a_reason_the_peer_does_not_take_is_left_out() {
    let mut exchange: Exchange<u32> = Exchange::new(MAX_LEN);
    exchange.take_outgoing();
    let csm = Signal::Csm(Csm { max_message_len: Some(8), block_wise: false });
    events(&mut exchange, &bytes(&csm.encode(), b""), 0).unwrap();
    exchange.abort("a reason of more than eight bytes");
    assert_eq!(abort_of(&exchange), (None, String::new()));
}

#[test]
fn what_is_too_long_for_the_peer_is_refused_and_costs_nothing() {
    let mut exchange = ready();
    let long = [0; 1152];
    let error = Err(SendError::Encode(EncodeError::TooLong));
    assert_eq!(exchange.request(&OutMessage::new(Code::POST).payload(&long), 1, 10), error);
    assert_eq!(exchange.respond(Token::EMPTY, &OutMessage::new(Code::CONTENT).payload(&long)), error);
    assert_eq!((exchange.outgoing().len(), exchange.pending_count()), (0, 0));
    assert_eq!(exchange.request(&OutMessage::new(Code::POST).payload(&long[..1000]), 1, 10), Ok(()));
}

#[test]
fn a_raised_maximum_holds_at_once_and_is_told() {
    let (mut a, mut b) = pair();
    a.raise_max_message_len(100);
    assert_eq!((a.outgoing().len(), a.max_message_len()), (0, MAX_LEN));
    a.raise_max_message_len(64 * 1024);
    assert_eq!(
        b.request(&OutMessage::new(Code::POST).payload(&[0; 60_000]), 1, 10).unwrap_err(),
        EncodeError::TooLong.into()
    );
    assert_eq!(carry(&mut a, &mut b), []);
    b.request(&OutMessage::new(Code::POST).payload(&[0; 60_000]), 1, 10).unwrap();
    assert_eq!(carry(&mut b, &mut a).len(), 1);
}

#[test]
fn requests_wait_in_a_bounded_table_until_their_deadline() {
    let (mut a, mut b) = pair();
    let get = OutMessage::new(Code::GET);
    for context in 0..8 {
        a.request(&get, context, 100 - u64::from(context)).unwrap();
    }
    assert_eq!(a.request(&get, 8, 50), Err(SendError::TooManyPending));
    assert_eq!((a.next_deadline(), a.expire(92), a.expire(93), a.expire(93)), (Some(93), None, Some(7), None));
    let requests = carry(&mut a, &mut b);
    for request in requests {
        let Seen::Request(token, ..) = request else { panic!() };
        b.respond(token, &OutMessage::new(Code::CONTENT)).unwrap();
    }
    // At 98, the requests with the deadlines 94 to 98 are late as well, though nobody asked yet.
    let seen = events(&mut a, &b.take_outgoing(), 98).unwrap();
    let in_time = [0, 1].map(|context| Seen::Response(context, Code::CONTENT, vec![]));
    assert_eq!(seen[..2], in_time);
    assert_eq!(seen[2..], vec![Seen::Stray; 6]);
    let mut late: Vec<_> = core::iter::from_fn(|| a.expire(98)).collect();
    late.sort_unstable();
    assert_eq!((late, a.next_deadline(), a.stray_count()), (vec![2, 3, 4, 5, 6], None, 6));
}

#[test]
fn a_response_counts_once() {
    let (mut a, mut b) = pair();
    a.request(&OutMessage::new(Code::GET), 1, 10).unwrap();
    let Seen::Request(token, ..) = carry(&mut a, &mut b).remove(0) else { panic!() };
    b.respond(token, &OutMessage::new(Code::CONTENT)).unwrap();
    b.respond(token, &OutMessage::new(Code::CONTENT)).unwrap();
    assert_eq!(carry(&mut b, &mut a), [Seen::Response(1, Code::CONTENT, vec![]), Seen::Stray]);
}

#[test]
fn tokens_begin_again_after_the_last() {
    let (mut a, _) = pair();
    a.last_token = u32::MAX - 1;
    for _ in 0..2 {
        a.request(&OutMessage::new(Code::GET), 0, 10).unwrap();
    }
    let tokens: Vec<_> = a.pending.iter().map(|pending| pending.token).collect();
    assert_eq!(tokens, [Token::from_counter(u32::MAX), Token::from_counter(1)]);
}

#[test]
fn partly_sent_bytes_stay_in_order() {
    let (mut a, _) = pair();
    a.request(&OutMessage::new(Code::GET).path("abc"), 0, 10).unwrap();
    let all = a.outgoing().to_vec();
    a.sent(3);
    assert_eq!(a.outgoing(), &all[3..]);
    a.sent(usize::MAX);
    assert_eq!(a.outgoing(), b"");
}

#[test]
fn an_idle_connection_holds_no_large_buffer() {
    let mut exchange = ready();
    let large = bytes(&OutMessage::new(Code::POST).payload(&[0; 16_000]), b"t");
    for part in large.chunks(1000) {
        assert!(exchange.received.capacity() <= MAX_LEN);
        events(&mut exchange, part, 0).unwrap();
    }
    assert_eq!(exchange.unanswered_count(), 1);
    assert!(exchange.received.capacity() <= KEPT_BUFFER_LEN);
}

/// `client` fetches `body` from `server`; returns it with the number of round trips.
fn fetch(client: &mut Exchange<u32>, server: &mut Exchange<u32>, body: &[u8]) -> (Vec<u8>, usize) {
    let mut fetch = Fetch::new(body.len(), client.fetch_room().szx().unwrap());
    let (mut got, mut trips) = (Vec::new(), 0);
    loop {
        let request = OutMessage::new(Code::GET).path("v1/payload/1").block2(fetch.ask().unwrap());
        client.request(&request, 0, 10).unwrap();
        server.feed(&client.take_outgoing());
        let Some(Event::Request { token, message }) = server.next_event(0).unwrap() else { panic!() };
        let asked = message.options.block2().unwrap();
        let part = slice_for(asked, body.len(), server.block_room()).unwrap();
        server.respond(token, &part.response(part.of(body))).unwrap();
        let sent = server.take_outgoing();
        assert!(sent.len() <= client.max_message_len());
        trips += 1;
        let mut rest = &sent[..];
        let last = loop {
            rest = &rest[client.feed(rest)..];
            if let Some(Event::Response { message, .. }) = client.next_event(0).unwrap() {
                let chunk = fetch.accept(&message).unwrap();
                assert_eq!(chunk.offset, got.len());
                got.extend_from_slice(chunk.bytes);
                break chunk.last;
            }
        };
        if last {
            return (got, trips);
        }
    }
}

#[test]
fn a_large_body_goes_both_ways_on_one_connection() {
    let body: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 253) as u8).collect();
    let (mut a, mut b) = pair();
    assert_eq!(a.fetch_room().szx(), Ok(Szx::BERT));
    for _ in 0..2 {
        let (got, trips) = fetch(&mut a, &mut b, &body);
        assert!(got == body);
        assert_eq!(trips, (1 << 20) / (15 * 1024) + 1);
        core::mem::swap(&mut a, &mut b);
    }
}

#[test]
fn a_peer_without_bert_gets_blocks_of_1024_bytes() {
    let body = vec![3; 5000];
    let (mut a, mut b) = (Exchange::new(1152), Exchange::new(MAX_LEN));
    carry(&mut a, &mut b);
    carry(&mut b, &mut a);
    assert_eq!((a.fetch_room().szx(), b.block_room().bert), (Ok(Szx::MAX), false));
    assert_eq!(fetch(&mut a, &mut b, &body), (body, 5));
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_end_in_events_or_one_error(
        stream in prop::collection::vec(any::<u8>(), 0..600),
        piece in 1_usize..50,
        csm: bool,
    ) {
        let mut exchange = Exchange::new(256);
        if csm {
            prop_assert_eq!(events(&mut exchange, &CSM, 0), Ok(vec![]));
        }
        exchange.request(&OutMessage::new(Code::GET), 7, 10).unwrap();
        let mut failed = None;
        for bytes in stream.chunks(piece) {
            match events(&mut exchange, bytes, 0) {
                Ok(_) => prop_assert_eq!(failed, None),
                Err(error) => prop_assert_eq!(*failed.get_or_insert(error), error),
            }
            prop_assert!(exchange.received.len() <= 256);
        }
        prop_assert_eq!(exchange.error(), failed);
    }

    #[test]
    fn messages_in_any_pieces_are_the_same_messages(
        messages in prop::collection::vec((0_u8..=255, 0_usize..400, any::<u16>()), 1..10),
        pieces in prop::collection::vec(1_usize..300, 1..20),
    ) {
        let mut stream = CSM.to_vec();
        let payload = [9; 400];
        for (code, len, token) in &messages {
            // Only codes that do not end the connection.
            let code = if matches!(code >> 5, 0 | 2 | 4 | 5) { *code } else { 1 };
            let message = OutMessage::new(Code::from_byte(code)).payload(&payload[..*len]);
            stream.extend(bytes(&message, &token.to_be_bytes()));
        }
        let mut whole = Exchange::new(512);
        let expected = events(&mut whole, &stream, 0).unwrap();
        let mut split = Exchange::new(512);
        let (mut seen, mut rest) = (Vec::new(), &stream[..]);
        for piece in pieces.iter().cycle() {
            let (head, tail) = rest.split_at((*piece).min(rest.len()));
            seen.extend(events(&mut split, head, 0).unwrap());
            rest = tail;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(seen, expected);
    }
}

#[test]
fn errors_show_no_payload() {
    let mut exchange = ready();
    events(&mut exchange, &bytes(&OutMessage::new(Code::POST).payload(b"SECRET"), b"t")[..9], 0).unwrap();
    assert!(!format!("{exchange:?}").contains("83, 69"));
}
