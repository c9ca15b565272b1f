//! What is asked of an alert, in 80 bytes: several hundred of them make a block, and each block has a summary.
//!
//! A question goes over the summaries, which are few, then over the blocks that may have an answer, and reads only those
//! alerts that it shows. A million alerts are 1250 blocks. Writing costs one more record for each commit, not one for each
//! index and alert, and a flood of forged sources makes no difference to it.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::Moment;
use crate::alert::{Alert, Severity};
use crate::component::Component;

/// Rows of a block. With their length a block stays below the 64 KiB that redb takes for it.
pub const ROWS_MAX: usize = 800;
const ROW_BYTES: usize = 80;
const BLOOM_BYTES: usize = 4096;
const COUNTS: usize = 16 * 4;
const SUMMARY_BYTES: usize = 44 + 2 * COUNTS + BLOOM_BYTES;

const HAS_SRC: u8 = 1;
const HAS_DST: u8 = 2;
const MARKED: u8 = 4;

/// A component as files know it: these numbers never change.
const fn code(component: Component) -> u8 {
    match component {
        Component::Firewall => 1,
        Component::Ratelimit => 2,
        Component::Ids => 3,
        Component::L7 => 4,
    }
}

fn hash(bytes: &[u8]) -> u64 {
    // FNV-1a, and a finish that spreads it over all bits. Files hold it, so it never changes.
    let mut hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// IPv4 addresses as IPv6 maps them.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// What is asked of an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its id.
    pub id: u128,
    src: u128,
    dst: u128,
    rule: u64,
    /// When it first happened.
    pub first_ns: u64,
    /// When it last happened.
    pub last_ns: u64,
    severity: u8,
    component: u8,
    flags: u8,
}

impl Row {
    /// The row of an alert that nobody has marked.
    pub fn new(alert: &Alert) -> Row {
        let flag = |address: Option<IpAddr>, flag| if address.is_some() { flag } else { 0 };
        Row {
            id: alert.id.0.as_u128(),
            src: alert.src_ip.map(bits).unwrap_or_default(),
            dst: alert.dst_ip.map(bits).unwrap_or_default(),
            rule: hash(alert.rule_id.as_bytes()),
            first_ns: alert.first_seen_ns,
            last_ns: alert.last_seen_ns,
            severity: alert.severity as u8,
            component: code(alert.component),
            flags: flag(alert.src_ip, HAS_SRC) | flag(alert.dst_ip, HAS_DST),
        }
    }

    /// The row of an alert as it is kept, that nobody has marked; `None` where that is no alert.
    pub fn of_document(id: u128, document: &Value) -> Option<Row> {
        let address = |name: &str| match &document[name] {
            Value::Null => Some(None),
            value => Some(Some(value.as_str()?.parse::<IpAddr>().ok()?)),
        };
        let time = |name: &str| Some(document[name].as_str()?.parse::<Moment>().ok()?.0);
        let component: Component = serde_json::from_value(document["component"].clone()).ok()?;
        let (src, dst) = (address("src_ip")?, address("dst_ip")?);
        let flag = |address: Option<IpAddr>, flag| if address.is_some() { flag } else { 0 };
        Some(Row {
            id,
            src: src.map(bits).unwrap_or_default(),
            dst: dst.map(bits).unwrap_or_default(),
            rule: hash(document["rule_id"].as_str()?.as_bytes()),
            first_ns: time("first_seen")?,
            last_ns: time("last_seen")?,
            severity: document["severity"].as_str()?.parse::<Severity>().ok()? as u8,
            component: code(component),
            flags: flag(src, HAS_SRC) | flag(dst, HAS_DST),
        })
    }

    /// Whether it is marked as a false positive.
    pub fn is_marked(&self) -> bool {
        self.flags & MARKED != 0
    }

    /// Marks it, or takes the mark away.
    pub fn set_marked(&mut self, marked: bool) {
        self.flags = if marked { self.flags | MARKED } else { self.flags & !MARKED };
    }

    fn addresses(&self) -> impl Iterator<Item = u128> {
        let has = |flag, address| (self.flags & flag != 0).then_some(address);
        [has(HAS_SRC, self.src), has(HAS_DST, self.dst)].into_iter().flatten()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        for wide in [self.id, self.src, self.dst] {
            out.extend(wide.to_be_bytes());
        }
        for number in [self.rule, self.first_ns, self.last_ns] {
            out.extend(number.to_be_bytes());
        }
        out.extend([self.severity, self.component, self.flags, 0, 0, 0, 0, 0]);
    }

    fn decode(bytes: &[u8; ROW_BYTES]) -> Row {
        let wide = |at: usize| u128::from_be_bytes(bytes[at..at + 16].try_into().expect("16 bytes"));
        let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        Row {
            id: wide(0),
            src: wide(16),
            dst: wide(32),
            rule: number(48),
            first_ns: number(56),
            last_ns: number(64),
            severity: bytes[72],
            component: bytes[73],
            flags: bytes[74],
        }
    }
}

/// Rows in the order of their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    rows: Vec<Row>,
}

impl Block {
    /// Its rows.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The row of this id.
    pub fn get_mut(&mut self, id: u128) -> Option<&mut Row> {
        let at = self.rows.binary_search_by_key(&id, |row| row.id).ok()?;
        Some(&mut self.rows[at])
    }

    /// Puts a row in its place, in that of the row with the same id if there is one, whose mark it keeps. True if there was
    /// none. A block that has become too large gives its upper part away: that is the other answer.
    pub fn put(&mut self, mut row: Row) -> (bool, Option<Block>) {
        match self.rows.binary_search_by_key(&row.id, |row| row.id) {
            Ok(at) => {
                row.set_marked(self.rows[at].is_marked());
                self.rows[at] = row;
                (false, None)
            }
            // Time goes on: the next one goes into a block of its own, and this one stays full.
            Err(at) if at == ROWS_MAX => (true, Some(Block { rows: vec![row] })),
            Err(at) => {
                self.rows.insert(at, row);
                let upper = (self.rows.len() > ROWS_MAX).then(|| Block { rows: self.rows.split_off(ROWS_MAX / 2) });
                (true, upper)
            }
        }
    }

    /// Removes rows; the answer is their ids.
    pub fn remove(&mut self, mut is_over: impl FnMut(&Row) -> bool) -> Vec<u128> {
        let mut removed = Vec::new();
        self.rows.retain(|row| {
            let over = is_over(row);
            if over {
                removed.push(row.id);
            }
            !over
        });
        removed
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.rows.len() * ROW_BYTES);
        self.rows.iter().for_each(|row| row.encode(&mut bytes));
        bytes
    }

    /// From bytes; `None` where they are none of a block.
    pub fn decode(bytes: &[u8]) -> Option<Block> {
        Some(Block { rows: rows(bytes)?.collect() })
    }

    /// What it holds, for who would rather not look.
    pub fn summary(&self) -> Summary {
        let mut summary = Summary {
            last_id: self.rows.last().map_or(0, |row| row.id),
            min_first_ns: u64::MAX,
            max_last_ns: 0,
            min_last_ns: u64::MAX,
            counts: [0; COUNTS],
            marked: 0,
            bloom: vec![0; BLOOM_BYTES],
        };
        for row in &self.rows {
            summary.min_first_ns = summary.min_first_ns.min(row.first_ns);
            summary.max_last_ns = summary.max_last_ns.max(row.last_ns);
            summary.min_last_ns = summary.min_last_ns.min(row.last_ns);
            summary.counts[usize::from(row.component & 15) * 4 + usize::from(row.severity & 3)] += 1;
            summary.marked += u32::from(row.is_marked());
            summary.set(row.rule);
            row.addresses().for_each(|address| summary.set(hash(&address.to_be_bytes())));
        }
        summary
    }
}

/// The rows of a block's bytes, the oldest first; `None` where they are none of a block.
pub fn rows(bytes: &[u8]) -> Option<impl DoubleEndedIterator<Item = Row>> {
    let (rows, rest) = bytes.as_chunks::<ROW_BYTES>();
    rest.is_empty().then(|| rows.iter().map(Row::decode))
}

/// What a block holds, so that most questions need not look into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The greatest id.
    pub last_id: u128,
    min_first_ns: u64,
    max_last_ns: u64,
    /// The earliest time at which one of its alerts last happened.
    pub min_last_ns: u64,
    /// Alerts by component and severity.
    counts: [u16; COUNTS],
    marked: u32,
    /// A Bloom filter of rules and addresses.
    bloom: Vec<u8>,
}

impl Summary {
    fn places(key: u64) -> impl Iterator<Item = usize> {
        let (first, step) = (key as u32, (key >> 32) as u32 | 1);
        (0..4u32).map(move |n| first.wrapping_add(n.wrapping_mul(step)) as usize % (BLOOM_BYTES * 8))
    }

    fn set(&mut self, key: u64) {
        Summary::places(key).for_each(|place| self.bloom[place / 8] |= 1 << (place % 8));
    }

    fn may_have(&self, key: u64) -> bool {
        Summary::places(key).all(|place| self.bloom[place / 8] & (1 << (place % 8)) != 0)
    }

    /// Alerts in the block.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|&count| u64::from(count)).sum()
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SUMMARY_BYTES);
        bytes.extend(self.last_id.to_be_bytes());
        for number in [self.min_first_ns, self.max_last_ns, self.min_last_ns] {
            bytes.extend(number.to_be_bytes());
        }
        self.counts.iter().for_each(|count| bytes.extend(count.to_be_bytes()));
        bytes.extend(self.marked.to_be_bytes());
        bytes.extend(&self.bloom);
        bytes
    }

    /// From bytes; `None` where they are none of a summary.
    pub fn decode(bytes: &[u8]) -> Option<Summary> {
        let (last_id, rest) = bytes.split_first_chunk()?;
        let (min_first_ns, rest) = rest.split_first_chunk()?;
        let (max_last_ns, rest) = rest.split_first_chunk()?;
        let (min_last_ns, rest) = rest.split_first_chunk()?;
        let (counted, rest) = rest.split_at_checked(2 * COUNTS)?;
        let (marked, bloom) = rest.split_first_chunk()?;
        let mut counts = [0; COUNTS];
        for (count, bytes) in counts.iter_mut().zip(counted.as_chunks().0) {
            *count = u16::from_be_bytes(*bytes);
        }
        (bloom.len() == BLOOM_BYTES).then(|| Summary {
            last_id: u128::from_be_bytes(*last_id),
            min_first_ns: u64::from_be_bytes(*min_first_ns),
            max_last_ns: u64::from_be_bytes(*max_last_ns),
            min_last_ns: u64::from_be_bytes(*min_last_ns),
            counts,
            marked: u32::from_be_bytes(*marked),
            bloom: bloom.to_vec(),
        })
    }
}

/// Which alerts are wanted, as far as rows can tell.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// That last happened at this time or later, in nanoseconds since 1970.
    pub from_ns: Option<u64>,
    /// That first happened before this time.
    pub to_ns: Option<u64>,
    /// Of this component.
    pub component: Option<Component>,
    /// From this severity on.
    pub min_severity: Option<Severity>,
    /// Marked as a false positive, or not.
    pub marked: Option<bool>,
    /// With a lower id than this.
    pub before: Option<u128>,
    /// See [`Wanted::of_rule`].
    pub(super) rule: Option<u64>,
    /// See [`Wanted::of_network`].
    pub(super) address: Option<Addresses>,
}

/// A network, IPv4 as IPv6 maps it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    net: u128,
    prefix: u32,
    is_v4: bool,
}

impl Addresses {
    fn holds(&self, address: u128) -> bool {
        let is_v4 = address >> 32 == 0xffff;
        is_v4 == self.is_v4 && (self.prefix == 0 || (address ^ self.net) >> (128 - self.prefix) == 0)
    }
}

impl Wanted {
    /// Only of this rule.
    pub fn of_rule(mut self, rule_id: &str) -> Wanted {
        self.rule = Some(hash(rule_id.as_bytes()));
        self
    }

    /// Only with an address of this network on either side.
    pub fn of_network(mut self, network: IpNet) -> Wanted {
        let net = bits(network.network());
        let is_v4 = net >> 32 == 0xffff;
        let mapped = if matches!(network, IpNet::V4(_)) { 96 } else { 0 };
        self.address = Some(Addresses { net, prefix: u32::from(network.prefix_len()) + mapped, is_v4 });
        self
    }

    /// Whether a block with this summary may hold one.
    pub fn may_be_in(&self, summary: &Summary) -> bool {
        self.from_ns.is_none_or(|from| summary.max_last_ns >= from)
            && self.to_ns.is_none_or(|to| summary.min_first_ns < to)
            && self.marked.is_none_or(|marked| {
                if marked { summary.marked > 0 } else { u64::from(summary.marked) < summary.count() }
            })
            && self.rule.is_none_or(|rule| summary.may_have(rule))
            && self.address.is_none_or(|of| of.prefix < 128 || summary.may_have(hash(&of.net.to_be_bytes())))
            && self.count_by_kind(summary) > 0
    }

    fn count_by_kind(&self, summary: &Summary) -> u64 {
        let component = |at: usize| self.component.is_none_or(|wanted| at / 4 == usize::from(code(wanted)));
        let severity = |at: usize| self.min_severity.is_none_or(|least| at % 4 >= least as usize);
        let counts = summary.counts.iter().enumerate();
        counts.filter(|(at, _)| component(*at) && severity(*at)).map(|(_, &count)| u64::from(count)).sum()
    }

    /// How many a block holds, if its summary tells.
    pub fn count_in(&self, summary: &Summary) -> Option<u64> {
        let is_inside = self.from_ns.is_none_or(|from| summary.min_last_ns >= from)
            // The latest beginning is not kept; the latest end is not before it.
            && self.to_ns.is_none_or(|to| summary.max_last_ns < to)
            && self.before.is_none_or(|before| summary.last_id < before);
        let tells = self.marked.is_none() && self.rule.is_none() && self.address.is_none();
        (is_inside && tells).then(|| self.count_by_kind(summary))
    }

    /// Whether it is one.
    pub fn fits(&self, row: &Row) -> bool {
        self.before.is_none_or(|before| row.id < before)
            && self.from_ns.is_none_or(|from| row.last_ns >= from)
            && self.to_ns.is_none_or(|to| row.first_ns < to)
            && self.component.is_none_or(|component| row.component == code(component))
            && self.min_severity.is_none_or(|least| row.severity >= least as u8)
            && self.marked.is_none_or(|marked| row.is_marked() == marked)
            && self.rule.is_none_or(|rule| row.rule == rule)
            && self.address.is_none_or(|of| row.addresses().any(|address| of.holds(address)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: u128) -> Row {
        let mut alert =
            Alert::new(Component::L7, Severity::High, format!("r{}", id % 7), "deny", 1000 + id as u64, "m");
        alert.src_ip = Some(format!("198.51.100.{}", id % 200).parse().unwrap());
        alert.dst_ip = Some("2001:db8::1".parse().unwrap());
        Row { id, ..Row::new(&alert) }
    }

    fn wanted() -> Wanted {
        Wanted::default()
    }

    #[test]
    fn blocks_and_summaries_are_read_back() {
        let mut block = Block::default();
        (0..500).for_each(|id| drop(block.put(row(id * 2))));
        block.get_mut(10).unwrap().set_marked(true);
        assert_eq!(Block::decode(&block.encode()), Some(block.clone()));
        let summary = block.summary();
        assert_eq!(Summary::decode(&summary.encode()), Some(summary.clone()));
        assert_eq!((summary.count(), summary.marked, summary.last_id), (500, 1, 998));
        let bytes = summary.encode();
        for length in 0..bytes.len() {
            assert_eq!(Summary::decode(&bytes[..length]), None);
        }
        assert_eq!(Block::decode(&[0; 81]), None);
        const { assert!(ROWS_MAX * ROW_BYTES < 65_536 - 64) };
    }

    #[test]
    fn rows_find_their_place_and_a_full_block_parts() {
        let mut block = Block::default();
        for id in 0..ROWS_MAX as u128 {
            assert_eq!(block.put(row(id * 2)), (true, None));
        }
        // At the end: one of its own. In the middle: halves.
        let (new, upper) = block.put(row(5000));
        assert!(new && upper.unwrap().rows() == [row(5000)] && block.rows().len() == ROWS_MAX);
        let (new, upper) = block.put(row(3));
        let upper = upper.unwrap();
        assert!(new && block.rows().len() == ROWS_MAX / 2 && upper.rows().len() == ROWS_MAX / 2 + 1);
        assert!(block.rows().last().unwrap().id < upper.rows()[0].id);
        // An update keeps the mark.
        block.get_mut(4).unwrap().set_marked(true);
        let (new, _) = block.put(Row { last_ns: 9_999_999, ..row(4) });
        let row = block.get_mut(4).unwrap();
        assert!(!new && row.is_marked() && row.last_ns == 9_999_999);
        assert_eq!(block.remove(|row| row.id < 5), [0, 2, 3, 4]);
    }

    #[test]
    fn an_alert_as_it_is_kept_has_the_same_row() {
        let mut alert = Alert::new(Component::L7, Severity::Critical, "r", "deny", 1_764_000_000_123_456_789, "m");
        for address in [None, Some("198.51.100.7"), Some("2001:db8::7")] {
            alert.src_ip = address.map(|text| text.parse().unwrap());
            alert.last_seen_ns += 1_000_000_007;
            let row = Row::new(&alert);
            let mut document = serde_json::to_value(&alert).unwrap();
            assert_eq!(Row::of_document(row.id, &document), Some(row));
            document["severity"] = "urgent".into();
            assert_eq!(Row::of_document(row.id, &document), None);
        }
        assert_eq!(Row::of_document(1, &Value::Null), None);
    }

    #[test]
    fn a_question_fits_rows_and_never_passes_a_block_that_has_one() {
        let mut block = Block::default();
        (0..700).for_each(|id| drop(block.put(row(id))));
        let summary = block.summary();
        let net = |text: &str| wanted().of_network(text.parse().unwrap());
        let count = |wanted: &Wanted| block.rows().iter().filter(|row| wanted.fits(row)).count();
        for (wanted, want) in [
            (wanted(), 700),
            (wanted().of_rule("r3"), 100),
            (wanted().of_rule("r7"), 0),
            (net("198.51.100.7/32"), 4),
            (net("198.51.100.0/30"), 16),
            (net("198.51.101.7/32"), 0),
            (net("2001:db8::1/128"), 700),
            (net("2001:db8::/32"), 700),
            (net("0.0.0.0/0"), 700),
            (net("::/0"), 700),
            (net("::/96"), 0),
            (Wanted { component: Some(Component::L7), ..wanted() }, 700),
            (Wanted { component: Some(Component::Ids), ..wanted() }, 0),
            (Wanted { min_severity: Some(Severity::High), ..wanted() }, 700),
            (Wanted { min_severity: Some(Severity::Critical), ..wanted() }, 0),
            (Wanted { marked: Some(true), ..wanted() }, 0),
            (Wanted { marked: Some(false), ..wanted() }, 700),
            (Wanted { from_ns: Some(1690), ..wanted() }, 10),
            (Wanted { to_ns: Some(1010), ..wanted() }, 10),
            (Wanted { from_ns: Some(1700), ..wanted() }, 0),
            (Wanted { to_ns: Some(1000), ..wanted() }, 0),
            (Wanted { before: Some(5), ..wanted() }, 5),
        ] {
            assert_eq!(count(&wanted), want, "{wanted:?}");
            assert!(want == 0 || wanted.may_be_in(&summary), "{wanted:?}");
            if let Some(counted) = wanted.count_in(&summary) {
                assert_eq!(counted, want as u64, "{wanted:?}");
            }
        }
        assert!(!Wanted { component: Some(Component::Ids), ..wanted() }.may_be_in(&summary));
        // The filter lets about one in a hundred through for nothing.
        let passed = (0..2000).filter(|n| wanted().of_rule(&format!("absent-{n}")).may_be_in(&summary)).count();
        assert!(passed < 100, "{passed} of 2000");
    }

    proptest::proptest! {
        /// A file may say anything.
        #[test]
        fn any_bytes_are_a_block_or_none(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..5000)) {
            let whole = bytes.len() / ROW_BYTES * ROW_BYTES;
            assert_eq!(Block::decode(&bytes).is_some(), whole == bytes.len());
            if let Some(mut block) = Block::decode(&bytes[..whole]) {
                assert_eq!(block.rows().len() * ROW_BYTES, whole);
                drop(block.summary());
                drop(block.put(row(5)));
                block.get_mut(7);
                drop(block.remove(|row| wanted().of_rule("r1").fits(row)));
            }
            let summary = Summary::decode(&bytes[..bytes.len().min(SUMMARY_BYTES)]);
            assert_eq!(summary.is_some(), bytes.len() >= SUMMARY_BYTES);
            if let Some(summary) = summary {
                wanted().may_be_in(&summary);
                wanted().count_in(&summary);
            }
        }
    }
}
