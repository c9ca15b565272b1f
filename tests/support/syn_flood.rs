//! The attacker's end of a link: floods of SYNs from random sources by live frames, the answers that they get, and what is
//! written in a SYN-ACK. The programs are those of tests/support/syn_flood.bpf.c.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use anyhow::{Context, Result, bail, ensure};
use ebpfsentinel::packet::build::Packet;
use etherparse::{LinkExtSlice, NetSlice, SlicedPacket, TcpOptionElement, TransportSlice};
use libbpf_rs::{MapCore, MapFlags, Object, ObjectBuilder};

/// First of the sources in IPv4; all are of 10.0.0.0/8. The program knows them by that.
pub const SOURCES: &str = "10.0.0.0";
/// First of the sources in IPv6; all are of fd00::/8, and no two share a /64.
pub const SOURCES_V6: &str = "fd00::";
/// As many as there can be: 2^24.
pub const ALL_SOURCES: u32 = 1 << 24;
/// What [`SynFlood::keep_samples`] keeps at most.
pub const SAMPLES_MAX: u32 = 1024;
/// The VLAN of [`SynFlood::vlan`].
pub const VLAN_ID: u16 = 7;
/// Options of a usual client: MSS 1460, SACK permitted, timestamps, window scale 7.
pub const CLIENT_OPTIONS: [u8; 20] = [2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 0, 0x12, 0x34, 0, 0, 0, 0, 1, 3, 3, 7];

const TEMPLATE_MAX: usize = 128;
/// Places in the program's control, behind the template.
const RANDOM_END: usize = TEMPLATE_MAX + 8;
const SAMPLES_WANTED: usize = RANDOM_END + 20;
const BATCH_NS: usize = SAMPLES_WANTED + 4;
const SENT: usize = BATCH_NS + 16;
const REPLAYED: usize = SENT + 8;
const SAMPLE_BYTES: usize = TEMPLATE_MAX;
/// Frames that are sent together.
const BATCH: u32 = 64;

/// The object, loaded.
pub struct SynFlood {
    object: Object,
}

/// Where SYNs go, and what they look like.
#[derive(Clone)]
pub struct Aim {
    /// Interface that they leave by.
    pub ifindex: u32,
    /// Hardware address of the sender, and of the receiver.
    pub macs: ([u8; 6], [u8; 6]),
    pub to: IpAddr,
    pub port: u16,
    pub tcp_options: Vec<u8>,
    /// With the tag of [`VLAN_ID`].
    pub vlan: bool,
    /// How many sources there are: a power of two, [`ALL_SOURCES`] at most.
    pub sources: u32,
    /// SYNs in a second; `None` is as fast as it goes.
    pub rate: Option<u32>,
}

/// What came back to the sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    pub syn_acks: u64,
    pub syn_ack_bytes: u64,
    pub resets: u64,
    pub others: u64,
    /// Bytes of the longest SYN-ACK frame.
    pub longest: u64,
}

/// Sends frames of an aim from the network namespace of the thread that uses it.
pub struct Sender {
    program: OwnedFd,
    frame: Vec<u8>,
}

impl SynFlood {
    pub fn load() -> Result<SynFlood> {
        let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/syn_flood.bpf.o")).to_vec();
        let mut builder = ObjectBuilder::default();
        let object = builder.open_memory(&bytes).context("opening syn_flood.bpf.o")?.load();
        Ok(SynFlood { object: object.context("loading syn_flood.bpf.o")? })
    }

    /// Sets the aim. One at a time: senders of an earlier one send to this one from now on.
    pub fn aim(&self, aim: &Aim) -> Result<Sender> {
        ensure!(aim.sources.is_power_of_two() && aim.sources <= ALL_SOURCES, "{} sources", aim.sources);
        let from = if aim.to.is_ipv4() { SOURCES } else { SOURCES_V6 };
        let mut packet = Packet::new().mac(aim.macs.0, aim.macs.1);
        if aim.vlan {
            packet = packet.vlan(VLAN_ID);
        }
        let packet = packet.ip(from.parse()?, aim.to).context("source and destination are of one family")?;
        let mut frame = packet.tcp(0, aim.port).numbers(0, 0).tcp_options(&aim.tcp_options).build();
        // A wire carries no less.
        frame.resize(frame.len().max(60), 0);
        ensure!(frame.len() <= TEMPLATE_MAX, "a SYN of {} bytes", frame.len());
        let mut control = self.control()?;
        let l3 = if aim.vlan { 18 } else { 14 };
        control[..frame.len()].copy_from_slice(&frame);
        let words = [frame.len() as u32, l3, u32::from(!aim.to.is_ipv4()), aim.ifindex, aim.sources - 1];
        for (place, word) in control[RANDOM_END..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        let batch_ns = aim.rate.map_or(0, |rate| 1_000_000_000 * u64::from(BATCH) / u64::from(rate));
        control[BATCH_NS..][..8].copy_from_slice(&batch_ns.to_ne_bytes());
        self.set_control(&control)?;
        Ok(Sender { program: self.program("flood")?.try_clone_to_owned()?, frame })
    }

    /// SYNs that were sent until now.
    pub fn sent(&self) -> Result<u64> {
        let control = self.control()?;
        Ok(u64::from_ne_bytes(control[SENT..][..8].try_into().expect("eight bytes")))
    }

    /// Ends what is being sent, or lets senders send again.
    pub fn stop(&self, stopped: bool) -> Result<()> {
        let word = u32::from(stopped).to_ne_bytes();
        self.map(".bss.stopped")?.update(&[0; 4], &word, MapFlags::ANY).context("ending a flood")
    }

    /// Keeps so many SYN-ACKs from now on, and forgets those kept before.
    pub fn keep_samples(&self, wanted: u32) -> Result<()> {
        ensure!(wanted <= SAMPLES_MAX, "{wanted} samples are more than {SAMPLES_MAX}");
        self.set_wanted(0)?;
        self.map(".bss.taken")?.update(&[0; 4], &[0; 4], MapFlags::ANY)?;
        self.set_wanted(wanted)
    }

    /// The SYN-ACKs that were kept.
    pub fn samples(&self) -> Result<Vec<Vec<u8>>> {
        let taken = self.whole(".bss.taken")?;
        let taken = word(&taken, 0).min(SAMPLES_MAX) as usize;
        let bytes = self.whole(".bss.samples")?;
        let kept = bytes.chunks_exact(SAMPLE_BYTES).take(taken);
        Ok(kept.map(|sample| sample[4..][..(word(sample, 0) as usize).min(SAMPLE_BYTES - 4)].to_vec()).collect())
    }

    /// What came back until now, at interfaces with [`SynFlood::swallow`].
    pub fn answers(&self) -> Result<Answers> {
        let bytes = self.whole(".bss.counts")?;
        let mut sum = Answers::default();
        for cpu in bytes.chunks_exact(64) {
            let number = |at: usize| u64::from_ne_bytes(cpu[8 * at..][..8].try_into().expect("eight bytes"));
            sum.syn_acks += number(0);
            sum.syn_ack_bytes += number(1);
            sum.resets += number(2);
            sum.others += number(3);
            sum.longest = sum.longest.max(number(4));
        }
        Ok(sum)
    }

    /// The program that counts and drops at an interface what comes back to the sources.
    pub fn swallow(&self) -> Result<BorrowedFd<'_>> {
        self.program("answers")
    }

    /// A program that sends SYNs back at no cost but that of sending, with IPv4.
    pub fn bounce(&self) -> Result<BorrowedFd<'_>> {
        self.program("bounce")
    }

    /// The programs of a VLAN on an interface: into the network stack, and out of it.
    pub fn vlan(&self) -> Result<(BorrowedFd<'_>, BorrowedFd<'_>)> {
        Ok((self.program("untag")?, self.program("tag")?))
    }

    /// Sends these frames, all of one length, to the interface of the aim, from the network namespace of this thread.
    pub fn replay(&self, frames: &[Vec<u8>]) -> Result<()> {
        let first = frames.first().context("no frames")?;
        let fits = |frame: &Vec<u8>| frame.len() == first.len() && frame.len() < SAMPLE_BYTES - 4;
        ensure!(frames.len() <= SAMPLES_MAX as usize && frames.iter().all(fits), "frames that cannot be replayed");
        let mut samples = vec![0; SAMPLES_MAX as usize * SAMPLE_BYTES];
        for (place, frame) in samples.chunks_exact_mut(SAMPLE_BYTES).zip(frames) {
            place[4..][..frame.len()].copy_from_slice(frame);
        }
        self.map(".bss.samples")?.update(&[0; 4], &samples, MapFlags::ANY).context("writing frames")?;
        let mut control = self.control()?;
        control[REPLAYED..][..8].fill(0);
        self.set_control(&control)?;
        live_frames(self.program("replay")?, first, frames.len() as u32).map(drop)
    }

    /// Sets what the next test runs give SYNs to: a floor, and a program that is measured beside it.
    pub fn set_targets(&self, floor: BorrowedFd<'_>, tested: BorrowedFd<'_>) -> Result<(RawFd, RawFd)> {
        for (slot, program) in [floor, tested].into_iter().enumerate() {
            let fd = program.as_raw_fd().to_ne_bytes();
            self.map("targets")?.update(&(slot as u32).to_ne_bytes(), &fd, MapFlags::ANY)?;
        }
        Ok((self.program("syn_to_floor")?.as_raw_fd(), self.program("syn_to_tested")?.as_raw_fd()))
    }

    fn control(&self) -> Result<Vec<u8>> {
        self.whole(".bss.control")
    }

    fn set_control(&self, control: &[u8]) -> Result<()> {
        self.map(".bss.control")?.update(&[0; 4], control, MapFlags::ANY).context("setting the aim")
    }

    fn set_wanted(&self, wanted: u32) -> Result<()> {
        let mut control = self.control()?;
        control[SAMPLES_WANTED..][..4].copy_from_slice(&wanted.to_ne_bytes());
        self.set_control(&control)
    }

    fn map(&self, name: &str) -> Result<libbpf_rs::Map<'_>> {
        let found = self.object.maps().find(|map| map.name() == name);
        found.with_context(|| format!("syn_flood.bpf.o has no map {name}"))
    }

    fn whole(&self, map: &str) -> Result<Vec<u8>> {
        self.map(map)?.lookup(&[0; 4], MapFlags::ANY)?.with_context(|| format!("{map} is empty"))
    }

    fn program(&self, name: &str) -> Result<BorrowedFd<'_>> {
        let found = self.object.progs().find(|program| program.name() == name);
        let found = found.with_context(|| format!("syn_flood.bpf.o has no program {name}"))?;
        // SAFETY: the program lives as long as the object that is borrowed.
        Ok(unsafe { BorrowedFd::borrow_raw(found.as_fd().as_raw_fd()) })
    }
}

impl Sender {
    /// A SYN of it, for test runs.
    pub fn frame(&self) -> &[u8] {
        &self.frame
    }

    /// Sends so many; nanoseconds for one, as the kernel measures it. Beginning and end take milliseconds, and seconds where
    /// the machine is busy.
    pub fn send(&self, count: u32) -> Result<f64> {
        live_frames(self.program.as_fd(), &self.frame, count)
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn live_frames(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> Result<f64> {
    let mut opts = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as u64,
        data_in: frame.as_ptr().cast(),
        data_size_in: frame.len() as u32,
        repeat: repeat as i32,
        flags: libbpf_sys::BPF_F_TEST_XDP_LIVE_FRAMES,
        batch_size: BATCH,
        ..Default::default()
    };
    // SAFETY: opts is a valid struct of the size it says; the kernel only reads `frame`, which outlives the call.
    let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut opts) };
    if result != 0 {
        bail!("sending live frames (Linux 5.18): {}", std::io::Error::from_raw_os_error(-result));
    }
    Ok(f64::from(opts.duration) + 0.5)
}

/// A SYN-ACK as it was read from its frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SynAck {
    pub macs: ([u8; 6], [u8; 6]),
    pub vlan: Option<u16>,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub ports: (u16, u16),
    pub sequence: u32,
    pub acknowledgement: u32,
    pub window: u16,
    pub mss: Option<u16>,
    pub window_scale: Option<u8>,
    pub sack_permitted: bool,
    /// Value and echo.
    pub timestamps: Option<(u32, u32)>,
    pub frame_bytes: usize,
}

impl SynAck {
    /// Reads a frame; `None` when it is something else.
    ///
    /// # Panics
    /// When it is a SYN-ACK with a wrong checksum or with options that cannot be read.
    pub fn read(frame: &[u8]) -> Option<SynAck> {
        let sliced = SlicedPacket::from_ethernet(frame).ok()?;
        let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else { return None };
        if !tcp.syn() || !tcp.ack() {
            return None;
        }
        let (source, destination): (IpAddr, IpAddr) = match sliced.net.as_ref()? {
            NetSlice::Ipv4(ip) => {
                let header = ip.header().to_header();
                assert_eq!(header.calc_header_checksum(), header.header_checksum, "checksum of {frame:02x?}");
                let sum = tcp.calc_checksum_ipv4(header.source, header.destination);
                assert_eq!(sum.expect("a short segment"), tcp.checksum(), "checksum of {frame:02x?}");
                (header.source.into(), header.destination.into())
            }
            NetSlice::Ipv6(ip) => {
                let (source, destination) = (ip.header().source(), ip.header().destination());
                let sum = tcp.calc_checksum_ipv6(source, destination);
                assert_eq!(sum.expect("a short segment"), tcp.checksum(), "checksum of {frame:02x?}");
                (source.into(), destination.into())
            }
            _ => return None,
        };
        let vlan = sliced.link_exts.iter().find_map(|tag| match tag {
            LinkExtSlice::Vlan(vlan) => Some(vlan.vlan_identifier().value()),
            _ => None,
        });
        let mac = |at: usize| frame[at..at + 6].try_into().expect("six bytes");
        let mut read = SynAck {
            macs: (mac(6), mac(0)),
            vlan,
            source,
            destination,
            ports: (tcp.source_port(), tcp.destination_port()),
            sequence: tcp.sequence_number(),
            acknowledgement: tcp.acknowledgment_number(),
            window: tcp.window_size(),
            mss: None,
            window_scale: None,
            sack_permitted: false,
            timestamps: None,
            frame_bytes: frame.len(),
        };
        for option in tcp.options_iterator() {
            match option.unwrap_or_else(|error| panic!("options of {frame:02x?}: {error}")) {
                TcpOptionElement::MaximumSegmentSize(mss) => read.mss = Some(mss),
                TcpOptionElement::WindowScale(scale) => read.window_scale = Some(scale),
                TcpOptionElement::SelectiveAcknowledgementPermitted => read.sack_permitted = true,
                TcpOptionElement::Timestamp(value, echo) => read.timestamps = Some((value, echo)),
                TcpOptionElement::SelectiveAcknowledgement(..) | TcpOptionElement::Noop => {}
            }
        }
        Some(read)
    }

    /// The frame that completes the connection.
    pub fn completed(&self) -> Vec<u8> {
        const ACK: u8 = 16;
        let mut packet = Packet::new().mac(self.macs.1, self.macs.0);
        if let Some(id) = self.vlan {
            packet = packet.vlan(id);
        }
        let packet = packet.ip(self.destination, self.source).expect("one family");
        let packet = packet
            .tcp(self.ports.1, self.ports.0)
            .flags(ACK)
            .numbers(self.acknowledgement, self.sequence.wrapping_add(1));
        let Some((value, echo)) = self.timestamps else { return packet.build() };
        let words = [[1, 1, 8, 10], echo.to_be_bytes(), value.to_be_bytes()];
        packet.tcp_options(&words.concat()).build()
    }
}
