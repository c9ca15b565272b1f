//! One description of every operation that the agent offers.
//!
//! An [`Operation`] is a [`Spec`] and the function that answers it. Routing, the OpenAPI document, the command line, the
//! access check and the request metric all read the `Spec`; nothing about an operation is written twice. Pure data: no
//! socket, no thread, no lock.
//!
//! ```
//! use ebpfsentinel::api::{self, Method, Operation, Reply, Role, Spec};
//!
//! static LIST: Spec = Spec {
//!     command: "firewall list",
//!     method: Method::Get,
//!     path: "/api/v1/firewall/rules",
//!     query: api::PAGE,
//!     role: Role::Viewer,
//!     summary: "List the rules",
//!     body: None,
//!     reply: api::schema::<Vec<String>>,
//!     success: 200,
//! };
//! let list = Operation::new(&LIST, |request| {
//!     let page = request.page()?;
//!     Ok(Reply::json(&page.of(vec!["fw-1".to_owned()])))
//! });
//! assert!((list.run)(&api::Request::new(&LIST)).is_ok());
//! ```

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::component::Component;

/// Items of a list when the client names no `limit`.
pub const PAGE_LIMIT_DEFAULT: u32 = 100;
/// Most items of a list in one answer; above the 4096 rules of a family, so that a rule set fits in one.
pub const PAGE_LIMIT_MAX: u32 = 5000;
/// Longest path or query value, in bytes.
pub const VALUE_MAX: usize = 256;

/// An HTTP method. HEAD is answered as GET without a body and has no operations of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

impl Method {
    /// The word of the request line.
    pub const fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who may call an operation; each role may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Everybody, also without a token: liveness, readiness.
    Public,
    /// Reads.
    Viewer,
    /// Changes rules.
    Operator,
    /// Changes the agent itself.
    Admin,
}

impl Role {
    /// The word of config, tokens and the OpenAPI document.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Public => "public",
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }

    /// Words of the roles that a caller may have.
    pub const WORDS: &'static [(&'static str, Role)] =
        &[("viewer", Role::Viewer), ("operator", Role::Operator), ("admin", Role::Admin)];
}

/// The namespaces whose rules a caller may change. Everybody who may read sees the rules of all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// Every one, and rules that are in none.
    All,
    /// These; never rules that are in none. An empty set means that no rule may be changed.
    Only(BTreeSet<String>),
}

impl Namespaces {
    /// Fails with 403 where a rule of `namespace` may not be made, changed or deleted.
    pub fn check(&self, namespace: Option<&str>) -> Result<(), ApiError> {
        match (self, namespace) {
            (Namespaces::All, _) => Ok(()),
            (Namespaces::Only(own), Some(name)) if own.contains(name) => Ok(()),
            (Namespaces::Only(_), Some(name)) => Err(ApiError::namespace_forbidden(format!(
                "rules of the namespace \"{}\" are not yours to change",
                shown(name)
            ))),
            (Namespaces::Only(_), None) => Err(ApiError::namespace_forbidden(
                "a rule without a namespace is not yours to change; give it one of your namespaces",
            )),
        }
    }
}

/// Who calls, and what they may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Name of the API key, subject of the token, of the certificate, or `uid:N`; at most 256 characters, none a control.
    pub name: String,
    /// [`Role::Public`] for a caller who is known and has no role here.
    pub role: Role,
    /// Of an operator; [`Namespaces::All`] of an admin.
    pub namespaces: Namespaces,
    /// How it was found out: `api_key`, `jwt`, `oidc`, `certificate`, `unix`, `none`.
    pub method: &'static str,
}

impl Caller {
    /// Whoever it is, where nobody is asked.
    pub fn anonymous(role: Role) -> Caller {
        let namespaces = if role == Role::Admin { Namespaces::All } else { Namespaces::Only(BTreeSet::new()) };
        Caller { name: "anonymous".to_owned(), role, namespaces, method: "none" }
    }
}

/// What a query parameter may hold. The router checks it before the operation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamKind {
    /// Any text of up to [`VALUE_MAX`] bytes.
    Text,
    /// A whole number in these bounds, both included.
    Integer { min: u64, max: u64 },
    /// `true` or `false`.
    Boolean,
    /// One of these words.
    Word(&'static [&'static str]),
}

/// A query parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    pub name: &'static str,
    pub about: &'static str,
    pub required: bool,
    pub kind: ParamKind,
}

impl Param {
    /// A parameter that may be absent.
    pub const fn optional(name: &'static str, about: &'static str, kind: ParamKind) -> Param {
        Param { name, about, required: false, kind }
    }

    fn check(&self, value: &str) -> Result<(), ApiError> {
        let wish = match self.kind {
            ParamKind::Text => return check_value(self.name, value),
            ParamKind::Integer { min, max } => {
                // FromStr takes "+3"; the API does not.
                if value.bytes().all(|b| b.is_ascii_digit())
                    && value.parse().is_ok_and(|n: u64| (min..=max).contains(&n))
                {
                    return Ok(());
                }
                format!("a whole number from {min} to {max}")
            }
            ParamKind::Boolean if matches!(value, "true" | "false") => return Ok(()),
            ParamKind::Boolean => "true or false".to_owned(),
            ParamKind::Word(words) if words.contains(&value) => return Ok(()),
            ParamKind::Word(words) => format!("one of {}", words.join(", ")),
        };
        Err(ApiError::validation(format!("query parameter \"{}\" must be {wish}, not \"{}\"", self.name, shown(value))))
    }
}

/// The parameters of a paged list, for `Spec::query`.
pub const PAGE: &[Param] = &[LIMIT, OFFSET];

/// `limit` of a paged list.
pub const LIMIT: Param = Param::optional(
    "limit",
    "Most items in the answer; 100 when absent",
    ParamKind::Integer { min: 1, max: PAGE_LIMIT_MAX as u64 },
);

/// `offset` of a paged list.
pub const OFFSET: Param = Param::optional(
    "offset",
    "Items to skip from the start of the list",
    ParamKind::Integer { min: 0, max: u32::MAX as u64 },
);

/// What an operation is: everything but its code.
#[derive(Debug)]
pub struct Spec {
    /// The words of the command line that call it, as `firewall list`.
    pub command: &'static str,
    pub method: Method,
    /// Segments in braces are path parameters: `/api/v1/firewall/rules/{id}`.
    pub path: &'static str,
    pub query: &'static [Param],
    pub role: Role,
    pub summary: &'static str,
    /// JSON Schema of the body; `None` refuses a body.
    pub body: Option<fn() -> Value>,
    /// JSON Schema of the answer; [`no_reply`] where it is empty, [`text_reply`] where it is not JSON.
    pub reply: fn() -> Value,
    /// Status of an answer that went well.
    pub success: u16,
}

impl Spec {
    /// Names of the path parameters, in order.
    pub fn path_params(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
    }

    /// The path and query of a request: what a client sends. Values are percent-encoded here.
    ///
    /// # Panics
    /// If a path parameter is not among `path`: the caller's mistake, not the user's.
    pub fn target(&self, path: &[(&str, &str)], query: &[(&str, &str)]) -> String {
        let mut target = String::new();
        for segment in self.path.split('/').skip(1) {
            target.push('/');
            match segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')) {
                None => target.push_str(segment),
                Some(name) => {
                    let value = path.iter().find(|(n, _)| *n == name).expect("every path parameter is given").1;
                    percent_encode(value, &mut target);
                }
            }
        }
        for (i, (name, value)) in query.iter().enumerate() {
            target.push(if i == 0 { '?' } else { '&' });
            percent_encode(name, &mut target);
            target.push('=');
            percent_encode(value, &mut target);
        }
        target
    }

    /// Checks a decoded query against [`Spec::query`]: unknown names are errors, so that a misspelt filter does not
    /// quietly answer everything.
    pub fn check_query(&self, query: &BTreeMap<String, String>) -> Result<(), ApiError> {
        for (name, value) in query {
            match self.query.iter().find(|param| param.name == name) {
                Some(param) => param.check(value)?,
                None if self.query.is_empty() => {
                    return Err(ApiError::validation(format!(
                        "unknown query parameter \"{}\"; this operation has none",
                        shown(name)
                    )));
                }
                None => {
                    let known: Vec<_> = self.query.iter().map(|param| param.name).collect();
                    return Err(ApiError::validation(format!(
                        "unknown query parameter \"{}\"; known: {}",
                        shown(name),
                        known.join(", ")
                    )));
                }
            }
        }
        match self.query.iter().find(|param| param.required && !query.contains_key(param.name)) {
            Some(param) => Err(ApiError::validation(format!("query parameter \"{}\" is required", param.name))),
            None => Ok(()),
        }
    }
}

/// The address for which a client answers: who has one address of an IPv6 /64 has all.
pub fn whose(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}

/// One call of an operation. The router builds it; tests build it with the `with_` functions.
#[derive(Debug)]
pub struct Request {
    pub spec: &'static Spec,
    /// Path parameters by name, decoded.
    pub path: BTreeMap<&'static str, String>,
    /// Query parameters by name, decoded and checked against the spec.
    pub query: BTreeMap<String, String>,
    pub body: Vec<u8>,
    /// The client's address; `None` in tests and over a Unix socket.
    pub peer: Option<SocketAddr>,
    /// What the caller may do.
    pub role: Role,
    /// Who called, for the audit log: [`Caller::name`].
    pub actor: String,
    /// Whose rules the caller may change.
    pub namespaces: Namespaces,
    /// [`Caller::method`].
    pub method: &'static str,
    /// The header field `Last-Event-ID`: the last event of a stream that the client has seen.
    pub last_event_id: Option<String>,
    /// What the operation changed, for the audit log.
    notes: RefCell<Vec<Note>>,
}

/// One thing that an operation changed, as the API shows it: no secret is ever in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// Of which component.
    pub component: Option<Component>,
    /// The rule's id.
    pub rule: Option<String>,
    /// What there was; `None`: nothing.
    pub before: Option<Value>,
    /// What there is now; `None`: nothing.
    pub after: Option<Value>,
}

impl Request {
    /// An empty request for `spec`, with the role that it asks for.
    pub fn new(spec: &'static Spec) -> Request {
        Request {
            spec,
            path: BTreeMap::new(),
            query: BTreeMap::new(),
            body: Vec::new(),
            peer: None,
            role: spec.role,
            actor: "anonymous".to_owned(),
            namespaces: Namespaces::All,
            method: "none",
            notes: RefCell::default(),
            last_event_id: None,
        }
    }

    /// As called by `caller`.
    pub fn called_by(self, caller: Caller) -> Request {
        let Caller { name, role, namespaces, method } = caller;
        Request { role, actor: name, namespaces, method, ..self }
    }

    /// The caller, apart from whoever has the same name by another method.
    pub fn caller_id(&self) -> String {
        format!("{} {}", self.method, self.actor)
    }

    /// Notes what was changed, or what would have been, had it gone well: the audit log tells which by the answer.
    pub fn note(&self, note: Note) {
        self.notes.borrow_mut().push(note);
    }

    /// What was noted up to now.
    pub fn notes(&self) -> Vec<Note> {
        self.notes.borrow().clone()
    }

    /// What was noted up to now; from now on nothing is.
    pub fn take_notes(&self) -> Vec<Note> {
        self.notes.take()
    }

    /// With a path parameter.
    pub fn with_path(mut self, name: &'static str, value: impl Into<String>) -> Request {
        self.path.insert(name, value.into());
        self
    }

    /// With a query parameter.
    pub fn with_query(mut self, name: impl Into<String>, value: impl Into<String>) -> Request {
        self.query.insert(name.into(), value.into());
        self
    }

    /// With a body.
    pub fn with_body(mut self, body: impl Into<Vec<u8>>) -> Request {
        self.body = body.into();
        self
    }

    /// A path parameter as text.
    pub fn path(&self, name: &str) -> Result<&str, ApiError> {
        self.path
            .get(name)
            .map(String::as_str)
            .ok_or_else(|| ApiError::internal(format!("{} has no path parameter \"{name}\"", self.spec.path)))
    }

    /// A path parameter in the type that `FromStr` gives.
    pub fn path_as<T: FromStr<Err: fmt::Display>>(&self, name: &str) -> Result<T, ApiError> {
        parsed("path parameter", name, self.path(name)?)
    }

    /// A query parameter as text.
    pub fn query(&self, name: &str) -> Option<&str> {
        debug_assert!(self.spec.query.iter().any(|param| param.name == name), "{name} is not in the spec");
        self.query.get(name).map(String::as_str)
    }

    /// A query parameter in the type that `FromStr` gives.
    pub fn query_as<T: FromStr<Err: fmt::Display>>(&self, name: &str) -> Result<Option<T>, ApiError> {
        self.query(name).map(|value| parsed("query parameter", name, value)).transpose()
    }

    /// A query parameter `true` or `false`; absent is `false`.
    pub fn query_flag(&self, name: &str) -> Result<bool, ApiError> {
        Ok(self.query_as(name)?.unwrap_or(false))
    }

    /// The part of a list that `limit` and `offset` ask for.
    pub fn page(&self) -> Result<Page, ApiError> {
        let limit: u32 = self.query_as("limit")?.unwrap_or(PAGE_LIMIT_DEFAULT);
        let offset: u32 = self.query_as("offset")?.unwrap_or(0);
        if limit == 0 || limit > PAGE_LIMIT_MAX {
            return Err(ApiError::validation(format!("query parameter \"limit\" must be 1 to {PAGE_LIMIT_MAX}")));
        }
        Ok(Page { limit, offset })
    }

    /// The body, which must be one JSON document of type `T`. The message says where and what is wrong.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        if self.body.iter().all(u8::is_ascii_whitespace) {
            return Err(ApiError::validation("the body is empty; a JSON document is expected"));
        }
        serde_json::from_slice(&self.body).map_err(|e| match e.classify() {
            serde_json::error::Category::Data => ApiError::validation(format!("the body does not fit: {e}")),
            _ => ApiError::validation(format!("the body is not valid JSON: {e}")),
        })
    }
}

fn parsed<T: FromStr<Err: fmt::Display>>(what: &str, name: &str, value: &str) -> Result<T, ApiError> {
    value.parse().map_err(|e| ApiError::validation(format!("{what} \"{name}\" is \"{}\": {e}", shown(value))))
}

/// A part of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    pub limit: u32,
    pub offset: u32,
}

impl Page {
    /// The items of this page. Clone or convert after paging, not before: the iterator is only walked as far as needed.
    pub fn of<T, I: IntoIterator<Item = T>>(&self, all: I) -> Vec<T> {
        all.into_iter().skip(self.offset as usize).take(self.limit as usize).collect()
    }
}

/// What an operation answers when it went well.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// 200.
    Json(Value),
    /// 201.
    Created(Value),
    /// 204.
    NoContent,
    /// 200, not JSON.
    Text { content_type: &'static str, body: String },
    /// A JSON body with a status of its own, for what is neither success nor a plain error: readiness that is refused.
    Status { status: u16, body: Value },
    /// 200, and then what comes, for as long as the client stays.
    Stream(Stream),
}

impl Reply {
    /// A 200 with `body`.
    pub fn json<T: Serialize>(body: &T) -> Reply {
        Reply::Json(to_value(body))
    }

    /// A 201 with `body`.
    pub fn created<T: Serialize>(body: &T) -> Reply {
        Reply::Created(to_value(body))
    }

    /// Its HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Reply::Json(_) | Reply::Text { .. } | Reply::Stream(_) => 200,
            Reply::Created(_) => 201,
            Reply::NoContent => 204,
            Reply::Status { status, .. } => *status,
        }
    }
}

/// An answer without an end in sight. It has a thread of its own; how many there may be is the operation's affair.
#[derive(Clone)]
pub struct Stream {
    pub content_type: &'static str,
    /// Who may listen. That is asked again from time to time.
    pub role: Role,
    write: WriteStream,
}

type WriteStream = Arc<dyn Fn(&mut dyn io::Write) -> io::Result<()> + Send + Sync>;

impl Stream {
    /// An answer that `write` writes, and flushes whenever the client should see it. An error of the writer means that the
    /// client has gone.
    pub fn new(
        content_type: &'static str,
        role: Role,
        write: impl Fn(&mut dyn io::Write) -> io::Result<()> + Send + Sync + 'static,
    ) -> Stream {
        Stream { content_type, role, write: Arc::new(write) }
    }

    /// Writes all of it, until its end or the client's.
    pub fn write_to(&self, out: &mut dyn io::Write) -> io::Result<()> {
        (self.write)(out)
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({})", self.content_type)
    }
}

impl PartialEq for Stream {
    fn eq(&self, other: &Stream) -> bool {
        Arc::ptr_eq(&self.write, &other.write)
    }
}

/// Serialising to a `Value` fails only for maps whose keys are not text: a mistake in our own types.
fn to_value<T: Serialize>(body: &T) -> Value {
    serde_json::to_value(body).expect("a reply type is representable as JSON")
}

/// What went wrong, as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub status: u16,
    /// For programs: `RULE_NOT_FOUND`, `VALIDATION_ERROR` ...
    pub code: &'static str,
    /// For people.
    pub message: String,
}

impl ApiError {
    /// Any status and code; the functions below name the usual ones.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, code, message: message.into() }
    }

    /// 400: the request cannot be what the client meant.
    pub fn validation(message: impl Into<String>) -> ApiError {
        ApiError::new(400, "VALIDATION_ERROR", message)
    }

    /// 404 for a path that is no operation.
    pub fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(404, "NOT_FOUND", message)
    }

    /// 404 for a rule.
    pub fn rule_not_found(id: &str) -> ApiError {
        ApiError::new(404, "RULE_NOT_FOUND", format!("there is no rule \"{}\"", shown(id)))
    }

    /// 404: the trail keeps no version of the rule; whether the rule is in force is not for it to say.
    pub fn version_not_found(id: &str) -> ApiError {
        ApiError::new(404, "RULE_NOT_FOUND", format!("no version of rule \"{}\" is kept", shown(id)))
    }

    /// 401: nobody knows who calls.
    pub fn unauthenticated(message: impl Into<String>) -> ApiError {
        ApiError::new(401, "AUTHENTICATION_REQUIRED", message)
    }

    /// 403: the caller's role is not enough.
    pub fn insufficient_role(message: impl Into<String>) -> ApiError {
        ApiError::new(403, "INSUFFICIENT_ROLE", message)
    }

    /// 403: an operator reaches beyond their namespaces.
    pub fn namespace_forbidden(message: impl Into<String>) -> ApiError {
        ApiError::new(403, "NAMESPACE_FORBIDDEN", message)
    }

    /// 409 for a rule id that is taken.
    pub fn duplicate_rule(message: impl Into<String>) -> ApiError {
        ApiError::new(409, "DUPLICATE_RULE", message)
    }

    /// 409: the request is right, but not now.
    pub fn conflict(message: impl Into<String>) -> ApiError {
        ApiError::new(409, "CONFLICT", message)
    }

    /// 500: our fault.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(500, "INTERNAL_ERROR", message)
    }

    /// 503: the part that would answer is not running.
    pub fn unavailable(message: impl Into<String>) -> ApiError {
        ApiError::new(503, "SERVICE_UNAVAILABLE", message)
    }

    /// The one shape of every failure.
    pub fn body(&self) -> Value {
        json!({"error": {"code": self.code, "message": self.message}})
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for ApiError {}

/// The code of an operation.
pub type Run = Box<dyn Fn(&Request) -> Result<Reply, ApiError> + Send + Sync>;

/// A description and the code that answers it.
pub struct Operation {
    pub spec: &'static Spec,
    /// Runs on a control worker; anything long belongs to the thread that owns the state.
    pub run: Run,
}

impl Operation {
    /// Binds `run` to `spec`.
    pub fn new<F>(spec: &'static Spec, run: F) -> Operation
    where
        F: Fn(&Request) -> Result<Reply, ApiError> + Send + Sync + 'static,
    {
        Operation { spec, run: Box::new(run) }
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.spec.method, self.spec.path)
    }
}

/// The JSON Schema of `T`, for `Spec::body` and `Spec::reply`: `reply: api::schema::<Status>`.
pub fn schema<T: JsonSchema>() -> Value {
    schemars::generate::SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>().to_value()
}

/// `Spec::reply` of an operation that answers 204.
pub fn no_reply() -> Value {
    Value::Null
}

/// `Spec::reply` of an operation that answers plain text.
pub fn text_reply() -> Value {
    json!({"type": "string", "contentMediaType": "text/plain"})
}

/// Reads `a=1&b=2`, decoded. A name given twice is an error: which one wins is what attackers play with.
pub fn parse_query(query: &str) -> Result<BTreeMap<String, String>, ApiError> {
    let mut map = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = percent_decode(&name.replace('+', " "))?;
        let value = percent_decode(&value.replace('+', " "))?;
        check_value(&name, &value)?;
        if map.insert(name.clone(), value).is_some() {
            return Err(ApiError::validation(format!("query parameter \"{}\" is given twice", shown(&name))));
        }
    }
    Ok(map)
}

/// Resolves `%41`. What is not UTF-8 afterwards is an error.
pub fn percent_decode(text: &str) -> Result<String, ApiError> {
    let bad = || ApiError::validation(format!("\"{}\" is not valid percent-encoded UTF-8", shown(text)));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let [high, low, tail @ ..] = rest else { return Err(bad()) };
        let digit = |b: u8| (b as char).to_digit(16).ok_or_else(bad);
        bytes.push((digit(*high)? * 16 + digit(*low)?) as u8);
        rest = tail;
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

/// Writes `text` so that it is one path segment or query value.
pub fn percent_encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
}

/// Refuses path and query values that no operation has a use for: over-long ones and control characters, which would
/// otherwise reach logs and terminals.
pub fn check_value(name: &str, value: &str) -> Result<(), ApiError> {
    if value.len() > VALUE_MAX {
        return Err(ApiError::validation(format!("\"{}\" is longer than {VALUE_MAX} bytes", shown(name))));
    }
    if value.chars().any(char::is_control) {
        return Err(ApiError::validation(format!("\"{}\" holds a control character", shown(name))));
    }
    Ok(())
}

/// `text` as an error message may repeat it: short and printable.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(64).flat_map(char::escape_debug).collect();
    if text.chars().nth(64).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODE: Param = Param { name: "mode", about: "", required: true, kind: ParamKind::Word(&["alert", "block"]) };
    const DRY: Param = Param::optional("dry", "", ParamKind::Boolean);

    static PAGED: Spec = Spec {
        command: "test list",
        method: Method::Get,
        path: "/test/{id}/of/{kind}",
        query: PAGE,
        role: Role::Viewer,
        summary: "",
        body: None,
        reply: no_reply,
        success: 200,
    };
    static WORDS: Spec = Spec { query: &[MODE, DRY], ..copy(&PAGED) };

    const fn copy(spec: &Spec) -> Spec {
        Spec {
            command: spec.command,
            method: spec.method,
            path: spec.path,
            query: spec.query,
            role: spec.role,
            summary: spec.summary,
            body: None,
            reply: no_reply,
            success: spec.success,
        }
    }

    #[test]
    fn query_text() {
        let check = |text: &str, want: &[(&str, &str)]| {
            let want = want.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
            assert_eq!(parse_query(text), Ok(want), "{text}");
        };
        check("", &[]);
        check("&", &[]);
        check("a=1&b=2", &[("a", "1"), ("b", "2")]);
        check("a", &[("a", "")]);
        check("a=b=c", &[("a", "b=c")]);
        check("a=%41+b%2B", &[("a", "A b+")]);
        check("a=%C3%A4", &[("a", "ä")]);
        for bad in ["a=1&a=2", "a=%", "a=%4", "a=%zz", "a=%ff", "a=%00", "a=%0a", &format!("a={}", "x".repeat(257))] {
            assert_eq!(parse_query(bad).unwrap_err().code, "VALIDATION_ERROR", "{bad}");
        }
    }

    #[test]
    fn queries_are_checked_against_the_spec() {
        let check = |spec: &'static Spec, query: &str, want: Result<(), &str>| {
            let got = spec.check_query(&parse_query(query).unwrap()).map_err(|e| e.message);
            assert_eq!(got, want.map_err(str::to_owned), "{query}");
        };
        check(&PAGED, "", Ok(()));
        check(&PAGED, "limit=5000&offset=0", Ok(()));
        check(&PAGED, "limit=0", Err("query parameter \"limit\" must be a whole number from 1 to 5000, not \"0\""));
        check(&PAGED, "limit=%2B3", Err("query parameter \"limit\" must be a whole number from 1 to 5000, not \"+3\""));
        check(&PAGED, "limit=", Err("query parameter \"limit\" must be a whole number from 1 to 5000, not \"\""));
        check(&PAGED, "lmit=3", Err("unknown query parameter \"lmit\"; known: limit, offset"));
        check(&WORDS, "mode=alert&dry=true", Ok(()));
        check(&WORDS, "", Err("query parameter \"mode\" is required"));
        check(&WORDS, "mode=x", Err("query parameter \"mode\" must be one of alert, block, not \"x\""));
        check(&WORDS, "mode=block&dry=1", Err("query parameter \"dry\" must be true or false, not \"1\""));
    }

    #[test]
    fn getters() {
        let request = Request::new(&PAGED).with_path("id", "7").with_query("limit", "3").with_query("offset", "2");
        assert_eq!(request.path("id"), Ok("7"));
        assert_eq!(request.path_as::<u8>("id"), Ok(7));
        assert_eq!(request.page().unwrap().of(0..10), [2, 3, 4]);
        assert_eq!(Request::new(&PAGED).page(), Ok(Page { limit: 100, offset: 0 }));
        let wrong = Request::new(&PAGED).with_path("id", "x").path_as::<u8>("id").unwrap_err();
        assert_eq!(wrong.message, "path parameter \"id\" is \"x\": invalid digit found in string");
        assert_eq!(Request::new(&PAGED).with_query("limit", "9999").page().unwrap_err().status, 400);
    }

    #[test]
    fn namespaces_bind_operators() {
        let own = Namespaces::Only(BTreeSet::from(["prod".to_owned()]));
        let none = Namespaces::Only(BTreeSet::new());
        for (namespaces, namespace, allowed) in [
            (&Namespaces::All, None, true),
            (&Namespaces::All, Some("prod"), true),
            (&own, Some("prod"), true),
            (&own, Some("Prod"), false),
            (&own, Some("prod2"), false),
            (&own, Some(""), false),
            (&own, None, false),
            (&none, Some("prod"), false),
            (&none, None, false),
        ] {
            let got = namespaces.check(namespace);
            assert_eq!(got.is_ok(), allowed, "{namespaces:?} {namespace:?}");
            assert!(got.is_ok() || got.is_err_and(|e| (e.status, e.code) == (403, "NAMESPACE_FORBIDDEN")));
        }
    }

    #[test]
    fn bodies() {
        let check = |body: &str, want: Result<Vec<u8>, &str>| {
            let got = Request::new(&PAGED).with_body(body).json::<Vec<u8>>();
            match (got, want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want),
                (Err(e), Err(start)) => assert!(e.status == 400 && e.message.starts_with(start), "{body}: {e}"),
                (got, want) => panic!("{body}: {got:?} is not {want:?}"),
            }
        };
        check("[1]", Ok(vec![1]));
        check(" ", Err("the body is empty"));
        check("[1", Err("the body is not valid JSON: EOF"));
        check("[1] x", Err("the body is not valid JSON: trailing characters"));
        check("[300]", Err("the body does not fit: invalid value"));
        check("\u{1}", Err("the body is not valid JSON"));
    }

    #[test]
    fn targets() {
        assert_eq!(PAGED.path_params().collect::<Vec<_>>(), ["id", "kind"]);
        let target = PAGED.target(&[("kind", "a/b"), ("id", "ä ?")], &[("limit", "3"), ("x", "&=")]);
        assert_eq!(target, "/test/%C3%A4%20%3F/of/a%2Fb?limit=3&x=%26%3D");
    }

    #[test]
    fn errors_have_one_shape() {
        let error = ApiError::rule_not_found("fw\n1");
        assert_eq!(
            error.body(),
            json!({"error": {"code": "RULE_NOT_FOUND", "message": "there is no rule \"fw\\n1\""}})
        );
    }
}
