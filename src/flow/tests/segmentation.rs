//! However a conversation is cut into segments, and whatever segments come: the same bytes, or no harm.

use proptest::prelude::*;

use super::*;
use crate::packet::frame::tcp_flag::{PSH, RST, URG};

/// Both streams: each begins with what tells its side.
fn streams(lens: [usize; 2]) -> [Vec<u8>; 2] {
    [(b'C', lens[0]), (b'S', lens[1])].map(|(first, len)| {
        let rest = (0..len).map(|i| b'a' + ((i * 7 + i / 26) % 26) as u8);
        [first, b'0', b'0'].into_iter().chain(rest).collect()
    })
}

/// A piece of one side's stream.
type Piece = (Side, usize, usize);

fn pieces(len: usize, side: Side) -> impl Strategy<Value = Vec<Piece>> {
    let cuts = prop::collection::btree_set(1..len.max(2), 0..20);
    cuts.prop_map(move |cuts| {
        let mut at = 0;
        let mut pieces: Vec<Piece> = cuts
            .into_iter()
            .filter(|cut| *cut < len)
            .map(|cut| {
                let piece = (side, at, cut);
                at = cut;
                piece
            })
            .collect();
        pieces.push((side, at, len));
        pieces
    })
}

/// A conversation: its streams, and pieces of them in any order, some of them twice.
fn conversation() -> impl Strategy<Value = ([usize; 2], Vec<Piece>)> {
    (1usize..400, 1usize..400).prop_flat_map(|(client, server)| {
        let all = (pieces(client + 3, Side::Client), pieces(server + 3, Side::Server));
        all.prop_flat_map(move |(client_pieces, server_pieces)| {
            let all = [client_pieces, server_pieces].concat();
            prop::collection::vec(any::<prop::sample::Index>(), 0..10)
                .prop_map(move |twice| {
                    let again: Vec<Piece> = twice.iter().map(|at| *at.get(&all)).collect();
                    [all.clone(), again].concat()
                })
                .prop_shuffle()
                .prop_map(move |pieces| ([client, server], pieces))
        })
    })
}

proptest! {
    #[test]
    fn a_conversation_is_the_same_however_it_is_cut(
        (lens, pieces) in conversation(),
        isn in any::<[u32; 2]>(),
        is_v6 in any::<bool>(),
    ) {
        let streams = streams(lens);
        let mut lab = Lab::new(is_v6);
        lab.isn = isn;
        lab.handshake();
        for (side, from, until) in pieces {
            lab.segment(side, ACK, from as u32, &streams[side as usize][from..until]);
        }
        prop_assert_eq!(&lab.told.text, &streams);
        lab.sent = streams.each_ref().map(|stream| stream.len() as u32);
        lab.close();
        let told = lab.finish();
        prop_assert_eq!(told.anomalies, [""; 0]);
        prop_assert_eq!(told.text, streams.map(|stream| [&stream[..], b"END"].concat()));
    }

    /// Nonsense of every kind: nothing panics, nothing is left behind.
    #[test]
    fn any_segments_are_taken(
        steps in prop::collection::vec(
            (any::<bool>(), 0u8..64, 0u32..8000, 0u32..8000, 0usize..3000, 0u8..40, 0u32..40_000),
            1..200,
        ),
        memory_max in 1000usize..60_000,
        isn in any::<[u32; 2]>(),
    ) {
        let small = Limits { memory_max, held_max: 8000, held_total_max: 20_000, flows_max: 4, ..limits() };
        let mut lab = Lab::with(small, false);
        lab.isn = isn;
        for (is_client, flags, at, acked, len, dice, millis) in steps {
            let side = if is_client { Side::Client } else { Side::Server };
            // Most segments are data, as in life.
            let flags = if dice < 30 { ACK | PSH } else { flags & (FIN | SYN | RST | PSH | ACK | URG) };
            lab.sent[side.other() as usize] = acked;
            lab.ports.0 = 40_000 + u16::from(dice % 6);
            lab.unseen = if dice == 7 { (1, u64::from(millis) * 400_000) } else { (0, 0) };
            lab.time_ns += if dice == 8 { u64::from(millis) * MS } else { 0 };
            let first = if at == 0 || dice % 3 == 0 { b'C' } else { b'x' };
            let payload = [&[first][..], &vec![b'y'; len]].concat();
            lab.segment(side, flags, at, if dice % 5 == 0 { b"" } else { &payload });
            prop_assert!(lab.inspector.reassembly_memory() <= memory_max);
            prop_assert!(lab.inspector.flows().count() <= 4);
        }
        let flows = lab.inspector.stats().flows;
        prop_assert_eq!(lab.finish().ended.len() as u64, flows);
    }
}
