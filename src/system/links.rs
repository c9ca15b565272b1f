//! Network links as they come, go, change their names, and are switched on and off (rtnetlink).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkEvent as Cause, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::classify::interfaces::{Device, Joins};

/// Multicast group of link messages, as `bind` takes it.
const RTMGRP_LINK: u32 = 1;

/// The kernel makes dump messages of up to 32 KiB for a buffer that takes them; a link with many virtual functions
/// does not fit into less.
const RECEIVE_MAX: usize = 64 * 1024;

/// Datagrams taken in one turn, so that a storm of changes does not keep main from its signals.
const DATAGRAMS_IN_A_ROW: usize = 256;

/// A network link as last heard of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name now.
    pub name: String,
    /// Whether it is switched on (`ip link set up`), with a cable or without.
    pub up: bool,
    /// On what it stands.
    pub device: Device,
}

/// What happened to a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkChange {
    /// It exists now. Carries whether it is switched on.
    Appeared {
        /// Switched on already.
        up: bool,
    },
    /// It exists no more, or went to another network namespace.
    Vanished,
    /// It has another name now.
    Renamed {
        /// The name that it had.
        from: String,
    },
    /// It was switched on.
    Up,
    /// It was switched off.
    Down,
    /// It stands on another one, is another one's port, or lets its card do other things with frames.
    Rearranged,
}

/// A change of one link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkEvent {
    /// Number of the link. A link that comes back has another.
    pub ifindex: u32,
    /// Its name: the new one after renaming, the last one after vanishing.
    pub name: String,
    /// What happened.
    pub change: LinkChange,
}

/// Hears of the links of the network namespace in which it was made.
pub struct LinkWatch {
    socket: Socket,
    links: BTreeMap<u32, Link>,
    /// The list that was asked for, while it arrives: sequence number, and the links heard of since it began.
    dump: Option<(u32, Vec<u32>)>,
    last_sequence: u32,
}

impl LinkWatch {
    /// Listens, then reads all links, so that none is missed in between.
    pub fn new() -> io::Result<LinkWatch> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, RTMGRP_LINK))?;
        let mut watch = LinkWatch { socket, links: BTreeMap::new(), dump: None, last_sequence: 0 };
        watch.ask()?;
        let mut unused = Vec::new();
        while watch.dump.is_some() {
            watch.receive(&mut unused)?;
        }
        watch.socket.set_non_blocking(true)?;
        Ok(watch)
    }

    /// The links by number, as last heard of.
    pub fn links(&self) -> &BTreeMap<u32, Link> {
        &self.links
    }

    /// On what each of them stands.
    pub fn devices(&self) -> Vec<Device> {
        self.links.values().map(|link| link.device.clone()).collect()
    }

    /// Takes in what has arrived; `changes` gets what differs from before. True when more waits.
    pub fn read(&mut self, changes: &mut Vec<LinkEvent>) -> io::Result<bool> {
        for _ in 0..DATAGRAMS_IN_A_ROW {
            match self.receive(changes) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn receive(&mut self, changes: &mut Vec<LinkEvent>) -> io::Result<()> {
        // `recv` fills what a Vec has as spare room.
        let mut buffer = Vec::with_capacity(RECEIVE_MAX);
        match self.socket.recv_from(&mut buffer, 0) {
            Ok((_, from)) if from.port_number() != 0 => Ok(()),
            Ok(_) => self.take(&buffer, changes),
            // The kernel dropped messages for which there was no room: only the whole list tells the truth now.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.ask(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Asks for the list of all links.
    fn ask(&mut self) -> io::Result<()> {
        self.last_sequence = self.last_sequence.wrapping_add(1).max(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        header.sequence_number = self.last_sequence;
        let mut request =
            NetlinkMessage::new(header, NetlinkPayload::from(RouteNetlinkMessage::GetLink(LinkMessage::default())));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        match self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0) {
            Ok(_) => self.dump = Some((self.last_sequence, Vec::new())),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn take(&mut self, datagram: &[u8], changes: &mut Vec<LinkEvent>) -> io::Result<()> {
        let mut rest = datagram;
        while rest.len() >= 16 {
            let declared = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            if declared < 16 || declared > rest.len() {
                return Err(io::Error::other("the kernel's link message is cut off"));
            }
            match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&rest[..declared]) {
                Ok(message) => self.take_message(message, changes)?,
                // A newer kernel's attribute must not end the watch.
                Err(error) => log::debug!("a link message is not understood: {error}"),
            }
            rest = &rest[declared.next_multiple_of(4).min(rest.len())..];
        }
        Ok(())
    }

    fn take_message(
        &mut self,
        message: NetlinkMessage<RouteNetlinkMessage>,
        changes: &mut Vec<LinkEvent>,
    ) -> io::Result<()> {
        let sequence = message.header.sequence_number;
        let interrupted = message.header.flags & NLM_F_DUMP_INTR != 0;
        match message.payload {
            // Bridges tell of their ports on the same channel: a port that leaves is "deleted", its link lives on.
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))
                if link.header.interface_family == AddressFamily::Unspec =>
            {
                self.exists(&link, changes);
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link))
                if link.header.interface_family == AddressFamily::Unspec =>
            {
                self.vanished(link.header.index, changes);
            }
            NetlinkPayload::Done(_) => {
                let Some((asked, _)) = &self.dump else {
                    return Ok(());
                };
                if interrupted || *asked != sequence {
                    return self.ask();
                }
                let seen = self.dump.take().map(|(_, seen)| seen).unwrap_or_default();
                let gone: Vec<u32> = self.links.keys().copied().filter(|index| !seen.contains(index)).collect();
                gone.into_iter().for_each(|index| self.vanished(index, changes));
            }
            NetlinkPayload::Error(error) if error.code.is_some() => {
                let error = error.to_io();
                if error.raw_os_error() != Some(libc::EBUSY) {
                    return Err(error);
                }
                // An older list still arrives and occupies the socket. No list has number 0, so at the older one's
                // end this one is asked for again.
                self.dump = Some((0, Vec::new()));
            }
            NetlinkPayload::Overrun(_) => return self.ask(),
            _ => {}
        }
        Ok(())
    }

    fn exists(&mut self, link: &LinkMessage, changes: &mut Vec<LinkEvent>) {
        let ifindex = link.header.index;
        let name = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
        let Some(name) = name else {
            return;
        };
        let up = link.header.flags.contains(LinkFlags::Up);
        if let Some((_, seen)) = &mut self.dump {
            seen.push(ifindex);
        }
        let mut tell = |change| changes.push(LinkEvent { ifindex, name: name.clone(), change });
        let device = device_of(link);
        let features = link.attributes.contains(&LinkAttribute::Event(Cause::Features));
        match self.links.insert(ifindex, Link { name: name.clone(), up, device: device.clone() }) {
            None => tell(LinkChange::Appeared { up }),
            Some(before) => {
                if before.name != name {
                    tell(LinkChange::Renamed { from: before.name });
                }
                match (before.up, up) {
                    (false, true) => tell(LinkChange::Up),
                    (true, false) => tell(LinkChange::Down),
                    _ => {}
                }
                if before.device != device || features {
                    tell(LinkChange::Rearranged);
                }
            }
        }
    }

    fn vanished(&mut self, ifindex: u32, changes: &mut Vec<LinkEvent>) {
        if let Some((_, seen)) = &mut self.dump {
            seen.retain(|index| *index != ifindex);
        }
        if let Some(link) = self.links.remove(&ifindex) {
            changes.push(LinkEvent { ifindex, name: link.name, change: LinkChange::Vanished });
        }
    }
}

/// On what a link stands.
fn device_of(link: &LinkMessage) -> Device {
    let mut device = Device { ifindex: link.header.index, ..Device::default() };
    let (mut lower, mut elsewhere, mut vlan, mut shares) = (None, false, None, false);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Link(index) => lower = Some(*index),
            // The number of a link in another network namespace.
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::Controller(index) => device.master = Some(*index).filter(|index| *index != 0),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(InfoKind::Bridge) => device.joins = Some(Joins::Bridge),
                        LinkInfo::Kind(InfoKind::Bond | InfoKind::Team) => device.joins = Some(Joins::Bundle),
                        LinkInfo::Kind(InfoKind::Vrf) => device.joins = Some(Joins::Vrf),
                        LinkInfo::Kind(
                            InfoKind::Vlan
                            | InfoKind::MacVlan
                            | InfoKind::MacVtap
                            | InfoKind::IpVlan
                            | InfoKind::IpVtap,
                        ) => shares = true,
                        LinkInfo::Data(InfoData::Vlan(data)) => {
                            vlan = data.iter().find_map(|one| match one {
                                InfoVlan::Id(id) => Some(*id),
                                _ => None,
                            });
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    device.lower = lower.filter(|_| shares && !elsewhere).map(|lower| (lower, vlan));
    device
}

impl AsRawFd for LinkWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    /// Runs `test` in a network namespace of its own, which ends with its thread: nothing has to be cleaned up.
    fn in_namespace(test: impl FnOnce() + Send + 'static) {
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("tests of links need root");
            test();
        })
        .join()
        .unwrap();
    }

    fn ip(arguments: &str) {
        let status = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
        assert!(status.success(), "ip {arguments}");
    }

    /// Reads until there are as many events as wanted, and compares names and changes.
    fn expect(watch: &mut LinkWatch, want: &[(&str, LinkChange)]) {
        let end = Instant::now() + Duration::from_secs(5);
        let mut events = Vec::new();
        while events.len() < want.len() && Instant::now() < end {
            watch.read(&mut events).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
        let got: Vec<_> = events.iter().map(|event| (event.name.as_str(), event.change.clone())).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn a_link_is_followed_through_its_life() {
        in_namespace(|| {
            ip("link add name before type bridge");
            let mut watch = LinkWatch::new().unwrap();
            let names: Vec<_> = watch.links().values().map(|link| link.name.as_str()).collect();
            assert_eq!(names, ["lo", "before"]);
            ip("link add name one type bridge");
            expect(&mut watch, &[("one", LinkChange::Appeared { up: false })]);
            ip("link set one up");
            expect(&mut watch, &[("one", LinkChange::Up)]);
            ip("link set one mtu 1400");
            ip("link set one down");
            expect(&mut watch, &[("one", LinkChange::Down)]);
            ip("link set one name two");
            expect(&mut watch, &[("two", LinkChange::Renamed { from: "one".into() })]);
            let first = *watch.links().iter().find(|(_, link)| link.name == "two").unwrap().0;
            ip("link del two");
            expect(&mut watch, &[("two", LinkChange::Vanished)]);
            ip("link add name two type bridge");
            expect(&mut watch, &[("two", LinkChange::Appeared { up: false })]);
            assert!(watch.links().get(&first).is_none(), "the number is a new one");
        });
    }

    #[test]
    fn a_link_stands_on_others() {
        in_namespace(|| {
            ip("link add name bridge0 type bridge");
            ip("link add port type veth peer name other");
            let mut watch = LinkWatch::new().unwrap();
            let device = |watch: &LinkWatch, name: &str| {
                watch.links().values().find(|link| link.name == name).unwrap().device.clone()
            };
            let (bridge, port) = (device(&watch, "bridge0"), device(&watch, "port"));
            assert_eq!(bridge, Device { ifindex: bridge.ifindex, joins: Some(Joins::Bridge), ..Device::default() });
            // The peer of a veth is no device that it stands on.
            assert_eq!(port, Device { ifindex: port.ifindex, ..Device::default() });
            ip("link set port master bridge0");
            // The bridge's features are those of its ports.
            let both = [("port", LinkChange::Rearranged), ("bridge0", LinkChange::Rearranged)];
            expect(&mut watch, &both);
            assert_eq!(device(&watch, "port").master, Some(bridge.ifindex));
            ip("link add link other name mac type macvlan");
            expect(&mut watch, &[("mac", LinkChange::Appeared { up: false })]);
            assert_eq!(device(&watch, "mac").lower, Some((device(&watch, "other").ifindex, None)));
        });
    }

    /// This kernel may have no VLAN devices; their messages are these.
    #[test]
    fn a_vlan_device_stands_on_another_device() {
        let message = |more: &[LinkAttribute]| {
            let mut link = LinkMessage::default();
            link.header.index = 7;
            let info = vec![LinkInfo::Kind(InfoKind::Vlan), LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(5)]))];
            link.attributes = vec![LinkAttribute::Link(3), LinkAttribute::LinkInfo(info)];
            link.attributes.extend_from_slice(more);
            device_of(&link)
        };
        assert_eq!(message(&[]), Device { ifindex: 7, lower: Some((3, Some(5))), ..Device::default() });
        assert_eq!(message(&[LinkAttribute::LinkNetNsId(0)]).lower, None);
        assert_eq!(message(&[LinkAttribute::Controller(9)]).master, Some(9));
    }

    #[test]
    fn a_port_that_leaves_its_bridge_has_not_vanished() {
        in_namespace(|| {
            ip("link add name bridge0 type bridge");
            ip("link add port type veth peer name other");
            ip("link set port master bridge0");
            let mut watch = LinkWatch::new().unwrap();
            ip("link set port nomaster");
            // The bridge's features are those of its ports.
            expect(&mut watch, &[("port", LinkChange::Rearranged), ("bridge0", LinkChange::Rearranged)]);
            ip("link del bridge0");
            expect(&mut watch, &[("bridge0", LinkChange::Vanished)]);
            assert!(watch.links().values().any(|link| link.name == "port"));
        });
    }

    #[test]
    fn after_an_overflow_the_whole_list_is_read_again() {
        in_namespace(|| {
            ip("link add name gone type bridge");
            let mut watch = LinkWatch::new().unwrap();
            watch.socket.set_rx_buf_sz(4096_i32).unwrap();
            ip("link del gone");
            for n in 0..30 {
                ip(&format!("link add name many{n} type bridge"));
            }
            let mut lost = false;
            let mut events = Vec::new();
            let end = Instant::now() + Duration::from_secs(10);
            while watch.links().len() != 31 && Instant::now() < end {
                lost |= watch.dump.is_some();
                watch.read(&mut events).unwrap();
                lost |= watch.dump.is_some() || watch.last_sequence > 1;
            }
            assert!(lost, "the test must lose messages");
            assert_eq!(watch.links().len(), 31, "lo and thirty");
            assert!(!watch.links().values().any(|link| link.name == "gone"));
            assert!(events.iter().any(|event| event.name == "gone" && event.change == LinkChange::Vanished));
            assert!(events.iter().any(|event| event.name == "many29"));
        });
    }

    #[test]
    fn a_cut_message_is_an_error_not_a_panic() {
        in_namespace(|| {
            let mut watch = LinkWatch::new().unwrap();
            let mut changes = Vec::new();
            assert!(watch.take(&[255; 20], &mut changes).is_err());
            assert!(watch.take(&[0; 16], &mut changes).is_err());
            assert!(watch.take(&[1, 2, 3], &mut changes).is_ok());
            assert!(changes.is_empty());
        });
    }
}
