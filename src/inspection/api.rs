//! The live flows, as the API shows them: those of all workers, the heaviest first.

use std::cmp::Reverse;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::Serialize;

use super::Worker;
use crate::api::{self, ApiError, Method, Operation, Param, ParamKind, Reply, Request, Role, Spec};
use crate::flow::community_id;
use crate::flow::{Direction, Flow};
use crate::logging::rfc3339;
use crate::packet::frame::protocol;
use crate::packet::proto::{AppProto, Side};
use crate::ruled::api::gone;
use crate::supervise::Handle;

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
            protocol: protocol_name(flow.protocol),
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

fn protocol_name(number: u8) -> String {
    match number {
        protocol::TCP => "tcp".to_owned(),
        protocol::UDP => "udp".to_owned(),
        other => other.to_string(),
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

    /// The heaviest of a worker's flows, each with its weight.
    fn heaviest(&self, worker: &Worker) -> Vec<(u64, FlowView)> {
        let mut all: Vec<&Flow> = worker.flows().filter(|flow| self.wants(flow)).collect();
        let heaviest_first = |flow: &&Flow| (Reverse(self.weight(flow)), flow.id);
        if all.len() > self.most {
            all.select_nth_unstable_by_key(self.most, heaviest_first);
            all.truncate(self.most);
        }
        all.sort_unstable_by_key(heaviest_first);
        all.into_iter().map(|flow| (self.weight(flow), FlowView::from(flow))).collect()
    }
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
        api::OFFSET,
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
    let wanted = Wanted {
        by: if request.query("sort") == Some("packets") { SortedBy::Packets } else { SortedBy::Bytes },
        ip: request.query_as("ip")?,
        protocol: request.query("protocol").map(str::to_lowercase),
        most: page.limit as usize + page.offset as usize,
    };
    let mut all = Vec::new();
    for worker in workers {
        let wanted = wanted.clone();
        all.extend(worker.call(move |worker| wanted.heaviest(worker)).map_err(gone)?);
    }
    all.sort_by_key(|(weight, view)| (Reverse(*weight), view.flow_id));
    Ok(Reply::json(&page.of(all.into_iter().map(|(_, view)| view))))
}
