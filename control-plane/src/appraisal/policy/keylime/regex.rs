//! Regular expressions of Keylime (Python's `re`) as globs and patterns, where these say the same or less.
//!
//! A small part of the language is read: what lists of excluded paths are written in. Everything else is refused by
//! name, so that nothing is carried over that means something else. Expanding alternatives is bounded.

use crate::appraisal::glob::{Glob, GlobError};

/// Alternatives that one expression may expand to.
const MAX_BRANCHES: usize = 64;
/// Groups within groups.
const MAX_DEPTH: usize = 16;
/// Characters of one expression.
const MAX_LEN: usize = 4096;

/// Why an expression cannot be carried over.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum RegexError {
    #[error("`{0}` has no counterpart in globs")]
    Unsupported(String),
    #[error("it is no regular expression ({0})")]
    Malformed(&'static str),
    #[error("it stands for more than {MAX_BRANCHES} alternatives")]
    TooMany,
    #[error("it matches paths that do not begin with `/`, which are never excluded here")]
    NotAbsolute,
    #[error("`{0}` is a character that globs give a meaning of their own")]
    Reserved(char),
    #[error(transparent)]
    NoGlob(#[from] GlobError),
}

/// One step of an alternative.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Atom {
    /// This character.
    Literal(char),
    /// `.`: any one character.
    Any,
    /// `.*`: anything.
    Anything,
    /// `[^/]`: one character of a path component.
    InName,
    /// `[^/]*`: the rest of a path component.
    NameRest,
}

/// One alternative.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Branch {
    atoms: Vec<Atom>,
    /// `$` was reached: nothing may follow.
    ended: bool,
}

/// Globs that exclude what an expression excludes, or less.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Globs {
    /// The globs, sorted.
    pub globs: Vec<String>,
    /// What they leave out; `None` if they say exactly the same of every path without `.`, `..` and empty components.
    pub narrowed: Option<&'static str>,
}

/// Translates an expression that Keylime matches at the *beginning* of a path.
///
/// # Errors
/// [`RegexError`] if there is no glob that is both safe and of use.
pub fn exclude_globs(regex: &str) -> Result<Globs, RegexError> {
    let mut globs = Vec::new();
    let mut narrowed = None;
    for branch in parse(regex)? {
        branch_globs(&branch, &mut globs, &mut narrowed)?;
    }
    globs.sort();
    globs.dedup();
    for glob in &globs {
        Glob::new(glob)?;
    }
    Ok(Globs { globs, narrowed })
}

/// A command line's expression, matched as a whole, as text in which `*` stands for anything.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LinePattern {
    /// The text or pattern.
    pub text: String,
    /// Whether it holds a `*` that stands for anything.
    pub is_pattern: bool,
    /// Whether a `.` that stood for any character is now a dot.
    pub narrowed: bool,
}

/// Translates the expression of a kernel command line.
///
/// # Errors
/// [`RegexError`] if it is more than text, `.` and `.*`.
pub fn line_pattern(regex: &str) -> Result<LinePattern, RegexError> {
    let branches = parse(regex)?;
    let [branch] = branches.as_slice() else {
        return Err(RegexError::Unsupported("alternatives".into()));
    };
    let is_pattern = branch.atoms.contains(&Atom::Anything);
    let mut line = LinePattern { text: String::new(), is_pattern, narrowed: false };
    for atom in &branch.atoms {
        match atom {
            Atom::Literal('*') if is_pattern => return Err(RegexError::Reserved('*')),
            Atom::Literal(c) => line.text.push(*c),
            Atom::Any => {
                line.narrowed = true;
                line.text.push('.');
            }
            Atom::Anything => {
                if !line.text.ends_with('*') {
                    line.text.push('*');
                }
            }
            Atom::InName | Atom::NameRest => return Err(RegexError::Unsupported("[^/]".into())),
        }
    }
    Ok(line)
}

const PREFIX: &str = "it matched every path that only begins so; now the path itself and what is below it";
const DOT: &str = "`.` matched any character; now any but `/`";

fn branch_globs(
    branch: &Branch,
    globs: &mut Vec<String>,
    narrowed: &mut Option<&'static str>,
) -> Result<(), RegexError> {
    let mut atoms = branch.atoms.clone();
    let mut also_below = false;
    if !branch.ended {
        match atoms.last() {
            // An open end after a slash, or one that is written out: everything that follows.
            Some(Atom::Literal('/') | Atom::Anything) | None => atoms.push(Atom::Anything),
            Some(_) => {
                also_below = true;
                *narrowed = Some(PREFIX);
            }
        }
    }
    atoms.dedup_by(|a, b| *a == Atom::Anything && *b == Atom::Anything);
    if atoms.contains(&Atom::Any) {
        narrowed.get_or_insert(DOT);
    }
    let starts = match atoms.first() {
        Some(Atom::Literal('/')) => vec![atoms],
        // The first character of a path that can be excluded is a slash.
        Some(Atom::Any) => {
            if let Some(first) = atoms.first_mut() {
                *first = Atom::Literal('/');
            }
            vec![atoms]
        }
        Some(Atom::Anything) => {
            let rest: Vec<Atom> = atoms.iter().copied().skip(1).collect();
            let mut deep = vec![Atom::Literal('/')];
            deep.extend(atoms);
            if rest.first() == Some(&Atom::Literal('/')) { vec![rest, deep] } else { vec![deep] }
        }
        _ => return Err(RegexError::NotAbsolute),
    };
    for atoms in starts {
        let mut written = vec![String::new()];
        for (at, atom) in atoms.iter().enumerate() {
            let before = at.checked_sub(1).and_then(|at| atoms.get(at));
            write_atom(&mut written, *atom, before, atoms.get(at + 1))?;
            if written.len() > MAX_BRANCHES || globs.len() > MAX_BRANCHES {
                return Err(RegexError::TooMany);
            }
        }
        for glob in written {
            if also_below {
                globs.push(format!("{glob}/**"));
            }
            globs.push(glob);
        }
    }
    Ok(())
}

/// Appends one step to each glob. `**` is written as a whole component only, where it stands for any number of
/// components; `*` and `?` stay within a component.
fn write_atom(
    globs: &mut Vec<String>,
    atom: Atom,
    before: Option<&Atom>,
    after: Option<&Atom>,
) -> Result<(), RegexError> {
    let slash = Some(&Atom::Literal('/'));
    let texts: &[&str] = match atom {
        Atom::Literal(c @ ('*' | '?')) => return Err(RegexError::Reserved(c)),
        Atom::Literal(c) => {
            globs.iter_mut().for_each(|glob| glob.push(c));
            return Ok(());
        }
        Atom::Any | Atom::InName => &["?"],
        Atom::NameRest => &["*"],
        Atom::Anything if before == slash => {
            if after.is_none() {
                &["**"]
            } else if after == slash {
                &["*/**"]
            } else {
                &["**/*"]
            }
        }
        // Within a component, and either the rest of it or also what is below.
        Atom::Anything if after == slash => &["*/**"],
        Atom::Anything if after.is_none() => &["*", "*/**"],
        Atom::Anything => &["*", "*/**/*"],
    };
    // A star beside a star would read as two.
    if globs.iter().any(|glob| glob.ends_with('*')) && texts.iter().any(|text| text.starts_with('*')) {
        return Err(RegexError::Unsupported("repetition beside repetition".into()));
    }
    *globs = globs.iter().flat_map(|glob| texts.iter().map(move |text| format!("{glob}{text}"))).collect();
    Ok(())
}

/// Reads an expression into its alternatives.
fn parse(regex: &str) -> Result<Vec<Branch>, RegexError> {
    if regex.len() > MAX_LEN {
        return Err(RegexError::TooMany);
    }
    let mut parser = Parser { chars: regex.chars().collect(), at: 0 };
    let branches = parser.alternatives(0)?;
    match parser.peek() {
        Some(_) => Err(RegexError::Malformed("a `)` too many")),
        None => Ok(branches),
    }
}

struct Parser {
    chars: Vec<char>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek();
        self.at += usize::from(c.is_some());
        c
    }

    fn take(&mut self, wanted: &str) -> bool {
        let found = wanted.chars().enumerate().all(|(at, c)| self.chars.get(self.at + at) == Some(&c));
        if found {
            self.at += wanted.chars().count();
        }
        found
    }

    /// Alternatives up to the end or a `)`, which stays.
    fn alternatives(&mut self, depth: usize) -> Result<Vec<Branch>, RegexError> {
        if depth > MAX_DEPTH {
            return Err(RegexError::TooMany);
        }
        let mut all = Vec::new();
        loop {
            all.extend(self.sequence(depth)?);
            if all.len() > MAX_BRANCHES {
                return Err(RegexError::TooMany);
            }
            if !self.take("|") {
                return Ok(all);
            }
        }
    }

    fn sequence(&mut self, depth: usize) -> Result<Vec<Branch>, RegexError> {
        let mut branches = vec![Branch::default()];
        while let Some(c) = self.peek() {
            if c == '|' || c == ')' {
                break;
            }
            self.at += 1;
            let step = match c {
                '^' if branches.iter().all(|branch| branch.atoms.is_empty()) => continue,
                '^' => return Err(RegexError::Unsupported("^".into())),
                '$' => {
                    branches.iter_mut().for_each(|branch| branch.ended = true);
                    continue;
                }
                '(' => self.group(depth)?,
                '[' => self.class()?,
                '.' => single(Atom::Any),
                '\\' => single(Atom::Literal(self.escaped()?)),
                '*' | '+' | '?' | '{' => return Err(RegexError::Malformed("nothing to repeat")),
                c => single(Atom::Literal(c)),
            };
            let step = self.repeated(step)?;
            branches = append(&branches, &step)?;
        }
        Ok(branches)
    }

    fn group(&mut self, depth: usize) -> Result<Vec<Branch>, RegexError> {
        if self.take("?") && !self.take(":") {
            return Err(RegexError::Unsupported("(?".into()));
        }
        let inner = self.alternatives(depth + 1)?;
        if self.take(")") { Ok(inner) } else { Err(RegexError::Malformed("a `(` is not closed")) }
    }

    /// `[^/]`, or a few characters that become alternatives.
    fn class(&mut self) -> Result<Vec<Branch>, RegexError> {
        if self.take("^/]") {
            return Ok(single(Atom::InName));
        }
        if self.peek() == Some('^') {
            return Err(RegexError::Unsupported("[^".into()));
        }
        let mut branches = Vec::new();
        loop {
            match self.next() {
                None => return Err(RegexError::Malformed("a `[` is not closed")),
                Some(']') if !branches.is_empty() => break,
                Some('[' | '-') => return Err(RegexError::Unsupported("[".into())),
                Some('\\') => branches.extend(single(Atom::Literal(self.escaped()?))),
                Some(c) => {
                    if self.peek() == Some('-') && self.chars.get(self.at + 1).is_some_and(|c| *c != ']') {
                        self.at += 1;
                        self.range(c, &mut branches)?;
                    } else {
                        branches.extend(single(Atom::Literal(c)));
                    }
                }
            }
            if branches.len() > MAX_BRANCHES {
                return Err(RegexError::TooMany);
            }
        }
        Ok(branches)
    }

    fn range(&mut self, from: char, branches: &mut Vec<Branch>) -> Result<(), RegexError> {
        let to = self.next().ok_or(RegexError::Malformed("a `[` is not closed"))?;
        if to == '\\' || to < from {
            return Err(RegexError::Malformed("a range that ends before it begins"));
        }
        // As long as that is, it is refused before it is written out.
        if u32::from(to).abs_diff(u32::from(from)) as usize > MAX_BRANCHES {
            return Err(RegexError::TooMany);
        }
        branches.extend((from..=to).flat_map(|c| single(Atom::Literal(c))));
        Ok(())
    }

    /// What a backslash makes of the character behind it: itself, if that is punctuation.
    fn escaped(&mut self) -> Result<char, RegexError> {
        match self.next() {
            None => Err(RegexError::Malformed("a `\\` at its end")),
            Some(c) if c.is_alphanumeric() => Err(RegexError::Unsupported(format!("\\{c}"))),
            Some(c) => Ok(c),
        }
    }

    fn repeated(&mut self, step: Vec<Branch>) -> Result<Vec<Branch>, RegexError> {
        let atom = match step.as_slice() {
            [Branch { atoms, ended: false }] => match atoms.as_slice() {
                [atom] => Some(*atom),
                _ => None,
            },
            _ => None,
        };
        let many = match self.peek() {
            Some(c @ ('*' | '+')) => {
                self.at += 1;
                let rest = match atom {
                    Some(Atom::Any) => Atom::Anything,
                    Some(Atom::InName) => Atom::NameRest,
                    _ => return Err(RegexError::Unsupported(format!("{c} after more than `.` or `[^/]`"))),
                };
                let one = atom.filter(|_| c == '+');
                vec![Branch { atoms: one.into_iter().chain([rest]).collect(), ended: false }]
            }
            Some('?') => {
                self.at += 1;
                if step.iter().any(|branch| branch.ended) {
                    return Err(RegexError::Unsupported("?".into()));
                }
                step.into_iter().chain([Branch::default()]).collect()
            }
            Some('{') => return Err(RegexError::Unsupported("{".into())),
            _ => return Ok(step),
        };
        // Lazy or greedy is the same to whether something matches; a second repetition is not.
        self.take("?");
        if matches!(self.peek(), Some('*' | '+' | '?' | '{')) {
            return Err(RegexError::Malformed("repeated twice"));
        }
        Ok(many)
    }
}

fn single(atom: Atom) -> Vec<Branch> {
    vec![Branch { atoms: vec![atom], ended: false }]
}

/// Every alternative so far, followed by every one of a step.
fn append(branches: &[Branch], step: &[Branch]) -> Result<Vec<Branch>, RegexError> {
    if branches.len().saturating_mul(step.len()) > MAX_BRANCHES {
        return Err(RegexError::TooMany);
    }
    let mut all = Vec::with_capacity(branches.len() * step.len());
    for branch in branches {
        for next in step {
            if branch.ended && !next.atoms.is_empty() {
                return Err(RegexError::Unsupported("text after $".into()));
            }
            let mut atoms = branch.atoms.clone();
            atoms.extend(&next.atoms);
            all.push(Branch { atoms, ended: branch.ended || next.ended });
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn globs(regex: &str) -> (Vec<String>, bool) {
        let globs = exclude_globs(regex).unwrap_or_else(|error| panic!("{regex}: {error}"));
        (globs.globs, globs.narrowed.is_none())
    }

    #[test]
    fn expressions_with_an_exact_counterpart_are_translated_exactly() {
        for (regex, expected) in [
            ("/tmp/", &["/tmp/**"][..]),
            ("/tmp/.*", &["/tmp/**"]),
            ("^/tmp/.*$", &["/tmp/**"]),
            ("/var/log/[^/]*\\.log$", &["/var/log/*.log"]),
            ("/var/log/.*\\.log$", &["/var/log/**/*.log"]),
            ("/etc/passwd$", &["/etc/passwd"]),
            ("/var/(log|tmp)/", &["/var/log/**", "/var/tmp/**"]),
            ("(?:/a|/b)/", &["/a/**", "/b/**"]),
            ("/lib(64)?/x$", &["/lib/x", "/lib64/x"]),
            ("/dev/tty[0-2]$", &["/dev/tty0", "/dev/tty1", "/dev/tty2"]),
            (".*\\.pyc$", &["/**/*.pyc"]),
            (".*/cache/.*", &["/*/**/cache/**", "/cache/**"]),
            ("/usr/lib/.*/doc$", &["/usr/lib/*/**/doc"]),
            ("/tmp.*", &["/tmp*", "/tmp*/**"]),
            ("/a.*z$", &["/a*/**/*z", "/a*z"]),
            (".*", &["/**"]),
            ("", &["/**"]),
        ] {
            let (found, exact) = globs(regex);
            assert!(exact, "{regex}");
            assert_eq!(found, expected, "{regex}");
        }
    }

    #[test]
    fn a_prefix_becomes_the_path_and_what_is_below_and_that_is_said() {
        for regex in ["/tmp", "^/tmp", "^\\/tmp"] {
            assert_eq!(globs(regex), (vec!["/tmp".to_owned(), "/tmp/**".to_owned()], false), "{regex}");
        }
        assert_eq!(exclude_globs("/usr/a.so$").unwrap().narrowed, Some(DOT));
        assert_eq!(exclude_globs("/usr/a.so$").unwrap().globs, ["/usr/a?so"]);
    }

    #[test]
    fn what_has_no_counterpart_is_named() {
        for (regex, expected) in [
            ("boot_aggregate", RegexError::NotAbsolute),
            ("/tmp/\\d+", RegexError::Unsupported("\\d".into())),
            ("/tmp/(?i)x", RegexError::Unsupported("(?".into())),
            ("/tmp/(?!x)", RegexError::Unsupported("(?".into())),
            ("/tmp/[^a]", RegexError::Unsupported("[^".into())),
            ("/tmp/[0-9]+", RegexError::Unsupported("+ after more than `.` or `[^/]`".into())),
            ("/tmp/a{3}", RegexError::Unsupported("{".into())),
            ("/a$b", RegexError::Unsupported("text after $".into())),
            ("/a^b", RegexError::Unsupported("^".into())),
            ("/tmp/\\*", RegexError::Reserved('*')),
            ("/tmp//x", RegexError::NoGlob(GlobError::NotCanonical)),
            ("/tmp/(x", RegexError::Malformed("a `(` is not closed")),
            ("/tmp/x)", RegexError::Malformed("a `)` too many")),
            ("/tmp/[x", RegexError::Malformed("a `[` is not closed")),
            ("*/tmp", RegexError::Malformed("nothing to repeat")),
            ("/tmp/.**", RegexError::Malformed("repeated twice")),
            ("/tmp/\\", RegexError::Malformed("a `\\` at its end")),
            ("/(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)", RegexError::TooMany),
            ("/[\u{0}-\u{ffff}]", RegexError::TooMany),
        ] {
            assert_eq!(exclude_globs(regex), Err(expected), "{regex}");
        }
        assert_eq!(exclude_globs(&"(".repeat(1000)), Err(RegexError::TooMany));
        assert_eq!(exclude_globs(&"x".repeat(MAX_LEN + 1)), Err(RegexError::TooMany));
    }

    #[test]
    fn command_lines_of_text_and_stars_are_translated() {
        let line = |regex: &str| line_pattern(regex).map(|line| (line.text, line.is_pattern, line.narrowed));
        assert_eq!(line("/boot/vmlinuz root=/dev/sda ro"), Ok(("/boot/vmlinuz root=/dev/sda ro".into(), false, false)));
        assert_eq!(line("/vmlinuz-5.4 ro"), Ok(("/vmlinuz-5.4 ro".into(), false, true)));
        assert_eq!(line("/vmlinuz-5\\.4 root=.* ro"), Ok(("/vmlinuz-5.4 root=* ro".into(), true, false)));
        assert_eq!(line("^.*$"), Ok(("*".into(), true, false)));
        assert_eq!(line("a|b"), Err(RegexError::Unsupported("alternatives".into())));
        assert_eq!(line("a\\*.*"), Err(RegexError::Reserved('*')));
        assert_eq!(line("root=\\S+"), Err(RegexError::Unsupported("\\S".into())));
    }

    proptest! {
        #[test]
        fn any_text_is_translated_or_refused_and_globs_are_absolute(regex in "[/a.*+?()|\\[\\]^$\\\\-]{0,24}") {
            if let Ok(globs) = exclude_globs(&regex) {
                prop_assert!(globs.globs.len() <= 4 * MAX_BRANCHES);
                prop_assert!(globs.globs.iter().all(|glob| glob.starts_with('/')), "{:?}", globs);
            }
            let _ = line_pattern(&regex);
        }
    }
}
