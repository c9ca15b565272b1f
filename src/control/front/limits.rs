//! Every limit of the front, with the reason for its default. Tests shorten the times.

use std::time::Duration;

/// What the front gives at most. `Default` is what the agent runs with.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections whose requests are read or answered.
    pub connections: usize,
    /// Of these, from one remote address (IPv6: one /64, which is what one host can have).
    pub connections_per_address: usize,
    /// Of these, from loopback: all local programs share it, so it is higher, but leaves room for a remote operator.
    pub connections_loopback: usize,
    /// Requests per second from one remote address, in the long run; twice as many at once. Who wants more gets 429.
    pub requests_per_s: u32,
    /// The same for loopback and each user of the Unix socket; 0 is no limit: whoever is on this host has other ways to
    /// keep it busy, and a proxy or a script that adds ten thousand rules is one address.
    pub requests_here_per_s: u32,
    /// Requests on one connection, when the client asks to keep it. It closes after the last.
    pub requests_per_connection: u32,
    /// Connections beyond those that only wait until the client has read its answer or refusal.
    pub lingering: usize,
    /// TLS handshakes in progress. Beyond it, and beyond those of one address, the oldest of them gives way: a client
    /// that means well is through in a moment.
    pub handshakes: usize,
    /// Of these, with one remote address.
    pub handshakes_per_address: usize,
    /// Of these, with one loopback address.
    pub handshakes_loopback: usize,
    /// Streams, which are not among the connections above: they stay for hours.
    pub streams: usize,
    /// Of these, to one remote address.
    pub streams_per_address: usize,
    /// Requests given to the workers at one time; others wait in the front, where they cost no thread. Of one address
    /// or user there are fewer than there are workers: a worker waits for a client that does not take its answer, and
    /// one must be left for the others.
    pub in_flight: usize,
    /// Threads that run operations.
    pub workers: usize,
    /// Request line and header fields.
    pub head_bytes: usize,
    /// A request's body.
    pub body_bytes: usize,
    /// Bodies and answers held for all connections together; beyond it, bodies are refused and answers wait.
    pub held_bytes: usize,
    /// Of these, for one remote address.
    pub held_bytes_per_address: usize,
    /// Of these, for one loopback address or user of the Unix socket.
    pub held_bytes_here: usize,
    /// What a connection may always hold of its answer.
    pub answer_bytes: usize,
    /// From the connection's start, with the TLS handshake, to the end of the head, so that one byte now and then does
    /// not help.
    pub head_timeout: Duration,
    /// From the head's end to the body's end.
    pub body_timeout: Duration,
    /// Without a byte from or to the client while one is due. For a stream: without the client taking any of what waits.
    pub stall_timeout: Duration,
    /// Without a byte from the operation: a reload of everything must fit. A stream may be silent for ever.
    pub answer_timeout: Duration,
    /// For which a request waits while every worker waits for a client that takes its answer too slowly. Then the one
    /// that has kept its worker longest is cut, if it has for as long.
    pub slow_timeout: Duration,
    /// From the operation's end until the client has read the whole answer.
    pub drain_timeout: Duration,
    /// From an answer to the next request, on a connection that is kept.
    pub idle_timeout: Duration,
    /// From the last byte of the answer until the client closes.
    pub linger_timeout: Duration,
    /// How often the credentials of who listens to a stream are looked at again.
    pub credentials_interval: Duration,
    /// For everything that is under way when the agent stops.
    pub stop_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 64,
            connections_per_address: 16,
            connections_loopback: 48,
            requests_per_s: 50,
            requests_here_per_s: 0,
            requests_per_connection: 1000,
            lingering: 16,
            handshakes: 56,
            handshakes_per_address: 8,
            handshakes_loopback: 48,
            streams: 64,
            streams_per_address: 16,
            in_flight: 8,
            workers: 6,
            head_bytes: 16 << 10,
            body_bytes: 1 << 20,
            held_bytes: 16 << 20,
            held_bytes_per_address: 4 << 20,
            held_bytes_here: 12 << 20,
            answer_bytes: 64 << 10,
            head_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(120),
            slow_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(30),
            linger_timeout: Duration::from_secs(2),
            credentials_interval: Duration::from_secs(60),
            stop_timeout: Duration::from_secs(3),
        }
    }
}

impl Limits {
    /// Requests of one address or user that the workers may have at one time.
    pub fn in_flight_of_one(&self) -> usize {
        self.workers.saturating_sub(1).max(1)
    }
}
