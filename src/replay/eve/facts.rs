//! Transactions in EVE: one member named by the protocol, and in it what Suricata says of one.

use super::dns;
use crate::eve::json::Json;
use crate::eve::time::civil;
use crate::packet::proto::http::{Grpc, Version};
use crate::packet::proto::{Fact, Told, ftp, http, quic, smb, smtp, ssh, tls};

/// `event_type` of a transaction's line.
pub fn event_type(fact: &Fact) -> &'static str {
    match fact {
        Fact::Http(_) => "http",
        Fact::Tls(_) => "tls",
        Fact::Smtp(_) => "smtp",
        Fact::Ftp(_) => "ftp",
        Fact::FtpData(_) => "ftp_data",
        Fact::Smb(_) => "smb",
        Fact::Ssh(_) => "ssh",
        Fact::Dns(_) => "dns",
        Fact::Quic(_) => "quic",
    }
}

/// The number of the transaction, and the members that tell of it.
pub fn write(json: &mut Json, told: &Told) {
    json.number("tx_id", u64::from(told.tx));
    match &told.fact {
        Fact::Http(exchange) => http(json, exchange),
        Fact::Tls(handshake) => {
            json.object("tls");
            tls(json, handshake);
            json.close();
        }
        Fact::Smtp(exchange) => smtp(json, exchange),
        Fact::Ftp(exchange) => ftp(json, exchange),
        Fact::FtpData(transfer) => ftp_data(json, transfer),
        Fact::Smb(exchange) => smb(json, told.tx, exchange),
        Fact::Ssh(handshake) => ssh(json, handshake),
        Fact::Dns(message) => dns::write(json, told.tx, message),
        Fact::Quic(initial) => quic(json, initial),
    }
}

fn wire_if(json: &mut Json, name: &str, value: Option<&[u8]>) {
    if let Some(value) = value {
        json.wire(name, value);
    }
}

fn http(json: &mut Json, exchange: &http::Exchange) {
    json.object("http");
    wire_if(json, "hostname", exchange.host.as_deref());
    if let Some(port) = exchange.port {
        json.number("http_port", u64::from(port));
    }
    let has_request = !exchange.method.is_empty();
    if has_request {
        json.wire("url", &exchange.target);
    }
    wire_if(json, "http_user_agent", exchange.request.get("user-agent"));
    // Suricata shows the type without its parameters.
    let kind = exchange.response.get("content-type");
    wire_if(json, "http_content_type", kind.and_then(|kind| kind.split(|&byte| byte == b';').next()));
    wire_if(json, "http_refer", exchange.request.get("referer"));
    if has_request {
        json.wire("http_method", &exchange.method);
    }
    let (protocol, is_http2) = match exchange.version {
        Version::V09 => ("HTTP/0.9", false),
        Version::V10 => ("HTTP/1.0", false),
        Version::V11 => ("HTTP/1.1", false),
        Version::V2 => ("HTTP/2", true),
    };
    json.text("protocol", protocol);
    if is_http2 {
        json.text("version", "2");
    }
    if let Some(status) = exchange.status {
        json.number("status", u64::from(status));
        if (300..400).contains(&status) {
            wire_if(json, "redirect", exchange.response.get("location"));
        }
    }
    json.number("length", exchange.response_bytes);
    if let Some(stream) = exchange.stream {
        json.object("http2");
        json.number("stream_id", u64::from(stream));
        json.close();
    }
    if let Some(grpc) = &exchange.grpc {
        self::grpc(json, grpc);
    }
    json.close();
}

fn grpc(json: &mut Json, grpc: &Grpc) {
    json.object("grpc");
    json.wire("service", &grpc.service);
    json.wire("method", &grpc.method);
    if let Some(status) = grpc.status {
        json.number("status", u64::from(status));
    }
    json.close();
}

fn tls_version(version: u16) -> &'static str {
    match version {
        0x0002 => "SSLv2",
        0x0300 => "SSLv3",
        // Suricata's spelling.
        0x0301 => "TLSv1",
        0x0302 => "TLS 1.1",
        0x0303 => "TLS 1.2",
        // Drafts of it say 0x7f and their number.
        0x0304 | 0x7f00..=0x7fff => "TLS 1.3",
        _ => "UNDETERMINED",
    }
}

/// Members of `tls`, and of `quic` what it has of them.
fn tls(json: &mut Json, handshake: &tls::Handshake) {
    if let Some(certificate) = &handshake.certificate {
        json.text("subject", &certificate.subject);
        json.text("issuerdn", &certificate.issuer);
        json.text("serial", &certificate.serial);
        json.text("fingerprint", &certificate.fingerprint);
    }
    if handshake.is_resumed {
        json.flag("session_resumed", true);
    }
    wire_if(json, "sni", handshake.sni.as_deref());
    json.text("version", handshake.version.map_or("UNDETERMINED", tls_version));
    if let Some(certificate) = &handshake.certificate {
        for (name, time) in [("notbefore", certificate.not_before), ("notafter", certificate.not_after)] {
            json.wire(name, &civil(time));
        }
        if !certificate.names.is_empty() {
            json.array("subjectaltname");
            certificate.names.iter().for_each(|name| json.wire_element(name.as_bytes()));
            json.end_array();
        }
    }
    fingerprints(json, handshake);
    if !handshake.client_alpn.is_empty() {
        json.array("client_alpns");
        handshake.client_alpn.iter().for_each(|name| json.wire_element(name));
        json.end_array();
    }
    if let Some(name) = &handshake.server_alpn {
        json.array("server_alpns");
        json.wire_element(name);
        json.end_array();
    }
}

fn fingerprints(json: &mut Json, handshake: &tls::Handshake) {
    for (name, fingerprint) in [("ja3", &handshake.ja3), ("ja3s", &handshake.ja3s)] {
        hashed(json, name, fingerprint.as_ref());
    }
    if let Some(ja4) = &handshake.ja4 {
        json.text("ja4", ja4);
    }
}

/// A hash and what was hashed.
fn hashed(json: &mut Json, name: &str, pair: Option<&(String, String)>) {
    if let Some((hash, text)) = pair {
        json.object(name);
        json.text("hash", hash);
        json.text("string", text);
        json.close();
    }
}

fn quic(json: &mut Json, initial: &quic::Initial) {
    json.object("quic");
    match initial.version {
        // Google's versions are letters.
        version @ 0x5130_3000..=0x5130_39ff => json.wire("version", &version.to_be_bytes()),
        version => json.hex("version", "", u64::from(version), 1),
    }
    wire_if(json, "sni", initial.handshake.sni.as_deref());
    fingerprints(json, &initial.handshake);
    if !initial.handshake.client_alpn.is_empty() {
        json.array("client_alpns");
        initial.handshake.client_alpn.iter().for_each(|name| json.wire_element(name));
        json.end_array();
    }
    json.close();
}

fn smtp(json: &mut Json, exchange: &smtp::Exchange) {
    json.object("smtp");
    wire_if(json, "helo", exchange.helo.as_deref());
    if let Some(from) = &exchange.mail_from {
        // As it stands in the command: Suricata keeps its brackets.
        bracketed(json, "mail_from", from);
    }
    if !exchange.rcpt_to.is_empty() {
        json.array("rcpt_to");
        exchange.rcpt_to.iter().for_each(|to| json.wire_element(&[b"<", &to[..], b">"].concat()));
        json.end_array();
    }
    json.close();
    if exchange.subject.is_some() || exchange.mail_bytes > 0 {
        json.object("email");
        json.text("status", "PARSE_DONE");
        wire_if(json, "subject", exchange.subject.as_deref());
        json.number("bytes", exchange.mail_bytes);
        json.close();
    }
}

fn bracketed(json: &mut Json, name: &str, path: &[u8]) {
    json.wire(name, &[b"<", path, b">"].concat());
}

fn ftp(json: &mut Json, exchange: &ftp::Exchange) {
    json.object("ftp");
    if !exchange.command.is_empty() {
        json.wire("command", &exchange.command);
    }
    if !exchange.argument.is_empty() {
        json.wire("command_data", &exchange.argument);
    }
    if !exchange.codes.is_empty() {
        json.array("reply");
        exchange.reply.iter().for_each(|line| json.wire_element(line));
        json.end_array();
        json.array("completion_code");
        exchange.codes.iter().for_each(|code| json.wire_element(code.to_string().as_bytes()));
        json.end_array();
    }
    if let Some(port) = exchange.data_port {
        json.number("dynamic_port", u64::from(port));
        json.text("mode", if exchange.is_passive { "passive" } else { "active" });
    }
    json.text("reply_received", if exchange.codes.is_empty() { "no" } else { "yes" });
    json.close();
}

fn ftp_data(json: &mut Json, transfer: &ftp::Transfer) {
    json.object("ftp_data");
    if !transfer.file.is_empty() {
        json.wire("filename", &transfer.file);
    }
    if !transfer.command.is_empty() {
        json.wire("command", &transfer.command);
    }
    json.number("bytes", transfer.bytes);
    json.close();
}

/// Names of the statuses that are met most (MS-ERREF, 2.3).
const NT_STATUSES: &[(u32, &str)] = &[
    (0x0000_0000, "STATUS_SUCCESS"),
    (0x0000_0103, "STATUS_PENDING"),
    (0x0000_010b, "STATUS_NOTIFY_CLEANUP"),
    (0x0000_010c, "STATUS_NOTIFY_ENUM_DIR"),
    (0x8000_0005, "STATUS_BUFFER_OVERFLOW"),
    (0x8000_0006, "STATUS_NO_MORE_FILES"),
    (0xc000_0001, "STATUS_UNSUCCESSFUL"),
    (0xc000_0002, "STATUS_NOT_IMPLEMENTED"),
    (0xc000_0003, "STATUS_INVALID_INFO_CLASS"),
    (0xc000_0008, "STATUS_INVALID_HANDLE"),
    (0xc000_000d, "STATUS_INVALID_PARAMETER"),
    (0xc000_000f, "STATUS_NO_SUCH_FILE"),
    (0xc000_0010, "STATUS_INVALID_DEVICE_REQUEST"),
    (0xc000_0011, "STATUS_END_OF_FILE"),
    (0xc000_0016, "STATUS_MORE_PROCESSING_REQUIRED"),
    (0xc000_0022, "STATUS_ACCESS_DENIED"),
    (0xc000_0023, "STATUS_BUFFER_TOO_SMALL"),
    (0xc000_0033, "STATUS_OBJECT_NAME_INVALID"),
    (0xc000_0034, "STATUS_OBJECT_NAME_NOT_FOUND"),
    (0xc000_0035, "STATUS_OBJECT_NAME_COLLISION"),
    (0xc000_003a, "STATUS_OBJECT_PATH_NOT_FOUND"),
    (0xc000_0043, "STATUS_SHARING_VIOLATION"),
    (0xc000_0054, "STATUS_FILE_LOCK_CONFLICT"),
    (0xc000_0056, "STATUS_DELETE_PENDING"),
    (0xc000_005e, "STATUS_NO_LOGON_SERVERS"),
    (0xc000_0061, "STATUS_PRIVILEGE_NOT_HELD"),
    (0xc000_0064, "STATUS_NO_SUCH_USER"),
    (0xc000_006a, "STATUS_WRONG_PASSWORD"),
    (0xc000_006d, "STATUS_LOGON_FAILURE"),
    (0xc000_006e, "STATUS_ACCOUNT_RESTRICTION"),
    (0xc000_0071, "STATUS_PASSWORD_EXPIRED"),
    (0xc000_0072, "STATUS_ACCOUNT_DISABLED"),
    (0xc000_007f, "STATUS_DISK_FULL"),
    (0xc000_00ac, "STATUS_PIPE_NOT_AVAILABLE"),
    (0xc000_00ba, "STATUS_FILE_IS_A_DIRECTORY"),
    (0xc000_00bb, "STATUS_NOT_SUPPORTED"),
    (0xc000_00c9, "STATUS_NETWORK_NAME_DELETED"),
    (0xc000_00cc, "STATUS_BAD_NETWORK_NAME"),
    (0xc000_0101, "STATUS_DIRECTORY_NOT_EMPTY"),
    (0xc000_0103, "STATUS_NOT_A_DIRECTORY"),
    (0xc000_0120, "STATUS_CANCELLED"),
    (0xc000_0121, "STATUS_CANNOT_DELETE"),
    (0xc000_0128, "STATUS_FILE_CLOSED"),
    (0xc000_015b, "STATUS_LOGON_TYPE_NOT_GRANTED"),
    (0xc000_0193, "STATUS_ACCOUNT_EXPIRED"),
    (0xc000_0203, "STATUS_USER_SESSION_DELETED"),
    (0xc000_0225, "STATUS_NOT_FOUND"),
    (0xc000_0234, "STATUS_ACCOUNT_LOCKED_OUT"),
    (0xc000_0257, "STATUS_PATH_NOT_COVERED"),
    (0xc000_035c, "STATUS_NETWORK_SESSION_EXPIRED"),
];

fn smb(json: &mut Json, tx: u32, exchange: &smb::Exchange) {
    json.object("smb");
    json.number("id", u64::from(tx) + 1);
    json.text("dialect", if exchange.dialect.is_empty() { "unknown" } else { &exchange.dialect });
    json.text("command", exchange.command);
    if let Some(status) = exchange.status {
        if let Ok(place) = NT_STATUSES.binary_search_by_key(&status, |(code, _)| *code) {
            json.text("status", NT_STATUSES[place].1);
        }
        json.hex("status_code", "0x", u64::from(status), 1);
    }
    json.number("session_id", exchange.session);
    json.number("tree_id", u64::from(exchange.tree));
    if !exchange.offered.is_empty() {
        json.array("client_dialects");
        exchange.offered.iter().for_each(|dialect| json.wire_element(dialect.as_bytes()));
        json.end_array();
    }
    if let Some(file) = &exchange.file {
        json.text("filename", file);
    }
    if let Some(to) = &exchange.rename_to {
        json.object("rename");
        json.text("from", exchange.file.as_deref().unwrap_or_default());
        json.text("to", to);
        json.close();
    }
    if let Some(share) = &exchange.share {
        json.text("share", share);
    }
    if let Some((user, domain)) = &exchange.user {
        json.object("ntlmssp");
        json.text("domain", domain);
        json.text("user", user);
        json.close();
    }
    json.close();
}

fn ssh(json: &mut Json, handshake: &ssh::Handshake) {
    json.object("ssh");
    for (name, half) in [("client", &handshake.client), ("server", &handshake.server)] {
        if half.protocol.is_empty() && half.hassh.is_none() {
            continue;
        }
        json.object(name);
        if !half.protocol.is_empty() {
            json.wire("proto_version", &half.protocol);
            json.wire("software_version", &half.software);
        }
        hashed(json, "hassh", half.hassh.as_ref());
        json.close();
    }
    json.close();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_can_be_searched() {
        assert!(NT_STATUSES.is_sorted_by(|one, other| one.0 < other.0));
    }
}
