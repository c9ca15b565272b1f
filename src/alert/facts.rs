//! What an alert says of a conversation: its flow, and what its protocol told, in words that no reader of a log obeys.

use std::fmt::Write as _;

use super::Alert;
use crate::flow::{Direction, Flow, community_id};
use crate::packet::proto::{Fact, Told, ftp, http, smb, smtp, tls};

/// Longest text of a fact, and of the bytes that matched, before they are escaped.
pub const TEXT_MAX: usize = 256;
/// Most values of a fact that has several: recipients, offered protocols.
const VALUES_MAX: usize = 8;

/// A fact: the name under which every sink writes it, and its text.
pub type NamedFact = (&'static str, String);

impl Alert {
    /// Sets what is known of the flow that the alert is about; `interface` is the name of where its first packet was seen.
    pub fn set_flow(&mut self, flow: &Flow, interface: Option<&str>) {
        self.src_ip = Some(flow.client.ip());
        self.src_port = Some(flow.client.port());
        self.dst_ip = Some(flow.server.ip());
        self.dst_port = Some(flow.server.port());
        self.protocol = Some(flow.protocol);
        self.vlan_id = (flow.vlans[0] != 0).then_some(flow.vlans[0]);
        self.interface = interface.map(str::to_owned);
        self.direction = Some(match flow.direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        });
        self.community_id = Some(community_id(flow));
        self.app_proto = flow.app_proto.map(|protocol| protocol.name());
    }

    /// Sets what its protocol told.
    pub fn set_facts(&mut self, told: &Told) {
        self.facts = facts_of(&told.fact);
    }
}

/// Bytes of the wire as a text of printable ASCII, at most [`TEXT_MAX`] of them: others are `\x00`, a backslash is doubled,
/// and what is cut ends in `...`.
pub fn escaped(bytes: &[u8]) -> String {
    let kept = &bytes[..bytes.len().min(TEXT_MAX)];
    let mut text = String::with_capacity(kept.len());
    for &byte in kept {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b' '..=b'~' => text.push(byte.into()),
            // Writing to a string cannot fail.
            _ => drop(write!(text, "\\x{byte:02x}")),
        }
    }
    if kept.len() < bytes.len() {
        text.push_str("...");
    }
    text
}

/// The facts that are there, in a fixed order.
pub fn facts_of(fact: &Fact) -> Vec<NamedFact> {
    let mut facts = Vec::new();
    match fact {
        Fact::Http(exchange) => of_http(exchange, &mut facts),
        Fact::Tls(hello) => of_tls(hello, &mut facts),
        Fact::Quic(initial) => of_tls(&initial.handshake, &mut facts),
        Fact::Smtp(exchange) => of_smtp(exchange, &mut facts),
        Fact::Ftp(exchange) => of_ftp(exchange, &mut facts),
        Fact::FtpData(transfer) => {
            add(&mut facts, "ftp_command", &transfer.command);
            add(&mut facts, "ftp_file", &transfer.file);
        }
        Fact::Smb(exchange) => of_smb(exchange, &mut facts),
        Fact::Ssh(banners) => {
            add(&mut facts, "ssh_client", &banners.client.software);
            add(&mut facts, "ssh_server", &banners.server.software);
        }
        Fact::Dns(message) => {
            let names = message.queries.iter().map(|query| query.name.as_bytes());
            add_all(&mut facts, "dns_query", names);
        }
    }
    facts
}

fn add(facts: &mut Vec<NamedFact>, name: &'static str, value: &[u8]) {
    if !value.is_empty() {
        facts.push((name, escaped(value)));
    }
}

fn add_all<'v>(facts: &mut Vec<NamedFact>, name: &'static str, values: impl Iterator<Item = &'v [u8]>) {
    let mut texts: Vec<String> = values.take(VALUES_MAX + 1).map(escaped).collect();
    if texts.len() > VALUES_MAX {
        texts[VALUES_MAX] = "...".to_owned();
    }
    if !texts.is_empty() {
        facts.push((name, texts.join(",")));
    }
}

fn of_http(exchange: &http::Exchange, facts: &mut Vec<NamedFact>) {
    add(facts, "http_method", &exchange.method);
    add(facts, "http_host", exchange.host.as_deref().unwrap_or_default());
    add(facts, "http_url", &exchange.target);
    add(facts, "http_user_agent", exchange.request.get("user-agent").unwrap_or_default());
    add(facts, "http_content_type", exchange.response.get("content-type").unwrap_or_default());
    facts.extend(exchange.status.map(|status| ("http_status", status.to_string())));
    if let Some(call) = &exchange.grpc {
        add(facts, "grpc_service", &call.service);
        add(facts, "grpc_method", &call.method);
    }
}

fn of_tls(hello: &tls::Handshake, facts: &mut Vec<NamedFact>) {
    add(facts, "tls_sni", hello.sni.as_deref().unwrap_or_default());
    add_all(facts, "tls_alpn", hello.client_alpn.iter().map(Vec::as_slice));
    add(facts, "tls_ja3", hello.ja3.as_ref().map_or(&[], |(digest, _)| digest.as_bytes()));
    add(facts, "tls_ja4", hello.ja4.as_ref().map_or(&[], |text| text.as_bytes()));
    if let Some(certificate) = &hello.certificate {
        add(facts, "tls_subject", certificate.subject.as_bytes());
        add(facts, "tls_issuer", certificate.issuer.as_bytes());
    }
}

fn of_smtp(exchange: &smtp::Exchange, facts: &mut Vec<NamedFact>) {
    add(facts, "smtp_command", &exchange.command);
    add(facts, "smtp_helo", exchange.helo.as_deref().unwrap_or_default());
    add(facts, "smtp_from", exchange.mail_from.as_deref().unwrap_or_default());
    add_all(facts, "smtp_to", exchange.rcpt_to.iter().map(Vec::as_slice));
    add(facts, "smtp_subject", exchange.subject.as_deref().unwrap_or_default());
}

fn of_ftp(exchange: &ftp::Exchange, facts: &mut Vec<NamedFact>) {
    add(facts, "ftp_command", &exchange.command);
    // A password is in no alert.
    if !exchange.command.eq_ignore_ascii_case(b"PASS") {
        add(facts, "ftp_argument", &exchange.argument);
    }
}

fn of_smb(exchange: &smb::Exchange, facts: &mut Vec<NamedFact>) {
    add(facts, "smb_command", exchange.command.as_bytes());
    add(facts, "smb_dialect", exchange.dialect.as_bytes());
    add(facts, "smb_share", exchange.share.as_deref().unwrap_or_default().as_bytes());
    add(facts, "smb_file", exchange.file.as_deref().unwrap_or_default().as_bytes());
    add(facts, "smb_user", exchange.user.as_ref().map_or(&[], |(user, _)| user.as_bytes()));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn bytes_of_the_wire_are_shown_and_not_obeyed() {
        for (bytes, want) in [
            (&b"/admin?x=1"[..], "/admin?x=1"),
            (b"a\r\n\x1b[31m\0\xff", "a\\x0d\\x0a\\x1b[31m\\x00\\xff"),
            (b"\\\\srv\\c$", "\\\\\\\\srv\\\\c$"),
            (b"", ""),
        ] {
            assert_eq!(escaped(bytes), want);
        }
        assert_eq!(escaped(&[b'x'; 300]), "x".repeat(256) + "...");
    }

    #[test]
    fn facts_are_those_that_are_there() {
        let exchange = http::Exchange {
            method: b"GET".to_vec(),
            target: b"/a\n".to_vec(),
            host: Some(b"h".to_vec()),
            status: Some(403),
            ..http::Exchange::default()
        };
        let texts = |facts: &[NamedFact]| facts.iter().map(|(name, text)| format!("{name}={text}")).collect::<Vec<_>>();
        let facts = facts_of(&Fact::Http(Arc::new(exchange)));
        assert_eq!(texts(&facts), ["http_method=GET", "http_host=h", "http_url=/a\\x0a", "http_status=403"]);

        let mail = smtp::Exchange { rcpt_to: vec![b"a@b".to_vec(); 20], ..smtp::Exchange::default() };
        let facts = facts_of(&Fact::Smtp(Arc::new(mail)));
        assert_eq!(texts(&facts), [format!("smtp_to={}...", "a@b,".repeat(8))]);

        let login = ftp::Exchange { command: b"PASS".to_vec(), argument: b"secret".to_vec(), ..ftp::Exchange::default() };
        assert_eq!(texts(&facts_of(&Fact::Ftp(Arc::new(login)))), ["ftp_command=PASS"]);
    }
}
