use std::path::Path;
use std::sync::Mutex;

use crossbeam_channel::bounded;

use super::*;
use crate::alert::Severity;
use crate::component::Component;
use crate::supervise::{Supervisor, Thread};

/// A destination that does what the test says.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Plan>>);

type Answer = fn(&[String]) -> Result<(), Failure>;

#[derive(Default)]
struct Plan {
    /// Messages that arrived, batch by batch.
    taken: Vec<Vec<String>>,
    /// Batches that were tried.
    tried: usize,
    answer: Option<Answer>,
}

impl Fake {
    fn answer(&self, answer: Answer) {
        self.0.lock().unwrap().answer = Some(answer);
    }

    fn taken(&self) -> Vec<String> {
        self.0.lock().unwrap().taken.concat()
    }

    fn batches(&self) -> Vec<usize> {
        self.0.lock().unwrap().taken.iter().map(Vec::len).collect()
    }

    fn tried(&self) -> usize {
        self.0.lock().unwrap().tried
    }
}

impl Deliver for Fake {
    fn deliver(&mut self, batch: &[Notice]) -> Result<(), Failure> {
        let messages: Vec<String> = batch.iter().map(message_of).collect();
        let mut plan = self.0.lock().unwrap();
        plan.tried += 1;
        let result = plan.answer.map_or(Ok(()), |answer| answer(&messages));
        let taken = result.as_ref().map_or_else(|failure| failure.delivered, |()| messages.len());
        if taken > 0 {
            plan.taken.push(messages[..taken].to_vec());
        }
        result
    }
}

fn message_of(notice: &Notice) -> String {
    let fields = notice.fields();
    let field = fields.iter().find(|(name, _)| *name == "message").unwrap();
    super::super::notice::text_of(&field.1).into_owned()
}

fn alert(number: usize) -> Arc<Alert> {
    Arc::new(Alert::new(Component::Firewall, Severity::High, "r", "deny", 1, number.to_string()))
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

fn quick() -> OutletConfig {
    OutletConfig {
        batch_max: 4,
        circuit: CircuitConfig {
            failures_max: 3,
            open: Duration::from_millis(20),
            pause_max: Duration::from_millis(5),
        },
        ..OutletConfig::default()
    }
}

struct Bench {
    metrics: Arc<Metrics>,
    outlet: Outlet,
    orders: Vec<Sender<Order>>,
    courier: Option<Thread<Estate>>,
    spooler: Option<Thread<()>>,
    queue: Receiver<Arc<Alert>>,
}

impl Bench {
    fn new(fake: &Fake, config: OutletConfig) -> Bench {
        Bench::with(fake, config, None, Estate::default())
    }

    fn with(fake: &Fake, config: OutletConfig, spool: Option<&Path>, inherited: Estate) -> Bench {
        let metrics = Metrics::new();
        let (supervisor, _failures) = Supervisor::new().unwrap();
        let (alerts, queue) = bounded(QUEUE_MAX);
        let outlet = Outlet::new("fake", alerts, &metrics);
        let losses = Losses::new("fake", &metrics);
        let (order, orders) = bounded(1);
        let mut all_orders = vec![order];
        let sender = metrics.sender("fake");
        let torn = metrics.events_lost("sink_fake", "spool_torn");
        let mut spooler = None;
        let source = match spool {
            None => Source::Queue { queue: queue.clone(), left: None },
            Some(folder) => {
                let spool = Arc::new(Spool::open(folder, 1 << 20, sender.spool_bytes.clone(), torn).unwrap());
                let (wake, woken) = bounded(1);
                let (order, orders) = bounded(1);
                all_orders.push(order);
                let run = Spooler { queue: queue.clone(), orders, spool: spool.clone(), losses: losses.clone(), wake };
                spooler = Some(
                    supervisor
                        .spawn("spool-0", move |_| {
                            run.run(Estate::default());
                            Ok(())
                        })
                        .unwrap(),
                );
                Source::Spool { spool, wake: woken }
            }
        };
        let (name, deliver) = ("fake".to_owned(), Box::new(fake.clone()));
        let courier = Courier { name, deliver, config, source, orders, metrics: sender, losses };
        let courier = supervisor.spawn("sink-0", move |_| Ok(courier.run(inherited))).unwrap();
        Bench { metrics, outlet, orders: all_orders, courier: Some(courier), spooler, queue }
    }

    fn write(&mut self, range: std::ops::Range<usize>) {
        for number in range {
            self.outlet.write(&alert(number)).unwrap();
        }
    }

    fn order(&self, order: Order) {
        self.orders.iter().for_each(|orders| orders.send(order).unwrap());
    }

    fn end(&mut self, order: Order) -> Estate {
        self.order(order);
        if let Some(spooler) = self.spooler.take() {
            spooler.join(Duration::from_secs(20)).unwrap();
        }
        self.courier.take().unwrap().join(Duration::from_secs(20)).unwrap()
    }

    fn flush(&mut self) {
        self.end(Order::Flush(Instant::now() + Duration::from_secs(20)));
    }

    fn lost(&self, reason: &'static str) -> u64 {
        self.metrics.events_lost("sink_fake", reason).get()
    }

    fn result(&self, result: &str) -> u64 {
        let sender = self.metrics.sender("fake");
        match result {
            "delivered" => sender.delivered.get(),
            "retried" => sender.retried.get(),
            _ => sender.failed.get(),
        }
    }
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn alerts_go_out_in_order_and_all_before_the_end() {
    let fake = Fake::default();
    let mut bench = Bench::new(&fake, quick());
    bench.write(0..50);
    bench.flush();
    assert_eq!(fake.taken(), numbers(0..50));
    assert!(fake.batches().iter().all(|size| *size <= 4));
    assert_eq!((bench.result("delivered"), bench.result("retried"), bench.result("failed")), (50, 0, 0));
}

#[test]
fn a_full_queue_refuses_and_does_not_wait() {
    let (alerts, _queue) = bounded(2);
    let mut outlet = Outlet::new("a", alerts, &Metrics::new());
    assert_eq!([0, 1, 2].map(|number| outlet.write(&alert(number))), [Ok(()), Ok(()), Err("full")]);
    assert_eq!(outlet.name(), "sink_a");
}

#[test]
fn failures_are_tried_again_until_they_succeed_one_probe_at_a_time() {
    let fake = Fake::default();
    fake.answer(|_| Err(Failure::retry("down")));
    let mut bench = Bench::new(&fake, quick());
    bench.write(0..20);
    let sender = bench.metrics.sender("fake");
    until("the circuit opens", || sender.circuit.get() == 2);
    let before = fake.tried();
    until("it is tried now and then", || fake.tried() > before + 3);
    // A probe is one alert; after it all go.
    fake.answer(|_| Ok(()));
    until("all arrive", || fake.taken().len() == 20);
    assert_eq!(fake.taken(), numbers(0..20));
    assert_eq!(fake.batches()[0], 1);
    until("it is closed", || sender.circuit.get() == 0);
    bench.flush();
    let retried = bench.result("retried");
    assert!(retried >= 3 * 4, "{retried}");
    assert_eq!((bench.result("delivered"), bench.result("failed")), (20, 0));
}

#[test]
fn what_was_delivered_of_a_batch_is_not_sent_again() {
    let fake = Fake::default();
    fake.answer(|batch| match batch.iter().position(|message| message == "2") {
        Some(0) | None => Ok(()),
        Some(at) => Err(Failure { delivered: at, ..Failure::retry("half") }),
    });
    let mut bench = Bench::new(&fake, quick());
    bench.write(0..9);
    bench.flush();
    assert_eq!(fake.taken(), numbers(0..9));
}

#[test]
fn a_refusal_is_counted_and_the_others_go_on() {
    let fake = Fake::default();
    fake.answer(|batch| match batch {
        [one] if one == "3" => Err(Failure::refused("no 3")),
        many if many.iter().any(|message| message == "3") => {
            Err(Failure { kind: FailureKind::Split, ..Failure::retry("3?") })
        }
        _ => Ok(()),
    });
    let mut bench = Bench::new(&fake, quick());
    bench.write(0..12);
    bench.flush();
    let mut want = numbers(0..12);
    want.remove(3);
    assert_eq!(fake.taken(), want);
    assert_eq!((bench.lost("refused"), bench.result("failed"), bench.result("delivered")), (1, 1, 11));
    assert_eq!(bench.result("retried"), 0);
}

#[test]
fn what_is_too_old_is_given_up() {
    let fake = Fake::default();
    fake.answer(|_| Err(Failure::retry("down")));
    let mut bench = Bench::new(&fake, OutletConfig { give_up: Duration::ZERO, ..quick() });
    bench.write(0..8);
    until("all are given up", || bench.lost("gave_up") == 8);
    fake.answer(|_| Ok(()));
    bench.write(8..9);
    bench.flush();
    assert_eq!((fake.taken(), bench.result("failed")), (numbers(8..9), 8));
}

/// An alert that was told so long ago.
fn aged(number: usize, age: Duration) -> Notice {
    let json = serde_json::to_string(&*alert(number)).unwrap();
    Notice::stored(json.as_bytes(), now_ms() - age.as_millis() as u64).unwrap()
}

const HOUR: Duration = Duration::from_secs(3600);

/// One is tried, and with it go all that are as old.
#[test]
fn one_failure_gives_up_everything_that_is_too_old() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), 1 << 20, Default::default(), Default::default()).unwrap();
    let notices: Vec<Notice> =
        (0..1000).map(|number| aged(number, if number < 900 { 25 * HOUR } else { HOUR })).collect();
    for notice in &notices {
        spool.append(notice.json().as_bytes(), notice.accepted_ms()).unwrap();
    }
    let full = spool.bytes();
    drop(spool);
    for spool in [Some(folder.path()), None] {
        let fake = Fake::default();
        fake.answer(|_| Err(Failure::retry("down")));
        let estate = if spool.is_none() { Estate { notices: notices.clone() } } else { Estate::default() };
        // After the first failure nothing is tried for as long as the test takes.
        let circuit = CircuitConfig { failures_max: 1, open: HOUR, ..quick().circuit };
        let mut bench = Bench::with(&fake, OutletConfig { circuit, ..quick() }, spool, estate);
        until("all that is old is given up", || bench.lost("gave_up") == 900);
        assert_eq!((fake.tried(), bench.result("failed")), (1, 900));
        let bytes = bench.metrics.sender("fake").spool_bytes.get();
        assert!(spool.is_none() || (1..full as i64 / 9).contains(&bytes), "{bytes} of {full} wait");
        let estate = bench.end(Order::HandOver);
        assert_eq!((bench.lost("gave_up"), estate.notices.len()), (900, if spool.is_some() { 0 } else { 100 }));
    }
    // A destination that takes alerts gets all that is there, however old: nothing has to make room.
    let fake = Fake::default();
    let mut bench = Bench::with(&fake, quick(), None, Estate { notices });
    bench.flush();
    assert_eq!(fake.taken(), numbers(0..1000));
}

#[test]
fn a_digest_waits_and_the_first_does_not() {
    let fake = Fake::default();
    let mut bench = Bench::new(&fake, OutletConfig { linger: Duration::from_secs(3600), ..quick() });
    bench.write(0..1);
    until("the first goes at once", || fake.taken().len() == 1);
    bench.write(1..4);
    until("the others are in the hand", || bench.queue.is_empty());
    assert_eq!(fake.batches(), [1]);
    bench.write(4..5);
    until("a full one does not wait", || fake.taken().len() == 5);
    assert_eq!(fake.batches(), [1, 4]);
    bench.write(5..7);
    bench.flush();
    assert_eq!((fake.taken(), fake.batches()), (numbers(0..7), vec![1, 4, 2]));
}

#[test]
fn at_the_end_what_cannot_be_sent_is_counted() {
    let fake = Fake::default();
    fake.answer(|_| Err(Failure::retry("down")));
    let mut bench = Bench::new(&fake, quick());
    bench.write(0..10);
    bench.end(Order::Flush(Instant::now() + Duration::from_millis(50)));
    assert_eq!((fake.taken().len(), bench.lost("stopped")), (0, 10));
}

#[test]
fn another_thread_goes_on_where_this_one_was() {
    let fake = Fake::default();
    fake.answer(|_| Err(Failure::retry("down")));
    let mut bench = Bench::new(&fake, quick());
    bench.write(0..10);
    until("it is tried", || fake.tried() > 0);
    let estate = bench.end(Order::HandOver);
    assert_eq!((estate.notices.len(), bench.lost("stopped")), (10, 0));
    let heir = Fake::default();
    let mut bench = Bench::with(&heir, quick(), None, estate);
    bench.write(10..12);
    bench.flush();
    assert_eq!(heir.taken(), numbers(0..12));
}

#[test]
fn a_spool_keeps_what_could_not_be_sent_for_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::default();
    fake.answer(|batch| if batch[0].parse::<usize>().unwrap() < 5 { Ok(()) } else { Err(Failure::retry("down")) });
    let config = OutletConfig { batch_max: 1, ..quick() };
    let mut bench = Bench::with(&fake, config, Some(folder.path()), Estate::default());
    bench.write(0..200);
    until("some arrive", || fake.taken().len() == 5);
    bench.end(Order::Flush(Instant::now() + Duration::from_millis(50)));
    assert_eq!(bench.lost("stopped"), 0);
    assert!(bench.metrics.sender("fake").spool_bytes.get() > 0);
    let fake = Fake::default();
    let mut bench = Bench::with(&fake, quick(), Some(folder.path()), Estate::default());
    bench.write(200..210);
    bench.flush();
    assert_eq!(fake.taken(), numbers(5..210));
    assert_eq!((bench.metrics.sender("fake").spool_bytes.get(), bench.result("delivered")), (0, 205));
}

#[test]
fn a_destination_that_hangs_does_not_keep_alerts_from_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::default();
    let mut bench = Bench::with(&fake, quick(), Some(folder.path()), Estate::default());
    let hang = fake.0.lock().unwrap();
    // More than the queue holds: the spooler takes them while the sender waits for the lock.
    for number in 0..2 * QUEUE_MAX {
        until("the queue has room", || bench.queue.len() < QUEUE_MAX);
        let lean = Alert::new(Component::Firewall, Severity::Low, "r", "d", 1, (number % 10).to_string());
        if bench.outlet.write(&Arc::new(lean)).is_err() {
            panic!("{number} was lost");
        }
        if bench.metrics.sender("fake").spool_bytes.get() > 900_000 {
            break;
        }
    }
    assert!(bench.metrics.sender("fake").spool_bytes.get() > 900_000);
    drop(hang);
    bench.flush();
    assert!(fake.taken().len() > 2000);
    assert_eq!(bench.lost("full"), 0);
}

#[test]
fn an_order_is_heard_in_the_midst_of_a_flood() {
    let fake = Fake::default();
    let mut bench = Bench::new(&fake, OutletConfig { batch_max: 1, ..quick() });
    bench.write(0..1);
    until("it has begun", || fake.tried() == 1);
    let hold = fake.0.lock().unwrap();
    bench.write(1..QUEUE_MAX);
    bench.order(Order::HandOver);
    drop(hold);
    let estate = bench.courier.take().unwrap().join(Duration::from_secs(20)).unwrap();
    assert!(estate.notices.len() >= QUEUE_MAX - 3, "{} were left", estate.notices.len());
}
