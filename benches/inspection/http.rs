//! Bytes per second through the parsers of HTTP/1 and HTTP/2, without what brings the bytes to them.

use std::hint::black_box;
use std::time::Instant;

use ebpfsentinel::packet::proto::{AppProto, Out, Side, Stage, parser_for};

/// A body of the kind whose speed is promised.
const BODY: usize = 64 * 1024;
/// Payload of a DATA frame: what servers send until they are allowed more.
const FRAME: usize = 16 * 1024;
/// Responses a round: long enough for the clock.
const RESPONSES: usize = 4_000;

/// `gb_per_s.http1`: requests, and responses of 64 KiB, in pieces of `piece` bytes; the median of `rounds`.
pub fn http1_gb_per_s(piece: usize, rounds: usize) -> f64 {
    let request = b"GET /static/app.js?v=3 HTTP/1.1\r\nHost: www.example.com\r\n\
        User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: */*\r\nAccept-Encoding: identity\r\n\
        Referer: http://www.example.com/\r\nCookie: id=0123456789abcdef\r\n\r\n";
    let mut response = format!(
        "HTTP/1.1 200 OK\r\nDate: Mon, 30 Nov 2026 10:00:00 GMT\r\nServer: nginx\r\n\
         Content-Type: text/javascript\r\nContent-Length: {BODY}\r\nETag: \"6651-10000\"\r\n\
         Cache-Control: max-age=3600\r\nConnection: keep-alive\r\n\r\n"
    )
    .into_bytes();
    response.extend((0..BODY).map(|n| (n * 31 % 251) as u8));
    let opening = [vec![], vec![]];
    let conversation = Conversation { opening, exchange: |_| {}, request: request.to_vec(), response };
    conversation.gb_per_s(AppProto::Http, piece, rounds)
}

/// `gb_per_s.http2`: the same in DATA frames of 16 KiB.
pub fn http2_gb_per_s(piece: usize, rounds: usize) -> f64 {
    let frame = |kind: u8, flags: u8, payload: &[u8]| {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags, 0, 0, 0, 0]);
        bytes.extend(payload);
        bytes
    };
    let settings = frame(4, 0, &[]);
    let opening = [[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings[..]].concat(), settings];
    // GET, http, `/static/app.js` and `www.example.com` as literals.
    let mut fields = vec![0x82, 0x86, 0x04, 14];
    fields.extend(b"/static/app.js");
    fields.extend([0x01, 15]);
    fields.extend(b"www.example.com");
    let request = frame(1, 0x5, &fields);
    // 200, then a content type as a literal.
    let mut fields = vec![0x88, 0x0f, 0x10, 15];
    fields.extend(b"text/javascript");
    let mut response = frame(1, 0x4, &fields);
    let body: Vec<u8> = (0..BODY).map(|n| (n * 31 % 251) as u8).collect();
    for (at, part) in body.chunks(FRAME).enumerate() {
        response.extend(frame(0, u8::from((at + 1) * FRAME == BODY), part));
    }
    let conversation = Conversation { opening, exchange: next_stream, request, response };
    conversation.gb_per_s(AppProto::Http2, piece, rounds)
}

/// Moves the frames of one side to the client's next stream.
fn next_stream(frames: &mut [u8]) {
    let mut rest = frames;
    while let Some((header, behind)) = rest.split_at_mut_checked(9) {
        let len = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
        header[5..].copy_from_slice(&(if stream == 0 { 1 } else { stream + 2 }).to_be_bytes());
        rest = &mut behind[len..];
    }
}

/// An exchange that is repeated on one connection.
struct Conversation {
    /// What each side sends first.
    opening: [Vec<u8>; 2],
    /// What is changed in each side's bytes before each exchange.
    exchange: fn(&mut [u8]),
    request: Vec<u8>,
    response: Vec<u8>,
}

impl Conversation {
    fn gb_per_s(mut self, protocol: AppProto, piece: usize, rounds: usize) -> f64 {
        let mut figures: Vec<f64> = (0..rounds).map(|_| self.round(protocol, piece)).collect();
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    }

    fn round(&mut self, protocol: AppProto, piece: usize) -> f64 {
        let mut parser = parser_for(protocol).expect("it is one of ours");
        let mut out = Out::default();
        let (mut request, mut response) = (self.request.clone(), self.response.clone());
        for side in Side::BOTH {
            let opening = &self.opening[side as usize];
            if !opening.is_empty() {
                parser.take(side, opening, &mut out);
            }
        }
        let (mut bytes, mut done) = (0, 0);
        let start = Instant::now();
        for _ in 0..RESPONSES {
            (self.exchange)(&mut request);
            (self.exchange)(&mut response);
            parser.take(Side::Client, &request, &mut out);
            out.told.clear();
            for piece in response.chunks(piece) {
                parser.take(Side::Server, black_box(piece), &mut out);
                done += out.told.iter().filter(|told| told.stage == Stage::Done).count();
                out.told.clear();
            }
            bytes += request.len() + response.len();
        }
        let seconds = start.elapsed().as_secs_f64();
        // A parser that lost its place would be fast, too.
        assert!(done == RESPONSES && out.oddities.is_empty(), "{done} responses, {:?}", out.oddities);
        bytes as f64 / seconds / 1e9
    }
}
