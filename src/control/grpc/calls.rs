//! Which calls are under way: in all, and on each connection.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{Bytes, Service};
use tonic::server::NamedService;

use super::door::{Busy, Seat};
use crate::metrics::Metrics;

/// Calls of one connection that may be under way, as many as there are streams and some more: no connection takes all places.
const CALLS_OF_ONE: usize = 80;
/// An answer begins within this time.
const BEGIN_WITHIN: Duration = Duration::from_secs(10);

/// How many calls may be under way.
#[derive(Clone)]
pub struct Calls {
    places: Arc<Semaphore>,
    max: usize,
    metrics: Arc<Metrics>,
}

impl Calls {
    pub fn new(max: usize, metrics: &Arc<Metrics>) -> Calls {
        Calls { places: Arc::new(Semaphore::new(max)), max, metrics: metrics.clone() }
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
        let Ok(place) = self.calls.places.clone().try_acquire_owned() else {
            self.calls.metrics.grpc_refused("calls");
            let status = Status::resource_exhausted(format!("{} calls are under way, the limit", self.calls.max));
            return Box::pin(std::future::ready(Ok(status.into_http())));
        };
        let seat = request.extensions().get::<Seat>();
        if seat.is_some_and(|seat| seat.calls() >= CALLS_OF_ONE) {
            self.calls.metrics.grpc_refused("calls_of_one");
            let status = Status::resource_exhausted(format!("{CALLS_OF_ONE} calls of this connection are under way"));
            return Box::pin(std::future::ready(Ok(status.into_http())));
        }
        let busy = seat.map(Seat::busy);
        let answer = self.service.call(request);
        Box::pin(async move {
            // It begins when the client has said what it wants, which it may never do.
            let Ok(answer) = tokio::time::timeout(BEGIN_WITHIN, answer).await else {
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
    _place: OwnedSemaphorePermit,
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
