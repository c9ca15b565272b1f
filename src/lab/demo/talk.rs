//! A conversation over TCP: the client opens with a request, in one piece or in segments out of order, and the server
//! answers byte by byte, so that there is something to cut.

use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::scene::{SEGMENTS, SEGMENTS_V6, Scene, connection};
use super::{PATIENCE, interrupted};
use crate::lab::{Frame, FrameSocket};
use crate::packet::build::Packet;
use crate::packet::frame::{self, Content, Link, Segment, tcp_flag};

/// Bytes of an answer that come one by one, and the time between them: what is refused is cut within the first few.
const PIECES: usize = 40;
const PACE: Duration = Duration::from_millis(10);
/// Payload of a segment of a request that is sent in several.
const SEGMENT_BYTES: usize = 16;

/// What became of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The client got the whole answer.
    GoesOn,
    /// Both ends were reset before that.
    Cut,
    /// Neither.
    Hangs,
}

impl Outcome {
    /// As the table shows it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Outcome::GoesOn => "goes on",
            Outcome::Cut => "cut",
            Outcome::Hangs => "hangs",
        }
    }
}

/// Segments that a request is sent in out of order.
pub(super) fn segments_of(request: &[u8]) -> usize {
    request.len().div_ceil(SEGMENT_BYTES)
}

/// The client's kernel sends the request, from one of the world's addresses.
pub(super) fn whole(scene: &Scene, from: &str, to: &str, port: u16, request: &[u8], answer: &[u8]) -> Result<Outcome> {
    let opened = scene.world.run(|| connection(Some(from), to, port, PATIENCE))??;
    let Some(mut stream) = opened else { return Ok(Outcome::Hangs) };
    stream.write_all(request)?;
    let server = scene.accepted(port, stream.local_addr()?.port())?;
    converse(server, SocketClient { stream, end: End::default() }, request.len(), answer)
}

/// The request comes in small segments, the last one first, from a TCP of the demo's own: the world's kernel does not
/// know the address, and so does not interfere.
pub(super) fn reordered(
    scene: &Scene,
    number: u16,
    to: &str,
    port: u16,
    request: &[u8],
    answer: &[u8],
) -> Result<Outcome> {
    let from = if to.contains(':') { SEGMENTS_V6 } else { SEGMENTS };
    let Some(client) = FrameClient::open(scene, (from, 30_000 + number), (to, port))? else {
        return Ok(Outcome::Hangs);
    };
    let server = scene.accepted(port, client.from.1)?;
    for (number, segment) in request.chunks(SEGMENT_BYTES).enumerate().collect::<Vec<_>>().into_iter().rev() {
        client.send(tcp_flag::PSH | tcp_flag::ACK, (number * SEGMENT_BYTES) as u32, segment)?;
    }
    let client = FrameClient { next: [client.next[0].wrapping_add(request.len() as u32), client.next[1]], ..client };
    converse(server, client, request.len(), answer)
}

/// What a client has seen so far.
#[derive(Clone, Copy, Debug, Default)]
struct End {
    bytes: usize,
    is_reset: bool,
    is_over: bool,
}

trait Client {
    /// Looks for what has come, for so long at most.
    fn look(&mut self, limit: Duration) -> Result<End>;
}

/// The server's part, with the client by turns.
fn converse(mut server: TcpStream, mut client: impl Client, request: usize, answer: &[u8]) -> Result<Outcome> {
    server.set_read_timeout(Some(PATIENCE))?;
    server.set_nodelay(true)?;
    let mut asked = vec![0; request];
    // What is refused has passed all the same, or is cut on its way.
    let read = server.read_exact(&mut asked);
    let mut pieces = std::iter::once(answer).chain(std::iter::repeat_n(&b"."[..], PIECES));
    let said = read.and_then(|()| {
        pieces.try_for_each(|piece| {
            server.write_all(piece)?;
            std::thread::sleep(PACE);
            // What it sees, it still sees below.
            client.look(Duration::from_millis(1)).map(drop).map_err(io::Error::other)
        })
    });
    let is_server_reset = match said {
        Ok(()) => false,
        Err(error) if is_reset(&error) => true,
        // The end of the server's patience.
        Err(error) if is_late(&error) => false,
        Err(error) => return Err(error).context("the server"),
    };
    drop(server);
    let deadline = Instant::now() + PATIENCE;
    let end = loop {
        interrupted()?;
        let end = client.look(PACE)?;
        if end.is_over || end.is_reset || Instant::now() > deadline {
            break end;
        }
    };
    Ok(match end {
        End { is_over: true, bytes, .. } if bytes == answer.len() + PIECES => Outcome::GoesOn,
        End { is_reset: true, .. } if is_server_reset => Outcome::Cut,
        _ => Outcome::Hangs,
    })
}

fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

struct SocketClient {
    stream: TcpStream,
    end: End,
}

impl Client for SocketClient {
    fn look(&mut self, limit: Duration) -> Result<End> {
        self.stream.set_read_timeout(Some(limit))?;
        let mut buffer = [0; 256];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.end.is_over = true,
            Ok(length) => self.end.bytes += length,
            Err(error) if is_late(&error) => {}
            Err(error) if is_reset(&error) => self.end.is_reset = true,
            Err(error) => return Err(error).context("the client"),
        }
        Ok(self.end)
    }
}

/// A TCP of a few lines: it acknowledges what comes in order, and nothing else.
struct FrameClient<'s> {
    scene: &'s Scene,
    socket: FrameSocket,
    from: (&'static str, u16),
    to: (String, u16),
    /// Its own next byte, and the server's.
    next: [u32; 2],
    end: End,
}

impl<'s> FrameClient<'s> {
    /// Connects; `None` when nobody answers.
    fn open(scene: &'s Scene, from: (&'static str, u16), to: (&str, u16)) -> Result<Option<FrameClient<'s>>> {
        let socket = FrameSocket::open(&scene.world, "eth0")?;
        let (to, next) = ((to.0.to_owned(), to.1), [1_000_000, 0]);
        let mut client = FrameClient { scene, socket, from, to, next, end: End::default() };
        client.send(tcp_flag::SYN, 0, &[])?;
        client.next[0] += 1;
        let mut answer = None;
        client.socket.receive(PATIENCE, |frame| {
            answer = client.own(frame).filter(|segment| segment.has(tcp_flag::SYN)).map(|segment| segment.sequence);
            answer.is_some()
        })?;
        let Some(sequence) = answer else { return Ok(None) };
        client.next[1] = sequence.wrapping_add(1);
        client.send(tcp_flag::ACK, 0, &[])?;
        Ok(Some(client))
    }

    /// Sends a segment that begins so many bytes after what was sent.
    fn send(&self, flags: u8, offset: u32, payload: &[u8]) -> Result<()> {
        let packet = Packet::new().between(self.from.0, &self.to.0).tcp(self.from.1, self.to.1);
        let acknowledged = if flags & tcp_flag::ACK == 0 { 0 } else { self.next[1] };
        let packet = packet.flags(flags).numbers(self.next[0].wrapping_add(offset), acknowledged).payload(payload);
        self.socket.send(&self.scene.addressed(packet).build())
    }

    /// The segment of a frame that the server, or somebody in its name, has sent to this client.
    fn own<'f>(&self, frame: &'f Frame) -> Option<Segment<'f>> {
        let frame = frame::decode(Link::Ethernet, [0; 2], &frame.bytes).ok()?;
        let ours: IpAddr = self.from.0.parse().ok()?;
        match frame.content {
            Content::Tcp(segment)
                if (frame.ip.destination, segment.destination, segment.source) == (ours, self.from.1, self.to.1) =>
            {
                Some(segment)
            }
            _ => None,
        }
    }

    fn take(&mut self, segment: Segment<'_>) -> Result<()> {
        self.end.is_reset |= segment.has(tcp_flag::RST);
        let is_fin = segment.has(tcp_flag::FIN);
        if self.end.is_reset || (segment.payload.is_empty() && !is_fin) {
            return Ok(());
        }
        if segment.sequence == self.next[1] {
            self.end.bytes += segment.payload.len();
            self.end.is_over |= is_fin;
            let length = segment.payload.len() as u32 + u32::from(is_fin);
            self.next[1] = self.next[1].wrapping_add(length);
        }
        self.send(tcp_flag::ACK, 0, &[])
    }
}

impl Client for FrameClient<'_> {
    fn look(&mut self, limit: Duration) -> Result<End> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(frame) = self.socket.receive(left, |frame| self.own(frame).is_some())? else {
                return Ok(self.end);
            };
            if let Some(segment) = self.own(&frame) {
                self.take(segment)?;
            }
        }
    }
}
