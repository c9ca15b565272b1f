//! The real binary between network namespaces, from packets on a wire to answers on its port. Needs root.

mod alerts;
mod api;
mod auth;
mod clients;
mod confirm;
mod demo;
mod fields;
mod keep;
mod links;
mod lockout;
mod mirror;
mod modes;
mod openapi;
#[path = "../support/pki.rs"]
pub mod pki;
mod promises;
mod ratelimit;
mod reload;
mod routes;
mod sandbox;
mod sinks;
mod steer;
mod stores;
mod streams;
mod support;
mod swap;
mod syn_cookies;
mod tls;
