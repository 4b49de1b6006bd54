//! One CoAP-over-TCP message to bytes and back: header, token, options, payload (RFC 8323 §3.2, RFC 7252 §3.1).
//!
//! Decoding borrows from the buffer and allocates nothing; encoding appends to a buffer of the caller. Option numbers are
//! coap-lite's. What a message means is left to [`signal`](super::signal), [`exchange`](super::exchange) and the routes.

use alloc::vec::Vec;
use core::{fmt, str};

use coap_lite::CoapOption;

use super::block::{Block, BlockError};
use crate::codec::Reader;

/// Longest token, bytes (RFC 7252 §5.3.1; extended tokens are not spoken here).
pub const MAX_TOKEN_LEN: usize = 8;
/// Most options in one message: the longest path here has four segments, two queries and a handful of others.
pub const MAX_OPTIONS: usize = 16;
/// Most bytes a header with its token takes: first byte, four of length, code, token.
pub const MAX_HEADER_LEN: usize = 6 + MAX_TOKEN_LEN;

/// Content formats that are used here (IANA, CoAP Content-Formats).
pub mod format {
    /// `text/plain; charset=utf-8`, of diagnostic payloads.
    pub const TEXT: u16 = 0;
    /// `application/link-format`, of `/.well-known/core`.
    pub const LINK: u16 = 40;
    /// `application/octet-stream`, of every body of the protocol.
    pub const OCTET_STREAM: u16 = 42;
}

/// Why bytes are not a message. The connection ends with Abort after any of these.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum FrameError {
    #[error("message is longer than the announced maximum")]
    TooLong,
    #[error("token length is over 8 bytes")]
    BadToken,
    #[error("malformed option")]
    BadOption,
    #[error("too many options")]
    TooManyOptions,
    #[error("payload marker without a payload")]
    EmptyPayload,
}

/// Why a message could not be written; nothing was written then.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum EncodeError {
    #[error("message is longer than the peer accepts")]
    TooLong,
    #[error("too many options")]
    TooManyOptions,
}

/// A request method, response code or signal: three bits of class, five of detail (RFC 7252 §3, RFC 8323 §5.1).
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Code(u8);

#[expect(missing_docs, reason = "each name is the one of the registry")]
impl Code {
    pub const EMPTY: Self = Self::of(0, 0);
    pub const GET: Self = Self::of(0, 1);
    pub const POST: Self = Self::of(0, 2);
    pub const PUT: Self = Self::of(0, 3);
    pub const DELETE: Self = Self::of(0, 4);
    pub const CREATED: Self = Self::of(2, 1);
    pub const CHANGED: Self = Self::of(2, 4);
    pub const CONTENT: Self = Self::of(2, 5);
    pub const CONTINUE: Self = Self::of(2, 31);
    pub const BAD_REQUEST: Self = Self::of(4, 0);
    pub const UNAUTHORIZED: Self = Self::of(4, 1);
    pub const BAD_OPTION: Self = Self::of(4, 2);
    pub const FORBIDDEN: Self = Self::of(4, 3);
    pub const NOT_FOUND: Self = Self::of(4, 4);
    pub const METHOD_NOT_ALLOWED: Self = Self::of(4, 5);
    pub const REQUEST_ENTITY_INCOMPLETE: Self = Self::of(4, 8);
    pub const CONFLICT: Self = Self::of(4, 9);
    pub const REQUEST_ENTITY_TOO_LARGE: Self = Self::of(4, 13);
    pub const UNSUPPORTED_CONTENT_FORMAT: Self = Self::of(4, 15);
    pub const UNPROCESSABLE_ENTITY: Self = Self::of(4, 22);
    pub const TOO_MANY_REQUESTS: Self = Self::of(4, 29);
    pub const INTERNAL_SERVER_ERROR: Self = Self::of(5, 0);
    pub const NOT_IMPLEMENTED: Self = Self::of(5, 1);
    pub const SERVICE_UNAVAILABLE: Self = Self::of(5, 3);
    pub const CSM: Self = Self::of(7, 1);
    pub const PING: Self = Self::of(7, 2);
    pub const PONG: Self = Self::of(7, 3);
    pub const RELEASE: Self = Self::of(7, 4);
    pub const ABORT: Self = Self::of(7, 5);
}

impl Code {
    /// The code of a byte on the wire; every byte is one.
    pub const fn from_byte(byte: u8) -> Self {
        Self(byte)
    }

    /// The byte on the wire.
    pub const fn to_byte(self) -> u8 {
        self.0
    }

    /// The part before the dot, 0 to 7.
    pub const fn class(self) -> u8 {
        self.0 >> 5
    }

    /// The part after the dot, 0 to 31.
    pub const fn detail(self) -> u8 {
        self.0 & 0x1F
    }

    /// Whether this is a method, known or not.
    pub const fn is_request(self) -> bool {
        self.class() == 0 && self.detail() != 0
    }

    /// Whether this is a response, good or bad.
    pub const fn is_response(self) -> bool {
        matches!(self.class(), 2 | 4 | 5)
    }

    /// Whether this is a response of class 2.
    pub const fn is_success(self) -> bool {
        self.class() == 2
    }

    /// Whether this is about the connection itself.
    pub const fn is_signal(self) -> bool {
        self.class() == 7
    }

    const fn of(class: u8, detail: u8) -> Self {
        Self((class << 5) | detail)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.class(), self.detail())
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Code({self})")
    }
}

/// What ties a response to its request: 0 to 8 bytes, chosen by who asks.
#[derive(Clone, Copy, Default, Eq, Hash, PartialEq)]
pub struct Token {
    len: u8,
    bytes: [u8; MAX_TOKEN_LEN],
}

impl Token {
    /// The token of no bytes.
    pub const EMPTY: Self = Self { len: 0, bytes: [0; MAX_TOKEN_LEN] };

    /// A token of these bytes.
    ///
    /// # Errors
    /// [`FrameError::BadToken`] if there are more than [`MAX_TOKEN_LEN`].
    pub fn new(bytes: &[u8]) -> Result<Self, FrameError> {
        let mut token = Self::EMPTY;
        token.bytes.get_mut(..bytes.len()).ok_or(FrameError::BadToken)?.copy_from_slice(bytes);
        token.len = u8::try_from(bytes.len()).map_err(|_| FrameError::BadToken)?;
        Ok(token)
    }

    /// A token of the one to four bytes that `value` needs: short, as it travels with every message.
    pub fn from_counter(value: u32) -> Self {
        Self::new(Uint::new(value).as_bytes()).unwrap_or_default()
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(")?;
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

/// A message in the buffer it was received in.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    /// What it is.
    pub code: Code,
    /// Which exchange it belongs to.
    pub token: Token,
    /// Its options, well formed and in order.
    pub options: Options<'a>,
    /// Its payload, empty if there is none.
    pub payload: &'a [u8],
}

/// Payloads stay out of logs: only their length is shown.
impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("code", &self.code)
            .field("token", &self.token)
            .field("options", &self.options)
            .field("payload_len", &self.payload.len())
            .finish()
    }
}

/// Decodes one message from the front of `buf`, returning it with the number of bytes used.
///
/// `None` when `buf` ends before the message does; nothing is used then. `buf` may hold more than one message. `max_len`
/// counts the whole message, header included, and is compared as soon as the header tells the length.
///
/// # Errors
/// All of [`FrameError`]. The connection ends with Abort (7.05) after any of them.
///
/// RFC 8323 §3.2, RFC 7252 §3.1.
pub fn decode(buf: &[u8], max_len: usize) -> Result<Option<(Message<'_>, usize)>, FrameError> {
    let Some(Header { token_len, head_len, total_len }) = Header::decode(buf, max_len)? else {
        return Ok(None);
    };
    let Some(frame) = buf.get(..total_len) else {
        return Ok(None);
    };
    let mut reader = Reader::new(frame.get(head_len..).unwrap_or_default());
    let (Ok(code), Ok(token)) = (reader.u8(), reader.take(token_len)) else {
        return Ok(None);
    };
    let token = Token::new(token)?;
    let (options, payload) = Options::decode(reader.rest())?;
    Ok(Some((Message { code: Code(code), token, options, payload }, total_len)))
}

/// What the first bytes of a message tell.
struct Header {
    token_len: usize,
    /// Bytes before the code.
    head_len: usize,
    /// Bytes of the whole message.
    total_len: usize,
}

impl Header {
    /// `None` if the length is not there yet.
    fn decode(buf: &[u8], max_len: usize) -> Result<Option<Self>, FrameError> {
        let mut reader = Reader::new(buf);
        let Ok(first) = reader.u8() else {
            return Ok(None);
        };
        let token_len = usize::from(first & 0x0F);
        if token_len > MAX_TOKEN_LEN {
            return Err(FrameError::BadToken);
        }
        let (extra_len, base) = match first >> 4 {
            13 => (1_usize, 13),
            14 => (2, 269),
            15 => (4, 65_805),
            len => (0, usize::from(len)),
        };
        let head_len = extra_len.saturating_add(1);
        // The code and the token follow the length, which counts options and payload only.
        let least = head_len.saturating_add(1).saturating_add(token_len).saturating_add(base);
        if least > max_len {
            return Err(FrameError::TooLong);
        }
        let Ok(extra) = reader.take(extra_len) else {
            return Ok(None);
        };
        let extra = extra.iter().fold(0_u32, |value, byte| (value << 8) | u32::from(*byte));
        let total_len = usize::try_from(extra).map_err(|_| FrameError::TooLong)?.saturating_add(least);
        if total_len > max_len {
            return Err(FrameError::TooLong);
        }
        Ok(Some(Self { token_len, head_len, total_len }))
    }
}

/// The options of a received message: well formed, ascending, at most [`MAX_OPTIONS`].
#[derive(Clone, Copy)]
pub struct Options<'a> {
    encoded: &'a [u8],
}

impl<'a> Options<'a> {
    /// No options.
    pub const NONE: Self = Self { encoded: &[] };

    /// Splits what follows the token into options and payload.
    fn decode(body: &'a [u8]) -> Result<(Self, &'a [u8]), FrameError> {
        let mut iter = OptionIter { reader: Reader::new(body), number: 0 };
        let mut count = 0_usize;
        loop {
            let rest = iter.reader.rest();
            let encoded = body.get(..body.len().saturating_sub(rest.len())).unwrap_or_default();
            match rest.split_first() {
                None => return Ok((Self { encoded }, &[])),
                Some((&PAYLOAD_MARKER, [])) => return Err(FrameError::EmptyPayload),
                Some((&PAYLOAD_MARKER, payload)) => return Ok((Self { encoded }, payload)),
                Some(_) if count == MAX_OPTIONS => return Err(FrameError::TooManyOptions),
                Some(_) => {
                    iter.read()?;
                    count = count.saturating_add(1);
                }
            }
        }
    }

    /// Number and value of each option, in order.
    pub const fn iter(&self) -> OptionIter<'a> {
        OptionIter { reader: Reader::new(self.encoded), number: 0 }
    }

    /// The values of every option of that kind, in order.
    pub fn all(&self, option: CoapOption) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let wanted = u16::from(option);
        self.iter().filter(move |(number, _)| *number == wanted).map(|(_, value)| value)
    }

    /// The value of the first option of that kind.
    pub fn first(&self, option: CoapOption) -> Option<&'a [u8]> {
        self.all(option).next()
    }

    /// The value of an option that is a number of at most four bytes; `None` if absent, or longer.
    pub fn uint(&self, option: CoapOption) -> Option<u32> {
        self.first(option).and_then(uint)
    }

    /// The segments of the path, as text; `None` if there are more than `N`, or one is not UTF-8.
    pub fn path<const N: usize>(&self) -> Option<heapless::Vec<&'a str, N>> {
        let mut path = heapless::Vec::new();
        for segment in self.all(CoapOption::UriPath) {
            path.push(str::from_utf8(segment).ok()?).ok()?;
        }
        Some(path)
    }

    /// The value of the query argument `name=value`; `None` if it is absent or not UTF-8.
    pub fn query(&self, name: &str) -> Option<&'a str> {
        self.all(CoapOption::UriQuery)
            .filter_map(|query| str::from_utf8(query).ok()?.split_once('='))
            .find_map(|(key, value)| (key == name).then_some(value))
    }

    /// Content-Format of the payload, one of [`format`] if it is one of ours.
    pub fn content_format(&self) -> Option<u16> {
        self.uint(CoapOption::ContentFormat).and_then(|value| u16::try_from(value).ok())
    }

    /// Content-Format that is wanted in the answer.
    pub fn accept(&self) -> Option<u16> {
        self.uint(CoapOption::Accept).and_then(|value| u16::try_from(value).ok())
    }

    /// Block1: which part of a request body this is.
    ///
    /// # Errors
    /// [`BlockError::BadOption`] if the option is longer than three bytes.
    pub fn block1(&self) -> Result<Option<Block>, BlockError> {
        self.first(CoapOption::Block1).map(Block::decode).transpose()
    }

    /// Block2: which part of a response body this is, or is asked for.
    ///
    /// # Errors
    /// [`BlockError::BadOption`] if the option is longer than three bytes.
    pub fn block2(&self) -> Result<Option<Block>, BlockError> {
        self.first(CoapOption::Block2).map(Block::decode).transpose()
    }

    /// Length of the whole request body, bytes, if told.
    pub fn size1(&self) -> Option<u32> {
        self.uint(CoapOption::Size1)
    }

    /// Length of the whole response body, bytes, if told.
    pub fn size2(&self) -> Option<u32> {
        self.uint(CoapOption::Size2)
    }

    /// The first option that may not be ignored and is not understood: a request with one is answered with 4.02, a
    /// response with one is refused.
    ///
    /// An option that occurs too often or is longer than its definition is not understood either, nor is a Block1 that
    /// says more than "this is all": request bodies are never assembled from blocks here.
    ///
    /// RFC 7252 §5.4.1, §5.4.3, §5.4.5.
    pub fn unknown_critical(&self) -> Option<u16> {
        let mut previous = None;
        for (number, value) in self.iter() {
            let repeated = previous.replace(number) == Some(number);
            let understood = match CoapOption::from(number) {
                CoapOption::UriPath | CoapOption::UriQuery => value.len() <= 255,
                CoapOption::UriHost => !repeated && (1..=255).contains(&value.len()),
                CoapOption::UriPort | CoapOption::Accept => !repeated && value.len() <= 2,
                CoapOption::Block2 => !repeated && value.len() <= 3,
                CoapOption::Block1 => {
                    !repeated && Block::decode(value).is_ok_and(|block| block.num() == 0 && !block.more())
                }
                _ => is_elective(number),
            };
            if !understood {
                return Some(number);
            }
        }
        None
    }
}

impl fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|(number, _)| number)).finish()
    }
}

/// Number and value of each option of a message. Made by [`Options::iter`].
#[derive(Clone, Debug)]
pub struct OptionIter<'a> {
    reader: Reader<'a>,
    number: u16,
}

impl<'a> OptionIter<'a> {
    fn read(&mut self) -> Result<&'a [u8], FrameError> {
        let first = self.reader.u8().map_err(|_| FrameError::BadOption)?;
        let delta = self.extended(first >> 4)?;
        let len = self.extended(first & 0x0F)?;
        self.number =
            u16::try_from(delta).ok().and_then(|delta| self.number.checked_add(delta)).ok_or(FrameError::BadOption)?;
        let len = usize::try_from(len).map_err(|_| FrameError::BadOption)?;
        self.reader.take(len).map_err(|_| FrameError::BadOption)
    }

    /// A delta or a length: 13 and 14 say that one or two bytes follow, 15 is reserved.
    fn extended(&mut self, nibble: u8) -> Result<u32, FrameError> {
        match nibble {
            13 => self.reader.u8().map(|byte| u32::from(byte).saturating_add(13)),
            14 => self.reader.u16().map(|value| u32::from(value).saturating_add(269)),
            15 => return Err(FrameError::BadOption),
            value => Ok(u32::from(value)),
        }
        .map_err(|_| FrameError::BadOption)
    }
}

impl<'a> Iterator for OptionIter<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.reader.remaining() == 0 {
            return None;
        }
        let value = self.read().ok()?;
        Some((self.number, value))
    }
}

/// A message to be sent; its token is given by whoever sends it.
///
/// Options may be added in any order; one too many shows when the message is encoded.
#[derive(Clone)]
pub struct OutMessage<'a> {
    code: Code,
    options: heapless::Vec<(u16, Value<'a>), MAX_OPTIONS>,
    too_many: bool,
    payload: &'a [u8],
}

#[derive(Clone, Copy)]
enum Value<'a> {
    Bytes(&'a [u8]),
    Uint(u32),
}

impl<'a> OutMessage<'a> {
    /// A message without options and payload.
    pub const fn new(code: Code) -> Self {
        Self { code, options: heapless::Vec::new(), too_many: false, payload: &[] }
    }

    /// A response that says in words what is wrong (RFC 7252 §5.5.2).
    pub const fn diagnostic(code: Code, text: &'a str) -> Self {
        Self { code, options: heapless::Vec::new(), too_many: false, payload: text.as_bytes() }
    }

    /// What it is.
    pub const fn code(&self) -> Code {
        self.code
    }

    /// Sets the payload.
    #[must_use]
    pub const fn payload(mut self, payload: &'a [u8]) -> Self {
        self.payload = payload;
        self
    }

    /// Adds an option whose value is these bytes.
    #[must_use]
    pub fn option(self, option: CoapOption, value: &'a [u8]) -> Self {
        self.raw(option.into(), value)
    }

    /// Adds an option whose value is a number, in as few bytes as it needs.
    #[must_use]
    pub fn uint(self, option: CoapOption, value: u32) -> Self {
        self.raw_uint(option.into(), value)
    }

    /// Adds Uri-Path, one option for each segment of `path`, which may begin with `/`.
    #[must_use]
    pub fn path(self, path: &'a str) -> Self {
        let path = path.strip_prefix('/').unwrap_or(path);
        if path.is_empty() {
            return self;
        }
        path.split('/').fold(self, |message, segment| message.segment(segment))
    }

    /// Adds one segment to Uri-Path.
    #[must_use]
    pub fn segment(self, segment: &'a str) -> Self {
        self.option(CoapOption::UriPath, segment.as_bytes())
    }

    /// Adds one argument to Uri-Query, usually `name=value`.
    #[must_use]
    pub fn query(self, argument: &'a str) -> Self {
        self.option(CoapOption::UriQuery, argument.as_bytes())
    }

    /// Says what the payload is, one of [`format`].
    #[must_use]
    pub fn content_format(self, format: u16) -> Self {
        self.uint(CoapOption::ContentFormat, u32::from(format))
    }

    /// Says what is wanted in the answer, one of [`format`].
    #[must_use]
    pub fn accept(self, format: u16) -> Self {
        self.uint(CoapOption::Accept, u32::from(format))
    }

    /// Says which part of a request body this is.
    #[must_use]
    pub fn block1(self, block: Block) -> Self {
        self.uint(CoapOption::Block1, block.to_uint())
    }

    /// Says which part of a response body this is, or is asked for.
    #[must_use]
    pub fn block2(self, block: Block) -> Self {
        self.uint(CoapOption::Block2, block.to_uint())
    }

    /// Says how long the whole request body is, bytes.
    #[must_use]
    pub fn size1(self, len: u32) -> Self {
        self.uint(CoapOption::Size1, len)
    }

    /// Says how long the whole response body is, bytes.
    #[must_use]
    pub fn size2(self, len: u32) -> Self {
        self.uint(CoapOption::Size2, len)
    }

    /// As [`option`](Self::option), for signals, whose option numbers are a space of their own.
    #[must_use]
    pub(crate) fn raw(self, number: u16, value: &'a [u8]) -> Self {
        self.add(number, Value::Bytes(value))
    }

    /// As [`uint`](Self::uint), for signals.
    #[must_use]
    pub(crate) fn raw_uint(self, number: u16, value: u32) -> Self {
        self.add(number, Value::Uint(value))
    }

    /// Appends the message to `out`; it is at most `max_len` bytes, header included.
    ///
    /// # Errors
    /// All of [`EncodeError`]; `out` is as before then.
    ///
    /// RFC 8323 §3.2.
    pub fn encode(&self, token: Token, max_len: usize, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        if self.too_many {
            return Err(EncodeError::TooManyOptions);
        }
        let mut body_len = if self.payload.is_empty() { 0 } else { self.payload.len().saturating_add(1) };
        let mut number = 0;
        for (next, value) in &self.options {
            let head = OptionHead::new(next.saturating_sub(number), value.len())?;
            body_len = body_len.saturating_add(head.len()).saturating_add(value.len());
            number = *next;
        }
        let (nibble, extra) = length(body_len)?;
        let token = token.as_bytes();
        let total_len = extra.len().saturating_add(2).saturating_add(token.len()).saturating_add(body_len);
        if total_len > max_len {
            return Err(EncodeError::TooLong);
        }
        out.reserve(total_len);
        let token_len = u8::try_from(token.len()).map_err(|_| EncodeError::TooLong)?;
        out.push((nibble << 4) | token_len);
        out.extend_from_slice(&extra);
        out.push(self.code.0);
        out.extend_from_slice(token);
        let mut number = 0;
        for (next, value) in &self.options {
            OptionHead::new(next.saturating_sub(number), value.len())?.write(out);
            number = *next;
            match value {
                Value::Bytes(bytes) => out.extend_from_slice(bytes),
                Value::Uint(value) => out.extend_from_slice(Uint::new(*value).as_bytes()),
            }
        }
        if !self.payload.is_empty() {
            out.push(PAYLOAD_MARKER);
            out.extend_from_slice(self.payload);
        }
        Ok(())
    }

    /// Options of one number stay in the order they were added in.
    fn add(mut self, number: u16, value: Value<'a>) -> Self {
        let at = self.options.iter().position(|(other, _)| *other > number).unwrap_or(self.options.len());
        if self.options.is_full() || self.options.insert(at, (number, value)).is_err() {
            self.too_many = true;
        }
        self
    }
}

/// Payloads stay out of logs: only their length is shown.
impl fmt::Debug for OutMessage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutMessage")
            .field("code", &self.code)
            .field("option_count", &self.options.len())
            .field("payload_len", &self.payload.len())
            .finish()
    }
}

impl Value<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Uint(value) => Uint::new(*value).as_bytes().len(),
        }
    }
}

/// The bytes before an option's value.
struct OptionHead {
    first: u8,
    delta: heapless::Vec<u8, 4>,
    len: heapless::Vec<u8, 4>,
}

impl OptionHead {
    fn new(delta: u16, len: usize) -> Result<Self, EncodeError> {
        let (delta_nibble, delta) = length(usize::from(delta))?;
        let (len_nibble, len) = length(len)?;
        // 15 is the payload marker or reserved here, where a message's length would use it.
        if delta_nibble == 15 || len_nibble == 15 {
            return Err(EncodeError::TooLong);
        }
        Ok(Self { first: (delta_nibble << 4) | len_nibble, delta, len })
    }

    fn len(&self) -> usize {
        self.delta.len().saturating_add(self.len.len()).saturating_add(1)
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(self.first);
        out.extend_from_slice(&self.delta);
        out.extend_from_slice(&self.len);
    }
}

/// A nibble and the zero, one, two or four bytes that extend it.
fn length(value: usize) -> Result<(u8, heapless::Vec<u8, 4>), EncodeError> {
    let value = u32::try_from(value).map_err(|_| EncodeError::TooLong)?;
    let (nibble, base, skip) = match value {
        0..13 => return Ok((u8::try_from(value).unwrap_or_default(), heapless::Vec::new())),
        13..269 => (13, 13, 3),
        269..65_805 => (14, 269, 2),
        65_805.. => (15, 65_805, 0),
    };
    let bytes = value.saturating_sub(base).to_be_bytes();
    Ok((nibble, bytes.into_iter().skip(skip).collect()))
}

/// A number in as few bytes as it needs, big-endian (RFC 7252 §3.2).
pub(crate) struct Uint {
    bytes: [u8; 4],
    skip: usize,
}

impl Uint {
    pub(crate) fn new(value: u32) -> Self {
        let bytes = value.to_be_bytes();
        Self { bytes, skip: bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len()) }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(self.skip..).unwrap_or_default()
    }
}

/// A number of at most four bytes; leading zeros are allowed (RFC 7252 §3.2).
pub(crate) fn uint(bytes: &[u8]) -> Option<u32> {
    (bytes.len() <= 4).then(|| bytes.iter().fold(0, |value, byte| (value << 8) | u32::from(*byte)))
}

/// Whether an option that is not understood may be ignored (RFC 7252 §5.4.6, RFC 8323 §5.2).
pub(crate) const fn is_elective(number: u16) -> bool {
    number & 1 == 0
}

const PAYLOAD_MARKER: u8 = 0xFF;

#[cfg(test)]
mod tests;
