use alloc::{vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::coap::frame::{Token, decode};

const ROOM: Room = Room { payload_len: 8192, bert: true };

fn block(num: u32, more: bool, szx: u8) -> Block {
    Block::new(num, more, Szx::new(szx).unwrap()).unwrap()
}

/// Hands `message` to `fetch` as received.
fn accept(fetch: &mut Fetch, message: &OutMessage<'_>) -> Result<(usize, Vec<u8>, bool), FetchError> {
    let mut bytes = Vec::new();
    message.encode(Token::EMPTY, usize::MAX, &mut bytes).unwrap();
    let (message, _) = decode(&bytes, usize::MAX).unwrap().unwrap();
    fetch.accept(&message).map(|chunk| (chunk.offset, chunk.bytes.to_vec(), chunk.last))
}

fn content(block: Block, payload: &[u8]) -> OutMessage<'_> {
    OutMessage::new(Code::CONTENT).block2(block).payload(payload)
}

/// Fetches `body` in blocks that `room` allows, counting the messages.
fn run(body: &[u8], szx: Szx, room: Room) -> (Vec<u8>, usize) {
    let mut fetch = Fetch::new(MAX_BODY_LEN, szx);
    let (mut got, mut count) = (Vec::new(), 0);
    loop {
        let slice = slice_for(Some(fetch.ask().unwrap()), body.len(), room).unwrap();
        let part = slice.of(body);
        let (offset, bytes, last) = accept(&mut fetch, &slice.response(part)).unwrap();
        assert_eq!(offset, got.len());
        got.extend_from_slice(&bytes);
        count += 1;
        if last {
            assert_eq!((fetch.received(), fetch.total()), (body.len(), Some(body.len())));
            assert_eq!(fetch.ask(), Err(FetchError::Over));
            return (got, count);
        }
    }
}

#[test]
fn a_block_round_trips_and_has_at_most_three_bytes() {
    for (value, expected) in [
        (&[][..], block(0, false, 0)),
        (&[0x0E], block(0, true, 6)),
        (&[0x12, 0x3F], block(0x123, true, 7)),
        (&[0xFF, 0xFF, 0xF7], block(Block::MAX_NUM, false, 7)),
    ] {
        assert_eq!(Block::decode(value), Ok(expected));
        assert_eq!(uint(value), Some(expected.to_uint()));
    }
    assert_eq!(Block::decode(&[0; 4]), Err(BlockError::BadOption));
    assert_eq!(Block::new(1 << 20, false, Szx::MAX), Err(BlockError::BodyTooLong));
    assert_eq!(Szx::new(8), None);
    assert_eq!(block(Block::MAX_NUM, false, 7).offset() + 1024, MAX_BODY_LEN);
}

#[test]
fn bodies_of_every_awkward_length_arrive() {
    for len in [0, 1, 15, 16, 17, 1023, 1024, 1025, 2048, 8192, 8193, 16_384, 50_000] {
        let body: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        for szx in 0..=7 {
            for payload_len in [16, 100, 1024, 1500, 5000, 8192] {
                let (got, _) = run(&body, Szx::new(szx).unwrap(), Room { payload_len, bert: true });
                assert!(got == body, "{len} {szx} {payload_len}");
            }
        }
    }
}

#[test]
fn bert_needs_few_messages() {
    let body = vec![1; 1 << 20];
    assert_eq!(run(&body, Szx::BERT, Room { payload_len: 64 * 1024 + 100, bert: true }).1, 16);
    assert_eq!(run(&body, Szx::MAX, ROOM).1, 1024);
}

#[test]
fn a_small_body_needs_no_block_and_a_large_one_begins_with_the_first() {
    let whole = slice_for(None, 8192, ROOM).unwrap();
    assert_eq!((whole.block, whole.offset, whole.len), (None, 0, 8192));
    let first = slice_for(None, 8193, ROOM).unwrap();
    assert_eq!((first.block, first.offset, first.len), (Some(block(0, true, 7)), 0, 8192));
    let first = slice_for(None, 8193, Room { bert: false, ..ROOM }).unwrap();
    assert_eq!((first.block, first.offset, first.len), (Some(block(0, true, 6)), 0, 1024));
    let first = slice_for(None, 8193, ROOM.at_most(700)).unwrap();
    assert_eq!((first.block, first.offset, first.len), (Some(block(0, true, 5)), 0, 512));
}

#[test]
fn a_block_behind_the_end_is_refused() {
    assert_eq!(slice_for(Some(block(2, false, 6)), 2048, ROOM), Err(BlockError::OutOfRange));
    assert_eq!(slice_for(Some(block(3, false, 6)), 2048, ROOM), Err(BlockError::OutOfRange));
    assert_eq!(slice_for(Some(block(1, false, 7)), 0, ROOM), Err(BlockError::OutOfRange));
    assert_eq!(slice_for(Some(block(0, false, 7)), 0, ROOM).unwrap().len, 0);
    assert_eq!(slice_for(None, MAX_BODY_LEN + 1, ROOM), Err(BlockError::BodyTooLong));
    assert_eq!(slice_for(None, 100, Room { payload_len: 15, bert: true }), Err(BlockError::NoRoom));
    assert_eq!(BlockError::OutOfRange.code(), Code::BAD_REQUEST);
}

#[test]
fn a_single_response_without_a_block_is_the_whole_body() {
    let mut fetch = Fetch::new(100, Szx::BERT);
    assert_eq!(accept(&mut fetch, &OutMessage::new(Code::CONTENT).payload(b"all")), Ok((0, b"all".to_vec(), true)));
    assert_eq!(accept(&mut fetch, &OutMessage::new(Code::CONTENT).payload(b"all")), Err(FetchError::Over));
}

#[test]
fn overlaps_and_gaps_are_refused() {
    let data = [0; 4096];
    for (num, found) in [(0, 0), (1, 1024), (3, 3072)] {
        let mut fetch = Fetch::new(1 << 20, Szx::BERT);
        accept(&mut fetch, &content(block(0, true, 7), &data[..2048])).unwrap();
        let error = FetchError::OutOfOrder { expected: 2048, found };
        assert_eq!(accept(&mut fetch, &content(block(num, true, 7), &data[..1024])), Err(error));
        assert_eq!(accept(&mut fetch, &content(block(2, true, 7), &data[..1024])), Err(FetchError::Over));
    }
    let mut fetch = Fetch::new(1 << 20, Szx::BERT);
    let error = FetchError::OutOfOrder { expected: 0, found: 1024 };
    assert_eq!(accept(&mut fetch, &content(block(1, true, 7), &data[..1024])), Err(error));
    let mut fetch = Fetch::new(1 << 20, Szx::BERT);
    accept(&mut fetch, &content(block(0, true, 7), &data[..2048])).unwrap();
    let error = FetchError::OutOfOrder { expected: 2048, found: 0 };
    assert_eq!(accept(&mut fetch, &OutMessage::new(Code::CONTENT).payload(&data)), Err(error));
}

#[test]
fn blocks_that_contradict_their_size_are_refused() {
    let data = [0; 4096];
    let cases = [
        (content(block(0, true, 7), &data[..1500]), FetchError::BadLength),
        (content(block(0, true, 7), &[]), FetchError::BadLength),
        (content(block(0, true, 6), &data[..2048]), FetchError::BadLength),
        (content(block(0, true, 6), &data[..1000]), FetchError::BadLength),
        (content(block(0, false, 6), &data[..1025]), FetchError::BadLength),
        (content(block(0, false, 7), &data[..]).size2(4095), FetchError::WrongTotal),
        (content(block(0, false, 7), &data[..]).size2(4097), FetchError::WrongTotal),
        (content(block(0, true, 7), &data[..]).size2(4096), FetchError::WrongTotal),
        (OutMessage::new(Code::CONTENT).option(CoapOption::Block2, &[0; 4]), FetchError::CriticalOption(23)),
        (OutMessage::new(Code::NOT_FOUND), FetchError::Refused(Code::NOT_FOUND)),
        (OutMessage::new(Code::CHANGED), FetchError::Refused(Code::CHANGED)),
    ];
    for (message, error) in cases {
        assert_eq!(accept(&mut Fetch::new(1 << 20, Szx::BERT), &message), Err(error), "{message:?}");
    }
    let error = accept(&mut Fetch::new(1 << 20, Szx::MIN), &content(block(0, true, 1), &data[..32]));
    assert_eq!(error, Err(FetchError::BadBlock));
    let mut fetch = Fetch::new(1 << 20, Szx::BERT);
    accept(&mut fetch, &content(block(0, true, 7), &data)).unwrap();
    assert_eq!(accept(&mut fetch, &content(block(4, false, 7), &[])), Err(FetchError::BadLength));
}

#[test]
fn a_body_that_changes_is_refused() {
    let data = [0; 2048];
    let first = || content(block(0, true, 7), &data).size2(5000).option(CoapOption::ETag, b"one");
    let next = || content(block(2, true, 7), &data);
    let start = || {
        let mut fetch = Fetch::new(1 << 20, Szx::BERT);
        accept(&mut fetch, &first()).unwrap();
        fetch
    };
    assert!(accept(&mut start(), &next().option(CoapOption::ETag, b"one").size2(5000)).is_ok());
    assert_eq!(accept(&mut start(), &next().option(CoapOption::ETag, b"two")), Err(FetchError::Changed));
    assert_eq!(accept(&mut start(), &next()), Err(FetchError::Changed));
    let other = next().option(CoapOption::ETag, b"one").size2(5001);
    assert_eq!(accept(&mut start(), &other), Err(FetchError::Changed));
}

#[test]
fn a_body_over_its_limit_is_refused_as_soon_as_it_shows() {
    let data = [0; 4096];
    let start = || Fetch::new(4095, Szx::BERT);
    assert_eq!(accept(&mut start(), &content(block(0, true, 7), &data[..1024]).size2(4096)), Err(FetchError::TooLong));
    assert_eq!(accept(&mut start(), &content(block(0, false, 7), &data)), Err(FetchError::TooLong));
    assert_eq!(accept(&mut start(), &OutMessage::new(Code::CONTENT).payload(&data)), Err(FetchError::TooLong));
    assert!(accept(&mut start(), &content(block(0, false, 7), &data[..4095])).is_ok());
    let error = accept(&mut Fetch::new(4096, Szx::BERT), &content(block(0, true, 7), &data));
    assert_eq!(error, Err(FetchError::TooLong), "one more would follow");
}

proptest! {
    #[test]
    fn any_request_gets_a_part_of_the_body_or_a_refusal(
        bits in 0_u32..1 << 24,
        body_len in 0_usize..100_000,
        payload_len in 0_usize..20_000,
        bert: bool,
    ) {
        let asked = Block::decode(&bits.to_be_bytes()[1..]).unwrap();
        let room = Room { payload_len, bert };
        for asked in [None, Some(asked)] {
            if let Ok(part) = slice_for(asked, body_len, room) {
                prop_assert!(part.len <= payload_len && part.offset + part.len <= body_len);
                prop_assert_eq!(part.offset, asked.map_or(0, Block::offset));
                if let Some(block) = part.block {
                    prop_assert_eq!(block.offset(), part.offset);
                    prop_assert_eq!(block.more(), part.offset + part.len < body_len);
                    prop_assert!(asked.is_none_or(|asked| block.szx() <= asked.szx()));
                }
            }
        }
    }

    #[test]
    fn any_responses_stay_within_the_limit_and_in_order(
        limit in 0_usize..5000,
        responses in prop::collection::vec((0_u32..8, any::<bool>(), 0_u8..8, 0_usize..3000, any::<Option<u16>>()), 1..8),
    ) {
        let mut fetch = Fetch::new(limit, Szx::BERT);
        let data = [0; 3000];
        let mut received = 0;
        for (num, more, szx, len, size) in responses {
            let mut message = content(block(num, more, szx), &data[..len]);
            if let Some(size) = size {
                message = message.size2(size.into());
            }
            if let Ok((offset, bytes, _)) = accept(&mut fetch, &message) {
                prop_assert_eq!(offset, received);
                received += bytes.len();
                prop_assert!(received <= limit);
            }
        }
    }
}
