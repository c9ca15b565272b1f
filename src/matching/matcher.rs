//! One condition on a value, as people write it:
//!
//! | written | matches |
//! |---|---|
//! | `text` | exactly this |
//! | `text*` | what begins so |
//! | `*text` | what ends so |
//! | `a*b?c` | `*` stands for any bytes, also none and also `/` or `.`; `?` for exactly one |
//! | `~regex` | what the regular expression is found in; anchor it by `^` and `$` |
//! | `=text` | exactly `text`, whatever is in it |
//!
//! Values are bytes. Where case does not matter, the field says so ([`Folding`]), and both sides are lower case by the time
//! they meet.

use std::fmt;

use super::patterns;

/// Longest text of a matcher that is no regular expression, in bytes.
pub const TEXT_MAX: usize = 1024;
/// Longest with a `?`: such a text is compared place by place, which is bounded by its length times the value's.
const JOKERS_TEXT_MAX: usize = 256;
/// Bytes of a text that a filter looks for: the limits of an expression hold for it, and more tell little more.
const FILTER_MAX: usize = 200;

/// What is the same in a value and is not in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Folding {
    /// Nothing.
    None,
    /// Upper and lower case of ASCII.
    Case,
    /// These, and a DNS name with and without its trailing dot. Names are ASCII: others are compared as `xn--` labels.
    Name,
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matcher {
    written: String,
    form: Form,
}

/// How a value is compared. Texts are folded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// `text`.
    Exact(Box<[u8]>),
    /// `text*`.
    Prefix(Box<[u8]>),
    /// `*text`.
    Suffix(Box<[u8]>),
    /// Anything else with `*` or `?` in it, as written; never two `*` in a row.
    Wildcard(Box<[u8]>),
    /// `~regex`, and whether case is ignored; compared by a set of [`patterns`].
    Regex(Box<str>, bool),
}

impl Matcher {
    /// Reads a matcher for a value that is folded so.
    ///
    /// # Errors
    /// It can match nothing or everything, is too long, or its regular expression cannot be compiled.
    pub fn read(written: &str, folding: Folding) -> Result<Matcher, String> {
        let form = match written.strip_prefix('~') {
            Some(expression) => {
                let is_caseless = folding != Folding::None;
                patterns::check(expression, is_caseless)?;
                Form::Regex(expression.into(), is_caseless)
            }
            None => form_of(written, folding)?,
        };
        Ok(Matcher { written: written.to_owned(), form })
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.written
    }

    /// How a value is compared.
    pub fn form(&self) -> &Form {
        &self.form
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

fn form_of(written: &str, folding: Folding) -> Result<Form, String> {
    let literal = written.strip_prefix('=');
    let mut text = literal.unwrap_or(written).to_owned();
    if text.is_empty() {
        return Err("an empty text matches nothing; leave the key out to match everything".to_owned());
    }
    if text.len() > TEXT_MAX {
        return Err(format!("{} bytes are more than the {TEXT_MAX} of a text", text.len()));
    }
    if folding == Folding::Name {
        if !text.is_ascii() {
            return Err("a name is ASCII on the wire; write its xn-- form".to_owned());
        }
        if text.len() > 1 && text.ends_with('.') {
            text.pop();
        }
    }
    if folding != Folding::None {
        text.make_ascii_lowercase();
    }
    let boxed = |text: &str| text.as_bytes().into();
    if literal.is_some() {
        return Ok(Form::Exact(boxed(&text)));
    }
    while text.contains("**") {
        text = text.replace("**", "*");
    }
    if text == "*" {
        return Err("\"*\" matches everything; leave the key out".to_owned());
    }
    let is_plain = |part: &str| !part.contains(['*', '?']);
    if is_plain(&text) {
        return Ok(Form::Exact(boxed(&text)));
    }
    if let Some(rest) = text.strip_suffix('*').filter(|rest| is_plain(rest)) {
        return Ok(Form::Prefix(boxed(rest)));
    }
    if let Some(rest) = text.strip_prefix('*').filter(|rest| is_plain(rest)) {
        return Ok(Form::Suffix(boxed(rest)));
    }
    if text.contains('?') && text.len() > JOKERS_TEXT_MAX {
        return Err(format!("{} bytes are more than the {JOKERS_TEXT_MAX} of a text with ? in it", text.len()));
    }
    Ok(Form::Wildcard(boxed(&text)))
}

impl Form {
    /// Whether a value matches. A regular expression is not asked here, and matches nothing.
    pub fn matches(&self, value: &[u8]) -> bool {
        match self {
            Form::Exact(text) => **text == *value,
            Form::Prefix(text) => value.starts_with(text),
            Form::Suffix(text) => value.ends_with(text),
            Form::Wildcard(text) => wildcard(text, value),
            Form::Regex(..) => false,
        }
    }

    /// For a set of patterns: the regular expression, or of a wildcard one that matches whatever it does and as little else
    /// as one literal can tell. `None` when there is nothing to look for, or other ways to find it are better.
    pub fn filter(&self) -> Option<String> {
        match self {
            Form::Exact(_) | Form::Prefix(_) | Form::Suffix(_) => None,
            Form::Wildcard(text) => {
                let longest = text.split(|byte| matches!(byte, b'*' | b'?')).max_by_key(|part| part.len())?;
                (!longest.is_empty()).then(|| escaped(longest))
            }
            Form::Regex(expression, _) => Some(expression.to_string()),
        }
    }

    /// Whether [`Form::filter`] is to be compiled without case.
    pub fn is_caseless(&self) -> bool {
        matches!(self, Form::Regex(_, true))
    }
}

/// The first so many bytes as a regular expression that matches them.
fn escaped(text: &[u8]) -> String {
    text.iter().take(FILTER_MAX).map(|byte| format!("\\x{byte:02x}")).collect()
}

/// Parts between stars are found one after the other, each as early as it can be: if that fails, nothing else succeeds.
fn wildcard(text: &[u8], value: &[u8]) -> bool {
    let mut parts = text.split(|&byte| byte == b'*');
    let (first, last) = (parts.next().unwrap_or_default(), parts.next_back());
    let Some(last) = last else { return first.len() == value.len() && fits(first, value) };
    if value.len() < first.len() + last.len() || !fits(first, value) || !fits(last, &value[value.len() - last.len()..]) {
        return false;
    }
    let mut rest = &value[first.len()..value.len() - last.len()];
    for part in parts.filter(|part| !part.is_empty()) {
        match find(part, rest) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

/// Where a part is first.
fn find(part: &[u8], value: &[u8]) -> Option<usize> {
    if !part.contains(&b'?') {
        return memchr::memmem::find(value, part);
    }
    (0..=value.len().checked_sub(part.len())?).find(|&at| fits(part, &value[at..]))
}

/// Whether a value begins with a part, whose `?` are any byte.
fn fits(part: &[u8], value: &[u8]) -> bool {
    value.len() >= part.len() && part.iter().zip(value).all(|(want, byte)| want == byte || *want == b'?')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(written: &str) -> Form {
        Matcher::read(written, Folding::None).unwrap().form
    }

    #[test]
    fn forms_by_their_text() {
        let bytes = |text: &str| -> Box<[u8]> { text.as_bytes().into() };
        for (written, want) in [
            ("/admin", Form::Exact(bytes("/admin"))),
            ("/admin*", Form::Prefix(bytes("/admin"))),
            ("/admin**", Form::Prefix(bytes("/admin"))),
            ("*.php", Form::Suffix(bytes(".php"))),
            ("*a*", Form::Wildcard(bytes("*a*"))),
            ("a?c", Form::Wildcard(bytes("a?c"))),
            ("?*", Form::Wildcard(bytes("?*"))),
            ("=a*?", Form::Exact(bytes("a*?"))),
            ("==", Form::Exact(bytes("="))),
            ("=~a", Form::Exact(bytes("~a"))),
            ("~^a$", Form::Regex("^a$".into(), false)),
        ] {
            assert_eq!(read(written), want, "{written}");
        }
        let name = |written: &str| Matcher::read(written, Folding::Name).map(|matcher| matcher.form);
        assert_eq!(name("WWW.Example.ORG."), Ok(Form::Exact(bytes("www.example.org"))));
        assert_eq!(name("*.Example.org."), Ok(Form::Suffix(bytes(".example.org"))));
        assert_eq!(name("~Example"), Ok(Form::Regex("Example".into(), true)));
        assert!(name("müller.example").unwrap_err().contains("xn--"));
        let upper = Matcher::read("GET", Folding::Case).unwrap();
        assert_eq!((upper.text(), upper.form()), ("GET", &Form::Exact(bytes("get"))));
    }

    #[test]
    fn what_matches_nothing_or_everything_is_refused() {
        for (written, part) in [
            ("", "empty"),
            ("=", "empty"),
            ("*", "everything"),
            ("***", "everything"),
            ("~", "empty text"),
            ("~a*", "empty text"),
            ("~(", "parenthes"),
            (&"x".repeat(1025), "1025 bytes"),
            (&"?".repeat(257), "257 bytes"),
        ] {
            let error = Matcher::read(written, Folding::None).unwrap_err();
            assert!(error.to_lowercase().contains(part), "{written}: {error}");
        }
    }

    #[test]
    fn wildcards() {
        for (text, value, want) in [
            ("a*b?c", "axxbyc", true),
            ("a*b?c", "abyc", true),
            ("a*b?c", "abc", false),
            ("*a*", "xay", true),
            ("*a*", "xy", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("*ab*ab", "ab", false),
            ("*ab*ab", "abab", true),
            ("?", "", false),
            ("?*", "x", true),
            ("a*b*c", "abcbc", true),
            ("*?x?*", "axb", true),
            ("*?x?*", "xb", false),
        ] {
            assert_eq!(read(text).matches(value.as_bytes()), want, "{text} {value}");
        }
    }

    /// The definition, by trying everything.
    fn by_trying(text: &[u8], value: &[u8]) -> bool {
        match text {
            [] => value.is_empty(),
            [b'*', rest @ ..] => (0..=value.len()).any(|at| by_trying(rest, &value[at..])),
            [b'?', rest @ ..] => !value.is_empty() && by_trying(rest, &value[1..]),
            [byte, rest @ ..] => value.first() == Some(byte) && by_trying(rest, &value[1..]),
        }
    }

    proptest! {
        #[test]
        fn a_text_matches_what_its_definition_says(text in "[ab*?]{1,8}", value in "[ab]{0,10}") {
            prop_assume!(text.chars().any(|c| c != '*'));
            prop_assert_eq!(read(&text).matches(value.as_bytes()), by_trying(text.as_bytes(), value.as_bytes()));
        }

        /// What a wildcard matches is found by the filter.
        #[test]
        fn a_filter_loses_nothing(text in "[ab*?]{1,8}", value in "[ab]{0,10}", long in 0..3usize) {
            prop_assume!(text.chars().any(|c| c != '*'));
            let long = "ab".repeat(long * 70);
            let (text, value) = (text.replacen('a', &long, 1), value.replacen('a', &long, 1));
            prop_assume!(text.chars().any(|c| c != '*') && text.len() < 250);
            let form = read(&text);
            if let Some(filter) = form.filter().filter(|_| form.matches(value.as_bytes())) {
                let set = patterns::Patterns::compile(&[patterns::Pattern { expression: &filter, is_caseless: false, id: 3 }]);
                let mut found = Vec::new();
                set.unwrap().scan(&mut patterns::Scratch::default(), value.as_bytes(), &mut found).unwrap();
                prop_assert_eq!(found, [3]);
            }
        }
    }
}
