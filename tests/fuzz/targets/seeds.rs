//! What each target begins with: captures, recorded conversations, configurations and rules of the tree, written as the
//! target reads them.

use std::cell::RefCell;
use std::fs;
use std::mem;
use std::path::Path;

use ebpfsentinel::abi::{bytes_of, ids_record};
use ebpfsentinel::alert::{Alert, AlertId, Severity};
use ebpfsentinel::component::Component;
use ebpfsentinel::flow::{
    Anomaly, Direction, EndReason, Flow, Inspector, Limits, Link, PacketMeta, Protocols, Reaction, Watcher,
};
use ebpfsentinel::packet::proto::{AppProto, Out, Parser, Side, Told, detect};
use ebpfsentinel::replay::capture::Capture;
use ebpfsentinel::store::block::{Block, Row};

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
    let (detect, begins) = (detect::detect, detect::begins);
    let protocols = Protocols { detect, begins, parser_for: record, datagram_parser_for: record };
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

const VARIABLES: [&str; 2] = [
    "EBPFSENTINEL_AGENT_LOG_LEVEL=debug\nEBPFSENTINEL_PORT=9\nEBPFSENTINEL_AGENT_HOST_NAMES=a,b",
    "EBPFSENTINEL_AGENT_LOGLEVEL=x\nEBPFSENTINEL_HOST=::1\nEBPFSENTINEL_AGENT_BIND_ADDRESS=::1",
];

/// Requests of each kind of operation; `|` is a line's end, and before a body stands its length.
const REQUESTS: [(&str, &str); 16] = [
    ("GET /healthz HTTP/1.0|Host: localhost", ""),
    (
        "GET /api/v1/agent/status HTTP/1.1|Host: 127.0.0.1:8080|X-API-Key: the-key-of-a-viewer-0|Connection: keep-alive",
        "",
    ),
    (
        "POST /api/v1/firewall/rules HTTP/1.1|Host: localhost|Authorization: Bearer the-key-of-the-admin",
        r#"{"id":"a","priority":1,"action":"deny","protocol":"tcp","src_ip":"10.0.0.0/8","dst_port":"80-443"}"#,
    ),
    (
        "POST /api/v1/firewall/rules?confirm_secs=60 HTTP/1.1|Host: [::1]|X-API-Key: the-key-of-the-admin",
        r#"[{"id":"b","priority":2,"action":"allow","dst_ip":"2001:db8::/32","enabled":false,"namespace":"prod"}]"#,
    ),
    (
        "POST /api/v1/ratelimit/rules HTTP/1.1|Host: localhost|X-API-Key: the-key-of-an-operator",
        r#"{"id":"c","priority":3,"rate":"1.5M","burst":9,"unit":"packets","scope":"per_ip","namespace":"prod"}"#,
    ),
    (
        "POST /api/v1/firewall/l7-rules HTTP/1.1|Host: localhost|X-API-Key: the-key-of-the-admin|Expect: 100-continue",
        r#"{"id":"d","priority":1,"action":"deny","protocol":"http","path":"~^/a+","header":{"X-a":"~b+"}}"#,
    ),
    (
        "PUT /api/v1/firewall/rules/a%20b HTTP/1.1|Host: localhost|X-API-Key: the-key-of-the-admin",
        r#"{"id":"a b","priority":1,"action":"log"}"#,
    ),
    ("DELETE /api/v1/ratelimit/rules/c?confirm_secs=1 HTTP/1.1|Host: localhost|X-API-Key: the-key-of-the-admin", ""),
    (
        "POST /api/v1/explain HTTP/1.1|Host: localhost|X-API-Key: the-key-of-a-viewer-0",
        r#"{"src_ip":"10.0.0.1","dst_ip":"10.0.0.2","protocol":"tcp","dst_port":80,"tcp_flags":"SA","vlan_id":7}"#,
    ),
    (
        "POST /api/v1/alerts/019ad3c1-5b7e-7c40-9c1e-6f2f1d0a4b33/false-positive HTTP/1.1|Host: localhost|\
         X-API-Key: the-key-of-the-admin",
        r#"{"comment":"known","suppress":{"minutes":5}}"#,
    ),
    (
        "GET /api/v1/alerts?from=2026-11-30T08:00:00Z&to=17&ip=192.0.2.0/24&component=l7&min_severity=low&rule_id=a&\
         text=x&false_positive=true&before=019ad3c1-5b7e-7c40-9c1e-6f2f1d0a4b33&limit=1&offset=0 HTTP/1.1|\
         Host: localhost|X-API-Key: the-key-of-the-admin",
        "",
    ),
    (
        "GET /api/v1/audit/logs?component=l7&action=trail&actor=a&before=3 HTTP/1.1|Host: agent.example|\
         X-API-Key: the-key-of-the-admin",
        "",
    ),
    ("GET /api/v1/audit/rules/a/history?limit=5 HTTP/1.1|Host: localhost|X-API-Key: the-key-of-the-admin", ""),
    ("HEAD /api/v1/audit/verify HTTP/1.1|Host: localhost|X-API-Key: the-key-of-the-admin", ""),
    (
        "GET /api/v1/alerts/stream?mitre=T1190&rule_id=a* HTTP/1.1|Host: localhost|\
         Last-Event-ID: 019ad3c1-5b7e-7c40-9c1e-6f2f1d0a4b33.1|X-API-Key: the-key-of-the-admin",
        "",
    ),
    (
        "POST /api/v1/config/reload HTTP/1.1|Host: localhost|Origin: http://localhost|X-API-Key: the-key-of-the-admin",
        "",
    ),
];

/// Each request with its body by length, and in chunks.
fn request_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (head, body) in REQUESTS {
        let head = head.replace('|', "\r\n");
        seeds.push(format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes());
        if !body.is_empty() {
            let (front, back) = body.split_at(body.len() / 2);
            let chunk = |text: &str| format!("{:x};a=b\r\n{text}\r\n", text.len());
            let chunks = format!("{}{}0\r\nTrailer: x\r\n\r\n", chunk(front), chunk(back));
            seeds.push(format!("{head}\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}").into_bytes());
        }
    }
    seeds
}

/// Who signs, header, claims, keys.
const JWTS: [(u8, &str, &str, &str); 5] = [
    (
        1,
        r#"{"alg":"EdDSA","kid":"b","typ":"at+jwt"}"#,
        r#"{"iss":["https://issuer.example"],"aud":"ebpfsentinel","sub":"a","role":["x","admin"],"exp":9999999999}"#,
        TOKENS[5],
    ),
    (
        2,
        r#"{"alg":"ES256","kid":"a"}"#,
        r#"{"iss":"https://issuer.example","aud":["ebpfsentinel"],"sub":"a","role":"viewer","exp":1e10,"nbf":1}"#,
        TOKENS[4],
    ),
    (
        13,
        "",
        r#"{"iss":"https://issuer.example","aud":"ebpfsentinel","sub":"a","role":"operator","exp":9999999999,"#,
        "",
    ),
    (0, r#"{"alg":"RS256","kid":"c","crit":["exp"]}"#, "{}", TOKENS[5]),
    (14, "", r#"{"iss":"b"}"#, r#"{"issuer":"https://issuer.example","jwks_uri":"https://issuer.example/keys"}"#),
];

fn jwt_seeds() -> Vec<Vec<u8>> {
    let seed = |(choice, header, claims, keys): (u8, &str, &str, &str)| {
        // A path and a name of the namespaces do not fit into one line.
        let claims = match choice {
            13 => format!(r#"{claims}"realm":{{"namespaces":["prod"]}}}}"#),
            _ => claims.to_owned(),
        };
        [&[choice][..], format!("{header}\n{claims}\n{keys}").as_bytes()].concat()
    };
    JWTS.map(seed).to_vec()
}

/// Records of each kind, and stores of some of them: the first byte says which.
fn stored_seeds() -> Vec<Vec<u8>> {
    let mut block = Block::default();
    for n in 0..9u128 {
        let mut alert = Alert::new(Component::L7, Severity::High, format!("r{}", n % 2), "deny", 1000 + n as u64, "m");
        alert.id = AlertId(uuid::Uuid::from_u128(n));
        alert.src_ip = Some("192.0.2.1".parse().expect("it is an address"));
        block.put(Row::new(&alert));
    }
    let (rows, summary) = (block.encode(), block.summary().encode());
    let entry = |seq: u64, action: &str| {
        let rule = r#""component":"l7","rule_id":"r","version":1,"before":null,"after":{"id":"r","priority":1}"#;
        format!(r#"{{"seq":{seq},"timestamp":"t","timestamp_ns":7,"action":"{action}","operation":"l7 add",{rule},"#)
            + r#""actor":"a","role":"admin","address":"192.0.2.1","method":"api_key","outcome":201,"detail":""}"#
    };
    let text = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
    let mark = r#"{"by":"a","at":"t","comment":"c"}"#.as_bytes();
    let suppression = br#"{"id":"s","component":"l7","rule_id":"r","src_ip":"192.0.2.1","created_ns":1,"until_ns":2,"created_by":"a"}"#;
    let chained = |action: &str| [&[1][..], &text(entry(1, action).as_bytes())].concat();
    let alert = br#"{"component":"l7","rule_id":"r","src_ip":"192.0.2.1"}"#;
    vec![
        [&[0][..], &rows].concat(),
        [&[1][..], &summary].concat(),
        [&[2][..], &[0; 32], entry(1, "rule_added").as_bytes()].concat(),
        [&[3][..], mark].concat(),
        [&[3][..], suppression].concat(),
        [&[4, 0, 0, 0, 0][..], &text(alert), &[0], &text(b"{}"), &[1], &text(b"[]")].concat(),
        [&[4, 1, 18, 0, 0][..], &text(b"{}"), &[2], &text(b"{}")].concat(),
        [&[5][..], &chained("rule_added"), &chained("rule_updated"), &chained("trail"), &[4, 2], &text(b"l7"), &[1]]
            .concat(),
        [&[5, 0, 9][..], &text(&[&[0; 32][..], entry(9, "failed").as_bytes()].concat()), &[3, 8, 5], &text(b"8 00")]
            .concat(),
        [&[6, 5, 0][..], &text(&rows), &[3, 1], &text(mark), &[4, 0], &text(suppression)].concat(),
        [&[6, 0, 1][..], &text(alert), &[1, 1], &text(&rows[80..160]), &[2, 1], &text(&summary)].concat(),
    ]
}

/// The seeds of a target; `root` is the tree.
pub fn of(target: &str, root: &Path) -> Vec<Vec<u8>> {
    match target {
        "capture" | "replay" => files(&root.join("tests/data/captures")),
        "config" => {
            let folders = ["conf", "conf/examples", "tests/data/bad_configs"].map(|folder| files(&root.join(folder)));
            let mut seeds = folders.concat();
            seeds.extend(VARIABLES.map(|lines| format!("[agent]\ninterfaces = ['lo']\0{lines}").into_bytes()));
            seeds
        }
        "conversation" => conversation_seeds(root),
        "jwt" => jwt_seeds(),
        "packets" => packets_seeds(root),
        "patterns" => pattern_seeds(),
        "quic" => quic_seeds(root),
        "record" => record_seeds(root),
        "request" => request_seeds(),
        "rule_json" => RULES.map(<[u8]>::to_vec).to_vec(),
        "segments" => {
            let conversations = conversations(root).into_iter().map(|(_, pieces)| pieces).chain(handshakes(root));
            let seed = |pieces: Vec<Piece>| [&[2; 9][..], &steps(&pieces, |at| (at as u8) << 3)].concat();
            conversations.map(seed).collect()
        }
        "stored" => stored_seeds(),
        "token" => TOKENS.map(|text| text.as_bytes().to_vec()).to_vec(),
        other => panic!("there is no target {other}"),
    }
}
