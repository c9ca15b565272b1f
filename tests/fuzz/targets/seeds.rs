//! What each target begins with: captures, recorded conversations, configurations and rules of the tree, written as the
//! target reads them.

use std::cell::RefCell;
use std::fs;
use std::mem;
use std::path::Path;

use ebpfsentinel::abi::{bytes_of, ids_record};
use ebpfsentinel::flow::{
    Anomaly, Direction, EndReason, Flow, Inspector, Limits, Link, PacketMeta, Protocols, Reaction, Watcher,
};
use ebpfsentinel::packet::proto::{AppProto, Out, Parser, Side, Told, detect};
use ebpfsentinel::replay::capture::Capture;

/// What one side said at once.
type Piece = (Side, Vec<u8>);

const RULES: [&[u8]; 3] = [
    br#"{"id":"a","priority":1,"action":"deny","protocol":"http","path":"/a*","header":{"X-a":"~b+"},"severity":"low"}"#,
    br#"[{"id":"b","priority":2,"action":"allow","protocol":"tcp","src_ip":"10.0.0.0/8","dst_port":"80-443"}]"#,
    br#"{"id":"c","priority":3,"rate":"1.5M","burst":9,"unit":"packets","scope":"per_ip","action":"block"}"#,
];

/// The first byte says how case counts and whether it is a regular expression, the second how long the text is.
const PATTERNS: [(u8, &str, &str); 8] = [
    (0x80, r"(?i)^/\.(git|env|ht[a-z]+)(/|\z)", "/.git/config"),
    (0x80, r"(a|b){2,40}?[^[:alpha:]\]]{3}\Q.{9}\E\x{41}", "abab123.{9}A"),
    (0x81, r"nikto|sqlmap|(?-i:x)+\bz$", "Nikto"),
    (0x80, r"(?<name>(?:x*y+)*){1,9}\p{L}\d", "xyyxy"),
    (0, "/admin*", "/admin/x"),
    (1, "*.tracker.example", "a.tracker.example"),
    (2, "www.*.exam?le*x.", "www.a.example.x"),
    (0, "=*literal*", "*literal*"),
];

/// Files of a folder of the tree, in order.
fn files(folder: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// A step of a conversation: who says it, so many bytes times a power of two, and they.
fn steps(pieces: &[Piece], kind_of: impl Fn(usize) -> u8) -> Vec<u8> {
    let mut steps = Vec::new();
    for (side, bytes) in pieces {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let shift = if rest.len() < 8 { 0 } else { 3 };
            let units = (rest.len() >> shift).min(255);
            let (now, behind) = rest.split_at(units << shift);
            steps.extend([*side as u8 | shift << 1 | kind_of(steps.len()), units as u8]);
            steps.extend(now);
            rest = behind;
        }
    }
    steps
}

/// The conversations of tests/data/handshakes, without what says which protocol they are: of each piece its side, its
/// length in four bytes, and itself.
fn handshakes(root: &Path) -> Vec<Vec<Piece>> {
    let mut conversations = Vec::new();
    for file in files(&root.join("tests/data/handshakes")) {
        let (mut pieces, mut rest) = (Vec::new(), &file[..]);
        while let [side @ (0 | 1), a, b, c, d, behind @ ..] = rest {
            let (piece, behind) = behind.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
            pieces.push((Side::BOTH[usize::from(*side)], piece.to_vec()));
            rest = behind;
        }
        if !pieces.is_empty() {
            conversations.push(pieces);
        }
    }
    conversations
}

/// The frames of each capture of tests/data/captures, with their link layers.
fn captures(root: &Path) -> Vec<Vec<(Link, Vec<u8>)>> {
    let read = |file: Vec<u8>| {
        let mut capture = Capture::open(&file[..]).expect("it is a capture");
        let mut frames = Vec::new();
        while let Some(frame) = capture.next_frame() {
            frames.push((frame.link, frame.bytes.to_vec()));
        }
        frames
    };
    files(&root.join("tests/data/captures")).into_iter().map(read).collect()
}

thread_local! {
    static RECORDED: RefCell<Vec<(AppProto, Vec<Piece>)>> = const { RefCell::new(Vec::new()) };
}

/// A parser that keeps what it is given.
struct Recorder(AppProto, Vec<Piece>);

impl Parser for Recorder {
    fn take(&mut self, side: Side, bytes: &[u8], _out: &mut Out) {
        self.1.push((side, bytes.to_vec()));
    }

    fn skip(&mut self, _side: Side, _missing: u64, _out: &mut Out) {}

    fn end(&mut self, _side: Side, _out: &mut Out) {}

    fn memory(&self) -> usize {
        0
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        RECORDED.with_borrow_mut(|recorded| recorded.push((self.0, mem::take(&mut self.1))));
    }
}

struct Nobody;

impl Watcher for Nobody {
    fn transaction(&mut self, _flow: &Flow, _time_ns: u64, _told: &Told) -> Reaction {
        Reaction::GoOn
    }

    fn anomaly(&mut self, _flow: Option<&Flow>, _anomaly: &Anomaly) {}

    fn ended(&mut self, _flow: &Flow, _why: EndReason) {}
}

/// What the captures' hosts said, and by which protocol.
fn conversations(root: &Path) -> Vec<(AppProto, Vec<Piece>)> {
    let record: fn(AppProto) -> Option<Box<dyn Parser>> =
        |protocol| Some(Box::new(Recorder(protocol, Vec::new())) as Box<dyn Parser>);
    let protocols = Protocols { detect: detect::detect, parser_for: record, datagram_parser_for: record };
    for frames in captures(root) {
        let mut inspector = Inspector::with_protocols(Limits::default(), 7, protocols);
        for (time_ns, (link, frame)) in (1..).zip(frames) {
            let direction = Direction::Ingress;
            let (socket_cookie, cgroup_id, unseen) = (0, 0, (0, 0));
            let meta = PacketMeta { time_ns, ifindex: 1, direction, vlans: [0; 2], socket_cookie, cgroup_id, unseen };
            inspector.packet(link, &meta, &frame, &mut Nobody);
        }
        inspector.finish(&mut Nobody);
    }
    let recorded = RECORDED.with_borrow_mut(mem::take);
    assert!(!recorded.is_empty(), "no capture holds a conversation");
    recorded
}

/// Each conversation, read by each protocol: only one is right, which costs nothing to find out.
fn conversation_seeds(root: &Path) -> Vec<Vec<u8>> {
    let from_captures = conversations(root).into_iter().map(|(protocol, pieces)| (Some(protocol), pieces));
    let from_handshakes = handshakes(root).into_iter().map(|pieces| (None, pieces));
    let mut seeds = Vec::new();
    for (protocol, pieces) in from_captures.chain(from_handshakes) {
        let steps = steps(&pieces, |_| 0);
        for (choice, one) in AppProto::ALL.iter().enumerate() {
            if protocol.is_none_or(|protocol| protocol == *one) {
                seeds.push([&[choice as u8, 7][..], &steps].concat());
            }
        }
        if protocol == Some(AppProto::Dns) {
            seeds.push([&[AppProto::ALL.len() as u8, 7][..], &steps].concat());
        }
    }
    seeds
}

/// Hellos of the recorded handshakes as frames that carry parts of them, out of order.
fn quic_seeds(root: &Path) -> Vec<Vec<u8>> {
    let crypto = |offset: usize, data: &[u8]| {
        let number = |number: usize| (0x8000_0000 | number as u32).to_be_bytes();
        [&[6][..], &number(offset), &number(data.len()), data].concat()
    };
    let mut seeds = Vec::new();
    for pieces in handshakes(root) {
        let mut seed = Vec::new();
        for (side, record) in pieces.iter().take(2).filter(|(_, bytes)| bytes.starts_with(&[0x16, 3])) {
            let message = &record[5..];
            let (front, back) = message.split_at(message.len().min(900) / 2);
            let back = &back[..back.len().min(900)];
            for frames in [crypto(front.len(), back), crypto(0, front)] {
                let padded = [&frames[..], &[0; 8][..7 - (frames.len() + 7) % 8]].concat();
                seed.extend(steps(&[(*side, padded)], |_| 0));
            }
        }
        if !seed.is_empty() {
            seeds.push(seed);
        }
    }
    seeds
}

fn packets_seeds(root: &Path) -> Vec<Vec<u8>> {
    let links = [Link::Ethernet, Link::Raw, Link::Null, Link::Sll, Link::Sll2, Link::Ppp];
    let mut seeds = Vec::new();
    for (frames, choice) in captures(root).iter().flat_map(|frames| [(frames, 0), (frames, 0x15)]) {
        let mut seed = vec![choice];
        for (link, frame) in frames {
            let kind = links.iter().position(|one| one == link).expect("all are there");
            seed.extend([kind as u8, 20]);
            seed.extend((frame.len() as u16).to_le_bytes());
            seed.extend(frame);
        }
        seeds.push(seed);
    }
    seeds
}

fn record_seeds(root: &Path) -> Vec<Vec<u8>> {
    let frames = captures(root).into_iter().flatten().step_by(5);
    let record = |(_, frame): (Link, Vec<u8>)| {
        let length = frame.len() as u32;
        let head = ids_record { boot_ns: 1, ifindex: 1, length, copied: length, ..ids_record::default() };
        [bytes_of(&head), &frame].concat()
    };
    frames.map(record).collect()
}

fn pattern_seeds() -> Vec<Vec<u8>> {
    let seed = |(choice, text, value): (u8, &str, &str)| {
        [&[choice, text.len() as u8][..], text.as_bytes(), value.as_bytes()].concat()
    };
    PATTERNS.map(seed).to_vec()
}

/// Tokens with headers of all kinds, and sets of keys.
const TOKENS: [&str; 6] = [
    // {"alg":"RS256","kid":"a"}, {"alg":"EdDSA","typ":"JWT"}, {"alg":"ES256","crit":["b64"]}, {"alg":"none"}
    "eyJhbGciOiJSUzI1NiIsImtpZCI6ImEifQ.eyJzdWIiOiJhIiwicm9sZSI6ImFkbWluIiwiZXhwIjo5OTk5OTk5OTk5fQ.AAAA",
    "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhIiwiYXVkIjpbImEiXSwibmJmIjoxZTN9.AAAAAAAAAAAAAAAAAAAAAAAA",
    "eyJhbGciOiJFUzI1NiIsImNyaXQiOlsiYjY0Il19.e30.AA",
    "eyJhbGciOiJub25lIn0.e30.",
    concat!(
        r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"a","use":"sig","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","#,
        r#""y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#
    ),
    concat!(
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"b","alg":"EdDSA","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},"#,
        r#"{"kty":"RSA","kid":"c","n":"AQAB","e":"AQAB"}]}"#
    ),
];

/// The seeds of a target; `root` is the tree.
pub fn of(target: &str, root: &Path) -> Vec<Vec<u8>> {
    match target {
        "capture" | "replay" => files(&root.join("tests/data/captures")),
        "config" => {
            [files(&root.join("conf")), files(&root.join("conf/examples")), files(&root.join("tests/data/bad_configs"))]
                .concat()
        }
        "conversation" => conversation_seeds(root),
        "packets" => packets_seeds(root),
        "patterns" => pattern_seeds(),
        "quic" => quic_seeds(root),
        "record" => record_seeds(root),
        "rule_json" => RULES.map(<[u8]>::to_vec).to_vec(),
        "segments" => {
            let conversations = conversations(root).into_iter().map(|(_, pieces)| pieces).chain(handshakes(root));
            let seed = |pieces: Vec<Piece>| [&[2; 9][..], &steps(&pieces, |at| (at as u8) << 3)].concat();
            conversations.map(seed).collect()
        }
        "token" => TOKENS.map(|text| text.as_bytes().to_vec()).to_vec(),
        other => panic!("there is no target {other}"),
    }
}
