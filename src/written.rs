//! What the user wrote, before anything is believed about it: a tree of values that remember where they stand, and a
//! reader that takes typed values out of it.
//!
//! TOML files, JSON bodies, environment variables and flags become the same tree, so a section is read by one function
//! whatever the text was. The reader never stops at an error: it notes path, line and reason and goes on, so that one
//! look at the message repairs the whole file. A key that nobody asked for is an error too; that is how a typing
//! mistake is found, and how a key that does nothing cannot exist.
//!
//! Limits: 16 MiB of text, 32 levels, about a million tokens, 100 errors listed. All are checked before memory is spent.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::{self, DeserializeSeed, Visitor};
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use toml_parser::lexer::TokenKind;

/// Longest text that is looked at, in bytes.
pub const TEXT_MAX: usize = 16 << 20;
/// Deepest nesting of tables and arrays.
pub const DEPTH_MAX: usize = 32;
/// Largest number of bytes that can be written as a size.
const BYTES_MAX: u64 = 1 << 40;
/// Errors that are listed; further ones are only counted.
pub const ERRORS_MAX: usize = 100;
/// TOML tokens, or JSON values: a full rule set of both families needs less, and a hostile text costs at most 100 MB.
const TOKENS_MAX: usize = 1 << 20;
/// A text above this length is not parsed a second time to find its other syntax errors.
const RECOVER_MAX: usize = 256 << 10;

/// Keys that hold a secret, or a table of them. What is written there is in no message.
pub const SECRET_KEYS: &[&str] =
    &["key", "key_hash", "password", "webhook_url", "webhook_secret", "webhook_headers", "webhook_template"];
/// Keys of tables with such keys: who writes them as something else may have written the secrets themselves.
pub const SECRET_TABLES: &[&str] = &["api_keys"];

/// One thing wrong with what the user wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenError {
    /// File name as the user gave it, or the variable or flag; empty for a request body.
    pub origin: String,
    /// Key, such as `firewall.rules[2].dst_port`; empty when the text as a whole is meant.
    pub path: String,
    /// Line in the file, from 1.
    pub line: Option<u32>,
    /// Character in the line, from 1.
    pub column: Option<u32>,
    /// What is wrong and what was expected.
    pub message: String,
}

impl WrittenError {
    /// An error about a text as a whole.
    pub fn whole(origin: &str, message: impl Into<String>) -> WrittenError {
        WrittenError {
            origin: origin.to_owned(),
            path: String::new(),
            line: None,
            column: None,
            message: message.into(),
        }
    }
}

impl fmt::Display for WrittenError {
    /// `config.toml:12:3: firewall.rules[2].dst_prot: unknown key; did you mean dst_port?`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)?;
        for number in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{number}")?;
        }
        for part in [&self.path, &self.message] {
            let first = self.origin.is_empty() && (std::ptr::eq(part, &self.path) || self.path.is_empty());
            match (part.is_empty(), first) {
                (true, _) => {}
                (false, true) => f.write_str(part)?,
                (false, false) => write!(f, ": {part}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for WrittenError {}

/// Where a value stands.
#[derive(Clone, Debug, PartialEq)]
enum Place {
    /// Not told: JSON, and tables that nobody wrote.
    Nowhere,
    /// Byte offset in the text.
    Offset(u32),
    /// Not in the text: the variable or flag that set it.
    Named(Arc<str>),
}

/// One value of the tree.
#[derive(Clone, Debug, PartialEq)]
struct Node {
    place: Place,
    value: Value,
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    /// JSON's null, read as if the key were absent.
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    String(String),
    /// TOML's dates and times; no key takes one.
    DateTime(String),
    /// Text without a type of its own, from the environment or the command line.
    Word(String),
    Array(Vec<Node>),
    Table(Table),
}

/// Keys in the order in which they were written.
#[derive(Clone, Debug, Default, PartialEq)]
struct Table(Vec<Entry>);

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    key: String,
    place: Place,
    node: Node,
}

impl Table {
    fn get(&self, key: &str) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.key == key)
    }
}

/// What sort of value a key takes, as the code that reads it asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One string, number or boolean.
    Scalar,
    /// An array.
    List,
    /// A table, or an array of tables.
    Table,
}

/// A key that some reader knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Such as `agent.http_port`; tables in an array are written `firewall.rules[]`.
    pub path: String,
    /// What it takes.
    pub kind: Kind,
}

/// A text, parsed.
#[derive(Clone, Debug)]
pub struct Document {
    origin: String,
    text: String,
    json: bool,
    root: Node,
    /// Errors that leave the tree whole: keys written twice.
    errors: Vec<WrittenError>,
}

/// What came of reading a document.
#[derive(Debug)]
pub struct Outcome<T> {
    /// What was read; of no use if there are errors.
    pub value: T,
    /// In the order of the text.
    pub errors: Vec<WrittenError>,
    /// What works, but probably not as meant.
    pub warnings: Vec<WrittenError>,
}

impl<T> Outcome<T> {
    /// The value if nothing was wrong.
    pub fn into_result(self) -> Result<T, Vec<WrittenError>> {
        if self.errors.is_empty() { Ok(self.value) } else { Err(self.errors) }
    }
}

impl Document {
    /// Parse TOML. Syntax errors carry line and column.
    pub fn toml(origin: &str, bytes: &[u8]) -> Result<Document, Vec<WrittenError>> {
        let whole = |message: String| vec![WrittenError::whole(origin, message)];
        if bytes.len() > TEXT_MAX {
            return Err(whole(too_long(bytes.len())));
        }
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(e) => {
                let text = String::from_utf8_lossy(&bytes[..e.valid_up_to()]);
                return Err(vec![at_offset(origin, &text, e.valid_up_to(), "", "not valid UTF-8")]);
            }
        };
        let mut document =
            Document { origin: origin.to_owned(), text, json: false, root: empty_table(), errors: Vec::new() };
        let at = |offset: usize, message: &str| vec![at_offset(origin, &document.text, offset, "", message)];
        check_tokens(&document.text).map_err(|(offset, message)| at(offset, &message))?;

        let (tree, errors) = match DeTable::parse(&document.text) {
            Ok(tree) => (tree, Vec::new()),
            Err(first) if document.text.len() > RECOVER_MAX => return Err(vec![syntax_error(&document, &first)]),
            Err(_) => DeTable::parse_recoverable(&document.text),
        };
        let (mut duplicates, mut syntax): (Vec<_>, Vec<_>) = errors.into_iter().partition(is_duplicate);
        if !syntax.is_empty() {
            return Err(without_echoes(&document, &mut syntax));
        }
        let mut root = convert_table(tree.into_inner(), 1).map_err(|(offset, message)| at(offset, &message))?;
        // Finding the first of a pair costs a walk through the text, so no more pairs than are listed.
        duplicates.truncate(ERRORS_MAX);
        let duplicates = duplicates.iter().map(|e| duplicate_error(&document, &root, e)).collect();
        root.place = Place::Nowhere;
        document.root = root;
        document.errors = duplicates;
        Ok(document)
    }

    /// Parse a JSON body: an object, or an array for many.
    pub fn json(bytes: &[u8]) -> Result<Document, Vec<WrittenError>> {
        let fail = |message: String, e: Option<serde_json::Error>| {
            let mut error = WrittenError::whole("", message);
            if let Some(e) = e.filter(|e| e.line() > 0) {
                error.origin = "JSON".to_owned();
                error.line = u32::try_from(e.line()).ok();
                error.column = u32::try_from(e.column()).ok();
            }
            vec![error]
        };
        if bytes.len() > TEXT_MAX {
            return Err(fail(too_long(bytes.len()), None));
        }
        if bytes.trim_ascii().is_empty() {
            return Err(fail("the body is empty; JSON was expected".to_owned(), None));
        }
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        let left = Cell::new(TOKENS_MAX);
        let root = JsonNode { depth: 1, left: &left }.deserialize(&mut reader).and_then(|root| {
            reader.end()?;
            Ok(root)
        });
        match root {
            Ok(root) => Ok(Document { origin: String::new(), text: String::new(), json: true, root, errors: vec![] }),
            Err(e) => {
                let text = e.to_string();
                let message = text.split(" at line ").next().unwrap_or_default().to_owned();
                Err(fail(format!("not valid JSON: {message}"), Some(e)))
            }
        }
    }

    /// Put `text` at `path`, in front of what the file says; errors about it will name `origin`.
    pub fn set(&mut self, key: &Key, origin: &str, text: &str) {
        let place = Place::Named(Arc::from(origin));
        let word = |text: &str| Node { place: place.clone(), value: Value::Word(text.to_owned()) };
        let node = match key.kind {
            Kind::List => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(word).collect();
                Node { place: place.clone(), value: Value::Array(items) }
            }
            Kind::Scalar | Kind::Table => word(text),
        };
        let mut segments = key.path.split('.').peekable();
        let mut at = &mut self.root;
        while let Some(segment) = segments.next() {
            // Something else stands where a table belongs: the reader will say so.
            let Value::Table(table) = &mut at.value else { return };
            let index = match table.0.iter().position(|entry| entry.key == segment) {
                Some(index) => index,
                None => {
                    let (place, node) = (place.clone(), empty_table());
                    table.0.push(Entry { key: segment.to_owned(), place, node });
                    table.0.len() - 1
                }
            };
            if segments.peek().is_none() {
                table.0[index] = Entry { key: segment.to_owned(), place, node };
                return;
            }
            at = &mut table.0[index].node;
        }
    }

    /// Let `read` take from the tree what it knows, and gather what is wrong.
    pub fn read<T>(&self, read: impl FnOnce(Field<'_>) -> T) -> Outcome<T> {
        let pool = Pool { document: self, errors: Notes::default(), warnings: Notes::default(), learned: None };
        for error in &self.errors {
            pool.errors.add(|| error.clone());
        }
        let value = read(pool.root());
        Outcome { value, errors: pool.errors.finish(&self.origin), warnings: pool.warnings.finish(&self.origin) }
    }

    /// Every string that is an absolute path, with its key; tables in an array are written `alerting.routes[]`.
    pub fn absolute_paths(&self) -> Vec<(String, PathBuf)> {
        let mut found = Vec::new();
        gather_paths(&self.root, String::new(), &mut found);
        found
    }

    /// Every key that `read` asks for, found by letting it read nothing.
    pub fn known_keys<T>(read: impl FnOnce(Field<'_>) -> T) -> Vec<Key> {
        let nothing = Document {
            origin: String::new(),
            text: String::new(),
            json: false,
            root: empty_table(),
            errors: Vec::new(),
        };
        let pool = Pool {
            document: &nothing,
            errors: Notes::default(),
            warnings: Notes::default(),
            learned: Some(RefCell::default()),
        };
        read(pool.root());
        pool.learned.map(RefCell::into_inner).unwrap_or_default()
    }
}

/// Depth is bounded by what the parsers take.
fn gather_paths(node: &Node, key: String, found: &mut Vec<(String, PathBuf)>) {
    match &node.value {
        Value::String(text) | Value::Word(text) if text.starts_with('/') => found.push((key, PathBuf::from(text))),
        Value::Array(items) => items.iter().for_each(|item| gather_paths(item, format!("{key}[]"), found)),
        Value::Table(table) => table.0.iter().for_each(|entry| {
            let dot = if key.is_empty() { "" } else { "." };
            gather_paths(&entry.node, format!("{key}{dot}{}", entry.key), found);
        }),
        _ => {}
    }
}

fn too_long(bytes: usize) -> String {
    format!("{bytes} bytes are more than the {} MiB that are read", TEXT_MAX >> 20)
}

fn empty_table() -> Node {
    Node { place: Place::Nowhere, value: Value::Table(Table::default()) }
}

/// Bounds what the parser will spend: tokens cost it memory, and dotted keys recurse where its own guard does not look.
fn check_tokens(text: &str) -> Result<(), (usize, String)> {
    let mut dots = 0;
    for (count, token) in toml_parser::Source::new(text).lex().enumerate() {
        match token.kind() {
            TokenKind::Dot => dots += 1,
            TokenKind::Atom | TokenKind::Whitespace | TokenKind::BasicString | TokenKind::LiteralString => {}
            _ => dots = 0,
        }
        if dots >= DEPTH_MAX {
            return Err((token.span().start(), too_deep()));
        }
        if count >= TOKENS_MAX {
            return Err((
                token.span().start(),
                format!("more than {TOKENS_MAX} tokens up to here; that is not a config"),
            ));
        }
    }
    Ok(())
}

fn too_deep() -> String {
    format!("nested deeper than {DEPTH_MAX} levels")
}

/// Offsets fit, as texts are at most [`TEXT_MAX`] long.
fn place(span: std::ops::Range<usize>) -> Place {
    Place::Offset(span.start as u32)
}

type ConvertError = (usize, String);

fn convert_table(table: DeTable<'_>, depth: usize) -> Result<Node, ConvertError> {
    let mut entries = Vec::with_capacity(table.len());
    for (key, value) in table {
        let place = place(key.span());
        entries.push(Entry { key: key.into_inner().into_owned(), place, node: convert(value, depth + 1)? });
    }
    entries.sort_by_key(|entry| match entry.place {
        Place::Offset(offset) => offset,
        Place::Nowhere | Place::Named(_) => 0,
    });
    Ok(Node { place: Place::Nowhere, value: Value::Table(Table(entries)) })
}

fn convert(value: Spanned<DeValue<'_>>, depth: usize) -> Result<Node, ConvertError> {
    let span = value.span();
    let start = span.start;
    if depth > DEPTH_MAX + 1 {
        return Err((start, too_deep()));
    }
    let value = match value.into_inner() {
        DeValue::String(text) => Value::String(text.into_owned()),
        DeValue::Integer(digits) => match i128::from_str_radix(digits.as_str(), digits.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => return Err((start, "the number is out of every range".to_owned())),
        },
        DeValue::Float(digits) => match digits.as_str().parse() {
            Ok(number) => Value::Float(number),
            Err(_) => return Err((start, "not a number".to_owned())),
        },
        DeValue::Boolean(truth) => Value::Bool(truth),
        DeValue::Datetime(time) => Value::DateTime(time.to_string()),
        DeValue::Array(items) => {
            Value::Array(items.into_iter().map(|item| convert(item, depth + 1)).collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => convert_table(table, depth)?.value,
    };
    Ok(Node { place: place(span), value })
}

fn is_duplicate(error: &toml::de::Error) -> bool {
    error.message().starts_with("duplicate key")
}

fn syntax_error(document: &Document, error: &toml::de::Error) -> WrittenError {
    let text = &document.text;
    let offset = error.span().map_or(text.len(), |span| span.start);
    let bare =
        ["invalid boolean", "string values must be quoted"].iter().any(|start| error.message().starts_with(start));
    let message = if bare { bare_word(text, offset) } else { None };
    at_offset(&document.origin, text, offset, "", message.as_deref().unwrap_or(error.message()))
}

/// What to say of a value without quotes, which is the mistake of everybody who comes from YAML. The value is not
/// repeated: nobody knows yet what the key is that it belongs to, and it may be a secret.
fn bare_word(text: &str, offset: usize) -> Option<String> {
    let line = text.get(offset..)?.lines().next().unwrap_or_default();
    let word = line.split([',', ']', '}', '#']).next()?.trim();
    Some(match word.to_lowercase().as_str() {
        "" => "the value is missing".to_owned(),
        "true" | "yes" | "on" => format!("{} is not a value; write true, or put a string in quotes", shortened(word)),
        "false" | "no" | "off" => format!("{} is not a value; write false, or put a string in quotes", shortened(word)),
        _ => "a string needs quotes, such as \"word\"".to_owned(),
    })
}

/// One mistake makes the parser stumble several times: keep the first of each line, and nothing after a bracket or a
/// quote that was never closed, since from there on it reads prose as code.
fn without_echoes(document: &Document, errors: &mut [toml::de::Error]) -> Vec<WrittenError> {
    let opens = |error: &toml::de::Error| {
        let message = error.message();
        message.starts_with("unclosed") || message.starts_with("invalid") && message.contains("string")
    };
    let start = |error: &toml::de::Error| error.span().map_or(document.text.len(), |span| span.start);
    errors.sort_by_key(start);
    let mut kept = Vec::new();
    let mut last = None;
    for error in errors.iter() {
        let offset = start(error);
        let same_line = last.is_some_and(|last| !document.text.as_bytes()[last..offset].contains(&b'\n'));
        if same_line {
            continue;
        }
        kept.push(syntax_error(document, error));
        last = Some(offset);
        if opens(error) || kept.len() == ERRORS_MAX {
            break;
        }
    }
    kept
}

/// Where a key that is written twice stands first: the parser keeps that one in the tree.
fn duplicate_error(document: &Document, root: &Node, error: &toml::de::Error) -> WrittenError {
    let span = error.span().unwrap_or_default();
    let written = document.text.get(span.clone()).unwrap_or_default();
    let name = written.trim_matches(['"', '\'']);
    // The parser forgets where a table stood first.
    let (number, _) = position(&document.text, span.start);
    let header = |line: &str| line.split('#').next().unwrap_or_default().split_whitespace().collect::<String>();
    let mut headers = document.text.lines().map(header);
    if let Some(twice) = headers.clone().nth(number as usize - 1).filter(|line| line.starts_with('[')) {
        let message = match headers.position(|line| line == twice).filter(|&first| first + 1 < number as usize) {
            Some(first) => format!("written twice; it stands first on line {}", first + 1),
            None => "written twice".to_owned(),
        };
        let path = twice.trim_matches(['[', ']']);
        return at_offset(&document.origin, &document.text, span.start, path, &message);
    }
    let mut first = None;
    find_key(root, name, span.start as u32, &document.text, &mut String::new(), &mut first);
    let (path, message) = match first {
        Some((offset, path)) => {
            let (line, _) = position(&document.text, offset as usize);
            (path, format!("written twice; it stands first on line {line}"))
        }
        None => (name.to_owned(), "written twice".to_owned()),
    };
    at_offset(&document.origin, &document.text, span.start, &path, &message)
}

/// The last place before `limit` where `name` is a key, not looking into inline tables that end before.
fn find_key(node: &Node, name: &str, limit: u32, text: &str, path: &mut String, best: &mut Option<(u32, String)>) {
    let length = path.len();
    match &node.value {
        Value::Table(table) => {
            for Entry { key, place, node } in &table.0 {
                path.push_str(if length == 0 { "" } else { "." });
                path.push_str(key);
                if let Place::Offset(offset) = *place
                    && key == name
                    && offset < limit
                    && best.as_ref().is_none_or(|(known, _)| *known < offset)
                {
                    *best = Some((offset, path.clone()));
                }
                let inline = matches!(node.place, Place::Offset(at) if text.as_bytes().get(at as usize) == Some(&b'{'));
                if !inline {
                    find_key(node, name, limit, text, path, best);
                }
                path.truncate(length);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                path.push_str(&format!("[{index}]"));
                find_key(item, name, limit, text, path, best);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

/// Line and column, both from 1; columns count characters.
fn position(text: &str, offset: usize) -> (u32, u32) {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
    let start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
    let start = if start == 0 && before.starts_with("\u{feff}".as_bytes()) { 3 } else { start };
    let column = 1 + before[start..].iter().filter(|&&byte| byte & 0xc0 != 0x80).count();
    (line as u32, column as u32)
}

fn at_offset(origin: &str, text: &str, offset: usize, path: &str, message: &str) -> WrittenError {
    let (line, column) = position(text, offset);
    WrittenError {
        origin: origin.to_owned(),
        path: path.to_owned(),
        line: Some(line),
        column: Some(column),
        message: message.to_owned(),
    }
}

/// Reads one JSON value, counting values and levels.
#[derive(Clone, Copy)]
struct JsonNode<'c> {
    depth: usize,
    left: &'c Cell<usize>,
}

impl JsonNode<'_> {
    fn inner(self) -> Self {
        JsonNode { depth: self.depth + 1, ..self }
    }
}

fn plain<E>(value: Value) -> Result<Node, E> {
    Ok(Node { place: Place::Nowhere, value })
}

impl<'de> DeserializeSeed<'de> for JsonNode<'_> {
    type Value = Node;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        let Some(left) = self.left.get().checked_sub(1) else {
            return Err(de::Error::custom(format!("more than {TOKENS_MAX} values")));
        };
        self.left.set(left);
        if self.depth > DEPTH_MAX + 1 {
            return Err(de::Error::custom(too_deep()));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for JsonNode<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        plain(Value::Null)
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Node, E> {
        plain(Value::Bool(truth))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Node, E> {
        plain(Value::Integer(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Node, E> {
        plain(Value::Integer(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Node, E> {
        plain(Value::Float(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        plain(Value::String(text.to_owned()))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self.inner())? {
            items.push(item);
        }
        plain(Value::Array(items))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries: Vec<Entry> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let node = map.next_value_seed(self.inner())?;
            entries.push(Entry { key, place: Place::Nowhere, node });
        }
        let mut keys = entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>();
        keys.sort_unstable();
        if let Some(twice) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(de::Error::custom(format!("the key \"{}\" is written twice", shortened(twice[0]))));
        }
        plain(Value::Table(Table(entries)))
    }
}

/// Errors or warnings so far.
#[derive(Default)]
struct Notes {
    list: RefCell<Vec<WrittenError>>,
    unlisted: Cell<usize>,
}

impl Notes {
    /// Past the limit the note is not even written: a hostile file has a million of them.
    fn add(&self, note: impl FnOnce() -> WrittenError) {
        let mut list = self.list.borrow_mut();
        if list.len() < ERRORS_MAX {
            list.push(note());
        } else {
            self.unlisted.set(self.unlisted.get() + 1);
        }
    }

    fn finish(self, origin: &str) -> Vec<WrittenError> {
        let mut list = self.list.into_inner();
        list.sort_by_key(|note| (note.line.is_none(), note.line, note.column));
        if self.unlisted.get() > 0 {
            list.push(WrittenError::whole(origin, format!("and {} more like these", self.unlisted.get())));
        }
        list
    }
}

/// What all readers of one document share.
struct Pool<'d> {
    document: &'d Document,
    errors: Notes,
    warnings: Notes,
    /// Set while keys are being learned; see [`Document::known_keys`].
    learned: Option<RefCell<Vec<Key>>>,
}

static EMPTY: Table = Table(Vec::new());

impl Pool<'_> {
    fn root(&self) -> Field<'_> {
        let node = &self.document.root;
        Field { pool: self, parent: Rc::from(""), segment: Segment::Root, node: Some(node), around: &node.place }
    }

    /// `what` gives path and message, and is only asked while there is room in the list.
    fn note(&self, notes: &Notes, place: &Place, what: impl FnOnce() -> (String, String)) {
        let document = self.document;
        notes.add(|| {
            let (path, message) = what();
            match place {
                Place::Offset(offset) => at_offset(&document.origin, &document.text, *offset as usize, &path, &message),
                Place::Nowhere => WrittenError { path, ..WrittenError::whole(&document.origin, message) },
                Place::Named(name) => WrittenError { path, ..WrittenError::whole(name, message) },
            }
        });
    }

    fn line(&self, place: &Place) -> Option<u32> {
        match place {
            Place::Offset(offset) => Some(position(&self.document.text, *offset as usize).0),
            Place::Nowhere | Place::Named(_) => None,
        }
    }

    fn table_word(&self) -> &'static str {
        if self.document.json { "an object" } else { "a table" }
    }

    /// [`Pool::describe`] without the value itself.
    fn kind_of(&self, value: &Value) -> &'static str {
        match value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Integer(_) => "an integer",
            Value::Float(_) => "a float",
            Value::String(_) | Value::Word(_) => "a string",
            Value::DateTime(_) => "a date or time",
            Value::Array(_) => "an array",
            Value::Table(_) => self.table_word(),
        }
    }

    fn describe(&self, value: &Value) -> String {
        match value {
            Value::Null => "null".to_owned(),
            Value::Bool(truth) => format!("the boolean {truth}"),
            Value::Integer(number) => format!("the integer {number}"),
            Value::Float(number) => format!("the float {number:?}"),
            Value::String(text) | Value::Word(text) => format!("the string \"{}\"", shortened(text)),
            Value::DateTime(text) => format!("the date or time {text}"),
            Value::Array(_) => "an array".to_owned(),
            Value::Table(_) => self.table_word().to_owned(),
        }
    }
}

/// Text for a message: one line, at most 60 characters.
fn shortened(text: &str) -> Cow<'_, str> {
    if text.chars().any(char::is_control) || text.chars().nth(60).is_some() {
        let mut cut = text.chars().take(60).flat_map(char::escape_debug).collect::<String>();
        if text.chars().nth(60).is_some() {
            cut.push('…');
        }
        return Cow::Owned(cut);
    }
    Cow::Borrowed(text)
}

#[derive(Clone, Copy, Debug)]
enum Segment<'r> {
    Root,
    Key(&'r str),
    Index(usize),
    /// Stands for all elements while keys are learned.
    Each,
}

/// A key or an array element, present or not. Getters return `None` when it is absent, and also when it is wrong; the
/// error is then noted already, so `unwrap_or(default)` is right in both cases.
#[derive(Clone)]
pub struct Field<'r> {
    pool: &'r Pool<'r>,
    parent: Rc<str>,
    segment: Segment<'r>,
    /// `None` when absent or null.
    node: Option<&'r Node>,
    /// Where the table around it stands.
    around: &'r Place,
}

impl<'r> Field<'r> {
    /// Its key in full, as errors show it.
    pub fn path(&self) -> String {
        match self.segment {
            Segment::Root => String::new(),
            Segment::Key(key) if self.parent.is_empty() => key.to_owned(),
            Segment::Key(key) => format!("{}.{key}", self.parent),
            Segment::Index(index) => format!("{}[{index}]", self.parent),
            Segment::Each => format!("{}[]", self.parent),
        }
    }

    /// The line on which it stands, if it stands in a file.
    pub fn line(&self) -> Option<u32> {
        self.pool.line(self.place())
    }

    /// Whether the user wrote it.
    pub fn is_present(&self) -> bool {
        self.node.is_some()
    }

    /// Whether the user wrote an array here.
    pub fn is_list(&self) -> bool {
        matches!(self.node, Some(Node { value: Value::Array(_), .. }))
    }

    /// The string that the user wrote here, if it is one.
    pub fn as_text(&self) -> Option<&'r str> {
        match &self.node?.value {
            Value::String(text) | Value::Word(text) => Some(text),
            _ => None,
        }
    }

    fn place(&self) -> &'r Place {
        self.node.map_or(self.around, |node| &node.place)
    }

    /// Note an error about it.
    pub fn error(&self, message: impl AsRef<str>) {
        self.pool.note(&self.pool.errors, self.place(), || (self.path(), message.as_ref().to_owned()));
    }

    /// Note something that works, but perhaps not as meant.
    pub fn warn(&self, message: impl AsRef<str>) {
        self.pool.note(&self.pool.warnings, self.place(), || (self.path(), message.as_ref().to_owned()));
    }

    /// Note an error if it is absent.
    pub fn required(self) -> Self {
        if self.node.is_none() {
            self.error("missing; this key is required");
        }
        self
    }

    fn learn(&self, kind: Kind) {
        if let Some(learned) = &self.pool.learned {
            let key = Key { path: self.path(), kind };
            let mut learned = learned.borrow_mut();
            // The root and the elements of an array have no key of their own.
            let own = matches!(self.segment, Segment::Key(_));
            if own && !learned.iter().any(|known| known.path == key.path) {
                learned.push(key);
            }
        }
    }

    fn mismatch(&self, expected: impl fmt::Display, value: &Value, hint: &str) {
        let found = if self.may_be_secret() { self.pool.kind_of(value).to_owned() } else { self.pool.describe(value) };
        self.error(format!("expected {expected}, found {found}{hint}"));
    }

    /// Whether what was written here may be a secret, whatever it is.
    fn may_be_secret(&self) -> bool {
        let path = self.path();
        let names = || path.split('.').map(|name| name.split('[').next().unwrap_or_default());
        names().any(|name| SECRET_KEYS.contains(&name))
            || names().next_back().is_some_and(|name| SECRET_TABLES.contains(&name))
    }

    /// A string.
    pub fn text(&self) -> Option<&'r str> {
        self.learn(Kind::Scalar);
        match &self.node?.value {
            Value::String(text) | Value::Word(text) => Some(text),
            value @ (Value::Integer(_) | Value::Float(_) | Value::Bool(_) | Value::DateTime(_)) => {
                self.mismatch("a string", value, "; put it in quotes");
                None
            }
            value => {
                self.mismatch("a string", value, "");
                None
            }
        }
    }

    /// `true` or `false`.
    pub fn boolean(&self) -> Option<bool> {
        self.learn(Kind::Scalar);
        match &self.node?.value {
            Value::Bool(truth) => Some(*truth),
            Value::Word(text) if text == "true" => Some(true),
            Value::Word(text) if text == "false" => Some(false),
            value => {
                let quoted = matches!(value, Value::String(text) if text == "true" || text == "false");
                self.mismatch("true or false", value, if quoted { "; remove the quotes" } else { "" });
                None
            }
        }
    }

    /// A whole number in `range`.
    pub fn integer<T>(&self, range: RangeInclusive<T>) -> Option<T>
    where
        T: Copy + PartialOrd + fmt::Display + TryFrom<i128>,
    {
        self.learn(Kind::Scalar);
        let value = &self.node?.value;
        let number = match value {
            Value::Integer(number) => Some(*number),
            Value::Word(text) => text.parse().ok(),
            _ => None,
        };
        let fits = number.and_then(|number| T::try_from(number).ok()).filter(|number| range.contains(number));
        if fits.is_none() {
            let quoted = matches!(value, Value::String(text) if text.parse::<i128>().is_ok());
            let expected = format!("an integer from {} to {}", range.start(), range.end());
            let hint = if quoted { "; remove the quotes" } else { "" };
            self.mismatch(expected, value, hint);
        }
        fits
    }

    /// A number in `range`, with or without a fraction.
    pub fn number(&self, range: RangeInclusive<f64>) -> Option<f64> {
        self.learn(Kind::Scalar);
        let value = &self.node?.value;
        let number = match value {
            Value::Integer(number) => Some(*number as f64),
            Value::Float(number) => Some(*number),
            Value::Word(text) => text.parse().ok(),
            _ => None,
        };
        // NaN is in no range.
        let fits = number.filter(|number| range.contains(number));
        if fits.is_none() {
            self.mismatch(format!("a number from {} to {}", range.start(), range.end()), value, "");
        }
        fits
    }

    /// One of a few words, each with its meaning. The first word for a meaning is the one that messages name.
    pub fn one_of<T: Copy + PartialEq>(&self, words: &[(&'static str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
        if found.is_none() {
            let mut meanings: Vec<&(&str, T)> = Vec::new();
            for word in words {
                if !meanings.iter().any(|known| known.1 == word.1) {
                    meanings.push(word);
                }
            }
            let names = meanings.iter().map(|(word, _)| *word).collect::<Vec<_>>();
            let near = did_you_mean(text, words.iter().map(|(word, _)| *word));
            self.error(format!("\"{}\" is not known here; use {}{near}", shortened(text), any_of(&names)));
        }
        found
    }

    /// A string that stands for a `T`.
    pub fn parse<T: FromStr<Err: fmt::Display>>(&self) -> Option<T> {
        self.parse_text(self.text()?)
    }

    /// A string or a whole number that stands for a `T`.
    pub fn parse_or_integer<T: FromStr<Err: fmt::Display>>(&self) -> Option<T> {
        self.learn(Kind::Scalar);
        match &self.node?.value {
            Value::Integer(number) => self.parse_text(&number.to_string()),
            Value::String(text) | Value::Word(text) => self.parse_text(text),
            value => {
                self.mismatch("a number or a string", value, "");
                None
            }
        }
    }

    fn parse_text<T: FromStr<Err: fmt::Display>>(&self, text: &str) -> Option<T> {
        text.parse().inspect_err(|e: &T::Err| self.error(e.to_string())).ok()
    }

    /// The elements of an array.
    pub fn items(&self) -> Option<Vec<Field<'r>>> {
        self.learn(Kind::List);
        let node = self.node?;
        let Value::Array(items) = &node.value else {
            let brackets = matches!(node.value, Value::String(_) | Value::Integer(_));
            self.mismatch("an array", &node.value, if brackets { "; put it in [ ]" } else { "" });
            return None;
        };
        let parent: Rc<str> = Rc::from(self.path());
        let field = |(index, item)| Field {
            pool: self.pool,
            parent: parent.clone(),
            segment: Segment::Index(index),
            node: Some(item),
            around: &node.place,
        };
        Some(items.iter().enumerate().map(field).collect())
    }

    /// A table; one that is absent reads as empty, so that defaults stand in one place.
    pub fn table(&self) -> Option<Reader<'r>> {
        self.learn(Kind::Table);
        let table = match self.node.map(|node| &node.value) {
            None => &EMPTY,
            Some(Value::Table(table)) => table,
            Some(value) => {
                self.mismatch(self.pool.table_word(), value, "");
                return None;
            }
        };
        Some(Reader { pool: self.pool, path: Rc::from(self.path()), table, place: self.place(), known: Vec::new() })
    }

    /// The keys of a table whose names are the user's own, each with its value.
    pub fn entries(&self) -> Option<Vec<(&'r str, Field<'r>)>> {
        self.learn(Kind::Table);
        let value = &self.node?.value;
        let Value::Table(table) = value else {
            self.mismatch(self.pool.table_word(), value, "");
            return None;
        };
        let parent: Rc<str> = Rc::from(self.path());
        let field = |entry: &'r Entry| Field {
            pool: self.pool,
            parent: parent.clone(),
            segment: Segment::Key(&entry.key),
            node: Some(&entry.node).filter(|node| node.value != Value::Null),
            around: self.place(),
        };
        Some(table.0.iter().map(|entry| (entry.key.as_str(), field(entry))).collect())
    }

    /// An array of tables; absent reads as empty. Elements that are not tables are noted and left out.
    pub fn tables(&self) -> Vec<Reader<'r>> {
        self.learn(Kind::Table);
        if self.pool.learned.is_some() {
            let each = Field { parent: Rc::from(self.path()), segment: Segment::Each, ..self.clone() };
            return each.table().into_iter().collect();
        }
        if let Some(Node { value: value @ Value::Table(_), .. }) = self.node
            && !self.pool.document.json
        {
            self.mismatch("an array of tables", value, &format!("; write [[{}]] above each", self.path()));
            return Vec::new();
        }
        self.items().unwrap_or_default().iter().filter_map(Field::table).collect()
    }
}

/// Takes keys out of one table, and knows in the end which were not taken.
#[must_use = "call finish(), which finds unknown keys"]
pub struct Reader<'r> {
    pool: &'r Pool<'r>,
    path: Rc<str>,
    table: &'r Table,
    place: &'r Place,
    known: Vec<&'static str>,
}

impl<'r> Reader<'r> {
    /// The key `name`, present or not; from now on it is a known key.
    pub fn key(&mut self, name: &'static str) -> Field<'r> {
        if !self.known.contains(&name) {
            self.known.push(name);
        }
        let node = self.table.get(name).map(|entry| &entry.node);
        Field {
            pool: self.pool,
            parent: self.path.clone(),
            segment: Segment::Key(name),
            node: node.filter(|node| node.value != Value::Null),
            around: self.place,
        }
    }

    /// Note an error about the key `name`, which tables like this one have and this one cannot have, if it is there.
    pub fn refuse(&mut self, name: &'static str, message: impl AsRef<str>) {
        if self.table.get(name).is_some() {
            let field = self.key(name);
            if field.is_present() {
                field.error(message);
            }
        }
    }

    /// The table's own name in full.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The line on which the table begins.
    pub fn line(&self) -> Option<u32> {
        self.pool.line(self.place)
    }

    /// Note an error about the table as a whole.
    pub fn error(&self, message: impl AsRef<str>) {
        self.pool.note(&self.pool.errors, self.place, || (self.path.to_string(), message.as_ref().to_owned()));
    }

    /// Note every key that was not asked for.
    pub fn finish(self) {
        for Entry { key, place, .. } in &self.table.0 {
            if self.known.contains(&key.as_str()) {
                continue;
            }
            let pool = self.pool;
            let path = |key: &str| if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
            pool.note(&pool.errors, place, || (path(&shortened(key)), unknown(key, &self.known)));
        }
    }
}

fn unknown(key: &str, known: &[&'static str]) -> String {
    let near = did_you_mean(key, known.iter().copied());
    if near.is_empty() {
        format!("unknown key; known here are {}", known.join(", "))
    } else {
        format!("unknown key{near}")
    }
}

/// A number of bytes, in whole or with KiB, MiB or GiB; at most 1024GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(s: &str) -> Result<Bytes, String> {
        let units = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
        let (number, shift) = units
            .iter()
            .find_map(|(unit, shift)| s.strip_suffix(unit).map(|number| (number.trim_end(), *shift)))
            .unwrap_or((s, 0));
        let shown = || s.chars().take(60).collect::<String>();
        let strange = || format!("\"{}\" is not a number of bytes; write such as 65536, 64KiB or 1MiB", shown());
        let bytes: u64 = number.parse().map_err(|_| strange())?;
        let bytes = bytes.checked_mul(1 << shift).filter(|&bytes| bytes <= BYTES_MAX);
        bytes.map(Bytes).ok_or_else(|| format!("\"{}\" is more than 1024GiB", shown()))
    }
}

/// `; did you mean dst_port?`, or nothing when no candidate is near.
pub fn did_you_mean<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> String {
    let near = nearest(word, known);
    if near.is_empty() { String::new() } else { format!("; did you mean {}?", any_of(&near)) }
}

fn any_of(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// Candidates that `word` may have been meant to be: the same letters, else the fewest slips of the finger, else those
/// that contain it as a part (`port`: `src_port`, `dst_port`).
fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Vec<&'k str> {
    if word.is_empty() || word.len() > 64 {
        return Vec::new();
    }
    let letters =
        |text: &str| text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect::<String>();
    let known = known.collect::<Vec<_>>();
    if let Some(same) = known.iter().find(|candidate| letters(candidate) == letters(word)) {
        return vec![same];
    }
    let slips_max = (word.chars().count() / 3).clamp(1, 3);
    let slips = |candidate: &&&str| strsim::damerau_levenshtein(&word.to_lowercase(), &candidate.to_lowercase());
    if let Some(near) = known.iter().min_by_key(slips).filter(|near| slips(near) <= slips_max) {
        return vec![near];
    }
    let parts = known.iter().filter(|candidate| candidate.split('_').any(|part| part == word));
    parts.take(3).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors<T>(read: impl FnOnce(Field<'_>) -> T, toml: &str) -> Vec<String> {
        match Document::toml("f.toml", toml.as_bytes()) {
            Ok(document) => document.read(read).errors.iter().map(ToString::to_string).collect(),
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        }
    }

    /// A small format: `name` is required, `port` has a range, `on` is a boolean, `[[sub]]` has `word` and `list`.
    fn small(root: Field<'_>) {
        let Some(mut r) = root.table() else { return };
        r.key("name").required().text();
        r.key("src_port").integer(1..=65535u16);
        r.key("dst_port").integer(1..=65535u16);
        r.key("on").boolean();
        for mut sub in r.key("sub").tables() {
            sub.key("word").one_of(&[("alert", 1), ("monitor", 1), ("block", 2)]);
            for item in sub.key("list").items().unwrap_or_default() {
                item.parse::<std::net::IpAddr>();
            }
            sub.finish();
        }
        r.finish();
    }

    #[track_caller]
    fn check(toml: &str, expected: &[&str]) {
        assert_eq!(errors(small, toml), expected, "{toml}");
    }

    #[test]
    fn errors_say_where_and_what() {
        check("name = 'x'", &[]);
        check("", &["f.toml: name: missing; this key is required"]);
        check(
            "nmae = 'x'",
            &["f.toml:1:1: nmae: unknown key; did you mean name?", "f.toml: name: missing; this key is required"],
        );
        check("name='x'\n  port = 1", &["f.toml:2:3: port: unknown key; did you mean src_port or dst_port?"]);
        check("name='x'\ndst-port = 1", &["f.toml:2:1: dst-port: unknown key; did you mean dst_port?"]);
        check("name='x'\nDstPort = 1", &["f.toml:2:1: DstPort: unknown key; did you mean dst_port?"]);
        check("name='x'\nzzz = 1", &["f.toml:2:1: zzz: unknown key; known here are name, src_port, dst_port, on, sub"]);
        check("name = 5", &["f.toml:1:8: name: expected a string, found the integer 5; put it in quotes"]);
        check(
            "name='x'\ndst_port = '80'\non = 'true'",
            &[
                "f.toml:2:12: dst_port: expected an integer from 1 to 65535, found the string \"80\"; remove the quotes",
                "f.toml:3:6: on: expected true or false, found the string \"true\"; remove the quotes",
            ],
        );
        check(
            "name='x'\ndst_port = 70000\nsrc_port = 0x1_0000_0000_0000_0000",
            &[
                "f.toml:2:12: dst_port: expected an integer from 1 to 65535, found the integer 70000",
                "f.toml:3:12: src_port: expected an integer from 1 to 65535, found the integer 18446744073709551616",
            ],
        );
        check(
            "name='é'\n[[sub]]\nword='alrt'\n[[sub]]\nlist=['1.2.3.4', 'é', '1.2.3']\nwrod=1",
            &[
                "f.toml:3:6: sub[0].word: \"alrt\" is not known here; use alert or block; did you mean alert?",
                "f.toml:5:18: sub[1].list[1]: invalid IP address syntax",
                "f.toml:5:23: sub[1].list[2]: invalid IP address syntax",
                "f.toml:6:1: sub[1].wrod: unknown key; did you mean word?",
            ],
        );
        check(
            "name='x'\n[sub]\nword='alert'",
            &["f.toml:2:1: sub: expected an array of tables, found a table; write [[sub]] above each"],
        );
        check("name='x'\nsub = [1]", &["f.toml:2:8: sub[0]: expected a table, found the integer 1"]);
    }

    #[test]
    fn keys_written_twice_name_the_first() {
        check("name='x'\non=true\nname='y'", &["f.toml:3:1: name: written twice; it stands first on line 1"]);
        check(
            "name='x'\n[[sub]]\nword='alert'\n[[sub]]\nword='alert'\nword='block'\nlisst=1",
            &[
                "f.toml:6:1: sub[1].word: written twice; it stands first on line 5",
                "f.toml:7:1: sub[1].lisst: unknown key; did you mean list?",
            ],
        );
    }

    #[test]
    fn syntax_errors_have_line_and_column() {
        for (toml, line, column, part) in [
            ("name='x'\non = tru", 2, 6, ""),
            ("name='x'\non = ", 2, 6, ""),
            ("name='x'\n[[sub]\nword='alert'", 2, 7, ""),
            ("name = \"x", 1, 10, ""),
            ("a = [1, 2\nb = 3", 2, 1, ""),
        ] {
            let found = errors(small, toml);
            println!("{found:?}");
            assert_eq!(found.len(), 1, "{toml}: {found:?}");
            assert!(found[0].starts_with(&format!("f.toml:{line}:{column}: ")), "{toml}: {found:?}");
            assert!(found[0].contains(part), "{toml}: {found:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_text() {
        let found = Document::toml("f", b"name='x'\n\xff").unwrap_err();
        assert_eq!(found[0].to_string(), "f:2:1: not valid UTF-8");
    }

    #[test]
    fn hostile_texts_are_refused_at_once() {
        let begin = std::time::Instant::now();
        let nested = |open: &str, close: &str, n: usize| format!("a = {}1{}", open.repeat(n), close.repeat(n));
        for text in [
            "x".repeat(TEXT_MAX + 1),
            nested("[", "]", 1000),
            nested("[", "]", 400_000),
            "[".repeat(900_000),
            nested("{a=", "}", 33),
            nested("{a=", "}", 200_000),
            format!("{}=1", vec!["a"; 33].join(".")),
            format!("{}=1", vec!["a"; 400_000].join(".")),
            format!("[{}]", vec!["a"; 400_000].join(".")),
            "a\n".repeat(1 << 20),
            "[[r]]\n".repeat(1 << 20),
            "x\n".repeat(RECOVER_MAX / 2),
            "x=1\n".repeat(RECOVER_MAX / 4),
            "[x]\n".repeat(RECOVER_MAX / 4),
            (0..170_000).map(|n| format!("k{n}=1\n")).collect(),
        ] {
            let found = errors(small, &text);
            assert!(!found.is_empty() && found.len() <= ERRORS_MAX + 1, "{} {found:?}", &text[..20]);
        }
        assert!(Document::json(format!("{}1{}", "[".repeat(33), "]".repeat(33)).as_bytes()).is_err());
        assert!(Document::json("[".repeat(1 << 20).as_bytes()).is_err());
        assert!(Document::json(format!("[{}1]", "1,".repeat(1 << 20)).as_bytes()).is_err());
        // Generous: a debug build on a busy machine. The release build takes a fraction of a second for all.
        assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
    }

    #[test]
    fn depth_is_counted_exactly() {
        let text = |n: usize| format!("a = {}1{}", "[".repeat(n), "]".repeat(n));
        assert!(Document::toml("f", text(DEPTH_MAX - 1).as_bytes()).is_ok());
        assert!(Document::toml("f", text(DEPTH_MAX).as_bytes()).unwrap_err()[0].message.contains("nested deeper"));
        let json = |n: usize| format!("{{\"a\":{}1{}}}", "[".repeat(n), "]".repeat(n));
        assert!(Document::json(json(DEPTH_MAX - 1).as_bytes()).is_ok());
        assert!(Document::json(json(DEPTH_MAX).as_bytes()).unwrap_err()[0].message.contains("nested deeper"));
    }

    #[test]
    fn many_errors_are_counted() {
        let text = (0..500).map(|n| format!("key{n}x = 1\n")).collect::<String>() + "name='x'";
        let found = errors(small, &text);
        assert_eq!(found.len(), ERRORS_MAX + 1);
        assert_eq!(found[ERRORS_MAX], "f.toml: and 400 more like these");
    }

    #[test]
    fn json_bodies() {
        let read = |json: &str| match Document::json(json.as_bytes()) {
            Ok(document) => document.read(small).errors.iter().map(ToString::to_string).collect(),
            Err(errors) => errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
        };
        assert_eq!(read(r#"{"name":"x","dst_port":80,"on":null}"#), [""; 0]);
        assert_eq!(read(r#"{"name":null}"#), ["name: missing; this key is required"]);
        assert_eq!(read(r#"{"name":"x","on":1}"#), ["on: expected true or false, found the integer 1"]);
        assert_eq!(read(r#"[]"#), ["expected an object, found an array"]);
        assert_eq!(read("  "), ["the body is empty; JSON was expected"]);
        assert_eq!(read(r#"{"name":"x""#), ["JSON:1:11: not valid JSON: EOF while parsing an object"]);
        assert_eq!(read(r#"{"a":1,"a":2}"#), ["JSON:1:13: not valid JSON: the key \"a\" is written twice"]);
        assert_eq!(read(r#"{"name":"x"} 1"#), ["JSON:1:14: not valid JSON: trailing characters"]);
    }

    #[test]
    fn what_is_set_outside_the_file_stands_in_front() {
        let mut document = Document::toml("f.toml", b"name='x'\ndst_port=1").unwrap();
        let keys = Document::known_keys(small);
        let paths = keys.iter().map(|key| key.path.as_str()).collect::<Vec<_>>();
        assert_eq!(paths, ["name", "src_port", "dst_port", "on", "sub", "sub[].word", "sub[].list"]);
        let key = |path: &str| keys.iter().find(|key| key.path == path).unwrap();
        document.set(key("dst_port"), "PORT", "0");
        document.set(key("on"), "--on", "true");
        let found = document.read(|root| {
            let mut r = root.table().unwrap();
            (r.key("dst_port").integer(1..=9u8), r.key("on").boolean(), r.key("name").text().map(str::to_owned))
        });
        assert_eq!(found.value, (None, Some(true), Some("x".to_owned())));
        let messages = found.errors.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(messages, ["PORT: dst_port: expected an integer from 1 to 9, found the string \"0\""]);
    }
}
