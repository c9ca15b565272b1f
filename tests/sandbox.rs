//! The walls of the sandbox, each on a thread of its own: what they hold back, and that nothing more is kept than is
//! needed. Needs root.

use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use caps::Capability;
use ebpfsentinel::bpf::attach::{self, XdpMode};
use ebpfsentinel::bpf::xdp_firewall::{Switches, XdpFirewall};
use ebpfsentinel::enrichment::{Processes, Scanner};
use ebpfsentinel::lab::Namespace;
use ebpfsentinel::supervise::Supervisor;
use ebpfsentinel::system::harden::{self, KEPT, LOOKING, Plan, Sandbox};
use nix::errno::Errno;

/// Runs `work` on a thread that ends with it, and so do its walls.
fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::spawn(work).join().unwrap()
}

/// The words that an error ends with, `done` if there is none.
fn told<T>(result: io::Result<T>) -> String {
    match result {
        Ok(_) => "done".to_owned(),
        Err(error) => error.raw_os_error().map_or_else(|| error.to_string(), |code| Errno::from_raw(code).to_string()),
    }
}

/// A field of what the kernel says of the calling thread.
fn kernel_says(field: &str) -> String {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap().trim().to_owned()
}

const NO_ACCESS: &str = "EACCES: Permission denied";
const NOT_PERMITTED: &str = "EPERM: Operation not permitted";

#[test]
fn files_are_read_and_written_where_the_plan_says() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| {
        let path = folder.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "text").unwrap();
        path
    };
    let (read, write, other) = (place("read"), place("write"), place("other"));
    let plan = Plan { read: vec![read.clone()], write: vec![write.clone()], ..Plan::default() };
    let secret = folder.path().join("fresh-key.pem");
    let lines = aside(move || {
        let sandbox = Sandbox::enter(&plan);
        let status = sandbox.status();
        assert_eq!((status.landlock.as_str(), status.failures), ("enforced", Vec::new()));
        let more = |path: PathBuf| Plan { read: vec![path], ..Plan::default() };
        let refusal = sandbox.refuses(&more(secret)).unwrap();
        assert!(refusal.ends_with("does not let it be read; restart the agent"), "{refusal}");
        assert_eq!(sandbox.refuses(&more(read.join("new/key.pem"))), None);
        assert_eq!(sandbox.refuses(&more(write.join("key.pem"))), None);
        let writes = Plan { write: vec![read.clone()], ..Plan::default() };
        assert!(sandbox.refuses(&writes).unwrap().contains("let it be written"));
        assert!(sandbox.refuses(&more(read.join("../other/file"))).is_some());
        [
            ("read where it reads", told(fs::read(read.join("file")))),
            ("write where it reads", told(fs::write(read.join("file"), "x"))),
            ("write where it writes", told(fs::write(write.join("new"), "x"))),
            ("rename where it writes", told(fs::rename(write.join("new"), write.join("newer")))),
            ("read elsewhere", told(fs::read(other.join("file")))),
            ("list elsewhere", told(fs::read_dir(&other))),
            ("write elsewhere", told(fs::write(other.join("new"), "x"))),
            ("move out", told(fs::rename(write.join("newer"), other.join("newer")))),
            ("read what the system has", told(fs::read("/etc/hosts"))),
            ("write what the system has", told(fs::write("/etc/ebs-sandbox-test", "x"))),
            ("set a switch of routes", told(fs::write("/proc/sys/net/ipv4/conf/lo/forwarding", switch()))),
            ("set another", told(fs::write("/proc/sys/net/ipv4/ip_forward", "0"))),
            ("set the kernel's", told(fs::OpenOptions::new().write(true).open("/proc/sys/kernel/core_pattern"))),
            ("start a program", told(Command::new("/bin/true").status())),
        ]
    });
    let lines: Vec<String> = lines.iter().map(|(what, outcome)| format!("{what}: {outcome}")).collect();
    let expected = [
        "read where it reads: done".to_owned(),
        format!("write where it reads: {NO_ACCESS}"),
        "write where it writes: done".to_owned(),
        "rename where it writes: done".to_owned(),
        format!("read elsewhere: {NO_ACCESS}"),
        format!("list elsewhere: {NO_ACCESS}"),
        format!("write elsewhere: {NO_ACCESS}"),
        format!("move out: {NO_ACCESS}"),
        "read what the system has: done".to_owned(),
        format!("write what the system has: {NO_ACCESS}"),
        "set a switch of routes: done".to_owned(),
        format!("set another: {NO_ACCESS}"),
        format!("set the kernel's: {NO_ACCESS}"),
        format!("start a program: {NO_ACCESS}"),
    ];
    assert_eq!(lines, expected);
}

/// A file is judged by where it lies: where links lead at the start is open, and what is put beside it later.
#[test]
fn links_are_followed_to_where_they_lead() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    for name in ["live", "middle", "archive", "other"] {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join("file"), "text").unwrap();
    }
    symlink("../archive/file", root.join("middle/two")).unwrap();
    symlink("../middle/two", root.join("live/one")).unwrap();
    let (missing, named) = (root.join("none/key.pem"), root.join("live/one"));
    let plan = Plan { read: vec![named.clone(), missing.clone()], ..Plan::default() };
    let (outside, ask) = std::sync::mpsc::channel();
    let (make, made) = std::sync::mpsc::channel();
    let late = missing.clone();
    let maker = std::thread::spawn(move || {
        ask.recv().unwrap();
        fs::create_dir(late.parent().unwrap()).unwrap();
        fs::write(&late, "text").unwrap();
        make.send(()).unwrap();
    });
    let lines = aside(move || {
        let sandbox = Sandbox::enter(&plan);
        let status = sandbox.status();
        assert_eq!((status.failures, status.missing), (Vec::new(), vec![missing.display().to_string()]));
        let open = |name: &str| status.read.contains(&root.join(name).display().to_string());
        assert_eq!(["live", "middle", "archive", "other", "none"].map(open), [false, true, true, false, false]);
        // What was missing is no reason to refuse what is as it was, and one as soon as it would be read.
        assert_eq!(sandbox.refuses(&plan), None);
        outside.send(()).unwrap();
        made.recv().unwrap();
        assert!(sandbox.refuses(&plan).unwrap().contains("none/key.pem"));
        ["live/one", "middle/file", "archive/file", "live/file", "other/file"]
            .map(|name| told(fs::read(root.join(name))))
    });
    maker.join().unwrap();
    assert_eq!(lines, ["done", "done", "done", NO_ACCESS, NO_ACCESS]);
}

/// What the switch is already.
fn switch() -> String {
    fs::read_to_string("/proc/sys/net/ipv4/conf/lo/forwarding").unwrap()
}

#[test]
fn capabilities_that_are_given_up_stay_away() {
    let (effective, bounds, privileges) = aside(|| {
        let sandbox = Sandbox::enter(&Plan::default());
        let status = sandbox.status();
        assert_eq!(status.capabilities, ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON"]);
        assert!(status.no_new_privs && status.enabled);
        // A thread of it is no richer.
        std::thread::spawn(|| (kernel_says("CapEff"), kernel_says("CapBnd"), kernel_says("NoNewPrivs"))).join().unwrap()
    });
    let bits = KEPT.iter().fold(0, |bits, one| bits | one.bitmask());
    assert_eq!((effective, bounds, privileges), (format!("{bits:016x}"), format!("{bits:016x}"), "1".to_owned()));
    assert_eq!(Sandbox::off().status().landlock, "off");
}

/// What a thread with these capabilities can do of what the agent does.
fn able(kept: Vec<Capability>) -> Vec<&'static str> {
    let namespace = Namespace::new("caps").unwrap();
    let handed = namespace.run(move || {
        harden::keep_only(&kept).unwrap();
        let raw = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Inet,
            nix::sys::socket::SockType::Raw,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
            nix::sys::socket::SockProtocol::Raw,
        );
        let loaded = XdpFirewall::load(&Switches::default());
        let attached = loaded.as_ref().ok().map(|xdp| attach::xdp(xdp.program(), 1, "lo", XdpMode::Generic));
        let mut able = Vec::new();
        able.extend(raw.is_ok().then_some("reset"));
        able.extend(loaded.is_ok().then_some("load"));
        able.extend(attached.is_some_and(|attached| attached.is_ok()).then_some("attach"));
        able
    });
    handed.unwrap()
}

#[test]
fn each_capability_is_needed() {
    assert_eq!(able(KEPT.to_vec()), ["reset", "load", "attach"]);
    let without = |gone: Capability| able(KEPT.iter().copied().filter(|one| *one != gone).collect());
    assert_eq!(without(Capability::CAP_NET_RAW), ["load", "attach"]);
    for gone in [Capability::CAP_BPF, Capability::CAP_PERFMON, Capability::CAP_NET_ADMIN] {
        assert_eq!(without(gone), ["reset"], "without {gone}");
    }
}

#[test]
fn the_thread_that_looks_up_processes_needs_its_capabilities_and_no_more() {
    // A process of another user that has both ends of a connection as its input and output.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let ends = [client.local_addr().unwrap(), client.peer_addr().unwrap()];
    let stranger = Command::new("sleep")
        .arg("600")
        .uid(65_534)
        .gid(65_534)
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(client)))
        .stdout(Stdio::null())
        .spawn();
    let mut stranger = stranger.unwrap();
    let found = |kept: Vec<Capability>| {
        let (supervisor, _failures) = Supervisor::new().unwrap();
        let (scanner, ()) = Scanner::start(&supervisor, move || harden::keep_only(&kept).unwrap()).unwrap();
        let mut processes = Processes::open(scanner, Instant::now()).unwrap();
        processes.of_flow(6, ends, Instant::now()).map(|process| process.pid)
    };
    let (all, neither, one, other) =
        (found(LOOKING.to_vec()), found(Vec::new()), found(vec![LOOKING[0]]), found(vec![LOOKING[1]]));
    // Behind the walls, with a scanner from before them.
    let (supervisor, _failures) = Supervisor::new().unwrap();
    let (scanner, ()) = Scanner::start(&supervisor, || harden::keep_only(LOOKING).unwrap()).unwrap();
    let enclosed = aside(move || {
        Sandbox::enter(&Plan::default());
        harden::filter_this_thread().unwrap();
        let mut processes = Processes::open(scanner, Instant::now()).unwrap();
        processes.of_flow(6, ends, Instant::now()).map(|process| process.pid)
    });
    let pid = stranger.id();
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert_eq!((all, neither, one, other, enclosed), (Some(pid), None, None, None, Some(pid)));
}

/// A system call that needs no memory; its error.
fn call(number: libc::c_long, arguments: [libc::c_long; 3]) -> String {
    // SAFETY: all arguments are numbers or null pointers; where one of these calls went well, the test would fail.
    let rc = unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2]) };
    if rc >= 0 { "done".to_owned() } else { Errno::last().to_string() }
}

#[test]
fn system_calls_that_are_not_on_the_list_are_refused() {
    aside(|| {
        harden::filter_this_thread().unwrap();
        assert_eq!((kernel_says("Seccomp").as_str(), kernel_says("NoNewPrivs").as_str()), ("2", "1"));
        let user = libc::c_long::from(libc::CLONE_NEWUSER);
        let tcp = libc::c_long::from(libc::SOCK_STREAM);
        for (what, number, arguments) in [
            ("execve", libc::SYS_execve, [0, 0, 0]),
            ("ptrace", libc::SYS_ptrace, [0, 0, 0]),
            ("unshare", libc::SYS_unshare, [user, 0, 0]),
            ("setns", libc::SYS_setns, [-1, 0, 0]),
            ("mount", libc::SYS_mount, [0, 0, 0]),
            ("init_module", libc::SYS_init_module, [0, 0, 0]),
            ("keyctl", libc::SYS_keyctl, [0, 0, 0]),
            ("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0]),
            ("userfaultfd", libc::SYS_userfaultfd, [0, 0, 0]),
            ("perf_event_open", libc::SYS_perf_event_open, [0, 0, 0]),
            ("process_vm_writev", libc::SYS_process_vm_writev, [0, 0, 0]),
            ("setuid", libc::SYS_setuid, [0, 0, 0]),
            ("kill", libc::SYS_kill, [1, 0, 0]),
            ("reboot", libc::SYS_reboot, [0, 0, 0]),
            ("a process", libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0]),
            ("a namespace", libc::SYS_clone, [user, 0, 0]),
            ("AF_ALG", libc::SYS_socket, [libc::AF_ALG.into(), tcp, 0]),
            ("AF_VSOCK", libc::SYS_socket, [libc::AF_VSOCK.into(), tcp, 0]),
            ("AF_PACKET", libc::SYS_socket, [libc::AF_PACKET.into(), libc::SOCK_RAW.into(), 0]),
            ("a call that no kernel has", 9999, [0, 0, 0]),
        ] {
            assert_eq!(call(number, arguments), NOT_PERMITTED, "{what}");
        }
        assert_eq!(call(libc::SYS_clone3, [0, 0, 0]), "ENOSYS: Function not implemented");
        assert_eq!(told(Command::new("/bin/true").spawn()), NOT_PERMITTED);
    });
}

#[test]
fn what_the_agent_lives_on_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_owned();
    aside(move || {
        Sandbox::enter(&Plan { write: vec![state.clone()], ..Plan::default() });
        harden::filter_this_thread().unwrap();
        // Threads, in spite of clone3.
        assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
        // The network, by name.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(("localhost", port).to_socket_addrs().unwrap().next().is_some());
        let _client = TcpStream::connect(("localhost", port)).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(state.join("socket")).unwrap();
        // The store: file locks, growth, fsync, a file that takes another's place.
        let table: redb::TableDefinition<'_, u64, &str> = redb::TableDefinition::new("table");
        let database = redb::Database::create(state.join("store.redb")).unwrap();
        let write = database.begin_write().unwrap();
        write.open_table(table).unwrap().insert(1, "one").unwrap();
        write.commit().unwrap();
        drop(database);
        fs::rename(state.join("store.redb"), state.join("other.redb")).unwrap();
        // The trusted roots, and what TLS draws from the kernel.
        let roots = rustls_native_certs::load_native_certs();
        assert!(!roots.certs.is_empty() && roots.errors.is_empty(), "{:?}", roots.errors);
        let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        assert!(key.cert.pem().starts_with("-----BEGIN"));
        // The runtime of gRPC.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let taken = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (server, _client) = tokio::join!(listener.accept(), tokio::net::TcpStream::connect(address));
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            server.is_ok()
        });
        assert!(taken);
        // Programs and maps.
        XdpFirewall::load(&Switches::default()).unwrap();
    });
}
