//! A client with many connections on one thread, each of which asks, waits for the whole answer, and asks again.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

/// What became of a load.
pub struct Load {
    /// Of each answer, in milliseconds, in order of length.
    times_ms: Vec<f64>,
    took: Duration,
}

impl Load {
    /// Answers in a second.
    pub fn per_second(&self) -> f64 {
        self.times_ms.len() as f64 / self.took.as_secs_f64()
    }

    /// So many of a hundred answers came within this time.
    pub fn percentile_ms(&self, percent: f64) -> f64 {
        let at = (self.times_ms.len() as f64 * percent / 100.0) as usize;
        self.times_ms[at.min(self.times_ms.len() - 1)]
    }
}

/// A connection, and the request under way on it.
struct Slot {
    stream: TcpStream,
    /// Bytes of the request that are sent.
    sent: usize,
    answer: Vec<u8>,
    begun: Instant,
}

/// Whether an answer is whole, and then whether its connection is kept.
fn ended(answer: &[u8]) -> Result<Option<bool>> {
    let Some(head) = answer.windows(4).position(|end| end == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&answer[..head]).context("a head that is no text")?.to_ascii_lowercase();
    ensure!(text.starts_with("http/1.1 200"), "answered: {text}");
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let length: usize = field("content-length:").context("an answer without a length")?.parse()?;
    Ok((answer.len() >= head + 4 + length).then(|| field("connection:") != Some("close")))
}

fn connect(poll: &Poll, at: usize, address: SocketAddr) -> Result<Slot> {
    let mut stream = TcpStream::connect(address).context("connecting")?;
    poll.registry().register(&mut stream, Token(at), Interest::READABLE | Interest::WRITABLE)?;
    Ok(Slot { stream, sent: 0, answer: Vec::new(), begun: Instant::now() })
}

impl Slot {
    /// Goes on with the request; true when its answer is whole. `Err` of a broken connection is the load's end.
    fn go_on(&mut self, request: &[u8]) -> Result<Option<bool>> {
        while self.sent < request.len() {
            match self.stream.write(&request[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => return Ok(None),
                Err(e) => return Err(e).context("asking"),
            }
        }
        let mut buffer = [0; 16 << 10];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!("closed after {} bytes of an answer", self.answer.len()),
                Ok(n) => {
                    self.answer.extend_from_slice(&buffer[..n]);
                    if let Some(kept) = ended(&self.answer)? {
                        return Ok(Some(kept));
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(e) => return Err(e).context("reading an answer"),
            }
        }
    }
}

/// Asks for `target` on so many connections for so long.
pub fn load(address: SocketAddr, connections: usize, target: &str, length: Duration) -> Result<Load> {
    let request = format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: keep-alive\r\n\r\n").into_bytes();
    let mut poll = Poll::new().context("making a poll")?;
    let mut events = Events::with_capacity(1024);
    let mut slots = (0..connections).map(|at| connect(&poll, at, address)).collect::<Result<Vec<_>>>()?;
    let mut times_ms = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < length {
        poll.poll(&mut events, Some(Duration::from_millis(100))).context("waiting")?;
        for event in events.iter() {
            let at = event.token().0;
            while let Some(kept) = slots[at].go_on(&request)? {
                times_ms.push(slots[at].begun.elapsed().as_secs_f64() * 1e3);
                if !kept {
                    slots[at] = connect(&poll, at, address)?;
                    break;
                }
                (slots[at].sent, slots[at].begun) = (0, Instant::now());
                slots[at].answer.clear();
            }
        }
    }
    let took = begin.elapsed();
    ensure!(!times_ms.is_empty(), "nothing was answered");
    times_ms.sort_by(f64::total_cmp);
    Ok(Load { times_ms, took })
}
