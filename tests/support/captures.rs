//! Capture files, written as other programs write them.

/// Byte order of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Little,
    Big,
}

impl Order {
    pub fn u16(self, value: u16) -> [u8; 2] {
        if self == Order::Little { value.to_le_bytes() } else { value.to_be_bytes() }
    }

    pub fn u32(self, value: u32) -> [u8; 4] {
        if self == Order::Little { value.to_le_bytes() } else { value.to_be_bytes() }
    }

    pub fn u64(self, value: u64) -> [u8; 8] {
        if self == Order::Little { value.to_le_bytes() } else { value.to_be_bytes() }
    }
}

/// How a pcap file tells the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    Micro,
    Nano,
    /// Microseconds in longer records: Kuznetzov's.
    Modified,
}

/// A pcap file of packets with their times in nanoseconds.
pub fn pcap(order: Order, precision: Precision, link: u32, packets: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let magic = match precision {
        Precision::Micro => 0xa1b2_c3d4,
        Precision::Nano => 0xa1b2_3c4d,
        Precision::Modified => 0xa1b2_cd34,
    };
    let mut file = Vec::new();
    file.extend(order.u32(magic));
    file.extend(order.u16(2));
    file.extend(order.u16(4));
    for word in [0, 0, 262_144, link] {
        file.extend(order.u32(word));
    }
    for (time_ns, bytes) in packets {
        let unit = if precision == Precision::Nano { 1 } else { 1000 };
        let words = [time_ns / 1_000_000_000, time_ns % 1_000_000_000 / unit, bytes.len() as u64, bytes.len() as u64];
        words.iter().for_each(|word| file.extend(order.u32(*word as u32)));
        if precision == Precision::Modified {
            file.extend([0; 8]);
        }
        file.extend(bytes);
    }
    file
}

/// A pcapng file, block by block.
pub struct Pcapng {
    pub order: Order,
    pub file: Vec<u8>,
}

impl Pcapng {
    /// With its first section.
    pub fn new(order: Order) -> Pcapng {
        let mut file = Pcapng { order, file: Vec::new() };
        file.section(order);
        file
    }

    pub fn section(&mut self, order: Order) -> &mut Pcapng {
        self.order = order;
        let mut body = Vec::new();
        body.extend(order.u32(0x1a2b_3c4d));
        body.extend(order.u16(1));
        body.extend(order.u16(0));
        body.extend(order.u64(u64::MAX));
        self.block(0x0a0d_0d0a, &body)
    }

    /// An interface with options: code and value.
    pub fn interface(&mut self, link: u16, snap_length: u32, options: &[(u16, Vec<u8>)]) -> &mut Pcapng {
        let mut body = Vec::new();
        body.extend(self.order.u16(link));
        body.extend([0; 2]);
        body.extend(self.order.u32(snap_length));
        for (code, value) in options {
            body.extend(self.order.u16(*code));
            body.extend(self.order.u16(value.len() as u16));
            body.extend(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        if !options.is_empty() {
            body.extend([0; 4]);
        }
        self.block(1, &body)
    }

    pub fn enhanced(&mut self, interface: u32, ticks: u64, bytes: &[u8]) -> &mut Pcapng {
        let mut body = Vec::new();
        let length = bytes.len() as u32;
        for word in [interface, (ticks >> 32) as u32, ticks as u32, length, length] {
            body.extend(self.order.u32(word));
        }
        body.extend(bytes);
        self.block(6, &body)
    }

    /// The packet block of old.
    pub fn old(&mut self, interface: u16, ticks: u64, bytes: &[u8]) -> &mut Pcapng {
        let mut body = Vec::new();
        body.extend(self.order.u16(interface));
        body.extend(self.order.u16(0));
        let length = bytes.len() as u32;
        for word in [(ticks >> 32) as u32, ticks as u32, length, length] {
            body.extend(self.order.u32(word));
        }
        body.extend(bytes);
        self.block(2, &body)
    }

    /// A simple packet, of which `bytes` were captured.
    pub fn simple(&mut self, wire_length: u32, bytes: &[u8]) -> &mut Pcapng {
        let mut body = self.order.u32(wire_length).to_vec();
        body.extend(bytes);
        self.block(3, &body)
    }

    pub fn block(&mut self, kind: u32, body: &[u8]) -> &mut Pcapng {
        let length = self.order.u32((body.len().next_multiple_of(4) + 12) as u32);
        self.file.extend(self.order.u32(kind));
        self.file.extend(length);
        self.file.extend(body);
        self.file.resize(self.file.len().next_multiple_of(4), 0);
        self.file.extend(length);
        self
    }
}
