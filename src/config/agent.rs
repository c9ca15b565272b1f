//! Section `[agent]`: where the agent works, who may talk to it, what it leaves behind.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use log::LevelFilter;
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use crate::bpf;
use crate::classify::keys::{read_interfaces, read_network};
use crate::logging::Format;
use crate::written::{Field, Reader};

/// Interfaces that can be guarded: the kernel tables number them from 0 to 62.
pub const INTERFACES_MAX: usize = 63;
/// SSH ports that the lock-out guard takes: the kernel keeps eight ports, and three are left for the control ports.
pub const SSH_PORTS_MAX: usize = 5;
/// Networks that the lock-out guard takes.
pub const GUARD_NETWORKS_MAX: usize = 64;

/// Bytes of a Unix socket's path that the kernel takes.
const SOCKET_PATH_MAX: usize = 107;

/// Names that clients may use.
pub const HOST_NAMES_MAX: usize = 64;

/// How XDP programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Native where the driver can, else generic.
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the network stack.
    Generic,
}

impl XdpMode {
    const WORDS: &'static [(&'static str, XdpMode)] =
        &[("auto", XdpMode::Auto), ("native", XdpMode::Native), ("generic", XdpMode::Generic)];
}

/// Among which CPUs flows are spread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuSteering {
    /// A packet is handled where it arrives.
    Off,
    /// Among all that are online when the agent starts.
    Online,
    /// Among these, at least one, in order, each once.
    Cpus(Vec<u32>),
}

impl CpuSteering {
    fn read(field: &Field<'_>) -> CpuSteering {
        let list = field.as_text().filter(|text| !matches!(*text, "true" | "false"));
        let Some(text) = list else {
            return if field.boolean() == Some(true) { CpuSteering::Online } else { CpuSteering::Off };
        };
        let Some(cpus) = bpf::parse_cpus(text) else {
            field.error(format!("\"{}\" is not true, false or a list of CPUs such as \"0-3,6\"", text.escape_debug()));
            return CpuSteering::Off;
        };
        match bpf::online_cpus() {
            Ok(online) => {
                if let Some(missing) = cpus.iter().find(|cpu| !online.contains(cpu)) {
                    field.error(format!("CPU {missing} is not online on this host"));
                }
            }
            Err(error) => field.error(format!("it cannot be told which CPUs are online: {error:#}")),
        }
        CpuSteering::Cpus(cpus)
    }
}

impl Serialize for CpuSteering {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            CpuSteering::Off => serializer.serialize_bool(false),
            CpuSteering::Online => serializer.serialize_bool(true),
            CpuSteering::Cpus(cpus) => {
                serializer.serialize_str(&cpus.iter().map(u32::to_string).collect::<Vec<_>>().join(","))
            }
        }
    }
}

fn cpu_steering_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "anyOf": [{ "type": "boolean" }, { "type": "string" }] })
}

/// What happens to the kernel side when the agent ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnExit {
    /// Programs are detached; nothing is filtered any more.
    Detach,
    /// Programs stay and go on enforcing until the next agent takes them over.
    Keep,
}

impl OnExit {
    const WORDS: &'static [(&'static str, OnExit)] = &[("detach", OnExit::Detach), ("keep", OnExit::Keep)];
}

/// Whom the lock-out guard lets in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuardFrom {
    /// The addresses that have an SSH session open when the agent starts.
    Sessions,
    /// These networks.
    Networks(Vec<IpNet>),
}

impl Serialize for GuardFrom {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            GuardFrom::Sessions => serializer.serialize_str("sessions"),
            GuardFrom::Networks(networks) => serializer.collect_seq(networks),
        }
    }
}

/// Where processes of this host reach the control port without TCP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ControlSocket {
    /// `control.sock` in the directory that systemd made for it, `/run/ebpfsentinel`; without systemd in
    /// `agent.state_dir`/run.
    #[default]
    Usual,
    /// Nowhere.
    Off,
    /// At this path.
    At(PathBuf),
}

impl ControlSocket {
    const USUAL: &'static str = "usual";
    const OFF: &'static str = "off";

    fn read(field: &Field<'_>) -> ControlSocket {
        match field.as_text() {
            Some(ControlSocket::USUAL) => return ControlSocket::Usual,
            Some(ControlSocket::OFF) => return ControlSocket::Off,
            _ => {}
        }
        let Some(path) = read_path(field) else { return ControlSocket::Usual };
        if path.as_os_str().len() > SOCKET_PATH_MAX {
            field.error(format!("the path of a socket has at most {SOCKET_PATH_MAX} bytes"));
        }
        ControlSocket::At(path)
    }
}

impl Serialize for ControlSocket {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            ControlSocket::Usual => serializer.serialize_str(ControlSocket::USUAL),
            ControlSocket::Off => serializer.serialize_str(ControlSocket::OFF),
            ControlSocket::At(path) => path.serialize(serializer),
        }
    }
}

/// Keeps the way in open for whoever administers the host, whatever the rules say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct AntiLockout {
    /// Whether it does.
    pub enabled: bool,
    /// TCP ports of SSH; the agent's own ports come on top.
    pub ssh_ports: Vec<u16>,
    /// Whom it lets in: `"sessions"` or networks.
    #[schemars(schema_with = "guard_from_schema")]
    pub from: GuardFrom,
}

fn guard_from_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "anyOf": [{ "const": "sessions" }, { "type": "array", "items": { "type": "string" } }] })
}

fn lowercase<S: Serializer>(level: &LevelFilter, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&level.as_str().to_lowercase())
}

fn format_name<S: Serializer>(format: &Format, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(format.name())
}

/// Section `[agent]`, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct AgentConfig {
    /// Interfaces that are guarded.
    pub interfaces: Vec<String>,
    /// Least urgent lines that are logged.
    #[serde(serialize_with = "lowercase")]
    #[schemars(with = "String")]
    pub log_level: LevelFilter,
    /// How lines on stderr look.
    #[serde(serialize_with = "format_name")]
    #[schemars(with = "String")]
    pub log_format: Format,
    /// Where the control ports listen.
    pub bind_address: IpAddr,
    /// Port of the REST API.
    pub http_port: u16,
    /// Port of the metrics.
    pub metrics_port: u16,
    /// Port of gRPC; 0 where there is none.
    pub grpc_port: u16,
    /// DNS names under which clients may call the control ports, besides this host's own; lower case.
    pub host_names: Vec<String>,
    /// Whether the API may listen beyond this host without asking who is there.
    pub allow_unauthenticated_api: bool,
    /// Where processes of this host reach the control port without TCP: a path, `usual` or `off`.
    #[schemars(with = "String")]
    pub socket: ControlSocket,
    /// Requests per second that one remote address may send in the long run; twice as many at once.
    pub requests_per_second: u32,
    /// Whether the pages of Swagger UI are served under `/swagger-ui/`.
    pub swagger_ui: bool,
    /// Whether the agent gives up what it does not need once it runs.
    pub sandbox: bool,
    /// How XDP programs are attached.
    pub xdp_mode: XdpMode,
    /// Among which CPUs flows are spread: `false`, `true` (all that are online) or a list such as `"0-3,6"`.
    #[schemars(schema_with = "cpu_steering_schema")]
    pub cpu_steering: CpuSteering,
    /// What happens to the kernel side when the agent ends.
    pub on_exit: OnExit,
    /// Where rules made through the API are kept.
    pub state_dir: PathBuf,
    /// Keeps the way in open.
    pub anti_lockout: AntiLockout,
}

impl AgentConfig {
    const LEVELS: &'static [(&'static str, LevelFilter)] = &[
        ("error", LevelFilter::Error),
        ("warn", LevelFilter::Warn),
        ("info", LevelFilter::Info),
        ("debug", LevelFilter::Debug),
        ("trace", LevelFilter::Trace),
    ];
    const FORMATS: &'static [(&'static str, Format)] = &[("json", Format::Json), ("text", Format::Text)];

    /// Reads the section. `asks` says whether the control ports ask callers who they are. `None` means that the
    /// interfaces could not be read, which is noted.
    pub fn read(mut r: Reader<'_>, asks: bool) -> Option<AgentConfig> {
        let interfaces_field = r.key("interfaces");
        if !interfaces_field.is_present() {
            interfaces_field.error("missing; name the interfaces to guard, such as interfaces = [\"eth0\"]");
        }
        let interfaces = read_interfaces(&interfaces_field, INTERFACES_MAX);
        let log_level = r.key("log_level").one_of(Self::LEVELS).unwrap_or(LevelFilter::Info);
        let log_format = r.key("log_format").one_of(Self::FORMATS).unwrap_or_default();
        let allow_unauthenticated_api = r.key("allow_unauthenticated_api").boolean().unwrap_or(false);
        let bind_address = read_bind_address(&r.key("bind_address"), asks || allow_unauthenticated_api);
        let http_port = r.key("http_port").integer(1..=65535u16).unwrap_or(8080);
        let metrics_field = r.key("metrics_port");
        let metrics_port = metrics_field.integer(1..=65535u16).unwrap_or(9090);
        if metrics_port == http_port {
            metrics_field.error(format!("{metrics_port} is http_port already; the two must differ"));
        }
        let grpc_field = r.key("grpc_port");
        let grpc_port = grpc_field.integer(0..=65535u16).unwrap_or(50051);
        for (name, other) in [("http_port", http_port), ("metrics_port", metrics_port)] {
            if grpc_port == other {
                grpc_field.error(format!("{grpc_port} is {name} already; the two must differ (0 is no port at all)"));
            }
        }
        let host_names = read_host_names(&r.key("host_names"));
        let socket = ControlSocket::read(&r.key("socket"));
        let requests_per_second = r.key("requests_per_second").integer(1..=100_000u32).unwrap_or(50);
        let swagger_ui = r.key("swagger_ui").boolean().unwrap_or(false);
        let sandbox = r.key("sandbox").boolean().unwrap_or(true);
        let xdp_mode = r.key("xdp_mode").one_of(XdpMode::WORDS).unwrap_or(XdpMode::Auto);
        let cpu_steering = CpuSteering::read(&r.key("cpu_steering"));
        let on_exit = r.key("on_exit").one_of(OnExit::WORDS).unwrap_or(OnExit::Detach);
        let state_dir = read_state_dir(&r.key("state_dir"));
        let anti_lockout = AntiLockout::read(&r.key("anti_lockout"));
        r.finish();
        Some(AgentConfig {
            interfaces: interfaces?,
            log_level,
            log_format,
            bind_address,
            http_port,
            metrics_port,
            grpc_port,
            host_names,
            allow_unauthenticated_api,
            socket,
            requests_per_second,
            swagger_ui,
            sandbox,
            xdp_mode,
            cpu_steering,
            on_exit,
            state_dir,
            anti_lockout,
        })
    }
}

fn read_bind_address(field: &Field<'_>, open: bool) -> IpAddr {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let Some(text) = field.text() else { return loopback };
    match text.parse::<IpAddr>() {
        Ok(address) if open || address.to_canonical().is_loopback() => return address,
        Ok(address) => field.error(format!(
            "{address} can be reached from other hosts, and the API does not ask who is there; set up [auth], listen on \
             127.0.0.1 or ::1, or set agent.allow_unauthenticated_api = true"
        )),
        Err(_) => {
            let hint = if text == "localhost" { "; write 127.0.0.1 or ::1" } else { "" };
            field.error(format!("\"{}\" is not an IP address{hint}", text.escape_debug()));
        }
    }
    loopback
}

fn read_host_names(field: &Field<'_>) -> Vec<String> {
    let items = field.items().unwrap_or_default();
    if items.len() > HOST_NAMES_MAX {
        field.error(format!("{} names, and {HOST_NAMES_MAX} is the limit", items.len()));
        return Vec::new();
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let mut names = Vec::with_capacity(items.len());
    for item in items {
        let Some(text) = item.text() else { continue };
        let name = text.to_ascii_lowercase();
        if name.parse::<IpAddr>().is_ok() {
            item.error("an address needs no name here: by address the ports may always be called");
        } else if name.len() > 253 || !name.split('.').all(is_label) {
            item.error(format!("\"{}\" is not a DNS name, such as agent.example.org", text.escape_debug()));
        } else {
            names.push(name);
        }
    }
    names
}

fn read_state_dir(field: &Field<'_>) -> PathBuf {
    read_path(field).unwrap_or_else(|| PathBuf::from("/var/lib/ebpfsentinel"))
}

/// An absolute path; `None` when absent or wrong, which is noted.
pub(super) fn read_path(field: &Field<'_>) -> Option<PathBuf> {
    let text = field.text()?;
    let path = Path::new(text);
    if !path.is_absolute() {
        field.error(format!("\"{}\" is not an absolute path", text.escape_debug()));
    } else if text.contains('\0') {
        field.error("a path has no NUL in it");
    } else if path.parent().is_none() {
        field.error("the root directory cannot be it; name something of its own");
    } else {
        return Some(path.to_owned());
    }
    None
}

impl AntiLockout {
    fn read(field: &Field<'_>) -> AntiLockout {
        let mut guard = AntiLockout { enabled: true, ssh_ports: vec![22], from: GuardFrom::Sessions };
        let Some(mut r) = field.table() else { return guard };
        guard.enabled = r.key("enabled").boolean().unwrap_or(guard.enabled);
        if let Some(ports) = read_ports(&r.key("ssh_ports")) {
            guard.ssh_ports = ports;
        }
        if let Some(from) = read_from(&r.key("from")) {
            guard.from = from;
        }
        r.finish();
        guard
    }
}

fn read_ports(field: &Field<'_>) -> Option<Vec<u16>> {
    let items = field.items()?;
    if items.len() > SSH_PORTS_MAX {
        field.error(format!("{} ports, and {SSH_PORTS_MAX} is the limit", items.len()));
        return None;
    }
    let mut ports = Vec::with_capacity(items.len());
    for item in items {
        let Some(port) = item.integer(1..=65535u16) else { continue };
        if ports.contains(&port) {
            item.error(format!("{port} stands here already"));
        }
        ports.push(port);
    }
    Some(ports)
}

fn read_from(field: &Field<'_>) -> Option<GuardFrom> {
    if !field.is_list() {
        let text = field.text()?;
        if text == "sessions" {
            return Some(GuardFrom::Sessions);
        }
        field.error(format!("\"{}\" is not \"sessions\"; write networks as a list in [ ]", text.escape_debug()));
        return None;
    }
    let items = field.items()?;
    if items.is_empty() {
        field.error("the list is empty, so nobody would be let in; set enabled = false to do without the guard");
    }
    if items.len() > GUARD_NETWORKS_MAX {
        field.error(format!("{} networks, and {GUARD_NETWORKS_MAX} is the limit", items.len()));
        return None;
    }
    Some(GuardFrom::Networks(items.iter().filter_map(read_network).collect()))
}
