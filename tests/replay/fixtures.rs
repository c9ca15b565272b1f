//! The captures in tests/data/captures, as this code writes them: one for each protocol, and between them each file
//! format, link layer, and way in which packets arrive that is not the plain one.

use crate::support::captures::{Order, Pcapng, Precision, pcap};
use crate::support::conversations::{Client, Conversation, Packets, Server, with_link};

/// The first packet of every capture.
pub const START: u64 = 1_796_064_031_123_456_789;

fn be16(value: usize) -> [u8; 2] {
    (value as u16).to_be_bytes()
}

/// A vector of TLS with its length in front.
fn vector16(bytes: &[u8]) -> Vec<u8> {
    [&be16(bytes.len()), bytes].concat()
}

fn extension(kind: u16, bytes: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector16(bytes)].concat()
}

fn handshake_record(kind: u8, body: &[u8]) -> Vec<u8> {
    let message = [&[kind, 0], &be16(body.len())[..], body].concat();
    [&[0x16, 3, 1], &be16(message.len())[..], &message].concat()
}

/// A ClientHello that asks for a name and offers h2 and http/1.1.
pub fn client_hello(name: &str) -> Vec<u8> {
    let sni = vector16(&[&[0], &vector16(name.as_bytes())[..]].concat());
    let alpn = vector16(b"\x02h2\x08http/1.1");
    let extensions = [
        extension(0, &sni),
        extension(10, &vector16(&[0, 29, 0, 23])),
        extension(11, &[1, 0]),
        extension(13, &vector16(&[4, 3, 8, 4])),
        extension(16, &alpn),
        extension(43, &[4, 3, 4, 3, 3]),
        // What makes the hello long enough to be cut.
        extension(21, &[0; 300]),
    ]
    .concat();
    let ciphers = vector16(&[0x13, 1, 0x13, 2, 0xc0, 0x2f]);
    let body = [&[3, 3], &[7; 32][..], &[0], &ciphers, &[1, 0], &vector16(&extensions)].concat();
    handshake_record(1, &body)
}

pub fn server_hello() -> Vec<u8> {
    let extensions = [extension(43, &[3, 4]), extension(51, &[&[0, 29, 0, 32][..], &[9; 32]].concat())].concat();
    let body = [&[3, 3], &[8; 32][..], &[0], &[0x13, 1, 0], &vector16(&extensions)].concat();
    handshake_record(2, &body)
}

fn dns_name(name: &str) -> Vec<u8> {
    let labels = name.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat());
    labels.chain([0]).collect()
}

/// A question, or its answer with records: type and data.
pub fn dns_message(id: u16, name: &str, kind: u16, records: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let flags = if records.is_empty() { 0x0100u16 } else { 0x8180 };
    let mut message = [id, flags, 1, records.len() as u16, 0, 0].map(u16::to_be_bytes).concat();
    message.extend(dns_name(name));
    message.extend([kind, 1].map(u16::to_be_bytes).concat());
    for (kind, data) in records {
        message.extend([0xc0, 12]);
        message.extend([*kind, 1, 0, 300].map(u16::to_be_bytes).concat());
        message.extend(vector16(data));
    }
    message
}

/// One question and its answer over UDP.
pub fn dns(client: &str, server: &str, start_ns: u64) -> Packets {
    let aaaa = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1].to_vec();
    let answer = dns_message(0x1234, "www.example.org", 28, &[(5, dns_name("cdn.example.net")), (28, aaaa)]);
    let question = dns_message(0x1234, "www.example.org", 28, &[]);
    Conversation::new(client, server, start_ns).datagram(Client, &question).datagram(Server, &answer).packets
}

/// A request and its response in small pieces.
pub fn http(client: &str, server: &str, start_ns: u64) -> Packets {
    let request = b"GET /index.html?q=1 HTTP/1.1\r\nHost: www.example.org:8080\r\nUser-Agent: test/1.0\r\n\
        Referer: http://r.example/\r\n\r\n";
    let response = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n\
        5\r\nhello\r\n7\r\n, world\r\n0\r\n\r\n";
    Conversation::new(client, server, start_ns)
        .handshake()
        .say_in(Client, request, 11)
        .say_in(Server, response, 17)
        .close()
}

fn http_in_a_tunnel() -> Packets {
    use ebpfsentinel::packet::build::Packet;
    const GRE: u8 = 47;
    const IPV4_IN_IP: u8 = 4;
    let inner = http("10.9.0.1:40000", "10.9.0.2:80", START);
    let outer = || Packet::new().ipv4([192, 0, 2, 1], [198, 51, 100, 1]);
    let carried = |place: usize, frame: &[u8]| match place % 3 {
        // Any way of carrying it will do: it is one connection to who reads inside.
        0 => outer().protocol(IPV4_IN_IP).payload(&frame[14..]).build(),
        1 => outer().protocol(GRE).payload(&[&[0, 0, 8, 0], &frame[14..]].concat()).build(),
        _ => outer().udp(55_555, 4789).payload(&[&[8, 0, 0, 0, 0, 0, 7, 0], frame].concat()).build(),
    };
    inner.iter().enumerate().map(|(place, (time, frame))| (*time, carried(place, frame))).collect()
}

fn tls_split() -> Vec<u8> {
    let packets = Conversation::new("[2001:db8::1]:50000", "[2001:db8::2]:8443", START)
        .vlans(&[100, 7])
        .handshake()
        .say_backwards(Client, &client_hello("www.example.org"), 100)
        .say(Server, &server_hello())
        .close();
    let mut file = Pcapng::new(Order::Little);
    file.interface(1, 0, &[(9, vec![9])]);
    packets.iter().for_each(|(time, frame)| {
        file.enhanced(0, *time, frame);
    });
    file.file
}

fn smtp() -> Packets {
    Conversation::new("192.0.2.5:40001", "198.51.100.25:2525", START)
        .handshake()
        .say(Server, b"220 mx.example.net ESMTP\r\n")
        .say(Client, b"EHLO client.example\r\n")
        .say(Server, b"250-mx.example.net\r\n250 PIPELINING\r\n")
        .say(
            Client,
            b"MAIL FROM:<a@example.org> SIZE=100\r\nRCPT TO:<b@example.net>\r\nRCPT TO:<c@example.net>\r\nDATA\r\n",
        )
        .say(Server, b"250 ok\r\n250 ok\r\n250 ok\r\n354 go on\r\n")
        .say_in(Client, b"From: a@example.org\r\nSubject: Hello\r\n\r\nText\r\n..dot\r\n.\r\nQUIT\r\n", 9)
        .say(Server, b"250 queued\r\n221 bye\r\n")
        .close()
}

/// The control connection, and the data connection that it announces, on two interfaces and in two sections.
fn ftp() -> Vec<u8> {
    let control = Conversation::new("192.0.2.7:40002", "198.51.100.21:2121", START)
        .handshake()
        .say(Server, b"220 ready\r\n")
        .say(Client, b"USER anonymous\r\n")
        .say(Server, b"331 password?\r\n")
        .say(Client, b"PASS x@\r\n")
        .say(Server, b"230 welcome\r\n")
        .say(Client, b"PASV\r\n")
        .say(Server, b"227 Entering Passive Mode (198,51,100,21,200,10)\r\n")
        .say(Client, b"RETR file.txt\r\n")
        .packets;
    let after = control.last().unwrap().0 + 1_000_000;
    let data =
        Conversation::new("192.0.2.7:40003", "198.51.100.21:51210", after).handshake().say(Server, b"contents\n");
    let mut file = Pcapng::new(Order::Big);
    file.interface(1, 0, &[(9, vec![6])]).interface(276, 0, &[(9, vec![9])]);
    control.iter().for_each(|(time, frame)| {
        file.enhanced(0, time / 1000, frame);
    });
    with_link(&data.close(), 276).iter().for_each(|(time, frame)| {
        file.enhanced(1, *time, frame);
    });
    // Another section, in the other order, with the packet block of old and times of a power of two.
    file.section(Order::Little).interface(101, 0, &[(9, vec![0x80 | 20])]);
    with_link(&dns("192.0.2.7:40004", "198.51.100.53:53", after), 101).iter().for_each(|(time, frame)| {
        file.old(0, ((u128::from(*time) << 20) / 1_000_000_000) as u64, frame);
    });
    file.file
}

fn name_list(names: &str) -> Vec<u8> {
    [&(names.len() as u32).to_be_bytes()[..], names.as_bytes()].concat()
}

fn key_exchange() -> Vec<u8> {
    let lists = [
        "curve25519-sha256",
        "ssh-ed25519",
        "aes128-ctr",
        "aes128-ctr",
        "hmac-sha2-256",
        "hmac-sha2-256",
        "none",
        "none",
        "",
        "",
    ];
    let mut body = [&[20], &[5; 16][..]].concat();
    lists.iter().for_each(|list| body.extend(name_list(list)));
    body.extend([0; 5]);
    let padding = 8 - (body.len() + 5) % 8 + 8;
    let length = (body.len() + padding + 1) as u32;
    [&length.to_be_bytes()[..], &[padding as u8], &body, &vec![0; padding]].concat()
}

fn ssh() -> Packets {
    let say = |banner: &[u8]| [banner, &key_exchange()].concat();
    Conversation::new("192.0.2.9:40005", "198.51.100.22:22", START)
        .handshake()
        .say(Server, &say(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"))
        .say_in(Client, &say(b"SSH-2.0-client_1.0\r\n"), 13)
        .close()
}

fn smb2(command: u16, is_response: bool, message: u64, body: &[u8]) -> Vec<u8> {
    let mut header = b"\xfeSMB\x40\0\0\0\0\0\0\0".to_vec();
    header.extend(command.to_le_bytes());
    header.extend([1, 0]);
    header.extend(u32::from(is_response).to_le_bytes());
    header.extend([0; 4]);
    header.extend(message.to_le_bytes());
    header.extend([0; 4]);
    header.extend(5u32.to_le_bytes());
    header.extend(0x11u64.to_le_bytes());
    header.extend([0; 16]);
    let length = (header.len() + body.len()) as u32;
    [&length.to_be_bytes()[..], &header, body].concat()
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn smb() -> Packets {
    let mut negotiate = [&36u16.to_le_bytes()[..], &2u16.to_le_bytes(), &[0; 32]].concat();
    negotiate.extend([0x0210u16, 0x0300].map(u16::to_le_bytes).concat());
    let mut negotiated = [&65u16.to_le_bytes()[..], &[0, 0], &0x0300u16.to_le_bytes(), &[0; 58]].concat();
    negotiated.push(0);
    let share = utf16(r"\\server\share");
    let connect = [&9u16.to_le_bytes()[..], &[0, 0], &72u16.to_le_bytes(), &(share.len() as u16).to_le_bytes(), &share];
    let connected = [&16u16.to_le_bytes()[..], &[1, 0], &[0; 12]].concat();
    let file = utf16(r"dir\file.txt");
    let mut create = [&57u16.to_le_bytes()[..], &[0; 42]].concat();
    create.extend(120u16.to_le_bytes());
    create.extend((file.len() as u16).to_le_bytes());
    create.extend([0; 8]);
    create.extend(&file);
    let created = [&89u16.to_le_bytes()[..], &[0; 86], &[0]].concat();
    Conversation::new("192.0.2.11:40006", "198.51.100.45:445", START)
        .handshake()
        .say(Client, &smb2(0, false, 0, &negotiate))
        .say(Server, &smb2(0, true, 0, &negotiated))
        .say(Client, &smb2(3, false, 1, &connect.concat()))
        .say(Server, &smb2(3, true, 1, &connected))
        .say_in(Client, &smb2(5, false, 2, &create), 40)
        .say(Server, &smb2(5, true, 2, &created))
        .close()
}

/// A header field of HPACK whose name is not in any table.
fn literal(name: &str, value: &str) -> Vec<u8> {
    [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
}

fn http2_frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), body].concat()
}

fn grpc() -> Packets {
    let fields = [
        literal(":method", "POST"),
        literal(":scheme", "http"),
        literal(":path", "/shop.Cart/Add"),
        literal(":authority", "cart.example"),
        literal("content-type", "application/grpc"),
    ]
    .concat();
    let answer = [literal(":status", "200"), literal("content-type", "application/grpc")].concat();
    let trailers = [literal("grpc-status", "0")].concat();
    let request = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        http2_frame(4, 0, 0, &[]),
        http2_frame(1, 4, 1, &fields),
        http2_frame(0, 1, 1, &[0, 0, 0, 0, 1, 9]),
    ];
    let response = [
        http2_frame(4, 0, 0, &[]),
        http2_frame(1, 4, 1, &answer),
        http2_frame(0, 0, 1, &[0, 0, 0, 0, 1, 8]),
        http2_frame(1, 5, 1, &trailers),
    ];
    Conversation::new("192.0.2.13:40007", "198.51.100.50:50051", START)
        .handshake()
        .say_in(Client, &request.concat(), 23)
        .say_in(Server, &response.concat(), 19)
        .close()
}

fn dns_fragmented() -> Packets {
    let texts = vec![[&[200u8][..], &[b'a'; 200]].concat(); 12].concat();
    let answer = dns_message(9, "txt.example.org", 16, &[(16, texts)]);
    let question = dns_message(9, "txt.example.org", 16, &[]);
    let mut packets = Conversation::new("192.0.2.15:40008", "198.51.100.53:53", START)
        .datagram(Client, &question)
        .fragmented(Server, &answer, 1024)
        .packets;
    packets[1..].reverse();
    packets
}

fn dns_over_tcp() -> Packets {
    let question = dns_message(7, "tcp.example.org", 1, &[]);
    let answer = dns_message(7, "tcp.example.org", 1, &[(1, vec![192, 0, 2, 99])]);
    Conversation::new("192.0.2.17:40009", "198.51.100.53:53", START)
        .handshake()
        .say_in(Client, &vector16(&question), 1)
        .say_in(Server, &vector16(&answer), 3)
        .close()
}

/// All of them: name and contents.
pub fn all() -> Vec<(&'static str, Vec<u8>)> {
    let micro = |order, link, packets: &Packets| pcap(order, Precision::Micro, link, &with_link(packets, link));
    let http = http("192.0.2.1:49152", "198.51.100.9:8080", START);
    let whole = micro(Order::Little, 1, &http);
    let mut cut = tls_split();
    cut.truncate(cut.len() - 300);
    let mut broken = whole.clone();
    // The length of a record in its middle.
    let middle = 24 + http[..8].iter().map(|(_, frame)| 16 + frame.len()).sum::<usize>();
    broken[middle + 8..middle + 12].fill(0xee);
    vec![
        ("http.pcap", whole),
        ("http-tunnels.pcap", micro(Order::Big, 1, &http_in_a_tunnel())),
        ("tls-split.pcapng", tls_split()),
        ("dns-cooked.pcap", micro(Order::Little, 113, &dns("192.0.2.3:40010", "198.51.100.53:53", START))),
        ("dns-fragments.pcap", micro(Order::Little, 1, &dns_fragmented())),
        ("dns-tcp-raw.pcap", pcap(Order::Big, Precision::Nano, 101, &with_link(&dns_over_tcp(), 101))),
        ("smtp-loopback.pcap", pcap(Order::Little, Precision::Modified, 0, &with_link(&smtp(), 0))),
        ("ftp-sections.pcapng", ftp()),
        ("ssh.pcap", pcap(Order::Little, Precision::Nano, 1, &ssh())),
        ("smb.pcap", micro(Order::Little, 1, &smb())),
        ("grpc-cooked2.pcap", micro(Order::Big, 276, &grpc())),
        ("cut.pcapng", cut),
        ("broken.pcap", broken),
        ("radio.pcap", micro(Order::Little, 105, &http)),
    ]
}
