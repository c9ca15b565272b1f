//! What an inspector counted.

macro_rules! stats {
    ($($(#[doc = $doc:literal])* $name:ident),* $(,)?) => {
        /// Counters of one inspector, from its start on.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats { $($(#[doc = $doc])* pub $name: u64),* }

        impl Stats {
            /// Each counter with its name, for metrics and summaries.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }

            /// Adds those of another inspector.
            pub fn add(&mut self, other: &Stats) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

stats! {
    /// Packets that were handed over.
    packets,
    /// Their bytes.
    bytes,
    /// Packets that are no IP.
    not_ip,
    /// Packets that could not be read.
    malformed,
    /// Packets that were captured without all of their headers.
    cut,
    /// Packets that were not used because a checksum is wrong.
    bad_checksums,
    /// Packets that others counted in place of handing them over: their budget was spent, or there was no room.
    unseen_packets,
    /// Their bytes.
    unseen_bytes,
    /// Flows that began.
    flows,
    /// Flows that ended because packets closed them.
    flows_closed,
    /// Flows that ended by silence.
    flows_timed_out,
    /// Flows of which one side was heard, evicted because [`super::limits::Limits::flows_max`] was reached.
    flows_evicted_new,
    /// Flows that were established, evicted for the same reason.
    flows_evicted_established,
    /// Flows that were closed already, evicted for the same reason.
    flows_evicted_closed,
    /// Flows that were evicted because [`super::limits::Limits::memory_max`] was reached.
    flows_evicted_memory,
    /// Flows that are not inspected any more because evicting others did not free enough memory.
    memory_refused,
    /// Flows whose protocol is none that is known.
    undetected,
    /// Flows that sent more than [`super::limits::Limits::undecided_max`] before their protocol was known.
    undecided_overflows,
    /// Segments that came before one that is missing.
    out_of_order,
    /// Segments that held nothing new.
    retransmissions,
    /// Segments that held other bytes than were seen at their place.
    overlap_conflicts,
    /// Segments of which the receiver has not acknowledged bytes that are too old to be compared.
    overlaps_unchecked,
    /// Segments beyond the receiver's window, not used.
    beyond_window,
    /// Gaps in streams.
    gaps,
    /// Bytes that are missing in them.
    gap_bytes,
    /// Gaps that the receiver acknowledged: it has what was not seen here.
    gaps_acknowledged,
    /// Gaps given up because [`super::limits::Limits::held_max`] was reached.
    gaps_held_max,
    /// Gaps given up because [`super::limits::Limits::held_total_max`] was reached.
    gaps_held_total_max,
    /// Gaps because packets were not handed over.
    gaps_unseen,
    /// Gaps because packets were captured in part.
    gaps_truncated,
    /// Gaps that were still open when their flow ended.
    gaps_at_end,
    /// Anomalies, each repeat counted.
    anomalies,
    /// Anomalies that were not told because their flow had too many kinds of them.
    anomalies_dropped,
    /// Fragments.
    fragments,
    /// Packets that were put together from fragments.
    defragmented,
    /// Packets in fragments that were given up after [`super::limits::Limits::fragment_timeout_ns`].
    fragments_timed_out,
    /// Packets in fragments that were given up because there were too many, or too many bytes of them.
    fragments_evicted,
    /// Packets in fragments that were given up because they contradict themselves.
    fragments_refused,
    /// Connections that were expected and came.
    expected_met,
    /// Connections that were expected and did not come in time.
    expected_timed_out,
    /// Connections that were expected and forgotten because there were too many.
    expected_evicted,
    /// Flows that were blocked.
    blocked,
}
