//! SYNs from random sources over a veth pair, one core for both ends: what answering one costs beside dropping it, and
//! beside the kernel's own cookies, iptables SYNPROXY and nft synproxy.
//!
//! Every receiver is a host with a listener. Stacks that answer by themselves are measured twice: with clients on the link,
//! so that each is a neighbour to be remembered, and behind a gateway. What is answered is counted and dropped at the
//! generator's end. A sample of our answers is completed, as clients would, and accepted by the listener.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Result, ensure};
use ebpfsentinel::abi::{rl_algorithm, syn_host, xdp_chain};
use ebpfsentinel::bpf::chain::Chain;
use ebpfsentinel::bpf::has_raw_cookies;
use ebpfsentinel::bpf::xdp_firewall::{self, XdpFirewall};
use ebpfsentinel::bpf::xdp_ratelimit::{self, XdpRatelimit};
use ebpfsentinel::bpf::xdp_syncookie::{self, XdpSyncookie};
use ebpfsentinel::classify::compile::{BothRows, compile_v4, compile_v6};
use ebpfsentinel::classify::guard::Guard;
use ebpfsentinel::classify::matching::{Match, PortRange, Protocol, TcpFlags, proto};
use ebpfsentinel::engines::ratelimit::limit::{Limit, Unit};
use ebpfsentinel::engines::ratelimit::maps::{Generation, Placed};
use ebpfsentinel::engines::ratelimit::rule::{Action, Algorithm, Rule, Scope};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, sockopt};

use crate::figures::Figures;
use crate::kernel::{self, Bench, TestRun, Variant, attach_native};
use crate::support::syn_flood::{ALL_SOURCES, Aim, CLIENT_OPTIONS, SynAck, SynFlood};
use crate::veth::{Wire, exists, feed};

const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const PORT: u16 = 80;
/// The same in every namespace.
const LOOPBACK: u32 = 1;
const XDP_TX: u32 = 3;
/// Connections that are completed: fewer than a listener's queue and than the samples that are kept.
const COMPLETED: u32 = 1000;
/// Frames that a veth's queue takes at once.
const A_FEW: u32 = 200;
/// What a kernel has not answered by now it has lost.
const ANSWERED_WITHIN: Duration = Duration::from_millis(100);

const DROP: &str = "XDP_DROP";
const SENT_BACK: &str = "XDP_TX alone";
/// The kernel's part of an answer: its cookie, and the way back.
const FLOOR: &str = "cookie and XDP_TX, no more";
const OURS: &str = "SYN cookie by XDP_TX";
/// Who else answers: name of the figure, and the labels with clients on the link and behind a gateway.
const OTHERS: [(&str, [&str; 2]); 3] = [
    ("kernel_cookies", ["kernel, tcp_syncookies=2", "kernel, by a gateway"]),
    ("iptables_synproxy", ["iptables SYNPROXY", "iptables SYNPROXY, by a gateway"]),
    ("nft_synproxy", ["nft synproxy", "nft synproxy, by a gateway"]),
];

const IPTABLES_RULES: &str = "\
*raw
:PREROUTING ACCEPT
-A PREROUTING -p tcp --dport 80 --syn -j CT --notrack
COMMIT
*filter
:INPUT ACCEPT
-A INPUT -p tcp --dport 80 -m conntrack --ctstate INVALID,UNTRACKED -j SYNPROXY --sack-perm --timestamp --wscale 7 \
--mss 1460
-A INPUT -m conntrack --ctstate INVALID -j DROP
COMMIT
";

const NFT_RULES: &str = "\
table ip t {
	chain p { type filter hook prerouting priority raw; policy accept; tcp dport 80 tcp flags syn notrack; }
	chain i {
		type filter hook input priority filter; policy accept;
		tcp dport 80 ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm
		ct state invalid drop
	}
}
";

/// The programs under test, one behind the other as the agent has them.
struct Ours {
    /// It is empty when nobody holds it.
    _chain: Chain,
    firewall: XdpFirewall,
    limiter: XdpRatelimit,
    cookies: XdpSyncookie,
}

impl Ours {
    /// A firewall without rules, and one limit: SYNs of the port are always answered.
    fn load() -> Result<Ours> {
        let chain = Chain::new()?;
        let mut firewall =
            XdpFirewall::load(&xdp_firewall::Switches { chain: Some(&chain), ..xdp_firewall::Switches::default() })?;
        firewall.swap(|tables| {
            tables.policy.iface_multiplier = 1;
            tables.policy.enforce = 1;
            let [family_v4, family_v6] = &mut tables.family;
            let v4 = compile_v4(&[], 0, family_v4, &mut tables.v4)?;
            let v6 = compile_v6(&[], v4.entries(), family_v6, &mut tables.v6)?;
            anyhow::Ok(BothRows { v4, v6 })
        })?;
        let mut limiter = XdpRatelimit::load(xdp_ratelimit::Switches {
            multi_buffer: false,
            buckets: 1 << 16,
            chain: Some(&chain),
            steers: false,
        })?;
        let rule = rule();
        limiter.clear_slot(0, rl_algorithm::RL_SYN_COOKIE)?;
        limiter.swap(|tables, rules| {
            let placed = [Placed { rule: &rule, slot: 0, instance: 1 }];
            let guard = Guard::default();
            Generation { number: 1, enforce: true, rules: &placed, ports: &[], guard: &guard }.write(tables, rules)
        })?;
        let mut cookies = XdpSyncookie::load(
            &xdp_syncookie::Switches { multi_buffer: false, chain: Some(&chain), steers: false },
            &limiter,
        )?;
        cookies.set_host(syn_host {
            timestamps: 1,
            window_scaling: 1,
            sack: 1,
            receive_max: 6 << 20,
            ..syn_host::default()
        });
        chain.set(xdp_chain::CHAIN_RATELIMIT, limiter.program())?;
        chain.set(xdp_chain::CHAIN_SYNCOOKIE, cookies.program())?;
        limiter.set_cookies_usable(true);
        Ok(Ours { _chain: chain, firewall, limiter, cookies })
    }

    /// Attaches them to b0 of this namespace; test runs are on its loopback.
    fn attach(&mut self) -> Result<()> {
        let index = nix::net::if_::if_nametoindex("b0").context("there is no b0")?;
        self.cookies.set_interfaces(&[(index, HOST_MAC), (LOOPBACK, HOST_MAC)])?;
        attach_native(self.firewall.program().as_raw_fd(), "b0")
    }
}

fn rule() -> Rule {
    Rule {
        id: "syn".to_owned(),
        namespace: None,
        priority: 1,
        enabled: true,
        matches: Match {
            protocol: Protocol::Number(proto::TCP),
            dst_port: Some(PortRange { low: PORT, high: PORT }),
            tcp_flags: Some(TcpFlags::SYN),
            ..Match::default()
        },
        scope: Scope::PerIp,
        ipv6_prefix_len: Rule::IPV6_PREFIX_LEN,
        limit: Limit { rate: Rule::COOKIE_RATE, burst: Rule::COOKIE_RATE, unit: Unit::Packets },
        algorithm: Algorithm::SynCookie,
        action: Action::Drop,
        threshold_pps: 0,
        block_secs: 0,
        mitre: Vec::new(),
        description: String::new(),
    }
}

/// SYNs that were sent to a receiver, and those that were answered.
#[derive(Clone, Copy, Default)]
struct Share {
    sent: u64,
    answered: u64,
}

impl Share {
    fn value(self) -> f64 {
        self.answered as f64 / self.sent as f64
    }
}

pub fn measure(bench: &mut Bench, figures: &mut Figures, rounds: usize) -> Result<()> {
    eprintln!("SYN floods over veth");
    let flood = SynFlood::load()?;
    let mut ours = Ours::load()?;
    let mut wire = Wire::new()?;
    let mut listeners = HashMap::new();
    wire.add(DROP, || {
        prepare_host(Clients::OnLink)?;
        attach_native(bench.program("drop")?, "b0")
    })?;
    wire.add(SENT_BACK, || {
        prepare_host(Clients::OnLink)?;
        attach_native(flood.bounce()?.as_raw_fd(), "b0")
    })?;
    if has_raw_cookies() {
        wire.add(FLOOR, || {
            prepare_host(Clients::OnLink)?;
            attach_native(bench.program("syn_floor")?, "b0")
        })?;
    }
    let mut add = |wire: &mut Wire, label, clients, more: &mut dyn FnMut() -> Result<()>| {
        wire.add(label, || {
            prepare_host(clients)?;
            listeners.insert(label, listener()?);
            more()
        })
    };
    add(&mut wire, OURS, Clients::OnLink, &mut || ours.attach())?;
    for (name, labels) in OTHERS {
        let (program, args, rules): (_, &[&str], _) = match name {
            "iptables_synproxy" => ("iptables-legacy-restore", &[], IPTABLES_RULES),
            "nft_synproxy" => ("nft", &["-f", "-"], NFT_RULES),
            _ => ("", &[], ""),
        };
        if !program.is_empty() && !exists(program) {
            eprintln!("{name} is left out: there is no {program}");
            continue;
        }
        for (label, clients) in labels.into_iter().zip([Clients::OnLink, Clients::ByGateway]) {
            add(&mut wire, label, clients, &mut || {
                if program.is_empty() { Ok(()) } else { feed(program, args, rules) }
            })?;
        }
    }
    for place in 0..wire.receivers.len() {
        wire.generator.within(|| attach_native(flood.swallow()?.as_raw_fd(), &format!("a{place}")))?;
    }
    let medians = over_the_wire(bench, &mut wire, &flood, figures, rounds)?;
    println!("\nSYNs from random sources over a veth pair, one core\n");
    println!("| | ns/SYN | times XDP_DROP | SYN-ACK per SYN |\n|---|---:|---:|---:|");
    let drop_ns = medians[DROP].0;
    for receiver in &wire.receivers {
        let (ns, share) = medians[receiver.label];
        println!("| {} | {ns:.0} | {:.1} | {:.3} |", receiver.label, ns / drop_ns, share.value());
    }
    let answering = wire.receivers.iter().find(|receiver| receiver.label == OURS).context("no receiver of ours")?;
    let accepted = wire.generator.within(|| complete(&flood, answering.ifindex, &listeners[OURS]))?;
    figures.set("syn_accepted_share", f64::from(accepted) / f64::from(COMPLETED));
    answering.namespace.within(|| test_runs(bench, &flood, &ours, figures, rounds))
}

/// Completes connections with answers of ours as their clients would; how many of them the listener accepts.
fn complete(flood: &SynFlood, ifindex: u32, listener: &TcpListener) -> Result<u32> {
    let sender = flood.aim(&aim(ifindex))?;
    flood.keep_samples(COMPLETED)?;
    let mut answers: Vec<SynAck> = Vec::new();
    for _ in 0..COMPLETED / A_FEW {
        sender.send(A_FEW)?;
        std::thread::sleep(ANSWERED_WITHIN);
    }
    for frame in flood.samples()? {
        answers.push(SynAck::read(&frame).context("an answer that is no SYN-ACK")?);
    }
    ensure!(answers.len() == COMPLETED as usize, "{} of {COMPLETED} SYNs were answered", answers.len());
    let clients: HashSet<SocketAddr> =
        answers.iter().map(|answer| SocketAddr::new(answer.destination, answer.ports.1)).collect();
    let frames: Vec<Vec<u8>> = answers.iter().map(SynAck::completed).collect();
    let mut accepted = HashSet::new();
    for some in frames.chunks(A_FEW as usize) {
        flood.replay(some)?;
        let deadline = Instant::now() + ANSWERED_WITHIN;
        while Instant::now() < deadline {
            match listener.accept() {
                Ok((_, client)) => drop(accepted.insert(client)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(ANSWERED_WITHIN / 20),
                Err(error) => return Err(error).context("accepting"),
            }
        }
    }
    ensure!(accepted.is_subset(&clients), "connections of others were accepted");
    // Two clients of the sample may have met by chance.
    Ok(accepted.len() as u32 + COMPLETED - clients.len() as u32)
}

/// Nanoseconds of an answer more than parsing its SYN, in the answering host's namespace.
fn test_runs(bench: &mut Bench, flood: &SynFlood, ours: &Ours, figures: &mut Figures, rounds: usize) -> Result<()> {
    let sender = flood.aim(&aim(0))?;
    // SAFETY: the program lives as long as the bench.
    let parse = unsafe { BorrowedFd::borrow_raw(bench.program("parse")?) };
    // From the limiter on, and from the firewall on, as the agent has it.
    for (name, program) in [
        ("syn_ack_ns", ours.cookies.program()),
        ("syn_ack_ns.limiter", ours.limiter.program()),
        ("syn_ack_ns.firewall", ours.firewall.program()),
    ] {
        let (floor, tested) = flood.set_targets(parse, program)?;
        let frame = sender.frame().to_vec();
        let verdict = kernel::verdict(tested, &frame)?;
        ensure!(verdict == XDP_TX, "{name}: a SYN in a test run has verdict {verdict}");
        let mut variants = [Variant::new("parse", floor, frame.clone()), Variant::new(name, tested, frame)];
        let medians = bench.interleave(&mut variants, rounds)?;
        figures.set(name, medians[1] - medians[0]);
    }
    Ok(())
}

/// Median ns for a SYN, and how many were answered, by label.
fn over_the_wire(
    bench: &mut Bench,
    wire: &mut Wire,
    flood: &SynFlood,
    figures: &mut Figures,
    rounds: usize,
) -> Result<HashMap<&'static str, (f64, Share)>> {
    let mut shares: HashMap<u32, Share> = HashMap::new();
    let medians = wire.measure_by(bench, rounds, |_, ifindex, count| {
        let sender = flood.aim(&aim(ifindex))?;
        let before = flood.answers()?.syn_acks;
        let ns = sender.send(count)?;
        let mut answered = flood.answers()?.syn_acks - before;
        let deadline = Instant::now() + ANSWERED_WITHIN;
        // The last of them may still be in a softirq.
        while answered < count.into() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
            answered = flood.answers()?.syn_acks - before;
        }
        let share = shares.entry(ifindex).or_default();
        share.sent += u64::from(count);
        share.answered += answered;
        Ok(TestRun { ns, verdict: 0 })
    })?;
    let mut by_label = HashMap::new();
    for (receiver, ns) in wire.receivers.iter().zip(medians) {
        ensure!(receiver.lost < 0.01, "{}: {:.1} % of the SYNs were lost", receiver.label, receiver.lost * 100.0);
        by_label.insert(receiver.label, (ns, shares[&receiver.ifindex]));
    }
    let of = |label: &str| by_label.get(label).map(|(ns, _)| *ns);
    if let Some(ours) = of(OURS) {
        for (name, [on_link, by_gateway]) in OTHERS {
            for (label, ending) in [(on_link, ""), (by_gateway, ".gateway")] {
                if let Some(ns) = of(label) {
                    figures.set(format!("{name}_over_ours{ending}"), ns / ours);
                }
            }
        }
        figures.set("syn_x_drop", ours / by_label[DROP].0);
        if let Some(floor) = of(FLOOR) {
            figures.set("syn_floor_x_drop", floor / by_label[DROP].0);
            figures.set("syn_over_floor", ours / floor);
        }
        figures.set("syn_answered_share", by_label[OURS].1.value());
    }
    Ok(by_label)
}

fn aim(ifindex: u32) -> Aim {
    Aim {
        ifindex,
        macs: ([2, 0, 0, 0, 0, 1], HOST_MAC),
        to: IpAddr::V4(HOST),
        port: PORT,
        tcp_options: CLIENT_OPTIONS.to_vec(),
        vlan: false,
        sources: ALL_SOURCES,
        rate: None,
    }
}

/// How a host reaches its clients. Nobody is asked for a hardware address either way.
#[derive(Clone, Copy)]
enum Clients {
    OnLink,
    ByGateway,
}

/// Gives b0 of this namespace an address and a way to its clients.
fn prepare_host(clients: Clients) -> Result<()> {
    for (key, value) in [
        ("ipv4/tcp_syncookies", "2"),
        ("ipv4/tcp_timestamps", "2"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/b0/rp_filter", "0"),
    ] {
        fs::write(format!("/proc/sys/net/{key}"), value).with_context(|| format!("setting net/{key}"))?;
    }
    let way = match clients {
        Clients::OnLink => "link set b0 arp off\nroute add default dev b0\n",
        Clients::ByGateway => {
            "neigh replace 192.0.2.1 lladdr 02:00:00:00:00:01 dev b0 nud permanent\nroute add default via 192.0.2.1\n"
        }
    };
    let words = format!("address add {HOST}/24 dev b0\n{way}");
    feed("ip", &["-batch", "-"], &words)
}

/// A listener in this namespace with room for all that are completed.
fn listener() -> Result<TcpListener> {
    let socket = nix::sys::socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, PORT))?;
    listen(&socket, Backlog::new(4096)?).context("listening")?;
    Ok(TcpListener::from(socket))
}
