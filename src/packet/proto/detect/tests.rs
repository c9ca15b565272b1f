use proptest::prelude::*;

use super::*;

/// `start`, filled up to `length` bytes.
fn full(start: &[u8], fill: u8, length: usize) -> Vec<u8> {
    let mut bytes = start.to_vec();
    bytes.resize(length.max(start.len()), fill);
    bytes
}

fn yes(protocol: AppProto) -> Detected {
    Detected::Yes { protocol, client: Side::Client }
}

fn tcp(client: &[u8], server: &[u8], port: u16) -> Detected {
    detect(false, client, server, port)
}

/// Asserts the answer, that it is the same with the sides given the wrong way round, and that every way of cutting both
/// streams has `More` until it is there.
#[track_caller]
fn check(client: &[u8], server: &[u8], port: u16, wanted: Detected) {
    let name = String::from_utf8_lossy(&client[..client.len().min(40)]).into_owned();
    assert_eq!(tcp(client, server, port), wanted, "{name:?}");
    let turned = match wanted {
        // Who is who does not show in SSH.
        Detected::Yes { protocol, .. } if protocol != AppProto::Ssh => Detected::Yes { protocol, client: Side::Server },
        same => same,
    };
    assert_eq!(tcp(server, client, port), turned, "{name:?}, turned");
    for client_end in 0..=client.len().min(PREFIX_MAX) {
        for server_end in 0..=server.len().min(PREFIX_MAX) {
            let found = tcp(&client[..client_end], &server[..server_end], port);
            assert!(found == Detected::More || found == wanted, "{name:?} {client_end} {server_end}: {found:?}");
        }
    }
}

const CLIENT_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x8f\x9a\x10\x77\x5d\x1e";
const SERVER_HELLO: &[u8] = b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03\x1c\x66\x2a\x18\x57";
const SMB1_ASK: &[u8] =
    b"\0\0\0\x85\xffSMBr\0\0\0\0\x18S\xc8\0\0\0\0\0\0\0\0\0\0\0\0\xff\xff\xff\xfe\0\0\0\0\0b\0\x02PC";
const SMB1_ANSWER: &[u8] =
    b"\0\0\0\x83\xffSMBr\0\0\0\0\x98S\xc8\0\0\0\0\0\0\0\0\0\0\0\0\xff\xff\xff\xfe\0\0\0\0\x11\x05\0";
const SMB2_ASK: &[u8] = b"\0\0\0\xe8\xfeSMB@\0\0\0\0\0\0\0\0\0\x1f\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const SMB2_ANSWER: &[u8] = b"\0\0\x01\x10\xfeSMB@\0\0\0\0\0\0\0\0\0\x01\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const DNS_ASK: &[u8] = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x07example\x03org\0\0\x01\0\x01";
const DNS_ANSWER: &[u8] = b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0\x07example\x03org\0\0\x01\0\x01\
      \xc0\x0c\0\x01\0\x01\0\0\x0e\x10\0\x04\xc0\0\x02\x01";

fn netbios_request() -> Vec<u8> {
    let mut bytes =
        b"\x81\0\0\x44\x20CKFDENECFDEFFCFGEFFCCACACACACACA\0\x20EHEOEPECEJEDCACACACACACACACACAAA\0".to_vec();
    bytes.extend_from_slice(SMB1_ASK);
    bytes
}

fn over_tcp(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes(), message].concat()
}

#[test]
fn finds_its_protocols() {
    let table: &[(&[u8], &[u8], AppProto)] = &[
        (b"GET /index.html HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", AppProto::Http),
        (b"POST http://a/b HTTP/1.0\r\n", b"HTTP/1.0 302 Found\r\n", AppProto::Http),
        (b"CONNECT example.org:443 HTTP/1.1\r\n", b"HTTP/1.1 200 Connection established\r\n", AppProto::Http),
        (b"PROPFIND / HTTP/1.1\r\n", b"HTTP/1.1 207 Multi-Status\r\n", AppProto::Http),
        (b"OPTIONS * HTTP/1.1\r\n", b"HTTP/1.1 200 OK\r\n", AppProto::Http),
        (b"SOURCE /stream HTTP/1.0\r\n", b"HTTP/1.0 200 OK\r\n", AppProto::Http),
        (b"get  /a b HTTP/1.1\n", b"HTTP/1.1 400 Bad Request\r\n", AppProto::Http),
        (b"\r\nHEAD / HTTP/1.1\r\n", b"HTTP/1.1 200 OK\r\n", AppProto::Http),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04", b"\0\0\x12\x04\0\0\0\0\0\0\x03", AppProto::Http2),
        (CLIENT_HELLO, SERVER_HELLO, AppProto::Tls),
        (b"\x16\x03\x00\x00\x2d\x01\x00\x00\x29\x03\x00\x4d\x5e", b"\x16\x03\0\0\x4a\x02\0\0\x46\x03\0", AppProto::Tls),
        (b"EHLO mx.example.org\r\n", b"220 mail.example.org ESMTP Postfix\r\n250-PIPELINING\r\n", AppProto::Smtp),
        (b"helo x\nMAIL FROM:<a@b>\n", b"220-hello\r\n220 you\r\n250 hi\r\n", AppProto::Smtp),
        (b"LHLO a\r\n", b"220 x LMTP\r\n", AppProto::Smtp),
        (b"USER anonymous\r\nPASS x\r\n", b"220 (vsFTPd 3.0.3)\r\n331 Password.\r\n", AppProto::Ftp),
        (b"AUTH TLS\r\n", b"220 ready\r\n234 go\r\n", AppProto::Ftp),
        (b"FEAT\r\n", b"220-a\r\n220 b\r\n211-Features:\r\n", AppProto::Ftp),
        (b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n", b"SSH-2.0-OpenSSH_8.9\r\n", AppProto::Ssh),
        (b"SSH-1.99-x\n", b"SSH-1.5-y\n", AppProto::Ssh),
        (SMB1_ASK, SMB1_ANSWER, AppProto::Smb),
        (SMB2_ASK, SMB2_ANSWER, AppProto::Smb),
        (SMB1_ASK, SMB2_ANSWER, AppProto::Smb),
        (&netbios_request(), &[b"\x82\0\0\0", SMB1_ANSWER].concat(), AppProto::Smb),
        (&over_tcp(DNS_ASK), &over_tcp(DNS_ANSWER), AppProto::Dns),
    ];
    for (client, server, protocol) in table {
        // On its own port, and on others.
        for port in [25, 21, 53, 443, 8080, 40000] {
            check(client, server, port, yes(*protocol));
        }
    }
}

#[test]
fn leaves_others_alone() {
    let long = |start: &[u8]| full(start, b'x', PREFIX_MAX);
    let table: &[(&str, &[u8], &[u8])] = &[
        ("rtsp", b"OPTIONS rtsp://cam/1 RTSP/1.0\r\nCSeq: 1\r\n", b"RTSP/1.0 200 OK\r\n"),
        ("rtsp describe", b"DESCRIBE rtsp://cam/1 RTSP/1.0\r\n", b"RTSP/1.0 401 Unauthorized\r\n"),
        ("sip", b"REGISTER sip:example.org SIP/2.0\r\n", b"SIP/2.0 200 OK\r\n"),
        ("icy", b"\x00\x01\x02\x03\x04", b"ICY 200 OK\r\n"),
        ("pop3", b"USER bob\r\nPASS secret\r\n", b"+OK POP3 ready\r\n"),
        ("pop3 capa", b"CAPA\r\nAUTH PLAIN\r\n", b"+OK POP3 ready\r\n"),
        ("imap", b"a1 LOGIN bob secret\r\n", b"* OK IMAP4rev1 ready\r\n"),
        ("irc", b"NICK bob\r\nUSER bob 0 * :Bob\r\n", b":irc.example.org NOTICE * :*** Looking up\r\n"),
        ("irc user first", b"USER bob 0 * :Bob\r\nNICK bob\r\n", b":irc.example.org 001 bob :Welcome\r\n"),
        ("nntp", b"MODE READER\r\nGROUP comp.lang\r\n", b"200 news.example.org ready\r\n"),
        ("nntp list", b"LIST\r\n", b"201 news ready\r\n"),
        ("redis", b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n"),
        ("redis inline", b"GET key\r\n", b"$-1\r\n"),
        ("memcached", b"get key\r\n", b"END\r\n"),
        ("mysql", b"\x20\0\0\x01\x85\xa6\xff\x01\0\0\0\x01!", b"\x4a\0\0\0\x0a8.0.33\0\x08\0\0\0"),
        ("postgres", b"\0\0\0\x08\x04\xd2\x16\x2f", b"N\0\0\0\x01"),
        ("postgres startup", b"\0\0\0\x54\0\x03\0\0user\0bob\0", b"R\0\0\0\x08\0\0\0\0"),
        ("mssql", b"\x12\x01\0\x2f\0\0\0\0\0\0\x1a\0\x06\x01\0\x20", b"\x04\x01\0\x2b\0\0\x01\0"),
        ("mongodb", b"\x3a\0\0\0\x01\0\0\0\0\0\0\0\xd4\x07\0\0", b"\x5e\0\0\0\x02\0\0\0\x01\0\0\0\x01\0\0\0"),
        ("bittorrent", b"\x13BitTorrent protocol\0\0\0\0\0\x10\0\x05", b"\x13BitTorrent protocol\0\0\0\0\0\0\0\0"),
        ("rdp", b"\x03\0\0\x13\x0e\xe0\0\0\0\0\0\x01\0\x08\0\x03\0\0\0", b"\x03\0\0\x13\x0e\xd0\0\0\x12\x34\0\x02\x01"),
        ("telnet", b"\xff\xfd\x03\xff\xfb\x18", b"\xff\xfd\x18\xff\xfd\x20\xff\xfd\x23"),
        ("mqtt", b"\x10\x1a\0\x04MQTT\x04\x02\0\x3c\0\x0ebob", b"\x20\x02\0\0"),
        (
            "ldap",
            b"\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\0\x80\0",
            b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\0\x04\0\x04\0",
        ),
        ("kerberos", b"\0\0\0\xe6\x6a\x81\xe3\x30\x81\xe0\xa1\x03\x02\x01\x05", b"\0\0\x01\x02\x7e\x81\xff\x30"),
        ("socks5", b"\x05\x02\0\x02", b"\x05\0"),
        ("socks4", b"\x04\x01\x01\xbb\xc0\0\x02\x01bob\0", b"\0\x5a\0\0\0\0\0\0"),
        (
            "openvpn",
            b"\0\x0e\x38\x1c\x9a\x5e\x11\x22\x33\x44\x55\0\0\0\0\0",
            b"\0\x1a\x40\x01\x02\x03\x04\x05\x06\x07\x08\x01\0\0\0\0",
        ),
        ("rtmp", b"\x03\0\0\0\0\0\0\0\0\x12\x34", b"\x03\0\0\0\x01\x0d\x0e\x0a\x0d\x11"),
        ("modbus", b"\0\x01\0\0\0\x06\x01\x03\0\0\0\x0a", b"\0\x01\0\0\0\x17\x01\x03\x14\0\0\0\0\0\0\0\0"),
        ("dnp3", b"\x05\x64\x05\xc9\x01\0\0\0\x36\x4c", b"\x05\x64\x05\x0b\0\0\x01\0\x0f\x0b"),
        (
            "s7comm",
            b"\x03\0\0\x16\x11\xe0\0\0\0\x01\0\xc0\x01\x0a\xc1\x02\x01\0",
            b"\x03\0\0\x16\x11\xd0\0\x01\0\x02\0",
        ),
        ("bgp", &full(b"", 0xff, 16), &[full(b"", 0xff, 16), b"\0\x1d\x01\x04".to_vec()].concat()),
        ("x11", b"l\0\x0b\0\0\0\x12\0\x10\0\0\0", b"\x01\0\x0b\0\0\0\xb4\x0b\x52\x55\xb6\0"),
        ("vnc", b"RFB 003.008\n\x01", b"RFB 003.008\n\x02\x01\x02"),
        ("xmpp", b"<?xml version='1.0'?><stream:stream to='a'", b"<?xml version='1.0'?><stream:stream id='1'"),
        (
            "stun",
            b"\0\x01\0\x08\x21\x12\xa4\x42abcdefghijkl\0\x06\0\x04bob1",
            b"\x01\x01\0\x0c\x21\x12\xa4\x42abcdefghijkl",
        ),
        (
            "rpc",
            b"\x80\0\0\x28\x12\x34\x56\x78\0\0\0\0\0\0\0\x02\0\x01\x86\xa0",
            b"\x80\0\0\x1c\x12\x34\x56\x78\0\0\0\x01\0\0\0\0",
        ),
        ("dcerpc", b"\x05\0\x0b\x03\x10\0\0\0\x48\0\0\0\x01\0\0\0", b"\x05\0\x0c\x03\x10\0\0\0\x3c\0\0\0\x01\0\0\0"),
        ("finger", &long(b"bob\r\n"), b"Login: bob\r\n"),
        ("gopher", &long(b"/docs\r\n"), b"iWelcome\tfake\t(NULL)\t0\r\n"),
        ("tls application data", b"\x17\x03\x03\x01\x20\x8a\x9b\xcc", b"\x17\x03\x03\x05\x78\x01\x02"),
        ("tls certificate", b"\x16\x03\x03\x10\0\x0b\0\x0f\xfc\0", b"\x15\x03\x03\0\x02\x02\x28"),
        ("zeroes", &[0; 64], &[0; 64]),
    ];
    for (name, client, server) in table {
        for port in [25, 21, 53, 80, 443, 445, 40000] {
            let found = tcp(client, server, port);
            // Text that no line ends is waited for; nothing is taken for another.
            assert!(matches!(found, Detected::No | Detected::More), "{name} on {port}: {found:?}");
            check(client, server, port, found);
            let filled = tcp(&long(client), &long(server), port);
            assert_eq!(filled, Detected::No, "{name} on {port}, with both prefixes full");
        }
    }
}

/// Its banner reads as a method, and may go on as a request line does.
#[test]
fn a_banner_is_no_request_line() {
    let banner = b"SSH-2.0-x y HTTP/1.1\r\n";
    for end in 7..=banner.len() {
        assert_eq!(tcp(&banner[..end], b"", 80), yes(AppProto::Ssh), "{end}");
    }
}

#[test]
fn gives_up_soon() {
    let table: &[(&[u8], &[u8])] = &[
        (b"\x10\x1a\0\x04MQTT\x04\x02\0\x3c\0\x0ebob\0\0", b"\x20\x02\0\0\x90\x03\0\x02"),
        (b"\x13BitTorrent", b"\x13BitTorrent"),
        (b"\x03\0\0\x13\x0e\xe0\0", b"\x03\0\0\x13\x0e\xd0\0"),
        (b"CAPA\r\n", b"+OK POP3\r\n"),
        (b"a1 LOGIN\r\n", b"* OK IMAP\r\n"),
    ];
    for (client, server) in table {
        assert_eq!(tcp(client, server, 40000), Detected::No, "{:?}", String::from_utf8_lossy(client));
    }
}

/// What a server takes for a request may be such that only its answer tells; so one side alone gives nobody up.
#[test]
fn a_side_that_says_nothing_known_waits_for_the_other() {
    let unknown = [7; PREFIX_MAX];
    for said in [&unknown[..8], &unknown] {
        assert_eq!(tcp(said, b"", 9), Detected::More);
        assert_eq!(tcp(b"", said, 9), Detected::More);
        assert_eq!(tcp(said, &[7; 8], 9), Detected::No);
        assert_eq!(tcp(&[7; 8], said, 9), Detected::No);
    }
    let odd_method = full(b"FROBNICATE /", b'a', 600);
    let empty_record: &[u8] = &[b"\x16\x03\x01\0\0", CLIENT_HELLO].concat();
    let odd_hello = &[&CLIENT_HELLO[..9], b"\x7f\0", &full(b"", 0x5a, 600)].concat();
    let table: &[(&[u8], &[u8], AppProto)] = &[
        (&odd_method, b"HTTP/1.1 405 Method Not Allowed\r\n", AppProto::Http),
        (b" GET / HTTP/1.1\r\n", b"HTTP/1.0 200 OK\r\n", AppProto::Http),
        (empty_record, SERVER_HELLO, AppProto::Tls),
        (odd_hello, SERVER_HELLO, AppProto::Tls),
    ];
    for (client, server, protocol) in table {
        assert_eq!(tcp(client, b"", 40000), Detected::More, "{protocol:?}");
        check(client, server, 40000, yes(*protocol));
    }
}

#[test]
fn empty_lines_and_spaces_in_front_hide_no_request() {
    let http = yes(AppProto::Http);
    for count in [1, 8, 9, 200, PREFIX_MAX - 1, PREFIX_MAX, 3 * PREFIX_MAX] {
        for blank in [&b"\r\n"[..], b"\n", b"\r"] {
            let blanks = blank.repeat(count);
            let request = [&blanks[..], b"GET /admin HTTP/1.1\r\n"].concat();
            assert_eq!(tcp(&blanks, b"", 80), Detected::More, "{count}");
            assert_eq!(tcp(&request, b"", 80), http, "{count}");
            // Fewer of them change nothing, if they are enough.
            let enough = blanks.len().saturating_sub(PREFIX_MAX);
            for end in 0..request.len() - enough {
                let found = tcp(&request[enough..enough + end], b"", 80);
                assert!(found == http || found == Detected::More, "{count} {end}: {found:?}");
            }
            assert_eq!(tcp(&request[enough..], b"", 80), http, "{count}");
            // A long target starts to count behind them.
            let long = [&blanks[..], b"GET /", &[b'a'; 600]].concat();
            assert_eq!(tcp(&long, b"", 80), http, "{count}");
            assert_eq!(tcp(&long[..blanks.len() + PREFIX_MAX - 1], b"", 80), Detected::More, "{count}");
        }
        let spaces = [b"GET", &b" ".repeat(count)[..], b"/admin HTTP/1.1\r\n"].concat();
        check(&spaces, b"", 80, http);
        check(&spaces.to_ascii_lowercase()[..spaces.len() - 20], b"HTTP/1.1 400 Bad Request\r\n", 80, http);
    }
    assert_eq!(tcp(&b"\r\n".repeat(600), &[7; PREFIX_MAX], 80), Detected::More, "nothing was said yet");
    assert_eq!(tcp(&[&b"\r\n".repeat(600)[..], b"\x07"].concat(), &[7; 8], 80), Detected::No);
}

/// Receivers look at a record's type and major version only.
#[test]
fn any_minor_version_of_a_record_is_tls() {
    for minor in 0..=255 {
        let mut hello = CLIENT_HELLO.to_vec();
        hello[2] = minor;
        check(&hello, b"", 443, yes(AppProto::Tls));
    }
}

#[test]
fn a_greeting_waits_for_its_client() {
    let postfix: &[u8] = b"220 mail.example.org ESMTP Postfix\r\n";
    let vsftpd: &[u8] = b"220 (vsFTPd 3.0.3)\r\n";
    let plain: &[u8] = b"220 ready\r\n";
    let (smtp, ftp) = (yes(AppProto::Smtp), yes(AppProto::Ftp));
    let table: &[(&[u8], &[u8], u16, Detected)] = &[
        (b"", postfix, 25, Detected::More),
        (b"", vsftpd, 21, Detected::More),
        // The command decides, whatever the greeting and the port say.
        (b"USER bob\r\n", postfix, 25, ftp),
        (b"EHLO bob\r\n", vsftpd, 21, smtp),
        (b"AUTH PLAIN AGEAYg==\r\n", plain, 21, smtp),
        (b"auth tls\r\n", plain, 25, ftp),
        // Else the greeting, else the port.
        (b"QUIT\r\n", postfix, 21, smtp),
        (b"QUIT\r\n", vsftpd, 25, ftp),
        (b"QUIT\r\n", plain, 25, smtp),
        (b"QUIT\r\n", plain, 21, ftp),
        (b"QUIT\r\n", plain, 40000, Detected::More),
        (b"FOO\r\nNOOP\r\nRCPT TO:<a@b>\r\n", plain, 40000, smtp),
        (b"NOOP\r\nPWD\r\n", plain, 40000, ftp),
        (b"GET x\r\n", plain, 40000, Detected::More),
        (b"\x01\x02\x03", plain, 25, Detected::More),
        (b"NOOP\r\nMAIL FROM:<>\r\n", b"421 busy\r\n", 40000, smtp),
        // Rubbish is answered with an error, and the next line is read.
        (b"\r\n\x01\r\n\xff\xfe 1\r\nEHLO bob\r\n", plain, 40000, smtp),
        (b"\r\n\r\n<<>>\r\nUSER bob\r\n", plain, 40000, ftp),
        (b"\r\nQUIT\r\n", postfix, 40000, smtp),
        (b"\r\n\r\n", postfix, 25, Detected::More),
        (b"\r\nMAIL FROM:<>\r\n", b"250 ok\r\n", 40000, Detected::No),
        // The server alone, once it answers.
        (b"", b"220-a\r\n220 b\r\n250-PIPELINING\r\n", 40000, smtp),
        (b"", b"220 b\r\n331 Password\r\n", 40000, ftp),
        (b"", b"220 b\r\n530 Log in first\r\n", 40000, Detected::More),
        // In the middle of a conversation.
        (b"MAIL FROM:<a@b>\r\n", b"", 40000, smtp),
        (b"PORT 10,0,0,1,4,1\r\n", b"", 40000, ftp),
        (b"EPSV\r\n", b"229 Entering Extended Passive Mode (|||6446|)\r\n", 40000, ftp),
        (b"USER bob\r\nSYST\r\n", b"", 40000, ftp),
        (b"USER bob\r\nPASS x\r\n", b"", 40000, Detected::More),
    ];
    for (client, server, port, wanted) in table {
        check(client, server, *port, *wanted);
    }
}

#[test]
fn a_hello_in_tiny_records() {
    let hello = b"\x01\x00\x01\xfc\x03\x03\x8f\x9a";
    for size in 1..=hello.len() {
        let mut bytes = Vec::new();
        for piece in hello.chunks(size) {
            bytes.extend_from_slice(&[22, 3, 1, 0, piece.len() as u8]);
            bytes.extend_from_slice(piece);
        }
        check(&bytes, b"", 40000, yes(AppProto::Tls));
    }
    assert_eq!(tls(b"\x16\x03\x01\x00\x00"), Look::Not, "an empty record");
    assert_eq!(tls(b"\x16\x03\x01\x40\x01"), Look::Not, "a record that is too long");
    assert_eq!(tls(b"\x16\x03\x01\x00\x30\x01\x00\x00\x10\x03\x01"), Look::Not, "a hello that is too short");
}

#[test]
fn an_sslv2_hello() {
    let hello = full(b"\x80\x2e\x01\x03\x01\0\x15\0\0\0\x10\0\0\x04\0\0\x05", 7, 48);
    check(&hello, SERVER_HELLO, 443, yes(AppProto::Tls));
    for (at, wrong) in [(1, 0x2f), (2, 2), (3, 1), (4, 9), (6, 0x16), (8, 1), (10, 8)] {
        let mut bad = hello.clone();
        bad[at] = wrong;
        assert_eq!(tcp(&bad, &[0; 32], 443), Detected::No, "byte {at}");
    }
}

#[test]
fn a_request_line_that_is_longer_than_the_prefix() {
    let line = full(b"GET /", b'a', 600);
    assert_eq!(tcp(&line[..PREFIX_MAX - 1], b"", 80), Detected::More);
    assert_eq!(tcp(&line, b"", 80), yes(AppProto::Http));
    for target in ["http://a/", "HTTP://a/", "hTTps://a/"] {
        let line = full(format!("GET {target}").as_bytes(), b'a', 600);
        assert_eq!(tcp(&line, b"", 80), yes(AppProto::Http), "{target}");
        // Spaces may push any part of it out of sight.
        for shown in 0..target.len() {
            let line = format!("GET{:spaces$}{target}", "", spaces = PREFIX_MAX - 3 - shown);
            assert_eq!(tcp(line.as_bytes(), b"", 80), yes(AppProto::Http), "{target} {shown}");
        }
    }
    // What is nothing for certain.
    for line in [&b"FROBNICATE /"[..], b"GET key", b"GET httq://", b"GET http:/a"] {
        assert_eq!(tcp(&full(line, b'a', 600), &[7; 8], 80), Detected::No, "{:?}", String::from_utf8_lossy(line));
    }
}

#[test]
fn a_datagram_that_begins_a_connection_is_told_from_all_others() {
    let initial = full(b"\xc3\0\0\0\x01\x08abcdefgh\0\0\x44\x9e", 0x42, 1200);
    assert_eq!(begins(&initial), Some(AppProto::Quic));
    assert_eq!(begins(&initial[..PREFIX_MAX]), Some(AppProto::Quic));
    let google: &[u8] = &full(b"\xc3Q046\x50abcdefgh\0\0\0\x01", 0x42, 1200);
    let greased: &[u8] = &full(b"\xc3\x1a\x2a\x3a\x4a\x08abcdefgh\0\0\x44\x9e", 0x42, 1200);
    for other in [google, greased, &initial[..PREFIX_MAX - 1], DNS_ASK, &full(DNS_ANSWER, 0, 1200), &[0x41; 1200], b""]
    {
        assert_eq!(begins(other), None);
    }
}

#[test]
fn a_response_tells_who_is_the_server() {
    let table: &[(&[u8], AppProto)] = &[
        (b"HTTP/1.1 200 OK\r\n", AppProto::Http),
        (SERVER_HELLO, AppProto::Tls),
        (SMB2_ANSWER, AppProto::Smb),
        (SMB1_ANSWER, AppProto::Smb),
        (&over_tcp(DNS_ANSWER), AppProto::Dns),
    ];
    for (bytes, protocol) in table {
        assert_eq!(tcp(b"", bytes, 40000), yes(*protocol), "{protocol:?}");
        assert_eq!(tcp(bytes, b"", 40000), Detected::Yes { protocol: *protocol, client: Side::Server }, "{protocol:?}");
    }
}

fn udp(client: &[u8], server: &[u8], port: u16) -> Detected {
    detect(true, client, server, port)
}

#[test]
fn datagrams() {
    let dns = yes(AppProto::Dns);
    for port in [53, 5300, 40000] {
        assert_eq!(udp(DNS_ASK, DNS_ANSWER, port), dns);
        assert_eq!(udp(b"", DNS_ANSWER, port), dns);
        assert_eq!(udp(DNS_ANSWER, DNS_ASK, port), Detected::Yes { protocol: AppProto::Dns, client: Side::Server });
        assert_eq!(udp(b"", b"", port), Detected::More);
    }
    let mdns = b"\0\0\0\0\0\x01\0\0\0\0\0\0\x05_http\x04_tcp\x05local\0\0\x0c\0\x01";
    let netbios = b"\x12\x34\x01\x10\0\x01\0\0\0\0\0\0\x20CKAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\0\0\x21\0\x01";
    let damaged = b"\x12\x34\x01\x10\0\x01\0\0\0\0\0\0\x04CKAa\0\0\x20\0\x01";
    let inverse = b"\x77\xfc\x09\0\0\0\0\x01\0\0\0\0\x03216\x0258\x03202\x014\0\0\x01\0\x01\0\0\0\0\0\0";
    check(&over_tcp(inverse), b"", 53, dns);
    let two_answers = b"\x77\xfc\x09\0\0\0\0\x02\0\0\0\0\x03216\0\0\x01\0\x01\0\0\0\0\0\0\0\0\x01\0\x01\0\0\0\0\0\0";
    let quic = |start: &[u8]| full(start, 0x42, 1200);
    let table: &[(&str, &[u8], u16, Detected)] = &[
        ("mdns", mdns, 5353, Detected::No),
        ("llmnr", b"\x12\x34\0\0\0\x01\0\0\0\0\0\0\x04host\0\0\x01\0\x01", 5355, Detected::No),
        ("dns on the port of mdns", DNS_ASK, 5353, dns),
        ("netbios", netbios, 137, Detected::No),
        ("netbios elsewhere", netbios, 40000, Detected::No),
        ("netbios of a name that is damaged", damaged, 40000, Detected::No),
        ("netbios asked of a dns server", netbios, 53, dns),
        ("notify", b"\0\x01\x24\0\0\x01\0\0\0\0\0\0\x03org\0\0\x06\0\x01", 53, dns),
        ("notify elsewhere", b"\0\x01\x24\0\0\x01\0\0\0\0\0\0\x03org\0\0\x06\0\x01", 40000, Detected::No),
        ("an inverse query", inverse, 53, dns),
        ("an inverse query elsewhere", inverse, 40000, Detected::No),
        ("an inverse query cut short", &inverse[..inverse.len() - 1], 53, Detected::No),
        ("an inverse query with two answers", two_answers, 53, Detected::No),
        ("no question that is no inverse query", &[&b"\x77\xfc\x01"[..], &inverse[3..]].concat(), 53, Detected::No),
        ("bytes behind the question", &[DNS_ASK, b"xx"].concat(), 40000, Detected::No),
        ("bytes behind the question at home", &[DNS_ASK, b"xx"].concat(), 53, dns),
        ("a query cut short", &DNS_ASK[..20], 53, Detected::No),
        ("quic 1", &quic(b"\xc3\0\0\0\x01\x08abcdefgh\0\0\x44\x9e"), 443, yes(AppProto::Quic)),
        ("quic 2", &quic(b"\xd3\x6b\x33\x43\xcf\x08abcdefgh\x08ABCDEFGH\0\x44\x9e"), 40000, yes(AppProto::Quic)),
        ("quic draft 29", &quic(b"\xc3\xff\0\0\x1d\x08abcdefgh\0\0\x44\x9e"), 443, yes(AppProto::Quic)),
        ("quic Q043", &quic(b"\x0dabcdefghQ043\x01"), 443, yes(AppProto::Quic)),
        ("quic Q046", &quic(b"\xc3Q046\x50abcdefgh\0\0\0\x01"), 443, yes(AppProto::Quic)),
        ("quic handshake", &quic(b"\xe3\0\0\0\x01\x08abcdefgh\0\x44\x9e"), 443, Detected::No),
        ("quic of an unknown version", &quic(b"\xc3\x12\x34\x56\x78\x08abcdefgh\0\0\x44\x9e"), 443, Detected::No),
        ("quic without the fixed bit", &quic(b"\x83\0\0\0\x01\x08abcdefgh\0\0\x44\x9e"), 443, Detected::No),
        ("quic with a short id", &quic(b"\xc3\0\0\0\x01\x04abcd\0\0\x44\x9e"), 443, Detected::No),
        ("quic in a small datagram", b"\xc3\0\0\0\x01\x08abcdefgh\0\0\x44\x9e", 443, Detected::No),
        ("dtls", b"\x16\xfe\xfd\0\0\0\0\0\0\0\0\0\x9d\x01\0\0\x91", 443, Detected::No),
        ("ntp", &full(b"\xe3\0\x06\xec", 0, 48), 123, Detected::No),
        ("snmp", b"\x30\x26\x02\x01\x01\x04\x06public\xa0\x19\x02\x04", 161, Detected::No),
        ("wireguard", &full(b"\x01\0\0\0\x8a\x9b\xcd\xef", 0x5a, 148), 51820, Detected::No),
        ("openvpn", &full(b"\x38\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0", 0, 42), 1194, Detected::No),
        ("stun", b"\0\x01\0\0\x21\x12\xa4\x42abcdefghijkl", 3478, Detected::No),
        ("rtp", &full(b"\x80\x60\x12\x34\0\0\x03\xe8", 0x55, 172), 5004, Detected::No),
        ("dhcp", &full(b"\x01\x01\x06\0\x39\x03\xf3\x26", 0, 300), 67, Detected::No),
        ("tftp", b"\0\x01boot.img\0octet\0", 69, Detected::No),
        ("syslog", b"<34>Oct 11 22:14:15 host su: failed", 514, Detected::No),
        ("sip", b"OPTIONS sip:a@b SIP/2.0\r\n", 5060, Detected::No),
        ("ssdp", b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n", 1900, Detected::No),
        ("ssdp notify", b"NOTIFY * HTTP/1.1\r\n", 1900, Detected::No),
        ("http in a datagram", b"GET / HTTP/1.1\r\n\r\n", 80, Detected::No),
        ("kerberos", b"\x6a\x81\xe3\x30\x81\xe0\xa1\x03\x02\x01\x05\xa2\x03\x02\x01\x0a\xa3\x0e", 88, Detected::No),
        ("radius", &full(b"\x01\x01\0\x38", 0x33, 56), 1812, Detected::No),
        ("bittorrent dht", b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe", 6881, Detected::No),
        ("quake", b"\xff\xff\xff\xffgetstatus\n", 27960, Detected::No),
    ];
    for (name, bytes, port, wanted) in table {
        assert_eq!(udp(bytes, b"", *port), *wanted, "{name}");
    }
}

/// Recorded conversations, byte by byte in their order: the answer comes, and is right.
#[test]
fn recorded_sessions_are_found() {
    let table = [
        ("smtp_plain", AppProto::Smtp),
        ("smtp_starttls", AppProto::Smtp),
        ("ftp_plain", AppProto::Ftp),
        ("ftp_auth_tls", AppProto::Ftp),
        ("smb1", AppProto::Smb),
        ("smb3_11", AppProto::Smb),
    ];
    for (name, protocol) in table {
        let mut sides = [Vec::new(), Vec::new()];
        let mut found = Detected::More;
        for (side, bytes) in crate::packet::proto::testing::recorded(&format!("{name}.bin")) {
            for byte in bytes {
                sides[side as usize].push(byte);
                let now = tcp(&sides[0], &sides[1], 40000);
                assert!(found == Detected::More || now == found, "{name}: {found:?}, then {now:?}");
                found = now;
            }
        }
        assert_eq!(found, yes(protocol), "{name}");
    }
}

/// Bytes such as protocols begin with, so that chance gets past the first checks.
fn streams() -> impl Strategy<Value = Vec<u8>> {
    let starts = prop::sample::select(vec![
        &b"GET / HTTP/1.1\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"HTTP/1.1 200",
        CLIENT_HELLO,
        SERVER_HELLO,
        SMB1_ASK,
        SMB2_ANSWER,
        b"\0\x1d\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03org\0\0\x01\0\x01",
        b"220 a SMTP\r\n250 b\r\n",
        b"EHLO x\r\nMAIL FROM:<a>\r\n",
        b"USER x\r\nNOOP\r\nQUIT\r\n",
        b"\x80\x2e\x01\x03\x01\0\x15\0\0\0\x10",
        b"\x81\0\0\x44\x20CKFDENECFDEFFCFGEFFCCACACACACACA\0",
        b"SSH-2.0-x",
        b"SSH-2.0-x y HTTP/1.1\r\n",
        b"\r\n\n\r\r\n\r\n\r\n\r\nGET  / HTTP/1.1\r\n",
        b"",
    ]);
    let change = prop::option::of((any::<prop::sample::Index>(), any::<u8>()));
    (starts, change, prop::collection::vec(any::<u8>(), 0..64), 0usize..40).prop_map(|(start, change, tail, cut)| {
        let mut bytes = start[..start.len().saturating_sub(cut / 4)].to_vec();
        bytes.extend_from_slice(&tail);
        if let (Some((at, byte)), false) = (change, bytes.is_empty()) {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

proptest! {
    /// More bytes of a side never change an answer, and no bytes make it panic.
    #[test]
    fn an_answer_stays(
        bytes in streams(),
        port in prop::sample::select(vec![21u16, 25, 53, 443, 40000]),
        turned: bool,
    ) {
        let ask = |end: usize| match turned {
            false => tcp(&bytes[..end], b"", port),
            true => tcp(b"", &bytes[..end], port),
        };
        let last = ask(bytes.len());
        for end in 0..bytes.len() {
            let found = ask(end);
            prop_assert!(found == Detected::More || found == last, "{end}: {found:?}, then {last:?}");
        }
    }

    /// A conversation of commands and replies, in order: the same answer however both streams are cut.
    #[test]
    fn talk_is_the_same_however_cut(
        commands in prop::collection::vec(prop::sample::select(vec![
            "EHLO a", "HELO", "NOOP", "QUIT", "USER bob", "PASS x", "FOO", "AUTH TLS", "AUTH PLAIN x", "AUTH", "LIST",
            "STAT",
        ]), 0..5),
        greeting in prop::sample::select(vec![
            "220 a", "220 a FTP", "220-a\r\n220 SMTP", "554 no", "200 news", "22", "+OK",
        ]),
        port in prop::sample::select(vec![21u16, 25, 40000]),
    ) {
        let client: String = commands.iter().map(|command| format!("{command}\r\n")).collect();
        let server = format!("{greeting}\r\n");
        let last = tcp(client.as_bytes(), server.as_bytes(), port);
        for end in 0..client.len() {
            let found = tcp(&client.as_bytes()[..end], server.as_bytes(), port);
            prop_assert!(found == Detected::More || found == last, "{end}: {found:?}, then {last:?}");
        }
    }

    #[test]
    fn random_bytes_are_nothing(client in prop::collection::vec(any::<u8>(), 600), is_udp: bool, port: u16) {
        // A chance of 2^-40 or less.
        prop_assert_eq!(detect(is_udp, &client, &client, port), Detected::No);
    }
}
