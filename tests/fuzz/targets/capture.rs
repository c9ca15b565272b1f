//! A capture file: read to its end or to where it is broken, the same however it comes, no frame longer than any is.

use std::io::Read;

use ebpfsentinel::replay::capture::{Capture, FRAME_MAX, Refused};

/// A frame's time, interface, bytes and length on the wire.
type Read1 = (u64, u32, Vec<u8>, u32);

/// Gives a file in pieces of a size, as a pipe does.
struct Pieces<'f>(&'f [u8], usize);

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let length = self.0.len().min(self.1).min(into.len());
        into[..length].copy_from_slice(&self.0[..length]);
        self.0 = &self.0[length..];
        Ok(length)
    }
}

fn read(file: &[u8], size: usize) -> Option<(Vec<Read1>, Refused, Option<String>, u64)> {
    let mut capture = Capture::open(Pieces(file, size)).ok()?;
    let (mut frames, mut position) = (Vec::new(), 0);
    while let Some(frame) = capture.next_frame() {
        assert!(frame.bytes.len() <= FRAME_MAX);
        frames.push((frame.time_ns, frame.interface, frame.bytes.to_vec(), frame.wire_length));
        assert!(capture.position() > position && capture.position() <= file.len() as u64);
        position = capture.position();
    }
    assert!(capture.next_frame().is_none(), "it goes on behind its end");
    // Each packet, taken or not, stands in the file with no less than 12 bytes around it.
    assert!((frames.len() as u64 + capture.refused().total()) * 12 <= file.len() as u64);
    assert!(capture.position() <= file.len() as u64);
    assert!(capture.fault().is_some() || capture.position() == file.len() as u64);
    Some((frames, capture.refused().clone(), capture.fault().map(str::to_owned), capture.position()))
}

pub fn run(file: &[u8]) {
    let whole = read(file, usize::MAX);
    assert!(whole == read(file, 1 + file.len() % 97), "read in pieces it is another");
}
