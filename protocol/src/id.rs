//! The identifiers that every other structure is about: fixed-length bytes, printed as lower-case hex.

use core::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Its bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// Reads lower-case or upper-case hex of exactly the full length.
            pub fn from_hex(text: &str) -> Option<Self> {
                hex_array(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id! {
    /// A node: SHA-256("trefoil-v1-node" ‖ SubjectPublicKeyInfo DER of its EK).
    NodeId, 32
}
id! {
    /// A join token's public name: a digest of the token, from which nothing of it follows.
    JoinId, 32
}
id! {
    /// One sealing: one K_b, its shares, one encrypted payload and its manifest. Random.
    SealingId, 16
}
id! {
    /// One pending enrolment, made by the registrar. Random.
    EnrolmentId, 16
}

/// The three roles of the control plane; the number is what stands on the wire and in hashes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[repr(u8)]
pub enum Role {
    /// Binds an AK to an EK.
    Registrar = 1,
    /// Holds V and attests for ever.
    Verifier = 2,
    /// Holds U; the operator's role.
    Tenant = 3,
}

impl Role {
    /// The role's lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Registrar => "registrar",
            Self::Verifier => "verifier",
            Self::Tenant => "tenant",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whom a payload is sealed for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Subject {
    /// A node whose EK is known.
    Node(NodeId),
    /// Whoever first proves a join token: a node not seen yet.
    Join(JoinId),
}

impl Subject {
    /// Kind byte (1 node, 2 join token), then the 32 bytes of the id.
    pub fn to_bytes(self) -> [u8; 33] {
        let (kind, id) = match self {
            Self::Node(NodeId(id)) => (1, id),
            Self::Join(JoinId(id)) => (2, id),
        };
        let mut bytes = [kind; 33];
        let (_, tail) = bytes.split_at_mut(1);
        tail.copy_from_slice(&id);
        bytes
    }

    /// The reverse of [`to_bytes`](Self::to_bytes); `None` for an unknown kind.
    pub fn from_bytes(bytes: &[u8; 33]) -> Option<Self> {
        let (kind, id) = bytes.split_first_chunk::<1>()?;
        let id = id.try_into().ok()?;
        match kind {
            [1] => Some(Self::Node(NodeId(id))),
            [2] => Some(Self::Join(JoinId(id))),
            _ => None,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(id) => write!(f, "node:{id}"),
            Self::Join(id) => write!(f, "join:{id}"),
        }
    }
}

/// `N` bytes from `2 * N` hex digits; `None` for anything else.
pub fn hex_array<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in out.iter_mut().zip(pairs) {
        let digit = |c: &u8| char::from(*c).to_digit(16).and_then(|d| u8::try_from(d).ok());
        *byte = digit(high)?.checked_shl(4)? | digit(low)?;
    }
    Some(out)
}
