use super::*;

/// The table of where clients go: with nothing allowed, and with `allow_private`.
#[test]
fn only_the_internet_is_outside() {
    let check = |addresses: &[&str], want: fn(Option<Forbidden>) -> bool, what: &str| {
        for address in addresses {
            let got = forbidden(address.parse().unwrap());
            assert!(want(got), "{address} should be {what}, and is {got:?}");
        }
    };
    let open =
        ["1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0"];
    check(&open, |got| got.is_none(), "open");
    let open = ["169.253.255.255", "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0", "223.255.255.255"];
    check(&open, |got| got.is_none(), "open");
    let open =
        ["2606:4700::1111", "2000::1", "2a00:1450:4001::8", "64:ff9b::101:101", "2002:101:101::1", "::ffff:8.8.8.8"];
    check(&open, |got| got.is_none(), "open");
    let private =
        ["10.0.0.0", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "127.0.0.1", "127.9.9.9"];
    check(&private, |got| matches!(got, Some(Forbidden::Private(_))), "private");
    let private =
        ["100.64.0.0", "100.127.255.255", "192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "198.19.0.1"];
    check(&private, |got| matches!(got, Some(Forbidden::Private(_))), "private");
    let private = ["::1", "fc00::1", "fdff::1", "fec0::1", "2001:db8::1", "3fff:fff::1", "64:ff9b:1::8.8.8.8"];
    check(&private, |got| matches!(got, Some(Forbidden::Private(_))), "private");
    // The same in other coats: mapped, compatible, translated, NAT64, 6to4, ISATAP.
    let private = ["::ffff:10.0.0.1", "::10.0.0.1", "::ffff:0:10.0.0.1", "64:ff9b::10.0.0.1", "2002:a00:1::1"];
    check(&private, |got| matches!(got, Some(Forbidden::Private(_))), "private");
    let private = ["2606:4700::5efe:10.0.0.1", "2606:4700::200:5efe:127.0.0.1", "::ffff:127.0.0.1", "2002:7f00:1::"];
    check(&private, |got| matches!(got, Some(Forbidden::Private(_))), "private");
    let never =
        ["0.0.0.0", "0.1.2.3", "169.254.0.1", "169.254.169.254", "100.100.100.200", "192.0.0.192", "168.63.129.16"];
    check(&never, |got| matches!(got, Some(Forbidden::Never(_))), "closed");
    let never = ["224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "192.0.0.1", "192.88.99.1"];
    check(&never, |got| matches!(got, Some(Forbidden::Never(_))), "closed");
    let never = ["::", "fe80::1", "febf::1", "ff02::1", "fd00:ec2::254", "2001::1", "2001:10::1", "100::1", "4000::1"];
    check(&never, |got| matches!(got, Some(Forbidden::Never(_))), "closed");
    // Also to those who set allow_private, as the rest of fc00::/7 is not.
    let never =
        ["fd00:ec2::23", "fd00:ec2::253", "fd00:ec2:ffff::1", "fd20:ce::254", "fd20:ce:0:1::", "fd00:c1::a9fe:a9fe"];
    check(&never, |got| got == Some(Forbidden::Never("metadata service of a cloud")), "closed");
    let never = ["fd00:42::42", "64:ff9b:1::169.254.169.254", "64:ff9b:1:2:3:4:100.100.100.200"];
    check(&never, |got| got == Some(Forbidden::Never("metadata service of a cloud")), "closed");
    let private = ["fd00:ec1:ffff::254", "fd00:ec3::254", "fd20:cd::254", "fd20:cf::254", "fd00:c0::1", "fd00:c2::1"];
    check(&private, |got| got == Some(Forbidden::Private("unique local")), "private");
    let private = ["fd00:42::41", "fd00:42:0:1::42"];
    check(&private, |got| got == Some(Forbidden::Private("unique local")), "private");
    for host in ["fd00:ec2::254", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "::ffff:169.254.169.254"] {
        let error = Url::parse(&format!("https://[{host}]/"), false, true).unwrap_err();
        assert!(error.contains("never connected to"), "{error}");
    }
    let never =
        ["::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "2606:4700::5efe:169.254.169.254"];
    check(&never, |got| matches!(got, Some(Forbidden::Never(_))), "closed");
}

#[test]
fn a_url_says_what_is_wrong_with_it_and_hides_its_path() {
    let url = Url::parse("https://hooks.example.org:8443/services/T000/s3cret?x=1", false, false).unwrap();
    assert_eq!(url.to_string(), "https://hooks.example.org:8443/***");
    assert_eq!(format!("{url:?}"), "https://hooks.example.org:8443/***");
    assert_eq!(Url::parse("http://example.org", true, false).unwrap().to_string(), "http://example.org");
    assert!(Url::parse("https://127.0.0.1:1/x", false, true).is_ok());
    assert!(Url::parse("https://[fd00::1]/x", false, true).is_ok());
    let check = |text: &str, insecure: bool, allow_private: bool, part: &str| {
        let error = Url::parse(text, insecure, allow_private).unwrap_err();
        assert!(error.contains(part) && !error.contains("s3cret"), "{text}: {error}");
    };
    check("http://example.org/s3cret", false, false, "set insecure = true");
    check("ftp://example.org/s3cret", true, true, "only https and http");
    check("/s3cret", false, false, "only https and http are spoken");
    check("example.org", false, false, "only https and http are spoken");
    check("https://user:s3cret@example.org/", false, false, "send them in a header");
    check("https:///s3cret", false, false, "not a URL");
    check("https://", false, false, "not a URL");
    check("https://example.org:/s3cret", false, false, "not a URL");
    check("https://example.org:0/s3cret", false, false, "not a URL");
    check("https://example.org:99999/s3cret", false, false, "not a URL");
    check("https://example.org/s3cret#x", false, false, "not a URL");
    check("https://example.org/s3cret\r\nX: y", false, false, "not a URL");
    check("https://exämple.org/s3cret", false, false, "not a URL");
    check(
        "https://10.0.0.1/s3cret",
        false,
        false,
        "10.0.0.1 is an address of this host or its networks (private); set allow_private = true",
    );
    check("https://[::ffff:127.0.0.1]/s3cret", false, false, "(loopback)");
    check("https://169.254.169.254/s3cret", false, true, "is never connected to (metadata service of a cloud)");
    check(&format!("https://example.org/{}", "x".repeat(URL_MAX)), false, false, "is the limit");
}

/// Names and odd ways to write a number are seen after they were resolved, and nothing is connected to.
#[test]
fn what_a_name_resolves_to_is_checked() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = ClientConfig { insecure: true, ..ClientConfig::default() };
    let client = Client::new(config).unwrap();
    for host in ["localhost", "2130706433", "0x7f.1", "0177.0.0.1", "127.1"] {
        let url = Url::parse(&format!("http://{host}:{port}/"), true, false).unwrap();
        let error = client.post(&url, &[], b"x").unwrap_err();
        assert!(matches!(error, OutboundError::Refused(_)), "{host}: {error}");
        let shown = error.to_string();
        assert!(shown.starts_with(host) && shown.contains("set allow_private = true"), "{host}: {shown}");
        assert!(client.get(&url, &[], &Validators::default()).is_err());
    }
    // A URL that another client could ask.
    let url = Url::parse(&format!("http://127.0.0.1:{port}/"), true, true).unwrap();
    assert!(matches!(client.post(&url, &[], b"x"), Err(OutboundError::Refused(_))));
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "somebody connected");
}

#[test]
fn retry_after_is_seconds_or_a_date() {
    let now = "1994-11-06T08:49:00Z".parse().unwrap();
    let secs = |text: &str| retry_after(text, now).map(|time| time.as_secs());
    assert_eq!(secs("120"), Some(120));
    assert_eq!(secs(" 0 "), Some(0));
    assert_eq!(secs("Sun, 06 Nov 1994 08:49:37 GMT"), Some(37));
    assert_eq!(secs("Sun, 06 Nov 1994 08:48:37 GMT"), Some(0));
    assert_eq!(secs("-1"), None);
    assert_eq!(secs("soon"), None);
}

#[test]
fn a_ca_file_says_what_is_wrong_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    let check = |bytes: &[u8], part: &str| {
        std::fs::write(&path, bytes).unwrap();
        let error = certificates(&path).unwrap_err();
        assert!(error.starts_with(path.to_str().unwrap()) && error.contains(part), "{error}");
    };
    check(b"", "no certificate in it");
    check(b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n", "not a PEM file");
    check(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "ca.pem: ");
    assert!(certificates(folder.path()).unwrap_err().contains("not a regular file"));
    assert!(certificates(&folder.path().join("none")).unwrap_err().contains("cannot be read: No such file"));
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&path, key.cert.pem()).unwrap();
    assert_eq!(certificates(&path).unwrap().len(), 1);
}
