//! The router: one thread between the engines and the sinks.
//!
//! An alert that is suppressed is counted and nothing else. One that is like another that was told lately (same rule,
//! action, addresses, destination port and protocol) is folded into that one: it raises its count, and at the window's end
//! the same alert is told again with the new count, as an update. Any other begins a new alert if the throttle of its rule
//! and source and the ceiling of all allow it; what they withhold is counted, and told in one summary at the end of their
//! windows. Then each route hears what its filter wants.
//!
//! An alert of a packet whose process is being looked for is held until that is known, for a second at most; the others
//! do not wait for it.
//!
//! Nothing is unbounded: a full queue loses alerts, which are counted; a full table of windows only ends its oldest window
//! early. Updates need no bound of their own: there is one for an alert and window, and one more when it becomes worse.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use prometheus_client::metrics::counter::Counter;

use super::route::Route;
use super::suppress::Suppressions;
use super::throttle::{Ceiling, Throttle, Who, Windows};
use super::{Alert, AlertId, Severity};
use crate::component::Component;
use crate::enrichment::{Found, Outcome, Process, Processes, Ticket};
use crate::metrics::Metrics;
use crate::supervise::Owned;

/// How often it is looked whether a process was found, while one is looked for.
const LOOK: Duration = Duration::from_millis(10);
/// Alerts that wait for their processes.
const HELD_MAX: usize = 1024;

/// An alert that goes on and on begins anew after so long (or a fold window, if that is longer), so that who looks at the
/// last hours sees it.
const LIFE_MAX: Duration = Duration::from_secs(3600);

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
    /// Whether anybody is told of anything; else alerts are only counted.
    pub enabled: bool,
    /// How long repeats of an alert are folded. Zero: each is told by itself.
    pub fold_window: Duration,
    /// Kinds of alerts that are folded at a time.
    pub folds_max: usize,
    /// The window of the throttle.
    pub throttle_window: Duration,
    /// Alerts of one rule and source that begin in a window.
    pub throttle_max: u32,
    /// Rules and sources that have a window at a time.
    pub throttles_max: usize,
    /// Alerts of all rules and sources that begin in a second.
    pub alerts_per_second: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            enabled: true,
            fold_window: Duration::from_secs(60),
            folds_max: 32_768,
            throttle_window: Duration::from_secs(300),
            throttle_max: 100,
            throttles_max: 65_536,
            alerts_per_second: 1000,
        }
    }
}

/// What makes two alerts alike. The values themselves, not a hash of them: a chosen collision would hide an attack.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    component: Component,
    rule_id: Arc<str>,
    /// What was done: an alert must not say that it was done to those to whom it was not.
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

/// An alert that was told, and what came since.
struct Fold {
    told: Arc<Alert>,
    /// It is held, and will be told as soon as its process is known.
    is_held: bool,
    begun: Instant,
    repeats: u64,
    last_seen_ns: u64,
    severity: Severity,
}

impl Fold {
    fn new(told: Arc<Alert>, is_held: bool, begun: Instant) -> Fold {
        Fold { begun, repeats: 0, last_seen_ns: told.last_seen_ns, severity: told.severity, told, is_held }
    }

    fn add(&mut self, repeat: &Alert) {
        self.repeats = self.repeats.saturating_add(repeat.count);
        self.last_seen_ns = self.last_seen_ns.max(repeat.last_seen_ns);
        self.severity = self.severity.max(repeat.severity);
    }

    /// The alert as it is now, and how many events are new in it, if there are any.
    fn update(&mut self) -> Option<(Arc<Alert>, u64)> {
        let repeats = std::mem::take(&mut self.repeats);
        if repeats == 0 {
            return None;
        }
        self.told = Arc::new(Alert {
            count: self.told.count.saturating_add(repeats),
            last_seen_ns: self.last_seen_ns,
            severity: self.severity,
            revision: self.told.revision + 1,
            ..Alert::clone(&self.told)
        });
        Some((self.told.clone(), repeats))
    }
}

/// An alert whose process is being looked for.
struct Held {
    kind: Arc<Kind>,
    alert: Alert,
    ticket: Ticket,
}

/// Counters of searches for processes, by what came of them.
struct Searches {
    found: Counter,
    nobody: Counter,
    late: Counter,
    too_many: Counter,
}

impl Searches {
    fn new(metrics: &Metrics) -> Searches {
        Searches {
            found: metrics.alert_processes("found"),
            nobody: metrics.alert_processes("nobody"),
            late: metrics.alert_processes("late"),
            too_many: metrics.alert_processes("too_many"),
        }
    }
}

/// A route and how often it was told.
struct Served {
    route: Route,
    told: Counter,
}

/// Counters of events of which nobody was told by themselves, by reason.
struct Dropped {
    off: Counter,
    suppression: Counter,
    dedup: Counter,
    throttle: Counter,
    ceiling: Counter,
    no_route: Counter,
}

impl Dropped {
    fn new(metrics: &Metrics) -> Dropped {
        Dropped {
            off: metrics.alerts_dropped("disabled"),
            suppression: metrics.alerts_dropped("suppression"),
            dedup: metrics.alerts_dropped("dedup"),
            throttle: metrics.alerts_dropped("throttle"),
            ceiling: metrics.alerts_dropped("ceiling"),
            no_route: metrics.alerts_dropped("no_route"),
        }
    }
}

/// Folds, throttles and routes alerts.
pub struct Router {
    limits: Limits,
    routes: Vec<Served>,
    suppressions: Arc<Suppressions>,
    processes: Option<Processes>,
    /// The oldest first, at most [`HELD_MAX`].
    held: VecDeque<Held>,
    /// When it was looked last whether their processes are known.
    looked: Instant,
    searches: Searches,
    metrics: Arc<Metrics>,
    dropped: Dropped,
    folds: Windows<Kind, Fold>,
    folds_cut: Counter,
    throttle: Throttle,
    ceiling: Ceiling,
    /// Of the alert that was told last.
    last_id: Option<AlertId>,
}

impl Router {
    /// A router with nothing in its windows. It looks for processes if it is given a way to.
    pub fn new(
        limits: Limits,
        routes: Vec<Route>,
        suppressions: Arc<Suppressions>,
        processes: Option<Processes>,
        metrics: &Arc<Metrics>,
        now: Instant,
    ) -> Router {
        let mut router = Router {
            limits,
            routes: Vec::new(),
            suppressions,
            processes,
            held: VecDeque::new(),
            looked: now,
            searches: Searches::new(metrics),
            metrics: metrics.clone(),
            dropped: Dropped::new(metrics),
            folds: Windows::new(),
            folds_cut: metrics.events_lost("alert_router", "fold_window_cut"),
            throttle: Throttle::new(),
            ceiling: Ceiling::new(now),
            last_id: None,
        };
        drop(router.serve(routes));
        router
    }

    /// Other limits and routes from now on; windows that are open get the new lengths. The answer is the routes that were
    /// in force: let go of them on a thread that may wait, as a sink may take its time to end.
    pub fn reconfigure(&mut self, limits: Limits, routes: Vec<Route>) -> Vec<Route> {
        let old = std::mem::replace(&mut self.limits, limits);
        self.folds.change_length(old.fold_window, limits.fold_window);
        self.throttle.change_length(old.throttle_window, limits.throttle_window);
        self.serve(routes)
    }

    fn serve(&mut self, routes: Vec<Route>) -> Vec<Route> {
        let metrics = &self.metrics;
        let served = |route: Route| Served { told: metrics.alerts_told(route.name()), route };
        let old = std::mem::replace(&mut self.routes, routes.into_iter().map(served).collect());
        old.into_iter().map(|served| served.route).collect()
    }

    fn accept(&mut self, alert: Alert, now: Instant) {
        self.end_windows(Some(now));
        if !self.limits.enabled {
            self.dropped.off.inc_by(alert.count);
            return;
        }
        if self.suppressions.hides(&alert, alert.last_seen_ns) {
            self.dropped.suppression.inc_by(alert.count);
            return;
        }
        let kind = Kind::of(&alert);
        if let Some(fold) = self.folds.get_mut(&kind) {
            fold.add(&alert);
            // What became worse does not wait.
            if fold.severity > fold.told.severity {
                if fold.is_held {
                    self.tell_held(|held| *held.kind == kind);
                }
                let update = self.folds.get_mut(&kind).and_then(Fold::update);
                self.tell_update(update);
            }
            return;
        }
        let who = Who::of(&alert);
        if !self.throttle.has_room(&who, self.limits.throttle_max) {
            self.dropped.throttle.inc_by(alert.count);
            self.throttle.withhold(&who, alert);
        } else if !self.ceiling.has_room(alert.severity, self.limits.alerts_per_second, now) {
            self.dropped.ceiling.inc_by(alert.count);
            self.ceiling.withhold(alert, now);
        } else {
            self.ceiling.take();
            let window_end = now + self.limits.throttle_window;
            for summary in self.throttle.take(who, window_end, self.limits.throttles_max) {
                self.begin(summary);
            }
            self.begin_fold(kind, alert, now);
        }
    }

    fn begin_fold(&mut self, kind: Kind, mut alert: Alert, now: Instant) {
        let kind = Arc::new(kind);
        let ticket = self.name_process(&mut alert, now);
        let told = match ticket {
            None => self.begin(alert),
            Some(ticket) => {
                let told = Arc::new(alert.clone());
                self.held.push_back(Held { kind: kind.clone(), alert, ticket });
                told
            }
        };
        if self.limits.fold_window.is_zero() {
            return;
        }
        while self.folds.len() >= self.limits.folds_max.max(1) {
            self.folds_cut.inc();
            if let Some((kind, fold)) = self.folds.end_oldest(None) {
                let update = self.settled(&kind, fold).update();
                self.tell_update(update);
            }
        }
        self.folds.open(kind, Fold::new(told, ticket.is_some(), now), now + self.limits.fold_window);
    }

    /// A fold of which the first telling is not held any more.
    fn settled(&mut self, kind: &Kind, fold: Fold) -> Fold {
        if !fold.is_held {
            return fold;
        }
        let told = self.tell_held(|held| *held.kind == *kind).unwrap_or_else(|| fold.told.clone());
        Fold { told, is_held: false, ..fold }
    }

    /// Tells the first held alert that `is_it`, with its process if that is known by now.
    fn tell_held(&mut self, is_it: impl Fn(&Held) -> bool) -> Option<Arc<Alert>> {
        let at = self.held.iter().position(is_it)?;
        let Held { kind, mut alert, ticket } = self.held.remove(at)?;
        let now = self.looked;
        match self.processes.as_mut().map_or(Outcome::Late, |processes| processes.answer(ticket, now)) {
            Outcome::Done(process) => self.set_process(&mut alert, process),
            Outcome::Open | Outcome::Late => {
                self.searches.late.inc();
            }
        }
        let told = self.begin(alert);
        if let Some(fold) = self.folds.get_mut(&kind).filter(|fold| fold.is_held) {
            (fold.told, fold.is_held) = (told.clone(), false);
        }
        Some(told)
    }

    fn set_process(&self, alert: &mut Alert, process: Option<Process>) {
        let result = if process.is_some() { &self.searches.found } else { &self.searches.nobody };
        result.inc();
        alert.process = process.map(|process| (process.pid, process.command));
    }

    /// Tells what is held no longer, the oldest first.
    fn look_at_held(&mut self, now: Instant) {
        if self.held.is_empty() {
            return;
        }
        self.looked = now;
        let mut at = 0;
        while let (Some(held), Some(processes)) = (self.held.get(at), &mut self.processes) {
            match processes.answer(held.ticket, now) {
                Outcome::Open => at += 1,
                // All that are of this socket, in their order.
                Outcome::Done(_) | Outcome::Late => {
                    let ticket = held.ticket;
                    self.tell_held(|held| held.ticket == ticket);
                }
            }
        }
    }

    /// Tells an alert for the first time. Ids are in the order in which alerts are told, whatever the order in which
    /// engines made them: who heard one has heard all that are smaller.
    fn begin(&mut self, mut alert: Alert) -> Arc<Alert> {
        if self.last_id.is_some_and(|last| alert.id <= last) {
            alert.id = AlertId::next();
        }
        self.last_id = Some(alert.id);
        let alert = Arc::new(alert);
        if !self.tell(&alert) {
            self.dropped.no_route.inc_by(alert.count);
        }
        alert
    }

    /// Asks the kernel whose socket it is. The inspection does so for itself, while the flow lives; where a packet was
    /// judged alone, it is asked for now. The ticket says that the answer is on its way.
    fn name_process(&mut self, alert: &mut Alert, now: Instant) -> Option<Ticket> {
        let is_of_packet = matches!(alert.component, Component::Firewall | Component::Ratelimit);
        if alert.process.is_some() || !is_of_packet {
            return None;
        }
        let (processes, protocol) = self.processes.as_mut().zip(alert.protocol)?;
        let source = SocketAddr::new(alert.src_ip?, alert.src_port?);
        let destination = SocketAddr::new(alert.dst_ip?, alert.dst_port?);
        match processes.of_packet(protocol, [source, destination], now) {
            Found::Asked(ticket) if self.held.len() < HELD_MAX => return Some(ticket),
            Found::Known(process) => self.set_process(alert, process),
            Found::Asked(_) | Found::TooMany => {
                self.searches.too_many.inc();
            }
        }
        None
    }

    fn tell_update(&mut self, update: Option<(Arc<Alert>, u64)>) {
        if let Some((alert, repeats)) = update {
            self.dropped.dedup.inc_by(repeats);
            self.tell(&alert);
        }
    }

    /// Every route that wants it; whether one of the configuration does.
    fn tell(&self, alert: &Arc<Alert>) -> bool {
        let mut wanted = false;
        for served in self.routes.iter().filter(|served| served.route.wants(alert)) {
            wanted |= !served.route.is_own();
            match served.route.tell(alert) {
                Ok(()) => {
                    served.told.inc();
                }
                Err((place, reason)) => {
                    self.metrics.events_lost(place, reason).inc();
                }
            }
        }
        wanted
    }

    /// Ends the windows that are over by `now`, with `None` all of them, and tells what they have to say.
    fn end_windows(&mut self, now: Option<Instant>) {
        while let Some((kind, fold)) = self.folds.end_oldest(now) {
            let mut fold = self.settled(&kind, fold);
            let update = fold.update();
            let Some(now) = now.filter(|_| update.is_some()) else {
                self.tell_update(update);
                continue;
            };
            self.tell_update(update);
            // It may go on: it is told again at the end of the next window, not begun anew.
            let window = self.limits.fold_window;
            if !window.is_zero() && now.duration_since(fold.begun) < LIFE_MAX.max(window) {
                self.folds.open(kind, fold, now + window);
            }
        }
        while let Some(summary) = self.throttle.end_oldest(now) {
            if let Some(summary) = summary {
                self.begin(summary);
            }
        }
        for summary in self.ceiling.end_window(now) {
            self.begin(summary);
        }
    }
}

impl Owned for Router {
    type Event = Alert;

    fn event(&mut self, alert: Alert, now: Instant) {
        self.accept(alert, now);
    }

    fn tick(&mut self, now: Instant) {
        self.look_at_held(now);
        self.end_windows(Some(now));
    }

    fn due(&self) -> Option<Instant> {
        (!self.held.is_empty()).then(|| self.looked + LOOK)
    }

    /// What is held and open windows are told before the end, so that nothing goes unheard.
    fn finish(&mut self, now: Instant) {
        self.looked = now;
        while self.tell_held(|_| true).is_some() {}
        self.end_windows(None);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::sync::Mutex;

    use super::*;
    use crate::alert::route::Filter;
    use crate::alert::sinks::Sink;
    use crate::alert::suppress::Suppression;
    use crate::alert::throttle::WITHHELD;
    use crate::enrichment::Scanner;
    use crate::supervise::Supervisor;

    /// Keeps what it is told; fails when asked to.
    #[derive(Clone, Default)]
    struct Heard {
        alerts: Arc<Mutex<Vec<Arc<Alert>>>>,
        broken: bool,
    }

    impl Sink for Heard {
        fn name(&self) -> &str {
            "heard"
        }
        fn write(&mut self, alert: &Arc<Alert>) -> Result<(), &'static str> {
            self.alerts.lock().unwrap().push(alert.clone());
            if self.broken { Err("broken") } else { Ok(()) }
        }
    }

    impl Heard {
        fn all(&self) -> Vec<Arc<Alert>> {
            std::mem::take(&mut *self.alerts.lock().unwrap())
        }

        /// Source, destination port, count and revision of what was told since the last look.
        fn take(&self) -> Vec<(String, u16, u64, u32)> {
            let source = |alert: &Alert| alert.src_ip.map_or("-".to_owned(), |ip| ip.to_string());
            let brief = |alert: Arc<Alert>| (source(&alert), alert.dst_port.unwrap_or(0), alert.count, alert.revision);
            self.all().into_iter().map(brief).collect()
        }
    }

    struct Bench {
        router: Router,
        heard: Heard,
        suppressions: Arc<Suppressions>,
        metrics: Arc<Metrics>,
        start: Instant,
    }

    impl Bench {
        fn new(change: impl FnOnce(&mut Limits)) -> Bench {
            let mut limits = Limits::default();
            change(&mut limits);
            let (heard, metrics, start) = (Heard::default(), Metrics::new(), Instant::now());
            let suppressions = Arc::new(Suppressions::default());
            let routes = vec![Route::all(heard.clone())];
            let router = Router::new(limits, routes, suppressions.clone(), None, &metrics, start);
            Bench { router, heard, suppressions, metrics, start }
        }

        fn at(&mut self, second: u64, alert: Alert) {
            self.router.event(alert, self.start + Duration::from_secs(second));
        }

        fn tick(&mut self, second: u64) {
            self.router.tick(self.start + Duration::from_secs(second));
        }

        fn dropped(&self, reason: &'static str) -> u64 {
            self.metrics.alerts_dropped(reason).get()
        }
    }

    /// What happens `second` seconds after 1970.
    fn alert_at(second: u64, src: &str, dst_port: u16) -> Alert {
        let mut alert =
            Alert::new(Component::Firewall, Severity::Low, "rule", "deny", second * 1_000_000_000, "denied");
        alert.src_ip = Some(src.parse().unwrap());
        alert.dst_ip = Some("192.0.2.1".parse().unwrap());
        alert.dst_port = Some(dst_port);
        alert.protocol = Some(6);
        alert
    }

    fn alert(src: &str, dst_port: u16) -> Alert {
        alert_at(5, src, dst_port)
    }

    fn told(src: &str, dst_port: u16, count: u64, revision: u32) -> (String, u16, u64, u32) {
        (src.into(), dst_port, count, revision)
    }

    const SOURCE: &str = "198.51.100.1";

    #[test]
    fn repeats_raise_the_count_of_the_same_alert() {
        let mut bench = Bench::new(|_| ());
        let first = alert_at(100, SOURCE, 22);
        bench.at(0, first.clone());
        for second in 1..=50 {
            bench.at(second, Alert { src_port: Some(second as u16), ..alert_at(100 + second, SOURCE, 22) });
        }
        bench.tick(59);
        assert_eq!(bench.heard.all(), [Arc::new(first.clone())], "the first at once, nothing since");
        bench.tick(60);
        let update = Alert { count: 51, last_seen_ns: 150_000_000_000, revision: 1, ..first.clone() };
        assert_eq!(bench.heard.all(), [Arc::new(update.clone())]);
        assert_eq!(bench.dropped("dedup"), 50);
        // It goes on in the next window, and only when there was silence for a window it is over.
        bench.at(70, alert_at(170, SOURCE, 22));
        bench.tick(119);
        assert_eq!(bench.heard.all(), []);
        bench.tick(120);
        let update = Alert { count: 52, last_seen_ns: 170_000_000_000, revision: 2, ..update };
        assert_eq!(bench.heard.all(), [Arc::new(update)]);
        bench.tick(180);
        assert_eq!((bench.heard.all(), bench.router.folds.len()), (vec![], 0));
        bench.at(181, alert_at(281, SOURCE, 22));
        let begun = bench.heard.all().remove(0);
        assert_eq!((begun.count, begun.revision, begun.first_seen_ns), (1, 0, 281_000_000_000));
        assert!(begun.id > first.id);
    }

    #[test]
    fn what_goes_on_for_an_hour_begins_anew() {
        let mut bench = Bench::new(|_| ());
        for second in 0..3700 {
            bench.at(second, alert(SOURCE, 22));
        }
        bench.router.finish(bench.start);
        let told = bench.heard.take();
        assert_eq!(told.len(), 1 + 60 + 1 + 1 + 1, "{told:?}");
        assert_eq!(
            told[60..],
            [
                (SOURCE.into(), 22, 3600, 60),
                (SOURCE.into(), 22, 1, 0),
                (SOURCE.into(), 22, 60, 1),
                (SOURCE.into(), 22, 100, 2)
            ]
        );
    }

    #[test]
    fn each_part_of_the_key_tells_alerts_apart() {
        let like = alert(SOURCE, 22);
        let check = |what: &str, other: Alert, want: usize| {
            let mut bench = Bench::new(|_| ());
            bench.at(0, like.clone());
            bench.at(1, other);
            assert_eq!(bench.heard.take().len(), want, "{what}");
        };
        check("nothing differs", alert(SOURCE, 22), 1);
        check("source port", Alert { src_port: Some(9), ..like.clone() }, 1);
        check("message", Alert { message: "other".into(), ..like.clone() }, 1);
        check("source", alert("198.51.100.2", 22), 2);
        check("destination port", alert(SOURCE, 23), 2);
        check("destination", Alert { dst_ip: Some("192.0.2.2".parse().unwrap()), ..like.clone() }, 2);
        check("protocol", Alert { protocol: Some(17), ..like.clone() }, 2);
        check("rule", Alert { rule_id: "other".into(), ..like.clone() }, 2);
        check("action", Alert { action: "pass", ..like.clone() }, 2);
        check("component", Alert { component: Component::L7, ..like.clone() }, 2);
        check("v6 that ends alike", alert("2001:db8::1", 22), 2);
    }

    /// An alert of a packet from here to there.
    fn alert_between(client: &TcpStream) -> Alert {
        let (src, dst) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        Alert { src_port: Some(src.port()), dst_ip: Some(dst.ip()), ..alert(&src.ip().to_string(), dst.port()) }
    }

    #[test]
    fn a_process_that_is_looked_for_delays_no_other_alert() {
        let (scanner, searches) = Scanner::manual();
        let mut bench = Bench::new(|_| ());
        bench.router.processes = Some(Processes::open(scanner, bench.start).unwrap());
        let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let clients = listeners.each_ref().map(|one| TcpStream::connect(one.local_addr().unwrap()).unwrap());
        let of = clients.each_ref().map(alert_between);
        let port = |number: usize| of[number].dst_port.unwrap();
        let process = || Some(Process { pid: 7, command: "nc -l".into(), uid: 0 });
        let searched = |metrics: &Metrics| {
            ["found", "nobody", "late", "too_many"].map(|result| metrics.alert_processes(result).get())
        };

        bench.at(0, of[0].clone());
        bench.at(0, Alert { count: 2, ..of[0].clone() });
        bench.at(0, alert(SOURCE, 22));
        assert_eq!(bench.heard.take(), [told(SOURCE, 22, 1, 0)]);
        assert!(bench.router.due().is_some_and(|due| due <= bench.start + Duration::from_secs(1)));
        bench.tick(0);
        assert_eq!(bench.heard.take(), []);
        searches.try_recv().unwrap().answer(process(), Duration::ZERO);
        assert!(searches.is_empty(), "one is enough for a socket");
        bench.tick(0);
        let first = bench.heard.all().remove(0);
        assert_eq!((first.count, first.revision, &first.process), (1, 0, &Some((7, "nc -l".to_owned()))));
        assert_eq!((bench.router.due(), searched(&bench.metrics)), (None, [1, 0, 0, 0]));
        bench.tick(60);
        let update = bench.heard.all().remove(0);
        assert_eq!((update.id, update.count, update.revision, &update.process), (first.id, 3, 1, &first.process));

        // Nobody answers in time.
        bench.at(100, of[1].clone());
        bench.tick(100);
        assert_eq!(bench.heard.take(), []);
        bench.tick(101);
        assert_eq!(bench.heard.take(), [told("127.0.0.1", port(1), 1, 0)]);
        assert_eq!((bench.router.due(), searched(&bench.metrics)), (None, [1, 0, 1, 0]));
        drop(searches.try_recv().unwrap());

        // What becomes worse meanwhile does not wait.
        bench.at(200, of[2].clone());
        bench.at(200, Alert { severity: Severity::High, ..of[2].clone() });
        let both = [told("127.0.0.1", port(2), 1, 0), told("127.0.0.1", port(2), 2, 1)];
        assert_eq!((bench.heard.take(), searched(&bench.metrics)), (both.to_vec(), [1, 0, 2, 0]));
        searches.try_recv().unwrap().answer(None, Duration::ZERO);
        bench.tick(200);
        assert_eq!(bench.heard.take(), []);

        // The end does not wait either, and loses nothing; nor does a full table.
        for ended in [true, false] {
            bench.router.limits.folds_max = if ended { 100 } else { 1 };
            let second = if ended { 300 } else { 400 };
            bench.tick(second);
            bench.at(second, of[0].clone());
            bench.at(second, of[0].clone());
            if ended {
                bench.router.finish(bench.start + Duration::from_secs(second));
            } else {
                bench.at(second, alert(SOURCE, 22));
            }
            let mut all = bench.heard.take();
            all.retain(|told| told.0 != SOURCE);
            assert_eq!(all, [told("127.0.0.1", port(0), 1, 0), told("127.0.0.1", port(0), 2, 1)], "ended: {ended}");
            drop(searches.try_recv().unwrap());
        }
    }

    #[test]
    fn what_is_not_folded_is_held_all_the_same() {
        let (scanner, searches) = Scanner::manual();
        let mut bench = Bench::new(|limits| limits.fold_window = Duration::ZERO);
        bench.router.processes = Some(Processes::open(scanner, bench.start).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (0..3).for_each(|_| bench.at(0, alert_between(&client)));
        assert_eq!(bench.heard.take(), []);
        searches.try_recv().unwrap().answer(None, Duration::ZERO);
        bench.tick(0);
        assert_eq!((bench.heard.take().len(), bench.metrics.alert_processes("nobody").get()), (3, 3));
        // Of whom it is known that nobody has it is not looked for, and counted all the same.
        bench.at(1, Alert { src_port: Some(4000), dst_ip: Some("192.0.2.9".parse().unwrap()), ..alert(SOURCE, 22) });
        assert_eq!((bench.heard.take().len(), bench.metrics.alert_processes("nobody").get()), (1, 4));
        // Where there are too many searches none is begun, and nothing waits.
        bench.router.processes.as_mut().unwrap().spend(Duration::from_secs(9));
        bench.at(11, alert_between(&client));
        assert_eq!((bench.heard.take().len(), bench.metrics.alert_processes("too_many").get()), (1, 1));
    }

    #[test]
    fn without_a_window_each_is_told() {
        let mut bench = Bench::new(|limits| limits.fold_window = Duration::ZERO);
        for _ in 0..3 {
            bench.at(0, alert(SOURCE, 22));
        }
        let ids: Vec<_> = bench.heard.all().iter().map(|alert| alert.id).collect();
        assert!(ids.len() == 3 && ids.is_sorted_by(|one, other| one < other), "{ids:?}");
        assert_eq!(bench.router.folds.len(), 0);
    }

    #[test]
    fn what_becomes_worse_is_told_at_once() {
        let mut bench = Bench::new(|_| ());
        for severity in [Severity::Medium, Severity::Low, Severity::High, Severity::Medium] {
            bench.at(0, Alert { severity, ..alert(SOURCE, 22) });
        }
        let brief = |alert: &Arc<Alert>| (alert.severity, alert.count, alert.revision);
        let told: Vec<_> = bench.heard.all().iter().map(brief).collect();
        assert_eq!(told, [(Severity::Medium, 1, 0), (Severity::High, 3, 1)]);
        bench.tick(60);
        let told: Vec<_> = bench.heard.all().iter().map(brief).collect();
        assert_eq!(told, [(Severity::High, 4, 2)]);
    }

    #[test]
    fn a_full_fold_table_ends_its_oldest_window() {
        let mut bench = Bench::new(|limits| limits.folds_max = 2);
        for port in [1, 1, 2, 3] {
            bench.at(0, alert(SOURCE, port));
        }
        assert_eq!(
            bench.heard.take(),
            [told(SOURCE, 1, 1, 0), told(SOURCE, 2, 1, 0), told(SOURCE, 3, 1, 0), told(SOURCE, 1, 2, 1)]
        );
        assert_eq!(bench.metrics.events_lost("alert_router", "fold_window_cut").get(), 1);
        assert_eq!(bench.router.folds.len(), 2);
    }

    #[test]
    fn ids_are_in_the_order_of_telling() {
        let mut bench = Bench::new(|_| ());
        let (made_first, made_second) = (alert(SOURCE, 1), alert(SOURCE, 2));
        bench.at(0, made_second.clone());
        bench.at(0, made_first);
        let ids: Vec<_> = bench.heard.all().iter().map(|alert| alert.id).collect();
        assert_eq!(ids[0], made_second.id);
        assert!(ids[1] > ids[0], "{ids:?}");
    }

    #[test]
    fn a_rule_and_source_is_throttled_and_others_are_not() {
        let mut bench = Bench::new(|limits| limits.throttle_max = 3);
        for port in 0..10 {
            bench.at(0, Alert { count: 2, ..alert_at(10 + u64::from(port), SOURCE, port) });
        }
        bench.at(1, alert("198.51.100.2", 1));
        bench.at(1, Alert { rule_id: "other".into(), ..alert(SOURCE, 1) });
        assert_eq!(bench.heard.take().len(), 5);
        assert_eq!(bench.dropped("throttle"), 14);
        // A repeat of what was told is folded, not throttled.
        bench.at(2, alert(SOURCE, 0));
        assert_eq!(bench.dropped("throttle"), 14);
        bench.at(299, alert(SOURCE, 99));
        assert_eq!(bench.heard.take(), [told(SOURCE, 0, 3, 1)]);
        bench.at(300, Alert { severity: Severity::High, ..alert(SOURCE, 100) });
        let told = bench.heard.all();
        let summary = &told[0];
        assert_eq!((&*summary.rule_id, summary.action, summary.count, summary.revision), ("rule", WITHHELD, 15, 0));
        assert_eq!((summary.first_seen_ns, summary.last_seen_ns), (5_000_000_000, 19_000_000_000));
        assert_eq!(summary.src_ip, Some(SOURCE.parse().unwrap()));
        assert_eq!(summary.message, "15 more events of rule from 198.51.100.1, beyond alerting.throttle_max");
        assert_eq!((told.len(), told[1].dst_port), (2, Some(100)));
        assert!(told[1].id > summary.id);
    }

    #[test]
    fn one_v6_network_is_one_source() {
        let mut bench = Bench::new(|limits| limits.throttle_max = 3);
        for port in 0..10 {
            bench.at(0, alert(&format!("2001:db8::{port}"), port));
        }
        assert_eq!(bench.heard.take().len(), 3);
        bench.at(1, alert("2001:db8:0:1::1", 1));
        assert_eq!(bench.heard.take().len(), 1);
        bench.tick(60);
        bench.tick(300);
        let summary = bench.heard.all().remove(0);
        assert_eq!(summary.message, "7 more events of rule from 2001:db8::/64, beyond alerting.throttle_max");
    }

    #[test]
    fn rules_and_sources_beyond_the_table_end_the_oldest_window() {
        let mut bench = Bench::new(|limits| (limits.throttle_max, limits.throttles_max) = (1, 2));
        for (host, port) in [(1, 1), (1, 2), (2, 1), (3, 1)] {
            bench.at(0, alert(&format!("198.51.100.{host}"), port));
        }
        assert_eq!(
            bench.heard.take(),
            [
                told(SOURCE, 1, 1, 0),
                told("198.51.100.2", 1, 1, 0),
                told(SOURCE, 0, 1, 0),
                told("198.51.100.3", 1, 1, 0)
            ]
        );
        assert_eq!(bench.router.throttle.windows.len(), 2);
        bench.at(1, alert(SOURCE, 3));
        assert_eq!(bench.heard.take(), [told(SOURCE, 3, 1, 0)], "it has a new allowance");
    }

    #[test]
    fn the_ceiling_holds_all_and_keeps_room_for_the_worst() {
        let mut bench = Bench::new(|limits| limits.alerts_per_second = 8);
        let high = |host: u8| Alert { severity: Severity::High, ..alert(&format!("203.0.113.{host}"), 1) };
        for host in 0..20 {
            bench.at(0, alert(&format!("198.51.100.{host}"), 1));
        }
        for host in 0..5 {
            bench.at(0, high(host));
        }
        let told = bench.heard.all();
        let of = |severity| told.iter().filter(|alert| alert.severity == severity).count();
        assert_eq!((of(Severity::Low), of(Severity::High)), (6, 2));
        assert_eq!(bench.dropped("ceiling"), 14 + 3);
        // What was withheld has used no allowance and begins no fold; in the next second there is room.
        bench.at(1, alert("198.51.100.19", 1));
        assert_eq!(bench.heard.take().len(), 1);
        bench.tick(60);
        let summary = bench.heard.all().remove(0);
        assert_eq!((summary.action, summary.count, summary.severity), (WITHHELD, 17, Severity::High));
        assert_eq!(summary.message, "17 more events of rule from all sources, beyond alerting.max_alerts_per_second");
        bench.tick(120);
        assert_eq!(bench.heard.take(), []);
    }

    #[test]
    fn what_is_suppressed_is_only_counted() {
        let mut bench = Bench::new(|_| ());
        bench.at(0, alert(SOURCE, 1));
        let suppression = Suppression {
            id: "s".into(),
            component: Component::Firewall,
            rule_id: "rule".into(),
            src_ip: Some(SOURCE.parse().unwrap()),
            created_ns: 0,
            until_ns: 7_000_000_000,
            created_by: "test".into(),
            comment: String::new(),
            hidden: 0,
        };
        bench.suppressions.add(suppression, 0).unwrap();
        bench.at(1, alert(SOURCE, 1));
        bench.at(1, alert(SOURCE, 2));
        bench.at(1, alert("198.51.100.2", 1));
        assert_eq!(bench.heard.take(), [told(SOURCE, 1, 1, 0), told("198.51.100.2", 1, 1, 0)]);
        assert_eq!((bench.dropped("suppression"), bench.suppressions.list(0)[0].hidden), (2, 2));
        bench.at(2, alert_at(7, SOURCE, 2));
        assert_eq!(bench.heard.take(), [told(SOURCE, 2, 1, 0)], "its time is over");
    }

    #[test]
    fn when_off_alerts_are_only_counted() {
        let mut bench = Bench::new(|limits| limits.enabled = false);
        bench.at(0, Alert { count: 4, ..alert(SOURCE, 1) });
        assert_eq!((bench.heard.take().len(), bench.dropped("disabled")), (0, 4));
    }

    #[test]
    fn a_route_hears_what_it_asked_for_and_a_broken_sink_harms_no_other() {
        let metrics = Metrics::new();
        let (broken, loud) = (Heard { broken: true, ..Heard::default() }, Heard::default());
        let of = |name: &str, heard: &Heard, filter: Filter| Route::new(name, filter, Box::new(heard.clone()));
        let routes = vec![
            of("broken", &broken, Filter::default()),
            of("loud", &loud, Filter { min_severity: Severity::High, ..Filter::default() }),
            of("none", &loud, Filter { components: vec![Component::L7], ..Filter::default() }),
        ];
        let now = Instant::now();
        let mut router = Router::new(Limits::default(), routes, Arc::default(), None, &metrics, now);
        router.event(alert(SOURCE, 1), now);
        router.event(Alert { severity: Severity::High, ..alert(SOURCE, 2) }, now);
        assert_eq!(broken.take().len(), 2);
        assert_eq!(loud.take(), [told(SOURCE, 2, 1, 0)]);
        assert_eq!(metrics.events_lost("heard", "broken").get(), 2);
        let told = |route: &str| metrics.alerts_told(route).get();
        assert_eq!((told("broken"), told("loud"), told("none")), (0, 1, 0));
        assert_eq!(metrics.alerts_dropped("no_route").get(), 0);
        // The agent's own hears it, but nobody whom the configuration names.
        let own = Heard::default();
        drop(router.reconfigure(Limits::default(), vec![Route::all(own.clone())]));
        router.event(Alert { count: 3, ..alert(SOURCE, 3) }, now);
        assert_eq!((metrics.alerts_dropped("no_route").get(), own.take().len()), (3, 1));
    }

    #[test]
    fn other_routes_and_limits_hold_from_now_on_and_can_be_taken_back() {
        let mut bench = Bench::new(|_| ());
        bench.at(0, alert(SOURCE, 1));
        bench.at(1, alert(SOURCE, 1));
        let other = Heard::default();
        let limits = Limits { fold_window: Duration::from_secs(10), ..Limits::default() };
        let before = bench.router.reconfigure(limits, vec![Route::all(other.clone())]);
        assert_eq!(before.len(), 1);
        bench.tick(9);
        assert_eq!(other.take(), []);
        bench.tick(10);
        assert_eq!(other.take(), [told(SOURCE, 1, 2, 1)], "a window that is open has the new length");
        assert_eq!(bench.heard.take(), [told(SOURCE, 1, 1, 0)]);
        drop(bench.router.reconfigure(Limits::default(), before));
        bench.at(12, alert(SOURCE, 2));
        assert_eq!((bench.heard.take(), other.take().len()), (vec![told(SOURCE, 2, 1, 0)], 0));
    }

    /// Each event is in the count of an alert that was told, or counted by the reason for which it was not; and what the
    /// throttle and the ceiling withheld is told in their summaries.
    #[test]
    fn no_event_is_neither_told_nor_counted() {
        let mut bench = Bench::new(|limits| {
            (limits.folds_max, limits.throttles_max, limits.throttle_max) = (50, 40, 2);
            (limits.throttle_window, limits.alerts_per_second) = (Duration::from_secs(90), 9);
        });
        for host in [3, 4] {
            let suppression = Suppression {
                id: host.to_string(),
                component: Component::Firewall,
                rule_id: "rule".into(),
                src_ip: Some(format!("198.51.100.{host}").parse().unwrap()),
                created_ns: 0,
                until_ns: 200 * u64::from(host == 3) * 1_000_000_000 + 100_000_000_000,
                created_by: "test".into(),
                comment: String::new(),
                hidden: 0,
            };
            bench.suppressions.add(suppression, 0).unwrap();
        }
        let (mut state, mut events) = (1u32, 0);
        let severities = [Severity::Low, Severity::Medium, Severity::High];
        let (mut counts, mut firsts, mut revisions) = (HashMap::new(), 0, HashMap::new());
        let mut withheld = 0;
        let mut look = |heard: &Heard| {
            for alert in heard.all() {
                if alert.action == WITHHELD {
                    withheld += alert.count;
                    continue;
                }
                firsts += u64::from(alert.revision == 0) * alert.count;
                let before = revisions.insert(alert.id, alert.revision);
                assert_eq!(alert.revision, before.map_or(0, |before| before + 1), "no telling is missing");
                counts.insert(alert.id, alert.count);
            }
        };
        for n in 0..20_000u64 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (host, port) = (state >> 26, (state >> 16) % 4);
            let count = u64::from((state >> 10) % 3 + 1);
            events += count;
            let severity = severities[(state >> 20) as usize % 3];
            let alert = alert_at(n / 20, &format!("198.51.100.{host}"), port as u16);
            bench.at(n / 20, Alert { count, severity, ..alert });
            look(&bench.heard);
        }
        bench.router.finish(bench.start);
        look(&bench.heard);
        let dropped = ["throttle", "ceiling", "suppression"].map(|reason| bench.dropped(reason));
        assert!(dropped.iter().all(|&number| number > 0), "{dropped:?}");
        let told: u64 = counts.values().sum();
        assert_eq!(told + dropped.iter().sum::<u64>(), events);
        assert_eq!(told - firsts, bench.dropped("dedup"));
        assert_eq!(withheld, dropped[0] + dropped[1]);
        assert_eq!((bench.router.folds.len(), bench.router.throttle.windows.len()), (0, 0));
    }

    /// Each from a source of its own: the worst that a sender can do. Tables stay within their bounds, and the rate is
    /// shown for who looks (`--nocapture`).
    #[test]
    fn a_flood_of_sources_is_told_and_bounded() {
        const ALERTS: u64 = 100_000;
        let mut bench = Bench::new(|limits| limits.alerts_per_second = 1_000_000);
        let flood: Vec<Alert> =
            (0..ALERTS as u32).map(|n| alert(&Ipv4Addr::from_bits(0x0a00_0000 + n).to_string(), 1)).collect();
        let begun = Instant::now();
        for alert in flood {
            bench.at(0, alert);
        }
        let took = begun.elapsed();
        println!("{:.0} alerts a second", ALERTS as f64 / took.as_secs_f64());
        assert_eq!(bench.heard.all().len() as u64, ALERTS);
        let limits = bench.router.limits;
        assert_eq!(bench.router.folds.len(), limits.folds_max);
        assert_eq!(bench.router.throttle.windows.len(), limits.throttles_max);
        let cut = bench.metrics.events_lost("alert_router", "fold_window_cut").get();
        assert_eq!(cut, ALERTS - limits.folds_max as u64);
    }

    #[test]
    fn on_its_thread_the_queue_is_bounded_and_emptied_before_the_end() {
        let heard = Heard::default();
        let metrics = Metrics::new();
        let (sender, alerts) = queue(&metrics, 3);
        for port in 0..5 {
            sender.send(alert(SOURCE, port));
        }
        assert_eq!(metrics.events_lost("alert_queue", "full").get(), 2);
        let (supervisor, _failures) = Supervisor::new().unwrap();
        let routes = vec![Route::all(heard.clone())];
        let router = Router::new(Limits::default(), routes, Arc::default(), None, &metrics, Instant::now());
        let (handle, thread) = supervisor.spawn_owner("alert-router", router, alerts).unwrap();
        handle.stop().unwrap();
        thread.join(Duration::from_secs(5)).unwrap();
        assert_eq!(heard.take().len(), 3);
        assert!(metrics.render().contains("alerts_total{component=\"firewall\",severity=\"low\"} 5"));
    }
}
