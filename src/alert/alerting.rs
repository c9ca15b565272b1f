//! The router and the sinks as the section `[alerting]` wants them; put in force at the start and at a reload.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crossbeam_channel::Receiver;

use super::config::AlertingConfig;
use super::sinks::{Outlets, Prepared, Sinks};
use super::{Alert, Route, Router, Suppressions};
use crate::enrichment::Processes;
use crate::metrics::Metrics;
use crate::supervise::{Gone, Handle, Supervisor, Thread};

/// What alerting begins with.
pub struct Start<'s> {
    /// Section `[alerting]`.
    pub config: &'s AlertingConfig,
    /// Routes of the agent itself, such as that of the store; no reload changes them.
    pub own: Vec<Route>,
    /// What is not to be told.
    pub suppressions: Arc<Suppressions>,
    /// How processes are found, if they are.
    pub processes: Option<Processes>,
    /// Where alerts come from.
    pub alerts: Receiver<Alert>,
    /// Where sinks keep what must not be lost.
    pub state_dir: PathBuf,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
}

/// The router and the sinks.
pub struct Alerting {
    router: Handle<Router>,
    own: Vec<Route>,
    /// `None` when it has stopped.
    outlets: Mutex<Option<Outlets>>,
}

impl Alerting {
    /// Starts the sinks and the router's thread, which ends with [`Alerting::stop`].
    ///
    /// # Errors
    /// A sink that cannot be made, such as a file that cannot be opened.
    pub fn start(start: Start<'_>, supervisor: &Supervisor) -> Result<(Alerting, Thread<Router>)> {
        let Start { config, own, suppressions, processes, alerts, state_dir, metrics } = start;
        let mut outlets = Outlets::new(supervisor.clone(), metrics.clone(), state_dir);
        let prepared = outlets.prepare(config.destinations())?;
        let mut started = None;
        outlets.commit(prepared, |sinks| {
            let routes = routes_of(&own, config, sinks);
            let router = Router::new(config.limits(), routes, suppressions, processes, &metrics, Instant::now());
            started = Some(supervisor.spawn_owner("alert-router", router, alerts)?);
            anyhow::Ok(())
        })?;
        let (router, thread) = started.context("the router was not started")?;
        Ok((Alerting { router, own, outlets: Mutex::new(Some(outlets)) }, thread))
    }

    /// Makes the sinks of another configuration; those that both have are the same. Nothing changes before
    /// [`Alerting::commit`].
    pub fn prepare(&self, config: &AlertingConfig) -> Result<Prepared> {
        let mut outlets = self.outlets.lock().unwrap_or_else(PoisonError::into_inner);
        outlets.as_mut().context("the alert sinks have stopped")?.prepare(config.destinations())
    }

    /// Puts another configuration in force, all of it or nothing.
    ///
    /// # Errors
    /// The router has ended or is stuck; or another configuration came into force since this one was prepared, and beside
    /// that one it cannot be.
    pub fn commit(&self, config: &AlertingConfig, prepared: Prepared) -> Result<()> {
        let mut outlets = self.outlets.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(outlets) = outlets.as_mut() else { return Ok(()) };
        let limits = config.limits();
        outlets.commit(prepared, |sinks| {
            let routes = routes_of(&self.own, config, sinks);
            // Sinks that are no more end on this thread: the router has no time for it.
            match self.router.call(move |router| router.reconfigure(limits, routes)) {
                // It has begun and only has to exchange some lists: it tells the new ones in a moment, if not already.
                Err(Gone::Unanswered(_)) => Ok(()),
                told => told.map(drop),
            }
        })
    }

    /// Both in one.
    pub fn replace(&self, config: &AlertingConfig) -> Result<()> {
        let prepared = self.prepare(config)?;
        self.commit(config, prepared)
    }

    /// Ends the router, then the sinks, each within `timeout`. What the engines have told is told on before.
    pub fn stop(&self, thread: Thread<Router>, timeout: Duration) -> Result<(), Gone> {
        let ended = self.router.stop().and_then(|()| thread.join(timeout).map(drop));
        let outlets = self.outlets.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(outlets) = outlets {
            outlets.stop(timeout);
        }
        ended
    }
}

/// The agent's own routes and those of the configuration, each with the sink of its name.
fn routes_of(own: &[Route], config: &AlertingConfig, mut sinks: Sinks) -> Vec<Route> {
    let configured = config.routes_in_force().iter().filter_map(|route| {
        let sink = sinks.remove(&route.name)?;
        Some(Route::new(&route.name, route.filter.clone(), sink))
    });
    own.iter().cloned().chain(configured).collect()
}
