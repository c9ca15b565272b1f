//! The chain that ties the entries together, and the small file that knows its end.
//!
//! The hash of an entry is SHA-256 over a fixed prefix, the hash of the entry before (zeros for the first), its number
//! (8 bytes, big-endian) and its bytes as they are kept. Whoever changes, removes or inserts an entry has to make anew
//! all that follow, and then the end is another one than the head file says. That file, beside the store, holds number
//! and hash of the last entry; the agent also writes them to its log, once an hour and when it ends, from where they
//! may leave the host: who can write both files can forge both, and only a copy elsewhere tells.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Before the first entry of a chain.
pub const GENESIS: Hash = Hash([0; 32]);

const PREFIX: &[u8] = b"ebpfsentinel audit 1\0";

/// The hash of an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// The hash of entry number `seq` that holds `bytes`, after an entry with the hash `previous`.
    pub fn of(previous: Hash, seq: u64, bytes: &[u8]) -> Hash {
        let digest = Sha256::new().chain_update(PREFIX).chain_update(previous.0).chain_update(seq.to_be_bytes());
        Hash(digest.chain_update(bytes).finalize().into())
    }

    /// Read back from its 64 digits.
    pub fn from_hex(text: &str) -> Option<Hash> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).ok()?;
        Some(Hash(bytes.try_into().ok()?))
    }
}

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// Number and hash of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number, from 1; 0 before the first.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

impl Link {
    /// Before the first entry.
    pub const START: Link = Link { seq: 0, hash: GENESIS };

    /// The link of the entry that comes after this one.
    pub fn next(self, bytes: &[u8]) -> Link {
        let seq = self.seq + 1;
        Link { seq, hash: Hash::of(self.hash, seq, bytes) }
    }
}

/// The file that knows the last entry: a line with its number and its hash. Written after each commit, so it is never
/// ahead of the store, and behind it by one commit at most after a crash.
#[derive(Clone, Debug)]
pub struct Head {
    path: PathBuf,
}

impl Head {
    /// The head file of the store at `store`.
    pub fn beside(store: &Path) -> Head {
        let mut name = store.as_os_str().to_owned();
        name.push(".head");
        Head { path: PathBuf::from(name) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says; `None` where there is none.
    ///
    /// # Errors
    /// It cannot be read, or is not what [`Head::write`] wrote.
    pub fn read(&self) -> io::Result<Option<Link>> {
        let text = match fs::read(&self.path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let link = text
            .trim_end()
            .split_once(' ')
            .and_then(|(seq, hash)| Some(Link { seq: seq.parse().ok()?, hash: Hash::from_hex(hash)? }));
        link.map(Some).ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "it is no number and hash"))
    }

    /// Says another one. A crash leaves the old or the new line.
    pub fn write(&self, link: Link) -> io::Result<()> {
        // A full disk has no place for a second file. The line then goes over the old one, in the block that it has:
        // else the file would be behind for as long as the disk is full, and name an entry that retention has removed
        // meanwhile.
        self.write_anew(link).or_else(|error| self.write_over(link).map_err(|_| error))
    }

    fn write_over(&self, link: Link) -> io::Result<()> {
        let mut file = File::options().write(true).open(&self.path)?;
        let mut line = format!("{} {}\n", link.seq, link.hash).into_bytes();
        line.resize(line.len().max(file.metadata()?.len() as usize), b'\n');
        file.write_all(&line)?;
        file.sync_data()
    }

    fn write_anew(&self, link: Link) -> io::Result<()> {
        let fresh = self.path.with_extension("head.new");
        let mut file = File::options().create(true).write(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(format!("{} {}\n", link.seq, link.hash).as_bytes())?;
        // Else a power cut could leave an empty file. That the old one may be there again is no matter: it is behind then.
        file.sync_data()?;
        fs::rename(&fresh, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_an_entry_is_in_its_hash() {
        let first = Link::START.next(b"a");
        assert_eq!(first.seq, 1);
        // printf 'ebpfsentinel audit 1\0' | cat - <32 zeros> <8 bytes: 1> <(printf a) | sha256sum
        let mut all = PREFIX.to_vec();
        all.extend([0; 39]);
        all.extend([1, b'a']);
        assert_eq!(first.hash.0, <[u8; 32]>::from(Sha256::digest(&all)));
        for other in [Hash::of(GENESIS, 1, b"b"), Hash::of(GENESIS, 2, b"a"), Hash::of(first.hash, 1, b"a")] {
            assert_ne!(other, first.hash);
        }
        assert_eq!(Hash::from_hex(&first.hash.to_string()), Some(first.hash));
        assert_eq!(Hash::from_hex("00"), None);
    }

    #[test]
    fn the_head_file_says_what_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let head = Head::beside(&directory.path().join("audit.redb"));
        assert_eq!(head.read().unwrap(), None);
        let link = Link::START.next(b"a");
        head.write(link).unwrap();
        assert_eq!(head.read().unwrap(), Some(link));
        // Where no other file can be made, it goes over the old one.
        let long = Link { seq: u64::MAX, hash: link.hash };
        fs::create_dir(head.path().with_extension("head.new")).unwrap();
        for link in [long, link, long] {
            head.write(link).unwrap();
            assert_eq!(head.read().unwrap(), Some(link));
        }
        for bad in ["", "1", "1 00", "x 0000000000000000000000000000000000000000000000000000000000000000"] {
            fs::write(head.path(), bad).unwrap();
            assert_eq!(head.read().unwrap_err().kind(), ErrorKind::InvalidData, "{bad}");
        }
    }
}
