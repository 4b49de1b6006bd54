//! Bodies larger than a message: the block option with BERT, the side that serves and the side that fetches (RFC 7959,
//! RFC 8323 §6).
//!
//! A body is always fetched: who has it answers GET with parts of it ([`slice_for`]), who wants it asks for one part after the
//! other ([`Fetch`]). Where a body comes from and goes to is the caller's; nothing here holds one. Request bodies (Block1)
//! are never assembled: whatever is large is offered and fetched from the other side.

use coap_lite::CoapOption;

use super::frame::{Code, Message, Options, OutMessage, uint};

/// Longest body that blocks of 1024 bytes can number, bytes (20 bits of block number).
pub const MAX_BODY_LEN: usize = 1 << 30;
/// Room for everything but the payload in a message with a block of a body, bytes: 1152 less 1024, as RFC 8323 has it.
pub const BLOCK_HEADROOM: usize = 128;

/// Why a block option, or what it asks for, was refused. A request with one is answered with 4.02 or 4.00.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum BlockError {
    #[error("block option is longer than three bytes")]
    BadOption,
    #[error("block begins behind the end of the body")]
    OutOfRange,
    #[error("body is longer than blocks can number")]
    BodyTooLong,
    #[error("no room for the smallest block in a message")]
    NoRoom,
}

impl BlockError {
    /// The response that tells the peer: 4.02, 4.00 or 5.00, by whose fault it is.
    pub const fn code(self) -> Code {
        match self {
            Self::BadOption => Code::BAD_OPTION,
            Self::OutOfRange => Code::BAD_REQUEST,
            Self::BodyTooLong | Self::NoRoom => Code::INTERNAL_SERVER_ERROR,
        }
    }
}

/// A block size as an exponent: 0 to 6 for 16 to 1024 bytes, 7 for BERT, any number of blocks of 1024 bytes.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Szx(u8);

impl Szx {
    /// 16 bytes.
    pub const MIN: Self = Self(0);
    /// 1024 bytes.
    pub const MAX: Self = Self(6);
    /// One or more blocks of 1024 bytes in one message (RFC 8323 §6).
    pub const BERT: Self = Self(7);

    /// The exponent of three bits.
    pub const fn new(szx: u8) -> Option<Self> {
        if szx <= 7 { Some(Self(szx)) } else { None }
    }

    /// The three bits.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Bytes that one block number stands for: 16 to 1024, for BERT 1024.
    pub const fn unit(self) -> usize {
        match self.0 {
            0 => 16,
            1 => 32,
            2 => 64,
            3 => 128,
            4 => 256,
            5 => 512,
            _ => 1024,
        }
    }

    /// Whether this is BERT.
    pub const fn is_bert(self) -> bool {
        self.0 == 7
    }

    /// The largest size, not BERT, whose block fits into so many bytes.
    fn fitting(room: usize) -> Option<Self> {
        (0..=6).rev().map(Self).find(|szx| szx.unit() <= room)
    }
}

/// The value of a Block1 or Block2 option (RFC 7959 §2.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Block {
    num: u32,
    more: bool,
    szx: Szx,
}

impl Block {
    /// Largest block number.
    pub const MAX_NUM: u32 = (1 << 20) - 1;

    /// Block `num`; `more` says that another one follows.
    ///
    /// # Errors
    /// [`BlockError::BodyTooLong`] if `num` is over [`Self::MAX_NUM`].
    pub const fn new(num: u32, more: bool, szx: Szx) -> Result<Self, BlockError> {
        if num > Self::MAX_NUM { Err(BlockError::BodyTooLong) } else { Ok(Self { num, more, szx }) }
    }

    /// The block of that size that begins at `offset`, a multiple of it.
    fn at(offset: usize, more: bool, szx: Szx) -> Result<Self, BlockError> {
        let num = offset.checked_div(szx.unit()).and_then(|num| u32::try_from(num).ok());
        Self::new(num.ok_or(BlockError::BodyTooLong)?, more, szx)
    }

    /// Reads the value of an option.
    ///
    /// # Errors
    /// [`BlockError::BadOption`] if it is longer than three bytes.
    pub fn decode(value: &[u8]) -> Result<Self, BlockError> {
        let bits = uint(value).filter(|_| value.len() <= 3).ok_or(BlockError::BadOption)?;
        let szx = u8::try_from(bits & 0x07).ok().and_then(Szx::new).ok_or(BlockError::BadOption)?;
        Self::new(bits >> 4, bits & 0x08 != 0, szx)
    }

    /// The value of an option, as a number of 24 bits.
    pub const fn to_uint(self) -> u32 {
        (self.num << 4) | if self.more { 0x08 } else { 0 } | self.szx.0 as u32
    }

    /// Its number, in units of its size.
    pub const fn num(self) -> u32 {
        self.num
    }

    /// Whether another block follows.
    pub const fn more(self) -> bool {
        self.more
    }

    /// Its size.
    pub const fn szx(self) -> Szx {
        self.szx
    }

    /// Where it begins in the body, bytes; below [`MAX_BODY_LEN`].
    pub fn offset(self) -> usize {
        usize::try_from(self.num).unwrap_or(usize::MAX).saturating_mul(self.szx.unit())
    }
}

/// How much of a body one message to the peer may carry. Made by [`Exchange`](super::exchange::Exchange::block_room).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Room {
    /// Most bytes of payload in one message.
    pub payload_len: usize,
    /// Whether the peer understands BERT.
    pub bert: bool,
}

impl Room {
    /// The block size to ask for, or to begin with.
    ///
    /// # Errors
    /// [`BlockError::NoRoom`] if not even 16 bytes fit.
    pub fn szx(self) -> Result<Szx, BlockError> {
        match Szx::fitting(self.payload_len) {
            Some(Szx::MAX) if self.bert => Ok(Szx::BERT),
            szx => szx.ok_or(BlockError::NoRoom),
        }
    }

    /// The same, but for no more than `payload_len` bytes: for who has less memory than the peer.
    #[must_use]
    pub fn at_most(self, payload_len: usize) -> Self {
        Self { payload_len: self.payload_len.min(payload_len), ..self }
    }
}

/// Which part of a body answers a request. Made by [`slice_for`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Slice {
    /// The Block2 of the response; `None` if the body goes whole into a message and blocks were not asked for.
    pub block: Option<Block>,
    /// Where the part begins, bytes.
    pub offset: usize,
    /// How long the part is, bytes.
    pub len: usize,
    /// How long the body is, bytes.
    pub body_len: usize,
}

/// Chooses the part of a body of `body_len` bytes that answers a request with Block2 `asked`, within `room`.
///
/// A part may be smaller than asked for, never larger. A body that comes from elsewhere than memory is then read at
/// [`Slice::offset`]; of one in memory, [`Slice::of`] is the part.
///
/// # Errors
/// [`BlockError::OutOfRange`] if the block begins behind the end; [`BlockError::BodyTooLong`], [`BlockError::NoRoom`].
///
/// RFC 7959 §2.4, RFC 8323 §6.1.
pub fn slice_for(asked: Option<Block>, body_len: usize, room: Room) -> Result<Slice, BlockError> {
    if body_len > MAX_BODY_LEN {
        return Err(BlockError::BodyTooLong);
    }
    let (offset, wanted) = match asked {
        None if body_len <= room.payload_len => {
            return Ok(Slice { block: None, offset: 0, len: body_len, body_len });
        }
        None => (0, room.szx()?),
        // Who asks for BERT understands it, whatever its CSM said.
        Some(block) => (block.offset(), block.szx()),
    };
    let rest = body_len.checked_sub(offset).ok_or(BlockError::OutOfRange)?;
    if rest == 0 && offset != 0 {
        return Err(BlockError::OutOfRange);
    }
    let fitting = Szx::fitting(room.payload_len).ok_or(BlockError::NoRoom)?;
    let szx = if wanted.is_bert() && fitting == Szx::MAX { Szx::BERT } else { wanted.min(fitting) };
    let most = if szx.is_bert() {
        room.payload_len.saturating_sub(room.payload_len.checked_rem(szx.unit()).unwrap_or_default())
    } else {
        szx.unit()
    };
    let len = rest.min(most);
    let block = Block::at(offset, len < rest, szx)?;
    Ok(Slice { block: Some(block), offset, len, body_len })
}

impl Slice {
    /// The part of a body that is in memory; empty if `body` is shorter than was said.
    pub fn of<'a>(&self, body: &'a [u8]) -> &'a [u8] {
        let end = self.offset.saturating_add(self.len);
        body.get(self.offset..end).unwrap_or_default()
    }

    /// A 2.05 with the part as payload, with Block2 if it is one of several, and with Size2 on the first of them.
    pub fn response<'a>(&self, part: &'a [u8]) -> OutMessage<'a> {
        let message = OutMessage::new(Code::CONTENT).payload(part);
        match (self.block, u32::try_from(self.body_len)) {
            (Some(block), Ok(body_len)) if block.num() == 0 => message.block2(block).size2(body_len),
            (Some(block), _) => message.block2(block),
            (None, _) => message,
        }
    }
}

/// Why a body could not be fetched. Nothing of the refused response was handed out; the fetch is over.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The peer's answer, an error of class 4 or 5 or a success that is none of GET's.
    #[error("peer answered {0}")]
    Refused(Code),
    /// A critical option, with its number.
    #[error("critical option {0} is not understood")]
    CriticalOption(u16),
    /// The option is too long, or the size is larger than the one asked for.
    #[error("block option is not an answer to the one sent")]
    BadBlock,
    /// Another block than the next one; more of the same, or a part of the body is missing.
    #[error("block begins at {found} of the body, expected at {expected}")]
    OutOfOrder {
        /// Where the body goes on, bytes.
        expected: usize,
        /// Where the block begins, bytes.
        found: usize,
    },
    /// A block but the last that is not as long as its size says, or an empty one.
    #[error("block is not as long as its size says")]
    BadLength,
    /// The body changed between two blocks: another ETag, or another Size2.
    #[error("body changed while it was fetched")]
    Changed,
    /// More than the limit, by Size2 or by what came.
    #[error("body is longer than its limit")]
    TooLong,
    /// More or less than Size2 promised.
    #[error("body is not as long as announced")]
    WrongTotal,
    /// The body was complete, or an earlier response was refused.
    #[error("fetch is over")]
    Over,
}

/// What the options of a response say of the part it carries.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Part {
    block: Option<Block>,
    size: Option<u32>,
    /// Empty if there is none, or one that is too long.
    etag: heapless::Vec<u8, MAX_ETAG_LEN>,
}

impl Part {
    /// Takes Block2, Size2 and ETag.
    ///
    /// # Errors
    /// [`FetchError::CriticalOption`], [`FetchError::BadBlock`].
    pub fn of(options: &Options<'_>) -> Result<Self, FetchError> {
        if let Some(number) = options.unknown_critical() {
            return Err(FetchError::CriticalOption(number));
        }
        Ok(Self {
            block: options.block2().map_err(|_| FetchError::BadBlock)?,
            size: options.size2(),
            etag: options.first(CoapOption::ETag).and_then(|etag| etag.try_into().ok()).unwrap_or_default(),
        })
    }
}

/// A part of a body that was accepted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Chunk<'a> {
    /// Where it begins in the body, bytes.
    pub offset: usize,
    /// The part; empty only if the whole body is.
    pub bytes: &'a [u8],
    /// Whether the body is complete with this part.
    pub last: bool,
}

/// Fetches one body by GET, block by block, in order; takes only what continues it.
///
/// The loop is the caller's: send the request with [`ask`](Self::ask), hand the response to [`accept`](Self::accept), store
/// the [`Chunk`], until one is the last.
#[derive(Clone, Debug)]
pub struct Fetch {
    limit: usize,
    szx: Szx,
    received: usize,
    total: Option<usize>,
    /// Of the first response, empty if it had none: later ones have to have the same.
    etag: heapless::Vec<u8, MAX_ETAG_LEN>,
    over: bool,
}

impl Fetch {
    /// A fetch of a body of at most `limit` bytes, in blocks of at most `szx` ([`Room::szx`]).
    pub fn new(limit: usize, szx: Szx) -> Self {
        Self { limit: limit.min(MAX_BODY_LEN), szx, received: 0, total: None, etag: heapless::Vec::new(), over: false }
    }

    /// Block2 of the next request.
    ///
    /// # Errors
    /// [`FetchError::Over`] if nothing is left to ask for.
    pub fn ask(&self) -> Result<Block, FetchError> {
        if self.over {
            return Err(FetchError::Over);
        }
        Block::at(self.received, false, self.szx).map_err(|_| FetchError::TooLong)
    }

    /// How many bytes came so far.
    pub const fn received(&self) -> usize {
        self.received
    }

    /// How long the body is, bytes, once the peer has said it.
    pub const fn total(&self) -> Option<usize> {
        self.total
    }

    /// Takes the response to the request made with [`ask`](Self::ask).
    ///
    /// # Errors
    /// All of [`FetchError`]; the fetch is over after any of them.
    ///
    /// RFC 7959 §2.4, RFC 8323 §6.
    pub fn accept<'a>(&mut self, response: &Message<'a>) -> Result<Chunk<'a>, FetchError> {
        let Message { code, options, payload, .. } = response;
        self.accept_part(*code, Part::of(options)?, payload)
    }

    /// As [`accept`](Self::accept), for a response whose options were taken before.
    ///
    /// # Errors
    /// As [`accept`](Self::accept).
    pub fn accept_part<'a>(&mut self, code: Code, part: Part, payload: &'a [u8]) -> Result<Chunk<'a>, FetchError> {
        if self.over {
            return Err(FetchError::Over);
        }
        // Over unless this response turns out to be followed by another.
        self.over = true;
        let (szx, total) = self.check(code, &part, payload)?;
        let offset = self.received;
        if offset == 0 {
            self.etag = part.etag;
        }
        self.received = offset.saturating_add(payload.len());
        self.total = total;
        self.over = szx.is_none();
        self.szx = szx.unwrap_or(self.szx);
        Ok(Chunk { offset, bytes: payload, last: self.over })
    }

    /// The size to go on with, `None` if this was the last block; and how long the body is, if known.
    fn check(&self, code: Code, part: &Part, payload: &[u8]) -> Result<(Option<Szx>, Option<usize>), FetchError> {
        if code != Code::CONTENT {
            return Err(FetchError::Refused(code));
        }
        let block = part.block;
        let found = block.map_or(0, Block::offset);
        if found != self.received {
            return Err(FetchError::OutOfOrder { expected: self.received, found });
        }
        let received = self.received.saturating_add(payload.len());
        let more = block.is_some_and(Block::more);
        if let Some(block) = block {
            // The answer may be in smaller blocks than asked for, not in larger ones.
            if block.szx() > self.szx {
                return Err(FetchError::BadBlock);
            }
            let unit = block.szx().unit();
            let whole = payload.len().checked_rem(unit) == Some(0) && !payload.is_empty();
            let single = block.szx().is_bert() || payload.len() <= unit;
            let empty_body = received == 0 && !more;
            if !single || (more && !whole) || (payload.is_empty() && !empty_body) {
                return Err(FetchError::BadLength);
            }
        }
        if self.received != 0 && part.etag != self.etag {
            return Err(FetchError::Changed);
        }
        let told = part.size.map(|size| usize::try_from(size).unwrap_or(usize::MAX));
        let total = match (self.total, told) {
            (Some(total), Some(told)) if total != told => return Err(FetchError::Changed),
            (total, told) => total.or(told),
        };
        if received > self.limit || total.is_some_and(|total| total > self.limit) {
            return Err(FetchError::TooLong);
        }
        let fits = total.is_none_or(|total| if more { received < total } else { received == total });
        if !fits {
            return Err(FetchError::WrongTotal);
        }
        // One more byte has to come, and may not.
        if more && received == self.limit {
            return Err(FetchError::TooLong);
        }
        Ok((block.filter(|_| more).map(Block::szx), total))
    }
}

/// Longest ETag, bytes (RFC 7252 §5.10.6); a longer one counts as none.
const MAX_ETAG_LEN: usize = 8;

#[cfg(test)]
mod tests;
