use std::os::unix::fs::PermissionsExt;

use super::*;

struct Bench {
    folder: tempfile::TempDir,
    bytes: Gauge,
    torn: Counter,
}

impl Bench {
    fn new() -> Bench {
        Bench { folder: tempfile::tempdir().unwrap(), bytes: Gauge::default(), torn: Counter::default() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("spool")
    }

    fn open(&self, cap: u64) -> Spool {
        Spool::open(&self.path(), cap, self.bytes.clone(), self.torn.clone()).unwrap()
    }

    fn segments(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut paths: Vec<PathBuf> = entries.filter(|path| path.extension().is_some()).collect();
        paths.sort();
        paths
    }
}

fn texts(lent: &[Lent]) -> Vec<String> {
    lent.iter().map(|lent| String::from_utf8(lent.json.clone()).unwrap()).collect()
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

fn fill(spool: &Spool, range: std::ops::Range<u32>) {
    for number in numbers(range) {
        spool.append(number.as_bytes(), 7).unwrap();
    }
}

#[test]
fn what_was_not_acknowledged_comes_again_in_order_also_after_a_restart() {
    let bench = Bench::new();
    let spool = bench.open(1 << 20);
    assert!(spool.read(10).is_empty());
    fill(&spool, 0..10);
    let lent = spool.read(4);
    assert_eq!((texts(&lent), lent[0].accepted_ms), (numbers(0..4), 7));
    assert_eq!(texts(&spool.read(3)), numbers(4..7));
    spool.acknowledge(lent[1].token);
    // As if the process had been killed: nothing is closed or synced.
    let spool = bench.open(1 << 20);
    fill(&spool, 10..12);
    assert_eq!(texts(&spool.read(100)), numbers(2..12));
    spool.rewind();
    let lent = spool.read(100);
    assert_eq!(texts(&lent), numbers(2..12));
    spool.acknowledge(lent[9].token);
    assert_eq!((spool.bytes(), bench.bytes.get()), (0, 0));
    assert!(bench.open(1 << 20).read(100).is_empty());
    spool.tidy();
    assert!(bench.segments().is_empty());
    fill(&spool, 12..14);
    assert_eq!(texts(&spool.read(100)), numbers(12..14));
    assert_eq!(texts(&bench.open(1 << 20).read(100)), numbers(12..14));
    assert_eq!(bench.torn.get(), 0);
    assert_eq!(fs::metadata(bench.path()).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_full_spool_refuses_what_is_new_and_gets_room_from_what_was_sent() {
    let bench = Bench::new();
    let cap = 1 << 20;
    let spool = bench.open(cap);
    let json = vec![b'x'; 1000];
    let mut kept = 0;
    while spool.append(&json, 0).is_ok() {
        kept += 1;
    }
    assert_eq!(kept, cap as usize / 1016);
    assert_eq!((spool.append(&json, 0), spool.append(b"", 0)), (Err("spool_full"), Ok(())));
    assert_eq!(bench.segments().len(), 16, "of 64 KiB each");
    let lent = spool.read(70);
    spool.acknowledge(lent[69].token);
    assert_eq!(bench.segments().len(), 15);
    assert_eq!(spool.bytes(), (kept as u64 - 70) * 1016 + 16);
    fill(&spool, 0..10);
    assert_eq!(spool.append(&vec![b'x'; RECORD_MAX + 1], 0), Err("too_long"));
    spool.set_cap(64 << 10);
    assert_eq!(spool.append(b"", 0), Err("spool_full"));
    let all = spool.read(10_000);
    assert_eq!(all.len(), kept - 70 + 1 + 10);
    assert_eq!(texts(&all[all.len() - 10..]), numbers(0..10));
}

#[test]
fn a_torn_tail_ends_its_segment_and_is_counted() {
    let bench = Bench::new();
    fill(&bench.open(1 << 20), 0..10);
    let first = bench.segments()[0].clone();
    let whole = fs::read(&first).unwrap();
    // Ten records of 17 bytes. Cut anywhere in the last one, or change any byte of it.
    let check = |bytes: &[u8], kept: std::ops::Range<u32>, torn: u64| {
        let bench = Bench::new();
        fs::create_dir(bench.path()).unwrap();
        fs::write(bench.path().join(first.file_name().unwrap()), bytes).unwrap();
        let spool = bench.open(1 << 20);
        spool.append(b"after", 0).unwrap();
        let mut want = numbers(kept);
        want.push("after".to_owned());
        let lent = spool.read(100);
        assert_eq!((texts(&lent), bench.torn.get()), (want, torn), "{} bytes", bytes.len());
        spool.acknowledge(lent.last().unwrap().token);
        assert_eq!(spool.bytes(), 0);
    };
    check(&whole, 0..10, 0);
    for length in 154..170 {
        check(&whole[..length], 0..9, 1);
    }
    check(&whole[..153], 0..9, 0);
    for at in 153..170 {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        check(&bytes, 0..9, 1);
    }
    // A length beyond all bounds, and no byte behind it.
    check(&[&whole[..153], &[0xff; 17][..]].concat(), 0..9, 1);
}

#[test]
fn what_waits_is_seen_from_outside_and_the_end_leaves_nothing() {
    let bench = Bench::new();
    let spool = bench.open(1 << 20);
    fill(&spool, 0..10);
    assert_eq!(waiting_in(&bench.path()).unwrap(), 170, "ten records of 17 bytes");
    let lent = spool.read(4);
    spool.acknowledge(lent[3].token);
    assert_eq!((waiting_in(&bench.path()).unwrap(), spool.end()), (102, false));
    // The last one is torn.
    let first = bench.segments()[0].clone();
    let bytes = fs::read(&first).unwrap();
    fs::write(&first, &bytes[..160]).unwrap();
    let spool = bench.open(1 << 20);
    let lent = spool.read(100);
    assert_eq!((texts(&lent), bench.torn.get()), (numbers(4..9), 1));
    spool.acknowledge(lent[4].token);
    assert!(spool.end());
    assert_eq!((waiting_in(&bench.path()).unwrap(), spool.bytes(), bench.bytes.get()), (0, 0, 0));
    assert!(bench.segments().is_empty());
    fill(&spool, 10..12);
    assert_eq!((texts(&spool.read(100)), spool.end()), (numbers(10..12), true));
    assert!(waiting_in(&bench.folder.path().join("none")).is_err());
}

#[test]
fn a_cursor_that_cannot_be_read_starts_at_the_beginning() {
    let bench = Bench::new();
    let spool = bench.open(1 << 20);
    fill(&spool, 0..5);
    let lent = spool.read(3);
    spool.acknowledge(lent[2].token);
    fs::write(bench.path().join("cursor"), b"torn").unwrap();
    assert_eq!(texts(&bench.open(1 << 20).read(10)), numbers(0..5));
    fs::write(bench.path().join("cursor"), cursor_bytes(Cursor { segment: 1, offset: 1 << 40 })).unwrap();
    assert!(bench.open(1 << 20).read(10).is_empty(), "beyond its segment's end");
}

#[test]
fn the_last_numbers_are_nobodys() {
    let bench = Bench::new();
    fill(&bench.open(1 << 20), 0..3);
    fs::write(path_of(&bench.path(), u64::MAX), b"of somebody else").unwrap();
    fs::write(bench.path().join("cursor"), cursor_bytes(Cursor { segment: u64::MAX, offset: 0 })).unwrap();
    let spool = bench.open(1 << 20);
    fill(&spool, 3..5);
    assert_eq!((texts(&spool.read(10)), bench.torn.get()), (numbers(0..5), 0));
}

#[test]
fn a_disk_that_fails_is_stood_in_for_by_memory() {
    let bench = Bench::new();
    let spool = bench.open(1 << 20);
    fill(&spool, 0..2);
    let first = spool.read(1);
    // No file can be made: as on a full disk, and for the root user too.
    let elsewhere = bench.folder.path().join("elsewhere");
    let fails = |spool: &Spool| {
        fs::rename(bench.path(), &elsewhere).unwrap();
        spool.lock().writer = None;
    };
    fails(&spool);
    fill(&spool, 2..5);
    assert_eq!(spool.in_memory(), 3);
    let lent = spool.read(2);
    assert_eq!((texts(&first), texts(&lent)), (numbers(0..1), numbers(1..3)));
    fill(&spool, 5..6);
    for lent in first.iter().chain(&lent) {
        spool.acknowledge(lent.token);
    }
    assert_eq!(spool.in_memory(), 3);
    // It works again: what is in memory goes to the disk first.
    fs::rename(&elsewhere, bench.path()).unwrap();
    fill(&spool, 6..8);
    assert_eq!(spool.in_memory(), 0);
    assert_eq!(texts(&bench.open(1 << 20).read(100)), numbers(3..8));
    assert_eq!(texts(&spool.read(100)), numbers(3..8));
    fails(&spool);
    for _ in 0..MEMORY_MAX {
        spool.append(b"x", 0).unwrap();
    }
    assert_eq!(spool.append(b"x", 0), Err("spool_failed"));
}
