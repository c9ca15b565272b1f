//! Attempts to get past a rule that denies: what a server takes for a request or a hello is recognised as one, whatever
//! stands in front of it. By the kernel's programs as well, where there are the rights.

use super::firewall::{Desk, ENDS};
use super::fixtures::{self, client_hello, server_hello};
use super::{events, of_kind};
use crate::support::conversations::{Client, Conversation, Packets, Server};

const RULES: &str = "[l7]\nenabled = true\nmode = \"block\"\n\
    [[l7.rules]]\nid = \"no-admin\"\npriority = 1\nprotocol = \"http\"\naction = \"deny\"\npath = \"/admin*\"\n\
    [[l7.rules]]\nid = \"no-trackers\"\npriority = 1\nprotocol = \"tls\"\naction = \"deny\"\nsni = \"*.example\"\n\
    [[l7.rules]]\nid = \"no-quic\"\npriority = 1\nprotocol = \"tls\"\naction = \"deny\"\nsni = \"example.com\"\n";

/// The client's Initial packet of RFC 9001, A.2, which asks for `example.com`.
const INITIAL: &[u8] = include_bytes!("rfc9001_a2.bin");

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Asserts that a rule denies it, once, and that the flow is blocked.
#[track_caller]
fn check_denied(name: &str, desk: &Desk, rule: &str, packets: &Packets) {
    let ran = desk.replay(&[], packets);
    let seen = events(&ran.lines);
    let alerts: Vec<_> = of_kind(&seen, "alert").iter().map(|event| &event["alert"]).collect();
    let told: Vec<_> = alerts.iter().map(|alert| (alert["signature"].as_str(), alert["action"].as_str())).collect();
    assert_eq!(told, [(Some(rule), Some("blocked"))], "{name}: {}", ran.lines);
}

#[test]
fn nothing_in_front_of_a_request_hides_it() {
    let desk = Desk::new(RULES);
    let request = |start: &str| format!("{start} HTTP/1.1\r\nHost: a.example\r\n\r\n").into_bytes();
    let dots = "x/../".repeat(120);
    let long = "a".repeat(600);
    let mut attempts = vec![
        ("as it is".to_owned(), request("GET /admin/users")),
        ("capitals".to_owned(), request(&format!("GET HTTP://a.example/{dots}admin/users"))),
        ("capitals of TLS".to_owned(), request(&format!("GET HTTPS://a.example/{dots}admin/users"))),
        ("an unknown method".to_owned(), request(&format!("FROBNICATE /admin/{long}"))),
        ("a method in small letters".to_owned(), request(&format!("get /admin/{long}"))),
    ];
    for count in [9, 300, 505, 508, 509, 600, 5000, 40_000] {
        let spaces = " ".repeat(count);
        attempts.push((format!("{count} spaces"), request(&format!("GET{spaces}/admin/users"))));
        attempts.push((format!("{count} tabs"), request(&format!("GET{}/admin/users", "\t".repeat(count)))));
        attempts.push((
            format!("{count} spaces and a scheme"),
            request(&format!("GET{spaces}hTTp://a.example/admin/users")),
        ));
        let lines = "\r\n".repeat(count);
        attempts.push((format!("{count} empty lines"), request(&format!("{lines}GET /admin/users"))));
        let lines = "\n".repeat(count);
        attempts.push((format!("{count} bare empty lines"), request(&format!("{lines}GET {spaces}/admin/{long}"))));
    }
    for (name, request) in &attempts {
        for ((client, server, _), size) in ENDS.into_iter().zip([1400, 100]) {
            let packets = Conversation::new(client, server, fixtures::START)
                .handshake()
                .say_in(Client, request, size)
                .say(Server, OK)
                .close();
            check_denied(name, &desk, "no-admin", &packets);
        }
    }
}

#[test]
fn no_form_of_a_record_hides_a_hello() {
    let desk = Desk::new(RULES);
    let hello = client_hello("ads.tracker.example");
    let with = |at: usize, byte: u8| {
        let mut hello = hello.clone();
        hello[at] = byte;
        hello
    };
    let attempts = [
        ("as it is", hello.clone()),
        ("minor version 5", with(2, 5)),
        ("minor version 255", with(2, 255)),
        ("a hello of another version", with(9, 0x7f)),
        ("an empty record in front", [&[0x16, 3, 1, 0, 0], &hello[..]].concat()),
    ];
    for (name, hello) in &attempts {
        for ((client, server, _), size) in ENDS.into_iter().zip([1400, 3]) {
            let packets = Conversation::new(client, server, fixtures::START)
                .handshake()
                .say_in(Client, hello, size)
                .say(Server, &server_hello())
                .close();
            check_denied(name, &desk, "no-trackers", &packets);
        }
    }
}

#[test]
fn no_datagram_in_front_hides_a_hello_of_quic() {
    let desk = Desk::new(RULES);
    let query: &[u8] = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x07example\x03org\0\0\x01\0\x01";
    let answer: &[u8] = b"\x12\x34\x81\x80\0\x01\0\0\0\0\0\0\x07example\x03org\0\0\x01\0\x01";
    let attempts: [(&str, Vec<&[u8]>); 7] = [
        ("as it is", vec![]),
        ("three junk datagrams", vec![b"x"; 3]),
        ("four", vec![b"x"; 4]),
        ("a hundred", vec![b"x"; 100]),
        ("a query", vec![query]),
        ("an answer", vec![answer]),
        ("queries and junk", vec![query, b"x", b"x", answer, b"x", b"x", query]),
    ];
    for (name, before) in &attempts {
        for (client, server, _) in ENDS {
            let start = Conversation::new(client, server, fixtures::START);
            let talk = before.iter().fold(start, |talk, bytes| talk.datagram(Client, bytes));
            let packets = talk.datagram(Client, INITIAL).datagram(Server, &[0x41; 900]).packets;
            check_denied(name, &desk, "no-quic", &packets);
        }
    }
}
