//! Messages about the connection itself: CSM, Ping, Pong, Release, Abort (RFC 8323 §5).
//!
//! Their option numbers mean something else in each of them. When they are sent, and what they change, is decided in
//! [`exchange`](super::exchange).

use core::str;

use super::frame::{Code, Message, OutMessage, is_elective, uint};

/// Longest message a peer takes before its CSM says otherwise, bytes (RFC 8323 §5.3.1).
pub const DEFAULT_MAX_MESSAGE_LEN: usize = 1152;

/// Why a signal was not understood. The connection ends with Abort after any of these.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SignalError {
    /// Not one of 7.01 to 7.05.
    #[error("unknown signal {0}")]
    UnknownCode(Code),
    /// A critical option, with its number, that is not defined for this signal.
    #[error("critical option {option} of signal {code} is not understood")]
    CriticalOption {
        /// Which signal.
        code: Code,
        /// Which option; Bad-CSM-Option of the Abort if the signal is a CSM.
        option: u16,
    },
}

/// A signal as received.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Signal<'a> {
    /// What the sender can take; what it does not name stays as it was.
    Csm(Csm),
    /// Asks for a Pong with the same token.
    Ping {
        /// Whether the Pong is to say that what came before was processed.
        custody: bool,
    },
    /// Answers a Ping.
    Pong {
        /// Whether what came before the Ping was processed.
        custody: bool,
    },
    /// The sender wants the connection to end in good order.
    Release(Release<'a>),
    /// The sender has ended the connection.
    Abort(Abort<'a>),
}

/// Capabilities and settings (7.01).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Csm {
    /// Longest message the sender takes, bytes, header included.
    pub max_message_len: Option<u32>,
    /// The sender knows block-wise transfer; with a maximum over 1152 bytes also BERT.
    pub block_wise: bool,
}

/// The sender wants the connection to end in good order (7.04).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Release<'a> {
    /// Where to connect instead: host and port, the first if there are several.
    pub alternative: Option<&'a str>,
    /// How long to wait before the next connection, seconds (24 bits).
    pub hold_off_s: Option<u32>,
}

/// The sender has ended the connection (7.05).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Abort<'a> {
    /// The option of our CSM that was not understood.
    pub bad_csm_option: Option<u16>,
    /// The reason in the peer's words, at most a message long and anything but trustworthy: escape it before printing.
    pub diagnostic: &'a [u8],
}

impl<'a> Signal<'a> {
    /// Reads a message of class 7. Options that may be ignored and are not understood, or are too long, are ignored.
    ///
    /// # Errors
    /// All of [`SignalError`].
    pub fn decode(message: &Message<'a>) -> Result<Self, SignalError> {
        let code = message.code;
        // Every option defined so far is elective, so a critical one is never understood.
        if code.is_signal()
            && let Some((option, _)) = message.options.iter().find(|(number, _)| !is_elective(*number))
        {
            return Err(SignalError::CriticalOption { code, option });
        }
        let first = |wanted: u16, max_len: usize| {
            message.options.iter().find(|(number, value)| *number == wanted && value.len() <= max_len)
        };
        let number = |wanted: u16, max_len: usize| first(wanted, max_len).and_then(|(_, value)| uint(value));
        Ok(match code {
            Code::CSM => Self::Csm(Csm {
                max_message_len: number(MAX_MESSAGE_SIZE, 4),
                block_wise: first(BLOCK_WISE_TRANSFER, 0).is_some(),
            }),
            Code::PING => Self::Ping { custody: first(CUSTODY, 0).is_some() },
            Code::PONG => Self::Pong { custody: first(CUSTODY, 0).is_some() },
            Code::RELEASE => Self::Release(Release {
                alternative: first(ALTERNATIVE_ADDRESS, 255)
                    .and_then(|(_, value)| str::from_utf8(value).ok())
                    .filter(|address| !address.is_empty()),
                hold_off_s: number(HOLD_OFF, 3),
            }),
            Code::ABORT => Self::Abort(Abort {
                bad_csm_option: number(BAD_CSM_OPTION, 2).and_then(|value| u16::try_from(value).ok()),
                diagnostic: message.payload,
            }),
            _ => return Err(SignalError::UnknownCode(code)),
        })
    }

    /// The signal as a message. The token is empty, but for a Pong, which takes its Ping's.
    pub fn encode(&self) -> OutMessage<'a> {
        let flag = |message: OutMessage<'a>, number, set| if set { message.raw(number, &[]) } else { message };
        match *self {
            Self::Csm(Csm { max_message_len, block_wise }) => {
                let message = OutMessage::new(Code::CSM);
                let message = match max_message_len {
                    Some(len) => message.raw_uint(MAX_MESSAGE_SIZE, len),
                    None => message,
                };
                flag(message, BLOCK_WISE_TRANSFER, block_wise)
            }
            Self::Ping { custody } => flag(OutMessage::new(Code::PING), CUSTODY, custody),
            Self::Pong { custody } => flag(OutMessage::new(Code::PONG), CUSTODY, custody),
            Self::Release(Release { alternative, hold_off_s }) => {
                let message = OutMessage::new(Code::RELEASE);
                let message = match alternative {
                    Some(address) => message.raw(ALTERNATIVE_ADDRESS, address.as_bytes()),
                    None => message,
                };
                match hold_off_s {
                    Some(seconds) => message.raw_uint(HOLD_OFF, seconds.min(MAX_HOLD_OFF_S)),
                    None => message,
                }
            }
            Self::Abort(Abort { bad_csm_option, diagnostic }) => {
                let message = OutMessage::new(Code::ABORT).payload(diagnostic);
                match bad_csm_option {
                    Some(option) => message.raw_uint(BAD_CSM_OPTION, u32::from(option)),
                    None => message,
                }
            }
        }
    }
}

/// Options of CSM.
const MAX_MESSAGE_SIZE: u16 = 2;
const BLOCK_WISE_TRANSFER: u16 = 4;
/// Option of Ping and Pong.
const CUSTODY: u16 = 2;
/// Options of Release.
const ALTERNATIVE_ADDRESS: u16 = 2;
const HOLD_OFF: u16 = 4;
/// Option of Abort.
const BAD_CSM_OPTION: u16 = 2;

/// Hold-Off has three bytes.
const MAX_HOLD_OFF_S: u32 = 0x00FF_FFFF;

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::coap::frame::{Token, decode};

    fn bytes(message: &OutMessage<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        message.encode(Token::EMPTY, 1152, &mut out).unwrap();
        out
    }

    fn parse(bytes: &[u8]) -> Result<Signal<'_>, SignalError> {
        let (message, used) = decode(bytes, 1152).unwrap().unwrap();
        assert_eq!(used, bytes.len());
        Signal::decode(&message)
    }

    #[test]
    fn every_signal_round_trips() {
        for signal in [
            Signal::Csm(Csm::default()),
            Signal::Csm(Csm { max_message_len: Some(8192), block_wise: true }),
            Signal::Csm(Csm { max_message_len: Some(0), block_wise: false }),
            Signal::Ping { custody: false },
            Signal::Ping { custody: true },
            Signal::Pong { custody: true },
            Signal::Release(Release::default()),
            Signal::Release(Release { alternative: Some("[2001:db8::1]:5684"), hold_off_s: Some(70_000) }),
            Signal::Abort(Abort::default()),
            Signal::Abort(Abort { bad_csm_option: Some(9), diagnostic: b"no" }),
        ] {
            let bytes = bytes(&signal.encode());
            assert_eq!(parse(&bytes), Ok(signal));
        }
    }

    #[test]
    fn the_bytes_of_a_csm_are_pinned() {
        let csm = Signal::Csm(Csm { max_message_len: Some(8192), block_wise: true });
        assert_eq!(bytes(&csm.encode()), [0x40, 0xE1, 0x22, 0x20, 0x00, 0x20]);
    }

    #[test]
    fn unknown_elective_options_are_ignored() {
        let message = OutMessage::new(Code::CSM).raw_uint(2, 2000).raw(6, b"OSCORE").raw(4, &[]);
        assert_eq!(parse(&bytes(&message)), Ok(Signal::Csm(Csm { max_message_len: Some(2000), block_wise: true })));
        let message = OutMessage::new(Code::CSM).raw(2, &[0, 0, 0, 0, 1]).raw(4, b"x");
        assert_eq!(parse(&bytes(&message)), Ok(Signal::Csm(Csm::default())), "too long counts as unknown");
        let message = OutMessage::new(Code::RELEASE).raw(2, &[0xFF]);
        assert_eq!(parse(&bytes(&message)), Ok(Signal::Release(Release::default())));
    }

    #[test]
    fn unknown_critical_options_and_signals_are_refused() {
        for code in [Code::CSM, Code::PING, Code::PONG, Code::RELEASE, Code::ABORT] {
            let bytes = bytes(&OutMessage::new(code).raw(9, b"x"));
            assert_eq!(parse(&bytes), Err(SignalError::CriticalOption { code, option: 9 }));
        }
        let code = Code::from_byte(0xE6);
        assert_eq!(parse(&bytes(&OutMessage::new(code))), Err(SignalError::UnknownCode(code)));
    }

    #[test]
    fn hold_off_never_needs_more_than_three_bytes() {
        let signal = Signal::Release(Release { alternative: None, hold_off_s: Some(u32::MAX) });
        let bytes = bytes(&signal.encode());
        assert_eq!(parse(&bytes), Ok(Signal::Release(Release { alternative: None, hold_off_s: Some(MAX_HOLD_OFF_S) })));
    }
}
