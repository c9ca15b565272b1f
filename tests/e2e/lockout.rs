//! Whoever works on the host keeps the way in, whatever the rules say.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use ebpfsentinel::api::Method;
use ebpfsentinel::packet::build::Packet;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
use serde_json::json;

use super::support::{HOST, HOST_V6, Lab, OTHER, WORLD, WORLD_V6, config, rule, udp, wait_until};

const SYN: u8 = 2;

/// An open connection, both ends.
struct Session {
    near: TcpStream,
    far: TcpStream,
}

impl Session {
    fn open(lab: &Lab, to: &str, port: u16) -> Session {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        let listener = lab.host.run(|| TcpListener::bind(to)).unwrap().unwrap();
        let far = lab.world.run(|| TcpStream::connect(to)).unwrap().unwrap();
        let (near, _) = listener.accept().unwrap();
        for end in [&near, &far] {
            end.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        }
        Session { near, far }
    }

    /// A byte there and back.
    fn works(&mut self) {
        let mut byte = [0];
        self.far.write_all(b"?").unwrap();
        self.near.read_exact(&mut byte).unwrap();
        self.near.write_all(b"!").unwrap();
        self.far.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"!");
    }
}

/// The first packet of a connection.
fn syn(from: &str, port: u16) -> Packet {
    let to = if from.contains(':') { HOST_V6 } else { HOST };
    Packet::new().between(from, to).tcp(5000, port).flags(SYN)
}

fn hostile(anti_lockout: &str) -> String {
    let rules = [rule("no-ssh", 1, "deny", "protocol = \"tcp\"\ndst_port = 22"), rule("nobody", 2, "deny", "")];
    config(anti_lockout, "mode = \"block\"\ndefault_policy = \"drop\"\nstateful = false", &rules)
}

#[test]
fn open_sessions_stay_and_strangers_are_out() {
    let lab = Lab::new();
    let mut sessions = [Session::open(&lab, HOST, 22), Session::open(&lab, HOST_V6, 22)];
    let agent = lab.start(&hostile(""));
    let mut check = |when: &str| {
        sessions.iter_mut().for_each(Session::works);
        assert!(lab.passes(syn(WORLD, 22)) && lab.passes(syn(WORLD_V6, 22)), "{when}: who works here may come again");
        assert!(lab.passes(syn(WORLD, 8080)) && lab.passes(syn(WORLD, 9090)), "{when}: the control ports");
        assert!(!lab.passes(syn(OTHER, 22)), "{when}: a stranger");
        assert!(!lab.passes(syn("2001:db8:1::2", 22)), "{when}: a stranger");
        assert!(!lab.passes(syn(WORLD, 23)) && !lab.passes(udp(WORLD, 22)), "{when}: another port");
    };
    check("at start");
    let body = json!({"id": "really", "priority": 1, "action": "deny", "src_ip": WORLD});
    lab.ask(Method::Post, "/api/v1/firewall/rules", Some(body));
    check("after a write");
    lab.ask(Method::Post, "/api/v1/config/reload", None);
    check("after a reload");
    agent.stop();
}

#[test]
fn networks_of_a_list_have_the_way_in() {
    let lab = Lab::new();
    let mut session = Session::open(&lab, HOST, 2222);
    let list = "anti_lockout = { ssh_ports = [2222], from = [\"192.0.2.0/31\", \"2001:db8:1::/64\"] }";
    let agent = lab.start(&hostile(list));
    session.works();
    assert!(lab.passes(syn(WORLD, 2222)) && lab.passes(syn(WORLD_V6, 2222)));
    assert!(!lab.passes(syn(OTHER, 2222)) && !lab.passes(syn(WORLD, 22)));
    agent.stop();
}

/// What somebody says who works here is told, and the session goes on: neither blocked nor reset, nor counted as such.
#[test]
fn no_rule_of_l7_ends_a_guarded_session() {
    let lab = Lab::new();
    let mut guarded = [Session::open(&lab, HOST, 2222), Session::open(&lab, HOST_V6, 2222)];
    let mut other = Session::open(&lab, HOST, 8123);
    let list = "anti_lockout = { ssh_ports = [2222], from = [\"192.0.2.0/31\", \"2001:db8:1::/64\"] }";
    let l7 = "[l7]\nmode = \"block\"\n[[l7.rules]]\nid = \"no-admin\"\npriority = 1\naction = \"deny\"\n\
              protocol = \"http\"\npath = \"/admin\"\n";
    let agent = lab.start(&format!("{}{l7}", config(list, "mode = \"block\"", &[])));
    let ask = |session: &mut Session, hits: usize| {
        let request = b"GET /admin HTTP/1.1\r\nHost: h\r\n\r\n";
        session.far.write_all(request).unwrap();
        session.near.read_exact(&mut request.clone()).unwrap();
        wait_until("the hit is counted", || lab.get("/api/v1/firewall/l7-rules/no-admin")["hits"] == hits);
    };
    for (place, session) in guarded.iter_mut().enumerate() {
        ask(session, place + 1);
    }
    // The other one shows that the agent has had its time to do the same to the guarded ones.
    ask(&mut other, 3);
    assert_eq!(other.far.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    guarded.iter_mut().for_each(Session::works);
    let rule = lab.get("/api/v1/firewall/l7-rules/no-admin");
    assert_eq!((&rule["hits"], &rule["enforced"]), (&3.into(), &1.into()), "{rule}");
    assert_eq!(lab.metric("ebpfsentinel_blocked{kind=\"flow\"}"), 1.0);
    let said = agent.stop();
    let told = |action: &str| said.lines().filter(|line| line.contains("no-admin") && line.contains(action)).count();
    assert_eq!((told("action=spared"), told("action=blocked")), (2, 1), "{said}");
}

/// Who sends in the name of another shuts that one's port for ten seconds, and has nobody reset. When that goes on it is
/// blocked again, as long as the rule is there.
#[test]
fn a_forged_packet_shuts_a_port_for_a_short_time_only() {
    const PSH_ACK: u8 = 0x18;
    let lab = Lab::new();
    let request = b"GET /admin HTTP/1.1\r\nHost: h\r\n\r\n";
    let l7 = "[l7]\nmode = \"block\"\n[[l7.rules]]\nid = \"no-admin\"\npriority = 1\naction = \"deny\"\n\
              protocol = \"http\"\npath = \"/admin\"\n";
    let agent = lab.start(&format!("{}{l7}", config("", "mode = \"block\"", &[])));
    let rule = || lab.get("/api/v1/firewall/l7-rules/no-admin");
    let blocked = || lab.metric("ebpfsentinel_blocked{kind=\"flow\"}");
    let forged = |port: u16, at: usize| {
        let packet = Packet::new().between(WORLD, HOST).tcp(port, 8123).flags(PSH_ACK);
        packet.numbers(77_777 + at as u32, 1).payload(if at == 0 { request } else { b"more" })
    };
    assert!(lab.passes(forged(45555, 0)) && lab.passes(forged(45556, 0)));
    wait_until("they are blocked", || rule()["enforced"] == 2 && blocked() == 2.0);
    // A genuine one is reset, and only that.
    let mut genuine = Session::open(&lab, HOST, 8124);
    genuine.far.write_all(request).unwrap();
    genuine.near.read_exact(&mut request.clone()).unwrap();
    assert_eq!(genuine.far.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let sent =
        |worker: u32| lab.metric(&format!("ebpfsentinel_tcp_resets_total{{worker=\"{worker}\",result=\"sent\"}}"));
    wait_until("it is counted", || (0..16).map(sent).sum::<f64>() == 1.0);
    // The blocks of the forged ones end by themselves, long before that.
    wait_until("the blocks have ended", || blocked() == 1.0);
    assert!(lab.passes(forged(45556, request.len())));
    wait_until("it is blocked again", || blocked() == 2.0);
    assert!(!lab.passes(forged(45556, request.len() + 4)));
    let listener = lab.host.run(|| TcpListener::bind((HOST, 8123))).unwrap().unwrap();
    let far = lab.world.run(|| {
        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
        bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(WORLD.parse().unwrap(), 45555))).unwrap();
        connect(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(HOST.parse().unwrap(), 8123))).unwrap();
        TcpStream::from(socket)
    });
    let far = far.unwrap();
    let (near, _) = listener.accept().unwrap();
    let mut owner = Session { near, far };
    owner.works();
    assert_eq!((&rule()["hits"], &rule()["enforced"]), (&3.into(), &3.into()));
    lab.write_config(
        &std::fs::read_to_string(lab.config_path())
            .unwrap()
            .replace("/admin", "/other")
            .replace("no-admin", "no-other"),
    );
    lab.ask(Method::Post, "/api/v1/config/reload", None);
    wait_until("the block has ended", || blocked() == 1.0);
    let is_blocked = || {
        let flows = lab.get("/api/v1/flows?limit=100");
        flows.as_array().unwrap().iter().any(|flow| flow.to_string().contains("45556") && flow["blocked"] == true)
    };
    assert!(is_blocked());
    assert!(lab.passes(forged(45556, request.len() + 4)));
    wait_until("it is let go", || !is_blocked());
    assert!(lab.passes(forged(45556, request.len() + 8)));
    agent.stop();
}

#[test]
fn without_the_guard_everybody_is_out() {
    let lab = Lab::new();
    let _session = Session::open(&lab, HOST, 22);
    let agent = lab.start(&hostile("anti_lockout = { enabled = false }"));
    assert!(!lab.passes(syn(WORLD, 22)) && !lab.passes(syn(WORLD, 8080)));
    agent.stop();
}
