//! When a sink tries again: pauses that grow, with full jitter, and a circuit breaker.
//!
//! After some failures in a row the circuit opens: nothing is tried for a while. Then it is half-open: one alert is tried,
//! and closes it, or opens it again.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

/// Longest pause that a destination's `Retry-After` brings about.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

/// The first pause is at most this long; each further one at most twice as long as the one before.
const PAUSE_MIN: Duration = Duration::from_millis(500);

/// Where the circuit stands; the numbers are those of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Alerts are sent.
    Closed = 0,
    /// One alert is sent, to see.
    HalfOpen = 1,
    /// None is sent.
    Open = 2,
}

/// The limits of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitConfig {
    /// Failures in a row that open it.
    pub failures_max: u32,
    /// How long it stays open.
    pub open: Duration,
    /// The longest pause while it is closed.
    pub pause_max: Duration,
}

/// What may be tried now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Try {
    /// A batch.
    Batch,
    /// One alert.
    One,
    /// Nothing before this time.
    NotBefore(Instant),
}

/// A circuit breaker. Time is an argument.
#[derive(Debug)]
pub struct Circuit {
    config: CircuitConfig,
    state: State,
    failures: u32,
    /// Failures since something was delivered.
    outage: u32,
    not_before: Option<Instant>,
}

impl Circuit {
    /// Closed.
    pub fn new(config: CircuitConfig) -> Circuit {
        Circuit { config, state: State::Closed, failures: 0, outage: 0, not_before: None }
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Failures in a row until now.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// What may be tried. An open circuit whose time is over is half-open from here on.
    pub fn ask(&mut self, now: Instant) -> Try {
        if let Some(time) = self.not_before.filter(|time| *time > now) {
            return Try::NotBefore(time);
        }
        match self.state {
            State::Closed => Try::Batch,
            State::Open | State::HalfOpen => {
                self.state = State::HalfOpen;
                Try::One
            }
        }
    }

    /// The destination took what was tried, or said for good that it will not: it is there.
    pub fn answered(&mut self) {
        (self.state, self.failures, self.not_before) = (State::Closed, 0, None);
    }

    /// The destination took what was tried. Gives the failures since it last did.
    pub fn delivered(&mut self) -> u32 {
        self.answered();
        std::mem::take(&mut self.outage)
    }

    /// It failed; `chance` is from 0 to 1.
    pub fn failed(&mut self, now: Instant, retry_after: Option<Duration>, chance: f64) {
        self.failures = self.failures.saturating_add(1);
        self.outage = self.outage.saturating_add(1);
        let mut pause = if self.state == State::HalfOpen || self.failures >= self.config.failures_max {
            self.state = State::Open;
            // A little jitter here as well: what went down together must not come back together.
            self.config.open.mul_f64(1.0 + chance / 10.0)
        } else {
            let most = PAUSE_MIN.saturating_mul(1 << (self.failures - 1).min(16)).min(self.config.pause_max);
            most.mul_f64(chance)
        };
        if let Some(wish) = retry_after {
            pause = pause.max(wish.min(RETRY_AFTER_MAX));
        }
        self.not_before = Some(now + pause);
    }
}

/// A number from 0 to 1, good enough to spread retries.
pub fn chance() -> f64 {
    // The standard library seeds its hasher from the system's random source, and each one differently.
    let bits = RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn circuit() -> (Circuit, Instant) {
        let config = CircuitConfig { failures_max: 5, open: 60 * SECOND, pause_max: 3 * SECOND };
        (Circuit::new(config), Instant::now())
    }

    #[test]
    fn it_opens_after_failures_and_lets_one_through() {
        let (mut circuit, start) = circuit();
        let mut now = start;
        // Full jitter: at most 0.5, 1, 2, 3 seconds.
        for most in [0.5, 1.0, 2.0, 3.0] {
            assert_eq!((circuit.ask(now), circuit.state()), (Try::Batch, State::Closed));
            circuit.failed(now, None, 1.0);
            let then = now + Duration::from_secs_f64(most);
            assert_eq!(circuit.ask(now), Try::NotBefore(then));
            now = then;
        }
        assert_eq!(circuit.ask(now), Try::Batch);
        circuit.failed(now, None, 0.0);
        assert_eq!((circuit.state(), circuit.ask(now)), (State::Open, Try::NotBefore(now + 60 * SECOND)));
        now += 60 * SECOND;
        assert_eq!((circuit.ask(now), circuit.state()), (Try::One, State::HalfOpen));
        circuit.failed(now, None, 0.5);
        assert_eq!((circuit.state(), circuit.ask(now)), (State::Open, Try::NotBefore(now + 63 * SECOND)));
        now += 63 * SECOND;
        assert_eq!(circuit.ask(now), Try::One);
        circuit.answered();
        assert_eq!((circuit.ask(now), circuit.state(), circuit.failures()), (Try::Batch, State::Closed, 0));
        circuit.failed(now, None, 1.0);
        assert_eq!(circuit.ask(now), Try::NotBefore(now + SECOND / 2), "the pauses begin anew");
    }

    #[test]
    fn the_destination_may_ask_for_a_longer_pause_up_to_a_limit() {
        let (mut circuit, now) = circuit();
        circuit.failed(now, Some(30 * SECOND), 0.0);
        assert_eq!(circuit.ask(now), Try::NotBefore(now + 30 * SECOND));
        circuit.answered();
        circuit.failed(now, Some(Duration::MAX), 0.0);
        assert_eq!(circuit.ask(now), Try::NotBefore(now + RETRY_AFTER_MAX));
        circuit.answered();
        circuit.failed(now, Some(Duration::ZERO), 1.0);
        assert_eq!(circuit.ask(now), Try::NotBefore(now + SECOND / 2), "not a shorter one");
    }

    #[test]
    fn an_outage_ends_with_a_delivery_and_not_with_a_refusal() {
        let (mut circuit, now) = circuit();
        assert_eq!(circuit.delivered(), 0);
        circuit.failed(now, None, 0.0);
        circuit.failed(now, None, 0.0);
        circuit.answered();
        assert_eq!((circuit.state(), circuit.failures()), (State::Closed, 0));
        circuit.failed(now, None, 0.0);
        assert_eq!((circuit.failures(), circuit.delivered()), (1, 3));
        assert_eq!((circuit.failures(), circuit.delivered()), (0, 0));
    }

    #[test]
    fn chance_is_spread() {
        let draws: Vec<f64> = (0..1000).map(|_| chance()).collect();
        assert!(draws.iter().all(|draw| (0.0..1.0).contains(draw)));
        let low = draws.iter().filter(|draw| **draw < 0.5).count();
        assert!((350..650).contains(&low), "{low}");
    }
}
