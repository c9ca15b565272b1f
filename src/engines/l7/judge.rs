//! From rules to an answer about a transaction: the first rule that matches, by priority.
//!
//! # How it is found
//! Each rule is kept by one of its conditions, the one that the fewest other rules have. What a transaction says is looked
//! up field by field: exact texts, beginnings and ends in hash tables, all others in sets of patterns of the field, so that
//! the cost does not grow with the rules but with those that may match. These are then asked in order. Rules without such a condition
//! are kept by their addresses, and those without addresses are always asked.
//!
//! # When it is final
//! A transaction is told of more than once, and not all is known the first time. A rule whose conditions hold as far as
//! they are known waits. The first rule that matches decides, unless one before it waits that wants something else: then
//! the transaction is judged again at its next stage. So the verdict is that of the first rule that matches in the end,
//! and no earlier rule is passed by because its part of the transaction came later.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, anyhow};
use ipnet::IpNet;

use super::config::DefaultActions;
use super::normal::Values;
use super::rule::{Condition, Field, Protocol, Rule};
use super::tally::{RuleCounts, Tally};
use super::view::{self, MAIL_COMMANDS};
use crate::alert::Severity;
use crate::classify::matching::Match;
use crate::classify::rules::Action;
use crate::flow::Flow;
use crate::matching::matcher::Form;
use crate::matching::patterns::{self, Pattern, PatternError, Patterns};
use crate::packet::proto::{Fact, Stage, Told};

/// Name of the rule that a default action stands for: one that no other rule can have.
pub const DEFAULT_RULE: &str = "(default)";
/// Bytes of a match that are kept.
pub const MATCHED_MAX: usize = 256;
/// Transactions of a flow that are remembered as decided. When there are more at once, the oldest are forgotten, and are
/// judged anew when they are done.
const DECIDED_MAX: usize = 256;
/// Patterns of a set, about. More make fewer scans, and a change of one rule costs more.
const SET_PATTERNS: usize = 1000;

/// What a rule decided about a transaction.
#[derive(Clone, Debug)]
pub struct Hit {
    /// The rule, or [`DEFAULT_RULE`].
    pub rule: Arc<str>,
    /// What it wants.
    pub action: Action,
    /// How bad it is.
    pub severity: Severity,
    /// What it is a sign of.
    pub mitre: Vec<Arc<str>>,
    /// What the transaction is.
    pub protocol: Protocol,
    /// The key of its first condition; `None` of rules without.
    pub field: Option<Arc<str>>,
    /// The value that met it, in the form that did, at most [`MATCHED_MAX`] bytes.
    pub matched: Vec<u8>,
    /// The rule's counters, for who enforces it.
    pub counts: Arc<RuleCounts>,
}

/// What is to be said of a transaction.
#[derive(Clone, Debug)]
pub enum Judgement {
    /// It depends on what is not known yet.
    Later,
    /// It is final; `None` when neither a rule nor a default has anything to say.
    Final(Option<Hit>),
}

/// A rule as it is judged by.
#[derive(Debug)]
struct Compiled {
    id: Arc<str>,
    action: Action,
    severity: Severity,
    mitre: Vec<Arc<str>>,
    protocol: Protocol,
    matches: Match,
    /// Indices of its conditions.
    conditions: Vec<u32>,
    counts: Arc<RuleCounts>,
}

/// A condition, which any number of rules may have.
#[derive(Debug)]
struct Shared {
    group: u32,
    form: Form,
    /// The rules that are kept by it.
    rules: Vec<u32>,
    /// Of commands of SMTP: whether one that a mail may still come to would match.
    may_come: bool,
}

/// All conditions on one field.
#[derive(Debug)]
struct Group {
    field: Field,
    name: Arc<str>,
    /// Conditions by their texts.
    exact: HashMap<Box<[u8]>, u32>,
    /// Conditions by what values begin with.
    prefixes: Affixes,
    /// Conditions by what values end with.
    suffixes: Affixes,
    /// The others.
    sets: Vec<PatternSet>,
    /// The rules that are kept by a condition of the field, in order.
    rules: Vec<u32>,
}

/// Conditions by texts at an end of the value: one look for each length that there is.
#[derive(Debug, Default)]
struct Affixes {
    /// Ascending.
    lengths: Vec<usize>,
    conditions: HashMap<Box<[u8]>, u32>,
}

impl Affixes {
    fn insert(&mut self, text: &[u8], condition: u32) {
        if let Err(place) = self.lengths.binary_search(&text.len()) {
            self.lengths.insert(place, text.len());
        }
        self.conditions.insert(text.into(), condition);
    }

    /// Conditions whose text is one of those that `of` gives for a length.
    fn find<'v>(&self, value: &'v [u8], of: impl Fn(&'v [u8], usize) -> &'v [u8]) -> impl Iterator<Item = u32> {
        let lengths = self.lengths.iter().take_while(move |length| **length <= value.len());
        lengths.filter_map(move |&length| self.conditions.get(of(value, length)).copied())
    }
}

/// Some of a field's patterns. Which ones follows from their texts, so that a change of rules leaves most sets as they
/// are: these are not compiled anew.
#[derive(Debug)]
struct PatternSet {
    /// Expressions, and whether they ignore case; in their order.
    sources: Vec<(String, bool)>,
    patterns: Patterns,
    /// The condition of each.
    conditions: Vec<u32>,
}

/// The rules of one protocol.
#[derive(Debug)]
struct Part {
    /// Its fields that some rule asks for, but those of heads.
    groups: Vec<u32>,
    /// Fields of heads, by their names in lower case.
    headers: HashMap<Box<[u8]>, u32>,
    /// Rules that are always asked.
    always: Vec<u32>,
    by_client: Prefixes,
    by_server: Prefixes,
    default: Action,
    /// How many rules there are.
    rules: usize,
}

/// Rules by a network.
#[derive(Debug, Default)]
struct Prefixes {
    /// Lengths that some network has, of IPv4 and IPv6.
    lengths: [Vec<u8>; 2],
    rules: HashMap<IpNet, Vec<u32>>,
}

impl Prefixes {
    fn insert(&mut self, net: IpNet, rule: u32) {
        let lengths = &mut self.lengths[usize::from(net.addr().is_ipv6())];
        if !lengths.contains(&net.prefix_len()) {
            lengths.push(net.prefix_len());
        }
        self.rules.entry(net.trunc()).or_default().push(rule);
    }

    fn of(&self, address: IpAddr) -> impl Iterator<Item = u32> {
        let lengths = self.lengths[usize::from(address.is_ipv6())].iter();
        let nets = lengths.filter_map(move |&length| Some(IpNet::new(address, length).ok()?.trunc()));
        nets.filter_map(|net| self.rules.get(&net)).flatten().copied()
    }
}

/// Rules, compiled. Never changes: other rules make another judge, and whoever judges takes it whole.
#[derive(Debug)]
pub struct Judge {
    rules: Vec<Compiled>,
    conditions: Vec<Shared>,
    groups: Vec<Group>,
    parts: Vec<Part>,
    default_counts: Arc<RuleCounts>,
    scan_failures: AtomicU64,
}

/// What is known of a condition in a transaction.
#[derive(Clone, Copy, Debug, Default)]
struct Memo {
    /// The transaction that it is about.
    stamp: u64,
    /// Its pattern was found, and its rules are candidates.
    is_found: bool,
    /// A condition that is no pattern was compared with all values.
    is_compared: bool,
    /// Value and form that matched first.
    first: Option<(u32, u8)>,
    /// Values of which each resolved form matched.
    whole: u32,
    /// The value that `forms` is about, from 1.
    value: u32,
    /// The forms of it that matched.
    forms: u32,
}

/// The values of a field in a transaction.
#[derive(Debug, Default)]
struct Seen {
    stamp: u64,
    values: Values,
    /// There may be more of them.
    is_open: bool,
}

/// Memory to judge with; each thread has its own. It fits every judge.
#[derive(Debug, Default)]
pub struct Scratch {
    patterns: patterns::Scratch,
    found: Vec<u32>,
    memos: Vec<Memo>,
    seen: Vec<Seen>,
    /// Fields with values.
    touched: Vec<u32>,
    candidates: Vec<u32>,
    stamp: u64,
}

impl Scratch {
    fn begin(&mut self, judge: &Judge) {
        self.stamp += 1;
        if self.memos.len() < judge.conditions.len() {
            self.memos.resize(judge.conditions.len(), Memo::default());
        }
        if self.seen.len() < judge.groups.len() {
            self.seen.resize_with(judge.groups.len(), Seen::default);
        }
        self.touched.clear();
        self.candidates.clear();
    }

    /// The values of a field, empty when it was not touched before in this transaction.
    fn touch(&mut self, group: u32) -> &mut Seen {
        let seen = &mut self.seen[group as usize];
        if seen.stamp != self.stamp {
            seen.stamp = self.stamp;
            seen.values.clear();
            seen.is_open = false;
            self.touched.push(group);
        }
        seen
    }
}

/// Whether something holds of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Truth {
    No,
    /// It depends on what is not known yet.
    Open,
    Yes,
}

impl Judge {
    /// Compiles rules, which stand in the order in which they are asked; those that are switched off are left out.
    ///
    /// # Errors
    /// A regular expression cannot be compiled. Each was checked when it was read, so that does not happen unless memory
    /// is out.
    pub fn compile<'r>(
        rules: impl IntoIterator<Item = &'r Rule>,
        defaults: &DefaultActions,
        tally: &mut Tally,
    ) -> Result<Judge> {
        Judge::compile_after(None, rules, defaults, tally)
    }

    /// [`Judge::compile`], with what an earlier judge has compiled already.
    ///
    /// # Errors
    /// See there.
    pub fn compile_after<'r>(
        earlier: Option<&Judge>,
        rules: impl IntoIterator<Item = &'r Rule>,
        defaults: &DefaultActions,
        tally: &mut Tally,
    ) -> Result<Judge> {
        let rules: Vec<&Rule> = rules.into_iter().filter(|rule| rule.enabled).collect();
        let mut builder = Builder::default();
        let conditions: Vec<Vec<u32>> = rules
            .iter()
            .map(|rule| rule.conditions.iter().map(|condition| builder.condition(condition)).collect())
            .collect();
        let mut parts: Vec<Part> = Protocol::ALL.map(|protocol| Part::new(defaults.of(protocol))).into();
        for ((number, rule), conditions) in (0u32..).zip(&rules).zip(&conditions) {
            builder.keep(number, rule, conditions, &mut parts[rule.protocol as usize]);
        }
        builder.name_groups(&rules, &mut parts);
        let compiled = rules.iter().zip(conditions).map(|(rule, conditions)| Compiled {
            id: rule.id.as_str().into(),
            action: rule.action,
            severity: rule.severity,
            mitre: rule.mitre.clone(),
            protocol: rule.protocol,
            matches: rule.matches.clone(),
            conditions,
            counts: tally.of(&rule.id),
        });
        let rules = compiled.collect();
        let mut judge = Judge {
            rules,
            conditions: builder.conditions,
            groups: builder.groups,
            parts,
            default_counts: tally.of(DEFAULT_RULE),
            scan_failures: AtomicU64::new(0),
        };
        judge.compile_patterns(earlier)?;
        Ok(judge)
    }

    fn compile_patterns(&mut self, earlier: Option<&Judge>) -> Result<()> {
        let mut by_group: HashMap<u32, Vec<(String, bool, u32)>> = HashMap::new();
        for (number, shared) in (0u32..).zip(&self.conditions) {
            let is_regex = matches!(shared.form, Form::Regex(..));
            let is_kept_by = !shared.rules.is_empty() && matches!(shared.form, Form::Wildcard(_));
            if let Some(filter) = shared.form.filter().filter(|_| is_regex || is_kept_by) {
                by_group.entry(shared.group).or_default().push((filter, shared.form.is_caseless(), number));
            }
        }
        let known: HashMap<&[(String, bool)], &Patterns> = earlier
            .iter()
            .flat_map(|judge| judge.groups.iter().flat_map(|group| &group.sets))
            .map(|set| (&set.sources[..], &set.patterns))
            .collect();
        for (group, filters) in by_group {
            for (sources, conditions) in into_sets(filters) {
                let patterns = match known.get(&sources[..]) {
                    Some(patterns) => (*patterns).clone(),
                    None => compile_set(&sources).map_err(|error| self.name_error(group, &conditions, &error))?,
                };
                self.groups[group as usize].sets.push(PatternSet { sources, patterns, conditions });
            }
        }
        self.ask_which_commands_may_come()
    }

    fn name_error(&self, group: u32, conditions: &[u32], error: &PatternError) -> anyhow::Error {
        let at_fault = error.id.and_then(|id| conditions.get(id as usize));
        let rule = self.rules.iter().find(|rule| at_fault.is_some_and(|id| rule.conditions.contains(id)));
        let (rule, field) = (rule.map_or("of l7", |rule| &rule.id), &self.groups[group as usize].name);
        anyhow!("rule {rule}: {field}: {}", error.message)
    }

    /// A mail is told of at each of its commands: a condition on them that none of those to come can meet does not wait.
    fn ask_which_commands_may_come(&mut self) -> Result<()> {
        let (mut scratch, mut found) = (patterns::Scratch::default(), Vec::new());
        for (at, group) in (0u32..).zip(&self.groups).filter(|(_, group)| group.field == Field::SmtpCommand) {
            for command in MAIL_COMMANDS {
                let command = command.to_ascii_lowercase();
                for set in &group.sets {
                    found.clear();
                    set.patterns.scan(&mut scratch, command.as_bytes(), &mut found)?;
                    for &id in &found {
                        let shared = &mut self.conditions[set.conditions[id as usize] as usize];
                        shared.may_come |= matches!(shared.form, Form::Regex(..));
                    }
                }
                let own = self.conditions.iter_mut().filter(|shared| shared.group == at);
                own.for_each(|shared| shared.may_come |= shared.form.matches(command.as_bytes()));
            }
        }
        Ok(())
    }

    /// Rules in it.
    pub fn rule_count(&self) -> usize {
        self.rules.len()
    }

    /// Whether a rule of this name, or the default of the protocol for [`DEFAULT_RULE`], denies.
    pub fn denies(&self, rule: &str, protocol: Protocol) -> bool {
        if rule == DEFAULT_RULE {
            return self.parts[protocol as usize].default == Action::Deny;
        }
        self.rules.iter().any(|one| &*one.id == rule && one.action == Action::Deny)
    }

    /// Scans that the pattern matcher failed at. It does when memory is out; the transaction was then judged without them.
    pub fn scan_failures(&self) -> u64 {
        self.scan_failures.load(Ordering::Relaxed)
    }

    /// Judges a transaction by what is known of it. At [`Stage::Done`] the judgement is final.
    pub fn judge(&self, scratch: &mut Scratch, flow: &Flow, told: &Told) -> Judgement {
        let protocols = view::protocols_of(&told.fact);
        let Some(&last) = protocols.last() else { return Judgement::Final(None) };
        let default = self.parts[last as usize].default;
        let has_rules = protocols.iter().any(|&protocol| self.parts[protocol as usize].rules > 0);
        let (client, server) = (canonical(flow.client), canonical(flow.server));
        scratch.begin(self);
        if has_rules {
            for &protocol in protocols {
                self.gather(protocol, scratch, (client, server), told);
            }
            scratch.candidates.sort_unstable();
            scratch.candidates.dedup();
        }
        let asked = Asked { client, server, protocols, is_final: told.stage == Stage::Done };
        let default = view::is_asked(told).then_some(default);
        let judgement = self.decide(scratch, &asked, default, last);
        if let Judgement::Final(Some(hit)) = &judgement {
            hit.counts.hit(flow.last_ns);
        }
        judgement
    }

    /// Takes the values of a protocol's fields, and notes the rules that may match.
    fn gather(
        &self,
        protocol: Protocol,
        scratch: &mut Scratch,
        (client, server): (SocketAddr, SocketAddr),
        told: &Told,
    ) {
        let part = &self.parts[protocol as usize];
        scratch.candidates.extend(&part.always);
        scratch.candidates.extend(part.by_client.of(client.ip()));
        scratch.candidates.extend(part.by_server.of(server.ip()));
        let before = scratch.touched.len();
        for &group in &part.groups {
            let seen = scratch.touch(group);
            seen.is_open = view::fill(&self.groups[group as usize].field, told, &mut seen.values);
        }
        if let (Fact::Http(exchange), false) = (&told.fact, part.headers.is_empty()) {
            let mut name = Vec::new();
            for (field, value) in exchange.request.iter() {
                name.clear();
                name.extend(field.iter().map(u8::to_ascii_lowercase));
                if let Some(&group) = part.headers.get(&name[..]) {
                    scratch.touch(group).values.header(value);
                }
            }
        }
        for at in before..scratch.touched.len() {
            self.look_up(scratch.touched[at], scratch);
        }
    }

    /// Looks the values of a field up among the conditions on it.
    fn look_up(&self, group: u32, scratch: &mut Scratch) {
        let Scratch { patterns, found, memos, seen, candidates, stamp, .. } = scratch;
        let (group, seen) = (&self.groups[group as usize], &seen[group as usize]);
        let rules_of = |condition: u32| &self.conditions[condition as usize].rules;
        for value in 0..seen.values.len() {
            let (forms, resolved) = seen.values.forms(value);
            for (at, bytes) in forms.enumerate() {
                let exact = group.exact.get(bytes).copied().into_iter();
                let prefixes = group.prefixes.find(bytes, |value, length| &value[..length]);
                let suffixes = group.suffixes.find(bytes, |value, length| &value[value.len() - length..]);
                exact.chain(prefixes).chain(suffixes).for_each(|condition| candidates.extend(rules_of(condition)));
                for set in &group.sets {
                    found.clear();
                    if set.patterns.scan(patterns, bytes, found).is_err() {
                        self.scan_failures.fetch_add(1, Ordering::Relaxed);
                    }
                    for &id in found.iter() {
                        let condition = set.conditions[id as usize];
                        let memo = memos[condition as usize].of(*stamp);
                        if !std::mem::replace(&mut memo.is_found, true) {
                            candidates.extend(rules_of(condition));
                        }
                        if matches!(self.conditions[condition as usize].form, Form::Regex(..)) {
                            memo.note(value, at, resolved);
                        }
                    }
                }
            }
        }
    }

    fn decide(&self, scratch: &mut Scratch, asked: &Asked, default: Option<Action>, last: Protocol) -> Judgement {
        let mut first = None;
        // Rules that wait, by what they want.
        let mut waiting = [false; 3];
        let candidates = std::mem::take(&mut scratch.candidates);
        for &number in &candidates {
            match self.truth_of(number, scratch, asked) {
                Truth::No => {}
                Truth::Open => waiting[self.rules[number as usize].action as usize] = true,
                Truth::Yes => {
                    first = Some(number);
                    break;
                }
            }
        }
        scratch.candidates = candidates;
        let wanted = first.map_or(default.unwrap_or(Action::Allow), |number| self.rules[number as usize].action);
        let is_opposed =
            |waiting: &[bool; 3]| (0..).zip(waiting).any(|(action, waits)| *waits && action != wanted as usize);
        if !asked.is_final && (is_opposed(&waiting) || self.is_opposed_by_unknown(scratch, asked, first, wanted)) {
            return Judgement::Later;
        }
        Judgement::Final(match first {
            Some(number) => Some(self.hit(&self.rules[number as usize], scratch)),
            None => default.filter(|action| *action != Action::Allow).map(|action| Hit {
                rule: DEFAULT_RULE.into(),
                action,
                severity: Rule::severity_of(action),
                mitre: Vec::new(),
                protocol: last,
                field: None,
                matched: Vec::new(),
                counts: self.default_counts.clone(),
            }),
        })
    }

    /// Whether a rule before `first` waits for a value that it is kept by, and wants something else.
    fn is_opposed_by_unknown(&self, scratch: &mut Scratch, asked: &Asked, first: Option<u32>, wanted: Action) -> bool {
        let touched = std::mem::take(&mut scratch.touched);
        let is_opposed = touched.iter().any(|&group| {
            let is_open = scratch.seen[group as usize].is_open;
            let before = |number: &&u32| first.is_none_or(|first| **number < first);
            is_open
                && self.groups[group as usize].rules.iter().take_while(before).any(|&number| {
                    self.rules[number as usize].action != wanted && self.truth_of(number, scratch, asked) == Truth::Open
                })
        });
        scratch.touched = touched;
        is_opposed
    }

    fn truth_of(&self, number: u32, scratch: &mut Scratch, asked: &Asked) -> Truth {
        let rule = &self.rules[number as usize];
        if !asked.protocols.contains(&rule.protocol) || !is_between(&rule.matches, asked.client, asked.server) {
            return Truth::No;
        }
        let mut truth = Truth::Yes;
        for &condition in &rule.conditions {
            match self.condition_truth(condition, rule.action == Action::Allow, scratch) {
                Truth::No => return Truth::No,
                Truth::Open => truth = Truth::Open,
                Truth::Yes => {}
            }
        }
        truth
    }

    /// Whether a condition holds: of rules that allow it must do so however a server takes the values.
    fn condition_truth(&self, condition: u32, is_of_allow: bool, scratch: &mut Scratch) -> Truth {
        let shared = &self.conditions[condition as usize];
        let (seen, stamp) = (&scratch.seen[shared.group as usize], scratch.stamp);
        if seen.stamp != stamp {
            return Truth::No;
        }
        let memo = scratch.memos[condition as usize].of(stamp);
        if !memo.is_compared && !matches!(shared.form, Form::Regex(..)) {
            memo.is_compared = true;
            for value in 0..seen.values.len() {
                let (forms, resolved) = seen.values.forms(value);
                for (at, _) in forms.enumerate().filter(|(_, bytes)| shared.form.matches(bytes)) {
                    memo.note(value, at, resolved);
                }
            }
        }
        let field = &self.groups[shared.group as usize].field;
        let may_come = seen.is_open && (*field != Field::SmtpCommand || shared.may_come);
        let count = seen.values.len() as u32;
        let (holds, may_hold) = match (is_of_allow, field.wants_all()) {
            (false, _) => (memo.first.is_some(), may_come),
            (true, false) => (memo.whole > 0, may_come),
            (true, true) => (count > 0 && memo.whole == count && !seen.is_open, may_come && memo.whole == count),
        };
        match (holds, may_hold) {
            (true, _) => Truth::Yes,
            (false, true) => Truth::Open,
            (false, false) => Truth::No,
        }
    }

    fn hit(&self, rule: &Compiled, scratch: &Scratch) -> Hit {
        let condition = rule.conditions.first().map(|&condition| (condition, &self.conditions[condition as usize]));
        let matched = condition.and_then(|(number, shared)| {
            let (value, form) = scratch.memos[number as usize].first?;
            let bytes = scratch.seen[shared.group as usize].values.form(value as usize, form.into());
            Some(bytes[..bytes.len().min(MATCHED_MAX)].to_vec())
        });
        Hit {
            rule: rule.id.clone(),
            action: rule.action,
            severity: rule.severity,
            mitre: rule.mitre.clone(),
            protocol: rule.protocol,
            field: condition.map(|(_, shared)| self.groups[shared.group as usize].name.clone()),
            matched: matched.unwrap_or_default(),
            counts: rule.counts.clone(),
        }
    }
}

/// What rules are asked about, beside the values.
struct Asked {
    client: SocketAddr,
    server: SocketAddr,
    protocols: &'static [Protocol],
    /// Nothing more will be known.
    is_final: bool,
}

impl Memo {
    /// The memo of a transaction; what it says of an earlier one is gone.
    fn of(&mut self, stamp: u64) -> &mut Memo {
        if self.stamp != stamp {
            *self = Memo { stamp, ..Memo::default() };
        }
        self
    }

    /// A form of a value matches. Values come in their order.
    fn note(&mut self, value: usize, form: usize, resolved: u32) {
        let number = value as u32 + 1;
        if self.value != number {
            (self.value, self.forms) = (number, 0);
        }
        let is_whole = |forms: u32| resolved != 0 && forms & resolved == resolved;
        let before = is_whole(self.forms);
        self.forms |= 1 << form;
        self.whole += u32::from(!before && is_whole(self.forms));
        self.first = self.first.or(Some((value as u32, form as u8)));
    }
}

impl Part {
    fn new(default: Action) -> Part {
        Part {
            groups: Vec::new(),
            headers: HashMap::new(),
            always: Vec::new(),
            by_client: Prefixes::default(),
            by_server: Prefixes::default(),
            default,
            rules: 0,
        }
    }
}

/// Conditions and their groups, while they are gathered.
#[derive(Default)]
struct Builder {
    conditions: Vec<Shared>,
    /// How many rules have each condition.
    uses: Vec<u32>,
    known: HashMap<(Field, Form), u32>,
    groups: Vec<Group>,
    group_of: HashMap<Field, u32>,
}

impl Builder {
    /// The number of a condition; equal ones have the same.
    fn condition(&mut self, condition: &Condition) -> u32 {
        let Condition { field, matcher } = condition;
        let group = *self.group_of.entry(field.clone()).or_insert_with(|| {
            self.groups.push(Group {
                field: field.clone(),
                name: field.name(),
                exact: HashMap::new(),
                prefixes: Affixes::default(),
                suffixes: Affixes::default(),
                sets: Vec::new(),
                rules: Vec::new(),
            });
            self.groups.len() as u32 - 1
        });
        let number = *self.known.entry((field.clone(), matcher.form().clone())).or_insert_with(|| {
            let form = matcher.form().clone();
            self.conditions.push(Shared { group, form, rules: Vec::new(), may_come: false });
            self.uses.push(0);
            self.conditions.len() as u32 - 1
        });
        self.uses[number as usize] += 1;
        number
    }

    /// Keeps a rule by one of its conditions, or by its addresses.
    fn keep(&mut self, number: u32, rule: &Rule, conditions: &[u32], part: &mut Part) {
        part.rules += 1;
        let rank = |form: &Form| match form {
            Form::Exact(_) => Some(0),
            Form::Prefix(_) | Form::Suffix(_) => Some(1),
            // Without a letter in it there is nothing to look for.
            Form::Wildcard(_) => form.filter().map(|_| 2),
            Form::Regex(..) => Some(3),
        };
        let ranked = conditions.iter().filter_map(|&condition| {
            Some((self.uses[condition as usize], rank(&self.conditions[condition as usize].form)?, condition))
        });
        if let Some((_, _, condition)) = ranked.min() {
            let shared = &mut self.conditions[condition as usize];
            shared.rules.push(number);
            let group = &mut self.groups[shared.group as usize];
            group.rules.push(number);
            match &shared.form {
                Form::Exact(text) => drop(group.exact.insert(text.clone(), condition)),
                Form::Prefix(text) => group.prefixes.insert(text, condition),
                Form::Suffix(text) => group.suffixes.insert(text, condition),
                Form::Wildcard(_) | Form::Regex(..) => {}
            }
            return;
        }
        match (rule.matches.src_ip, rule.matches.dst_ip) {
            (Some(net), _) => part.by_client.insert(net, number),
            (None, Some(net)) => part.by_server.insert(net, number),
            (None, None) => part.always.push(number),
        }
    }

    /// Tells each protocol which fields its rules ask for.
    fn name_groups(&self, rules: &[&Rule], parts: &mut [Part]) {
        for rule in rules {
            let part = &mut parts[rule.protocol as usize];
            for condition in &rule.conditions {
                let group = self.group_of[&condition.field];
                match &condition.field {
                    Field::Header(name) => {
                        part.headers.insert(name.as_bytes().into(), group);
                    }
                    _ if !part.groups.contains(&group) => part.groups.push(group),
                    _ => {}
                }
            }
        }
    }
}

/// Distributes patterns over sets by their texts, and sorts them there.
fn into_sets(mut filters: Vec<(String, bool, u32)>) -> impl Iterator<Item = (Vec<(String, bool)>, Vec<u32>)> {
    let count = filters.len().div_ceil(SET_PATTERNS).next_power_of_two();
    let set_of = |text: &str| {
        // Always the same, unlike that of a hash table.
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        hasher.finish() as usize & (count - 1)
    };
    filters.sort_unstable();
    let mut sets = vec![(Vec::new(), Vec::new()); count];
    for (text, is_caseless, condition) in filters {
        let (sources, conditions) = &mut sets[set_of(&text)];
        sources.push((text, is_caseless));
        conditions.push(condition);
    }
    sets.into_iter().filter(|(sources, _)| !sources.is_empty())
}

/// Compiles patterns; ids are their places.
fn compile_set(sources: &[(String, bool)]) -> Result<Patterns, PatternError> {
    let patterns = (0..).zip(sources);
    let patterns =
        patterns.map(|(id, (expression, is_caseless))| Pattern { expression, is_caseless: *is_caseless, id });
    Patterns::compile(&patterns.collect::<Vec<_>>())
}

/// An IPv4 address in IPv6 clothing is the IPv4 address.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn is_between(matches: &Match, client: SocketAddr, server: SocketAddr) -> bool {
    let is_in = |net: Option<IpNet>, address: SocketAddr| net.is_none_or(|net| net.contains(&address.ip()));
    is_in(matches.src_ip, client)
        && is_in(matches.dst_ip, server)
        && matches.src_port.is_none_or(|ports| ports.contains(client.port()))
        && matches.dst_port.is_none_or(|ports| ports.contains(server.port()))
}

/// Which transactions of one flow are decided already: each is decided once.
#[derive(Clone, Debug, Default)]
pub struct Decided {
    /// Numbers of those that are not done, ascending.
    transactions: Vec<u32>,
}

impl Decided {
    /// Judges a transaction of the flow, unless that was decided at an earlier stage of it. A hit is told once.
    pub fn judge(&mut self, judge: &Judge, scratch: &mut Scratch, flow: &Flow, told: &Told) -> Option<Hit> {
        let is_done = told.stage == Stage::Done;
        match (self.transactions.binary_search(&told.tx), is_done) {
            (Ok(place), true) => {
                self.transactions.remove(place);
                None
            }
            (Ok(_), false) => None,
            (Err(place), _) => match judge.judge(scratch, flow, told) {
                Judgement::Later => None,
                Judgement::Final(hit) => {
                    if !is_done {
                        self.transactions.insert(place, told.tx);
                    }
                    if self.transactions.len() > DECIDED_MAX {
                        self.transactions.remove(0);
                    }
                    hit
                }
            },
        }
    }
}
