//! The control port, from the side of a client that speaks to its socket.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ebpfsentinel::api::{self, Method, Role, Spec};
use ebpfsentinel::metrics::Metrics;

/// Where the times of a test must be long enough for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// More than any buffer between server and client.
pub const BIG_BYTES: usize = 32 << 20;

/// What viewers may call, without parameters and body.
pub const fn spec(command: &'static str, method: Method, path: &'static str) -> Spec {
    Spec {
        command,
        method,
        path,
        query: &[],
        role: Role::Viewer,
        summary: command,
        body: None,
        reply: api::no_reply,
        success: 200,
    }
}

/// A connection that waits for [`PATIENCE`] at most.
pub fn connect(address: SocketAddr) -> TcpStream {
    patient(TcpStream::connect(address).unwrap())
}

/// The same connection, with that bound.
pub fn patient(client: TcpStream) -> TcpStream {
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    client
}

/// All that comes until the port closes.
pub fn read_all(client: &mut impl Read) -> Vec<u8> {
    let mut answer = Vec::new();
    let mut block = [0; 65536];
    loop {
        match client.read(&mut block) {
            Ok(0) => return answer,
            Ok(n) => answer.extend_from_slice(&block[..n]),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return answer,
            Err(e) => panic!("{e} after {:?}", String::from_utf8_lossy(&answer)),
        }
    }
}

/// The status of an answer.
pub fn status(answer: &str) -> u16 {
    answer.get(9..12).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("no status in {answer:?}"))
}

/// Requests that the front has refused for a reason.
pub fn refusals(metrics: &Metrics, reason: &str) -> u64 {
    let line = format!("ebpfsentinel_http_refused_total{{reason=\"{reason}\"}} ");
    let text = metrics.render();
    text.lines().find_map(|l| l.strip_prefix(&line)).map_or(0, |n| n.parse().unwrap())
}
