//! API tokens: who may call the REST API. The server keeps only their SHA-256.
//!
//! What a token may do is on record with its hash; how requests carry it is the API's business.

use std::fmt;

use protocol::crypto::{Secret, sha256};
use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

/// What every token begins with, so that people and secret scanners recognise it.
const PREFIX: &str = "trefoil-api-";
/// Characters of the random part that make the label: enough to tell tokens apart, far too few to guess the rest by.
const LABEL_LEN: usize = 8;

/// An API token. Wiped on drop.
pub struct ApiToken(Zeroizing<String>);

impl ApiToken {
    /// A new random token: the prefix and 64 hex digits.
    pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
        let secret = Secret::<32>::generate(rng);
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + 64));
        text.push_str(PREFIX);
        for byte in secret.expose() {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(digit.into(), 16).unwrap_or_default());
            }
        }
        Self(text)
    }

    /// From its text; white space around it is ignored. `None` for what cannot be a token.
    pub fn from_text(text: &str) -> Option<Self> {
        let text = text.trim();
        let digits = text.strip_prefix(PREFIX)?;
        let hex =
            digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        hex.then(|| Self(Zeroizing::new(text.to_owned())))
    }

    /// Its text: the secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// SHA-256 of its text: what the server keeps.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&[self.0.as_bytes()])
    }

    /// The first characters of its random part, to recognise it by.
    pub fn label(&self) -> &str {
        self.0.get(PREFIX.len()..PREFIX.len() + LABEL_LEN).unwrap_or_default()
    }
}

impl fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiToken")
    }
}

#[cfg(test)]
mod tests {
    use rand_core::OsRng;

    use super::*;

    #[test]
    fn text_round_trips() {
        let token = ApiToken::generate(&mut OsRng);
        let again = ApiToken::from_text(&format!(" {}\n", token.expose())).unwrap();
        assert_eq!(token.hash(), again.hash());
        assert_eq!(token.label().len(), 8);
        assert_eq!(format!("{token:?}"), "ApiToken");
    }

    #[test]
    fn what_cannot_be_a_token_is_refused() {
        let token = ApiToken::generate(&mut OsRng);
        assert!(ApiToken::from_text(&token.expose()[1..]).is_none());
        assert!(ApiToken::from_text(&token.expose()[..75]).is_none());
        assert!(ApiToken::from_text(&token.expose().to_uppercase()).is_none());
        assert!(ApiToken::from_text("").is_none());
    }
}
