//! Protocols above TCP and UDP: from the bytes of a conversation to facts.
//!
//! A [`Parser`] is made for one conversation. It takes what each side sent, in order, in pieces of any size: however a
//! stream is cut, what it tells is the same. It never trusts a byte, keeps a bounded amount of memory ([`KEPT_MAX`] and the
//! caps beside each parser), and never fails: what does not follow its protocol is told as an [`Oddity`], and a stream that
//! it lost is skipped until it finds its place again, if the protocol has one.

pub mod detect;
pub mod dns;
pub mod ftp;
pub mod http;
mod http1;
mod http2;
pub(crate) mod inner;
pub(crate) mod lines;
pub mod quic;
pub(crate) mod reader;
pub mod smb;
pub mod smtp;
pub mod ssh;
pub mod tls;

#[cfg(test)]
pub(crate) mod testing;

use std::net::SocketAddr;
use std::sync::Arc;

/// Bytes that a parser may keep of one side while something is incomplete (a head, a record, a command), unless the
/// parser says otherwise.
pub const KEPT_MAX: usize = 64 * 1024;

/// Who sent something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The one that opened the conversation.
    Client = 0,
    /// The one that answered.
    Server = 1,
}

impl Side {
    /// Both.
    pub const BOTH: [Side; 2] = [Side::Client, Side::Server];

    /// The other one.
    pub const fn other(self) -> Side {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }
}

/// A protocol that is recognised, by what stands in its bytes and not by its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AppProto {
    /// HTTP/1.0 and 1.1 (RFC 9112).
    Http,
    /// HTTP/2 (RFC 9113), also as gRPC carries it.
    Http2,
    /// TLS 1.0 to 1.3, and SSL 3.0.
    Tls,
    /// SMTP (RFC 5321).
    Smtp,
    /// The control connection of FTP (RFC 959).
    Ftp,
    /// A connection that an FTP control connection announced.
    FtpData,
    /// SMB 1, 2 and 3.
    Smb,
    /// SSH 2 (RFC 4253), and the banner of 1.
    Ssh,
    /// DNS over UDP and TCP (RFC 1035).
    Dns,
    /// QUIC, by its first packets (RFC 9000).
    Quic,
}

impl AppProto {
    /// All of them.
    pub const ALL: [AppProto; 10] = [
        AppProto::Http,
        AppProto::Http2,
        AppProto::Tls,
        AppProto::Smtp,
        AppProto::Ftp,
        AppProto::FtpData,
        AppProto::Smb,
        AppProto::Ssh,
        AppProto::Dns,
        AppProto::Quic,
    ];

    /// The word in EVE JSON, metrics and answers: the same as Suricata's.
    pub const fn name(self) -> &'static str {
        match self {
            AppProto::Http => "http",
            AppProto::Http2 => "http2",
            AppProto::Tls => "tls",
            AppProto::Smtp => "smtp",
            AppProto::Ftp => "ftp",
            AppProto::FtpData => "ftp-data",
            AppProto::Smb => "smb",
            AppProto::Ssh => "ssh",
            AppProto::Dns => "dns",
            AppProto::Quic => "quic",
        }
    }
}

/// How far a transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The client's part is known: in time to refuse it. Told once a transaction, unless it ends before; of a mail at
    /// each of its commands.
    Asked,
    /// All is known that will be: answered, or cut off. Told once a transaction, last; never of a DNS query without a
    /// response.
    Done,
}

/// One transaction of a protocol, as far as it is known.
///
/// What stands in it is bounded by its parser, and bytes of the wire: not always UTF-8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A request with its response, of HTTP/1 or HTTP/2.
    Http(Arc<http::Exchange>),
    /// A handshake.
    Tls(Arc<tls::Handshake>),
    /// A command, or a mail.
    Smtp(Arc<smtp::Exchange>),
    /// A command with its reply.
    Ftp(Arc<ftp::Exchange>),
    /// A file that is carried.
    FtpData(Arc<ftp::Transfer>),
    /// A request with its response.
    Smb(Arc<smb::Exchange>),
    /// Banners and key exchange.
    Ssh(Arc<ssh::Handshake>),
    /// A query or a response; each is a transaction of its own.
    Dns(Arc<dns::Message>),
    /// The first packets of a connection.
    Quic(Arc<quic::Initial>),
}

/// What a parser tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Number of the transaction in its conversation, from 0; the same at both stages.
    pub tx: u32,
    /// How far it is.
    pub stage: Stage,
    /// What is known.
    pub fact: Fact,
}

/// Something that does not follow its protocol. The name is what alerts and EVE show: lower case, by the protocol's name,
/// such as `http.bad_request_line`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Oddity(pub &'static str);

/// A connection that a conversation announced: FTP's data.
///
/// It may be told before the transfer is known, and again, for the same `server`, when it is: the later one counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Where it will go to, as it was announced; 0.0.0.0 stands for the conversation's own host at that end (EPSV says
    /// a port only). An announced address may be any, also one that is not that host's: who holds the flow's addresses
    /// judges it.
    pub server: SocketAddr,
    /// Who will open it: the same host that is this side of the announcing conversation.
    pub opener: Side,
    /// What it will carry.
    pub transfer: Arc<ftp::Transfer>,
}

/// Where a parser tells. The flow layer empties it after each call.
#[derive(Debug, Default)]
pub struct Out {
    /// Transactions.
    pub told: Vec<Told>,
    /// What was odd.
    pub oddities: Vec<(Side, Oddity)>,
    /// Connections to come.
    pub expected: Vec<Expected>,
    /// The conversation goes on in another protocol: STARTTLS, a CONNECT that was granted, an upgrade to HTTP/2. The
    /// parser goes on itself, by a parser inside; this is for the flow's name only.
    pub became: Option<AppProto>,
}

impl Out {
    /// Tells of a transaction.
    pub fn tell(&mut self, tx: u32, stage: Stage, fact: Fact) {
        self.told.push(Told { tx, stage, fact });
    }

    /// Tells of something odd.
    pub fn odd(&mut self, side: Side, name: &'static str) {
        self.oddities.push((side, Oddity(name)));
    }
}

/// Reads one conversation.
pub trait Parser: Send {
    /// Takes the next bytes that `side` sent; of UDP, one datagram's payload. Never empty.
    fn take(&mut self, side: Side, bytes: &[u8], out: &mut Out);

    /// So many bytes of `side` are missing, and will stay so; what it sends next stands behind them.
    fn skip(&mut self, side: Side, missing: u64, out: &mut Out);

    /// `side` sends no more. Told at most once a side; at the end of a conversation, for both. What is not done is told as
    /// far as it came.
    fn end(&mut self, side: Side, out: &mut Out);

    /// Bytes that it keeps, about.
    fn memory(&self) -> usize;
}

/// The parser of a protocol, for one conversation over TCP. What FTP carries needs none: the flow layer counts it.
pub fn parser_for(protocol: AppProto) -> Option<Box<dyn Parser>> {
    Some(match protocol {
        AppProto::Http => Box::new(http1::Http1::default()),
        AppProto::Http2 => Box::new(http2::Http2::default()),
        AppProto::Ftp => Box::new(ftp::Conversation::default()),
        AppProto::Smb => Box::new(smb::Conversation::default()),
        AppProto::Smtp => Box::new(smtp::Conversation::default()),
        AppProto::Tls => Box::new(tls::Conversation::default()),
        AppProto::Ssh => Box::new(ssh::Conversation::default()),
        AppProto::Dns => Box::new(dns::Stream::default()),
        AppProto::FtpData | AppProto::Quic => return None,
    })
}

/// The parser of a protocol, for one conversation over UDP.
pub fn datagram_parser_for(protocol: AppProto) -> Option<Box<dyn Parser>> {
    Some(match protocol {
        AppProto::Dns => Box::new(dns::Datagrams::default()),
        AppProto::Quic => Box::new(quic::Conversation::default()),
        _ => return None,
    })
}
