//! CoAP over TCP: frames and the exchange.

use std::fmt::Write as _;

use protocol::{
    coap::{
        CoapOption,
        block::{Block, Szx},
        exchange::{Event, Exchange, MAX_PENDING},
        frame::{self, Code, Message, OutMessage, Token},
        route::Route,
        signal::{Csm, Release, Signal},
    },
    limits,
};

use crate::script::{Script, pieces};

/// A frame that decodes uses no more than it has, no shorter prefix of it decodes, and it encodes to a frame that says
/// the same. So do signals and routes read from it.
pub fn coap_frame(data: &[u8]) {
    let Ok(Some((message, used))) = frame::decode(data, limits::MAX_MESSAGE_LEN) else { return };
    assert!(used <= data.len() && used <= limits::MAX_MESSAGE_LEN);
    for len in 0..used.min(64) {
        let prefix = frame::decode(&data[..len], limits::MAX_MESSAGE_LEN);
        assert!(matches!(prefix, Ok(None)), "{len} of {used} bytes: {prefix:?}");
    }
    read_options(&message);
    let bytes = encode_again(&message);
    assert!(bytes.len() <= used, "the shortest encoding is longer than the frame");
    let (again, again_used) = frame::decode(&bytes, limits::MAX_MESSAGE_LEN).expect("well formed").expect("complete");
    assert_eq!(again_used, bytes.len());
    assert_eq!((again.code, again.token, again.payload), (message.code, message.token, message.payload));
    assert!(again.options.iter().eq(message.options.iter()));
    read_signal(&message);
    let path = || message.options.all(CoapOption::UriPath);
    if let Ok(route) = Route::parse(message.code.to_byte(), path(), message.options.all(CoapOption::UriQuery)) {
        let (method, path, query) = route.to_parts();
        let path = path.iter().map(String::as_bytes);
        assert_eq!(Route::parse(method as u8, path, query.iter().map(String::as_bytes)), Ok(route));
    }
}

fn encode_again(message: &Message<'_>) -> Vec<u8> {
    let mut out = OutMessage::new(message.code).payload(message.payload);
    for (number, value) in message.options.iter() {
        out = out.option(CoapOption::from(number), value);
    }
    let mut bytes = Vec::new();
    out.encode(message.token, limits::MAX_MESSAGE_LEN, &mut bytes).expect("what was decoded can be encoded");
    bytes
}

fn read_options(message: &Message<'_>) {
    let options = &message.options;
    let _ = (options.path::<4>(), options.query("from"), options.content_format(), options.accept());
    let _ = (options.size1(), options.size2(), options.unknown_critical(), options.uint(CoapOption::MaxAge));
    for block in [options.block1(), options.block2()].into_iter().flatten().flatten() {
        assert_eq!(Block::new(block.num(), block.more(), block.szx()), Ok(block));
        let _ = block.offset();
    }
    let _ = format!("{message:?}");
}

fn read_signal(message: &Message<'_>) {
    let Ok(signal) = Signal::decode(message) else { return };
    let mut bytes = Vec::new();
    let encoded = signal.encode().encode(message.token, limits::MAX_MESSAGE_LEN, &mut bytes);
    encoded.expect("a signal that was decoded can be encoded");
    let (again, _) = frame::decode(&bytes, limits::MAX_MESSAGE_LEN).expect("well formed").expect("complete");
    assert_eq!(Signal::decode(&again).map(|again| format!("{again:?}")), Ok(format!("{signal:?}")));
}

pub(crate) fn coap_frame_seeds() -> Vec<Vec<u8>> {
    messages()
        .into_iter()
        .map(|message| {
            let mut bytes = Vec::new();
            message.encode(Token::from_counter(7), limits::MAX_MESSAGE_LEN, &mut bytes).expect("it fits");
            bytes
        })
        .collect()
}

/// One of each kind that is sent.
fn messages() -> Vec<OutMessage<'static>> {
    const ID: &str = "000102030405060708090a0b0c0d0e0f";
    let szx = Szx::new(7).expect("BERT");
    let block = Block::new(5, true, szx).expect("small");
    let post = |path| OutMessage::new(Code::POST).path(path);
    vec![
        Signal::Csm(Csm { max_message_len: Some(8192), block_wise: true }).encode(),
        Signal::Ping { custody: true }.encode(),
        Signal::Pong { custody: false }.encode(),
        Signal::Release(Release { alternative: Some("coaps+tcp://other"), hold_off_s: Some(70_000) }).encode(),
        post("/v1/hello").payload(&[1; 71]),
        post("/v1/enrol").payload(&[2; 1500]),
        OutMessage::new(Code::GET).path("/v1/manifest").segment(ID),
        OutMessage::new(Code::GET).path("/v1/payload").segment(ID).block2(block),
        OutMessage::new(Code::GET).path("/v1/log/ima").query("from=12345"),
        OutMessage::new(Code::GET).path(".well-known/core").accept(40),
        OutMessage::new(Code::CONTENT).content_format(42).block2(block).size2(100_000).payload(&[3; 2048]),
        OutMessage::new(Code::CHANGED),
        OutMessage::diagnostic(Code::NOT_FOUND, "no such thing"),
        OutMessage::new(Code::EMPTY),
    ]
}

/// What an exchange hands out does not depend on how the bytes were cut; an error stays; every context that was given
/// comes back at most once; and all that it sends is well-formed frames.
///
/// Input: flags, how to cut (one byte each), then what the peer sends; or, by a flag, a script of what both ends do.
pub fn coap_exchange(data: &[u8]) {
    let mut script = Script::new(data);
    let (flags, how) = (script.byte(), script.byte());
    if flags & 2 != 0 {
        return play(&mut script);
    }
    let mut stream = if flags & 1 != 0 { Exchange::<()>::new(limits::MAX_MESSAGE_LEN).take_outgoing() } else { vec![] };
    stream.extend_from_slice(script.rest());
    assert_eq!(trace(&stream, 0), trace(&stream, how), "cut by {how}");
}

/// What comes of a stream, and what is sent.
fn trace(stream: &[u8], how: u8) -> (String, Vec<u8>) {
    let mut exchange = Exchange::new(1024);
    for context in 0..3_u8 {
        exchange.request(&OutMessage::new(Code::GET).path("a"), context, 1_000).expect("room for three");
    }
    let mut text = String::new();
    let mut returned = [false; 3];
    for mut piece in pieces(stream, how) {
        loop {
            let used = exchange.feed(piece);
            piece = &piece[used..];
            loop {
                match exchange.next_event(0) {
                    Ok(Some(event)) => {
                        if let Event::Response { context, .. } = &event {
                            let before = std::mem::replace(&mut returned[usize::from(*context)], true);
                            assert!(!before, "a request was answered twice");
                        }
                        let _ = write!(text, "{event:?} ");
                    }
                    Ok(None) => break,
                    Err(error) => {
                        assert_eq!(exchange.next_event(0).map(|_| ()), Err(error), "an error does not stay");
                        assert_eq!(exchange.feed(&[1, 2, 3]), 3);
                        let _ = write!(text, "{error:?}");
                        let sent = exchange.take_outgoing();
                        check_frames(&sent);
                        return (text, sent);
                    }
                }
            }
            if piece.is_empty() {
                break;
            }
        }
    }
    let sent = exchange.take_outgoing();
    check_frames(&sent);
    (text, sent)
}

/// Everything sent is whole frames.
pub(crate) fn check_frames(mut sent: &[u8]) {
    while !sent.is_empty() {
        let (_, used) = frame::decode(sent, usize::MAX).expect("we send frames").expect("we send whole frames");
        sent = &sent[used..];
    }
}

/// Two ends that do what a script says, with bytes of a stranger between.
fn play(script: &mut Script<'_>) {
    let mut ends = [Exchange::<u32>::new(1152), Exchange::<u32>::new(limits::MAX_MESSAGE_LEN)];
    let mut asked = [Vec::new(), Vec::new()];
    let (mut now_ms, mut next) = (0_u64, 0_u32);
    // Per end, the contexts that have not come back.
    let mut open: [Vec<u32>; 2] = [Vec::new(), Vec::new()];
    let back = |open: &mut Vec<u32>, context: u32| {
        let at = open.iter().position(|other| *other == context).expect("a context comes back once");
        open.swap_remove(at);
    };
    for _ in 0..256 {
        if script.is_done() {
            break;
        }
        let op = script.byte();
        let at = usize::from(op >> 7);
        match op & 15 {
            0 | 1 => {
                let payload = vec![op; usize::from(script.byte()) * 40];
                let message = OutMessage::new(Code::POST).path("v1/x").payload(&payload);
                let pending = ends[at].pending_count();
                if ends[at].request(&message, next, now_ms + u64::from(script.byte())).is_ok() {
                    open[at].push(next);
                    next += 1;
                } else {
                    assert_eq!(ends[at].pending_count(), pending);
                }
            }
            2 | 3 => {
                if let Some(token) = asked[at].pop() {
                    let payload = vec![op; usize::from(script.byte()) * 40];
                    let _ = ends[at].respond(token, &OutMessage::new(Code::CONTENT).payload(&payload));
                }
            }
            4 => {
                let _ = ends[at].ping();
            }
            5 => {
                let _ = ends[at].release(Some(u32::from(script.byte())));
            }
            6 => ends[at].raise_max_message_len(usize::from(script.byte()) * 64),
            7 => {
                now_ms += u64::from(script.byte());
                while let Some(context) = ends[at].expire(now_ms) {
                    back(&mut open[at], context);
                }
            }
            8 => ends[at].abort("enough"),
            9 => receive(&mut ends[at], script.short(), now_ms, &mut asked[at], |context| back(&mut open[at], context)),
            10 => {
                let _ = ends[at].respond(Token::new(&[script.byte()]).expect("short"), &OutMessage::new(Code::CHANGED));
            }
            _ => {
                let sent = ends[at].take_outgoing();
                check_frames(&sent);
                let other = 1 - at;
                for piece in pieces(&sent, script.byte()) {
                    receive(&mut ends[other], piece, now_ms, &mut asked[other], |context| {
                        back(&mut open[other], context);
                    });
                }
            }
        }
        for (end, open) in ends.iter().zip(&open) {
            assert!(end.pending_count() <= MAX_PENDING);
            assert_eq!(end.pending_count(), open.len());
            let _ = (end.is_drained(), end.next_deadline(), end.block_room().szx(), end.fetch_room().szx());
        }
    }
    for (end, open) in ends.iter_mut().zip(&mut open) {
        while let Some(context) = end.give_up() {
            back(open, context);
        }
        assert!(open.is_empty(), "contexts were lost");
    }
}

fn receive(end: &mut Exchange<u32>, mut bytes: &[u8], now_ms: u64, asked: &mut Vec<Token>, mut back: impl FnMut(u32)) {
    loop {
        let used = end.feed(bytes);
        bytes = &bytes[used..];
        while let Ok(Some(event)) = end.next_event(now_ms) {
            match event {
                Event::Request { token, .. } => asked.push(token),
                Event::Response { context, .. } => back(context),
                _ => {}
            }
        }
        if bytes.is_empty() {
            return;
        }
    }
}

pub(crate) fn coap_exchange_seeds() -> Vec<Vec<u8>> {
    let frames = coap_frame_seeds();
    let mut seeds = vec![[&[1, 3][..], &frames.concat()].concat(), [&[0, 0][..], &frames.concat()].concat()];
    seeds.extend(frames.iter().map(|frame| [&[1, 9][..], frame].concat()));
    // Hand over both CSMs, then requests and answers both ways, a ping, time, a release.
    seeds.push(vec![
        2, 0, 11, 0, 139, 2, 0, 3, 200, 128, 1, 200, 11, 5, 139, 0, 130, 1, 2, 200, 139, 7, 11, 1, 4, 11, 0, 139, 0, 7,
        255, 135, 255, 5, 1, 11, 0, 139, 0,
    ]);
    seeds.push(vec![2, 0, 11, 0, 6, 100, 11, 0, 139, 0, 0, 9, 9, 11, 2, 9, 5, 1, 2, 3, 4, 5, 8, 11, 0]);
    // Answers to the three requests that wait, and one that nobody made.
    let answers: Vec<u8> = [3_u32, 1, 2, 9].iter().fold(Vec::new(), |mut bytes, counter| {
        let message = OutMessage::new(Code::CONTENT).payload(&[5; 20]);
        message.encode(Token::from_counter(*counter), 1024, &mut bytes).expect("it fits");
        bytes
    });
    seeds.push([&[1, 5][..], &answers].concat());
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_is_a_frame_and_a_stream_of_them_is_understood() {
        let whole = |seed: &Vec<u8>| {
            let decoded = frame::decode(seed, limits::MAX_MESSAGE_LEN);
            matches!(decoded, Ok(Some((_, used))) if used == seed.len())
        };
        assert!(coap_frame_seeds().iter().all(whole));
        let answers = coap_exchange_seeds().pop().unwrap();
        let mut stream = Exchange::<()>::new(limits::MAX_MESSAGE_LEN).take_outgoing();
        stream.extend_from_slice(&answers[2..]);
        let (text, _) = trace(&stream, 0);
        assert_eq!((text.matches("Response").count(), text.matches("Stray").count()), (3, 1), "{text}");
    }
}
