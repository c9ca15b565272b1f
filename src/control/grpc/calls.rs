//! Which calls are under way: in all, of each address, and on each connection.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{Bytes, Service};
use tonic::server::NamedService;

use super::door::{Busy, Seat};
use super::{Limits, full};
use crate::control::places::{Place, Places};
use crate::metrics::Metrics;

/// Calls of one connection that may be under way, as many as there are streams and some more: no connection takes all places.
const CALLS_OF_ONE: usize = 80;
/// An answer begins within this time.
const BEGIN_WITHIN: Duration = Duration::from_secs(10);

/// How many calls may be under way.
#[derive(Clone)]
pub struct Calls {
    places: Arc<Places>,
    metrics: Arc<Metrics>,
}

impl Calls {
    pub fn new(limits: &Limits, metrics: &Arc<Metrics>) -> Calls {
        let places = Places::new(limits.calls, limits.calls_per_address, limits.calls_loopback);
        Calls { places, metrics: metrics.clone() }
    }
}

/// A service whose calls are counted.
#[derive(Clone)]
pub struct Counted<S> {
    service: S,
    calls: Calls,
}

impl<S> Counted<S> {
    pub fn new(service: S, calls: &Calls) -> Counted<S> {
        Counted { service, calls: calls.clone() }
    }
}

impl<S: NamedService> NamedService for Counted<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let refused = |status: Status| -> Self::Future { Box::pin(std::future::ready(Ok(status.into_http()))) };
        let seat = request.extensions().get::<Seat>();
        if seat.is_some_and(|seat| seat.calls() >= CALLS_OF_ONE) {
            self.calls.metrics.grpc_refused("calls_of_one");
            return refused(Status::resource_exhausted(format!(
                "{CALLS_OF_ONE} calls of this connection are under way"
            )));
        }
        let place = match self.calls.places.take(seat.map(Seat::peer)) {
            Ok(place) => place,
            Err(why) => return refused(full(why, ["calls", "calls_of_address"], "under way", &self.calls.metrics)),
        };
        let busy = seat.map(Seat::busy);
        let answer = self.service.call(request);
        let metrics = self.calls.metrics.clone();
        Box::pin(async move {
            // It begins when the client has said what it wants, which it may never do.
            let Ok(answer) = tokio::time::timeout(BEGIN_WITHIN, answer).await else {
                metrics.grpc_refused("call_timeout");
                return Ok(Status::deadline_exceeded("the request did not come in time").into_http());
            };
            let answer = answer?;
            Ok(answer.map(|body| Body::new(Answer { body, _place: place, _busy: busy })))
        })
    }
}

/// The body of an answer. While it is there, the call is under way.
struct Answer {
    body: Body,
    _place: Place,
    _busy: Option<Busy>,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
