//! The outlets that run, by the names of their routes; started, exchanged at a reload, and stopped.
//!
//! A spool belongs to the name of its route. One whose route wants no spool any more is sent all the same, before what
//! is new. One whose route is no more is kept until there is a route of its name again: where it led nobody wishes to
//! send, and elsewhere nobody asked for. The log says so, and [`Metrics::spools_left`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, bounded};

use super::config::Destination;
use super::outlet::{Courier, Estate, Losses, Order, Outlet, OutletConfig, QUEUE_MAX, Source, Spooler, folder_of};
use super::spool::{Spool, waiting_in};
use super::{Deliver, Sink};
use crate::alert::Alert;
use crate::metrics::Metrics;
use crate::outbound::plain;
use crate::supervise::{Supervisor, Thread};

/// How long an outlet may go on sending when its route is no more.
const FLUSH: Duration = Duration::from_secs(5);
/// How long a new thread waits for the end of the one before it, which may be in the midst of a delivery.
const PREDECESSOR: Duration = Duration::from_secs(150);

/// The threads of one outlet.
struct Threads {
    orders: Vec<Sender<Order>>,
    courier: Thread<Estate>,
    spooler: Option<Thread<()>>,
    /// What it writes to, or, without a spooler, what is left.
    spool: Option<Arc<Spool>>,
}

impl Threads {
    fn order(&self, order: Order) {
        // One order is enough; the first counts.
        for orders in &self.orders {
            let _ = orders.try_send(order);
        }
    }
}

struct Running {
    destination: Destination,
    outlet: Outlet,
    alerts: Alerts,
    threads: Threads,
}

/// All outlets.
pub struct Outlets {
    supervisor: Supervisor,
    metrics: Arc<Metrics>,
    state_dir: PathBuf,
    running: BTreeMap<String, Running>,
    /// Threads of routes that are no more.
    ending: BTreeMap<String, Threads>,
    next: usize,
    /// How often outlets were put in force.
    generation: u64,
}

/// A new outlet's threads, which wait for their predecessor or for being dropped.
struct Waiting {
    threads: Threads,
    go: Sender<Option<Threads>>,
}

/// Both ends of an outlet's queue.
type Alerts = (Sender<Arc<Alert>>, Receiver<Arc<Alert>>);

/// An outlet that can begin.
type Begun = (Outlet, Alerts, Waiting);

/// Outlets of a configuration that is not in force yet.
pub struct Prepared {
    /// Name, destination, and what is new.
    outlets: Vec<(String, Destination, Option<Begun>)>,
    /// That of the outlets of which those without anything new stay.
    generation: u64,
}

/// The router's ends of outlets, by the names of their routes.
pub type Sinks = BTreeMap<String, Box<dyn Sink>>;

impl Outlets {
    /// None yet. Spools are kept in `state_dir/spool/NAME`.
    pub fn new(supervisor: Supervisor, metrics: Arc<Metrics>, state_dir: PathBuf) -> Outlets {
        let (running, ending) = (BTreeMap::new(), BTreeMap::new());
        Outlets { supervisor, metrics, state_dir, running, ending, next: 0, generation: 0 }
    }

    /// Makes what these destinations need, by the names of their routes. Those that are as before stay. Nothing changes
    /// before [`Outlets::commit`].
    pub fn prepare<'d>(
        &mut self,
        wanted: impl IntoIterator<Item = (&'d str, &'d Destination)>,
    ) -> anyhow::Result<Prepared> {
        let mut outlets = Vec::new();
        for (name, destination) in wanted {
            let stays = self.running.get(name).is_some_and(|running| running.destination == *destination);
            let new = if stays {
                None
            } else {
                let deliver = destination.deliver(&Losses::new(name, &self.metrics)).map_err(anyhow::Error::msg);
                let deliver = deliver.with_context(|| format!("alert route {name}"))?;
                Some(self.start(name, deliver, destination.outlet(), destination.spool)?)
            };
            outlets.push((name.to_owned(), destination.clone(), new));
        }
        Ok(Prepared { outlets, generation: self.generation })
    }

    /// Starts the threads of an outlet; they wait.
    fn start(
        &mut self,
        name: &str,
        deliver: Box<dyn Deliver>,
        config: OutletConfig,
        spool: Option<u64>,
    ) -> anyhow::Result<Begun> {
        let number = self.next;
        self.next += 1;
        let before = self.running.get(name);
        // The queue goes on, so that nothing is lost that the router puts there meanwhile.
        let alerts = before.map_or_else(|| bounded(QUEUE_MAX), |running| running.alerts.clone());
        let outlet = Outlet::new(name, alerts.0.clone(), &self.metrics);
        let metrics = self.metrics.sender(name);
        let losses = Losses::new(name, &self.metrics);
        let wants_spool = spool.is_some();
        let spool = match spool {
            Some(cap) => Some(self.spool(name, cap)?),
            None => self.spool_left(name),
        };
        let (go, gone) = bounded::<Option<Threads>>(1);
        let (inherited, heir) = bounded(1);
        let (orders, order) = bounded(1);
        let mut threads_orders = vec![orders];
        let (source, spooler) = match &spool {
            Some(spool) if wants_spool => {
                let (wake, woken) = bounded(1);
                let (orders, order) = bounded(1);
                threads_orders.push(orders);
                let (queue, losses) = (alerts.1.clone(), losses.clone());
                let spooler = Spooler { queue, orders: order, spool: spool.clone(), losses, wake };
                let spooler = self.supervisor.spawn(&format!("spool-{number}"), move |_| {
                    // The courier tells what it inherited, or goes without a word if it is not to run.
                    if let Ok(estate) = heir.recv() {
                        spooler.run(estate);
                    }
                    Ok(())
                });
                let spooler = spooler.context("starting a thread for alerts")?;
                (Source::Spool { spool: spool.clone(), wake: woken }, Some(spooler))
            }
            left => (Source::Queue { queue: alerts.1.clone(), left: left.clone() }, None),
        };
        let metrics_left = self.metrics.clone();
        let courier = Courier { name: name.to_owned(), deliver, config, source, orders: order, metrics, losses };
        let courier = self.supervisor.spawn(&format!("sink-{number}"), move |_| {
            let Ok(predecessor) = gone.recv() else { return Ok(Estate::default()) };
            let estate = predecessor.map(|before| before.inherit(&courier.name)).unwrap_or_default();
            // Somebody sends what the one before may have left.
            metrics_left.set_spool_left(&folder_of(&courier.name), 0);
            if wants_spool {
                let _ = inherited.send(estate);
                return Ok(courier.run(Estate::default()));
            }
            Ok(courier.run(estate))
        });
        let courier = courier.context("starting a thread for alerts")?;
        let threads = Threads { orders: threads_orders, courier, spooler, spool };
        Ok((outlet, alerts, Waiting { threads, go }))
    }

    /// The spool of a route that wants none, if there is something in it or may still come into it.
    fn spool_left(&self, name: &str) -> Option<Arc<Spool>> {
        if let Some(spool) = self.known_spool(name) {
            return Some(spool);
        }
        let folder = self.folder(name);
        let bytes = waiting_in(&folder).ok().filter(|bytes| *bytes > 0)?;
        log::info!(sink = name, bytes; "alerts are left in the spool, which the route has no more; they are sent first");
        // Nothing is put there.
        self.spool(name, 0).inspect_err(|error| log::error!(sink = name; "what is left in it stays: {error:#}")).ok()
    }

    fn known_spool(&self, name: &str) -> Option<Arc<Spool>> {
        let known = self.running.get(name).map(|running| &running.threads).or_else(|| self.ending.get(name));
        known.and_then(|threads| threads.spool.clone())
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.state_dir.join("spool").join(folder_of(name))
    }

    fn spool(&self, name: &str, cap: u64) -> anyhow::Result<Arc<Spool>> {
        if let Some(spool) = self.known_spool(name) {
            return Ok(spool);
        }
        let folder = self.folder(name);
        let torn = self.metrics.events_lost(super::outlet::place(name), "spool_torn");
        let spool = Spool::open(&folder, cap, self.metrics.sender(name).spool_bytes, torn);
        Ok(Arc::new(spool.with_context(|| format!("opening the spool {}", folder.display()))?))
    }

    /// Puts outlets in force. `tell` gives their sinks to the router; until it has them the old ones are as they were,
    /// and if it fails they stay. Routes that are no more have some seconds to send what they have. What was prepared
    /// before others were put in force is prepared anew.
    ///
    /// # Errors
    /// That of `tell`, or of preparing anew.
    pub fn commit<E>(&mut self, prepared: Prepared, tell: impl FnOnce(Sinks) -> Result<(), E>) -> anyhow::Result<()>
    where
        anyhow::Error: From<E>,
    {
        let prepared = match prepared.generation == self.generation {
            true => prepared,
            false => {
                let wanted: Vec<(String, Destination)> =
                    prepared.outlets.into_iter().map(|(name, destination, _)| (name, destination)).collect();
                self.prepare(wanted.iter().map(|(name, destination)| (name.as_str(), destination)))?
            }
        };
        let mut sinks = Sinks::new();
        for (name, _, new) in &prepared.outlets {
            let stays = || self.running.get(name).map(|running| &running.outlet);
            let outlet = new.as_ref().map(|(outlet, ..)| outlet).or_else(stays);
            sinks.extend(outlet.map(|outlet| (name.clone(), Box::new(outlet.clone()) as Box<dyn Sink>)));
        }
        tell(sinks)?;
        self.put_in_force(prepared);
        Ok(())
    }

    fn put_in_force(&mut self, prepared: Prepared) {
        self.generation += 1;
        let mut before = std::mem::take(&mut self.running);
        for (name, destination, new) in prepared.outlets {
            let running = match (new, before.remove(&name)) {
                (None, Some(running)) => running,
                // Those that stay were there a moment ago.
                (None, None) => continue,
                (Some((outlet, alerts, waiting)), old) => {
                    let old = old.map(|old| old.threads).or_else(|| self.ending.remove(&name));
                    old.iter().for_each(|old| old.order(Order::HandOver));
                    if let Some(spool) = &waiting.threads.spool {
                        // A route that was removed and is back is shown anew.
                        spool.show_in(self.metrics.sender(&name).spool_bytes);
                        destination.spool.iter().for_each(|cap| spool.set_cap(*cap));
                    }
                    // The thread waits for nothing else.
                    let _ = waiting.go.send(old);
                    Running { destination, outlet, alerts, threads: waiting.threads }
                }
            };
            self.running.insert(name, running);
        }
        for (name, gone) in before {
            if let Some(bytes) = gone.threads.spool.as_ref().map(|spool| spool.bytes()).filter(|bytes| *bytes > 0) {
                log::warn!(
                    sink = name.as_str(), bytes;
                    "the route is no more, and has {FLUSH:?} to send its spool; what is left waits for a route of its name"
                );
            }
            gone.threads.order(Order::Flush(Instant::now() + FLUSH));
            self.metrics.forget_sender(&name);
            self.ending.insert(name, gone.threads);
        }
        self.ending.retain(|_, threads| !threads.courier.is_finished());
        self.tell_of_orphans();
    }

    /// Says which spools have alerts that no route will send. Those that are still being sent say it when they end.
    fn tell_of_orphans(&self) {
        let running = self.running.iter().filter(|(_, running)| running.threads.spool.is_some());
        let used: BTreeSet<String> =
            running.map(|(name, _)| name).chain(self.ending.keys()).map(|name| folder_of(name)).collect();
        let mut gone = self.metrics.spools_left();
        for entry in fs::read_dir(self.state_dir.join("spool")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if used.contains(&name) || !entry.path().is_dir() {
                continue;
            }
            let path = entry.path().display().to_string();
            match waiting_in(&entry.path()) {
                Ok(0) => continue,
                Ok(bytes) => {
                    log::warn!(
                        path = path.as_str(), bytes;
                        "alerts in this spool wait for a route of its name; remove the folder if they are not wanted"
                    );
                    self.metrics.set_spool_left(&name, bytes);
                }
                Err(error) => log::warn!(path = path.as_str(); "whether alerts wait in this spool: {}", plain(&error)),
            }
            gone.remove(&name);
        }
        gone.keys().filter(|name| !used.contains(*name)).for_each(|name| self.metrics.set_spool_left(name, 0));
    }

    /// Ends all, at the latest after `timeout`: what is there is sent, or stays in the spool, or is counted as lost.
    pub fn stop(self, timeout: Duration) {
        let until = Instant::now() + timeout;
        let all: Vec<(String, Threads)> =
            self.ending.into_iter().chain(self.running.into_iter().map(|(name, of)| (name, of.threads))).collect();
        all.iter().for_each(|(_, threads)| threads.order(Order::Flush(until)));
        for (name, threads) in all {
            // The last delivery may be under way; it is given a moment more.
            let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(500);
            let spooler = threads.spooler.map_or(Ok(()), |spooler| spooler.join(left));
            if let Err(gone) = spooler.and_then(|()| threads.courier.join(left).map(drop)) {
                log::warn!(sink = name.as_str(); "{gone}: what it has not delivered and not spooled is lost");
            }
        }
    }
}

impl Threads {
    /// Waits for the end of these threads, and takes what they leave.
    fn inherit(self, name: &str) -> Estate {
        let spooler = self.spooler.map_or(Ok(()), |spooler| spooler.join(PREDECESSOR));
        match spooler.and_then(|()| self.courier.join(PREDECESSOR)) {
            Ok(estate) => estate,
            Err(gone) => {
                log::error!(sink = name; "{gone}: what it has not delivered and not spooled is lost");
                Estate::default()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_a_plain_name() {
        assert_eq!(folder_of("web-hook_1"), "web-hook_1");
        assert_eq!(folder_of("../a/b.c ü"), "%2e%2e%2fa%2fb%2ec%20%c3%bc");
    }
}
