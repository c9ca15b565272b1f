//! Which names a client may call us by.
//!
//! A web page can make a browser connect to 127.0.0.1 under the page's own name (DNS rebinding); the name is then in
//! `Host`. So only names that cannot be an attacker's are taken, and a page of another origin is refused by `Origin`.
//!
//! An address is always taken. The rebinding is a name server's lie about a name; where `Host` holds an address, the browser
//! asked no name server, and the page's origin is that address itself: what is there is us, or whoever passes it on to us
//! (NAT, a published port of a container), whose addresses nobody here knows. Another page's `Origin` is refused all the same.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The names of this host.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    names: HashSet<String>,
}

impl Hosts {
    /// `localhost`, the host's name (with its aliases in /etc/hosts), and `extra` names.
    pub fn new(extra: &[String]) -> Hosts {
        let mut hosts = Hosts::default();
        hosts.names.insert("localhost".to_owned());
        hosts.names.extend(extra.iter().map(|name| name.to_ascii_lowercase()));
        if let Some(name) = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()) {
            let name = name.to_ascii_lowercase();
            let file = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
            hosts.names.extend(aliases(&file, &name));
            hosts.names.insert(name);
        }
        hosts
    }

    /// Whether `authority` (`name`, `name:port`, `[v6]:port`) is this host, or an address.
    pub fn allows(&self, authority: &str) -> bool {
        let Some(host) = host_of(authority) else { return false };
        if host.starts_with('[') || host.parse::<Ipv4Addr>().is_ok() {
            return true;
        }
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        self.names.contains(&name) || name.ends_with(".localhost")
    }
}

/// Other names of `name` in the text of /etc/hosts.
fn aliases(file: &str, name: &str) -> Vec<String> {
    let lines = file.lines().map(|line| line.split('#').next().unwrap_or_default().to_ascii_lowercase());
    let ours = lines.filter(|line| line.split_ascii_whitespace().skip(1).any(|word| word == name));
    ours.flat_map(|line| line.split_ascii_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// The host of `host[:port]`, if it has that form. Any port: a forwarded one is another than ours.
fn host_of(authority: &str) -> Option<&str> {
    let (host, port) = if authority.starts_with('[') {
        let (host, rest) = authority.split_at(authority.find(']')? + 1);
        host[1..host.len() - 1].parse::<Ipv6Addr>().ok()?;
        (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    let name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    let good_host = host.starts_with('[') || (!host.is_empty() && host.bytes().all(name));
    let good_port = port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok());
    (good_host && good_port).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let mut hosts = Hosts::new(&["Agent.Example".to_owned()]);
        hosts.names.insert("box".to_owned());
        let good = "localhost localhost:8080 LOCALHOST. a.localhost agent.example:9 box box:80";
        for authority in good.split_whitespace() {
            assert!(hosts.allows(authority), "{authority}");
        }
        let bad = "evil.example localhost.evil.example box.evil.example a@localhost localhost: :80 [::1 [::1]80 ::1 \
                   localhost:99999 localhost:+80 http://localhost localhost/ notlocalhost";
        for authority in bad.split_whitespace() {
            assert!(!hosts.allows(authority), "{authority}");
        }
        assert!(!hosts.allows(""));
    }

    /// Also those that this host does not have: behind NAT it is called by another's.
    #[test]
    fn addresses() {
        let hosts = Hosts::new(&[]);
        let good =
            "127.0.0.1:1 127.9.9.9 [::1]:8080 [::1] 192.0.2.1:8080 198.51.100.7 [::ffff:127.0.0.1] [2001:db8::7]:443";
        for authority in good.split_whitespace() {
            assert!(hosts.allows(authority), "{authority}");
        }
        // What only looks like one is a name, which a name server may answer for.
        let bad = "1.2.3 1.2.3.4.5 1.2.3.256 127.0.0.1.evil.example 127.1 0x7f000001 2130706433 192.0.2.1. 01.2.3.4 [] [1.2.3.4] \
                   [::1%eth0] [::g] 2001:db8::7 192.0.2.1:x 192.0.2.1:99999";
        for authority in bad.split_whitespace() {
            assert!(!hosts.allows(authority), "{authority}");
        }
    }

    #[test]
    fn aliases_of_the_host() {
        let file = "127.0.0.1 localhost evil.example\n127.0.1.1\tbox.lan Box # ours\n::1 ip6-localhost\n10.0.0.1 other box-2\n";
        assert_eq!(aliases(file, "box"), ["box.lan", "box"]);
    }
}
