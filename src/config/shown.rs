//! Which lines of a config may be shown beside an error: `check` prints them, and what a unit's `ExecStartPre=` prints is in
//! the journal.
//!
//! A line is shown only if nothing in it can be a secret: each key in it is one that readers know, none of those holds a
//! secret, and it is not inside of a value that began above under another sort of key. A key that is misspelt may have been
//! meant for a secret. So where the text is torn by the very error that is told of, a line too many is hidden.

use std::collections::BTreeSet;

use toml_parser::Source;
use toml_parser::lexer::TokenKind;

use crate::written::{SECRET_KEYS, SECRET_TABLES};

/// Whether each line of `text` may be shown; those behind the end of the list may not. `known` are the names of keys.
pub(super) fn lines(text: &str, known: &BTreeSet<&str>) -> Vec<bool> {
    let mut scan = Scan::default();
    for token in Source::new(text).lex() {
        let (kind, span) = (token.kind(), token.span());
        let raw = text.get(span.start()..span.end()).unwrap_or_default();
        scan.token(kind, raw, known);
    }
    scan.end_line();
    scan.lines
}

/// Whether one of the words of a line, wherever it stands, is a key that holds a secret.
pub(super) fn names_secret(line: &str) -> bool {
    line.split(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-')).any(|word| SECRET_KEYS.contains(&word))
}

/// What is known at a place of the text.
struct Scan {
    lines: Vec<bool>,
    /// Brackets that are open.
    open: Vec<TokenKind>,
    /// All names of the header above are known.
    header_is_plain: bool,
    /// A key that may hold a secret began in this line, or further up if brackets are open.
    is_tainted: bool,
    /// The last key before a `=` is a plain one.
    owner_is_plain: bool,
    /// The key that is being read, with its dots, is a plain one.
    key_is_plain: bool,
    /// It is one of those that hold tables with secrets: as a value it may be anything, such as a list of the secrets.
    key_is_table: bool,
    /// The last token but blanks.
    last: Option<TokenKind>,
    line: Line,
}

/// What is known of the line so far.
#[derive(Default)]
struct Line {
    /// The line's first token but blanks.
    first: Option<TokenKind>,
    /// The line began inside of brackets.
    is_inside: bool,
    has_key: bool,
    /// A string goes on from the line above, or in the one below.
    is_string: bool,
    /// A name that is not known, where only names of tables stand.
    is_strange: bool,
}

impl Default for Scan {
    fn default() -> Scan {
        Scan {
            lines: Vec::new(),
            open: Vec::new(),
            header_is_plain: true,
            is_tainted: false,
            owner_is_plain: false,
            key_is_plain: false,
            key_is_table: false,
            last: None,
            line: Line::default(),
        }
    }
}

impl Scan {
    fn token(&mut self, kind: TokenKind, raw: &str, known: &BTreeSet<&str>) {
        match kind {
            TokenKind::Whitespace | TokenKind::Comment | TokenKind::Eof => return,
            TokenKind::Newline => return self.end_line(),
            TokenKind::Atom => {
                let is_plain = known.contains(raw) && !SECRET_KEYS.contains(&raw);
                self.key_is_plain = is_plain && (self.last != Some(TokenKind::Dot) || self.key_is_plain);
                self.key_is_table = SECRET_TABLES.contains(&raw);
                self.is_tainted |= SECRET_KEYS.contains(&raw);
                self.line.is_strange |= !is_plain;
            }
            TokenKind::Equals => {
                let is_plain = self.key_is_plain && !self.key_is_table;
                self.owner_is_plain = self.last == Some(TokenKind::Atom) && is_plain;
                self.is_tainted |= !self.owner_is_plain;
                self.line.has_key = true;
            }
            TokenKind::LeftSquareBracket | TokenKind::LeftCurlyBracket => self.open.push(kind),
            TokenKind::RightSquareBracket => self.close(TokenKind::LeftSquareBracket),
            TokenKind::RightCurlyBracket => self.close(TokenKind::LeftCurlyBracket),
            TokenKind::Dot | TokenKind::Comma => {}
            TokenKind::BasicString | TokenKind::LiteralString => self.line.is_strange = true,
            TokenKind::MlBasicString | TokenKind::MlLiteralString => {
                self.line.is_strange = true;
                for _ in raw.matches('\n') {
                    self.lines.push(false);
                    self.line.is_string = true;
                }
            }
        }
        self.line.first.get_or_insert(kind);
        self.last = Some(kind);
    }

    fn close(&mut self, opening: TokenKind) {
        if self.open.last() == Some(&opening) {
            self.open.pop();
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let is_header = line.first == Some(TokenKind::LeftSquareBracket);
        if is_header {
            self.header_is_plain = !line.is_strange && !line.has_key;
        }
        let is_plain = match line.first {
            None => true,
            Some(_) if is_header => self.header_is_plain,
            Some(_) if line.is_inside => self.owner_is_plain && self.header_is_plain,
            Some(_) => line.has_key && self.header_is_plain,
        };
        self.lines.push(is_plain && !self.is_tainted && !line.is_string);
        if self.open.is_empty() {
            self.is_tainted = false;
        }
        self.line.is_inside = !self.open.is_empty();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, shown: &[usize]) {
        let known = BTreeSet::from(["agent", "interfaces", "auth", "api_keys", "name", "key", "smtp", "password"]);
        let lines = lines(text, &known);
        let found: Vec<usize> = (1..=lines.len()).filter(|&number| lines[number - 1]).collect();
        assert_eq!(found, shown, "{text}");
    }

    #[test]
    fn lines_of_known_keys_are_shown() {
        check("[agent]\ninterfaces = ['a']\n\n[[auth.api_keys]] # x\nname = 5", &[1, 2, 3, 4, 5]);
        check("interfaces = [\n'a',\n5,\n]\nname = 'x'", &[1, 2, 3, 4, 5]);
        check("name = [1, 2\ninterfaces = 3", &[1, 2]);
        check("smtp.name = 'x'", &[1]);
    }

    #[test]
    fn lines_that_may_hold_a_secret_are_not() {
        check("name = 1\nkey = 's'", &[1]);
        check("naem = 's'", &[]);
        check("'key' = 's'", &[]);
        check("smtp.password = 's'", &[]);
        check("smpt.name = 's'", &[]);
        check("key 's'\nname = 1", &[2]);
        check("key =\n's'\nname = 1", &[3]);
        check("password = [\n's',\n]\nname = 1", &[4]);
        check("interfaces = [\n{ name = 1 },\n{ name = 1, key = 's' },\n]", &[1, 2]);
        check("password = '''\ns\n''' # x\nname = 1", &[4]);
        check("name = \"\"\"\ns\n\"\"\"\nname = 1", &[4]);
        check("password = \"\"\"\ns\nname = 1", &[]);
        check("webhook_headers = {\nname = 's'\n}\nname = 1", &[4]);
        check("[smtp.webhook_headers]\nname = 's'\n[smtp]\nname = 1", &[3, 4]);
        check("[smtp.wehbook_headers]\nname = 's'\n[smtp]\nname = 1", &[3, 4]);
        check("api_keys = [\n's'\n]", &[]);
    }

    #[test]
    fn names_of_secrets_count_wherever_they_stand() {
        assert!(names_secret("{ name = \"x, key = \"s\" }") && names_secret("# password: s"));
        assert!(!names_secret("monkey = 1") && !names_secret("api_keys = 1") && !names_secret("key_file = '/x'"));
    }
}
