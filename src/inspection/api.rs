//! The live flows, as the API shows them: those of all workers, the heaviest first.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::Serialize;

use super::Worker;
use crate::api::{self, ApiError, Method, Operation, Page, Param, ParamKind, Reply, Request, Role, Spec};
use crate::flow::community_id;
use crate::flow::{Direction, Flow};
use crate::logging::rfc3339;
use crate::packet::frame::protocol;
use crate::packet::proto::{AppProto, Side};
use crate::ruled::api::gone;
use crate::supervise::Handle;

/// The list ends here: what somebody skips costs the workers as much as what he sees.
const REACH_MAX: usize = 10_000;

/// A flow that is known now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct FlowView {
    /// Names it in the alerts and events of this run.
    pub flow_id: u64,
    /// Community ID, version 1: the same in other tools.
    pub community_id: String,
    /// Who opened it, as far as that is known.
    pub client_ip: IpAddr,
    /// Its port.
    pub client_port: u16,
    /// The other end.
    pub server_ip: IpAddr,
    /// Its port.
    pub server_port: u16,
    /// tcp, udp, or a protocol's number.
    pub protocol: String,
    /// The protocol above, by what it sent: http, tls...; `null` while it is not known.
    pub app_proto: Option<&'static str>,
    /// new, established or closed.
    pub state: &'static str,
    /// ingress or egress: which way its first packet went.
    pub direction: &'static str,
    /// Index of the interface of its first packet.
    pub ifindex: u32,
    /// VLAN tags, outer first.
    pub vlans: Vec<u16>,
    /// When it was first seen.
    pub start: String,
    /// When it was last seen.
    pub last: String,
    /// Packets of the client, those included that were not inspected.
    pub client_packets: u64,
    /// Bytes of its frames.
    pub client_bytes: u64,
    /// Packets of the server.
    pub server_packets: u64,
    /// Bytes of its frames.
    pub server_bytes: u64,
    /// Bytes that are missing in what was inspected, both sides together.
    pub gap_bytes: u64,
    /// It was refused: the kernel drops its packets.
    pub blocked: bool,
}

impl From<&Flow> for FlowView {
    fn from(flow: &Flow) -> FlowView {
        let of = |counts: [u64; 2], side: Side| counts[side as usize];
        FlowView {
            flow_id: flow.id,
            community_id: community_id(flow),
            client_ip: flow.client.ip(),
            client_port: flow.client.port(),
            server_ip: flow.server.ip(),
            server_port: flow.server.port(),
            protocol: protocol_name(flow.protocol).into_owned(),
            app_proto: flow.app_proto.map(AppProto::name),
            state: flow.state.name(),
            direction: match flow.direction {
                Direction::Ingress => "ingress",
                Direction::Egress => "egress",
            },
            ifindex: flow.ifindex,
            vlans: flow.vlans.into_iter().filter(|&tag| tag != 0).collect(),
            start: rfc3339(flow.start_ns),
            last: rfc3339(flow.last_ns),
            client_packets: of(flow.packets, Side::Client),
            client_bytes: of(flow.bytes, Side::Client),
            server_packets: of(flow.packets, Side::Server),
            server_bytes: of(flow.bytes, Side::Server),
            gap_bytes: flow.gap_bytes.iter().sum(),
            blocked: flow.is_blocked,
        }
    }
}

fn protocol_name(number: u8) -> Cow<'static, str> {
    match number {
        protocol::TCP => "tcp".into(),
        protocol::UDP => "udp".into(),
        other => other.to_string().into(),
    }
}

/// What the list is sorted by, most first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SortedBy {
    Bytes,
    Packets,
}

/// Which flows are asked for.
#[derive(Clone, Debug)]
struct Wanted {
    by: SortedBy,
    ip: Option<IpAddr>,
    protocol: Option<String>,
    most: usize,
}

impl Wanted {
    fn wants(&self, flow: &Flow) -> bool {
        let is_of = |ip: IpAddr| flow.client.ip() == ip || flow.server.ip() == ip;
        let speaks = |name: &String| {
            protocol_name(flow.protocol) == *name || flow.app_proto.is_some_and(|proto| proto.name() == name)
        };
        self.ip.is_none_or(is_of) && self.protocol.as_ref().is_none_or(speaks)
    }

    fn weight(&self, flow: &Flow) -> u64 {
        match self.by {
            SortedBy::Bytes => flow.bytes.iter().sum(),
            SortedBy::Packets => flow.packets.iter().sum(),
        }
    }

    /// The heaviest of a worker's flows. A worker has packets to look at, so it is asked for no more than numbers, and
    /// holds no more of them than are wanted.
    fn heaviest<'f>(&self, flows: impl Iterator<Item = &'f Flow>) -> Vec<Place> {
        let mut heaviest = BinaryHeap::with_capacity(self.most + 1);
        for flow in flows.filter(|flow| self.wants(flow)) {
            heaviest.push((Reverse(self.weight(flow)), flow.id));
            if heaviest.len() > self.most {
                // The lightest.
                heaviest.pop();
            }
        }
        heaviest.into_vec()
    }
}

/// Where a flow stands in the list: the heaviest first, of the same weight by its id.
type Place = (Reverse<u64>, u64);

/// The flows of a page: each with the worker that knows it, in order.
fn page_of(workers: Vec<Vec<Place>>, page: Page) -> Vec<(usize, u64)> {
    let of_worker = |(worker, places): (usize, Vec<Place>)| places.into_iter().map(move |place| (place, worker));
    let mut all: Vec<(Place, usize)> = workers.into_iter().enumerate().flat_map(of_worker).collect();
    all.sort_unstable();
    page.of(all.into_iter().map(|((_, id), worker)| (worker, id)))
}

/// What there is to say of those of `flows` that are named; one that has ended is not among them any more.
fn views<'f>(flows: impl Iterator<Item = &'f Flow>, ids: &HashSet<u64>) -> Vec<FlowView> {
    flows.filter(|flow| ids.contains(&flow.id)).map(FlowView::from).collect()
}

static LIST: Spec = Spec {
    command: "flows",
    method: Method::Get,
    path: "/api/v1/flows",
    query: &[
        Param::optional(
            "sort",
            "What the list is sorted by, most first; bytes when absent",
            ParamKind::Word(&["bytes", "packets"]),
        ),
        Param::optional("ip", "Only flows of this address", ParamKind::Text),
        Param::optional("protocol", "Only flows of this protocol: tcp, udp, or http, tls...", ParamKind::Text),
        api::LIMIT,
        Param::optional(
            "offset",
            "Flows to skip from the start of the list; with limit together at most 10000",
            ParamKind::Integer { min: 0, max: REACH_MAX as u64 - 1 },
        ),
    ],
    role: Role::Viewer,
    summary: "List the live flows, the heaviest first",
    body: None,
    reply: api::schema::<Vec<FlowView>>,
    success: 200,
};

/// Everything that can be asked of the workers.
pub static SPECS: &[&Spec] = &[&LIST];

/// The operations, bound to the workers.
pub fn operations(workers: &[Handle<Worker>]) -> Vec<Operation> {
    let workers = workers.to_vec();
    vec![Operation::new(&LIST, move |request| list(&workers, request))]
}

/// The same operations while flows are not inspected: each says so.
pub fn refused() -> Vec<Operation> {
    let refuse = |_: &Request| {
        Err(ApiError::unavailable("flows are not inspected; set ids.enabled = true and restart the agent"))
    };
    SPECS.iter().map(|spec| Operation::new(spec, refuse)).collect()
}

fn list(workers: &[Handle<Worker>], request: &Request) -> Result<Reply, ApiError> {
    let page = request.page()?;
    let most = page.limit as usize + page.offset as usize;
    if most > REACH_MAX {
        return Err(ApiError::validation(format!(
            "offset and limit together are {most}, and the list ends at {REACH_MAX}; ask by ip or protocol for fewer flows"
        )));
    }
    let wanted = Wanted {
        by: if request.query("sort") == Some("packets") { SortedBy::Packets } else { SortedBy::Bytes },
        ip: request.query_as("ip")?,
        protocol: request.query("protocol").map(str::to_lowercase),
        most,
    };
    let mut places = Vec::with_capacity(workers.len());
    for worker in workers {
        let wanted = wanted.clone();
        places.push(worker.call(move |worker| wanted.heaviest(worker.flows())).map_err(gone)?);
    }
    let page = page_of(places, page);
    let mut known = HashMap::with_capacity(page.len());
    for (index, worker) in workers.iter().enumerate() {
        let ids: HashSet<u64> = page.iter().filter(|(of, _)| *of == index).map(|(_, id)| *id).collect();
        if ids.is_empty() {
            continue;
        }
        let found = worker.call(move |worker| views(worker.flows(), &ids)).map_err(gone)?;
        known.extend(found.into_iter().map(|view| ((index, view.flow_id), view)));
    }
    Ok(Reply::json(&page.iter().filter_map(|flow| known.remove(flow)).collect::<Vec<FlowView>>()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::State;

    fn flow(id: u64, bytes: u64, packets: u64) -> Flow {
        Flow {
            id,
            protocol: 6,
            client: "10.1.2.3:4000".parse().unwrap(),
            server: "192.0.2.1:80".parse().unwrap(),
            vlans: [0; 2],
            ifindex: 1,
            direction: Direction::Ingress,
            start_ns: 0,
            last_ns: 0,
            packets: [packets, 0],
            bytes: [bytes, 0],
            arrived: [true, false],
            left: [false; 2],
            gap_bytes: [0; 2],
            app_proto: Some(AppProto::Http),
            state: State::New,
            tcp_flags: [0; 2],
            next_seq: [0; 2],
            is_midstream: false,
            is_answered: false,
            is_finished: false,
            is_tunnelled: false,
            is_blocked: false,
            socket_cookie: 0,
            cgroup_id: 0,
        }
    }

    fn wanted(by: SortedBy, most: usize) -> Wanted {
        Wanted { by, ip: None, protocol: None, most }
    }

    #[test]
    fn a_worker_tells_places_and_no_more_than_are_wanted() {
        let flows: Vec<Flow> = (0..1000).map(|id| flow(id, id % 10, 1000 - id)).collect();
        let ids = |wanted: &Wanted| {
            let mut places = wanted.heaviest(flows.iter());
            places.sort_unstable();
            places.into_iter().map(|(_, id)| id).collect::<Vec<_>>()
        };
        assert_eq!(ids(&wanted(SortedBy::Bytes, 3)), [9, 19, 29]);
        assert_eq!(ids(&wanted(SortedBy::Packets, 2)), [0, 1]);
        assert_eq!(ids(&wanted(SortedBy::Bytes, 5000)).len(), 1000);
        for (ip, protocol, found) in [
            (Some("192.0.2.1"), None, 3),
            (Some("192.0.2.2"), None, 0),
            (None, Some("http"), 3),
            (None, Some("tcp"), 3),
            (None, Some("udp"), 0),
        ] {
            let (ip, protocol) = (ip.map(|ip| ip.parse().unwrap()), protocol.map(str::to_owned));
            assert_eq!(ids(&Wanted { ip, protocol, ..wanted(SortedBy::Bytes, 3) }).len(), found);
        }
    }

    #[test]
    fn a_page_is_of_all_workers_and_leaves_out_what_has_ended() {
        let workers = [vec![flow(1, 10, 0), flow(2, 30, 0)], vec![flow(3, 20, 0), flow(4, 30, 0)]];
        let page = |limit, offset| {
            let wanted = wanted(SortedBy::Bytes, (limit + offset) as usize);
            page_of(workers.iter().map(|flows| wanted.heaviest(flows.iter())).collect(), Page { limit, offset })
        };
        assert_eq!(page(10, 0), [(0, 2), (1, 4), (1, 3), (0, 1)]);
        assert_eq!(page(2, 1), [(1, 4), (1, 3)]);
        assert_eq!(page(2, 9), []);
        let ids = HashSet::from([4, 5]);
        assert_eq!(views(workers[1].iter(), &ids).iter().map(|view| view.flow_id).collect::<Vec<_>>(), [4]);
    }

    #[test]
    fn nobody_reaches_beyond_the_end_of_the_list() {
        let ask = |limit: &str, offset: &str| {
            list(&[], &Request::new(&LIST).with_query("limit", limit).with_query("offset", offset))
        };
        assert_eq!(ask("100", "9900"), Ok(Reply::Json(serde_json::json!([]))));
        for (limit, offset) in [("101", "9900"), ("1", "4000000000"), ("5000", "4294967295")] {
            let error = ask(limit, offset).unwrap_err();
            assert_eq!((error.status, error.code), (400, "VALIDATION_ERROR"));
            assert!(error.message.contains("the list ends at 10000"), "{error}");
        }
    }
}
