//! How big a regular expression is, reckoned from its text in one pass and without recursion: what it asks of the compiler
//! grows with its bounded repeats, and `(a{1000}){1000}` is a million states in sixteen bytes.
//!
//! It also names what Hyperscan does not have, in words that help, and keeps off what would change how the whole
//! expression is read.

/// Longest expression, in bytes.
pub const LENGTH_MAX: usize = 1024;
/// Deepest nesting of groups.
pub const DEPTH_MAX: usize = 32;
/// Most positions, once bounded repeats are written out.
pub const POSITIONS_MAX: u64 = 2000;

/// A group that is not closed yet.
#[derive(Clone, Copy, Default)]
struct Group {
    /// Positions of all but its last atom.
    before: u64,
    /// Positions of its last atom, which a repeat multiplies.
    last: u64,
}

impl Group {
    fn atom(&mut self, positions: u64) {
        self.before = self.before.saturating_add(self.last);
        self.last = positions;
    }

    fn positions(self) -> u64 {
        self.before.saturating_add(self.last)
    }
}

/// Whether the expression can be given to the compiler. What is wrong in its syntax beyond that, the compiler says.
///
/// # Errors
/// It is too long, too deep or too big, or uses what the matcher does not have.
pub fn check(expression: &str) -> Result<(), String> {
    if expression.len() > LENGTH_MAX {
        return Err(format!("{} bytes are more than the {LENGTH_MAX} of a pattern", expression.len()));
    }
    if expression.contains('\0') {
        return Err("a pattern has no NUL byte in it; write \\x00".to_owned());
    }
    let positions = Scanner { rest: expression.as_bytes(), open: vec![Group::default()] }.positions()?;
    if positions > POSITIONS_MAX {
        return Err(format!(
            "its repeats make {positions} positions, and {POSITIONS_MAX} is the limit; use * or + instead of a large bound"
        ));
    }
    Ok(())
}

struct Scanner<'e> {
    rest: &'e [u8],
    /// The innermost last; never empty.
    open: Vec<Group>,
}

impl<'e> Scanner<'e> {
    fn positions(mut self) -> Result<u64, String> {
        while let [first, rest @ ..] = self.rest {
            self.rest = rest;
            match first {
                b'\\' => self.escape()?,
                b'[' => self.class(),
                b'(' => self.group()?,
                b')' => self.close(),
                b'{' => self.bounds()?,
                b'*' | b'+' | b'?' => self.possessive()?,
                b'|' | b'^' | b'$' => {}
                _ => self.atom(1),
            }
        }
        while self.open.len() > 1 {
            self.close();
        }
        Ok(self.open[0].positions())
    }

    fn atom(&mut self, positions: u64) {
        self.open.last_mut().expect("the outermost stays").atom(positions);
    }

    fn skip(&mut self, bytes: usize) {
        self.rest = &self.rest[bytes.min(self.rest.len())..];
    }

    /// Skips to behind `end`, or to the end of all.
    fn skip_past(&mut self, end: &[u8]) -> &'e [u8] {
        let at = self.rest.windows(end.len()).position(|window| window == end);
        let inside = &self.rest[..at.unwrap_or(self.rest.len())];
        self.skip(inside.len() + end.len());
        inside
    }

    /// Behind a backslash.
    fn escape(&mut self) -> Result<(), String> {
        let Some(&kind) = self.rest.first() else { return Ok(()) };
        self.skip(1);
        match kind {
            b'1'..=b'9' | b'k' | b'g' => Err(lacks("back-references", "\\1 or \\k")),
            b'K' => Err(lacks("a shifted start of the match", "\\K")),
            b'Q' => {
                let literal = self.skip_past(b"\\E");
                literal.iter().for_each(|_| self.atom(1));
                Ok(())
            }
            b'x' | b'p' | b'P' | b'o' if self.rest.first() == Some(&b'{') => {
                self.skip_past(b"}");
                self.atom(1);
                Ok(())
            }
            b'A' | b'z' | b'Z' | b'b' | b'B' | b'E' => Ok(()),
            _ => {
                self.atom(1);
                Ok(())
            }
        }
    }

    /// Behind `[`.
    fn class(&mut self) {
        if self.rest.first() == Some(&b'^') {
            self.skip(1);
        }
        // A bracket that comes first is one of the class.
        if self.rest.first() == Some(&b']') {
            self.skip(1);
        }
        while let [first, rest @ ..] = self.rest {
            self.rest = rest;
            match first {
                b'\\' => self.skip(1),
                b'[' if self.rest.first() == Some(&b':') => drop(self.skip_past(b":]")),
                b']' => break,
                _ => {}
            }
        }
        self.atom(1);
    }

    /// Behind `(`.
    fn group(&mut self) -> Result<(), String> {
        match self.rest {
            [b'*', ..] => return Err("(*...) would change how all patterns are read, and is not taken".to_owned()),
            [b'?', b'#', ..] => {
                self.skip_past(b")");
                return Ok(());
            }
            [b'?', rest @ ..] => {
                let rest = special(rest)?;
                if let [b')', rest @ ..] = rest {
                    // Flags for what follows, and no group.
                    self.rest = rest;
                    return Ok(());
                }
                self.rest = rest;
            }
            _ => {}
        }
        if self.open.len() > DEPTH_MAX {
            return Err(format!("groups are nested deeper than {DEPTH_MAX}"));
        }
        self.open.push(Group::default());
        Ok(())
    }

    fn close(&mut self) {
        if self.open.len() > 1
            && let Some(group) = self.open.pop()
        {
            self.atom(group.positions());
        }
    }

    /// Behind `{`: the bounds of a repeat, or a brace that stands for itself.
    fn bounds(&mut self) -> Result<(), String> {
        let end = self.rest.iter().position(|byte| !byte.is_ascii_digit() && *byte != b',').unwrap_or(self.rest.len());
        let inside = std::str::from_utf8(&self.rest[..end]).expect("digits and commas are UTF-8");
        let is_repeat = self.rest.get(end) == Some(&b'}') && inside.starts_with(|c: char| c.is_ascii_digit());
        if !is_repeat {
            self.atom(1);
            return Ok(());
        }
        self.skip(end + 1);
        // A number that is too large for its type is too large for every limit.
        let number = |text: &str| text.parse::<u64>().unwrap_or(u64::MAX);
        let times = match inside.split_once(',') {
            Some((low, "")) => number(low).saturating_add(1),
            Some((low, high)) => number(low).max(number(high)),
            None => number(inside),
        };
        let group = self.open.last_mut().expect("the outermost stays");
        group.last = group.last.saturating_mul(times.max(1));
        self.possessive()
    }

    /// Behind a repeat.
    fn possessive(&mut self) -> Result<(), String> {
        match self.rest.first() {
            Some(b'+') => Err(lacks("possessive repeats", "a*+")),
            Some(b'?') => {
                self.skip(1);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Behind `(?`: what follows the marks of the group.
fn special(rest: &[u8]) -> Result<&[u8], String> {
    match rest {
        [b'=' | b'!', ..] | [b'<', b'=' | b'!', ..] => Err(lacks("look-around", "(?=...) or (?<!...)")),
        [b'>', ..] => Err(lacks("atomic groups", "(?>...)")),
        [b'(', ..] => Err(lacks("conditions", "(?(...)...)")),
        [b'P', b'=' | b'>', ..] | [b'R' | b'&' | b'0'..=b'9' | b'+', ..] => {
            Err(lacks("back-references and recursion", "(?P=name) or (?R)"))
        }
        [b'C', ..] => Err(lacks("callouts", "(?C)")),
        [b'P', b'<', name @ ..] | [b'<', name @ ..] | [b'\'', name @ ..] => {
            let end = name.iter().position(|byte| matches!(byte, b'>' | b'\''));
            Ok(&name[end.map_or(name.len(), |end| end + 1)..])
        }
        [b'|', rest @ ..] | [b':', rest @ ..] => Ok(rest),
        _ => {
            let end = rest.iter().position(|byte| matches!(byte, b')' | b':')).unwrap_or(rest.len());
            let flags = &rest[..end];
            match flags.iter().find(|flag| !matches!(flag, b'i' | b'm' | b's' | b'-')) {
                Some(flag) => Err(format!("(?{}) is not a flag that is taken; i, m and s are", char::from(*flag).escape_debug())),
                // `(?i:` opens a group, `(?i)` does not: its bracket is left for the caller to see.
                None if rest.get(end) == Some(&b':') => Ok(&rest[end + 1..]),
                None => Ok(&rest[end..]),
            }
        }
    }
}

fn lacks(what: &str, example: &str) -> String {
    format!("{what}, such as {example}, cannot be matched in one pass and are not taken")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn positions(expression: &str) -> u64 {
        Scanner { rest: expression.as_bytes(), open: vec![Group::default()] }.positions().unwrap()
    }

    #[test]
    fn repeats_multiply_what_stands_before_them() {
        for (expression, want) in [
            ("", 0),
            ("abc", 3),
            ("a{3}", 3),
            ("ab{3}", 4),
            ("a{2,5}b", 6),
            ("a{7,}", 8),
            ("a{0}", 1),
            ("(ab){10}c", 21),
            ("(a{10}){10}", 100),
            ("((a|b){3}c){4}", 28),
            ("a{,5}", 5),
            ("a{x}", 4),
            ("[a-z]{20}", 20),
            ("[]a]{20}", 20),
            ("[^]a]{20}", 20),
            ("[[:alpha:]]{20}", 20),
            (r"[\]]{20}", 20),
            (r"\x{41}{9}", 9),
            (r"\d{9}", 9),
            (r"\Qa{9}\E", 4),
            ("(?i)ab", 2),
            ("(?i:ab){3}", 6),
            ("(?:ab){3}", 6),
            ("(?<name>ab){3}", 6),
            ("(?P<name>ab){3}", 6),
            ("a(?#b{900})c", 2),
            ("^a$|\\Ab\\z", 2),
            ("(a", 1),
            ("a)", 1),
            ("a.*?b+?", 3),
        ] {
            assert_eq!(positions(expression), want, "{expression}");
        }
    }

    #[test]
    fn what_is_not_taken_is_named() {
        for (expression, part) in [
            ("(a{1000}){1000}", "1000000 positions"),
            ("a{18446744073709551616}", "positions"),
            ("(((a{99999}){99999}){99999}){99999}", "positions"),
            ("(?=a)", "look-around"),
            ("a(?!b)", "look-around"),
            ("(?<=a)b", "look-around"),
            ("(?<!a)b", "look-around"),
            (r"(a)\1", "back-references"),
            (r"(?<n>a)\k<n>", "back-references"),
            ("(?P=n)", "back-references"),
            ("(?R)", "recursion"),
            ("(?>a)", "atomic"),
            ("(?(1)a|b)", "conditions"),
            ("a++", "possessive"),
            ("a{2}+", "possessive"),
            ("(*UTF8)a", "how all patterns are read"),
            ("(?x) a", "not a flag"),
            ("a\0", "NUL"),
            (r"a\K", "start"),
            (&"(".repeat(40), "nested"),
            (&"a".repeat(1025), "1025 bytes"),
        ] {
            let error = check(expression).unwrap_err();
            assert!(error.contains(part), "{expression}: {error}");
        }
        assert_eq!(check(&"a".repeat(1024)), Ok(()));
        assert_eq!(check("a{2000}"), Ok(()));
        assert!(check("a{2001}").is_err());
    }

    proptest! {
        #[test]
        fn anything_is_judged(expression in r"[\\a(){}\[\]?*+|^$<>=!:#P0-9,ixQEx-]{0,80}") {
            let _ = check(&expression);
        }
    }
}
