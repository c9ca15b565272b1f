//! Repeats of anomalies: told at the first, the tenth, the hundredth..., and what is left at the end.

use super::Anomaly;
use super::stats::Stats;
use crate::packet::proto::Side;

/// Kinds of anomalies that one flow tells of, by side.
const KINDS_MAX: usize = 48;

struct Kind {
    layer: &'static str,
    name: &'static str,
    side: Option<Side>,
    seen: u64,
    told: u64,
    last_ns: u64,
}

#[derive(Default)]
struct Kinds(Vec<Kind>);

/// The anomalies of a flow, or of all that have none. Nothing is allocated before the first, and a flow without any has
/// no more than a pointer for them.
#[derive(Default)]
pub(super) struct Folds(Option<Box<Kinds>>);

impl Folds {
    /// Notes an anomaly; gives it back if it is to be told now.
    pub(super) fn note(
        &mut self,
        layer: &'static str,
        name: &'static str,
        side: Option<Side>,
        time_ns: u64,
        stats: &mut Stats,
    ) -> Option<Anomaly> {
        stats.anomalies += 1;
        let kinds = &mut self.0.get_or_insert_default().0;
        let at = match kinds.iter().position(|kind| kind.name == name && kind.side == side) {
            Some(at) => at,
            None if kinds.len() == KINDS_MAX => {
                stats.anomalies_dropped += 1;
                return None;
            }
            None => {
                kinds.push(Kind { layer, name, side, seen: 0, told: 0, last_ns: 0 });
                kinds.len() - 1
            }
        };
        let kind = &mut kinds[at];
        kind.seen += 1;
        kind.last_ns = time_ns;
        let is_power_of_ten = 10u64.pow(kind.seen.ilog10()) == kind.seen;
        is_power_of_ten.then(|| kind.tell())
    }

    /// What was not told yet.
    pub(super) fn rest(&mut self) -> impl Iterator<Item = Anomaly> {
        let kinds = self.0.take().map(|kinds| kinds.0).unwrap_or_default();
        kinds.into_iter().filter(|kind| kind.seen > kind.told).map(|mut kind| kind.tell())
    }

    /// Bytes that it takes.
    pub(super) fn memory(&self) -> usize {
        self.0.as_ref().map_or(0, |kinds| size_of::<Kinds>() + kinds.0.capacity() * size_of::<Kind>())
    }
}

impl Kind {
    fn tell(&mut self) -> Anomaly {
        let count = self.seen - self.told;
        self.told = self.seen;
        Anomaly { layer: self.layer, name: self.name, time_ns: self.last_ns, side: self.side, count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_told_at_powers_of_ten_and_at_the_end() {
        let (mut folds, mut stats) = (Folds::default(), Stats::default());
        let mut counts: Vec<(u64, u64)> = Vec::new();
        for time in 1..=250 {
            let told = folds.note("stream", "tcp.urgent", None, time, &mut stats);
            counts.extend(told.map(|anomaly| (anomaly.time_ns, anomaly.count)));
        }
        assert_eq!(counts, [(1, 1), (10, 9), (100, 90)]);
        assert_eq!(folds.rest().map(|anomaly| (anomaly.time_ns, anomaly.count)).collect::<Vec<_>>(), [(250, 150)]);
        assert_eq!(folds.rest().count(), 0);
        assert_eq!(stats.anomalies, 250);
    }

    #[test]
    fn kinds_are_capped_and_counted() {
        let (mut folds, mut stats) = (Folds::default(), Stats::default());
        let names: Vec<&'static str> = "a b c d e f g h i j k l m n o p q r s t u v w x y z".split(' ').collect();
        let told = Side::BOTH
            .into_iter()
            .flat_map(|side| names.iter().map(move |name| (side, *name)))
            .filter_map(|(side, name)| folds.note("stream", name, Some(side), 1, &mut stats))
            .count();
        assert_eq!((told, stats.anomalies_dropped), (KINDS_MAX, 52 - KINDS_MAX as u64));
    }
}
