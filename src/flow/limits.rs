//! How much an inspector may keep, and for how long.

/// A second, in nanoseconds.
pub const SECOND_NS: u64 = 1_000_000_000;

/// What to do with packets whose checksums are wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Checksums {
    /// They are told as anomalies and not used.
    Verify,
    /// As [`Checksums::Verify`], but those are used that hold the pseudo header's sum ([`frame::Checksum::Owed`]), and
    /// all of a side of a flow of which no good one was seen yet: senders leave the sums to the network card, receivers
    /// merge segments. A connection that the receiver takes part in has begun with a packet whose checksum was good, so
    /// that only the first is left to an attacker; and other bytes at the same place are told as a conflict.
    ///
    /// [`frame::Checksum::Owed`]: crate::packet::frame::Checksum::Owed
    Auto,
    /// They are not looked at.
    Trust,
}

/// Caps and times of one inspector. What happens at each cap is said beside it; each has a counter in
/// [`super::stats::Stats`].
#[derive(Clone, Debug)]
pub struct Limits {
    /// Flows. When there is no room, a closed one makes it, else the one of those that were not answered that has been
    /// silent longest, else of those that are blocked, else of the others.
    pub flows_max: u32,
    /// Bytes of parsers, undecided beginnings and out-of-order data, all flows together. Beyond, flows are evicted in
    /// the same order, a few for each packet; if that does not suffice the packet's flow is not inspected any more.
    pub memory_max: usize,
    /// Bytes of out-of-order data that one side of a flow may hold, each piece with its overhead. Beyond, what is
    /// missing is given up as a gap.
    pub held_max: usize,
    /// The same for all flows together.
    pub held_total_max: usize,
    /// Bytes that were delivered lately, of all flows together, which retransmissions are compared with. Rounded up to
    /// a power of two.
    pub history_bytes: usize,
    /// Bytes that one side may send before its protocol is known. Beyond, the flow is only counted.
    pub undecided_max: usize,
    /// Connections that are expected (FTP data). Beyond, the oldest is forgotten.
    pub expected_max: usize,
    /// Packets in fragments. Beyond, the oldest is given up.
    pub fragmented_max: usize,
    /// Bytes of fragments. Beyond, the oldest packet is given up.
    pub fragment_bytes_max: usize,
    /// For how long fragments wait for others, in nanoseconds.
    pub fragment_timeout_ns: u64,
    /// Silence after which a TCP flow ends whose handshake is not complete.
    pub tcp_new_ns: u64,
    /// The same, of those that are established.
    pub tcp_established_ns: u64,
    /// The same, of those that are closed; until then late segments still belong to it.
    pub tcp_closed_ns: u64,
    /// The same of all that were answered and are blocked, in whatever state: a block makes them silent, so this is longer
    /// than one lasts by the time within which they are blocked anew when they go on.
    pub blocked_ns: u64,
    /// Silence after which a flow of UDP ends that was not answered.
    pub udp_new_ns: u64,
    /// The same, of those that were.
    pub udp_established_ns: u64,
    /// Silence after which a flow of another protocol ends.
    pub other_ns: u64,
    /// What to do with wrong checksums.
    pub check_checksums: Checksums,
    /// Number of this inspector among those that share a run, and how many they are: so that ids are unique.
    pub worker: (u16, u16),
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            flows_max: 262_144,
            memory_max: 64 << 20,
            held_max: 1 << 20,
            held_total_max: 24 << 20,
            history_bytes: 4 << 20,
            undecided_max: 16 << 10,
            expected_max: 1024,
            fragmented_max: 4096,
            fragment_bytes_max: 8 << 20,
            fragment_timeout_ns: 30 * SECOND_NS,
            tcp_new_ns: 30 * SECOND_NS,
            tcp_established_ns: 600 * SECOND_NS,
            tcp_closed_ns: 10 * SECOND_NS,
            blocked_ns: 240 * SECOND_NS,
            udp_new_ns: 30 * SECOND_NS,
            udp_established_ns: 120 * SECOND_NS,
            other_ns: 60 * SECOND_NS,
            check_checksums: Checksums::Auto,
            worker: (0, 1),
        }
    }
}
