use std::sync::Arc;

use super::*;
use crate::eve::alert::Head;
use crate::eve::alert::tests::metadata_of;
use crate::flow::{Direction, State};
use crate::packet::proto::{AppProto, Fact, Stage, dns, ftp, http, quic, smb, smtp, ssh, tls};

const TIME: u64 = 1_796_064_031_123_456_789;

fn flow() -> Flow {
    Flow {
        id: 7,
        protocol: 6,
        client: "192.0.2.1:49152".parse().unwrap(),
        server: "198.51.100.9:8443".parse().unwrap(),
        vlans: [0; 2],
        ifindex: 0,
        direction: Direction::Ingress,
        start_ns: TIME,
        last_ns: TIME + 2_500_000_000,
        packets: [12, 9],
        bytes: [1_234, 56_789],
        arrived: [true, false],
        left: [false, true],
        gap_bytes: [0; 2],
        app_proto: Some(AppProto::Http),
        state: State::Closed,
        tcp_flags: [0x1b, 0x13],
        next_seq: [0; 2],
        is_midstream: false,
        is_answered: true,
        is_finished: false,
        is_tunnelled: false,
        is_blocked: false,
        socket_cookie: 0,
        cgroup_id: 0,
    }
}

/// Lines, each of them checked to be JSON of one line, and made readable.
fn pretty(line: &[u8]) -> String {
    assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    assert_eq!(line.last(), Some(&b'\n'));
    let value: serde_json::Value = serde_json::from_slice(line).unwrap();
    if value["event_type"] == "alert" {
        metadata_of(line);
    }
    format!("{value:#}")
}

fn told(app_proto: AppProto, fact: Fact) -> String {
    let mut eve = Eve::default();
    eve.set_packet(42);
    let flow = Flow { app_proto: Some(app_proto), ..flow() };
    pretty(eve.transaction(&flow, TIME, &Told { tx: 3, stage: Stage::Done, fact }))
}

fn headers(fields: &[(&str, &str)]) -> http::Headers {
    let mut headers = http::Headers::default();
    fields.iter().for_each(|(name, value)| headers.push(name.as_bytes(), value.as_bytes()));
    headers
}

#[test]
fn http() {
    let exchange = http::Exchange {
        method: b"GET".to_vec(),
        target: b"/a%20b?c=\xff".to_vec(),
        host: Some(b"www.example.org".to_vec()),
        port: Some(8080),
        request: headers(&[("User-Agent", "curl/8"), ("Referer", "http://r.example/")]),
        status: Some(302),
        response: headers(&[("Location", "/there"), ("Content-Type", "text/html; charset=utf-8")]),
        response_bytes: 154,
        ..http::Exchange::default()
    };
    insta::assert_snapshot!(told(AppProto::Http, Fact::Http(Arc::new(exchange))));
}

#[test]
fn http2_with_grpc() {
    let exchange = http::Exchange {
        version: http::Version::V2,
        stream: Some(5),
        method: b"POST".to_vec(),
        target: b"/shop.Cart/Add".to_vec(),
        host: Some(b"cart.example".to_vec()),
        status: Some(200),
        grpc: Some(http::Grpc { service: b"shop.Cart".to_vec(), method: b"Add".to_vec(), status: Some(0) }),
        ..http::Exchange::default()
    };
    insta::assert_snapshot!(told(AppProto::Http2, Fact::Http(Arc::new(exchange))));
}

fn handshake() -> tls::Handshake {
    tls::Handshake {
        sni: Some(b"www.example.org".to_vec()),
        client_alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        server_alpn: Some(b"h2".to_vec()),
        client_version: 0x0303,
        version: Some(0x0303),
        cipher: Some(0xc02f),
        ja3: Some(("0123456789abcdef0123456789abcdef".to_owned(), "771,4865,0,29,0".to_owned())),
        ja3s: Some(("fedcba9876543210fedcba9876543210".to_owned(), "771,49199,0".to_owned())),
        ja4: Some("t12d1516h2_8daaf6152771_b186095e22b6".to_owned()),
        certificate: Some(tls::Certificate {
            subject: "CN=www.example.org".to_owned(),
            issuer: "C=US, O=Example, CN=CA".to_owned(),
            serial: "01:AB".to_owned(),
            not_before: 1_577_836_800,
            not_after: 1_796_064_031,
            names: vec!["www.example.org".to_owned(), "example.org".to_owned()],
            fingerprint: "aa:bb".to_owned(),
        }),
        is_resumed: true,
        ..tls::Handshake::default()
    }
}

#[test]
fn tls() {
    insta::assert_snapshot!(told(AppProto::Tls, Fact::Tls(Arc::new(handshake()))));
    let versions =
        [(0x0300, "SSLv3"), (0x0301, "TLSv1"), (0x0302, "TLS 1.1"), (0x0304, "TLS 1.3"), (0x7f1c, "TLS 1.3")];
    for (version, name) in versions {
        let handshake = tls::Handshake { version: Some(version), ..tls::Handshake::default() };
        let line = told(AppProto::Tls, Fact::Tls(Arc::new(handshake)));
        assert!(line.contains(&format!("\"version\": \"{name}\"")), "{line}");
    }
}

#[test]
fn quic() {
    let handshake = Arc::new(tls::Handshake { certificate: None, server_alpn: None, ..handshake() });
    insta::assert_snapshot!(told(AppProto::Quic, Fact::Quic(Arc::new(quic::Initial { version: 1, handshake }))));
    let google = quic::Initial { version: 0x5130_3433, ..quic::Initial::default() };
    assert!(told(AppProto::Quic, Fact::Quic(Arc::new(google))).contains("\"version\": \"Q043\""));
}

#[test]
fn dns() {
    let record = |kind, data: &str| dns::Record {
        name: "www.example.org".to_owned(),
        kind,
        class: 1,
        ttl: 300,
        data: data.to_owned(),
    };
    let message = dns::Message {
        id: 0x1234,
        flags: 0x8183,
        queries: vec![dns::Question { name: "www.example.org".to_owned(), kind: 65, class: 1 }],
        answers: vec![record(5, "cdn.example.net"), record(28, "2001:db8::1"), record(65_280, "0102")],
        authorities: vec![record(6, "ns.example.org root.example.org 1 2 3 4 5")],
        additionals: vec![record(1, "192.0.2.7")],
        ..dns::Message::default()
    };
    insta::assert_snapshot!(told(AppProto::Dns, Fact::Dns(Arc::new(message))));
    let message = dns::Message { id: 1, flags: 0x0100, ..dns::Message::default() };
    insta::assert_snapshot!("dns_request", told(AppProto::Dns, Fact::Dns(Arc::new(message))));
}

#[test]
fn smtp() {
    let exchange = smtp::Exchange {
        command: b"DATA".to_vec(),
        helo: Some(b"client.example".to_vec()),
        mail_from: Some(b"a@example.org".to_vec()),
        rcpt_to: vec![b"b@example.net".to_vec(), b"c@example.net".to_vec()],
        reply: Some(250),
        subject: Some(b"=?utf-8?q?Gr=C3=BC=C3=9Fe?=".to_vec()),
        mail_bytes: 1024,
        ..smtp::Exchange::default()
    };
    insta::assert_snapshot!(told(AppProto::Smtp, Fact::Smtp(Arc::new(exchange))));
}

#[test]
fn ftp() {
    let exchange = ftp::Exchange {
        command: b"PASV".to_vec(),
        reply: vec![b"Entering Passive Mode (192,0,2,1,4,1)".to_vec()],
        codes: vec![227],
        data_port: Some(1025),
        is_passive: true,
        ..ftp::Exchange::default()
    };
    insta::assert_snapshot!(told(AppProto::Ftp, Fact::Ftp(Arc::new(exchange))));
    let unanswered =
        ftp::Exchange { command: b"RETR".to_vec(), argument: b"caf\xe9.txt".to_vec(), ..ftp::Exchange::default() };
    insta::assert_snapshot!("ftp_unanswered", told(AppProto::Ftp, Fact::Ftp(Arc::new(unanswered))));
    let transfer = ftp::Transfer { command: b"RETR".to_vec(), file: b"a.txt".to_vec(), bytes: 5 };
    insta::assert_snapshot!("ftp_data", told(AppProto::FtpData, Fact::FtpData(Arc::new(transfer))));
}

#[test]
fn smb() {
    let exchange = smb::Exchange {
        command: "SMB2_COMMAND_CREATE",
        dialect: "3.11".to_owned(),
        offered: vec!["2.10".to_owned(), "3.11".to_owned()],
        status: Some(0xc000_0034),
        session: 0x10_0000_0001,
        tree: 5,
        share: Some(r"\\server\share".to_owned()),
        file: Some(r"dir\file.txt".to_owned()),
        user: Some(("alice".to_owned(), "CORP".to_owned())),
        rename_to: Some(r"dir\new.txt".to_owned()),
    };
    insta::assert_snapshot!(told(AppProto::Smb, Fact::Smb(Arc::new(exchange))));
}

#[test]
fn ssh() {
    let handshake = ssh::Handshake {
        client: ssh::Half {
            protocol: b"2.0".to_vec(),
            software: b"OpenSSH_9.2p1".to_vec(),
            hassh: Some(("ec7378c1a92f5a8dde7e8b7a1ddf33d1".to_owned(), "a;b;c;none".to_owned())),
        },
        server: ssh::Half::default(),
    };
    insta::assert_snapshot!(told(AppProto::Ssh, Fact::Ssh(Arc::new(handshake))));
}

#[test]
fn flows() {
    let mut eve = Eve::default();
    let flow = Flow { vlans: [7, 0xe009], gap_bytes: [0, 5], ..flow() };
    insta::assert_snapshot!(pretty(eve.flow(&flow, EndReason::Closed, TIME + 9_000_000_000, true)));
    let udp = Flow {
        protocol: 17,
        client: "[2001:db8::1]:5353".parse().unwrap(),
        server: "[ff02::fb]:5353".parse().unwrap(),
        app_proto: None,
        state: State::New,
        ..flow.clone()
    };
    insta::assert_snapshot!("flow_of_udp", pretty(eve.flow(&udp, EndReason::Shutdown, TIME, false)));
    for (why, reason) in [(EndReason::Timeout, "timeout"), (EndReason::Evicted, "forced")] {
        let line = pretty(eve.flow(&flow, why, TIME, false));
        assert!(line.contains(&format!("\"reason\": \"{reason}\"")), "{line}");
    }
}

#[test]
fn anomalies() {
    let mut eve = Eve::default();
    let mut anomaly =
        Anomaly { layer: "applayer", name: "http.bad_request_line", time_ns: TIME, side: Some(Side::Server), count: 2 };
    insta::assert_snapshot!(pretty(eve.anomaly(Some(&flow()), &anomaly)));
    anomaly = Anomaly { layer: "decode", name: "ipv4.truncated", side: None, ..anomaly };
    insta::assert_snapshot!("anomaly_without_flow", pretty(eve.anomaly(None, &anomaly)));
}

#[test]
fn protocols_without_ports() {
    let mut eve = Eve::default();
    for (number, name) in [(1, "ICMP"), (58, "IPv6-ICMP"), (47, "GRE"), (99, "099")] {
        let flow = Flow { protocol: number, ..flow() };
        let line: serde_json::Value = serde_json::from_slice(eve.flow(&flow, EndReason::Timeout, TIME, false)).unwrap();
        assert_eq!(line["proto"], name);
        assert!(line.get("src_port").is_none());
    }
}

#[test]
fn alerts() {
    let mut eve = Eve::default();
    let head = Head {
        is_blocked: true,
        component: "l7",
        rule: "no-example",
        signature: "tls sni *.example.org",
        category: "l7",
        severity: 2,
    };
    let alert = Alert { head, rule_action: "deny", matched: Some(b"www.example.org") };
    let told = Told { tx: 0, stage: Stage::Asked, fact: Fact::Tls(Arc::new(handshake())) };
    insta::assert_snapshot!(pretty(eve.alert(&flow(), TIME, &alert, Some(&told))));
    let passed = Alert { head: Head { is_blocked: false, ..head }, matched: None, ..alert };
    insta::assert_snapshot!("alert_that_went_on", pretty(eve.alert(&flow(), TIME, &passed, None)));
}
