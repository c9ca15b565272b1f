//! The router: one thread between the engines and the sinks.
//!
//! The first alert of its kind is told at once. Those of the same rule, addresses, destination port and protocol that
//! follow within the window are folded into one summary at its end. Then each source may be told of so many times in a
//! window. Nothing is unbounded: a full queue and a throttled source lose alerts, which are counted; a full fold table
//! only ends its oldest window early, which is counted too.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use prometheus_client::metrics::counter::Counter;

use super::sinks::Sink;
use super::{Alert, Folded, Severity};
use crate::component::Component;
use crate::metrics::Metrics;
use crate::supervise::Owned;

/// The engines' end of the router's queue.
#[derive(Clone)]
pub struct AlertSender {
    alerts: Sender<Alert>,
    lost: Counter,
    metrics: Arc<Metrics>,
}

/// A queue of at most `capacity` alerts to a router.
pub fn queue(metrics: &Arc<Metrics>, capacity: usize) -> (AlertSender, Receiver<Alert>) {
    let (alerts, receiver) = bounded(capacity);
    let lost = metrics.events_lost("alert_queue", "full");
    (AlertSender { alerts, lost, metrics: metrics.clone() }, receiver)
}

impl AlertSender {
    /// Hands the alert over and never waits; one that does not fit is counted as lost.
    pub fn send(&self, alert: Alert) {
        self.metrics.alert(alert.component, alert.severity.name());
        if self.alerts.try_send(alert).is_err() {
            self.lost.inc();
        }
    }
}

/// Windows and bounds of a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long repeats of an alert are folded.
    pub fold_window: Duration,
    /// Kinds of alerts that are folded at a time.
    pub folds_max: usize,
    /// The window of the throttle.
    pub throttle_window: Duration,
    /// Alerts of one source in a window.
    pub throttle_max: u32,
    /// Sources that are told apart. The others of a window share ten times the allowance of one.
    pub sources_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            fold_window: Duration::from_secs(60),
            folds_max: 65_536,
            throttle_window: Duration::from_secs(300),
            throttle_max: 100,
            sources_max: 65_536,
        }
    }
}

/// A sink and what it wants to hear.
pub struct Route {
    /// Where to.
    pub sink: Box<dyn Sink>,
    /// From this severity on.
    pub min_severity: Severity,
    /// Of these components; of all when empty.
    pub components: Vec<Component>,
}

impl Route {
    /// Everything to this sink.
    pub fn all(sink: impl Sink + 'static) -> Route {
        Route { sink: Box::new(sink), min_severity: Severity::Low, components: Vec::new() }
    }

    fn wants(&self, alert: &Alert) -> bool {
        alert.severity >= self.min_severity
            && (self.components.is_empty() || self.components.contains(&alert.component))
    }
}

/// What makes two alerts alike. The values themselves, not a hash of them: a chosen collision would hide an attack.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    component: Component,
    rule_id: Arc<str>,
    /// What was done: a summary must not say that it was done to those to whom it was not.
    action: &'static str,
    src_ip: Option<IpAddr>,
    dst_ip: Option<IpAddr>,
    dst_port: Option<u16>,
    protocol: Option<u8>,
}

impl Kind {
    fn of(alert: &Alert) -> Kind {
        Kind {
            component: alert.component,
            rule_id: alert.rule_id.clone(),
            action: alert.action,
            src_ip: alert.src_ip,
            dst_ip: alert.dst_ip,
            dst_port: alert.dst_port,
            protocol: alert.protocol,
        }
    }
}

/// An open fold window.
struct Fold {
    first: Folded,
    /// The latest repeat, with the count of all of them and the worst severity.
    repeats: Option<Alert>,
}

/// A throttle window of one source.
struct Allowance {
    passed: u32,
    withheld: u64,
}

/// Folds, throttles and routes alerts.
pub struct Router {
    limits: Limits,
    routes: Vec<Route>,
    metrics: Arc<Metrics>,
    folds: HashMap<Kind, Fold>,
    /// The keys of `folds`, by the end of their windows.
    fold_ends: VecDeque<(Instant, Kind)>,
    sources: HashMap<Option<IpAddr>, Allowance>,
    /// The keys of `sources`, by the end of their windows.
    source_ends: VecDeque<(Instant, Option<IpAddr>)>,
    /// What the sources share for which there is no room, and the end of its window.
    others: Allowance,
    others_end: Option<Instant>,
    throttled: Counter,
    ended_early: Counter,
}

impl Router {
    /// A router with nothing in its windows.
    pub fn new(limits: Limits, routes: Vec<Route>, metrics: &Arc<Metrics>) -> Router {
        Router {
            limits,
            routes,
            metrics: metrics.clone(),
            folds: HashMap::new(),
            fold_ends: VecDeque::new(),
            sources: HashMap::new(),
            source_ends: VecDeque::new(),
            others: Allowance { passed: 0, withheld: 0 },
            others_end: None,
            throttled: metrics.events_lost("alert_router", "throttled"),
            ended_early: metrics.events_lost("alert_router", "fold_window_cut"),
        }
    }

    /// Other limits and routes from now on. Open windows end when they were to end.
    pub fn reconfigure(&mut self, limits: Limits, routes: Vec<Route>) {
        self.limits = limits;
        self.routes = routes;
    }

    fn accept(&mut self, alert: Alert, now: Instant) {
        self.end_folds(now);
        let kind = Kind::of(&alert);
        if let Some(fold) = self.folds.get_mut(&kind) {
            let (count, severity) = match &fold.repeats {
                Some(before) => (before.count, before.severity),
                None => (0, alert.severity),
            };
            fold.repeats = Some(Alert {
                count: count + alert.count,
                severity: severity.max(alert.severity),
                folded: Some(fold.first),
                ..alert
            });
            return;
        }
        while self.folds.len() >= self.limits.folds_max.max(1) {
            self.ended_early.inc();
            self.end_oldest_fold(now);
        }
        let first = Folded { first_id: alert.id, first_ns: alert.timestamp_ns };
        self.folds.insert(kind.clone(), Fold { first, repeats: None });
        self.fold_ends.push_back((now + self.limits.fold_window, kind));
        self.tell(&alert, now);
    }

    /// Tells the summaries of the windows that are over.
    fn end_folds(&mut self, now: Instant) {
        while self.fold_ends.front().is_some_and(|(end, _)| *end <= now) {
            self.end_oldest_fold(now);
        }
    }

    fn end_oldest_fold(&mut self, now: Instant) {
        let Some((_, kind)) = self.fold_ends.pop_front() else {
            return;
        };
        if let Some(repeats) = self.folds.remove(&kind).and_then(|fold| fold.repeats) {
            self.tell(&repeats, now);
        }
    }

    /// Throttle, then every route that wants it.
    fn tell(&mut self, alert: &Alert, now: Instant) {
        let throttle_max = self.limits.throttle_max;
        let (allowance, max) = self.allowance(source_of(alert), now);
        let max = max.saturating_mul(throttle_max);
        if allowance.passed >= max {
            allowance.withheld += alert.count;
            self.throttled.inc_by(alert.count);
            return;
        }
        allowance.passed += 1;
        for route in self.routes.iter_mut().filter(|route| route.wants(alert)) {
            if let Err(reason) = route.sink.write(&Arc::new(alert.clone())) {
                self.metrics.events_lost(route.sink.name().to_owned(), reason).inc();
            }
        }
    }

    /// The window that a source belongs to now, and for how many sources it counts.
    fn allowance(&mut self, source: Option<IpAddr>, now: Instant) -> (&mut Allowance, u32) {
        self.end_throttles(now);
        if !self.sources.contains_key(&source) {
            if self.sources.len() >= self.limits.sources_max {
                self.others_end.get_or_insert(now + self.limits.throttle_window);
                return (&mut self.others, 10);
            }
            self.source_ends.push_back((now + self.limits.throttle_window, source));
        }
        (self.sources.entry(source).or_insert(Allowance { passed: 0, withheld: 0 }), 1)
    }

    /// Ends the throttle windows that are over, and says in one record what they withheld.
    fn end_throttles(&mut self, now: Instant) {
        let mut withheld = 0;
        let mut sources = 0;
        let mut worst: Option<(u64, Option<IpAddr>)> = None;
        while self.source_ends.front().is_some_and(|(end, _)| *end <= now) {
            let Some(source) = self.source_ends.pop_front().map(|(_, source)| source) else {
                break;
            };
            let count = self.sources.remove(&source).map_or(0, |allowance| allowance.withheld);
            if count > 0 {
                withheld += count;
                sources += 1;
                worst = worst.max(Some((count, source)));
            }
        }
        if self.others_end.is_some_and(|end| end <= now) {
            withheld += self.others.withheld;
            self.others = Allowance { passed: 0, withheld: 0 };
            self.others_end = None;
        }
        if withheld > 0 {
            let worst = worst.and_then(|(_, source)| source).map_or("-".into(), |source| source.to_string());
            log::warn!(withheld, sources, worst = worst.as_str(); "alerts were withheld by the throttle");
        }
    }
}

/// Whom an alert is about. One IPv6 host commands a whole /64.
fn source_of(alert: &Alert) -> Option<IpAddr> {
    alert.src_ip.map(|address| match address {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        v4 => v4,
    })
}

impl Owned for Router {
    type Event = Alert;

    fn event(&mut self, alert: Alert, now: Instant) {
        self.accept(alert, now);
    }

    fn tick(&mut self, now: Instant) {
        self.end_folds(now);
        self.end_throttles(now);
    }

    /// Open windows are told before the end, so that no repeat goes unheard.
    fn finish(&mut self, now: Instant) {
        while !self.fold_ends.is_empty() {
            self.end_oldest_fold(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::supervise::Supervisor;

    /// Keeps what it is told; fails when asked to.
    #[derive(Clone, Default)]
    struct Heard {
        alerts: Arc<Mutex<Vec<Alert>>>,
        broken: bool,
    }

    impl Sink for Heard {
        fn name(&self) -> &str {
            "heard"
        }
        fn write(&mut self, alert: &Arc<Alert>) -> Result<(), &'static str> {
            self.alerts.lock().unwrap().push(alert.as_ref().clone());
            if self.broken { Err("broken") } else { Ok(()) }
        }
    }

    impl Heard {
        /// Source, destination port and count of what was told since the last look.
        fn take(&self) -> Vec<(String, u16, u64)> {
            let brief =
                |alert: Alert| (alert.src_ip.unwrap().to_string(), alert.dst_port.unwrap_or_default(), alert.count);
            std::mem::take(&mut *self.alerts.lock().unwrap()).into_iter().map(brief).collect()
        }
    }

    struct Bench {
        router: Router,
        heard: Heard,
        metrics: Arc<Metrics>,
        start: Instant,
    }

    impl Bench {
        fn new(change: impl FnOnce(&mut Limits)) -> Bench {
            let mut limits = Limits::default();
            change(&mut limits);
            let heard = Heard::default();
            let metrics = Metrics::new();
            let router = Router::new(limits, vec![Route::all(heard.clone())], &metrics);
            Bench { router, heard, metrics, start: Instant::now() }
        }

        fn at(&mut self, second: u64, alert: Alert) {
            self.router.event(alert, self.start + Duration::from_secs(second));
        }

        fn tick(&mut self, second: u64) {
            self.router.tick(self.start + Duration::from_secs(second));
        }

        fn lost(&self, reason: &'static str) -> u64 {
            self.metrics.events_lost("alert_router", reason).get()
        }
    }

    fn alert(src: &str, dst_port: u16) -> Alert {
        let mut alert = Alert::new(Component::Firewall, Severity::Low, "rule", "deny", 5, "denied");
        alert.src_ip = Some(src.parse().unwrap());
        alert.dst_ip = Some("192.0.2.1".parse().unwrap());
        alert.dst_port = Some(dst_port);
        alert.protocol = Some(6);
        alert
    }

    fn told(src: &str, dst_port: u16, count: u64) -> (String, u16, u64) {
        (src.into(), dst_port, count)
    }

    #[test]
    fn repeats_become_one_summary_at_the_windows_end() {
        let mut bench = Bench::new(|_| ());
        let first = alert("198.51.100.1", 22);
        bench.at(0, first.clone());
        for second in 1..=50 {
            bench.at(second, Alert { src_port: Some(second as u16), ..alert("198.51.100.1", 22) });
        }
        bench.tick(59);
        assert_eq!(bench.heard.take(), [told("198.51.100.1", 22, 1)], "the first at once, nothing since");
        bench.tick(60);
        let summary = bench.heard.alerts.lock().unwrap()[0].clone();
        assert_eq!(bench.heard.take(), [told("198.51.100.1", 22, 50)]);
        assert_eq!(summary.folded, Some(Folded { first_id: first.id, first_ns: 5 }));
        assert_ne!(summary.id, first.id);
        bench.tick(600);
        assert_eq!(bench.heard.take(), []);
        bench.at(601, alert("198.51.100.1", 22));
        assert_eq!(bench.heard.take(), [told("198.51.100.1", 22, 1)], "a new window");
    }

    #[test]
    fn each_part_of_the_key_tells_alerts_apart() {
        let like = alert("198.51.100.1", 22);
        let check = |what: &str, other: Alert, want: usize| {
            let mut bench = Bench::new(|_| ());
            bench.at(0, like.clone());
            bench.at(1, other);
            assert_eq!(bench.heard.take().len(), want, "{what}");
        };
        check("nothing differs", alert("198.51.100.1", 22), 1);
        check("source port", Alert { src_port: Some(9), ..like.clone() }, 1);
        check("message", Alert { message: "other".into(), ..like.clone() }, 1);
        check("source", alert("198.51.100.2", 22), 2);
        check("destination port", alert("198.51.100.1", 23), 2);
        check("destination", Alert { dst_ip: Some("192.0.2.2".parse().unwrap()), ..like.clone() }, 2);
        check("protocol", Alert { protocol: Some(17), ..like.clone() }, 2);
        check("rule", Alert { rule_id: "other".into(), ..like.clone() }, 2);
        check("v6 that ends alike", alert("2001:db8::1", 22), 2);
    }

    #[test]
    fn a_summary_has_the_worst_severity() {
        let mut bench = Bench::new(|_| ());
        for severity in [Severity::Low, Severity::High, Severity::Medium] {
            bench.at(0, Alert { severity, ..alert("198.51.100.1", 22) });
        }
        bench.tick(60);
        assert_eq!(bench.heard.alerts.lock().unwrap()[1].severity, Severity::High);
    }

    #[test]
    fn a_full_fold_table_ends_its_oldest_window() {
        let mut bench = Bench::new(|limits| limits.folds_max = 2);
        bench.at(0, alert("198.51.100.1", 1));
        bench.at(0, alert("198.51.100.1", 1));
        bench.at(1, alert("198.51.100.1", 2));
        bench.at(2, alert("198.51.100.1", 3));
        let source = "198.51.100.1";
        assert_eq!(
            bench.heard.take(),
            [told(source, 1, 1), told(source, 2, 1), told(source, 1, 1), told(source, 3, 1)]
        );
        assert_eq!(bench.lost("fold_window_cut"), 1);
        assert_eq!((bench.router.folds.len(), bench.router.fold_ends.len()), (2, 2));
    }

    #[test]
    fn a_source_is_throttled_and_others_are_not() {
        let mut bench = Bench::new(|limits| limits.throttle_max = 3);
        for port in 0..10 {
            bench.at(0, alert("198.51.100.1", port));
        }
        bench.at(1, alert("198.51.100.2", 1));
        assert_eq!(bench.heard.take().len(), 4);
        assert_eq!(bench.lost("throttled"), 7);
        bench.at(299, alert("198.51.100.1", 99));
        assert_eq!(bench.heard.take(), []);
        bench.at(300, alert("198.51.100.1", 100));
        assert_eq!(bench.heard.take(), [told("198.51.100.1", 100, 1)]);
        for port in 0..10 {
            bench.at(301, alert(&format!("2001:db8::{port}"), port));
        }
        assert_eq!(bench.heard.take().len(), 3, "a /64 is one source");
        bench.at(302, alert("2001:db8:0:1::1", 1));
        assert_eq!(bench.heard.take().len(), 1);
    }

    #[test]
    fn sources_beyond_the_table_share_one_allowance() {
        let mut bench = Bench::new(|limits| (limits.throttle_max, limits.sources_max) = (2, 4));
        for host in 0..250 {
            bench.at(0, alert(&format!("198.51.100.{host}"), 1));
        }
        assert_eq!(bench.heard.take().len(), 4 + 20);
        assert_eq!(bench.lost("throttled"), 250 - 24);
        assert_eq!(bench.router.sources.len(), 4);
        bench.tick(300);
        assert_eq!((bench.router.sources.len(), bench.router.source_ends.len()), (0, 0));
        bench.at(301, alert("198.51.100.200", 1));
        assert_eq!(bench.heard.take().len(), 1);
    }

    #[test]
    fn a_route_hears_what_it_asked_for_and_a_broken_sink_harms_no_other() {
        let metrics = Metrics::new();
        let (broken, loud) = (Heard { broken: true, ..Heard::default() }, Heard::default());
        let routes = vec![
            Route::all(broken.clone()),
            Route { min_severity: Severity::High, ..Route::all(loud.clone()) },
            Route { components: vec![Component::Firewall], ..Route::all(Heard::default()) },
        ];
        let mut router = Router::new(Limits::default(), routes, &metrics);
        router.event(alert("198.51.100.1", 1), Instant::now());
        router.event(Alert { severity: Severity::High, ..alert("198.51.100.1", 2) }, Instant::now());
        assert_eq!(broken.take().len(), 2);
        assert_eq!(loud.take(), [told("198.51.100.1", 2, 1)]);
        assert_eq!(metrics.events_lost("heard", "broken").get(), 2);
    }

    #[test]
    fn no_alert_is_neither_told_nor_counted() {
        let mut bench = Bench::new(|limits| {
            (limits.folds_max, limits.sources_max, limits.throttle_max) = (50, 20, 7);
            limits.throttle_window = Duration::from_secs(90);
        });
        let mut state = 1u32;
        for n in 0..20_000u64 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (host, port) = (state >> 26, (state >> 16) % 4);
            bench.at(n / 20, alert(&format!("198.51.100.{host}"), port as u16));
        }
        bench.router.finish(bench.start + Duration::from_secs(1000));
        let told: u64 = bench.heard.take().iter().map(|(_, _, count)| count).sum();
        assert_eq!(told + bench.lost("throttled"), 20_000);
    }

    #[test]
    fn on_its_thread_the_queue_is_bounded_and_emptied_before_the_end() {
        let heard = Heard::default();
        let metrics = Metrics::new();
        let (sender, alerts) = queue(&metrics, 3);
        for port in 0..5 {
            sender.send(alert("198.51.100.1", port));
        }
        assert_eq!(metrics.events_lost("alert_queue", "full").get(), 2);
        let (supervisor, _failures) = Supervisor::new().unwrap();
        let router = Router::new(Limits::default(), vec![Route::all(heard.clone())], &metrics);
        let (handle, thread) = supervisor.spawn_owner("alert-router", router, alerts).unwrap();
        handle.stop().unwrap();
        thread.join(Duration::from_secs(5)).unwrap();
        assert_eq!(heard.take().len(), 3);
        assert!(metrics.render().contains("alerts_total{component=\"firewall\",severity=\"low\"} 5"));
    }
}
