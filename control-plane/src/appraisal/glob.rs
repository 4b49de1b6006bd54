//! Globs of paths: anchored at both ends, and matched in time linear in the path.
//!
//! `*` stands for any text within a component, `?` for one character of it, and `**`, which has to be a whole component,
//! for any number of components. Everything else stands for itself; there are no classes, no braces and no escapes. What
//! a match means is the caller's business.

/// The longest glob, in bytes.
pub const MAX_GLOB_LEN: usize = 512;
/// States of the longest glob: two at most for each byte, and one behind the last.
const WORDS: usize = (2 * MAX_GLOB_LEN + 1).div_ceil(64);

/// Why a text is no glob.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum GlobError {
    #[error("a glob is longer than {MAX_GLOB_LEN} bytes")]
    TooLong,
    #[error("a glob is empty")]
    Empty,
    #[error("`**` has to be a whole component of the path")]
    DoubleStarInName,
    #[error("a glob of a path begins with `/`")]
    NotAbsolute,
    #[error("the path of a glob has an empty component, `.` or `..`")]
    NotCanonical,
    #[error("a glob holds a zero byte")]
    Nul,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Token {
    /// This byte.
    Byte(u8),
    /// The first byte of a character that is no slash.
    One,
    /// The other bytes of a character; always behind [`Token::One`].
    Tail,
    /// Any text without a slash.
    Star,
    /// Any text: `**` at the end.
    Rest,
    /// `**/` at the beginning of a component: may be nothing.
    Components,
    /// `**/` within a component; always behind [`Token::Components`].
    InComponent,
}

/// A glob, ready to match.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Glob {
    text: String,
    /// What every match begins with.
    prefix_len: usize,
    tokens: Vec<Token>,
}

impl Glob {
    /// Reads a glob of paths.
    ///
    /// # Errors
    /// [`GlobError`].
    pub fn new(text: &str) -> Result<Self, GlobError> {
        if text.is_empty() {
            return Err(GlobError::Empty);
        }
        if text.len() > MAX_GLOB_LEN {
            return Err(GlobError::TooLong);
        }
        if text.contains('\0') {
            return Err(GlobError::Nul);
        }
        let Some(relative) = text.strip_prefix('/') else { return Err(GlobError::NotAbsolute) };
        let mut components = relative.split('/').peekable();
        let mut tokens = vec![Token::Byte(b'/')];
        while let Some(component) = components.next() {
            let is_last = components.peek().is_none();
            match component {
                "" | "." | ".." if !(is_last && component.is_empty()) => return Err(GlobError::NotCanonical),
                "**" if is_last => tokens.push(Token::Rest),
                "**" => {
                    // Two in a row say no more than one.
                    if tokens.last() != Some(&Token::InComponent) {
                        tokens.extend([Token::Components, Token::InComponent]);
                    }
                }
                name if name.contains("**") => return Err(GlobError::DoubleStarInName),
                name => {
                    for byte in name.bytes() {
                        match byte {
                            b'*' => tokens.push(Token::Star),
                            b'?' => tokens.extend([Token::One, Token::Tail]),
                            byte => tokens.push(Token::Byte(byte)),
                        }
                    }
                    if !is_last {
                        tokens.push(Token::Byte(b'/'));
                    }
                }
            }
        }
        let prefix_len = text.bytes().take_while(|byte| !matches!(byte, b'*' | b'?')).count();
        Ok(Self { text: text.to_owned(), prefix_len, tokens })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the whole of `path` fits, whatever bytes it is of. Allocates nothing; takes time proportional to the
    /// length of the path, and of the glob at worst.
    pub fn matches(&self, path: &[u8]) -> bool {
        let prefix = self.text.as_bytes().get(..self.prefix_len).unwrap_or_default();
        let Some(mut rest) = path.strip_prefix(prefix) else { return false };
        // The prefix is bytes only, each a token.
        let mut states = States::default();
        self.enter(&mut states, self.prefix_len);
        while let Some((byte, after)) = rest.split_first() {
            let mut next = States::default();
            let mut alive = false;
            states.each(|state| {
                let Some(token) = self.tokens.get(state) else { return };
                let (stays, goes) = match (*token, *byte) {
                    (Token::Byte(expected), byte) => (None, (expected == byte).then_some(state + 1)),
                    (Token::One, byte) => (None, (byte != b'/').then_some(state + 1)),
                    (Token::Star, byte) => ((byte != b'/').then_some(state), None),
                    (Token::Tail, byte) => (matches!(byte, 0x80..=0xbf).then_some(state), None),
                    (Token::Rest, _) => (Some(state), None),
                    // No component is empty.
                    (Token::Components, byte) => (None, (byte != b'/').then_some(state + 1)),
                    (Token::InComponent, b'/') => (state.checked_sub(1), None),
                    (Token::InComponent, _) => (Some(state), None),
                };
                for state in [stays, goes].into_iter().flatten() {
                    self.enter(&mut next, state);
                    alive = true;
                }
            });
            if !alive {
                return false;
            }
            states = next;
            rest = after;
        }
        states.has(self.tokens.len())
    }

    /// Enters a state and those that it can become without reading.
    fn enter(&self, states: &mut States, state: usize) {
        let mut state = state;
        loop {
            states.set(state);
            state += match self.tokens.get(state) {
                Some(Token::Star | Token::Rest | Token::Tail) => 1,
                Some(Token::Components) => 2,
                _ => return,
            };
        }
    }
}

/// A set of states.
#[derive(Clone, Copy, Default)]
struct States([u64; WORDS]);

impl States {
    fn set(&mut self, state: usize) {
        if let Some(word) = self.0.get_mut(state / 64) {
            *word |= 1 << (state % 64);
        }
    }

    fn has(&self, state: usize) -> bool {
        self.0.get(state / 64).is_some_and(|word| word >> (state % 64) & 1 == 1)
    }

    fn each(&self, mut seen: impl FnMut(usize)) {
        for (at, word) in self.0.iter().enumerate() {
            let mut word = *word;
            while word != 0 {
                seen(at * 64 + word.trailing_zeros() as usize);
                word &= word - 1;
            }
        }
    }
}

/// Whether a path names its file in one way only: absolute, without a zero byte and without empty, `.` and `..`
/// components. Of others nobody can tell where they lead.
pub fn is_canonical(path: &[u8]) -> bool {
    let Some(relative) = path.strip_prefix(b"/") else { return false };
    !relative.contains(&0) && relative.split(|byte| *byte == b'/').all(|name| !matches!(name, b"" | b"." | b".."))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    fn fits(glob: &str, path: &str) -> bool {
        Glob::new(glob).unwrap().matches(path.as_bytes())
    }

    #[test]
    fn a_glob_fits_whole_paths_only() {
        for (glob, path, expected) in [
            ("/tmp", "/tmp", true),
            ("/tmp", "/tmp/x", false),
            ("/tmp", "/tmpevil", false),
            ("/tmp", "/usr/tmp", false),
            ("/tmp/**", "/tmp/x", true),
            ("/tmp/**", "/tmp/x/y/z", true),
            ("/tmp/**", "/tmp", false),
            ("/tmp/**", "/tmpevil/x", false),
            ("/var/log/*.log", "/var/log/a.log", true),
            ("/var/log/*.log", "/var/log/.log", true),
            ("/var/log/*.log", "/var/log/a/b.log", false),
            ("/var/log/*.log", "/var/log/a.log2", false),
            ("/a/*/c", "/a/b/c", true),
            ("/a/*/c", "/a/b/b/c", false),
            ("/a/**/c", "/a/c", true),
            ("/a/**/c", "/a/b/b/c", true),
            ("/a/**/c", "/a/bc", false),
            ("/a/**/c", "/a//c", false),
            ("/a/**/**/c", "/a/c", true),
            ("/a/*/**", "/a/b", false),
            ("/a/*/**", "/a/b/c/d", true),
            ("/**", "/anything/at/all", true),
            ("/**/x", "/x", true),
            ("/a?c", "/abc", true),
            ("/a?c", "/a/c", false),
            ("/a?c", "/aéc", true),
            ("/a?c", "/ac", false),
            ("/a?c", "/abbc", false),
            ("/[a]{b}", "/[a]{b}", true),
            ("/a*b*c", "/aXbYbZc", true),
            ("/a*b*c", "/aXcYb", false),
        ] {
            assert_eq!(fits(glob, path), expected, "{glob} {path}");
        }
        assert!(Glob::new("/a/*").unwrap().matches(b"/a/\xff\xfe"));
    }

    #[test]
    fn what_could_mean_more_than_it_seems_to_is_no_glob() {
        for (text, expected) in [
            ("", GlobError::Empty),
            ("tmp/**", GlobError::NotAbsolute),
            ("**", GlobError::NotAbsolute),
            ("/tmp**", GlobError::DoubleStarInName),
            ("/tmp/***", GlobError::DoubleStarInName),
            ("/a//b", GlobError::NotCanonical),
            ("/a/./b", GlobError::NotCanonical),
            ("/a/../b", GlobError::NotCanonical),
            ("/a/..", GlobError::NotCanonical),
            ("/a\0", GlobError::Nul),
        ] {
            assert_eq!(Glob::new(text), Err(expected), "{text}");
        }
        assert_eq!(Glob::new(&format!("/{}", "a".repeat(MAX_GLOB_LEN))), Err(GlobError::TooLong));
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_not_canonical() {
        for path in ["/a", "/a/b", "/...", "/memfd:x (deleted)"] {
            assert!(is_canonical(path.as_bytes()), "{path}");
        }
        for path in ["", "a", "a/b", "/", "/a/", "//a", "/a//b", "/./a", "/a/.", "/a/../b", "/a/..", "/a\0b"] {
            assert!(!is_canonical(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn the_worst_glob_takes_time_linear_in_the_path() {
        let glob = Glob::new(&format!("/{}", "*a".repeat(200))).unwrap();
        let path = format!("/{}b", "a".repeat(4096));
        let begun = Instant::now();
        assert!(!glob.matches(path.as_bytes()));
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    /// The same by trying everything.
    fn slowly(glob: &[u8], path: &[u8], at_component: bool) -> bool {
        if at_component && glob == b"**" {
            return true;
        }
        if at_component && let Some(rest) = glob.strip_prefix(b"**/") {
            if slowly(rest, path, true) {
                return true;
            }
            let end = path.iter().position(|byte| *byte == b'/');
            return end.is_some_and(|end| end > 0 && slowly(glob, &path[end + 1..], true));
        }
        match (glob.split_first(), path.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), byte) => {
                slowly(rest, path, false)
                    || byte.is_some_and(|(byte, after)| *byte != b'/' && slowly(glob, after, false))
            }
            (Some((b'?', rest)), Some((byte, after))) => *byte != b'/' && slowly(rest, after, false),
            (Some((expected, rest)), Some((byte, after))) => expected == byte && slowly(rest, after, *byte == b'/'),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn any_glob_fits_what_trying_everything_fits(glob in "/[ab/*?]{0,9}", path in "/[ab/]{0,9}") {
            if let Ok(glob) = Glob::new(&glob) {
                prop_assert_eq!(glob.matches(path.as_bytes()), slowly(glob.as_str().as_bytes(), path.as_bytes(), false));
            }
        }
    }
}
